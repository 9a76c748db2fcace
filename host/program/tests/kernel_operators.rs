//! Every operator that a step may contain, in kernels, against the interpreter and finite differences.

mod support;

use fwp_program::kernel::{InStep, KernelState, Per, Real, Target};
use fwp_sdk::program::{Argument, Function, Node, NodeId, Op, Output, Span, TensorType, Type};
use support::kernels::{agree, compile, compiler, differences, draw, interpreted, state};

/// A step in the making: every operand is an argument plus a state, so that gradients pass through both.
struct Maker {
    f: Function,
    states: Vec<KernelState>,
    next: Vec<NodeId>,
    kept: Vec<NodeId>,
    labels: Vec<String>,
}

impl Maker {
    fn new(name: &str) -> Maker {
        let f = Function { name: name.into(), ..Function::default() };
        Maker { f, states: vec![], next: vec![], kept: vec![], labels: vec![] }
    }
    fn op(&mut self, op: Op, operands: &[NodeId]) -> NodeId {
        self.f.nodes.push(Node { op, operands: operands.to_vec(), span: Span::default() });
        self.f.nodes.len() as NodeId - 1
    }
    fn argument(&mut self, name: &str, ty: TensorType) -> NodeId {
        let index = self.f.arguments.len() as u32;
        self.f.arguments.push(Argument { name: format!("{name}{index}"), ty: Type::Tensor(ty) });
        self.op(Op::Argument { index }, &[])
    }
    /// An operand that depends on an argument and a state.
    fn mixed(&mut self, shape: &[usize]) -> NodeId {
        let x = self.argument("x", TensorType::float(shape));
        let index = self.states.len() as u32;
        self.states.push(KernelState { state: state(&format!("s{index}"), shape, 1), masked: true });
        let s = self.op(Op::State { index }, &[]);
        let half = self.op(Op::Constant { value: 0.5 }, &[]);
        let less = self.op(Op::Mul, &[half, s]);
        let next = self.op(Op::Add, &[less, x]);
        self.next.push(next);
        self.op(Op::Add, &[x, s])
    }
    /// The same, positive.
    fn positive(&mut self, shape: &[usize]) -> NodeId {
        let x = self.mixed(shape);
        let square = self.op(Op::Square, &[x]);
        let half = self.op(Op::Constant { value: 0.5 }, &[]);
        self.op(Op::Add, &[square, half])
    }
    fn keep(&mut self, op: Op, operands: &[NodeId]) -> NodeId {
        self.labels.push(format!("{} {op:?}", self.kept.len()));
        let node = self.op(op, operands);
        self.kept.push(node);
        node
    }
    fn step(mut self) -> InStep {
        for (i, k) in self.kept.iter().enumerate() {
            self.f.outputs.push(Output { name: format!("y{i}"), node: *k });
        }
        for (i, n) in self.next.iter().enumerate() {
            self.f.outputs.push(Output { name: format!("state.s{i}"), node: *n });
        }
        InStep {
            name: self.f.name.clone(),
            per: vec![Per::Step; self.f.arguments.len()],
            kept: self.kept.len(),
            function: self.f,
            callees: vec![],
            states: self.states,
        }
    }
}

fn judge(build: impl Fn(&mut Maker, usize, usize, usize), name: &str) {
    let Some(cc) = compiler() else { return };
    for (m, n, k) in [(4, 4, 4), (3, 5, 7), (19, 17, 2)] {
        let mut maker = Maker::new(name);
        build(&mut maker, m, n, k);
        let labels = maker.labels.clone();
        let step = maker.step();
        let w = draw(&step, 3, 2, 5, 0.7, 3);
        let want = interpreted(&step, &w);
        for (real, tolerance) in [(Real::F64, 1e-9), (Real::F32, 2e-3)] {
            let c = compile(&cc, &step, Target { real, vector_bytes: if m == 3 { 32 } else { 64 } });
            let got = c.run(&step, &w);
            let label = format!("{name} {m} {n} {k} {real:?}, kept {labels:?},");
            agree(&label, &got, &want, tolerance);
            // What is constant for every gradient is not constant for differences.
            if real == Real::F64 && name != "constant" {
                differences(&step, &w, &got, 1e-4);
            }
        }
    }
}

#[test]
fn functions_of_one_element() {
    judge(
        |b, m, n, _| {
            for op in [
                Op::Neg,
                Op::Abs,
                Op::Sign,
                Op::Exp,
                Op::Expm1,
                Op::Square,
                Op::Sin,
                Op::Cos,
                Op::Tanh,
                Op::Sigmoid,
                Op::LogSigmoid,
                Op::Softplus,
                Op::Relu,
                Op::Gelu,
                Op::GeluTanh,
                Op::Silu,
                Op::Erf,
            ] {
                let shape: &[usize] = if matches!(op, Op::Tanh | Op::Silu | Op::Exp) { &[m, n] } else { &[n] };
                let x = b.mixed(shape);
                b.keep(op, &[x]);
            }
            for op in [Op::Log, Op::Log1p, Op::Sqrt, Op::Rsqrt, Op::Reciprocal] {
                let x = b.positive(&[n]);
                b.keep(op, &[x]);
            }
        },
        "one",
    );
}

