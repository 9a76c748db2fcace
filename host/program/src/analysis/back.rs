//! What a sequence of writes answers to one query, without the states that hold it.
//!
//! Where a state S is affine in itself and what is written has rank one, S is not needed to know S q after the last step:
//! the query is taken back through the steps, from the last to the first, and gathers the answer on its way,
//!
//! ```text
//! o <- o + sum over terms u (w . p),    p <- decay(p) + sum over terms e (w . p)        for S <- decay(S) + sum over terms (u + S e) w^T
//! ```
//!
//! from p = q and o = 0; then S q = o + S_0 p. A step costs a query and an answer where a write costs a matrix.

use fwp_sdk::program::{Argument, Function, Node, NodeId, Op, Output, Program, State, StateInit, entry};

use super::form::{Decay, Factor, Form, Query, Range, Side, StateRead, Stratum};
use super::verify::{by_step, distance, drawn};
use super::{canonical, flatten};
use crate::equivalent::stand_in;
use crate::graph::{Editor, ancestors, with_arguments_used};
use crate::interpret::{Array, Inputs, Random, Value, evaluate};
use crate::separate::Separation;

/// Seed of the comparison.
const SEED: u64 = 1;
/// Steps that are compared.
const STEPS: usize = 4;
/// How far both may be apart, relative to the largest number of a tensor.
const TOLERANCE: f64 = 1e-9;

/// A write and a read of one query, as a walk from the last step to the first.
#[derive(Clone, Debug, PartialEq)]
pub struct WalkedBack {
    /// The walk: a rule whose step takes the inputs of the write and has two states for every read, `queryN` and `answerN`, in this order.
    pub rule: Program,
    /// What the walk begins with: arguments are those inputs of the read that it takes, results `queryN`.
    pub queries: Function,
    /// The outputs of the read: arguments are those inputs that it takes besides, then the reads.
    pub rest: Function,
    /// The reads in order.
    pub reads: Vec<BackRead>,
}

/// One read.
#[derive(Clone, Debug, PartialEq)]
pub struct BackRead {
    /// Its name among the arguments of [`WalkedBack::rest`].
    pub name: String,
    /// The state that it reads, an index into the rule's.
    pub state: usize,
    /// Elements of the query and of the answer.
    pub size: [usize; 2],
    /// The answer's shape in the step.
    pub shape: Vec<usize>,
}

/// The walk back of a rule, compared with its step on random numbers.
///
/// # Errors
/// Why there is none, for people.
pub fn walked_back(program: &Program, apart: &Separation) -> Result<WalkedBack, String> {
    let canonical = canonical(program).map_err(|e| e.to_string())?.map_err(|why| why.to_string())?;
    let mut reads: Vec<(&Form, &StateRead)> = Vec::new();
    for stratum in &canonical.strata {
        match stratum {
            Stratum::Chunk(form) => reads.extend(form.reads.iter().map(|r| (form, r))),
            Stratum::Walk(walk) if walk.reads.is_empty() => {}
            Stratum::Walk(walk) => return Err(walk.why.clone()),
        }
    }
    if reads.is_empty() {
        return Err("it reads no state".into());
    }
    for (form, read) in &reads {
        served(program, form, read)?;
    }
    let walk = walk(program, &apart.write, &reads)?;
    let queries = queries(program, &apart.read, &reads)?;
    let arguments: Vec<Argument> = apart.read.arguments.iter().cloned().chain(reads_of(&canonical.rest, &reads)?).collect();
    let rest = derived(program, "read", arguments, |e, arguments| {
        let wanted: Vec<NodeId> = canonical.rest.outputs.iter().map(|o| o.node).collect();
        let nodes = copied(e, &canonical.rest, &wanted, arguments)?;
        Ok(canonical.rest.outputs.iter().zip(nodes).map(|(o, node)| (o.name.clone(), node)).collect())
    })?;
    let (queries, rest) = (with_arguments_used(queries), with_arguments_used(rest));
    let reads = reads.iter().map(|(form, read)| BackRead {
        name: read.name.clone(),
        state: form.state as usize,
        size: [form.size[1], form.size[0]],
        shape: read.shape.clone(),
    });
    let made = WalkedBack { rule: walk, queries, rest, reads: reads.collect() };
    verify(program, &made)?;
    Ok(made)
}

