//! What the nets describe.

use fwp_sdk::build::{Port, PortKind};
use fwp_sdk::prelude::*;
use fwp_sdk::program::{Function, Op, Program, Role, RuleInput, SlotInterface, Training};
use fwp_sdk::serde_json::{Value, json};
use fwp_sdk::testing;

use crate::{DeltaDelta, Hybrid, RecurrentDelta, SoftmaxTransformer, Transformer};

fn task() -> TaskIo {
    let port = |name: &str, kind| Port { name: name.into(), axis: Some("time".into()), kind };
    TaskIo {
        inputs: vec![port("tokens", PortKind::Symbol { vocab: 65 })],
        outputs: vec![port("logits", PortKind::Vector { dim: 65 })],
        max_len: 64,
    }
}

fn input(name: &str, role: Role, count: Option<usize>, shape: &[usize]) -> RuleInput {
    RuleInput { name: name.into(), role, raw: false, count, heads: None, shape: shape.into() }
}

/// The delta rule for the default sizes, with an identity map.
fn delta(name: &str) -> SlotInterface {
    SlotInterface {
        name: name.into(),
        rule: "delta".into(),
        heads: 4,
        key_raw: 32,
        key: 32,
        value: 32,
        inputs: vec![
            input("q", Role::Query, None, &[32]),
            input("k", Role::Key, None, &[32]),
            input("v", Role::Value, None, &[32]),
            input("beta", Role::Gate, None, &[]),
        ],
        output: vec![32],
        extras: vec![],
    }
}

fn describe(config: Value) -> Result<Program, String> {
    testing::net::<Transformer>(config, &task(), &[(delta("main"), None)])
}

fn shapes(function: &Function) -> Vec<(&str, &[usize])> {
    function.parameters.iter().map(|p| (p.name.as_str(), &p.shape[..])).collect()
}

/// Every repetition of blocks: name, first layer, count, and the function that is repeated.
fn blocks(program: &Program) -> Vec<(&str, usize, usize, &Function)> {
    let nodes = &program.entry("forward").unwrap().nodes;
    nodes
        .iter()
        .filter_map(|node| match &node.op {
            Op::Blocks { function, name, count, first, .. } => {
                Some((name.as_str(), *first, *count, &program.functions[*function as usize]))
            }
            _ => None,
        })
        .collect()
}

/// Number of trained elements of the whole model.
fn size(program: &Program) -> usize {
    let elements = |f: &Function| f.parameters.iter().map(|p| p.shape.iter().product::<usize>()).sum::<usize>();
    let repeated: usize = blocks(program).iter().map(|(_, _, count, f)| count * elements(f)).sum();
    elements(program.entry("forward").unwrap()) + repeated
}

#[test]
fn names_and_shapes_are_those_of_the_published_checkpoints() {
    let program = describe(json!({})).unwrap();
    let forward = program.entry("forward").unwrap();
    assert_eq!(shapes(forward), [("embeddings.weight", &[65, 128][..]), ("norm.weight", &[128]), ("lm_head.weight", &[65, 128])]);
    let blocks = blocks(&program);
    let [("layers", 0, 4, block)] = blocks[..] else { panic!("one repetition of four layers") };
    assert_eq!(
        shapes(block),
        [
            ("attn_norm.weight", &[128][..]),
            ("attn.q_proj.weight", &[128, 128]),
            ("attn.q_conv1d.weight", &[128, 4]),
            ("attn.k_proj.weight", &[128, 128]),
            ("attn.k_conv1d.weight", &[128, 4]),
            ("attn.v_proj.weight", &[128, 128]),
            ("attn.v_conv1d.weight", &[128, 4]),
            ("attn.beta_proj.weight", &[4, 128]),
            ("attn.o_norm.weight", &[32]),
            ("attn.o_proj.weight", &[128, 128]),
            ("mlp_norm.weight", &[128]),
            ("mlp.gate_proj.weight", &[256, 128]),
            ("mlp.up_proj.weight", &[256, 128]),
            ("mlp.down_proj.weight", &[128, 256]),
        ]
    );
    // What the same model in PyTorch counts.
    assert_eq!(size(&program), 681_472);
    for parameter in forward.parameters.iter().chain(&block.parameters) {
        assert_eq!(parameter.training, Training::Trained { decay: parameter.shape.len() > 1 }, "{}", parameter.name);
    }
}

#[test]
fn what_is_switched_off_leaves_no_parameters() {
    let off = json!({ "conv": 0, "mlp": 0, "output_norm": "none", "tie_embeddings": true });
    let program = describe(off).unwrap();
    assert_eq!(shapes(program.entry("forward").unwrap()), [("embeddings.weight", &[65, 128][..]), ("norm.weight", &[128])]);
    let names: Vec<&str> = blocks(&program)[0].3.parameters.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "attn_norm.weight",
            "attn.q_proj.weight",
            "attn.k_proj.weight",
            "attn.v_proj.weight",
            "attn.beta_proj.weight",
            "attn.o_proj.weight"
        ]
    );
}

