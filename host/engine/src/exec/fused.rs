//! Operations in one pass over memory, where libtorch needs several.
//!
//! Each has three parts: whether its fast passes serve these tensors, the passes themselves ([`crate::shim::fused`]), and the same operation in libtorch's own pieces.
//! The pieces are the reference: they say what the operation is, judge the fast passes in the tests, and take over for other devices and kinds, and for gradients of gradients.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use crate::shim::fused::{self, Norm};
use crate::shim::{custom_function, grad_enabled, gradients};

/// Whether all of these are tensors that fast passes read.
pub(super) fn served(tensors: &[&Tensor]) -> bool {
    let kind = tensors[0].kind();
    matches!(kind, Kind::Float | Kind::Double)
        && tensors.iter().all(|t| t.device() == Device::Cpu && t.kind() == kind && t.numel() > 0)
}

/// Puts `y`, a function of `inputs` and of `others` without a gradient, into the graph.
///
/// - `plain`: the same function in libtorch's own operations, for gradients of gradients.
/// - `fast`: gradients of the inputs from the gradient of `y`, inputs and others, and for each input whether its gradient is asked for.
pub(super) fn recorded<P, F>(inputs: &[&Tensor], others: &[&Tensor], y: Tensor, plain: P, fast: F) -> Result<Tensor>
where
    P: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    F: Fn(&Tensor, &[Tensor], &[bool]) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    let plain = move |i: &[Tensor]| Ok(vec![plain(i)?]);
    let fast =
        move |g: &[Option<Tensor>], i: &[Tensor], needed: &[bool]| fast(g[0].as_ref().expect("it has a gradient"), i, needed);
    Ok(recorded_all(inputs, others, vec![y], plain, fast)?.remove(0))
}

/// As [`recorded`], of several results; one that nothing depends on has no gradient, but never all of them.
pub(super) fn recorded_all<P, F>(
    inputs: &[&Tensor],
    others: &[&Tensor],
    ys: Vec<Tensor>,
    plain: P,
    fast: F,
) -> Result<Vec<Tensor>>
where
    P: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    F: Fn(&[Option<Tensor>], &[Tensor], &[bool]) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    if !grad_enabled() || !inputs.iter().any(|t| t.requires_grad()) {
        return Ok(ys);
    }
    let saved: Vec<&Tensor> = inputs.iter().chain(others).copied().collect();
    Ok(custom_function(inputs, &saved, ys, move |b| {
        let mut answer: Vec<Option<Tensor>> = b.needed.iter().map(|_| None).collect();
        if b.grads.iter().all(Option::is_none) {
            return Ok(answer);
        }
        if !grad_enabled() {
            return fast(b.grads, b.saved, b.needed);
        }
        let wanted: Vec<usize> = (0..b.needed.len()).filter(|i| b.needed[*i]).collect();
        let targets: Vec<&Tensor> = wanted.iter().map(|i| &b.saved[*i]).collect();
        let (ys, grads): (Vec<Tensor>, Vec<Option<&Tensor>>) =
            plain(b.saved)?.into_iter().zip(b.grads).filter(|(_, g)| g.is_some()).map(|(y, g)| (y, g.as_ref())).unzip();
        let found = gradients(&ys, &grads, &targets, true, true)?;
        wanted.into_iter().zip(found).for_each(|(i, gradient)| answer[i] = gradient);
        Ok(answer)
    })?)
}

/// Causal convolution of x `[batch, time, channels]` with a kernel `[channels, width]`, channel by channel, and then perhaps SiLU.
///
/// - `ring`: `[batch, width - 1, channels]`, what came before; none is zeros.
/// - `reset`: `[batch, time]` masks; nothing before such a step is seen from it on.
///
/// # Errors
/// libtorch's.
pub fn causal_conv(x: &Tensor, kernel: &Tensor, ring: Option<&Tensor>, reset: Option<&Tensor>, silu: bool) -> Result<Tensor> {
    let inputs: Vec<&Tensor> = [x, kernel].into_iter().chain(ring).collect();
    if !served(&inputs) || kernel.size()[1] > fused::CONVOLUTION_WIDTH {
        return plain_causal_conv(x, kernel, ring, reset, silu);
    }
    let others: Vec<&Tensor> = reset.into_iter().collect();
    // A place for what is not among the inputs.
    let after = inputs.len();
    let has_ring = ring.is_some();
    let y = fused::Convolution { x, kernel, ring, reset, silu }.forward()?;
    recorded(
        &inputs,
        &others,
        y,
        move |i| plain_causal_conv(&i[0], &i[1], i[..after].get(2), i.get(after), silu),
        move |g, i, needed| {
            let (ring, reset) = (i[..after].get(2), i.get(after));
            let conv = fused::Convolution { x: &i[0], kernel: &i[1], ring, reset, silu };
            let made = conv.backward(g, needed.get(2) == Some(&true))?;
            let mut answer = vec![Some(made.x), Some(made.kernel)];
            if has_ring {
                answer.push(made.ring);
            }
            Ok(answer)
        },
    )
}

