//! Parameters: what initialisers draw, who shares them, and how gradients reach them.

mod support;

use fwp_engine::model::Model;
use fwp_engine::train::{Pass, TrainModel};
use fwp_sdk::build::Random;
use fwp_sdk::prelude::*;
use serde_json::json;
use support::{EVAL, Numbers, TRAIN, close, compose, forward, model, parameter, sequence_task, slot, slot_of, values, y_of};
use tch::{Kind, Tensor};

config! {
    /// A rule with parameters of every scope.
    pub struct Scoped {}
}
impl UpdateRule for Scoped {
    const NAME: &'static str = "scoped";
    const CITATION: &'static str = "test";
    const OBJECTIVE: &'static str = "none: a test";
    fn signature(&self, d: Dims) -> Signature {
        let by_place = |r: &Random, _: &[usize]| r.head().to_float() * 10.0 + r.layer().to_float();
        Signature::new(d)
            .state("w", [d.value, d.key], StateStart::Trained(Init::normal(1.0)))
            .parameter("a", [], Init::program(by_place))
            .parameter("b", [d.value], Init::normal(1.0))
            .scope(Scope::Layer)
            .no_decay()
            .parameter("c", [d.value], Init::normal(1.0))
            .scope(Scope::Model)
            .parameter("fixed", [3], Init::uniform(1.0))
            .constant()
    }
    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") * s.parameter("a").tanh() + outer(&v, &k);
        s.output(w.matvec(&q) + s.parameter("b") + s.parameter("c") * s.parameter("fixed").sum());
        s.set_state("w", w);
    }
}

config! {
    /// Random features, drawn anew for every batch.
    pub struct Redrawn {
        /// Whether they are drawn anew.
        redraw: bool = true,
    }
}
impl FeatureMap for Redrawn {
    const NAME: &'static str = "redrawn";
    const CITATION: &'static str = "test";
    fn features(&self, _: usize) -> usize {
        8
    }
    fn apply(&self, map: &Map) -> Expr {
        let dim = map.dim;
        let init = Init::program(move |r, shape| r.orthogonal(shape[0], dim));
        map.random("directions", &[8, dim], init, self.redraw).matvec(map.input()).cos()
    }
}

config! {
    /// Blocks around fast weights.
    pub struct Stack {
        /// Number of blocks.
        layers: usize = 2,
        /// Whether another parameter comes first.
        more: bool = false,
    }
}
impl SlowNet for Stack {
    const NAME: &'static str = "stack";
    const CITATION: &'static str = "test";
    fn memory(&self, _: &TaskIo, _: &str) -> Memory {
        Memory { heads: 2, key: 3, value: 3 }
    }
    fn forward(&self, net: &mut Net) {
        let net = &*net;
        let mut x = net.input("x");
        if self.more {
            x = x * net.parameter("more", &[6], Init::normal(1.0)).along(net.input("x"));
        }
        let slot = net.slot("main");
        let init = || Init::program(|r, shape| r.normal(shape) + 100.0 * r.layer().to_float());
        let x = net.blocks("layers", 0, self.layers, &[&x], |net, x| {
            let x = &(&x[0] * (1.0 + net.layer().to_float()));
            let part = |name: &str| net.linear(name, x, 6, Init::normal(0.5)).reshape(&[2, 3]);
            let shift = net.parameter("shift", &[6], init());
            let o = net.fast_weights("fast", &slot, QueryScale::None, &[("q", &part("q")), ("k", &part("k")), ("v", &part("v"))]);
            vec![(o[0].reshape(&[6]) + shift).rms_norm(1e-3)]
        });
        net.output("y", &x[0]);
    }
}

fn built(config: serde_json::Value, map: serde_json::Value, seed: u64) -> Model {
    let slot = slot::<Scoped, Redrawn>(json!({}), map, 2, 3, 3);
    model(&compose::<Stack>(config, &sequence_task(6, 6), Some(slot)), seed)
}

