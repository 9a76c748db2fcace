//! Rules that descend a loss of their own, or solve for its minimum.

use std::f64::consts::PI;

use crate::dual::{Dual, Matrix, Vector, dot, map, minus, plus, scaled, standardised, sum, times, unit};
use crate::oracle::{Head, Rule, Sizes};

/// Oja's rule as gradient: `W_t = W_{t-1} + beta v (k - W_{t-1}^T v)^T`, v of unit length.
pub fn oja(n: &Sizes, eps: f64) -> Rule {
    Rule::new("oja", n).set("eps", eps).input(n, "beta", []).state("w", [n.value, n.key]).step(move |x| {
        let (q, k, v) = x.qkv();
        let v = unit(&v, eps);
        let w = x.matrix("w");
        let w = w.plus(&Matrix::outer(&v, &minus(&k, &w.transposed_of(&v))).scaled(x.scalar("beta").sigmoid()));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// Von Oswald et al. 2025, solved by elimination.
///
///     G_t = g G_{t-1} + beta v k^T,   H_t = g H_{t-1} + beta k k^T,   o = G_t (H_t + Lambda)^-1 q,   Lambda = softplus(.) + 1/4
pub fn mesa(n: &Sizes) -> Rule {
    let rule = Rule::new("mesa", n).input(n, "gamma", []).input(n, "beta", []).parameter("lambda", [n.key]);
    rule.state("g", [n.value, n.key]).state("h", [n.key, n.key]).symmetric("h").step(|x| {
        let (q, k, v) = x.qkv();
        let (gamma, beta) = (x.scalar("gamma").sigmoid(), x.scalar("beta").sigmoid());
        let g = x.matrix("g").scaled(gamma).plus(&Matrix::outer(&v, &k).scaled(beta));
        let h = x.matrix("h").scaled(gamma).plus(&Matrix::outer(&k, &k).scaled(beta));
        let mut system = h.clone();
        for (i, p) in x.vector("lambda").iter().enumerate() {
            system[(i, i)] = system[(i, i)] + p.softplus() + 0.25;
        }
        let o = g.of(&system.solve(&q));
        x.set_matrix("g", g);
        x.set_matrix("h", h);
        o
    })
}

/// The gradient of `|x + LN(z) - y|^2` with respect to z, `LN(z) = gain .* standardised(z) + bias` (REFERENCE form 11, times 2).
fn through_layer_norm(x: &[Dual], z: &[Dual], y: &[Dual], gain: &[Dual], bias: &[Dual], eps: f64) -> Vector {
    let (standard, deviation) = standardised(z, eps);
    let residual = minus(&plus(x, &plus(&times(gain, &standard), bias)), y);
    let g = map(&times(gain, &residual), |r| 2.0 * r);
    let (width, mean, along) = (z.len() as f64, sum(&g), dot(&g, &standard));
    let inner = g.iter().zip(&standard).map(|(g, s)| (width * *g - mean - *s * along) / (width * deviation));
    inner.collect()
}

/// `x + LN(z)`
fn with_layer_norm(x: &[Dual], z: &[Dual], gain: &[Dual], bias: &[Dual], eps: f64) -> Vector {
    plus(x, &plus(&times(gain, &standardised(z, eps).0), bias))
}

/// `x Phi(x)`; the authors' code has its approximation by a tanh.
fn gelu(x: Dual) -> Dual {
    x * x.normal_below()
}

/// The derivative of [`gelu`].
fn gelu_slope(x: Dual) -> Dual {
    x.normal_below() + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// The layers' weights and biases of an inner model.
type Weights = Vec<(Matrix, Vector)>;

fn moved(weights: &Weights, by: Dual, direction: &Weights) -> Weights {
    weights.iter().zip(direction).map(|((w, b), (dw, db))| (w.plus(&dw.scaled(by)), plus(b, &scaled(by, db)))).collect()
}

/// Sun et al. 2024: mini-batches of tokens; each token's gradient is taken at the weights of the batch's start.
///
///     f(x; W) = x + LN(W x + b)   or   x + LN(W2 gelu(W1 x + b1) + b2)
///     W_t = W_start - sum over the batch up to t of eta_s grad |f(k_s; W_start) - v_s|^2,   o = f(q; W_t)
///
/// `named` gives the states' names: for every layer weights and bias, held and changing.
pub fn ttt(plugin: &str, n: &Sizes, batch: usize, rate: f64, eps: f64) -> Rule {
    let mlp = plugin == "ttt-mlp";
    let d = n.key;
    let names = if mlp { vec![("w1", "b1", 4 * d, d), ("w2", "b2", d, 4 * d)] } else { vec![("w", "b", d, d)] };
    let mut rule = Rule::new(plugin, n).set("batch", batch).set("rate", rate).set("norm_eps", eps).input(n, "eta", []);
    rule = rule.parameter("gain", [d]).parameter("bias", [d]).between("gain", 0.5, 1.5);
    for &(w, b, rows, columns) in &names {
        rule = rule.parameter(&format!("{w}_0"), [rows, columns]).parameter(&format!("{b}_0"), [rows]);
        rule = rule.state(w, [rows, columns]).state(b, [rows]);
        rule = rule.state(&format!("acc_{w}"), [rows, columns]).state(&format!("acc_{b}"), [rows]);
    }
    let trained = names.clone();
    let start = move |x: &mut Head| {
        for (w, b, ..) in &trained {
            x.set_matrix(w, x.matrix(&format!("{w}_0")));
            x.set_vector(b, x.vector(&format!("{b}_0")));
        }
    };
    rule.start(start).step(move |x| {
        let (q, k, v) = x.qkv();
        let (gain, bias) = (x.vector("gain"), x.vector("bias"));
        let eta = rate * x.scalar("eta").sigmoid() / d as f64;
        let model = |weights: &Weights, x: &[Dual]| {
            let (first, b) = &weights[0];
            let inner = plus(&first.of(x), b);
            match weights.get(1) {
                Some((second, b)) => (plus(&second.of(&map(&inner, gelu)), b), inner),
                None => (inner.clone(), inner),
            }
        };
        let held: Weights = names.iter().map(|(w, b, ..)| (x.matrix(w), x.vector(b))).collect();
        let (z, inner) = model(&held, &k);
        let e = through_layer_norm(&k, &z, &v, &gain, &bias, eps);
        let gradient: Weights = match held.get(1) {
            None => vec![(Matrix::outer(&e, &k), e)],
            Some((second, _)) => {
                let below = times(&second.transposed_of(&e), &map(&inner, gelu_slope));
                vec![(Matrix::outer(&below, &k), below), (Matrix::outer(&e, &map(&inner, gelu)), e)]
            }
        };
        let acc: Weights =
            names.iter().map(|(w, b, ..)| (x.matrix(&format!("acc_{w}")), x.vector(&format!("acc_{b}")))).collect();
        let acc = moved(&acc, eta, &gradient);
        let now = moved(&held, Dual::from(-1.0), &acc);
        let o = with_layer_norm(&q, &model(&now, &q).0, &gain, &bias, eps);
        let done = (x.t + 1) % batch == 0;
        for (((w, b, ..), (now_w, now_b)), (acc_w, acc_b)) in names.iter().zip(now).zip(acc) {
            let keep = if done { Dual::ZERO } else { Dual::ONE };
            x.set_matrix(&format!("acc_{w}"), acc_w.scaled(keep));
            x.set_vector(&format!("acc_{b}"), scaled(keep, &acc_b));
            if done {
                x.set_matrix(w, now_w);
                x.set_vector(b, now_b);
            }
        }
        o
    })
}

fn silu_slope(x: Dual) -> Dual {
    x.sigmoid() * (1.0 + x * (1.0 - x.sigmoid()))
}

/// Behrouz et al. 2024: momentum and forgetting, for a memory of one matrix or of two with a SiLU between.
///
///     U_t = eta U_{t-1} - theta grad |M(k) - v|^2,   M_t = (1 - alpha) M_{t-1} + U_t,   o = M_t(q)
pub fn titans(n: &Sizes, depth: usize, hidden_factor: usize, rate: f64) -> Rule {
    let mut rule = Rule::new("titans", n).set("depth", depth).set("rate", rate);
    rule = ["alpha", "eta", "theta"].iter().fold(rule, |rule, name| rule.input(n, name, []));
    let gates = |x: &Head| (x.scalar("alpha").sigmoid(), x.scalar("eta").sigmoid(), x.scalar("theta").sigmoid());
    if depth == 1 {
        rule = rule.state("w", [n.value, n.key]).state("u", [n.value, n.key]).parameter("w_0", [n.value, n.key]);
        return rule.start(|x| x.set_matrix("w", x.matrix("w_0"))).step(move |x| {
            let (q, k, v) = x.qkv();
            let (alpha, eta, theta) = gates(x);
            let w = x.matrix("w");
            let gradient = Matrix::outer(&minus(&w.of(&k), &v), &k).scaled(Dual::from(2.0));
            let u = x.matrix("u").scaled(eta).minus(&gradient.scaled(rate * theta));
            let w = w.scaled(1.0 - alpha).plus(&u);
            let o = w.of(&q);
            x.set_matrix("w", w);
            x.set_matrix("u", u);
            o
        });
    }
    let hidden = hidden_factor * n.key;
    rule = rule.set("hidden_factor", hidden_factor);
    rule = rule.state("w1", [hidden, n.key]).state("w2", [n.value, hidden]);
    rule = rule.state("u1", [hidden, n.key]).state("u2", [n.value, hidden]);
    rule.parameter("w1_0", [hidden, n.key])
        .parameter("w2_0", [n.value, hidden])
        .start(|x| {
            x.set_matrix("w1", x.matrix("w1_0"));
            x.set_matrix("w2", x.matrix("w2_0"));
        })
        .step(move |x| {
            let (q, k, v) = x.qkv();
            let (alpha, eta, theta) = gates(x);
            let (w1, w2) = (x.matrix("w1"), x.matrix("w2"));
            let inner = w1.of(&k);
            let a = map(&inner, Dual::silu);
            let e = map(&minus(&w2.of(&a), &v), |e| 2.0 * e);
            let below = times(&w2.transposed_of(&e), &map(&inner, silu_slope));
            let u1 = x.matrix("u1").scaled(eta).minus(&Matrix::outer(&below, &k).scaled(rate * theta));
            let u2 = x.matrix("u2").scaled(eta).minus(&Matrix::outer(&e, &a).scaled(rate * theta));
            let w1 = w1.scaled(1.0 - alpha).plus(&u1);
            let w2 = w2.scaled(1.0 - alpha).plus(&u2);
            let o = w2.of(&map(&w1.of(&q), Dual::silu));
            x.set_matrix("w1", w1);
            x.set_matrix("w2", w2);
            x.set_matrix("u1", u1);
            x.set_matrix("u2", u2);
            o
        })
}
