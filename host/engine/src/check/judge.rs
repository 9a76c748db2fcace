//! The reference executor, which judges all others, against two judges that share no code with it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use fwp_program::Difference;
use fwp_program::interpret::{Array, Inputs, Random, Value, evaluate};
use fwp_sdk::program::{Function, Op, Program, Role, Scope, StateInit, entry};
use tch::{Kind, Tensor};

use super::{DOUBLE, Report, Trial, distance, tame};
use crate::trial::draw::{normal, scalar, seed_of};
use crate::trial::{Data, Wanted};

/// Steps of the sequences here; the interpreter is slow, and more shows nothing new.
const STEPS: i64 = 9;
/// Relative difference between two orders of summation in float64.
const CLOSE: f64 = 1e-11;

fn data(trial: &Trial<'_>, steps: i64, masks: bool) -> Result<Data> {
    let seed = seed_of(trial.seed, &format!("judged {steps} {masks}"));
    tame(trial.subject, Wanted { batch: 2, steps, states: masks, masks }, seed)
}

/// Outputs and final states against the interpreter.
pub(super) fn steps(trial: &Trial<'_>) -> Result<Report> {
    let mut worst = 0.0f64;
    for masks in [false, true] {
        let data = data(trial, STEPS, masks)?;
        let got = trial.subject.run(trial.executor, DOUBLE, &data, None)?;
        let expected = interpreted(trial, &data)?;
        for (name, t) in &got.values {
            let wanted = expected.get(name).with_context(|| format!("internal: the interpreter gives no `{name}`"))?;
            let wanted = Tensor::f_from_slice(wanted)?.f_reshape(t.size())?;
            let error = distance(t, &wanted)?;
            if error > CLOSE {
                return Ok(Report::failed(format!(
                    "`{name}` is {error:.1e} away from the step evaluated alone (masks: {masks})"
                )));
            }
            worst = worst.max(error);
        }
    }
    Ok(Report::passed(format!("{STEPS} steps, with and without initial states and masks; the largest difference is {worst:.0e}")))
}

/// Gradients against finite differences along random directions.
pub(super) fn gradients(trial: &Trial<'_>) -> Result<Report> {
    let subject = trial.subject;
    if let Some(op) = hides_derivative(&subject.slot.rule.program).or_else(|| hides_derivative(&subject.slot.map.program)) {
        return Ok(Report::skipped(format!("`{op}` keeps something constant for gradients, which finite differences do not")));
    }
    let mut worst = 0.0f64;
    let mut count = 0;
    for (steps, masks) in [(1, false), (STEPS, false), (STEPS, true)] {
        let data = data(trial, steps, masks)?;
        let plain = subject.run(trial.executor, DOUBLE, &data, None)?;
        let weights = subject.weights(&plain, trial.seed)?;
        let got = subject.run(trial.executor, DOUBLE, &data, Some(&weights))?;
        let loss = |data: &Data| -> Result<f64> {
            let values = subject.run(trial.executor, DOUBLE, data, None)?.values;
            let mut sum = 0.0;
            for ((_, t), w) in values.iter().zip(&weights) {
                sum += t.f_mul(w)?.f_sum(Kind::Double)?.f_double_value(&[])?;
            }
            Ok(sum)
        };
        let size = loss(&data)?.abs();
        let mut random = Random::new(seed_of(trial.seed, "directions"));
        for (k, (name, gradient)) in got.gradients.iter().enumerate() {
            let direction = normal(&mut random, &gradient.size())?;
            let exact = gradient.f_mul(&direction)?.f_sum(Kind::Double)?.f_double_value(&[])?;
            let length = gradient.f_square()?.f_sum(Kind::Double)?.f_sqrt()?.f_double_value(&[])?;
            let at = |by: f64| -> Result<f64> {
                let mut copy = data.copied();
                // Gradients come in the order in which leaves are made: parameters, states, inputs.
                let leaves = copy.parameters.iter_mut().chain(&mut copy.states).chain(&mut copy.inputs);
                let (_, t) = leaves.into_iter().nth(k).context("internal: fewer leaves than gradients")?;
                *t = t.f_add(&direction.f_mul(&scalar(by))?)?;
                loss(&copy)
            };
            // Two step sizes: a kink may lie within the longer, and rounding spoils the shorter.
            let mut error = f64::INFINITY;
            for step in [1e-4, 1e-6] {
                let numerical = (at(step)? - at(-step)?) / (2.0 * step);
                // Relative to the gradient; the second part is what rounding of the loss leaves.
                error = error.min((numerical - exact).abs() / (length + 1e-9 * (1.0 + size) / step));
            }
            count += 1;
            worst = worst.max(error);
            if error.is_nan() || error > 1e-5 {
                return Ok(Report::failed(format!(
                    "`{name}` differs from finite differences at {steps} steps (initial states and masks: {masks}): relative error {error:.1e}"
                )));
            }
        }
    }
    Ok(Report::passed(format!("{count} directions; the largest relative difference is {worst:.0e}")))
}

