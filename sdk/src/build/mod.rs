//! The builder in which plugins are written.

mod expr;
pub(crate) mod graph;
mod init;
mod map;
mod net;
mod rule;

pub use expr::{Expr, Operand, concat, outer, stack};
pub use graph::{Mistake, refuse};
pub use init::{Init, Random};
pub use map::{Map, MapRole};
pub use net::{Memory, Net, Port, PortKind, TaskIo};
pub use rule::{Dims, Signature, StateStart, Step};

pub(crate) use map::build_map;
pub(crate) use net::{NetContext, build_net};
pub(crate) use rule::build_rule;
