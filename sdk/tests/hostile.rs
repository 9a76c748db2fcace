//! Bytes that mean harm: no panic, no absurd memory, no long work.

#[path = "support/counting_alloc_unsafe.rs"]
mod counting_alloc_unsafe;
mod support;

use std::time::{Duration, Instant};

use fwp_sdk::program::{Argument, BytesError, Function, Node, Op, Output, Program, RuleInput, Span, TensorType, Type};
use support::{Random, operators, parts};

/// Most memory that reading any bytes may take at once, far above what a real part needs.
const MOST_MEMORY: usize = 600 << 20;
/// Longest that reading any bytes may take on a slow, busy machine.
const MOST_TIME: Duration = Duration::from_secs(10);

fn read(bytes: &[u8]) -> Result<Program, BytesError> {
    let start = Instant::now();
    let (result, peak) = counting_alloc_unsafe::peak_of(|| Program::from_bytes(bytes));
    assert!(peak < MOST_MEMORY, "{} bytes took {} MiB", bytes.len(), peak >> 20);
    assert!(start.elapsed() < MOST_TIME, "{} bytes took {:?}", bytes.len(), start.elapsed());
    if let Err(e) = &result {
        let text = e.to_string();
        assert!(text.len() < 20_000, "a message of {} bytes", text.len());
    }
    result
}

/// Whether the bytes hold exactly the sections that this SDK writes.
fn known_sections(bytes: &[u8], program: &Program) -> bool {
    program.to_bytes().len() == bytes.len()
}

#[test]
fn random_bytes_are_refused() {
    let mut random = Random(1);
    let header = parts::map().to_bytes()[..8].to_vec();
    for round in 0..20_000 {
        let mut bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        if round % 2 == 0 {
            bytes.splice(0..0, header.iter().copied());
        }
        assert!(read(&bytes).is_err() || bytes.len() == 8);
    }
}

/// The sections as `(id, body)`.
fn sections(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut rest = &bytes[8..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let id = u16::from_le_bytes([rest[0], rest[1]]);
        let (mut length, mut at, mut shift) = (0usize, 2, 0);
        loop {
            length |= usize::from(rest[at] & 0x7f) << shift;
            shift += 7;
            at += 1;
            if rest[at - 1] & 0x80 == 0 {
                break;
            }
        }
        all.push((id, rest[at..at + length].to_vec()));
        rest = &rest[at + length..];
    }
    all
}

fn uint(mut x: u64, to: &mut Vec<u8>) {
    while x >= 0x80 {
        to.push(x as u8 | 0x80);
        x >>= 7;
    }
    to.push(x as u8);
}

fn join(header: &[u8], sections: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    for (id, body) in sections {
        bytes.extend(id.to_le_bytes());
        uint(body.len() as u64, &mut bytes);
        bytes.extend(body);
    }
    bytes
}

fn mutate(body: &mut Vec<u8>, random: &mut Random) {
    if body.is_empty() {
        return;
    }
    let at = random.below(body.len());
    match random.below(7) {
        0 => body[at] ^= 1 << random.below(8),
        1 => body[at] = [0, 1, 2, 0x7f, 0x80, 0xff][random.below(6)],
        2 => {
            let _ = body.remove(at);
        }
        3 => body.insert(at, random.next() as u8),
        4 => {
            // A size that is far too large.
            let mut huge = Vec::new();
            uint(1 << random.below(64), &mut huge);
            body.splice(at..at + 1, huge);
        }
        5 => {
            let end = at + random.below((body.len() - at).min(64)) + 1;
            let copy = body[at..end].to_vec();
            let to = random.below(body.len());
            body.splice(to..to, copy);
        }
        _ => {
            let end = at + random.below((body.len() - at).min(16)) + 1;
            body.drain(at..end);
        }
    }
}

