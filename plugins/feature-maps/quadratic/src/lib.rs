//! Maps whose features are products of two elements: Taylor-2 and ReBased.

use fwp_sdk::prelude::*;

config! {
    /// Taylor-2 (Based): the exponential kernel up to its second order.
    ///
    ///     phi(x) = [1; x / d^(1/4); squares(x) / sqrt(2 d); products(x) / sqrt(d)]
    ///     <phi(q), phi(k)> = 1 + s + s^2 / 2   with   s = <q, k> / sqrt(d)
    ///
    /// where x [d] key or query; squares(x) [d] has x_i^2 and products(x) [d (d - 1) / 2] has x_i x_j, each pair once;
    /// phi(x) [1 + d + d (d + 1) / 2].
    /// The factor 1 / sqrt(d) is part of the map: a slow net's own factor on the query comes on top.
    pub struct Taylor2 {}
}

impl FeatureMap for Taylor2 {
    const NAME: &'static str = "taylor2";
    const CITATION: &'static str = "Arora et al. 2024 (Based), arXiv 2402.18668, section 4.1";

    fn features(&self, dim: usize) -> usize {
        1 + dim + pairs(dim)
    }

    fn apply(&self, map: &Map) -> Expr {
        let (x, d) = (map.input(), map.dim as f64);
        concat(0, &[&map.full(&[1], 1.0), &(&x / d.powf(0.25)), &(quadratic(&x) / d.sqrt())])
    }
}

config! {
    /// ReBased: the square of an inner product, after layer normalisation with a learned gain and bias.
    ///
    ///     y = gamma * (x - mean(x)) / sqrt(var(x) + eps) + beta
    ///     phi(x) = [squares(y); sqrt(2) products(y)] / sqrt(d)
    ///     <phi(q), phi(k)> = <y_q, y_k>^2 / d
    ///
    /// where x, y [d] with x key or query; gamma, beta [d] a head, shared by keys and queries, 1 and 0 at first;
    /// squares(y) [d] has y_i^2 and products(y) [d (d - 1) / 2] has y_i y_j, each pair once; phi(x) [d (d + 1) / 2].
    pub struct ReBased {
        /// Added to the variance under the root.
        eps: f64 = 1e-5,
    }
    validate(me) {
        if me.eps <= 0.0 { return Err("`eps`: expected a number above 0".into()); }
        Ok(())
    }
}

impl FeatureMap for ReBased {
    const NAME: &'static str = "rebased";
    const CITATION: &'static str = "Aksenov, Balagansky, Lo Cicero Vaina, Shaposhnikov, Gorbatovski, Gavrilov 2024, \
         arXiv 2402.10644, section 4";

    fn features(&self, dim: usize) -> usize {
        pairs(dim)
    }

    fn apply(&self, map: &Map) -> Expr {
        let gamma = map.parameter("gamma", &[map.dim], Init::ones());
        let beta = map.parameter("beta", &[map.dim], Init::zeros());
        let y = gamma * map.input().layer_norm(self.eps) + beta;
        quadratic(&y) * (2.0 / map.dim as f64).sqrt()
    }
}

/// Number of pairs of elements, an element with itself included.
fn pairs(dim: usize) -> usize {
    dim * (dim + 1) / 2
}

/// `[squares(x) / sqrt(2); products(x)]`, whose inner product for q and k is <q, k>^2 / 2.
///
/// The product of x with itself shifted by j has every pair at the cyclic distance j once;
/// at half the length, where both ways round are equally far, it has every pair twice.
fn quadratic(x: &Expr) -> Expr {
    let d = x.shape()[0];
    let shifted = |j: usize| x * x.roll(0, j as i64);
    let mut parts = vec![x.square() / 2f64.sqrt()];
    parts.extend((1..d.div_ceil(2)).map(shifted));
    if d.is_multiple_of(2) {
        parts.push(shifted(d / 2).slice(0, 0, d / 2));
    }
    concat(0, &parts.iter().collect::<Vec<_>>())
}

fwp_sdk::export! { feature_maps: [Taylor2, ReBased] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn every_pair_is_one_feature() {
        for d in 1..=9 {
            // The promise is kept, or the description would end with a message.
            testing::map::<Taylor2>(json!({}), d).unwrap();
            testing::map::<ReBased>(json!({}), d).unwrap();
            assert_eq!(testing::features::<Taylor2>(json!({}), d), Ok(1 + d + d * (d + 1) / 2));
            assert_eq!(testing::features::<ReBased>(json!({}), d), Ok(d * (d + 1) / 2));
        }
    }

    #[test]
    fn a_gain_and_a_bias_are_shared_by_keys_and_queries() {
        let program = testing::map::<ReBased>(json!({}), 5).unwrap();
        let parameters = |entry: &str| program.entry(entry).unwrap().parameters.clone();
        let names: Vec<String> = parameters("key").iter().map(|p| p.name.clone()).collect();
        assert_eq!(names, ["gamma", "beta"]);
        assert_eq!(parameters("key"), parameters("query"));
        assert!(testing::map::<ReBased>(json!({ "eps": 0 }), 5).unwrap_err().contains("`eps`"));
    }
}
