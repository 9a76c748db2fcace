//! Accepted and refused examples of every operator.

use fwp_sdk::program::shape::{Context, FunctionType};
use fwp_sdk::program::{
    Argument, Function, Kind, MapRole, Node, Op, Output, Parameter, Program, QueryScale, ReadAt, Role, RuleInput, Scope,
    SlotInterface, Span, State, StateInit, Training, Type,
};

use super::ty;

/// An operator, its operands, and either the type of the result or a part of the message.
pub type Example = (Op, &'static [&'static str], Result<&'static str, &'static str>);

fn ok(op: Op, operands: &'static [&'static str], result: &'static str) -> Example {
    (op, operands, Ok(result))
}

fn no(op: Op, operands: &'static [&'static str], message: &'static str) -> Example {
    (op, operands, Err(message))
}

/// At least one accepted and one refused example of every operator.
pub fn examples() -> Vec<Example> {
    let mut all = sources();
    all.extend(elementwise());
    all.extend(arranging());
    all.extend(reducing());
    all.extend(calling());
    all.extend(fast_weights());
    all
}

fn sources() -> Vec<Example> {
    let huge = vec![1 << 20, 1 << 20];
    vec![
        ok(Op::StepIndex, &[], "int[]"),
        no(Op::StepIndex, &["[]"], "expected 0 operands, got 1"),
        ok(Op::LayerIndex, &[], "int[]"),
        no(Op::LayerIndex, &["[]"], "expected 0 operands"),
        ok(Op::HeadIndex, &[], "int[]"),
        no(Op::HeadIndex, &["[]"], "expected 0 operands"),
        ok(Op::Argument { index: 0 }, &[], "int[7]"),
        no(Op::Argument { index: 1 }, &[], "there is no such argument"),
        ok(Op::Parameter { index: 0 }, &[], "[2, 3]"),
        no(Op::Parameter { index: 9 }, &[], "there is no such parameter"),
        ok(Op::State { index: 0 }, &[], "[4, 5]"),
        no(Op::State { index: u32::MAX }, &[], "there is no such state"),
        ok(Op::Constant { value: -0.0 }, &[], "[]"),
        no(Op::Constant { value: 1.0 }, &["[]"], "expected 0 operands"),
        ok(Op::Integer { value: i64::MIN }, &[], "int[]"),
        no(Op::Integer { value: 1 }, &["int[]"], "expected 0 operands"),
        ok(Op::Table { shape: vec![2, 1], values: vec![1.5, f64::NEG_INFINITY] }, &[], "[2, 1]"),
        no(Op::Table { shape: vec![2, 2], values: vec![1.0] }, &[], "a table of shape [2, 2] needs 4 values, got 1"),
        no(Op::Table { shape: vec![1 << 40, 1 << 40], values: vec![] }, &[], "too large"),
        ok(Op::Full { shape: vec![3, 1, 2], value: 0.25 }, &[], "[3, 1, 2]"),
        ok(Op::Full { shape: vec![], value: 0.25 }, &[], "[]"),
        no(Op::Full { shape: vec![3, 0], value: 0.0 }, &[], "shape [3, 0] has an empty axis"),
        no(Op::Full { shape: huge.clone(), value: 0.0 }, &[], "too large, the limit is 17179869184 elements"),
        no(Op::Full { shape: vec![1; 9], value: 0.0 }, &[], "9 axes is beyond the limit of 8"),
        ok(Op::Eye { n: 4 }, &[], "[4, 4]"),
        no(Op::Eye { n: 1 << 40 }, &[], "too large"),
        no(Op::Eye { n: 0 }, &[], "empty axis"),
        ok(Op::Arange { n: 4 }, &[], "int[4]"),
        no(Op::Arange { n: 0 }, &[], "empty axis"),
        ok(Op::Element { index: 1 }, &["([3], [2, 2])"], "[2, 2]"),
        no(Op::Element { index: 2 }, &["([3], [2, 2])"], "there is no part 2 of ([3], [2, 2])"),
        no(Op::Element { index: 0 }, &["[3]"], "expected several values, got [3]"),
        ok(Op::RandomNormal { shape: vec![5] }, &[], "[5]"),
        no(Op::RandomNormal { shape: huge.clone() }, &[], "too large"),
        ok(Op::RandomUniform { shape: vec![5, 2] }, &[], "[5, 2]"),
        no(Op::RandomUniform { shape: huge }, &[], "too large"),
        ok(Op::RandomOrthogonal { rows: 6, n: 3 }, &[], "[6, 3]"),
        no(Op::RandomOrthogonal { rows: usize::MAX, n: usize::MAX }, &[], "too large"),
    ]
}

