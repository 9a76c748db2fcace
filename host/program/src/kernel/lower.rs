//! From the operators of a step to the graph over named axes.

use fwp_sdk::program::{DType, Function, NodeId, Op, Type};

use super::adapt;
use super::axes::{self, Axes};
use super::carry::Carried;
use super::form::InStep;
use super::graph::{Axis, Dtype, Fold, Fun, Graph, Id, Leaf, What};
use super::strata::{Ahead, Strata};
use crate::adjoint::{types, with_adjoint};
use crate::graph::sizes;

/// A step and its adjoint.
pub struct Lowered {
    pub graph: Graph,
    /// Axes by how well they suit the step forwards as lanes. The order of the graph weighs the step, the step again and its adjoint.
    pub order_ahead: Vec<Axis>,
    /// Axes of every argument, by dimension.
    pub arguments: Vec<Vec<Option<Axis>>>,
    /// Axes of every state, by dimension.
    pub states: Vec<Vec<Option<Axis>>>,
    /// Axes of every kept value, by dimension.
    pub kept_axes: Vec<Vec<Option<Axis>>>,
    /// Sizes of every kept value.
    pub kept_shapes: Vec<Vec<usize>>,
    /// Kept values.
    pub kept: Vec<Id>,
    /// States after the step.
    pub next: Vec<Id>,
    /// Gradients of arguments; none for integers and masks.
    pub argument_gradients: Vec<Option<Id>>,
    /// Gradients of the states before the step.
    pub state_gradients: Vec<Id>,
    /// Gradients of matrices that are one outer product: argument, left and right factor, their axes.
    pub factors: Vec<(usize, Id, Id, [Axis; 2])>,
    /// Values that the adjoint reads as leaves and that the step computes: leaf and value.
    pub saved: Vec<(Id, Id)>,
    /// What a step adds to every state of several axes, if that is all it does to any of them: then the adjoint reads the states after the step.
    /// Empty otherwise. `adapt::save` makes it the states before the step.
    pub undo: Vec<Option<Id>>,
    /// States of several axes after the step, from those before it and saved values.
    pub again: Vec<Option<Id>>,
    /// Where states are computed back: the same step with states before it as they are stored, for segments in which they cannot be.
    pub stored: Option<Box<Lowered>>,
    /// What is carried backwards beside the gradient of a state, where that lets the adjoint do without states (see `carry`).
    pub carried: Vec<Option<Carried>>,
    /// Values that the adjoint reads as leaves and that are computed from states on the way forwards through a segment: leaf and value.
    /// With any of them, the adjoint reads no state of several axes.
    pub passed: Vec<(Id, Id)>,
    /// Parts of the step; one before `strata::divide`.
    pub ahead: Ahead,
    /// Parts of the step back; one before `strata::divide`.
    pub strata: Strata,
}

impl Lowered {
    /// Does the same to the step with states stored, where there is such a form.
    pub fn each_form(&mut self, change: impl Fn(&mut Lowered)) {
        change(self);
        self.stored.iter_mut().for_each(|stored| change(stored));
    }

    /// Gradients of states and arguments.
    pub fn gradients(&self) -> impl Iterator<Item = Id> {
        self.state_gradients.iter().chain(self.argument_gradients.iter().flatten()).copied()
    }
}

struct Lowering<'a> {
    f: &'a Function,
    types: &'a [Type],
    axes: &'a Axes,
    graph: Graph,
    done: Vec<Id>,
    arguments: usize,
    kept: usize,
}

