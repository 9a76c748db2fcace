//! The canonical form of a step whose updates are affine in its states, as data.
//!
//! A state is a matrix S [d_v, d_k]; a vector state is a matrix of one row, a scalar state one of one element.
//! What of a step needs no state is a function that is evaluated for all steps at once and gives the *coefficients*;
//! the form says which coefficient plays which part.
//! One step takes S through its segments in order:
//!
//! ```text
//! S <- decay(S) + sum over terms (u + S p) w^T        S on the right of the arrow is the state before the segment
//! ```
//!
//! A rule that acts from the left (Oja) is the same with rows and columns exchanged: [`Side::Left`] says that the form is one of S^T [d_k, d_v].

use fwp_sdk::program::Function;

/// A coefficient: the index of an output of [`Form::coefficients`].
pub type Coefficient = usize;

/// What the host found: the strata of a step, and what remains for all steps at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Canonical {
    /// Groups of states in the order in which they can be computed; a later one may use reads of earlier ones.
    pub strata: Vec<Stratum>,
    /// The outputs of the step (`output`, `extra.*`): arguments are those of the step, then one for every read of every stratum, by name, in order.
    /// It contains no state and is evaluated for all steps at once.
    pub rest: Function,
}

/// One group of states.
#[derive(Clone, Debug, PartialEq)]
pub enum Stratum {
    /// A state whose update is affine, with a chunkwise form.
    Chunk(Form),
    /// States that must be walked.
    Walk(Walk),
}

/// States without a chunkwise form that other strata use: walked step by step.
#[derive(Clone, Debug, PartialEq)]
pub struct Walk {
    /// The states, indices into the program's.
    pub states: Vec<u32>,
    /// Arguments as for [`Form::coefficients`]; results: the reads, then `state.NAME` for every state of the group.
    /// `State` nodes carry the program's numbers.
    pub step: Function,
    /// Names of the values that later strata and the rest use, results of `step` in this order.
    pub reads: Vec<String>,
    /// Why there is no chunkwise form, with the operation in the way.
    pub why: String,
}

/// On which side of the state the update acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// S <- S A: keys are columns.
    Right,
    /// S <- A S: everything below speaks of S^T.
    Left,
}

/// The affine form of one state.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// The state, an index into the program's.
    pub state: u32,
    /// Side on which it acts.
    pub side: Side,
    /// Rows and columns of the matrix that the form speaks of: [d_v, d_k] for [`Side::Right`], [d_k, d_v] for [`Side::Left`];
    /// [1, n] for a vector and [1, 1] for a scalar.
    pub size: [usize; 2],
    /// The coefficients: arguments are those of the step, then one for every read of every earlier stratum, by name, in order.
    pub coefficients: Function,
    /// What a step does to the state, in order.
    pub segments: Vec<Segment>,
    /// What the step reads of the state, in order.
    pub reads: Vec<StateRead>,
}

/// One affine map of a state.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// What the state is multiplied by, element by element.
    pub decay: Decay,
    /// Rank-one parts, all reading the state before the segment.
    pub terms: Vec<Term>,
}

/// How a state decays.
#[derive(Clone, Debug, PartialEq)]
pub enum Decay {
    /// Not at all.
    One,
    /// By one number.
    Scalar(Factor),
    /// By one number a column: S Diag(a), a [columns].
    Columns(Factor),
    /// By one number a row: Diag(a) S, a [rows].
    Rows(Factor),
}

/// A decay and what is known of its range.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// The factor, or its logarithm where `range` is [`Range::Log`].
    pub coefficient: Coefficient,
    /// What values it takes.
    pub range: Range,
}

/// What values a decay takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Positive by construction, and its logarithm is known exactly (exp, sigmoid, a power of either): the coefficient is the logarithm.
    Log,
    /// Positive; the logarithm is taken of the value.
    Positive,
    /// Of either sign, or possibly zero: never goes through a logarithm.
    Signed,
}

/// (u + S p) w^T
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// u [rows]; none is 0.
    pub column: Option<Coefficient>,
    /// p [columns]; none is 0.
    pub erase: Option<Coefficient>,
    /// w [columns].
    pub row: Coefficient,
}

/// A linear read of a state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateRead {
    /// Its name among the arguments of later strata and of the rest.
    pub name: String,
    /// Number of segments applied before it is read; 0 is the state before the step.
    pub after: usize,
    /// What it is multiplied by.
    pub query: Query,
    /// The shape that the step gives the result: as computed, or without axes of size 1.
    pub shape: Vec<usize>,
}

/// What a read multiplies the state by.
#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    /// S q: q [columns], result [rows].
    Right(Coefficient),
    /// S^T q: q [rows], result [columns].
    Left(Coefficient),
    /// The state itself; only for states of one row.
    Whole,
}
