//! Decisions about a lowered step: what the step forwards stores for the adjoint, which gradients are products, which axis can be split.

use std::collections::{HashMap, HashSet};

use super::form::{InStep, Per};
use super::graph::{Axis, Dtype, Fold, Fun, Graph, Id, Leaf, Node, What};
use super::lower::Lowered;

fn reachable(g: &Graph, roots: impl Iterator<Item = Id>) -> Vec<bool> {
    let mut seen = vec![false; g.nodes.len()];
    let mut open: Vec<Id> = roots.collect();
    while let Some(n) = open.pop() {
        if !std::mem::replace(&mut seen[n], true) {
            open.extend(&g.nodes[n].operands);
        }
    }
    seen
}

/// Which values of a step are stored for its adjoint.
pub struct Choice {
    /// Those that are.
    saved: Vec<Id>,
    /// Those that are computed again.
    cheap: HashSet<Id>,
}

/// Cuts the adjoint off from the step: vectors and scalars of the step that it reads become leaves.
/// What is one cheap operation away from others that are stored is not stored itself.
pub fn save(low: &mut Lowered) -> Choice {
    let nothing = Choice { saved: Vec::new(), cheap: HashSet::new() };
    let wanted: HashSet<Id> = cut(&mut low.graph.clone(), low, &nothing).saved.into_iter().map(|s| s.1).collect();
    let given =
        |g: &Graph, n: Id| wanted.contains(&n) || matches!(g.nodes[n].what, What::Leaf(Leaf::Argument(_)) | What::Const(_));
    let cheap = |n: &Id| match &low.graph.nodes[*n] {
        Node { what: What::Map(fun), operands, .. } => fun.cost() == 1 && operands.iter().all(|o| given(&low.graph, *o)),
        _ => false,
    };
    let cheap: HashSet<Id> = wanted.iter().copied().filter(cheap).collect();
    let choice = save_as(low, Choice { saved: Vec::new(), cheap });
    Choice { saved: low.saved.iter().map(|s| s.1).collect(), ..choice }
}

/// Cuts the adjoint off from the step as it was done to another form of the same step. What this form needs besides comes behind.
pub fn save_as(low: &mut Lowered, choice: Choice) -> Choice {
    let mut graph = std::mem::take(&mut low.graph);
    let parts = cut(&mut graph, low, &choice);
    low.graph = graph;
    (low.state_gradients, low.argument_gradients) = (parts.state_gradients, parts.argument_gradients);
    (low.saved, low.again, low.undo) = (parts.saved, parts.again, parts.before);
    choice
}

/// A step's adjoint apart from the step.
struct Parts {
    state_gradients: Vec<Id>,
    argument_gradients: Vec<Option<Id>>,
    /// States before the step from those after it.
    before: Vec<Option<Id>>,
    /// States after the step from those before it.
    again: Vec<Option<Id>>,
    /// Leaves and what they hold.
    saved: Vec<(Id, Id)>,
}

fn cut(graph: &mut Graph, low: &Lowered, choice: &Choice) -> Parts {
    let forward = reachable(graph, low.kept.iter().chain(&low.next).copied());
    let large: Vec<bool> = low.states.iter().map(|dims| dims.iter().flatten().count() >= 2).collect();
    let (undo, cheap) = (&low.undo, &choice.cheap);
    let mut cut = Cut { graph, forward, large: &large, undo, cheap, done: HashMap::new(), saved: Vec::new() };
    for n in &choice.saved {
        let axes = cut.graph.axes(*n).to_vec();
        cut.saved(*n, &axes);
    }
    if low.undo.iter().any(Option::is_some) {
        cut.done.extend(low.next.iter().enumerate().filter(|(i, _)| large[*i]).map(|(i, n)| (*n, cut.graph.after(i, *n))));
    }
    let state_gradients = low.state_gradients.iter().map(|n| cut.node(*n)).collect();
    let argument_gradients = low.argument_gradients.iter().map(|n| n.map(|n| cut.node(n))).collect();
    let before = (0..low.undo.len()).map(|i| low.undo[i].map(|_| cut.before(i))).collect();
    // The states themselves, from one checkpoint to the next.
    (cut.undo, cut.done) = (&[], HashMap::new());
    let again = low.next.iter().zip(&large).map(|(n, large)| large.then(|| cut.node(*n))).collect();
    Parts { state_gradients, argument_gradients, before, again, saved: cut.saved }
}

