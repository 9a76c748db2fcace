//! Gradients of decays from sums that are carried, so that no step backwards needs the state it began with.
//!
//! Where a step makes s W + X of a state W, with a factor s that varies along fewer axes than W and an X that does not depend on W,
//! the gradient of s is sum(W D): D is the gradient of the state after the step, and the sum goes over the axes that s does not have.
//! Nothing else needs a state and its gradient at the same place; but for this sum, every state of a segment has to be stored.
//!
//! What is wanted of s is nearly always s sum(W D), because a decay is an exponential or a sigmoid. With H = sum((s W + X) D) this is
//! H - sum(X D), and sums of X D are among the gradients of X anyway. The H of the step before is sum(W B), where B is the gradient of W:
//! s sum(W D) again, and what the step's other results add. So H is carried from step to step, beside the gradient of the state,
//! and every few steps s sum(W D) is computed as it is, so that rounding adds up over few steps only.
//! It is the closed form that Yang, Wang, Shen, Panda and Kim 2023 (arXiv 2312.06635, appendix on the backward pass) give for gated linear attention.
//!
//! Sums over a state without its gradient (the gradient of a query) are taken on the way forwards through a segment.
//! Then neither way stores a state.

use std::collections::{HashMap, HashSet};

use super::adapt::plain_terms;
use super::graph::{Axis, Dtype, Fold, Fun, Graph, Id, Leaf, What};
use super::lower::Lowered;

/// A sum H that is carried backwards beside the gradient of a state.
pub struct Carried {
    /// Before the step, from that after it.
    pub before: Id,
    /// In the place of what comes from the step after: s sum(W D), from which nothing is taken away.
    pub anew: Id,
    /// After a step that leaves the state alone: sum(W D).
    pub unchanged: Id,
}

/// Takes states and their gradients apart where that is possible, and says so; leaves everything as it is where it is not.
pub fn carry(low: &mut Lowered) -> bool {
    let mut graph = std::mem::take(&mut low.graph);
    let apart = apart(&mut graph, low);
    low.graph = graph;
    let Some(apart) = apart else { return false };
    (low.state_gradients, low.argument_gradients) = (apart.state_gradients, apart.argument_gradients);
    (low.carried, low.passed) = (apart.carried, apart.passed);
    true
}

/// An adjoint in which no sum is over a state and its gradient.
struct Apart {
    state_gradients: Vec<Id>,
    argument_gradients: Vec<Option<Id>>,
    carried: Vec<Option<Carried>>,
    passed: Vec<(Id, Id)>,
}

fn apart(g: &mut Graph, low: &Lowered) -> Option<Apart> {
    if low.again.iter().all(Option::is_none) {
        return None;
    }
    let decays = low
        .again
        .iter()
        .enumerate()
        .map(|(i, after)| after.map(|after| Decay::of(g, low, i, after)).map_or(Some(None), |d| d.map(Some)));
    let decays = decays.collect::<Option<Vec<_>>>()?;
    let mut rewrite = Rewrite { g, decays: &decays, saved: &low.saved, holds: HashMap::new(), done: HashMap::new() };
    let mut carried = Vec::new();
    for (i, decay) in decays.iter().enumerate() {
        carried.push(match decay {
            Some(d) if low.gradients().any(|n| rewrite.holds(n).contains(&i)) => {
                let both = rewrite.g.map(Fun::Mul, &[d.state, low.state_gradients[i]]);
                let before = rewrite.g.fold_all(Fold::Sum, &d.rest, both);
                Some(Carried { before: rewrite.node(before)?, anew: d.anew, unchanged: d.sum })
            }
            _ => None,
        });
    }
    let state_gradients = low.state_gradients.iter().map(|n| rewrite.node(*n)).collect::<Option<Vec<_>>>()?;
    let argument_gradients =
        low.argument_gradients.iter().map(|n| n.map(|n| rewrite.node(n)).map_or(Some(None), |n| n.map(Some)));
    let argument_gradients = argument_gradients.collect::<Option<Vec<_>>>()?;
    let large = (0..low.again.len()).filter(|i| low.again[*i].is_some()).collect();
    let mut pass = Pass { g, large, reads: HashMap::new(), done: HashMap::new(), passed: Vec::new() };
    let state_gradients = state_gradients.into_iter().map(|n| pass.node(n)).collect::<Option<Vec<_>>>()?;
    let argument_gradients = argument_gradients.into_iter().map(|n| n.map(|n| pass.node(n)).map_or(Some(None), |n| n.map(Some)));
    let argument_gradients = argument_gradients.collect::<Option<Vec<_>>>()?;
    for c in carried.iter_mut().flatten() {
        c.before = pass.node(c.before)?;
    }
    let passed = pass.passed;
    Some(Apart { state_gradients, argument_gradients, carried, passed })
}

