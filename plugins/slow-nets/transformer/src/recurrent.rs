//! The recurrent delta net.

use fwp_sdk::prelude::*;
use fwp_sdk::program::SlotInterface;

use crate::fast::{Heads, Projections, Readout, by_name};
use crate::stack::Stack;

config! {
    /// Recurrent fast weights: every input of the rule also reads the last output of its own head.
    ///
    ///     h = tanh(o_{t-1})
    ///     q, k, v, gates = W_q y + R_q h,  W_k y + R_k h,  W_v y + R_v h,  W_g y + R_g h
    ///     o_t = fast_weights(q, k, v, gates)
    ///     x = x + W_o norm_per_head(o_t)
    ///
    /// where y = norm(x) [width]; o [d_v] for every head, 0 before the first step; R_q, R_k [d_k, d_v], R_v [d_v, d_v] and
    /// R_g [1, d_v] for every head, drawn from N(0, 1/d_v).
    /// The rule `delta` after the feature map `softmax` makes it the Recurrent Delta Net. Steps depend on each other through o:
    /// there is no form in chunks.
    ///
    /// Serves every rule whose write and read can be told apart, with an output [d_v] and no other.
    pub struct RecurrentDelta {}
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
        if me.projections.value_residual > 0 {
            return Err("`value_residual`: the recurrent net has none; use 0".into());
        }
        Ok(())
    }
}

impl RecurrentDelta {
    /// R h for an input `[g, ..]` and outputs `[heads, d_v]`: a matrix for every head, or for every group of heads.
    fn feed_back(net: &Net, name: &str, shape: &[usize], h: &Expr) -> Expr {
        let (groups, rows): (usize, usize) = (shape[0], shape[1..].iter().product());
        let (heads, size) = (h.shape()[0], h.shape()[1]);
        let columns = heads / groups * size;
        let matrix = net.parameter(&format!("r_{name}"), &[groups, rows, columns], Init::normal((size as f64).powf(-0.5)));
        let h = h.reshape(&[groups, columns]);
        let products: Vec<Expr> = (0..groups).map(|g| matrix.at(g).matvec(h.at(g))).collect();
        stack(&products.iter().collect::<Vec<_>>()).reshape(shape)
    }

    fn mix(&self, net: &Net, slot: &SlotInterface, y: &Expr) -> Expr {
        let (&[size], true) = (&slot.output[..], slot.extras.is_empty()) else {
            refuse(format!("rule `{}` must give a vector for every head, and nothing else, to be read again", slot.rule));
        };
        let given = self.projections.inputs(net, &self.stack, slot, y);
        let start = net.full(&[slot.heads, size], 0.0);
        let inputs: Vec<&Expr> = given.iter().map(|(_, x)| x).collect();
        let (_, o) = net.recurrent("attn", &[&start, &net.memory("attn", slot)], &inputs, |net, state, x| {
            let h = state[0].tanh();
            let fed = |((name, _), x): (&(String, Expr), &Expr)| (name.clone(), x + Self::feed_back(net, name, &x.shape(), &h));
            let inputs: Vec<(String, Expr)> = given.iter().zip(x).map(fed).collect();
            let memory = net.write("", &state[1], &by_name(&inputs));
            let o = net.read("", &memory, QueryScale::None, &by_name(&inputs)).remove(0);
            (vec![o.clone(), memory], vec![o])
        });
        self.readout.read(net, &self.stack, &self.projections, slot, y, &o)
    }
}

impl SlowNet for RecurrentDelta {
    const NAME: &'static str = "recurrent-delta-net";
    const CITATION: &'static str = "Irie, Schlag, Csordas, Schmidhuber 2021, arXiv 2106.06295, section 3.2";

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
