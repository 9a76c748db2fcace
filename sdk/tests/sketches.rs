//! Hard cases of the literature, said with the SDK as it is: each must build, come back from its bytes, and be of the stated shapes.
//!
//! The sizes are different primes, so that nothing fits by accident.
//! What these programs compute is tested where they are executed.

mod support;

use fwp_sdk::prelude::*;
use fwp_sdk::program::{Op, Program, Role, RuleInput, SlotInterface, Training};
use fwp_sdk::serde_json::json;
use fwp_sdk::testing;

const DIMS: Dims = Dims { heads: 4, key_raw: 5, key: 7, value: 3, layers: 13, max_len: 1000 };
const EPS: f64 = 1e-6;

/// An update rule without configuration.
macro_rules! rule {
    ($name:ident, |$dims:ident| $signature:expr, |$s:ident| $step:block) => {{
        config! {
            /// A sketch.
            pub struct $name {}
        }
        impl UpdateRule for $name {
            const NAME: &'static str = stringify!($name);
            const CITATION: &'static str = "see the name";
            const OBJECTIVE: &'static str = "see the paper";
            fn signature(&self, $dims: Dims) -> Signature {
                $signature
            }
            fn step(&self, $s: &mut Step) {
                $step
            }
        }
        testing::rule::<$name>(json!({}), DIMS).unwrap_or_else(|e| panic!("{e}"))
    }};
}

fn ops(p: &Program, wanted: fn(&Op) -> bool) -> usize {
    p.functions.iter().flat_map(|f| &f.nodes).filter(|n| wanted(&n.op)).count()
}

fn zeros<const N: usize>(signature: Signature, name: &str, shape: [usize; N]) -> Signature {
    signature.state(name, shape, StateStart::Zeros)
}

#[test]
fn case_1_linear_attention_with_its_normaliser() {
    let p = rule!(Additive, |d| zeros(zeros(Signature::new(d), "w", [d.value, d.key]), "z", [d.key]), |s| {
        let (q, k, v) = s.query_key_value();
        let (w, z) = (s.state("w") + outer(v, &k), s.state("z") + k);
        s.output(w.matvec(&q).div_or(z.dot(&q) + EPS, 0));
        s.set_state("w", w);
        s.set_state("z", z);
    });
    assert_eq!(p.states.len(), 2);
}

#[test]
fn case_2_delta_with_attention_normalisation() {
    rule!(NormalisedDelta, |d| zeros(zeros(Signature::new(d), "w", [d.value, d.key]), "z", [d.key]).signal("beta", []), |s| {
        let (q, k, v) = s.query_key_value();
        let (w, z) = (s.state("w"), s.state("z"));
        let old = w.matvec(&k).div_or(z.dot(&k), 0);
        let w = w + s.signal("beta").sigmoid() * outer(v - old, &k);
        let z = z + &k;
        s.output(w.matvec(&q).div_or(z.dot(&q), 0));
        s.set_state("w", w);
        s.set_state("z", z);
    });
}

#[test]
fn case_3_mlstm() {
    rule!(
        Mlstm,
        |d| zeros(zeros(Signature::new(d), "c", [d.value, d.key]), "n", [d.key])
            .state("m", [], StateStart::Constant(0.0))
            .signal("i", [])
            .signal("f", []),
        |s| {
            let (q, k, v) = s.query_key_value();
            let (c, n, m0) = (s.state("c"), s.state("n"), s.state("m"));
            let (i, f) = (s.signal("i"), s.signal("f").log_sigmoid());
            let m = (&f + &m0).max(&i);
            let (i, f) = ((i - &m).exp(), (f + m0 - &m).exp());
            let c = &f * c + &i * outer(v, &k);
            let n = f * n + i * k;
            s.output(c.matvec(&q) / n.dot(&q).abs().max((-&m).exp()));
            s.set_state("c", c);
            s.set_state("n", n);
            s.set_state("m", m);
        }
    );
}

