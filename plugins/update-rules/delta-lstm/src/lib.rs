//! The Delta LSTM: an LSTM whose weights are fast weights.

use fwp_sdk::prelude::*;

config! {
    /// Delta LSTM: for input gate, update and output gate a matrix that reads the input and one that reads the last output,
    /// all of them written by the delta rule. For each g of i, u, o
    ///
    ///     W^g_t = W^g_{t-1} + beta^g_t (v^g_t - W^g_{t-1} k^g_t) k^g_t^T
    ///     R^g_t = R^g_{t-1} + b^g_t (y^g_t - R^g_{t-1} x^g_t) x^g_t^T,     x^g_t = softmax(kr_g)
    ///     z^g_t = W^g_t q^g_t + R^g_t softmax(h_{t-1})
    ///
    /// and then
    ///
    ///     i_t = sigmoid(z^i_t),     c_t = i_t * z^u_t + (1 - i_t) * c_{t-1},     h_t = sigmoid(z^o_t) * c_t,     o_t = h_t
    ///
    /// where W [d_v, d_k] and R [d_v, d_v] fast weights; k, q [d_k] keys and queries after the feature map; v, y = vr_g [d_v] values;
    /// kr_g [d_v] keys of R; beta, b [] write strengths, the sigmoids of the signals `beta_g` and `betar_g`;
    /// h, c [d_v] output and cell.
    /// The last output enters a softmax, so there is no form that computes several steps at once.
    pub struct DeltaLstm {}
}

/// Input gate, update and output gate.
const GATES: [&str; 3] = ["i", "u", "o"];

impl UpdateRule for DeltaLstm {
    const NAME: &'static str = "delta-lstm";
    const CITATION: &'static str =
        "Irie, Schlag, Csordas, Schmidhuber 2021, arXiv 2106.06295, the fourth version of the authors' code";
    const OBJECTIVE: &'static str = "1/2 |W k - v|^2 and 1/2 |R x - y|^2 for each gate, one gradient step each of sizes beta and b; the recurrence itself minimises nothing";

    fn signature(&self, dims: Dims) -> Signature {
        let n = dims.value;
        let of_gate = |signature: Signature, g: &&str| {
            signature
                .query(&format!("q_{g}"), [dims.key])
                .key(&format!("k_{g}"), [dims.key])
                .value(&format!("v_{g}"), [n])
                .key(&format!("kr_{g}"), [n])
                .raw()
                .value(&format!("vr_{g}"), [n])
                .signal(&format!("beta_{g}"), [])
                .signal(&format!("betar_{g}"), [])
                .state(&format!("w_{g}"), [n, dims.key], StateStart::Zeros)
                .state(&format!("r_{g}"), [n, n], StateStart::Zeros)
        };
        GATES.iter().fold(Signature::without_inputs(dims), of_gate).state("h", [n], StateStart::Zeros).state(
            "c",
            [n],
            StateStart::Zeros,
        )
    }

    fn step(&self, s: &mut Step) {
        let written = |w: Expr, k: &Expr, v: Expr, beta: Expr| &w + beta.sigmoid() * outer(v - w.matvec(k), k);
        let last = s.state("h").softmax();
        let [i, u, o] = GATES.map(|g| {
            let input = |name: &str| s.input(&format!("{name}_{g}"));
            let [w, r] = ["w", "r"].map(|name| s.state(&format!("{name}_{g}")));
            let w = written(w, &input("k"), input("v"), input("beta"));
            let r = written(r, &input("kr").softmax(), input("vr"), input("betar"));
            let z = w.matvec(input("q")) + r.matvec(&last);
            s.set_state(&format!("w_{g}"), w);
            s.set_state(&format!("r_{g}"), r);
            z
        });
        let i = i.sigmoid();
        let c = &i * u + (1 - &i) * s.state("c");
        let h = o.sigmoid() * &c;
        s.output(&h);
        s.set_state("h", h);
        s.set_state("c", c);
    }
}

fwp_sdk::export! { update_rules: [DeltaLstm] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn every_gate_has_inputs_and_two_matrices_of_its_own() {
        let program = testing::rule::<DeltaLstm>(json!({}), testing::DIMS).unwrap();
        let inputs = ["i", "u", "o"].map(|g| {
            format!(
                "query q_{g} [7], key k_{g} [7], value v_{g} [3], raw key kr_{g} [3], value vr_{g} [3], signal beta_{g} [], signal betar_{g} []"
            )
        });
        let states = ["i", "u", "o"].map(|g| format!("state w_{g} [3, 7], state r_{g} [3, 3]"));
        let wanted = format!("{}; {}, state h [3], state c [3]", inputs.join(", "), states.join(", "));
        assert_eq!(testing::signature(&program), wanted);
    }
}
