//! The chunk algebra itself, without decays: they are already in the matrices that stand here.
//!
//! For a chunk that starts with the carried matrix S:
//!
//! ```text
//! D_E = U_E + A_EE D_E + A_EV U_V + R_E S      a triangular system: D_E = X + Y S, with X and Y of all chunks at once
//! O   = R_Q S + A_QE D_E + A_QV U_V            reads
//! S'  = g S + W_E^T D_E + W_V^T U_V            the only sequential part
//! ```
//!
//! E are rows that erase, V rows that only write, Q rows that are read. D = [D_E; U_V] is what the chunk really writes.
//! The backward pass computes D again from the states at the chunks' starts and carries dS from the last chunk to the first.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::grid::Grid;
use super::inverse::unit_inverse;

/// Bytes of states that are worked on at a time: they are read and written several times, and a second-level cache holds this many.
const CACHE: i64 = 1 << 20;

/// The matrices of all chunks, `m` = chunks times samples.
pub struct Affine<'a> {
    /// The grid.
    pub grid: &'a Grid,
    /// Rows that erase.
    pub erasers: i64,
    /// A: how rows that read see rows that write `[m, E + Q, E + V]`.
    pub sees: Tensor,
    /// R: how rows that read see the start of the chunk `[m, E + Q, keys]`.
    pub start: Tensor,
    /// W: how writes are seen at the end of the chunk `[m, E + V, keys]`.
    pub end: Tensor,
    /// g: what remains of the start at the end `[m, 1 or keys, 1]`; none is all.
    pub through: Option<Tensor>,
    /// What a reset brings.
    pub fresh: Option<Fresh>,
}

/// The state that resets bring, and who sees it.
pub struct Fresh {
    /// The state `[n, keys, values]`.
    pub state: Tensor,
    /// As [`Affine::start`].
    pub start: Tensor,
    /// As [`Affine::through`].
    pub through: Tensor,
}

/// What is written, `[m, rows, values]`: by rows that erase, and by the others.
pub struct Written {
    /// D_E, or U_E on the way in.
    pub erasers: Option<Tensor>,
    /// U_V.
    pub writers: Option<Tensor>,
}

impl Written {
    /// All of D in one tensor.
    pub fn all(&self, grid: &Grid, values: i64) -> Result<Tensor> {
        let parts: Vec<&Tensor> = self.erasers.iter().chain(&self.writers).collect();
        match parts[..] {
            [] => grid.empty(&[grid.matrices(), 0, values]),
            [one] => Ok(one.shallow_clone()),
            _ => Ok(Tensor::f_cat(&parts, 1)?),
        }
    }
}

/// What the forward pass gives.
pub struct Passed {
    /// The carried matrix at the start of every chunk and at the end, `[chunks + 1, n, keys, values]`.
    pub states: Tensor,
    /// D.
    pub written: Written,
    /// O `[m, Q, values]`, where there are such reads.
    pub reads: Option<Tensor>,
    /// (I - A_EE)^-1 and Y.
    system: Option<(Tensor, Tensor)>,
}

impl Passed {
    /// What [`Affine::again`] computes, for a backward pass that may keep it: D_E, (I - A_EE)^-1 and Y.
    pub fn kept(&self) -> Option<[Tensor; 3]> {
        let (inverse, y) = self.system.as_ref()?;
        Some([self.written.erasers.as_ref()?.shallow_clone(), inverse.shallow_clone(), y.shallow_clone()])
    }
}

/// Gradients.
pub struct Gradients {
    /// Of [`Affine::sees`], also where it is masked.
    pub sees: Tensor,
    /// Of [`Affine::start`].
    pub start: Tensor,
    /// Of [`Affine::end`].
    pub end: Tensor,
    /// Of [`Affine::through`], times itself: `[m, keys, 1]`, where there is one.
    pub through: Option<Tensor>,
    /// Of U.
    pub written: Written,
    /// Of the first state.
    pub first: Tensor,
    /// Of the state that resets bring, of how it is seen, and of how it comes through, the last times itself.
    pub fresh: Option<[Tensor; 3]>,
}

