//! A walk with a kernel in its middle.
//!
//! What lies before and after the steps is computed as the reference does it ([`Around`]); the steps are one operation of libtorch's graph.
//! Units of a kernel and the order of every sum depend on shapes only, so the bits do not depend on the number of threads.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use fwp_program::kernel::{Gradient, Per, Real};
use fwp_sdk::program::{DType, TensorType};
use tch::{Kind, Tensor};

use super::buffers::{empty, second_level_cache};
use super::build::{Built, built};
use super::lower::{Lowered, Origin};
use super::open_unsafe::{Buffers, Call, Gradients, Input, dense};
use crate::exec::evaluate;
use crate::exec::plan::StepPlan;
use crate::exec::scan::{FastWeights, InStep, Masks};
use crate::exec::value::{Lead, Memory, Precision, Value, expanded};
use crate::exec::walk::Around;
use crate::shim::{self, Backward, custom_function};

/// Units that a walk is cut into where it has so many blocks of rows: work for four processors where there are fewer sequences; every cut costs partial sums.
/// Not a number of the machine: sums over units would have other bits elsewhere.
const UNITS: i64 = 4;

/// Steps over which states are computed back, where the number of all steps allows it: every step adds a rounding.
const COMPUTED_BACK: i64 = 128;

/// Steps of the first segment of such a walk, whose states are stored: one that begins at zero is small beside what it grows to,
/// and so are the gradients of what is read of it.
const FIRST: i64 = 4;

/// Walks through all steps as [`crate::exec::walk::walk`] does, with the same results, in one kernel.
///
/// # Errors
/// There is no kernel for these values, with the reason; or libtorch's.
pub fn run(
    weights: &FastWeights,
    plan: &Arc<StepPlan>,
    inputs: &[Value],
    memory: Memory,
    masks: &Masks,
) -> Result<(Vec<Value>, Memory)> {
    let (around, states) = Around::before(weights, plan, inputs, &memory, masks)?;
    let lowered = super::build::lowered(weights, plan).map_err(anyhow::Error::msg)?;
    let given = Given::gather(weights, &lowered, &around)?;
    let built = built(weights, plan, &lowered, &given.per, &Sample { inputs, memory: &memory }).map_err(anyhow::Error::msg)?;
    finish(&built, weights, plan, around, states, given, masks)
}

/// What a walk was asked to do, for the comparison with the reference that a new kernel must pass.
pub(super) struct Sample<'a> {
    pub inputs: &'a [Value],
    pub memory: &'a Memory,
}

/// As [`run`], with a kernel that is there.
pub(super) fn run_built(
    built: &Arc<Built>,
    weights: &FastWeights,
    plan: &Arc<StepPlan>,
    inputs: &[Value],
    memory: Memory,
    masks: &Masks,
) -> Result<(Vec<Value>, Memory)> {
    let (around, states) = Around::before(weights, plan, inputs, &memory, masks)?;
    let given = Given::gather(weights, &built.lowered, &around)?;
    ensure!(given.per == built.per, "internal: a kernel for other values");
    finish(built, weights, plan, around, states, given, masks)
}

