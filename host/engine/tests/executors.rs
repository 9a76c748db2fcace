//! The fast executors against the reference, on rules that are known and rules that nobody anticipated.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use fwp_engine::command::apply::apply;
use fwp_engine::exec::choose::{Executor, Executors, Policy, Refused};
use fwp_engine::exec::kernel::buffers::poison;
use fwp_engine::exec::value::Precision;
use fwp_engine::model::Model;
use fwp_engine::train::{Pass, TrainModel};
use fwp_sdk::Part;
use fwp_sdk::prelude::*;
use fwp_sdk::program::Program;
use serde_json::json;
use support::interpreted::{File, Trial, file};
use support::{Numbers, compose, identity, rule, sequence_task};
use tch::{Device, Kind, Tensor};

fn only(executor: Executor) -> Arc<Executors> {
    Arc::new(Executors::new(Policy::Only(executor)))
}

fn delta(dk: usize, dv: usize) -> Program {
    rule(
        Part::update_rule::<fwp_rule_delta::Delta>(),
        "delta",
        json!({}),
        Dims { key_raw: dk, key: dk, value: dv, heads: 2, ..Dims::ONE },
    )
}

/// Outputs, states and gradients.
fn walked(rule: &Program, dk: usize, inputs: &File, kind: Kind, executor: Executor) -> Result<File, anyhow::Error> {
    mapped(rule, &identity(dk), inputs, kind, &only(executor))
}

fn mapped(rule: &Program, map: &Program, inputs: &File, kind: Kind, executors: &Arc<Executors>) -> Result<File, anyhow::Error> {
    let precision = Precision { kind, device: Device::Cpu };
    poison(true);
    let found = apply(rule, map, inputs, precision, true, executors);
    poison(false);
    found
}

fn with_gradients(rule: &Program, dk: usize, trial: &Trial) -> File {
    with_gradients_of(rule, &identity(dk), trial)
}

fn with_gradients_of(rule: &Program, map: &Program, trial: &Trial) -> File {
    let mut numbers = Numbers::new(7);
    let mut inputs = file(rule, map, trial, &mut numbers);
    let plain = support::run(rule, map, &inputs, false);
    for (name, t) in plain.iter().filter(|(n, _)| !n.starts_with("state.")) {
        inputs.insert(format!("grad.{name}"), numbers.tensor(&t.size()));
    }
    inputs
}

fn agree(rule: &Program, dk: usize, trial: &Trial, executor: Executor) {
    let inputs = with_gradients(rule, dk, trial);
    let wanted = walked(rule, dk, &inputs, Kind::Double, Executor::Reference).unwrap();
    for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 1e-4)] {
        let found = match walked(rule, dk, &inputs, kind, executor) {
            Ok(found) => found,
            Err(e) => panic!("{executor}: {e:#}"),
        };
        // What the reference loses in the same precision, by a badly conditioned division say, is no fault of the executor.
        let reference = walked(rule, dk, &inputs, kind, Executor::Reference).unwrap();
        for (name, t) in &wanted {
            let scale = t.abs().max().double_value(&[]).max(1e-3);
            let lost = (reference[name].to_kind(Kind::Double) - t).abs().max().double_value(&[]) / scale;
            let tolerance = f64::max(tolerance, 4.0 * lost);
            support::close(&found[name].to_kind(Kind::Double), t, tolerance, &format!("{executor} {kind:?} {name}"));
        }
    }
}

#[test]
fn a_scan_of_the_delta_rule_is_the_reference() {
    for (b, t, h, dk, dv) in [(3, 3, 3, 3, 3), (2, 11, 3, 5, 7), (1, 70, 2, 16, 32), (1, 5, 1, 64, 64), (2, 33, 1, 17, 31)] {
        let rule = delta(dk, dv);
        for (states, resets, masked) in [(false, false, false), (true, false, false), (true, true, true), (false, true, false)] {
            agree(&rule, dk, &Trial { states, resets, masked, ..Trial::new(b, t, h) }, Executor::Scan);
        }
    }
}

