//! Initialisers: small programs over random draws.

use std::cell::RefCell;
use std::rc::Rc;

use crate::program::{Op, TensorType, Type};

use super::expr::Expr;
use super::graph::{Graph, Place, Shared, mistake_at};

/// Ends the description where the parameter is declared.
fn refuse_shape(r: &Random, message: String) -> ! {
    let at = r.graph.0.borrow().declared_at;
    mistake_at(at.expect("an initialiser of this crate knows its place"), message)
}

type Draw = dyn Fn(&Random, &[usize]) -> Expr;

/// How the initial values of a parameter are drawn: a small program without operands, run once.
#[derive(Clone)]
pub struct Init {
    draw: Rc<Draw>,
    /// Whether this crate wrote the program; its nodes then stand where the parameter is declared.
    ready_made: bool,
}

/// The source of random draws and indices in an initialiser.
pub struct Random {
    graph: Graph,
}

impl Random {
    /// Standard normal draws.
    #[track_caller]
    pub fn normal(&self, shape: &[usize]) -> Expr {
        self.graph.node(Op::RandomNormal { shape: shape.to_vec() }, &[])
    }
    /// Uniform draws from [0, 1).
    #[track_caller]
    pub fn uniform(&self, shape: &[usize]) -> Expr {
        self.graph.node(Op::RandomUniform { shape: shape.to_vec() }, &[])
    }
    /// Gaussian rows made orthogonal in blocks of `n`.
    #[track_caller]
    pub fn orthogonal(&self, rows: usize, n: usize) -> Expr {
        self.graph.node(Op::RandomOrthogonal { rows, n }, &[])
    }
    /// Every element the same.
    #[track_caller]
    pub fn full(&self, shape: &[usize], value: f64) -> Expr {
        self.graph.node(Op::Full { shape: shape.to_vec(), value }, &[])
    }
    /// Identity matrix.
    #[track_caller]
    pub fn eye(&self, n: usize) -> Expr {
        self.graph.node(Op::Eye { n }, &[])
    }
    /// The integers 0 to n - 1.
    #[track_caller]
    pub fn arange(&self, n: usize) -> Expr {
        self.graph.node(Op::Arange { n }, &[])
    }
    /// Index of the head that the parameter is drawn for, from 0.
    #[track_caller]
    pub fn head(&self) -> Expr {
        self.graph.node(Op::HeadIndex, &[])
    }
    /// Index of the layer that the parameter is drawn for, from 0.
    #[track_caller]
    pub fn layer(&self) -> Expr {
        self.graph.node(Op::LayerIndex, &[])
    }
}

impl Init {
    /// Values computed from random draws; the closure gets the parameter's shape.
    pub fn program(draw: impl Fn(&Random, &[usize]) -> Expr + 'static) -> Init {
        Init { draw: Rc::new(draw), ready_made: false }
    }
    fn ready_made(draw: impl Fn(&Random, &[usize]) -> Expr + 'static) -> Init {
        Init { draw: Rc::new(draw), ready_made: true }
    }
    /// Zeros.
    pub fn zeros() -> Init {
        Init::constant(0.0)
    }
    /// Ones.
    pub fn ones() -> Init {
        Init::constant(1.0)
    }
    /// Every element `value`.
    pub fn constant(value: f64) -> Init {
        Init::ready_made(move |r, shape| r.full(shape, value))
    }
    /// Normal with mean 0 and standard deviation `std`.
    pub fn normal(std: f64) -> Init {
        Init::ready_made(move |r, shape| r.normal(shape) * std)
    }
    /// Uniform in [-bound, bound).
    pub fn uniform(bound: f64) -> Init {
        Init::ready_made(move |r, shape| r.uniform(shape) * (2.0 * bound) - bound)
    }
    /// Uniform in [-b, b) with b = sqrt(6 / (rows + columns)) (Glorot and Bengio 2010).
    pub fn xavier_uniform() -> Init {
        Init::ready_made(|r, shape| {
            if shape.len() != 2 {
                refuse_shape(r, format!("a Xavier initialiser is for a matrix, not for {shape:?}"));
            }
            let bound = (6.0 / shape.iter().sum::<usize>() as f64).sqrt();
            r.uniform(shape) * (2.0 * bound) - bound
        })
    }
    /// Logarithms of draws that are uniform in [least, greatest), such as rates of decay (Dao and Gu 2024, arXiv 2405.21060).
    pub fn log_of_uniform(least: f64, greatest: f64) -> Init {
        Init::ready_made(move |r, shape| (least + (greatest - least) * r.uniform(shape)).log())
    }
    /// What softplus takes to draws from [least, greatest) whose logarithms are uniform, such as step sizes (ibid.).
    pub fn step_sizes(least: f64, greatest: f64) -> Init {
        let (least, greatest) = (least.ln(), greatest.ln());
        // The inverse of softplus is log(e^x - 1).
        Init::ready_made(move |r, shape| (least + (greatest - least) * r.uniform(shape)).exp().expm1().log())
    }
    /// `scale` times the identity.
    pub fn scaled_identity(scale: f64) -> Init {
        Init::ready_made(move |r, shape| match shape {
            [m, n] if m == n => r.eye(*n) * scale,
            _ => refuse_shape(r, format!("a scaled identity is for a square matrix, not for {shape:?}")),
        })
    }

    pub(crate) fn build(&self, at: &'static Place, shape: &[usize], shared: &Rc<RefCell<Shared>>) -> u32 {
        let graph = Graph::new("init", shared);
        graph.0.borrow_mut().declared_at = self.ready_made.then_some(at);
        let value = (self.draw)(&Random { graph: graph.clone() }, shape);
        let (wanted, given) = (Type::Tensor(TensorType::float(shape)), value.ty());
        if given != wanted {
            mistake_at(at, format!("the initialiser gives {given}, the parameter is {wanted}"));
        }
        graph.output("value", &value);
        graph.finish()
    }
}
