//! Strata: parts of a step that are walked one after the other.
//!
//! Where several states do not fit into the nearest cache together, with their gradients on the way back, every pass over one of them reads
//! and writes the next cache, which is several times slower than the arithmetic. But not every state depends on every other:
//! those that depend on each other in a circle are one component, and components can be walked one after the other in the order in which
//! they depend on each other: forwards through some steps at a time, back through a whole segment.
//! What a later stratum reads of an earlier one are vectors and scalars; they are kept for these steps.

use std::collections::HashMap;

use super::graph::{Dtype, Graph, Id, Leaf, What};
use super::lower::Lowered;

/// Bytes of states up to which they share a stratum forwards: a nearest cache holds them beside the vectors of a step.
const AHEAD_BYTES: usize = 24 * 1024;

/// Bytes of states and their gradients up to which they share a stratum back, where one state is as much already.
const BACK_BYTES: usize = 32 * 1024;

/// A value that an earlier stratum computes for later ones.
#[derive(Clone, Copy, Debug)]
pub struct Handed {
    /// What the leaf of this number holds.
    pub node: Id,
    /// The stratum that computes it.
    pub stratum: usize,
}

/// Which stratum of the step computes what; all of it is in one where there is nothing to gain.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    /// Number of strata.
    pub count: usize,
    /// Of every state.
    pub states: Vec<usize>,
    /// Of every kept value.
    pub kept: Vec<usize>,
    /// Of every value that is saved for the way back.
    pub saved: Vec<usize>,
    /// What goes from one stratum to later ones.
    pub brought: Vec<Handed>,
}

/// Which stratum of the step back computes what; all of it is in one where there is nothing to gain.
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

/// Divides the step and the step back into strata.
pub fn divide(low: &mut Lowered, bytes: usize) {
    ahead(low, bytes);
    back(low, bytes);
}

fn ahead(low: &mut Lowered, bytes: usize) {
    let states = components(low, |i| vec![low.next[i]], bytes, AHEAD_BYTES);
    let (graph, next, kept, saved, ahead) = settled(states, |states| {
        let mut graph = low.graph.clone();
        let mut division = Division::new(&mut graph, states, Leaf::Brought);
        low.next.iter().zip(states).for_each(|(n, s)| division.computes(*n, *s));
        let kept_of: Vec<usize> = low.kept.iter().map(|n| division.home(*n)).collect();
        let saved_of: Vec<usize> = low.saved.iter().map(|(_, n)| division.home(*n)).collect();
        low.kept.iter().zip(&kept_of).for_each(|(n, s)| division.computes(*n, *s));
        low.saved.iter().zip(&saved_of).for_each(|((_, n), s)| division.computes(*n, *s));
        let mut each = |nodes: Vec<Id>, of: &[usize]| {
            nodes.into_iter().zip(of).map(|(n, s)| division.node(n, *s)).collect::<Result<Vec<_>, _>>()
        };
        let next = each(low.next.clone(), states)?;
        let kept = each(low.kept.clone(), &kept_of)?;
        let saved = each(low.saved.iter().map(|s| s.1).collect(), &saved_of)?;
        let (count, brought) = (division.count(), division.handed()?);
        let ahead = Ahead { count, states: states.to_vec(), kept: kept_of, saved: saved_of, brought };
        Ok((graph, next, kept, saved, ahead))
    });
    (low.graph, low.next, low.kept, low.ahead) = (graph, next, kept, ahead);
    low.saved.iter_mut().zip(saved).for_each(|(s, n)| s.1 = n);
}

fn back(low: &mut Lowered, bytes: usize) {
    // Where the step back reads no states, there is half as much to walk through.
    let states = match low.carried.is_empty() {
        true => components(low, |i| roots(low, i), 2 * bytes, BACK_BYTES),
        false => vec![0; low.states.len()],
    };
    let (graph, done) = settled(states, |states| {
        let mut graph = low.graph.clone();
        let done = divided_back(Division::new(&mut graph, states, Leaf::Handed), low, states)?;
        Ok((graph, done))
    });
    low.graph = graph;
    (low.state_gradients, low.undo) = (done.state_gradients, done.undo);
    low.argument_gradients = done.argument_gradients;
    low.factors = done.factors;
    low.strata = done.strata;
}

