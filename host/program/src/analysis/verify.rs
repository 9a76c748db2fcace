//! A form carried out step by step on plain numbers, and compared with the step it was derived from.

use fwp_sdk::program::{Function, MapRole, Program};

use super::flatten::Flat;
use super::form::{Canonical, Decay, Factor, Form, Query, Range, Side, Stratum};
use crate::equivalent::{random_inputs, stand_in};
use crate::interpret::{Array, Inputs, Random, Value, evaluate};

/// Steps that are compared; fewer where a state is so large that every step costs a noticeable time.
const STEPS: i64 = 6;
/// Elements of a state from which on two steps must do.
const LARGE: usize = 1 << 15;
/// How far form and step may be apart, relative to the largest number of a tensor.
const TOLERANCE: f64 = 1e-9;

/// Results of one step: the states after it, in order, and the outputs by name.
pub(super) struct Stepped {
    pub states: Vec<Array>,
    pub outputs: Vec<(String, Array)>,
}

/// One step by the flattened function.
pub(super) fn by_step(p: &Program, step: &Function, inputs: &mut Inputs<'_>) -> Result<Stepped, String> {
    let values = evaluate(p, step, inputs).map_err(|e| e.to_string())?;
    let mut states = inputs.states.clone();
    let mut outputs = Vec::new();
    for (o, v) in step.outputs.iter().zip(values) {
        let Value::Tensor(a) = v else { return Err(format!("`{}` is no tensor", o.name)) };
        match o.name.strip_prefix("state.") {
            Some(name) => {
                let i = p.states.iter().position(|s| s.name == name).ok_or("there is no such state")?;
                states[i] = a;
            }
            None => outputs.push((o.name.clone(), a)),
        }
    }
    Ok(Stepped { states, outputs })
}

/// One step by the canonical form. `inputs` are those of the step.
///
/// # Errors
/// What could not be evaluated.
pub(super) fn by_form(p: &Program, c: &Canonical, inputs: &mut Inputs<'_>) -> Result<Stepped, String> {
    let own = inputs.arguments.len();
    let done = run(p, c, inputs);
    inputs.arguments.truncate(own);
    done
}

fn run(p: &Program, c: &Canonical, inputs: &mut Inputs<'_>) -> Result<Stepped, String> {
    let mut states = inputs.states.clone();
    for stratum in &c.strata {
        match stratum {
            Stratum::Chunk(form) => {
                let (next, reads) = chunk(p, form, inputs)?;
                states[form.state as usize] = next;
                inputs.arguments.extend(reads.into_iter().map(Value::Tensor));
            }
            Stratum::Walk(walk) => {
                let values = evaluate(p, &walk.step, inputs).map_err(|e| e.to_string())?;
                for (o, v) in walk.step.outputs.iter().zip(values) {
                    match (o.name.strip_prefix("state."), v) {
                        (Some(name), Value::Tensor(a)) => {
                            let i = p.states.iter().position(|s| s.name == name).ok_or("there is no such state")?;
                            states[i] = a;
                        }
                        (_, v) => inputs.arguments.push(v),
                    }
                }
            }
        }
    }
    let values = evaluate(p, &c.rest, inputs).map_err(|e| e.to_string())?;
    let mut outputs = Vec::new();
    for (o, v) in c.rest.outputs.iter().zip(values) {
        let Value::Tensor(a) = v else { return Err(format!("`{}` is no tensor", o.name)) };
        outputs.push((o.name.clone(), a));
    }
    Ok(Stepped { states, outputs })
}

