//! Places and masks that are known when a kernel is made, because nothing but the place along the lanes decides them.
//!
//! Concatenated, rolled, sliced and padded values are read through such places. Lane by lane that takes a hundred
//! instructions a vector; known places are a load of a run of elements, or one gather by a table.

use std::fmt::Write;

use super::{Layout, Printer, Value};
use crate::kernel::graph::{Axis, Dtype, Fun, Id, Leaf, What};

impl Printer<'_> {
    /// The values of an integer or a mask (0 and 1) for every row of `lane`, where they depend on nothing else.
    fn fixed(&self, n: Id, lane: Axis) -> Option<Vec<i64>> {
        let node = &self.g.nodes[n];
        if node.dtype == Dtype::Float || node.axes.iter().any(|a| *a != lane) {
            return None;
        }
        let rows = self.lay.sizes[lane];
        let operands = || node.operands.iter().map(|o| self.fixed(*o, lane)).collect::<Option<Vec<_>>>();
        match node.what {
            What::Integer(i) => Some(vec![i; rows]),
            What::Iota(_) => Some((0..rows as i64).collect()),
            What::Map(fun) => {
                let x = operands()?;
                (0..rows).map(|i| value(fun, &x.iter().map(|x| x[i]).collect::<Vec<_>>())).collect()
            }
            _ => None,
        }
    }

    /// A mask that is known, or a choice between two values by such a mask, as a vector.
    pub(super) fn known(&mut self, n: Id, reg: usize) -> Result<Option<Value>, String> {
        let node = &self.g.nodes[n];
        let Some(lane) = self.lane.filter(|l| node.axes.contains(l) && !self.sub) else { return Ok(None) };
        Ok(match (&node.what, node.dtype) {
            (What::Map(_), Dtype::Mask) => self.fixed(n, lane).map(|values| self.fixed_mask(&values, lane, reg)),
            (What::Map(Fun::Select), Dtype::Float) => match self.fixed(node.operands[0], lane) {
                Some(mask) => Some(self.fixed_select(n, &mask, lane, reg)?),
                None => None,
            },
            _ => None,
        })
    }

    /// A mask of lanes from a table.
    fn fixed_mask(&mut self, values: &[i64], lane: Axis, reg: usize) -> Value {
        let name = self.table_of("fwp_lane", values.iter().map(|v| -i64::from(*v != 0)), lane);
        Value { text: format!("*(const vi *)({name} + {})", self.start(lane, reg)), vector: true }
    }

    /// One of two values by a mask that is known: what the mask leaves out is not looked at, so runs of elements may begin
    /// before and end behind what counts.
    fn fixed_select(&mut self, n: Id, mask: &[i64], lane: Axis, reg: usize) -> Result<Value, String> {
        let operands = self.g.nodes[n].operands.clone();
        let counts = |yes: bool| mask.iter().map(|m| (*m != 0) == yes).collect::<Vec<bool>>();
        let seen: Vec<usize> = self.rows_of(lane, reg).flatten().collect();
        let mut sides = Vec::new();
        for (x, yes) in [(operands[1], true), (operands[2], false)] {
            let counts = counts(yes);
            if seen.iter().any(|i| counts[*i]) {
                sides.push(match self.fixed_take(x, Some(&counts), lane, reg)? {
                    Some(v) => v,
                    None => self.eval(x, reg)?,
                });
            }
        }
        Ok(match &sides[..] {
            [one] => Value { text: self.wide(operands[1], one), vector: true },
            [yes, no] => {
                let (yes, no) = (self.wide(operands[1], yes), self.wide(operands[2], no));
                let m = self.fixed_mask(mask, lane, reg);
                Value { text: format!("fwp_select({}, {yes}, {no})", m.text), vector: true }
            }
            _ => Value { text: "fwp_splat(0)".into(), vector: true },
        })
    }

    /// Elements of a vector at places that are known; none where the value is something else.
    /// Where `counts` is false any element will do.
    pub(super) fn fixed_take(&mut self, n: Id, counts: Option<&[bool]>, lane: Axis, reg: usize) -> Result<Option<Value>, String> {
        let node = &self.g.nodes[n];
        let (What::Take(axes), Dtype::Float, false) = (&node.what, node.dtype, self.nests.held.contains(&n)) else {
            return Ok(None);
        };
        let (x, [along]) = (node.operands[0], &axes[..]) else { return Ok(None) };
        let along = *along;
        if self.g.axes(x) != [along] || self.sub {
            return Ok(None);
        }
        let Some(places) = self.fixed(node.operands[1], lane) else { return Ok(None) };
        // A value that is not in memory has no place to be read at.
        let Ok(place) = self.array(x) else { return Ok(None) };
        let size = self.lay.sizes[along] as i64;
        if places.iter().any(|p| *p < 0 || *p >= size) {
            return Ok(None);
        }
        // What may be read: a vector more than the rows of what is ours, nothing beyond what the caller hands in.
        let lanes = self.lay.lanes as i64;
        let room = match (&self.g.nodes[x].what, &place.layout) {
            (What::Leaf(Leaf::Argument(_)) | What::Table(..), _) | (_, Layout::Rows(_)) => size,
            _ => self.lay.padded(along) as i64 + lanes,
        };
        let counted = |i: usize| counts.is_none_or(|c| c[i]);
        // The run of every block that gives all that counts.
        let run = |rows: Vec<usize>| -> Option<i64> {
            let mut start = None;
            for (l, i) in rows.into_iter().enumerate().filter(|(_, i)| counted(*i)) {
                let here = places[i] - l as i64;
                if *start.get_or_insert(here) != here {
                    return None;
                }
            }
            let start = start.unwrap_or(0);
            (start >= 0 && start + lanes <= room).then_some(start)
        };
        let starts: Option<Vec<i64>> = self.rows_of(lane, reg).map(run).collect();
        let text = match starts {
            Some(starts) => {
                let start = match &starts[..] {
                    [one] => one.to_string(),
                    many if many.iter().all(|s| *s == many[0]) => many[0].to_string(),
                    many if many.iter().zip(0..).all(|(s, b)| *s == many[0] + b * self.lay.block(lane) as i64) => {
                        format!("blk * {} + {}", self.lay.block(lane), many[0])
                    }
                    many => {
                        let name = self.global("int", many.iter().copied());
                        format!("{name}[blk]")
                    }
                };
                format!("*(const vfu *)({} + {start})", place.pointer)
            }
            None => {
                let name = self.table_of("fwp_lane", places.iter().copied(), lane);
                format!("fwp_gather({}, {name} + {})", place.pointer, self.start(lane, reg))
            }
        };
        Ok(Some(Value { text, vector: true }))
    }

    /// The rows in the lanes of one vector, for every block; rows that only fill the last block are the last one.
    fn rows_of(&self, lane: Axis, reg: usize) -> impl Iterator<Item = Vec<usize>> + use<> {
        let (block, lanes, last) = (self.lay.block(lane), self.lay.lanes, self.lay.sizes[lane] - 1);
        (0..self.lay.blocks(lane)).map(move |b| (0..lanes).map(|l| (b * block + reg * lanes + l).min(last)).collect())
    }

    fn start(&self, lane: Axis, reg: usize) -> String {
        format!("blk * {} + {}", self.lay.block(lane), reg * self.lay.lanes)
    }

    /// A table with an entry for every row; rows that only fill the last block have the last one's.
    fn table_of(&mut self, ty: &str, values: impl Iterator<Item = i64>, lane: Axis) -> String {
        let mut all: Vec<i64> = values.collect();
        all.resize(self.lay.padded(lane), all.last().copied().unwrap_or(0));
        self.global(ty, all.into_iter())
    }

    /// A constant array; equal ones are one.
    fn global(&mut self, ty: &str, values: impl Iterator<Item = i64>) -> String {
        let values: Vec<String> = values.map(|v| v.to_string()).collect();
        let rest = format!("[] __attribute__((aligned(64))) = {{{}}};\n", values.join(", "));
        let head = format!("static const {ty} fwp_places");
        for line in self.globals.lines() {
            if let Some(number) = line.strip_prefix(&head).and_then(|l| l.strip_suffix(rest.trim_end())) {
                return format!("fwp_places{number}");
            }
        }
        let number = self.globals.matches(" fwp_places").count();
        let _ = write!(self.globals, "{head}{number}{rest}");
        format!("fwp_places{number}")
    }
}

