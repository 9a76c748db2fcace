//! Batches ahead of the step, and batches as tensors.

use std::collections::BTreeMap;
use std::sync::Arc;

use fwp_task::{Batch, Task};
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::shim::ShimError;

/// How many batches may wait: one that is next, and one that is being made.
const AHEAD: usize = 2;

/// Where a batch stands in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) step: u64,
    pub(super) micro: u64,
}

/// Makes the training batches in order, on a task of its own.
pub(super) struct Ahead {
    receiver: mpsc::Receiver<(Place, Batch)>,
    task: Option<JoinHandle<()>>,
    runtime: Handle,
}

impl Ahead {
    /// Begins with the batches of `first`, for steps below `last`.
    pub(super) fn start(
        runtime: &Handle,
        task: Arc<dyn Task>,
        seed: u64,
        (first, last): (u64, u64),
        (accumulate, batch_size): (u64, usize),
    ) -> Self {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let work = runtime.spawn_blocking(move || {
            for step in first..last {
                for micro in 0..accumulate {
                    let batch = task.train_batch(seed, step, micro, batch_size);
                    // The receiver is gone when the run has ended early.
                    if sender.blocking_send((Place { step, micro }, batch)).is_err() {
                        return;
                    }
                }
            }
        });
        Self { receiver, task: Some(work), runtime: runtime.clone() }
    }

    /// The next batch, which must be the one of `place`.
    ///
    /// # Errors
    ///
    /// The task's panic.
    pub(super) fn next(&mut self, place: Place) -> anyhow::Result<Batch> {
        match self.receiver.blocking_recv() {
            Some((at, batch)) if at == place => Ok(batch),
            Some((at, _)) => anyhow::bail!("data preparation gave the batch of {at:?} for {place:?}"),
            None => {
                let ended = self.task.take().map(|task| self.runtime.block_on(task));
                match ended {
                    Some(Err(error)) => anyhow::bail!("data preparation for step {} failed: {error}", place.step),
                    _ => anyhow::bail!("data preparation ended before step {}", place.step),
                }
            }
        }
    }
}

/// A batch on the model's device.
pub(super) struct Tensors {
    /// The inputs by name, 64-bit symbols.
    pub(super) inputs: BTreeMap<String, Tensor>,
    /// The target symbols.
    pub(super) targets: Tensor,
    /// The weights of the targets, float32.
    pub(super) weights: Option<Tensor>,
}

impl Tensors {
    /// Copies a batch to a device.
    ///
    /// # Errors
    ///
    /// A shape that does not fit the data, or what libtorch refuses.
    pub(super) fn new(batch: &Batch, device: Device) -> anyhow::Result<Self> {
        let symbols = |name: &str, data: &[i64], shape: &[usize]| -> anyhow::Result<Tensor> {
            fits(name, data.len(), shape)?;
            place(Tensor::f_from_slice(data), shape, device)
        };
        let mut inputs = BTreeMap::new();
        for (name, data, shape) in &batch.inputs {
            inputs.insert(name.clone(), symbols(name, data, shape)?);
        }
        let targets = symbols("targets", &batch.targets, &batch.target_shape)?;
        let weights = match &batch.weights {
            Some(weights) => {
                fits("weights", weights.len(), &batch.target_shape)?;
                Some(place(Tensor::f_from_slice(weights), &batch.target_shape, device)?)
            }
            None => None,
        };
        Ok(Self { inputs, targets, weights })
    }
}

fn fits(name: &str, count: usize, shape: &[usize]) -> anyhow::Result<()> {
    let product = shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
    anyhow::ensure!(product == Some(count), "the task gave {count} values of {name} for the shape {shape:?}");
    Ok(())
}

fn place(tensor: Result<Tensor, tch::TchError>, shape: &[usize], device: Device) -> anyhow::Result<Tensor> {
    let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let tensor = tensor.and_then(|t| t.f_reshape(&shape)).and_then(|t| t.f_to_device(device));
    Ok(tensor.map_err(ShimError::from)?)
}

/// The sums that make up a loss or a metric.
pub(super) struct Sums {
    /// `sum(weight * loss)`, in the graph.
    pub(super) loss: Tensor,
    /// `sum(weight)` over the positions that are right.
    pub(super) right: Tensor,
    /// `sum(weight)`.
    pub(super) weight: Tensor,
}

