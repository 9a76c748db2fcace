//! What a task hands out: its inputs and outputs, its batches, and the trait itself.

use serde::{Deserialize, Serialize};

/// One named input or output of a task, as it is laid out in one sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// The name under which a slow net reads or serves it, such as `keys` or `logits`.
    pub name: String,
    /// The named sequence axis it runs along (`time`, `pairs`, `query`), or `None` for one value
    /// a sample.
    pub axis: Option<String>,
    /// What stands at each position.
    pub kind: PortKind,
}

/// What stands at one position of a [`Port`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PortKind {
    /// An integer symbol in `0..vocab`.
    Symbol {
        /// The number of different symbols.
        vocab: usize,
    },
    /// A vector of floats.
    Vector {
        /// The number of components.
        dim: usize,
    },
}

impl Port {
    /// A port of symbols along a named axis.
    pub(crate) fn symbols(name: &str, axis: &str, vocab: usize) -> Self {
        Self { name: name.into(), axis: Some(axis.into()), kind: PortKind::Symbol { vocab } }
    }

    /// A port of vectors along a named axis.
    pub(crate) fn vectors(name: &str, axis: &str, dim: usize) -> Self {
        Self { name: name.into(), axis: Some(axis.into()), kind: PortKind::Vector { dim } }
    }
}

/// The inputs that a slow net is given and the outputs that it must serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskIo {
    /// What each sample brings, in the order of [`Batch::inputs`].
    pub inputs: Vec<Port>,
    /// What the slow net must compute.
    pub outputs: Vec<Port>,
    /// The number of different targets: the size of the fixed one-hot value vocabulary, or of the
    /// text's alphabet.
    pub values: usize,
    /// The longest extent, in training or evaluation, of the axis that the fast weights are
    /// written along.
    pub max_len: usize,
}

/// How an output is compared with the target symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// `sum_j 1/2 (target_j - output_j)^2` with a one-hot target; the zero output gives 0.5.
    HalfSquaredError,
    /// The negative log-probability, in nats, of the target under the softmax of the output.
    CrossEntropy,
}

/// A number that an evaluation gives beside the loss.
///
/// A position is right when the largest output is that of its target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// `accuracy`: the weighted part of the scored positions that are right.
    Accuracy,
    /// `error`: the part that is wrong, in percent.
    Error,
    /// `scaled_accuracy`: `(accuracy - chance) / (1 - chance)`, 0 for guessing and 1 for no mistake.
    ScaledAccuracy {
        /// The accuracy of guessing.
        chance: f64,
    },
    /// `sequence_accuracy`: the part of the sequences of which every scored position is right.
    SequenceAccuracy,
    /// The accuracy on the positions whose target is another than the usual one.
    AccuracyBeside {
        /// Its name.
        name: &'static str,
        /// The target that is left out.
        usual: i64,
    },
}

/// What an evaluation counts, for [`Metric::value`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// `sum(weight)` over the positions that are right.
    pub right: f64,
    /// `sum(weight)`.
    pub weight: f64,
    /// Sequences of which every scored position is right.
    pub sequences_right: f64,
    /// Sequences with a scored position.
    pub sequences: f64,
    /// [`right`](Self::right) without the targets that [`Metric::AccuracyBeside`] leaves out.
    pub beside_right: f64,
    /// [`weight`](Self::weight) without them.
    pub beside_weight: f64,
}

impl Metric {
    /// Its name behind `eval/`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Error => "error",
            Self::ScaledAccuracy { .. } => "scaled_accuracy",
            Self::SequenceAccuracy => "sequence_accuracy",
            Self::AccuracyBeside { name, .. } => name,
        }
    }

    /// Its value; not a number where nothing was counted.
    pub fn value(&self, counts: &Counts) -> f64 {
        let accuracy = counts.right / counts.weight;
        match self {
            Self::Accuracy => accuracy,
            Self::Error => 100.0 * (1.0 - accuracy),
            Self::ScaledAccuracy { chance } => (accuracy - chance) / (1.0 - chance),
            Self::SequenceAccuracy => counts.sequences_right / counts.sequences,
            Self::AccuracyBeside { .. } => counts.beside_right / counts.beside_weight,
        }
    }
}

