//! Slow nets: operators along time and recurrent cells against plain loops, and what must hold for every net along time.

mod support;

use fwp_engine::model::Model;
use fwp_engine::train::{Pass, TrainModel};
use fwp_map_identity::Identity;
use fwp_rule_delta::Delta;
use fwp_sdk::prelude::*;
use serde_json::json;
use support::{EVAL, Numbers, TRAIN, close, compose, forward, model, parameter, sequence_task, slot, values, y_of};
use tch::{Kind, Tensor};

/// Size of inputs and outputs.
const D: usize = 6;

/// Declares a slow net without configuration, from `x` to `y`; its memory has two heads with keys of 3 and values of 2.
macro_rules! nets {
    ($( $name:ident $text:literal |$net:ident, $x:ident| $forward:block )*) => { $(
        config! {
            /// A net of this test.
            pub struct $name {}
        }
        impl SlowNet for $name {
            const NAME: &'static str = $text;
            const CITATION: &'static str = "test";
            fn memory(&self, _: &TaskIo, _: &str) -> Memory {
                Memory { heads: 2, key: 3, value: 2 }
            }
            fn forward(&self, $net: &mut Net) {
                let $net = &*$net;
                let $x = $net.input("x");
                let y = $forward;
                $net.output("y", &y);
            }
        }
    )* };
}

fn normal() -> Init {
    Init::normal(0.5)
}

