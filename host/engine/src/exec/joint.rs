//! Nodes of a function that are carried out together, because one pass over memory does the work of several.
//!
//! | nodes | as |
//! |---|---|
//! | causal convolution, then SiLU | [`Step::ConvSilu`] |
//! | a normalisation over the last axis, then a product with a vector (repeated over the axes before) | [`Step::Gain`] |
//! | SiLU, then a product | [`Step::Gate`] |
//! | products of parameters with the same vector | [`Step::Linear`] |
//! | a product of a matrix with a vector, then a sum with a vector that varies alike | [`Step::Onto`] |
//! | rows of tables and one-hot vectors, joined to one vector, then a product with a matrix, then perhaps a bias | [`Step::Lookup`] |
//!
//! What is taken into its user has no other user and is no result: nobody sees it apart.
//! Only what is looked up may have other users, for whom it is looked up too, and products of the same vector stay what they are, side by side.
//! What a plugin describes stays as it is, and so do the names under which values are carried over.

use std::collections::BTreeMap;

use fwp_sdk::program::{DType, Function, NodeId, Op, Type};

use super::lookup::{Form, Part};

/// What is done at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its operator.
    Alone,
    /// Nothing: its one user does it.
    WithUser,
    /// The convolution `conv`, then SiLU.
    ConvSilu {
        /// The convolution.
        conv: NodeId,
    },
    /// The normalisation `norm`, times a vector.
    Gain {
        /// The normalisation.
        norm: NodeId,
    },
    /// a sigmoid(a) b.
    Gate,
    /// The product of a matrix with a vector, added to a third operand.
    Onto,
    /// A linear map of what is looked up.
    Lookup(Form),
    /// A product of a matrix with a vector, and at the same time those at these nodes, which come later.
    Linear(Vec<NodeId>),
}

/// The steps of a function, node by node.
pub struct Steps {
    /// What is done at each node.
    pub steps: Vec<Step>,
    /// On which nodes.
    pub operands: Vec<Vec<NodeId>>,
    /// All nodes in the order in which they are carried out: parameters first, for whatever needs them early.
    pub order: Vec<NodeId>,
}

impl Steps {
    /// Every node by itself.
    pub fn apart(f: &Function) -> Steps {
        let operands = f.nodes.iter().map(|n| n.operands.clone()).collect();
        let mut order: Vec<NodeId> = (0..f.nodes.len() as NodeId).collect();
        order.sort_by_key(|n| !matches!(f.nodes[*n as usize].op, Op::Parameter { .. }));
        Steps { steps: vec![Step::Alone; f.nodes.len()], operands, order }
    }

    /// Joined where one pass serves; `types` are those of the nodes.
    pub fn joint(f: &Function, types: &[Type]) -> Steps {
        let mut made = Steps::apart(f);
        let mut uses = vec![0u32; f.nodes.len()];
        f.nodes.iter().flat_map(|n| &n.operands).for_each(|o| uses[*o as usize] += 1);
        f.outputs.iter().for_each(|o| uses[o.node as usize] += 1);
        let mut looked_up = Vec::new();
        for (i, node) in f.nodes.iter().enumerate() {
            let op = |n: NodeId| &f.nodes[n as usize].op;
            let free = |n: NodeId| uses[n as usize] == 1 && made.steps[n as usize] == Step::Alone;
            // A product in either order.
            let pairs = || match node.operands[..] {
                [a, b] if node.op == Op::Mul => vec![(a, b), (b, a)],
                _ => vec![],
            };
            let gain = |(norm, by): (NodeId, NodeId)| {
                let is_norm = matches!(op(norm), Op::RmsNorm { .. } | Op::L2Normalise { .. } | Op::SumNormalise { .. });
                Some((norm, repeated_vector(f, types, by)?)).filter(|_| is_norm && free(norm))
            };
            let operands_of = |n: NodeId| f.nodes[n as usize].operands.clone();
            let found = if let ([conv], Op::Silu) = (&node.operands[..], &node.op) {
                (free(*conv) && *op(*conv) == Op::CausalConv).then(|| (Step::ConvSilu { conv: *conv }, *conv, operands_of(*conv)))
            } else if let Some((norm, by)) = pairs().into_iter().find_map(gain) {
                Some((Step::Gain { norm }, norm, vec![operands_of(norm)[0], by]))
            } else if let Some((lookup, operands, inside)) = looked_up_product(f, types, i) {
                looked_up.extend(inside);
                made.steps[i] = Step::Lookup(lookup);
                made.operands[i] = operands;
                None
            } else if let Some((product, bias)) = sum_with_bias(f, types, i)
                && let (1, Step::Lookup(form)) = (uses[product as usize], &made.steps[product as usize])
            {
                let (form, mut operands) = (Form { bias: true, ..form.clone() }, made.operands[product as usize].clone());
                operands.insert(1, bias);
                Some((Step::Lookup(form), product, operands))
            } else if let Some((product, base)) = sum_with_product(f, types, i).into_iter().find(|(p, _)| free(*p)) {
                let [weight, x] = operands_of(product)[..] else { continue };
                Some((Step::Onto, product, vec![base, weight, x]))
            } else {
                let gate = pairs().into_iter().find(|(a, _)| free(*a) && *op(*a) == Op::Silu);
                gate.map(|(silu, by)| (Step::Gate, silu, vec![operands_of(silu)[0], by]))
            };
            if let Some((step, first, operands)) = found {
                made.steps[first as usize] = Step::WithUser;
                made.operands[first as usize].clear();
                made.steps[i] = step;
                made.operands[i] = operands;
            }
        }
        made.leave_out(f, looked_up);
        made.side_by_side(f, types);
        made
    }