fn finish(
    built: &Arc<Built>,
    weights: &FastWeights,
    plan: &StepPlan,
    around: Around<'_>,
    states: Vec<Tensor>,
    given: Given,
    masks: &Masks,
) -> Result<(Vec<Value>, Memory)> {
    let (n, steps) = (around.samples, around.steps);
    let index = match plan.uses_index {
        true => Some(around.index().aligned(Lead::STEPS, 0)?.f_expand([steps, n], false)?.f_contiguous()?),
        false => None,
    };
    let fresh = if masks.reset.is_some() { weights.initial_states(&plan.states, n)? } else { Vec::new() };
    let whole = |list: Vec<Tensor>| list.into_iter().map(|t| Ok(t.f_contiguous()?)).collect::<Result<Vec<_>>>();
    let flags =
        |m: &Option<Tensor>| m.as_ref().map(|m| Ok::<_, anyhow::Error>(m.f_to_kind(Kind::Bool)?.f_contiguous()?)).transpose();
    let walk = Walk {
        steps,
        samples: n,
        resets: masks.reset.is_some(),
        masked: masks.write.is_some(),
        indexed: index.is_some(),
        backwards: masks.backwards,
    };
    let tensors = Tensors {
        inputs: given.tensors,
        start: whole(states)?,
        fresh: whole(fresh)?,
        flags: [flags(&masks.reset)?, flags(&masks.write)?, index],
    };
    let (kept, end) = walk.apply(built, weights.precision, tensors)?;
    let kept: Result<Vec<Tensor>> = kept.into_iter().zip(&built.lowered.kept).map(|(t, ty)| typed(t, ty)).collect();
    around.after(kept?, end)
}

/// A kept value in its own type: a kernel gives floats.
fn typed(t: Tensor, ty: &TensorType) -> Result<Tensor> {
    Ok(match ty.dtype {
        DType::Float => t,
        DType::Int => t.f_round()?.f_to_kind(Kind::Int64)?,
        DType::Mask => t.f_ne(0.0)?,
    })
}

/// The values of a kernel's arguments.
pub(super) struct Given {
    /// In order, with what the graph knows of them.
    pub tensors: Vec<Tensor>,
    /// How often each changes.
    pub per: Vec<Per>,
}

impl Given {
    pub fn gather(weights: &FastWeights, lowered: &Lowered, around: &Around<'_>) -> Result<Given> {
        let at = InStep { weights, states: &[], index: around.index().clone() };
        let (mut tensors, mut per) = (Vec::new(), Vec::new());
        for (origin, ty) in lowered.origins.iter().zip(&lowered.arguments) {
            let value = match origin {
                Origin::Node(node) => around.value(*node)?.clone(),
                Origin::Parameter { prefix, parameter } => {
                    evaluate::parameter(&at, &format!("{}{prefix}", weights.prefix), parameter)?
                }
            };
            let (p, lead, sizes) = match value.lead {
                Lead { axis: true, .. } => bail!("internal: a value along an axis in a step"),
                Lead { steps: true, .. } => (Per::Step, Lead::STEPS, vec![around.steps, around.samples]),
                Lead { batch: true, .. } => (Per::Sequence, Lead::BATCH, vec![around.samples]),
                _ => (Per::Once, Lead::NONE, vec![]),
            };
            let full: Vec<i64> = sizes.iter().copied().chain(ty.shape.iter().map(|n| *n as i64)).collect();
            let mut t = expanded(value.aligned(lead, ty.shape.len())?, &full)?;
            let kind = kind_of(ty, weights.precision);
            if t.kind() != kind {
                t = t.f_to_kind(kind)?;
            }
            if !dense(&full[sizes.len()..], &t.stride()[sizes.len()..]) {
                t = t.f_contiguous()?;
            }
            tensors.push(t);
            per.push(p);
        }
        Ok(Given { tensors, per })
    }
}

fn kind_of(ty: &TensorType, precision: Precision) -> Kind {
    match ty.dtype {
        DType::Float => precision.kind,
        DType::Int => Kind::Int64,
        DType::Mask => Kind::Bool,
    }
}

/// Sizes of one walk and which of the optional tensors it has.
#[derive(Clone, Copy, Debug)]
struct Walk {
    steps: i64,
    samples: i64,
    resets: bool,
    masked: bool,
    indexed: bool,
    backwards: bool,
}

/// What goes into a kernel.
struct Tensors {
    inputs: Vec<Tensor>,
    start: Vec<Tensor>,
    fresh: Vec<Tensor>,
    /// Resets, writes, index.
    flags: [Option<Tensor>; 3],
}

