//! Softmax attention.

use fwp_sdk::prelude::*;

use crate::positions::{Rotary, Side};
use crate::stack::Stack;

/// One softmax attention.
pub struct Attention {
    /// Number of heads of queries.
    pub heads: usize,
    /// Number of heads of keys and values, a divisor.
    pub kv_heads: usize,
    /// Size of a head.
    pub size: usize,
    /// Steps that a query sees, its own among them; 0 is all before it.
    pub window: usize,
    /// How queries and keys are turned by their place.
    pub rotary: Rotary,
    /// Base of the angles.
    pub rotary_base: f64,
}

impl Attention {
    /// From `[width]` to `[width]`.
    pub fn mix(&self, net: &Net, stack: &Stack, y: &Expr) -> Expr {
        let project = |name: &str, heads: usize| {
            stack.linear(net, &format!("attn.{name}_proj"), y, heads * self.size).reshape(&[heads, self.size])
        };
        let turn = |x: Expr, side| self.rotary.turn(net, &x, side, self.rotary_base);
        let (q, k) = (turn(project("q", self.heads), Side::Query), turn(project("k", self.kv_heads), Side::Key));
        let scale = (self.size as f64).powf(-0.5);
        let o = net.attention(&q, &k, &project("v", self.kv_heads), scale, true, self.window);
        stack.linear(net, "attn.o_proj", &o.reshape(&[self.heads * self.size]), stack.width)
    }
}

/// The message for a number of heads that does not divide another.
pub fn divides(name: &str, part: usize, whole: usize, what: &str) -> Result<(), String> {
    if part == 0 || !whole.is_multiple_of(part) {
        return Err(format!("`{name}`: {part} does not divide {what} {whole}"));
    }
    Ok(())
}
