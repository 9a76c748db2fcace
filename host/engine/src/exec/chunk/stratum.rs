//! One state over all steps: coefficients in, reads and the last state out, with a backward pass of its own.
//!
//! The backward pass keeps the rows and writes of the chunks and the states at their starts, and computes everything between again;
//! where the memory limit allows it, it also keeps the solved triangular systems.

use std::sync::Arc;

use anyhow::{Context, Result};
use fwp_program::analysis::form::Range;
use tch::{Kind, Tensor};

use super::affine::{Incoming, Written};
use super::cost;
use super::decay::{Decayed, Logs, Plain};
use super::grid::Grid;
use super::layout::{Axis, Layout, Reader};
use super::sight::{Rows, Sight};
use crate::shim;

/// What a state is computed from.
pub struct Given {
    /// The coefficients in [`Layout::used`], `[steps, n, elements]`.
    pub coefficients: Vec<Tensor>,
    /// The carried matrix before the first step `[n, keys, values]`.
    pub first: Tensor,
    /// The carried matrix after a reset `[n, keys, values]`; none where there are no resets, or it is zero.
    pub fresh: Option<Tensor>,
    /// `[steps, n]`: where false a step leaves the state as it is.
    pub write: Option<Tensor>,
    /// `[steps, n]`: where true the state is reset before the step.
    pub reset: Option<Tensor>,
    /// Bytes that may be kept for the backward pass. What cannot be computed again is kept all the same.
    pub memory: u64,
}

/// Reads by place, `[steps, n, elements]`, and the carried matrix after the last step.
///
/// `chunk` is the number of steps of a chunk; none lets the sizes decide.
///
/// # Errors
///
/// What libtorch refuses, for instance for want of memory.
pub fn run(layout: &Arc<Layout>, given: &Given, steps: i64, chunk: Option<i64>) -> Result<(Vec<Tensor>, Tensor)> {
    let (grid, kind) = grid(layout, given, steps, chunk)?;
    let mut inputs: Vec<&Tensor> = given.coefficients.iter().collect();
    inputs.push(&given.first);
    inputs.extend(&given.fresh);

    let detached = |t: &Tensor| t.f_detach();
    let coefficients: Vec<Tensor> = given.coefficients.iter().map(detached).collect::<Result<_, _>>()?;
    let (outputs, saved) = tch::no_grad(|| -> Result<_> {
        let rows = Rows::new(layout, grid.chunk);
        let sight = Sight::new(&rows, &grid, given.write.as_ref(), given.reset.as_ref(), given.fresh.is_some())?;
        let fresh = given.fresh.as_ref().map(|f| f.f_detach()?.f_to_kind(grid.kind)).transpose()?;
        let plain = Plain {
            rows: rows_of(layout, &grid, &rows, &coefficients)?,
            writes: writes_of(layout, &grid, &rows, &coefficients)?,
            left: left_of(layout, &grid, &rows, &coefficients)?,
            logs: logs_of(layout, &grid, &rows, &coefficients)?,
            fresh,
        };
        let u = columns_of(layout, &grid, &coefficients)?;
        let mut saved = Saved::new(layout, &plain, &u, given, &coefficients);
        let decayed = Decayed::new(&grid, &rows, &sight, &plain, &[])?;
        let passed = decayed.affine.forward(u, &given.first.f_detach()?.f_to_kind(grid.kind)?)?;
        saved.states = passed.states.shallow_clone();
        let kept: Vec<Tensor> = decayed.kept().into_iter().chain(passed.kept().into_iter().flatten()).collect();
        let bytes = |t: &Tensor| t.numel() as u64 * if t.kind() == Kind::Double { 8 } else { 4 };
        if kept.iter().map(bytes).sum::<u64>() + saved.bytes(&bytes) <= given.memory {
            saved.kept = kept;
        }
        let mut reads: Vec<(usize, Tensor)> = Vec::new();
        if let Some(o) = &passed.reads {
            for (i, r) in (0..).zip(&layout.right) {
                reads.push((r.place, grid.take(o, i * grid.chunk, 1)?.f_to_kind(kind)?));
            }
        }
        if let Some(left) = &decayed.left {
            let starts = passed.states.f_narrow(0, 0, grid.chunks())?.f_flatten(0, 1)?;
            let o = left.forward(&passed.written.all(&grid, layout.values)?, &starts)?;
            for (i, r) in (0..).zip(&layout.left) {
                reads.push((r.place, grid.take(&o, i * grid.chunk, 1)?.f_to_kind(kind)?));
            }
        }
        reads.sort_by_key(|(place, _)| *place);
        let mut outputs: Vec<Tensor> = reads.into_iter().map(|(_, t)| t).collect();
        let mut last = Tensor::f_empty(given.first.size(), (kind, grid.device))?;
        last.f_copy_(&passed.states.f_select(0, grid.chunks())?)?;
        outputs.push(last);
        Ok((outputs, saved))
    })?;

    let (flags, tensors) = saved.into_list();
    let layout = layout.clone();
    let mut results = shim::custom_function(&inputs, &tensors, outputs, move |b| {
        let detached: Vec<Tensor> = b.saved.iter().map(Tensor::f_detach).collect::<Result<_, _>>()?;
        let saved = Saved::from_list(&flags, &detached)?;
        tch::no_grad(|| backward(&layout, &grid, kind, &saved, &b))
    })?;
    let last = results.pop().context("internal: the last state is missing")?;
    Ok((results, last))
}

