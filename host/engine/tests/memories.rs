//! Fast weights in a net: which state is read, writing and reading apart, and walks in recomputed segments.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use fwp_engine::command::apply::apply;
use fwp_engine::exec::choose::{Executor, Executors, Policy};
use fwp_engine::model::Model;
use fwp_engine::train::TrainModel;
use fwp_map_identity::Identity;
use fwp_net_retrieval::Retrieval;
use fwp_rule_delta::Delta;
use fwp_sdk::build::{Port, PortKind, TaskIo};
use fwp_sdk::prelude::*;
use serde_json::json;
use support::{DOUBLE, EVAL, Numbers, TestSlot, close, compose, forward, model, set, slot, values, vectors};
use tch::{Kind, Tensor};

const H: usize = 2;
const DK: usize = 3;
const DV: usize = 2;

/// Keys, values and strengths as the task gives them; the net adds nothing of its own.
fn task(query_axis: Option<&str>) -> TaskIo {
    let queries = Port { name: "q".into(), axis: query_axis.map(str::to_string), kind: PortKind::Vector { dim: H * DK } };
    let y = Port { name: "y".into(), axis: query_axis.map(str::to_string), kind: PortKind::Vector { dim: H * DV } };
    TaskIo {
        inputs: vec![queries, vectors("k", H * DK), vectors("v", H * DV), vectors("beta", H)],
        outputs: vec![y],
        max_len: 99,
    }
}

struct Parts {
    q: Expr,
    k: Expr,
    v: Expr,
    beta: Expr,
}

fn parts(net: &Net) -> Parts {
    let shaped = |name: &str, shape: &[usize]| net.input(name).reshape(shape);
    Parts { q: shaped("q", &[H, DK]), k: shaped("k", &[H, DK]), v: shaped("v", &[H, DV]), beta: net.input("beta") }
}

macro_rules! nets {
    ($( $name:ident $text:literal { $($field:tt)* } |$me:ident, $net:ident| $forward:block )*) => { $(
        config! {
            /// A net of this test.
            pub struct $name { $($field)* }
        }
        impl SlowNet for $name {
            const NAME: &'static str = $text;
            const CITATION: &'static str = "test";
            fn memory(&self, _: &TaskIo, _: &str) -> Memory {
                Memory { heads: H, key: DK, value: DV }
            }
            fn forward(&self, $net: &mut Net) {
                let ($me, $net) = (self, &*$net);
                let y: Expr = $forward;
                $net.output("y", &y.reshape(&[H * DV]));
            }
        }
    )* };
}

nets! {
    Reading "reading" {
        /// Whether the state before the step is read.
        before: bool = false,
        /// Length of the chunks whose first state is read; 0 is none.
        chunk: usize = 0,
        /// Where the scale goes.
        scale: QueryScale = QueryScale::None,
    } |me, net| {
        let p = parts(net);
        let inputs: [(&str, &Expr); 4] = [("q", &p.q), ("k", &p.k), ("v", &p.v), ("beta", &p.beta)];
        let read = match (me.before, me.chunk) {
            (true, _) => ReadAt::Before,
            (false, 0) => ReadAt::After,
            (false, steps) => ReadAt::ChunkStart(steps),
        };
        net.fast_weights_reading("fast", &net.slot("main"), me.scale, read, &inputs)[0].clone()
    }
    Apart "apart" {} |_me, net| {
        let p = parts(net);
        let memory = net.memory("fast", &net.slot("main"));
        let memory = net.write("fast", &memory, &[("k", &p.k), ("v", &p.v), ("beta", &p.beta)]);
        net.read("fast", &memory, QueryScale::None, &[("q", &p.q)])[0].clone()
    }
    // The sequence is written twice.
    Twice "twice" {} |_me, net| {
        let p = parts(net);
        let writes: [(&str, &Expr); 3] = [("k", &p.k), ("v", &p.v), ("beta", &p.beta)];
        let memory = net.write("fast", &net.memory("fast", &net.slot("main")), &writes);
        let memory = net.write("fast", &memory, &writes);
        net.read("fast", &memory, QueryScale::Output, &[("q", &p.q)])[0].clone()
    }
    // The sequence is written, then one more key from its mean, where a mask allows it.
    Once "once" {} |_me, net| {
        let p = parts(net);
        let memory = net.memory("fast", &net.slot("main"));
        let memory = net.write("fast", &memory, &[("k", &p.k), ("v", &p.v), ("beta", &p.beta)]);
        let allowed = p.beta.mean_over().sum().less(0.0);
        let (k, v, beta) = (p.k.mean_over(), p.v.mean_over(), p.beta.mean_over());
        let memory = net.write("fast", &memory, &[("k", &k), ("v", &v), ("beta", &beta), ("write", &allowed)]);
        net.read("fast", &memory, QueryScale::None, &[("q", &p.q)])[0].clone()
    }
}

