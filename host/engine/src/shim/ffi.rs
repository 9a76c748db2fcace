//! The C face of the shim's C++, and the conversions between its arrays and tensors.
//!
//! Arrays of tensors are arrays of borrowed `at::Tensor*`, null for "none".
//! A tensor that comes out is owned by the receiver.
//! A function returns null or an error text to be freed with [`fwp_free`].

use std::borrow::Borrow;
use std::ffi::{CStr, c_char, c_void};

use tch::Tensor;
use torch_sys::C_tensor;

use super::ShimError;

/// Computes the gradients of the inputs of a custom function; see `fwp_backward` in `shim.cpp`.
pub(super) type BackwardCallback = unsafe extern "C" fn(
    closure: *mut c_void,
    grads: *const *mut C_tensor,
    outputs: usize,
    saved: *const *mut C_tensor,
    saved_count: usize,
    needed: *const u8,
    inputs: usize,
    result: *mut *mut C_tensor,
) -> *mut c_char;

/// Frees the closure of a custom function.
pub(super) type DropCallback = unsafe extern "C" fn(closure: *mut c_void);

/// Runs one piece of a parallel loop.
pub(super) type RangeCallback = unsafe extern "C" fn(closure: *mut c_void, begin: i64, end: i64) -> *mut c_char;

