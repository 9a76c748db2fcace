//! `group-words`: the word problem of a finite group (Merrill, Petty, Sabharwal 2024, arXiv
//! 2404.08819; Grazzi et al. 2024, arXiv 2411.12537; Siems et al. 2025, DeltaProduct, arXiv
//! 2502.10297).
//!
//! Tokens are elements of the group; the target at each position is the product of all elements up
//! to there: after `g1 g2 ... gt` it is the element g1 g2 ... gt.
//! Elements are permutations, `(g h)(x) = g(h(x))`, numbered in lexicographic order, so that element
//! 0 is the identity.
//!
//! | group | is | elements |
//! |---|---|---|
//! | `S3`, `S4`, `S5` | all permutations of so many points | 6, 24, 120 |
//! | `A5` | the even ones of 5 points | 60 |
//! | `Z60` | the rotations of a cycle of 60 points | 60 |
//! | `A4xZ5` | an even permutation of 4 points beside a rotation of 5 | 60 |
//!
//! The last three have the same size and are not soluble (`A5`), cyclic, and soluble but not
//! abelian.
//!
//! **Variants of Grazzi et al.** With `moves = 2` only the identity and the swaps of two points are
//! drawn, with 3 also the cycles of three points.
//! With `tokens_per_element = 4` an element is followed by three tokens without meaning, and only
//! the last of the four is scored: more time for each element.
//!
//! A sequence begins with a token of its own (`bos`) that is not scored.
//! Lengths count the other tokens.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::data::{Metric, Task};
use crate::draw::Draw;
use crate::registry::{Checked, Spec, TaskError, TaskInfo, fingerprint, size, sizes};
use crate::schema::{Default, KeyError, KeyInfo, Kind, Value};
use crate::sequence::{Part, Sequence, Sequences, Shape, UNSCORED, eval_sequences, size_of_set, train_sequences};

/// A finite group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Group {
    /// All permutations of 3 points.
    S3,
    /// All permutations of 4 points.
    S4,
    /// The even permutations of 5 points.
    A5,
    /// All permutations of 5 points.
    S5,
    /// The rotations of 60 points.
    Z60,
    /// The even permutations of 4 points, times the rotations of 5.
    #[serde(rename = "A4xZ5")]
    A4xZ5,
}

const NAMES: [(Group, &str); 6] =
    [(Group::S3, "S3"), (Group::S4, "S4"), (Group::A5, "A5"), (Group::S5, "S5"), (Group::Z60, "Z60"), (Group::A4xZ5, "A4xZ5")];

/// A permutation: the images of 0, 1, ...
type Permutation = Vec<u8>;

impl Group {
    fn name(self) -> &'static str {
        NAMES.iter().find(|(g, _)| *g == self).map_or("", |(_, name)| name)
    }

    /// All elements in lexicographic order.
    fn elements(self) -> Vec<Permutation> {
        let rotations = |n: u8| (0..n).map(move |by| (0..n).map(|x| (x + by) % n).collect::<Permutation>());
        let mut all = match self {
            Self::S3 => permutations(3),
            Self::S4 => permutations(4),
            Self::S5 => permutations(5),
            Self::A5 => permutations(5).into_iter().filter(|p| is_even(p)).collect(),
            Self::Z60 => rotations(60).collect(),
            Self::A4xZ5 => {
                let even = permutations(4).into_iter().filter(|p| is_even(p));
                // The second factor moves the points 4 to 8.
                let beside =
                    |p: Permutation| rotations(5).map(move |r| p.iter().copied().chain(r.into_iter().map(|x| x + 4)).collect());
                even.flat_map(beside).collect()
            }
        };
        all.sort_unstable();
        all
    }
}

fn permutations(n: u8) -> Vec<Permutation> {
    (0..n).fold(vec![vec![]], |shorter: Vec<Permutation>, _| {
        let longer = |p: &Permutation| (0..n).filter(|x| !p.contains(x)).map(|x| [&p[..], &[x]].concat()).collect::<Vec<_>>();
        shorter.iter().flat_map(longer).collect()
    })
}