/// The state after a step of one form, and its reads.
fn chunk(p: &Program, form: &Form, inputs: &mut Inputs<'_>) -> Result<(Array, Vec<Array>), String> {
    let values = evaluate(p, &form.coefficients, inputs).map_err(|e| e.to_string())?;
    let coefficient = |i: usize| -> Result<&[f64], String> {
        let tensor = values.get(i).and_then(Value::tensor).and_then(Array::floats);
        tensor.ok_or_else(|| format!("there is no coefficient {i}"))
    };
    let [rows, columns] = form.size;
    let start = inputs.states.get(form.state as usize).ok_or("there is no such state")?;
    let shape = start.shape.clone();
    let given = start.floats().ok_or("a state holds no numbers")?;
    let turn = |x: &[f64], from_rows: usize, from_columns: usize| -> Vec<f64> {
        (0..from_columns * from_rows).map(|i| x[(i % from_rows) * from_columns + i / from_rows]).collect()
    };
    let mut s = if form.side == Side::Left { turn(given, columns, rows) } else { given.to_vec() };
    if s.len() != rows * columns {
        return Err(format!("the form is one of {rows} x {columns}, the state has {} elements", s.len()));
    }
    let mut reads: Vec<Option<Array>> = vec![None; form.reads.len()];
    for boundary in 0..=form.segments.len() {
        for (read, slot) in form.reads.iter().zip(&mut reads).filter(|(r, _)| r.after == boundary) {
            let y = match read.query {
                Query::Whole => s.clone(),
                Query::Right(q) => matvec(&s, columns, coefficient(q)?),
                Query::Left(q) => matvec(&turn(&s, rows, columns), rows, coefficient(q)?),
            };
            *slot = Some(Array::new(&read.shape, y).ok_or_else(|| format!("read `{}` has another size", read.name))?);
        }
        let Some(segment) = form.segments.get(boundary) else { break };
        let mut next = match &segment.decay {
            Decay::One => s.clone(),
            Decay::Scalar(f) => {
                let a = factor(f, coefficient(f.coefficient)?);
                s.iter().map(|x| x * a[0]).collect()
            }
            Decay::Columns(f) => {
                let a = factor(f, coefficient(f.coefficient)?);
                (0..s.len()).map(|i| s[i] * a[i % columns]).collect()
            }
            Decay::Rows(f) => {
                let a = factor(f, coefficient(f.coefficient)?);
                (0..s.len()).map(|i| s[i] * a[i / columns]).collect()
            }
        };
        for t in &segment.terms {
            let mut left = vec![0.0; rows];
            if let Some(u) = t.column {
                left.iter_mut().zip(coefficient(u)?).for_each(|(l, u)| *l += u);
            }
            if let Some(p) = t.erase {
                left.iter_mut().zip(matvec(&s, columns, coefficient(p)?)).for_each(|(l, r)| *l += r);
            }
            let w = coefficient(t.row)?;
            if w.len() != columns {
                return Err(format!("a row of {} in a form of {columns} columns", w.len()));
            }
            (0..next.len()).for_each(|i| next[i] += left[i / columns] * w[i % columns]);
        }
        s = next;
    }
    if form.side == Side::Left {
        s = turn(&s, rows, columns);
    }
    let reads: Option<Vec<Array>> = reads.into_iter().collect();
    let next = Array::new(&shape, s).ok_or("the state has another size")?;
    Ok((next, reads.ok_or("a read comes after the last segment")?))
}

fn factor(f: &Factor, x: &[f64]) -> Vec<f64> {
    x.iter().map(|v| if f.range == Range::Log { v.exp() } else { *v }).collect()
}

fn matvec(s: &[f64], columns: usize, q: &[f64]) -> Vec<f64> {
    s.chunks(columns).map(|row| row.iter().zip(q).map(|(a, b)| a * b).sum()).collect()
}

/// Random inputs of a step: vectors of length about 1, so that products of steps neither vanish nor explode.
pub(super) fn drawn<'a>(p: &Program, step: &Function, index: i64, random: &mut Random) -> Result<Inputs<'a>, String> {
    let mut inputs = random_inputs(p, &[step], index, random).map_err(|e| e.to_string())?;
    for a in &mut inputs.arguments {
        if let Value::Tensor(t) = a {
            let n = t.shape.last().copied().unwrap_or(1) as f64;
            let scaled = t.floats().map(|x| x.iter().map(|v| v * 1.5 / n.sqrt()).collect());
            if let Some(scaled) = scaled.and_then(|x| Array::new(&t.shape, x)) {
                *t = scaled;
            }
        }
    }
    Ok(inputs)
}

/// Largest difference relative to the largest number; infinite where only one side is a number.
pub(super) fn distance(a: &Array, b: &Array) -> f64 {
    let (Some(x), Some(y)) = (a.floats(), b.floats()) else { return if a == b { 0.0 } else { f64::INFINITY } };
    if a.shape != b.shape {
        return f64::INFINITY;
    }
    let largest = x.iter().chain(y).filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs())).max(1e-30);
    let difference = |(u, v): (&f64, &f64)| match (u == v) || (u.is_nan() && v.is_nan()) {
        true => 0.0,
        false if (u - v).is_nan() => f64::INFINITY,
        false => (u - v).abs() / largest,
    };
    x.iter().zip(y).map(difference).fold(0.0, f64::max)
}