fn grid(layout: &Layout, given: &Given, steps: i64, chunk: Option<i64>) -> Result<(Grid, Kind)> {
    let size = given.first.size();
    let kind = given.first.kind();
    let mut grid = Grid {
        steps,
        n: size[0],
        chunk: cost::balanced(steps, chunk.unwrap_or_else(|| cost::chunk_length(layout, steps, size[0]))),
        kind,
        device: given.first.device(),
    };
    if layout.axis == Axis::Keys {
        let logs = layout.decays.iter().flatten().map(|f| {
            let x = given.coefficients[layout.place(f.coefficient)].f_detach()?;
            if f.range == Range::Log { Ok(x) } else { x.f_log().map_err(anyhow::Error::from) }
        });
        let (chunk, kind) = cost::keyed(layout, &logs.collect::<Result<Vec<_>>>()?, grid.chunk, kind)?;
        (grid.chunk, grid.kind) = (chunk, kind);
    }
    Ok((grid, kind))
}

/// A coefficient with the given number of elements; one element stands for as many.
fn element(x: &Tensor, count: i64) -> Result<Tensor> {
    Ok(if x.size()[2] == count { x.shallow_clone() } else { x.f_expand([-1, -1, count], false)? })
}

/// Rows of erasers and of reads M^T q.
fn rows_of(layout: &Layout, grid: &Grid, rows: &Rows, c: &[Tensor]) -> Result<Tensor> {
    let to = grid.empty(&[grid.matrices(), rows.right, layout.keys])?;
    let get = |i: usize| element(&c[layout.place(i)], layout.keys);
    for (i, e) in (0..).zip(&layout.erasers) {
        grid.put(&to, &get(e.erase)?, i, rows.erasers, 0.0)?;
    }
    for (i, r) in (0..).zip(&layout.right) {
        let first = (rows.erasers + i) * grid.chunk;
        match r.query {
            Some(q) => grid.put(&to, &get(q)?, first, 1, 0.0)?,
            None => _ = to.f_narrow(1, first, grid.chunk)?.f_fill_(1.0)?,
        }
    }
    Ok(to)
}

fn writes_of(layout: &Layout, grid: &Grid, rows: &Rows, c: &[Tensor]) -> Result<Tensor> {
    let to = grid.empty(&[grid.matrices(), rows.writes, layout.keys])?;
    let get = |i: usize| element(&c[layout.place(i)], layout.keys);
    for (i, e) in (0..).zip(&layout.erasers) {
        grid.put(&to, &get(e.row)?, i, rows.erasers, 0.0)?;
    }
    for (i, w) in (0..).zip(&layout.writers) {
        grid.put(&to, &get(w.row)?, (rows.erasers + i) * grid.chunk, 1, 0.0)?;
    }
    Ok(to)
}

fn left_of(layout: &Layout, grid: &Grid, rows: &Rows, c: &[Tensor]) -> Result<Option<Tensor>> {
    if layout.left.is_empty() {
        return Ok(None);
    }
    let to = grid.empty(&[grid.matrices(), rows.left, layout.values])?;
    for (i, r) in (0..).zip(&layout.left) {
        match r.query {
            Some(q) => grid.put(&to, &element(&c[layout.place(q)], layout.values)?, i * grid.chunk, 1, 0.0)?,
            None => _ = to.f_narrow(1, i * grid.chunk, grid.chunk)?.f_fill_(1.0)?,
        }
    }
    Ok(Some(to))
}

