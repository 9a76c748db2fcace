//! Associative retrieval with a fixed set of keys: `associative-capacity` and
//! `associative-update` (Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, sections 6.1.1 and
//! 6.1.2).
//!
//! A sequence is L pairs of a key and a value, both out of S symbols; then a key is queried and
//! its value must be returned, as a one-hot vector in R^S.
//!
//! | | capacity (the paper's setting 1) | update (setting 2) |
//! |---|---|---|
//! | keys and values are drawn | without replacement | with replacement |
//! | L in training | S | 2 S |
//! | the answer | the key's only value | the value of the key's last occurrence |
//! | the query in training | the key of a random position | the same: frequent keys are asked more |
//!
//! Evaluation draws `eval_sequences` sequences and asks each for every key that occurs in it,
//! once, in ascending order, at most the first 200.
//! The authors' program splits these queries into batches of 32 and reports the plain mean over
//! all batch means, so that each query of a smaller last batch counts for more; the weights here
//! say the same.
//! The authors' program evaluates the update task on sequences of length S, not 2 S; so does the
//! default of `eval_length`.

use serde::{Deserialize, Serialize};

use crate::data::{Batch, Loss, Port, Task, TaskIo};
use crate::draw::{Draw, Purpose};
use crate::registry::{Checked, Spec, TaskError, TaskInfo, size};
use crate::schema::{Default, KeyError, KeyInfo, Kind, Value};

/// How many queries of an evaluation sequence are asked at most.
const MAX_QUERIES: usize = 200;
/// The size of the batches of queries whose means are averaged.
const QUERY_BATCH: usize = 32;

const KEYS: KeyInfo = KeyInfo {
    name: "keys",
    kind: Kind::Integer { min: 1, max: 65_536 },
    default: Default::Required,
    doc: "the number S of keys, and of values",
};
const EVAL_SEQUENCES: KeyInfo = KeyInfo {
    name: "eval_sequences",
    kind: Kind::Integer { min: 1, max: 1_000_000 },
    default: Default::Integer(20),
    doc: "how many sequences an evaluation draws; each is asked for all its keys (at most 200)",
};

const CAPACITY: TaskInfo = TaskInfo {
    name: "associative-capacity",
    doc: "S different keys with S different values, then one key is asked (Schlag et al. 2021, setting 1)",
    keys: &[KEYS, EVAL_SEQUENCES],
};

const UPDATE: TaskInfo = TaskInfo {
    name: "associative-update",
    doc: "keys come again with other values; the last value counts (Schlag et al. 2021, setting 2)",
    keys: &[
        KEYS,
        KeyInfo {
            name: "length",
            kind: Kind::Integer { min: 1, max: 16_777_216 },
            default: Default::Derived("2 * keys"),
            doc: "the number L of pairs in a training sequence",
        },
        KeyInfo {
            name: "eval_length",
            kind: Kind::Integer { min: 1, max: 16_777_216 },
            default: Default::Derived("keys, as the authors' released code does"),
            doc: "the number of pairs in an evaluation sequence",
        },
        EVAL_SEQUENCES,
    ],
};

/// The configuration of `associative-capacity`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacitySpec {
    /// The number S of keys, of values, and of pairs in a sequence.
    pub keys: usize,
    /// How many sequences an evaluation draws.
    pub eval_sequences: usize,
}

/// The configuration of `associative-update`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateSpec {
    /// The number S of keys, and of values.
    pub keys: usize,
    /// The number of pairs in a training sequence.
    pub length: usize,
    /// The number of pairs in an evaluation sequence.
    pub eval_length: usize,
    /// How many sequences an evaluation draws.
    pub eval_sequences: usize,
}

impl Spec for CapacitySpec {
    const INFO: TaskInfo = CAPACITY;

    fn read(table: &Checked) -> Result<Self, KeyError> {
        Ok(Self { keys: table.size("keys"), eval_sequences: table.size("eval_sequences") })
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        vec![("keys", size(self.keys)), ("eval_sequences", size(self.eval_sequences))]
    }

    fn max_len(&self) -> usize {
        self.keys
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        Ok(Box::new(Associative::capacity(self)))
    }
}

impl Spec for UpdateSpec {
    const INFO: TaskInfo = UPDATE;

