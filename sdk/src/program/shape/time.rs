//! Operators along a sequence axis.

use crate::program::{DType, Op, TensorType};

use super::operands::Operands;
use super::{Result, attribute, limits};

pub(super) fn along_axis(op: &Op, args: &Operands<'_>) -> Result<TensorType> {
    let with_axis = |i: usize| -> Result<&TensorType> {
        let t = args.tensor(i)?;
        match &t.axis {
            Some(_) => Ok(t),
            None => Err(format!("{t} has no sequence axis")),
        }
    };
    Ok(match op {
        Op::Position => {
            args.count(1)?;
            TensorType { dtype: DType::Int, axis: with_axis(0)?.axis.clone(), shape: vec![] }
        }
        Op::TimeCumsum | Op::Shift { .. } => {
            if let Op::Shift { steps } = op
                && *steps > limits::MAX_ELEMENTS
            {
                return Err(format!("a delay of {steps} steps is too long"));
            }
            args.one(DType::Float)?;
            with_axis(0)?.clone()
        }
        Op::Last => {
            args.count(1)?;
            TensorType { axis: None, ..with_axis(0)?.clone() }
        }
        Op::MeanOver => {
            args.one(DType::Float)?;
            TensorType { axis: None, ..with_axis(0)?.clone() }
        }
        Op::Along => {
            args.count(2)?;
            let (x, like) = (args.tensor(0)?, with_axis(1)?);
            if x.axis.is_some() {
                return Err(format!("{x} has a sequence axis already"));
            }
            TensorType { axis: like.axis.clone(), ..x.clone() }
        }
        Op::CausalConv => {
            args.count(2)?;
            let (x, kernel) = (with_axis(0)?, args.float(1)?);
            if x.dtype != DType::Float
                || x.shape.len() != 1
                || kernel.shape.len() != 2
                || kernel.shape[0] != x.shape[0]
                || kernel.axis.is_some()
            {
                return Err(format!("expected [c] along an axis and a kernel [c, width], got {x} and {kernel}"));
            }
            x.clone()
        }
        Op::Attention { scale, causal, .. } => {
            if args.types.len() != 4 {
                args.count(3)?;
            }
            attribute("scale", *scale, f64::MIN)?;
            let (q, k, v) = (with_axis(0)?, with_axis(1)?, with_axis(2)?);
            let fits = match (&q.shape[..], &k.shape[..], &v.shape[..]) {
                ([h, d], [g, e], [f, _]) => d == e && g == f && *g > 0 && h % g == 0,
                _ => false,
            };
            if !fits || ![q, k, v].iter().all(|t| t.dtype == DType::Float) || k.axis != v.axis || (*causal && q.axis != k.axis) {
                return Err(format!(
                    "expected queries [h, d], keys [g, d] and values [g, e] with g a divisor of h, got {q}, {k} and {v}"
                ));
            }
            if args.types.len() == 4 {
                let part = with_axis(3)?;
                if part.dtype != DType::Int || !part.shape.is_empty() || [&q.axis, &k.axis].iter().any(|a| **a != part.axis) {
                    return Err(format!("expected the number of each step's part, an integer along the one axis, got {part}"));
                }
            }
            TensorType { dtype: DType::Float, axis: q.axis.clone(), shape: vec![q.shape[0], v.shape[1]] }
        }
        _ => unreachable!("operators along an axis"),
    })
}
