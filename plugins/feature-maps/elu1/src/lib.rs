//! The ELU+1 feature map.

use fwp_sdk::prelude::*;

config! {
    /// ELU+1: a smooth map to positive features.
    ///
    ///     phi(x) = x + 1  where x > 0,     exp(x)  elsewhere
    ///
    /// where x [d] key or query; phi(x) [d].
    pub struct EluPlusOne {}
}

impl FeatureMap for EluPlusOne {
    const NAME: &'static str = "elu+1";
    const CITATION: &'static str = "Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv 2006.16236; \
         Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Eq. 30";

    fn features(&self, dim: usize) -> usize {
        dim
    }

    fn apply(&self, map: &Map) -> Expr {
        let x = map.input();
        // The exponential sees only what is not positive: a large x must not overflow in the branch that is not taken,
        // because the gradient of that branch would be 0 times infinity.
        let negative = x.less_equal(0.0).select(&x, 0.0);
        x.relu() + negative.exp()
    }
}

fwp_sdk::export! { feature_maps: [EluPlusOne] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn the_exponential_never_sees_a_positive_number() {
        let program = testing::map::<EluPlusOne>(json!({}), 5).unwrap();
        let nodes = &program.entry("key").unwrap().nodes;
        let exponential = nodes.iter().find(|n| n.op == Op::Exp).unwrap();
        assert_eq!(nodes[exponential.operands[0] as usize].op, Op::Select);
        assert_eq!(testing::features::<EluPlusOne>(json!({}), 5), Ok(5));
    }
}