/// What a step makes of a state: s W + X.
struct Decay {
    /// W.
    state: Id,
    /// The factors of s.
    scale: Vec<Id>,
    /// Axes of the state that s does not have.
    rest: Vec<Axis>,
    /// sum(W D).
    sum: Id,
    /// s sum(W D) as H - sum(X D), or as it is where it was computed anew.
    scaled: Id,
    /// s sum(W D).
    anew: Id,
}

impl Decay {
    fn of(g: &mut Graph, low: &Lowered, i: usize, after: Id) -> Option<Decay> {
        let axes = g.axes(after).to_vec();
        let state = g.leaf(Leaf::State(i), &axes, Dtype::Float);
        let gradient = g.leaf(Leaf::StateGradient(i), &axes, Dtype::Float);
        let large = |leaf: Leaf| matches!(leaf, Leaf::State(i) if low.again[i].is_some());
        let mut terms = Vec::new();
        plain_terms(g, after, false, &mut terms);
        let (old, new): (Vec<_>, Vec<_>) = terms.into_iter().partition(|(n, _)| reads(g, *n, large));
        let [(old, false)] = old[..] else { return None };
        let mut scale = factors(g, old)?;
        scale.remove(scale.iter().position(|n| *n == state)?);
        scale.sort_unstable();
        let kept: HashSet<Axis> = scale.iter().flat_map(|n| g.axes(*n)).copied().collect();
        if scale.iter().any(|n| reads(g, *n, large)) || kept.len() > 1 {
            return None;
        }
        let rest: Vec<Axis> = axes.iter().copied().filter(|a| !kept.contains(a)).collect();
        let sum_with = |g: &mut Graph, x: Id| {
            let both = g.map(Fun::Mul, &[x, gradient]);
            g.fold_all(Fold::Sum, &rest, both)
        };
        let sum = sum_with(g, state);
        let kept: Vec<Axis> = kept.into_iter().collect();
        let mut less = g.number(0.0);
        for (x, negative) in new {
            let part = sum_with(g, x);
            less = g.map(if negative { Fun::Sub } else { Fun::Add }, &[less, part]);
        }
        let follows = g.leaf(Leaf::Follows, &[], Dtype::Float);
        let less = g.map(Fun::Mul, &[less, follows]);
        let carried = g.leaf(Leaf::Carried(i), &kept, Dtype::Float);
        let scaled = g.map(Fun::Sub, &[carried, less]);
        let anew = scale.iter().fold(sum, |p, s| g.map(Fun::Mul, &[p, *s]));
        Some(Decay { state, scale, rest, sum, scaled, anew })
    }
}

/// The factors of a product of floats; none where one of them is taken away.
fn factors(g: &Graph, n: Id) -> Option<Vec<Id>> {
    let (mut open, mut found) = (vec![n], Vec::new());
    while let Some(n) = open.pop() {
        match g.nodes[n].what {
            What::Map(Fun::Mul) => open.extend(&g.nodes[n].operands),
            What::Map(Fun::Neg) => return None,
            _ => found.push(n),
        }
    }
    Some(found)
}

/// Whether a value depends on a leaf of a kind.
fn reads(g: &Graph, n: Id, kind: impl Fn(Leaf) -> bool) -> bool {
    let (mut open, mut seen) = (vec![n], HashSet::new());
    while let Some(n) = open.pop() {
        if !seen.insert(n) {
            continue;
        }
        match g.nodes[n].what {
            What::Leaf(leaf) if kind(leaf) => return true,
            _ => open.extend(&g.nodes[n].operands),
        }
    }
    false
}

