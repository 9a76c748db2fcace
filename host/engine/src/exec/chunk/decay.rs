//! Decays: from the rows and writes of a step to the matrices of the chunk algebra, and the gradients back.
//!
//! Everything about decays is kept as logarithms and summed in float64; only differences are exponentiated.
//!
//! - One number for the whole matrix: a factor for every pair of a row and a write. Its gradient is summed over the pairs that a decay lies between,
//!   which needs neither differences of large sums nor a division by a product, so it also holds for decays that are tiny, negative or zero.
//! - One number a key: rows are multiplied by exp(l - m), writes by exp(m - l), with m in the middle of the chunk.
//!   The chunk must be short enough for both to be numbers, see [`super::cost`].

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::affine::{Affine, Fresh, Gradients};
use super::grid::Grid;
use super::left::{LeftGradients, LeftReads};
use super::sight::{Rows, Sight, along};

/// Rows and writes of all chunks, as the step gives them; `m` = chunks times samples.
pub struct Plain {
    /// Rows of erasers and of reads M^T q `[m, right, keys]`.
    pub rows: Tensor,
    /// Rows that write `[m, writes, keys]`.
    pub writes: Tensor,
    /// Queries of reads M q `[m, left, values]`.
    pub left: Option<Tensor>,
    /// The decays of micro steps.
    pub logs: Option<Logs>,
    /// The state that a reset brings `[n, keys, values]`.
    pub fresh: Option<Tensor>,
}

/// Logarithms of the decays of micro steps.
pub struct Logs {
    /// Of the size, `[m, micro, 1 or keys]`, float64.
    pub size: Tensor,
    /// 1 where it is negative, `[m, micro, 1]`, float64, if any may be.
    pub negative: Option<Tensor>,
}

/// Gradients of [`Plain`].
pub struct PlainGradients {
    /// Of the rows.
    pub rows: Tensor,
    /// Of the writes.
    pub writes: Tensor,
    /// Of the logarithms.
    pub logs: Option<Tensor>,
    /// Of the state that a reset brings.
    pub fresh: Option<Tensor>,
}

/// The matrices with the decays in them.
pub struct Decayed<'a> {
    /// The chunk algebra.
    pub affine: Affine<'a>,
    /// Reads M q.
    pub left: Option<LeftReads<'a>>,
    factors: Factors,
}

enum Factors {
    /// The same for all keys: pairs, start, end, fresh.
    Whole(Whole),
    /// By key.
    Keyed(Keyed),
}

struct Whole {
    /// `[reads, writes]` or `[m, reads, writes]`.
    pair: Tensor,
    /// `[m, reads, 1]`.
    start: Option<Tensor>,
    /// `[m, writes, 1]`.
    end: Option<Tensor>,
    /// `[m, 1, 1]`.
    through: Option<Tensor>,
    /// `[m, reads + 1, 1]`.
    fresh: Option<Tensor>,
}

struct Keyed {
    /// True where a row does not see a write.
    hidden: Tensor,
    /// l - m at all places `[m, places, keys]`.
    from_middle: Tensor,
    /// exp(l - m) of rows that read `[m, reads, keys]`.
    reads: Tensor,
    /// exp(m - l) of rows that write `[m, writes, keys]`.
    writes: Tensor,
    /// exp(m) `[m, 1, keys]`.
    half: Tensor,
    /// Rows and writes times these.
    rows: Tensor,
    written: Tensor,
    /// `[m, reads + 1, keys]`.
    fresh: Option<Tensor>,
}

fn times(x: &Tensor, by: Option<&Tensor>) -> Result<Tensor> {
    Ok(match by {
        Some(s) => x.f_mul(s)?,
        None => x.shallow_clone(),
    })
}

fn both(a: Option<Tensor>, b: Option<&Tensor>) -> Result<Option<Tensor>> {
    Ok(match (a, b) {
        (Some(a), Some(b)) => Some(a.f_mul(b)?),
        (a, b) => a.or_else(|| b.map(Tensor::shallow_clone)),
    })
}

