//! Recurrent cells that hold fast weights, as cells that hold nothing but tensors.
//!
//! A memory becomes a state for every head and every state of its rule; a write and a read become the rule's own operations, with
//! the feature map in front, once for each head. What comes of it is a walk like any other cell, and may be one kernel.

use std::collections::HashMap;
use std::sync::Arc;

use fwp_program::child;
use fwp_sdk::program::{
    Argument, Function, Node, NodeId, Op, Output, Parameter, Program, QueryScale, RuleInput, Scope, SlotInterface, Span,
    TensorType, Training, Type,
};

use crate::exec::prepared::{Composed, Slot};

/// Most operations of an unfolded cell: one with many heads is carried out step by step, all heads together.
const MOST_NODES: usize = 6000;

/// What a carried operand of a cell became.
pub enum Carried {
    /// It is a tensor as it was.
    Tensor,
    /// Tensors, for each head one for every state of the rule.
    Memory {
        /// Number of the slot.
        slot: usize,
        /// Number of heads.
        heads: usize,
        /// Number of states of the rule.
        states: usize,
        /// How often a step writes.
        writes: i64,
    },
}

impl Carried {
    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        match self {
            Carried::Tensor => 1,
            Carried::Memory { heads, states, .. } => heads * states,
        }
    }
}

/// A cell without memories.
pub struct Unfolded {
    /// The net with the cell as its last function.
    pub program: Program,
    /// What each carried operand became.
    pub carried: Vec<Carried>,
}

/// The cell of function `index`, whose first `states` arguments are carried; none where its memories do more than to be written and
/// read, or where the rule cannot be written out.
pub fn unfold(composed: &Composed, index: usize, states: usize) -> Option<Unfolded> {
    let net = &composed.net.program;
    let from = &net.functions[index];
    let function = Function { nodes: vec![], arguments: vec![], outputs: vec![], ..from.clone() };
    let mut work = Unfolding { composed, out: net.clone(), f: function, parameters: HashMap::new() };
    let mut held: Vec<Held> = Vec::with_capacity(from.nodes.len());
    let arguments: Vec<Held> = from.arguments.iter().map(|a| work.argument(a)).collect::<Option<_>>()?;
    for node in &from.nodes {
        let value = work.node(node, &arguments, &held)?;
        held.push(value);
        if work.f.nodes.len() > MOST_NODES {
            return None;
        }
    }
    let mut carried = Vec::new();
    for (i, output) in from.outputs.iter().enumerate() {
        let nodes = match &held[output.node as usize] {
            Held::Node(node) => {
                carried.push(Carried::Tensor);
                vec![*node]
            }
            Held::Memory { slot, writes, heads } => {
                let (states, count) = (heads.first().map_or(0, Vec::len), heads.len());
                carried.push(Carried::Memory { slot: *slot, heads: count, states, writes: *writes });
                heads.concat()
            }
            Held::Tuple(_) => return None,
        };
        work.f.outputs.extend(nodes.into_iter().enumerate().map(|(k, node)| Output { name: format!("{i} {k}"), node }));
    }
    carried.truncate(states);
    work.out.functions.push(work.f);
    Some(Unfolded { program: work.out, carried })
}

/// What a node of the cell became.
#[derive(Clone)]
enum Held {
    Node(NodeId),
    /// The parts of what a memory answers.
    Tuple(Vec<NodeId>),
    Memory {
        slot: usize,
        writes: i64,
        /// The states of the rule for every head.
        heads: Vec<Vec<NodeId>>,
    },
}

struct Unfolding<'a> {
    composed: &'a Composed,
    out: Program,
    f: Function,
    /// Nodes of the rules' parameters by path.
    parameters: HashMap<String, NodeId>,
}

/// Half of a rule's step, mapping its inputs itself.
struct Half {
    program: Program,
    function: Function,
    /// Functions of `program` that are in the cell's, too.
    imported: HashMap<u32, u32>,
}

