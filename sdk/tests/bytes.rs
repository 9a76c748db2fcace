//! The byte format: what goes in comes out, in one way only.

mod support;

use fwp_sdk::prelude::*;
use fwp_sdk::program::{BytesError, FORMAT, Op, Program};
use fwp_sdk::serde_json::json;
use fwp_sdk::testing;
use support::{operators, parts};

/// Where sections begin: `(id, offset of the id, offset of the body, end of the body)`.
fn sections(bytes: &[u8]) -> Vec<(u16, usize, usize, usize)> {
    let mut at = 8;
    let mut all = Vec::new();
    while at < bytes.len() {
        let id = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (mut length, mut body, mut shift) = (0usize, at + 2, 0);
        loop {
            let b = bytes[body];
            length |= usize::from(b & 0x7f) << shift;
            shift += 7;
            body += 1;
            if b & 0x80 == 0 {
                break;
            }
        }
        all.push((id, at, body, body + length));
        at = body + length;
    }
    all
}

/// A section with a one-byte length.
fn section(id: u16, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 0x80);
    [&id.to_le_bytes()[..], &[body.len() as u8], body].concat()
}

#[test]
fn every_operator_comes_back_as_it_went() {
    for (code, name) in Op::table() {
        let mut seen = 0;
        for (op, operands, result) in operators::examples().iter().filter(|(op, _, r)| op.code() == *code && r.is_ok()) {
            let program = operators::program(op, operands);
            let bytes = program.to_bytes();
            let read = Program::from_bytes(&bytes).unwrap_or_else(|e| panic!("{op:?} of {operands:?} to {result:?}: {e}"));
            assert_eq!(read, program);
            assert_eq!(read.to_bytes(), bytes);
            assert!(read.functions[3].nodes.iter().any(|n| n.op == *op), "{op:?}");
            seen += 1;
        }
        assert!(seen > 0, "operator `{name}` is not tried");
    }
}

#[test]
fn whole_parts_come_back_as_they_went() {
    for (name, program) in parts::all() {
        let bytes = program.to_bytes();
        let read = Program::from_bytes(&bytes).unwrap();
        assert_eq!(read, program, "{name}");
        assert_eq!(read.to_bytes(), bytes, "{name}");
        let essence = Program::from_bytes(&program.essence()).unwrap();
        assert_eq!(essence.essence(), program.essence(), "{name}");
        assert!(essence.doc.is_empty() && essence.files.is_empty(), "{name}");
    }
    let all = parts::all();
    assert_eq!(all[0].1.entries.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["step", "restated"]);
    assert_ne!(all[1].1.entries[0].1, all[1].1.entries[1].1, "keys and queries are mapped differently");
    assert_eq!(all[2].1.slots, [parts::slot()]);
}

#[test]
fn every_place_is_one_of_the_plugin() {
    for (name, program) in parts::all() {
        assert_eq!(program.files, [parts::FILE], "{name}");
        for f in &program.functions {
            for n in &f.nodes {
                // The vector that a map is given is written nowhere.
                assert!(n.span.line > 0 || matches!(n.op, Op::Argument { .. }), "{name}: {n:?}");
            }
        }
    }
}

#[test]
fn the_same_part_gives_the_same_bytes() {
    for ((name, a), (_, b)) in parts::all().into_iter().zip(parts::all()) {
        assert_eq!(a.to_bytes(), b.to_bytes(), "{name}");
    }
}

mod terse {
    use fwp_sdk::prelude::*;
    config! { pub struct Rule {} }
    impl UpdateRule for Rule {
        const NAME: &'static str = "rule";
        const CITATION: &'static str = "";
        const OBJECTIVE: &'static str = "";
        fn signature(&self, dims: Dims) -> Signature {
            Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros)
        }
        fn step(&self, s: &mut Step) {
            let (q, k, v) = s.query_key_value();
            let w = s.state("w") + outer(v, k);
            s.output(w.matvec(q));
            s.set_state("w", w);
        }
    }
}

mod talkative {
    use fwp_sdk::prelude::*;

    config! {
        /// The same rule with words.
        pub struct Rule {}
    }

    impl UpdateRule for Rule {
        const NAME: &'static str = "rule";
        const CITATION: &'static str = "a paper";
        const OBJECTIVE: &'static str = "an objective";

        fn signature(&self, dims: Dims) -> Signature {
            Signature::new(dims)
                // The fast weights.
                .state("w", [dims.value, dims.key], StateStart::Zeros)
        }

        fn step(&self, s: &mut Step) {
            let (q, k, v) = s.query_key_value();
            // Left over from an earlier attempt.
            let _unused = s.repeat(2, &[&k], &[], |k, _| vec![k[0].exp()]);
            let _unused = q.dot(&k).exp() * s.constant(3.0);
            // Write.
            let w = s.state("w") + outer(v, k);
            s.set_state("w", &w);
            s.output(w.matvec(q));
        }
    }
}

#[test]
fn words_places_and_leftovers_change_no_essence() {
    let (a, b) = (
        testing::rule::<terse::Rule>(json!({}), parts::DIMS).unwrap(),
        testing::rule::<talkative::Rule>(json!({}), parts::DIMS).unwrap(),
    );
    assert_ne!(a.to_bytes(), b.to_bytes());
    assert_eq!(a.essence(), b.essence());
}

#[test]
fn essence_sees_what_is_computed_and_configured() {
    let a = testing::rule::<parts::Everything>(json!({}), parts::DIMS).unwrap();
    let b = testing::rule::<parts::Everything>(json!({ "eps": 1e-5 }), parts::DIMS).unwrap();
    let c = testing::rule::<parts::Everything>(json!({}), Dims { value: 7, ..parts::DIMS }).unwrap();
    assert_ne!(a.essence(), b.essence());
    assert_ne!(a.essence(), c.essence());
}

