//! Generated kernels against the interpreter and against finite differences.
//!
//! Every kernel is compiled with a small program around it and run in a process of its own.

mod support;

use fwp_program::kernel::{InStep, Kernel, Real, Target, generate, of_rule};
use fwp_sdk::build::Dims;
use fwp_sdk::prelude::*;
use support::kernels::{agree, compile, compiler, differences, draw, in_step, interpreted};

const DOUBLE: Target = Target { real: Real::F64, vector_bytes: 64 };
const SINGLE: Target = Target { real: Real::F32, vector_bytes: 64 };

fn dims(key: usize, value: usize) -> Dims {
    Dims { heads: 1, key_raw: key, key, value, ..Dims::ONE }
}

/// A rule in double and single precision, with sizes that are equal and sizes that are primes.
fn judge<R: UpdateRule>(sizes: &[(usize, usize)], scale: f64) {
    let Some(cc) = compiler() else { return };
    for (key, value) in sizes {
        let step = in_step(&support::rule::<R>(dims(*key, *value)));
        let w = draw(&step, 7, 2, 1, scale, 4);
        let want = interpreted(&step, &w);
        let name = format!("{} {key} {value}", step.name);
        let double = compile(&cc, &step, DOUBLE);
        let got = double.run(&step, &w);
        agree(&name, &got, &want, 1e-10);
        differences(&step, &w, &got, 1e-5);
        let single = compile(&cc, &step, SINGLE);
        agree(&format!("{name} float"), &single.run(&step, &w), &want, 2e-4);
        if *key == 5 {
            // The narrowest vectors: two doubles, four floats.
            for (real, tolerance) in [(Real::F64, 1e-10), (Real::F32, 2e-4)] {
                let narrow = compile(&cc, &step, Target { real, vector_bytes: 16 });
                agree(&format!("{name} narrow {real:?}"), &narrow.run(&step, &w), &want, tolerance);
            }
        }
    }
}

