//! How threads share the units of a call.
//!
//! Processors of one machine are not equally fast, and threads not a divisor of units: whoever is free goes on with what is left.
//! Where there are many units, each thread begins with a part of them, and helps others when it is done with its own.
//! Where there are few, they are walked in slices: a thread that finds a unit far behind its own puts its own back and goes on with that one,
//! so that all end at about the same time. Which thread does what changes no bit: units share nothing.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use super::buffers::{Line, with_scratch};
use crate::shim::{get_num_threads, parallel_for};

/// Floating point operations below which a piece of work is not worth a thread of its own.
const GRAIN: usize = 50_000;

/// Units for each thread from which whole ones even out.
const MANY: usize = 8;

/// Slices of a unit, where there are fewer. It changes hands when it is more than one of them behind.
const SLICES: usize = 8;

/// The units of a call.
pub(super) struct Units {
    /// How many.
    pub count: usize,
    /// Segments of each.
    pub segments: usize,
    /// Floating point operations of each.
    pub operations: usize,
    /// Lines that each goes on with from segment to segment.
    pub memory: usize,
    /// Further lines while it runs.
    pub slots: usize,
}

/// Walks a unit through the segments at these places, with its memory and with slots.
pub(super) type Walk<'a> = &'a (dyn Fn(usize, Range<usize>, &mut [Line], &mut [Line]) + Sync);

/// A unit that waits or runs.
struct Unit<'a> {
    index: usize,
    /// The thread that begins with it.
    home: usize,
    /// Segments that it is through.
    done: usize,
    memory: &'a mut [Line],
}

impl Units {
    /// Walks all units to their ends.
    ///
    /// # Errors
    /// A panic of `walk`.
    pub fn run(&self, walk: Walk<'_>) -> Result<()> {
        let least = GRAIN.div_ceil(self.operations.max(1));
        let threads = usize::try_from(get_num_threads())?.min(self.count.div_ceil(least)).max(1);
        if threads < self.count && self.count < MANY * threads && threads > 1 {
            self.in_slices(threads, walk)
        } else {
            self.whole(threads, least, walk)
        }
    }

    /// The units that a thread begins with.
    fn home(&self, thread: usize, threads: usize) -> Range<usize> {
        thread * self.count / threads..(thread + 1) * self.count / threads
    }

    /// Whole units, `least` at a time.
    fn whole(&self, threads: usize, least: usize, walk: Walk<'_>) -> Result<()> {
        let homes: Vec<Range<usize>> = (0..threads).map(|i| self.home(i, threads)).collect();
        let next: Vec<AtomicUsize> = homes.iter().map(|home| AtomicUsize::new(home.start)).collect();
        let body = |lines: &mut [Line], me: usize| {
            let (memory, slots) = lines.split_at_mut(self.memory);
            for i in (0..threads).map(|i| (me + i) % threads) {
                loop {
                    let first = next[i].fetch_add(least, Ordering::Relaxed);
                    if first >= homes[i].end {
                        break;
                    }
                    for unit in first..homes[i].end.min(first + least) {
                        walk(unit, 0..self.segments, memory, slots);
                    }
                }
            }
        };
        parallel_for(threads, 1, |some| {
            with_scratch((self.memory + self.slots) * size_of::<Line>(), |lines| body(lines, some.start));
            Ok(())
        })?;
        Ok(())
    }

    /// All units at about the same pace.
    fn in_slices(&self, threads: usize, walk: Walk<'_>) -> Result<()> {
        let slice = self.segments.div_ceil(SLICES.min(self.operations / GRAIN).max(1));
        let lines = self.count * self.memory + threads * self.slots;
        with_scratch(lines * size_of::<Line>(), |lines| {
            let (memories, slots) = lines.split_at_mut(self.count * self.memory);
            let slots: Mutex<Vec<&mut [Line]>> = Mutex::new(slots.chunks_exact_mut(self.slots).collect());
            let mut memories = memories.chunks_exact_mut(self.memory);
            let mut waiting = Vec::new();
            for home in 0..threads {
                let units = self.home(home, threads).zip(&mut memories);
                waiting.extend(units.map(|(index, memory)| Unit { index, home, done: 0, memory }));
            }
            let waiting = Mutex::new(waiting);
            parallel_for(threads, 1, |some| {
                let slots = slots.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let slots = slots.context("internal: more pieces than threads")?;
                let mut mine = None;
                while let Some(mut unit) = self.exchanged(&waiting, mine.take(), some.start, slice) {
                    let to = self.segments.min(unit.done + slice);
                    walk(unit.index, unit.done..to, unit.memory, slots);
                    unit.done = to;
                    mine = Some(unit);
                }
                Ok(())
            })
        })?;
        Ok(())
    }

