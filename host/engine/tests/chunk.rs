//! The chunkwise executor against the reference, for rules that are written as one step and say nothing of chunks.

#[macro_use]
mod support;

use std::sync::Arc;

use fwp_engine::command::apply::apply;
use fwp_engine::exec::choose::{Executor, Executors, Policy};
use fwp_engine::exec::value::Precision;
use fwp_program::analysis::{Canonical, Stratum, analyse};
use fwp_sdk::Part;
use fwp_sdk::prelude::*;
use fwp_sdk::program::Program;
use serde_json::json;
use support::interpreted::{File, Trial, file};
use support::{Numbers, identity, rule};
use tch::{Device, Kind};

/// A matrix `[value, key]` that starts at zero.
fn matrix(d: Dims) -> Signature {
    Signature::new(d).state("w", [d.value, d.key], StateStart::Zeros)
}

rules! {
    ScalarDecay "scalar-decay" (d) matrix(d).signal("alpha", []);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.signal("alpha").sigmoid() * s.state("w") + outer(v, k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    // A decay of either sign.
    Signed "signed" (d) matrix(d).signal("alpha", []);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.signal("alpha").tanh() * s.state("w") + outer(v, k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    VectorDecay "vector-decay" (d) matrix(d).signal("gate", [d.key]);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w").scale_columns(s.signal("gate").sigmoid()) + outer(v, k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    // Gates on the side of the values, the gate also writing.
    Slots "slots" (d) matrix(d).signal("gate", [d.value]);
    |s| {
        let (q, k, _) = s.query_key_value();
        let gate = s.signal("gate").sigmoid();
        let w = s.state("w").scale_rows(&gate) + outer(1.0 - &gate, k);
        s.output(w.matvec(q).softmax());
        s.set_state("w", w);
    }

    // Read before the write, with a bonus for the key of the step.
    Bonus "bonus" (d) matrix(d).signal("gate", [d.key]).parameter("u", [d.key], Init::normal(0.5));
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w");
        let bonus = (&q * s.parameter("u")).dot(&k);
        s.output(w.matvec(&q) + bonus * &v);
        s.set_state("w", w.scale_columns(s.signal("gate").sigmoid()) + outer(v, k));
    }

    GatedDelta "gated-delta" (d) matrix(d).signal("beta", []).signal("alpha", []);
    |s| {
        let (q, k, v) = s.query_key_value();
        let k = k.l2_normalise(1e-6);
        let w = s.signal("alpha").sigmoid() * s.state("w");
        let w = &w + 2.0 * s.signal("beta").sigmoid() * outer(v - w.matvec(&k), &k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    Kimi "kimi" (d) matrix(d).signal("beta", []).signal("gate", [d.key]);
    |s| {
        let (q, k, v) = s.query_key_value();
        let k = k.l2_normalise(1e-6);
        let w = s.state("w").scale_columns(s.signal("gate").sigmoid());
        let w = &w + s.signal("beta").sigmoid() * outer(v - w.matvec(&k), &k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    // What is erased is read before the decay, and differs from what is written.
    Comba "comba" (d) matrix(d).signal("beta", []).signal("alpha", []).parameter("share", [], Init::constant(0.4));
    |s| {
        let (q, k, v) = s.query_key_value();
        let k = k.l2_normalise(1e-6);
        let p = s.parameter("share").sigmoid() * &k;
        let w = s.state("w");
        let w = s.signal("alpha").sigmoid() * &w + s.signal("beta").sigmoid() * outer(v - w.matvec(&p), &k);
        s.output(w.matvec(&q - 0.3 * &p));
        s.set_state("w", w);
    }

    // Diagonal plus low rank: two different keys.
    Rwkv "rwkv" (d) matrix(d).signal("rate", [d.key]).signal("gate", [d.key]);
    |s| {
        let (q, k, v) = s.query_key_value();
        let (kappa, rate) = (k.l2_normalise(1e-6), s.signal("rate").sigmoid());
        let w = s.state("w");
        let erased = outer(w.matvec(&kappa), &rate * &kappa);
        let w = w.scale_columns((-0.6065 * s.signal("gate").sigmoid()).exp()) - erased + outer(v, &k * (1.0 + (&rate - 1.0) * 0.7));
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    Product "product" (d)
        Signature::without_inputs(d).query("q", [d.key]).key("k", [d.key]).count(3).value("v", [d.value]).count(3)
            .signal("beta", [3]).signal("alpha", []).state("w", [d.value, d.key], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let beta = 2.0 * s.signal("beta").sigmoid();
        let mut w = s.signal("alpha").sigmoid() * s.state("w");
        for i in 0..3 {
            let k = k.at(i).l2_normalise(1e-6);
            w = &w + beta.at(i) * outer(v.at(i) - w.matvec(&k), &k);
        }
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    // The transition acts from the left.
    Oja "oja" (d) matrix(d).signal("beta", []);
    |s| {
        let (q, k, v) = s.query_key_value();
        let v = v.l2_normalise(1e-6);
        let w = s.state("w");
        let w = &w + s.signal("beta").sigmoid() * outer(&v, &k - w.matvec_t(&v));
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    // An attention normaliser, which the update uses too: two states, one after the other.
    Normalised "normalised" (d) matrix(d).signal("beta", []).state("z", [d.key], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let (q, k) = (q.exp(), k.exp());
        let (w, z) = (s.state("w"), s.state("z"));
        let beta = s.signal("beta").sigmoid();
        let old = w.matvec(&k).div_or(z.dot(&k), 0.0);
        let (w, z) = (&w + beta * outer(v - old, &k), &z + &k);
        s.output(w.matvec(&q) / (z.dot(&q) + 1e-6));
        s.set_state("w", w);
        s.set_state("z", z);
    }

    // Initial states that are trained, which resets bring back.
    Trained "trained" (d) Signature::new(d).signal("gate", [d.key]).state("w", [d.value, d.key], StateStart::Trained(Init::normal(0.5)));
    |s| {
        let (q, k, v) = s.query_key_value();
        let k = k.l2_normalise(1e-6);
        let w = s.state("w").scale_columns(s.signal("gate").sigmoid());
        let w = &w + outer(v - w.matvec(&k), &k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    // The keys come from a state inside of a tanh, which has to be walked.
    Recurrent "recurrent" (d) matrix(d).signal("alpha", []).state("h", [d.key], StateStart::Constant(0.1));
    |s| {
        let (q, k, v) = s.query_key_value();
        let h = (s.state("h") + &k).tanh();
        let w = s.signal("alpha").sigmoid() * s.state("w") + outer(v, &h);
        s.output(w.matvec(q));
        s.set_state("w", w);
        s.set_state("h", h);
    }
}

type Make = fn(Dims) -> Program;

fn made<R: UpdateRule>(d: Dims) -> Program {
    fwp_sdk::testing::rule::<R>(json!({}), d).unwrap_or_else(|e| panic!("{e}"))
}

fn delta(d: Dims) -> Program {
    rule(Part::update_rule::<fwp_rule_delta::Delta>(), "delta", json!({}), d)
}

fn additive(d: Dims) -> Program {
    rule(Part::update_rule::<fwp_rule_additive::Additive>(), "additive", json!({}), d)
}

/// Every rule of this test.
const RULES: [Make; 16] = [
    delta,
    additive,
    made::<ScalarDecay>,
    made::<Signed>,
    made::<VectorDecay>,
    made::<Slots>,
    made::<Bonus>,
    made::<GatedDelta>,
    made::<Kimi>,
    made::<Comba>,
    made::<Rwkv>,
    made::<Product>,
    made::<Oja>,
    made::<Normalised>,
    made::<Trained>,
    made::<Recurrent>,
];

fn dims(key: usize, value: usize) -> Dims {
    Dims { heads: 2, key_raw: key, key, value, ..Dims::ONE }
}

fn canonical(rule: &Program) -> Canonical {
    let name = &rule.name;
    analyse(rule).unwrap().canonical.unwrap_or_else(|why| panic!("`{name}` has no chunkwise form: {why}"))
}

fn walked(rule: &Program, key: usize, inputs: &File, kind: Kind, executor: Executor) -> File {
    let precision = Precision { kind, device: Device::Cpu };
    let executors = Arc::new(Executors::new(Policy::Only(executor)));
    apply(rule, &identity(key), inputs, precision, true, &executors)
        .unwrap_or_else(|e| panic!("{executor} for `{}`: {e:#}", rule.name))
}

/// Outputs, last states and all gradients of both executors.
fn agree(rule: &Program, key: usize, trial: &Trial) {
    let mut numbers = Numbers::new(trial.steps as u64);
    let mut inputs = file(rule, &identity(key), trial, &mut numbers);
    let plain = support::run(rule, &identity(key), &inputs, false);
    for (name, t) in plain.iter().filter(|(n, _)| !n.starts_with("state.")) {
        inputs.insert(format!("grad.{name}"), numbers.tensor(&t.size()));
    }
    let wanted = walked(rule, key, &inputs, Kind::Double, Executor::Reference);
    for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 1e-5)] {
        let reference = walked(rule, key, &inputs, kind, Executor::Reference);
        let found = walked(rule, key, &inputs, kind, Executor::Chunkwise);
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
        for (name, t) in &wanted {
            // What the reference loses in the same precision may be lost.
            let scale = t.abs().max().double_value(&[]).max(1e-3);
            let lost = (reference[name].to_kind(Kind::Double) - t).abs().max().double_value(&[]) / scale;
            let what = format!(
                "{name} of `{}`, {kind:?}, {} steps, states {}, resets {}, masked {}",
                rule.name, trial.steps, trial.states, trial.resets, trial.masked
            );
            support::close(&found[name].to_kind(Kind::Double), t, f64::max(tolerance, 4.0 * lost), &what);
        }
    }
}

#[test]
fn delta_has_a_chunkwise_form_that_serves() {
    let rule = delta(dims(16, 16));
    let form = canonical(&rule);
    let [Stratum::Chunk(form)] = &form.strata[..] else { panic!("{form:?}") };
    assert_eq!((form.segments.len(), form.segments[0].terms.len(), form.reads.len()), (1, 1, 1));
    let inputs = file(&rule, &identity(16), &Trial::new(1, 64, 1), &mut Numbers::new(5));
    let precision = Precision { kind: Kind::Float, device: Device::Cpu };
    let executors = Arc::new(Executors::new(Policy::Only(Executor::Chunkwise)));
    apply(&rule, &identity(16), &inputs, precision, false, &executors).unwrap();
    let chosen: Vec<Executor> = executors.choices().iter().map(|c| c.executor).collect();
    assert_eq!(chosen, [Executor::Chunkwise]);
}

#[test]
fn every_rule_agrees_with_the_reference_at_every_length() {
    for make in RULES {
        let (equal, primes): (&[i64], &[i64]) = (&[1, 2, 15, 16, 17, 63, 64, 65, 100], &[1, 17, 64]);
        for (key, value, lengths) in [(4, 4, equal), (5, 3, primes)] {
            let rule = make(dims(key, value));
            canonical(&rule);
            for &steps in lengths {
                agree(&rule, key, &Trial { states: steps % 2 == 0, ..Trial::new(1, steps, 2) });
            }
        }
    }
}

#[test]
fn resets_and_masked_writes_are_those_of_the_reference() {
    for make in RULES {
        let rule = make(dims(5, 7));
        for (states, resets, masked) in [(false, true, false), (true, false, true), (true, true, true)] {
            agree(&rule, 5, &Trial { states, resets, masked, ..Trial::new(3, 37, 2) });
        }
    }
}

/// What is written at one step rounds what is read at others no more than it must: where a state only grows, steps before it know nothing of it.
#[test]
fn a_large_write_is_not_felt_at_the_steps_before_it() {
    let (steps, key) = (40, 8);
    let rule = additive(dims(key, key));
    let mut numbers = Numbers::new(3);
    let mut inputs = file(&rule, &identity(key), &Trial::new(1, steps, 1), &mut numbers);
    for name in ["k", "v"] {
        _ = inputs[name].narrow(1, steps - 1, 1).g_mul_scalar_(1000.0);
    }
    let plain = support::run(&rule, &identity(key), &inputs, false);
    inputs.insert("grad.o".into(), numbers.tensor(&plain["o"].size()));
    let wanted = walked(&rule, key, &inputs, Kind::Double, Executor::Reference);
    for executor in [Executor::Scan, Executor::Chunkwise] {
        let found = walked(&rule, key, &inputs, Kind::Float, executor);
        for t in 0..steps {
            let at = |f: &File| f["grad.q"].select(1, t).to_kind(Kind::Double);
            support::close(&at(&found), &at(&wanted), 1e-5, &format!("{executor}, grad.q of step {t}"));
        }
    }
}

#[test]
fn long_sequences_agree() {
    for make in RULES {
        let rule = make(dims(16, 16));
        agree(&rule, 16, &Trial::new(1, 257, 1));
    }
}

#[test]
fn a_state_in_a_tanh_is_walked_and_the_rest_is_not() {
    let form = canonical(&made::<Recurrent>(dims(5, 3)));
    assert!(matches!(&form.strata[..], [Stratum::Walk(_), Stratum::Chunk(_)]), "{form:?}");
}