#[test]
fn scopes_have_their_shapes_names_and_places() {
    let m = built(json!({}), json!({}), 1);
    let size = |name: &str| parameter(&m, name).size();
    assert_eq!(size("layers.1.fast.a"), [2]);
    assert_eq!(size("layers.0.fast.w_0"), [2, 3, 8]);
    assert_eq!(size("layers.1.fast.b"), [3]);
    assert_eq!(size("shared.main.c"), [3]);
    assert_eq!(size("layers.0.fast.feature_map.directions"), [8, 3]);
    assert_eq!(values(&parameter(&m, "layers.0.fast.a")), [0.0, 10.0]);
    assert_eq!(values(&parameter(&m, "layers.1.fast.a")), [1.0, 11.0]);
    // The layer enters the net's own initialisers too.
    let offset = (parameter(&m, "layers.1.shift") - parameter(&m, "layers.0.shift")).mean(Kind::Double).double_value(&[]);
    assert!((offset - 100.0).abs() < 5.0, "{offset}");
    let heads = parameter(&m, "layers.0.fast.w_0");
    assert!(heads.get(0) != heads.get(1), "heads draw for themselves");
    let flags = |name: &str| m.parameters().iter().find(|p| p.name == name).map(|p| (p.trainable, p.decay)).unwrap();
    assert_eq!(flags("layers.0.fast.a"), (true, true));
    assert_eq!(flags("layers.0.fast.b"), (true, false));
    assert_eq!(flags("layers.0.fast.fixed"), (false, false));
    assert_eq!(flags("layers.0.fast.feature_map.directions"), (false, false));
    assert!(!parameter(&m, "layers.0.fast.fixed").requires_grad());
    let trained: usize = m.parameters().iter().filter(|p| p.trainable).map(|p| p.tensor.numel()).sum();
    assert_eq!(m.trained_elements(), trained);
    assert_eq!(m.parameters().iter().filter(|p| p.name == "shared.main.c").count(), 1);
}

config! {
    /// A rule that adds a vector of its layer.
    pub struct OfItsLayer {}
}
impl UpdateRule for OfItsLayer {
    const NAME: &'static str = "of-its-layer";
    const CITATION: &'static str = "test";
    const OBJECTIVE: &'static str = "none: a test";
    fn signature(&self, d: Dims) -> Signature {
        let row = |r: &Random, shape: &[usize]| r.normal(&[shape[0]]).expand(1, shape[1]);
        Signature::new(d)
            .state("w", [d.value, d.key], StateStart::Zeros)
            .parameter("table", [d.layers, d.value], Init::program(row))
            .scope(Scope::Model)
    }
    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") + outer(v, k);
        s.output(0.0 * w.matvec(q) + s.at_layer(&s.parameter("table")));
        s.set_state("w", w);
    }
}

#[test]
fn a_rule_takes_the_row_of_its_layer() {
    let dims = Dims { heads: 2, key_raw: 3, value: 3, layers: 3, ..Dims::ONE };
    for layers in 1..=3 {
        let slot = slot_of::<OfItsLayer, Redrawn>(json!({}), json!({}), dims);
        let m = model(&compose::<Stack>(json!({ "layers": layers }), &sequence_task(6, 6), Some(slot)), 1);
        // The output is normalised and the shifts are known, so the layer's row shows in the last block.
        let shift = values(&parameter(&m, &format!("layers.{}.shift", layers - 1)));
        let row = values(&parameter(&m, "shared.main.table").get(layers as i64 - 1))[0];
        let sums: Vec<f64> = shift.iter().map(|s| s + row).collect();
        let rms = (sums.iter().map(|s| s * s).sum::<f64>() / 6.0 + 1e-3).sqrt();
        let wanted: Vec<f64> = sums.iter().map(|s| s / rms).collect();
        let y = y_of(&m, &Tensor::ones([1, 2, 6], (Kind::Double, tch::Device::Cpu)));
        close(&y.get(0).get(1).detach(), &Tensor::from_slice(&wanted), 1e-12, &format!("{layers} layers"));
    }
}

