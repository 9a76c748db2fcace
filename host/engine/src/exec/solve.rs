//! Symmetric positive definite systems by conjugate gradients.

use anyhow::Result;
use tch::Tensor;

use crate::shim::{custom_function, grad_enabled};

/// Solves A x = b for A `[.., n, n]` and b `[.., n]` in at most `iterations` steps.
///
/// A system whose residual has fallen to `tolerance` times |b| stays as it is.
/// The gradient is implicit: with A y = dx, db = y and dA = -y x^T; nothing of the iterations is kept.
pub fn conjugate_gradients(a: &Tensor, b: &Tensor, iterations: usize, tolerance: f64) -> Result<Tensor> {
    let x = tch::no_grad(|| iterate(a, b, iterations, tolerance))?;
    if !grad_enabled() || !(a.requires_grad() || b.requires_grad()) {
        return Ok(x);
    }
    let saved = [a.detach(), x.shallow_clone()];
    let outputs = custom_function(&[a, b], &saved, vec![x], move |backward| {
        let Some(dx) = &backward.grads[0] else { return Ok(vec![None, None]) };
        let (a, x) = (&backward.saved[0], &backward.saved[1]);
        let y = iterate(a, dx, iterations, tolerance)?;
        let da = y.f_unsqueeze(-1)?.f_mul(&x.f_unsqueeze(-2)?)?.f_neg()?;
        Ok(vec![Some(da), Some(y)])
    })?;
    Ok(outputs.into_iter().next().expect("one output was handed in"))
}

fn iterate(a: &Tensor, b: &Tensor, iterations: usize, tolerance: f64) -> Result<Tensor> {
    let product = |p: &Tensor| -> Result<Tensor> { Ok(a.f_matmul(&p.f_unsqueeze(-1)?)?.f_squeeze_dim(-1)?) };
    let dot = |u: &Tensor, v: &Tensor| -> Result<Tensor> { Ok(u.f_mul(v)?.f_sum_dim_intlist(-1, true, None)?) };
    let mut x = b.f_zeros_like()?;
    let mut residual = b.f_detach()?;
    let mut direction = residual.shallow_clone();
    let mut rr = dot(&residual, &residual)?;
    let goal = rr.f_mul_scalar(tolerance * tolerance)?;
    for _ in 0..iterations {
        let ap = product(&direction)?;
        let curvature = dot(&direction, &ap)?;
        // A residual may be so small that products with it are 0.
        let going = rr.f_gt_tensor(&goal)?.f_logical_and(&curvature.f_ne(0.0)?)?;
        let curvature = curvature.f_masked_fill(&going.f_logical_not()?, 1.0)?;
        let step = rr.f_div(&curvature)?.f_mul(&going)?;
        x = x.f_add(&direction.f_mul(&step)?)?;
        residual = residual.f_sub(&ap.f_mul(&step)?)?;
        let next = dot(&residual, &residual)?;
        let safe = rr.f_masked_fill(&going.f_logical_not()?, 1.0)?;
        direction = residual.f_add(&direction.f_mul(&next.f_div(&safe)?)?)?;
        rr = next;
    }
    Ok(x)
}