/// The function of integers and masks (0 and 1), where it has a value.
fn value(fun: Fun, x: &[i64]) -> Option<i64> {
    let truth = |b: bool| Some(i64::from(b));
    match (fun, x) {
        (Fun::Add, [a, b]) => a.checked_add(*b),
        (Fun::Sub, [a, b]) => a.checked_sub(*b),
        (Fun::Mul, [a, b]) => a.checked_mul(*b),
        (Fun::Max, [a, b]) => Some(*a.max(b)),
        (Fun::Min, [a, b]) => Some(*a.min(b)),
        (Fun::Rem, [a, b]) if *b > 0 => Some(a.rem_euclid(*b)),
        (Fun::Quotient, [a, b]) if *a >= 0 && *b > 0 => Some(a / b),
        (Fun::Less, [a, b]) => truth(a < b),
        (Fun::LessEqual, [a, b]) => truth(a <= b),
        (Fun::Equal, [a, b]) => truth(a == b),
        (Fun::And, [a, b]) => truth(*a != 0 && *b != 0),
        (Fun::Or, [a, b]) => truth(*a != 0 || *b != 0),
        (Fun::Not, [a]) => truth(*a == 0),
        (Fun::Select, [m, a, b]) => Some(if *m != 0 { *a } else { *b }),
        _ => None,
    }
}
