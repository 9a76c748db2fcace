//! Gated slot attention.

use fwp_sdk::prelude::*;

config! {
    /// Gated slot attention: a fixed number of slots, each with a key and a value that are running means.
    ///
    ///     K_t = Diag(a_t) K_{t-1} + (1 - a_t) k_t^T,     V_t = Diag(a_t) V_{t-1} + (1 - a_t) v_t^T
    ///     o_t = V_t^T softmax(K_t q_t)
    ///
    /// where K [slots, d_k], V [slots, d_v] keys and values of the slots; k, q [d_k] key and query after the feature map;
    /// v, o [d_v] value and output; a [slots] decays, the sigmoid of the slow net's signal `alpha` to the power of 1 / temperature.
    /// Canonical form: transition Diag(a) from the left, one outer product (1 - a) k^T, and the same for V with v,
    /// which is read with what the softmax makes of the read of K.
    pub struct Gsa {
        /// Number of slots.
        slots: usize = 64,
        /// The decay is the sigmoid to the power of one over this; a large one keeps decays near 1.
        temperature: f64 = 8.0,
    }
    validate(me) {
        if me.slots == 0 { return Err("`slots`: expected a number from 1".into()); }
        if me.temperature <= 0.0 { return Err("`temperature`: expected a number above 0".into()); }
        Ok(())
    }
}

impl UpdateRule for Gsa {
    const NAME: &'static str = "gsa";
    const CITATION: &'static str = "Zhang et al. 2024, arXiv 2409.07146";
    const OBJECTIVE: &'static str = "1/2 sum over slots j of (1 - a_j) (|K_j - k|^2 + |V_j - v|^2), one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims).signal("alpha", [self.slots]).state("k_mem", [self.slots, dims.key], StateStart::Zeros).state(
            "v_mem",
            [self.slots, dims.value],
            StateStart::Zeros,
        )
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let a = (s.signal("alpha").log_sigmoid() / self.temperature).exp();
        let keys = s.state("k_mem").scale_rows(&a) + outer(1 - &a, k);
        let values = s.state("v_mem").scale_rows(&a) + outer(1 - &a, v);
        s.output(values.matvec_t(keys.matvec(q).softmax()));
        s.set_state("k_mem", keys);
        s.set_state("v_mem", values);
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let a = (s.signal("alpha").log_sigmoid() / self.temperature).exp();
        let step = |slots: Expr, x: Expr| {
            let loss = 0.5 * (&slots - x.expand(0, self.slots)).square().scale_rows(1 - &a).sum();
            &slots - loss.gradient(&slots)
        };
        let (keys, values) = (step(s.state("k_mem"), k), step(s.state("v_mem"), v));
        s.output(values.matvec_t(keys.matvec(q).softmax()));
        s.set_state("k_mem", keys);
        s.set_state("v_mem", values);
    }
}

fwp_sdk::export! { update_rules: [Gsa] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn slots_are_the_rows_of_both_memories() {
        let program = testing::rule::<Gsa>(json!({ "slots": 5 }), testing::DIMS).unwrap();
        let wanted = "query q [7], key k [7], value v [3], signal alpha [5]; state k_mem [5, 7], state v_mem [5, 3]";
        assert_eq!(testing::signature(&program), wanted);
        for (config, key) in [(json!({ "slots": 0 }), "`slots`"), (json!({ "temperature": 0.0 }), "`temperature`")] {
            assert!(testing::rule::<Gsa>(config, testing::DIMS).unwrap_err().contains(key));
        }
    }
}
