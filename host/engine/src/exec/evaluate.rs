//! Functions of a program, carried out node by node.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use fwp_program::{block, child};
use fwp_sdk::program::{Function, NodeId, Op, Parameter, Scope, Type};
use tch::{Kind, Tensor};

use super::joint::{Step, Steps};
use super::ops;
use super::prepared::Prepared;
use super::value::{Datum, Lead, Precision, Value};

/// Where a function finds what is not an operand. One for each kind of program.
pub trait Surroundings {
    /// Precision and device.
    fn precision(&self) -> Precision;
    /// Path prefix of parameters that the whole model shares.
    fn shared(&self) -> String {
        "shared.".to_string()
    }
    /// The value of a parameter.
    fn parameter(&self, path: &str, parameter: &Parameter) -> Result<Value>;
    /// An operator that this kind of program has beside the common ones.
    fn special(&self, at: &Place<'_>, op: &Op, operands: &[&Datum]) -> Result<Datum> {
        let _ = operands;
        bail!("internal: `{}` at {}{} is not for this kind of program", op.name(), at.prefix, at.node)
    }
}

/// Where in a model a node stands.
pub struct Place<'a> {
    /// The program.
    pub prepared: &'a Prepared,
    /// The function.
    pub function: &'a Function,
    /// Path prefix of the function's parameters.
    pub prefix: &'a str,
    /// Index of the node in its function.
    pub node: usize,
    /// Index of the innermost repeated block.
    pub layer: usize,
    /// Types of the function's nodes, where they are known.
    pub types: Option<&'a [Type]>,
    /// The node's operands.
    pub operands: &'a [NodeId],
    /// Whether SiLU follows in the same operation.
    pub silu: bool,
}

impl<'a> Place<'a> {
    /// Sequence axis of an operand, if it has one.
    pub fn axis_of(&self, operand: usize) -> Option<&'a str> {
        match self.types?.get(*self.operands.get(operand)? as usize)? {
            Type::Tensor(t) => t.axis.as_deref(),
            _ => None,
        }
    }

    /// Sequence axis of the operands, if they have one.
    pub fn axis(&self) -> Option<&'a str> {
        (0..self.operands.len()).find_map(|i| self.axis_of(i))
    }
}

/// Evaluates function `index` of a program.
pub fn function(
    around: &dyn Surroundings,
    prepared: &Prepared,
    index: usize,
    prefix: &str,
    layer: usize,
    arguments: &[Datum],
) -> Result<Vec<Datum>> {
    let types = &prepared.types.nodes[index];
    let f = &prepared.program.functions[index];
    scheduled(around, prepared, f, &prepared.steps[index], Some(types), prefix, layer, arguments)
}

/// Evaluates a function that was derived from the program.
pub fn nodes(
    around: &dyn Surroundings,
    prepared: &Prepared,
    f: &Function,
    prefix: &str,
    layer: usize,
    arguments: &[Datum],
) -> Result<Vec<Datum>> {
    scheduled(around, prepared, f, &Steps::apart(f), None, prefix, layer, arguments)
}

