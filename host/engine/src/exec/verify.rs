//! A faster executor compared with the reference, once, when it is made.
//!
//! Both get the same small random data: a few steps and samples, in the sizes of the rule, with and without resets and masked writes.
//! Outputs, last states and the gradients of everything that goes in are compared with the reference in float64;
//! the error may be a few times that of the reference in the precision that is checked.

use std::sync::Arc;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::choose::Executors;
use super::evaluate::Table;
use super::plan::StepPlan;
use super::scan::{FastWeights, Masks};
use super::value::{Memory, Precision, Value};
use super::walk::walk;
use crate::shim;

/// Something that walks as [`walk`] does.
pub type Walker<'a> = dyn Fn(&FastWeights, &Arc<StepPlan>, &[Value], Memory, &Masks) -> Result<(Vec<Value>, Memory)> + 'a;

/// Steps of the comparison: more than a few, and no multiple of a vector.
const STEPS: i64 = 9;
/// Samples times heads of the comparison.
const SAMPLES: i64 = 3;

/// Compares `run`, in precision `kind`, with the reference. Sizes, kinds and leading axes are those of `inputs`; their values are not used where they are floats.
///
/// # Errors
/// What is wrong with the faster one, for people, as what follows its name: where they differ and by how much, or why nothing was compared.
pub fn verify(
    weights: &FastWeights,
    plan: &Arc<StepPlan>,
    inputs: &[Value],
    memory: &Memory,
    kind: Kind,
    run: &Walker<'_>,
) -> Result<(), String> {
    // Kinks and thresholds may be met on either side by two precisions: what fails on one draw must hold on two others.
    let first = attempt(weights, plan, inputs, memory, (kind, run), 1);
    let Err(why) = first else { return Ok(()) };
    for seed in [2, 3] {
        attempt(weights, plan, inputs, memory, (kind, run), seed).map_err(|_| why.clone())?;
    }
    Ok(())
}

/// The distribution of random inputs.
#[derive(Clone, Copy)]
enum Spread {
    /// Of either sign.
    Signed,
    /// Positive, for rules that need positive inputs.
    Positive,
}

