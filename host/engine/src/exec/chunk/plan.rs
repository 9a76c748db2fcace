//! A rule's canonical form prepared once, and carried out along the steps.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use fwp_program::analysis::form::{Canonical, Form, Stratum};
use fwp_sdk::program::{Function, Op, Program, StateInit};
use tch::Tensor;

use super::layout::{Axis, Layout};
use super::stratum::{self, Given};
use crate::exec::evaluate;
use crate::exec::plan::{StepPlan, WalkState};
use crate::exec::scan::{FastWeights, InStep, Masks, step_indices};
use crate::exec::value::{Datum, Lead, Memory, Value};
use crate::exec::walk;

/// A canonical form, scheduled.
pub struct ChunkPlan {
    strata: Vec<Prepared>,
    rest: Function,
    uses_index: bool,
    /// Steps of a chunk, where they are not to be chosen by size.
    chunk: Option<i64>,
}

enum Prepared {
    Chunk(Chunked),
    Walk(Walked),
}

struct Chunked {
    coefficients: Function,
    layout: Arc<Layout>,
    /// The shapes of the reads, in the form's order.
    shapes: Vec<Vec<i64>>,
    state: WalkState,
}

struct Walked {
    states: Vec<usize>,
    step: Arc<StepPlan>,
    reads: usize,
}

/// Whether a form can be computed in chunks.
///
/// # Errors
///
/// The reason why not.
pub fn applies(program: &Program, form: &Form) -> Result<(), String> {
    let state = program.states.get(form.state as usize).ok_or("the form names a state that the rule does not have")?;
    if state.held > 1 {
        return Err(format!("state `{}` is held for {} steps", state.name, state.held));
    }
    Layout::new(form).map(|_| ()).map_err(|why| format!("state `{}`: {why}", state.name))
}

impl ChunkPlan {
    /// Prepares the canonical form of `program`'s step.
    ///
    /// # Errors
    ///
    /// Says which state has a form that cannot be computed in chunks, see [`applies`].
    pub fn new(program: &Program, canonical: &Canonical) -> Result<ChunkPlan, String> {
        let declared = |i: u32| -> Result<WalkState, String> {
            let state = program.states.get(i as usize).ok_or("the form names a state that the rule does not have")?;
            Ok(WalkState { state: state.clone(), masked: true })
        };
        let asks = |f: &Function| f.nodes.iter().any(|n| n.op == Op::StepIndex);
        let mut uses_index = asks(&canonical.rest) || program.functions.iter().any(asks);
        let mut strata = Vec::new();
        for stratum in &canonical.strata {
            strata.push(match stratum {
                Stratum::Chunk(form) => {
                    applies(program, form)?;
                    uses_index |= asks(&form.coefficients);
                    Prepared::Chunk(Chunked {
                        coefficients: form.coefficients.clone(),
                        layout: Arc::new(Layout::new(form)?),
                        shapes: form.reads.iter().map(|r| r.shape.iter().map(|n| *n as i64).collect()).collect(),
                        state: declared(form.state)?,
                    })
                }
                Stratum::Walk(walk) => {
                    let states = walk.states.iter().map(|i| declared(*i)).collect::<Result<Vec<_>, _>>()?;
                    let mut step = walk.step.clone();
                    // The walk knows its own states only, and numbers them so.
                    for node in &mut step.nodes {
                        if let Op::State { index } = &mut node.op {
                            let own = walk.states.iter().position(|s| s == index);
                            *index = own.ok_or("a walked group reads a state of another group")? as u32;
                        }
                    }
                    // The derived step calls nothing; the rule's own functions name states that are not there.
                    let alone = Program { functions: Vec::new(), entries: Vec::new(), ..program.clone() };
                    let mut step = StepPlan::new(&alone, step, states)?;
                    step.uses_index |= uses_index;
                    uses_index |= step.uses_index;
                    let states = walk.states.iter().map(|i| *i as usize).collect();
                    Prepared::Walk(Walked { states, step: Arc::new(step), reads: walk.reads.len() })
                }
            });
        }
        Ok(ChunkPlan { strata, rest: canonical.rest.clone(), uses_index, chunk: None })
    }

    /// Whether it does nothing but add to its states, which may decay as a whole, and reads none of them.
    pub fn sums(&self) -> bool {
        self.strata.iter().all(|s| match s {
            Prepared::Chunk(c) => c.layout.erasers.is_empty() && c.shapes.is_empty() && c.layout.axis != Axis::Keys,
            Prepared::Walk(_) => false,
        })
    }

    /// The plan with chunks of a fixed number of steps. Where decays differ by key, chunks may be shorter all the same.
    pub fn with_chunk(self, steps: usize) -> ChunkPlan {
        ChunkPlan { chunk: Some(steps.max(1) as i64), ..self }
    }
}

