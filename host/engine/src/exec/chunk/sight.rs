//! Which row of a chunk sees which write, and which decays lie between them.
//!
//! Rows are what reads the carried matrix: erasers (step by step), reads M^T q, reads M q; columns are what writes to it: erasers, then the others.
//! A place in a chunk is a pair (step, segments that have passed).
//! A write that is masked is seen within its own step only; a reset cuts all ties to what was before.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::grid::Grid;
use super::layout::Layout;

/// The rows of a chunk and their places.
pub struct Rows {
    /// Erasers a step.
    pub erasers: i64,
    /// Rows of erasers and of reads M^T q.
    pub right: i64,
    /// Rows of reads M q.
    pub left: i64,
    /// Rows of writes.
    pub writes: i64,
    /// Micro steps.
    pub micro: i64,
    /// Micro steps a step.
    segments: usize,
    /// Places of rows: right, then left.
    reads_at: Vec<(i64, usize)>,
    /// Places of writes.
    writes_at: Vec<(i64, usize)>,
    /// Places that micro steps lead to.
    micro_at: Vec<(i64, usize)>,
}

impl Rows {
    /// The rows of chunks of `chunk` steps.
    pub fn new(layout: &Layout, chunk: i64) -> Rows {
        let interleaved = |before: usize| -> Vec<(i64, usize)> {
            (0..chunk).flat_map(|t| layout.erasers.iter().map(move |e| (t, e.segment - before))).collect()
        };
        let block = |s: usize| (0..chunk).map(move |t| (t, s));
        let mut reads_at = interleaved(1);
        layout.right.iter().chain(&layout.left).for_each(|r| reads_at.extend(block(r.after)));
        let mut writes_at = interleaved(0);
        layout.writers.iter().for_each(|w| writes_at.extend(block(w.segment)));
        let micro_at: Vec<(i64, usize)> = (0..chunk).flat_map(|t| (1..=layout.segments).map(move |s| (t, s))).collect();
        Rows {
            erasers: layout.erasers.len() as i64,
            right: layout.right_rows(chunk),
            left: layout.left.len() as i64 * chunk,
            writes: layout.write_rows(chunk),
            micro: micro_at.len() as i64,
            segments: layout.segments,
            reads_at,
            writes_at,
            micro_at,
        }
    }

    /// All rows that read.
    pub fn reads(&self) -> i64 {
        self.right + self.left
    }
}

/// What sees what, as factors 0 and 1.
pub struct Sight {
    /// `[reads, writes]`, or `[matrices, reads, writes]` where masks make them differ.
    pub pair: Tensor,
    /// `[matrices, reads, 1]`: whether a row sees the state at the chunk's start.
    pub start: Option<Tensor>,
    /// `[matrices, writes, 1]`: whether a write is seen at the chunk's end.
    pub end: Option<Tensor>,
    /// `[matrices, 1, 1]`: whether the state at the chunk's start is seen at its end.
    pub through: Option<Tensor>,
    /// What a reset brings.
    pub fresh: Option<FreshSight>,
    /// The decays on the way.
    pub paths: Paths,
}

/// Which micro steps' decays lie on the way from the chunk's start to a place; places that are alike stand here once.
pub struct Paths {
    /// 1 where a micro step lies on the way: `[places, micro]`, or `[matrices, places, micro]` where masks make them differ; float64.
    pub to: Tensor,
    /// The place of each row that reads.
    pub reads: Tensor,
    /// The place of each row that writes.
    pub writes: Tensor,
    /// The place of the end.
    pub end: i64,
    /// `[writes, micro]`: 1 where a micro step comes after a write.
    pub later: Tensor,
    /// `[reads, writes]`: true where no micro step can lie between a row and a write.
    pub close: Tensor,
    /// `[writes]`: true where no micro step can lie between a write and the end.
    pub close_to_end: Tensor,
}