/// Lowers a step with its adjoint. `rows` says that of one axis only so many places are computed at a time, `back` that states are computed
/// back where that is possible.
pub fn lower(step: &InStep, rows: Option<(Axis, usize)>, back: bool) -> Result<Lowered, String> {
    let f = with_adjoint(step)?;
    let states: Vec<_> = step.states.iter().map(|s| s.state.clone()).collect();
    let types = types(&f, &states)?;
    let n_arguments = step.function.arguments.len();
    let node_of = |op: Op| f.nodes.iter().position(|n| n.op == op).map(|n| n as NodeId);
    // States, their next values and both of their gradients are laid out alike, and gradients like what they are of.
    let mut same: Vec<(NodeId, NodeId)> = Vec::new();
    let mut join = |a: Option<NodeId>, b: Option<NodeId>| {
        if let (Some(a), Some(b)) = (a, b) {
            same.push((a, b));
        }
    };
    let floats: Vec<usize> = (0..n_arguments).filter(|i| is_float(&step.function.arguments[*i].ty)).collect();
    let results = step.kept + step.states.len();
    for i in 0..step.states.len() {
        let before = node_of(Op::State { index: i as u32 });
        let after = f.outputs[step.kept + i].node;
        let seed = node_of(Op::Argument { index: (n_arguments + step.kept + i) as u32 });
        let gradient = f.outputs[results + floats.len() + i].node;
        join(before, Some(after));
        join(Some(after), seed);
        join(Some(after), Some(gradient));
    }
    for i in 0..step.kept {
        join(Some(f.outputs[i].node), node_of(Op::Argument { index: (n_arguments + i) as u32 }));
    }
    for (k, i) in floats.iter().enumerate() {
        join(node_of(Op::Argument { index: *i as u32 }), Some(f.outputs[results + k].node));
    }
    let axes = axes::find(&f, &types, &same);
    let mut axis_sizes = axes.sizes.clone();
    if let Some((axis, n)) = rows {
        axis_sizes[axis] = n;
    }
    let forward = crate::graph::ancestors(&f, f.outputs[..results].iter().map(|o| o.node));
    // Steps forwards are computed twice.
    let order = order(&f, &types, &axes, |i| if forward[i] { 2 } else { 1 }, (0..axes.sizes.len()).collect());
    let mut order_ahead = self::order(&f, &types, &axes, |i| usize::from(forward[i]), order.clone());
    let graph = Graph { sizes: axis_sizes, order, ..Graph::default() };
    let mut l = Lowering { f: &f, types: &types, axes: &axes, graph, done: Vec::new(), arguments: n_arguments, kept: step.kept };
    // Nodes of the step itself come first and keep the form in which they are written.
    l.done = vec![usize::MAX; f.nodes.len()];
    // Where a state's next value or gradient could not have the state's axes, it changes them.
    let state_axes: Vec<Vec<Option<Axis>>> = (0..step.states.len())
        .map(|i| match node_of(Op::State { index: i as u32 }) {
            Some(n) => axes.of[n as usize].clone(),
            None => axes.of[f.outputs[step.kept + i].node as usize].clone(),
        })
        .collect();
    let (mut kept, mut next, mut undo) = (Vec::new(), Vec::new(), Vec::new());
    for pass in [true, false] {
        l.graph.distribute = !pass;
        if !pass {
            kept = (0..step.kept).map(|i| l.done[f.outputs[i].node as usize]).collect();
            next = (0..step.states.len()).map(|i| l.aligned(f.outputs[step.kept + i].node, &state_axes[i])).collect();
            let states: Vec<(Option<NodeId>, NodeId)> =
                (0..step.states.len()).map(|i| (node_of(Op::State { index: i as u32 }), f.outputs[step.kept + i].node)).collect();
            undo = if back { l.undo(&states) } else { Vec::new() };
        }
        for (i, own) in forward.iter().enumerate() {
            if *own == pass {
                l.done[i] = l.node(i).map_err(|why| format!("`{}`: {why}", f.nodes[i].op.name()))?;
            }
        }
    }
    let given = |op: Op, shape: &[usize], graph: &mut Graph| -> Vec<Option<Axis>> {
        match node_of(op) {
            Some(n) => axes.of[n as usize].clone(),
            // Nothing reads it: axes of its own.
            None => shape.iter().map(|n| (*n > 1).then(|| fresh(graph, *n))).collect(),
        }
    };
    let mut graph = std::mem::take(&mut l.graph);
    let arguments: Vec<Vec<Option<Axis>>> = (0..n_arguments)
        .map(|i| given(Op::Argument { index: i as u32 }, sizes(&step.function.arguments[i].ty), &mut graph))
        .collect();
    l.graph = graph;
    let mut argument_gradients = vec![None; n_arguments];
    for (k, i) in floats.iter().enumerate() {
        argument_gradients[*i] = Some(l.aligned(f.outputs[results + k].node, &arguments[*i]));
    }
    let state_gradients =
        (0..step.states.len()).map(|i| l.aligned(f.outputs[results + floats.len() + i].node, &state_axes[i])).collect();
    // Axes of their own have come since.
    order_ahead.extend_from_slice(&l.graph.order[order_ahead.len()..]);
    Ok(Lowered {
        order_ahead,
        arguments,
        states: state_axes,
        kept_axes: (0..step.kept).map(|i| axes.of[f.outputs[i].node as usize].clone()).collect(),
        kept_shapes: (0..step.kept).map(|i| sizes(&types[f.outputs[i].node as usize]).to_vec()).collect(),
        kept,
        next,
        argument_gradients,
        state_gradients,
        factors: Vec::new(),
        saved: Vec::new(),
        undo,
        again: Vec::new(),
        stored: None,
        carried: Vec::new(),
        passed: Vec::new(),
        ahead: Ahead::default(),
        strata: Strata::default(),
        graph: l.graph,
    })
}

fn is_float(ty: &Type) -> bool {
    crate::graph::is_float(ty)
}

fn fresh(graph: &mut Graph, size: usize) -> Axis {
    graph.sizes.push(size);
    let axis = graph.sizes.len() - 1;
    graph.order.push(axis);
    axis
}