/// What flows back into the chunk algebra.
pub struct Incoming<'a> {
    /// Gradients of rows `[m, E + Q, values]`: those of O stand in their rows, the others are written here.
    pub rows: &'a Tensor,
    /// Whether any of O has a gradient; else their rows are zero.
    pub reads: bool,
    /// Further gradient of D.
    pub written: Option<&'a Tensor>,
    /// Further gradient of the states at the chunks' starts `[m, keys, values]`.
    pub states: Option<&'a Tensor>,
    /// Gradient of the last state.
    pub last: Option<&'a Tensor>,
}

/// D with what led to it.
pub struct Again {
    /// D.
    pub written: Written,
    /// T and Y.
    system: Option<(Tensor, Tensor)>,
}

impl Affine<'_> {
    fn part(x: &Tensor, rows: (i64, i64), columns: Option<(i64, i64)>) -> Result<Tensor> {
        let x = if rows == (0, x.size()[1]) { x.shallow_clone() } else { x.f_narrow(1, rows.0, rows.1)? };
        Ok(match columns {
            Some(c) if c != (0, x.size()[2]) => x.f_narrow(2, c.0, c.1)?,
            _ => x,
        })
    }

    /// Rows that erase and rows that are read; columns that erase and columns that only write.
    fn split(&self) -> [(i64, i64); 4] {
        let (e, size) = (self.erasers, self.sees.size());
        [(0, e), (e, size[1] - e), (0, e), (e, size[2] - e)]
    }

    /// (I - A_EE)^-1 and Y.
    fn system(&self) -> Result<(Tensor, Tensor)> {
        let [e, ..] = self.split();
        let inverse = unit_inverse(&Self::part(&self.sees, e, Some(e))?)?;
        let y = inverse.f_bmm(&Self::part(&self.start, e, None)?)?;
        Ok((inverse, y))
    }

    /// U_E with what does not depend on the sequential part.
    fn known(&self, written: &Written, u: &Tensor) -> Result<Tensor> {
        let [e, _, _, v] = self.split();
        let mut known = u.shallow_clone();
        if let Some(writers) = &written.writers {
            known = known.f_baddbmm(&Self::part(&self.sees, e, Some(v))?, writers, 1, 1)?;
        }
        if let Some(fresh) = &self.fresh {
            known = known.f_add(&self.of_fresh(&Self::part(&fresh.start, e, None)?, fresh)?)?;
        }
        Ok(known)
    }

    /// Rows `[m, r, keys]` times the state that a reset brings.
    fn of_fresh(&self, rows: &Tensor, fresh: &Fresh) -> Result<Tensor> {
        Ok(self.grid.by_chunk(rows)?.f_matmul(&fresh.state)?.f_flatten(0, 1)?)
    }

    /// Chunks that are worked on at a time: as many as have states that stay in a cache while everything that needs them is computed.
    fn group(&self, keys: i64, values: i64) -> i64 {
        let bytes = if self.grid.kind == Kind::Double { 8 } else { 4 };
        (CACHE / (self.grid.n * keys * values * bytes).max(1)).clamp(1, self.grid.chunks())
    }

    /// All reads and states.
    pub fn forward(&self, u: Written, first: &Tensor) -> Result<Passed> {
        let (grid, [e, q, _, v]) = (self.grid, self.split());
        let (chunks, m) = (grid.chunks(), grid.matrices());
        let (keys, values) = (first.size()[1], first.size()[2]);
        let states = grid.empty(&[chunks + 1, grid.n, keys, values])?;
        states.f_select(0, 0)?.f_copy_(first)?;
        let system = match &u.erasers {
            Some(own) => {
                let (inverse, y) = self.system()?;
                Some((inverse.f_bmm(&self.known(&u, own)?)?, y, inverse))
            }
            None => None,
        };
        let reads = if q.1 > 0 { Some(grid.empty(&[m, q.1, values])?) } else { None };
        let (of_start, of_end) = (Self::part(&self.start, q, None)?, self.end.f_transpose(1, 2)?);
        let mut at = states.f_unbind(0)?;
        let through = self.through.as_ref().map(|g| grid.by_chunk(g)?.f_unbind(0).map_err(anyhow::Error::from)).transpose()?;
        let steps = match &system {
            Some((x, y, _)) => {
                let by_chunk = |t: &Tensor| -> Result<Vec<Tensor>> { Ok(grid.by_chunk(t)?.f_unbind(0)?) };
                Some((by_chunk(x)?, by_chunk(y)?, by_chunk(&of_end.f_narrow(2, 0, e.1)?)?))
            }
            None => None,
        };

        let mut begin = 0;
        while begin < chunks {
            let length = self.group(keys, values).min(chunks - begin);
            let cut = |t: &Tensor| t.f_narrow(0, begin * grid.n, length * grid.n);
            let flat = |from: i64| states.f_narrow(0, from, length)?.f_view([length * grid.n, keys, values]);
            let mut ends = flat(begin + 1)?;
            // What reaches the ends whatever the states.
            let mut prepared = false;
            if let Some(writers) = &u.writers {
                _ = cut(&of_end)?.f_narrow(2, v.0, v.1)?.f_bmm_out(&ends, &cut(writers)?)?;
                prepared = true;
            }
            if let Some(fresh) = &self.fresh {
                let brought = cut(&fresh.through)?.f_unflatten(0, [length, grid.n])?.f_mul(&fresh.state)?.f_flatten(0, 1)?;
                if prepared {
                    _ = ends.f_add_(&brought)?
                } else {
                    ends.f_copy_(&brought)?
                }
                prepared = true;
            }
            // From chunk to chunk.
            for c in begin as usize..(begin + length) as usize {
                let (before, after) = at.split_at_mut(c + 1);
                let (s, next) = (&before[c], &mut after[0]);
                let own = match &steps {
                    Some((x, y, to_end)) => Some((x[c].shallow_clone().f_baddbmm_(&y[c], s)?, &to_end[c])),
                    None => None,
                };
                match (&through, prepared) {
                    (Some(g), true) => _ = next.f_addcmul_(s, &g[c])?,
                    (Some(g), false) => _ = s.f_mul_out(next, &g[c])?,
                    (None, true) => _ = next.f_add_(s)?,
                    (None, false) => next.f_copy_(s)?,
                }
                if let Some((d, to_end)) = own {
                    _ = next.f_baddbmm_(to_end, &d)?;
                }
            }
            if let Some(o) = &reads {
                _ = cut(&of_start)?.f_bmm_out(&cut(o)?, &flat(begin)?)?;
            }
            begin += length;
        }

        let (d, system) = system.map(|(x, y, inverse)| (x, (inverse, y))).unzip();
        let written = Written { erasers: d, writers: u.writers };
        if let Some(o) = &reads {
            let mut o = o.shallow_clone();
            if let Some(d) = &written.erasers {
                _ = o.f_baddbmm_(&Self::part(&self.sees, q, Some(e))?, d)?;
            }
            if let Some(u) = &written.writers {
                _ = o.f_baddbmm_(&Self::part(&self.sees, q, Some(v))?, u)?;
            }
            if let Some(fresh) = &self.fresh {
                _ = o.f_add_(&self.of_fresh(&Self::part(&fresh.start, q, None)?, fresh)?)?;
            }
        }
        Ok(Passed { states, written, reads, system })
    }

    /// D again, from U and the states, or from what was kept.
    pub fn again(&self, u: Written, states: &Tensor, kept: Option<[Tensor; 3]>) -> Result<Again> {
        let Some(own) = &u.erasers else { return Ok(Again { written: u, system: None }) };
        if let Some([d, inverse, y]) = kept {
            return Ok(Again { written: Written { erasers: Some(d), writers: u.writers }, system: Some((inverse, y)) });
        }
        let [e, ..] = self.split();
        let starts = states.f_narrow(0, 0, self.grid.chunks())?.f_flatten(0, 1)?;
        let (inverse, y) = self.system()?;
        let right = self.known(&u, own)?.f_baddbmm(&Self::part(&self.start, e, None)?, &starts, 1, 1)?;
        let d = inverse.f_bmm(&right)?;
        Ok(Again { written: Written { erasers: Some(d), writers: u.writers }, system: Some((inverse, y)) })
    }

    /// Gradients of everything that entered.
    pub fn backward(&self, again: &Again, states: &Tensor, incoming: &Incoming<'_>) -> Result<Gradients> {
        let (grid, [e, q, _, v]) = (self.grid, self.split());
        let (chunks, m) = (grid.chunks(), grid.matrices());
        let (keys, values) = (states.size()[2], states.size()[3]);
        let o = incoming.reads.then(|| Self::part(incoming.rows, q, None)).transpose()?;
        // What the reads of a chunk ask of what is written in it.
        let of_reads = |columns: (i64, i64)| -> Result<Tensor> {
            let mut d = match &o {
                Some(o) => Self::part(&self.sees, q, Some(columns))?.f_transpose(1, 2)?.f_bmm(o)?,
                None => grid.zeros(&[m, columns.1, values])?,
            };
            if let Some(g) = incoming.written {
                _ = d.f_add_(&Self::part(g, columns, None)?)?;
            }
            Ok(d)
        };
        let d_erasers = again.system.as_ref().map(|_| of_reads(e)).transpose()?;
        let d_writers = again.written.writers.as_ref().map(|_| of_reads(v)).transpose()?;
        // Rows: dZ for rows that erase, dO for those that are read.
        let d_rows = incoming.rows;
        let all = again.written.all(grid, values)?;
        let d_start = grid.empty(&self.start.size())?;
        let d_end = grid.empty(&self.end.size())?;
        let d_through = self.through.as_ref().map(|_| grid.empty(&[m, keys, 1])).transpose()?;
        let empty_fresh = |f: &Fresh| -> Result<[Tensor; 3]> {
            Ok([f.state.f_zeros_like()?, f.start.f_zeros_like()?, grid.empty(&[m, keys, 1])?])
        };
        let mut d_fresh = self.fresh.as_ref().map(empty_fresh).transpose()?;

        let of_start = Self::part(&self.start, q, None)?.f_transpose(1, 2)?;
        let through = self.through.as_ref().map(|g| grid.by_chunk(g)?.f_unbind(0).map_err(anyhow::Error::from)).transpose()?;
        let steps = match (&d_erasers, &again.system) {
            (Some(d), Some((_, y))) => {
                let by_chunk = |t: &Tensor| -> Result<Vec<Tensor>> { Ok(grid.by_chunk(t)?.f_unbind(0)?) };
                Some((by_chunk(d)?, by_chunk(&y.f_transpose(1, 2)?)?, by_chunk(&Self::part(&self.end, e, None)?)?))
            }
            _ => None,
        };

        // dS of one group of chunks at a time, from the last to the first.
        let group = self.group(keys, values);
        let ds = grid.empty(&[group + 1, grid.n, keys, values])?;
        let mut at = ds.f_unbind(0)?;
        let mut end = chunks;
        while end > 0 {
            let length = group.min(end);
            let begin = end - length;
            let (first, rest) = at.split_at_mut(1);
            let last = &mut rest[length as usize - 1];
            match incoming.last {
                _ if end < chunks => last.f_copy_(&first[0])?,
                Some(g) => last.f_copy_(g)?,
                None => _ = last.f_zero_()?,
            }
            let cut = |t: &Tensor| t.f_narrow(0, begin * grid.n, length * grid.n);
            let flat = |t: &Tensor, from: i64| t.f_narrow(0, from, length)?.f_view([length * grid.n, keys, values]);
            let mut base = flat(&ds, 0)?;
            match &o {
                Some(o) => _ = cut(&of_start)?.f_bmm_out(&base, &cut(o)?)?,
                None => _ = base.f_zero_()?,
            }
            if let Some(g) = incoming.states {
                _ = base.f_add_(&cut(g)?)?;
            }
            for c in (0..length as usize).rev() {
                let (before, after) = at.split_at_mut(c + 1);
                let (s, next) = (&mut before[c], &after[0]);
                let chunk = begin as usize + c;
                _ = match &through {
                    Some(g) => s.f_addcmul_(next, &g[chunk])?,
                    None => s.f_add_(next)?,
                };
                if let Some((d, y, to_end)) = &steps {
                    let d = d[chunk].shallow_clone().f_baddbmm_(&to_end[chunk], next)?;
                    _ = s.f_baddbmm_(&y[chunk], &d)?;
                }
            }
            let (starts, d_ends, rows) = (flat(states, begin)?, flat(&ds, 1)?, cut(d_rows)?);
            if let (Some(d), Some((inverse, _))) = (&d_erasers, &again.system) {
                rows.f_narrow(1, e.0, e.1)?.f_copy_(&cut(inverse)?.f_transpose(1, 2)?.f_bmm(&cut(d)?)?)?;
            }
            if let Some(d) = &d_writers {
                let mut d = cut(d)?;
                _ = d.f_baddbmm_(&cut(&self.end)?.f_narrow(1, v.0, v.1)?, &d_ends)?;
                if self.erasers > 0 {
                    let sees = Self::part(&cut(&self.sees)?, e, Some(v))?.f_transpose(1, 2)?;
                    _ = d.f_baddbmm_(&sees, &rows.f_narrow(1, e.0, e.1)?)?;
                }
            }
            _ = rows.f_bmm_out(&cut(&d_start)?, &starts.f_transpose(1, 2)?)?;
            _ = cut(&all)?.f_bmm_out(&cut(&d_end)?, &d_ends.f_transpose(1, 2)?)?;
            if let (Some(d), Some(g)) = (&d_through, &self.through) {
                let product = starts.f_mul(&d_ends)?.f_sum_dim_intlist([2i64].as_slice(), true, None)?;
                cut(d)?.f_copy_(&product.f_mul(&cut(g)?)?)?;
            }
            if let (Some([state, start, through]), Some(fresh)) = (&mut d_fresh, &self.fresh) {
                let split = |t: &Tensor| t.f_unflatten(0, [length, grid.n]);
                let by_sample = |t: &Tensor| -> Result<Tensor> { Ok(t.f_sum_dim_intlist([0i64].as_slice(), false, None)?) };
                let (rows, brought) = (split(&rows)?, split(&cut(&fresh.through)?)?.f_mul(&split(&d_ends)?)?);
                let read = split(&cut(&fresh.start)?)?.f_transpose(2, 3)?.f_matmul(&rows)?;
                _ = state.f_add_(&by_sample(&read)?.f_add(&by_sample(&brought)?)?)?;
                cut(start)?.f_copy_(&rows.f_matmul(&fresh.state.f_transpose(1, 2)?)?.f_flatten(0, 1)?)?;
                let product = brought.f_mul(&fresh.state)?.f_sum_dim_intlist([3i64].as_slice(), true, None)?;
                cut(through)?.f_copy_(&product.f_flatten(0, 1)?)?;
            }
            end = begin;
        }
        Ok(Gradients {
            sees: d_rows.f_bmm(&all.f_transpose(1, 2)?)?,
            start: d_start,
            end: d_end,
            through: d_through,
            written: Written {
                erasers: again.system.as_ref().map(|_| Self::part(d_rows, e, None)).transpose()?,
                writers: d_writers,
            },
            first: at.swap_remove(0),
            fresh: d_fresh,
        })
    }
}
