//! Small things that the tests of the executors share.
#![allow(dead_code)]

pub mod interpreted;
pub mod loops;

use std::collections::BTreeMap;

use fwp_engine::command::apply::apply;
use fwp_engine::exec::choose::{Executor, Executors, Policy};
use fwp_engine::exec::value::Precision;
use fwp_engine::model::{Carry, Model};
use fwp_engine::train::{Output, Pass, TrainModel};
use fwp_program::{ModelPrograms, SlotPrograms};
use fwp_sdk::build::{Dims, Port, PortKind, TaskIo};
use fwp_sdk::program::{Kind as PartKind, Program, SlotInterface, Type, entry, shape};
use fwp_sdk::{Ask, FeatureMap, Part, Request, SlowNet, UpdateRule, testing};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

pub const DOUBLE: Precision = Precision { kind: Kind::Double, device: Device::Cpu };

/// Declares a rule without configuration.
#[allow(unused_macros)] // not every test declares rules
macro_rules! rules {
    ($( $name:ident $text:literal ($d:ident) $signature:expr; |$s:ident| $step:block )*) => { $(
        config! {
            /// A rule of this test.
            pub struct $name {}
        }
        impl UpdateRule for $name {
            const NAME: &'static str = $text;
            const CITATION: &'static str = "test";
            const OBJECTIVE: &'static str = "none: a test";
            fn signature(&self, $d: Dims) -> Signature { $signature }
            fn step(&self, $s: &mut Step) $step
        }
    )* };
}

/// A deterministic source of floats for test data.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// Uniform in [-1, 1).
    pub fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
    pub fn list(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.next()).collect()
    }
    pub fn tensor(&mut self, shape: &[i64]) -> Tensor {
        let n: i64 = shape.iter().product();
        Tensor::from_slice(&self.list(n as usize)).reshape(shape)
    }
}

