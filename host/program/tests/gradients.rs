//! Every derivative rule against central finite differences along random directions, once and twice differentiated,
//! with sizes that are all equal and sizes that are all different primes.

use fwp_program::expand_gradients;
use fwp_program::interpret::{Array, Inputs, Random, Value, evaluate};
use fwp_sdk::program::{Argument, Function, Kind, Node, NodeId, Op, Output, Program, Span, TensorType, shape};

/// Sizes of a case.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    m: usize,
    n: usize,
    k: usize,
}

const SIZES: [Sizes; 2] = [Sizes { m: 4, n: 4, k: 4 }, Sizes { m: 3, n: 5, k: 2 }];

/// How an argument is drawn.
#[derive(Clone, Copy)]
enum Draw {
    Normal,
    /// From 0.5 to 2.5.
    Positive,
}

struct Builder {
    f: Function,
    draws: Vec<Draw>,
    functions: Vec<Function>,
}

impl Builder {
    fn new() -> Builder {
        Builder { f: Function { name: "f".into(), ..Function::default() }, draws: vec![], functions: vec![] }
    }
    fn arg(&mut self, shape: &[usize]) -> NodeId {
        self.drawn(shape, Draw::Normal)
    }
    fn drawn(&mut self, shape: &[usize], draw: Draw) -> NodeId {
        let index = self.f.arguments.len() as u32;
        self.f.arguments.push(Argument { name: format!("x{index}"), ty: TensorType::float(shape).into() });
        self.draws.push(draw);
        self.op(Op::Argument { index }, &[])
    }
    fn op(&mut self, op: Op, operands: &[NodeId]) -> NodeId {
        self.f.nodes.push(Node { op, operands: operands.to_vec(), span: Span::default() });
        self.f.nodes.len() as NodeId - 1
    }
    fn c(&mut self, value: f64) -> NodeId {
        self.op(Op::Constant { value }, &[])
    }
    fn out(&mut self, name: &str, node: NodeId) {
        self.f.outputs.push(Output { name: name.into(), node });
    }
    fn program(self) -> (Program, Vec<Draw>) {
        let mut functions = self.functions;
        functions.push(self.f);
        let last = functions.len() as u32 - 1;
        let p = Program {
            kind: Kind::UpdateRule,
            name: "case".into(),
            config: "{}".into(),
            doc: String::new(),
            citation: String::new(),
            objective: String::new(),
            inputs: vec![],
            states: vec![],
            slots: vec![],
            functions,
            entries: vec![("step".into(), last)],
            files: vec![],
        };
        (p, self.draws)
    }
}