/// Keys and queries go into the kernel as they are before the map, whatever that does with its features.
#[test]
fn a_feature_map_is_part_of_the_kernel() {
    for (d, nu, normalise, dv) in [(5, 1, "sum", 7), (5, 3, "l2", 3), (32, 1, "l2", 20), (11, 2, "sum", 40), (64, 1, "sum", 20)] {
        let m = 2 * nu * d;
        let settings = json!({ "nu": nu, "normalise": normalise });
        let map = support::map(Part::feature_map::<fwp_map_dpfp::Dpfp>(), "dpfp", settings, d);
        let dims = Dims { key_raw: d, key: m, value: dv, heads: 2, ..Dims::ONE };
        let rule = rule(Part::update_rule::<fwp_rule_delta::Delta>(), "delta", json!({}), dims);
        // Not near the kinks of the map, which two precisions meet on either side.
        let trial = Trial { states: true, resets: true, masked: true, offset: 1.5, ..Trial::new(2, 21, 2) };
        let inputs = with_gradients_of(&rule, &map, &trial);
        let reference = |kind| mapped(&rule, &map, &inputs, kind, &only(Executor::Reference)).unwrap();
        let wanted = reference(Kind::Double);
        for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 1e-4)] {
            let executors = only(Executor::Scan);
            let found = mapped(&rule, &map, &inputs, kind, &executors).unwrap();
            assert_eq!(executors.choices()[0].details["feature_map_inside"], true, "{d} {nu} {normalise}");
            let plain = reference(kind);
            for (name, t) in &wanted {
                let scale = t.abs().max().double_value(&[]).max(1e-3);
                let lost = (plain[name].to_kind(Kind::Double) - t).abs().max().double_value(&[]) / scale;
                let what = format!("{d} {nu} {normalise} {kind:?} {name}");
                support::close(&found[name].to_kind(Kind::Double), t, f64::max(tolerance, 4.0 * lost), &what);
            }
        }
    }
}

#[test]
fn the_normalised_additive_rule_too() {
    for (b, t, h, dk, dv) in [(3, 3, 3, 3, 3), (2, 11, 3, 5, 7), (1, 40, 2, 24, 16)] {
        let dims = Dims { key_raw: dk, key: dk, value: dv, heads: 2, ..Dims::ONE };
        let rule = rule(
            Part::update_rule::<fwp_rule_additive::Additive>(),
            "additive",
            json!({ "attention_normalisation": true }),
            dims,
        );
        // Away from zero, where the normaliser divides.
        let trial = Trial { states: false, resets: true, masked: true, offset: 1.5, ..Trial::new(b, t, h) };
        agree(&rule, dk, &trial, Executor::Scan);
    }
}

/// The state of one half handed to the next is one pass.
#[test]
fn a_memory_carried_over_two_halves_is_one_pass() {
    let (dk, dv) = (12, 20);
    let rule = delta(dk, dv);
    let inputs = with_gradients(&rule, dk, &Trial::new(2, 50, 2));
    let whole = walked(&rule, dk, &inputs, Kind::Double, Executor::Scan).unwrap();
    let half = |from: i64, length: i64, state: Option<&Tensor>| {
        let cut = |(n, t): (&String, &Tensor)| match n.starts_with("grad.state") {
            true => None,
            false => Some((n.clone(), t.narrow(1, from, length))),
        };
        let mut part: File = inputs.iter().filter_map(cut).collect();
        part.extend(state.map(|s| ("state.w".to_string(), s.shallow_clone())));
        walked(&rule, dk, &part, Kind::Double, Executor::Scan).unwrap()
    };
    let first = half(0, 23, None);
    let second = half(23, 27, Some(&first["state.w"]));
    assert_eq!(Tensor::cat(&[&first["o"], &second["o"]], 1), whole["o"]);
    assert_eq!(second["state.w"], whole["state.w"]);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let rule = delta(32, 48);
    let inputs = with_gradients(&rule, 32, &Trial { resets: true, masked: true, ..Trial::new(3, 65, 2) });
    let threads = tch::get_num_threads();
    let all: Vec<File> = [1, 2, 3]
        .map(|n| {
            tch::set_num_threads(n);
            walked(&rule, 32, &inputs, Kind::Float, Executor::Scan).unwrap()
        })
        .into();
    tch::set_num_threads(threads);
    for (name, t) in &all[0] {
        assert!(all[1..].iter().all(|other| other[name] == *t), "{name}");
    }
}

