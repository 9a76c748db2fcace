//! What the tests of the SDK share: a table of every operator, and parts that use every corner of the builder.

#![allow(dead_code)] // every test file uses its own share

pub mod operators;
pub mod parts;

use fwp_sdk::program::{DType, TensorType, Type};

/// A type written as the SDK prints it: `[3, 4]`, `int[]`, `mask[time, 2]`, `([3], [])`, `memory(main)`.
pub fn ty(text: &str) -> Type {
    let text = text.trim();
    if let Some(slot) = text.strip_prefix("memory(") {
        return Type::Memory(slot.trim_end_matches(')').into());
    }
    if let Some(parts) = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
        return Type::Tuple(parts.split_inclusive(']').map(|p| ty(p.trim_start_matches(','))).collect());
    }
    let (kind, rest) = text.split_once('[').unwrap_or_else(|| panic!("not a type: {text}"));
    let dtype = match kind {
        "" => DType::Float,
        "int" => DType::Int,
        "mask" => DType::Mask,
        other => panic!("not a kind of element: {other}"),
    };
    let mut t = TensorType { dtype, axis: None, shape: Vec::new() };
    for part in rest.trim_end_matches(']').split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.parse() {
            Ok(size) => t.shape.push(size),
            Err(_) => t.axis = Some(part.into()),
        }
    }
    Type::Tensor(t)
}

/// Reproducible numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
