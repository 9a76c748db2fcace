//! Matrices as sums of what a form can hold: scaled states, outer products, diagonals, and anything else.

use fwp_sdk::program::Op;

use super::fault::{Fault, Obstacle};
use super::store::{Ask, Id, Kind, Read, States, Store};

/// factor * Diag(rows) S Diag(columns), S or its transpose as it is at a boundary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Base {
    /// The state.
    pub state: usize,
    /// The boundary at which it is taken.
    pub after: usize,
    /// Whether it is S^T.
    pub transposed: bool,
    /// A scalar.
    pub factor: Id,
    /// One factor a row of the value.
    pub rows: Option<Id>,
    /// One factor a column of the value.
    pub columns: Option<Id>,
}

/// factor * column row^T; neither vector has a scalar factor of its own.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outer {
    pub factor: Id,
    pub column: Id,
    pub row: Id,
}

/// The sum of its parts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    pub shape: [usize; 2],
    pub bases: Vec<Base>,
    pub outers: Vec<Outer>,
    /// A diagonal: a vector, or a scalar times the identity.
    pub diagonal: Option<Id>,
    /// Expressions of the matrix's shape.
    pub dense: Vec<Id>,
}

type Result<T> = std::result::Result<T, Fault>;

impl Matrix {
    pub fn zero(shape: [usize; 2]) -> Matrix {
        Matrix { shape, bases: Vec::new(), outers: Vec::new(), diagonal: None, dense: Vec::new() }
    }

    /// The states that it depends on.
    pub fn states(&self, s: &Store<'_>) -> States {
        let mut ids: Vec<Id> = self.dense.clone();
        ids.extend(self.diagonal);
        self.outers.iter().for_each(|o| ids.extend([o.factor, o.column, o.row]));
        self.bases.iter().for_each(|b| ids.extend([Some(b.factor), b.rows, b.columns].into_iter().flatten()));
        let through_reads = ids.iter().fold(0, |all, i| all | s.states(*i));
        self.bases.iter().fold(through_reads, |all, b| all | 1 << b.state)
    }

    /// Whether nothing but the dense part is there.
    fn is_plain(&self) -> bool {
        self.bases.is_empty() && self.outers.is_empty() && self.diagonal.is_none()
    }
}

