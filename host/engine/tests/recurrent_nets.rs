//! LSTM, IRNN, associative LSTM and the fast weights of Ba et al. against plain loops.

mod support;

use fwp_engine::model::Model;
use fwp_map_identity::Identity;
use fwp_net_recurrent::{AssociativeLstm, FastWeightsRnn, Irnn, Lstm};
use fwp_rule_delta::Delta;
use fwp_rule_hebbian_decay::HebbianDecay;
use serde_json::{Value, json};
use support::loops::{
    Sequence, Vector, Weights, add, against, delta, dot, gradients, holds_along_time, map, mul, net, relu, sigmoid, times, zeros,
};
use support::{close, slot};

const HIDDEN: usize = 6;

fn with_ends(mut config: Value, more: Value) -> Value {
    let all = config.as_object_mut().unwrap();
    all.extend(json!({ "embedding": 4, "hidden": HIDDEN }).as_object().unwrap().clone());
    all.extend(more.as_object().unwrap().clone());
    config
}

fn lstm(more: Value) -> Model {
    net::<Lstm>(with_ends(json!({ "layers": 2, "forget_bias": 1.0, "embedding_std": 1.0 }), more), None)
}
fn irnn(more: Value) -> Model {
    net::<Irnn>(with_ends(json!({ "input_std": 0.5, "identity": 0.3 }), more), None)
}
fn associative(more: Value) -> Model {
    net::<AssociativeLstm>(with_ends(json!({ "copies": 3 }), more), None)
}
fn ba(more: Value) -> Model {
    let slot = slot::<HebbianDecay, Identity>(json!({ "lambda": 0.9, "eta": 0.02 }), json!({}), 1, HIDDEN, HIDDEN);
    net::<FastWeightsRnn>(with_ends(json!({}), more), Some(slot))
}
fn ba_with_delta() -> Model {
    let slot = slot::<Delta, Identity>(json!({}), json!({}), 1, HIDDEN, HIDDEN);
    net::<FastWeightsRnn>(with_ends(json!({ "inner_steps": 2 }), json!({})), Some(slot))
}

/// From hidden vectors to logits.
fn read_out(w: &Weights, h: Sequence, readout: bool) -> Sequence {
    let last = |h: Vector| if readout { map(&w.affine("readout", &h), relu) } else { h };
    h.into_iter().map(|h| w.affine("lm_head", &last(h))).collect()
}

#[test]
fn the_lstm_is_its_loop() {
    against(&lstm(json!({})), "lstm", |w, tokens| {
        let mut x = w.embedded(tokens);
        for layer in ["layers.0.", "layers.1."] {
            let w = w.below(layer);
            let (mut h, mut c) = (vec![0.0; HIDDEN], vec![0.0; HIDDEN]);
            for x in &mut x {
                let z = add(&w.affine("x_proj", x), &w.linear("h_proj", &h));
                let part = |i: usize| z[i * HIDDEN..(i + 1) * HIDDEN].to_vec();
                let kept = mul(&map(&part(1), sigmoid), &c);
                c = add(&kept, &mul(&map(&part(0), sigmoid), &map(&part(2), f64::tanh)));
                h = mul(&map(&part(3), sigmoid), &map(&c, f64::tanh));
                *x = h.clone();
            }
        }
        read_out(w, x, false)
    });
}

#[test]
fn the_irnn_is_its_loop() {
    for norm in [false, true] {
        against(&irnn(json!({ "readout": 3, "layer_norm": norm })), "irnn", |w, tokens| {
            let mut h = vec![0.0; HIDDEN];
            let step = |x: &Vector| {
                let z = add(&w.affine("x_proj", x), &w.linear("cell.h_proj", &h));
                h = map(&if norm { w.layer_norm("cell.norm", &z, 1e-5) } else { z }, relu);
                h.clone()
            };
            read_out(w, w.embedded(tokens).iter().map(step).collect(), true)
        });
    }
}

#[test]
fn the_associative_lstm_is_its_loop() {
    const N: usize = HIDDEN / 2;
    type Complex = Vec<(f64, f64)>;
    let bound = |z: (f64, f64)| {
        let length = z.0.hypot(z.1).max(1.0);
        (z.0 / length, z.1 / length)
    };
    let product = |a: (f64, f64), b: (f64, f64)| (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0);
    let m = associative(json!({}));
    against(&m, "associative lstm", |w, tokens| {
        let permutations = w.matrix("cell.permutations");
        // Every row and every column of each copy has a single one.
        for copy in permutations.chunks(N) {
            for i in 0..N {
                assert_eq!(copy[i].iter().sum::<f64>(), 1.0);
                assert_eq!(copy.iter().map(|row| row[i]).sum::<f64>(), 1.0);
            }
        }
        let place = |copy: usize, i: usize| permutations[copy * N + i].iter().position(|p| *p == 1.0).unwrap();
        let mut h = vec![0.0; HIDDEN];
        let mut c: Vec<Complex> = vec![vec![(0.0, 0.0); N]; 3];
        let step = |x: &Vector| {
            let z = add(&w.affine("x_proj", x), &w.linear("cell.h_proj", &h));
            let gate = |g: usize, i: usize| sigmoid(z[g * N + i]);
            let vector = |v: usize, i: usize| bound((z[(3 + 2 * v) * N + i], z[(4 + 2 * v) * N + i]));
            for i in 0..N {
                let mut sum = (0.0, 0.0);
                for (copy, c) in c.iter_mut().enumerate() {
                    let u = vector(0, i);
                    let key = vector(1, place(copy, i));
                    let written = product(key, (gate(1, i) * u.0, gate(1, i) * u.1));
                    c[i] = (gate(0, i) * c[i].0 + written.0, gate(0, i) * c[i].1 + written.1);
                    let read = product(vector(2, place(copy, i)), c[i]);
                    sum = (sum.0 + read.0 / 3.0, sum.1 + read.1 / 3.0);
                }
                let y = bound(sum);
                (h[i], h[N + i]) = (gate(2, i) * y.0, gate(2, i) * y.1);
            }
            h.clone()
        };
        read_out(w, w.embedded(tokens).iter().map(step).collect(), false)
    });
}

