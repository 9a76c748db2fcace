//! Every operator on plain arrays.

use fwp_sdk::program::Op;

use super::Inputs;
use super::array::{Array, Data, place, places};

type Result<T> = std::result::Result<T, String>;

pub(super) fn apply(op: &Op, x: &[&Array], inputs: &mut Inputs<'_>) -> Result<Array> {
    if let Some(f) = unary(op) {
        let v = x[0].float_elements()?;
        return Ok(Array::float(&x[0].shape, v.iter().map(|a| f(*a)).collect()));
    }
    if let Some(f) = binary(op)
        && matches!(x[0].data, Data::Float(_))
    {
        return Ok(float(zip(x[0].float_elements()?, x[1].float_elements()?, x[0], x[1], f)?));
    }
    match op {
        Op::Constant { value } => Ok(Array::scalar(*value)),
        Op::Integer { value } => Ok(Array::integer(*value)),
        Op::Table { shape, values } => Ok(Array::float(shape, values.clone())),
        Op::Full { shape, value } => Ok(Array::full(shape, *value)),
        Op::Eye { n } => Ok(Array::float(&[*n, *n], (0..n * n).map(|i| f64::from(i / n == i % n)).collect())),
        Op::Arange { n } => Ok(Array { shape: vec![*n], data: Data::Int((0..*n as i64).collect()) }),
        Op::RandomNormal { .. } | Op::RandomUniform { .. } | Op::RandomOrthogonal { .. } => random(op, inputs),
        Op::ToFloat => Ok(Array {
            shape: x[0].shape.clone(),
            data: Data::Float(match &x[0].data {
                Data::Float(v) => v.clone(),
                Data::Int(v) => v.iter().map(|i| *i as f64).collect(),
                Data::Mask(v) => v.iter().map(|m| f64::from(*m)).collect(),
            }),
        }),
        Op::StopGradient => Ok(x[0].clone()),
        Op::Not => Ok(mask(x[0].shape.clone(), x[0].masks()?.iter().map(|m| !m).collect())),
        Op::TrailingZeros => {
            let v = x[0].integers()?.iter().map(|i| if *i == 0 { 63 } else { i64::from(i.trailing_zeros()) }).collect();
            Ok(Array { shape: x[0].shape.clone(), data: Data::Int(v) })
        }
        Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Max
        | Op::Min
        | Op::Rem
        | Op::BitAnd
        | Op::BitOr
        | Op::BitXor
        | Op::ShiftLeft
        | Op::ShiftRight => integers(op, x),
        Op::Less | Op::LessEqual | Op::Equal | Op::And | Op::Or => compare(op, x),
        Op::DivOr => {
            let (a, b) = (x[0].float_elements()?, x[1].float_elements()?);
            let (shape, quotients) = zip(a, b, x[0], x[1], |a, b| (b != 0.0).then(|| a / b))?;
            let like = mask(shape, vec![false; quotients.len()]);
            Ok(float(zip(&quotients, x[2].float_elements()?, &like, x[2], |q, c| q.unwrap_or(c))?))
        }
        Op::Select => select(x),
        Op::MatVec | Op::MatVecT | Op::MatMul | Op::Outer | Op::Dot => linear_algebra(op, x),
        Op::SolveSpd { iterations, tolerance } => {
            let b = x[1].float_elements()?;
            Ok(Array::float(&x[1].shape, conjugate_gradients(x[0].float_elements()?, b, *iterations, *tolerance)))
        }
        Op::Reshape { shape } => Ok(Array { shape: shape.clone(), ..x[0].clone() }),
        Op::Transpose { .. } | Op::Slice { .. } | Op::Expand { .. } | Op::Roll { .. } | Op::Flip { .. } => Ok(moved(op, x[0])),
        Op::Concat { axis } => concat(x, *axis),
        Op::OneHot { size } => {
            let mut shape = x[0].shape.clone();
            shape.push(*size);
            let mut out = Vec::new();
            for i in x[0].integers()? {
                out.extend((0..*size as i64).map(|j| f64::from(j == *i)));
            }
            Ok(Array::float(&shape, out))
        }
        Op::Gather => gather(x[0], x[1]),
        Op::Sum { axes } | Op::Mean { axes } | Op::ReduceMax { axes } | Op::ReduceMin { axes } => reduce(op, x[0], axes),
        Op::Cumsum { axis } | Op::Softmax { axis } | Op::LogSoftmax { axis } => lanes(x[0], *axis, |v| lane(op, v)),
        Op::LogSumExp { axis } => {
            let mut summed = lanes(x[0], *axis, |v| vec![log_sum_exp(v)])?;
            summed.shape.remove(*axis);
            Ok(summed)
        }
        Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::L2Normalise { .. } | Op::SumNormalise { .. } => {
            lanes(x[0], x[0].shape.len() - 1, |v| lane(op, v))
        }
        Op::Rotary { base, interleaved } => rotary(x[0], x[1].integers()?[0], *base, *interleaved),
        Op::Phi { role, .. } => {
            let phi = inputs.phi.ok_or("no feature map was given")?;
            let d = x[0].shape.last().copied().unwrap_or(1).max(1);
            let mut shape = x[0].shape.clone();
            let mut out = Vec::new();
            for row in x[0].float_elements()?.chunks(d) {
                let y = phi(*role, &Array::float(&[d], row.to_vec()))?;
                out.extend_from_slice(y.float_elements()?);
                *shape.last_mut().ok_or("a scalar has no features")? = y.len();
            }
            Array::new(&shape, out).ok_or_else(|| "the feature map gives different sizes".into())
        }
        Op::Gradient => Err("write out the gradients first (expand_gradients)".into()),
        other => Err(format!("`{}` works along a sequence and has no value for a single step", other.name())),
    }
}

