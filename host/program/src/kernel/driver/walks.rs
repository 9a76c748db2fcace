//! The walks through time.
//!
//! The blocks of a unit take turns: each goes through one segment of steps, from one checkpoint to the next.
//! Every block has a copy of the memory that the routines of a step work in, so nothing of them knows of other blocks.

use std::fmt::Write;

use super::ports::{Foresee, Way};
use super::{Driver, Given};
use crate::kernel::graph::Axis;

/// What the parts of a walk are handed.
const GIVEN: &str = "const struct fwp_scan *s, int64_t sequence, int64_t block, real *const m, struct fwp_at *at";

/// Steps through which sums over states are carried before they are computed anew. Rounding grows with the root of it:
/// through 16 steps the gradient of a decay around a half is nearly as exact as a sum of its own, and a state that is put aside costs little.
/// States have a multiple of so many elements, with what fills them.
const MARKED: usize = 16;

/// Whether sums are computed anew at step t.
fn is_anew() -> String {
    format!("t + 1 == end || (t - begin) % {MARKED} == {}", MARKED - 1)
}

/// Where a state of several axes is while a segment is walked back.
enum Where {
    /// Here, computed back at every step; beside it a place for what a step without a write would give.
    Here { tile: usize, other: usize },
    /// Here in the slot of its step.
    Slot(usize),
    /// Here on the way forwards through the segment; the steps back do not read it. `mark` is the first place where it is put aside.
    Passing { tile: usize, mark: usize },
}

/// What a walk back keeps of a state.
struct Rooms {
    gradient: usize,
    zeros: usize,
    /// For what is not wanted.
    trash: usize,
    /// Gradient of the state after a reset.
    fresh: usize,
    /// None of small states: they are among the saved values.
    state: Option<Where>,
    /// A sum that is carried beside the gradient, and what is not wanted of it.
    carried: Option<(usize, usize)>,
}