#[test]
fn case_4_rwkv_6_and_7() {
    rule!(
        Rwkv6,
        |d| zeros(Signature::new(d), "w", [d.value, d.key]).signal("decay", [d.key]).parameter("u", [d.key], Init::normal(0.1)),
        |s| {
            let (r, k, v) = s.query_key_value();
            let w = s.state("w");
            s.output(w.matvec(&r) + &v * (s.parameter("u") * &k).dot(&r));
            let decay = (-s.signal("decay").exp()).exp();
            s.set_state("w", w.scale_columns(decay) + outer(v, k));
        }
    );
    let p = rule!(
        Rwkv7,
        |d| zeros(Signature::new(d), "w", [d.value, d.key])
            .signal("a", [d.key])
            .signal("decay", [d.key])
            .parameter("k_k", [d.key], Init::ones())
            .no_decay()
            .parameter("k_a", [d.key], Init::ones())
            .no_decay()
            .parameter("r_k", [d.key], Init::zeros())
            .no_decay()
            .extra("bonus", [d.value]),
        |s| {
            let (r, k, v) = s.query_key_value();
            let kappa = (&k * s.parameter("k_k")).l2_normalise(EPS);
            let a = s.signal("a").sigmoid();
            let kt = k * (1 + (&a - 1) * s.parameter("k_a"));
            let decay = (-0.6065 * s.signal("decay").sigmoid()).exp();
            let w = s.state("w");
            let w = w.scale_columns(decay) - outer(w.matvec(&kappa), a * &kappa) + outer(&v, &kt);
            s.output(w.matvec(&r));
            s.extra("bonus", (r * kt * s.parameter("r_k")).sum() * v);
            s.set_state("w", w);
        }
    );
    assert!(p.entry("step").unwrap().output("extra.bonus").is_some());
}

#[test]
fn case_5_mamba_2_with_shared_keys_and_its_own_initialisers() {
    let p = rule!(
        Mamba2,
        |d| zeros(Signature::without_inputs(d), "s", [d.value, d.key])
            .query("c", [d.key])
            .heads(2)
            .key("b", [d.key])
            .heads(2)
            .value("x", [d.value])
            .signal("dt", [])
            // The inverse softplus of log-uniform draws from 0.001 to 0.1.
            .parameter("dt_bias", [], Init::program(|r, s| (r.uniform(s) * 100f64.ln() + 0.001f64.ln()).exp().expm1().log()))
            .no_decay()
            .parameter("a_log", [], Init::program(|r, s| (r.uniform(s) * 15 + 1).log()))
            .no_decay()
            .parameter("d", [], Init::ones())
            .no_decay(),
        |s| {
            let (c, b, x) = (s.input("c"), s.input("b"), s.input("x"));
            let dt = (s.signal("dt") + s.parameter("dt_bias")).softplus();
            let decay = (-&dt * s.parameter("a_log").exp()).exp();
            let state = decay * s.state("s") + outer(dt * &x, b);
            s.output(state.matvec(c) + s.parameter("d") * x);
            s.set_state("s", state);
        }
    );
    assert_eq!(p.inputs[0].heads, Some(2));
    assert!(p.entry("step").unwrap().parameters.iter().all(|q| q.training == Training::Trained { decay: false }));
}

#[test]
fn case_6_gated_delta_product() {
    const N: usize = 3;
    let p = rule!(
        DeltaProduct,
        |d| zeros(Signature::without_inputs(d), "w", [d.value, d.key])
            .query("q", [d.key])
            .key("k", [d.key])
            .count(N)
            .value("v", [d.value])
            .count(N)
            .signal("beta", [N])
            .signal("g", []),
        |s| {
            let (k, v, beta) = (s.input("k"), s.input("v"), s.signal("beta").sigmoid());
            let mut w = s.signal("g").log_sigmoid().exp() * s.state("w");
            for j in 0..N {
                let k = k.at(j);
                w = &w + beta.at(j) * outer(v.at(j) - w.matvec(&k), &k);
            }
            s.output(w.matvec(s.input("q")));
            s.set_state("w", w);
        }
    );
    assert_eq!(p.inputs[1].full_shape(), [3, 7]);
}

#[test]
fn case_7_mesa_net() {
    rule!(
        Mesa,
        |d| zeros(zeros(Signature::new(d), "g", [d.value, d.key]), "h", [d.key, d.key])
            .signal("gamma", [])
            .signal("beta", [])
            .parameter("lambda", [d.key], Init::ones()),
        |s| {
            let (q, k, v) = s.query_key_value();
            let (gamma, beta) = (s.signal("gamma").sigmoid(), s.signal("beta").sigmoid());
            let g = &gamma * s.state("g") + &beta * outer(v, &k);
            let h = gamma * s.state("h") + beta * outer(&k, &k);
            let ridge = s.eye(k.shape()[0]).scale_rows(s.parameter("lambda").softplus());
            s.output(g.matvec((&h + ridge).solve_spd(q, 30, 0.0)));
            s.set_state("g", g);
            s.set_state("h", h);
        }
    );
}

