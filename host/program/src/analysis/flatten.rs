//! The step as one function without calls: what the analysis reads.

use fwp_sdk::program::{Function, NodeId, Op, Output, Program, Type, entry};

use super::fault::Origin;
use crate::check::MAX_DEPTH;
use crate::error::{CheckError, Problem};
use crate::gradient::expand_gradients;
use crate::graph::{Editor, classes, pruned};
use crate::model::child;

/// Most nodes of a step that is analysed.
const MAX_NODES: usize = 20_000;

/// A step with gradients written out, calls and loops put in place, equal nodes merged and unused ones left out.
///
/// Parameters of called functions are its own, under their paths.
pub(crate) struct Flat {
    /// The step.
    pub step: Function,
    /// Types of its nodes.
    pub types: Vec<Type>,
}

impl Flat {
    /// The operation that makes a result.
    pub(super) fn origin(&self, result: &str) -> Option<Origin> {
        self.step.output(result).map(|n| Origin::of(&self.step.nodes[n as usize]))
    }
}

/// Flattens the step of a rule.
///
/// # Errors
/// A program that breaks the shape rules, has no step, or unrolls to more than 20 000 nodes.
pub(crate) fn flatten(p: &Program) -> Result<Flat, CheckError> {
    let expanded = expand_gradients(p)?;
    let step = expanded.entry(entry::STEP).ok_or_else(|| CheckError::new(p, Problem::MissingEntry(entry::STEP)))?;
    let mut inliner = Inliner { p: &expanded, editor: Editor::new(&expanded, &[], step), repetitions: 0 };
    let arguments: Vec<Value> = Vec::new();
    let at = |why: String, inliner: &Inliner<'_>| CheckError::at(p, inliner.editor.span, Problem::Shape(why));
    let values = inliner.splice(step, &arguments, None, 0).map_err(|why| at(why, &inliner))?;
    let mut outputs = Vec::new();
    for (o, value) in step.outputs.iter().zip(values) {
        let Value::One(node) = value else { return Err(at(format!("`{}` holds several values", o.name), &inliner)) };
        outputs.push(Output { name: o.name.clone(), node });
    }
    let Editor { parameters, nodes, .. } = inliner.editor;
    let mut step = Function { name: step.name.clone(), arguments: step.arguments.clone(), parameters, nodes, outputs };
    let class = classes(&step);
    step.nodes.iter_mut().flat_map(|n| &mut n.operands).chain(step.outputs.iter_mut().map(|o| &mut o.node)).for_each(|o| {
        *o = class[*o as usize];
    });
    let step = pruned(&step);
    let mut editor = Editor::new(&expanded, &[], &step);
    for node in &step.nodes {
        editor.push(node.op.clone(), &node.operands).map_err(|why| CheckError::at(p, node.span, Problem::Shape(why)))?;
    }
    let types = editor.types;
    Ok(Flat { step, types })
}

/// What a node became.
#[derive(Clone)]
enum Value {
    One(NodeId),
    Many(Vec<NodeId>),
}

struct Inliner<'a> {
    p: &'a Program,
    editor: Editor<'a>,
    repetitions: usize,
}

impl Inliner<'_> {
    /// The results of a function, its nodes put in place. `prefix` names its parameters; the step itself has none and keeps its arguments.
    fn splice(&mut self, f: &Function, arguments: &[Value], prefix: Option<&str>, depth: usize) -> Result<Vec<Value>, String> {
        if depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} calls within calls"));
        }
        let mut map: Vec<Value> = Vec::with_capacity(f.nodes.len());
        for node in &f.nodes {
            self.editor.span = node.span;
            let value = match (&node.op, prefix) {
                (Op::Argument { index }, Some(_)) => arguments.get(*index as usize).cloned().ok_or("an argument is missing")?,
                (Op::Parameter { index }, Some(prefix)) => {
                    let own = f.parameters.get(*index as usize).ok_or("there is no such parameter")?;
                    let name = format!("{prefix}{}", own.name);
                    let known = &mut self.editor.parameters;
                    let place = known.iter().position(|q| q.name == name).unwrap_or_else(|| {
                        known.push(fwp_sdk::program::Parameter { name, ..own.clone() });
                        known.len() - 1
                    });
                    Value::One(self.push(Op::Parameter { index: place as u32 }, &[])?)
                }
                (Op::Call { .. } | Op::Loop { .. }, _) => {
                    self.called(&node.op, &node.operands, &map, prefix.unwrap_or(""), depth)?
                }
                (Op::Element { index }, _) if matches!(map[node.operands[0] as usize], Value::Many(_)) => {
                    let Value::Many(parts) = &map[node.operands[0] as usize] else { return Err("no parts".into()) };
                    Value::One(*parts.get(*index as usize).ok_or_else(|| format!("there is no part {index}"))?)
                }
                (op, _) => {
                    let ids = singles(&node.operands, &map)?;
                    Value::One(self.push(op.clone(), &ids)?)
                }
            };
            map.push(value);
        }
        Ok(f.outputs.iter().map(|o| map[o.node as usize].clone()).collect())
    }

    fn called(&mut self, op: &Op, operands: &[NodeId], map: &[Value], prefix: &str, depth: usize) -> Result<Value, String> {
        let (function, name, count) = match op {
            Op::Call { function, name } => (*function, name, 1),
            Op::Loop { function, name, count, .. } => (*function, name, *count),
            other => return Err(format!("`{}` cannot be put in place", other.name())),
        };
        let p = self.p;
        let f = p.functions.get(function as usize).ok_or("there is no such function")?;
        let prefix = child(prefix, name);
        let mut values: Vec<Value> = singles(operands, map)?.into_iter().map(Value::One).collect();
        let mut results = Vec::new();
        for _ in 0..count {
            // A body without nodes must not be repeated for ever.
            self.repetitions += 1;
            if self.repetitions > MAX_NODES {
                return Err(format!("more than {MAX_NODES} repetitions, too many to analyse"));
            }
            results = self.splice(f, &values, Some(&prefix), depth + 1)?;
            if matches!(op, Op::Loop { .. }) {
                values[..results.len()].clone_from_slice(&results);
            }
        }
        let ids: Result<Vec<NodeId>, String> = results
            .iter()
            .map(|v| match v {
                Value::One(n) => Ok(*n),
                Value::Many(_) => Err("several values cannot hold several values".to_string()),
            })
            .collect();
        ids.map(Value::Many)
    }

    fn push(&mut self, op: Op, operands: &[NodeId]) -> Result<NodeId, String> {
        if self.editor.nodes.len() >= MAX_NODES {
            return Err(format!("the step unrolls to more than {MAX_NODES} operations, too many to analyse"));
        }
        self.editor.push(op, operands)
    }
}

fn singles(operands: &[NodeId], map: &[Value]) -> Result<Vec<NodeId>, String> {
    operands
        .iter()
        .map(|o| match map.get(*o as usize) {
            Some(Value::One(n)) => Ok(*n),
            _ => Err("several values at once are handed on: take one of them".to_string()),
        })
        .collect()
}