fn elementwise() -> Vec<Example> {
    let mut all = Vec::new();
    for op in [
        Op::Neg,
        Op::Abs,
        Op::Sign,
        Op::Exp,
        Op::Expm1,
        Op::Log,
        Op::Log1p,
        Op::Sqrt,
        Op::Rsqrt,
        Op::Reciprocal,
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
        Op::Floor,
        Op::StopGradient,
        Op::Dropout { p: 0.1 },
    ] {
        all.push(ok(op.clone(), &["[time, 3, 2]"], "[time, 3, 2]"));
        all.push(ok(op.clone(), &["[]"], "[]"));
        all.push(no(op.clone(), &["int[3]"], "expected floats, got int[3]"));
        all.push(no(op.clone(), &["mask[]"], "expected floats, got mask[]"));
        all.push(no(op, &[], "expected 1 operands, got 0"));
    }
    for op in [Op::Add, Op::Sub, Op::Mul, Op::Max, Op::Min, Op::Rem] {
        all.push(ok(op.clone(), &["int[3]", "int[]"], "int[3]"));
        all.push(no(op, &["mask[3]", "mask[]"], "a mask is not a number; use to_float"));
    }
    for op in [Op::Add, Op::Sub, Op::Mul, Op::Max, Op::Min, Op::Rem, Op::Div, Op::Pow] {
        all.push(ok(op.clone(), &["[3, 2]", "[3, 2]"], "[3, 2]"));
        all.push(ok(op.clone(), &["[]", "[time, 3, 2]"], "[time, 3, 2]"));
        all.push(no(op.clone(), &["[3, 2]", "[2]"], "[3, 2] and [2] have different shapes, and only a scalar broadcasts"));
        all.push(no(op.clone(), &["[1]", "[2]"], "only a scalar broadcasts"));
        all.push(no(op.clone(), &["[3]", "int[3]"], "[3] and int[3] are of different kinds"));
        all.push(no(op, &["[source, 3]", "[target, 3]"], "a value along `source` cannot meet one along `target`"));
    }
    for op in [Op::Less, Op::LessEqual, Op::Equal] {
        all.push(ok(op.clone(), &["[3]", "[]"], "mask[3]"));
        all.push(ok(op.clone(), &["int[time]", "int[]"], "mask[time]"));
        all.push(no(op, &["[3]", "[4]"], "different shapes"));
    }
    for op in [Op::And, Op::Or] {
        all.push(ok(op.clone(), &["mask[3]", "mask[3]"], "mask[3]"));
        all.push(no(op, &["[3]", "[3]"], "does not work on [3]"));
    }
    for op in [Op::BitAnd, Op::BitOr, Op::BitXor, Op::ShiftLeft, Op::ShiftRight] {
        all.push(ok(op.clone(), &["int[3]", "int[]"], "int[3]"));
        all.push(no(op, &["[3]", "[]"], "does not work on [3]"));
    }
    all.extend([
        ok(Op::ToFloat, &["mask[time, 2]"], "[time, 2]"),
        ok(Op::ToFloat, &["int[]"], "[]"),
        no(Op::ToFloat, &["([3])"], "expected a tensor, got ([3])"),
        ok(Op::Not, &["mask[2]"], "mask[2]"),
        no(Op::Not, &["[2]"], "expected a mask, got [2]"),
        ok(Op::TrailingZeros, &["int[]"], "int[]"),
        no(Op::TrailingZeros, &["[]"], "expected integers, got []"),
        no(Op::Div, &["int[3]", "int[3]"], "`div` does not work on int[3]"),
        no(Op::Dropout { p: 1.0 }, &["[3]"], "a dropout probability is in [0, 1), not 1"),
        no(Op::Dropout { p: f64::NAN }, &["[3]"], "not NaN"),
        ok(Op::DivOr, &["[3]", "[]", "[]"], "[3]"),
        no(Op::DivOr, &["[3]", "[]"], "expected 3 operands, got 2"),
        no(Op::DivOr, &["[3]", "[4]", "[]"], "[3] and [4] have different shapes"),
        ok(Op::Select, &["mask[3]", "int[3]", "int[]"], "int[3]"),
        ok(Op::Select, &["mask[time]", "[2]", "[2]"], "[time, 2]"),
        no(Op::Select, &["[3]", "[3]", "[3]"], "expected a mask as the first operand, got [3]"),
        no(Op::Select, &["mask[2]", "[3]", "[3]"], "different shapes"),
        no(Op::Select, &["mask[2]", "[2]", "int[2]"], "different kinds"),
    ]);
    all
}