config! {
    /// A rule whose output takes a way past the state.
    pub struct Direct {}
}
impl UpdateRule for Direct {
    const NAME: &'static str = "direct";
    const CITATION: &'static str = "test";
    const OBJECTIVE: &'static str = "none: a test";
    fn signature(&self, d: Dims) -> Signature {
        Signature::new(d).signal("beta", []).state("w", [d.value, d.key], StateStart::Zeros)
    }
    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") + s.signal("beta") * outer(&v, &k);
        s.output(w.matvec(&q) + v.tanh());
        s.set_state("w", w);
    }
}

config! {
    /// A rule that fades as a whole and by key before it writes, does not begin at zero, and has a normaliser.
    pub struct Fading {}
}
impl UpdateRule for Fading {
    const NAME: &'static str = "fading";
    const CITATION: &'static str = "test";
    const OBJECTIVE: &'static str = "none: a test";
    fn signature(&self, d: Dims) -> Signature {
        Signature::new(d).signal("beta", []).state("w", [d.value, d.key], StateStart::Constant(0.3)).state(
            "z",
            [d.key],
            StateStart::Zeros,
        )
    }
    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let beta = s.signal("beta").sigmoid();
        let w = (&beta * s.state("w")).scale_columns(k.sigmoid());
        let w = &w + outer(&(&v - w.matvec(&k)), &k);
        let z = beta * s.state("z") + &k;
        s.output(w.matvec(&q) / (z.dot(&q).abs() + 1.0));
        s.set_state("w", w);
        s.set_state("z", z);
    }
}

fn built<N: SlowNet>(config: serde_json::Value, query_axis: Option<&str>) -> Model {
    let slot = slot::<Delta, Identity>(json!({}), json!({}), H, DK, DV);
    model(&compose::<N>(config, &task(query_axis), Some(slot)), 1)
}

fn inputs(batch: i64, time: i64, queries: Option<i64>) -> BTreeMap<String, Tensor> {
    let mut numbers = Numbers::new(9);
    let q = [vec![batch], queries.into_iter().collect(), vec![(H * DK) as i64]].concat();
    BTreeMap::from([
        ("q".to_string(), numbers.tensor(&q)),
        ("k".to_string(), numbers.tensor(&[batch, time, (H * DK) as i64])),
        ("v".to_string(), numbers.tensor(&[batch, time, (H * DV) as i64])),
        ("beta".to_string(), numbers.tensor(&[batch, time, H as i64])),
    ])
}

fn y_of(m: &Model, inputs: &BTreeMap<String, Tensor>) -> Tensor {
    m.forward(inputs, &EVAL, None).unwrap_or_else(|e| panic!("{e:#}")).values.remove("y").unwrap()
}

type Matrix = Vec<Vec<f64>>;

/// The weights of one head of one sample before every step, and after the last.
fn weights(inputs: &BTreeMap<String, Tensor>, sample: i64, head: usize, reset: impl Fn(usize) -> bool) -> Vec<Matrix> {
    let of = |name: &str, d: usize| -> Vec<Vec<f64>> {
        values(&inputs[name].get(sample)).chunks(H * d).map(|r| r[head * d..(head + 1) * d].to_vec()).collect()
    };
    let (k, v, beta) = (of("k", DK), of("v", DV), of("beta", 1));
    let mut w = vec![vec![0.0; DK]; DV];
    let mut all = Vec::new();
    for t in 0..k.len() {
        if reset(t) {
            w = vec![vec![0.0; DK]; DV];
        }
        all.push(w.clone());
        let strength = 1.0 / (1.0 + (-beta[t][0]).exp());
        for i in 0..DV {
            let read: f64 = w[i].iter().zip(&k[t]).map(|(a, b)| a * b).sum();
            (0..DK).for_each(|j| w[i][j] += strength * (v[t][i] - read) * k[t][j]);
        }
    }
    all.push(w);
    all
}

