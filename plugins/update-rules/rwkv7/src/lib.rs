//! The time mixing of RWKV-7.

use fwp_sdk::prelude::*;

config! {
    /// RWKV-7: a generalised delta rule that erases under a key of its own, at a rate for every key feature.
    ///
    ///     W_t = W_{t-1} Diag(d_t) - (W_{t-1} c_t) (r_t * c_t)^T + v_t g_t^T,     o_t = W_t q_t
    ///     c_t = k_t * k_k / |k_t * k_k|,     g_t = k_t * (1 + (r_t - 1) * k_a),     d_t = e^(-e^(-1/2) sigmoid(decay_t))
    ///     bonus_t = <q_t * g_t, r_k> v_t
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query (`r` in the paper) after the feature map; v, o [d_v] value and output;
    /// c, g [d_k] the keys of erasing and of writing; r [d_k] in-context rates, the sigmoid of the signal `a`;
    /// d [d_k] decays from the signal `decay`, e^(-1/2) is 0.6065; k_k, k_a, r_k [d_k] trained for every head;
    /// bonus [d_v] an output beside o, which the slow net adds behind the normalisation of o.
    /// Canonical form: transition Diag(d) - c (r * c)^T from the right, one outer product v g^T.
    pub struct Rwkv7 {
        /// Added to the squared length of the erasing key under the root.
        eps: f64 = 1e-12,
    }
    validate(me) {
        if me.eps <= 0.0 { return Err("`eps`: expected a number above 0".into()); }
        Ok(())
    }
}

impl UpdateRule for Rwkv7 {
    const NAME: &'static str = "rwkv7";
    const CITATION: &'static str = "Peng et al. 2025, arXiv 2503.14456";
    const OBJECTIVE: &'static str = "none: 1/2 |W k - v|^2 + 1/2 sum over columns j of (1 - d_j) |W_j|^2 is its motivation, but with keys of their own for \
         erasing and writing the update is no gradient (its Jacobian is not symmetric)";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims)
            .signal("a", [dims.key])
            .signal("decay", [dims.key])
            .state("w", [dims.value, dims.key], StateStart::Zeros)
            .parameter("k_k", [dims.key], Init::constant(0.85))
            .no_decay()
            .parameter("k_a", [dims.key], Init::ones())
            .no_decay()
            .parameter("r_k", [dims.key], Init::zeros())
            .no_decay()
            .extra("bonus", [dims.value])
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let (w, rate) = (s.state("w"), s.signal("a").sigmoid());
        let erase = (&k * s.parameter("k_k")).l2_normalise(self.eps);
        let write = k * (1 + (&rate - 1) * s.parameter("k_a"));
        let decay = (-(-0.5f64).exp() * s.signal("decay").sigmoid()).exp();
        let w = w.scale_columns(decay) - outer(w.matvec(&erase), rate * &erase) + outer(&v, &write);
        s.output(w.matvec(&q));
        s.extra("bonus", (q * write).dot(s.parameter("r_k")) * v);
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [Rwkv7] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn the_bonus_is_an_output_of_its_own() {
        let program = testing::rule::<Rwkv7>(json!({}), testing::DIMS).unwrap();
        let wanted = "query q [7], key k [7], value v [3], signal a [7], signal decay [7]; state w [3, 7]; \
                      parameter k_k [7] no decay, parameter k_a [7] no decay, parameter r_k [7] no decay; extra bonus";
        assert_eq!(testing::signature(&program), wanted);
        assert!(testing::rule::<Rwkv7>(json!({ "eps": 0.0 }), testing::DIMS).unwrap_err().contains("`eps`"));
    }
}