/// Puts H - sum(X D) in the place of s sum(W D).
struct Rewrite<'a> {
    g: &'a mut Graph,
    decays: &'a [Option<Decay>],
    /// Leaves and what they hold.
    saved: &'a [(Id, Id)],
    /// The states whose sum(W D) is in a value.
    holds: HashMap<Id, Vec<usize>>,
    done: HashMap<Id, Id>,
}

impl<'a> Rewrite<'a> {
    fn holds(&mut self, n: Id) -> Vec<usize> {
        if let Some(held) = self.holds.get(&n) {
            return held.clone();
        }
        let own = self.decays.iter().position(|d| d.as_ref().is_some_and(|d| d.sum == n));
        let held = match own {
            Some(i) => vec![i],
            None => {
                let operands = self.g.nodes[n].operands.clone();
                let mut held: Vec<usize> = operands.into_iter().flat_map(|o| self.holds(o)).collect();
                held.sort_unstable();
                held.dedup();
                held
            }
        };
        self.holds.insert(n, held.clone());
        held
    }

    /// A value without sum(W D); none where it is not a factor s away.
    fn node(&mut self, n: Id) -> Option<Id> {
        let held = self.holds(n);
        if held.is_empty() {
            return Some(n);
        }
        if let Some(done) = self.done.get(&n) {
            return Some(*done);
        }
        let node = self.g.nodes[n].clone();
        let product = match (node.what == What::Map(Fun::Mul), self.scale(&held)) {
            (true, Some(scale)) => self.product(n, scale),
            _ => None,
        };
        let result = match (product, node.what) {
            (Some(product), _) => product,
            (None, what) => {
                let decays = self.decays;
                if let Some(d) = decays.iter().flatten().find(|d| d.sum == n) {
                    return d.scale.is_empty().then_some(d.scaled);
                }
                if what == What::Map(Fun::Mul) && node.operands.iter().any(|o| self.grows(*o)) {
                    return None;
                }
                let operands = node.operands.iter().map(|o| self.node(*o)).collect::<Option<Vec<_>>>()?;
                match what {
                    What::Map(fun) => self.g.map(fun, &operands),
                    What::Fold(Fold::Sum, axis) => self.g.sum(axis, operands[0]),
                    what => self.g.node(what, operands, node.axes, node.dtype),
                }
            }
        };
        self.done.insert(n, result);
        Some(result)
    }

