//! The additive rule.

use fwp_sdk::prelude::*;

config! {
    /// Additive rule: every value is added under its key, nothing is ever removed.
    ///
    ///     W_t = W_{t-1} + v_t k_t^T,     o_t = W_t q_t
    ///
    /// and with attention normalisation
    ///
    ///     z_t = z_{t-1} + k_t,     o_t = W_t q_t / (<z_t, q_t> + eps)
    ///
    /// where W [d_v, d_k] fast weights; z [d_k] sum of the keys; k, q [d_k] key and query after the feature map;
    /// v, o [d_v] value and output.
    /// Canonical form: no transition, one outer product v k^T (and k itself into z).
    pub struct Additive {
        /// Whether the output is divided by the sum of the keys' similarities with the query; the features must be positive then.
        attention_normalisation: bool = false,
        /// Added to that sum before dividing.
        eps: f64 = 1e-6,
    }
    validate(me) {
        if me.eps < 0.0 { return Err("`eps`: expected a number from 0".into()); }
        Ok(())
    }
}

impl Additive {
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

impl UpdateRule for Additive {
    const NAME: &'static str = "additive";
    const CITATION: &'static str = "Schmidhuber 1992, Neural Computation 4(1); Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Eq. 10-11; \
         normalised: Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv 2006.16236";
    const OBJECTIVE: &'static str = "-<W k, v>, one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        let signature = Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros);
        if self.attention_normalisation { signature.state("z", [dims.key], StateStart::Zeros) } else { signature }
    }

    fn step(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        self.read(s, s.state("w") + outer(v, k));
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let w = s.state("w");
        let loss = -w.matvec(&k).dot(v);
        self.read(s, &w - loss.gradient(&w));
    }
}

fwp_sdk::export! { update_rules: [Additive] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::{Value, json};
    use fwp_sdk::testing;

    use super::*;

    fn describe(config: Value) -> Result<String, String> {
        testing::rule::<Additive>(config, testing::DIMS).map(|p| testing::signature(&p))
    }

    #[test]
    fn the_normaliser_is_a_state_only_where_it_is_used() {
        let inputs = "query q [7], key k [7], value v [3]";
        assert_eq!(describe(json!({})).unwrap(), format!("{inputs}; state w [3, 7]"));
        let config = json!({ "attention_normalisation": true });
        assert_eq!(describe(config).unwrap(), format!("{inputs}; state w [3, 7], state z [7]"));
    }

    #[test]
    fn configuration_is_refused_by_name() {
        assert!(describe(json!({ "eps": -1.0 })).unwrap_err().contains("`eps`"));
        assert!(
            describe(json!({ "attention_normalization": true })).unwrap_err().contains("did you mean `attention_normalisation`?")
        );
    }
}
