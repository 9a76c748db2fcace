//! The steps of a rule, one after another.

use std::sync::Arc;

use anyhow::{Context, Result};
use fwp_program::When;
use fwp_sdk::program::Op;
use tch::{Kind, Tensor};

use super::evaluate::{self, Place, Table};
use super::ops;
use super::plan::{RankOne, StepPlan, Work};
use super::scan::{FastWeights, InStep, Masks, step_indices};
use super::value::{Datum, Lead, Memory, Value, expanded};
use crate::shim;

/// Walks through all steps: outputs `[steps, n, ...]` in the plan's order, and the memory afterwards.
pub fn walk(
    weights: &FastWeights,
    plan: &Arc<StepPlan>,
    inputs: &[Value],
    memory: Memory,
    masks: &Masks,
) -> Result<(Vec<Value>, Memory)> {
    let (around, mut states) = Around::before(weights, plan, inputs, &memory, masks)?;
    let (n, steps) = (around.samples, around.steps);
    let crossing = plan.crossing.iter().map(|o| Ok((*o, around.value(*o)?.clone()))).collect::<Result<Vec<_>>>()?;
    let mut pieces: Vec<Vec<Tensor>> = Vec::new();
    let segment = segment_length(weights, plan, n, steps);
    let mut start = 0;
    while start < steps {
        let length = segment.min(steps - start);
        let part = Part::cut(&crossing, &around, masks, states, start, length)?;
        let kept;
        (states, kept) = if segment < steps { walk_again(weights, plan, part)? } else { walk_part(weights, plan, part)? };
        pieces.push(kept);
        start += length;
    }
    let joined = (0..plan.kept_nodes().count()).map(|k| {
        let parts: Vec<&Tensor> = pieces.iter().map(|p| &p[k]).collect();
        Ok(if let [one] = parts[..] { one.shallow_clone() } else { Tensor::f_cat(&parts, 0)? })
    });
    around.after(joined.collect::<Result<_>>()?, states)
}

/// What lies before and after the steps of a walk, whoever walks them.
pub(super) struct Around<'a> {
    /// Number of samples times heads.
    pub samples: i64,
    /// Number of steps.
    pub steps: i64,
    plan: &'a StepPlan,
    inputs: &'a [Value],
    around: InStep<'a>,
    values: Vec<Option<Datum>>,
    slot: usize,
    last: Tensor,
}

impl<'a> Around<'a> {
    /// Computes what no state enters, once or for all steps; gives the states before the first step too.
    pub fn before(
        weights: &'a FastWeights,
        plan: &'a StepPlan,
        inputs: &'a [Value],
        memory: &Memory,
        masks: &Masks,
    ) -> Result<(Around<'a>, Vec<Tensor>)> {
        let steps = length(inputs, masks);
        let samples = memory.index.size()[0];
        let (index, last) = step_indices(&memory.index, masks, steps, plan.uses_index)?;
        let mut states: Vec<Tensor> = memory.states.iter().take(plan.states.len()).map(Tensor::shallow_clone).collect();
        if let Some(missing) = plan.states.get(states.len()..) {
            // Copies that are made for reading take their values at the first step.
            states.extend(weights.initial_states(missing, samples)?);
        }
        let around = InStep { weights, states: &[], index };
        let values = vec![None; plan.function.nodes.len()];
        let mut made = Around { samples, steps, plan, inputs, around, values, slot: memory.slot, last };
        made.compute(&[When::Once, When::AllSteps])?;
        Ok((made, states))
    }

    /// The value of a node that is computed before the steps, or of one that is computed afterwards.
    pub fn value(&self, node: usize) -> Result<&Value> {
        tensor(&self.values, node)
    }

    /// The index of every step, as [`step_indices`] gives it.
    pub fn index(&self) -> &Value {
        &self.around.index
    }

