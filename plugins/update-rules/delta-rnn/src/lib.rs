//! The Delta RNN: fast weights that are recurrent.

use fwp_sdk::prelude::*;

config! {
    /// Delta RNN: a second matrix of fast weights reads the last output. Both are written by the delta rule.
    ///
    ///     W_t = W_{t-1} + beta_t (v_t - W_{t-1} k_t) k_t^T
    ///     R_t = R_{t-1} + b_t (u_t - R_{t-1} r_t) r_t^T,     r_t = softmax(k_r)
    ///     o_t = W_t q_t + R_t softmax(o_{t-1})
    ///
    /// where W [d_v, d_k] and R [d_v, d_v] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// k_r [d_v] and u = v_r [d_v] key and value of R; beta, b [] write strengths, the sigmoids of the signals `beta` and `beta_r`.
    /// The last output enters a softmax, so there is no form that computes several steps at once.
    pub struct DeltaRnn {}
}

impl UpdateRule for DeltaRnn {
    const NAME: &'static str = "delta-rnn";
    const CITATION: &'static str = "Irie, Schlag, Csordas, Schmidhuber 2021, arXiv 2106.06295, the Delta RNN of the main tables";
    const OBJECTIVE: &'static str = "1/2 |W k - v|^2 and 1/2 |R r - u|^2, one gradient step each of sizes beta and b; the recurrence itself minimises nothing";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims)
            .key("k_r", [dims.value])
            .raw()
            .value("v_r", [dims.value])
            .signal("beta", [])
            .signal("beta_r", [])
            .state("w", [dims.value, dims.key], StateStart::Zeros)
            .state("r", [dims.value, dims.value], StateStart::Zeros)
            .state("y", [dims.value], StateStart::Zeros)
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let written = |w: Expr, k: &Expr, v: Expr, beta: &str| &w + s.signal(beta).sigmoid() * outer(v - w.matvec(k), k);
        let w = written(s.state("w"), &k, v, "beta");
        let r = written(s.state("r"), &s.input("k_r").softmax(), s.input("v_r"), "beta_r");
        let o = w.matvec(q) + r.matvec(s.state("y").softmax());
        s.output(&o);
        s.set_state("w", w);
        s.set_state("r", r);
        s.set_state("y", o);
    }
}

fwp_sdk::export! { update_rules: [DeltaRnn] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn the_recurrent_fast_weights_have_inputs_of_their_own() {
        let program = testing::rule::<DeltaRnn>(json!({}), testing::DIMS).unwrap();
        let wanted = "query q [7], key k [7], value v [3], raw key k_r [3], value v_r [3], signal beta [], signal beta_r []; \
                      state w [3, 7], state r [3, 3], state y [3]";
        assert_eq!(testing::signature(&program), wanted);
    }
}