rule!(
    GatedDelta,
    |dims| Signature::new(dims).signal("beta", []).signal("alpha", []).state("w", [dims.value, dims.key], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        let alpha = s.signal("alpha").sigmoid();
        let w = alpha * s.state("w");
        let w = &w + beta * outer(v - w.matvec(&k), &k);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
);

// Two memories that fade alike: the gradient of the decay is a sum over both. The second is read with what the first answers.
rule!(
    SharedDecay,
    |dims| Signature::new(dims).signal("decay", [dims.key]).state("keys", [dims.key, dims.key], StateStart::Zeros).state(
        "values",
        [dims.key, dims.value],
        StateStart::Zeros
    ),
    |s| {
        let (q, k, v) = s.query_key_value();
        let a = s.signal("decay").sigmoid();
        let keys = s.state("keys").scale_rows(&a) + outer(1 - &a, k);
        let values = s.state("values").scale_rows(&a) + outer(1 - &a, v);
        s.output(values.matvec_t(keys.matvec(q).softmax()));
        s.set_state("keys", keys);
        s.set_state("values", values);
    }
);

rule!(
    VectorDecay,
    |dims| Signature::new(dims).signal("decay", [dims.key]).state("w", [dims.value, dims.key], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let decay = s.signal("decay").sigmoid();
        let w = s.state("w").scale_columns(decay) + outer(v, &k);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
);

// A decay above a bound, and what it lets go is written: its gradient needs the states.
rule!(
    Complement,
    |dims| Signature::new(dims).signal("decay", [dims.key]).state("w", [dims.value, dims.key], StateStart::Zeros),
    |s| {
        let (q, _, v) = s.query_key_value();
        let decay = 0.5 + 0.5 * s.signal("decay").sigmoid();
        let w = s.state("w").scale_columns(&decay) + outer(v, 1.0 - &decay);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
);

// The delta rule with a decay for every key.
rule!(
    KeyGated,
    |dims| Signature::new(dims).signal("decay", [dims.key]).state("w", [dims.value, dims.key], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let decay = s.signal("decay").sigmoid();
        let w = s.state("w").scale_columns(decay);
        let w = &w + outer(v - w.matvec(&k), &k);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
);

rule!(
    Normalised,
    |dims| Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros).state("z", [dims.key], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let (k, q) = (k.exp(), q.exp());
        let w = s.state("w") + outer(v, &k);
        let z = s.state("z") + &k;
        let scale = z.dot(&q).abs() + 1.0;
        s.output(w.matvec(&q) / scale);
        s.set_state("w", w);
        s.set_state("z", z);
    }
);

// The output of a step is the key of the next one for a second memory.
rule!(
    DeltaRnn,
    |dims| Signature::new(dims)
        .signal("beta", [])
        .signal("rv", [dims.value])
        .state("w", [dims.value, dims.key], StateStart::Zeros)
        .state("r", [dims.value, dims.value], StateStart::Zeros)
        .state("h", [dims.value], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        let w = s.state("w");
        let w = &w + &beta * outer(v - w.matvec(&k), &k);
        let h = s.state("h").softmax();
        let r = s.state("r");
        let r = &r + &beta * outer(s.signal("rv") - r.matvec(&h), &h);
        let y = w.matvec(&q) + r.matvec(&h);
        s.output(&y);
        s.set_state("w", w);
        s.set_state("r", r);
        s.set_state("h", y);
    }
);

rule!(
    MLstm,
    |dims| Signature::new(dims)
        .signal("i", [])
        .signal("f", [])
        .state("c", [dims.value, dims.key], StateStart::Zeros)
        .state("n", [dims.key], StateStart::Zeros)
        .state("m", [], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let i = s.signal("i");
        let f = s.signal("f").log_sigmoid() + s.state("m");
        let m = f.max(&i);
        let (i, f) = ((i - &m).exp(), (f - &m).exp());
        let c = &f * s.state("c") + &i * outer(v, &k);
        let n = &f * s.state("n") + &i * &k;
        let scale = n.dot(&q).abs().max((-&m).exp());
        s.output(c.matvec(&q) / scale);
        s.set_state("c", c);
        s.set_state("n", n);
        s.set_state("m", m);
    }
);

// Rules that nobody foresaw: two matrices that read each other, a matrix inside of tanh, several steps of an inner loop.
rule!(
    Coupled,
    |dims| Signature::new(dims).state("a", [dims.value, dims.key], StateStart::Zeros).state(
        "b",
        [dims.value, dims.key],
        StateStart::Zeros
    ),
    |s| {
        let (q, k, v) = s.query_key_value();
        let (a, b) = (s.state("a"), s.state("b"));
        let next_b = 0.9 * &b + outer(v - a.matvec(&k), &k);
        let next_a = &a - 0.1 * &b + 0.05 * &next_b * outer(b.matvec(&q), &k);
        s.output(next_a.matvec(&q) + b.matvec(&k));
        s.set_state("a", next_a);
        s.set_state("b", next_b);
    }
);

rule!(Squashed, |dims| Signature::new(dims).signal("beta", []).state("w", [dims.value, dims.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let w = s.state("w");
    let w = (&w + beta * outer(v - w.tanh().matvec(&k), &k)).tanh();
    let y = w.matvec(&q);
    s.output(&y * w.matvec_t(&y).norm_squared());
    s.set_state("w", w);
});

rule!(Inner, |dims| Signature::new(dims).signal("rate", []).state("w", [dims.value, dims.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let rate = 0.3 * s.signal("rate").sigmoid();
    let mut w = s.state("w");
    for _ in 0..3 {
        w = &w + &rate * outer((&v - w.matvec(&k)).tanh(), &k);
    }
    s.output(w.matvec(&q).rms_norm(1e-3));
    s.set_state("w", w);
});

rule!(
    Cell,
    |dims| Signature::new(dims)
        .signal("uh", [dims.value, dims.value])
        .signal("vx", [dims.value, dims.key])
        .signal("bias", [dims.value])
        .signal("gain", [dims.value])
        .state("h", [dims.value], StateStart::Zeros),
    |s| {
        let (_, k, _) = s.query_key_value();
        let h = s.state("h");
        let inner = s.signal("uh").matvec(&h) + s.signal("vx").matvec(&k) + s.signal("bias");
        let h = s.signal("gain") * inner.tanh();
        s.output(&h);
        s.set_state("h", h);
    }
);

rule!(Choosing, |dims| Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(v.relu().max(0.1).min(5.0), &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});

const SIZES: &[(usize, usize)] = &[(8, 8), (16, 16), (5, 3), (7, 37), (64, 32)];

#[test]
fn delta() {
    judge::<support::Delta>(SIZES, 0.5);
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let Some(cc) = compiler() else { return };
    // FWP_SIZE chooses one size, FWP_KEEP keeps its text.
    let only = std::env::var("FWP_SIZE").ok().and_then(|s| s.parse::<usize>().ok());
    for (d, interval) in [(64, 48), (128, 48)].into_iter().filter(|(d, _)| only.is_none_or(|o| o == *d)) {
        let step = in_step(&support::rule::<support::Delta>(dims(d, d)));
        println!("{}", support::kernels::bench(&cc, &step, SINGLE, 2048, 4, interval));
    }
    if only.is_none() {
        for step in [
            in_step(&support::rule::<GatedDelta>(dims(64, 64))),
            in_step(&support::rule::<VectorDecay>(dims(64, 64))),
            in_step(&support::rule::<MLstm>(dims(64, 64))),
        ] {
            println!("{}", support::kernels::bench(&cc, &step, SINGLE, 2048, 4, 48));
        }
        let step = in_step(&support::rule::<DeltaRnn>(dims(64, 64)));
        println!("{}", support::kernels::bench(&cc, &step, SINGLE, 512, 4, 24));
    }
}

#[test]
fn gated_delta() {
    judge::<GatedDelta>(SIZES, 0.5);
    judge::<KeyGated>(SIZES, 0.5);
}

#[test]
fn vector_decay() {
    judge::<VectorDecay>(SIZES, 0.5);
    // More sums across lanes than wait for each other, and a rest.
    judge::<VectorDecay>(&[(37, 43)], 0.5);
    judge::<SharedDecay>(SIZES, 0.5);
    judge::<Complement>(&[(16, 16), (7, 37)], 0.5);
}

#[test]
fn normalised() {
    judge::<Normalised>(SIZES, 0.5);
}

#[test]
fn delta_rnn() {
    judge::<DeltaRnn>(SIZES, 0.5);
}

#[test]
fn mlstm() {
    judge::<MLstm>(SIZES, 0.5);
}

#[test]
fn coupled_states() {
    judge::<Coupled>(SIZES, 0.3);
}

#[test]
fn state_within_tanh() {
    judge::<Squashed>(SIZES, 0.3);
}

#[test]
fn inner_loop() {
    judge::<Inner>(SIZES, 0.5);
}

/// Walks with everything that steers them: resets, write masks, indices that are carried over, held states, states that masks leave alone.
#[test]
fn steered_walks() {
    let Some(cc) = compiler() else { return };
    for (name, mut step) in [
        ("delta", in_step(&support::rule::<support::Delta>(dims(6, 5)))),
        ("delta rnn", in_step(&support::rule::<DeltaRnn>(dims(3, 7)))),
        ("mlstm", in_step(&support::rule::<MLstm>(dims(8, 8)))),
        ("coupled", in_step(&support::rule::<Coupled>(dims(5, 3)))),
        ("vector decay", in_step(&support::rule::<VectorDecay>(dims(7, 5)))),
        ("a decay of two states", in_step(&support::rule::<SharedDecay>(dims(7, 5)))),
    ] {
        for variant in 0..3 {
            let last = step.states.len() - 1;
            step.states[0].state.held = if variant == 1 { 3 } else { 1 };
            step.states[last].masked = variant != 2;
            let mut w = draw(&step, 11, 3, 7 + variant, 0.4, 4);
            let n = w.steps * w.sequences;
            (w.interval, w.early) = (4, variant as usize);
            w.steering.reset = Some((0..n).map(|i| u8::from(i % 7 == 3)).collect());
            w.steering.write = Some((0..n).map(|i| u8::from(i % 5 != 1)).collect());
            if variant == 1 {
                w.steering.index = Some((0..n).map(|i| (i / 3 + 2 * (i % 3)) as i64).collect());
            }
            let want = interpreted(&step, &w);
            let c = compile(&cc, &step, DOUBLE);
            let got = c.run(&step, &w);
            agree(&format!("{name} {variant}"), &got, &want, 1e-10);
            differences(&step, &w, &got, 1e-5);
        }
    }
}

/// Arguments that are the same for all steps, or for all steps and sequences; the gradient of a matrix is two factors a step.
#[test]
fn arguments_by_how_often_they_change() {
    use fwp_program::kernel::{Gradient, Per};
    let Some(cc) = compiler() else { return };
    for (m, n) in [(8, 8), (5, 13)] {
        // h' = tanh(U h + V x) with U square: its own result is its argument.
        let rule = support::rule::<Cell>(dims(n, m));
        let mut step = in_step(&rule);
        let place = |name: &str| step.function.arguments.iter().position(|a| a.name == name).unwrap();
        let (u, v, bias, gain) = (place("uh"), place("vx"), place("bias"), place("gain"));
        for (i, per) in [(u, Per::Once), (v, Per::Once), (bias, Per::Once), (gain, Per::Sequence)] {
            step.per[i] = per;
        }
        let w = draw(&step, 6, 3, 3, 0.4, 4);
        let want = interpreted(&step, &w);
        let c = compile(&cc, &step, DOUBLE);
        assert_eq!(c.kernel.gradients[u], Gradient::Product { left: m, right: m });
        assert_eq!(c.kernel.gradients[v], Gradient::Product { left: m, right: n });
        assert_eq!(c.kernel.gradients[bias], Gradient::Sequences { parts: 1 });
        let got = c.run(&step, &w);
        agree("cell", &got, &want, 1e-10);
        differences(&step, &w, &got, 1e-5);
    }
}

/// What is no number stays none, through functions that choose as well, and does not reach rows that it does not belong to.
#[test]
fn not_a_number() {
    use fwp_program::interpret::Data;
    let Some(cc) = compiler() else { return };
    let step = in_step(&support::rule::<Choosing>(dims(5, 6)));
    let mut w = draw(&step, 4, 2, 3, 0.5, 4);
    let v = step.function.arguments.iter().position(|a| a.name == "v").unwrap();
    let Data::Float(values) = &mut w.inputs[v] else { unreachable!() };
    // Step 1, sequence 0, row 2.
    values[2 * 6 + 2] = f64::NAN;
    let want = interpreted(&step, &w);
    assert!(want.kept[0].iter().any(|x| x.is_nan()) && want.kept[0].iter().any(|x| !x.is_nan()));
    for target in [DOUBLE, SINGLE] {
        let got = compile(&cc, &step, target).run(&step, &w);
        for (g, w) in got.kept[0].iter().zip(&want.kept[0]) {
            assert_eq!(g.is_nan(), w.is_nan());
        }
        for (g, w) in got.end[0].iter().zip(&want.end[0]) {
            assert_eq!(g.is_nan(), w.is_nan());
        }
    }
}

/// The text does not grow with the sizes, and a compiler is done with it soon.
#[test]
fn text_is_bounded() {
    let Some(cc) = compiler() else { return };
    let text = |d: usize| {
        let step = in_step(&support::rule::<support::Delta>(dims(d, d)));
        fwp_program::kernel::generate(&step, SINGLE).unwrap().source
    };
    let (small, large) = (text(64), text(512));
    assert!(large.len() < small.len() + 4000, "{} and {}", small.len(), large.len());
    assert_eq!(text(64), small, "the same step gives the same text");
    let step = in_step(&support::rule::<support::Delta>(dims(64, 64)));
    let fastest = (0..3).map(|_| compile(&cc, &step, SINGLE).seconds).fold(f64::INFINITY, f64::min);
    // One second on a machine of its own; tests share theirs.
    assert!(fastest < 4.0, "a compiler takes {fastest} s");
}

/// The walk forwards has those axes in lanes that spare it sums across them, whatever suits the way back; states change their form at checkpoints.
#[test]
fn lanes_of_the_walk_forwards() {
    // A routine of the step, without those that come after it.
    let text = |kernel: &Kernel, name: &str| {
        let at = kernel.source.find(&format!("void {name}(")).unwrap();
        kernel.source[at..].split("\n}\n").next().unwrap().to_string()
    };
    let across = |kernel: &Kernel, name: &str| text(kernel, name).contains("fwp_reduce_lanes");
    let kernel = |step: &InStep| generate(step, SINGLE).unwrap();
    let decay = kernel(&in_step(&support::rule::<VectorDecay>(dims(64, 64))));
    assert_eq!(["fwp_step0", "fwp_step_again", "fwp_step_back0"].map(|r| across(&decay, r)), [false, false, true]);
    assert!(decay.notes.iter().any(|n| n.contains("on the way forwards")), "{:?}", decay.notes);
    // What suits both ways stays, and checkpoints are copies of what is in memory.
    let delta = kernel(&in_step(&support::rule::<support::Delta>(dims(64, 64))));
    assert!(!delta.notes.iter().any(|n| n.contains("on the way forwards")), "{:?}", delta.notes);
    assert!(text(&delta, "fwp_forward_steps").contains("memcpy(s->checkpoint"));
    assert!(!text(&decay, "fwp_forward_steps").contains("memcpy(s->checkpoint"));
    // Where states are stored for every step of a segment, checkpoints are too near for another form.
    let complement = kernel(&in_step(&support::rule::<Complement>(dims(64, 64))));
    assert!(has_room(&complement, 64 * 64 * 4));
    assert!(across(&complement, "fwp_step0") && text(&complement, "fwp_forward_steps").contains("memcpy(s->checkpoint"));
}

/// Independent rows are walked in blocks, and their partial gradients add up.
#[test]
fn rows_in_blocks() {
    use fwp_program::kernel::Gradient;
    let Some(cc) = compiler() else { return };
    let step = in_step(&support::rule::<support::Delta>(dims(64, 128)));
    let w = draw(&step, 5, 2, 1, 0.3, 4);
    let c = compile(&cc, &step, DOUBLE);
    assert!(c.kernel.blocks > 1);
    let k = step.function.arguments.iter().position(|a| a.name == "k").unwrap();
    assert_eq!(c.kernel.gradients[k], Gradient::Steps { parts: c.kernel.blocks });
    let want = interpreted(&step, &w);
    for together in (1..=c.kernel.blocks).filter(|n| c.kernel.blocks.is_multiple_of(*n)) {
        let got = c.run(&step, &support::kernels::Walk { together, ..w.clone() });
        agree(&format!("{together} blocks a unit"), &got, &want, 1e-10);
    }
    let step = in_step(&support::rule::<VectorDecay>(dims(64, 128)));
    let w = draw(&step, 5, 2, 1, 0.3, 4);
    let c = compile(&cc, &step, DOUBLE);
    assert!(c.kernel.blocks > 1);
    assert!(!has_room(&c.kernel, 64 * 128 * 8 / c.kernel.blocks), "sums are carried");
    let want = interpreted(&step, &w);
    for together in [1, c.kernel.blocks] {
        let got = c.run(&step, &support::kernels::Walk { together, ..w.clone() });
        agree(&format!("vector decay, {together} blocks a unit"), &got, &want, 1e-10);
    }
    // A way back that reads states and their gradients has both in the nearest cache, if that repeats nothing dear and leaves whole sweeps.
    let blocks = |step: &InStep, vector_bytes: usize| generate(step, Target { real: Real::F32, vector_bytes }).unwrap().blocks;
    assert_eq!(blocks(&in_step(&support::rule::<support::Delta>(dims(64, 64))), 32), 2);
    assert_eq!(blocks(&in_step(&support::rule::<support::Delta>(dims(64, 64))), 64), 1);
    assert_eq!(blocks(&in_step(&support::rule::<support::Delta>(dims(128, 128))), 32), 4);
    assert_eq!(blocks(&in_step(&support::rule::<KeyGated>(dims(64, 64))), 32), 1);
    assert_eq!(blocks(&in_step(&support::rule::<VectorDecay>(dims(64, 64))), 32), 1);
    // One step's softmax over the rows makes the next step's key: no blocks.
    let step = in_step(&support::rule::<DeltaRnn>(dims(64, 128)));
    assert_eq!(fwp_program::kernel::generate(&step, SINGLE).unwrap().blocks, 1);
}

// What is written does not depend on what is there.
rule!(Sums, |dims| Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(v, k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});

/// Whether there is room for states of so many bytes a block at every step. With sums in their place, they are put aside every few steps at most.
fn has_room(kernel: &Kernel, bytes: usize) -> bool {
    kernel.slots_a_step >= bytes / 8
}

/// Where a step only scales its states and adds to them, sums are carried and no states are kept; elsewhere they are.
#[test]
fn sums_in_the_place_of_states() {
    use fwp_program::kernel::Gradient;
    let vector = in_step(&support::rule::<VectorDecay>(dims(64, 64)));
    // Those that are computed back have room to be stored, too.
    let (sums, stored, back) = ((false, false), (true, false), (true, true));
    for (step, expected) in [
        (vector.clone(), sums),
        (in_step(&support::rule::<SharedDecay>(dims(64, 64))), sums),
        // The gradient of a key is a sum over the state with what the state's gradient gives.
        (in_step(&support::rule::<GatedDelta>(dims(64, 64))), stored),
        (in_step(&support::rule::<Coupled>(dims(64, 64))), stored),
        // One that is added to is computed back where its gradient has to be known for what is read of it, and only there.
        (in_step(&support::rule::<Sums>(dims(64, 64))), sums),
        (in_step(&support::rule::<support::Delta>(dims(64, 64))), back),
    ] {
        let kernel = generate(&step, SINGLE).unwrap();
        let room = has_room(&kernel, step.states.len() * 64 * 64 * 4);
        assert_eq!((room, kernel.computed_back), expected, "{}", step.name);
    }
    let decay = vector.function.arguments.iter().position(|a| a.name == "decay").unwrap();
    assert_eq!(generate(&vector, SINGLE).unwrap().gradients[decay], Gradient::Steps { parts: 1 });
}

// A matrix that is added to another one: the gradient of the first needs that of the second as a whole.
rule!(
    Chained,
    |dims| Signature::new(dims).state("a", [dims.value, dims.key], StateStart::Zeros).state(
        "b",
        [dims.value, dims.key],
        StateStart::Zeros
    ),
    |s| {
        let (q, k, v) = s.query_key_value();
        let a = s.state("a") + outer(&v, &k);
        let b = s.state("b") + 0.1 * &a;
        s.output(b.matvec(&q));
        s.set_state("a", a);
        s.set_state("b", b);
    }
);

// What is added to the second memory, and read of it, goes through a vector that is a state beside the first one.
rule!(
    Trailing,
    |dims| Signature::new(dims)
        .state("last", [dims.key], StateStart::Zeros)
        .state("near", [dims.value, dims.key], StateStart::Zeros)
        .state("far", [dims.value, dims.key], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let (last, near, far) = (s.state("last"), s.state("near"), s.state("far"));
        let near = &near + outer(&v - near.matvec(&k), &k);
        let far = &far + outer(near.matvec(&last), &last);
        s.output(near.matvec(&q) + far.matvec(&q));
        s.set_state("last", 0.5 * last + 0.5 * k);
        s.set_state("near", near);
        s.set_state("far", far);
    }
);

/// States that are too large to be walked together are walked one after the other, where one does not need the other's matrix.
#[test]
fn strata() {
    let Some(cc) = compiler() else { return };
    for (name, step, sizes, groups) in [
        ("delta rnn", in_step(&support::rule::<DeltaRnn>(dims(64, 64))), "64 x 64", 2),
        ("delta rnn", in_step(&support::rule::<DeltaRnn>(dims(40, 67))), "67 x 40", 2),
        ("delta rnn", in_step(&support::rule::<DeltaRnn>(dims(16, 16))), "16 x 16", 1),
        ("trailing", in_step(&support::rule::<Trailing>(dims(40, 64))), "64 x 40", 2),
        ("chained", in_step(&support::rule::<Chained>(dims(64, 64))), "64 x 64", 1),
    ] {
        let c = compile(&cc, &step, DOUBLE);
        for way in ["forwards", "back"] {
            let said = c.kernel.notes.iter().find(|n| n.contains(&format!("walked {way} in")));
            let right = said.map(|n| n.contains(&format!("in {groups} groups")));
            assert_eq!(right, (groups > 1).then_some(true), "{name} {sizes} {way}: {said:?}");
        }
        // Segments shorter than what the strata take together, and longer.
        for (steered, steps, interval) in [(false, 11, 4), (true, 11, 4), (false, 37, 35), (true, 37, 35)] {
            let mut w = draw(&step, steps, 2, 5, 0.3, 4);
            (w.interval, w.early) = (interval, 2);
            if steered {
                let n = w.steps * w.sequences;
                w.steering.reset = Some((0..n).map(|i| u8::from(i % 9 == 5)).collect());
                w.steering.write = Some((0..n).map(|i| u8::from(i % 5 != 1)).collect());
            }
            agree(&format!("{name} {sizes} {steered} {steps}"), &c.run(&step, &w), &interpreted(&step, &w), 1e-10);
        }
    }
}

/// The adjoint alone, as the interpreter computes it, against differences of one step.
#[test]
fn adjoint_of_one_step() {
    let step = in_step(&support::rule::<Inner>(dims(3, 4)));
    let w = draw(&step, 1, 1, 2, 0.5, 4);
    differences(&step, &w, &interpreted(&step, &w), 1e-6);
}

/// What cannot be a kernel says why.
#[test]
fn refusals() {
    use fwp_sdk::program::{Node, Op, Span};
    let mut step = in_step(&support::rule::<support::Delta>(dims(4, 4)));
    let last = step.function.outputs[0].node;
    step.function.nodes.push(Node { op: Op::Phi { role: MapRole::Key, size: 4 }, operands: vec![last], span: Span::default() });
    step.function.outputs[0].node = step.function.nodes.len() as u32 - 1;
    let why = fwp_program::kernel::generate(&step, SINGLE).unwrap_err().to_string();
    assert!(why.contains("phi"), "{why}");
}

/// States that are computed back from one checkpoint to the one before, and sums that are carried, lose no more than a rounding a step.
#[test]
fn long_walks_in_single_precision() {
    let Some(cc) = compiler() else { return };
    for (name, step) in [
        ("delta", in_step(&support::rule::<support::Delta>(dims(16, 16)))),
        ("gated delta", in_step(&support::rule::<GatedDelta>(dims(16, 16)))),
        ("vector decay", in_step(&support::rule::<VectorDecay>(dims(16, 16)))),
    ] {
        let mut w = draw(&step, 400, 1, 5, 0.35, 4);
        (w.interval, w.early) = (100, 60);
        let want = interpreted(&step, &w);
        let got = compile(&cc, &step, SINGLE).run(&step, &w);
        agree(name, &got, &want, 1e-4);
        agree(name, &compile(&cc, &step, DOUBLE).run(&step, &w), &want, 1e-10);
    }
}

/// States that grow within a segment are not computed back there: what is lost at their largest would be more than the smallest are.
#[test]
fn states_that_grow_are_stored() {
    let Some(cc) = compiler() else { return };
    for (name, step) in [
        ("delta", in_step(&support::rule::<support::Delta>(dims(16, 16)))),
        ("ragged", in_step(&support::rule::<support::Delta>(dims(5, 11)))),
        ("blocks", in_step(&support::rule::<support::Delta>(dims(32, 160)))),
    ] {
        let compiled = compile(&cc, &step, SINGLE);
        // Squares of the lengths of keys with which states stay as they are, grow slowly, and grow fast.
        for square in [1.0, 4.0, 10.0] {
            let key = step.states[0].state.shape[1];
            let mut w = draw(&step, 40, 2, 5, f64::sqrt(square / key as f64), 4);
            let want = interpreted(&step, &w);
            for (interval, early) in [(40, 35), (7, 3), (60, 0)] {
                (w.interval, w.early) = (interval, early);
                agree(&format!("{name}, keys {square}, {interval} steps"), &compiled.run(&step, &w), &want, 1e-4);
            }
        }
    }
}

// What is written takes a long way to it.
rule!(LongWay, |dims| Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let v = s.repeat(500, &[&v], &[&k], |v, x| vec![(&v[0] * &v[0] + &v[0] * x[0].sum()).tanh()]);
    let w = s.state("w");
    let w = &w + outer(&v[0] - w.matvec(&k), &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});

/// A step whose text is too long with states computed back, where it holds the step back twice, stores them.
#[test]
fn a_long_step_stores_its_states() {
    let kernel = generate(&in_step(&support::rule::<LongWay>(dims(8, 8))), SINGLE).unwrap();
    assert!(!kernel.computed_back && has_room(&kernel, 8 * 8 * 4));
}

// Written out, its loop is more than a compiler should be given.
rule!(Endless, |dims| Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.repeat(1500, &[&s.state("w")], &[&v, &k], |w, x| vec![&w[0] + outer(x[0].tanh(), &x[1]) * w[0].square()]);
    s.output(w[0].matvec(&q));
    s.set_state("w", &w[0]);
});

// The feature map is in the step, and changes the number of features.
rule!(
    Mapping,
    |dims| Signature::new(dims).key("raw", [dims.key_raw]).raw().state("w", [dims.value, dims.key], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") + outer(v, k + s.phi(s.input("raw")));
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
);

/// What `plugins show` asks: is there a kernel, and if not, why?
#[test]
fn rules_alone() {
    let at = Dims { heads: 2, key_raw: 6, key: 6, value: 5, ..Dims::ONE };
    for (name, program) in [
        ("delta rnn", support::rule::<DeltaRnn>(at)),
        ("inner", support::rule::<Inner>(at)),
        ("mapping", support::rule::<Mapping>(at)),
        ("mapping to more", support::rule::<Mapping>(Dims { key: 12, ..at })),
    ] {
        let kernel = of_rule(&program, SINGLE).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(kernel.source.contains("fwp_backward"), "{name}");
    }
    // The same text as for the step with its inputs, where nothing can be taken out of it.
    let plain = support::rule::<Chained>(at);
    assert_eq!(of_rule(&plain, SINGLE).unwrap().operations, generate(&in_step(&plain), SINGLE).unwrap().operations);
    let why = of_rule(&support::rule::<Endless>(at), SINGLE).unwrap_err().to_string();
    assert_eq!(why, "no kernel: with its loops written out it has more than 4000 operations");
}
