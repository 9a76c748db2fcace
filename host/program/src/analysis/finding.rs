//! What was found of a stratum, for people: class, additive part, ranges, independent axes, formula.

use std::fmt;

use fwp_sdk::program::Program;

use super::Reason;
use super::derive::{Draft, DraftDecay, DraftSegment};
use super::fault::Obstacle;
use super::flatten::Flat;
use super::form::{Range, Side};
use super::show::{Formula, formula};
use super::strata::Group;
use super::symbolic::Symbolic;
use super::verify::{affine_in_numbers, independent_axes};

/// What the transition of a state is.
#[derive(Clone, Debug, PartialEq)]
pub enum Class {
    /// The state is added to.
    Identity,
    /// The state takes a value that does not depend on it.
    Replaced,
    /// Multiplied by one number.
    Scalar,
    /// Multiplied by one number a row or column of the state.
    Diagonal(Axis),
    /// One of the above (`diagonal`) plus a matrix of this rank, acting from a side.
    LowRank {
        /// What the low rank is added to.
        diagonal: Box<Class>,
        /// Its rank.
        rank: usize,
        /// The side from which it acts.
        side: Side,
    },
    /// A product of several of the above, first to last.
    Product(Vec<Class>),
    /// No chunk form: every element has a factor of its own.
    Elementwise,
    /// No chunk form: every row or column has a rank-one transition of its own.
    RowDependent,
    /// No chunk form: it acts on rows and on columns.
    TwoSided,
    /// No chunk form: a whole matrix multiplies the state, or is added to it.
    Dense,
    /// No chunk form: the state is a stack of matrices.
    Levels,
    /// No chunk form: affine only in several states together.
    Coupled,
    /// No chunk form: held for several steps.
    Held,
    /// No chunk form: affine on random numbers, but the proof does not reach it.
    Unproven,
    /// No chunk form: not affine in the state.
    NotAffine,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::Identity => f.write_str("identity"),
            Class::Replaced => f.write_str("replaced at every step"),
            Class::Scalar => f.write_str("scalar"),
            Class::Diagonal(Axis::Columns) => f.write_str("diagonal on columns"),
            Class::Diagonal(Axis::Rows) => f.write_str("diagonal on rows"),
            Class::LowRank { diagonal, rank, side } => {
                let side = if *side == Side::Right { "right" } else { "left" };
                write!(f, "{diagonal} plus rank {rank}, from the {side}")
            }
            Class::Product(parts) => {
                // Equal neighbours are said once.
                let mut runs: Vec<(usize, &Class)> = Vec::new();
                for part in parts {
                    match runs.last_mut() {
                        Some((n, last)) if *last == part => *n += 1,
                        _ => runs.push((1, part)),
                    }
                }
                let text = |(n, c): &(usize, &Class)| if *n == 1 { format!("({c})") } else { format!("{n} times ({c})") };
                write!(f, "product of {}", runs.iter().map(text).collect::<Vec<_>>().join(", then "))
            }
            Class::Elementwise => f.write_str("elementwise"),
            Class::RowDependent => f.write_str("rank one, another for every row"),
            Class::TwoSided => f.write_str("two-sided"),
            Class::Dense => f.write_str("dense"),
            Class::Levels => f.write_str("a stack of matrices"),
            Class::Coupled => f.write_str("affine over coupled states"),
            Class::Held => f.write_str("held for several steps"),
            Class::Unproven => f.write_str("affine in numbers, not in proof"),
            Class::NotAffine => f.write_str("not affine"),
        }
    }
}

/// What is added to a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Additive {
    /// Nothing.
    None,
    /// This many outer products (numbers for a scalar state, vectors for a vector state).
    Outer(usize),
    /// A matrix that is no sum of outer products.
    Dense,
    /// Not known.
    Unknown,
}

impl fmt::Display for Additive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Additive::None => f.write_str("nothing"),
            Additive::Outer(1) => f.write_str("1 outer product"),
            Additive::Outer(n) => write!(f, "{n} outer products"),
            Additive::Dense => f.write_str("a whole matrix"),
            Additive::Unknown => f.write_str("unknown"),
        }
    }
}

/// An axis of a matrix state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Its rows: the value side, as states are laid out.
    Rows,
    /// Its columns: the key side.
    Columns,
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Axis::Rows { "rows" } else { "columns" })
    }
}

