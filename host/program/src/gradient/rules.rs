//! The adjoint of every operator, as nodes.
//!
//! Written so that the result can be differentiated again: no branch of a `select` holds an infinite slope that a zero would meet.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use fwp_sdk::program::{NodeId, Op};

use crate::graph::Editor;

type Parts = Vec<(usize, NodeId)>;
type Result<T> = std::result::Result<T, String>;

/// Whether an operator's result is constant for every gradient.
pub(super) fn is_flat(op: &Op) -> bool {
    matches!(op, Op::StopGradient | Op::Sign | Op::Floor | Op::ToFloat | Op::OneHot { .. })
}

/// Adjoints of the wanted operands of node `i` whose own adjoint is `g`, by operand position.
pub(super) fn adjoints(e: &mut Editor<'_>, i: NodeId, g: NodeId, wants: &dyn Fn(usize) -> bool) -> Result<Parts> {
    let node = e.nodes[i as usize].clone();
    let x = node.operands.as_slice();
    Ok(match &node.op {
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::DivOr | Op::Max | Op::Min | Op::Pow | Op::Rem | Op::Select => {
            return arithmetic(e, &node.op, x, i, g, wants);
        }
        Op::MatVec | Op::MatVecT | Op::MatMul | Op::Outer | Op::Dot | Op::SolveSpd { .. } => {
            return linear_algebra(e, &node.op, x, i, g, wants);
        }
        Op::Concat { axis } => {
            let mut parts = Vec::new();
            let mut start = 0;
            for (position, operand) in x.iter().enumerate() {
                let length = e.shape(*operand)[*axis];
                if wants(position) {
                    parts.push((position, e.push(Op::Slice { axis: *axis, start, length }, &[g])?));
                }
                start += length;
            }
            parts
        }
        Op::Gather => vec![(0, gather(e, x, g)?)],
        Op::Rotary { base, interleaved } => {
            let zero = e.push(Op::Integer { value: 0 }, &[])?;
            let back = e.sub(zero, x[1])?;
            vec![(0, e.push(Op::Rotary { base: *base, interleaved: *interleaved }, &[g, back])?)]
        }
        Op::Softmax { .. }
        | Op::LogSoftmax { .. }
        | Op::LogSumExp { .. }
        | Op::RmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::L2Normalise { .. }
        | Op::SumNormalise { .. } => vec![(0, normalised(e, &node.op, x[0], i, g)?)],
        Op::Sum { .. }
        | Op::Mean { .. }
        | Op::ReduceMax { .. }
        | Op::ReduceMin { .. }
        | Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Expand { .. }
        | Op::Roll { .. }
        | Op::Flip { .. }
        | Op::Cumsum { .. } => vec![(0, shaped(e, &node.op, x[0], i, g)?)],
        Op::Phi { .. } => return Err("it passes through `phi`, and the feature map has not been put in".into()),
        op => match x {
            [x] => vec![(0, elementwise(e, op, *x, i, g)?)],
            _ => return Err(format!("`{}` has no gradient here", op.name())),
        },
    })
}

