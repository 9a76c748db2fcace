//! Expressions, each stored once.
//!
//! What a step computes from its arguments and from reads of its states is kept here; equal content is one expression.
//! How expressions are made is the business of `normal`.

use std::cmp::Ordering;
use std::collections::HashMap;

use fwp_sdk::program::shape::{self, Context};
use fwp_sdk::program::{Argument, Op, Parameter, Program, Span, TensorType, Type};

use super::fault::{Fault, Origin};
use super::linear::Linear;
use super::range::Bounds;

/// An expression of a [`Store`].
pub(super) type Id = usize;

/// A set of states, a bit each.
pub(super) type States = u64;

/// Most states of a rule that is analysed: one bit each in [`States`].
pub(super) const MAX_STATES: usize = 64;

/// A value that is read of a state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Read {
    /// The state.
    pub state: usize,
    /// The boundary at which it is read: 0 is before the step.
    pub after: usize,
    /// What it is multiplied by.
    pub query: Ask,
}

/// What a read multiplies the state by, in the orientation of the plugin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ask {
    /// S q; for a vector state its inner product with q.
    Right(Id),
    /// S^T q
    Left(Id),
    /// A vector or scalar state itself.
    Whole,
}

/// How an expression is made.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// An operator.
    Op(Op, Vec<Id>),
    /// constant + sum of factor * expression
    Sum(f64, Vec<(f64, Id)>),
    /// constant * product of the first list / product of the second
    Product(f64, Vec<Id>, Vec<Id>),
    /// A read of a state.
    Read(Read),
}

struct Entry {
    kind: Kind,
    ty: TensorType,
    /// States that it depends on, through reads.
    states: States,
    /// Rank in the order of operands: the same for one value in every spelling.
    rank: (bool, u8, u64, u64),
    /// Number of operations, as far as is worth counting.
    weight: u64,
    hash: u64,
    origin: Origin,
}

/// Answers about expressions.
#[derive(Default)]
pub(super) struct Memo {
    pub linear: HashMap<(Id, usize), Result<Linear, (Fault, Id)>>,
    pub logarithm: HashMap<Id, Option<Id>>,
    pub bounds: HashMap<Id, Bounds>,
}

/// The expressions of one step.
pub(super) struct Store<'a> {
    program: &'a Program,
    arguments: &'a [Argument],
    parameters: &'a [Parameter],
    entries: Vec<Entry>,
    known: HashMap<u64, Vec<Id>>,
    /// What is known of expressions already: parts of one may be parts of many.
    pub memo: Memo,
    /// The operation of the step that what is made next belongs to.
    pub origin: Origin,
    /// For every state the boundary after its last segment.
    pub last: Vec<usize>,
}

impl<'a> Store<'a> {
    pub fn new(program: &'a Program, arguments: &'a [Argument], parameters: &'a [Parameter]) -> Store<'a> {
        Store {
            program,
            arguments,
            parameters,
            entries: Vec::new(),
            known: HashMap::new(),
            memo: Memo::default(),
            origin: Origin { operator: "state", span: Span::default() },
            last: Vec::new(),
        }
    }

    /// Name of a parameter.
    pub fn parameter(&self, index: u32) -> &str {
        self.parameters.get(index as usize).map_or("?", |q| &q.name)
    }
    /// Number of expressions.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    pub fn kind(&self, id: Id) -> &Kind {
        &self.entries[id].kind
    }
    pub fn ty(&self, id: Id) -> &TensorType {
        &self.entries[id].ty
    }
    pub fn shape(&self, id: Id) -> &[usize] {
        &self.entries[id].ty.shape
    }
    pub fn is_scalar(&self, id: Id) -> bool {
        self.shape(id).is_empty()
    }
    /// The states whose reads it depends on.
    pub fn states(&self, id: Id) -> States {
        self.entries[id].states
    }
    pub fn depends(&self, id: Id, state: usize) -> bool {
        self.states(id) & (1 << state) != 0
    }
    /// The operation of the step that it comes from: the normal form may be another one.
    pub fn origin_of(&self, id: Id) -> Origin {
        self.entries[id].origin
    }
    /// Makes expressions of the parts of one: they come from the same operation.
    pub fn within<T>(&mut self, id: Id, make: impl FnOnce(&mut Self) -> T) -> T {
        let own = self.origin_of(id);
        let outside = std::mem::replace(&mut self.origin, own);
        let made = make(self);
        self.origin = outside;
        made
    }
    /// The number that it is, if it is one.
    pub fn number(&self, id: Id) -> Option<f64> {
        match self.kind(id) {
            Kind::Op(Op::Constant { value }, _) => Some(*value),
            _ => None,
        }
    }
    pub fn is_number(&self, id: Id, value: f64) -> bool {
        self.number(id) == Some(value)
    }
    /// The order of operands.
    pub fn order(&self, a: Id, b: Id) -> Ordering {
        self.entries[a].rank.cmp(&self.entries[b].rank)
    }
    /// What it is made of.
    pub fn operands(&self, id: Id) -> Vec<Id> {
        match self.kind(id) {
            Kind::Op(_, operands) => operands.clone(),
            Kind::Sum(_, terms) => terms.iter().map(|t| t.1).collect(),
            Kind::Product(_, over, under) => over.iter().chain(under).copied().collect(),
            Kind::Read(r) => match r.query {
                Ask::Right(q) | Ask::Left(q) => vec![q],
                Ask::Whole => Vec::new(),
            },
        }
    }

