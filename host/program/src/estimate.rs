//! How much memory a model takes in training, from the types of its programs alone.

use std::collections::BTreeMap;

use fwp_sdk::program::shape::{self, Types};
use fwp_sdk::program::{DType, Function, Op, Program, Training, Type, entry};

use crate::check::MAX_DEPTH;
use crate::gradient::expand_gradients;
use crate::model::ModelPrograms;
use crate::schedule::{When, is_view, schedule};

/// What training needs with the reference executor. An estimate: what the tensor library rounds up or keeps for itself is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Number of parameter elements.
    pub parameters: u64,
    /// Bytes of the parameters.
    pub parameter_bytes: u64,
    /// Bytes of the gradients of the trained parameters.
    pub gradient_bytes: u64,
    /// Bytes of the optimiser's two moments of every trained parameter.
    pub optimiser_bytes: u64,
    /// Bytes kept for the backward pass of one batch, when nothing is recomputed.
    pub activation_bytes: u64,
    /// Bytes of all fast-weight states of one batch at one step.
    pub states_bytes_per_step: u64,
}

impl Estimate {
    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        [self.parameter_bytes, self.gradient_bytes, self.optimiser_bytes, self.activation_bytes]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// Estimates the memory of training `model` with `batch` sequences whose axes have these lengths.
///
/// Every float result of an operation is counted for every sequence, step, head and repetition; views of other results are not.
/// An axis whose length is not given has the largest given one. A program with a mistake counts nothing: check it first.
pub fn estimate(model: &ModelPrograms, batch: usize, lengths: &BTreeMap<String, usize>, bytes_per_element: usize) -> Estimate {
    let bytes = bytes_per_element as u64;
    let mut e = Estimate::default();
    for p in model.parameters().unwrap_or_default() {
        let n = product(&p.shape);
        e.parameters = e.parameters.saturating_add(n);
        if matches!(p.training, Training::Trained { .. }) {
            e.gradient_bytes = e.gradient_bytes.saturating_add(n.saturating_mul(bytes));
        }
    }
    e.parameter_bytes = e.parameters.saturating_mul(bytes);
    e.optimiser_bytes = e.gradient_bytes.saturating_mul(2);
    let longest = lengths.values().copied().max().unwrap_or(1);
    let slots = model.slots.iter().map(|s| Slot::of(model, s)).collect();
    let mut counter = Counter { model, lengths, longest, slots, states: 0, active: Vec::new() };
    if let (Ok(types), Some((_, index))) = (shape::types(&model.net), model.net.entries.iter().find(|(n, _)| n == entry::FORWARD))
    {
        let elements = counter.net(&model.net, &types, *index as usize, 1, 0);
        let scale = (batch as u64).saturating_mul(bytes);
        e.activation_bytes = elements.saturating_mul(scale);
        e.states_bytes_per_step = counter.states.saturating_mul(scale);
    }
    e
}

fn product(shape: &[usize]) -> u64 {
    shape.iter().fold(1u64, |n, s| n.saturating_mul(*s as u64))
}

/// What one fast-weight step of one slot takes, in elements of one sequence and all heads.
#[derive(Clone, Copy, Default)]
struct Slot {
    step: u64,
    states: u64,
}

impl Slot {
    fn of(model: &ModelPrograms, slot: &crate::model::SlotPrograms) -> Slot {
        let Some(interface) = model.net.slots.iter().find(|s| s.name == slot.name) else { return Slot::default() };
        let heads = interface.heads as u64;
        let Ok(rule) = expand_gradients(&slot.rule) else { return Slot::default() };
        let step = own_elements(&rule, entry::STEP, true).saturating_mul(heads);
        let states = rule.states.iter().map(|s| product(&s.shape)).fold(0, u64::saturating_add).saturating_mul(heads);
        let mapped: u64 = rule
            .inputs
            .iter()
            .filter(|i| i.mapped())
            .map(|i| {
                let which = if i.role == fwp_sdk::program::Role::Query { entry::QUERY } else { entry::KEY };
                let each = own_elements(&slot.map, which, false);
                let vectors = product(&i.full_shape()) / (i.shape.last().copied().unwrap_or(1).max(1) as u64);
                each.saturating_mul(vectors).saturating_mul(i.heads.unwrap_or(interface.heads) as u64)
            })
            .fold(0, u64::saturating_add);
        Slot { step: step.saturating_add(mapped), states }
    }
}

/// Elements that one run of an entry makes; in a step, without what is computed only once.
fn own_elements(p: &Program, name: &str, step: bool) -> u64 {
    let (Ok(types), Some((_, index))) = (shape::types(p), p.entries.iter().find(|(n, _)| n == name)) else { return 0 };
    let f = &p.functions[*index as usize];
    let when = if step { schedule(f, &types.nodes[*index as usize]) } else { vec![When::AllSteps; f.nodes.len()] };
    let counts = made(p, &types);
    f.nodes
        .iter()
        .enumerate()
        .filter(|(i, _)| when[*i] != When::Once)
        .map(|(i, _)| node_elements(f, i, &types.nodes[*index as usize], &counts))
        .fold(0, u64::saturating_add)
}

/// Elements that one run of every function makes.
fn made(p: &Program, types: &Types) -> Vec<u64> {
    let mut counts: Vec<u64> = Vec::new();
    for (f, types) in p.functions.iter().zip(&types.nodes) {
        let n = (0..f.nodes.len()).map(|i| node_elements(f, i, types, &counts)).fold(0, u64::saturating_add);
        counts.push(n);
    }
    counts
}

fn node_elements(f: &Function, i: usize, types: &[Type], counts: &[u64]) -> u64 {
    match (&f.nodes[i].op, &types[i]) {
        (Op::Call { function, .. }, _) => counts.get(*function as usize).copied().unwrap_or(0),
        (Op::Loop { function, count, .. }, _) => {
            counts.get(*function as usize).copied().unwrap_or(0).saturating_mul(*count as u64)
        }
        (op, Type::Tensor(t)) if t.dtype == DType::Float && makes(op) => product(&t.shape),
        _ => 0,
    }
}

/// Whether an operator makes a value of its own that a backward pass may need.
fn makes(op: &Op) -> bool {
    !is_view(op)
        && !matches!(
            op,
            Op::Argument { .. }
                | Op::Parameter { .. }
                | Op::State { .. }
                | Op::Constant { .. }
                | Op::Table { .. }
                | Op::Full { .. }
                | Op::Eye { .. }
                | Op::StopGradient
                | Op::Along
        )
}

struct Counter<'a> {
    model: &'a ModelPrograms,
    lengths: &'a BTreeMap<String, usize>,
    longest: usize,
    slots: Vec<Slot>,
    /// Elements of all states.
    states: u64,
    /// Names and slots of the memories that were counted.
    active: Vec<(String, String)>,
}