#[test]
fn constants_of_gradients() {
    judge(
        |b, m, n, _| {
            let x = b.mixed(&[m, n]);
            b.keep(Op::StopGradient, &[x]);
            let x = b.mixed(&[n]);
            let fixed = b.op(Op::StopGradient, &[x]);
            b.keep(Op::Mul, &[x, fixed]);
            let x = b.mixed(&[]);
            b.keep(Op::Floor, &[x]);
        },
        "constant",
    );
}

#[test]
fn functions_of_two_elements() {
    judge(
        |b, m, n, _| {
            for op in [Op::Add, Op::Sub, Op::Mul, Op::Max, Op::Min] {
                let (x, y) = (b.mixed(&[m, n]), b.mixed(&[m, n]));
                b.keep(op.clone(), &[x, y]);
                let (x, y) = (b.mixed(&[]), b.mixed(&[n]));
                b.keep(op, &[x, y]);
            }
            for op in [Op::Div, Op::Pow] {
                let (x, y) = (b.positive(&[n]), b.positive(&[n]));
                b.keep(op, &[x, y]);
            }
            let (x, y) = (b.positive(&[n]), b.positive(&[]));
            b.keep(Op::Rem, &[x, y]);
            let (x, y, z) = (b.mixed(&[n]), b.positive(&[]), b.mixed(&[n]));
            b.keep(Op::DivOr, &[x, y, z]);
            let zero = b.op(Op::Constant { value: 0.0 }, &[]);
            b.keep(Op::DivOr, &[x, zero, z]);
            for op in [Op::Less, Op::LessEqual, Op::Equal] {
                let (x, y, z) = (b.mixed(&[m, n]), b.mixed(&[m, n]), b.mixed(&[m, n]));
                let mask = b.op(op, &[x, y]);
                let not = b.op(Op::Not, &[mask]);
                let both = b.op(Op::And, &[mask, not]);
                let any = b.op(Op::Or, &[mask, both]);
                b.keep(Op::ToFloat, &[any]);
                b.keep(Op::Select, &[mask, x, z]);
            }
        },
        "two",
    );
}

#[test]
fn integers_and_masks() {
    judge(
        |b, _, n, _| {
            let i = b.argument("i", TensorType::int(&[n]));
            let j = b.argument("j", TensorType::int(&[]));
            let mask = b.argument("m", TensorType::mask(&[n]));
            let index = b.op(Op::StepIndex, &[]);
            let three = b.op(Op::Integer { value: 3 }, &[]);
            for op in [
                Op::Add,
                Op::Sub,
                Op::Mul,
                Op::Max,
                Op::Min,
                Op::Rem,
                Op::BitAnd,
                Op::BitOr,
                Op::BitXor,
                Op::ShiftLeft,
                Op::ShiftRight,
            ] {
                let other = if op == Op::Rem { three } else { j };
                let x = b.op(op.clone(), &[i, other]);
                b.keep(Op::ToFloat, &[x]);
            }
            let z = b.op(Op::TrailingZeros, &[i]);
            b.keep(Op::ToFloat, &[z]);
            let at = b.op(Op::TrailingZeros, &[index]);
            b.keep(Op::ToFloat, &[at]);
            for op in [Op::Less, Op::LessEqual, Op::Equal] {
                let x = b.op(op.clone(), &[i, j]);
                b.keep(Op::ToFloat, &[x]);
                let x = b.op(op, &[mask, x]);
                b.keep(Op::ToFloat, &[x]);
            }
            b.keep(Op::ToFloat, &[mask]);
            let x = b.mixed(&[n]);
            let y = b.mixed(&[]);
            b.keep(Op::Select, &[mask, x, y]);
            let picked = b.op(Op::Select, &[mask, i, j]);
            b.keep(Op::ToFloat, &[picked]);
            b.keep(Op::OneHot { size: 4 }, &[i]);
            b.keep(Op::OneHot { size: 3 }, &[j]);
            let r = b.op(Op::Arange { n }, &[]);
            let sum = b.op(Op::Add, &[r, index]);
            b.keep(Op::ToFloat, &[sum]);
        },
        "integers",
    );
}

