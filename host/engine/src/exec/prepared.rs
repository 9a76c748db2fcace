//! Programs made ready to run: gradients expanded, types known, steps scheduled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result};
use fwp_program::{ModelPrograms, Separation, SlotPrograms};
use fwp_sdk::program::shape::{self, Types};
use fwp_sdk::program::{Function, Output, Program, ReadAt, RuleInput, Type, entry};

use super::back::Back;
use super::joint::Steps;
use super::plan::{StepPlan, declared, read_earlier};

/// A program with the types of its nodes.
pub struct Prepared {
    /// The program, without gradient nodes.
    pub program: Program,
    /// Types of all nodes.
    pub types: Types,
    /// What is done at each node of each function.
    pub steps: Vec<Steps>,
}

impl Prepared {
    /// Expands gradients and computes types.
    pub fn new(program: &Program) -> Result<Prepared> {
        let program = fwp_program::expand_gradients(program)?;
        let types = shape::types(&program).map_err(anyhow::Error::msg)?;
        Ok(Prepared::typed(program, types))
    }

    /// A program without gradient nodes whose types are known.
    pub fn typed(program: Program, types: Types) -> Prepared {
        let steps = program.functions.iter().zip(&types.nodes).map(|(f, types)| Steps::joint(f, types)).collect();
        Prepared { program, types, steps }
    }

    /// The function entered under this name.
    pub fn entry(&self, name: &str) -> Result<usize> {
        let found = self.program.entries.iter().find(|(n, _)| n == name);
        let (_, index) = found.with_context(|| format!("{} `{}` has no entry `{name}`", self.program.kind, self.program.name))?;
        Ok(*index as usize)
    }
}

/// Write and read of a rule, apart.
pub struct ReadWrite {
    /// The two functions and the inputs of either.
    pub apart: Separation,
    /// The write, scheduled.
    pub write: Arc<StepPlan>,
    /// The read along a sequence, scheduled; none where something asks for the index of a step, which a read does not have.
    pub read: Option<Arc<StepPlan>>,
}

/// A slot: feature map and update rule.
pub struct Slot {
    /// Name in the recipe.
    pub name: String,
    /// Path prefix of the parameters that the whole model shares.
    pub shared: String,
    /// The feature map.
    pub map: Prepared,
    /// The update rule.
    pub rule: Prepared,
    /// Features of a key after the map.
    pub key: usize,
    /// The whole step.
    pub step: Arc<StepPlan>,
    /// The signals as the rule uses them, from the inputs that they need; none for a rule without signals.
    pub effective: Option<Function>,
    /// Write and read apart, or why they cannot be.
    pub apart: Result<ReadWrite, String>,
    /// Steps that read an earlier state, made when they are first asked for.
    earlier: Mutex<HashMap<usize, Arc<StepPlan>>>,
    /// One query walked back through the writes, made when it is first asked for.
    back: OnceLock<Result<Arc<Back>, String>>,
}

impl Slot {
    /// Prepares a slot.
    pub fn new(programs: &SlotPrograms) -> Result<Slot> {
        // The map inside of a step becomes part of the step, so that gradients pass through it.
        let rule = Prepared::new(&fwp_program::with_feature_map(&programs.rule, &programs.map)?)?;
        let map = Prepared::new(&programs.map)?;
        let index = rule.entry(entry::STEP)?;
        let step = rule.program.functions[index].clone();
        let step = Arc::new(StepPlan::new(&rule.program, step, declared(&rule.program)).map_err(anyhow::Error::msg)?);
        let apart = separate(&rule);
        let map_index = map.entry(entry::KEY)?;
        let key = match &map.types.functions[map_index].results[..] {
            [Type::Tensor(t)] => t.elements(),
            _ => anyhow::bail!("feature map `{}` does not give one vector", map.program.name),
        };
        let effective = effective(&rule.program);
        let shared = format!("shared.{}.", programs.name);
        let (earlier, back) = (Mutex::default(), OnceLock::new());
        Ok(Slot { name: programs.name.clone(), shared, map, rule, key, step, effective, apart, earlier, back })
    }

    /// A recurrent cell of a slow net in the place of a rule: it has no feature map, and is only walked.
    pub fn of_cell(net: Prepared, step: StepPlan) -> Slot {
        Slot::walked(step.function.name.clone(), "shared.".into(), 0, net, step)
    }

