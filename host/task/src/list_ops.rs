//! `list-ops`: the value of a nested list operation (Nangia, Bowman 2018, arXiv 1804.06028; in the
//! form of Irie, Schlag, Csordas, Schmidhuber 2021, arXiv 2106.06295, appendix B).
//!
//! `[MAX 2 9 [MIN 4 7 ] 0 ]` is 9.
//! An operation is MIN, MAX or FIRST of 2 to 5 arguments; an argument is a digit with probability
//! 3/4, else an operation; the whole is always an operation.
//! Only trees of one depth are kept: a tree's depth is that of its deepest digits, where the
//! outermost operation has depth 1.
//! So `depth = 11`, ten operations one in another, is what the paper calls depth 10, and 16 is its
//! 15.
//! The answer, 0 to 9, is due at the last bracket.
//!
//! Trees of more than `max_length` symbols are drawn again, which the authors' program does not do:
//! of the default depth about one in 10,000 is longer than the default.
//!
//! | symbol | is |
//! |---|---|
//! | 1, 2, 3 | `[MIN`, `[MAX`, `[FIRST` |
//! | 4 | `]` |
//! | 5 to 14 | 0 to 9 |

use serde::{Deserialize, Serialize};

use crate::data::{Metric, Task};
use crate::draw::Draw;
use crate::registry::{Checked, Spec, TaskError, TaskInfo, fingerprint, size};
use crate::schema::{Default, KeyError, KeyInfo, Kind, Value};
use crate::sequence::{Part, Sequence, Sequences, Shape, eval_sequences, size_of_set, train_sequences};

/// The probability of an operation as an argument.
const OPERATION: f64 = 0.25;
/// Operations at this depth and below are digits.
const MAX_DEPTH: usize = 20;
const MIN: i64 = 1;
const MAX: i64 = 2;
const FIRST: i64 = 3;
const CLOSE: i64 = 4;
const DIGIT: i64 = 5;

/// The configuration of `list-ops`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListOpsSpec {
    /// The depth of the trees.
    pub depth: usize,
    /// The longest sequence.
    pub max_length: usize,
    /// The size of the training set; 0: every row is new.
    pub train_sequences: usize,
    /// How many sequences an evaluation has.
    pub eval_sequences: usize,
}

impl Spec for ListOpsSpec {
    const INFO: TaskInfo = TaskInfo {
        name: "list-ops",
        doc: "the value of nested MIN, MAX and FIRST of digits, at the end (Irie et al. 2021)",
        keys: &[
            KeyInfo {
                name: "depth",
                kind: Kind::Integer { min: 2, max: MAX_DEPTH as i64 },
                default: Default::Integer(11),
                doc: "depth of the digits, the outermost operation at 1: 11 is the paper's depth 10, 16 its 15",
            },
            KeyInfo {
                name: "max_length",
                kind: Kind::Integer { min: 128, max: 1_048_576 },
                default: Default::Integer(1024),
                doc: "longer sequences are drawn again",
            },
            train_sequences(Default::Integer(10_000)),
            eval_sequences(1000),
        ],
    };

    fn read(table: &Checked) -> Result<Self, KeyError> {
        Ok(Self {
            depth: table.size("depth"),
            max_length: table.size("max_length"),
            train_sequences: table.size("train_sequences"),
            eval_sequences: table.size("eval_sequences"),
        })
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("depth", size(self.depth)),
            ("max_length", size(self.max_length)),
            ("train_sequences", size(self.train_sequences)),
            ("eval_sequences", size(self.eval_sequences)),
        ]
    }

    fn max_len(&self) -> usize {
        self.max_length
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        let part = |sequences| {
            let (depth, max_length) = (self.depth, self.max_length);
            Part::new("", sequences, max_length, move |draw: &mut Draw| sequence(draw, depth, max_length))
        };
        let metrics = vec![Metric::Accuracy, Metric::ScaledAccuracy { chance: 0.1 }];
        let shape = Shape { vocab: (DIGIT + 10) as usize, classes: 10, metrics };
        let summary = format!("list-ops: trees of depth {}, up to {} symbols", self.depth, self.max_length);
        let (train, eval) = (part(size_of_set(self.train_sequences)), part(Some(self.eval_sequences)));
        Ok(Box::new(Sequences::new(shape, vec![train], vec![eval], summary, fingerprint(self, 1))))
    }
}

fn sequence(draw: &mut Draw, depth: usize, max_length: usize) -> Sequence {
    let mut tree = Tree { depth, max_length, tokens: Vec::new(), deepest: 0 };
    loop {
        tree.tokens.clear();
        tree.deepest = 0;
        if let Some(value) = tree.operation(draw, 1)
            && tree.deepest == depth
        {
            return Sequence::answered(tree.tokens, value);
        }
    }
}