/// x + layer norm of a two-layer net.
fn mlp(x: &Expr, p: &[Expr]) -> Expr {
    let hidden = (p[0].matvec(x) + &p[1]).gelu();
    x + (p[2].matvec(hidden) + &p[3]).layer_norm(EPS)
}

#[test]
fn case_8_ttt_mlp_with_held_weights_and_a_gradient_of_each() {
    const EVERY: usize = 16;
    const NAMES: [&str; 4] = ["w1", "b1", "w2", "b2"];
    let p = rule!(
        TttMlp,
        |d| {
            let n = d.key;
            let trained = || StateStart::Trained(Init::normal(0.02));
            let mut g = Signature::without_inputs(d).query("q", [n]).key("k", [n]).value("v", [n]).output([n]);
            g = g.state("w1", [4 * n, n], trained()).held(EVERY).state("b1", [4 * n], trained()).held(EVERY);
            g = g.state("w2", [n, 4 * n], trained()).held(EVERY).state("b2", [n], trained()).held(EVERY);
            g = zeros(zeros(g, "acc_w1", [4 * n, n]), "acc_b1", [4 * n]);
            zeros(zeros(g, "acc_w2", [n, 4 * n]), "acc_b2", [n])
        },
        |s| {
            let (q, k) = (s.input("q"), s.input("k"));
            let base = NAMES.map(|n| s.state(n));
            let loss = (mlp(&k, &base) - s.input("v")).norm_squared();
            let gradients = loss.gradients(&base.iter().collect::<Vec<_>>());
            let last = s.index().rem(EVERY as i64).equal(EVERY as i64 - 1);
            let mut now = Vec::new();
            for ((name, base), g) in NAMES.iter().zip(&base).zip(gradients) {
                let sum = s.state(&format!("acc_{name}")) + g;
                let next = base - 0.1 * &sum;
                s.set_state(name, &next);
                s.set_state(&format!("acc_{name}"), last.select(0, &sum));
                now.push(next);
            }
            s.output(mlp(&q, &now));
        }
    );
    assert_eq!(p.states.iter().map(|s| s.held).collect::<Vec<_>>(), [16, 16, 16, 16, 1, 1, 1, 1]);
}

#[test]
fn case_9_titans() {
    rule!(
        Titans,
        |d| zeros(zeros(Signature::new(d), "w", [d.value, d.key]), "u", [d.value, d.key])
            .signal("alpha", [])
            .signal("eta", [])
            .signal("theta", []),
        |s| {
            let (q, k, v) = s.query_key_value();
            let w = s.state("w");
            let g = (w.matvec(k) - v).norm_squared().gradient(&w);
            let u = s.signal("eta").sigmoid() * s.state("u") - s.signal("theta").softplus() * g;
            let w = (1 - s.signal("alpha").sigmoid()) * w + &u;
            s.output(w.matvec(q));
            s.set_state("w", w);
            s.set_state("u", u);
        }
    );
}

#[test]
fn case_10_self_referential_weight_matrix() {
    let p = rule!(
        Srwm,
        |d| {
            let (x, y) = (d.value, d.value);
            Signature::without_inputs(d).value("x", [x]).output([y]).state(
                "w",
                [y + 2 * x + 4, x],
                StateStart::Trained(Init::normal(0.02)),
            )
        },
        |s| {
            let x = s.input("x").softmax();
            let n = x.shape()[0];
            let w = s.state("w");
            let parts = w.matvec(&x).split(0, &[n, n, n, 4]);
            let (q, k, rates) = (parts[1].softmax(), parts[2].softmax(), parts[3].sigmoid());
            // One rate for each of the four groups of rows.
            let sizes = [n, n, n, 4];
            let rows: Vec<Expr> = sizes.iter().enumerate().map(|(i, size)| rates.at(i).expand(0, *size)).collect();
            let rates = concat(0, &rows.iter().collect::<Vec<_>>());
            s.set_state("w", &w + outer(rates * (w.matvec(q) - w.matvec(&k)), &k));
            s.output(&parts[0]);
        }
    );
    assert_eq!(p.inputs.len(), 1);
}