pub fn config(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

pub fn rule(part: Part, name: &str, settings: Value, dims: Dims) -> Program {
    let request = Request { kind: PartKind::UpdateRule, name: name.into(), config: config(settings), ask: Ask::Rule { dims } };
    Program::from_bytes(&part.describe(&request).unwrap()).unwrap()
}

pub fn map(part: Part, name: &str, settings: Value, dim: usize) -> Program {
    let request = Request { kind: PartKind::FeatureMap, name: name.into(), config: config(settings), ask: Ask::Map { dim } };
    Program::from_bytes(&part.describe(&request).unwrap()).unwrap()
}

pub fn identity(dim: usize) -> Program {
    map(Part::feature_map::<fwp_map_identity::Identity>(), "identity", json!({}), dim)
}

/// The rule applied with the identity map; float64.
pub fn run(rule: &Program, map: &Program, file: &BTreeMap<String, Tensor>, grad: bool) -> BTreeMap<String, Tensor> {
    apply(rule, map, file, DOUBLE, grad, &Default::default()).unwrap()
}

pub fn values(t: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(t.detach().contiguous().view([-1]).to_kind(Kind::Double)).unwrap()
}

pub fn close(a: &Tensor, b: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(a.size(), b.size(), "{what}: shapes");
    let scale = b.abs().max().double_value(&[]).max(1e-3);
    let error = (a - b).abs().max().double_value(&[]) / scale;
    assert!(error <= tolerance, "{what}: relative error {error:e}");
}

/// What one sequence and head of a rule sees at a step, by name.
pub type StepInputs<'a> = &'a dyn Fn(&str, usize) -> Vec<f64>;

/// One head of one sequence: steps, inputs and initial states to outputs and final states.
pub type Oracle<'a> = &'a dyn Fn(usize, StepInputs, &[Vec<f64>]) -> (Vec<Vec<f64>>, Vec<Vec<f64>>);

/// Compares a rule with a plain float64 loop: outputs, final states, and gradients along random directions by finite differences of the loop.
///
/// `oracle` runs one head of one sequence: (steps, inputs by name and step, initial states) to (outputs, final states).
pub fn against_oracle(
    rule: &Program,
    shapes: &[(&str, Vec<usize>)],
    states: &[(&str, Vec<usize>)],
    sizes: (i64, i64, i64),
    oracle: Oracle,
    with_states: bool,
) {
    let (batch, steps, heads) = sizes;
    let mut numbers = Numbers::new((batch * 1000 + steps * 10 + heads) as u64);
    let mut file = BTreeMap::new();
    let mut seeded = |lead: &[i64], shape: &[usize]| {
        let full: Vec<i64> = lead.iter().copied().chain(shape.iter().map(|n| *n as i64)).collect();
        numbers.tensor(&full)
    };
    for (name, shape) in shapes {
        file.insert(name.to_string(), seeded(&[batch, steps, heads], shape));
    }
    if with_states {
        for (name, shape) in states {
            file.insert(format!("state.{name}"), seeded(&[batch, heads], shape));
        }
    }
    let out_shape: Vec<usize> = vec![shapes.iter().find(|(n, _)| *n == "v").unwrap().1[0]];
    file.insert("grad.o".into(), seeded(&[batch, steps, heads], &out_shape));
    for (name, shape) in states {
        file.insert(format!("grad.state.{name}"), seeded(&[batch, heads], shape));
    }
    let id = identity(shapes.iter().find(|(n, _)| *n == "k").map_or(1, |(_, s)| *s.last().unwrap()));
    let result = run(rule, &id, &file, true);

    // The loop on the same numbers, or on numbers moved along a direction.
    let reference = |file: &BTreeMap<String, Tensor>| -> (Vec<f64>, BTreeMap<String, Vec<f64>>, f64) {
        let width: usize = out_shape.iter().product();
        let mut o = vec![0.0; (batch * steps * heads) as usize * width];
        let mut finals: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let data: BTreeMap<&String, Vec<f64>> = file.iter().map(|(k, t)| (k, values(t))).collect();
        for b in 0..batch as usize {
            for h in 0..heads as usize {
                let inputs = |name: &str, t: usize| -> Vec<f64> {
                    let n: usize = shapes.iter().find(|(s, _)| *s == name).unwrap().1.iter().product();
                    let at = ((b * steps as usize + t) * heads as usize + h) * n;
                    data[&name.to_string()][at..at + n].to_vec()
                };
                let initial: Vec<Vec<f64>> = states
                    .iter()
                    .map(|(name, shape)| {
                        let n: usize = shape.iter().product();
                        let at = (b * heads as usize + h) * n;
                        data.get(&format!("state.{name}")).map_or(vec![0.0; n], |d| d[at..at + n].to_vec())
                    })
                    .collect();
                let (outputs, last) = oracle(steps as usize, &inputs, &initial);
                for (t, y) in outputs.iter().enumerate() {
                    let at = ((b * steps as usize + t) * heads as usize + h) * width;
                    o[at..at + width].copy_from_slice(y);
                }
                for ((name, _), s) in states.iter().zip(last) {
                    finals.entry(name.to_string()).or_default().extend(s);
                }
            }
        }
        let mut weighted: f64 = o.iter().zip(&data[&"grad.o".to_string()]).map(|(a, b)| a * b).sum();
        for (name, _) in states {
            let g = &data[&format!("grad.state.{name}")];
            weighted += finals[*name].iter().zip(g).map(|(a, b)| a * b).sum::<f64>();
        }
        (o, finals, weighted)
    };
    let (o, finals, _) = reference(&file);
    close(&result["o"], &Tensor::from_slice(&o).reshape(result["o"].size()), 1e-12, "outputs");
    for (name, _) in states {
        let got = &result[&format!("state.{name}")];
        close(got, &Tensor::from_slice(&finals[*name]).reshape(got.size()), 1e-12, "final state");
    }
    let inputs: Vec<String> = file.keys().filter(|k| !k.starts_with("grad.")).cloned().collect();
    for name in inputs {
        for _ in 0..2 {
            let direction = numbers.tensor(&file[&name].size());
            let h = 1e-5;
            let moved = |sign: f64| {
                let mut copy: BTreeMap<String, Tensor> = file.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
                copy.insert(name.clone(), &file[&name] + sign * h * &direction);
                reference(&copy).2
            };
            let numerical = (moved(1.0) - moved(-1.0)) / (2.0 * h);
            let exact = (&result[&format!("grad.{name}")] * &direction).sum(Kind::Double).double_value(&[]);
            let error = (numerical - exact).abs() / exact.abs().max(1.0);
            assert!(error < 1e-8, "gradient of {name}: {exact} against {numerical}");
        }
    }
}

/// A slot with its programs and what a slow net must know of it.
pub struct TestSlot {
    pub programs: SlotPrograms,
    pub interface: SlotInterface,
}

/// A slot named `main` with this rule and map for `heads` heads, raw keys of `key` and values of `value` elements.
pub fn slot<R: UpdateRule, M: FeatureMap>(rule: Value, map: Value, heads: usize, key: usize, value: usize) -> TestSlot {
    slot_of::<R, M>(rule, map, Dims { heads, key_raw: key, value, ..Dims::ONE })
}

/// As [`slot`], for any sizes; the number of features is the map's.
pub fn slot_of<R: UpdateRule, M: FeatureMap>(rule: Value, map: Value, dims: Dims) -> TestSlot {
    let Dims { heads, key_raw: key, value, .. } = dims;
    let features = testing::features::<M>(map.clone(), key).unwrap();
    let dims = Dims { key: features, ..dims };
    let rule = testing::rule::<R>(rule, dims).unwrap_or_else(|e| panic!("{e}"));
    let map = testing::map::<M>(map, key).unwrap();
    let types = shape::types(&rule).unwrap();
    let index = rule.entries.iter().find(|(n, _)| n == entry::STEP).unwrap().1 as usize;
    let sizes = |ty: &Type| match ty {
        Type::Tensor(t) => t.shape.clone(),
        other => panic!("{other}"),
    };
    let results: Vec<(String, Vec<usize>)> = rule.functions[index]
        .outputs
        .iter()
        .zip(&types.functions[index].results)
        .map(|(o, t)| (o.name.clone(), sizes(t)))
        .collect();
    let interface = SlotInterface {
        name: "main".into(),
        rule: rule.name.clone(),
        heads,
        key_raw: key,
        key: features,
        value,
        inputs: rule.inputs.clone(),
        output: results[0].1.clone(),
        extras: results.iter().filter_map(|(n, s)| Some((n.strip_prefix("extra.")?.to_string(), s.clone()))).collect(),
    };
    TestSlot { programs: SlotPrograms { name: "main".into(), layers: None, map, rule }, interface }
}

/// The checked programs of a slow net with these slots, such as `Some(slot)` or `None`.
pub fn compose<N: SlowNet>(config: Value, task: &TaskIo, slots: impl IntoIterator<Item = TestSlot>) -> ModelPrograms {
    let slots: Vec<TestSlot> = slots.into_iter().collect();
    let interfaces: Vec<(SlotInterface, Option<Vec<usize>>)> = slots.iter().map(|s| (s.interface.clone(), None)).collect();
    let net = testing::net::<N>(config, task, &interfaces).unwrap_or_else(|e| panic!("{e}"));
    let programs = ModelPrograms { net, slots: slots.into_iter().map(|s| s.programs).collect() };
    programs.check().unwrap_or_else(|e| panic!("{e}"));
    programs
}

/// A float64 model that keeps everything for its backward pass.
pub fn model(programs: &ModelPrograms, seed: u64) -> Model {
    let policy = POLICY.with(std::cell::Cell::get);
    Model::new(programs, DOUBLE, seed, u64::MAX).unwrap().with_executors(std::sync::Arc::new(Executors::new(policy)))
}

thread_local! {
    /// The executors of the models of this thread's test.
    static POLICY: std::cell::Cell<Policy> = const { std::cell::Cell::new(Policy::Only(Executor::Reference)) };
}

/// Runs tests again with the models of this thread on compiled kernels.
pub fn by_kernels(tests: &[fn()]) {
    with_kernels(|| tests.iter().for_each(|test| test()));
}

/// Does something with the models of this thread on compiled kernels.
pub fn with_kernels(work: impl FnOnce()) {
    POLICY.with(|p| p.set(Policy::Only(Executor::Scan)));
    work();
    POLICY.with(|p| p.set(Policy::Only(Executor::Reference)));
}

pub fn vectors(name: &str, dim: usize) -> Port {
    Port { name: name.into(), axis: Some("time".into()), kind: PortKind::Vector { dim } }
}

/// A task from vectors `x` to vectors `y`, both along `time`.
pub fn sequence_task(x: usize, y: usize) -> TaskIo {
    TaskIo { inputs: vec![vectors("x", x)], outputs: vec![vectors("y", y)], max_len: 64 }
}

/// A task from symbols `tokens` to scores `logits` of `classes`, both along `time`.
pub fn token_task(vocab: usize, classes: usize) -> TaskIo {
    let port = |name: &str, kind| Port { name: name.into(), axis: Some("time".into()), kind };
    TaskIo {
        inputs: vec![port("tokens", PortKind::Symbol { vocab })],
        outputs: vec![port("logits", PortKind::Vector { dim: classes })],
        max_len: 64,
    }
}

/// A training pass without carry.
pub const TRAIN: Pass = Pass { train: true, step: 0, seed: 0, micro: 0, carry: false, resets: None };

/// An evaluating pass without carry.
pub const EVAL: Pass = Pass { train: false, ..TRAIN };

/// A forward pass on named inputs.
pub fn forward(model: &Model, inputs: &[(&str, &Tensor)], pass: &Pass, carry: Option<Carry>) -> Output<Carry> {
    let inputs = inputs.iter().map(|(n, t)| (n.to_string(), t.shallow_clone())).collect();
    model.forward(&inputs, pass, carry).unwrap_or_else(|e| panic!("{e:#}"))
}

/// The output `y` for the input `x`.
pub fn y_of(model: &Model, x: &Tensor) -> Tensor {
    forward(model, &[("x", x)], &EVAL, None).values.remove("y").unwrap()
}

/// A model's parameter by name.
pub fn parameter(model: &Model, name: &str) -> Tensor {
    let names: Vec<&str> = model.parameters().iter().map(|p| p.name.as_str()).collect();
    let found = model.parameters().iter().find(|p| p.name == name);
    found.unwrap_or_else(|| panic!("no parameter `{name}` among {names:?}")).tensor.shallow_clone()
}

/// Sets a model's parameter.
pub fn set(model: &Model, name: &str, value: &Tensor) {
    tch::no_grad(|| parameter(model, name).copy_(value));
}