#[test]
fn arrangements() {
    judge(
        |b, m, n, k| {
            let x = b.mixed(&[m, n, k]);
            b.keep(Op::Transpose { order: vec![2, 0, 1] }, &[x]);
            b.keep(Op::Reshape { shape: vec![m * n, k] }, &[x]);
            let flat = b.keep(Op::Reshape { shape: vec![m * n * k] }, &[x]);
            b.keep(Op::Reshape { shape: vec![k, n, m] }, &[flat]);
            b.keep(Op::Slice { axis: 1, start: 1, length: 2 }, &[x]);
            b.keep(Op::Slice { axis: 0, start: m - 1, length: 1 }, &[x]);
            b.keep(Op::Roll { axis: 1, shift: 2 }, &[x]);
            b.keep(Op::Roll { axis: 0, shift: -1 }, &[x]);
            b.keep(Op::Flip { axis: 2 }, &[x]);
            let y = b.mixed(&[m, 2, k]);
            b.keep(Op::Concat { axis: 1 }, &[x, y, x]);
            let v = b.mixed(&[n]);
            b.keep(Op::Expand { axis: 0, size: k }, &[v]);
            b.keep(Op::Expand { axis: 1, size: k }, &[v]);
            b.keep(Op::Slice { axis: 0, start: 1, length: 3 }, &[v]);
            b.keep(Op::Roll { axis: 0, shift: 1 }, &[v]);
            b.keep(Op::Concat { axis: 0 }, &[v, v]);
            let s = b.mixed(&[]);
            let one = b.op(Op::Reshape { shape: vec![1] }, &[s]);
            b.keep(Op::Concat { axis: 0 }, &[one, v, one]);
            let even = b.mixed(&[m, 2 * n]);
            let index = b.op(Op::StepIndex, &[]);
            b.keep(Op::Rotary { base: 100.0, interleaved: true }, &[even, index]);
            b.keep(Op::Rotary { base: 100.0, interleaved: false }, &[even, index]);
            let i = b.argument("i", TensorType::int(&[m]));
            let j = b.argument("j", TensorType::int(&[]));
            let table = b.mixed(&[3, n]);
            b.keep(Op::Gather, &[table, i]);
            b.keep(Op::Gather, &[table, j]);
            b.keep(Op::Full { shape: vec![m, k], value: 0.25 }, &[]);
            b.keep(Op::Eye { n }, &[]);
            b.keep(Op::Table { shape: vec![2, 2], values: vec![1.0, -2.0, 3.5, 0.0] }, &[]);
        },
        "arrangements",
    );
}

#[test]
fn reductions() {
    judge(
        |b, m, n, k| {
            let x = b.mixed(&[m, n, k]);
            for op in [
                Op::Sum { axes: vec![0, 2] },
                Op::Mean { axes: vec![1] },
                Op::ReduceMax { axes: vec![1, 2] },
                Op::ReduceMin { axes: vec![0] },
                Op::Softmax { axis: 1 },
                Op::LogSoftmax { axis: 0 },
                Op::LogSumExp { axis: 2 },
                Op::Cumsum { axis: 1 },
                Op::RmsNorm { eps: 0.1 },
                Op::LayerNorm { eps: 0.1 },
                Op::L2Normalise { eps: 0.1 },
            ] {
                b.keep(op, &[x]);
            }
            let p = b.positive(&[m, n]);
            b.keep(Op::SumNormalise { eps: 0.1 }, &[p]);
            let v = b.mixed(&[n]);
            for op in [
                Op::Sum { axes: vec![0] },
                Op::ReduceMax { axes: vec![0] },
                Op::Softmax { axis: 0 },
                Op::LogSumExp { axis: 0 },
                Op::Cumsum { axis: 0 },
                Op::RmsNorm { eps: 0.1 },
                Op::LayerNorm { eps: 0.1 },
            ] {
                b.keep(op, &[v]);
            }
            let one = b.mixed(&[1]);
            b.keep(Op::Softmax { axis: 0 }, &[one]);
            b.keep(Op::Sum { axes: vec![0] }, &[one]);
        },
        "reductions",
    );
}

#[test]
fn linear_algebra() {
    judge(
        |b, m, n, k| {
            let (a, x, y) = (b.mixed(&[m, n]), b.mixed(&[n]), b.mixed(&[m]));
            b.keep(Op::MatVec, &[a, x]);
            b.keep(Op::MatVecT, &[a, y]);
            b.keep(Op::Outer, &[y, x]);
            let c = b.mixed(&[n, k]);
            b.keep(Op::MatMul, &[a, c]);
            b.keep(Op::Dot, &[x, x]);
            let d = b.mixed(&[m, n]);
            b.keep(Op::Dot, &[a, d]);
            // A square matrix that is applied to its own result.
            let s = b.mixed(&[n, n]);
            let once = b.op(Op::MatVec, &[s, x]);
            let twice = b.keep(Op::MatVec, &[s, once]);
            b.keep(Op::MatVecT, &[s, twice]);
            b.keep(Op::MatMul, &[s, s]);
            let t = b.op(Op::Transpose { order: vec![1, 0] }, &[s]);
            b.keep(Op::Add, &[s, t]);
            let p = b.op(Op::MatMul, &[s, t]);
            let eye = b.op(Op::Eye { n }, &[]);
            let p = b.op(Op::Add, &[p, eye]);
            b.keep(Op::SolveSpd { iterations: 60, tolerance: 1e-12 }, &[p, x]);
        },
        "linear",
    );
}