fn read(w: &Matrix, q: &[f64]) -> Vec<f64> {
    w.iter().map(|row| row.iter().zip(q).map(|(a, b)| a * b).sum()).collect()
}

/// Checks every output against the weights that `seen` says are read at a step.
fn reads(
    y: &Tensor,
    inputs: &BTreeMap<String, Tensor>,
    reset: impl Fn(usize) -> bool + Copy,
    scale: f64,
    seen: impl Fn(usize) -> usize,
) {
    for sample in 0..y.size()[0] {
        for head in 0..H {
            let w = weights(inputs, sample, head, reset);
            for t in 0..y.size()[1] as usize {
                let q = &values(&inputs["q"].get(sample).get(t as i64))[head * DK..(head + 1) * DK];
                let wanted: Vec<f64> = read(&w[seen(t)], q).iter().map(|x| x * scale).collect();
                let got = y.get(sample).get(t as i64).narrow(0, (head * DV) as i64, DV as i64);
                close(&got.detach(), &Tensor::from_slice(&wanted), 1e-12, &format!("step {t}"));
            }
        }
    }
}

#[test]
fn the_state_after_before_and_at_the_start_of_the_chunk_is_read() {
    let x = inputs(2, 8, Some(8));
    let model = |config| built::<Reading>(config, Some("time"));
    reads(&y_of(&model(json!({})), &x), &x, |_| false, 1.0, |t| t + 1);
    reads(&y_of(&model(json!({ "before": true })), &x), &x, |_| false, 1.0, |t| t);
    for chunk in [1, 3, 4, 100] {
        reads(&y_of(&model(json!({ "chunk": chunk })), &x), &x, |_| false, 1.0, |t| t / chunk * chunk);
    }
}

#[test]
fn chunks_and_earlier_reads_count_from_the_reset() {
    let mut x = inputs(2, 8, Some(8));
    let at = |t: usize| t == 0 || t == 5;
    let flags: Vec<bool> = (0..16).map(|i| at(i % 8)).collect();
    let plain = x.clone_all();
    x.insert("reset".into(), Tensor::from_slice(&flags).reshape([2, 8]));
    let model = |config| built::<Reading>(config, Some("time"));
    reads(&y_of(&model(json!({ "before": true })), &x), &plain, at, 1.0, |t| t);
    reads(&y_of(&model(json!({ "chunk": 3 })), &x), &plain, at, 1.0, |t| if t < 5 { t / 3 * 3 } else { 5 });
}

#[test]
fn a_chunk_starts_where_a_write_is_masked_too() {
    config! {
        /// A net of this test.
        pub struct Masked {}
    }
    impl SlowNet for Masked {
        const NAME: &'static str = "masked";
        const CITATION: &'static str = "test";
        fn memory(&self, _: &TaskIo, _: &str) -> Memory {
            Memory { heads: H, key: DK, value: DV }
        }
        fn forward(&self, net: &mut Net) {
            let p = parts(net);
            // Steps 3 and 4 are not written; 3 is the start of a chunk.
            let place = p.beta.position();
            let write = place.equal(3).or(place.equal(4)).not();
            let inputs: [(&str, &Expr); 5] = [("q", &p.q), ("k", &p.k), ("v", &p.v), ("beta", &p.beta), ("write", &write)];
            let y =
                net.fast_weights_reading("fast", &net.slot("main"), QueryScale::None, ReadAt::ChunkStart(3), &inputs)[0].clone();
            net.output("y", &y.reshape(&[H * DV]));
        }
    }
    let x = inputs(2, 8, Some(8));
    let y = y_of(&built::<Masked>(json!({}), Some("time")), &x);
    // As if the masked steps were not there: the chunk from 3 sees three writes, the one from 6 four.
    let kept = Tensor::from_slice(&[0i64, 1, 2, 5, 6, 7]);
    let mut written = x.clone_all();
    ["k", "v", "beta"].iter().for_each(|n| drop(written.insert(n.to_string(), x[*n].index_select(1, &kept))));
    reads(&y, &written, |_| false, 1.0, |t| [0, 3, 4][t / 3]);
}

