//! `mqar`: several keys are asked again, in one pass (Arora et al. 2023, Zoology, arXiv 2312.04927).
//!
//! The first 2n tokens are n different keys, each followed by its value: `k1 v1 ... kn vn`.
//! After them each key comes once more, at an even offset 2 g from the end of the pairs; its
//! position is to give the value, and only these n positions are scored.
//! The offsets g are drawn without replacement from `0..(length - 2n) / 2`, offset g with a weight
//! of `(g + 1)^(a - 1)`, so that most keys are asked soon.
//! Other positions are 0, or random symbols with `random_non_queries`.
//!
//! Keys are 1 to V/2 - 1, values V/2 to V - 1.
//! Each sequence draws its keys without replacement, and its values, too.
//!
//! Several sizes are trained on together: every batch is of one size, the sizes with more
//! sequences more often. Every size of the evaluation is a set of its own, such as `256x16`.

use serde::{Deserialize, Serialize};

use crate::data::{Metric, Task};
use crate::draw::Draw;
use crate::registry::{Checked, Spec, TaskError, TaskInfo, fingerprint, size};
use crate::schema::{Default, KeyError, KeyInfo, Kind, Value};
use crate::sequence::{Part, Sequence, Sequences, Shape, UNSCORED, size_of_set};

/// The longest sequence.
const MAX_LENGTH: usize = 1 << 20;

/// The configuration of `mqar`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqarSpec {
    /// The training sets: `LENGTHxPAIRS:SEQUENCES` each, with blanks between them.
    pub train: String,
    /// The evaluation sets, in the same form.
    pub eval: String,
    /// The number V of symbols.
    pub vocab: usize,
    /// The exponent a of the offsets' weights.
    pub power: f64,
    /// Whether positions that are neither pairs nor queries hold random symbols.
    pub random_non_queries: bool,
}

const TRAIN_SEQUENCES: usize = 100_000;
const EVAL_SEQUENCES: usize = 3_000;

/// One size of sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    length: usize,
    pairs: usize,
    sequences: usize,
}

impl Size {
    /// Reads `64x4` or `64x4:100000`.
    fn read(text: &str, sequences: usize) -> Option<Self> {
        let (size, count) = text.split_once(':').map_or((text, None), |(a, b)| (a, Some(b)));
        let (length, pairs) = size.split_once('x')?;
        let sequences = count.map_or(Some(sequences), |n| n.parse().ok())?;
        Some(Self { length: length.parse().ok()?, pairs: pairs.parse().ok()?, sequences })
    }

    /// Why there are no such sequences.
    fn fault(self, vocab: usize) -> Option<String> {
        let Self { length, pairs, sequences } = self;
        let name = format!("{length}x{pairs}");
        if pairs == 0 || length == 0 || length > MAX_LENGTH || sequences > 1_000_000_000_000 {
            return Some(format!("{name}: lengths are 1 to {MAX_LENGTH}, with one pair at least"));
        }
        if length < 4 * pairs {
            return Some(format!("{name}: {pairs} pairs and as many queries, 2 apart, need {} positions", 4 * pairs));
        }
        if pairs >= vocab / 2 {
            return Some(format!("{name}: a vocabulary of {vocab} has {} different keys", vocab / 2 - 1));
        }
        None
    }

    fn max_len(sizes: &[Self]) -> usize {
        sizes.iter().map(|s| s.length).max().unwrap_or_default()
    }
}

impl MqarSpec {
    /// The sizes that a key lists.
    fn sizes(key: &str, text: &str, sequences: usize) -> Result<Vec<Size>, KeyError> {
        let wrong = |message: String| KeyError {
            key: key.into(),
            message,
            help: Some("write LENGTHxPAIRS or LENGTHxPAIRS:SEQUENCES, with blanks between several".into()),
        };
        let read = |word: &str| Size::read(word, sequences).ok_or_else(|| wrong(format!("{word:?} is no size of sequences")));
        let sizes: Vec<Size> = text.split_whitespace().map(read).collect::<Result<_, _>>()?;
        if sizes.is_empty() { Err(wrong("names no size of sequences".into())) } else { Ok(sizes) }
    }

    fn both(&self) -> Result<(Vec<Size>, Vec<Size>), KeyError> {
        let train = Self::sizes("train", &self.train, TRAIN_SEQUENCES)?;
        let eval = Self::sizes("eval", &self.eval, EVAL_SEQUENCES)?;
        for (key, sizes) in [("train", &train), ("eval", &eval)] {
            let fault = sizes.iter().find_map(|s| s.fault(self.vocab));
            if let Some(message) = fault {
                return Err(KeyError { key: key.into(), message, help: None });
            }
        }
        let several = train.len() > 1;
        if several && train.iter().any(|s| s.sequences == 0) {
            let message = "sets that are trained on together need their numbers of sequences".into();
            return Err(KeyError { key: "train".into(), message, help: Some("they say how often each is met".into()) });
        }
        if eval.iter().any(|s| s.sequences == 0) {
            return Err(KeyError { key: "eval".into(), message: "an evaluation set has no sequences".into(), help: None });
        }
        Ok((train, eval))
    }
}