#[test]
fn case_11_delta_rnn() {
    rule!(
        DeltaRnn,
        |d| zeros(zeros(zeros(Signature::new(d), "w", [d.value, d.key]), "r", [d.value, d.value]), "y", [d.value])
            .key("k_r", [d.value])
            .raw()
            .value("v_r", [d.value])
            .signal("beta", [])
            .signal("beta_r", []),
        |s| {
            let (q, k, v) = s.query_key_value();
            let delta = |w: Expr, k: &Expr, v: Expr, beta: &str| &w + s.signal(beta).sigmoid() * outer(v - w.matvec(k), k);
            let w = delta(s.state("w"), &k, v, "beta");
            let r = delta(s.state("r"), &s.input("k_r").softmax(), s.input("v_r"), "beta_r");
            let y = w.matvec(q) + r.matvec(s.state("y").softmax());
            s.output(&y);
            s.set_state("w", w);
            s.set_state("r", r);
            s.set_state("y", y);
        }
    );
}

#[test]
fn case_12_a_recurrent_delta_net_that_maps_inside_the_step() {
    let p = rule!(
        RecurrentDelta,
        |d| zeros(zeros(Signature::without_inputs(d), "w", [d.value, d.key]), "y", [d.value])
            .query("xq", [d.key_raw])
            .raw()
            .key("xk", [d.key_raw])
            .raw()
            .value("xv", [d.value])
            .signal("xb", [])
            .parameter("r_q", [d.key_raw, d.value], Init::normal(0.02))
            .parameter("r_k", [d.key_raw, d.value], Init::normal(0.02))
            .parameter("r_v", [d.value, d.value], Init::normal(0.02))
            .parameter("r_b", [d.value], Init::normal(0.02)),
        |s| {
            let h = s.state("y").tanh();
            let more = |x: &str, r: &str| s.input(x) + s.parameter(r).matvec(&h);
            let (q, k, v) = (s.phi_query(more("xq", "r_q")), s.phi(more("xk", "r_k")), more("xv", "r_v"));
            let beta = (s.signal("xb") + s.parameter("r_b").dot(&h)).sigmoid();
            let w = s.state("w");
            let w = &w + beta * outer(v - w.matvec(&k), &k);
            let y = w.matvec(q);
            s.output(&y);
            s.set_state("w", w);
            s.set_state("y", y);
        }
    );
    assert_eq!(ops(&p, |op| matches!(op, Op::Phi { size: 7, .. })), 2);
}

#[test]
fn case_13_delta_delta() {
    let p = rule!(
        DeltaDelta,
        |d| {
            let n = d.value;
            Signature::without_inputs(d)
                .query("q", [d.key])
                .key("k", [d.key])
                // The first memory answers what the second one writes: query, key, value and rate.
                .value("v", [2 * d.key_raw + n + 1])
                .signal("beta", [])
                .output([n])
                .state("w1", [2 * d.key_raw + n + 1, d.key], StateStart::Zeros)
                .state("w2", [n, d.key], StateStart::Zeros)
        },
        |s| {
            let (w1, w2, k) = (s.state("w1"), s.state("w2"), s.input("k"));
            let w1 = &w1 + s.signal("beta").sigmoid() * outer(s.input("v") - w1.matvec(&k), &k);
            let n = w2.shape()[0];
            let raw = (w1.shape()[0] - n - 1) / 2;
            let parts = w1.matvec(s.input("q")).split(0, &[raw, raw, n, 1]);
            let (q, k) = (s.phi_query(&parts[0]), s.phi(&parts[1]));
            let w2 = &w2 + parts[3].at(0).sigmoid() * outer(&parts[2] - w2.matvec(&k), &k);
            s.output(w2.matvec(q));
            s.set_state("w1", w1);
            s.set_state("w2", w2);
        }
    );
    assert_eq!(p.states.len(), 2);
}

#[test]
fn case_14_fast_weights_of_ba_et_al_as_a_rule() {
    let p = rule!(
        BaAsRule,
        |d| zeros(zeros(Signature::without_inputs(d), "a", [d.value, d.value]), "h", [d.value])
            .value("x", [d.value])
            .parameter("w", [d.value, d.value], Init::scaled_identity(0.05))
            .parameter("c", [d.value, d.value], Init::xavier_uniform())
            .parameter("gain", [d.value], Init::ones())
            .parameter("bias", [d.value], Init::zeros()),
        |s| {
            let z = s.parameter("w").matvec(s.state("h")) + s.parameter("c").matvec(s.input("x"));
            let (a, gain, bias) = (s.state("a"), s.parameter("gain"), s.parameter("bias"));
            let h = s.repeat(3, &[&z.relu()], &[&z, &a, &gain, &bias], |h, with| {
                vec![((&with[0] + with[1].matvec(&h[0])).layer_norm(EPS) * &with[2] + &with[3]).relu()]
            });
            s.output(&h[0]);
            s.set_state("a", 0.95 * &a + 0.5 * outer(&h[0], &h[0]));
            s.set_state("h", &h[0]);
        }
    );
    assert_eq!(ops(&p, |op| matches!(op, Op::Loop { count: 3, .. })), 1);
}

