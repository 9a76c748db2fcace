//! Feature maps: the kernels that their papers promise, and every executor with maps that have parameters.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use fwp_engine::command::apply::apply;
use fwp_engine::exec::choose::{Executor, Executors, Policy};
use fwp_map_learned::{Hedgehog, T2R};
use fwp_map_quadratic::{ReBased, Taylor2};
use fwp_map_random_features::{Favor, Rfa};
use fwp_program::interpret::{Array, Inputs, Random, Value, evaluate, initial};
use fwp_sdk::prelude::*;
use fwp_sdk::program::Program;
use fwp_sdk::{Part, testing};
use serde_json::{Value as Json, json};
use support::interpreted::{File, Trial, agrees, file};
use support::{DOUBLE, Numbers, rule};

/// A map with its parameters drawn: features of a key or a query.
struct Drawn {
    program: Program,
    parameters: BTreeMap<String, Array>,
}

impl Drawn {
    fn new<M: FeatureMap>(config: Json, dim: usize, seed: u64) -> Drawn {
        let program = testing::map::<M>(config, dim).unwrap();
        let mut random = Random::new(seed);
        let mut parameters = BTreeMap::new();
        for entry in ["key", "query"] {
            for p in &program.entry(entry).unwrap().parameters {
                let value = || initial(&program, p, 0, 0, &mut random).unwrap();
                parameters.entry(p.name.clone()).or_insert_with(value);
            }
        }
        Drawn { program, parameters }
    }

    fn set(&mut self, name: &str, values: &[f64]) {
        let shape = self.parameters[name].shape.clone();
        self.parameters.insert(name.into(), Array::new(&shape, values.to_vec()).unwrap());
    }

    fn features(&self, entry: &str, x: &[f64]) -> Vec<f64> {
        let arguments = vec![Value::Tensor(Array::new(&[x.len()], x.to_vec()).unwrap())];
        let mut inputs = Inputs { arguments, parameters: self.parameters.clone(), ..Inputs::default() };
        let y = evaluate(&self.program, self.program.entry(entry).unwrap(), &mut inputs).unwrap();
        y[0].tensor().unwrap().floats().unwrap().to_vec()
    }

