//! How a function of a rule is walked: what is computed once, for all steps, in the step, and afterwards.

use anyhow::Result;
use fwp_program::{Separation, When};
use fwp_sdk::program::{Argument, Function, Node, NodeId, Op, Output, Program, Span, State, TensorType, Type};

use super::choose::Made;

/// A function of a rule, scheduled.
pub struct StepPlan {
    /// The function.
    pub function: Function,
    /// The states that it walks with.
    pub states: Vec<WalkState>,
    /// When each node is computed.
    pub when: Vec<When>,
    /// How each node of the step is computed.
    pub work: Vec<Work>,
    /// Whether the steps' values of each node are kept for outputs or for nodes computed afterwards.
    pub kept: Vec<bool>,
    /// Nodes computed before the walk that the steps read.
    pub crossing: Vec<usize>,
    /// The node of every state's next value.
    pub next: Vec<usize>,
    /// Whether anything asks for the step's index.
    pub uses_index: bool,
    /// Elements that one step computes for one head, for the memory estimate.
    pub step_elements: usize,
    /// Types of the nodes.
    pub types: Vec<Type>,
    /// What faster executors made of this plan.
    pub made: Made,
}

/// A state of a walk.
#[derive(Clone)]
pub struct WalkState {
    /// Its declaration.
    pub state: State,
    /// Whether a masked write leaves it alone. A copy that is made for reading follows its state at every step.
    pub masked: bool,
}

/// How a node of the step is computed.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// By its operator.
    Plain,
    /// base + sign * factor * column row^T in one operation: as separate ones it would write the whole matrix up to three times,
    /// and its backward pass as often again.
    RankOne(RankOne),
    /// Not at all: a [`Work::RankOne`] does it.
    Absorbed,
}

/// A matrix with an outer product added.
#[derive(Clone, Debug, PartialEq)]
pub struct RankOne {
    /// The matrix.
    pub base: NodeId,
    /// Scales the outer product, if anything does.
    pub factor: Option<NodeId>,
    /// Column.
    pub column: NodeId,
    /// Row.
    pub row: NodeId,
    /// 1 or -1.
    pub sign: f64,
}

impl StepPlan {
    /// Schedules a function of `program`, which need not be one of its functions but calls those.
    pub fn new(program: &Program, function: Function, states: Vec<WalkState>) -> Result<StepPlan, String> {
        let types = types_of(program, &function, &states)?;
        let when = fwp_program::schedule(&function, &types);
        Ok(StepPlan::scheduled(program, function, states, types, when))
    }

    /// As [`StepPlan::new`], with all in the steps that a kernel computes better there.
    pub fn sunk(program: &Program, function: Function, states: Vec<WalkState>) -> Result<StepPlan, String> {
        let types = types_of(program, &function, &states)?;
        let when = match states[..] {
            [] => fwp_program::stateless(&function, &types),
            _ => fwp_program::sunk(&function, &types, &fwp_program::schedule(&function, &types)),
        };
        Ok(StepPlan::scheduled(program, function, states, types, when))
    }

    fn scheduled(
        program: &Program,
        function: Function,
        states: Vec<WalkState>,
        types: Vec<Type>,
        mut when: Vec<When>,
    ) -> StepPlan {
        for (i, node) in function.nodes.iter().enumerate() {
            // The parts of a tuple are taken where the tuple is made: only tensors cross from one stage to another.
            if let (Op::Element { .. }, [tuple]) = (&node.op, &node.operands[..]) {
                when[i] = when[*tuple as usize];
            }
        }
        let mut kept = vec![false; function.nodes.len()];
        for o in function.outputs.iter().filter(|o| !is_state(o)) {
            kept[o.node as usize] = true;
        }
        for (node, w) in function.nodes.iter().zip(&when) {
            if *w == When::After {
                node.operands.iter().for_each(|o| kept[*o as usize] = true);
            }
        }
        let next: Vec<usize> = function.outputs.iter().filter(|o| is_state(o)).map(|o| o.node as usize).collect();
        let in_step = |i: usize| when[i] == When::Step;
        let reads = function.nodes.iter().enumerate().filter(|(i, _)| in_step(*i)).flat_map(|(_, n)| &n.operands);
        let mut crossing: Vec<usize> = reads.map(|o| *o as usize).chain(next.iter().copied()).filter(|o| !in_step(*o)).collect();
        crossing.sort_unstable();
        crossing.dedup();
        let work = rank_one_updates(&function, &types, &when, &kept);
        let sizes = types.iter().enumerate().filter(|(i, _)| in_step(*i) && work[*i] != Work::Absorbed);
        let step_elements = sizes.map(|(_, t)| if let Type::Tensor(t) = t { t.elements() } else { 0 }).sum();
        // A feature map that is called in the step may ask for the index too.
        let asks = |f: &Function| f.nodes.iter().any(|n| n.op == Op::StepIndex);
        let uses_index = asks(&function) || program.functions.iter().any(asks) || states.iter().any(|s| s.state.held > 1);
        let made = Made::default();
        StepPlan { function, states, when, work, kept, crossing, next, uses_index, step_elements, types, made }
    }

