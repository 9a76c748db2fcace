//! `parity` and `modular-arithmetic`: a string, then one answer (Beck et al. 2024, xLSTM,
//! arXiv 2405.04517; lengths and scaled accuracy as in Grazzi et al. 2024, arXiv 2411.12537).
//!
//! A sequence ends in a slot whose input is the padding symbol 0; only there an answer is due.
//!
//! **Parity.** A sequence of length L has L - 1 bits (symbols 1 and 2); the answer is 1 when the
//! number of ones (symbol 2) is even, else 2.
//!
//! **Modular arithmetic** is modulo 5; symbols are 1 `+`, 2 `-`, 3 `*`, 4 `=`, 5 to 9 the digits
//! 0 to 4, and with brackets 10 `(` and 11 `)`.
//! Without brackets digits and operators alternate and `*` binds tighter: `3+2*4=`.
//! Lengths are odd there: 2k - 1 with k drawn evenly from (min + 1) / 2 to (max + 1) / 2, rounded
//! down, as in the authors' program.
//! With brackets an expression of n symbols is, for n below 5, one of `d`, `-d`, `(d)`, `(-d)`, and
//! else `(a+b)` or `(a-b)` (or `(a*b)`, with `multiplication`), where a has 1 to n - 4 symbols.
//! A drawn length L, at least 5, gives an expression of L - 3 symbols, `=` and the slot, as in the
//! authors' program (which counts one padding symbol more).

use serde::{Deserialize, Serialize};

use crate::data::{Metric, Task};
use crate::draw::Draw;
use crate::registry::{Checked, Spec, TaskError, TaskInfo, fingerprint, size};
use crate::schema::{Default, KeyError, KeyInfo, Kind, Value};
use crate::sequence::{Part, Sequence, Sequences, Shape, eval_sequences, size_of_set, train_sequences};

/// The input of the slot for the answer.
const SLOT: i64 = 0;
const MODULUS: i64 = 5;
const EQUALS: i64 = 4;
const ZERO: i64 = 5;
const OPEN: i64 = 10;
const CLOSE: i64 = 11;

const fn length(name: &'static str, default: i64, doc: &'static str) -> KeyInfo {
    KeyInfo { name, kind: Kind::Integer { min: 3, max: 65_536 }, default: Default::Integer(default), doc }
}

const MIN: KeyInfo = length("min_length", 3, "the shortest training sequence, the slot for the answer included");
const MAX: KeyInfo = length("max_length", 40, "the longest training sequence");
const EVAL_MIN: KeyInfo = length("eval_min_length", 40, "the shortest evaluation sequence");
const EVAL_MAX: KeyInfo = length("eval_max_length", 256, "the longest evaluation sequence");

/// First and last length of a set.
type Lengths = (usize, usize);

/// The lengths of training and evaluation, which must not be the wrong way round.
fn lengths(table: &Checked) -> Result<(Lengths, Lengths), KeyError> {
    let range = |min: &str, max: &str| {
        let (first, last) = (table.size(min), table.size(max));
        if first <= last {
            return Ok((first, last));
        }
        Err(KeyError { key: max.into(), message: format!("{last} is below {min} = {first}"), help: None })
    };
    Ok((range("min_length", "max_length")?, range("eval_min_length", "eval_max_length")?))
}

/// The configuration of `parity`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParitySpec {
    /// The shortest training sequence.
    pub min_length: usize,
    /// The longest training sequence.
    pub max_length: usize,
    /// The shortest evaluation sequence.
    pub eval_min_length: usize,
    /// The longest evaluation sequence.
    pub eval_max_length: usize,
    /// The size of the training set; 0: every row is new.
    pub train_sequences: usize,
    /// How many sequences an evaluation has.
    pub eval_sequences: usize,
}

impl Spec for ParitySpec {
    const INFO: TaskInfo = TaskInfo {
        name: "parity",
        doc: "whether the number of ones in a string of bits is odd, at its end (state tracking; Grazzi et al. 2024)",
        keys: &[MIN, MAX, EVAL_MIN, EVAL_MAX, train_sequences(Default::Integer(0)), eval_sequences(8192)],
    };

