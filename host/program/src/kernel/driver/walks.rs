//! The walks through time.
//!
//! Step t of a walk is the one that is taken t steps after the first. Where the last step in time is taken first, pointers are to its values,
//! and strides along time (`time`, `in_step`) are negative.
//! The blocks of a unit take turns: each goes through one segment of steps, from one checkpoint to the next.
//! Every block has a copy of the memory that the routines of a step work in, so nothing of them knows of other blocks.

use std::fmt::Write;

use super::ports::{ALL, Foresee, Used, Way};
use super::sums::MARKED;
use super::{Back, Driver, Given};
use crate::kernel::graph::Axis;
use crate::kernel::lower::Lowered;

/// What the parts of a walk are handed.
const GIVEN: &str = "const struct fwp_scan *s, int64_t sequence, int64_t block, real *const m, struct fwp_at *at";

/// Steps from one look at how large a state that is computed back is to the next.
const MEASURED: usize = 32;

/// Steps that one stratum goes ahead of the next one: states change places in the nearest cache once in so many.
const TOGETHER: usize = 16;

/// Where a state of several axes is while a segment is walked back.
#[derive(Clone, Copy)]
pub(super) enum Where {
    /// Here, computed back at every step; beside it a place for what a step without a write would give.
    Here { tile: usize, other: usize },
    /// Here in the slot of its step.
    Slot(usize),
    /// Here on the way forwards through the segment; the steps back do not read it. `mark` is the first place where it is put aside.
    Passing { tile: usize, mark: usize },
}

/// Elements of scratch of one step of a segment.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    /// Of its states, or of sums over them, which come first; none where states are computed back.
    pub states: usize,
    /// With what the strata hand on.
    pub all: usize,
    /// Where a one is in the block's own memory.
    pub one: usize,
}

/// Elements of scratch of a walk back beside the memory of its blocks.
pub(super) struct Room {
    /// For every step of the interval.
    pub a_step: usize,
    /// For every block of a unit.
    pub a_block: usize,
}

/// What a walk back keeps of a state.
#[derive(Clone, Copy)]
pub(super) struct Rooms {
    pub gradient: usize,
    pub zeros: usize,
    /// For what is not wanted.
    pub trash: usize,
    /// Gradient of the state after a reset.
    pub fresh: usize,
    /// None of small states: they are among the saved values.
    pub state: Option<Where>,
    /// A sum that is carried beside the gradient, and what is not wanted of it.
    pub carried: Option<(usize, usize)>,
}

impl Rooms {
    /// Whether the state is computed back.
    fn computed_back(&self) -> bool {
        matches!(self.state, Some(Where::Here { .. }))
    }
}

