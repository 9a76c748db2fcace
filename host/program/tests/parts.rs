//! Analyses on rules, maps and nets that were written as a plugin writes them.

mod support;

use std::collections::BTreeMap;

use fwp_program::equivalent::random_inputs;
use fwp_program::interpret::{Array, Inputs, Random, Value, evaluate};
use fwp_program::{
    CheckError, ModelPrograms, Problem, SlotPrograms, Source, When, check, effective_signals, equivalent, estimate,
    expand_gradients, print, restated_agrees, schedule, separate, state_size, sunk, with_effective, with_feature_map,
};
use fwp_sdk::build::Memory;
use fwp_sdk::prelude::*;
use fwp_sdk::program::{Kind, Node, NodeId, Op, Program, Scope as S, Span, shape};
use support::{Blocks, DIMS, Delta, Identity, Learned, interface, map, model, net, rule as describe};

rule!(
    Normalised,
    |dims| Signature::new(dims)
        .state("w", [dims.value, dims.key], StateStart::Zeros)
        .state("z", [dims.key], StateStart::Constant(0.5))
        .parameter("gain", [], Init::ones()),
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") + outer(&v, &k);
        let z = s.state("z") + &k;
        let o = w.matvec(&q).div_or(z.dot(&q), 0.0);
        s.output((o * s.parameter("gain")).rms_norm(1e-6));
        s.set_state("w", w);
        s.set_state("z", z);
    }
);

rule!(ReadsBefore, |dims| Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w");
    s.output(w.matvec(&q));
    s.set_state("w", &w + outer(v, k));
});

rule!(Residual, |dims| Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(&v, k);
    s.output(w.matvec(&q) + v);
    s.set_state("w", w);
});

