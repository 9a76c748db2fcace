//! Slow nets as plain loops over float64 numbers, and what is asked of every net from tokens to logits.

use std::collections::BTreeMap;

use fwp_engine::model::Model;
use fwp_program::ModelPrograms;
use fwp_sdk::SlowNet;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{EVAL, Numbers, Pass, TestSlot, TrainModel, close, compose, forward, model, parameter, set, token_task, values};

pub const VOCAB: usize = 7;
pub const CLASSES: usize = 5;

pub type Vector = Vec<f64>;
pub type Sequence = Vec<Vector>;

pub fn zip(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vector {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
}
pub fn add(a: &[f64], b: &[f64]) -> Vector {
    zip(a, b, |a, b| a + b)
}
pub fn mul(a: &[f64], b: &[f64]) -> Vector {
    zip(a, b, |a, b| a * b)
}
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    mul(a, b).iter().sum()
}
pub fn map(a: &[f64], f: impl Fn(f64) -> f64) -> Vector {
    a.iter().map(|a| f(*a)).collect()
}
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}
pub fn relu(x: f64) -> f64 {
    x.max(0.0)
}
pub fn times(w: &[Vector], x: &[f64]) -> Vector {
    w.iter().map(|row| dot(row, x)).collect()
}
pub fn softmax(x: &[f64]) -> Vector {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e = map(x, |x| (x - top).exp());
    let sum: f64 = e.iter().sum();
    map(&e, |e| e / sum)
}
/// (x - mean) / sqrt(variance + eps)
pub fn centred(x: &[f64], eps: f64) -> Vector {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    map(x, |x| (x - mean) / (variance + eps).sqrt())
}
/// x / sqrt(mean(x^2) + eps)
pub fn scaled(x: &[f64], eps: f64) -> Vector {
    let square = dot(x, x) / x.len() as f64;
    map(x, |x| x / (square + eps).sqrt())
}
/// Pairs (i, j) of features turned by p base^(-2 i / d); `pairs` says which belong together.
pub fn turned(x: &[f64], p: f64, base: f64, halves: bool) -> Vector {
    let d = x.len();
    let mut y = x.to_vec();
    for i in 0..d / 2 {
        let (a, b) = if halves { (i, i + d / 2) } else { (2 * i, 2 * i + 1) };
        let (sin, cos) = (p * base.powf(-2.0 * i as f64 / d as f64)).sin_cos();
        (y[a], y[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
    }
    y
}
/// Part `head` of a vector of `heads` parts.
pub fn head(x: &[f64], head: usize, heads: usize) -> &[f64] {
    let n = x.len() / heads;
    &x[head * n..(head + 1) * n]
}
/// What a step of softmax attention sees.
pub fn attend(q: &[f64], seen: &[(&[f64], &[f64])], scale: f64) -> Vector {
    let weights = softmax(&seen.iter().map(|(k, _)| scale * dot(q, k)).collect::<Vector>());
    let mut o = vec![0.0; seen[0].1.len()];
    for (w, (_, v)) in weights.iter().zip(seen) {
        o = add(&o, &map(v, |v| w * v));
    }
    o
}

/// Rows and columns of a matrix of zeros.
pub fn zeros(rows: usize, columns: usize) -> Vec<Vector> {
    vec![vec![0.0; columns]; rows]
}
/// w + a v k^T
pub fn add_outer(w: &mut [Vector], a: f64, v: &[f64], k: &[f64]) {
    for (row, v) in w.iter_mut().zip(v) {
        row.iter_mut().zip(k).for_each(|(w, k)| *w += a * v * k);
    }
}
/// The delta rule.
pub fn delta(w: &mut [Vector], k: &[f64], v: &[f64], beta: f64) {
    let error = zip(v, &times(w, k), |v, old| v - old);
    add_outer(w, sigmoid(beta), &error, k);
}

/// A model's parameters as plain numbers, below a prefix.
pub struct Weights<'a> {
    all: &'a BTreeMap<String, (Vec<i64>, Vector)>,
    prefix: String,
}

impl Weights<'_> {
    pub fn below(&self, prefix: &str) -> Weights<'_> {
        Weights { all: self.all, prefix: format!("{}{prefix}", self.prefix) }
    }
    fn get(&self, name: &str) -> &(Vec<i64>, Vector) {
        let name = format!("{}{name}", self.prefix);
        self.all.get(&name).unwrap_or_else(|| panic!("no `{name}` among {:?}", self.all.keys()))
    }
    pub fn vector(&self, name: &str) -> Vector {
        self.get(name).1.clone()
    }
    pub fn matrix(&self, name: &str) -> Vec<Vector> {
        let (shape, numbers) = self.get(name);
        numbers.chunks(shape[shape.len() - 1] as usize).map(<[f64]>::to_vec).collect()
    }
    /// W x
    pub fn linear(&self, name: &str, x: &[f64]) -> Vector {
        times(&self.matrix(&format!("{name}.weight")), x)
    }
    /// W x + b
    pub fn affine(&self, name: &str, x: &[f64]) -> Vector {
        add(&self.linear(name, x), &self.vector(&format!("{name}.bias")))
    }
    pub fn rms_norm(&self, name: &str, x: &[f64], eps: f64) -> Vector {
        mul(&scaled(x, eps), &self.vector(&format!("{name}.weight")))
    }
    pub fn layer_norm(&self, name: &str, x: &[f64], eps: f64) -> Vector {
        let y = mul(&centred(x, eps), &self.vector(&format!("{name}.weight")));
        add(&y, &self.vector(&format!("{name}.bias")))
    }
    /// A depthwise causal convolution of a whole sequence.
    pub fn convolved(&self, name: &str, x: &Sequence) -> Sequence {
        let kernel = self.matrix(&format!("{name}.weight"));
        let at = |t: usize, c: usize| -> f64 {
            let row = &kernel[c];
            (0..row.len()).filter(|j| t + j + 1 >= row.len()).map(|j| row[j] * x[t + j + 1 - row.len()][c]).sum()
        };
        (0..x.len()).map(|t| (0..x[t].len()).map(|c| at(t, c)).collect()).collect()
    }
    pub fn embedded(&self, tokens: &[usize]) -> Sequence {
        let table = self.matrix("embeddings.weight");
        tokens.iter().map(|t| table[*t].clone()).collect()
    }
}