#[test]
fn dropout_and_scale_reach_the_program() {
    let program = describe(json!({ "dropout": 0.1, "query_scale": "output", "output_gate": "silu" })).unwrap();
    let dropped = |f: &Function| f.nodes.iter().filter(|n| n.op == Op::Dropout { p: 0.1 }).count();
    let block = blocks(&program)[0].3;
    assert_eq!((dropped(program.entry("forward").unwrap()), dropped(block)), (1, 2));
    assert!(block.nodes.iter().any(|n| matches!(&n.op, Op::FastWeights { scale, .. } if *scale == QueryScale::Output)));
    assert!(shapes(block).contains(&("attn.g_proj.weight", &[128, 128])));
}

#[test]
fn layers_are_grouped_by_their_rule() {
    let slots = [(delta("main"), None), (delta("other"), Some(vec![1, 2, 4]))];
    let program = testing::net::<Transformer>(json!({ "layers": 6 }), &task(), &slots).unwrap();
    let found: Vec<(usize, usize)> = blocks(&program).iter().map(|(_, first, count, _)| (*first, *count)).collect();
    assert_eq!(found, [(0, 1), (1, 2), (3, 1), (4, 1), (5, 1)]);
}

#[test]
fn counts_groups_of_heads_and_any_number_of_inputs_are_served() {
    let mut slot = delta("main");
    slot.inputs[1] = input("k", Role::Key, Some(3), &[32]);
    slot.inputs[2].heads = Some(2);
    slot.inputs[3] = input("decay", Role::Gate, None, &[32]);
    slot.output = vec![5];
    let program = testing::net::<Transformer>(json!({}), &task(), &[(slot, None)]).unwrap();
    let shapes = shapes(blocks(&program)[0].3);
    for wanted in [
        ("attn.k_proj.weight", &[4 * 3 * 32, 128]),
        ("attn.k_conv1d.weight", &[4 * 3 * 32, 4]),
        ("attn.v_proj.weight", &[2 * 32, 128]),
        ("attn.decay_proj.weight", &[4 * 32, 128]),
        ("attn.o_proj.weight", &[128, 4 * 5]),
    ] {
        assert!(shapes.contains(&(wanted.0, &wanted.1[..])), "{} in {shapes:?}", wanted.0);
    }
}

#[test]
fn the_memory_follows_the_heads_and_the_dims_given() {
    let memory = |config| testing::memory::<Transformer>(config, &task());
    assert_eq!(memory(json!({})), Ok(Memory { heads: 4, key: 32, value: 32 }));
    assert_eq!(memory(json!({ "heads": 3, "key_dim": 5, "value_dim": 7 })), Ok(Memory { heads: 3, key: 5, value: 7 }));
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    assert_eq!(describe(json!({})).unwrap().to_bytes(), describe(json!({})).unwrap().to_bytes());
}

#[test]
fn what_cannot_work_is_refused() {
    for (config, wanted) in [
        (json!({ "heads": 3 }), "does not divide the width 128"),
        (json!({ "layers": 0 }), "`layers`"),
        (json!({ "dropout": 1.0 }), "`dropout`"),
        (json!({ "query_scale": "key" }), "\"none\" or \"query\" or \"output\""),
        (json!({ "widht": 64 }), "did you mean `width`?"),
    ] {
        let message = describe(config).unwrap_err();
        assert!(message.contains(wanted), "{message}");
    }
    let mut gated = delta("main");
    gated.inputs[3].name = "g".into();
    let message = testing::net::<Transformer>(json!({ "output_gate": "silu" }), &task(), &[(gated, None)]).unwrap_err();
    assert!(message.contains("`g_proj`"), "{message}");
}

fn names(function: &Function) -> Vec<&str> {
    function.parameters.iter().map(|p| p.name.as_str()).collect()
}

fn has(program: &Program, name: &str, shape: &[usize]) {
    let shapes = shapes(blocks(program)[0].3);
    assert!(shapes.contains(&(name, shape)), "{name} {shape:?} in {shapes:?}");
}

