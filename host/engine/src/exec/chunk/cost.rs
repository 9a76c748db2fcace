//! How long a chunk should be.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::layout::{Axis, Layout};

/// Lengths that are considered, in micro steps.
const LENGTHS: [i64; 4] = [16, 32, 64, 128];

/// Time of one matrix product in the walk from chunk to chunk beside its arithmetic, in multiply-adds.
const CALL: f64 = 4e5;

/// Products of matrices with few rows are slower: this many rows more would take as long.
const ROWS: f64 = 5.0;

/// Multiply-adds that a triangular inverse of n rows takes the time of, per n^3.
const INVERSE: f64 = 2.0;

/// Steps a chunk that erases may have for every key, and how many it may have with the fewest keys.
/// Keys of more steps repeat each other, and what the triangular system takes from a write for one of them, it gives back for the next:
/// twice as many keep the error in float32 within three times that of single steps, eight times as many do not keep it within ten.
const LENGTH_BY_KEYS: i64 = 2;
const SHORTEST: i64 = 8;

/// Steps a chunk that take least time by count of operations, as far as they keep precision.
pub fn chunk_length(layout: &Layout, steps: i64, n: i64) -> i64 {
    let segments = layout.segments.max(layout.erasers.len()).max(1) as i64;
    let cost = |length: i64| -> f64 {
        let chunk = balanced(steps, (length / segments).max(1));
        let chunks = (steps + chunk - 1) / chunk;
        let (e, right) = ((layout.erasers.len() as i64 * chunk) as f64, layout.right_rows(chunk) as f64);
        let (writes, left) = (layout.write_rows(chunk) as f64, (layout.left.len() as i64 * chunk) as f64);
        let (keys, values) = (layout.keys as f64, layout.values as f64);
        let pairs = 3.0 * right * writes * keys + 2.0 * (right * writes + left * writes) * values + 3.0 * left * writes * keys;
        let solve = 2.0 * INVERSE * e * e * e + 2.0 * e * e * (keys + 1.5 * values);
        let states = (4.0 * right + 3.0 * writes + 4.0 * left + 4.0 * e) * keys * values;
        chunks as f64 * (n as f64 * (pairs + solve + states) * (1.0 + ROWS / length as f64) + 4.0 * CALL)
    };
    let most = if layout.erasers.is_empty() { i64::MAX } else { (LENGTH_BY_KEYS * layout.keys).max(SHORTEST) };
    let best = LENGTHS.map(|l| l.min(most)).into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(most);
    (best / segments).max(1)
}

/// The shortest chunk that needs no more chunks than this one does: steps that only fill up the last one cost as much as others.
pub fn balanced(steps: i64, chunk: i64) -> i64 {
    let chunks = (steps + chunk - 1) / chunk.max(1);
    ((steps + chunks - 1) / chunks.max(1)).max(1)
}

/// The size of the largest logarithm that chunks are made for: e^-80 is nothing beside 1.
pub const SMALLEST_LOG: f64 = -80.0;

/// The sum of logarithms over a chunk up to which float32 factors are as good as float32 is:
/// half of it is an argument of exp, which is rounded to 6e-8 of itself.
const SINGLE: f64 = 24.0;

/// As [`SINGLE`], for what float64 can hold: exp(640) times exp(640) may overflow where no one looks, each alone may not.
const DOUBLE: f64 = 1280.0;

/// The chunk for decays by key and the kind to compute in: as long as the factors between any two places are numbers.
///
/// `logs` are logarithms of decays `[steps, n, keys]`, one tensor a segment.
pub fn keyed(layout: &Layout, logs: &[Tensor], preferred: i64, kind: Kind) -> Result<(i64, Kind)> {
    debug_assert!(layout.axis == Axis::Keys);
    let mut sizes: Option<Tensor> = None;
    for log in logs {
        // What is not a number is passed on, and says nothing of the others.
        let size = log.f_detach()?.f_abs()?.f_nan_to_num(0.0, None, None)?.f_clamp_max(-SMALLEST_LOG)?;
        sizes = Some(match sizes {
            Some(s) => s.f_add(&size)?,
            None => size,
        });
    }
    let Some(sizes) = sizes else { return Ok((preferred, kind)) };
    // The largest sum of absolute values over chunks of this length.
    let largest = |chunk: i64| -> Result<f64> {
        let steps = sizes.size()[0];
        let missing = (chunk - steps % chunk) % chunk;
        let padded = if missing > 0 { sizes.f_constant_pad_nd([0, 0, 0, 0, 0, missing])? } else { sizes.shallow_clone() };
        let sums = padded.f_unflatten(0, [-1, chunk])?.f_sum_dim_intlist([1i64].as_slice(), false, None)?;
        Ok(sums.f_max()?.f_double_value(&[])?)
    };
    let shortest = (16 / layout.segments.max(1) as i64).max(1).min(preferred);
    let mut chunk = preferred;
    let limits = if kind == Kind::Double { vec![(DOUBLE, kind)] } else { vec![(SINGLE, kind), (DOUBLE, Kind::Double)] };
    for (limit, kind) in limits {
        chunk = chunk.max(preferred);
        loop {
            if largest(chunk)? <= limit {
                return Ok((chunk, kind));
            }
            if chunk <= shortest {
                break;
            }
            chunk = (chunk / 2).max(shortest);
        }
    }
    Ok((shortest, Kind::Double))
}