#[test]
fn mutated_bytes_are_refused_or_read_and_written_alike() {
    let mut random = Random(2);
    let mut originals: Vec<Vec<u8>> = parts::all().iter().map(|(_, p)| p.to_bytes()).collect();
    for (op, operands, result) in operators::examples() {
        if result.is_ok() {
            originals.push(operators::program(&op, operands).to_bytes());
        }
    }
    let (mut accepted, rounds) = (0, 60_000);
    for round in 0..rounds {
        // The three whole parts are tried more often than each operator.
        let original = &originals[if round % 2 == 0 { random.below(3) } else { random.below(originals.len()) }];
        let mut parts = sections(original);
        for _ in 0..=random.below(3) {
            let which = random.below(parts.len());
            mutate(&mut parts[which].1, &mut random);
        }
        let bytes = join(&original[..8], &parts);
        if let Ok(p) = read(&bytes) {
            accepted += 1;
            if known_sections(&bytes, &p) {
                assert_eq!(p.to_bytes(), bytes, "what is read is written alike");
            }
        }
    }
    // The mutations must get past the outer checks often enough to mean something.
    assert!(accepted > rounds / 50, "only {accepted} of {rounds} were accepted");
}

#[test]
fn mutated_graphs_are_refused_or_read() {
    let mut random = Random(3);
    let examples = operators::examples();
    let originals: Vec<Program> = parts::all().into_iter().map(|(_, p)| p).chain([operators::around()]).collect();
    for _ in 0..20_000 {
        let mut p = originals[random.below(originals.len())].clone();
        for _ in 0..=random.below(4) {
            let f = random.below(p.functions.len());
            let functions = p.functions.len() as u32;
            let f = &mut p.functions[f];
            let n = random.below(f.nodes.len());
            match random.below(8) {
                0 => f.nodes[n].op = examples[random.below(examples.len())].0.clone(),
                1 => {
                    let operand = random.below(f.nodes.len() + 1) as u32;
                    f.nodes[n].operands.push(operand);
                }
                2 => f.nodes[n].operands.clear(),
                3 => f.nodes.swap(n, 0),
                4 => f.outputs.push(Output { name: "more".into(), node: random.below(f.nodes.len() + 1) as u32 }),
                5 => {
                    let function = random.below(functions as usize + 1) as u32;
                    f.nodes[n].op = Op::Call { function, name: "again".into() };
                }
                6 => {
                    let sizes = [0, 1, 2, 1 << 17, 1 << 34, 1 << 47];
                    let shape = (0..random.below(10)).map(|_| sizes[random.below(6)]).collect();
                    f.nodes[n].op = Op::Full { shape, value: 0.0 };
                    f.nodes[n].operands.clear();
                }
                _ => {
                    let shape: Vec<usize> = (0..random.below(4)).map(|_| 1 << random.below(48)).collect();
                    f.arguments.push(Argument { name: "more".into(), ty: TensorType::float(&shape).into() });
                }
            }
        }
        let bytes = p.to_bytes();
        if let Ok(again) = read(&bytes) {
            assert_eq!(again.to_bytes(), bytes);
        }
    }
}

fn node(op: Op, operands: Vec<u32>) -> Node {
    Node { op, operands, span: Span::default() }
}

fn outputs(count: usize, node: u32) -> Vec<Output> {
    (0..count).map(|_| Output { name: String::new(), node }).collect()
}

fn with_functions(functions: Vec<Function>) -> Program {
    Program { functions, slots: vec![], states: vec![], files: vec![], ..operators::around() }
}

fn refused(p: &Program, wanted: &str) {
    let message = read(&p.to_bytes()).expect_err(wanted).to_string();
    assert!(message.contains(wanted), "{message}");
}

#[test]
fn a_huge_count_reserves_nothing() {
    let good = parts::rule().to_bytes();
    for which in 1..4 {
        let mut parts = sections(&good);
        for count in [1 << 20, 1 << 47, u64::MAX] {
            parts[which].1.clear();
            uint(count, &mut parts[which].1);
            let bytes = join(&good[..8], &parts);
            let (result, peak) = counting_alloc_unsafe::peak_of(|| Program::from_bytes(&bytes));
            assert!(result.is_err());
            assert!(peak < 1 << 20, "{peak} bytes for a count of {count}");
        }
    }
}

#[test]
fn types_that_would_grow_from_call_to_call_are_refused() {
    // Each function returns the results of the one before many times.
    let mut functions = vec![Function {
        nodes: vec![node(Op::Constant { value: 0.0 }, vec![])],
        outputs: outputs(1000, 0),
        ..Function::default()
    }];
    for function in 0..30 {
        functions.push(Function {
            nodes: vec![node(Op::Call { function, name: String::new() }, vec![])],
            outputs: outputs(1000, 0),
            ..Function::default()
        });
    }
    refused(&with_functions(functions), "holds several values");

    let many =
        Function { nodes: vec![node(Op::Constant { value: 0.0 }, vec![])], outputs: outputs(60_000, 0), ..Function::default() };
    let caller =
        Function { nodes: vec![node(Op::Call { function: 0, name: String::new() }, vec![]); 150_000], ..Function::default() };
    refused(&with_functions(vec![many, caller]), "add up to too much");
}