    /// For kernels: one of this slot's plans that maps its inputs itself if it is given them `raw`, and computes within its steps
    /// what the reference computes for all of them at once.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn inside(&self, plan: &StepPlan, raw: bool, scale: Option<f64>) -> Result<Slot, String> {
        let say = |e: fwp_program::CheckError| e.to_string();
        let (program, function) = if raw {
            let trained = self.map.program.functions.iter().any(|f| !f.parameters.is_empty());
            if trained {
                return Err("the feature map has parameters".into());
            }
            let several = |i: &RuleInput| i.mapped() && i.full_shape().len() > 1;
            if self.rule.program.inputs.iter().any(several) {
                return Err("several keys a token".into());
            }
            fwp_program::with_mapped_inputs(&self.rule.program, &self.map.program, &plan.function, scale).map_err(say)?
        } else {
            (self.rule.program.clone(), plan.function.clone())
        };
        let step = StepPlan::sunk(&program, function, plan.states.clone())?;
        let types = shape::types(&program)?;
        Ok(Slot::walked(self.name.clone(), self.shared.clone(), self.key, Prepared::typed(program, types), step))
    }

    /// A slot that is only walked, by this plan.
    fn walked(name: String, shared: String, key: usize, rule: Prepared, step: StepPlan) -> Slot {
        let nothing = Program { functions: vec![], entries: vec![], slots: vec![], files: vec![], ..rule.program.clone() };
        Slot {
            name,
            shared,
            map: Prepared::typed(nothing, Types { functions: vec![], nodes: vec![] }),
            rule,
            key,
            step: Arc::new(step),
            effective: None,
            apart: Err("it is only walked".into()),
            earlier: Mutex::default(),
            back: OnceLock::new(),
        }
    }

    /// The whole step with outputs that read this state.
    pub fn plan(&self, read: ReadAt) -> Result<Arc<StepPlan>> {
        let chunk = match read {
            ReadAt::After => return Ok(self.step.clone()),
            ReadAt::Before => 1,
            ReadAt::ChunkStart(n) => n,
        };
        // Plans are put in whole, so a panic elsewhere leaves nothing half done.
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = earlier.get(&chunk) {
            return Ok(plan.clone());
        }
        let made = read_earlier(&self.rule.program, &self.step.function, &self.apart()?.apart, chunk);
        let plan = Arc::new(made.map_err(anyhow::Error::msg)?);
        earlier.insert(chunk, plan.clone());
        Ok(plan)
    }

    /// Whether this plan is the write by itself.
    pub fn writes_alone(&self, plan: &Arc<StepPlan>) -> bool {
        self.apart.as_ref().is_ok_and(|apart| Arc::ptr_eq(plan, &apart.write))
    }

    /// One query walked back through the writes.
    ///
    /// # Errors
    /// Why this rule has no such form, for people.
    pub fn back(&self) -> Result<&Arc<Back>, String> {
        let made = self.back.get_or_init(|| {
            let apart = self.apart.as_ref().map_err(Clone::clone)?;
            Back::new(&self.name, &self.map, &self.rule, apart).map(Arc::new)
        });
        made.as_ref().map_err(Clone::clone)
    }

    /// Write and read apart, or an error that says why this rule has no such form.
    pub fn apart(&self) -> Result<&ReadWrite> {
        self.apart.as_ref().map_err(|why| {
            anyhow::anyhow!(
                "the slow net writes and reads at different places, which update rule `{}` does not allow: {why}",
                self.rule.program.name
            )
        })
    }
}

/// The part of the step that computes signals as they are used.
fn effective(rule: &Program) -> Option<Function> {
    let mut f = rule.entry(entry::STEP)?.clone();
    let signals = fwp_program::effective_signals(rule);
    f.outputs = signals.into_iter().filter_map(|(name, node)| Some(Output { name, node: node.ok()? })).collect();
    if f.outputs.is_empty() {
        return None;
    }
    Some(fwp_program::pruned(&f))
}

fn separate(rule: &Prepared) -> Result<ReadWrite, String> {
    let apart = fwp_program::separate(&rule.program).map_err(|e| e.to_string())?;
    let write = StepPlan::new(&rule.program, apart.write.clone(), declared(&rule.program))?;
    let read = super::plan::read_along(&rule.program, &apart)?;
    let read = (!read.uses_index).then(|| Arc::new(read));
    Ok(ReadWrite { write: Arc::new(write), read, apart })
}

/// All programs of a model, ready to run.
pub struct Composed {
    /// The slow net.
    pub net: Prepared,
    /// Its slots.
    pub slots: Vec<Arc<Slot>>,
}

impl Composed {
    /// Prepares a model's programs.
    pub fn new(programs: &ModelPrograms) -> Result<Composed> {
        let slots: Result<Vec<Arc<Slot>>> = programs.slots.iter().map(|s| Ok(Arc::new(Slot::new(s)?))).collect();
        Ok(Composed { net: Prepared::new(&programs.net)?, slots: slots? })
    }
}
