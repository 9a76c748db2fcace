//! Linear maps of the same rows, on float32 and float64 tensors of the CPU: the two passes.
//!
//! Nothing here is recorded for a backward pass; [`crate::exec::linear`] does that.

use std::borrow::Borrow;

use tch::Tensor;

use super::ShimError;
use super::ffi::{self, optional_pointers, pointers};
use super::fused::{made, maybe, pointer};

/// W_i x for several matrices W_i.
#[derive(Clone, Copy)]
pub struct Linear<'a, T: Borrow<Tensor>> {
    /// Rows x, `[..., k]`.
    pub x: &'a Tensor,
    /// The matrices, `[n_i, k]`.
    pub weights: &'a [T],
}

/// Gradients of a [`Linear`].
pub struct LinearGradients {
    /// Of the rows, where it was asked for.
    pub x: Option<Tensor>,
    /// Of each matrix, where it was asked for and its result has a gradient.
    pub weights: Vec<Option<Tensor>>,
}

impl<T: Borrow<Tensor>> Linear<'_, T> {
    /// The results, `[..., n_i]`; `base`, of the shape of the first, is added to that.
    ///
    /// # Errors
    /// Shapes, kinds or devices that do not fit.
    pub fn forward(self, base: Option<&Tensor>) -> Result<Vec<Tensor>, ShimError> {
        let weights = pointers(self.weights);
        let mut ys = vec![std::ptr::null_mut(); weights.len()];
        // SAFETY: the tensors live through the call, null stands for none, and both arrays have one entry a matrix.
        let error = unsafe { ffi::fwp_linear(self.x.as_ptr(), weights.as_ptr(), weights.len(), pointer(base), ys.as_mut_ptr()) };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        ys.into_iter().map(made).collect()
    }

    /// The gradients for those of the results; `needed` says for the rows and then for each matrix whether its gradient is asked for.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn backward(self, gradients: &[Option<Tensor>], needed: &[bool]) -> Result<LinearGradients, ShimError> {
        let weights = pointers(self.weights);
        if gradients.len() != weights.len() || needed.len() != weights.len() + 1 {
            return Err(ShimError::Argument(format!("{} gradients of {} linear maps", gradients.len(), weights.len())));
        }
        let gradients = optional_pointers(gradients);
        let needed: Vec<u8> = needed.iter().map(|n| u8::from(*n)).collect();
        let mut x = std::ptr::null_mut();
        let mut of_weights = vec![std::ptr::null_mut(); weights.len()];
        // SAFETY: the tensors live through the call and null stands for none; arrays have one entry a matrix, `needed` one more, and `x` is
        // a place for one pointer.
        let error = unsafe {
            let (list, count) = (weights.as_ptr(), weights.len());
            let (rows, needed) = (self.x.as_ptr(), needed.as_ptr());
            ffi::fwp_linear_back(gradients.as_ptr(), rows, list, count, needed, &mut x, of_weights.as_mut_ptr())
        };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        Ok(LinearGradients { x: maybe(x), weights: of_weights.into_iter().map(maybe).collect() })
    }
}
