//! What values a decay takes, and its logarithm where that is known exactly.

use fwp_sdk::program::Op;

use super::form::Range;
use super::store::{Id, Kind, Store};

/// An end of an interval, and whether it is not taken.
#[derive(Clone, Copy, Debug, PartialEq)]
struct End {
    at: f64,
    open: bool,
}

/// Bounds of an expression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounds {
    low: End,
    high: End,
}

const ANY: Bounds = closed(f64::NEG_INFINITY, f64::INFINITY);

const fn closed(low: f64, high: f64) -> Bounds {
    Bounds { low: End { at: low, open: false }, high: End { at: high, open: false } }
}

/// Without its lower end.
const fn above(low: f64, high: f64) -> Bounds {
    Bounds { low: End { at: low, open: true }, high: End { at: high, open: false } }
}

/// Bounds of 1 / x for a positive x.
fn inverse(of: Bounds) -> Bounds {
    let low = End { at: 1.0 / of.high.at, open: of.high.open || of.high.at == f64::INFINITY };
    Bounds { low, high: End { at: 1.0 / of.low.at, open: of.low.open } }
}

impl End {
    fn plus(self, other: End) -> End {
        End { at: self.at + other.at, open: self.open || other.open }
    }
    /// Of two ends the one further out (`sign` 1: the larger); where both are the same, taken if one of them is.
    fn outer(self, other: End, sign: f64) -> End {
        match (sign * self.at).partial_cmp(&(sign * other.at)) {
            Some(std::cmp::Ordering::Greater) => self,
            Some(std::cmp::Ordering::Less) => other,
            _ => End { at: self.at, open: self.open && other.open },
        }
    }
    /// Of two ends the one further in (`sign` 1: the larger); where both are the same, taken only if both are.
    fn inner(self, other: End, sign: f64) -> End {
        if self.at == other.at { End { at: self.at, open: self.open || other.open } } else { self.outer(other, sign) }
    }
}

impl Bounds {
    /// Whether it is above 0.
    pub fn positive(self) -> bool {
        self.low.at > 0.0 || (self.low.at == 0.0 && self.low.open)
    }
    /// c times it.
    fn times_number(self, c: f64) -> Bounds {
        let by = |e: End| End { at: c * e.at, ..e };
        if c >= 0.0 {
            Bounds { low: by(self.low), high: by(self.high) }
        } else {
            Bounds { low: by(self.high), high: by(self.low) }
        }
    }
    /// The product of two independent values.
    fn times(self, other: Bounds) -> Bounds {
        if self.low.at >= 0.0 && other.low.at >= 0.0 {
            // 0 times infinity is no bound.
            let product = |a: End, b: End, open: bool| {
                let at = if a.at == 0.0 || b.at == 0.0 { 0.0 } else { a.at * b.at };
                End { at, open }
            };
            let low = product(
                self.low,
                other.low,
                if self.low.at * other.low.at > 0.0 {
                    self.low.open || other.low.open
                } else {
                    self.positive() && other.positive()
                },
            );
            return Bounds { low, high: product(self.high, other.high, self.high.open || other.high.open) };
        }
        let (a, b) = (self, other);
        let ends = [a.low.at * b.low.at, a.low.at * b.high.at, a.high.at * b.low.at, a.high.at * b.high.at];
        if ends.iter().any(|e| e.is_nan()) {
            return ANY;
        }
        closed(ends.iter().copied().fold(f64::INFINITY, f64::min), ends.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    }
}

impl Store<'_> {
    /// The range of a decay, and the expression to hand over: the logarithm where that is exact.
    pub fn decay_range(&mut self, a: Id) -> (Range, Id) {
        if let Some(log) = self.log_exact(a) {
            return (Range::Log, log);
        }
        (if self.bounds(a).positive() { Range::Positive } else { Range::Signed }, a)
    }

    /// The logarithm of something that is positive by construction, computed without the value itself.
    fn log_exact(&mut self, a: Id) -> Option<Id> {
        if let Some(known) = self.memo.logarithm.get(&a) {
            return *known;
        }
        let found = self.log_of(a);
        self.memo.logarithm.insert(a, found);
        found
    }

