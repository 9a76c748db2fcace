//! Every operator of steps and feature maps against the interpreter: values, and gradients by finite differences.

mod support;

use std::collections::BTreeSet;

use fwp_engine::exec::ops;
use fwp_engine::exec::solve::conjugate_gradients;
use fwp_engine::exec::value::{Lead, Value};
use fwp_program::interpret::{self, Array, Data, Inputs};
use fwp_sdk::program::{Argument, DType, Function, Kind as PartKind, Node, Op, Output, Program, Span, TensorType};
use support::{DOUBLE, Numbers, close, values};
use tch::{Kind, Tensor};

const SAMPLES: i64 = 4;
const STEPS: i64 = 2;

/// What an operand holds.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    /// Uniform in [-1, 1).
    Floats,
    /// Uniform in [0.3, 1.7).
    Positive,
    /// A symmetric positive definite matrix.
    Definite,
    /// Whole numbers from the first to below the second.
    Whole(i64, i64),
    Mask,
}

struct Case {
    op: Op,
    operands: Vec<(Of, Vec<usize>)>,
    /// Whether it has a gradient to its float operands.
    smooth: bool,
}

fn case(op: Op, operands: &[(Of, &[usize])]) -> Case {
    Case { op, operands: operands.iter().map(|(of, s)| (*of, s.to_vec())).collect(), smooth: true }
}

fn flat(op: Op, operands: &[(Of, &[usize])]) -> Case {
    Case { smooth: false, ..case(op, operands) }
}

