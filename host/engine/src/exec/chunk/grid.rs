//! Steps cut into chunks: tensors `[steps, n, d]` as rows of matrices, one matrix a chunk and sample.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// How the steps of a scan are cut.
///
/// Matrices of chunks are `[chunks * n, rows, d]`, chunk by chunk, so that the samples of one chunk lie together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Steps.
    pub steps: i64,
    /// Samples times heads.
    pub n: i64,
    /// Steps of a chunk; the last chunk is filled up with steps that do nothing.
    pub chunk: i64,
    /// Kind that is computed in.
    pub kind: Kind,
    /// Device.
    pub device: Device,
}

impl Grid {
    /// Number of chunks.
    pub fn chunks(&self) -> i64 {
        (self.steps + self.chunk - 1) / self.chunk
    }

    /// Matrices: chunks times samples.
    pub fn matrices(&self) -> i64 {
        self.chunks() * self.n
    }

    /// An uninitialised tensor.
    pub fn empty(&self, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_empty(shape, (self.kind, self.device))?)
    }

    /// Zeros.
    pub fn zeros(&self, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_zeros(shape, (self.kind, self.device))?)
    }

    /// Writes `[steps, n, d]` into rows `first`, `first + stride`, ... of `matrices` `[chunks * n, rows, d]`, one row a step; missing steps are `fill`.
    pub fn put(&self, matrices: &Tensor, x: &Tensor, first: i64, stride: i64, fill: f64) -> Result<()> {
        let mut to = self.by_step(matrices, first, stride)?;
        let (whole, rest) = (self.steps / self.chunk, self.steps % self.chunk);
        if rest == 0 {
            return Ok(to.f_copy_(&x.f_unflatten(0, [whole, self.chunk])?)?);
        }
        if whole > 0 {
            let x = x.f_narrow(0, 0, whole * self.chunk)?.f_unflatten(0, [whole, self.chunk])?;
            to.f_narrow(0, 0, whole)?.f_copy_(&x)?;
        }
        to = to.f_select(0, whole)?;
        to.f_narrow(0, 0, rest)?.f_copy_(&x.f_narrow(0, whole * self.chunk, rest)?)?;
        let mut missing = to.f_narrow(0, rest, self.chunk - rest)?;
        _ = if fill == 0.0 { missing.f_zero_()? } else { missing.f_fill_(fill)? };
        Ok(())
    }

    /// The inverse of [`Grid::put`].
    pub fn take(&self, matrices: &Tensor, first: i64, stride: i64) -> Result<Tensor> {
        let from = self.by_step(matrices, first, stride)?;
        let d = from.size()[3];
        Ok(from.f_reshape([-1, self.n, d])?.f_narrow(0, 0, self.steps)?)
    }

    /// A value a step and sample `[steps, n]` as `[chunks * n, chunk]`.
    pub fn flags(&self, x: &Tensor, fill: f64, kind: Kind) -> Result<Tensor> {
        let matrices = Tensor::f_empty([self.matrices(), self.chunk, 1], (kind, self.device))?;
        self.put(&matrices, &x.f_unsqueeze(2)?, 0, 1, fill)?;
        Ok(matrices.f_squeeze_dim(2)?)
    }

    /// `[chunks * n, ...]` as `[chunks, n, ...]`.
    pub fn by_chunk(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_unflatten(0, [self.chunks(), self.n])?)
    }

    fn by_step(&self, matrices: &Tensor, first: i64, stride: i64) -> Result<Tensor> {
        let rows = if first == 0 && stride == 1 && matrices.size()[1] == self.chunk {
            matrices.shallow_clone()
        } else {
            matrices.f_slice(1, first, first + (self.chunk - 1) * stride + 1, stride)?
        };
        Ok(self.by_chunk(&rows)?.f_permute([0, 2, 1, 3])?)
    }
}
