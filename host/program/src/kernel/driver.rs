//! The walk through time around the routines of a step: text of `fwp_forward` and `fwp_backward`.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use fwp_sdk::program::{DType, Type};

use super::form::{Gradient, InStep, Kernel, Per, Real, Target};
use super::graph::{Axis, Dtype, Graph, Id, Leaf, What};
use super::layout::Layouts;
use super::lower::Lowered;
use super::nests::{Dest, Output, arrange};
use super::print::{Layout, Memory, Place, Printer};

/// A value that comes from or goes to the caller's memory, row-major and without padding.
struct Port {
    /// Axes by dimension.
    dims: Vec<Option<Axis>>,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Port {
    fn axes(&self) -> Vec<Axis> {
        let mut axes: Vec<Axis> = self.dims.iter().flatten().copied().collect();
        axes.sort_unstable();
        axes
    }
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How the gradient of an argument is handed over.
enum Given {
    Nothing,
    /// Every step its own.
    Steps,
    /// Summed over the steps at this offset.
    Summed(usize),
    /// Two factors a step.
    Factors {
        left: Id,
        right: Id,
        axes: [Axis; 2],
    },
}

/// Bytes of a value for one step up to which it is asked for ahead of time.
const MOST_FORESEEN: usize = 4096;

struct Driver<'a> {
    step: &'a InStep,
    low: &'a Lowered,
    lay: Layouts,
    memory: Memory,
    masks: HashMap<Axis, usize>,
    globals: String,
    arguments: Vec<Port>,
    states: Vec<Port>,
    kept: Vec<Port>,
    /// The axis that is split into blocks, and the number of blocks.
    split: Option<(Axis, usize)>,
    saved: Vec<Id>,
    /// Offsets of copies of arguments in memory.
    copies: Vec<Option<usize>>,
    kept_copies: Vec<Option<usize>>,
    state_rooms: Vec<usize>,
}

/// Text and figures of one routine.
struct Routine {
    body: String,
    /// What is done after the step with its results.
    after: String,
    operations: usize,
}

/// The kernel of a step that has been lowered; `split` says which axis is cut into how many blocks.
pub fn drive(step: &InStep, low: &Lowered, target: Target, split: Option<(Axis, usize)>) -> Result<Kernel, String> {
    let lay = Layouts::new(&low.graph, target);
    let port = |dims: &[Option<Axis>], ty: &Type| match ty {
        Type::Tensor(t) => Ok(Port {
            dims: dims.to_vec(),
            shape: t.shape.clone(),
            dtype: match t.dtype {
                DType::Float => Dtype::Float,
                DType::Int => Dtype::Int,
                DType::Mask => Dtype::Mask,
            },
        }),
        other => Err(format!("an argument is {other}")),
    };
    let arguments: Result<Vec<Port>, String> =
        step.function.arguments.iter().zip(&low.arguments).map(|(a, dims)| port(dims, &a.ty)).collect();
    let states: Vec<Port> = step
        .states
        .iter()
        .zip(&low.states)
        .map(|(s, dims)| Port { dims: dims.clone(), shape: s.state.shape.clone(), dtype: Dtype::Float })
        .collect();
    let kept = low.kept_axes.iter().zip(&low.kept_shapes).zip(&low.kept).map(|((dims, shape), n)| Port {
        dims: dims.clone(),
        shape: shape.clone(),
        dtype: low.graph.nodes[*n].dtype,
    });
    let kept: Vec<Port> = kept.collect();
    if kept.iter().any(|k| k.dtype != Dtype::Float) {
        return Err("a kept value is not of floats".into());
    }
    let state_rooms = states.iter().map(|s| lay.room(&low.graph, &s.axes()).next_multiple_of(16)).collect();
    let mut d = Driver {
        step,
        low,
        lay,
        memory: Memory::default(),
        masks: HashMap::new(),
        globals: String::new(),
        arguments: arguments?,
        states,
        kept,
        split,
        saved: Vec::new(),
        copies: Vec::new(),
        kept_copies: Vec::new(),
        state_rooms,
    };
    d.kernel(target)
}

impl Driver<'_> {
    fn g(&self) -> &Graph {
        &self.low.graph
    }

    /// Whether the caller's memory can be read as it is.
    fn direct(&self, p: &Port) -> bool {
        let axes = p.axes();
        match (p.dtype, &axes[..]) {
            (Dtype::Float, []) => true,
            (Dtype::Float, [a]) => !self.lay.ragged(*a),
            (Dtype::Float, _) => false,
            _ => true,
        }
    }

    fn place_of(&self, leaf: Leaf) -> Place {
        let rows = |p: &Port| Layout::Rows(p.dims.iter().flatten().copied().collect());
        match leaf {
            Leaf::Argument(i) => {
                let p = &self.arguments[i];
                let layout = if p.dtype == Dtype::Float { Layout::Lanes } else { rows(p) };
                Place { pointer: format!("in{i}"), layout, adds: false }
            }
            Leaf::State(i) => Place::lanes(format!("state{i}")),
            Leaf::KeptGradient(i) => Place::lanes(format!("kept_gradient{i}")),
            Leaf::StateGradient(i) => Place::lanes(format!("state_gradient{i}")),
            Leaf::Saved(k) => Place::lanes(format!("saved{k}")),
            Leaf::Index => Place::lanes("index"),
        }
    }

