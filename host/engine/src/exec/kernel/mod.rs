//! Fused scans: the steps of a walk as one compiled kernel, forward and backward.
//!
//! `fwp_program::kernel` writes a kernel's text; this module makes it run:
//!
//! | module | does |
//! |---|---|
//! | [`lower`] | the part of a plan between "before" and "after" as a function that a kernel can be made of |
//! | [`compile`] | the system's compiler, with limits on time and memory |
//! | [`cache`] | compiled kernels in the user's cache folder |
//! | `open_unsafe` | opening a compiled kernel and calling it |
//! | [`build`] | text, cache, compiler, opening and verification in order |
//! | [`run`] | a walk with a kernel in its middle, and its place in the graph of gradients |
//! | [`turns`] | how threads share the units of a call |
//! | [`buffers`] | uninitialised tensors and scratch |
//!
//! # Memory
//!
//! Beside its inputs and outputs, which libtorch's graph keeps, a walk of T steps keeps for its backward pass the states before every `interval`-th step,
//! `ceil(T / interval)` of them, and those after the last; and of every step the vectors that the adjoint reads ([`fwp_program::kernel::Kernel::saved`]).
//! Each thread has slots for the states of `interval` steps while the backward pass runs.
//! The interval is the number of steps whose slots fit into half of the second-level cache, but at least a quarter of the square root of T:
//! so checkpoints take at most `4 sqrt(T) + 3` states, and without gradients none are kept.
//! Where states are computed back, it is 128 steps (or a quarter of the root of T): every step adds a rounding. Slots are touched in the first segment,
//! which has 4 steps, in those with resets, and in those where states grow so much that computing them back would lose digits.

pub mod buffers;
pub mod build;
pub mod cache;
pub mod compile;
pub mod lower;
mod open_unsafe;
pub mod run;
#[cfg(test)]
mod tests;
mod turns;

pub use build::{Built, prepare};
pub use run::run;