    /// Computes what follows from the steps: `kept` holds `[steps, n, ...]` of [`StepPlan::kept_nodes`], `states` those after the last step.
    pub fn after(mut self, kept: Vec<Tensor>, states: Vec<Tensor>) -> Result<(Vec<Value>, Memory)> {
        for (i, tensor) in self.plan.kept_nodes().zip(kept) {
            self.values[i] = Some(Datum::Value(Value::new(tensor, Lead::STEPS)));
        }
        self.compute(&[When::After])?;
        let outputs = self.plan.function.outputs.iter().filter(|o| !o.name.starts_with("state."));
        let outputs: Result<Vec<Value>> = outputs
            .map(|o| {
                let v = self.value(o.node as usize)?;
                let shape: Vec<i64> = [self.steps, self.samples].into_iter().chain(v.shape()).collect();
                Ok(Value::new(expanded(v.aligned(Lead::STEPS, v.rank())?, &shape)?, Lead::STEPS))
            })
            .collect();
        Ok((outputs?, Memory { slot: self.slot, states, index: self.last }))
    }

    fn compute(&mut self, stages: &[When]) -> Result<()> {
        for i in 0..self.values.len() {
            if stages.contains(&self.plan.when[i]) {
                self.values[i] = Some(compute(&self.around, self.plan, i, self.inputs, &self.values)?);
            }
        }
        Ok(())
    }
}

/// The number of steps that inputs and masks speak of; 1 where nothing says it.
pub(super) fn length(inputs: &[Value], masks: &Masks) -> i64 {
    let masked = masks.write.iter().chain(&masks.reset).map(|m| m.size()[0]);
    inputs.iter().filter(|v| v.lead.steps).map(|v| v.tensor.size()[0]).chain(masked).next().unwrap_or(1)
}

/// How many steps are walked in one go; all of them where the memory limit allows it.
fn segment_length(weights: &FastWeights, plan: &StepPlan, n: i64, steps: i64) -> i64 {
    let bytes = if weights.precision.kind == Kind::Double { 8 } else { 4 };
    let kept_a_step = (plan.step_elements as u64).saturating_mul(n as u64 * bytes);
    if !shim::grad_enabled() || kept_a_step.saturating_mul(steps as u64) <= weights.memory_limit {
        return steps;
    }
    // With segments of s steps, s steps are kept at a time and one state a segment: s near sqrt(steps) is least,
    // and a limit that allows more saves nothing by using less.
    let by_limit = weights.memory_limit / kept_a_step.max(1);
    (by_limit as i64).clamp((steps as f64).sqrt().ceil() as i64, steps)
}

/// The steps of one part: new states, and the kept values stacked.
fn walk_part(weights: &FastWeights, plan: &StepPlan, part: Part) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let n = part.samples;
    let nodes = &plan.function.nodes;
    let crossing: Vec<(usize, ByStep)> = part.crossing.iter().map(|(o, v)| Ok((*o, ByStep::new(v)?))).collect::<Result<_>>()?;
    let index = ByStep::new(&part.index)?;
    let unbound = |m: &Option<Tensor>| m.as_ref().map(|t| t.f_unbind(0)).transpose();
    let (reset, write) = (unbound(&part.reset)?, unbound(&part.write)?);
    let fresh = if reset.is_some() { weights.initial_states(&plan.states, n)? } else { Vec::new() };

    let mut states = part.states;
    let mut kept: Vec<Vec<Tensor>> = (0..nodes.len()).map(|_| Vec::new()).collect();
    let mut values: Vec<Option<Datum>> = vec![None; nodes.len()];
    for t in 0..part.length as usize {
        if let Some(reset) = &reset {
            for (state, fresh) in states.iter_mut().zip(&fresh) {
                *state = fresh.f_where_self(&like(&reset[t], fresh)?, state)?;
            }
        }
        let around = InStep { weights, states: &states, index: index.at(t) };
        for (o, by_step) in &crossing {
            values[*o] = Some(Datum::Value(by_step.at(t)));
        }
        for i in 0..nodes.len() {
            if plan.when[i] != When::Step || plan.work[i] == Work::Absorbed {
                continue;
            }
            let datum = compute(&around, plan, i, &[], &values)?;
            if plan.kept[i] {
                let value = datum.value()?;
                let shape: Vec<i64> = std::iter::once(n).chain(value.shape()).collect();
                kept[i].push(expanded(value.aligned(Lead::BATCH, value.rank())?, &shape)?);
            }
            values[i] = Some(datum);
        }
        let mut next = Vec::with_capacity(states.len());
        for ((old, walked), node) in states.iter().zip(&plan.states).zip(&plan.next) {
            let value = tensor(&values, *node)?;
            let mut new = expanded(value.aligned(Lead::BATCH, value.rank())?, &old.size())?;
            let held = walked.state.held as i64;
            if held > 1 {
                let due = index.at(t).tensor.f_add_scalar(1)?.f_remainder(held)?.f_eq(0)?;
                new = new.f_where_self(&like(&due, old)?, old)?;
            }
            if let Some(write) = write.as_ref().filter(|_| walked.masked) {
                new = new.f_where_self(&like(&write[t], old)?, old)?;
            }
            next.push(new);
        }
        states = next;
    }
    let stacked: Result<Vec<Tensor>> = plan.kept_nodes().map(|i| Ok(Tensor::f_stack(&kept[i], 0)?)).collect();
    Ok((states, stacked?))
}

