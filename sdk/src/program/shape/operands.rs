//! Access to operands with messages that say what was expected and what was there.

use crate::program::{DType, Op, TensorType, Type};

use super::Result;

pub(super) struct Operands<'a> {
    pub op: &'a Op,
    pub types: &'a [&'a Type],
}

impl<'a> Operands<'a> {
    pub fn count(&self, n: usize) -> Result<()> {
        if self.types.len() == n { Ok(()) } else { Err(format!("expected {n} operands, got {}", self.types.len())) }
    }
    pub fn tensor(&self, i: usize) -> Result<&'a TensorType> {
        match self.types.get(i) {
            Some(Type::Tensor(t)) => Ok(t),
            Some(other) => Err(format!("expected a tensor, got {other}")),
            None => Err(format!("`{}` lacks operand {i}", self.op.name())),
        }
    }
    pub fn float(&self, i: usize) -> Result<&'a TensorType> {
        let t = self.tensor(i)?;
        if t.dtype == DType::Float { Ok(t) } else { Err(format!("expected floats, got {t}; use to_float")) }
    }
    pub fn one(&self, dtype: DType) -> Result<&'a TensorType> {
        self.count(1)?;
        let t = self.tensor(0)?;
        if t.dtype == dtype {
            return Ok(t);
        }
        Err(format!(
            "expected {}, got {t}",
            match dtype {
                DType::Float => "floats",
                DType::Int => "integers",
                DType::Mask => "a mask",
            }
        ))
    }
    pub fn same(&self, which: &[usize]) -> Result<TensorType> {
        let ts: Result<Vec<&TensorType>> = which.iter().map(|i| self.tensor(*i)).collect();
        combine(&ts?)
    }
    pub fn all(&self, n: usize, dtype: DType) -> Result<TensorType> {
        self.count(n)?;
        let t = self.same(&(0..n).collect::<Vec<_>>())?;
        if t.dtype == dtype { Ok(t) } else { Err(format!("`{}` does not work on {t}", self.op.name())) }
    }
    pub fn with_axis(&self, axis: usize) -> Result<TensorType> {
        self.count(1)?;
        let t = self.tensor(0)?;
        check_axis(t, axis)?;
        Ok(t.clone())
    }
    pub fn match_arguments(&self, wanted: &[Type]) -> Result<()> {
        self.count(wanted.len())?;
        match self.types.iter().zip(wanted).position(|(given, wanted)| *given != wanted) {
            Some(i) => Err(format!("operand {i} must be {}, got {}", wanted[i], self.types[i])),
            None => Ok(()),
        }
    }
}

pub(super) fn check_axis(t: &TensorType, axis: usize) -> Result<()> {
    if axis < t.shape.len() { Ok(()) } else { Err(format!("{t} has no axis {axis}")) }
}

pub(super) fn join_axes(ts: &[&TensorType]) -> Result<Option<String>> {
    let mut axis: Option<&String> = None;
    for a in ts.iter().filter_map(|t| t.axis.as_ref()) {
        if axis.is_some_and(|b| a != b) {
            return Err(format!("a value along `{}` cannot meet one along `{a}`", axis.expect("just seen")));
        }
        axis = Some(a);
    }
    Ok(axis.cloned())
}

/// The common type of element-wise operands.
pub(super) fn combine(ts: &[&TensorType]) -> Result<TensorType> {
    let mut shape: &[usize] = &[];
    for t in ts {
        if t.dtype != ts[0].dtype {
            return Err(format!("{} and {t} are of different kinds", ts[0]));
        }
        if !t.shape.is_empty() {
            if !shape.is_empty() && shape != t.shape {
                let shaped = ts.iter().find(|u| !u.shape.is_empty()).expect("one has a shape");
                return Err(format!("{shaped} and {t} have different shapes, and only a scalar broadcasts"));
            }
            shape = &t.shape;
        }
    }
    Ok(TensorType { dtype: ts[0].dtype, axis: join_axes(ts)?, shape: shape.to_vec() })
}
