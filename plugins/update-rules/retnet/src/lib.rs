//! Retention: the additive rule with a fixed decay for every head.

use fwp_sdk::prelude::*;

config! {
    /// Retention: every head forgets at a fixed rate of its own.
    ///
    ///     W_t = gamma W_{t-1} + v_t k_t^T,     o_t = W_t q_t,     gamma = 1 - 2^(-5 - h)
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// gamma [] decay of head h = 0, 1, ..., a constant.
    /// The rotation of keys and queries belongs to the slow net.
    /// Canonical form: transition gamma, one outer product v k^T.
    pub struct RetNet {}
}

impl UpdateRule for RetNet {
    const NAME: &'static str = "retnet";
    const CITATION: &'static str = "Sun et al. 2023, arXiv 2307.08621";
    const OBJECTIVE: &'static str = "-<W k, v> + (1 - gamma)/2 |W|^2, one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims)
            .state("w", [dims.value, dims.key], StateStart::Zeros)
            .parameter("gamma", [], Init::program(|r, _| 1 - (-(r.head() + 5).to_float() * 2f64.ln()).exp()))
            .constant()
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = s.parameter("gamma") * s.state("w") + outer(v, k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w");
        let loss = 0.5 * (1 - s.parameter("gamma")) * w.norm_squared() - w.matvec(&k).dot(v);
        let w = &w - loss.gradient(&w);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [RetNet] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn the_decay_is_a_constant_of_the_head() {
        let program = testing::rule::<RetNet>(json!({}), testing::DIMS).unwrap();
        let wanted = "query q [7], key k [7], value v [3]; state w [3, 7]; constant gamma []";
        assert_eq!(testing::signature(&program), wanted);
    }
}
