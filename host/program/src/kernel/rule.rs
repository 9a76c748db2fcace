//! The kernel of a whole rule, without tensors: what is known of it before anything runs.

use fwp_sdk::program::{Argument, DType, Function, Kind, Node, NodeId, Op, Output, Program, Span, TensorType, Type, entry};

use super::{InStep, Kernel, KernelState, Per, Target, Unsupported, generate};
use crate::analysis::flatten::flatten;
use crate::check::phi_sizes;
use crate::phi::with_feature_map;
use crate::schedule::{When, schedule, sunk};

/// The kernel of an update rule behind a feature map without operations, its inputs given at every step.
///
/// An engine asks for kernels of the plans that it runs, which may have more in them (the feature map) or less (writes alone);
/// this says for the rule as it is, at its sizes, whether there is one.
///
/// # Errors
/// Why there is none, for people.
pub fn of_rule(rule: &Program, target: Target) -> Result<Kernel, Unsupported> {
    in_step(rule).and_then(|step| generate(&step, target).map_err(|Unsupported(why)| why)).map_err(Unsupported)
}

/// The part of the step that a kernel walks, with everything that crosses into it as an argument.
fn in_step(rule: &Program) -> Result<InStep, String> {
    let rule = with_feature_map(rule, &stand_in(rule)).map_err(|e| e.to_string())?;
    let flat = flatten(&rule).map_err(|e| e.to_string())?;
    let (f, types) = (&flat.step, &flat.types);
    let when = sunk(f, types, &schedule(f, types));
    let is_step = |i: usize| when[i] == When::Step;
    let next = |name: &str| f.output(&format!("state.{name}")).ok_or_else(|| format!("state `{name}` has no next value"));
    let next: Vec<NodeId> = rule.states.iter().map(|s| next(&s.name)).collect::<Result<_, _>>()?;

    let mut inner = Function { name: f.name.clone(), ..Function::default() };
    let mut per = Vec::new();
    let mut place: Vec<Option<NodeId>> = vec![None; f.nodes.len()];
    let reads = (0..f.nodes.len()).filter(|i| is_step(*i)).flat_map(|i| f.nodes[i].operands.iter().copied());
    let mut crossing: Vec<usize> = reads.chain(next.iter().copied()).map(|n| n as usize).filter(|i| !is_step(*i)).collect();
    crossing.sort_unstable();
    crossing.dedup();
    let push = |op: Op, operands: Vec<NodeId>, inner: &mut Function| {
        inner.nodes.push(Node { op, operands, span: Span::default() });
        inner.nodes.len() as NodeId - 1
    };
    for i in crossing {
        let index = inner.arguments.len() as u32;
        inner.arguments.push(Argument { name: format!("x{i}"), ty: types[i].clone() });
        per.push(if when[i] == When::Once { Per::Sequence } else { Per::Step });
        place[i] = Some(push(Op::Argument { index }, vec![], &mut inner));
    }
    let at = |place: &[Option<NodeId>], i: NodeId| place[i as usize].ok_or("a value of the step comes after it");
    for i in (0..f.nodes.len()).filter(|i| is_step(*i)) {
        let operands = f.nodes[i].operands.iter().map(|o| at(&place, *o)).collect::<Result<_, _>>()?;
        place[i] = Some(push(f.nodes[i].op.clone(), operands, &mut inner));
    }
    // Kept is what an output is, or what is read after the steps.
    let outputs = f.outputs.iter().filter(|o| !o.name.starts_with("state.")).map(|o| o.node);
    let after = (0..f.nodes.len()).filter(|i| when[*i] == When::After).flat_map(|i| f.nodes[i].operands.iter().copied());
    let mut kept: Vec<NodeId> = outputs.chain(after).filter(|n| is_step(*n as usize)).collect();
    kept.sort_unstable();
    kept.dedup();
    for (k, n) in kept.iter().enumerate() {
        let mut node = at(&place, *n)?;
        if !matches!(&types[*n as usize], Type::Tensor(t) if t.dtype == DType::Float) {
            node = push(Op::ToFloat, vec![node], &mut inner);
        }
        inner.outputs.push(Output { name: format!("kept.{k}"), node });
    }
    for (state, n) in rule.states.iter().zip(&next) {
        inner.outputs.push(Output { name: format!("state.{}", state.name), node: at(&place, *n)? });
    }
    let states = rule.states.iter().map(|s| KernelState { state: s.clone(), masked: true }).collect();
    Ok(InStep { name: f.name.clone(), function: inner, callees: vec![], per, states, kept: kept.len() })
}

/// A feature map for a rule that maps within its step: the vector itself, or sums of it where the number of features differs.
fn stand_in(rule: &Program) -> Program {
    let (from, to) = phi_sizes(rule).into_iter().next().unwrap_or((1, 1));
    let node = |op, operands: &[NodeId]| Node { op, operands: operands.to_vec(), span: Span::default() };
    let mut nodes = vec![node(Op::Argument { index: 0 }, &[])];
    if from != to {
        nodes.push(node(Op::Full { shape: vec![to, from], value: 1.0 }, &[]));
        nodes.push(node(Op::MatVec, &[1, 0]));
    }
    let output = Output { name: "features".into(), node: nodes.len() as NodeId - 1 };
    let x = Argument { name: "x".into(), ty: TensorType::float(&[from]).into() };
    let function = Function { name: "features".into(), arguments: vec![x], nodes, outputs: vec![output], ..Function::default() };
    Program {
        kind: Kind::FeatureMap,
        functions: vec![function],
        entries: vec![(entry::KEY.into(), 0), (entry::QUERY.into(), 0)],
        inputs: vec![],
        states: vec![],
        slots: vec![],
        files: vec![],
        ..rule.clone()
    }
}
