//! An update rule along its steps.
//!
//! Samples and heads are one leading axis (`n` below), steps another; every tensor of a scan is `[steps, n, ...]`, `[n, ...]` or without either.
//! What does not depend on a state is computed for all steps at once where that is no larger than its operands; the rest is one walk through the steps.
//! A walk whose kept values would exceed the memory limit is cut into segments that the backward pass computes again.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use fwp_program::When;
use fwp_sdk::program::{Function, Op, Parameter, StateInit, entry};
use tch::{Kind, Tensor};

use super::evaluate::{self, Place, Surroundings, Table};
use super::ops::sizes;
use super::prepared::{Slot, StepPlan};
use super::value::{Datum, Lead, Memory, Precision, Value};
use crate::shim;

/// Fast weights of a slot at one place of a model.
pub struct FastWeights {
    /// Feature map and rule.
    pub slot: Arc<Slot>,
    /// Index of the slot in the model.
    pub index: usize,
    /// Parameters of map and rule, heads repeated for every sample.
    pub parameters: Table,
    /// Path prefix of the rule's parameters.
    pub prefix: String,
    /// Precision and device.
    pub precision: Precision,
    /// Bytes that one scan may keep for its backward pass.
    pub memory_limit: u64,
}

/// What steers a scan beside its inputs.
#[derive(Default)]
pub struct Masks {
    /// `[steps, n]`: the state returns to its initial value before the step.
    pub reset: Option<Tensor>,
    /// `[steps, n]`: where false the step leaves the state as it is.
    pub write: Option<Tensor>,
}

/// Which state the output reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Read {
    /// The state after the step.
    After,
    /// The state before the step.
    Before,
    /// The state at the start of the step's chunk.
    ChunkStart(usize),
}

impl Read {
    /// From the attribute of a fast-weight node.
    pub fn parse(text: &str) -> Result<Read> {
        match (text, text.strip_prefix("chunk:")) {
            ("after", _) => Ok(Read::After),
            ("before", _) => Ok(Read::Before),
            (_, Some(n)) => Ok(Read::ChunkStart(n.parse().context("internal: the length of a chunk")?)),
            _ => bail!("internal: read `{text}`"),
        }
    }
}

impl FastWeights {
    fn rule(&self) -> &fwp_sdk::program::Program {
        &self.slot.rule.program
    }

    /// The initial memory for `n` samples times heads.
    pub fn initial(&self, n: i64) -> Result<Memory> {
        let float = (self.precision.kind, self.precision.device);
        let states: Result<Vec<Tensor>> = self
            .rule()
            .states
            .iter()
            .map(|s| {
                let shape: Vec<i64> = std::iter::once(n).chain(sizes(&s.shape)).collect();
                match &s.init {
                    StateInit::Zeros => Ok(Tensor::f_zeros(shape, float)?),
                    StateInit::Constant(c) => Ok(Tensor::f_full(shape, *c, float)?),
                    StateInit::Parameter(name) => {
                        let value = self.parameters.get(&format!("{}{name}", self.prefix))?;
                        Ok(value.aligned(Lead::BATCH, s.shape.len())?.f_expand(shape, false)?)
                    }
                }
            })
            .collect();
        let index = Tensor::f_zeros([n], (Kind::Int64, self.precision.device))?;
        Ok(Memory { slot: self.index, states: states?, index })
    }

    /// Applies the feature map to inputs that are mapped, and the scale to queries.
    pub fn mapped(&self, name: &str, x: Value, query_scale: Option<f64>, index: &Value) -> Result<Value> {
        let declared = self.rule().inputs.iter().find(|i| i.name == name).with_context(|| format!("internal: no input `{name}`"))?;
        let is_query = declared.role == fwp_sdk::program::Role::Query;
        let mut y = x;
        if declared.mapped() {
            // Several keys a token are mapped one by one: the count is folded into the samples' last axis.
            y = self.map(y, is_query, index)?;
        }
        if let Some(scale) = query_scale.filter(|_| is_query) {
            y = Value::new(y.tensor.f_mul_scalar(scale)?, y.lead);
        }
        Ok(y)
    }

