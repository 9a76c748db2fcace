//! The reference executor against plain float64 loops written from the papers' equations.

mod support;

use std::collections::BTreeMap;

use fwp_sdk::Part;
use fwp_sdk::build::Dims;
use serde_json::json;
use support::{Numbers, StepInputs, against_oracle, close, identity, rule, run};
use tch::Tensor;

type Case = (Vec<Vec<f64>>, Vec<Vec<f64>>);

/// W_t = W_{t-1} + beta (v - W_{t-1} k) k^T, o = W_t q.
fn delta(steps: usize, x: StepInputs, states: &[Vec<f64>]) -> Case {
    let mut w = states[0].clone();
    let mut outputs = Vec::new();
    for t in 0..steps {
        let (q, k, v) = (x("q", t), x("k", t), x("v", t));
        let beta = 1.0 / (1.0 + (-x("beta", t)[0]).exp());
        let (dv, dk) = (v.len(), k.len());
        for i in 0..dv {
            let read: f64 = (0..dk).map(|j| w[i * dk + j] * k[j]).sum();
            for j in 0..dk {
                w[i * dk + j] += beta * (v[i] - read) * k[j];
            }
        }
        outputs.push((0..dv).map(|i| (0..dk).map(|j| w[i * dk + j] * q[j]).sum()).collect());
    }
    (outputs, vec![w])
}

/// W_t = W_{t-1} + v k^T and, normalised, z_t = z_{t-1} + k, o = W_t q / (<z_t, q> + eps).
fn additive(normalised: bool) -> impl Fn(usize, StepInputs, &[Vec<f64>]) -> Case {
    move |steps, x, states| {
        let mut w = states[0].clone();
        let mut z = states.get(1).cloned().unwrap_or_default();
        let mut outputs = Vec::new();
        for t in 0..steps {
            let (q, k, v) = (x("q", t), x("k", t), x("v", t));
            let (dv, dk) = (v.len(), k.len());
            for i in 0..dv {
                for j in 0..dk {
                    w[i * dk + j] += v[i] * k[j];
                }
            }
            let mut divisor = 1.0;
            if normalised {
                z.iter_mut().zip(&k).for_each(|(z, k)| *z += k);
                divisor = z.iter().zip(&q).map(|(z, q)| z * q).sum::<f64>() + 1e-6;
            }
            outputs.push((0..dv).map(|i| (0..dk).map(|j| w[i * dk + j] * q[j]).sum::<f64>() / divisor).collect());
        }
        (outputs, if normalised { vec![w, z] } else { vec![w] })
    }
}

/// All sizes equal, then all sizes different primes: no mix-up of axes survives both.
const SIZES: [(i64, i64, i64, usize, usize); 2] = [(3, 3, 3, 3, 3), (2, 11, 3, 5, 7)];

#[test]
fn delta_agrees_with_its_equation() {
    for (b, t, h, dk, dv) in SIZES {
        let program = delta_program(h as usize, dk, dv);
        let inputs = [("q", vec![dk]), ("k", vec![dk]), ("v", vec![dv]), ("beta", vec![])];
        for with_states in [false, true] {
            against_oracle(&program, &inputs, &[("w", vec![dv, dk])], (b, t, h), &delta, with_states);
        }
    }
}

#[test]
fn additive_agrees_with_its_equation() {
    for (b, t, h, dk, dv) in SIZES {
        let dims = Dims { heads: h as usize, key_raw: dk, key: dk, value: dv, ..Dims::ONE };
        let inputs = [("q", vec![dk]), ("k", vec![dk]), ("v", vec![dv])];
        let part = || Part::update_rule::<fwp_rule_additive::Additive>();
        let plain = rule(part(), "additive", json!({}), dims);
        against_oracle(&plain, &inputs, &[("w", vec![dv, dk])], (b, t, h), &additive(false), true);
    }
}

#[test]
fn attention_normalisation_agrees_with_its_equation() {
    // Positive keys and queries, as feature maps give them: the divisor stays away from zero.
    let (b, t, h, dk, dv) = (2, 7, 3, 5, 2);
    let dims = Dims { heads: h as usize, key_raw: dk, key: dk, value: dv, ..Dims::ONE };
    let program =
        rule(Part::update_rule::<fwp_rule_additive::Additive>(), "additive", json!({"attention_normalisation": true}), dims);
    let mut numbers = Numbers::new(5);
    let mut file = BTreeMap::new();
    for (name, d) in [("q", dk), ("k", dk), ("v", dv)] {
        let x = numbers.tensor(&[b, t, h, d as i64]);
        file.insert(name.to_string(), if name == "v" { x } else { x.abs() + 0.1 });
    }
    let result = run(&program, &identity(dk), &file, false);
    let oracle = additive(true);
    for sample in 0..b {
        for head in 0..h {
            let at = |name: &str, step: usize| support::values(&file[name].get(sample).get(step as i64).get(head));
            let (outputs, states) = oracle(t as usize, &at, &[vec![0.0; dv * dk], vec![0.0; dk]]);
            let flat: Vec<f64> = outputs.concat();
            let got = result["o"].get(sample).select(1, head).contiguous();
            close(&got, &Tensor::from_slice(&flat).reshape(got.size()), 1e-12, "normalised read");
            let z = result["state.z"].get(sample).get(head);
            close(&z, &Tensor::from_slice(&states[1]), 1e-12, "normaliser");
        }
    }
}

