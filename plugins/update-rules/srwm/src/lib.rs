//! The self-referential weight matrix.

use fwp_sdk::prelude::*;

config! {
    /// Self-referential weight matrix: one matrix makes the output, and the query, key and rates by which it changes itself.
    ///
    ///     (o_t, q_t, k_t, b_t) = W_{t-1} x_t,     q_t, k_t <- softmax(q_t), softmax(k_t)
    ///     W_t = W_{t-1} + Diag(b_t) (W_{t-1} q_t - W_{t-1} k_t) k_t^T
    ///
    /// where W [3 d + 4, d] fast weights, whose initial values are trained for every head: d rows each for o, q and k, and 4 for rates;
    /// x, o [d] value (through a softmax) and output, with d = d_v; q, k [d] query and key;
    /// b [3 d + 4] write strengths: the sigmoids of the four rates, one for each of the groups of rows.
    /// There is no canonical form: key, query and rates are made of the fast weights, so the step is not affine in them.
    pub struct Srwm {
        /// Whether the value passes through a softmax.
        input_softmax: bool = true,
        /// Mean of the initial values of the rows that make the rates; 0 was used as well.
        rate_bias: f64 = -1.0,
    }
}

impl UpdateRule for Srwm {
    const NAME: &'static str = "srwm";
    const CITATION: &'static str = "Irie, Schlag, Csordas, Schmidhuber 2022, arXiv 2202.05780";
    const OBJECTIVE: &'static str = "1/2 |W k - v|^2 with the value v = W q, one gradient step of sizes b, while query, key, value and rates are taken as \
         given; that they come from W itself makes the update no gradient";

    fn signature(&self, dims: Dims) -> Signature {
        let (n, rate_bias) = (dims.value, self.rate_bias);
        let draw = Init::program(move |r, shape| {
            let mean = concat(0, &[&r.full(&[3 * n, n], 0.0), &r.full(&[4, n], rate_bias)]);
            mean + r.normal(shape) / (n as f64).sqrt()
        });
        Signature::without_inputs(dims).value("x", [n]).state("w", [3 * n + 4, n], StateStart::Trained(draw))
    }

    fn step(&self, s: &mut Step) {
        let (w, x) = (s.state("w"), s.input("x"));
        let x = if self.input_softmax { x.softmax() } else { x };
        let n = x.shape()[0];
        let groups = [n, n, n, 4];
        let made = w.matvec(x).split(0, &groups);
        let (q, k, rates) = (made[1].softmax(), made[2].softmax(), made[3].sigmoid());
        let rates: Vec<Expr> = groups.iter().enumerate().map(|(i, rows)| rates.at(i).expand(0, *rows)).collect();
        let b = concat(0, &rates.iter().collect::<Vec<_>>());
        s.output(&made[0]);
        s.set_state("w", &w + outer(b * (w.matvec(q) - w.matvec(&k)), &k));
    }
}

fwp_sdk::export! { update_rules: [Srwm] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn one_matrix_makes_output_query_key_and_four_rates() {
        for input_softmax in [true, false] {
            let program = testing::rule::<Srwm>(json!({ "input_softmax": input_softmax }), testing::DIMS).unwrap();
            assert_eq!(testing::signature(&program), "value x [3]; state w [13, 3]; parameter w_0 [13, 3]");
        }
    }
}