/// Compares outputs `[..., values]` with target symbols `[...]`.
///
/// Computed in float32 at least, whatever the type of the outputs.
///
/// # Errors
///
/// Shapes that do not fit, or a target beyond the last output.
pub(super) fn compare(loss: fwp_task::Loss, output: &Tensor, batch: &Tensors) -> anyhow::Result<Sums> {
    let size = output.size();
    let expected = batch.targets.size();
    anyhow::ensure!(
        size.len() == expected.len() + 1 && size[..expected.len()] == expected[..],
        "the slow net's output has the shape {size:?}, the targets have {expected:?}: expected one axis more, for the values"
    );
    let kind = if output.f_kind().map_err(ShimError::from)? == Kind::Double { Kind::Double } else { Kind::Float };
    let work = || -> Result<Sums, tch::TchError> {
        let output = output.f_to_kind(kind)?;
        let index = batch.targets.f_unsqueeze(-1)?;
        let each = match loss {
            fwp_task::Loss::CrossEntropy => {
                output.f_log_softmax(-1, kind)?.f_gather(-1, &index, false)?.f_squeeze_dim(-1)?.f_neg()?
            }
            fwp_task::Loss::HalfSquaredError => {
                // Not scatter_value: in this binding a refused call with a number in it panics.
                let ones = index.f_to_kind(kind)?.f_ones_like()?;
                let target = output.f_zeros_like()?.f_scatter(-1, &index, &ones)?;
                let difference = output.f_sub(&target)?;
                difference.f_square()?.f_sum_dim_intlist(-1, false, kind)?.f_mul_scalar(0.5)?
            }
        };
        let right = output.detach().f_argmax(-1, false)?.f_eq_tensor(&batch.targets)?.f_to_kind(kind)?;
        let total = batch.targets.numel() as f64;
        Ok(match &batch.weights {
            Some(weights) => {
                let weights = weights.f_to_kind(kind)?;
                Sums {
                    loss: each.f_mul(&weights)?.f_sum(kind)?,
                    right: right.f_mul(&weights)?.f_sum(kind)?,
                    weight: weights.f_sum(kind)?,
                }
            }
            None => Sums {
                loss: each.f_sum(kind)?,
                right: right.f_sum(kind)?,
                weight: Tensor::f_full([0i64; 0], total, (kind, output.device()))?,
            },
        })
    };
    Ok(work().map_err(ShimError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fwp_task::Loss;

    fn batch(targets: &[i64], weights: Option<&[f32]>) -> Tensors {
        Tensors { inputs: BTreeMap::new(), targets: Tensor::from_slice(targets), weights: weights.map(Tensor::from_slice) }
    }

    fn mean(sums: &Sums) -> (f64, f64) {
        let read = |t: &Tensor| f64::try_from(t).unwrap();
        (read(&sums.loss) / read(&sums.weight), read(&sums.right) / read(&sums.weight))
    }

    #[test]
    fn losses_are_those_of_their_definitions() {
        let output = Tensor::from_slice(&[1f64, 0.5, 0., 0., 0., 0.]).view([2, 3]);
        let sums = compare(Loss::HalfSquaredError, &output, &batch(&[0, 2], None)).unwrap();
        // 1/2 (0 + 1/4 + 0) and 1/2 (0 + 0 + 1).
        assert_eq!(mean(&sums).0, (0.125 + 0.5) / 2.);
        let sums = compare(Loss::CrossEntropy, &output, &batch(&[0, 2], None)).unwrap();
        let first = -(1f64.exp() / (1f64.exp() + 0.5f64.exp() + 1.)).ln();
        assert!((mean(&sums).0 - (first + 3f64.ln()) / 2.).abs() < 1e-12);
    }

    #[test]
    fn weights_count() {
        let output = Tensor::from_slice(&[1f64, 0., 0., 1.]).view([2, 2]);
        let sums = compare(Loss::HalfSquaredError, &output, &batch(&[0, 0], Some(&[3., 1.]))).unwrap();
        assert_eq!(mean(&sums), (0.25, 0.75));
    }

    #[test]
    fn shapes_and_symbols_that_do_not_fit_are_errors() {
        let output = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let error = compare(Loss::CrossEntropy, &output, &batch(&[0, 1, 2], None)).err().unwrap();
        assert!(error.to_string().contains("[2, 3]"), "{error}");
        for loss in [Loss::CrossEntropy, Loss::HalfSquaredError] {
            assert!(compare(loss, &output, &batch(&[0, 3], None)).is_err());
        }
    }
}