/// Runs step and form from the same random states and inputs; the result that differs and by how much.
pub(super) fn verify(p: &Program, flat: &Flat, c: &Canonical, seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let phi = |role: MapRole, x: &Array| Ok(stand_in(p, role, x, seed));
    let mut states: Option<Vec<Array>> = None;
    let large = p.states.iter().any(|s| s.shape.iter().product::<usize>() >= LARGE);
    for index in 0..if large { 2 } else { STEPS } {
        let mut inputs = drawn(p, &flat.step, index, &mut random)?;
        inputs.phi = Some(&phi);
        if let Some(states) = states.take() {
            inputs.states = states;
        }
        let expected = by_step(p, &flat.step, &mut inputs)?;
        let found = by_form(p, c, &mut inputs)?;
        for (i, (a, b)) in found.states.iter().zip(&expected.states).enumerate() {
            let d = distance(a, b);
            if d > TOLERANCE {
                return Err(format!(
                    "state `{}` differs by {d:.1e} after step {index}, for inputs drawn from seed {seed}",
                    p.states[i].name
                ));
            }
        }
        for (name, b) in &expected.outputs {
            let a = found.outputs.iter().find(|(n, _)| n == name).map(|(_, a)| a);
            let d = a.map_or(f64::INFINITY, |a| distance(a, b));
            if d > TOLERANCE {
                return Err(format!("result `{name}` differs by {d:.1e} at step {index}, for inputs drawn from seed {seed}"));
            }
        }
        states = Some(expected.states);
    }
    Ok(())
}