    /// The nodes of the step whose values are kept for every step, in order.
    pub fn kept_nodes(&self) -> impl Iterator<Item = usize> {
        (0..self.function.nodes.len()).filter(|i| self.when[*i] == When::Step && self.kept[*i])
    }
}

/// The states of a rule, as they are declared.
pub fn declared(program: &Program) -> Vec<WalkState> {
    program.states.iter().map(|s| WalkState { state: s.clone(), masked: true }).collect()
}

/// The whole step with its outputs read from the state before the step, or at the start of the step's chunk.
///
/// Chunks count from the last reset. What they read is kept in a copy of the states, which takes their values at the start of every chunk;
/// so resets, segments and carried memories need nothing of their own.
pub fn read_earlier(program: &Program, step: &Function, apart: &Separation, chunk: usize) -> Result<StepPlan, String> {
    let mut states = declared(program);
    let mut f = Function { name: step.name.clone(), nodes: Vec::new(), outputs: Vec::new(), ..step.clone() };
    let place = |name: &str| step.arguments.iter().position(|a| a.name == name).unwrap_or_default() as u32;
    let mut push = |op: Op, operands: Vec<NodeId>, span: Span| -> NodeId {
        f.nodes.push(Node { op, operands, span });
        f.nodes.len() as NodeId - 1
    };
    let written = copied(&apart.write, &place, &mut push, |_| None);
    let mut seen: Vec<Option<NodeId>> = vec![None; program.states.len()];
    if chunk > 1 {
        let mut used: Vec<usize> = apart.read.nodes.iter().filter_map(|n| state_index(&n.op)).collect();
        used.sort_unstable();
        used.dedup();
        let none = Span::default();
        let index = push(Op::StepIndex, vec![], none);
        let length = push(Op::Integer { value: chunk as i64 }, vec![], none);
        let place_in_chunk = push(Op::Rem, vec![index, length], none);
        let zero = push(Op::Integer { value: 0 }, vec![], none);
        let starts = push(Op::Equal, vec![place_in_chunk, zero], none);
        for i in used {
            let now = push(Op::State { index: i as u32 }, vec![], none);
            let copy = push(Op::State { index: states.len() as u32 }, vec![], none);
            seen[i] = Some(push(Op::Select, vec![starts, now, copy], none));
            let mut state = program.states[i].clone();
            state.name = format!("{} at the start of the chunk", state.name);
            states.push(WalkState { state, masked: false });
        }
    }
    let read = copied(&apart.read, &place, &mut push, |i| seen[i]);
    let output = |name: &str, node: NodeId| Output { name: name.to_string(), node };
    f.outputs = apart.read.outputs.iter().map(|o| output(&o.name, read[o.node as usize])).collect();
    f.outputs.extend(apart.write.outputs.iter().map(|o| output(&o.name, written[o.node as usize])));
    f.outputs.extend(seen.iter().flatten().map(|node| output("state.copy", *node)));
    StepPlan::new(program, f, states)
}

/// Reading a memory along a sequence, as a walk without states: what is read of the memory are arguments that vary by sample only.
///
/// Inputs come first, and after them states under the names that [`memory_argument`] gives.
pub fn read_along(program: &Program, apart: &Separation) -> Result<StepPlan, String> {
    let mut f = Function { name: "read".into(), ..apart.read.clone() };
    let mut places: Vec<Option<u32>> = vec![None; program.states.len()];
    for node in &mut f.nodes {
        let Some(i) = state_index(&node.op) else { continue };
        let index = *places[i].get_or_insert_with(|| {
            let state = &program.states[i];
            f.arguments.push(Argument { name: memory_argument(&state.name), ty: TensorType::float(&state.shape).into() });
            f.arguments.len() as u32 - 1
        });
        node.op = Op::Argument { index };
    }
    StepPlan::new(program, f, vec![])
}

