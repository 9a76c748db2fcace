//! The delta rule.

use fwp_sdk::prelude::*;

config! {
    /// Delta rule: the value stored under a key is replaced, not added to.
    ///
    ///     W_t = W_{t-1} + beta_t (v_t - W_{t-1} k_t) k_t^T,     o_t = W_t q_t
    ///
    /// and with attention normalisation
    ///
    ///     W_t = W_{t-1} + beta_t (v_t - W_{t-1} k_t / <z_{t-1}, k_t>) k_t^T,     z_t = z_{t-1} + k_t,     o_t = W_t q_t / (<z_t, q_t> + eps)
    ///
    /// where W [d_v, d_k] fast weights; z [d_k] sum of the keys; k, q [d_k] key and query after the feature map;
    /// v, o [d_v] value and output; beta [] write strength, beta_scale times the sigmoid of the slow net's signal.
    /// At the first step, where <z, k> is 0, nothing is subtracted from v.
    /// Canonical form: transition I - beta k k^T from the right, one outer product beta v k^T (and k itself into z);
    /// normalised, what is erased is beta / <z, k>.
    pub struct Delta {
        /// Whether what is read is divided by the sum of the keys' similarities; the features must be positive then.
        attention_normalisation: bool = false,
        /// Added to the query's sum before dividing.
        eps: f64 = 1e-6,
        /// Factor of the write strength; with 2 the eigenvalue of the transition along the key is in (-1, 1).
        beta_scale: f64 = 1.0,
    }
    validate(me) {
        if me.eps < 0.0 { return Err("`eps`: expected a number from 0".into()); }
        if !(me.beta_scale > 0.0 && me.beta_scale <= 2.0) {
            return Err("`beta_scale`: expected a number above 0, at most 2".into());
        }
        Ok(())
    }
}

impl Delta {
    fn beta(&self, s: &Step) -> Expr {
        let beta = s.signal("beta").sigmoid();
        if self.beta_scale == 1.0 { beta } else { self.beta_scale * beta }
    }

    /// What is stored under the key.
    fn stored(&self, s: &Step) -> Expr {
        let (_, k, _) = s.query_key_value();
        let stored = s.state("w").matvec(&k);
        if self.attention_normalisation { stored.div_or(s.state("z").dot(&k), 0) } else { stored }
    }

    /// The output from the new fast weights, and what is kept for the next step.
    fn read(&self, s: &Step, w: Expr) {
        let (q, k, _) = s.query_key_value();
        let o = w.matvec(&q);
        if self.attention_normalisation {
            let z = s.state("z") + k;
            s.output(o / (z.dot(&q) + self.eps));
            s.set_state("z", z);
        } else {
            s.output(o);
        }
        s.set_state("w", w);
    }
}

impl UpdateRule for Delta {
    const NAME: &'static str = "delta";
    const CITATION: &'static str = "Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Eq. 20-25, normalised Eq. 26-28; \
         beta_scale 2: Grazzi et al. 2024, arXiv 2411.12537";
    const OBJECTIVE: &'static str =
        "1/2 |W k - v|^2, one gradient step of size beta; normalised: -<W k, v - s> where s, the stored value, is taken as given";

    fn signature(&self, dims: Dims) -> Signature {
        let signature = Signature::new(dims).signal("beta", []).state("w", [dims.value, dims.key], StateStart::Zeros);
        if self.attention_normalisation { signature.state("z", [dims.key], StateStart::Zeros) } else { signature }
    }

    fn step(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        self.read(s, s.state("w") + self.beta(s) * outer(v - self.stored(s), k));
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let w = s.state("w");
        let loss = if self.attention_normalisation {
            -w.matvec(&k).dot((v - self.stored(s)).stop_gradient())
        } else {
            0.5 * (w.matvec(&k) - v).norm_squared()
        };
        self.read(s, &w - self.beta(s) * loss.gradient(&w));
    }
}

fwp_sdk::export! { update_rules: [Delta] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::{Value, json};
    use fwp_sdk::testing;

    use super::*;

    fn describe(config: Value) -> Result<String, String> {
        testing::rule::<Delta>(config, testing::DIMS).map(|p| testing::signature(&p))
    }

    #[test]
    fn the_normaliser_is_a_state_only_where_it_is_used() {
        let inputs = "query q [7], key k [7], value v [3], signal beta []";
        assert_eq!(describe(json!({})).unwrap(), format!("{inputs}; state w [3, 7]"));
        let config = json!({ "attention_normalisation": true });
        assert_eq!(describe(config).unwrap(), format!("{inputs}; state w [3, 7], state z [7]"));
    }

    #[test]
    fn configuration_is_refused_by_name() {
        assert!(describe(json!({ "beta_scale": 2.5 })).unwrap_err().contains("`beta_scale`"));
        assert!(describe(json!({ "eps": -1.0 })).unwrap_err().contains("`eps`"));
    }
}
