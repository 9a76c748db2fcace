//! The time mixing of RWKV-6.

use fwp_sdk::prelude::*;

config! {
    /// RWKV-6: every key feature fades at a rate of its own, and the step's own pair is read with a bonus before it is stored.
    ///
    ///     o_t = (W_{t-1} + v_t (u * k_t)^T) q_t,     W_t = W_{t-1} Diag(a_t) + v_t k_t^T,     a_t = e^(-e^decay_t)
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query (`r` in the paper) after the feature map;
    /// v, o [d_v] value and output; decay [d_k] the slow net's signal, a [d_k] decays in (0, 1); u [d_k] bonus, trained for every head.
    /// The token shift belongs to the slow net.
    /// Canonical form: transition Diag(a) from the right, one outer product v k^T; the old W is read.
    pub struct Rwkv6 {}
}

impl Rwkv6 {
    /// The output, from the old fast weights.
    fn read(s: &Step) {
        let (q, k, v) = s.query_key_value();
        s.output(s.state("w").matvec(&q) + v * (s.parameter("u") * k).dot(q));
    }
}

impl UpdateRule for Rwkv6 {
    const NAME: &'static str = "rwkv6";
    const CITATION: &'static str = "Peng et al. 2024, arXiv 2404.05892";
    const OBJECTIVE: &'static str = "-<W k, v> + 1/2 sum over columns j of (1 - a_j) |W_j|^2, one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims)
            .signal("decay", [dims.key])
            .state("w", [dims.value, dims.key], StateStart::Zeros)
            .parameter("u", [dims.key], Init::normal(0.1))
            .no_decay()
    }

    fn step(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let a = (-s.signal("decay").exp()).exp();
        Rwkv6::read(s);
        s.set_state("w", s.state("w").scale_columns(a) + outer(v, k));
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let (w, a) = (s.state("w"), (-s.signal("decay").exp()).exp());
        let loss = 0.5 * w.square().scale_columns(1 - a).sum() - w.matvec(&k).dot(v);
        Rwkv6::read(s);
        s.set_state("w", &w - loss.gradient(&w));
    }
}

fwp_sdk::export! { update_rules: [Rwkv6] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn decay_and_bonus_have_one_element_a_key_feature() {
        let program = testing::rule::<Rwkv6>(json!({}), testing::DIMS).unwrap();
        let wanted = "query q [7], key k [7], value v [3], signal decay [7]; state w [3, 7]; parameter u [7] no decay";
        assert_eq!(testing::signature(&program), wanted);
    }
}
