//! `formal-language`: which symbols may follow, or whether the string so far is a word (Bhattamishra,
//! Ahuja, Goyal 2020, arXiv 2009.11264; with fast weights Irie, Csordas, Schmidhuber 2023, arXiv
//! 2310.16076).
//!
//! A word of the language is read symbol by symbol.
//! Every position has a target: the set of symbols that may come next, or, where that says nothing,
//! whether the part up to there is a word; each possible set is one class.
//! A sequence counts when all its positions are right.
//!
//! | language | symbols | word | classes |
//! |---|---|---|---|
//! | `parity` | 0 1 | an even number of ones | not a word, a word |
//! | `aa` | a | (aa)* | not a word, a word |
//! | `abab` | a b | (abab)* | not a word, a word |
//! | `counter-2` | a b | a^m b^m | a or b, b, end |
//! | `counter-3` | a b c | a^m b^m c^m | a or b, b, c, end |
//! | `shuffle-2` | ( ) \[ \] | both kinds of brackets are balanced | closing neither, `)`, `]`, both |
//! | `dyck-1` | ( ) | brackets are balanced | closing not, closing |
//! | `reset-dyck-1` | ( ) 1 | as `dyck-1`, and 1 forgets what is open | closing not, closing |
//!
//! Input symbols are numbered from 1 in this order; 0 pads.
//!
//! **How words are drawn**, always with a length in the range of the set, both ends included:
//!
//! - `parity`: symbols one by one, zeros and ones alike, ending after each with probability
//!   1 / (1 + the middle of the range), or at the range's end; an odd number of ones gets one more,
//!   and is drawn again where that is too long.
//! - `aa`, `abab`, `counter`: a number between the range's ends, rounded down to whole repetitions.
//! - `dyck-1`, `shuffle-2`: the grammar S -> (S) with probability 1/2, SS with 1/4, nothing with 1/4,
//!   each bracket of a random kind. So the words of `shuffle-2` are nested although they need not be:
//!   the authors' program draws them so.
//! - `reset-dyck-1`: a part of one such string from its beginning, 1, and another such string.
//!
//! Differences to the authors' program: words may come twice in a set; a string of the grammar that
//! gets too long is drawn again, where the program leaves out a part of it; ranges are those of whole
//! words for `counter`, too.
//!
//! An evaluation has two sets: `bin0` with the lengths of training, and `bin1` with longer words.

use serde::{Deserialize, Serialize};

use crate::data::{Metric, Task};
use crate::draw::Draw;
use crate::registry::{Checked, Spec, TaskError, TaskInfo, fingerprint, size};
use crate::schema::{Default, KeyError, KeyInfo, Kind, Value};
use crate::sequence::{Part, Sequence, Sequences, Shape, eval_sequences, size_of_set, train_sequences};

/// The grammar's probabilities of a pair of brackets and of two strings.
const PAIR: f64 = 0.5;
const TWO: f64 = 0.25;

/// A formal language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Language {
    /// An even number of ones.
    Parity,
    /// (aa)*
    Aa,
    /// (abab)*
    Abab,
    /// a^m b^m
    #[serde(rename = "counter-2")]
    Counter2,
    /// a^m b^m c^m
    #[serde(rename = "counter-3")]
    Counter3,
    /// Two kinds of brackets, each balanced.
    #[serde(rename = "shuffle-2")]
    Shuffle2,
    /// Balanced brackets.
    #[serde(rename = "dyck-1")]
    Dyck1,
    /// Balanced brackets with a symbol that forgets.
    #[serde(rename = "reset-dyck-1")]
    ResetDyck1,
}

const NAMES: [(Language, &str); 8] = [
    (Language::Parity, "parity"),
    (Language::Aa, "aa"),
    (Language::Abab, "abab"),
    (Language::Counter2, "counter-2"),
    (Language::Counter3, "counter-3"),
    (Language::Shuffle2, "shuffle-2"),
    (Language::Dyck1, "dyck-1"),
    (Language::ResetDyck1, "reset-dyck-1"),
];