/// What a step adds to a state of several axes, where its next value is itself plus something in which it is not but through vectors.
///
/// A state that is stored for every step of a segment is written to a cache that is several times slower than the nearest one;
/// a state that is computed back stays there. What it loses is a rounding a step, as it does on its way forwards,
/// and only from one checkpoint to the next. With a factor before the state, errors would grow by its inverse: those states are stored.
pub fn change(g: &mut Graph, before: Id, after: Id) -> Option<Id> {
    if g.axes(before) != g.axes(after) {
        return None;
    }
    let mut terms = Vec::new();
    plain_terms(g, after, false, &mut terms);
    let at = terms.iter().position(|(n, negative)| *n == before && !negative)?;
    terms.remove(at);
    let mut change: Option<Id> = None;
    for (n, negative) in terms {
        change = Some(match change {
            None if negative => g.map(Fun::Neg, &[n]),
            None => n,
            Some(so_far) => g.map(if negative { Fun::Sub } else { Fun::Add }, &[so_far, n]),
        });
    }
    let change = change.filter(|n| g.axes(*n) == g.axes(after))?;
    let mut open = vec![change];
    let mut seen = HashSet::new();
    while let Some(n) = open.pop() {
        let node = &g.nodes[n];
        if !seen.insert(n) || is_saved(node) {
            continue;
        }
        match node.what {
            What::Leaf(Leaf::State(_)) if node.axes.len() >= 2 => return None,
            What::Fold(..) | What::Cumsum(_) | What::Solve { .. } => return None,
            _ => open.extend(&node.operands),
        }
    }
    Some(change)
}

/// Whether a value of the step is stored for the adjoint instead of computed again.
fn is_saved(node: &Node) -> bool {
    let computed = match node.what {
        What::Map(_) | What::Fold(..) | What::Cumsum(_) | What::Solve { .. } => true,
        // Small states lie with the other vectors.
        What::Leaf(Leaf::State(_)) => true,
        _ => false,
    };
    computed && node.dtype == Dtype::Float && node.axes.len() <= 1
}

/// The terms of a sum, with whether they are taken away.
pub fn plain_terms(g: &Graph, n: Id, negative: bool, out: &mut Vec<(Id, bool)>) {
    let node = &g.nodes[n];
    match node.what {
        What::Map(Fun::Add) => node.operands.iter().for_each(|o| plain_terms(g, *o, negative, out)),
        What::Map(Fun::Sub) => {
            plain_terms(g, node.operands[0], negative, out);
            plain_terms(g, node.operands[1], !negative, out);
        }
        What::Map(Fun::Neg) => plain_terms(g, node.operands[0], !negative, out),
        _ => out.push((n, negative)),
    }
}

struct Cut<'a> {
    graph: &'a mut Graph,
    forward: Vec<bool>,
    /// Which states have several axes.
    large: &'a [bool],
    /// What is added to them, where they are to be computed back.
    undo: &'a [Option<Id>],
    /// Vectors and scalars that are computed again.
    cheap: &'a HashSet<Id>,
    done: HashMap<Id, Id>,
    saved: Vec<(Id, Id)>,
}

impl Cut<'_> {
    fn node(&mut self, n: Id) -> Id {
        if let Some(done) = self.done.get(&n) {
            return *done;
        }
        let node = self.graph.nodes[n].clone();
        let own = self.forward.get(n) == Some(&true) || matches!(node.what, What::Leaf(_));
        let result = if own && is_saved(&node) && !self.cheap.contains(&n) {
            self.saved(n, &node.axes)
        } else if let What::Leaf(Leaf::State(i)) = node.what
            && self.large[i]
            && self.undo.get(i).is_some_and(Option::is_some)
        {
            self.before(i)
        } else {
            let operands: Vec<Id> = node.operands.iter().map(|o| self.node(*o)).collect();
            if operands == node.operands { n } else { self.graph.node(node.what, operands, node.axes, node.dtype) }
        };
        self.done.insert(n, result);
        result
    }

    /// The leaf for a value of the step that is stored.
    fn saved(&mut self, n: Id, axes: &[Axis]) -> Id {
        if let Some((leaf, _)) = self.saved.iter().find(|s| s.1 == n) {
            return *leaf;
        }
        let leaf = self.graph.leaf(Leaf::Saved(self.saved.len()), axes, Dtype::Float);
        self.saved.push((leaf, n));
        leaf
    }

    /// A state before the step, from the one after it.
    fn before(&mut self, i: usize) -> Id {
        let Some(change) = self.undo[i] else { return self.graph.number(0.0) };
        let after = self.graph.after(i, change);
        let change = self.node(change);
        self.graph.map(Fun::Sub, &[after, change])
    }
}

