//! Training: the step loop and what stands round it.
//!
//! | module | does |
//! |---|---|
//! | `model` | what the step loop needs of a model |
//! | `data` | batches ahead of the step; losses |
//! | [`optimiser`] | Adam and AdamW with a state that can be saved |
//! | [`tensors`] | tensors as bytes and as safetensors files |
//! | [`checkpoint`] | checkpoints that survive a crash |
//! | `save` | the task that writes them |
//! | `evaluate` | evaluation |
//! | `interrupt` | leaving on a signal |
//! | `run` | the step loop |
//!
//! The course of the learning rate is part of a recipe: [`fwp_recipe::Schedule`].
//!
//! # What is promised
//!
//! - The step loop does no file I/O and asks the device for nothing but a step's loss and gradient norm; on a GPU, those of the step before.
//! - A loss or a gradient that is not finite never reaches a parameter.
//! - A run that was stopped at step N and resumed gives the same losses and parameters as one never stopped, bit for bit: data is a function of seed and step, and everything else is in the checkpoint.
//! - An evaluation changes nothing: it leaves the random generators as they were.

pub mod checkpoint;
mod data;
mod evaluate;
mod interrupt;
mod model;
pub mod optimiser;
mod rehearse;
mod run;
mod save;
pub mod tensors;
#[cfg(test)]
mod tests;

pub use evaluate::{Evaluation, EvaluationOptions, evaluate};
pub use interrupt::Interrupt;
pub use model::{Output, Parameter, Pass, Scored, TrainModel};
pub use rehearse::rehearse;
pub use run::{Best, End, Outcome, Resume, Settings, find_start, load_parameters, train};
