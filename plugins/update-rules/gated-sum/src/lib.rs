//! The gated sum of random feature attention.

use fwp_sdk::prelude::*;

config! {
    /// Gated sum: as much as is written is forgotten, of all keys alike.
    ///
    ///     W_t = (1 - beta_t) W_{t-1} + beta_t v_t k_t^T,     o_t = W_t q_t
    ///
    /// and with attention normalisation
    ///
    ///     z_t = (1 - beta_t) z_{t-1} + beta_t k_t,     o_t = W_t q_t / (<z_t, q_t> + eps)
    ///
    /// where W [d_v, d_k] fast weights; z [d_k] running mean of the keys; k, q [d_k] key and query after the feature map;
    /// v, o [d_v] value and output; beta [] gate, the sigmoid of the slow net's signal.
    /// Canonical form: transition 1 - beta, one outer product beta v k^T (and beta k into z).
    pub struct GatedSum {
        /// Whether the output is divided by the similarity of the query with the keys; the features must be positive then.
        attention_normalisation: bool = false,
        /// Added to that similarity before dividing.
        eps: f64 = 1e-6,
    }
    validate(me) {
        if me.eps < 0.0 { return Err("`eps`: expected a number from 0".into()); }
        Ok(())
    }
}

impl GatedSum {
    /// The output from the new fast weights, and what is kept for the next step.
    fn read(&self, s: &Step, w: Expr, beta: Expr) {
        let (q, k, _) = s.query_key_value();
        let o = w.matvec(&q);
        if self.attention_normalisation {
            let z = (1 - &beta) * s.state("z") + beta * k;
            s.output(o / (z.dot(&q) + self.eps));
            s.set_state("z", z);
        } else {
            s.output(o);
        }
        s.set_state("w", w);
    }
}

impl UpdateRule for GatedSum {
    const NAME: &'static str = "gated-sum";
    const CITATION: &'static str =
        "Peng et al. 2021, arXiv 2103.02143; Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Appendix B";
    const OBJECTIVE: &'static str = "-<W k, v> + 1/2 |W|^2, one gradient step of size beta";

    fn signature(&self, dims: Dims) -> Signature {
        let signature = Signature::new(dims).signal("beta", []).state("w", [dims.value, dims.key], StateStart::Zeros);
        if self.attention_normalisation { signature.state("z", [dims.key], StateStart::Zeros) } else { signature }
    }

    fn step(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        self.read(s, (1 - &beta) * s.state("w") + &beta * outer(v, k), beta);
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let (w, beta) = (s.state("w"), s.signal("beta").sigmoid());
        let loss = 0.5 * w.norm_squared() - w.matvec(&k).dot(v);
        self.read(s, &w - &beta * loss.gradient(&w), beta);
    }
}

fwp_sdk::export! { update_rules: [GatedSum] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn the_normaliser_is_a_state_only_where_it_is_used() {
        for (normalised, states) in [(false, "state w [3, 7]"), (true, "state w [3, 7], state z [7]")] {
            let config = json!({ "attention_normalisation": normalised });
            let program = testing::rule::<GatedSum>(config, testing::DIMS).unwrap();
            let wanted = format!("query q [7], key k [7], value v [3], signal beta []; {states}");
            assert_eq!(testing::signature(&program), wanted);
        }
        assert!(testing::rule::<GatedSum>(json!({ "eps": -1.0 }), testing::DIMS).unwrap_err().contains("`eps`"));
    }
}
