//! libtorch's random generators.

use tch::{Device, Kind, Tensor};

use super::ShimError;
use super::ffi;

/// The state of the generators that a run draws from: the CPU's, and the device's when it has one
/// of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RandomState {
    /// State of the CPU generator.
    pub cpu: Vec<u8>,
    /// State of the generator of a CUDA device, with the number of the device.
    pub cuda: Option<(usize, Vec<u8>)>,
}

impl RandomState {
    /// Reads the generators.
    ///
    /// # Errors
    ///
    /// A device that is not there.
    pub fn capture(device: Device) -> Result<Self, ShimError> {
        let cuda = match device {
            Device::Cuda(index) => Some((index, read(cuda_index(index)?)?)),
            _ => None,
        };
        Ok(Self { cpu: read(-1)?, cuda })
    }

    /// Sets the generators back to this state.
    ///
    /// # Errors
    ///
    /// A state that libtorch does not accept, or a device that is not there.
    pub fn restore(&self) -> Result<(), ShimError> {
        write(-1, &self.cpu)?;
        if let Some((index, state)) = &self.cuda {
            write(cuda_index(*index)?, state)?;
        }
        Ok(())
    }
}

/// Seeds the CPU generator and those of all CUDA devices.
pub fn manual_seed(seed: u64) {
    // The generators take 64 bits; the binding spells them as a signed number.
    tch::manual_seed(seed as i64);
}

fn cuda_index(index: usize) -> Result<i32, ShimError> {
    i32::try_from(index).map_err(|_| ShimError::Argument(format!("there is no CUDA device {index}")))
}

fn read(device: i32) -> Result<Vec<u8>, ShimError> {
    let mut result = std::ptr::null_mut();
    // SAFETY: `result` is a place for one pointer.
    let error = unsafe { ffi::fwp_random_state(device, &mut result) };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }?;
    // SAFETY: the shim made this tensor for us.
    let state = unsafe { ffi::take(vec![result]) }.remove(0).unwrap_or_default();
    let mut bytes = vec![0u8; state.numel()];
    state.f_copy_data(&mut bytes, state.numel())?;
    Ok(bytes)
}

fn write(device: i32, bytes: &[u8]) -> Result<(), ShimError> {
    let state = Tensor::f_from_data_size(bytes, &[bytes.len() as i64], Kind::Uint8)?;
    // SAFETY: the tensor lives through the call.
    let error = unsafe { ffi::fwp_set_random_state(device, state.as_ptr()) };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_state_is_refused() {
        let state = RandomState { cpu: vec![1, 2, 3], cuda: None };
        assert!(state.restore().is_err());
        assert!(RandomState::capture(Device::Cuda(0)).is_err() || tch::Cuda::is_available());
    }

    #[test]
    fn a_restored_state_gives_the_same_numbers() {
        crate::shim::testing::alone("shim::random::tests::restored_inner");
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own: the generator is one for all threads"]
    fn restored_inner() {
        manual_seed(3);
        let draw = || Tensor::randn([5], (Kind::Double, Device::Cpu));
        let first = draw();
        let state = RandomState::capture(Device::Cpu).unwrap();
        let (second, third) = (draw(), draw());
        state.restore().unwrap();
        assert!(second.equal(&draw()) && third.equal(&draw()));
        manual_seed(3);
        assert!(first.equal(&draw()));
        manual_seed(u64::MAX);
        assert!(!first.equal(&draw()));
    }
}