nets! {
    Shifted "shifted" |net, x| { x.shift(2) + x.shift(7) * 2.0 }
    Convolved "convolved" |net, x| { net.causal_conv("conv", &x, 3, normal()) }
    Joined "joined" |net, x| {
        let y = net.causal_conv("conv", &x, 3, normal()).silu();
        let y = net.rms_norm("norm", &y.reshape(&[2, 3]), 1e-2).reshape(&[D]);
        net.linear("gate", &y, D, normal()).silu() * &x
    }
    Placed "placed" |net, x| { x.position().to_float() * &x }
    Summed "summed" |net, x| { x.time_cumsum() }
    Turned "turned" |net, x| { x.rotary(x.position(), 50.0, true) }
    Attending "attending" |net, x| {
        let project = |name: &str, heads: usize| net.linear(name, &x, heads * 3, normal()).reshape(&[heads, 3]);
        net.attention(&project("q", 2), &project("k", 1), &project("v", 1), 0.7, true, 0).reshape(&[D])
    }
    Windowed "windowed" |net, x| {
        let project = |name: &str, heads: usize| net.linear(name, &x, heads * 3, normal()).reshape(&[heads, 3]);
        net.attention(&project("q", 2), &project("k", 1), &project("v", 1), 0.7, true, 3).reshape(&[D])
    }
    Everywhere "everywhere" |net, x| {
        let project = |name: &str, heads: usize| net.linear(name, &x, heads * 3, normal()).reshape(&[heads, 3]);
        net.attention(&project("q", 2), &project("k", 2), &project("v", 2), 0.7, false, 0).reshape(&[D])
    }
    Pooled "pooled" |net, x| { &x * x.last().along(&x) + x.mean_over().along(&x) }
    Dropping "dropping" |net, x| { x.dropout(0.25) }
    Constant "constant" |net, x| { net.parameter("b", &[D], normal()).along(&x) }
    Cell "cell" |net, x| {
        let h = net.parameter("h0", &[D], normal());
        let (_, out) = net.recurrent("cell", &[&h], &[&x], |net, s, x| {
            let h = (net.linear("w", &s[0], D, normal()) + net.linear("u", &x[0], D, normal())).tanh();
            (vec![h.clone()], vec![h * 2.0])
        });
        out[0].clone()
    }
    // A cell that writes its hidden state into fast weights and settles by reading them twice (Ba et al. 2016).
    Settling "settling" |net, x| {
        let slot = net.slot("main");
        let (h, memory) = (net.full_of(D), net.memory("fast", &slot));
        let (_, out) = net.recurrent("cell", &[&h, &memory], &[&x], |net, s, x| {
            let pre = net.linear("w", &s[0], D, normal()) + net.linear("u", &x[0], D, normal());
            let k = s[0].reshape(&[2, 3]);
            let v = net.linear("v", &s[0], 4, normal()).reshape(&[2, 2]);
            let beta = net.linear("beta", &x[0], 2, normal());
            let memory = net.write("fast", &s[1], &[("k", &k), ("v", &v), ("beta", &beta)]);
            let mut h = pre.tanh();
            for _ in 0..2 {
                let read = net.read("fast", &memory, QueryScale::None, &[("q", &h.reshape(&[2, 3]))])[0].reshape(&[4]);
                h = (&pre + net.linear("back", &read, D, normal())).layer_norm(1e-5).tanh();
            }
            (vec![h.clone(), memory], vec![h])
        });
        out[0].clone()
    }
    // Two blocks of one name without parameters: what they remember must be told apart all the same.
    Twice "twice" |net, x| {
        let y = net.blocks("b", 0, 2, &[&x], |_, x| vec![x[0].shift(1) + &x[0]])[0].clone();
        net.blocks("b", 0, 2, &[&y], |_, x| vec![x[0].shift(1) * 0.5])[0].clone()
    }
    Fast "fast" |net, x| {
        let slot = net.slot("main");
        let q = net.linear("q", &x, 6, normal()).reshape(&[2, 3]);
        let k = net.linear("k", &x, 6, normal()).reshape(&[2, 3]);
        let v = net.linear("v", &x, 4, normal()).reshape(&[2, 2]);
        let beta = net.linear("beta", &x, 2, normal());
        let o = net.fast_weights("fast", &slot, QueryScale::Query, &[("q", &q), ("k", &k), ("v", &v), ("beta", &beta)])[0].reshape(&[4]);
        net.linear("o", &o, D, normal())
    }
    Chunked "chunked" |net, x| {
        let slot = net.slot("main");
        let q = net.linear("q", &x, 6, normal()).reshape(&[2, 3]);
        let k = net.linear("k", &x, 6, normal()).reshape(&[2, 3]);
        let v = net.linear("v", &x, 4, normal()).reshape(&[2, 2]);
        let beta = net.linear("beta", &x, 2, normal());
        let inputs: [(&str, &Expr); 4] = [("q", &q), ("k", &k), ("v", &v), ("beta", &beta)];
        let a = net.fast_weights_reading("fast", &slot, QueryScale::Output, ReadAt::ChunkStart(3), &inputs)[0].reshape(&[4]);
        let b = net.fast_weights_reading("fast", &slot, QueryScale::None, ReadAt::Before, &inputs)[0].reshape(&[4]);
        net.linear("o", &(a + b), D, normal())
    }
    // All at once, in two blocks.
    Whole "whole" |net, x| {
        let slot = net.slot("main");
        let x = &x * (1.0 + 0.1 * x.position().to_float());
        net.blocks("layers", 0, 2, &[&x], |net, x| {
            let x = &x[0] + net.causal_conv("conv", &x[0], 4, normal()).silu() + x[0].shift(1);
            let q = net.linear("q", &x, 6, normal()).reshape(&[2, 3]).l2_normalise(1e-6);
            let k = net.linear("k", &x, 6, normal()).reshape(&[2, 3]).l2_normalise(1e-6);
            let v = net.linear("v", &x, 4, normal()).reshape(&[2, 2]);
            let beta = net.linear("beta", &x, 2, normal());
            let o = net.fast_weights("fast", &slot, QueryScale::None, &[("q", &q), ("k", &k), ("v", &v), ("beta", &beta)])[0].reshape(&[4]);
            let x = x + net.linear("o", &o, D, normal());
            let x = &x + net.attention(&q, &k, &q, 0.5, true, 3).reshape(&[D]);
            let h = net.full_of(D);
            let (_, out) = net.recurrent("cell", &[&h], &[&x], |net, s, x| {
                let h = (net.linear("w", &s[0], D, normal()) + &x[0]).tanh();
                (vec![h.clone()], vec![h])
            });
            vec![(x + &out[0]).rms_norm(1e-6)]
        })[0].clone()
    }
}

/// Small spellings of this test.
trait NetExt {
    fn full_of(&self, n: usize) -> Expr;
}
impl NetExt for Net {
    fn full_of(&self, n: usize) -> Expr {
        self.constant(0.0).full(&[n], 0.0)
    }
}
fn of<N: SlowNet>() -> Model {
    let slot = slot::<Delta, Identity>(json!({}), json!({}), 2, 3, 2);
    model(&compose::<N>(json!({}), &sequence_task(D, D), Some(slot)), 7)
}

fn inputs(batch: i64, time: i64, seed: u64) -> Tensor {
    Numbers::new(seed).tensor(&[batch, time, D as i64])
}

