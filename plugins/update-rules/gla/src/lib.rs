//! Gated linear attention: the additive rule with a decay for every key feature.

use fwp_sdk::prelude::*;

config! {
    /// Vector decay: every key feature fades at a rate of its own, then the value is added.
    ///
    ///     W_t = W_{t-1} Diag(a_t) + v_t k_t^T,     o_t = W_t q_t
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// a [d_k] decays, the sigmoid of the slow net's signal to the power of 1 / temperature.
    /// Canonical form: transition Diag(a) from the right, one outer product v k^T.
    pub struct Gla {
        /// The decay is the sigmoid to the power of one over this; a large one keeps decays near 1.
        temperature: f64 = 16.0,
    }
    validate(me) {
        if me.temperature.is_nan() || me.temperature <= 0.0 || me.temperature.is_infinite() {
            return Err("`temperature`: expected a number above 0".into());
        }
        Ok(())
    }
}

impl Gla {
    fn decay(&self, s: &Step) -> Expr {
        (s.signal("a").log_sigmoid() / self.temperature).exp()
    }
}

impl UpdateRule for Gla {
    const NAME: &'static str = "gla";
    const CITATION: &'static str = "Yang, Wang, Shen, Panda, Kim 2023, arXiv 2312.06635";
    const OBJECTIVE: &'static str = "-<W k, v> + 1/2 sum over columns j of (1 - a_j) |W_j|^2, one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims).signal("a", [dims.key]).state("w", [dims.value, dims.key], StateStart::Zeros)
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w").scale_columns(self.decay(s)) + outer(v, k);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w");
        let loss = 0.5 * w.square().scale_columns(1 - self.decay(s)).sum() - w.matvec(&k).dot(v);
        let w = &w - loss.gradient(&w);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [Gla] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::{Value, json};
    use fwp_sdk::testing;

    use super::*;

    fn describe(config: Value) -> Result<String, String> {
        testing::rule::<Gla>(config, testing::DIMS).map(|p| testing::signature(&p))
    }

    #[test]
    fn the_decay_has_one_element_a_key_feature() {
        let wanted = "query q [7], key k [7], value v [3], signal a [7]; state w [3, 7]";
        assert_eq!(describe(json!({})).unwrap(), wanted);
    }

    #[test]
    fn configuration_is_refused_by_name() {
        for temperature in [0.0, -1.0] {
            assert!(describe(json!({ "temperature": temperature })).unwrap_err().contains("`temperature`"));
        }
    }
}
