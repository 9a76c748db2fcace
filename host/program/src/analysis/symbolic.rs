//! The step carried out on expressions: every node as an expression, as a matrix in parts, or with the operation that prevents both.

use std::collections::HashMap;

use fwp_sdk::program::{DType, NodeId, Op, Program, Span, Type};

use super::fault::{Blocked, Fault, Obstacle, Origin};
use super::flatten::Flat;
use super::matrix::{Base, Matrix};
use super::store::{Ask, Id, Read, States, Store};

/// What a node is.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// An expression: everything but float matrices.
    Expr(Id),
    /// A float matrix.
    Matrix(Matrix),
    /// It depends on a state in a way that cannot be said.
    Blocked(Box<Blocked>),
}

/// Nodes at which a state is taken as it is there: the first is the state itself, the last its next value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Boundaries {
    /// For every state its cuts, in order.
    pub of: Vec<Vec<Cut>>,
}

/// A node at which a step is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    /// The node.
    pub node: NodeId,
    /// Whether it is the transposed state.
    pub turned: bool,
}

/// A step on expressions.
pub(super) struct Symbolic<'a> {
    pub store: Store<'a>,
    /// For every state and every boundary after the first, the value there in terms of the boundary before.
    pub updates: Vec<Vec<Value>>,
    /// Every result of the step that is no state.
    pub results: Vec<(String, Value)>,
    /// Names of the states.
    pub names: Vec<String>,
    /// Every state as it is before the step, which stands where it is declared.
    pub given: Vec<Origin>,
    /// What makes the next value of every state.
    pub made: Vec<Origin>,
}

/// Carries out the step.
pub(super) fn symbolic<'a>(p: &'a Program, flat: &'a Flat, boundaries: &Boundaries) -> Symbolic<'a> {
    let step = &flat.step;
    let mut me = Interpreter {
        p,
        flat,
        store: Store::new(p, &step.arguments, &step.parameters),
        values: Vec::with_capacity(step.nodes.len()),
        updates: vec![Vec::new(); p.states.len()],
    };
    me.store.last = boundaries.of.iter().map(|b| b.len().saturating_sub(1)).collect();
    // For every node the boundaries that it is, with their numbers.
    let mut here: HashMap<NodeId, Vec<(usize, usize, bool)>> = HashMap::new();
    for (state, nodes) in boundaries.of.iter().enumerate() {
        for (after, cut) in nodes.iter().enumerate().skip(1) {
            here.entry(cut.node).or_default().push((state, after, cut.turned));
        }
    }
    for n in 0..step.nodes.len() {
        let value = me.node(n);
        me.values.push(value);
        for (state, after, turned) in here.get(&(n as NodeId)).into_iter().flatten() {
            let value = me.laid(me.values[n].clone(), *turned);
            let depends = me.states(&value) & (1 << state) != 0;
            me.updates[*state].push(value);
            // A next value that owes nothing to the state is used as it is.
            if depends {
                let base = me.base(*state, *after);
                me.values[n] = me.laid(base, *turned);
            }
        }
    }
    let results = step.outputs.iter().filter(|o| !o.name.starts_with("state."));
    let results = results.map(|o| (o.name.clone(), me.values[o.node as usize].clone())).collect();
    let names: Vec<String> = p.states.iter().map(|s| s.name.clone()).collect();
    let unknown = Origin { operator: "state", span: Span::default() };
    let made: Vec<Origin> = names.iter().map(|n| flat.origin(&format!("state.{n}")).unwrap_or(unknown)).collect();
    let before = |state: usize| step.nodes.iter().find(|n| n.op == Op::State { index: state as u32 });
    let given = made.iter().enumerate().map(|(state, made)| before(state).map_or(*made, Origin::of)).collect();
    Symbolic { store: me.store, updates: me.updates, results, names, given, made }
}

struct Interpreter<'a> {
    p: &'a Program,
    flat: &'a Flat,
    store: Store<'a>,
    values: Vec<Value>,
    updates: Vec<Vec<Value>>,
}