    fn read(table: &Checked) -> Result<Self, KeyError> {
        let (train, eval) = lengths(table)?;
        Ok(Self {
            min_length: train.0,
            max_length: train.1,
            eval_min_length: eval.0,
            eval_max_length: eval.1,
            train_sequences: table.size("train_sequences"),
            eval_sequences: table.size("eval_sequences"),
        })
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("min_length", size(self.min_length)),
            ("max_length", size(self.max_length)),
            ("eval_min_length", size(self.eval_min_length)),
            ("eval_max_length", size(self.eval_max_length)),
            ("train_sequences", size(self.train_sequences)),
            ("eval_sequences", size(self.eval_sequences)),
        ]
    }

    fn max_len(&self) -> usize {
        self.max_length.max(self.eval_max_length)
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        let part = |(min, max), sequences| Part::new("", sequences, max, move |draw: &mut Draw| bits(draw, min, max));
        let train = part((self.min_length, self.max_length), size_of_set(self.train_sequences));
        let eval = part((self.eval_min_length, self.eval_max_length), Some(self.eval_sequences));
        let shape = Shape { vocab: 3, classes: 3, metrics: metrics(2) };
        let summary = format!(
            "parity: lengths {} to {}, evaluated on {} to {}",
            self.min_length, self.max_length, self.eval_min_length, self.eval_max_length
        );
        Ok(Box::new(Sequences::new(shape, vec![train], vec![eval], summary, fingerprint(self, 1))))
    }
}

/// The accuracies, with this many answers that are equally likely.
fn metrics(answers: usize) -> Vec<Metric> {
    vec![Metric::Accuracy, Metric::ScaledAccuracy { chance: 1.0 / answers as f64 }]
}

fn bits(draw: &mut Draw, min: usize, max: usize) -> Sequence {
    let length = draw.between(min, max);
    let mut tokens: Vec<i64> = draw.with_replacement(length - 1, 2).iter().map(|bit| bit + 1).collect();
    let ones = tokens.iter().filter(|t| **t == 2).count();
    tokens.push(SLOT);
    Sequence::answered(tokens, 1 + (ones % 2) as i64)
}

/// The configuration of `modular-arithmetic`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArithmeticSpec {
    /// Whether expressions have brackets.
    pub brackets: bool,
    /// Whether there are products.
    pub multiplication: bool,
    /// The shortest training sequence.
    pub min_length: usize,
    /// The longest training sequence.
    pub max_length: usize,
    /// The shortest evaluation sequence.
    pub eval_min_length: usize,
    /// The longest evaluation sequence.
    pub eval_max_length: usize,
    /// The size of the training set; 0: every row is new.
    pub train_sequences: usize,
    /// How many sequences an evaluation has.
    pub eval_sequences: usize,
}

impl Spec for ArithmeticSpec {
    const INFO: TaskInfo = TaskInfo {
        name: "modular-arithmetic",
        doc: "the value of an expression such as 3+2*4= modulo 5, with or without brackets (Grazzi et al. 2024)",
        keys: &[
            KeyInfo {
                name: "brackets",
                kind: Kind::Boolean,
                default: Default::Boolean(false),
                doc: "whether expressions are built with brackets and negative digits",
            },
            KeyInfo {
                name: "multiplication",
                kind: Kind::Boolean,
                default: Default::Derived("true without brackets, false with them"),
                doc: "whether there are products",
            },
            MIN,
            MAX,
            EVAL_MIN,
            EVAL_MAX,
            train_sequences(Default::Integer(0)),
            eval_sequences(8192),
        ],
    };

    fn read(table: &Checked) -> Result<Self, KeyError> {
        let (train, eval) = lengths(table)?;
        let brackets = table.flag("brackets");
        Ok(Self {
            brackets,
            multiplication: table.optional_flag("multiplication").unwrap_or(!brackets),
            min_length: train.0,
            max_length: train.1,
            eval_min_length: eval.0,
            eval_max_length: eval.1,
            train_sequences: table.size("train_sequences"),
            eval_sequences: table.size("eval_sequences"),
        })
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("brackets", Value::Boolean(self.brackets)),
            ("multiplication", Value::Boolean(self.multiplication)),
            ("min_length", size(self.min_length)),
            ("max_length", size(self.max_length)),
            ("eval_min_length", size(self.eval_min_length)),
            ("eval_max_length", size(self.eval_max_length)),
            ("train_sequences", size(self.train_sequences)),
            ("eval_sequences", size(self.eval_sequences)),
        ]
    }

    fn max_len(&self) -> usize {
        self.max_length.max(self.eval_max_length)
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        let part = |(min, max), sequences| {
            let (brackets, operators) = (self.brackets, if self.multiplication { 3 } else { 2 });
            Part::new("", sequences, max, move |draw: &mut Draw| {
                if brackets { bracketed(draw, min, max, operators) } else { flat(draw, min, max, operators) }
            })
        };
        let train = part((self.min_length, self.max_length), size_of_set(self.train_sequences));
        let eval = part((self.eval_min_length, self.eval_max_length), Some(self.eval_sequences));
        let vocab = if self.brackets { 12 } else { 10 };
        let shape = Shape { vocab, classes: vocab, metrics: metrics(MODULUS as usize) };
        let summary = format!(
            "modular-arithmetic: {} brackets, lengths {} to {}, evaluated on {} to {}",
            if self.brackets { "with" } else { "without" },
            self.min_length,
            self.max_length,
            self.eval_min_length,
            self.eval_max_length
        );
        Ok(Box::new(Sequences::new(shape, vec![train], vec![eval], summary, fingerprint(self, 1))))
    }
}

