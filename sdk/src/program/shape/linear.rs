//! Linear algebra on vectors and matrices.

use crate::program::{DType, Op, TensorType, Type};

use super::operands::{Operands, join_axes};
use super::{Result, attribute};

/// Most iterations of a solver in one step.
const MAX_ITERATIONS: usize = 100_000;

pub(super) fn linear_algebra(op: &Op, args: &Operands<'_>) -> Result<TensorType> {
    args.count(2)?;
    let (a, b) = (args.float(0)?, args.float(1)?);
    let mismatch = |wanted: &str| Err(format!("expected {wanted}, got {a} and {b}"));
    let shape = match op {
        Op::MatVec => match (&a.shape[..], &b.shape[..]) {
            ([m, n], [k]) if n == k => vec![*m],
            _ => return mismatch("a matrix [m, n] and a vector [n]"),
        },
        Op::MatVecT => match (&a.shape[..], &b.shape[..]) {
            ([m, n], [k]) if m == k => vec![*n],
            _ => return mismatch("a matrix [m, n] and a vector [m]"),
        },
        Op::MatMul => match (&a.shape[..], &b.shape[..]) {
            ([m, k], [l, n]) if k == l => vec![*m, *n],
            _ => return mismatch("matrices [m, k] and [k, n]"),
        },
        Op::Outer => match (&a.shape[..], &b.shape[..]) {
            ([m], [n]) => vec![*m, *n],
            _ => return mismatch("two vectors"),
        },
        Op::SolveSpd { iterations, tolerance } => {
            attribute("tolerance", *tolerance, 0.0)?;
            if !(1..=MAX_ITERATIONS).contains(iterations) {
                return Err(format!("the number of iterations is 1 to {MAX_ITERATIONS}, not {iterations}"));
            }
            match (&a.shape[..], &b.shape[..]) {
                ([m, n], [k]) if m == n && n == k => vec![*n],
                _ => return mismatch("a matrix [n, n] and a vector [n]"),
            }
        }
        Op::Dot if a.shape == b.shape => vec![],
        _ => return mismatch("two values of one shape"),
    };
    Ok(TensorType { dtype: DType::Float, axis: join_axes(&[a, b])?, shape })
}

pub(super) fn gradient(args: &Operands<'_>) -> Result<Type> {
    if args.types.len() < 2 {
        return Err("expected a scalar and what to differentiate with respect to".into());
    }
    let y = args.float(0)?;
    if !y.shape.is_empty() {
        return Err(format!("expected a scalar to differentiate, got {y}"));
    }
    let parts: Result<Vec<Type>> = (1..args.types.len()).map(|i| Ok(Type::Tensor(args.float(i)?.clone()))).collect();
    parts.map(Type::Tuple)
}
