//! What goes between the caller's memory and a kernel's own.

use std::collections::HashMap;
use std::fmt::Write;

use super::{Driver, Given, MOST_FORESEEN, Port, c_type};
use crate::kernel::form::Per;
use crate::kernel::graph::{Axis, Dtype, Leaf};
use crate::kernel::print::{Layout, Place, offset};

/// Which way values go between the caller's memory and our own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
    /// Added to what is there.
    Add,
}

/// Which walk asks for what it reads and writes.
#[derive(Clone, Copy)]
pub(super) enum Foresee<'a> {
    /// Forwards.
    Forward,
    /// Forwards again, for the sums that the steps back read.
    Again,
    /// Back, with how gradients are handed over.
    Back(&'a [Given]),
    /// Back, where the walk forwards again has just read everything.
    Gradients(&'a [Given]),
}

impl<'a> Foresee<'a> {
    fn given(self) -> Option<&'a [Given]> {
        match self {
            Foresee::Back(given) | Foresee::Gradients(given) => Some(given),
            Foresee::Forward | Foresee::Again => None,
        }
    }
}

/// Whether a name stands in the text of the routines that a walk calls.
pub(super) type Used<'a> = &'a dyn Fn(&str) -> bool;

/// All names.
pub(super) const ALL: Used<'static> = &|_| true;