    /// <phi(q), phi(k)>
    fn kernel(&self, q: &[f64], k: &[f64]) -> f64 {
        dot(&self.features("query", q), &self.features("key", k))
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn near(got: f64, wanted: f64, tolerance: f64, what: &str) {
    assert!((got - wanted).abs() <= tolerance * wanted.abs().max(1.0), "{what}: {got}, expected {wanted}");
}

#[test]
fn taylor_2_is_the_exponential_up_to_second_order() {
    for d in [1, 2, 3, 4, 7, 16] {
        let map = Drawn::new::<Taylor2>(json!({}), d, 0);
        let mut numbers = Numbers::new(d as u64);
        let (q, k) = (numbers.list(d), numbers.list(d));
        let s = dot(&q, &k) / (d as f64).sqrt();
        near(map.kernel(&q, &k), 1.0 + s + s * s / 2.0, 1e-14, &format!("{d} elements"));
    }
}

#[test]
fn rebased_is_the_square_of_what_was_normalised_and_scaled() {
    for d in [2, 5, 8] {
        let mut numbers = Numbers::new(d as u64);
        let (gamma, beta, q, k) = (numbers.list(d), numbers.list(d), numbers.list(d), numbers.list(d));
        let mut map = Drawn::new::<ReBased>(json!({}), d, 0);
        map.set("gamma", &gamma);
        map.set("beta", &beta);
        let moved = |x: &[f64]| -> Vec<f64> {
            let mean = x.iter().sum::<f64>() / d as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
            (0..d).map(|i| gamma[i] * (x[i] - mean) / (variance + 1e-5).sqrt() + beta[i]).collect()
        };
        near(map.kernel(&q, &k), dot(&moved(&q), &moved(&k)).powi(2) / d as f64, 1e-13, &format!("{d} elements"));
    }
}

/// The estimates of both random maps are right on average: their own formulas with the sum over many directions.
#[test]
fn random_features_estimate_their_kernels() {
    let (d, m) = (5, 40_000);
    let mut numbers = Numbers::new(3);
    let mut half = || numbers.list(d).iter().map(|x| 0.5 * x).collect::<Vec<f64>>();
    let (q, k) = (half(), half());
    for orthogonal in [true, false] {
        let favor = Drawn::new::<Favor>(json!({ "m": m, "orthogonal": orthogonal }), d, 1);
        near(favor.kernel(&q, &k), dot(&q, &k).exp(), 0.02, "FAVOR+");
    }
    let mut rfa = Drawn::new::<Rfa>(json!({ "directions": m }), d, 1);
    let sigma = [0.5, 1.0, 1.5, 2.0, 0.1];
    rfa.set("sigma", &sigma);
    let unit = |x: &[f64]| x.iter().map(|v| v / (dot(x, x) + 1e-6).sqrt()).collect::<Vec<f64>>();
    let apart: f64 = (0..d).map(|i| (sigma[i] * (unit(&q)[i] - unit(&k)[i])).powi(2)).sum();
    near(rfa.kernel(&q, &k), (-apart / 2.0).exp(), 0.02, "RFA");
}

/// Schlag Eq. 31-32, written out.
#[test]
fn favor_agrees_with_its_equation() {
    let (d, m) = (4, 6);
    let map = Drawn::new::<Favor>(json!({ "m": m }), d, 2);
    let x = Numbers::new(8).list(d);
    let r = map.parameters["directions"].floats().unwrap();
    let h: Vec<f64> = r.chunks(d).map(|row| dot(row, &x)).collect();
    let scale = (-dot(&x, &x) / 2.0).exp() / (2.0 * m as f64).sqrt();
    let wanted: Vec<f64> = h.iter().map(|h| h.exp()).chain(h.iter().map(|h| (-h).exp())).map(|e| scale * e).collect();
    for entry in ["key", "query"] {
        let got = map.features(entry, &x);
        assert_eq!(got.len(), 2 * m);
        got.iter().zip(&wanted).for_each(|(a, b)| near(*a, *b, 1e-14, entry));
    }
    // Within a block, the size of the key, directions are orthogonal.
    near(dot(&r[..d], &r[d..2 * d]), 0.0, 1e-12, "directions of a block");
}

#[test]
fn hedgehog_begins_as_a_softmax_of_both_signs() {
    let map = Drawn::new::<Hedgehog>(json!({}), 3, 0);
    let x: [f64; 3] = [0.3, -1.2, 0.7];
    let exponentials: Vec<f64> = x.iter().map(|x| (2.0 * x).exp()).chain(x.iter().map(|x| (-2.0 * x).exp())).collect();
    let sum: f64 = exponentials.iter().sum();
    for (got, e) in map.features("query", &x).iter().zip(&exponentials) {
        near(*got, e / sum, 1e-14, "softmax");
    }
}

fn all(d: usize) -> Vec<(&'static str, Program)> {
    vec![
        ("taylor2", testing::map::<Taylor2>(json!({ "normalise": "l2" }), d).unwrap()),
        ("rebased", testing::map::<ReBased>(json!({ "normalise": "sum" }), d).unwrap()),
        ("favor+", testing::map::<Favor>(json!({ "m": 3, "normalise": "sum" }), d).unwrap()),
        ("rfa", testing::map::<Rfa>(json!({ "directions": 3 }), d).unwrap()),
        ("rfa, fixed", testing::map::<Rfa>(json!({ "directions": 3, "sigma_trained": false }), d).unwrap()),
        ("hedgehog", testing::map::<Hedgehog>(json!({}), d).unwrap()),
        ("hedgehog, tied", testing::map::<Hedgehog>(json!({ "tied": true, "bias": false }), d).unwrap()),
        ("t2r", testing::map::<T2R>(json!({ "features": 7, "normalise": "l2" }), d).unwrap()),
    ]
}

fn delta_for(map: &Program, d: usize, value: usize) -> Program {
    let dims = Dims { heads: 2, key_raw: d, key: features(map), value, ..Dims::ONE };
    rule(Part::update_rule::<fwp_rule_delta::Delta>(), "delta", json!({}), dims)
}

fn features(map: &Program) -> usize {
    let types = fwp_sdk::program::shape::types(map).unwrap();
    let key = map.entries.iter().find(|(name, _)| name == "key").unwrap().1;
    match &types.functions[key as usize].results[..] {
        [fwp_sdk::program::Type::Tensor(t)] => t.elements(),
        other => panic!("{other:?}"),
    }
}

/// Reference, interpreter and finite differences, and every executor beside the reference: also gradients of what is learned.
#[test]
fn every_executor_serves_every_map() {
    for (name, map) in all(4) {
        eprintln!("{name}");
        agrees(&delta_for(&map, 4, 3), &map, &Trial { states: true, resets: true, masked: true, ..Trial::new(2, 9, 2) });
    }
}

/// A map without parameters is part of the kernel; one with parameters is carried out before it, which the record says.
#[test]
fn maps_with_parameters_are_carried_out_before_the_kernel() {
    let plain = testing::map::<Taylor2>(json!({}), 4).unwrap();
    for (map, inside) in all(4).into_iter().map(|(_, m)| (m, false)).skip(1).chain([(plain, true)]) {
        let rule = delta_for(&map, 4, 3);
        let inputs: File = file(&rule, &map, &Trial::new(1, 5, 2), &mut Numbers::new(1));
        let scan = Arc::new(Executors::new(Policy::Only(Executor::Scan)));
        apply(&rule, &map, &inputs, DOUBLE, false, &scan).unwrap();
        assert_eq!(scan.choices()[0].details["feature_map_inside"], inside, "{}", map.name);
    }
}
