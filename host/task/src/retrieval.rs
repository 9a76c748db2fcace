//! `associative-retrieval`: letters with digits, then one letter is asked (Ba, Hinton, Mnih, Leibo,
//! Ionescu 2016, arXiv 1610.06258, section 4.1).
//!
//! K different letters, a digit after each, then `??` and one of the letters: `c9k8j3f1??c`.
//! The last position is to give the letter's digit, `9`; only it is scored.
//! The examples of the paper have K = 4, and so has the default.
//!
//! The description lets digits come again; a much used reimplementation
//! (`jxwufan/AssociativeRetrieval`) does not, and nor does `repeat_digits = false`.
//!
//! | symbol | is |
//! |---|---|
//! | 0 to 25 | a to z |
//! | 26 to 35 | 0 to 9 |
//! | 36 | ? |
//!
//! The outputs are over the same 37 symbols.

use serde::{Deserialize, Serialize};

use crate::data::{Metric, Task};
use crate::draw::Draw;
use crate::registry::{Checked, Spec, TaskError, TaskInfo, fingerprint, size};
use crate::schema::{Default, KeyError, KeyInfo, Kind, Value};
use crate::sequence::{Part, Sequence, Sequences, Shape, eval_sequences, size_of_set, train_sequences};

const LETTERS: usize = 26;
const DIGITS: usize = 10;
const MARK: i64 = (LETTERS + DIGITS) as i64;

/// The configuration of `associative-retrieval`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalSpec {
    /// The number K of letters with a digit.
    pub pairs: usize,
    /// Whether two letters may have the same digit.
    pub repeat_digits: bool,
    /// The size of the training set; 0: every row is new.
    pub train_sequences: usize,
    /// How many sequences an evaluation has.
    pub eval_sequences: usize,
}

impl Spec for RetrievalSpec {
    const INFO: TaskInfo = TaskInfo {
        name: "associative-retrieval",
        doc: "letters with digits such as c9k8j3f1??c, then the digit of one of them (Ba et al. 2016)",
        keys: &[
            KeyInfo {
                name: "pairs",
                kind: Kind::Integer { min: 1, max: LETTERS as i64 },
                default: Default::Integer(4),
                doc: "the number of letters with a digit; the length is twice that and 3",
            },
            KeyInfo {
                name: "repeat_digits",
                kind: Kind::Boolean,
                default: Default::Boolean(true),
                doc: "whether two letters may have the same digit",
            },
            train_sequences(Default::Integer(100_000)),
            eval_sequences(10_000),
        ],
    };

    fn read(table: &Checked) -> Result<Self, KeyError> {
        let (pairs, repeat_digits) = (table.size("pairs"), table.flag("repeat_digits"));
        if pairs > DIGITS && !repeat_digits {
            return Err(KeyError {
                key: "repeat_digits".into(),
                message: format!("{pairs} letters cannot have {DIGITS} digits without a repeat"),
                help: Some("set it to true".into()),
            });
        }
        Ok(Self {
            pairs,
            repeat_digits,
            train_sequences: table.size("train_sequences"),
            eval_sequences: table.size("eval_sequences"),
        })
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("pairs", size(self.pairs)),
            ("repeat_digits", Value::Boolean(self.repeat_digits)),
            ("train_sequences", size(self.train_sequences)),
            ("eval_sequences", size(self.eval_sequences)),
        ]
    }

    fn max_len(&self) -> usize {
        2 * self.pairs + 3
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        let part = |sequences| {
            let (pairs, repeat) = (self.pairs, self.repeat_digits);
            Part::new("", sequences, self.max_len(), move |draw: &mut Draw| sequence(draw, pairs, repeat))
        };
        let shape = Shape { vocab: 37, classes: 37, metrics: vec![Metric::Error, Metric::Accuracy] };
        let summary = format!("associative-retrieval: {} letters with digits, then one is asked", self.pairs);
        let (train, eval) = (part(size_of_set(self.train_sequences)), part(Some(self.eval_sequences)));
        Ok(Box::new(Sequences::new(shape, vec![train], vec![eval], summary, fingerprint(self, 1))))
    }
}

fn sequence(draw: &mut Draw, pairs: usize, repeat: bool) -> Sequence {
    let letters = draw.distinct(pairs, LETTERS);
    let digits = if repeat { draw.with_replacement(pairs, DIGITS) } else { draw.distinct(pairs, DIGITS) };
    let symbol = |digit: i64| LETTERS as i64 + digit;
    let mut tokens: Vec<i64> = letters.iter().zip(&digits).flat_map(|(l, d)| [*l, symbol(*d)]).collect();
    let asked = draw.below(pairs);
    tokens.extend([MARK, MARK, letters[asked]]);
    Sequence::answered(tokens, symbol(digits[asked]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::UNSCORED;
    use crate::sequence::testing::{keeps_the_rules, samples};

    /// A sequence as the paper writes it, and the answer.
    fn written(row: &Sequence) -> (String, char) {
        let alphabet: Vec<char> = ('a'..='z').chain('0'..='9').chain(['?']).collect();
        let text = row.tokens.iter().map(|t| alphabet[*t as usize]).collect();
        (text, alphabet[row.targets[row.targets.len() - 1] as usize])
    }

    #[test]
    fn the_answer_is_the_digit_behind_the_letter_that_is_asked() {
        let mut repeated = 0;
        for (pairs, repeat_digits) in [(4, true), (8, true), (8, false), (1, true), (26, true)] {
            let spec = RetrievalSpec { pairs, repeat_digits, train_sequences: 0, eval_sequences: 50 };
            let task = spec.open().unwrap();
            keeps_the_rules(task.as_ref());
            for (_, row) in samples(task.as_ref()) {
                let (text, answer) = written(&row);
                assert_eq!(text.len(), 2 * pairs + 3);
                let (body, asked) = text.split_once("??").unwrap();
                let place = body.find(asked).unwrap();
                assert_eq!(body[place + 1..].chars().next(), Some(answer));
                let letters: std::collections::BTreeSet<char> = body.chars().step_by(2).collect();
                let digits: std::collections::BTreeSet<char> = body.chars().skip(1).step_by(2).collect();
                assert!(letters.len() == pairs && letters.iter().all(char::is_ascii_lowercase));
                assert!(digits.iter().all(char::is_ascii_digit) && (repeat_digits || digits.len() == pairs));
                repeated += usize::from(repeat_digits && digits.len() < pairs);
                assert!(row.targets[..text.len() - 1].iter().all(|t| *t == UNSCORED));
            }
        }
        assert!(repeated > 100);
    }

    #[test]
    fn digits_without_repeat_are_at_most_ten() {
        let spec = RetrievalSpec { pairs: 11, repeat_digits: false, train_sequences: 0, eval_sequences: 1 };
        assert!(crate::open(&crate::TaskSpec::AssociativeRetrieval(spec)).is_err());
    }
}
