//! Passes: loops over the axes beside the lanes.

use std::collections::HashSet;

use super::{Printer, Value};
use crate::kernel::graph::{Axis, Dtype, Fold, Id, What};
use crate::kernel::nests::{Pass, Task};

/// Sums that processors have in the making at the same time: two additions a cycle, each of which takes four.
const CHAINS: usize = 8;

/// Vectors of sums across lanes that are put together at a time: with one, its last part is still on its way to memory when it is
/// read again, and the step waits; more take room in the nearest cache.
const SUMS_TOGETHER: usize = 2;

/// Copies in the innermost loop.
#[derive(Clone, Copy)]
pub(super) struct Copies {
    /// Places that one turn of the loop takes.
    places: usize,
    /// Parts of every sum, which take turns.
    sums: usize,
}

impl Printer<'_> {
    pub(super) fn pass(&mut self, pass: &Pass, lane: Axis) -> Result<(), String> {
        let Some((inner, outer)) = pass.loops.split_last() else { return Err("a pass without a loop".into()) };
        let registers = self.lay.registers[lane];
        let folds: Vec<(Id, Fold)> = pass
            .tasks
            .iter()
            .filter_map(|t| match t {
                Task::Node(n) => self.fold_of(*n).filter(|(_, a)| *a != lane).map(|(fold, _)| (*n, fold)),
                Task::Store(_) => None,
            })
            .collect();
        let all: Vec<Axis> = pass.loops.iter().copied().chain([lane]).collect();
        for t in &pass.tasks {
            match t {
                Task::Node(n) => self.count(&all, *n),
                Task::Store(i) => {
                    let node = self.nests.outputs[*i].node;
                    if !self.nests.held.contains(&node) {
                        self.count(&all, node);
                    }
                }
            }
        }
        let mut places = match folds.len() * registers {
            0 if registers >= 4 => 1,
            0 => 2,
            chains => (CHAINS / chains).clamp(1, 4),
        };
        let size = self.lay.sizes[*inner];
        if size < 2 * places {
            places = 1;
        }
        // Where other work stands between two additions to a sum, none waits for another, and registers are short.
        let alone = folds.len() == pass.tasks.len();
        let copies = Copies { places, sums: if alone || registers < 4 { places } else { 1 } };
        self.before(pass, lane)?;
        self.loops(outer);
        for (n, fold) in &folds {
            for reg in 0..registers {
                for u in 0..copies.sums {
                    self.line(format!("vf a{n}_{reg}_{u} = fwp_splat({});", Self::identity(*fold)));
                }
            }
        }
        let at_once: Vec<Id> = pass
            .tasks
            .iter()
            .filter_map(|t| match t {
                Task::Node(n) => self.fold_of(*n).filter(|(f, a)| *a == lane && self.folds_at_once(*n, *f)).map(|_| *n),
                Task::Store(_) => None,
            })
            .collect();
        if at_once.is_empty() {
            self.run(pass, lane, *inner, ("0", &size.to_string()), copies)?;
        } else {
            let lanes = self.lay.lanes;
            let together = self.sums_together(size);
            let full = size / together * together;
            if full > 0 {
                self.open(format!("for (int part = 0; part < {full}; part += {together})"));
                let end = format!("part + {together}");
                self.run(pass, lane, *inner, ("part", &end), Copies { places: places.min(lanes), ..copies })?;
                self.put_together(&at_once, lane, together)?;
                self.close();
            }
            if full < size {
                self.open("");
                self.line(format!("const int part = {full};"));
                self.run(pass, lane, *inner, ("part", &size.to_string()), Copies { places: 1, ..copies })?;
                self.put_together(&at_once, lane, size - full)?;
                self.close();
            }
        }
        self.index.remove(inner);
        for (n, fold) in &folds {
            for reg in 0..registers {
                let mut text = format!("a{n}_{reg}_0");
                for u in 1..copies.sums {
                    text = Self::join(*fold, &text, &format!("a{n}_{reg}_{u}"));
                }
                self.line(format!("const vf r{n}_{reg} = {text};"));
            }
            if outer.is_empty() {
                self.keep(*n, lane)?;
            } else {
                let place = self.array(*n)?;
                let axes = self.g.axes(*n).to_vec();
                for reg in 0..registers {
                    self.store(&place, &axes, lane, reg, &format!("r{n}_{reg}"))?;
                }
            }
        }
        let back: Vec<Axis> = outer.iter().rev().copied().collect();
        self.end_loops(&back);
        Ok(())
    }

    /// What a pass reads that does not change in its loops: scalars and rows.
    pub(super) fn before(&mut self, pass: &Pass, lane: Axis) -> Result<(), String> {
        let mut open: Vec<Id> = Vec::new();
        for t in &pass.tasks {
            match t {
                Task::Node(n) => open.extend(&self.g.nodes[*n].operands),
                Task::Store(i) => open.push(self.nests.outputs[*i].node),
            }
        }
        let mut seen = HashSet::new();
        while let Some(n) = open.pop() {
            let node = &self.g.nodes[n];
            let simple = matches!(node.what, What::Const(_) | What::Integer(_) | What::Iota(_));
            if simple || node.dtype != Dtype::Float || !seen.insert(n) {
                continue;
            }
            if node.axes.iter().all(|a| *a == lane) {
                let copies = if node.axes.is_empty() { 1 } else { self.lay.registers[lane] };
                for reg in 0..copies {
                    self.eval(n, reg)?;
                }
            } else if !self.nests.held.contains(&n) && !matches!(node.what, What::Take(_)) {
                open.extend(node.operands.clone());
            }
        }
        Ok(())
    }

    /// The innermost loop of a pass, several places at a time.
    pub(super) fn run(
        &mut self,
        pass: &Pass,
        lane: Axis,
        inner: Axis,
        bounds: (&str, &str),
        copies: Copies,
    ) -> Result<(), String> {
        let x = format!("x{inner}");
        let (start, end) = bounds;
        let Copies { places, sums } = copies;
        let size = self.lay.sizes[inner];
        // A part of the loop has a length that the unrolling divides.
        let whole = if start == "0" { (size / places * places).to_string() } else { end.to_string() };
        self.open(format!("for (int {x} = {start}; {x} < {whole}; {x} += {places})"));
        for u in 0..places {
            self.open("");
            self.index.insert(inner, if u == 0 { x.clone() } else { format!("({x} + {u})") });
            self.inside(pass, lane, u % sums)?;
            self.close();
        }
        self.close();
        if start == "0" && !size.is_multiple_of(places) {
            self.open(format!("for (int {x} = {whole}; {x} < {end}; {x}++)"));
            self.index.insert(inner, x.clone());
            self.inside(pass, lane, 0)?;
            self.close();
        }
        Ok(())
    }

    /// Sums across lanes whose parts wait for each other, of a pass with so many: whole vectors of results.
    pub(super) fn sums_together(&self, size: usize) -> usize {
        (size / self.lay.lanes).clamp(1, SUMS_TOGETHER) * self.lay.lanes
    }

    /// Completes the next `count` sums across lanes, whose parts are there.
    pub(super) fn put_together(&mut self, nodes: &[Id], lane: Axis, count: usize) -> Result<(), String> {
        for n in nodes {
            let to = self.array(*n)?;
            let assign = if self.lay.blocks(lane) > 1 { "+=" } else { "=" };
            let at = self.parts[n];
            self.open(format!("for (int i = 0; i < {count}; i += FWP_LANES)"));
            self.line(format!(
                "*(vf *)({} + part + i) {assign} fwp_reduce_lanes((const vf *)(m + {at} + i * FWP_LANES));",
                to.pointer
            ));
            self.close();
        }
        Ok(())
    }

    /// What a pass does at one place, with part `u` of its sums.
    pub(super) fn inside(&mut self, pass: &Pass, lane: Axis, u: usize) -> Result<(), String> {
        let registers = self.lay.registers[lane];
        // Results that replace something come last, after all that is read here.
        for t in pass.tasks.iter().filter(|t| matches!(t, Task::Node(_))) {
            let Task::Node(n) = *t else { continue };
            let x = self.g.nodes[n].operands.first().copied();
            match self.fold_of(n) {
                Some((fold, axis)) if axis != lane => {
                    let x = x.ok_or("a fold of nothing")?;
                    for reg in 0..registers {
                        let v = self.eval(x, reg)?;
                        let text = self.wide(x, &v);
                        let a = format!("a{n}_{reg}_{u}");
                        let joined = Self::join(fold, &a, &text);
                        self.line(format!("{a} = {joined};"));
                    }
                }
                Some((fold, _)) => {
                    let x = x.ok_or("a fold of nothing")?;
                    let mut text = String::new();
                    for reg in 0..registers {
                        let part = self.masked(x, lane, reg, fold)?;
                        text = if text.is_empty() { part } else { Self::join(fold, &text, &part) };
                    }
                    let axes = self.g.axes(n).to_vec();
                    let at_once = self.folds_at_once(n, fold);
                    let mut place = self.place_of(axes.into_iter(), &self.index)?;
                    if at_once {
                        place = format!("({place} - part)");
                    }
                    let at = format!("*(vf *)(m + {} + {place} * FWP_LANES)", self.parts[&n]);
                    let text = if self.lay.blocks(lane) > 1 && !at_once { Self::join(fold, &at, &text) } else { text };
                    self.line(format!("{at} = {text};"));
                }
                None => {
                    let place = self.array(n)?;
                    let axes = self.g.axes(n).to_vec();
                    for reg in 0..registers {
                        let v = self.fresh(n, reg)?;
                        let text = self.wide(n, &v);
                        self.store(&place, &axes, lane, reg, &text)?;
                    }
                }
            }
        }
        for t in &pass.tasks {
            let Task::Store(i) = *t else { continue };
            let (node, axes) = (self.nests.outputs[i].node, self.nests.outputs[i].axes.clone());
            let place = self.dests[i].clone();
            for reg in 0..registers {
                let v = self.eval(node, reg)?;
                let text = self.wide(node, &v);
                self.store(&place, &axes, lane, reg, &text)?;
            }
        }
        Ok(())
    }

    /// A held value of several axes where it is computed.
    pub(super) fn fresh(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let node = &self.g.nodes[n];
        match node.what {
            What::Map(fun) if !node.operands.iter().any(|o| self.g.nodes[*o].dtype == Dtype::Int) => self.map(n, fun, reg),
            What::Take(_) => self.take(n, reg),
            _ => self.unheld_by_lanes(n, reg),
        }
    }
}
