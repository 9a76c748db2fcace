//! A rule walked by the interpreter of `fwp-program`, one head of one sequence at a time, as a judge of the executor.

use std::collections::BTreeMap;
use std::sync::Arc;

use fwp_engine::command::apply::apply;
use fwp_engine::exec::choose::{Executor, Executors, Policy, Refused};
use fwp_engine::exec::kernel::buffers::poison;
use fwp_program::interpret::{Array, Inputs, Value, evaluate};
use fwp_sdk::program::{Function, Parameter, Program, Scope, StateInit, entry};
use tch::{Kind, Tensor};

use super::{DOUBLE, Numbers, close, run, values};

/// What a rule is tried on.
pub struct Trial {
    pub batch: i64,
    pub steps: i64,
    pub heads: i64,
    /// Whether initial states are given.
    pub states: bool,
    /// Whether sequences are reset at different steps.
    pub resets: bool,
    /// Whether some writes are masked.
    pub masked: bool,
    /// Added to every raw input, for rules that need them away from zero.
    pub offset: f64,
}

impl Trial {
    pub fn new(batch: i64, steps: i64, heads: i64) -> Trial {
        Trial { batch, steps, heads, states: false, resets: false, masked: false, offset: 0.0 }
    }
}

pub type File = BTreeMap<String, Tensor>;

fn long(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|n| *n as i64).collect()
}

fn map_dim(map: &Program) -> usize {
    match &map.entry(entry::KEY).unwrap().arguments[0].ty {
        fwp_sdk::program::Type::Tensor(t) => t.shape[0],
        other => panic!("{other}"),
    }
}

/// The parameters of a map; those that keys and queries share come twice.
fn parameters_of(map: &Program) -> impl Iterator<Item = &Parameter> {
    [entry::KEY, entry::QUERY].into_iter().flat_map(|name| &map.entry(name).unwrap().parameters)
}

/// Random inputs, states, parameters and output gradients for a rule and its map.
pub fn file(rule: &Program, map: &Program, trial: &Trial, numbers: &mut Numbers) -> File {
    let (b, t, h) = (trial.batch, trial.steps, trial.heads);
    let mut file = File::new();
    for input in &rule.inputs {
        let mut shape = input.full_shape();
        if input.mapped() {
            *shape.last_mut().unwrap() = map_dim(map);
        }
        let heads = input.heads.map_or(h, |n| n as i64);
        let full = [vec![b, t, heads], long(&shape)].concat();
        file.insert(input.name.clone(), numbers.tensor(&full) + trial.offset);
    }
    let step = rule.entry(entry::STEP).unwrap();
    let of_map = parameters_of(map).map(|p| (format!("feature_map.{}", p.name), p));
    for (name, p) in step.parameters.iter().map(|p| (p.name.clone(), p)).chain(of_map) {
        let shape = if p.scope == Scope::Head { [vec![h], long(&p.shape)].concat() } else { long(&p.shape) };
        file.insert(format!("param.{name}"), numbers.tensor(&shape));
    }
    for s in &rule.states {
        let full = [vec![b, h], long(&s.shape)].concat();
        if trial.states {
            file.insert(format!("state.{}", s.name), numbers.tensor(&full));
        }
        file.insert(format!("grad.state.{}", s.name), numbers.tensor(&full));
    }
    if trial.resets {
        // At a different step in every sample, and twice in a row at the end.
        let flags: Vec<bool> = (0..b * t).map(|i| (i % t == (i / t + 2) % t) || i % t == t - 1 || i % t == t - 2).collect();
        file.insert("reset".into(), Tensor::from_slice(&flags).reshape([b, t]));
    }
    if trial.masked {
        let flags: Vec<bool> = (0..b * t).map(|i| i % 3 != 1).collect();
        file.insert("write".into(), Tensor::from_slice(&flags).reshape([b, t]));
    }
    file
}

