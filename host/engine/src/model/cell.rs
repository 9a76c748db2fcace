//! Recurrent cells of a slow net as walks: what does not depend on the state is computed for all steps at once, and the rest may be one kernel.
//!
//! A cell is a step like a rule's: its carried operands are states, its other operands the step's inputs.
//! Fast weights that it holds are written out in it ([`super::unfold`]).
//! Cells that look along the sequence or draw random numbers are carried out step by step instead.

use std::sync::Arc;

use anyhow::{Context, Result};
use fwp_sdk::program::shape;
use fwp_sdk::program::{DType, Function, Node, Op, Output, Program, State, StateInit, Type};
use tch::{Kind, Tensor};

use super::unfold::{Carried, Unfolded, unfold};
use crate::exec::choose::Executors;
use crate::exec::evaluate::{Table, is_special};
use crate::exec::plan::{StepPlan, WalkState};
use crate::exec::prepared::{Composed, Prepared, Slot};
use crate::exec::scan::{FastWeights, Inputs, Masks, step_indices};
use crate::exec::value::{Datum, Lead, Memory, Precision, Value};

/// A cell as a walk.
pub struct Cell {
    slot: Arc<Slot>,
    carried: Vec<Carried>,
}

/// One call of a cell.
pub struct Call<'a> {
    /// Path prefix of the cell's parameters.
    pub prefix: &'a str,
    /// Parameters by path.
    pub parameters: Table,
    /// States at the start and after a reset, `[batch, ...]`, and memories.
    pub initial: &'a [Datum],
    /// States before the first step, `[batch, ...]`, and memories.
    pub current: &'a [Datum],
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
    pub fn new(composed: &Composed, index: usize, states: usize) -> Option<Cell> {
        let net = &composed.net;
        let memories = net.program.functions[index].arguments.iter().any(|a| matches!(&a.ty, Type::Memory(_)));
        let (program, index, carried) = if memories {
            let Unfolded { program, carried } = unfold(composed, index, states)?;
            let last = program.functions.len() - 1;
            (program, last, carried)
        } else {
            (net.program.clone(), index, (0..states).map(|_| Carried::Tensor).collect())
        };
        let states = carried.iter().map(Carried::tensors).sum();
        let from = &program.functions[index];
        let types = shape::types(&program).ok()?;
        let plain = reachable(&program, index).iter().all(|f| program.functions[*f].nodes.iter().all(|n| serves(&n.op)));
        let floats = from.arguments[..states].iter().all(|a| matches!(&a.ty, Type::Tensor(t) if t.dtype == DType::Float));
        let tensors = from.arguments.iter().all(|a| matches!(&a.ty, Type::Tensor(_)));
        let results = types.functions[index].results.iter();
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
        let plan = StepPlan::new(&program, step(from, states), walk.collect::<Option<_>>()?).ok()?;
        let rule = Prepared::typed(program, types);
        Some(Cell { slot: Arc::new(Slot::of_cell(rule, plan)), carried })
    }

    /// Whether it holds fast weights.
    pub fn has_memories(&self) -> bool {
        self.carried.iter().any(|c| matches!(c, Carried::Memory { .. }))
    }

    /// Walks along the sequences: what is carried out of the last step, and outputs `[batch, time, ...]`.
    ///
    /// # Errors
    /// What the executor meets.
    pub fn run(&self, call: Call<'_>) -> Result<(Vec<Datum>, Vec<Tensor>)> {
        let size = call.sequences.first().context("internal: a cell without inputs")?.size();
        let (batch, length) = (size[0], size[1]);
        let mut parameters = call.parameters;
        for (i, t) in self.tensors(call.initial, batch)?.into_iter().enumerate() {
            parameters.0.insert(format!("{}{}", call.prefix, initial_name(i)), Value::new(t, Lead::BATCH));
        }
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
        let memory = Memory { slot: 0, states: self.tensors(call.current, batch)?, index };
        let inputs = call.sequences.iter().map(|t| Ok(Value::new(t.f_transpose(0, 1)?, Lead::STEPS)));
        let masks = Masks { reset: call.reset.map(|r| r.f_transpose(0, 1)).transpose()?, ..Masks::default() };
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let (outputs, memory) =
            weights.executors.clone().run(&weights, &self.slot.step, Inputs::Ready(&inputs), memory, &masks)?;
        let outputs = outputs.iter().map(|v| Ok(v.tensor.f_transpose(0, 1)?)).collect::<Result<_>>()?;
        Ok((self.data(memory.states, [call.initial, call.current], length, masks.reset.as_ref())?, outputs))
    }

    /// What is carried, as the walk's states `[batch, ...]`.
    fn tensors(&self, data: &[Datum], batch: i64) -> Result<Vec<Tensor>> {
        let mut out = Vec::new();
        for (datum, carried) in data.iter().zip(&self.carried) {
            match (datum, carried) {
                (Datum::Memory(memory), Carried::Memory { heads, .. }) => {
                    let by_head = memory.states.iter().map(|t| {
                        let shape: Vec<i64> = [batch, *heads as i64].iter().chain(&t.size()[1..]).copied().collect();
                        Ok(t.f_reshape(shape)?)
                    });
                    let by_head = by_head.collect::<Result<Vec<Tensor>>>()?;
                    for head in 0..*heads as i64 {
                        for t in &by_head {
                            out.push(t.f_select(1, head)?);
                        }
                    }
                }
                (datum, _) => out.push(datum.value()?.tensor.shallow_clone()),
            }
        }
        Ok(out)
    }

    /// The walk's states after `length` steps as what is carried.
    fn data(
        &self,
        states: Vec<Tensor>,
        [initial, current]: [&[Datum]; 2],
        length: i64,
        reset: Option<&Tensor>,
    ) -> Result<Vec<Datum>> {
        let mut rest = states.into_iter();
        let mut out = Vec::new();
        for (i, carried) in self.carried.iter().enumerate() {
            let own: Vec<Tensor> = rest.by_ref().take(carried.tensors()).collect();
            let Carried::Memory { slot, heads, states, writes } = carried else {
                let tensor = own.into_iter().next().context("internal: too few states")?;
                out.push(Datum::Value(Value::new(tensor, Lead::BATCH)));
                continue;
            };
            let whole = |state: usize| -> Result<Tensor> {
                let heads: Vec<&Tensor> = own.iter().skip(state).step_by(*states).collect();
                let all = Tensor::f_stack(&heads, 1)?;
                let shape: Vec<i64> = std::iter::once(-1).chain(all.size()[2..].iter().copied()).collect();
                Ok(all.f_reshape(shape)?)
            };
            let (Datum::Memory(first), Datum::Memory(last)) = (&initial[i], &current[i]) else {
                anyhow::bail!("internal: a memory became a tensor");
            };
            let index = counted(&first.index, &last.index, *writes, length, reset, *heads as i64)?;
            let states = (0..*states).map(whole).collect::<Result<_>>()?;
            out.push(Datum::Memory(Memory { slot: *slot, states, index }));
        }
        Ok(out)
    }
}

/// How many writes a memory has seen after `length` steps of `writes` each: from `current`, or from `initial` since the last reset.
fn counted(initial: &Tensor, current: &Tensor, writes: i64, length: i64, reset: Option<&Tensor>, heads: i64) -> Result<Tensor> {
    let went_on = current.f_add_scalar(writes * length)?;
    let Some(reset) = reset else { return Ok(went_on) };
    let reset = reset.f_repeat_interleave_self_int(heads, 1, None)?;
    let masks = Masks { reset: Some(reset.shallow_clone()), ..Masks::default() };
    let (_, since) = step_indices(&current.f_zeros_like()?, &masks, length, true)?;
    let anew = since.f_mul_scalar(writes)?.f_add(initial)?;
    Ok(anew.f_where_self(&reset.f_any_dim(0, false)?, &went_on)?)
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
