//! An update rule along its steps.
//!
//! Samples and heads are one leading axis (`n` below), steps another; every tensor of a scan is `[steps, n, ...]`, `[n, ...]` or without either.
//! What does not depend on a state is computed for all steps at once where that is no larger than its operands; the rest is one walk through the steps.
//! A walk whose kept values would exceed the memory limit is cut into segments that the backward pass computes again.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use fwp_sdk::program::{Function, MapRole, Op, Parameter, ReadAt, Scope, StateInit, entry};
use tch::{Kind, Tensor};

use super::choose::Executors;
use super::evaluate::{self, Place, Surroundings, Table};
use super::ops::sizes;
use super::plan::{StepPlan, WalkState, declared, memory_argument};
use super::prepared::Slot;
use super::value::{Datum, Lead, Memory, Precision, Value, expanded};
use super::walk::length;

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
    /// What carries out the steps.
    pub executors: Arc<Executors>,
}

/// What a walk is given at its steps, in the order of its function's arguments.
#[derive(Clone, Copy)]
pub enum Inputs<'a> {
    /// As the steps take them.
    Ready(&'a [Value]),
    /// As the slow net hands them over: before the feature map.
    Raw {
        /// The values.
        values: &'a [Value],
        /// What queries are multiplied by after the map.
        query_scale: Option<f64>,
    },
}

impl<'a> Inputs<'a> {
    /// The values as they are given.
    pub fn given(self) -> &'a [Value] {
        match self {
            Inputs::Ready(values) | Inputs::Raw { values, .. } => values,
        }
    }

    /// As the steps of `plan` take them.
    pub fn ready(self, weights: &FastWeights, plan: &StepPlan, memory: &Memory, masks: &Masks) -> Result<Cow<'a, [Value]>> {
        let Inputs::Raw { values, query_scale } = self else { return Ok(Cow::Borrowed(self.given())) };
        let (index, _) = step_indices(&memory.index, masks, length(values, masks), true)?;
        let names = plan.function.arguments.iter().map(|a| a.name.as_str());
        let mapped = names.zip(values).map(|(name, x)| weights.mapped(name, x.clone(), query_scale, &index));
        Ok(Cow::Owned(mapped.collect::<Result<_>>()?))
    }
}

/// What steers a scan beside its inputs.
#[derive(Default)]
pub struct Masks {
    /// `[steps, n]`: the state returns to its initial value before the step.
    pub reset: Option<Tensor>,
    /// `[steps, n]`: where false the step leaves the state as it is.
    pub write: Option<Tensor>,
    /// The last step in time is taken first. Inputs and outputs stay where they are in time.
    pub backwards: bool,
}

impl Masks {
    /// For steps that lie the other way round.
    pub(super) fn turned(&self) -> Result<Masks> {
        let turned = |m: &Option<Tensor>| m.as_ref().map(|m| m.f_flip([0])).transpose();
        Ok(Masks { reset: turned(&self.reset)?, write: turned(&self.write)?, backwards: !self.backwards })
    }
}

/// A parameter as a scan takes it: one a head is repeated for every sample, `[samples * heads, ...]`; any other is the same for all.
pub fn per_sample(t: &Tensor, scope: Scope, batch: i64) -> Result<Value> {
    if scope != Scope::Head {
        return Ok(Value::new(t.shallow_clone(), Lead::NONE));
    }
    let every: Vec<i64> = std::iter::once(batch).chain(t.size()).collect();
    let flat: Vec<i64> = std::iter::once(-1).chain(t.size()[1..].iter().copied()).collect();
    Ok(Value::new(t.f_unsqueeze(0)?.f_expand(every, false)?.f_reshape(flat)?, Lead::BATCH))
}

impl FastWeights {
    fn rule(&self) -> &fwp_sdk::program::Program {
        &self.slot.rule.program
    }

    /// The same weights with another slot.
    pub(super) fn with_slot(&self, slot: &Arc<Slot>) -> FastWeights {
        FastWeights {
            slot: slot.clone(),
            index: self.index,
            parameters: self.parameters.clone(),
            prefix: self.prefix.clone(),
            precision: self.precision,
            memory_limit: self.memory_limit,
            executors: self.executors.clone(),
        }
    }

    /// The initial memory for `n` samples times heads.
    pub fn initial(&self, n: i64) -> Result<Memory> {
        let states = self.initial_states(&declared(self.rule()), n)?;
        let index = Tensor::f_zeros([n], (Kind::Int64, self.precision.device))?;
        Ok(Memory { slot: self.index, states, index })
    }