rule!(
    Gated,
    |dims| Signature::new(dims)
        .signal("twice", [])
        .signal("a", [dims.key])
        .signal("decay", [dims.key])
        .signal("plain", [])
        .signal("forked", [])
        .state("w", [dims.value, dims.key], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let twice = 2.0 * s.signal("twice").sigmoid();
        // Written twice, used as it is and less one.
        let (a, also_a) = (s.signal("a").sigmoid(), s.signal("a").sigmoid());
        let decay = (s.signal("decay").log_sigmoid() / 16.0).exp();
        let forked = s.signal("forked");
        let w = s.state("w").scale_columns(&decay);
        let k = k * a + (also_a - 1.0) * forked.exp();
        let w = w + twice * s.signal("plain") * outer(v * forked.sigmoid(), k);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
);

fn step_types(p: &Program) -> Vec<fwp_sdk::program::Type> {
    let index = p.entries.iter().find(|(n, _)| n == "step").unwrap().1 as usize;
    shape::types(p).unwrap().nodes[index].clone()
}

fn floats(v: &Value) -> Vec<f64> {
    v.tensor().unwrap().floats().unwrap().to_vec()
}

#[test]
fn the_objective_expands_to_the_equation() {
    for dims in [DIMS, Dims { heads: 4, key_raw: 4, key: 4, value: 4, ..Dims::ONE }] {
        let p = describe::<Delta>(dims);
        assert!(check(&p).unwrap().is_empty());
        let expanded = expand_gradients(&p).unwrap();
        shape::types(&expanded).unwrap();
        assert!(expanded.functions.iter().flat_map(|f| &f.nodes).all(|n| n.op != Op::Gradient));
        let worst = restated_agrees(&expanded, 1).unwrap().unwrap();
        assert!(worst < 1e-13, "{worst}");
        // Against the equation in plain loops.
        let f = expanded.entry("restated").unwrap();
        let mut random = Random::new(5);
        let mut inputs = random_inputs(&p, &[f], 0, &mut random).unwrap();
        let (d, e) = (dims.key, dims.value);
        let take: Vec<Vec<f64>> = inputs.arguments.iter().map(floats).collect();
        let (q, k, v, beta) = (&take[0], &take[1], &take[2], 1.0 / (1.0 + (-take[3][0]).exp()));
        let w = inputs.states[0].floats().unwrap().to_vec();
        let mut next = w.clone();
        for i in 0..e {
            let read: f64 = (0..d).map(|j| w[i * d + j] * k[j]).sum();
            for j in 0..d {
                next[i * d + j] += beta * (v[i] - read) * k[j];
            }
        }
        let results = evaluate(&expanded, f, &mut inputs).unwrap();
        let got = floats(&results[f.outputs.iter().position(|o| o.name == "state.w").unwrap()]);
        let output = floats(&results[0]);
        for (a, b) in got.iter().zip(&next) {
            assert!((a - b).abs() < 1e-12);
        }
        for i in 0..e {
            let read: f64 = (0..d).map(|j| next[i * d + j] * q[j]).sum();
            assert!((output[i] - read).abs() < 1e-12);
        }
    }
}

#[test]
fn a_restatement_that_differs_is_told_with_numbers() {
    let mut p = describe::<Delta>(DIMS);
    let index = p.entries.iter().find(|(n, _)| n == "restated").unwrap().1 as usize;
    for node in &mut p.functions[index].nodes {
        if let Op::Constant { value } = &mut node.op {
            *value = 0.25;
        }
    }
    let e = restated_agrees(&p, 1).unwrap_err().to_string();
    assert!(e.contains("differs") && e.contains("seed 1"), "{e}");
    let step = p.entry("step").unwrap();
    assert!(equivalent(step, step, &p, 1).unwrap() == 0.0);
}

#[test]
fn gradients_carry_their_place_and_keep_types() {
    let p = describe::<Delta>(DIMS);
    let index = p.entries.iter().find(|(n, _)| n == "restated").unwrap().1 as usize;
    let place = p.functions[index].nodes.iter().find(|n| n.op == Op::Gradient).unwrap().span;
    let expanded = expand_gradients(&p).unwrap();
    let outer = expanded.functions[index].nodes.iter().find(|n| n.op == Op::Outer).unwrap();
    assert_eq!(outer.span, place);
    assert!(p.place(place).contains("tests/support/mod.rs:"));
}

#[test]
fn the_delta_rule_prints_as_its_equation() {
    let dims = Dims { heads: 1, key_raw: 64, key: 64, value: 64, ..Dims::ONE };
    let text = print(&describe::<Delta>(dims));
    let step = text.split("\nstep\n").nth(1).unwrap().split("\nrestated\n").next().unwrap();
    let lines: Vec<String> =
        step.lines().filter(|l| !l.is_empty()).map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["e = v - w k [64]", "w' = w + sigmoid(beta) * e ⊗ k [64, 64]", "output = w' q [64]",]);
    assert!(text.contains("gradient(loss, w)"), "{text}");
    assert!(text.contains("0.5 * |e|²"), "{text}");
}

#[test]
fn nets_print_with_their_blocks() {
    let m = model::<Blocks, Identity, Delta>(DIMS);
    let text = print(&m.net);
    assert!(text.contains("blocks layers.0 to layers.1 (x0 = embedding.weight[tokens])"), "{text}");
    assert!(text.contains("    "), "{text}");
    assert!(text.contains("fast weights `main` as memory (q, k, v, beta)"), "{text}");
    assert!(text.contains("k    = reshape(k_proj.weight t1, [2, 5])"), "{text}");
    assert!(text.contains("rms_norm(x0, eps 1e-6)"), "{text}");
    assert!(text.contains("logits = head.weight"), "{text}");
}

#[test]
fn parameters_have_the_promised_names() {
    let m = model::<Blocks, Learned, Normalised>(DIMS);
    m.check().unwrap();
    let all = m.parameters().unwrap();
    let names: Vec<&str> = all.iter().map(|p| p.path.as_str()).collect();
    for wanted in [
        "embedding.weight",
        "layers.0.norm.weight",
        "layers.0.q_proj.weight",
        "layers.0.memory.gain",
        "layers.0.memory.feature_map.a",
        "layers.1.memory.feature_map.a",
        "layers.1.o_proj.weight",
        "head.weight",
    ] {
        assert_eq!(names.iter().filter(|n| **n == wanted).count(), 1, "{wanted} in {names:?}");
    }
    let a = all.iter().find(|p| p.path == "layers.1.memory.feature_map.a").unwrap();
    assert_eq!((a.shape.as_slice(), a.scope, a.source, a.layer, a.heads), (&[2, 5, 5][..], S::Head, Source::Map(0), 1, 2));
    let gain = all.iter().find(|p| p.path == "layers.0.memory.gain").unwrap();
    assert_eq!((gain.shape.as_slice(), gain.source), (&[2][..], Source::Rule(0)));
    assert_eq!(all, m.parameters().unwrap());
}