#[test]
fn groups_of_heads_share_what_they_are_given() {
    config! {
        /// A rule of this test.
        pub struct Shared {}
    }
    impl UpdateRule for Shared {
        const NAME: &'static str = "shared";
        const CITATION: &'static str = "test";
        const OBJECTIVE: &'static str = "none: a test";
        fn signature(&self, d: Dims) -> Signature {
            let s = Signature::without_inputs(d).query("q", [d.key]).key("k", [d.key]).heads(2).value("v", [d.value]);
            s.state("w", [d.value, d.key], StateStart::Zeros)
        }
        fn step(&self, s: &mut Step) {
            let (q, k, v) = s.query_key_value();
            let w = s.state("w") + outer(&v, &k);
            s.output(w.matvec(&q));
            s.set_state("w", w);
        }
    }
    config! {
        /// A net of this test.
        pub struct Sharing {}
    }
    impl SlowNet for Sharing {
        const NAME: &'static str = "sharing";
        const CITATION: &'static str = "test";
        fn memory(&self, _: &TaskIo, _: &str) -> Memory {
            Memory { heads: 4, key: 3, value: 2 }
        }
        fn forward(&self, net: &mut Net) {
            let x = net.input("x");
            let part = |start, heads: usize, d: usize| x.slice(0, start, heads * d).reshape(&[heads, d]);
            let given: [(&str, &Expr); 3] = [("q", &part(0, 4, 3)), ("k", &part(12, 2, 3)), ("v", &part(18, 4, 2))];
            net.output("y", &net.fast_weights("fast", &net.slot("main"), QueryScale::None, &given)[0].reshape(&[8]));
        }
    }
    let slot = slot::<Shared, Identity>(json!({}), json!({}), 4, 3, 2);
    let m = model(&compose::<Sharing>(json!({}), &support::sequence_task(26, 8), Some(slot)), 1);
    let x = Numbers::new(5).tensor(&[2, 7, 26]);
    let y = support::y_of(&m, &x);
    let at = |b: i64, t: i64, i: usize| x.double_value(&[b, t, i as i64]);
    for (b, t) in [(0, 0), (1, 6)] {
        for head in 0..4 {
            // Heads 0 and 1 have the first key, 2 and 3 the second.
            let key = |s, j| at(b, s, 12 + head / 2 * 3 + j);
            for i in 0..2 {
                let score = |s| (0..3).map(|j| key(s, j) * at(b, t, head * 3 + j)).sum::<f64>();
                let wanted: f64 = (0..=t).map(|s| at(b, s, 18 + head * 2 + i) * score(s)).sum();
                assert!((y.double_value(&[b, t, (head * 2 + i) as i64]) - wanted).abs() < 1e-12, "head {head}");
            }
        }
    }
}

trait CloneAll {
    fn clone_all(&self) -> BTreeMap<String, Tensor>;
}
impl CloneAll for BTreeMap<String, Tensor> {
    fn clone_all(&self) -> BTreeMap<String, Tensor> {
        self.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect()
    }
}

#[test]
fn the_scale_is_on_the_query_or_on_the_output() {
    let x = inputs(1, 5, Some(5));
    for scale in ["query", "output"] {
        let m = built::<Reading>(json!({ "scale": scale }), Some("time"));
        reads(&y_of(&m, &x), &x, |_| false, (DK as f64).powf(-0.5), |t| t + 1);
    }
}

#[test]
fn a_memory_is_read_along_another_axis_or_once() {
    let x = inputs(2, 6, Some(4));
    reads(&y_of(&built::<Apart>(json!({}), Some("target")), &x), &x, |_| false, 1.0, |_| 6);
    let x = inputs(2, 6, None);
    let y = y_of(&built::<Apart>(json!({}), None), &x);
    assert_eq!(y.size(), [2, (H * DV) as i64]);
    let mut stepped = x.clone_all();
    stepped.insert("q".into(), x["q"].unsqueeze(1));
    reads(&y.unsqueeze(1), &stepped, |_| false, 1.0, |_| 6);
}

#[test]
fn one_more_write_without_an_axis_where_a_mask_allows_it() {
    let mut x = inputs(3, 6, Some(6));
    // The second sample's mask forbids the last write.
    let _ = x.get_mut("beta").unwrap().get(1).abs_();
    let _ = x.get_mut("beta").unwrap().get(0).abs_().neg_();
    let y = y_of(&built::<Once>(json!({}), Some("time")), &x);
    let mut longer = x.clone_all();
    for name in ["k", "v", "beta"] {
        longer.insert(name.into(), Tensor::cat(&[&x[name], &x[name].mean_dim(1, true, Kind::Double)], 1));
    }
    for (sample, written) in [(0, 7), (1, 6)] {
        let one =
            |x: &BTreeMap<String, Tensor>| x.iter().map(|(n, t)| (n.clone(), t.narrow(0, sample, 1))).collect::<BTreeMap<_, _>>();
        reads(&y.narrow(0, sample, 1), &one(&longer), |_| false, 1.0, |_| written);
    }
}

