//! Evaluation: deterministic, over the whole of what the task gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use fwp_task::{Metric, Task};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::data::{Tensors, compare, count, counts};
use super::interrupt::Interrupt;
use super::model::{Pass, TrainModel};
use crate::shim::{RandomState, ShimError};

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Steps done when it was made.
    pub step: u64,
    /// `sum(weight * loss) / sum(weight)` over all batches; not finite values are kept as `null`.
    #[serde(with = "maybe_not_finite")]
    pub loss: f64,
    /// The weighted part of positions whose largest output is the target.
    pub accuracy: f64,
    /// All metrics by their names in `metrics.jsonl`, the loss among them, as far as they are finite.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
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
    /// The seed of the run, by which a model draws what it draws.
    pub seed: u64,
    /// The seed of the evaluation data.
    pub data_seed: u64,
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
    let metrics = task.metrics();
    let usual = metrics.iter().find_map(|m| match m {
        Metric::AccuracyBeside { usual, .. } => Some(*usual),
        _ => None,
    });
    let sets = task.eval_sets();
    // For each set the loss and the counts, summed on the device: it is asked once, at the end.
    let mut sums: Vec<Option<Tensor>> = (0..sets.len().max(1)).map(|_| None).collect();
    let mut tokens = 0;
    let mut carry = None;
    for index in 0..task.eval_len(options.batch_size) {
        if interrupt.is_some_and(Interrupt::is_asked) {
            return Ok(None);
        }
        let batch = task.eval_batch(options.data_seed, index, options.batch_size);
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
            scored: tensors.scored(task.output_name()),
        };
        let before = if carried { carry.take() } else { None };
        let output = model.forward(&tensors.inputs, &pass, before)?;
        carry = output.carry;
        let value = output
            .values
            .get(task.output_name())
            .ok_or_else(|| anyhow::anyhow!("the slow net has no output {:?}, which the task needs", task.output_name()))?;
        let loss = compare(task.loss(), value, &tensors)?.loss;
        let counted = count(value, &tensors, usual)?;
        let part = || Tensor::f_cat(&[loss.f_to_kind(Kind::Double)?.f_reshape([1])?, counted], 0);
        let part = part().map_err(ShimError::from)?;
        let sum = sums.get_mut(batch.set).ok_or_else(|| anyhow::anyhow!("the task has no evaluation set {}", batch.set))?;
        *sum = Some(match sum.take() {
            Some(sum) => sum.f_add(&part).map_err(ShimError::from)?,
            None => part,
        });
        tokens += batch.tokens as u64;
    }
    anyhow::ensure!(sums.iter().any(Option::is_some), "the task has no evaluation data");
    let mut total = vec![0.0; NUMBERS];
    let mut named = Vec::new();
    for (set, sum) in sums.iter().enumerate() {
        let Some(sum) = sum else { continue };
        let numbers = Vec::<f64>::try_from(sum).map_err(ShimError::from)?;
        total.iter_mut().zip(&numbers).for_each(|(t, n)| *t += n);
        if let Some(name) = sets.get(set) {
            named.extend(values(&format!("eval/{name}/"), &metrics, &numbers));
        }
    }
    named.extend(values("eval/", &metrics, &total));
    let all = counts(&total[1..]);
    Ok(Some(Evaluation {
        step: options.step,
        loss: total[0] / all.weight,
        accuracy: all.right / all.weight,
        metrics: named.into_iter().filter(|(_, value)| value.is_finite()).collect(),
        tokens,
        seconds: started.elapsed().as_secs_f64(),
    }))
}

/// The loss and the counts.
const NUMBERS: usize = 7;

/// Loss and metrics, by name.
fn values(prefix: &str, metrics: &[Metric], numbers: &[f64]) -> Vec<(String, f64)> {
    let counted = counts(&numbers[1..]);
    let loss = (format!("{prefix}loss"), numbers[0] / counted.weight);
    let others = metrics.iter().map(|m| (format!("{prefix}{}", m.name()), m.value(&counted)));
    std::iter::once(loss).chain(others).collect()
}