    /// Joins products of parameters with the same vector.
    fn side_by_side(&mut self, f: &Function, types: &[Type]) {
        let mut of_vector: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for (i, node) in f.nodes.iter().enumerate() {
            if let (Op::MatVec, Step::Alone, [weight, x]) = (&node.op, &self.steps[i], &node.operands[..])
                && matches!(f.nodes[*weight as usize].op, Op::Parameter { .. })
                && fixed(&types[*weight as usize]).is_some()
            {
                of_vector.entry(*x).or_default().push(i as NodeId);
            }
        }
        for products in of_vector.into_values().filter(|p| p.len() > 1) {
            self.steps[products[0] as usize] = Step::Linear(products[1..].to_vec());
        }
    }

    /// Leaves out those of these nodes that nobody asks for any more.
    fn leave_out(&mut self, f: &Function, mut nodes: Vec<NodeId>) {
        let mut uses = vec![0u32; f.nodes.len()];
        self.operands.iter().flatten().chain(f.outputs.iter().map(|o| &o.node)).for_each(|o| uses[*o as usize] += 1);
        // Users come behind what they use.
        nodes.sort_unstable_by(|a, b| b.cmp(a));
        nodes.dedup();
        for node in nodes.into_iter().map(|n| n as usize) {
            if uses[node] == 0 && self.steps[node] == Step::Alone {
                self.steps[node] = Step::WithUser;
                self.operands[node].drain(..).for_each(|o| uses[o as usize] -= 1);
            }
        }
    }
}

/// Sizes of a float that does not vary along an axis.
fn fixed(ty: &Type) -> Option<&[usize]> {
    match ty {
        Type::Tensor(t) if t.dtype == DType::Float && t.axis.is_none() => Some(&t.shape),
        _ => None,
    }
}

/// A product of a matrix with what is looked up: its form, its operands, and the nodes that it takes apart.
fn looked_up_product(f: &Function, types: &[Type], node: usize) -> Option<(Form, Vec<NodeId>, Vec<NodeId>)> {
    let (Op::MatVec, [weight, x]) = (&f.nodes[node].op, &f.nodes[node].operands[..]) else { return None };
    fixed(&types[*weight as usize]).filter(|shape| shape.len() == 2)?;
    let (mut inside, mut operands, mut parts) = (vec![*x], vec![*weight], Vec::new());
    let joined = match &f.nodes[*x as usize].op {
        Op::Concat { axis: 0 } => &f.nodes[*x as usize].operands[..],
        _ => std::slice::from_ref(x),
    };
    for part in joined {
        let from = &f.nodes[*part as usize];
        let index = *from.operands.last()?;
        if !matches!(&types[index as usize], Type::Tensor(t) if t.shape.is_empty()) {
            return None;
        }
        parts.push(match (&from.op, &from.operands[..]) {
            (Op::OneHot { size }, _) => Part::OneHot(*size),
            (Op::Gather, [table, _]) if fixed(&types[*table as usize])?.len() == 2 => Part::Row,
            _ => return None,
        });
        operands.extend(&from.operands);
        inside.push(*part);
    }
    Some((Form { parts, bias: false }, operands, inside))
}

/// The operands of a sum of which the second is a vector that is the same everywhere.
fn sum_with_bias(f: &Function, types: &[Type], node: usize) -> Option<(NodeId, NodeId)> {
    let (Op::Add, [a, b]) = (&f.nodes[node].op, &f.nodes[node].operands[..]) else { return None };
    let is_bias = |n: &NodeId| fixed(&types[*n as usize]).is_some_and(|shape| shape.len() == 1);
    let product = |n: &NodeId| f.nodes[*n as usize].op == Op::MatVec;
    [(a, b), (b, a)].into_iter().find(|(x, bias)| product(x) && is_bias(bias)).map(|(x, bias)| (*x, *bias))
}