#[test]
fn one_path_for_two_declarations_is_refused() {
    let mut m = model::<Blocks, Identity, Normalised>(DIMS);
    let block = m.net.functions.iter_mut().find(|f| f.parameters.iter().any(|p| p.name == "norm.weight")).unwrap();
    block.parameters.iter_mut().find(|p| p.name == "norm.weight").unwrap().name = "memory.gain".into();
    let e = m.parameters().unwrap_err();
    assert!(matches!(&*e.problem, Problem::ParameterTwice { path, .. } if path == "layers.0.memory.gain"), "{e}");
    let text = e.to_string();
    assert!(text.contains("slow-net `blocks`") && text.contains("update-rule `Normalised`"), "{text}");
}

fn broken(p: &Program, change: impl FnOnce(&mut Program)) -> CheckError {
    let mut p = p.clone();
    change(&mut p);
    check(&p).unwrap_err()
}

#[test]
fn mistakes_are_refused_by_name_and_place() {
    let p = describe::<Delta>(DIMS);
    let step = p.entries[0].1 as usize;
    let e = broken(&p, |p| {
        p.inputs.push(fwp_sdk::program::RuleInput { name: "extra".into(), ..p.inputs[3].clone() });
        for f in &mut p.functions {
            if !f.arguments.is_empty() {
                let argument = fwp_sdk::program::Argument { name: "extra".into(), ..f.arguments[3].clone() };
                f.arguments.push(argument);
            }
        }
    });
    assert_eq!(*e.problem, Problem::UnusedInput("extra".into()));

    // The state is replaced by zeros wherever it is read.
    let e = broken(&p, |p| {
        for f in &mut p.functions {
            for n in &mut f.nodes {
                if matches!(n.op, Op::State { .. }) {
                    n.op = Op::Full { shape: vec![3, 5], value: 0.0 };
                }
            }
        }
    });
    assert_eq!(*e.problem, Problem::UnusedState("w".into()));
    assert!(e.to_string().contains("support/mod.rs:"), "{e}");

    let e = broken(&p, |p| p.functions[step].outputs.retain(|o| o.name != "output"));
    assert!(matches!(*e.problem, Problem::MissingOutput { .. }), "{e}");
    let e = broken(&p, |p| p.functions[step].outputs[0].name = "outputs".into());
    assert!(matches!(*e.problem, Problem::MissingOutput { .. }), "{e}");
    let e = broken(&p, |p| p.entries.clear());
    assert_eq!(*e.problem, Problem::MissingEntry("step"));
    let e = broken(&p, |p| p.entries.push(("forward".into(), 0)));
    assert_eq!(*e.problem, Problem::UnexpectedEntry("forward".into()));
    let e = broken(&p, |p| p.inputs[0].name = "query".into());
    assert!(matches!(*e.problem, Problem::Arguments { .. }), "{e}");
    let e = broken(&p, |p| p.states[0].shape = vec![5, 3]);
    assert!(matches!(*e.problem, Problem::Shape(_)), "{e}");
    let e = broken(&p, |p| {
        let f = &mut p.functions[step];
        let place = f.nodes.len() as NodeId;
        f.nodes.push(Node {
            op: Op::RandomNormal { shape: vec![3] },
            operands: vec![],
            span: Span { file: 0, line: 9, column: 1 },
        });
        f.outputs[0].node = place;
    });
    assert!(matches!(&*e.problem, Problem::NotAllowed { operator, .. } if operator == "random_normal"), "{e}");
    assert!(e.to_string().contains(":9:1"), "{e}");
}

#[test]
fn a_state_that_reaches_no_output_is_noticed() {
    let mut p = describe::<Normalised>(DIMS);
    assert!(check(&p).unwrap().is_empty());
    let index = p.entries[0].1 as usize;
    let f = &mut p.functions[index];
    // The output no longer divides by z q.
    let w_q = f.nodes.iter().position(|n| n.op == Op::MatVec).unwrap() as NodeId;
    f.outputs[0].node = w_q;
    let notices: Vec<String> = check(&p).unwrap().iter().map(|n| n.to_string()).collect();
    assert!(notices.iter().any(|n| n.contains("state `z` never reaches an output")), "{notices:?}");
    assert!(notices.iter().any(|n| n.contains("parameter `gain` is never used")), "{notices:?}");
}

