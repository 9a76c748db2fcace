//! Operations with a backward pass written in Rust.

use std::borrow::Borrow;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;
use torch_sys::C_tensor;

use super::ffi::{self, c_text, panic_text, pointers};
use super::{ShimError, first_line};

/// What a backward pass is given.
pub struct Backward<'a> {
    /// The gradient of each output, `None` where nothing depends on that output.
    pub grads: &'a [Option<Tensor>],
    /// The saved tensors, in the order they were given.
    pub saved: &'a [Tensor],
    /// For each input, whether its gradient is asked for.
    pub needed: &'a [bool],
}

type Closure = Box<dyn Fn(Backward<'_>) -> anyhow::Result<Vec<Option<Tensor>>> + Send + Sync>;

/// Puts `outputs`, computed from `inputs` without a gradient, into the graph, with `backward` as
/// their derivative.
///
/// - `inputs`: the tensors that gradients flow to, one slot each in the answer of `backward`.
/// - `saved`: what `backward` needs. Inputs and outputs belong here and never inside the closure:
///   a closure that holds an output keeps its own graph node alive, and both leak.
/// - `outputs`: finished tensors, computed under [`tch::no_grad`].
/// - `backward`: returns one gradient for each input, `None` for "none". It may run on a thread of
///   libtorch, with gradients off unless a graph of the backward pass is asked for.
///   An error or a panic in it becomes the error of the call that started the backward pass.
///
/// Returns the outputs, which require a gradient when an input does; integer outputs never do.
///
/// # Errors
///
/// What libtorch refuses, for instance an undefined output.
pub fn custom_function<I, S, F>(inputs: &[I], saved: &[S], outputs: Vec<Tensor>, backward: F) -> Result<Vec<Tensor>, ShimError>
where
    I: Borrow<Tensor>,
    S: Borrow<Tensor>,
    F: Fn(Backward<'_>) -> anyhow::Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    for (index, output) in outputs.iter().enumerate() {
        if output.requires_grad() {
            return Err(ShimError::Argument(format!(
                "output {index} of a custom function is already part of a graph: compute it without gradients"
            )));
        }
    }
    let inputs = pointers(inputs);
    let saved = pointers(saved);
    let finished = pointers(&outputs);
    let mut results = vec![std::ptr::null_mut(); outputs.len()];
    // A trait object is two words: the box around it is the one word that C++ carries.
    let closure: Box<Closure> = Box::new(Box::new(backward));
    // SAFETY: the arrays outlive the call and have the lengths given; the tensors behind them are
    // borrowed for as long. The closure is given away here and freed by `drop_closure`, once: the
    // shim builds its holder before anything can fail. Both callbacks fit the closure's type.
    let error = unsafe {
        ffi::fwp_custom_function(
            inputs.as_ptr(),
            inputs.len(),
            finished.as_ptr(),
            finished.len(),
            saved.as_ptr(),
            saved.len(),
            Box::into_raw(closure).cast::<c_void>(),
            run_backward,
            drop_closure,
            results.as_mut_ptr(),
        )
    };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }?;
    // SAFETY: the shim made these tensors for us.
    let results = unsafe { ffi::take(results) };
    results
        .into_iter()
        .enumerate()
        .map(|(index, tensor)| {
            tensor.ok_or_else(|| ShimError::Argument(format!("output {index} of a custom function is undefined")))
        })
        .collect()
}

/// The callback behind [`custom_function`]. Never unwinds.
unsafe extern "C" fn run_backward(
    closure: *mut c_void,
    grads: *const *mut C_tensor,
    outputs: usize,
    saved: *const *mut C_tensor,
    saved_count: usize,
    needed: *const u8,
    inputs: usize,
    result: *mut *mut C_tensor,
) -> *mut c_char {
    let work = AssertUnwindSafe(|| -> anyhow::Result<()> {
        // SAFETY: the shim passes the closure that `custom_function` gave it, alive through the call.
        let closure = unsafe { &*closure.cast::<Closure>() };
        // SAFETY: the shim passes arrays of these lengths; each entry is null or a live tensor,
        // of which we take a reference of our own.
        let borrow = |list: *const *mut C_tensor, count: usize| -> Vec<Option<Tensor>> {
            (0..count)
                .map(|i| unsafe {
                    let pointer = *list.add(i);
                    (!pointer.is_null()).then(|| Tensor::clone_from_ptr(pointer))
                })
                .collect()
        };
        let grads = borrow(grads, outputs);
        let saved: Vec<Tensor> = borrow(saved, saved_count).into_iter().map(Option::unwrap_or_default).collect();
        // SAFETY: as above; the shim writes 0 or 1.
        let needed: Vec<bool> = (0..inputs).map(|i| unsafe { *needed.add(i) } != 0).collect();
        let answer = closure(Backward { grads: &grads, saved: &saved, needed: &needed })?;
        anyhow::ensure!(answer.len() == inputs, "a backward pass returned {} gradients for {inputs} inputs", answer.len());
        for (index, mut gradient) in answer.into_iter().enumerate() {
            let Some(gradient) = gradient.as_mut().filter(|g| g.defined()) else { continue };
            // SAFETY: `result` has a slot for each input; the clone is a new tensor that nobody
            // else owns, and forgetting the handle leaves it to the shim, which deletes it.
            unsafe {
                let mut owned = Tensor::clone_from_ptr(gradient.as_mut_ptr());
                *result.add(index) = owned.as_mut_ptr();
                std::mem::forget(owned);
            }
        }
        Ok(())
    });
    match catch_unwind(work) {
        Ok(Ok(())) => std::ptr::null_mut(),
        Ok(Err(error)) => c_text(&describe(&error)),
        Err(payload) => {
            let text = first_line(&panic_text(&*payload));
            // A payload may panic in its own Drop; that must not cross into C++.
            std::mem::forget(payload);
            c_text(&format!("panic in a backward pass: {text}"))
        }
    }
}