fn delta_program(heads: usize, dk: usize, dv: usize) -> fwp_sdk::program::Program {
    let dims = Dims { heads, key_raw: dk, key: dk, value: dv, ..Dims::ONE };
    rule(Part::update_rule::<fwp_rule_delta::Delta>(), "delta", json!({}), dims)
}

fn delta_file(numbers: &mut Numbers, b: i64, t: i64, h: i64, dk: i64, dv: i64) -> BTreeMap<String, Tensor> {
    let shapes: [(&str, Vec<i64>); 4] = [("q", vec![dk]), ("k", vec![dk]), ("v", vec![dv]), ("beta", vec![])];
    shapes
        .into_iter()
        .map(|(n, s)| (n.to_string(), numbers.tensor(&[b, t, h].into_iter().chain(s).collect::<Vec<i64>>())))
        .collect()
}

fn part_of(file: &BTreeMap<String, Tensor>, start: i64, length: i64) -> BTreeMap<String, Tensor> {
    file.iter().map(|(k, t)| (k.clone(), t.narrow(1, start, length))).collect()
}

#[test]
fn a_reset_starts_from_the_initial_state() {
    let program = delta_program(2, 3, 4);
    let mut file = delta_file(&mut Numbers::new(1), 2, 9, 2, 3, 4);
    let whole = |file: &BTreeMap<String, Tensor>| run(&program, &identity(3), file, false);
    let (first, second) = (whole(&part_of(&file, 0, 4)), whole(&part_of(&file, 4, 5)));
    let mut reset = vec![false; 18];
    reset[4] = true;
    reset[9 + 4] = true;
    file.insert("reset".into(), Tensor::from_slice(&reset).reshape([2, 9]));
    let both = whole(&file);
    close(&both["o"].narrow(1, 0, 4), &first["o"], 1e-13, "before the reset");
    close(&both["o"].narrow(1, 4, 5), &second["o"], 1e-13, "after the reset");
    close(&both["state.w"], &second["state.w"], 1e-13, "final state");
}

#[test]
fn a_masked_write_leaves_the_state_alone() {
    let program = delta_program(2, 3, 4);
    let file = delta_file(&mut Numbers::new(2), 1, 6, 2, 3, 4);
    let kept = [0i64, 1, 3, 5];
    let short: BTreeMap<String, Tensor> =
        file.iter().map(|(k, t)| (k.clone(), t.index_select(1, &Tensor::from_slice(&kept)))).collect();
    let expected = run(&program, &identity(3), &short, false);
    let mut masked = file;
    masked.insert("write".into(), Tensor::from_slice(&[true, true, false, true, false, true]).reshape([1, 6]));
    let got = run(&program, &identity(3), &masked, false);
    close(&got["state.w"], &expected["state.w"], 1e-13, "state after masked writes");
    // A masked step's output reads what the step would have written; the steps around it are as if it were not there.
    close(&got["o"].index_select(1, &Tensor::from_slice(&kept)), &expected["o"], 1e-13, "outputs of unmasked steps");
}

#[test]
fn two_halves_carry_the_state_over() {
    let program = delta_program(3, 3, 2);
    let file = delta_file(&mut Numbers::new(3), 2, 8, 3, 3, 2);
    let whole = run(&program, &identity(3), &file, false);
    let first = run(&program, &identity(3), &part_of(&file, 0, 3), false);
    let mut rest = part_of(&file, 3, 5);
    rest.insert("state.w".into(), first["state.w"].shallow_clone());
    let second = run(&program, &identity(3), &rest, false);
    close(&Tensor::cat(&[&first["o"], &second["o"]], 1), &whole["o"], 1e-13, "outputs");
    close(&second["state.w"], &whole["state.w"], 1e-13, "final state");
}

#[test]
fn effective_signals_are_used_as_they_are() {
    let program = delta_program(2, 3, 4);
    let file = delta_file(&mut Numbers::new(4), 2, 5, 2, 3, 4);
    let raw = run(&program, &identity(3), &file, false);
    let mut effective = file.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect::<BTreeMap<_, _>>();
    effective.insert("beta".into(), file["beta"].sigmoid());
    let direct = run(&fwp_program::with_effective(&program), &identity(3), &effective, false);
    close(&direct["o"], &raw["o"], 1e-14, "write strengths as used");
}