/// Evaluates a function by its steps; what no output needs is left out.
#[expect(clippy::too_many_arguments, reason = "what `function` and `nodes` have found")]
pub fn scheduled(
    around: &dyn Surroundings,
    prepared: &Prepared,
    f: &Function,
    steps: &Steps,
    types: Option<&[Type]>,
    prefix: &str,
    layer: usize,
    arguments: &[Datum],
) -> Result<Vec<Datum>> {
    ensure!(arguments.len() == f.arguments.len(), "internal: function `{}` takes {} values", f.name, f.arguments.len());
    // A value is dropped after its last use: without gradients that bounds memory by what is alive.
    // Backwards, so that what only serves unused values is unused itself.
    let mut uses = vec![0u32; f.nodes.len()];
    f.outputs.iter().for_each(|o| uses[o.node as usize] += 1);
    for i in (0..f.nodes.len()).rev().filter(|i| steps.steps[*i] != Step::WithUser) {
        if uses[i] > 0 {
            steps.operands[i].iter().for_each(|o| uses[*o as usize] += 1);
        }
    }
    let mut values: Vec<Option<Datum>> = vec![None; f.nodes.len()];
    for i in steps.order.iter().map(|n| *n as usize) {
        // Of a node within its user the user knows.
        if uses[i] == 0 || steps.steps[i] == Step::WithUser {
            continue;
        }
        let node = &f.nodes[i];
        let ids = &steps.operands[i];
        // Where it has a value, an earlier product has made it.
        if values[i].is_none() {
            let value = |n: NodeId| values[n as usize].as_ref().expect("operands are kept until their last use");
            let operands: Vec<&Datum> = ids.iter().map(|o| value(*o)).collect();
            let at = Place { prepared, function: f, prefix, node: i, layer, types, operands: ids, silu: false };
            let made = match (&steps.steps[i], &node.op) {
                (Step::Alone, Op::Argument { index }) => Ok(arguments[*index as usize].clone()),
                (Step::Alone, Op::Parameter { index }) => {
                    parameter(around, prefix, &f.parameters[*index as usize]).map(Datum::Value)
                }
                (Step::Alone, op) => one(around, &at, op, &operands),
                // Under the name of the convolution, which may have something to remember.
                (Step::ConvSilu { conv }, _) => {
                    around.special(&Place { node: *conv as usize, silu: true, ..at }, &Op::CausalConv, &operands)
                }
                (Step::Linear(later), _) => {
                    let later: Vec<usize> = later.iter().map(|n| *n as usize).filter(|n| uses[*n] > 0).collect();
                    let weights = later.iter().map(|n| value(steps.operands[*n][0]));
                    linear(operands[1], std::iter::once(operands[0]).chain(weights)).map(|mut made| {
                        let first = made.remove(0);
                        later.into_iter().zip(made).for_each(|(n, made)| values[n] = Some(made));
                        first
                    })
                }
                (step, _) => joint(around, f, step, &operands),
            };
            values[i] = Some(made.with_context(|| failed(prepared, f, i))?);
        }
        for o in ids {
            uses[*o as usize] -= 1;
            if uses[*o as usize] == 0 {
                values[*o as usize] = None;
            }
        }
    }
    Ok(f.outputs.iter().map(|o| values[o.node as usize].clone().expect("outputs are kept")).collect())
}

/// Several nodes that need nothing but their operands.
fn joint(around: &dyn Surroundings, f: &Function, step: &Step, operands: &[&Datum]) -> Result<Datum> {
    let values: Vec<&Value> = operands.iter().map(|d| d.value()).collect::<Result<_>>()?;
    Ok(Datum::Value(match (step, &values[..]) {
        (Step::Lookup(form), values) => form.apply(values, around.precision())?,
        (Step::Gain { norm }, [x, gain]) => ops::normalise(&f.nodes[*norm as usize].op, x, Some(gain))?,
        (Step::Gate, [a, b]) => ops::gate(a, b)?,
        (Step::Onto, [base, weight, x]) => ops::linear_onto(base, weight, x)?,
        (step, values) => bail!("internal: {step:?} of {} values", values.len()),
    }))
}

/// Products of several matrices with the same vector.
fn linear<'a>(x: &Datum, weights: impl Iterator<Item = &'a Datum>) -> Result<Vec<Datum>> {
    let weights: Vec<&Value> = weights.map(Datum::value).collect::<Result<_>>()?;
    Ok(ops::linear(x.value()?, &weights)?.into_iter().map(Datum::Value).collect())
}

/// Where a computation failed, in the plugin's own words.
pub fn failed(prepared: &Prepared, f: &Function, node: usize) -> String {
    let p = &prepared.program;
    let place = p.place(f.nodes[node].span);
    format!("{} `{}`, function `{}`, operator `{}` {place}", p.kind, p.name, f.name, f.nodes[node].op.name())
}

