//! The end of a slow net, where only some positions of its output are asked for.
//!
//! What follows the last operator that mixes positions, such as the norm and the head of a
//! transformer, is computed at those positions alone.
//! With a target at one position of 256 and thousands of logits this is most of what a small model
//! computes.
//!
//! The forward function is cut in two at the nodes where the end begins:
//!
//! ```text
//! body:  inputs ... blocks -> x [batch, time, width]
//! tail:  x [positions, width] -> norm -> head -> logits [positions, classes]
//! ```
//!
//! In the tail the positions stand where samples stand otherwise, so every operator that treats
//! samples alike does the same there.

use anyhow::{Context, Result};
use fwp_sdk::program::{Argument, Function, Node, NodeId, Op, Output, Type};
use tch::Tensor;

use crate::exec::evaluate::{self, Surroundings};
use crate::exec::joint::Steps;
use crate::exec::prepared::Prepared;
use crate::exec::value::{Datum, Lead, Value};

/// A function with its steps and the types of its nodes.
struct Half {
    function: Function,
    types: Vec<Type>,
    steps: Steps,
}

impl Half {
    fn new(function: Function, types: Vec<Type>) -> Half {
        let steps = Steps::joint(&function, &types);
        Half { function, types, steps }
    }
}

/// One output of a function, in two halves.
pub(super) struct Ending {
    body: Half,
    tail: Half,
}

impl Ending {
    /// Cuts function `index` of a program before the end of the named output.
    ///
    /// Nothing for an output that has no sequence axis, and so no positions.
    pub(super) fn new(net: &Prepared, index: usize, output: &str) -> Option<Ending> {
        let (f, types) = (&net.program.functions[index], &net.types.nodes[index]);
        let last = f.output(output)?;
        let axis = axis(&types[last as usize])?;
        let mut tail = Tail {
            f,
            types,
            axis,
            nodes: Vec::new(),
            types_of: Vec::new(),
            made: vec![None; f.nodes.len()],
            entering: Vec::new(),
        };
        let node = tail.take(last);
        let Tail { nodes, types_of, entering, .. } = tail;
        let named = |node: NodeId| Output { name: output.to_string(), node };
        let body = Function { outputs: entering.iter().map(|n| named(*n)).collect(), ..f.clone() };
        let tail = Function {
            name: f.name.clone(),
            arguments: entering.iter().map(|n| Argument { name: output.to_string(), ty: types[*n as usize].clone() }).collect(),
            parameters: f.parameters.clone(),
            nodes,
            outputs: vec![named(node)],
        };
        Some(Ending { body: Half::new(body, types.clone()), tail: Half::new(tail, types_of) })
    }

    /// The output at flat positions `sample * length + step`, `[positions, ...]`.
    pub(super) fn run(&self, around: &dyn Surroundings, net: &Prepared, arguments: &[Datum], positions: &[i64]) -> Result<Value> {
        let entering = run(around, net, &self.body, arguments)?;
        let length = entering.iter().find_map(|d| d.value().ok().filter(|v| v.lead.axis)).map(|v| v.tensor.size()[1]);
        let device = around.precision().device;
        let places = Tensor::f_from_slice(positions)?.f_to_device(device)?;
        let samples: Vec<i64> = positions.iter().map(|p| p / length.unwrap_or(1).max(1)).collect();
        let samples = Tensor::f_from_slice(&samples)?.f_to_device(device)?;
        let at_places = |d: &Datum| -> Result<Datum> {
            let v = d.value()?;
            let tensor = match v.lead {
                Lead::AXIS => v.tensor.f_flatten(0, 1)?.f_index_select(0, &places)?,
                Lead::BATCH => v.tensor.f_index_select(0, &samples)?,
                _ => return Ok(d.clone()),
            };
            Ok(Datum::Value(Value::new(tensor, Lead::BATCH)))
        };
        let arguments: Vec<Datum> = entering.iter().map(at_places).collect::<Result<_>>()?;
        let mut results = run(around, net, &self.tail, &arguments)?;
        results.remove(0).value().cloned().context("internal: an output that is no value")
    }
}

fn run(around: &dyn Surroundings, net: &Prepared, half: &Half, arguments: &[Datum]) -> Result<Vec<Datum>> {
    evaluate::scheduled(around, net, &half.function, &half.steps, Some(&half.types), "", 0, arguments)
}

/// The sequence axis of a type.
fn axis(ty: &Type) -> Option<&str> {
    match ty {
        Type::Tensor(t) => t.axis.as_deref(),
        _ => None,
    }
}

/// A tail while it is taken out of its function.
struct Tail<'a> {
    f: &'a Function,
    types: &'a [Type],
    axis: &'a str,
    nodes: Vec<Node>,
    types_of: Vec<Type>,
    /// The node of the tail for a node of the function.
    made: Vec<Option<NodeId>>,
    /// The nodes of the function that are arguments of the tail.
    entering: Vec<NodeId>,
}

impl Tail<'_> {
    /// The node of the tail that gives the value of a node of the function.
    fn take(&mut self, id: NodeId) -> NodeId {
        if let Some(made) = self.made[id as usize] {
            return made;
        }
        let node = &self.f.nodes[id as usize];
        let belongs = match &node.op {
            Op::Parameter { .. } => true,
            // These have operands that are no tensors, or need to know where they stand.
            Op::Argument { .. } | Op::Element { .. } | Op::LayerIndex => false,
            Op::Call { .. } | Op::Loop { .. } | Op::Blocks { .. } => false,
            // What does not vary along the axis may as well be computed before.
            op => !evaluate::is_special(op) && axis(&self.types[id as usize]) == Some(self.axis),
        };
        let made = if belongs {
            let operands = node.operands.iter().map(|o| self.take(*o)).collect();
            Node { op: node.op.clone(), operands, span: node.span }
        } else {
            self.entering.push(id);
            Node { op: Op::Argument { index: (self.entering.len() - 1) as u32 }, operands: vec![], span: node.span }
        };
        self.nodes.push(made);
        self.types_of.push(self.types[id as usize].clone());
        let number = (self.nodes.len() - 1) as NodeId;
        self.made[id as usize] = Some(number);
        number
    }
}
