//! Bytes of the past decode for ever: operator codes, three programs that were written once, and what libraries answered.
//!
//! The programs of the repository's own parts are in `tests/golden` of the repository, with the numbers that they gave.
//! A new operator adds a line to `operators.txt`; no line of it ever changes.
//! The programs are never written again. `FWP_WRITE_GOLDEN=1` writes only those that do not exist yet, and adds new operators.

mod support;

use std::fmt::Write as _;
use std::path::PathBuf;

use fwp_sdk::build::Memory;
use fwp_sdk::program::{Op, Program};
use fwp_sdk::serde_json::{from_value, json};
use fwp_sdk::{Ask, Memories, PartInfo};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What a program computes, as text: declarations, functions, operators with attributes and operands.
fn outline(p: &Program) -> String {
    let mut s = String::new();
    writeln!(s, "{} {} {}", p.kind, p.name, p.config).unwrap();
    writeln!(s, "doc {:?} citation {:?} objective {:?}", p.doc, p.citation, p.objective).unwrap();
    for i in &p.inputs {
        writeln!(s, "input {} {:?} raw {} count {:?} heads {:?} {:?}", i.name, i.role, i.raw, i.count, i.heads, i.shape).unwrap();
    }
    for t in &p.states {
        writeln!(s, "state {} {:?} {:?} held {}", t.name, t.shape, t.init, t.held).unwrap();
    }
    for t in &p.slots {
        writeln!(s, "slot {t:?}").unwrap();
    }
    writeln!(s, "entries {:?}", p.entries).unwrap();
    for f in &p.functions {
        writeln!(s, "function {}", f.name).unwrap();
        for a in &f.arguments {
            writeln!(s, "  argument {} {}", a.name, a.ty).unwrap();
        }
        for q in &f.parameters {
            writeln!(s, "  parameter {} {:?} {:?} {:?} by {}", q.name, q.shape, q.scope, q.training, q.init).unwrap();
        }
        for (i, n) in f.nodes.iter().enumerate() {
            let attributes: Vec<String> = n.op.attributes().into_iter().map(|(k, v)| format!("{k}={v}")).collect();
            writeln!(s, "  {i} = {} {:?} {{{}}}", n.op.name(), n.operands, attributes.join(" ")).unwrap();
        }
        for o in &f.outputs {
            writeln!(s, "  output {} {}", o.name, o.node).unwrap();
        }
    }
    s
}

#[test]
fn no_operator_code_ever_changes() {
    let at = golden("operators.txt");
    let mut known = std::fs::read_to_string(&at).unwrap_or_default();
    let now: Vec<String> = Op::table()
        .iter()
        .zip(Op::layouts())
        .map(|((code, name), (_, attributes))| format!("{code:04x} {name} {}", attributes.join(", ")).trim_end().to_string())
        .collect();
    if std::env::var_os("FWP_WRITE_GOLDEN").is_some() {
        let new: Vec<&String> = now.iter().filter(|line| known.lines().all(|l| l != line.as_str())).collect();
        new.iter().for_each(|line| known += &format!("{line}\n"));
        std::fs::write(&at, &known).unwrap();
    }
    for line in known.lines() {
        assert!(now.iter().any(|l| l == line), "`{line}` is what built plugins hold, and it is gone or changed");
    }
    for (i, ((code, name), line)) in Op::table().iter().zip(&now).enumerate() {
        assert!(known.lines().any(|l| l == line), "add the new operator to operators.txt: {line}");
        assert!(Op::table()[..i].iter().all(|(c, n)| c != code && n != name), "{code:04x} `{name}` is there twice");
    }
}

#[test]
fn programs_of_the_past_say_the_same_today() {
    for (name, program) in support::parts::all() {
        let (bytes_at, text_at) = (golden(&format!("{name}.fwp")), golden(&format!("{name}.txt")));
        if std::env::var_os("FWP_WRITE_GOLDEN").is_some() && !bytes_at.exists() {
            std::fs::write(&bytes_at, program.to_bytes()).unwrap();
            std::fs::write(&text_at, outline(&program)).unwrap();
        }
        let bytes = std::fs::read(&bytes_at).unwrap();
        let old = Program::from_bytes(&bytes).unwrap();
        assert_eq!(outline(&old), std::fs::read_to_string(&text_at).unwrap(), "{name}.fwp");
        // The header too: a program that needs nothing new does not ask for a newer reader.
        assert_eq!(old.to_bytes(), bytes, "{name}.fwp");
    }
}

/// Questions of old parts of a recipe are in `tests/golden` of the repository; here is what else crosses the border.
#[test]
fn what_was_said_at_the_border_is_understood_today() {
    let field = json!({ "name": "eps", "kind": "a number", "default": 1e-6, "doc": "Added." });
    let mut part = json!({ "kind": "slow-net", "name": "n", "doc": "d", "citation": "c", "fields": [field] });
    let info: PartInfo = from_value(part.clone()).unwrap();
    assert_eq!((info.fields.len(), info.slots.len()), (1, 0));
    let task = json!({
        "inputs": [{ "name": "tokens", "axis": "time", "kind": { "symbol": { "vocab": 7 } } }],
        "outputs": [{ "name": "y", "axis": null, "kind": { "vector": { "dim": 5 } } }],
        "max_len": 9,
    });
    let mut ask = json!({ "memories": { "task": task, "slots": ["main"] } });
    let Ask::Memories { task: read, .. } = from_value(ask.clone()).unwrap() else { panic!("{ask}") };
    assert_eq!((read.input("tokens").vocab(), read.output("y").dim()), (7, 5));
    assert_eq!(from_value::<Ask>(json!({ "features": { "dim": 3 } })).unwrap(), Ask::Features { dim: 3 });
    let answer = json!({ "slots": [{ "heads": 1, "key": 2, "value": 3 }], "layers": 4 });
    let memories: Memories = from_value(answer).unwrap();
    assert_eq!(memories, Memories { slots: vec![Memory { heads: 1, key: 2, value: 3 }], layers: 4 });

    // What a later SDK adds is passed over.
    part["later"] = json!([1]);
    ask["memories"]["later"] = json!({ "a": 1 });
    ask["memories"]["task"]["later"] = json!(true);
    assert_eq!(from_value::<PartInfo>(part).unwrap(), info);
    assert!(from_value::<Ask>(ask).is_ok());
}
