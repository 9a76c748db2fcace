//! Feature maps.

use std::cell::RefCell;
use std::rc::Rc;

use crate::program::{MapRole, Op, Program, Scope, TensorType, Training, Type, entry};

use super::expr::Expr;
use super::graph::{Graph, Shared, constants, mistake_at};
use super::init::Init;
use super::tidy::tidy;

/// A feature map under description, for one vector of one head.
pub struct Map {
    graph: Graph,
    /// Whether a key or a query is mapped.
    pub role: MapRole,
    /// Features of the input.
    pub dim: usize,
    x: Expr,
}

constants!(Map);

impl Map {
    /// The vector to map, `[dim]`.
    pub fn input(&self) -> Expr {
        self.x.clone()
    }
    /// A trained parameter, one a head, shared by keys and queries unless the name tells them apart.
    /// Matrices have weight decay and vectors (gains, scales, biases) have none, as in slow nets.
    #[track_caller]
    pub fn parameter(&self, name: &str, shape: &[usize], init: Init) -> Expr {
        self.graph.parameter(name, shape, Scope::Head, Training::Trained { decay: shape.len() > 1 }, &init)
    }
    /// A random matrix, one a layer: drawn anew for every training batch where `redraw` says so, and fixed for evaluation.
    #[track_caller]
    pub fn random(&self, name: &str, shape: &[usize], init: Init, redraw: bool) -> Expr {
        let training = if redraw { Training::Redrawn } else { Training::Constant };
        self.graph.parameter(name, shape, Scope::Layer, training, &init)
    }
    /// Steps since the reset, an integer.
    #[track_caller]
    pub fn index(&self) -> Expr {
        self.graph.node(Op::StepIndex, &[])
    }
}

/// Builds the program of a feature map: one function for keys, one for queries; both end with the normalisation.
pub(crate) fn build_map(
    dim: usize,
    features: usize,
    apply: &dyn Fn(&Map) -> Expr,
    normalise: Option<Op>,
    mut program: Program,
) -> Program {
    let shared = Rc::new(RefCell::new(Shared::default()));
    for (name, role) in [(entry::KEY, MapRole::Key), (entry::QUERY, MapRole::Query)] {
        let graph = Graph::new("map", &shared);
        let x = graph.given_argument("x", TensorType::float(&[dim]).into());
        let y = apply(&Map { graph: graph.clone(), role, dim, x });
        let wanted = Type::Tensor(TensorType::float(&[features]));
        if y.ty() != wanted {
            let message = format!("the map promises {wanted} for a key of {dim} elements (`features`) and gives {}", y.ty());
            mistake_at(graph.place(y.span()), message);
        }
        // The normalisation belongs to the features, wherever they are made.
        let y = match &normalise {
            Some(op) => graph.node_with(y.span(), op.clone(), &[&y]),
            None => y,
        };
        graph.output("y", &y);
        program.entries.push((name.into(), graph.finish()));
    }
    tidy(program, shared.take())
}