/// exp(x) where `seen` is not zero, in the given kind. What is not seen may be anything, for instance an overflow.
fn exp_where(x: &Tensor, seen: Option<&Tensor>, kind: Kind) -> Result<Tensor> {
    let mut x = x.f_to_kind(kind)?;
    if let Some(seen) = seen {
        _ = x.f_masked_fill_(&seen.f_eq(0)?, f64::NEG_INFINITY)?;
    }
    Ok(x.f_exp_()?)
}

impl<'a> Decayed<'a> {
    /// Puts the decays in. `kept` is what [`Decayed::kept`] gave, or nothing.
    pub fn new(grid: &'a Grid, rows: &Rows, sight: &Sight, plain: &Plain, kept: &[Tensor]) -> Result<Decayed<'a>> {
        match &plain.logs {
            Some(logs) if logs.size.size()[2] > 1 => keyed(grid, rows, sight, plain, logs, kept),
            logs => whole(grid, rows, sight, plain, logs.as_ref(), kept),
        }
    }

    /// What takes long to compute and a backward pass may keep.
    pub fn kept(&self) -> Vec<Tensor> {
        let mut kept = vec![self.affine.sees.shallow_clone()];
        match &self.factors {
            Factors::Whole(w) => kept.push(w.pair.shallow_clone()),
            Factors::Keyed(k) => kept.extend([k.from_middle.shallow_clone(), k.half.shallow_clone()]),
        }
        kept
    }

    /// The gradients of rows, writes and decays.
    pub fn backward(
        &self,
        rows: &Rows,
        sight: &Sight,
        plain: &Plain,
        g: &mut Gradients,
        left: Option<&LeftGradients>,
    ) -> Result<PlainGradients> {
        match &self.factors {
            Factors::Whole(w) => self.whole_backward(w, rows, sight, plain, g, left),
            Factors::Keyed(k) => self.keyed_backward(k, rows, sight, plain, g, left),
        }
    }

    fn whole_backward(
        &self,
        w: &Whole,
        rows: &Rows,
        sight: &Sight,
        plain: &Plain,
        g: &mut Gradients,
        left: Option<&LeftGradients>,
    ) -> Result<PlainGradients> {
        let right = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(-2, 0, rows.right)?) };
        let sum = |t: Tensor| -> Result<Tensor> { Ok(t.f_sum_dim_intlist([2i64].as_slice(), true, Kind::Double)?) };
        let logs = match &plain.logs {
            Some(_) => {
                let mut pairs = g.sees.f_mul(&self.affine.sees)?;
                let mut start = sum(g.start.f_mul(&self.affine.start)?)?;
                let fresh = match (&g.fresh, &self.affine.fresh) {
                    (Some([_, d, through]), Some(f)) => {
                        Some((sum(d.f_mul(&f.start)?)?, through.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Double)?))
                    }
                    _ => None,
                };
                let mut fresh_left = None;
                if let Some(left) = left {
                    pairs = Tensor::f_cat(&[&pairs, &left.pair], 1)?;
                    start = Tensor::f_cat(&[&start, &sum(left.start.shallow_clone())?], 1)?;
                    fresh_left = left.fresh.as_ref().map(|(_, d)| sum(d.shallow_clone())).transpose()?;
                }
                let end = sum(g.end.f_mul(&self.affine.end)?)?;
                // By micro step: what passes it on the way from a write to a row, from the start to a row, from a write to the end.
                let later = &sight.paths.later.f_to_kind(Kind::Double)?;
                let pairs = pairs.f_to_kind(Kind::Double)?;
                let to = sight.paths.to.f_to_kind(Kind::Double)?;
                let to_reads = to.f_index_select(-2, &sight.paths.reads)?;
                let mut d = pairs.f_matmul(later)?.f_add_(&start)?.f_mul_(&to_reads)?.f_sum_dim_intlist(
                    [1i64].as_slice(),
                    false,
                    None,
                )?;
                let mut at_end = end.f_transpose(1, 2)?.f_matmul(later)?.f_squeeze_dim(1)?;
                if let Some(through) = &g.through {
                    at_end = at_end.f_add(&through.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?)?;
                }
                d = d.f_add(&at_end.f_mul(&to.f_select(-2, sight.paths.end)?)?)?;
                if let (Some((start, through)), Some(seen)) = (fresh, &sight.fresh) {
                    let parts: Vec<Tensor> = [Some(start), fresh_left, Some(through)].into_iter().flatten().collect();
                    let ways = seen.paths.f_to_kind(Kind::Double)?;
                    d = d.f_add(&ways.f_mul(&Tensor::f_cat(&parts, 1)?)?.f_sum_dim_intlist([1i64].as_slice(), false, None)?)?;
                }
                Some(d.f_unsqueeze(2)?)
            }
            None => None,
        };
        let sees = g.sees.f_mul_(&right(&w.pair)?)?;
        let start = w.start.as_ref().map(right).transpose()?;
        let mut d_rows = times(&g.start, start.as_ref())?.f_baddbmm_(&sees, &plain.writes)?;
        let mut d_writes = times(&g.end, w.end.as_ref())?.f_baddbmm_(&sees.f_transpose(1, 2)?, &plain.rows)?;
        let mut fresh = None;
        if let (Some([state, d, _]), Some(f)) = (&g.fresh, &w.fresh) {
            d_rows = d_rows.f_add(&d.f_mul(&right(f)?)?)?;
            fresh = Some(state.shallow_clone());
        }
        if let Some(left) = left {
            d_writes = d_writes.f_add_(&left.rows)?;
            if let (Some(f), Some((state, _))) = (&mut fresh, &left.fresh) {
                *f = f.f_add(state)?;
            }
        }
        Ok(PlainGradients { rows: d_rows, writes: d_writes, logs, fresh })
    }

    fn keyed_backward(
        &self,
        k: &Keyed,
        rows: &Rows,
        sight: &Sight,
        plain: &Plain,
        g: &mut Gradients,
        left: Option<&LeftGradients>,
    ) -> Result<PlainGradients> {
        let right = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(1, 0, rows.right)?) };
        let mut sees = g.sees.f_masked_fill_(&k.hidden, 0)?;
        // Pairs without a decay between them stay out of the decays' gradients,
        // which would else be small differences of large sums where everything else has decayed away.
        let close = sees.f_mul(&right(&sight.paths.close.f_to_kind(self.affine.grid.kind)?.f_unsqueeze(0)?)?)?;
        sees = sees.f_sub_(&close)?;
        let at_end = sight.paths.close_to_end.f_reshape([1, -1, 1])?;
        let to_start = both(Some(k.half.shallow_clone()), sight.start.as_ref().map(right).transpose()?.as_ref())?;
        let to_end = both(Some(k.half.shallow_clone()), sight.end.as_ref())?;
        let mut d_rows = times(&g.start, to_start.as_ref())?.f_baddbmm_(&sees, &k.written)?;
        let d_end = times(&g.end, to_end.as_ref())?;
        let mut d_writes = d_end.f_masked_fill(&at_end, 0)?.f_baddbmm_(&sees.f_transpose(1, 2)?, &k.rows)?;
        if let Some(left) = left {
            d_writes = d_writes.f_add_(&left.rows)?;
        }
        // What hangs on the sum of logarithms at each place.
        let mut at_reads = d_rows.f_mul(&k.rows)?;
        if let Some(left) = left {
            let inside = left.inside.as_ref().context("internal: decays by key without a factor inside")?;
            at_reads = Tensor::f_cat(&[&at_reads, &inside.f_add(&left.start)?], 1)?;
        }
        let at_writes = d_writes.f_mul(&k.written)?.f_neg_()?;
        // The rest of both, without a part in decays.
        d_rows = d_rows.f_baddbmm_(&close, &k.written)?;
        d_writes = d_writes.f_add_(&d_end.f_mul(&at_end.f_to_kind(self.affine.grid.kind)?)?)?;
        d_writes = d_writes.f_baddbmm_(&close.f_transpose(1, 2)?, &k.rows)?;
        let mut at_end =
            g.end.f_mul(&self.affine.end)?.f_masked_fill_(&at_end, 0)?.f_sum_dim_intlist([1i64].as_slice(), true, None)?;
        if let Some(through) = &g.through {
            at_end = at_end.f_add(&through.f_transpose(1, 2)?)?;
        }
        let size = at_end.size();
        let places = sight.paths.to.size()[sight.paths.to.dim() - 2];
        let mut at = self.affine.grid.zeros(&[size[0], places, size[2]])?;
        at = at.f_index_add_(1, &sight.paths.reads, &at_reads)?.f_index_add_(1, &sight.paths.writes, &at_writes)?;
        _ = at.f_narrow(1, sight.paths.end, 1)?.f_add_(&at_end)?;
        let mut logs = along(&sight.paths.to.f_transpose(-2, -1)?, &at.f_to_kind(Kind::Double)?)?;

        let mut d_rows = d_rows.f_mul(&right(&k.reads)?)?;
        let mut fresh = None;
        if let (Some([state, d, through]), Some(f), Some(seen)) = (&g.fresh, &k.fresh, &sight.fresh) {
            let d_own = d.f_mul(&right(f)?)?;
            let mut parts = vec![d_own.f_mul(&plain.rows)?];
            let mut state = state.shallow_clone();
            if let Some((of_left, at)) = left.and_then(|l| l.fresh.as_ref()) {
                parts.push(at.shallow_clone());
                state = state.f_add(of_left)?;
            }
            parts.push(through.f_transpose(1, 2)?);
            d_rows = d_rows.f_add(&d_own)?;
            logs = logs.f_add(&along(&seen.paths.f_transpose(-2, -1)?, &Tensor::f_cat(&parts, 1)?.f_to_kind(Kind::Double)?)?)?;
            fresh = Some(state);
        }
        Ok(PlainGradients { rows: d_rows, writes: d_writes.f_mul(&k.writes)?, logs: Some(logs), fresh })
    }
}

