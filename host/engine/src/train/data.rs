//! Batches ahead of the step, and batches as tensors.

use std::collections::BTreeMap;
use std::sync::Arc;

use fwp_task::{Batch, Task};
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::exec::loss::losses;
use crate::shim::ShimError;
use crate::shim::loss::Which;

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

/// The loss of a batch.
pub(super) struct Sums {
    /// `sum(weight * loss)`, in the graph.
    pub(super) loss: Tensor,
    /// `sum(weight)`.
    pub(super) weight: Weight,
}

/// What all positions of a batch weigh together.
pub(super) enum Weight {
    /// One each.
    Count(f64),
    /// The sum of their weights.
    Sum(Tensor),
}

impl Weight {
    /// As a tensor of no axes, of the kind and on the device of another.
    pub(super) fn tensor(&self, like: &Tensor) -> Result<Tensor, ShimError> {
        Ok(match self {
            Weight::Count(n) => Tensor::f_full([0i64; 0], *n, (like.kind(), like.device()))?,
            Weight::Sum(sum) => sum.shallow_clone(),
        })
    }
}

impl Sums {
    /// The mean loss over so many batches, of which this is one.
    pub(super) fn mean(&self, batches: f64) -> Result<Tensor, ShimError> {
        Ok(match &self.weight {
            Weight::Count(n) => self.loss.f_div_scalar(n * batches)?,
            Weight::Sum(sum) => self.loss.f_div(sum)?.f_div_scalar(batches)?,
        })
    }
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
    let output = wide(output)?;
    let weights = weights(batch, &output)?;
    let which = match loss {
        fwp_task::Loss::CrossEntropy => Which::CrossEntropy,
        fwp_task::Loss::HalfSquaredError => Which::HalfSquaredError,
    };
    let loss = losses(which, &output, &batch.targets, weights.as_ref())?;
    let weight = match weights {
        Some(weights) => Weight::Sum(weights.f_sum(output.kind()).map_err(ShimError::from)?),
        None => Weight::Count(batch.targets.numel() as f64),
    };
    Ok(Sums { loss, weight })
}

/// `sum(weight)` over the positions whose greatest output is that of the target; shapes as [`compare`] checks them.
pub(super) fn right(output: &Tensor, batch: &Tensors) -> Result<Tensor, ShimError> {
    let output = wide(&output.detach())?;
    let right = output.f_argmax(-1, false)?.f_eq_tensor(&batch.targets)?.f_to_kind(output.kind())?;
    Ok(match weights(batch, &output)? {
        Some(weights) => right.f_mul(&weights)?,
        None => right,
    }
    .f_sum(output.kind())?)
}

/// In float32 at least.
fn wide(output: &Tensor) -> Result<Tensor, ShimError> {
    let kind = if output.f_kind()? == Kind::Double { Kind::Double } else { Kind::Float };
    Ok(output.f_to_kind(kind)?)
}

fn weights(batch: &Tensors, output: &Tensor) -> Result<Option<Tensor>, ShimError> {
    Ok(batch.weights.as_ref().map(|w| w.f_to_kind(output.kind())).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fwp_task::Loss;

    fn batch(targets: &[i64], weights: Option<&[f32]>) -> Tensors {
        Tensors { inputs: BTreeMap::new(), targets: Tensor::from_slice(targets), weights: weights.map(Tensor::from_slice) }
    }

    /// Mean loss and share of what is right.
    fn means(loss: Loss, output: &Tensor, batch: &Tensors) -> (f64, f64) {
        let read = |t: &Tensor| f64::try_from(t).unwrap();
        let sums = compare(loss, output, batch).unwrap();
        let weight = read(&sums.weight.tensor(output).unwrap());
        assert_eq!(read(&sums.mean(2.).unwrap()), read(&sums.loss) / weight / 2.);
        (read(&sums.loss) / weight, read(&right(output, batch).unwrap()) / weight)
    }

    #[test]
    fn losses_are_those_of_their_definitions() {
        let output = Tensor::from_slice(&[1f64, 0.5, 0., 0., 0., 0.]).view([2, 3]);
        // 1/2 (0 + 1/4 + 0) and 1/2 (0 + 0 + 1).
        assert_eq!(means(Loss::HalfSquaredError, &output, &batch(&[0, 2], None)).0, (0.125 + 0.5) / 2.);
        let first = -(1f64.exp() / (1f64.exp() + 0.5f64.exp() + 1.)).ln();
        let found = means(Loss::CrossEntropy, &output, &batch(&[0, 2], None)).0;
        assert!((found - (first + 3f64.ln()) / 2.).abs() < 1e-12);
    }

    #[test]
    fn weights_count() {
        let output = Tensor::from_slice(&[1f64, 0., 0., 1.]).view([2, 2]);
        assert_eq!(means(Loss::HalfSquaredError, &output, &batch(&[0, 0], Some(&[3., 1.]))), (0.25, 0.75));
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