    /// A loop nest between the caller's memory and memory of our own.
    fn transfer(&self, p: &Port, own: &str, theirs: &str, out: bool, indent: usize) -> Result<String, String> {
        let mut text = String::new();
        let mut index: HashMap<Axis, String> = HashMap::new();
        let mut depth = indent;
        let mut row = String::from("0");
        for (d, axis) in p.dims.iter().enumerate() {
            let place = match axis {
                Some(a) => {
                    let _ = writeln!(text, "{:depth$}for (int x{a} = 0; x{a} < {}; x{a}++)", "", self.lay.sizes[*a]);
                    depth += 4;
                    index.insert(*a, format!("x{a}"));
                    if self.split.is_some_and(|(s, _)| s == *a) { format!("(row0 + x{a})") } else { format!("x{a}") }
                }
                None => "0".into(),
            };
            row = if row == "0" { place } else { format!("({row} * {} + {place})", p.shape[d]) };
        }
        let at = self.printer_offset(&p.axes(), &index)?;
        let line = if out { format!("{theirs}[{row}] = {own}[{at}];") } else { format!("{own}[{at}] = {theirs}[{row}];") };
        let _ = writeln!(text, "{:depth$}{line}", "");
        Ok(text)
    }

    fn printer_offset(&self, axes: &[Axis], index: &HashMap<Axis, String>) -> Result<String, String> {
        super::print::offset(self.g(), &self.lay, &Layout::Lanes, axes, index)
    }

    fn memory_take(&mut self, elements: usize) -> usize {
        self.memory.take(elements)
    }

    /// Offsets of copies of what the caller's memory does not hold in our form.
    fn allocate_copies(&mut self) {
        for i in 0..self.arguments.len() {
            let p = &self.arguments[i];
            let room = (!self.direct(p)).then(|| self.lay.room(self.g(), &p.axes()));
            let at = room.map(|r| self.memory_take(r));
            self.copies.push(at);
        }
        for i in 0..self.kept.len() {
            let p = &self.kept[i];
            // Also zeros to read where no gradient is given.
            let room = self.lay.room(self.g(), &p.axes());
            let at = self.memory_take(room);
            self.kept_copies.push(Some(at));
        }
    }

    fn routine(&mut self, outputs: Vec<Output>, given: &[Given]) -> Result<Routine, String> {
        let nests = arrange(self.g(), outputs)?;
        let mut after = String::new();
        let mut dests = Vec::new();
        for (i, o) in nests.outputs.iter().enumerate() {
            let room = self.lay.room(self.g(), &o.axes);
            let place = match o.dest {
                Dest::State(k) if !nests.late.contains(&i) => Place::lanes(format!("next{k}")),
                Dest::StateGradient(k) if !nests.late.contains(&i) => Place::lanes(format!("state_gradient_out{k}")),
                Dest::Saved(k) => Place::lanes(format!("saved{k}")),
                Dest::Argument(k) => match given[k] {
                    Given::Summed(at) => Place { adds: true, ..Place::lanes(format!("(m + {at})")) },
                    _ => {
                        let at = self.memory_take(room);
                        let text =
                            self.transfer(&self.arguments[k], &format!("(m + {at})"), &format!("in_gradient{k}"), true, 8)?;
                        let _ = write!(after, "    if (in_gradient{k}) {{\n{text}    }}\n");
                        Place::lanes(format!("(m + {at})"))
                    }
                },
                dest => {
                    let at = self.memory_take(room);
                    match dest {
                        Dest::State(k) => {
                            let _ = writeln!(after, "    __builtin_memcpy(next{k}, m + {at}, {room} * sizeof(real));");
                        }
                        Dest::StateGradient(k) => {
                            let _ =
                                writeln!(after, "    __builtin_memcpy(state_gradient_out{k}, m + {at}, {room} * sizeof(real));");
                        }
                        Dest::Kept(k) => {
                            let p = &self.kept[k];
                            let own = format!("(m + {at})");
                            after += &self.transfer(p, &own, &format!("kept{k}"), true, 4)?;
                        }
                        Dest::Left(k) | Dest::Right(k) => {
                            let left = matches!(dest, Dest::Left(_));
                            let side = if left { "left" } else { "right" };
                            let p =
                                Port { dims: vec![Some(o.axes[0])], shape: vec![self.lay.sizes[o.axes[0]]], dtype: Dtype::Float };
                            let text = self.transfer(&p, &format!("(m + {at})"), &format!("{side}{k}"), true, 8)?;
                            let _ = write!(after, "    if ({side}{k}) {{\n{text}    }}\n");
                        }
                        Dest::Argument(_) | Dest::Saved(_) => {}
                    }
                    Place::lanes(format!("(m + {at})"))
                }
            };
            dests.push(place);
        }
        let Driver { low, lay, memory, masks, globals, .. } = &mut *self;
        let graph = &low.graph;
        let (lay, mut memory_now, mut masks_now, mut globals_now) =
            (lay.clone(), std::mem::take(memory), std::mem::take(masks), std::mem::take(globals));
        let leaves = |leaf: Leaf| self.place_of(leaf);
        let mut printer = Printer::new(graph, &lay, &nests, &leaves, dests, &mut memory_now, &mut masks_now, &mut globals_now);
        let body = printer.body()?;
        let operations = printer.operations;
        self.memory = memory_now;
        self.masks = masks_now;
        self.globals = globals_now;
        Ok(Routine { body, after, operations })
    }