/// What comes of the first division that needs no matrix of one stratum in a later one, `states` with their strata to begin with.
fn settled<T>(mut states: Vec<usize>, mut divided: impl FnMut(&[usize]) -> Result<T, Crossing>) -> T {
    loop {
        match divided(&states) {
            Ok(done) => return done,
            // Both are one, with all between them.
            Err(Crossing { first, last }) => {
                for s in &mut states {
                    *s = if *s > last { *s - (last - first) } else { (*s).min(first) };
                }
            }
        }
    }
}

/// A matrix of the stratum `first` is read in `last`.
struct Crossing {
    first: usize,
    last: usize,
}

/// The state that a leaf belongs to.
fn state_of(g: &Graph, n: Id) -> Option<usize> {
    match g.nodes[n].what {
        What::Leaf(Leaf::StateGradient(i) | Leaf::After(i) | Leaf::State(i)) => Some(i),
        _ => None,
    }
}

/// The stratum of every state: components in an order in which each depends on earlier ones only, as many in one as fit into `most` bytes,
/// `bytes` an element. `roots` are what a state's step computes.
fn components(low: &Lowered, roots: impl Fn(usize) -> Vec<Id>, bytes: usize, most: usize) -> Vec<usize> {
    let g = &low.graph;
    let n = low.states.len();
    // Which states a state's step needs, also through others.
    let mut needs: Vec<Vec<bool>> = (0..n)
        .map(|i| {
            let mut seen = vec![false; g.nodes.len()];
            reach(g, roots(i), &mut seen);
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
        let own = bytes * circle.iter().map(elements).sum::<usize>();
        if room > 0 && room + own > most {
            (stratum, room) = (stratum + 1, 0);
        }
        room += own;
        circle.into_iter().for_each(|i| strata[i] = Some(stratum));
    }
    strata.into_iter().map(|s| s.unwrap_or(stratum)).collect()
}

/// What the step back of state i computes.
fn roots(low: &Lowered, i: usize) -> Vec<Id> {
    let before = low.undo.get(i).copied().flatten();
    before.into_iter().chain([low.state_gradients[i]]).collect()
}

/// Marks everything that is needed for what is `open`.
fn reach(g: &Graph, mut open: Vec<Id>, seen: &mut [bool]) {
    while let Some(n) = open.pop() {
        if !std::mem::replace(&mut seen[n], true) {
            open.extend(&g.nodes[n].operands);
        }
    }
}

/// The step back with leaves where a stratum reads what an earlier one has computed.
struct Divided {
    state_gradients: Vec<Id>,
    undo: Vec<Option<Id>>,
    argument_gradients: Vec<Option<Id>>,
    factors: Vec<(usize, Id, Id, [usize; 2])>,
    strata: Strata,
}

fn divided_back(mut division: Division<'_>, low: &Lowered, states: &[usize]) -> Result<Divided, Crossing> {
    let count = division.count();
    let of = |division: &Division<'_>, n: Id| division.level[n].unwrap_or(count - 1);
    let arguments: Vec<usize> = low.argument_gradients.iter().map(|n| n.map_or(0, |n| of(&division, n))).collect();
    let factors: Vec<[usize; 2]> = low.factors.iter().map(|f| [of(&division, f.1), of(&division, f.2)]).collect();
    for (i, s) in states.iter().enumerate() {
        roots(low, i).into_iter().for_each(|n| division.computes(n, *s));
    }
    for (n, s) in low.argument_gradients.iter().zip(&arguments) {
        n.iter().for_each(|n| division.computes(*n, *s));
    }
    let mut state_gradients = Vec::new();
    for (n, s) in low.state_gradients.iter().zip(states) {
        state_gradients.push(division.node(*n, *s)?);
    }
    let mut undo = Vec::new();
    for (n, s) in low.undo.iter().zip(states) {
        undo.push(n.map(|n| division.node(n, *s)).transpose()?);
    }
    let mut argument_gradients = Vec::new();
    for (n, s) in low.argument_gradients.iter().zip(&arguments) {
        argument_gradients.push(n.map(|n| division.node(n, *s)).transpose()?);
    }
    let mut of_products = Vec::new();
    for ((i, left, right, axes), s) in low.factors.iter().zip(&factors) {
        of_products.push((*i, division.node(*left, s[0])?, division.node(*right, s[1])?, *axes));
    }
    let strata = Strata { count, states: states.to_vec(), arguments, factors, handed: division.handed()? };
    Ok(Divided { state_gradients, undo, argument_gradients, factors: of_products, strata })
}

/// A graph with leaves where a stratum reads what an earlier one has computed.
struct Division<'a> {
    graph: &'a mut Graph,
    /// The leaf of what is handed on under a number.
    leaf: fn(usize) -> Leaf,
    handed: Vec<Handed>,
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
    fn new(graph: &'a mut Graph, states: &[usize], leaf: fn(usize) -> Leaf) -> Division<'a> {
        let (mut level, mut matrix) = (Vec::new(), Vec::new());
        for n in 0..graph.nodes.len() {
            let node = &graph.nodes[n];
            let below = || node.operands.iter();
            let own = state_of(graph, n);
            level.push(own.map(|i| states[i]).max(below().filter_map(|o| level[*o]).max()));
            matrix.push(node.axes.len() >= 2 && (own.is_some() || below().any(|o| matrix[*o])));
        }
        let own = vec![vec![false; graph.nodes.len()]; states.iter().max().map_or(1, |s| s + 1)];
        Division { graph, leaf, handed: Vec::new(), level, matrix, own, done: HashMap::new(), leaves: HashMap::new() }
    }

    fn count(&self) -> usize {
        self.own.len()
    }

    /// Says that a stratum computes a node, with everything that it is computed from.
    fn computes(&mut self, n: Id, stratum: usize) {
        reach(self.graph, vec![n], &mut self.own[stratum]);
    }

    /// The stratum where a node is cheapest.
    fn home(&self, n: Id) -> usize {
        self.level[n].or_else(|| self.own.iter().position(|own| own[n])).unwrap_or(self.count() - 1)
    }

    /// What is handed on for everything that has been asked for.
    fn handed(mut self) -> Result<Vec<Handed>, Crossing> {
        let mut k = 0;
        while let Some(handed) = self.handed.get(k).copied() {
            self.handed[k].node = self.node(handed.node, handed.stratum)?;
            k += 1;
        }
        Ok(self.handed)
    }

    /// A node as a stratum computes it.
    fn node(&mut self, n: Id, stratum: usize) -> Result<Id, Crossing> {
        if let Some(done) = self.done.get(&(n, stratum)) {
            return Ok(*done);
        }
        let node = self.graph.nodes[n].clone();
        let result = match self.level[n] {
            None => n,
            Some(level) if level < stratum && self.hands(n, level) => self.handed_on(n, level),
            Some(level) if level < stratum && self.matrix[n] && node.operands.is_empty() => {
                return Err(Crossing { first: level, last: stratum });
            }
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

    fn handed_on(&mut self, n: Id, stratum: usize) -> Id {
        if let Some(leaf) = self.leaves.get(&n) {
            return *leaf;
        }
        let axes = self.graph.axes(n).to_vec();
        let leaf = self.graph.leaf((self.leaf)(self.handed.len()), &axes, Dtype::Float);
        self.leaves.insert(n, leaf);
        self.handed.push(Handed { node: n, stratum });
        leaf
    }
}
