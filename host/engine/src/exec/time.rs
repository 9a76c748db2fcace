//! Operators along a slow net's sequence axis.
//!
//! Tensors are `[batch, time, ...]`. A reset starts a new sequence inside of a row: nothing before it is seen.
//! What an operator must remember for a next call (the last steps of a convolution, say) goes through a ring of earlier values.

use anyhow::{Result, bail};
use tch::{Kind, Tensor};

use super::value::{Lead, Value};

/// Resets and carried values of one call.
pub struct Along<'a> {
    /// `[batch, time]`: a new sequence starts at this step.
    pub reset: Option<&'a Tensor>,
    /// What the operator left behind at the end of the last call.
    pub carried: Option<&'a [Tensor]>,
}

impl Along<'_> {
    /// Numbers of the sequences in a row, `[batch, before + time]`; steps before the call belong to sequence 0.
    fn sequences(&self, before: i64) -> Result<Option<Tensor>> {
        let Some(reset) = self.reset else { return Ok(None) };
        let numbers = reset.f_to_kind(Kind::Int64)?.f_cumsum(1, None)?;
        let zeros = Tensor::f_zeros([numbers.size()[0], before], (Kind::Int64, numbers.device()))?;
        Ok(Some(Tensor::f_cat(&[zeros, numbers], 1)?))
    }

    /// The last `n` earlier values (zeros where there are none) before the values of this call, and the ring for the next call.
    fn with_ring(&self, x: &Tensor, n: i64) -> Result<(Tensor, Tensor)> {
        let ring = match self.carried {
            Some(c) => c[0].shallow_clone(),
            None => {
                let mut shape = x.size();
                shape[1] = n;
                Tensor::f_zeros(shape, (x.kind(), x.device()))?
            }
        };
        let all = Tensor::f_cat(&[&ring, x], 1)?;
        let length = all.size()[1];
        let next = all.f_narrow(1, length - n, n)?;
        Ok((all, next))
    }
}

/// Zero where step t and step t - `by` belong to different sequences; `x` holds step t - `by` at t.
fn cut(x: Tensor, sequences: &Option<Tensor>, by: i64, before: i64) -> Result<Tensor> {
    let Some(s) = sequences else { return Ok(x) };
    let time = x.size()[1];
    let same = s.f_narrow(1, before, time)?.f_eq_tensor(&s.f_narrow(1, before - by, time)?)?;
    let mut shape = same.size();
    shape.resize(x.dim(), 1);
    Ok(x.f_mul(&same.f_reshape(shape)?)?)
}

/// Delayed by `steps`.
pub fn shift(x: &Value, steps: usize, along: &Along<'_>) -> Result<(Value, Vec<Tensor>)> {
    let n = steps as i64;
    let time = x.tensor.size()[1];
    let (all, ring) = along.with_ring(&x.tensor, n)?;
    let y = cut(all.f_narrow(1, 0, time)?, &along.sequences(n)?, n, n)?;
    Ok((Value::new(y, x.lead), vec![ring]))
}

/// Depthwise causal convolution of x `[batch, time, c]` with kernel `[c, width]`.
pub fn causal_conv(x: &Value, kernel: &Value, along: &Along<'_>) -> Result<(Value, Vec<Tensor>)> {
    let (c, width) = (kernel.tensor.size()[0], kernel.tensor.size()[1]);
    let time = x.tensor.size()[1];
    let (all, ring) = along.with_ring(&x.tensor, width - 1)?;
    let y = match along.sequences(width - 1)? {
        None => {
            let rows = all.f_transpose(1, 2)?;
            let weight = kernel.tensor.f_unsqueeze(1)?;
            rows.f_conv1d(&weight, None::<Tensor>, 1, 0, 1, c)?.f_transpose(1, 2)?
        }
        sequences => {
            let mut y: Option<Tensor> = None;
            for j in 0..width {
                let back = width - 1 - j;
                let part = cut(all.f_narrow(1, j, time)?, &sequences, back, width - 1)?;
                let part = part.f_mul(&kernel.tensor.f_select(1, j)?)?;
                y = Some(match y {
                    None => part,
                    Some(y) => y.f_add(&part)?,
                });
            }
            y.unwrap_or_else(|| x.tensor.zeros_like())
        }
    };
    Ok((Value::new(y, x.lead), vec![ring]))
}

/// Place in the sequence, `[batch, time]` integers.
pub fn position(like: &Tensor, along: &Along<'_>) -> Result<(Value, Vec<Tensor>)> {
    let (batch, time) = (like.size()[0], like.size()[1]);
    let start = match along.carried {
        Some(c) => c[0].shallow_clone(),
        None => Tensor::f_zeros([batch], (Kind::Int64, like.device()))?,
    };
    let reset = along.reset.map(|r| r.f_transpose(0, 1)).transpose()?;
    let masks = super::scan::Masks { reset, write: None };
    let (index, last) = super::scan::step_indices(&start, &masks, time, true)?;
    Ok((Value::new(index.tensor.f_transpose(0, 1)?, Lead::AXIS), vec![last]))
}