#[test]
fn draws_depend_on_seed_and_name_and_on_nothing_else() {
    let same = |a: &Model, b: &Model, name: &str| parameter(a, name) == parameter(b, name);
    let m = built(json!({}), json!({}), 1);
    for other in [built(json!({}), json!({}), 1), built(json!({ "layers": 3, "more": true }), json!({}), 1)] {
        for p in m.parameters() {
            assert!(same(&m, &other, &p.name), "{}", p.name);
        }
    }
    let other = built(json!({}), json!({}), 2);
    for name in ["layers.0.q.weight", "layers.0.fast.w_0", "shared.main.c", "layers.0.fast.fixed"] {
        assert!(!same(&m, &other, name), "{name} with another seed");
    }
    assert!(parameter(&m, "layers.0.q.weight") != parameter(&m, "layers.0.k.weight"));
    assert!(parameter(&m, "layers.0.q.weight") != parameter(&m, "layers.1.q.weight"));
}

config! {
    /// Large parameters, one of a kind of draw.
    pub struct Draws {}
}
impl SlowNet for Draws {
    const NAME: &'static str = "draws";
    const CITATION: &'static str = "test";
    fn memory(&self, _: &TaskIo, _: &str) -> Memory {
        Memory { heads: 1, key: 1, value: 1 }
    }
    fn forward(&self, net: &mut Net) {
        let all = [
            net.parameter("normal", &[300, 200], Init::normal(0.5)),
            net.parameter("uniform", &[300, 200], Init::uniform(2.0)),
            net.parameter("glorot", &[300, 200], Init::xavier_uniform()),
            net.parameter("rates", &[300, 200], Init::log_of_uniform(1.0, 16.0)),
            net.parameter("steps", &[300, 200], Init::step_sizes(1e-3, 1e-1)),
            net.fixed("orthogonal", &[600, 8], Init::program(|r, s| r.orthogonal(s[0], s[1]))),
            net.fixed("ragged", &[5, 3], Init::program(|r, s| r.orthogonal(s[0], s[1]))),
        ];
        let sum = all.iter().fold(net.constant(0.0), |sum, p| sum + p.sum());
        net.output("y", &(net.input("x") * sum));
    }
}

#[test]
fn draws_have_their_distributions() {
    let m = model(&compose::<Draws>(json!({}), &sequence_task(2, 2), None), 3);
    let p = |name: &str| parameter(&m, name).detach();
    let mean = |t: &Tensor| t.mean(Kind::Double).double_value(&[]);
    // 60,000 draws: four standard errors of mean, variance and fourth moment.
    let normal = p("normal") / 0.5;
    assert!(mean(&normal).abs() < 0.017 && (mean(&normal.square()) - 1.0).abs() < 0.024, "normal");
    assert!((mean(&normal.square().square()) - 3.0).abs() < 0.16, "the fourth moment of a normal draw is 3");
    let uniform = p("uniform");
    assert!(uniform.max().double_value(&[]) < 2.0 && uniform.min().double_value(&[]) >= -2.0);
    assert!(mean(&uniform).abs() < 0.019 && (mean(&uniform.square()) - 4.0 / 3.0).abs() < 0.02, "uniform");
    let bound = (6.0f64 / 500.0).sqrt();
    let largest = p("glorot").abs().max().double_value(&[]);
    assert!(largest <= bound && largest > 0.99 * bound, "Glorot and Bengio's bound");
    let rates = p("rates").exp();
    assert!(rates.min().double_value(&[]) >= 1.0 - 1e-12 && rates.max().double_value(&[]) < 16.0 + 1e-12);
    assert!((mean(&rates) - 8.5).abs() < 0.07, "rates of decay");
    let steps = p("steps").exp().log1p().log();
    assert!(steps.min().double_value(&[]) > 1e-3f64.ln() - 1e-9 && steps.max().double_value(&[]) < 1e-1f64.ln() + 1e-9);
    assert!((mean(&steps) - 1e-2f64.ln()).abs() < 0.022, "logarithms of step sizes");

    // Blocks of n rows are orthogonal; lengths are those of Gaussian vectors, directions uniform.
    let rows = p("orthogonal");
    let blocks = rows.reshape([75, 8, 8]);
    let gram = blocks.matmul(&blocks.transpose(1, 2));
    let off = &gram - gram.diagonal(0, 1, 2).diag_embed(0, -2, -1);
    assert!(off.abs().max().double_value(&[]) < 1e-11, "rows of a block are orthogonal");
    let lengths = rows.square().sum_dim_intlist(-1, false, Kind::Double);
    assert!((mean(&lengths) - 8.0).abs() < 0.66, "mean squared length 8");
    assert!((lengths.var(true).double_value(&[]) - 16.0).abs() < 6.0, "variance of the squared length 16");
    // Every element has mean 0: a library's QR alone gives the first row of a block one sign throughout.
    let bias = blocks.mean_dim(0, false, Kind::Double).abs().max().double_value(&[]);
    assert!(bias < 4.5 / 75f64.sqrt(), "directions lean by {bias}");
    let ragged = p("ragged");
    let top = ragged.narrow(0, 0, 3);
    assert!((top.matmul(&top.tr()) - top.matmul(&top.tr()).diag(0).diag(0)).abs().max().double_value(&[]) < 1e-12);
}

