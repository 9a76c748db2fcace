//! Which dimensions of a step's values are the same axis.
//!
//! Dimensions that meet in an operation become one axis, except where that would put one axis twice into a value
//! (a square matrix that is applied to its own result): there a value changes its axis by going through memory.

use fwp_sdk::program::{Function, NodeId, Op, Type};

use super::graph::Axis;
use crate::graph::sizes;

/// Axes of every node of a function; dimensions of size 1 are no axes.
pub struct Axes {
    /// Of every node, for every dimension.
    pub of: Vec<Vec<Option<Axis>>>,
    /// Sizes.
    pub sizes: Vec<usize>,
}

/// A dimension of a node.
type Dim = (NodeId, usize);

struct Union {
    parent: Vec<usize>,
    /// Roots that share a value with a root.
    beside: Vec<Vec<usize>>,
}

impl Union {
    fn find(&self, mut x: usize) -> usize {
        while self.parent[x] != x {
            x = self.parent[x];
        }
        x
    }
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        if a == b || self.beside[a].iter().any(|c| self.find(*c) == b) {
            return;
        }
        let (a, b) = (a.min(b), a.max(b));
        self.parent[b] = a;
        let moved = std::mem::take(&mut self.beside[b]);
        self.beside[a].extend(moved);
        // The neighbours of b know it by its old number, which finds a.
    }
}

/// Finds the axes; `same` are further pairs of nodes whose dimensions should agree.
pub fn find(f: &Function, types: &[Type], same: &[(NodeId, NodeId)]) -> Axes {
    let mut start = Vec::with_capacity(types.len());
    let mut all: Vec<usize> = Vec::new();
    for ty in types {
        start.push(all.len());
        all.extend(sizes(ty));
    }
    let n = all.len();
    let mut union = Union { parent: (0..n).collect(), beside: vec![Vec::new(); n] };
    for (i, ty) in types.iter().enumerate() {
        let dims = sizes(ty).len();
        for a in 0..dims {
            for b in 0..dims {
                if a != b && all[start[i] + a] > 1 && all[start[i] + b] > 1 {
                    union.beside[start[i] + a].push(start[i] + b);
                }
            }
        }
    }
    let mut wishes: Vec<(usize, Dim, Dim)> = Vec::new();
    let rank = |x: NodeId| sizes(&types[x as usize]).len();
    let mut wish = |urgency: usize, a: Dim, b: Dim| wishes.push((urgency, a, b));
    for (a, b) in same {
        for d in 0..rank(*a).min(rank(*b)) {
            wish(if rank(*a) > 1 { 0 } else { 2 }, (*a, d), (*b, d));
        }
    }
    for (i, node) in f.nodes.iter().enumerate() {
        let urgency = if node.operands.iter().chain([&(i as NodeId)]).any(|o| rank(*o) > 1) { 1 } else { 3 };
        for (a, b) in meetings(node.op.clone(), i as NodeId, &node.operands, types) {
            wish(urgency, a, b);
        }
    }
    wishes.sort_by_key(|w| w.0);
    for (_, a, b) in wishes {
        let place = |(x, d): Dim| start[x as usize] + d;
        if all[place(a)] > 1 && all[place(a)] == all[place(b)] {
            union.join(place(a), place(b));
        }
    }
    let mut number = vec![usize::MAX; n];
    let mut found: Vec<usize> = Vec::new();
    let of = types.iter().enumerate().map(|(i, ty)| {
        let one = |d: usize| {
            let root = union.find(start[i] + d);
            (all[root] > 1).then(|| {
                if number[root] == usize::MAX {
                    number[root] = found.len();
                    found.push(all[root]);
                }
                number[root]
            })
        };
        (0..sizes(ty).len()).map(one).collect()
    });
    let of = of.collect();
    Axes { of, sizes: found }
}

