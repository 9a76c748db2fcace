//! Strata: parts of the step back that are walked one after the other.
//!
//! Where several states do not fit into the nearest cache together with their gradients, every pass over one of them reads and writes
//! the next cache, which is several times slower than the arithmetic. But not every state's gradient depends on every other's:
//! those that depend on each other in a circle are one component, and components can be walked back one after the other,
//! each through a whole segment of steps, in the order in which they depend on each other.
//! What a later stratum reads of an earlier one are vectors and scalars; they are kept for the steps of one segment.

use std::collections::HashMap;

use super::graph::{Dtype, Graph, Id, Leaf, What};
use super::lower::Lowered;

/// Bytes of states and their gradients up to which they share a stratum: what a nearest cache holds, with room for the vectors of a step.
const STRATUM_BYTES: usize = 32 * 1024;

/// A value that an earlier stratum computes for later ones.
#[derive(Clone, Copy, Debug)]
pub struct Handed {
    /// What the leaf of this number holds.
    pub node: Id,
    /// The stratum that computes it.
    pub stratum: usize,
}

/// Which stratum computes what; all of it is in one where there is nothing to gain.
#[derive(Clone, Debug, Default)]
pub struct Strata {
    /// Number of strata.
    pub count: usize,
    /// Of every state and its gradient.
    pub states: Vec<usize>,
    /// Of the gradient of every argument.
    pub arguments: Vec<usize>,
    /// Of the two factors of every gradient that is a product.
    pub factors: Vec<[usize; 2]>,
    /// What goes from one stratum to later ones.
    pub handed: Vec<Handed>,
}

/// Divides the step back into strata.
pub fn divide(low: &mut Lowered, bytes: usize) {
    // Where the step back reads no states, there is half as much to walk through.
    let mut states = if low.carried.is_empty() { components(low, bytes) } else { vec![0; low.states.len()] };
    loop {
        let mut graph = low.graph.clone();
        match Division::new(&mut graph, low, states.clone()).divided() {
            Ok(done) => {
                low.graph = graph;
                (low.state_gradients, low.undo) = (done.state_gradients, done.undo);
                low.argument_gradients = done.argument_gradients;
                low.factors = done.factors;
                low.strata = done.strata;
                return;
            }
            // A matrix of an earlier stratum is read in a later one: both are one, with all between them.
            Err((first, last)) => {
                for s in &mut states {
                    *s = if *s > last { *s - (last - first) } else { (*s).min(first) };
                }
            }
        }
    }
}

/// The state that a leaf of the adjoint belongs to.
fn state_of(g: &Graph, n: Id) -> Option<usize> {
    match g.nodes[n].what {
        What::Leaf(Leaf::StateGradient(i) | Leaf::After(i) | Leaf::State(i)) => Some(i),
        _ => None,
    }
}

/// The stratum of every state: components in an order in which each depends on earlier ones only, as many in one as fit.
fn components(low: &Lowered, bytes: usize) -> Vec<usize> {
    let g = &low.graph;
    let n = low.states.len();
    // Which states a state's step back needs, also through others.
    let mut needs: Vec<Vec<bool>> = (0..n)
        .map(|i| {
            let seen = reached(g, roots(low, i));
            let mut needs = vec![false; n];
            (0..seen.len()).filter(|n| seen[*n]).filter_map(|n| state_of(g, n)).for_each(|j| needs[j] = true);
            needs
        })
        .collect();
    for k in 0..n {
        for i in 0..n {
            for j in 0..n {
                needs[i][j] |= needs[i][k] && needs[k][j];
            }
        }
    }
    let mut strata: Vec<Option<usize>> = vec![None; n];
    let (mut stratum, mut room) = (0, 0);
    while let Some(first) =
        (0..n).find(|i| strata[*i].is_none() && (0..n).all(|j| !needs[*i][j] || strata[j].is_some() || needs[j][*i]))
    {
        let circle: Vec<usize> = (0..n).filter(|j| *j == first || needs[first][*j] && needs[*j][first]).collect();
        let elements = |i: &usize| g.elements(&low.states[*i].iter().flatten().copied().collect::<Vec<_>>());
        let own = 2 * bytes * circle.iter().map(elements).sum::<usize>();
        if room > 0 && room + own > STRATUM_BYTES {
            (stratum, room) = (stratum + 1, 0);
        }
        room += own;
        circle.into_iter().for_each(|i| strata[i] = Some(stratum));
    }
    strata.into_iter().map(|s| s.unwrap_or(stratum)).collect()
}

fn roots(low: &Lowered, i: usize) -> Vec<Id> {
    let before = low.undo.get(i).copied().flatten();
    before.into_iter().chain([low.state_gradients[i]]).collect()
}

fn reached(g: &Graph, mut open: Vec<Id>) -> Vec<bool> {
    let mut seen = vec![false; g.nodes.len()];
    while let Some(n) = open.pop() {
        if !std::mem::replace(&mut seen[n], true) {
            open.extend(&g.nodes[n].operands);
        }
    }
    seen
}

/// The step back with leaves where a stratum reads what an earlier one has computed.
struct Divided {
    state_gradients: Vec<Id>,
    undo: Vec<Option<Id>>,
    argument_gradients: Vec<Option<Id>>,
    factors: Vec<(usize, Id, Id, [usize; 2])>,
    strata: Strata,
}