/// [`causal_conv`] as a sum of `width` products of whole sequences.
fn plain_causal_conv(x: &Tensor, kernel: &Tensor, ring: Option<&Tensor>, reset: Option<&Tensor>, silu: bool) -> Result<Tensor> {
    let before = kernel.size()[1] - 1;
    let (batch, time, channels) = x.size3()?;
    let zeros = || Ok(Tensor::f_zeros([batch, before, channels], (x.kind(), x.device()))?);
    let all = Tensor::f_cat(&[&ring.map_or_else(zeros, |r| Ok::<_, anyhow::Error>(r.shallow_clone()))?, x], 1)?;
    let sequences = reset.map(|r| super::time::sequences(r, before)).transpose()?;
    let mut y: Option<Tensor> = None;
    for (j, column) in kernel.f_transpose(0, 1)?.f_contiguous()?.f_unbind(0)?.iter().enumerate() {
        let back = before - j as i64;
        let seen = super::time::cut(all.f_narrow(1, j as i64, time)?, &sequences, back, before)?;
        y = Some(match y {
            None => seen.f_mul(column)?,
            Some(y) => y.f_addcmul(&seen, column)?,
        });
    }
    let y = y.map_or_else(|| x.f_zeros_like(), Ok)?;
    Ok(if silu { y.f_silu()? } else { y })
}

/// Rows along the last axis of x `[..., n]` divided by their norm, and then perhaps times a gain `[n]`.
///
/// # Errors
/// libtorch's.
pub fn normalise(x: &Tensor, gain: Option<&Tensor>, norm: Norm, eps: f64) -> Result<Tensor> {
    let inputs: Vec<&Tensor> = [x].into_iter().chain(gain).collect();
    if !served(&inputs) || x.dim() == 0 || gain.is_some_and(|w| w.dim() != 1) {
        return plain_normalise(x, gain, norm, eps);
    }
    let y = fused::Normalisation { x, gain, norm, eps }.forward()?;
    recorded(
        &inputs,
        &[],
        y,
        move |i| plain_normalise(&i[0], i.get(1), norm, eps),
        move |g, i, _| {
            let (x, gain) = fused::Normalisation { x: &i[0], gain: i.get(1), norm, eps }.backward(g)?;
            Ok([Some(x), gain].into_iter().take(i.len()).collect())
        },
    )
}

/// [`normalise`], operation by operation.
fn plain_normalise(x: &Tensor, gain: Option<&Tensor>, norm: Norm, eps: f64) -> Result<Tensor> {
    let sum = |t: &Tensor| t.f_sum_dim_intlist(-1, true, None);
    let y = match norm {
        Norm::Rms => x.f_rms_norm(x.size()[x.dim() - 1], None::<Tensor>, Some(eps))?,
        Norm::L2 => x.f_mul(&sum(&x.f_square()?)?.f_add_scalar(eps)?.f_rsqrt()?)?,
        Norm::Sum => x.f_div(&sum(x)?.f_add_scalar(eps)?)?,
    };
    Ok(match gain {
        Some(gain) => y.f_mul(gain)?,
        None => y,
    })
}

/// a sigmoid(a) b.
///
/// # Errors
/// libtorch's.
pub fn gate(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !served(&[a, b]) || a.size() != b.size() {
        return plain_gate(a, b);
    }
    recorded(
        &[a, b],
        &[],
        fused::gate(a, b)?,
        |i| plain_gate(&i[0], &i[1]),
        |g, i, _| {
            let (a, b) = fused::gate_back(g, &i[0], &i[1])?;
            Ok(vec![Some(a), Some(b)])
        },
    )
}