    /// Stores an expression as it is.
    pub fn intern(&mut self, kind: Kind, ty: TensorType) -> Id {
        let hash = self.hash(&kind);
        if let Some(found) = self.known.get(&hash).and_then(|ids| ids.iter().find(|i| self.entries[**i].kind == kind)) {
            return *found;
        }
        let id = self.entries.len();
        let (class, index) = match &kind {
            Kind::Op(Op::Argument { index }, _) => (0, u64::from(*index)),
            Kind::Op(Op::Parameter { index }, _) => (1, u64::from(*index)),
            _ => (2, 0),
        };
        self.entries.push(Entry {
            kind,
            states: 0,
            rank: (!ty.shape.is_empty(), class, index, hash),
            weight: 0,
            hash,
            origin: self.origin,
            ty,
        });
        let operands = self.operands(id);
        let mut states = operands.iter().fold(0, |all, o| all | self.states(*o));
        if let Kind::Read(r) = self.kind(id) {
            states |= 1 << r.state;
        }
        let weight = operands.iter().fold(1, |sum: u64, o| sum.saturating_add(self.entries[*o].weight));
        let entry = &mut self.entries[id];
        entry.states = states;
        entry.weight = weight;
        if class == 2 {
            entry.rank.2 = weight;
        }
        self.known.entry(hash).or_default().push(id);
        id
    }

    /// A hash of the content, the same on every machine (FNV-1a).
    fn hash(&self, kind: &Kind) -> u64 {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut eat = |bytes: &[u8]| {
            for b in bytes {
                hash = (hash ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        let of = |id: &Id| self.entries[*id].hash.to_le_bytes();
        match kind {
            Kind::Op(op, operands) => {
                eat(format!("{op:?}").as_bytes());
                operands.iter().for_each(|o| eat(&of(o)));
            }
            Kind::Sum(constant, terms) => {
                eat(b"+");
                eat(&constant.to_bits().to_le_bytes());
                terms.iter().for_each(|(c, t)| {
                    eat(&c.to_bits().to_le_bytes());
                    eat(&of(t));
                });
            }
            Kind::Product(constant, over, under) => {
                eat(b"*");
                eat(&constant.to_bits().to_le_bytes());
                over.iter().for_each(|o| eat(&of(o)));
                eat(b"/");
                under.iter().for_each(|o| eat(&of(o)));
            }
            Kind::Read(r) => {
                eat(format!("read {} {} {:?}", r.state, r.after, std::mem::discriminant(&r.query)).as_bytes());
                if let Ask::Right(q) | Ask::Left(q) = &r.query {
                    eat(&of(q));
                }
            }
        }
        hash
    }

    /// A read of a state; `size` is the shape of the result.
    pub fn read(&mut self, read: Read, size: &[usize]) -> Id {
        self.intern(Kind::Read(read), TensorType::float(size))
    }

    /// The type of an operator's result.
    ///
    /// # Errors
    /// What the shape rules refuse.
    pub fn infer(&self, op: &Op, x: &[Id]) -> Result<TensorType, String> {
        let types: Vec<Type> = x.iter().map(|i| Type::Tensor(self.ty(*i).clone())).collect();
        let types: Vec<&Type> = types.iter().collect();
        let p = self.program;
        let cx = Context {
            functions: &[],
            arguments: self.arguments,
            parameters: self.parameters,
            states: &p.states,
            slots: &p.slots,
        };
        match shape::infer(op, &types, &cx).map_err(|e| format!("`{}`: {e}", op.name()))? {
            Type::Tensor(t) => Ok(t),
            other => Err(format!("`{}` gives {other}", op.name())),
        }
    }
}