#[test]
fn counts_sizes_and_names_beyond_the_limits_are_refused() {
    let constant = node(Op::Constant { value: 0.0 }, vec![]);
    let one = |nodes: Vec<Node>| with_functions(vec![Function { nodes, ..Function::default() }]);
    refused(&one(vec![constant.clone(); 250_000]), "250000 nodes");
    refused(&one(vec![constant.clone(); 450_000]), "more than 400000");
    refused(&with_functions(vec![Function::default(); 450_000]), "more than 400000");
    refused(&one(vec![constant.clone(), node(Op::Concat { axis: 0 }, vec![0; 70_000])]), "70000 operands are too many");
    let results = Function { nodes: vec![constant.clone()], outputs: outputs(70_000, 0), ..Function::default() };
    refused(&with_functions(vec![results]), "70000 results are too many");

    let argument =
        |ty: Type| with_functions(vec![Function { arguments: vec![Argument { name: "x".into(), ty }], ..Function::default() }]);
    let float = TensorType::float;
    refused(&argument(float(&[1 << 20, 1 << 20]).into()), "too large");
    refused(&argument(float(&[1; 9]).into()), "9 axes");
    refused(&argument(float(&[3]).along(&"t".repeat(65)).into()), "65 bytes");
    refused(&argument(Type::Tuple(vec![])), "type 1 of an argument");

    let mut p = parts::rule();
    p.inputs[0].count = Some(1 << 40);
    refused(&p, "input `q`: a tensor of shape");
    let mut p = parts::rule();
    p.inputs = (0..65).map(|i| RuleInput { name: format!("i{i}"), ..p.inputs[0].clone() }).collect();
    refused(&p, "65 inputs are too many");
    let mut p = parts::net();
    p.slots[0].heads = 1 << 40;
    refused(&p, "slot `main`: a tensor of shape");
    let mut p = parts::net();
    p.slots[0].inputs[1].shape = vec![usize::MAX >> 20, 6];
    refused(&p, "too large");
    let mut p = parts::map();
    p.name = "n".repeat(5000);
    refused(&p, "a name of 5000 bytes");
    assert!(matches!(read(&vec![0; (16 << 20) + 1]), Err(BytesError::Limit(_))));
}

#[test]
fn references_to_what_is_not_there_are_refused() {
    let constant = node(Op::Constant { value: 0.0 }, vec![]);
    let one = |nodes: Vec<Node>| with_functions(vec![Function { nodes, outputs: outputs(1, 0), ..Function::default() }]);
    refused(&one(vec![node(Op::Neg, vec![0])]), "an operand does not come before the node");
    refused(&one(vec![constant.clone(), node(Op::Neg, vec![u32::MAX])]), "an operand does not come before the node");
    refused(&one(vec![node(Op::Call { function: 0, name: String::new() }, vec![])]), "there is no function 0 before this one");
    refused(&one(vec![node(Op::State { index: 0 }, vec![])]), "there is no such state");
    refused(&one(vec![node(Op::Argument { index: 3 }, vec![])]), "there is no such argument");
    refused(&one(vec![]), "an output names a node that is not there");
    let mut p = one(vec![constant]);
    p.entries = vec![("step".into(), 7)];
    refused(&p, "entry `step` names a function that is not there");
    let mut p = parts::rule();
    let step = p.entries[0].1 as usize;
    let last = p.functions.len() as u32 - 1;
    p.functions[step].parameters[0].init = last;
    refused(&p, "the initialiser of parameter `w_0` does not give [5, 6]");
}

#[test]
fn large_but_honest_programs_are_read_quickly() {
    // A deep net without repetition: 64 times the largest part, 20,000 nodes.
    let mut nodes = vec![node(Op::Constant { value: 0.0 }, vec![])];
    for i in 0..190_000 {
        nodes.push(node(Op::Add, vec![i, 0]));
    }
    let p = with_functions(vec![Function { nodes, outputs: outputs(1, 190_000), ..Function::default() }]);
    assert_eq!(read(&p.to_bytes()).unwrap(), p);
}