fn with_reset(m: &Model, x: &Tensor, reset: &Tensor) -> Tensor {
    forward(m, &[("x", x), ("reset", reset)], &EVAL, None).values.remove("y").unwrap()
}

/// Rows `[time][D]` of one sample.
fn rows(x: &Tensor, sample: i64) -> Vec<Vec<f64>> {
    values(&x.get(sample)).chunks(D).map(<[f64]>::to_vec).collect()
}

fn matrix(m: &Model, name: &str) -> Vec<Vec<f64>> {
    let t = parameter(m, name);
    values(&t).chunks(t.size()[1] as usize).map(<[f64]>::to_vec).collect()
}

fn times(w: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    w.iter().map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

/// Compares a net with a loop over the steps of one sample.
fn against_loop<N: SlowNet>(work: impl Fn(&Model, &[Vec<f64>]) -> Vec<Vec<f64>>) {
    let m = of::<N>();
    let x = inputs(3, 9, 1);
    let y = y_of(&m, &x);
    for sample in 0..3 {
        let wanted = work(&m, &rows(&x, sample)).concat();
        close(&y.get(sample), &Tensor::from_slice(&wanted).reshape([9, D as i64]), 1e-12, N::NAME);
    }
}

fn softmax_attention(m: &Model, x: &[Vec<f64>], groups: usize, sees: impl Fn(usize, usize) -> bool) -> Vec<Vec<f64>> {
    let project = |name: &str| -> Vec<Vec<f64>> { x.iter().map(|x| times(&matrix(m, name), x)).collect() };
    let (q, k, v) = (project("q.weight"), project("k.weight"), project("v.weight"));
    let one = |t: usize, head: usize| -> Vec<f64> {
        let g = head / (2 / groups);
        let score = |s: usize| 0.7 * (0..3).map(|i| q[t][head * 3 + i] * k[s][g * 3 + i]).sum::<f64>();
        let seen: Vec<usize> = (0..x.len()).filter(|s| sees(t, *s)).collect();
        let total: f64 = seen.iter().map(|s| score(*s).exp()).sum();
        (0..3).map(|i| seen.iter().map(|s| score(*s).exp() / total * v[*s][g * 3 + i]).sum()).collect()
    };
    (0..x.len()).map(|t| [one(t, 0), one(t, 1)].concat()).collect()
}

#[test]
fn operators_along_time_agree_with_loops() {
    let earlier = |x: &[Vec<f64>], t: usize, by: usize| if t >= by { x[t - by].clone() } else { vec![0.0; D] };
    against_loop::<Shifted>(|_, x| {
        (0..x.len()).map(|t| earlier(x, t, 2).iter().zip(earlier(x, t, 7)).map(|(a, b)| a + 2.0 * b).collect()).collect()
    });
    against_loop::<Convolved>(|m, x| {
        let kernel = matrix(m, "conv.weight");
        let at = |t: usize, c: usize| (0..3).map(|j| kernel[c][j] * earlier(x, t, 2 - j)[c]).sum();
        (0..x.len()).map(|t| (0..D).map(|c| at(t, c)).collect()).collect()
    });
    against_loop::<Joined>(|m, x| {
        let (kernel, gain, gate) = (matrix(m, "conv.weight"), values(&parameter(m, "norm.weight")), matrix(m, "gate.weight"));
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let at = |t: usize| -> Vec<f64> {
            let sum = |c: usize| (0..3).map(|j| kernel[c][j] * earlier(x, t, 2 - j)[c]).sum::<f64>();
            let y: Vec<f64> = (0..D).map(|c| silu(sum(c))).collect();
            let norm = |y: &[f64]| (y.iter().map(|y| y * y).sum::<f64>() / 3.0 + 1e-2).sqrt();
            let y: Vec<f64> = y
                .chunks(3)
                .flat_map(|row| {
                    let by = norm(row);
                    row.iter().zip(&gain).map(move |(y, w)| w * y / by)
                })
                .collect();
            times(&gate, &y).into_iter().zip(&x[t]).map(|(a, b)| silu(a) * b).collect()
        };
        (0..x.len()).map(at).collect()
    });
    against_loop::<Placed>(|_, x| x.iter().enumerate().map(|(t, x)| x.iter().map(|x| t as f64 * x).collect()).collect());
    against_loop::<Summed>(|_, x| (0..x.len()).map(|t| (0..D).map(|c| x[..=t].iter().map(|x| x[c]).sum()).collect()).collect());
    against_loop::<Turned>(|_, x| {
        let turn = |t: usize, x: &[f64]| -> Vec<f64> {
            let pair = |i: usize| {
                let (sin, cos) = (t as f64 * 50f64.powf(-2.0 * i as f64 / D as f64)).sin_cos();
                [x[2 * i] * cos - x[2 * i + 1] * sin, x[2 * i] * sin + x[2 * i + 1] * cos]
            };
            (0..D / 2).flat_map(pair).collect()
        };
        x.iter().enumerate().map(|(t, x)| turn(t, x)).collect()
    });
    against_loop::<Attending>(|m, x| softmax_attention(m, x, 1, |t, s| s <= t));
    against_loop::<Windowed>(|m, x| softmax_attention(m, x, 1, |t, s| s <= t && t - s < 3));
    against_loop::<Everywhere>(|m, x| softmax_attention(m, x, 2, |_, _| true));
    against_loop::<Pooled>(|_, x| {
        let mean = |c: usize| x.iter().map(|x| x[c]).sum::<f64>() / x.len() as f64;
        x.iter().map(|row| (0..D).map(|c| row[c] * x[x.len() - 1][c] + mean(c)).collect()).collect()
    });
    against_loop::<Constant>(|m, x| x.iter().map(|_| values(&parameter(m, "b"))).collect());
}

#[test]
fn recurrent_cells_agree_with_loops() {
    against_loop::<Cell>(|m, x| {
        let mut h = values(&parameter(m, "h0"));
        let step = |x: &Vec<f64>| {
            let (a, b) = (times(&matrix(m, "cell.w.weight"), &h), times(&matrix(m, "cell.u.weight"), x));
            h = a.iter().zip(b).map(|(a, b)| (a + b).tanh()).collect();
            h.iter().map(|h| 2.0 * h).collect()
        };
        x.iter().map(step).collect()
    });
    against_loop::<Settling>(|m, x| {
        let (mut h, mut w) = (vec![0.0; D], vec![vec![vec![0.0; 3]; 2]; 2]);
        let of = |name: &str, x: &[f64]| times(&matrix(m, &format!("cell.{name}.weight")), x);
        let mut out = Vec::new();
        for x in x {
            let pre: Vec<f64> = of("w", &h).iter().zip(of("u", x)).map(|(a, b)| a + b).collect();
            let (v, beta) = (of("v", &h), of("beta", x));
            for head in 0..2 {
                let k = &h[head * 3..head * 3 + 3];
                let strength = 1.0 / (1.0 + (-beta[head]).exp());
                for i in 0..2 {
                    let read: f64 = w[head][i].iter().zip(k).map(|(a, b)| a * b).sum();
                    (0..3).for_each(|j| w[head][i][j] += strength * (v[head * 2 + i] - read) * k[j]);
                }
            }
            let mut new: Vec<f64> = pre.iter().map(|p| p.tanh()).collect();
            for _ in 0..2 {
                let read = [times(&w[0], &new[..3]), times(&w[1], &new[3..])].concat();
                let sum: Vec<f64> = pre.iter().zip(of("back", &read)).map(|(a, b)| a + b).collect();
                let mean = sum.iter().sum::<f64>() / D as f64;
                let variance = sum.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / D as f64;
                new = sum.iter().map(|s| ((s - mean) / (variance + 1e-5).sqrt()).tanh()).collect();
            }
            h = new;
            out.push(h.clone());
        }
        out
    });
}

/// Packed sequences behave as separate ones.
fn resets_part_sequences<N: SlowNet>() {
    let m = of::<N>();
    let x = inputs(2, 11, 2);
    // The first row holds sequences of 4, 1 and 6 steps, the second of 2 and 9.
    let parts: [&[(i64, i64)]; 2] = [&[(0, 4), (4, 1), (5, 6)], &[(0, 2), (2, 9)]];
    let mut reset = vec![false; 22];
    for (row, list) in parts.iter().enumerate() {
        list.iter().for_each(|(start, _)| reset[row * 11 + *start as usize] = true);
    }
    let y = with_reset(&m, &x, &Tensor::from_slice(&reset).reshape([2, 11]));
    for (row, list) in parts.iter().enumerate() {
        for (start, length) in *list {
            let alone = y_of(&m, &x.narrow(0, row as i64, 1).narrow(1, *start, *length));
            close(&y.narrow(0, row as i64, 1).narrow(1, *start, *length), &alone, 1e-12, N::NAME);
        }
    }
}

/// A later input changes no earlier output, and no sample another.
fn is_causal_and_samples_are_apart<N: SlowNet>() {
    let m = of::<N>();
    let x = inputs(3, 8, 3).set_requires_grad(true);
    let y = y_of(&m, &x);
    let poisoned = x.detach().copy();
    let _ = poisoned.narrow(1, 5, 3).narrow(0, 1, 1).fill_(f64::NAN);
    let seen = y_of(&m, &poisoned);
    let same = |sample: i64, steps: i64| {
        close(&seen.get(sample).narrow(0, 0, steps), &y.get(sample).narrow(0, 0, steps).detach(), 1e-13, N::NAME);
    };
    same(0, 8);
    same(2, 8);
    // Earlier steps of the poisoned row are clean, except under softmax attention, which multiplies what it masks by zero.
    if N::NAME != "windowed" && N::NAME != "attending" && N::NAME != "whole" {
        same(1, 5);
    }
    // Later ones show it: a delay by two at step 7, a read at the start of a chunk in the next chunk.
    assert!(seen.get(1).get(7).isnan().any().int64_value(&[]) != 0, "{}: NaN is hidden", N::NAME);
    // And in gradient: outputs up to step 4 depend on inputs up to step 4.
    let g = Tensor::run_backward(&[y.narrow(1, 0, 5).square().sum(Kind::Double)], &[&x], false, false).remove(0);
    assert_eq!(g.narrow(1, 5, 3).abs().max().double_value(&[]), 0.0, "{}", N::NAME);
}

/// A sequence in two calls is the sequence in one, also where resets lie just before the cut and where rows start afresh.
fn halves_make_a_whole<N: SlowNet>() {
    let m = of::<N>();
    let x = inputs(2, 10, 4);
    let pass = Pass { carry: true, resets: Some(vec![false, false]), ..EVAL };
    let call = |x: &Tensor, reset: Option<&Tensor>, pass: &Pass, carry| {
        let mut given = vec![("x", x)];
        given.extend(reset.map(|r| ("reset", r)));
        let mut out = forward(&m, &given, pass, carry);
        (out.values.remove("y").unwrap(), out.carry)
    };
    for with in [None, Some([1, 8]), Some([3, 4])] {
        let reset = with.map(|steps: [usize; 2]| {
            let mut flags = vec![false; 20];
            steps.iter().enumerate().for_each(|(row, s)| flags[row * 10 + s] = true);
            Tensor::from_slice(&flags).reshape([2, 10])
        });
        let cut = |start, length| reset.as_ref().map(|r| r.narrow(1, start, length));
        let (whole, _) = call(&x, reset.as_ref(), &EVAL, None);
        for at in [1, 4, 5] {
            let (first, carry) = call(&x.narrow(1, 0, at), cut(0, at).as_ref(), &pass, None);
            // As a checkpoint would keep it.
            let saved = m.save_carry(&carry.unwrap()).into_iter().map(|(n, t)| (n, t.copy())).collect();
            let carry = m.load_carry(saved).unwrap();
            let (second, _) = call(&x.narrow(1, at, 10 - at), cut(at, 10 - at).as_ref(), &pass, Some(carry));
            close(&Tensor::cat(&[first, second], 1), &whole, 1e-12, &format!("{} cut at {at}, resets {with:?}", N::NAME));
        }
    }
    let (_, carry) = call(&x, None, &pass, None);
    let fresh = Pass { resets: Some(vec![true, false]), ..pass.clone() };
    let (mixed, _) = call(&x, None, &fresh, carry);
    let (alone, _) = call(&x, None, &EVAL, None);
    close(&mixed.get(0), &alone.get(0), 1e-12, &format!("{}: a row that starts afresh", N::NAME));
    assert!((mixed.get(1) - alone.get(1)).abs().max().double_value(&[]) > 1e-6, "{}: a row that goes on", N::NAME);
}

macro_rules! properties {
    ($( $test:ident $what:ident [$($net:ident)*]; )*) => { $( #[test] fn $test() { $( $what::<$net>(); )* } )* };
}

properties! {
    packed_sequences_are_separate resets_part_sequences
        [Shifted Convolved Joined Placed Summed Turned Attending Windowed Everywhere Cell Settling Fast Chunked Whole];
    nothing_sees_the_future_or_another_sample is_causal_and_samples_are_apart
        [Shifted Convolved Joined Summed Attending Windowed Cell Settling Fast Chunked Whole];
    carried_halves_make_a_whole halves_make_a_whole
        [Shifted Convolved Joined Placed Summed Windowed Cell Settling Twice Fast Chunked Whole];
}

#[test]
fn unbounded_attention_cannot_be_carried_and_says_so() {
    let m = of::<Attending>();
    let pass = Pass { carry: true, ..EVAL };
    let given = [("x".to_string(), inputs(1, 3, 1))].into();
    let error = format!("{:#}", m.forward(&given, &pass, None).unwrap_err());
    assert!(error.contains("give it a window") && error.contains("nets.rs"), "{error}");
}

#[test]
fn dropout_scales_while_training_and_does_nothing_in_evaluation() {
    let m = of::<Dropping>();
    let x = inputs(40, 20, 5).abs() + 1.0;
    assert_eq!(y_of(&m, &x), x);
    let y = forward(&m, &[("x", &x)], &TRAIN, None).values.remove("y").unwrap();
    let zeros = y.eq(0.0).to_kind(Kind::Double);
    // 4,800 elements: 0.25 with a standard deviation of 0.006.
    assert!((zeros.mean(Kind::Double).double_value(&[]) - 0.25).abs() < 0.03);
    close(&(&y + &zeros * &x / 0.75), &(&x / 0.75), 1e-13, "the others are scaled");
}

#[test]
fn an_output_that_depends_on_no_input_has_the_batch_all_the_same() {
    config! {
        /// A net of this test.
        pub struct Bare {}
    }
    impl SlowNet for Bare {
        const NAME: &'static str = "bare";
        const CITATION: &'static str = "test";
        fn memory(&self, _: &TaskIo, _: &str) -> Memory {
            Memory { heads: 1, key: 1, value: 1 }
        }
        fn forward(&self, net: &mut Net) {
            net.output("z", &net.input("x").mean_over());
            net.output("y", &net.parameter("b", &[D], normal()));
        }
    }
    let mut task = sequence_task(D, D);
    task.outputs[0].axis = None;
    task.outputs.push(fwp_sdk::build::Port { name: "z".into(), ..task.outputs[0].clone() });
    let m = model(&compose::<Bare>(json!({}), &task, None), 1);
    let y = y_of(&m, &inputs(3, 4, 1));
    assert_eq!(y, parameter(&m, "b").unsqueeze(0).expand([3, D as i64], false));
}

#[test]
fn missing_inputs_and_wrong_batches_are_named() {
    let m = of::<Fast>();
    let error = format!("{:#}", m.forward(&Default::default(), &EVAL, None).unwrap_err());
    assert!(error.contains("`x`"), "{error}");
    let pass = Pass { carry: true, resets: Some(vec![true]), ..EVAL };
    let given = [("x".to_string(), inputs(2, 3, 1))].into();
    let error = format!("{:#}", m.forward(&given, &pass, None).unwrap_err());
    assert!(error.contains("1 rows") && error.contains("the batch has 2"), "{error}");
}

#[test]
fn single_precision_agrees_with_double() {
    let slot = slot::<Delta, Identity>(json!({}), json!({}), 2, 3, 2);
    let programs = compose::<Whole>(json!({}), &sequence_task(D, D), Some(slot));
    let single = fwp_engine::exec::value::Precision { kind: Kind::Float, device: tch::Device::Cpu };
    let single = Model::new(&programs, single, 7, u64::MAX).unwrap();
    let double = model(&programs, 7);
    let x = inputs(3, 20, 6);
    let (a, b) = (y_of(&single, &x.to_kind(Kind::Float)), y_of(&double, &x));
    assert_eq!(a.kind(), Kind::Float);
    close(&a.to_kind(Kind::Double), &b, 2e-5, "outputs");
    let gradients = |m: &Model, y: &Tensor| -> Vec<Tensor> {
        let leaves: Vec<&Tensor> = m.parameters().iter().map(|p| &p.tensor).collect();
        let weights = inputs(3, 20, 8).to_kind(y.kind());
        Tensor::run_backward(&[(y * weights).sum(Kind::Double)], &leaves, false, false)
    };
    for ((a, b), p) in gradients(&single, &a).iter().zip(gradients(&double, &b)).zip(double.parameters()) {
        close(&a.to_kind(Kind::Double), &b, 2e-4, &p.name);
    }
}

#[test]
fn all_of_it_holds_for_compiled_kernels() {
    support::by_kernels(&[
        recurrent_cells_agree_with_loops,
        packed_sequences_are_separate,
        nothing_sees_the_future_or_another_sample,
        carried_halves_make_a_whole,
    ]);
}
