//! The arithmetic of the optimiser in a few large operations.

use std::borrow::Borrow;

use tch::Tensor;

use super::ShimError;
use super::ffi::{self, pointers};

/// The numbers of one step of Adam or AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate of this step.
    pub rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Weight decay: subtracted from the weight (`decoupled`) or added to the gradient.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// AdamW's decoupled weight decay.
    pub decoupled: bool,
}

/// One step of Adam or AdamW on a list of tensors of one device and one element type, in place.
///
/// - `gradients`, `first`, `second`: of the shape of the parameters.
/// - `steps`: one float32 number for each parameter, counted up here.
/// - `found_inf`: a float32 number of no axes on the same device; where it is 1, parameters, moments and steps
///   stay as they are. It lets a step be skipped without asking the device.
///
/// # Errors
///
/// Lists of different lengths, and what libtorch refuses.
pub fn fused_adam<T: Borrow<Tensor>>(
    parameters: &[T],
    gradients: &[T],
    first: &[T],
    second: &[T],
    steps: &[T],
    step: AdamStep,
    found_inf: Option<&Tensor>,
) -> Result<(), ShimError> {
    let count = parameters.len();
    if [gradients.len(), first.len(), second.len(), steps.len()].iter().any(|&n| n != count) {
        return Err(ShimError::Argument(format!(
            "{count} parameters with {} gradients, {} and {} moments and {} steps",
            gradients.len(),
            first.len(),
            second.len(),
            steps.len()
        )));
    }
    if count == 0 {
        return Ok(());
    }
    let (parameters, gradients) = (pointers(parameters), pointers(gradients));
    let (first, second, steps) = (pointers(first), pointers(second), pointers(steps));
    // SAFETY: all arrays have `count` entries and outlive the call, as do the tensors behind them.
    let error = unsafe {
        ffi::fwp_adam(
            parameters.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            steps.as_ptr(),
            count,
            step.rate,
            step.beta1,
            step.beta2,
            step.weight_decay,
            step.epsilon,
            step.decoupled,
            found_inf.map_or(std::ptr::null(), Tensor::as_ptr),
        )
    };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }
}

/// The Euclidean norm of all elements of all tensors, as a tensor of no axes on their device.
///
/// # Errors
///
/// An empty list, and what libtorch refuses.
pub fn global_norm<T: Borrow<Tensor>>(tensors: &[T]) -> Result<Tensor, ShimError> {
    if tensors.is_empty() {
        return Err(ShimError::Argument("the norm of no tensors".to_owned()));
    }
    let list = pointers(tensors);
    let mut result = std::ptr::null_mut();
    // SAFETY: the array has the length given and outlives the call; `result` is a place for one.
    let error = unsafe { ffi::fwp_global_norm(list.as_ptr(), list.len(), &mut result) };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }?;
    // SAFETY: the shim made this tensor for us.
    Ok(unsafe { ffi::take(vec![result]) }.remove(0).unwrap_or_default())
}

