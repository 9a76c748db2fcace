//! The transformer and its relatives against plain loops.

#[macro_use]
mod support;

use fwp_engine::model::Model;
use fwp_map_identity::Identity;
use fwp_map_softmax::Softmax;
use fwp_net_transformer::{DeltaDelta, Hybrid, RecurrentDelta, SoftmaxTransformer, Transformer};
use fwp_rule_delta::Delta;
use fwp_sdk::prelude::*;
use serde_json::{Value, json};
use support::loops::{
    Sequence, Vector, Weights, add, against, attend, centred, delta, dot, gradients, head, holds_along_time, map, mul, net, relu,
    scaled, sigmoid, silu, softmax, times, turned, zeros, zip,
};
use support::{TestSlot, close, slot};

const WIDTH: usize = 8;
const HEADS: usize = 2;
/// Sizes of a head's key and value.
const KEY: usize = 4;
const VALUE: usize = 3;
const EPS: f64 = 1e-3;

rules! {
    // A rule with a vector decay, and an extra output such as RWKV-7's.
    Bonus "bonus" (d) Signature::new(d).signal("a", [d.key]).state("w", [d.value, d.key], StateStart::Zeros).extra("more", [d.value]);
    |s| {
        let (q, k, v) = s.query_key_value();
        let w = s.state("w").scale_columns(s.signal("a").sigmoid()) + outer(&v, &k);
        s.output(w.matvec(&q));
        s.extra("more", q.dot(k) * v);
        s.set_state("w", w);
    }
}

