//! What the Rust binding of libtorch lacks, with a safe face.
//!
//! The C++ files beside this one are linked into the engine; nothing else in the project is C++.
//!
//! - [`custom_function`]: an operation with a backward pass written in Rust.
//! - [`checkpoint`]: a segment that is computed again in the backward pass instead of being kept.
//! - [`gradients`]: gradients of several outputs with given output gradients.
//! - [`fused`]: operations that libtorch only has in pieces, forward and backward.
//! - [`linear`]: linear maps of the same rows; [`lookup`]: those of rows that are looked up.
//! - [`loss`]: losses against symbols.
//! - [`fused_adam`], [`global_norm`], [`clip`]: the optimiser's arithmetic in a few large operations.
//! - [`RandomState`]: the state of libtorch's random generators.
//! - [`parallel_for`]: a Rust closure on libtorch's own threads.
//! - [`load_cuda`]: opens the CUDA part of libtorch when there is one and a GPU.

mod checkpoint;

mod error;
mod ffi;
mod function;
pub mod fused;
mod gradient;
pub mod linear;
pub mod lookup;
pub mod loss;
mod optimise;
mod parallel;
mod process;
mod random;
#[cfg(test)]
pub(crate) mod testing;

pub use checkpoint::checkpoint;
pub use error::{ShimError, first_line};
pub(crate) use ffi::panic_text;
pub use function::{Backward, custom_function};
pub use gradient::{clear_gradients, grad_enabled, gradients};
pub use optimise::{AdamStep, clip, fused_adam, global_norm};
pub use parallel::parallel_for;
pub use process::{Cuda, leave_now, libtorch_version, load_cuda};
pub use random::{RandomState, manual_seed};
pub use tch::{get_num_threads, set_num_threads};
