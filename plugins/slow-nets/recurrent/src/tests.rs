//! What the nets describe.

use fwp_sdk::build::{Port, PortKind};
use fwp_sdk::prelude::*;
use fwp_sdk::program::{Op, Program, Role, RuleInput, SlotInterface, Training};
use fwp_sdk::serde_json::{Value, json};
use fwp_sdk::testing;

use crate::{AssociativeLstm, FastWeightsRnn, Irnn, Lstm};

fn task() -> TaskIo {
    let port = |name: &str, kind| Port { name: name.into(), axis: Some("time".into()), kind };
    TaskIo {
        inputs: vec![port("tokens", PortKind::Symbol { vocab: 37 })],
        outputs: vec![port("logits", PortKind::Vector { dim: 11 })],
        max_len: 64,
    }
}

fn input(name: &str, role: Role, shape: &[usize]) -> RuleInput {
    RuleInput { name: name.into(), role, raw: false, count: None, heads: None, shape: shape.into() }
}

/// A rule with q, k, v for hidden vectors of 50 and these inputs beside.
fn slot(more: Vec<RuleInput>) -> SlotInterface {
    let mut inputs = vec![input("q", Role::Query, &[50]), input("k", Role::Key, &[50]), input("v", Role::Value, &[50])];
    inputs.extend(more);
    SlotInterface {
        name: "main".into(),
        rule: "hebbian-decay".into(),
        heads: 1,
        key_raw: 50,
        key: 50,
        value: 50,
        inputs,
        output: vec![50],
        extras: vec![],
    }
}

fn alone<N: SlowNet>(config: Value) -> Result<Program, String> {
    testing::net::<N>(config, &task(), &[])
}

fn ba(config: Value, slot: SlotInterface) -> Result<Program, String> {
    testing::net::<FastWeightsRnn>(config, &task(), &[(slot, None)])
}

/// Parameters of all functions by name.
fn parameters(program: &Program) -> Vec<(&str, Vec<usize>)> {
    let all = program.functions.iter().rev().flat_map(|f| &f.parameters);
    all.map(|p| (p.name.as_str(), p.shape.clone())).collect()
}

#[test]
fn names_and_shapes() {
    let ends: Vec<(&str, Vec<usize>)> =
        vec![("embeddings.weight", vec![37, 100]), ("lm_head.weight", vec![11, 50]), ("lm_head.bias", vec![11])];
    let check = |program: Program, own: Vec<(&str, Vec<usize>)>| {
        let mut found = parameters(&program);
        let mut wanted = [ends.clone(), own].concat();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
    };
    let lstm = |number: usize, size: usize| {
        vec![("layers.0.x_proj.weight", vec![200, 100]), ("layers.0.x_proj.bias", vec![200]), ("h_proj.weight", vec![200, 50])]
            .into_iter()
            .map(move |(name, shape)| match (number, name) {
                (1, "layers.0.x_proj.weight") => ("layers.1.x_proj.weight", vec![200, size]),
                (1, "layers.0.x_proj.bias") => ("layers.1.x_proj.bias", shape),
                _ => (name, shape),
            })
    };
    check(alone::<Lstm>(json!({})).unwrap(), lstm(0, 100).collect());
    check(alone::<Lstm>(json!({ "layers": 2 })).unwrap(), lstm(0, 100).chain(lstm(1, 50)).collect());
    check(
        alone::<Irnn>(json!({})).unwrap(),
        vec![("x_proj.weight", vec![50, 100]), ("x_proj.bias", vec![50]), ("h_proj.weight", vec![50, 50])],
    );
    let a_lstm = vec![
        ("x_proj.weight", vec![225, 100]),
        ("x_proj.bias", vec![225]),
        ("h_proj.weight", vec![225, 50]),
        ("permutations", vec![75, 25]),
    ];
    let program = alone::<AssociativeLstm>(json!({ "copies": 3 })).unwrap();
    let constant = program.functions.iter().flat_map(|f| &f.parameters).find(|p| p.name == "permutations").unwrap();
    assert_eq!(constant.training, Training::Constant);
    check(program, a_lstm);
    let own = vec![
        ("x_proj.weight", vec![50, 100]),
        ("h_proj.weight", vec![50, 50]),
        ("norm.weight", vec![50]),
        ("norm.bias", vec![50]),
    ];
    check(ba(json!({}), slot(vec![])).unwrap(), own.clone());
    check(ba(json!({ "layer_norm": false }), slot(vec![])).unwrap(), own[..2].to_vec());
    let gated = ba(json!({ "inner_steps": 3 }), slot(vec![input("beta", Role::Gate, &[])])).unwrap();
    check(gated, [own, vec![("beta_proj.weight", vec![1, 50])]].concat());
    let program = ba(json!({ "readout": 100 }), slot(vec![])).unwrap();
    assert!(parameters(&program).contains(&("readout.weight", vec![100, 50])));
    assert!(parameters(&program).contains(&("lm_head.weight", vec![11, 100])));
}

#[test]
fn the_inner_loop_reads_as_often_as_it_is_told() {
    let reads = |config| {
        let program = ba(config, slot(vec![])).unwrap();
        let ops = program.functions.iter().flat_map(|f| &f.nodes);
        ops.filter(|n| matches!(n.op, Op::FastRead { .. })).count()
    };
    assert_eq!((reads(json!({})), reads(json!({ "inner_steps": 3 }))), (1, 3));
    // A control of the paper: no inner step, no fast weights, and no rule is needed.
    let program = alone::<FastWeightsRnn>(json!({ "inner_steps": 0, "norm_start": true })).unwrap();
    assert!(parameters(&program).contains(&("norm.weight", vec![50])));
    let message = alone::<FastWeightsRnn>(json!({})).unwrap_err();
    assert!(message.ends_with(fwp_sdk::NEEDS_FAST_WEIGHTS), "{message}");
}

#[test]
fn the_memory_is_one_square_and_baselines_have_none() {
    let memory = testing::memory::<FastWeightsRnn>(json!({ "hidden": 20 }), &task());
    assert_eq!(memory, Ok(Memory { heads: 1, key: 20, value: 20 }));
    let none = [
        testing::memory::<Lstm>(json!({}), &task()),
        testing::memory::<Irnn>(json!({}), &task()),
        testing::memory::<AssociativeLstm>(json!({}), &task()),
    ];
    for memory in none {
        let message = memory.unwrap_err();
        assert!(message.ends_with(fwp_sdk::NO_FAST_WEIGHTS), "{message}");
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let mut wide = slot(vec![]);
    wide.output = vec![51];
    for (message, wanted) in [
        (alone::<Lstm>(json!({ "hidden": 0 })), "`hidden`"),
        (alone::<Lstm>(json!({ "layers": 0 })), "`layers`"),
        (alone::<Lstm>(json!({ "dropout": 1 })), "`dropout`"),
        (alone::<Lstm>(json!({ "embeding": 3 })), "did you mean `embedding`?"),
        (alone::<Irnn>(json!({ "input_std": -1 })), "`input_std`"),
        (alone::<AssociativeLstm>(json!({ "hidden": 51 })), "`hidden`: a complex vector"),
        (alone::<AssociativeLstm>(json!({ "copies": 0 })), "`copies`"),
        (ba(json!({ "sustain": "both" }), slot(vec![])), "\"input\" or \"identity\""),
        (ba(json!({}), wide), "answers with [51]"),
    ] {
        let message = message.unwrap_err();
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let bytes = || alone::<AssociativeLstm>(json!({})).unwrap().to_bytes();
    assert_eq!(bytes(), bytes());
}