fn arranging() -> Vec<Example> {
    vec![
        ok(Op::MatVec, &["[3, 4]", "[time, 4]"], "[time, 3]"),
        no(Op::MatVec, &["[3, 4]", "[3]"], "expected a matrix [m, n] and a vector [n], got [3, 4] and [3]"),
        no(Op::MatVec, &["[3, 4]", "int[4]"], "expected floats, got int[4]; use to_float"),
        ok(Op::MatVecT, &["[3, 4]", "[3]"], "[4]"),
        no(Op::MatVecT, &["[3, 4]", "[4]"], "expected a matrix [m, n] and a vector [m], got [3, 4] and [4]"),
        ok(Op::MatMul, &["[3, 4]", "[4, 5]"], "[3, 5]"),
        no(Op::MatMul, &["[3, 4]", "[3, 4]"], "expected matrices [m, k] and [k, n]"),
        ok(Op::Outer, &["[3]", "[4]"], "[3, 4]"),
        no(Op::Outer, &["[3]", "[]"], "expected two vectors, got [3] and []"),
        no(Op::Outer, &["[200000]", "[200000]"], "too large"),
        ok(Op::Dot, &["[3, 2]", "[3, 2]"], "[]"),
        no(Op::Dot, &["[3]", "[]"], "expected two values of one shape, got [3] and []"),
        ok(Op::SolveSpd { iterations: 30, tolerance: 0.0 }, &["[3, 3]", "[time, 3]"], "[time, 3]"),
        no(Op::SolveSpd { iterations: 30, tolerance: 0.0 }, &["[3, 4]", "[3]"], "expected a matrix [n, n] and a vector [n]"),
        no(Op::SolveSpd { iterations: 0, tolerance: 0.0 }, &["[3, 3]", "[3]"], "iterations is 1 to"),
        no(Op::SolveSpd { iterations: 3, tolerance: -1.0 }, &["[3, 3]", "[3]"], "the tolerance is a finite number from 0"),
        ok(Op::Reshape { shape: vec![2, 3] }, &["int[time, 6]"], "int[time, 2, 3]"),
        no(Op::Reshape { shape: vec![2, 4] }, &["[6]"], "[6] has 6 elements, the shape [2, 4] has 8"),
        no(Op::Reshape { shape: vec![1 << 47; 8] }, &["[6]"], "too large"),
        ok(Op::Transpose { order: vec![2, 0, 1] }, &["[3, 4, 5]"], "[5, 3, 4]"),
        no(Op::Transpose { order: vec![1, 1] }, &["[3, 4]"], "expected an order of the 2 axes of [3, 4], got [1, 1]"),
        ok(Op::Slice { axis: 1, start: 1, length: 3 }, &["[2, 4]"], "[2, 3]"),
        no(Op::Slice { axis: 1, start: 2, length: 3 }, &["[2, 4]"], "no 3 elements from 2 on axis 1 of [2, 4]"),
        no(Op::Slice { axis: 0, start: usize::MAX, length: 2 }, &["[2]"], "no 2 elements"),
        no(Op::Slice { axis: 0, start: 0, length: 0 }, &["[2]"], "no 0 elements"),
        no(Op::Slice { axis: 2, start: 0, length: 1 }, &["[2, 4]"], "[2, 4] has no axis 2"),
        ok(Op::Concat { axis: 0 }, &["[2, 4]", "[time, 3, 4]"], "[time, 5, 4]"),
        no(Op::Concat { axis: 0 }, &["[2, 4]", "[3, 5]"], "[2, 4] and [3, 5] differ outside of axis 0"),
        no(Op::Concat { axis: 0 }, &[], "nothing to concatenate"),
        no(Op::Concat { axis: 0 }, &["[17179869184]", "[17179869184]"], "too large"),
        ok(Op::Expand { axis: 1, size: 7 }, &["[2, 4]"], "[2, 7, 4]"),
        ok(Op::Expand { axis: 0, size: 7 }, &["[]"], "[7]"),
        no(Op::Expand { axis: 2, size: 7 }, &["[4]"], "no place for an axis 2 of size 7 in [4]"),
        no(Op::Expand { axis: 0, size: usize::MAX }, &["[4]"], "too large"),
        no(Op::Expand { axis: 0, size: 2 }, &["[1, 1, 1, 1, 1, 1, 1, 1]"], "9 axes"),
        ok(Op::Roll { axis: 0, shift: -1 }, &["[4]"], "[4]"),
        no(Op::Roll { axis: 1, shift: 1 }, &["[4]"], "[4] has no axis 1"),
        no(Op::Roll { axis: 0, shift: i64::MIN }, &["[4]"], "a shift by -9223372036854775808 is too large"),
        ok(Op::Flip { axis: 0 }, &["[4]"], "[4]"),
        no(Op::Flip { axis: 0 }, &["[]"], "[] has no axis 0"),
        ok(Op::OneHot { size: 5 }, &["int[time, 2]"], "[time, 2, 5]"),
        no(Op::OneHot { size: 5 }, &["[2]"], "expected integers, got [2]"),
        no(Op::OneHot { size: usize::MAX }, &["int[2]"], "too large"),
        ok(Op::Gather, &["[9, 4]", "int[time, 2]"], "[time, 2, 4]"),
        no(Op::Gather, &["[9, 4]", "[2]"], "expected a table and integers, got [9, 4] and [2]"),
        no(Op::Gather, &["[]", "int[2]"], "expected a table and integers"),
        ok(Op::Gradient, &["[]", "[3, 2]", "[4]"], "([3, 2], [4])"),
        no(Op::Gradient, &["[3]", "[3]"], "expected a scalar to differentiate, got [3]"),
        no(Op::Gradient, &["[]"], "what to differentiate with respect to"),
        no(Op::Gradient, &["[]", "int[3]"], "expected floats"),
    ]
}

