//! A model: programs composed with parameters.

mod cell;
pub mod init;
mod net;
mod unfold;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use cell::Cell;
use fwp_program::{ModelPrograms, ParameterSpec, Source};
use fwp_sdk::program::{Training, entry};
use tch::{Device, Kind, Tensor};

use crate::exec::choose::{Executor, Executors, Policy};
use crate::exec::evaluate;
use crate::exec::prepared::{Composed, Prepared};
use crate::exec::value::{Datum, Lead, Precision, Value, expanded};
use crate::train::{Output, Parameter, Pass, TrainModel};

/// What one call of a model leaves for the next: states of fast weights and cells, rings of convolutions and windows, positions.
/// The key is the place of the node.
pub type Carry = BTreeMap<String, Vec<Tensor>>;

/// Named tensors from inside of a model.
type Probes = Vec<(String, Tensor)>;

/// Cells by function and number of states, as walks where they are such.
type Cells = HashMap<(usize, usize), Option<Arc<Cell>>>;

/// A slow net with its feature maps and update rules, ready to compute.
pub struct Model {
    composed: Composed,
    specs: Vec<ParameterSpec>,
    parameters: Vec<Parameter>,
    by_path: HashMap<String, usize>,
    precision: Precision,
    memory_limit: u64,
    executors: Arc<Executors>,
    cells: Mutex<Cells>,
}

impl Model {
    /// Composes the programs and draws initial parameters from `seed`.
    ///
    /// `memory_limit` bounds the bytes that one scan keeps for its backward pass.
    pub fn new(programs: &ModelPrograms, precision: Precision, seed: u64, memory_limit: u64) -> Result<Model> {
        let composed = Composed::new(programs)?;
        let specs = programs.parameters()?;
        let mut parameters = Vec::with_capacity(specs.len());
        for spec in &specs {
            let tensor = init::draw(source(&composed, spec.source), spec, precision, seed, 0)
                .with_context(|| format!("drawing the initial values of parameter `{}`", spec.path))?;
            let trainable = matches!(spec.training, Training::Trained { .. });
            let decay = matches!(spec.training, Training::Trained { decay: true });
            parameters.push(Parameter { name: spec.path.clone(), tensor: tensor.set_requires_grad(trainable), decay, trainable });
        }
        let by_path = specs.iter().enumerate().map(|(i, s)| (s.path.clone(), i)).collect();
        Ok(Model {
            composed,
            specs,
            parameters,
            by_path,
            precision,
            memory_limit,
            executors: Arc::default(),
            cells: Mutex::default(),
        })
    }

    /// The same model, its rules carried out by these executors; [`Model::new`] uses the reference.
    pub fn with_executors(self, executors: Arc<Executors>) -> Model {
        Model { executors, ..self }
    }

    /// Precision and device.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Number of trained elements.
    pub fn trained_elements(&self) -> usize {
        self.parameters.iter().filter(|p| p.trainable).map(|p| p.tensor.numel()).sum()
    }

    /// The cell of a function as a walk; none where it is carried out step by step, as the reference does always.
    fn cell(&self, function: usize, states: usize) -> Option<Arc<Cell>> {
        if self.executors.policy() == Policy::Only(Executor::Reference) {
            return None;
        }
        // Cells are put in whole, so a panic elsewhere leaves nothing half done.
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Cell::new(&self.composed, function, states).map(Arc::new);
        cells.entry((function, states)).or_insert_with(made).clone()
    }

    fn run(
        &self,
        inputs: &BTreeMap<String, Tensor>,
        pass: &Pass,
        carry: Option<Carry>,
        probing: bool,
    ) -> Result<(Output<Carry>, Probes)> {
        let net = &self.composed.net;
        let index = net.entry(entry::FORWARD)?;
        let f = &net.program.functions[index];
        let mut arguments = Vec::new();
        let mut batch = None;
        for a in &f.arguments {
            let t = inputs.get(&a.name).with_context(|| format!("the task gives no input `{}`", a.name))?;
            let lead = match &a.ty {
                fwp_sdk::program::Type::Tensor(ty) if ty.axis.is_some() => Lead::AXIS,
                _ => Lead::BATCH,
            };
            let size = t.size()[0];
            ensure!(batch.is_none_or(|b| b == size), "input `{}` has {size} samples, another has {}", a.name, batch.unwrap_or(0));
            batch = Some(size);
            arguments.push(Datum::Value(Value::new(t.shallow_clone(), lead)));
        }
        let batch = batch.context("the slow net reads no input")?;
        if pass.carry && pass.resets.as_ref().is_some_and(|r| r.len() as i64 != batch) {
            bail!("{} rows say whether they start afresh, the batch has {batch}", pass.resets.as_ref().map_or(0, Vec::len));
        }
        let around = net::InNet::new(self, pass, batch, carry, inputs.get("reset"), probing)?;
        let results = evaluate::function(&around, net, index, "", 0, &arguments)?;
        let (leaving, probes) = around.finish();
        let mut values = BTreeMap::new();
        for (o, datum) in f.outputs.iter().zip(results) {
            let v = datum.value()?;
            // An output that does not depend on the inputs still has the batch's sizes.
            let full = if v.lead.batch {
                v.tensor.shallow_clone()
            } else {
                let shape: Vec<i64> = std::iter::once(batch).chain(v.shape()).collect();
                expanded(v.aligned(Lead::BATCH, v.rank())?, &shape)?
            };
            values.insert(o.name.clone(), full);
        }
        Ok((Output { values, carry: pass.carry.then_some(leaving) }, probes))
    }
}

fn source(composed: &Composed, source: Source) -> &Prepared {
    match source {
        Source::Net => &composed.net,
        Source::Map(i) => &composed.slots[i].map,
        Source::Rule(i) => &composed.slots[i].rule,
    }
}

impl TrainModel for Model {
    type Carry = Carry;

    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }
    fn device(&self) -> Device {
        self.precision.device
    }
    fn kind(&self) -> Kind {
        self.precision.kind
    }
    fn forward(&self, inputs: &BTreeMap<String, Tensor>, pass: &Pass, carry: Option<Carry>) -> Result<Output<Carry>> {
        Ok(self.run(inputs, pass, carry, false)?.0)
    }
    fn probes(&self, inputs: &BTreeMap<String, Tensor>) -> Result<Vec<(String, Tensor)>> {
        let pass = Pass { train: false, step: 0, seed: 0, micro: 0, carry: false, resets: None };
        Ok(tch::no_grad(|| self.run(inputs, &pass, None, true))?.1)
    }
    fn save_carry(&self, carry: &Carry) -> Vec<(String, Tensor)> {
        let named = |(key, list): (&String, &Vec<Tensor>)| -> Vec<(String, Tensor)> {
            list.iter().enumerate().map(|(i, t)| (format!("{key}/{i}"), t.shallow_clone())).collect()
        };
        carry.iter().flat_map(named).collect()
    }
    fn load_carry(&self, tensors: BTreeMap<String, Tensor>) -> Result<Carry> {
        let mut found: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
        for (name, tensor) in tensors {
            let (key, index) = name.rsplit_once('/').with_context(|| format!("`{name}` is not the name of a carried state"))?;
            let index = index.parse().with_context(|| format!("`{name}` is not the name of a carried state"))?;
            found.entry(key.to_string()).or_default().insert(index, tensor);
        }
        Ok(found.into_iter().map(|(key, list)| (key, list.into_values().collect())).collect())
    }
}