/// Whether the next values of some states are affine in them, on random numbers: f(a x + (1 - a) y) = a f(x) + (1 - a) f(y).
///
/// # Errors
/// What could not be evaluated.
pub(super) fn affine_in_numbers(p: &Program, flat: &Flat, group: &[usize], seed: u64) -> Result<bool, String> {
    let phi = |role: MapRole, x: &Array| Ok(stand_in(p, role, x, seed));
    for trial in 0..4 {
        let mut random = Random::new(seed.wrapping_add(trial));
        let mut inputs = drawn(p, &flat.step, trial as i64, &mut random)?;
        inputs.phi = Some(&phi);
        let other = drawn(p, &flat.step, 0, &mut random)?;
        let a = [0.3, -0.7, 1.6, 0.5][trial as usize % 4];
        // Large states, so that what is flat near zero shows.
        let size = [1.0, 3.0, 10.0, 0.1][trial as usize % 4];
        let mix = |x: &Array, y: &Array, a: f64| -> Option<Array> {
            let (u, v) = (x.floats()?, y.floats()?);
            Array::new(&x.shape, u.iter().zip(v).map(|(u, v)| a * u + (1.0 - a) * v).collect())
        };
        let mut at = |weights: [f64; 2]| -> Result<Vec<Array>, String> {
            let kept = inputs.states.clone();
            for g in group {
                let scaled =
                    |x: &Array, w: f64| -> Vec<f64> { x.floats().unwrap_or_default().iter().map(|v| v * w * size).collect() };
                let sum: Vec<f64> =
                    scaled(&kept[*g], weights[0]).iter().zip(scaled(&other.states[*g], weights[1])).map(|(x, y)| x + y).collect();
                inputs.states[*g] = Array::new(&kept[*g].shape, sum).ok_or("a state has another size")?;
            }
            let done = by_step(p, &flat.step, &mut inputs)?;
            inputs.states = kept;
            Ok(group.iter().map(|g| done.states[*g].clone()).collect())
        };
        let (x, y, between) = (at([1.0, 0.0])?, at([0.0, 1.0])?, at([a, 1.0 - a])?);
        for ((x, y), z) in x.iter().zip(&y).zip(&between) {
            let Some(expected) = mix(x, y, a) else { return Ok(false) };
            let numbers = |t: &Array| t.floats().unwrap_or_default().to_vec();
            // What cancels in the mixture is measured against what it was mixed from.
            let largest = [x, y, z].into_iter().flat_map(numbers).fold(1e-30f64, |m, v| m.max(v.abs()));
            let close = |(u, v): (f64, f64)| u == v || (u - v).abs() <= TOLERANCE * largest;
            if !numbers(z).into_iter().zip(numbers(&expected)).all(close) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Which axes of a matrix state are independent on random numbers: changing one row (axis 0) or column (axis 1) before the step
/// changes only that row or column after it.
///
/// # Errors
/// What could not be evaluated.
pub(super) fn independent_axes(p: &Program, flat: &Flat, group: &[usize], seed: u64) -> Result<[bool; 2], String> {
    let shape = &p.states[group[0]].shape;
    if shape.len() != 2 || group.iter().any(|g| p.states[*g].shape != *shape) {
        return Ok([false; 2]);
    }
    let phi = |role: MapRole, x: &Array| Ok(stand_in(p, role, x, seed));
    let mut random = Random::new(seed);
    let mut inputs = drawn(p, &flat.step, 1, &mut random)?;
    inputs.phi = Some(&phi);
    let before = by_step(p, &flat.step, &mut inputs)?;
    let columns = shape[1];
    let mut independent = [true; 2];
    for axis in 0..2 {
        // The first, one in the middle and the last tell as much as all.
        for line in [0, shape[axis] / 2, shape[axis] - 1] {
            let on = |i: usize| (if axis == 0 { i / columns } else { i % columns }) == line;
            let kept = inputs.states.clone();
            for g in group {
                let changed: Vec<f64> = kept[*g]
                    .floats()
                    .unwrap_or_default()
                    .iter()
                    .enumerate()
                    .map(|(i, v)| if on(i) { v + 1.0 } else { *v })
                    .collect();
                inputs.states[*g] = Array::new(shape, changed).ok_or("a state has another size")?;
            }
            let after = by_step(p, &flat.step, &mut inputs)?;
            inputs.states = kept;
            for g in group {
                let (x, y) = (before.states[*g].floats().unwrap_or_default(), after.states[*g].floats().unwrap_or_default());
                independent[axis] &= x.iter().zip(y).enumerate().all(|(i, (a, b))| on(i) || a == b || (a.is_nan() && b.is_nan()));
            }
        }
    }
    Ok(independent)
}

#[cfg(test)]
mod tests {
    use fwp_sdk::build::Dims;
    use fwp_sdk::prelude::*;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::super::{Decay, Stratum, canonical, flatten::flatten};
    use super::*;

    fwp_sdk::config! {
        /// The gated delta rule.
        pub struct Gated {}
    }
    impl UpdateRule for Gated {
        const NAME: &'static str = "gated";
        const CITATION: &'static str = "tests";
        const OBJECTIVE: &'static str = "none";
        fn signature(&self, dims: Dims) -> Signature {
            Signature::new(dims).signal("a", [dims.key]).state("w", [dims.value, dims.key], StateStart::Zeros)
        }
        fn step(&self, s: &mut Step) {
            let (q, k, v) = s.query_key_value();
            let w = s.state("w").scale_columns(s.signal("a").sigmoid());
            let w = &w + outer(v - w.matvec(&k), &k);
            s.output(w.matvec(q));
            s.set_state("w", w);
        }
    }

    fn form(c: &mut Canonical) -> &mut Form {
        match &mut c.strata[0] {
            Stratum::Chunk(f) => f,
            Stratum::Walk(w) => panic!("{}", w.why),
        }
    }

    /// Every part of a form matters: with any of them wrong it is found to disagree.
    #[test]
    fn a_wrong_form_is_found() {
        for dims in [
            Dims { heads: 1, key_raw: 5, key: 5, value: 3, ..Dims::ONE },
            Dims { heads: 1, key_raw: 4, key: 4, value: 4, ..Dims::ONE },
        ] {
            let p = testing::rule::<Gated>(json!({}), dims).unwrap();
            let flat = flatten(&p).unwrap();
            let right = canonical(&p).unwrap().unwrap();
            verify(&p, &flat, &right, 1).unwrap();
            let wrong: [fn(&mut Form); 6] = [
                |f| f.segments[0].decay = Decay::One,
                |f| f.segments[0].terms[0].erase = None,
                |f| f.segments[0].terms[0].column = None,
                |f| f.segments.clear(),
                |f| f.reads[0].after = 0,
                |f| {
                    if let Decay::Columns(a) = &mut f.segments[0].decay {
                        a.range = Range::Positive;
                    }
                },
            ];
            for (i, change) in wrong.iter().enumerate() {
                let mut c = right.clone();
                change(form(&mut c));
                assert!(verify(&p, &flat, &c, 1).is_err(), "change {i}");
            }
            if dims.key == dims.value {
                let mut c = right.clone();
                form(&mut c).side = Side::Left;
                assert!(verify(&p, &flat, &c, 1).is_err(), "a square state on its side");
            }
        }
    }
}
