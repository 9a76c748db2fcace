//! Operators that apply a function: once, repeated, or along a sequence.

use crate::program::{Op, TensorType, Type};

use super::operands::Operands;
use super::{Context, Result};

pub(super) fn calls(op: &Op, args: &Operands<'_>, cx: &Context<'_>) -> Result<Type> {
    let function = match op {
        Op::Call { function, .. } | Op::Loop { function, .. } | Op::Blocks { function, .. } | Op::Scan { function, .. } => {
            *function
        }
        _ => unreachable!("operators that call"),
    };
    let f = cx.functions.get(function as usize).ok_or_else(|| format!("there is no function {function} before this one"))?;
    match op {
        Op::Call { .. } => {
            args.match_arguments(&f.arguments)?;
            Ok(Type::Tuple(f.results.clone()))
        }
        Op::Loop { count, carried, .. } | Op::Blocks { count, carried, .. } => {
            args.match_arguments(&f.arguments)?;
            if *count == 0 {
                return Err("a body is repeated at least once, not 0 times".into());
            }
            let taken = &f.arguments[..(*carried).min(f.arguments.len())];
            if taken.len() != *carried || f.results != taken {
                return Err(format!(
                    "every repetition takes over {} and must return that, it returns {}",
                    Type::Tuple(taken.to_vec()),
                    Type::Tuple(f.results.clone())
                ));
            }
            Ok(Type::Tuple(f.results.clone()))
        }
        _ => {
            let Op::Scan { states, .. } = op else { unreachable!("the last operator that calls") };
            let (states, types) = (*states, args.types);
            args.count(f.arguments.len())?;
            if states > types.len() {
                return Err(format!("{states} states are too many: at most its {} arguments can be states", types.len()));
            }
            let mut axis: Option<&String> = None;
            for (i, (given, wanted)) in types.iter().zip(&f.arguments).enumerate() {
                let stepped = match given {
                    Type::Tensor(t) if i >= states => {
                        match (&t.axis, axis) {
                            (None, _) => return Err(format!("operand {i} ({t}) has no sequence axis to scan")),
                            (Some(a), Some(b)) if a != b => {
                                return Err(format!("operands along `{b}` and along `{a}` cannot be scanned together"));
                            }
                            (Some(a), _) => axis = Some(a),
                        }
                        Type::Tensor(TensorType { axis: None, ..t.clone() })
                    }
                    other => (*other).clone(),
                };
                if stepped != *wanted {
                    return Err(format!("operand {i} of the cell is {wanted}, got {given}"));
                }
            }
            if f.results.get(..states) != Some(&f.arguments[..states]) {
                return Err(format!(
                    "a cell must return its states {} first, it returns {}",
                    Type::Tuple(f.arguments[..states].to_vec()),
                    Type::Tuple(f.results.clone())
                ));
            }
            let axis = axis.ok_or("a cell needs a sequence to scan")?;
            let outputs = &f.results[states..];
            if let Some(t) = outputs.iter().find(|t| !matches!(t, Type::Tensor(TensorType { axis: None, .. }))) {
                return Err(format!("an output of a cell is a tensor of one step, not {t}"));
            }
            let results = f.results.iter().enumerate().map(|(i, t)| match t {
                Type::Tensor(t) if i >= states => Type::Tensor(t.clone().along(axis)),
                other => other.clone(),
            });
            Ok(Type::Tuple(results.collect()))
        }
    }
}