#[test]
fn gradients_reach_every_trained_parameter_and_add_up_over_layers() {
    let m = built(json!({}), json!({ "redraw": false }), 1);
    let x = Numbers::new(1).tensor(&[3, 5, 6]);
    let weights = Numbers::new(2).tensor(&[3, 5, 6]);
    let loss = || (y_of(&m, &x) * &weights).sum(Kind::Double);
    let trained: Vec<&Tensor> = m.parameters().iter().filter(|p| p.trainable).map(|p| &p.tensor).collect();
    let names: Vec<&str> = m.parameters().iter().filter(|p| p.trainable).map(|p| p.name.as_str()).collect();
    let gradients = Tensor::run_backward(&[loss()], &trained, false, false);
    let mut numbers = Numbers::new(3);
    for ((name, p), g) in names.iter().zip(&trained).zip(&gradients) {
        let direction = numbers.tensor(&p.size());
        let before = p.detach().copy();
        let moved = |by: f64| {
            tch::no_grad(|| p.shallow_clone().copy_(&(&before + by * &direction)));
            loss().double_value(&[])
        };
        let h = 1e-5;
        let numerical = (moved(h) - moved(-h)) / (2.0 * h);
        moved(0.0);
        let exact = (g * &direction).sum(Kind::Double).double_value(&[]);
        assert!((numerical - exact).abs() < 1e-7 * exact.abs().max(1.0), "{name}: {exact} against {numerical}");
        assert!(g.abs().max().double_value(&[]) > 0.0, "{name} has a gradient");
    }
}

#[test]
fn the_layer_is_known_inside_of_its_block() {
    // The second of two layers sees its input doubled, as a first one with doubled input does: all else is set equal.
    let (two, one) =
        (built(json!({}), json!({ "redraw": false }), 1), built(json!({ "layers": 1 }), json!({ "redraw": false }), 1));
    for p in one.parameters() {
        support::set(&two, &p.name, &p.tensor);
        if let Some(rest) = p.name.strip_prefix("layers.0.") {
            support::set(&two, &format!("layers.1.{rest}"), &p.tensor);
        }
    }
    let x = Numbers::new(6).tensor(&[2, 4, 6]);
    close(&y_of(&two, &x), &y_of(&one, &(y_of(&one, &x) * 2.0)), 1e-12, "two layers");
}