/// g f'(x) for y = f(x), element by element.
fn elementwise(e: &mut Editor<'_>, op: &Op, x: NodeId, y: NodeId, g: NodeId) -> Result<NodeId> {
    let slope = match op {
        Op::Neg => return e.neg(g),
        Op::Abs => e.unary(Op::Sign, x)?,
        Op::Exp => y,
        Op::Expm1 => e.unary(Op::Exp, x)?,
        Op::Log => return e.div(g, x),
        Op::Log1p => {
            let one = e.constant(1.0)?;
            let d = e.add(one, x)?;
            return e.div(g, d);
        }
        Op::Sqrt => {
            let half = e.scale(0.5, g)?;
            return e.div(half, y);
        }
        Op::Rsqrt => {
            let square = e.unary(Op::Square, y)?;
            let cube = e.mul(square, y)?;
            e.scale(-0.5, cube)?
        }
        Op::Reciprocal => {
            let square = e.unary(Op::Square, y)?;
            e.neg(square)?
        }
        Op::Square => e.scale(2.0, x)?,
        Op::Sin => e.unary(Op::Cos, x)?,
        Op::Cos => {
            let s = e.unary(Op::Sin, x)?;
            e.neg(s)?
        }
        Op::Tanh => {
            let square = e.unary(Op::Square, y)?;
            one_minus(e, square)?
        }
        Op::Sigmoid => {
            let rest = one_minus(e, y)?;
            e.mul(y, rest)?
        }
        Op::LogSigmoid => {
            let minus = e.neg(x)?;
            e.unary(Op::Sigmoid, minus)?
        }
        Op::Softplus => e.unary(Op::Sigmoid, x)?,
        Op::Relu => {
            let zero = e.constant(0.0)?;
            // NaN is not at most zero, so its slope stays one.
            let flat = e.push(Op::LessEqual, &[x, zero])?;
            return e.push(Op::Select, &[flat, zero, g]);
        }
        Op::Gelu => {
            // Phi(x) + x phi(x)
            let scaled = e.scale(FRAC_1_SQRT_2, x)?;
            let erf = e.unary(Op::Erf, scaled)?;
            let one = e.constant(1.0)?;
            let above = e.add(one, erf)?;
            let cdf = e.scale(0.5, above)?;
            let square = e.unary(Op::Square, x)?;
            let exponent = e.scale(-0.5, square)?;
            let bell = e.unary(Op::Exp, exponent)?;
            let pdf = e.scale(1.0 / (2.0 * PI).sqrt(), bell)?;
            let moving = e.mul(x, pdf)?;
            e.add(cdf, moving)?
        }
        Op::GeluTanh => {
            // t = tanh(c (x + a x^3)): (1 + t) / 2 + x / 2 (1 - t^2) c (1 + 3 a x^2)
            let (c, a) = ((2.0 / PI).sqrt(), 0.044715);
            let one = e.constant(1.0)?;
            let square = e.unary(Op::Square, x)?;
            let bent = e.scale(a, square)?;
            let bent = e.add(one, bent)?;
            let inner = e.mul(x, bent)?;
            let inner = e.scale(c, inner)?;
            let t = e.unary(Op::Tanh, inner)?;
            let above = e.add(one, t)?;
            let first = e.scale(0.5, above)?;
            let t2 = e.unary(Op::Square, t)?;
            let rest = one_minus(e, t2)?;
            let steep = e.scale(3.0 * a, square)?;
            let steep = e.add(one, steep)?;
            let second = e.mul(x, rest)?;
            let second = e.mul(second, steep)?;
            let second = e.scale(0.5 * c, second)?;
            e.add(first, second)?
        }
        Op::Silu => {
            // s + y (1 - s)
            let s = e.unary(Op::Sigmoid, x)?;
            let rest = one_minus(e, s)?;
            let moving = e.mul(y, rest)?;
            e.add(s, moving)?
        }
        Op::Erf => {
            let square = e.unary(Op::Square, x)?;
            let minus = e.neg(square)?;
            let bell = e.unary(Op::Exp, minus)?;
            e.scale(2.0 / PI.sqrt(), bell)?
        }
        op => return Err(format!("`{}` has no gradient here", op.name())),
    };
    e.mul(g, slope)
}

fn one_minus(e: &mut Editor<'_>, x: NodeId) -> Result<NodeId> {
    let one = e.constant(1.0)?;
    e.sub(one, x)
}

