//! The softmax transformer, to compare with.

use fwp_sdk::prelude::*;

use crate::attention::{Attention, divides};
use crate::positions::Rotary;
use crate::stack::Stack;

config! {
    /// Transformer with causal softmax attention: no fast weights, so a recipe has neither [update_rule] nor [feature_map].
    ///
    ///     x = E[token]
    ///     in every layer:
    ///         q, k, v = W_q norm(x), W_k norm(x), W_v norm(x)
    ///         x = x + W_o sum_s softmax_s(q_t . k_s / sqrt(d)) v_s        s <= t
    ///         x = x + W_down (silu(W_gate norm(x)) * W_up norm(x))
    ///     logits = W_head norm(x)
    ///
    /// where x [width]; q, k, v [d] for every head. `norm_place = "after"` with `norm = "layer"`, `mlp_form = "relu"`,
    /// `bias = "mlp"` and `positions = "sinusoidal"` is the form of 2017.
    pub struct SoftmaxTransformer {
        /// Number of heads.
        heads: usize = 4,
        /// Number of heads of keys and values, each of which serves heads / kv_heads heads of queries. Absent is all heads.
        kv_heads: Option<usize> = None,
        /// Steps that a query sees, its own among them; 0 is all before it, and then nothing can be carried over.
        window: usize = 0,
        /// How queries and keys are turned by their place.
        rotary: Rotary = Rotary::None,
        /// Base of the angles of `rotary`.
        rotary_base: f64 = 1e4,
    }
    with {
        /// The residual stream.
        stack: Stack,
    }
    validate(me) {
        divides("heads", me.heads, me.stack.width, "the width")?;
        divides("kv_heads", me.kv_heads.unwrap_or(me.heads), me.heads, "the number of heads")?;
        if me.rotary_base <= 0.0 { return Err(format!("`rotary_base`: expected a number above 0, got {}", me.rotary_base)); }
        Ok(())
    }
}

impl SlowNet for SoftmaxTransformer {
    const NAME: &'static str = "softmax-transformer";
    const CITATION: &'static str = "Vaswani et al. 2017, arXiv 1706.03762, section 3";

    fn layers(&self) -> usize {
        self.stack.layers
    }

    fn forward(&self, net: &mut Net) {
        let attention = Attention {
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            size: self.stack.width / self.heads,
            window: self.window,
            rotary: self.rotary,
            rotary_base: self.rotary_base,
        };
        self.stack.forward_alone(net, |_| (), |net, (), y| attention.mix(net, &self.stack, y));
    }
}
