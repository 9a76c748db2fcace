//! The builder in which plugins are written.

mod expr;
pub(crate) mod graph;
mod init;
mod map;
mod net;
mod operators;
mod signature;
mod step;
mod tidy;

pub use expr::{Expr, concat, outer, stack};
pub use graph::{Mistake, refuse};
pub use init::{Init, Random};
pub use map::Map;
pub use net::{Memory, Net, Port, PortKind, TaskIo};
pub use operators::Operand;
pub use signature::{Dims, Signature, StateStart};
pub use step::Step;

pub(crate) use map::build_map;
pub(crate) use net::{NetContext, build_net};
pub(crate) use step::build_rule;
