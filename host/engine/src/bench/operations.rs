//! Floating point operations of a step, as it is written.
//!
//! A matrix times a vector, a product of matrices and an inner product count two for every product that they sum;
//! every other operator counts one for every element of its result, and what only moves or names values counts nothing.
//! It is a yardstick that is the same for every executor, not what one of them does: an executor may need fewer or more.

use anyhow::{Context, Result};
use fwp_sdk::program::shape::Types;
use fwp_sdk::program::{Node, Op, Program, Type, entry};

use crate::trial::Subject;

/// Operations of one step of one head, forward.
///
/// # Errors
/// A rule without a step.
pub fn of_step(subject: &Subject) -> Result<f64> {
    let rule = &subject.slot.rule;
    of_function(&rule.program, &rule.types, rule.entry(entry::STEP)?)
}

fn of_function(program: &Program, types: &Types, index: usize) -> Result<f64> {
    let function = program.functions.get(index).context("internal: a function that is not there")?;
    let own = types.nodes.get(index).context("internal: a function without types")?;
    let mut sum = 0.0;
    for (i, node) in function.nodes.iter().enumerate() {
        sum += match &node.op {
            Op::Call { function, .. } => of_function(program, types, *function as usize)?,
            Op::Loop { function, count, .. } => *count as f64 * of_function(program, types, *function as usize)?,
            _ => of_node(node, i, own),
        };
    }
    Ok(sum)
}

fn of_node(node: &Node, i: usize, types: &[Type]) -> f64 {
    let elements = |n: usize| if let Type::Tensor(t) = &types[n] { t.elements() as f64 } else { 0.0 };
    let operand = |k: usize| node.operands.get(k).map_or(0, |o| *o as usize);
    match &node.op {
        Op::Argument { .. } | Op::Parameter { .. } | Op::State { .. } | Op::Element { .. } => 0.0,
        Op::StepIndex | Op::LayerIndex | Op::HeadIndex | Op::Constant { .. } | Op::Integer { .. } => 0.0,
        Op::Table { .. } | Op::Full { .. } | Op::Eye { .. } | Op::Arange { .. } => 0.0,
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Concat { .. } | Op::Expand { .. } => 0.0,
        Op::Roll { .. } | Op::Flip { .. } | Op::StopGradient | Op::Gather | Op::OneHot { .. } | Op::ToFloat => 0.0,
        Op::MatVec | Op::MatVecT | Op::Dot => 2.0 * elements(operand(0)),
        Op::MatMul => match &types[operand(1)] {
            Type::Tensor(t) => 2.0 * elements(operand(0)) * t.shape.last().copied().unwrap_or(1) as f64,
            _ => 0.0,
        },
        // Every iteration multiplies by the matrix once.
        Op::SolveSpd { iterations, .. } => 2.0 * *iterations as f64 * elements(operand(0)),
        Op::Sum { .. } | Op::Mean { .. } | Op::ReduceMax { .. } | Op::ReduceMin { .. } | Op::LogSumExp { .. } => {
            elements(operand(0))
        }
        _ => elements(i),
    }
}