fn reducing() -> Vec<Example> {
    let mut all = Vec::new();
    for op in [Op::Cumsum { axis: 1 }, Op::Softmax { axis: 1 }, Op::LogSoftmax { axis: 1 }] {
        all.push(ok(op.clone(), &["[time, 3, 4]"], "[time, 3, 4]"));
        all.push(no(op, &["[3]"], "[3] has no axis 1"));
    }
    let over = |axes: &[usize]| {
        let axes = axes.to_vec();
        let (a, b, c) = (axes.clone(), axes.clone(), axes.clone());
        [Op::Sum { axes }, Op::Mean { axes: a }, Op::ReduceMax { axes: b }, Op::ReduceMin { axes: c }]
    };
    all.extend(over(&[2, 0]).map(|op| ok(op, &["[3, 4, 5]"], "[4]")));
    all.extend(over(&[]).map(|op| ok(op, &["[3]"], "[3]")));
    all.extend(over(&[0, 0]).map(|op| no(op, &["[3, 4]"], "expected different axes of [3, 4], got [0, 0]")));
    all.extend(over(&[2]).map(|op| no(op, &["[3, 4]"], "expected different axes of [3, 4], got [2]")));
    let eps = 1e-6;
    for op in [Op::RmsNorm { eps }, Op::LayerNorm { eps }, Op::L2Normalise { eps }, Op::SumNormalise { eps }] {
        all.push(ok(op.clone(), &["[time, 3, 4]"], "[time, 3, 4]"));
        all.push(no(op, &["[time]"], "a scalar has no last axis to normalise"));
    }
    all.extend([
        no(Op::RmsNorm { eps: f64::INFINITY }, &["[3]"], "the epsilon is a finite number from 0, not inf"),
        no(Op::LayerNorm { eps: -1.0 }, &["[3]"], "the epsilon is a finite number from 0, not -1"),
        ok(Op::LogSumExp { axis: 0 }, &["[3, 4]"], "[4]"),
        no(Op::LogSumExp { axis: 0 }, &["[]"], "[] has no axis 0"),
        ok(Op::Rotary { base: 1e4, interleaved: true }, &["[time, 3, 4]", "int[time]"], "[time, 3, 4]"),
        no(
            Op::Rotary { base: 1e4, interleaved: true },
            &["[3]", "int[]"],
            "expected [.., d] with even d and an integer position",
        ),
        no(Op::Rotary { base: 0.0, interleaved: true }, &["[4]", "int[]"], "the base is a finite number"),
        ok(Op::Phi { role: MapRole::Query, size: 6 }, &["[3]"], "[6]"),
        no(Op::Phi { role: MapRole::Key, size: 6 }, &["[]"], "a scalar has no features"),
    ]);
    all
}

