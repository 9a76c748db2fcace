//! Comba: the delta rule as closed-loop control.

use fwp_sdk::prelude::*;

config! {
    /// Comba: what is erased is read with a weaker key, and the query is corrected by it.
    ///
    ///     W_t = alpha_t W_{t-1} + beta_t (v_t - W_{t-1} p_t) k_t^T,     p_t = sigmoid(b) k_t
    ///     o_t = W_t (q_t - d p_t),     alpha_t = e^(-e^a_log softplus(x_t + dt_bias))
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// beta [] write strength, the sigmoid of the slow net's signal; alpha [] decay in (0, 1) from the signal x `alpha`;
    /// b, d, a_log, dt_bias [] trained for every head. What is erased is read from the fast weights before they decay.
    /// Canonical form: transition alpha I - beta p k^T from the right, one outer product beta v k^T.
    pub struct Comba {
        /// What `d` begins with; 0.02 was found better in small models.
        correction: f64 = 1.0,
    }
}

impl UpdateRule for Comba {
    const NAME: &'static str = "comba";
    const CITATION: &'static str = "Hu et al. 2025, arXiv 2506.02475";
    const OBJECTIVE: &'static str = "beta/2 |W k - v|^2 + (1 - alpha)/2 |W|^2, one gradient step of size 1, where p = k; with another p the update is no gradient";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims)
            .signal("beta", [])
            .signal("alpha", [])
            .state("w", [dims.value, dims.key], StateStart::Zeros)
            .parameter("a_log", [], Init::log_of_uniform(1.0, 16.0))
            .no_decay()
            .parameter("dt_bias", [], Init::step_sizes(1e-3, 1e-1))
            .no_decay()
            .parameter("b", [], Init::ones())
            .parameter("d", [], Init::constant(self.correction))
            .no_decay()
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let (w, beta) = (s.state("w"), s.signal("beta").sigmoid());
        let alpha = (-s.parameter("a_log").exp() * (s.signal("alpha") + s.parameter("dt_bias")).softplus()).exp();
        let p = s.parameter("b").sigmoid() * &k;
        let w = alpha * &w + beta * outer(v - w.matvec(&p), k);
        s.output(w.matvec(q - s.parameter("d") * p));
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [Comba] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn one_number_a_head_weakens_the_key_and_one_corrects_the_query() {
        let program = testing::rule::<Comba>(json!({}), testing::DIMS).unwrap();
        let wanted = "query q [7], key k [7], value v [3], signal beta [], signal alpha []; state w [3, 7]; \
                      parameter a_log [] no decay, parameter dt_bias [] no decay, parameter b [], parameter d [] no decay";
        assert_eq!(testing::signature(&program), wanted);
    }
}
