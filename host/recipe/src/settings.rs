//! The typed sections of a recipe, and what their values mean.
//!
//! They are written into a run's plan as they are; unknown fields there are refused, too.

use serde::{Deserialize, Serialize};

/// How the slow net is trained (`[train]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// How many optimiser steps.
    pub steps: u64,
    /// Sequences in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in a step.
    pub accumulate: usize,
    /// Decides parameters, data and dropout.
    pub seed: u64,
    /// The optimiser and its constants.
    pub optimiser: Optimiser,
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// The largest global norm of the gradient; 0 clips nothing.
    pub clip: f64,
    /// Whether fast weights pass from a step to the next.
    pub carry: Carry,
    /// What a loss or gradient that is not finite does.
    pub on_nonfinite: OnNonfinite,
    /// The type of parameters and activations.
    pub dtype: Dtype,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// `auto` or `reference`.
    pub exec: String,
    /// Bytes above which long sequences are recomputed in segments; `None` leaves it to the device.
    pub memory_limit: Option<u64>,
}

impl TrainSettings {
    /// The learning rate of a step, counted from 0.
    pub fn lr_at(&self, step: u64) -> f64 {
        self.optimiser.lr * self.schedule.factor(step, self.steps)
    }
}

/// The optimiser and its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimiser {
    /// Which one.
    pub name: OptimiserKind,
    /// The peak learning rate.
    pub lr: f64,
    /// Decay of the first and second moment, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Strength of the weight decay. Adam adds it to the gradient, AdamW applies it to the
    /// parameter.
    pub weight_decay: f64,
}

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimiserKind {
    /// Adam; weight decay is added to the gradient.
    Adam,
    /// Adam with decoupled weight decay.
    #[serde(rename = "adamw")]
    AdamW,
}

/// The learning rate over the steps, as a factor of its peak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The course after the warm-up.
    pub name: ScheduleKind,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// The last learning rate divided by the peak, for linear, cosine and wsd.
    pub min_ratio: f64,
    /// The part of all steps, at the end, in which wsd decays.
    pub decay_fraction: f64,
}

/// The course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// The peak throughout.
    Constant,
    /// A straight line down to `min_ratio`.
    Linear,
    /// Half a cosine down to `min_ratio`.
    Cosine,
    /// Warm-up, stable, decay: the peak, and a straight line in the last `decay_fraction`.
    Wsd,
    /// `sqrt(warmup / step)`, with a warm-up of at least one step.
    InverseSqrt,
}

impl Schedule {
    /// The factor of the peak learning rate at a step (from 0) of a run of `steps`, in [0, 1].
    ///
    /// The warm-up gives `(step + 1) / warmup`, so the first step already learns and step
    /// `warmup - 1` reaches the peak. The decays start after the warm-up and reach `min_ratio` at
    /// `step = steps`, one past the last, so no step is wasted on a rate of zero.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return (step as f64 + 1.0) / self.warmup as f64;
        }
        // How far, from 0 to 1, the step lies between `from` and the end.
        let progress = |from: u64| {
            let span = steps.saturating_sub(from).max(1) as f64;
            (step.saturating_sub(from) as f64 / span).clamp(0.0, 1.0)
        };
        let down_to_min = |height: f64| self.min_ratio + (1.0 - self.min_ratio) * height;
        match self.name {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => down_to_min(1.0 - progress(self.warmup)),
            ScheduleKind::Cosine => {
                let angle = std::f64::consts::PI * progress(self.warmup);
                down_to_min(0.5 * (1.0 + angle.cos()))
            }
            ScheduleKind::Wsd => {
                let from = steps - self.decay_steps(steps);
                down_to_min(1.0 - progress(from))
            }
            ScheduleKind::InverseSqrt => {
                let warmup = self.warmup.max(1) as f64;
                (warmup / (step as f64 + 1.0)).sqrt().min(1.0)
            }
        }
    }

    /// How many steps at the end of a run wsd decays.
    pub fn decay_steps(&self, steps: u64) -> u64 {
        ((steps as f64 * self.decay_fraction).round() as u64).min(steps)
    }
}

/// Whether fast weights pass from a step to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carry {
    /// Every sequence starts from the initial state.
    None,
    /// A sequence starts from where its row ended in the step before; no gradient passes.
    Detached,
}

/// What a loss or gradient that is not finite does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNonfinite {
    /// Ends the run.
    Stop,
    /// Leaves the step out.
    Skip {
        /// After this many such steps in a row the run ends all the same.
        max_consecutive: u64,
    },
}

/// The type of parameters and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32-bit floats.
    Float32,
    /// 64-bit floats, for checking.
    Float64,
}

/// Evaluation during training (`[eval]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalSettings {
    /// Steps between evaluations; 0 evaluates at the end only.
    pub every: u64,
    /// Sequences in a batch.
    pub batch_size: usize,
}

