//! One rule alone, on drawn numbers, with any executor: what `check` and `bench` share.
//!
//! | module | does |
//! |---|---|
//! | [`draw`] | inputs, states, masks and gradients, the same for the same seed on every machine |
//! | [`executor`] | which executors there are for a rule, and running one by its name |
//! | [`run`] | a rule with its feature map along drawn inputs: outputs, final states, gradients |

pub mod draw;
pub mod executor;
pub mod run;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use draw::{Data, Wanted};
pub use run::{Outcome, Subject};

/// A rule described for one set of sizes, as `fwp-host` writes it down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Described {
    /// Name of the sizes, such as `primes`.
    pub name: String,
    /// Heads.
    pub heads: usize,
    /// Elements of a key before the feature map.
    pub key: usize,
    /// Elements of a value.
    pub value: usize,
    /// The rule's program, or why the rule cannot be described for these sizes.
    pub rule: Result<PathBuf, String>,
    /// The feature map's program; none is the identity.
    pub map: Option<PathBuf>,
}