/// Adds y = <result, r>, its gradients, the scalar s = sum of <gradient, u>, and the gradients of s; then compares both with differences.
fn judge(label: &str, mut b: Builder, result: NodeId, second_order: bool) {
    let shapes = {
        let (p, _) = Builder { f: b.f.clone(), draws: b.draws.clone(), functions: b.functions.clone() }.program();
        let types = shape::types(&p).unwrap_or_else(|e| panic!("{label}: {e}"));
        types.nodes.last().unwrap().clone()
    };
    let fwp_sdk::program::Type::Tensor(t) = &shapes[result as usize] else { panic!("{label}: not a tensor") };
    let inputs = b.f.arguments.len();
    let wrt: Vec<NodeId> = (0..inputs)
        .map(|i| b.f.nodes.iter().position(|n| n.op == (Op::Argument { index: i as u32 })).unwrap() as NodeId)
        .collect();
    let r = b.arg(&t.shape);
    let y = b.op(Op::Dot, &[result, r]);
    let mut all = vec![y];
    all.extend(&wrt);
    let g = b.op(Op::Gradient, &all);
    let mut s = b.c(0.0);
    for i in 0..inputs {
        let part = b.op(Op::Element { index: i as u32 }, &[g]);
        b.out(&format!("g{i}"), part);
        let fwp_sdk::program::Type::Tensor(t) = b.f.arguments[i].ty.clone() else { unreachable!() };
        let u = b.arg(&t.shape);
        let along = b.op(Op::Dot, &[part, u]);
        s = b.op(Op::Add, &[s, along]);
    }
    b.out("y", y);
    b.out("s", s);
    if second_order {
        let mut all = vec![s];
        all.extend(&wrt);
        let g = b.op(Op::Gradient, &all);
        for i in 0..inputs {
            let part = b.op(Op::Element { index: i as u32 }, &[g]);
            b.out(&format!("h{i}"), part);
        }
    }
    let (p, draws) = b.program();
    shape::types(&p).unwrap_or_else(|e| panic!("{label}: {e}"));
    let expanded = expand_gradients(&p).unwrap_or_else(|e| panic!("{label}: {e}"));
    shape::types(&expanded).unwrap_or_else(|e| panic!("{label}: the expansion has no types: {e}"));
    let f = expanded.entry("step").unwrap();
    assert!(f.nodes.iter().all(|n| n.op != Op::Gradient), "{label}: a gradient is left");

    for seed in 0..3 {
        let mut random = Random::new(seed);
        let sizes = |a: &Argument| match &a.ty {
            fwp_sdk::program::Type::Tensor(t) => t.shape.clone(),
            _ => unreachable!(),
        };
        let mut draw = |shape: &[usize], how: Draw| {
            let n = shape.iter().product::<usize>();
            let values = (0..n).map(|_| match how {
                Draw::Normal => random.normal(),
                Draw::Positive => 0.5 + 2.0 * random.uniform(),
            });
            values.collect::<Vec<f64>>()
        };
        let mut point: Vec<Vec<f64>> = Vec::new();
        for (i, a) in f.arguments.iter().enumerate() {
            point.push(draw(&sizes(a), draws[i]));
        }
        let direction: Vec<Vec<f64>> = f.arguments[..inputs].iter().map(|a| draw(&sizes(a), Draw::Normal)).collect();
        let at = |t: f64| -> Vec<Value> {
            let arguments = f.arguments.iter().enumerate().map(|(i, a)| {
                let mut v = point[i].clone();
                if let Some(d) = direction.get(i) {
                    v.iter_mut().zip(d).for_each(|(v, d)| *v += t * d);
                }
                Array::new(&sizes(a), v).unwrap().into()
            });
            let mut inputs = Inputs { arguments: arguments.collect(), index: 3, ..Inputs::default() };
            evaluate(&expanded, f, &mut inputs).unwrap_or_else(|e| panic!("{label}: {e}"))
        };
        let value = |results: &[Value], name: &str| -> Vec<f64> {
            let i = f.outputs.iter().position(|o| o.name == name).unwrap();
            results[i].tensor().unwrap().floats().unwrap().to_vec()
        };
        let h = 1e-5;
        let (here, ahead, behind) = (at(0.0), at(h), at(-h));
        let compare = |of: &str, by: &str| {
            let measured = (value(&ahead, of)[0] - value(&behind, of)[0]) / (2.0 * h);
            let formed: f64 = (0..inputs)
                .map(|i| value(&here, &format!("{by}{i}")).iter().zip(&direction[i]).map(|(g, d)| g * d).sum::<f64>())
                .sum();
            let scale = measured.abs().max(formed.abs()).max(1.0);
            assert!(
                (measured - formed).abs() / scale < 2e-6,
                "{label}, d{of}, seed {seed}: measured {measured}, formed {formed}"
            );
        };
        compare("y", "g");
        if second_order {
            compare("s", "h");
        }
    }
}

#[test]
fn elementwise() {
    use Op::*;
    let any = [Neg, Abs, Exp, Expm1, Square, Sin, Cos, Tanh, Sigmoid, LogSigmoid, Softplus, Relu, Gelu, GeluTanh, Silu, Erf];
    let positive = [Log, Log1p, Sqrt, Rsqrt, Reciprocal];
    for s in SIZES {
        for (ops, draw) in [(&any[..], Draw::Normal), (&positive[..], Draw::Positive)] {
            for op in ops {
                for shape in [&[s.m, s.n][..], &[]] {
                    let mut b = Builder::new();
                    let x = b.drawn(shape, draw);
                    let y = b.op(op.clone(), &[x]);
                    judge(&format!("{} {shape:?}", op.name()), b, y, true);
                }
            }
        }
    }
}

#[test]
fn two_operands_with_and_without_a_scalar() {
    use Op::*;
    for s in SIZES {
        let full: &[usize] = &[s.m, s.n];
        for op in [Add, Sub, Mul, Div, Max, Min, Pow, Rem] {
            for (left, right) in [(full, full), (&[], full), (full, &[]), (&[][..], &[][..])] {
                let mut b = Builder::new();
                let x = b.drawn(left, Draw::Positive);
                let z = b.drawn(right, Draw::Positive);
                let y = b.op(op.clone(), &[x, z]);
                judge(&format!("{} {left:?} {right:?}", op.name()), b, y, true);
            }
        }
        for op in [Mul, Div, Add] {
            let mut b = Builder::new();
            let x = b.drawn(full, Draw::Positive);
            let y = b.op(op.clone(), &[x, x]);
            let y = b.op(Mul, &[y, x]);
            judge(&format!("{} with itself", op.name()), b, y, true);
        }
    }
}

