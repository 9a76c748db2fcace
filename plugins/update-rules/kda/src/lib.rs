//! Delta rules with a decay for every key feature: Kimi delta attention and the second gated DeltaNet.

use fwp_sdk::prelude::*;

config! {
    /// Kimi delta attention: every key feature fades at a rate of its own, then the value stored under a key is replaced.
    ///
    ///     S_t = W_{t-1} Diag(a_t),     W_t = S_t + beta_t (v_t - S_t k_t) k_t^T,     o_t = W_t q_t
    ///     a_t = e^(-e^a_log softplus(x_t + dt_bias))
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// a [d_k] decays in (0, 1) from the signal x `a`; beta [] write strength, the sigmoid of the slow net's signal;
    /// a_log [] and dt_bias [d_k] trained for every head.
    /// Canonical form: transition Diag(a) (I - beta k k^T) from the right, one outer product beta v k^T.
    pub struct Kda {
        /// Factor of the write strength; with 2 the eigenvalue of the erasure along the key is in (-1, 1).
        beta_scale: f64 = 1.0,
    }
    validate(me) {
        if !(me.beta_scale > 0.0 && me.beta_scale <= 2.0) {
            return Err("`beta_scale`: expected a number above 0, at most 2".into());
        }
        Ok(())
    }
}

config! {
    /// Gated DeltaNet 2: the decay of every key feature, and gates of their own for what is erased and what is written.
    ///
    ///     S_t = W_{t-1} Diag(a_t),     W_t = S_t + (m_t * v_t - S_t (e_t * k_t)) k_t^T,     o_t = W_t q_t
    ///     a_t = e^(-e^a_log softplus(x_t + dt_bias))
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// a [d_k] decays in (0, 1) from the signal x `a`; e [d_k] and m [d_v] sigmoids of the signals `erase` and `admit`;
    /// a_log [] and dt_bias [d_k] trained for every head. With all elements of e and m equal it is `kda`.
    /// Canonical form: transition Diag(a) (I - (e * k) k^T) from the right, one outer product (m * v) k^T.
    pub struct Gdn2 {}
}

/// Inputs, fast weights and decay of both.
fn signature(dims: Dims) -> Signature {
    Signature::new(dims)
        .signal("a", [dims.key])
        .state("w", [dims.value, dims.key], StateStart::Zeros)
        .parameter("a_log", [], Init::log_of_uniform(1.0, 16.0))
        .no_decay()
        .parameter("dt_bias", [dims.key], Init::step_sizes(1e-3, 1e-1))
        .no_decay()
}

/// The decayed fast weights.
fn decayed(s: &Step) -> Expr {
    let a = (-s.parameter("a_log").exp() * (s.signal("a") + s.parameter("dt_bias")).softplus()).exp();
    s.state("w").scale_columns(a)
}

/// Keeps the new fast weights and reads them.
fn read(s: &Step, w: Expr) {
    s.output(w.matvec(s.input("q")));
    s.set_state("w", w);
}

impl UpdateRule for Kda {
    const NAME: &'static str = "kda";
    const CITATION: &'static str = "Kimi Team 2025, arXiv 2510.26692; beta_scale 2: Grazzi et al. 2024, arXiv 2411.12537";
    const OBJECTIVE: &'static str = "beta/2 |S k - v|^2 at the decayed fast weights S, one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        signature(dims).signal("beta", [])
    }

    fn step(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let (w, beta) = (decayed(s), self.beta_scale * s.signal("beta").sigmoid());
        read(s, &w + beta * outer(v - w.matvec(&k), &k));
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let (w, beta) = (decayed(s), self.beta_scale * s.signal("beta").sigmoid());
        let loss = 0.5 * beta * (w.matvec(&k) - v).norm_squared();
        read(s, &w - loss.gradient(&w));
    }
}

impl UpdateRule for Gdn2 {
    const NAME: &'static str = "gdn2";
    const CITATION: &'static str = "flash-linear-attention, fla/ops/gdn2";
    const OBJECTIVE: &'static str = "none: what is erased is read with e * k and removed under k, so the update is no gradient (its Jacobian is not symmetric)";

    fn signature(&self, dims: Dims) -> Signature {
        signature(dims).signal("erase", [dims.key]).signal("admit", [dims.value])
    }

    fn step(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let (w, erase, admit) = (decayed(s), s.signal("erase").sigmoid(), s.signal("admit").sigmoid());
        read(s, &w + outer(admit * v - w.matvec(erase * &k), &k));
    }
}

fwp_sdk::export! { update_rules: [Kda, Gdn2] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn both_share_the_decay_and_differ_in_their_gates() {
        let wanted = |gates: &str| {
            format!(
                "query q [7], key k [7], value v [3], signal a [7], {gates}; state w [3, 7]; \
                 parameter a_log [] no decay, parameter dt_bias [7] no decay"
            )
        };
        let kda = testing::rule::<Kda>(json!({}), testing::DIMS).unwrap();
        assert_eq!(testing::signature(&kda), wanted("signal beta []"));
        let gdn2 = testing::rule::<Gdn2>(json!({}), testing::DIMS).unwrap();
        assert_eq!(testing::signature(&gdn2), wanted("signal erase [7], signal admit [3]"));
        for scale in [0.0, 2.5] {
            assert!(testing::rule::<Kda>(json!({ "beta_scale": scale }), testing::DIMS).unwrap_err().contains("`beta_scale`"));
        }
    }
}
