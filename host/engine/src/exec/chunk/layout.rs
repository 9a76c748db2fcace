//! A form as the chunk algebra takes it: one carried matrix, what is written to it and what is read of it.
//!
//! The carried matrix M is `[keys, values]`: keys are what the transition acts on, values are carried along.
//! A micro step, one for every segment of a step, is `M <- decay(M) + sum over terms w (u + M^T p)^T`.

use std::collections::BTreeMap;

use fwp_program::analysis::form::{Coefficient, Decay, Factor, Form, Query, Range, Side};

/// A term that also reads the state: w (u + M^T p)^T.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Eraser {
    /// u `[values]`; none is 0.
    pub column: Option<Coefficient>,
    /// p `[keys]`.
    pub erase: Coefficient,
    /// w `[keys]`.
    pub row: Coefficient,
    /// Number of its segment, from 1: it reads the state that one segment fewer have passed.
    pub segment: usize,
}

/// A term that only writes: w u^T.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Writer {
    /// u `[values]`.
    pub column: Coefficient,
    /// w `[keys]`.
    pub row: Coefficient,
    /// Number of its segment, from 1.
    pub segment: usize,
}

/// A read of the carried matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reader {
    /// The query; none stands for ones.
    pub query: Option<Coefficient>,
    /// Number of segments that have passed.
    pub after: usize,
    /// Which of the form's reads it is.
    pub place: usize,
}

/// Which axis of the carried matrix decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Nothing decays.
    None,
    /// One number for the whole matrix.
    Scalar,
    /// One number a key.
    Keys,
}

/// A form made ready for the chunk algebra.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// The state, an index into the program's.
    pub state: usize,
    /// Whether the carried matrix is the transpose of the state's own.
    pub transposed: bool,
    /// Rows of the carried matrix.
    pub keys: i64,
    /// Columns of the carried matrix.
    pub values: i64,
    /// Micro steps a step.
    pub segments: usize,
    /// Terms that read, in the order of their segments.
    pub erasers: Vec<Eraser>,
    /// Terms that only write, in the order of their segments.
    pub writers: Vec<Writer>,
    /// Reads M^T q `[values]`.
    pub right: Vec<Reader>,
    /// Reads M q `[keys]`.
    pub left: Vec<Reader>,
    /// The decay of each segment, where it has one.
    pub decays: Vec<Option<Factor>>,
    /// What the decays act on.
    pub axis: Axis,
    /// The coefficients in use, in order.
    pub used: Vec<Coefficient>,
}

impl Layout {
    /// Puts a form into this shape.
    ///
    /// # Errors
    ///
    /// Says what keeps the form from being computed in chunks: decays a row of a state that is also read by its own update,
    /// decays of rows and of columns at once, or decays a column that may be negative or zero.
    pub fn new(form: &Form) -> Result<Layout, String> {
        let [rows, columns] = form.size;
        let kinds = form.segments.iter().filter_map(|s| kind(&s.decay, form.size));
        let (mut by_row, mut by_column) = (false, false);
        for (axis, factor) in kinds {
            by_row |= axis == Along::Rows;
            by_column |= axis == Along::Columns;
            if axis != Along::Both && factor.range == Range::Signed {
                return Err(
                    "a decay that differs along an axis may be negative or zero, and products of it are taken through logarithms"
                        .into(),
                );
            }
        }
        let erases = form.segments.iter().flat_map(|s| &s.terms).any(|t| t.erase.is_some());
        if by_row && by_column {
            return Err("the state decays by row and by column".into());
        }
        if by_row && erases {
            return Err(
                "the state decays by row, and its update reads it: every row would need a triangular system of its own".into()
            );
        }
        let left_reads = form.reads.iter().any(|r| matches!(r.query, Query::Whole));
        if left_reads && rows != 1 {
            return Err("the whole state is read".into());
        }
        // Without a term that reads, both sides are alike: a decay of rows is one of columns of the transpose.
        let flipped = by_row;
        let mut layout = Layout {
            state: form.state as usize,
            transposed: (form.side == Side::Right) != flipped,
            keys: if flipped { rows } else { columns } as i64,
            values: if flipped { columns } else { rows } as i64,
            segments: form.segments.len(),
            erasers: Vec::new(),
            writers: Vec::new(),
            right: Vec::new(),
            left: Vec::new(),
            decays: form.segments.iter().map(|s| kind(&s.decay, form.size).map(|(_, f)| f.clone())).collect(),
            axis: Axis::None,
            used: Vec::new(),
        };
        if layout.decays.iter().any(Option::is_some) {
            layout.axis = if by_row || by_column { Axis::Keys } else { Axis::Scalar };
        }
        for (segment, term) in (1..).zip(&form.segments).flat_map(|(i, s)| s.terms.iter().map(move |t| (i, t))) {
            match (term.erase, term.column) {
                (Some(erase), column) => layout.erasers.push(Eraser { column, erase, row: term.row, segment }),
                (None, Some(column)) if flipped => layout.writers.push(Writer { column: term.row, row: column, segment }),
                (None, Some(column)) => layout.writers.push(Writer { column, row: term.row, segment }),
                (None, None) => {}
            }
        }
        for (place, read) in form.reads.iter().enumerate() {
            let (query, right) = match read.query {
                Query::Right(q) => (Some(q), !flipped),
                Query::Left(q) => (Some(q), flipped),
                Query::Whole => (None, flipped),
            };
            let reader = Reader { query, after: read.after, place };
            if right { layout.right.push(reader) } else { layout.left.push(reader) }
        }
        layout.used = layout.coefficients();
        Ok(layout)
    }

    fn coefficients(&self) -> Vec<Coefficient> {
        let mut all = BTreeMap::new();
        let mut put = |c: Option<Coefficient>| c.map(|c| all.insert(c, ()));
        for e in &self.erasers {
            put(e.column);
            put(Some(e.erase));
            put(Some(e.row));
        }
        for w in &self.writers {
            put(Some(w.column));
            put(Some(w.row));
        }
        self.right.iter().chain(&self.left).for_each(|r| _ = put(r.query));
        self.decays.iter().flatten().for_each(|f| _ = put(Some(f.coefficient)));
        all.into_keys().collect()
    }

    /// The place of a coefficient among those in use.
    pub fn place(&self, coefficient: Coefficient) -> usize {
        self.used.binary_search(&coefficient).unwrap_or_default()
    }

    /// Rows of matrices that read the carried matrix, for `steps` steps: erasers, then reads M^T q.
    pub fn right_rows(&self, steps: i64) -> i64 {
        (self.erasers.len() + self.right.len()) as i64 * steps
    }

    /// Rows of matrices that write to the carried matrix, for `steps` steps: erasers, then the others.
    pub fn write_rows(&self, steps: i64) -> i64 {
        (self.erasers.len() + self.writers.len()) as i64 * steps
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Along {
    Both,
    Rows,
    Columns,
}

/// An axis of one element decays as a whole.
fn kind(decay: &Decay, [rows, columns]: [usize; 2]) -> Option<(Along, &Factor)> {
    match decay {
        Decay::One => None,
        Decay::Scalar(f) => Some((Along::Both, f)),
        Decay::Columns(f) => Some((if columns == 1 { Along::Both } else { Along::Columns }, f)),
        Decay::Rows(f) => Some((if rows == 1 { Along::Both } else { Along::Rows }, f)),
    }
}