    fn log_of(&mut self, a: Id) -> Option<Id> {
        match self.kind(a).clone() {
            Kind::Op(Op::Exp, x) => Some(x[0]),
            Kind::Op(Op::Sigmoid, x) => self.node(&Op::LogSigmoid, &x).ok(),
            Kind::Op(Op::Constant { value }, _) if value > 0.0 => Some(self.constant(value.ln())),
            Kind::Op(Op::Full { shape, value }, _) if value > 0.0 => Some(self.full(&shape, value.ln())),
            Kind::Op(Op::Sqrt, x) => {
                let log = self.log_exact(x[0])?;
                Some(self.scale(0.5, log))
            }
            Kind::Op(Op::Rsqrt, x) => {
                let log = self.log_exact(x[0])?;
                Some(self.scale(-0.5, log))
            }
            Kind::Op(Op::Pow, x) => {
                let log = self.log_exact(x[0])?;
                Some(self.mul(x[1], log))
            }
            // The logarithm is monotone, and these only move elements.
            Kind::Op(op @ (Op::Max | Op::Min), x) => {
                let logs = [self.log_exact(x[0])?, self.log_exact(x[1])?];
                self.node(&op, &logs).ok()
            }
            Kind::Op(Op::Select, x) => {
                let (yes, no) = (self.log_exact(x[1])?, self.log_exact(x[2])?);
                self.node(&Op::Select, &[x[0], yes, no]).ok()
            }
            Kind::Op(
                op @ (Op::Reshape { .. }
                | Op::Slice { .. }
                | Op::Expand { .. }
                | Op::Roll { .. }
                | Op::Flip { .. }
                | Op::Concat { .. }),
                x,
            ) => {
                let logs: Option<Vec<Id>> = x.iter().map(|i| self.log_exact(*i)).collect();
                self.node(&op, &logs?).ok()
            }
            // 1 - sigmoid(x) = sigmoid(-x)
            Kind::Sum(1.0, terms) => match terms[..] {
                [(-1.0, s)] => match self.kind(s).clone() {
                    Kind::Op(Op::Sigmoid, x) => {
                        let minus = self.scale(-1.0, x[0]);
                        self.node(&Op::LogSigmoid, &[minus]).ok()
                    }
                    _ => None,
                },
                _ => None,
            },
            Kind::Product(c, over, under) if c > 0.0 => {
                let mut parts = vec![(1.0, self.constant(c.ln()))];
                for x in over {
                    parts.push((1.0, self.log_exact(x)?));
                }
                for x in under {
                    parts.push((-1.0, self.log_exact(x)?));
                }
                Some(self.sum(&parts))
            }
            _ => None,
        }
    }

    /// Bounds that hold whatever the inputs and parameters are.
    pub fn bounds(&mut self, a: Id) -> Bounds {
        if let Some(known) = self.memo.bounds.get(&a) {
            return *known;
        }
        let found = self.bounds_of(a);
        self.memo.bounds.insert(a, found);
        found
    }

    fn bounds_of(&mut self, a: Id) -> Bounds {
        match &self.kind(a).clone() {
            Kind::Op(Op::Constant { value } | Op::Full { value, .. }, _) => closed(*value, *value),
            Kind::Op(op, x) => match op {
                Op::Sigmoid => Bounds { low: End { at: 0.0, open: true }, high: End { at: 1.0, open: true } },
                Op::Tanh | Op::Erf | Op::Sin | Op::Cos | Op::Sign => closed(-1.0, 1.0),
                Op::Exp => {
                    let of = self.bounds(x[0]);
                    let exp = |e: End| End { at: e.at.exp(), open: e.open };
                    let low = if of.low.at == f64::NEG_INFINITY { End { at: 0.0, open: true } } else { exp(of.low) };
                    Bounds { low, high: exp(of.high) }
                }
                Op::Softplus => above(0.0, f64::INFINITY),
                Op::Softmax { .. } => above(0.0, 1.0),
                Op::Relu | Op::Abs | Op::Sqrt => closed(0.0, f64::INFINITY),
                Op::LogSigmoid => closed(f64::NEG_INFINITY, 0.0),
                Op::Max | Op::Min => {
                    let (u, v) = (self.bounds(x[0]), self.bounds(x[1]));
                    match op {
                        Op::Max => Bounds { low: u.low.inner(v.low, 1.0), high: u.high.outer(v.high, 1.0) },
                        _ => Bounds { low: u.low.outer(v.low, -1.0), high: u.high.inner(v.high, -1.0) },
                    }
                }
                Op::Select => {
                    let (u, v) = (self.bounds(x[1]), self.bounds(x[2]));
                    Bounds { low: u.low.outer(v.low, -1.0), high: u.high.outer(v.high, 1.0) }
                }
                Op::Pow if self.bounds(x[0]).positive() => above(0.0, f64::INFINITY),
                Op::StopGradient
                | Op::Reshape { .. }
                | Op::Slice { .. }
                | Op::Expand { .. }
                | Op::Roll { .. }
                | Op::Flip { .. }
                | Op::Transpose { .. } => self.bounds(x[0]),
                _ => ANY,
            },
            Kind::Sum(constant, terms) => terms.iter().fold(closed(*constant, *constant), |sum, (c, t)| {
                let of = self.bounds(*t).times_number(*c);
                Bounds { low: sum.low.plus(of.low), high: sum.high.plus(of.high) }
            }),
            Kind::Product(c, over, under) => {
                let mut product = closed(1.0, 1.0);
                let mut i = 0;
                while i < over.len() {
                    let of = self.bounds(over[i]);
                    // A square is at least 0, whatever it is the square of.
                    let square = over.get(i + 1) == Some(&over[i]);
                    let positive = of.positive();
                    product = product.times(match square {
                        true if positive => above(0.0, f64::INFINITY),
                        true => closed(0.0, f64::INFINITY),
                        false => of,
                    });
                    i += 1 + usize::from(square);
                }
                for x in under {
                    let of = self.bounds(*x);
                    product = product.times(if of.positive() { inverse(of) } else { ANY });
                }
                product.times_number(*c)
            }
            Kind::Read(_) => ANY,
        }
    }
}