    fn map(&self, x: Value, query: bool, index: &Value) -> Result<Value> {
        let map = &self.slot.map;
        let function = map.entry(if query { entry::QUERY } else { entry::KEY })?;
        let around = InMap { weights: self, index };
        let prefix = fwp_program::map_prefix(&self.prefix);
        let one = |v: Value| -> Result<Value> {
            let mut results = evaluate::function(&around, map, function, &prefix, 0, &[Datum::Value(v)])?;
            Ok(results.remove(0).value()?.clone())
        };
        if x.rank() == 1 {
            return one(x);
        }
        let parts: Result<Vec<Tensor>> = x
            .tensor
            .f_unbind(x.dim(0))?
            .into_iter()
            .map(|t| Ok(one(Value::new(t, x.lead))?.tensor))
            .collect();
        Ok(Value::new(Tensor::f_stack(&parts?, x.dim(0))?, x.lead))
    }

    /// The rule's signals as it uses them, `[steps, n, ...]`, from inputs in the order of the interface or of the write.
    pub fn signals(&self, inputs: &[(String, Value)]) -> Result<Vec<(String, Value)>> {
        let Some(effective) = &self.slot.effective else { return Ok(Vec::new()) };
        let mut arguments = Vec::new();
        for a in &effective.arguments {
            match inputs.iter().find(|(n, _)| *n == a.name) {
                Some((_, v)) => arguments.push(Datum::Value(v.clone())),
                // A part of the inputs is handed to a write or a read; signals of the other part are not shown.
                None => return Ok(Vec::new()),
            }
        }
        let around = InStep { weights: self, states: &[], index: Value::new(Tensor::f_zeros([0i64; 0], (Kind::Int64, self.precision.device))?, Lead::NONE) };
        let results = evaluate::nodes(&around, &self.slot.rule, effective, &self.prefix, 0, &arguments)?;
        effective.outputs.iter().zip(&results).map(|(o, d)| Ok((o.name.clone(), d.value()?.clone()))).collect()
    }

    /// Writes and reads along the steps: outputs `[steps, n, ...]` (output, then extras) and the final memory.
    /// `inputs` are the rule's inputs in order, after the feature map.
    pub fn scan(&self, inputs: &[Value], memory: Memory, masks: &Masks, read: Read) -> Result<(Vec<Value>, Memory)> {
        let steps = inputs.first().map_or(0, |v| v.tensor.size()[0]);
        match read {
            Read::After => self.walk(&self.slot.step, inputs, memory, masks),
            Read::Before => self.by_chunks(inputs, memory, masks, 1, steps),
            Read::ChunkStart(n) => self.by_chunks(inputs, memory, masks, n as i64, steps),
        }
    }

    /// Reads at the start of every chunk, then writes the chunk.
    fn by_chunks(&self, inputs: &[Value], mut memory: Memory, masks: &Masks, chunk: i64, steps: i64) -> Result<(Vec<Value>, Memory)> {
        let names: Vec<&str> = self.rule().inputs.iter().map(|i| i.name.as_str()).collect();
        let apart = self.slot.apart()?;
        if masks.reset.is_some() && chunk > 1 {
            bail!("a read at the start of a chunk cannot be combined with resets inside of a sequence");
        }
        let mut pieces: Vec<Vec<Value>> = Vec::new();
        let mut start = 0;
        while start < steps {
            let length = chunk.min(steps - start);
            let part = |wanted: &[String]| -> Result<Vec<(String, Value)>> {
                names
                    .iter()
                    .zip(inputs)
                    .filter(|(n, _)| wanted.iter().any(|w| w == *n))
                    .map(|(n, v)| Ok((n.to_string(), Value::new(v.tensor.f_narrow(0, start, length)?, v.lead))))
                    .collect()
            };
            let cut = |m: &Option<Tensor>| m.as_ref().map(|t| t.f_narrow(0, start, length)).transpose();
            let here = Masks { reset: cut(&masks.reset)?, write: cut(&masks.write)? };
            if let Some(reset) = &here.reset {
                memory = self.after_reset(memory, &reset.f_select(0, 0)?)?;
            }
            pieces.push(self.read(&memory, &part(&apart.apart.read_inputs)?)?);
            memory = self.write(&part(&apart.apart.write_inputs)?, memory, &here)?;
            start += length;
        }
        let outputs: Result<Vec<Value>> = (0..pieces.first().map_or(0, Vec::len))
            .map(|i| {
                let parts: Vec<&Tensor> = pieces.iter().map(|p| &p[i].tensor).collect();
                Ok(Value::new(Tensor::f_cat(&parts, 0)?, Lead::STEPS))
            })
            .collect();
        Ok((outputs?, memory))
    }

