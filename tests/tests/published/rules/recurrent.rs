//! Rules that read their own last output, or change themselves.

use crate::dual::{Dual, Matrix, Vector, minus, plus, scaled, softmax};
use crate::oracle::{Head, Rule, Sizes};

/// The delta rule on one matrix among the states.
fn written(w: &Matrix, beta: Dual, k: &[Dual], v: &[Dual]) -> Matrix {
    w.plus(&Matrix::outer(&scaled(beta, &minus(v, &w.of(k))), k))
}

/// Irie et al. 2021, Delta RNN v2: `o_t = W_t q + R_t softmax(o_{t-1})`, W and R written by the delta rule, R with softmax keys.
pub fn delta_rnn(n: &Sizes) -> Rule {
    let rule = Rule::new("delta-rnn", n).input(n, "k_r", [n.value]).input(n, "v_r", [n.value]);
    let rule = rule.input(n, "beta", []).input(n, "beta_r", []);
    rule.state("w", [n.value, n.key]).state("r", [n.value, n.value]).state("y", [n.value]).step(|x| {
        let (q, k, v) = x.qkv();
        let w = written(&x.matrix("w"), x.scalar("beta").sigmoid(), &k, &v);
        let r = written(&x.matrix("r"), x.scalar("beta_r").sigmoid(), &softmax(&x.vector("k_r")), &x.vector("v_r"));
        let y = plus(&w.of(&q), &r.of(&softmax(&x.vector("y"))));
        x.set_matrix("w", w);
        x.set_matrix("r", r);
        x.set_vector("y", y.clone());
        y
    })
}

/// Irie et al. 2021, Delta LSTM v4.
///
///     z_g = W_g q_g + R_g softmax(h_{t-1})  for g = i, u, o, all W and R written by the delta rule, R with softmax keys
///     c_t = sigmoid(z_i) .* z_u + (1 - sigmoid(z_i)) .* c_{t-1},   h_t = sigmoid(z_o) .* c_t
pub fn delta_lstm(n: &Sizes) -> Rule {
    let mut rule = Rule::bare("delta-lstm", n).option(&format!("--key-dim {} --value-dim {}", n.key, n.value));
    for g in ["i", "u", "o"] {
        let name = |what: &str| format!("{what}_{g}");
        rule = rule.input(n, &name("q"), [n.key]).input(n, &name("k"), [n.key]).input(n, &name("v"), [n.value]);
        rule = rule.input(n, &name("kr"), [n.value]).input(n, &name("vr"), [n.value]);
        rule = rule.input(n, &name("beta"), []).input(n, &name("betar"), []);
        rule = rule.state(&name("w"), [n.value, n.key]).state(&name("r"), [n.value, n.value]);
    }
    rule.state("h", [n.value]).state("c", [n.value]).step(|x| {
        let s = softmax(&x.vector("h"));
        let gate = |x: &mut Head, g: &str| -> Vector {
            let name = |what: &str| format!("{what}_{g}");
            let w =
                written(&x.matrix(&name("w")), x.scalar(&name("beta")).sigmoid(), &x.vector(&name("k")), &x.vector(&name("v")));
            let r = written(
                &x.matrix(&name("r")),
                x.scalar(&name("betar")).sigmoid(),
                &softmax(&x.vector(&name("kr"))),
                &x.vector(&name("vr")),
            );
            let z = plus(&w.of(&x.vector(&name("q"))), &r.of(&s));
            x.set_matrix(&name("w"), w);
            x.set_matrix(&name("r"), r);
            z
        };
        let (i, u, o) = (gate(x, "i"), gate(x, "u"), gate(x, "o"));
        let old = x.vector("c");
        let c: Vector = (0..u.len()).map(|j| i[j].sigmoid() * u[j] + (1.0 - i[j].sigmoid()) * old[j]).collect();
        let h: Vector = (0..u.len()).map(|j| o[j].sigmoid() * c[j]).collect();
        x.set_vector("c", c);
        x.set_vector("h", h.clone());
        h
    })
}

/// Irie et al. 2022: `[y, q, k, b] = W_{t-1} x`; each part i of W: `W_i <- W_i + sigmoid(b_i) (W_i q - W_i k) k^T`, with q and k
/// through a softmax.
pub fn srwm(n: &Sizes, input_softmax: bool) -> Rule {
    let d = n.value;
    let rule = Rule::bare("srwm", n).set("input_softmax", input_softmax);
    let rule = rule.option(&format!("--key-dim {d} --value-dim {d}"));
    let rule = rule.input(n, "x", [d]).parameter("w_0", [3 * d + 4, d]).state("w", [3 * d + 4, d]);
    rule.start(|x| x.set_matrix("w", x.matrix("w_0"))).step(move |x| {
        let input = if input_softmax { softmax(&x.vector("x")) } else { x.vector("x") };
        let w = x.matrix("w");
        let said = w.of(&input);
        let (q, k) = (softmax(&said[d..2 * d]), softmax(&said[2 * d..3 * d]));
        let parts = [(0, d), (d, 2 * d), (2 * d, 3 * d), (3 * d, 3 * d + 4)];
        let mut new = Vec::new();
        for (i, (from, to)) in parts.into_iter().enumerate() {
            let (part, rate) = (w.part(from, to), said[3 * d + i].sigmoid());
            new.extend(part.plus(&Matrix::outer(&minus(&part.of(&q), &part.of(&k)), &k).scaled(rate)).data);
        }
        x.set_matrix("w", Matrix { data: new, ..w });
        said[..d].to_vec()
    })
}
