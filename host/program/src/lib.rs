//! Checking, analysing, evaluating and printing programs.
//!
//! A program arrives as bytes that `fwp_sdk` has decoded and whose shapes it has checked.
//! This crate answers everything else that can be known of it without a tensor library:
//!
//! | module | answers |
//! |---|---|
//! | [`check`](mod@check) | is it a complete, sensible part? |
//! | [`layers`] | which layers of a slow net use which rule? |
//! | [`model`] | which parameters does a whole model have, and under which names? |
//! | [`gradient`] | the same program with every `gradient` written out |
//! | [`schedule`](mod@schedule) | what of a step can be computed for all steps at once? |
//! | [`separate`](mod@separate) | writing and reading as two functions |
//! | [`effective`] | where a raw signal becomes what the rule uses |
//! | [`phi`] | the rule with the feature map put in for `phi` |
//! | [`estimate`](mod@estimate) | how much memory will training take? |
//! | [`state_size`](fn@state_size) | how much is kept of a sequence from step to step? |
//! | [`interpret`] | the value of a function for one sample, in f64 |
//! | [`equivalent`](mod@equivalent) | do two functions compute the same? |
//! | [`print`](mod@print) | the program as a person reads it |
//!
//! # Design
//!
//! Everything here is a function from programs to plain values, so it runs in the command line without libtorch and in tests without a model.
//! [`interpret`] is deliberately naive: it is the judge of [`gradient`] here and of the executors elsewhere, and shares no code with either.

pub mod adjoint;
pub mod analysis;
pub mod check;
pub mod effective;
pub mod equivalent;
mod error;
pub mod estimate;
pub mod gradient;
mod graph;
pub mod interpret;
pub mod kernel;
pub mod layers;
pub mod model;
pub mod phi;
pub mod print;
pub mod schedule;
pub mod separate;
mod state_size;

pub use check::check;
pub use effective::{effective_signals, with_effective};
pub use equivalent::{Difference, equivalent, restated_agrees};
pub use error::{CheckError, Notice, Problem};
pub use estimate::{Estimate, estimate};
pub use gradient::{expand_function, expand_gradients};
pub use graph::pruned;
pub use layers::{LayersOfSlots, layers_of_slots};
pub use model::{ModelPrograms, ParameterSpec, SlotPrograms, Source, block, child, map_prefix, path};
pub use phi::{with_feature_map, with_mapped_inputs};
pub use print::{formula, print};
pub use schedule::{When, schedule, stateless, sunk};
pub use separate::{Inseparable, Separation, separate};
pub use state_size::state_size;
