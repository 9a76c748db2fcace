//! From what a step does to one state to the form of that state.

use fwp_sdk::program::Program;

use super::fault::{Blocked, Fault, Obstacle, Origin};
use super::form::Side;
use super::matrix::Matrix;
use super::store::{Ask, Id, Kind, States};
use super::symbolic::{Symbolic, Value};

/// A form whose coefficients are expressions.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub state: usize,
    pub side: Side,
    /// Rows and columns of the matrix that the form speaks of.
    pub size: [usize; 2],
    pub segments: Vec<DraftSegment>,
    /// Whether something is erased, so that the side is not free.
    pub erases: bool,
}

/// One affine map.
#[derive(Clone, Debug)]
pub(super) struct DraftSegment {
    pub decay: DraftDecay,
    pub terms: Vec<DraftTerm>,
}

/// A decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum DraftDecay {
    One,
    Scalar(Id),
    Columns(Id),
    Rows(Id),
}

/// (u + S p) w^T
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DraftTerm {
    pub column: Option<Id>,
    pub erase: Option<Id>,
    pub row: Id,
}

impl Draft {
    /// All coefficients.
    pub fn coefficients(&self) -> Vec<Id> {
        let mut ids = Vec::new();
        for s in &self.segments {
            ids.extend(match s.decay {
                DraftDecay::One => None,
                DraftDecay::Scalar(a) | DraftDecay::Columns(a) | DraftDecay::Rows(a) => Some(a),
            });
            s.terms.iter().for_each(|t| ids.extend([t.column, t.erase, Some(t.row)].into_iter().flatten()));
        }
        ids
    }

    /// The same form of the transposed matrix.
    pub fn turned(mut self) -> Draft {
        self.side = if self.side == Side::Right { Side::Left } else { Side::Right };
        self.size.reverse();
        for s in &mut self.segments {
            s.decay = match s.decay {
                DraftDecay::Columns(a) => DraftDecay::Rows(a),
                DraftDecay::Rows(a) => DraftDecay::Columns(a),
                other => other,
            };
        }
        self
    }
}

type Result<T> = std::result::Result<T, Box<Blocked>>;

/// The form of a state, or the operation in the way.
pub(super) fn draft(p: &Program, sym: &mut Symbolic<'_>, state: usize) -> Result<Draft> {
    let declared = &p.states[state];
    let (given, made) = (sym.given[state], sym.made[state]);
    // What is made of a state's update as a whole comes from the operation that ends it.
    sym.store.origin = made;
    let mut me = Derivation { made, sym, state };
    if declared.held > 1 {
        let why = format!("state `{}` keeps its value for {} steps", declared.name, declared.held);
        return Err(me.blocked_at(Obstacle::Held, &why, given));
    }
    match declared.shape[..] {
        [rows, columns] => me.matrix([rows, columns]),
        [] => me.vector(1),
        [n] => me.vector(n),
        _ => {
            let why = format!("state `{}` has {} axes", declared.name, declared.shape.len());
            Err(me.blocked_at(Obstacle::Levels, &why, given))
        }
    }
}

struct Derivation<'s, 'a> {
    sym: &'s mut Symbolic<'a>,
    state: usize,
    /// What makes the state's next value.
    made: Origin,
}

/// A term before the side is known: factor * column row^T.
struct Raw {
    factor: Id,
    column: Id,
    row: Id,
}

impl Derivation<'_, '_> {
    fn blocked(&self, obstacle: Obstacle, why: &str, at: Option<Id>) -> Box<Blocked> {
        self.blocked_at(obstacle, why, at.map_or(self.made, |id| self.sym.store.origin_of(id)))
    }
    fn blocked_at(&self, obstacle: Obstacle, why: &str, origin: Origin) -> Box<Blocked> {
        let states: States = 1 << self.state;
        Box::new(Blocked { obstacle, origin, why: why.to_string(), states })
    }
    fn fault(&self, fault: (Fault, Id)) -> Box<Blocked> {
        self.blocked(fault.0.obstacle, &fault.0.why, Some(fault.1))
    }

