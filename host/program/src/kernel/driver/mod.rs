//! The walk through time around the routines of a step: text of `fwp_forward` and `fwp_backward`.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use fwp_sdk::program::{DType, Type};

use super::form::{InStep, Kernel, Real, Target};
use super::graph::{Axis, Dtype, Graph, Id};
use super::layout::Layouts;
use super::lower::Lowered;
use super::nests::{Dest, Output};
use super::print::Memory;

mod ports;
mod routines;
mod sums;
mod walks;

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
    /// The graph with the axes in lanes that the walk which is being written has there.
    graph: &'a Graph,
    /// That of the walk forwards.
    ahead: &'a Graph,
    lay: Layouts,
    memory: Memory,
    masks: HashMap<Axis, usize>,
    globals: String,
    arguments: Vec<Port>,
    states: Vec<Port>,
    kept: Vec<Port>,
    /// The axis that is split into blocks, and the number of blocks.
    split: Option<(Axis, usize)>,
    /// Values that the step stores for the adjoint, as the step computes them.
    saved: Vec<Id>,
    /// Offsets of copies of arguments in memory.
    copies: Vec<Option<usize>>,
    kept_copies: Vec<Option<usize>>,
    state_rooms: Vec<usize>,
}

/// The routines of a step back, a text for every stratum.
struct Back {
    /// What their names begin with.
    name: &'static str,
    texts: Vec<String>,
    /// How gradients are handed over.
    given: Vec<Given>,
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
    let ahead = graph_ahead(low);
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
    let mut d = Driver {
        step,
        low,
        graph: &ahead,
        ahead: &ahead,
        lay,
        memory: Memory::default(),
        masks: HashMap::new(),
        globals: String::new(),
        arguments: arguments?,
        states,
        kept,
        split,
        saved: low.saved.iter().map(|s| s.1).collect(),
        copies: Vec::new(),
        kept_copies: Vec::new(),
        state_rooms: Vec::new(),
    };
    d.kernel(target)
}

/// The graph with the axes in lanes that suit the step forwards, where checkpoints are far apart: they hold states row by row then.
/// The values that are saved for the way back must lie alike.
fn graph_ahead(low: &Lowered) -> Graph {
    let ahead = Graph { order: low.order_ahead.clone(), ..low.graph.clone() };
    let far = !low.carried.is_empty() || low.undo.iter().any(Option::is_some);
    let alike = low.saved.iter().all(|(_, n)| ahead.lane(ahead.axes(*n)) == low.graph.lane(ahead.axes(*n)));
    if far && alike { ahead } else { low.graph.clone() }
}

impl<'a> Driver<'a> {
    fn g(&self) -> &Graph {
        self.graph
    }

    /// Begins with a walk whose lanes are those of `graph`.
    fn begin(&mut self, graph: &'a Graph) {
        self.graph = graph;
        self.memory = Memory::default();
        self.masks.clear();
        self.copies.clear();
        self.kept_copies.clear();
        self.state_rooms = self.states.iter().map(|s| self.lay.room(graph, &s.axes()).next_multiple_of(16)).collect();
        self.allocate_copies();
    }

    /// What is made of another form of the step, in the same memory.
    fn of_form<T>(&mut self, form: &'a Lowered, make: impl FnOnce(&mut Self) -> T) -> T {
        let saved = form.saved.iter().map(|s| s.1).collect();
        let (low, graph) = (std::mem::replace(&mut self.low, form), std::mem::replace(&mut self.graph, &form.graph));
        let saved = std::mem::replace(&mut self.saved, saved);
        let made = make(self);
        (self.low, self.graph, self.saved) = (low, graph, saved);
        made
    }

    fn memory_take(&mut self, elements: usize) -> usize {
        self.memory.take(elements)
    }

