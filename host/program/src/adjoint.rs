//! The vector-Jacobian product of a step, as a function like the step itself.
//!
//! Arguments of the result are the step's arguments, then the gradient of every kept value, then of every state after the step.
//! It reads the states before the step and computes the forward values again from them.
//! Its outputs are `gradient.NAME` for every float argument and `gradient.state.NAME` for every state before the step.

use fwp_sdk::program::shape::{self, Context};
use fwp_sdk::program::{Argument, DType, Function, Kind, Node, NodeId, Op, Output, Program, Span, State, Type};

use crate::gradient::expand_function;
use crate::graph::{classes, pruned};
use crate::kernel::InStep;

/// Most nodes of a step whose calls and loops are written out.
pub const MAX_NODES: usize = 4000;

/// The vector-Jacobian product of a step. Calls and loops are written out.
///
/// It fails, saying why, where the step calls too much to be written out or passes through an operator without a gradient.
pub fn adjoint(step: &InStep) -> Result<Function, String> {
    let mut both = with_adjoint(step)?;
    both.outputs.retain(|o| o.name.starts_with("gradient."));
    Ok(pruned(&both))
}

/// The step and its adjoint in one function: the step's outputs, then those of the adjoint.
pub(crate) fn with_adjoint(step: &InStep) -> Result<Function, String> {
    let mut f = flat(step)?;
    let program = around(&step.states.iter().map(|s| s.state.clone()).collect::<Vec<_>>());
    let types = types(&f, &program.states)?;
    let tensor = |n: NodeId| match &types[n as usize] {
        Type::Tensor(t) => Ok(t.clone()),
        other => Err(format!("a result of the step is {other}")),
    };
    let push = |f: &mut Function, op: Op, operands: &[NodeId]| -> NodeId {
        f.nodes.push(Node { op, operands: operands.to_vec(), span: Span::default() });
        f.nodes.len() as NodeId - 1
    };
    let mut total: Option<NodeId> = None;
    for output in f.outputs.clone() {
        let ty = tensor(output.node)?;
        let index = f.arguments.len() as u32;
        f.arguments.push(Argument { name: format!("gradient of {}", output.name), ty: Type::Tensor(ty.clone()) });
        if ty.dtype != DType::Float {
            continue;
        }
        let seed = push(&mut f, Op::Argument { index }, &[]);
        let along = push(&mut f, Op::Dot, &[output.node, seed]);
        total = Some(match total {
            Some(so_far) => push(&mut f, Op::Add, &[so_far, along]),
            None => along,
        });
    }
    let total = total.ok_or("the step has no results")?;
    // Every argument and state as one node that all uses share; `flat` has seen to that.
    let mut wrt: Vec<(String, NodeId)> = Vec::new();
    for (i, a) in step.function.arguments.iter().enumerate() {
        if matches!(&a.ty, Type::Tensor(t) if t.dtype == DType::Float) {
            wrt.push((format!("gradient.{}", a.name), i as NodeId));
        }
    }
    let first_state = step.function.arguments.len();
    for (i, s) in step.states.iter().enumerate() {
        wrt.push((format!("gradient.state.{}", s.state.name), (first_state + i) as NodeId));
    }
    let operands: Vec<NodeId> = std::iter::once(total).chain(wrt.iter().map(|w| w.1)).collect();
    let gradient = push(&mut f, Op::Gradient, &operands);
    for (i, (name, _)) in wrt.into_iter().enumerate() {
        let node = push(&mut f, Op::Element { index: i as u32 }, &[gradient]);
        f.outputs.push(Output { name, node });
    }
    let f = expand_function(&program, &f).map_err(|e| e.to_string())?;
    if f.nodes.len() > 4 * MAX_NODES {
        return Err(format!("with its gradient it has {} operations, more than {}", f.nodes.len(), 4 * MAX_NODES));
    }
    Ok(shared(&f))
}

/// The step with calls and loops written out. Its first nodes are all arguments, then all states.
pub(crate) fn flat(step: &InStep) -> Result<Function, String> {
    let arguments = step.function.arguments.len();
    let mut nodes: Vec<Node> = Vec::new();
    for index in 0..arguments as u32 {
        nodes.push(Node { op: Op::Argument { index }, operands: vec![], span: Span::default() });
    }
    for index in 0..step.states.len() as u32 {
        nodes.push(Node { op: Op::State { index }, operands: vec![], span: Span::default() });
    }
    let mut w = Writer { step, nodes, first_state: arguments, repetitions: 0 };
    let given: Vec<NodeId> = (0..arguments as NodeId).collect();
    let results = w.splice(&step.function, &given, 0)?;
    let outputs = step.function.outputs.iter().zip(results).map(|(o, node)| Output { name: o.name.clone(), node });
    Ok(Function {
        name: step.name.clone(),
        arguments: step.function.arguments.clone(),
        parameters: vec![],
        outputs: outputs.collect(),
        nodes: w.nodes,
    })
}

