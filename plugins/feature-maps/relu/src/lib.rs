//! The ReLU feature map.

use fwp_sdk::prelude::*;

config! {
    /// ReLU: features that are positive or 0.
    ///
    ///     phi(x) = max(x, 0)
    ///
    /// where x [d] key or query, elementwise; phi(x) [d].
    /// All features may be 0 at once; `normalise_eps` keeps the division by their sum or length finite then.
    pub struct Relu {}
}

impl FeatureMap for Relu {
    const NAME: &'static str = "relu";
    const CITATION: &'static str = "Yang, Wang, Zhang, Shen, Kim 2024, arXiv 2406.06484, Table 1";

    fn features(&self, dim: usize) -> usize {
        dim
    }

    fn apply(&self, map: &Map) -> Expr {
        map.input().relu()
    }
}

fwp_sdk::export! { feature_maps: [Relu] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn the_sum_is_taken_of_what_is_positive() {
        let program = testing::map::<Relu>(json!({ "normalise": "sum" }), 5).unwrap();
        let ops: Vec<&Op> = program.entry("key").unwrap().nodes.iter().map(|n| &n.op).collect();
        assert_eq!(ops, [&Op::Argument { index: 0 }, &Op::Relu, &Op::SumNormalise { eps: 1e-6 }]);
    }
}
