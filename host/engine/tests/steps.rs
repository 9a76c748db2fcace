//! Rules of every kind that a step can describe, walked by the executor and by the interpreter.

#[macro_use]
mod support;

use fwp_sdk::prelude::*;
use fwp_sdk::program::Program;
use fwp_sdk::testing;
use serde_json::json;
use support::identity;
use support::interpreted::{Trial, agrees};

/// All sizes equal, then all sizes different primes.
const SIZES: [(i64, i64, i64, usize, usize); 2] = [(3, 3, 3, 3, 3), (2, 7, 3, 5, 2)];

rules! {
    // Several keys a token, written one after another.
    Product "product" (d)
        Signature::without_inputs(d).query("q", [d.key]).key("k", [d.key]).count(2).value("v", [d.value]).count(2)
            .signal("beta", [2]).state("w", [d.value, d.key], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        let mut w = s.state("w");
        for i in 0..2 {
            w = &w + beta.at(i) * outer(v.at(i) - w.matvec(k.at(i)), k.at(i));
        }
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }

    // Keys and queries shared by all heads, a gate a group, decay by row and column.
    Grouped "grouped" (d)
        Signature::without_inputs(d).query("q", [d.key]).heads(1).key("k", [d.key]).heads(1).value("v", [d.value])
            .signal("decay", [d.key]).signal("rows", [d.value]).state("w", [d.value, d.key], StateStart::Constant(0.5));
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w").scale_columns(s.signal("decay").sigmoid()).scale_rows(s.signal("rows").tanh()) - outer(&v, &k);
        s.output(w.matvec(&q).rms_norm(1e-6));
        s.set_state("w", w);
    }

    // Trained initial states and parameters of every scope.
    Trained "trained" (d)
        Signature::new(d).state("w", [d.value, d.key], StateStart::Trained(Init::normal(0.1)))
            .parameter("rate", [], Init::constant(0.1))
            .parameter("mix", [d.value, d.value], Init::normal(0.5)).scope(Scope::Layer)
            .parameter("bias", [d.value], Init::zeros()).scope(Scope::Model);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w");
        let error = s.parameter("mix").matvec(&v) - w.matvec(&k);
        let w = &w + s.parameter("rate").exp() * outer(&error, &k);
        s.output(w.matvec(&q) + s.parameter("bias"));
        s.set_state("w", w);
    }

    // The gradient of an objective through a layer norm, at weights that are held for three steps (TTT with mini-batches).
    Held "held" (d)
        Signature::new(d).signal("eta", []).state("w", [d.value, d.key], StateStart::Zeros).held(3)
            .state("g", [d.value, d.key], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let (w, g) = (s.state("w"), s.state("g"));
        let loss = 0.5 * (w.matvec(&k).layer_norm(1e-3) - v).norm_squared();
        let sum = &g + s.signal("eta").sigmoid() * loss.gradient(&w);
        let new = &w - &sum;
        let ends = (s.index() + 1).rem(3).equal(0);
        s.output(new.matvec(&q));
        s.set_state("g", ends.select(s.full(&new.shape(), 0.0), &sum));
        s.set_state("w", new);
    }

    // No query, key or value: a matrix that generates everything itself.
    SelfReferential "self-referential" (d)
        Signature::without_inputs(d).signal("x", [d.key]).state("w", [d.value + 2 * d.key + 1, d.key], StateStart::Constant(0.2))
            .output([d.value]);
    |s| {
        let x = s.signal("x").softmax();
        let w = s.state("w");
        let (dk, dv) = (x.shape()[0], w.shape()[0] - 2 * x.shape()[0] - 1);
        let parts = w.matvec(&x).split(0, &[dv, dk, dk, 1]);
        let (q, k) = (parts[1].softmax(), parts[2].softmax());
        let beta = parts[3].reshape(&[]).sigmoid();
        let (new, old) = (w.matvec(&q), w.matvec(&k));
        s.output(&parts[0] * 2.0);
        s.set_state("w", &w + outer(beta * (new - old), &k));
    }

    // Coupled states with extra outputs: a momentum.
    Momentum "momentum" (d)
        Signature::new(d).signal("alpha", []).signal("beta", []).state("w", [d.value, d.key], StateStart::Zeros)
            .state("m", [d.value, d.key], StateStart::Zeros).extra("error", [d.value]).extra("size", []);
    |s| {
        let (q, k, v) = s.query_key_value();
        let (w, m) = (s.state("w"), s.state("m"));
        let error = w.matvec(&k) - v;
        let m = m * s.signal("beta").sigmoid() - outer(&error, &k);
        let w = w * s.signal("alpha").sigmoid() + &m;
        s.extra("size", w.norm_squared());
        s.extra("error", error);
        s.output(w.matvec(&q));
        s.set_state("w", w);
        s.set_state("m", m);
    }

    // Exponential gates with a stabiliser, a normaliser, and a division that may meet zero (mLSTM).
    Stabilised "stabilised" (d)
        Signature::new(d).signal("i", []).signal("f", []).state("c", [d.value, d.key], StateStart::Zeros)
            .state("n", [d.key], StateStart::Zeros).state("m", [], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let (i, f) = (s.signal("i"), s.signal("f").log_sigmoid());
        let m = (&f + s.state("m")).max(&i);
        let keep = (&f + s.state("m") - &m).exp();
        let take = (&i - &m).exp();
        let c = s.state("c") * &keep + &take * outer(&v, &k);
        let n = s.state("n") * keep + take * &k;
        let divisor = n.dot(&q).abs().max((-&m).exp());
        s.output(c.matvec(&q).div_or(divisor, 0.0));
        s.set_state("c", c);
        s.set_state("n", n);
        s.set_state("m", m);
    }

    // A hierarchy of levels chosen by the bits of the index (log-linear attention).
    Levels "levels" (d)
        Signature::new(d).signal("lambda", [3]).state("w", [3, d.value, d.key], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let level = (s.index() + 1).trailing_zeros().min(2);
        let here = level.one_hot(3);
        let w = s.state("w");
        let (dv, dk) = (w.shape()[1], w.shape()[2]);
        let below = s.arange(3).less(&level).to_float();
        let whole = (outer(&v, &k) + below.reshape(&[1, 3]).matmul(w.reshape(&[3, dv * dk])).reshape(&[dv, dk])).reshape(&[1, dv * dk]);
        let kept = (s.full(&[3], 1.0) - &below).expand(1, dv * dk) * w.reshape(&[3, dv * dk]);
        let w = (kept + here.reshape(&[3, 1]).matmul(&whole)).reshape(&[3, dv, dk]);
        let mixed = s.signal("lambda").softplus().reshape(&[1, 3]).matmul(w.reshape(&[3, dv * dk])).reshape(&[dv, dk]);
        s.output(mixed.matvec(&q));
        s.set_state("w", w);
    }

    // A ridge regression solved anew at every step by conjugate gradients (MesaNet).
    Mesa "mesa" (d)
        Signature::new(d).state("h", [d.key, d.key], StateStart::Zeros).state("g", [d.value, d.key], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let h = s.state("h") + outer(&k, &k);
        let g = s.state("g") + outer(&v, &k);
        let n = k.shape()[0];
        s.output(g.matvec((&h + s.eye(n)).solve_spd(&q, 20, 1e-13)));
        s.set_state("h", h);
        s.set_state("g", g);
    }

    // The map inside of the step, with a gradient through it, and a repetition.
    Mapped "mapped" (d)
        Signature::without_inputs(d).query("q", [d.key]).key("k", [d.key_raw]).raw().value("v", [d.value])
            .state("w", [d.value, d.key], StateStart::Constant(0.1)).state("x", [d.key_raw], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w");
        let x = s.state("x") + k;
        let loss = (w.matvec(s.phi(&x)) - &v).norm_squared();
        let x = &x - 0.05 * loss.gradient(&x);
        let y = s.phi_query(&x);
        let w = s.repeat(3, &[&w], &[&y, &v], |w, with| vec![&w[0] + 0.1 * outer(&with[1] - w[0].matvec(&with[0]), &with[0])]);
        s.output(w[0].matvec(&q));
        s.set_state("w", w[0].clone());
        s.set_state("x", x * 0.5);
    }

    // The map inside of the step and nothing else that asks for the index.
    Inside "inside" (d)
        Signature::without_inputs(d).query("q", [d.key]).key("k", [d.key_raw]).raw().value("v", [d.value])
            .state("w", [d.value, d.key], StateStart::Zeros).state("x", [d.key_raw], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let x = s.state("x") * 0.5 + k;
        let w = s.state("w") + outer(&v, s.phi(&x));
        s.output(w.matvec(&q));
        s.set_state("w", w);
        s.set_state("x", x);
    }

    // Updates that look like rank one and are not simply added, and products that are read twice.
    Lookalikes "lookalikes" (d)
        Signature::new(d).signal("beta", []).state("w", [d.value, d.key], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w");
        let beta = s.signal("beta");
        let read = w.matvec(&k);
        let twice = outer(&read, &k);
        let w = outer(&v, &k) - &w * 0.9;
        let w = outer(&read, &q) * &beta + w;
        let w = w + &twice * 0.5 + beta.tanh() * (&twice * 0.1);
        let w = w - outer(&read, read.sum().tanh().expand(0, k.shape()[0]));
        s.output(w.matvec(&q) + twice.sum_over_axes(&[1]));
        s.set_state("w", w);
    }
}