    fn after_reset(&self, memory: Memory, reset: &Tensor) -> Result<Memory> {
        let n = memory.index.size()[0];
        let fresh = self.initial(n)?;
        let choose = |new: &Tensor, old: &Tensor| -> Result<Tensor> { Ok(new.f_where_self(&like(reset, new)?, old)?) };
        let states: Result<Vec<Tensor>> = fresh.states.iter().zip(&memory.states).map(|(f, s)| choose(f, s)).collect();
        Ok(Memory { slot: memory.slot, states: states?, index: choose(&fresh.index, &memory.index)? })
    }

    /// Writes `[steps, n, ...]` inputs; gives the memory afterwards.
    pub fn write(&self, inputs: &[(String, Value)], memory: Memory, masks: &Masks) -> Result<Memory> {
        let plan = &self.slot.apart()?.write;
        let arguments = in_order(&plan.function, inputs)?;
        Ok(self.walk(plan, &arguments, memory, masks)?.1)
    }

    /// Reads with inputs `[steps, n, ...]` or `[n, ...]`, the memory staying as it is: output, then extras.
    pub fn read(&self, memory: &Memory, inputs: &[(String, Value)]) -> Result<Vec<Value>> {
        let read = &self.slot.apart()?.apart.read;
        let arguments: Vec<Datum> = in_order(read, inputs)?.into_iter().map(Datum::Value).collect();
        let steps = arguments.iter().any(|a| a.value().is_ok_and(|v| v.lead.steps));
        let around = InStep { weights: self, states: &memory.states, index: Value::new(memory.index.shallow_clone(), Lead::BATCH) };
        let results = evaluate::nodes(&around, &self.slot.rule, read, &self.prefix, 0, &arguments)?;
        let lead = if steps { Lead::STEPS } else { Lead::BATCH };
        let n = memory.index.size()[0];
        let length = arguments.iter().filter_map(|a| a.value().ok()).find(|v| v.lead.steps).map(|v| v.tensor.size()[0]);
        results
            .iter()
            .map(|d| {
                let v = d.value()?;
                let shape: Vec<i64> = length.into_iter().chain([n]).chain(v.shape()).collect();
                Ok(Value::new(v.aligned(lead, v.rank())?.f_expand(shape, false)?, lead))
            })
            .collect()
    }