config! {
    /// A rule whose steps reach parameters by a reset and by a map that is called in the step.
    pub struct Reaching {}
}
impl UpdateRule for Reaching {
    const NAME: &'static str = "reaching";
    const CITATION: &'static str = "test";
    const OBJECTIVE: &'static str = "none: a test";
    fn signature(&self, d: Dims) -> Signature {
        let s = Signature::without_inputs(d).query("q", [d.key]).key("k", [d.key_raw]).raw().value("v", [d.value]);
        s.state("w", [d.value, d.key], StateStart::Trained(Init::normal(1.0))).state("x", [d.key_raw], StateStart::Zeros)
    }
    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let x = s.state("x") * 0.5 + k;
        let w = s.state("w") * 0.9 + outer(&v, s.phi(&x));
        s.output(w.matvec(&q));
        s.set_state("w", w);
        s.set_state("x", x);
    }
}

config! {
    /// A map with a trained matrix.
    pub struct Trained {}
}
impl FeatureMap for Trained {
    const NAME: &'static str = "trained";
    const CITATION: &'static str = "test";
    fn features(&self, dim: usize) -> usize {
        dim
    }
    fn apply(&self, map: &Map) -> Expr {
        map.parameter("m", &[map.dim, map.dim], Init::normal(1.0)).matvec(map.input()).tanh()
    }
}

#[test]
fn recomputed_segments_give_parameters_their_gradients() {
    let made = |limit| {
        let slot = slot::<Reaching, Trained>(json!({}), json!({}), 2, 3, 3);
        Model::new(&compose::<Stack>(json!({}), &sequence_task(6, 6), Some(slot)), support::DOUBLE, 1, limit).unwrap()
    };
    let x = Numbers::new(7).tensor(&[2, 12, 6]);
    let reset = Tensor::from_slice(&(0..24).map(|i| i % 5 == 2).collect::<Vec<_>>()).reshape([2, 12]);
    let gradients = |m: &Model| {
        let y = forward(m, &[("x", &x), ("reset", &reset)], &TRAIN, None).values.remove("y").unwrap();
        let leaves: Vec<&Tensor> = m.parameters().iter().map(|p| &p.tensor).collect();
        Tensor::run_backward(&[(y.sin() * &x).sum(Kind::Double)], &leaves, false, false)
    };
    let (whole, segments) = (made(u64::MAX), made(0));
    for ((a, b), p) in gradients(&segments).iter().zip(gradients(&whole)).zip(whole.parameters()) {
        assert!(b.abs().max().double_value(&[]) > 0.0, "{}", p.name);
        close(a, &b, 1e-12, &p.name);
    }
}

#[test]
fn redrawn_features_change_with_the_step_and_stay_in_evaluation() {
    let m = built(json!({}), json!({}), 5);
    let x = Numbers::new(4).tensor(&[2, 4, 6]);
    let y = |pass: Pass| forward(&m, &[("x", &x)], &pass, None).values.remove("y").unwrap().detach();
    let train = |step, micro, seed| y(Pass { step, micro, seed, ..TRAIN });
    assert_eq!(train(3, 0, 5), train(3, 0, 5), "a step can be repeated");
    assert_eq!(train(3, 0, 5), train(3, 1, 5), "micro-batches of a step share their draw");
    assert!(train(3, 0, 5) != train(4, 0, 5), "the next step draws anew");
    assert!(train(3, 0, 5) != train(3, 0, 6), "another seed draws otherwise");
    let eval = |step| y(Pass { step, ..EVAL });
    assert_eq!(eval(3), eval(9), "evaluation does not depend on the step");
    assert!(train(0, 0, 5) != eval(0), "training does not begin with evaluation's draw");
    let fixed = built(json!({}), json!({ "redraw": false }), 5);
    let fixed = |pass: Pass| forward(&fixed, &[("x", &x)], &pass, None).values.remove("y").unwrap().detach();
    assert_eq!(fixed(Pass { step: 1, ..TRAIN }), fixed(Pass { step: 2, ..TRAIN }));
    close(&fixed(TRAIN), &eval(0), 1e-14, "evaluation uses the first draw");
}