impl Walk {
    /// Runs the kernel and puts it into the graph: kept values `[steps, n, ...]` and the states after the last step.
    fn apply(self, built: &Arc<Built>, precision: Precision, tensors: Tensors) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let list: Vec<&Tensor> = tensors.inputs.iter().chain(&tensors.start).chain(&tensors.fresh).collect();
        let wanted = shim::grad_enabled() && list.iter().any(|t| t.requires_grad());
        let (kept, end, stored) = tch::no_grad(|| self.forward(built, precision, &tensors, wanted))?;
        if !wanted {
            return Ok((kept, end));
        }
        let saved: Vec<&Tensor> = list.iter().copied().chain(tensors.flags.iter().flatten()).chain(&stored).collect();
        let kernel = built.clone();
        let count = kept.len();
        let outputs = kept.into_iter().chain(end).collect();
        let mut made = custom_function(&list, &saved, outputs, move |b| self.backward(&kernel, precision, b))?;
        let end = made.split_off(count);
        Ok((made, end))
    }

    /// Steps between two checkpoints: as many as have their slots in half of the second-level cache, at least a quarter of the root of all.
    /// States that are computed back need no slots: there it is [`COMPUTED_BACK`].
    fn interval(self, built: &Built) -> i64 {
        let kernel = &built.kernel;
        let fits = match kernel.computed_back {
            true => COMPUTED_BACK,
            false => {
                let fits = second_level_cache() / 2 / kernel.slots_a_step.max(1);
                i64::try_from(fits).unwrap_or(i64::MAX)
            }
        };
        let least = ((self.steps as f64).sqrt() / 4.0).ceil() as i64;
        fits.max(least).clamp(1, self.steps)
    }

    /// Blocks of one unit: as many as leave [`UNITS`] units. Units of one sequence have partial sums of some gradients each.
    fn together(self, built: &Built) -> i64 {
        let blocks = built.kernel.blocks as i64;
        (1..=blocks).rev().find(|n| blocks % n == 0 && self.samples * (blocks / n) >= UNITS).unwrap_or(1)
    }

    fn buffers(self, built: &Built, precision: Precision, tensors: Tensors) -> Buffers {
        let elements = |ty: &TensorType| ty.elements() as i64;
        let inputs = tensors.inputs.into_iter().zip(&built.lowered.arguments).zip(&built.per).map(|((tensor, ty), per)| Input {
            tensor,
            steps: *per == Per::Step,
            sequences: *per != Per::Once,
            elements: elements(ty),
            kind: kind_of(ty, precision),
        });
        let [reset, write, index] = tensors.flags;
        let interval = self.interval(built);
        Buffers {
            steps: self.steps,
            sequences: self.samples,
            interval,
            early: if built.kernel.computed_back { (interval - FIRST).max(0) } else { 0 },
            inputs: inputs.collect(),
            states: built.lowered.step.states.iter().map(|s| s.state.shape.iter().product::<usize>() as i64).collect(),
            kept_elements: built.lowered.kept.iter().map(elements).collect(),
            start: tensors.start,
            fresh: tensors.fresh,
            reset,
            write,
            index,
            together: self.together(built),
            backwards: self.backwards,
            ..Buffers::default()
        }
    }

    fn states(self, built: &Built, kind: Kind, lead: &[i64]) -> Result<Vec<Tensor>> {
        let states = built.lowered.step.states.iter();
        states.map(|s| empty(&shaped(lead, &s.state.shape), kind)).collect()
    }

    /// Kept values, last states, and what is stored for a backward pass: checkpoints, then saved values.
    fn forward(
        self,
        built: &Built,
        precision: Precision,
        tensors: &Tensors,
        gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Tensor>, Vec<Tensor>)> {
        let kind = precision.kind;
        let handles = |l: &[Tensor]| -> Vec<Tensor> { l.iter().map(Tensor::shallow_clone).collect() };
        let tensors = Tensors {
            inputs: handles(&tensors.inputs),
            start: handles(&tensors.start),
            fresh: handles(&tensors.fresh),
            flags: [0, 1, 2].map(|i| tensors.flags[i].as_ref().map(Tensor::shallow_clone)),
        };
        let mut buffers = self.buffers(built, precision, tensors);
        if gradients {
            let k = &built.kernel;
            buffers.checkpoint = self.states(built, kind, &[buffers.checkpoints(), self.samples])?;
            buffers.saved = Some(empty(&[self.samples, k.blocks as i64, self.steps, k.saved as i64], kind)?);
        }
        let grid = [self.steps, self.samples];
        buffers.kept = built.lowered.kept.iter().map(|t| empty(&shaped(&grid, &t.shape), kind)).collect::<Result<_>>()?;
        buffers.end = self.states(built, kind, &[self.samples])?;
        let call = Call::new(built.opened, buffers, kind, &built.kernel)?;
        call.run(self.operations(built, 0))?;
        let done = call.finish();
        Ok((done.kept, done.end, done.checkpoint.into_iter().chain(done.saved).collect()))
    }

    /// Partial sums of a gradient of which every block would have so many.
    fn parts(self, built: &Built, blocks: usize) -> i64 {
        if blocks == 1 { 1 } else { blocks as i64 / self.together(built) }
    }

    /// Floating point operations of one unit.
    fn operations(self, built: &Built, pass: usize) -> usize {
        built.kernel.operations[pass].saturating_mul(self.steps as usize) / built.kernel.blocks.max(1)
            * self.together(built) as usize
    }

    fn backward(self, built: &Built, precision: Precision, given: Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        if shim::grad_enabled() {
            bail!("a gradient of the gradient through a compiled kernel is not available: use --exec reference");
        }
        let kind = precision.kind;
        let states = built.lowered.step.states.len();
        let fresh = if self.resets { states } else { 0 };
        let mut saved = given.saved.iter().map(Tensor::shallow_clone);
        let mut take = |n: usize| -> Vec<Tensor> { saved.by_ref().take(n).collect() };
        let inputs = take(built.lowered.arguments.len());
        let (start, fresh) = (take(states), take(fresh));
        let flags = [self.resets, self.masked, self.indexed].map(|has| take(usize::from(has)).pop());
        let (checkpoint, values) = (take(states), take(1).pop());
        let whole = |g: &Option<Tensor>| g.as_ref().map(|g| Ok::<_, anyhow::Error>(g.f_contiguous()?)).transpose();
        let mut grads = given.grads.iter().map(whole).collect::<Result<Vec<_>>>()?;
        let end = grads.split_off(built.lowered.kept.len());
        let mut partial = Vec::new();
        for (i, gradient) in built.kernel.gradients.iter().enumerate() {
            let elements: i64 = built.lowered.arguments[i].elements() as i64;
            let (steps, n) = (self.steps, self.samples);
            let shape = match gradient {
                _ if !given.needed[i] => None,
                Gradient::None => None,
                Gradient::Steps { parts } => Some(vec![self.parts(built, *parts), steps, n, elements]),
                Gradient::Sequences { parts } => Some(vec![self.parts(built, *parts), n, elements]),
                Gradient::Product { left, right } => Some(vec![steps * n * (*left + *right) as i64]),
            };
            partial.push(shape.map(|s| Ok::<_, anyhow::Error>((empty(&s, kind)?, s.iter().product()))).transpose()?);
        }
        let tensors = Tensors { inputs, start, fresh, flags };
        let resets = self.resets;
        let mut buffers = self.buffers(built, precision, tensors);
        (buffers.checkpoint, buffers.saved) = (checkpoint, values);
        buffers.gradients = Some(Gradients {
            kept: grads,
            end,
            inputs: partial,
            start: self.states(built, kind, &[self.samples])?,
            fresh: if resets { self.states(built, kind, &[self.samples])? } else { Vec::new() },
        });
        let call = Call::new(built.opened, buffers, kind, &built.kernel)?;
        call.run(self.operations(built, 1))?;
        let Some(done) = call.finish().gradients else { bail!("internal: no gradients") };
        let of_inputs = done.inputs.into_iter().enumerate().map(|(i, g)| g.map(|(g, _)| self.reduced(built, i, &g)).transpose());
        let mut answer = of_inputs.collect::<Result<Vec<Option<Tensor>>>>()?;
        answer.extend(done.start.into_iter().chain(done.fresh).map(Some));
        Ok(answer)
    }

    /// The gradient of an input from the kernel's partial sums.
    fn reduced(self, built: &Built, input: usize, partial: &Tensor) -> Result<Tensor> {
        let (steps, n) = (self.steps, self.samples);
        let shape = &built.lowered.arguments[input].shape;
        let sum = |t: &Tensor, axes: &[i64]| -> Result<Tensor> { Ok(t.f_sum_dim_intlist(axes, false, partial.kind())?) };
        let parts = |parts: usize| {
            if self.parts(built, parts) == 1 { partial.f_select(0, 0).map_err(Into::into) } else { sum(partial, &[0]) }
        };
        Ok(match &built.kernel.gradients[input] {
            Gradient::None => bail!("internal: a gradient of nothing"),
            Gradient::Steps { parts: p } => parts(*p)?.f_reshape(shaped(&[steps, n], shape))?,
            Gradient::Sequences { parts: p } if built.per[input] == Per::Once => {
                sum(&parts(*p)?, &[0])?.f_reshape(shaped(&[], shape))?
            }
            Gradient::Sequences { parts: p } => parts(*p)?.f_reshape(shaped(&[n], shape))?,
            Gradient::Product { left, right } => {
                let rows = steps * n;
                let (m, k) = (*left as i64, *right as i64);
                let left = partial.f_narrow(0, 0, rows * m)?.f_view([rows, m])?;
                let right = partial.f_narrow(0, rows * m, rows * k)?.f_view([rows, k])?;
                product(&left, &right)?.f_reshape(shaped(&[], shape))?
            }
        })
    }
}

