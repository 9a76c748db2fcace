//! Test-time training: the fast weights are an inner model that learns by gradient descent on mini-batches of tokens.

use fwp_sdk::prelude::*;

config! {
    /// TTT-Linear: a linear inner model with layer norm learns to make values of keys, a batch of tokens at a time.
    ///
    ///     f(x; W, b) = x + gain * LN(W x + b) + bias
    ///     W_t = W_s - sum over s < i <= t of r_i dL_i/dW (W_s, b_s),     L_i(W, b) = |f(k_i; W, b) - v_i|^2,     the same for b
    ///     o_t = f(q_t; W_t, b_t)
    ///
    /// where W [d, d], b [d] fast weights, s the last step that ended a batch; k, q, v, o [d] key and query after the feature map,
    /// value and output, with d_k = d_v = d; r [] learning rate, rate / d times the sigmoid of the slow net's signal eta;
    /// W_0, b_0 and gain, bias [d] trained for every head.
    /// All gradients of a batch are taken at the weights that it began with, and the weights are held for so long;
    /// within a batch the step is a sum of outer products, whose errors depend on the held weights through layer norm.
    /// There is no canonical form, because a form is affine in the weights.
    pub struct TttLinear {
        /// Factor of the learning rate.
        rate: f64 = 1.0,
        /// Tokens a batch.
        batch: usize = 16,
        /// Added to the variance under the root.
        norm_eps: f64 = 1e-6,
    }
    validate(me) { valid(me.batch, me.norm_eps) }
}

config! {
    /// TTT-MLP: an inner model of two layers with layer norm learns to make values of keys, a batch of tokens at a time.
    ///
    ///     f(x; P) = x + gain * LN(W_2 gelu(W_1 x + b_1) + b_2) + bias
    ///     P_t = P_s - sum over s < i <= t of r_i dL_i/dP (P_s),     L_i(P) = |f(k_i; P) - v_i|^2,     o_t = f(q_t; P_t)
    ///
    /// where P are the fast weights W_1 [h d, d], b_1 [h d], W_2 [d, h d], b_2 [d], and s the last step that ended a batch;
    /// k, q, v, o [d] key and query after the feature map, value and output, with d_k = d_v = d;
    /// r [] learning rate, rate / d times the sigmoid of the slow net's signal eta; P_0 and gain, bias [d] trained for every head.
    /// There is no canonical form: the inner model is not affine in its weights.
    pub struct TttMlp {
        /// Hidden features for every feature of a key, h.
        hidden_factor: usize = 4,
        /// Factor of the learning rate.
        rate: f64 = 1.0,
        /// Tokens a batch.
        batch: usize = 16,
        /// Added to the variance under the root.
        norm_eps: f64 = 1e-6,
    }
    validate(me) {
        if me.hidden_factor == 0 { return Err("`hidden_factor`: expected a number from 1".into()); }
        valid(me.batch, me.norm_eps)
    }
}

fn valid(batch: usize, norm_eps: f64) -> Result<(), String> {
    if batch == 0 {
        return Err("`batch`: expected a number from 1".into());
    }
    if norm_eps <= 0.0 {
        return Err("`norm_eps`: expected a number above 0".into());
    }
    Ok(())
}

/// What both declare beside the layers of their models.
fn signature(dims: Dims) -> Signature {
    if dims.key != dims.value {
        refuse(format!("the inner model maps keys to values, so both need one size, not {} and {}", dims.key, dims.value));
    }
    Signature::new(dims)
        .signal("eta", [])
        .parameter("gain", [dims.value], Init::ones())
        .no_decay()
        .parameter("bias", [dims.value], Init::zeros())
        .no_decay()
}

/// A matrix `w` and a vector `b` of an inner model, held for a batch, and the sums of their gradients in it.
fn layer(signature: Signature, w: &str, b: &str, [rows, columns]: [usize; 2], batch: usize) -> Signature {
    signature
        .state(w, [rows, columns], StateStart::Trained(Init::normal(0.02)))
        .held(batch)
        .state(b, [rows], StateStart::Trained(Init::zeros()))
        .held(batch)
        .state(&sum(w), [rows, columns], StateStart::Zeros)
        .state(&sum(b), [rows], StateStart::Zeros)
}

/// Name of the state that sums the gradients of another.
fn sum(name: &str) -> String {
    format!("acc_{name}")
}