/// Outputs and gradients of a net with one read, by the reference and as the host chooses; the parts that it chose executors for.
fn either_way<N: SlowNet>(slot: TestSlot, steps: i64, queries: Option<i64>) -> Vec<String> {
    let programs = compose::<N>(json!({}), &task(queries.map(|_| "queries")), Some(slot));
    let x = inputs(3, steps, queries);
    let names = ["q", "k", "v", "beta"];
    let run = |policy: Policy| -> (Vec<Tensor>, Vec<String>) {
        let executors = Arc::new(Executors::new(policy));
        let m = Model::new(&programs, DOUBLE, 1, u64::MAX).unwrap().with_executors(executors.clone());
        let leaves: Vec<Tensor> = names.iter().map(|n| x[*n].detach().set_requires_grad(true)).collect();
        let given: Vec<(&str, &Tensor)> = names.iter().copied().zip(&leaves).collect();
        let y = forward(&m, &given, &EVAL, None).values.remove("y").unwrap();
        let loss = (&y * y.detach().sin()).sum(Kind::Double);
        let mut found = vec![y.detach()];
        found.extend(Tensor::run_backward(&[loss], &leaves.iter().collect::<Vec<_>>(), false, false));
        (found, executors.choices().into_iter().map(|c| c.part).collect())
    };
    let ((wanted, _), (found, parts)) = (run(Policy::Only(Executor::Reference)), run(Policy::Auto));
    for ((a, b), name) in found.iter().zip(&wanted).zip(["y", "q", "k", "v", "beta"]) {
        assert_eq!(a.size(), b.size(), "{name}");
        close(a, b, 1e-12, name);
    }
    parts
}

#[test]
fn one_query_is_walked_back_through_the_writes() {
    let delta = || slot::<Delta, Identity>(json!({}), json!({ "normalise": "l2" }), H, DK, DV);
    let normalised = || slot::<Delta, Identity>(json!({ "attention_normalisation": true }), json!({}), H, DK, DV);
    let fading = || slot::<Fading, Identity>(json!({}), json!({}), H, DK, DV);
    let lengths = [1, 2, 9, 16, 65];
    for (steps, queries) in lengths.into_iter().flat_map(|n| [(n, None), (n, Some(1))]) {
        assert_eq!(either_way::<Apart>(delta(), steps, queries), ["queries", "walk back"]);
        assert_eq!(either_way::<Apart>(fading(), steps, queries), ["queries", "walk back"]);
        // What was there before the last write is read, too.
        assert_eq!(either_way::<Twice>(delta(), steps, queries), ["write", "queries", "walk back"]);
        assert_eq!(either_way::<Twice>(fading(), steps, queries), ["write", "queries", "walk back"]);
    }
    // Its writes read what was written before.
    assert_eq!(either_way::<Apart>(normalised(), 9, None)[0], "write");
    // Several queries are worth the memory.
    assert_eq!(either_way::<Apart>(delta(), 9, Some(2))[0], "write");
    // A write that a mask may forbid is carried out.
    assert_eq!(either_way::<Once>(delta(), 9, None)[..2], ["write", "write"]);
}

#[test]
fn a_rule_that_does_not_come_apart_says_why_and_where() {
    let slot = slot::<Direct, Identity>(json!({}), json!({}), H, DK, DV);
    let programs = compose::<Reading>(json!({ "before": true }), &task(Some("time")), Some(slot));
    let error = format!("{:#}", model(&programs, 1).forward(&inputs(1, 3, Some(3)), &EVAL, None).unwrap_err());
    for wanted in ["direct", "`tanh`", "`v`", "memories.rs:"] {
        assert!(error.contains(wanted), "{wanted} in: {error}");
    }
}

