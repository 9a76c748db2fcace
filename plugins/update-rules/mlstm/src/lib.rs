//! The matrix memory of xLSTM.

use fwp_sdk::prelude::*;

choices! {
    /// How the forget gate is made from its signal.
    pub enum Forget {
        /// 1 / (1 + e^-x)
        Sigmoid = "sigmoid",
        /// e^x
        Exp = "exp",
    }
}

config! {
    /// mLSTM: an exponential input gate, a forget gate, a normaliser, and a running maximum that keeps the exponentials small.
    ///
    ///     m_t = max(log f_t + m_{t-1}, i_t),     i'_t = e^(i_t - m_t),     f'_t = e^(log f_t + m_{t-1} - m_t)
    ///     C_t = f'_t C_{t-1} + i'_t v_t k_t^T,     n_t = f'_t n_{t-1} + i'_t k_t
    ///     o_t = C_t q_t / max(|<n_t, q_t>|, e^(-m_t))
    ///
    /// where C [d_v, d_k] fast weights; n [d_k] sum of the keys; m [] logarithm of the scale of both, 0 at the start;
    /// k, q [d_k] key and query after the feature map; v, o [d_v] value and output; i, f [] the slow net's signals,
    /// of which e^i is the input gate and the sigmoid of f (or e^f) the forget gate.
    /// The same as C_t = f C_{t-1} + e^i v k^T, n_t = f n_{t-1} + e^i k, o_t = C_t q / max(|<n_t, q>|, 1), where nothing overflows.
    /// Canonical form: transition f' for C and n, one outer product i' v k^T (and i' k into n); m is walked.
    pub struct Mlstm {
        /// How the forget gate is made from its signal.
        forget: Forget = Forget::Sigmoid,
    }
}

impl Mlstm {
    /// One step, where `write` makes the new fast weights of the old ones and the gates i' and f'.
    fn gated(&self, s: &Step, write: impl Fn(Expr, &Expr, &Expr) -> Expr) {
        let (q, k, _) = s.query_key_value();
        let log_f = match self.forget {
            Forget::Sigmoid => s.signal("f").log_sigmoid(),
            Forget::Exp => s.signal("f"),
        };
        let kept = log_f + s.state("m");
        let m = kept.max(s.signal("i"));
        let (i, f) = ((s.signal("i") - &m).exp(), (kept - &m).exp());
        let c = write(s.state("c"), &i, &f);
        let n = f * s.state("n") + i * k;
        s.output(c.matvec(&q) / n.dot(&q).abs().max((-&m).exp()));
        s.set_state("c", c);
        s.set_state("n", n);
        s.set_state("m", m);
    }
}

impl UpdateRule for Mlstm {
    const NAME: &'static str = "mlstm";
    const CITATION: &'static str = "Beck et al. 2024, arXiv 2405.04517";
    const OBJECTIVE: &'static str = "-i' <C k, v> + (1 - f')/2 |C|^2, one gradient step of size 1";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims)
            .signal("i", [])
            .signal("f", [])
            .state("c", [dims.value, dims.key], StateStart::Zeros)
            .state("n", [dims.key], StateStart::Zeros)
            .state("m", [], StateStart::Zeros)
    }

    fn step(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        self.gated(s, |c, i, f| f * c + i * outer(&v, &k));
    }

    const RESTATED: bool = true;
    fn restated(&self, s: &mut Step) {
        let (_, k, v) = s.query_key_value();
        self.gated(s, |c, i, f| {
            let loss = 0.5 * (1 - f) * c.norm_squared() - i * c.matvec(&k).dot(&v);
            &c - loss.gradient(&c)
        });
    }
}

fwp_sdk::export! { update_rules: [Mlstm] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn the_forget_gate_is_a_sigmoid_or_an_exponential() {
        for (forget, sigmoids) in [("sigmoid", 1), ("exp", 0)] {
            let program = testing::rule::<Mlstm>(json!({ "forget": forget }), testing::DIMS).unwrap();
            let wanted = "query q [7], key k [7], value v [3], signal i [], signal f []; state c [3, 7], state n [7], state m []";
            assert_eq!(testing::signature(&program), wanted);
            let step = program.entry("step").unwrap();
            assert_eq!(step.nodes.iter().filter(|n| n.op == Op::LogSigmoid).count(), sigmoids);
        }
    }
}