#[test]
fn selection_and_guarded_division() {
    for s in SIZES {
        for (mask_of, a, c) in [(vec![s.n], vec![s.n], vec![s.n]), (vec![], vec![s.n], vec![]), (vec![s.n], vec![], vec![])] {
            let mut b = Builder::new();
            let m = b.arg(&mask_of);
            let x = b.arg(&a);
            let z = b.arg(&c);
            let zero = b.c(0.0);
            let mask = b.op(Op::Less, &[m, zero]);
            let y = b.op(Op::Select, &[mask, x, z]);
            let y = b.op(Op::Mul, &[y, y]);
            judge("select", b, y, true);
        }
        // Half of the divisors are 0.
        let mut b = Builder::new();
        let x = b.arg(&[s.n]);
        let d = b.drawn(&[s.n], Draw::Positive);
        let otherwise = b.arg(&[s.n]);
        let pattern = b.op(Op::Table { shape: vec![s.n], values: (0..s.n).map(|i| (i % 2) as f64).collect() }, &[]);
        let d = b.op(Op::Mul, &[d, pattern]);
        let y = b.op(Op::DivOr, &[x, d, otherwise]);
        judge("div_or", b, y, true);
        let mut b = Builder::new();
        let x = b.arg(&[s.m, s.n]);
        let d = b.drawn(&[], Draw::Positive);
        let otherwise = b.arg(&[]);
        let y = b.op(Op::DivOr, &[x, d, otherwise]);
        judge("div_or by a scalar", b, y, true);
    }
}

#[test]
fn linear_algebra() {
    for Sizes { m, n, k } in SIZES {
        let cases: [(Op, &[usize], &[usize]); 6] = [
            (Op::MatVec, &[m, n], &[n]),
            (Op::MatVecT, &[m, n], &[m]),
            (Op::MatMul, &[m, k], &[k, n]),
            (Op::Outer, &[m], &[n]),
            (Op::Dot, &[m, n], &[m, n]),
            (Op::Dot, &[], &[]),
        ];
        for (op, left, right) in cases {
            let mut b = Builder::new();
            let x = b.arg(left);
            let z = b.arg(right);
            let y = b.op(op.clone(), &[x, z]);
            let y = b.op(Op::Tanh, &[y]);
            judge(op.name(), b, y, true);
        }
        let mut b = Builder::new();
        let x = b.arg(&[m, n]);
        let y = b.op(Op::Dot, &[x, x]);
        judge("dot with itself", b, y, true);
        // A = B B^T + I is symmetric wherever B moves.
        let mut b = Builder::new();
        let x = b.arg(&[n, k]);
        let v = b.arg(&[n]);
        let t = b.op(Op::Transpose { order: vec![1, 0] }, &[x]);
        let square = b.op(Op::MatMul, &[x, t]);
        let eye = b.op(Op::Eye { n }, &[]);
        let a = b.op(Op::Add, &[square, eye]);
        let y = b.op(Op::SolveSpd { iterations: 60, tolerance: 1e-15 }, &[a, v]);
        judge("solve_spd", b, y, true);
    }
}

#[test]
fn reductions_softmax_and_norms() {
    for Sizes { m, n, k } in SIZES {
        let shape = [m, n, k];
        let mut ops = Vec::new();
        for axes in [vec![], vec![0], vec![1], vec![2, 0], vec![0, 1, 2]] {
            ops.push(Op::Sum { axes: axes.clone() });
            ops.push(Op::Mean { axes: axes.clone() });
            ops.push(Op::ReduceMax { axes: axes.clone() });
            ops.push(Op::ReduceMin { axes });
        }
        for axis in 0..3 {
            ops.push(Op::Softmax { axis });
            ops.push(Op::LogSoftmax { axis });
            ops.push(Op::LogSumExp { axis });
            ops.push(Op::Cumsum { axis });
        }
        ops.push(Op::RmsNorm { eps: 1e-2 });
        ops.push(Op::LayerNorm { eps: 1e-2 });
        ops.push(Op::L2Normalise { eps: 1e-2 });
        for op in ops {
            let mut b = Builder::new();
            let x = b.arg(&shape);
            let y = b.op(op.clone(), &[x]);
            judge(&format!("{op:?}"), b, y, true);
        }
        let mut b = Builder::new();
        let x = b.drawn(&shape, Draw::Positive);
        let y = b.op(Op::SumNormalise { eps: 1e-2 }, &[x]);
        judge("sum_normalise", b, y, true);
    }
}

