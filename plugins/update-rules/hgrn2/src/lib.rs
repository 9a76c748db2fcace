//! HGRN2: vector decay whose key is what is forgotten.

use fwp_sdk::prelude::*;

config! {
    /// HGRN2: every key feature fades at a rate of its own, and the value is written where something was forgotten.
    ///
    ///     W_t = W_{t-1} Diag(f_t) + v_t (1 - f_t)^T,     o_t = W_t q_t,     f_t = low + (1 - low) * sigmoid(x_t)
    ///
    /// where W [d_v, d_k] fast weights; q [d_k] query, without a feature map; v, o [d_v] value and output;
    /// f [d_k] decays from the signal x `f`; low [d_k] their lower bound, which is 0 in the first layer and grows from layer to layer:
    /// the softmax over layers of `bounds` [layers, d_k], trained for every head and all layers together,
    /// summed from the second layer up to this one.
    /// Canonical form: transition Diag(f) from the right, one outer product v (1 - f)^T.
    pub struct Hgrn2 {}
}

impl Hgrn2 {
    fn forget(s: &Step) -> Expr {
        let shares = s.parameter("bounds").softmax_on(0);
        // Not below 0, as written so that the host knows: f is positive then and has a logarithm.
        let low = (s.at_layer(&shares.cumsum(0)) - shares.at(0)).relu();
        let f = s.signal("f");
        f.sigmoid() + low * (-f).sigmoid()
    }
}

impl UpdateRule for Hgrn2 {
    const NAME: &'static str = "hgrn2";
    const CITATION: &'static str = "Qin et al. 2024, arXiv 2404.07904";
    const OBJECTIVE: &'static str =
        "-<W k, v> + 1/2 sum over columns j of (1 - f_j) |W_j|^2 with k = 1 - f, one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::without_inputs(dims)
            .query("q", [dims.key])
            .raw()
            .value("v", [dims.value])
            .signal("f", [dims.key])
            .state("w", [dims.value, dims.key], StateStart::Zeros)
            .parameter("bounds", [dims.layers, dims.key], Init::zeros())
            .scope(Scope::Model)
            .no_decay()
    }

    fn step(&self, s: &mut Step) {
        let f = Hgrn2::forget(s);
        let w = s.state("w").scale_columns(&f) + outer(s.input("v"), 1 - f);
        s.output(w.matvec(s.input("q")));
        s.set_state("w", w);
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (w, k) = (s.state("w"), 1 - Hgrn2::forget(s));
        let loss = 0.5 * w.square().scale_columns(&k).sum() - w.matvec(&k).dot(s.input("v"));
        let w = &w - loss.gradient(&w);
        s.output(w.matvec(s.input("q")));
        s.set_state("w", w);
    }
}

fwp_sdk::export! { update_rules: [Hgrn2] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn one_table_of_bounds_serves_all_layers() {
        let program = testing::rule::<Hgrn2>(json!({}), testing::DIMS).unwrap();
        let wanted = "raw query q [7], value v [3], signal f [7]; state w [3, 7]; \
                      parameter bounds [11, 7] no decay for a model, constant layer [11] for a layer";
        assert_eq!(testing::signature(&program), wanted);
    }
}