#[test]
fn the_form_of_2021_has_norms_after_its_residuals_and_biases() {
    let program = describe(json!({
        "norm_place": "after", "norm": "layer", "bias": "mlp", "mlp_form": "relu", "positions": "sinusoidal",
        "scale_embeddings": true, "conv": 0, "conv_activation": "none", "output_norm": "none", "query_scale": "output", "dropout": 0.1,
    }))
    .unwrap();
    assert_eq!(names(program.entry("forward").unwrap()), ["embeddings.weight", "lm_head.weight", "lm_head.bias"]);
    assert_eq!(
        names(blocks(&program)[0].3),
        [
            "attn.q_proj.weight",
            "attn.k_proj.weight",
            "attn.v_proj.weight",
            "attn.beta_proj.weight",
            "attn.o_proj.weight",
            "attn_norm.weight",
            "attn_norm.bias",
            "mlp.up_proj.weight",
            "mlp.up_proj.bias",
            "mlp.down_proj.weight",
            "mlp.down_proj.bias",
            "mlp_norm.weight",
            "mlp_norm.bias",
        ]
    );
    // After mixing, in the MLP and after it.
    let dropped = blocks(&program)[0].3.nodes.iter().filter(|n| n.op == Op::Dropout { p: 0.1 }).count();
    assert_eq!(dropped, 3);
    let learned = describe(json!({ "positions": "learned", "bias": "all" })).unwrap();
    assert!(shapes(learned.entry("forward").unwrap()).contains(&("positions.weight", &[64, 128])));
    has(&learned, "attn.q_proj.bias", &[128]);
}

#[test]
fn extras_of_the_recipes_have_parameters_of_their_own() {
    let mut slot = delta("main");
    slot.inputs.push(input("a", Role::Gate, None, &[32]));
    slot.extras = vec![("bonus".into(), vec![32])];
    let describe = |config| testing::net::<Transformer>(config, &task(), &[(slot.clone(), None)]);
    let program = describe(json!({
        "low_rank": { "a": 16 }, "output_gate": "sigmoid", "output_gate_rank": 8, "output_norm": "group", "token_shift": true,
        "value_residual": 5, "conv_inputs": ["q", "k"], "qk_heads": 2, "rotary": "xpos",
    }))
    .unwrap();
    has(&program, "attn.a_proj.0.weight", &[16, 128]);
    has(&program, "attn.a_proj.1.weight", &[128, 16]);
    has(&program, "attn.a_proj.1.bias", &[128]);
    has(&program, "attn.g_proj.0.weight", &[8, 128]);
    has(&program, "attn.o_norm.bias", &[128]);
    has(&program, "attn.beta_mix", &[128]);
    has(&program, "attn.g_mix", &[128]);
    has(&program, "attn.q_proj.weight", &[64, 128]);
    has(&program, "attn.k_conv1d.weight", &[64, 4]);
    has(&program, "attn.v_proj.weight", &[128, 128]);
    let first = blocks(&program)[0].3;
    assert!(!names(first).contains(&"attn.v_conv1d.weight"));
    // The first layer hands its values on, the others are drawn to them.
    assert!(!names(first).iter().any(|n| n.contains("residual")));
    let found: Vec<(usize, usize)> = blocks(&program).iter().map(|(_, first, count, _)| (*first, *count)).collect();
    assert_eq!(found, [(0, 1), (1, 3)]);
    assert!(shapes(blocks(&program)[1].3).contains(&("attn.v_residual_proj.0.weight", &[5, 128])));

    let grouped = describe(json!({ "kv_heads": 1 })).unwrap();
    has(&grouped, "attn.q_proj.weight", &[128, 128]);
    has(&grouped, "attn.v_proj.weight", &[32, 128]);
    has(&grouped, "attn.beta_proj.weight", &[1, 128]);

    slot.extras = vec![("more".into(), vec![3])];
    let message = testing::net::<Transformer>(json!({}), &task(), &[(slot, None)]).unwrap_err();
    assert!(message.contains("`more`"), "{message}");
}

#[test]
fn layers_of_softmax_attention_stand_among_the_others() {
    let program = describe(json!({ "layers": 8, "attention_layers": [3, 7], "attention_kv_heads": 2 })).unwrap();
    let found: Vec<(usize, usize)> = blocks(&program).iter().map(|(_, first, count, _)| (*first, *count)).collect();
    assert_eq!(found, [(0, 3), (3, 1), (4, 3), (7, 1)]);
    let attention = blocks(&program)[1].3;
    assert!(attention.nodes.iter().any(|n| matches!(n.op, Op::Attention { causal: true, window: 0, .. })));
    assert!(shapes(attention).contains(&("attn.k_proj.weight", &[64, 128])));
    // Where all layers have attention there is nothing for a rule to do.
    assert!(testing::net::<Transformer>(json!({ "attention_layers": [0, 1, 2, 3] }), &task(), &[]).is_ok());
}

