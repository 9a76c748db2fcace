//! The delta rule.

use fwp_sdk::prelude::*;

config! {
    /// Delta rule: the value stored under a key is replaced, not added to.
    ///
    ///     W_t = W_{t-1} + beta_t (v_t - W_{t-1} k_t) k_t^T,     o_t = W_t q_t
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map;
    /// v, o [d_v] value and output; beta [] write strength, the sigmoid of the slow net's signal.
    /// Canonical form: transition I - beta k k^T from the right, one outer product beta v k^T.
    pub struct Delta {}
}

impl UpdateRule for Delta {
    const NAME: &'static str = "delta";
    const CITATION: &'static str = "Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Eq. 20-25";
    const OBJECTIVE: &'static str = "1/2 |W k - v|^2, one gradient step of size beta";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims).signal("beta", []).state("w", [dims.value, dims.key], StateStart::Zeros)
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        let w = s.state("w");
        let w = &w + beta * outer(v - w.matvec(&k), &k);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        let w = s.state("w");
        let loss = 0.5 * (w.matvec(&k) - v).norm_squared();
        let w = &w - beta * loss.gradient(&w);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [Delta] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::{Program, Role};
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    fn describe() -> Program {
        testing::rule::<Delta>(json!({}), Dims { heads: 2, key_raw: 5, key: 7, value: 3, ..Dims::ONE }).unwrap()
    }

    #[test]
    fn signature_and_shapes() {
        let program = describe();
        let inputs: Vec<(&str, Role, &[usize])> =
            program.inputs.iter().map(|i| (i.name.as_str(), i.role, &i.shape[..])).collect();
        assert_eq!(
            inputs,
            [("q", Role::Query, &[7][..]), ("k", Role::Key, &[7]), ("v", Role::Value, &[3]), ("beta", Role::Gate, &[])]
        );
        assert_eq!((program.states.len(), &program.states[0].shape[..]), (1, &[3, 7][..]));
        assert!(program.entry("step").is_some() && program.entry("restated").is_some());
    }

    #[test]
    fn the_same_request_gives_the_same_bytes() {
        assert_eq!(describe().to_bytes(), describe().to_bytes());
    }

    #[test]
    fn keys_are_refused() {
        let dims = Dims { heads: 1, key_raw: 2, key: 2, value: 2, ..Dims::ONE };
        let message = testing::rule::<Delta>(json!({ "beta": 1 }), dims).unwrap_err();
        assert!(message.contains("unknown key `beta`"), "{message}");
    }
}
