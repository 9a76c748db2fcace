//! The softmax feature map.

use fwp_sdk::prelude::*;

config! {
    /// Softmax over the elements of a key or query: positive features that sum to one.
    ///
    ///     phi(x)_i = exp(x_i) / sum_j exp(x_j)
    ///
    /// where x [d] key or query; phi(x) [d].
    pub struct Softmax {}
}

impl FeatureMap for Softmax {
    const NAME: &'static str = "softmax";
    const CITATION: &'static str = "Irie, Schlag, Csordas, Schmidhuber 2021, arXiv 2106.06295";

    fn features(&self, dim: usize) -> usize {
        dim
    }

    fn apply(&self, map: &Map) -> Expr {
        map.input().softmax()
    }
}

fwp_sdk::export! { feature_maps: [Softmax] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn keys_and_queries_get_one_softmax_over_their_elements() {
        let program = testing::map::<Softmax>(json!({}), 5).unwrap();
        assert_eq!(testing::features::<Softmax>(json!({}), 5), Ok(5));
        for entry in ["key", "query"] {
            assert_eq!(program.entry(entry).unwrap().nodes.last().unwrap().op, Op::Softmax { axis: 0 });
        }
    }
}
