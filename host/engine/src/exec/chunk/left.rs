//! Reads M q of the carried matrix `[keys, values]`: what was written is the key, the writing rows are what is read.

use anyhow::Result;
use tch::Tensor;

use super::grid::Grid;

/// The matrices of all chunks, `m` = chunks times samples and `r` rows that read.
pub struct LeftReads<'a> {
    /// The grid.
    pub grid: &'a Grid,
    /// Queries `[m, r, values]`.
    pub query: Tensor,
    /// How rows see writes, a factor `[r, writes]` or `[m, r, writes]`.
    pub pair: Tensor,
    /// Writing rows `[m, writes, keys]`.
    pub rows: Tensor,
    /// What results from this chunk's writes are multiplied by `[m, r, keys]`, where decays differ by key.
    pub inside: Option<Tensor>,
    /// How the chunk's start is seen `[m, r, 1 or keys]`; none is wholly.
    pub start: Option<Tensor>,
    /// The state that a reset brings `[n, keys, values]` and how it is seen, as `start`.
    pub fresh: Option<(Tensor, Tensor)>,
}

/// Gradients.
pub struct LeftGradients {
    /// Of the queries.
    pub query: Tensor,
    /// Of D `[m, writes, values]`.
    pub written: Tensor,
    /// Of the states at the chunks' starts `[m, keys, values]`.
    pub states: Tensor,
    /// Of [`LeftReads::pair`], times itself.
    pub pair: Tensor,
    /// Of [`LeftReads::rows`].
    pub rows: Tensor,
    /// Of [`LeftReads::inside`] times itself, where there is one.
    pub inside: Option<Tensor>,
    /// Of [`LeftReads::start`] times itself, `[m, r, keys]`.
    pub start: Tensor,
    /// Of the state that a reset brings, and of how it is seen times itself.
    pub fresh: Option<(Tensor, Tensor)>,
}

fn scaled(x: Tensor, by: Option<&Tensor>) -> Result<Tensor> {
    Ok(match by {
        Some(s) => x.f_mul(s)?,
        None => x,
    })
}

impl LeftReads<'_> {
    fn of_fresh(&self, state: &Tensor) -> Result<Tensor> {
        Ok(self.grid.by_chunk(&self.query)?.f_matmul(&state.f_transpose(1, 2)?)?.f_flatten(0, 1)?)
    }

    /// Results `[m, r, keys]` from D and the states at the chunks' starts.
    pub fn forward(&self, written: &Tensor, starts: &Tensor) -> Result<Tensor> {
        let a = self.query.f_bmm(&written.f_transpose(1, 2)?)?.f_mul_(&self.pair)?;
        let inside = scaled(a.f_bmm(&self.rows)?, self.inside.as_ref())?;
        let start = scaled(self.query.f_bmm(&starts.f_transpose(1, 2)?)?, self.start.as_ref())?;
        let mut o = inside.f_add(&start)?;
        if let Some((state, seen)) = &self.fresh {
            o = o.f_add(&self.of_fresh(state)?.f_mul(seen)?)?;
        }
        Ok(o)
    }

    /// Gradients for that of the results.
    pub fn backward(&self, written: &Tensor, starts: &Tensor, o: &Tensor) -> Result<LeftGradients> {
        let a = self.query.f_bmm(&written.f_transpose(1, 2)?)?.f_mul_(&self.pair)?;
        let inner = scaled(o.shallow_clone(), self.inside.as_ref())?;
        let outer = scaled(o.shallow_clone(), self.start.as_ref())?;
        let mut da = inner.f_bmm(&self.rows.f_transpose(1, 2)?)?;
        let pair = da.f_mul(&a)?;
        da = da.f_mul_(&self.pair)?;
        let inside = match self.inside {
            Some(_) => Some(inner.f_mul(&a.f_bmm(&self.rows)?)?),
            None => None,
        };
        let mut query = da.f_bmm(written)?.f_baddbmm(&outer, starts, 1, 1)?;
        let fresh = match &self.fresh {
            Some((state, seen)) => {
                let of_fresh = o.f_mul(seen)?;
                query = query.f_add(&self.grid.by_chunk(&of_fresh)?.f_matmul(state)?.f_flatten(0, 1)?)?;
                let d = self.grid.by_chunk(&of_fresh)?.f_transpose(2, 3)?.f_matmul(&self.grid.by_chunk(&self.query)?)?;
                Some((d.f_sum_dim_intlist([0i64].as_slice(), false, None)?, of_fresh.f_mul(&self.of_fresh(state)?)?))
            }
            None => None,
        };
        Ok(LeftGradients {
            written: da.f_transpose(1, 2)?.f_bmm(&self.query)?,
            states: outer.f_transpose(1, 2)?.f_bmm(&self.query)?,
            pair,
            rows: a.f_transpose(1, 2)?.f_bmm(&inner)?,
            inside,
            start: outer.f_mul(&self.query.f_bmm(&starts.f_transpose(1, 2)?)?)?,
            query,
            fresh,
        })
    }
}
