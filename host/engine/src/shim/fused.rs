//! Operations that libtorch only has in pieces: the two passes of each, on float32 and float64 tensors of the CPU.
//!
//! Nothing here is recorded for a backward pass; [`crate::exec::fused`] puts the passes into libtorch's graph and has the same operations in libtorch's own pieces beside them.
//! Results have the same bits for any number of threads.

use tch::Tensor;
use torch_sys::C_tensor;

use super::ShimError;
use super::ffi;

/// Most steps that [`Convolution`] sees.
pub const CONVOLUTION_WIDTH: i64 = 16;

/// Causal convolution, channel by channel: y_t = sum over j of kernel_j x_(t - width + 1 + j), and then perhaps SiLU.
#[derive(Clone, Copy)]
pub struct Convolution<'a> {
    /// `[batch, time, channels]`.
    pub x: &'a Tensor,
    /// `[channels, width]`, the last column for the step itself.
    pub kernel: &'a Tensor,
    /// `[batch, width - 1, channels]`: what came before the first step; none is zeros.
    pub ring: Option<&'a Tensor>,
    /// `[batch, time]` masks: nothing before such a step is seen from it on.
    pub reset: Option<&'a Tensor>,
    /// Whether the sum y becomes y sigmoid(y).
    pub silu: bool,
}

/// Gradients of a [`Convolution`].
pub struct ConvolutionGradients {
    /// Of the input.
    pub x: Tensor,
    /// Of the kernel.
    pub kernel: Tensor,
    /// Of the ring, where there is one and its gradient was asked for.
    pub ring: Option<Tensor>,
}

impl Convolution<'_> {
    /// The result, of the shape of `x`.
    ///
    /// # Errors
    /// Shapes, kinds or devices that do not fit.
    pub fn forward(self) -> Result<Tensor, ShimError> {
        let mut y = std::ptr::null_mut();
        // SAFETY: the tensors live through the call, null stands for none, and `y` is a place for one pointer.
        let error = unsafe {
            let (x, kernel) = (self.x.as_ptr(), self.kernel.as_ptr());
            ffi::fwp_convolution(x, kernel, pointer(self.ring), pointer(self.reset), self.silu, &mut y)
        };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        made(y)
    }

    /// The gradients for a gradient `g` of the result.
    ///
    /// # Errors
    /// As [`Convolution::forward`].
    pub fn backward(self, g: &Tensor, of_ring: bool) -> Result<ConvolutionGradients, ShimError> {
        let [mut x, mut kernel, mut ring] = [std::ptr::null_mut(); 3];
        // SAFETY: the tensors live through the call, null stands for none, and the last three are places for one pointer each.
        let error = unsafe {
            ffi::fwp_convolution_back(
                g.as_ptr(),
                self.x.as_ptr(),
                self.kernel.as_ptr(),
                pointer(self.ring),
                pointer(self.reset),
                self.silu,
                &mut x,
                &mut kernel,
                if of_ring { &mut ring } else { std::ptr::null_mut() },
            )
        };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        Ok(ConvolutionGradients { x: made(x)?, kernel: made(kernel)?, ring: maybe(ring) })
    }
}

/// By what a row x is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Norm {
    /// sqrt(mean(x^2) + eps)
    Rms = 0,
    /// sqrt(sum(x^2) + eps)
    L2 = 1,
    /// sum(x) + eps
    Sum = 2,
}

/// Rows along the last axis, divided by their norm, and then perhaps times a gain.
#[derive(Clone, Copy)]
pub struct Normalisation<'a> {
    /// `[..., n]`.
    pub x: &'a Tensor,
    /// `[n]`.
    pub gain: Option<&'a Tensor>,
    /// By what.
    pub norm: Norm,
    /// Added to what the norm is made of.
    pub eps: f64,
}

impl Normalisation<'_> {
    /// The result, of the shape of `x`.
    ///
    /// # Errors
    /// Shapes, kinds or devices that do not fit.
    pub fn forward(self) -> Result<Tensor, ShimError> {
        let mut y = std::ptr::null_mut();
        // SAFETY: the tensors live through the call, null stands for none, the norm is one of the C++ side, and `y` is a place for one pointer.
        let error = unsafe { ffi::fwp_normalise(self.x.as_ptr(), pointer(self.gain), self.norm as i32, self.eps, &mut y) };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        made(y)
    }

    /// The gradients of `x` and of the gain for a gradient `g` of the result.
    ///
    /// # Errors
    /// As [`Normalisation::forward`].
    pub fn backward(self, g: &Tensor) -> Result<(Tensor, Option<Tensor>), ShimError> {
        let [mut x, mut gain] = [std::ptr::null_mut(); 2];
        // SAFETY: as above; the last two are places for one pointer each.
        let error = unsafe {
            let (from, by) = (self.x.as_ptr(), pointer(self.gain));
            ffi::fwp_normalise_back(g.as_ptr(), from, by, self.norm as i32, self.eps, &mut x, &mut gain)
        };
        // SAFETY: `error` comes from the shim and is used nowhere else.
        unsafe { ffi::check(error) }?;
        Ok((made(x)?, maybe(gain)))
    }
}

/// a sigmoid(a) b, of tensors of one shape.
///
/// # Errors
/// Shapes, kinds or devices that do not fit.
pub fn gate(a: &Tensor, b: &Tensor) -> Result<Tensor, ShimError> {
    let mut y = std::ptr::null_mut();
    // SAFETY: the tensors live through the call, and `y` is a place for one pointer.
    let error = unsafe { ffi::fwp_gate(a.as_ptr(), b.as_ptr(), &mut y) };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }?;
    made(y)
}

/// The gradients of `a` and `b` for a gradient `g` of [`gate`].
///
/// # Errors
/// As [`gate`].
pub fn gate_back(g: &Tensor, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor), ShimError> {
    let [mut da, mut db] = [std::ptr::null_mut(); 2];
    // SAFETY: the tensors live through the call, and the last two are places for one pointer each.
    let error = unsafe { ffi::fwp_gate_back(g.as_ptr(), a.as_ptr(), b.as_ptr(), &mut da, &mut db) };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }?;
    Ok((made(da)?, made(db)?))
}

pub(super) fn pointer(t: Option<&Tensor>) -> *const C_tensor {
    t.map_or(std::ptr::null(), Tensor::as_ptr)
}

/// Takes a tensor that the shim handed out; null is none.
pub(super) fn maybe(pointer: *mut C_tensor) -> Option<Tensor> {
    // SAFETY: called with what an entry point of the shim has just handed out, once.
    unsafe { ffi::take(vec![pointer]) }.pop().flatten()
}

pub(super) fn made(pointer: *mut C_tensor) -> Result<Tensor, ShimError> {
    maybe(pointer).ok_or_else(|| ShimError::Argument("a fused operation gave nothing".to_owned()))
}
