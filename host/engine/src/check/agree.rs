//! An executor against the reference.

use std::collections::BTreeMap;

use anyhow::Result;
use tch::{Kind, Tensor};

use super::{DOUBLE, Report, SINGLE, Trial, apart, distance, tame};
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

/// The relative error in float32 and float64 of a tensor of which every element loses the smallest normal number at each of so many steps:
/// where kernels have results that are smaller, these are zero. Weights that fade to nothing get there.
fn flushed(exact: &Tensor, steps: i64) -> Result<[f64; 2]> {
    let length = exact.f_norm()?.f_double_value(&[])?;
    let lost = steps as f64 * (exact.numel() as f64).sqrt() / length;
    Ok([f64::from(f32::MIN_POSITIVE), f64::MIN_POSITIVE].map(|n| if length > 0.0 { n * lost } else { 0.0 }))
}

/// How much larger the error of a small tensor over so many places may be: luck evens out with their number only.
fn luck(count: usize) -> f64 {
    1.0 + 2.0 / (count.max(1) as f64).sqrt()
}

/// The names of the two types.
const TYPES: [&str; 2] = ["float32", "float64"];

/// The five runs of one setting.
///
/// Two of them are the yardstick: the float32 reference, and the float64 reference on inputs that are moved by as much as float32 rounds.
/// The first alone may be right by luck where a rule divides by what cancels: whoever rounds elsewhere has the error of the second.
struct Place {
    says: String,
    data: Data,
    weights: Vec<Tensor>,
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
        if !exact.is_finite()? {
            overflown.push(says);
            continue;
        }
        let (single, got, got_double) = (run(REFERENCE, SINGLE)?, run(trial.executor, SINGLE)?, run(trial.executor, DOUBLE)?);
        let moved = run_moved(trial, &data, &weights, 0)?;
        found.push(Place { says, data, weights, exact, single, moved, got, got_double });
    }
    Ok((found, overflown))
}

/// How far numbers are moved, relative to themselves: as far as rounding to float32 does.
const MOVED: f64 = f32::EPSILON as f64 / 4.0;

/// How often numbers are moved where an error seems too large: a tensor whose error is that of a few elements has more luck than others.
const DRAWS: u64 = 8;

/// The float64 reference where every number is moved at random by as much as float32 rounds.
fn run_moved(trial: &Trial<'_>, data: &Data, weights: &[Tensor], draw: u64) -> Result<Outcome> {
    let mut random = Random::new(seed_of(trial.seed, &format!("moved {draw}")));
    let mut moved = data.copied();
    for (_, t) in moved.inputs.iter_mut().chain(&mut moved.states).chain(&mut moved.parameters) {
        let factor = normal(&mut random, &t.size())?.f_mul_scalar(MOVED)?.f_add_scalar(1.0)?;
        *t = t.f_mul(&factor)?;
    }
    trial.subject.run(REFERENCE, DOUBLE, &moved, Some(weights))
}

/// The largest error of the reference at a length, for every tensor.
#[derive(Default)]
struct Yardstick {
    errors: BTreeMap<String, f64>,
    /// Whether numbers were moved as often as they ever are.
    thorough: bool,
}

impl Yardstick {
    fn new(places: &[Place]) -> Result<Yardstick> {
        let mut me = Yardstick::default();
        for place in places {
            me.add(&place.exact, &place.single)?;
            me.add(&place.exact, &place.moved)?;
        }
        Ok(me)
    }

    fn add(&mut self, exact: &Outcome, other: &Outcome) -> Result<()> {
        for ((name, exact), (_, other)) in exact.all().zip(other.all()) {
            let largest = self.errors.entry(name.clone()).or_default();
            *largest = largest.max(distance(other, exact)?);
        }
        Ok(())
    }

    /// Measures again, more often.
    fn measure(&mut self, trial: &Trial<'_>, places: &[Place]) -> Result<()> {
        self.thorough = true;
        for place in places {
            for draw in 1..DRAWS {
                self.add(&place.exact, &run_moved(trial, &place.data, &place.weights, draw)?)?;
            }
        }
        Ok(())
    }

    fn of(&self, name: &str) -> f64 {
        self.errors.get(name).copied().unwrap_or_default()
    }
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
        let mut yardstick = Yardstick::new(&places)?;
        for place in &places {
            let references = place.exact.all().zip(place.single.all()).zip(place.moved.all());
            for ((((name, exact), (_, single)), (_, moved)), ((_, got), (_, got_double))) in
                references.zip(place.got.all().zip(place.got_double.all()))
            {
                compared += 1;
                let errors = [distance(got, exact)?, distance(got_double, exact)?];
                let small = exact.numel() < ELEMENTS as usize;
                if small {
                    pooled.entry(name.clone()).or_default().add(exact, [single, moved, got, got_double])?;
                }
                let luck = if small { LUCK } else { 1.0 };
                let lost = flushed(exact, length)?;
                let bounds_of = |y: &Yardstick| {
                    let allowed = allowed(y.of(name));
                    [0, 1].map(|k| (luck * allowed[k]).max(lost[k]))
                };
                let mut bounds = bounds_of(&yardstick);
                if (0..2).any(|k| errors[k] > bounds[k]) && !yardstick.thorough {
                    yardstick.measure(trial, &places)?;
                    bounds = bounds_of(&yardstick);
                }
                let of_reference = yardstick.of(name);
                for k in 0..2 {
                    let (precision, error, bound) = (TYPES[k], errors[k], bounds[k]);
                    if error.is_nan() || error > bound {
                        return Ok(Report::failed(format!(
                            "`{name}` differs from the reference in {precision} at {}: relative error {error:.2e}, \
                             allowed {bound:.2e} (the reference itself has {of_reference:.2e}); its largest number is {:.1e}",
                            place.says,
                            exact.f_abs()?.f_max()?.f_double_value(&[])?
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
        for ((precision, error), bound) in
            TYPES.into_iter().zip([single, double]).zip(allowed(of_reference).map(|b| luck(pool.places) * b))
        {
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
    let mut data = tame(subject, Wanted { batch, steps, states, masks }, seed)?;
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

fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kernels_lose_at_the_smallest_numbers_counts_for_tensors_of_such_alone() {
        let of_size = |size: f64| flushed(&(Tensor::ones([8, 8], (Kind::Double, tch::Device::Cpu)) * size), 10).unwrap();
        assert!(of_size(1.0).into_iter().all(|error| error < 1e-30));
        let [single, double] = of_size(1e-38);
        assert!((1.0..100.0).contains(&single) && double < 1e-30, "{single} {double}");
        assert_eq!(of_size(0.0), [0.0, 0.0]);
    }
}