    fn read(table: &Checked) -> Result<Self, KeyError> {
        let keys = table.size("keys");
        Ok(Self {
            keys,
            length: table.optional_size("length").unwrap_or(2 * keys),
            eval_length: table.optional_size("eval_length").unwrap_or(keys),
            eval_sequences: table.size("eval_sequences"),
        })
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("keys", size(self.keys)),
            ("length", size(self.length)),
            ("eval_length", size(self.eval_length)),
            ("eval_sequences", size(self.eval_sequences)),
        ]
    }

    fn max_len(&self) -> usize {
        self.length.max(self.eval_length)
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        Ok(Box::new(Associative::update(self)))
    }
}

/// Both retrieval tasks: they differ in how keys and values are drawn.
pub(crate) struct Associative {
    io: TaskIo,
    name: &'static str,
    symbols: usize,
    length: usize,
    eval_length: usize,
    eval_sequences: usize,
    replacement: bool,
}

impl Associative {
    pub(crate) fn capacity(spec: &CapacitySpec) -> Self {
        Self::new(CAPACITY.name, spec.keys, spec.keys, spec.keys, spec.eval_sequences, false)
    }

    pub(crate) fn update(spec: &UpdateSpec) -> Self {
        Self::new(UPDATE.name, spec.keys, spec.length, spec.eval_length, spec.eval_sequences, true)
    }

    fn new(
        name: &'static str,
        symbols: usize,
        length: usize,
        eval_length: usize,
        eval_sequences: usize,
        replacement: bool,
    ) -> Self {
        Self {
            io: TaskIo {
                inputs: vec![
                    Port::symbols("keys", "pairs", symbols),
                    Port::symbols("values", "pairs", symbols),
                    Port::symbols("query", "query", symbols),
                ],
                outputs: vec![Port::vectors("value", "query", symbols)],
                values: symbols,
                max_len: length.max(eval_length),
            },
            name,
            symbols,
            length,
            eval_length,
            eval_sequences,
            replacement,
        }
    }

    /// The keys and values of one sequence.
    fn sequence(&self, draw: &mut Draw, length: usize) -> (Vec<i64>, Vec<i64>) {
        if self.replacement {
            let keys = draw.with_replacement(length, self.symbols);
            let values = draw.with_replacement(length, self.symbols);
            (keys, values)
        } else {
            (draw.permutation(self.symbols), draw.permutation(self.symbols))
        }
    }

    fn batch(
        &self,
        size: usize,
        (keys, values): (Vec<i64>, Vec<i64>),
        (queries, targets): (Vec<i64>, Vec<i64>),
        weights: Option<Vec<f32>>,
    ) -> Batch {
        // `max(1)`: an empty batch has no extent to divide, and must not panic.
        let pairs = [size, keys.len() / size.max(1)];
        let asked = [size, queries.len() / size.max(1)];
        Batch {
            size,
            tokens: keys.len(),
            inputs: vec![
                ("keys".into(), keys, pairs.to_vec()),
                ("values".into(), values, pairs.to_vec()),
                ("query".into(), queries, asked.to_vec()),
            ],
            targets,
            target_shape: asked.to_vec(),
            weights,
            resets: None,
            set: 0,
        }
    }
}

impl Task for Associative {
    fn io(&self) -> &TaskIo {
        &self.io
    }

    fn loss(&self) -> Loss {
        Loss::HalfSquaredError
    }

    fn output_name(&self) -> &str {
        "value"
    }

    fn train_batch(&self, seed: u64, step: u64, micro: u64, batch_size: usize) -> Batch {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let (mut queries, mut targets) = (Vec::new(), Vec::new());
        for row in 0..batch_size {
            let mut draw = Draw::at(seed, Purpose::Train, step, micro, row as u64);
            let (k, v) = self.sequence(&mut draw, self.length);
            let key = k[draw.below(k.len())];
            targets.push(last_value(&k, &v, key));
            queries.push(key);
            keys.extend(k);
            values.extend(v);
        }
        self.batch(batch_size, (keys, values), (queries, targets), None)
    }

    fn eval_len(&self, _batch_size: usize) -> usize {
        self.eval_sequences
    }