    fn walk(&self, plan: &StepPlan, inputs: &[Value], memory: Memory, masks: &Masks) -> Result<(Vec<Value>, Memory)> {
        let steps = inputs.iter().find(|v| v.lead.steps).map_or(1, |v| v.tensor.size()[0]);
        let n = memory.index.size()[0];
        let uses_index = plan.function.nodes.iter().any(|x| x.op == Op::StepIndex) || self.rule().states.iter().any(|s| s.held > 1);
        let (index, last) = step_indices(&memory.index, masks, steps, uses_index)?;

        // Before the walk: what no state enters.
        let around = InStep { weights: self, states: &memory.states, index };
        let count = plan.function.nodes.len();
        let mut values: Vec<Option<Datum>> = vec![None; count];
        for i in 0..count {
            if matches!(plan.when[i], When::Once | When::AllSteps) {
                values[i] = Some(compute(&around, plan, i, inputs, &|o| values[o as usize].clone())?);
            }
        }

        // Handed to the walk: by step, or the same for all steps.
        let mut crossing: Vec<usize> = Vec::new();
        let needed = plan
            .function
            .nodes
            .iter()
            .enumerate()
            .filter(|(i, _)| plan.when[*i] == When::Step)
            .flat_map(|(_, x)| x.operands.iter().map(|o| *o as usize))
            .chain(plan.function.outputs.iter().filter(|o| o.name.starts_with("state.")).map(|o| o.node as usize));
        for o in needed {
            if plan.when[o] != When::Step && !crossing.contains(&o) {
                crossing.push(o);
            }
        }
        let crossing: Vec<(usize, Value)> =
            crossing.into_iter().map(|o| Ok((o, tensor(&values, o)?))).collect::<Result<_>>()?;

        let bytes = match self.precision.kind {
            Kind::Double => 8,
            _ => 4,
        };
        let kept_a_step = plan.step_elements as u64 * n as u64 * bytes;
        let total = kept_a_step.saturating_mul(steps as u64);
        let segment = if shim::grad_enabled() && total > self.memory_limit {
            // With segments of length s, s steps are kept once and one state a segment: s near sqrt(steps) is least,
            // and a limit that allows more saves nothing by using less.
            let by_limit = self.memory_limit / kept_a_step.max(1);
            (by_limit as i64).clamp((steps as f64).sqrt().ceil() as i64, steps)
        } else {
            steps
        };

        let mut states: Vec<Tensor> = memory.states.iter().map(Tensor::shallow_clone).collect();
        let mut pieces: Vec<Vec<Tensor>> = Vec::new();
        let mut start = 0;
        while start < steps {
            let length = segment.min(steps - start);
            let part = Part::cut(&crossing, &around.index, masks, &states, start, length)?;
            let collected = if segment < steps { self.again(plan, part)? } else { self.steps(plan, part)? };
            let (new_states, kept) = collected;
            states = new_states;
            pieces.push(kept);
            start += length;
        }

        // After the walk: kept values of all steps, then what is computed from them.
        let mut k = 0;
        for i in 0..count {
            if plan.when[i] == When::Step && plan.kept[i] {
                let parts: Vec<&Tensor> = pieces.iter().map(|p| &p[k]).collect();
                let joined = if parts.len() == 1 { parts[0].shallow_clone() } else { Tensor::f_cat(&parts, 0)? };
                values[i] = Some(Datum::Value(Value::new(joined, Lead::STEPS)));
                k += 1;
            }
        }
        for i in 0..count {
            if plan.when[i] == When::After {
                values[i] = Some(compute(&around, plan, i, inputs, &|o| values[o as usize].clone())?);
            }
        }
        let outputs: Result<Vec<Value>> = plan
            .function
            .outputs
            .iter()
            .filter(|o| !o.name.starts_with("state."))
            .map(|o| {
                let v = tensor(&values, o.node as usize)?;
                let shape: Vec<i64> = [steps, n].into_iter().chain(v.shape()).collect();
                Ok(Value::new(v.aligned(Lead::STEPS, v.rank())?.f_expand(shape, false)?, Lead::STEPS))
            })
            .collect();
        Ok((outputs?, Memory { slot: memory.slot, states, index: last }))
    }

