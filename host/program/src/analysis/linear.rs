//! Taking an expression apart into what needs no read of a state and multiples of its reads.

use fwp_sdk::program::Op;

use super::fault::{Fault, Obstacle};
use super::store::{Ask, Id, Kind, Store};

/// free + sum of factor * read
#[derive(Clone, Debug, Default)]
pub(super) struct Linear {
    /// What needs no read of the state; none is 0.
    pub free: Option<Id>,
    /// Factors, of any shape that fits, and reads; none of the factors needs a read of the state.
    pub reads: Vec<(Id, Id)>,
    /// The innermost expression that gives the elements of a read factors of their own.
    pub spread: Option<Id>,
}

impl Store<'_> {
    /// The expression as an affine function of the reads of a state, or the expression that prevents it.
    pub fn linear(&mut self, id: Id, state: usize) -> Result<Linear, (Fault, Id)> {
        if !self.depends(id, state) {
            return Ok(Linear { free: Some(id), ..Linear::default() });
        }
        if let Some(known) = self.memo.linear.get(&(id, state)) {
            return known.clone();
        }
        let mut found = self.within(id, |s| s.linear_of(id, state));
        if let Ok(part) = &mut found
            && part.reads.iter().any(|(factor, _)| !self.is_scalar(*factor))
        {
            part.spread.get_or_insert(id);
        }
        self.memo.linear.insert((id, state), found.clone());
        found
    }

    fn linear_of(&mut self, id: Id, state: usize) -> Result<Linear, (Fault, Id)> {
        let shape = self.shape(id).to_vec();
        match self.kind(id).clone() {
            Kind::Read(r) => {
                if r.state != state {
                    return Err((Fault::new(Obstacle::Round, "the query of another state's read depends on it"), id));
                }
                if let Ask::Right(q) | Ask::Left(q) = r.query
                    && self.depends(q, state)
                {
                    return Err((Fault::not_affine("the state is read with a query that depends on the state"), q));
                }
                let one = self.constant(1.0);
                Ok(Linear { reads: vec![(one, id)], ..Linear::default() })
            }
            Kind::Sum(constant, terms) => {
                let mut free: Vec<(f64, Id)> = Vec::new();
                let mut reads: Vec<(Id, Id)> = Vec::new();
                let mut spread = None;
                if constant != 0.0 {
                    free.push((constant, self.constant(1.0)));
                }
                for (c, t) in terms {
                    let part = self.linear(t, state)?;
                    if self.is_scalar(t) && !shape.is_empty() && !part.reads.is_empty() {
                        return Err((Fault::new(Obstacle::TwoSided, "a number read of the state is added to every element"), t));
                    }
                    spread = spread.or(part.spread);
                    free.extend(part.free.map(|f| (c, f)));
                    for (factor, read) in part.reads {
                        reads.push((self.scale(c, factor), read));
                    }
                }
                let free = (!free.is_empty()).then(|| self.sum(&free));
                let free = free.map(|f| self.spread(f, &shape));
                Ok(Linear { free, reads: self.collected(reads), spread })
            }
            Kind::Product(c, mut over, under) => {
                if let Some(d) = under.iter().find(|u| self.depends(**u, state)) {
                    return Err((Fault::not_affine("it divides by a value of the state"), *d));
                }
                let held: Vec<usize> = (0..over.len()).filter(|i| self.depends(over[*i], state)).collect();
                if held.len() > 1 {
                    return Err((Fault::not_affine("it multiplies two values of the state"), id));
                }
                let inner = over.remove(held[0]);
                let by = self.product(c, &over, &under);
                let part = self.linear(inner, state)?;
                let free = part.free.map(|f| self.mul(by, f));
                let reads = part.reads.into_iter().map(|(factor, read)| (self.mul(by, factor), read)).collect();
                Ok(Linear { free, reads, spread: part.spread })
            }
            Kind::Op(Op::Select, x) if !self.depends(x[0], state) => {
                let (yes, no) = (self.linear(x[1], state)?, self.linear(x[2], state)?);
                let zero = self.constant(0.0);
                let fail = |why: String| (Fault::not_affine(&why), id);
                let free = match (yes.free, no.free) {
                    (None, None) => None,
                    (a, b) => {
                        let y = self.node(&Op::Select, &[x[0], a.unwrap_or(zero), b.unwrap_or(zero)]).map_err(fail)?;
                        Some(self.spread(y, &shape))
                    }
                };
                let mut reads = Vec::new();
                for (factor, read) in yes.reads {
                    reads.push((self.node(&Op::Select, &[x[0], factor, zero]).map_err(fail)?, read));
                }
                for (factor, read) in no.reads {
                    reads.push((self.node(&Op::Select, &[x[0], zero, factor]).map_err(fail)?, read));
                }
                Ok(Linear { free, reads: self.collected(reads), spread: yes.spread.or(no.spread) })
            }
            Kind::Op(Op::DivOr, x) if !self.depends(x[1], state) && self.is_zero(x[2]) => {
                let part = self.linear(x[0], state)?;
                let fail = |why: String| (Fault::not_affine(&why), id);
                let by = |s: &mut Self, v: Id| s.node(&Op::DivOr, &[v, x[1], x[2]]).map_err(fail);
                let free = part.free.map(|f| by(self, f)).transpose()?;
                let mut reads = Vec::new();
                for (factor, read) in part.reads {
                    reads.push((by(self, factor)?, read));
                }
                Ok(Linear { free, reads, spread: part.spread })
            }
            Kind::Op(op, x) => {
                let (obstacle, why) = match op {
                    Op::StopGradient => (Obstacle::Stopped, "a gradient stops there".to_string()),
                    Op::Dot if x.iter().filter(|i| self.depends(**i, state)).count() == 1 => {
                        (Obstacle::TwoSided, "it reads the state along rows and columns at once".into())
                    }
                    Op::Sum { .. } | Op::Mean { .. } | Op::MatVec | Op::MatVecT => {
                        (Obstacle::TwoSided, "it mixes the elements of a read".into())
                    }
                    Op::Reshape { .. }
                    | Op::Transpose { .. }
                    | Op::Slice { .. }
                    | Op::Concat { .. }
                    | Op::Expand { .. }
                    | Op::Roll { .. }
                    | Op::Flip { .. }
                    | Op::Cumsum { .. } => (Obstacle::TwoSided, "it moves the elements of a read".into()),
                    _ => (Obstacle::NotAffine, "it is not linear in what it reads of the state".into()),
                };
                // The deepest operation in the way is the one to name.
                for inner in x.into_iter().filter(|i| self.depends(*i, state)).collect::<Vec<Id>>() {
                    self.linear(inner, state)?;
                }
                Err((Fault::new(obstacle, &why), id))
            }
        }
    }

    /// Factors of the same read added up.
    fn collected(&mut self, reads: Vec<(Id, Id)>) -> Vec<(Id, Id)> {
        let mut out: Vec<(Id, Id)> = Vec::new();
        for (factor, read) in reads {
            match out.iter_mut().find(|(_, r)| *r == read) {
                Some((f, _)) => *f = self.sum(&[(1.0, *f), (1.0, factor)]),
                None => out.push((factor, read)),
            }
        }
        out.retain(|(f, _)| !self.is_zero(*f));
        out
    }
}