/// A parameter's value.
pub fn parameter(around: &dyn Surroundings, prefix: &str, p: &Parameter) -> Result<Value> {
    let path = if p.scope == Scope::Model { format!("{}{}", around.shared(), p.name) } else { format!("{prefix}{}", p.name) };
    around.parameter(&path, p)
}

/// Evaluates one node that is neither argument nor parameter.
pub fn one(around: &dyn Surroundings, at: &Place<'_>, op: &Op, operands: &[&Datum]) -> Result<Datum> {
    match op {
        Op::Element { index } => match operands[0] {
            Datum::Tuple(parts) => Ok(parts[*index as usize].clone()),
            _ => bail!("internal: a part of something that is not a tuple"),
        },
        Op::LayerIndex => {
            let t = Tensor::f_full([0i64; 0], at.layer as i64, (Kind::Int64, around.precision().device))?;
            Ok(Datum::Value(Value::new(t, Lead::NONE)))
        }
        Op::Call { function: f, name } => {
            let arguments: Vec<Datum> = operands.iter().map(|d| (*d).clone()).collect();
            let prefix = child(at.prefix, name);
            Ok(Datum::Tuple(function(around, at.prepared, *f as usize, &prefix, at.layer, &arguments)?))
        }
        Op::Loop { function: f, name, count, carried } => {
            let prefix = child(at.prefix, name);
            repeat(around, at, *f as usize, *carried, operands, (0..*count).map(|_| (prefix.clone(), at.layer)))
        }
        Op::Blocks { function: f, name, count, carried, first } => {
            let blocks = (0..*count).map(|i| (block(at.prefix, name, first + i), first + i));
            repeat(around, at, *f as usize, *carried, operands, blocks)
        }
        op if is_special(op) => around.special(at, op, operands),
        _ => {
            let values: Result<Vec<&Value>> = operands.iter().map(|d| d.value()).collect();
            Ok(Datum::Value(ops::apply(op, &values?, around.precision())?))
        }
    }
}

/// Whether an operator needs more than its operands: what surrounds the function gives its value.
pub fn is_special(op: &Op) -> bool {
    matches!(
        op,
        Op::StepIndex
            | Op::HeadIndex
            | Op::State { .. }
            | Op::Phi { .. }
            | Op::RandomNormal { .. }
            | Op::RandomUniform { .. }
            | Op::RandomOrthogonal { .. }
            | Op::Position
            | Op::CausalConv
            | Op::TimeCumsum
            | Op::Last
            | Op::MeanOver
            | Op::Along
            | Op::Shift { .. }
            | Op::Attention { .. }
            | Op::Dropout { .. }
            | Op::Scan { .. }
            | Op::FastWeights { .. }
            | Op::MemoryInit { .. }
            | Op::FastWrite { .. }
            | Op::FastRead { .. }
    )
}

fn repeat(
    around: &dyn Surroundings,
    at: &Place<'_>,
    f: usize,
    carried: usize,
    operands: &[&Datum],
    places: impl Iterator<Item = (String, usize)>,
) -> Result<Datum> {
    let mut arguments: Vec<Datum> = operands.iter().map(|d| (*d).clone()).collect();
    for (prefix, layer) in places {
        let results = function(around, at.prepared, f, &prefix, layer, &arguments)?;
        for (slot, result) in arguments[..carried].iter_mut().zip(results) {
            *slot = result;
        }
    }
    arguments.truncate(carried);
    Ok(Datum::Tuple(arguments))
}

/// Parameters by path.
#[derive(Clone, Default)]
pub struct Table(pub HashMap<String, Value>);

impl Table {
    /// The value of a parameter.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.0.get(path).cloned().with_context(|| format!("internal: there is no parameter `{path}`"))
    }
}