/// When a run ends before its last step (`[stop]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopSettings {
    /// An evaluation loss that is good enough.
    pub eval_loss_at_most: Option<f64>,
    /// The run stops when this many evaluations in a row brought no new best loss; 0 never.
    pub patience: u64,
    /// A value of another metric that is good enough.
    #[serde(default)]
    pub target: Option<Target>,
}

/// A metric with the bounds between which a run is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The metric by its name in `metrics.jsonl`.
    pub metric: String,
    /// Good enough is this value or less.
    pub at_most: Option<f64>,
    /// Good enough is this value or more.
    pub at_least: Option<f64>,
}

impl Target {
    /// Whether a value is good enough.
    pub fn reached(&self, value: f64) -> bool {
        within(value, self.at_most, self.at_least)
    }
}

/// Whether a value is finite and within its bounds.
fn within(value: f64, at_most: Option<f64>, at_least: Option<f64>) -> bool {
    value.is_finite() && at_most.is_none_or(|bound| value <= bound) && at_least.is_none_or(|bound| value >= bound)
}

/// What is kept on disk (`[checkpoint]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSettings {
    /// Steps between checkpoints; 0 writes one at the end and on interruption only.
    pub every: u64,
    /// How many of the newest are kept.
    pub keep: usize,
    /// Whether the one with the best evaluation loss is kept, too.
    pub keep_best: bool,
}

/// What is written while training (`[monitor]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorSettings {
    /// Steps between records of training metrics.
    pub log_every: u64,
    /// Whether TensorBoard events are written.
    pub tensorboard: bool,
    /// Steps between histograms; 0 writes none.
    pub histograms_every: u64,
    /// Steps between images of the fast weights; 0 writes none.
    pub images_every: u64,
}

/// What was published, and what a recipe must reach (`[expect]`). There is one of these at least: a bound, or the published value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The metric by its name in `metrics.jsonl`.
    pub metric: String,
    /// The value in the paper or its logs.
    pub published: Option<f64>,
    /// The run passes with this value or less.
    pub at_most: Option<f64>,
    /// The run passes with this value or more.
    pub at_least: Option<f64>,
    /// Where the published value stands.
    pub note: Option<String>,
}

impl Expect {
    /// Whether a measured value is within the bounds; a value that is not finite never is.
    pub fn passes(&self, value: f64) -> bool {
        within(value, self.at_most, self.at_least)
    }

    /// Whether a run is judged at all, or its value only reported beside the published one.
    pub fn judges(&self) -> bool {
        self.at_most.is_some() || self.at_least.is_some()
    }

    /// Whether more of the metric is better, as of accuracies; not of losses and errors.
    pub fn more_is_better(&self) -> bool {
        more_is_better(&self.metric)
    }
}

/// Whether more of a metric is better, as of accuracies; not of losses and errors.
pub fn more_is_better(metric: &str) -> bool {
    metric.ends_with("accuracy")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(name: ScheduleKind, warmup: u64) -> Schedule {
        Schedule { name, warmup, min_ratio: 0.1, decay_fraction: 0.2 }
    }

    #[test]
    fn schedules_follow_their_definitions() {
        use ScheduleKind::*;
        for (name, step, want) in [
            (Constant, 0, 0.1),
            (Constant, 9, 1.0),
            (Constant, 99, 1.0),
            (Linear, 10, 1.0),
            (Linear, 55, 0.55),
            (Linear, 100, 0.1),
            (Cosine, 10, 1.0),
            (Cosine, 55, 0.55),
            (Cosine, 100, 0.1),
            (Wsd, 79, 1.0),
            (Wsd, 80, 1.0),
            (Wsd, 90, 0.55),
            (Wsd, 100, 0.1),
            (InverseSqrt, 9, 1.0),
            (InverseSqrt, 39, 0.5),
            (InverseSqrt, 999, 0.1),
        ] {
            let got = schedule(name, 10).factor(step, 100);
            assert!((got - want).abs() < 1e-12, "{name:?} {step}: {got}");
        }
    }

    #[test]
    fn schedules_stay_between_zero_and_one_at_odd_settings() {
        use ScheduleKind::*;
        for name in [Constant, Linear, Cosine, Wsd, InverseSqrt] {
            for warmup in [0, 1, 5] {
                for steps in [1, 2, 5, 7] {
                    for decay_fraction in [0.0, 0.1, 1.0] {
                        let schedule = Schedule { decay_fraction, ..schedule(name, warmup) };
                        for step in (0..=2 * steps).chain([u64::MAX - 1]) {
                            let factor = schedule.factor(step, steps);
                            assert!((0.0..=1.0).contains(&factor), "{schedule:?} {step}");
                            assert!(factor > 0.0);
                        }
                    }
                }
            }
        }
    }
}
