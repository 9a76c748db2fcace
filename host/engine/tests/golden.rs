//! Slow nets as they were built once: their programs are read, checked and run as on the day they were written.
//!
//! Update rules and feature maps are in the tests of the command line.

mod support;

use std::collections::BTreeMap;

use fwp_engine::train::TrainModel;
use fwp_map_identity::Identity;
use fwp_net_recurrent::{AssociativeLstm, FastWeightsRnn, Irnn, Lstm};
use fwp_net_retrieval::Retrieval;
use fwp_net_transformer::{DeltaDelta, Hybrid, RecurrentDelta, SoftmaxTransformer, Transformer};
use fwp_program::analysis::walked_back;
use fwp_program::{ModelPrograms, SlotPrograms, check, expand_gradients, separate};
use fwp_rule_delta::Delta;
use fwp_sdk::build::{Dims, Port, PortKind, TaskIo};
use fwp_sdk::program::{Kind, Program, Role, RuleInput, SlotInterface};
use fwp_sdk::{Ask, Memories, Part, Request, border, testing};
use fwp_test_support::golden::{self, Golden, Numbers, assert_same, digest};
use serde_json::{Value, json};
use support::{EVAL, config, model, set, token_task, values};
use tch::Tensor;

const FOLDER: &str = "slow-nets";
const VOCAB: usize = 7;
/// Positions along every axis.
const LENGTH: i64 = 7;

/// A slow net and the configurations in which its program has other operations.
struct Case {
    part: Part,
    task: TaskIo,
    slots: &'static [&'static str],
    variants: Vec<Value>,
}

impl Case {
    fn of(part: Part, slots: &'static [&'static str], variants: Vec<Value>) -> Case {
        Case { part, task: token_task(VOCAB, VOCAB), slots, variants }
    }

    fn answer(&self, config: &Value, ask: Ask) -> Vec<u8> {
        let name = self.part.info().name;
        let request = Request { kind: Kind::SlowNet, name: name.clone(), config: support::config(config.clone()), ask };
        let request = serde_json::to_vec(&request).unwrap();
        let answer = border::describe(std::slice::from_ref(&self.part), request.as_slice().into());
        answer.into_result().unwrap_or_else(|e| panic!("`{name}` with {config}: {e}")).into()
    }

    /// The question for a net's program, with the delta rule in each slot.
    fn question(&self, config: &Value) -> Ask {
        let softmax = config.get("softmax").is_some();
        let names: Vec<String> = if softmax { vec![] } else { self.slots.iter().map(|s| s.to_string()).collect() };
        let mut slots: Vec<SlotInterface> = Vec::new();
        if !names.is_empty() {
            let answer = self.answer(config, Ask::Memories { task: self.task.clone(), slots: names.clone() });
            let memories: Memories = serde_json::from_slice(&answer).unwrap();
            slots = names.iter().zip(memories.slots).map(|(name, m)| delta(name, m.heads, m.key, m.value)).collect();
        }
        let layers = names.into_iter().map(|name| (name, None)).collect();
        Ask::Net { task: self.task.clone(), slots, layers }
    }
}

/// The delta rule behind the identity, as a slow net sees it.
fn delta(name: &str, heads: usize, key: usize, value: usize) -> SlotInterface {
    let input = |name: &str, role, shape: &[usize]| RuleInput {
        name: name.into(),
        role,
        raw: false,
        count: None,
        heads: None,
        shape: shape.into(),
    };
    SlotInterface {
        name: name.into(),
        rule: "delta".into(),
        heads,
        key_raw: key,
        key,
        value,
        inputs: vec![
            input("q", Role::Query, &[key]),
            input("k", Role::Key, &[key]),
            input("v", Role::Value, &[value]),
            input("beta", Role::Gate, &[]),
        ],
        output: vec![value],
        extras: vec![],
    }
}

/// The table with these keys beside its own.
fn with(table: &Value, more: Value) -> Value {
    let mut all = config(table.clone());
    all.extend(config(more));
    Value::Object(all)
}