    fn kernel(&mut self, target: Target) -> Result<Kernel, String> {
        // Forward: its own memory.
        self.begin(self.ahead);
        let mut forward_states = Vec::new();
        for i in 0..self.states.len() {
            let room = self.state_rooms[i];
            forward_states.push((self.memory_take(room), self.memory_take(room)));
        }
        let mut forward_texts = Vec::new();
        let mut forward_operations = 0;
        for (k, outputs) in self.outputs().into_iter().enumerate() {
            let forward = self.routine(outputs, &[])?;
            forward_operations += forward.operations;
            forward_texts.push(self.function(&format!("fwp_step{k}"), &forward, false));
        }
        let forward_walk = self.forward_walk(&forward_states, &forward_texts)?;
        let forward_bytes = self.memory.elements * self.lay.bytes + self.at_bytes();

        // Backward: states from one checkpoint to the next, if they have to be, and the adjoint.
        let low = self.low;
        self.begin(&low.graph);
        let first = self.memory.elements;
        let (given, gradients) = self.gradients();
        let summed = (first, self.memory.elements - first);
        let again = self.routine(self.outputs_again(), &given)?;
        let again_text = match low.again.iter().any(Option::is_some) {
            true => self.function("fwp_step_again", &again, false),
            false => String::new(),
        };
        let mut carry_text = String::new();
        for (i, c) in low.carried.iter().enumerate().filter_map(|(i, c)| Some((i, c.as_ref()?))) {
            for (name, n) in [("fwp_carry", c.anew), ("fwp_carry_unchanged", c.unchanged)] {
                let output = Output { node: n, axes: self.g().axes(n).to_vec(), dest: Dest::Carried(i) };
                let routine = self.routine(vec![output], &given)?;
                carry_text += &self.function(&format!("{name}{i}"), &routine, true);
            }
        }
        let (back, operations) = self.adjoint("fwp_step_back", given)?;
        let stored = match low.stored.as_deref() {
            Some(form) => Some((form, self.of_form(form, |d| d.stored(&back.given))?)),
            None => None,
        };
        // What a step back may call besides.
        let others = if self.passing() { &carry_text } else { &again_text };
        let (walk, room) = self.backward_walk(summed, &back, stored.as_ref(), others)?;
        let backward_bytes = self.memory.elements * self.lay.bytes + self.at_bytes();
        let computed_back = self.low.undo.iter().any(Option::is_some);
        let repeated = if computed_back { 0 } else { again.operations };
        let mut source = String::new();
        let _ = writeln!(source, "/* {} */", self.step.name.replace("*/", "* /"));
        let _ = writeln!(source, "#define FWP_DOUBLE {}", u8::from(target.real == Real::F64));
        let _ = writeln!(source, "#define FWP_LANES {}", self.lay.lanes);
        let _ = writeln!(source, "typedef {} real;", if target.real == Real::F64 { "double" } else { "float" });
        source += include_str!("../prelude.h");
        source += include_str!("../math.h");
        source += include_str!("../helpers.h");
        source += &self.at_struct();
        source += &self.globals;
        source += "\n";
        let between = [&forward_walk, &again_text, &carry_text];
        let adjoints = back.texts.iter().chain(stored.iter().flat_map(|(_, back)| &back.texts));
        for part in forward_texts.iter().chain(between).chain(adjoints).chain([&walk]) {
            source += part;
        }
        source += include_str!("../entries.h");
        Ok(Kernel {
            source,
            blocks: self.split.map_or(1, |s| s.1),
            memory: [forward_bytes, backward_bytes],
            slots_a_step: room.a_step * self.lay.bytes,
            slots_a_block: room.a_block * self.lay.bytes,
            computed_back,
            saved: self.saved_room(),
            gradients,
            operations: [forward_operations, repeated + operations],
            notes: self.notes(),
        })
    }

    fn notes(&self) -> Vec<String> {
        if self.states.is_empty() {
            return vec![format!("without a state, in vectors of {} lanes", self.lay.lanes)];
        }
        let mut notes = Vec::new();
        let bytes: usize = self.state_rooms.iter().sum::<usize>() * self.lay.bytes;
        let blocks = self.split.map_or(1, |s| s.1);
        let lanes = |g: &Graph| -> HashSet<Axis> { self.states.iter().filter_map(|s| g.lane(&s.axes())).collect() };
        let mut rows: Vec<String> =
            lanes(self.g()).iter().map(|a| format!("{} rows in blocks of {}", self.lay.sizes[*a], self.lay.block(*a))).collect();
        rows.sort();
        let what = if blocks > 1 { format!("{blocks} independent blocks a sequence, each ") } else { String::new() };
        notes.push(format!("{what}{} in vectors of {} lanes", rows.join(", "), self.lay.lanes));
        let fits = match bytes {
            0..=49_152 => "the first-level cache",
            49_153..=1_048_576 => "the second-level cache",
            _ => "no cache that a core has for itself",
        };
        notes.push(format!("a state of {} KiB fits into {fits}", bytes.div_ceil(1024)));
        if lanes(self.ahead) != lanes(self.g()) {
            notes.push("on the way forwards its rows are the other axis, which spares sums across lanes".into());
        }
        for (count, way) in [(self.low.ahead.count, "forwards"), (self.low.strata.count, "back")] {
            if count > 1 {
                notes.push(format!("its states are walked {way} in {count} groups, one after the other"));
            }
        }
        notes
    }
}

fn c_type(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Float => "real",
        Dtype::Int => "int64_t",
        Dtype::Mask => "uint8_t",
    }
}