/// U.
fn columns_of(layout: &Layout, grid: &Grid, c: &[Tensor]) -> Result<Written> {
    let get = |i: usize| element(&c[layout.place(i)], layout.values);
    let count = layout.erasers.len() as i64;
    let erasers = match count {
        0 => None,
        _ => {
            let to = grid.empty(&[grid.matrices(), count * grid.chunk, layout.values])?;
            for (i, e) in (0..).zip(&layout.erasers) {
                match e.column {
                    Some(u) => grid.put(&to, &get(u)?, i, count, 0.0)?,
                    None => _ = to.f_slice(1, i, None, count)?.f_zero_()?,
                }
            }
            Some(to)
        }
    };
    let writers = match layout.writers.len() as i64 {
        0 => None,
        count => {
            let to = grid.empty(&[grid.matrices(), count * grid.chunk, layout.values])?;
            for (i, w) in (0..).zip(&layout.writers) {
                grid.put(&to, &get(w.column)?, i * grid.chunk, 1, 0.0)?;
            }
            Some(to)
        }
    };
    Ok(Written { erasers, writers })
}

/// The size below which a decay counts as this size: its product with anything else is lost beside what it is added to,
/// and a quotient by it is still a number.
fn tiny(kind: Kind) -> f64 {
    if kind == Kind::Double { 1e-100 } else { 1e-20 }
}

/// Logarithms of the sizes of decays, float64.
fn log(x: &Tensor, range: Range, axis: Axis, kind: Kind) -> Result<Tensor> {
    let x = x.f_to_kind(Kind::Double)?;
    let log = match range {
        Range::Log => x.f_clamp_min(-800.0)?,
        Range::Positive if axis == Axis::Keys => x.f_log()?,
        Range::Positive => x.f_clamp_min(tiny(kind))?.f_log()?,
        Range::Signed => x.f_abs()?.f_clamp_min(tiny(kind))?.f_log()?,
    };
    Ok(if axis == Axis::Keys { log.f_clamp_min(cost::SMALLEST_LOG)? } else { log })
}

fn logs_of(layout: &Layout, grid: &Grid, rows: &Rows, c: &[Tensor]) -> Result<Option<Logs>> {
    let width = match layout.axis {
        Axis::None => return Ok(None),
        Axis::Scalar => 1,
        Axis::Keys => layout.keys,
    };
    let double = (Kind::Double, grid.device);
    let segments = layout.segments as i64;
    let size = Tensor::f_empty([grid.matrices(), rows.micro, width], double)?;
    let signed = layout.decays.iter().flatten().any(|f| f.range == Range::Signed);
    let negative = if signed { Some(Tensor::f_zeros([grid.matrices(), rows.micro, 1], double)?) } else { None };
    for (s, decay) in (0..).zip(&layout.decays) {
        let Some(factor) = decay else {
            _ = size.f_slice(1, s, None, segments)?.f_zero_()?;
            continue;
        };
        let x = &c[layout.place(factor.coefficient)];
        grid.put(&size, &element(&log(x, factor.range, layout.axis, grid.kind)?, width)?, s, segments, 0.0)?;
        if let Some(negative) = negative.as_ref().filter(|_| factor.range == Range::Signed) {
            grid.put(negative, &x.f_lt(0)?.f_to_kind(Kind::Double)?, s, segments, 0.0)?;
        }
    }
    Ok(Some(Logs { size, negative }))
}

/// What the backward pass starts from.
struct Saved {
    states: Tensor,
    rows: Tensor,
    writes: Tensor,
    erasers: Option<Tensor>,
    writers: Option<Tensor>,
    left: Option<Tensor>,
    fresh: Option<Tensor>,
    write: Option<Tensor>,
    reset: Option<Tensor>,
    /// Coefficients of decays; the others are in the rows.
    coefficients: Vec<Option<Tensor>>,
    /// Of [`Decayed::kept`] and [`super::affine::Passed::kept`], or nothing: what could be computed again.
    kept: Vec<Tensor>,
    /// Sizes of all coefficients.
    widths: Vec<i64>,
}

/// Which of the tensors are there.
struct Flags {
    present: Vec<bool>,
    widths: Vec<i64>,
}

fn shared(t: &Option<Tensor>) -> Option<Tensor> {
    t.as_ref().map(Tensor::shallow_clone)
}

impl Saved {
    fn new(layout: &Layout, plain: &Plain, u: &Written, given: &Given, c: &[Tensor]) -> Saved {
        let decays: Vec<usize> = layout.decays.iter().flatten().map(|f| layout.place(f.coefficient)).collect();
        Saved {
            states: Tensor::new(),
            rows: plain.rows.shallow_clone(),
            writes: plain.writes.shallow_clone(),
            erasers: shared(&u.erasers),
            writers: shared(&u.writers),
            left: shared(&plain.left),
            fresh: shared(&plain.fresh),
            write: shared(&given.write),
            reset: shared(&given.reset),
            coefficients: c.iter().enumerate().map(|(i, t)| decays.contains(&i).then(|| t.shallow_clone())).collect(),
            kept: Vec::new(),
            widths: c.iter().map(|t| t.size()[2]).collect(),
        }
    }

