//! Inverses of many small unit triangular matrices.

use std::ops::{AddAssign, Mul};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use tch::{Device, Kind, Tensor, kind::Element};

use crate::shim;

/// (I - L)^-1 for strictly lower triangular L `[batch, c, c]`; what stands on and above the diagonal of L must be zero.
///
/// By substitution, not by powers of L: those grow like binomials where keys repeat, and cancel.
pub fn unit_inverse(l: &Tensor) -> Result<Tensor> {
    match (l.device(), l.kind()) {
        (Device::Cpu, Kind::Float) => on_cpu(l, 0f32, 1f32),
        (Device::Cpu, Kind::Double) => on_cpu(l, 0f64, 1f64),
        _ => {
            let eye = Tensor::f_eye(l.size()[1], (l.kind(), l.device()))?;
            // The diagonal is taken to be 1, so that L alone stands for I - L up to its sign.
            Ok(l.f_neg()?.f_linalg_solve_triangular(&eye.f_expand_as(l)?, false, true, true)?)
        }
    }
}

/// libtorch solves one matrix after the other on one thread, and copies each; for matrices of this size that is most of the time.
fn on_cpu<T: Element + Copy + Send + Sync + Mul<Output = T> + AddAssign>(l: &Tensor, zero: T, one: T) -> Result<Tensor> {
    let size = l.size();
    let (batch, c) = (size[0] as usize, size[1] as usize);
    let mut from = vec![zero; batch * c * c];
    let all = from.len();
    l.f_contiguous()?.f_copy_data(&mut from, all)?;
    let mut to = vec![zero; all];
    // Pieces large enough to be worth a thread.
    let square: usize = c * c;
    let piece: usize = (1_usize << 18).div_ceil((square * c).max(1)).max(1) * square;
    let work: Vec<Mutex<(&[T], &mut [T])>> = from.chunks(piece.max(1)).zip(to.chunks_mut(piece.max(1))).map(Mutex::new).collect();
    shim::parallel_for(work.len(), 1, |range| {
        for item in &work[range] {
            let mut item = item.lock().unwrap_or_else(PoisonError::into_inner);
            let (from, to) = &mut *item;
            for (l, t) in from.chunks_exact(square).zip(to.chunks_exact_mut(square)) {
                invert(l, t, c, one);
            }
        }
        Ok(())
    })?;
    drop(work);
    Ok(Tensor::f_from_slice(&to)?.f_reshape(&size[..])?)
}

/// Row by row: row i of the inverse is the unit vector plus the rows above, times row i of L.
fn invert<T: Copy + Mul<Output = T> + AddAssign>(l: &[T], t: &mut [T], c: usize, one: T) {
    for i in 0..c {
        let (above, rest) = t.split_at_mut(i * c);
        let row = &mut rest[..c];
        row[i] = one;
        for (j, factor) in l[i * c..i * c + i].iter().enumerate() {
            for (x, y) in row[..=j].iter_mut().zip(&above[j * c..=j * c + j]) {
                *x += *factor * *y;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_the_matrix_it_is_the_identity() {
        for (batch, c) in [(1, 1), (3, 2), (5, 17), (300, 16), (7, 64)] {
            let l = Tensor::randn([batch, c, c], (Kind::Double, Device::Cpu)).tril(-1) * 0.3;
            let eye = Tensor::eye(c, (Kind::Double, Device::Cpu));
            let product = unit_inverse(&l).unwrap().matmul(&(&eye - &l));
            assert!(product.allclose(&eye.expand_as(&l), 1e-9, 1e-9, false), "{batch} {c}");
            let single = unit_inverse(&l.to_kind(Kind::Float)).unwrap().matmul(&(&eye - &l).to_kind(Kind::Float));
            assert!(single.allclose(&eye.to_kind(Kind::Float).expand_as(&l), 1e-3, 1e-3, false), "{batch} {c} float32");
        }
    }

    #[test]
    fn repeated_keys_keep_their_precision() {
        // I - L with L = -1 below the diagonal: powers of L reach 1e17 on the way to an inverse of ones.
        let l = -Tensor::ones([2, 64, 64], (Kind::Float, Device::Cpu)).tril(-1);
        let inverse = unit_inverse(&l).unwrap();
        let rows =
            Tensor::eye(64, (Kind::Float, Device::Cpu)) - Tensor::eye(64, (Kind::Float, Device::Cpu)).roll([1], [0]).tril(-1);
        assert!(inverse.allclose(&rows.expand_as(&inverse), 0.0, 1e-6, false));
    }
}