fn attempt(
    weights: &FastWeights,
    plan: &Arc<StepPlan>,
    inputs: &[Value],
    memory: &Memory,
    (kind, run): (Kind, &Walker<'_>),
    seed: u64,
) -> Result<(), String> {
    let say = |e: anyhow::Error| format!("cannot be compared with the step: {e:#}");
    let mut compared = false;
    for spread in [Spread::Signed, Spread::Positive] {
        for masked in [false, true] {
            let trial = Trial::draw(weights, plan, inputs, memory, (seed, spread, masked)).map_err(say)?;
            let judge = trial.walked(Kind::Double, &walk).context("the reference").map_err(say)?;
            if judge.iter().any(|(_, t)| !finite(t).unwrap_or(false)) {
                // Outside of the rule's range: says nothing. Other inputs are tried.
                continue;
            }
            compared = true;
            let plain = if kind == Kind::Double { None } else { Some(trial.walked(kind, &walk).map_err(say)?) };
            let found = trial.walked(kind, run).map_err(say)?;
            for (i, (name, wanted)) in judge.iter().enumerate() {
                let error = distance(&found[i].1, wanted);
                let reference = plain.as_ref().map_or(0.0, |p| distance(&p[i].1, wanted));
                let floor = if kind == Kind::Double { 1e-9 } else { 1e-4 };
                if error.is_nan() || error > (reference * 32.0).max(floor) {
                    let with = if masked { " with resets and masked writes" } else { "" };
                    let off = format!("{name} is off by {error:.1e} of its size{with} (the reference by {reference:.1e})");
                    return Err(format!("does not agree with the step: {off}"));
                }
            }
            if masked {
                return Ok(());
            }
        }
    }
    // A form that nothing was compared with is not known to be right.
    if compared { Ok(()) } else { Err("was not compared with the step, which gives no finite numbers for random inputs".into()) }
}

/// Whether all elements are finite.
///
/// # Errors
/// libtorch's.
pub fn finite(t: &Tensor) -> Result<bool> {
    Ok(t.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

/// Largest difference, relative to the largest element of what is wanted.
fn distance(found: &Tensor, wanted: &Tensor) -> f64 {
    let largest = |t: &Tensor| if t.numel() == 0 { 0.0 } else { t.abs().max().double_value(&[]) };
    if found.size() != wanted.size() {
        return f64::INFINITY;
    }
    largest(&(found.to_kind(Kind::Double) - wanted)) / largest(wanted).max(1e-6)
}

/// Small random data for one comparison.
struct Trial<'a> {
    weights: &'a FastWeights,
    plan: &'a Arc<StepPlan>,
    inputs: Vec<Value>,
    states: Vec<Tensor>,
    index: Tensor,
    slot: usize,
    masks: Masks,
    parameters: Vec<(String, Value)>,
    seed: u64,
}

impl<'a> Trial<'a> {
    fn draw(
        weights: &'a FastWeights,
        plan: &'a Arc<StepPlan>,
        inputs: &[Value],
        memory: &Memory,
        (seed, spread, masked): (u64, Spread, bool),
    ) -> Result<Trial<'a>> {
        let kind = weights.precision.kind;
        let mut numbers = Numbers::new(seed);
        let samples = memory.index.size()[0].min(SAMPLES);
        let index = memory.index.f_narrow(0, 0, samples)?.f_zeros_like()?;
        let mut drawn = Vec::new();
        for v in inputs {
            let mut size = v.tensor.size();
            let mut axes = [(v.lead.steps, STEPS), (v.lead.batch, samples)].into_iter().filter(|(has, _)| *has);
            size.iter_mut().zip(&mut axes).for_each(|(n, (_, wanted))| *n = wanted);
            let t = if v.tensor.is_floating_point() {
                numbers.tensor(&size, kind, spread)?
            } else {
                // Integers and masks are inputs whose range only the caller knows: his first element everywhere.
                let first = v.tensor.f_reshape([-1])?.f_narrow(0, 0, 1)?;
                first.f_expand(&size[..], false)?.f_contiguous()?
            };
            drawn.push(Value::new(t.f_to_device(v.tensor.device())?, v.lead));
        }
        let mut states = Vec::new();
        for s in &memory.states {
            let mut size = s.size();
            size[0] = samples;
            states.push(numbers.tensor(&size, kind, spread)?.f_to_device(s.device())?);
        }
        let flags = |every: i64| -> Result<Tensor> {
            let grid = Tensor::f_arange(STEPS * samples, (Kind::Int64, weights.precision.device))?.f_view([STEPS, samples])?;
            Ok(grid.f_remainder(every)?.f_eq(every - 1)?)
        };
        let reset = if masked { Some(flags(7)?) } else { None };
        let write = if masked { Some(flags(4)?.f_logical_not()?) } else { None };
        let mut parameters = Vec::new();
        let mut names: Vec<&String> = weights.parameters.0.keys().collect();
        names.sort();
        for name in names {
            let v = &weights.parameters.0[name];
            let t = if v.lead.batch { v.tensor.f_narrow(0, 0, samples)? } else { v.tensor.shallow_clone() };
            parameters.push((name.clone(), Value::new(t.f_detach()?, v.lead)));
        }
        let masks = Masks { reset, write, ..Masks::default() };
        Ok(Trial { weights, plan, inputs: drawn, states, index, slot: memory.slot, masks, parameters, seed })
    }

    /// Outputs, last states and gradients by name, in float64.
    fn walked(&self, kind: Kind, run: &Walker<'_>) -> Result<Vec<(String, Tensor)>> {
        tch::with_grad(|| {
            let leaf = |t: &Tensor| -> Result<Tensor> {
                if !t.is_floating_point() {
                    return Ok(t.shallow_clone());
                }
                Ok(t.f_to_kind(kind)?.f_detach()?.f_set_requires_grad(true)?)
            };
            let value = |v: &Value| -> Result<Value> { Ok(Value::new(leaf(&v.tensor)?, v.lead)) };
            let inputs: Vec<Value> = self.inputs.iter().map(value).collect::<Result<_>>()?;
            let states: Vec<Tensor> = self.states.iter().map(leaf).collect::<Result<_>>()?;
            let table: Vec<(String, Value)> =
                self.parameters.iter().map(|(n, v)| Ok((n.clone(), value(v)?))).collect::<Result<_>>()?;
            let weights = FastWeights {
                slot: self.weights.slot.clone(),
                index: self.weights.index,
                parameters: Table(table.iter().cloned().collect()),
                prefix: self.weights.prefix.clone(),
                precision: Precision { kind, ..self.weights.precision },
                memory_limit: u64::MAX,
                executors: Arc::new(Executors::default()),
            };
            let memory = Memory {
                slot: self.slot,
                states: states.iter().map(Tensor::shallow_clone).collect(),
                index: self.index.shallow_clone(),
            };
            let (outputs, memory) = run(&weights, self.plan, &inputs, memory, &self.masks)?;
            let names = self.plan.function.outputs.iter().filter(|o| !o.name.starts_with("state."));
            let mut found: Vec<(String, Tensor)> =
                names.zip(&outputs).map(|(o, v)| (o.name.clone(), v.tensor.shallow_clone())).collect();
            // States that were made for reading are none of the caller's.
            let own = self.plan.states.iter().zip(&memory.states).take(self.states.len());
            found.extend(own.map(|(s, t)| (format!("state `{}`", s.state.name), t.shallow_clone())));
            let roots: Vec<&Tensor> = found.iter().map(|(_, t)| t).filter(|t| t.requires_grad()).collect();
            let mut numbers = Numbers::new(self.seed + 100);
            let towards = roots.iter().map(|t| {
                let g = numbers.tensor(&t.size(), Kind::Double, Spread::Signed)?;
                Ok(Some(g.f_to_kind(kind)?.f_to_device(t.device())?))
            });
            let towards: Vec<Option<Tensor>> = towards.collect::<Result<_>>()?;
            let mut leaves: Vec<(String, &Tensor)> = Vec::new();
            let arguments = self.plan.function.arguments.iter();
            leaves.extend(arguments.zip(&inputs).map(|(a, v)| (format!("the gradient of `{}`", a.name), &v.tensor)));
            let own = self.plan.states.iter().zip(&states);
            leaves.extend(own.map(|(s, t)| (format!("the gradient of the initial `{}`", s.state.name), t)));
            leaves.extend(table.iter().map(|(n, v)| (format!("the gradient of parameter `{n}`"), &v.tensor)));
            leaves.retain(|(_, t)| t.requires_grad());
            let mut all: Vec<(String, Tensor)> = Vec::new();
            if !roots.is_empty() && !leaves.is_empty() {
                let wrt: Vec<&Tensor> = leaves.iter().map(|(_, t)| *t).collect();
                let gradients = shim::gradients(&roots, &towards, &wrt, false, false)?;
                for ((name, t), g) in leaves.iter().zip(gradients) {
                    let g = g.map_or_else(|| t.f_zeros_like(), Ok)?;
                    all.push((name.clone(), g.f_to_kind(Kind::Double)?));
                }
            }
            let mut done: Vec<(String, Tensor)> = Vec::new();
            for (name, t) in found {
                done.push((name, t.f_detach()?.f_to_kind(Kind::Double)?));
            }
            done.extend(all);
            Ok(done)
        })
    }
}

/// A deterministic source of numbers that is not libtorch's generator: drawing from it must not change a run.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn tensor(&mut self, shape: &[i64], kind: Kind, spread: Spread) -> Result<Tensor> {
        let count = shape.iter().product::<i64>();
        // Vectors of a length near 1, whatever their size: steps with such keys neither blow up nor vanish.
        let scale = shape.get(2..).and_then(|own| own.last()).map_or(1.0, |n| (*n as f64).sqrt().recip());
        let one = |u: f64| match spread {
            Spread::Signed => scale * 1.5 * (2.0 * u - 1.0),
            Spread::Positive => scale * (0.1 + 1.8 * u),
        };
        let values: Vec<f64> = (0..count).map(|_| one(self.next())).collect();
        Ok(Tensor::from_slice(&values).f_reshape(shape)?.f_to_kind(kind)?)
    }
}
