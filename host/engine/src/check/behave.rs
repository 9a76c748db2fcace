//! What holds for every executor, the reference included.

use std::hint::black_box;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::{DOUBLE, Report, SINGLE, Trial, distance, tame};
use crate::shim;
use crate::trial::draw::{normal, scalar, seed_of};
use crate::trial::executor::REFERENCE;
use crate::trial::{Data, Outcome, Wanted};
use fwp_program::interpret::Random;

/// Sequences of a batch.
const BATCH: i64 = 3;
/// Steps: more than one chunk of 64, and no multiple of anything.
const STEPS: i64 = 101;
/// Where something happens: inside of a chunk, at the end of one, at the start of one.
const PLACES: [i64; 3] = [20, 63, 64];
/// Relative difference in float64 that rounding may cause where numbers are computed in another order.
const ROUNDING: f64 = 1e-11;

fn data(trial: &Trial<'_>, states: bool, masks: bool) -> Result<Data> {
    let seed = seed_of(trial.seed, &format!("behaviour {states} {masks}"));
    tame(trial.subject, Wanted { batch: BATCH, steps: STEPS, states, masks }, seed)
}

/// Adds normal numbers to a part of every input.
fn disturbed(data: &Data, seed: u64, part: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Data> {
    let mut random = Random::new(seed_of(seed, "disturbance"));
    let changed = data.copied();
    for (_, t) in &changed.inputs {
        let mut view = part(t)?;
        let noise = normal(&mut random, &view.size())?;
        _ = view.f_add_(&noise)?;
    }
    Ok(changed)
}

/// The largest difference, relative to the largest number of the first; NaN counts as infinite.
fn moved(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.numel() == 0 {
        return Ok(0.0);
    }
    let scale = a.f_abs()?.f_max()?.f_double_value(&[])?.max(f64::MIN_POSITIVE);
    let apart = a.f_sub(b)?.f_abs()?.f_max()?.f_double_value(&[])? / scale;
    Ok(if apart.is_nan() { f64::INFINITY } else { apart })
}

fn outputs(outcome: &Outcome) -> impl Iterator<Item = &(String, Tensor)> {
    outcome.values.iter().filter(|(n, _)| !n.starts_with("state."))
}

/// Changes the inputs from a step on; earlier outputs must stay.
pub(super) fn causality(trial: &Trial<'_>) -> Result<Report> {
    let data = data(trial, true, true)?;
    let run = |data: &Data| trial.subject.run(trial.executor, DOUBLE, data, None);
    let plain = run(&data)?;
    let mut later = false;
    for place in PLACES {
        let changed = run(&disturbed(&data, trial.seed, |t| Ok(t.f_narrow(1, place, STEPS - place)?))?)?;
        for ((name, a), (_, b)) in outputs(&plain).zip(outputs(&changed)) {
            let apart = moved(&a.f_narrow(1, 0, place)?, &b.f_narrow(1, 0, place)?)?;
            if apart > ROUNDING {
                return Ok(Report::failed(format!(
                    "`{name}` before step {place} moves by {apart:.1e} when inputs change from that step on"
                )));
            }
            later |= moved(a, b)? > ROUNDING;
        }
    }
    if !later {
        return Ok(Report::failed("no output moves at all when the inputs change: the output does not depend on them"));
    }
    Ok(Report::passed(format!("inputs changed from steps {PLACES:?} of {STEPS} on")))
}

/// Changes one sequence, and runs each alone.
pub(super) fn batch(trial: &Trial<'_>) -> Result<Report> {
    let data = data(trial, true, true)?;
    let run = |data: &Data| trial.subject.run(trial.executor, DOUBLE, data, None);
    let plain = run(&data)?;
    let changed = run(&disturbed(&data, trial.seed, |t| Ok(t.f_narrow(0, 1, 1)?))?)?;
    for sample in [0, 2] {
        for ((name, a), (_, b)) in plain.values.iter().zip(&changed.values) {
            let apart = moved(&a.get(sample), &b.get(sample))?;
            if apart > 0.0 {
                return Ok(Report::failed(format!("`{name}` of sequence {sample} moves by {apart:.1e} when sequence 1 changes")));
            }
        }
    }
    for sample in 0..BATCH {
        let mut alone = data.copied();
        for (_, t) in alone.inputs.iter_mut().chain(&mut alone.states) {
            *t = t.f_narrow(0, sample, 1)?.copy();
        }
        for mask in [&mut alone.reset, &mut alone.write].into_iter().flatten() {
            *mask = mask.f_narrow(0, sample, 1)?.copy();
        }
        for ((name, a), (_, b)) in plain.values.iter().zip(&run(&alone)?.values) {
            let apart = moved(&a.f_narrow(0, sample, 1)?, b)?;
            if apart > ROUNDING {
                return Ok(Report::failed(format!(
                    "`{name}` of sequence {sample} is {apart:.1e} away from that of the sequence alone"
                )));
            }
        }
    }
    Ok(Report::passed(format!("{BATCH} sequences")))
}

/// Two halves, the second with the state of the first.
pub(super) fn carry(trial: &Trial<'_>) -> Result<Report> {
    let run = |data: &Data| trial.subject.run(trial.executor, DOUBLE, data, None);
    for (states, masks) in [(false, false), (true, true)] {
        let data = data(trial, states, masks)?;
        let whole = run(&data)?;
        for place in PLACES {
            let first = run(&data.cut(0, place)?)?;
            let mut rest = data.cut(place, STEPS - place)?;
            rest.states = trial
                .subject
                .rule
                .states
                .iter()
                .map(|s| Ok((s.name.clone(), first.value(&format!("state.{}", s.name))?.copy())))
                .collect::<Result<_>>()?;
            rest.index = Some(first.index.copy());
            let second = run(&rest)?;
            for (name, a) in &whole.values {
                let b = if name.starts_with("state.") {
                    second.value(name)?.shallow_clone()
                } else {
                    Tensor::f_cat(&[first.value(name)?, second.value(name)?], 1)?
                };
                let apart = moved(a, &b)?;
                if apart > ROUNDING {
                    return Ok(Report::failed(format!(
                        "`{name}` of two parts divided at step {place} is {apart:.1e} away from one pass"
                    )));
                }
            }
        }
    }
    Ok(Report::passed(format!("divided at steps {PLACES:?} of {STEPS}")))
}

/// NaN in one element of one input.
pub(super) fn nan(trial: &Trial<'_>) -> Result<Report> {
    let data = data(trial, true, false)?;
    let mut hidden = Vec::new();
    for precision in [SINGLE, DOUBLE] {
        // States that grow out of range give NaN of their own.
        let unspoiled = trial.subject.run(trial.executor, precision, &data, None)?;
        for i in 0..data.inputs.len() {
            let spoiled = data.copied();
            let (name, t) = &spoiled.inputs[i];
            let mut element = t.get(1).get(PLACES[0]).flatten(0, -1).narrow(0, 0, 1);
            _ = element.f_add_(&scalar(f64::NAN))?;
            let expected = trial.subject.run(REFERENCE, precision, &spoiled, None)?;
            let got = trial.subject.run(trial.executor, precision, &spoiled, None)?;
            let mut seen = false;
            for ((value, a), (_, b)) in expected.values.iter().zip(&got.values) {
                let (a, b) = (a.f_isnan()?, b.f_isnan()?);
                let missing = a.f_logical_and(&b.f_logical_not()?)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
                seen |= a.f_any()?.f_int64_value(&[])? != 0;
                if missing > 0 {
                    return Ok(Report::failed(format!(
                        "NaN in `{name}`: {missing} elements of `{value}` are numbers where the reference has NaN"
                    )));
                }
                let new = b.f_logical_and(&unspoiled.value(value)?.f_isnan()?.f_logical_not()?)?;
                for sample in [0, 2] {
                    if new.get(sample).f_any()?.f_int64_value(&[])? != 0 {
                        return Ok(Report::failed(format!(
                            "NaN in `{name}` of sequence 1 comes out in `{value}` of sequence {sample}"
                        )));
                    }
                }
            }
            if !seen && precision == DOUBLE {
                hidden.push(format!("`{name}`"));
            }
        }
    }
    if hidden.len() == data.inputs.len() {
        return Ok(Report::failed("NaN in an input never comes out: training would go on with wrong numbers"));
    }
    let note = if hidden.is_empty() { String::new() } else { format!("; NaN in {} shows nowhere", hidden.join(", ")) };
    Ok(Report::passed(format!("{} inputs{note}", data.inputs.len())))
}

/// What the floating-point unit does, seen by its results.
#[derive(Clone, Debug, PartialEq)]
struct Mode {
    /// Whether half of a small number is a subnormal one, and a subnormal one times two is not 0.
    subnormal: [bool; 2],
    /// Whether sums are rounded to the nearest, ties to even.
    nearest: [bool; 2],
}

fn mode_here() -> Mode {
    let half = black_box(1e-38f32) * black_box(0.1f32);
    let twice = black_box(f32::from_bits(1 << 20)) * black_box(2.0f32);
    let tiny = black_box(f32::EPSILON / 2.0);
    Mode {
        subnormal: [half > 0.0, twice > 0.0],
        nearest: [black_box(1.0f32) + tiny == 1.0, black_box(1.0 + f32::EPSILON) + tiny == 1.0 + 2.0 * f32::EPSILON],
    }
}

/// The mode of this thread, of a new one, and of libtorch's pool.
fn modes() -> Result<(Mode, Mode, i64)> {
    let new = std::thread::spawn(mode_here).join().ok().context("internal: a thread ended")?;
    // Long enough to be divided among all threads of the pool.
    let small = Tensor::f_full([1 << 20], 1e-38, (Kind::Float, Device::Cpu))?;
    let kept = small.f_mul(&Tensor::f_full([0i64; 0], 0.1, (Kind::Float, Device::Cpu))?)?.f_gt(0.0)?;
    Ok((mode_here(), new, kept.f_sum(Kind::Int64)?.f_int64_value(&[])?))
}

/// The floating-point mode before and after an executor has run, forward and backward.
pub(super) fn mode(trial: &Trial<'_>) -> Result<Report> {
    shim::set_num_threads(4);
    let before = modes()?;
    let data = data(trial, true, true)?;
    for precision in [SINGLE, DOUBLE] {
        let plain = trial.subject.run(trial.executor, precision, &data, None)?;
        let weights = trial.subject.weights(&plain, trial.seed)?;
        trial.subject.run(trial.executor, precision, &data, Some(&weights))?;
    }
    let after = modes()?;
    if before == after {
        return Ok(Report::passed("this thread, a new one and libtorch's threads"));
    }
    Ok(Report::failed(format!(
        "the floating-point mode is another after it ran (this thread, a new thread, subnormal results of libtorch): {before:?} before, {after:?} after"
    )))
}

/// The same bits for any number of threads.
pub(super) fn threads(trial: &Trial<'_>) -> Result<Report> {
    let data = data(trial, true, true)?;
    let subject = trial.subject;
    let plain = subject.run(trial.executor, SINGLE, &data, None)?;
    let weights = subject.weights(&plain, trial.seed)?;
    let mut first: Option<Outcome> = None;
    for count in [1, 2, 3, 4] {
        shim::set_num_threads(count);
        let got = subject.run(trial.executor, SINGLE, &data, Some(&weights))?;
        let Some(first) = &first else {
            first = Some(got);
            continue;
        };
        for ((name, a), (_, b)) in first.all().zip(got.all()) {
            if a != b {
                let apart = distance(b, a)?;
                return Ok(Report::failed(format!("`{name}` with {count} threads differs from that with 1 by {apart:.1e}")));
            }
        }
    }
    Ok(Report::passed("1, 2, 3 and 4 threads"))
}
