//! The gated delta rule.

use fwp_sdk::prelude::*;

choices! {
    /// How the decay is made from its signal.
    pub enum Decay {
        /// e^(-e^a_log softplus(x + dt_bias)), with a_log and dt_bias trained for every head
        Softplus = "softplus",
        /// 1 / (1 + e^-x)
        Sigmoid = "sigmoid",
    }
}

config! {
    /// Gated delta rule: everything fades, then the value stored under a key is replaced.
    ///
    ///     S_t = alpha_t W_{t-1},     W_t = S_t + beta_t (v_t - S_t k_t) k_t^T,     o_t = W_t q_t
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// beta [] write strength, the sigmoid of the slow net's signal; alpha [] decay in (0, 1), from the signal `alpha`.
    /// Canonical form: transition alpha (I - beta k k^T) from the right, one outer product beta v k^T.
    pub struct GatedDelta {
        /// How the decay is made from its signal.
        decay: Decay = Decay::Softplus,
        /// Factor of the write strength; with 2 the eigenvalue of the transition along the key is in (-alpha, alpha).
        beta_scale: f64 = 1.0,
    }
    validate(me) {
        if !(me.beta_scale > 0.0 && me.beta_scale <= 2.0) {
            return Err("`beta_scale`: expected a number above 0, at most 2".into());
        }
        Ok(())
    }
}

impl GatedDelta {
    /// The decayed fast weights and the write strength.
    fn decayed(&self, s: &Step) -> (Expr, Expr) {
        let signal = s.signal("alpha");
        let log = match self.decay {
            Decay::Softplus => -s.parameter("a_log").exp() * (signal + s.parameter("dt_bias")).softplus(),
            Decay::Sigmoid => signal.log_sigmoid(),
        };
        let beta = s.signal("beta").sigmoid();
        let beta = if self.beta_scale == 1.0 { beta } else { self.beta_scale * beta };
        (log.exp() * s.state("w"), beta)
    }
}

impl UpdateRule for GatedDelta {
    const NAME: &'static str = "gated-delta";
    const CITATION: &'static str =
        "Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464, Eq. 10; beta_scale 2: Grazzi et al. 2024, arXiv 2411.12537";
    const OBJECTIVE: &'static str = "1/2 |S k - v|^2 at the decayed fast weights S, one gradient step of size beta";

    fn signature(&self, dims: Dims) -> Signature {
        let signature =
            Signature::new(dims).signal("beta", []).signal("alpha", []).state("w", [dims.value, dims.key], StateStart::Zeros);
        if self.decay == Decay::Sigmoid {
            return signature;
        }
        signature
            .parameter("a_log", [], Init::log_of_uniform(1.0, 16.0))
            .no_decay()
            .parameter("dt_bias", [], Init::step_sizes(1e-3, 1e-1))
            .no_decay()
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let (w, beta) = self.decayed(s);
        let w = &w + beta * outer(v - w.matvec(&k), &k);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let (w, beta) = self.decayed(s);
        let loss = 0.5 * (w.matvec(&k) - v).norm_squared();
        let w = &w - beta * loss.gradient(&w);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [GatedDelta] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::{Value, json};
    use fwp_sdk::testing;

    use super::*;

    fn describe(config: Value) -> Result<String, String> {
        testing::rule::<GatedDelta>(config, testing::DIMS).map(|p| testing::signature(&p))
    }

    #[test]
    fn the_decay_has_parameters_only_where_it_uses_them() {
        let wanted = "query q [7], key k [7], value v [3], signal beta [], signal alpha []; state w [3, 7]";
        assert_eq!(describe(json!({ "decay": "sigmoid" })).unwrap(), wanted);
        let parameters = "parameter a_log [] no decay, parameter dt_bias [] no decay";
        assert_eq!(describe(json!({})).unwrap(), format!("{wanted}; {parameters}"));
    }

    #[test]
    fn configuration_is_refused_by_name() {
        assert!(describe(json!({ "beta_scale": 2.5 })).unwrap_err().contains("`beta_scale`"));
        assert!(describe(json!({ "decay": "linear" })).unwrap_err().contains("softplus"));
    }
}
