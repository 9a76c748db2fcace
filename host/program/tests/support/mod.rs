//! Parts as plugins write them, described through the SDK's public face.
#![allow(dead_code)] // every test file uses its own few

#[allow(unused)]
pub mod kernels;

use fwp_program::{ModelPrograms, SlotPrograms};
use fwp_sdk::build::{Memory, Port, PortKind};
use fwp_sdk::prelude::*;
use fwp_sdk::program::{Kind, Program, SlotInterface};
use fwp_sdk::{Ask, Part, Request};

/// Sizes that are all different.
pub const DIMS: Dims = Dims { heads: 2, key_raw: 5, key: 5, value: 3, ..Dims::ONE };

pub fn rule<R: UpdateRule>(dims: Dims) -> Program {
    let request = Request { kind: Kind::UpdateRule, name: R::NAME.into(), config: Default::default(), ask: Ask::Rule { dims } };
    Program::from_bytes(&Part::update_rule::<R>().describe(&request).unwrap()).unwrap()
}

pub fn map<M: FeatureMap>(dim: usize) -> Program {
    let request = Request { kind: Kind::FeatureMap, name: M::NAME.into(), config: Default::default(), ask: Ask::Map { dim } };
    Program::from_bytes(&Part::feature_map::<M>().describe(&request).unwrap()).unwrap()
}

pub fn net<N: SlowNet>(slots: Vec<SlotInterface>) -> Program {
    let axis = Some("time".to_string());
    let task = TaskIo {
        inputs: vec![Port { name: "tokens".into(), axis: axis.clone(), kind: PortKind::Symbol { vocab: 11 } }],
        outputs: vec![Port { name: "logits".into(), axis, kind: PortKind::Vector { dim: 11 } }],
        max_len: 64,
    };
    let layers = slots.iter().map(|s| (s.name.clone(), None)).collect();
    let ask = Ask::Net { task, slots, layers };
    let request = Request { kind: Kind::SlowNet, name: N::NAME.into(), config: Default::default(), ask };
    Program::from_bytes(&Part::slow_net::<N>().describe(&request).unwrap()).unwrap()
}

/// What a net is told of a rule.
pub fn interface(slot: &str, rule: &Program, dims: Dims) -> SlotInterface {
    let step = rule.entry("step").unwrap();
    let types = fwp_sdk::program::shape::types(rule).unwrap();
    let index = rule.entries.iter().find(|(n, _)| n == "step").unwrap().1 as usize;
    let sizes = |node: u32| match &types.nodes[index][node as usize] {
        fwp_sdk::program::Type::Tensor(t) => t.shape.clone(),
        _ => unreachable!(),
    };
    SlotInterface {
        name: slot.into(),
        rule: rule.name.clone(),
        heads: dims.heads,
        key_raw: dims.key_raw,
        key: dims.key,
        value: dims.value,
        inputs: rule.inputs.clone(),
        output: sizes(step.output("output").unwrap()),
        extras: step.outputs.iter().filter_map(|o| Some((o.name.strip_prefix("extra.")?.to_string(), sizes(o.node)))).collect(),
    }
}

pub fn model<N: SlowNet, M: FeatureMap, R: UpdateRule>(dims: Dims) -> ModelPrograms {
    let (rule, map) = (rule::<R>(dims), map::<M>(dims.key_raw));
    let net = net::<N>(vec![interface("main", &rule, dims)]);
    ModelPrograms { net, slots: vec![SlotPrograms { name: "main".into(), layers: None, map, rule }] }
}

/// A rule without configuration: its signature and its step.
#[macro_export]
macro_rules! rule {
    ($name:ident, |$dims:ident| $signature:expr, |$s:ident| $step:block $(, restated |$r:ident| $restated:block)?) => {
        fwp_sdk::config! {
            /// A rule of the tests.
            pub struct $name {}
        }
        impl fwp_sdk::UpdateRule for $name {
            const NAME: &'static str = stringify!($name);
            const CITATION: &'static str = "tests";
            const OBJECTIVE: &'static str = "";
            fn signature(&self, $dims: fwp_sdk::build::Dims) -> fwp_sdk::build::Signature {
                $signature
            }
            fn step(&self, $s: &mut fwp_sdk::build::Step) $step
            $(
                const RESTATED: bool = true;
                fn restated(&self, $r: &mut fwp_sdk::build::Step) $restated
            )?
        }
    };
}

rule!(
    Delta,
    |dims| Signature::new(dims).signal("beta", []).state("w", [dims.value, dims.key], StateStart::Zeros),
    |s| {
        let (q, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        let w = s.state("w");
        let w = &w + beta * outer(v - w.matvec(&k), &k);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    },
    restated | s | {
        let (q, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        let w = s.state("w");
        let loss = 0.5 * (w.matvec(&k) - v).norm_squared();
        let w = &w - beta * loss.gradient(&w);
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
);

fwp_sdk::config! {
    /// phi(x) = x
    pub struct Identity {}
}
impl FeatureMap for Identity {
    const NAME: &'static str = "identity";
    const CITATION: &'static str = "none";
    fn features(&self, dim: usize) -> usize {
        dim
    }
    fn apply(&self, map: &Map) -> Expr {
        map.input()
    }
}

fwp_sdk::config! {
    /// phi(x) = tanh(A x)
    pub struct Learned {}
}
impl FeatureMap for Learned {
    const NAME: &'static str = "learned";
    const CITATION: &'static str = "none";
    fn features(&self, dim: usize) -> usize {
        dim
    }
    fn apply(&self, map: &Map) -> Expr {
        let a = map.parameter("a", &[map.dim, map.dim], Init::normal(1.0));
        let y = a.matvec(map.input()).tanh();
        if map.role == MapRole::Key { y } else { y * 2.0 }
    }
}

fwp_sdk::config! {
    /// Two blocks around one fast-weight node each.
    pub struct Blocks {}
}
impl SlowNet for Blocks {
    const NAME: &'static str = "blocks";
    const CITATION: &'static str = "none";
    fn memory(&self, _: &TaskIo, _: &str) -> Memory {
        Memory { heads: DIMS.heads, key: DIMS.key_raw, value: DIMS.value }
    }
    fn forward(&self, net: &mut Net) {
        let slot = net.slot_of_layer(0);
        let x = net.embedding("embedding", &net.input("tokens"), 11, 7, Init::normal(1.0));
        let x = net.blocks("layers", 0, 2, &[&x], |net, x| {
            let y = net.rms_norm("norm", &x[0], 1e-6);
            let mut given: Vec<(String, Expr)> = Vec::new();
            for i in &slot.inputs {
                let shape = slot.given_shape(i);
                let n = shape.iter().product();
                let p = net.linear(&format!("{}_proj", i.name), &y, n, Init::xavier_uniform()).reshape(&shape);
                given.push((i.name.clone(), p));
            }
            let given: Vec<(&str, &Expr)> = given.iter().map(|(n, e)| (n.as_str(), e)).collect();
            let o = net.fast_weights("memory", &slot, QueryScale::None, &given);
            let o = o[0].reshape(&[slot.heads * slot.value]);
            vec![&x[0] + net.linear("o_proj", &o, 7, Init::xavier_uniform())]
        });
        net.output("logits", &net.linear("head", &x[0], 11, Init::normal(1.0)));
    }
}