#[test]
fn the_softmax_transformer_has_no_fast_weights() {
    let program =
        testing::net::<SoftmaxTransformer>(json!({ "kv_heads": 2, "window": 7, "rotary": "halves" }), &task(), &[]).unwrap();
    has(&program, "attn.v_proj.weight", &[64, 128]);
    assert!(blocks(&program)[0].3.nodes.iter().any(|n| matches!(n.op, Op::Attention { window: 7, .. })));
    let message = testing::memory::<SoftmaxTransformer>(json!({}), &task()).unwrap_err();
    assert!(message.ends_with(fwp_sdk::NO_FAST_WEIGHTS), "{message}");
    let message = testing::net::<Transformer>(json!({}), &task(), &[]).unwrap_err();
    assert!(message.ends_with(fwp_sdk::NEEDS_FAST_WEIGHTS), "{message}");
}

#[test]
fn hybrids_share_their_inputs_with_a_window() {
    let describe = |config: Value, slot: SlotInterface| testing::net::<Hybrid>(config, &task(), &[(slot, None)]);
    for (mixture, out) in [("sum", None), ("scalars", Some(8)), ("vector", Some(128))] {
        for division in ["synchronous", "delayed-stream", "delayed-chunk"] {
            let program = describe(json!({ "mixture": mixture, "division": division }), delta("main")).unwrap();
            match out {
                Some(out) => has(&program, "attn.m_proj.weight", &[out, 128]),
                None => assert!(!names(blocks(&program)[0].3).contains(&"attn.m_proj.weight")),
            }
        }
    }
    let mut two = delta("main");
    two.inputs.push(input("k2", Role::Key, None, &[32]));
    let message = describe(json!({}), two).unwrap_err();
    assert!(message.contains("one query, one key and one value"), "{message}");
}

#[test]
fn recurrent_and_nested_nets_serve_any_rule() {
    let mut slot = delta("main");
    slot.inputs[1].heads = Some(2);
    slot.inputs.push(input("a", Role::Gate, None, &[5]));
    let program = testing::net::<RecurrentDelta>(json!({}), &task(), &[(slot, None)]).unwrap();
    let cell = program.functions.iter().find(|f| f.parameters.iter().any(|p| p.name == "r_q")).unwrap();
    assert_eq!(
        shapes(cell),
        [("r_q", &[4, 32, 32][..]), ("r_k", &[2, 32, 64]), ("r_v", &[4, 32, 32]), ("r_beta", &[4, 1, 32]), ("r_a", &[4, 5, 32])]
    );

    let (mut first, second) = (delta("first"), delta("second"));
    first.value = 97;
    first.inputs[2].shape = vec![97];
    first.output = vec![97];
    let describe = |slots: [&SlotInterface; 2]| testing::net::<DeltaDelta>(json!({}), &task(), &slots.map(|s| (s.clone(), None)));
    assert!(describe([&first, &second]).is_ok());
    let mut wide = second.clone();
    wide.inputs.push(input("a", Role::Gate, None, &[32]));
    let message = describe([&first, &wide]).unwrap_err();
    assert!(message.contains("`program_dim`: a head of rule `delta` takes 129 numbers, not 97"), "{message}");
    let sizes = |slot| testing::memory_of::<DeltaDelta>(json!({}), &task(), slot);
    assert_eq!(sizes("first"), Ok(Memory { heads: 4, key: 32, value: 97 }));
    assert_eq!(sizes("second"), Ok(Memory { heads: 4, key: 32, value: 32 }));
}

#[test]
fn more_that_cannot_work_is_refused() {
    for (config, wanted) in [
        (json!({ "kv_heads": 2, "qk_heads": 2 }), "`kv_heads`"),
        (json!({ "kv_heads": 3 }), "`kv_heads`: 3 does not divide the number of heads 4"),
        (json!({ "low_rank": { "alpha": 3 } }), "`low_rank`: rule `delta` has no input `alpha`; it has q, k, v, beta"),
        (json!({ "low_rank": { "beta": 0 } }), "`low_rank`: the rank of `beta`"),
        (json!({ "low_rank": { "beta": 1.5 } }), "`low_rank`: beta: expected a whole number"),
        (json!({ "low_rank": 3 }), "`low_rank`: expected a table"),
        (json!({ "conv_inputs": ["z"] }), "`conv_inputs`: rule `delta` has no input `z`"),
        (json!({ "attention_layers": [4] }), "`attention_layers`: there is no layer 4"),
        (json!({ "width": 129, "heads": 3, "positions": "sinusoidal" }), "`positions`"),
        (json!({ "rotary_base": 0 }), "`rotary_base`"),
        (json!({ "rotery": "pairs" }), "did you mean `rotary`?"),
    ] {
        let message = describe(config).unwrap_err();
        assert!(message.contains(wanted), "{message}");
    }
}