/// Operators on operands of one shape, some of them perhaps scalars.
fn arithmetic(e: &mut Editor<'_>, op: &Op, x: &[NodeId], y: NodeId, g: NodeId, wants: &dyn Fn(usize) -> bool) -> Result<Parts> {
    let shapes: Vec<Vec<usize>> = x.iter().map(|n| e.shape(*n).to_vec()).collect();
    let mut parts = Parts::new();
    if matches!(op, Op::Mul) && x[0] == x[1] {
        let twice = e.scale(2.0, x[0])?;
        return Ok(vec![(0, e.mul(g, twice)?)]);
    }
    for position in (0..x.len()).filter(|p| wants(*p)) {
        let shape = &shapes[position];
        let part = match (op, position) {
            (Op::Add, _) | (Op::Sub, 0) | (Op::Rem, 0) => e.fit(g, shape)?,
            (Op::Sub, _) => {
                let fitted = e.fit(g, shape)?;
                e.neg(fitted)?
            }
            (Op::Mul, _) => e.mul_fit(g, x[1 - position], shape)?,
            (Op::Div, 0) => {
                let part = e.div(g, x[1])?;
                e.fit(part, shape)?
            }
            (Op::Div, _) => {
                let slope = e.div(y, x[1])?;
                let part = e.mul_fit(g, slope, shape)?;
                e.neg(part)?
            }
            (Op::DivOr, 0) => {
                let zero = e.constant(0.0)?;
                let part = e.push(Op::DivOr, &[g, x[1], zero])?;
                e.fit(part, shape)?
            }
            (Op::DivOr, 1) => {
                let zero = e.constant(0.0)?;
                let top = e.mul(g, y)?;
                let part = e.push(Op::DivOr, &[top, x[1], zero])?;
                let part = e.fit(part, shape)?;
                e.neg(part)?
            }
            (Op::DivOr, _) => {
                let zero = e.constant(0.0)?;
                let mask = e.push(Op::Equal, &[x[1], zero])?;
                let part = e.push(Op::Select, &[mask, g, zero])?;
                e.fit(part, shape)?
            }
            (Op::Max | Op::Min, _) => {
                // All of it to the one taken, half each where both are; NaN loses nothing.
                let (a, b) = (x[position], x[1 - position]);
                let (low, high) = if matches!(op, Op::Max) { (a, b) } else { (b, a) };
                let zero = e.constant(0.0)?;
                let lost = e.push(Op::Less, &[low, high])?;
                let tie = e.push(Op::Equal, &[a, b])?;
                let half = e.scale(0.5, g)?;
                let kept = e.push(Op::Select, &[tie, half, g])?;
                let part = e.push(Op::Select, &[lost, zero, kept])?;
                e.fit(part, shape)?
            }
            (Op::Pow, 0) => {
                // b a^(b-1); where b is 0 the factor b alone makes it 0.
                let (zero, one) = (e.constant(0.0)?, e.constant(1.0)?);
                let none = e.push(Op::Equal, &[x[1], zero])?;
                let exponent = e.push(Op::Select, &[none, one, x[1]])?;
                let exponent = e.sub(exponent, one)?;
                let power = e.push(Op::Pow, &[x[0], exponent])?;
                let slope = e.mul(x[1], power)?;
                e.mul_fit(g, slope, shape)?
            }
            (Op::Pow, _) => {
                let (zero, one) = (e.constant(0.0)?, e.constant(1.0)?);
                let none = e.push(Op::Equal, &[x[0], zero])?;
                let base = e.push(Op::Select, &[none, one, x[0]])?;
                let log = e.unary(Op::Log, base)?;
                let slope = e.mul(y, log)?;
                e.mul_fit(g, slope, shape)?
            }
            (Op::Rem, _) => {
                let ratio = e.div(x[0], x[1])?;
                let whole = e.unary(Op::Floor, ratio)?;
                let part = e.mul_fit(g, whole, shape)?;
                e.neg(part)?
            }
            (_, position) => {
                let zero = e.constant(0.0)?;
                let branches = if position == 1 { [x[0], g, zero] } else { [x[0], zero, g] };
                let part = e.push(Op::Select, &branches)?;
                e.fit(part, shape)?
            }
        };
        // A scalar adjoint can stand for a whole tensor only until somebody asks for its shape.
        parts.push((position, e.widen(part, shape)?));
    }
    Ok(parts)
}

