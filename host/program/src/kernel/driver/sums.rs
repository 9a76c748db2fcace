//! Walks back without states: sums over states are taken on a walk forwards through the segment (see `carry`).

use std::fmt::Write;

use super::Driver;
use super::ports::{ALL, Foresee, Way};
use super::walks::{Rooms, Slot, Where};

/// Steps through which sums over states are carried before they are computed anew. Rounding grows with the root of it:
/// through 12 steps the gradient of a decay around a half is about as exact as a sum of its own, and a state that is put aside costs little.
pub(super) const MARKED: usize = 12;

/// Whether sums are computed anew at step t.
fn is_anew() -> String {
    format!("(t + 1 == end || (t - begin) % {MARKED} == {})", MARKED - 1)
}

impl Driver<'_> {
    /// Whether the adjoint reads no state of several axes.
    pub(super) fn passing(&self) -> bool {
        !self.low.carried.is_empty()
    }

    /// Elements of the sum that is carried beside the gradient of state i.
    pub(super) fn carried_room(&self, i: usize) -> Option<usize> {
        Some(self.vector_room(self.low.carried.get(i)?.as_ref()?.anew))
    }

    /// The sums over states alone of every step of a segment, and the states from which carried sums are computed anew.
    pub(super) fn sums_of_segment(&self, rooms: &[Rooms], slot: Slot) -> Result<String, String> {
        let mut t = String::new();
        let (mut reset, mut places, mut marks) = (String::new(), String::new(), String::new());
        for (i, r) in rooms.iter().enumerate() {
            let Some(Where::Passing { tile, mark }) = r.state else { continue };
            let own = format!("(m + {tile})");
            t += &self.checkpoint(i, &own, "fwp_segment(s, begin)", Way::In, 4)?;
            reset += &self.state_of_sequence(i, &own, "s->fresh", Way::In, 12)?;
            let _ = writeln!(places, "        at->state[{i}] = m + {tile};");
            let _ = writeln!(places, "        at->next[{i}] = {} ? m + {tile} : m + {};", self.taken(i), r.trash);
            if r.carried.is_some() {
                let (to, n) = (self.mark(rooms, i, mark, slot.all), self.state_rooms[i]);
                let _ = writeln!(marks, "            __builtin_memcpy({to}, m + {tile}, {n} * sizeof(real));");
            }
        }
        t += "    for (int64_t t = begin; t < end; t++) {\n";
        t += "        at->index = s->index ? s->index[t * s->time + sequence] : t;\n";
        let _ = writeln!(t, "        if (s->reset && s->reset[t * s->time + sequence]) {{\n{reset}        }}");
        if !marks.is_empty() {
            let _ = writeln!(t, "        if ({}) {{\n{marks}        }}", is_anew());
        }
        t += &self.bring(false, ALL)?;
        t += &self.foresee(Foresee::Again, ALL, 8);
        let _ = writeln!(t, "        at->saved = {};", self.saved_at("t"));
        let _ = writeln!(t, "        at->passed = slots + (t - begin) * {};", slot.all);
        t += &self.kept_gradients(ALL)?;
        t += &places;
        Ok(t + "        fwp_step_again(m, at);\n    }\n")
    }

    /// Where state i is put aside at step t of a segment: the first time in memory of the block's own, then behind all slots.
    fn mark(&self, rooms: &[Rooms], i: usize, first: usize, slot: usize) -> String {
        let room = |(k, r): (usize, &Rooms)| if r.carried.is_some() { self.state_rooms[k] } else { 0 };
        let all: usize = rooms.iter().enumerate().map(room).sum();
        let before: usize = rooms.iter().enumerate().take(i).map(room).sum();
        let later = format!("slots + s->interval * {slot} + ((t - begin) / {MARKED} - 1) * {all} + {before}");
        format!("(t - begin < {MARKED} ? m + {first} : {later})")
    }

    /// Computes carried sums anew at step t, where that is done.
    pub(super) fn carry_anew(&self, rooms: &[Rooms], slot: Slot) -> String {
        let (mut t, mut zero) = (String::new(), 0);
        for (i, r) in rooms.iter().enumerate() {
            let (Some(Where::Passing { mark, .. }), Some((sum, _))) = (&r.state, r.carried) else { continue };
            let (from, gradient) = (self.mark(rooms, i, *mark, slot.all), r.gradient);
            zero = r.zeros;
            let _ = writeln!(t, "            at->state[{i}] = {from};");
            let _ = writeln!(t, "            at->state_gradient[{i}] = m + {gradient}, at->carried_out[{i}] = m + {sum};");
            let _ = writeln!(t, "            if (taken{i}) fwp_carry{i}(m, at);");
            let _ = writeln!(t, "            else fwp_carry_unchanged{i}(m, at);");
        }
        if t.is_empty() {
            return t;
        }
        let one = slot.one;
        format!(
            "        at->follows = m + {one};\n        if {} {{\n            at->follows = m + {zero};\n{t}        }}\n",
            is_anew()
        )
    }
}
