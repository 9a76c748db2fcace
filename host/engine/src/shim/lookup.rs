//! Linear maps of rows that are looked up, and one-hot vectors, on float32 and float64 tensors of the CPU: the two passes.
//!
//! Nothing here is recorded for a backward pass; [`crate::exec::lookup`] does that. Results have the same bits for any number of threads.

use std::borrow::Borrow;

use tch::Tensor;

use super::ShimError;
use super::ffi::{self, optional_pointers, pointers};
use super::fused::{made, maybe, pointer};

/// W [x_1; x_2; ...] + b, where every x_j is a row of a table or one_hot of an index.
pub struct Lookup<'a, T: Borrow<Tensor>> {
    /// W, `[outputs, widths together]`.
    pub weight: &'a Tensor,
    /// b, `[outputs]`.
    pub bias: Option<&'a Tensor>,
    /// Of each part its table `[rows, width]`; none for one_hot.
    pub tables: &'a [Option<T>],
    /// Of each part the indices, all of one shape `[...]`.
    pub indices: &'a [T],
    /// Of each part the size of x_j.
    pub widths: &'a [i64],
}

/// Gradients of a [`Lookup`].
pub struct LookupGradients {
    /// Of the weight.
    pub weight: Tensor,
    /// Of the bias, whether there is one or not.
    pub bias: Tensor,
    /// Of each part's table.
    pub tables: Vec<Option<Tensor>>,
}

impl<T: Borrow<Tensor>> Lookup<'_, T> {
    fn check(&self) -> Result<(), ShimError> {
        let count = self.indices.len();
        if count == 0 || self.tables.len() != count || self.widths.len() != count {
            return Err(ShimError::Argument(format!("a look-up of {count} parts with {} tables", self.tables.len())));
        }
        Ok(())
    }

    /// The result, `[..., outputs]`.
    ///
    /// # Errors
    /// An index beyond its table; shapes, kinds or devices that do not fit.
    pub fn forward(&self) -> Result<Tensor, ShimError> {
        self.check()?;
        let (tables, indices) = (optional_pointers(self.tables), pointers(self.indices));
        let mut y = std::ptr::null_mut();
        // SAFETY: the arrays have one entry a part and outlive the call, as do the tensors behind them; null stands for none, and `y` is a
        // place for one pointer.
        let error = unsafe {
            let (weight, bias) = (self.weight.as_ptr(), pointer(self.bias));
            ffi::fwp_look_up(weight, bias, tables.as_ptr(), indices.as_ptr(), self.widths.as_ptr(), indices.len(), &mut y)
        };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        made(y)
    }

    /// The gradients for a gradient `g` of the result.
    ///
    /// # Errors
    /// As [`Lookup::forward`].
    pub fn backward(&self, g: &Tensor) -> Result<LookupGradients, ShimError> {
        self.check()?;
        let (tables, indices) = (optional_pointers(self.tables), pointers(self.indices));
        let [mut weight, mut bias] = [std::ptr::null_mut(); 2];
        let mut of_tables = vec![std::ptr::null_mut(); indices.len()];
        // SAFETY: as above; `of_tables` has one place a part, the two before it are places for one pointer each.
        let error = unsafe {
            let (g, w, widths) = (g.as_ptr(), self.weight.as_ptr(), self.widths.as_ptr());
            let (tables, indices, count) = (tables.as_ptr(), indices.as_ptr(), indices.len());
            ffi::fwp_look_up_back(g, w, tables, indices, widths, count, &mut weight, &mut bias, of_tables.as_mut_ptr())
        };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        Ok(LookupGradients { weight: made(weight)?, bias: made(bias)?, tables: of_tables.into_iter().map(maybe).collect() })
    }
}

/// one_hot of `index` in `size` numbers, float64 where `wide`, else float32; of an index that is not among them, zeros.
///
/// # Errors
/// An index that is not a 64-bit integer on the CPU.
pub fn one_hot(index: &Tensor, size: i64, wide: bool) -> Result<Tensor, ShimError> {
    let mut y = std::ptr::null_mut();
    // SAFETY: the tensor lives through the call, and `y` is a place for one pointer.
    let error = unsafe { ffi::fwp_one_hot(index.as_ptr(), size, wide, &mut y) };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }?;
    made(y)
}
