//! Recurrent cells of a slow net as walks: what does not depend on the state is computed for all steps at once, and the rest may be one kernel.
//!
//! A cell that reads and writes nothing but tensors is a step like a rule's: its carried operands are states, its other operands the step's inputs.
//! Cells that hold fast weights, look along the sequence or draw random numbers are carried out step by step instead.

use std::sync::Arc;

use anyhow::{Context, Result};
use fwp_sdk::program::shape;
use fwp_sdk::program::{DType, Function, Node, Op, Output, Program, State, StateInit, Type};
use tch::{Kind, Tensor};

use crate::exec::choose::Executors;
use crate::exec::evaluate::{Table, is_special};
use crate::exec::plan::{StepPlan, WalkState};
use crate::exec::prepared::{Prepared, Slot};
use crate::exec::scan::{FastWeights, Inputs, Masks};
use crate::exec::value::{Lead, Memory, Precision, Value};

/// A cell as a walk.
pub struct Cell {
    slot: Arc<Slot>,
    states: usize,
}

/// One call of a cell.
pub struct Call<'a> {
    /// Path prefix of the cell's parameters.
    pub prefix: &'a str,
    /// Parameters by path.
    pub parameters: Table,
    /// States at the start and after a reset, `[batch, ...]`.
    pub initial: Vec<Tensor>,
    /// States before the first step, `[batch, ...]`.
    pub current: Vec<Tensor>,
    /// The step's inputs, `[batch, time, ...]`.
    pub sequences: Vec<Tensor>,
    /// Where new sequences start, `[batch, time]`.
    pub reset: Option<Tensor>,
    /// Precision and device.
    pub precision: Precision,
    /// Bytes that the walk may keep.
    pub memory_limit: u64,
    /// What carries it out.
    pub executors: Arc<Executors>,
}

impl Cell {
    /// The cell of function `index`, whose first `states` arguments are carried; none where it is no such walk.
    pub fn new(net: &Prepared, index: usize, states: usize) -> Option<Cell> {
        let program = &net.program;
        let from = &program.functions[index];
        let plain = reachable(program, index).iter().all(|f| program.functions[*f].nodes.iter().all(|n| serves(&n.op)));
        let floats = from.arguments[..states].iter().all(|a| matches!(&a.ty, Type::Tensor(t) if t.dtype == DType::Float));
        let tensors = from.arguments.iter().all(|a| matches!(&a.ty, Type::Tensor(_)));
        let results = net.types.functions[index].results.iter();
        if !plain
            || !floats
            || !tensors
            || states == 0
            || states == from.arguments.len()
            || !results.clone().all(|t| matches!(t, Type::Tensor(_)))
        {
            return None;
        }
        let walk = (0..states).map(|i| {
            let Type::Tensor(t) = &from.arguments[i].ty else { return None };
            let init = StateInit::Parameter(initial_name(i));
            Some(WalkState {
                state: State { name: from.arguments[i].name.clone(), shape: t.shape.clone(), init, held: 1 },
                masked: true,
            })
        });
        let plan = StepPlan::new(program, step(from, states), walk.collect::<Option<_>>()?).ok()?;
        let rule = Prepared::typed(program.clone(), shape::types(program).ok()?);
        Some(Cell { slot: Arc::new(Slot::of_cell(rule, plan)), states })
    }

    /// Walks along the sequences: final states `[batch, ...]`, and outputs `[batch, time, ...]`.
    ///
    /// # Errors
    /// What the executor meets.
    pub fn run(&self, call: Call<'_>) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let mut parameters = call.parameters;
        for (i, t) in call.initial.iter().enumerate() {
            parameters.0.insert(format!("{}{}", call.prefix, initial_name(i)), Value::new(t.shallow_clone(), Lead::BATCH));
        }
        let batch = call.initial.first().context("internal: a cell without states")?.size()[0];
        let weights = FastWeights {
            slot: self.slot.clone(),
            index: 0,
            parameters,
            prefix: call.prefix.to_string(),
            precision: call.precision,
            memory_limit: call.memory_limit,
            executors: call.executors,
        };
        let index = Tensor::f_zeros([batch], (Kind::Int64, call.precision.device))?;
        let memory = Memory { slot: 0, states: call.current, index };
        let inputs = call.sequences.iter().map(|t| Ok(Value::new(t.f_transpose(0, 1)?, Lead::STEPS)));
        let masks = Masks { reset: call.reset.map(|r| r.f_transpose(0, 1)).transpose()?, write: None };
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let (outputs, memory) =
            weights.executors.clone().run(&weights, &self.slot.step, Inputs::Ready(&inputs), memory, &masks)?;
        let outputs = outputs.iter().map(|v| Ok(v.tensor.f_transpose(0, 1)?)).collect::<Result<_>>()?;
        debug_assert_eq!(memory.states.len(), self.states);
        Ok((memory.states, outputs))
    }
}

/// The name under which a state's initial value is among the parameters. No parameter has a space in its name.
fn initial_name(state: usize) -> String {
    format!("initial {state}")
}

/// The cell with its carried arguments as states.
fn step(from: &Function, states: usize) -> Function {
    let node = |n: &Node| {
        let op = match &n.op {
            Op::Argument { index } if (*index as usize) < states => Op::State { index: *index },
            Op::Argument { index } => Op::Argument { index: index - states as u32 },
            op => op.clone(),
        };
        Node { op, ..n.clone() }
    };
    let named = |(i, o): (usize, &Output)| match i < states {
        true => Output { name: format!("state.{}", from.arguments[i].name), node: o.node },
        // A step output of any name is no state's.
        false => Output { name: format!("output.{}", o.name), node: o.node },
    };
    Function {
        arguments: from.arguments[states..].to_vec(),
        nodes: from.nodes.iter().map(node).collect(),
        outputs: from.outputs.iter().enumerate().map(named).collect(),
        ..from.clone()
    }
}

/// The function and all that it calls.
fn reachable(program: &Program, index: usize) -> Vec<usize> {
    let mut found = vec![index];
    let mut next = 0;
    while next < found.len() {
        for node in &program.functions[found[next]].nodes {
            if let Op::Call { function, .. } | Op::Loop { function, .. } | Op::Blocks { function, .. } = &node.op
                && !found.contains(&(*function as usize))
            {
                found.push(*function as usize);
            }
        }
        next += 1;
    }
    found
}

/// Whether an operator means the same in a walk as in a cell that is carried out step by step.
fn serves(op: &Op) -> bool {
    !is_special(op) && !matches!(op, Op::LayerIndex | Op::Gradient)
}