/// One thing of one sample (and step) and head, from `[batch, (time,) heads, ...]`; fewer heads are shared by groups.
fn part(t: &Tensor, batch: i64, step: Option<i64>, head: i64, heads: i64) -> Array {
    let mut x = t.get(batch);
    if let Some(step) = step {
        x = x.get(step);
    }
    let x = x.get(head / (heads / x.size()[0]));
    let shape: Vec<usize> = x.size().iter().map(|n| *n as usize).collect();
    Array::new(&shape, values(&x)).unwrap()
}

/// Outputs by name, `[batch, time, heads, ...]`, and final states, walked by the interpreter.
pub fn interpreted(rule: &Program, map: &Program, trial: &Trial, file: &File) -> BTreeMap<String, Vec<f64>> {
    let rule = fwp_program::expand_gradients(&fwp_program::with_feature_map(rule, map).unwrap()).unwrap();
    let map = fwp_program::expand_gradients(map).unwrap();
    let step: &Function = rule.entry(entry::STEP).unwrap();
    let (b, t, h) = (trial.batch, trial.steps, trial.heads);
    let flag = |name: &str, b: i64, t: i64| file.get(name).map(|m| m.get(b).get(t).int64_value(&[]) != 0);
    let mut by_place: BTreeMap<(String, i64, i64, i64), Vec<f64>> = BTreeMap::new();
    for sample in 0..b {
        for head in 0..h {
            let parameter = |path: &str, p: &Parameter| -> Array {
                let t = &file[path];
                let t = if p.scope == Scope::Head { t.get(head) } else { t.shallow_clone() };
                Array::new(&p.shape, values(&t)).unwrap()
            };
            let mut parameters = BTreeMap::new();
            for p in &step.parameters {
                parameters.insert(p.name.clone(), parameter(&format!("param.{}", p.name), p));
            }
            let mut of_map = BTreeMap::new();
            for p in parameters_of(&map) {
                let value = parameter(&format!("param.feature_map.{}", p.name), p);
                parameters.insert(format!("feature_map.{}", p.name), value.clone());
                of_map.insert(p.name.clone(), value);
            }
            let fresh: Vec<Array> = rule
                .states
                .iter()
                .map(|s| match &s.init {
                    StateInit::Zeros => Array::full(&s.shape, 0.0),
                    StateInit::Constant(c) => Array::full(&s.shape, *c),
                    StateInit::Parameter(name) => parameters[name].clone(),
                })
                .collect();
            let mut states: Vec<Array> = rule
                .states
                .iter()
                .zip(&fresh)
                .map(|(s, fresh)| match file.get(&format!("state.{}", s.name)) {
                    Some(t) => part(t, sample, None, head, h),
                    None => fresh.clone(),
                })
                .collect();
            let mut index = 0;
            for time in 0..t {
                if flag("reset", sample, time) == Some(true) {
                    (states, index) = (fresh.clone(), 0);
                }
                let arguments = rule.inputs.iter().map(|input| {
                    let x = part(&file[&input.name], sample, Some(time), head, h);
                    if !input.mapped() {
                        return Value::Tensor(x);
                    }
                    let role = if input.role == fwp_sdk::program::Role::Query { entry::QUERY } else { entry::KEY };
                    let d = *x.shape.last().unwrap();
                    let mut out = Vec::new();
                    for row in x.floats().unwrap().chunks(d) {
                        let arguments = vec![Value::Tensor(Array::new(&[d], row.to_vec()).unwrap())];
                        let mut inputs = Inputs { arguments, parameters: of_map.clone(), index, ..Inputs::default() };
                        let y = evaluate(&map, map.entry(role).unwrap(), &mut inputs).unwrap();
                        out.extend_from_slice(y[0].tensor().unwrap().floats().unwrap());
                    }
                    Value::Tensor(Array::new(&input.full_shape(), out).unwrap())
                });
                let arguments = arguments.collect();
                let mut inputs =
                    Inputs { arguments, parameters: parameters.clone(), states: states.clone(), index, ..Inputs::default() };
                let results = evaluate(&rule, step, &mut inputs).unwrap();
                for (o, value) in step.outputs.iter().zip(&results) {
                    let value = value.tensor().unwrap();
                    match o.name.strip_prefix("state.") {
                        None => {
                            let name = if o.name == "output" { "o".to_string() } else { o.name.clone() };
                            by_place.insert((name, sample, time, head), value.floats().unwrap().to_vec());
                        }
                        Some(name) => {
                            let k = rule.states.iter().position(|s| s.name == name).unwrap();
                            let due = (index + 1) % rule.states[k].held as i64 == 0;
                            if due && flag("write", sample, time) != Some(false) {
                                states[k] = value.clone();
                            }
                        }
                    }
                }
                index += 1;
            }
            for (s, value) in rule.states.iter().zip(&states) {
                by_place.insert((format!("state.{}", s.name), sample, -1, head), value.floats().unwrap().to_vec());
            }
        }
    }
    // Keys are in the order of name, sample, time, head: the layout of the tensors.
    let mut out: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for ((name, ..), value) in by_place {
        out.entry(name).or_default().extend(value);
    }
    out
}