/// Sum over the steps of the sequence up to and including this one.
pub fn cumsum(x: &Value, along: &Along<'_>) -> Result<(Value, Vec<Tensor>)> {
    let time = x.tensor.size()[1];
    let mut sums = x.tensor.f_cumsum(1, None)?;
    if let Some(c) = along.carried {
        sums = sums.f_add(&c[0].f_unsqueeze(1)?)?;
    }
    if let Some(reset) = along.reset {
        // The sum just before the last reset is taken off again.
        let before = sums.f_sub(&x.tensor)?;
        let steps = Tensor::f_arange(time, (Kind::Int64, x.tensor.device()))?;
        let origin = steps.f_mul(&reset.f_to_kind(Kind::Int64)?)?;
        let origin = origin.f_masked_fill(&reset.f_logical_not()?, -1)?.f_cummax(1)?.0;
        let mut shape = origin.size();
        shape.resize(sums.dim(), 1);
        let index = origin.f_clamp_min(0)?.f_reshape(&shape[..])?.f_expand(sums.size(), false)?;
        let base = before.f_gather(1, &index, false)?;
        let since = origin.f_ge(0)?.f_reshape(&shape[..])?;
        sums = sums.f_sub(&base.f_mul(&since)?)?;
    }
    let last = sums.f_select(1, time - 1)?;
    Ok((Value::new(sums, x.lead), vec![last]))
}

/// Softmax attention of q `[batch, time, h, d]` on k `[batch, past, g, d]` and v `[batch, past, g, e]`.
pub fn attention(q: &Value, k: &Value, v: &Value, scale: f64, causal: bool, window: usize, along: &Along<'_>, carry: bool) -> Result<(Value, Vec<Tensor>)> {
    if carry && !(causal && window > 0) {
        bail!("unbounded attention has no state of fixed size to carry over: give it a window, or train without carry-over");
    }
    let time = q.tensor.size()[1];
    let (mut keys, mut values) = (k.tensor.shallow_clone(), v.tensor.shallow_clone());
    let mut before = 0;
    if let Some(c) = along.carried {
        before = c[0].size()[1];
        keys = Tensor::f_cat(&[&c[0], &keys], 1)?;
        values = Tensor::f_cat(&[&c[1], &values], 1)?;
    }
    let past = keys.size()[1];
    let mut ring = Vec::new();
    if carry {
        let n = past.min(window as i64 - 1);
        ring = vec![keys.f_narrow(1, past - n, n)?, values.f_narrow(1, past - n, n)?];
    }
    let groups = q.tensor.size()[2] / keys.size()[2];
    let heads_first = |t: &Tensor| -> Result<Tensor> {
        let t = t.f_transpose(1, 2)?;
        Ok(if groups > 1 { t.f_repeat_interleave_self_int(groups, 1, None)? } else { t })
    };
    let (keys, values) = (heads_first(&keys)?, heads_first(&values)?);
    let query = q.tensor.f_transpose(1, 2)?;
    let plain = window == 0 && along.reset.is_none() && before == 0;
    let mask = if plain { None } else { Some(mask(time, past, before, causal, window, along, q.tensor.device())?) };
    let y = Tensor::f_scaled_dot_product_attention(&query, &keys, &values, mask, 0.0, plain && causal, Some(scale), false)?;
    Ok((Value::new(y.f_transpose(1, 2)?, q.lead), ring))
}

/// What each query may see, `[time, past]` or `[batch, 1, time, past]`.
fn mask(time: i64, past: i64, before: i64, causal: bool, window: usize, along: &Along<'_>, device: tch::Device) -> Result<Tensor> {
    let options = (Kind::Int64, device);
    let distance = Tensor::f_arange(time, options)?.f_add_scalar(before)?.f_unsqueeze(1)?.f_sub(&Tensor::f_arange(past, options)?.f_unsqueeze(0)?)?;
    let mut seen = distance.f_ones_like()?.f_to_kind(Kind::Bool)?;
    if causal {
        seen = seen.f_logical_and(&distance.f_ge(0)?)?;
    }
    if window > 0 {
        let near = if causal { distance.f_lt(window as i64)? } else { distance.f_abs()?.f_lt(window as i64)? };
        seen = seen.f_logical_and(&near)?;
    }
    if let Some(s) = along.sequences(before)? {
        let same = s.f_narrow(1, before, time)?.f_unsqueeze(2)?.f_eq_tensor(&s.f_narrow(1, 0, past)?.f_unsqueeze(1)?)?;
        seen = seen.f_unsqueeze(0)?.f_logical_and(&same)?.f_unsqueeze(1)?;
    }
    Ok(seen)
}