/// Whether a read can be taken back.
fn served(program: &Program, form: &Form, read: &StateRead) -> Result<(), String> {
    let state = program.states.get(form.state as usize).ok_or("a form names a state that the rule does not have")?;
    let not = |why: &str| Err(format!("state `{}` {why}", state.name));
    if state.held > 1 {
        return not("is held for several steps");
    }
    if form.side == Side::Left {
        return not("is multiplied from the left");
    }
    if read.after != form.segments.len() {
        return not("is read before it is written");
    }
    if !matches!(read.query, Query::Right(_)) {
        return not("is not read with a query");
    }
    if form.segments.iter().any(|s| matches!(s.decay, Decay::Rows(_))) {
        return not("decays by row");
    }
    Ok(())
}

/// The reads as the rest declares them.
fn reads_of(rest: &Function, reads: &[(&Form, &StateRead)]) -> Result<Vec<Argument>, String> {
    let declared = |name: &str| rest.arguments.iter().find(|a| a.name == *name).cloned();
    reads.iter().map(|(_, r)| declared(&r.name).ok_or_else(|| format!("there is no read `{}`", r.name))).collect()
}

/// A function over these arguments, which are found by name.
fn derived(
    program: &Program,
    name: &str,
    arguments: Vec<Argument>,
    make: impl FnOnce(&mut Editor<'_>, &[Argument]) -> Result<Vec<(String, NodeId)>, String>,
) -> Result<Function, String> {
    let empty = Function { name: name.into(), arguments, parameters: vec![], nodes: vec![], outputs: vec![] };
    let mut e = Editor::new(program, &[], &empty);
    let outputs = make(&mut e, &empty.arguments)?;
    let (parameters, nodes) = (e.parameters, e.nodes);
    let outputs = outputs.into_iter().map(|(name, node)| Output { name, node }).collect();
    Ok(Function { parameters, nodes, outputs, ..empty })
}

/// Copies what these nodes of a function need; gives their places.
fn copied(e: &mut Editor<'_>, f: &Function, wanted: &[NodeId], arguments: &[Argument]) -> Result<Vec<NodeId>, String> {
    let needed = ancestors(f, wanted.iter().copied());
    let mut place = vec![0; f.nodes.len()];
    for (i, Node { op, operands, span }) in f.nodes.iter().enumerate().filter(|(i, _)| needed[*i]) {
        let op = match op {
            Op::Argument { index } => {
                let name = &f.arguments[*index as usize].name;
                let found = arguments.iter().position(|a| a.name == *name);
                Op::Argument { index: found.ok_or_else(|| format!("`{name}` is not known there"))? as u32 }
            }
            Op::Parameter { index } => {
                let declared = &f.parameters[*index as usize];
                let found = e.parameters.iter().position(|p| p.name == declared.name);
                let index = found.unwrap_or_else(|| {
                    e.parameters.push(declared.clone());
                    e.parameters.len() - 1
                });
                Op::Parameter { index: index as u32 }
            }
            Op::StepIndex => return Err("it asks for the index of the step".into()),
            other => other.clone(),
        };
        let operands: Vec<NodeId> = operands.iter().map(|o| place[*o as usize]).collect();
        e.span = *span;
        place[i] = once(e, op, &operands)?;
    }
    Ok(wanted.iter().map(|n| place[*n as usize]).collect())
}

/// A node, which is made once: coefficients share what they are made of.
fn once(e: &mut Editor<'_>, op: Op, operands: &[NodeId]) -> Result<NodeId, String> {
    match e.nodes.iter().position(|n| n.op == op && n.operands == operands) {
        Some(n) => Ok(n as NodeId),
        None => e.push(op, operands),
    }
}

/// A node in this shape.
fn shaped(e: &mut Editor<'_>, n: NodeId, shape: &[usize]) -> Result<NodeId, String> {
    if e.shape(n) == shape { Ok(n) } else { once(e, Op::Reshape { shape: shape.to_vec() }, &[n]) }
}

fn queries(program: &Program, read: &Function, reads: &[(&Form, &StateRead)]) -> Result<Function, String> {
    derived(program, "queries", read.arguments.clone(), |e, arguments| {
        let mut results = Vec::new();
        for (i, (form, read)) in reads.iter().enumerate() {
            let Query::Right(c) = read.query else { return Err("a read without a query".into()) };
            let q = copied(e, &form.coefficients, &[form.coefficients.outputs[c].node], arguments)?[0];
            results.push((format!("query{i}"), shaped(e, q, &[form.size[1]])?));
        }
        Ok(results)
    })
}

/// The rule that walks.
fn walk(program: &Program, write: &Function, reads: &[(&Form, &StateRead)]) -> Result<Program, String> {
    let state = |name: String, n: usize| State { name, shape: vec![n], init: StateInit::Zeros, held: 1 };
    let states = reads.iter().enumerate().flat_map(|(i, (form, _))| {
        let [rows, columns] = form.size;
        [state(format!("query{i}"), columns), state(format!("answer{i}"), rows)]
    });
    let inputs = program.inputs.iter().filter(|i| write.arguments.iter().any(|a| a.name == i.name));
    let mut rule = Program {
        inputs: inputs.cloned().collect(),
        states: states.collect(),
        functions: vec![],
        entries: vec![(entry::STEP.into(), 0)],
        ..program.clone()
    };
    let step = derived(&rule, "walk back", write.arguments.clone(), |e, arguments| {
        let mut results = Vec::new();
        for (i, (form, _)) in reads.iter().enumerate() {
            let (p, o) = taken_back(e, form, arguments, 2 * i as u32)?;
            results.extend([(format!("state.query{i}"), p), (format!("state.answer{i}"), o)]);
        }
        Ok(results)
    })?;
    rule.functions.push(step);
    Ok(rule)
}

/// Query and answer of one read, one step further back; `state` is the number of the query.
fn taken_back(e: &mut Editor<'_>, form: &Form, arguments: &[Argument], state: u32) -> Result<(NodeId, NodeId), String> {
    let [rows, columns] = form.size;
    let mut p = e.push(Op::State { index: state }, &[])?;
    let mut o = e.push(Op::State { index: state + 1 }, &[])?;
    let coefficient = |e: &mut Editor<'_>, c: usize, shape: &[usize]| -> Result<NodeId, String> {
        let n = copied(e, &form.coefficients, &[form.coefficients.outputs[c].node], arguments)?[0];
        shaped(e, n, shape)
    };
    let factor = |e: &mut Editor<'_>, f: &Factor, shape: &[usize]| -> Result<NodeId, String> {
        let n = coefficient(e, f.coefficient, shape)?;
        if f.range == Range::Log { once(e, Op::Exp, &[n]) } else { Ok(n) }
    };
    for segment in form.segments.iter().rev() {
        let mut next = match &segment.decay {
            Decay::One => p,
            Decay::Scalar(f) => {
                let a = factor(e, f, &[])?;
                e.push(Op::Mul, &[a, p])?
            }
            Decay::Columns(f) => {
                let a = factor(e, f, &[columns])?;
                e.push(Op::Mul, &[a, p])?
            }
            Decay::Rows(_) => return Err("a state decays by row".into()),
        };
        for term in &segment.terms {
            let w = coefficient(e, term.row, &[columns])?;
            let along = once(e, Op::Dot, &[w, p])?;
            let add = |e: &mut Editor<'_>, to: NodeId, c: usize, n: usize| -> Result<NodeId, String> {
                let x = coefficient(e, c, &[n])?;
                let x = e.push(Op::Mul, &[along, x])?;
                e.push(Op::Add, &[to, x])
            };
            if let Some(u) = term.column {
                o = add(e, o, u, rows)?;
            }
            if let Some(erase) = term.erase {
                next = add(e, next, erase, columns)?;
            }
        }
        p = next;
    }
    Ok((p, o))
}

