//! The process: the CUDA part of libtorch, opened at start, and leaving at once.

use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Whether CUDA can be used, and if not, why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuda {
    /// `libtorch_cuda.so` was opened.
    Loaded(PathBuf),
    /// This machine shows no NVIDIA driver; training runs on the CPU.
    NoDevice,
    /// This libtorch has no CUDA part; the path is where it would be.
    NoLibrary(PathBuf),
    /// There is a GPU and a CUDA part, but opening it failed; the text is the loader's.
    Failed(String),
}

impl fmt::Display for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cuda::Loaded(path) => write!(f, "{} is open", path.display()),
            Cuda::NoDevice => f.write_str("this machine shows no NVIDIA driver"),
            Cuda::NoLibrary(path) => write!(f, "this libtorch has no CUDA part ({} is not there)", path.display()),
            Cuda::Failed(text) => write!(f, "the CUDA part of libtorch cannot be opened: {text}"),
        }
    }
}

/// The version of libtorch that this program was built with.
pub fn libtorch_version() -> &'static str {
    // SAFETY: the shim returns a static text that ends with a zero byte.
    let text = unsafe { std::ffi::CStr::from_ptr(super::ffi::fwp_libtorch_version()) };
    text.to_str().unwrap_or("unknown")
}

/// Opens `libtorch_cuda.so` beside the libtorch of this process when it and a GPU are there.
///
/// Call it first of all, before any other use of libtorch: the CUDA part registers itself when it
/// is opened. The linker drops a library of which no symbol is used, so it is never there by itself.
pub fn load_cuda() -> Cuda {
    let device = ["/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/dxg"];
    if !device.iter().any(|path| Path::new(path).exists()) {
        return Cuda::NoDevice;
    }
    let library = libtorch_folder().map_or_else(|| PathBuf::from("libtorch_cuda.so"), |folder| folder.join("libtorch_cuda.so"));
    if library.is_absolute() && !library.exists() {
        return Cuda::NoLibrary(library);
    }
    // SAFETY: the initialisers that run are those of libtorch itself, of the version this process
    // is linked to, since it lies beside the libtorch_cpu.so already mapped.
    match unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(handle) => {
            // It stays for the life of the process: libtorch keeps pointers into it.
            std::mem::forget(handle);
            Cuda::Loaded(library)
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Cuda::Failed(cause)
        }
    }
}

/// Ends the process at once with this exit code, without running destructors: other threads may be
/// in the middle of libtorch.
pub fn leave_now(code: i32) -> ! {
    super::ffi::fwp_leave_now(code)
}

/// The folder of the libtorch that is mapped into this process.
fn libtorch_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
        .find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"))
        .and_then(Path::parent)
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libtorch_of_this_process_is_found() {
        assert!(tch::get_num_threads() > 0, "libtorch is linked and used");
        let folder = libtorch_folder().expect("libtorch_cpu.so is mapped");
        assert!(folder.join("libtorch_cpu.so").exists());
    }

    #[test]
    fn without_a_gpu_nothing_is_opened_and_with_one_cuda_works() {
        match load_cuda() {
            Cuda::Loaded(_) => assert!(tch::Cuda::is_available()),
            Cuda::NoDevice | Cuda::NoLibrary(_) => assert!(!tch::Cuda::is_available()),
            Cuda::Failed(text) => assert!(!text.is_empty()),
        }
    }
}