impl Driver<'_> {
    pub(super) fn at_struct(&self) -> String {
        let (arguments, states, kept) = (self.arguments.len().max(1), self.states.len().max(1), self.kept.len().max(1));
        let mut t = String::from("/* Where one step finds and leaves its values. */\nstruct fwp_at {\n");
        for (what, n) in [
            ("const void *in", arguments),
            ("real *in_gradient", arguments),
            ("real *right", arguments),
            ("const real *state", states),
            ("real *next", states),
            ("const real *after", states),
            ("real *before", states),
            ("const real *state_gradient", states),
            ("real *state_gradient_out", states),
            ("const real *carried", states),
            ("real *carried_out", states),
            ("real *kept", kept),
            ("const real *kept_gradient", kept),
        ] {
            let _ = writeln!(t, "    {what}[{n}];");
        }
        t + "    real *saved, *passed;\n    int64_t index, row0;\n    int adds;\n};\n"
    }

    fn blocks(&self) -> usize {
        self.split.map_or(1, |s| s.1)
    }

    fn rows(&self) -> usize {
        self.split.map_or(0, |(a, _)| self.lay.sizes[a])
    }

    /// What is set up once a block: zeros, masks of rows, values that are the same at every step.
    fn setup(&self) -> Result<String, String> {
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
        let _ = writeln!(t, "    *at = (struct fwp_at){{0}};");
        t += &self.row0();
        t += "    at->row0 = row0;\n";
        t += &self.bring(true)?;
        Ok(t)
    }

    fn row0(&self) -> String {
        format!("    const int64_t row0 = block * {};\n    (void)row0, (void)sequence;\n", self.rows())
    }

    /// The function that the host calls: `head` sets a block up, `segment` and `tail` are calls for each block.
    fn entry(&self, name: &str, back: bool) -> String {
        let blocks = self.blocks();
        let stride = self.memory.elements;
        let mut t = format!(
            "static __attribute__((noinline)) void fwp_{name}_unit(const struct fwp_scan *s, int64_t unit, void *scratch)\n{{\n    \
             const int64_t together = s->together, parts = {blocks} / together;\n    \
             const int64_t sequence = unit / parts, first = unit % parts * together;\n    \
             real *const m = (real *)scratch;\n    struct fwp_at at[{blocks}];\n"
        );
        let each = |t: &mut String, indent: usize, what: &str, more: &str| {
            let _ = writeln!(
                t,
                "{:indent$}for (int64_t b = 0; b < together; b++) fwp_{name}_{what}(s, sequence, first + b, m + b * {stride}, at + b{more});",
                ""
            );
        };
        each(&mut t, 4, "begin", "");
        if back {
            t += "    for (int64_t segment = (s->steps + s->interval - 1) / s->interval - 1; segment >= 0; segment--) {\n";
            t += "        const int64_t begin = segment * s->interval;\n";
        } else {
            t += "    for (int64_t begin = 0; begin < s->steps; begin += s->interval) {\n";
        }
        t += "        const int64_t end = begin + s->interval < s->steps ? begin + s->interval : s->steps;\n";
        let slots = if back { format!(", m + together * {stride}") } else { String::new() };
        each(&mut t, 8, "steps", &format!(", begin, end{slots}"));
        t += "    }\n";
        each(&mut t, 4, "end", "");
        t + "}\n\n"
    }

    /// Whether state i takes its new value at a step.
    fn taken(&self, i: usize) -> String {
        let s = &self.step.states[i];
        let mut parts = Vec::new();
        if s.state.held > 1 {
            parts.push(format!("(at->index + 1) % {} == 0", s.state.held));
        }
        if s.masked {
            parts.push("(!s->write || s->write[t * s->sequences + sequence])".into());
        }
        if parts.is_empty() { "1".into() } else { parts.join(" && ") }
    }

    /// Between memory of ours and the states of a sequence.
    fn state_of_sequence(&self, i: usize, own: &str, list: &str, way: Way, indent: usize) -> Result<String, String> {
        self.state_transfer(i, own, &format!("{list}[{i}] + sequence * {}", self.states[i].elements()), way, indent)
    }

    /// Where the saved values of step t are.
    fn saved_at(&self) -> String {
        format!("s->saved + ((sequence * {} + block) * s->steps + t) * {}", self.blocks(), self.saved_room())
    }

    pub(super) fn forward_walk(&mut self, states: &[(usize, usize)]) -> Result<String, String> {
        let unwanted = self.memory_take(self.saved_room());
        let mut t = format!("static void fwp_forward_begin({GIVEN})\n{{\n");
        t += &self.setup()?;
        for (i, (place, _)) in states.iter().enumerate() {
            t += &self.state_of_sequence(i, &format!("(m + {place})"), "s->start", Way::In, 4)?;
            let _ = writeln!(t, "    at->state[{i}] = m + {place};");
        }
        let _ = writeln!(t, "}}\n\nstatic void fwp_forward_steps({GIVEN}, int64_t begin, int64_t end)\n{{");
        t += &self.row0();
        let mut kept = String::new();
        for (i, (place, _)) in states.iter().enumerate() {
            kept += &self.checkpoint(i, &format!("(m + {place})"), "begin / s->interval", Way::Out, 8)?;
        }
        let _ = writeln!(t, "    if (s->checkpoint) {{\n{kept}    }}");
        t += "    for (int64_t t = begin; t < end; t++) {\n";
        if !self.states.is_empty() {
            t += "        if (s->reset && s->reset[t * s->sequences + sequence]) {\n";
            for (i, (place, _)) in states.iter().enumerate() {
                t += &self.state_of_sequence(i, &format!("(m + {place})"), "s->fresh", Way::In, 12)?;
            }
            t += "        }\n";
        }
        t += "        at->index = s->index ? s->index[t * s->sequences + sequence] : t;\n";
        t += &self.bring(false)?;
        t += &self.foresee(Foresee::Forward, 8);
        for (i, place) in states.iter().enumerate() {
            let _ = writeln!(t, "        at->next[{i}] = {} ? m + {} : m + {};", self.taken(i), place.0, place.1);
        }
        for (i, p) in self.kept.iter().enumerate() {
            let n = p.elements();
            let _ = writeln!(t, "        at->kept[{i}] = s->kept[{i}] + (t * s->sequences + sequence) * {n};");
        }
        let _ = writeln!(t, "        at->saved = s->saved ? {} : m + {unwanted};", self.saved_at());
        t += "        fwp_step(m, at);\n    }\n}\n\n";
        let _ = writeln!(t, "static void fwp_forward_end({GIVEN})\n{{");
        t += &self.row0();
        let mut kept = String::new();
        for (i, (place, _)) in states.iter().enumerate() {
            let own = format!("(m + {place})");
            t += &self.state_of_sequence(i, &own, "s->end", Way::Out, 4)?;
            kept += &self.checkpoint(i, &own, "(s->steps + s->interval - 1) / s->interval", Way::Out, 8)?;
        }
        let _ = writeln!(t, "    if (s->checkpoint) {{\n{kept}    }}\n}}\n");
        Ok(t + &self.entry("forward", false))
    }

    /// The text of the walk back, and elements of scratch for every step of the interval.
    pub(super) fn backward_walk(&mut self, given: &[Given]) -> Result<(String, usize), String> {
        let mut rooms = Vec::new();
        let passing = self.passing();
        let mut slot = if passing { self.passed_room() } else { 0 };
        for i in 0..self.states.len() {
            let n = self.state_rooms[i];
            let state = match (self.low.again[i], self.low.undo.get(i).copied().flatten()) {
                (None, _) => None,
                (_, Some(_)) => Some(Where::Here { tile: self.memory_take(n), other: self.memory_take(n) }),
                (_, None) if passing => Some(Where::Passing { tile: self.memory_take(n), mark: self.memory_take(n) }),
                (_, None) => Some(Where::Slot(slot)),
            };
            if state.is_some() && !passing {
                slot += n;
            }
            if passing && self.carried_room(i).is_some() {
                slot += n / MARKED;
            }
            let carried = self.carried_room(i).map(|n| (self.memory_take(n), self.memory_take(n)));
            rooms.push(Rooms {
                state,
                carried,
                gradient: self.memory_take(n),
                zeros: self.memory_take(n),
                trash: self.memory_take(n),
                fresh: self.memory_take(n),
            });
        }
        let mut t = format!("static void fwp_backward_begin({GIVEN})\n{{\n");
        t += &self.setup()?;
        for (i, r) in rooms.iter().enumerate() {
            let own = format!("(m + {})", r.gradient);
            let text = self.state_of_sequence(i, &own, "s->end_gradient", Way::In, 8)?;
            let _ = writeln!(t, "    if (s->end_gradient[{i}]) {{\n{text}    }}");
        }
        let _ = writeln!(t, "    at->adds = block % s->together != 0;\n}}\n");
        let _ = writeln!(t, "static void fwp_backward_steps({GIVEN}, int64_t begin, int64_t end, real *slots)\n{{");
        t += &self.row0();
        if passing {
            t += &self.sums_of_segment(&rooms)?;
        } else if slot > 0 {
            t += &self.states_of_segment(&rooms, slot)?;
        }
        t += &self.steps_back(&rooms, slot, given)?;
        let _ = writeln!(t, "}}\n\nstatic void fwp_backward_end({GIVEN})\n{{");
        t += &self.row0();
        for (i, r) in rooms.iter().enumerate() {
            t += &self.state_of_sequence(i, &format!("(m + {})", r.gradient), "s->start_gradient", Way::Out, 4)?;
            let text = self.state_of_sequence(i, &format!("(m + {})", r.fresh), "s->fresh_gradient", Way::Out, 8)?;
            let _ = writeln!(t, "    if (s->fresh_gradient && s->fresh_gradient[{i}]) {{\n{text}    }}");
        }
        for (i, g) in given.iter().enumerate() {
            let Given::Summed(at) = g else { continue };
            let p = &self.arguments[i];
            let _ = writeln!(
                t,
                "    if (s->in_gradient[{i}]) {{\n        real *const theirs = s->in_gradient[{i}] + ({}sequence) * {};",
                self.part(p, "s->sequences"),
                p.elements()
            );
            t += &self.give(p, &format!("(m + {at})"), "theirs", "at->adds", 8)?;
            t += "    }\n";
        }
        t += "}\n\n";
        Ok((t + &self.entry("backward", true), slot))
    }

    /// The states of a segment: those after it, from which the others are computed back, or all of them from its checkpoint.
    /// What a reset forgets cannot be computed back: a segment with one is walked forwards again.
    fn states_of_segment(&self, rooms: &[Rooms], slot: usize) -> Result<String, String> {
        let here = |r: &Rooms| matches!(r.state, Some(Where::Here { .. }));
        let back = rooms.iter().any(here);
        let mut t = format!("    int again = {};\n    (void)again;\n", u8::from(!back));
        if back {
            t += "    if (s->reset)\n        for (int64_t t = begin + 1; t < end; t++) again |= s->reset[t * s->sequences + sequence];\n";
        }
        for (i, r) in rooms.iter().enumerate() {
            let (own, which) = match &r.state {
                Some(Where::Here { tile, .. }) => (format!("(m + {tile})"), "begin / s->interval + !again"),
                Some(Where::Slot(at)) => (format!("(slots + {at})"), "begin / s->interval"),
                Some(Where::Passing { .. }) | None => continue,
            };
            t += &self.checkpoint(i, &own, which, Way::In, 4)?;
        }
        t += "    for (int64_t t = begin; again && t < end; t++) {\n";
        let _ = writeln!(t, "        real *const slot = slots + (t - begin) * {slot};\n        (void)slot;");
        t += "        at->index = s->index ? s->index[t * s->sequences + sequence] : t;\n";
        t += "        if (s->reset && s->reset[t * s->sequences + sequence]) {\n";
        let mut offset = 0;
        for (i, r) in rooms.iter().enumerate() {
            let to = match &r.state {
                Some(Where::Here { tile, .. }) => {
                    let n = self.state_rooms[i];
                    let _ = writeln!(t, "            __builtin_memcpy(slot + {offset}, m + {tile}, {n} * sizeof(real));");
                    format!("(m + {tile})")
                }
                Some(Where::Slot(at)) => format!("(slot + {at})"),
                Some(Where::Passing { .. }) | None => continue,
            };
            offset += self.state_rooms[i];
            t += &self.state_of_sequence(i, &to, "s->fresh", Way::In, 12)?;
        }
        t += "        }\n";
        if !back {
            t += "        if (t + 1 == end) break;\n";
        }
        t += &self.bring(false)?;
        let _ = writeln!(t, "        at->saved = {};", self.saved_at());
        for (i, r) in rooms.iter().enumerate() {
            let taken = self.taken(i);
            match &r.state {
                Some(Where::Here { tile, .. }) => {
                    let _ = writeln!(t, "        at->state[{i}] = m + {tile};");
                    let _ = writeln!(t, "        at->next[{i}] = {taken} ? m + {tile} : m + {};", r.trash);
                }
                Some(Where::Slot(at)) => {
                    let (n, next) = (self.state_rooms[i], slot + at);
                    let _ = writeln!(t, "        at->state[{i}] = slot + {at};");
                    let _ = writeln!(t, "        if ({taken}) at->next[{i}] = slot + {next};");
                    let _ = writeln!(t, "        else {{\n            at->next[{i}] = m + {};", r.trash);
                    let _ =
                        writeln!(t, "            __builtin_memcpy(slot + {next}, slot + {at}, {n} * sizeof(real));\n        }}");
                }
                Some(Where::Passing { .. }) | None => {}
            }
        }
        Ok(t + "        fwp_step_again(m, at);\n    }\n")
    }

    /// Whether the adjoint reads no state of several axes.
    pub(super) fn passing(&self) -> bool {
        !self.low.carried.is_empty()
    }

    /// Elements of the sum that is carried beside the gradient of state i.
    fn carried_room(&self, i: usize) -> Option<usize> {
        Some(self.vector_room(self.low.carried.get(i)?.as_ref()?.anew))
    }

    /// The sums over states alone of every step of a segment, and the states from which carried sums are computed anew.
    fn sums_of_segment(&self, rooms: &[Rooms]) -> Result<String, String> {
        let mut t = String::new();
        let (mut reset, mut places, mut marks) = (String::new(), String::new(), String::new());
        for (i, r) in rooms.iter().enumerate() {
            let Some(Where::Passing { tile, mark }) = r.state else { continue };
            let own = format!("(m + {tile})");
            t += &self.checkpoint(i, &own, "begin / s->interval", Way::In, 4)?;
            reset += &self.state_of_sequence(i, &own, "s->fresh", Way::In, 12)?;
            let _ = writeln!(places, "        at->state[{i}] = m + {tile};");
            let _ = writeln!(places, "        at->next[{i}] = {} ? m + {tile} : m + {};", self.taken(i), r.trash);
            if r.carried.is_some() {
                let (to, n) = (self.mark(rooms, i, mark), self.state_rooms[i]);
                let _ = writeln!(marks, "            __builtin_memcpy({to}, m + {tile}, {n} * sizeof(real));");
            }
        }
        t += "    for (int64_t t = begin; t < end; t++) {\n";
        t += "        at->index = s->index ? s->index[t * s->sequences + sequence] : t;\n";
        let _ = writeln!(t, "        if (s->reset && s->reset[t * s->sequences + sequence]) {{\n{reset}        }}");
        if !marks.is_empty() {
            let _ = writeln!(t, "        if ({}) {{\n{marks}        }}", is_anew());
        }
        t += &self.bring(false)?;
        t += &self.foresee(Foresee::Again, 8);
        let _ = writeln!(t, "        at->saved = {};", self.saved_at());
        let _ = writeln!(t, "        at->passed = slots + (t - begin) * {};", self.passed_room());
        t += &self.kept_gradients()?;
        t += &places;
        Ok(t + "        fwp_step_again(m, at);\n    }\n")
    }

    /// Where state i is put aside at step t of a segment: the first time in memory of the block's own, then behind the sums of the segment.
    fn mark(&self, rooms: &[Rooms], i: usize, first: usize) -> String {
        let room = |(k, r): (usize, &Rooms)| if r.carried.is_some() { self.state_rooms[k] } else { 0 };
        let all: usize = rooms.iter().enumerate().map(room).sum();
        let before: usize = rooms.iter().enumerate().take(i).map(room).sum();
        let sums = self.passed_room();
        format!(
            "(t - begin < {MARKED} ? m + {first} : slots + s->interval * {sums} + ((t - begin) / {MARKED} - 1) * {all} + {before})"
        )
    }

    /// Computes carried sums anew at step t.
    fn carry_anew(&self, rooms: &[Rooms]) -> String {
        let mut t = String::new();
        for (i, r) in rooms.iter().enumerate() {
            let (Some(Where::Passing { mark, .. }), Some((sum, _))) = (&r.state, r.carried) else { continue };
            let (from, gradient) = (self.mark(rooms, i, *mark), r.gradient);
            let _ = writeln!(t, "            at->state[{i}] = {from};");
            let _ = writeln!(t, "            at->state_gradient[{i}] = m + {gradient}, at->carried_out[{i}] = m + {sum};");
            let _ =
                writeln!(t, "            if (taken{i}) fwp_carry{i}(m, at);\n            else fwp_carry_unchanged{i}(m, at);");
        }
        if t.is_empty() { t } else { format!("        if ({}) {{\n{t}        }}\n", is_anew()) }
    }

    /// Gradients of kept values at step t; zeros of ours where there are none.
    fn kept_gradients(&self) -> Result<String, String> {
        let mut t = String::new();
        for (i, p) in self.kept.iter().enumerate() {
            let own = self.kept_copies[i].unwrap_or(0);
            let theirs = format!("s->kept_gradient[{i}] + (t * s->sequences + sequence) * {}", p.elements());
            if self.direct(p) {
                let row = if self.split.is_some_and(|(a, _)| p.axes().contains(&a)) { " + row0" } else { "" };
                let _ = writeln!(t, "        at->kept_gradient[{i}] = s->kept_gradient[{i}] ? {theirs}{row} : m + {own};");
            } else {
                let text = self.transfer(p, &format!("(m + {own})"), "theirs", Way::In, 12)?;
                let _ = writeln!(
                    t,
                    "        if (s->kept_gradient[{i}]) {{\n            const real *const theirs = {theirs};\n{text}        }}"
                );
                let _ = writeln!(t, "        at->kept_gradient[{i}] = m + {own};");
            }
        }
        Ok(t)
    }

    /// The steps of a segment from the last to the first.
    fn steps_back(&self, rooms: &[Rooms], slot: usize, given: &[Given]) -> Result<String, String> {
        let mut t = String::from("    for (int64_t t = end - 1; t >= begin; t--) {\n");
        let slot = if self.passing() { self.passed_room() } else { slot };
        let _ = writeln!(t, "        real *const slot = slots + (t - begin) * {slot};\n        (void)slot;");
        t += "        at->index = s->index ? s->index[t * s->sequences + sequence] : t;\n";
        t += &self.bring(false)?;
        t += &self.foresee(if self.passing() { Foresee::Gradients(given) } else { Foresee::Back(given) }, 8);
        let _ = writeln!(t, "        at->saved = {};", self.saved_at());
        if self.passing() {
            t += "        at->passed = slot;\n";
        }
        let mut missing = Vec::new();
        let (mut straight, mut instead) = (String::new(), String::new());
        for i in 0..rooms.len() {
            let _ = writeln!(t, "        const int taken{i} = {};", self.taken(i));
        }
        t += &self.carry_anew(rooms);
        for (i, r) in rooms.iter().enumerate() {
            match &r.state {
                Some(Where::Here { tile, other }) => {
                    let _ = writeln!(t, "        at->after[{i}] = at->before[{i}] = m + {tile};");
                    missing.push(format!("!taken{i}"));
                    let _ = writeln!(straight, "            at->state[{i}] = m + {tile}, at->next[{i}] = m + {other};");
                    let _ = writeln!(instead, "            if (!taken{i}) at->after[{i}] = at->before[{i}] = m + {other};");
                }
                Some(Where::Slot(at)) => {
                    let _ = writeln!(t, "        at->state[{i}] = slot + {at};");
                }
                Some(Where::Passing { .. }) | None => {}
            }
            let to = |own: usize| format!("taken{i} ? m + {} : m + {own}", r.gradient);
            let _ = writeln!(t, "        at->state_gradient[{i}] = {};", to(r.zeros));
            let _ = writeln!(t, "        at->state_gradient_out[{i}] = {};", to(r.trash));
            if let Some((sum, trash)) = r.carried {
                let _ = writeln!(t, "        at->carried[{i}] = taken{i} ? m + {sum} : m + {};", r.zeros);
                let _ = writeln!(t, "        at->carried_out[{i}] = taken{i} ? m + {sum} : m + {trash};");
            }
        }
        if !missing.is_empty() {
            // A state that is not written is the same before and after the step: what the step would have made of it has to be computed.
            let _ = writeln!(
                t,
                "        if ({}) {{\n{straight}            fwp_step_again(m, at);\n{instead}        }}",
                missing.join(" || ")
            );
        }
        t += &self.kept_gradients()?;
        for (i, g) in given.iter().enumerate() {
            let mut set = |what: &str, place: String| {
                let _ = writeln!(t, "        at->{what}[{i}] = s->in_gradient[{i}] ? s->in_gradient[{i}] + {place} : 0;");
            };
            match g {
                Given::Steps => {
                    let p = &self.arguments[i];
                    let part = self.part(p, "s->steps");
                    set("in_gradient", format!("(({part}t) * s->sequences + sequence) * {}", p.elements()));
                }
                Given::Factors { axes, .. } => {
                    let (left, right) = (self.lay.sizes[axes[0]], self.lay.sizes[axes[1]]);
                    let here = "(t * s->sequences + sequence)";
                    set("in_gradient", format!("{here} * {left}"));
                    set("right", format!("s->steps * s->sequences * {left} + {here} * {right}"));
                }
                _ => {}
            }
        }
        t += "        fwp_step_back(m, at);\n";
        let mut offset = 0;
        let (mut reset, mut gradients) = (String::new(), String::new());
        for (i, r) in rooms.iter().enumerate() {
            let n = self.state_rooms[i];
            let (g, trash, fresh) = (r.gradient, r.trash, r.fresh);
            let _ = writeln!(gradients, "        if (!taken{i}) for (int i = 0; i < {n}; i++) m[{g} + i] += m[{trash} + i];");
            let _ = writeln!(reset, "            for (int i = 0; i < {n}; i++) m[{fresh} + i] += m[{g} + i], m[{g} + i] = 0;");
            if let (Some((sum, trash)), Some(n)) = (r.carried, self.carried_room(i)) {
                let _ =
                    writeln!(gradients, "        if (!taken{i}) for (int i = 0; i < {n}; i++) m[{sum} + i] += m[{trash} + i];");
                let _ = writeln!(reset, "            __builtin_memset(m + {sum}, 0, {n} * sizeof(real));");
            }
            if let Some(Where::Here { tile, .. }) = r.state {
                let _ =
                    writeln!(reset, "            if (again) __builtin_memcpy(m + {tile}, slot + {offset}, {n} * sizeof(real));");
            }
            if r.state.is_some() {
                offset += n;
            }
        }
        let _ = writeln!(
            t,
            "{gradients}        if (s->reset && s->reset[t * s->sequences + sequence]) {{\n{reset}        }}\n    }}"
        );
        Ok(t)
    }
}