#[test]
fn an_unknown_optional_section_is_skipped_and_a_required_one_is_refused() {
    let bytes = parts::rule().to_bytes();
    let with = |id: u16| {
        let before = sections(&bytes).iter().find(|s| s.0 > id).map_or(bytes.len(), |s| s.1);
        [&bytes[..before], &section(id, b"from the future"), &bytes[before..]].concat()
    };
    for id in [0x0001, 0x0009, 0x0105, 0xffff] {
        assert_eq!(Program::from_bytes(&with(id)).unwrap(), parts::rule(), "0x{id:04x}");
    }
    for id in [0x000a, 0x0100, 0xfffe] {
        assert_eq!(Program::from_bytes(&with(id)), Err(BytesError::UnknownSection(id)));
    }
    assert!(BytesError::UnknownSection(0xa).to_string().contains("0x000a: the plugin was built with a newer SDK"));
}

#[test]
fn a_newer_format_is_refused_with_what_to_do() {
    let mut bytes = parts::map().to_bytes();
    for (found, at, value) in [((FORMAT.0, FORMAT.1 + 1), 6, FORMAT.1 + 1), ((FORMAT.0 + 1, FORMAT.1), 4, FORMAT.0 + 1)] {
        let before = bytes.clone();
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        let error = Program::from_bytes(&bytes).unwrap_err();
        assert_eq!(error, BytesError::NewerFormat { found, known: FORMAT });
        assert!(error.to_string().contains("use a newer fwp-host"), "{error}");
        bytes = before;
    }
}

#[test]
fn an_unknown_operator_is_refused_with_its_code() {
    let program = operators::program(&Op::Tanh, &["[3]"]);
    let mut bytes = program.to_bytes();
    let tanh = Op::Tanh.code().to_le_bytes();
    let (_, _, body, end) = sections(&bytes)[3];
    let at = (body..end - 3).find(|i| bytes[*i..*i + 2] == tanh && bytes[*i + 2..*i + 4] == [1, 0]).unwrap();
    bytes[at..at + 2].copy_from_slice(&0x7ff1u16.to_le_bytes());
    assert_eq!(Program::from_bytes(&bytes), Err(BytesError::UnknownOperator(0x7ff1)));
}

#[test]
fn disorder_repetition_gaps_and_rests_are_refused() {
    let bytes = parts::net().to_bytes();
    let all = sections(&bytes);
    let piece = |i: usize| &bytes[all[i].1..all[i].3];
    let order = |order: &[usize]| {
        let mut b = bytes[..8].to_vec();
        order.iter().for_each(|i| b.extend(piece(*i)));
        Program::from_bytes(&b)
    };
    assert!(order(&[0, 1, 2, 3, 4, 5]).is_ok());
    assert_eq!(order(&[1, 0, 2, 3]), Err(BytesError::Invalid("sections out of order".into())));
    assert_eq!(order(&[0, 1, 2, 2, 3]), Err(BytesError::Invalid("sections out of order".into())));
    for left_out in 0..4 {
        let rest: Vec<usize> = (0..4).filter(|i| *i != left_out).collect();
        // Slots may be looked for by a node before the gap is found.
        assert!(order(&rest).is_err(), "without section {left_out}");
    }
    assert!(order(&[]).unwrap_err().to_string().contains("is missing"));

    let trailing = [&bytes[..], &[0]].concat();
    assert_eq!(Program::from_bytes(&trailing), Err(BytesError::Truncated));
    let mut longer = bytes[..8].to_vec();
    longer.extend(section(2, &[&bytes[all[0].2..all[0].3], &[0][..]].concat()));
    longer.extend(&bytes[all[0].3..]);
    assert_eq!(Program::from_bytes(&longer), Err(BytesError::Invalid("section 0x0002 is longer than its content".into())));
}

#[test]
fn no_beginning_of_a_program_is_a_program() {
    let bytes = parts::rule().to_bytes();
    let whole: Vec<usize> = sections(&bytes).iter().skip(3).map(|s| s.3).collect();
    for n in (0..bytes.len()).filter(|n| !whole.contains(n)) {
        assert!(Program::from_bytes(&bytes[..n]).is_err(), "the first {n} bytes");
    }
    assert_eq!(Program::from_bytes(b""), Err(BytesError::NotAProgram));
    assert_eq!(Program::from_bytes(b"\x7fELF...."), Err(BytesError::NotAProgram));
}

#[test]
fn there_is_one_spelling_of_a_value() {
    // An integer with a superfluous group, a truth value of 2, another NaN, a state held for 0 steps.
    let nan = operators::program(&Op::Constant { value: f64::NAN }, &[]).to_bytes();
    let canonical = f64::NAN.to_bits().to_le_bytes();
    let at = (0..nan.len() - 8).find(|i| nan[*i..*i + 8] == canonical).unwrap();
    assert!(Program::from_bytes(&nan).is_ok());
    let mut other = nan.clone();
    other[at] ^= 1;
    assert!(Program::from_bytes(&other).unwrap_err().to_string().contains("NaN"));

    let mut held = operators::around();
    held.states[0].held = 0;
    assert!(Program::from_bytes(&held.to_bytes()).unwrap_err().to_string().contains("held for 0 steps"));

    let bytes = parts::map().to_bytes();
    let (_, _, body, _) = sections(&bytes)[1];
    assert_eq!(bytes[body..body + 2], [0, 0], "a map has no inputs and no states");
    let mut long = bytes[..body - 1].to_vec();
    long.extend([3, 0x80, 0, 0]);
    long.extend(&bytes[body + 2..]);
    assert!(Program::from_bytes(&long).unwrap_err().to_string().contains("shortest form"));
}