impl Paths {
    /// Sums of `x` `[matrices, micro, d]` along the ways to all places `[matrices, places, d]`, float64.
    pub fn sums(&self, x: &Tensor) -> Result<Tensor> {
        along(&self.to, x)
    }
}

/// `[.., places, micro]` times `[matrices, micro, d]`.
pub fn along(paths: &Tensor, x: &Tensor) -> Result<Tensor> {
    let size = x.size();
    if paths.dim() == 2 && size[2] == 1 {
        return Ok(x.f_squeeze_dim(2)?.f_matmul(&paths.f_transpose(0, 1)?)?.f_unsqueeze(2)?);
    }
    let places = paths.size()[paths.dim() - 2];
    Ok(paths.f_expand([size[0], places, size[1]], false)?.f_bmm(x)?)
}

/// Ties to the state that a reset brings.
pub struct FreshSight {
    /// `[matrices, reads + 1, 1]`: whether a row, and last the chunk's end, sees it.
    pub seen: Tensor,
    /// `[matrices, reads + 1, micro]`: decays between the reset and each row, and the end; float64.
    pub paths: Tensor,
}

impl Sight {
    /// For a scan with these masks, `[steps, n]`; `fresh` says whether the state after a reset is anything but zero.
    pub fn new(rows: &Rows, grid: &Grid, write: Option<&Tensor>, reset: Option<&Tensor>, fresh: bool) -> Result<Sight> {
        let table =
            |a: &[(i64, usize)], b: &[(i64, usize)], f: &dyn Fn((i64, usize), (i64, usize)) -> bool, kind| -> Result<Tensor> {
                let flat: Vec<u8> = a.iter().flat_map(|x| b.iter().map(move |y| u8::from(f(*x, *y)))).collect();
                let t = Tensor::f_from_slice(&flat)?.f_reshape([a.len() as i64, b.len() as i64])?;
                Ok(t.f_to_device(grid.device)?.f_to_kind(kind)?)
            };
        let steps_of = |a: &[(i64, usize)]| -> Result<Tensor> {
            let t: Vec<i64> = a.iter().map(|(t, _)| *t).collect();
            Ok(Tensor::f_from_slice(&t)?.f_to_device(grid.device)?)
        };
        // Ties to earlier steps and within the step.
        let earlier = |r: (i64, usize), w: (i64, usize)| w.0 < r.0;
        let inside = |r: (i64, usize), w: (i64, usize)| w.0 == r.0 && w.1 <= r.1;
        let any = |r: (i64, usize), w: (i64, usize)| earlier(r, w) || inside(r, w);

        // The end of a step is the start of the next; with masks it is so only for those who see what the step writes.
        let settled = |p: (i64, usize)| if p.1 == rows.segments { (p.0 + 1, 0) } else { p };
        let place = |p: &(i64, usize)| if write.is_none() { settled(*p) } else { *p };
        let end = (grid.chunk, 0);
        let mut places: Vec<(i64, usize)> = rows.reads_at.iter().chain(&rows.writes_at).map(place).chain([end]).collect();
        places.sort_unstable();
        places.dedup();
        let index = |at: &[(i64, usize)]| -> Result<Tensor> {
            let found: Vec<i64> = at.iter().map(|p| places.binary_search(&place(p)).unwrap_or_default() as i64).collect();
            Ok(Tensor::f_from_slice(&found)?.f_to_device(grid.device)?)
        };
        let written = write.map(|w| grid.flags(w, 1.0, grid.kind)).transpose()?;
        let (write_steps, micro_steps) = (steps_of(&rows.writes_at)?, steps_of(&rows.micro_at)?);
        let (mut pair, to) = match &written {
            None => {
                (table(&rows.reads_at, &rows.writes_at, &any, grid.kind)?, table(&places, &rows.micro_at, &any, Kind::Double)?)
            }
            Some(written) => {
                let both = |at: &[(i64, usize)], to: &[(i64, usize)], steps: &Tensor, kind: Kind| -> Result<Tensor> {
                    let kept = written.f_to_kind(kind)?.f_index_select(1, steps)?.f_unsqueeze(1)?;
                    Ok(table(at, to, &earlier, kind)?.f_mul(&kept)?.f_add(&table(at, to, &inside, kind)?)?)
                };
                (
                    both(&rows.reads_at, &rows.writes_at, &write_steps, grid.kind)?,
                    both(&places, &rows.micro_at, &micro_steps, Kind::Double)?,
                )
            }
        };
        let paths = Paths {
            to,
            reads: index(&rows.reads_at)?,
            writes: index(&rows.writes_at)?,
            end: places.len() as i64 - 1,
            later: table(&rows.writes_at, &rows.micro_at, &|w, k| !any(w, k), grid.kind)?,
            close: table(&rows.reads_at, &rows.writes_at, &|r, w| settled(r) == settled(w), Kind::Bool)?,
            close_to_end: table(&rows.writes_at, &[end], &|w, end| settled(w) == end, Kind::Bool)?.f_squeeze_dim(1)?,
        };
        let mut end_seen = written.as_ref().map(|w| w.f_index_select(1, &write_steps)).transpose()?;
        let mut sight = Sight { pair: Tensor::new(), start: None, end: None, through: None, fresh: None, paths };
        if let Some(reset) = reset {
            let flags = grid.flags(reset, 0.0, Kind::Int64)?;
            let count = flags.f_cumsum(1, Kind::Int64)?;
            let last = count.f_narrow(1, grid.chunk - 1, 1)?;
            let read_steps = steps_of(&rows.reads_at)?;
            let (of_reads, of_writes) = (count.f_index_select(1, &read_steps)?, count.f_index_select(1, &write_steps)?);
            let same = of_reads.f_unsqueeze(2)?.f_eq_tensor(&of_writes.f_unsqueeze(1)?)?.f_to_kind(grid.kind)?;
            pair = pair.f_mul(&same)?;
            let unbroken = |c: &Tensor| -> Result<Tensor> { Ok(c.f_eq(0)?.f_to_kind(grid.kind)?.f_unsqueeze(2)?) };
            sight.start = Some(unbroken(&of_reads)?);
            sight.through = Some(unbroken(&last)?);
            let reaches = of_writes.f_eq_tensor(&last)?.f_to_kind(grid.kind)?;
            end_seen = Some(match end_seen {
                Some(e) => e.f_mul(&reaches)?,
                None => reaches,
            });
            if fresh {
                sight.fresh = Some(FreshSight::new(grid, &flags, &count, &read_steps, &micro_steps, &sight.paths)?);
            }
        }
        sight.pair = pair;
        sight.end = end_seen.map(|e| e.f_unsqueeze(2)).transpose()?;
        Ok(sight)
    }
}

impl FreshSight {
    fn new(grid: &Grid, flags: &Tensor, count: &Tensor, reads: &Tensor, micro: &Tensor, paths: &Paths) -> Result<FreshSight> {
        let end = Tensor::f_full([1], grid.chunk - 1, (Kind::Int64, grid.device))?;
        let at = Tensor::f_cat(&[reads, &end], 0)?;
        let seen = count.f_index_select(1, &at)?.f_gt(0)?.f_to_kind(grid.kind)?.f_unsqueeze(2)?;
        // The step of the last reset, for every step.
        let step = Tensor::f_arange(grid.chunk, (Kind::Int64, grid.device))?.f_unsqueeze(0)?;
        let origin = flags.f_mul(&step)?.f_cummax(1)?.0.f_index_select(1, &at)?;
        let since = micro.f_reshape([1, 1, -1])?.f_ge_tensor(&origin.f_unsqueeze(2)?)?.f_to_kind(Kind::Double)?;
        let places = Tensor::f_cat(&[&paths.reads, &Tensor::f_full([1], paths.end, (Kind::Int64, grid.device))?], 0)?;
        Ok(FreshSight { seen, paths: paths.to.f_index_select(-2, &places)?.f_mul(&since)? })
    }
}