fn float((shape, elements): (Vec<usize>, Vec<f64>)) -> Array {
    Array { shape, data: Data::Float(elements) }
}

fn mask(shape: Vec<usize>, elements: Vec<bool>) -> Array {
    Array { shape, data: Data::Mask(elements) }
}

fn unary(op: &Op) -> Option<fn(f64) -> f64> {
    fn sigmoid(x: f64) -> f64 {
        if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
    }
    fn softplus(x: f64) -> f64 {
        x.max(0.0) + (-x.abs()).exp().ln_1p()
    }
    Some(match op {
        Op::Neg => |x| -x,
        Op::Abs => f64::abs,
        Op::Sign => |x| if x == 0.0 || x.is_nan() { x } else { x.signum() },
        Op::Exp => f64::exp,
        Op::Expm1 => f64::exp_m1,
        Op::Log => f64::ln,
        Op::Log1p => f64::ln_1p,
        Op::Sqrt => f64::sqrt,
        Op::Rsqrt => |x| 1.0 / x.sqrt(),
        Op::Reciprocal => |x| 1.0 / x,
        Op::Square => |x| x * x,
        Op::Sin => f64::sin,
        Op::Cos => f64::cos,
        Op::Tanh => f64::tanh,
        Op::Sigmoid => sigmoid,
        Op::LogSigmoid => |x| if x.is_nan() { x } else { -softplus(-x) },
        Op::Softplus => |x| if x.is_nan() { x } else { softplus(x) },
        Op::Relu => |x| if x < 0.0 { 0.0 } else { x },
        Op::Gelu => |x| 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
        Op::GeluTanh => |x| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()),
        Op::Silu => |x| x * sigmoid(x),
        Op::Erf => libm::erf,
        Op::Floor => f64::floor,
        _ => return None,
    })
}

fn binary(op: &Op) -> Option<fn(f64, f64) -> f64> {
    Some(match op {
        Op::Add => |a, b| a + b,
        Op::Sub => |a, b| a - b,
        Op::Mul => |a, b| a * b,
        Op::Div => |a, b| a / b,
        Op::Max => |a, b| if a.is_nan() || a > b { a } else { b },
        Op::Min => |a, b| if a.is_nan() || a < b { a } else { b },
        Op::Pow => f64::powf,
        Op::Rem => |a, b| a - b * (a / b).floor(),
        _ => return None,
    })
}

/// Element by element, a scalar standing beside every element.
fn zip<A: Copy, B: Copy, C>(
    a: &[A],
    b: &[B],
    first: &Array,
    second: &Array,
    f: impl Fn(A, B) -> C,
) -> Result<(Vec<usize>, Vec<C>)> {
    match (first.shape.is_empty(), second.shape.is_empty()) {
        (_, true) => Ok((first.shape.clone(), a.iter().map(|a| f(*a, b[0])).collect())),
        (true, false) => Ok((second.shape.clone(), b.iter().map(|b| f(a[0], *b)).collect())),
        _ if first.shape == second.shape => Ok((first.shape.clone(), a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect())),
        _ => Err(format!("shapes {:?} and {:?} do not combine", first.shape, second.shape)),
    }
}