/// No decay, or one number for the whole matrix.
fn whole<'a>(
    grid: &'a Grid,
    rows: &Rows,
    sight: &Sight,
    plain: &Plain,
    logs: Option<&Logs>,
    kept: &[Tensor],
) -> Result<Decayed<'a>> {
    let w = match logs {
        None => Whole {
            pair: sight.pair.shallow_clone(),
            start: sight.start.as_ref().map(Tensor::shallow_clone),
            end: sight.end.as_ref().map(Tensor::shallow_clone),
            through: sight.through.as_ref().map(Tensor::shallow_clone),
            fresh: sight.fresh.as_ref().map(|f| f.seen.shallow_clone()),
        },
        Some(logs) => {
            let paths = &sight.paths;
            let at = paths.sums(&logs.size)?;
            let signs = match &logs.negative {
                Some(n) => Some(sign(&paths.sums(n)?, grid.kind)?),
                None => None,
            };
            let of = |t: &Tensor, at: &Tensor| -> Result<Tensor> { Ok(t.f_index_select(1, at)?) };
            let signed = |x: Tensor, s: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<Tensor> {
                Ok(match &signs {
                    Some(all) => x.f_mul(&s(all)?)?,
                    None => x,
                })
            };
            let (reads, writes) = (of(&at, &paths.reads)?, of(&at, &paths.writes)?);
            let end = at.f_narrow(1, paths.end, 1)?;
            let pair = match kept {
                [_, pair] => pair.shallow_clone(),
                _ => {
                    let pair = differences(&at, &reads, &writes, &sight.pair, grid.kind)?;
                    signed(pair, &|s| Ok(of(s, &paths.reads)?.f_mul(&of(s, &paths.writes)?.f_transpose(1, 2)?)?))?
                }
            };
            let start = signed(exp_where(&reads, None, grid.kind)?, &|s| of(s, &paths.reads))?;
            let to_end = signed(exp_where(&end.f_sub(&writes)?, sight.end.as_ref(), grid.kind)?, &|s| {
                Ok(of(s, &paths.writes)?.f_mul(&s.f_narrow(1, paths.end, 1)?)?)
            })?;
            let through = signed(exp_where(&end, None, grid.kind)?, &|s| Ok(s.f_narrow(1, paths.end, 1)?))?;
            let fresh = match &sight.fresh {
                Some(f) => {
                    let mut e = exp_where(&along(&f.paths, &logs.size)?, Some(&f.seen), grid.kind)?;
                    if let Some(n) = &logs.negative {
                        e = e.f_mul(&sign(&along(&f.paths, n)?, grid.kind)?)?;
                    }
                    Some(e)
                }
                None => None,
            };
            Whole {
                pair,
                start: both(Some(start), sight.start.as_ref())?,
                end: Some(to_end),
                through: both(Some(through), sight.through.as_ref())?,
                fresh,
            }
        }
    };
    let right = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(-2, 0, rows.right)?) };
    let left_of = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(-2, rows.right, rows.left)?) };
    let last = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(1, rows.reads(), 1)?) };
    let sees = match kept.first() {
        Some(sees) => sees.shallow_clone(),
        None => plain.rows.f_bmm(&plain.writes.f_transpose(1, 2)?)?.f_mul_(&right(&w.pair)?)?,
    };
    let fresh = match (&w.fresh, &plain.fresh) {
        (Some(f), Some(state)) => {
            Some(Fresh { state: state.shallow_clone(), start: plain.rows.f_mul(&right(f)?)?, through: last(f)? })
        }
        _ => None,
    };
    let left = match &plain.left {
        Some(query) => Some(LeftReads {
            grid,
            query: query.shallow_clone(),
            pair: left_of(&w.pair)?,
            rows: plain.writes.shallow_clone(),
            inside: None,
            start: w.start.as_ref().map(left_of).transpose()?,
            fresh: match (&w.fresh, &plain.fresh) {
                (Some(f), Some(state)) => Some((state.shallow_clone(), left_of(f)?)),
                _ => None,
            },
        }),
        None => None,
    };
    let affine = Affine {
        grid,
        erasers: rows.erasers * grid.chunk,
        sees,
        start: times(&plain.rows, w.start.as_ref().map(right).transpose()?.as_ref())?,
        end: times(&plain.writes, w.end.as_ref())?,
        through: w.through.as_ref().map(Tensor::shallow_clone),
        fresh,
    };
    Ok(Decayed { affine, left, factors: Factors::Whole(w) })
}

