//! An executor against the reference.

use std::collections::BTreeMap;

use anyhow::Result;
use tch::{Kind, Tensor};

use super::{DOUBLE, Report, SINGLE, Trial, apart, distance, is_finite};
use crate::trial::draw::{normal, seed_of};
use crate::trial::executor::REFERENCE;
use crate::trial::{Data, Outcome, Wanted};
use fwp_program::interpret::Random;

/// Every length that a chunk, a vector or a checkpoint may end badly at.
pub(super) fn lengths(quick: bool) -> &'static [i64] {
    if quick { &[1, 2, 17, 65] } else { &[1, 2, 15, 16, 17, 63, 64, 65, 100, 257] }
}

/// The longest length that rules are compared at which amplify every rounding error.
const CHAOTIC_LENGTH: i64 = 65;
/// A relative error of the float32 reference at the greatest length, above which a rule counts as one of those.
const CHAOTIC_ERROR: f64 = 1e-3;

/// Least number of elements that an error is taken over.
/// That of a tensor of one element is luck, and four times another luck no measure: more sequences are taken where steps are few,
/// and tensors that are small all the same (gradients of parameters) are judged by their errors over all places together.
const ELEMENTS: i64 = 64;
/// How much more a small tensor may differ at one place, where all that it sums may cancel.
const LUCK: f64 = 64.0;

/// How many times the error of the yardstick an executor may have.
const FACTOR: f64 = 4.0;
/// An error that is always allowed, relative to the tensor: a few units in the last place.
const FLOOR: f64 = 8.0 * f32::EPSILON as f64;
/// The same in float64. Both sides err there, and none is known better: twice as much, scaled from float32, and at least what is far below
/// every error that float32 could hide.
const FACTOR_DOUBLE: f64 = 2.0 * FACTOR;
const FLOOR_DOUBLE: f64 = 1e-12;
const DOUBLE_OF_SINGLE: f64 = f64::EPSILON / f32::EPSILON as f64;

/// The case that seemed worst.
#[derive(Default)]
struct Worst {
    ratio: f64,
    place: String,
}

/// A small tensor over all places: squared lengths of its errors and of itself, as if it were one tensor.
#[derive(Default)]
struct Pooled {
    places: usize,
    length: f64,
    /// Of the two yardsticks, and of the executor in float32 and float64.
    errors: [f64; 4],
}

impl Pooled {
    fn add(&mut self, exact: &Tensor, others: [&Tensor; 4]) -> Result<()> {
        self.places += 1;
        for (sum, other) in self.errors.iter_mut().zip(others) {
            let (error, length) = apart(other, exact)?;
            *sum += error.powi(2);
            self.length += length.powi(2) / 4.0;
        }
        Ok(())
    }

    /// Relative errors of the yardstick and of the executor; absolute where the tensor is 0 everywhere.
    fn relative(&self) -> [f64; 3] {
        let length = if self.length > 0.0 { self.length } else { 1.0 };
        let [single, moved, got, got_double] = self.errors.map(|sum| (sum / length).sqrt());
        [single.max(moved), got, got_double]
    }
}

/// What is allowed in float32 and float64, where the yardstick has this error.
fn allowed(of_reference: f64) -> [f64; 2] {
    let double = (FACTOR_DOUBLE * of_reference * DOUBLE_OF_SINGLE).max(FLOOR_DOUBLE);
    [(FACTOR * of_reference).max(FLOOR), double]
}

/// The names of the two types.
const TYPES: [&str; 2] = ["float32", "float64"];

/// The five runs of one setting.
///
/// Two of them are the yardstick: the float32 reference, and the float64 reference on inputs that are moved by as much as float32 rounds.
/// The first alone may be right by luck where a rule divides by what cancels: whoever rounds elsewhere has the error of the second.
struct Place {
    says: String,
    exact: Outcome,
    single: Outcome,
    moved: Outcome,
    got: Outcome,
    got_double: Outcome,
}