impl Spec for MqarSpec {
    const INFO: TaskInfo = TaskInfo {
        name: "mqar",
        doc: "pairs of a key and a value, then every key is asked again (Arora et al. 2023, Zoology)",
        keys: &[
            KeyInfo {
                name: "train",
                kind: Kind::Text,
                default: Default::Text("64x4"),
                doc: "training sets, LENGTHxPAIRS or LENGTHxPAIRS:SEQUENCES (100,000; 0: every row is new), with blanks between",
            },
            KeyInfo {
                name: "eval",
                kind: Kind::Text,
                default: Default::Derived("the sizes of train"),
                doc: "evaluation sets in the same form (3,000 sequences)",
            },
            KeyInfo {
                name: "vocab",
                kind: Kind::Integer { min: 4, max: 16_777_216 },
                default: Default::Integer(8192),
                doc: "number of symbols: keys below the half, values from it on, 0 for neither",
            },
            KeyInfo {
                name: "power",
                kind: Kind::Float { min: 0.0, max: 10.0, min_included: false, max_included: true },
                default: Default::Float(0.01),
                doc: "a: the i-th possible place of a query has a weight of i^(a - 1)",
            },
            KeyInfo {
                name: "random_non_queries",
                kind: Kind::Boolean,
                default: Default::Boolean(false),
                doc: "whether positions without pair or query hold random symbols",
            },
        ],
    };

    fn read(table: &Checked) -> Result<Self, KeyError> {
        let train = table.text("train").unwrap_or_default();
        let sizes = |text: &str| text.split_whitespace().filter_map(|w| w.split(':').next()).collect::<Vec<_>>().join(" ");
        let spec = Self {
            eval: table.text("eval").unwrap_or_else(|| sizes(&train)),
            train,
            vocab: table.size("vocab"),
            power: table.float("power"),
            random_non_queries: table.flag("random_non_queries"),
        };
        spec.both()?;
        Ok(spec)
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("train", Value::Text(self.train.clone())),
            ("eval", Value::Text(self.eval.clone())),
            ("vocab", size(self.vocab)),
            ("power", Value::Float(self.power)),
            ("random_non_queries", Value::Boolean(self.random_non_queries)),
        ]
    }

    fn max_len(&self) -> usize {
        self.both().map_or(0, |(train, eval)| Size::max_len(&train).max(Size::max_len(&eval)))
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        let (train, eval) = self.both().map_err(|source| TaskError::Spec { task: Self::INFO.name, source })?;
        let part = |size: &Size, sequences| {
            let maker = Maker::new(*size, self);
            Part::new(format!("{}x{}", size.length, size.pairs), sequences, size.length, move |draw: &mut Draw| {
                maker.sequence(draw)
            })
        };
        let train: Vec<Part> = train.iter().map(|s| part(s, size_of_set(s.sequences))).collect();
        let eval: Vec<Part> = eval.iter().map(|s| part(s, Some(s.sequences))).collect();
        let names = |parts: &[Part]| parts.iter().map(|p| p.name.clone()).collect::<Vec<_>>().join(", ");
        let summary = format!("mqar: {} symbols, {} (length x pairs), then {}", self.vocab, names(&train), names(&eval));
        let shape = Shape { vocab: self.vocab, classes: self.vocab, metrics: vec![Metric::Accuracy, Metric::SequenceAccuracy] };
        Ok(Box::new(Sequences::new(shape, train, eval, summary, fingerprint(self, 1))))
    }
}

/// Makes sequences of one size.
struct Maker {
    size: Size,
    vocab: usize,
    random: bool,
    /// The weights of the offsets.
    weights: Vec<u64>,
}

impl Maker {
    fn new(size: Size, spec: &MqarSpec) -> Self {
        let space = (size.length - 2 * size.pairs) / 2;
        // Whole numbers: a last bit of `powf` that differs between machines must not show.
        let weight = |i: usize| ((i as f64).powf(spec.power - 1.0) * f64::from(1u32 << 24)).round().max(1.0) as u64;
        let weights = (1..=space).map(weight).collect();
        Self { size, vocab: spec.vocab, random: spec.random_non_queries, weights }
    }

    /// Different offsets in the order in which they are drawn, each with a probability in
    /// proportion to its weight among those that are left.
    fn offsets(&self, draw: &mut Draw) -> Vec<usize> {
        let mut weights = self.weights.clone();
        let mut total = weights.iter().sum();
        let mut offsets = Vec::with_capacity(self.size.pairs);
        for _ in 0..self.size.pairs {
            let offset = draw.weighted(&weights, total);
            total -= std::mem::take(&mut weights[offset]);
            offsets.push(offset);
        }
        offsets
    }

