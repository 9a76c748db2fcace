//! When each node of a step can be computed: once, for all steps at once, or step by step.
//!
//! What does not depend on a state could be computed for a whole sequence before its first step, but must not grow by that:
//! the outer product of a key and a value is a matrix for every step and stays in the step.
//! So hoisting is bounded, both before the steps and after them.

use fwp_sdk::program::{Function, NodeId, Op, Output, Type};

use crate::graph::{consumers, elements, sizes};

/// When a node is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// Once: it reads no argument, state or step index.
    Once,
    /// For all steps at once before the first: it reads arguments or the step index, no state, and is no larger than what it reads of them.
    /// A product with a matrix that is the same at every step may grow up to fourfold.
    AllSteps,
    /// At every step.
    Step,
    /// For all steps at once after the last: it depends on a state, no next state depends on it,
    /// and what must be kept of the steps for it is at most twice its own size.
    After,
}

/// When every node of a step is computed. Gradients must be written out; `types` are the types of the step's nodes.
///
/// A node that is computed `Once` or for `AllSteps` reads no `Step` or `After` node, a `Step` node reads no `After` node.
pub fn schedule(f: &Function, types: &[Type]) -> Vec<When> {
    let n = f.nodes.len();
    let readers = consumers(f);
    let feeds_state = crate::graph::ancestors(f, state_results(f));
    let is_next_state: Vec<bool> = {
        let mut is = vec![false; n];
        state_results(f).for_each(|r| is[r as usize] = true);
        is
    };
    let (mut on_state, mut on_step) = (vec![false; n], vec![false; n]);
    for (i, node) in f.nodes.iter().enumerate() {
        on_state[i] = matches!(node.op, Op::State { .. }) || node.operands.iter().any(|o| on_state[*o as usize]);
        // What is called may read the step index itself.
        let own = matches!(node.op, Op::Argument { .. } | Op::StepIndex | Op::Call { .. } | Op::Loop { .. });
        on_step[i] = own || node.operands.iter().any(|o| on_step[*o as usize]);
    }
    let mut when: Vec<When> = (0..n)
        .map(|i| match (on_state[i], on_step[i]) {
            (true, _) if feeds_state[i] || matches!(f.nodes[i].op, Op::State { .. }) => When::Step,
            (true, _) => When::After,
            (false, true) => When::AllSteps,
            (false, false) => When::Once,
        })
        .collect();
    let stored = stored_sizes(f, types, &when);
    // Start with everything outside of the steps and move into the steps what has to be there, until nothing moves.
    loop {
        let mut moved = false;
        for i in (0..n).rev() {
            let must = match when[i] {
                When::AllSteps => {
                    let reads_step = f.nodes[i].operands.iter().any(|o| when[*o as usize] == When::Step);
                    let grows = elements(&types[i]) > allowance(f, i, &when, &stored);
                    let into_step = is_next_state[i] || readers[i].iter().any(|r| when[*r as usize] == When::Step);
                    reads_step || (grows && (!is_view(&f.nodes[i].op) || into_step))
                }
                When::After => {
                    let kept: usize = f.nodes[i]
                        .operands
                        .iter()
                        .filter(|o| when[**o as usize] == When::Step)
                        .map(|o| elements(&types[*o as usize]))
                        .sum();
                    let read_in_step = readers[i].iter().any(|r| when[*r as usize] == When::Step);
                    // The parts of a tuple are taken where it is made.
                    let part = matches!(f.nodes[i].op, Op::Element { .. }) && kept > 0;
                    read_in_step || part || kept > 2 * elements(&types[i])
                }
                When::Once | When::Step => false,
            };
            if must {
                when[i] = When::Step;
                moved = true;
            }
        }
        if !moved {
            return when;
        }
    }
}

/// The same with everything in the steps that only they read, and with what would keep matrices of every step for later:
/// a kernel has it at hand there, and no value of it goes through memory.
///
/// What comes from a product with a matrix stays before the steps, where it is one large product, and so does all that it is made of.
pub fn sunk(f: &Function, types: &[Type], when: &[When]) -> Vec<When> {
    let readers = consumers(f);
    let mut stays = vec![false; f.nodes.len()];
    f.outputs.iter().for_each(|o| stays[o.node as usize] = true);
    let mut when = gathered(f, types, when);
    for i in (0..f.nodes.len()).rev() {
        let node = &f.nodes[i];
        let may = match when[i] {
            When::AllSteps => !matches!(
                node.op,
                Op::Argument { .. } | Op::StepIndex | Op::MatVec | Op::MatVecT | Op::MatMul | Op::SolveSpd { .. }
            ),
            When::Once => is_sooner_made_than_read(&node.op),
            When::Step | When::After => continue,
        };
        if may && !stays[i] && readers[i].iter().all(|r| when[*r as usize] == When::Step) {
            when[i] = When::Step;
        } else {
            node.operands.iter().for_each(|o| stays[*o as usize] = true);
        }
    }
    when
}

