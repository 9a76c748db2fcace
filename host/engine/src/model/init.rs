//! Initial values of parameters.
//!
//! Every parameter has a random stream of its own, chosen by the seed, its path, its head and the number of the draw:
//! adding a layer or a parameter changes no other parameter, and values do not depend on the device.

use std::cell::RefCell;

use anyhow::{Result, bail};
use fwp_program::ParameterSpec;
use fwp_sdk::program::{Op, Parameter, Scope};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::exec::evaluate::{self, Place, Surroundings};
use crate::exec::ops::sizes;
use crate::exec::prepared::Prepared;
use crate::exec::value::{Datum, Lead, Precision, Value};

/// Draws the values of a parameter. `draw` counts redraws; 0 is the first and that of evaluation.
pub fn draw(prepared: &Prepared, spec: &ParameterSpec, precision: Precision, seed: u64, draw: u64) -> Result<Tensor> {
    let one = |head: usize| -> Result<Tensor> {
        let mut hash = Sha256::new();
        for number in [seed, head as u64, draw] {
            hash.update(number.to_le_bytes());
        }
        hash.update(spec.path.as_bytes());
        let around = Drawing { precision, head, rng: RefCell::new(ChaCha8Rng::from_seed(hash.finalize().into())) };
        let results = evaluate::function(&around, prepared, spec.init as usize, "", spec.layer, &[])?;
        Ok(results[0].value()?.tensor.shallow_clone())
    };
    if spec.scope == Scope::Head {
        let heads: Result<Vec<Tensor>> = (0..spec.heads).map(one).collect();
        return Ok(Tensor::f_stack(&heads?, 0)?);
    }
    // A copy of its own: an initialiser may give a view, and a parameter is changed in place.
    Ok(one(0)?.f_contiguous()?.copy())
}

struct Drawing {
    precision: Precision,
    head: usize,
    rng: RefCell<ChaCha8Rng>,
}

impl Drawing {
    fn uniform(&self) -> f64 {
        // 53 random bits: every float of [0, 1) on a grid of 2^-53.
        (self.rng.borrow_mut().next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normals(&self, n: usize) -> Vec<f64> {
        let mut out = Vec::with_capacity(n + 1);
        while out.len() < n {
            // Box and Muller: two normal draws from two uniform ones; 1 - u keeps the logarithm finite.
            let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            let angle = std::f64::consts::TAU * self.uniform();
            out.extend([radius * angle.cos(), radius * angle.sin()]);
        }
        out.truncate(n);
        out
    }

    fn tensor(&self, values: &[f64], shape: &[usize]) -> Result<Datum> {
        let t = Tensor::from_slice(values).f_reshape(sizes(shape))?.f_to_kind(self.precision.kind)?;
        Ok(Datum::Value(Value::new(t.f_to_device(self.precision.device)?, Lead::NONE)))
    }

    /// Blocks of n orthogonal directions with the lengths of independent Gaussian rows (Choromanski et al. 2021, section 3.1).
    fn orthogonal(&self, rows: usize, n: usize) -> Result<Tensor> {
        let mut blocks = Vec::new();
        for _ in 0..rows.div_ceil(n) {
            let gaussian = Tensor::from_slice(&self.normals(n * n)).f_reshape([n as i64, n as i64])?;
            let (q, r) = Tensor::f_linalg_qr(&gaussian.f_transpose(0, 1)?, "reduced")?;
            // The library's signs are its own choice; with a positive diagonal of R the rows are those of Gram and Schmidt, uniform on the sphere.
            blocks.push(q.f_mul(&r.f_diagonal(0, 0, 1)?.f_sign()?)?.f_transpose(0, 1)?);
        }
        let directions = Tensor::f_cat(&blocks, 0)?.f_narrow(0, 0, rows as i64)?;
        let lengths: Vec<f64> = (0..rows).map(|_| self.normals(n).iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
        Ok(directions.f_mul(&Tensor::from_slice(&lengths).f_unsqueeze(1)?)?)
    }
}

impl Surroundings for Drawing {
    fn precision(&self) -> Precision {
        self.precision
    }
    fn parameter(&self, path: &str, _: &Parameter) -> Result<Value> {
        bail!("internal: parameter `{path}` inside of an initialiser")
    }
    fn special(&self, _: &Place<'_>, op: &Op, _: &[&Datum]) -> Result<Datum> {
        match op {
            Op::RandomNormal { shape } => self.tensor(&self.normals(shape.iter().product()), shape),
            Op::RandomUniform { shape } => {
                let values: Vec<f64> = (0..shape.iter().product()).map(|_| self.uniform()).collect();
                self.tensor(&values, shape)
            }
            Op::RandomOrthogonal { rows, n } => {
                let t = self.orthogonal(*rows, *n)?.f_to_kind(self.precision.kind)?;
                Ok(Datum::Value(Value::new(t.f_to_device(self.precision.device)?, Lead::NONE)))
            }
            Op::HeadIndex => {
                let t = Tensor::f_full([0i64; 0], self.head as i64, (Kind::Int64, self.precision.device))?;
                Ok(Datum::Value(Value::new(t, Lead::NONE)))
            }
            other => bail!("internal: `{}` inside of an initialiser", other.name()),
        }
    }
}