/// The chain of an error as one line, without backtraces of libtorch.
fn describe(error: &anyhow::Error) -> String {
    error.chain().map(|cause| first_line(&cause.to_string())).collect::<Vec<_>>().join(": ")
}

/// Frees the closure. Never unwinds.
unsafe extern "C" fn drop_closure(closure: *mut c_void) {
    let work = AssertUnwindSafe(|| {
        // SAFETY: the pointer came from `Box::into_raw` in `custom_function`, and the shim's holder
        // calls this once.
        drop(unsafe { Box::from_raw(closure.cast::<Closure>()) });
    });
    if let Err(payload) = catch_unwind(work) {
        std::mem::forget(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tch::{Device, Kind};

    /// x * y + saved: the smallest function with two inputs.
    fn product(x: &Tensor, y: &Tensor) -> Tensor {
        let output = tch::no_grad(|| x * y);
        let made = custom_function(&[x, y], &[x, y], vec![output], |b| {
            let g = b.grads[0].as_ref().unwrap();
            Ok(vec![b.needed[0].then(|| g * b.saved[1].detach()), b.needed[1].then(|| g * b.saved[0].detach())])
        });
        made.unwrap().remove(0)
    }

    fn leaf(shape: &[i64]) -> Tensor {
        crate::shim::testing::numbers(shape).set_requires_grad(true)
    }

    #[test]
    fn outputs_require_a_gradient_exactly_when_an_input_does() {
        let (x, y) = (leaf(&[3]), leaf(&[3]));
        assert!(product(&x, &y).requires_grad());
        assert!(product(&x.detach(), &y).requires_grad());
        assert!(!product(&x.detach(), &y.detach()).requires_grad());
        assert!(!tch::no_grad(|| product(&x, &y)).requires_grad());
    }

    #[test]
    fn gradients_equal_those_of_the_plain_operations() {
        let (x, y) = (leaf(&[4, 3]), leaf(&[4, 3]));
        let loss = |z: Tensor| (z.sin() * &x).sum(Kind::Double);
        let ours = Tensor::run_backward(&[loss(product(&x, &y))], &[&x, &y], false, false);
        let plain = Tensor::run_backward(&[loss(&x * &y)], &[&x, &y], false, false);
        for (a, b) in ours.iter().zip(&plain) {
            assert!(a.allclose(b, 1e-14, 1e-14, false), "{a} {b}");
        }
    }

    #[test]
    fn an_output_that_nobody_uses_has_no_gradient() {
        let x = leaf(&[2]);
        let outputs = tch::no_grad(|| vec![&x * 2., &x * 3.]);
        let made = custom_function(&[&x], &[] as &[Tensor], outputs, |b| {
            assert!(b.grads[0].is_none());
            Ok(vec![b.grads[1].as_ref().map(|g| g * 3.)])
        })
        .unwrap();
        made[1].sum(Kind::Double).backward();
        assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [3., 3.]);
    }

    #[test]
    fn integer_inputs_and_outputs_are_carried_but_not_differentiated() {
        let x = leaf(&[3]);
        let index = Tensor::from_slice(&[2i64, 0]);
        let outputs = tch::no_grad(|| vec![x.index_select(0, &index), &index + 1]);
        let made = custom_function(&[&x, &index], &[&index], outputs, |b| {
            assert_eq!(b.needed, [true, false]);
            let zero = Tensor::zeros([3], (Kind::Double, Device::Cpu));
            let g = b.grads[0].as_ref().unwrap();
            Ok(vec![Some(zero.index_add(0, &b.saved[0], g)), None])
        })
        .unwrap();
        assert!(made[0].requires_grad() && !made[1].requires_grad());
        made[0].sum(Kind::Double).backward();
        assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [1., 0., 1.]);
    }

    #[test]
    fn an_output_may_be_saved() {
        let x = leaf(&[3]);
        let output = tch::no_grad(|| x.exp());
        let made = custom_function(&[&x], &[&output], vec![output.shallow_clone()], |b| {
            Ok(vec![Some(b.grads[0].as_ref().unwrap() * b.saved[0].detach())])
        })
        .unwrap();
        made[0].sum(Kind::Double).backward();
        assert!(x.grad().allclose(&x.detach().exp(), 1e-14, 0., false));
    }

    #[test]
    fn an_error_in_the_backward_pass_is_the_error_of_the_call() {
        let x = leaf(&[2]);
        let run = |f: fn() -> anyhow::Result<Vec<Option<Tensor>>>| {
            let output = tch::no_grad(|| &x * 2.);
            let y = custom_function(&[&x], &[] as &[Tensor], vec![output], move |_| f());
            let loss = y.unwrap()[0].sum(Kind::Double);
            ShimError::from(loss.f_backward().unwrap_err()).to_string()
        };
        let text = run(|| anyhow::bail!("the kernel for layer 3 was not found"));
        assert!(text.contains("the kernel for layer 3 was not found"), "{text}");
        let text = run(|| panic!("index {} out of range", 7));
        assert!(text.contains("panic in a backward pass: index 7 out of range"), "{text}");
        let text = run(|| Ok(vec![]));
        assert!(text.contains("0 gradients for 1 inputs"), "{text}");
        let text = run(|| Ok(vec![Some(Tensor::zeros([5, 5], (Kind::Double, Device::Cpu)))]));
        assert!(text.contains("invalid gradient"), "{text}");
    }

    /// Counts how many of it are alive.
    struct Counted(Arc<AtomicUsize>);
    impl Counted {
        fn new(count: &Arc<AtomicUsize>) -> Self {
            count.fetch_add(1, Ordering::SeqCst);
            Self(count.clone())
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_closure_is_freed_once_on_every_path() {
        let alive = Arc::new(AtomicUsize::new(0));
        let x = leaf(&[2]);
        let build = |x: &Tensor, outputs: Vec<Tensor>| {
            let counted = Counted::new(&alive);
            custom_function(&[x], &[x], outputs, move |b| {
                let _alive = &counted;
                Ok(vec![b.grads[0].as_ref().map(Tensor::shallow_clone)])
            })
        };
        let made = build(&x, vec![x.detach().copy()]).unwrap();
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        made[0].sum(Kind::Double).backward();
        drop(made);
        assert_eq!(alive.load(Ordering::SeqCst), 0, "after a backward pass");
        drop(build(&x, vec![x.detach().copy()]).unwrap());
        assert_eq!(alive.load(Ordering::SeqCst), 0, "without a backward pass");
        drop(build(&x.detach(), vec![x.detach().copy()]).unwrap());
        assert_eq!(alive.load(Ordering::SeqCst), 0, "without a graph");
        assert!(build(&x, vec![Tensor::new()]).is_err());
        assert_eq!(alive.load(Ordering::SeqCst), 0, "after an error");
        assert!(build(&x, vec![&x * 1.]).is_err(), "an output with a graph of its own is refused");
    }

    #[test]
    fn a_saved_output_does_not_keep_the_graph_alive() {
        let alive = Arc::new(AtomicUsize::new(0));
        let x = leaf(&[2]);
        for _ in 0..3 {
            let output = x.detach().exp();
            let counted = Counted::new(&alive);
            let made = custom_function(&[&x], &[&output], vec![output.shallow_clone()], move |b| {
                let _alive = &counted;
                Ok(vec![Some(b.grads[0].as_ref().unwrap() * b.saved[0].detach())])
            });
            drop((made.unwrap(), output));
        }
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_backward_pass_of_differentiable_operations_can_be_differentiated_again() {
        let x = leaf(&[3]);
        let output = tch::no_grad(|| x.pow_tensor_scalar(3));
        let y = custom_function(&[&x], &[&x], vec![output], |b| {
            let x = &b.saved[0];
            Ok(vec![Some(b.grads[0].as_ref().unwrap() * x * x * 3.)])
        });
        let y = y.unwrap()[0].sum(Kind::Double);
        let first = Tensor::run_backward(&[&y], &[&x], true, true).remove(0);
        let second = Tensor::run_backward(&[first.sum(Kind::Double)], &[&x], false, false).remove(0);
        assert!(second.allclose(&(x.detach() * 6.), 1e-12, 1e-12, false));
    }
}