/// What an operator's symbol does.
fn apply(operator: i64, a: i64, b: i64) -> i64 {
    let value = match operator {
        1 => a + b,
        2 => a - b,
        _ => a * b,
    };
    value.rem_euclid(MODULUS)
}

fn answered(mut tokens: Vec<i64>, value: i64) -> Sequence {
    tokens.extend([EQUALS, SLOT]);
    Sequence::answered(tokens, ZERO + value)
}

fn flat(draw: &mut Draw, min: usize, max: usize, operators: usize) -> Sequence {
    let digits = draw.between(min.div_ceil(2), max.div_ceil(2)) - 1;
    let mut tokens = Vec::with_capacity(2 * digits + 1);
    // The sum of what is complete, the sign of the term that is not, and its product so far.
    let (mut sum, mut sign, mut term) = (0, 1, 1);
    for i in 0..digits {
        if i > 0 {
            let operator = 1 + draw.below(operators) as i64;
            tokens.push(operator);
            if operator != 3 {
                sum = apply(sign, sum, term);
                (sign, term) = (operator, 1);
            }
        }
        let digit = draw.below(MODULUS as usize) as i64;
        tokens.push(ZERO + digit);
        term = apply(3, term, digit);
    }
    answered(tokens, apply(sign, sum, term))
}

fn bracketed(draw: &mut Draw, min: usize, max: usize, operators: usize) -> Sequence {
    let length = draw.between(min, max).max(5) - 3;
    let mut tokens = Vec::with_capacity(length + 2);
    let value = expression(draw, length, operators, &mut tokens);
    answered(tokens, value)
}

