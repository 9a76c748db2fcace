//! Maps with a learned matrix: Hedgehog and T2R.

use fwp_sdk::prelude::*;

config! {
    /// Hedgehog: a softmax over a learned linear map and its negative, positive features that are sharp as attention is.
    ///
    ///     y = W x + b
    ///     phi(x) = softmax([2 y; -2 y])
    ///
    /// where x, y [d] with x key or query; W [d, d] the identity at first and b [d] 0 at first, one a head; phi(x) [2 d].
    pub struct Hedgehog {
        /// Whether keys and queries share W and b.
        tied: bool = false,
        /// Whether there is a bias b.
        bias: bool = true,
    }
}

impl FeatureMap for Hedgehog {
    const NAME: &'static str = "hedgehog";
    const CITATION: &'static str = "Zhang, Bhatia, Kumbong, Re 2024, arXiv 2402.04347, section 4.1";

    fn features(&self, dim: usize) -> usize {
        2 * dim
    }

    fn apply(&self, map: &Map) -> Expr {
        let y = 2.0 * linear(map, map.dim, Init::scaled_identity(1.0), self.bias, self.tied);
        concat(0, &[&y, &-&y]).softmax()
    }
}

config! {
    /// T2R: a learned linear map and ReLU, features that are positive or 0.
    ///
    ///     phi(x) = relu(W x + b)
    ///
    /// where x [d] key or query; W [features, d] uniform in +-1/sqrt(d) at first and b [features] 0 at first, one a head;
    /// phi(x) [features].
    pub struct T2R {
        /// Number of features; as many as the key has elements where absent.
        features: Option<usize> = None,
        /// Whether keys and queries share W and b.
        tied: bool = true,
        /// Whether there is a bias b.
        bias: bool = true,
    }
    validate(me) {
        if me.features == Some(0) { return Err("`features`: expected at least 1 feature, got 0".into()); }
        Ok(())
    }
}

impl FeatureMap for T2R {
    const NAME: &'static str = "t2r";
    const CITATION: &'static str =
        "Kasai, Peng, Zhang, Yogatama, Ilharco, Pappas, Mao, Chen, Smith 2021, arXiv 2103.13076, Eq. 3";

    fn features(&self, dim: usize) -> usize {
        self.features.unwrap_or(dim)
    }

    fn apply(&self, map: &Map) -> Expr {
        let bound = 1.0 / (map.dim as f64).sqrt();
        linear(map, FeatureMap::features(self, map.dim), Init::uniform(bound), self.bias, self.tied).relu()
    }
}

/// W x + b with n rows; where it is not `tied`, keys and queries have matrices of their own.
fn linear(map: &Map, n: usize, init: Init, bias: bool, tied: bool) -> Expr {
    let whose = match map.role {
        _ if tied => "",
        MapRole::Key => "key_",
        MapRole::Query => "query_",
    };
    let y = map.parameter(&format!("{whose}weight"), &[n, map.dim], init).matvec(map.input());
    if bias { y + map.parameter(&format!("{whose}bias"), &[n], Init::zeros()) } else { y }
}

fwp_sdk::export! { feature_maps: [Hedgehog, T2R] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Program;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    fn names(program: &Program, entry: &str) -> Vec<String> {
        program.entry(entry).unwrap().parameters.iter().map(|p| p.name.clone()).collect()
    }

    #[test]
    fn keys_and_queries_share_what_is_tied() {
        let tied = testing::map::<Hedgehog>(json!({ "tied": true }), 5).unwrap();
        assert_eq!(names(&tied, "key"), ["weight", "bias"]);
        assert_eq!(names(&tied, "query"), ["weight", "bias"]);
        let apart = testing::map::<Hedgehog>(json!({}), 5).unwrap();
        assert_eq!(names(&apart, "key"), ["key_weight", "key_bias"]);
        assert_eq!(names(&apart, "query"), ["query_weight", "query_bias"]);
    }

    #[test]
    fn the_number_of_features_can_be_chosen() {
        assert_eq!(testing::features::<Hedgehog>(json!({}), 5), Ok(10));
        assert_eq!(testing::features::<T2R>(json!({}), 5), Ok(5));
        let t2r = testing::map::<T2R>(json!({ "features": 3, "bias": false }), 5).unwrap();
        assert_eq!(t2r.entry("key").unwrap().parameters[0].shape, [3, 5]);
        assert_eq!(names(&t2r, "key"), ["weight"]);
        assert!(testing::map::<T2R>(json!({ "features": 0 }), 5).unwrap_err().contains("`features`"));
    }
}
