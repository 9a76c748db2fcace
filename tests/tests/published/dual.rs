//! Numbers that carry a derivative, and the little linear algebra of the loops.
//!
//! A loop over these gives its results and their exact derivatives in one direction, so a gradient needs no differences.

use std::ops::{Add, Div, Index, IndexMut, Mul, Neg, Sub};

/// A number and its derivative in the direction that is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dual {
    pub value: f64,
    pub slope: f64,
}

impl Dual {
    pub const ZERO: Dual = Dual { value: 0.0, slope: 0.0 };
    pub const ONE: Dual = Dual { value: 1.0, slope: 0.0 };

    /// A function of this number, from its value and derivative here.
    fn through(self, value: f64, derivative: f64) -> Dual {
        Dual { value, slope: derivative * self.slope }
    }

    pub fn exp(self) -> Dual {
        self.through(self.value.exp(), self.value.exp())
    }

    pub fn ln(self) -> Dual {
        self.through(self.value.ln(), 1.0 / self.value)
    }

    pub fn sqrt(self) -> Dual {
        self.through(self.value.sqrt(), 0.5 / self.value.sqrt())
    }

    pub fn tanh(self) -> Dual {
        self.through(self.value.tanh(), 1.0 - self.value.tanh().powi(2))
    }

    pub fn sin(self) -> Dual {
        self.through(self.value.sin(), self.value.cos())
    }

    pub fn cos(self) -> Dual {
        self.through(self.value.cos(), -self.value.sin())
    }

    /// The distribution function of normal draws, by the series of its integral, whose terms are all of one sign.
    pub fn normal_below(self) -> Dual {
        let x = self.value;
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let (mut sum, mut term, mut n) = (0.0, x, 1.0);
        while sum + term != sum {
            sum += term;
            n += 2.0;
            term *= x * x / n;
        }
        self.through(0.5 + density * sum, density)
    }

    pub fn powf(self, n: f64) -> Dual {
        self.through(self.value.powf(n), n * self.value.powf(n - 1.0))
    }

    pub fn abs(self) -> Dual {
        if self.value < 0.0 { -self } else { self }
    }

    pub fn max(self, other: Dual) -> Dual {
        if self.value >= other.value { self } else { other }
    }

    pub fn sigmoid(self) -> Dual {
        1.0 / (1.0 + (-self).exp())
    }

    pub fn softplus(self) -> Dual {
        (1.0 + self.exp()).ln()
    }

    pub fn silu(self) -> Dual {
        self * self.sigmoid()
    }

    pub fn relu(self) -> Dual {
        self.max(Dual::ZERO)
    }
}

impl From<f64> for Dual {
    fn from(value: f64) -> Dual {
        Dual { value, slope: 0.0 }
    }
}

impl Add for Dual {
    type Output = Dual;
    fn add(self, b: Dual) -> Dual {
        Dual { value: self.value + b.value, slope: self.slope + b.slope }
    }
}

impl Sub for Dual {
    type Output = Dual;
    fn sub(self, b: Dual) -> Dual {
        Dual { value: self.value - b.value, slope: self.slope - b.slope }
    }
}

impl Mul for Dual {
    type Output = Dual;
    fn mul(self, b: Dual) -> Dual {
        Dual { value: self.value * b.value, slope: self.slope * b.value + self.value * b.slope }
    }
}

impl Div for Dual {
    type Output = Dual;
    fn div(self, b: Dual) -> Dual {
        let value = self.value / b.value;
        Dual { value, slope: (self.slope - value * b.slope) / b.value }
    }
}

impl Neg for Dual {
    type Output = Dual;
    fn neg(self) -> Dual {
        Dual { value: -self.value, slope: -self.slope }
    }
}

/// The same operators where one side is a constant.
macro_rules! with_constants {
    ($($operator:ident $name:ident),*) => {$(
        impl $operator<f64> for Dual {
            type Output = Dual;
            fn $name(self, b: f64) -> Dual {
                self.$name(Dual::from(b))
            }
        }
        impl $operator<Dual> for f64 {
            type Output = Dual;
            fn $name(self, b: Dual) -> Dual {
                Dual::from(self).$name(b)
            }
        }
    )*};
}

with_constants!(Add add, Sub sub, Mul mul, Div div);

/// A column of numbers.
pub type Vector = Vec<Dual>;

pub fn sum(a: &[Dual]) -> Dual {
    a.iter().fold(Dual::ZERO, |s, x| s + *x)
}

pub fn dot(a: &[Dual], b: &[Dual]) -> Dual {
    sum(&times(a, b))
}

fn pairs(a: &[Dual], b: &[Dual], f: impl Fn(Dual, Dual) -> Dual) -> Vector {
    assert_eq!(a.len(), b.len(), "vectors of one size");
    a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
}

pub fn plus(a: &[Dual], b: &[Dual]) -> Vector {
    pairs(a, b, |a, b| a + b)
}

pub fn minus(a: &[Dual], b: &[Dual]) -> Vector {
    pairs(a, b, |a, b| a - b)
}