/// Appends an expression of `length` symbols; returns its value.
fn expression(draw: &mut Draw, length: usize, operators: usize, tokens: &mut Vec<i64>) -> i64 {
    if length < 5 {
        let digit = draw.below(MODULUS as usize) as i64;
        let (bracket, minus) = (length > 2, length.is_multiple_of(2));
        tokens.extend(bracket.then_some(OPEN));
        tokens.extend(minus.then_some(2));
        tokens.push(ZERO + digit);
        tokens.extend(bracket.then_some(CLOSE));
        return if minus { apply(2, 0, digit) } else { digit };
    }
    let left = draw.between(1, length - 4);
    tokens.push(OPEN);
    let a = expression(draw, left, operators, tokens);
    let operator = tokens.len();
    tokens.push(SLOT);
    let b = expression(draw, length - left - 3, operators, tokens);
    tokens.push(CLOSE);
    tokens[operator] = 1 + draw.below(operators) as i64;
    apply(tokens[operator], a, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::testing::{keeps_the_rules, samples};

    /// Length, tokens before the slot, and answer of each sample with its set.
    fn asked(task: &dyn Task) -> Vec<(bool, Vec<i64>, i64)> {
        samples(task)
            .into_iter()
            .map(|(set, row)| {
                let slot = row.targets.iter().position(|t| *t >= 0).unwrap();
                assert_eq!(row.targets.iter().filter(|t| **t >= 0).count(), 1);
                assert!(row.tokens[slot..].iter().all(|t| *t == 0), "the slot and what follows are empty");
                (set.is_some(), row.tokens[..slot].to_vec(), row.targets[slot])
            })
            .collect()
    }

    #[test]
    fn parity_is_that_of_the_ones() {
        let spec = ParitySpec {
            min_length: 3,
            max_length: 40,
            eval_min_length: 40,
            eval_max_length: 256,
            train_sequences: 0,
            eval_sequences: 600,
        };
        let task = spec.open().unwrap();
        keeps_the_rules(task.as_ref());
        let (mut odd, mut trained, mut lengths) = (0, [0; 41], 0);
        let all = asked(task.as_ref());
        for (eval, bits, answer) in &all {
            assert!(bits.iter().all(|b| [1, 2].contains(b)));
            let odd_ones = bits.iter().fold(false, |odd, b| odd ^ (*b == 2));
            assert_eq!(*answer, if odd_ones { 2 } else { 1 });
            odd += usize::from(odd_ones);
            if *eval {
                assert!((39..=255).contains(&bits.len()));
                lengths += bits.len() + 1;
            } else {
                trained[bits.len() + 1] += 1;
            }
        }
        assert!((odd as f64 / all.len() as f64 - 0.5).abs() < 0.06);
        assert!(trained[..3].iter().all(|n| *n == 0) && trained[3] > 0 && trained[40] > 0);
        // 148 on average, with a standard deviation of 62.6 / sqrt(600).
        assert!((lengths as f64 / 600.0 - 148.0).abs() < 9.0);
    }

    /// A second way to a value: recursive descent over the written expression, in whole numbers.
    struct Reader<'a>(&'a [u8], usize);

    impl Reader<'_> {
        fn at(&self) -> u8 {
            *self.0.get(self.1).unwrap_or(&b'$')
        }
        fn sum(&mut self) -> i128 {
            let mut value = self.product();
            while [b'+', b'-'].contains(&self.at()) {
                let plus = self.at() == b'+';
                self.1 += 1;
                let next = self.product();
                value = (if plus { value + next } else { value - next }) % 5;
            }
            value
        }
        fn product(&mut self) -> i128 {
            let mut value = self.unit();
            while self.at() == b'*' {
                self.1 += 1;
                value = value * self.unit() % 5;
            }
            value
        }
        fn unit(&mut self) -> i128 {
            let here = self.at();
            self.1 += 1;
            match here {
                b'-' => -self.unit(),
                b'(' => {
                    let value = self.sum();
                    assert_eq!(self.at(), b')');
                    self.1 += 1;
                    value
                }
                digit => {
                    assert!((b'0'..=b'4').contains(&digit), "{}", String::from_utf8_lossy(self.0));
                    i128::from(digit - b'0')
                }
            }
        }
    }

    #[test]
    fn expressions_have_the_value_that_a_reader_finds() {
        for (brackets, multiplication) in [(false, true), (false, false), (true, false), (true, true)] {
            let spec = ArithmeticSpec {
                brackets,
                multiplication,
                min_length: 3,
                max_length: 40,
                eval_min_length: 40,
                eval_max_length: 256,
                train_sequences: 0,
                eval_sequences: 300,
            };
            let task = spec.open().unwrap();
            keeps_the_rules(task.as_ref());
            let mut seen = std::collections::BTreeSet::new();
            let mut answers = [0; 5];
            for (eval, tokens, answer) in asked(task.as_ref()) {
                let text: String = tokens.iter().map(|t| ".+-*=01234()".as_bytes()[*t as usize] as char).collect();
                let (written, end) = text.split_at(text.len() - 1);
                assert_eq!(end, "=");
                let mut reader = Reader(written.as_bytes(), 0);
                let value = reader.sum();
                assert_eq!(reader.1, written.len(), "{text}");
                assert_eq!(i128::from(answer - ZERO), value.rem_euclid(5), "{text}");
                answers[(answer - ZERO) as usize] += 1;
                assert_eq!(brackets && written.len() > 2, written.contains('('), "{text}");
                assert!(multiplication || !written.contains('*'));
                let length = tokens.len() + 1;
                if brackets {
                    assert!(if eval { (39..=255).contains(&length) } else { (4..=39).contains(&length) }, "{text}");
                } else {
                    assert!(length % 2 == 1 && if eval { (39..=255).contains(&length) } else { (3..=39).contains(&length) });
                }
                seen.extend(written.chars());
            }
            let all: &str = match (brackets, multiplication) {
                (false, true) => "*+-01234",
                (false, false) => "+-01234",
                (true, false) => "()+-01234",
                (true, true) => "()*+-01234",
            };
            assert_eq!(seen.into_iter().collect::<String>(), all);
            assert!(answers.iter().all(|n| *n > 50), "{answers:?}");
        }
    }

    #[test]
    fn lengths_the_wrong_way_round_are_refused() {
        let spec = ParitySpec {
            min_length: 9,
            max_length: 8,
            eval_min_length: 40,
            eval_max_length: 256,
            train_sequences: 0,
            eval_sequences: 1,
        };
        let message = crate::open(&crate::TaskSpec::Parity(spec)).err().unwrap().to_string();
        assert_eq!(message, "task `parity`: max_length: 8 is below min_length = 9");
    }
}