impl Store<'_> {
    /// Whether it is a vector of ones.
    fn is_ones(&self, id: Id) -> bool {
        matches!(self.kind(id), Kind::Op(Op::Full { value, .. }, _) if *value == 1.0)
    }

    fn without_ones(&self, id: Id) -> Option<Id> {
        (!self.is_ones(id)).then_some(id)
    }

    /// factor * column row^T
    pub fn outer(&mut self, factor: Id, column: Id, row: Id) -> Matrix {
        let mut m = Matrix::zero([self.shape(column)[0], self.shape(row)[0]]);
        self.push_outer(&mut m, factor, column, row);
        m
    }

    fn push_outer(&mut self, m: &mut Matrix, factor: Id, column: Id, row: Id) {
        let ((c, column), (d, row)) = (self.split_scalar(column), self.split_scalar(row));
        let factor = self.product(1.0, &[factor, c, d], &[]);
        if self.is_zero(factor) {
            return;
        }
        // Two outer products with one equal vector are one.
        if let Some(i) = m.outers.iter().position(|o| o.row == row || o.column == column) {
            let old = m.outers.remove(i);
            if old.row == row && old.column == column {
                let factor = self.sum(&[(1.0, old.factor), (1.0, factor)]);
                if !self.is_zero(factor) {
                    m.outers.push(Outer { factor, column, row });
                }
                return;
            }
            let one = self.constant(1.0);
            let by_row = old.row == row;
            let (x, y) = if by_row { (old.column, column) } else { (old.row, row) };
            let (x, y) = (self.mul(old.factor, x), self.mul(factor, y));
            let sum = self.sum(&[(1.0, x), (1.0, y)]);
            let (column, row) = if by_row { (sum, row) } else { (column, sum) };
            // The new product may meet another one.
            self.push_outer(m, one, column, row);
            return;
        }
        m.outers.push(Outer { factor, column, row });
    }

    /// An expression of rank 2 as a matrix.
    pub fn matrix(&mut self, id: Id) -> Matrix {
        let shape = [self.shape(id)[0], self.shape(id)[1]];
        let mut m = Matrix::zero(shape);
        let (factor, rest) = self.split_scalar(id);
        let ones = |s: &mut Self, axis: usize| s.full(&[shape[axis]], 1.0);
        match self.kind(rest).clone() {
            Kind::Op(Op::Full { .. }, _) => {
                let (column, row) = (ones(self, 0), ones(self, 1));
                self.push_outer(&mut m, factor, column, row);
            }
            Kind::Op(Op::Expand { axis, .. }, o) if self.shape(o[0]).len() == 1 && axis < 2 => {
                let one = ones(self, axis);
                let (column, row) = if axis == 0 { (one, o[0]) } else { (o[0], one) };
                self.push_outer(&mut m, factor, column, row);
            }
            Kind::Op(Op::Outer, o) => self.push_outer(&mut m, factor, o[0], o[1]),
            Kind::Op(Op::Eye { .. }, _) => m.diagonal = Some(factor),
            _ if self.is_zero(id) => {}
            _ => m.dense.push(id),
        }
        m
    }

    /// A matrix without states of its own as one expression.
    pub fn dense(&mut self, m: &Matrix) -> Option<Id> {
        if !m.bases.is_empty() {
            return None;
        }
        let mut parts: Vec<(f64, Id)> = m.dense.iter().map(|d| (1.0, *d)).collect();
        for o in &m.outers {
            let product = match (self.is_ones(o.column), self.is_ones(o.row)) {
                (true, true) => self.full(&m.shape, 1.0),
                (true, false) => self.node(&Op::Expand { axis: 0, size: m.shape[0] }, &[o.row]).ok()?,
                (false, true) => self.node(&Op::Expand { axis: 1, size: m.shape[1] }, &[o.column]).ok()?,
                (false, false) => self.node(&Op::Outer, &[o.column, o.row]).ok()?,
            };
            let part = self.mul(o.factor, product);
            parts.push((1.0, part));
        }
        if let Some(d) = m.diagonal {
            let eye = self.node(&Op::Eye { n: m.shape[0] }, &[]).ok()?;
            let d = if self.is_scalar(d) { d } else { self.node(&Op::Expand { axis: 0, size: m.shape[0] }, &[d]).ok()? };
            let part = self.mul(d, eye);
            parts.push((1.0, part));
        }
        let sum = if parts.is_empty() { self.constant(0.0) } else { self.sum(&parts) };
        Some(self.spread(sum, &m.shape))
    }

    /// a + factor * b
    pub fn matrix_add(&mut self, a: &Matrix, factor: f64, b: &Matrix) -> Matrix {
        let mut m = a.clone();
        let c = self.constant(factor);
        let b = self.matrix_scale(b, c);
        for base in b.bases {
            self.push_base(&mut m, base);
        }
        for o in b.outers {
            self.push_outer(&mut m, o.factor, o.column, o.row);
        }
        m.diagonal = self.add(m.diagonal, b.diagonal).filter(|d| !self.is_zero(*d));
        for d in b.dense {
            self.push_dense(&mut m, d);
        }
        m
    }

    fn push_dense(&mut self, m: &mut Matrix, d: Id) {
        let sum = match m.dense.pop() {
            Some(old) => self.sum(&[(1.0, old), (1.0, d)]),
            None => d,
        };
        if !self.is_zero(sum) {
            m.dense.push(sum);
        }
    }

    /// Scaled states that differ in one factor only are one.
    fn push_base(&mut self, m: &mut Matrix, b: Base) {
        let alike = |o: &Base| (o.state, o.after, o.transposed) == (b.state, b.after, b.transposed);
        let Some(i) = m.bases.iter().position(|o| alike(o) && (o.rows == b.rows || o.columns == b.columns)) else {
            m.bases.push(b);
            return;
        };
        let old = m.bases.remove(i);
        let side = |s: &mut Self, factor: Id, side: Option<Id>| match side {
            Some(v) => s.mul(factor, v),
            None => factor,
        };
        let one = self.constant(1.0);
        let merged = if old.rows == b.rows {
            let (x, y) = (side(self, old.factor, old.columns), side(self, b.factor, b.columns));
            let columns = self.sum(&[(1.0, x), (1.0, y)]);
            Base { factor: one, columns: Some(columns), ..b }
        } else {
            let (x, y) = (side(self, old.factor, old.rows), side(self, b.factor, b.rows));
            let rows = self.sum(&[(1.0, x), (1.0, y)]);
            Base { factor: one, rows: Some(rows), ..b }
        };
        m.bases.extend(self.tidy(merged));
    }

    /// Scalars of the sides belong to the factor; a state times 0 is none.
    fn tidy(&mut self, mut b: Base) -> Option<Base> {
        for side in [&mut b.rows, &mut b.columns] {
            if let Some(v) = *side {
                let (c, rest) = self.split_scalar(v);
                b.factor = self.mul(b.factor, c);
                *side = if self.is_scalar(rest) { None } else { self.without_ones(rest) };
            }
        }
        (!self.is_zero(b.factor)).then_some(b)
    }

    /// c M for a scalar c.
    pub fn matrix_scale(&mut self, m: &Matrix, c: Id) -> Matrix {
        self.scaled(m, c, None, None)
    }

    /// factor * Diag(rows) M Diag(columns)
    pub fn scaled(&mut self, m: &Matrix, factor: Id, rows: Option<Id>, columns: Option<Id>) -> Matrix {
        let mut out = Matrix::zero(m.shape);
        let times = |s: &mut Self, a: Option<Id>, b: Option<Id>| match (a, b) {
            (Some(a), Some(b)) => Some(s.mul(a, b)),
            (a, b) => a.or(b),
        };
        for b in &m.bases {
            let (rows, columns) = (times(self, b.rows, rows), times(self, b.columns, columns));
            let base = Base { factor: self.mul(b.factor, factor), rows, columns, ..b.clone() };
            out.bases.extend(self.tidy(base));
        }
        for o in &m.outers {
            let column = rows.map_or(o.column, |r| self.mul(r, o.column));
            let row = columns.map_or(o.row, |c| self.mul(c, o.row));
            let factor = self.mul(o.factor, factor);
            self.push_outer(&mut out, factor, column, row);
        }
        if let Some(mut d) = m.diagonal {
            for by in [Some(factor), rows, columns].into_iter().flatten() {
                d = self.mul(d, by);
            }
            out.diagonal = (!self.is_zero(d)).then_some(d);
        }
        for d in &m.dense {
            let mut d = self.mul(*d, factor);
            for (axis, side) in [(1, rows), (0, columns)] {
                if let Some(v) = side
                    && let Ok(wide) = self.node(&Op::Expand { axis, size: m.shape[axis] }, &[v])
                {
                    d = self.mul(d, wide);
                }
            }
            self.push_dense(&mut out, d);
        }
        out
    }

    pub fn transposed(&mut self, m: &Matrix) -> Matrix {
        let mut out = Matrix::zero([m.shape[1], m.shape[0]]);
        for b in &m.bases {
            out.bases.push(Base { transposed: !b.transposed, rows: b.columns, columns: b.rows, ..b.clone() });
        }
        for o in &m.outers {
            out.outers.push(Outer { factor: o.factor, column: o.row, row: o.column });
        }
        out.diagonal = m.diagonal;
        for d in &m.dense {
            out.dense.extend(self.node(&Op::Transpose { order: vec![1, 0] }, &[*d]).ok());
        }
        out
    }

    /// A matrix of one outer product as (factor, rows, columns) of an element-wise factor; vectors of ones are left out.
    fn as_scale(&self, m: &Matrix) -> Option<(Id, Option<Id>, Option<Id>)> {
        match (&m.bases[..], &m.outers[..], m.diagonal, &m.dense[..]) {
            ([], [o], None, []) => Some((o.factor, self.without_ones(o.column), self.without_ones(o.row))),
            _ => None,
        }
    }

    /// The product element by element.
    pub fn hadamard(&mut self, a: &Matrix, b: &Matrix) -> Result<Matrix> {
        for (x, y) in [(a, b), (b, a)] {
            if let Some((factor, rows, columns)) = self.as_scale(y) {
                return Ok(self.scaled(x, factor, rows, columns));
            }
        }
        match (self.dense(a), self.dense(b)) {
            (Some(x), Some(y)) => {
                let product = self.mul(x, y);
                Ok(self.matrix(product))
            }
            (None, None) => Err(Fault::not_affine("it multiplies two values of states")),
            _ => Err(Fault::new(Obstacle::Elementwise, "it multiplies every element of a state by a factor of its own")),
        }
    }

    /// The quotient element by element.
    pub fn quotient(&mut self, a: &Matrix, b: &Matrix) -> Result<Matrix> {
        if let Some((factor, rows, columns)) = self.as_scale(b) {
            let one = self.constant(1.0);
            let mut inverse = |x: Id| self.div(one, x);
            let (factor, rows, columns) = (inverse(factor), rows.map(&mut inverse), columns.map(&mut inverse));
            return Ok(self.scaled(a, factor, rows, columns));
        }
        match (self.dense(a), self.dense(b)) {
            (Some(x), Some(y)) => {
                let quotient = self.div(x, y);
                Ok(self.matrix(quotient))
            }
            (_, None) => Err(Fault::not_affine("it divides by a value of a state")),
            _ => Err(Fault::new(Obstacle::Elementwise, "it divides every element of a state by a factor of its own")),
        }
    }

    /// M q
    pub fn matvec(&mut self, m: &Matrix, q: Id) -> Result<Id> {
        let mut parts: Vec<(f64, Id)> = Vec::new();
        for b in &m.bases {
            let asked = b.columns.map_or(q, |c| self.mul(c, q));
            let query = if b.transposed { Ask::Left(asked) } else { Ask::Right(asked) };
            let mut y = self.ask(Read { state: b.state, after: b.after, query }, &m.shape[..1]);
            y = self.mul(b.factor, y);
            if let Some(rows) = b.rows {
                y = self.mul(rows, y);
            }
            parts.push((1.0, y));
        }
        for o in &m.outers {
            let c = self.dot(o.row, q).map_err(|e| Fault::not_affine(&e))?;
            let c = self.mul(o.factor, c);
            let y = self.mul(c, o.column);
            parts.push((1.0, y));
        }
        if let Some(d) = m.diagonal {
            let y = self.mul(d, q);
            parts.push((1.0, y));
        }
        for d in &m.dense {
            let y = self.node(&Op::MatVec, &[*d, q]).map_err(|e| Fault::not_affine(&e))?;
            parts.push((1.0, y));
        }
        if parts.is_empty() {
            return Ok(self.full(&m.shape[..1], 0.0));
        }
        Ok(self.sum(&parts))
    }

    /// M^T q
    pub fn matvec_t(&mut self, m: &Matrix, q: Id) -> Result<Id> {
        let t = self.transposed(m);
        self.matvec(&t, q)
    }

    /// A B
    pub fn matmul(&mut self, a: &Matrix, b: &Matrix) -> Result<Matrix> {
        if !a.bases.is_empty() && !b.bases.is_empty() {
            return Err(Fault::not_affine("it multiplies two values of states"));
        }
        let shape = [a.shape[0], b.shape[1]];
        let mut out = Matrix::zero(shape);
        // Outer products of either factor, each once: of A with all of B, of B with what is left of A.
        for o in &a.outers {
            let row = self.matvec_t(b, o.row)?;
            self.push_outer(&mut out, o.factor, o.column, row);
        }
        let rest_a = Matrix { outers: Vec::new(), ..a.clone() };
        for o in &b.outers {
            let column = self.matvec(&rest_a, o.column)?;
            self.push_outer(&mut out, o.factor, column, o.row);
        }
        let rest_b = Matrix { outers: Vec::new(), ..b.clone() };
        let one = self.constant(1.0);
        let by = |s: &Self, d: Id| if s.is_scalar(d) { (d, None) } else { (one, Some(d)) };
        if let Some(d) = a.diagonal {
            let (factor, rows) = by(self, d);
            let part = self.scaled(&rest_b, factor, rows, None);
            out = self.matrix_add(&out, 1.0, &part);
        }
        if let Some(d) = b.diagonal {
            let without = Matrix { diagonal: None, ..rest_a.clone() };
            let (factor, columns) = by(self, d);
            let part = self.scaled(&without, factor, None, columns);
            out = self.matrix_add(&out, 1.0, &part);
        }
        match (rest_a.dense.is_empty(), rest_b.dense.is_empty()) {
            (false, _) if !b.bases.is_empty() => {
                return Err(Fault::new(
                    Obstacle::Dense { left: true, right: false },
                    "it multiplies a state by a whole matrix from the left",
                ));
            }
            (_, false) if !a.bases.is_empty() => {
                return Err(Fault::new(
                    Obstacle::Dense { left: false, right: true },
                    "it multiplies a state by a whole matrix from the right",
                ));
            }
            (false, false) => {
                let product = self.node(&Op::MatMul, &[a.dense[0], b.dense[0]]).map_err(|e| Fault::not_affine(&e))?;
                self.push_dense(&mut out, product);
            }
            _ => {}
        }
        Ok(out)
    }

    /// The sum of all products of elements.
    pub fn frobenius(&mut self, a: &Matrix, b: &Matrix) -> Result<Id> {
        let (a, b) = if a.outers.len() >= b.outers.len() { (a, b) } else { (b, a) };
        let mut parts: Vec<(f64, Id)> = Vec::new();
        let fail = |e: String| Fault::not_affine(&e);
        for o in &a.outers {
            let y = self.matvec(b, o.row)?;
            let y = self.dot(o.column, y).map_err(fail)?;
            let y = self.mul(o.factor, y);
            parts.push((1.0, y));
        }
        let rest = Matrix { outers: Vec::new(), ..a.clone() };
        if rest.bases.is_empty() && rest.diagonal.is_none() && rest.dense.is_empty() {
            return Ok(if parts.is_empty() { self.constant(0.0) } else { self.sum(&parts) });
        }
        let other = Matrix { outers: Vec::new(), ..b.clone() };
        for o in &b.outers {
            let y = self.matvec(&rest, o.row)?;
            let y = self.dot(o.column, y).map_err(fail)?;
            let y = self.mul(o.factor, y);
            parts.push((1.0, y));
        }
        match (self.dense(&rest), self.dense(&other)) {
            (Some(x), Some(y)) => {
                let y = self.node(&Op::Dot, &[x, y]).map_err(fail)?;
                parts.push((1.0, y));
                Ok(self.sum(&parts))
            }
            (None, None) => Err(Fault::not_affine("it is an inner product of two values of states")),
            _ => Err(Fault::new(
                Obstacle::Dense { left: true, right: true },
                "it is an inner product of a whole state with a matrix",
            )),
        }
    }

    /// The single expression of a matrix that is nothing else.
    pub fn plain(&self, m: &Matrix) -> Option<Id> {
        if m.is_plain() { m.dense.first().copied() } else { None }
    }
}