impl Driver<'_> {
    /// Whether the caller's memory can be read as it is.
    pub(super) fn direct(&self, p: &Port) -> bool {
        let axes = p.axes();
        match (p.dtype, &axes[..]) {
            (Dtype::Float, []) => true,
            (Dtype::Float, [a]) => !self.lay.ragged(*a),
            (Dtype::Float, _) => false,
            _ => true,
        }
    }

    pub(super) fn place_of(&self, leaf: Leaf) -> Place {
        let rows = |p: &Port| Layout::Rows(p.dims.iter().flatten().copied().collect());
        match leaf {
            Leaf::Argument(i) => {
                let p = &self.arguments[i];
                let layout = if p.dtype == Dtype::Float { Layout::Lanes } else { rows(p) };
                Place { pointer: format!("in{i}"), layout, adds: false }
            }
            Leaf::State(i) => Place::lanes(format!("state{i}")),
            Leaf::After(i) => Place::lanes(format!("after{i}")),
            Leaf::KeptGradient(i) => Place::lanes(format!("kept_gradient{i}")),
            Leaf::StateGradient(i) => Place::lanes(format!("state_gradient{i}")),
            Leaf::Saved(k) => Place::lanes(format!("saved{k}")),
            Leaf::Carried(i) => Place::lanes(format!("carried{i}")),
            Leaf::Follows => Place::lanes("follows"),
            Leaf::Passed(k) => Place::lanes(format!("passed{k}")),
            Leaf::Brought(k) => Place::lanes(format!("brought{k}")),
            Leaf::Handed(k) => Place::lanes(format!("handed{k}")),
            Leaf::Index => Place::lanes("index"),
        }
    }

    /// A loop nest between the caller's memory and memory of our own.
    pub(super) fn transfer(&self, p: &Port, own: &str, theirs: &str, way: Way, indent: usize) -> Result<String, String> {
        let mut text = String::new();
        let mut index: HashMap<Axis, String> = HashMap::new();
        let mut depth = indent;
        let mut row = String::from("0");
        // Rows block by block: within a block their places are neighbours, which a compiler turns into vectors.
        let axes = p.axes();
        let by_blocks = self.g().lane(&axes).filter(|a| axes.len() > 1 && self.lay.blocks(*a) > 1);
        for (d, axis) in p.dims.iter().enumerate() {
            let place = match axis {
                Some(a) if by_blocks == Some(*a) => {
                    let (blocks, block, rows) = (self.lay.blocks(*a), self.lay.block(*a), self.lay.sizes[*a]);
                    let last = if self.lay.ragged(*a) { format!(" && x{a} < {rows} - b{a} * {block}") } else { String::new() };
                    let _ = writeln!(text, "{:depth$}for (int b{a} = 0; b{a} < {blocks}; b{a}++)", "");
                    let _ = writeln!(text, "{:depth$}for (int x{a} = 0; x{a} < {block}{last}; x{a}++)", "");
                    depth += 4;
                    let split = self.split.is_some_and(|(s, _)| s == *a);
                    format!("({}b{a} * {block} + x{a})", if split { "row0 + " } else { "" })
                }
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
        let at = match by_blocks {
            Some(lane) => {
                let others: Vec<Axis> = axes.iter().copied().filter(|a| *a != lane).collect();
                let rest: usize = others.iter().map(|a| self.lay.sizes[*a]).product();
                let place = others.iter().fold(String::from("0"), |at, a| format!("({at} * {} + x{a})", self.lay.sizes[*a]));
                format!("(b{lane} * {rest} + {place}) * {} + x{lane}", self.lay.block(lane))
            }
            None => self.own_offset(&axes, &index)?,
        };
        let line = match way {
            Way::In => format!("{own}[{at}] = {theirs}[{row}];"),
            Way::Out => format!("{theirs}[{row}] = {own}[{at}];"),
            Way::Add => format!("{theirs}[{row}] += {own}[{at}];"),
        };
        let _ = writeln!(text, "{:depth$}{line}", "");
        Ok(text)
    }

    /// Hands a gradient over. Of a value that all blocks share, those of a unit after its first one, where `adds` is not 0, add theirs.
    pub(super) fn give(&self, p: &Port, own: &str, theirs: &str, adds: &str, indent: usize) -> Result<String, String> {
        if !self.shared(p) {
            return self.transfer(p, own, theirs, Way::Out, indent);
        }
        let add = self.transfer(p, own, theirs, Way::Add, indent + 4)?;
        let put = self.transfer(p, own, theirs, Way::Out, indent + 4)?;
        Ok(format!("{:indent$}if ({adds}) {{\n{add}{:indent$}}} else {{\n{put}{:indent$}}}\n", "", "", ""))
    }

    /// Whether blocks of rows have partial sums of a value's gradient each.
    pub(super) fn shared(&self, p: &Port) -> bool {
        self.split.is_some_and(|(axis, _)| !p.axes().contains(&axis))
    }

    /// The offset of an element of our own.
    fn own_offset(&self, axes: &[Axis], index: &HashMap<Axis, String>) -> Result<String, String> {
        offset(self.g(), &self.lay, &Layout::Lanes, axes, index)
    }

    /// Offsets of copies of what the caller's memory does not hold in our form.
    pub(super) fn allocate_copies(&mut self) {
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

    /// Brings arguments in at every step or once a unit: those whose names are `used`.
    pub(super) fn bring(&self, once: bool, used: Used<'_>) -> Result<String, String> {
        let mut t = String::new();
        for (i, p) in self.arguments.iter().enumerate() {
            if once != (self.step.per[i] != Per::Step) || !used(&format!("in{i}")) {
                continue;
            }
            let ty = c_type(p.dtype);
            let time = if once { String::new() } else { format!(" + t * s->in_step[{i}]") };
            let indent = if once { 4 } else { 8 };
            let from = format!("((const {ty} *)s->in[{i}]{time} + sequence * s->in_sequence[{i}])");
            match self.copies[i] {
                Some(at) => {
                    let _ = writeln!(t, "{:indent$}{{\n{:indent$}    const {ty} *const theirs = {from};", "", "");
                    t += &self.transfer(p, &format!("(m + {at})"), "theirs", Way::In, indent + 4)?;
                    let _ = writeln!(t, "{:indent$}}}\n{:indent$}at->in[{i}] = m + {at};", "", "");
                }
                None => {
                    let split = self.split.filter(|(a, _)| p.axes().contains(a));
                    let row = if split.is_some() { " + row0" } else { "" };
                    let _ = writeln!(t, "{:indent$}at->in[{i}] = {from}{row};", "");
                }
            }
        }
        Ok(t)
    }

    /// Asks for what the step after next reads and writes: steps of one sequence lie apart, and no hardware foresees them well.
    pub(super) fn foresee(&self, walk: Foresee<'_>, used: Used<'_>, indent: usize) -> String {
        let (given, read) = (walk.given(), !matches!(walk, Foresee::Gradients(_)));
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
                if read && used(&format!("in{i}")) {
                    lines.push((from, bytes, false));
                }
                if let Some([Given::Steps]) = given.and_then(|g| g.get(i..=i))
                    && used(&format!("in_gradient{i}"))
                {
                    let part = self.part(p, "s->steps * s->sequences");
                    let at = format!("({part}ahead * s->time + sequence) * {}{row}", p.elements());
                    lines.push((format!("s->in_gradient[{i}] ? s->in_gradient[{i}] + {at} : m"), bytes, true));
                }
            }
        }
        for (i, p) in self.kept.iter().enumerate() {
            let (row, bytes) = rows(p, p.elements() * self.lay.bytes);
            let name = if matches!(walk, Foresee::Forward) { "kept" } else { "kept_gradient" };
            if bytes <= MOST_FORESEEN && used(&format!("{name}{i}")) {
                let at = format!("(ahead * s->time + sequence) * {}{row}", p.elements());
                match walk {
                    Foresee::Forward => lines.push((format!("s->kept[{i}] + {at}"), bytes, true)),
                    Foresee::Again | Foresee::Back(_) => {
                        lines.push((format!("s->kept_gradient[{i}] ? s->kept_gradient[{i}] + {at} : m"), bytes, false));
                    }
                    Foresee::Gradients(_) => {}
                }
            }
        }
        let forward = matches!(walk, Foresee::Forward);
        let mut offset = 0;
        for (k, n) in self.saved.iter().enumerate() {
            let (room, bytes) = (self.vector_room(*n), self.lay.room(self.g(), self.g().axes(*n)) * self.lay.bytes);
            if bytes <= MOST_FORESEEN && used(&format!("saved{k}")) {
                let at = format!("{} + {offset}", self.saved_at("ahead"));
                lines.push((if forward { format!("s->saved ? {at} : m") } else { at }, bytes, forward));
            }
            offset += room;
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

    /// The place of this unit's partial sums before those of a step or a sequence, where units of a sequence have their own.
    pub(super) fn part(&self, p: &Port, of: &str) -> String {
        if self.shared(p) { format!("block / s->together * {of} + ") } else { String::new() }
    }

    /// Copies a state between the caller's memory and ours.
    pub(super) fn state_transfer(&self, i: usize, own: &str, theirs: &str, way: Way, indent: usize) -> Result<String, String> {
        let p = &self.states[i];
        self.transfer(p, own, &format!("({theirs})"), way, indent)
    }

    /// Whether a checkpoint can hold our layout as it is, which both walks have then.
    pub(super) fn flat_checkpoint(&self, i: usize) -> bool {
        let axes = self.states[i].axes();
        if self.ahead.lane(&axes) != self.low.graph.lane(&axes) {
            return false;
        }
        match self.g().lane(&axes) {
            None => true,
            Some(lane) => !self.lay.ragged(lane) && self.split.is_none_or(|(a, _)| a == lane),
        }
    }

    pub(super) fn checkpoint(&self, i: usize, own: &str, which: &str, way: Way, indent: usize) -> Result<String, String> {
        let n = self.states[i].elements();
        let theirs = format!("s->checkpoint[{i}] + (({which}) * s->sequences + sequence) * {n}");
        if self.flat_checkpoint(i) {
            let mine: usize = self.lay_elements(i);
            let part = if self.split.is_some() { format!(" + block * {mine}") } else { String::new() };
            let (to, from) = if way == Way::Out {
                (format!("{theirs}{part}"), own.to_string())
            } else {
                (own.to_string(), format!("{theirs}{part}"))
            };
            return Ok(format!("{:indent$}__builtin_memcpy({to}, {from}, {mine} * sizeof(real));\n", ""));
        }
        self.state_transfer(i, own, &theirs, way, indent)
    }

    pub(super) fn lay_elements(&self, i: usize) -> usize {
        self.states[i].axes().iter().map(|a| self.lay.sizes[*a]).product()
    }
}