    /// The steps of one part: new states and the kept values, stacked.
    fn steps(&self, plan: &StepPlan, part: Part) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let n = part.states.first().map(|s| s.size()[0]);
        let count = plan.function.nodes.len();
        let state_outputs: Vec<usize> =
            plan.function.outputs.iter().filter(|o| o.name.starts_with("state.")).map(|o| o.node as usize).collect();
        let held: Vec<usize> = self.rule().states.iter().map(|s| s.held).collect();
        let crossing: Vec<(usize, ByStep)> =
            part.crossing.iter().map(|(o, v)| Ok((*o, ByStep::new(v)?))).collect::<Result<_>>()?;
        let index = ByStep::new(&part.index)?;
        let unbound = |m: &Option<Tensor>| m.as_ref().map(|t| t.f_unbind(0)).transpose();
        let (reset, write) = (unbound(&part.reset)?, unbound(&part.write)?);
        let fresh = match (&reset, n) {
            (Some(_), Some(n)) => self.initial(n)?.states,
            _ => Vec::new(),
        };

        let mut states = part.states;
        let mut kept: Vec<Vec<Tensor>> = (0..count).map(|_| Vec::new()).collect();
        let mut values: Vec<Option<Datum>> = vec![None; count];
        for t in 0..part.length as usize {
            if let Some(reset) = &reset {
                for (state, fresh) in states.iter_mut().zip(&fresh) {
                    *state = fresh.f_where_self(&like(&reset[t], fresh)?, state)?;
                }
            }
            let around = InStep { weights: self, states: &states, index: index.at(t) };
            for (o, by_step) in &crossing {
                values[*o] = Some(Datum::Value(by_step.at(t)));
            }
            for i in 0..count {
                if plan.when[i] == When::Step {
                    let datum = compute(&around, plan, i, &[], &|o| values[o as usize].clone())?;
                    if plan.kept[i] {
                        let value = datum.value()?;
                        let shape: Vec<i64> = n.into_iter().chain(value.shape()).collect();
                        kept[i].push(value.aligned(Lead::BATCH, value.rank())?.f_expand(shape, false)?);
                    }
                    values[i] = Some(datum);
                }
            }
            let mut next = Vec::with_capacity(states.len());
            for (k, o) in state_outputs.iter().enumerate() {
                let value = tensor(&values, *o)?;
                let mut new = value.aligned(Lead::BATCH, value.rank())?.f_expand(states[k].size(), false)?;
                if held[k] > 1 {
                    let due = index.at(t).tensor.f_add_scalar(1)?.f_remainder(held[k] as i64)?.f_eq(0)?;
                    new = new.f_where_self(&like(&due, &states[k])?, &states[k])?;
                }
                if let Some(write) = &write {
                    new = new.f_where_self(&like(&write[t], &states[k])?, &states[k])?;
                }
                next.push(new);
            }
            states = next;
        }
        let stacked: Result<Vec<Tensor>> = (0..count)
            .filter(|i| plan.when[*i] == When::Step && plan.kept[*i])
            .map(|i| Ok(Tensor::f_stack(&kept[i], 0)?))
            .collect();
        Ok((states, stacked?))
    }

    /// As [`FastWeights::steps`], keeping only what enters and leaves the part.
    fn again(&self, plan: &StepPlan, part: Part) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        // Everything that needs a gradient goes in as an input: a tensor captured by the closure would get none.
        let names: Vec<(String, Lead)> = self.parameters.0.iter().map(|(n, v)| (n.clone(), v.lead)).collect();
        let leads: Vec<(usize, Lead)> = part.crossing.iter().map(|(o, v)| (*o, v.lead)).collect();
        let mut inputs: Vec<Tensor> = part.states.iter().map(Tensor::shallow_clone).collect();
        inputs.extend(part.crossing.iter().map(|(_, v)| v.tensor.shallow_clone()));
        inputs.extend(names.iter().map(|(n, _)| self.parameters.0[n].tensor.shallow_clone()));
        let index_lead = part.index.lead;
        let (has_reset, has_write) = (part.reset.is_some(), part.write.is_some());
        inputs.push(part.index.tensor);
        inputs.extend(part.reset.into_iter().chain(part.write));
        let (states, length) = (part.states.len(), part.length);
        let fixed = Fixed {
            slot: self.slot.clone(),
            index: self.index,
            prefix: self.prefix.clone(),
            precision: self.precision,
            whole: std::ptr::eq(plan, &self.slot.step),
        };
        let mut results = shim::checkpoint(&inputs, move |tensors| {
            let mut tensors = tensors.iter().map(Tensor::shallow_clone);
            let mut next = || tensors.next().expect("as many as were handed in");
            let own_states = (0..states).map(|_| next()).collect();
            let crossing = leads.iter().map(|(o, lead)| (*o, Value::new(next(), *lead))).collect();
            let table = names.iter().map(|(n, lead)| (n.clone(), Value::new(next(), *lead))).collect();
            let part = Part {
                states: own_states,
                crossing,
                index: Value::new(next(), index_lead),
                reset: has_reset.then(&mut next),
                write: has_write.then(&mut next),
                length,
            };
            let weights = FastWeights {
                slot: fixed.slot.clone(),
                index: fixed.index,
                parameters: Table(table),
                prefix: fixed.prefix.clone(),
                precision: fixed.precision,
                memory_limit: u64::MAX,
            };
            let plan = if fixed.whole { &fixed.slot.step } else { &fixed.slot.apart()?.write };
            let (mut states, kept) = weights.steps(plan, part)?;
            states.extend(kept);
            Ok(states)
        })?;
        let kept = results.split_off(states);
        Ok((results, kept))
    }
}