    /// One sequence with all its queries, whatever the batch size: the state is written once and
    /// read for every query.
    fn eval_batch(&self, seed: u64, index: usize, _batch_size: usize) -> Batch {
        if index >= self.eval_sequences {
            return self.batch(0, (vec![], vec![]), (vec![], vec![]), None);
        }
        let mut draw = Draw::at(seed, Purpose::Eval, index as u64, 0, 0);
        let (keys, values) = self.sequence(&mut draw, self.eval_length);
        let mut queries = keys.clone();
        queries.sort_unstable();
        queries.dedup();
        queries.truncate(MAX_QUERIES);
        let targets = queries.iter().map(|q| last_value(&keys, &values, *q)).collect();
        let weights =
            queries.chunks(QUERY_BATCH).flat_map(|part| std::iter::repeat_n(1.0 / part.len() as f32, part.len())).collect();
        self.batch(1, (keys, values), (queries, targets), Some(weights))
    }

    fn describe(&self) -> String {
        format!(
            "{}: {} keys, {} pairs a sequence, evaluated on {} sequences of {} pairs",
            self.name, self.symbols, self.length, self.eval_sequences, self.eval_length
        )
    }

    fn fingerprint(&self) -> String {
        format!(
            "{} v1 keys={} length={} eval_length={} eval_sequences={}",
            self.name, self.symbols, self.length, self.eval_length, self.eval_sequences
        )
    }
}