    /// The factors of s that these states have in common.
    fn scale(&self, states: &[usize]) -> Option<&'a [Id]> {
        let decays = self.decays;
        let (first, others) = states.split_first()?;
        let scale = &decays[*first].as_ref()?.scale;
        others.iter().all(|i| decays[*i].as_ref().is_some_and(|d| d.scale == *scale)).then_some(&scale[..])
    }

    /// A product in which the factors of s are.
    fn product(&mut self, n: Id, scale: &[Id]) -> Option<Id> {
        let mut all = factors(self.g, n)?;
        for s in scale {
            all.swap_remove(all.iter().position(|f| f == s)?);
        }
        let inner = self.one_holding(&mut all)?;
        if all.iter().any(|f| self.grows(*f)) {
            return None;
        }
        let scaled = self.scaled(inner, scale)?;
        Some(all.into_iter().fold(scaled, |p, f| self.g.map(Fun::Mul, &[p, f])))
    }

    /// Whether a factor is an exponential. Of a decay e^(-e^x) it is large where the decay is next to nothing: there H and sum(X D) cancel,
    /// and it would multiply what rounding leaves of them. Nothing bounds it, as the slope of a sigmoid is bounded.
    fn grows(&self, factor: Id) -> bool {
        let held = self.saved.iter().find(|(leaf, _)| *leaf == factor).map_or(factor, |(_, held)| *held);
        self.g.nodes[held].what == What::Map(Fun::Exp)
    }

    /// Takes the only factor that holds a sum.
    fn one_holding(&mut self, factors: &mut Vec<Id>) -> Option<Id> {
        let held: Vec<usize> = (0..factors.len()).filter(|k| !self.holds(factors[*k]).is_empty()).collect();
        let [one] = held[..] else { return None };
        Some(factors.swap_remove(one))
    }

    /// s times a value.
    fn scaled(&mut self, n: Id, scale: &[Id]) -> Option<Id> {
        if let Some(own) = self.decays.iter().flatten().find(|d| d.sum == n) {
            return Some(own.scaled);
        }
        if self.holds(n).is_empty() {
            return Some(scale.iter().fold(n, |p, f| self.g.map(Fun::Mul, &[p, *f])));
        }
        let node = self.g.nodes[n].clone();
        match node.what {
            What::Map(fun @ (Fun::Add | Fun::Sub | Fun::Neg)) => {
                let operands = node.operands.iter().map(|o| self.scaled(*o, scale)).collect::<Option<Vec<_>>>()?;
                Some(self.g.map(fun, &operands))
            }
            What::Map(Fun::Mul) => {
                let mut all = factors(self.g, n)?;
                let inner = self.one_holding(&mut all)?;
                let scaled = self.scaled(inner, scale)?;
                Some(all.into_iter().fold(scaled, |p, f| self.g.map(Fun::Mul, &[p, f])))
            }
            What::Map(Fun::Div) if self.holds(node.operands[1]).is_empty() => {
                let scaled = self.scaled(node.operands[0], scale)?;
                Some(self.g.map(Fun::Div, &[scaled, node.operands[1]]))
            }
            // A sum of sums, one of which may be the one that is looked for.
            What::Fold(Fold::Sum, axis) => {
                let inner = self.g.nodes[node.operands[0]].clone();
                let What::Map(fun @ (Fun::Add | Fun::Sub)) = inner.what else { return None };
                let mut parts = Vec::new();
                for o in inner.operands {
                    let sum = self.g.sum(axis, o);
                    parts.push(self.scaled(sum, scale)?);
                }
                Some(self.g.map(fun, &parts))
            }
            _ => None,
        }
    }
}

/// Makes leaves of the vectors that are sums over a state alone: they are computed on the way forwards through a segment.
struct Pass<'a> {
    g: &'a mut Graph,
    /// States of several axes.
    large: HashSet<usize>,
    /// Whether a value depends on a state of several axes.
    reads: HashMap<Id, bool>,
    done: HashMap<Id, Id>,
    passed: Vec<(Id, Id)>,
}

impl Pass<'_> {
    fn reads(&mut self, n: Id) -> bool {
        if let Some(known) = self.reads.get(&n) {
            return *known;
        }
        let own = matches!(self.g.nodes[n].what, What::Leaf(Leaf::State(i)) if self.large.contains(&i));
        let operands = self.g.nodes[n].operands.clone();
        let result = own || operands.into_iter().any(|o| self.reads(o));
        self.reads.insert(n, result);
        result
    }

    /// A value that reads no state; none where it needs one.
    fn node(&mut self, n: Id) -> Option<Id> {
        if !self.reads(n) {
            return Some(n);
        }
        if let Some(done) = self.done.get(&n) {
            return Some(*done);
        }
        let node = self.g.nodes[n].clone();
        let sum = node.axes.len() <= 1 && node.operands.iter().any(|o| self.g.axes(*o).len() >= 2 && self.reads(*o));
        let result = if sum {
            if node.dtype != Dtype::Float || reads(self.g, n, |l| matches!(l, Leaf::StateGradient(_) | Leaf::Carried(_))) {
                return None;
            }
            let leaf = self.g.leaf(Leaf::Passed(self.passed.len()), &node.axes, Dtype::Float);
            self.passed.push((leaf, n));
            leaf
        } else {
            if node.operands.is_empty() {
                return None;
            }
            let operands = node.operands.iter().map(|o| self.node(*o)).collect::<Option<Vec<_>>>()?;
            self.g.node(node.what, operands, node.axes, node.dtype)
        };
        self.done.insert(n, result);
        Some(result)
    }
}
