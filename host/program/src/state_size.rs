//! How much a model keeps of a sequence from step to step.

use fwp_sdk::program::shape::{Types, types};
use fwp_sdk::program::{Node, Op, Type, entry};

use crate::check::MAX_DEPTH;
use crate::model::ModelPrograms;

/// Numbers that a model keeps of one sequence from step to step: the states of its rules and recurrent cells, and the keys and
/// values that softmax attention looks back at, at most `length` steps of them.
///
/// What short convolutions and shifts keep, some steps of their inputs, is not counted, as it is not in the literature.
/// 0 where the net cannot be read.
pub fn state_size(model: &ModelPrograms, length: usize) -> u64 {
    let net = &model.net;
    let (Ok(types), Some((_, forward))) = (types(net), net.entries.iter().find(|(name, _)| name == entry::FORWARD)) else {
        return 0;
    };
    Counter { model, types, length: length as u64 }.function(*forward, 0)
}

struct Counter<'a> {
    model: &'a ModelPrograms,
    types: Types,
    length: u64,
}

impl Counter<'_> {
    fn function(&self, index: u32, depth: usize) -> u64 {
        let (Some(f), Some(nodes)) = (self.model.net.functions.get(index as usize), self.types.nodes.get(index as usize)) else {
            return 0;
        };
        if depth > MAX_DEPTH {
            return 0;
        }
        let elements = |operand: usize, node: &Node| match &nodes[node.operands[operand] as usize] {
            Type::Tensor(t) => product(&t.shape),
            _ => 0,
        };
        let each = f.nodes.iter().map(|node| match &node.op {
            Op::Call { function, .. } => self.function(*function, depth + 1),
            Op::Loop { function, count, .. } | Op::Blocks { function, count, .. } => {
                self.function(*function, depth + 1).saturating_mul(*count as u64)
            }
            // A memory among the states of a cell is counted where it begins.
            Op::Scan { function, states, .. } => {
                let states = (0..*states).map(|i| elements(i, node)).fold(0, u64::saturating_add);
                states.saturating_add(self.function(*function, depth + 1))
            }
            Op::FastWeights { slot, .. } | Op::MemoryInit { slot, .. } => self.slot(slot),
            Op::Attention { window, .. } => {
                let seen = if *window == 0 { self.length } else { self.length.min(*window as u64) };
                seen.saturating_mul(elements(1, node).saturating_add(elements(2, node)))
            }
            _ => 0,
        });
        each.fold(0, u64::saturating_add)
    }

    /// The states of a rule, of all heads.
    fn slot(&self, name: &str) -> u64 {
        let heads = self.model.net.slots.iter().find(|s| s.name == name).map_or(0, |s| s.heads as u64);
        let states = self.model.slot(name).map_or(&[][..], |(_, slot)| &slot.rule.states);
        states.iter().map(|s| product(&s.shape)).fold(0, u64::saturating_add).saturating_mul(heads)
    }
}

fn product(shape: &[usize]) -> u64 {
    shape.iter().fold(1, |n, s| n.saturating_mul(*s as u64))
}