/// What changes axes into others, all at once.
fn renamed(graph: &mut Graph, have: &[Option<Axis>], wanted: &[Option<Axis>]) -> Vec<(Axis, Id)> {
    let mut places = Vec::new();
    for (have, want) in have.iter().zip(wanted) {
        if let (Some(have), Some(want)) = (*have, *want)
            && have != want
        {
            places.push((have, graph.iota(Some(want))));
        }
    }
    places
}

/// Axes by how well they suit as lanes, where a node weighs so much: a sum across lanes is the expensive kind. Those that suit alike
/// stay in the order in which they are given.
fn order(f: &Function, types: &[Type], axes: &Axes, weight: impl Fn(usize) -> usize, mut order: Vec<Axis>) -> Vec<Axis> {
    let n = axes.sizes.len();
    let (mut across, mut seen) = (vec![0usize; n], vec![0usize; n]);
    for (i, node) in f.nodes.iter().enumerate() {
        let weight = weight(i);
        let mut sum = |x: NodeId, dims: &[usize]| {
            let elements = sizes(&types[x as usize]).iter().product::<usize>();
            for d in dims {
                if let Some(a) = axes.of[x as usize][*d] {
                    across[a] += weight * elements;
                }
            }
        };
        match &node.op {
            Op::MatVec => sum(node.operands[0], &[1]),
            Op::MatVecT => sum(node.operands[0], &[0]),
            Op::Sum { axes } | Op::Mean { axes } if sizes(&types[node.operands[0] as usize]).len() > 1 => {
                sum(node.operands[0], axes)
            }
            _ => {}
        }
        let shape = sizes(&types[i]);
        if shape.len() > 1 && weight > 0 {
            let elements = shape.iter().product::<usize>();
            axes.of[i].iter().flatten().for_each(|a| seen[*a] += elements);
        }
    }
    // Sums across lanes for every element; a short axis wastes lanes.
    let bad = |a: &Axis| {
        let share = if seen[*a] == 0 { 0.0 } else { across[*a] as f64 / seen[*a] as f64 };
        share + 16.0 / axes.sizes[*a] as f64
    };
    order.sort_by(|a, b| (seen[*a] == 0).cmp(&(seen[*b] == 0)).then(bad(a).total_cmp(&bad(b))));
    order
}

