//! Operators that take nothing, and the parts of a tuple.

use crate::program::{Op, TensorType, Type};

use super::operands::Operands;
use super::{Context, Result, limits};

pub(super) fn values(op: &Op, args: &Operands<'_>, cx: &Context<'_>) -> Result<Type> {
    if let Op::Element { index } = op {
        args.count(1)?;
        let Type::Tuple(parts) = args.types[0] else {
            return Err(format!("expected several values, got {}", args.types[0]));
        };
        return parts.get(*index as usize).cloned().ok_or_else(|| format!("there is no part {index} of {}", args.types[0]));
    }
    args.count(0)?;
    Ok(match op {
        Op::StepIndex | Op::LayerIndex | Op::HeadIndex => TensorType::int(&[]),
        Op::Argument { index } => {
            let a = cx.arguments.get(*index as usize).ok_or("there is no such argument")?;
            return Ok(a.ty.clone());
        }
        Op::Parameter { index } => {
            TensorType::float(&cx.parameters.get(*index as usize).ok_or("there is no such parameter")?.shape)
        }
        Op::State { index } => TensorType::float(&cx.states.get(*index as usize).ok_or("there is no such state")?.shape),
        Op::Constant { .. } => TensorType::float(&[]),
        Op::Integer { .. } => TensorType::int(&[]),
        Op::Table { shape, values } => {
            let needed = limits::elements(shape)?;
            if needed != values.len() {
                return Err(format!("a table of shape {shape:?} needs {needed} values, got {}", values.len()));
            }
            TensorType::float(shape)
        }
        Op::Full { shape, .. } | Op::RandomNormal { shape } | Op::RandomUniform { shape } => TensorType::float(shape),
        Op::Eye { n } => TensorType::float(&[*n, *n]),
        Op::RandomOrthogonal { rows, n } => TensorType::float(&[*rows, *n]),
        Op::Arange { n } => TensorType::int(&[*n]),
        _ => unreachable!("operators that take nothing"),
    }
    .into())
}
