//! Tasks whose samples are sequences of symbols with targets at some of the positions.
//!
//! Such a task says how one sequence is made; batches, padding, training sets of fixed size and
//! evaluation sets are the same for all and are here.
//!
//! **Slow net.** Input `tokens` along `time`, output `logits` along `time`: the next task's nets are
//! those of `text`.
//!
//! **Length.** The rows of a batch are padded at their end to a common length, which is the longest
//! row's, rounded up to a multiple of [`ROUND`] and at most the longest that the task makes.
//! The padding has weight 0, and nets that are causal never see it before a scored position.
//!
//! **Training sets.** Without a size, every row is a new sequence.
//! With a size N there are N sequences, each a function of `(seed, number)`, and every row is one of
//! them, drawn with replacement: a row must not depend on the size of the batch, and epochs do.

use crate::data::{Batch, Loss, Metric, Port, Task, TaskIo};
use crate::draw::{Draw, Purpose};
use crate::schema::{Default, KeyInfo, Kind};

/// Lengths of batches are multiples of this, so that there are not too many different ones.
const ROUND: usize = 16;

/// A position without a target.
pub(crate) const UNSCORED: i64 = -1;

/// One sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// The input symbols.
    pub(crate) tokens: Vec<i64>,
    /// The target at each position, or [`UNSCORED`].
    pub(crate) targets: Vec<i64>,
}

impl Sequence {
    /// A sequence with one target, at its last position.
    pub(crate) fn answered(tokens: Vec<i64>, target: i64) -> Self {
        let mut targets = vec![UNSCORED; tokens.len()];
        if let Some(last) = targets.last_mut() {
            *last = target;
        }
        Self { tokens, targets }
    }
}

/// Makes one sequence from random draws.
type Make = Box<dyn Fn(&mut Draw) -> Sequence + Send + Sync>;

/// Sequences of one kind: a training set or an evaluation set, or one of several.
pub(crate) struct Part {
    /// Its name, where there are several.
    pub(crate) name: String,
    /// How many sequences it has; `None` means always new ones.
    pub(crate) sequences: Option<usize>,
    /// The longest sequence.
    pub(crate) max_len: usize,
    make: Make,
}

impl Part {
    pub(crate) fn new(
        name: impl Into<String>,
        sequences: Option<usize>,
        max_len: usize,
        make: impl Fn(&mut Draw) -> Sequence + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), sequences, max_len, make: Box::new(make) }
    }
}

/// The sizes of alphabets and what an evaluation measures.
pub(crate) struct Shape {
    /// Input symbols; symbol 0 pads.
    pub(crate) vocab: usize,
    /// Different targets.
    pub(crate) classes: usize,
    /// What an evaluation gives beside the loss.
    pub(crate) metrics: Vec<Metric>,
}

/// A task of sequences.
pub(crate) struct Sequences {
    io: TaskIo,
    metrics: Vec<Metric>,
    train: Vec<Part>,
    /// Each has a size.
    eval: Vec<Part>,
    summary: String,
    fingerprint: String,
}

impl Sequences {
    /// `summary` is what [`Task::describe`] says; `fingerprint` is equal exactly for equal parts.
    pub(crate) fn new(shape: Shape, train: Vec<Part>, eval: Vec<Part>, summary: String, fingerprint: String) -> Self {
        let max_len = train.iter().chain(&eval).map(|p| p.max_len).max().unwrap_or_default();
        let io = TaskIo {
            inputs: vec![Port::symbols("tokens", "time", shape.vocab)],
            outputs: vec![Port::vectors("logits", "time", shape.classes)],
            values: shape.classes,
            max_len,
        };
        Self { io, metrics: shape.metrics, train, eval, summary, fingerprint }
    }

    /// Which training part a batch is from: the larger ones more often.
    fn train_part(&self, seed: u64, step: u64, micro: u64) -> usize {
        if self.train.len() < 2 {
            return 0;
        }
        let sizes: Vec<u64> = self.train.iter().map(|p| p.sequences.unwrap_or(1) as u64).collect();
        Draw::at(seed, Purpose::Layout, step, micro, 0).weighted(&sizes, sizes.iter().sum())
    }