fn calling() -> Vec<Example> {
    let attention = |causal| Op::Attention { scale: 0.5, causal, window: 0 };
    vec![
        ok(Op::Position, &["[time, 3]"], "int[time]"),
        no(Op::Position, &["[3]"], "[3] has no sequence axis"),
        ok(Op::TimeCumsum, &["[time, 3]"], "[time, 3]"),
        no(Op::TimeCumsum, &["[3]"], "[3] has no sequence axis"),
        ok(Op::Last, &["int[time]"], "int[]"),
        no(Op::Last, &["[3]"], "[3] has no sequence axis"),
        ok(Op::MeanOver, &["[time, 3]"], "[3]"),
        no(Op::MeanOver, &["int[time]"], "expected floats, got int[time]"),
        ok(Op::Along, &["[3]", "int[time]"], "[time, 3]"),
        no(Op::Along, &["[time, 3]", "int[time]"], "[time, 3] has a sequence axis already"),
        ok(Op::Shift { steps: 2 }, &["[time, 3]"], "[time, 3]"),
        no(Op::Shift { steps: 2 }, &["[3]"], "[3] has no sequence axis"),
        no(Op::Shift { steps: usize::MAX }, &["[time, 3]"], "too long"),
        ok(Op::CausalConv, &["[time, 3]", "[3, 4]"], "[time, 3]"),
        no(Op::CausalConv, &["[time, 3]", "[4, 3]"], "expected [c] along an axis and a kernel [c, width]"),
        ok(attention(true), &["[time, 4, 8]", "[time, 2, 8]", "[time, 2, 5]"], "[time, 4, 5]"),
        ok(attention(false), &["[target, 4, 8]", "[source, 2, 8]", "[source, 2, 5]"], "[target, 4, 5]"),
        no(attention(true), &["[target, 4, 8]", "[source, 2, 8]", "[source, 2, 5]"], "expected queries [h, d]"),
        no(attention(true), &["[time, 3, 8]", "[time, 2, 8]", "[time, 2, 5]"], "g a divisor of h"),
        no(attention(true), &["int[time, 4, 8]", "[time, 2, 8]", "[time, 2, 5]"], "expected queries [h, d]"),
        no(
            Op::Attention { scale: f64::NAN, causal: true, window: 0 },
            &["[time, 4, 8]", "[time, 2, 8]", "[time, 2, 5]"],
            "the scale is a finite number",
        ),
        ok(Op::Call { function: 1, name: "f".into() }, &["[3]", "[4]"], "([3])"),
        no(Op::Call { function: 1, name: "f".into() }, &["[3]", "[5]"], "operand 1 must be [4], got [5]"),
        no(Op::Call { function: 99, name: "f".into() }, &[], "there is no function 99 before this one"),
        ok(Op::Loop { function: 1, name: String::new(), count: 3, carried: 1 }, &["[3]", "[4]"], "([3])"),
        no(Op::Loop { function: 1, name: String::new(), count: 0, carried: 1 }, &["[3]", "[4]"], "repeated at least once"),
        no(
            Op::Loop { function: 1, name: String::new(), count: 3, carried: 2 },
            &["[3]", "[4]"],
            "every repetition takes over ([3], [4]) and must return that, it returns ([3])",
        ),
        ok(Op::Blocks { function: 1, name: "l".into(), count: 3, carried: 1, first: 5 }, &["[3]", "[4]"], "([3])"),
        no(Op::Blocks { function: 1, name: "l".into(), count: 3, carried: 9, first: 0 }, &["[3]", "[4]"], "must return that"),
        ok(Op::Scan { function: 2, name: "c".into(), states: 1 }, &["[3]", "[time, 5]"], "([3], [time, 5])"),
        no(
            Op::Scan { function: 2, name: "c".into(), states: 1 },
            &["[3]", "[5]"],
            "operand 1 ([5]) has no sequence axis to scan",
        ),
        no(Op::Scan { function: 2, name: "c".into(), states: 9 }, &["[3]", "[time, 5]"], "at most its 2 arguments can be states"),
        no(
            Op::Scan { function: 2, name: "c".into(), states: 1 },
            &["[3]", "[time, 4]"],
            "operand 1 of the cell is [5], got [time, 4]",
        ),
    ]
}

