//! A finished program, without what nothing needs: a leftover line changes neither bytes nor speed.

use crate::program::{Function, Op, Program};

use super::graph::Shared;

/// Moves what was built into the program and drops unused nodes, functions and source files.
pub(crate) fn tidy(mut program: Program, shared: Shared) -> Program {
    program.functions = shared.functions.into_iter().map(without_unused_nodes).collect();
    without_unused_functions(&mut program);
    program.files = shared.files;
    without_unused_files(&mut program);
    program
}

fn without_unused_nodes(mut f: Function) -> Function {
    let mut used = vec![false; f.nodes.len()];
    for o in &f.outputs {
        used[o.node as usize] = true;
    }
    for i in (0..f.nodes.len()).rev() {
        if used[i] {
            for o in &f.nodes[i].operands {
                used[*o as usize] = true;
            }
        }
    }
    let renumbered = renumber(&used);
    keep(&mut f.nodes, &used);
    for node in &mut f.nodes {
        node.operands.iter_mut().for_each(|o| *o = renumbered[*o as usize]);
    }
    f.outputs.iter_mut().for_each(|o| o.node = renumbered[o.node as usize]);
    f
}

fn without_unused_functions(p: &mut Program) {
    let mut used = vec![false; p.functions.len()];
    for (_, index) in &p.entries {
        used[*index as usize] = true;
    }
    // Callees come before callers.
    for i in (0..p.functions.len()).rev() {
        if used[i] {
            for callee in callees(&mut p.functions[i]) {
                used[*callee as usize] = true;
            }
        }
    }
    let renumbered = renumber(&used);
    keep(&mut p.functions, &used);
    for f in &mut p.functions {
        callees(f).for_each(|c| *c = renumbered[*c as usize]);
    }
    p.entries.iter_mut().for_each(|(_, index)| *index = renumbered[*index as usize]);
}

fn without_unused_files(p: &mut Program) {
    let mut used = vec![false; p.files.len()];
    let spans = || p.functions.iter().flat_map(|f| f.nodes.iter().map(|n| n.span));
    // A node without a place names no file.
    spans().filter(|s| s.line > 0).for_each(|s| used[s.file as usize] = true);
    let renumbered = renumber(&used);
    keep(&mut p.files, &used);
    for n in p.functions.iter_mut().flat_map(|f| &mut f.nodes) {
        if n.span.line > 0 {
            n.span.file = renumbered[n.span.file as usize];
        }
    }
}

/// The functions that a function calls and the initialisers of its parameters.
fn callees(f: &mut Function) -> impl Iterator<Item = &mut u32> {
    let called = f.nodes.iter_mut().filter_map(|n| match &mut n.op {
        Op::Call { function, .. } | Op::Loop { function, .. } | Op::Blocks { function, .. } | Op::Scan { function, .. } => {
            Some(function)
        }
        _ => None,
    });
    called.chain(f.parameters.iter_mut().map(|p| &mut p.init))
}

/// The new index of everything that is used.
fn renumber(used: &[bool]) -> Vec<u32> {
    let mut next = 0;
    let count = |u: &bool| {
        let index = next;
        next += u32::from(*u);
        index
    };
    used.iter().map(count).collect()
}

fn keep<T>(items: &mut Vec<T>, used: &[bool]) {
    let mut used = used.iter();
    items.retain(|_| *used.next().expect("as many as there are items"));
}