#[test]
fn case_17_log_linear_attention() {
    /// One level more than there are binary digits in the number of steps.
    fn levels(d: Dims) -> usize {
        d.max_len.ilog2() as usize + 2
    }
    let p = rule!(LogLinear, |d| zeros(Signature::new(d), "s", [levels(d), d.value, d.key]).signal("lambda", [levels(d)]), |s| {
        let n = s.signal("lambda").shape()[0];
        let (q, k, v) = s.query_key_value();
        let (dv, dk) = (v.shape()[0], k.shape()[0]);
        // At step t the levels below l(t) flow into l(t) and the new pair becomes level 0.
        let level = (s.index() + 1).trailing_zeros() + 1;
        let levels = s.arange(n);
        let old = s.state("s").reshape(&[n, dv * dk]);
        let below = levels.less(&level).to_float();
        let merged = outer(levels.equal(&level).to_float(), below.matmul_row(&old));
        let kept = old.scale_rows(levels.greater(&level).to_float() + levels.equal(&level).to_float());
        let first = s.constant(1.0).expand(0, 1);
        let first = concat(0, &[&first, &s.full(&[n - 1], 0.0)]);
        let new = (kept + merged + outer(first, outer(v, k).reshape(&[dv * dk]))).reshape(&[n, dv, dk]);
        let reads = new.reshape(&[n * dv, dk]).matvec(q).reshape(&[n, dv]);
        s.output(reads.matvec_t(s.signal("lambda").softplus()));
        s.set_state("s", new);
    });
    assert_eq!(p.states[0].shape, [11, 3, 7]);
}

/// Row vector times matrix.
trait Row {
    fn matmul_row(&self, m: &Expr) -> Expr;
}

impl Row for Expr {
    fn matmul_row(&self, m: &Expr) -> Expr {
        m.matvec_t(self)
    }
}

#[test]
fn case_18_gated_slot_attention() {
    const SLOTS: usize = 11;
    rule!(
        GatedSlots,
        |d| zeros(zeros(Signature::new(d), "k_mem", [SLOTS, d.key]), "v_mem", [SLOTS, d.value]).signal("alpha", [SLOTS]),
        |s| {
            let (q, k, v) = s.query_key_value();
            let a = s.signal("alpha").sigmoid();
            let ks = s.state("k_mem").scale_rows(&a) + outer(1 - &a, k);
            let vs = s.state("v_mem").scale_rows(&a) + outer(1 - &a, v);
            s.output(vs.matvec_t(ks.matvec(q).softmax()));
            s.set_state("k_mem", ks);
            s.set_state("v_mem", vs);
        }
    );
}

#[test]
fn case_19_oja() {
    rule!(Oja, |d| zeros(Signature::new(d), "w", [d.value, d.key]).signal("beta", []), |s| {
        let (q, k, v) = s.query_key_value();
        let (w, v) = (s.state("w"), v.l2_normalise(EPS));
        let w = &w + s.signal("beta").sigmoid() * outer(&v, k - w.matvec_t(&v));
        s.output(w.matvec(q));
        s.set_state("w", w);
    });
}

#[test]
fn case_26_constants_of_a_head_and_bounds_over_layers() {
    let p = rule!(
        RetNet,
        |d| zeros(Signature::new(d), "s", [d.value, d.key])
            .parameter("gamma", [], Init::program(|r, _| 1 - (-(5 + r.head()).to_float() * 2f64.ln()).exp()))
            .constant(),
        |s| {
            let (q, k, v) = s.query_key_value();
            let w = s.parameter("gamma") * s.state("s") + outer(v, k);
            s.output(w.matvec(q));
            s.set_state("s", w);
        }
    );
    assert_eq!(p.entry("step").unwrap().parameters[0].training, Training::Constant);

    let p = rule!(
        Hgrn2,
        |d| zeros(Signature::without_inputs(d), "s", [d.value, d.key])
            .query("q", [d.key])
            .raw()
            .value("v", [d.value])
            .signal("f", [d.key])
            .parameter("bounds", [d.layers, d.key], Init::zeros())
            .scope(Scope::Model),
        |s| {
            let bounds = s.parameter("bounds").softmax_on(0).cumsum(0);
            let low = s.at_layer(&bounds) - bounds.at(0);
            let f = &low + (1 - &low) * s.signal("f").sigmoid();
            let w = s.state("s").scale_columns(&f) + outer(s.input("v"), 1 - f);
            s.output(w.matvec(s.input("q")));
            s.set_state("s", w);
        }
    );
    // The layer is a constant of every layer beside the bounds that all share.
    assert_eq!(p.entry("step").unwrap().parameters[0].shape, [13, 7]);
    assert_eq!(p.entry("step").unwrap().parameters[1].shape, [13]);
    let scopes: Vec<Scope> = p.entry("step").unwrap().parameters.iter().map(|q| q.scope).collect();
    assert_eq!(scopes, [Scope::Model, Scope::Layer]);
}

