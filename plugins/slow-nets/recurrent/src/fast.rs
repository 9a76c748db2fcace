//! The recurrent net with fast weights of Ba et al.

use fwp_sdk::prelude::*;
use fwp_sdk::program::{Role, RuleInput, SlotInterface};

use crate::ends::{Ends, positive};

choices! {
    /// What keeps the hidden vector alive in the inner loop.
    pub enum Sustain {
        /// The input: z + A h_s (the paper's method).
        Input = "input",
        /// The vector itself: h_s + A h_s, without the input (the appendix's method 2).
        Identity = "identity",
    }
}

config! {
    /// Recurrent net whose hidden vector settles in an inner loop under its own fast weights.
    ///
    ///     z = W h(t) + C x(t)
    ///     h_0 = relu(z)
    ///     h_{s+1} = relu(LN[z + A(t) h_s]),     s = 0 .. inner_steps - 1
    ///     h(t+1) = h_S,     A(t+1) = rule(A(t), h(t+1))
    ///
    /// where x [embedding]; h [hidden], 0 before the first step; A [hidden, hidden] are the fast weights, written with
    /// key = value = h and read with the query h_s; W begins as `identity` times the identity; LN has a trained gain and bias,
    /// the same for all s.
    /// The rule `hebbian-decay` (decay 0.95, rate 0.5) makes it the paper's.
    /// With 0 inner steps there are no fast weights and the recipe has no [update_rule].
    ///
    /// Serves every rule whose write and read can be told apart and that answers with `hidden` numbers. Its gates, and keys,
    /// values and queries of other sizes, are linear maps of h.
    pub struct FastWeightsRnn {
        /// Size of the hidden vector.
        hidden: usize = 50,
        /// Steps S of the inner loop.
        inner_steps: usize = 1,
        /// Whether the sum is normalised in every inner step.
        layer_norm: bool = true,
        /// Whether h_0 is normalised, too, by the same norm.
        norm_start: bool = false,
        /// Added to the variance under the root of the layer norm.
        norm_eps: f64 = 1e-5,
        /// What keeps the hidden vector alive in the inner loop.
        sustain: Sustain = Sustain::Input,
        /// Whether the fast weights are written with the last hidden vector and so lag one step behind.
        lag: bool = false,
        /// Factor of the identity as which the recurrent matrix begins.
        identity: f64 = 0.05,
    }
    with {
        /// Embedding and logits.
        ends: Ends,
    }
    validate(me) {
        positive(&[("hidden", me.hidden)])?;
        if me.norm_eps < 0.0 { return Err(format!("`norm_eps`: expected a number from 0, got {}", me.norm_eps)); }
        Ok(())
    }
}

impl FastWeightsRnn {
    /// One input of the rule from h `[hidden]`.
    fn input(&self, net: &Net, slot: &SlotInterface, input: &RuleInput, h: &Expr) -> Expr {
        let shape = slot.given_shape(input);
        if input.role != Role::Gate && shape == [1, self.hidden] {
            return h.reshape(&shape);
        }
        net.linear(&format!("{}_proj", input.name), h, shape.iter().product(), Init::xavier_uniform()).reshape(&shape)
    }

    fn inputs(&self, net: &Net, slot: &SlotInterface, h: &Expr) -> Vec<(String, Expr)> {
        slot.inputs.iter().map(|i| (i.name.clone(), self.input(net, slot, i, h))).collect()
    }

    fn normalise(&self, net: &Net, z: &Expr) -> Expr {
        net.layer_norm("norm", z, self.norm_eps)
    }

    fn start(&self, net: &Net, z: &Expr) -> Expr {
        if self.norm_start { self.normalise(net, z).relu() } else { z.relu() }
    }

    /// W h + C x, the second part of which is `given`.
    fn sum(&self, net: &Net, h: &Expr, given: &Expr) -> Expr {
        given + net.linear("h_proj", h, self.hidden, Init::scaled_identity(self.identity))
    }

    /// The net without fast weights, to compare with.
    fn without(&self, net: &Net, h0: &Expr, given: &Expr) -> Expr {
        let (_, h) = net.recurrent("cell", &[h0], &[given], |net, state, given| {
            let h = self.start(net, &self.sum(net, &state[0], &given[0]));
            (vec![h.clone()], vec![h])
        });
        h[0].clone()
    }

    fn with(&self, net: &Net, h0: &Expr, given: &Expr) -> Expr {
        let slot = net.slot_of_layer(0);
        if slot.output != [self.hidden] {
            refuse(format!(
                "rule `{}` answers with {:?} and not with the {} of the hidden vector",
                slot.rule, slot.output, self.hidden
            ));
        }
        let (_, h) = net.recurrent("cell", &[h0, &net.memory("cell", &slot)], &[given], |net, state, given| {
            let (last, memory) = (&state[0], &state[1]);
            let z = self.sum(net, last, &given[0]);
            let mut h = self.start(net, &z);
            for _ in 0..self.inner_steps {
                let read = net.read("", memory, QueryScale::None, &by_name(&self.inputs(net, &slot, &h))).remove(0);
                let read = read.reshape(&[self.hidden]);
                let sum = match self.sustain {
                    Sustain::Input => &z + read,
                    Sustain::Identity => h + read,
                };
                h = if self.layer_norm { self.normalise(net, &sum) } else { sum }.relu();
            }
            let stored = if self.lag { last } else { &h };
            let memory = net.write("", memory, &by_name(&self.inputs(net, &slot, stored)));
            (vec![h.clone(), memory], vec![h])
        });
        h[0].clone()
    }
}

impl SlowNet for FastWeightsRnn {
    const NAME: &'static str = "fast-weights-rnn";
    const CITATION: &'static str = "Ba, Hinton, Mnih, Leibo, Ionescu 2016, arXiv 1610.06258, Eq. 1-2";

    fn memory(&self, _task: &TaskIo, _slot: &str) -> Memory {
        Memory { heads: 1, key: self.hidden, value: self.hidden }
    }

    fn forward(&self, net: &mut Net) {
        let net = &*net;
        self.ends.around(net, |x| {
            let given = net.linear("x_proj", x, self.hidden, Init::xavier_uniform());
            let h0 = net.full(&[self.hidden], 0.0);
            if self.inner_steps == 0 { self.without(net, &h0, &given) } else { self.with(net, &h0, &given) }
        });
    }
}

fn by_name(inputs: &[(String, Expr)]) -> Vec<(&str, &Expr)> {
    inputs.iter().map(|(name, x)| (name.as_str(), x)).collect()
}
