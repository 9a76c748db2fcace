//! A rule with its feature map along drawn inputs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use fwp_program::interpret::Random;
use fwp_program::{ParameterSpec, Source};
use fwp_sdk::program::{Program, ReadAt};
use tch::{Kind, Tensor};

use super::Described;
use super::draw::{self, Data, Wanted};
use super::executor::{self, REFERENCE};
use crate::command::apply;
use crate::exec::choose::Executors;
use crate::exec::evaluate::Table;
use crate::exec::ops::sizes;
use crate::exec::prepared::Slot;
use crate::exec::scan::{FastWeights, Masks, per_sample};
use crate::exec::value::{Lead, Memory, Precision, Value};
use crate::exec::verify::finite;
use crate::model::{init, with_maps_inside};
use crate::shim;

/// Steps before the first, where states are given.
const STEPS_BEFORE: i64 = 5;

/// A rule with its feature map, ready to run.
pub struct Subject {
    /// Name of the sizes.
    pub sizes: String,
    /// The rule.
    pub rule: Program,
    /// The feature map.
    pub map: Program,
    /// Both prepared.
    pub slot: Arc<Slot>,
    /// Their parameters.
    pub specs: Vec<ParameterSpec>,
    /// Heads.
    pub heads: i64,
    /// Elements of a key before the map.
    pub key: i64,
    /// Elements of a value.
    pub value: i64,
    /// Whether keys and queries are drawn with unit length: without a map nothing else bounds them.
    unit: bool,
    /// One that is confined to each executor: what was chosen and compiled is kept from call to call.
    only: Mutex<BTreeMap<String, Arc<Executors>>>,
}

/// What a run gives, `[batch, time, heads, ...]`, or `[batch, heads, ...]` for states.
pub struct Outcome {
    /// `o`, `extra.NAME`, `state.NAME`.
    pub values: Vec<(String, Tensor)>,
    /// `grad.NAME` of every input, state and parameter that takes part; empty where none were asked for.
    pub gradients: Vec<(String, Tensor)>,
    /// Steps since the reset after the last step, `[batch * heads]`.
    pub index: Tensor,
}

impl Outcome {
    /// Values, then gradients.
    pub fn all(&self) -> impl Iterator<Item = &(String, Tensor)> {
        self.values.iter().chain(&self.gradients)
    }

    /// Whether all of them are finite.
    ///
    /// # Errors
    /// libtorch's.
    pub fn is_finite(&self) -> Result<bool> {
        for (_, t) in self.all() {
            if !finite(t)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A value by its name.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn value(&self, name: &str) -> Result<&Tensor> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, t)| t).with_context(|| format!("internal: no value `{name}`"))
    }
}

/// A run whose backward pass has not been taken.
pub struct Forward {
    leaves: Vec<(String, Tensor)>,
    outputs: Vec<(String, Tensor)>,
    index: Tensor,
}

impl Subject {
    /// Reads and prepares what `fwp-host` wrote.
    ///
    /// # Errors
    /// Files that cannot be read, and programs that cannot be prepared.
    pub fn open(described: &Described) -> Result<Subject> {
        let rule = match &described.rule {
            Ok(path) => apply::program(path)?,
            Err(why) => anyhow::bail!("the rule cannot be described for these sizes: {why}"),
        };
        let map = match &described.map {
            Some(path) => apply::program(path)?,
            None => apply::identity(described.key),
        };
        Subject::new(&described.name, &rule, &map, described.heads, described.key, described.value, described.map.is_none())
    }

    /// Prepares a rule and its map; `unit`: keys and queries are drawn with unit length.
    ///
    /// # Errors
    /// Programs that cannot be prepared.
    pub fn new(name: &str, rule: &Program, map: &Program, heads: usize, key: usize, value: usize, unit: bool) -> Result<Subject> {
        ensure!(heads > 0 && key > 0 && value > 0, "heads, key and value have at least one element");
        let programs = apply::alone(rule, map, heads);
        let slot = Arc::new(Slot::new(&programs.slots[0])?);
        let specs = with_maps_inside(&programs)?.parameters()?;
        Ok(Subject {
            sizes: name.to_string(),
            rule: rule.clone(),
            map: map.clone(),
            slot,
            specs,
            heads: heads as i64,
            key: key as i64,
            value: value as i64,
            unit,
            only: Mutex::default(),
        })
    }

    fn executors(&self, name: &str) -> Result<Arc<Executors>> {
        // Entries are put in whole, so a panic elsewhere leaves nothing half done.
        let mut only = self.only.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = only.get(name) {
            return Ok(found.clone());
        }
        let made = executor::only(name)?;
        only.insert(name.to_string(), made.clone());
        Ok(made)
    }

