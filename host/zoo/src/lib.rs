//! What the zoo measures and how it is shown: points, measurements, verdicts, tables and figures.
//!
//! A *variant* is a folder of the zoo: a recipe, and the *points* that its paper measured with it.
//! A *measurement* is what a finished run says of one point and one seed.
//! Measurements lie in `results.json` beside the recipe; the tables and figures of the documentation are made of them and of
//! nothing else, so that the two can never disagree.
//!
//! | module | holds |
//! |---|---|
//! | [`variant`] | a folder of the zoo: its recipe and its points |
//! | [`points`] | `points.toml` |
//! | [`run`] | what the folder of a run says: how far it is, how it ended, what was measured |
//! | [`results`] | `results.json`, and joining new measurements with those that are there |
//! | [`verdict`] | measured beside published |
//! | [`paper`] | the paper that a recipe cites |
//! | [`table`] | the document with all tables |
//! | [`figure`] | figures, as SVG and PNG |
//! | `document` | TOML files whose mistakes are told with file and line |
//! | `pattern` | names with `*` and `?` |
//!
//! This crate starts nothing and asks no plugin: what runs and when is the business of the commands.

mod document;
pub mod figure;
pub mod paper;
mod pattern;
pub mod points;
pub mod results;
pub mod run;
pub mod table;
pub mod variant;
pub mod verdict;

pub use document::{ZooError, write_if_changed};
pub use pattern::matches;
pub use points::Point;
pub use results::{Collected, Measurement};
pub use run::{Ended, RunState};
pub use variant::Variant;
pub use verdict::{Judgement, Verdict};
