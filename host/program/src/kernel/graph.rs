//! A step over named axes: what loops are made of.
//!
//! Every value has a set of axes instead of an order of dimensions, so an outer product is a product, a matrix times a vector is a sum of products,
//! and a transposition is nothing at all. Equal nodes are one node; products are kept in one form, and factors that do not vary along
//! the axis of a sum stand outside of it, which is what makes gradients of every spelling of a rule the same few sums.

use std::collections::HashMap;

/// Number of an axis.
pub type Axis = usize;
/// Number of a node.
pub type Id = usize;

/// Kind of element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    Float,
    Int,
    Mask,
}

/// A function of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fun {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    Pow,
    Rem,
    Neg,
    Abs,
    Sign,
    Exp,
    Expm1,
    Log,
    Log1p,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Tanh,
    Sigmoid,
    LogSigmoid,
    Softplus,
    Relu,
    Erf,
    Floor,
    ToFloat,
    Not,
    Less,
    LessEqual,
    Equal,
    And,
    Or,
    BitAnd,
    BitOr,
    BitXor,
    ShiftLeft,
    ShiftRight,
    TrailingZeros,
    /// Whole quotient of integers that are not negative; made by reshaping.
    Quotient,
    Select,
}

impl Fun {
    /// Roughly how many additions it costs.
    pub fn cost(self) -> usize {
        match self {
            Fun::Div | Fun::Sqrt | Fun::Rsqrt | Fun::Rem => 8,
            Fun::Exp | Fun::Expm1 | Fun::Log | Fun::Log1p | Fun::Sin | Fun::Cos | Fun::Tanh | Fun::Sigmoid => 20,
            Fun::LogSigmoid | Fun::Softplus | Fun::Erf | Fun::Pow => 40,
            _ => 1,
        }
    }
}

/// How elements along axes become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fold {
    Sum,
    Max,
    Min,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A value that is handed in.
    Leaf(Leaf),
    /// A number, by its bits.
    Const(u64),
    /// An integer.
    Integer(i64),
    /// The place along an axis, an integer.
    Iota(Axis),
    /// Numbers, by their bits, row-major over these axes.
    Table(Vec<Axis>, Vec<u64>),
    /// A function of operands; an operand without an axis is the same along it.
    Map(Fun),
    /// One value for all elements along an axis.
    Fold(Fold, Axis),
    /// The first operand with the place along each of these axes given by a further operand, an integer.
    Take(Vec<Axis>),
    /// Running sum along an axis.
    Cumsum(Axis),
    /// Solution x of A x = b: operands A over (first, second) and b over the second; the result is over the second.
    Solve { first: Axis, second: Axis, iterations: usize, tolerance: u64 },
}

/// A value that is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaf {
    /// Argument of the step.
    Argument(usize),
    /// State before the step.
    State(usize),
    /// State after the step, from which the one before it is computed back.
    After(usize),
    /// Index of the step.
    Index,
    /// Gradient of a kept value.
    KeptGradient(usize),
    /// Gradient of a state after the step.
    StateGradient(usize),
    /// A value that the step forwards has stored for the step backwards.
    Saved(usize),
    /// Sum over a state and its gradient after the step (see `carry`).
    Carried(usize),
    /// One where what is carried comes from the step after, zero where it was computed anew.
    Follows,
    /// A sum over a state that was taken on the way forwards through a segment.
    Passed(usize),
    /// A value that an earlier stratum of the step brings later ones.
    Brought(usize),
    /// A value that an earlier stratum of the step back hands on.
    Handed(usize),
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    pub what: What,
    pub operands: Vec<Id>,
    /// Axes along which it varies, ascending.
    pub axes: Vec<Axis>,
    pub dtype: Dtype,
}

/// A graph that only grows.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
    /// Size of every axis.
    pub sizes: Vec<usize>,
    pub(super) known: HashMap<(What, Vec<Id>), Id>,
    /// Axes that are lanes, most important first.
    pub order: Vec<Axis>,
    /// Whether sums over a matrix plus an outer product are taken apart.
    pub distribute: bool,
}