fn is_even(p: &[u8]) -> bool {
    let inversions = (0..p.len()).flat_map(|j| (0..j).map(move |i| (i, j))).filter(|(i, j)| p[*i] > p[*j]);
    inversions.count() % 2 == 0
}

/// How many points a permutation moves.
fn moved(p: &[u8]) -> usize {
    p.iter().enumerate().filter(|(x, y)| *x != usize::from(**y)).count()
}

/// The products of all pairs of elements, by number: row g, column h is g h.
fn products(elements: &[Permutation]) -> Vec<u8> {
    let number: HashMap<&[u8], u8> = elements.iter().map(Vec::as_slice).zip(0..).collect();
    let product = |g: &Permutation, h: &Permutation| h.iter().map(|x| g[usize::from(*x)]).collect::<Permutation>();
    let row = |g| elements.iter().map(|h| number[product(g, h).as_slice()]).collect::<Vec<_>>();
    elements.iter().flat_map(row).collect()
}

/// The configuration of `group-words`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// The group.
    pub group: Group,
    /// Elements that move more points than this are not drawn; `None` draws all.
    pub moves: Option<usize>,
    /// How many tokens an element takes.
    pub tokens_per_element: usize,
    /// Whether a sequence begins with a token of its own.
    pub bos: bool,
    /// The number of tokens of a training sequence, without that one.
    pub length: usize,
    /// The same for each evaluation set.
    pub eval_lengths: Vec<usize>,
    /// The size of the training set; 0: every row is new.
    pub train_sequences: usize,
    /// How many sequences each evaluation set has.
    pub eval_sequences: usize,
}

const LENGTH: Kind = Kind::Integer { min: 1, max: 1_048_576 };

impl Spec for GroupSpec {
    const INFO: TaskInfo = TaskInfo {
        name: "group-words",
        doc: "the product of all elements of a finite group so far, at every position (Merrill et al. 2024)",
        keys: &[
            KeyInfo {
                name: "group",
                kind: Kind::Choice(&["S3", "S4", "A5", "S5", "Z60", "A4xZ5"]),
                default: Default::Required,
                doc: "the group",
            },
            KeyInfo {
                name: "moves",
                kind: Kind::Integer { min: 2, max: 60 },
                default: Default::Absent("all elements"),
                doc: "draw only permutations that move at most so many points: 2 is swaps, 3 also cycles of three",
            },
            KeyInfo {
                name: "tokens_per_element",
                kind: Kind::Integer { min: 1, max: 64 },
                default: Default::Integer(1),
                doc: "an element and so many tokens less one without meaning; the last is scored",
            },
            KeyInfo {
                name: "bos",
                kind: Kind::Boolean,
                default: Default::Boolean(true),
                doc: "whether a sequence begins with a token of its own",
            },
            KeyInfo {
                name: "length",
                kind: LENGTH,
                default: Default::Integer(128),
                doc: "tokens of a training sequence, without that one",
            },
            KeyInfo {
                name: "eval_lengths",
                kind: Kind::Integers { min: 1, max: 1_048_576 },
                default: Default::Integers(&[128, 512]),
                doc: "the same for each evaluation set, such as length_512",
            },
            train_sequences(Default::Integer(100_000)),
            eval_sequences(1000),
        ],
    };

    fn read(table: &Checked) -> Result<Self, KeyError> {
        let name = table.text("group").unwrap_or_default();
        let spec = Self {
            group: NAMES.iter().find(|(_, n)| *n == name).map_or(Group::S3, |(g, _)| *g),
            moves: table.optional_size("moves"),
            tokens_per_element: table.size("tokens_per_element"),
            bos: table.flag("bos"),
            length: table.size("length"),
            eval_lengths: table.sizes("eval_lengths"),
            train_sequences: table.size("train_sequences"),
            eval_sequences: table.size("eval_sequences"),
        };
        let each = spec.tokens_per_element;
        for (key, length) in
            std::iter::once(("length", &spec.length)).chain(spec.eval_lengths.iter().map(|l| ("eval_lengths", l)))
        {
            if length % each != 0 {
                let message = format!("{length} tokens are not a multiple of tokens_per_element = {each}");
                return Err(KeyError { key: key.into(), message, help: None });
            }
        }
        if spec.moves.is_some() && spec.drawn(&spec.group.elements()).len() < 2 {
            let message = format!("only the identity of {name} moves so few points");
            return Err(KeyError { key: "moves".into(), message, help: Some("raise it, or leave it out".into()) });
        }
        Ok(spec)
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        let mut values = vec![("group", Value::Text(self.group.name().into()))];
        values.extend(self.moves.map(|n| ("moves", size(n))));
        values.extend([
            ("tokens_per_element", size(self.tokens_per_element)),
            ("bos", Value::Boolean(self.bos)),
            ("length", size(self.length)),
            ("eval_lengths", sizes(&self.eval_lengths)),
            ("train_sequences", size(self.train_sequences)),
            ("eval_sequences", size(self.eval_sequences)),
        ]);
        values
    }

