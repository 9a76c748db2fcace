//! Operators along a slow net's sequence axis.
//!
//! Tensors are `[batch, time, ...]`. A reset starts a new sequence inside of a row: nothing before it is seen.
//! What an operator must remember for a next call (the last steps of a convolution, say) goes through a ring of earlier values.

use anyhow::{Result, bail};
use tch::{Kind, Tensor};

use super::fused;
use super::value::{Lead, Value};

/// Resets and carried values of one call.
pub struct Along<'a> {
    /// `[batch, time]`: a new sequence starts at this step.
    pub reset: Option<&'a Tensor>,
    /// What the operator left behind at the end of the last call.
    pub carried: Option<&'a [Tensor]>,
}

impl Along<'_> {
    /// Numbers of the sequences in a row, `[batch, before + time]`, where there are resets.
    fn sequences(&self, before: i64) -> Result<Option<Tensor>> {
        self.reset.map(|r| sequences(r, before)).transpose()
    }

    /// The last `n` values before the next call: of this one's `x`, and of the last one's where it is too short.
    fn ring(&self, x: &Tensor, n: i64) -> Result<Tensor> {
        let time = x.size()[1];
        let next = match self.carried {
            _ if time >= n => x.f_narrow(1, time - n, n)?,
            Some(c) => Tensor::f_cat(&[&c[0].f_narrow(1, time, n - time)?, x], 1)?,
            None => {
                let mut shape = x.size();
                shape[1] = n - time;
                Tensor::f_cat(&[&Tensor::f_zeros(shape, (x.kind(), x.device()))?, x], 1)?
            }
        };
        // The next call must not see what lies before a reset of this one.
        let Some(s) = self.sequences(n)? else { return Ok(next) };
        let (first, last) = (s.f_narrow(1, time, n)?, s.f_narrow(1, n + time - 1, 1)?);
        zero_unless(&first.f_eq_tensor(&last)?, &next)
    }
}

/// Numbers of the sequences in a row, `[batch, before + time]`, from resets `[batch, time]`; steps before the call belong to sequence 0.
pub(super) fn sequences(reset: &Tensor, before: i64) -> Result<Tensor> {
    let numbers = reset.f_to_kind(Kind::Int64)?.f_cumsum(1, None)?;
    let zeros = Tensor::f_zeros([numbers.size()[0], before], (Kind::Int64, numbers.device()))?;
    Ok(Tensor::f_cat(&[zeros, numbers], 1)?)
}

/// `x` `[batch, time, ...]` where the mask `[batch, time]` holds, else zero. Chosen and not multiplied: NaN times zero is NaN.
fn zero_unless(mask: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut shape = mask.size();
    shape.resize(x.dim(), 1);
    Ok(x.f_masked_fill(&mask.f_logical_not()?.f_reshape(shape)?, 0.0)?)
}

/// Zero where step t and step t - `by` belong to different sequences; `x` holds step t - `by` at t.
pub(super) fn cut(x: Tensor, sequences: &Option<Tensor>, by: i64, before: i64) -> Result<Tensor> {
    let Some(s) = sequences else { return Ok(x) };
    let time = x.size()[1];
    zero_unless(&s.f_narrow(1, before, time)?.f_eq_tensor(&s.f_narrow(1, before - by, time)?)?, &x)
}

/// Delayed by `steps`.
pub fn shift(x: &Value, steps: usize, along: &Along<'_>) -> Result<(Value, Vec<Tensor>)> {
    let n = steps as i64;
    let time = x.tensor.size()[1];
    let before = match along.carried {
        Some(c) => c[0].shallow_clone(),
        None => {
            let mut shape = x.tensor.size();
            shape[1] = n;
            Tensor::f_zeros(shape, (x.tensor.kind(), x.tensor.device()))?
        }
    };
    let all = Tensor::f_cat(&[&before, &x.tensor], 1)?;
    let y = cut(all.f_narrow(1, 0, time)?, &along.sequences(n)?, n, n)?;
    Ok((Value::new(y, x.lead), vec![along.ring(&x.tensor, n)?]))
}