struct Division<'a> {
    graph: &'a mut Graph,
    low: &'a Lowered,
    strata: Strata,
    /// The last stratum whose states or gradients a node reads; none where it reads no such thing.
    level: Vec<Option<usize>>,
    /// Whether a node reads a matrix of states or gradients of them, at the same place.
    matrix: Vec<bool>,
    /// What every stratum computes for itself.
    own: Vec<Vec<bool>>,
    done: HashMap<(Id, usize), Id>,
    /// Leaves of what is handed on.
    leaves: HashMap<Id, Id>,
}

impl<'a> Division<'a> {
    fn new(graph: &'a mut Graph, low: &'a Lowered, states: Vec<usize>) -> Division<'a> {
        let (mut level, mut matrix) = (Vec::new(), Vec::new());
        for n in 0..graph.nodes.len() {
            let node = &graph.nodes[n];
            let below = || node.operands.iter();
            let own = state_of(graph, n);
            level.push(own.map(|i| states[i]).max(below().filter_map(|o| level[*o]).max()));
            matrix.push(node.axes.len() >= 2 && (own.is_some() || below().any(|o| matrix[*o])));
        }
        let count = states.iter().max().map_or(1, |s| s + 1);
        let of = |n: Id| level[n].unwrap_or(count - 1);
        let arguments: Vec<usize> = low.argument_gradients.iter().map(|n| n.map_or(0, of)).collect();
        let factors: Vec<[usize; 2]> = low.factors.iter().map(|f| [of(f.1), of(f.2)]).collect();
        let own = (0..count).map(|s| {
            let mut all: Vec<Id> = (0..states.len()).filter(|i| states[*i] == s).flat_map(|i| roots(low, i)).collect();
            all.extend(low.argument_gradients.iter().zip(&arguments).filter(|a| *a.1 == s).filter_map(|a| *a.0));
            reached(graph, all)
        });
        let own = own.collect();
        let strata = Strata { count, states, arguments, factors, handed: Vec::new() };
        Division { graph, low, strata, level, matrix, own, done: HashMap::new(), leaves: HashMap::new() }
    }

    /// Fails with two strata where the later one reads a matrix of the earlier one.
    fn divided(mut self) -> Result<Divided, (usize, usize)> {
        let low = self.low;
        let of = self.strata.clone();
        let mut state_gradients = Vec::new();
        for (n, s) in low.state_gradients.iter().zip(&of.states) {
            state_gradients.push(self.node(*n, *s)?);
        }
        let mut undo = Vec::new();
        for (n, s) in low.undo.iter().zip(&of.states) {
            undo.push(n.map(|n| self.node(n, *s)).transpose()?);
        }
        let mut argument_gradients = Vec::new();
        for (n, s) in low.argument_gradients.iter().zip(&of.arguments) {
            argument_gradients.push(n.map(|n| self.node(n, *s)).transpose()?);
        }
        let mut factors = Vec::new();
        for ((i, left, right, axes), s) in low.factors.iter().zip(&of.factors) {
            factors.push((*i, self.node(*left, s[0])?, self.node(*right, s[1])?, *axes));
        }
        let mut k = 0;
        while let Some(handed) = self.strata.handed.get(k).copied() {
            self.strata.handed[k].node = self.node(handed.node, handed.stratum)?;
            k += 1;
        }
        Ok(Divided { state_gradients, undo, argument_gradients, factors, strata: self.strata })
    }

    /// A node as a stratum computes it.
    fn node(&mut self, n: Id, stratum: usize) -> Result<Id, (usize, usize)> {
        if let Some(done) = self.done.get(&(n, stratum)) {
            return Ok(*done);
        }
        let node = self.graph.nodes[n].clone();
        let result = match self.level[n] {
            None => n,
            Some(level) if level < stratum && self.hands(n, level) => self.handed(n, level),
            Some(level) if level < stratum && self.matrix[n] && node.operands.is_empty() => return Err((level, stratum)),
            Some(_) => {
                let operands = node.operands.iter().map(|o| self.node(*o, stratum)).collect::<Result<Vec<_>, _>>()?;
                if operands == node.operands { n } else { self.graph.node(node.what, operands, node.axes, node.dtype) }
            }
        };
        self.done.insert((n, stratum), result);
        Ok(result)
    }

    /// Whether a value is handed on rather than computed again from what is: its own stratum has it anyway, or only that one can have it.
    fn hands(&self, n: Id, level: usize) -> bool {
        let node = &self.graph.nodes[n];
        let small = node.dtype == Dtype::Float && node.axes.len() <= 1;
        small && (node.operands.is_empty() || self.own[level][n] || node.operands.iter().any(|o| self.matrix[*o]))
    }

    fn handed(&mut self, n: Id, stratum: usize) -> Id {
        if let Some(leaf) = self.leaves.get(&n) {
            return *leaf;
        }
        let axes = self.graph.axes(n).to_vec();
        let leaf = self.graph.leaf(Leaf::Handed(self.strata.handed.len()), &axes, Dtype::Float);
        self.leaves.insert(n, leaf);
        self.strata.handed.push(Handed { node: n, stratum });
        leaf
    }
}
