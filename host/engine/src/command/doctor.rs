//! What the engine finds of libtorch and devices.

use serde_json::json;

use crate::shim;

/// One JSON document: version of libtorch, devices, threads.
pub fn run() -> serde_json::Value {
    let cuda = shim::load_cuda();
    let devices: Vec<String> =
        std::iter::once("cpu".to_string()).chain((0..tch::Cuda::device_count()).map(|i| format!("cuda:{i}"))).collect();
    json!({
        "libtorch": shim::libtorch_version(),
        "cuda": tch::Cuda::is_available(),
        "cuda_library": cuda.to_string(),
        "devices": devices,
        "threads": tch::get_num_threads(),
    })
}
