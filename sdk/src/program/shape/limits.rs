//! How large a program's types may be.
//!
//! A program is untrusted input: a few bytes must not make a reader reserve gigabytes or work for minutes.
//! The limits are far above what a part of the literature needs.

use crate::program::{Program, RuleInput, Type};

use super::Result;

/// Most elements of one tensor at one step.
pub const MAX_ELEMENTS: usize = 1 << 34;
/// Most axes of one tensor beside its sequence axis.
pub const MAX_RANK: usize = 8;
/// Most operands of one node and most results of one function.
pub const MAX_OPERANDS: usize = 1 << 16;
/// Most inputs, states, parameters of one slot or rule, and most slots.
pub const MAX_DECLARED: usize = 64;
/// Longest name of a sequence axis.
pub const MAX_AXIS_NAME: usize = 64;
/// Largest sum, over all nodes, of the parts of their types.
const MAX_TYPE_PARTS: usize = 1 << 20;

/// Number of elements of a shape within the limits.
pub(crate) fn elements(shape: &[usize]) -> Result<usize> {
    if shape.len() > MAX_RANK {
        return Err(format!("a tensor of {} axes is beyond the limit of {MAX_RANK}", shape.len()));
    }
    if shape.contains(&0) {
        return Err(format!("a tensor of shape {shape:?} has an empty axis"));
    }
    match shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s)) {
        Some(n) if n <= MAX_ELEMENTS => Ok(n),
        _ => Err(format!("a tensor of shape {shape:?} is too large, the limit is {MAX_ELEMENTS} elements")),
    }
}

/// Refuses a shape beyond the limits.
pub(super) fn tensor(shape: &[usize]) -> Result<()> {
    elements(shape).map(|_| ())
}

/// What the types of a program may still add up to.
pub(super) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Budget(MAX_TYPE_PARTS)
    }
}

impl Budget {
    /// Counts one more type.
    pub fn take(&mut self, ty: &Type) -> Result<()> {
        let parts = match ty {
            Type::Tuple(parts) => 1 + parts.len(),
            Type::Tensor(_) | Type::Memory(_) => 1,
        };
        self.0 = self.0.checked_sub(parts).ok_or("the types of the program add up to too much")?;
        Ok(())
    }
}

/// Refuses declared inputs, states and slots beyond the limits.
pub(super) fn declarations(p: &Program) -> Result<()> {
    let part = format!("{} `{}`", p.kind, p.name);
    let few = |what: &str, n: usize| {
        if n <= MAX_DECLARED { Ok(()) } else { Err(format!("{part}: {n} {what} are too many, the limit is {MAX_DECLARED}")) }
    };
    few("inputs", p.inputs.len())?;
    few("states", p.states.len())?;
    few("slots", p.slots.len())?;
    for i in &p.inputs {
        input(i, 1).map_err(|e| format!("{part}: input `{}`: {e}", i.name))?;
    }
    for s in &p.states {
        tensor(&s.shape).map_err(|e| format!("{part}: state `{}`: {e}", s.name))?;
    }
    for s in &p.slots {
        let at = |e: String| format!("{part}: slot `{}`: {e}", s.name);
        few("inputs of a slot", s.inputs.len())?;
        few("extra outputs of a slot", s.extras.len())?;
        tensor(&[s.heads, s.key_raw]).and_then(|()| tensor(&[s.heads, s.key])).map_err(at)?;
        tensor(&[s.heads, s.value]).map_err(at)?;
        for i in &s.inputs {
            input(i, s.heads).map_err(|e| at(format!("input `{}`: {e}", i.name)))?;
            tensor(&s.given_shape(i)).map_err(|e| at(format!("input `{}`: {e}", i.name)))?;
        }
        for shape in std::iter::once(&s.output).chain(s.extras.iter().map(|(_, shape)| shape)) {
            tensor(&[&[s.heads], &shape[..]].concat()).map_err(at)?;
        }
    }
    Ok(())
}

fn input(i: &RuleInput, heads: usize) -> Result<()> {
    tensor(&[&[i.heads.unwrap_or(heads)], &i.full_shape()[..]].concat())
}