/// Every operator at these sizes.
fn cases(a: usize, b: usize, c: usize) -> Vec<Case> {
    use Of::*;
    use Op::*;
    let mut all = Vec::new();
    for op in [Neg, Abs, Sign, Exp, Expm1, Square, Sin, Cos, Tanh, Sigmoid, LogSigmoid, Softplus, Relu, Gelu, GeluTanh, Silu, Erf]
    {
        all.push(case(op.clone(), &[(Floats, &[a, b])]));
        all.push(case(op, &[(Floats, &[])]));
    }
    for op in [Log, Log1p, Sqrt, Rsqrt, Reciprocal, Floor] {
        all.push(case(op, &[(Positive, &[a, b])]));
    }
    all.push(flat(StopGradient, &[(Floats, &[a])]));
    all.push(flat(Not, &[(Mask, &[a, b])]));
    all.push(flat(TrailingZeros, &[(Whole(-20, 70), &[a, b, c])]));
    all.push(flat(ToFloat, &[(Whole(-5, 5), &[a])]));
    all.push(flat(ToFloat, &[(Mask, &[a])]));
    for op in [Add, Sub, Mul, Max, Min] {
        for shapes in [[&[a, b][..], &[a, b]], [&[], &[a, b]], [&[b], &[]], [&[], &[]]] {
            all.push(case(op.clone(), &[(Floats, shapes[0]), (Floats, shapes[1])]));
            all.push(flat(op.clone(), &[(Whole(-9, 9), shapes[0]), (Whole(-9, 9), shapes[1])]));
        }
    }
    for op in [Div, Pow, Rem] {
        for shapes in [[&[a, b][..], &[a, b]], [&[], &[a, b]], [&[b], &[]]] {
            all.push(case(op.clone(), &[(Positive, shapes[0]), (Positive, shapes[1])]));
        }
    }
    all.push(case(Rem, &[(Floats, &[a, b]), (Positive, &[])]));
    all.push(flat(Rem, &[(Whole(-20, 20), &[a, b]), (Whole(1, 7), &[])]));
    all.push(flat(Rem, &[(Whole(-20, 20), &[a, b]), (Whole(-7, 0), &[a, b])]));
    for op in [Less, LessEqual, Equal] {
        all.push(flat(op.clone(), &[(Floats, &[a, b]), (Floats, &[])]));
        all.push(flat(op, &[(Whole(0, 3), &[a, b]), (Whole(0, 3), &[a, b])]));
    }
    for op in [And, Or] {
        all.push(flat(op, &[(Mask, &[a, b]), (Mask, &[a, b])]));
    }
    for op in [BitAnd, BitOr, BitXor] {
        all.push(flat(op, &[(Whole(-40, 40), &[a, b]), (Whole(-40, 40), &[])]));
    }
    for op in [ShiftLeft, ShiftRight] {
        all.push(flat(op, &[(Whole(-40, 40), &[a]), (Whole(0, 6), &[a])]));
    }
    all.push(case(DivOr, &[(Floats, &[a, b]), (Positive, &[a, b]), (Floats, &[])]));
    all.push(case(DivOr, &[(Floats, &[]), (Positive, &[a]), (Floats, &[a])]));
    all.push(case(Select, &[(Mask, &[a, b]), (Floats, &[a, b]), (Floats, &[])]));
    all.push(case(Select, &[(Mask, &[]), (Floats, &[a, b]), (Floats, &[a, b])]));
    all.push(flat(Select, &[(Mask, &[a]), (Whole(0, 5), &[]), (Whole(0, 5), &[a])]));

    all.push(case(MatVec, &[(Floats, &[a, b]), (Floats, &[b])]));
    all.push(case(MatVecT, &[(Floats, &[a, b]), (Floats, &[a])]));
    all.push(case(MatMul, &[(Floats, &[a, b]), (Floats, &[b, c])]));
    all.push(case(Outer, &[(Floats, &[a]), (Floats, &[b])]));
    for shape in [&[a, b, c][..], &[b], &[]] {
        all.push(case(Dot, &[(Floats, shape), (Floats, shape)]));
    }
    all.push(case(SolveSpd { iterations: 40, tolerance: 1e-14 }, &[(Definite, &[a, a]), (Floats, &[a])]));
    for (table, rows) in [(vec![a, b], a), (vec![b], b), (vec![c, a, b], c)] {
        let rows = rows as i64;
        all.push(case(Gather, &[(Floats, &table), (Whole(0, rows), &[])]));
        all.push(case(Gather, &[(Floats, &table), (Whole(0, rows), &[2, c])]));
    }
    all.push(flat(Gather, &[(Whole(0, 9), &[a, b]), (Whole(0, a as i64), &[c])]));

    all.push(case(Reshape { shape: vec![c, a * b] }, &[(Floats, &[a, b, c])]));
    all.push(case(Transpose { order: vec![2, 0, 1] }, &[(Floats, &[a, b, c])]));
    all.push(case(Slice { axis: 1, start: 1, length: b - 1 }, &[(Floats, &[a, b, c])]));
    all.push(case(Concat { axis: 1 }, &[(Floats, &[a, b]), (Floats, &[a, c]), (Floats, &[a, 1])]));
    all.push(case(Expand { axis: 0, size: c }, &[(Floats, &[])]));
    all.push(case(Expand { axis: 1, size: c }, &[(Floats, &[a, b])]));
    all.push(case(Expand { axis: 2, size: c }, &[(Floats, &[a, b])]));
    for shift in [-4, 1, 7] {
        all.push(case(Roll { axis: 1, shift }, &[(Floats, &[a, b])]));
    }
    all.push(case(Flip { axis: 0 }, &[(Floats, &[a, b])]));
    all.push(flat(OneHot { size: 3 }, &[(Whole(-1, 5), &[a, b])]));
    for axis in 0..3 {
        for op in [Cumsum { axis }, Softmax { axis }, LogSoftmax { axis }, LogSumExp { axis }] {
            all.push(case(op, &[(Floats, &[a, b, c])]));
        }
    }
    for axes in [vec![], vec![0], vec![2, 0], vec![0, 1, 2]] {
        for op in [
            Sum { axes: axes.clone() },
            Mean { axes: axes.clone() },
            ReduceMax { axes: axes.clone() },
            ReduceMin { axes: axes.clone() },
        ] {
            all.push(case(op, &[(Floats, &[a, b, c])]));
        }
    }
    for shape in [&[a][..], &[a, b]] {
        for op in [RmsNorm { eps: 1e-2 }, LayerNorm { eps: 1e-2 }, L2Normalise { eps: 1e-2 }] {
            all.push(case(op, &[(Floats, shape)]));
        }
        all.push(case(SumNormalise { eps: 1e-2 }, &[(Positive, shape)]));
    }
    for interleaved in [false, true] {
        all.push(case(Rotary { base: 100.0, interleaved }, &[(Floats, &[a, 2 * b]), (Whole(0, 50), &[])]));
    }

    all.push(flat(Constant { value: 1.5 }, &[]));
    all.push(flat(Integer { value: -7 }, &[]));
    all.push(flat(Table { shape: vec![2, 2], values: vec![1.0, 2.0, 3.0, 4.0] }, &[]));
    all.push(flat(Full { shape: vec![a, b], value: 0.25 }, &[]));
    all.push(flat(Eye { n: a }, &[]));
    all.push(flat(Arange { n: b }, &[]));
    all
}