impl Interpreter<'_> {
    fn states(&self, v: &Value) -> States {
        match v {
            Value::Expr(id) => self.store.states(*id),
            Value::Matrix(m) => m.states(&self.store),
            Value::Blocked(b) => b.states,
        }
    }

    /// A value on its side, if it is to be.
    fn laid(&mut self, value: Value, turned: bool) -> Value {
        match value {
            Value::Matrix(m) if turned => Value::Matrix(self.store.transposed(&m)),
            v => v,
        }
    }

    /// A state as it is at a boundary.
    fn base(&mut self, state: usize, after: usize) -> Value {
        let shape = &self.p.states[state].shape;
        match shape[..] {
            [] | [_] => Value::Expr(self.store.read(Read { state, after, query: Ask::Whole }, shape)),
            [rows, columns] => {
                let factor = self.store.constant(1.0);
                let base = Base { state, after, transposed: false, factor, rows: None, columns: None };
                Value::Matrix(Matrix { bases: vec![base], ..Matrix::zero([rows, columns]) })
            }
            _ => Value::Blocked(Box::new(Blocked {
                obstacle: Obstacle::Levels,
                origin: self.store.origin,
                why: format!("state `{}` has {} axes", self.p.states[state].name, shape.len()),
                states: 1 << state,
            })),
        }
    }

    fn node(&mut self, n: usize) -> Value {
        let flat = self.flat;
        let node = &flat.step.nodes[n];
        self.store.origin = Origin::of(node);
        if let Op::State { index } = node.op {
            return self.base(index as usize, 0);
        }
        let operands: Vec<Value> = node.operands.iter().map(|o| self.values[*o as usize].clone()).collect();
        let states = operands.iter().fold(0, |all, v| all | self.states(v));
        if let Some(blocked) = operands.iter().find_map(|v| if let Value::Blocked(b) = v { Some(b) } else { None }) {
            let mut blocked = blocked.clone();
            blocked.states = states;
            // A whole matrix from both sides is another obstacle than from one.
            if let (Obstacle::Dense { left, right }, Op::MatMul) = (blocked.obstacle, &node.op) {
                let other = |i: usize| !matches!(operands[i], Value::Blocked(_));
                if (left && other(1)) || (right && other(0)) {
                    blocked.obstacle = Obstacle::TwoSided;
                    blocked.why = "it multiplies a state by a matrix from either side".into();
                }
            }
            return Value::Blocked(blocked);
        }
        let applied = self.apply(&node.op, &operands, &flat.types[n]);
        applied.unwrap_or_else(|fault| {
            let Fault { obstacle, why } = fault;
            Value::Blocked(Box::new(Blocked { obstacle, origin: Origin::of(node), why, states }))
        })
    }

    fn apply(&mut self, op: &Op, x: &[Value], ty: &Type) -> Result<Value, Fault> {
        let matrices = x.iter().any(|v| matches!(v, Value::Matrix(_)));
        if matrices && let Some(value) = self.of_matrices(op, x)? {
            return Ok(value);
        }
        if let (Op::Outer, [Value::Expr(a), Value::Expr(b)]) = (op, x) {
            let one = self.store.constant(1.0);
            return Ok(Value::Matrix(self.store.outer(one, *a, *b)));
        }
        let mut ids = Vec::with_capacity(x.len());
        for v in x {
            ids.push(match v {
                Value::Expr(id) => *id,
                Value::Matrix(m) => self.dense(m)?,
                Value::Blocked(_) => return Err(Fault::not_affine("it depends on a value that has no form")),
            });
        }
        let id = self.store.node(op, &ids).map_err(|why| Fault::not_affine(&why))?;
        let is_matrix = matches!(ty, Type::Tensor(t) if t.dtype == DType::Float && t.shape.len() == 2);
        Ok(if is_matrix { Value::Matrix(self.store.matrix(id)) } else { Value::Expr(id) })
    }

    fn dense(&mut self, m: &Matrix) -> Result<Id, Fault> {
        let name = m.bases.first().map_or("", |b| self.p.states[b.state].name.as_str());
        self.store.dense(m).ok_or_else(|| Fault::not_affine(&format!("it takes all of state `{name}`")))
    }

    /// Operators that know matrices in parts; `None` for those that need them whole.
    fn of_matrices(&mut self, op: &Op, x: &[Value]) -> Result<Option<Value>, Fault> {
        use Value::{Expr, Matrix as M};
        let s = &mut self.store;
        let whole = |s: &mut Store<'_>, id: Id, shape: [usize; 2]| {
            // A scalar beside a matrix is repeated.
            let ones = s.full(&[shape[0]], 1.0);
            let row = s.full(&[shape[1]], 1.0);
            s.outer(id, ones, row)
        };
        let value = match (op, x) {
            (Op::Neg, [M(a)]) => {
                let c = s.constant(-1.0);
                M(s.matrix_scale(a, c))
            }
            (Op::Add | Op::Sub, [a, b]) => {
                let sign = if *op == Op::Add { 1.0 } else { -1.0 };
                let (a, b) = match (a, b) {
                    (M(a), M(b)) => (a.clone(), b.clone()),
                    (M(a), Expr(c)) => (a.clone(), whole(s, *c, a.shape)),
                    (Expr(c), M(b)) => (whole(s, *c, b.shape), b.clone()),
                    _ => return Ok(None),
                };
                M(s.matrix_add(&a, sign, &b))
            }
            (Op::Mul, [M(a), Expr(c)] | [Expr(c), M(a)]) => M(s.matrix_scale(a, *c)),
            (Op::Mul, [M(a), M(b)]) => M(s.hadamard(a, b)?),
            (Op::Square, [M(a)]) => M(s.hadamard(a, a)?),
            (Op::Div, [M(a), Expr(c)]) => {
                let one = s.constant(1.0);
                let inverse = s.div(one, *c);
                M(s.matrix_scale(a, inverse))
            }
            (Op::Div, [M(a), M(b)]) => M(s.quotient(a, b)?),
            (Op::Transpose { order }, [M(a)]) if order[..] == [1, 0] => M(s.transposed(a)),
            (Op::Transpose { .. }, [M(a)]) => M(a.clone()),
            (Op::Reshape { shape }, [M(a)]) if *shape == a.shape => M(a.clone()),
            (Op::MatVec, [M(a), Expr(q)]) => Expr(s.matvec(a, *q)?),
            (Op::MatVecT, [M(a), Expr(q)]) => Expr(s.matvec_t(a, *q)?),
            (Op::MatMul, [M(a), M(b)]) => M(s.matmul(a, b)?),
            (Op::Dot, [M(a), M(b)]) => Expr(s.frobenius(a, b)?),
            (Op::Sum { axes } | Op::Mean { axes }, [M(a)]) => {
                let (rows, columns) = (s.full(&[a.shape[0]], 1.0), s.full(&[a.shape[1]], 1.0));
                let y = match axes[..] {
                    [0] => s.matvec_t(a, rows)?,
                    [1] => s.matvec(a, columns)?,
                    [0, 1] | [1, 0] => {
                        let y = s.matvec(a, columns)?;
                        s.dot(rows, y).map_err(|e| Fault::not_affine(&e))?
                    }
                    _ => return Ok(None),
                };
                let count: usize = axes.iter().map(|i| a.shape[*i]).product();
                Expr(if matches!(op, Op::Mean { .. }) { s.scale(1.0 / count as f64, y) } else { y })
            }
            // Conditional values of states: each side times its condition.
            (Op::Select, [Expr(mask), yes, no]) if s.is_scalar(*mask) => {
                let shape = [yes, no].iter().find_map(|v| if let M(m) = v { Some(m.shape) } else { None });
                let both = [yes, no].map(|v| match (v, shape) {
                    (M(m), _) => Some(m.clone()),
                    (Expr(c), Some(shape)) => Some(whole(s, *c, shape)),
                    _ => None,
                });
                let [Some(yes), Some(no)] = both else { return Ok(None) };
                if yes.bases.is_empty() && no.bases.is_empty() {
                    return Ok(None);
                }
                let (one, zero) = (s.constant(1.0), s.constant(0.0));
                let fail = |e: String| Fault::not_affine(&e);
                let first = s.node(&Op::Select, &[*mask, one, zero]).map_err(fail)?;
                let rest = s.sum(&[(1.0, one), (-1.0, first)]);
                let (yes, no) = (s.matrix_scale(&yes, first), s.matrix_scale(&no, rest));
                M(s.matrix_add(&yes, 1.0, &no))
            }
            (Op::StopGradient, [M(a)]) if !a.bases.is_empty() => {
                return Err(Fault::new(Obstacle::Stopped, "a gradient stops there"));
            }
            _ => return Ok(None),
        };
        // A plain matrix goes through its normal form again, where it may show its parts.
        Ok(Some(match value {
            M(m) => match s.plain(&m) {
                Some(id) => M(s.matrix(id)),
                None => M(m),
            },
            v => v,
        }))
    }
}