/// As [`walk_part`], keeping only what enters and leaves the part.
fn walk_again(weights: &FastWeights, plan: &Arc<StepPlan>, part: Part) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    // Everything that needs a gradient goes in as an input: a tensor captured by the closure would get none.
    let names: Vec<(String, Lead)> = weights.parameters.0.iter().map(|(n, v)| (n.clone(), v.lead)).collect();
    let leads: Vec<(usize, Lead)> = part.crossing.iter().map(|(o, v)| (*o, v.lead)).collect();
    let mut inputs: Vec<Tensor> = part.states.iter().map(Tensor::shallow_clone).collect();
    inputs.extend(part.crossing.iter().map(|(_, v)| v.tensor.shallow_clone()));
    inputs.extend(names.iter().map(|(n, _)| weights.parameters.0[n].tensor.shallow_clone()));
    let index_lead = part.index.lead;
    let (has_reset, has_write) = (part.reset.is_some(), part.write.is_some());
    inputs.push(part.index.tensor);
    inputs.extend(part.reset.into_iter().chain(part.write));
    let (states, samples, length) = (part.states.len(), part.samples, part.length);
    let (slot, index, prefix, precision) = (weights.slot.clone(), weights.index, weights.prefix.clone(), weights.precision);
    let plan = plan.clone();
    let mut results = shim::checkpoint(&inputs, move |tensors| {
        let mut tensors = tensors.iter().map(Tensor::shallow_clone);
        let mut next = || tensors.next().context("internal: fewer tensors than were handed in");
        let own_states = (0..states).map(|_| next()).collect::<Result<_>>()?;
        let crossing = leads.iter().map(|(o, lead)| Ok((*o, Value::new(next()?, *lead)))).collect::<Result<_>>()?;
        let table = names.iter().map(|(n, lead)| Ok((n.clone(), Value::new(next()?, *lead)))).collect::<Result<_>>()?;
        let part = Part {
            states: own_states,
            crossing,
            index: Value::new(next()?, index_lead),
            reset: if has_reset { Some(next()?) } else { None },
            write: if has_write { Some(next()?) } else { None },
            samples,
            length,
        };
        let weights = FastWeights {
            slot: slot.clone(),
            index,
            parameters: Table(table),
            prefix: prefix.clone(),
            precision,
            memory_limit: u64::MAX,
            executors: Arc::default(),
        };
        let (mut states, kept) = walk_part(&weights, &plan, part)?;
        states.extend(kept);
        Ok(states)
    })?;
    let kept = results.split_off(states);
    Ok((results, kept))
}

/// A part of a walk.
struct Part {
    states: Vec<Tensor>,
    crossing: Vec<(usize, Value)>,
    index: Value,
    reset: Option<Tensor>,
    write: Option<Tensor>,
    samples: i64,
    length: i64,
}

