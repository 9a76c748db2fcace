//! Where a step is cut into segments.
//!
//! A value of the state's shape that every path from the old to the new state crosses can be taken as the state itself from there on.
//! Two neighbouring parts of a step are one segment unless that would multiply out: unless the second reads what the first wrote.

use fwp_sdk::program::{Node, NodeId, Op, Program};

use super::flatten::Flat;
use super::matrix::Matrix;
use super::store::Store;
use super::symbolic::{Boundaries, Cut, Value, symbolic};
use crate::graph::{ancestors, sizes};

/// The boundaries of every state: before the step, between segments, after the step.
pub(super) fn boundaries(p: &Program, flat: &Flat) -> Boundaries {
    let mut all = Boundaries { of: (0..p.states.len()).map(|s| candidates(p, flat, s)).collect() };
    // Of a square state only its value tells whether it lies on its side at a cut.
    loop {
        let done = symbolic(p, flat, &all);
        let mut turned = false;
        for (state, updates) in done.updates.iter().enumerate() {
            let lying = |v: &Value| matches!(v, Value::Matrix(m) if m.bases.iter().any(|b| b.state == state && b.transposed));
            let upright = |c: &Cut| !c.turned;
            let cuts = &mut all.of[state];
            // The last is the next state itself, whichever way it lies.
            let found =
                (0..updates.len().saturating_sub(1)).find(|i| lying(&updates[*i]) && cuts.get(i + 1).is_some_and(upright));
            if let Some(i) = found {
                cuts[i + 1].turned = true;
                turned = true;
            }
        }
        if !turned {
            for (state, updates) in done.updates.iter().enumerate() {
                let kept = kept(&done.store, state, updates);
                let mut i = 0;
                all.of[state].retain(|_| {
                    i += 1;
                    kept.get(i - 1).copied().unwrap_or(true)
                });
            }
            return all;
        }
    }
}

/// The state's node, the values that may cut its step, and its next value; without the last where it never changes.
fn candidates(p: &Program, flat: &Flat, state: usize) -> Vec<Cut> {
    let step = &flat.step;
    let Some(next) = step.output(&format!("state.{}", p.states[state].name)) else { return Vec::new() };
    let index = state as u32;
    let upright = |node: NodeId| Cut { node, turned: false };
    let Some(start) = step.nodes.iter().position(|n| n.op == Op::State { index }) else {
        return vec![upright(NodeId::MAX), upright(next)];
    };
    // The next state may be something laid on its side.
    let (mut next, mut turned) = (next, false);
    while let Node { op: Op::Transpose { order }, operands, .. } = &step.nodes[next as usize]
        && order[..] == [1, 0]
    {
        next = operands[0];
        turned = !turned;
    }
    if start == next as usize && !turned {
        return vec![upright(next)];
    }
    let last = Cut { node: next, turned };
    // Nodes on a path from the old to the new state.
    let mut on = vec![false; step.nodes.len()];
    on[start] = true;
    for (i, node) in step.nodes.iter().enumerate() {
        on[i] |= node.operands.iter().any(|o| on[*o as usize]);
    }
    let needed = ancestors(step, [next]);
    on.iter_mut().zip(&needed).for_each(|(a, b)| *a &= b);
    let mut cuts = vec![upright(start as NodeId)];
    let shape = &p.states[state].shape[..];
    if on[next as usize]
        && let [rows, columns] = *shape
    {
        // A node is on every path where no edge between nodes of a path passes over it.
        let mut furthest = start;
        let mut reach = vec![0; on.len()];
        for (i, node) in step.nodes.iter().enumerate().filter(|(i, _)| on[*i]) {
            for o in node.operands.iter().filter(|o| on[**o as usize]) {
                reach[*o as usize] = reach[*o as usize].max(i);
            }
        }
        for i in start..next as usize {
            if !on[i] {
                continue;
            }
            let size = sizes(&flat.types[i]);
            if i > start && furthest <= i && (size == shape || size == [columns, rows]) {
                cuts.push(Cut { node: i as NodeId, turned: size != shape });
            }
            furthest = furthest.max(reach[i]);
        }
    }
    cuts.push(last);
    cuts
}

/// What a part of a step does to the state, as far as joining it with its neighbour depends on it.
#[derive(Clone, Copy, Default, PartialEq)]
struct Part {
    rows: bool,
    columns: bool,
    adds: bool,
    erases_right: bool,
    erases_left: bool,
}

impl Part {
    fn of(s: &Store<'_>, state: usize, v: &Value) -> Option<Part> {
        let Value::Matrix(m) = v else { return None };
        let Matrix { bases, outers, diagonal: None, dense, .. } = m else { return None };
        if !dense.is_empty() || bases.len() > 1 || bases.iter().any(|b| b.state != state || s.depends(b.factor, state)) {
            return None;
        }
        Some(Part {
            rows: bases.iter().any(|b| b.rows.is_some()),
            columns: bases.iter().any(|b| b.columns.is_some()),
            adds: !outers.is_empty(),
            erases_right: outers.iter().any(|o| s.depends(o.column, state) || s.depends(o.factor, state)),
            erases_left: outers.iter().any(|o| s.depends(o.row, state)),
        })
    }

    /// Both parts as one, where that multiplies nothing out and stays a form.
    fn joined(self, next: Part) -> Option<Part> {
        let erases = next.erases_right || next.erases_left;
        let both = Part {
            rows: self.rows || next.rows,
            columns: self.columns || next.columns,
            adds: self.adds || next.adds,
            erases_right: self.erases_right || next.erases_right,
            erases_left: self.erases_left || next.erases_left,
        };
        let two_sided = both.columns && (both.rows || both.erases_left) || both.rows && both.erases_right;
        let multiplied_out = self.adds && erases;
        (!two_sided && !multiplied_out).then_some(both)
    }
}

/// Which boundaries stay.
fn kept(s: &Store<'_>, state: usize, updates: &[Value]) -> Vec<bool> {
    let mut kept = vec![true; updates.len() + 1];
    let mut current = updates.first().and_then(|v| Part::of(s, state, v));
    for (i, update) in updates.iter().enumerate().skip(1) {
        let next = Part::of(s, state, update);
        // What has no form is left whole: its reason is that of all of it.
        let joined = current.zip(next).map(|(a, b)| a.joined(b));
        kept[i] = joined == Some(None);
        current = match joined {
            Some(None) => next,
            Some(both) => both,
            None => None,
        };
    }
    kept
}