#[test]
fn segments_change_nothing_but_memory() {
    let task = task(Some("time"));
    for config in [json!({}), json!({ "before": true }), json!({ "chunk": 4 })] {
        let made = |limit| {
            let slot = slot::<Delta, Identity>(json!({}), json!({ "normalise": "l2" }), H, DK, DV);
            Model::new(&compose::<Reading>(config.clone(), &task, Some(slot)), DOUBLE, 1, limit).unwrap()
        };
        for resets in [false, true] {
            let mut x = inputs(2, 23, Some(23));
            if resets {
                let flags: Vec<bool> = (0..46).map(|i| i % 9 == 3).collect();
                x.insert("reset".into(), Tensor::from_slice(&flags).reshape([2, 23]));
            }
            let names = ["q", "k", "v", "beta"];
            let run = |m: &Model| -> (Tensor, Vec<Tensor>) {
                let leaves: Vec<Tensor> = names.iter().map(|n| x[*n].detach().set_requires_grad(true)).collect();
                let mut given: Vec<(&str, &Tensor)> = names.iter().copied().zip(&leaves).collect();
                given.extend(x.get("reset").map(|r| ("reset", r)));
                let y = forward(m, &given, &EVAL, None).values.remove("y").unwrap();
                let loss = (&y * y.detach().sin()).sum(Kind::Double);
                (y.detach(), Tensor::run_backward(&[loss], &leaves.iter().collect::<Vec<_>>(), false, false))
            };
            let (whole, gradients) = run(&made(u64::MAX));
            for limit in [0, 3000] {
                let (y, again) = run(&made(limit));
                assert_eq!(y, whole, "{config}, limit {limit}");
                for ((a, b), name) in again.iter().zip(&gradients).zip(names) {
                    close(a, b, 1e-12, &format!("gradient of {name}, {config}, limit {limit}"));
                }
            }
        }
    }
}

/// Bytes that the graph below an output keeps grow with the segments' number, not with the steps'.
#[test]
fn segments_bound_what_is_kept() {
    // Resident memory is the process's; a process of its own measures one model.
    let measure = |limit: &str| -> f64 {
        let me = std::env::current_exe().unwrap();
        let args = ["--exact", "kept_by_a_long_walk", "--ignored", "--nocapture"];
        let out = std::process::Command::new(me).args(args).env("TEST_MEMORY_LIMIT", limit).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = text.lines().find_map(|l| l.split("kept MiB ").nth(1).map(str::to_string));
        line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&out.stderr))).trim().parse().unwrap()
    };
    let (whole, bounded) = (measure(&u64::MAX.to_string()), measure("0"));
    // 400 steps keep 400 states of 2 x 8 x 64 x 64 floats of 8 bytes at 0.5 MiB each; 20 segments keep 20, and their steps one after another.
    assert!(whole > 200.0, "the whole walk keeps {whole} MiB");
    // Inputs, outputs and gradients of both are some 50 MiB.
    assert!(bounded < whole / 2.0, "segments keep {bounded} MiB, the whole walk {whole}");
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn kept_by_a_long_walk() {
    let limit: u64 = std::env::var("TEST_MEMORY_LIMIT").unwrap().parse().unwrap();
    let port = |name: &str, dim| vectors(name, dim);
    config! {
        /// A net of this test.
        pub struct Wide {}
    }
    impl SlowNet for Wide {
        const NAME: &'static str = "wide";
        const CITATION: &'static str = "test";
        fn memory(&self, _: &TaskIo, _: &str) -> Memory {
            Memory { heads: 8, key: 64, value: 64 }
        }
        fn forward(&self, net: &mut Net) {
            let x = net.input("x");
            let part = |start| x.slice(0, start, 512).reshape(&[8, 64]).l2_normalise(1e-6);
            let (q, k, v, beta) = (part(0), part(512), part(1024), x.slice(0, 0, 8));
            let o = net.fast_weights(
                "fast",
                &net.slot("main"),
                QueryScale::None,
                &[("q", &q), ("k", &k), ("v", &v), ("beta", &beta)],
            );
            net.output("y", &o[0].reshape(&[512]));
        }
    }
    let task = TaskIo { inputs: vec![port("x", 1536)], outputs: vec![port("y", 512)], max_len: 400 };
    let slot = slot::<Delta, Identity>(json!({}), json!({}), 8, 64, 64);
    let m = Model::new(&compose::<Wide>(json!({}), &task, Some(slot)), DOUBLE, 1, limit).unwrap();
    let x = Numbers::new(1).tensor(&[2, 400, 1536]).set_requires_grad(true);
    let peak = || -> f64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    let before = peak();
    let y = forward(&m, &[("x", &x)], &EVAL, None).values.remove("y").unwrap();
    y.square().sum(Kind::Double).backward();
    println!("kept MiB {}", peak() - before);
}

