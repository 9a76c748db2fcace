//! Losses of outputs against symbols, all rows in one pass and one back.

use anyhow::{Result, ensure};
use tch::{Device, Tensor};

use super::fused::{recorded, served};
use crate::shim::loss::{Losses, Which};

/// The sum of the losses of output `[..., n]` against symbols `[...]`, times weights `[...]` where there are some.
///
/// # Errors
/// A symbol out of range; libtorch's.
pub fn losses(which: Which, output: &Tensor, symbols: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let floats: Vec<&Tensor> = [output].into_iter().chain(weights).collect();
    if !served(&floats) || symbols.device() != Device::Cpu {
        return plain(which, output, symbols, weights);
    }
    let y = Losses { output, symbols, weights, which }.forward()?;
    let others: Vec<&Tensor> = [symbols].into_iter().chain(weights).collect();
    recorded(
        &[output],
        &others,
        y,
        move |i| plain(which, &i[0], &i[1], i.get(2)),
        move |g, i, _| Ok(vec![Some(Losses { output: &i[0], symbols: &i[1], weights: i.get(2), which }.backward(g)?)]),
    )
}

/// [`losses`], operation by operation.
fn plain(which: Which, output: &Tensor, symbols: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    ensure!(output.dim() > 0, "a loss of a single number");
    let kind = output.kind();
    let index = symbols.f_unsqueeze(-1)?;
    let each = match which {
        Which::CrossEntropy => output.f_log_softmax(-1, kind)?.f_gather(-1, &index, false)?.f_squeeze_dim(-1)?.f_neg()?,
        Which::HalfSquaredError => {
            // Not scatter_value: in this binding a refused call with a number in it panics.
            let ones = index.f_to_kind(kind)?.f_ones_like()?;
            let target = output.f_zeros_like()?.f_scatter(-1, &index, &ones)?;
            let difference = output.f_sub(&target)?;
            difference.f_square()?.f_sum_dim_intlist(-1, false, kind)?.f_mul_scalar(0.5)?
        }
    };
    let each = match weights {
        Some(weights) => each.f_mul(weights)?,
        None => each,
    };
    Ok(each.f_sum(kind)?)
}

#[cfg(test)]
mod tests {
    use super::super::fused::testing::{compare, layouts};
    use super::*;
    use crate::shim::testing::numbers;
    use tch::Kind;

    #[test]
    fn the_loss_of_all_rows_is_the_sum_of_its_definition() {
        for shape in [&[1i64, 1][..], &[5, 3], &[2, 7, 20], &[3, 2, 65], &[300, 130], &[2, 3, 4, 17]] {
            let n = shape[shape.len() - 1];
            let leading = &shape[..shape.len() - 1];
            let count: i64 = leading.iter().product();
            let symbols = (Tensor::arange(count, (Kind::Int64, Device::Cpu)) * 7).remainder(n).reshape(leading);
            // Of one sign each: a sum that cancels is as inexact as its parts are large.
            let positive = numbers(leading).abs();
            let weightings = [None, Some(&positive * -1.), Some(positive)];
            let given = numbers(shape) * 4.;
            let mut given_in = layouts(&given);
            if leading.len() == 3 {
                // An order of axes that is not its own inverse.
                let turned = given.permute([1, 2, 0, 3]).contiguous().permute([2, 0, 1, 3]);
                given_in.push(("axes turned", turned));
            }
            for (layout, x) in given_in {
                for which in [Which::HalfSquaredError, Which::CrossEntropy] {
                    for (number, weights) in weightings.iter().enumerate() {
                        let of_kind = |k: Kind| weights.as_ref().map(|w| w.to_kind(Kind::Float).to_kind(k));
                        compare(
                            &format!("{shape:?}, {layout}, {which:?}, weights {number}"),
                            &[x.shallow_clone()],
                            &|i| losses(which, &i[0], &symbols, of_kind(i[0].kind()).as_ref()),
                            &|i| plain(which, &i[0], &symbols, of_kind(i[0].kind()).as_ref()),
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_small_error_is_not_swallowed_by_the_target() {
        let x = Tensor::from_slice(&[1f32 + 1e-4, 0., 0.]).view([1, 3]);
        let loss = losses(Which::HalfSquaredError, &x, &Tensor::from_slice(&[0i64]), None).unwrap();
        let exact = 0.5 * ((1f32 + 1e-4) as f64 - 1.).powi(2);
        assert!((f64::try_from(loss).unwrap() / exact - 1.).abs() < 1e-6);
    }

    #[test]
    fn numbers_at_the_ends_are_those_of_libtorch() {
        let symbols = Tensor::from_slice(&[0i64]);
        for row in [[1e30, -1e30, 0.], [-1e4, 0., 1e4], [f64::NAN, 0., 0.], [0., f64::INFINITY, 0.], [0., f64::NEG_INFINITY, 0.]]
        {
            for kind in [Kind::Float, Kind::Double] {
                let x = Tensor::from_slice(&row).to_kind(kind).view([1, 3]);
                let [a, b] = [losses, plain].map(|f| f(Which::CrossEntropy, &x, &symbols, None).unwrap());
                assert!(a.allclose(&b, 1e-6, 1e-30, true), "{row:?}: {a} {b}");
            }
        }
        // The largest number anywhere in rows of full vectors, and behind them: e to the others' distance overflows.
        let symbols = Tensor::from_slice(&[1i64]);
        for (kind, largest) in [(Kind::Float, 200.), (Kind::Double, 2000.)] {
            for (n, at) in [35, 40].into_iter().flat_map(|n| (0..n).map(move |at| (n, at))) {
                let x = numbers(&[1, n]).to_kind(kind);
                _ = x.narrow(1, at, 1).fill_(largest);
                let [a, b] = [losses, plain].map(|f| {
                    let x = x.copy().set_requires_grad(true);
                    let loss = f(Which::CrossEntropy, &x, &symbols, None).unwrap();
                    loss.backward();
                    (loss.detach(), x.grad())
                });
                assert!(a.0.allclose(&b.0, 1e-5, 1e-6, false), "{n}, {at}: {} {}", a.0, b.0);
                assert!(a.1.allclose(&b.1, 1e-5, 1e-6, false), "{n}, {at}: gradients");
            }
        }
    }

    #[test]
    fn a_symbol_that_is_none_is_refused() {
        let x = numbers(&[2, 3]);
        for symbol in [-1i64, 3] {
            for which in [Which::HalfSquaredError, Which::CrossEntropy] {
                let e = losses(which, &x, &Tensor::from_slice(&[0, symbol]), None).unwrap_err().to_string();
                assert!(e.contains("is not among 3 symbols"), "{e}");
            }
        }
    }
}
