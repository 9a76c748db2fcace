//! Whether two functions compute the same, on random numbers in f64.

use std::collections::BTreeMap;

use fwp_sdk::program::shape;
use fwp_sdk::program::{Function, MapRole, Parameter, Program, Type, entry};

use crate::error::{CheckError, Problem};
use crate::gradient::expand_function;
use crate::graph::callee;
use crate::interpret::{Array, Inputs, Random, Value, evaluate, initial};
use crate::model::child;

/// How far two results may be apart, relative to the larger of 1 and their size.
pub const TOLERANCE: f64 = 1e-8;
/// Number of random inputs.
const TRIALS: usize = 8;

/// How two functions differ.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Difference {
    /// One of them has no value.
    #[error("{0}")]
    NoValue(String),
    /// A result of only one of them, or of another shape.
    #[error("result `{0}` is not the same kind of value in both")]
    Results(String),
    /// Numbers that differ.
    #[error(
        "result `{result}` differs: {first:e} against {second:e} at element {element} of {shape:?}, for random inputs drawn from seed {seed}"
    )]
    Numbers {
        /// Name of the result.
        result: String,
        /// Sizes of the result.
        shape: Vec<usize>,
        /// Row-major element that differs most.
        element: usize,
        /// Its value in the first function.
        first: f64,
        /// Its value in the second.
        second: f64,
        /// Seed of the inputs.
        seed: u64,
    },
}

/// Compares two functions of one program on random arguments, states and parameters; the largest relative difference, at most [`TOLERANCE`].
///
/// Parameters of one name are the same in both. Gradients are written out first. `phi` is some smooth map of the right sizes.
pub fn equivalent(a: &Function, b: &Function, p: &Program, seed: u64) -> Result<f64, Difference> {
    let failed = |e: &dyn std::fmt::Display| Difference::NoValue(e.to_string());
    let a = expand_function(p, a).map_err(|e| failed(&e))?;
    let b = expand_function(p, b).map_err(|e| failed(&e))?;
    let mut results: Vec<&str> = Vec::new();
    for o in &a.outputs {
        if b.output(&o.name).is_none() {
            return Err(Difference::Results(o.name.clone()));
        }
        results.push(&o.name);
    }
    if let Some(o) = b.outputs.iter().find(|o| !results.contains(&o.name.as_str())) {
        return Err(Difference::Results(o.name.clone()));
    }
    let mut worst = 0.0f64;
    for trial in 0..TRIALS {
        let mut random = Random::new(seed.wrapping_add(trial as u64));
        let mut inputs = random_inputs(p, &[&a, &b], trial as i64, &mut random).map_err(|e| failed(&e))?;
        let map_seed = seed ^ 0x5eed;
        let phi = |role: MapRole, x: &Array| Ok(stand_in(p, role, x, map_seed));
        inputs.phi = Some(&phi);
        let first = evaluate(p, &a, &mut inputs).map_err(|e| failed(&e))?;
        let second = evaluate(p, &b, &mut inputs).map_err(|e| failed(&e))?;
        for (o, x) in a.outputs.iter().zip(&first) {
            let at = b.outputs.iter().position(|q| q.name == o.name).unwrap_or_default();
            worst = worst.max(compare(&o.name, x, &second[at], seed)?);
        }
    }
    Ok(worst)
}

/// Compares a rule's step with its second statement; `None` where it has only one.
pub fn restated_agrees(p: &Program, seed: u64) -> Result<Option<f64>, Difference> {
    match (p.entry(entry::STEP), p.entry(entry::RESTATED)) {
        (Some(step), Some(restated)) => equivalent(step, restated, p, seed).map(Some),
        _ => Ok(None),
    }
}

