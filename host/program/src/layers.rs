//! Which layers of a slow net use which slot.

use std::collections::{BTreeMap, BTreeSet};

use fwp_sdk::program::{Function, Op, Program, entry};

use crate::check::MAX_DEPTH;

/// Where a slow net uses its slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayersOfSlots {
    /// By the name of the slot, the repetitions of the innermost blocks around its fast weights.
    pub layers: BTreeMap<String, BTreeSet<usize>>,
    /// Slots that are also used outside of any blocks, where a layer has no number.
    pub outside: BTreeSet<String>,
}

impl LayersOfSlots {
    /// Number of layers with fast weights: one where there are no blocks.
    pub fn count(&self) -> usize {
        self.layers.values().filter_map(|l| l.last()).max().map_or(1, |last| last.saturating_add(1))
    }

    /// Whether the net may use this slot in this layer; unknown where it uses the slot outside of blocks, and then yes.
    pub fn may_use(&self, slot: &str, layer: usize) -> bool {
        self.outside.contains(slot) || self.layers.get(slot).is_some_and(|l| l.contains(&layer))
    }

    /// Whether the net uses this slot at all.
    pub fn uses(&self, slot: &str) -> bool {
        self.outside.contains(slot) || self.layers.contains_key(slot)
    }
}

/// Finds the layers of every slot; a function that is used again for the same layer is not entered again.
pub fn layers_of_slots(net: &Program) -> LayersOfSlots {
    let mut walk = Walk { net, found: LayersOfSlots::default(), seen: BTreeSet::new() };
    if let Some((_, forward)) = net.entries.iter().find(|(name, _)| name == entry::FORWARD) {
        walk.function(*forward, None, 0);
    }
    walk.found
}

/// Most pairs of function and layer that are looked at; [`crate::ModelPrograms::check`] refuses models of that size.
const MAX_PLACES: usize = 1 << 20;

struct Walk<'a> {
    net: &'a Program,
    found: LayersOfSlots,
    seen: BTreeSet<(u32, Option<usize>)>,
}

impl Walk<'_> {
    fn function(&mut self, number: u32, layer: Option<usize>, depth: usize) {
        let net = self.net;
        let Some(f): Option<&Function> = net.functions.get(number as usize) else { return };
        if depth > MAX_DEPTH || self.seen.len() >= MAX_PLACES || !self.seen.insert((number, layer)) {
            return;
        }
        for node in &f.nodes {
            match &node.op {
                Op::Call { function, .. } | Op::Loop { function, .. } | Op::Scan { function, .. } => {
                    self.function(*function, layer, depth + 1);
                }
                Op::Blocks { function, count, first, .. } => {
                    for i in 0..(*count).min(MAX_PLACES) {
                        self.function(*function, Some(first.saturating_add(i)), depth + 1);
                    }
                }
                Op::FastWeights { slot, .. }
                | Op::MemoryInit { slot, .. }
                | Op::FastWrite { slot, .. }
                | Op::FastRead { slot, .. } => {
                    match layer {
                        Some(layer) => _ = self.found.layers.entry(slot.clone()).or_default().insert(layer),
                        None => _ = self.found.outside.insert(slot.clone()),
                    };
                }
                _ => {}
            }
        }
    }
}
