//! Writing out `gradient` nodes: reverse-mode differentiation of a graph into a graph.
//!
//! The gradient of a scalar y with respect to a node x takes x as a free variable and everything that x is computed from as constant.
//! Functions are expanded in order and nodes within a function in order, so an outer gradient always meets the written-out form of an inner one.
//! A loop between y and x is unrolled into its function's nodes; other loops stay loops.

mod rules;

use std::collections::HashMap;

use fwp_sdk::program::shape::{self, FunctionType};
use fwp_sdk::program::{Function, NodeId, Op, Output, Parameter, Program};

use crate::check::MAX_DEPTH;
use crate::error::{CheckError, Problem};
use crate::graph::{Editor, callee, is_float, pruned};
use crate::model::child;

/// Most nodes that a function may have after its gradients are written out.
pub const MAX_NODES: usize = 100_000;

/// The program with every `gradient` node written out.
///
/// The result passes the shape rules again; nodes that it adds carry the source place of their gradient.
/// It fails, naming the place, where a gradient passes through an operator that has none (`phi`; see [`crate::with_feature_map`])
/// or through loops that unroll to more than [`MAX_NODES`] nodes.
pub fn expand_gradients(p: &Program) -> Result<Program, CheckError> {
    let functions = signatures(p)?;
    let mut out = p.clone();
    out.functions.clear();
    for f in &p.functions {
        let expanded = expand(p, &functions, &out.functions, f)?;
        out.functions.push(expanded);
    }
    Ok(out)
}

/// One function with its gradients written out; it may call every function of `p`, whose own gradients are written out where they are unrolled.
pub fn expand_function(p: &Program, f: &Function) -> Result<Function, CheckError> {
    let functions = signatures(p)?;
    let callees = if has_gradient(f) { expand_gradients(p)?.functions } else { Vec::new() };
    expand(p, &functions, &callees, f)
}

fn signatures(p: &Program) -> Result<Vec<FunctionType>, CheckError> {
    shape::types(p).map(|t| t.functions).map_err(|e| CheckError::new(p, Problem::Shape(e)))
}

fn has_gradient(f: &Function) -> bool {
    f.nodes.iter().any(|n| n.op == Op::Gradient)
}

fn expand(p: &Program, types: &[FunctionType], callees: &[Function], f: &Function) -> Result<Function, CheckError> {
    if !has_gradient(f) {
        return Ok(f.clone());
    }
    let inline = loops_between(f, callees);
    let mut e = Expansion { callees, repetitions: 0, depth: 0, editor: Editor::new(p, types, f) };
    let mut map: Vec<Mapped> = Vec::with_capacity(f.nodes.len());
    for (i, node) in f.nodes.iter().enumerate() {
        e.editor.span = node.span;
        let mapped = if inline[i] {
            e.operands(node.operands.iter(), &map).and_then(|ids| e.unroll(&node.op, ids, "")).map(Mapped::Many)
        } else {
            e.node(&node.op, &node.operands, &map)
        };
        map.push(mapped.map_err(|why| CheckError::at(p, node.span, Problem::Gradient(why)))?);
    }
    let mut outputs = Vec::new();
    for o in &f.outputs {
        let Some(Mapped::One(node)) = map.get(o.node as usize) else {
            let why = format!("result `{}` holds several values at once", o.name);
            return Err(CheckError::new(p, Problem::Gradient(why)));
        };
        outputs.push(Output { name: o.name.clone(), node: *node });
    }
    let Editor { parameters, nodes, .. } = e.editor;
    Ok(pruned(&Function { name: f.name.clone(), arguments: f.arguments.clone(), parameters, nodes, outputs }))
}

/// The calls and loops that a gradient of `f` passes through.
fn loops_between(f: &Function, callees: &[Function]) -> Vec<bool> {
    let unrollable = |op: &Op| matches!(op, Op::Call { .. } | Op::Loop { .. });
    let mut marked = vec![false; f.nodes.len()];
    if !f.nodes.iter().any(|n| unrollable(&n.op)) {
        return marked;
    }
    for g in f.nodes.iter().filter(|n| n.op == Op::Gradient) {
        let above = crate::graph::ancestors(f, [g.operands[0]]);
        let mut below = vec![false; f.nodes.len()];
        for x in &g.operands[1..] {
            below[*x as usize] = true;
        }
        for (i, node) in f.nodes.iter().enumerate() {
            below[i] |= node.operands.iter().any(|o| below[*o as usize]);
            marked[i] |= above[i] && below[i] && unrollable(&node.op);
        }
    }
    // A parameter of an unrolled function moves to this one; its other uses must follow it.
    let with_parameters = having_parameters(callees);
    let moves = |i: usize| marked[i] && callee(&f.nodes[i].op).is_some_and(|c| with_parameters.get(c as usize) == Some(&true));
    if (0..f.nodes.len()).any(moves) {
        for (i, node) in f.nodes.iter().enumerate() {
            marked[i] |= unrollable(&node.op);
        }
    }
    marked
}

/// Which functions have parameters, themselves or in what they call.
fn having_parameters(functions: &[Function]) -> Vec<bool> {
    let mut have: Vec<bool> = Vec::with_capacity(functions.len());
    for f in functions {
        have.push(
            !f.parameters.is_empty() || f.nodes.iter().filter_map(|n| callee(&n.op)).any(|c| have.get(c as usize) == Some(&true)),
        );
    }
    have
}

/// What became of a node.
enum Mapped {
    One(NodeId),
    /// The parts of a tuple that is no node any more.
    Many(Vec<NodeId>),
}

struct Expansion<'a> {
    callees: &'a [Function],
    /// Repetitions put in place so far; a body without nodes must not be repeated for ever.
    repetitions: usize,
    /// Calls within calls that are being put in place.
    depth: usize,
    editor: Editor<'a>,
}

