//! Batches ahead of the step, and batches as tensors.

use std::collections::BTreeMap;
use std::sync::Arc;

use fwp_task::{Batch, Counts, Loss, Task};
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::model::Scored;
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

/// Where fewer than one position in so many is scored, only those are computed.
const FEW: usize = 2;

/// A batch on the model's device.
pub(super) struct Tensors {
    /// The inputs by name, 64-bit symbols.
    pub(super) inputs: BTreeMap<String, Tensor>,
    /// The target symbols, of the scored positions alone where there are few.
    pub(super) targets: Tensor,
    /// The weights of the targets, float32.
    pub(super) weights: Option<Tensor>,
    /// The scored positions, `row * length + step`, where there are few.
    positions: Option<Vec<i64>>,
    /// The number of rows, and of targets in each.
    rows: (usize, usize),
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
        fits("targets", batch.targets.len(), &batch.target_shape)?;
        if let Some(weights) = &batch.weights {
            fits("weights", weights.len(), &batch.target_shape)?;
        }
        let rows = (batch.size, batch.targets.len() / batch.size.max(1));
        let positions = few(batch);
        let shape = match &positions {
            Some(positions) => vec![positions.len()],
            None => batch.target_shape.clone(),
        };
        let targets = place(Tensor::f_from_slice(&chosen(&batch.targets, positions.as_deref())), &shape, device)?;
        let weights = batch.weights.as_ref().map(|w| chosen(w, positions.as_deref()));
        // Weights that are all one say nothing.
        let weights = weights.filter(|w| w.iter().any(|w| *w != 1.0));
        let weights = weights.map(|w| place(Tensor::f_from_slice(&w), &shape, device)).transpose()?;
        Ok(Self { inputs, targets, weights, positions, rows })
    }

    /// The positions that a model need compute of an output.
    pub(super) fn scored(&self, output: &str) -> Option<Scored> {
        self.positions.clone().map(|positions| Scored { output: output.to_owned(), positions })
    }

    /// The output at the positions of the targets, whether the model gave these alone or all.
    fn at_targets(&self, output: &Tensor) -> anyhow::Result<Tensor> {
        let size = output.size();
        let Some(positions) = self.positions.as_ref().filter(|_| size.len() == 3) else {
            return Ok(output.shallow_clone());
        };
        let (rows, length) = (self.rows.0 as i64, self.rows.1 as i64);
        anyhow::ensure!(
            size[..2] == [rows, length],
            "the slow net's output has the shape {size:?}, the targets have [{rows}, {length}]"
        );
        let work = || {
            let places = Tensor::f_from_slice(positions)?.f_to_device(output.device())?;
            output.f_flatten(0, 1)?.f_index_select(0, &places)
        };
        Ok(work().map_err(ShimError::from)?)
    }

    /// The row of each target.
    fn row_of_each(&self) -> Vec<i64> {
        let length = self.rows.1.max(1) as i64;
        match &self.positions {
            Some(positions) => positions.iter().map(|p| p / length).collect(),
            None => (0..self.targets.numel() as i64).map(|p| p / length).collect(),
        }
    }
}

/// The scored positions of a batch, where there are few.
fn few(batch: &Batch) -> Option<Vec<i64>> {
    let weights = batch.weights.as_ref().filter(|_| batch.target_shape.len() == 2)?;
    let positions: Vec<i64> = (0..).zip(weights).filter(|(_, w)| **w != 0.0).map(|(i, _)| i).collect();
    (!positions.is_empty() && FEW * positions.len() < weights.len()).then_some(positions)
}

