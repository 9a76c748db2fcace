//! The published feature maps, each with the additive rule: `W_t = W_{t-1} + v phi(k)^T`, `o = W_t phi(q)`.

use crate::dual::{Dual, Matrix, Vector, dot, map, plus, scaled, softmax, standardised, sum, times, unit};
use crate::oracle::{Head, Rule, Sizes};

/// Whether a vector is a query or a key.
type Query = bool;

/// What is divided by, and what is added to it first.
#[derive(Clone, Copy)]
pub enum Normalise {
    Sum(f64),
    L2(f64),
}

/// The additive rule with a map of so many features; the map's parameters are declared before.
fn through(rule: Rule, n: &Sizes, features: usize, phi: impl Fn(&Head, &[Dual], Query) -> Vector + 'static) -> Rule {
    rule.state("w", [n.value, features]).step(move |x| {
        let (q, k, v) = x.qkv();
        let w = x.matrix("w").plus(&Matrix::outer(&v, &phi(x, &k, false)));
        let o = w.of(&phi(x, &q, true));
        x.set_matrix("w", w);
        o
    })
}

fn mapped(n: &Sizes, name: &str) -> Rule {
    Rule::new("additive", n).feature_map(name)
}

/// `x + 1` above 0, `exp(x)` below: Katharopoulos et al. 2020; Schlag et al. 2021, Eq. 30.
fn elu_plus_1(x: Dual) -> Dual {
    if x.value > 0.0 { x + 1.0 } else { x.exp() }
}

/// Maps that treat every element alike, and the softmax.
pub fn elementwise(n: &Sizes, name: &'static str) -> Rule {
    through(mapped(n, name), n, n.key, move |_, x, _| match name {
        "identity" => x.to_vec(),
        "elu+1" => map(x, elu_plus_1),
        "relu" => map(x, Dual::relu),
        "silu" => map(x, Dual::silu),
        "tanh" => map(x, Dual::tanh),
        "softmax" => softmax(x),
        other => panic!("no map {other}"),
    })
}

/// ELU+1 divided by its sum (Schlag et al. 2021, Eq. 29) or length.
pub fn normalised(n: &Sizes, normalise: Normalise) -> Rule {
    let (word, eps) = match normalise {
        Normalise::Sum(eps) => ("sum", eps),
        Normalise::L2(eps) => ("l2", eps),
    };
    let rule = mapped(n, "elu+1").set("feature_map.normalise", word).set("feature_map.normalise_eps", eps);
    through(rule, n, n.key, move |_, x, _| {
        let phi = map(x, elu_plus_1);
        match normalise {
            Normalise::Sum(eps) => scaled(1.0 / (sum(&phi) + eps), &phi),
            Normalise::L2(eps) => unit(&phi, eps),
        }
    })
}

/// Schlag et al. 2021, Eq. 37: `u = [relu(x); relu(-x)]`, `phi = [u .* roll(u, 1); ...; u .* roll(u, nu)]`.
pub fn dpfp(n: &Sizes, nu: usize) -> Rule {
    through(mapped(n, "dpfp").set("feature_map.nu", nu), n, 2 * n.key * nu, move |_, x, _| {
        let u: Vector = x.iter().map(|x| x.relu()).chain(x.iter().map(|x| (-*x).relu())).collect();
        let rolled = |by: usize| -> Vector { (0..u.len()).map(|i| u[(i + u.len() - by) % u.len()]).collect() };
        (1..=nu).flat_map(|j| times(&u, &rolled(j))).collect()
    })
}

fn concat(a: Vector, b: Vector) -> Vector {
    [a, b].concat()
}

/// Choromanski et al. 2021; Schlag et al. 2021, Eq. 31-32: `exp(-|x|^2 / 2) / sqrt(2 m) [exp(R x); exp(-R x)]`.
pub fn favor(n: &Sizes, m: usize) -> Rule {
    let rule = mapped(n, "favor+").set("feature_map.m", m).shared("feature_map.directions", [m, n.key]);
    through(rule, n, 2 * m, move |head, x, _| {
        let along = head.matrix("feature_map.directions").of(x);
        let factor = (-0.5 * dot(x, x)).exp() / (2.0 * m as f64).sqrt();
        scaled(factor, &concat(map(&along, Dual::exp), map(&along, |y| (-y).exp())))
    })
}