#[test]
fn changes_of_shape() {
    for Sizes { m, n, k } in SIZES {
        let ops = [
            Op::Reshape { shape: vec![n * k, m] },
            Op::Transpose { order: vec![2, 0, 1] },
            Op::Slice { axis: 1, start: 1, length: n - 2 },
            Op::Slice { axis: 0, start: 0, length: m - 1 },
            Op::Slice { axis: 0, start: 0, length: m },
            Op::Expand { axis: 0, size: 3 },
            Op::Expand { axis: 3, size: 2 },
            Op::Roll { axis: 1, shift: 2 },
            Op::Roll { axis: 0, shift: -7 },
            Op::Flip { axis: 2 },
        ];
        for op in ops {
            let mut b = Builder::new();
            let x = b.arg(&[m, n, k]);
            let y = b.op(op.clone(), &[x]);
            let y = b.op(Op::Sin, &[y]);
            judge(&format!("{op:?}"), b, y, true);
        }
        let mut b = Builder::new();
        let x = b.arg(&[m, n]);
        let z = b.arg(&[m, k]);
        let y = b.op(Op::Concat { axis: 1 }, &[x, z, x]);
        let y = b.op(Op::Sin, &[y]);
        judge("concat", b, y, true);
        for table in [vec![n], vec![n, k], vec![n, k, m]] {
            let mut b = Builder::new();
            let x = b.arg(&table);
            // Rows 0 and 1, some of them twice.
            let i = b.op(Op::Arange { n: 4 }, &[]);
            let two = b.op(Op::Integer { value: 2 }, &[]);
            let i = b.op(Op::Rem, &[i, two]);
            let i = b.op(Op::Reshape { shape: vec![2, 2] }, &[i]);
            let y = b.op(Op::Gather, &[x, i]);
            let y = b.op(Op::Sin, &[y]);
            judge("gather", b, y, true);
        }
        for interleaved in [false, true] {
            let mut b = Builder::new();
            let x = b.arg(&[m, 2 * n]);
            let position = b.op(Op::StepIndex, &[]);
            let y = b.op(Op::Rotary { base: 100.0, interleaved }, &[x, position]);
            let y = b.op(Op::Sin, &[y]);
            judge("rotary", b, y, true);
        }
    }
}

#[test]
fn a_loop_on_the_way_is_unrolled() {
    for Sizes { n, .. } in SIZES {
        let mut b = Builder::new();
        let mut body = Builder::new();
        let x = body.arg(&[n]);
        let w = body.arg(&[n, n]);
        let y = body.op(Op::MatVec, &[w, x]);
        let y = body.op(Op::Tanh, &[y]);
        body.out("x", y);
        b.functions.push(body.f);
        let x = b.arg(&[n]);
        let w = b.arg(&[n, n]);
        let all = b.op(Op::Loop { function: 0, name: String::new(), count: 3, carried: 1 }, &[x, w]);
        let y = b.op(Op::Element { index: 0 }, &[all]);
        judge("loop", b, y, true);
    }
}

#[test]
fn stop_gradient_and_free_variables() {
    // y = x * stop(x): the gradient is stop(x), not 2 x; with respect to z = x^2 taken as free, d(x z)/dz = x and d(x z)/dx = z.
    let mut b = Builder::new();
    let x = b.arg(&[]);
    let stopped = b.op(Op::StopGradient, &[x]);
    let y = b.op(Op::Mul, &[x, stopped]);
    let g = b.op(Op::Gradient, &[y, x]);
    let g = b.op(Op::Element { index: 0 }, &[g]);
    b.out("stopped", g);
    let z = b.op(Op::Square, &[x]);
    let y = b.op(Op::Mul, &[x, z]);
    let g = b.op(Op::Gradient, &[y, x, z]);
    for i in 0..2 {
        let part = b.op(Op::Element { index: i }, &[g]);
        b.out(if i == 0 { "dx" } else { "dz" }, part);
    }
    let other = b.arg(&[2, 3]);
    let g = b.op(Op::Gradient, &[y, other]);
    let g = b.op(Op::Element { index: 0 }, &[g]);
    b.out("none", g);
    let (p, _) = b.program();
    let p = expand_gradients(&p).unwrap();
    let f = p.entry("step").unwrap();
    let mut inputs = Inputs { arguments: vec![Array::scalar(3.0).into(), Array::full(&[2, 3], 1.0).into()], ..Inputs::default() };
    let got = evaluate(&p, f, &mut inputs).unwrap();
    let numbers: Vec<Vec<f64>> = got.iter().map(|v| v.tensor().unwrap().floats().unwrap().to_vec()).collect();
    assert_eq!(numbers, [vec![3.0], vec![9.0], vec![3.0], vec![0.0; 6]]);
    assert_eq!(got[3].tensor().unwrap().shape, [2, 3]);
}

