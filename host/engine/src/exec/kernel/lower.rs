//! The part of a plan that a kernel walks, as a function of its own.
//!
//! Values that cross into the step become arguments, and so do the parameters of called functions: a kernel knows no names.

use std::collections::HashMap;

use fwp_program::When;
use fwp_program::kernel::{InStep, KernelState, Per};
use fwp_program::{block, child};
use fwp_sdk::program::{Argument, DType, Function, Node, NodeId, Op, Output, Parameter, Program, Span, TensorType, Type};

use crate::exec::evaluate::is_special;
use crate::exec::plan::StepPlan;

/// Where the value of a kernel's argument comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A node that is computed before the steps.
    Node(usize),
    /// A parameter of a called function, with the path of its place below the caller's prefix.
    Parameter {
        /// Path prefix below the one of the function itself.
        prefix: String,
        /// The parameter.
        parameter: Parameter,
    },
}

/// A step as a kernel takes it, but for [`InStep::per`], which depends on the values.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The step; `per` is empty.
    pub step: InStep,
    /// Where every argument comes from.
    pub origins: Vec<Origin>,
    /// The types of the arguments.
    pub arguments: Vec<TensorType>,
    /// The types of the kept values; a kernel gives all of them as floats.
    pub kept: Vec<TensorType>,
}

impl Lowered {
    /// The step with what is known of its arguments at run time.
    pub fn with(&self, per: Vec<Per>) -> InStep {
        InStep { per, ..self.step.clone() }
    }
}

/// The steps of a plan.
///
/// # Errors
/// What a kernel cannot do, for people.
pub fn lower(program: &Program, plan: &StepPlan) -> Result<Lowered, String> {
    let tensor = |node: usize| match &plan.types[node] {
        Type::Tensor(t) => Ok(t.clone()),
        other => Err(format!("a value of the step is {other}, not a tensor")),
    };
    let mut lifter = Lifter { program, callees: Vec::new(), known: HashMap::new() };
    let mut body = Body::new(&plan.function.name, true);
    let mut places: Vec<Option<Place>> = vec![None; plan.function.nodes.len()];
    let mut origins = Vec::new();
    for node in &plan.crossing {
        let at = body.argument(format!("x{node}"), tensor(*node)?);
        places[*node] = Some(Place::Node(at));
        origins.push(Origin::Node(*node));
    }
    for (i, node) in plan.function.nodes.iter().enumerate() {
        if plan.when[i] == When::Step {
            places[i] = Some(lifter.node(&mut body, node, &places, &plan.function.parameters, "", 0)?);
        }
    }
    let at = |i: usize| places[i].as_ref().and_then(Place::node).ok_or("internal: a value of the step is not there");
    let mut kept = Vec::new();
    let mut outputs = Vec::new();
    for (k, i) in plan.kept_nodes().enumerate() {
        let ty = tensor(i)?;
        let mut node = at(i)?;
        if ty.dtype != DType::Float {
            body.function.nodes.push(Node { op: Op::ToFloat, operands: vec![node], span: Span::default() });
            node = body.function.nodes.len() as NodeId - 1;
        }
        outputs.push(Output { name: format!("kept.{k}"), node });
        kept.push(ty);
    }
    for (state, next) in plan.states.iter().zip(&plan.next) {
        outputs.push(Output { name: format!("state.{}", state.state.name), node: at(*next)? });
    }
    let (mut function, extras) = body.finished(outputs);
    for extra in extras {
        match extra {
            Extra::Parameter(prefix, parameter) => origins.push(Origin::Parameter { prefix, parameter }),
            // The index is a node of the step itself.
            Extra::Index => return Err("internal: the index as an argument of the step".into()),
        }
    }
    function.parameters.clear();
    let arguments = function.arguments.iter().map(|a| match &a.ty {
        Type::Tensor(t) => Ok(t.clone()),
        other => Err(format!("a parameter is {other}")),
    });
    let arguments = arguments.collect::<Result<_, String>>()?;
    let states = plan.states.iter().map(|s| KernelState { state: s.state.clone(), masked: s.masked }).collect();
    let step =
        InStep { name: plan.function.name.clone(), function, callees: lifter.callees, per: vec![], states, kept: kept.len() };
    Ok(Lowered { step, origins, arguments, kept })
}

