//! Oja's rule for fast weights.

use fwp_sdk::prelude::*;

config! {
    /// Oja's rule: what the fast weights give back for a value is taken from the key before it is written.
    ///
    ///     W_t = W_{t-1} + beta_t u_t (k_t - W_{t-1}^T u_t)^T,     u_t = v_t / |v_t|,     o_t = W_t q_t
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, u, o [d_v] value, its direction and output;
    /// beta [] write strength, the sigmoid of the slow net's signal.
    /// With u of length one the step is stable for every beta.
    /// Canonical form: transition I - beta u u^T from the left, one outer product beta u k^T.
    pub struct Oja {
        /// Added to the squared length of the value under the root.
        eps: f64 = 1e-6,
    }
    validate(me) {
        if me.eps <= 0.0 { return Err("`eps`: expected a number above 0".into()); }
        Ok(())
    }
}

impl UpdateRule for Oja {
    const NAME: &'static str = "oja";
    const CITATION: &'static str = "Irie, Faccio, Schmidhuber 2022, arXiv 2206.01649, in the form of the gradient";
    const OBJECTIVE: &'static str = "-<W k, u> + 1/2 |W^T u|^2, one gradient step of size beta";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims).signal("beta", []).state("w", [dims.value, dims.key], StateStart::Zeros)
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let (w, u) = (s.state("w"), v.l2_normalise(self.eps));
        let w = &w + s.signal("beta").sigmoid() * outer(&u, k - w.matvec_t(&u));
        s.output(w.matvec(q));
        s.set_state("w", w);
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let (w, u) = (s.state("w"), v.l2_normalise(self.eps));
        let loss = 0.5 * w.matvec_t(&u).norm_squared() - w.matvec(k).dot(u);
        let w = &w - s.signal("beta").sigmoid() * loss.gradient(&w);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [Oja] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn signature_and_refusals() {
        let program = testing::rule::<Oja>(json!({}), testing::DIMS).unwrap();
        assert_eq!(testing::signature(&program), "query q [7], key k [7], value v [3], signal beta []; state w [3, 7]");
        assert!(testing::rule::<Oja>(json!({ "eps": 0.0 }), testing::DIMS).unwrap_err().contains("`eps`"));
    }
}