fn lead_of(number: usize) -> Lead {
    [Lead::NONE, Lead::BATCH, Lead::STEPS][number]
}

fn drawn(of: Of, shape: &[usize], lead: Lead, numbers: &mut Numbers) -> Tensor {
    let lead: &[i64] = [&[][..], &[SAMPLES], &[STEPS, SAMPLES]][lead.count()];
    let full: Vec<i64> = lead.iter().copied().chain(shape.iter().map(|n| *n as i64)).collect();
    let x = numbers.tensor(&full);
    match of {
        Of::Floats => x,
        Of::Positive => x * 0.7 + 1.0,
        Of::Definite => x.matmul(&x.transpose(-2, -1)) + Tensor::eye(shape[0] as i64, (Kind::Double, x.device())),
        Of::Whole(from, to) => ((x + 1.0) * ((to - from) as f64 / 2.0) + from as f64).floor().to_kind(Kind::Int64),
        Of::Mask => x.gt(0.0),
    }
}

/// The operator by the interpreter, for every step and sample.
fn interpreted(op: &Op, operands: &[Value]) -> Vec<Vec<f64>> {
    let argument = |i: usize, v: &Value| {
        let dtype = match v.tensor.kind() {
            Kind::Int64 => DType::Int,
            Kind::Bool => DType::Mask,
            _ => DType::Float,
        };
        let shape = v.shape().iter().map(|n| *n as usize).collect();
        Argument { name: format!("x{i}"), ty: TensorType { dtype, axis: None, shape }.into() }
    };
    let n = operands.len() as u32;
    let mut nodes: Vec<Node> =
        (0..n).map(|index| Node { op: Op::Argument { index }, operands: vec![], span: Span::default() }).collect();
    nodes.push(Node { op: op.clone(), operands: (0..n).collect(), span: Span::default() });
    let function = Function {
        name: "one".into(),
        arguments: operands.iter().enumerate().map(|(i, v)| argument(i, v)).collect(),
        nodes,
        outputs: vec![Output { name: "y".into(), node: n }],
        ..Function::default()
    };
    let program = Program {
        kind: PartKind::UpdateRule,
        name: "test".into(),
        config: String::new(),
        doc: String::new(),
        citation: String::new(),
        objective: String::new(),
        inputs: vec![],
        states: vec![],
        slots: vec![],
        functions: vec![],
        entries: vec![],
        files: vec![],
    };
    let mut out = Vec::new();
    for step in 0..STEPS {
        for sample in 0..SAMPLES {
            let arguments = operands.iter().map(|v| {
                let t = match v.lead.count() {
                    0 => v.tensor.shallow_clone(),
                    1 => v.tensor.get(sample),
                    _ => v.tensor.get(step).get(sample),
                };
                let shape = t.size().iter().map(|n| *n as usize).collect();
                let t = t.contiguous().view([-1]);
                let data = match t.kind() {
                    Kind::Int64 => Data::Int(Vec::try_from(t).unwrap()),
                    Kind::Bool => Data::Mask(Vec::try_from(t).unwrap()),
                    _ => Data::Float(Vec::try_from(t).unwrap()),
                };
                interpret::Value::Tensor(Array { shape, data })
            });
            let mut inputs = Inputs { arguments: arguments.collect(), ..Inputs::default() };
            let results = interpret::evaluate(&program, &function, &mut inputs).unwrap_or_else(|e| panic!("{e}"));
            out.push(match &results[0].tensor().unwrap().data {
                Data::Float(v) => v.clone(),
                Data::Int(v) => v.iter().map(|i| *i as f64).collect(),
                Data::Mask(v) => v.iter().map(|m| f64::from(*m)).collect(),
            });
        }
    }
    out
}

/// A result repeated for every step and sample, flat.
fn everywhere(v: &Value) -> Tensor {
    let shape: Vec<i64> = [STEPS, SAMPLES].into_iter().chain(v.shape()).collect();
    v.aligned(Lead::STEPS, v.rank()).unwrap().expand(shape, false).contiguous().view([-1])
}