/// An operator after which a gradient is not that of the value.
fn hides_derivative(program: &Program) -> Option<&'static str> {
    let nodes = program.functions.iter().flat_map(|f| &f.nodes);
    nodes.map(|n| &n.op).find(|op| matches!(op, Op::StopGradient)).map(Op::name)
}

/// The two statements of a rule.
pub(super) fn restated(trial: &Trial<'_>) -> Result<Report> {
    Ok(match fwp_program::restated_agrees(&trial.subject.rule, trial.seed) {
        Ok(Some(apart)) => Report::passed(format!("the largest relative difference is {apart:.0e}")),
        Ok(None) => Report::skipped("the rule is stated once"),
        Err(Difference::NoValue(why)) => Report::skipped(format!("the statements cannot be evaluated alone: {why}")),
        Err(difference) => Report::failed(difference.to_string()),
    })
}

/// Elements of one thing of one sample (and step) and head; fewer heads are shared by groups.
fn part(t: &Tensor, batch: i64, step: Option<i64>, head: i64, heads: i64) -> Result<Array> {
    let mut x = t.get(batch);
    if let Some(step) = step {
        x = x.get(step);
    }
    let x = x.get(head / (heads / x.size()[0]));
    array(&x)
}

fn array(x: &Tensor) -> Result<Array> {
    let shape: Vec<usize> = x.size().iter().map(|n| *n as usize).collect();
    let list = Vec::<f64>::try_from(x.f_contiguous()?.f_view([-1])?)?;
    Array::new(&shape, list).context("internal: elements and shape")
}

fn floats(value: &Value) -> Result<&[f64]> {
    value.tensor().and_then(Array::floats).context("internal: a value that is no float tensor")
}