impl<'a> Driver<'a> {
    /// The lists of pointers of a `struct fwp_at`, and how long each is.
    fn at_lists(&self) -> [(&'static str, usize); 13] {
        let (arguments, states, kept) = (self.arguments.len().max(1), self.states.len().max(1), self.kept.len().max(1));
        [
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
        ]
    }

    pub(super) fn at_struct(&self) -> String {
        let mut t = String::from("/* Where one step finds and leaves its values. */\nstruct fwp_at {\n");
        for (what, n) in self.at_lists() {
            let _ = writeln!(t, "    {what}[{n}];");
        }
        t + "    real *saved, *passed, *brought, *handed;\n    const real *follows;\n    int64_t index, row0, arrived;\n    int adds;\n};\n"
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
        t += &self.bring(true, ALL)?;
        Ok(t)
    }

    fn row0(&self) -> String {
        format!("    const int64_t row0 = block * {};\n    (void)row0, (void)sequence;\n", self.rows())
    }

    /// Bytes of the `struct fwp_at` of one block, in whole lines.
    pub(super) fn at_bytes(&self) -> usize {
        let pointers = self.at_lists().iter().map(|l| l.1).sum::<usize>() + 5;
        (pointers * 8 + 32).next_multiple_of(64)
    }

    /// A call of a part of a walk for every block of a unit, as long as `more` holds.
    fn each(&self, part: &str, given: &str, more: &str, indent: usize) -> String {
        let stride = self.memory.elements;
        format!(
            "{:indent$}for (int64_t b = 0; b < together{more}; b++) {part}(s, sequence, first + b, m + b * {stride}, at + b{given});\n",
            ""
        )
    }

    /// The function that the host calls: some segments of a unit, in the order of the walk; `segment` is the one at place i, `steps` walks
    /// through it. What a block has begun with stays in the memory of the unit.
    fn entry(&self, name: &str, segment: &str, steps: &str) -> String {
        let blocks = self.blocks();
        let stride = self.memory.elements;
        let mut t = format!(
            "_Static_assert(sizeof(struct fwp_at) <= {}, \"the places of a block\");\n\
             static __attribute__((noinline)) void fwp_{name}_unit(const struct fwp_scan *s, int64_t unit, int64_t from, int64_t to, \
             void *memory, void *slots)\n{{\n    \
             const int64_t together = s->together, parts = {blocks} / together, segments = fwp_segments(s);\n    \
             const int64_t sequence = unit / parts, first = unit % parts * together;\n    \
             real *const m = (real *)memory;\n    struct fwp_at *const at = (struct fwp_at *)(m + together * {stride});\n    \
             (void)slots;\n    if (from == 0)\n",
            self.at_bytes()
        );
        t += &self.each(&format!("fwp_{name}_begin"), "", "", 8);
        t += "    for (int64_t i = from; i < to; i++) {\n";
        let _ = writeln!(t, "        const int64_t begin = fwp_begin(s, {segment}), end = fwp_begin(s, {segment} + 1);");
        t += steps;
        t += "    }\n    if (to == segments)\n";
        t += &self.each(&format!("fwp_{name}_end"), "", "", 8);
        t + "}\n\n"
    }

    /// That of the walk back. Where there is a form with stored states, it is taken for the first segment, where states begin from nothing,
    /// and for those with resets. Any other one in which states that are computed back lose too much begins once more with what is `lasting`
    /// from segment to segment.
    fn entry_back(&self, lasting: Option<&[(usize, usize)]>) -> String {
        let Some(lasting) = lasting else {
            let steps = self.each("fwp_backward_steps", ", begin, end, (real *)slots", "", 8);
            return self.entry("backward", "segments - 1 - i", &steps);
        };
        let (stride, all) = (self.memory.elements, lasting.iter().map(|(_, n)| n).sum::<usize>());
        let copy = |back: bool, indent: usize| {
            let (mut t, mut behind) = (format!("{:indent$}for (int64_t b = 0; b < together; b++) {{\n", ""), 0);
            for (at, n) in lasting {
                let (own, aside) = (format!("m + b * {stride} + {at}"), format!("(real *)slots + b * {all} + {behind}"));
                let (to, from) = if back { (own, aside) } else { (aside, own) };
                let _ = writeln!(t, "{:indent$}    __builtin_memcpy({to}, {from}, {n} * sizeof(real));", "");
                behind += n;
            }
            t + &format!("{:indent$}}}\n", "")
        };
        let mut t = format!("        real *const free = (real *)slots + together * {all};\n");
        t += "        int stored = begin == 0 || fwp_resets(s, sequence, begin, end);\n        if (!stored) {\n";
        t += &copy(false, 12);
        t += &self.each("stored = fwp_backward_steps", ", begin, end, free", " && !stored", 12);
        let _ = writeln!(t, "            if (stored)\n{}        }}\n        if (stored)", copy(true, 16));
        t += &self.each("fwp_backward_stored", ", begin, end, free", "", 12);
        self.entry("backward", "segments - 1 - i", &t)
    }

    /// Whether state i takes its new value at a step.
    pub(super) fn taken(&self, i: usize) -> String {
        let s = &self.step.states[i];
        let mut parts = Vec::new();
        if s.state.held > 1 {
            parts.push(format!("(at->index + 1) % {} == 0", s.state.held));
        }
        if s.masked {
            parts.push("(!s->write || s->write[t * s->time + sequence])".into());
        }
        if parts.is_empty() { "1".into() } else { parts.join(" && ") }
    }

    /// Between memory of ours and the states of a sequence.
    pub(super) fn state_of_sequence(&self, i: usize, own: &str, list: &str, way: Way, indent: usize) -> Result<String, String> {
        self.state_transfer(i, own, &format!("{list}[{i}] + sequence * {}", self.states[i].elements()), way, indent)
    }

    /// Where the saved values of a step are.
    pub(super) fn saved_at(&self, step: &str) -> String {
        format!("s->saved + ((sequence * {} + block) * s->steps + {step}) * {}", self.blocks(), self.saved_room())
    }

    /// The text of the walk forwards; `steps` are the texts of the routines of the strata.
    pub(super) fn forward_walk(&mut self, states: &[(usize, usize)], steps: &[String]) -> Result<String, String> {
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
            kept += &self.checkpoint(i, &format!("(m + {place})"), "fwp_segment(s, begin)", Way::Out, 8)?;
        }
        let _ = writeln!(t, "    if (s->checkpoint) {{\n{kept}    }}");
        if let [step] = steps {
            t += "    for (int64_t t = begin; t < end; t++) {\n";
            t += &self.step_ahead(states, unwanted, 0, step)?;
            t += "    }\n";
        } else {
            let room = self.brought_room();
            let brought = self.memory_take(TOGETHER * room);
            let _ = writeln!(t, "    for (int64_t from = begin; from < end; from += {TOGETHER}) {{");
            let _ = writeln!(t, "    const int64_t to = end - from < {TOGETHER} ? end : from + {TOGETHER};");
            for (stratum, step) in steps.iter().enumerate() {
                t += "    for (int64_t t = from; t < to; t++) {\n";
                let _ = writeln!(t, "        at->brought = m + {brought} + (t - from) * {room};");
                t += &self.step_ahead(states, unwanted, stratum, step)?;
                t += "    }\n";
            }
            t += "    }\n";
        }
        t += "}\n\n";
        let _ = writeln!(t, "static void fwp_forward_end({GIVEN})\n{{");
        t += &self.row0();
        let mut kept = String::new();
        for (i, (place, _)) in states.iter().enumerate() {
            let own = format!("(m + {place})");
            t += &self.state_of_sequence(i, &own, "s->end", Way::Out, 4)?;
            kept += &self.checkpoint(i, &own, "fwp_segments(s)", Way::Out, 8)?;
        }
        let _ = writeln!(t, "    if (s->checkpoint) {{\n{kept}    }}\n}}\n");
        let steps = self.each("fwp_forward_steps", ", begin, end", "", 8);
        Ok(t + &self.entry("forward", "i", &steps))
    }

