//! Operators on one sample, carried out for all samples and steps that a value has.

use anyhow::{Result, bail};
use fwp_sdk::program::Op;
use tch::{Device, Kind, Tensor};

use super::fused;
use super::linear;
use super::solve;
use super::value::{Lead, Precision, Value, expanded, joined, reshaped};
use crate::shim::fused::Norm;
use crate::shim::lookup;

/// Applies an operator that needs nothing but its operands.
pub fn apply(op: &Op, x: &[&Value], precision: Precision) -> Result<Value> {
    use Op::*;
    let device = precision.device;
    let float = (precision.kind, device);
    Ok(match op {
        Constant { value } => Value::new(precision.scalar(*value)?, Lead::NONE),
        Integer { value } => Value::new(Tensor::f_full([0i64; 0], *value, (Kind::Int64, device))?, Lead::NONE),
        Table { shape, values } => {
            let t = Tensor::from_slice(values).f_reshape(sizes(shape))?.f_to_kind(precision.kind)?.f_to_device(device)?;
            Value::new(t, Lead::NONE)
        }
        Full { shape, value } => Value::new(Tensor::f_full(sizes(shape), *value, float)?, Lead::NONE),
        Eye { n } => Value::new(Tensor::f_eye(*n as i64, float)?, Lead::NONE),
        Arange { n } => Value::new(Tensor::f_arange(*n as i64, (Kind::Int64, device))?, Lead::NONE),

        Neg | Abs | Sign | Exp | Expm1 | Log | Log1p | Sqrt | Rsqrt | Reciprocal | Square | Sin | Cos | Tanh | Sigmoid
        | LogSigmoid | Softplus | Relu | Gelu | GeluTanh | Silu | Erf | Floor | ToFloat | StopGradient | Not | TrailingZeros => {
            Value::new(unary(op, &x[0].tensor, precision)?, x[0].lead)
        }
        Add | Sub | Mul | Div | Max | Min | Pow | Rem | Less | LessEqual | Equal | And | Or | BitAnd | BitOr | BitXor
        | ShiftLeft | ShiftRight => elementwise(x, |t| binary(op, &t[0], &t[1]))?,
        DivOr => elementwise(x, |t| div_or(&t[0], &t[1], &t[2]))?,
        Select => elementwise(x, |t| Ok(t[1].f_where_self(&t[0], &t[2])?))?,

        MatVec => matvec(x[0], x[1])?,
        MatVecT => {
            let w = Value::new(x[0].tensor.f_transpose(-2, -1)?, x[0].lead);
            matvec(&w, x[1])?
        }
        MatMul => {
            let lead = joined(x.iter().copied());
            Value::new(x[0].aligned(lead, 2)?.f_matmul(&x[1].aligned(lead, 2)?)?, lead)
        }
        Outer => {
            let lead = joined(x.iter().copied());
            let (a, b) = (x[0].aligned(lead, 1)?.f_unsqueeze(-1)?, x[1].aligned(lead, 1)?.f_unsqueeze(-2)?);
            Value::new(a.f_mul(&b)?, lead)
        }
        Dot => {
            let rank = x[0].rank();
            let product = elementwise(x, |t| Ok(t[0].f_mul(&t[1])?))?;
            sum(&product, &(0..rank).collect::<Vec<_>>())?
        }
        SolveSpd { iterations, tolerance } => {
            let lead = joined(x.iter().copied());
            let a = expand_lead(&x[0].aligned(lead, 2)?, x, lead)?;
            let b = expand_lead(&x[1].aligned(lead, 1)?, x, lead)?;
            Value::new(solve::conjugate_gradients(&a, &b, *iterations, *tolerance)?, lead)
        }

        Reshape { shape } => {
            let full: Vec<i64> = x[0].lead_shape().into_iter().chain(sizes(shape)).collect();
            Value::new(reshaped(&x[0].tensor, &full)?, x[0].lead)
        }
        Transpose { order } => {
            let lead = x[0].lead.count() as i64;
            let dims: Vec<i64> = (0..lead).chain(order.iter().map(|a| x[0].dim(*a))).collect();
            Value::new(x[0].tensor.f_permute(dims)?, x[0].lead)
        }
        Slice { axis, start, length } => {
            Value::new(x[0].tensor.f_narrow(x[0].dim(*axis), *start as i64, *length as i64)?, x[0].lead)
        }
        Concat { axis } => {
            let lead = joined(x.iter().copied());
            let parts: Result<Vec<Tensor>> = x.iter().map(|v| expand_lead(&v.aligned(lead, v.rank())?, x, lead)).collect();
            Value::new(Tensor::f_cat(&parts?, (lead.count() + axis) as i64)?, lead)
        }
        Expand { axis, size } => {
            let dim = x[0].dim(*axis);
            let t = x[0].tensor.f_unsqueeze(dim)?;
            let mut shape = t.size();
            shape[dim as usize] = *size as i64;
            Value::new(t.f_expand(shape, false)?, x[0].lead)
        }
        Roll { axis, shift } => Value::new(x[0].tensor.f_roll(*shift, x[0].dim(*axis))?, x[0].lead),
        Flip { axis } => Value::new(x[0].tensor.f_flip(x[0].dim(*axis))?, x[0].lead),
        OneHot { size } => Value::new(one_hot(&x[0].tensor, *size as i64, precision)?, x[0].lead),
        Gather => gather(x[0], x[1])?,
        Cumsum { axis } => Value::new(x[0].tensor.f_cumsum(x[0].dim(*axis), None)?, x[0].lead),
        Sum { axes } => sum(x[0], axes)?,
        Mean { axes } if axes.is_empty() => x[0].clone(),
        Mean { axes } => Value::new(x[0].tensor.f_mean_dim(dims(x[0], axes), false, None)?, x[0].lead),
        ReduceMax { axes } | ReduceMin { axes } if axes.is_empty() => x[0].clone(),
        ReduceMax { axes } => Value::new(x[0].tensor.f_amax(dims(x[0], axes), false)?, x[0].lead),
        ReduceMin { axes } => Value::new(x[0].tensor.f_amin(dims(x[0], axes), false)?, x[0].lead),
        Softmax { axis } => Value::new(x[0].tensor.f_softmax(x[0].dim(*axis), None)?, x[0].lead),
        LogSoftmax { axis } => Value::new(x[0].tensor.f_log_softmax(x[0].dim(*axis), None)?, x[0].lead),
        LogSumExp { axis } => Value::new(x[0].tensor.f_logsumexp(x[0].dim(*axis), false)?, x[0].lead),
        RmsNorm { .. } | L2Normalise { .. } | SumNormalise { .. } => normalise(op, x[0], None)?,
        LayerNorm { eps } => {
            let size = x[0].shape()[x[0].rank() - 1];
            Value::new(x[0].tensor.f_layer_norm(size, None::<Tensor>, None::<Tensor>, *eps, false)?, x[0].lead)
        }
        Rotary { base, interleaved } => rotary(x[0], x[1], *base, *interleaved)?,
        other => bail!("internal: operator `{}` needs more than its operands", other.name()),
    })
}

