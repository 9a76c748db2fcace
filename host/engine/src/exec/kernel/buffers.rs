//! Memory of kernels: uninitialised tensors, and scratch of the threads that run them.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// Whether memory that is handed out uninitialised is filled with NaN.
static POISON: AtomicBool = AtomicBool::new(false);

/// Fills memory that is handed out uninitialised with NaN, for tests: a kernel that reads it gives NaN.
pub fn poison(on: bool) {
    POISON.store(on, Ordering::Relaxed);
}

/// An uninitialised tensor on the CPU.
pub(super) fn empty(shape: &[i64], kind: Kind) -> Result<Tensor> {
    let mut t = Tensor::f_empty(shape, (kind, Device::Cpu))?;
    if POISON.load(Ordering::Relaxed) {
        t = t.f_fill_(f64::NAN)?;
    }
    Ok(t)
}

/// Sixty-four bytes at an address that is a multiple of 64.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// Scratch of more bytes than this is given back after use.
const KEPT: usize = 8 << 20;

/// Runs `work` with at least `bytes` of scratch of this thread, aligned to 64 bytes, with any content.
pub(super) fn with_scratch<T>(bytes: usize, work: impl FnOnce(&mut [Line]) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    }
    let lines = bytes.div_ceil(64).max(1);
    // Taken out while it is used: work that asks for scratch again gets its own.
    let mut scratch = SCRATCH.take();
    let poison = POISON.load(Ordering::Relaxed);
    if scratch.len() < lines {
        scratch = vec![Line([0; 64]); lines];
    }
    if poison {
        // All bits set is NaN in every precision.
        scratch.fill(Line([0xff; 64]));
    }
    let result = work(&mut scratch[..lines]);
    if scratch.len() * 64 <= KEPT {
        SCRATCH.set(scratch);
    }
    result
}

/// Bytes of a second-level cache of this machine; 1 MiB where the system does not say.
pub fn second_level_cache() -> usize {
    use std::sync::OnceLock;
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").unwrap_or_default();
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let unit = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => 1,
        };
        number.parse::<usize>().ok().map(|n| n * unit).filter(|n| *n >= 1 << 16).unwrap_or(1 << 20)
    })
}