    /// How the gradient of every argument is handed over.
    fn gradients(&mut self) -> (Vec<Given>, Vec<Gradient>) {
        let mut given = Vec::new();
        let mut form = Vec::new();
        let parts_of = |d: &Driver<'_>, p: &Port| match d.split {
            Some((axis, blocks)) if !p.axes().contains(&axis) => blocks,
            _ => 1,
        };
        for i in 0..self.arguments.len() {
            let Some(node) = self.low.argument_gradients[i] else {
                given.push(Given::Nothing);
                form.push(Gradient::None);
                continue;
            };
            let zero = matches!(self.g().nodes[node].what, What::Const(0));
            let parts = parts_of(self, &self.arguments[i]);
            match self.step.per[i] {
                _ if zero => {
                    given.push(Given::Nothing);
                    form.push(Gradient::None);
                }
                Per::Step => {
                    given.push(Given::Steps);
                    form.push(Gradient::Steps { parts });
                }
                per => {
                    let factors = self.low.factors.iter().find(|f| f.0 == i).filter(|_| per == Per::Once && self.split.is_none());
                    if let Some((_, left, right, axes)) = factors {
                        given.push(Given::Factors { left: *left, right: *right, axes: *axes });
                        form.push(Gradient::Product { left: self.lay.sizes[axes[0]], right: self.lay.sizes[axes[1]] });
                    } else {
                        let room = self.lay.room(self.g(), &self.arguments[i].axes());
                        given.push(Given::Summed(self.memory_take(room)));
                        form.push(Gradient::Sequences { parts });
                    }
                }
            }
        }
        (given, form)
    }

    /// Declarations of what a routine reads, out of its arguments.
    fn function(&self, name: &str, r: &Routine, back: bool) -> String {
        let mut t = String::new();
        let _ = writeln!(t, "static __attribute__((noinline)) void {name}(real *m, const struct fwp_at *at)\n{{");
        let _ = writeln!(
            t,
            "    const int64_t index = at->index;\n    const int64_t row0 = at->row0;\n    (void)index, (void)row0, (void)m;"
        );
        let mut line = |used: &str, text: String| {
            if r.body.contains(used) || r.after.contains(used) {
                let _ = writeln!(t, "    {text}");
            }
        };
        for (i, p) in self.arguments.iter().enumerate() {
            let ty = c_type(p.dtype);
            line(&format!("in{i}"), format!("const {ty} *const in{i} = (const {ty} *)at->in[{i}]; (void)in{i};"));
            if back {
                line(
                    &format!("in_gradient{i}"),
                    format!("real *const in_gradient{i} = at->in_gradient[{i}]; (void)in_gradient{i};"),
                );
                line(&format!("left{i}"), format!("real *const left{i} = at->in_gradient[{i}]; (void)left{i};"));
                line(&format!("right{i}"), format!("real *const right{i} = at->right[{i}]; (void)right{i};"));
            }
        }
        for i in 0..self.states.len() {
            line(&format!("state{i}"), format!("const real *const state{i} = at->state[{i}]; (void)state{i};"));
            line(&format!("next{i}"), format!("real *const next{i} = at->next[{i}]; (void)next{i};"));
            if back {
                line(
                    &format!("state_gradient{i}"),
                    format!("const real *const state_gradient{i} = at->state_gradient[{i}]; (void)state_gradient{i};"),
                );
                line(
                    &format!("state_gradient_out{i}"),
                    format!("real *const state_gradient_out{i} = at->state_gradient_out[{i}]; (void)state_gradient_out{i};"),
                );
            }
        }
        for i in 0..self.kept.len() {
            line(&format!("kept{i}"), format!("real *const kept{i} = at->kept[{i}]; (void)kept{i};"));
            line(
                &format!("kept_gradient{i}"),
                format!("const real *const kept_gradient{i} = at->kept_gradient[{i}]; (void)kept_gradient{i};"),
            );
        }
        let mut offset = 0;
        for (k, n) in self.saved.iter().enumerate() {
            line(&format!("saved{k}"), format!("real *const saved{k} = at->saved + {offset}; (void)saved{k};"));
            offset += self.lay.room(self.g(), self.g().axes(*n)).next_multiple_of(16);
        }
        t += &r.body;
        t += &r.after;
        t += "}\n\n";
        t
    }

    fn saved_room(&self) -> usize {
        self.saved.iter().map(|n| self.lay.room(self.g(), self.g().axes(*n)).next_multiple_of(16)).sum()
    }

    fn outputs(&self, kept: bool, states: bool) -> Vec<Output> {
        let mut outputs = Vec::new();
        if kept {
            for (i, n) in self.low.kept.iter().enumerate() {
                outputs.push(Output { node: *n, axes: self.kept[i].axes(), dest: Dest::Kept(i) });
            }
        }
        if states {
            for (i, n) in self.low.next.iter().enumerate() {
                outputs.push(Output { node: *n, axes: self.states[i].axes(), dest: Dest::State(i) });
            }
        }
        outputs
    }

    fn kernel(&mut self, target: Target) -> Result<Kernel, String> {
        // Forward: its own memory.
        self.allocate_copies();
        let mut forward_states = Vec::new();
        for i in 0..self.states.len() {
            let room = self.state_rooms[i];
            forward_states.push((self.memory_take(room), self.memory_take(room)));
        }
        let forward = self.routine(self.outputs(true, true), &[])?;
        let forward_text = self.function("fwp_step", &forward, false);
        let forward_setup = self.setup();
        let forward_walk = self.forward_walk(&forward_states, &forward_setup)?;
        let forward_bytes = self.memory.elements * self.lay.bytes;

        // Backward: the step again, keeping what the adjoint wants, then the adjoint.
        self.memory = Memory::default();
        self.masks.clear();
        self.copies.clear();
        self.kept_copies.clear();
        self.allocate_copies();
        let (given, gradients) = self.gradients();
        let mut back = Vec::new();
        for (i, n) in self.low.state_gradients.iter().enumerate() {
            back.push(Output { node: *n, axes: self.states[i].axes(), dest: Dest::StateGradient(i) });
        }
        for (i, g) in given.iter().enumerate() {
            match (g, self.low.argument_gradients[i]) {
                (Given::Steps | Given::Summed(_), Some(n)) => {
                    back.push(Output { node: n, axes: self.arguments[i].axes(), dest: Dest::Argument(i) });
                }
                (Given::Factors { left, right, axes }, _) => {
                    back.push(Output { node: *left, axes: vec![axes[0]], dest: Dest::Left(i) });
                    back.push(Output { node: *right, axes: vec![axes[1]], dest: Dest::Right(i) });
                }
                _ => {}
            }
        }
        let saved = self.low.saved.clone();
        self.saved = saved.iter().map(|s| s.0).collect();
        let mut again = self.outputs(false, true);
        again.extend(saved.iter().enumerate().map(|(k, s)| Output {
            node: s.1,
            axes: self.g().axes(s.1).to_vec(),
            dest: Dest::Saved(k),
        }));
        let again = self.routine(again, &given)?;
        let again_text = self.function("fwp_step_again", &again, false);
        let adjoint = self.routine(back, &given)?;
        let adjoint_text = self.function("fwp_step_back", &adjoint, true);
        let mut undo_text = String::new();
        if self.low.undo.iter().any(Option::is_some) {
            let mut outputs = Vec::new();
            for (i, n) in self.low.undo.iter().enumerate() {
                if let Some(n) = n {
                    outputs.push(Output { node: *n, axes: self.states[i].axes(), dest: Dest::State(i) });
                }
            }
            let undo = self.routine(outputs, &given)?;
            undo_text = self.function("fwp_step_undo", &undo, false);
        }
        let (walk, a_step) = self.backward_walk(&given)?;
        let backward_bytes = self.memory.elements * self.lay.bytes;
        let mut source = String::new();
        let _ = writeln!(source, "/* {} */", self.step.name.replace("*/", "* /"));
        let _ = writeln!(source, "#define FWP_DOUBLE {}", u8::from(target.real == Real::F64));
        let _ = writeln!(source, "#define FWP_LANES {}", self.lay.lanes);
        let _ = writeln!(source, "typedef {} real;", if target.real == Real::F64 { "double" } else { "float" });
        source += include_str!("prelude.h");
        source += include_str!("math.h");
        source += include_str!("helpers.h");
        source += &self.at_struct();
        source += &self.globals;
        source += "\n";
        for part in [&forward_text, &forward_walk, &again_text, &adjoint_text, &undo_text, &walk] {
            source += part;
        }
        Ok(Kernel {
            source,
            blocks: self.split.map_or(1, |s| s.1),
            forward_scratch: forward_bytes,
            backward_scratch: backward_bytes,
            backward_scratch_a_step: a_step * self.lay.bytes,
            gradients,
            operations: [forward.operations, again.operations + adjoint.operations],
            notes: self.notes(),
        })
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let bytes: usize = self.state_rooms.iter().sum::<usize>() * self.lay.bytes;
        let blocks = self.split.map_or(1, |s| s.1);
        let lanes: HashSet<Axis> = self.states.iter().filter_map(|s| self.g().lane(&s.axes())).collect();
        let mut rows: Vec<String> =
            lanes.iter().map(|a| format!("{} rows in blocks of {}", self.lay.sizes[*a], self.lay.block(*a))).collect();
        rows.sort();
        let what = if blocks > 1 { format!("{blocks} independent blocks a sequence, each ") } else { String::new() };
        notes.push(format!("{what}{} in vectors of {} lanes", rows.join(", "), self.lay.lanes));
        let fits = match bytes {
            0..=49_152 => "the first-level cache",
            49_153..=1_048_576 => "the second-level cache",
            _ => "no cache that a core has for itself",
        };
        notes.push(format!("a state of {} KiB fits into {fits}", bytes.div_ceil(1024)));
        notes
    }

    fn at_struct(&self) -> String {
        let n = |k: usize| k.max(1);
        format!(
            "/* Where one step finds and leaves its values. */\nstruct fwp_at {{\n    const void *in[{}];\n    real *in_gradient[{}];\n    real *right[{}];\n    const real *state[{}];\n    real *next[{}];\n    const real *state_gradient[{}];\n    real *state_gradient_out[{}];\n    real *kept[{}];\n    const real *kept_gradient[{}];\n    real *saved;\n    int64_t index, row0;\n}};\n",
            n(self.arguments.len()),
            n(self.arguments.len()),
            n(self.arguments.len()),
            n(self.states.len()),
            n(self.states.len()),
            n(self.states.len()),
            n(self.states.len()),
            n(self.kept.len()),
            n(self.kept.len()),
        )
    }

    /// What is set up once a unit: zeros, masks of rows.
    fn setup(&self) -> String {
        let mut t = String::new();
        let _ = writeln!(t, "    __builtin_memset(m, 0, {} * sizeof(real));", self.memory.elements);
        let mut masks: Vec<(&Axis, &usize)> = self.masks.iter().collect();
        masks.sort();
        for (axis, at) in masks {
            let _ = writeln!(
                t,
                "    for (int i = 0; i < {}; i++) ((fwp_lane_alias *)(m + {at}))[i] = -(fwp_lane)(i < {});",
                self.lay.padded(*axis),
                self.lay.sizes[*axis]
            );
        }
        let blocks = self.split.map_or(1, |s| s.1);
        let rows = self.split.map_or(0, |(a, _)| self.lay.sizes[a]);
        let _ = writeln!(t, "    const int64_t sequence = unit / {blocks}, row0 = unit % {blocks} * {rows};");
        let _ = writeln!(t, "    (void)row0;");
        t
    }

    /// Brings arguments in at step t (`every`) or once a unit.
    fn bring(&self, once: bool) -> Result<String, String> {
        let mut t = String::new();
        for (i, p) in self.arguments.iter().enumerate() {
            if once != (self.step.per[i] != Per::Step) {
                continue;
            }
            let ty = c_type(p.dtype);
            let time = if once { String::new() } else { format!(" + t * s->in_step[{i}]") };
            let indent = if once { 4 } else { 8 };
            let from = format!("((const {ty} *)s->in[{i}]{time} + sequence * s->in_sequence[{i}])");
            match self.copies[i] {
                Some(at) => {
                    let _ = writeln!(t, "{:indent$}{{\n{:indent$}    const {ty} *const theirs = {from};", "", "");
                    t += &self.transfer(p, &format!("(m + {at})"), "theirs", false, indent + 4)?;
                    let _ = writeln!(t, "{:indent$}}}\n{:indent$}at.in[{i}] = m + {at};", "", "");
                }
                None => {
                    let split = self.split.filter(|(a, _)| p.axes().contains(a));
                    let row = if split.is_some() { " + row0" } else { "" };
                    let _ = writeln!(t, "{:indent$}at.in[{i}] = {from}{row};", "");
                }
            }
        }
        Ok(t)
    }

    /// Asks for what the step after next reads and writes: steps of one sequence lie apart, and no hardware foresees them well.
    fn foresee(&self, given: Option<&[Given]>, indent: usize) -> String {
        let mut lines: Vec<(String, usize, bool)> = Vec::new();
        // Of a value that is split, this block's rows: they lie together where the split axis is the first.
        let rows = |p: &Port, bytes: usize| match (self.split, p.dims.first()) {
            (Some((axis, blocks)), Some(Some(first))) if axis == *first => {
                (format!(" + row0 * {}", p.elements() / p.shape[0]), bytes / blocks)
            }
            _ => (String::new(), bytes),
        };
        for (i, p) in self.arguments.iter().enumerate() {
            let (row, bytes) = rows(p, p.elements() * if p.dtype == Dtype::Float { self.lay.bytes } else { 8 });
            if self.step.per[i] == Per::Step && bytes <= MOST_FORESEEN {
                let ty = c_type(p.dtype);
                let from = format!("(const {ty} *)s->in[{i}] + ahead * s->in_step[{i}] + sequence * s->in_sequence[{i}]{row}");
                lines.push((from, bytes, false));
                if let Some([Given::Steps]) = given.and_then(|g| g.get(i..=i)) {
                    let part = self.part(p, "s->steps");
                    let at = format!("(({part}ahead) * s->sequences + sequence) * {}{row}", p.elements());
                    lines.push((format!("s->in_gradient[{i}] ? s->in_gradient[{i}] + {at} : m"), bytes, true));
                }
            }
        }
        for (i, p) in self.kept.iter().enumerate() {
            let (row, bytes) = rows(p, p.elements() * self.lay.bytes);
            if bytes <= MOST_FORESEEN {
                let at = format!("(ahead * s->sequences + sequence) * {}{row}", p.elements());
                lines.push(match given {
                    Some(_) => (format!("s->kept_gradient[{i}] ? s->kept_gradient[{i}] + {at} : m"), bytes, false),
                    None => (format!("s->kept[{i}] + {at}"), bytes, true),
                });
            }
        }
        let mut t = String::new();
        if lines.is_empty() {
            return t;
        }
        let (test, ahead) = if given.is_some() { ("t >= 2", "t - 2") } else { ("t + 2 < s->steps", "t + 2") };
        let _ = writeln!(t, "{:indent$}if ({test}) {{\n{:indent$}    const int64_t ahead = {ahead};", "", "");
        for (from, bytes, written) in lines {
            let name = if written { "fwp_foresee_write" } else { "fwp_foresee" };
            let _ = writeln!(t, "{:indent$}    {name}({from}, {bytes});", "");
        }
        let _ = writeln!(t, "{:indent$}}}", "");
        t
    }

    /// The place of this block's partial sums before those of a step or a sequence, where blocks have their own.
    fn part(&self, p: &Port, of: &str) -> String {
        match self.split {
            Some((axis, blocks)) if !p.axes().contains(&axis) => format!("unit % {blocks} * {of} + "),
            _ => String::new(),
        }
    }

    /// Copies a state between the caller's memory and ours.
    fn state_transfer(&self, i: usize, own: &str, theirs: &str, out: bool, indent: usize) -> Result<String, String> {
        let p = &self.states[i];
        self.transfer(p, own, &format!("({theirs})"), out, indent)
    }

    /// Whether a checkpoint can hold our layout as it is.
    fn flat_checkpoint(&self, i: usize) -> bool {
        let axes = self.states[i].axes();
        match self.g().lane(&axes) {
            None => true,
            Some(lane) => !self.lay.ragged(lane) && self.split.is_none_or(|(a, _)| a == lane),
        }
    }

    fn checkpoint(&self, i: usize, own: &str, which: &str, out: bool, indent: usize) -> Result<String, String> {
        let n = self.states[i].elements();
        let theirs = format!("s->checkpoint[{i}] + (({which}) * s->sequences + sequence) * {n}");
        if self.flat_checkpoint(i) {
            let mine: usize = self.lay_elements(i);
            let part = if self.split.is_some() {
                format!(" + unit % {} * {mine}", self.split.map_or(1, |s| s.1))
            } else {
                String::new()
            };
            let (to, from) =
                if out { (format!("{theirs}{part}"), own.to_string()) } else { (own.to_string(), format!("{theirs}{part}")) };
            return Ok(format!("{:indent$}__builtin_memcpy({to}, {from}, {mine} * sizeof(real));\n", ""));
        }
        self.state_transfer(i, own, &theirs, out, indent)
    }

    fn lay_elements(&self, i: usize) -> usize {
        self.states[i].axes().iter().map(|a| self.lay.sizes[*a]).product()
    }

    /// Whether state i takes its new value at a step.
    fn taken(&self, i: usize) -> String {
        let s = &self.step.states[i];
        let mut parts = Vec::new();
        if s.state.held > 1 {
            parts.push(format!("(at.index + 1) % {} == 0", s.state.held));
        }
        if s.masked {
            parts.push("(!s->write || s->write[t * s->sequences + sequence])".into());
        }
        if parts.is_empty() { "1".into() } else { parts.join(" && ") }
    }

    fn forward_walk(&self, states: &[(usize, usize)], setup: &str) -> Result<String, String> {
        let mut t = String::from(
            "void fwp_forward(const struct fwp_scan *s, int64_t unit, void *scratch)\n{\n    real *const m = (real *)scratch;\n",
        );
        t += setup;
        t += "    struct fwp_at at = {0};\n    at.row0 = row0;\n";
        t += &self.bring(true)?;
        for (i, p) in self.states.iter().enumerate() {
            let n = p.elements();
            t += &self.state_transfer(
                i,
                &format!("(m + {})", states[i].0),
                &format!("s->start[{i}] + sequence * {n}"),
                false,
                4,
            )?;
            let _ = writeln!(t, "    at.state[{i}] = m + {};", states[i].0);
        }
        t += "    for (int64_t t = 0; t < s->steps; t++) {\n";
        if !self.states.is_empty() {
            t += "        if (s->checkpoint && t % s->interval == 0) {\n";
            for (i, (place, ..)) in states.iter().enumerate() {
                t += &self.checkpoint(i, &format!("(m + {place})"), "t / s->interval", true, 12)?;
            }
            t += "        }\n        if (s->reset && s->reset[t * s->sequences + sequence]) {\n";
            for (i, p) in self.states.iter().enumerate() {
                let n = p.elements();
                t += &self.state_transfer(
                    i,
                    &format!("(m + {})", states[i].0),
                    &format!("s->fresh[{i}] + sequence * {n}"),
                    false,
                    12,
                )?;
            }
            t += "        }\n";
        }
        t += "        at.index = s->index ? s->index[t * s->sequences + sequence] : t;\n";
        t += &self.bring(false)?;
        t += &self.foresee(None, 8);
        for (i, at) in states.iter().enumerate() {
            let _ = writeln!(t, "        at.next[{i}] = {} ? m + {} : m + {};", self.taken(i), at.0, at.1);
        }
        for (i, p) in self.kept.iter().enumerate() {
            let n = p.elements();
            let _ = writeln!(t, "        at.kept[{i}] = s->kept[{i}] + (t * s->sequences + sequence) * {n};");
        }
        t += "        fwp_step(m, &at);\n    }\n";
        for (i, p) in self.states.iter().enumerate() {
            let n = p.elements();
            t += &self.state_transfer(i, &format!("(m + {})", states[i].0), &format!("s->end[{i}] + sequence * {n}"), true, 4)?;
        }
        t += "}\n\n";
        Ok(t)
    }

    /// The text of the walk back, and elements of scratch for every step of the interval.
    fn backward_walk(&mut self, given: &[Given]) -> Result<(String, usize), String> {
        // Of every state: its gradient, zeros, a place for what is not wanted, the gradient of the state after a reset.
        struct Rooms {
            gradient: usize,
            zeros: usize,
            trash: usize,
            fresh: usize,
            /// Where the state itself is, if it is computed back and not stored.
            tile: Option<usize>,
        }
        let mut rooms = Vec::new();
        for i in 0..self.states.len() {
            let n = self.state_rooms[i];
            rooms.push(Rooms {
                tile: self.low.undo[i].map(|_| self.memory_take(n)),
                gradient: self.memory_take(n),
                zeros: self.memory_take(n),
                trash: self.memory_take(n),
                fresh: self.memory_take(n),
            });
        }
        let states: usize = self.state_rooms.iter().sum();
        let a_step = states + self.saved_room();
        let first = self.memory.elements;
        let mut t = String::from(
            "void fwp_backward(const struct fwp_scan *s, int64_t unit, void *scratch)\n{\n    real *const m = (real *)scratch;\n",
        );
        t += &self.setup();
        t += "    struct fwp_at at = {0};\n    at.row0 = row0;\n";
        t += &self.bring(true)?;
        for (i, p) in self.states.iter().enumerate() {
            let n = p.elements();
            let _ = writeln!(t, "    if (s->end_gradient[{i}]) {{");
            t += &self.state_transfer(
                i,
                &format!("(m + {})", rooms[i].gradient),
                &format!("s->end_gradient[{i}] + sequence * {n}"),
                false,
                8,
            )?;
            t += "    }\n";
        }
        // Vectors that are read at every step lie close together, apart from states that are perhaps never touched.
        let saved = self.saved_room();
        let _ = writeln!(t, "    real *const vectors = m + {first};\n    real *const slots = vectors + s->interval * {saved};");
        t += "    (void)vectors, (void)slots;\n";
        t += "    for (int64_t segment = (s->steps + s->interval - 1) / s->interval - 1; segment >= 0; segment--) {\n";
        t += "        const int64_t begin = segment * s->interval;\n";
        t += "        const int64_t end = begin + s->interval < s->steps ? begin + s->interval : s->steps;\n";
        let mut offsets = Vec::new();
        let mut offset = 0;
        for room in &self.state_rooms {
            offsets.push(offset);
            offset += room;
        }
        for (i, at) in offsets.iter().enumerate() {
            let to = rooms[i].tile.map_or(format!("(slots + {at})"), |tile| format!("(m + {tile})"));
            t += &self.checkpoint(i, &to, "segment", false, 8)?;
        }
        // Forwards.
        t += "        for (int64_t t = begin; t < end; t++) {\n";
        let _ = writeln!(t, "            real *const slot = slots + (t - begin) * {states};\n            (void)slot;");
        let _ = writeln!(t, "            const int last = t + 1 == end;\n            (void)last;");
        t += "            at.index = s->index ? s->index[t * s->sequences + sequence] : t;\n";
        if !self.states.is_empty() {
            t += "            if (s->reset && s->reset[t * s->sequences + sequence]) {\n";
            for (i, p) in self.states.iter().enumerate() {
                let n = p.elements();
                let mut to = format!("(slot + {})", offsets[i]);
                if let Some(tile) = rooms[i].tile {
                    // What a reset forgets cannot be computed back.
                    let _ = writeln!(
                        t,
                        "                __builtin_memcpy({to}, m + {tile}, {} * sizeof(real));",
                        self.state_rooms[i]
                    );
                    to = format!("(m + {tile})");
                }
                t += &self.state_transfer(i, &to, &format!("s->fresh[{i}] + sequence * {n}"), false, 16)?;
            }
            t += "            }\n";
        }
        t += &indented(&self.bring(false)?);
        for (i, at) in offsets.iter().enumerate() {
            if let Some(tile) = rooms[i].tile {
                let _ = writeln!(t, "            at.state[{i}] = m + {tile};");
                let _ = writeln!(t, "            at.next[{i}] = {} ? m + {tile} : m + {};", self.taken(i), rooms[i].trash);
                continue;
            }
            let _ = writeln!(t, "            at.state[{i}] = slot + {at};");
            let _ = writeln!(t, "            if (last) at.next[{i}] = m + {};", rooms[i].trash);
            let _ = writeln!(t, "            else if ({}) at.next[{i}] = slot + {};", self.taken(i), states + at);
            let _ = writeln!(t, "            else {{\n                at.next[{i}] = m + {};", rooms[i].trash);
            let _ = writeln!(
                t,
                "                __builtin_memcpy(slot + {}, slot + {at}, {} * sizeof(real));\n            }}",
                states + at,
                self.state_rooms[i]
            );
        }
        let _ = writeln!(t, "            at.saved = vectors + (t - begin) * {saved};");
        t += "            fwp_step_again(m, &at);\n        }\n";
        // Backwards.
        t += "        for (int64_t t = end - 1; t >= begin; t--) {\n";
        let _ = writeln!(t, "            real *const slot = slots + (t - begin) * {states};\n            (void)slot;");
        t += "            at.index = s->index ? s->index[t * s->sequences + sequence] : t;\n";
        t += &indented(&self.bring(false)?);
        t += &self.foresee(Some(given), 12);
        for (i, at) in offsets.iter().enumerate() {
            let _ = writeln!(t, "            const int taken{i} = {};", self.taken(i));
            match rooms[i].tile {
                Some(tile) => {
                    let _ = writeln!(t, "            at.state[{i}] = m + {tile};");
                    let _ = writeln!(t, "            at.next[{i}] = taken{i} ? m + {tile} : m + {};", rooms[i].trash);
                }
                None => {
                    let _ = writeln!(t, "            at.state[{i}] = slot + {at};");
                }
            }
            let _ = writeln!(
                t,
                "            at.state_gradient[{i}] = taken{i} ? m + {} : m + {};",
                rooms[i].gradient, rooms[i].zeros
            );
            let _ = writeln!(
                t,
                "            at.state_gradient_out[{i}] = taken{i} ? m + {} : m + {};",
                rooms[i].gradient, rooms[i].trash
            );
        }
        let _ = writeln!(t, "            at.saved = vectors + (t - begin) * {saved};");
        let undone: Vec<String> =
            (0..self.states.len()).filter(|i| rooms[*i].tile.is_some()).map(|i| format!("taken{i}")).collect();
        if !undone.is_empty() {
            let _ = writeln!(t, "            if ({}) fwp_step_undo(m, &at);", undone.join(" || "));
        }
        for (i, p) in self.kept.iter().enumerate() {
            let n = p.elements();
            let at = self.kept_copies[i].unwrap_or(0);
            let theirs = format!("s->kept_gradient[{i}] + (t * s->sequences + sequence) * {n}");
            let split = self.split.filter(|(a, _)| p.axes().contains(a));
            if self.direct(p) {
                let row = if split.is_some() { " + row0" } else { "" };
                let _ = writeln!(t, "            at.kept_gradient[{i}] = s->kept_gradient[{i}] ? {theirs}{row} : m + {at};");
            } else {
                let _ = writeln!(
                    t,
                    "            if (s->kept_gradient[{i}]) {{\n                const real *const theirs = {theirs};"
                );
                t += &self.transfer(p, &format!("(m + {at})"), "theirs", false, 16)?;
                let _ = writeln!(t, "            }}\n            at.kept_gradient[{i}] = m + {at};");
            }
        }
        for (i, g) in given.iter().enumerate() {
            let n = self.arguments[i].elements();
            match g {
                Given::Steps => {
                    let part = self.part(&self.arguments[i], "s->steps");
                    let _ = writeln!(
                        t,
                        "            at.in_gradient[{i}] = s->in_gradient[{i}] ? s->in_gradient[{i}] + (({part}t) * s->sequences + sequence) * {n} : 0;"
                    );
                }
                Given::Factors { axes, .. } => {
                    let (left, right) = (self.lay.sizes[axes[0]], self.lay.sizes[axes[1]]);
                    let _ = writeln!(
                        t,
                        "            at.in_gradient[{i}] = s->in_gradient[{i}] ? s->in_gradient[{i}] + (t * s->sequences + sequence) * {left} : 0;"
                    );
                    let _ = writeln!(
                        t,
                        "            at.right[{i}] = s->in_gradient[{i}] ? s->in_gradient[{i}] + s->steps * s->sequences * {left} + (t * s->sequences + sequence) * {right} : 0;"
                    );
                }
                _ => {}
            }
        }
        t += "            fwp_step_back(m, &at);\n";
        for (i, r) in rooms.iter().enumerate() {
            let n = self.state_rooms[i];
            let (g, trash, fresh) = (r.gradient, r.trash, r.fresh);
            let _ = writeln!(t, "            if (!taken{i}) for (int i = 0; i < {n}; i++) m[{g} + i] += m[{trash} + i];");
            let _ = writeln!(
                t,
                "            if (s->reset && s->reset[t * s->sequences + sequence])\n                for (int i = 0; i < {n}; i++) m[{fresh} + i] += m[{g} + i], m[{g} + i] = 0;"
            );
            if let Some(tile) = r.tile {
                let _ = writeln!(
                    t,
                    "            if (s->reset && s->reset[t * s->sequences + sequence])\n                __builtin_memcpy(m + {tile}, slot + {}, {n} * sizeof(real));",
                    offsets[i]
                );
            }
        }
        t += "        }\n    }\n";
        for (i, p) in self.states.iter().enumerate() {
            let n = p.elements();
            t += &self.state_transfer(
                i,
                &format!("(m + {})", rooms[i].gradient),
                &format!("s->start_gradient[{i}] + sequence * {n}"),
                true,
                4,
            )?;
            let _ = writeln!(t, "    if (s->fresh_gradient && s->fresh_gradient[{i}]) {{");
            t += &self.state_transfer(
                i,
                &format!("(m + {})", rooms[i].fresh),
                &format!("s->fresh_gradient[{i}] + sequence * {n}"),
                true,
                8,
            )?;
            t += "    }\n";
        }
        for (i, g) in given.iter().enumerate() {
            let p = &self.arguments[i];
            let n = p.elements();
            let Given::Summed(at) = g else { continue };
            let part = self.part(p, "s->sequences");
            let _ = writeln!(
                t,
                "    if (s->in_gradient[{i}]) {{\n        real *const theirs = s->in_gradient[{i}] + ({part}sequence) * {n};"
            );
            t += &self.transfer(p, &format!("(m + {at})"), "theirs", true, 8)?;
            t += "    }\n";
        }
        t += "}\n";
        Ok((t, a_step))
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|l| format!("    {l}\n")).collect()
}

fn c_type(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Float => "real",
        Dtype::Int => "int64_t",
        Dtype::Mask => "uint8_t",
    }
}