/// One length in all settings; with the settings whose float64 reference is not finite.
fn places(trial: &Trial<'_>, length: i64) -> Result<(Vec<Place>, Vec<String>)> {
    let (mut found, mut overflown) = (Vec::new(), Vec::new());
    for (states, masks) in [(false, false), (true, false), (false, true), (true, true)] {
        let says = format!("length {length}, initial states {}, masks {}", yes(states), yes(masks));
        let data = data(trial, length, states, masks)?;
        let weights = weights(trial, &data)?;
        let run = |executor, precision| trial.subject.run(executor, precision, &data, Some(&weights));
        let exact = run(REFERENCE, DOUBLE)?;
        if !all_finite(&exact)? {
            overflown.push(says);
            continue;
        }
        let (single, got, got_double) = (run(REFERENCE, SINGLE)?, run(trial.executor, SINGLE)?, run(trial.executor, DOUBLE)?);
        let moved = trial.subject.run(REFERENCE, DOUBLE, &moved(trial, &data)?, Some(&weights))?;
        found.push(Place { says, exact, single, moved, got, got_double });
    }
    Ok((found, overflown))
}

/// How far numbers are moved, relative to themselves: as far as rounding to float32 does.
const MOVED: f64 = f32::EPSILON as f64 / 4.0;

/// Every number moved at random by as much as float32 rounds.
fn moved(trial: &Trial<'_>, data: &Data) -> Result<Data> {
    let mut random = Random::new(seed_of(trial.seed, "moved"));
    let mut moved = data.copied();
    for (_, t) in moved.inputs.iter_mut().chain(&mut moved.states).chain(&mut moved.parameters) {
        let factor = normal(&mut random, &t.size())?.f_mul_scalar(MOVED)?.f_add_scalar(1.0)?;
        *t = t.f_mul(&factor)?;
    }
    Ok(moved)
}

/// The largest error of the yardstick at a length, for every tensor: with one draw alone it may be small by luck.
fn yardstick(places: &[Place]) -> Result<BTreeMap<String, f64>> {
    let mut errors: BTreeMap<String, f64> = BTreeMap::new();
    for place in places {
        for (((name, exact), (_, single)), (_, moved)) in place.exact.all().zip(place.single.all()).zip(place.moved.all()) {
            let largest = errors.entry(name.clone()).or_default();
            *largest = largest.max(distance(single, exact)?).max(distance(moved, exact)?);
        }
    }
    Ok(errors)
}

/// Compares outputs, final states and gradients.
pub(super) fn agreement(trial: &Trial<'_>) -> Result<Report> {
    let chaotic = is_chaotic(trial)?;
    let mut worst = Worst::default();
    let (mut compared, mut overflown) = (0, Vec::new());
    let mut pooled: BTreeMap<String, Pooled> = BTreeMap::new();
    // All sizes, the length among them, are equal at one place.
    let equal = (trial.subject.sizes == "equal").then_some(trial.subject.heads);
    let lengths = equal.into_iter().chain(self::lengths(trial.quick).iter().copied());
    for length in lengths.filter(|n| chaotic.is_none() || *n <= CHAOTIC_LENGTH) {
        let (places, infinite) = places(trial, length)?;
        overflown.extend(infinite);
        let yardstick = yardstick(&places)?;
        for place in &places {
            let references = place.exact.all().zip(place.single.all()).zip(place.moved.all());
            for ((((name, exact), (_, single)), (_, moved)), ((_, got), (_, got_double))) in
                references.zip(place.got.all().zip(place.got_double.all()))
            {
                compared += 1;
                let of_reference = yardstick.get(name).copied().unwrap_or_default();
                let errors = [distance(got, exact)?, distance(got_double, exact)?];
                let mut bounds = allowed(of_reference);
                if exact.numel() < ELEMENTS as usize {
                    pooled.entry(name.clone()).or_default().add(exact, [single, moved, got, got_double])?;
                    bounds = bounds.map(|b| LUCK * b);
                }
                for k in 0..2 {
                    let (precision, error, bound) = (TYPES[k], errors[k], bounds[k]);
                    if error.is_nan() || error > bound {
                        return Ok(Report::failed(format!(
                            "`{name}` differs from the reference in {precision} at {}: relative error {error:.2e}, \
                             allowed {bound:.2e} (the reference itself has {of_reference:.2e})",
                            place.says
                        )));
                    }
                    if error / bound > worst.ratio {
                        worst = Worst { ratio: error / bound, place: format!("`{name}` in {precision} at {}", place.says) };
                    }
                }
            }
        }
    }
    for (name, pool) in &pooled {
        let [of_reference, single, double] = pool.relative();
        for ((precision, error), bound) in TYPES.into_iter().zip([single, double]).zip(allowed(of_reference)) {
            if error > bound {
                return Ok(Report::failed(format!(
                    "`{name}` differs from the reference in {precision} over all {} places: relative error {error:.2e}, \
                     allowed {bound:.2e} (the reference itself has {of_reference:.2e})",
                    pool.places
                )));
            }
            if error / bound > worst.ratio {
                worst = Worst { ratio: error / bound, place: format!("`{name}` in {precision} over all places") };
            }
        }
    }
    if compared == 0 {
        return Ok(Report::failed("the reference itself is not finite anywhere: nothing can be compared"));
    }
    let mut message =
        format!("{compared} tensors; the largest error is {:.0} % of what is allowed ({})", 100.0 * worst.ratio, worst.place);
    if let Some(error) = chaotic {
        message += &format!(
            "; compared up to length {CHAOTIC_LENGTH} only, because the rule amplifies rounding: the float32 reference is off by {error:.1e} \
             at length {}",
            self::lengths(trial.quick).last().copied().unwrap_or_default()
        );
    }
    if let [first, ..] = &overflown[..] {
        message += &format!("; not compared where the float64 reference overflows ({} places, such as {first})", overflown.len());
    }
    Ok(Report::passed(message))
}

