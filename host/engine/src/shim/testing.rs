//! Helpers of tests.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Device, Kind, Tensor};

/// A float64 tensor of irregular numbers, other ones at each call, without libtorch's generator:
/// that one is shared by all threads, and tests run at the same time.
pub(crate) fn numbers(shape: &[i64]) -> Tensor {
    static CALLS: AtomicU64 = AtomicU64::new(1);
    let call = CALLS.fetch_add(1, Ordering::Relaxed) as f64;
    let count = shape.iter().product::<i64>();
    ((Tensor::arange(count, (Kind::Double, Device::Cpu)) + call * 0.618) * 12.9898).sin().view(shape)
}

/// Runs an ignored test of this binary in a process of its own.
pub(crate) fn alone(name: &str) {
    let binary = std::env::current_exe().unwrap();
    let output = Command::new(binary).args(["--exact", name, "--ignored"]).env("OMP_WAIT_POLICY", "passive").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "no test named {name}: {text}");
}