/// Compares `apply` with the interpreter, and the fast executors with the reference: outputs, extra outputs, final states, and the gradient of everything that goes in.
pub fn agrees(rule: &Program, map: &Program, trial: &Trial) {
    let mut numbers = Numbers::new((trial.batch * 100 + trial.steps * 10 + trial.heads) as u64);
    let mut inputs = file(rule, map, trial, &mut numbers);
    let plain = run(rule, map, &inputs, false);
    for (name, t) in plain.iter().filter(|(n, _)| !n.starts_with("state.")) {
        inputs.insert(format!("grad.{name}"), numbers.tensor(&t.size()));
    }
    let got = run(rule, map, &inputs, true);
    let expected = interpreted(rule, map, trial, &inputs);
    for (name, wanted) in &expected {
        close(&got[name], &Tensor::from_slice(wanted).reshape(got[name].size()), 1e-11, name);
        assert_eq!(got[name], plain[name], "{name} with and without gradients");
    }
    for executor in [Executor::Scan, Executor::Chunkwise] {
        let only = Arc::new(Executors::new(Policy::Only(executor)));
        poison(true);
        let found = apply(rule, map, &inputs, DOUBLE, true, &only);
        poison(false);
        match found {
            Ok(found) => got.iter().for_each(|(n, t)| close(&found[n], t, 1e-9, &format!("{} by {executor}: {n}", rule.name))),
            // Not every rule has a chunkwise form; what serves may not go wrong.
            Err(e) if e.chain().any(|cause| cause.is::<Refused>()) => eprintln!("{e:#}"),
            Err(e) => panic!("{} by {executor}: {e:#}", rule.name),
        }
    }
    let weights: BTreeMap<&String, Vec<f64>> = expected.keys().map(|n| (n, values(&inputs[&format!("grad.{n}")]))).collect();
    let loss = |file: &File| -> f64 {
        let all = interpreted(rule, map, trial, file);
        all.iter().map(|(n, v)| v.iter().zip(&weights[n]).map(|(a, b)| a * b).sum::<f64>()).sum()
    };
    let names: Vec<String> =
        inputs.keys().filter(|n| !n.starts_with("grad.") && !matches!(n.as_str(), "reset" | "write")).cloned().collect();
    for name in names {
        let direction = numbers.tensor(&inputs[&name].size());
        let moved = |by: f64| {
            let mut copy: File = inputs.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
            copy.insert(name.clone(), &inputs[&name] + by * &direction);
            loss(&copy)
        };
        let h = 1e-5;
        let numerical = (moved(h) - moved(-h)) / (2.0 * h);
        let exact = (&got[&format!("grad.{name}")] * &direction).sum(Kind::Double).double_value(&[]);
        let error = (numerical - exact).abs() / exact.abs().max(1.0);
        assert!(error < 1e-7, "gradient of {name}: {exact} against {numerical}");
    }
}