impl Language {
    fn name(self) -> &'static str {
        NAMES.iter().find(|(l, _)| *l == self).map_or("", |(_, name)| name)
    }

    /// The number of symbols.
    fn symbols(self) -> usize {
        match self {
            Self::Aa => 1,
            Self::Parity | Self::Abab | Self::Counter2 | Self::Dyck1 => 2,
            Self::Counter3 | Self::ResetDyck1 => 3,
            Self::Shuffle2 => 4,
        }
    }

    /// The number of classes.
    fn classes(self) -> usize {
        match self {
            Self::Counter2 => 3,
            Self::Counter3 | Self::Shuffle2 => 4,
            _ => 2,
        }
    }

    /// Lengths of words are multiples of this.
    fn unit(self) -> usize {
        match self {
            Self::Parity | Self::ResetDyck1 => 1,
            Self::Aa | Self::Counter2 | Self::Shuffle2 | Self::Dyck1 => 2,
            Self::Counter3 => 3,
            Self::Abab => 4,
        }
    }

    /// Draws a word with a length in the range, of which there is one.
    fn word(self, draw: &mut Draw, min: usize, max: usize, lengths: &[u64]) -> Vec<i64> {
        let repetitions = |draw: &mut Draw| loop {
            let n = draw.between(min, max) / self.unit();
            if n * self.unit() >= min {
                return n;
            }
        };
        match self {
            Self::Parity => loop {
                let length = min + draw.weighted(lengths, lengths.iter().sum());
                let mut word: Vec<i64> = draw.with_replacement(length, 2).iter().map(|bit| bit + 1).collect();
                if word.iter().filter(|s| **s == 2).count() % 2 == 1 {
                    word.push(2);
                }
                if word.len() <= max {
                    return word;
                }
            },
            Self::Aa => vec![1; 2 * repetitions(draw)],
            Self::Abab => [1, 2].repeat(2 * repetitions(draw)),
            Self::Counter2 | Self::Counter3 => {
                let count = repetitions(draw);
                (1..=self.symbols() as i64).flat_map(|s| std::iter::repeat_n(s, count)).collect()
            }
            Self::Shuffle2 | Self::Dyck1 => loop {
                if let Some(word) = brackets(draw, self.symbols() / 2, max)
                    && word.len() >= min
                {
                    return word;
                }
            },
            Self::ResetDyck1 => loop {
                let (Some(mut word), Some(end)) = (brackets(draw, 1, max), brackets(draw, 1, max)) else { continue };
                word.truncate(draw.between(0, word.len()));
                word.push(3);
                word.extend(end);
                if (min..=max).contains(&word.len()) {
                    return word;
                }
            },
        }
    }

    /// The class at each position of a word.
    fn targets(self, word: &[i64]) -> Vec<i64> {
        // What is open of each kind of bracket, or how often the symbol was read.
        let mut counts = [0i64; 4];
        let class = |(i, symbol): (usize, &i64)| {
            let count = &mut counts;
            match self {
                Self::Parity => {
                    count[0] += symbol - 1;
                    1 - count[0] % 2
                }
                Self::Aa | Self::Abab => i64::from((i + 1) % self.unit() == 0),
                Self::Counter2 | Self::Counter3 => {
                    count[(symbol - 1) as usize] += 1;
                    match symbol {
                        1 => 0,
                        _ => symbol - 1 + i64::from(count[(symbol - 1) as usize] == count[0]),
                    }
                }
                Self::Shuffle2 | Self::Dyck1 => {
                    count[((symbol - 1) / 2) as usize] += if symbol % 2 == 1 { 1 } else { -1 };
                    i64::from(count[0] > 0) + 2 * i64::from(count[1] > 0)
                }
                Self::ResetDyck1 => {
                    count[0] = match symbol {
                        1 => count[0] + 1,
                        2 => count[0] - 1,
                        _ => 0,
                    };
                    i64::from(count[0] > 0)
                }
            }
        };
        word.iter().enumerate().map(class).collect()
    }
}

