//! The LSTM.

use fwp_sdk::prelude::*;

use crate::ends::{Ends, positive};

config! {
    /// Long short-term memory with forget gates: no fast weights, so a recipe has neither [update_rule] nor [feature_map].
    ///
    ///     [i; f; g; o] = W x_t + U h_{t-1} + b
    ///     c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    ///     h_t = sigmoid(o) * tanh(c_t)
    ///
    /// where x [embedding], from the second layer on the h of the layer below; h, c [hidden], 0 before the first step.
    /// Weights and biases are drawn from U(-1/sqrt(hidden), 1/sqrt(hidden)); `forget_bias` is added to the bias of f.
    pub struct Lstm {
        /// Size of the hidden vector and of the cell.
        hidden: usize = 50,
        /// Number of layers.
        layers: usize = 1,
        /// Added to the forget gate's initial bias.
        forget_bias: f64 = 0.0,
    }
    with {
        /// Embedding and logits.
        ends: Ends,
    }
    validate(me) { positive(&[("hidden", me.hidden), ("layers", me.layers)]) }
}

impl Lstm {
    /// One layer along time.
    fn layer(&self, net: &Net, number: usize, x: &Expr) -> Expr {
        let n = self.hidden;
        let name = format!("layers.{number}");
        let bound = (n as f64).powf(-0.5);
        let forget = self.forget_bias;
        let bias = Init::program(move |r, shape| {
            let f = r.arange(4 * n);
            let is_forget = f.greater_equal(n as i64).to_float() * f.less(2 * n as i64).to_float();
            r.uniform(shape) * (2.0 * bound) - bound + is_forget * forget
        });
        let given = net.affine(&format!("{name}.x_proj"), x, 4 * n, Init::uniform(bound), bias);
        let zeros = net.full(&[n], 0.0);
        let (_, h) = net.recurrent(&name, &[&zeros, &zeros], &[&given], |net, state, given| {
            let all = &given[0] + net.linear("h_proj", &state[0], 4 * n, Init::uniform(bound));
            let parts = all.split(0, &[n, n, n, n]);
            let c = parts[1].sigmoid() * &state[1] + parts[0].sigmoid() * parts[2].tanh();
            let h = parts[3].sigmoid() * c.tanh();
            (vec![h.clone(), c], vec![h])
        });
        h[0].clone()
    }
}

impl SlowNet for Lstm {
    const NAME: &'static str = "lstm";
    const CITATION: &'static str =
        "Hochreiter, Schmidhuber 1997, Neural Computation 9(8); Gers, Schmidhuber, Cummins 2000 (forget gates)";

    fn layers(&self) -> usize {
        self.layers
    }

    fn forward(&self, net: &mut Net) {
        self.ends.around(net, |x| (0..self.layers).fold(x.clone(), |x, number| self.layer(net, number, &x)));
    }
}
