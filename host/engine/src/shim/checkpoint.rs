//! Segments that are computed again in the backward pass instead of being kept.

use std::borrow::Borrow;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::{RandomState, ShimError, custom_function, first_line, grad_enabled, gradients};

/// Runs `f` on `inputs` and keeps only the inputs and the outputs: what lies between is computed
/// again when gradients are asked for.
///
/// - `inputs`: every tensor that `f` reads and that may need a gradient, *parameters included*:
///   a parameter that `f` captures gets no gradient.
/// - `f`: the same outputs for the same inputs. It may draw random numbers (dropout): the second
///   run sees the generator as the first one did.
///
/// Without gradient recording, or when no input requires a gradient, `f` simply runs.
///
/// # Errors
///
/// The error of `f`, or of libtorch. A gradient of the gradient through the segment is refused.
pub fn checkpoint<I, F>(inputs: &[I], f: F) -> anyhow::Result<Vec<Tensor>>
where
    I: Borrow<Tensor>,
    F: Fn(&[Tensor]) -> anyhow::Result<Vec<Tensor>> + Send + Sync + 'static,
{
    let inputs: Vec<Tensor> = inputs.iter().map(|t| t.borrow().shallow_clone()).collect();
    if !grad_enabled() || !inputs.iter().any(Tensor::requires_grad) {
        return f(&inputs);
    }
    let device = inputs.iter().map(Tensor::device).find(|d| *d != Device::Cpu).unwrap_or(Device::Cpu);
    let random = Arc::new(RandomState::capture(device)?);
    let requires: Vec<bool> = inputs.iter().map(Tensor::requires_grad).collect();
    // Detached outputs: an input handed through unchanged would otherwise bring its own graph.
    let outputs: Vec<Tensor> = tch::no_grad(|| f(&inputs))?.iter().map(Tensor::detach).collect();

    let made = custom_function(&inputs, &inputs, outputs, move |backward| {
        if grad_enabled() {
            return Err(ShimError::Argument(
                "a gradient of the gradient through a recomputed segment is not available: raise the memory limit so that the segment is kept".to_owned(),
            )
            .into());
        }
        let here = RandomState::capture(device)?;
        random.restore()?;
        let again = tch::with_grad(|| -> anyhow::Result<_> {
            let leaves: Vec<Tensor> = backward
                .saved
                .iter()
                .zip(&requires)
                .map(|(tensor, requires)| tensor.detach().set_requires_grad(*requires))
                .collect();
            let outputs = f(&leaves)?;
            Ok((leaves, outputs))
        });
        here.restore()?;
        let (leaves, outputs) = again?;
        anyhow::ensure!(
            outputs.len() == backward.grads.len(),
            "a recomputed segment returned {} outputs, then {}",
            backward.grads.len(),
            outputs.len()
        );
        let (roots, root_grads): (Vec<&Tensor>, Vec<Option<&Tensor>>) = outputs
            .iter()
            .zip(backward.grads)
            .filter(|(output, grad)| grad.is_some() && output.requires_grad())
            .map(|(output, grad)| (output, grad.as_ref()))
            .unzip();
        let wanted: Vec<usize> =
            (0..leaves.len()).filter(|&i| requires[i] && backward.needed[i]).collect();
        let mut answer: Vec<Option<Tensor>> = leaves.iter().map(|_| None).collect();
        if !roots.is_empty() && !wanted.is_empty() {
            let targets: Vec<&Tensor> = wanted.iter().map(|&i| &leaves[i]).collect();
            let found = gradients(&roots, &root_grads, &targets, false, false)?;
            for (index, gradient) in wanted.into_iter().zip(found) {
                answer[index] = gradient;
            }
        }
        Ok(answer)
    })
    .map_err(|error| anyhow::anyhow!("{}", first_line(&error.to_string())))?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tch::Kind;

    fn leaf(shape: &[i64]) -> Tensor {
        crate::shim::testing::numbers(shape).set_requires_grad(true)
    }

    /// Two outputs, one parameter, one integer input, and an input handed through.
    fn segment(inputs: &[Tensor]) -> anyhow::Result<Vec<Tensor>> {
        let [x, w, index] = inputs else { anyhow::bail!("three inputs") };
        let hidden = x.f_matmul(w)?.tanh();
        Ok(vec![hidden.index_select(0, index) * 2., hidden.sum(Kind::Double), x.shallow_clone()])
    }

    #[test]
    fn gradients_equal_the_plain_ones() {
        let (x, w, index) = (leaf(&[5, 3]), leaf(&[3, 4]), Tensor::from_slice(&[4i64, 1, 1]));
        let loss = |o: &[Tensor]| (o[0].sin()).sum(Kind::Double) + &o[1] * 0.3 + o[2].square().sum(Kind::Double);
        let inputs = [x.shallow_clone(), w.shallow_clone(), index];
        let plain = loss(&segment(&inputs).unwrap());
        let ours = loss(&checkpoint(&inputs, segment).unwrap());
        assert_eq!(f64::try_from(&plain).unwrap(), f64::try_from(&ours).unwrap());
        let plain = Tensor::run_backward(&[plain], &[&x, &w], false, false);
        let ours = Tensor::run_backward(&[ours], &[&x, &w], false, false);
        for (a, b) in plain.iter().zip(&ours) {
            assert!(a.allclose(b, 1e-13, 1e-13, false), "{a} {b}");
        }
    }

    #[test]
    fn only_one_output_may_be_used() {
        let (x, w, index) = (leaf(&[2, 3]), leaf(&[3, 3]), Tensor::from_slice(&[0i64]));
        let inputs = [x.shallow_clone(), w.shallow_clone(), index];
        let made = checkpoint(&inputs, segment).unwrap();
        let ours = gradients(&[&made[1]], &[None::<Tensor>], &[&x, &w], false, false).unwrap();
        let plain = segment(&inputs).unwrap();
        let plain = gradients(&[&plain[1]], &[None::<Tensor>], &[&x, &w], false, false).unwrap();
        for (a, b) in plain.iter().zip(&ours) {
            assert!(a.as_ref().unwrap().allclose(b.as_ref().unwrap(), 1e-13, 1e-13, false));
        }
    }

    #[test]
    fn a_chain_of_segments_in_segments_is_exact() {
        let x = leaf(&[3, 3]);
        let inner = |i: &[Tensor]| Ok(vec![i[0].tanh().matmul(&i[0])]);
        let outer = move |i: &[Tensor]| {
            let a = checkpoint(&[&i[0]], inner)?;
            checkpoint(&[&a[0]], inner)
        };
        let plain = |x: &Tensor| {
            let a = x.tanh().matmul(x);
            a.tanh().matmul(&a).sum(Kind::Double)
        };
        let made = checkpoint(&[&x], outer).unwrap()[0].sum(Kind::Double);
        let ours = Tensor::run_backward(&[made], &[&x], false, false).remove(0);
        let plain = Tensor::run_backward(&[plain(&x)], &[&x], false, false).remove(0);
        assert!(ours.allclose(&plain, 1e-12, 1e-12, false));
    }

    #[test]
    fn random_numbers_are_the_same_in_both_runs_and_the_stream_goes_on() {
        crate::shim::testing::alone("shim::checkpoint::tests::random_numbers_inner");
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own: the generator is one for all threads"]
    fn random_numbers_inner() {
        let x = leaf(&[200]);
        let drop = |i: &[Tensor]| Ok(vec![i[0].dropout(0.5, true)]);
        crate::shim::manual_seed(7);
        let y = checkpoint(&[&x], drop).unwrap().remove(0);
        let after_forward = Tensor::rand([3], (Kind::Double, Device::Cpu));
        let grad = Tensor::run_backward(&[y.sum(Kind::Double)], &[&x], false, false).remove(0);
        let after_backward = Tensor::rand([3], (Kind::Double, Device::Cpu));
        assert!(grad.allclose(&(&y / &x).detach(), 1e-12, 1e-12, false));
        let dropped = f64::try_from(y.detach().eq(0.).sum(Kind::Double)).unwrap();
        assert!(dropped > 50. && dropped < 150., "{dropped}");
        crate::shim::manual_seed(7);
        let _ = x.detach().dropout(0.5, true);
        assert!(after_forward.equal(&Tensor::rand([3], (Kind::Double, Device::Cpu))));
        assert!(after_backward.equal(&Tensor::rand([3], (Kind::Double, Device::Cpu))));
    }

    #[test]
    fn what_lies_between_is_not_kept() {
        // The intermediate values of `f` die with it: each holds a counter that must be back at
        // zero right after the forward pass, and the segment must run again for the gradient.
        let runs = Arc::new(AtomicUsize::new(0));
        let x = leaf(&[4]);
        let count = runs.clone();
        let made = checkpoint(&[&x], move |i| {
            count.fetch_add(1, Ordering::SeqCst);
            let between = i[0].exp();
            assert_eq!(between.requires_grad(), count.load(Ordering::SeqCst) == 2);
            Ok(vec![between.sin()])
        })
        .unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        made[0].sum(Kind::Double).backward();
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        assert!(x.grad().allclose(&(x.detach().exp().cos() * x.detach().exp()), 1e-12, 1e-12, false));
        drop(made);
        assert_eq!(Arc::strong_count(&runs), 1, "the segment is freed with its graph");
    }

    #[test]
    fn without_gradients_it_simply_runs() {
        let x = leaf(&[2]);
        let f = |i: &[Tensor]| Ok(vec![&i[0] * 2.]);
        assert!(!tch::no_grad(|| checkpoint(&[&x], f).unwrap().remove(0)).requires_grad());
        assert!(!checkpoint(&[x.detach()], f).unwrap()[0].requires_grad());
    }

    #[test]
    fn errors_come_back_with_their_text() {
        let x = leaf(&[2]);
        let error = checkpoint(&[&x], |_| anyhow::bail!("no such layer")).unwrap_err();
        assert!(error.to_string().contains("no such layer"));
        let y = checkpoint(&[&x], |i| Ok(vec![i[0].exp()])).unwrap();
        let error = gradients(&[y[0].sum(Kind::Double)], &[None::<Tensor>], &[&x], true, true);
        assert!(error.unwrap_err().to_string().contains("gradient of the gradient"));
    }
}
