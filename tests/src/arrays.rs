//! Arrays of numbers, and reading and writing them as safetensors files.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

/// Numbers of a shape, the last axis first in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// The numbers.
    pub data: Vec<f64>,
}

/// Arrays by their names.
pub type Arrays = HashMap<String, Array>;

impl Array {
    /// Zeros.
    pub fn zeros(shape: &[usize]) -> Array {
        Array { shape: shape.into(), data: vec![0.0; shape.iter().product()] }
    }

    /// Numbers between -1 and 1, the same for the same name and shape.
    pub fn random(name: &str, shape: &[usize]) -> Array {
        let mut state = name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |s, b| (s ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut draw = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        };
        let mut array = Array::zeros(shape);
        array.data.iter_mut().for_each(|x| *x = draw());
        array
    }

    /// The inner product of two arrays.
    pub fn dot(&self, other: &Array) -> f64 {
        assert_eq!(self.shape, other.shape);
        self.data.iter().zip(&other.data).map(|(a, b)| a * b).sum()
    }

    /// The largest absolute number.
    pub fn largest(&self) -> f64 {
        // `max` would leave out what is not a number.
        self.data.iter().fold(0.0, |m: f64, x| if x.is_nan() { f64::NAN } else { m.max(x.abs()) })
    }

    /// The largest difference, relative to the largest number of the other; infinite where one is not a number.
    pub fn distance(&self, other: &Array) -> f64 {
        assert_eq!(self.shape, other.shape);
        let apart = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
        self.data.iter().zip(&other.data).map(apart).fold(0.0, f64::max) / other.largest().max(1e-300)
    }

    /// `self + by * direction`.
    pub fn moved(&self, by: f64, direction: &Array) -> Array {
        let data = self.data.iter().zip(&direction.data).map(|(x, d)| x + by * d).collect();
        Array { shape: self.shape.clone(), data }
    }
}

/// Writes arrays as float64.
///
/// # Panics
/// When the file cannot be written.
pub fn write(path: &Path, arrays: &Arrays) {
    let bytes: HashMap<&String, Vec<u8>> =
        arrays.iter().map(|(n, a)| (n, a.data.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views = arrays.iter().map(|(n, a)| (n, TensorView::new(Dtype::F64, a.shape.clone(), &bytes[n]).expect("sizes that fit")));
    serialize_to_file(views, None, path).expect("a file is written");
}

/// Reads arrays that must be of a type, float64 or float32.
///
/// # Panics
/// When the file cannot be read or holds another type.
pub fn read(path: &Path, wanted: Dtype) -> Arrays {
    let bytes = std::fs::read(path).expect("a file is read");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let numbers = |t: &TensorView<'_>| -> Vec<f64> {
        assert_eq!(t.dtype(), wanted);
        match wanted {
            Dtype::F64 => t.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes"))).collect(),
            _ => t.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("four bytes")))).collect(),
        }
    };
    file.tensors().into_iter().map(|(n, t)| (n, Array { shape: t.shape().into(), data: numbers(&t) })).collect()
}