    fn matrix(&mut self, shape: [usize; 2]) -> Result<Draft> {
        let mut parts = Vec::new();
        for update in self.sym.updates[self.state].clone() {
            match update {
                Value::Blocked(b) => return Err(b),
                Value::Expr(id) => return Err(self.blocked(Obstacle::NotAffine, "it is no matrix", Some(id))),
                Value::Matrix(m) => parts.push(self.part(m)?),
            }
        }
        let right = parts.iter().any(|(_, raws)| raws.iter().any(|r| self.depends(r.column)));
        let left = parts.iter().any(|(_, raws)| raws.iter().any(|r| self.depends(r.row)));
        if right && left {
            return Err(self.blocked(Obstacle::TwoSided, "it erases along rows and along columns", None));
        }
        let side = if left { Side::Left } else { Side::Right };
        let size = if left { [shape[1], shape[0]] } else { shape };
        let mut segments = Vec::new();
        for (decay, raws) in parts {
            let decay = match (decay, left) {
                (DraftDecay::Columns(a), true) => DraftDecay::Rows(a),
                (DraftDecay::Rows(a), true) => DraftDecay::Columns(a),
                (d, _) => d,
            };
            let mut terms = Vec::new();
            for raw in raws {
                let (column, row) = if left { (raw.row, raw.column) } else { (raw.column, raw.row) };
                self.term(raw.factor, column, row, side, &mut terms)?;
            }
            self.order(&mut terms);
            segments.push(DraftSegment { decay, terms });
        }
        let rows = segments.iter().any(|s| matches!(s.decay, DraftDecay::Rows(_)));
        let columns = segments.iter().any(|s| matches!(s.decay, DraftDecay::Columns(_)));
        let erases = left || right;
        if rows && (erases || columns) {
            let what = if erases { "it decays rows and erases along columns" } else { "it decays rows and columns" };
            let what = if left { "it decays columns and erases along rows" } else { what };
            return Err(self.blocked(Obstacle::TwoSided, what, None));
        }
        Ok(Draft { state: self.state, side, size, segments, erases })
    }

    fn depends(&self, id: Id) -> bool {
        self.sym.store.depends(id, self.state)
    }

    /// Decay and outer products of one update.
    fn part(&mut self, m: Matrix) -> Result<(DraftDecay, Vec<Raw>)> {
        let name = |me: &Self, s: usize| me.sym.names[s].clone();
        if let Some(b) = m.bases.iter().find(|b| b.state != self.state) {
            let why = format!("it takes all of state `{}`", name(self, b.state));
            return Err(self.blocked(Obstacle::Coupled, &why, None));
        }
        let base = match &m.bases[..] {
            [] => None,
            [b] if b.transposed => return Err(self.blocked(Obstacle::TwoSided, "the state is transposed", None)),
            [b] => Some(b.clone()),
            _ => return Err(self.blocked(Obstacle::TwoSided, "it decays rows and columns, or adds the transposed state", None)),
        };
        if let Some(id) = m.diagonal.or(m.dense.first().copied()) {
            if self.depends(id) {
                return Err(self.blocked(Obstacle::NotAffine, "it builds a matrix from reads of the state", Some(id)));
            }
            let why = "it adds a matrix that is no sum of outer products";
            return Err(self.blocked(Obstacle::Dense { left: false, right: false }, why, Some(id)));
        }
        let decay = match base {
            None => DraftDecay::Scalar(self.sym.store.constant(0.0)),
            Some(b) => {
                let parts: Vec<Id> = [Some(b.factor), b.rows, b.columns].into_iter().flatten().collect();
                if let Some(id) = parts.iter().copied().find(|id| self.depends(*id)) {
                    return Err(self.blocked(Obstacle::NotAffine, "the decay depends on the state", Some(id)));
                }
                let s = &mut self.sym.store;
                match (b.rows, b.columns) {
                    (None, None) if s.is_number(b.factor, 1.0) => DraftDecay::One,
                    (None, None) => DraftDecay::Scalar(b.factor),
                    (None, Some(c)) => DraftDecay::Columns(s.within(c, |s| s.mul(b.factor, c))),
                    (Some(r), None) => DraftDecay::Rows(s.within(r, |s| s.mul(b.factor, r))),
                    (Some(r), Some(_)) => {
                        return Err(self.blocked(Obstacle::TwoSided, "it decays rows and columns", Some(r)));
                    }
                }
            }
        };
        for o in &m.outers {
            if self.depends(o.factor) {
                self.sym.store.linear(o.factor, self.state).map_err(|f| self.fault(f))?;
                return Err(self.blocked(
                    Obstacle::TwoSided,
                    "it reads the state along rows and columns at once",
                    Some(o.factor),
                ));
            }
            if self.depends(o.column) && self.depends(o.row) {
                let why = "it multiplies two reads of the state";
                return Err(self.blocked(Obstacle::NotAffine, why, Some(o.column)));
            }
        }
        let raws = m.outers.into_iter().map(|o| Raw { factor: o.factor, column: o.column, row: o.row });
        Ok((decay, raws.collect()))
    }