impl Unfolding<'_> {
    fn push(&mut self, op: Op, operands: Vec<NodeId>, span: Span) -> NodeId {
        self.f.nodes.push(Node { op, operands, span });
        self.f.nodes.len() as NodeId - 1
    }

    fn slot(&self, name: &str) -> Option<(usize, Arc<Slot>, SlotInterface)> {
        let interfaces = &self.composed.net.program.slots;
        let index = interfaces.iter().position(|s| s.name == name)?;
        let slot = self.composed.slots.iter().position(|s| s.name == name)?;
        Some((slot, self.composed.slots[slot].clone(), interfaces[index].clone()))
    }

    fn argument(&mut self, a: &Argument) -> Option<Held> {
        let composed = self.composed;
        let mut one = |name: String, ty: Type| {
            let index = self.f.arguments.len() as u32;
            self.f.arguments.push(Argument { name, ty });
            self.push(Op::Argument { index }, vec![], Span::default())
        };
        match &a.ty {
            Type::Tensor(_) => Some(Held::Node(one(a.name.clone(), a.ty.clone()))),
            Type::Memory(name) => {
                let interfaces = &composed.net.program.slots;
                let heads = interfaces.iter().find(|s| s.name == *name)?.heads;
                let number = composed.slots.iter().position(|s| s.name == *name)?;
                let rule = &composed.slots[number].rule.program;
                // What is held for several steps counts them, and a cell does not.
                if rule.states.iter().any(|s| s.held > 1) {
                    return None;
                }
                let states = |head: usize| -> Vec<NodeId> {
                    let named = rule.states.iter();
                    named.map(|s| one(format!("{} {} {head}", a.name, s.name), TensorType::float(&s.shape).into())).collect()
                };
                Some(Held::Memory { slot: number, writes: 0, heads: (0..heads).map(states).collect() })
            }
            Type::Tuple(_) => None,
        }
    }

    fn node(&mut self, node: &Node, arguments: &[Held], held: &[Held]) -> Option<Held> {
        let operand = |i: usize| &held[node.operands[i] as usize];
        let inputs = |names: &[String]| -> Option<HashMap<String, NodeId>> {
            let given = node.operands[1..].iter().map(|o| match &held[*o as usize] {
                Held::Node(n) => Some(*n),
                _ => None,
            });
            names.iter().cloned().zip(given).map(|(name, n)| Some((name, n?))).collect()
        };
        match &node.op {
            Op::Argument { index } => Some(arguments[*index as usize].clone()),
            Op::FastWrite { slot, name, inputs: names } => {
                let Held::Memory { slot: number, writes, heads } = operand(0) else { return None };
                let inputs = inputs(names)?;
                // A masked write would choose between two memories.
                if inputs.contains_key("write") {
                    return None;
                }
                let (_, slot, interface) = self.slot(slot)?;
                let mut half = half(&slot, &slot.apart.as_ref().ok()?.apart.write, None)?;
                let mut written = Vec::new();
                for (head, states) in heads.iter().enumerate() {
                    let mut next = states.clone();
                    for (output, node) in self.carry_out(&mut half, &interface, name, head, states, &inputs)? {
                        let state = output.strip_prefix("state.")?;
                        next[slot.rule.program.states.iter().position(|s| s.name == state)?] = node;
                    }
                    written.push(next);
                }
                Some(Held::Memory { slot: *number, writes: writes + 1, heads: written })
            }
            Op::FastRead { slot, name, inputs: names, scale } => {
                let Held::Memory { heads, .. } = operand(0) else { return None };
                let (inputs, (_, slot, interface)) = (inputs(names)?, self.slot(slot)?);
                let factor = (interface.key as f64).powf(-0.5);
                let on_query = (*scale == QueryScale::Query).then_some(factor);
                let mut half = half(&slot, &slot.apart.as_ref().ok()?.apart.read, on_query)?;
                let shapes: Vec<&Vec<usize>> =
                    std::iter::once(&interface.output).chain(interface.extras.iter().map(|(_, s)| s)).collect();
                let mut parts: Vec<Vec<NodeId>> = vec![Vec::new(); shapes.len()];
                for (head, states) in heads.iter().enumerate() {
                    let answers = self.carry_out(&mut half, &interface, name, head, states, &inputs)?;
                    for ((part, shape), (_, answer)) in parts.iter_mut().zip(&shapes).zip(answers) {
                        let shape = [&[1], &shape[..]].concat();
                        part.push(self.push(Op::Reshape { shape }, vec![answer], node.span));
                    }
                }
                let mut all: Vec<NodeId> = parts.into_iter().map(|part| self.concat(part, node.span)).collect();
                if *scale == QueryScale::Output {
                    let by = self.push(Op::Constant { value: factor }, vec![], node.span);
                    all[0] = self.push(Op::Mul, vec![all[0], by], node.span);
                }
                Some(Held::Tuple(all))
            }
            Op::Element { index } if matches!(operand(0), Held::Tuple(_)) => {
                let Held::Tuple(parts) = operand(0) else { return None };
                Some(Held::Node(*parts.get(*index as usize)?))
            }
            op => {
                let plain = node.operands.iter().map(|o| match &held[*o as usize] {
                    Held::Node(n) => Some(*n),
                    _ => None,
                });
                let operands = plain.collect::<Option<_>>()?;
                Some(Held::Node(self.push(op.clone(), operands, node.span)))
            }
        }
    }

    fn concat(&mut self, parts: Vec<NodeId>, span: Span) -> NodeId {
        match parts[..] {
            [one] => one,
            _ => self.push(Op::Concat { axis: 0 }, parts, span),
        }
    }

    /// Row `head` of `x` `[rows, ..shape]`.
    fn row(&mut self, x: NodeId, rows: usize, row: usize, shape: &[usize]) -> NodeId {
        let span = Span::default();
        let one = if rows == 1 { x } else { self.push(Op::Slice { axis: 0, start: row, length: 1 }, vec![x], span) };
        self.push(Op::Reshape { shape: shape.to_vec() }, vec![one], span)
    }

    /// The operations of half a step for one head; its results by name.
    fn carry_out(
        &mut self,
        half: &mut Half,
        interface: &SlotInterface,
        name: &str,
        head: usize,
        states: &[NodeId],
        inputs: &HashMap<String, NodeId>,
    ) -> Option<Vec<(String, NodeId)>> {
        let mut place: Vec<NodeId> = Vec::with_capacity(half.function.nodes.len());
        for node in &half.function.nodes {
            let operands = node.operands.iter().map(|o| place[*o as usize]).collect();
            let new = match &node.op {
                Op::State { index } => *states.get(*index as usize)?,
                Op::Argument { index } => {
                    let argument = &half.function.arguments[*index as usize];
                    let input: &RuleInput = interface.inputs.iter().find(|i| i.name == argument.name)?;
                    let Type::Tensor(ty) = &argument.ty else { return None };
                    let rows = input.heads.unwrap_or(interface.heads);
                    self.row(*inputs.get(&input.name)?, rows, head / (interface.heads / rows), &ty.shape)
                }
                Op::Parameter { index } => {
                    let p = &half.function.parameters[*index as usize];
                    let (node, rows) = self.parameter(interface, name, p);
                    match rows {
                        Some(rows) => self.row(node, rows, head, &p.shape),
                        None => node,
                    }
                }
                op => {
                    let mut op = op.clone();
                    if let Some(function) = called(&mut op) {
                        *function = self.import(&half.program, &mut half.imported, *function)?;
                    }
                    self.push(op, operands, Span::default())
                }
            };
            place.push(new);
        }
        Some(half.function.outputs.iter().map(|o| (o.name.clone(), place[o.node as usize])).collect())
    }

    /// A rule's parameter as one of the cell, under the same path; and its number of heads, where each has its own.
    fn parameter(&mut self, interface: &SlotInterface, name: &str, p: &Parameter) -> (NodeId, Option<usize>) {
        let rows = (p.scope == Scope::Head).then_some(interface.heads);
        let shape: Vec<usize> = rows.into_iter().chain(p.shape.iter().copied()).collect();
        let (scope, name) = match p.scope {
            Scope::Model => (Scope::Model, format!("{}.{}", interface.name, p.name)),
            _ => (Scope::Layer, format!("{}{}", child("", name), p.name)),
        };
        if let Some(node) = self.parameters.get(&name) {
            return (*node, rows);
        }
        // Values are drawn where the rule declares the parameter; a function of the right shape takes the initialiser's place.
        let init = self.out.functions.len() as u32;
        let full = Node { op: Op::Full { shape: shape.clone(), value: 0.0 }, operands: vec![], span: Span::default() };
        let outputs = vec![Output { name: "value".into(), node: 0 }];
        self.out.functions.push(Function { name: "init".into(), nodes: vec![full], outputs, ..Function::default() });
        let index = self.f.parameters.len() as u32;
        self.f.parameters.push(Parameter { name: name.clone(), shape, scope, training: Training::Constant, init });
        let node = self.push(Op::Parameter { index }, vec![], Span::default());
        self.parameters.insert(name, node);
        (node, rows)
    }

    /// A function of a rule among the net's own; none where it has parameters.
    fn import(&mut self, from: &Program, imported: &mut HashMap<u32, u32>, index: u32) -> Option<u32> {
        if let Some(known) = imported.get(&index) {
            return Some(*known);
        }
        let mut f = from.functions.get(index as usize)?.clone();
        if !f.parameters.is_empty() {
            return None;
        }
        for node in &mut f.nodes {
            node.span = Span::default();
            if let Some(function) = called(&mut node.op) {
                *function = self.import(from, imported, *function)?;
            }
        }
        self.out.functions.push(f);
        let new = self.out.functions.len() as u32 - 1;
        imported.insert(index, new);
        Some(new)
    }
}

/// The function that an operator calls.
fn called(op: &mut Op) -> Option<&mut u32> {
    match op {
        Op::Call { function, .. } | Op::Loop { function, .. } | Op::Blocks { function, .. } | Op::Scan { function, .. } => {
            Some(function)
        }
        _ => None,
    }
}

/// Half of a slot's rule with the feature map in front of its inputs.
fn half(slot: &Slot, function: &Function, scale: Option<f64>) -> Option<Half> {
    let (program, function) = fwp_program::with_mapped_inputs(&slot.rule.program, &slot.map.program, function, scale).ok()?;
    Some(Half { program, function, imported: HashMap::new() })
}
