//! Why a value has no place in a form.

use fwp_sdk::program::{Node, Span};

use super::store::States;

/// What kind of thing is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Not affine in the state, as far as the proof sees.
    NotAffine,
    /// Every element of a state has a factor of its own.
    Elementwise,
    /// Every row (or column) of a state has a rank-one transition of its own.
    RowDependent,
    /// It acts on rows and on columns.
    TwoSided,
    /// It multiplies by a whole matrix, or adds one.
    Dense {
        /// From the left.
        left: bool,
        /// From the right.
        right: bool,
    },
    /// The state is a stack of matrices.
    Levels,
    /// It is affine only together with other states.
    Coupled,
    /// A gradient stops there, which a form cannot say.
    Stopped,
    /// The state keeps its value for several steps.
    Held,
    /// It decays along an axis by what may be zero or negative: products of such decays cannot be taken as differences of logarithms.
    Signed,
    /// A state is read with a query that depends on another read of it.
    Round,
}

/// An obstacle before it has a place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub obstacle: Obstacle,
    pub why: String,
}

impl Fault {
    pub fn new(obstacle: Obstacle, why: &str) -> Fault {
        Fault { obstacle, why: why.to_string() }
    }
    pub fn not_affine(why: &str) -> Fault {
        Fault::new(Obstacle::NotAffine, why)
    }
}

/// An operation of the step, as the plugin's source has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Origin {
    /// Name of its operator.
    pub operator: &'static str,
    /// Where it is written.
    pub span: Span,
}

impl Origin {
    pub fn of(node: &Node) -> Origin {
        Origin { operator: node.op.name(), span: node.span }
    }
}

/// An obstacle at an operation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Blocked {
    pub obstacle: Obstacle,
    pub origin: Origin,
    pub why: String,
    /// States that the value depends on.
    pub states: States,
}
