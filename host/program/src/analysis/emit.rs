//! Expressions as the nodes of a function, in an order that follows from the results alone.

use std::collections::HashMap;

use fwp_sdk::program::{Argument, Function, Node, NodeId, Op, Output, Parameter, Span};

use super::store::{Id, Kind, Store};

/// What becomes of a read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leaf {
    /// An argument of the function.
    Argument(u32),
    /// The state itself.
    State(u32),
    /// Another expression: the value of the state there.
    Value(Id),
    /// The inner product of two other expressions.
    Dot(Id, Id),
}

/// The function that computes expressions, given what its reads are.
///
/// # Errors
/// The read that nothing was said of.
pub(super) fn function(
    store: &Store<'_>,
    name: &str,
    arguments: Vec<Argument>,
    parameters: &[Parameter],
    results: &[(String, Id)],
    leaves: &HashMap<Id, Leaf>,
) -> Result<Function, Id> {
    let mut e = Emitter { store, leaves, nodes: Vec::new(), map: HashMap::new(), known: HashMap::new() };
    let mut outputs = Vec::new();
    for (name, id) in results {
        outputs.push(Output { name: name.clone(), node: e.emit(*id)? });
    }
    let (nodes, parameters) = with_used(e.nodes, parameters);
    Ok(Function { name: name.into(), arguments, parameters, nodes, outputs })
}

/// The parameters that are used, and the nodes with their new numbers.
fn with_used(mut nodes: Vec<Node>, parameters: &[Parameter]) -> (Vec<Node>, Vec<Parameter>) {
    let mut used: Vec<u32> =
        nodes.iter().filter_map(|n| if let Op::Parameter { index } = n.op { Some(index) } else { None }).collect();
    used.sort_unstable();
    used.dedup();
    for n in &mut nodes {
        if let Op::Parameter { index } = &mut n.op {
            *index = used.binary_search(index).unwrap_or_default() as u32;
        }
    }
    (nodes, used.iter().filter_map(|i| parameters.get(*i as usize).cloned()).collect())
}

struct Emitter<'s, 'a> {
    store: &'s Store<'a>,
    leaves: &'s HashMap<Id, Leaf>,
    nodes: Vec<Node>,
    map: HashMap<Id, NodeId>,
    /// Nodes by what they are: an expression's parts may meet those of another.
    known: HashMap<(u16, Vec<NodeId>), Vec<NodeId>>,
}

impl Emitter<'_, '_> {
    fn push(&mut self, op: Op, operands: &[NodeId]) -> NodeId {
        let alike = self.known.entry((op.code(), operands.to_vec())).or_default();
        if let Some(found) = alike.iter().find(|n| self.nodes[**n as usize].op == op) {
            return *found;
        }
        let id = self.nodes.len() as NodeId;
        alike.push(id);
        self.nodes.push(Node { op, operands: operands.to_vec(), span: Span::default() });
        id
    }

    fn constant(&mut self, value: f64) -> NodeId {
        self.push(Op::Constant { value }, &[])
    }

    fn emit(&mut self, id: Id) -> Result<NodeId, Id> {
        if let Some(n) = self.map.get(&id) {
            return Ok(*n);
        }
        let n = match self.store.kind(id) {
            Kind::Op(op, operands) => {
                let nodes: Vec<NodeId> = operands.iter().map(|o| self.emit(*o)).collect::<Result<_, _>>()?;
                self.push(op.clone(), &nodes)
            }
            Kind::Sum(constant, terms) => {
                let mut sum = (*constant != 0.0).then(|| self.constant(*constant));
                for (c, t) in terms {
                    let mut x = self.emit(*t)?;
                    if c.abs() != 1.0 {
                        let factor = self.constant(c.abs());
                        x = self.push(Op::Mul, &[factor, x]);
                    }
                    sum = Some(match (sum, *c < 0.0) {
                        (Some(sum), false) => self.push(Op::Add, &[sum, x]),
                        (Some(sum), true) => self.push(Op::Sub, &[sum, x]),
                        (None, false) => x,
                        (None, true) => self.push(Op::Neg, &[x]),
                    });
                }
                sum.ok_or(id)?
            }
            Kind::Product(constant, over, under) => {
                let scalars = |list: &[Id], want: bool| -> Vec<Id> {
                    list.iter().copied().filter(|i| self.store.is_scalar(*i) == want).collect()
                };
                // Scalars are multiplied before they meet tensors.
                let (over_s, over_t) = (scalars(over, true), scalars(over, false));
                let (under_s, under_t) = (scalars(under, true), scalars(under, false));
                let scalar = self.quotient(*constant, None, &over_s, &under_s)?;
                match scalar {
                    Some(s) if over_t.is_empty() && under_t.is_empty() => s,
                    scalar => {
                        self.quotient(if scalar.is_some() { 1.0 } else { *constant }, scalar, &over_t, &under_t)?.ok_or(id)?
                    }
                }
            }
            Kind::Read(_) => match *self.leaves.get(&id).ok_or(id)? {
                Leaf::Argument(index) => self.push(Op::Argument { index }, &[]),
                Leaf::State(index) => self.push(Op::State { index }, &[]),
                Leaf::Value(other) => self.emit(other)?,
                Leaf::Dot(a, b) => {
                    let (a, b) = (self.emit(a)?, self.emit(b)?);
                    self.push(Op::Dot, &[a, b])
                }
            },
        };
        self.map.insert(id, n);
        Ok(n)
    }

    /// constant * first * over / under; none where both lists are empty and there is no first.
    fn quotient(&mut self, constant: f64, first: Option<NodeId>, over: &[Id], under: &[Id]) -> Result<Option<NodeId>, Id> {
        let product = |me: &mut Self, list: &[Id]| -> Result<Option<NodeId>, Id> {
            let mut y = None;
            let mut i = 0;
            while i < list.len() {
                let x = me.emit(list[i])?;
                let twice = list.get(i + 1) == Some(&list[i]);
                let x = if twice { me.push(Op::Square, &[x]) } else { x };
                y = Some(match y {
                    Some(y) => me.push(Op::Mul, &[y, x]),
                    None => x,
                });
                i += 1 + usize::from(twice);
            }
            Ok(y)
        };
        let top = product(self, over)?;
        let bottom = product(self, under)?;
        if top.is_none() && bottom.is_none() {
            return Ok(first);
        }
        let mut y = match (first, top) {
            (Some(a), Some(b)) => Some(self.push(Op::Mul, &[a, b])),
            (a, b) => a.or(b),
        };
        if constant != 1.0 || y.is_none() {
            y = Some(match y {
                Some(y) if constant == -1.0 => self.push(Op::Neg, &[y]),
                Some(y) if constant != 1.0 => {
                    let c = self.constant(constant);
                    self.push(Op::Mul, &[c, y])
                }
                Some(y) => y,
                None => self.constant(constant),
            });
        }
        if let (Some(top), Some(bottom)) = (y, bottom) {
            y = Some(self.push(Op::Div, &[top, bottom]));
        }
        Ok(y)
    }
}
