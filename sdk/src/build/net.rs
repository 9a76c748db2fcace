//! Slow nets.

use std::cell::RefCell;
use std::panic::Location;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::program::{DType, Op, Program, QueryScale, ReadAt, Scope, SlotInterface, TensorType, Training, Type, entry};

use super::expr::Expr;
use super::graph::{Graph, Shared, constants, mistake};
use super::init::Init;
use super::tidy::tidy;
use crate::part::NEEDS_FAST_WEIGHTS;

/// What a task's input holds at every step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// An integer below `vocab`.
    Symbol {
        /// Number of symbols.
        vocab: usize,
    },
    /// A float vector of `dim`.
    Vector {
        /// Size.
        dim: usize,
    },
}

/// An input or output of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Name, such as `tokens`.
    pub name: String,
    /// The sequence axis along which it varies.
    pub axis: Option<String>,
    /// What it holds.
    pub kind: PortKind,
}

/// What a slow net is given and must give.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskIo {
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs that the loss reads.
    pub outputs: Vec<Port>,
    /// Longest sequence.
    pub max_len: usize,
}

impl TaskIo {
    /// The input with this name; a description ends with a message where there is none.
    #[track_caller]
    pub fn input(&self, name: &str) -> &Port {
        port("input", &self.inputs, name)
    }
    /// The output with this name; a description ends with a message where there is none.
    #[track_caller]
    pub fn output(&self, name: &str) -> &Port {
        port("output", &self.outputs, name)
    }
}

#[track_caller]
fn port<'a>(what: &str, ports: &'a [Port], name: &str) -> &'a Port {
    if let Some(port) = ports.iter().find(|p| p.name == name) {
        return port;
    }
    let names: Vec<&str> = ports.iter().map(|p| p.name.as_str()).collect();
    mistake(format!("the task has no {what} `{name}`; it has {}. This slow net does not serve this task", names.join(", ")))
}

impl Port {
    /// Number of symbols; a description ends with a message for vectors.
    #[track_caller]
    pub fn vocab(&self) -> usize {
        match self.kind {
            PortKind::Symbol { vocab } => vocab,
            PortKind::Vector { .. } => mistake(format!("`{}` holds vectors, not symbols", self.name)),
        }
    }
    /// Size of the vector; a description ends with a message for symbols.
    #[track_caller]
    pub fn dim(&self) -> usize {
        match self.kind {
            PortKind::Vector { dim } => dim,
            PortKind::Symbol { .. } => mistake(format!("`{}` holds symbols, not vectors", self.name)),
        }
    }
    fn ty(&self) -> TensorType {
        let (dtype, shape) = match self.kind {
            PortKind::Symbol { .. } => (DType::Int, vec![]),
            PortKind::Vector { dim } => (DType::Float, vec![dim]),
        };
        TensorType { dtype, axis: self.axis.clone(), shape }
    }
}

/// The fast weights that a slow net wants in a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Number of heads.
    pub heads: usize,
    /// Features of a raw key.
    pub key: usize,
    /// Features of a value.
    pub value: usize,
}

/// What the host tells a slow net beside its configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetContext {
    pub task: TaskIo,
    pub slots: Vec<SlotInterface>,
    /// For every layer the slot that it uses; layers beyond the list use the last slot without layers of its own.
    pub layers: Vec<(String, Option<Vec<usize>>)>,
}

/// A slow net under description.
#[derive(Clone)]
pub struct Net {
    graph: Graph,
    context: Rc<NetContext>,
    /// Name of the block, cell or repetition that this is the body of; empty for the net itself.
    body_of: String,
}

constants!(Net);

impl Net {
    /// What the task gives and wants.
    pub fn task(&self) -> &TaskIo {
        &self.context.task
    }

    #[track_caller]
    fn outside(&self, what: &str, name: &str) {
        if !self.body_of.is_empty() {
            mistake(format!("the task's {what} `{name}` is used outside of `{}`: hand its value over", self.body_of));
        }
    }

    /// A task's input along its axis: integers [] for symbols, floats `[dim]` for vectors.
    #[track_caller]
    pub fn input(&self, name: &str) -> Expr {
        self.outside("input", name);
        let ty = self.context.task.input(name).ty();
        let existing = self.graph.0.borrow().function.arguments.iter().position(|a| a.name == name);
        match existing {
            Some(index) => self.graph.node(Op::Argument { index: index as u32 }, &[]),
            None => self.graph.argument(name, ty.into()),
        }
    }

