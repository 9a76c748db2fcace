//! Titans' neural memory: an inner model that learns with momentum and forgets.

use fwp_sdk::prelude::*;

config! {
    /// Titans: the gradient of a reconstruction loss, with momentum, moves weights that fade.
    ///
    ///     U_t = eta_t U_{t-1} - theta_t dL/dM (M_{t-1}),     L(M) = |M(k_t) - v_t|^2
    ///     M_t = (1 - alpha_t) M_{t-1} + U_t,     o_t = M_t(q_t)
    ///
    /// where M is a matrix W [d_v, d_k] at depth 1, and W_2 silu(W_1 x) with W_1 [h d_k, d_k], W_2 [d_v, h d_k] at depth 2,
    /// whose initial values are trained for every head; U the momentum of every weight, 0 at the start;
    /// k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// alpha, eta, theta [] forgetting, momentum and learning rate, sigmoids of the slow net's signals, theta times rate.
    /// There is no canonical form: at depth 1 the step is affine in W and U together, which a form of one state cannot say;
    /// at depth 2 it is not affine.
    pub struct Titans {
        /// Layers of the memory.
        depth: usize = 1,
        /// Hidden features for every feature of a key at depth 2, h.
        hidden_factor: usize = 4,
        /// Factor of the learning rate.
        rate: f64 = 1.0,
    }
    validate(me) {
        if !(1..=2).contains(&me.depth) { return Err("`depth`: expected 1 or 2".into()); }
        if me.hidden_factor == 0 { return Err("`hidden_factor`: expected a number from 1".into()); }
        Ok(())
    }
}

impl Titans {
    /// Weights and their momenta.
    fn names(&self) -> &[(&str, &str)] {
        if self.depth == 1 { &[("w", "u")] } else { &[("w1", "u1"), ("w2", "u2")] }
    }
    fn model(x: &Expr, weights: &[Expr]) -> Expr {
        match weights {
            [w] => w.matvec(x),
            [w1, w2, ..] => w2.matvec(w1.matvec(x).silu()),
            [] => x.clone(),
        }
    }
}

impl UpdateRule for Titans {
    const NAME: &'static str = "titans";
    const CITATION: &'static str = "Behrouz, Zhong, Mirrokni 2024, arXiv 2501.00663";
    const OBJECTIVE: &'static str = "|M(k) - v|^2, gradient descent of rate theta with momentum eta and weight decay alpha";

    fn signature(&self, dims: Dims) -> Signature {
        let hidden = self.hidden_factor * dims.key;
        let shapes = if self.depth == 1 { vec![[dims.value, dims.key]] } else { vec![[hidden, dims.key], [dims.value, hidden]] };
        let signature = Signature::new(dims).signal("alpha", []).signal("eta", []).signal("theta", []);
        self.names().iter().zip(shapes).fold(signature, |signature, ((w, u), shape)| {
            signature.state(w, shape, StateStart::Trained(Init::normal(0.02))).state(u, shape, StateStart::Zeros)
        })
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let weights: Vec<Expr> = self.names().iter().map(|(w, _)| s.state(w)).collect();
        let loss = (Titans::model(&k, &weights) - v).norm_squared();
        let (kept, eta) = (1 - s.signal("alpha").sigmoid(), s.signal("eta").sigmoid());
        let theta = self.rate * s.signal("theta").sigmoid();
        let mut now = Vec::new();
        for (((w, u), old), gradient) in
            self.names().iter().zip(&weights).zip(loss.gradients(&weights.iter().collect::<Vec<_>>()))
        {
            let momentum = &eta * s.state(u) - &theta * gradient;
            now.push(&kept * old + &momentum);
            s.set_state(w, &now[now.len() - 1]);
            s.set_state(u, momentum);
        }
        s.output(Titans::model(&q, &now));
    }
}

fwp_sdk::export! { update_rules: [Titans] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::{Value, json};
    use fwp_sdk::testing;

    use super::*;

    fn describe(config: Value) -> Result<String, String> {
        testing::rule::<Titans>(config, testing::DIMS).map(|p| testing::signature(&p))
    }

    #[test]
    fn every_weight_has_a_momentum_and_trained_initial_values() {
        let inputs = "query q [7], key k [7], value v [3], signal alpha [], signal eta [], signal theta []";
        let wanted = "state w [3, 7], state u [3, 7]; parameter w_0 [3, 7]";
        assert_eq!(describe(json!({})).unwrap(), format!("{inputs}; {wanted}"));
        let wanted = "state w1 [14, 7], state u1 [14, 7], state w2 [3, 14], state u2 [3, 14]; parameter w1_0 [14, 7], parameter w2_0 [3, 14]";
        assert_eq!(describe(json!({ "depth": 2, "hidden_factor": 2 })).unwrap(), format!("{inputs}; {wanted}"));
    }

    #[test]
    fn configuration_is_refused_by_name() {
        assert!(describe(json!({ "depth": 3 })).unwrap_err().contains("`depth`"));
        assert!(describe(json!({ "hidden_factor": 0 })).unwrap_err().contains("`hidden_factor`"));
    }
}
