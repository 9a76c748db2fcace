//! The walks through time.

use std::fmt::Write;

use super::{Driver, Given, indented};
use crate::kernel::graph::Axis;

impl Driver<'_> {
    pub(super) fn at_struct(&self) -> String {
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
    pub(super) fn setup(&self) -> String {
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

    /// Whether state i takes its new value at a step.
    pub(super) fn taken(&self, i: usize) -> String {
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

    pub(super) fn forward_walk(&self, states: &[(usize, usize)], setup: &str) -> Result<String, String> {
        let mut t = String::from(
            "static __attribute__((noinline)) void fwp_forward_unit(const struct fwp_scan *s, int64_t unit, void *scratch)\n{\n    real *const m = (real *)scratch;\n",
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
    pub(super) fn backward_walk(&mut self, given: &[Given]) -> Result<(String, usize), String> {
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
            "static __attribute__((noinline)) void fwp_backward_unit(const struct fwp_scan *s, int64_t unit, void *scratch)\n{\n    real *const m = (real *)scratch;\n",
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