/// What a function needs beside its arguments.
#[derive(Clone, Debug, PartialEq)]
enum Extra {
    /// A parameter, with its place below the function.
    Parameter(String, Parameter),
    /// The index of the step.
    Index,
}

/// Where the value of an old node is.
#[derive(Clone, Debug)]
enum Place {
    Node(NodeId),
    /// The parts of a tuple that no node holds.
    Parts(Vec<NodeId>),
}

impl Place {
    fn node(&self) -> Option<NodeId> {
        match self {
            Place::Node(n) => Some(*n),
            Place::Parts(_) => None,
        }
    }
}

/// A function being written. Extras become arguments behind those that there are when it is finished.
struct Body {
    function: Function,
    extras: Vec<(Extra, NodeId)>,
    /// Whether this is the step itself, which has the index.
    step: bool,
}

impl Body {
    fn new(name: &str, step: bool) -> Body {
        Body { function: Function { name: name.to_string(), ..Function::default() }, extras: Vec::new(), step }
    }

    fn index(&mut self) -> NodeId {
        if self.step { self.push(Op::StepIndex, vec![], Span::default()) } else { self.extra(Extra::Index) }
    }

    fn push(&mut self, op: Op, operands: Vec<NodeId>, span: Span) -> NodeId {
        self.function.nodes.push(Node { op, operands, span });
        self.function.nodes.len() as NodeId - 1
    }

    fn argument(&mut self, name: String, ty: TensorType) -> NodeId {
        let index = self.function.arguments.len() as u32;
        self.function.arguments.push(Argument { name, ty: ty.into() });
        self.push(Op::Argument { index }, vec![], Span::default())
    }

    fn extra(&mut self, extra: Extra) -> NodeId {
        if let Some((_, node)) = self.extras.iter().find(|(e, _)| *e == extra) {
            return *node;
        }
        let (name, ty) = match &extra {
            Extra::Parameter(prefix, p) => (format!("{prefix}{}", p.name), TensorType::float(&p.shape)),
            Extra::Index => ("index".to_string(), TensorType { dtype: DType::Int, axis: None, shape: vec![] }),
        };
        let node = self.argument(name, ty);
        self.extras.push((extra, node));
        node
    }

    fn finished(mut self, outputs: Vec<Output>) -> (Function, Vec<Extra>) {
        self.function.outputs = outputs;
        (self.function, self.extras.into_iter().map(|(e, _)| e).collect())
    }
}

/// Copies called functions so that they read nothing but arguments.
struct Lifter<'a> {
    program: &'a Program,
    callees: Vec<Function>,
    /// By function and layer: its number among the callees and what it needs, with prefixes below itself.
    known: HashMap<(u32, usize), (u32, Vec<Extra>)>,
}