/// Depthwise causal convolution of x `[batch, time, c]` with kernel `[c, width]`, and then perhaps SiLU.
pub fn causal_conv(x: &Value, kernel: &Value, silu: bool, along: &Along<'_>) -> Result<(Value, Vec<Tensor>)> {
    let ring = along.carried.map(|c| &c[0]);
    let y = fused::causal_conv(&x.tensor, &kernel.tensor, ring, along.reset, silu)?;
    let next = along.ring(&x.tensor, kernel.tensor.size()[1] - 1)?;
    Ok((Value::new(y, x.lead), vec![next]))
}

/// Place in the sequence, `[batch, time]` integers.
pub fn position(like: &Tensor, along: &Along<'_>) -> Result<(Value, Vec<Tensor>)> {
    let (batch, time) = (like.size()[0], like.size()[1]);
    let start = match along.carried {
        Some(c) => c[0].shallow_clone(),
        None => Tensor::f_zeros([batch], (Kind::Int64, like.device()))?,
    };
    let reset = along.reset.map(|r| r.f_transpose(0, 1)).transpose()?;
    let masks = super::scan::Masks { reset, ..Default::default() };
    let (index, last) = super::scan::step_indices(&start, &masks, time, true)?;
    Ok((Value::new(index.tensor.f_transpose(0, 1)?, Lead::AXIS), vec![last]))
}

/// Sum over the steps of the sequence up to and including this one.
pub fn cumsum(x: &Value, along: &Along<'_>) -> Result<(Value, Vec<Tensor>)> {
    let time = x.tensor.size()[1];
    let sums = match along.reset {
        None => {
            let sums = x.tensor.f_cumsum(1, None)?;
            match along.carried {
                Some(c) => sums.f_add(&c[0].f_unsqueeze(1)?)?,
                None => sums,
            }
        }
        // Step by step: taking off what was summed before a reset would lose digits, and keep a NaN for ever.
        Some(reset) => {
            let goes_on = reset.f_logical_not()?;
            let mut sum = match along.carried {
                Some(c) => c[0].shallow_clone(),
                None => x.tensor.f_select(1, 0)?.f_zeros_like()?,
            };
            let mut sums = Vec::new();
            for (x, goes_on) in x.tensor.f_unbind(1)?.iter().zip(goes_on.f_unbind(1)?) {
                let before = zero_unless(&goes_on.f_unsqueeze(1)?, &sum.f_unsqueeze(1)?)?;
                sum = before.f_squeeze_dim(1)?.f_add(x)?;
                sums.push(sum.shallow_clone());
            }
            Tensor::f_stack(&sums, 1)?
        }
    };
    let last = sums.f_select(1, time - 1)?;
    Ok((Value::new(sums, x.lead), vec![last]))
}

/// How attention sees its keys.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Factor of the scores.
    pub scale: f64,
    /// Whether a query sees no later step.
    pub causal: bool,
    /// Number of steps that a query sees, its own among them; 0 is all.
    pub window: usize,
    /// Whether queries and keys lie along one axis, where resets part them.
    pub one_axis: bool,
    /// Whether a next call goes on.
    pub carry: bool,
}