    fn bytes(&self, of: &dyn Fn(&Tensor) -> u64) -> u64 {
        let optional = [&self.erasers, &self.writers, &self.left].into_iter().flatten();
        [&self.states, &self.rows, &self.writes].into_iter().chain(optional).map(of).sum()
    }

    fn into_list(self) -> (Flags, Vec<Tensor>) {
        let fixed = [Some(self.states), Some(self.rows), Some(self.writes)];
        let optional = [self.erasers, self.writers, self.left, self.fresh, self.write, self.reset];
        let all: Vec<Option<Tensor>> =
            fixed.into_iter().chain(optional).chain(self.coefficients).chain(self.kept.into_iter().map(Some)).collect();
        (Flags { present: all.iter().map(Option::is_some).collect(), widths: self.widths }, all.into_iter().flatten().collect())
    }

    fn from_list(flags: &Flags, list: &[Tensor]) -> Result<Saved> {
        let mut tensors = list.iter();
        let mut all: Vec<Option<Tensor>> =
            flags.present.iter().map(|p| if *p { tensors.next().map(Tensor::shallow_clone) } else { None }).collect();
        let mut next = |i: usize| all[i].take();
        let need = |t: Option<Tensor>| t.context("internal: a tensor was not kept");
        let (states, rows, writes) = (need(next(0))?, need(next(1))?, need(next(2))?);
        let [erasers, writers, left, fresh, write, reset] = [3, 4, 5, 6, 7, 8].map(&mut next);
        let mut coefficients = all.split_off(9);
        let kept = coefficients.split_off(flags.widths.len()).into_iter().flatten().collect();
        Ok(Saved {
            states,
            rows,
            writes,
            erasers,
            writers,
            left,
            fresh,
            write,
            reset,
            coefficients,
            kept,
            widths: flags.widths.clone(),
        })
    }
}

/// Adds to the gradient of a coefficient.
fn add(to: &mut Option<Tensor>, mut g: Tensor, width: i64) -> Result<()> {
    if g.size()[2] != width {
        g = g.f_sum_dim_intlist([2i64].as_slice(), true, None)?;
    }
    *to = Some(match to.take() {
        Some(t) => t.f_add(&g)?,
        None => g,
    });
    Ok(())
}

