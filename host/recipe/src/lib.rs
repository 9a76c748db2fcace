//! Recipes, with the provenance of every value, and the layout of a run.
//!
//! A recipe is one TOML file that reads like the experiment section of a paper.
//! [`read`] turns it, together with what the command line says, into a [`Resolved`] recipe: every
//! key known, every value of the right type and in range, every default filled in, and for each
//! value where it came from.
//! Once the plugins have described their parts, [`Resolved::plan`] joins both into a [`Plan`], which
//! is all that training needs and which lies in the run's folder ([`RunDir`]).
//!
//! | module | holds |
//! |---|---|
//! | `tree` | a TOML document as a tree in which every value knows its source |
//! | `overrides` | what the command line changes |
//! | [`keys`] | the sections and their keys as data |
//! | [`settings`] | the typed sections, and what their values mean |
//! | [`parts`] | which plugins a recipe names, and for which layers |
//! | `resolve` | reading, merging and checking: [`read`], [`Resolved`] |
//! | `show` | printing a resolved recipe |
//! | `experiment` | what decides the numbers of a run: [`Experiment`] |
//! | [`plan`] | what a run executes |
//! | `run_dir` | the folder of a run |
//!
//! # A recipe is untrusted input
//!
//! A file has at most [`MAX_BYTES`](keys::MAX_BYTES) bytes, bounded nesting and a bounded number of
//! values.
//! Nothing in it is expanded by a shell or from the environment.
//! It may read data only from its own folder, and it may not name a library by path, because opening
//! a library runs its code: both are for the command line to say ([`ReadOptions`]).
//! There is one error type, [`RecipeError`], whose text is one line: file, line, column, key, cause
//! and remedy.
//!
//! # Why the file is not deserialised directly
//!
//! Deriving the typed structs from TOML would lose what a person needs: the line of each value in an
//! error about *two* values (a warm-up longer than the run), and the source of each value in
//! `recipe show`.
//! So the document stays a tree with sources, the keys are described as data, and the typed structs
//! are filled from the checked tree.

mod error;
mod experiment;
pub mod keys;
mod overrides;
pub mod parts;
pub mod plan;
mod resolve;
mod run_dir;
pub mod settings;
mod show;
mod tree;

pub use error::RecipeError;
pub use experiment::Experiment;
pub use overrides::Overrides;
pub use parts::{PartChoice, PartKind, PluginRef, SlotChoice};
pub use plan::{PartFile, Plan, PlanError, Slot};
pub use resolve::{ReadOptions, Resolved, find, is_device, read};
pub use run_dir::{RunDir, RunDirError, timestamp};
pub use settings::{
    Carry, CheckpointSettings, Dtype, EvalSettings, Expect, MonitorSettings, OnNonfinite, Optimiser, OptimiserKind, Schedule,
    ScheduleKind, StopSettings, Target, TrainSettings, more_is_better,
};
pub use tree::Source;