    /// The part of an evaluation batch, and the number of its first sequence there.
    fn eval_place(&self, mut index: usize, batch_size: usize) -> Option<(usize, usize)> {
        for (set, part) in self.eval.iter().enumerate() {
            let batches = part.sequences.unwrap_or_default().div_ceil(batch_size);
            if index < batches {
                return Some((set, index * batch_size));
            }
            index -= batches;
        }
        None
    }
}

/// Rows of different lengths as one batch.
fn batch(rows: &[Sequence], max_len: usize, set: usize) -> Batch {
    let longest = rows.iter().map(|r| r.tokens.len()).max().unwrap_or_default();
    let length = longest.next_multiple_of(ROUND).min(max_len).max(longest);
    let places = rows.len() * length;
    let (mut tokens, mut targets, mut weights) =
        (Vec::with_capacity(places), Vec::with_capacity(places), Vec::with_capacity(places));
    for (row, sequence) in rows.iter().enumerate() {
        tokens.extend(&sequence.tokens);
        targets.extend(sequence.targets.iter().map(|t| (*t).max(0)));
        weights.extend(sequence.targets.iter().map(|t| if *t == UNSCORED { 0.0 } else { 1.0 }));
        tokens.resize((row + 1) * length, 0);
        targets.resize((row + 1) * length, 0);
        weights.resize((row + 1) * length, 0.0);
    }
    Batch {
        size: rows.len(),
        tokens: rows.iter().map(|r| r.tokens.len()).sum(),
        inputs: vec![("tokens".into(), tokens, vec![rows.len(), length])],
        targets,
        target_shape: vec![rows.len(), length],
        weights: weights.contains(&0.0).then_some(weights),
        resets: None,
        set,
    }
}

impl Task for Sequences {
    fn io(&self) -> &TaskIo {
        &self.io
    }

    fn loss(&self) -> Loss {
        Loss::CrossEntropy
    }

    fn output_name(&self) -> &str {
        "logits"
    }

    fn metrics(&self) -> Vec<Metric> {
        self.metrics.clone()
    }

    fn eval_sets(&self) -> Vec<String> {
        if self.eval.len() < 2 { Vec::new() } else { self.eval.iter().map(|p| p.name.clone()).collect() }
    }

    fn train_batch(&self, seed: u64, step: u64, micro: u64, batch_size: usize) -> Batch {
        let number = self.train_part(seed, step, micro);
        let part = &self.train[number];
        let row = |row: u64| {
            let mut draw = Draw::at(seed, Purpose::Train, step, micro, row);
            if let Some(size) = part.sequences {
                draw = Draw::at(seed, Purpose::TrainSet, draw.below(size) as u64, number as u64, 0);
            }
            (part.make)(&mut draw)
        };
        let rows: Vec<Sequence> = (0..batch_size as u64).map(row).collect();
        batch(&rows, part.max_len, 0)
    }

    fn eval_len(&self, batch_size: usize) -> usize {
        self.eval.iter().map(|p| p.sequences.unwrap_or_default().div_ceil(batch_size.max(1))).sum()
    }

    fn eval_batch(&self, seed: u64, index: usize, batch_size: usize) -> Batch {
        let size = batch_size.max(1);
        let Some((set, first)) = self.eval_place(index, size) else {
            return batch(&[], 0, 0);
        };
        let part = &self.eval[set];
        let last = (first + size).min(part.sequences.unwrap_or_default());
        let row = |i: usize| (part.make)(&mut Draw::at(seed, Purpose::Eval, i as u64, set as u64, 0));
        let rows: Vec<Sequence> = (first..last).map(row).collect();
        batch(&rows, part.max_len, set)
    }