fn compare(name: &str, a: &Value, b: &Value, seed: u64) -> Result<f64, Difference> {
    let unlike = || Difference::Results(name.to_string());
    let (x, y) = (a.tensor().ok_or_else(unlike)?, b.tensor().ok_or_else(unlike)?);
    if x.shape != y.shape {
        return Err(unlike());
    }
    let (Some(u), Some(v)) = (x.floats(), y.floats()) else {
        return if x == y { Ok(0.0) } else { Err(unlike()) };
    };
    let mut worst = (0.0, 0);
    for (i, (s, t)) in u.iter().zip(v).enumerate() {
        let same = s == t || (s.is_nan() && t.is_nan());
        let apart = if same { 0.0 } else { (s - t).abs() / s.abs().max(t.abs()).max(1.0) };
        // NaN on one side only is as far apart as can be.
        let apart = if apart.is_nan() { f64::INFINITY } else { apart };
        if apart > worst.0 {
            worst = (apart, i);
        }
    }
    if worst.0 <= TOLERANCE {
        return Ok(worst.0);
    }
    let (first, second) = (u[worst.1], v[worst.1]);
    Err(Difference::Numbers { result: name.into(), shape: x.shape.clone(), element: worst.1, first, second, seed })
}

/// Random arguments, states and parameters that serve all the given functions of a program; parameters are drawn by their initialisers and disturbed.
pub fn random_inputs<'a>(
    p: &Program,
    functions: &[&Function],
    index: i64,
    random: &mut Random,
) -> Result<Inputs<'a>, CheckError> {
    let mut inputs = Inputs { index, ..Inputs::default() };
    if let Some(f) = functions.first() {
        for a in &f.arguments {
            let Type::Tensor(t) = &a.ty else {
                let why = format!("argument `{}` is no tensor", a.name);
                return Err(CheckError::new(p, Problem::Shape(why)));
            };
            inputs.arguments.push(normal(&t.shape, random).into());
        }
    }
    inputs.states = p.states.iter().map(|s| normal(&s.shape, random)).collect();
    shape::types(p).map_err(|e| CheckError::new(p, Problem::Shape(e)))?;
    let mut all: BTreeMap<String, &Parameter> = BTreeMap::new();
    for f in functions {
        named_parameters(p, f, "", 0, &mut all);
    }
    for (path, parameter) in all {
        let drawn = initial(p, parameter, 0, 0, random).map_err(|e| CheckError::new(p, Problem::Shape(e.to_string())))?;
        let elements = drawn.floats().unwrap_or_default().iter().map(|x| x + 0.1 * random.normal()).collect();
        inputs.parameters.insert(path, Array::float(&parameter.shape, elements));
    }
    Ok(inputs)
}

fn named_parameters<'p>(p: &'p Program, f: &'p Function, prefix: &str, depth: usize, all: &mut BTreeMap<String, &'p Parameter>) {
    if depth > crate::check::MAX_DEPTH {
        return;
    }
    for parameter in &f.parameters {
        all.insert(format!("{prefix}{}", parameter.name), parameter);
    }
    for node in &f.nodes {
        let name = match &node.op {
            fwp_sdk::program::Op::Call { name, .. } | fwp_sdk::program::Op::Loop { name, .. } => name,
            _ => continue,
        };
        if let Some(inner) = callee(&node.op).and_then(|c| p.functions.get(c as usize)) {
            named_parameters(p, inner, &child(prefix, name), depth + 1, all);
        }
    }
}

fn normal(shape: &[usize], random: &mut Random) -> Array {
    let n: usize = shape.iter().product();
    Array::float(shape, (0..n).map(|_| random.normal()).collect())
}

/// A smooth map that mixes all features, with as many features as the rule expects.
pub(crate) fn stand_in(p: &Program, role: MapRole, x: &Array, seed: u64) -> Array {
    let from = x.shape.first().copied().unwrap_or(1);
    let sizes = crate::check::phi_sizes(p);
    let to = sizes.iter().find(|(a, _)| *a == from).map_or(from, |(_, b)| *b);
    let mut random = Random::new(seed ^ role as u64);
    let values = x.floats().unwrap_or_default();
    let feature = |_| {
        let mixed: f64 = values.iter().map(|v| v * random.normal()).sum();
        mixed.tanh() + 0.5
    };
    Array::float(&[to], (0..to).map(feature).collect())
}
