//! The recurrent net of rectified linear units.

use fwp_sdk::prelude::*;

use crate::ends::{Ends, positive};

config! {
    /// Recurrent net of ReLUs whose recurrent matrix begins as the identity: no fast weights, so a recipe has neither [update_rule]
    /// nor [feature_map].
    ///
    ///     h_t = relu(W h_{t-1} + C x_t + b)
    ///
    /// where x [embedding]; h [hidden], 0 before the first step; W begins as `identity` times the identity, C is drawn from
    /// N(0, input_std^2), b begins at 0.
    pub struct Irnn {
        /// Size of the hidden vector.
        hidden: usize = 50,
        /// Factor of the identity as which the recurrent matrix begins.
        identity: f64 = 1.0,
        /// Standard deviation of the initial input matrix.
        input_std: f64 = 0.001,
        /// Whether the sum is normalised (mean and variance, with a trained gain and bias) before the ReLU.
        layer_norm: bool = false,
        /// Added to the variance under the root of the layer norm.
        norm_eps: f64 = 1e-5,
    }
    with {
        /// Embedding and logits.
        ends: Ends,
    }
    validate(me) {
        positive(&[("hidden", me.hidden)])?;
        for (name, value) in [("input_std", me.input_std), ("norm_eps", me.norm_eps)] {
            if value < 0.0 { return Err(format!("`{name}`: expected a number from 0, got {value}")); }
        }
        Ok(())
    }
}

impl SlowNet for Irnn {
    const NAME: &'static str = "irnn";
    const CITATION: &'static str = "Le, Jaitly, Hinton 2015, arXiv 1504.00941, section 3";

    fn forward(&self, net: &mut Net) {
        let net = &*net;
        self.ends.around(net, |x| {
            let n = self.hidden;
            let given = net.affine("x_proj", x, n, Init::normal(self.input_std), Init::zeros());
            let (_, h) = net.recurrent("cell", &[&net.full(&[n], 0.0)], &[&given], |net, state, given| {
                let mut z = &given[0] + net.linear("h_proj", &state[0], n, Init::scaled_identity(self.identity));
                if self.layer_norm {
                    z = net.layer_norm("norm", &z, self.norm_eps);
                }
                let h = z.relu();
                (vec![h.clone()], vec![h])
            });
            h[0].clone()
        });
    }
}
