//! Gradients of libtorch with what the Rust binding leaves out.

use std::borrow::Borrow;

use tch::Tensor;

use super::ShimError;
use super::ffi::{self, optional_pointers, pointers};

/// The gradients of `outputs`, weighted by `output_grads`, with respect to `inputs`.
///
/// - `output_grads`: of the shape of each output; `None` stands for one, for an output of no axes.
/// - `keep_graph`: leave the graph for another backward pass.
/// - `create_graph`: make the gradients differentiable themselves.
///
/// An input that the outputs do not depend on has `None`.
/// Gradients may share memory with each other: do not change them in place.
///
/// # Errors
///
/// An output without a graph or an input that requires no gradient (libtorch itself would crash on
/// the first), lists of different lengths, and errors of the backward pass.
pub fn gradients<O, G, I>(
    outputs: &[O],
    output_grads: &[Option<G>],
    inputs: &[I],
    keep_graph: bool,
    create_graph: bool,
) -> Result<Vec<Option<Tensor>>, ShimError>
where
    O: Borrow<Tensor>,
    G: Borrow<Tensor>,
    I: Borrow<Tensor>,
{
    if outputs.len() != output_grads.len() {
        return Err(ShimError::Argument(format!("{} outputs with {} gradients", outputs.len(), output_grads.len())));
    }
    for (what, index) in outputs
        .iter()
        .map(Borrow::borrow)
        .enumerate()
        .map(|(i, t): (usize, &Tensor)| (("output", t), i))
        .chain(inputs.iter().map(Borrow::borrow).enumerate().map(|(i, t): (usize, &Tensor)| (("input", t), i)))
    {
        let (role, tensor) = what;
        if !tensor.defined() || !tensor.requires_grad() {
            return Err(ShimError::Argument(format!("{role} {index} of a gradient does not require a gradient")));
        }
    }
    let outputs = pointers(outputs);
    let output_grads = optional_pointers(output_grads);
    let inputs = pointers(inputs);
    let mut results = vec![std::ptr::null_mut(); inputs.len()];
    // SAFETY: the arrays have the lengths given and outlive the call, as do the tensors behind them.
    let error = unsafe {
        ffi::fwp_gradients(
            outputs.as_ptr(),
            output_grads.as_ptr(),
            outputs.len(),
            inputs.as_ptr(),
            inputs.len(),
            keep_graph,
            create_graph,
            results.as_mut_ptr(),
        )
    };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }?;
    // SAFETY: the shim made these tensors for us.
    Ok(unsafe { ffi::take(results) })
}

/// Whether operations on this thread are recorded for a backward pass.
pub fn grad_enabled() -> bool {
    ffi::fwp_grad_enabled()
}

/// Removes the gradients that a backward pass left at these leaves.
///
/// # Errors
///
/// What libtorch refuses.
pub fn clear_gradients<T: Borrow<Tensor>>(parameters: &[T]) -> Result<(), ShimError> {
    let parameters = pointers(parameters);
    // SAFETY: the array has the length given and outlives the call, as do its tensors.
    let error = unsafe { ffi::fwp_clear_gradients(parameters.as_ptr(), parameters.len()) };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn output_gradients_are_used_and_unused_inputs_have_none() {
        let x = Tensor::from_slice(&[1f64, 2.]).set_requires_grad(true);
        let y = Tensor::from_slice(&[5f64]).set_requires_grad(true);
        let weight = Tensor::from_slice(&[10f64, 100.]);
        let got = gradients(&[&x * &x], &[Some(&weight)], &[&x, &y], false, false).unwrap();
        assert_eq!(Vec::<f64>::try_from(got[0].as_ref().unwrap()).unwrap(), [20., 400.]);
        assert!(got[1].is_none());
    }

    #[test]
    fn a_root_without_a_graph_is_an_error_and_not_a_crash() {
        let x = Tensor::from_slice(&[1f64]);
        let error = gradients(&[&x], &[None::<Tensor>], &[&x], false, false).unwrap_err();
        assert!(error.to_string().contains("output 0"), "{error}");
    }

    #[test]
    fn cleared_gradients_are_gone() {
        let x = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        (&x * 2.).sum(Kind::Float).backward();
        assert!(x.grad().defined());
        clear_gradients(&[&x]).unwrap();
        assert!(!x.grad().defined());
    }

    #[test]
    fn the_recording_mode_is_seen() {
        assert!(grad_enabled());
        assert!(!tch::no_grad(grad_enabled));
    }
}