// ---- feature maps

#[test]
fn case_15_favor_plus() {
    config! {
        /// Positive random features: exp(R x - |x|^2 / 2) / sqrt(m).
        pub struct Favor {
            /// Number of features.
            m: usize = 11,
        }
    }
    impl FeatureMap for Favor {
        const NAME: &'static str = "favor+";
        const CITATION: &'static str = "Choromanski et al. 2021, arXiv 2009.14794";
        fn features(&self, _dim: usize) -> usize {
            self.m
        }
        fn apply(&self, map: &Map) -> Expr {
            let rows = Init::program(|r, shape| r.orthogonal(shape[0], shape[1]));
            let r = map.random("r", &[self.m, map.dim], rows, true);
            let x = map.input() / (map.dim as f64).sqrt().sqrt();
            let h = r.matvec(&x) - 0.5 * x.norm_squared();
            // A key's stabiliser would have to be one number for all keys: only the query has one.
            let h = if map.role == MapRole::Query { &h - h.largest().stop_gradient() } else { h };
            (h.exp() + EPS) / (self.m as f64).sqrt()
        }
    }
    let p = testing::map::<Favor>(json!({}), 5).unwrap();
    for name in ["key", "query"] {
        assert_eq!(p.entry(name).unwrap().parameters[0].training, Training::Redrawn);
    }
}

#[test]
fn case_25_a_map_that_knows_the_place() {
    config! {
        /// cosFormer: relu(x) cos and sin of the place.
        pub struct CosFormer {
            /// Longest sequence.
            max_len: usize = 128,
        }
    }
    impl FeatureMap for CosFormer {
        const NAME: &'static str = "cosformer";
        const CITATION: &'static str = "Qin et al. 2022, arXiv 2202.08791";
        fn features(&self, dim: usize) -> usize {
            2 * dim
        }
        fn apply(&self, map: &Map) -> Expr {
            let angle = map.index().to_float() * (std::f64::consts::FRAC_PI_2 / self.max_len as f64);
            let x = map.input().relu();
            concat(0, &[&(&x * angle.cos()), &(&x * angle.sin())])
        }
    }
    assert_eq!(testing::features::<CosFormer>(json!({}), 5), Ok(10));
    testing::map::<CosFormer>(json!({}), 5).unwrap();
}

// ---- slow nets

fn port(name: &str, axis: Option<&str>, kind: fwp_sdk::build::PortKind) -> fwp_sdk::build::Port {
    fwp_sdk::build::Port { name: name.into(), axis: axis.map(str::to_string), kind }
}

/// The delta rule for 2 heads, raw keys of 5, 7 features and values of 3.
fn slot(name: &str) -> SlotInterface {
    let input = |name: &str, role, shape: &[usize]| RuleInput {
        name: name.into(),
        role,
        raw: false,
        count: None,
        heads: None,
        shape: shape.into(),
    };
    SlotInterface {
        name: name.into(),
        rule: "delta".into(),
        heads: 2,
        key_raw: 5,
        key: 7,
        value: 3,
        inputs: vec![
            input("q", Role::Query, &[7]),
            input("k", Role::Key, &[7]),
            input("v", Role::Value, &[3]),
            input("beta", Role::Gate, &[]),
        ],
        output: vec![3],
        extras: vec![],
    }
}

/// Projections for some inputs of a rule, by name.
fn project(net: &Net, slot: &SlotInterface, x: &Expr, names: &[&str]) -> Vec<(String, Expr)> {
    let wanted = slot.inputs.iter().filter(|i| names.contains(&i.name.as_str()));
    let one = |i: &RuleInput| {
        let shape = slot.given_shape(i);
        let size = shape.iter().product();
        (i.name.clone(), net.linear(&format!("{}_proj", i.name), x, size, Init::xavier_uniform()).reshape(&shape))
    };
    wanted.map(one).collect()
}