/// Draws from the grammar; `None` as soon as the string gets longer than `max`.
///
/// Kind k of brackets has the symbols 2k + 1 and 2k + 2.
fn brackets(draw: &mut Draw, kinds: usize, max: usize) -> Option<Vec<i64>> {
    // What is still to be written, the next thing last: 0 is the grammar's S.
    let mut todo = vec![0];
    let mut word = Vec::new();
    while let Some(next) = todo.pop() {
        if next > 0 {
            word.push(next);
        } else if draw.chance(PAIR) {
            let open = 2 * draw.below(kinds) as i64 + 1;
            word.push(open);
            todo.extend([open + 1, 0]);
        } else if draw.chance(TWO / (1.0 - PAIR)) {
            todo.extend([0, 0]);
        }
        if word.len() + todo.iter().filter(|s| **s > 0).count() > max {
            return None;
        }
    }
    Some(word)
}

/// The weights of the lengths `min..=max` of a string that ends after each symbol with probability
/// `1 / (1 + middle)`, or at `max`.
fn lengths(min: usize, max: usize) -> Vec<u64> {
    let middle = ((min + max) / 2) as f64;
    let (go_on, scale) = (middle / (1.0 + middle), (1u64 << 40) as f64);
    let mut reached = 1.0;
    let mut weights = Vec::with_capacity(max - min + 1);
    for length in min..=max {
        weights.push((reached * if length < max { 1.0 - go_on } else { 1.0 } * scale) as u64);
        reached *= go_on;
    }
    weights
}

/// The configuration of `formal-language`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageSpec {
    /// The language.
    pub language: Language,
    /// The shortest word of training and of `bin0`.
    pub min_length: usize,
    /// The longest.
    pub max_length: usize,
    /// The shortest word of `bin1`.
    pub bin1_min_length: usize,
    /// The longest.
    pub bin1_max_length: usize,
    /// The size of the training set; 0: every row is new.
    pub train_sequences: usize,
    /// How many sequences each evaluation set has.
    pub eval_sequences: usize,
}

const LENGTH: Kind = Kind::Integer { min: 1, max: 1024 };

impl Spec for LanguageSpec {
    const INFO: TaskInfo = TaskInfo {
        name: "formal-language",
        doc: "what may follow in a word of a formal language, at every position (Bhattamishra et al. 2020; Irie et al. 2023)",
        keys: &[
            KeyInfo {
                name: "language",
                kind: Kind::Choice(&["parity", "aa", "abab", "counter-2", "counter-3", "shuffle-2", "dyck-1", "reset-dyck-1"]),
                default: Default::Required,
                doc: "the language",
            },
            KeyInfo {
                name: "min_length",
                kind: LENGTH,
                default: Default::Integer(2),
                doc: "the shortest word of training and of the evaluation set bin0",
            },
            KeyInfo { name: "max_length", kind: LENGTH, default: Default::Integer(50), doc: "the longest" },
            KeyInfo {
                name: "bin1_min_length",
                kind: LENGTH,
                default: Default::Derived("max_length + 1, for shuffle-2 + 2"),
                doc: "the shortest word of the evaluation set bin1",
            },
            KeyInfo { name: "bin1_max_length", kind: LENGTH, default: Default::Derived("2 * max_length"), doc: "the longest" },
            train_sequences(Default::Integer(10_000)),
            eval_sequences(1000),
        ],
    };

