//! What the engine finds of libtorch, devices, and what kernels are compiled with.

use std::io::ErrorKind;

use serde_json::json;

use crate::exec::kernel::{cache, compile};
use crate::shim;

/// One JSON document: version of libtorch, devices, threads, compiler and cache of kernels.
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
        "kernels": { "compiler": compiler(), "cache": cache_state(), "vector_bytes": compile::vector_bytes() },
    })
}

/// The compiler of kernels, or why there is none.
fn compiler() -> serde_json::Value {
    match compile::compiler() {
        Ok(c) => json!({ "path": c.path, "version": c.version, "flags": c.flags }),
        Err(why) => json!({ "missing": why }),
    }
}

/// The folder of compiled kernels: whether it may be used, and what is in it. It is not made here.
fn cache_state() -> serde_json::Value {
    let Some(folder) = cache::folder() else {
        return json!({ "refused": cache::CacheError::NoFolder.to_string() });
    };
    match cache::distrust(&folder) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => match cache::can_be_made(&folder) {
            Ok(()) => json!({ "folder": folder, "exists": false }),
            Err(e) => json!({ "folder": folder, "refused": e.to_string() }),
        },
        Err(e) => json!({ "folder": folder, "refused": e.to_string() }),
        Ok(Some(why)) => json!({ "folder": folder, "refused": why }),
        Ok(None) => {
            let (kernels, bytes) = cache::Cache::at(&folder).map(|c| c.size()).unwrap_or_default();
            json!({ "folder": folder, "exists": true, "kernels": kernels, "bytes": bytes })
        }
    }
}