/// A normalisation over the last axis, and then perhaps times a gain, a vector of that size.
pub fn normalise(op: &Op, x: &Value, gain: Option<&Value>) -> Result<Value> {
    let (norm, eps) = match op {
        Op::RmsNorm { eps } => (Norm::Rms, *eps),
        Op::L2Normalise { eps } => (Norm::L2, *eps),
        Op::SumNormalise { eps } => (Norm::Sum, *eps),
        other => bail!("internal: `{}` is no normalisation", other.name()),
    };
    let of_all = gain.filter(|w| w.lead == Lead::NONE).map(|w| &w.tensor);
    let y = Value::new(fused::normalise(&x.tensor, of_all, norm, eps)?, x.lead);
    match gain {
        // A gain of every sample, which a head of a rule may have.
        Some(w) if of_all.is_none() => elementwise(&[&y, w], |t| binary(&Op::Mul, &t[0], &t[1])),
        _ => Ok(y),
    }
}

/// a sigmoid(a) b, element by element.
pub fn gate(a: &Value, b: &Value) -> Result<Value> {
    elementwise(&[a, b], |t| fused::gate(&t[0], &t[1]))
}

fn one_hot(index: &Tensor, size: i64, precision: Precision) -> Result<Tensor> {
    let Precision { kind, device } = precision;
    if device == Device::Cpu && matches!(kind, Kind::Float | Kind::Double) {
        return Ok(lookup::one_hot(index, size, kind == Kind::Double)?);
    }
    // Written as a comparison: the library's own one_hot reads the integers back to the host to check them.
    let classes = Tensor::f_arange(size, (Kind::Int64, device))?;
    Ok(index.f_unsqueeze(-1)?.f_eq_tensor(&classes)?.f_to_kind(kind)?)
}