    fn max_len(&self) -> usize {
        let longest = self.eval_lengths.iter().copied().chain([self.length]).max();
        longest.unwrap_or_default() + usize::from(self.bos)
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        let elements = self.group.elements();
        let order = elements.len();
        let part = |length: usize, sequences| {
            let maker = Maker {
                drawn: self.drawn(&elements),
                products: products(&elements),
                order,
                each: self.tokens_per_element,
                bos: self.bos,
                count: length / self.tokens_per_element,
            };
            let max_len = length + usize::from(self.bos);
            Part::new(format!("length_{length}"), sequences, max_len, move |draw: &mut Draw| maker.sequence(draw))
        };
        let train = part(self.length, size_of_set(self.train_sequences));
        let eval: Vec<Part> = self.eval_lengths.iter().map(|l| part(*l, Some(self.eval_sequences))).collect();
        let shape = Shape {
            vocab: order + usize::from(self.tokens_per_element > 1) + usize::from(self.bos),
            classes: order,
            metrics: vec![Metric::Accuracy, Metric::ScaledAccuracy { chance: 1.0 / order as f64 }, Metric::SequenceAccuracy],
        };
        let summary = format!("group-words: {}, length {}, evaluated on {:?}", self.group.name(), self.length, self.eval_lengths);
        Ok(Box::new(Sequences::new(shape, vec![train], eval, summary, fingerprint(self, 1))))
    }
}

impl GroupSpec {
    /// The numbers of the elements that are drawn.
    fn drawn(&self, elements: &[Permutation]) -> Vec<u8> {
        let few = |p: &Permutation| self.moves.is_none_or(|most| moved(p) <= most);
        (0..).zip(elements).filter(|(_, p)| few(p)).map(|(i, _)| i).collect()
    }
}

/// Makes sequences of one length.
struct Maker {
    drawn: Vec<u8>,
    products: Vec<u8>,
    order: usize,
    each: usize,
    bos: bool,
    count: usize,
}