#[test]
fn apply_names_what_is_wrong_with_a_file() {
    let slot = slot::<Delta, Identity>(json!({}), json!({}), H, DK, DV);
    let (rule, map) = (slot.programs.rule, slot.programs.map);
    let mut numbers = Numbers::new(2);
    let mut good: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, d) in [("q", Some(3)), ("k", Some(3)), ("v", Some(2)), ("beta", None)] {
        good.insert(name.into(), numbers.tensor(&[vec![2, 4, 2], d.into_iter().collect()].concat()));
    }
    let refusal = |name: &str, t: Option<Tensor>, grad: bool| -> String {
        let mut file = good.clone_all();
        match t {
            Some(t) => file.insert(name.into(), t),
            None => file.remove(name),
        };
        format!("{:#}", apply(&rule, &map, &file, DOUBLE, grad, &Default::default()).unwrap_err())
    };
    let zeros = |shape: &[i64]| Some(Tensor::zeros(shape, (Kind::Double, tch::Device::Cpu)));
    for (name, t, wanted) in [
        ("beta", None, &["lacks `beta`", "q, k, v, beta"][..]),
        ("beta", zeros(&[2, 4, 2, 1]), &["`beta` is [2, 4, 2, 1]", "[batch, time, heads]"]),
        ("k", zeros(&[2, 4, 2, 5]), &["`k` is [2, 4, 2, 5]", "[2, 4, 2, 3]"]),
        ("v", zeros(&[2, 5, 2, 2]), &["`v`", "is ["]),
        ("k", zeros(&[2, 4, 0, 3]), &["`k` is [2, 4, 0, 3]"]),
        ("state.w", zeros(&[2, 2, 3, 3]), &["`state.w` is [2, 2, 3, 3]", "[2, 2, 2, 3]"]),
        ("state.W", zeros(&[2, 2, 2, 3]), &["`state.W`", "its states are: w"]),
        ("param.rate", zeros(&[2]), &["`param.rate`", "none"]),
        ("reset", zeros(&[2, 3]), &["`reset` is [2, 3]", "[2, 4]"]),
        ("write", zeros(&[4, 2]), &["`write` is [4, 2]", "[2, 4]"]),
    ] {
        let error = refusal(name, t, false);
        wanted.iter().for_each(|w| assert!(error.contains(w), "{w} in: {error}"));
    }
    assert!(refusal("grad.o", zeros(&[2, 4, 2, 3]), true).contains("`grad.o` is [2, 4, 2, 3]"));
    assert!(refusal("nothing", zeros(&[1]), true).contains("need `grad.o`"));
    // The caller's tensors stay as they are.
    let mut file = good.clone_all();
    file.insert("grad.o".into(), zeros(&[2, 4, 2, 2]).unwrap());
    apply(&rule, &map, &file, DOUBLE, true, &Default::default()).unwrap();
    assert!(!file["q"].requires_grad());
}

#[test]
fn all_of_it_holds_for_compiled_kernels() {
    support::by_kernels(&[
        the_state_after_before_and_at_the_start_of_the_chunk_is_read,
        chunks_and_earlier_reads_count_from_the_reset,
        a_chunk_starts_where_a_write_is_masked_too,
        groups_of_heads_share_what_they_are_given,
        the_scale_is_on_the_query_or_on_the_output,
        a_memory_is_read_along_another_axis_or_once,
        one_more_write_without_an_axis_where_a_mask_allows_it,
    ]);
}

const SYMBOLS: usize = 7;
const EMBEDDED: usize = 4;

