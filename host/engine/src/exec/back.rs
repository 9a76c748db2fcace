//! One query of a memory without the memory: the query is walked back through the writes (see [`fwp_program::analysis::walked_back`]).

use std::sync::Arc;

use anyhow::{Context, Result};
use fwp_program::SlotPrograms;
use fwp_program::analysis::{BackRead, walked_back};
use fwp_sdk::program::{Function, StateInit};
use tch::Tensor;

use super::evaluate;
use super::ops::sizes;
use super::prepared::{Prepared, ReadWrite, Slot};
use super::scan::{FastWeights, InStep, Inputs, Masks, in_order};
use super::value::{Datum, Lead, Memory, Value, expanded};

/// The walk back of a rule, made ready.
pub struct Back {
    slot: Arc<Slot>,
    queries: Function,
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
        Ok(Back { slot, queries: made.queries, rest: made.rest, reads: made.reads })
    }
}

/// A write that is not carried out before it is known what is read of it.
#[derive(Clone, Debug)]
pub struct Deferred {
    /// The memory before it.
    pub memory: Memory,
    /// Whether that is one in which nothing was written so far.
    pub fresh: bool,
    /// Inputs `[steps, n, ...]`, before the feature map.
    pub inputs: Vec<(String, Value)>,
}

impl FastWeights {
    /// Whether one query of what is written with these inputs may be answered without writing it.
    pub fn walks_back(&self) -> bool {
        self.executors.chooses() && self.slot.back().is_ok()
    }

    /// What a read of one query, `[1, n, ...]` or `[n, ...]`, gives after a deferred write.
    ///
    /// # Errors
    /// There is no walk back, or what the walk meets.
    pub fn read_back(&self, deferred: &Deferred, inputs: &[(String, Value)], query_scale: Option<f64>) -> Result<Vec<Value>> {
        let memory = &deferred.memory;
        let back = self.slot.back().map_err(anyhow::Error::msg)?;
        let n = memory.index.size()[0];
        let index = Value::new(memory.index.shallow_clone(), Lead::BATCH);
        let around = InStep { weights: self, states: &[], index };
        let along = inputs.iter().any(|(_, v)| v.lead.steps);
        let one = |(name, v): &(String, Value)| -> Result<(String, Value)> {
            let first =
                if v.lead.steps { Value::new(v.tensor.f_select(0, 0)?, Lead { steps: false, ..v.lead }) } else { v.clone() };
            Ok((name.clone(), first))
        };
        let inputs: Vec<(String, Value)> = inputs.iter().map(one).collect::<Result<_>>()?;
        let read = self.all_mapped(&inputs, query_scale, memory, &Masks::default())?;
        let data = |values: Vec<Value>| -> Vec<Datum> { values.into_iter().map(Datum::Value).collect() };
        let arguments = data(in_order(&back.queries, &read)?);
        let queries = evaluate::nodes(&around, &self.slot.rule, &back.queries, &self.prefix, 0, &arguments)?;
        let mut states = Vec::new();
        for (query, read) in queries.iter().zip(&back.reads) {
            let v = query.value()?;
            let [columns, rows] = read.size.map(|n| n as i64);
            states.push(expanded(v.aligned(Lead::BATCH, v.rank())?, &[n, columns])?.f_contiguous()?);
            states.push(Tensor::f_zeros([n, rows], (self.precision.kind, self.precision.device))?);
        }
        // From the last step to the first.
        let turned = |(name, v): &(String, Value)| -> Result<(String, Value)> {
            Ok((name.clone(), if v.lead.steps { Value::new(v.tensor.f_flip([0])?, v.lead) } else { v.clone() }))
        };
        let inputs: Vec<(String, Value)> = deferred.inputs.iter().map(turned).collect::<Result<_>>()?;
        let plan = &back.slot.step;
        let values = in_order(&plan.function, &inputs)?;
        let begin = Memory { slot: memory.slot, states, index: memory.index.shallow_clone() };
        let given = Inputs::Raw { values: &values, query_scale: None };
        let (_, end) = self.executors.clone().run(&self.with_slot(&back.slot), plan, given, begin, &Masks::default())?;
        let mut known = read;
        for (read, pair) in back.reads.iter().zip(end.states.chunks_exact(2)) {
            let (query, answer) = (&pair[0], &pair[1]);
            let start = memory.states.get(read.state).context("internal: a read of a state that is not there")?;
            let declared = &self.slot.rule.program.states[read.state];
            let answer = match declared.init {
                // What a memory begins with, before anything is written.
                StateInit::Zeros if deferred.fresh => answer.shallow_clone(),
                _ => {
                    let matrix = start.f_reshape([n, read.size[1] as i64, read.size[0] as i64])?;
                    answer.f_add(&matrix.f_matmul(&query.f_unsqueeze(2)?)?.f_squeeze_dim(2)?)?
                }
            };
            let shape: Vec<i64> = std::iter::once(n).chain(sizes(&read.shape)).collect();
            known.push((read.name.clone(), Value::new(answer.f_reshape(shape)?, Lead::BATCH)));
        }
        let arguments = data(in_order(&back.rest, &known)?);
        let results = evaluate::nodes(&around, &self.slot.rule, &back.rest, &self.prefix, 0, &arguments)?;
        let whole = |d: &Datum| -> Result<Value> {
            let v = d.value()?;
            let shape: Vec<i64> = std::iter::once(n).chain(v.shape()).collect();
            let t = expanded(v.aligned(Lead::BATCH, v.rank())?, &shape)?;
            Ok(if along { Value::new(t.f_unsqueeze(0)?, Lead::STEPS) } else { Value::new(t, Lead::BATCH) })
        };
        results.iter().map(whole).collect()
    }
}