impl Lowering<'_> {
    /// What the step adds to every state of several axes (see [`Lowered::undo`]); `states` are the nodes before and after the step.
    /// From here on such states are what they are after the step, and less that before it.
    fn undo(&mut self, states: &[(Option<NodeId>, NodeId)]) -> Vec<Option<Id>> {
        let wide = |n: NodeId, axes: &Axes| axes.of[n as usize].iter().flatten().count() >= 2;
        let mut changes = vec![None; states.len()];
        for (i, (before, after)) in states.iter().enumerate() {
            let Some(before) = before.filter(|n| wide(*n, self.axes)) else {
                if wide(*after, self.axes) {
                    return Vec::new();
                }
                continue;
            };
            if self.axes.of[before as usize] != self.axes.of[*after as usize] {
                return Vec::new();
            }
            let (before, after) = (self.done[before as usize], self.done[*after as usize]);
            let Some(change) = adapt::change(&mut self.graph, before, after) else { return Vec::new() };
            changes[i] = Some(change);
        }
        for (i, change) in changes.iter().enumerate() {
            if let (Some(change), (Some(before), after)) = (change, states[i]) {
                let axes = self.graph.axes(self.done[before as usize]).to_vec();
                let leaf = self.graph.leaf(Leaf::After(i), &axes, Dtype::Float);
                self.done[before as usize] = self.graph.map(Fun::Sub, &[leaf, *change]);
                self.done[after as usize] = leaf;
            }
        }
        changes
    }

    fn shape(&self, n: NodeId) -> &[usize] {
        sizes(&self.types[n as usize])
    }

    /// The value of a node with these axes for its dimensions.
    fn aligned(&mut self, n: NodeId, wanted: &[Option<Axis>]) -> Id {
        let have = &self.axes.of[n as usize];
        let places = renamed(&mut self.graph, have, wanted);
        let x = self.done[n as usize];
        self.graph.take(x, &places)
    }

    fn node(&mut self, i: usize) -> Result<Id, String> {
        let f = self.f;
        let node = &f.nodes[i];
        let x = node.operands.as_slice();
        let own = self.axes.of[i].clone();
        let present: Vec<Axis> = own.iter().flatten().copied().collect();
        if let Some(fun) = elementwise(&node.op) {
            let given = self.elements(x, &own);
            return Ok(self.graph.map(fun, &given));
        }
        Ok(match &node.op {
            Op::Argument { index } => {
                let index = *index as usize;
                let dtype = match &self.types[i] {
                    Type::Tensor(t) if t.dtype == DType::Int => Dtype::Int,
                    Type::Tensor(t) if t.dtype == DType::Mask => Dtype::Mask,
                    _ => Dtype::Float,
                };
                let leaf = if index < self.arguments {
                    Leaf::Argument(index)
                } else if index < self.arguments + self.kept {
                    Leaf::KeptGradient(index - self.arguments)
                } else {
                    Leaf::StateGradient(index - self.arguments - self.kept)
                };
                self.graph.leaf(leaf, &present, dtype)
            }
            Op::State { index } => self.graph.leaf(Leaf::State(*index as usize), &present, Dtype::Float),
            Op::StepIndex => self.graph.leaf(Leaf::Index, &[], Dtype::Int),
            Op::Constant { value } | Op::Full { value, .. } => self.graph.number(*value),
            Op::Integer { value } => self.graph.integer(*value),
            Op::Table { values, .. } => {
                let bits = values.iter().map(|v| v.to_bits()).collect();
                let mut axes = present.clone();
                axes.sort_unstable();
                self.graph.node(What::Table(present, bits), vec![], axes, Dtype::Float)
            }
            Op::Eye { .. } => {
                let (a, b) = (self.graph.iota(own[0]), self.graph.iota(own[1]));
                let same = self.graph.map(Fun::Equal, &[a, b]);
                self.graph.map(Fun::ToFloat, &[same])
            }
            Op::Arange { .. } => self.graph.iota(own[0]),
            Op::StopGradient | Op::Expand { .. } | Op::Transpose { .. } => {
                let wanted: Vec<Option<Axis>> = match &node.op {
                    Op::Expand { axis, .. } => (0..own.len()).filter(|d| d != axis).map(|d| own[d]).collect(),
                    Op::Transpose { order } => {
                        let mut wanted = vec![None; own.len()];
                        order.iter().enumerate().for_each(|(to, from)| wanted[*from] = own[to]);
                        wanted
                    }
                    _ => own,
                };
                self.aligned(x[0], &wanted)
            }
            Op::Square => {
                let a = self.elements(x, &own)[0];
                self.graph.map(Fun::Mul, &[a, a])
            }
            Op::Reciprocal => {
                let a = self.elements(x, &own)[0];
                let one = self.graph.number(1.0);
                self.graph.map(Fun::Div, &[one, a])
            }
            Op::Silu => {
                let a = self.elements(x, &own)[0];
                let s = self.graph.map(Fun::Sigmoid, &[a]);
                self.graph.map(Fun::Mul, &[a, s])
            }
            Op::Gelu | Op::GeluTanh => {
                let a = self.elements(x, &own)[0];
                self.gelu(a, node.op == Op::GeluTanh)
            }
            Op::DivOr => {
                let g = self.elements(x, &own);
                let zero = self.graph.number(0.0);
                let none = self.graph.map(Fun::Equal, &[g[1], zero]);
                let quotient = self.graph.map(Fun::Div, &[g[0], g[1]]);
                self.graph.map(Fun::Select, &[none, g[2], quotient])
            }
            Op::MatVec | Op::MatVecT | Op::MatMul | Op::Outer | Op::Dot => self.products(&node.op, x, &own),
            Op::SolveSpd { iterations, tolerance } => self.solve(x, &own, *iterations, *tolerance)?,
            Op::Reshape { .. } => self.reshape(x[0], i as NodeId)?,
            Op::Slice { axis, start, .. } => {
                let here = self.graph.iota(own[*axis]);
                let start = self.graph.integer(*start as i64);
                let place = self.graph.map(Fun::Add, &[here, start]);
                self.replaced(x[0], &own, *axis, place)
            }
            Op::Roll { axis, shift } => {
                let n = self.shape(x[0])[*axis] as i64;
                let here = self.graph.iota(own[*axis]);
                let back = self.graph.integer((-shift).rem_euclid(n));
                let size = self.graph.integer(n);
                let place = self.graph.map(Fun::Add, &[here, back]);
                let place = self.graph.map(Fun::Rem, &[place, size]);
                self.replaced(x[0], &own, *axis, place)
            }
            Op::Flip { axis } => {
                let last = self.graph.integer(self.shape(x[0])[*axis] as i64 - 1);
                let here = self.graph.iota(own[*axis]);
                let place = self.graph.map(Fun::Sub, &[last, here]);
                self.replaced(x[0], &own, *axis, place)
            }
            Op::Concat { axis } => self.concat(x, &own, *axis),
            Op::OneHot { .. } => {
                let wanted: Vec<Option<Axis>> = own[..own.len() - 1].to_vec();
                let index = self.aligned(x[0], &wanted);
                let here = self.graph.iota(own[own.len() - 1]);
                let same = self.graph.map(Fun::Equal, &[index, here]);
                self.graph.map(Fun::ToFloat, &[same])
            }
            Op::Gather => {
                let n = self.shape(x[1]).len();
                let index = self.aligned(x[1], &own[..n]);
                // A row that is not there would be read outside of the table: the nearest one is taken.
                let size = self.shape(x[0])[0];
                let (zero, last) = (self.graph.integer(0), self.graph.integer(size as i64 - 1));
                let index = self.graph.map(Fun::Max, &[index, zero]);
                let index = self.graph.map(Fun::Min, &[index, last]);
                let have = self.axes.of[x[0] as usize].clone();
                let mut places = renamed(&mut self.graph, &have[1..], &own[n..]);
                places.extend(have[0].map(|axis| (axis, index)));
                self.graph.take(self.done[x[0] as usize], &places)
            }
            Op::Sum { axes } | Op::Mean { axes } | Op::ReduceMax { axes } | Op::ReduceMin { axes } => {
                let (axes, op) = (axes.clone(), node.op.clone());
                self.reduce(&op, x[0], &axes, &own)
            }
            Op::Cumsum { axis } => {
                let a = self.aligned(x[0], &own);
                match own[*axis] {
                    Some(axis) => self.cumsum(axis, a),
                    None => a,
                }
            }
            Op::Softmax { axis } | Op::LogSoftmax { axis } => {
                let a = self.aligned(x[0], &own);
                self.softmax(a, own[*axis], matches!(node.op, Op::LogSoftmax { .. }))
            }
            Op::LogSumExp { axis } => {
                let a = self.done[x[0] as usize];
                let mut have = self.axes.of[x[0] as usize].clone();
                let sum = match have.remove(*axis) {
                    Some(inner) => self.log_sum_exp(a, inner),
                    None => a,
                };
                let places = renamed(&mut self.graph, &have, &own);
                self.graph.take(sum, &places)
            }
            Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::L2Normalise { .. } | Op::SumNormalise { .. } => {
                let a = self.aligned(x[0], &own);
                let n = self.shape(x[0])[own.len() - 1];
                self.norm(&node.op, a, own[own.len() - 1], n)
            }
            Op::Rotary { base, interleaved } => {
                let d = self.shape(x[0])[own.len() - 1];
                self.rotary(x, &own, d, *base, *interleaved)
            }
            other => return Err(format!("`{}` has no value at a single step", other.name())),
        })
    }

    /// Operands of an operation on elements, with the axes of its result.
    fn elements(&mut self, x: &[NodeId], own: &[Option<Axis>]) -> Vec<Id> {
        x.iter().map(|o| if self.shape(*o).is_empty() { self.done[*o as usize] } else { self.aligned(*o, own) }).collect()
    }

    fn gelu(&mut self, x: Id, by_tanh: bool) -> Id {
        use std::f64::consts::{FRAC_1_SQRT_2, PI};
        let g = &mut self.graph;
        let (half, one) = (g.number(0.5), g.number(1.0));
        let inner = if by_tanh {
            let (a, c) = (g.number(0.044715), g.number((2.0 / PI).sqrt()));
            let square = g.map(Fun::Mul, &[x, x]);
            let cube = g.map(Fun::Mul, &[square, x]);
            let bent = g.map(Fun::Mul, &[a, cube]);
            let sum = g.map(Fun::Add, &[x, bent]);
            let scaled = g.map(Fun::Mul, &[c, sum]);
            g.map(Fun::Tanh, &[scaled])
        } else {
            let c = g.number(FRAC_1_SQRT_2);
            let scaled = g.map(Fun::Mul, &[c, x]);
            g.map(Fun::Erf, &[scaled])
        };
        let above = g.map(Fun::Add, &[one, inner]);
        let x = g.map(Fun::Mul, &[half, x]);
        g.map(Fun::Mul, &[x, above])
    }

    fn products(&mut self, op: &Op, x: &[NodeId], own: &[Option<Axis>]) -> Id {
        let first = self.axes.of[x[0] as usize].clone();
        let (a, b, over): (Vec<_>, Vec<_>, Vec<_>) = match op {
            // The matrix keeps the axis that is summed over, the vector follows.
            Op::MatVec => (vec![own[0], first[1]], vec![first[1]], vec![first[1]]),
            Op::MatVecT => (vec![first[0], own[0]], vec![first[0]], vec![first[0]]),
            Op::MatMul => (vec![own[0], first[1]], vec![first[1], own[1]], vec![first[1]]),
            Op::Outer => (vec![own[0]], vec![own[1]], vec![]),
            _ => (first.clone(), first.clone(), first.clone()),
        };
        // A matrix whose kept axis could not be the result's keeps its own, and the result changes its axis.
        let mut back = Vec::new();
        let mut a = a;
        let mut b = b;
        if !matches!(op, Op::Outer) {
            for (d, axis) in a.iter_mut().enumerate() {
                if *axis != first[d] {
                    back.push((first[d], *axis));
                    *axis = first[d];
                }
            }
            if matches!(op, Op::MatMul) && b[1].is_some() && (b[1] == b[0] || a.contains(&b[1])) {
                // The result's columns need an axis that neither factor has.
                let size = self.shape(x[1])[1];
                let own = fresh(&mut self.graph, size);
                back.push((Some(own), b[1]));
                b[1] = Some(own);
            }
        }
        let a = self.aligned(x[0], &a);
        let b = self.aligned(x[1], &b);
        let product = self.graph.map(Fun::Mul, &[a, b]);
        let over: Vec<Axis> = over.into_iter().flatten().collect();
        let result = self.graph.fold_all(Fold::Sum, &over, product);
        let places: Vec<(Axis, Id)> = back.into_iter().filter_map(|(from, to)| Some((from?, self.graph.iota(to)))).collect();
        self.graph.take(result, &places)
    }

    fn solve(&mut self, x: &[NodeId], own: &[Option<Axis>], iterations: usize, tolerance: f64) -> Result<Id, String> {
        let Some(second) = own[0] else {
            // One equation with one unknown.
            let (a, b) = (self.done[x[0] as usize], self.done[x[1] as usize]);
            return Ok(self.graph.map(Fun::Div, &[b, a]));
        };
        let n = self.shape(x[1])[0];
        let have = self.axes.of[x[0] as usize].clone();
        let first = match have.iter().flatten().copied().find(|a| *a != second) {
            Some(a) => a,
            None => fresh(&mut self.graph, n),
        };
        let a = self.aligned(x[0], &[Some(first), Some(second)]);
        let b = self.aligned(x[1], own);
        let what = What::Solve { first, second, iterations, tolerance: tolerance.to_bits() };
        Ok(self.graph.node(what, vec![a, b], vec![second], Dtype::Float))
    }

    /// The operand with one dimension's place given.
    fn replaced(&mut self, x: NodeId, own: &[Option<Axis>], axis: usize, place: Id) -> Id {
        let mut wanted = own.to_vec();
        let old = self.axes.of[x as usize][axis];
        wanted[axis] = old;
        // An axis that the operand's other dimensions take over may be the one that is replaced.
        let value = self.aligned_except(x, &wanted, axis);
        match old {
            Some(old) => self.graph.take(value.0, &[vec![(old, place)], value.1].concat()),
            None => value.0,
        }
    }

    /// As `aligned`, with the changes handed back where they must happen together with another one.
    fn aligned_except(&mut self, n: NodeId, wanted: &[Option<Axis>], except: usize) -> (Id, Vec<(Axis, Id)>) {
        let mut places = Vec::new();
        for (d, (have, want)) in self.axes.of[n as usize].clone().into_iter().zip(wanted).enumerate() {
            if let (Some(have), Some(want)) = (have, *want)
                && have != want
                && d != except
            {
                places.push((have, self.graph.iota(Some(want))));
            }
        }
        if self.axes.of[n as usize][except].is_none() {
            let x = self.done[n as usize];
            return (self.graph.take(x, &places), vec![]);
        }
        (self.done[n as usize], places)
    }

    fn concat(&mut self, x: &[NodeId], own: &[Option<Axis>], axis: usize) -> Id {
        let Some(along) = own[axis] else { return self.aligned(x[0], own) };
        let here = self.graph.iota(Some(along));
        let mut start = 0i64;
        let mut parts = Vec::new();
        for o in x {
            let n = self.shape(*o)[axis] as i64;
            let begin = self.graph.integer(start);
            let (zero, last) = (self.graph.integer(0), self.graph.integer(n - 1));
            let place = self.graph.map(Fun::Sub, &[here, begin]);
            let place = self.graph.map(Fun::Max, &[place, zero]);
            let place = self.graph.map(Fun::Min, &[place, last]);
            let value = self.replaced(*o, own, axis, place);
            start += n;
            parts.push((start, value));
        }
        let Some((_, mut result)) = parts.pop() else { return self.graph.number(0.0) };
        for (end, value) in parts.into_iter().rev() {
            let end = self.graph.integer(end);
            let before = self.graph.map(Fun::Less, &[here, end]);
            result = self.graph.map(Fun::Select, &[before, value, result]);
        }
        result
    }

    fn reshape(&mut self, x: NodeId, y: NodeId) -> Result<Id, String> {
        let (from, to) = (self.shape(x).to_vec(), self.shape(y).to_vec());
        let own = self.axes.of[y as usize].clone();
        let have = self.axes.of[x as usize].clone();
        let pairs = axes::reshaped(&from, &to);
        let wide = |s: &[usize]| s.iter().filter(|n| **n > 1).count();
        let mut places = Vec::new();
        for (a, b) in &pairs {
            if let Some(axis) = have[*a] {
                places.push((axis, self.graph.iota(own[*b])));
            }
        }
        if pairs.len() < wide(&from) || pairs.len() < wide(&to) {
            // The dimensions in between are counted through.
            let rest_from: Vec<usize> = (0..from.len()).filter(|d| from[*d] > 1 && !pairs.iter().any(|p| p.0 == *d)).collect();
            let rest_to: Vec<usize> = (0..to.len()).filter(|d| to[*d] > 1 && !pairs.iter().any(|p| p.1 == *d)).collect();
            let mut flat = self.graph.integer(0);
            for d in rest_to {
                let n = self.graph.integer(to[d] as i64);
                let here = self.graph.iota(own[d]);
                flat = self.graph.map(Fun::Mul, &[flat, n]);
                flat = self.graph.map(Fun::Add, &[flat, here]);
            }
            let mut below = 1i64;
            for d in rest_from.into_iter().rev() {
                let (n, step) = (self.graph.integer(from[d] as i64), self.graph.integer(below));
                let place = self.graph.map(Fun::Quotient, &[flat, step]);
                let place = self.graph.map(Fun::Rem, &[place, n]);
                below *= from[d] as i64;
                places.push((have[d].ok_or("a dimension has no axis")?, place));
            }
        }
        let value = self.done[x as usize];
        Ok(self.graph.take(value, &places))
    }

    fn reduce(&mut self, op: &Op, x: NodeId, axes: &[usize], own: &[Option<Axis>]) -> Id {
        let have = self.axes.of[x as usize].clone();
        let over: Vec<Axis> = axes.iter().filter_map(|d| have[*d]).collect();
        let kept: Vec<Option<Axis>> = (0..have.len()).filter(|d| !axes.contains(d)).map(|d| have[d]).collect();
        let fold = match op {
            Op::ReduceMax { .. } => Fold::Max,
            Op::ReduceMin { .. } => Fold::Min,
            _ => Fold::Sum,
        };
        let result = self.graph.fold_all(fold, &over, self.done[x as usize]);
        let places = renamed(&mut self.graph, &kept, own);
        let mut result = self.graph.take(result, &places);
        if let Op::Mean { .. } = op {
            let n: usize = axes.iter().map(|d| self.shape(x)[*d]).product();
            let share = self.graph.number(1.0 / n as f64);
            result = self.graph.map(Fun::Mul, &[share, result]);
        }
        result
    }

    fn cumsum(&mut self, axis: Axis, x: Id) -> Id {
        let g = &mut self.graph;
        if !g.axes(x).contains(&axis) {
            let one = g.number(1.0);
            let (here, unit) = (g.iota(Some(axis)), g.integer(1));
            let count = g.map(Fun::Add, &[here, unit]);
            let count = g.map(Fun::ToFloat, &[count]);
            let x = g.map(Fun::Mul, &[one, x]);
            return g.map(Fun::Mul, &[count, x]);
        }
        let axes = g.axes(x).to_vec();
        g.node(What::Cumsum(axis), vec![x], axes, Dtype::Float)
    }

    /// x less its largest element, and the sum of its exponentials.
    fn exponentials(&mut self, x: Id, axis: Axis) -> (Id, Id, Id) {
        let g = &mut self.graph;
        let top = g.fold(Fold::Max, axis, x);
        let below = g.map(Fun::Sub, &[x, top]);
        let power = g.map(Fun::Exp, &[below]);
        let sum = g.sum(axis, power);
        (below, power, sum)
    }

    fn softmax(&mut self, x: Id, axis: Option<Axis>, log: bool) -> Id {
        let Some(axis) = axis else {
            // One element, which must still hand on what is no number.
            let g = &mut self.graph;
            let nothing = g.map(Fun::Sub, &[x, x]);
            return if log { nothing } else { g.map(Fun::Exp, &[nothing]) };
        };
        let (below, power, sum) = self.exponentials(x, axis);
        let g = &mut self.graph;
        if log {
            let l = g.map(Fun::Log, &[sum]);
            return g.map(Fun::Sub, &[below, l]);
        }
        let one = g.number(1.0);
        let share = g.map(Fun::Div, &[one, sum]);
        g.map(Fun::Mul, &[power, share])
    }

    fn log_sum_exp(&mut self, x: Id, axis: Axis) -> Id {
        let g = &mut self.graph;
        let top = g.fold(Fold::Max, axis, x);
        // An infinite largest element is the result; less itself it would be no number.
        let size = g.map(Fun::Abs, &[top]);
        let infinity = g.number(f64::INFINITY);
        let infinite = g.map(Fun::Equal, &[size, infinity]);
        let zero = g.number(0.0);
        let shift = g.map(Fun::Select, &[infinite, zero, top]);
        let below = g.map(Fun::Sub, &[x, shift]);
        let power = g.map(Fun::Exp, &[below]);
        let sum = g.sum(axis, power);
        let l = g.map(Fun::Log, &[sum]);
        g.map(Fun::Add, &[shift, l])
    }

    fn norm(&mut self, op: &Op, x: Id, axis: Option<Axis>, n: usize) -> Id {
        let sum = |g: &mut Graph, x: Id| axis.map_or(x, |a| g.sum(a, x));
        let g = &mut self.graph;
        let share = g.number(1.0 / n as f64);
        match op {
            Op::SumNormalise { eps } => {
                let total = sum(g, x);
                let eps = g.number(*eps);
                let below = g.map(Fun::Add, &[total, eps]);
                let one = g.number(1.0);
                let scale = g.map(Fun::Div, &[one, below]);
                g.map(Fun::Mul, &[x, scale])
            }
            Op::RmsNorm { eps } | Op::LayerNorm { eps } | Op::L2Normalise { eps } => {
                let centred = if let Op::LayerNorm { .. } = op {
                    let total = sum(g, x);
                    let mean = g.map(Fun::Mul, &[share, total]);
                    g.map(Fun::Sub, &[x, mean])
                } else {
                    x
                };
                let square = g.map(Fun::Mul, &[centred, centred]);
                let mut total = sum(g, square);
                if !matches!(op, Op::L2Normalise { .. }) {
                    total = g.map(Fun::Mul, &[share, total]);
                }
                let eps = g.number(*eps);
                let below = g.map(Fun::Add, &[total, eps]);
                let scale = g.map(Fun::Rsqrt, &[below]);
                g.map(Fun::Mul, &[centred, scale])
            }
            _ => x,
        }
    }

    fn rotary(&mut self, x: &[NodeId], own: &[Option<Axis>], d: usize, base: f64, interleaved: bool) -> Id {
        let last = own.len() - 1;
        let position = self.done[x[1] as usize];
        let here = self.graph.iota(own[last]);
        let g = &mut self.graph;
        let half = g.integer(d as i64 / 2);
        let two = g.integer(2);
        let one = g.integer(1);
        // Pair i holds the places `first` and `second`; both turn by the same angle.
        let (pair, other, is_first) = if interleaved {
            let pair = g.map(Fun::Quotient, &[here, two]);
            let other = g.map(Fun::BitXor, &[here, one]);
            let odd = g.map(Fun::BitAnd, &[here, one]);
            let zero = g.integer(0);
            (pair, other, g.map(Fun::Equal, &[odd, zero]))
        } else {
            let pair = g.map(Fun::Rem, &[here, half]);
            let moved = g.map(Fun::Add, &[here, half]);
            let size = g.integer(d as i64);
            (pair, g.map(Fun::Rem, &[moved, size]), g.map(Fun::Less, &[here, half]))
        };
        let pair = g.map(Fun::ToFloat, &[pair]);
        let exponent = g.number(-2.0 / d as f64);
        let exponent = g.map(Fun::Mul, &[exponent, pair]);
        let base = g.number(base);
        let speed = g.map(Fun::Pow, &[base, exponent]);
        let place = g.map(Fun::ToFloat, &[position]);
        let angle = g.map(Fun::Mul, &[place, speed]);
        let (sin, cos) = (g.map(Fun::Sin, &[angle]), g.map(Fun::Cos, &[angle]));
        let minus = g.map(Fun::Neg, &[sin]);
        let sin = g.map(Fun::Select, &[is_first, minus, sin]);
        let straight = self.aligned(x[0], own);
        let crossed = self.replaced(x[0], own, last, other);
        let g = &mut self.graph;
        let a = g.map(Fun::Mul, &[straight, cos]);
        let b = g.map(Fun::Mul, &[crossed, sin]);
        g.map(Fun::Add, &[a, b])
    }
}