unsafe extern "C" {
    pub(super) fn fwp_free(text: *mut c_char);
    pub(super) fn fwp_libtorch_version() -> *const c_char;
    fn fwp_text(bytes: *const u8, size: usize) -> *mut c_char;

    pub(super) fn fwp_custom_function(
        inputs: *const *const C_tensor,
        input_count: usize,
        outputs: *const *const C_tensor,
        output_count: usize,
        saved: *const *const C_tensor,
        saved_count: usize,
        closure: *mut c_void,
        backward: BackwardCallback,
        drop: DropCallback,
        results: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_gradients(
        outputs: *const *const C_tensor,
        output_grads: *const *const C_tensor,
        output_count: usize,
        inputs: *const *const C_tensor,
        input_count: usize,
        keep_graph: bool,
        create_graph: bool,
        results: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) safe fn fwp_grad_enabled() -> bool;

    pub(super) safe fn fwp_leave_now(code: i32) -> !;

    pub(super) fn fwp_clear_gradients(parameters: *const *const C_tensor, count: usize) -> *mut c_char;

    pub(super) fn fwp_adam(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        first: *const *const C_tensor,
        second: *const *const C_tensor,
        steps: *const *const C_tensor,
        count: usize,
        rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        decoupled: bool,
        found_inf: *const C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_global_norm(list: *const *const C_tensor, count: usize, result: *mut *mut C_tensor) -> *mut c_char;

    pub(super) fn fwp_clip(list: *const *const C_tensor, count: usize, norm: *const C_tensor, limit: f64) -> *mut c_char;

    pub(super) fn fwp_random_state(device: i32, result: *mut *mut C_tensor) -> *mut c_char;

    pub(super) fn fwp_set_random_state(device: i32, state: *const C_tensor) -> *mut c_char;

    pub(super) fn fwp_convolution(
        x: *const C_tensor,
        kernel: *const C_tensor,
        ring: *const C_tensor,
        reset: *const C_tensor,
        silu: bool,
        y: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_convolution_back(
        g: *const C_tensor,
        x: *const C_tensor,
        kernel: *const C_tensor,
        ring: *const C_tensor,
        reset: *const C_tensor,
        silu: bool,
        dx: *mut *mut C_tensor,
        dkernel: *mut *mut C_tensor,
        dring: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_normalise(
        x: *const C_tensor,
        gain: *const C_tensor,
        norm: i32,
        eps: f64,
        y: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_normalise_back(
        g: *const C_tensor,
        x: *const C_tensor,
        gain: *const C_tensor,
        norm: i32,
        eps: f64,
        dx: *mut *mut C_tensor,
        dgain: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_gate(a: *const C_tensor, b: *const C_tensor, y: *mut *mut C_tensor) -> *mut c_char;

    pub(super) fn fwp_gate_back(
        g: *const C_tensor,
        a: *const C_tensor,
        b: *const C_tensor,
        da: *mut *mut C_tensor,
        db: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_loss(
        output: *const C_tensor,
        symbols: *const C_tensor,
        weights: *const C_tensor,
        which: i32,
        sum: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_loss_back(
        g: *const C_tensor,
        output: *const C_tensor,
        symbols: *const C_tensor,
        weights: *const C_tensor,
        which: i32,
        dx: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_linear(
        x: *const C_tensor,
        weights: *const *const C_tensor,
        count: usize,
        base: *const C_tensor,
        ys: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_linear_back(
        gradients: *const *const C_tensor,
        x: *const C_tensor,
        weights: *const *const C_tensor,
        count: usize,
        needed: *const u8,
        dx: *mut *mut C_tensor,
        dweights: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_look_up(
        weight: *const C_tensor,
        bias: *const C_tensor,
        tables: *const *const C_tensor,
        indices: *const *const C_tensor,
        widths: *const i64,
        count: usize,
        y: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_look_up_back(
        g: *const C_tensor,
        weight: *const C_tensor,
        tables: *const *const C_tensor,
        indices: *const *const C_tensor,
        widths: *const i64,
        count: usize,
        dweight: *mut *mut C_tensor,
        dbias: *mut *mut C_tensor,
        dtables: *mut *mut C_tensor,
    ) -> *mut c_char;

    pub(super) fn fwp_one_hot(index: *const C_tensor, size: i64, wide: bool, y: *mut *mut C_tensor) -> *mut c_char;

    pub(super) fn fwp_parallel_for(count: i64, grain: i64, closure: *mut c_void, body: RangeCallback) -> *mut c_char;
}

/// The borrowed pointers of `tensors`; valid while the slice is.
pub(super) fn pointers<T: Borrow<Tensor>>(tensors: &[T]) -> Vec<*const C_tensor> {
    tensors.iter().map(|t| t.borrow().as_ptr()).collect()
}

/// As [`pointers`], with null for `None`.
pub(super) fn optional_pointers<T: Borrow<Tensor>>(tensors: &[Option<T>]) -> Vec<*const C_tensor> {
    let pointer = |t: &Option<T>| t.as_ref().map_or(std::ptr::null(), |t| t.borrow().as_ptr());
    tensors.iter().map(pointer).collect()
}

/// Takes the tensors that the shim handed out; null becomes `None`.
///
/// # Safety
///
/// Every pointer is null or a tensor that nobody else owns.
pub(super) unsafe fn take(pointers: Vec<*mut C_tensor>) -> Vec<Option<Tensor>> {
    pointers
        .into_iter()
        // SAFETY: by the contract of this function the pointer is ours.
        .map(|p| (!p.is_null()).then(|| unsafe { Tensor::from_ptr(p) }))
        .collect()
}

/// Turns what a shim function returned into a result, and frees the text.
///
/// # Safety
///
/// `text` is null or a text that the shim made with malloc and that nobody else frees.
pub(super) unsafe fn check(text: *mut c_char) -> Result<(), ShimError> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: by the contract of this function `text` is a live, null-terminated text.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as above, and it is not used any more.
    unsafe { fwp_free(text) };
    Err(ShimError::from_text(&message))
}

/// A copy of `message` that C++ may free. Null bytes become spaces.
pub(super) fn c_text(message: &str) -> *mut c_char {
    let clean = message.replace('\0', " ");
    // SAFETY: the pointer and the length describe `clean`, which lives through the call.
    unsafe { fwp_text(clean.as_ptr(), clean.len()) }
}

/// The text of a caught panic.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a text".to_owned()
    }
}