/// Finds gradients of matrices that are one outer product.
pub fn factor(step: &InStep, low: &mut Lowered) {
    for i in 0..low.arguments.len() {
        let dims: Vec<Axis> = low.arguments[i].iter().flatten().copied().collect();
        let (Some(node), [a, b], Per::Once) = (low.argument_gradients[i], &dims[..], step.per[i]) else { continue };
        if low.arguments[i].len() != 2 {
            continue;
        }
        let Some((left, right)) = sides(&mut low.graph, node, *a, *b) else { continue };
        low.factors.push((i, left, right, [*a, *b]));
    }
}

/// x(a) and y(b) where the node is x(a) y(b).
fn sides(g: &mut Graph, node: Id, a: Axis, b: Axis) -> Option<(Id, Id)> {
    let (mut left, mut right) = (g.number(1.0), g.number(1.0));
    let mut open = vec![node];
    while let Some(n) = open.pop() {
        let axes = g.axes(n).to_vec();
        match (axes.contains(&a), axes.contains(&b)) {
            (true, true) => match g.nodes[n].what {
                What::Map(Fun::Mul) => open.extend(g.nodes[n].operands.clone()),
                What::Map(Fun::Neg) => {
                    open.push(g.nodes[n].operands[0]);
                    left = g.map(Fun::Neg, &[left]);
                }
                _ => return None,
            },
            (false, true) => right = g.map(Fun::Mul, &[right, n]),
            _ => left = g.map(Fun::Mul, &[left, n]),
        }
    }
    let along = |x: Id, axis: Axis, g: &Graph| g.axes(x).iter().all(|c| *c == axis);
    (along(left, a, g) && along(right, b, g)).then_some((left, right))
}

/// The axis whose places do not depend on each other: of every state and kept value, never folded over on the way to them.
pub fn separable(low: &Lowered) -> Option<Axis> {
    let g = &low.graph;
    let axis = g.lane(low.states.first()?.iter().flatten().copied().collect::<Vec<_>>().as_slice())?;
    let all = low.states.iter().chain(&low.kept_axes);
    if !all.clone().all(|dims| dims.iter().flatten().any(|a| *a == axis)) || !low.factors.is_empty() {
        return None;
    }
    let forward = reachable(g, low.kept.iter().chain(&low.next).copied());
    let back = reachable(g, low.gradients());
    let breaks = |n: Id| {
        let node = &g.nodes[n];
        match &node.what {
            What::Fold(fold, a) if *a == axis => forward[n] || *fold != Fold::Sum,
            What::Iota(a) | What::Cumsum(a) => *a == axis,
            What::Table(axes, _) => axes.contains(&axis),
            What::Take(axes) => axes.contains(&axis) || node.operands[1..].iter().any(|i| g.axes(*i).contains(&axis)),
            What::Solve { first, second, .. } => *first == axis || *second == axis,
            // A sum over places that does not vary along them counts them.
            _ => false,
        }
    };
    let free = (0..g.nodes.len()).all(|n| !(forward[n] || back[n]) || !breaks(n));
    free.then_some(axis)
}

/// Whether there are dear functions (exponentials and their kin) of the other axes alone, which every block of an axis computes for itself.
pub fn dear_beside(low: &Lowered, axis: Axis) -> bool {
    let g = &low.graph;
    let seen = reachable(g, low.kept.iter().chain(&low.next).copied().chain(low.gradients()));
    let dear = |n: &Node| matches!(n.what, What::Map(fun) if fun.cost() > Fun::Div.cost());
    let beside = |n: &Node| !n.axes.is_empty() && !n.axes.contains(&axis);
    g.nodes.iter().zip(seen).any(|(n, seen)| seen && dear(n) && beside(n))
}

/// Elements of the states of one sequence.
pub fn state_elements(low: &Lowered) -> usize {
    low.states.iter().map(|dims| low.graph.elements(&dims.iter().flatten().copied().collect::<Vec<_>>())).sum()
}

/// Puts together sums across lanes that are added to each other: one such sum costs as much as several products.
pub fn merge(low: &mut Lowered) {
    let carried = low.carried.iter().flatten().map(|c| c.before);
    let roots: Vec<Id> = low.gradients().chain(carried).collect();
    let seen = reachable(&low.graph, roots.iter().copied());
    let mut uses = vec![0usize; low.graph.nodes.len()];
    roots.iter().for_each(|n| uses[*n] += 1);
    for n in (0..uses.len()).filter(|n| seen[*n]) {
        low.graph.nodes[n].operands.iter().for_each(|o| uses[*o] += 1);
    }
    let mut merge = Merge { uses, graph: &mut low.graph, done: HashMap::new() };
    for n in &mut low.state_gradients {
        *n = merge.node(*n);
    }
    for n in low.argument_gradients.iter_mut().flatten() {
        *n = merge.node(*n);
    }
    for c in low.carried.iter_mut().flatten() {
        c.before = merge.node(c.before);
    }
}