/// Operators that are one function of elements.
fn elementwise(op: &Op) -> Option<Fun> {
    Some(match op {
        Op::Add => Fun::Add,
        Op::Sub => Fun::Sub,
        Op::Mul => Fun::Mul,
        Op::Div => Fun::Div,
        Op::Max => Fun::Max,
        Op::Min => Fun::Min,
        Op::Pow => Fun::Pow,
        Op::Rem => Fun::Rem,
        Op::Neg => Fun::Neg,
        Op::Abs => Fun::Abs,
        Op::Sign => Fun::Sign,
        Op::Exp => Fun::Exp,
        Op::Expm1 => Fun::Expm1,
        Op::Log => Fun::Log,
        Op::Log1p => Fun::Log1p,
        Op::Sqrt => Fun::Sqrt,
        Op::Rsqrt => Fun::Rsqrt,
        Op::Sin => Fun::Sin,
        Op::Cos => Fun::Cos,
        Op::Tanh => Fun::Tanh,
        Op::Sigmoid => Fun::Sigmoid,
        Op::LogSigmoid => Fun::LogSigmoid,
        Op::Softplus => Fun::Softplus,
        Op::Relu => Fun::Relu,
        Op::Erf => Fun::Erf,
        Op::Floor => Fun::Floor,
        Op::ToFloat => Fun::ToFloat,
        Op::Not => Fun::Not,
        Op::Less => Fun::Less,
        Op::LessEqual => Fun::LessEqual,
        Op::Equal => Fun::Equal,
        Op::And => Fun::And,
        Op::Or => Fun::Or,
        Op::BitAnd => Fun::BitAnd,
        Op::BitOr => Fun::BitOr,
        Op::BitXor => Fun::BitXor,
        Op::ShiftLeft => Fun::ShiftLeft,
        Op::ShiftRight => Fun::ShiftRight,
        Op::TrailingZeros => Fun::TrailingZeros,
        Op::Select => Fun::Select,
        _ => return None,
    })
}
