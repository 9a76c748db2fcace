//! MesaNet: regularised least squares over the whole past.

use fwp_sdk::prelude::*;

config! {
    /// MesaNet: the linear map that fits all pairs best, with weights that fade, solved anew for every query.
    ///
    ///     G_t = gamma_t G_{t-1} + beta_t v_t k_t^T,     H_t = gamma_t H_{t-1} + beta_t k_t k_t^T
    ///     o_t = G_t (H_t + Diag(l))^-1 q_t,     l = softplus(lambda) + 0.25
    ///
    /// where G [d_v, d_k] and H [d_k, d_k] sums; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// gamma, beta [] decay and weight of a pair, sigmoids of the slow net's signals; lambda [d_k] trained for every head.
    /// The system is solved by conjugate gradients.
    /// Canonical form: transition gamma for G and H, one outer product beta v k^T and beta k k^T.
    /// The solver needs the whole of H at every step, so H has to be walked.
    pub struct Mesa {
        /// Steps of the solver, at most.
        iterations: usize = 30,
        /// The solver ends where the residual is smaller than this times the query; with 0 it takes all steps.
        tolerance: f64 = 0.0,
    }
    validate(me) {
        if me.iterations == 0 { return Err("`iterations`: expected a number from 1".into()); }
        if me.tolerance < 0.0 { return Err("`tolerance`: expected a number from 0".into()); }
        Ok(())
    }
}

/// The least regularisation, and the one to begin with.
const LEAST: f64 = 0.25;
const FIRST: f64 = 1.0;

impl UpdateRule for Mesa {
    const NAME: &'static str = "mesa";
    const CITATION: &'static str = "von Oswald et al. 2025, arXiv 2506.05233";
    const OBJECTIVE: &'static str = "1/2 sum over i of z_i |W k_i - v_i|^2 + 1/2 trace(W Diag(l) W^T), where z_i is beta_i times all later gamma, \
         solved for W; its gradient is no step from the last W, so it is not restated";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims)
            .signal("gamma", [])
            .signal("beta", [])
            .state("g", [dims.value, dims.key], StateStart::Zeros)
            .state("h", [dims.key, dims.key], StateStart::Zeros)
            .parameter("lambda", [dims.key], Init::constant((FIRST - LEAST).exp_m1().ln()))
            .no_decay()
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let (gamma, beta) = (s.signal("gamma").sigmoid(), s.signal("beta").sigmoid());
        let g = &gamma * s.state("g") + &beta * outer(v, &k);
        let h = gamma * s.state("h") + beta * outer(&k, &k);
        let ridge = s.eye(k.shape()[0]).scale_rows(s.parameter("lambda").softplus() + LEAST);
        s.output(g.matvec((&h + ridge).solve_spd(q, self.iterations, self.tolerance)));
        s.set_state("g", g);
        s.set_state("h", h);
    }
}

fwp_sdk::export! { update_rules: [Mesa] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn sums_of_pairs_and_of_keys() {
        let program = testing::rule::<Mesa>(json!({}), testing::DIMS).unwrap();
        let wanted = "query q [7], key k [7], value v [3], signal gamma [], signal beta []; state g [3, 7], state h [7, 7]; \
                      parameter lambda [7] no decay";
        assert_eq!(testing::signature(&program), wanted);
        for (config, key) in [(json!({ "iterations": 0 }), "`iterations`"), (json!({ "tolerance": -1.0 }), "`tolerance`")] {
            assert!(testing::rule::<Mesa>(config, testing::DIMS).unwrap_err().contains(key));
        }
    }
}
