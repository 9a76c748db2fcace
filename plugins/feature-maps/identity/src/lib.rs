//! The identity feature map.

use fwp_sdk::prelude::*;

config! {
    /// Identity: keys and queries as the slow net emits them.
    ///
    ///     phi(x) = x
    ///
    /// where x [d] key or query; phi(x) [d].
    /// With `normalise = "l2"` these are the keys and queries of DeltaNet (Yang et al. 2024, arXiv 2406.06484).
    pub struct Identity {}
}

impl FeatureMap for Identity {
    const NAME: &'static str = "identity";
    const CITATION: &'static str = "Schmidhuber 1992, Neural Computation 4(1)";

    fn features(&self, dim: usize) -> usize {
        dim
    }

    fn apply(&self, map: &Map) -> Expr {
        map.input()
    }
}

fwp_sdk::export! { feature_maps: [Identity] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn it_adds_nothing_but_the_normalisation_that_is_asked_for() {
        for (config, wanted) in [
            (json!({}), None),
            (json!({ "normalise": "sum" }), Some(Op::SumNormalise { eps: 1e-6 })),
            (json!({ "normalise": "l2", "normalise_eps": 0.5 }), Some(Op::L2Normalise { eps: 0.5 })),
        ] {
            let program = testing::map::<Identity>(config, 5).unwrap();
            for entry in ["key", "query"] {
                let ops: Vec<&Op> = program.entry(entry).unwrap().nodes.iter().map(|n| &n.op).collect();
                let expected: Vec<&Op> = [&Op::Argument { index: 0 }].into_iter().chain(&wanted).collect();
                assert_eq!(ops, expected);
            }
        }
    }

    #[test]
    fn a_wrong_normalisation_is_refused_with_the_choices() {
        let message = testing::map::<Identity>(json!({ "normalise": "l1" }), 5).unwrap_err();
        assert!(message.contains("\"none\" or \"sum\" or \"l2\""), "{message}");
    }
}