impl Counter<'_> {
    fn length(&self, ty: &Type) -> u64 {
        match ty {
            Type::Tensor(t) => match &t.axis {
                Some(axis) => self.lengths.get(axis).copied().unwrap_or(self.longest) as u64,
                None => 1,
            },
            Type::Tuple(parts) => parts.iter().map(|t| self.length(t)).max().unwrap_or(1),
            Type::Memory(_) => 1,
        }
    }

    /// Elements of one sequence that a function of the net makes; `times` is how often it runs.
    fn net(&mut self, p: &Program, types: &Types, index: usize, times: u64, depth: usize) -> u64 {
        let (Some(f), Some(nodes)) = (p.functions.get(index), types.nodes.get(index)) else { return 0 };
        if depth > MAX_DEPTH {
            return 0;
        }
        let mut sum = 0u64;
        for (i, node) in f.nodes.iter().enumerate() {
            let along = |c: &Self| node.operands.iter().map(|o| c.length(&nodes[*o as usize])).max().unwrap_or(1);
            let n = match &node.op {
                Op::Call { function, .. } => self.net(p, types, *function as usize, times, depth + 1),
                Op::Loop { function, count, .. } | Op::Blocks { function, count, .. } => {
                    let count = *count as u64;
                    let once = self.net(p, types, *function as usize, times.saturating_mul(count), depth + 1);
                    once.saturating_mul(count)
                }
                Op::Scan { function, .. } => {
                    let once = self.net(p, types, *function as usize, times, depth + 1);
                    once.saturating_mul(along(self))
                }
                Op::FastWeights { slot, name, .. } | Op::FastWrite { slot, name, .. } | Op::FastRead { slot, name, .. } => {
                    let found = self.model.slot(slot).map(|(s, _)| self.slots[s]).unwrap_or_default();
                    if !self.active.contains(&(name.clone(), slot.clone())) || matches!(node.op, Op::FastWeights { .. }) {
                        self.active.push((name.clone(), slot.clone()));
                        self.states = self.states.saturating_add(found.states.saturating_mul(times));
                    }
                    found.step.saturating_mul(along(self))
                }
                Op::Attention { .. } => {
                    let Type::Tensor(t) = &nodes[i] else { continue };
                    let heads = t.shape.first().copied().unwrap_or(1) as u64;
                    let (rows, columns) = (self.length(&nodes[i]), self.length(&nodes[node.operands[1] as usize]));
                    let weights = heads.saturating_mul(rows).saturating_mul(columns);
                    product(&t.shape).saturating_mul(rows).saturating_add(weights)
                }
                op => match &nodes[i] {
                    Type::Tensor(t) if t.dtype == DType::Float && makes(op) => {
                        product(&t.shape).saturating_mul(self.length(&nodes[i]))
                    }
                    _ => 0,
                },
            };
            sum = sum.saturating_add(n);
        }
        sum
    }
}
