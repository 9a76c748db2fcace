//! The value of a function for one sample, in f64.
//!
//! Written for being right, not fast: one plain loop an operator, nothing shared with the executors or with [`crate::gradient`].
//! It covers every operator that steps, feature maps and initialisers may use; operators along a sequence axis are an error.

mod array;
mod draw;
mod ops;

use std::collections::BTreeMap;

use fwp_sdk::program::{Function, MapRole, NodeId, Op, Parameter, Program};

pub use array::{Array, Data};
pub use draw::Random;

use crate::check::MAX_DEPTH;
use crate::model::child;

/// What a node evaluates to.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A tensor.
    Tensor(Array),
    /// Several values.
    Tuple(Vec<Value>),
}

impl Value {
    /// The tensor, if it is one.
    pub fn tensor(&self) -> Option<&Array> {
        match self {
            Value::Tensor(a) => Some(a),
            Value::Tuple(_) => None,
        }
    }
}

impl From<Array> for Value {
    fn from(a: Array) -> Value {
        Value::Tensor(a)
    }
}

/// A feature map given as a function of the role and the vector.
pub type Phi<'a> = &'a dyn Fn(MapRole, &Array) -> Result<Array, String>;

/// What a function reads beside its own constants.
#[derive(Default)]
pub struct Inputs<'a> {
    /// Arguments in order.
    pub arguments: Vec<Value>,
    /// Parameters of the function and of those that it calls, by path below the function.
    pub parameters: BTreeMap<String, Array>,
    /// States in order.
    pub states: Vec<Array>,
    /// Steps since the reset.
    pub index: i64,
    /// Index of the layer.
    pub layer: i64,
    /// Index of the head.
    pub head: i64,
    /// Source of draws; none outside of initialisers.
    pub random: Option<Random>,
    /// The feature map, where the function uses `phi`.
    pub phi: Option<Phi<'a>>,
}

/// Why a function has no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{place}function `{function}`, `{operator}` (node {node}): {why}")]
pub struct EvalError {
    /// `file:line:column: ` or nothing.
    pub place: String,
    /// Function.
    pub function: String,
    /// Operator.
    pub operator: &'static str,
    /// Number of the node.
    pub node: usize,
    /// Reason.
    pub why: String,
}

/// The results of a function, in the order of its outputs. `f` need not be one of the functions of `p`, but calls those.
pub fn evaluate(p: &Program, f: &Function, inputs: &mut Inputs<'_>) -> Result<Vec<Value>, EvalError> {
    let arguments = std::mem::take(&mut inputs.arguments);
    let values = run(p, f, &arguments, ("", 0), inputs);
    inputs.arguments = arguments;
    let values = values?;
    Ok(f.outputs.iter().map(|o| values[o.node as usize].clone()).collect())
}

/// The value of every node of a function.
pub fn evaluate_nodes(p: &Program, f: &Function, inputs: &mut Inputs<'_>) -> Result<Vec<Value>, EvalError> {
    let arguments = std::mem::take(&mut inputs.arguments);
    let values = run(p, f, &arguments, ("", 0), inputs);
    inputs.arguments = arguments;
    values
}

/// The initial value of a parameter, drawn by its initialiser.
pub fn initial(p: &Program, parameter: &Parameter, layer: i64, head: i64, random: &mut Random) -> Result<Array, EvalError> {
    let missing = |why: &str| EvalError {
        place: String::new(),
        function: "init".into(),
        operator: "parameter",
        node: 0,
        why: format!("parameter `{}`: {why}", parameter.name),
    };
    let f = p.functions.get(parameter.init as usize).ok_or_else(|| missing("there is no such initialiser"))?;
    let mut inputs = Inputs { layer, head, random: Some(random.clone()), ..Inputs::default() };
    let results = evaluate(p, f, &mut inputs)?;
    if let Some(advanced) = inputs.random {
        *random = advanced;
    }
    match results.into_iter().next() {
        Some(Value::Tensor(a)) => Ok(a),
        _ => Err(missing("its initialiser gives no tensor")),
    }
}

/// Values of all nodes; `at` is the prefix of parameters and the number of calls around this one.
fn run(
    p: &Program,
    f: &Function,
    arguments: &[Value],
    at: (&str, usize),
    inputs: &mut Inputs<'_>,
) -> Result<Vec<Value>, EvalError> {
    let (prefix, depth) = at;
    let mut values: Vec<Value> = Vec::with_capacity(f.nodes.len());
    for (i, node) in f.nodes.iter().enumerate() {
        let fail = |why: String| {
            let place = p.place(node.span);
            let place = if place.is_empty() { place } else { format!("{place}: ") };
            EvalError { place, function: f.name.clone(), operator: node.op.name(), node: i, why }
        };
        let value = match &node.op {
            Op::Call { function, name } | Op::Loop { function, name, .. } => {
                let inner = p.functions.get(*function as usize).ok_or_else(|| fail("there is no such function".into()))?;
                if depth >= MAX_DEPTH {
                    return Err(fail(format!("more than {MAX_DEPTH} calls within calls")));
                }
                let mut given: Vec<Value> = node.operands.iter().map(|o| values[*o as usize].clone()).collect();
                let count = if let Op::Loop { count, .. } = node.op { count } else { 1 };
                let prefix = child(prefix, name);
                let mut results = Vec::new();
                for _ in 0..count {
                    let inner_values = run(p, inner, &given, (&prefix, depth + 1), inputs)?;
                    results = inner.outputs.iter().map(|o| inner_values[o.node as usize].clone()).collect();
                    if matches!(node.op, Op::Loop { .. }) {
                        given[..results.len()].clone_from_slice(&results);
                    }
                }
                Value::Tuple(results)
            }
            _ => single(f, i as NodeId, &values, arguments, prefix, inputs).map_err(fail)?,
        };
        values.push(value);
    }
    Ok(values)
}

fn single(
    f: &Function,
    i: NodeId,
    values: &[Value],
    arguments: &[Value],
    prefix: &str,
    inputs: &mut Inputs<'_>,
) -> Result<Value, String> {
    let node = &f.nodes[i as usize];
    let integer = |x: i64| Ok(Array::integer(x).into());
    match &node.op {
        Op::Argument { index } => arguments.get(*index as usize).cloned().ok_or_else(|| "no such argument was given".into()),
        Op::Parameter { index } => {
            let path = format!("{prefix}{}", f.parameters[*index as usize].name);
            inputs.parameters.get(&path).cloned().map(Value::Tensor).ok_or_else(|| format!("parameter `{path}` was not given"))
        }
        Op::State { index } => {
            inputs.states.get(*index as usize).cloned().map(Value::Tensor).ok_or_else(|| "no such state was given".into())
        }
        Op::StepIndex => integer(inputs.index),
        Op::LayerIndex => integer(inputs.layer),
        Op::HeadIndex => integer(inputs.head),
        Op::Element { index } => match &values[node.operands[0] as usize] {
            Value::Tuple(parts) => parts.get(*index as usize).cloned().ok_or_else(|| format!("there is no part {index}")),
            Value::Tensor(_) => Err("the operand is a single value".into()),
        },
        op => {
            let operands: Option<Vec<&Array>> = node.operands.iter().map(|o| values[*o as usize].tensor()).collect();
            let operands = operands.ok_or("an operand is several values")?;
            ops::apply(op, &operands, inputs).map(Value::Tensor)
        }
    }
}