    fn sequence(&self, draw: &mut Draw) -> Sequence {
        let Size { length, pairs, .. } = self.size;
        let half = self.vocab / 2;
        let keys: Vec<i64> = draw.distinct(pairs, half - 1).iter().map(|k| k + 1).collect();
        let values: Vec<i64> = draw.distinct(pairs, self.vocab - half).iter().map(|v| v + half as i64).collect();
        let mut tokens: Vec<i64> = keys.iter().zip(&values).flat_map(|(k, v)| [*k, *v]).collect();
        tokens.resize(length, 0);
        let mut targets = vec![UNSCORED; length];
        for (i, offset) in self.offsets(draw).into_iter().enumerate() {
            let place = 2 * pairs + 2 * offset;
            tokens[place] = keys[i];
            targets[place] = values[i];
        }
        if self.random {
            tokens.iter_mut().filter(|t| **t == 0).for_each(|t| *t = draw.below(self.vocab) as i64);
        }
        Sequence { tokens, targets }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;
    use crate::sequence::testing::{keeps_the_rules, rows, samples};

    fn spec(train: &str, eval: &str, random_non_queries: bool) -> MqarSpec {
        MqarSpec { train: train.into(), eval: eval.into(), vocab: 8192, power: 0.01, random_non_queries }
    }

    #[test]
    fn every_key_is_asked_once_and_the_answer_is_what_was_bound_to_it() {
        for random in [false, true] {
            // In 256x64 the queries fill all even places.
            let task = spec("64x4:500 256x64:300", "64x4:40 128x8:30", random).open().unwrap();
            keeps_the_rules(task.as_ref());
            for (_, row) in samples(task.as_ref()) {
                let asked: Vec<usize> = (0..row.tokens.len()).filter(|i| row.targets[*i] != UNSCORED).collect();
                let n = asked.len();
                assert!(matches!((row.tokens.len(), n), (64, 4) | (128, 8) | (256, 64)));
                let mut memory = HashMap::new();
                for pair in row.tokens[..2 * n].chunks(2) {
                    assert!((1..4096).contains(&pair[0]) && (4096..8192).contains(&pair[1]));
                    assert_eq!(memory.insert(pair[0], pair[1]), None);
                }
                assert_eq!(memory.values().collect::<BTreeSet<_>>().len(), n, "values are different");
                for place in &asked {
                    assert!(*place >= 2 * n && place % 2 == 0);
                    assert_eq!(memory.remove(&row.tokens[*place]), Some(row.targets[*place]));
                }
                assert!(memory.is_empty(), "every key is asked");
                let rest = (2 * n..row.tokens.len()).filter(|i| !asked.contains(i)).map(|i| row.tokens[i]);
                if !random {
                    assert!(rest.into_iter().all(|t| t == 0));
                } else if row.tokens.len() > 4 * n {
                    assert!(rest.into_iter().filter(|t| *t != 0).count() > 10);
                }
            }
        }
    }

    #[test]
    fn offsets_follow_the_power_law() {
        // With one pair the place of its query has the probability i^(a-1) / sum.
        let task = spec("40x1:0", "40x1:1", false).open().unwrap();
        let mut counts = [0.0; 19];
        for step in 0..100 {
            for row in rows(&task.train_batch(1, step, 0, 200)) {
                counts[(row.targets.iter().position(|t| *t != UNSCORED).unwrap() - 2) / 2] += 1.0;
            }
        }
        let weight = |i: usize| (i as f64).powf(-0.99);
        let sum: f64 = (1..=19).map(weight).sum();
        let chi: f64 = (0..19).map(|g| 20_000.0 * weight(g + 1) / sum).zip(counts).map(|(e, c)| (c - e).powi(2) / e).sum();
        assert!(chi < 42.3, "{chi}: {counts:?}"); // 18 degrees of freedom, once in 1,000
    }

    #[test]
    fn sizes_are_read_and_checked() {
        let sizes = |text| MqarSpec::sizes("train", text, 7);
        assert_eq!(sizes(" 64x4  256x16:9").unwrap()[1], Size { length: 256, pairs: 16, sequences: 9 });
        assert_eq!(sizes("64x4").unwrap()[0].sequences, 7);
        for wrong in ["", "64", "64x", "x4", "64x4:", "64x4,128x8", "64x4:many", "-64x4"] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
        for (train, eval) in
            [("15x4", "64x4"), ("64x4", "64x0"), ("64x4:0 128x8", "64x4"), ("64x4", "64x4:0"), ("64x4", "99999999x4")]
        {
            assert!(spec(train, eval, false).both().is_err(), "{train} {eval}");
        }
        let small = MqarSpec { vocab: 8, ..spec("64x4", "64x4", false) };
        assert!(small.both().unwrap_err().message.contains("3 different keys"));
        assert_eq!(spec("64x4", "128x8 1024x256", false).max_len(), 1024);
    }
}
