//! The first fast weight programmer: an additive write that is squashed.

use fwp_sdk::prelude::*;

choices! {
    /// What the fast weights pass through after every write.
    pub enum Squash {
        /// Hyperbolic tangent
        Tanh = "tanh",
        /// 1 / (1 + e^-x)
        Sigmoid = "sigmoid",
    }
}

config! {
    /// Fast weights of 1991: an outer product is added, and the sum is squashed.
    ///
    ///     W_t = sigma(W_{t-1} + v_t k_t^T),     o_t = W_t q_t
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// sigma the squashing function, element by element.
    /// There is no canonical form: sigma is not affine, so steps have to be walked.
    pub struct Fwp1991 {
        /// What the fast weights pass through after every write.
        squash: Squash = Squash::Tanh,
    }
}

impl UpdateRule for Fwp1991 {
    const NAME: &'static str = "fwp-1991";
    const CITATION: &'static str = "Schmidhuber 1991, technical report; 1992, Neural Computation 4(1); as in Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Eq. 1-3";
    const OBJECTIVE: &'static str = "-<W k, v>, one gradient step of size 1, then squashed; the two together minimise nothing";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros)
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") + outer(v, k);
        let w = match self.squash {
            Squash::Tanh => w.tanh(),
            Squash::Sigmoid => w.sigmoid(),
        };
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [Fwp1991] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn the_fast_weights_are_squashed_by_what_is_asked_for() {
        for (squash, wanted) in [("tanh", Op::Tanh), ("sigmoid", Op::Sigmoid)] {
            let program = testing::rule::<Fwp1991>(json!({ "squash": squash }), testing::DIMS).unwrap();
            assert_eq!(testing::signature(&program), "query q [7], key k [7], value v [3]; state w [3, 7]");
            let step = program.entry("step").unwrap();
            assert_eq!(step.nodes[step.output("state.w").unwrap() as usize].op, wanted);
        }
        assert!(testing::rule::<Fwp1991>(json!({ "squash": "relu" }), testing::DIMS).unwrap_err().contains("\"tanh\""));
    }
}
