//! Programs: typed data-flow graphs that describe a part.
//!
//! A program is a list of functions.
//! A function is a list of nodes in order: a node reads earlier nodes only, and a function calls earlier functions only, so no cycle can be written down.
//! The type of every node follows from its operator and operands ([`shape`]) and is never stored.

mod attributes;
pub mod bytes;
mod codec;
pub mod op;
pub mod shape;

pub use attributes::{MapRole, QueryScale, ReadAt};
pub use bytes::BytesError;
pub use codec::{FORMAT, MAX_BYTES};
pub use op::Op;

use std::fmt;

/// The kind of element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// Floating point; the precision is the host's choice.
    Float,
    /// 64-bit integer.
    Int,
    /// Truth value.
    Mask,
}

/// Type of a tensor, for one sample: batch, and heads outside of slow nets, are added by the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Kind of element.
    pub dtype: DType,
    /// The named sequence axis along which the value varies, if any.
    pub axis: Option<String>,
    /// Sizes of the value at one step; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A float tensor without a sequence axis.
    pub fn float(shape: &[usize]) -> Self {
        TensorType { dtype: DType::Float, axis: None, shape: shape.to_vec() }
    }
    /// An integer tensor without a sequence axis.
    pub fn int(shape: &[usize]) -> Self {
        TensorType { dtype: DType::Int, axis: None, shape: shape.to_vec() }
    }
    /// A mask without a sequence axis.
    pub fn mask(shape: &[usize]) -> Self {
        TensorType { dtype: DType::Mask, axis: None, shape: shape.to_vec() }
    }
    /// The same along a sequence axis.
    pub fn along(mut self, axis: &str) -> Self {
        self.axis = Some(axis.to_string());
        self
    }
    /// Number of elements at one step.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        if let Some(axis) = &self.axis {
            parts.insert(0, axis.clone());
        }
        let kind = match self.dtype {
            DType::Float => "",
            DType::Int => "int",
            DType::Mask => "mask",
        };
        write!(f, "{kind}[{}]", parts.join(", "))
    }
}

/// Type of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A tensor.
    Tensor(TensorType),
    /// Several values; `Op::Element` takes one.
    Tuple(Vec<Type>),
    /// The fast weights of the named slot.
    Memory(String),
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor(t) => write!(f, "{t}"),
            Type::Tuple(ts) => {
                // A hostile program may have thousands; a message must stay readable.
                let parts: Vec<String> = ts.iter().take(16).map(Type::to_string).collect();
                let dots = if ts.len() > 16 { ", ..." } else { "" };
                write!(f, "({}{dots})", parts.join(", "))
            }
            Type::Memory(slot) => write!(f, "memory({slot})"),
        }
    }
}

impl From<TensorType> for Type {
    fn from(t: TensorType) -> Type {
        Type::Tensor(t)
    }
}

/// Index of a node in its function.
pub type NodeId = u32;

/// A place in a plugin's source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Index into [`Program::files`].
    pub file: u32,
    /// Line, from 1; 0 when unknown.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is done.
    pub op: Op,
    /// To which earlier nodes.
    pub operands: Vec<NodeId>,
    /// Where the plugin's source says so.
    pub span: Span,
}

/// What a parameter is shared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One for every head and layer; the host adds a leading head axis.
    Head,
    /// One for every layer.
    Layer,
    /// One for the whole model.
    Model,
}

/// How a parameter gets its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Training {
    /// By gradient descent from its initial values.
    Trained {
        /// Whether weight decay applies.
        decay: bool,
    },
    /// It keeps its initial values.
    Constant,
    /// Drawn anew for every training batch from the batch's step; evaluation uses the first draw.
    Redrawn,
}

/// A parameter of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Name below the place where its function is used, such as `q_proj.weight`.
    pub name: String,
    /// Sizes, without the head axis of [`Scope::Head`].
    pub shape: Vec<usize>,
    /// What shares it.
    pub scope: Scope,
    /// How it gets its values.
    pub training: Training,
    /// The function without arguments that draws the initial values.
    pub init: u32,
}

/// A named argument of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    /// Name.
    pub name: String,
    /// Type.
    pub ty: Type,
}

/// A named result of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Name; in a step, `state.NAME` is the next value of a state and `extra.NAME` an extra output.
    pub name: String,
    /// The node.
    pub node: NodeId,
}

/// A function of a program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    /// Name, for people.
    pub name: String,
    /// Arguments.
    pub arguments: Vec<Argument>,
    /// Parameters of its own; those of called functions are theirs.
    pub parameters: Vec<Parameter>,
    /// Operations in order.
    pub nodes: Vec<Node>,
    /// Results.
    pub outputs: Vec<Output>,
}

impl Function {
    /// The node of the output with this name.
    pub fn output(&self, name: &str) -> Option<NodeId> {
        self.outputs.iter().find(|o| o.name == name).map(|o| o.node)
    }
}

/// The kinds of part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// How fast weights change at every step.
    UpdateRule,
    /// phi, applied to keys and queries.
    FeatureMap,
    /// What emits keys, values, queries and gates.
    SlowNet,
}

