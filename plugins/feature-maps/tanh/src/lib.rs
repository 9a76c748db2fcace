//! The hyperbolic tangent as feature map.

use fwp_sdk::prelude::*;

config! {
    /// Hyperbolic tangent: bounded features of either sign.
    ///
    ///     phi(x) = tanh(x)
    ///
    /// where x [d] key or query, elementwise; phi(x) [d].
    /// Features may be negative: use `normalise = "l2"` or `"none"`, not `"sum"`.
    pub struct Tanh {}
}

impl FeatureMap for Tanh {
    const NAME: &'static str = "tanh";
    const CITATION: &'static str = "Schlag, Munkhdalai, Schmidhuber 2020, arXiv 2011.07831; \
         as in Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, section 6.1.2";

    fn features(&self, dim: usize) -> usize {
        dim
    }

    fn apply(&self, map: &Map) -> Expr {
        map.input().tanh()
    }
}

fwp_sdk::export! { feature_maps: [Tanh] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn keys_and_queries_are_squashed_alike() {
        let program = testing::map::<Tanh>(json!({}), 5).unwrap();
        for entry in ["key", "query"] {
            assert_eq!(program.entry(entry).unwrap().nodes.last().unwrap().op, Op::Tanh);
        }
    }
}