/// Softmax attention over stored pairs, written from its definition: what the net answers to every query of one sequence.
fn softmax_over_pairs(weights: &BTreeMap<String, Vec<f64>>, pairs: &[(usize, usize)], queries: &[usize]) -> Vec<f64> {
    let embedded = |symbol: usize| &weights["embeddings.weight"][symbol * EMBEDDED..(symbol + 1) * EMBEDDED];
    let affine = |name: &str, x: &[f64]| -> Vec<f64> {
        let (w, b) = (&weights[&format!("{name}_proj.weight")], &weights[&format!("{name}_proj.bias")]);
        b.iter().zip(w.chunks(x.len())).map(|(b, row)| b + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect()
    };
    let keys: Vec<Vec<f64>> = pairs
        .iter()
        .map(|(key, value)| {
            let mut x = vec![0.0; SYMBOLS];
            x[*value] = 1.0;
            x.extend(embedded(*key));
            affine("k", &x)
        })
        .collect();
    let mut answers = Vec::new();
    for query in queries {
        let q = affine("q", embedded(*query));
        let scale = (q.len() as f64).sqrt();
        let score = |k: &Vec<f64>| (k.iter().zip(&q).map(|(k, q)| k * q).sum::<f64>() / scale).exp();
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let sum: f64 = scores.iter().sum();
        let mut answer = vec![0.0; SYMBOLS];
        pairs.iter().zip(&scores).for_each(|((_, value), score)| answer[*value] += score / sum);
        answers.extend(answer);
    }
    answers
}

#[test]
fn retrieval_with_softmax_is_attention_over_the_pairs() {
    let port = |name: &str, axis: &str, kind| Port { name: name.into(), axis: Some(axis.into()), kind };
    let symbol = || PortKind::Symbol { vocab: SYMBOLS };
    let task = TaskIo {
        inputs: vec![port("keys", "pairs", symbol()), port("values", "pairs", symbol()), port("query", "query", symbol())],
        outputs: vec![port("value", "query", PortKind::Vector { dim: SYMBOLS })],
        max_len: 9,
    };
    let config = json!({ "softmax": true, "key_dim": 3, "embedding": EMBEDDED });
    let m = model(&compose::<Retrieval>(config, &task, None), 5);
    let mut numbers = Numbers::new(2);
    // Biases begin small: moved, they count. Scores of some size tell softmax from a mean.
    for p in m.parameters() {
        set(&m, &p.name, &(1.5 * numbers.tensor(&p.tensor.size())));
    }
    let (pairs, queries) = (5, 3);
    let mut symbols =
        |n: i64| -> Vec<i64> { (0..2 * n).map(|_| ((numbers.next() + 1.0) / 2.0 * SYMBOLS as f64) as i64).collect() };
    let (keys, given, query) = (symbols(pairs), symbols(pairs), symbols(queries));
    let answer = |weights: &BTreeMap<String, Vec<f64>>| -> Vec<f64> {
        let of = |list: &[i64], n: i64, b: usize| -> Vec<usize> {
            list.chunks(n as usize).nth(b).unwrap().iter().map(|s| *s as usize).collect()
        };
        let all = (0..2).flat_map(|b| {
            let pairs: Vec<(usize, usize)> = of(&keys, pairs, b).into_iter().zip(of(&given, pairs, b)).collect();
            softmax_over_pairs(weights, &pairs, &of(&query, queries, b))
        });
        all.collect()
    };
    let rows = |list: &[i64], n: i64| Tensor::from_slice(list).reshape([2, n]);
    let inputs = [("keys", &rows(&keys, pairs)), ("values", &rows(&given, pairs)), ("query", &rows(&query, queries))];
    let y = forward(&m, &inputs, &EVAL, None).values.remove("value").unwrap();
    let mut weights: BTreeMap<String, Vec<f64>> = m.parameters().iter().map(|p| (p.name.clone(), values(&p.tensor))).collect();
    let wanted = Tensor::from_slice(&answer(&weights)).reshape([2, queries, SYMBOLS as i64]);
    close(&y.reshape(wanted.size()), &wanted, 1e-13, "answers");

    // Gradients of a weighted sum, along a direction in each parameter.
    let weighing = Numbers::new(8).tensor(&wanted.size());
    (y.reshape(wanted.size()) * &weighing).sum(Kind::Double).backward();
    let weighing = values(&weighing);
    for p in m.parameters() {
        let direction = Numbers::new(9).list(p.tensor.numel());
        let exact: f64 = values(&p.tensor.grad()).iter().zip(&direction).map(|(g, d)| g * d).sum();
        let at = weights[&p.name].clone();
        let mut moved = |by: f64| -> f64 {
            let to = at.iter().zip(&direction).map(|(w, d)| w + by * d).collect();
            weights.insert(p.name.clone(), to);
            answer(&weights).iter().zip(&weighing).map(|(a, w)| a * w).sum()
        };
        let numerical = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        weights.insert(p.name.clone(), at);
        assert!((numerical - exact).abs() < 1e-8 * exact.abs().max(1.0), "{}: {exact} against {numerical}", p.name);
    }
}