    /// factor * column row^T as a term of the form's matrix, `column` holding the reads.
    fn term(&mut self, factor: Id, column: Id, row: Id, side: Side, terms: &mut Vec<DraftTerm>) -> Result<()> {
        let parts = self.sym.store.linear(column, self.state).map_err(|f| self.fault(f))?;
        let s = &mut self.sym.store;
        let mut erase = None;
        for (c, read) in parts.reads {
            let Kind::Read(r) = *s.kind(read) else { continue };
            let query = match (side, r.query) {
                (Side::Right, Ask::Right(q)) | (Side::Left, Ask::Left(q)) => q,
                _ => {
                    return Err(self.blocked(
                        Obstacle::TwoSided,
                        "it writes along rows what it reads along columns",
                        Some(column),
                    ));
                }
            };
            if !s.is_scalar(c) {
                let why = "every row of the state has a transition of its own";
                return Err(self.blocked(Obstacle::RowDependent, why, parts.spread));
            }
            let p = s.product(1.0, &[factor, c, query], &[]);
            erase = s.add(erase, Some(p));
        }
        let column = parts.free.map(|f| s.mul(factor, f));
        self.push(terms, DraftTerm { column, erase, row });
        Ok(())
    }

    /// Adds a term; terms with one row, or one column and erasure, are one.
    fn push(&mut self, terms: &mut Vec<DraftTerm>, mut t: DraftTerm) {
        let s = &mut self.sym.store;
        if let Some(i) = terms.iter().position(|o| o.row == t.row) {
            let old = terms.remove(i);
            t.column = s.add(old.column, t.column);
            t.erase = s.add(old.erase, t.erase);
        } else if let Some(i) = terms.iter().position(|o| (o.column, o.erase) == (t.column, t.erase)) {
            let old = terms.remove(i);
            t.row = s.sum(&[(1.0, old.row), (1.0, t.row)]);
        }
        t.column = t.column.filter(|c| !s.is_zero(*c));
        t.erase = t.erase.filter(|c| !s.is_zero(*c));
        if t.column.is_some() || t.erase.is_some() {
            terms.push(t);
        }
    }

    /// Erasing terms first, then by the order of expressions.
    fn order(&self, terms: &mut [DraftTerm]) {
        let s = &self.sym.store;
        terms.sort_by(|a, b| b.erase.is_some().cmp(&a.erase.is_some()).then_with(|| s.order(a.row, b.row)));
    }

    /// A vector state as a matrix of one row.
    fn vector(&mut self, n: usize) -> Result<Draft> {
        let mut segments = Vec::new();
        let mut erases = false;
        for update in self.sym.updates[self.state].clone() {
            let id = match update {
                Value::Expr(id) => id,
                Value::Blocked(b) => return Err(b),
                Value::Matrix(_) => return Err(self.blocked(Obstacle::NotAffine, "it is a matrix", None)),
            };
            let parts = self.sym.store.linear(id, self.state).map_err(|f| self.fault(f))?;
            let zero = self.sym.store.constant(0.0);
            let mut decay = DraftDecay::Scalar(zero);
            let mut terms = Vec::new();
            for (c, read) in parts.reads {
                let s = &mut self.sym.store;
                let Kind::Read(r) = *s.kind(read) else { continue };
                match r.query {
                    Ask::Right(q) => {
                        let wide = s.spread(c, &[n]);
                        let (scalar, row) = s.split_scalar(wide);
                        let erase = Some(s.mul(scalar, q));
                        erases = true;
                        self.push(&mut terms, DraftTerm { column: None, erase, row });
                    }
                    Ask::Left(_) => return Err(self.blocked(Obstacle::TwoSided, "it is read from the left", Some(read))),
                    Ask::Whole if s.is_number(c, 1.0) => decay = DraftDecay::One,
                    Ask::Whole => {
                        let (scalar, rest) = s.split_scalar(c);
                        let ones = s.full(&[n], 1.0);
                        let flat = s.is_scalar(c) || rest == ones;
                        decay = if flat { DraftDecay::Scalar(scalar) } else { DraftDecay::Columns(c) };
                        if flat && s.is_number(scalar, 1.0) {
                            decay = DraftDecay::One;
                        }
                    }
                }
            }
            if let Some(free) = parts.free {
                let s = &mut self.sym.store;
                let wide = s.spread(free, &[n]);
                let (scalar, row) = s.split_scalar(wide);
                self.push(&mut terms, DraftTerm { column: Some(scalar), erase: None, row });
            }
            self.order(&mut terms);
            segments.push(DraftSegment { decay, terms });
        }
        Ok(Draft { state: self.state, side: Side::Right, size: [1, n], segments, erases })
    }
}