    /// Initial values of states, `[n, ...]`.
    pub(super) fn initial_states(&self, states: &[WalkState], n: i64) -> Result<Vec<Tensor>> {
        let float = (self.precision.kind, self.precision.device);
        let one = |s: &WalkState| -> Result<Tensor> {
            let shape: Vec<i64> = std::iter::once(n).chain(sizes(&s.state.shape)).collect();
            Ok(match &s.state.init {
                StateInit::Zeros => Tensor::f_zeros(shape, float)?,
                StateInit::Constant(c) => Tensor::f_full(shape, *c, float)?,
                StateInit::Parameter(name) => {
                    let value = self.parameters.get(&format!("{}{name}", self.prefix))?;
                    expanded(value.aligned(Lead::BATCH, s.state.shape.len())?, &shape)?
                }
            })
        };
        states.iter().map(one).collect()
    }

    /// Applies the feature map to inputs that are mapped, and the scale to queries.
    pub fn mapped(&self, name: &str, x: Value, query_scale: Option<f64>, index: &Value) -> Result<Value> {
        let declared =
            self.rule().inputs.iter().find(|i| i.name == name).with_context(|| format!("internal: no input `{name}`"))?;
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
        let parts: Result<Vec<Tensor>> =
            x.tensor.f_unbind(x.dim(0))?.into_iter().map(|t| Ok(one(Value::new(t, x.lead))?.tensor)).collect();
        Ok(Value::new(Tensor::f_stack(&parts?, x.dim(0))?, x.lead))
    }

    /// The rule's signals as it uses them, `[steps, n, ...]`, from inputs in the order of the interface or of the write.
    pub fn signals(&self, inputs: &[(String, Value)]) -> Result<Vec<(String, Value)>> {
        let Some(effective) = &self.slot.effective else { return Ok(Vec::new()) };
        let nothing = || {
            Ok::<_, anyhow::Error>(Value::new(
                Tensor::f_zeros([0i64; 0], (self.precision.kind, self.precision.device))?,
                Lead::NONE,
            ))
        };
        let mut arguments = Vec::new();
        for (i, a) in (0u32..).zip(&effective.arguments) {
            let needed = || effective.nodes.iter().any(|node| node.op == Op::Argument { index: i });
            match inputs.iter().find(|(n, _)| *n == a.name) {
                Some((_, v)) => arguments.push(Datum::Value(v.clone())),
                // A write or a read is handed a part of the inputs; signals of the other part are not shown.
                None if needed() => return Ok(Vec::new()),
                None => arguments.push(Datum::Value(nothing()?)),
            }
        }
        let around = InStep {
            weights: self,
            states: &[],
            index: Value::new(Tensor::f_zeros([0i64; 0], (Kind::Int64, self.precision.device))?, Lead::NONE),
        };
        let results = evaluate::nodes(&around, &self.slot.rule, effective, &self.prefix, 0, &arguments)?;
        effective.outputs.iter().zip(&results).map(|(o, d)| Ok((o.name.clone(), d.value()?.clone()))).collect()
    }

    /// Writes and reads along the steps: outputs `[steps, n, ...]` (output, then extras) and the final memory.
    /// `inputs` are the rule's inputs before the feature map; queries are multiplied by the scale after it.
    pub fn scan(
        &self,
        inputs: &[(String, Value)],
        query_scale: Option<f64>,
        memory: Memory,
        masks: &Masks,
        read: ReadAt,
    ) -> Result<(Vec<Value>, Memory)> {
        let plan = self.slot.plan(read)?;
        let values = in_order(&plan.function, inputs)?;
        self.executors.clone().run(self, &plan, Inputs::Raw { values: &values, query_scale }, memory, masks)
    }

    /// Writes `[steps, n, ...]` inputs, given before the feature map; gives the memory afterwards.
    pub fn write(&self, inputs: &[(String, Value)], memory: Memory, masks: &Masks) -> Result<Memory> {
        let plan = &self.slot.apart()?.write;
        let values = in_order(&plan.function, inputs)?;
        Ok(self.executors.clone().run(self, plan, Inputs::Raw { values: &values, query_scale: None }, memory, masks)?.1)
    }

