//! Linear maps: W x of many rows x, several W of the same rows at once, and what such a map is added to.
//!
//! One node of libtorch's graph in the place of four for each product; the gradients of the rows are summed by the products themselves.

use anyhow::Result;
use tch::Tensor;

use super::fused::{recorded_all, served};
use crate::shim::linear::Linear;

/// W_i x for every matrix W_i `[n_i, k]` and rows x `[..., k]`; `base`, of the shape of the first result, is added to that.
///
/// # Errors
/// libtorch's.
pub fn linear(x: &Tensor, weights: &[&Tensor], base: Option<&Tensor>) -> Result<Vec<Tensor>> {
    let inputs: Vec<&Tensor> = [x].into_iter().chain(weights.iter().copied()).chain(base).collect();
    if !served(&inputs) || x.dim() == 0 {
        return plain_linear(x, weights, base);
    }
    // A place for what is not among the matrices.
    let after = 1 + weights.len();
    let ys = Linear { x, weights }.forward(base)?;
    recorded_all(
        &inputs,
        &[],
        ys,
        move |i| plain_linear(&i[0], &i[1..after].iter().collect::<Vec<_>>(), i.get(after)),
        move |g, i, needed| {
            let made = Linear { x: &i[0], weights: &i[1..after] }.backward(g, &needed[..after])?;
            let of_base = i.get(after).and_then(|_| g[0].as_ref().map(Tensor::shallow_clone));
            let answer = [made.x].into_iter().chain(made.weights);
            Ok(answer.chain(i.get(after).map(|_| of_base)).collect())
        },
    )
}

/// [`linear`], operation by operation.
fn plain_linear(x: &Tensor, weights: &[&Tensor], base: Option<&Tensor>) -> Result<Vec<Tensor>> {
    let mut ys: Vec<Tensor> = weights.iter().map(|w| product(x, w)).collect::<Result<_>>()?;
    if let Some(base) = base {
        ys[0] = base.f_add(&ys[0])?;
    }
    Ok(ys)
}

/// W x, with the first two axes of x exchanged where they lie so in memory: a product then needs no copy, and its result lies as its operand does.
fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if x.dim() > 2 && !x.is_contiguous() {
        let exchanged = x.f_transpose(0, 1)?;
        if exchanged.is_contiguous() {
            return Ok(exchanged.f_linear(w, None::<Tensor>)?.f_transpose(0, 1)?);
        }
    }
    Ok(x.f_linear(w, None::<Tensor>)?)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::super::fused::testing::{compare, layouts};
    use super::*;
    use crate::shim::gradients;
    use crate::shim::testing::numbers;

    /// One number a result, so that all of them are judged together.
    fn joined(ys: Result<Vec<Tensor>>) -> Result<Tensor> {
        Ok(Tensor::f_cat(&ys?, -1)?)
    }

    #[test]
    fn linear_maps_are_their_products() {
        for shape in [&[3][..], &[1, 5], &[7, 3], &[2, 9, 5], &[1, 6, 4], &[4, 1, 4], &[3, 2, 4, 6], &[2, 3, 1]] {
            let (rows, k) = (&shape[..shape.len() - 1], shape[shape.len() - 1]);
            for (layout, x) in layouts(&numbers(shape)) {
                for sizes in [&[4][..], &[1], &[3, 1, 6]] {
                    for transposed in [false, true] {
                        for based in [false, true] {
                            let weights = sizes.iter().map(|n| match transposed {
                                false => numbers(&[*n, k]),
                                true => numbers(&[k, *n]).transpose(0, 1),
                            });
                            let base = based.then(|| numbers(&[rows, &sizes[..1]].concat()));
                            let inputs: Vec<Tensor> = [x.shallow_clone()].into_iter().chain(weights).chain(base).collect();
                            let run = |i: &[Tensor], fast: bool| {
                                let weights: Vec<&Tensor> = i[1..=sizes.len()].iter().collect();
                                let work = if fast { linear } else { plain_linear };
                                joined(work(&i[0], &weights, i.get(1 + sizes.len())))
                            };
                            compare(
                                &format!("{shape:?}, {layout}, {sizes:?}, {transposed}, {based}"),
                                &inputs,
                                &|i| run(i, true),
                                &|i| run(i, false),
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_nobody_asks_for_has_no_gradient() {
        let leaf = |shape: &[i64]| numbers(shape).set_requires_grad(true);
        let (x, w, v, frozen) = (leaf(&[5, 3]), leaf(&[2, 3]), leaf(&[4, 3]), numbers(&[2, 3]));
        let ys = linear(&x, &[&w, &v, &frozen], None).unwrap();
        assert_eq!(ys.iter().map(Tensor::size).collect::<Vec<_>>(), [[5, 2], [5, 4], [5, 2]]);
        // Of the second map nothing is used.
        let sum = ys[0].sum(Kind::Double) + ys[2].sum(Kind::Double);
        let found = gradients(&[&sum], &[None::<Tensor>], &[&x, &w], false, false).unwrap();
        let expected = (&w + &frozen).sum_dim_intlist(0, false, Kind::Double).expand([5, 3], false);
        assert!(found[0].as_ref().unwrap().allclose(&expected, 1e-14, 1e-14, false));
        assert!(found[1].as_ref().unwrap().allclose(
            &x.sum_dim_intlist(0, false, Kind::Double).expand([2, 3], false),
            1e-14,
            1e-14,
            false
        ));
        let ys = linear(&x, &[&w, &v], None).unwrap();
        let found = gradients(&[ys[0].sum(Kind::Double)], &[None::<Tensor>], &[&w, &v], false, false).unwrap();
        assert!(found[0].is_some() && found[1].as_ref().is_none_or(|g| f64::try_from(g.abs().max()).unwrap() == 0.0));
    }

    #[test]
    fn results_lie_as_their_rows_do() {
        let x = numbers(&[4, 6, 5]).transpose(0, 1);
        let y = linear(&x, &[&numbers(&[3, 5])], Some(&numbers(&[6, 4, 3]))).unwrap().remove(0);
        assert_eq!((y.size(), y.stride()), (vec![6, 4, 3], vec![3, 18, 1]));
    }

    #[test]
    fn what_nobody_serves_takes_the_plain_operations() {
        let (x, w) = (numbers(&[2, 5, 3]).to_kind(Kind::Half), numbers(&[4, 3]).to_kind(Kind::Half));
        assert_eq!(linear(&x, &[&w], None).unwrap()[0].kind(), Kind::Half);
        assert_eq!(linear(&numbers(&[0, 3]), &[&numbers(&[2, 3])], None).unwrap()[0].size(), [0, 2]);
        assert!(linear(&numbers(&[5, 3]), &[&numbers(&[2, 4])], None).unwrap_err().to_string().contains("weight"));
    }
}