/// [`gate`], operation by operation.
fn plain_gate(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.f_silu()?.f_mul(b)?)
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A function of tensors, fast or plain.
    pub type Work<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

    /// The output, the gradients of all inputs, and the gradients of those. All is drawn in float32, so that an error is the operation's own.
    pub fn passes(work: Work<'_>, inputs: &[Tensor], kind: Kind, twice: bool) -> Vec<Tensor> {
        let leaves: Vec<Tensor> = inputs.iter().map(|t| t.to_kind(Kind::Float).to_kind(kind).set_requires_grad(true)).collect();
        // Views with the strides of the inputs, so that layouts reach the operation.
        let views: Vec<Tensor> = leaves.iter().zip(inputs).map(|(l, t)| l * 1.0 + t.zeros_like().to_kind(kind)).collect();
        let y = work(&views).unwrap();
        let weights = (Tensor::arange(y.numel() as i64, (Kind::Double, Device::Cpu)) * 0.37).sin();
        let weights = weights.to_kind(Kind::Float).to_kind(kind).reshape(y.size());
        let first = gradients(&[&y], &[Some(&weights)], &leaves, true, twice).unwrap();
        let first: Vec<Tensor> = first.into_iter().map(Option::unwrap).collect();
        let mut all: Vec<Tensor> = [y].into_iter().chain(first.iter().map(Tensor::shallow_clone)).collect();
        if twice {
            let sum = first.iter().map(|g| (g * g).sum(kind)).reduce(|a, b| a + b).unwrap();
            // What enters linearly, alone, has none.
            let second = match sum.requires_grad() {
                true => gradients(&[sum], &[None::<Tensor>], &leaves, false, false).unwrap(),
                false => leaves.iter().map(|_| None).collect(),
            };
            all.extend(second.into_iter().zip(&leaves).map(|(g, leaf)| g.unwrap_or_else(|| leaf.zeros_like())));
        }
        all
    }

    /// Outputs and gradients, of gradients too, of two functions that are the same.
    pub fn compare(what: &str, inputs: &[Tensor], fast: Work<'_>, plain: Work<'_>) {
        let exact = passes(plain, inputs, Kind::Double, true);
        for (kind, twice, bound) in [(Kind::Double, false, 1e-12), (Kind::Double, true, 1e-12), (Kind::Float, false, 2e-6)] {
            let got = passes(fast, inputs, kind, twice);
            assert!(got[0].requires_grad() && got[0].kind() == kind, "{what}");
            for (i, (a, b)) in got.iter().zip(&exact).enumerate() {
                let error = f64::try_from((a.to_kind(Kind::Double) - b).abs().max()).unwrap();
                let size = f64::try_from(b.abs().max()).unwrap();
                assert!(error <= bound * (1.0 + size), "{what}, {kind:?}, tensor {i}: off by {error}");
            }
        }
    }

    /// The same numbers in other places of memory.
    pub fn layouts(t: &Tensor) -> Vec<(&'static str, Tensor)> {
        let mut all = vec![("dense", t.shallow_clone())];
        if t.dim() > 1 {
            all.push(("axes exchanged", t.transpose(0, 1).contiguous().transpose(0, 1)));
            all.push(("last axis apart", t.transpose(-1, 0).contiguous().transpose(-1, 0)));
            all.push(("repeated", t.narrow(0, 0, 1).expand_as(t)));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{compare, layouts, passes};
    use super::*;
    use crate::shim::testing::numbers;

    #[test]
    fn the_causal_convolution_is_the_sum_of_its_products() {
        for (batch, time, channels, width) in [(1, 1, 1, 1), (2, 9, 5, 4), (3, 2, 67, 4), (2, 20, 129, 3), (1, 18, 64, 16)] {
            let (x, kernel) = (numbers(&[batch, time, channels]), numbers(&[channels, width]));
            let ring = numbers(&[batch, width - 1, channels]);
            let reset = numbers(&[batch, time]).gt(0.5);
            for (layout, x) in layouts(&x) {
                for which in 0..8 {
                    let (silu, resets) = (which & 1 != 0, (which & 2 != 0).then_some(&reset));
                    let inputs: Vec<Tensor> = [&x, &kernel]
                        .into_iter()
                        .chain((which & 4 != 0 && width > 1).then_some(&ring))
                        .map(Tensor::shallow_clone)
                        .collect();
                    compare(
                        &format!("{batch} {time} {channels} {width}, {layout}, {which}"),
                        &inputs,
                        &|i| causal_conv(&i[0], &i[1], i.get(2), resets, silu),
                        &|i| plain_causal_conv(&i[0], &i[1], i.get(2), resets, silu),
                    );
                }
            }
        }
    }

    #[test]
    fn normalisations_are_those_of_their_formulas() {
        for shape in [&[1i64][..], &[7], &[3, 1], &[5, 16], &[2, 3, 67], &[300, 130], &[4, 3, 5, 32]] {
            for (layout, x) in layouts(&(numbers(shape) + 1.5)) {
                for norm in [Norm::Rms, Norm::L2, Norm::Sum] {
                    for gained in [false, true] {
                        let gain = gained.then(|| numbers(&shape[shape.len() - 1..]));
                        let inputs: Vec<Tensor> = [x.shallow_clone()].into_iter().chain(gain).collect();
                        compare(
                            &format!("{shape:?}, {layout}, {norm:?}, {gained}"),
                            &inputs,
                            &|i| normalise(&i[0], i.get(1), norm, 1e-3),
                            &|i| plain_normalise(&i[0], i.get(1), norm, 1e-3),
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_gate_is_its_product() {
        for shape in [&[][..], &[1], &[7, 5], &[3, 2, 33], &[64, 700]] {
            let (a, b) = (numbers(shape) * 6., numbers(shape));
            for (layout, a) in layouts(&a) {
                compare(&format!("{shape:?}, {layout}"), &[a, b.shallow_clone()], &|i| gate(&i[0], &i[1]), &|i| {
                    plain_gate(&i[0], &i[1])
                });
            }
        }
    }

    #[test]
    fn the_ends_of_the_number_line_are_those_of_libtorch() {
        let a = Tensor::from_slice(&[f64::NAN, f64::INFINITY, 1e300, 800., 50., 0., -0., -50., -700., -800., -1e300]);
        for kind in [Kind::Float, Kind::Double] {
            let a = a.to_kind(kind);
            let (got, expected) = (gate(&a, &a.ones_like()).unwrap(), a.silu());
            assert!(got.allclose(&expected, 1e-6, 1e-30, true), "{got} {expected}");
        }
    }

    #[test]
    fn what_nobody_serves_takes_the_plain_operations() {
        let (x, w) = (numbers(&[2, 5, 3]).to_kind(Kind::Half), numbers(&[3, 4]).to_kind(Kind::Half));
        assert_eq!(causal_conv(&x, &w, None, None, true).unwrap().kind(), Kind::Half);
        assert_eq!(normalise(&x, None, Norm::L2, 1e-3).unwrap().kind(), Kind::Half);
        assert_eq!(gate(&x, &x.narrow(0, 0, 1)).unwrap().size(), [2, 5, 3]);
        let (x, w) = (numbers(&[1, 5, 3]), numbers(&[3, 20]));
        compare("a long kernel", &[x, w], &|i| causal_conv(&i[0], &i[1], None, None, false), &|i| {
            plain_causal_conv(&i[0], &i[1], None, None, false)
        });
        assert_eq!(gate(&numbers(&[0, 3]), &numbers(&[0, 3])).unwrap().size(), [0, 3]);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        crate::shim::testing::alone("exec::fused::tests::threads_inner");
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own: the number of threads is one for all"]
    fn threads_inner() {
        let (x, w) = (numbers(&[5, 200, 130]), numbers(&[130, 4]));
        let gain = numbers(&[130]);
        let all = || -> Vec<Tensor> {
            let mut all = passes(&|i| causal_conv(&i[0], &i[1], None, None, true), &[x.copy(), w.copy()], Kind::Float, false);
            let given = [x.copy(), gain.copy()];
            all.extend(passes(&|i| normalise(&i[0], i.get(1), Norm::Rms, 1e-6), &given, Kind::Float, false));
            all.extend(passes(&|i| gate(&i[0], &i[1]), &[x.copy(), x.flip([0i64])], Kind::Float, false));
            all
        };
        let one = {
            crate::shim::set_num_threads(1);
            all()
        };
        for threads in 2..5 {
            crate::shim::set_num_threads(threads);
            for (a, b) in one.iter().zip(all()) {
                assert!(a.equal(&b), "{threads} threads");
            }
        }
    }
}
