//! Fast weights that program fast weights.

use fwp_sdk::prelude::*;
use fwp_sdk::program::SlotInterface;

use crate::fast::{Heads, Projections, Readout, by_name};
use crate::stack::Stack;

/// The rule that is given inputs made by the slow net.
const FIRST: &str = "first";
/// The rule that is given what the first one answers.
const SECOND: &str = "second";

config! {
    /// Delta-Delta net: one fast-weight memory emits the inputs of a second one.
    ///
    ///     u = fast_weights_1(W y)                        [2 d_k + d_v + 1] for every head with the delta rule
    ///     q, k, v, gates = the parts of u
    ///     x = x + W_o norm_per_head(fast_weights_2(q, k, v, gates))
    ///
    /// where y = norm(x) [width]. The recipe has two rules, [update_rule.first] and [update_rule.second], which may differ;
    /// feature maps with `normalise = "sum"` and the rule `delta` twice make it the paper's.
    ///
    /// Serves every rule; `program_dim` says how many numbers a head of the second one takes.
    pub struct DeltaDelta {
        /// Numbers that a head of the first memory answers with. Absent is 2 d_k + d_v + 1, for a rule with q, k, v and one scalar.
        program_dim: Option<usize> = None,
    }
    with {
        /// The residual stream.
        stack: Stack,
        /// Heads.
        heads: Heads,
        /// How the inputs of the first rule are made.
        projections: Projections,
        /// What follows the output of the second rule.
        readout: Readout,
    }
    validate(me) {
        me.heads.fit(me.stack.width)?;
        if me.program_dim == Some(0) { return Err("`program_dim`: expected at least 1, got 0".into()); }
        if me.projections.value_residual > 0 {
            return Err("`value_residual`: the net of two memories has none; use 0".into());
        }
        Ok(())
    }
}

impl DeltaDelta {
    /// The second rule's inputs from what the first one answers, `[heads, n]`.
    fn parts(slot: &SlotInterface, u: &Expr) -> Vec<(String, Expr)> {
        let shapes: Vec<Vec<usize>> = slot.inputs.iter().map(|i| slot.given_shape(i)).collect();
        if let Some(shared) = slot.inputs.iter().find(|i| i.heads.is_some()) {
            refuse(format!(
                "input `{}` of rule `{}` is shared by heads, and every head programs its own",
                shared.name, slot.rule
            ));
        }
        let sizes: Vec<usize> = shapes.iter().map(|s| s[1..].iter().product()).collect();
        let (total, given): (usize, usize) = (sizes.iter().sum(), u.shape()[1..].iter().product());
        if total != given {
            refuse(format!("`program_dim`: a head of rule `{}` takes {total} numbers, not {given}", slot.rule));
        }
        let parts = u.reshape(&[slot.heads, given]).split(1, &sizes);
        slot.inputs.iter().zip(parts).zip(&shapes).map(|((i, x), shape)| (i.name.clone(), x.reshape(shape))).collect()
    }

    fn mix(&self, net: &Net, y: &Expr) -> Expr {
        let (first, second) = (net.slot(FIRST), net.slot(SECOND));
        let inputs = self.projections.inputs(net, &self.stack, &first, y);
        let u = net.fast_weights("attn.first", &first, QueryScale::None, &by_name(&inputs)).remove(0);
        let o = net.fast_weights("attn.second", &second, QueryScale::None, &by_name(&Self::parts(&second, &u)));
        self.readout.read(net, &self.stack, &self.projections, &second, y, &o)
    }
}

impl SlowNet for DeltaDelta {
    const NAME: &'static str = "delta-delta-net";
    const CITATION: &'static str = "Irie, Schlag, Csordas, Schmidhuber 2021, arXiv 2106.06295, section 3.2";
    const SLOTS: &'static [&'static str] = &[FIRST, SECOND];

    fn memory(&self, _task: &TaskIo, slot: &str) -> Memory {
        let memory = self.heads.memory(self.stack.width);
        if slot != FIRST {
            return memory;
        }
        let value = self.program_dim.unwrap_or(2 * memory.key + memory.value + 1);
        Memory { value, ..memory }
    }

    fn layers(&self) -> usize {
        self.stack.layers
    }

    fn forward(&self, net: &mut Net) {
        self.stack.forward_alone(net, |_| (), |net, (), y| self.mix(net, y));
    }
}
