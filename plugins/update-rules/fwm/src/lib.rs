//! Fast weight memory: the delta rule on a ball.

use fwp_sdk::prelude::*;

config! {
    /// Fast weight memory: the delta rule, after which the fast weights are scaled back to length one where they are longer.
    ///
    ///     S_t = W_{t-1} + beta_t (v_t - W_{t-1} k_t) k_t^T,     W_t = S_t / max(1, |S_t|),     o_t = LN(W_t q_t)
    ///
    /// where W [d_v, d_k] fast weights and |W| their Frobenius norm; k, q [d_k] key and query after the feature map (tanh in the paper);
    /// v, o [d_v] value and output; beta [] write strength, the sigmoid of the slow net's signal; LN layer norm without parameters.
    /// There is no canonical form: the length of the fast weights enters the step, so steps have to be walked.
    pub struct Fwm {
        /// Whether what is read is normalised to mean 0 and variance 1.
        output_norm: bool = true,
        /// Added to the variance under the root.
        norm_eps: f64 = 1e-5,
    }
    validate(me) {
        if me.norm_eps <= 0.0 { return Err("`norm_eps`: expected a number above 0".into()); }
        Ok(())
    }
}

impl Fwm {
    /// The fast weights on the ball, and what is read.
    fn read(&self, s: &Step, w: Expr) {
        // Of the square, because the length has no gradient at 0.
        let w = &w / w.norm_squared().max(1.0).sqrt();
        let o = w.matvec(s.input("q"));
        s.output(if self.output_norm { o.layer_norm(self.norm_eps) } else { o });
        s.set_state("w", w);
    }
}

impl UpdateRule for Fwm {
    const NAME: &'static str = "fwm";
    const CITATION: &'static str = "Schlag, Munkhdalai, Schmidhuber 2021, arXiv 2011.07831";
    const OBJECTIVE: &'static str =
        "1/2 |W k - v|^2, one gradient step of size beta, then the nearest point of the ball |W| <= 1";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims).signal("beta", []).state("w", [dims.value, dims.key], StateStart::Zeros)
    }

    fn step(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let w = s.state("w");
        self.read(s, &w + s.signal("beta").sigmoid() * outer(v - w.matvec(&k), &k));
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let w = s.state("w");
        let loss = 0.5 * (w.matvec(&k) - v).norm_squared();
        self.read(s, &w - s.signal("beta").sigmoid() * loss.gradient(&w));
    }
}

fwp_sdk::export! { update_rules: [Fwm] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn what_is_read_is_normalised_where_asked_for() {
        for (output_norm, norms) in [(true, 1), (false, 0)] {
            let program = testing::rule::<Fwm>(json!({ "output_norm": output_norm }), testing::DIMS).unwrap();
            assert_eq!(testing::signature(&program), "query q [7], key k [7], value v [3], signal beta []; state w [3, 7]");
            let step = program.entry("step").unwrap();
            assert_eq!(step.nodes.iter().filter(|n| matches!(n.op, Op::LayerNorm { .. })).count(), norms);
        }
        assert!(testing::rule::<Fwm>(json!({ "norm_eps": 0.0 }), testing::DIMS).unwrap_err().contains("`norm_eps`"));
    }
}