#[test]
fn loops_that_run_too_long_are_refused() {
    rule!(Long, |dims| Signature::new(dims).state("w", [dims.value], StateStart::Zeros), |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.repeat(2_000_000, &[&s.state("w")], &[&v], |w, v| vec![&w[0] * 0.5 + &v[0]]);
        s.output(&w[0] * q.dot(&k));
        s.set_state("w", &w[0]);
    });
    let p = describe::<Long>(DIMS);
    let e = check(&p).unwrap_err();
    assert!(matches!(*e.problem, Problem::TooLarge { .. }) && !e.place.is_empty(), "{e}");
}

#[test]
fn a_step_comes_apart_where_it_can() {
    let p = describe::<Normalised>(DIMS);
    let halves = separate(&p).unwrap();
    assert_eq!((halves.write_inputs.clone(), halves.read_inputs.clone()), (vec!["k".into(), "v".into()], vec!["q".to_string()]));
    // Writing, then reading the new states, is the step.
    let step = p.entry("step").unwrap();
    let mut inputs = random_inputs(&p, &[step], 2, &mut Random::new(3)).unwrap();
    let whole = evaluate(&p, step, &mut inputs).unwrap();
    let given = |names: &[String], inputs: &Inputs<'_>| -> Vec<Value> {
        names.iter().map(|n| inputs.arguments[p.inputs.iter().position(|i| i.name == *n).unwrap()].clone()).collect()
    };
    let mut write = Inputs {
        arguments: given(&halves.write_inputs, &inputs),
        states: inputs.states.clone(),
        parameters: inputs.parameters.clone(),
        ..Inputs::default()
    };
    let states: Vec<Array> =
        evaluate(&p, halves.write_function(), &mut write).unwrap().iter().map(|v| v.tensor().unwrap().clone()).collect();
    let mut read = Inputs {
        arguments: given(&halves.read_inputs, &inputs),
        states,
        parameters: inputs.parameters.clone(),
        ..Inputs::default()
    };
    let output = evaluate(&p, halves.read_function(), &mut read).unwrap();
    assert_eq!(floats(&output[0]), floats(&whole[0]));
    // Both halves keep their types.
    for f in [halves.write_function(), halves.read_function()] {
        let mut q = p.clone();
        q.functions.push(f.clone());
        shape::types(&q).unwrap();
    }
    assert!(separate(&expand_gradients(&describe::<Delta>(DIMS)).unwrap()).is_ok());
}

#[test]
fn a_step_that_cannot_come_apart_says_where() {
    let e = separate(&describe::<ReadsBefore>(DIMS)).unwrap_err();
    assert!(e.why.contains("state `w` as it was before"), "{e}");
    assert_eq!(e.operator, "matvec");
    assert!(e.place.contains("tests/parts.rs:"), "{e}");
    let e = separate(&describe::<Residual>(DIMS)).unwrap_err();
    assert!(e.why.contains("input `v`") && e.operator == "add", "{e}");
}