/// What a recomputed part knows beside its tensors.
struct Fixed {
    slot: Arc<Slot>,
    index: usize,
    prefix: String,
    precision: Precision,
    whole: bool,
}

/// A part of a walk.
struct Part {
    states: Vec<Tensor>,
    crossing: Vec<(usize, Value)>,
    index: Value,
    reset: Option<Tensor>,
    write: Option<Tensor>,
    length: i64,
}

impl Part {
    fn cut(crossing: &[(usize, Value)], index: &Value, masks: &Masks, states: &[Tensor], start: i64, length: i64) -> Result<Part> {
        let narrow = |v: &Value| -> Result<Value> {
            Ok(if v.lead.steps { Value::new(v.tensor.f_narrow(0, start, length)?, v.lead) } else { v.clone() })
        };
        let mask = |m: &Option<Tensor>| m.as_ref().map(|t| t.f_narrow(0, start, length)).transpose();
        Ok(Part {
            states: states.iter().map(Tensor::shallow_clone).collect(),
            crossing: crossing.iter().map(|(o, v)| Ok((*o, narrow(v)?))).collect::<Result<_>>()?,
            index: narrow(index)?,
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

/// The index of every step since the last reset, `[steps, n]` or, without resets and offsets, the same for all; and the index after the last step.
pub fn step_indices(start: &Tensor, masks: &Masks, steps: i64, wanted: bool) -> Result<(Value, Tensor)> {
    let options = (Kind::Int64, start.device());
    if !wanted && masks.reset.is_none() {
        return Ok((Value::new(Tensor::f_zeros([0i64; 0], options)?, Lead::NONE), start.f_add_scalar(steps)?));
    }
    let plain = Tensor::f_arange(steps, options)?.f_unsqueeze(1)?;
    let Some(reset) = &masks.reset else {
        return Ok((Value::new(plain.f_add(&start.f_unsqueeze(0)?)?, Lead::STEPS), start.f_add_scalar(steps)?));
    };
    // The step of the last reset is a running maximum; before any reset the count goes on from the start.
    let at_reset = plain.f_mul(&reset.f_to_kind(Kind::Int64)?)?;
    let origin = at_reset.f_masked_fill(&reset.f_logical_not()?, -1)?.f_cummax(0)?.0;
    let offset = start.f_unsqueeze(0)?.f_where_self(&origin.f_lt(0)?, &Tensor::f_zeros([1, 1], options)?)?;
    let index = plain.f_sub(&origin.f_clamp_min(0)?)?.f_add(&offset)?;
    let last = index.f_select(0, steps - 1)?.f_add_scalar(1)?;
    Ok((Value::new(index, Lead::STEPS), last))
}

fn in_order(function: &Function, inputs: &[(String, Value)]) -> Result<Vec<Value>> {
    function
        .arguments
        .iter()
        .map(|a| {
            let found = inputs.iter().find(|(n, _)| *n == a.name);
            found.map(|(_, v)| v.clone()).with_context(|| format!("the slow net does not hand over input `{}`", a.name))
        })
        .collect()
}

fn tensor(values: &[Option<Datum>], node: usize) -> Result<Value> {
    Ok(values[node].as_ref().context("internal: a value is not there")?.value()?.clone())
}

fn compute(around: &InStep<'_>, plan: &StepPlan, i: usize, inputs: &[Value], get: &dyn Fn(u32) -> Option<Datum>) -> Result<Datum> {
    let weights = around.weights;
    let node = &plan.function.nodes[i];
    let prepared = &weights.slot.rule;
    let result = match &node.op {
        Op::Argument { index } => {
            inputs.get(*index as usize).cloned().map(Datum::Value).context("internal: an argument inside of the walk")
        }
        Op::Parameter { index } => {
            evaluate::parameter(around, &weights.prefix, &plan.function.parameters[*index as usize]).map(Datum::Value)
        }
        op => {
            let operands: Option<Vec<Datum>> = node.operands.iter().map(|o| get(*o)).collect();
            match operands {
                Some(operands) => {
                    let at = Place { prepared, prefix: &weights.prefix, node: i, layer: 0, axis: None };
                    evaluate::one(around, &at, op, &operands.iter().collect::<Vec<_>>())
                }
                None => Err(anyhow::anyhow!("internal: an operand is not there")),
            }
        }
    };
    result.with_context(|| evaluate::failed(prepared, &plan.function, i))
}

/// What a step can reach.
struct InStep<'a> {
    weights: &'a FastWeights,
    states: &'a [Tensor],
    index: Value,
}

impl Surroundings for InStep<'_> {
    fn precision(&self) -> Precision {
        self.weights.precision
    }
    fn shared(&self) -> String {
        format!("shared.{}.", self.weights.slot.name)
    }
    fn parameter(&self, path: &str, _: &Parameter) -> Result<Value> {
        self.weights.parameters.get(path)
    }
    fn special(&self, at: &Place<'_>, op: &Op, operands: &[&Datum]) -> Result<Datum> {
        Ok(Datum::Value(match op {
            Op::State { index } => Value::new(self.states[*index as usize].shallow_clone(), Lead::BATCH),
            Op::StepIndex => self.index.clone(),
            Op::Phi { role, .. } => self.weights.map(operands[0].value()?.clone(), role == "query", &self.index)?,
            other => bail!("internal: `{}` inside of a step, node {}", other.name(), at.node),
        }))
    }
}

/// What a feature map can reach.
struct InMap<'a> {
    weights: &'a FastWeights,
    index: &'a Value,
}

impl Surroundings for InMap<'_> {
    fn precision(&self) -> Precision {
        self.weights.precision
    }
    fn shared(&self) -> String {
        format!("shared.{}.", self.weights.slot.name)
    }
    fn parameter(&self, path: &str, _: &Parameter) -> Result<Value> {
        self.weights.parameters.get(path)
    }
    fn special(&self, _: &Place<'_>, op: &Op, _: &[&Datum]) -> Result<Datum> {
        match op {
            Op::StepIndex => Ok(Datum::Value(self.index.clone())),
            other => bail!("internal: `{}` inside of a feature map", other.name()),
        }
    }
}

/// Checks that inputs agree in steps and samples before a scan starts.
pub fn agree(inputs: &[(&str, &Tensor)]) -> Result<()> {
    for (name, t) in inputs {
        let first = inputs[0].1.size();
        ensure!(t.size()[..2] == first[..2], "input `{name}` is {:?}, `{}` is {first:?}: batch and time differ", t.size(), inputs[0].0);
    }
    Ok(())
}
