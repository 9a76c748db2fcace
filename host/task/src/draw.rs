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
    fn permutations_are_permutations() {
        for n in [0, 1, 2, 5, 100] {
            let mut order = Draw::at(1, Purpose::Train, n as u64, 0, 0).permutation(n);
            order.sort_unstable();
            assert_eq!(order, (0..n as i64).collect::<Vec<_>>());
        }
        assert_eq!(Draw::at(1, Purpose::Train, 0, 0, 0).below(0), 0);
    }
}