fn refs(inputs: &[(String, Expr)]) -> Vec<(&str, &Expr)> {
    inputs.iter().map(|(n, e)| (n.as_str(), e)).collect()
}

/// A slow net without configuration, for a task of tokens to logits.
macro_rules! net {
    ($name:ident, $task:expr, |$net:ident| $forward:block) => {{
        config! {
            /// A sketch.
            pub struct $name {}
        }
        impl SlowNet for $name {
            const NAME: &'static str = stringify!($name);
            const CITATION: &'static str = "see the name";
            fn memory(&self, _task: &TaskIo, _slot: &str) -> Memory {
                Memory { heads: 2, key: 5, value: 3 }
            }
            fn forward(&self, net: &mut Net) {
                let $net = &*net;
                $forward
            }
        }
        testing::net::<$name>(json!({}), &$task, &[(slot("main"), None)]).unwrap_or_else(|e| panic!("{e}"))
    }};
}

fn text() -> TaskIo {
    use fwp_sdk::build::PortKind::{Symbol, Vector};
    TaskIo {
        inputs: vec![port("tokens", Some("time"), Symbol { vocab: 17 })],
        outputs: vec![port("logits", Some("time"), Vector { dim: 17 })],
        max_len: 64,
    }
}

fn embedded(net: &Net) -> Expr {
    net.embedding("embed", &net.input("tokens"), 17, 6, Init::normal(0.02))
}

fn logits(net: &Net, x: &Expr) {
    net.output("logits", &net.linear("head", x, 17, Init::normal(0.02)));
}

#[test]
fn case_4_blocks_hand_a_value_of_the_first_layer_on() {
    let p = net!(ValueResidual, text(), |net| {
        let x = embedded(net);
        let block = |net: &Net, x: &Expr, first: Option<&Expr>| {
            let slot = net.slot("main");
            let mut inputs = project(net, &slot, x, &["q", "k", "v", "beta"]);
            // The token shift of RWKV, with one mixture for each feature.
            let mix = net.parameter("mix", &[6], Init::constant(0.5));
            let shifted = x + mix * (x.shift(1) - x);
            inputs[1] = project(net, &slot, &shifted, &["k"]).remove(0);
            if let Some(first) = first {
                let t = net.linear("v_mix", x, 1, Init::zeros()).at(0).sigmoid();
                inputs[2].1 = &inputs[2].1 + t * (first - &inputs[2].1);
            }
            let o = net.fast_weights("mix", &slot, QueryScale::None, &refs(&inputs)).remove(0);
            (x + net.linear("out", &o.reshape(&[6]), 6, Init::normal(0.02)), inputs[2].1.clone())
        };
        let slot = net.slot("main");
        let start = net.full(&[slot.heads, slot.value], 0.0).along(&x);
        let both = net.blocks("layers", 0, 1, &[&x, &start], |net, x| {
            let (y, v) = block(net, &x[0], None);
            vec![y, v]
        });
        let both = net.blocks("layers", 1, 3, &[&both[0], &both[1]], |net, x| {
            let (y, _) = block(net, &x[0], Some(&x[1]));
            vec![y, x[1].clone()]
        });
        logits(net, &both[0]);
    });
    assert_eq!(ops(&p, |op| matches!(op, Op::Blocks { .. })), 2);
}

#[test]
fn case_14_fast_weights_of_ba_et_al_as_a_net() {
    let p = net!(BaAsNet, text(), |net| {
        let x = embedded(net);
        let slot = net.slot("main");
        let (memory, h0) = (net.memory("fast", &slot), net.full(&[6], 0.0));
        let (_, h) = net.recurrent("cell", &[&h0, &memory], &[&x], |net, state, x| {
            let (h, memory) = (&state[0], &state[1]);
            let z = net.linear("w", h, 6, Init::scaled_identity(0.05)) + net.linear("c", &x[0], 6, Init::xavier_uniform());
            let h = net.repeat("settle", 3, &[&z.relu()], &[&z, memory], |net, h, with| {
                let slot = net.slot("main");
                let q = project(net, &slot, &h[0], &["q"]);
                let read = net.read("fast", &with[1], QueryScale::None, &refs(&q)).remove(0).reshape(&[6]);
                vec![net.layer_norm("norm", &(&with[0] + read), 1e-5).relu()]
            });
            let written = net.write("fast", memory, &refs(&project(net, &slot, &h[0], &["k", "v", "beta"])));
            (vec![h[0].clone(), written], vec![h[0].clone()])
        });
        logits(net, &h[0]);
    });
    assert_eq!(ops(&p, |op| matches!(op, Op::Scan { states: 2, .. })), 1);
}