/// The values at some positions, or all.
fn chosen<T: Copy>(values: &[T], positions: Option<&[i64]>) -> Vec<T> {
    match positions {
        Some(positions) => positions.iter().map(|p| values[*p as usize]).collect(),
        None => values.to_vec(),
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

impl Sums {
    /// The mean loss over so many batches, of which this is one.
    pub(super) fn mean(&self, batches: f64) -> Result<Tensor, ShimError> {
        Ok(match &self.weight {
            Weight::Count(n) => self.loss.f_div_scalar(n * batches)?,
            Weight::Sum(sum) => self.loss.f_div(sum)?.f_div_scalar(batches)?,
        })
    }
}

/// Outputs `[..., values]` at the positions of the target symbols `[...]`, in float32 at least.
fn matched(output: &Tensor, batch: &Tensors) -> anyhow::Result<Tensor> {
    let output = batch.at_targets(output)?;
    let size = output.size();
    let expected = batch.targets.size();
    anyhow::ensure!(
        size.len() == expected.len() + 1 && size[..expected.len()] == expected[..],
        "the slow net's output has the shape {size:?}, the targets have {expected:?}: expected one axis more, for the values"
    );
    Ok(wide(&output)?)
}

/// Compares outputs `[..., values]` with target symbols `[...]`.
///
/// # Errors
///
/// Shapes that do not fit, or a target beyond the last output.
pub(super) fn compare(loss: Loss, output: &Tensor, batch: &Tensors) -> anyhow::Result<Sums> {
    let output = matched(output, batch)?;
    let weights = weights(batch, &output)?;
    let which = match loss {
        Loss::CrossEntropy => Which::CrossEntropy,
        Loss::HalfSquaredError => Which::HalfSquaredError,
    };
    let loss = losses(which, &output, &batch.targets, weights.as_ref())?;
    let weight = match weights {
        Some(weights) => Weight::Sum(weights.f_sum(output.kind()).map_err(ShimError::from)?),
        None => Weight::Count(batch.targets.numel() as f64),
    };
    Ok(Sums { loss, weight })
}

/// In float32 at least.
fn wide(output: &Tensor) -> Result<Tensor, ShimError> {
    let kind = if output.f_kind()? == Kind::Double { Kind::Double } else { Kind::Float };
    Ok(output.f_to_kind(kind)?)
}

fn weights(batch: &Tensors, output: &Tensor) -> Result<Option<Tensor>, ShimError> {
    Ok(batch.weights.as_ref().map(|w| w.f_to_kind(output.kind())).transpose()?)
}

/// The numbers of [`Counts`] in their order there, float64 `[6]`; `usual` is the target that
/// [`fwp_task::Metric::AccuracyBeside`] leaves out.
///
/// # Errors
///
/// Shapes that do not fit.
pub(super) fn count(output: &Tensor, batch: &Tensors, usual: Option<i64>) -> anyhow::Result<Tensor> {
    let output = matched(&output.detach(), batch)?;
    let rows = Tensor::from_slice(&batch.row_of_each());
    let work = || -> Result<Tensor, tch::TchError> {
        let (double, device) = (Kind::Double, output.device());
        let targets = batch.targets.f_flatten(0, -1)?;
        let right = output.f_argmax(-1, false)?.f_flatten(0, -1)?.f_eq_tensor(&targets)?.f_to_kind(double)?;
        let weights = match &batch.weights {
            Some(weights) => weights.f_flatten(0, -1)?.f_to_kind(double)?,
            None => right.f_ones_like()?,
        };
        let weighted = right.f_mul(&weights)?;
        let scored = weights.f_sign()?;
        // Of each row: how many positions are scored, and how many of them are right.
        let rows = rows.f_to_device(device)?;
        let none = Tensor::f_zeros([batch.rows.0 as i64], (double, device))?;
        let of_row = none.f_index_add(0, &rows, &scored)?;
        let right_of_row = none.f_index_add(0, &rows, &right.f_mul(&scored)?)?;
        let counted = of_row.f_sign()?;
        let whole = right_of_row.f_eq_tensor(&of_row)?.f_to_kind(double)?.f_mul(&counted)?;
        let beside = match usual {
            Some(usual) => targets.f_sub(&Tensor::from(usual).f_to_device(device)?)?.f_abs()?.f_sign()?.f_to_kind(double)?,
            None => right.f_ones_like()?,
        };
        let sums = [&weighted, &weights, &whole, &counted, &weighted.f_mul(&beside)?, &weights.f_mul(&beside)?];
        let sums: Vec<Tensor> = sums.iter().map(|t| t.f_sum(double)).collect::<Result<_, _>>()?;
        Tensor::f_stack(&sums, 0)
    };
    Ok(work().map_err(ShimError::from)?)
}

/// Counts as numbers, from the values of [`count`].
pub(super) fn counts(values: &[f64]) -> Counts {
    let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
    Counts { right: at(0), weight: at(1), sequences_right: at(2), sequences: at(3), beside_right: at(4), beside_weight: at(5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(targets: &[i64], weights: Option<&[f32]>) -> Tensors {
        let (targets, rows) = (Tensor::from_slice(targets), (targets.len(), 1));
        Tensors { inputs: BTreeMap::new(), targets, weights: weights.map(Tensor::from_slice), positions: None, rows }
    }

    fn mean(sums: &Sums) -> f64 {
        let read = |t: &Tensor| f64::try_from(t).unwrap();
        let mean = read(&sums.mean(1.).unwrap());
        assert_eq!(read(&sums.mean(2.).unwrap()), mean / 2.);
        mean
    }

    /// Three sequences of four positions; the last of them is padding alone.
    fn sequences(weights: [f32; 12]) -> Batch {
        Batch {
            size: 3,
            inputs: vec![],
            targets: vec![0, 1, 2, 0, 1, 1, 2, 0, 0, 0, 0, 0],
            target_shape: vec![3, 4],
            weights: Some(weights.to_vec()),
            tokens: 12,
            resets: None,
            set: 0,
        }
    }

    /// Outputs whose largest value is that of these symbols.
    fn outputs(symbols: [i64; 12]) -> Tensor {
        let index = Tensor::from_slice(&symbols).view([3, 4, 1]);
        let noise = (Tensor::arange(36, (Kind::Double, Device::Cpu)) * 0.7).sin().view([3, 4, 3]) * 0.1;
        noise.scatter_add(-1, &index, &Tensor::ones([3, 4, 1], (Kind::Double, Device::Cpu)))
    }

    #[test]
    fn only_what_is_scored_counts() {
        // Right at all scored positions of the first row, wrong at one of the second's.
        let said = outputs([0, 9 % 3, 2, 0, 1, 2, 2, 0, 1, 1, 1, 1]);
        for (weights, positions, counted) in [
            // Few: the positions are picked out.
            ([1., 0., 1., 0., 0., 1., 1., 0., 0., 0., 0., 0.], Some(vec![0, 2, 5, 6]), [3., 4., 1., 2., 2., 3.]),
            // Many: all are computed and weighed.
            ([1., 0., 1., 1., 1., 2., 1., 1., 0., 0., 0., 0.], None, [6., 8., 1., 2., 3., 5.]),
        ] {
            let batch = sequences(weights);
            let tensors = Tensors::new(&batch, Device::Cpu).unwrap();
            assert_eq!(tensors.scored("y").map(|s| s.positions), positions);
            let found = Vec::<f64>::try_from(count(&said, &tensors, Some(0)).unwrap()).unwrap();
            assert_eq!(found, counted);
            assert_eq!(counts(&found).sequences_right, 1.0);
            // By hand.
            let log = said.log_softmax(-1, Kind::Double).view([12, 3]);
            let (mut loss, mut weight) = (0., 0.);
            for (i, w) in weights.iter().enumerate() {
                loss -= f64::from(*w) * log.double_value(&[i as i64, batch.targets[i]]);
                weight += f64::from(*w);
            }
            assert!((mean(&compare(Loss::CrossEntropy, &said, &tensors).unwrap()) - loss / weight).abs() < 1e-12);
            // A model that gives the scored positions alone says the same.
            if let Some(positions) = positions {
                let alone = said.view([12, 3]).index_select(0, &Tensor::from_slice(&positions));
                assert_eq!(Vec::<f64>::try_from(count(&alone, &tensors, Some(0)).unwrap()).unwrap(), counted);
                assert!((mean(&compare(Loss::CrossEntropy, &alone, &tensors).unwrap()) - loss / weight).abs() < 1e-12);
            }
        }
        let tensors = Tensors::new(&sequences([1.; 12]), Device::Cpu).unwrap();
        assert!(tensors.weights.is_none() && tensors.scored("y").is_none());
        assert!(compare(Loss::CrossEntropy, &said.narrow(1, 0, 3), &tensors).is_err());
    }

    #[test]
    fn losses_are_those_of_their_definitions() {
        let output = Tensor::from_slice(&[1f64, 0.5, 0., 0., 0., 0.]).view([2, 3]);
        let sums = compare(Loss::HalfSquaredError, &output, &batch(&[0, 2], None)).unwrap();
        // 1/2 (0 + 1/4 + 0) and 1/2 (0 + 0 + 1).
        assert_eq!(mean(&sums), (0.125 + 0.5) / 2.);
        let sums = compare(Loss::CrossEntropy, &output, &batch(&[0, 2], None)).unwrap();
        let first = -(1f64.exp() / (1f64.exp() + 0.5f64.exp() + 1.)).ln();
        assert!((mean(&sums) - (first + 3f64.ln()) / 2.).abs() < 1e-12);
    }

    #[test]
    fn weights_count() {
        let output = Tensor::from_slice(&[1f64, 0., 0., 1.]).view([2, 2]);
        let sums = compare(Loss::HalfSquaredError, &output, &batch(&[0, 0], Some(&[3., 1.]))).unwrap();
        assert_eq!(mean(&sums), 0.25);
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