/// Both ways from the same random states and inputs: what the read gives after the last of some steps.
fn verify(program: &Program, back: &WalkedBack) -> Result<(), String> {
    let flat = flatten::flatten(program).map_err(|e| e.to_string())?;
    let mut random = Random::new(SEED);
    let phi = |role, x: &Array| Ok(stand_in(program, role, x, SEED));
    let mut inputs = drawn(program, &flat.step, 1, &mut random)?;
    inputs.phi = Some(&phi);
    let first = inputs.states.clone();
    let mut given: Vec<Vec<Value>> = Vec::new();
    let mut wanted = Vec::new();
    for _ in 0..STEPS {
        inputs.arguments = drawn(program, &flat.step, 1, &mut random)?.arguments;
        given.push(inputs.arguments.clone());
        let done = by_step(program, &flat.step, &mut inputs)?;
        (inputs.states, wanted) = (done.states, done.outputs);
    }
    let names: Vec<&str> = flat.step.arguments.iter().map(|a| a.name.as_str()).collect();
    let of = |at: usize, f: &Function, reads: Vec<Value>| -> Vec<Value> {
        let own = f.arguments.iter().filter_map(|a| names.iter().position(|n| *n == a.name));
        own.map(|i| given[at][i].clone()).chain(reads).collect()
    };
    let run = |p: &Program, f: &Function, arguments: Vec<Value>, states: Vec<Array>| -> Result<Vec<Array>, String> {
        let mut inputs =
            Inputs { arguments, states, index: 1, parameters: inputs.parameters.clone(), phi: Some(&phi), ..Inputs::default() };
        let values = evaluate(p, f, &mut inputs).map_err(|e| e.to_string())?;
        values.into_iter().map(|v| v.tensor().cloned().ok_or_else(|| "a result is no tensor".to_string())).collect()
    };
    let queries = run(program, &back.queries, of(STEPS - 1, &back.queries, vec![]), first.clone())?;
    let mut states: Vec<Array> = Vec::new();
    for (q, read) in queries.into_iter().zip(&back.reads) {
        states.extend([q, Array::full(&[read.size[1]], 0.0)]);
    }
    let step = &back.rule.functions[0];
    for at in (0..STEPS).rev() {
        states = run(&back.rule, step, of(at, step, vec![]), states)?;
    }
    let mut reads = Vec::new();
    for (read, pair) in back.reads.iter().zip(states.chunks(2)) {
        let numbers = |a: &Array| a.floats().map(<[f64]>::to_vec).ok_or("a state holds no numbers");
        let (p, mut o, start) = (numbers(&pair[0])?, numbers(&pair[1])?, numbers(&first[read.state])?);
        for (o, row) in o.iter_mut().zip(start.chunks(p.len())) {
            *o += row.iter().zip(&p).map(|(s, p)| s * p).sum::<f64>();
        }
        reads.push(Array::new(&read.shape, o).ok_or("a read has another size")?.into());
    }
    let found = run(program, &back.rest, of(STEPS - 1, &back.rest, reads), first.clone())?;
    for ((name, wanted), found) in wanted.iter().zip(&found) {
        let error = distance(found, wanted);
        if error.is_nan() || error > TOLERANCE {
            return Err(format!("walked back, `{name}` is off by {error:.1e} of its size"));
        }
    }
    Ok(())
}