fn linear_algebra(
    e: &mut Editor<'_>,
    op: &Op,
    x: &[NodeId],
    y: NodeId,
    g: NodeId,
    wants: &dyn Fn(usize) -> bool,
) -> Result<Parts> {
    let (a, b) = (x[0], x[1]);
    if matches!(op, Op::Dot) && a == b {
        let twice = e.scale(2.0, g)?;
        let part = e.mul(twice, a)?;
        return Ok(vec![(0, part)]);
    }
    // Both adjoints of a solution come from one solution with the other right-hand side.
    let solved = match op {
        Op::SolveSpd { .. } => Some(e.push(op.clone(), &[a, g])?),
        _ => None,
    };
    let mut parts = Parts::new();
    if wants(0) {
        let part = match op {
            Op::MatVec => e.push(Op::Outer, &[g, b])?,
            Op::MatVecT => e.push(Op::Outer, &[b, g])?,
            Op::MatMul => {
                let t = e.push(Op::Transpose { order: vec![1, 0] }, &[b])?;
                e.push(Op::MatMul, &[g, t])?
            }
            Op::Outer => e.push(Op::MatVec, &[g, b])?,
            Op::Dot => e.mul(g, b)?,
            _ => {
                let product = e.push(Op::Outer, &[solved.unwrap_or(g), y])?;
                e.neg(product)?
            }
        };
        parts.push((0, part));
    }
    if wants(1) {
        let part = match op {
            Op::MatVec => e.push(Op::MatVecT, &[a, g])?,
            Op::MatVecT => e.push(Op::MatVec, &[a, g])?,
            Op::MatMul => {
                let t = e.push(Op::Transpose { order: vec![1, 0] }, &[a])?;
                e.push(Op::MatMul, &[t, g])?
            }
            Op::Outer => e.push(Op::MatVecT, &[g, a])?,
            Op::Dot => e.mul(g, a)?,
            _ => solved.unwrap_or(g),
        };
        parts.push((1, part));
    }
    Ok(parts)
}

/// Rows of g added up at the places they were taken from.
fn gather(e: &mut Editor<'_>, x: &[NodeId], g: NodeId) -> Result<NodeId> {
    let table = e.shape(x[0]).to_vec();
    let (rows, width) = (table[0], table[1..].iter().product::<usize>());
    let taken: usize = e.shape(x[1]).iter().product();
    let index = e.push(Op::Reshape { shape: vec![taken] }, &[x[1]])?;
    let places = e.push(Op::OneHot { size: rows }, &[index])?;
    let places = e.push(Op::Transpose { order: vec![1, 0] }, &[places])?;
    let g = e.push(Op::Reshape { shape: vec![taken, width] }, &[g])?;
    let sum = e.push(Op::MatMul, &[places, g])?;
    e.push(Op::Reshape { shape: table }, &[sum])
}

/// Softmax and norms: y is what the operator gave.
fn normalised(e: &mut Editor<'_>, op: &Op, x: NodeId, y: NodeId, g: NodeId) -> Result<NodeId> {
    let shape = e.shape(x).to_vec();
    let axis = match op {
        Op::Softmax { axis } | Op::LogSoftmax { axis } | Op::LogSumExp { axis } => *axis,
        _ => shape.len() - 1,
    };
    let axes = vec![axis];
    let sum = |e: &mut Editor<'_>, v: NodeId| -> Result<NodeId> {
        let s = e.push(Op::Sum { axes: axes.clone() }, &[v])?;
        e.spread(s, &axes, &shape)
    };
    let mean = |e: &mut Editor<'_>, v: NodeId| -> Result<NodeId> {
        let s = e.push(Op::Mean { axes: axes.clone() }, &[v])?;
        e.spread(s, &axes, &shape)
    };
    // 1 / sqrt(v + eps), spread over the axis.
    let inverse_root = |e: &mut Editor<'_>, v: NodeId, eps: f64| -> Result<NodeId> {
        let eps = e.constant(eps)?;
        let v = e.add(v, eps)?;
        let r = e.unary(Op::Rsqrt, v)?;
        e.spread(r, &axes, &shape)
    };
    match op {
        Op::Softmax { .. } => {
            let gy = e.mul(g, y)?;
            let s = sum(e, gy)?;
            let d = e.sub(g, s)?;
            e.mul(y, d)
        }
        Op::LogSoftmax { .. } => {
            let s = sum(e, g)?;
            let p = e.unary(Op::Exp, y)?;
            let ps = e.mul(p, s)?;
            e.sub(g, ps)
        }
        Op::LogSumExp { .. } => {
            let p = e.push(Op::Softmax { axis }, &[x])?;
            let g = e.spread(g, &axes, &shape)?;
            e.mul(g, p)
        }
        Op::RmsNorm { eps } => {
            let square = e.unary(Op::Square, x)?;
            let m = e.push(Op::Mean { axes: axes.clone() }, &[square])?;
            let r = inverse_root(e, m, *eps)?;
            let gy = e.mul(g, y)?;
            let along = mean(e, gy)?;
            let part = e.mul(y, along)?;
            let rest = e.sub(g, part)?;
            e.mul(r, rest)
        }
        Op::LayerNorm { eps } => {
            let m = mean(e, x)?;
            let centred = e.sub(x, m)?;
            let square = e.unary(Op::Square, centred)?;
            let variance = e.push(Op::Mean { axes: axes.clone() }, &[square])?;
            let r = inverse_root(e, variance, *eps)?;
            let gy = e.mul(g, y)?;
            let along = mean(e, gy)?;
            let part = e.mul(y, along)?;
            let level = mean(e, g)?;
            let rest = e.sub(g, level)?;
            let rest = e.sub(rest, part)?;
            e.mul(r, rest)
        }
        Op::L2Normalise { eps } => {
            let square = e.unary(Op::Square, x)?;
            let s = e.push(Op::Sum { axes: axes.clone() }, &[square])?;
            let r = inverse_root(e, s, *eps)?;
            let gy = e.mul(g, y)?;
            let along = sum(e, gy)?;
            let part = e.mul(y, along)?;
            let rest = e.sub(g, part)?;
            e.mul(r, rest)
        }
        Op::SumNormalise { eps } => {
            let s = e.push(Op::Sum { axes: axes.clone() }, &[x])?;
            let eps = e.constant(*eps)?;
            let s = e.add(s, eps)?;
            let s = e.spread(s, &axes, &shape)?;
            let gy = e.mul(g, y)?;
            let along = sum(e, gy)?;
            let rest = e.sub(g, along)?;
            e.div(rest, s)
        }
        op => Err(format!("`{}` is no norm", op.name())),
    }
}