#[test]
fn what_comes_in_as_nan_goes_out_as_nan() {
    let rule = delta(8, 16);
    let mut inputs = with_gradients(&rule, 8, &Trial::new(1, 9, 2));
    let k = inputs.remove("k").unwrap();
    let _ = k.get(0).get(4).get(1).get(3).fill_(f64::NAN);
    inputs.insert("k".into(), k);
    let found = walked(&rule, 8, &inputs, Kind::Float, Executor::Scan).unwrap();
    let o = &found["o"];
    assert!(o.get(0).narrow(0, 0, 4).isnan().any().int64_value(&[]) == 0, "nothing before it");
    assert!(o.get(0).narrow(0, 5, 4).select(1, 1).isnan().all().int64_value(&[]) == 1, "everything after it");
    assert!(o.get(0).select(1, 0).isnan().any().int64_value(&[]) == 0, "the other head");
}

#[test]
fn an_executor_that_does_not_serve_is_refused_with_the_reason() {
    assert!("slow".parse::<Policy>().unwrap_err().contains("auto, reference, chunkwise or scan"));
    for policy in ["auto", "reference", "chunkwise", "scan"] {
        assert_eq!(policy.parse::<Policy>().unwrap().to_string(), policy);
    }
    let rule = delta(3, 3);
    let inputs = with_gradients(&rule, 3, &Trial::new(1, 3, 1));
    let half = Precision { kind: Kind::Half, device: Device::Cpu };
    let error = apply(&rule, &identity(3), &inputs, half, false, &only(Executor::Scan)).unwrap_err();
    assert!(error.chain().any(|c| c.is::<Refused>()), "{error:#}");
    let text = format!("{error:#}");
    assert!(text.contains("--exec scan does not serve update rule `delta`") && text.contains("Half"), "{text}");
}

#[test]
fn large_states_and_long_sequences_go_in_chunks() {
    for (d, steps, wanted) in [(192, 64, Executor::Chunkwise), (192, 16, Executor::Scan), (160, 64, Executor::Scan)] {
        let rule = delta(d, d);
        let inputs = with_gradients(&rule, d, &Trial::new(1, steps, 1));
        let executors = Arc::new(Executors::new(Policy::Auto));
        apply(&rule, &identity(d), &inputs, Precision { kind: Kind::Float, device: Device::Cpu }, true, &executors).unwrap();
        let choice = &executors.choices()[0];
        assert_eq!(choice.executor, wanted, "{d}, {steps}: {}", choice.line());
    }
}

#[test]
fn a_choice_is_made_once_and_described() {
    let rule = delta(6, 6);
    let inputs = with_gradients(&rule, 6, &Trial::new(2, 10, 1));
    let executors = Arc::new(Executors::new(Policy::Auto));
    for _ in 0..3 {
        apply(&rule, &identity(6), &inputs, support::DOUBLE, false, &executors).unwrap();
    }
    let choices = executors.choices();
    // A slot that is made anew is a case of its own.
    assert_eq!(choices.len(), 3);
    let record = choices[0].record();
    assert_eq!((&record["rule"], &record["steps"], &record["samples"]), (&json!("delta"), &json!(10), &json!(2)));
    assert!(choices[0].line().contains("for `delta`"), "{}", choices[0].line());
    assert!(executors.take_notices().is_empty());
}