fn fast_weights() -> Vec<Example> {
    let names = |n: &[&str]| n.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let node = |inputs: &[&str], scale: QueryScale, read: ReadAt| Op::FastWeights {
        slot: "main".into(),
        name: "fw".into(),
        inputs: names(inputs),
        scale,
        read,
    };
    let all: &[&str] = &["q", "k", "v", "beta"];
    let write = |inputs: &[&str]| Op::FastWrite { slot: "main".into(), name: "fw".into(), inputs: names(inputs) };
    let read = |scale: QueryScale, inputs: &[&str]| Op::FastRead {
        slot: "main".into(),
        name: "fw".into(),
        inputs: names(inputs),
        scale,
    };
    const GIVEN: &[&str] = &["[time, 2, 3]", "[time, 2, 3]", "[time, 2, 4]", "[time, 2]"];
    vec![
        ok(node(all, QueryScale::Query, ReadAt::ChunkStart(16)), GIVEN, "([time, 2, 4], [time, 2, 4], memory(main))"),
        ok(
            node(&["q", "k", "v", "beta", "write"], QueryScale::None, ReadAt::After),
            &["[time, 2, 3]", "[time, 2, 3]", "[time, 2, 4]", "[time, 2]", "mask[time]"],
            "([time, 2, 4], [time, 2, 4], memory(main))",
        ),
        no(node(all, QueryScale::None, ReadAt::ChunkStart(0)), GIVEN, "a chunk has at least 1 step, not 0"),
        no(node(&["q", "k", "v"], QueryScale::None, ReadAt::After), &GIVEN_THREE, "rule `delta` also needs beta"),
        no(node(&["q", "q", "v", "beta"], QueryScale::None, ReadAt::After), GIVEN, "an input is given twice"),
        no(
            node(&["q", "k", "v", "b"], QueryScale::None, ReadAt::After),
            GIVEN,
            "rule `delta` has no input `b`; it has q, k, v, beta",
        ),
        no(
            node(all, QueryScale::None, ReadAt::After),
            &["[time, 2, 3]", "[time, 2, 6]", "[time, 2, 4]", "[time, 2]"],
            "input `k` of rule `delta` is [2, 3], got [time, 2, 6]",
        ),
        no(
            node(all, QueryScale::None, ReadAt::After),
            &["[2, 3]", "[2, 3]", "[2, 4]", "[2]"],
            "need operands along a sequence axis",
        ),
        ok(Op::MemoryInit { slot: "main".into(), name: "fw".into() }, &[], "memory(main)"),
        no(Op::MemoryInit { slot: "other".into(), name: "fw".into() }, &[], "there is no fast-weight slot `other`"),
        ok(write(&["k", "v", "beta"]), &["memory(main)", "[pairs, 2, 3]", "[pairs, 2, 4]", "[pairs, 2]"], "memory(main)"),
        no(write(&["k"]), &["[2, 3]", "[2, 3]"], "the first operand must be the memory of slot `main`"),
        no(write(&["write"]), &["memory(main)", "[2]"], "the write mask must be a scalar mask, not [2]"),
        ok(read(QueryScale::Output, &["q"]), &["memory(main)", "[query, 2, 3]"], "([query, 2, 4], [query, 2, 4])"),
        no(read(QueryScale::None, &["write"]), &["memory(main)", "mask[]"], "rule `delta` has no input `write`"),
    ]
}

const GIVEN_THREE: [&str; 3] = ["[time, 2, 3]", "[time, 2, 3]", "[time, 2, 4]"];