/// A float64 model of a net from tokens to logits, every trained parameter moved away from its initial value.
pub fn net<N: SlowNet>(config: Value, slots: impl IntoIterator<Item = TestSlot>) -> Model {
    let programs = compose::<N>(config, &token_task(VOCAB, CLASSES), slots);
    moved(&programs)
}

fn moved(programs: &ModelPrograms) -> Model {
    let m = model(programs, 7);
    let mut numbers = Numbers::new(3);
    let names: Vec<String> = m.parameters().iter().filter(|p| p.trainable).map(|p| p.name.clone()).collect();
    for name in names {
        let t = parameter(&m, &name);
        let noise = numbers.tensor(&t.size()) * 0.4;
        set(&m, &name, &(t.detach() + noise));
    }
    m
}

pub fn tokens(batch: i64, time: i64) -> Tensor {
    let mut numbers = Numbers::new(11);
    let list: Vec<i64> = (0..batch * time).map(|_| ((numbers.next() + 1.0) / 2.0 * VOCAB as f64) as i64).collect();
    Tensor::from_slice(&list).reshape([batch, time])
}

pub fn logits(m: &Model, tokens: &Tensor) -> Tensor {
    forward(m, &[("tokens", tokens)], &EVAL, None).values.remove("logits").unwrap()
}

/// Compares a net with a loop from the tokens of one sample to their logits.
pub fn against(m: &Model, what: &str, work: impl Fn(&Weights, &[usize]) -> Sequence) {
    const TIME: i64 = 11;
    let all = m.parameters().iter().map(|p| (p.name.clone(), (p.tensor.size(), values(&p.tensor)))).collect();
    let weights = Weights { all: &all, prefix: String::new() };
    let given = tokens(3, TIME);
    let found = logits(m, &given);
    for sample in 0..3 {
        let list: Vec<usize> = values(&given.get(sample)).iter().map(|t| *t as usize).collect();
        let wanted = work(&weights, &list).concat();
        let wanted = Tensor::from_slice(&wanted).reshape([TIME, CLASSES as i64]);
        close(&found.get(sample), &wanted, 1e-11, what);
    }
}

/// A sequence in two calls is the sequence in one; packed sequences are separate ones; no output sees a later token.
pub fn holds_along_time(m: &Model, what: &str) {
    let x = tokens(2, 12);
    let whole = logits(m, &x);
    let pass = Pass { carry: true, resets: Some(vec![false, false]), ..EVAL };
    for at in [1, 5] {
        let call = |x: &Tensor, carry| {
            let mut out = forward(m, &[("tokens", x)], &pass, carry);
            (out.values.remove("logits").unwrap(), out.carry)
        };
        let (first, carry) = call(&x.narrow(1, 0, at), None);
        let saved = m.save_carry(&carry.unwrap()).into_iter().map(|(n, t)| (n, t.copy())).collect();
        let (second, _) = call(&x.narrow(1, at, 12 - at), Some(m.load_carry(saved).unwrap()));
        close(&Tensor::cat(&[first, second], 1), &whole, 1e-11, &format!("{what}, cut at {at}"));
    }
    let mut reset = [false; 24];
    (reset[3], reset[12 + 7]) = (true, true);
    let reset = Tensor::from_slice(&reset).reshape([2, 12]);
    let packed = forward(m, &[("tokens", &x), ("reset", &reset)], &EVAL, None).values.remove("logits").unwrap();
    for (row, start) in [(0, 3), (1, 7)] {
        let alone = logits(m, &x.narrow(0, row, 1).narrow(1, start, 12 - start));
        close(&packed.narrow(0, row, 1).narrow(1, start, 12 - start), &alone, 1e-11, &format!("{what}, after a reset"));
        close(&packed.narrow(0, row, 1).narrow(1, 0, start), &whole.narrow(0, row, 1).narrow(1, 0, start), 1e-11, what);
    }
    let later = x.copy();
    let _ = later.narrow(1, 8, 4).copy_(&((x.narrow(1, 8, 4) + 1).remainder(VOCAB as i64)));
    let seen = logits(m, &later);
    close(&seen.narrow(1, 0, 8), &whole.narrow(1, 0, 8), 1e-13, &format!("{what}, causality"));
    assert!((seen - whole).abs().max().double_value(&[]) > 1e-6, "{what}: the last tokens are not seen");
}

/// Gradients of all trained parameters under a fixed weighting of the logits.
pub fn gradients(m: &Model) -> Vec<(String, Tensor)> {
    let y = logits(m, &tokens(3, 10));
    let weighted = (&y * Numbers::new(5).tensor(&y.size())).sum(Kind::Double);
    let trained: Vec<_> = m.parameters().iter().filter(|p| p.trainable).collect();
    let leaves: Vec<&Tensor> = trained.iter().map(|p| &p.tensor).collect();
    let found = Tensor::run_backward(&[weighted], &leaves, false, false);
    trained.iter().map(|p| p.name.clone()).zip(found).collect()
}
