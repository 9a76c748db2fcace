//! Losses of outputs `[..., n]` against symbols `[...]`, on float32 and float64 tensors of the CPU: the two passes.
//!
//! Nothing here is recorded for a backward pass; [`crate::exec::loss`] does that. Results have the same bits for any number of threads.

use tch::Tensor;

use super::ShimError;
use super::ffi;
use super::fused::{made, pointer};

/// The loss of a row x with the symbol t.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Which {
    /// 1/2 |x - one_hot(t)|^2
    HalfSquaredError = 0,
    /// log sum exp(x) - x_t
    CrossEntropy = 1,
}

/// The sum of the losses of all rows.
#[derive(Clone, Copy)]
pub struct Losses<'a> {
    /// `[..., n]`.
    pub output: &'a Tensor,
    /// `[...]`, integers below n.
    pub symbols: &'a Tensor,
    /// Factors of the rows' losses, of the kind of the outputs; none is ones.
    pub weights: Option<&'a Tensor>,
    /// Which loss.
    pub which: Which,
}

impl Losses<'_> {
    /// The sum, a tensor of no axes.
    ///
    /// # Errors
    /// A symbol out of range; shapes, kinds or devices that do not fit.
    pub fn forward(self) -> Result<Tensor, ShimError> {
        let mut sum = std::ptr::null_mut();
        // SAFETY: the tensors live through the call, null stands for none, the loss is one of the C++ side, and `sum` is a place for one pointer.
        let error = unsafe {
            let (output, symbols) = (self.output.as_ptr(), self.symbols.as_ptr());
            ffi::fwp_loss(output, symbols, pointer(self.weights), self.which as i32, &mut sum)
        };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        made(sum)
    }

    /// The gradient of the outputs for a gradient `g` of the sum.
    ///
    /// # Errors
    /// As [`Losses::forward`].
    pub fn backward(self, g: &Tensor) -> Result<Tensor, ShimError> {
        let mut dx = std::ptr::null_mut();
        // SAFETY: as above.
        let error = unsafe {
            let (output, symbols) = (self.output.as_ptr(), self.symbols.as_ptr());
            ffi::fwp_loss_back(g.as_ptr(), output, symbols, pointer(self.weights), self.which as i32, &mut dx)
        };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        made(dx)
    }
}