impl Kind {
    /// The kind's name in messages and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::UpdateRule => "update-rule",
            Kind::FeatureMap => "feature-map",
            Kind::SlowNet => "slow-net",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an input of an update rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// What is asked for; mapped by the feature map unless raw.
    Query,
    /// Where to write; mapped by the feature map unless raw.
    Key,
    /// What to write.
    Value,
    /// Anything else: write strengths, decays. The rule applies the activation.
    Gate,
}

/// A declared input of an update rule.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RuleInput {
    /// Name, unique within the rule.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Whether the feature map leaves it alone.
    pub raw: bool,
    /// How many a token; `None` is one, without an axis of its own.
    pub count: Option<usize>,
    /// Number of heads that carry their own, a divisor of the node's heads; `None` is all of them.
    pub heads: Option<usize>,
    /// Sizes of one of them, after the feature map.
    pub shape: Vec<usize>,
}

impl RuleInput {
    /// Sizes as the step sees them: the count, then the shape.
    pub fn full_shape(&self) -> Vec<usize> {
        self.count.iter().copied().chain(self.shape.iter().copied()).collect()
    }
    /// Whether the feature map is applied to it.
    pub fn mapped(&self) -> bool {
        !self.raw && matches!(self.role, Role::Query | Role::Key)
    }
}

/// Initial value of a state.
#[derive(Clone, Debug, PartialEq)]
pub enum StateInit {
    /// Zeros.
    Zeros,
    /// A constant.
    Constant(f64),
    /// The named parameter of the step, of the state's shape: a trained initial value.
    Parameter(String),
}

/// A state of an update rule.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Name.
    pub name: String,
    /// Sizes, for one head.
    pub shape: Vec<usize>,
    /// Value at the start and after a reset.
    pub init: StateInit,
    /// The state takes its next value only after every `held`-th step since the reset; 1 is at every step.
    pub held: usize,
}

/// Names of the functions that a host enters.
pub mod entry {
    /// The step of an update rule.
    pub const STEP: &str = "step";
    /// A second statement of the step that must agree with the first.
    pub const RESTATED: &str = "restated";
    /// A feature map applied to a key.
    pub const KEY: &str = "key";
    /// A feature map applied to a query.
    pub const QUERY: &str = "query";
    /// A slow net.
    pub const FORWARD: &str = "forward";
}

/// What the slow net must know of the rule in a slot.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SlotInterface {
    /// Name of the slot, the rule's name in the recipe; "main" for a single rule.
    pub name: String,
    /// Name of the update rule.
    pub rule: String,
    /// Number of heads.
    pub heads: usize,
    /// Sizes of keys before the feature map, and of values.
    pub key_raw: usize,
    /// Features of a key after the feature map.
    pub key: usize,
    /// Sizes of values.
    pub value: usize,
    /// The rule's inputs.
    pub inputs: Vec<RuleInput>,
    /// Sizes of the output, for one head.
    pub output: Vec<usize>,
    /// Extra outputs with their sizes, for one head.
    pub extras: Vec<(String, Vec<usize>)>,
}

impl SlotInterface {
    /// Sizes of an input as the slow net hands it over: heads, count, then the shape before the feature map.
    pub fn given_shape(&self, input: &RuleInput) -> Vec<usize> {
        let mut shape = input.full_shape();
        if input.mapped()
            && let Some(last) = shape.last_mut()
        {
            *last = self.key_raw;
        }
        shape.insert(0, input.heads.unwrap_or(self.heads));
        shape
    }
}

/// A description of a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Kind of part.
    pub kind: Kind,
    /// The part's name, such as `delta`.
    pub name: String,
    /// The resolved configuration as JSON.
    pub config: String,
    /// Documentation of the part: its equation and symbols.
    pub doc: String,
    /// Source of the part: paper and equation.
    pub citation: String,
    /// Local objective of an update rule, or why there is none; empty for other kinds.
    pub objective: String,
    /// Declared inputs of an update rule.
    pub inputs: Vec<RuleInput>,
    /// States of an update rule.
    pub states: Vec<State>,
    /// Slots that a slow net's fast-weight nodes refer to.
    pub slots: Vec<SlotInterface>,
    /// Functions; callees before callers.
    pub functions: Vec<Function>,
    /// Entry points: name and index of the function.
    pub entries: Vec<(String, u32)>,
    /// Source files that spans refer to.
    pub files: Vec<String>,
}

impl Program {
    /// The function entered under this name.
    pub fn entry(&self, name: &str) -> Option<&Function> {
        let (_, index) = self.entries.iter().find(|(n, _)| n == name)?;
        self.functions.get(*index as usize)
    }

    /// `file:line:column` of a span, or an empty text where it is unknown.
    pub fn place(&self, span: Span) -> String {
        match self.files.get(span.file as usize) {
            Some(file) if span.line > 0 => format!("{file}:{}:{}", span.line, span.column),
            _ => String::new(),
        }
    }
}