/// A program with what the examples refer to: functions 0 to 2, a parameter, a state and a slot.
pub fn around() -> Program {
    let argument = |name: &str, text: &str| Argument { name: name.into(), ty: ty(text) };
    let node = |op| Node { op, operands: vec![], span: Span::default() };
    let output = |name: &str, node| Output { name: name.into(), node };
    let input = |name: &str, role, shape: &[usize]| RuleInput {
        name: name.into(),
        role,
        raw: false,
        count: None,
        heads: None,
        shape: shape.into(),
    };
    let init = Function {
        name: "init".into(),
        nodes: vec![node(Op::Full { shape: vec![2, 3], value: 1.0 })],
        outputs: vec![output("value", 0)],
        ..Function::default()
    };
    let body = Function {
        name: "body".into(),
        arguments: vec![argument("x", "[3]"), argument("y", "[4]")],
        nodes: vec![node(Op::Argument { index: 0 })],
        outputs: vec![output("x", 0)],
        ..Function::default()
    };
    let cell = Function {
        name: "cell".into(),
        arguments: vec![argument("s", "[3]"), argument("x", "[5]")],
        nodes: vec![node(Op::Argument { index: 0 }), node(Op::Argument { index: 1 })],
        outputs: vec![output("s", 0), output("y", 1)],
        ..Function::default()
    };
    Program {
        kind: Kind::UpdateRule,
        name: "example".into(),
        config: "{}".into(),
        doc: "Doc.".into(),
        citation: "Citation.".into(),
        objective: "Objective.".into(),
        inputs: vec![],
        states: vec![State { name: "w".into(), shape: vec![4, 5], init: StateInit::Constant(0.5), held: 3 }],
        slots: vec![SlotInterface {
            name: "main".into(),
            rule: "delta".into(),
            heads: 2,
            key_raw: 3,
            key: 6,
            value: 4,
            inputs: vec![
                input("q", Role::Query, &[6]),
                input("k", Role::Key, &[6]),
                input("v", Role::Value, &[4]),
                input("beta", Role::Gate, &[]),
            ],
            output: vec![4],
            extras: vec![("bonus".into(), vec![4])],
        }],
        functions: vec![init, body, cell],
        entries: vec![],
        files: vec!["src/lib.rs".into()],
    }
}

/// A parameter of the function under test.
pub fn parameter() -> Parameter {
    let training = Training::Trained { decay: true };
    Parameter { name: "p".into(), shape: vec![2, 3], scope: Scope::Head, training, init: 0 }
}

/// What the shape rule says of an example.
pub fn infer(op: &Op, operands: &[&str]) -> Result<Type, String> {
    let p = around();
    let functions: Vec<FunctionType> = fwp_sdk::program::shape::types(&p).unwrap().functions;
    let (arguments, parameters) = ([Argument { name: "a".into(), ty: ty("int[7]") }], [parameter()]);
    let cx =
        Context { functions: &functions, arguments: &arguments, parameters: &parameters, states: &p.states, slots: &p.slots };
    let operands: Vec<Type> = operands.iter().map(|t| ty(t)).collect();
    fwp_sdk::program::shape::infer(op, &operands.iter().collect::<Vec<_>>(), &cx)
}

/// A program whose last function applies the operator to arguments of these types.
pub fn program(op: &Op, operands: &[&str]) -> Program {
    let mut p = around();
    let mut f = Function { name: "case".into(), parameters: vec![parameter()], ..Function::default() };
    f.arguments.push(Argument { name: "a".into(), ty: ty("int[7]") });
    let mut node = |op: Op, operands: Vec<u32>| {
        f.nodes.push(Node { op, operands, span: Span { file: 0, line: 3, column: 7 } });
        f.nodes.len() as u32 - 1
    };
    let mut arguments = Vec::new();
    let mut take = |t: Type, node: &mut dyn FnMut(Op, Vec<u32>) -> u32| {
        arguments.push(Argument { name: format!("x{}", arguments.len()), ty: t });
        node(Op::Argument { index: arguments.len() as u32 }, vec![])
    };
    let mut ids = Vec::new();
    for text in operands {
        let id = match ty(text) {
            // Several values are no argument; a gradient makes them.
            Type::Tuple(parts) => {
                let mut wrt = vec![take(ty("[]"), &mut node)];
                wrt.extend(parts.into_iter().map(|t| take(t, &mut node)));
                node(Op::Gradient, wrt)
            }
            t => take(t, &mut node),
        };
        ids.push(id);
    }
    let mut last = node(op.clone(), ids);
    if let Ok(Type::Tuple(_)) = infer(op, operands) {
        last = node(Op::Element { index: 0 }, vec![last]);
    }
    f.arguments.extend(arguments);
    f.outputs.push(Output { name: "y".into(), node: last });
    p.functions.push(f);
    p.entries.push(("step".into(), 3));
    p
}