/// Reductions and changes of shape.
fn shaped(e: &mut Editor<'_>, op: &Op, x: NodeId, y: NodeId, g: NodeId) -> Result<NodeId> {
    let shape = e.shape(x).to_vec();
    match op {
        Op::Sum { axes } => e.spread(g, axes, &shape),
        Op::Mean { axes } => {
            let n: usize = axes.iter().map(|a| shape[*a]).product();
            let part = e.scale(1.0 / n as f64, g)?;
            e.spread(part, axes, &shape)
        }
        Op::ReduceMax { axes } | Op::ReduceMin { axes } => {
            // Evenly to all that are largest.
            let best = e.spread(y, axes, &shape)?;
            let mask = e.push(Op::Equal, &[x, best])?;
            let ones = e.unary(Op::ToFloat, mask)?;
            let count = e.push(Op::Sum { axes: axes.clone() }, &[ones])?;
            let share = e.div(g, count)?;
            let share = e.spread(share, axes, &shape)?;
            let zero = e.constant(0.0)?;
            e.push(Op::Select, &[mask, share, zero])
        }
        Op::Reshape { .. } => e.push(Op::Reshape { shape }, &[g]),
        Op::Transpose { order } => {
            let mut back = vec![0; order.len()];
            for (to, from) in order.iter().enumerate() {
                back[*from] = to;
            }
            e.push(Op::Transpose { order: back }, &[g])
        }
        Op::Slice { axis, start, length } => {
            let mut pieces = Vec::new();
            let zeros = |e: &mut Editor<'_>, n: usize, pieces: &mut Vec<NodeId>| -> Result<()> {
                if n > 0 {
                    let mut s = shape.clone();
                    s[*axis] = n;
                    pieces.push(e.full(&s, 0.0)?);
                }
                Ok(())
            };
            zeros(e, *start, &mut pieces)?;
            pieces.push(g);
            zeros(e, shape[*axis] - start - length, &mut pieces)?;
            if pieces.len() == 1 { Ok(g) } else { e.push(Op::Concat { axis: *axis }, &pieces) }
        }
        Op::Expand { axis, .. } => e.push(Op::Sum { axes: vec![*axis] }, &[g]),
        Op::Roll { axis, shift } => {
            let back = -shift.rem_euclid(shape[*axis].max(1) as i64);
            e.push(Op::Roll { axis: *axis, shift: back }, &[g])
        }
        Op::Flip { axis } => e.push(Op::Flip { axis: *axis }, &[g]),
        Op::Cumsum { axis } => {
            let flipped = e.push(Op::Flip { axis: *axis }, &[g])?;
            let sum = e.push(Op::Cumsum { axis: *axis }, &[flipped])?;
            e.push(Op::Flip { axis: *axis }, &[sum])
        }
        op => Err(format!("`{}` has no gradient here", op.name())),
    }
}