    fn read(table: &Checked) -> Result<Self, KeyError> {
        let name = table.text("language").unwrap_or_default();
        let language = NAMES.iter().find(|(_, n)| *n == name).map_or(Language::Parity, |(l, _)| *l);
        let max_length = table.size("max_length");
        let gap = if language == Language::Shuffle2 { 2 } else { 1 };
        let spec = Self {
            language,
            min_length: table.size("min_length"),
            max_length,
            bin1_min_length: table.optional_size("bin1_min_length").unwrap_or(max_length + gap),
            bin1_max_length: table.optional_size("bin1_max_length").unwrap_or(2 * max_length),
            train_sequences: table.size("train_sequences"),
            eval_sequences: table.size("eval_sequences"),
        };
        for (key, min, max) in
            [("max_length", spec.min_length, spec.max_length), ("bin1_max_length", spec.bin1_min_length, spec.bin1_max_length)]
        {
            if max / language.unit() * language.unit() < min {
                let message = format!("`{name}` has no word of {min} to {max} symbols");
                return Err(KeyError { key: key.into(), message, help: None });
            }
        }
        Ok(spec)
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("language", Value::Text(self.language.name().into())),
            ("min_length", size(self.min_length)),
            ("max_length", size(self.max_length)),
            ("bin1_min_length", size(self.bin1_min_length)),
            ("bin1_max_length", size(self.bin1_max_length)),
            ("train_sequences", size(self.train_sequences)),
            ("eval_sequences", size(self.eval_sequences)),
        ]
    }

    fn max_len(&self) -> usize {
        self.max_length.max(self.bin1_max_length)
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        let language = self.language;
        let part = |name, sequences, min, max| {
            let lengths = lengths(min, max);
            Part::new(name, sequences, max, move |draw: &mut Draw| {
                let tokens = language.word(draw, min, max, &lengths);
                Sequence { targets: language.targets(&tokens), tokens }
            })
        };
        let (min, max, eval) = (self.min_length, self.max_length, Some(self.eval_sequences));
        let train = part("train", size_of_set(self.train_sequences), min, max);
        let bins = vec![part("bin0", eval, min, max), part("bin1", eval, self.bin1_min_length, self.bin1_max_length)];
        let shape = Shape {
            vocab: 1 + language.symbols(),
            classes: language.classes(),
            metrics: vec![Metric::SequenceAccuracy, Metric::Accuracy],
        };
        let summary = format!(
            "formal-language: {}, lengths {min} to {max}, evaluated on these and {} to {}",
            language.name(),
            self.bin1_min_length,
            self.bin1_max_length
        );
        Ok(Box::new(Sequences::new(shape, vec![train], bins, summary, fingerprint(self, 1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::testing::{keeps_the_rules, samples};

    fn spec(language: Language) -> LanguageSpec {
        let bin1_min_length = if language == Language::Shuffle2 { 52 } else { 51 };
        LanguageSpec {
            language,
            min_length: 2,
            max_length: 50,
            bin1_min_length,
            bin1_max_length: 100,
            train_sequences: 0,
            eval_sequences: 100,
        }
    }

    /// Whether a string is a word, said another way than the generator does.
    fn is_word(language: Language, text: &str) -> bool {
        let reduced = |text: &str, pairs: &[&str]| {
            let mut text = text.to_string();
            while let Some(pair) = pairs.iter().find(|p| text.contains(**p)) {
                text = text.replace(pair, "");
            }
            text.is_empty()
        };
        let kind = |text: &str, of: &str| text.chars().filter(|c| of.contains(*c)).collect::<String>();
        match language {
            Language::Parity => text.matches('1').count().is_multiple_of(2),
            Language::Aa => text.replace("aa", "").is_empty(),
            Language::Abab => text.replace("abab", "").is_empty(),
            Language::Counter2 => text == "a".repeat(text.len() / 2) + &"b".repeat(text.len() / 2),
            Language::Counter3 => {
                let n = text.len() / 3;
                text == "a".repeat(n) + &"b".repeat(n) + &"c".repeat(n)
            }
            Language::Dyck1 => reduced(text, &["()"]),
            Language::Shuffle2 => reduced(&kind(text, "()"), &["()"]) && reduced(&kind(text, "[]"), &["[]"]),
            // What stands before the last reset may be left open.
            Language::ResetDyck1 => reduced(text.rsplit('1').next().unwrap(), &["()"]),
        }
    }

    /// Whether some word begins with this string; with a stack, or by what can still be added.
    fn begins_a_word(language: Language, text: &str) -> bool {
        match language {
            Language::Counter2 | Language::Counter3 => {
                let long = "a".repeat(text.matches('a').count());
                (0..=2).any(|more| {
                    let word =
                        ["a", "b", "c"][..language.symbols()].iter().map(|s| s.repeat(long.len() + more)).collect::<String>();
                    word.starts_with(text)
                })
            }
            _ => {
                let mut stacks = [0; 2];
                text.chars().all(|c| {
                    match c {
                        '(' => stacks[0] += 1,
                        ')' => stacks[0] -= 1,
                        '[' => stacks[1] += 1,
                        ']' => stacks[1] -= 1,
                        _ => stacks = [0; 2],
                    }
                    stacks.iter().all(|s| *s >= 0)
                })
            }
        }
    }

    #[test]
    fn words_are_words_and_targets_say_what_may_follow() {
        for (language, name) in NAMES {
            let task = spec(language).open().unwrap();
            keeps_the_rules(task.as_ref());
            assert_eq!(task.eval_sets(), ["bin0", "bin1"]);
            let alphabet: &[u8] = match language {
                Language::Parity => b".01",
                Language::ResetDyck1 => b".()1",
                Language::Dyck1 | Language::Shuffle2 => b".()[]",
                _ => b".abc",
            };
            let mut met = std::collections::BTreeSet::new();
            for (set, row) in samples(task.as_ref()) {
                let length = row.targets.iter().position(|t| *t < 0).unwrap_or(row.targets.len());
                let range = if set == Some(1) { spec(language).bin1_min_length..=100 } else { 2..=50 };
                assert!(range.contains(&length), "{name}: {length}");
                assert!(row.tokens[length..].iter().all(|t| *t == 0) && row.targets[length..].iter().all(|t| *t < 0));
                let text: String = row.tokens[..length].iter().map(|t| alphabet[*t as usize] as char).collect();
                assert!(is_word(language, &text), "{name}: {text}");
                for (i, class) in row.targets[..length].iter().enumerate() {
                    let so_far = &text[..=i];
                    let follows = |c: char| begins_a_word(language, &format!("{so_far}{c}"));
                    let wanted = match language {
                        Language::Parity | Language::Aa | Language::Abab => i64::from(is_word(language, so_far)),
                        Language::Counter2 | Language::Counter3 => {
                            let sets: Vec<&str> =
                                if language == Language::Counter2 { vec!["ab", "b", ""] } else { vec!["ab", "b", "c", ""] };
                            let next: String = "abc"[..language.symbols()].chars().filter(|c| follows(*c)).collect();
                            assert_eq!(next.is_empty(), is_word(language, so_far));
                            sets.iter().position(|s| *s == next).unwrap() as i64
                        }
                        _ => i64::from(follows(')')) + 2 * i64::from(language == Language::Shuffle2 && follows(']')),
                    };
                    assert_eq!(*class, wanted, "{name}: {so_far}|{}", &text[i + 1..]);
                    met.insert(*class);
                }
            }
            assert_eq!(met.len(), language.classes(), "{name}: every class is met");
        }
    }

    #[test]
    fn lengths_are_spread_over_their_range() {
        for (language, name) in NAMES {
            let task = spec(language).open().unwrap();
            let mut counts = [0usize; 101];
            for (_, row) in samples(task.as_ref()) {
                counts[row.targets.iter().filter(|t| **t >= 0).count()] += 1;
            }
            for range in [2..=18, 19..=34, 35..=50, 51..=75, 76..=100] {
                assert!(counts[range.clone()].iter().sum::<usize>() > 0, "{name}: none of {range:?}");
            }
        }
    }

    #[test]
    fn the_grammar_has_its_probabilities() {
        let mut draw = Draw::at(1, crate::draw::Purpose::Train, 0, 0, 0);
        let drawn: Vec<_> = (0..40_000).map(|_| brackets(&mut draw, 1, 40)).collect();
        let count = |word: &[i64]| drawn.iter().filter(|d| d.as_deref() == Some(word)).count() as f64 / 40_000.0;
        // e = P(nothing) solves e = 1/4 + e^2/4, so e = 2 - sqrt 3; P("()") solves p = e/2 + 2 e p/4.
        let nothing = 2.0 - 3f64.sqrt();
        let one = 0.5 * nothing / (1.0 - 0.5 * nothing);
        assert!((count(&[]) - nothing).abs() < 0.01, "{}", count(&[]));
        assert!((count(&[1, 2]) - one).abs() < 0.01, "{}", count(&[1, 2]));
    }

    #[test]
    fn ranges_without_a_word_are_refused() {
        let none =
            LanguageSpec { min_length: 50, max_length: 51, bin1_min_length: 53, bin1_max_length: 55, ..spec(Language::Abab) };
        let message = crate::open(&crate::TaskSpec::FormalLanguage(none)).err().unwrap().to_string();
        assert!(message.ends_with("max_length: `abab` has no word of 50 to 51 symbols"), "{message}");
    }
}