impl Lifter<'_> {
    /// The function with its extras as further arguments.
    fn lifted(&mut self, index: u32, layer: usize) -> Result<(u32, Vec<Extra>), String> {
        if let Some(known) = self.known.get(&(index, layer)) {
            return Ok(known.clone());
        }
        let from = &self.program.functions[index as usize];
        let mut body = Body::new(&from.name, false);
        let mut places: Vec<Option<Place>> = Vec::with_capacity(from.nodes.len());
        // Arguments first, so that extras come behind them.
        let mut arguments = Vec::new();
        for a in &from.arguments {
            match &a.ty {
                // Within a step no value varies along an axis.
                Type::Tensor(t) => arguments.push(body.argument(a.name.clone(), TensorType { axis: None, ..t.clone() })),
                other => return Err(format!("function `{}` takes {other}", from.name)),
            }
        }
        for node in &from.nodes {
            let place = match &node.op {
                Op::Argument { index } => Place::Node(arguments[*index as usize]),
                Op::StepIndex => Place::Node(body.index()),
                _ => self.node(&mut body, node, &places, &from.parameters, "", layer)?,
            };
            places.push(Some(place));
        }
        let outputs: Option<Vec<Output>> = from
            .outputs
            .iter()
            .map(|o| Some(Output { name: o.name.clone(), node: places[o.node as usize].as_ref()?.node()? }))
            .collect();
        let outputs = outputs.ok_or_else(|| format!("function `{}` gives a tuple", from.name))?;
        let (function, extras) = body.finished(outputs);
        self.callees.push(function);
        let made = (self.callees.len() as u32 - 1, extras);
        self.known.insert((index, layer), made.clone());
        Ok(made)
    }

    /// Copies a node into `body`.
    fn node(
        &mut self,
        body: &mut Body,
        node: &Node,
        places: &[Option<Place>],
        parameters: &[Parameter],
        prefix: &str,
        layer: usize,
    ) -> Result<Place, String> {
        let place = |o: &NodeId| places[*o as usize].as_ref().ok_or("internal: an operand of the step is not there");
        if let (Op::Element { index }, [tuple]) = (&node.op, &node.operands[..])
            && let Place::Parts(parts) = place(tuple)?
        {
            return parts.get(*index as usize).map(|n| Place::Node(*n)).ok_or_else(|| "internal: a tuple is too short".into());
        }
        let operands = node.operands.iter().map(|o| place(o)?.node().ok_or("internal: a tuple as an operand"));
        let mut operands: Vec<NodeId> = operands.collect::<Result<_, _>>()?;
        let op = match &node.op {
            Op::Parameter { index } => {
                let parameter = parameters[*index as usize].clone();
                return Ok(Place::Node(body.extra(Extra::Parameter(prefix.to_string(), parameter))));
            }
            Op::LayerIndex => Op::Integer { value: layer as i64 },
            Op::Call { function, name } => {
                let below = child(prefix, name);
                let function = self.extended(body, *function, &below, layer, &mut operands)?;
                Op::Call { function, name: name.clone() }
            }
            Op::Loop { function, name, count, carried } => {
                let below = child(prefix, name);
                let function = self.extended(body, *function, &below, layer, &mut operands)?;
                Op::Loop { function, name: name.clone(), count: *count, carried: *carried }
            }
            Op::Blocks { function, name, count, carried, first } => {
                // Every repetition has parameters of its own: a call each.
                let mut current = operands;
                for layer in *first..first + count {
                    let below = block(prefix, name, layer);
                    let mut given = current.clone();
                    let function = self.extended(body, *function, &below, layer, &mut given)?;
                    let tuple = body.push(Op::Call { function, name: name.clone() }, given, node.span);
                    for (i, slot) in current.iter_mut().enumerate().take(*carried) {
                        *slot = body.push(Op::Element { index: i as u32 }, vec![tuple], node.span);
                    }
                }
                current.truncate(*carried);
                return Ok(Place::Parts(current));
            }
            op => match outside(op) {
                Some(why) => return Err(why),
                None => op.clone(),
            },
        };
        Ok(Place::Node(body.push(op, operands, node.span)))
    }

    /// Lifts a called function and appends the operands for its extras.
    fn extended(
        &mut self,
        body: &mut Body,
        function: u32,
        below: &str,
        layer: usize,
        operands: &mut Vec<NodeId>,
    ) -> Result<u32, String> {
        let (number, extras) = self.lifted(function, layer)?;
        for extra in extras {
            operands.push(match extra {
                Extra::Parameter(prefix, parameter) => body.extra(Extra::Parameter(format!("{below}{prefix}"), parameter)),
                Extra::Index => body.index(),
            });
        }
        Ok(number)
    }
}

/// Why an operator cannot stand in a kernel, for those that only exist around a walk.
fn outside(op: &Op) -> Option<String> {
    // State and index are what a kernel walks with.
    let outside = is_special(op) && !matches!(op, Op::State { .. } | Op::StepIndex);
    (outside || *op == Op::Gradient).then(|| format!("`{}` stands in the step", op.name()))
}
