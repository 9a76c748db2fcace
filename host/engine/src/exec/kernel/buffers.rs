//! Memory of kernels: uninitialised tensors, and scratch of the threads that run them.

use std::cell::RefCell;
use std::mem::MaybeUninit;
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

/// Sixty-four bytes at an address that is a multiple of 64, of any content: most of what a kernel may ask for it never touches.
pub(super) type Line = MaybeUninit<Bytes>;

/// What a line holds.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Bytes(pub(super) [u8; 64]);

/// Scratch of more bytes than this is given back after use.
const KEPT: usize = 64 << 20;

/// Runs `work` with at least `bytes` of scratch of this thread.
pub(super) fn with_scratch<T>(bytes: usize, work: impl FnOnce(&mut [Line]) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Vec<Bytes>> = const { RefCell::new(Vec::new()) };
    }
    let lines = bytes.div_ceil(64).max(1);
    // Taken out while it is used: work that asks for scratch again gets its own.
    let mut scratch = SCRATCH.take();
    let poison = POISON.load(Ordering::Relaxed);
    if scratch.capacity() < lines {
        scratch = Vec::with_capacity(lines);
    }
    let room = &mut scratch.spare_capacity_mut()[..lines];
    if poison {
        // All bits set is NaN in every precision.
        room.fill(Line::new(Bytes([0xff; 64])));
    }
    let result = work(room);
    if scratch.capacity() * 64 <= KEPT {
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