config! {
    /// A map with parameters of its own that tells keys from queries and counts steps.
    pub struct Turning {}
}
impl FeatureMap for Turning {
    const NAME: &'static str = "turning";
    const CITATION: &'static str = "test";
    fn features(&self, dim: usize) -> usize {
        dim + 2
    }
    fn apply(&self, map: &Map) -> Expr {
        let x = map.input();
        let w = map.parameter("w", &[map.dim, map.dim], Init::normal(0.3));
        let r = map.random("r", &[2, map.dim], Init::normal(1.0), false);
        let turned = w.matvec(&x) * (map.index().to_float() * 0.1).cos();
        let turned = if map.role == MapRole::Query { turned * 2.0 } else { turned };
        concat(0, &[&turned, &r.matvec(&x).sin()])
    }
}

fn dims(heads: i64, dk: usize, dv: usize) -> Dims {
    Dims { heads: heads as usize, key_raw: dk, key: dk, value: dv, ..Dims::ONE }
}

fn described<R: UpdateRule>(dims: Dims) -> Program {
    testing::rule::<R>(json!({}), dims).unwrap_or_else(|e| panic!("{e}"))
}

fn agrees_everywhere<R: UpdateRule>() {
    for (b, t, h, dk, dv) in SIZES {
        let rule = described::<R>(dims(h, dk, dv));
        let map = identity(dk);
        let plain = Trial::new(b, t, h);
        agrees(&rule, &map, &plain);
        agrees(&rule, &map, &Trial { states: true, resets: true, ..Trial::new(b, t, h) });
        agrees(&rule, &map, &Trial { masked: true, ..Trial::new(b, t, h) });
    }
}