fn backward(layout: &Layout, grid: &Grid, kind: Kind, saved: &Saved, b: &shim::Backward<'_>) -> Result<Vec<Option<Tensor>>> {
    let rows = Rows::new(layout, grid.chunk);
    let sight = Sight::new(&rows, grid, saved.write.as_ref(), saved.reset.as_ref(), saved.fresh.is_some())?;
    // Coefficients of decays are the only ones that are looked at.
    let empty = Tensor::new();
    let c: Vec<Tensor> = saved.coefficients.iter().map(|t| t.as_ref().unwrap_or(&empty).shallow_clone()).collect();
    let plain = Plain {
        rows: saved.rows.shallow_clone(),
        writes: saved.writes.shallow_clone(),
        left: shared(&saved.left),
        logs: match layout.axis {
            // Where the factors were kept, only a state that resets bring needs more than the width.
            Axis::Keys if !saved.kept.is_empty() && saved.fresh.is_none() => {
                Some(Logs { size: grid.empty(&[0, 0, layout.keys])?, negative: None })
            }
            _ => logs_of(layout, grid, &rows, &c)?,
        },
        fresh: shared(&saved.fresh),
    };
    let systems = if rows.erasers > 0 { 3 } else { 0 };
    let (of_decays, system) = saved.kept.split_at(saved.kept.len().saturating_sub(systems));
    let system = if let [d, inverse, y] = system { Some([d, inverse, y].map(Tensor::shallow_clone)) } else { None };
    let decayed = Decayed::new(grid, &rows, &sight, &plain, of_decays)?;
    let starts = saved.states.f_narrow(0, 0, grid.chunks())?.f_flatten(0, 1)?;
    let u = Written { erasers: shared(&saved.erasers), writers: shared(&saved.writers) };
    let again = decayed.affine.again(u, &saved.states, system)?;

    // Gradients of the reads, as rows; nothing flows through a read that nobody uses.
    let flows = |readers: &[Reader]| readers.iter().any(|r| b.grads[r.place].is_some());
    let given = |readers: &[Reader], first: i64, width: i64| -> Result<Tensor> {
        let to = grid.empty(&[grid.matrices(), first + readers.len() as i64 * grid.chunk, width])?;
        for (i, r) in (0..).zip(readers) {
            match &b.grads[r.place] {
                Some(g) => grid.put(&to, g, first + i * grid.chunk, 1, 0.0)?,
                None => _ = to.f_narrow(1, first + i * grid.chunk, grid.chunk)?.f_zero_()?,
            }
        }
        Ok(to)
    };
    let of_right = given(&layout.right, rows.erasers * grid.chunk, layout.values)?;
    let of_left = flows(&layout.left).then(|| given(&layout.left, 0, layout.keys)).transpose()?;
    let left = match (&decayed.left, &of_left) {
        (Some(left), Some(g)) => Some(left.backward(&again.written.all(grid, layout.values)?, &starts, g)?),
        _ => None,
    };
    let last = b.grads.last().and_then(Option::as_ref).map(|g| g.f_to_kind(grid.kind)).transpose()?;
    let incoming = Incoming {
        rows: &of_right,
        reads: flows(&layout.right),
        written: left.as_ref().map(|l| &l.written),
        states: left.as_ref().map(|l| &l.states),
        last: last.as_ref(),
    };
    let mut g = decayed.affine.backward(&again, &saved.states, &incoming)?;
    let of_plain = decayed.backward(&rows, &sight, &plain, &mut g, left.as_ref())?;

    // Back to coefficients.
    let mut of: Vec<Option<Tensor>> = (0..layout.used.len()).map(|_| None).collect();
    let mut put = |c: usize, t: Tensor| {
        let i = layout.place(c);
        if b.needed[i] { add(&mut of[i], t, saved.widths[i]) } else { Ok(()) }
    };
    let e = rows.erasers;
    for (i, eraser) in (0..).zip(&layout.erasers) {
        put(eraser.erase, grid.take(&of_plain.rows, i, e)?)?;
        put(eraser.row, grid.take(&of_plain.writes, i, e)?)?;
        if let (Some(u), Some(d)) = (eraser.column, &g.written.erasers) {
            put(u, grid.take(d, i, e)?)?;
        }
    }
    for (i, writer) in (0..).zip(&layout.writers) {
        put(writer.row, grid.take(&of_plain.writes, (e + i) * grid.chunk, 1)?)?;
        if let Some(d) = &g.written.writers {
            put(writer.column, grid.take(d, i * grid.chunk, 1)?)?;
        }
    }
    for (i, r) in (0..).zip(&layout.right) {
        if let Some(q) = r.query {
            put(q, grid.take(&of_plain.rows, (e + i) * grid.chunk, 1)?)?;
        }
    }
    if let Some(left) = &left {
        for (i, r) in (0..).zip(&layout.left) {
            if let Some(q) = r.query {
                put(q, grid.take(&left.query, i * grid.chunk, 1)?)?;
            }
        }
    }
    if let Some(logs) = &of_plain.logs {
        for (s, factor) in (0..).zip(&layout.decays).filter_map(|(s, f)| Some((s, f.as_ref()?))) {
            let d = grid.take(logs, s, layout.segments as i64)?;
            let i = layout.place(factor.coefficient);
            put(factor.coefficient, of_decay(d, &c[i], factor.range, grid.kind)?)?;
        }
    }
    let mut results: Vec<Option<Tensor>> =
        of.into_iter().map(|t| t.map(|t| t.f_to_kind(kind)).transpose()).collect::<Result<_, _>>()?;
    results.push(Some(g.first.f_to_kind(kind)?));
    if let Some(fresh) = &of_plain.fresh {
        results.push(Some(fresh.f_to_kind(kind)?));
    } else if saved.fresh.is_some() {
        results.push(None);
    }
    Ok(results)
}

/// The gradient of a decay's coefficient from that of its logarithm.
fn of_decay(d: Tensor, x: &Tensor, range: Range, kind: Kind) -> Result<Tensor> {
    if range == Range::Log {
        return Ok(d);
    }
    let x = x.f_to_kind(Kind::Double)?;
    let negative = x.f_lt(0)?;
    let size = x.f_abs()?.f_clamp_min(tiny(kind))?;
    let divisor = size.f_neg()?.f_where_self(&negative, &size)?;
    Ok(d.f_to_kind(Kind::Double)?.f_div(&divisor)?)
}

#[cfg(test)]
mod tests;
