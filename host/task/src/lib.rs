//! The tasks that fast weight programmers are trained on, as plain data.
//!
//! A task says which named inputs a slow net is given and which named outputs it must serve
//! ([`TaskIo`]), and makes batches of plain integers ([`Batch`]).
//! It knows nothing of tensors, plugins or training.
//!
//! | module | holds |
//! |---|---|
//! | `data` | what a task hands out: [`TaskIo`], [`Batch`], [`Loss`], [`Metric`], the [`Task`] trait |
//! | [`schema`] | configuration keys as data: type, range, default, documentation |
//! | `registry` | the list of tasks, [`TaskSpec`] and [`open`] |
//! | `draw` | random draws that are the same on every machine |
//! | [`associative`] | `associative-capacity` and `associative-update` |
//! | `sequence` | what tasks of sequences have in common: batches, padding, training and evaluation sets |
//! | [`retrieval`] | `associative-retrieval` |
//! | [`mqar`] | `mqar` |
//! | [`state_tracking`] | `parity` and `modular-arithmetic` |
//! | [`group_words`] | `group-words` |
//! | [`formal_language`] | `formal-language` |
//! | [`code_execution`] | `code-execution` |
//! | [`list_ops`] | `list-ops` |
//! | [`text`] | `text` |
//!
//! # Every batch is a function of its place
//!
//! A training batch depends on `(seed, step, micro)` and nothing else, an evaluation batch on
//! `(seed, index)`.
//! No task has a cursor, so a run that resumes at step N needs no state of the task beyond N, and
//! row r of a batch holds the same sequence whatever the batch size.
//! This is what a counter-based generator gives: the four numbers seed, purpose, step and
//! micro-batch are the key of a ChaCha stream and the row is its stream number.
//!
//! # Adding a task
//!
//! One module with a specification struct that implements `Spec` (keys, values, opening), and one
//! line in the list `tasks!` of `registry`.
//! A task that reads symbols along `time` and answers at some of the positions only says how one
//! sequence is made from random draws; `sequence` makes a [`Task`] of that.
//! Any other task implements [`Task`] itself.
//!
//! ```
//! use fwp_task::{open, schema::Value, TaskSpec};
//!
//! let table = [("keys".to_string(), Value::Integer(20))].into();
//! let spec = TaskSpec::from_values("associative-update", &table).unwrap();
//! let task = open(&spec).unwrap();
//! let batch = task.train_batch(1, 0, 0, 32);
//! assert_eq!(batch.inputs[0].2, [32, 40]); // 32 sequences of 40 keys
//! ```

pub mod associative;
pub mod code_execution;
mod data;
mod draw;
pub mod formal_language;
pub mod group_words;
pub mod list_ops;
pub mod mqar;
mod registry;
pub mod retrieval;
pub mod schema;
mod sequence;
pub mod state_tracking;
pub mod text;

pub use data::{Batch, Counts, Loss, Metric, Port, PortKind, Task, TaskIo, metric_names, test_seed};
pub use registry::{TaskError, TaskInfo, TaskSpec, open, tasks};