config! {
    /// A net of this test.
    pub struct Gru {}
}

impl SlowNet for Gru {
    const NAME: &'static str = "gru";
    const CITATION: &'static str = "test";
    fn memory(&self, _: &TaskIo, _: &str) -> Memory {
        Memory { heads: 2, key: 3, value: 2 }
    }
    /// Two carried values, one trained at its start, gates, a constant in the cell, and an output that is not a state.
    fn forward(&self, net: &mut Net) {
        let net = &*net;
        let x = net.input("x");
        let normal = || Init::normal(0.4);
        let (h, c) = (net.parameter("h0", &[WIDTH], normal()), net.full(&[WIDTH], 0.0));
        let (_, out) = net.recurrent("cell", &[&h, &c], &[&x], |net, s, x| {
            let both = |name: &str| {
                net.linear(&format!("{name}_x"), &x[0], WIDTH, normal())
                    + net.linear(&format!("{name}_h"), &s[0], WIDTH, normal())
            };
            let (keep, candidate) = (both("keep").sigmoid(), both("candidate").tanh());
            let c = &keep * &s[1] + (1.0 - &keep) * candidate;
            let h = c.tanh();
            (vec![h.clone(), c.clone()], vec![h * 2.0 + &x[0], keep])
        });
        net.output("y", &(&out[0] * &out[1]));
    }
}

const WIDTH: usize = 6;

/// Cells are walked as rules are: everything that is computed once or for all steps is, and the rest is a kernel.
#[test]
fn a_recurrent_cell_is_the_same_by_every_executor() {
    let task = sequence_task(WIDTH, WIDTH);
    let programs = compose::<Gru>(json!({}), &task, None);
    let mut numbers = Numbers::new(3);
    let x = numbers.tensor(&[3, 11, WIDTH as i64]);
    let reset = Tensor::from_slice(&[0i64; 33]).reshape([3, 11]);
    let _ = reset.get(1).get(4).fill_(1);
    let weight = numbers.tensor(&[3, 11, WIDTH as i64]);
    let run = |policy: Policy, resets: bool| -> (Vec<Tensor>, Arc<Executors>) {
        let executors = Arc::new(Executors::new(policy));
        let model = Model::new(&programs, support::DOUBLE, 5, u64::MAX).unwrap().with_executors(executors.clone());
        let x = x.detach().set_requires_grad(true);
        let mut inputs = BTreeMap::from([("x".to_string(), x.shallow_clone())]);
        if resets {
            inputs.insert("reset".into(), reset.shallow_clone());
        }
        let carried = Pass { carry: true, ..support::TRAIN };
        let output = model.forward(&inputs, &carried, None).unwrap();
        let y = output.values["y"].shallow_clone();
        // The second call goes on where the first ended.
        let again = model.forward(&inputs, &Pass { resets: Some(vec![false, true, false]), ..carried }, output.carry).unwrap();
        let y2 = again.values["y"].shallow_clone();
        ((&y + &y2 * 0.5) * &weight).sum(Kind::Double).backward();
        let gradients = model.parameters().iter().map(|p| p.tensor.grad());
        ([y, y2, x.grad()].into_iter().chain(gradients).map(|t| t.detach().copy()).collect(), executors)
    };
    for resets in [false, true] {
        let (wanted, _) = run(Policy::Only(Executor::Reference), resets);
        for policy in [Policy::Auto, Policy::Only(Executor::Scan)] {
            let (found, executors) = run(policy, resets);
            for (i, (a, b)) in found.iter().zip(&wanted).enumerate() {
                support::close(a, b, 1e-11, &format!("{policy}, tensor {i}, resets {resets}"));
            }
            assert!(executors.choices().iter().all(|c| c.executor == Executor::Scan), "{:?}", executors.choices());
        }
    }
}