/// The error of the float32 reference at the greatest length, where that says that no executor can be judged there.
fn is_chaotic(trial: &Trial<'_>) -> Result<Option<f64>> {
    let length = lengths(trial.quick).last().copied().unwrap_or(1);
    if length <= CHAOTIC_LENGTH {
        return Ok(None);
    }
    let data = data(trial, length, false, false)?;
    let exact = trial.subject.run(REFERENCE, DOUBLE, &data, None)?;
    let single = trial.subject.run(REFERENCE, SINGLE, &data, None)?;
    let mut error = 0.0f64;
    for ((_, exact), (_, single)) in exact.values.iter().zip(&single.values) {
        error = error.max(distance(single, exact)?);
    }
    Ok((error.is_nan() || error > CHAOTIC_ERROR).then_some(error))
}

/// Numbers that are the same in float32 and float64, so that an error is the executor's and not that of its inputs.
fn data(trial: &Trial<'_>, steps: i64, states: bool, masks: bool) -> Result<Data> {
    let subject = trial.subject;
    // As many sequences as it takes for the elements of an input that has one for each head and step.
    let batch = (ELEMENTS as u64).div_ceil((steps * subject.heads) as u64) as i64;
    let batch = match subject.sizes.as_str() {
        // All equal at length 4.
        "equal" => batch.max(subject.heads),
        // All different, and no factor in common.
        "primes" => (batch.max(2)..).find(|n| (2..*n).all(|d| n % d != 0) && *n != subject.heads).unwrap_or(2),
        _ => batch,
    };
    let seed = seed_of(trial.seed, &format!("{} {steps} {states} {masks}", subject.sizes));
    let mut data = subject.draw(Wanted { batch, steps, states, masks }, seed)?;
    for (_, t) in data.inputs.iter_mut().chain(&mut data.states).chain(&mut data.parameters) {
        *t = single(t)?;
    }
    Ok(data)
}

fn weights(trial: &Trial<'_>, data: &Data) -> Result<Vec<Tensor>> {
    let plain = trial.subject.run(REFERENCE, SINGLE, data, None)?;
    trial.subject.weights(&plain, trial.seed)?.iter().map(single).collect()
}

fn single(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_to_kind(Kind::Float)?.f_to_kind(Kind::Double)?)
}

fn all_finite(outcome: &Outcome) -> Result<bool> {
    for (_, t) in outcome.all() {
        if !is_finite(t)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}
