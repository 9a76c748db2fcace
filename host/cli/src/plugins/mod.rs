//! Plugins: finding, examining and asking them.
//!
//! | module | does |
//! |---|---|
//! | [`search`] | the search path |
//! | [`examine`] | looks at a file before it is opened |
//! | [`wire`] | what parent and child say to each other |
//! | [`child`] | the child process: opens libraries and passes questions on |
//! | [`open_unsafe`] | opening a library; all unsafe code of this crate |
//! | [`ask`] | the parent of child processes: limits, and what became of a child |
//! | [`catalogue`] | the parts that were found, and what was refused and why |
//!
//! **Invariant:** this process never opens a plugin; only the child does, which is this executable started again as `__describe`.

pub mod ask;
pub mod catalogue;
pub mod child;
pub mod examine;
pub mod open_unsafe;
pub mod search;
pub mod wire;

use serde::{Deserialize, Serialize};

pub use ask::Asker;
pub use catalogue::{Catalogue, Chosen};

/// Why a library, or an answer of one, is refused: one line of cause and one of remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why.
    pub cause: String,
    /// What to do.
    pub remedy: String,
    /// More, for `-v`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Refusal {
    /// A refusal without detail.
    pub fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Refusal {
        Refusal { cause: cause.into(), remedy: remedy.into(), detail: String::new() }
    }

    /// Adds what `-v` shows.
    pub fn detail(mut self, detail: impl Into<String>) -> Refusal {
        self.detail = detail.into();
        self
    }
}
