//! Programs made ready to run: gradients expanded, types known, steps scheduled.

use std::sync::Arc;

use anyhow::{Context, Result};
use fwp_program::{ModelPrograms, Separation, SlotPrograms, When};
use fwp_sdk::program::shape::{self, Types};
use fwp_sdk::program::{Function, Op, Output, Program, Type, entry};

/// A program with the types of its nodes.
pub struct Prepared {
    /// The program, without gradient nodes.
    pub program: Program,
    /// Types of all nodes.
    pub types: Types,
}

impl Prepared {
    /// Expands gradients and computes types.
    pub fn new(program: &Program) -> Result<Prepared> {
        let program = fwp_program::expand_gradients(program)?;
        let types = shape::types(&program).map_err(anyhow::Error::msg)?;
        Ok(Prepared { program, types })
    }

    /// The function entered under this name.
    pub fn entry(&self, name: &str) -> Result<usize> {
        let found = self.program.entries.iter().find(|(n, _)| n == name);
        let (_, index) = found.with_context(|| format!("{} `{}` has no entry `{name}`", self.program.kind, self.program.name))?;
        Ok(*index as usize)
    }
}

/// A function of a rule, cut into what is computed once, for all steps, in the step, and afterwards.
pub struct StepPlan {
    /// The function.
    pub function: Function,
    /// When each node is computed.
    pub when: Vec<When>,
    /// For every node: whether the steps' values must be kept for outputs or for nodes computed afterwards.
    pub kept: Vec<bool>,
    /// Elements that one step computes for one head, for the memory estimate.
    pub step_elements: usize,
}

impl StepPlan {
    fn new(function: &Function, types: &[Type]) -> StepPlan {
        let mut when = fwp_program::schedule(function, types);
        for (i, node) in function.nodes.iter().enumerate() {
            // The parts of a tuple are taken where the tuple is made: only tensors cross from one stage to another.
            if let (Op::Element { .. }, [tuple]) = (&node.op, &node.operands[..]) {
                when[i] = when[*tuple as usize];
            }
        }
        let mut kept = vec![false; function.nodes.len()];
        for o in function.outputs.iter().filter(|o| !o.name.starts_with("state.")) {
            kept[o.node as usize] = true;
        }
        for (node, w) in function.nodes.iter().zip(&when) {
            if *w == When::After {
                node.operands.iter().for_each(|o| kept[*o as usize] = true);
            }
        }
        let step_elements = types
            .iter()
            .zip(&when)
            .filter(|(_, w)| **w == When::Step)
            .map(|(t, _)| match t {
                Type::Tensor(t) => t.elements(),
                _ => 0,
            })
            .sum();
        StepPlan { function: function.clone(), when, kept, step_elements }
    }
}

/// Write and read of a rule, apart.
pub struct ReadWrite {
    /// The two functions and the inputs of either.
    pub apart: Separation,
    /// The write, scheduled.
    pub write: StepPlan,
}

/// A slot: feature map and update rule.
pub struct Slot {
    /// Name in the recipe.
    pub name: String,
    /// The feature map.
    pub map: Prepared,
    /// The update rule.
    pub rule: Prepared,
    /// Features of a key after the map.
    pub key: usize,
    /// The whole step.
    pub step: StepPlan,
    /// The signals as the rule uses them, from the inputs that they need; none for a rule without signals.
    pub effective: Option<Function>,
    /// Write and read apart, or why they cannot be.
    pub apart: Result<ReadWrite, String>,
}

impl Slot {
    /// Prepares a slot.
    pub fn new(programs: &SlotPrograms) -> Result<Slot> {
        // The map inside of a step becomes part of the step, so that gradients pass through it.
        let rule = Prepared::new(&fwp_program::with_feature_map(&programs.rule, &programs.map)?)?;
        let map = Prepared::new(&programs.map)?;
        let index = rule.entry(entry::STEP)?;
        let step = StepPlan::new(&rule.program.functions[index], &rule.types.nodes[index]);
        let apart = separate(&rule);
        let map_index = map.entry(entry::KEY)?;
        let key = match &map.types.functions[map_index].results[..] {
            [Type::Tensor(t)] => t.elements(),
            _ => anyhow::bail!("feature map `{}` does not give one vector", map.program.name),
        };
        let effective = effective(&rule.program);
        Ok(Slot { name: programs.name.clone(), map, rule, key, step, effective, apart })
    }

    /// Write and read apart, or an error that says why this rule has no such form.
    pub fn apart(&self) -> Result<&ReadWrite> {
        self.apart.as_ref().map_err(|why| {
            anyhow::anyhow!("the slow net writes and reads at different places, and update rule `{}` cannot: {why}", self.rule.program.name)
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
    let types = types_of(&rule.program, &apart.write)?;
    Ok(ReadWrite { write: StepPlan::new(&apart.write, &types), apart })
}

/// Types of a function that was derived from a program.
fn types_of(program: &Program, function: &Function) -> Result<Vec<Type>, String> {
    let mut extended = program.clone();
    extended.functions.push(function.clone());
    let mut types = shape::types(&extended)?;
    Ok(types.nodes.pop().expect("a function was pushed"))
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