fn integers(op: &Op, x: &[&Array]) -> Result<Array> {
    let (a, b) = (x[0].integers()?, x[1].integers()?);
    if matches!(op, Op::Rem) && b.contains(&0) {
        return Err("remainder of a division by 0".into());
    }
    let bits = |n: i64| u32::try_from(n).ok().filter(|n| *n < 64);
    let f = |a: i64, b: i64| match op {
        Op::Add => a.wrapping_add(b),
        Op::Sub => a.wrapping_sub(b),
        Op::Mul => a.wrapping_mul(b),
        Op::Max => a.max(b),
        Op::Min => a.min(b),
        Op::Rem => {
            let r = a.wrapping_rem(b);
            if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
        }
        Op::BitAnd => a & b,
        Op::BitOr => a | b,
        Op::BitXor => a ^ b,
        Op::ShiftLeft => bits(b).map_or(0, |b| a << b),
        _ => bits(b).map_or(if a < 0 { -1 } else { 0 }, |b| a >> b),
    };
    let (shape, elements) = zip(a, b, x[0], x[1], f)?;
    Ok(Array { shape, data: Data::Int(elements) })
}

fn compare(op: &Op, x: &[&Array]) -> Result<Array> {
    fn by<T: Copy + PartialOrd>(op: &Op, a: &[T], b: &[T], x: &[&Array]) -> Result<Array> {
        let (shape, elements) = zip(a, b, x[0], x[1], |a, b| match op {
            Op::Less => a < b,
            Op::LessEqual => a <= b,
            _ => a == b,
        })?;
        Ok(mask(shape, elements))
    }
    match (op, &x[0].data) {
        (Op::And | Op::Or, _) => {
            let and = matches!(op, Op::And);
            let (shape, elements) = zip(x[0].masks()?, x[1].masks()?, x[0], x[1], |a, b| if and { a && b } else { a || b })?;
            Ok(mask(shape, elements))
        }
        (_, Data::Float(a)) => by(op, a, x[1].float_elements()?, x),
        (_, Data::Int(a)) => by(op, a, x[1].integers()?, x),
        (_, Data::Mask(a)) => by(op, a, x[1].masks()?, x),
    }
}

fn select(x: &[&Array]) -> Result<Array> {
    let shape = x.iter().map(|a| &a.shape).find(|s| !s.is_empty()).cloned().unwrap_or_default();
    let m = x[0].masks()?;
    let n: usize = shape.iter().product();
    let at = |a: &Array, i: usize| if a.shape.is_empty() { 0 } else { i };
    fn pick<T: Copy>(m: &[bool], yes: &[T], no: &[T], x: &[&Array], n: usize, at: impl Fn(&Array, usize) -> usize) -> Vec<T> {
        (0..n).map(|i| if m[at(x[0], i)] { yes[at(x[1], i)] } else { no[at(x[2], i)] }).collect()
    }
    let data = match &x[1].data {
        Data::Float(v) => Data::Float(pick(m, v, x[2].float_elements()?, x, n, at)),
        Data::Int(v) => Data::Int(pick(m, v, x[2].integers()?, x, n, at)),
        Data::Mask(v) => Data::Mask(pick(m, v, x[2].masks()?, x, n, at)),
    };
    Ok(Array { shape, data })
}

fn linear_algebra(op: &Op, x: &[&Array]) -> Result<Array> {
    let (a, b) = (x[0].float_elements()?, x[1].float_elements()?);
    let (sa, sb) = (&x[0].shape, &x[1].shape);
    Ok(match op {
        Op::MatVec => {
            let (m, n) = (sa[0], sa[1]);
            Array::float(&[m], (0..m).map(|i| (0..n).map(|j| a[i * n + j] * b[j]).sum()).collect())
        }
        Op::MatVecT => {
            let (m, n) = (sa[0], sa[1]);
            Array::float(&[n], (0..n).map(|j| (0..m).map(|i| a[i * n + j] * b[i]).sum()).collect())
        }
        Op::MatMul => {
            let (m, k, n) = (sa[0], sa[1], sb[1]);
            let cell = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
            Array::float(&[m, n], (0..m * n).map(|p| cell(p / n, p % n)).collect())
        }
        Op::Outer => {
            let n = b.len();
            Array::float(&[a.len(), n], (0..a.len() * n).map(|p| a[p / n] * b[p % n]).collect())
        }
        _ => Array::scalar(a.iter().zip(b).map(|(a, b)| a * b).sum()),
    })
}