impl Expansion<'_> {
    fn operands<'o>(&self, operands: impl Iterator<Item = &'o NodeId>, map: &[Mapped]) -> Result<Vec<NodeId>, String> {
        operands
            .map(|o| match map.get(*o as usize) {
                Some(Mapped::One(n)) => Ok(*n),
                _ => Err("several values at once are handed on: take one of them".to_string()),
            })
            .collect()
    }

    fn node(&mut self, op: &Op, operands: &[NodeId], map: &[Mapped]) -> Result<Mapped, String> {
        if let (Op::Element { index }, [from]) = (op, operands)
            && let Some(Mapped::Many(parts)) = map.get(*from as usize)
        {
            return parts.get(*index as usize).copied().map(Mapped::One).ok_or_else(|| format!("there is no part {index}"));
        }
        let ids = self.operands(operands.iter(), map)?;
        if *op == Op::Gradient {
            return self.gradient(ids[0], &ids[1..]).map(Mapped::Many);
        }
        self.push(op.clone(), &ids).map(Mapped::One)
    }

    fn push(&mut self, op: Op, operands: &[NodeId]) -> Result<NodeId, String> {
        if self.editor.nodes.len() >= MAX_NODES {
            return Err(format!("its function would have more than {MAX_NODES} nodes; use fewer repetitions"));
        }
        self.editor.push(op, operands)
    }

    /// The results of a call or loop, its function's nodes put in place. `prefix` names the parameters of what it is itself within.
    fn unroll(&mut self, op: &Op, mut values: Vec<NodeId>, prefix: &str) -> Result<Vec<NodeId>, String> {
        let (function, name, count) = match op {
            Op::Call { function, name } => (*function, name, 1),
            Op::Loop { function, name, count, .. } => (*function, name, *count),
            other => return Err(format!("`{}` has no gradient here", other.name())),
        };
        let callees = self.callees;
        let f = callees.get(function as usize).ok_or("there is no such function")?;
        let prefix = child(prefix, name);
        let mut results = Vec::new();
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it passes through more than {MAX_DEPTH} calls within calls"));
        }
        for _ in 0..count {
            self.repetitions += 1;
            if self.repetitions > MAX_NODES {
                return Err(format!("it passes through more than {MAX_NODES} repetitions; use fewer"));
            }
            results = self.splice(f, &values, &prefix)?;
            if matches!(op, Op::Loop { .. }) {
                values[..results.len()].copy_from_slice(&results);
            }
        }
        self.depth -= 1;
        Ok(results)
    }

    fn splice(&mut self, f: &Function, arguments: &[NodeId], prefix: &str) -> Result<Vec<NodeId>, String> {
        let mut map: Vec<Mapped> = Vec::with_capacity(f.nodes.len());
        for node in &f.nodes {
            let mapped = match &node.op {
                Op::Argument { index } => Mapped::One(arguments[*index as usize]),
                Op::Parameter { index } => Mapped::One(self.parameter(&f.parameters[*index as usize], prefix)?),
                Op::Call { .. } | Op::Loop { .. } => {
                    let ids = self.operands(node.operands.iter(), &map)?;
                    Mapped::Many(self.unroll(&node.op, ids, prefix)?)
                }
                op => self.node(op, &node.operands, &map)?,
            };
            map.push(mapped);
        }
        self.operands(f.outputs.iter().map(|o| &o.node), &map)
    }

    fn parameter(&mut self, p: &Parameter, prefix: &str) -> Result<NodeId, String> {
        let name = format!("{prefix}{}", p.name);
        let index = match self.editor.parameters.iter().position(|q| q.name == name) {
            Some(i) => i,
            None => {
                self.editor.parameters.push(Parameter { name, ..p.clone() });
                self.editor.parameters.len() - 1
            }
        };
        self.push(Op::Parameter { index: index as u32 }, &[])
    }

    /// Gradients of `y` with respect to every node of `wrt`.
    fn gradient(&mut self, y: NodeId, wrt: &[NodeId]) -> Result<Vec<NodeId>, String> {
        let n = self.editor.nodes.len();
        let mut free = vec![false; n];
        for x in wrt {
            free[*x as usize] = true;
        }
        // What changes with a free variable, along a path that lets gradients through.
        let mut depends = free.clone();
        for (i, node) in self.editor.nodes.iter().enumerate() {
            depends[i] |= is_float(&self.editor.types[i])
                && !rules::is_flat(&node.op)
                && node.operands.iter().any(|o| depends[*o as usize]);
        }
        let mut adjoint: HashMap<NodeId, NodeId> = HashMap::new();
        if depends[y as usize] {
            let one = self.editor.constant(1.0)?;
            adjoint.insert(y, one);
        }
        for i in (0..=y).rev() {
            let Some(&g) = adjoint.get(&i) else { continue };
            if free[i as usize] {
                continue;
            }
            let operands = self.editor.nodes[i as usize].operands.clone();
            let wants = |position: usize| depends[operands[position] as usize];
            for (position, part) in rules::adjoints(&mut self.editor, i, g, &wants)? {
                let x = operands[position];
                let sum = match adjoint.get(&x) {
                    Some(&so_far) => self.editor.add(so_far, part)?,
                    None => part,
                };
                adjoint.insert(x, sum);
            }
            if self.editor.nodes.len() > MAX_NODES {
                return Err(format!("its function would have more than {MAX_NODES} nodes; use fewer repetitions"));
            }
        }
        wrt.iter()
            .map(|x| {
                let shape = self.editor.shape(*x).to_vec();
                match adjoint.get(x) {
                    Some(&g) => self.editor.widen(g, &shape),
                    None => self.editor.full(&shape, 0.0),
                }
            })
            .collect()
    }
}