/// How sure it is that an update is affine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affine {
    /// It follows from the step.
    Proven,
    /// On random numbers only.
    InNumbers,
    /// It is not.
    No,
    /// It could not be evaluated.
    Unknown,
}

/// What was found of a stratum.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The states, indices into the program's.
    pub states: Vec<u32>,
    /// Class of the transition.
    pub class: Class,
    /// Number of outer products added, all segments together.
    pub additive: Additive,
    /// Whether the update is affine in the states.
    pub affine: Affine,
    /// The update with the plugin's names, one equation a line; empty without a form.
    pub formula: Vec<String>,
    /// Range of every decay, by the name that the formula gives it.
    pub ranges: Vec<(String, Range)>,
    /// Axes of a matrix state along which it falls into independent parts (found on random numbers).
    pub independent: Vec<Axis>,
    /// What is in the way of a form.
    pub obstacle: Option<Reason>,
}

/// What is found of a group of states.
pub(super) fn finding(p: &Program, flat: &Flat, sym: &mut Symbolic<'_>, group: &Group) -> Finding {
    let states: Vec<u32> = group.states.iter().map(|s| *s as u32).collect();
    let axes = independent_axes(p, flat, &group.states, super::SEED).unwrap_or([false; 2]);
    let independent = [Axis::Rows, Axis::Columns].into_iter().zip(axes).filter(|(_, is)| *is).map(|(a, _)| a).collect();
    match &group.form {
        Ok(draft) => {
            let Formula { lines, ranges } = formula(p, sym, draft);
            let additive = draft.segments.iter().flat_map(|s| &s.terms).filter(|t| t.column.is_some()).count();
            let additive = if additive == 0 { Additive::None } else { Additive::Outer(additive) };
            let class = class(sym, draft);
            Finding { states, class, additive, affine: Affine::Proven, formula: lines, ranges, independent, obstacle: None }
        }
        Err(blocked) => {
            let numbers = affine_in_numbers(p, flat, &group.states, super::SEED);
            let class = match (blocked.obstacle, &numbers) {
                (Obstacle::Held, _) => Class::Held,
                (Obstacle::Elementwise, _) => Class::Elementwise,
                (Obstacle::RowDependent, _) => Class::RowDependent,
                (Obstacle::TwoSided, _) => Class::TwoSided,
                (Obstacle::Dense { .. }, Ok(true)) => Class::Dense,
                (Obstacle::Levels, Ok(true)) => Class::Levels,
                (_, Ok(true)) if group.states.len() > 1 => Class::Coupled,
                (_, Ok(true)) => Class::Unproven,
                _ => Class::NotAffine,
            };
            let affine = match (&class, &numbers) {
                (Class::Unproven | Class::Coupled, _) => Affine::InNumbers,
                (Class::NotAffine, Err(_)) => Affine::Unknown,
                (Class::NotAffine, _) => Affine::No,
                (Class::Held, Ok(true)) => Affine::InNumbers,
                (Class::Held, _) => Affine::Unknown,
                _ => Affine::Proven,
            };
            let additive = match blocked.obstacle {
                Obstacle::Dense { left: false, right: false } => Additive::Dense,
                _ => Additive::Unknown,
            };
            let obstacle = Some(Reason::of(p, blocked));
            Finding { states, class, additive, affine, formula: Vec::new(), ranges: Vec::new(), independent, obstacle }
        }
    }
}

/// The class of a form, in the plugin's orientation.
fn class(sym: &Symbolic<'_>, draft: &Draft) -> Class {
    let axis = |columns: bool| if columns == (draft.side == Side::Right) { Axis::Columns } else { Axis::Rows };
    let one = |s: &DraftSegment| {
        let diagonal = match s.decay {
            DraftDecay::One => Class::Identity,
            DraftDecay::Scalar(a) if sym.store.is_zero(a) => Class::Replaced,
            DraftDecay::Scalar(_) => Class::Scalar,
            DraftDecay::Columns(_) => Class::Diagonal(axis(true)),
            DraftDecay::Rows(_) => Class::Diagonal(axis(false)),
        };
        match s.terms.iter().filter(|t| t.erase.is_some()).count() {
            0 => diagonal,
            rank => Class::LowRank { diagonal: Box::new(diagonal), rank, side: draft.side },
        }
    };
    match &draft.segments[..] {
        [] => Class::Identity,
        [s] => one(s),
        several => Class::Product(several.iter().map(one).collect()),
    }
}
