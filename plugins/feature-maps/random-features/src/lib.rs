//! Maps that project on random directions: FAVOR+ and random Fourier features.

use fwp_sdk::prelude::*;

choices! {
    /// When the random directions are drawn.
    pub enum Redraw {
        /// For every training batch, from the run's seed and the step; evaluation keeps one draw of its own.
        Batch = "batch",
        /// Once.
        Never = "never",
    }
}

config! {
    /// FAVOR+: positive random features, an unbiased estimate of the exponential kernel.
    ///
    ///     phi(x) = exp(-|x|^2 / 2) / sqrt(2 m) [exp(R x); exp(-R x)]
    ///     E <phi(q), phi(k)> = exp(<q, k>)
    ///
    /// where x [d] key or query; R [m, d] rows from N(0, 1), made orthogonal in blocks of d, one R a layer for keys and
    /// queries of all heads; phi(x) [2 m].
    /// For softmax attention's kernel exp(<q, k> / sqrt(d)), keys and queries are divided by d^(1/4) before the map.
    pub struct Favor {
        /// Number of random directions; there are twice as many features.
        m: usize = 64,
        /// When the directions are drawn.
        redraw: Redraw = Redraw::Batch,
        /// Whether the directions of a block are orthogonal, which lowers the variance of the estimate.
        orthogonal: bool = true,
    }
    validate(me) {
        at_least_one("m", me.m)
    }
}

impl FeatureMap for Favor {
    const NAME: &'static str = "favor+";
    const CITATION: &'static str = "Choromanski et al. 2021, arXiv 2009.14794; \
         Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Eq. 31-32";

    fn features(&self, _dim: usize) -> usize {
        2 * self.m
    }

    fn apply(&self, map: &Map) -> Expr {
        let x = map.input();
        let h = directions(map, self.m, self.redraw, self.orthogonal).matvec(&x);
        // One exponent for both factors: exp(R x) alone may overflow where the product is a number.
        let norm = 0.5 * x.norm_squared();
        concat(0, &[&(&h - &norm).exp(), &(-h - norm).exp()]) / (2.0 * self.m as f64).sqrt()
    }
}

config! {
    /// Random Fourier features (RFA): an unbiased estimate of a Gaussian kernel.
    ///
    ///     u = x / sqrt(|x|^2 + eps)
    ///     phi(x) = [sin(R (sigma * u)); cos(R (sigma * u))] / sqrt(D)
    ///     E <phi(q), phi(k)> = exp(-|sigma * (u_q - u_k)|^2 / 2)
    ///
    /// where x, u [d] with x key or query; R [D, d] rows from N(0, 1), one R a layer for keys and queries of all heads;
    /// sigma [d] scale of every direction, one a head; * is elementwise; phi(x) [2 D].
    /// With u of length one and one scale, the kernel is exp(sigma^2 <u_q, u_k>) times a constant.
    /// Features may be negative: use no sum normalisation.
    pub struct Rfa {
        /// Number of random directions, D in the paper; there are twice as many features.
        directions: usize = 64,
        /// When the directions are drawn.
        redraw: Redraw = Redraw::Batch,
        /// The scale, or its first value where it is trained.
        sigma: f64 = 1.0,
        /// Whether the scale is trained.
        sigma_trained: bool = true,
        /// Added to the squared length of a key or query under the root.
        eps: f64 = 1e-6,
    }
    validate(me) {
        if me.sigma == 0.0 { return Err("`sigma`: with 0 all keys are the same; expected another number".into()); }
        if me.eps < 0.0 { return Err("`eps`: expected a number from 0".into()); }
        at_least_one("directions", me.directions)
    }
}

impl FeatureMap for Rfa {
    const NAME: &'static str = "rfa";
    const CITATION: &'static str = "Peng, Pappas, Yogatama, Schwartz, Smith, Kong 2021, arXiv 2103.02143, section 3.1";

    fn features(&self, _dim: usize) -> usize {
        2 * self.directions
    }

    fn apply(&self, map: &Map) -> Expr {
        let u = map.input().l2_normalise(self.eps);
        let scaled = match self.sigma_trained {
            true => map.parameter("sigma", &[map.dim], Init::constant(self.sigma)) * u,
            false => u * self.sigma,
        };
        let h = directions(map, self.directions, self.redraw, false).matvec(scaled);
        concat(0, &[&h.sin(), &h.cos()]) / (self.directions as f64).sqrt()
    }
}

/// Random directions `[n, dim]`, the same for keys and queries because they have one name.
fn directions(map: &Map, n: usize, redraw: Redraw, orthogonal: bool) -> Expr {
    let init = match orthogonal {
        true => Init::program(|r, shape| r.orthogonal(shape[0], shape[1])),
        false => Init::normal(1.0),
    };
    map.random("directions", &[n, map.dim], init, redraw == Redraw::Batch)
}

fn at_least_one(key: &str, n: usize) -> Result<(), String> {
    if n == 0 { Err(format!("`{key}`: expected at least 1 direction, got 0")) } else { Ok(()) }
}

fwp_sdk::export! { feature_maps: [Favor, Rfa] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::{Op, Scope, Training};
    use fwp_sdk::serde_json::{Value, json};
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn keys_and_queries_have_the_directions_in_common() {
        for (redraw, training) in [("batch", Training::Redrawn), ("never", Training::Constant)] {
            let config = json!({ "redraw": redraw });
            let maps = [testing::map::<Favor>(config.clone(), 5).unwrap(), testing::map::<Rfa>(config, 5).unwrap()];
            for program in maps {
                let drawn = |entry: &str| {
                    let all = &program.entry(entry).unwrap().parameters;
                    all.iter().find(|p| p.name == "directions").unwrap().clone()
                };
                assert_eq!(drawn("key"), drawn("query"));
                assert_eq!((drawn("key").scope, drawn("key").training), (Scope::Layer, training));
            }
        }
    }

    #[test]
    fn directions_are_orthogonal_in_blocks_of_the_key() {
        let has = |config: Value, op: Op| {
            let program = testing::map::<Favor>(config, 5).unwrap();
            program.functions.iter().flat_map(|f| &f.nodes).any(|n| n.op == op)
        };
        assert!(has(json!({ "m": 7 }), Op::RandomOrthogonal { rows: 7, n: 5 }));
        assert!(has(json!({ "m": 7, "orthogonal": false }), Op::RandomNormal { shape: vec![7, 5] }));
    }

    #[test]
    fn only_a_trained_scale_is_a_parameter() {
        let names = |config: Value| {
            let program = testing::map::<Rfa>(config, 5).unwrap();
            program.entry("key").unwrap().parameters.iter().map(|p| p.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(json!({})), ["sigma", "directions"]);
        assert_eq!(names(json!({ "sigma_trained": false })), ["directions"]);
    }

    #[test]
    fn configuration_is_refused_by_name() {
        assert!(testing::map::<Favor>(json!({ "m": 0 }), 5).unwrap_err().contains("`m`"));
        assert!(testing::map::<Favor>(json!({ "redraw": "step" }), 5).unwrap_err().contains("\"batch\" or \"never\""));
        assert!(testing::map::<Rfa>(json!({ "directions": 0 }), 5).unwrap_err().contains("`directions`"));
        assert!(testing::map::<Rfa>(json!({ "sigma": 0 }), 5).unwrap_err().contains("`sigma`"));
    }
}
