//! Evaluation: deterministic, over the whole of what the task gives.

use std::sync::Arc;

use fwp_task::Task;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::data::{Tensors, compare, right};
use super::interrupt::Interrupt;
use super::model::{Pass, TrainModel};
use crate::shim::{RandomState, ShimError};

/// What an evaluation found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Steps done when it was made.
    pub step: u64,
    /// `sum(weight * loss) / sum(weight)` over all batches; not finite values are kept as `null`.
    #[serde(with = "maybe_not_finite")]
    pub loss: f64,
    /// The weighted part of positions whose largest output is the target.
    pub accuracy: f64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds taken.
    pub seconds: f64,
}

/// JSON has no word for NaN: it is written as `null`.
mod maybe_not_finite {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

/// How an evaluation is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvaluationOptions {
    /// The seed of the evaluation data.
    pub seed: u64,
    /// Steps done so far.
    pub step: u64,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Whether fast-weight states pass from a batch to the next where the task continues a row.
    pub carry: bool,
}

/// Evaluates a model over all evaluation batches of a task, without gradients or dropout, and
/// leaves the random generators as they were.
///
/// Returns `None` when `interrupt` was asked before the end.
///
/// # Errors
///
/// A task without evaluation data, shapes that do not fit, or what libtorch refuses.
pub fn evaluate<M: TrainModel>(
    model: &M,
    task: &Arc<dyn Task>,
    options: EvaluationOptions,
    interrupt: Option<&Interrupt>,
) -> anyhow::Result<Option<Evaluation>> {
    let random = RandomState::capture(model.device())?;
    let result = tch::no_grad(|| all_batches(model, task, options, interrupt));
    random.restore()?;
    result
}

fn all_batches<M: TrainModel>(
    model: &M,
    task: &Arc<dyn Task>,
    options: EvaluationOptions,
    interrupt: Option<&Interrupt>,
) -> anyhow::Result<Option<Evaluation>> {
    let started = std::time::Instant::now();
    // [loss, right, weight], summed on the device: it is asked once, at the end.
    let mut sums: Option<Tensor> = None;
    let mut tokens = 0;
    let mut carry = None;
    for index in 0..task.eval_len(options.batch_size) {
        if interrupt.is_some_and(Interrupt::is_asked) {
            return Ok(None);
        }
        let batch = task.eval_batch(options.seed, index, options.batch_size);
        if batch.size == 0 {
            continue;
        }
        let tensors = Tensors::new(&batch, model.device())?;
        let carried = options.carry && batch.resets.is_some();
        let pass = Pass {
            train: false,
            step: options.step,
            seed: options.seed,
            micro: index as u64,
            carry: carried,
            resets: if carried { batch.resets.clone() } else { None },
        };
        let before = if carried { carry.take() } else { None };
        let output = model.forward(&tensors.inputs, &pass, before)?;
        carry = output.carry;
        let value = output
            .values
            .get(task.output_name())
            .ok_or_else(|| anyhow::anyhow!("the slow net has no output {:?}, which the task needs", task.output_name()))?;
        let part = compare(task.loss(), value, &tensors)?;
        let weight = part.weight.tensor(&part.loss)?;
        let part = Tensor::f_stack(&[part.loss, right(value, &tensors)?, weight], 0)
            .and_then(|t| t.f_to_kind(Kind::Double))
            .map_err(ShimError::from)?;
        sums = Some(match sums {
            Some(sums) => sums.f_add(&part).map_err(ShimError::from)?,
            None => part,
        });
        tokens += batch.tokens as u64;
    }
    let sums = sums.ok_or_else(|| anyhow::anyhow!("the task has no evaluation data"))?;
    let sums = Vec::<f64>::try_from(&sums).map_err(ShimError::from)?;
    Ok(Some(Evaluation {
        step: options.step,
        loss: sums[0] / sums[2],
        accuracy: sums[1] / sums[2],
        tokens,
        seconds: started.elapsed().as_secs_f64(),
    }))
}