    /// Numbers to try the rule on.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn draw(&self, wanted: Wanted, seed: u64) -> Result<Data> {
        self.draw_smaller(wanted, seed, 1.0)
    }

    /// The same with all inputs multiplied by a factor, also those before the states that are given.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn draw_smaller(&self, wanted: Wanted, seed: u64, factor: f64) -> Result<Data> {
        let mut data = self.inputs(wanted, seed, factor)?;
        let double = Precision { kind: Kind::Double, device: tch::Device::Cpu };
        let mut random = Random::new(draw::seed_of(seed, "parameters"));
        for spec in &self.specs {
            let prepared = if matches!(spec.source, Source::Map(_)) { &self.slot.map } else { &self.slot.rule };
            let drawn = init::draw(prepared, spec, double, seed, 0)?;
            // Disturbed, so that a parameter that begins at 0 or 1 does not hide what multiplies it.
            let noise = draw::normal(&mut random, &sizes(&spec.shape))?;
            data.parameters.push((spec.path.clone(), drawn.f_add(&noise.f_mul(&draw::scalar(0.1))?)?));
        }
        if wanted.states {
            data.states = self.reached(&data.parameters, wanted.batch, seed, factor)?;
        }
        Ok(data)
    }

    fn inputs(&self, wanted: Wanted, seed: u64, factor: f64) -> Result<Data> {
        let mut data = draw::data(&self.rule, self.heads, self.key, self.unit, wanted, seed)?;
        for (_, t) in &mut data.inputs {
            *t = t.f_mul_scalar(factor)?;
        }
        Ok(data)
    }

    /// States as the rule reaches them in a few steps from its own: drawn ones need not be such that it ever meets them,
    /// a sum of outer products of keys with themselves, say, is no matrix of normal numbers.
    fn reached(&self, parameters: &[(String, Tensor)], batch: i64, seed: u64, factor: f64) -> Result<Vec<(String, Tensor)>> {
        let wanted = Wanted { batch, steps: STEPS_BEFORE, states: false, masks: false };
        let before = self.inputs(wanted, draw::seed_of(seed, "before"), factor)?;
        let before = Data { parameters: parameters.iter().map(|(n, t)| (n.clone(), t.copy())).collect(), ..before };
        let double = Precision { kind: Kind::Double, device: tch::Device::Cpu };
        let outcome = self.run(REFERENCE, double, &before, None)?;
        let state = |name: &String| Ok((name.clone(), outcome.value(&format!("state.{name}"))?.copy()));
        self.rule.states.iter().map(|s| state(&s.name)).collect()
    }

    /// Weights of all outputs and final states for a loss: normal numbers of their shapes.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn weights(&self, outcome: &Outcome, seed: u64) -> Result<Vec<Tensor>> {
        let mut random = Random::new(draw::seed_of(seed, "weights"));
        outcome.values.iter().map(|(_, t)| draw::normal(&mut random, &t.size())).collect()
    }

    /// Runs forward; without gradients nothing is kept.
    ///
    /// # Errors
    /// What goes wrong in the executor.
    pub fn forward(&self, executor: &str, precision: Precision, data: &Data, gradients: bool) -> Result<Forward> {
        if gradients {
            return self.forward_recorded(executor, precision, data, true);
        }
        tch::no_grad(|| self.forward_recorded(executor, precision, data, false))
    }

    fn forward_recorded(&self, executor: &str, precision: Precision, data: &Data, gradients: bool) -> Result<Forward> {
        let mut leaves: Vec<(String, Tensor)> = Vec::new();
        let mut leaf = |name: String, t: &Tensor| -> Result<Tensor> {
            let t = t.f_to_kind(precision.kind)?.f_to_device(precision.device)?.f_detach()?.f_set_requires_grad(gradients)?;
            leaves.push((name, t.shallow_clone()));
            Ok(t)
        };
        let first = data.inputs.first().context("the rule has no inputs")?;
        let [batch, steps] = first.1.size()[..2] else { anyhow::bail!("internal: an input without batch and time") };
        let heads = self.heads;
        let mut table = Table::default();
        for (path, t) in &data.parameters {
            let spec = self.specs.iter().find(|s| s.path == *path).context("internal: an unknown parameter")?;
            table.0.insert(path.clone(), per_sample(&leaf(format!("param.{path}"), t)?, spec.scope, batch)?);
        }
        let weights = FastWeights {
            slot: self.slot.clone(),
            index: 0,
            parameters: table,
            prefix: String::new(),
            precision,
            memory_limit: u64::MAX,
            executors: self.executors(executor)?,
        };
        let mut memory = weights.initial(batch * heads)?;
        for (i, (name, t)) in data.states.iter().enumerate() {
            let own = sizes(&self.rule.states[i].shape);
            let flat: Vec<i64> = std::iter::once(-1).chain(own).collect();
            memory.states[i] = leaf(format!("state.{name}"), t)?.f_reshape(flat)?;
        }
        if let Some(index) = &data.index {
            memory.index = index.f_to_device(precision.device)?;
        }
        let mask = |m: &Option<Tensor>| -> Result<Option<Tensor>> {
            let Some(t) = m else { return Ok(None) };
            let t = t.f_to_device(precision.device)?.f_transpose(0, 1)?;
            Ok(Some(t.f_repeat_interleave_self_int(heads, 1, None)?))
        };
        let masks = Masks { reset: mask(&data.reset)?, write: mask(&data.write)?, ..Masks::default() };
        let mut inputs = Vec::new();
        for (name, t) in &data.inputs {
            let t = leaf(name.clone(), t)?;
            let own = t.size()[2];
            let repeated = if own < heads { t.f_repeat_interleave_self_int(heads / own, 2, None)? } else { t };
            let order: Vec<i64> = [1, 0].into_iter().chain(2..repeated.dim() as i64).collect();
            let rest = repeated.size()[3..].to_vec();
            let flat: Vec<i64> = [steps, batch * heads].into_iter().chain(rest).collect();
            let x = Value::new(repeated.f_permute(order)?.f_reshape(flat)?, Lead::STEPS);
            inputs.push((name.clone(), x));
        }
        let (parts, memory) = weights.scan(&inputs, None, memory, &masks, ReadAt::After)?;
        let mut outputs = Vec::new();
        let names = self.slot.step.function.outputs.iter().filter(|o| !o.name.starts_with("state."));
        for (name, part) in names.zip(&parts) {
            let split: Vec<i64> = [steps, batch, heads].into_iter().chain(part.shape()).collect();
            let t = part.tensor.f_reshape(split)?;
            let order: Vec<i64> = [1, 0].into_iter().chain(2..t.dim() as i64).collect();
            let name = if name.name == "output" { "o".to_string() } else { name.name.clone() };
            outputs.push((name, t.f_permute(order)?));
        }
        let Memory { states, index, .. } = memory;
        for (state, t) in self.rule.states.iter().zip(&states) {
            let split: Vec<i64> = [batch, heads].into_iter().chain(sizes(&state.shape)).collect();
            outputs.push((format!("state.{}", state.name), t.f_reshape(split)?));
        }
        Ok(Forward { leaves, outputs, index })
    }

    /// Forward, and backward from the sum of outputs and final states times `weights` where those are given; what has no weight counts nothing.
    ///
    /// # Errors
    /// What goes wrong in the executor.
    pub fn run(&self, executor: &str, precision: Precision, data: &Data, weights: Option<&[Tensor]>) -> Result<Outcome> {
        self.forward(executor, precision, data, weights.is_some())?.backward(weights)
    }
}

