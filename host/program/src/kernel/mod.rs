//! Kernels: a step and its backward compiled into one walk through time.
//!
//! | module | does |
//! |---|---|
//! | [`form`] | the agreement with the engine that runs kernels |
//! | `rule` | the kernel of a rule alone, for `plugins show` |
//! | `axes`, `graph`, `lower` | the step and its adjoint as sums and products over named axes |
//! | `carry` | gradients of decays without the states themselves |
//! | `adapt` | what is stored for the adjoint, which gradients are products, which axis is split |
//! | `strata` | parts of the step back that are walked one after the other |
//! | `nests` | the loop form: sweeps over rows and passes within them |
//! | `layout`, `print`, `driver` | the loop form and the walk through time as C |
//!
//! # Memory of a backward pass
//!
//! With K steps between checkpoints and T steps in all, T / K + 1 states are kept by the forward pass, and of every step the vectors
//! that the adjoint reads, so that the backward pass repeats no sum over a state.
//! States that a step only adds to are computed back while a segment is walked back. What is computed back is compared with the checkpoint
//! that it must arrive at, and with the smallest state on the way: where it has lost more than a few roundings, because states grow within
//! the segment, the segment is walked again with its states in scratch, from the same gradients.
//! Where the adjoint needs sums over a state alone, these are taken on a walk forwards through the segment and K vectors are in scratch.
//! Of all other states K are in scratch.

mod adapt;
mod axes;
mod carry;
mod driver;
pub mod form;
mod graph;
mod layout;
mod lower;
mod nests;
mod print;
mod rule;
mod strata;

pub use form::*;
pub use rule::of_rule;

/// Why no kernel can be made of a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kernel: {0}")]
pub struct Unsupported(pub String);

/// Longest text of a kernel that is worth compiling.
const MAX_TEXT: usize = 1_000_000;

/// Bytes that are walked through at every step of one block, where blocks do not depend on each other.
const BLOCK_BYTES: usize = 16 * 1024;

/// The kernel of a step: text of `fwp_forward` and `fwp_backward`, and what its buffers are.
///
/// The text is the same for the same step and target. It fails, saying why, where the step has an operator without a value at a single step,
/// where its loops written out are too long, or where its text would take a compiler too long.
pub fn generate(step: &InStep, target: Target) -> Result<Kernel, Unsupported> {
    let made = kernel(step, target, true).map_err(Unsupported)?;
    // With states computed back, the step back is there twice.
    let made = match made.source.len() > MAX_TEXT && made.computed_back {
        true => kernel(step, target, false).map_err(Unsupported)?,
        false => made,
    };
    if made.source.len() > MAX_TEXT {
        return Err(Unsupported(format!("its text has {} bytes, more than {MAX_TEXT}", made.source.len())));
    }
    Ok(made)
}

/// The kernel of a step; `computed_back` says that states may be computed back.
fn kernel(step: &InStep, target: Target, computed_back: bool) -> Result<Kernel, String> {
    if step.per.len() != step.function.arguments.len() {
        return Err("not every argument says how often it changes".into());
    }
    if step.function.outputs.len() != step.kept + step.states.len() {
        return Err("its results are not its kept values and its states".into());
    }
    let prepared = |rows: Option<(usize, usize)>| -> Result<lower::Lowered, String> {
        let mut low = states_apart(step, rows, computed_back)?;
        low.each_form(|low| {
            adapt::merge(low);
            adapt::factor(step, low);
        });
        Ok(low)
    };
    let mut low = prepared(None)?;
    let mut split = None;
    let stored_too = |axis: &usize| low.stored.as_ref().is_none_or(|s| adapt::separable(s) == Some(*axis));
    if let Some(axis) = adapt::separable(&low).filter(stored_too) {
        let bytes = target.bytes();
        let (rows, lanes) = (low.graph.sizes[axis], target.vector_bytes / bytes);
        let all = adapt::state_elements(&low) * bytes;
        // The way back walks through states and their gradients, where it reads both. That makes more blocks where they repeat little,
        // and none of fewer rows than a sweep takes at a time: every number that it multiplies rows with would be read more often.
        let both = low.carried.is_empty() && !adapt::dear_beside(&low, axis);
        let back = if both { 2 * all } else { all };
        let mut numbers = (1..=rows / lanes).filter(|b| rows % (b * lanes) == 0);
        let blocks = numbers
            .clone()
            .find(|b| back / b <= BLOCK_BYTES && rows / b >= layout::MOST_REGISTERS * lanes)
            .or_else(|| numbers.clone().find(|b| all / b <= BLOCK_BYTES))
            .or_else(|| numbers.next_back())
            .unwrap_or(1);
        if blocks > 1 {
            split = Some((axis, blocks));
            low = prepared(Some((axis, rows / blocks)))?;
        }
    }
    low.each_form(|low| strata::divide(low, target.bytes()));
    driver::drive(step, &low, target, split)
}

/// The step and its adjoint with the states where they are cheapest: taken apart from their gradients where that is possible, else computed
/// back where that is, else stored.
///
/// A state that is computed back has the rounding of the largest one of its segment, so it is not where sums over it can be taken on a
/// way forwards, which is as fast.
fn states_apart(step: &InStep, rows: Option<(usize, usize)>, computed_back: bool) -> Result<lower::Lowered, String> {
    let mut forwards = lower::lower(step, rows, false)?;
    adapt::save(&mut forwards);
    if carry::carry(&mut forwards) || !computed_back {
        return Ok(forwards);
    }
    let mut back = lower::lower(step, rows, true)?;
    let choice = adapt::save(&mut back);
    if back.undo.iter().all(Option::is_none) {
        return Ok(forwards);
    }
    let mut stored = lower::lower(step, rows, false)?;
    adapt::save_as(&mut stored, choice);
    // Both read what the same step forwards has saved.
    if stored.saved.len() > back.saved.len() {
        return Ok(forwards);
    }
    back.stored = Some(Box::new(stored));
    Ok(back)
}
