//! Hebbian fast weights with a fixed decay and a fixed rate.

use fwp_sdk::prelude::*;

config! {
    /// Hebbian rule with decay: old associations fade at a fixed rate while new ones are added.
    ///
    ///     W_t = lambda W_{t-1} + eta v_t k_t^T,     o_t = W_t q_t
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// lambda, eta [] decay and rate, the same for all heads.
    /// In the paper key and value are one vector, the hidden state of a recurrent net that reads several times a step.
    /// Canonical form: transition lambda, one outer product eta v k^T.
    pub struct HebbianDecay {
        /// What remains of the old fast weights at every step.
        lambda: f64 = 0.95,
        /// Factor of what is written.
        eta: f64 = 0.5,
    }
    validate(me) {
        if !(0.0..=1.0).contains(&me.lambda) { return Err("`lambda`: expected a number from 0 to 1".into()); }
        if me.eta <= 0.0 { return Err("`eta`: expected a number above 0".into()); }
        Ok(())
    }
}

impl UpdateRule for HebbianDecay {
    const NAME: &'static str = "hebbian-decay";
    const CITATION: &'static str = "Ba, Hinton, Mnih, Leibo, Ionescu 2016, arXiv 1610.06258";
    const OBJECTIVE: &'static str = "-eta <W k, v> + (1 - lambda)/2 |W|^2, one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros)
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = self.lambda * s.state("w") + self.eta * outer(v, k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w");
        let loss = 0.5 * (1.0 - self.lambda) * w.norm_squared() - self.eta * w.matvec(&k).dot(v);
        let w = &w - loss.gradient(&w);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [HebbianDecay] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn decay_and_rate_are_numbers_of_the_configuration() {
        let describe = |config| testing::rule::<HebbianDecay>(config, testing::DIMS);
        let program = describe(json!({ "lambda": 0.9 })).unwrap();
        assert_eq!(testing::signature(&program), "query q [7], key k [7], value v [3]; state w [3, 7]");
        assert_ne!(program, describe(json!({ "lambda": 0.95 })).unwrap());
        for (config, key) in [(json!({ "lambda": 1.5 }), "`lambda`"), (json!({ "eta": 0.0 }), "`eta`")] {
            assert!(describe(config).unwrap_err().contains(key));
        }
    }
}
