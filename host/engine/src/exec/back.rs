//! One query of a memory without the memory: the query is walked back through the writes (see [`fwp_program::analysis::walked_back`]).

use std::sync::Arc;

use anyhow::Result;
use fwp_program::SlotPrograms;
use fwp_program::analysis::{BackRead, walked_back};
use fwp_sdk::program::{Function, StateInit};
use tch::{Kind, Tensor};

use super::ops::sizes;
use super::plan::{StepPlan, declared};
use super::prepared::{Prepared, ReadWrite, Slot};
use super::scan::{FastWeights, Inputs, Masks, in_order};
use super::value::{Lead, Memory, Value, reshaped};

/// The walk back of a rule, made ready.
pub struct Back {
    /// The walk.
    slot: Arc<Slot>,
    /// What it begins with, for all samples.
    queries: Arc<StepPlan>,
    rest: Function,
    reads: Vec<BackRead>,
}

impl Back {
    /// Derives it.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn new(name: &str, map: &Prepared, rule: &Prepared, apart: &ReadWrite) -> Result<Back, String> {
        let made = walked_back(&rule.program, &apart.apart)?;
        let programs = SlotPrograms { name: name.into(), layers: None, map: map.program.clone(), rule: made.rule };
        let slot = Arc::new(Slot::new(&programs).map_err(|e| format!("{e:#}"))?);
        let queries = Arc::new(StepPlan::new(&rule.program, made.queries, vec![])?);
        if queries.uses_index || slot.step.uses_index {
            return Err("something asks for the index of a step".into());
        }
        Ok(Back { slot, queries, rest: made.rest, reads: made.reads })
    }
}

/// A write that is not carried out before it is known what is read of it.
#[derive(Clone, Debug)]
pub struct Deferred {
    /// The memory before it; none where nothing was written so far.
    pub memory: Option<Memory>,
    /// Samples times heads.
    pub samples: i64,
    /// Inputs `[steps, n, ...]`, before the feature map.
    pub inputs: Vec<(String, Value)>,
}

impl FastWeights {
    /// Whether one query of what is written with these inputs may be answered without writing it.
    pub fn walks_back(&self) -> bool {
        self.executors.chooses() && self.slot.back().is_ok()
    }

    /// The memory before a deferred write.
    ///
    /// # Errors
    /// libtorch's.
    pub fn before(&self, deferred: &Deferred) -> Result<Memory> {
        deferred.memory.clone().map_or_else(|| self.initial(deferred.samples), Ok)
    }

    /// What a read of one query, `[1, n, ...]` or `[n, ...]`, gives after a deferred write.
    ///
    /// # Errors
    /// There is no walk back, or what the walk meets.
    pub fn read_back(&self, deferred: &Deferred, inputs: &[(String, Value)], query_scale: Option<f64>) -> Result<Vec<Value>> {
        let back = self.slot.back().map_err(anyhow::Error::msg)?;
        let n = deferred.samples;
        let index = match &deferred.memory {
            Some(memory) => memory.index.shallow_clone(),
            None => Tensor::f_zeros([n], (Kind::Int64, self.precision.device))?,
        };
        let nothing = || Memory { slot: self.index, states: vec![], index: index.shallow_clone() };
        let along = inputs.iter().any(|(_, v)| v.lead.steps);
        let mut states = Vec::new();
        for (query, read) in self.queries(back, inputs, query_scale, nothing())?.iter().zip(&back.reads) {
            let [columns, rows] = read.size.map(|n| n as i64);
            states.push(reshaped(&query.tensor, &[n, columns])?.f_contiguous()?);
            states.push(Tensor::f_zeros([n, rows], (self.precision.kind, self.precision.device))?);
        }
        let plan = &back.slot.step;
        let values = in_order(&plan.function, &deferred.inputs)?;
        let given = Inputs::Raw { values: &values, query_scale: None };
        let masks = Masks { backwards: true, ..Masks::default() };
        let begin = Memory { states, ..nothing() };
        let (_, end) = self.executors.clone().run(&self.with_slot(&back.slot), plan, given, begin, &masks)?;
        let mut known = Vec::new();
        for (read, pair) in back.reads.iter().zip(end.states.chunks_exact(2)) {
            let (query, answer) = (&pair[0], &pair[1]);
            let answer = match self.start(deferred, read.state)? {
                Some(start) => {
                    let matrix = start.f_reshape([n, read.size[1] as i64, read.size[0] as i64])?;
                    answer.f_add(&matrix.f_matmul(&query.f_unsqueeze(2)?)?.f_squeeze_dim(2)?)?
                }
                None => answer.shallow_clone(),
            };
            let shape: Vec<i64> = std::iter::once(n).chain(sizes(&read.shape)).collect();
            known.push((read.name.clone(), Value::new(reshaped(&answer, &shape)?, Lead::BATCH)));
        }
        let is_read = |name: &str| back.reads.iter().any(|r| r.name == *name);
        if back.rest.arguments.iter().any(|a| !is_read(&a.name)) {
            let inputs: Vec<(String, Value)> = inputs.iter().map(at_once).collect::<Result<_>>()?;
            known.extend(self.all_mapped(&inputs, query_scale, &nothing(), &Masks::default())?);
        }
        let results = self.evaluated(&back.rest, &nothing(), &known)?;
        let as_given = |v: Value| if along { as_step(v) } else { Ok(v) };
        results.into_iter().map(as_given).collect()
    }

    /// The queries that a walk begins with, `[1, n, size]` or `[n, size]`: one kernel where there is one.
    fn queries(&self, back: &Back, inputs: &[(String, Value)], query_scale: Option<f64>, nothing: Memory) -> Result<Vec<Value>> {
        let plan = &back.queries;
        let values: Vec<Value> = in_order(&plan.function, inputs)?.into_iter().map(as_step).collect::<Result<_>>()?;
        let given = Inputs::Raw { values: &values, query_scale };
        let executors = self.executors.clone();
        if let Some(found) = executors.read(self, plan, given, nothing.clone())? {
            return Ok(found);
        }
        self.evaluated(&plan.function, &nothing, &self.all_mapped(inputs, query_scale, &nothing, &Masks::default())?)
    }

    /// A state before a deferred write; none where it holds nothing but zeros.
    fn start(&self, deferred: &Deferred, state: usize) -> Result<Option<Tensor>> {
        let rule = &self.slot.rule.program;
        Ok(match &deferred.memory {
            Some(memory) => Some(memory.states[state].shallow_clone()),
            None if rule.states[state].init == StateInit::Zeros => None,
            None => Some(self.initial_states(&declared(rule)[state..=state], deferred.samples)?.remove(0)),
        })
    }
}

/// A value as that of one step.
fn as_step(v: Value) -> Result<Value> {
    Ok(if v.lead.steps { v } else { Value::new(v.tensor.f_unsqueeze(0)?, Lead { steps: true, ..v.lead }) })
}

/// An input without the axis of its one step.
fn at_once((name, v): &(String, Value)) -> Result<(String, Value)> {
    let first = if v.lead.steps { Value::new(v.tensor.f_select(0, 0)?, Lead { steps: false, ..v.lead }) } else { v.clone() };
    Ok((name.clone(), first))
}