    /// Sets a task's output.
    #[track_caller]
    pub fn output(&self, name: &str, value: &Expr) {
        self.outside("output", name);
        let wanted = self.context.task.output(name).ty();
        if value.tensor_type() != wanted {
            mistake(format!("the task's output `{name}` is {wanted}, the value is {}", value.ty()));
        }
        self.graph.output(name, value);
    }

    /// A trained parameter; weight decay applies to matrices and not to vectors.
    ///
    /// The same name again is the same parameter, which must be declared alike.
    #[track_caller]
    pub fn parameter(&self, name: &str, shape: &[usize], init: Init) -> Expr {
        let training = Training::Trained { decay: shape.len() >= 2 };
        self.graph.parameter(name, shape, Scope::Layer, training, &init)
    }

    /// A trained parameter that all layers share, also inside of [`Net::blocks`].
    #[track_caller]
    pub fn shared_parameter(&self, name: &str, shape: &[usize], init: Init) -> Expr {
        let training = Training::Trained { decay: shape.len() >= 2 };
        self.graph.parameter(name, shape, Scope::Model, training, &init)
    }

    /// A constant that is drawn once and never trained.
    #[track_caller]
    pub fn fixed(&self, name: &str, shape: &[usize], init: Init) -> Expr {
        self.graph.parameter(name, shape, Scope::Layer, Training::Constant, &init)
    }

    /// Index of the current repetition of the innermost [`Net::blocks`].
    #[track_caller]
    pub fn layer(&self) -> Expr {
        self.graph.node(Op::LayerIndex, &[])
    }

    /// Trained vectors of `dim` for symbols below `vocab`: parameter `NAME.weight` `[vocab, dim]`.
    #[track_caller]
    pub fn embedding(&self, name: &str, symbols: &Expr, vocab: usize, dim: usize, init: Init) -> Expr {
        let table = self.parameter(&format!("{name}.weight"), &[vocab, dim], init);
        self.graph.node(Op::Gather, &[&table, symbols])
    }

    /// W x: parameter `NAME.weight` `[out, in]`.
    #[track_caller]
    pub fn linear(&self, name: &str, x: &Expr, out: usize, init: Init) -> Expr {
        let weight = self.parameter(&format!("{name}.weight"), &[out, features(x)], init);
        self.graph.node(Op::MatVec, &[&weight, x])
    }

    /// W x + b: parameters `NAME.weight` `[out, in]` and `NAME.bias` `[out]`.
    #[track_caller]
    pub fn affine(&self, name: &str, x: &Expr, out: usize, weight: Init, bias: Init) -> Expr {
        let y = self.linear(name, x, out, weight);
        let bias = self.parameter(&format!("{name}.bias"), &[out], bias);
        self.graph.node(Op::Add, &[&y, &bias])
    }

    /// Root-mean-square norm with a trained gain `NAME.weight` over the last axis.
    #[track_caller]
    pub fn rms_norm(&self, name: &str, x: &Expr, eps: f64) -> Expr {
        let y = self.graph.node(Op::RmsNorm { eps }, &[x]);
        self.gain(name, &y)
    }

    /// Layer norm with a trained gain `NAME.weight` and bias `NAME.bias` over the last axis.
    #[track_caller]
    pub fn layer_norm(&self, name: &str, x: &Expr, eps: f64) -> Expr {
        let y = self.graph.node(Op::LayerNorm { eps }, &[x]);
        let y = self.gain(name, &y);
        let bias = self.parameter(&format!("{name}.bias"), &[features(x)], Init::zeros());
        let bias = self.like(&bias, x);
        self.graph.node(Op::Add, &[&y, &bias])
    }

    #[track_caller]
    fn gain(&self, name: &str, y: &Expr) -> Expr {
        let gain = self.parameter(&format!("{name}.weight"), &[features(y)], Init::ones());
        let gain = self.like(&gain, y);
        self.graph.node(Op::Mul, &[y, &gain])
    }

    /// A vector repeated over the leading axes of `x`.
    #[track_caller]
    fn like(&self, vector: &Expr, x: &Expr) -> Expr {
        let shape = x.shape();
        let mut vector = vector.clone();
        for size in shape[..shape.len() - 1].iter().rev() {
            vector = self.graph.node(Op::Expand { axis: 0, size: *size }, &[&vector]);
        }
        vector
    }

    /// Depthwise causal convolution of `width` steps: parameter `NAME.weight` `[features, width]`.
    #[track_caller]
    pub fn causal_conv(&self, name: &str, x: &Expr, width: usize, init: Init) -> Expr {
        let kernel = self.parameter(&format!("{name}.weight"), &[features(x), width], init);
        self.graph.node(Op::CausalConv, &[x, &kernel])
    }