macro_rules! everywhere {
    ($( $test:ident $rule:ident; )*) => { $( #[test] fn $test() { agrees_everywhere::<$rule>(); } )* };
}

everywhere! {
    several_keys_a_token Product;
    inputs_shared_by_groups_of_heads Grouped;
    trained_initial_states_and_parameters_of_every_scope Trained;
    a_held_state_and_a_gradient_through_a_norm Held;
    a_rule_without_query_key_and_value SelfReferential;
    coupled_states_and_extra_outputs Momentum;
    exponential_gates_with_a_stabiliser Stabilised;
    levels_by_the_bits_of_the_index Levels;
    lookalikes_of_a_rank_one_update Lookalikes;
}

rules! {
    // Two groups of heads, of which `apply` learns from the sizes of its inputs.
    Pairs "pairs" (d)
        Signature::without_inputs(d).query("q", [d.key]).key("k", [d.key]).heads(2).value("v", [d.value])
            .state("w", [d.value, d.key], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") + outer(&v, &k);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
}

#[test]
fn two_groups_of_four_heads() {
    agrees(&described::<Pairs>(dims(4, 3, 2)), &identity(3), &Trial::new(2, 5, 4));
}

#[test]
fn a_system_solved_in_every_step() {
    for (b, t, h, dk, dv) in SIZES {
        // No random initial state: the system must be positive definite.
        let rule = described::<Mesa>(dims(h, dk, dv));
        agrees(&rule, &identity(dk), &Trial { resets: true, ..Trial::new(b, t, h) });
        agrees(&rule, &identity(dk), &Trial { masked: true, ..Trial::new(b, t, h) });
    }
}

#[test]
fn a_map_with_parameters_before_and_inside_of_the_step() {
    for (b, t, h, dk, dv) in SIZES {
        let map = testing::map::<Turning>(json!({ "normalise": "l2", "normalise_eps": 0.1 }), dk).unwrap();
        let dims = Dims { heads: h as usize, key_raw: dk, key: dk + 2, value: dv, ..Dims::ONE };
        for rule in [described::<Mapped>(dims), described::<Inside>(dims), described::<Product>(dims), described::<Trained>(dims)]
        {
            agrees(&rule, &map, &Trial::new(b, t, h));
            agrees(&rule, &map, &Trial { resets: true, states: true, ..Trial::new(b, t, h) });
        }
    }
}
