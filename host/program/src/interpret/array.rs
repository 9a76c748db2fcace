//! Plain row-major arrays.

/// Elements of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Floating point.
    Float(Vec<f64>),
    /// 64-bit integers.
    Int(Vec<i64>),
    /// Truth values.
    Mask(Vec<bool>),
}

/// A row-major array of any rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Sizes; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Data,
}

impl Array {
    /// A float array; `None` where the number of elements does not fit the shape.
    pub fn new(shape: &[usize], elements: Vec<f64>) -> Option<Array> {
        (shape.iter().product::<usize>() == elements.len()).then(|| Array::float(shape, elements))
    }
    pub(crate) fn float(shape: &[usize], elements: Vec<f64>) -> Array {
        debug_assert_eq!(shape.iter().product::<usize>(), elements.len());
        Array { shape: shape.to_vec(), data: Data::Float(elements) }
    }
    /// Every element `value`.
    pub fn full(shape: &[usize], value: f64) -> Array {
        Array::float(shape, vec![value; shape.iter().product()])
    }
    /// A float scalar.
    pub fn scalar(value: f64) -> Array {
        Array::float(&[], vec![value])
    }
    /// An integer scalar.
    pub fn integer(value: i64) -> Array {
        Array { shape: vec![], data: Data::Int(vec![value]) }
    }
    /// The elements as floats; `None` for integers and masks.
    pub fn floats(&self) -> Option<&[f64]> {
        match &self.data {
            Data::Float(v) => Some(v),
            _ => None,
        }
    }
    pub(super) fn float_elements(&self) -> Result<&[f64], String> {
        self.floats().ok_or_else(|| "expected floats".into())
    }
    pub(super) fn integers(&self) -> Result<&[i64], String> {
        match &self.data {
            Data::Int(v) => Ok(v),
            _ => Err("expected integers".into()),
        }
    }
    pub(super) fn masks(&self) -> Result<&[bool], String> {
        match &self.data {
            Data::Mask(v) => Ok(v),
            _ => Err("expected a mask".into()),
        }
    }
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements at `places` of this array, in another shape.
    pub(super) fn taken(&self, shape: Vec<usize>, places: &[usize]) -> Array {
        fn pick<T: Copy>(v: &[T], places: &[usize]) -> Vec<T> {
            places.iter().map(|p| v[*p]).collect()
        }
        let data = match &self.data {
            Data::Float(v) => Data::Float(pick(v, places)),
            Data::Int(v) => Data::Int(pick(v, places)),
            Data::Mask(v) => Data::Mask(pick(v, places)),
        };
        Array { shape, data }
    }
}

/// The place in row-major order of every index of `shape`, as `at` computes it from the index.
pub(super) fn places(shape: &[usize], mut at: impl FnMut(&[usize]) -> usize) -> Vec<usize> {
    let n: usize = shape.iter().product();
    let mut index = vec![0; shape.len()];
    let mut out = Vec::with_capacity(n);
    for _ in 0..n {
        out.push(at(&index));
        for d in (0..shape.len()).rev() {
            index[d] += 1;
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
    out
}

/// Row-major place of an index.
pub(super) fn place(shape: &[usize], index: &[usize]) -> usize {
    index.iter().zip(shape).fold(0, |p, (i, n)| p * n + i)
}