    /// Softmax attention of queries `[heads, d]` on keys `[groups, d]` and values `[groups, e]`; `window` 0 is unbounded.
    #[track_caller]
    pub fn attention(&self, q: &Expr, k: &Expr, v: &Expr, scale: f64, causal: bool, window: usize) -> Expr {
        self.graph.node(Op::Attention { scale, causal, window }, &[q, k, v])
    }

    /// As [`Net::attention`], causal, where a step sees only steps of its own `part`, an integer [] along the axis of the others.
    #[track_caller]
    pub fn attention_within(&self, q: &Expr, k: &Expr, v: &Expr, scale: f64, window: usize, part: &Expr) -> Expr {
        self.graph.node(Op::Attention { scale, causal: true, window }, &[q, k, v, part])
    }

    /// The slot with this name.
    #[track_caller]
    pub fn slot(&self, name: &str) -> SlotInterface {
        let slots = &self.context.slots;
        if let Some(slot) = slots.iter().find(|s| s.name == name) {
            return slot.clone();
        }
        if slots.is_empty() {
            mistake(NEEDS_FAST_WEIGHTS);
        }
        let names: Vec<&str> = slots.iter().map(|s| s.name.as_str()).collect();
        mistake(format!("there is no fast-weight slot `{name}`; the recipe has {}", names.join(", ")))
    }

    /// The slot of a layer: the one that lists it, else the first that lists no layers.
    #[track_caller]
    pub fn slot_of_layer(&self, layer: usize) -> SlotInterface {
        let layers = &self.context.layers;
        let listed = layers.iter().find(|(_, l)| l.as_ref().is_some_and(|l| l.contains(&layer)));
        if layers.is_empty() {
            mistake(NEEDS_FAST_WEIGHTS);
        }
        match listed.or_else(|| layers.iter().find(|(_, l)| l.is_none())) {
            Some((name, _)) => self.slot(name),
            None => mistake(format!("no update rule of the recipe covers layer {layer}")),
        }
    }

    /// Feature map and update rule of a slot along the inputs' axis: the output `[heads, ...]`, then the extra outputs.
    ///
    /// `name` names the rule's parameters; `scale` says where the factor key_dim^-1/2 goes.
    #[track_caller]
    pub fn fast_weights(&self, name: &str, slot: &SlotInterface, scale: QueryScale, inputs: &[(&str, &Expr)]) -> Vec<Expr> {
        self.fast_weights_reading(name, slot, scale, ReadAt::After, inputs)
    }

    /// As [`Net::fast_weights`], reading the state that `read` names.
    #[track_caller]
    pub fn fast_weights_reading(
        &self,
        name: &str,
        slot: &SlotInterface,
        scale: QueryScale,
        read: ReadAt,
        inputs: &[(&str, &Expr)],
    ) -> Vec<Expr> {
        let (names, operands) = unzip(inputs);
        let op = Op::FastWeights { slot: slot.name.clone(), name: name.into(), inputs: names, scale, read };
        let mut parts = self.graph.node(op, &operands).elements();
        parts.pop();
        parts
    }

    /// The initial memory of a slot.
    #[track_caller]
    pub fn memory(&self, name: &str, slot: &SlotInterface) -> Expr {
        self.graph.node(Op::MemoryInit { slot: slot.name.clone(), name: name.into() }, &[])
    }

    /// The memory after writing along the inputs' axis, or once where they have none.
    #[track_caller]
    pub fn write(&self, name: &str, memory: &Expr, inputs: &[(&str, &Expr)]) -> Expr {
        let (names, mut operands) = unzip(inputs);
        operands.insert(0, memory);
        let op = Op::FastWrite { slot: slot_of(memory), name: name.into(), inputs: names };
        self.graph.node(op, &operands)
    }

    /// What the memory answers, for every step of the inputs' axis: the output, then the extra outputs.
    #[track_caller]
    pub fn read(&self, name: &str, memory: &Expr, scale: QueryScale, inputs: &[(&str, &Expr)]) -> Vec<Expr> {
        let (names, mut operands) = unzip(inputs);
        operands.insert(0, memory);
        let op = Op::FastRead { slot: slot_of(memory), name: name.into(), inputs: names, scale };
        self.graph.node(op, &operands).elements()
    }

    /// The body of a block or cell.
    fn body(&self, name: &str, graph: Graph) -> Net {
        Net { graph, context: self.context.clone(), body_of: name.into() }
    }