/// Dimensions that an operation brings together.
fn meetings(op: Op, y: NodeId, x: &[NodeId], types: &[Type]) -> Vec<(Dim, Dim)> {
    let shape = |n: NodeId| sizes(&types[n as usize]);
    let rank = |n: NodeId| shape(n).len();
    let straight = |a: NodeId, b: NodeId| (0..rank(a).min(rank(b))).map(|d| ((a, d), (b, d))).collect::<Vec<_>>();
    match op {
        Op::MatVec => vec![((y, 0), (x[0], 0)), ((x[1], 0), (x[0], 1))],
        Op::MatVecT => vec![((y, 0), (x[0], 1)), ((x[1], 0), (x[0], 0))],
        Op::MatMul => vec![((y, 0), (x[0], 0)), ((x[0], 1), (x[1], 0)), ((y, 1), (x[1], 1))],
        Op::Outer => vec![((y, 0), (x[0], 0)), ((y, 1), (x[1], 0))],
        Op::Dot => straight(x[0], x[1]),
        Op::SolveSpd { .. } => vec![((y, 0), (x[1], 0)), ((y, 0), (x[0], 1))],
        Op::Transpose { order } => order.iter().enumerate().map(|(to, from)| ((y, to), (x[0], *from))).collect(),
        Op::Expand { axis, .. } => (0..rank(x[0])).map(|d| ((x[0], d), (y, if d < axis { d } else { d + 1 }))).collect(),
        Op::Sum { axes } | Op::Mean { axes } | Op::ReduceMax { axes } | Op::ReduceMin { axes } => {
            (0..rank(x[0])).filter(|d| !axes.contains(d)).enumerate().map(|(to, d)| ((y, to), (x[0], d))).collect()
        }
        Op::LogSumExp { axis } => {
            (0..rank(x[0])).filter(|d| *d != axis).enumerate().map(|(to, d)| ((y, to), (x[0], d))).collect()
        }
        Op::Slice { axis, .. } => straight(y, x[0]).into_iter().filter(|(a, _)| a.1 != axis).collect(),
        Op::Concat { axis } => x.iter().flat_map(|o| straight(y, *o)).filter(|(a, _)| a.1 != axis).collect(),
        Op::Reshape { .. } => reshaped(shape(x[0]), shape(y)).into_iter().map(|(a, b)| ((x[0], a), (y, b))).collect(),
        Op::OneHot { .. } => straight(x[0], y),
        Op::Gather => {
            let n = rank(x[1]);
            let mut pairs: Vec<(Dim, Dim)> = (0..n).map(|d| ((x[1], d), (y, d))).collect();
            pairs.extend((1..rank(x[0])).map(|d| ((x[0], d), (y, n + d - 1))));
            pairs
        }
        Op::Rotary { .. } => straight(y, x[0]),
        Op::Constant { .. } | Op::Element { .. } | Op::Gradient => vec![],
        _ => x.iter().filter(|o| rank(**o) == rank(y)).flat_map(|o| straight(y, *o)).collect(),
    }
}

/// Dimensions that a change of shape leaves as they are: the same before and after it from either end, sizes of 1 aside.
pub fn reshaped(from: &[usize], to: &[usize]) -> Vec<(usize, usize)> {
    let wide = |s: &[usize]| s.iter().enumerate().filter(|(_, n)| **n > 1).map(|(d, n)| (d, *n)).collect::<Vec<_>>();
    let (a, b) = (wide(from), wide(to));
    let front = a.iter().zip(&b).take_while(|(x, y)| x.1 == y.1).count();
    let most = a.len().min(b.len()) - front;
    let back = a.iter().rev().zip(b.iter().rev()).take(most).take_while(|(x, y)| x.1 == y.1).count();
    let mut pairs: Vec<(usize, usize)> = (0..front).map(|i| (a[i].0, b[i].0)).collect();
    pairs.extend((0..back).map(|i| (a[a.len() - 1 - i].0, b[b.len() - 1 - i].0)));
    pairs
}