    fn describe(&self) -> String {
        let eval: usize = self.eval.iter().filter_map(|p| p.sequences).sum();
        let train = match self.train.iter().map(|p| p.sequences).sum::<Option<usize>>() {
            Some(size) => format!("trained on {size} sequences"),
            None => "every training sequence new".into(),
        };
        format!("{}; {train}, evaluated on {eval}", self.summary)
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// The key of the size of a training set; `default` where the paper has one.
pub(crate) const fn train_sequences(default: Default) -> KeyInfo {
    KeyInfo {
        name: "train_sequences",
        kind: Kind::Integer { min: 0, max: 1_000_000_000_000 },
        default,
        doc: "size of the training set, from which rows are drawn with replacement; 0: every row is new",
    }
}

/// The key of the size of an evaluation set.
pub(crate) const fn eval_sequences(default: i64) -> KeyInfo {
    KeyInfo {
        name: "eval_sequences",
        kind: Kind::Integer { min: 1, max: 100_000_000 },
        default: Default::Integer(default),
        doc: "how many sequences an evaluation has, in each of its sets",
    }
}

/// The size of a training set as its key gives it.
pub(crate) fn size_of_set(sequences: usize) -> Option<usize> {
    (sequences > 0).then_some(sequences)
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the tests of all tasks of sequences have in common.

    use super::*;

    /// One row of a batch: its tokens, and its targets where they are scored.
    pub(crate) fn rows(batch: &Batch) -> Vec<Sequence> {
        let length = batch.target_shape[1];
        assert_eq!(batch.inputs[0].2, batch.target_shape);
        let ones = vec![1.0; batch.targets.len()];
        let weights = batch.weights.as_ref().unwrap_or(&ones);
        let scored = |(t, w): (&i64, &f32)| if *w > 0.0 { *t } else { UNSCORED };
        let targets: Vec<i64> = batch.targets.iter().zip(weights).map(scored).collect();
        let tokens = batch.inputs[0].1.chunks(length);
        tokens.zip(targets.chunks(length)).map(|(a, b)| Sequence { tokens: a.into(), targets: b.into() }).collect()
    }

    /// The rows of the first training steps and of a whole evaluation, with the evaluation set.
    pub(crate) fn samples(task: &dyn Task) -> Vec<(Option<usize>, Sequence)> {
        let train = (0..8).flat_map(|step| rows(&task.train_batch(5, step, 0, 64)));
        let mut found: Vec<_> = train.map(|row| (None, row)).collect();
        for index in 0..task.eval_len(32) {
            let batch = task.eval_batch(5, index, 32);
            found.extend(rows(&batch).into_iter().map(|row| (Some(batch.set), row)));
        }
        found
    }

    /// What every task of sequences keeps to.
    pub(crate) fn keeps_the_rules(task: &dyn Task) {
        let vocab = match task.io().inputs[0].kind {
            crate::PortKind::Symbol { vocab } => vocab as i64,
            crate::PortKind::Vector { .. } => panic!("symbols"),
        };
        let classes = task.io().values as i64;
        // Rows do not depend on the size of the batch, batches on nothing but their place.
        let without_padding = |mut rows: Vec<Sequence>| {
            for row in &mut rows {
                let end = row.targets.iter().rposition(|t| *t != UNSCORED).map_or(0, |p| p + 1);
                row.tokens.truncate(end);
                row.targets.truncate(end);
            }
            rows
        };
        let small = task.train_batch(1, 7, 2, 3);
        let large = task.train_batch(1, 7, 2, 16);
        assert_eq!(small, task.train_batch(1, 7, 2, 3));
        assert_eq!(without_padding(rows(&small)), without_padding(rows(&large))[..3]);
        for other in [task.train_batch(2, 7, 2, 3), task.train_batch(1, 8, 2, 3), task.train_batch(1, 7, 3, 3)] {
            assert_ne!(small, other);
        }
        let all = |size: usize| {
            let batches = (0..task.eval_len(size)).map(|i| task.eval_batch(1, i, size));
            batches.flat_map(|b| rows(&b).into_iter().map(move |r| (b.set, r))).collect::<Vec<_>>()
        };
        let strip = |list: Vec<(usize, Sequence)>| {
            let (sets, list): (Vec<_>, Vec<_>) = list.into_iter().unzip();
            (sets, without_padding(list))
        };
        assert_eq!(strip(all(5)), strip(all(32)));
        assert_ne!(task.eval_batch(1, 0, 5), task.eval_batch(2, 0, 5));
        assert_eq!(task.eval_batch(1, task.eval_len(5), 5).size, 0);
        assert_eq!(task.train_batch(0, u64::MAX, u64::MAX, 0).size, 0);
        // What is asked for fits what was declared, and every sequence asks for something.
        let sets = task.eval_sets().len().max(1);
        for (set, row) in samples(task) {
            assert!(row.tokens.len() <= task.io().max_len && set.is_none_or(|s| s < sets));
            assert!(row.tokens.iter().all(|t| (0..vocab).contains(t)));
            assert!(row.targets.iter().all(|t| (UNSCORED..classes).contains(t)));
            assert!(row.targets.iter().any(|t| *t != UNSCORED));
        }
        assert!(!task.describe().is_empty() && !task.metrics().is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::testing::rows;
    use super::*;

    /// Sequences of 1 to 20 symbols, the answer their number.
    fn task(train: Vec<Option<usize>>, eval: Vec<usize>) -> Sequences {
        let part = |sequences| {
            Part::new("part", sequences, 20, |draw: &mut Draw| {
                let n = draw.between(1, 20);
                Sequence::answered(draw.with_replacement(n, 9), n as i64)
            })
        };
        let shape = Shape { vocab: 9, classes: 21, metrics: vec![Metric::Accuracy] };
        let train = train.into_iter().map(part).collect();
        Sequences::new(shape, train, eval.into_iter().map(|n| part(Some(n))).collect(), "toy".into(), "toy".into())
    }

    #[test]
    fn rows_are_padded_and_padding_is_not_scored() {
        let task = task(vec![None], vec![10]);
        testing::keeps_the_rules(&task);
        for step in 0..20 {
            let batch = task.train_batch(1, step, 0, 4);
            let longest = *batch.targets.iter().max().unwrap() as usize;
            assert_eq!(batch.target_shape[1], if longest <= 16 { 16 } else { 20 });
            assert_eq!(batch.tokens as i64, batch.targets.iter().sum::<i64>());
            for row in rows(&batch) {
                let n = row.targets.iter().position(|t| *t != UNSCORED).unwrap();
                assert_eq!(row.targets[n], n as i64 + 1);
                assert!(row.targets[n + 1..].iter().all(|t| *t == UNSCORED) && row.tokens[n + 1..].iter().all(|t| *t == 0));
            }
        }
    }

    #[test]
    fn a_training_set_has_its_size() {
        let task = task(vec![Some(40)], vec![10]);
        let mut seen = std::collections::BTreeSet::new();
        for step in 0..50 {
            for mut row in rows(&task.train_batch(1, step, 0, 20)) {
                row.tokens.truncate(*row.targets.iter().max().unwrap() as usize);
                seen.insert(row.tokens);
            }
        }
        // One- and two-symbol sequences may be there twice.
        assert!((35..=40).contains(&seen.len()), "{}", seen.len());
    }

    #[test]
    fn parts_are_met_by_their_size_and_sets_in_order() {
        let task = task(vec![Some(30), Some(10)], vec![5, 7]);
        let first = (0..4000).filter(|s| task.train_part(1, *s, 0) == 0).count();
        assert!((2900..3100).contains(&first), "{first}");
        assert_eq!(task.eval_sets().len(), 2);
        let sets: Vec<(usize, usize)> =
            (0..task.eval_len(4)).map(|i| task.eval_batch(1, i, 4)).map(|b| (b.set, b.size)).collect();
        assert_eq!(sets, [(0, 4), (0, 1), (1, 4), (1, 3)]);
    }
}