#[test]
fn values_and_gradients_agree_with_the_interpreter() {
    let mut numbers = Numbers::new(11);
    for (a, b, c) in [(3, 3, 3), (2, 5, 7)] {
        for case in cases(a, b, c) {
            let n = case.operands.len();
            for leads in 0..3usize.pow(n as u32) {
                let lead = |i: usize| lead_of(leads / 3usize.pow(i as u32) % 3);
                let what =
                    format!("{} {:?} with {:?}", case.op.name(), case.op.attributes(), (0..n).map(lead).collect::<Vec<_>>());
                let operands: Vec<Value> = case
                    .operands
                    .iter()
                    .enumerate()
                    .map(|(i, (of, shape))| {
                        let t = drawn(*of, shape, lead(i), &mut numbers);
                        let float = t.kind() == Kind::Double;
                        Value::new(t.set_requires_grad(float), lead(i))
                    })
                    .collect();
                let got = ops::apply(&case.op, &operands.iter().collect::<Vec<_>>(), DOUBLE)
                    .unwrap_or_else(|e| panic!("{what}: {e:#}"));
                let wanted = interpreted(&case.op, &operands);
                let got = everywhere(&got);
                close(&got.detach().to_kind(Kind::Double), &Tensor::from_slice(&wanted.concat()), 1e-12, &what);
                if !case.smooth {
                    assert!(!got.requires_grad() || n == 0 || case.op != Op::StopGradient, "{what}: a gradient passes");
                    continue;
                }
                let weights = numbers.tensor(&got.size());
                let leaves: Vec<&Tensor> = operands.iter().map(|v| &v.tensor).filter(|t| t.requires_grad()).collect();
                let loss = (got * &weights).sum(Kind::Double);
                let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
                let weights = values(&weights);
                let mut which = 0;
                for (i, (of, _)) in case.operands.iter().enumerate() {
                    if operands[i].tensor.kind() != Kind::Double {
                        continue;
                    }
                    let mut direction = numbers.tensor(&operands[i].tensor.size());
                    if *of == Of::Definite {
                        direction = &direction + direction.transpose(-2, -1);
                    }
                    let moved = |by: f64| -> f64 {
                        let mut copy: Vec<Value> = operands.to_vec();
                        copy[i] = Value::new(operands[i].tensor.detach() + by * &direction, operands[i].lead);
                        interpreted(&case.op, &copy).concat().iter().zip(&weights).map(|(y, w)| y * w).sum()
                    };
                    let h = 1e-6;
                    let numerical = (moved(h) - moved(-h)) / (2.0 * h);
                    let exact = (&gradients[which] * &direction).sum(Kind::Double).double_value(&[]);
                    let error = (numerical - exact).abs() / exact.abs().max(1.0);
                    assert!(error < 1e-6, "{what}: gradient of operand {i} is {exact}, numerically {numerical}");
                    which += 1;
                }
            }
        }
    }
}

#[test]
fn no_operator_is_left_out() {
    let tested: BTreeSet<u16> = cases(2, 3, 5).iter().map(|c| c.op.code()).collect();
    // What needs more than its operands, with the tests that reach it.
    let elsewhere = [
        ("argument", "steps.rs"),
        ("parameter", "steps.rs: trained"),
        ("state", "steps.rs"),
        ("element", "steps.rs: a repetition gives a tuple"),
        ("step_index", "steps.rs: held states, levels, maps that turn"),
        ("layer_index", "parameters.rs: the layer inside of its block"),
        ("head_index", "parameters.rs"),
        ("random_normal", "parameters.rs"),
        ("random_uniform", "parameters.rs"),
        ("random_orthogonal", "parameters.rs"),
        ("gradient", "steps.rs; written out before anything runs"),
        ("phi", "steps.rs: a map inside of the step"),
        ("call", "steps.rs: a map inside of the step"),
        ("loop", "steps.rs: a repetition"),
        ("blocks", "parameters.rs"),
        ("scan", "nets.rs"),
        ("position", "nets.rs"),
        ("causal_conv", "nets.rs"),
        ("time_cumsum", "nets.rs"),
        ("last", "nets.rs"),
        ("mean_over", "nets.rs"),
        ("along", "nets.rs"),
        ("shift", "nets.rs"),
        ("attention", "nets.rs"),
        ("dropout", "nets.rs"),
        ("fast_weights", "memories.rs"),
        ("memory_init", "memories.rs"),
        ("fast_write", "memories.rs"),
        ("fast_read", "memories.rs"),
    ];
    for (code, name) in Op::table() {
        let listed = elsewhere.iter().any(|(n, _)| n == name);
        assert!(tested.contains(code) != listed, "`{name}` is tested here: {}, listed as tested elsewhere: {listed}", !listed);
    }
    for (name, _) in elsewhere {
        assert!(Op::table().iter().any(|(_, n)| *n == name), "there is no operator `{name}`");
    }
}

