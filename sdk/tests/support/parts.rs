//! Parts that use every corner of the builder: a rule, a map and a net.

use fwp_sdk::build::{Port, PortKind};
use fwp_sdk::prelude::*;
use fwp_sdk::program::{Program, Role, RuleInput, SlotInterface};
use fwp_sdk::serde_json::json;
use fwp_sdk::testing;

config! {
    /// A rule with every kind of declaration.
    pub struct Everything {
        /// Added before dividing.
        eps: f64 = 1e-6,
    }
}

impl UpdateRule for Everything {
    const NAME: &'static str = "everything";
    const CITATION: &'static str = "none";
    const OBJECTIVE: &'static str = "none: it only uses every corner of the builder";
    const RESTATED: bool = true;

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims)
            .key("k2", [dims.key])
            .count(2)
            .value("v2", [dims.value])
            .heads(1)
            .key("raw", [dims.key_raw])
            .raw()
            .signal("beta", [])
            .state("w", [dims.value, dims.key], StateStart::Trained(Init::normal(0.02)))
            .state("z", [dims.key], StateStart::Zeros)
            .state("m", [], StateStart::Constant(-1.0))
            .held(4)
            .parameter("a", [dims.key], Init::program(|r, shape| (r.uniform(shape) + r.head().to_float()).log1p()))
            .no_decay()
            .parameter("b", [], Init::ones())
            .scope(Scope::Layer)
            .constant()
            .parameter("c", [dims.value], Init::uniform(0.5))
            .scope(Scope::Model)
            .extra("bonus", [dims.value])
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        let (w, z, m) = (s.state("w"), s.state("z"), s.state("m"));
        let late = s.index().rem(4).equal(3);
        let moved = s.repeat(2, &[&w], &[&s.input("k2"), &v, &s.input("v2")], |carried, with| {
            let k = with[0].at(1);
            vec![&carried[0] + 0.5 * outer(&with[1] + &with[2] - carried[0].matvec(&k), &k)]
        });
        let new = &moved[0] - &beta * (w.matvec(&k) - &v).norm_squared().gradient(&w);
        let z = z + s.phi(s.input("raw")) * s.parameter("a");
        s.output(new.matvec(&q).div_or(z.dot(&q) + self.eps, 0));
        s.extra("bonus", s.parameter("c") * &m);
        s.set_state("m", late.select(&m * s.parameter("b"), m.max(0.0)));
        s.set_state("z", z);
        s.set_state("w", new);
    }

    fn restated(&self, s: &mut Step) {
        self.step(s);
    }
}

config! {
    /// phi(x) = exp(R x) / sqrt(m), another R for queries
    pub struct Features {}
}

impl FeatureMap for Features {
    const NAME: &'static str = "features";
    const CITATION: &'static str = "none";

    fn features(&self, dim: usize) -> usize {
        2 * dim
    }

    fn apply(&self, map: &Map) -> Expr {
        let m = self.features(map.dim);
        let rows = Init::program(move |r, shape| r.orthogonal(shape[0], shape[1]));
        let r = match map.role {
            MapRole::Key => map.random("r", &[m, map.dim], rows, true),
            MapRole::Query => map.parameter("r_query", &[m, map.dim], rows),
        };
        r.matvec(map.input()).exp() / (m as f64).sqrt() + map.table(&[m], (0..m).map(|i| i as f64).collect())
    }
}

config! {
    /// A net with blocks, a cell, a repetition, fast weights and all that works along time.
    pub struct Everywhere {
        /// Number of blocks.
        layers: usize = 2,
        /// Width.
        width: usize = 6,
    }
}

impl SlowNet for Everywhere {
    const NAME: &'static str = "everywhere";
    const CITATION: &'static str = "none";

    fn memory(&self, _task: &TaskIo, _slot: &str) -> Memory {
        Memory { heads: 2, key: 3, value: 5 }
    }

