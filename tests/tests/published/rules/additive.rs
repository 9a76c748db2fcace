//! Rules that add a value under its key and forget nothing, or everything alike.

use crate::dual::{Dual, Matrix, dot, plus, scaled};
use crate::oracle::{Rule, Sizes};

/// Schlag et al. 2021, Eq. 10-11; normalised: Katharopoulos et al. 2020.
///
///     W_t = W_{t-1} + v k^T,   o = W_t q
///     z_t = z_{t-1} + k,       o = W_t q / (<z_t, q> + eps)
pub fn additive(n: &Sizes, eps: Option<f64>) -> Rule {
    let rule = Rule::new("additive", n).state("w", [n.value, n.key]);
    let Some(eps) = eps else {
        return rule.step(|x| {
            let (q, k, v) = x.qkv();
            let w = x.matrix("w").plus(&Matrix::outer(&v, &k));
            let o = w.of(&q);
            x.set_matrix("w", w);
            o
        });
    };
    // Similarities must be positive.
    let positive = |rule: Rule| ["q", "k", "z"].iter().fold(rule, |rule, name| rule.between(name, 0.1, 1.1));
    let rule = positive(rule.state("z", [n.key]).set("attention_normalisation", true).set("eps", eps));
    rule.step(move |x| {
        let (q, k, v) = x.qkv();
        let w = x.matrix("w").plus(&Matrix::outer(&v, &k));
        let z = plus(&x.vector("z"), &k);
        let o = scaled(1.0 / (dot(&z, &q) + eps), &w.of(&q));
        x.set_matrix("w", w);
        x.set_vector("z", z);
        o
    })
}

/// Schmidhuber 1991; Schlag et al. 2021, Eq. 1-3.
///
///     W_t = sigma(W_{t-1} + v k^T),   o = W_t q
pub fn fwp_1991(n: &Sizes, squash: &str) -> Rule {
    let sigma = if squash == "tanh" { Dual::tanh } else { Dual::sigmoid };
    Rule::new("fwp-1991", n).set("squash", squash).state("w", [n.value, n.key]).step(move |x| {
        let (q, k, v) = x.qkv();
        let w = x.matrix("w").plus(&Matrix::outer(&v, &k)).map(sigma);
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// Ba et al. 2016, Eq. 1: `A(t) = lambda A(t-1) + eta h h^T`, here with a key and a value.
pub fn hebbian_decay(n: &Sizes, lambda: f64, eta: f64) -> Rule {
    let rule = Rule::new("hebbian-decay", n).set("lambda", lambda).set("eta", eta);
    rule.state("w", [n.value, n.key]).step(move |x| {
        let (q, k, v) = x.qkv();
        let w = x.matrix("w").scaled(lambda.into()).plus(&Matrix::outer(&v, &k).scaled(eta.into()));
        let o = w.of(&q);
        x.set_matrix("w", w);
        o
    })
}

/// Peng et al. 2021, the gated form.
///
///     W_t = (1-b) W_{t-1} + b v k^T,   z_t = (1-b) z_{t-1} + b k,   b = sigmoid(beta)
pub fn gated_sum(n: &Sizes, eps: Option<f64>) -> Rule {
    let mut rule = Rule::new("gated-sum", n).input(n, "beta", []).state("w", [n.value, n.key]);
    if let Some(eps) = eps {
        rule = rule.state("z", [n.key]).set("attention_normalisation", true).set("eps", eps);
        rule = ["q", "k", "z"].iter().fold(rule, |rule, name| rule.between(name, 0.1, 1.1));
    }
    rule.step(move |x| {
        let (q, k, v) = x.qkv();
        let b = x.scalar("beta").sigmoid();
        let w = x.matrix("w").scaled(1.0 - b).plus(&Matrix::outer(&v, &k).scaled(b));
        let mut o = w.of(&q);
        if let Some(eps) = eps {
            let z = plus(&scaled(1.0 - b, &x.vector("z")), &scaled(b, &k));
            o = scaled(1.0 / (dot(&z, &q) + eps), &o);
            x.set_vector("z", z);
        }
        x.set_matrix("w", w);
        o
    })
}
