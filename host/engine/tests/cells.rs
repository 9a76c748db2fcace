//! Fast weights in a recurrent cell: what a cell writes and reads step by step is what fast weights along the sequence give.
//!
//! Cells are written out for kernels (`model/unfold.rs`); nothing of that is in the nets that they are compared with here.

#[macro_use]
mod support;

use std::collections::BTreeMap;

use fwp_engine::exec::choose::Executor;
use fwp_engine::model::{Carry, Model};
use fwp_engine::train::{Pass, TrainModel};
use fwp_map_softmax::Softmax;
use fwp_sdk::build::TaskIo;
use fwp_sdk::prelude::*;
use serde_json::{Value, json};
use support::{EVAL, Numbers, close, compose, forward, model, set, slot, vectors, with_kernels};
use tch::{Kind, Tensor};

const H: usize = 4;
/// Keys are for two heads each.
const KEY_HEADS: usize = 2;
const DK: usize = 3;
const DV: usize = 2;
const STEPS: i64 = 7;

rules! {
    // Two states of one shape, keys that heads share, parameters of every scope, and an output beside the first.
    Full "full" (d) Signature::without_inputs(d)
        .query("q", [d.key])
        .key("k", [d.key])
        .heads(KEY_HEADS)
        .value("v", [d.value])
        .signal("beta", [])
        .parameter("own", [d.value], Init::normal(0.5))
        .parameter("of_layer", [], Init::normal(0.5))
        .scope(Scope::Layer)
        .parameter("of_all", [d.key], Init::normal(0.5))
        .scope(Scope::Model)
        .state("a", [d.value, d.key], StateStart::Zeros)
        .state("b", [d.value, d.key], StateStart::Constant(0.5))
        .extra("more", [d.value]);
    |s| {
        let (q, k, v) = (s.input("q"), s.input("k") * s.parameter("of_all"), s.input("v") * s.parameter("own"));
        let a = s.state("a") * s.parameter("of_layer").sigmoid() + s.signal("beta").sigmoid() * outer(&v, &k);
        let b = s.state("b") * 0.75 + outer(v, k).tanh();
        s.output((&a + 0.5 * b.square()).matvec(&q));
        s.extra("more", b.matvec(&q) * s.parameter("own"));
        s.set_state("a", a);
        s.set_state("b", b);
    }
    // A state that takes its next value at every second step only.
    Holding "holding" (d) Signature::new(d)
        .signal("beta", [])
        .state("w", [d.value, d.key], StateStart::Zeros)
        .state("slow", [d.value, d.key], StateStart::Zeros)
        .held(2);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") * s.signal("beta").sigmoid() + outer(v, k) - 0.5 * s.state("slow");
        s.output(w.matvec(&q));
        s.set_state("slow", &w * 0.5);
        s.set_state("w", w);
    }
    // What is written depends on how often was written before.
    Counting "counting" (d) Signature::new(d).signal("beta", []).state("w", [d.value, d.key], StateStart::Zeros);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") * s.signal("beta").sigmoid() + outer(v, k) * (1.0 + 0.1 * s.index().to_float());
        s.output(w.matvec(&q));
        s.set_state("w", w);
    }
}

config! {
    /// Writes and reads a memory, in a cell or along the sequence, and reads what is left of it with the mean of the queries.
    pub struct Using {
        /// Whether it does so step by step in a cell.
        cell: bool = false,
        /// Where the scale goes.
        scale: QueryScale = QueryScale::None,
        /// Whether a mask says which steps write.
        masked: bool = false,
        /// Whether every step reads.
        reads: bool = true,
        /// Whether the memory is read once more in the end.
        after: bool = false,
        /// Heads of the keys.
        key_heads: usize = 4,
    }
}

impl SlowNet for Using {
    const NAME: &'static str = "using";
    const CITATION: &'static str = "test";
    fn memory(&self, _: &TaskIo, _: &str) -> Memory {
        Memory { heads: H, key: DK, value: DV }
    }
    fn forward(&self, net: &mut Net) {
        let net = &*net;
        let slot = net.slot("main");
        let shaped = |name: &str, shape: &[usize]| net.input(name).reshape(shape);
        let (q, k, v) = (shaped("q", &[H, DK]), shaped("k", &[H, DK]).slice(0, 0, self.key_heads), shaped("v", &[H, DV]));
        let (beta, mask) = (net.input("beta"), net.input("beta").sum().less(0.0));
        let mut writes: Vec<(&str, &Expr)> = vec![("k", &k), ("v", &v), ("beta", &beta)];
        if self.masked {
            writes.push(("write", &mask));
        }
        let flat = |all: Vec<Expr>| {
            let parts: Vec<Expr> = all.iter().map(|x| x.reshape(&[H * DV])).collect();
            concat(0, &parts.iter().collect::<Vec<_>>())
        };
        let start = || net.memory("fast", &slot);
        let y = if self.cell {
            let names: Vec<&str> = writes.iter().map(|(name, _)| *name).collect();
            let inputs: Vec<&Expr> = std::iter::once(&q).chain(writes.iter().map(|(_, x)| *x)).collect();
            let (last, out) = net.recurrent("cell", &[&start()], &inputs, |net, s, x| {
                let given: Vec<(&str, &Expr)> = names.iter().copied().zip(&x[1..]).collect();
                let memory = net.write("fast", &s[0], &given);
                let out = if self.reads { flat(net.read("fast", &memory, self.scale, &[("q", &x[0])])) } else { x[0].sum() };
                (vec![memory], vec![out])
            });
            if self.after { last[0].clone() } else { out[0].clone() }
        } else if self.after {
            net.write("fast", &start(), &writes)
        } else {
            let all: Vec<(&str, &Expr)> = std::iter::once(("q", &q)).chain(writes.iter().copied()).collect();
            flat(net.fast_weights("fast", &slot, self.scale, &all))
        };
        let y = if self.after { flat(net.read("fast", &y, self.scale, &[("q", &q.mean_over())])) } else { y };
        net.output("y", &y);
    }
}

