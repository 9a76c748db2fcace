//! Operators that work on whole axes of a value: sums, softmax, norms, features.

use crate::program::{DType, Op, TensorType};

use super::operands::{Operands, join_axes};
use super::{Result, attribute};

pub(super) fn reduce(op: &Op, args: &Operands<'_>) -> Result<TensorType> {
    Ok(match op {
        Op::Cumsum { axis } | Op::Softmax { axis } | Op::LogSoftmax { axis } => {
            args.one(DType::Float)?;
            args.with_axis(*axis)?
        }
        Op::LogSumExp { axis } => {
            args.one(DType::Float)?;
            let mut t = args.with_axis(*axis)?;
            t.shape.remove(*axis);
            t
        }
        Op::Sum { axes } | Op::Mean { axes } | Op::ReduceMax { axes } | Op::ReduceMin { axes } => {
            let mut t = args.one(DType::Float)?.clone();
            let mut sorted = axes.clone();
            sorted.sort_unstable();
            sorted.dedup();
            if sorted.len() != axes.len() || sorted.last().is_some_and(|a| *a >= t.shape.len()) {
                return Err(format!("expected different axes of {t}, got {:?}", &axes[..axes.len().min(8)]));
            }
            for a in sorted.iter().rev() {
                t.shape.remove(*a);
            }
            t
        }
        Op::RmsNorm { eps } | Op::LayerNorm { eps } | Op::L2Normalise { eps } | Op::SumNormalise { eps } => {
            attribute("epsilon", *eps, 0.0)?;
            let t = args.one(DType::Float)?;
            if t.shape.is_empty() {
                return Err("a scalar has no last axis to normalise".into());
            }
            t.clone()
        }
        Op::Rotary { base, .. } => {
            attribute("base", *base, f64::MIN_POSITIVE)?;
            args.count(2)?;
            let (x, position) = (args.float(0)?, args.tensor(1)?);
            if x.shape.last().is_none_or(|d| d % 2 == 1) || position.dtype != DType::Int || !position.shape.is_empty() {
                return Err(format!("expected [.., d] with even d and an integer position, got {x} and {position}"));
            }
            TensorType { axis: join_axes(&[x, position])?, ..x.clone() }
        }
        Op::Phi { size, .. } => {
            let mut t = args.one(DType::Float)?.clone();
            *t.shape.last_mut().ok_or("a scalar has no features")? = *size;
            t
        }
        _ => unreachable!("operators on whole axes"),
    })
}
