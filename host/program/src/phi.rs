//! The rule with the feature map put in: for `phi`, and around its inputs.

use fwp_sdk::program::shape;
use fwp_sdk::program::{Function, MapRole, Node, NodeId, Op, Program, Role, Span, Type, entry};

use crate::error::{CheckError, Problem};
use crate::graph::sizes;

/// A rule in which every `phi` is a call of the map's function, so that gradients can pass through it.
///
/// The map's parameters appear below `feature_map.`, where the model has them already.
/// A rule without `phi` comes back as it was.
pub fn with_feature_map(rule: &Program, map: &Program) -> Result<Program, CheckError> {
    if !rule.functions.iter().flat_map(|f| &f.nodes).any(|n| matches!(n.op, Op::Phi { .. })) {
        return Ok(rule.clone());
    }
    let types = shape::types(rule).map_err(|e| CheckError::new(rule, Problem::Shape(e)))?;
    let function = |name: &'static str| {
        let found = map.entries.iter().find(|(n, _)| n == name).map(|(_, i)| *i);
        found.ok_or_else(|| CheckError::new(map, Problem::MissingEntry(name)))
    };
    let (key, query) = (function(entry::KEY)?, function(entry::QUERY)?);
    let mut out = rule.clone();
    let shift = map.functions.len() as u32;
    let files = rule.files.len() as u32;
    out.files.extend(map.files.iter().cloned());
    out.functions = map.functions.clone();
    for f in &mut out.functions {
        f.nodes.iter_mut().for_each(|n| n.span.file += files);
    }
    for (f, types) in rule.functions.iter().zip(&types.nodes) {
        let mut g = Function { nodes: Vec::new(), ..f.clone() };
        g.parameters.iter_mut().for_each(|p| p.init += shift);
        let mut place: Vec<NodeId> = Vec::new();
        for node in &f.nodes {
            let operands: Vec<NodeId> = node.operands.iter().map(|o| place[*o as usize]).collect();
            let last = match &node.op {
                Op::Phi { role, size } => {
                    let called = if *role == MapRole::Query { query } else { key };
                    apply(&mut g, operands[0], sizes(&types[node.operands[0] as usize]), called, *size, node.span)
                }
                op => add(&mut g, shifted(op, shift), operands, node.span),
            };
            place.push(last);
        }
        g.outputs.iter_mut().for_each(|o| o.node = place[o.node as usize]);
        out.functions.push(g);
    }
    out.entries.iter_mut().for_each(|(_, i)| *i += shift);
    shape::types(&out).map_err(|e| CheckError::new(rule, Problem::Shape(e)))?;
    Ok(out)
}

/// A function of a rule that maps its inputs itself: keys and queries come as they are before the feature map,
/// and queries are multiplied by `scale` after it. Gives the program that the function calls into, too.
///
/// Of a function without mapped inputs it is a copy.
pub fn with_mapped_inputs(
    rule: &Program,
    map: &Program,
    f: &Function,
    scale: Option<f64>,
) -> Result<(Program, Function), CheckError> {
    let from = map.entry(entry::KEY).ok_or_else(|| CheckError::new(map, Problem::MissingEntry(entry::KEY)))?;
    let mut g = Function { nodes: Vec::new(), ..f.clone() };
    let mut place: Vec<NodeId> = Vec::new();
    for node in &f.nodes {
        let operands: Vec<NodeId> = node.operands.iter().map(|o| place[*o as usize]).collect();
        let mut last = add(&mut g, node.op.clone(), operands, node.span);
        if let Op::Argument { index } = node.op
            && let Some(input) = rule.inputs.iter().find(|i| i.name == f.arguments[index as usize].name)
        {
            let query = input.role == Role::Query;
            if input.mapped()
                && let (Type::Tensor(raw), Type::Tensor(own)) = (&from.arguments[0].ty, &mut g.arguments[index as usize].ty)
                && let (Some(size), Some(d)) = (own.shape.last_mut(), raw.shape.last())
            {
                let role = if query { MapRole::Query } else { MapRole::Key };
                let phi = Op::Phi { role, size: *size };
                *size = *d;
                last = add(&mut g, phi, vec![last], node.span);
            }
            if let Some(scale) = scale.filter(|_| query) {
                let by = add(&mut g, Op::Constant { value: scale }, vec![], node.span);
                last = add(&mut g, Op::Mul, vec![last, by], node.span);
            }
        }
        place.push(last);
    }
    g.outputs.iter_mut().for_each(|o| o.node = place[o.node as usize]);
    let mut out = rule.clone();
    out.functions.push(g);
    let mut out = with_feature_map(&out, map)?;
    // Functions keep their order, so the last is still this one.
    let function = out.functions.pop().unwrap_or_default();
    Ok((out, function))
}

fn add(g: &mut Function, op: Op, operands: Vec<NodeId>, span: Span) -> NodeId {
    g.nodes.push(Node { op, operands, span });
    g.nodes.len() as NodeId - 1
}

/// The map's function on every row of `x`.
fn apply(g: &mut Function, x: NodeId, shape: &[usize], function: u32, size: usize, span: Span) -> NodeId {
    let call = |g: &mut Function, row: NodeId| {
        let all = add(g, Op::Call { function, name: "feature_map".into() }, vec![row], span);
        add(g, Op::Element { index: 0 }, vec![all], span)
    };
    if shape.len() <= 1 {
        return call(g, x);
    }
    let d = shape[shape.len() - 1];
    let rows: usize = shape[..shape.len() - 1].iter().product();
    let flat = add(g, Op::Reshape { shape: vec![rows, d] }, vec![x], span);
    let mapped: Vec<NodeId> = (0..rows)
        .map(|start| {
            let row = add(g, Op::Slice { axis: 0, start, length: 1 }, vec![flat], span);
            let row = add(g, Op::Reshape { shape: vec![d] }, vec![row], span);
            let y = call(g, row);
            add(g, Op::Reshape { shape: vec![1, size] }, vec![y], span)
        })
        .collect();
    let all = add(g, Op::Concat { axis: 0 }, mapped, span);
    let mut whole = shape.to_vec();
    whole[shape.len() - 1] = size;
    add(g, Op::Reshape { shape: whole }, vec![all], span)
}

/// The operator with calls pointing behind the map's functions.
fn shifted(op: &Op, by: u32) -> Op {
    let mut op = op.clone();
    match &mut op {
        Op::Call { function, .. } | Op::Loop { function, .. } | Op::Blocks { function, .. } | Op::Scan { function, .. } => {
            *function += by;
        }
        _ => {}
    }
    op
}
