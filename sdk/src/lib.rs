//! What a plugin of fwp-host is written against.
//!
//! A plugin *describes* a part of a Fast Weight Programmer; the host *executes* it.
//! The description is a [`program`]: a small typed data-flow graph, written with the builder in [`build`] and returned to the host as bytes.
//! A plugin never touches a tensor, links no libtorch, and needs no crate but this one.
//!
//! An update rule is written as the paper writes it, for one head of one sequence and one step:
//!
//! ```
//! use fwp_sdk::prelude::*;
//!
//! config! {
//!     /// W_t = W_{t-1} + beta_t (v_t - W_{t-1} k_t) k_t^T
//!     pub struct Delta {}
//! }
//!
//! impl UpdateRule for Delta {
//!     const NAME: &'static str = "my-delta";
//!     const CITATION: &'static str = "Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Eq. 20-25";
//!     const OBJECTIVE: &'static str = "1/2 |W k - v|^2, one gradient step of size beta";
//!
//!     fn signature(&self, dims: Dims) -> Signature {
//!         Signature::new(dims).signal("beta", []).state("w", [dims.value, dims.key], StateStart::Zeros)
//!     }
//!
//!     fn step(&self, s: &mut Step) {
//!         let (q, k, v) = s.query_key_value();
//!         let beta = s.signal("beta").sigmoid();
//!         let w = s.state("w");
//!         let w = &w + beta * outer(v - w.matvec(&k), &k);
//!         s.output(w.matvec(&q));
//!         s.set_state("w", w);
//!     }
//! }
//!
//! fwp_sdk::export! { update_rules: [Delta] }
//! ```
//!
//! # Design
//!
//! Why a program and not a callback: the host can batch it, differentiate it, prove things about it and generate kernels from it,
//! and what crosses the library border is bytes with a version, the most stable interface there is.
//! Why unwinding inside the builder: a step has to read like its equation, so a mistake of shape ends the description at the line that made it, and the export macro turns it into a message with that line.

//!
//! # Where things are
//!
//! - [`UpdateRule`], [`FeatureMap`], [`SlowNet`]: what a plugin implements; [`config!`] and [`choices!`]: its configuration; [`export!`]: the library.
//! - [`build`]: declarations ([`build::Signature`]) and expressions ([`build::Expr`]). Every mistake in them ends with the plugin's own file, line and column.
//! - [`program`]: what comes of it: operators, types, bytes. The meaning of an operator's code never changes.
//!   Reading is safe for any bytes: sizes, references and types are checked within [`program::shape::limits`].
//! - [`border`]: the three functions of a library; [`testing`]: the same questions without a library.
//!
//! # Conventions
//!
//! A state of fast weights is `[d_v, d_k]`: value rows and key columns, so that a read is `w.matvec(q)`.
//! Nothing broadcasts but a scalar with anything.
//! Batch, time and heads are no axes of a rule or a map; in a slow net, heads are an axis and time is a named axis that only time operators touch.

pub mod border;
pub mod build;
pub mod config;
mod part;
pub mod program;
pub mod testing;

pub use config::Config;
pub use part::{
    Ask, FeatureMap, Memories, NEEDS_FAST_WEIGHTS, NO_FAST_WEIGHTS, Normalisation, Normalise, Part, PartInfo, Request, SlowNet,
    UpdateRule,
};

#[doc(hidden)]
pub use abi_stable;
#[doc(hidden)]
pub use serde_json;

/// What a plugin usually needs.
pub mod prelude {
    pub use crate::build::{
        Dims, Expr, Init, Map, Memory, Net, Operand, Signature, StateStart, Step, TaskIo, concat, outer, refuse, stack,
    };
    pub use crate::program::{MapRole, QueryScale, ReadAt, Scope};
    pub use crate::{Config, FeatureMap, SlowNet, UpdateRule, choices, config};
}

/// The examples of the documents outside of this crate are tested as its own.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../README.md")]
    pub struct Readme;
    #[doc = include_str!("../../docs/plugins.md")]
    pub struct Plugins;
}