/// One of the forms of the net of Ba et al.
#[derive(Clone, Copy)]
struct Form {
    steps: usize,
    norm: bool,
    norm_start: bool,
    identity: bool,
    lag: bool,
}

/// The inner loop with whatever reads and writes the fast weights.
fn settled(
    w: &Weights,
    tokens: &[usize],
    form: Form,
    read: impl Fn(&[Vector], &[f64]) -> Vector,
    mut write: impl FnMut(&mut Vec<Vector>, &[f64]),
) -> Sequence {
    let w_cell = w.below("cell.");
    let normalised = |z: Vector, norm: bool| if norm { w_cell.layer_norm("norm", &z, 1e-5) } else { z };
    let mut h = vec![0.0; HIDDEN];
    let mut store: Vec<Vector> = Vec::new();
    let step = |x: &Vector| {
        let z = add(&w.linear("x_proj", x), &w_cell.linear("h_proj", &h));
        let mut inner = map(&normalised(z.clone(), form.norm_start), relu);
        for _ in 0..form.steps {
            let sum = add(if form.identity { &inner } else { &z }, &read(&store, &inner));
            inner = map(&normalised(sum, form.norm), relu);
        }
        let old = std::mem::replace(&mut h, inner);
        write(&mut store, if form.lag { &old } else { &h });
        h.clone()
    };
    w.embedded(tokens).iter().map(step).collect()
}

#[test]
fn the_fast_weights_of_ba_et_al_are_attention_to_the_recent_past() {
    let plain = Form { steps: 1, norm: true, norm_start: false, identity: false, lag: false };
    for form in [
        plain,
        Form { steps: 3, ..plain },
        Form { steps: 2, norm: false, ..plain },
        Form { norm_start: true, lag: true, ..plain },
        Form { steps: 2, identity: true, ..plain },
    ] {
        let m = ba(json!({
            "inner_steps": form.steps, "layer_norm": form.norm, "norm_start": form.norm_start,
            "sustain": if form.identity { "identity" } else { "input" }, "lag": form.lag,
        }));
        // A h = eta sum_s lambda^(t - s) h(s) <h(s), h>; the matrix A itself is never made.
        let read = |store: &[Vector], h: &[f64]| {
            let mut sum = vec![0.0; HIDDEN];
            for (age, old) in store.iter().rev().enumerate() {
                let weight = 0.02 * 0.9f64.powi(age as i32) * dot(old, h);
                sum = add(&sum, &map(old, |x| weight * x));
            }
            sum
        };
        against(&m, "fast weights", |w, tokens| {
            read_out(w, settled(w, tokens, form, read, |store, h| store.push(h.to_vec())), false)
        });
    }
}

#[test]
fn any_rule_stands_in_the_net_of_ba_et_al() {
    let form = Form { steps: 2, norm: true, norm_start: false, identity: false, lag: false };
    against(&ba_with_delta(), "delta in the inner loop", |w, tokens| {
        let beta = w.matrix("cell.beta_proj.weight");
        let read = |a: &[Vector], h: &[f64]| if a.is_empty() { vec![0.0; HIDDEN] } else { times(a, h) };
        let write = |a: &mut Vec<Vector>, h: &[f64]| {
            if a.is_empty() {
                *a = zeros(HIDDEN, HIDDEN);
            }
            delta(a, h, h, dot(&beta[0], h));
        };
        read_out(w, settled(w, tokens, form, read, write), false)
    });
}

#[test]
fn without_inner_steps_there_are_no_fast_weights() {
    let more = json!({ "inner_steps": 0, "norm_start": true });
    let m = net::<FastWeightsRnn>(with_ends(json!({}), more), None);
    let form = Form { steps: 0, norm: true, norm_start: true, identity: false, lag: false };
    against(&m, "no inner steps", |w, tokens| read_out(w, settled(w, tokens, form, |_, h| h.to_vec(), |_, _| {}), false));
}

#[test]
fn they_hold_along_time() {
    for (what, m) in [
        ("lstm", lstm(json!({}))),
        ("irnn", irnn(json!({}))),
        ("associative lstm", associative(json!({}))),
        ("fast weights", ba(json!({ "inner_steps": 2 }))),
        ("fast weights that lag", ba(json!({ "lag": true }))),
        ("delta in the inner loop", ba_with_delta()),
    ] {
        holds_along_time(&m, what);
    }
}

#[test]
fn compiled_kernels_give_the_same_numbers_and_gradients() {
    let all = || [lstm(json!({})), irnn(json!({ "layer_norm": true })), associative(json!({})), ba(json!({})), ba_with_delta()];
    let wanted: Vec<_> = all().iter().map(gradients).collect();
    let compare = |found: Vec<Vec<(String, tch::Tensor)>>| {
        for (found, wanted) in found.iter().zip(&wanted) {
            for ((name, a), (_, b)) in found.iter().zip(wanted) {
                close(a, b, 1e-10, name);
            }
        }
    };
    support::with_kernels(|| compare(all().iter().map(gradients).collect()));
    support::by_kernels(&[
        the_lstm_is_its_loop,
        the_irnn_is_its_loop,
        the_associative_lstm_is_its_loop,
        the_fast_weights_of_ba_et_al_are_attention_to_the_recent_past,
        any_rule_stands_in_the_net_of_ba_et_al,
        they_hold_along_time,
    ]);
}
