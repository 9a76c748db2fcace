//! Rules that replace the value under a key.

use crate::dual::{Dual, Matrix, Vector, dot, map, minus, plus, scaled, standardised, times, unit};
use crate::oracle::{Head, Rule, Sizes};

/// Schlag et al. 2021, Eq. 20-25: `W_t = W_{t-1} + beta (v - W_{t-1} k) k^T`; with `scale` 2: Grazzi et al. 2024.
pub fn delta(n: &Sizes, scale: f64) -> Rule {
    let rule = Rule::new("delta", n).input(n, "beta", []).state("w", [n.value, n.key]);
    let rule = if scale == 1.0 { rule } else { rule.set("beta_scale", scale) };
    rule.step(move |x| {
        let (q, k, v) = x.qkv();
        let w = x.matrix("w");
        let change = scaled(x.activated("beta", |b| scale * b.sigmoid()), &minus(&v, &w.of(&k)));
        let w = w.plus(&Matrix::outer(&change, &k));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// Schlag et al. 2021, Eq. 26-28.
///
///     z_t = z_{t-1} + k,   vbar = W_{t-1} k / <z_{t-1}, k>  (0 at t = 1),   W_t = W_{t-1} + beta (v - vbar) k^T,
///     o = W_t q / (<z_t, q> + eps)
pub fn delta_normalised(n: &Sizes, eps: f64) -> Rule {
    let rule = Rule::new("delta", n).set("attention_normalisation", true).set("eps", eps);
    let rule = rule.input(n, "beta", []).state("w", [n.value, n.key]).state("z", [n.key]);
    let rule = ["q", "k", "z"].iter().fold(rule, |rule, name| rule.between(name, 0.1, 1.1));
    rule.step(move |x| {
        let (q, k, v) = x.qkv();
        let (w, z) = (x.matrix("w"), x.vector("z"));
        let similar = dot(&z, &k);
        let old = if similar.value == 0.0 { vec![Dual::ZERO; v.len()] } else { scaled(1.0 / similar, &w.of(&k)) };
        let w = w.plus(&Matrix::outer(&scaled(x.scalar("beta").sigmoid(), &minus(&v, &old)), &k));
        let z = plus(&z, &k);
        let o = scaled(1.0 / (dot(&z, &q) + eps), &w.of(&q));
        x.set_matrix("w", w);
        x.set_vector("z", z);
        o
    })
}

/// Schlag, Munkhdalai, Schmidhuber 2021: the delta rule, then `W <- W / max(1, |W|_F)`; the read goes through a layer norm
/// without parameters.
pub fn fwm(n: &Sizes, output_norm: bool, eps: f64) -> Rule {
    let rule = Rule::new("fwm", n).set("output_norm", output_norm).set("norm_eps", eps);
    rule.input(n, "beta", []).state("w", [n.value, n.key]).step(move |x| {
        let (q, k, v) = x.qkv();
        let w = x.matrix("w");
        let w = w.plus(&Matrix::outer(&scaled(x.scalar("beta").sigmoid(), &minus(&v, &w.of(&k))), &k));
        let w = w.scaled(1.0 / dot(&w.data, &w.data).sqrt().max(Dual::ONE));
        let o = w.of(&q);
        x.set_matrix("w", w);
        if output_norm { standardised(&o, eps).0 } else { o }
    })
}

/// `exp(-exp(a_log) softplus(alpha + dt_bias))`, as in Mamba.
fn mamba_decay(x: &Head) -> Dual {
    x.activated("alpha", |alpha| (-x.scalar("a_log").exp() * (alpha + x.scalar("dt_bias")).softplus()).exp())
}

/// Yang, Kautz, Hatamizadeh 2024, Eq. 10: `W_t = alpha W_{t-1} (I - beta k k^T) + beta v k^T`.
pub fn gated_delta(n: &Sizes, decay: &'static str, scale: f64) -> Rule {
    let mut rule = Rule::new("gated-delta", n).set("decay", decay).set("beta_scale", scale);
    rule = rule.input(n, "beta", []).input(n, "alpha", []).state("w", [n.value, n.key]);
    if decay == "softplus" {
        rule = rule.parameter("a_log", []).parameter("dt_bias", []);
    }
    rule.step(move |x| {
        let (q, k, v) = x.qkv();
        let alpha = if decay == "softplus" { mamba_decay(x) } else { x.activated("alpha", Dual::sigmoid) };
        let beta = x.activated("beta", |b| scale * b.sigmoid());
        let s = x.matrix("w").scaled(alpha);
        let w = s.minus(&Matrix::outer(&s.of(&k), &k).scaled(beta)).plus(&Matrix::outer(&v, &k).scaled(beta));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// `exp(-exp(a_log) softplus(a + dt_bias))`, a number a feature.
fn vector_decay(x: &Head) -> Vector {
    x.all_activated("a", |i, a| (-x.scalar("a_log").exp() * (a + x.vector("dt_bias")[i]).softplus()).exp())
}

/// Kimi Team 2025: `S = W_{t-1} Diag(a)`, `W_t = S + beta (v - S k) k^T`.
pub fn kda(n: &Sizes, scale: f64) -> Rule {
    let rule = Rule::new("kda", n).set("beta_scale", scale).input(n, "beta", []).input(n, "a", [n.key]);
    rule.parameter("a_log", []).parameter("dt_bias", [n.key]).state("w", [n.value, n.key]).step(move |x| {
        let (q, k, v) = x.qkv();
        let s = x.matrix("w").columns_scaled(&vector_decay(x));
        let w = s.plus(&Matrix::outer(&minus(&v, &s.of(&k)), &k).scaled(x.activated("beta", |b| scale * b.sigmoid())));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// flash-linear-attention `ops/gdn2`: `S = W_{t-1} Diag(a)`, `W_t = S + (w .* v - S (b .* k)) k^T`, b erase and w write gate.
pub fn gdn2(n: &Sizes) -> Rule {
    let rule = Rule::new("gdn2", n).input(n, "a", [n.key]).input(n, "erase", [n.key]).input(n, "admit", [n.value]);
    rule.parameter("a_log", []).parameter("dt_bias", [n.key]).state("w", [n.value, n.key]).step(|x| {
        let (q, k, v) = x.qkv();
        let (erase, write) = (x.all_activated("erase", |_, b| b.sigmoid()), x.all_activated("admit", |_, w| w.sigmoid()));
        let s = x.matrix("w").columns_scaled(&vector_decay(x));
        let w = s.plus(&Matrix::outer(&minus(&times(&write, &v), &s.of(&times(&erase, &k))), &k));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// Hu et al. 2025: `W_t = alpha W_{t-1} + beta (v - W_{t-1} p) k^T`, `p = sigmoid(b) k`, read with `q - d p`.
pub fn comba(n: &Sizes) -> Rule {
    let rule = Rule::new("comba", n).input(n, "beta", []).input(n, "alpha", []);
    let rule = rule.parameter("a_log", []).parameter("dt_bias", []).parameter("b", []).parameter("d", []);
    rule.state("w", [n.value, n.key]).step(|x| {
        let (q, k, v) = x.qkv();
        let p = scaled(x.scalar("b").sigmoid(), &k);
        let w = x.matrix("w");
        let change = scaled(x.scalar("beta").sigmoid(), &minus(&v, &w.of(&p)));
        let w = w.scaled(mamba_decay(x)).plus(&Matrix::outer(&change, &k));
        let o = w.of(&minus(&q, &scaled(x.scalar("d"), &p)));
        x.set_matrix("w", w);
        o
    })
}

/// Siems et al. 2025: `W <- W + beta_j (v_j - W k_j) k_j^T` for j = 1 to `steps`; gated: everything decays once before.
pub fn deltaproduct(n: &Sizes, steps: usize, gated: bool, scale: f64) -> Rule {
    let mut rule = Rule::bare("deltaproduct", n).set("steps", steps).set("gated", gated).set("beta_scale", scale);
    rule = rule.input(n, "q", [n.key]).input(n, "k", [steps, n.key]).input(n, "v", [steps, n.value]).input(n, "beta", [steps]);
    if gated {
        rule = rule.input(n, "alpha", []).parameter("a_log", []).parameter("dt_bias", []);
    }
    rule.state("w", [n.value, n.key]).step(move |x| {
        let (q, k, v) = (x.vector("q"), x.matrix("k"), x.matrix("v"));
        let mut w = x.matrix("w");
        if gated {
            w = w.scaled(mamba_decay(x));
        }
        for j in 0..steps {
            let beta = scale * x.vector("beta")[j].sigmoid();
            w = w.plus(&Matrix::outer(&minus(v.row(j), &w.of(k.row(j))), k.row(j)).scaled(beta));
        }
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// Peng et al. 2025.
///
///     W_t = W_{t-1} Diag(d) - (W_{t-1} kap) (a .* kap)^T + v kt^T,   o = W_t q,   bonus = <q, r_k .* kt> v
///     kap = l2(k .* k_k),   kt = k .* (1 + (a - 1) .* k_a),   a = sigmoid(.),   d = exp(-e^(-1/2) sigmoid(.))
///
/// `eps` is added under the root of the length of kap.
pub fn rwkv7(n: &Sizes, eps: f64) -> Rule {
    let rule = Rule::new("rwkv7", n).set("eps", eps).input(n, "a", [n.key]).input(n, "decay", [n.key]).extra("bonus", [n.value]);
    let rule = ["k_k", "k_a", "r_k"].iter().fold(rule, |rule, name| rule.parameter(name, [n.key]));
    rule.state("w", [n.value, n.key]).step(move |x| {
        let (q, k, v) = x.qkv();
        let a = x.all_activated("a", |_, a| a.sigmoid());
        let kap = unit(&times(&k, &x.vector("k_k")), eps);
        let factor = map(&times(&map(&a, |a| a - 1.0), &x.vector("k_a")), |y| 1.0 + y);
        let kt = times(&k, &factor);
        let d = x.all_activated("decay", |_, d| (-(-0.5_f64).exp() * d.sigmoid()).exp());
        let w = x.matrix("w");
        let removed = Matrix::outer(&w.of(&kap), &times(&a, &kap));
        let w = w.columns_scaled(&d).minus(&removed).plus(&Matrix::outer(&v, &kt));
        let o = w.of(&q);
        x.set_vector("extra.bonus", scaled(dot(&q, &times(&x.vector("r_k"), &kt)), &v));
        x.set_matrix("w", w);
        o
    })
}

/// Liu et al. 2024, the exact minimiser: `W_t = W_{t-1} + eps .* (v - W_{t-1} k) k^T`, `eps = beta / (1 + beta |k|^2)`, a beta
/// for every value or one.
pub fn longhorn(n: &Sizes, strength: &str) -> Rule {
    let vector = strength == "vector";
    let mut rule = Rule::new("longhorn", n).set("write_strength", strength);
    rule = if vector { rule.input(n, "beta", [n.value]) } else { rule.input(n, "beta", []) };
    rule.state("w", [n.value, n.key]).step(move |x| {
        let (q, k, v) = x.qkv();
        let beta = if vector { x.vector("beta") } else { vec![x.scalar("beta"); v.len()] };
        let eps = map(&beta, |b| b.sigmoid() / (1.0 + b.sigmoid() * dot(&k, &k)));
        let w = x.matrix("w");
        let w = w.plus(&Matrix::outer(&times(&eps, &minus(&v, &w.of(&k))), &k));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}
