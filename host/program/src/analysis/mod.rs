//! What the host can prove about an update rule.
//!
//! From the step alone this module derives whether the update of every state is affine in it, and in which form,
//! so that the step can be computed for whole chunks of a sequence at once.
//!
//! | module | does |
//! |---|---|
//! | `flatten` | the step as one function without calls, loops or gradients |
//! | `store` | expressions, each stored once |
//! | `normal` | their normal form, which does not depend on how they were written |
//! | `matrix` | matrices in parts: scaled states, outer products, diagonals |
//! | `symbolic` | carries the step out on expressions and matrices |
//! | `segments` | cuts a step where its parts must not be multiplied out |
//! | `linear` | takes an expression apart into multiples of reads |
//! | `derive` | the form of one state, or the operation in the way |
//! | `range` | what values a decay takes, and its exact logarithm |
//! | `strata` | the order of states, and what each reads of the others |
//! | `emit` | expressions as functions |
//! | `verify` | form against step on random numbers |
//! | `finding` | what was found, for people |
//! | [`form`] | the result |
//!
//! # Design
//!
//! A proof here is a derivation: what has no place in the form stops it, and the operation is named with its place in the plugin's source.
//! Every form is compared with the step on random float64 numbers when it is made, so a mistake in the derivation costs speed, never a wrong result.
//! Nothing is guessed from names or from the shapes of tensors: with d_k = d_v the sides are as far apart as otherwise.

mod back;
mod derive;
mod emit;
mod fault;
mod finding;
pub(crate) mod flatten;
pub mod form;
mod linear;
mod matrix;
mod normal;
mod range;
mod segments;
mod show;
mod store;
mod strata;
mod symbolic;
mod verify;

use std::fmt;

use fwp_sdk::program::{Op, Program};

use crate::error::{CheckError, Problem, part};
use crate::schedule::{When, schedule};

pub use back::{BackRead, WalkedBack, walked_back};
pub use fault::Obstacle;
pub use finding::{Additive, Affine, Axis, Class, Finding};
pub use form::*;

use fault::Blocked;

/// What was found of a rule.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// Every stratum in an order in which they can be computed.
    pub findings: Vec<Finding>,
    /// What the step reads of its states, as formulas with the plugin's names.
    pub reads: Vec<String>,
    /// The form that the chunkwise executor takes, or what is in the way.
    pub canonical: Result<Canonical, Reason>,
    /// Operations of the step that are computed once or for all steps at once, at every step, and for all steps at once afterwards.
    pub hoisted: [usize; 3],
}

/// Why a rule has no canonical form.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// An operation of the step is in the way.
    Operation {
        /// The part, such as "update-rule `delta`".
        part: String,
        /// `file:line:column` in the plugin's source; empty where it is unknown.
        place: String,
        /// Name of the operation.
        operator: String,
        /// What kind of obstacle it is.
        obstacle: Obstacle,
        /// Reason.
        why: String,
    },
    /// The step is too large, or has more states than can be analysed.
    TooLarge(String),
    /// A form was derived and does not compute what the step computes: a mistake in this program, worth a report.
    Disagrees(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Operation { place, operator, why, .. } => {
                if !place.is_empty() {
                    write!(f, "{place}: ")?;
                }
                write!(f, "`{operator}`: {why}")
            }
            Reason::TooLarge(why) => f.write_str(why),
            Reason::Disagrees(what) => {
                write!(f, "the derived form does not agree with the step ({what}); please report this with the plugin")
            }
        }
    }
}

impl Reason {
    fn of(p: &Program, b: &Blocked) -> Reason {
        Reason::Operation {
            part: part(p),
            place: p.place(b.origin.span),
            operator: b.origin.operator.to_string(),
            obstacle: b.obstacle,
            why: b.why.clone(),
        }
    }
}

/// Stack of the thread that analyses: the depth of expressions is bounded by the size of a step only.
const STACK: usize = 512 << 20;
/// Seed of the random numbers on which a form is compared with its step.
const SEED: u64 = 0x00f0_12a5;

