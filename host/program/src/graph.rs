//! Walking and rewriting functions.

use std::collections::HashMap;

use fwp_sdk::program::shape::{self, Context, FunctionType};
use fwp_sdk::program::{Argument, DType, Function, Node, NodeId, Op, Parameter, Program, Span, Type};

/// The function that an operator applies, if any.
pub(crate) fn callee(op: &Op) -> Option<u32> {
    match op {
        Op::Call { function, .. } | Op::Loop { function, .. } | Op::Blocks { function, .. } | Op::Scan { function, .. } => {
            Some(*function)
        }
        _ => None,
    }
}

/// Which nodes some root needs.
pub(crate) fn ancestors(f: &Function, roots: impl IntoIterator<Item = NodeId>) -> Vec<bool> {
    let mut needed = vec![false; f.nodes.len()];
    for r in roots {
        needed[r as usize] = true;
    }
    for i in (0..f.nodes.len()).rev() {
        if needed[i] {
            for o in &f.nodes[i].operands {
                needed[*o as usize] = true;
            }
        }
    }
    needed
}

/// Which nodes some result needs.
pub(crate) fn live(f: &Function) -> Vec<bool> {
    ancestors(f, f.outputs.iter().map(|o| o.node))
}

/// For every node the nodes that read it, each once.
pub(crate) fn consumers(f: &Function) -> Vec<Vec<NodeId>> {
    let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); f.nodes.len()];
    for (i, node) in f.nodes.iter().enumerate() {
        for o in &node.operands {
            let list = &mut readers[*o as usize];
            if list.last() != Some(&(i as NodeId)) {
                list.push(i as NodeId);
            }
        }
    }
    readers
}

/// The function without nodes that no result needs. Parameters and arguments keep their numbers.
pub fn pruned(f: &Function) -> Function {
    let used = live(f);
    let mut renumbered = vec![0; f.nodes.len()];
    let mut kept = Vec::new();
    for (i, node) in f.nodes.iter().enumerate() {
        if used[i] {
            renumbered[i] = kept.len() as NodeId;
            let operands = node.operands.iter().map(|o| renumbered[*o as usize]).collect();
            kept.push(Node { op: node.op.clone(), operands, span: node.span });
        }
    }
    let outputs = f.outputs.iter().cloned().map(|mut o| {
        o.node = renumbered[o.node as usize];
        o
    });
    Function { outputs: outputs.collect(), nodes: kept, ..f.clone() }
}

/// The function with those arguments alone that it looks at.
pub(crate) fn with_arguments_used(mut f: Function) -> Function {
    let looks = |i: usize| f.nodes.iter().any(|n| n.op == Op::Argument { index: i as u32 });
    let kept: Vec<usize> = (0..f.arguments.len()).filter(|i| looks(*i)).collect();
    for node in &mut f.nodes {
        if let Op::Argument { index } = &mut node.op {
            *index = kept.partition_point(|k| *k < *index as usize) as u32;
        }
    }
    f.arguments = kept.into_iter().map(|i| f.arguments[i].clone()).collect();
    f
}

/// For every node the first node that computes the same.
pub(crate) fn classes(f: &Function) -> Vec<NodeId> {
    let mut class: Vec<NodeId> = Vec::with_capacity(f.nodes.len());
    let mut seen: HashMap<(u16, Vec<NodeId>), Vec<NodeId>> = HashMap::new();
    for (i, node) in f.nodes.iter().enumerate() {
        let operands: Vec<NodeId> = node.operands.iter().map(|o| class[*o as usize]).collect();
        // Two draws are two values, however alike they look.
        let random = matches!(
            node.op,
            Op::RandomNormal { .. } | Op::RandomUniform { .. } | Op::RandomOrthogonal { .. } | Op::Dropout { .. }
        );
        let alike = seen.entry((node.op.code(), operands)).or_default();
        let found = alike.iter().find(|o| !random && f.nodes[**o as usize].op == node.op).copied();
        class.push(found.unwrap_or(i as NodeId));
        if found.is_none() {
            alike.push(i as NodeId);
        }
    }
    class
}

/// Number of elements at one step; of a tuple, of all its parts.
pub(crate) fn elements(ty: &Type) -> usize {
    match ty {
        Type::Tensor(t) => t.elements(),
        Type::Tuple(parts) => parts.iter().map(elements).sum(),
        Type::Memory(_) => 0,
    }
}

/// Sizes of a tensor; of anything else, none.
pub(crate) fn sizes(ty: &Type) -> &[usize] {
    match ty {
        Type::Tensor(t) => &t.shape,
        _ => &[],
    }
}

/// Whether a type is a float tensor.
pub(crate) fn is_float(ty: &Type) -> bool {
    matches!(ty, Type::Tensor(t) if t.dtype == DType::Float)
}

/// A function that grows by nodes whose types are inferred as they come.
pub(crate) struct Editor<'a> {
    program: &'a Program,
    functions: &'a [FunctionType],
    arguments: &'a [Argument],
    pub parameters: Vec<Parameter>,
    pub nodes: Vec<Node>,
    pub types: Vec<Type>,
    /// The source place of the nodes that come next.
    pub span: Span,
    constants: HashMap<u64, NodeId>,
}