/// The name of the argument that a state is in [`read_along`].
pub fn memory_argument(state: &str) -> String {
    format!("memory.{state}")
}

/// Appends the nodes of `from`; `state` may put another node in the place of a state.
fn copied(
    from: &Function,
    place: &dyn Fn(&str) -> u32,
    push: &mut dyn FnMut(Op, Vec<NodeId>, Span) -> NodeId,
    state: impl Fn(usize) -> Option<NodeId>,
) -> Vec<NodeId> {
    let mut map: Vec<NodeId> = Vec::with_capacity(from.nodes.len());
    for node in &from.nodes {
        let op = match &node.op {
            Op::Argument { index } => Op::Argument { index: place(&from.arguments[*index as usize].name) },
            op => op.clone(),
        };
        let replaced = state_index(&op).and_then(&state);
        let operands = node.operands.iter().map(|o| map[*o as usize]).collect();
        map.push(replaced.unwrap_or_else(|| push(op, operands, node.span)));
    }
    map
}

fn state_index(op: &Op) -> Option<usize> {
    match op {
        Op::State { index } => Some(*index as usize),
        _ => None,
    }
}

fn is_state(o: &Output) -> bool {
    o.name.starts_with("state.")
}

/// Types of a function that was derived from a program.
fn types_of(program: &Program, function: &Function, states: &[WalkState]) -> Result<Vec<Type>, String> {
    let mut extended = program.clone();
    // A function that reads no state leaves the program's own, which its other functions read.
    if !states.is_empty() {
        extended.states = states.iter().map(|s| s.state.clone()).collect();
    }
    extended.functions.push(function.clone());
    let mut types = fwp_sdk::program::shape::types(&extended)?;
    Ok(types.nodes.pop().unwrap_or_default())
}

/// Finds M + f (a b^T) and M - f (a b^T) in the step, where nothing else reads the product.
fn rank_one_updates(f: &Function, types: &[Type], when: &[When], kept: &[bool]) -> Vec<Work> {
    let mut work = vec![Work::Plain; f.nodes.len()];
    let mut readers = vec![0; f.nodes.len()];
    f.nodes.iter().flat_map(|n| &n.operands).chain(f.outputs.iter().map(|o| &o.node)).for_each(|o| readers[*o as usize] += 1);
    let own = |n: NodeId| readers[n as usize] == 1 && when[n as usize] == When::Step && !kept[n as usize];
    let is_scalar = |n: NodeId| matches!(&types[n as usize], Type::Tensor(t) if t.shape.is_empty());
    // The outer product below a node, with its factor and the nodes in between.
    let product = |n: NodeId| -> Option<(RankOne, Vec<NodeId>)> {
        let node = &f.nodes[n as usize];
        let outer = |n: NodeId, factor: Option<NodeId>| match (&f.nodes[n as usize].op, &f.nodes[n as usize].operands[..]) {
            (Op::Outer, [column, row]) if own(n) => Some(RankOne { base: 0, factor, column: *column, row: *row, sign: 1.0 }),
            _ => None,
        };
        match (&node.op, &node.operands[..]) {
            (Op::Outer, _) => Some((outer(n, None)?, vec![n])),
            (Op::Mul, [a, b]) if own(n) && is_scalar(*a) => Some((outer(*b, Some(*a))?, vec![n, *b])),
            (Op::Mul, [a, b]) if own(n) && is_scalar(*b) => Some((outer(*a, Some(*b))?, vec![n, *a])),
            _ => None,
        }
    };
    for (i, node) in f.nodes.iter().enumerate().filter(|(i, _)| when[*i] == When::Step) {
        let [a, b] = node.operands[..] else { continue };
        let found = match node.op {
            Op::Add => product(b).map(|p| (a, 1.0, p)).or_else(|| product(a).map(|p| (b, 1.0, p))),
            Op::Sub => product(b).map(|p| (a, -1.0, p)),
            _ => None,
        };
        if let Some((base, sign, (update, between))) = found
            && !is_scalar(base)
        {
            work[i] = Work::RankOne(RankOne { base, sign, ..update });
            between.into_iter().for_each(|n| work[n as usize] = Work::Absorbed);
        }
    }
    work
}