    /// Reads with inputs `[steps, n, ...]` or `[n, ...]`, given before the feature map, the memory staying as it is: output, then extras.
    /// Queries are multiplied by the scale after the map; masks say only where a sequence of queries begins.
    pub fn read(
        &self,
        inputs: &[(String, Value)],
        query_scale: Option<f64>,
        memory: &Memory,
        masks: &Masks,
    ) -> Result<Vec<Value>> {
        let apart = self.slot.apart()?;
        if let Some(plan) = apart.read.as_ref().filter(|_| inputs.iter().all(|(_, v)| v.lead.steps)) {
            let states = self.rule().states.iter().zip(&memory.states);
            let states = states.map(|(s, t)| (memory_argument(&s.name), Value::new(t.shallow_clone(), Lead::BATCH)));
            let all: Vec<(String, Value)> = inputs.iter().cloned().chain(states).collect();
            let values = in_order(&plan.function, &all)?;
            let nothing = Memory { slot: memory.slot, states: vec![], index: memory.index.shallow_clone() };
            let found = self.executors.clone().read(self, plan, Inputs::Raw { values: &values, query_scale }, nothing)?;
            if let Some(outputs) = found {
                return Ok(outputs);
            }
        }
        self.read_mapped(memory, &self.all_mapped(inputs, query_scale, memory, masks)?)
    }

    /// Inputs after the feature map, queries scaled.
    pub fn all_mapped(
        &self,
        inputs: &[(String, Value)],
        query_scale: Option<f64>,
        memory: &Memory,
        masks: &Masks,
    ) -> Result<Vec<(String, Value)>> {
        let index = match inputs.iter().find(|(_, v)| v.lead.steps) {
            Some((_, v)) => step_indices(&memory.index, masks, v.tensor.size()[0], true)?.0,
            None => Value::new(memory.index.shallow_clone(), Lead::BATCH),
        };
        let mapped = |(name, x): &(String, Value)| Ok((name.clone(), self.mapped(name, x.clone(), query_scale, &index)?));
        inputs.iter().map(mapped).collect()
    }

    /// [`FastWeights::read`], operation by operation, with inputs after the feature map.
    fn read_mapped(&self, memory: &Memory, inputs: &[(String, Value)]) -> Result<Vec<Value>> {
        self.evaluated(&self.slot.apart()?.apart.read, memory, inputs)
    }

    /// The results of a function of the rule for these arguments: `[steps, n, ...]` where an argument has steps, else `[n, ...]`.
    pub(super) fn evaluated(&self, function: &Function, memory: &Memory, arguments: &[(String, Value)]) -> Result<Vec<Value>> {
        let arguments: Vec<Datum> = in_order(function, arguments)?.into_iter().map(Datum::Value).collect();
        let steps = arguments.iter().any(|a| a.value().is_ok_and(|v| v.lead.steps));
        let around =
            InStep { weights: self, states: &memory.states, index: Value::new(memory.index.shallow_clone(), Lead::BATCH) };
        let results = evaluate::nodes(&around, &self.slot.rule, function, &self.prefix, 0, &arguments)?;
        let lead = if steps { Lead::STEPS } else { Lead::BATCH };
        let n = memory.index.size()[0];
        let length = arguments.iter().filter_map(|a| a.value().ok()).find(|v| v.lead.steps).map(|v| v.tensor.size()[0]);
        results
            .iter()
            .map(|d| {
                let v = d.value()?;
                let shape: Vec<i64> = length.into_iter().chain([n]).chain(v.shape()).collect();
                Ok(Value::new(expanded(v.aligned(lead, v.rank())?, &shape)?, lead))
            })
            .collect()
    }
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

pub(super) fn in_order(function: &Function, inputs: &[(String, Value)]) -> Result<Vec<Value>> {
    function
        .arguments
        .iter()
        .map(|a| {
            let found = inputs.iter().find(|(n, _)| *n == a.name);
            found.map(|(_, v)| v.clone()).with_context(|| format!("the slow net does not hand over input `{}`", a.name))
        })
        .collect()
}

/// What a step can reach.
pub(super) struct InStep<'a> {
    pub weights: &'a FastWeights,
    pub states: &'a [Tensor],
    pub index: Value,
}

impl Surroundings for InStep<'_> {
    fn precision(&self) -> Precision {
        self.weights.precision
    }
    fn shared(&self) -> String {
        self.weights.slot.shared.clone()
    }
    fn parameter(&self, path: &str, _: &Parameter) -> Result<Value> {
        self.weights.parameters.get(path)
    }
    fn special(&self, at: &Place<'_>, op: &Op, operands: &[&Datum]) -> Result<Datum> {
        Ok(Datum::Value(match op {
            Op::State { index } => Value::new(self.states[*index as usize].shallow_clone(), Lead::BATCH),
            Op::StepIndex => self.index.clone(),
            Op::Phi { role, .. } => self.weights.map(operands[0].value()?.clone(), *role == MapRole::Query, &self.index)?,
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
        self.weights.slot.shared.clone()
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
