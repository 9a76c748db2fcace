//! Operators that arrange elements and compute nothing.

use crate::program::{DType, Op, TensorType};

use super::operands::{Operands, check_axis, join_axes};
use super::{Result, limits};

pub(super) fn layout(op: &Op, args: &Operands<'_>) -> Result<TensorType> {
    Ok(match op {
        Op::Reshape { shape } => {
            args.count(1)?;
            let t = args.tensor(0)?;
            let (given, wanted) = (limits::elements(&t.shape)?, limits::elements(shape)?);
            if given != wanted {
                return Err(format!("{t} has {given} elements, the shape {shape:?} has {wanted}"));
            }
            TensorType { shape: shape.clone(), ..t.clone() }
        }
        Op::Transpose { order } => {
            args.count(1)?;
            let t = args.tensor(0)?;
            let mut sorted = order.clone();
            sorted.sort_unstable();
            if !sorted.iter().copied().eq(0..t.shape.len()) {
                return Err(format!(
                    "expected an order of the {} axes of {t}, got {:?}",
                    t.shape.len(),
                    &order[..order.len().min(8)]
                ));
            }
            TensorType { shape: order.iter().map(|i| t.shape[*i]).collect(), ..t.clone() }
        }
        Op::Slice { axis, start, length } => {
            let mut t = args.with_axis(*axis)?;
            if start.checked_add(*length).is_none_or(|end| end > t.shape[*axis]) || *length == 0 {
                return Err(format!("no {length} elements from {start} on axis {axis} of {t}"));
            }
            t.shape[*axis] = *length;
            t
        }
        Op::Concat { axis } => concat(*axis, args)?,
        Op::Expand { axis, size } => {
            args.count(1)?;
            let mut t = args.tensor(0)?.clone();
            if *axis > t.shape.len() || *size == 0 {
                return Err(format!("no place for an axis {axis} of size {size} in {t}"));
            }
            t.shape.insert(*axis, *size);
            t
        }
        Op::Roll { axis, shift } => {
            // An executor negates it and adds it to sizes.
            if shift.unsigned_abs() > limits::MAX_ELEMENTS as u64 {
                return Err(format!("a shift by {shift} is too large"));
            }
            args.with_axis(*axis)?
        }
        Op::Flip { axis } => args.with_axis(*axis)?,
        Op::OneHot { size } => {
            let mut t = args.one(DType::Int)?.clone();
            t.dtype = DType::Float;
            t.shape.push(*size);
            t
        }
        Op::Gather => {
            args.count(2)?;
            let (table, index) = (args.tensor(0)?, args.tensor(1)?);
            if index.dtype != DType::Int || table.shape.is_empty() {
                return Err(format!("expected a table and integers, got {table} and {index}"));
            }
            let shape = index.shape.iter().chain(&table.shape[1..]).copied().collect();
            TensorType { dtype: table.dtype, axis: join_axes(&[table, index])?, shape }
        }
        _ => unreachable!("operators that arrange elements"),
    })
}

fn concat(axis: usize, args: &Operands<'_>) -> Result<TensorType> {
    if args.types.is_empty() {
        return Err("nothing to concatenate".into());
    }
    let first = args.tensor(0)?;
    check_axis(first, axis)?;
    let mut size = 0usize;
    let mut parts = Vec::with_capacity(args.types.len());
    for i in 0..args.types.len() {
        let t = args.tensor(i)?;
        let fits = t.dtype == first.dtype
            && t.shape.len() == first.shape.len()
            && t.shape.iter().zip(&first.shape).enumerate().all(|(d, (a, b))| d == axis || a == b);
        if !fits {
            return Err(format!("{first} and {t} differ outside of axis {axis}"));
        }
        size = size.checked_add(t.shape[axis]).ok_or("the parts add up to too much")?;
        parts.push(t);
    }
    let mut t = TensorType { axis: join_axes(&parts)?, ..first.clone() };
    t.shape[axis] = size;
    Ok(t)
}