/// Element by element.
pub fn times(a: &[Dual], b: &[Dual]) -> Vector {
    pairs(a, b, |a, b| a * b)
}

pub fn scaled(by: Dual, a: &[Dual]) -> Vector {
    a.iter().map(|x| by * *x).collect()
}

pub fn map(a: &[Dual], f: impl Fn(Dual) -> Dual) -> Vector {
    a.iter().map(|x| f(*x)).collect()
}

pub fn softmax(a: &[Dual]) -> Vector {
    let e = map(a, Dual::exp);
    scaled(1.0 / sum(&e), &e)
}

/// `a / sqrt(|a|^2 + eps)`
pub fn unit(a: &[Dual], eps: f64) -> Vector {
    scaled(1.0 / (dot(a, a) + eps).sqrt(), a)
}

/// `(a - mean) / sqrt(variance + eps)`, and that root.
pub fn standardised(a: &[Dual], eps: f64) -> (Vector, Dual) {
    let n = a.len() as f64;
    let mean = sum(a) / n;
    let centred = map(a, |x| x - mean);
    let deviation = (dot(&centred, &centred) / n + eps).sqrt();
    (scaled(1.0 / deviation, &centred), deviation)
}

/// Rows and columns of numbers.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub data: Vec<Dual>,
}

impl Matrix {
    pub fn zeros(rows: usize, columns: usize) -> Matrix {
        Matrix { rows, columns, data: vec![Dual::ZERO; rows * columns] }
    }

    /// `a b^T`
    pub fn outer(a: &[Dual], b: &[Dual]) -> Matrix {
        Matrix { rows: a.len(), columns: b.len(), data: a.iter().flat_map(|x| scaled(*x, b)).collect() }
    }

    pub fn row(&self, i: usize) -> &[Dual] {
        &self.data[i * self.columns..][..self.columns]
    }

    /// `W x`
    pub fn of(&self, x: &[Dual]) -> Vector {
        (0..self.rows).map(|i| dot(self.row(i), x)).collect()
    }

    /// `W^T x`
    pub fn transposed_of(&self, x: &[Dual]) -> Vector {
        assert_eq!(self.rows, x.len(), "a number a row");
        (0..self.columns).map(|j| sum(&(0..self.rows).map(|i| self[(i, j)] * x[i]).collect::<Vector>())).collect()
    }

    fn every(&self, f: impl Fn(usize, usize) -> Dual) -> Matrix {
        let data = (0..self.rows).flat_map(|i| (0..self.columns).map(move |j| (i, j))).map(|(i, j)| f(i, j));
        Matrix { data: data.collect(), ..*self }
    }

    pub fn plus(&self, b: &Matrix) -> Matrix {
        self.every(|i, j| self[(i, j)] + b[(i, j)])
    }

    pub fn minus(&self, b: &Matrix) -> Matrix {
        self.every(|i, j| self[(i, j)] - b[(i, j)])
    }

    pub fn scaled(&self, by: Dual) -> Matrix {
        self.every(|i, j| by * self[(i, j)])
    }

    /// `W Diag(a)`
    pub fn columns_scaled(&self, a: &[Dual]) -> Matrix {
        assert_eq!(self.columns, a.len(), "a number a column");
        self.every(|i, j| self[(i, j)] * a[j])
    }

    /// `Diag(a) W`
    pub fn rows_scaled(&self, a: &[Dual]) -> Matrix {
        assert_eq!(self.rows, a.len(), "a number a row");
        self.every(|i, j| a[i] * self[(i, j)])
    }

    pub fn map(&self, f: impl Fn(Dual) -> Dual) -> Matrix {
        self.every(|i, j| f(self[(i, j)]))
    }

    /// Rows from..to.
    pub fn part(&self, from: usize, to: usize) -> Matrix {
        Matrix { rows: to - from, columns: self.columns, data: self.data[from * self.columns..to * self.columns].to_vec() }
    }

    /// `W^-1 b` by elimination, without exchange of rows: for positive definite matrices.
    pub fn solve(mut self, b: &[Dual]) -> Vector {
        let n = self.rows;
        let mut x = b.to_vec();
        for pivot in 0..n {
            for i in pivot + 1..n {
                let factor = self[(i, pivot)] / self[(pivot, pivot)];
                for j in pivot..n {
                    self[(i, j)] = self[(i, j)] - factor * self[(pivot, j)];
                }
                x[i] = x[i] - factor * x[pivot];
            }
        }
        for i in (0..n).rev() {
            let known = sum(&(i + 1..n).map(|j| self[(i, j)] * x[j]).collect::<Vector>());
            x[i] = (x[i] - known) / self[(i, i)];
        }
        x
    }
}

impl Index<(usize, usize)> for Matrix {
    type Output = Dual;
    fn index(&self, (i, j): (usize, usize)) -> &Dual {
        &self.data[i * self.columns + j]
    }
}

impl IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (i, j): (usize, usize)) -> &mut Dual {
        &mut self.data[i * self.columns + j]
    }
}
