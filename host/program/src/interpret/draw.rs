//! Random draws: the same for the same seed on every machine.

use std::f64::consts::PI;

/// A seeded source of draws (splitmix64; Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
    spare: Option<f64>,
}

impl Random {
    /// A source with this seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed, spare: None }
    }

    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        if let Some(x) = self.spare.take() {
            return x;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let angle = 2.0 * PI * self.uniform();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// Rows of Gaussian directions made orthogonal in blocks of `n`, with the lengths of Gaussian vectors.
    pub(super) fn orthogonal(&mut self, rows: usize, n: usize) -> Vec<f64> {
        let mut out: Vec<Vec<f64>> = Vec::with_capacity(rows);
        for row in 0..rows {
            let block = row - row % n.max(1);
            let mut v: Vec<f64> = (0..n).map(|_| self.normal()).collect();
            // Twice: once loses orthogonality where directions nearly agree.
            for _ in 0..2 {
                for other in &out[block..row] {
                    let along: f64 = v.iter().zip(other).map(|(a, b)| a * b).sum();
                    v.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
                }
            }
            let length = v.iter().map(|a| a * a).sum::<f64>().sqrt();
            v.iter_mut().for_each(|a| *a /= length);
            out.push(v);
        }
        let mut all = Vec::with_capacity(rows * n);
        for v in out {
            let length = (0..n).map(|_| self.normal().powi(2)).sum::<f64>().sqrt();
            all.extend(v.into_iter().map(|a| a * length));
        }
        all
    }
}