/// Sums of logarithms whose differences float32 keeps as well as anything else: they are rounded to 6e-8 of themselves.
const SINGLE: f64 = 16.0;

/// exp(reads - writes) where a row sees a write, else 0.
fn differences(at: &Tensor, reads: &Tensor, writes: &Tensor, seen: &Tensor, kind: Kind) -> Result<Tensor> {
    // Differences of large sums are taken in float64; what is hidden may then be the exponential of anything.
    // A sum that is not a number says nothing of the others.
    let small = |at: &Tensor| -> Result<bool> { Ok(at.f_abs()?.f_max()?.f_double_value(&[])? <= SINGLE) };
    if kind == Kind::Double || at.numel() == 0 || !small(at)? {
        return exp_where(&reads.f_sub(&writes.f_transpose(1, 2)?)?, Some(seen), kind);
    }
    let (reads, writes) = (reads.f_to_kind(kind)?, writes.f_transpose(1, 2)?.f_to_kind(kind)?);
    Ok(reads.f_sub(&writes)?.f_exp_()?.f_mul_(seen)?)
}

/// 1 or -1 for an even or odd count.
fn sign(count: &Tensor, kind: Kind) -> Result<Tensor> {
    let odd = count.f_remainder(2.0)?.f_to_kind(kind)?;
    Ok(odd.f_mul_scalar(-2.0)?.f_add_scalar(1.0)?)
}