/// The same with the operations after the steps that turn matrices into something smaller, and all that leads to them, in the steps:
/// a matrix that is kept for every step costs more than anything that is computed of it.
fn gathered(f: &Function, types: &[Type], when: &[When]) -> Vec<When> {
    let mut when = when.to_vec();
    let mut most = matrices_kept(f, types, &when);
    for i in 0..f.nodes.len() {
        if most == 0 {
            break;
        }
        if when[i] != When::After {
            continue;
        }
        let mut moved = when.clone();
        let mut open = vec![i];
        while let Some(n) = open.pop() {
            if moved[n] == When::After {
                moved[n] = When::Step;
                open.extend(f.nodes[n].operands.iter().map(|o| *o as usize));
            }
        }
        let kept = matrices_kept(f, types, &moved);
        if kept < most {
            (when, most) = (moved, kept);
        }
    }
    when
}

/// Elements of the values with several dimensions that every step keeps for what follows the steps.
fn matrices_kept(f: &Function, types: &[Type], when: &[When]) -> usize {
    let mut kept = vec![false; f.nodes.len()];
    f.outputs.iter().filter(|o| !is_state(o)).for_each(|o| kept[o.node as usize] = true);
    for (node, _) in f.nodes.iter().zip(when).filter(|(_, w)| **w == When::After) {
        node.operands.iter().for_each(|o| kept[*o as usize] = true);
    }
    let matrix = |i: usize| sizes(&types[i]).len() >= 2;
    (0..kept.len()).filter(|i| kept[*i] && when[*i] == When::Step && matrix(*i)).map(|i| elements(&types[i])).sum()
}

/// The same for a function that reads no state, as a kernel computes it: step by step, whatever varies by step.
pub fn stateless(f: &Function, types: &[Type]) -> Vec<When> {
    let mut when = schedule(f, types);
    for (node, when) in f.nodes.iter().zip(&mut when) {
        if *when == When::AllSteps && !matches!(node.op, Op::Argument { .. } | Op::StepIndex) {
            *when = When::Step;
        }
    }
    sunk(f, types, &when)
}

/// Whether a value that is the same at every step is computed where it is used: numbers and places that were written down,
/// what compares them, and copies along a further dimension, which take up room outside of a kernel and none in it.
fn is_sooner_made_than_read(op: &Op) -> bool {
    let number = matches!(op, Op::Constant { .. } | Op::Integer { .. } | Op::Arange { .. });
    number || matches!(op, Op::Expand { .. } | Op::Equal | Op::Less | Op::LessEqual | Op::ToFloat)
}

fn state_results(f: &Function) -> impl Iterator<Item = NodeId> {
    f.outputs.iter().filter(|o| is_state(o)).map(|o| o.node)
}

fn is_state(o: &Output) -> bool {
    o.name.starts_with("state.")
}

/// Whether the result shares its operand's memory.
pub(crate) fn is_view(op: &Op) -> bool {
    matches!(op, Op::Expand { .. } | Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Element { .. })
}

/// Elements that a value for one step takes; of a repeated view, what it repeats.
fn stored_sizes(f: &Function, types: &[Type], when: &[When]) -> Vec<usize> {
    let mut stored: Vec<usize> = Vec::with_capacity(f.nodes.len());
    for (i, node) in f.nodes.iter().enumerate() {
        let own = if when[i] == When::Once { 0 } else { elements(&types[i]) };
        let seen = node.operands.first().map_or(own, |o| stored[*o as usize]);
        stored.push(if is_view(&node.op) { own.min(seen) } else { own });
    }
    stored
}

/// The size up to which node `i` may be computed for all steps at once.
fn allowance(f: &Function, i: usize, when: &[When], stored: &[usize]) -> usize {
    let node = &f.nodes[i];
    let read: usize = node.operands.iter().map(|o| stored[*o as usize]).sum();
    match node.op {
        // Inputs are there already.
        Op::Argument { .. } | Op::StepIndex => usize::MAX,
        Op::MatVec | Op::MatVecT if when[node.operands[0] as usize] == When::Once => read.saturating_mul(4),
        Op::Phi { .. } => read.saturating_mul(4),
        _ => read,
    }
}