struct Merge<'a> {
    graph: &'a mut Graph,
    uses: Vec<usize>,
    done: HashMap<Id, Id>,
}

/// A term of a sum: its sign, its scalar factors, and the axis across which it is a sum of something with several axes.
struct Term {
    node: Id,
    negative: bool,
    factors: Vec<Id>,
    across: Option<(Axis, Id)>,
}

impl Merge<'_> {
    fn node(&mut self, n: Id) -> Id {
        if let Some(done) = self.done.get(&n) {
            return *done;
        }
        let node = self.graph.nodes[n].clone();
        let mut result = None;
        if matches!(node.what, What::Map(Fun::Add | Fun::Sub)) && node.dtype == Dtype::Float && node.axes.len() == 1 {
            let mut terms = Vec::new();
            self.terms(n, (false, true), &[], &mut terms);
            result = self.merged(&terms);
        }
        let result = result.unwrap_or_else(|| {
            let operands: Vec<Id> = node.operands.iter().map(|o| self.node(*o)).collect();
            if operands == node.operands { n } else { self.graph.node(node.what, operands, node.axes, node.dtype) }
        });
        self.done.insert(n, result);
        result
    }

    /// The terms of a sum; what something else reads too stays one term.
    fn terms(&self, n: Id, (negative, top): (bool, bool), factors: &[Id], out: &mut Vec<Term>) {
        let node = &self.graph.nodes[n];
        let own = top || self.uses[n] == 1;
        match node.what {
            What::Map(Fun::Add) if own => {
                node.operands.iter().for_each(|o| self.terms(*o, (negative, false), factors, out));
            }
            What::Map(Fun::Sub) if own => {
                self.terms(node.operands[0], (negative, false), factors, out);
                self.terms(node.operands[1], (!negative, false), factors, out);
            }
            What::Map(Fun::Neg) if own => self.terms(node.operands[0], (!negative, false), factors, out),
            What::Map(Fun::Mul) if own && self.scaled(n).is_some() => {
                let (scalar, other) = self.scaled(n).unwrap_or((n, n));
                let factors: Vec<Id> = factors.iter().copied().chain([scalar]).collect();
                self.terms(other, (negative, false), &factors, out);
            }
            What::Fold(Fold::Sum, axis) if own => {
                let work = self.graph.axes(node.operands[0]);
                let across = (work.len() >= 2 && self.graph.lane(work) == Some(axis)).then(|| (axis, node.operands[0]));
                out.push(Term { node: n, negative, factors: factors.to_vec(), across });
            }
            _ => out.push(Term { node: n, negative, factors: factors.to_vec(), across: None }),
        }
    }

    /// The scalar and the other factor of a product.
    fn scaled(&self, n: Id) -> Option<(Id, Id)> {
        let [a, b] = self.graph.nodes[n].operands[..] else { return None };
        match (self.graph.axes(a).is_empty(), self.graph.axes(b).is_empty()) {
            (true, false) => Some((a, b)),
            (false, true) => Some((b, a)),
            _ => None,
        }
    }

    fn merged(&mut self, terms: &[Term]) -> Option<Id> {
        let alike =
            |t: &Term, axis: Axis, work: &[Axis], g: &Graph| t.across.is_some_and(|(a, x)| a == axis && g.axes(x) == work);
        let (axis, work) = terms.iter().find_map(|t| {
            let (axis, x) = t.across?;
            let work = self.graph.axes(x).to_vec();
            (terms.iter().filter(|t| alike(t, axis, &work, self.graph)).count() >= 2).then_some((axis, work))
        })?;
        let (mut inside, mut outside): (Option<Id>, Option<Id>) = (None, None);
        for t in terms {
            let joins = t.across.filter(|_| alike(t, axis, &work, self.graph));
            let mut x = self.node(joins.map_or(t.node, |(_, x)| x));
            for f in &t.factors {
                let f = self.node(*f);
                x = self.graph.map(Fun::Mul, &[x, f]);
            }
            let to = if joins.is_some() { &mut inside } else { &mut outside };
            *to = Some(match *to {
                None if t.negative => self.graph.map(Fun::Neg, &[x]),
                None => x,
                Some(so_far) => self.graph.map(if t.negative { Fun::Sub } else { Fun::Add }, &[so_far, x]),
            });
        }
        let sum = self.graph.fold(Fold::Sum, axis, inside?);
        Some(match outside {
            Some(rest) => self.graph.map(Fun::Add, &[rest, sum]),
            None => sum,
        })
    }
}