#[test]
fn signals_are_found_in_the_form_that_is_used() {
    let p = describe::<Gated>(DIMS);
    let step = p.entry("step").unwrap();
    let found: BTreeMap<String, Result<NodeId, String>> = effective_signals(&p).into_iter().collect();
    let op = |name: &str| step.nodes[*found[name].as_ref().unwrap() as usize].op.clone();
    assert_eq!(op("twice"), Op::Mul);
    assert_eq!(op("a"), Op::Sigmoid);
    assert_eq!(op("decay"), Op::Exp);
    assert!(matches!(op("plain"), Op::Argument { .. }));
    let why = found["forked"].as_ref().unwrap_err();
    assert!(why.contains("`exp`") && why.contains("`sigmoid`"), "{why}");

    // The step on activated signals is the step on raw ones.
    let plain = with_effective(&p);
    shape::types(&plain).unwrap();
    let mut inputs = random_inputs(&p, &[step], 0, &mut Random::new(11)).unwrap();
    let values = fwp_program::interpret::evaluate_nodes(&p, step, &mut inputs).unwrap();
    let raw = evaluate(&p, step, &mut inputs).unwrap();
    for (i, input) in p.inputs.iter().enumerate() {
        if let Some(Ok(node)) = found.get(&input.name) {
            inputs.arguments[i] = values[*node as usize].clone();
        }
    }
    let activated = evaluate(&plain, plain.entry("step").unwrap(), &mut inputs).unwrap();
    assert_eq!(raw.iter().map(floats).collect::<Vec<_>>(), activated.iter().map(floats).collect::<Vec<_>>());
    let delta = describe::<Delta>(DIMS);
    let beta = effective_signals(&delta).remove(0).1.unwrap();
    assert_eq!(delta.entry("step").unwrap().nodes[beta as usize].op, Op::Sigmoid);
}

/// The time at which the (first) node with this operator is computed.
fn when(p: &Program, times: &[When], op: Op) -> When {
    times[p.entry("step").unwrap().nodes.iter().position(|n| n.op == op).unwrap()]
}

#[test]
fn hoisting_is_bounded() {
    let p = describe::<Delta>(DIMS);
    let times = schedule(p.entry("step").unwrap(), &step_types(&p));
    assert_eq!(when(&p, &times, Op::Sigmoid), When::AllSteps);
    assert_eq!(when(&p, &times, Op::Sub), When::Step);
    assert_eq!(when(&p, &times, Op::Outer), When::Step);

    let p = describe::<Normalised>(DIMS);
    let step = p.entry("step").unwrap();
    let times = schedule(step, &step_types(&p));
    // The outer product is a matrix a step, whatever it depends on; reads stay; the rest follows for all steps at once.
    assert_eq!(when(&p, &times, Op::Outer), When::Step);
    assert_eq!(when(&p, &times, Op::MatVec), When::Step);
    assert_eq!(when(&p, &times, Op::DivOr), When::After);
    assert_eq!(when(&p, &times, Op::RmsNorm { eps: 1e-6 }), When::After);
    assert_eq!(when(&p, &times, Op::Parameter { index: 0 }), When::Once);
    assert_eq!(when(&p, &times, Op::Constant { value: 0.0 }), When::Once);

    // An expanded decay is a view of a vector, but its product with the state is not.
    let p = describe::<Gated>(DIMS);
    let times = schedule(p.entry("step").unwrap(), &step_types(&p));
    assert_eq!(when(&p, &times, Op::Exp), When::AllSteps);
    assert_eq!(when(&p, &times, Op::Expand { axis: 0, size: DIMS.value }), When::Step);
}

// The output reads what the state will be, which itself is not the state: a matrix of every step, if it were read later.
rule!(
    Ahead,
    |dims| Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros).held(4).state(
        "sum",
        [dims.value, dims.key],
        StateStart::Zeros
    ),
    |s| {
        let (q, k, v) = s.query_key_value();
        let sum = s.state("sum") + outer(&v, &k);
        let ahead = s.state("w") - &sum;
        s.output(ahead.matvec(&q).tanh().layer_norm(1e-6));
        s.set_state("w", s.state("w") * 0.5);
        s.set_state("sum", sum * 0.5);
    }
);

#[test]
fn a_kernel_keeps_no_matrix_of_every_step() {
    let p = describe::<Ahead>(DIMS);
    let (step, types) = (p.entry("step").unwrap(), step_types(&p));
    let times = schedule(step, &types);
    assert_eq!(when(&p, &times, Op::MatVec), When::After);
    let times = sunk(step, &types, &times);
    assert_eq!(when(&p, &times, Op::MatVec), When::Step);
    // The answer is a vector: what is made of it can wait.
    assert_eq!(when(&p, &times, Op::Tanh), When::After);
}

rule!(
    NormedQuery,
    |dims| Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros).state(
        "u",
        [dims.value, dims.value],
        StateStart::Zeros
    ),
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") + outer(&v, &k);
        let u = s.state("u") + outer(&v, &v);
        // The second read asks with what the first answered.
        let first = w.matvec(&q).softmax();
        s.output(u.matvec(&first).tanh());
        s.set_state("w", w);
        s.set_state("u", u);
    }
);