#[test]
fn division_by_zero_gives_the_other_value_and_no_gradient() {
    let a = Tensor::from_slice(&[1.0, 2.0, 3.0]).set_requires_grad(true);
    let b = Tensor::from_slice(&[0.0, 4.0, -0.0]).set_requires_grad(true);
    let c = Tensor::from_slice(&[7.0, 8.0, 9.0]).set_requires_grad(true);
    let operands = [&a, &b, &c].map(|t| Value::new(t.shallow_clone(), Lead::NONE));
    let y = ops::apply(&Op::DivOr, &operands.iter().collect::<Vec<_>>(), DOUBLE).unwrap().tensor;
    assert_eq!(values(&y), [7.0, 0.5, 9.0]);
    let gradients = Tensor::run_backward(&[y.sum(Kind::Double)], &[&a, &b, &c], false, false);
    let gradients: Vec<Vec<f64>> = gradients.iter().map(values).collect();
    assert_eq!(gradients, [[0.0, 0.25, 0.0], [0.0, -0.125, 0.0], [1.0, 0.0, 1.0]]);
}

#[test]
fn nan_stays_nan() {
    let nan = Tensor::from_slice(&[f64::NAN, 1.0]);
    let one = Tensor::from_slice(&[1.0, f64::NAN]);
    let apply = |op: &Op, x: &[&Tensor]| {
        let operands: Vec<Value> = x.iter().map(|t| Value::new(t.shallow_clone(), Lead::NONE)).collect();
        values(&ops::apply(op, &operands.iter().collect::<Vec<_>>(), DOUBLE).unwrap().tensor)
    };
    for op in [Op::Relu, Op::Softplus, Op::LogSigmoid, Op::Gelu, Op::Silu, Op::Sign, Op::Abs, Op::Floor] {
        assert!(apply(&op, &[&nan])[0].is_nan(), "{}", op.name());
        assert!(!apply(&op, &[&nan])[1].is_nan(), "{}", op.name());
    }
    for op in [Op::Max, Op::Min, Op::Add, Op::Mul] {
        assert!(apply(&op, &[&nan, &one]).iter().all(|x| x.is_nan()), "{}", op.name());
    }
    for op in
        [Op::ReduceMax { axes: vec![0] }, Op::ReduceMin { axes: vec![0] }, Op::Softmax { axis: 0 }, Op::SumNormalise { eps: 0.0 }]
    {
        assert!(apply(&op, &[&nan])[0].is_nan(), "{}", op.name());
    }
    let mask = Tensor::from_slice(&[false, true]);
    assert_eq!(apply(&Op::Select, &[&mask, &nan, &one]), [1.0, 1.0], "only the selected branch is seen");
}

#[test]
fn a_positive_definite_system_is_solved_and_differentiated() {
    let mut numbers = Numbers::new(3);
    for (batch, n) in [(1, 1), (3, 3), (2, 13)] {
        let root = numbers.tensor(&[batch, n, n]);
        let a = (root.matmul(&root.transpose(1, 2)) + Tensor::eye(n, (Kind::Double, root.device()))).set_requires_grad(true);
        let b = numbers.tensor(&[batch, n]).set_requires_grad(true);
        let weights = numbers.tensor(&[batch, n]);
        let ours = conjugate_gradients(&a, &b, 60, 1e-14).unwrap();
        let dense = Tensor::linalg_solve(&a, &b.unsqueeze(2), true).squeeze_dim(2);
        close(&ours.detach(), &dense.detach(), 1e-11, "solution");
        let gradients = |x: &Tensor| Tensor::run_backward(&[(x * &weights).sum(Kind::Double)], &[&a, &b], false, false);
        for (ours, dense) in gradients(&ours).iter().zip(gradients(&dense)) {
            close(ours, &dense, 1e-10, "gradient");
        }
    }
    // A right-hand side of zero, and a limit that ends before the tolerance: no division by zero, no NaN.
    let a = Tensor::eye(3, (Kind::Double, tch::Device::Cpu)) * 2.0;
    assert_eq!(values(&conjugate_gradients(&a, &Tensor::zeros([3], (Kind::Double, a.device())), 5, 1e-10).unwrap()), [0.0; 3]);
    let one =
        conjugate_gradients(&Tensor::from_slice2(&[&[2.0, 1.0], &[1.0, 3.0]]), &Tensor::from_slice(&[1.0, 1.0]), 1, 0.0).unwrap();
    // One step along b: (b.b / b.Ab) b = 2/7.
    close(&one, &Tensor::from_slice(&[2.0 / 7.0, 2.0 / 7.0]), 1e-14, "one iteration");
}
