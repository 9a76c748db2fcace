//! Feature maps.

use std::cell::RefCell;
use std::rc::Rc;

use crate::program::{Op, Program, Scope, TensorType, Training, entry};

use super::expr::Expr;
use super::graph::{Graph, Shared, mistake};
use super::init::Init;
use super::rule::without_unused;

/// What a feature map is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapRole {
    /// A query.
    Query,
    /// A key.
    Key,
}

/// A feature map under description, for one vector of one head.
pub struct Map {
    graph: Graph,
    /// Whether a key or a query is mapped.
    pub role: MapRole,
    /// Features of the input.
    pub dim: usize,
    x: Expr,
}

impl Map {
    /// The vector to map, `[dim]`.
    pub fn input(&self) -> Expr {
        self.x.clone()
    }
    /// A trained parameter, one a head, shared by keys and queries unless the name tells them apart.
    #[track_caller]
    pub fn parameter(&self, name: &str, shape: &[usize], init: Init) -> Expr {
        self.graph.parameter(name, shape, Scope::Head, Training::Trained { decay: true }, &init)
    }
    /// A random matrix, one a layer: drawn anew for every training batch where `redraw` says so, and fixed for evaluation.
    #[track_caller]
    pub fn random(&self, name: &str, shape: &[usize], init: Init, redraw: bool) -> Expr {
        let training = if redraw { Training::Redrawn } else { Training::Constant };
        self.graph.parameter(name, shape, Scope::Layer, training, &init)
    }
    /// A constant table.
    #[track_caller]
    pub fn table(&self, shape: &[usize], values: Vec<f64>) -> Expr {
        self.graph.node(Op::Table { shape: shape.to_vec(), values }, &[])
    }
    /// Steps since the reset, an integer.
    #[track_caller]
    pub fn index(&self) -> Expr {
        self.graph.node(Op::StepIndex, &[])
    }
}

/// Builds the program of a feature map: one function for keys, one for queries.
pub(crate) fn build_map(
    dim: usize,
    features: usize,
    apply: &dyn Fn(&Map) -> Expr,
    mut program: Program,
) -> Result<Program, String> {
    let shared = Rc::new(RefCell::new(Shared::default()));
    for (name, role) in [(entry::KEY, MapRole::Key), (entry::QUERY, MapRole::Query)] {
        let graph = Graph::new("map", &shared);
        let x = graph.argument("x", TensorType::float(&[dim]).into());
        let y = apply(&Map { graph: graph.clone(), role, dim, x });
        if y.shape() != [features] {
            mistake(format!("the map promises {features} features for {dim} and gives {:?}", y.shape()));
        }
        graph.output("y", &y);
        program.entries.push((name.into(), graph.finish()));
    }
    let shared = shared.take();
    program.functions = shared.functions.into_iter().map(without_unused).collect();
    program.files = shared.files;
    Ok(program)
}