#[test]
fn no_step_waits_for_what_comes_after_it() {
    let p = describe::<NormedQuery>(DIMS);
    let step = p.entry("step").unwrap();
    let times = schedule(step, &step_types(&p));
    assert_eq!(when(&p, &times, Op::Softmax { axis: 0 }), When::Step);
    assert_eq!(when(&p, &times, Op::Tanh), When::After);
    for p in [describe::<Delta>(DIMS), describe::<Normalised>(DIMS), describe::<Gated>(DIMS), p] {
        let p = expand_gradients(&p).unwrap();
        let step = p.entry("step").unwrap();
        let times = schedule(step, &step_types(&p));
        for (n, node) in step.nodes.iter().enumerate() {
            for o in &node.operands {
                let (reads, read) = (times[n], times[*o as usize]);
                let fine = match reads {
                    When::Once => read == When::Once,
                    When::AllSteps => matches!(read, When::Once | When::AllSteps),
                    When::Step => read != When::After,
                    When::After => true,
                };
                assert!(fine, "{reads:?} reads {read:?}");
            }
        }
    }
}

rule!(Repeats, |dims| Signature::new(dims).state("w", [dims.value], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") * q.dot(&k) + &v;
    let parts = s.repeat(2, &[&w, &v], &[], |x, _| vec![x[0].tanh() + &x[1], x[1].clone()]);
    s.output((&parts[0] * &parts[1]).rms_norm(1e-6));
    s.set_state("w", w);
});

#[test]
fn parts_of_a_tuple_are_taken_when_it_is_made() {
    let p = describe::<Repeats>(DIMS);
    let step = p.entry("step").unwrap();
    let times = schedule(step, &step_types(&p));
    for (n, node) in step.nodes.iter().enumerate() {
        if let Op::Element { .. } = node.op {
            assert_eq!(times[n], times[node.operands[0] as usize]);
        }
    }
    assert_eq!(when(&p, &times, Op::RmsNorm { eps: 1e-6 }), When::After);
}

rule!(
    ThroughPhi,
    |dims| Signature::without_inputs(dims)
        .key("x", [dims.key_raw])
        .raw()
        .value("v", [dims.value])
        .query("q", [dims.key])
        .state("w", [dims.value, dims.key], StateStart::Zeros)
        .state("b", [dims.key_raw], StateStart::Zeros),
    |s| {
        let (w, b) = (s.state("w"), s.state("b"));
        let k = s.phi(&(s.input("x") + &b));
        let loss = 0.5 * (w.matvec(&k) - s.input("v")).norm_squared();
        let g = loss.gradients(&[&w, &b]);
        let w = &w - 0.1 * &g[0];
        s.output(w.matvec(s.input("q")));
        s.set_state("w", w);
        s.set_state("b", &b - 0.1 * &g[1]);
    }
);

#[test]
fn a_gradient_passes_through_the_feature_map_once_it_is_put_in() {
    let (p, phi) = (describe::<ThroughPhi>(DIMS), map::<Learned>(DIMS.key_raw));
    let e = expand_gradients(&p).unwrap_err();
    assert!(e.to_string().contains("phi") && e.place.contains("parts.rs"), "{e}");
    let whole = with_feature_map(&p, &phi).unwrap();
    let expanded = expand_gradients(&whole).unwrap();
    let f = expanded.entry("step").unwrap();
    assert!(f.parameters.iter().any(|q| q.name == "feature_map.a"));
    // The gradient to b against differences of the loss in plain loops.
    let mut inputs = random_inputs(&expanded, &[f], 0, &mut Random::new(2)).unwrap();
    let results = evaluate(&expanded, f, &mut inputs).unwrap();
    let next = floats(&results[f.outputs.iter().position(|o| o.name == "state.b").unwrap()]);
    let a = inputs.parameters["feature_map.a"].floats().unwrap().to_vec();
    let (x, v) = (floats(&inputs.arguments[0]), floats(&inputs.arguments[1]));
    let (w, b) = (inputs.states[0].floats().unwrap(), inputs.states[1].floats().unwrap());
    let loss = |b: &[f64]| -> f64 {
        let k: Vec<f64> = (0..5).map(|i| (0..5).map(|j| a[i * 5 + j] * (x[j] + b[j])).sum::<f64>().tanh()).collect();
        (0..3).map(|i| 0.5 * ((0..5).map(|j| w[i * 5 + j] * k[j]).sum::<f64>() - v[i]).powi(2)).sum()
    };
    for j in 0..5 {
        let (mut up, mut down) = (b.to_vec(), b.to_vec());
        up[j] += 1e-6;
        down[j] -= 1e-6;
        let slope = (loss(&up) - loss(&down)) / 2e-6;
        assert!((next[j] - (b[j] - 0.1 * slope)).abs() < 1e-7, "{} {}", next[j], b[j] - 0.1 * slope);
    }
    // In a model both copies of the parameter are one.
    let slots = vec![interface("main", &p, DIMS)];
    let m = ModelPrograms {
        net: net::<Blocks>(slots),
        slots: vec![SlotPrograms { name: "main".into(), layers: None, map: phi, rule: expanded }],
    };
    let paths: Vec<String> = m.parameters().unwrap().into_iter().map(|p| p.path).collect();
    assert_eq!(paths.iter().filter(|p| *p == "layers.0.memory.feature_map.a").count(), 1, "{paths:?}");
}

