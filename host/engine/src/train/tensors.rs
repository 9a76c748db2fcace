//! Tensors as bytes: copies on the host, and safetensors files.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use tch::{Device, Kind, Tensor};

use crate::shim::ShimError;

/// A tensor's name, type, shape and bytes, away from libtorch and its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTensor {
    /// Its name in the file.
    pub name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Why tensors could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// An element type that has no counterpart.
    #[error("tensor {name:?} has the element type {kind}, which is not supported in safetensors files here")]
    Kind {
        /// The tensor.
        name: String,
        /// Its type.
        kind: String,
    },
    /// The file is not a sound safetensors file.
    #[error("not a sound safetensors file: {0}")]
    Format(String),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] ShimError),
}

const KINDS: [(Kind, Dtype); 9] = [
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Half, Dtype::F16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

impl HostTensor {
    /// Copies a tensor to the host.
    ///
    /// # Errors
    ///
    /// An element type without a counterpart, or what libtorch refuses.
    pub fn copy(name: &str, tensor: &Tensor) -> Result<Self, TensorError> {
        let kind = tensor.f_kind().map_err(ShimError::from)?;
        let dtype = KINDS.iter().find(|(k, _)| *k == kind).map(|(_, d)| *d);
        let dtype = dtype.ok_or_else(|| TensorError::Kind { name: name.to_owned(), kind: format!("{kind:?}") })?;
        let tensor = tensor.detach().f_to_device(Device::Cpu).map_err(ShimError::from)?;
        let tensor = tensor.f_contiguous().map_err(ShimError::from)?;
        let count = tensor.numel();
        let mut bytes = vec![0u8; count * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, count).map_err(ShimError::from)?;
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        Ok(Self { name: name.to_owned(), dtype, shape, bytes })
    }

    /// Copies named tensors to the host.
    ///
    /// # Errors
    ///
    /// As [`HostTensor::copy`].
    pub fn copy_all<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Vec<Self>, TensorError> {
        tensors.into_iter().map(|(name, tensor)| Self::copy(name, tensor)).collect()
    }
}

/// The bytes of a safetensors file with these tensors and text metadata.
///
/// # Errors
///
/// Two tensors of one name.
pub fn to_safetensors(tensors: &[HostTensor], metadata: BTreeMap<String, String>) -> Result<Vec<u8>, TensorError> {
    let mut views = BTreeMap::new();
    for tensor in tensors {
        let view =
            TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).map_err(|e| TensorError::Format(e.to_string()))?;
        if views.insert(tensor.name.as_str(), view).is_some() {
            return Err(TensorError::Format(format!("two tensors named {:?}", tensor.name)));
        }
    }
    let metadata = (!metadata.is_empty()).then(|| metadata.into_iter().collect());
    serialize(views, metadata).map_err(|e| TensorError::Format(e.to_string()))
}

/// The tensors of a safetensors file, on the CPU, by name.
///
/// # Errors
///
/// A file that is not sound, or an element type without a counterpart.
pub fn from_safetensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, TensorError> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| TensorError::Format(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let kind = KINDS.iter().find(|(_, d)| *d == view.dtype()).map(|(k, _)| *k);
        let kind = kind.ok_or_else(|| TensorError::Kind { name: name.to_owned(), kind: format!("{:?}", view.dtype()) })?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind).map_err(ShimError::from)?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_type_comes_back_as_it_was() {
        let source = Tensor::from_slice(&[0f64, 1., 2., 3., 4., 5.]).view([2, 3]);
        for (kind, _) in KINDS {
            let tensor = source.to_kind(kind).transpose(0, 1);
            let host = [HostTensor::copy("x", &tensor).unwrap()];
            let bytes = to_safetensors(&host, BTreeMap::new()).unwrap();
            let back = &from_safetensors(&bytes).unwrap()["x"];
            assert_eq!((back.kind(), back.size()), (kind, vec![3, 2]));
            assert!(back.equal(&tensor), "{kind:?}");
        }
    }

    #[test]
    fn shapes_without_axes_and_without_elements_work() {
        let tensors = [("a", Tensor::from(2f32)), ("b", Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)))];
        let host = HostTensor::copy_all(tensors.iter().map(|(n, t)| (*n, t))).unwrap();
        let back = from_safetensors(&to_safetensors(&host, BTreeMap::new()).unwrap()).unwrap();
        assert_eq!((back["a"].size(), back["b"].size()), (vec![], vec![0, 3]));
    }

    #[test]
    fn bad_files_are_errors() {
        assert!(from_safetensors(b"").is_err());
        assert!(from_safetensors(&[255; 64]).is_err());
        let host = HostTensor::copy("x", &Tensor::from(1f32)).unwrap();
        let bytes = to_safetensors(std::slice::from_ref(&host), BTreeMap::new()).unwrap();
        assert!(from_safetensors(&bytes[..bytes.len() - 1]).is_err());
        assert!(to_safetensors(&[host.clone(), host], BTreeMap::new()).is_err());
        assert!(HostTensor::copy("x", &Tensor::new()).is_err());
    }
}