fn conjugate_gradients(a: &[f64], b: &[f64], iterations: usize, tolerance: f64) -> Vec<f64> {
    let n = b.len();
    let dot = |u: &[f64], v: &[f64]| u.iter().zip(v).map(|(a, b)| a * b).sum::<f64>();
    let mut x = vec![0.0; n];
    let mut r = b.to_vec();
    let mut p = r.clone();
    let mut rr = dot(&r, &r);
    let enough = tolerance * tolerance * dot(b, b);
    for _ in 0..iterations {
        if rr <= enough || rr == 0.0 {
            break;
        }
        let ap: Vec<f64> = (0..n).map(|i| dot(&a[i * n..(i + 1) * n], &p)).collect();
        let along = dot(&p, &ap);
        if along == 0.0 {
            break;
        }
        let step = rr / along;
        for i in 0..n {
            x[i] += step * p[i];
            r[i] -= step * ap[i];
        }
        let next = dot(&r, &r);
        let keep = next / rr;
        for i in 0..n {
            p[i] = r[i] + keep * p[i];
        }
        rr = next;
    }
    x
}

/// Elements put elsewhere.
fn moved(op: &Op, x: &Array) -> Array {
    let mut shape = x.shape.clone();
    match op {
        Op::Transpose { order } => shape = order.iter().map(|o| x.shape[*o]).collect(),
        Op::Slice { axis, length, .. } => shape[*axis] = *length,
        Op::Expand { axis, size } => shape.insert(*axis, *size),
        _ => {}
    }
    let taken = places(&shape, |index| {
        let mut from = index.to_vec();
        match op {
            Op::Transpose { order } => {
                for (to, o) in order.iter().enumerate() {
                    from[*o] = index[to];
                }
            }
            Op::Slice { axis, start, .. } => from[*axis] += start,
            Op::Expand { axis, .. } => {
                from.remove(*axis);
            }
            Op::Roll { axis, shift } => {
                let n = x.shape[*axis] as i64;
                from[*axis] = (index[*axis] as i64 - shift.rem_euclid(n)).rem_euclid(n) as usize;
            }
            Op::Flip { axis } => from[*axis] = x.shape[*axis] - 1 - index[*axis],
            _ => {}
        }
        place(&x.shape, &from)
    });
    x.taken(shape, &taken)
}

fn concat(x: &[&Array], axis: usize) -> Result<Array> {
    let mut shape = x[0].shape.clone();
    shape[axis] = x.iter().map(|a| a.shape[axis]).sum();
    // Everything in one row, then the place of each element in it.
    let mut starts = Vec::new();
    let mut all = x[0].clone();
    let mut n = 0;
    for (i, a) in x.iter().enumerate() {
        starts.push(n);
        n += a.len();
        if i > 0 {
            match (&mut all.data, &a.data) {
                (Data::Float(v), Data::Float(w)) => v.extend(w),
                (Data::Int(v), Data::Int(w)) => v.extend(w),
                (Data::Mask(v), Data::Mask(w)) => v.extend(w),
                _ => return Err("different kinds of element".into()),
            }
        }
    }
    let taken = places(&shape, |index| {
        let mut from = index.to_vec();
        let mut which = 0;
        while from[axis] >= x[which].shape[axis] {
            from[axis] -= x[which].shape[axis];
            which += 1;
        }
        starts[which] + place(&x[which].shape, &from)
    });
    Ok(all.taken(shape, &taken))
}

fn gather(table: &Array, index: &Array) -> Result<Array> {
    let (rows, width) = (table.shape[0], table.shape[1..].iter().product::<usize>());
    let mut taken = Vec::new();
    for i in index.integers()? {
        let row = usize::try_from(*i).ok().filter(|r| *r < rows).ok_or_else(|| format!("there is no row {i} of {rows}"))?;
        taken.extend(row * width..(row + 1) * width);
    }
    let shape = index.shape.iter().chain(&table.shape[1..]).copied().collect();
    Ok(table.taken(shape, &taken))
}