/// The operands of a sum of which the first is a product of a matrix that does not vary with a vector, and the other varies as the product does.
fn sum_with_product(f: &Function, types: &[Type], node: usize) -> Vec<(NodeId, NodeId)> {
    let (Op::Add, [a, b]) = (&f.nodes[node].op, &f.nodes[node].operands[..]) else { return vec![] };
    let served = |n: NodeId| {
        let of = &f.nodes[n as usize];
        of.op == Op::MatVec && fixed(&types[of.operands[0] as usize]).is_some()
    };
    let alike = types[*a as usize] == types[*b as usize];
    [(*b, *a), (*a, *b)].into_iter().filter(|(product, _)| alike && served(*product)).collect()
}

/// The vector that a value is, or repeats over the axes before the last.
fn repeated_vector(f: &Function, types: &[Type], mut node: NodeId) -> Option<NodeId> {
    loop {
        let n = &f.nodes[node as usize];
        match (&types[node as usize], &n.op) {
            (Type::Tensor(t), _) if t.shape.len() == 1 && t.axis.is_none() => return Some(node),
            (Type::Tensor(t), Op::Expand { axis, .. }) if axis + 1 < t.shape.len() => node = n.operands[0],
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use fwp_sdk::program::{Node, Output, Span, TensorType};

    use super::*;

    #[test]
    fn only_what_nobody_else_sees_is_joined() {
        let (conv, norm, repeat) = (Op::CausalConv, Op::RmsNorm { eps: 1e-6 }, Op::Expand { axis: 0, size: 2 });
        let nodes: Vec<(Op, Vec<NodeId>, &[usize])> = vec![
            (Op::Argument { index: 0 }, vec![], &[2, 4]),
            (Op::Parameter { index: 0 }, vec![], &[4, 3]),
            (conv.clone(), vec![0, 1], &[2, 4]),
            (Op::Silu, vec![2], &[2, 4]),
            (norm.clone(), vec![3], &[2, 4]),
            (Op::Parameter { index: 1 }, vec![], &[4]),
            (repeat, vec![5], &[2, 4]),
            (Op::Mul, vec![6, 4], &[2, 4]),
            (Op::Silu, vec![7], &[2, 4]),
            (Op::Mul, vec![8, 3], &[2, 4]),
            // A result, a second user, and a product that is no gain.
            (conv, vec![9, 1], &[2, 4]),
            (Op::Silu, vec![10], &[2, 4]),
            (norm.clone(), vec![9], &[2, 4]),
            (Op::Mul, vec![12, 6], &[2, 4]),
            (Op::Mul, vec![12, 13], &[2, 4]),
            (norm, vec![9], &[2, 4]),
            (Op::Mul, vec![15, 9], &[2, 4]),
        ];
        let types: Vec<Type> = nodes.iter().map(|(_, _, shape)| Type::Tensor(TensorType::float(shape))).collect();
        let nodes = nodes.into_iter().map(|(op, operands, _)| Node { op, operands, span: Span::default() }).collect();
        let outputs = [10, 11, 14, 16].map(|node| Output { name: String::new(), node }).to_vec();
        let f = Function { name: "f".into(), arguments: vec![], parameters: vec![], nodes, outputs };
        let made = Steps::joint(&f, &types);
        let joined: Vec<(usize, Step)> = made.steps.iter().cloned().enumerate().filter(|(_, s)| *s != Step::Alone).collect();
        let expected = [
            (2, Step::WithUser),
            (3, Step::ConvSilu { conv: 2 }),
            (4, Step::WithUser),
            (7, Step::Gain { norm: 4 }),
            (8, Step::WithUser),
            (9, Step::Gate),
        ];
        assert_eq!(joined, expected);
        assert_eq!([&made.operands[3], &made.operands[7], &made.operands[9]], [&vec![0, 1], &vec![3, 5], &vec![7, 3]]);
    }

    #[test]
    fn products_of_the_same_vector_stand_side_by_side_and_one_that_is_added_is_part_of_the_sum() {
        let along = |shape: &[usize]| TensorType { axis: Some("time".into()), ..TensorType::float(shape) };
        let nodes: Vec<(Op, Vec<NodeId>, TensorType)> = vec![
            (Op::Argument { index: 0 }, vec![], along(&[4])),
            (Op::Parameter { index: 0 }, vec![], TensorType::float(&[3, 4])),
            (Op::MatVec, vec![1, 0], along(&[3])),
            (Op::Parameter { index: 1 }, vec![], TensorType::float(&[4, 4])),
            (Op::MatVec, vec![3, 0], along(&[4])),
            // A sum, in either order, takes a product that nobody else sees.
            (Op::MatVec, vec![3, 0], along(&[4])),
            (Op::Add, vec![5, 0], along(&[4])),
            // Of two products the second; the first has the same vector as others.
            (Op::MatVec, vec![3, 0], along(&[4])),
            (Op::Add, vec![4, 7], along(&[4])),
            // Not one that varies otherwise, and not one by a matrix that is computed.
            (Op::Parameter { index: 2 }, vec![], TensorType::float(&[3])),
            (Op::Add, vec![2, 9], along(&[3])),
            (Op::Tanh, vec![3], TensorType::float(&[4, 4])),
            (Op::MatVec, vec![11, 0], along(&[4])),
            (Op::MatVec, vec![3, 6], along(&[4])),
        ];
        let types: Vec<Type> = nodes.iter().map(|(_, _, ty)| Type::Tensor(ty.clone())).collect();
        let nodes = nodes.into_iter().map(|(op, operands, _)| Node { op, operands, span: Span::default() }).collect();
        let outputs = [2, 6, 8, 10, 12, 13].map(|node| Output { name: String::new(), node }).to_vec();
        let f = Function { name: "f".into(), arguments: vec![], parameters: vec![], nodes, outputs };
        let made = Steps::joint(&f, &types);
        let joined: Vec<(usize, Step)> = made.steps.iter().cloned().enumerate().filter(|(_, s)| *s != Step::Alone).collect();
        let expected = [(2, Step::Linear(vec![4])), (5, Step::WithUser), (6, Step::Onto), (7, Step::WithUser), (8, Step::Onto)];
        assert_eq!(joined, expected);
        assert_eq!([&made.operands[6], &made.operands[8]], [&vec![0, 3, 0], &vec![4, 3, 0]]);
        assert_eq!(made.order, [1, 3, 9, 0, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13]);
    }

    #[test]
    fn a_product_with_what_is_looked_up_takes_all_of_it_with_its_bias() {
        let int = |axis: Option<&str>| TensorType { dtype: DType::Int, axis: axis.map(str::to_string), shape: vec![] };
        let along = |shape: &[usize]| TensorType { axis: Some("time".into()), ..TensorType::float(shape) };
        let (hot, join) = (Op::OneHot { size: 3 }, Op::Concat { axis: 0 });
        let nodes: Vec<(Op, Vec<NodeId>, TensorType)> = vec![
            (Op::Argument { index: 0 }, vec![], int(Some("time"))),
            (Op::Parameter { index: 0 }, vec![], TensorType::float(&[5, 4])),
            (hot, vec![0], along(&[3])),
            (Op::Gather, vec![1, 0], along(&[4])),
            (join, vec![2, 3], along(&[7])),
            (Op::Parameter { index: 1 }, vec![], TensorType::float(&[6, 7])),
            (Op::Parameter { index: 2 }, vec![], TensorType::float(&[6])),
            (Op::MatVec, vec![5, 4], along(&[6])),
            (Op::Add, vec![6, 7], along(&[6])),
            // Without a bias; the product has another user, so a sum takes nothing from it.
            (Op::MatVec, vec![5, 4], along(&[6])),
            (Op::Add, vec![9, 6], along(&[6])),
            // What is mapped again is not looked up.
            (Op::Parameter { index: 3 }, vec![], TensorType::float(&[6, 6])),
            (Op::MatVec, vec![11, 8], along(&[6])),
        ];
        let types: Vec<Type> = nodes.iter().map(|(_, _, ty)| Type::Tensor(ty.clone())).collect();
        let nodes = nodes.into_iter().map(|(op, operands, _)| Node { op, operands, span: Span::default() }).collect();
        // One-hot vectors are a result too, so they stay.
        let outputs = [2, 9, 10, 12].map(|node| Output { name: String::new(), node }).to_vec();
        let f = Function { name: "f".into(), arguments: vec![], parameters: vec![], nodes, outputs };
        let made = Steps::joint(&f, &types);
        let joined: Vec<(usize, Step)> = made.steps.iter().cloned().enumerate().filter(|(_, s)| *s != Step::Alone).collect();
        let form = |bias| Form { parts: vec![Part::OneHot(3), Part::Row], bias };
        let expected = [
            (3, Step::WithUser),
            (4, Step::WithUser),
            (7, Step::WithUser),
            (8, Step::Lookup(form(true))),
            (9, Step::Lookup(form(false))),
        ];
        assert_eq!(joined, expected);
        assert_eq!([&made.operands[8], &made.operands[9]], [&vec![5, 6, 0, 1, 0], &vec![5, 0, 1, 0]]);
    }
}