/// Writes and reads along the steps: outputs `[steps, n, ...]` (output, then extras) and the final memory. The contract is that of the reference walk.
///
/// # Errors
///
/// What libtorch refuses, for instance for want of memory.
pub fn run(
    weights: &FastWeights,
    plan: &ChunkPlan,
    inputs: &[Value],
    memory: Memory,
    masks: &Masks,
) -> Result<(Vec<Value>, Memory)> {
    let masked = masks.write.iter().chain(&masks.reset).map(|m| m.size()[0]);
    let steps = inputs.iter().filter(|v| v.lead.steps).map(|v| v.tensor.size()[0]).chain(masked).next().unwrap_or(1);
    let n = memory.index.size()[0];
    let (index, last) = step_indices(&memory.index, masks, steps, plan.uses_index)?;
    let around = InStep { weights, states: &[], index };
    let mut states: Vec<Tensor> = memory.states.iter().map(Tensor::shallow_clone).collect();
    let mut arguments: Vec<Datum> = inputs.iter().cloned().map(Datum::Value).collect();
    for stratum in &plan.strata {
        match stratum {
            Prepared::Chunk(chunked) => {
                let c = evaluate::nodes(&around, &weights.slot.rule, &chunked.coefficients, &weights.prefix, 0, &arguments)?;
                let layout = &chunked.layout;
                let wide = |i: &usize| -> Result<Tensor> {
                    let v = c.get(*i).context("internal: a coefficient is not there")?.value()?;
                    for_steps(v, steps, n)?.f_reshape([steps, n, -1]).map_err(Into::into)
                };
                let state = states.get_mut(layout.state).context("internal: a state is not there")?;
                let given = Given {
                    coefficients: layout.used.iter().map(wide).collect::<Result<_>>()?,
                    first: to_carried(layout, state)?,
                    fresh: fresh(weights, chunked, masks, n)?,
                    write: masks.write.as_ref().map(Tensor::shallow_clone),
                    reset: masks.reset.as_ref().map(Tensor::shallow_clone),
                    memory: weights.memory_limit,
                };
                let (reads, after) = stratum::run(layout, &given, steps, plan.chunk)?;
                *state = from_carried(layout, &after, &state.size())?;
                ensure!(reads.len() == chunked.shapes.len(), "internal: a read is not there");
                for (read, shape) in reads.into_iter().zip(&chunked.shapes) {
                    let shape: Vec<i64> = [steps, n].into_iter().chain(shape.iter().copied()).collect();
                    arguments.push(Datum::Value(Value::new(read.f_reshape(shape)?, Lead::STEPS)));
                }
            }
            Prepared::Walk(walked) => {
                let own = walked.states.iter().map(|i| states[*i].shallow_clone()).collect();
                let part = Memory { slot: memory.slot, states: own, index: memory.index.shallow_clone() };
                let values: Vec<Value> = arguments.iter().map(|d| Ok(d.value()?.clone())).collect::<Result<_>>()?;
                let (reads, after) = walk::walk(weights, &walked.step, &values, part, masks)?;
                for (i, state) in walked.states.iter().zip(after.states) {
                    states[*i] = state;
                }
                ensure!(reads.len() == walked.reads, "internal: a read is not there");
                arguments.extend(reads.into_iter().map(Datum::Value));
            }
        }
    }
    let outputs = evaluate::nodes(&around, &weights.slot.rule, &plan.rest, &weights.prefix, 0, &arguments)?;
    let outputs = outputs.iter().map(|d| Ok(Value::new(for_steps(d.value()?, steps, n)?, Lead::STEPS)));
    Ok((outputs.collect::<Result<_>>()?, Memory { slot: memory.slot, states, index: last }))
}

/// A value as `[steps, n, ...]`, whatever it varies with.
fn for_steps(v: &Value, steps: i64, n: i64) -> Result<Tensor> {
    let shape: Vec<i64> = [steps, n].into_iter().chain(v.shape()).collect();
    Ok(v.aligned(Lead::STEPS, v.rank())?.f_expand(shape, false)?)
}

/// A state `[n, ...]` as the carried matrix `[n, keys, values]`.
fn to_carried(layout: &Layout, state: &Tensor) -> Result<Tensor> {
    if state.dim() < 3 {
        return Ok(state.f_reshape([-1, layout.keys, layout.values])?);
    }
    Ok(if layout.transposed { state.f_transpose(1, 2)? } else { state.shallow_clone() })
}

fn from_carried(layout: &Layout, carried: &Tensor, size: &[i64]) -> Result<Tensor> {
    let own =
        if size.len() == 3 && layout.transposed { carried.f_transpose(1, 2)?.f_contiguous()? } else { carried.shallow_clone() };
    Ok(own.f_reshape(size)?)
}

/// What a reset brings; none where there are no resets or the state starts at zero.
fn fresh(weights: &FastWeights, chunked: &Chunked, masks: &Masks, n: i64) -> Result<Option<Tensor>> {
    let init = &chunked.state.state.init;
    if masks.reset.is_none() || *init == StateInit::Zeros || *init == StateInit::Constant(0.0) {
        return Ok(None);
    }
    let state = weights.initial_states(std::slice::from_ref(&chunked.state), n)?;
    state.first().map(|s| to_carried(&chunked.layout, s)).transpose()
}
