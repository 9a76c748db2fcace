//! The canonical forms that are derived from steps, and the reasons where there is none.

mod support;

use fwp_program::analysis::{
    Additive as Added, Affine, Analysis, Axis, Canonical, Class, Decay, Form, Obstacle, Query, Range, Reason, Side, Stratum,
    analyse, canonical as only_canonical,
};
use fwp_program::interpret::{Array, Inputs, evaluate};
use fwp_sdk::UpdateRule;
use fwp_sdk::build::Dims;
use fwp_sdk::prelude::*;
use fwp_sdk::program::{Op, Program};
use support::Delta;

/// Sizes that are all different primes, and all equal: with equal ones no shape tells the sides apart.
const SIZES: [Dims; 2] =
    [Dims { heads: 2, key_raw: 5, key: 7, value: 3, ..Dims::ONE }, Dims { heads: 4, key_raw: 4, key: 4, value: 4, ..Dims::ONE }];

fn analysed<R: UpdateRule>(dims: Dims) -> (Program, Analysis) {
    let p = support::rule::<R>(dims);
    let a = analyse(&p).unwrap();
    (p, a)
}

fn canonical<R: UpdateRule>(dims: Dims) -> (Program, Canonical) {
    let (p, a) = analysed::<R>(dims);
    // The short way gives the same.
    assert_eq!(only_canonical(&p).unwrap(), a.canonical, "{}", p.name);
    match a.canonical {
        Ok(c) => (p, c),
        Err(reason) => panic!("{}: {reason}\n{:#?}", p.name, a.findings),
    }
}

fn forms(c: &Canonical) -> Vec<&Form> {
    c.strata.iter().filter_map(|s| if let Stratum::Chunk(f) = s { Some(f) } else { None }).collect()
}

fn only<R: UpdateRule>(dims: Dims) -> (Program, Form) {
    let (p, c) = canonical::<R>(dims);
    assert_eq!(c.strata.len(), 1, "{}", p.name);
    let form = forms(&c)[0].clone();
    (p, form)
}

fn class<R: UpdateRule>(dims: Dims) -> String {
    let (_, a) = analysed::<R>(dims);
    a.findings.iter().map(|f| f.class.to_string()).collect::<Vec<_>>().join("; ")
}

/// Vectors of arguments that no two rules share by accident.
fn arguments(form: &Form) -> Vec<Vec<f64>> {
    let mut x = 0.3;
    let mut draw = || {
        x = (x * 1.7 + 0.31) % 1.3;
        x - 0.4
    };
    let shapes = form.coefficients.arguments.iter().map(|a| match &a.ty {
        fwp_sdk::program::Type::Tensor(t) => t.shape.clone(),
        _ => unreachable!(),
    });
    shapes.map(|s| (0..s.iter().product::<usize>()).map(|_| draw()).collect()).collect()
}

/// The value of a coefficient for these arguments.
fn value(p: &Program, form: &Form, coefficient: usize, given: &[Vec<f64>]) -> Vec<f64> {
    let arguments = form.coefficients.arguments.iter().zip(given).map(|(a, x)| match &a.ty {
        fwp_sdk::program::Type::Tensor(t) => Array::new(&t.shape, x.clone()).unwrap().into(),
        _ => unreachable!(),
    });
    let mut inputs = Inputs { arguments: arguments.collect(), ..Inputs::default() };
    let all = evaluate(p, &form.coefficients, &mut inputs).unwrap();
    all[coefficient].tensor().unwrap().floats().unwrap().to_vec()
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-12)
}

fn times(c: f64, x: &[f64]) -> Vec<f64> {
    x.iter().map(|v| c * v).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn qkv(dims: Dims) -> Signature {
    Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros)
}

// Additive rules and decays.

rule!(Additive, |d| qkv(d), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(v, k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});