fn task(width: usize, after: bool) -> TaskIo {
    let mut y = vectors("y", width);
    if after {
        y.axis = None;
    }
    TaskIo {
        inputs: vec![vectors("q", H * DK), vectors("k", H * DK), vectors("v", H * DV), vectors("beta", H)],
        outputs: vec![y],
        max_len: 64,
    }
}

/// The net with parameters that follow from their own names: a cell puts its name before them.
fn of<R: UpdateRule>(config: &Value, cell: bool) -> Model {
    let mut config = config.clone();
    config["cell"] = json!(cell);
    let width = if R::NAME == "full" { 2 * H * DV } else { H * DV };
    let programs = compose::<Using>(
        config.clone(),
        &task(width, config["after"] == true),
        Some(slot::<R, Softmax>(json!({}), json!({}), H, DK, DV)),
    );
    let m = model(&programs, 3);
    for p in m.parameters() {
        let name = p.name.rsplit('.').next().unwrap();
        set(&m, &p.name, &Numbers::new(name.len() as u64).tensor(&p.tensor.size()));
    }
    m
}

fn inputs() -> BTreeMap<&'static str, Tensor> {
    let mut numbers = Numbers::new(5);
    [("q", H * DK), ("k", H * DK), ("v", H * DV), ("beta", H)]
        .map(|(n, d)| (n, numbers.tensor(&[3, STEPS, d as i64])))
        .into_iter()
        .collect()
}

/// Outputs and the gradients of a weighted sum of them with respect to the inputs.
fn passes(m: &Model) -> Vec<Tensor> {
    let inputs = inputs();
    let leaves: Vec<Tensor> = inputs.values().map(|t| t.copy().set_requires_grad(true)).collect();
    let named: Vec<(&str, &Tensor)> = inputs.keys().copied().zip(&leaves).collect();
    let y = forward(m, &named, &EVAL, None).values.remove("y").unwrap();
    let weighted = (&y * Numbers::new(6).tensor(&y.size())).sum(Kind::Double);
    let gradients = Tensor::run_backward(&[weighted], &leaves, false, false);
    std::iter::once(y.detach()).chain(gradients).collect()
}

/// The outputs of both parts of the sequence, the second going on where the first ended, and what was carried from one to the other.
fn in_two(m: &Model) -> (Tensor, BTreeMap<String, Tensor>) {
    let inputs = inputs();
    let carrying = Pass { carry: true, resets: Some(vec![false; 3]), ..EVAL };
    let part = |from: i64, to: i64, carry: Option<Carry>| {
        let part: Vec<(&str, Tensor)> = inputs.iter().map(|(n, t)| (*n, t.narrow(1, from, to - from))).collect();
        let part: Vec<(&str, &Tensor)> = part.iter().map(|(n, t)| (*n, t)).collect();
        let mut output = forward(m, &part, &carrying, carry);
        (output.values.remove("y").unwrap().detach(), output.carry)
    };
    let (first, carry) = part(0, 3, None);
    let saved = m.save_carry(carry.as_ref().unwrap()).into_iter().map(|(n, t)| (n, t.copy())).collect();
    (Tensor::cat(&[first, part(3, STEPS, carry).0], 1), saved)
}

/// Compares a cell with fast weights along the sequence; whether kernels carried it out.
fn same<R: UpdateRule>(config: Value) -> bool {
    let what = format!("{} {config}", R::NAME);
    let plain = of::<R>(&config, false);
    let wanted = passes(&plain);
    let mut by_kernels = false;
    let mut carried: Option<BTreeMap<String, Tensor>> = None;
    let mut check = |how: &str| {
        let m = of::<R>(&config, true);
        for (i, (a, b)) in passes(&m).iter().zip(&wanted).enumerate() {
            close(a, b, 1e-12, &format!("{what}, {how}, tensor {i}"));
        }
        if config["after"] != true {
            let (y, saved) = in_two(&m);
            close(&y, &wanted[0], 1e-12, &format!("{what}, {how}, in two parts"));
            // States and the number of writes, by whichever executor.
            let first = carried.get_or_insert_with(|| saved.iter().map(|(n, t)| (n.clone(), t.copy())).collect());
            assert_eq!(saved.keys().collect::<Vec<_>>(), first.keys().collect::<Vec<_>>(), "{what}");
            saved.iter().for_each(|(n, t)| close(t, &first[n], 1e-12, &format!("{what}, {how}, carried {n}")));
        }
        let choices = m.executors().choices();
        by_kernels = choices.iter().any(|c| c.executor == Executor::Scan && c.part.contains("cell"));
    };
    check("by the reference");
    with_kernels(|| check("by kernels"));
    by_kernels
}

#[test]
fn a_cell_with_a_memory_is_fast_weights_along_the_sequence() {
    for scale in ["none", "query", "output"] {
        assert!(same::<Full>(json!({ "scale": scale, "key_heads": KEY_HEADS })), "{scale}: a kernel carries it out");
    }
    assert!(same::<Full>(json!({ "after": true, "key_heads": KEY_HEADS })));
    // A mask, the number of writes, and a state that is held are not for kernels; the cell is the same without. What a step reads that is not written is
    // another question along the sequence, so only what is left in the end is compared.
    same::<Full>(json!({ "masked": true, "after": true, "key_heads": KEY_HEADS }));
    same::<Holding>(json!({}));
    same::<Counting>(json!({}));
}