/// Outputs, `[batch, time, heads, ...]`, and final states, walked by the interpreter.
fn interpreted(trial: &Trial<'_>, data: &Data) -> Result<BTreeMap<String, Vec<f64>>> {
    let slot = &trial.subject.slot;
    let (rule, map) = (&slot.rule.program, &slot.map.program);
    let step = rule.entry(entry::STEP).context("internal: a rule without a step")?;
    let first = &data.inputs.first().context("the rule has no inputs")?.1;
    let (batch, steps, heads) = (first.size()[0], first.size()[1], trial.subject.heads);
    let flag = |m: &Option<Tensor>, b: i64, t: i64| m.as_ref().map(|m| m.int64_value(&[b, t]) != 0);
    let mut places: BTreeMap<(String, i64, i64, i64), Vec<f64>> = BTreeMap::new();
    for sample in 0..batch {
        for head in 0..heads {
            let parameters = parameters(trial, data, head)?;
            let of_map: BTreeMap<String, Array> =
                parameters.iter().filter_map(|(n, a)| Some((n.strip_prefix("feature_map.")?.to_string(), a.clone()))).collect();
            let fresh = rule.states.iter().map(|s| match &s.init {
                StateInit::Zeros => Ok(Array::full(&s.shape, 0.0)),
                StateInit::Constant(c) => Ok(Array::full(&s.shape, *c)),
                StateInit::Parameter(name) => {
                    parameters.get(name).cloned().with_context(|| format!("internal: no parameter `{name}`"))
                }
            });
            let fresh: Vec<Array> = fresh.collect::<Result<_>>()?;
            let mut states = fresh.clone();
            for (state, (_, t)) in states.iter_mut().zip(&data.states) {
                *state = part(t, sample, None, head, heads)?;
            }
            let mut index = 0;
            for time in 0..steps {
                if flag(&data.reset, sample, time) == Some(true) {
                    (states, index) = (fresh.clone(), 0);
                }
                let mut arguments = Vec::new();
                for (input, (_, t)) in rule.inputs.iter().zip(&data.inputs) {
                    let x = part(t, sample, Some(time), head, heads)?;
                    let role = if input.role == Role::Query { entry::QUERY } else { entry::KEY };
                    let x = if input.mapped() { mapped(map, role, &x, &input.full_shape(), &of_map, index)? } else { x };
                    arguments.push(Value::Tensor(x));
                }
                let mut inputs =
                    Inputs { arguments, parameters: parameters.clone(), states: states.clone(), index, ..Inputs::default() };
                let results = evaluate(rule, step, &mut inputs)?;
                for (o, value) in step.outputs.iter().zip(&results) {
                    let Some(name) = o.name.strip_prefix("state.") else {
                        let name = if o.name == "output" { "o".to_string() } else { o.name.clone() };
                        places.insert((name, sample, time, head), floats(value)?.to_vec());
                        continue;
                    };
                    let k = rule.states.iter().position(|s| s.name == name).context("internal: an unknown state")?;
                    let due = (index + 1) % rule.states[k].held as i64 == 0;
                    if due && flag(&data.write, sample, time) != Some(false) {
                        states[k] = value.tensor().context("internal: a state that is no tensor")?.clone();
                    }
                }
                index += 1;
            }
            for (s, value) in rule.states.iter().zip(&states) {
                let list = value.floats().context("internal: a state of integers")?.to_vec();
                places.insert((format!("state.{}", s.name), sample, -1, head), list);
            }
        }
    }
    // Keys are in the order of name, sample, time, head: the layout of the tensors.
    let mut out: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for ((name, ..), value) in places {
        out.entry(name).or_default().extend(value);
    }
    Ok(out)
}

/// The feature map on every row of an input.
fn mapped(
    map: &Program,
    role: &str,
    x: &Array,
    shape: &[usize],
    parameters: &BTreeMap<String, Array>,
    index: i64,
) -> Result<Array> {
    let f: &Function = map.entry(role).context("internal: a map without its function")?;
    let d = x.shape.last().copied().unwrap_or(1);
    let mut out = Vec::new();
    for row in x.floats().unwrap_or_default().chunks(d) {
        let row = Array::new(&[d], row.to_vec()).context("internal: a row")?;
        let mut inputs =
            Inputs { arguments: vec![Value::Tensor(row)], parameters: parameters.clone(), index, ..Inputs::default() };
        out.extend_from_slice(floats(&evaluate(map, f, &mut inputs)?[0])?);
    }
    Array::new(shape, out).context("internal: the features of an input")
}

/// Parameters of one head by the names under which a step reads them; those of the map begin with `feature_map.`.
fn parameters(trial: &Trial<'_>, data: &Data, head: i64) -> Result<BTreeMap<String, Array>> {
    let mut out = BTreeMap::new();
    for spec in &trial.subject.specs {
        let (_, t) = data.parameters.iter().find(|(n, _)| *n == spec.path).context("internal: a parameter without values")?;
        let t = if spec.scope == Scope::Head { t.get(head) } else { t.shallow_clone() };
        // One that the whole model shares has a path of its own, whichever part declares it.
        if let Some(name) = spec.path.strip_prefix("shared.main.") {
            out.insert(format!("feature_map.{name}"), array(&t)?);
            out.insert(name.to_string(), array(&t)?);
        } else {
            out.insert(spec.path.clone(), array(&t)?);
        }
    }
    Ok(out)
}