#[test]
fn slots_that_do_not_fit_are_refused() {
    let good = model::<Blocks, Identity, Delta>(DIMS);
    good.check().unwrap();
    let mut m = good.clone();
    m.slots[0].map = map::<Identity>(7);
    assert!(m.check().unwrap_err().to_string().contains("maps 7 features to 7"));
    let mut m = good.clone();
    m.slots[0].rule = describe::<Normalised>(DIMS);
    assert!(m.check().unwrap_err().to_string().contains("other inputs"));
    let mut m = good.clone();
    m.slots.clear();
    assert!(m.check().unwrap_err().to_string().contains("no update rule"));
    let mut m = good;
    m.net = m.slots[0].rule.clone();
    assert!(m.check().unwrap_err().to_string().contains("expected a slow-net"));
}

fwp_sdk::config! {
    /// Writes everything, reads once.
    pub struct WriteThenRead {}
}
impl SlowNet for WriteThenRead {
    const NAME: &'static str = "write-then-read";
    const CITATION: &'static str = "none";
    fn memory(&self, _: &TaskIo, _: &str) -> Memory {
        Memory { heads: 2, key: 5, value: 3 }
    }
    fn forward(&self, net: &mut Net) {
        let slot = net.slot("main");
        let x = net.embedding("embedding", &net.input("tokens"), 11, 6, Init::normal(1.0));
        let part = |name: &str, n: usize| net.linear(name, &x, 2 * n, Init::normal(1.0)).reshape(&[2, n]);
        let memory = net.memory("m", &slot);
        let memory = net.write("m", &memory, &[("k", &part("k", 5)), ("v", &part("v", 3))]);
        let o = net.read("m", &memory, QueryScale::None, &[("q", &part("q", 5))]);
        net.output("logits", &net.linear("head", &o[0].reshape(&[6]), 11, Init::normal(1.0)));
    }
}

#[test]
fn writing_and_reading_alone_need_a_rule_that_comes_apart() {
    let m = model::<WriteThenRead, Identity, Normalised>(DIMS);
    m.check().unwrap();
    // Written, read and started under one name: one set of parameters.
    let paths: Vec<String> = m.parameters().unwrap().into_iter().map(|p| p.path).collect();
    assert_eq!(paths.iter().filter(|p| *p == "m.gain").count(), 1, "{paths:?}");
    let e = model::<WriteThenRead, Identity, ReadsBefore>(DIMS).check().unwrap_err();
    assert!(matches!(&*e.problem, Problem::Slot { slot, .. } if slot == "main"), "{e}");
    assert!(e.place.contains("parts.rs") && e.to_string().contains("state `w` as it was before"), "{e}");
    let e = model::<WriteThenRead, Identity, Delta>(DIMS).check().unwrap_err();
    assert!(e.to_string().contains("writing also needs beta"), "{e}");
}