    /// What a thread goes on with after a slice of `mine`.
    fn exchanged<'a>(
        &self,
        waiting: &Mutex<Vec<Unit<'a>>>,
        mine: Option<Unit<'a>>,
        thread: usize,
        slice: usize,
    ) -> Option<Unit<'a>> {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = mine.filter(|unit| unit.done < self.segments);
        let last = waiting.iter().enumerate().min_by_key(|(_, unit)| (unit.done, unit.home != thread)).map(|(i, _)| i);
        match (mine, last) {
            (None, Some(last)) => Some(waiting.swap_remove(last)),
            (Some(mine), Some(last)) if waiting[last].done + slice < mine.done => {
                Some(std::mem::replace(&mut waiting[last], mine))
            }
            (mine, _) => mine,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::shim::set_num_threads;

    /// Every unit is walked through its segments in order, with its own memory, whatever thread has it.
    fn all_of(units: &Units, pause: impl Fn(usize) -> Duration + Sync) -> BTreeMap<usize, Vec<Range<usize>>> {
        let seen = Mutex::new(BTreeMap::<usize, Vec<Range<usize>>>::new());
        // Where the memory of units is that have begun and are not at their end.
        let under_way = Mutex::new(BTreeMap::<usize, usize>::new());
        let walk = |unit: usize, segments: Range<usize>, memory: &mut [Line], slots: &mut [Line]| {
            assert_eq!((memory.len(), slots.len()), (units.memory, units.slots));
            let at = memory.as_ptr().addr();
            let own = match segments.start {
                0 => under_way.lock().unwrap().insert(at, unit).is_none(),
                _ => under_way.lock().unwrap().get(&at) == Some(&unit),
            };
            assert!(own, "unit {unit} has the memory of another one");
            std::thread::sleep(pause(unit));
            if segments.end == units.segments {
                under_way.lock().unwrap().remove(&at);
            }
            seen.lock().unwrap().entry(unit).or_default().push(segments);
        };
        units.run(&walk).unwrap();
        seen.into_inner().unwrap()
    }

    #[test]
    fn every_unit_is_walked_once_from_end_to_end() {
        crate::shim::testing::alone("exec::kernel::turns::tests::walked_inner");
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own: the number of threads is one for all"]
    fn walked_inner() {
        for (threads, count, segments, operations) in [
            (1, 3, 5, 1 << 20),
            (2, 4, 40, 1 << 20),
            (3, 4, 3, 1 << 24),
            (4, 4, 9, 1 << 20),
            (2, 40, 4, 1 << 20),
            (4, 30, 2, 100),
        ] {
            set_num_threads(threads);
            let units = Units { count, segments, operations, memory: 2, slots: 3 };
            let seen = all_of(&units, |unit| Duration::from_micros(if unit == 0 { 2_000 } else { 0 }));
            let what = format!("{threads} threads, {count} units of {segments}");
            assert_eq!(seen.keys().copied().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>(), "{what}");
            for parts in seen.values() {
                assert!(parts[0].start == 0 && parts.windows(2).all(|w| w[0].end == w[1].start), "{what}: {parts:?}");
                assert_eq!(parts.last().unwrap().end, segments, "{what}");
            }
        }
    }

    #[test]
    fn what_is_put_back_is_taken_where_it_is_furthest_behind() {
        let units = Units { count: 4, segments: 8, operations: 0, memory: 1, slots: 1 };
        let mut lines = [Line::uninit(); 4];
        let all: Vec<Unit<'_>> =
            lines.chunks_mut(1).enumerate().map(|(index, memory)| Unit { index, home: index / 2, done: 0, memory }).collect();
        let waiting = Mutex::new(all);
        // Its own first; it goes on until another is more than a slice behind.
        let mut mine = units.exchanged(&waiting, None, 1, 1).unwrap();
        assert_eq!(mine.index, 2);
        mine.done = 1;
        let mut mine = units.exchanged(&waiting, Some(mine), 1, 1).unwrap();
        assert_eq!(mine.index, 2);
        mine.done = 2;
        let mut mine = units.exchanged(&waiting, Some(mine), 1, 1).unwrap();
        assert_eq!(mine.index, 3);
        mine.done = 8;
        // One that is done is not put back; then whichever is last, whosever it was.
        let mine = units.exchanged(&waiting, Some(mine), 1, 1).unwrap();
        assert_eq!((mine.index, mine.home), (0, 0));
        assert_eq!(
            waiting.lock().unwrap().iter().map(|u| (u.index, u.done)).collect::<BTreeMap<_, _>>(),
            [(1, 0), (2, 2)].into()
        );
    }
}
