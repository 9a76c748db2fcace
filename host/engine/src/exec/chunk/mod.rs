//! The chunkwise executor: rules whose updates are affine in their states, as matrix products over chunks of steps.
//!
//! It carries out the canonical form that [`fwp_program::analysis`] finds in a step; nothing here knows a rule by name.
//! What needs no state is evaluated for all steps at once, states of one stratum after the other, and only what a chunk hands on to the next is sequential.
//!
//! | module | does |
//! |---|---|
//! | [`layout`] | a form as one carried matrix, its writes and its reads |
//! | [`grid`] | steps cut into chunks |
//! | [`sight`] | which row sees which write: order within a step, masks, resets |
//! | [`decay`] | decays, in logarithms |
//! | [`affine`] | the chunk algebra and its backward pass |
//! | [`left`] | reads from the other side |
//! | [`inverse`] | triangular systems |
//! | [`stratum`] | one state over all steps |
//! | [`cost`] | how long a chunk should be |
//! | [`plan`] | all states of a rule |

mod affine;
mod cost;
mod decay;
mod grid;
mod inverse;
mod layout;
mod left;
mod plan;
mod sight;
mod stratum;

pub use plan::{ChunkPlan, applies, run};