/// Peng et al. 2021, section 3.1: `[sin(w_1 x) ...; cos(w_1 x) ...] / sqrt(D)` of a vector of length 1, `w_i = sigma .* r_i`.
pub fn rfa(n: &Sizes, m: usize, trained: bool) -> Rule {
    let mut rule = mapped(n, "rfa").set("feature_map.directions", m).set("feature_map.sigma_trained", trained);
    rule = rule.shared("feature_map.directions", [m, n.key]);
    rule = if trained { rule.parameter("feature_map.sigma", [n.key]) } else { rule.set("feature_map.sigma", 0.7) };
    through(rule, n, 2 * m, move |head, x, _| {
        let sigma = if trained { head.vector("feature_map.sigma") } else { vec![Dual::from(0.7); x.len()] };
        let directions = head.matrix("feature_map.directions").columns_scaled(&sigma);
        let along = directions.of(&unit(x, 1e-6));
        scaled(Dual::from(1.0 / (m as f64).sqrt()), &concat(map(&along, Dual::sin), map(&along, Dual::cos)))
    })
}

/// `[x_i^2 ...; sqrt(2) x_i x_j ...]`, i < j, whose inner product is `<q, k>^2`.
fn quadratic(x: &[Dual]) -> Vector {
    let pairs = (0..x.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
    concat(map(x, |x| x * x), pairs.map(|(i, j)| 2.0_f64.sqrt() * x[i] * x[j]).collect())
}

/// Arora et al. 2024 (Based): `<phi(q), phi(k)> = 1 + s + s^2 / 2`, `s = <q, k> / sqrt(d)`.
pub fn taylor(n: &Sizes) -> Rule {
    let d = n.key;
    let root = (d as f64).sqrt();
    let rule = through(mapped(n, "taylor2"), n, 1 + d + d * (d + 1) / 2, move |_, x, _| {
        let first = map(x, |x| x / root.sqrt());
        concat(concat(vec![Dual::ONE], first), map(&quadratic(x), |y| y / (2.0_f64.sqrt() * root)))
    });
    rule.hide("w")
}

/// Aksenov et al. 2024: `<phi(q), phi(k)> = <gamma .* LN(q) + beta, gamma .* LN(k) + beta>^2 / d`.
pub fn rebased(n: &Sizes) -> Rule {
    let d = n.key;
    let rule = mapped(n, "rebased").parameter("feature_map.gamma", [d]).parameter("feature_map.beta", [d]);
    let rule = through(rule, n, d * (d + 1) / 2, move |head, x, _| {
        let y = plus(&times(&head.vector("feature_map.gamma"), &standardised(x, 1e-5).0), &head.vector("feature_map.beta"));
        map(&quadratic(&y), |y| y / (d as f64).sqrt())
    });
    rule.hide("w")
}

/// The linear map of Hedgehog and T2R, one for keys and one for queries or one for both.
struct Linear {
    tied: bool,
    bias: bool,
}

impl Linear {
    fn declare(&self, mut rule: Rule, rows: usize, columns: usize) -> Rule {
        rule = rule.set("feature_map.tied", self.tied).set("feature_map.bias", self.bias);
        for prefix in if self.tied { vec![""] } else { vec!["key_", "query_"] } {
            rule = rule.parameter(&format!("feature_map.{prefix}weight"), [rows, columns]);
            if self.bias {
                rule = rule.parameter(&format!("feature_map.{prefix}bias"), [rows]);
            }
        }
        rule
    }

    fn of(&self, head: &Head, x: &[Dual], query: Query) -> Vector {
        let prefix = match (self.tied, query) {
            (true, _) => "",
            (false, true) => "query_",
            (false, false) => "key_",
        };
        let y = head.matrix(&format!("feature_map.{prefix}weight")).of(x);
        if self.bias { plus(&y, &head.vector(&format!("feature_map.{prefix}bias"))) } else { y }
    }
}

/// Zhang et al. 2024: `softmax([2 y; -2 y])`, `y = W x + b`.
pub fn hedgehog(n: &Sizes, tied: bool, bias: bool) -> Rule {
    let linear = Linear { tied, bias };
    let rule = linear.declare(mapped(n, "hedgehog"), n.key, n.key);
    through(rule, n, 2 * n.key, move |head, x, query| {
        let y = linear.of(head, x, query);
        softmax(&concat(map(&y, |y| 2.0 * y), map(&y, |y| -2.0 * y)))
    })
}

/// Kasai et al. 2021, Eq. 3: `relu(W x + b)`.
pub fn t2r(n: &Sizes, features: Option<usize>, tied: bool, bias: bool) -> Rule {
    let linear = Linear { tied, bias };
    let mut rule = mapped(n, "t2r");
    if let Some(features) = features {
        rule = rule.set("feature_map.features", features);
    }
    let features = features.unwrap_or(n.key);
    through(linear.declare(rule, features, n.key), n, features, move |head, x, query| map(&linear.of(head, x, query), Dual::relu))
}