/// Sizes as libtorch takes them.
pub fn sizes(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|s| *s as i64).collect()
}

fn dims(x: &Value, axes: &[usize]) -> Vec<i64> {
    axes.iter().map(|a| x.dim(*a)).collect()
}

fn sum(x: &Value, axes: &[usize]) -> Result<Value> {
    if axes.is_empty() {
        return Ok(x.clone());
    }
    Ok(Value::new(x.tensor.f_sum_dim_intlist(dims(x, axes), false, None)?, x.lead))
}

fn elementwise(x: &[&Value], work: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Value> {
    let lead = joined(x.iter().copied());
    let rank = x.iter().map(|v| v.rank()).max().unwrap_or(0);
    let tensors: Result<Vec<Tensor>> = x.iter().map(|v| v.aligned(lead, rank)).collect();
    Ok(Value::new(work(&tensors?)?, lead))
}

/// The tensor repeated to the common sizes of the leading axes.
fn expand_lead(t: &Tensor, x: &[&Value], lead: Lead) -> Result<Tensor> {
    let n = lead.count();
    let mut shape = t.size();
    for v in x {
        let own = v.aligned(lead, v.rank())?.size();
        for d in 0..n {
            shape[d] = shape[d].max(own[d]);
        }
    }
    expanded(t.shallow_clone(), &shape)
}

fn unary(op: &Op, t: &Tensor, precision: Precision) -> Result<Tensor> {
    use Op::*;
    Ok(match op {
        Neg => t.f_neg()?,
        Abs => t.f_abs()?,
        // The library's sign of NaN is 0, which would hide it.
        Sign => t.f_sign()?.f_masked_fill(&t.f_isnan()?, f64::NAN)?,
        Exp => t.f_exp()?,
        Expm1 => t.f_expm1()?,
        Log => t.f_log()?,
        Log1p => t.f_log1p()?,
        Sqrt => t.f_sqrt()?,
        Rsqrt => t.f_rsqrt()?,
        Reciprocal => t.f_reciprocal()?,
        Square => t.f_square()?,
        Sin => t.f_sin()?,
        Cos => t.f_cos()?,
        Tanh => t.f_tanh()?,
        Sigmoid => t.f_sigmoid()?,
        LogSigmoid => t.f_log_sigmoid()?,
        // The library's softplus turns linear above 20, an error of 2e-9: too large for float64 checks.
        Softplus => t.f_relu()?.f_add(&t.f_abs()?.f_neg()?.f_exp()?.f_log1p()?)?,
        Relu => t.f_relu()?,
        Gelu => t.f_gelu("none")?,
        GeluTanh => t.f_gelu("tanh")?,
        Silu => t.f_silu()?,
        Erf => t.f_erf()?,
        Floor => t.f_floor()?,
        ToFloat => t.f_to_kind(precision.kind)?,
        StopGradient => t.f_detach()?,
        Not => t.f_logical_not()?,
        TrailingZeros => {
            // x & -x keeps the lowest one bit; its logarithm is exact for powers of two. 0 has 63 by definition.
            let lowest = t.f_bitwise_and_tensor(&t.f_neg()?)?;
            let bits = lowest.f_to_kind(Kind::Double)?.f_abs()?.f_log2()?.f_round()?.f_to_kind(Kind::Int64)?;
            bits.f_masked_fill(&t.f_eq(0)?, 63)?
        }
        other => bail!("internal: `{}` is not a unary operator", other.name()),
    })
}

fn binary(op: &Op, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    use Op::*;
    Ok(match op {
        Add => a.f_add(b)?,
        Sub => a.f_sub(b)?,
        Mul => a.f_mul(b)?,
        Div => a.f_div(b)?,
        Max => a.f_maximum(b)?,
        Min => a.f_minimum(b)?,
        Pow => a.f_pow(b)?,
        Rem => a.f_remainder_tensor(b)?,
        Less => a.f_lt_tensor(b)?,
        LessEqual => a.f_le_tensor(b)?,
        Equal => a.f_eq_tensor(b)?,
        And => a.f_logical_and(b)?,
        Or => a.f_logical_or(b)?,
        BitAnd => a.f_bitwise_and_tensor(b)?,
        BitOr => a.f_bitwise_or_tensor(b)?,
        BitXor => a.f_bitwise_xor_tensor(b)?,
        ShiftLeft => a.f_bitwise_left_shift(b)?,
        ShiftRight => a.f_bitwise_right_shift(b)?,
        other => bail!("internal: `{}` is not a binary operator", other.name()),
    })
}

/// a / b where b is not 0, else c. The divisor is replaced before dividing: a NaN that is selected away still has a NaN gradient.
fn div_or(a: &Tensor, b: &Tensor, c: &Tensor) -> Result<Tensor> {
    let zero = b.f_eq(0.0)?;
    let safe = b.f_masked_fill(&zero, 1.0)?;
    Ok(c.f_where_self(&zero, &a.f_div(&safe)?)?)
}

/// W x for several matrices W of the same vectors x.
pub fn linear(x: &Value, weights: &[&Value]) -> Result<Vec<Value>> {
    if weights.iter().any(|w| w.lead != Lead::NONE) {
        return weights.iter().map(|w| matvec(w, x)).collect();
    }
    let weights: Vec<&Tensor> = weights.iter().map(|w| &w.tensor).collect();
    let ys = linear::linear(&x.tensor, &weights, None)?;
    Ok(ys.into_iter().map(|y| Value::new(y, x.lead)).collect())
}

/// W x added to a vector of its size.
pub fn linear_onto(base: &Value, w: &Value, x: &Value) -> Result<Value> {
    if w.lead == Lead::NONE && base.lead == x.lead {
        let y = linear::linear(&x.tensor, &[&w.tensor], Some(&base.tensor))?.remove(0);
        return Ok(Value::new(y, x.lead));
    }
    let y = matvec(w, x)?;
    elementwise(&[base, &y], |t| binary(&Op::Add, &t[0], &t[1]))
}

fn matvec(w: &Value, x: &Value) -> Result<Value> {
    if w.lead == Lead::NONE {
        return Ok(linear(x, &[w])?.remove(0));
    }
    if w.lead == Lead::BATCH && x.lead == Lead::BATCH {
        return Ok(Value::new(w.tensor.f_bmm(&x.tensor.f_unsqueeze(2)?)?.f_squeeze_dim(2)?, x.lead));
    }
    if w.lead == Lead::BATCH && x.lead == Lead::STEPS {
        // One matrix a sample, many vectors: a matrix product instead of one product a step.
        let y = x.tensor.f_permute([1, 0, 2])?.f_bmm(&w.tensor.f_transpose(1, 2)?)?;
        return Ok(Value::new(y.f_permute([1, 0, 2])?, x.lead));
    }
    let lead = w.lead.union(x.lead);
    let y = w.aligned(lead, 2)?.f_matmul(&x.aligned(lead, 1)?.f_unsqueeze(-1)?)?;
    Ok(Value::new(y.f_squeeze_dim(-1)?, lead))
}

fn gather(table: &Value, index: &Value) -> Result<Value> {
    let row: Vec<i64> = table.shape()[1..].to_vec();
    if table.lead == Lead::NONE {
        if table.rank() == 2 && table.tensor.kind() != Kind::Int64 {
            let look = |i: &Tensor| Tensor::f_embedding(&table.tensor, i, -1, false, false);
            return Ok(match index.lead {
                // From here on the steps of a sequence lie apart in memory, and the samples of a step together.
                Lead::AXIS => Value::new(look(&index.tensor.f_transpose(0, 1)?)?.f_transpose(0, 1)?, index.lead),
                lead => Value::new(look(&index.tensor)?, lead),
            });
        }
        let flat = table.tensor.f_index_select(0, &index.tensor.f_reshape([-1])?)?;
        let shape: Vec<i64> = index.tensor.size().into_iter().chain(row).collect();
        return Ok(Value::new(flat.f_reshape(shape)?, index.lead));
    }
    // A table a sample: every row becomes one number of a flat table with an offset a sample.
    let lead = table.lead.union(index.lead);
    let both = [table, index];
    let t = expand_lead(&table.aligned(lead, table.rank())?, &both, lead)?;
    let i = expand_lead(&index.aligned(lead, index.rank())?, &both, lead)?;
    let n = table.shape()[0];
    let samples: i64 = t.size()[..lead.count()].iter().product();
    let offsets = Tensor::f_arange(samples, (Kind::Int64, t.device()))?.f_mul_scalar(n)?.f_reshape([samples, 1])?;
    let rows = i.f_reshape([samples, -1])?.f_add(&offsets)?.f_reshape([-1])?;
    let flat = t.f_reshape([samples * n, row.iter().product()])?.f_index_select(0, &rows)?;
    let shape: Vec<i64> = i.size().into_iter().chain(row).collect();
    Ok(Value::new(flat.f_reshape(shape)?, lead))
}

/// Pairs of features turned by position * base^(-2i/d) (Su et al. 2021, RoFormer, Eq. 34).
/// `interleaved` pairs neighbours (2i, 2i+1); otherwise feature i turns with feature i + d/2.
fn rotary(x: &Value, position: &Value, base: f64, interleaved: bool) -> Result<Value> {
    let lead = x.lead.union(position.lead);
    let d = x.shape()[x.rank() - 1];
    let t = x.aligned(lead, x.rank())?;
    let options = (t.kind(), t.device());
    let exponents = Tensor::f_arange(d / 2, options)?.f_mul_scalar(-2.0 / d as f64)?;
    let frequencies = Tensor::f_full([1], base, options)?.f_pow(&exponents)?;
    let angles = position.aligned(lead, x.rank())?.f_to_kind(t.kind())?.f_mul(&frequencies)?;
    let (cos, sin) = (angles.f_cos()?, angles.f_sin()?);
    let shape = t.size();
    let pairs = |t: &Tensor| -> Result<(Tensor, Tensor)> {
        let mut split = shape[..shape.len() - 1].to_vec();
        if interleaved {
            split.extend([d / 2, 2]);
            let p = t.f_reshape(split)?;
            Ok((p.f_select(-1, 0)?, p.f_select(-1, 1)?))
        } else {
            Ok((t.f_narrow(-1, 0, d / 2)?, t.f_narrow(-1, d / 2, d / 2)?))
        }
    };
    let (a, b) = pairs(&t)?;
    let turned_a = a.f_mul(&cos)?.f_sub(&b.f_mul(&sin)?)?;
    let turned_b = a.f_mul(&sin)?.f_add(&b.f_mul(&cos)?)?;
    let y = if interleaved {
        let joined = Tensor::f_stack(&[turned_a, turned_b], -1)?;
        let mut full = joined.size();
        full.pop();
        full.pop();
        full.push(d);
        joined.f_reshape(full)?
    } else {
        Tensor::f_cat(&[turned_a, turned_b], -1)?
    };
    Ok(Value::new(y, lead))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::testing::numbers;

    #[test]
    fn a_sequence_looked_up_lies_step_by_step_and_stays_so() {
        let (table, w) = (Value::new(numbers(&[7, 3]), Lead::NONE), Value::new(numbers(&[5, 3]), Lead::NONE));
        let index = Tensor::arange(8, (Kind::Int64, tch::Device::Cpu)).remainder(7).reshape([2, 4]);
        let x = gather(&table, &Value::new(index.shallow_clone(), Lead::AXIS)).unwrap();
        let y = matvec(&w, &x).unwrap();
        assert!(x.tensor.equal(&table.tensor.index_select(0, &index.reshape([-1])).reshape([2, 4, 3])));
        assert!(y.tensor.allclose(&x.tensor.contiguous().matmul(&w.tensor.transpose(0, 1)), 1e-14, 1e-14, false));
        for t in [&x.tensor, &y.tensor] {
            assert!(t.transpose(0, 1).is_contiguous(), "{:?}", t.stride());
        }
        let plain = matvec(&w, &Value::new(x.tensor.contiguous(), Lead::AXIS)).unwrap();
        assert!(plain.tensor.is_contiguous() && plain.tensor.equal(&y.tensor));
    }
}