/// left^T right, of `[rows, m]` and `[rows, n]`.
///
/// In pieces of a fixed number of rows, so that the order of the sum does not depend on how a product is shared among threads.
fn product(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    const PIECE: i64 = 512;
    let (rows, m, n) = (left.size()[0], left.size()[1], right.size()[1]);
    let whole = rows / PIECE;
    let mut sum: Option<Tensor> = None;
    if whole > 0 {
        let pieces = |t: &Tensor, width: i64| t.f_narrow(0, 0, whole * PIECE)?.f_view([whole, PIECE, width]);
        let products = pieces(left, m)?.f_transpose(1, 2)?.f_bmm(&pieces(right, n)?)?;
        sum = Some(products.f_sum_dim_intlist([0i64].as_slice(), false, left.kind())?);
    }
    if rows % PIECE != 0 {
        let rest = |t: &Tensor| t.f_narrow(0, whole * PIECE, rows % PIECE);
        let last = rest(left)?.f_transpose(0, 1)?.f_matmul(&rest(right)?)?;
        sum = Some(match sum {
            Some(sum) => sum.f_add(&last)?,
            None => last,
        });
    }
    sum.map_or_else(|| Ok(Tensor::f_zeros([m, n], (left.kind(), left.device()))?), Ok)
}

fn shaped(lead: &[i64], shape: &[usize]) -> Vec<i64> {
    lead.iter().copied().chain(shape.iter().map(|n| *n as i64)).collect()
}

/// The precision of a kernel for tensors of this kind.
pub(super) fn real(kind: Kind) -> Result<Real, String> {
    match kind {
        Kind::Float => Ok(Real::F32),
        Kind::Double => Ok(Real::F64),
        other => Err(format!("there are kernels for float32 and float64, not for {other:?}")),
    }
}