    /// `count` blocks one after another, each with parameters of its own named `NAME.LAYER`, layers counting from `first`.
    ///
    /// `body` takes and returns the carried values.
    #[track_caller]
    pub fn blocks(
        &self,
        name: &str,
        first: usize,
        count: usize,
        carried: &[&Expr],
        body: impl FnOnce(&Net, &[Expr]) -> Vec<Expr>,
    ) -> Vec<Expr> {
        let inner = self.body(name, Graph::new(name, &self.graph.shared()));
        let arguments = inner.graph.arguments_like(Location::caller(), "x", carried);
        for (i, result) in body(&inner, &arguments).iter().enumerate() {
            inner.graph.output(&format!("x{i}"), result);
        }
        let op = Op::Blocks { function: inner.graph.finish(), name: name.into(), count, carried: carried.len(), first };
        self.graph.node(op, carried).elements()
    }

    /// `count` repetitions of `body` with the same parameters, named under `name`.
    ///
    /// `body` maps (carried values, values of `with`) to the new carried values.
    #[track_caller]
    pub fn repeat(
        &self,
        name: &str,
        count: usize,
        carried: &[&Expr],
        with: &[&Expr],
        body: impl FnOnce(&Net, &[Expr], &[Expr]) -> Vec<Expr>,
    ) -> Vec<Expr> {
        self.graph
            .repeat(name, name, count, carried, with, |graph, carried, with| body(&self.body(name, graph.clone()), carried, with))
    }

    /// A recurrent cell along an axis: `body` maps (states, step inputs) to (new states, step outputs).
    ///
    /// Gives the final states and the outputs along the axis.
    #[track_caller]
    pub fn recurrent(
        &self,
        name: &str,
        states: &[&Expr],
        inputs: &[&Expr],
        body: impl FnOnce(&Net, &[Expr], &[Expr]) -> (Vec<Expr>, Vec<Expr>),
    ) -> (Vec<Expr>, Vec<Expr>) {
        let inner = self.body(name, Graph::new(name, &self.graph.shared()));
        let inner_states = inner.graph.arguments_like(Location::caller(), "state", states);
        let mut inner_inputs = Vec::new();
        for (i, v) in inputs.iter().enumerate() {
            let ty = TensorType { axis: None, ..v.tensor_type() };
            inner_inputs.push(inner.graph.argument(&format!("input{i}"), Type::Tensor(ty)));
        }
        let (new_states, outputs) = body(&inner, &inner_states, &inner_inputs);
        for (i, s) in new_states.iter().enumerate() {
            inner.graph.output(&format!("state{i}"), s);
        }
        for (i, o) in outputs.iter().enumerate() {
            inner.graph.output(&format!("output{i}"), o);
        }
        let op = Op::Scan { function: inner.graph.finish(), name: name.into(), states: states.len() };
        let operands: Vec<&Expr> = states.iter().chain(inputs).copied().collect();
        let mut all = self.graph.node(op, &operands).elements();
        let outputs = all.split_off(states.len());
        (all, outputs)
    }
}

#[track_caller]
fn features(x: &Expr) -> usize {
    match x.shape().last() {
        Some(n) => *n,
        None => mistake("expected a vector, got a scalar"),
    }
}

#[track_caller]
fn slot_of(memory: &Expr) -> String {
    match memory.ty() {
        Type::Memory(slot) => slot,
        other => mistake(format!("expected a memory, got {other}")),
    }
}

fn unzip<'a>(inputs: &[(&str, &'a Expr)]) -> (Vec<String>, Vec<&'a Expr>) {
    inputs.iter().map(|(n, e)| (n.to_string(), *e)).unzip()
}

/// Builds the program of a slow net.
pub(crate) fn build_net(context: NetContext, forward: &dyn Fn(&mut Net), mut program: Program) -> Result<Program, String> {
    let shared = Rc::new(RefCell::new(Shared { slots: context.slots.clone(), ..Shared::default() }));
    let context = Rc::new(context);
    let mut net = Net { graph: Graph::new(entry::FORWARD, &shared), context: context.clone(), body_of: String::new() };
    forward(&mut net);
    for port in &context.task.outputs {
        if net.graph.0.borrow().function.output(&port.name).is_none() {
            return Err(format!("the task's output `{}` is never set", port.name));
        }
    }
    let index = net.graph.clone().finish();
    drop(net);
    program.entries.push((entry::FORWARD.into(), index));
    program.slots = context.slots.clone();
    Ok(tidy(program, shared.take()))
}