/// Scales the tensors in place by `min(1, limit / (norm + 1e-6))`, without asking the device.
///
/// # Errors
///
/// What libtorch refuses.
pub fn clip<T: Borrow<Tensor>>(tensors: &[T], norm: &Tensor, limit: f64) -> Result<(), ShimError> {
    if tensors.is_empty() {
        return Ok(());
    }
    let list = pointers(tensors);
    // SAFETY: the array has the length given and outlives the call, as do its tensors and `norm`.
    let error = unsafe { ffi::fwp_clip(list.as_ptr(), list.len(), norm.as_ptr(), limit) };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Adam as the paper writes it, one number at a time.
    fn scalar_adam(theta: &mut f64, m: &mut f64, v: &mut f64, t: i32, g: f64, s: AdamStep) {
        let mut g = g;
        if s.decoupled {
            *theta -= s.rate * s.weight_decay * *theta;
        } else {
            g += s.weight_decay * *theta;
        }
        *m = s.beta1 * *m + (1. - s.beta1) * g;
        *v = s.beta2 * *v + (1. - s.beta2) * g * g;
        let m_hat = *m / (1. - s.beta1.powi(t));
        let v_hat = *v / (1. - s.beta2.powi(t));
        *theta -= s.rate * m_hat / (v_hat.sqrt() + s.epsilon);
    }

    #[test]
    fn fused_steps_equal_a_scalar_loop() {
        for decoupled in [true, false] {
            let step = AdamStep { rate: 0.01, beta1: 0.9, beta2: 0.95, weight_decay: 0.1, epsilon: 1e-6, decoupled };
            let start = [0.5f64, -1.5, 3.];
            let p = [Tensor::from_slice(&start), Tensor::from_slice(&[2f64]).view([1, 1])];
            let zeros = || [p[0].zeros_like(), p[1].zeros_like()];
            let (m, v) = (zeros(), zeros());
            let count = [Tensor::from(0f32), Tensor::from(0f32)];
            let mut expected: Vec<(f64, f64, f64)> = [0.5, -1.5, 3., 2.].iter().map(|&x| (x, 0., 0.)).collect();
            for t in 1..=5 {
                let gradient = |i: usize| ((i + 1) as f64) * f64::from(t) * 0.1 - 0.25;
                let g = [
                    Tensor::from_slice(&[gradient(0), gradient(1), gradient(2)]),
                    Tensor::from_slice(&[gradient(3)]).view([1, 1]),
                ];
                fused_adam(&p, &g, &m, &v, &count, step, None).unwrap();
                for (i, (theta, m, v)) in expected.iter_mut().enumerate() {
                    scalar_adam(theta, m, v, t, gradient(i), step);
                }
            }
            let got: Vec<f64> = p.iter().flat_map(|t| Vec::<f64>::try_from(t.view([-1])).unwrap()).collect();
            for (a, (b, _, _)) in got.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-12, "decoupled {decoupled}: {a} {b}");
            }
            assert_eq!(f64::try_from(&count[0]).unwrap(), 5.);
        }
    }

    #[test]
    fn tensors_of_many_pieces_and_of_other_layouts_are_stepped_and_measured_whole() {
        let long = |n: i64| (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 0.37).sin();
        // Pieces have 16,384 numbers; rows that lie across each other in memory are carried out by libtorch.
        for layout in [|t: Tensor| t, |t: Tensor| t.transpose(0, 1)] {
            let all = || [long(6).view([2, 3]), long(40_000).view([200, 200]), long(16_384).view([128, 128])].map(layout);
            let exact = all().iter().map(|t| f64::try_from(t.square().sum(Kind::Double)).unwrap()).sum::<f64>().sqrt();
            let norm = f64::try_from(global_norm(&all()).unwrap()).unwrap();
            assert!((norm - exact).abs() < 1e-12 * exact, "{norm} {exact}");
            let clipped = all();
            clip(&clipped, &Tensor::from(norm), norm / 2.).unwrap();
            for (clipped, whole) in clipped.iter().zip(all()) {
                assert!(clipped.allclose(&(whole / 2.), 1e-6, 0., false));
            }
            for decoupled in [true, false] {
                let step = AdamStep { rate: 0.01, beta1: 0.9, beta2: 0.95, weight_decay: 0.1, epsilon: 1e-3, decoupled };
                let (p, g) = (all(), all().map(|t| t.cos().contiguous()));
                let (m, v) = (all().map(|t| t.zeros_like()), all().map(|t| t.zeros_like()));
                let count = [0, 1, 2].map(|_| Tensor::from(0f32));
                (0..2).for_each(|_| fused_adam(&p, &g, &m, &v, &count, step, None).unwrap());
                for (k, (p, g)) in p.iter().zip(&g).enumerate() {
                    let [got, start, g] = [p, &all()[k], g].map(|t| Vec::<f64>::try_from(t.contiguous().view([-1])).unwrap());
                    for (i, ((got, start), g)) in got.iter().zip(&start).zip(&g).enumerate() {
                        let (mut theta, mut m, mut v) = (*start, 0., 0.);
                        (1..3).for_each(|t| scalar_adam(&mut theta, &mut m, &mut v, t, *g, step));
                        assert!((got - theta).abs() < 1e-12, "decoupled {decoupled}, tensor {k}, {i}: {got} {theta}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_step_with_found_inf_changes_nothing() {
        let step = AdamStep { rate: 0.1, beta1: 0.9, beta2: 0.99, weight_decay: 0.1, epsilon: 1e-8, decoupled: true };
        let two = |x: f32| [Tensor::from_slice(&[x]), Tensor::from_slice(&[x, x])];
        let (p, m, v) = (two(1.), two(0.5), two(0.25));
        let count = [Tensor::from(3f32), Tensor::from(3f32)];
        fused_adam(&p, &two(f32::NAN), &m, &v, &count, step, Some(&Tensor::from(1f32))).unwrap();
        let read = |t: &[Tensor; 2]| t.each_ref().map(|t| t.double_value(&vec![0; t.dim()]));
        assert_eq!((read(&p), read(&m)), ([1.; 2], [0.5; 2]));
        assert_eq!((read(&v), read(&count)), ([0.25; 2], [3.; 2]));
        fused_adam(&p, &two(1.), &m, &v, &count, step, Some(&Tensor::from(0f32))).unwrap();
        assert!(read(&p).iter().all(|&x| x < 1.) && read(&count) == [4.; 2]);
    }

    #[test]
    fn lists_of_different_lengths_are_refused() {
        let step = AdamStep { rate: 0.1, beta1: 0.9, beta2: 0.99, weight_decay: 0., epsilon: 1e-8, decoupled: true };
        let t = Tensor::from(0f32);
        assert!(fused_adam(&[&t], &[], &[&t], &[&t], &[&t], step, None).is_err());
    }

    #[test]
    fn the_norm_is_that_of_all_elements_and_clipping_reaches_the_limit() {
        let list = [
            Tensor::from_slice(&[3f64, 0.]),
            Tensor::from_slice(&[4f64]).view([1, 1]),
            Tensor::zeros([0], (Kind::Double, Device::Cpu)),
        ];
        let norm = global_norm(&list).unwrap();
        assert!((f64::try_from(&norm).unwrap() - 5.).abs() < 1e-12);
        clip(&list, &norm, 10.).unwrap();
        assert_eq!(list[0].double_value(&[0]), 3., "below the limit nothing changes");
        clip(&list, &norm, 1.).unwrap();
        let after = f64::try_from(global_norm(&list).unwrap()).unwrap();
        assert!((after - 1.).abs() < 1e-6, "{after}");
        clip(&list, &Tensor::from(f64::NAN), 1.).unwrap();
        assert!(list[0].double_value(&[1]).is_nan(), "what is lost shows");
    }

    #[test]
    fn tensors_of_several_kinds_have_a_common_norm() {
        let list =
            [Tensor::from_slice(&[3f64]), Tensor::from_slice(&[4f32]), Tensor::from_slice(&[12f32]).to_kind(Kind::BFloat16)];
        let norm = f64::try_from(global_norm(&list).unwrap()).unwrap();
        assert!((norm - 13.).abs() < 1e-6, "{norm}");
        // 257 is no number of a BFloat16, and neither is its root.
        let narrow = [1f32, 16.].map(|x| Tensor::from_slice(&[x]).to_kind(Kind::BFloat16));
        let norm = f64::try_from(global_norm(&narrow).unwrap()).unwrap();
        assert!((norm - 257f64.sqrt()).abs() < 1e-5, "{norm}");
        let norm = f64::try_from(global_norm(&[Tensor::from_slice(&[f32::NAN])]).unwrap());
        assert!(norm.unwrap().is_nan());
    }
}
