//! DeltaProduct: several delta steps for every token.

use fwp_sdk::prelude::*;

config! {
    /// DeltaProduct: n delta steps a token, each with its own key, value and write strength.
    ///
    ///     S_0 = alpha_t W_{t-1},     S_j = S_{j-1} + beta_tj (v_tj - S_{j-1} k_tj) k_tj^T  for j = 1..n
    ///     W_t = S_n,     o_t = W_t q_t,     alpha_t = e^(-e^a_log softplus(x_t + dt_bias))
    ///
    /// where W [d_v, d_k] fast weights; k_j, q [d_k] keys and query after the feature map; v_j, o [d_v] values and output;
    /// beta [n] write strengths, beta_scale times the sigmoid of the slow net's signal;
    /// alpha [] decay in (0, 1) from the signal x `alpha`, with a_log and dt_bias [] trained for every head, or 1 where it is not gated.
    /// Canonical form: the product of the transitions I - beta_j k_j k_j^T from the right, the first of them times alpha,
    /// never multiplied out, and one outer product beta_j v_j k_j^T with each.
    pub struct DeltaProduct {
        /// Delta steps a token, n_h in the paper.
        steps: usize = 2,
        /// Whether the fast weights decay before the steps of a token.
        gated: bool = false,
        /// Factor of the write strengths; with 2 the eigenvalue of a transition along its key is in (-1, 1).
        beta_scale: f64 = 2.0,
    }
    validate(me) {
        if !(1..=16).contains(&me.steps) { return Err("`steps`: expected a number from 1 to 16".into()); }
        if !(me.beta_scale > 0.0 && me.beta_scale <= 2.0) {
            return Err("`beta_scale`: expected a number above 0, at most 2".into());
        }
        Ok(())
    }
}

impl DeltaProduct {
    /// The fast weights after decay and n steps, where `delta` is one of them with key, value and write strength.
    fn write(&self, s: &Step, delta: impl Fn(Expr, Expr, Expr, Expr) -> Expr) {
        let mut w = s.state("w");
        if self.gated {
            let log = -s.parameter("a_log").exp() * (s.signal("alpha") + s.parameter("dt_bias")).softplus();
            w = log.exp() * w;
        }
        let beta = self.beta_scale * s.signal("beta").sigmoid();
        for j in 0..self.steps {
            w = delta(w, s.input("k").at(j), s.input("v").at(j), beta.at(j));
        }
        s.output(w.matvec(s.input("q")));
        s.set_state("w", w);
    }
}

impl UpdateRule for DeltaProduct {
    const NAME: &'static str = "deltaproduct";
    const CITATION: &'static str = "Siems et al. 2025, arXiv 2502.10297; beta_scale 2: Grazzi et al. 2024, arXiv 2411.12537";
    const OBJECTIVE: &'static str = "1/2 |S k_j - v_j|^2 for j = 1..n in turn, one gradient step of size beta_j each";

    fn signature(&self, dims: Dims) -> Signature {
        let signature = Signature::without_inputs(dims)
            .query("q", [dims.key])
            .key("k", [dims.key])
            .count(self.steps)
            .value("v", [dims.value])
            .count(self.steps)
            .signal("beta", [self.steps])
            .state("w", [dims.value, dims.key], StateStart::Zeros);
        if !self.gated {
            return signature;
        }
        signature
            .signal("alpha", [])
            .parameter("a_log", [], Init::log_of_uniform(1.0, 16.0))
            .no_decay()
            .parameter("dt_bias", [], Init::step_sizes(1e-3, 1e-1))
            .no_decay()
    }

    fn step(&self, s: &mut Step) {
        self.write(s, |w, k, v, beta| &w + beta * outer(v - w.matvec(&k), &k));
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        self.write(s, |w, k, v, beta| &w - beta * (0.5 * (w.matvec(k) - v).norm_squared()).gradient(&w));
    }
}

fwp_sdk::export! { update_rules: [DeltaProduct] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::{Value, json};
    use fwp_sdk::testing;

    use super::*;

    fn describe(config: Value) -> Result<String, String> {
        testing::rule::<DeltaProduct>(config, testing::DIMS).map(|p| testing::signature(&p))
    }

    #[test]
    fn keys_values_and_strengths_come_once_a_step() {
        let wanted = "query q [7], 3 of key k [7], 3 of value v [3], signal beta [3]; state w [3, 7]";
        assert_eq!(describe(json!({ "steps": 3 })).unwrap(), wanted);
        let wanted = "query q [7], 2 of key k [7], 2 of value v [3], signal beta [2], signal alpha []; state w [3, 7]; \
                      parameter a_log [] no decay, parameter dt_bias [] no decay";
        assert_eq!(describe(json!({ "gated": true })).unwrap(), wanted);
    }

    #[test]
    fn configuration_is_refused_by_name() {
        assert!(describe(json!({ "steps": 0 })).unwrap_err().contains("`steps`"));
        assert!(describe(json!({ "beta_scale": 3.0 })).unwrap_err().contains("`beta_scale`"));
    }
}