    /// What is done at step t forwards for one stratum.
    fn step_ahead(&self, states: &[(usize, usize)], unwanted: usize, stratum: usize, text: &str) -> Result<String, String> {
        let used = |name: &str| text.contains(name);
        let mine = || states.iter().enumerate().filter(|(i, _)| self.low.ahead.states[*i] == stratum);
        let mut t = String::new();
        if mine().next().is_some() {
            t += "        if (s->reset && s->reset[t * s->time + sequence]) {\n";
            for (i, (place, _)) in mine() {
                t += &self.state_of_sequence(i, &format!("(m + {place})"), "s->fresh", Way::In, 12)?;
            }
            t += "        }\n";
        }
        t += "        at->index = s->index ? s->index[t * s->time + sequence] : t;\n";
        t += &self.bring(false, &used)?;
        t += &self.foresee(Foresee::Forward, &used, 8);
        for (i, place) in mine() {
            let _ = writeln!(t, "        at->next[{i}] = {} ? m + {} : m + {};", self.taken(i), place.0, place.1);
        }
        for (i, p) in self.kept.iter().enumerate() {
            let n = p.elements();
            let _ = writeln!(t, "        at->kept[{i}] = s->kept[{i}] + (t * s->time + sequence) * {n};");
        }
        let _ = writeln!(t, "        at->saved = s->saved ? {} : m + {unwanted};", self.saved_at("t"));
        let _ = writeln!(t, "        fwp_step{stratum}(m, at);");
        Ok(t)
    }