impl Forward {
    /// The backward pass; without weights there is none.
    ///
    /// # Errors
    /// What goes wrong in it.
    pub fn backward(self, weights: Option<&[Tensor]>) -> Result<Outcome> {
        let mut gradients = Vec::new();
        if let Some(weights) = weights {
            ensure!(weights.len() <= self.outputs.len(), "internal: more weights than outputs");
            let roots = self.outputs.iter().zip(weights).filter(|((_, t), _)| t.requires_grad());
            let (tensors, weights): (Vec<&Tensor>, Vec<Tensor>) = roots.map(|((_, t), w)| (t, w.to_kind(t.kind()))).unzip();
            let weights: Vec<Option<&Tensor>> = weights.iter().map(Some).collect();
            let leaves: Vec<&Tensor> = self.leaves.iter().map(|(_, t)| t).collect();
            let found = shim::gradients(&tensors, &weights, &leaves, false, false)?;
            for ((name, t), g) in self.leaves.iter().zip(found) {
                let g = match g {
                    Some(g) => g,
                    None => t.f_zeros_like()?,
                };
                gradients.push((format!("grad.{name}"), g));
            }
        }
        let values = self.outputs.iter().map(|(n, t)| (n.clone(), t.detach())).collect();
        Ok(Outcome { values, gradients, index: self.index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_that_is_no_number_is_not_finite() {
        let of = |gradient: f64| Outcome {
            values: vec![("o".into(), Tensor::from(1.0))],
            gradients: vec![("grad.q".into(), Tensor::from_slice(&[0.0, gradient]))],
            index: Tensor::from(0),
        };
        assert!(of(2.0).is_finite().unwrap());
        assert!(!of(f64::NAN).is_finite().unwrap() && !of(f64::INFINITY).is_finite().unwrap());
    }
}
