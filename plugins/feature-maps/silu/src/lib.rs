//! The SiLU feature map.

use fwp_sdk::prelude::*;

config! {
    /// SiLU (swish): nearly linear above zero, small below.
    ///
    ///     phi(x) = x * sigmoid(x)
    ///
    /// where x [d] key or query; * is elementwise; phi(x) [d].
    /// For slow nets without an activation of their own; features may be negative, so use `normalise = "l2"`, not `"sum"`.
    pub struct Silu {}
}

impl FeatureMap for Silu {
    const NAME: &'static str = "silu";
    const CITATION: &'static str = "Yang, Wang, Zhang, Shen, Kim 2024, arXiv 2406.06484";

    fn features(&self, dim: usize) -> usize {
        dim
    }

    fn apply(&self, map: &Map) -> Expr {
        map.input().silu()
    }
}

fwp_sdk::export! { feature_maps: [Silu] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn the_activation_comes_before_the_normalisation() {
        let program = testing::map::<Silu>(json!({ "normalise": "l2" }), 5).unwrap();
        let ops: Vec<&Op> = program.entry("query").unwrap().nodes.iter().map(|n| &n.op).collect();
        assert_eq!(ops, [&Op::Argument { index: 0 }, &Op::Silu, &Op::L2Normalise { eps: 1e-6 }]);
    }
}