    /// The text of the walk back, and the scratch that it wants beside the memory of its blocks. `stored` is the form of the step
    /// with stored states and its routines, `others` is the text of routines that they call besides.
    pub(super) fn backward_walk(
        &mut self,
        summed: (usize, usize),
        back: &Back,
        stored: Option<&(&'a Lowered, Back)>,
        others: &str,
    ) -> Result<(String, Room), String> {
        let mut rooms = Vec::new();
        let passing = self.passing();
        let mut slot = if passing { self.passed_room() } else { 0 };
        let (mut marks, one) = (0, self.memory_take(1));
        for i in 0..self.states.len() {
            let n = self.state_rooms[i];
            let state = match (self.low.again[i], self.low.undo.get(i).copied().flatten()) {
                (None, _) => None,
                (_, Some(_)) => Some(Where::Here { tile: self.memory_take(n), other: self.memory_take(n) }),
                (_, None) if passing => Some(Where::Passing { tile: self.memory_take(n), mark: self.memory_take(n) }),
                (_, None) => Some(Where::Slot(slot)),
            };
            slot += if matches!(state, Some(Where::Slot(_))) { n } else { 0 };
            let carried = self.carried_room(i).map(|n| (self.memory_take(n), self.memory_take(n)));
            if carried.is_some() {
                marks += n.div_ceil(MARKED);
            }
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
        let _ = writeln!(t, "    m[{one}] = 1;\n    at->adds = block % s->together != 0;\n}}\n");
        let slot = Slot { states: slot, all: slot + self.handed_room(), one };
        t += &self.segment_back("steps", &rooms, slot, back, others)?;
        let mut a_step = slot.all;
        if let Some((form, back)) = stored {
            let (text, slot) = self.of_form(form, |d| d.segment_stored(&rooms, back, others))?;
            t += &text;
            a_step = a_step.max(slot.all);
        }
        let _ = writeln!(t, "static void fwp_backward_end({GIVEN})\n{{");
        t += &self.row0();
        for (i, r) in rooms.iter().enumerate() {
            t += &self.state_of_sequence(i, &format!("(m + {})", r.gradient), "s->start_gradient", Way::Out, 4)?;
            let text = self.state_of_sequence(i, &format!("(m + {})", r.fresh), "s->fresh_gradient", Way::Out, 8)?;
            let _ = writeln!(t, "    if (s->fresh_gradient && s->fresh_gradient[{i}]) {{\n{text}    }}");
        }
        for (i, g) in back.given.iter().enumerate() {
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
        // What goes on from segment to segment; gradients of states after a reset do not change where there is none.
        let of_states = rooms.iter().zip(&self.state_rooms).map(|(r, n)| (r.gradient, *n));
        let lasting: Vec<(usize, usize)> = [summed].into_iter().chain(of_states).filter(|(_, n)| *n > 0).collect();
        let lasting = stored.map(|_| &lasting[..]);
        let room = Room { a_step: a_step + marks, a_block: lasting.unwrap_or_default().iter().map(|(_, n)| n).sum() };
        Ok((t + &self.entry_back(lasting), room))
    }

    /// The function that walks a block back through a segment; it says whether states that are computed back have lost too much.
    fn segment_back(&self, name: &str, rooms: &[Rooms], slot: Slot, back: &Back, others: &str) -> Result<String, String> {
        let mut t = format!("static int fwp_backward_{name}({GIVEN}, int64_t begin, int64_t end, real *slots)\n{{\n");
        t += &self.row0();
        t += "    int lost = 0;\n";
        if self.passing() {
            t += &self.sums_of_segment(rooms, slot)?;
        } else if rooms.iter().any(|r| r.state.is_some()) {
            t += &self.states_of_segment(rooms, slot)?;
        }
        for (stratum, text) in back.texts.iter().enumerate() {
            let used = |name: &str| text.contains(name) || others.contains(name);
            t += &self.steps_back(rooms, slot, back, stratum, &used)?;
        }
        Ok(t + "    return lost;\n}\n\n")
    }

    /// The same with all states of the segment in slots.
    fn segment_stored(&self, rooms: &[Rooms], back: &Back, others: &str) -> Result<(String, Slot), String> {
        let (mut stored, mut states) = (Vec::new(), 0);
        for (i, r) in rooms.iter().enumerate() {
            let state = r.state.map(|_| Where::Slot(states));
            states += if state.is_some() { self.state_rooms[i] } else { 0 };
            stored.push(Rooms { state, ..*r });
        }
        let slot = Slot { states, all: states + self.handed_room(), one: 0 };
        Ok((self.segment_back("stored", &stored, slot, back, others)?, slot))
    }

    /// The states of a segment: those after it, from which the others are computed back, or all of them from its checkpoint.
    fn states_of_segment(&self, rooms: &[Rooms], slot: Slot) -> Result<String, String> {
        let (mut t, mut here) = (String::new(), String::new());
        for (i, r) in rooms.iter().enumerate() {
            match r.state {
                Some(Where::Here { tile, .. }) => {
                    here += &self.checkpoint(i, &format!("(m + {tile})"), "fwp_segment(s, begin) + 1", Way::In, 8)?;
                }
                Some(Where::Slot(at)) => {
                    t += &self.checkpoint(i, &format!("(slots + {at})"), "fwp_segment(s, begin)", Way::In, 4)?;
                }
                Some(Where::Passing { .. }) | None => {}
            }
        }
        if !here.is_empty() {
            // The walk through the segment behind this one has left them there.
            return Ok(format!("    if (at->arrived != end) {{\n{here}    }}\n"));
        }
        t += "    for (int64_t t = begin; t < end; t++) {\n";
        let _ = writeln!(t, "        real *const slot = slots + (t - begin) * {};", slot.all);
        t += "        at->index = s->index ? s->index[t * s->time + sequence] : t;\n";
        t += "        if (s->reset && s->reset[t * s->time + sequence]) {\n";
        let mut places = String::new();
        for (i, r) in rooms.iter().enumerate() {
            let Some(Where::Slot(at)) = r.state else { continue };
            t += &self.state_of_sequence(i, &format!("(slot + {at})"), "s->fresh", Way::In, 12)?;
            let (n, next) = (self.state_rooms[i], slot.all + at);
            let _ = writeln!(places, "        at->state[{i}] = slot + {at};");
            let _ = writeln!(places, "        if ({}) at->next[{i}] = slot + {next};", self.taken(i));
            let _ = writeln!(places, "        else {{\n            at->next[{i}] = m + {};", r.trash);
            let _ = writeln!(places, "            __builtin_memcpy(slot + {next}, slot + {at}, {n} * sizeof(real));\n        }}");
        }
        t += "        }\n        if (t + 1 == end) break;\n";
        t += &self.bring(false, ALL)?;
        let _ = writeln!(t, "        at->saved = {};", self.saved_at("t"));
        Ok(t + &places + "        fwp_step_again(m, at);\n    }\n")
    }

    /// Gradients of kept values at step t; zeros of ours where there are none.
    pub(super) fn kept_gradients(&self, used: Used<'_>) -> Result<String, String> {
        let mut t = String::new();
        for (i, p) in self.kept.iter().enumerate().filter(|(i, _)| used(&format!("kept_gradient{i}"))) {
            let own = self.kept_copies[i].unwrap_or(0);
            let theirs = format!("s->kept_gradient[{i}] + (t * s->time + sequence) * {}", p.elements());
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

    /// The steps of a segment from the last to the first, of one stratum.
    fn steps_back(&self, rooms: &[Rooms], slot: Slot, back: &Back, stratum: usize, used: Used<'_>) -> Result<String, String> {
        let (strata, given) = (&self.low.strata, &back.given[..]);
        let mine = |i: usize| strata.states[i] == stratum;
        let mut t = String::new();
        for i in (0..rooms.len()).filter(|i| mine(*i) && rooms[*i].computed_back()) {
            let _ = writeln!(t, "    real least{i} = fwp_no_least;");
        }
        t += "    for (int64_t t = end - 1; t >= begin; t--) {\n";
        let _ = writeln!(t, "        real *const slot = slots + (t - begin) * {};\n        (void)slot;", slot.all);
        for (i, r) in rooms.iter().enumerate().filter(|(i, _)| mine(*i)) {
            if let Some(Where::Here { tile, .. }) = r.state {
                let size = self.magnitude(i, tile, None);
                let _ = writeln!(t, "        if ((t - begin) % {MEASURED} == 0) least{i} = fwp_least(least{i}, {size});");
            }
        }
        if self.handed_room() > 0 {
            let _ = writeln!(t, "        at->handed = slot + {};", slot.states);
        }
        t += "        at->index = s->index ? s->index[t * s->time + sequence] : t;\n";
        t += &self.bring(false, used)?;
        t += &self.foresee(if self.passing() { Foresee::Gradients(given) } else { Foresee::Back(given) }, used, 8);
        let _ = writeln!(t, "        at->saved = {};", self.saved_at("t"));
        if self.passing() {
            t += "        at->passed = slot;\n";
        }
        for i in (0..rooms.len()).filter(|i| mine(*i)) {
            let _ = writeln!(t, "        const int taken{i} = {};", self.taken(i));
        }
        t += &self.carry_anew(rooms, slot);
        let mut missing = Vec::new();
        let (mut straight, mut instead) = (String::new(), String::new());
        for (i, r) in rooms.iter().enumerate() {
            if !mine(i) {
                if let Some(Where::Here { tile, other }) = r.state {
                    // Only what a step without a write is repeated with.
                    let _ = writeln!(straight, "            at->state[{i}] = m + {tile}, at->next[{i}] = m + {other};");
                }
                continue;
            }
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
        t += &self.kept_gradients(used)?;
        for (i, g) in given.iter().enumerate() {
            let mut set = |what: &str, place: String| {
                let _ = writeln!(t, "        at->{what}[{i}] = s->in_gradient[{i}] ? s->in_gradient[{i}] + {place} : 0;");
            };
            match g {
                Given::Steps if used(&format!("in_gradient{i}")) => {
                    let p = &self.arguments[i];
                    let part = self.part(p, "s->steps * s->sequences");
                    set("in_gradient", format!("({part}t * s->time + sequence) * {}", p.elements()));
                }
                Given::Factors { axes, .. } => {
                    let (left, right) = (self.lay.sizes[axes[0]], self.lay.sizes[axes[1]]);
                    // In any order: a product sums over all of them.
                    let here = "(t * s->sequences + sequence)";
                    set("in_gradient", format!("{here} * {left}"));
                    set("right", format!("s->steps * s->sequences * {left} + {here} * {right}"));
                }
                _ => {}
            }
        }
        let _ = writeln!(t, "        {}{stratum}(m, at);", back.name);
        let (mut reset, mut gradients) = (String::new(), String::new());
        for (i, r) in rooms.iter().enumerate() {
            let n = self.state_rooms[i];
            let (g, trash, fresh) = (r.gradient, r.trash, r.fresh);
            if !mine(i) {
                continue;
            }
            let _ = writeln!(gradients, "        if (!taken{i}) for (int i = 0; i < {n}; i++) m[{g} + i] += m[{trash} + i];");
            let _ = writeln!(reset, "            for (int i = 0; i < {n}; i++) m[{fresh} + i] += m[{g} + i], m[{g} + i] = 0;");
            if let (Some((sum, trash)), Some(n)) = (r.carried, self.carried_room(i)) {
                let _ =
                    writeln!(gradients, "        if (!taken{i}) for (int i = 0; i < {n}; i++) m[{sum} + i] += m[{trash} + i];");
                let _ = writeln!(reset, "            __builtin_memset(m + {sum}, 0, {n} * sizeof(real));");
            }
        }
        let _ = writeln!(t, "{gradients}        if (s->reset && s->reset[t * s->time + sequence]) {{\n{reset}        }}\n    }}");
        for (i, r) in rooms.iter().enumerate().filter(|(i, _)| mine(*i)) {
            // What has been computed back, and what it was.
            if let Some(Where::Here { tile, other }) = r.state {
                t += &self.checkpoint(i, &format!("(m + {other})"), "fwp_segment(s, begin)", Way::In, 4)?;
                let (apart, size) = (self.magnitude(i, tile, Some(other)), self.magnitude(i, other, None));
                let _ = writeln!(t, "    lost |= fwp_lost({apart}, least{i}, {size}, end - begin);");
                let n = self.state_rooms[i];
                let _ =
                    writeln!(t, "    __builtin_memcpy(m + {tile}, m + {other}, {n} * sizeof(real));\n    at->arrived = begin;");
            }
        }
        Ok(t)
    }

    /// How large state i is, or how far from another one.
    fn magnitude(&self, i: usize, at: usize, from: Option<usize>) -> String {
        let axes = self.states[i].axes();
        let from = from.map_or("0".into(), |from| format!("m + {from}"));
        let (blocks, block, rows) = match self.g().lane(&axes) {
            Some(lane) => (self.lay.blocks(lane), self.lay.block(lane), self.lay.sizes[lane]),
            None => (1, 1, 1),
        };
        let rest = self.lay_elements(i) / rows;
        format!("fwp_magnitude(m + {at}, {from}, {blocks}, {rest}, {block}, {rows})")
    }
}
