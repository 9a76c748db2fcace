//! The published recurrences, one plain loop each, in the families of the literature.

pub mod additive;
pub mod decay;
pub mod delta;
pub mod gradient;
pub mod recurrent;