impl<'a> Editor<'a> {
    pub fn new(program: &'a Program, functions: &'a [FunctionType], f: &'a Function) -> Editor<'a> {
        Editor {
            program,
            functions,
            arguments: &f.arguments,
            parameters: f.parameters.clone(),
            nodes: Vec::new(),
            types: Vec::new(),
            span: Span::default(),
            constants: HashMap::new(),
        }
    }

    pub fn push(&mut self, op: Op, operands: &[NodeId]) -> Result<NodeId, String> {
        let cx = Context {
            functions: self.functions,
            arguments: self.arguments,
            parameters: &self.parameters,
            states: &self.program.states,
            slots: &self.program.slots,
        };
        let types: Option<Vec<&Type>> = operands.iter().map(|o| self.types.get(*o as usize)).collect();
        let types = types.ok_or("an operand does not come before its node")?;
        let ty = shape::infer(&op, &types, &cx).map_err(|e| format!("`{}`: {e}", op.name()))?;
        self.nodes.push(Node { op, operands: operands.to_vec(), span: self.span });
        self.types.push(ty);
        Ok(self.nodes.len() as NodeId - 1)
    }

    pub fn shape(&self, n: NodeId) -> &[usize] {
        sizes(&self.types[n as usize])
    }

    pub fn constant(&mut self, value: f64) -> Result<NodeId, String> {
        if let Some(n) = self.constants.get(&value.to_bits()) {
            return Ok(*n);
        }
        let n = self.push(Op::Constant { value }, &[])?;
        self.constants.insert(value.to_bits(), n);
        Ok(n)
    }

    fn value(&self, n: NodeId) -> Option<f64> {
        match self.nodes[n as usize].op {
            Op::Constant { value } => Some(value),
            _ => None,
        }
    }

    /// Every element `value`.
    pub fn full(&mut self, shape: &[usize], value: f64) -> Result<NodeId, String> {
        if shape.is_empty() { self.constant(value) } else { self.push(Op::Full { shape: shape.to_vec(), value }, &[]) }
    }

    pub fn unary(&mut self, op: Op, x: NodeId) -> Result<NodeId, String> {
        self.push(op, &[x])
    }

    pub fn add(&mut self, a: NodeId, b: NodeId) -> Result<NodeId, String> {
        self.push(Op::Add, &[a, b])
    }

    pub fn sub(&mut self, a: NodeId, b: NodeId) -> Result<NodeId, String> {
        self.push(Op::Sub, &[a, b])
    }

    /// a b, without the multiplications by one that differentiation leaves behind.
    pub fn mul(&mut self, a: NodeId, b: NodeId) -> Result<NodeId, String> {
        match (self.value(a), self.value(b)) {
            (Some(x), Some(y)) => self.constant(x * y),
            (Some(1.0), None) => Ok(b),
            (None, Some(1.0)) => Ok(a),
            _ => self.push(Op::Mul, &[a, b]),
        }
    }

    pub fn scale(&mut self, factor: f64, x: NodeId) -> Result<NodeId, String> {
        let c = self.constant(factor)?;
        self.mul(c, x)
    }

    pub fn div(&mut self, a: NodeId, b: NodeId) -> Result<NodeId, String> {
        self.push(Op::Div, &[a, b])
    }

    pub fn neg(&mut self, x: NodeId) -> Result<NodeId, String> {
        if let Some(v) = self.value(x) {
            return self.constant(-v);
        }
        match self.nodes[x as usize].op {
            Op::Neg => Ok(self.nodes[x as usize].operands[0]),
            _ => self.push(Op::Neg, &[x]),
        }
    }

    /// Sum over all axes.
    pub fn total(&mut self, x: NodeId) -> Result<NodeId, String> {
        let axes: Vec<usize> = (0..self.shape(x).len()).collect();
        if axes.is_empty() { Ok(x) } else { self.push(Op::Sum { axes }, &[x]) }
    }

    /// Repeats a value that was reduced over `axes` back to `shape`.
    pub fn spread(&mut self, mut x: NodeId, axes: &[usize], shape: &[usize]) -> Result<NodeId, String> {
        let mut axes = axes.to_vec();
        axes.sort_unstable();
        for axis in axes {
            x = self.push(Op::Expand { axis, size: shape[axis] }, &[x])?;
        }
        Ok(x)
    }

    /// Puts back an operand's shape after a scalar was spread by arithmetic.
    pub fn fit(&mut self, x: NodeId, shape: &[usize]) -> Result<NodeId, String> {
        if shape.is_empty() { self.total(x) } else { self.widen(x, shape) }
    }

    /// A scalar repeated to `shape`; anything else is left alone.
    pub fn widen(&mut self, x: NodeId, shape: &[usize]) -> Result<NodeId, String> {
        if !self.shape(x).is_empty() || shape.is_empty() {
            return Ok(x);
        }
        match self.value(x) {
            Some(v) => self.full(shape, v),
            None => {
                let axes: Vec<usize> = (0..shape.len()).collect();
                self.spread(x, &axes, shape)
            }
        }
    }

    /// The sum of a b in the shape of an operand that was perhaps a scalar.
    pub fn mul_fit(&mut self, a: NodeId, b: NodeId, shape: &[usize]) -> Result<NodeId, String> {
        if shape.is_empty() && !self.shape(a).is_empty() && self.shape(a) == self.shape(b) {
            return self.push(Op::Dot, &[a, b]);
        }
        let product = self.mul(a, b)?;
        self.fit(product, shape)
    }
}
