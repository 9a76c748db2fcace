//! Operators that work element by element.

use crate::program::{DType, Op, TensorType};

use super::operands::{Operands, combine};
use super::{Result, attribute};

pub(super) fn elementwise(op: &Op, args: &Operands<'_>) -> Result<TensorType> {
    use Op::*;
    match op {
        Not => args.one(DType::Mask).cloned(),
        TrailingZeros => args.one(DType::Int).cloned(),
        ToFloat => {
            args.count(1)?;
            Ok(TensorType { dtype: DType::Float, ..args.tensor(0)?.clone() })
        }
        Dropout { p } => {
            attribute("probability", *p, 0.0)?;
            if *p >= 1.0 {
                return Err(format!("a dropout probability is in [0, 1), not {p}"));
            }
            args.one(DType::Float).cloned()
        }
        Add | Sub | Mul | Max | Min | Rem => {
            args.count(2)?;
            let t = args.same(&[0, 1])?;
            if t.dtype == DType::Mask {
                return Err("a mask is not a number; use to_float".into());
            }
            Ok(t)
        }
        Div | Pow => args.all(2, DType::Float),
        DivOr => args.all(3, DType::Float),
        Less | LessEqual | Equal => {
            args.count(2)?;
            Ok(TensorType { dtype: DType::Mask, ..args.same(&[0, 1])? })
        }
        And | Or => args.all(2, DType::Mask),
        BitAnd | BitOr | BitXor | ShiftLeft | ShiftRight => args.all(2, DType::Int),
        Select => {
            args.count(3)?;
            let mask = args.tensor(0)?;
            if mask.dtype != DType::Mask {
                return Err(format!("expected a mask as the first operand, got {mask}"));
            }
            let value = args.same(&[1, 2])?;
            let shaped = TensorType { dtype: value.dtype, ..mask.clone() };
            combine(&[&shaped, &value])
        }
        // Every other one takes and gives floats.
        _ => args.one(DType::Float).cloned(),
    }
}
