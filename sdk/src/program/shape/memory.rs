//! Operators on the fast weights of a slot.

use crate::program::{DType, Op, ReadAt, TensorType, Type};

use super::operands::{Operands, join_axes};
use super::{Context, Result};

pub(super) fn fast_weights(op: &Op, args: &Operands<'_>, cx: &Context<'_>) -> Result<Type> {
    let name = match op {
        Op::FastWeights { slot, .. } | Op::MemoryInit { slot, .. } | Op::FastWrite { slot, .. } | Op::FastRead { slot, .. } => {
            slot
        }
        _ => unreachable!("operators on fast weights"),
    };
    let slot = cx.slots.iter().find(|s| s.name == *name).ok_or_else(|| format!("there is no fast-weight slot `{name}`"))?;
    if let Op::FastWeights { read: ReadAt::ChunkStart(0), .. } = op {
        return Err("a chunk has at least 1 step, not 0".into());
    }
    let memory = Type::Memory(name.clone());
    let (first, inputs): (usize, &[String]) = match op {
        Op::MemoryInit { .. } => {
            args.count(0)?;
            return Ok(memory);
        }
        Op::FastWeights { inputs, .. } => (0, inputs),
        Op::FastWrite { inputs, .. } | Op::FastRead { inputs, .. } => {
            if args.types.first() != Some(&&memory) {
                return Err(format!("the first operand must be the memory of slot `{name}`"));
            }
            (1, inputs)
        }
        _ => unreachable!("operators on fast weights"),
    };
    args.count(first + inputs.len())?;
    // One more than the rule's own: the write mask. It also bounds the work of the look-ups below.
    if inputs.len() > slot.inputs.len() + 1 || inputs.iter().enumerate().any(|(i, name)| inputs[..i].contains(name)) {
        return Err("an input is given twice".into());
    }
    let mut given = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let t = args.tensor(first + i)?;
        if input == "write" && !matches!(op, Op::FastRead { .. }) {
            if t.dtype != DType::Mask || !t.shape.is_empty() {
                return Err(format!("the write mask must be a scalar mask, not {t}"));
            }
        } else {
            let declared = slot.inputs.iter().find(|d| d.name == *input).ok_or_else(|| {
                let names: Vec<&str> = slot.inputs.iter().map(|d| d.name.as_str()).collect();
                format!("rule `{}` has no input `{input}`; it has {}", slot.rule, names.join(", "))
            })?;
            let wanted = slot.given_shape(declared);
            if t.dtype != DType::Float || t.shape != wanted {
                return Err(format!("input `{input}` of rule `{}` is {wanted:?}, got {t}", slot.rule));
            }
        }
        given.push(t);
    }
    let axis = join_axes(&given)?;
    let output = |shape: &[usize]| {
        let shape = [&[slot.heads], shape].concat();
        Type::Tensor(TensorType { dtype: DType::Float, axis: axis.clone(), shape })
    };
    let mut parts = vec![output(&slot.output)];
    parts.extend(slot.extras.iter().map(|(_, shape)| output(shape)));
    Ok(match op {
        Op::FastWrite { .. } => memory,
        Op::FastRead { .. } => Type::Tuple(parts),
        _ => {
            if axis.is_none() {
                return Err("fast weights need operands along a sequence axis".into());
            }
            let missing: Vec<&str> =
                slot.inputs.iter().map(|i| i.name.as_str()).filter(|n| !inputs.iter().any(|i| i == n)).collect();
            if !missing.is_empty() {
                return Err(format!("rule `{}` also needs {}", slot.rule, missing.join(", ")));
            }
            parts.push(memory);
            Type::Tuple(parts)
        }
    })
}