/// Every run of elements along an axis replaced by what `f` makes of it.
fn lanes(x: &Array, axis: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Result<Array> {
    let v = x.float_elements()?;
    let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    let outer = x.shape[..axis].iter().product::<usize>();
    let mut shape = x.shape.clone();
    let mut out = Vec::new();
    for o in 0..outer {
        for i in 0..inner {
            let lane: Vec<f64> = (0..n).map(|j| v[(o * n + j) * inner + i]).collect();
            let made = f(&lane);
            let m = made.len();
            if out.is_empty() {
                shape[axis] = m;
                out = vec![0.0; outer * m * inner];
            }
            for (j, value) in made.into_iter().enumerate() {
                out[(o * m + j) * inner + i] = value;
            }
        }
    }
    Ok(Array::float(&shape, out))
}

fn largest(v: &[f64]) -> f64 {
    v.iter().fold(f64::NEG_INFINITY, |m, x| if m.is_nan() || m > *x { m } else { *x })
}

fn log_sum_exp(v: &[f64]) -> f64 {
    let m = largest(v);
    if m.is_infinite() { m } else { m + v.iter().map(|x| (x - m).exp()).sum::<f64>().ln() }
}

fn lane(op: &Op, v: &[f64]) -> Vec<f64> {
    let n = v.len() as f64;
    let scaled = |by: f64| v.iter().map(|x| x * by).collect::<Vec<f64>>();
    let squares: f64 = v.iter().map(|x| x * x).sum();
    match op {
        Op::Cumsum { .. } => v
            .iter()
            .scan(0.0, |sum, x| {
                *sum += x;
                Some(*sum)
            })
            .collect(),
        Op::Softmax { .. } => {
            let l = log_sum_exp(v);
            v.iter().map(|x| (x - l).exp()).collect()
        }
        Op::LogSoftmax { .. } => {
            let l = log_sum_exp(v);
            v.iter().map(|x| x - l).collect()
        }
        Op::RmsNorm { eps } => scaled(1.0 / (squares / n + eps).sqrt()),
        Op::L2Normalise { eps } => scaled(1.0 / (squares + eps).sqrt()),
        Op::SumNormalise { eps } => scaled(1.0 / (v.iter().sum::<f64>() + eps)),
        Op::LayerNorm { eps } => {
            let mean = v.iter().sum::<f64>() / n;
            let variance = v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            v.iter().map(|x| (x - mean) / (variance + eps).sqrt()).collect()
        }
        _ => v.to_vec(),
    }
}

fn reduce(op: &Op, x: &Array, axes: &[usize]) -> Result<Array> {
    let v = x.float_elements()?;
    let kept: Vec<usize> = (0..x.shape.len()).filter(|a| !axes.contains(a)).collect();
    let shape: Vec<usize> = kept.iter().map(|a| x.shape[*a]).collect();
    let to = places(&x.shape, |index| {
        let index: Vec<usize> = kept.iter().map(|a| index[*a]).collect();
        place(&shape, &index)
    });
    let mut groups: Vec<Vec<f64>> = vec![Vec::new(); shape.iter().product()];
    for (value, to) in v.iter().zip(to) {
        groups[to].push(*value);
    }
    let made = groups.iter().map(|g| match op {
        Op::Sum { .. } => g.iter().sum(),
        Op::Mean { .. } => g.iter().sum::<f64>() / g.len() as f64,
        Op::ReduceMax { .. } => largest(g),
        _ => -largest(&g.iter().map(|x| -x).collect::<Vec<f64>>()),
    });
    Ok(Array::float(&shape, made.collect()))
}

fn rotary(x: &Array, position: i64, base: f64, interleaved: bool) -> Result<Array> {
    let d = x.shape[x.shape.len() - 1];
    let mut out = x.float_elements()?.to_vec();
    for row in out.chunks_mut(d.max(1)) {
        for i in 0..d / 2 {
            let angle = position as f64 * base.powf(-2.0 * i as f64 / d as f64);
            let (sin, cos) = angle.sin_cos();
            let (j, k) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + d / 2) };
            let (a, b) = (row[j], row[k]);
            row[j] = a * cos - b * sin;
            row[k] = a * sin + b * cos;
        }
    }
    Ok(Array::float(&x.shape, out))
}

fn random(op: &Op, inputs: &mut Inputs<'_>) -> Result<Array> {
    let random = inputs.random.as_mut().ok_or("nothing to draw from was given")?;
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    Ok(match op {
        Op::RandomNormal { shape } => Array::float(shape, (0..elements(shape)).map(|_| random.normal()).collect()),
        Op::RandomUniform { shape } => Array::float(shape, (0..elements(shape)).map(|_| random.uniform()).collect()),
        Op::RandomOrthogonal { rows, n } => Array::float(&[*rows, *n], random.orthogonal(*rows, *n)),
        op => return Err(format!("`{}` draws nothing", op.name())),
    })
}
