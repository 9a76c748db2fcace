//! Sweeps over rows, and what they do for the rows themselves.

use super::{Place, Printer, Value};
use crate::kernel::graph::{Axis, Dtype, Fold, Id, What};
use crate::kernel::nests::{Section, Task};

impl Printer<'_> {
    pub(super) fn identity(fold: Fold) -> &'static str {
        match fold {
            Fold::Sum => "0",
            Fold::Max => "-(real)__builtin_inf()",
            Fold::Min => "(real)__builtin_inf()",
        }
    }

    pub(super) fn join(fold: Fold, a: &str, b: &str) -> String {
        match fold {
            Fold::Sum => format!("{a} + {b}"),
            Fold::Max => format!("fwp_max({a}, {b})"),
            Fold::Min => format!("fwp_min({a}, {b})"),
        }
    }

    pub(super) fn fold_of(&self, n: Id) -> Option<(Fold, Axis)> {
        match self.g.nodes[n].what {
            What::Fold(fold, axis) => Some((fold, axis)),
            _ => None,
        }
    }

    /// A value that is to be folded across lanes: rows that only fill the last block do not count.
    pub(super) fn masked(&mut self, n: Id, lane: Axis, reg: usize, fold: Fold) -> Result<String, String> {
        let v = self.eval(n, reg)?;
        let text = self.wide(n, &v);
        // Only vectors that may reach beyond the last row.
        let full = self.lay.sizes[lane] / self.lay.lanes;
        let last = (self.lay.blocks(lane) - 1) * self.lay.registers[lane] + reg;
        if last < full {
            return Ok(text);
        }
        let at = match self.masks.get(&lane) {
            Some(at) => *at,
            None => {
                let at = self.memory.take(self.lay.padded(lane));
                self.masks.insert(lane, at);
                at
            }
        };
        let offset = format!("blk * {} + {}", self.lay.block(lane), reg * self.lay.lanes);
        Ok(format!("fwp_select(*(const vi *)(m + {at} + {offset}), {text}, fwp_splat({}))", Self::identity(fold)))
    }

    pub(super) fn sweep(&mut self, lane: Axis, sections: &[Section]) -> Result<(), String> {
        let tasks = sections.iter().flat_map(|s| match s {
            Section::Rows(tasks) => tasks,
            Section::Pass(pass) => &pass.tasks,
        });
        let across: Vec<(Id, Fold)> = tasks
            .filter_map(|t| match t {
                Task::Node(n) => self.fold_of(*n).filter(|(_, a)| *a == lane).map(|(fold, _)| (*n, fold)),
                Task::Store(_) => None,
            })
            .collect();
        let blocks = self.lay.blocks(lane);
        self.rows.clear();
        self.lane = None;
        self.open("");
        for (n, fold) in &across {
            let axes = self.g.axes(*n).to_vec();
            if axes.is_empty() {
                self.line(format!("vf c{n} = fwp_splat({});", Self::identity(*fold)));
                continue;
            }
            // One vector of partial results for every result; those are folded after as many as there are lanes, or after the sweep.
            let elements = self.g.elements(&axes);
            if self.folds_at_once(*n, *fold) {
                let at = match self.parts.get(n) {
                    Some(at) => *at,
                    None => self.memory.take(self.sums_together(elements) * self.lay.lanes),
                };
                self.parts.insert(*n, at);
                if blocks > 1 {
                    let to = self.array(*n)?;
                    self.line(format!("for (int i = 0; i < {elements}; i++) {}[i] = 0;", to.pointer));
                }
                continue;
            }
            let room = elements.next_multiple_of(self.lay.lanes) * self.lay.lanes;
            let at = match self.parts.get(n) {
                Some(at) => *at,
                None => self.memory.take(room),
            };
            self.parts.insert(*n, at);
            if blocks > 1 {
                self.line(format!(
                    "for (int i = 0; i < {elements}; i++) *(vf *)(m + {at} + i * FWP_LANES) = fwp_splat({});",
                    Self::identity(*fold)
                ));
            }
        }
        if blocks > 1 {
            self.open(format!("for (int blk = 0; blk < {blocks}; blk++)"));
        } else {
            self.open("");
            self.line("enum { blk = 0 };");
        }
        self.lane = Some(lane);
        for s in sections {
            match s {
                Section::Rows(tasks) => {
                    for t in tasks {
                        self.row(*t, lane)?;
                    }
                }
                Section::Pass(pass) => self.pass(pass, lane)?,
            }
        }
        self.close();
        self.lane = None;
        self.rows.clear();
        for (n, fold) in across {
            self.folded(n, fold)?;
        }
        self.close();
        Ok(())
    }

    /// Whether sums across lanes are completed in the pass that makes their parts.
    pub(super) fn folds_at_once(&self, n: Id, fold: Fold) -> bool {
        fold == Fold::Sum && self.g.axes(n).len() == 1
    }

    /// What was folded across lanes, put together after the sweep.
    pub(super) fn folded(&mut self, n: Id, fold: Fold) -> Result<(), String> {
        let axes = self.g.axes(n).to_vec();
        let all = match fold {
            Fold::Sum => "fwp_lanes_sum",
            Fold::Max => "fwp_lanes_max",
            Fold::Min => "fwp_lanes_min",
        };
        if axes.is_empty() {
            return self.assign(n, &format!("{all}(c{n})"));
        }
        if self.folds_at_once(n, fold) {
            return Ok(());
        }
        let at = self.parts[&n];
        let to = self.array(n)?;
        self.loops(&axes);
        let x = self.place_of(axes.iter().copied(), &self.index)?;
        let o = self.offset(&to.layout, &axes, &self.index)?;
        self.line(format!("{}[{o}] = {all}(*(const vf *)(m + {at} + ({x}) * FWP_LANES));", to.pointer));
        let back: Vec<Axis> = axes.iter().rev().copied().collect();
        self.end_loops(&back);
        Ok(())
    }

    /// Puts a vector of the current block where it goes.
    pub(super) fn store(&mut self, place: &Place, axes: &[Axis], lane: Axis, reg: usize, text: &str) -> Result<(), String> {
        let at = self.vector_offset(axes, lane, reg)?;
        let assign = if place.adds { "+=" } else { "=" };
        self.line(format!("*(vf *)({} + {at}) {assign} {text};", place.pointer));
        Ok(())
    }

    /// Something of the rows of the current block.
    pub(super) fn row(&mut self, task: Task, lane: Axis) -> Result<(), String> {
        let registers = self.lay.registers[lane];
        match task {
            Task::Store(i) => {
                let (node, axes) = (self.nests.outputs[i].node, self.nests.outputs[i].axes.clone());
                let place = self.dests[i].clone();
                for reg in 0..registers {
                    let v = self.eval(node, reg)?;
                    let text = self.wide(node, &v);
                    self.store(&place, &axes, lane, reg, &text)?;
                }
            }
            Task::Node(n) => {
                self.count(&[lane], n);
                if let Some((fold, axis)) = self.fold_of(n)
                    && axis == lane
                {
                    let x = self.g.nodes[n].operands[0];
                    for reg in 0..registers {
                        let text = self.masked(x, lane, reg, fold)?;
                        let c = format!("c{n}");
                        let joined = Self::join(fold, &c, &text);
                        self.line(format!("{c} = {joined};"));
                    }
                    return Ok(());
                }
                for reg in 0..registers {
                    let node = &self.g.nodes[n];
                    let v = match node.what {
                        What::Map(fun) if !node.operands.iter().any(|o| self.g.nodes[*o].dtype == Dtype::Int) => {
                            self.map(n, fun, reg)?
                        }
                        What::Take(_) => self.take(n, reg)?,
                        _ => self.unheld_by_lanes(n, reg)?,
                    };
                    let text = self.wide(n, &v);
                    self.line(format!("const vf r{n}_{reg} = {text};"));
                }
                self.keep(n, lane)?;
            }
        }
        Ok(())
    }

    /// A held value of integers, made lane by lane.
    pub(super) fn unheld_by_lanes(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let lane = self.lane.ok_or("lanes outside of a sweep")?;
        let name = self.name();
        self.line(format!("vf {name} = {{0}};"));
        self.open("for (int l = 0; l < FWP_LANES; l++)");
        let block = self.lay.block(lane);
        let first = reg * self.lay.lanes;
        let size = self.lay.sizes[lane];
        self.line(format!(
            "const int i{name} = blk * {block} + {first} + l < {size} ? blk * {block} + {first} + l : {};",
            size - 1
        ));
        self.index.insert(lane, format!("i{name}"));
        self.sub = true;
        let result = self.unheld(n, reg);
        self.sub = false;
        self.index.remove(&lane);
        let v = result?;
        self.line(format!("{name}[l] = {};", v.text));
        self.close();
        Ok(Value { text: name, vector: true })
    }

    pub(super) fn unheld(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let operands = self.g.nodes[n].operands.clone();
        match self.g.nodes[n].what {
            What::Map(fun) => {
                let given = operands.iter().map(|o| self.eval(*o, reg)).collect::<Result<Vec<_>, _>>()?;
                Ok(self.apply(fun, &operands, &given))
            }
            _ => self.load(n, reg),
        }
    }

    /// Rows that have just been computed: also in memory, where something reads them there.
    pub(super) fn keep(&mut self, n: Id, lane: Axis) -> Result<(), String> {
        self.rows.insert(n);
        if let Some(place) = self.arrays.get(&n).cloned() {
            let axes = self.g.axes(n).to_vec();
            for reg in 0..self.lay.registers[lane] {
                self.store(&place, &axes, lane, reg, &format!("r{n}_{reg}"))?;
            }
        }
        Ok(())
    }
}
