//! The transformer whose token mixing is fast weights.

use fwp_sdk::prelude::*;
use fwp_sdk::program::{Role, SlotInterface};

use crate::attention::{Attention, divides};
use crate::fast::{Heads, Projections, Readout, by_name};
use crate::positions::Rotary;
use crate::stack::Stack;

config! {
    /// Transformer with fast weights in the place of attention: the DeltaNet block, before each half a norm, after it a residual.
    ///
    ///     x = E[token]
    ///     in every layer:
    ///         y = norm(x)
    ///         q, k, v = silu(conv(W_q y)), silu(conv(W_k y)), silu(conv(W_v y)),     gate = W_g y
    ///         x = x + W_o norm_per_head(fast_weights(q, k, v, gates))
    ///         y = norm(x)
    ///         x = x + W_down (silu(W_gate y) * W_up y)
    ///     logits = W_head norm(x)
    ///
    /// where x, y [width]; norm is the root-mean-square norm with a trained gain; conv is a causal depthwise convolution;
    /// feature map, normalisation and activation of the gates are the recipe's map's and rule's.
    /// With `output_gate` the normalised output is multiplied by a gate of y before W_o.
    ///
    /// The form of 2021 (Schlag, Irie, Schmidhuber, arXiv 2102.11174, section 6.3) has its norms after the residuals, and
    /// neither convolutions nor norms of the output: `norm_place = "after"`, `norm = "layer"`, `bias = "mlp"`,
    /// `mlp_form = "relu"`, `positions = "sinusoidal"` or `"none"`, `scale_embeddings = true`, `conv = 0`,
    /// `conv_activation = "none"`, `output_norm = "none"`, `query_scale = "output"`, `dropout = 0.1`.
    ///
    /// Serves every rule: each of its inputs gets a projection named `attn.NAME_proj`, in all its heads and counts at once;
    /// queries, keys and values get convolution and activation, gates are linear.
    /// Layers in `attention_layers` have softmax attention instead, of the same number of heads.
    pub struct Transformer {
        /// Where the factor key_dim^-1/2 goes.
        query_scale: QueryScale = QueryScale::None,
        /// Layers that have softmax attention in the place of fast weights, from 0: [3, 7] is one in four of eight.
        attention_layers: Vec<usize> = vec![],
        /// Steps that softmax attention sees; 0 is all before it, and then nothing can be carried over.
        attention_window: usize = 0,
        /// Number of heads of keys and values of softmax attention. Absent is all heads.
        attention_kv_heads: Option<usize> = None,
        /// How queries and keys of softmax attention are turned by their place.
        attention_rotary: Rotary = Rotary::None,
    }
    with {
        /// The residual stream.
        stack: Stack,
        /// Heads.
        heads: Heads,
        /// How the inputs of the rule are made.
        projections: Projections,
        /// What follows the output.
        readout: Readout,
    }
    validate(me) {
        me.heads.fit(me.stack.width)?;
        if let Some(layer) = me.attention_layers.iter().find(|l| **l >= me.stack.layers) {
            return Err(format!("`attention_layers`: there is no layer {layer}, the net has {}, from 0", me.stack.layers));
        }
        if !me.attention_layers.is_empty() {
            divides("heads", me.heads.heads, me.stack.width, "the width")?;
        }
        divides("attention_kv_heads", me.attention_kv_heads.unwrap_or(me.heads.heads), me.heads.heads, "the number of heads")
    }
}

/// What mixes the tokens of a layer.
#[derive(PartialEq)]
enum Mixing {
    Attention,
    /// Fast weights; the first of them hand their values on.
    Fast {
        slot: SlotInterface,
        first: bool,
    },
}

impl Transformer {
    fn attention(&self) -> Attention {
        let heads = self.heads.heads;
        Attention {
            heads,
            kv_heads: self.attention_kv_heads.unwrap_or(heads),
            size: self.stack.width / heads,
            window: self.attention_window,
            rotary: self.attention_rotary,
            rotary_base: self.projections.rotary_base,
        }
    }

    /// Fast weights in the place of attention: `[width]` to `[width]`; `first` are the values of the first layer.
    fn fast(&self, net: &Net, slot: &SlotInterface, y: &Expr, first: Option<&[Expr]>) -> (Expr, Vec<Expr>) {
        let mut inputs = self.projections.inputs(net, &self.stack, slot, y);
        let handed = match self.projections.value_residual {
            0 => vec![],
            _ => self.projections.value_residual(net, &self.stack, slot, y, &mut inputs, first),
        };
        let parts = net.fast_weights("attn", slot, self.query_scale, &by_name(&inputs));
        (self.readout.read(net, &self.stack, &self.projections, slot, y, &parts), handed)
    }

    /// The first layer with fast weights.
    fn first_fast(&self) -> Option<usize> {
        (0..self.stack.layers).find(|l| !self.attention_layers.contains(l))
    }
}

impl SlowNet for Transformer {
    const NAME: &'static str = "transformer";
    const CITATION: &'static str = "Yang, Wang, Zhang, Shen, Kim 2024, arXiv 2406.06484, section 3.3";

    fn memory(&self, _task: &TaskIo, _slot: &str) -> Memory {
        self.heads.memory(self.stack.width)
    }

    fn layers(&self) -> usize {
        self.stack.layers
    }

    fn forward(&self, net: &mut Net) {
        let slots = net.clone();
        let residual = self.projections.value_residual > 0;
        let first_fast = self.first_fast();
        let kind = |layer: usize| match self.attention_layers.contains(&layer) {
            true => Mixing::Attention,
            false => Mixing::Fast { slot: slots.slot_of_layer(layer), first: residual && Some(layer) == first_fast },
        };
        // Before the first layer there are no values yet.
        let start = |net: &Net, x: &Expr| {
            let Some(layer) = first_fast.filter(|_| residual) else { return vec![] };
            let slot = slots.slot_of_layer(layer);
            let values = slot.inputs.iter().filter(|i| i.role == Role::Value);
            values.map(|i| net.full(&slot.given_shape(i), 0.0).along(x)).collect()
        };
        self.stack.forward(net, kind, start, |net, kind, y, handed| match kind {
            Mixing::Attention => (self.attention().mix(net, &self.stack, y), handed.to_vec()),
            Mixing::Fast { slot, first } => self.fast(net, slot, y, (!first).then_some(handed)),
        });
    }
}