/// The value that stands beside the last occurrence of a key.
fn last_value(keys: &[i64], values: &[i64], key: i64) -> i64 {
    let last = keys.iter().rposition(|k| *k == key).unwrap_or_default();
    values[last]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn capacity(keys: usize) -> Associative {
        Associative::capacity(&CapacitySpec { keys, eval_sequences: 20 })
    }

    fn update(keys: usize) -> Associative {
        Associative::update(&UpdateSpec { keys, length: 2 * keys, eval_length: keys, eval_sequences: 20 })
    }

    /// The rows of an input, by name.
    fn rows<'a>(batch: &'a Batch, name: &str) -> Vec<&'a [i64]> {
        let (_, data, shape) = batch.inputs.iter().find(|i| i.0 == name).unwrap();
        assert_eq!(data.len(), shape.iter().product::<usize>());
        data.chunks(shape[1]).collect()
    }

    #[test]
    fn capacity_sequences_hold_every_key_and_value_once() {
        let batch = capacity(30).train_batch(1, 5, 0, 64);
        assert_eq!(batch.tokens, 64 * 30);
        for row in 0..64 {
            for name in ["keys", "values"] {
                let mut symbols = rows(&batch, name)[row].to_vec();
                symbols.sort_unstable();
                assert_eq!(symbols, (0..30).collect::<Vec<_>>());
            }
            let (k, v) = (rows(&batch, "keys")[row], rows(&batch, "values")[row]);
            let asked = rows(&batch, "query")[row][0];
            let place = k.iter().position(|x| *x == asked).unwrap();
            assert_eq!(batch.targets[row], v[place]);
        }
        assert_eq!(batch.target_shape, [64, 1]);
        assert!(batch.weights.is_none() && batch.resets.is_none());
    }

    #[test]
    fn update_targets_are_the_last_value_written() {
        let mut overwritten = 0;
        for step in 0..50 {
            let batch = update(20).train_batch(1, step, 0, 32);
            for row in 0..32 {
                let (k, v) = (rows(&batch, "keys")[row], rows(&batch, "values")[row]);
                assert_eq!(k.len(), 40);
                let asked = rows(&batch, "query")[row][0];
                // An independent statement: write all pairs into a memory, in order.
                let mut memory = std::collections::HashMap::new();
                for (k, v) in k.iter().zip(v) {
                    if memory.insert(*k, *v).is_some_and(|old| old != *v) && *k == asked {
                        overwritten += 1;
                    }
                }
                assert_eq!(Some(&batch.targets[row]), memory.get(&asked));
            }
        }
        assert!(overwritten > 1000, "{overwritten}");
    }

    #[test]
    fn update_queries_follow_frequency() {
        // A key that stands n times among 40 is asked with probability n/40, so the expected
        // number of occurrences of the asked key is E[n^2]/E[n] = 1 + 39/20 = 2.95, against 2 and
        // about 2.3 for a key drawn uniformly from all, or from those present.
        let (mut seen, mut asked_rows) = (0, 0);
        for step in 0..200 {
            let batch = update(20).train_batch(2, step, 0, 32);
            for row in 0..32 {
                let asked = rows(&batch, "query")[row][0];
                seen += rows(&batch, "keys")[row].iter().filter(|k| **k == asked).count();
                asked_rows += 1;
            }
        }
        let mean = f64::from(seen as u32) / f64::from(asked_rows);
        assert!((mean - 2.95).abs() < 0.08, "{mean}");
    }

    #[test]
    fn evaluation_asks_each_present_key_once_in_order() {
        let task = update(20);
        assert_eq!(task.eval_len(32), 20);
        let mut present = 0;
        for index in 0..20 {
            let batch = task.eval_batch(1, index, 32);
            let keys = rows(&batch, "keys")[0];
            assert_eq!(keys.len(), 20, "evaluation draws sequences of length S");
            let asked: Vec<i64> = rows(&batch, "query")[0].to_vec();
            let unique: Vec<i64> = keys.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
            assert_eq!(asked, unique);
            assert_eq!(batch.target_shape, [1, asked.len()]);
            present += asked.len();
        }
        // 20 (1 - (1 - 1/20)^20) = 12.83 keys are present on average.
        let mean = present as f64 / 20.0;
        assert!((mean - 12.83).abs() < 1.0, "{mean}");
    }

    #[test]
    fn weights_reproduce_the_mean_over_query_batches() {
        for (keys, batches) in [(20, vec![20]), (60, vec![32, 28]), (600, vec![32, 32, 32, 32, 32, 32, 8])] {
            let task = capacity(keys);
            let (mut numerator, mut denominator) = (0.0, 0.0);
            let mut means = Vec::new();
            for index in 0..task.eval_len(7) {
                let batch = task.eval_batch(3, index, 7);
                let asked = rows(&batch, "query")[0];
                assert_eq!(asked.len(), keys.min(200));
                // Any per-query loss will do; this one differs between first and last batches.
                let losses: Vec<f64> =
                    asked.iter().zip(&batch.targets).map(|(q, t)| (*q as f64).sqrt() + 0.01 * *t as f64).collect();
                let mut rest = losses.as_slice();
                for size in &batches {
                    let (part, tail) = rest.split_at(*size);
                    means.push(part.iter().sum::<f64>() / *size as f64);
                    rest = tail;
                }
                for (loss, weight) in losses.iter().zip(batch.weights.unwrap()) {
                    numerator += loss * f64::from(weight);
                    denominator += f64::from(weight);
                }
            }
            let want = means.iter().sum::<f64>() / means.len() as f64;
            assert!((numerator / denominator - want).abs() < 1e-5 * want);
        }
    }

    #[test]
    fn batches_depend_on_their_place_only() {
        let task = update(20);
        let small = task.train_batch(1, 7, 2, 4);
        let large = task.train_batch(1, 7, 2, 32);
        assert_eq!(rows(&small, "keys"), rows(&large, "keys")[..4]);
        assert_eq!(small, task.train_batch(1, 7, 2, 4));
        for other in [task.train_batch(2, 7, 2, 4), task.train_batch(1, 8, 2, 4), task.train_batch(1, 7, 3, 4)] {
            assert_ne!(small, other);
        }
        assert_eq!(task.eval_batch(1, 3, 4), task.eval_batch(1, 3, 32));
        assert_ne!(task.eval_batch(1, 3, 4), task.eval_batch(1, 4, 4));
        assert_ne!(task.eval_batch(1, 3, 4), task.eval_batch(2, 3, 4));
    }

    #[test]
    fn odd_calls_give_empty_batches() {
        let task = capacity(1);
        assert_eq!(task.train_batch(0, u64::MAX, u64::MAX, 0).size, 0);
        assert_eq!(task.eval_batch(0, 20, 1).size, 0);
        assert_eq!(task.train_batch(0, 0, 0, 1).targets, [0]);
    }

    #[test]
    fn symbols_are_used_evenly() {
        let mut counts = vec![0_f64; 20];
        for step in 0..500 {
            for target in update(20).train_batch(4, step, 0, 32).targets {
                counts[target as usize] += 1.0;
            }
        }
        // 16,000 draws over 20 values; chi-square with 19 degrees of freedom, one in 1,000: 43.8.
        let chi: f64 = counts.iter().map(|c| (c - 800.0).powi(2) / 800.0).sum();
        assert!(chi < 43.8, "{counts:?}");
    }
}