/// A tree while it is drawn.
struct Tree {
    /// The depth that it must have.
    depth: usize,
    max_length: usize,
    tokens: Vec<i64>,
    deepest: usize,
}

impl Tree {
    /// Draws an operation at a depth; returns its value, or nothing once the tree is too deep or long.
    fn operation(&mut self, draw: &mut Draw, depth: usize) -> Option<i64> {
        if depth >= self.depth || self.tokens.len() >= self.max_length {
            return None;
        }
        let operation = [MIN, MAX, FIRST][draw.below(3)];
        self.tokens.push(operation);
        let count = draw.between(2, 5);
        let mut value = self.argument(draw, depth + 1)?;
        for _ in 1..count {
            let next = self.argument(draw, depth + 1)?;
            value = match operation {
                MIN => value.min(next),
                MAX => value.max(next),
                _ => value,
            };
        }
        self.tokens.push(CLOSE);
        (self.tokens.len() <= self.max_length).then_some(value)
    }

    fn argument(&mut self, draw: &mut Draw, depth: usize) -> Option<i64> {
        if depth < MAX_DEPTH && draw.chance(OPERATION) {
            return self.operation(draw, depth);
        }
        self.deepest = self.deepest.max(depth);
        let value = draw.below(10) as i64;
        self.tokens.push(DIGIT + value);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::testing::{keeps_the_rules, samples};

    /// Value and depth of an expression, found with a stack of argument lists.
    fn evaluate(tokens: &[i64]) -> (i64, usize) {
        let mut stack: Vec<(i64, Vec<i64>)> = Vec::new();
        let (mut deepest, mut result) = (0, None);
        for token in tokens {
            assert!(result.is_none(), "one expression");
            let value = match *token {
                MIN | MAX | FIRST => {
                    stack.push((*token, vec![]));
                    continue;
                }
                CLOSE => {
                    let (operation, arguments) = stack.pop().unwrap();
                    assert!((2..=5).contains(&arguments.len()));
                    match operation {
                        MIN => *arguments.iter().min().unwrap(),
                        MAX => *arguments.iter().max().unwrap(),
                        _ => arguments[0],
                    }
                }
                digit => {
                    deepest = deepest.max(stack.len() + 1);
                    digit - DIGIT
                }
            };
            match stack.last_mut() {
                Some((_, arguments)) => arguments.push(value),
                None => result = Some(value),
            }
        }
        (result.expect("a whole expression"), deepest)
    }

    #[test]
    fn the_answer_is_the_value_and_the_depth_is_kept() {
        for depth in [2, 3, 11, 16] {
            let spec = ListOpsSpec { depth, max_length: 1024, train_sequences: 0, eval_sequences: 60 };
            let task = spec.open().unwrap();
            keeps_the_rules(task.as_ref());
            let mut answers = std::collections::BTreeSet::new();
            for (_, row) in samples(task.as_ref()) {
                let last = row.targets.iter().position(|t| *t >= 0).unwrap();
                assert_eq!(row.tokens[last], CLOSE);
                assert_eq!(row.targets.iter().filter(|t| **t >= 0).count(), 1);
                assert_eq!(evaluate(&row.tokens[..=last]), (row.targets[last], depth));
                answers.insert(row.targets[last]);
            }
            assert_eq!(answers.len(), 10);
        }
    }

    #[test]
    fn trees_have_their_probabilities() {
        // Of all trees of depth 2 or 3, those of depth 2 have 3/4 per argument: the mean over the
        // numbers of arguments. Their number of arguments is not even any more: n has (3/4)^n.
        let mut counts = [0.0; 6];
        let mut draw = Draw::at(1, crate::draw::Purpose::Train, 0, 0, 0);
        for _ in 0..20_000 {
            counts[sequence(&mut draw, 2, 128).tokens.len() - 2] += 1.0;
        }
        let sum: f64 = (2..=5).map(|n| 0.75f64.powi(n)).sum();
        for n in 2..=5 {
            let wanted = 0.75f64.powi(n) / sum;
            assert!((counts[n as usize] / 20_000.0 - wanted).abs() < 0.012, "{counts:?}");
        }
    }

    #[test]
    fn long_trees_are_drawn_again() {
        let spec = ListOpsSpec { depth: 16, max_length: 128, train_sequences: 0, eval_sequences: 60 };
        let lengths: Vec<usize> = samples(spec.open().unwrap().as_ref()).iter().map(|(_, r)| r.tokens.len()).collect();
        assert!(lengths.iter().all(|l| *l <= 128) && lengths.iter().any(|l| *l > 100));
    }
}
