//! Hybrids of a softmax window and fast weights.

use fwp_sdk::prelude::*;
use fwp_sdk::program::{Role, RuleInput, SlotInterface};

use crate::fast::{Heads, Projections, Readout, by_name};
use crate::positions::{Rotary, Side};
use crate::stack::Stack;

choices! {
    /// What is written into the fast weights, and when.
    pub enum Division {
        /// Every step at once: the window and the fast weights both see it.
        Synchronous = "synchronous",
        /// Every step when it leaves the window: the window sees the last steps, the fast weights all before them.
        DelayedStream = "delayed-stream",
        /// Whole chunks: attention sees its own chunk, the fast weights all chunks before it (as Infini-attention).
        DelayedChunk = "delayed-chunk",
    }
}

choices! {
    /// How both answers become one.
    pub enum Mixture {
        /// f + s
        Sum = "sum",
        /// g_1 f + g_2 s with two scalars for every head, sigmoids of W y.
        Scalars = "scalars",
        /// g * f + (1 - g) * s with a vector g for every head, the sigmoid of W y.
        Vector = "vector",
    }
}

config! {
    /// Hybrid quadratic-linear transformer: the same queries, keys and values feed softmax attention over a window and fast weights.
    ///
    ///     q, k, v, gates = W y
    ///     s = attention over the window of (q, k, v)
    ///     f = fast_weights(q, k, v, gates)
    ///     x = x + W_o norm_per_head(g * f + (1 - g) * s),     g = sigmoid(W_m y)
    ///
    /// where y = norm(x) [width]; s, f, g [d_v] for every head. `division` says what the fast weights are given.
    /// The feature map and its activation are the fast weights' alone (`silu` with `normalise = "l2"` is the paper's), and so are
    /// rotations of queries and keys the window's alone.
    ///
    /// Serves every rule with one query, one key and one value for every head and step.
    pub struct Hybrid {
        /// Steps of the window, or of a chunk.
        window: usize = 64,
        /// What is written into the fast weights, and when.
        division: Division = Division::Synchronous,
        /// How both answers become one.
        mixture: Mixture = Mixture::Vector,
        /// How queries and keys of the window are turned by their place.
        window_rotary: Rotary = Rotary::Halves,
        /// Where the factor key_dim^-1/2 of the fast weights goes.
        query_scale: QueryScale = QueryScale::None,
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
        if me.window == 0 { return Err("`window`: expected at least 1, got 0".into()); }
        if me.projections.rotary != Rotary::None {
            return Err("`rotary`: only the window knows places here; use `window_rotary`".into());
        }
        if me.projections.value_residual > 0 {
            return Err("`value_residual`: the hybrid has none; use 0".into());
        }
        Ok(())
    }
}

impl Hybrid {
    /// The one query, key and value among the inputs.
    fn shared<'a>(slot: &SlotInterface, inputs: &'a [(String, Expr)]) -> [&'a Expr; 3] {
        let one = |role: Role| {
            let mut found =
                slot.inputs.iter().zip(inputs).filter(|(i, _)| i.role == role && i.heads.is_none() && i.count.is_none());
            match (found.next(), found.next()) {
                (Some((_, (_, x))), None) if x.shape().len() == 2 => x,
                _ => refuse(format!(
                    "rule `{}` must have one query, one key and one value for every head to share with a window",
                    slot.rule
                )),
            }
        };
        let [q, k, v] = [one(Role::Query), one(Role::Key), one(Role::Value)];
        if q.shape() != k.shape() || v.shape()[1..] != slot.output[..] {
            refuse(format!(
                "rule `{}` answers with {:?}, and a window with {:?}: they cannot be mixed",
                slot.rule,
                slot.output,
                &v.shape()[1..]
            ));
        }
        [q, k, v]
    }

    /// What the window answers.
    fn near(&self, net: &Net, [q, k, v]: [&Expr; 3]) -> Expr {
        let turn = |x: &Expr, side| self.window_rotary.turn(net, x, side, self.projections.rotary_base);
        let (q, k) = (turn(q, Side::Query), turn(k, Side::Key));
        let scale = (q.shape()[1] as f64).powf(-0.5);
        if self.division == Division::DelayedChunk {
            let position = q.position();
            let chunk = &position - position.rem(self.window as i64);
            return net.attention_within(&q, &k, v, scale, self.window, &chunk);
        }
        net.attention(&q, &k, v, scale, true, self.window)
    }

    /// What the fast weights answer, and their extra outputs.
    fn far(&self, net: &Net, slot: &SlotInterface, inputs: &[(String, Expr)]) -> Vec<Expr> {
        let read = match self.division {
            Division::Synchronous => ReadAt::After,
            Division::DelayedChunk => ReadAt::ChunkStart(self.window),
            Division::DelayedStream => {
                let late = |(input, (name, x)): (&RuleInput, &(String, Expr))| {
                    (name.clone(), if input.role == Role::Query { x.clone() } else { x.shift(self.window) })
                };
                let late: Vec<(String, Expr)> = slot.inputs.iter().zip(inputs).map(late).collect();
                // What is delayed begins with zeros, whose features need not be zero: nothing is written before.
                let written = inputs[0].1.position().greater_equal(self.window as i64);
                let given = [by_name(&late), vec![("write", &written)]].concat();
                return net.fast_weights("attn", slot, self.query_scale, &given);
            }
        };
        net.fast_weights_reading("attn", slot, self.query_scale, read, &by_name(inputs))
    }

    fn mix(&self, net: &Net, slot: &SlotInterface, y: &Expr) -> Expr {
        let inputs = self.projections.inputs(net, &self.stack, slot, y);
        let near = self.near(net, Self::shared(slot, &inputs));
        let mut parts = self.far(net, slot, &inputs);
        let (far, shape) = (parts[0].clone(), near.shape());
        let map = |out: usize| net.linear("attn.m_proj", y, out, self.stack.init()).sigmoid();
        parts[0] = match self.mixture {
            Mixture::Sum => far + near,
            Mixture::Scalars => {
                let g = map(2 * slot.heads).reshape(&[2, slot.heads]);
                far.scale_rows(g.at(0)) + near.scale_rows(g.at(1))
            }
            Mixture::Vector => {
                let g = map(shape.iter().product()).reshape(&shape);
                &near + g * (far - &near)
            }
        };
        self.readout.read(net, &self.stack, &self.projections, slot, y, &parts)
    }
}

impl SlowNet for Hybrid {
    const NAME: &'static str = "hqlt";
    const CITATION: &'static str = "Irie, Yau, Gershman 2025, arXiv 2506.00744, section 3";

    fn memory(&self, _task: &TaskIo, _slot: &str) -> Memory {
        self.heads.memory(self.stack.width)
    }

    fn layers(&self) -> usize {
        self.stack.layers
    }

    fn forward(&self, net: &mut Net) {
        let slots = net.clone();
        self.stack.forward_alone(net, |layer| slots.slot_of_layer(layer), |net, slot, y| self.mix(net, slot, y));
    }
}