#[test]
fn case_16_hybrids_of_window_and_fast_weights() {
    const S: usize = 16;
    let p = net!(Hqlt, text(), |net| {
        let x = embedded(net);
        let slot = net.slot("main");
        let inputs = project(net, &slot, &x, &["q", "k", "v", "beta"]);
        let [q, k, v, beta] = [0, 1, 2, 3].map(|i| &inputs[i].1);
        let near = net.attention(q, k, v, 0.5, true, S);
        let sync = net.fast_weights("sync", &slot, QueryScale::None, &refs(&inputs)).remove(0);
        // The delayed stream starts with zeros, whose features need not be zero: nothing is written before step S.
        let late = [("q", q), ("k", &k.shift(S)), ("v", &v.shift(S)), ("beta", &beta.shift(S))];
        let mask = x.position().greater_equal(S as i64);
        let stream = net.fast_weights("stream", &slot, QueryScale::None, &[&late[..], &[("write", &mask)]].concat()).remove(0);
        let chunk = net.fast_weights_reading("chunk", &slot, QueryScale::None, ReadAt::ChunkStart(S), &refs(&inputs)).remove(0);
        logits(net, &(near + sync + stream + chunk).reshape(&[6]));
    });
    assert_eq!(ops(&p, |op| matches!(op, Op::FastWeights { .. })), 3);
}

#[test]
fn case_20_retrieval_writes_along_one_axis_and_reads_along_another() {
    use fwp_sdk::build::PortKind::{Symbol, Vector};
    let task = TaskIo {
        inputs: vec![
            port("keys", Some("pairs"), Symbol { vocab: 20 }),
            port("values", Some("pairs"), Symbol { vocab: 3 }),
            port("query", Some("query"), Symbol { vocab: 20 }),
        ],
        outputs: vec![port("value", Some("query"), Vector { dim: 3 })],
        max_len: 40,
    };
    let p = net!(Retrieve, task, |net| {
        let slot = net.slot("main");
        let table = |name: &str| net.embedding("keys", &net.input(name), 20, 10, Init::normal(1.0)).reshape(&[2, 5]);
        let v = net.input("values").one_hot(3).expand(0, 2);
        let (k, beta) = (table("keys"), net.full(&[2], 0.0).along(&v));
        let memory = net.write("memory", &net.memory("memory", &slot), &[("k", &k), ("v", &v), ("beta", &beta)]);
        let y = net.read("memory", &memory, QueryScale::None, &[("q", &table("query"))]).remove(0);
        net.output("value", &y.sum_over_axes(&[0]));
    });
    let f = p.entry("forward").unwrap();
    assert_eq!(f.parameters.len(), 1, "keys and queries share a table");
}

#[test]
fn case_21_translation_along_two_axes() {
    use fwp_sdk::build::PortKind::{Symbol, Vector};
    let task = TaskIo {
        inputs: vec![port("source", Some("source"), Symbol { vocab: 17 }), port("target", Some("target"), Symbol { vocab: 17 })],
        outputs: vec![port("logits", Some("target"), Vector { dim: 17 })],
        max_len: 40,
    };
    net!(Translate, task, |net| {
        let slot = net.slot("main");
        let x = net.embedding("embed", &net.input("source"), 17, 6, Init::normal(0.02));
        let y = net.embedding("embed", &net.input("target"), 17, 6, Init::normal(0.02));
        let memory = net.memory("cross", &slot);
        let memory = net.write("cross", &memory, &refs(&project(net, &slot, &x, &["k", "v", "beta"])));
        let read = net.read("cross", &memory, QueryScale::Query, &refs(&project(net, &slot, &y, &["q"]))).remove(0);
        // Softmax attention across, for comparison, without a mask.
        let heads = |x: &Expr| x.reshape(&[2, 3]);
        let cross = net.attention(&heads(&y), &heads(&x), &heads(&x), 0.5, false, 0);
        logits(net, &(&y + (read + cross).reshape(&[6])));
    });
}

#[test]
fn case_22_heads_are_an_axis_of_a_slow_net_and_any_divisor_may_share_keys() {
    let mut grouped = slot("main");
    grouped.heads = 4;
    grouped.inputs[0].heads = Some(2);
    grouped.inputs[1].heads = Some(1);
    let shapes: Vec<Vec<usize>> = grouped.inputs.iter().map(|i| grouped.given_shape(i)).collect();
    assert_eq!(shapes, [vec![2, 5], vec![1, 5], vec![4, 3], vec![4]]);
}