fn union(a: &[Axis], b: &[Axis]) -> Vec<Axis> {
    let mut all: Vec<Axis> = a.iter().chain(b).copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Graph {
    pub fn axes(&self, n: Id) -> &[Axis] {
        &self.nodes[n].axes
    }

    /// Number of elements over these axes.
    pub fn elements(&self, axes: &[Axis]) -> usize {
        axes.iter().map(|a| self.sizes[*a]).product()
    }

    /// The axis of these that lies in lanes.
    pub fn lane(&self, axes: &[Axis]) -> Option<Axis> {
        self.order.iter().copied().find(|a| axes.contains(a))
    }

    pub fn node(&mut self, what: What, operands: Vec<Id>, axes: Vec<Axis>, dtype: Dtype) -> Id {
        let key = (what, operands);
        if let Some(n) = self.known.get(&key) {
            return *n;
        }
        let n = self.nodes.len();
        self.nodes.push(Node { what: key.0.clone(), operands: key.1.clone(), axes, dtype });
        self.known.insert(key, n);
        n
    }

    pub fn leaf(&mut self, leaf: Leaf, axes: &[Axis], dtype: Dtype) -> Id {
        self.node(What::Leaf(leaf), vec![], union(axes, &[]), dtype)
    }

    /// State number i after the step as a leaf, with the axes of another value.
    pub fn after(&mut self, i: usize, like: Id) -> Id {
        let axes = self.axes(like).to_vec();
        self.leaf(Leaf::After(i), &axes, Dtype::Float)
    }

    pub fn number(&mut self, value: f64) -> Id {
        self.node(What::Const(value.to_bits()), vec![], vec![], Dtype::Float)
    }

    pub fn integer(&mut self, value: i64) -> Id {
        self.node(What::Integer(value), vec![], vec![], Dtype::Int)
    }

    /// The place along an axis; without one, 0.
    pub fn iota(&mut self, axis: Option<Axis>) -> Id {
        match axis {
            Some(a) => self.node(What::Iota(a), vec![], vec![a], Dtype::Int),
            None => self.integer(0),
        }
    }

    fn value(&self, n: Id) -> Option<f64> {
        match self.nodes[n].what {
            What::Const(bits) => Some(f64::from_bits(bits)),
            _ => None,
        }
    }

    fn whole(&self, n: Id) -> Option<i64> {
        match self.nodes[n].what {
            What::Integer(i) => Some(i),
            _ => None,
        }
    }

    fn is(&self, n: Id, fun: Fun) -> bool {
        self.nodes[n].what == What::Map(fun)
    }

    /// A function of elements, in the simplest form that computes it.
    pub fn map(&mut self, fun: Fun, x: &[Id]) -> Id {
        let dtype = match fun {
            Fun::ToFloat => Dtype::Float,
            Fun::Less | Fun::LessEqual | Fun::Equal | Fun::And | Fun::Or | Fun::Not => Dtype::Mask,
            Fun::Select => self.nodes[x[1]].dtype,
            _ => self.nodes[x[0]].dtype,
        };
        if dtype == Dtype::Int {
            return self.map_integers(fun, x);
        }
        match (fun, x) {
            (Fun::Add, &[a, b]) => self.add(a, b),
            (Fun::Sub, &[a, b]) => {
                let minus = self.neg(b);
                self.add(a, minus)
            }
            (Fun::Neg, &[a]) => self.neg(a),
            (Fun::Mul, &[a, b]) => self.mul(a, b),
            (Fun::Div, &[a, b]) => {
                let wide = self.axes(a).len() >= 2;
                if wide && self.axes(b).len() < self.axes(a).len() {
                    let one = self.number(1.0);
                    let inverse = self.plain(Fun::Div, &[one, b], Dtype::Float);
                    return self.mul(a, inverse);
                }
                if self.value(b) == Some(1.0) { a } else { self.plain(fun, x, dtype) }
            }
            (Fun::Select, &[_, a, b]) if a == b => a,
            _ => self.plain(fun, x, dtype),
        }
    }

    fn plain(&mut self, fun: Fun, x: &[Id], dtype: Dtype) -> Id {
        let axes = x.iter().fold(vec![], |all, n| union(&all, self.axes(*n)));
        self.node(What::Map(fun), x.to_vec(), axes, dtype)
    }

    fn map_integers(&mut self, fun: Fun, x: &[Id]) -> Id {
        if let &[a, b] = x {
            match (fun, self.whole(a), self.whole(b)) {
                (Fun::Add, Some(i), Some(j)) => return self.integer(i.wrapping_add(j)),
                (Fun::Sub, Some(i), Some(j)) => return self.integer(i.wrapping_sub(j)),
                (Fun::Add | Fun::Sub | Fun::ShiftLeft, _, Some(0)) => return a,
                (Fun::Add, Some(0), _) => return b,
                (Fun::Mul | Fun::Quotient, _, Some(1)) => return a,
                (Fun::Quotient, Some(0), _) => return a,
                _ => {}
            }
        }
        self.plain(fun, x, Dtype::Int)
    }

    fn neg(&mut self, x: Id) -> Id {
        if let Some(v) = self.value(x) {
            return self.number(-v);
        }
        if self.is(x, Fun::Neg) {
            return self.nodes[x].operands[0];
        }
        if self.is(x, Fun::Sub) {
            let (a, b) = (self.nodes[x].operands[0], self.nodes[x].operands[1]);
            return self.plain(Fun::Sub, &[b, a], Dtype::Float);
        }
        self.plain(Fun::Neg, &[x], Dtype::Float)
    }

    fn add(&mut self, a: Id, b: Id) -> Id {
        match (self.value(a), self.value(b)) {
            (Some(x), Some(y)) => return self.number(x + y),
            (Some(0.0), _) => return b,
            (_, Some(0.0)) => return a,
            _ => {}
        }
        match (self.is(a, Fun::Neg), self.is(b, Fun::Neg)) {
            (_, true) => {
                let minus = self.nodes[b].operands[0];
                self.plain(Fun::Sub, &[a, minus], Dtype::Float)
            }
            (true, false) => {
                let minus = self.nodes[a].operands[0];
                self.plain(Fun::Sub, &[b, minus], Dtype::Float)
            }
            _ => self.plain(Fun::Add, &[a.min(b), a.max(b)], Dtype::Float),
        }
    }

    /// Factors of a product; with `level`, only products that vary along all of these axes are taken apart.
    fn factors(&self, x: Id, level: Option<&[Axis]>, out: &mut Vec<Id>, negative: &mut bool) {
        let node = &self.nodes[x];
        let apart = level.is_none_or(|l| node.axes == l);
        match node.what {
            What::Map(Fun::Mul) if apart => {
                for o in node.operands.clone() {
                    self.factors(o, level, out, negative);
                }
            }
            What::Map(Fun::Neg) if apart => {
                *negative = !*negative;
                self.factors(node.operands[0], level, out, negative);
            }
            _ => out.push(x),
        }
    }

    fn mul(&mut self, a: Id, b: Id) -> Id {
        let all = union(self.axes(a), self.axes(b));
        let mut factors = Vec::new();
        let mut negative = false;
        if all.len() >= 2 {
            self.factors(a, Some(&all), &mut factors, &mut negative);
            self.factors(b, Some(&all), &mut factors, &mut negative);
            return self.product(factors, negative);
        }
        for x in [a, b] {
            if self.is(x, Fun::Neg) {
                negative = !negative;
                factors.push(self.nodes[x].operands[0]);
            } else {
                factors.push(x);
            }
        }
        let product = self.times(factors[0], factors[1]);
        if negative { self.neg(product) } else { product }
    }

    /// a b as one node, numbers aside.
    fn times(&mut self, a: Id, b: Id) -> Id {
        match (self.value(a), self.value(b)) {
            (Some(x), Some(y)) => self.number(x * y),
            (Some(1.0), _) => b,
            (_, Some(1.0)) => a,
            (Some(-1.0), _) => self.neg(b),
            (_, Some(-1.0)) => self.neg(a),
            _ => self.plain(Fun::Mul, &[a.min(b), a.max(b)], Dtype::Float),
        }
    }

    /// A product in its one form: factors of few axes are multiplied with each other first.
    fn product(&mut self, mut factors: Vec<Id>, mut negative: bool) -> Id {
        // A factor's own sign goes to the smallest factor at the end.
        for f in &mut factors {
            while self.nodes[*f].what == What::Map(Fun::Neg) {
                negative = !negative;
                *f = self.nodes[*f].operands[0];
            }
        }
        factors.sort_unstable();
        let factors = self.in_turns(factors);
        let mut groups: Vec<(Vec<Axis>, Id)> = Vec::new();
        for f in factors {
            let axes = self.axes(f).to_vec();
            match groups.iter().position(|g| g.0 == axes) {
                Some(at) => groups[at].1 = self.times(groups[at].1, f),
                None => groups.push((axes, f)),
            }
        }
        let lane = self.order.clone();
        let importance = move |axes: &[Axis]| lane.iter().position(|a| axes.contains(a)).unwrap_or(usize::MAX);
        // Few axes first; of vectors the one in lanes takes the scalars, for it is multiplied once and not at every place.
        groups.sort_by_key(|g| (g.0.len(), importance(&g.0), g.1));
        let mut groups = groups.into_iter().map(|g| g.1);
        let Some(mut result) = groups.next() else { return self.number(if negative { -1.0 } else { 1.0 }) };
        if negative {
            result = self.neg(result);
        }
        for g in groups {
            result = self.times(result, g);
        }
        result
    }

    /// Factors in an order in which those that divide come in turns with the others. What a sum of features divides is often as large as it:
    /// 1/s^2 is nothing long before x y / s^2 is.
    fn in_turns(&self, factors: Vec<Id>) -> Vec<Id> {
        let divides = |f: &Id| self.is(*f, Fun::Div) && self.value(self.nodes[*f].operands[0]).is_some();
        let (under, over): (Vec<Id>, Vec<Id>) = factors.into_iter().partition(divides);
        let rounds = under.len().max(over.len());
        (0..rounds).flat_map(|i| over.get(i).into_iter().chain(under.get(i))).copied().collect()
    }

    /// Whether a value of several axes is a product of values that each have fewer.
    fn is_outer(&self, x: Id) -> bool {
        let axes = self.nodes[x].axes.clone();
        let (mut factors, mut negative) = (Vec::new(), false);
        self.factors(x, Some(&axes), &mut factors, &mut negative);
        axes.len() >= 2 && factors.iter().all(|f| self.axes(*f).len() < axes.len())
    }

    /// Sum over an axis; what does not vary along it stands outside.
    pub fn sum(&mut self, axis: Axis, x: Id) -> Id {
        let (mut factors, mut negative) = (Vec::new(), false);
        self.factors(x, None, &mut factors, &mut negative);
        let (mut inside, mut outside): (Vec<Id>, Vec<Id>) = factors.into_iter().partition(|f| self.axes(*f).contains(&axis));
        if inside.is_empty() {
            let n = self.number(self.sizes[axis] as f64);
            outside.push(n);
        } else {
            let apart = inside.iter().position(|f| self.is_apart(*f)).filter(|_| self.distribute);
            let sum = match apart {
                Some(at) => {
                    let both = self.nodes[inside.remove(at)].clone();
                    let mut parts = both.operands.iter().map(|part| {
                        let all = inside.iter().copied().chain([*part]).collect();
                        let product = self.product_of(all);
                        self.sum(axis, product)
                    });
                    let (a, b) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                    drop(parts);
                    self.map(if both.what == What::Map(Fun::Sub) { Fun::Sub } else { Fun::Add }, &[a, b])
                }
                None => {
                    let product = self.product_of(inside);
                    self.fold(Fold::Sum, axis, product)
                }
            };
            outside.push(sum);
        }
        let result = self.product_of(outside);
        if negative { self.neg(result) } else { result }
    }

    /// Whether x is a matrix plus an outer product.
    fn is_apart(&self, x: Id) -> bool {
        let node = &self.nodes[x];
        let sum = matches!(node.what, What::Map(Fun::Add | Fun::Sub));
        sum && node.axes.len() >= 2
            && node.operands.iter().any(|o| *self.axes(*o) == *node.axes && self.is_outer(*o))
            && node.operands.iter().all(|o| *self.axes(*o) == *node.axes)
    }

    fn product_of(&mut self, factors: Vec<Id>) -> Id {
        let one = self.number(1.0);
        self.in_turns(factors).into_iter().fold(one, |p, f| self.mul(p, f))
    }

    pub fn fold(&mut self, fold: Fold, axis: Axis, x: Id) -> Id {
        if !self.axes(x).contains(&axis) {
            return match fold {
                Fold::Sum => self.sum(axis, x),
                Fold::Max | Fold::Min => x,
            };
        }
        let axes = self.axes(x).iter().copied().filter(|a| *a != axis).collect();
        self.node(What::Fold(fold, axis), vec![x], axes, Dtype::Float)
    }

    /// Folds over several axes, those that lie in lanes last: the others cost nothing beside the elements themselves.
    pub fn fold_all(&mut self, fold: Fold, axes: &[Axis], x: Id) -> Id {
        let mut axes = axes.to_vec();
        let order = &self.order;
        axes.sort_by_key(|a| std::cmp::Reverse(order.iter().position(|o| o == a).unwrap_or(usize::MAX)));
        axes.iter().fold(x, |x, a| if fold == Fold::Sum { self.sum(*a, x) } else { self.fold(fold, *a, x) })
    }

    /// The value with the place along each axis given by an integer value.
    pub fn take(&mut self, x: Id, places: &[(Axis, Id)]) -> Id {
        let node = self.nodes[x].clone();
        let places: Vec<(Axis, Id)> =
            places.iter().copied().filter(|(a, i)| node.axes.contains(a) && self.nodes[*i].what != What::Iota(*a)).collect();
        if places.is_empty() {
            return x;
        }
        match &node.what {
            What::Iota(_) => return places[0].1,
            // Integers and masks are computed where they are used; of matrices only leaves are in memory.
            What::Map(fun) if node.dtype != Dtype::Float || node.axes.len() >= 2 => {
                let operands: Vec<Id> = node.operands.iter().map(|o| self.take(*o, &places)).collect();
                return self.map(*fun, &operands);
            }
            What::Take(axes) => {
                let inner: Vec<Id> = node.operands[1..].iter().map(|i| self.take(*i, &places)).collect();
                let mut all: Vec<(Axis, Id)> = axes.iter().copied().zip(inner).collect();
                // Axes that the inner one leaves alone.
                for (a, i) in &places {
                    if !axes.contains(a) && self.axes(node.operands[0]).contains(a) {
                        all.push((*a, *i));
                    }
                }
                return self.take(node.operands[0], &all);
            }
            _ => {}
        }
        let mut places = places;
        places.sort_unstable();
        let replaced: Vec<Axis> = places.iter().map(|p| p.0).collect();
        let mut axes: Vec<Axis> = node.axes.iter().copied().filter(|a| !replaced.contains(a)).collect();
        for (_, i) in &places {
            axes = union(&axes, self.axes(*i));
        }
        let operands = std::iter::once(x).chain(places.iter().map(|p| p.1)).collect();
        self.node(What::Take(replaced), operands, axes, node.dtype)
    }
}