/// Analyses an update rule.
///
/// Gradients are written out and calls put in place here; the feature map should be put in already where the step uses `phi`
/// (see [`crate::with_feature_map`]), else `phi` counts as an unknown function.
///
/// # Errors
/// A program that breaks the shape rules or is no update rule. That a rule has no canonical form is no error but a finding.
pub fn analyse(program: &Program) -> Result<Analysis, CheckError> {
    deep(program, || {
        let flat = flatten::flatten(program)?;
        let when = schedule(&flat.step, &flat.types);
        let given = |op: &Op| {
            use Op::{Argument, Constant, Integer, Parameter, State, StepIndex};
            matches!(op, Argument { .. } | Parameter { .. } | State { .. } | StepIndex | Constant { .. } | Integer { .. })
        };
        let count = |want: &[When]| flat.step.nodes.iter().zip(&when).filter(|(n, w)| want.contains(w) && !given(&n.op)).count();
        let hoisted = [count(&[When::Once, When::AllSteps]), count(&[When::Step]), count(&[When::After])];
        if let Some(why) = too_many_states(program) {
            return Ok(Analysis { findings: Vec::new(), reads: Vec::new(), canonical: Err(why), hoisted });
        }
        let (mut sym, groups) = derived(program, &flat);
        let findings = groups.iter().map(|g| finding::finding(program, &flat, &mut sym, g)).collect();
        let reads = show::reads(program, &sym);
        Ok(Analysis { findings, reads, canonical: verified(program, &flat, &mut sym, &groups), hoisted })
    })
}

/// The canonical form alone, as an executor wants it; see [`analyse`].
///
/// # Errors
/// As [`analyse`]; the inner error says why there is no form.
pub fn canonical(program: &Program) -> Result<Result<Canonical, Reason>, CheckError> {
    deep(program, || {
        let flat = flatten::flatten(program)?;
        if let Some(why) = too_many_states(program) {
            return Ok(Err(why));
        }
        let (mut sym, groups) = derived(program, &flat);
        Ok(verified(program, &flat, &mut sym, &groups))
    })
}

/// Runs `work` where expressions may be as deep as a step is long.
fn deep<T: Send>(program: &Program, work: impl Fn() -> Result<T, CheckError> + Sync) -> Result<T, CheckError> {
    std::thread::scope(|scope| {
        match std::thread::Builder::new().name("analysis".into()).stack_size(STACK).spawn_scoped(scope, &work) {
            Ok(handle) => handle.join().unwrap_or_else(|_| {
                Err(CheckError::new(program, Problem::Shape("its analysis ended unexpectedly; please report this".into())))
            }),
            // Without a thread the ordinary stack has to do; it is enough for every step that a person writes.
            Err(_) => work(),
        }
    })
}

fn too_many_states(program: &Program) -> Option<Reason> {
    let (n, most) = (program.states.len(), store::MAX_STATES);
    (n > most).then(|| Reason::TooLarge(format!("it has {n} states, more than {most} are not analysed")))
}

fn derived<'a>(program: &'a Program, flat: &'a flatten::Flat) -> (symbolic::Symbolic<'a>, Vec<strata::Group>) {
    let boundaries = segments::boundaries(program, flat);
    let mut sym = symbolic::symbolic(program, flat, &boundaries);
    let groups = strata::groups(program, &mut sym);
    (sym, groups)
}

fn verified(
    program: &Program,
    flat: &flatten::Flat,
    sym: &mut symbolic::Symbolic<'_>,
    groups: &[strata::Group],
) -> Result<Canonical, Reason> {
    let canonical = strata::canonical(program, flat, sym, groups).map_err(|b| Reason::of(program, &b))?;
    verify::verify(program, flat, &canonical, SEED).map_err(Reason::Disagrees)?;
    Ok(canonical)
}