fn cases() -> Vec<Case> {
    let stack = json!({ "width": 8, "layers": 2, "heads": 2, "mlp": 5 });
    let fast = with(&stack, json!({ "key_dim": 4, "value_dim": 3 }));
    let one = with(&fast, json!({ "layers": 1 }));
    let of_2021 = json!({
        "norm_place": "after", "norm": "layer", "bias": "all", "mlp_form": "relu", "positions": "sinusoidal", "scale_embeddings": true,
        "conv": 0, "conv_activation": "none", "output_norm": "none", "query_scale": "output", "tie_embeddings": true,
    });
    let extras = json!({
        "kv_heads": 1, "rotary": "pairs", "token_shift": true, "low_rank": { "beta": 2 }, "low_rank_tanh": true, "value_residual": 2,
        "output_norm": "group", "output_gate": "silu", "output_gate_rank": 2, "mlp_form": "relu2", "positions": "learned", "dropout": 0.1,
    });
    let softmax_layers = json!({
        "attention_layers": [1], "attention_window": 3, "attention_kv_heads": 1, "attention_rotary": "halves", "mlp_form": "gelu",
        "rotary": "xpos", "output_norm": "layer", "output_gate": "sigmoid", "qk_heads": 1, "query_scale": "query",
    });
    let small = json!({ "hidden": 6, "embedding": 4 });
    let ends = json!({ "readout": 3, "dropout": 0.1, "embedding_std": 1.0 });
    let symbols =
        |name: &str, axis: &str| Port { name: name.into(), axis: Some(axis.into()), kind: PortKind::Symbol { vocab: VOCAB } };
    let pairs = TaskIo {
        inputs: vec![symbols("keys", "pairs"), symbols("values", "pairs"), symbols("query", "query")],
        outputs: vec![Port { name: "value".into(), axis: Some("query".into()), kind: PortKind::Vector { dim: VOCAB } }],
        max_len: 14,
    };
    let sizes = json!({ "key_dim": 3, "embedding": 4 });
    let main: &[&str] = &["main"];
    vec![
        Case {
            task: pairs,
            ..Case::of(Part::slow_net::<Retrieval>(), main, vec![sizes.clone(), with(&sizes, json!({ "softmax": true }))])
        },
        Case::of(
            Part::slow_net::<Transformer>(),
            main,
            vec![fast.clone(), with(&fast, of_2021), with(&fast, extras), with(&fast, softmax_layers)],
        ),
        Case::of(
            Part::slow_net::<Hybrid>(),
            main,
            vec![
                with(&one, json!({ "window": 3 })),
                with(&one, json!({ "window": 3, "division": "delayed-stream", "mixture": "scalars", "window_rotary": "none" })),
                with(&one, json!({ "window": 3, "division": "delayed-chunk", "mixture": "sum", "query_scale": "query" })),
            ],
        ),
        Case::of(Part::slow_net::<RecurrentDelta>(), main, vec![one.clone()]),
        Case::of(Part::slow_net::<DeltaDelta>(), &["first", "second"], vec![one]),
        Case::of(
            Part::slow_net::<FastWeightsRnn>(),
            main,
            vec![
                small.clone(),
                with(&small, json!({ "inner_steps": 2, "norm_start": true, "sustain": "identity", "lag": true })),
                with(&small, json!({ "layer_norm": false })),
            ],
        ),
        Case::of(
            Part::slow_net::<SoftmaxTransformer>(),
            &[],
            vec![stack.clone(), with(&stack, json!({ "kv_heads": 1, "window": 3, "rotary": "retnet" }))],
        ),
        Case::of(Part::slow_net::<Lstm>(), &[], vec![small.clone(), with(&with(&small, ends), json!({ "layers": 2 }))]),
        Case::of(Part::slow_net::<Irnn>(), &[], vec![small.clone(), with(&small, json!({ "layer_norm": true }))]),
        Case::of(Part::slow_net::<AssociativeLstm>(), &[], vec![with(&small, json!({ "copies": 3 }))]),
    ]
}

/// Numbers that follow from a name, so that a parameter more changes no other.
fn numbers(name: &str) -> support::Numbers {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    support::Numbers::new(hash >> 8)
}