/// One number a key.
fn keyed<'a>(grid: &'a Grid, rows: &Rows, sight: &Sight, plain: &Plain, logs: &Logs, kept: &[Tensor]) -> Result<Decayed<'a>> {
    let paths = &sight.paths;
    let (from_middle, half) = match kept {
        [_, from_middle, half] => (from_middle.shallow_clone(), half.shallow_clone()),
        _ => {
            let at = paths.sums(&logs.size)?;
            let middle = at.f_narrow(1, paths.end, 1)?.f_mul_scalar(0.5)?;
            (at.f_sub(&middle)?.f_to_kind(grid.kind)?, middle.f_exp()?.f_to_kind(grid.kind)?)
        }
    };
    let reads = from_middle.f_exp()?.f_index_select(1, &paths.reads)?;
    let writes = from_middle.f_neg()?.f_exp_()?.f_index_select(1, &paths.writes)?;
    let fresh = match &sight.fresh {
        Some(f) => Some(along(&f.paths, &logs.size)?.f_exp()?.f_to_kind(grid.kind)?.f_mul(&f.seen)?),
        None => None,
    };
    let right = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(1, 0, rows.right)?) };
    let left_of = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(1, rows.right, rows.left)?) };
    let last = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(1, rows.reads(), 1)?) };
    let hidden = sight.pair.f_narrow(-2, 0, rows.right)?.f_eq(0)?;
    let (decayed, written) = (plain.rows.f_mul(&right(&reads)?)?, plain.writes.f_mul(&writes)?);
    let sees = match kept.first() {
        Some(sees) => sees.shallow_clone(),
        None => decayed.f_bmm(&written.f_transpose(1, 2)?)?.f_masked_fill_(&hidden, 0)?,
    };
    let to_start = both(Some(half.shallow_clone()), sight.start.as_ref().map(right).transpose()?.as_ref())?;
    let to_end = both(Some(half.shallow_clone()), sight.end.as_ref())?;
    let through = both(Some(half.f_square()?.f_transpose(1, 2)?), sight.through.as_ref())?;
    let state = plain.fresh.as_ref();
    let left = match &plain.left {
        Some(query) => {
            let inside = left_of(&reads)?;
            let start = both(Some(half.shallow_clone()), sight.start.as_ref().map(left_of).transpose()?.as_ref())?;
            Some(LeftReads {
                grid,
                query: query.shallow_clone(),
                pair: sight.pair.f_narrow(-2, rows.right, rows.left)?,
                rows: written.shallow_clone(),
                start: Some(times(&inside, start.as_ref())?),
                inside: Some(inside),
                fresh: match (&fresh, state) {
                    (Some(f), Some(state)) => Some((state.shallow_clone(), left_of(f)?)),
                    _ => None,
                },
            })
        }
        None => None,
    };
    let brought = match (&fresh, state) {
        (Some(f), Some(state)) => Some(Fresh {
            state: state.shallow_clone(),
            start: plain.rows.f_mul(&right(f)?)?,
            through: last(f)?.f_transpose(1, 2)?,
        }),
        _ => None,
    };
    let affine = Affine {
        grid,
        erasers: rows.erasers * grid.chunk,
        sees,
        start: times(&decayed, to_start.as_ref())?,
        end: times(&written, to_end.as_ref())?,
        through,
        fresh: brought,
    };
    Ok(Decayed {
        affine,
        left,
        factors: Factors::Keyed(Keyed { from_middle, hidden, reads, writes, half, rows: decayed, written, fresh }),
    })
}
