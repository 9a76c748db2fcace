//! Mamba-2: the additive rule with a decay that its own step size makes.

use fwp_sdk::prelude::*;

config! {
    /// State-space duality: a step size says at once how much is written and how much is forgotten.
    ///
    ///     Delta_t = softplus(dt_t + dt_bias),     alpha_t = e^(-Delta_t e^a_log)
    ///     S_t = alpha_t S_{t-1} + (Delta_t x_t) b_t^T,     y_t = S_t c_t + d x_t
    ///
    /// where S [d_v, d_k] state; b, c [d_k] key and query after the feature map, each shared by a group of heads;
    /// x, y [d_v] value and output; dt [] the slow net's signal; Delta, alpha [] step size and decay in (0, 1);
    /// a_log, dt_bias, d [] trained for every head.
    /// Canonical form: transition alpha, one outer product Delta x b^T.
    pub struct Mamba2 {
        /// Number of keys and queries; each serves as many heads as the others.
        groups: usize = 1,
    }
    validate(me) {
        if me.groups == 0 { return Err("`groups`: expected a number from 1 that divides the number of heads".into()); }
        Ok(())
    }
}

/// Step sizes and rates that a head begins with.
const STEP_SIZES: (f64, f64) = (1e-3, 1e-1);
const RATES: (f64, f64) = (1.0, 16.0);

impl Mamba2 {
    /// Step size, decay and the read with the skip connection from x.
    fn read(s: &Step, state: Expr) {
        s.output(state.matvec(s.input("c")) + s.parameter("d") * s.input("x"));
        s.set_state("s", state);
    }
    fn step_size_and_decay(s: &Step) -> (Expr, Expr) {
        let dt = (s.signal("dt") + s.parameter("dt_bias")).softplus();
        let alpha = (-&dt * s.parameter("a_log").exp()).exp();
        (dt, alpha)
    }
}

impl UpdateRule for Mamba2 {
    const NAME: &'static str = "mamba2";
    const CITATION: &'static str = "Dao, Gu 2024, arXiv 2405.21060";
    const OBJECTIVE: &'static str = "-Delta <S b, x> + (1 - alpha)/2 |S|^2, one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        if !dims.heads.is_multiple_of(self.groups) {
            refuse(format!("`groups`: {} does not divide the {} heads", self.groups, dims.heads));
        }
        Signature::without_inputs(dims)
            .query("c", [dims.key])
            .heads(self.groups)
            .key("b", [dims.key])
            .heads(self.groups)
            .value("x", [dims.value])
            .signal("dt", [])
            .state("s", [dims.value, dims.key], StateStart::Zeros)
            .parameter("dt_bias", [], Init::step_sizes(STEP_SIZES.0, STEP_SIZES.1))
            .no_decay()
            .parameter("a_log", [], Init::log_of_uniform(RATES.0, RATES.1))
            .no_decay()
            .parameter("d", [], Init::ones())
            .no_decay()
    }

    fn step(&self, s: &mut Step) {
        let (dt, alpha) = Mamba2::step_size_and_decay(s);
        Mamba2::read(s, alpha * s.state("s") + outer(dt * s.input("x"), s.input("b")));
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (dt, alpha) = Mamba2::step_size_and_decay(s);
        let w = s.state("s");
        let loss = 0.5 * (1 - alpha) * w.norm_squared() - dt * w.matvec(s.input("b")).dot(s.input("x"));
        Mamba2::read(s, &w - loss.gradient(&w));
    }
}

fwp_sdk::export! { update_rules: [Mamba2] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn keys_and_queries_are_shared_by_groups_that_divide_the_heads() {
        for groups in [1, 2] {
            let program = testing::rule::<Mamba2>(json!({ "groups": groups }), testing::DIMS).unwrap();
            let wanted = format!(
                "query c [7] for {groups} heads, key b [7] for {groups} heads, value x [3], signal dt []; state s [3, 7]; \
                 parameter dt_bias [] no decay, parameter a_log [] no decay, parameter d [] no decay"
            );
            assert_eq!(testing::signature(&program), wanted);
        }
        for groups in [0, 3] {
            assert!(testing::rule::<Mamba2>(json!({ "groups": groups }), testing::DIMS).unwrap_err().contains("`groups`"));
        }
    }
}