struct Writer<'a> {
    step: &'a InStep,
    nodes: Vec<Node>,
    first_state: usize,
    repetitions: usize,
}

/// What became of a node of a function that is written out.
enum Mapped {
    One(NodeId),
    Many(Vec<NodeId>),
}

impl Writer<'_> {
    fn splice(&mut self, f: &Function, arguments: &[NodeId], depth: usize) -> Result<Vec<NodeId>, String> {
        if depth > crate::check::MAX_DEPTH {
            return Err("there are too many calls within calls".into());
        }
        let mut map: Vec<Mapped> = Vec::with_capacity(f.nodes.len());
        for node in &f.nodes {
            let one = |o: &NodeId| match &map[*o as usize] {
                Mapped::One(n) => Ok(*n),
                Mapped::Many(_) => Err("several values at once are handed on".to_string()),
            };
            let mapped = match &node.op {
                Op::Argument { index } => Mapped::One(*arguments.get(*index as usize).ok_or("an argument is not there")?),
                Op::State { index } => Mapped::One((self.first_state + *index as usize) as NodeId),
                Op::Element { index } => match &map[node.operands[0] as usize] {
                    Mapped::Many(parts) => Mapped::One(*parts.get(*index as usize).ok_or("a part is not there")?),
                    Mapped::One(_) => return Err("a part of a single value is taken".into()),
                },
                Op::Call { function, .. } | Op::Loop { function, .. } => {
                    let step = self.step;
                    let inner = step.callees.get(*function as usize).ok_or("a function that it calls is not there")?;
                    let mut given = node.operands.iter().map(one).collect::<Result<Vec<_>, _>>()?;
                    let count = if let Op::Loop { count, .. } = node.op { count } else { 1 };
                    let mut results = Vec::new();
                    for _ in 0..count {
                        self.repetitions += 1;
                        if self.repetitions > MAX_NODES {
                            return Err(format!("its loops have more than {MAX_NODES} repetitions"));
                        }
                        results = self.splice(inner, &given, depth + 1)?;
                        if matches!(node.op, Op::Loop { .. }) {
                            given[..results.len()].copy_from_slice(&results);
                        }
                    }
                    Mapped::Many(results)
                }
                Op::Parameter { .. } => return Err("a function that it calls has parameters of its own".into()),
                op => {
                    let operands = node.operands.iter().map(one).collect::<Result<Vec<_>, _>>()?;
                    if self.nodes.len() >= MAX_NODES {
                        return Err(format!("with its loops written out it has more than {MAX_NODES} operations"));
                    }
                    self.nodes.push(Node { op: op.clone(), operands, span: node.span });
                    Mapped::One(self.nodes.len() as NodeId - 1)
                }
            };
            map.push(mapped);
        }
        let results = f.outputs.iter().map(|o| match &map[o.node as usize] {
            Mapped::One(n) => Ok(*n),
            Mapped::Many(_) => Err("a result holds several values".to_string()),
        });
        results.collect()
    }
}

/// The types of a function without calls.
pub(crate) fn types(f: &Function, states: &[State]) -> Result<Vec<Type>, String> {
    let cx = Context { functions: &[], arguments: &f.arguments, parameters: &f.parameters, states, slots: &[] };
    let mut types: Vec<Type> = Vec::with_capacity(f.nodes.len());
    for node in &f.nodes {
        let operands: Option<Vec<&Type>> = node.operands.iter().map(|o| types.get(*o as usize)).collect();
        let operands = operands.ok_or("an operand does not come before its node")?;
        let ty = shape::infer(&node.op, &operands, &cx).map_err(|e| format!("`{}`: {e}", node.op.name()))?;
        types.push(ty);
    }
    Ok(types)
}

/// A program that holds nothing but states.
fn around(states: &[State]) -> Program {
    Program {
        kind: Kind::UpdateRule,
        name: String::new(),
        config: String::new(),
        doc: String::new(),
        citation: String::new(),
        objective: String::new(),
        inputs: vec![],
        states: states.to_vec(),
        slots: vec![],
        functions: vec![],
        entries: vec![],
        files: vec![],
    }
}

/// The function with equal nodes made one.
fn shared(f: &Function) -> Function {
    let class = classes(f);
    let mut g = f.clone();
    for node in &mut g.nodes {
        node.operands.iter_mut().for_each(|o| *o = class[*o as usize]);
    }
    g.outputs.iter_mut().for_each(|o| o.node = class[o.node as usize]);
    pruned(&g)
}
