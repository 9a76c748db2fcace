//! What the engine does when `fwp-host` starts it.

pub mod apply;
pub mod doctor;
pub mod eval;
pub mod failure;
pub mod parent;
pub mod train;
