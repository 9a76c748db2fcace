//! Longhorn: the delta rule as an implicit step.

use fwp_sdk::prelude::*;

choices! {
    /// How many write strengths there are.
    pub enum WriteStrength {
        /// One for every element of a value
        Vector = "vector",
        /// One for all of them
        Scalar = "scalar",
    }
}

config! {
    /// Longhorn: the fast weights nearest to the old ones that store the value, as far as the write strength asks for it.
    ///
    ///     W_t = argmin over S of |S - W_{t-1}|^2 + sum over i of beta_ti ((S k_t)_i - v_ti)^2
    ///         = W_{t-1} + (e_t * (v_t - W_{t-1} k_t)) k_t^T,     e_t = beta_t / (1 + beta_t |k_t|^2),     o_t = W_t q_t
    ///
    /// where W [d_v, d_k] fast weights; k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// beta, e [d_v] or [] write strengths, beta the sigmoid of the slow net's signal.
    /// Canonical form with one strength: transition I - e k k^T from the right, one outer product e v k^T.
    /// With a strength for every element of a value every row has a transition of its own, so steps have to be walked.
    pub struct Longhorn {
        /// How many write strengths there are.
        write_strength: WriteStrength = WriteStrength::Vector,
    }
}

impl Longhorn {
    fn read(s: &Step, w: Expr) {
        s.output(w.matvec(s.input("q")));
        s.set_state("w", w);
    }
}

impl UpdateRule for Longhorn {
    const NAME: &'static str = "longhorn";
    const CITATION: &'static str = "Liu et al. 2024, arXiv 2407.14207";
    const OBJECTIVE: &'static str = "|S - W|^2 + sum over i of beta_i ((S k)_i - v_i)^2, solved for S";

    fn signature(&self, dims: Dims) -> Signature {
        let signature = Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros);
        match self.write_strength {
            WriteStrength::Vector => signature.signal("beta", [dims.value]),
            WriteStrength::Scalar => signature.signal("beta", []),
        }
    }

    fn step(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let (w, beta) = (s.state("w"), s.signal("beta").sigmoid());
        let e = &beta / (1 + &beta * k.norm_squared());
        Longhorn::read(s, &w + outer(e * (v - w.matvec(&k)), &k));
    }

    const RESTATED: bool = true;
    /// S = W - 1/2 gradient of the second part at S, whose read x = S k solves x = W k - beta (x - v) |k|^2.
    fn restated(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        let (w, beta) = (s.state("w"), s.signal("beta").sigmoid());
        let pull = &beta * k.norm_squared();
        let x = (w.matvec(&k) + &pull * &v) / (1 + pull);
        Longhorn::read(s, &w - outer(beta * (x - v), k));
    }
}

fwp_sdk::export! { update_rules: [Longhorn] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn there_is_a_strength_for_every_element_of_a_value_or_one_for_all() {
        for (write_strength, shape) in [("vector", "[3]"), ("scalar", "[]")] {
            let program = testing::rule::<Longhorn>(json!({ "write_strength": write_strength }), testing::DIMS).unwrap();
            let wanted = format!("query q [7], key k [7], value v [3], signal beta {shape}; state w [3, 7]");
            assert_eq!(testing::signature(&program), wanted);
        }
    }
}