rule!(NormalisedAdditive, |d| qkv(d).state("z", [d.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(v, &k);
    let z = s.state("z") + &k;
    s.output(w.matvec(&q).div_or(z.dot(&q), 0.0));
    s.set_state("w", w);
    s.set_state("z", z);
});

rule!(RetNet, |d| qkv(d).parameter("log_gamma", [], Init::normal(1.0)).constant(), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.parameter("log_gamma").exp() * s.state("w") + outer(v, k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});

rule!(Mamba2, |d| qkv(d).signal("dt", []).parameter("a_log", [], Init::normal(1.0)).parameter("d", [], Init::normal(1.0)), |s| {
    let (q, k, v) = s.query_key_value();
    let dt = s.signal("dt").softplus();
    let alpha = (-(&dt * s.parameter("a_log").exp())).exp();
    let w = alpha * s.state("w") + outer(&dt * &v, k);
    s.output(w.matvec(q) + s.parameter("d") * v);
    s.set_state("w", w);
});

rule!(Gla, |d| qkv(d).signal("a", [d.key]), |s| {
    let (q, k, v) = s.query_key_value();
    let a = s.signal("a").sigmoid().pow(1.0 / 16.0);
    let w = s.state("w").scale_columns(a) + outer(v, k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});

rule!(Rwkv6, |d| qkv(d).signal("decay", [d.key]).parameter("u", [d.key], Init::normal(1.0)), |s| {
    let (r, k, v) = s.query_key_value();
    let a = (-s.signal("decay").exp()).exp();
    let w = s.state("w");
    let bonus = outer(&v, s.parameter("u") * &k);
    s.output((&w + bonus).matvec(r));
    s.set_state("w", w.scale_columns(a) + outer(v, k));
});

rule!(GatedRfa, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let w = (1.0 - &beta) * s.state("w") + beta * outer(v, k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});

rule!(Hgrn2, |d| qkv(d).signal("f", [d.key]).parameter("lower", [d.key], Init::normal(1.0)), |s| {
    let (q, _, v) = s.query_key_value();
    let lower = s.parameter("lower").sigmoid();
    let f = &lower + (1.0 - &lower) * s.signal("f").sigmoid();
    let w = s.state("w").scale_columns(&f) + outer(v, 1.0 - f);
    s.output(w.matvec(q) + 0.0 * s.input("k").sum());
    s.set_state("w", w);
});

#[test]
fn additive_rules_have_forms() {
    for dims in SIZES {
        let (p, f) = only::<Additive>(dims);
        assert_eq!((f.side, f.size, f.segments.len()), (Side::Right, [dims.value, dims.key], 1));
        let s = &f.segments[0];
        assert_eq!((&s.decay, s.terms.len(), s.terms[0].erase), (&Decay::One, 1, None));
        let given = arguments(&f);
        assert_eq!(value(&p, &f, s.terms[0].column.unwrap(), &given), given[2]);
        assert_eq!(value(&p, &f, s.terms[0].row, &given), given[1]);
        let read = &f.reads[0];
        assert_eq!((read.after, read.name.as_str(), &read.shape[..]), (1, "read.w.0", &[dims.value][..]));
        let Query::Right(query) = read.query else { panic!("{read:?}") };
        assert_eq!(value(&p, &f, query, &given), given[0]);

        let (_, c) = canonical::<NormalisedAdditive>(dims);
        let sizes: Vec<[usize; 2]> = forms(&c).iter().map(|f| f.size).collect();
        assert_eq!(sizes, [[dims.value, dims.key], [1, dims.key]]);
        // The normaliser is read by its inner product with the query, a number.
        let z = &forms(&c)[1].reads[0];
        assert!(matches!(z.query, Query::Right(_)) && z.shape.is_empty() && z.after == 1, "{z:?}");
    }
}

#[test]
fn decays_are_exact_in_log_space() {
    for dims in SIZES {
        let decay = |f: &Form| f.segments[0].decay.clone();
        let (_, f) = only::<RetNet>(dims);
        let Decay::Scalar(a) = decay(&f) else { panic!("{:?}", decay(&f)) };
        assert_eq!(a.range, Range::Log);
        // The logarithm is the parameter itself: no exponential is left.
        assert!(f.coefficients.nodes.iter().all(|n| n.op != Op::Exp), "{:?}", f.coefficients);

        let (_, f) = only::<Mamba2>(dims);
        assert!(matches!(decay(&f), Decay::Scalar(a) if a.range == Range::Log));

        let (p, f) = only::<Gla>(dims);
        let Decay::Columns(a) = decay(&f) else { panic!("{:?}", decay(&f)) };
        assert_eq!(a.range, Range::Log);
        let given = arguments(&f);
        let expected: Vec<f64> = given[3].iter().map(|x| sigmoid(*x).ln() / 16.0).collect();
        assert!(close(&value(&p, &f, a.coefficient, &given), &expected));
        assert!(f.coefficients.nodes.iter().any(|n| n.op == Op::LogSigmoid));

        let (p, f) = only::<GatedRfa>(dims);
        let Decay::Scalar(a) = decay(&f) else { panic!("{:?}", decay(&f)) };
        assert_eq!(a.range, Range::Log, "1 - sigmoid(x) is sigmoid(-x)");
        let given = arguments(&f);
        assert!(close(&value(&p, &f, a.coefficient, &given), &[sigmoid(-given[3][0]).ln()]));

        let (_, f) = only::<Hgrn2>(dims);
        assert!(matches!(decay(&f), Decay::Columns(a) if a.range == Range::Positive));
    }
}

#[test]
fn rwkv6_reads_before_it_decays() {
    for dims in SIZES {
        let (_, c) = canonical::<Rwkv6>(dims);
        let f = forms(&c)[0];
        assert_eq!((f.reads.len(), f.reads[0].after), (1, 0));
        assert!(matches!(f.segments[0].decay, Decay::Columns(ref a) if a.range == Range::Log));
        // The bonus needs no state: an inner product in the rest.
        assert!(c.rest.nodes.iter().any(|n| n.op == Op::Dot));
        assert!(c.rest.nodes.iter().all(|n| n.op != Op::Outer));
    }
}

// Signs of scalar decays.

macro_rules! decayed {
    ($($name:ident, |$x:ident| $decay:expr;)*) => { $(
        rule!($name, |d| qkv(d).signal("x", []), |s| {
            let (q, k, v) = s.query_key_value();
            let $x = s.signal("x");
            let w = $decay * s.state("w") + outer(v, k);
            s.output(w.matvec(q));
            s.set_state("w", w);
        });
    )* };
}
decayed! {
    DecayTanh, |x| x.tanh();
    DecayRelu, |x| x.relu();
    DecaySoftplus, |x| x.softplus();
    DecayRaw, |x| x;
    DecayHalf, |x| 1.0 - 0.5 * x.sigmoid();
    DecayOneMinusTanh, |x| 1.0 - x.tanh();
    DecayPowers, |x| x.sigmoid().sqrt() * x.exp() / x.sigmoid().pow(3.0) * 2.0;
    DecayMinus, |x| -x.sigmoid();
    DecaySquare, |x| x.square();
    DecayConstant, |x| 0.0 * x + 0.9;
    DecaySoftmax, |x| 1.0 - x.expand(0, 1).softmax().sum();
}

#[test]
fn decays_have_ranges() {
    fn range<R: UpdateRule>() -> Range {
        let (_, f) = only::<R>(SIZES[0]);
        match &f.segments[0].decay {
            Decay::Scalar(a) => a.range,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(range::<DecayTanh>(), Range::Signed);
    assert_eq!(range::<DecayRelu>(), Range::Signed);
    assert_eq!(range::<DecaySoftplus>(), Range::Positive);
    assert_eq!(range::<DecayRaw>(), Range::Signed);
    assert_eq!(range::<DecayHalf>(), Range::Positive);
    assert_eq!(range::<DecayOneMinusTanh>(), Range::Signed);
    assert_eq!(range::<DecayPowers>(), Range::Log);
    assert_eq!(range::<DecayMinus>(), Range::Signed);
    assert_eq!(range::<DecaySquare>(), Range::Signed);
    assert_eq!(range::<DecayConstant>(), Range::Log);
    // The softmax of one number is 1, so this decay is 0.
    assert_eq!(range::<DecaySoftmax>(), Range::Signed);
}

// The delta rule in many spellings.

rule!(DeltaObjective, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let w = s.state("w");
    let loss = 0.5 * (w.matvec(&k) - v).norm_squared();
    let w = &w - beta * loss.gradient(&w);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(DeltaExpanded, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let w = s.state("w");
    let w = &w - &beta * outer(w.matvec(&k), &k) + beta * outer(v, &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(DeltaFactored, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let n = k.shape()[0];
    let w = s.state("w").matmul(s.eye(n) - &beta * outer(&k, &k)) + outer(beta * v, &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(DeltaTemporary, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let key = s.signal("beta").sigmoid() * &k;
    let w = s.state("w");
    let old = outer(w.matvec(&k), &key);
    let erased = &w - old;
    let w = outer(&v, key) + erased;
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(DeltaByHand, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let rows = v.shape()[0];
    let w = s.state("w");
    // The read as a sum over columns, the write as a product of repeated vectors.
    let read = (&w * k.expand(0, rows)).sum_over_axes(&[1]);
    let e = (v - read) * s.signal("beta").sigmoid();
    let w = w + e.expand(1, k.shape()[0]).scale_columns(&k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(DeltaTransposed, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let m = s.state("w").transpose();
    let m = &m + s.signal("beta").sigmoid() * outer(&k, v - m.matvec_t(&k));
    s.output(m.matvec_t(&q));
    s.set_state("w", m.transpose());
});

#[test]
fn every_spelling_of_the_delta_rule_has_one_form() {
    for dims in SIZES {
        let (p, f) = only::<Delta>(dims);
        assert_eq!((f.side, f.segments.len(), f.reads.len()), (Side::Right, 1, 1));
        let s = &f.segments[0];
        assert_eq!((&s.decay, s.terms.len()), (&Decay::One, 1));
        let t = &s.terms[0];
        let given = arguments(&f);
        let beta = sigmoid(given[3][0]);
        assert!(close(&value(&p, &f, t.column.unwrap(), &given), &times(beta, &given[2])));
        assert!(close(&value(&p, &f, t.erase.unwrap(), &given), &times(-beta, &given[1])));
        assert_eq!(value(&p, &f, t.row, &given), given[1], "the row is not scaled");

        let (_, whole) = canonical::<Delta>(dims);
        for (name, other) in [
            ("objective", canonical::<DeltaObjective>(dims).1),
            ("expanded", canonical::<DeltaExpanded>(dims).1),
            ("factored", canonical::<DeltaFactored>(dims).1),
            ("through a temporary", canonical::<DeltaTemporary>(dims).1),
            ("by hand", canonical::<DeltaByHand>(dims).1),
            ("transposed twice", canonical::<DeltaTransposed>(dims).1),
        ] {
            assert_eq!(whole, other, "{name}");
        }
    }
}

// Relatives of the delta rule.

rule!(DeltaNormalised, |d| qkv(d).state("z", [d.key], StateStart::Zeros).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let (w, z) = (s.state("w"), s.state("z"));
    let c = beta.div_or(z.dot(&k), 0.0);
    let w = &w + outer(beta * v - c * w.matvec(&k), &k);
    let z = z + &k;
    s.output(w.matvec(&q).div_or(z.dot(&q), 0.0));
    s.set_state("w", w);
    s.set_state("z", z);
});

fn gated(d: Dims) -> Signature {
    qkv(d).signal("beta", []).signal("alpha", [])
}
rule!(GatedDelta, |d| gated(d), |s| {
    let (q, k, v) = s.query_key_value();
    let (beta, alpha) = (s.signal("beta").sigmoid(), (-s.signal("alpha").softplus()).exp());
    let w = alpha * s.state("w");
    let w = &w + beta * outer(v - w.matvec(&k), &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(GatedDeltaFactored, |d| gated(d), |s| {
    let (q, k, v) = s.query_key_value();
    let (beta, alpha) = (s.signal("beta").sigmoid(), (-s.signal("alpha").softplus()).exp());
    let n = k.shape()[0];
    let w = alpha * s.state("w").matmul(s.eye(n) - &beta * outer(&k, &k)) + beta * outer(v, &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(Kda, |d| qkv(d).signal("beta", []).signal("a", [d.key]), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let w = s.state("w").scale_columns(s.signal("a").sigmoid());
    let w = &w + beta * outer(v - w.matvec(&k), &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(KdaFactored, |d| qkv(d).signal("beta", []).signal("a", [d.key]), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let n = k.shape()[0];
    let by = s.eye(n).scale_rows(s.signal("a").sigmoid()).matmul(s.eye(n) - &beta * outer(&k, &k));
    let w = s.state("w").matmul(by) + beta * outer(v, &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(Gdn2, |d| qkv(d).signal("a", [d.key]).signal("b", [d.key]).signal("g", [d.value]), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w").scale_columns(s.signal("a").sigmoid());
    let read = w.matvec(s.signal("b").sigmoid() * &k);
    let w = &w + outer(s.signal("g").sigmoid() * v - read, &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(Comba, |d| gated(d).parameter("b", [], Init::normal(1.0)).parameter("d", [], Init::normal(1.0)), |s| {
    let (q, k, v) = s.query_key_value();
    let (beta, alpha) = (s.signal("beta").sigmoid(), s.signal("alpha").sigmoid());
    let p = s.parameter("b").sigmoid() * &k;
    let w = s.state("w");
    let w = alpha * &w + beta * outer(v - w.matvec(&p), &k);
    s.output(w.matvec(q - s.parameter("d") * p));
    s.set_state("w", w);
});
rule!(
    Rwkv7,
    |d| qkv(d).signal("w_raw", [d.key]).signal("a", [d.key]).parameter("k_k", [d.key], Init::normal(1.0)).parameter(
        "k_a",
        [d.key],
        Init::normal(1.0)
    ),
    |s| {
        let (r, k, v) = s.query_key_value();
        let decay = (-0.6065 * s.signal("w_raw").sigmoid()).exp();
        let kap = (&k * s.parameter("k_k")).l2_normalise(1e-6);
        let a = s.signal("a").sigmoid();
        let k = k * (1.0 + (&a - 1.0) * s.parameter("k_a"));
        let w = s.state("w");
        let w = w.scale_columns(decay) - outer(w.matvec(&kap), a * kap) + outer(v, k);
        s.output(w.matvec(r));
        s.set_state("w", w);
    }
);
rule!(Longhorn, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let eps = &beta / (1.0 + &beta * k.norm_squared());
    let w = s.state("w");
    let w = &w + eps * outer(v - w.matvec(&k), &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(Oja, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w");
    let w = &w + s.signal("beta").sigmoid() * outer(&v, k - w.matvec_t(&v));
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(OjaObjective, |d| qkv(d).signal("beta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w");
    let loss = 0.5 * w.matvec_t(&v).norm_squared() - v.dot(w.matvec(&k));
    let w = &w - s.signal("beta").sigmoid() * loss.gradient(&w);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});

fn many(d: Dims, n: usize) -> Signature {
    let s = Signature::without_inputs(d).query("q", [d.key]).key("k", [d.key]).count(n).value("v", [d.value]).count(n);
    s.signal("beta", [n]).signal("alpha", []).state("w", [d.value, d.key], StateStart::Zeros)
}
fn product(s: &mut Step, n: usize, decay: bool) {
    let (q, k, v, beta) = (s.input("q"), s.input("k"), s.input("v"), s.signal("beta").sigmoid());
    let mut w = s.state("w");
    let alpha = s.signal("alpha").sigmoid();
    w = if decay { &alpha * w } else { w };
    for j in 0..n {
        w = &w + beta.at(j) * outer(v.at(j) - w.matvec(k.at(j)), k.at(j));
    }
    s.output(w.matvec(q) + 0.0 * alpha);
    s.set_state("w", w);
}
rule!(DeltaProduct2, |d| many(d, 2), |s| { product(s, 2, false) });
rule!(GatedDeltaProduct3, |d| many(d, 3), |s| { product(s, 3, true) });
rule!(DeltaProductLoop, |d| many(d, 2), |s| {
    let (q, k, v, beta) = (s.input("q"), s.input("k"), s.input("v"), s.signal("beta").sigmoid());
    let w = s.state("w");
    let next = s.repeat(2, &[&w, &k, &v, &beta], &[], |x, _| {
        let (w, k, v, beta) = (&x[0], &x[1], &x[2], &x[3]);
        let w = w + beta.at(0) * outer(v.at(0) - w.matvec(k.at(0)), k.at(0));
        vec![w, k.roll(0, -1), v.roll(0, -1), beta.roll(0, -1)]
    });
    s.output(next[0].matvec(q) + 0.0 * s.signal("alpha"));
    s.set_state("w", &next[0]);
});

#[test]
fn relatives_of_the_delta_rule_have_forms() {
    for dims in SIZES {
        let (p, f) = only::<GatedDelta>(dims);
        assert_eq!(f.segments.len(), 1, "a decay belongs to what follows it");
        let s = &f.segments[0];
        let Decay::Scalar(a) = &s.decay else { panic!("{:?}", s.decay) };
        assert_eq!((a.range, s.terms.len()), (Range::Log, 1));
        let given = arguments(&f);
        let (beta, alpha) = (sigmoid(given[3][0]), (-given[4][0].exp().ln_1p()).exp());
        assert!(close(&value(&p, &f, s.terms[0].column.unwrap(), &given), &times(beta, &given[2])));
        assert!(close(&value(&p, &f, s.terms[0].erase.unwrap(), &given), &times(-alpha * beta, &given[1])));
        assert!(close(&value(&p, &f, a.coefficient, &given), &[alpha.ln()]));
        assert_eq!(f, only::<GatedDeltaFactored>(dims).1);

        let (p, f) = only::<Kda>(dims);
        let s = &f.segments[0];
        assert!(matches!(&s.decay, Decay::Columns(a) if a.range == Range::Log) && f.segments.len() == 1);
        let given = arguments(&f);
        let beta = sigmoid(given[3][0]);
        let erase: Vec<f64> = given[4].iter().zip(&given[1]).map(|(a, k)| -beta * sigmoid(*a) * k).collect();
        assert!(close(&value(&p, &f, s.terms[0].erase.unwrap(), &given), &erase));
        assert_eq!(f, only::<KdaFactored>(dims).1);

        let (_, f) = only::<Gdn2>(dims);
        assert!(matches!(f.segments[0].decay, Decay::Columns(_)) && f.segments[0].terms.len() == 1);
        let (_, f) = only::<Comba>(dims);
        assert!(matches!(f.segments[0].decay, Decay::Scalar(_)) && f.segments[0].terms.len() == 1);
        assert_eq!(f.reads.len(), 1, "the corrected query is one query");

        let (_, f) = only::<Rwkv7>(dims);
        assert_eq!(f.segments.len(), 1);
        let parts: Vec<(bool, bool)> = f.segments[0].terms.iter().map(|t| (t.column.is_some(), t.erase.is_some())).collect();
        assert_eq!(parts, [(false, true), (true, false)]);

        let (_, f) = only::<Longhorn>(dims);
        assert_eq!((f.segments[0].terms.len(), &f.segments[0].decay), (1, &Decay::One));
        assert_eq!(class::<Longhorn>(dims), "identity plus rank 1, from the right");
    }
}

#[test]
fn products_are_not_multiplied_out() {
    for dims in SIZES {
        let (_, two) = only::<DeltaProduct2>(dims);
        assert_eq!(two.segments.len(), 2);
        assert!(two.segments.iter().all(|s| s.terms.len() == 1 && s.decay == Decay::One));
        assert_eq!(two.reads[0].after, 2);
        let (_, three) = only::<GatedDeltaProduct3>(dims);
        assert_eq!(three.segments.len(), 3);
        assert!(matches!(three.segments[0].decay, Decay::Scalar(_)));
        assert!(three.segments[1..].iter().all(|s| s.decay == Decay::One));
        let (_, looped) = only::<DeltaProductLoop>(dims);
        assert_eq!(looped.segments.len(), 2);
        assert!(looped.segments.iter().all(|s| s.terms.len() == 1));
    }
}

#[test]
fn oja_acts_from_the_left() {
    for dims in SIZES {
        let (p, f) = only::<Oja>(dims);
        assert_eq!((f.side, f.size), (Side::Left, [dims.key, dims.value]));
        let t = &f.segments[0].terms[0];
        let given = arguments(&f);
        let beta = sigmoid(given[3][0]);
        assert!(close(&value(&p, &f, t.column.unwrap(), &given), &times(beta, &given[1])));
        assert!(close(&value(&p, &f, t.erase.unwrap(), &given), &times(-beta, &given[2])));
        assert_eq!(value(&p, &f, t.row, &given), given[2]);
        assert!(matches!(f.reads[0].query, Query::Left(_)), "S q is read of the transposed matrix from its left");
        assert_eq!(f, only::<OjaObjective>(dims).1);
        let (_, a) = analysed::<Oja>(dims);
        assert_eq!(a.findings[0].independent, [Axis::Columns]);
        assert_eq!(analysed::<Delta>(dims).1.findings[0].independent, [Axis::Rows]);
    }
}

// Several states.

rule!(
    MLstm,
    |d| qkv(d).state("n", [d.key], StateStart::Zeros).state("m", [], StateStart::Zeros).signal("i", []).signal("f", []),
    |s| {
        let (q, k, v) = s.query_key_value();
        let (c, n, m) = (s.state("w"), s.state("n"), s.state("m"));
        let log_f = s.signal("f").log_sigmoid();
        let next = (&log_f + &m).max(s.signal("i"));
        let (i, f) = ((s.signal("i") - &next).exp(), (log_f + m - &next).exp());
        let c = &f * c + &i * outer(v, &k);
        let n = f * n + i * k;
        let below = n.dot(&q).abs().max((-&next).exp());
        s.output(c.matvec(&q) / below);
        s.set_state("w", c);
        s.set_state("n", n);
        s.set_state("m", next);
    }
);
rule!(
    Gsa,
    |d| Signature::new(d).signal("a", [6]).state("keys", [6, d.key], StateStart::Zeros).state(
        "values",
        [6, d.value],
        StateStart::Zeros
    ),
    |s| {
        let (q, k, v) = s.query_key_value();
        let a = s.signal("a").sigmoid();
        let keys = s.state("keys").scale_rows(&a) + outer(1.0 - &a, k);
        let values = s.state("values").scale_rows(&a) + outer(1.0 - a, v);
        s.output(values.matvec_t(keys.matvec(q).softmax()));
        s.set_state("keys", keys);
        s.set_state("values", values);
    }
);
rule!(LastKey, |d| qkv(d).state("last", [d.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(v, s.state("last"));
    s.output(w.matvec(q));
    s.set_state("w", w);
    s.set_state("last", k);
});

#[test]
fn strata_are_ordered_by_what_they_need() {
    for dims in SIZES {
        let (p, c) = canonical::<DeltaNormalised>(dims);
        let names: Vec<&str> = forms(&c).iter().map(|f| p.states[f.state as usize].name.as_str()).collect();
        assert_eq!(names, ["z", "w"], "the normaliser before the memory");
        let (z, w) = (forms(&c)[0], forms(&c)[1]);
        // Before the step for the erasure, after it for the output.
        let read: Vec<(usize, &str)> = z.reads.iter().map(|r| (r.after, r.name.as_str())).collect();
        assert_eq!(read, [(0, "read.z.0"), (1, "read.z.1")]);
        let arguments: Vec<&str> = w.coefficients.arguments.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(arguments, ["q", "k", "v", "beta", "read.z.0", "read.z.1"]);
        assert_eq!(c.rest.arguments.len(), 7);

        let (p, c) = canonical::<MLstm>(dims);
        let Stratum::Walk(walk) = &c.strata[0] else { panic!("{:?}", c.strata[0]) };
        assert_eq!(walk.states.iter().map(|s| p.states[*s as usize].name.as_str()).collect::<Vec<_>>(), ["m"]);
        assert_eq!(walk.reads, ["read.m.0", "read.m.1"]);
        assert!(walk.why.contains("max") && walk.why.contains("analysis.rs:"), "{}", walk.why);
        for f in forms(&c) {
            assert!(matches!(&f.segments[0].decay, Decay::Scalar(a) if a.range == Range::Log), "{f:?}");
        }
        assert_eq!(forms(&c).len(), 2);

        let (p, c) = canonical::<Gsa>(dims);
        let names: Vec<&str> = forms(&c).iter().map(|f| p.states[f.state as usize].name.as_str()).collect();
        assert_eq!(names, ["keys", "values"]);
        let (keys, values) = (forms(&c)[0], forms(&c)[1]);
        assert!(matches!(keys.segments[0].decay, Decay::Rows(_)) && keys.side == Side::Right);
        // The second pass is read from the left only, so it is taken on its side.
        assert!(matches!(values.segments[0].decay, Decay::Columns(_)) && values.side == Side::Left, "{values:?}");
        assert_eq!(values.size, [dims.value, 6]);
        assert!(matches!(values.reads[0].query, Query::Right(_)));
        assert!(values.coefficients.nodes.iter().any(|n| matches!(n.op, Op::Softmax { .. })));

        let (_, c) = canonical::<LastKey>(dims);
        assert_eq!(forms(&c).len(), 2);
        assert_eq!(class::<LastKey>(dims), "replaced at every step; identity");
    }
}

// What has no form.

rule!(Fwp1991, |d| qkv(d), |s| {
    let (q, k, v) = s.query_key_value();
    let w = (s.state("w") + outer(v, k)).tanh();
    s.output(w.matvec(q));
    s.set_state("w", w);
});
rule!(FrobeniusClip, |d| qkv(d), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(v, k);
    let w = &w / w.norm().max(1.0);
    s.output(w.matvec(q));
    s.set_state("w", w);
});
rule!(Titans, |d| qkv(d).state("u", [d.value, d.key], StateStart::Zeros).signal("theta", []).signal("eta", []), |s| {
    let (q, k, v) = s.query_key_value();
    let (w, u) = (s.state("w"), s.state("u"));
    let e = w.matvec(&k) - v;
    let u = s.signal("eta").sigmoid() * u - s.signal("theta").sigmoid() * outer(e, k);
    let w = 0.9 * w + &u;
    s.output(w.matvec(q));
    s.set_state("w", w);
    s.set_state("u", u);
});
rule!(LonghornVector, |d| qkv(d).signal("beta", [d.value]), |s| {
    let (q, k, v) = s.query_key_value();
    let beta = s.signal("beta").sigmoid();
    let eps = &beta / (1.0 + &beta * k.norm_squared());
    let w = s.state("w");
    let w = &w + outer(eps * (v - w.matvec(&k)), &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(RowFactors, |d| qkv(d).signal("beta", [d.value]).signal("a", []), |s| {
    let (q, k, v) = s.query_key_value();
    let eps = s.signal("beta").sigmoid();
    let w = s.state("w");
    let erased = s.signal("a") * &eps * w.matvec(&k);
    let w = &w + outer(v, &k) + outer(erased, &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(Mesa, |d| qkv(d).state("h", [d.key, d.key], StateStart::Zeros).signal("g", []), |s| {
    let (q, k, v) = s.query_key_value();
    let g = s.signal("g").sigmoid();
    let w = &g * s.state("w") + outer(v, &k);
    let h = g * s.state("h") + outer(&k, &k);
    let n = k.shape()[0];
    s.output(w.matvec((&h + s.eye(n)).solve_spd(&q, 30, 1e-8)));
    s.set_state("w", w);
    s.set_state("h", h);
});
rule!(
    TwoSided,
    |d| qkv(d).parameter("a", [d.value, d.value], Init::normal(0.5)).parameter("b", [d.key, d.key], Init::normal(0.5)),
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.parameter("a").matmul(s.state("w")).matmul(s.parameter("b")) + outer(v, k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }
);
rule!(TwoVectors, |d| qkv(d), |s| {
    // v v^T W k k^T: what is read along rows and columns at once.
    let (q, k, v) = s.query_key_value();
    let w = s.state("w");
    let w = &w - v.dot(w.matvec(&k)) * outer(&v, &k);
    s.output(w.matvec(&q));
    s.set_state("w", w);
});
rule!(DenseDecay, |d| qkv(d).parameter("w0", [d.value, d.key], Init::normal(0.5)).signal("a", []), |s| {
    let (q, k, v) = s.query_key_value();
    let a = s.signal("a").sigmoid();
    let w = &a * s.state("w") + (1.0 - a) * s.parameter("w0") + outer(v, k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});
rule!(Elementwise, |d| qkv(d).parameter("a", [d.value, d.key], Init::normal(0.5)), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.parameter("a").sigmoid() * s.state("w") + outer(v, k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});
rule!(Held, |d| Signature::new(d).state("w", [d.value, d.key], StateStart::Zeros).held(4), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(v, k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});
// A batch of steps at one value of w, as test-time training has it: w is given there, and what sums its gradients is not.
rule!(
    HeldWithSums,
    |d| Signature::new(d).state("w", [d.value, d.key], StateStart::Zeros).held(4).state(
        "sum",
        [d.value, d.key],
        StateStart::Zeros
    ),
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w");
        let sum = s.state("sum") + outer(w.matvec(&k).layer_norm(1e-6) - v, k);
        s.output((&w - &sum).matvec(q));
        s.set_state("w", w - &sum);
        s.set_state("sum", s.index().rem(4).equal(3).select(0, sum));
    }
);
rule!(SignedColumns, |d| qkv(d).signal("a", [d.key]), |s| {
    let (q, k, v) = s.query_key_value();
    let a = 0.5 * s.signal("a");
    let w = s.state("w").scale_columns(a) + outer(v, k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});
rule!(Squared, |d| qkv(d), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w");
    let w = &w + outer(v - w.matvec(w.matvec_t(w.matvec(&k))), &k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});
rule!(SoftmaxRead, |d| qkv(d), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w");
    let w = &w + outer(v - w.matvec(&k).softmax(), &k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});
rule!(Stopped, |d| qkv(d), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w");
    let w = &w + outer(v - w.matvec(&k).stop_gradient(), &k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});
rule!(TwoRounds, |d| Signature::new(Dims { value: d.key, ..d }).state("w", [d.key, d.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(v, k);
    s.output(w.matvec(w.matvec(q).tanh()));
    s.set_state("w", w);
});
rule!(Unproven, |d| qkv(d), |s| {
    // max(x, x) is x, which no listed identity says.
    let (q, k, v) = s.query_key_value();
    let w = s.state("w");
    let read = w.matvec(&k);
    let w = &w + outer(v - read.max(&read), &k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});
rule!(Stack, |d| Signature::new(d).state("w", [2, d.value, d.key], StateStart::Zeros), |s| {
    let (q, k, v) = s.query_key_value();
    let both = s.state("w") + outer(v, k).expand(0, 2);
    s.output(both.sum_over_axes(&[0]).matvec(q));
    s.set_state("w", both);
});
rule!(WholeResult, |d| qkv(d).extra("memory", [d.value, d.key]), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w") + outer(v, k);
    s.output(w.matvec(q));
    s.extra("memory", 2.0 * &w);
    s.set_state("w", w);
});
rule!(RowsAndErasure, |d| qkv(d).signal("a", [d.value]), |s| {
    let (q, k, v) = s.query_key_value();
    let w = s.state("w");
    let w = w.scale_rows(s.signal("a").sigmoid()) + outer(v - w.matvec(&k), &k);
    s.output(w.matvec(q));
    s.set_state("w", w);
});

fn refused<R: UpdateRule>(dims: Dims) -> (Class, Affine, String, Obstacle, String) {
    let (p, a) = analysed::<R>(dims);
    let found = a.findings.iter().find(|f| f.obstacle.is_some()).or(a.findings.last()).unwrap();
    match a.canonical {
        Err(Reason::Operation { operator, obstacle, why, place, .. }) => {
            assert!(place.contains("tests/analysis.rs:"), "{place}");
            (found.class.clone(), found.affine, operator, obstacle, why)
        }
        other => panic!("{}: {other:?}", p.name),
    }
}

#[test]
fn what_is_in_the_way_is_named() {
    for dims in SIZES {
        let (class, affine, operator, obstacle, _) = refused::<Fwp1991>(dims);
        assert_eq!((class, affine, operator.as_str(), obstacle), (Class::NotAffine, Affine::No, "tanh", Obstacle::NotAffine));
        assert_eq!(analysed::<Fwp1991>(dims).1.findings[0].independent, [Axis::Rows, Axis::Columns]);

        let (class, affine, operator, ..) = refused::<FrobeniusClip>(dims);
        assert_eq!((class, affine, operator.as_str()), (Class::NotAffine, Affine::No, "dot"));
        assert!(analysed::<FrobeniusClip>(dims).1.findings[0].independent.is_empty());

        let (class, affine, _, obstacle, why) = refused::<Titans>(dims);
        assert_eq!((class, affine, obstacle), (Class::Coupled, Affine::InNumbers, Obstacle::Coupled));
        assert!(why.contains("`w` and `u`"), "{why}");

        let (class, _, _, obstacle, _) = refused::<LonghornVector>(dims);
        assert_eq!((class, obstacle), (Class::RowDependent, Obstacle::RowDependent));

        let (_, _, operator, _, why) = refused::<Mesa>(dims);
        assert_eq!(operator, "solve_spd");
        assert!(why.contains("all of state `h`"), "{why}");
        assert_eq!(class_of::<Mesa>(dims), [Class::Scalar, Class::Scalar]);

        let (class, affine, operator, ..) = refused::<TwoSided>(dims);
        assert_eq!((class, affine, operator.as_str()), (Class::TwoSided, Affine::Proven, "matmul"));
        let (class, ..) = refused::<TwoVectors>(dims);
        assert_eq!(class, Class::TwoSided);
        let (class, ..) = refused::<RowsAndErasure>(dims);
        assert_eq!(class, Class::TwoSided);

        let (class, _, _, obstacle, _) = refused::<DenseDecay>(dims);
        assert_eq!((class, obstacle), (Class::Dense, Obstacle::Dense { left: false, right: false }));
        let (class, ..) = refused::<Elementwise>(dims);
        assert_eq!(class, Class::Elementwise);
        let (class, _, _, obstacle, why) = refused::<Held>(dims);
        assert_eq!((class, obstacle), (Class::Held, Obstacle::Held));
        assert!(why.contains("4 steps"), "{why}");

        let (class, _, _, obstacle, why) = refused::<HeldWithSums>(dims);
        assert_eq!((class, obstacle), (Class::Held, Obstacle::Held));
        assert!(why.contains("`w`"), "{why}");
        let sum = &analysed::<HeldWithSums>(dims).1.findings[0];
        assert_eq!((&sum.class, sum.additive, sum.states[0]), (&Class::Scalar, Added::Outer(1), 1));
        let (_, _, _, obstacle, _) = refused::<SignedColumns>(dims);
        assert_eq!(obstacle, Obstacle::Signed);
        assert_eq!(class_of::<SignedColumns>(dims), [Class::Diagonal(Axis::Columns)]);

        let (class, ..) = refused::<Squared>(dims);
        assert_eq!(class, Class::NotAffine);
        let (class, _, operator, ..) = refused::<SoftmaxRead>(dims);
        assert_eq!((class, operator.as_str()), (Class::NotAffine, "softmax"));
        let (_, _, operator, obstacle, _) = refused::<Stopped>(dims);
        assert_eq!((operator.as_str(), obstacle), ("stop_gradient", Obstacle::Stopped));
        let (_, _, _, obstacle, _) = refused::<TwoRounds>(Dims { value: dims.key, ..dims });
        assert_eq!(obstacle, Obstacle::Round);
        let (class, affine, operator, ..) = refused::<Unproven>(dims);
        assert_eq!((class, affine, operator.as_str()), (Class::Unproven, Affine::InNumbers, "max"));
    }
}

/// The operation that is in the way of a form, and the line of this file on which it is said to be.
fn in_the_way<R: UpdateRule>(dims: Dims) -> (String, String) {
    let (p, a) = analysed::<R>(dims);
    let Err(Reason::Operation { operator, place, .. }) = a.canonical else { panic!("{}: {:?}", p.name, a.canonical) };
    let line: usize = place.rsplit(':').nth(1).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{}: {place}", p.name));
    (operator, include_str!("analysis.rs").lines().nth(line - 1).unwrap().trim().to_string())
}

#[test]
fn the_operator_that_is_named_is_the_one_at_the_place() {
    for dims in SIZES {
        for ((operator, line), wanted) in [
            // What makes the next value; what a state is stands where it is declared.
            (in_the_way::<Titans>(dims), ("add", "let w = 0.9 * w + &u;")),
            (
                in_the_way::<RowsAndErasure>(dims),
                ("add", "let w = w.scale_rows(s.signal(\"a\").sigmoid()) + outer(v - w.matvec(&k), &k);"),
            ),
            (
                in_the_way::<Held>(dims),
                ("state", "rule!(Held, |d| Signature::new(d).state(\"w\", [d.value, d.key], StateStart::Zeros).held(4), |s| {"),
            ),
            (
                in_the_way::<Stack>(dims),
                ("state", "rule!(Stack, |d| Signature::new(d).state(\"w\", [2, d.value, d.key], StateStart::Zeros), |s| {"),
            ),
            (in_the_way::<WholeResult>(dims), ("mul", "s.extra(\"memory\", 2.0 * &w);")),
            // The operation that multiplies a read, not the one that makes the factor, nor the last of the step.
            (in_the_way::<LonghornVector>(dims), ("mul", "let w = &w + outer(eps * (v - w.matvec(&k)), &k);")),
            (in_the_way::<RowFactors>(dims), ("mul", "let erased = s.signal(\"a\") * &eps * w.matvec(&k);")),
            (in_the_way::<SignedColumns>(dims), ("mul", "let a = 0.5 * s.signal(\"a\");")),
        ] {
            assert_eq!((operator.as_str(), line.as_str()), wanted);
        }
    }
}

fn class_of<R: UpdateRule>(dims: Dims) -> Vec<Class> {
    analysed::<R>(dims).1.findings.into_iter().map(|f| f.class).collect()
}

#[test]
fn formulas_use_the_plugin_s_names() {
    let formula = |a: Analysis| a.findings.into_iter().flat_map(|f| f.formula).collect::<Vec<_>>();
    let (_, a) = analysed::<Delta>(SIZES[0]);
    assert_eq!(a.reads, ["w' q"]);
    assert_eq!(formula(a), ["w' = w + (u + w p) ⊗ k", "u = sigmoid(beta) * v", "p = -sigmoid(beta) * k"]);
    let (_, a) = analysed::<NormalisedAdditive>(SIZES[0]);
    assert_eq!(formula(a), ["w' = w + v ⊗ k", "z' = z + k"]);
    let (_, a) = analysed::<Oja>(SIZES[0]);
    assert_eq!(formula(a), ["w' = w + v ⊗ (u + w^T p)", "u = sigmoid(beta) * k", "p = -sigmoid(beta) * v"]);
}

#[test]
fn large_and_hostile_steps_end() {
    // A chain as deep as a step may be, and sums whose parts are shared at every level.
    rule!(Deep, |d| qkv(d), |s| {
        let (q, k, v) = s.query_key_value();
        let mut x = v;
        for _ in 0..400 {
            x = x.max(x.tanh()).min(&x + x.sin());
        }
        let w = s.state("w");
        let mut read = w.matvec(&k);
        for _ in 0..400 {
            read = x.less(0.0).select(&read + &x, 0.5 * &read);
        }
        let w = &w + outer(x - read, &k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    });
    let (_, a) = analysed::<Deep>(SIZES[0]);
    assert!(a.canonical.is_err());
}
