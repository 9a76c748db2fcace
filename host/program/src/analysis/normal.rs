//! The normal form of expressions.
//!
//! Sums and products are lists in an order that does not depend on how the author wrote them,
//! numbers are pulled out of products, and repeated scalars are pulled out of element-wise arithmetic.
//! So two spellings of one value become one expression; products are never multiplied out over sums that hold no state,
//! because `1 - a` written as such is exact where an expanded form is not.
//! The identities are those of numbers that are finite: 0 x is 0.

use fwp_sdk::program::{DType, Op, TensorType};

use super::store::{Ask, Id, Kind, Read, Store};

impl Store<'_> {
    /// A number.
    pub fn constant(&mut self, value: f64) -> Id {
        self.intern(Kind::Op(Op::Constant { value }, Vec::new()), TensorType::float(&[]))
    }

    /// Every element `value`.
    pub fn full(&mut self, shape: &[usize], value: f64) -> Id {
        let scalar = self.constant(value);
        self.spread(scalar, shape)
    }

    /// A scalar repeated to a shape; anything else is left alone.
    pub fn spread(&mut self, id: Id, shape: &[usize]) -> Id {
        if !self.is_scalar(id) || shape.is_empty() {
            return id;
        }
        if let Some(value) = self.number(id) {
            return self.intern(Kind::Op(Op::Full { shape: shape.to_vec(), value }, Vec::new()), TensorType::float(shape));
        }
        let mut x = id;
        for (axis, size) in shape.iter().enumerate() {
            let ty = TensorType { shape: shape[..=axis].to_vec(), ..self.ty(x).clone() };
            x = self.intern(Kind::Op(Op::Expand { axis, size: *size }, vec![x]), ty);
        }
        x
    }

    /// The scalar that a repeated scalar repeats; everything else comes back as it is.
    fn unspread(&mut self, id: Id) -> Id {
        let mut x = id;
        loop {
            match self.kind(x) {
                Kind::Op(Op::Expand { .. }, o) => x = o[0],
                Kind::Op(Op::Full { value, .. }, _) => {
                    let value = *value;
                    return self.constant(value);
                }
                _ => return if self.is_scalar(x) { x } else { id },
            }
        }
    }

    /// An operator on expressions, in normal form.
    ///
    /// # Errors
    /// What the shape rules refuse.
    pub fn node(&mut self, op: &Op, x: &[Id]) -> Result<Id, String> {
        let float = x.iter().all(|i| self.ty(*i).dtype == DType::Float);
        match op {
            Op::Constant { value } => return Ok(self.constant(*value)),
            Op::Full { shape, value } => return Ok(self.full(shape, *value)),
            Op::Add if float => return self.elementwise(x, |s, x, _| Ok(s.sum(&[(1.0, x[0]), (1.0, x[1])]))),
            Op::Sub if float => return self.elementwise(x, |s, x, _| Ok(s.sum(&[(1.0, x[0]), (-1.0, x[1])]))),
            Op::Mul if float => return Ok(self.mul(x[0], x[1])),
            Op::Div if float => return Ok(self.div(x[0], x[1])),
            Op::Neg => return Ok(self.scale(-1.0, x[0])),
            Op::Square => return Ok(self.mul(x[0], x[0])),
            Op::Reciprocal => {
                let one = self.constant(1.0);
                return Ok(self.div(one, x[0]));
            }
            Op::Dot => return self.dot(x[0], x[1]),
            Op::Reshape { shape } if self.shape(x[0]) == shape => return Ok(x[0]),
            Op::Expand { .. } if self.is_scalar(x[0]) => {
                let ty = self.infer(op, x)?;
                return Ok(self.spread(x[0], &ty.shape));
            }
            _ => {}
        }
        let mut x = x.to_vec();
        if commutes(op) {
            x.sort_by(|a, b| self.order(*a, *b));
        }
        if is_elementwise(op) {
            return self.elementwise(&x, |s, x, _| {
                let ty = s.infer(op, x)?;
                Ok(s.intern(Kind::Op(op.clone(), x.to_vec()), ty))
            });
        }
        let ty = self.infer(op, &x)?;
        Ok(self.intern(Kind::Op(op.clone(), x), ty))
    }

    /// Element-wise arithmetic on what is inside of repetitions, repeated afterwards.
    fn elementwise(
        &mut self,
        x: &[Id],
        make: impl FnOnce(&mut Self, &[Id], &[usize]) -> Result<Id, String>,
    ) -> Result<Id, String> {
        let shape = x.iter().map(|i| self.shape(*i)).max_by_key(|s| s.len()).unwrap_or_default().to_vec();
        let mut inner: Vec<Id> = x.iter().map(|i| self.unspread(*i)).collect();
        let mut stripped: Vec<(usize, usize)> = Vec::new();
        loop {
            let repeated = |s: &Self, i: Id| match s.kind(i) {
                Kind::Op(Op::Expand { axis, size }, o) => Some((*axis, *size, o[0])),
                _ => None,
            };
            let mut tensors = inner.iter().filter(|i| !self.is_scalar(**i));
            let Some((axis, size, _)) = tensors.next().and_then(|i| repeated(self, *i)) else { break };
            if !tensors.all(|i| repeated(self, *i).is_some_and(|(a, n, _)| (a, n) == (axis, size))) {
                break;
            }
            for i in &mut inner {
                if let Some((_, _, o)) = repeated(self, *i) {
                    *i = o;
                }
            }
            stripped.push((axis, size));
        }
        let all_scalar = inner.iter().all(|i| self.is_scalar(*i));
        let mut y = make(self, &inner, &shape)?;
        if all_scalar || self.is_scalar(y) {
            return Ok(self.spread(y, &shape));
        }
        for (axis, size) in stripped.into_iter().rev() {
            y = self.node(&Op::Expand { axis, size }, &[y])?;
        }
        Ok(y)
    }

    /// The sum of multiples; scalars are spread over tensors.
    pub fn sum(&mut self, parts: &[(f64, Id)]) -> Id {
        let shape = parts.iter().map(|p| self.shape(p.1)).max_by_key(|s| s.len()).unwrap_or_default().to_vec();
        let mut constant = 0.0;
        let mut terms: Vec<(f64, Id)> = Vec::new();
        let mut todo: Vec<(f64, Id)> = parts.iter().rev().copied().collect();
        while let Some((c, id)) = todo.pop() {
            let id = self.unspread(id);
            match self.kind(id).clone() {
                Kind::Op(Op::Constant { value }, _) => constant += c * value,
                Kind::Sum(k, inner) => {
                    constant += c * k;
                    todo.extend(inner.iter().rev().map(|(d, t)| (c * d, *t)));
                }
                // A multiple of a sum is a sum of multiples.
                Kind::Product(k, over, under)
                    if under.is_empty() && over.len() == 1 && matches!(self.kind(over[0]), Kind::Sum(..)) =>
                {
                    todo.push((c * k, over[0]));
                }
                Kind::Product(k, over, under) if k != 1.0 => {
                    let bare = self.product(1.0, &over, &under);
                    terms.push((c * k, bare));
                }
                _ => terms.push((c, id)),
            }
        }
        terms.sort_by(|a, b| self.order(a.1, b.1));
        let mut merged: Vec<(f64, Id)> = Vec::new();
        for (c, t) in terms {
            match merged.last_mut() {
                Some((d, last)) if *last == t => *d += c,
                _ => merged.push((c, t)),
            }
        }
        merged.retain(|(c, _)| *c != 0.0);
        if merged.is_empty() {
            return self.full(&shape, constant);
        }
        if constant == 0.0 && merged.len() == 1 {
            let (c, t) = merged[0];
            let y = self.scale(c, t);
            return self.spread(y, &shape);
        }
        // The sign of a sum is that of its first term, so that a - b and b - a are one sum.
        let first = if constant == 0.0 { merged[0].0 } else { constant };
        let sign = if first < 0.0 { -1.0 } else { 1.0 };
        merged.iter_mut().for_each(|(c, _)| *c *= sign);
        let inner = merged.iter().map(|t| self.shape(t.1)).max_by_key(|s| s.len()).unwrap_or_default().to_vec();
        let y = self.intern(Kind::Sum(constant * sign, merged), TensorType::float(&inner));
        let y = if sign < 0.0 { self.scale(-1.0, y) } else { y };
        self.spread(y, &shape)
    }

    /// A multiple.
    pub fn scale(&mut self, factor: f64, x: Id) -> Id {
        if factor == 1.0 { x } else { self.product(factor, &[x], &[]) }
    }

    /// constant * product of `over` / product of `under`, element by element; scalars are spread over tensors.
    pub fn product(&mut self, constant: f64, over: &[Id], under: &[Id]) -> Id {
        let all = || over.iter().chain(under);
        let shape = all().map(|i| self.shape(*i)).max_by_key(|s| s.len()).unwrap_or_default().to_vec();
        let mut factor = constant;
        let (mut up, mut down): (Vec<Id>, Vec<Id>) = (Vec::new(), Vec::new());
        let todo: Vec<(bool, Id)> = over.iter().map(|i| (true, *i)).chain(under.iter().map(|i| (false, *i))).collect();
        for (above, id) in todo {
            let id = self.unspread(id);
            match self.kind(id).clone() {
                Kind::Op(Op::Constant { value }, _) => {
                    if above {
                        factor *= value;
                    } else {
                        factor /= value;
                    }
                }
                Kind::Product(k, o, u) => {
                    if above {
                        factor *= k;
                        up.extend(o);
                        down.extend(u);
                    } else {
                        factor /= k;
                        up.extend(u);
                        down.extend(o);
                    }
                }
                _ if above => up.push(id),
                _ => down.push(id),
            }
        }
        up.sort_by(|a, b| self.order(*a, *b));
        down.sort_by(|a, b| self.order(*a, *b));
        if factor == 0.0 || (up.is_empty() && down.is_empty()) {
            return self.full(&shape, factor);
        }
        let y = if factor == 1.0 && up.len() == 1 && down.is_empty() {
            up[0]
        } else {
            let inner = up.iter().chain(&down).map(|i| self.shape(*i)).max_by_key(|s| s.len()).unwrap_or_default().to_vec();
            self.intern(Kind::Product(factor, up, down), TensorType::float(&inner))
        };
        self.spread(y, &shape)
    }

    /// a b, element by element.
    pub fn mul(&mut self, a: Id, b: Id) -> Id {
        // Products that are repeated along the same axis are formed inside; the shapes fit, so nothing can fail.
        self.elementwise(&[a, b], |s, x, _| Ok(s.product(1.0, x, &[]))).unwrap_or(a)
    }

    /// a / b, element by element.
    pub fn div(&mut self, a: Id, b: Id) -> Id {
        self.elementwise(&[a, b], |s, x, _| Ok(s.product(1.0, &x[..1], &x[1..]))).unwrap_or(a)
    }

    /// a + b; `None` is 0.
    pub fn add(&mut self, a: Option<Id>, b: Option<Id>) -> Option<Id> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.sum(&[(1.0, a), (1.0, b)])),
            (a, b) => a.or(b),
        }
    }

    /// Whether it is 0 by construction.
    pub fn is_zero(&self, id: Id) -> bool {
        match self.kind(id) {
            Kind::Op(Op::Constant { value } | Op::Full { value, .. }, _) => *value == 0.0,
            _ => false,
        }
    }

    /// A tensor as a scalar times a tensor without scalar factors.
    pub fn split_scalar(&mut self, id: Id) -> (Id, Id) {
        let shape = self.shape(id).to_vec();
        let one = self.constant(1.0);
        if shape.is_empty() {
            return (id, one);
        }
        let inner = self.unspread(id);
        if self.is_scalar(inner) {
            let ones = self.full(&shape, 1.0);
            return (inner, ones);
        }
        let Kind::Product(c, over, under) = self.kind(id).clone() else { return (one, id) };
        let (scalars, tensors): (Vec<Id>, Vec<Id>) = over.into_iter().partition(|i| self.is_scalar(*i));
        let (under_scalars, under_tensors): (Vec<Id>, Vec<Id>) = under.into_iter().partition(|i| self.is_scalar(*i));
        self.within(id, |s| (s.product(c, &scalars, &under_scalars), s.product(1.0, &tensors, &under_tensors)))
    }

    /// The inner product; scalar factors are pulled out, and one with a vector state becomes a read of it.
    pub fn dot(&mut self, a: Id, b: Id) -> Result<Id, String> {
        for (x, y) in [(a, b), (b, a)] {
            if let Some(split) = self.vector_reads(x) {
                let mut parts = Vec::new();
                for (factor, term) in split {
                    let part = match term {
                        Part::State { read, size, times } => {
                            let query = match times {
                                Some(t) => self.mul(t, y),
                                None => y,
                            };
                            // A state's inner product with itself is no read.
                            if self.depends(query, read.state) {
                                return self.plain_dot(a, b);
                            }
                            let query = self.spread(query, &size);
                            self.ask(Read { query: Ask::Right(query), ..read }, &[])
                        }
                        Part::Other(t) => self.plain_dot(t, y)?,
                    };
                    parts.push((factor, part));
                }
                return Ok(self.sum(&parts));
            }
        }
        self.plain_dot(a, b)
    }

    fn plain_dot(&mut self, a: Id, b: Id) -> Result<Id, String> {
        let ((c, a), (d, b)) = (self.split_scalar(a), self.split_scalar(b));
        let mut x = [a, b];
        x.sort_by(|a, b| self.order(*a, *b));
        let ty = self.infer(&Op::Dot, &x)?;
        let inner = self.intern(Kind::Op(Op::Dot, x.to_vec()), ty);
        Ok(self.product(1.0, &[c, d, inner], &[]))
    }

    /// A read whose query has its scalar factors pulled out.
    pub fn ask(&mut self, read: Read, size: &[usize]) -> Id {
        let (q, wrap): (Id, fn(Id) -> Ask) = match read.query {
            Ask::Right(q) => (q, Ask::Right),
            Ask::Left(q) => (q, Ask::Left),
            Ask::Whole => return self.read(read, size),
        };
        let (c, rest) = self.split_scalar(q);
        if self.is_zero(c) {
            return self.full(size, 0.0);
        }
        let y = self.read(Read { query: wrap(rest), ..read }, size);
        self.mul(c, y)
    }

    /// A sum or product that holds vector states themselves, as its terms; `None` where it holds none in the open.
    fn vector_reads(&mut self, id: Id) -> Option<Vec<(f64, Part)>> {
        let terms = match self.kind(id) {
            Kind::Sum(constant, terms) if *constant == 0.0 => terms.clone(),
            Kind::Sum(..) => return None,
            _ => vec![(1.0, id)],
        };
        let mut parts = Vec::new();
        let mut any = false;
        let shape = self.shape(id).to_vec();
        for (c, t) in terms {
            let mut constant = c;
            let (over, under) = match self.kind(t).clone() {
                Kind::Product(k, over, under) => {
                    constant *= k;
                    (over, under)
                }
                _ => (vec![t], Vec::new()),
            };
            let open = |s: &Self, i: &Id| match s.kind(*i) {
                Kind::Read(r) if r.query == Ask::Whole && s.shape(*i).len() == 1 => Some(*r),
                _ => None,
            };
            match over.iter().position(|i| open(self, i).is_some()) {
                Some(place) => {
                    any = true;
                    let mut rest = over.clone();
                    let state = rest.remove(place);
                    let read = open(self, &state)?;
                    let size = self.shape(state).to_vec();
                    let times = (!rest.is_empty() || !under.is_empty()).then(|| self.product(1.0, &rest, &under));
                    parts.push((constant, Part::State { read, size, times }));
                }
                None => {
                    let t = self.spread(t, &shape);
                    parts.push((c, Part::Other(t)));
                }
            }
        }
        any.then_some(parts)
    }
}

/// A term of a vector.
enum Part {
    /// A vector state itself, perhaps times something.
    State { read: Read, size: Vec<usize>, times: Option<Id> },
    /// Anything else.
    Other(Id),
}

fn commutes(op: &Op) -> bool {
    matches!(op, Op::Add | Op::Mul | Op::Max | Op::Min | Op::Equal | Op::And | Op::Or | Op::BitAnd | Op::BitOr | Op::BitXor)
}

/// Whether an operator acts element by element on operands of one shape or scalars.
fn is_elementwise(op: &Op) -> bool {
    use Op::*;
    matches!(
        op,
        Neg | Abs
            | Sign
            | Exp
            | Expm1
            | Log
            | Log1p
            | Sqrt
            | Rsqrt
            | Reciprocal
            | Square
            | Sin
            | Cos
            | Tanh
            | Sigmoid
            | LogSigmoid
            | Softplus
            | Relu
            | Gelu
            | GeluTanh
            | Silu
            | Erf
            | Floor
            | ToFloat
            | StopGradient
            | Not
            | Add
            | Sub
            | Mul
            | Div
            | Max
            | Min
            | Pow
            | DivOr
            | Select
    )
}