    fn forward(&self, net: &mut Net) {
        let net = &*net;
        let n = self.width;
        let vocab = net.task().input("tokens").vocab();
        let x = net.embedding("embed", &net.input("tokens"), vocab, n, Init::normal(0.02));
        let x = net.blocks("layers", 0, self.layers, &[&x], |net, x| {
            let y = net.rms_norm("norm", &x[0], 1e-5);
            let y = net.causal_conv("conv", &y, 4, Init::uniform(0.5)).silu();
            let slot = net.slot_of_layer(0);
            let mut inputs = Vec::new();
            for i in &slot.inputs {
                let shape = slot.given_shape(i);
                let size = shape.iter().product::<usize>();
                inputs.push((i.name.clone(), net.linear(&i.name, &y, size, Init::xavier_uniform()).reshape(&shape)));
            }
            let mask = y.position().greater_equal(2);
            let mut given: Vec<(&str, &Expr)> = inputs.iter().map(|(n, e)| (n.as_str(), e)).collect();
            given.push(("write", &mask));
            let o = net.fast_weights("memory", &slot, QueryScale::Query, &given).remove(0);
            let o = net.linear("out", &o.reshape(&[10]), n, Init::scaled_identity_or_normal());
            let shared = net.shared_parameter("everywhere", &[n], Init::zeros());
            vec![&x[0] + o.dropout(0.1) + shared * net.layer().to_float()]
        });
        let heads = x[0].reshape(&[1, n]).rotary(x[0].position(), 1e4, false);
        let x = net.attention(&heads, &heads, &heads, 0.5, true, 8).reshape(&[n]) + x[0].shift(1);
        let h0 = net.parameter("h0", &[n], Init::zeros());
        let (_, y) = net.recurrent("cell", &[&h0], &[&x], |net, h, x| {
            let z = net.affine("in", &x[0], n, Init::xavier_uniform(), Init::zeros());
            let h =
                net.repeat("inner", 2, &[&h[0]], &[&z], |net, h, z| vec![net.layer_norm("norm", &(&h[0] + &z[0]), 1e-5).relu()]);
            (vec![h[0].clone()], vec![h[0].clone()])
        });
        let slot = net.slot("main");
        let memory = net.memory("late", &slot);
        let q = y[0].slice(0, 0, 6).reshape(&[2, 3]);
        let read = net.read("late", &memory, QueryScale::None, &[("q", &q)]);
        let logits = net.linear("head", &concat(0, &[&y[0], &read[0].reshape(&[10])]), 7, Init::normal(0.02));
        net.output("logits", &logits);
    }
}

/// An initialiser for any matrix.
trait Mixed {
    fn scaled_identity_or_normal() -> Init;
}

impl Mixed for Init {
    fn scaled_identity_or_normal() -> Init {
        Init::program(|r, shape| if shape[0] == shape[1] { r.eye(shape[0]) * 0.1 } else { r.normal(shape) * 0.1 })
    }
}

/// Where these parts are written, as the compiler names it.
pub const FILE: &str = file!();

pub const DIMS: Dims = Dims { heads: 2, key_raw: 3, key: 6, value: 5, ..Dims::ONE };

pub fn task() -> TaskIo {
    let port = |name: &str, kind| Port { name: name.into(), axis: Some("time".into()), kind };
    TaskIo {
        inputs: vec![port("tokens", PortKind::Symbol { vocab: 11 })],
        outputs: vec![port("logits", PortKind::Vector { dim: 7 })],
        max_len: 32,
    }
}

pub fn slot() -> SlotInterface {
    let input = |name: &str, role, shape: &[usize]| RuleInput {
        name: name.into(),
        role,
        raw: false,
        count: None,
        heads: None,
        shape: shape.into(),
    };
    SlotInterface {
        name: "main".into(),
        rule: "delta".into(),
        heads: 2,
        key_raw: 3,
        key: 6,
        value: 5,
        inputs: vec![
            input("q", Role::Query, &[6]),
            input("k", Role::Key, &[6]),
            input("v", Role::Value, &[5]),
            input("beta", Role::Gate, &[]),
        ],
        output: vec![5],
        extras: vec![],
    }
}

pub fn rule() -> Program {
    testing::rule::<Everything>(json!({}), DIMS).unwrap()
}

pub fn map() -> Program {
    testing::map::<Features>(json!({ "normalise": "l2" }), 3).unwrap()
}

pub fn net() -> Program {
    testing::net::<Everywhere>(json!({}), &task(), &[(slot(), None)]).unwrap()
}

pub fn all() -> [(&'static str, Program); 3] {
    [("rule", rule()), ("map", map()), ("net", net())]
}