/// One step: the gradients of this token are summed, and the query is read with the weights that follow from the sums.
fn learn(s: &Step, weights: &[&str], rate: f64, batch: usize, eps: f64, model: impl Fn(&Expr, &[Expr]) -> Expr) {
    let (q, k, v) = s.query_key_value();
    let f = |x: &Expr, w: &[Expr]| x + s.parameter("gain") * model(x, w).layer_norm(eps) + s.parameter("bias");
    let held: Vec<Expr> = weights.iter().map(|w| s.state(w)).collect();
    let rate = rate / k.shape()[0] as f64 * s.signal("eta").sigmoid();
    let loss = rate * (f(&k, &held) - v).norm_squared();
    let ends = s.index().rem(batch as i64).equal(batch as i64 - 1);
    let mut now = Vec::new();
    for ((name, held), gradient) in weights.iter().zip(&held).zip(loss.gradients(&held.iter().collect::<Vec<_>>())) {
        let total = s.state(&sum(name)) + gradient;
        now.push(held - &total);
        s.set_state(name, held - &total);
        s.set_state(&sum(name), ends.select(0, total));
    }
    s.output(f(&q, &now));
}

impl UpdateRule for TttLinear {
    const NAME: &'static str = "ttt-linear";
    const CITATION: &'static str = "Sun et al. 2024, arXiv 2407.04620";
    const OBJECTIVE: &'static str = "|f(k) - v|^2, gradient steps of size r at the weights that the batch began with";

    fn signature(&self, dims: Dims) -> Signature {
        layer(signature(dims), "w", "b", [dims.value, dims.key], self.batch)
    }

    fn step(&self, s: &mut Step) {
        learn(s, &["w", "b"], self.rate, self.batch, self.norm_eps, |x, p| p[0].matvec(x) + &p[1]);
    }
}

impl UpdateRule for TttMlp {
    const NAME: &'static str = "ttt-mlp";
    const CITATION: &'static str = "Sun et al. 2024, arXiv 2407.04620";
    const OBJECTIVE: &'static str = "|f(k) - v|^2, gradient steps of size r at the weights that the batch began with";

    fn signature(&self, dims: Dims) -> Signature {
        let hidden = self.hidden_factor * dims.key;
        let first = layer(signature(dims), "w1", "b1", [hidden, dims.key], self.batch);
        layer(first, "w2", "b2", [dims.value, hidden], self.batch)
    }

    fn step(&self, s: &mut Step) {
        learn(s, &["w1", "b1", "w2", "b2"], self.rate, self.batch, self.norm_eps, |x, p| {
            p[2].matvec((p[0].matvec(x) + &p[1]).gelu()) + &p[3]
        });
    }
}

fwp_sdk::export! { update_rules: [TttLinear, TttMlp] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    const SQUARE: Dims = Dims { value: 7, ..testing::DIMS };

    #[test]
    fn weights_are_held_for_a_batch_and_sums_are_not() {
        let linear = testing::rule::<TttLinear>(json!({ "batch": 4 }), SQUARE).unwrap();
        let wanted = "query q [7], key k [7], value v [7], signal eta []; \
                      state w [7, 7] held 4, state b [7] held 4, state acc_w [7, 7], state acc_b [7]; \
                      parameter w_0 [7, 7], parameter b_0 [7], parameter gain [7] no decay, parameter bias [7] no decay";
        assert_eq!(testing::signature(&linear), wanted);
        let mlp = testing::rule::<TttMlp>(json!({ "hidden_factor": 2 }), SQUARE).unwrap();
        let shapes: Vec<&[usize]> = mlp.states.iter().map(|s| &s.shape[..]).collect();
        let layers: [&[usize]; 8] = [&[14, 7], &[14], &[14, 7], &[14], &[7, 14], &[7], &[7, 14], &[7]];
        assert_eq!(shapes, layers);
    }

    #[test]
    fn keys_and_values_of_two_sizes_and_empty_batches_are_refused() {
        assert!(testing::rule::<TttLinear>(json!({}), testing::DIMS).unwrap_err().contains("not 7 and 3"));
        for (config, key) in [(json!({ "batch": 0 }), "`batch`"), (json!({ "hidden_factor": 0 }), "`hidden_factor`")] {
            assert!(testing::rule::<TttMlp>(config, SQUARE).unwrap_err().contains(key));
        }
    }
}