/// One batch. Arrays are row-major and their first axis is the batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The number of rows.
    pub size: usize,
    /// Name, symbols and shape (batch axis included) of each input, in the order of
    /// [`TaskIo::inputs`].
    pub inputs: Vec<(String, Vec<i64>, Vec<usize>)>,
    /// The target symbol of each output position.
    pub targets: Vec<i64>,
    /// The shape of [`targets`](Self::targets), batch axis included.
    pub target_shape: Vec<usize>,
    /// The weight of each target, in the shape of the targets; `None` means one everywhere.
    ///
    /// The loss of a batch is `sum(weight * loss) / sum(weight)`, and a metric over several
    /// batches is the same quotient of sums over all of them.
    /// A position of weight 0 is not scored: a host need not compute its output.
    pub weights: Option<Vec<f32>>,
    /// How many positions of real data (padding left out) the fast weights see, for speed and
    /// token counts.
    pub tokens: usize,
    /// For each row, whether it starts afresh (`true`) or continues where the same row of the
    /// same micro-batch ended in the batch before (`false`).
    ///
    /// `None` means that every row starts afresh. A host that carries state across batches
    /// returns it to the initial value before a row that says `true`.
    pub resets: Option<Vec<bool>>,
    /// In an evaluation, which of [`Task::eval_sets`] the batch is from; 0 otherwise.
    pub set: usize,
}

/// A task: a source of batches, each a function of its place alone (see the crate's opening).
pub trait Task: Send + Sync {
    /// The inputs and outputs that a slow net must serve.
    fn io(&self) -> &TaskIo;

    /// How outputs are compared with targets.
    fn loss(&self) -> Loss;

    /// The name of the output that the targets belong to.
    fn output_name(&self) -> &str;

    /// The training batch of micro-batch `micro` of step `step`, both counted from 0.
    ///
    /// It has exactly `batch_size` rows.
    fn train_batch(&self, seed: u64, step: u64, micro: u64, batch_size: usize) -> Batch;

    /// The number of evaluation batches.
    fn eval_len(&self, batch_size: usize) -> usize;

    /// Evaluation batch `index`, which depends on the seed only; never on the step.
    ///
    /// A batch past [`eval_len`](Self::eval_len) is empty (`size` 0).
    /// The metric is `sum(weight * loss) / sum(weight)` over all batches.
    fn eval_batch(&self, seed: u64, index: usize, batch_size: usize) -> Batch;

    /// What an evaluation gives beside the loss.
    fn metrics(&self) -> Vec<Metric> {
        vec![Metric::Accuracy]
    }

    /// The names of the sets that an evaluation consists of, where there are several.
    ///
    /// Loss and metrics are given for each of them, as `eval/SET/METRIC`, beside those over all.
    fn eval_sets(&self) -> Vec<String> {
        Vec::new()
    }

    /// One line for a person: what is learnt, and from how much data.
    fn describe(&self) -> String;

    /// A text that is equal for two tasks exactly when they make the same batches.
    ///
    /// A run records it, so that resuming with other data is noticed.
    fn fingerprint(&self) -> String;
}

/// The seed of a run's test set: sequences by which nothing of the run was chosen, neither a checkpoint nor its end.
pub fn test_seed(seed: u64) -> u64 {
    // Far from all seeds that people give.
    !seed
}

/// The names under which an evaluation of a task gives its numbers: `eval/loss` and the metrics over
/// all, then those of each set.
pub fn metric_names(task: &dyn Task) -> Vec<String> {
    let sets = task.eval_sets();
    let prefixes = std::iter::once("eval/".to_string()).chain(sets.iter().map(|set| format!("eval/{set}/")));
    let metrics = task.metrics();
    prefixes
        .flat_map(|prefix| {
            let names = std::iter::once("loss").chain(metrics.iter().map(Metric::name));
            names.map(|name| format!("{prefix}{name}")).collect::<Vec<_>>()
        })
        .collect()
}
