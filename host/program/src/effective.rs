//! Where a raw signal becomes what the rule uses.
//!
//! A rule applies its own activations, other frameworks hold signals after them: a write strength in (0, 1), a decay factor.
//! The effective form of a signal is the last node of its shape that everything the signal does passes through,
//! and that depends on nothing else but parameters and constants.

use fwp_sdk::program::{Function, NodeId, Op, Program, Role, entry};

use crate::graph::{callee, classes, consumers, live, pruned, sizes};

/// For every signal (gate input) its name and the node of the step that is its effective form, or why there is none.
///
/// A signal that is used as it comes is its own effective form.
pub fn effective_signals(p: &Program) -> Vec<(String, Result<NodeId, String>)> {
    let Some(step) = p.entry(entry::STEP) else { return Vec::new() };
    let Ok(types) = fwp_sdk::program::shape::types(p) else { return Vec::new() };
    let Some((_, index)) = p.entries.iter().find(|(n, _)| n == entry::STEP) else { return Vec::new() };
    let types = &types.nodes[*index as usize];
    let merged = merge(step);
    let gates = p.inputs.iter().enumerate().filter(|(_, i)| i.role == Role::Gate);
    gates
        .map(|(i, input)| {
            let found = effective(p, &merged, i as u32, |n| sizes(&types[n as usize]).to_vec());
            (input.name.clone(), found)
        })
        .collect()
}

/// The rule with every signal in its effective form as argument: the activations are left out.
///
/// Signals without an effective form stay raw. A second statement of the step is dropped, because it still holds the activations.
pub fn with_effective(p: &Program) -> Program {
    let mut out = p.clone();
    let Some((_, index)) = p.entries.iter().find(|(n, _)| n == entry::STEP).cloned() else { return out };
    let Some(step) = p.functions.get(index as usize) else { return out };
    let class = classes(step);
    let mut new = step.clone();
    for (name, found) in effective_signals(p) {
        let (Ok(node), Some(argument)) = (found, p.inputs.iter().position(|i| i.name == name)) else { continue };
        for (n, node_class) in class.iter().enumerate() {
            if *node_class == node {
                new.nodes[n].op = Op::Argument { index: argument as u32 };
                new.nodes[n].operands.clear();
            }
        }
    }
    out.functions[index as usize] = pruned(&new);
    out.entries.retain(|(n, _)| n != entry::RESTATED);
    out
}

/// The step with equal nodes seen as one.
struct Merged<'a> {
    step: &'a Function,
    class: Vec<NodeId>,
    /// Readers of a class, as classes.
    readers: Vec<Vec<NodeId>>,
    used: Vec<bool>,
    is_output: Vec<bool>,
}

fn merge(step: &Function) -> Merged<'_> {
    let class = classes(step);
    let mut readers = vec![Vec::new(); step.nodes.len()];
    for (n, list) in consumers(step).into_iter().enumerate() {
        readers[class[n] as usize].extend(list.into_iter().map(|r| class[r as usize]));
    }
    let mut is_output = vec![false; step.nodes.len()];
    for o in &step.outputs {
        is_output[class[o.node as usize] as usize] = true;
    }
    let mut used = vec![false; step.nodes.len()];
    for (n, live) in live(step).into_iter().enumerate() {
        used[class[n] as usize] |= live;
    }
    Merged { step, class, readers, used, is_output }
}

fn effective(p: &Program, m: &Merged<'_>, argument: u32, shape: impl Fn(NodeId) -> Vec<usize>) -> Result<NodeId, String> {
    let n = m.step.nodes.len();
    let source = (0..n).find(|i| m.step.nodes[*i].op == (Op::Argument { index: argument }) && m.used[*i]);
    let Some(source) = source else { return Err("the step does not use it".into()) };
    let source = source as NodeId;
    // What depends on this signal, and what on this signal alone.
    let (mut on_signal, mut on_other) = (vec![false; n], vec![false; n]);
    for (i, node) in m.step.nodes.iter().enumerate() {
        on_signal[i] = i as NodeId == source;
        on_other[i] = match node.op {
            Op::Argument { index } => index != argument,
            Op::State { .. } | Op::StepIndex => true,
            _ => false,
        };
        for o in &node.operands {
            let o = m.class[*o as usize] as usize;
            on_signal[i] |= on_signal[o];
            on_other[i] |= on_other[o];
        }
    }
    let alone = |i: usize| on_signal[i] && !on_other[i] && m.used[i] && m.class[i] as usize == i;
    let wanted = shape(source);
    let candidates = (0..n).rev().filter(|i| alone(*i) && shape(*i as NodeId) == wanted && is_value(&m.step.nodes[*i].op));
    let mut found = source;
    for i in candidates {
        if !escapes(m, source, i as NodeId) {
            found = i as NodeId;
            break;
        }
    }
    if found != source {
        return Ok(found);
    }
    // Used in several activated forms, none of them is the signal; used only in mixtures, the signal itself is.
    let mut forms: Vec<&NodeId> = m.readers[source as usize].iter().filter(|r| alone(**r as usize)).collect();
    forms.sort_unstable();
    forms.dedup();
    if forms.is_empty() || (forms.len() == 1 && !on_several_paths(m, source)) {
        return Ok(source);
    }
    let names: Vec<String> = forms
        .iter()
        .map(|r| {
            let node = &m.step.nodes[**r as usize];
            let place = p.place(node.span);
            if place.is_empty() { format!("`{}`", node.op.name()) } else { format!("`{}` ({place})", node.op.name()) }
        })
        .collect();
    let also = if forms.len() == 1 { " and as it comes" } else { "" };
    Err(format!("it is used in several forms, {}{also}", names.join(" and ")))
}

/// Whether a node holds one value that an argument could stand for.
fn is_value(op: &Op) -> bool {
    callee(op).is_none() && *op != Op::Gradient
}

fn on_several_paths(m: &Merged<'_>, source: NodeId) -> bool {
    let mut readers = m.readers[source as usize].clone();
    readers.sort_unstable();
    readers.dedup();
    readers.iter().filter(|r| m.used[**r as usize]).count() > 1 || m.is_output[source as usize]
}

/// Whether `source` reaches a result without passing `gate`.
fn escapes(m: &Merged<'_>, source: NodeId, gate: NodeId) -> bool {
    if source == gate {
        return false;
    }
    let mut seen = vec![false; m.readers.len()];
    let mut stack = vec![source];
    while let Some(n) = stack.pop() {
        if n == gate || std::mem::replace(&mut seen[n as usize], true) {
            continue;
        }
        if m.is_output[n as usize] {
            return true;
        }
        stack.extend(m.readers[n as usize].iter().copied().filter(|r| m.used[*r as usize]));
    }
    false
}
