//! The engine of `fwp-host`: everything that needs libtorch.
//!
//! | module | does |
//! |---|---|
//! | [`bench`] | executors side by side on one shape |
//! | [`check`] | the conformance cases of a rule |
//! | [`command`] | train, eval, apply, doctor |
//! | [`exec`] | the executors: reference, chunkwise form, fused scan |
//! | [`machine`] | what the machine has |
//! | [`model`] | programs composed with parameters |
//! | [`shim`] | the C++ shim beside libtorch, and its safe face |
//! | [`train`] | optimisers, schedules, checkpoints and the step loop |
//! | [`trial`] | one rule alone on drawn numbers, for `check` and `bench` |
//! | [`monitor`] | `metrics.jsonl`, TensorBoard events and the progress display |
//!
//! The step loop is an ordinary thread.
//! Data preparation, checkpoint writing and monitoring are tasks of their own that it reaches through bounded channels, so that it does no file I/O.

pub mod bench;
pub mod check;
pub mod command;
pub mod exec;
pub mod machine;
pub mod model;
pub mod monitor;
pub mod shim;
pub mod train;
pub mod trial;
