//! Where values lie in memory.
//!
//! A value with an axis in lanes is stored as `[blocks][other axes][rows of a block]`, rows padded to whole blocks,
//! so that a sweep over the rows reads it from one end to the other. Everything else is row-major.

use super::form::{Real, Target};
use super::graph::{Axis, Graph};

/// Sizes that depend on the target.
#[derive(Clone, Debug)]
pub struct Layouts {
    /// Lanes of a vector.
    pub lanes: usize,
    /// Bytes of an element.
    pub bytes: usize,
    /// Vectors of a block, by axis.
    pub registers: Vec<usize>,
    /// Sizes of the axes.
    pub sizes: Vec<usize>,
}

/// Most vectors of a block of rows.
pub const MOST_REGISTERS: usize = 4;

impl Layouts {
    pub fn new(g: &Graph, target: Target) -> Layouts {
        let bytes = if target.real == Real::F64 { 8 } else { 4 };
        let lanes = target.vector_bytes / bytes;
        let registers = g.sizes.iter().map(|n| registers(n.div_ceil(lanes))).collect();
        Layouts { lanes, bytes, registers, sizes: g.sizes.clone() }
    }

    /// Rows of a block.
    pub fn block(&self, axis: Axis) -> usize {
        self.registers[axis] * self.lanes
    }

    /// Blocks of an axis.
    pub fn blocks(&self, axis: Axis) -> usize {
        self.sizes[axis].div_ceil(self.block(axis))
    }

    /// Rows with those that only fill the last block.
    pub fn padded(&self, axis: Axis) -> usize {
        self.blocks(axis) * self.block(axis)
    }

    /// Whether the last block has rows that only fill it.
    pub fn ragged(&self, axis: Axis) -> bool {
        self.padded(axis) != self.sizes[axis]
    }

    /// Elements of a value over these axes, and one vector more that may be read.
    pub fn room(&self, g: &Graph, axes: &[Axis]) -> usize {
        match g.lane(axes) {
            None => 1,
            Some(lane) => {
                let others: usize = axes.iter().filter(|a| **a != lane).map(|a| self.sizes[*a]).product();
                self.padded(lane) * others + self.lanes
            }
        }
    }
}

/// As many as fit without much waste.
fn registers(vectors: usize) -> usize {
    let padded = |b: usize| vectors.div_ceil(b) * b;
    (1..=MOST_REGISTERS).rev().find(|b| padded(*b) * 5 <= vectors * 6).unwrap_or(1)
}