/// Softmax attention of q `[batch, time, h, d]` on k `[batch, past, g, d]` and v `[batch, past, g, e]`.
///
/// Where there are numbers of parts `[batch, time]`, a step sees steps of its own number only.
pub fn attention(
    [q, k, v]: [&Value; 3],
    part: Option<&Value>,
    how: Attention,
    along: &Along<'_>,
) -> Result<(Value, Vec<Tensor>)> {
    let Attention { scale, causal, window, one_axis, carry } = how;
    if carry && !(causal && window > 0) {
        bail!("unbounded attention has no state of fixed size to carry over: give it a window, or train without carry-over");
    }
    let (batch, time) = (q.tensor.size()[0], q.tensor.size()[1]);
    let (mut keys, mut values) = (k.tensor.shallow_clone(), v.tensor.shallow_clone());
    let expanded = |p: &Value| -> Result<Tensor> { Ok(p.aligned(Lead::AXIS, 0)?.f_expand([batch, time], false)?) };
    let mut parts = part.map(expanded).transpose()?;
    let mut before = 0;
    if let Some(c) = along.carried {
        before = c[0].size()[1];
        parts = parts.map(|p| Tensor::f_cat(&[&c[3], &p], 1)).transpose()?;
        keys = Tensor::f_cat(&[&c[0], &keys], 1)?;
        values = Tensor::f_cat(&[&c[1], &values], 1)?;
    }
    let past = keys.size()[1];
    // The number of every key's sequence; -1 for carried keys of sequences that have ended.
    let sequences = match (along.sequences(before)?.filter(|_| one_axis), along.carried) {
        (None, None) => None,
        (numbers, carried) => {
            let options = (Kind::Int64, keys.device());
            let numbers = numbers.map_or_else(|| Tensor::f_zeros([batch, past], options), Ok)?;
            match carried {
                Some(c) => {
                    let ended = c[2].f_to_kind(Kind::Int64)?.f_sub_scalar(1)?;
                    Some(Tensor::f_cat(&[ended, numbers.f_narrow(1, before, past - before)?], 1)?)
                }
                None => Some(numbers),
            }
        }
    };
    let mut ring = Vec::new();
    if carry {
        let n = past.min(window as i64 - 1);
        let goes_on = match &sequences {
            Some(s) => s.f_narrow(1, past - n, n)?.f_eq_tensor(&s.f_narrow(1, past - 1, 1)?)?,
            None => Tensor::f_ones([batch, n], (Kind::Bool, keys.device()))?,
        };
        ring = vec![keys.f_narrow(1, past - n, n)?, values.f_narrow(1, past - n, n)?, goes_on];
        if let Some(p) = &parts {
            ring.push(p.f_narrow(1, past - n, n)?);
        }
    }
    let groups = q.tensor.size()[2] / keys.size()[2];
    let heads_first = |t: &Tensor| -> Result<Tensor> {
        let t = t.f_transpose(1, 2)?;
        Ok(if groups > 1 { t.f_repeat_interleave_self_int(groups, 1, None)? } else { t })
    };
    let (keys, values) = (heads_first(&keys)?, heads_first(&values)?);
    let query = q.tensor.f_transpose(1, 2)?;
    let alike = [sequences, parts];
    let plain = window == 0 && alike.iter().all(Option::is_none);
    let mask = if plain { None } else { Some(mask(time, past, before, how, &alike, q.tensor.device())?) };
    let y = Tensor::f_scaled_dot_product_attention(&query, &keys, &values, mask, 0.0, plain && causal, Some(scale), false)?;
    Ok((Value::new(y.f_transpose(1, 2)?, q.lead), ring))
}

/// What each query may see, `[time, past]` or `[batch, 1, time, past]`; numbers `[batch, past]` that must be `alike` part it further.
fn mask(time: i64, past: i64, before: i64, how: Attention, alike: &[Option<Tensor>], device: tch::Device) -> Result<Tensor> {
    let options = (Kind::Int64, device);
    let at = Tensor::f_arange(time, options)?.f_add_scalar(before)?.f_unsqueeze(1)?;
    let distance = at.f_sub(&Tensor::f_arange(past, options)?.f_unsqueeze(0)?)?;
    let mut seen = Tensor::f_ones([time, past], (Kind::Bool, device))?;
    if how.causal {
        seen = seen.f_logical_and(&distance.f_ge(0)?)?;
    }
    if how.window > 0 {
        let window = how.window as i64;
        let near = if how.causal { distance.f_lt(window)? } else { distance.f_abs()?.f_lt(window)? };
        seen = seen.f_logical_and(&near)?;
    }
    for s in alike.iter().flatten() {
        let same = s.f_narrow(1, before, time)?.f_unsqueeze(2)?.f_eq_tensor(&s.f_unsqueeze(1)?)?;
        seen = seen.f_logical_and(&same.f_unsqueeze(1)?)?;
    }
    Ok(seen)
}