impl Part {
    fn cut(
        crossing: &[(usize, Value)],
        around: &Around<'_>,
        masks: &Masks,
        states: Vec<Tensor>,
        start: i64,
        length: i64,
    ) -> Result<Part> {
        let narrow = |v: &Value| -> Result<Value> {
            Ok(if v.lead.steps { Value::new(v.tensor.f_narrow(0, start, length)?, v.lead) } else { v.clone() })
        };
        let mask = |m: &Option<Tensor>| m.as_ref().map(|t| t.f_narrow(0, start, length)).transpose();
        Ok(Part {
            samples: around.samples,
            states,
            crossing: crossing.iter().map(|(o, v)| Ok((*o, narrow(v)?))).collect::<Result<_>>()?,
            index: narrow(around.index())?,
            reset: mask(&masks.reset)?,
            write: mask(&masks.write)?,
            length,
        })
    }
}

/// A value taken apart by steps once: the gradient of `unbind` is one stack, that of a `select` a step is a full tensor of zeros a step.
enum ByStep {
    Same(Value),
    Each(Vec<Tensor>, Lead),
}

impl ByStep {
    fn new(v: &Value) -> Result<ByStep> {
        if !v.lead.steps {
            return Ok(ByStep::Same(v.clone()));
        }
        Ok(ByStep::Each(v.tensor.f_unbind(0)?, Lead { steps: false, ..v.lead }))
    }

    fn at(&self, t: usize) -> Value {
        match self {
            ByStep::Same(v) => v.clone(),
            ByStep::Each(parts, lead) => Value::new(parts[t].shallow_clone(), *lead),
        }
    }
}

/// A mask `[n]` with axes of size 1 for the shape of `like`.
fn like(mask: &Tensor, like: &Tensor) -> Result<Tensor> {
    let mut shape = mask.size();
    shape.resize(like.dim(), 1);
    Ok(mask.f_reshape(shape)?)
}

fn tensor(values: &[Option<Datum>], node: usize) -> Result<&Value> {
    values[node].as_ref().context("internal: a value is not there")?.value()
}

/// The value of node `i`, its operands being there.
fn compute(around: &InStep<'_>, plan: &StepPlan, i: usize, inputs: &[Value], values: &[Option<Datum>]) -> Result<Datum> {
    let weights = around.weights;
    let node = &plan.function.nodes[i];
    let prepared = &weights.slot.rule;
    let work = || -> Result<Datum> {
        if let Work::RankOne(update) = &plan.work[i] {
            return Ok(Datum::Value(rank_one(around, update, values)?));
        }
        match &node.op {
            Op::Argument { index } => {
                inputs.get(*index as usize).cloned().map(Datum::Value).context("internal: an argument inside of the walk")
            }
            Op::Parameter { index } => {
                evaluate::parameter(around, &weights.prefix, &plan.function.parameters[*index as usize]).map(Datum::Value)
            }
            op => {
                let operands: Option<Vec<&Datum>> = node.operands.iter().map(|o| values[*o as usize].as_ref()).collect();
                let operands = operands.context("internal: an operand is not there")?;
                let at = Place {
                    prepared,
                    function: &plan.function,
                    prefix: &weights.prefix,
                    node: i,
                    layer: 0,
                    types: None,
                    operands: &node.operands,
                    silu: false,
                };
                evaluate::one(around, &at, op, &operands)
            }
        }
    };
    work().with_context(|| evaluate::failed(prepared, &plan.function, i))
}

/// A matrix with an outer product added or taken away.
fn rank_one(around: &InStep<'_>, update: &RankOne, values: &[Option<Datum>]) -> Result<Value> {
    let get = |n: u32| tensor(values, n as usize);
    let (base, column, row) = (get(update.base)?, get(update.column)?, get(update.row)?);
    let precision = around.weights.precision;
    let column = match update.factor {
        Some(factor) => &ops::apply(&Op::Mul, &[get(factor)?, column], precision)?,
        None => column,
    };
    if [base, column, row].iter().all(|v| v.lead == Lead::BATCH) {
        let (a, b) = (column.tensor.f_unsqueeze(2)?, row.tensor.f_unsqueeze(1)?);
        // beta scales the matrix, alpha the product.
        return Ok(Value::new(base.tensor.f_baddbmm(&a, &b, 1.0, update.sign)?, Lead::BATCH));
    }
    let product = ops::apply(&Op::Outer, &[column, row], precision)?;
    let op = if update.sign < 0.0 { &Op::Sub } else { &Op::Add };
    ops::apply(op, &[base, &product], precision)
}