#[test]
fn memory_grows_as_it_should() {
    let m = model::<Blocks, Identity, Delta>(DIMS);
    let at =
        |batch: usize, length: usize, bytes: usize| estimate(&m, batch, &BTreeMap::from([("time".to_string(), length)]), bytes);
    let e = at(3, 10, 4);
    let counted: usize = m.parameters().unwrap().iter().map(|p| p.shape.iter().product::<usize>()).sum();
    assert_eq!(e.parameters, counted as u64);
    assert_eq!((e.parameter_bytes, e.optimiser_bytes), (e.parameters * 4, e.parameters * 8));
    // Two blocks, three sequences, two heads, a matrix [3, 5] of four bytes.
    assert_eq!(e.states_bytes_per_step, 2 * 3 * 2 * 15 * 4);
    assert_eq!(at(6, 10, 4).activation_bytes, 2 * e.activation_bytes);
    assert_eq!(at(3, 20, 4).activation_bytes, 2 * e.activation_bytes);
    assert_eq!(at(3, 10, 8).activation_bytes, 2 * e.activation_bytes);
    // A step of the delta rule makes sigmoid, w k, the difference, outer, beta outer, the new state and the output.
    let step = 2 * (1 + 3 + 3 + 15 + 15 + 15 + 3);
    // Embedding; a block: norm, gain, four projections, output, residual; head.
    let net = 7 + 2 * (7 + 7 + (10 + 10 + 6 + 2) + step + 7 + 7) + 11;
    assert_eq!(e.activation_bytes, 3 * 10 * 4 * net);
}

fwp_sdk::config! {
    /// Attention twice, once over a window, and a cell.
    pub struct Looks {}
}
impl SlowNet for Looks {
    const NAME: &'static str = "looks";
    const CITATION: &'static str = "none";
    fn forward(&self, net: &mut Net) {
        let x = net.embedding("embedding", &net.input("tokens"), 11, 6, Init::normal(1.0));
        let x = net.blocks("block", 0, 2, &[&x], |net, x| {
            let part = |name: &str, heads: usize| net.linear(name, &x[0], heads * 3, Init::normal(1.0)).reshape(&[heads, 3]);
            let (q, k, v) = (part("q", 2), part("k", 1), part("v", 1));
            let all = net.attention(&q, &k, &v, 1.0, true, 0);
            let near = net.attention(&q, &k, &v, 1.0, true, 4);
            vec![(all + near).reshape(&[6])]
        });
        let (_, h) = net.recurrent("cell", &[&net.full(&[5], 0.0)], &[&x[0]], |net, h, x| {
            let h = net.linear("u", &x[0], 5, Init::normal(1.0)) + &h[0];
            (vec![h.clone()], vec![h])
        });
        net.output("logits", &net.linear("head", &h[0], 11, Init::normal(1.0)));
    }
}

#[test]
fn what_is_kept_of_a_sequence_is_counted() {
    // Two heads of a matrix [3, 5], in two blocks.
    assert_eq!(state_size(&model::<Blocks, Identity, Delta>(DIMS), 7), 2 * 2 * 15);
    // With a vector of five beside it; read from where it was written, so counted once.
    assert_eq!(state_size(&model::<WriteThenRead, Identity, Normalised>(DIMS), 7), 2 * (15 + 5));
    // A key and a value of three numbers in each of two blocks, for all steps and for four; and a cell of five.
    let looks = ModelPrograms { net: net::<Looks>(Vec::new()), slots: Vec::new() };
    assert_eq!([1, 4, 100].map(|length| state_size(&looks, length)), [29, 101, 1253]);
}

#[test]
fn maps_are_checked_too() {
    let good = map::<Learned>(4);
    assert!(check(&good).unwrap().is_empty());
    assert_eq!(good.kind, Kind::FeatureMap);
    let e = broken(&good, |p| {
        p.entries.retain(|(n, _)| n == "key");
    });
    assert_eq!(*e.problem, Problem::MissingEntry("query"));
    let e = broken(&good, |p| {
        let index = p.entries[0].1 as usize;
        for n in &mut p.functions[index].nodes {
            if matches!(n.op, Op::Argument { .. }) {
                n.op = Op::Full { shape: vec![4], value: 1.0 };
            }
        }
    });
    assert_eq!(*e.problem, Problem::UnusedInput("x".into()));
}