/// The net's outputs for seeded parameters and symbols.
fn run(net: &Program, ask: &Ask) -> Numbers {
    let Ask::Net { task, slots, layers } = ask else { panic!("a question for another kind of part") };
    let slot = |s: &SlotInterface| {
        let dims = Dims { heads: s.heads, key_raw: s.key_raw, key: s.key, value: s.value, ..Dims::ONE };
        SlotPrograms {
            name: s.name.clone(),
            layers: layers.iter().find(|(name, _)| *name == s.name).and_then(|(_, layers)| layers.clone()),
            map: testing::map::<Identity>(json!({}), s.key_raw).unwrap(),
            rule: testing::rule::<Delta>(json!({}), dims).unwrap(),
        }
    };
    let programs = ModelPrograms { net: net.clone(), slots: slots.iter().map(slot).collect() };
    programs.check().unwrap_or_else(|e| panic!("{e}"));
    let m = model(&programs, 1);
    for p in m.parameters() {
        set(&m, &p.name, &(numbers(&p.name).tensor(&p.tensor.size()) * 0.7));
    }
    let symbols = |port: &Port| {
        let mut numbers = numbers(&port.name);
        let list: Vec<i64> = (0..2 * LENGTH).map(|_| ((numbers.next() + 1.0) / 2.0 * VOCAB as f64) as i64).collect();
        (port.name.clone(), Tensor::from_slice(&list).reshape([2, LENGTH]))
    };
    let inputs: BTreeMap<String, Tensor> = task.inputs.iter().map(symbols).collect();
    let outputs = m.forward(&inputs, &EVAL, None).unwrap_or_else(|e| panic!("{e:#}")).values;
    outputs.iter().map(|(name, t)| (name.clone(), digest(&values(t)))).collect()
}

#[test]
fn slow_nets_of_the_past_give_the_same_numbers() {
    for case in cases() {
        let name = case.part.info().name;
        let mut known = golden::read(FOLDER, &name);
        for config in &case.variants {
            let ask = serde_json::to_value(case.question(config)).unwrap();
            if known.iter().all(|g| g.config != *config || g.ask != ask) {
                assert!(golden::writing(), "`{name}` with {config} has no golden program: FWP_WRITE_GOLDEN=1 adds it");
                known.push(Golden { config: config.clone(), ask, program: vec![], numbers: Numbers::new() });
            }
        }
        for golden in &known {
            // The question of the past, to the part of today.
            let ask: Ask = serde_json::from_value(golden.ask.clone()).unwrap();
            let today = Program::from_bytes(&case.answer(&golden.config, ask.clone())).unwrap();
            if golden::writing() && known.iter().all(|g| g.program != today.essence()) {
                let new = Golden { program: today.essence(), numbers: run(&today, &ask), ..golden.clone() };
                golden::add(FOLDER, &name, &new);
            }
        }
    }
    for name in golden::names(FOLDER) {
        for (i, golden) in golden::read(FOLDER, &name).iter().enumerate() {
            let what = format!("line {} of {FOLDER}/{name}.jsonl", i + 1);
            let program = Program::from_bytes(&golden.program).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(program.essence() == golden.program, "{what}: it is written in other bytes");
            check(&program).unwrap_or_else(|e| panic!("{what}: {e}"));
            let ask = serde_json::from_value(golden.ask.clone()).unwrap();
            assert_same(&run(&program, &ask), &golden.numbers, &what);
        }
    }
}

/// With the first write of a sequence known and one query asked, these need no memory; all others say why not.
#[test]
fn the_rules_that_answer_one_query_without_their_memory() {
    let mut served = Vec::new();
    for name in golden::names("update-rules") {
        for golden in golden::read("update-rules", &name) {
            let program = expand_gradients(&Program::from_bytes(&golden.program).unwrap()).unwrap();
            let found = separate(&program).map_err(|e| e.to_string()).and_then(|apart| walked_back(&program, &apart));
            match found {
                Ok(_) => served.push(name.clone()),
                Err(why) => assert!(why.contains(' '), "{name}: {why}"),
            }
        }
    }
    served.dedup();
    let gated = ["gated-delta", "gated-sum", "gdn2", "gla", "hebbian-decay", "hgrn2", "kda", "longhorn", "retnet"];
    assert_eq!(served, [&["additive", "delta", "deltaproduct"], &gated[..]].concat());
}