#[test]
fn edges_have_the_slopes_that_are_promised() {
    // At 0: |x| and relu slope 0; ties of max share; a divisor of 0 lets nothing through; 0^0 and 0^2 stay finite, twice differentiated too.
    let slope = |make: &dyn Fn(&mut Builder, NodeId, NodeId) -> NodeId, at: (f64, f64)| -> Vec<f64> {
        let mut b = Builder::new();
        let x = b.arg(&[]);
        let z = b.arg(&[]);
        let y = make(&mut b, x, z);
        let g = b.op(Op::Gradient, &[y, x, z]);
        let dx = b.op(Op::Element { index: 0 }, &[g]);
        let dz = b.op(Op::Element { index: 1 }, &[g]);
        let gg = b.op(Op::Gradient, &[dx, x]);
        let dxx = b.op(Op::Element { index: 0 }, &[gg]);
        b.out("dx", dx);
        b.out("dz", dz);
        b.out("dxx", dxx);
        let (p, _) = b.program();
        let p = expand_gradients(&p).unwrap();
        let arguments = vec![Array::scalar(at.0).into(), Array::scalar(at.1).into()];
        let results = evaluate(&p, p.entry("step").unwrap(), &mut Inputs { arguments, ..Inputs::default() }).unwrap();
        results.iter().map(|v| v.tensor().unwrap().floats().unwrap()[0]).collect()
    };
    assert_eq!(slope(&|b, x, _| b.op(Op::Abs, &[x]), (0.0, 1.0)), [0.0, 0.0, 0.0]);
    assert_eq!(slope(&|b, x, _| b.op(Op::Relu, &[x]), (0.0, 1.0)), [0.0, 0.0, 0.0]);
    assert_eq!(slope(&|b, x, z| b.op(Op::Max, &[x, z]), (2.0, 2.0)), [0.5, 0.5, 0.0]);
    assert_eq!(slope(&|b, x, z| b.op(Op::Min, &[x, z]), (1.0, 2.0)), [1.0, 0.0, 0.0]);
    assert_eq!(slope(&|b, x, z| b.op(Op::DivOr, &[x, z, x]), (5.0, 0.0)), [1.0, 0.0, 0.0]);
    assert_eq!(slope(&|b, x, z| b.op(Op::Pow, &[x, z]), (0.0, 2.0)), [0.0, 0.0, 2.0]);
    assert_eq!(slope(&|b, x, z| b.op(Op::Pow, &[x, z]), (0.0, 0.0))[..2], [0.0, 0.0]);
}

#[test]
fn a_loop_that_unrolls_to_too_much_is_refused_at_its_place() {
    let mut b = Builder::new();
    let mut body = Builder::new();
    let x = body.arg(&[]);
    body.out("x", x);
    b.functions.push(body.f);
    let x = b.arg(&[]);
    let all = b.op(Op::Loop { function: 0, name: String::new(), count: 1 << 40, carried: 1 }, &[x]);
    let y = b.op(Op::Element { index: 0 }, &[all]);
    let g = b.op(Op::Gradient, &[y, x]);
    let g = b.op(Op::Element { index: 0 }, &[g]);
    b.out("g", g);
    b.f.nodes.iter_mut().for_each(|n| n.span = Span { file: 0, line: 7, column: 3 });
    let (mut p, _) = b.program();
    p.files = vec!["rule.rs".into()];
    let e = expand_gradients(&p).unwrap_err();
    assert!(e.to_string().starts_with("rule.rs:7:3: update-rule `case`"), "{e}");
    assert!(e.to_string().contains("repetitions"), "{e}");
}