impl Maker {
    fn sequence(&self, draw: &mut Draw) -> Sequence {
        let (filler, bos) = (self.order as i64, (self.order + usize::from(self.each > 1)) as i64);
        let capacity = self.count * self.each + 1;
        let (mut tokens, mut targets) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        if self.bos {
            tokens.push(bos);
            targets.push(UNSCORED);
        }
        let mut product = 0; // the identity
        for _ in 0..self.count {
            let element = self.drawn[draw.below(self.drawn.len())];
            product = self.products[usize::from(product) * self.order + usize::from(element)];
            tokens.push(i64::from(element));
            tokens.resize(tokens.len() + self.each - 1, filler);
            targets.resize(targets.len() + self.each - 1, UNSCORED);
            targets.push(i64::from(product));
        }
        Sequence { tokens, targets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::testing::{keeps_the_rules, samples};

    fn spec(group: Group) -> GroupSpec {
        GroupSpec {
            group,
            moves: None,
            tokens_per_element: 1,
            bos: true,
            length: 24,
            eval_lengths: vec![24, 48],
            train_sequences: 0,
            eval_sequences: 40,
        }
    }

    /// The image of every point under a word, followed point by point: the last letter acts first.
    fn follow(elements: &[Permutation], word: &[i64]) -> Permutation {
        let image = |x: u8| word.iter().rev().fold(x, |x, g| elements[*g as usize][usize::from(x)]);
        (0..elements[0].len() as u8).map(image).collect()
    }

    #[test]
    fn groups_are_groups() {
        for (group, order, abelian) in [
            (Group::S3, 6, false),
            (Group::S4, 24, false),
            (Group::A5, 60, false),
            (Group::S5, 120, false),
            (Group::Z60, 60, true),
            (Group::A4xZ5, 60, false),
        ] {
            let elements = group.elements();
            let table = products(&elements);
            let at = |g: usize, h: usize| usize::from(table[g * order + h]);
            assert_eq!(elements.len(), order);
            assert_eq!(moved(&elements[0]), 0, "element 0 is the identity");
            for g in 0..order {
                assert_eq!((at(0, g), at(g, 0)), (g, g));
                let mut row: Vec<usize> = (0..order).map(|h| at(g, h)).collect();
                row.sort_unstable();
                assert_eq!(row, (0..order).collect::<Vec<_>>(), "a Latin square");
            }
            for (g, h, k) in (0..200).map(|i| (i * 7 % order, i * 11 % order, i * 13 % order)) {
                assert_eq!(at(at(g, h), k), at(g, at(h, k)), "associative");
            }
            assert_eq!((0..order).all(|g| (0..order).all(|h| at(g, h) == at(h, g))), abelian);
        }
        // A5 is simple: the conjugates of any element but the identity generate all of it. It is
        // told from A4 x Z5 by its elements of order 2: 15 against 3.
        let involutions = |group: Group| {
            let elements = group.elements();
            (1..60i64).filter(|g| follow(&elements, &[*g, *g]) == elements[0]).count()
        };
        assert_eq!((involutions(Group::A5), involutions(Group::A4xZ5), involutions(Group::Z60)), (15, 3, 1));
    }

    #[test]
    fn targets_are_the_products_of_what_came_before() {
        for (group, _) in NAMES {
            let task = spec(group).open().unwrap();
            keeps_the_rules(task.as_ref());
            assert_eq!(task.eval_sets(), ["length_24", "length_48"]);
            let elements = group.elements();
            for (set, row) in samples(task.as_ref()) {
                let length = if set == Some(1) { 49 } else { 25 };
                assert_eq!(row.tokens.len(), length);
                assert_eq!((row.tokens[0], row.targets[0]), (elements.len() as i64, UNSCORED));
                for t in 1..length {
                    let product = follow(&elements, &row.tokens[1..=t]);
                    assert_eq!(elements[row.targets[t] as usize], product);
                }
            }
        }
    }

    #[test]
    fn variants_draw_few_elements_or_take_their_time() {
        let swaps = GroupSpec { moves: Some(2), ..spec(Group::S5) };
        let cycles = GroupSpec { moves: Some(3), ..spec(Group::S5) };
        let elements = Group::S5.elements();
        assert_eq!((swaps.drawn(&elements).len(), cycles.drawn(&elements).len()), (11, 31));
        for (_, row) in samples(swaps.open().unwrap().as_ref()) {
            assert!(row.tokens[1..].iter().all(|g| moved(&elements[*g as usize]) <= 2));
        }
        let slow = GroupSpec { tokens_per_element: 4, bos: false, ..spec(Group::S5) };
        let task = slow.open().unwrap();
        keeps_the_rules(task.as_ref());
        for (_, row) in samples(task.as_ref()) {
            let word: Vec<i64> = row.tokens.iter().copied().step_by(4).collect();
            for (i, (token, target)) in row.tokens.iter().zip(&row.targets).enumerate() {
                assert_eq!(*token == 120, i % 4 > 0);
                let wanted = (i % 4 == 3).then(|| follow(&elements, &word[..=i / 4]));
                assert_eq!((*target != UNSCORED).then(|| elements[*target as usize].clone()), wanted);
            }
        }
        for wrong in [
            GroupSpec { tokens_per_element: 5, ..spec(Group::S5) },
            GroupSpec { moves: Some(2), ..spec(Group::A5) },
            GroupSpec { eval_lengths: vec![], ..spec(Group::S3) },
        ] {
            assert!(crate::open(&crate::TaskSpec::GroupWords(wrong)).is_err());
        }
    }
}
