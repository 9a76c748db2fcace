//! Random draws that are the same on every machine and with every version of this program.
//!
//! The bits come from ChaCha with 8 rounds, whose stream is defined by its specification.
//! The integer draws are made here, because the sampling code of general libraries changes
//! between versions and with the width of `usize`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What draws are for. Each purpose has streams of its own under the same seed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// Training batches.
    Train = 1,
    /// Evaluation batches.
    Eval = 2,
    /// Choices that hold for a whole run, such as where sequential streams begin.
    Layout = 3,
    /// The sequences of a training set of fixed size.
    TrainSet = 4,
}

/// The random stream of one row of one batch.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream at a place. Different places give independent streams.
    pub(crate) fn at(seed: u64, purpose: Purpose, index: u64, micro: u64, row: u64) -> Self {
        let mut key = [0; 32];
        for (slot, part) in key.chunks_exact_mut(8).zip([seed, purpose as u64, index, micro]) {
            slot.copy_from_slice(&part.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(row);
        Self(rng)
    }

    /// An integer in `0..bound`, all equally likely; 0 when the bound is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u64;
        if bound < 2 {
            return 0;
        }
        // The largest multiple of the bound that fits: what lies above would favour small results.
        let fair = u64::MAX - u64::MAX % bound;
        loop {
            let draw = self.0.next_u64();
            if draw < fair {
                return (draw % bound) as usize;
            }
        }
    }

    /// An integer in `first..=last`, all equally likely.
    pub(crate) fn between(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// Whether an event of probability `p` happens, to a precision of 2^-53.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        ((self.0.next_u64() >> 11) as f64) < p * (1u64 << 53) as f64
    }

    /// An index, each with a probability in proportion to its weight; the weights add up to `total`.
    pub(crate) fn weighted(&mut self, weights: &[u64], total: u64) -> usize {
        let mut rest = self.below(total as usize) as u64;
        let place = weights.iter().position(|w| {
            let found = rest < *w;
            rest = rest.wrapping_sub(*w);
            found
        });
        place.unwrap_or_default()
    }

    /// `count` different integers in `0..bound`, all choices and orders equally likely.
    ///
    /// A bound below `count` gives as many as there are.
    pub(crate) fn distinct(&mut self, count: usize, bound: usize) -> Vec<i64> {
        if 2 * count > bound {
            let mut all = self.permutation(bound);
            all.truncate(count);
            return all;
        }
        // What was drawn before is drawn again at most every other time.
        let mut seen = vec![0u64; bound.div_ceil(64)];
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let x = self.below(bound);
            let (word, bit) = (&mut seen[x / 64], 1 << (x % 64));
            if *word & bit == 0 {
                *word |= bit;
                found.push(x as i64);
            }
        }
        found
    }

    /// The integers `0..n` in random order, all orders equally likely.
    pub(crate) fn permutation(&mut self, n: usize) -> Vec<i64> {
        let mut items: Vec<i64> = (0..n as i64).collect();
        for last in (1..n).rev() {
            items.swap(last, self.below(last + 1));
        }
        items
    }

    /// `count` integers in `0..bound`, drawn with replacement.
    pub(crate) fn with_replacement(&mut self, count: usize, bound: usize) -> Vec<i64> {
        (0..count).map(|_| self.below(bound) as i64).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_fixed_for_ever() {
        // These numbers are part of the meaning of every recipe's seed: a change here changes
        // every published curve.
        let mut draw = Draw::at(1, Purpose::Train, 2, 3, 4);
        let drawn: Vec<usize> = (0..8).map(|_| draw.below(1000)).collect();
        assert_eq!(drawn, EXPECTED);
        assert_eq!(Draw::at(7, Purpose::Eval, 0, 0, 0).permutation(6), EXPECTED_ORDER);
    }
    const EXPECTED: [usize; 8] = [965, 563, 332, 424, 197, 77, 342, 171];
    const EXPECTED_ORDER: [i64; 6] = [5, 3, 0, 4, 2, 1];

    #[test]
    fn each_part_of_the_place_matters() {
        let first = |s, p, i, m, r| Draw::at(s, p, i, m, r).below(usize::MAX);
        let base = first(1, Purpose::Train, 1, 1, 1);
        for other in [
            first(2, Purpose::Train, 1, 1, 1),
            first(1, Purpose::Eval, 1, 1, 1),
            first(1, Purpose::Train, 2, 1, 1),
            first(1, Purpose::Train, 1, 2, 1),
            first(1, Purpose::Train, 1, 1, 2),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn draws_are_uniform() {
        let mut draw = Draw::at(3, Purpose::Train, 0, 0, 0);
        let mut counts = [0_f64; 7];
        for _ in 0..70_000 {
            counts[draw.below(7)] += 1.0;
        }
        // Chi-square with 6 degrees of freedom: 22.5 is exceeded once in 1,000 fair trials.
        let chi: f64 = counts.iter().map(|c| (c - 10_000.0).powi(2) / 10_000.0).sum();
        assert!(chi < 22.5, "{counts:?}");
    }

    #[test]
    fn draws_follow_their_probabilities() {
        let mut draw = Draw::at(9, Purpose::Train, 0, 0, 0);
        let hits = (0..40_000).filter(|_| draw.chance(0.3)).count();
        assert!((11_700..12_300).contains(&hits), "{hits}"); // 3.3 standard deviations
        assert!((0..1000).all(|_| !draw.chance(0.0) && draw.chance(1.0)));
        let mut counts = [0; 4];
        (0..40_000).for_each(|_| counts[draw.weighted(&[1, 0, 2, 5], 8)] += 1);
        assert_eq!(counts[1], 0);
        for (count, wanted) in [(counts[0], 5000), (counts[2], 10_000), (counts[3], 25_000)] {
            assert!((count - wanted as i64).abs() < 350, "{counts:?}");
        }
        for (count, bound) in [(0, 5), (5, 5), (3, 5), (2, 1000), (9, 5)] {
            let mut found = draw.distinct(count, bound);
            assert!(found.len() == count.min(bound) && found.iter().all(|x| (0..bound as i64).contains(x)));
            found.sort_unstable();
            found.dedup();
            assert_eq!(found.len(), count.min(bound));
        }
    }

    #[test]
    fn permutations_are_permutations() {
        for n in [0, 1, 2, 5, 100] {
            let mut order = Draw::at(1, Purpose::Train, n as u64, 0, 0).permutation(n);
            order.sort_unstable();
            assert_eq!(order, (0..n as i64).collect::<Vec<_>>());
        }
        assert_eq!(Draw::at(1, Purpose::Train, 0, 0, 0).below(0), 0);
    }
}