fn sized(more: Value) -> Value {
    let mut all = json!({
        "width": WIDTH, "heads": HEADS, "key_dim": KEY, "value_dim": VALUE, "mlp": 5, "norm_eps": EPS, "init_std": 0.3,
    });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

/// Neither convolutions nor activations, norms of the output nor MLP.
fn bare(more: Value) -> Value {
    let mut all = json!({ "conv": 0, "conv_activation": "none", "output_norm": "none", "mlp": 0, "layers": 1 });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    sized(all)
}

fn delta_slot<M: FeatureMap>() -> TestSlot {
    slot::<Delta, M>(json!({}), json!({}), HEADS, KEY, VALUE)
}

/// Every step of a sequence through a map of vectors.
fn each(x: &Sequence, f: impl Fn(&Vector) -> Vector) -> Sequence {
    x.iter().map(f).collect()
}

/// Both sequences added step by step.
fn sum(a: &Sequence, b: &Sequence) -> Sequence {
    a.iter().zip(b).map(|(a, b)| add(a, b)).collect()
}

/// For each head and step what `rule` answers, heads one after another; it is made anew for each head.
fn by_heads(steps: usize, mut run: impl FnMut(usize) -> Sequence) -> Sequence {
    let all: Vec<Sequence> = (0..HEADS).map(&mut run).collect();
    (0..steps).map(|t| all.iter().flat_map(|o| o[t].clone()).collect()).collect()
}

/// The delta rule for one head.
fn delta_head(q: &Sequence, k: &Sequence, v: &Sequence, beta: &Sequence, h: usize, phi: impl Fn(&[f64]) -> Vector) -> Sequence {
    let mut w = zeros(v[0].len() / HEADS, phi(head(&k[0], h, HEADS)).len());
    let step = |t: usize| {
        delta(&mut w, &phi(head(&k[t], h, HEADS)), head(&v[t], h, HEADS), beta[t][h]);
        times(&w, &phi(head(&q[t], h, HEADS)))
    };
    (0..q.len()).map(step).collect()
}

fn post_norm() -> Model {
    let config = sized(json!({
        "layers": 2, "norm_place": "after", "norm": "layer", "bias": "mlp", "mlp_form": "relu", "positions": "sinusoidal",
        "scale_embeddings": true, "conv": 0, "conv_activation": "none", "output_norm": "none", "query_scale": "output",
        "dropout": 0.1,
    }));
    net::<Transformer>(config, Some(delta_slot::<Softmax>()))
}

#[test]
fn the_form_of_2021_is_its_loop() {
    against(&post_norm(), "post-norm", |w, tokens| {
        let place = |p: usize, i: usize| {
            let angle = p as f64 * 1e4f64.powf(-2.0 * (i % (WIDTH / 2)) as f64 / WIDTH as f64);
            if i < WIDTH / 2 { angle.sin() } else { angle.cos() }
        };
        let embedded = w.embedded(tokens);
        let started = |(p, e): (usize, &Vector)| (0..WIDTH).map(|i| e[i] * (WIDTH as f64).sqrt() + place(p, i)).collect();
        let mut x: Sequence = embedded.iter().enumerate().map(started).collect();
        for layer in 0..2 {
            let w = w.below(&format!("layers.{layer}."));
            let [q, k, v, beta] = ["q", "k", "v", "beta"].map(|n| each(&x, |x| w.linear(&format!("attn.{n}_proj"), x)));
            let o = by_heads(x.len(), |h| delta_head(&q, &k, &v, &beta, h, softmax));
            let o = each(&o, |o| map(&w.linear("attn.o_proj", o), |o| o * (KEY as f64).powf(-0.5)));
            x = each(&sum(&x, &o), |x| w.layer_norm("attn_norm", x, EPS));
            let mlp = each(&x, |x| w.affine("mlp.down_proj", &map(&w.affine("mlp.up_proj", x), relu)));
            x = each(&sum(&x, &mlp), |x| w.layer_norm("mlp_norm", x, EPS));
        }
        each(&x, |x| w.affine("lm_head", x))
    });
}

fn extras() -> Model {
    let config = sized(json!({
        "layers": 4, "token_shift": true, "low_rank": { "a": 2 }, "low_rank_tanh": true, "output_norm": "group",
        "output_gate": "sigmoid", "output_gate_rank": 3, "value_residual": 2, "qk_heads": 1, "conv": 3, "conv_inputs": ["q", "v"],
        "rotary": "xpos", "attention_layers": [1], "attention_kv_heads": 1, "attention_window": 3, "attention_rotary": "halves",
        "rotary_base": 50.0, "query_scale": "query",
    }));
    net::<Transformer>(config, Some(slot::<Bonus, Identity>(json!({}), json!({}), HEADS, KEY, VALUE)))
}

/// Softmax attention over a window, keys and values shared by all heads, halves turned.
fn window(w: &Weights, y: &Sequence, window: usize) -> Sequence {
    let size = WIDTH / HEADS;
    let [q, k, v] = ["q", "k", "v"].map(|n| each(y, |y| w.linear(&format!("attn.{n}_proj"), y)));
    let turn = |x: &[f64], t: usize| turned(x, t as f64, 50.0, true);
    let o = by_heads(y.len(), |h| {
        let at = |t: usize| {
            let keys: Sequence = (0..=t).map(|s| turn(&k[s], s)).collect();
            let seen: Vec<(&[f64], &[f64])> = (0..=t).filter(|s| t - s < window).map(|s| (&keys[s][..], &v[s][..])).collect();
            attend(&turn(head(&q[t], h, HEADS), t), &seen, (size as f64).powf(-0.5))
        };
        (0..y.len()).map(at).collect()
    });
    each(&o, |o| w.linear("attn.o_proj", o))
}

#[test]
fn the_extras_of_the_recipes_are_their_loop() {
    against(&extras(), "extras", |w, tokens| {
        let mut x = w.embedded(tokens);
        let steps = x.len();
        let mut first: Option<Sequence> = None;
        for layer in 0..4 {
            let w = w.below(&format!("layers.{layer}."));
            let y = each(&x, |x| w.rms_norm("attn_norm", x, EPS));
            let mixed = if layer == 1 {
                window(&w, &y, 3)
            } else {
                let shifted = |name: &str| -> Sequence {
                    let mix = w.vector(&format!("attn.{name}_mix"));
                    let before = |t: usize| if t == 0 { vec![0.0; WIDTH] } else { y[t - 1].clone() };
                    (0..steps).map(|t| add(&y[t], &mul(&mix, &zip(&before(t), &y[t], |b, y| b - y)))).collect()
                };
                let low_rank = |name: &str, y: &Vector, f: fn(f64) -> f64| {
                    w.affine(&format!("attn.{name}.1"), &map(&w.linear(&format!("attn.{name}.0"), y), f))
                };
                let project = |name: &str| each(&shifted(name), |y| w.linear(&format!("attn.{name}_proj"), y));
                let convolved = |name: &str| w.convolved(&format!("attn.{name}_conv1d"), &project(name));
                // xPos turns pairs and lengthens queries as it shortens keys.
                let placed = |x: &Sequence, sign: f64| -> Sequence {
                    let grown = |t: usize, x: &[f64]| -> Vector {
                        let rate = |i: usize| (((i / 2 * 2) as f64 / KEY as f64 + 0.4) / 1.4).powf(sign * t as f64 / 512.0);
                        x.iter().enumerate().map(|(i, x)| x * rate(i)).collect()
                    };
                    x.iter().enumerate().map(|(t, x)| grown(t, &turned(x, t as f64, 50.0, false))).collect()
                };
                let q = placed(&each(&convolved("q"), |q| map(q, silu)), 1.0);
                let k = placed(&project("k"), -1.0);
                let mut v = each(&convolved("v"), |v| map(v, silu));
                let a = each(&shifted("a"), |y| low_rank("a_proj", y, f64::tanh));
                match &first {
                    None => first = Some(v.clone()),
                    Some(first) => {
                        let s = each(&shifted("v_residual"), |y| map(&low_rank("v_residual_proj", y, |x| x), sigmoid));
                        let drawn = |t: usize| add(&v[t], &mul(&s[t], &zip(&first[t], &v[t], |a, b| a - b)));
                        v = (0..steps).map(drawn).collect();
                    }
                }
                let (gain, bias) = (w.vector("attn.o_norm.weight"), w.vector("attn.o_norm.bias"));
                let o = by_heads(steps, |h| {
                    let mut state = zeros(VALUE, KEY);
                    let step = |t: usize| {
                        // Queries are multiplied by d_k^-1/2; both heads share queries and keys.
                        let q = map(&q[t], |q| q * (KEY as f64).powf(-0.5));
                        let (k, v) = (&k[t], head(&v[t], h, HEADS));
                        let decay = map(head(&a[t], h, HEADS), sigmoid);
                        state.iter_mut().zip(v).for_each(|(row, v)| *row = add(&mul(row, &decay), &map(k, |k| v * k)));
                        let o = centred(&times(&state, &q), EPS);
                        let o = add(&mul(&o, head(&gain, h, HEADS)), head(&bias, h, HEADS));
                        add(&o, &map(v, |v| dot(&q, k) * v))
                    };
                    (0..steps).map(step).collect()
                });
                let gate = each(&shifted("g"), |y| map(&low_rank("g_proj", y, |x| x), sigmoid));
                (0..steps).map(|t| w.linear("attn.o_proj", &mul(&o[t], &gate[t]))).collect()
            };
            x = sum(&x, &mixed);
            let mlp = each(&x, |x| {
                let y = w.rms_norm("mlp_norm", x, EPS);
                let gate = map(&w.linear("mlp.gate_proj", &y), silu);
                w.linear("mlp.down_proj", &mul(&gate, &w.linear("mlp.up_proj", &y)))
            });
            x = sum(&x, &mlp);
        }
        each(&x, |x| w.linear("lm_head", &w.rms_norm("norm", x, EPS)))
    });
}

#[test]
fn the_other_forms_of_mlps_norms_and_positions_are_their_loop() {
    for (form, f) in [("relu", relu as fn(f64) -> f64), ("relu2", |x| relu(x).powi(2)), ("gelu", gelu)] {
        let config = bare(json!({ "mlp": 5, "mlp_form": form, "bias": "all", "positions": "learned", "output_norm": "layer",
                                  "output_gate": "silu", "kv_heads": 1, "rotary": "retnet" }));
        let m = net::<Transformer>(config, Some(delta_slot::<Identity>()));
        against(&m, form, |w, tokens| {
            let places = w.matrix("positions.weight");
            let x: Sequence = w.embedded(tokens).iter().zip(&places).map(|(x, p)| add(x, p)).collect();
            let w0 = w.below("layers.0.");
            let y = each(&x, |x| w0.rms_norm("attn_norm", x, EPS));
            let [q, k, v, beta] = ["q", "k", "v", "beta"].map(|n| each(&y, |y| w0.affine(&format!("attn.{n}_proj"), y)));
            // Angles p base^(-i / (d/2 - 1)) are those of a base raised to d / (d - 2).
            let turn = |x: &[f64], t: usize| turned(x, t as f64, 1e4f64.powf(KEY as f64 / (KEY as f64 - 2.0)), false);
            let o = by_heads(x.len(), |h| {
                let mut state = zeros(VALUE, KEY);
                let step = |t: usize| {
                    delta(&mut state, &turn(&k[t], t), &v[t], beta[t][0]);
                    w0.layer_norm("attn.o_norm", &times(&state, &turn(head(&q[t], h, HEADS), t)), EPS)
                };
                (0..x.len()).map(step).collect()
            });
            let out = |t: usize| w0.affine("attn.o_proj", &mul(&o[t], &map(&w0.linear("attn.g_proj", &y[t]), silu)));
            let x = sum(&x, &(0..x.len()).map(out).collect());
            let mlp =
                each(&x, |x| w0.affine("mlp.down_proj", &map(&w0.affine("mlp.up_proj", &w0.rms_norm("mlp_norm", x, EPS)), f)));
            each(&sum(&x, &mlp), |x| w.affine("lm_head", &w.rms_norm("norm", x, EPS)))
        });
    }
}

/// x Phi(x), the error function by its series.
fn gelu(x: f64) -> f64 {
    let z = x / 2f64.sqrt();
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= -z * z / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    0.5 * x * (1.0 + 2.0 / std::f64::consts::PI.sqrt() * sum)
}

fn softmax_transformer() -> Model {
    let config = json!({ "width": WIDTH, "heads": HEADS, "kv_heads": 1, "window": 4, "rotary": "halves", "rotary_base": 50.0,
                         "mlp": 0, "layers": 2, "norm_eps": EPS, "init_std": 0.3 });
    net::<SoftmaxTransformer>(config, None)
}

#[test]
fn the_softmax_transformer_is_its_loop() {
    against(&softmax_transformer(), "softmax", |w, tokens| {
        let mut x = w.embedded(tokens);
        for layer in 0..2 {
            let w = w.below(&format!("layers.{layer}."));
            let y = each(&x, |x| w.rms_norm("attn_norm", x, EPS));
            x = sum(&x, &window(&w, &y, 4));
        }
        each(&x, |x| w.linear("lm_head", &w.rms_norm("norm", x, EPS)))
    });
}

const S: usize = 3;

fn hybrid(division: &str, mixture: &str) -> Model {
    let config = bare(json!({ "window": S, "division": division, "mixture": mixture, "window_rotary": "pairs" }));
    net::<Hybrid>(config, Some(delta_slot::<Softmax>()))
}

#[test]
fn hybrids_are_their_loop() {
    for division in ["synchronous", "delayed-stream", "delayed-chunk"] {
        for mixture in ["sum", "scalars", "vector"] {
            let what = format!("{division}, {mixture}");
            against(&hybrid(division, mixture), &what, |w, tokens| {
                let x = w.embedded(tokens);
                let steps = x.len();
                let w0 = w.below("layers.0.");
                let y = each(&x, |x| w0.rms_norm("attn_norm", x, EPS));
                let [q, k, v, beta] = ["q", "k", "v", "beta"].map(|n| each(&y, |y| w0.linear(&format!("attn.{n}_proj"), y)));
                let turn = |x: &[f64], t: usize| turned(x, t as f64, 1e4, false);
                let o = by_heads(steps, |h| {
                    let mut state = zeros(VALUE, KEY);
                    let mut written = 0;
                    let mut write_to = |end: usize, state: &mut Vec<Vector>| {
                        while written < end {
                            let t = written;
                            delta(state, &softmax(head(&k[t], h, HEADS)), head(&v[t], h, HEADS), beta[t][h]);
                            written += 1;
                        }
                    };
                    let at = |t: usize| -> Vector {
                        // Until which step the fast weights have seen, and from which one the window sees.
                        let (until, from) = match division {
                            "synchronous" => (t + 1, (t + 1).saturating_sub(S)),
                            "delayed-stream" => ((t + 1).saturating_sub(S), (t + 1).saturating_sub(S)),
                            _ => (t / S * S, t / S * S),
                        };
                        write_to(until, &mut state);
                        let far = times(&state, &softmax(head(&q[t], h, HEADS)));
                        let keys: Sequence = (from..=t).map(|s| turn(head(&k[s], h, HEADS), s)).collect();
                        let seen: Vec<(&[f64], &[f64])> =
                            (from..=t).map(|s| (&keys[s - from][..], head(&v[s], h, HEADS))).collect();
                        let near = attend(&turn(head(&q[t], h, HEADS), t), &seen, (KEY as f64).powf(-0.5));
                        match mixture {
                            "sum" => add(&far, &near),
                            "scalars" => {
                                let g = map(&w0.linear("attn.m_proj", &y[t]), sigmoid);
                                add(&map(&far, |f| g[h] * f), &map(&near, |n| g[HEADS + h] * n))
                            }
                            _ => {
                                let g = map(&w0.linear("attn.m_proj", &y[t]), sigmoid);
                                let g = head(&g, h, HEADS);
                                add(&mul(g, &far), &mul(&map(g, |g| 1.0 - g), &near))
                            }
                        }
                    };
                    (0..steps).map(at).collect()
                });
                let x = sum(&x, &each(&o, |o| w0.linear("attn.o_proj", o)));
                each(&x, |x| w.linear("lm_head", &w.rms_norm("norm", x, EPS)))
            });
        }
    }
}

fn recurrent() -> Model {
    net::<RecurrentDelta>(bare(json!({ "output_norm": "rms" })), Some(delta_slot::<Softmax>()))
}

#[test]
fn the_recurrent_delta_net_is_its_loop() {
    against(&recurrent(), "recurrent delta net", |w, tokens| {
        let x = w.embedded(tokens);
        let w0 = w.below("layers.0.");
        let y = each(&x, |x| w0.rms_norm("attn_norm", x, EPS));
        let [q, k, v, beta] = ["q", "k", "v", "beta"].map(|n| each(&y, |y| w0.linear(&format!("attn.{n}_proj"), y)));
        let o = by_heads(x.len(), |h| {
            let mut state = zeros(VALUE, KEY);
            let mut last = vec![0.0; VALUE];
            let step = |t: usize| {
                let fed = map(&last, f64::tanh);
                let with = |x: &Sequence, name: &str| {
                    let all = w0.matrix(&format!("attn.r_{name}"));
                    let rows = all.len() / HEADS;
                    add(head(&x[t], h, HEADS), &times(&all[h * rows..(h + 1) * rows], &fed))
                };
                let beta = with(&beta, "beta")[0];
                delta(&mut state, &softmax(&with(&k, "k")), &with(&v, "v"), beta);
                last = times(&state, &softmax(&with(&q, "q")));
                mul(&scaled(&last, EPS), &w0.vector("attn.o_norm.weight"))
            };
            (0..x.len()).map(step).collect()
        });
        let x = sum(&x, &each(&o, |o| w0.linear("attn.o_proj", o)));
        each(&x, |x| w.linear("lm_head", &w.rms_norm("norm", x, EPS)))
    });
}

fn nested() -> Model {
    let named = |name: &str, value: usize| {
        let mut slot = slot::<Delta, Softmax>(json!({}), json!({}), HEADS, KEY, value);
        slot.programs.name = name.into();
        slot.interface.name = name.into();
        slot
    };
    net::<DeltaDelta>(bare(json!({})), [named("first", 2 * KEY + VALUE + 1), named("second", VALUE)])
}

#[test]
fn the_delta_delta_net_is_its_loop() {
    against(&nested(), "delta-delta", |w, tokens| {
        let x = w.embedded(tokens);
        let w0 = w.below("layers.0.");
        let y = each(&x, |x| w0.rms_norm("attn_norm", x, EPS));
        let [q, k, v, beta] = ["q", "k", "v", "beta"].map(|n| each(&y, |y| w0.linear(&format!("attn.{n}_proj"), y)));
        let o = by_heads(x.len(), |h| {
            let programmed = delta_head(&q, &k, &v, &beta, h, softmax);
            let mut state = zeros(VALUE, KEY);
            let step = |u: &Vector| {
                delta(&mut state, &softmax(&u[KEY..2 * KEY]), &u[2 * KEY..2 * KEY + VALUE], u[2 * KEY + VALUE]);
                times(&state, &softmax(&u[..KEY]))
            };
            programmed.iter().map(step).collect()
        });
        let x = sum(&x, &each(&o, |o| w0.linear("attn.o_proj", o)));
        each(&x, |x| w.linear("lm_head", &w.rms_norm("norm", x, EPS)))
    });
}

#[test]
fn they_hold_along_time() {
    holds_along_time(&post_norm(), "post-norm");
    holds_along_time(&extras(), "extras");
    holds_along_time(&softmax_transformer(), "softmax");
    for division in ["synchronous", "delayed-stream", "delayed-chunk"] {
        holds_along_time(&hybrid(division, "vector"), division);
    }
    holds_along_time(&recurrent(), "recurrent delta net");
    holds_along_time(&nested(), "delta-delta");
}

#[test]
fn compiled_kernels_give_the_same_numbers_and_gradients() {
    let wanted = gradients(&recurrent());
    support::with_kernels(|| {
        for ((name, a), (_, b)) in gradients(&recurrent()).iter().zip(&wanted) {
            close(a, b, 1e-10, name);
        }
    });
    support::by_kernels(&[
        the_recurrent_delta_net_is_its_loop,
        the_delta_delta_net_is_its_loop,
        hybrids_are_their_loop,
        they_hold_along_time,
    ]);
}
