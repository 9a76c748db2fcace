//! Rules that let old values fade, at rates given by numbers, features or slots.

use crate::dual::{Dual, Matrix, Vector, dot, map, plus, scaled, softmax, sum, times};
use crate::oracle::{Rule, Sizes};

/// Sun et al. 2023: `W_t = gamma W_{t-1} + v k^T`, where head h has `gamma = 1 - 2^(-5-h)`.
pub fn retnet(n: &Sizes) -> Rule {
    let rule = Rule::new("retnet", n).parameter("gamma", []).between("gamma", 0.5, 1.0).state("w", [n.value, n.key]);
    let rule = rule.start(|x| x.set_scalar("gamma", Dual::from(1.0 - 0.5_f64.powi(5 + x.head as i32))));
    rule.step(|x| {
        let (q, k, v) = x.qkv();
        let w = x.matrix("w").scaled(x.scalar("gamma")).plus(&Matrix::outer(&v, &k));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// Dao and Gu 2024; `b` is the key, `c` the query and `x` the value.
///
///     S_t = alpha S_{t-1} + (dt x) b^T,   o = S_t c + d x,   dt = softplus(dt + dt_bias),   alpha = exp(-dt exp(a_log))
pub fn mamba2(n: &Sizes, groups: usize) -> Rule {
    let rule = Rule::bare("mamba2", n).set("groups", groups).option(&format!("--key-dim {} --value-dim {}", n.key, n.value));
    let rule = rule.grouped(groups, "c", [n.key]).grouped(groups, "b", [n.key]).input(n, "x", [n.value]).input(n, "dt", []);
    let rule = rule.parameter("dt_bias", []).parameter("a_log", []).parameter("d", []).state("s", [n.value, n.key]);
    rule.step(|x| {
        let (c, b, value) = (x.vector("c"), x.vector("b"), x.vector("x"));
        let dt = x.activated("dt", |dt| (dt + x.scalar("dt_bias")).softplus());
        let alpha = (-dt * x.scalar("a_log").exp()).exp();
        let s = x.matrix("s").scaled(alpha).plus(&Matrix::outer(&scaled(dt, &value), &b));
        let o = plus(&s.of(&c), &scaled(x.scalar("d"), &value));
        x.set_matrix("s", s);
        o
    })
}

/// Beck et al. 2024, in the form without stabiliser; the states of the file are those divided by e^m.
///
///     C_t = f C_{t-1} + e^i v k^T,   n_t = f n_{t-1} + e^i k,   h = C_t q / max(|<n_t, q>|, 1)
///     m_t = max(log f + m_{t-1}, i)
pub fn mlstm(n: &Sizes, forget: &'static str) -> Rule {
    let rule = Rule::new("mlstm", n).set("forget", forget).input(n, "i", []).input(n, "f", []).between("i", -2.0, 2.0);
    rule.state("c", [n.value, n.key]).state("n", [n.key]).state("m", []).step(move |x| {
        let (q, k, v) = x.qkv();
        let f = if forget == "sigmoid" { x.scalar("f").sigmoid() } else { x.scalar("f").exp() };
        let (i, m) = (x.scalar("i"), x.scalar("m"));
        let c = x.matrix("c").scaled(f * m.exp()).plus(&Matrix::outer(&v, &k).scaled(i.exp()));
        let n = plus(&scaled(f * m.exp(), &x.vector("n")), &scaled(i.exp(), &k));
        let h = scaled(1.0 / dot(&n, &q).abs().max(Dual::ONE), &c.of(&q));
        let m = (f.ln() + m).max(i);
        x.set_matrix("c", c.scaled((-m).exp()));
        x.set_vector("n", scaled((-m).exp(), &n));
        x.set_scalar("m", m);
        h
    })
}

/// Yang et al. 2023: `W_t = W_{t-1} Diag(a) + v k^T`, `a = sigmoid(.)^(1/temperature)`.
pub fn gla(n: &Sizes, temperature: f64) -> Rule {
    let rule = Rule::new("gla", n).set("temperature", temperature).input(n, "a", [n.key]).state("w", [n.value, n.key]);
    rule.step(move |x| {
        let (q, k, v) = x.qkv();
        let a = x.all_activated("a", |_, a| a.sigmoid().powf(1.0 / temperature));
        let w = x.matrix("w").columns_scaled(&a).plus(&Matrix::outer(&v, &k));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// Qin et al. 2024: `W_t = W_{t-1} Diag(f) + v (1-f)^T`, where the lower bound of `f` in layer l is the sum over layers 2 to l
/// of the softmax over all layers (Qin et al. 2023, HGRN).
pub fn hgrn2(n: &Sizes, layers: usize, layer: usize) -> Rule {
    let rule = Rule::bare("hgrn2", n).option(&format!("--layers {layers} --layer {layer}"));
    let rule = rule.input(n, "q", [n.key]).input(n, "v", [n.value]).input(n, "f", [n.key]);
    rule.shared("bounds", [layers, n.key]).state("w", [n.value, n.key]).step(move |x| {
        let (q, v, bounds) = (x.vector("q"), x.vector("v"), x.matrix("bounds"));
        let f: Vector = (0..q.len())
            .map(|j| {
                let shares = softmax(&(0..layers).map(|l| bounds[(l, j)]).collect::<Vector>());
                let low = sum(&shares[1..layer + 1]);
                low + (1.0 - low) * x.vector("f")[j].sigmoid()
            })
            .collect();
        let w = x.matrix("w").columns_scaled(&f).plus(&Matrix::outer(&v, &map(&f, |f| 1.0 - f)));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// Peng et al. 2024: `o = (W_{t-1} + v (u .* k)^T) q`, then `W_t = W_{t-1} Diag(exp(-exp(decay))) + v k^T`.
pub fn rwkv6(n: &Sizes) -> Rule {
    let rule = Rule::new("rwkv6", n).input(n, "decay", [n.key]).parameter("u", [n.key]).state("w", [n.value, n.key]);
    rule.step(|x| {
        let (q, k, v) = x.qkv();
        let w = x.matrix("w");
        let o = w.plus(&Matrix::outer(&v, &times(&x.vector("u"), &k))).of(&q);
        let a = x.all_activated("decay", |_, d| (-d.exp()).exp());
        x.set_matrix("w", w.columns_scaled(&a).plus(&Matrix::outer(&v, &k)));
        o
    })
}

/// Zhang et al. 2024: slots of keys K and values V.
///
///     K_t = Diag(a) K_{t-1} + (1-a) k^T,   V_t = Diag(a) V_{t-1} + (1-a) v^T,   o = V_t^T softmax(K_t q),   a = sigmoid(.)^(1/8)
pub fn gsa(n: &Sizes, slots: usize, temperature: f64) -> Rule {
    let rule = Rule::new("gsa", n).set("slots", slots).set("temperature", temperature).input(n, "alpha", [slots]);
    rule.state("k_mem", [slots, n.key]).state("v_mem", [slots, n.value]).step(move |x| {
        let (q, k, v) = x.qkv();
        let a = map(&x.vector("alpha"), |a| a.sigmoid().powf(1.0 / temperature));
        let new = map(&a, |a| 1.0 - a);
        let keys = x.matrix("k_mem").rows_scaled(&a).plus(&Matrix::outer(&new, &k));
        let values = x.matrix("v_mem").rows_scaled(&a).plus(&Matrix::outer(&new, &v));
        let o = values.transposed_of(&softmax(&keys.of(&q)));
        x.set_matrix("k_mem", keys);
        x.set_matrix("v_mem", values);
        o
    })
}

/// Guo et al. 2025: the tokens before t = 0, 1, ... lie in buckets of sizes that are powers of two, each with a state.
///
///     S^0_t = v k^T;   with l the place of the lowest set bit of t:   S^(l+1)_t = alpha sum_{j <= l} S^j_{t-1},
///     S^j_t = 0 for 0 < j <= l and alpha S^j_{t-1} for j > l + 1;   o = sum_j lambda_j S^j_t q
///
/// What is older than all tokens or than `max_len` tokens is in the last level.
pub fn log_linear(n: &Sizes, max_len: usize) -> Rule {
    // The paper's number of levels, ceil(log2(t + 1) + 1) for the last token, which is t = T - 1.
    let levels = max_len.next_power_of_two().trailing_zeros() as usize + 1;
    let rule = Rule::new("log-linear", n).option(&format!("--max-len {max_len}"));
    let rule = rule.input(n, "lambda", [levels]).input(n, "alpha", []).state("s", [levels, n.value, n.key]);
    rule.step(move |x| {
        let (q, k, v) = x.qkv();
        let alpha = x.scalar("alpha").sigmoid();
        let mut s: Vec<Matrix> = x.stack("s").iter().map(|s| s.scaled(alpha)).collect();
        let last = levels - 1;
        let into = if x.t == 0 { last } else { last.min(x.t.trailing_zeros() as usize + 1) };
        let empty = Matrix::zeros(v.len(), k.len());
        let sum = s[..=into].iter().fold(empty.clone(), |sum, s| sum.plus(s));
        s[..into].iter_mut().for_each(|s| *s = empty.clone());
        s[into] = sum;
        s[0] = s[0].plus(&Matrix::outer(&v, &k));
        let lambda = map(&x.vector("lambda"), Dual::softplus);
        let parts = s.iter().zip(&lambda).map(|(s, lambda)| scaled(*lambda, &s.of(&q)));
        let o = parts.reduce(|a, b| plus(&a, &b)).expect("a level");
        x.set_stack("s", s);
        o
    })
}
