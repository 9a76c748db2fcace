//! How fast the reference executor trains; run it by name: `cargo test --release -p fwp-engine --test speed -- --ignored --nocapture`.

mod support;

use std::collections::BTreeMap;
use std::time::Instant;

use fwp_engine::exec::value::Precision;
use fwp_engine::model::Model;
use fwp_engine::train::TrainModel;
use fwp_sdk::build::{Port, PortKind, TaskIo};
use serde_json::json;
use support::{TRAIN, compose, slot};
use tch::{Device, Kind, Tensor};

/// The model of `zoo/deltanet-text` on one of its batches: forward, loss and backward.
#[test]
#[ignore = "a measurement; its result depends on what else the machine does"]
fn char_lm() {
    let (batch, time, vocab) = (12i64, 64i64, 65usize);
    let port = |name: &str, kind| Port { name: name.into(), axis: Some("time".into()), kind };
    let task = TaskIo {
        inputs: vec![port("tokens", PortKind::Symbol { vocab })],
        outputs: vec![port("logits", PortKind::Vector { dim: vocab })],
        max_len: time as usize,
    };
    for config in [json!({}), json!({"conv": 0}), json!({"conv": 0, "conv_activation": "none"}), json!({"mlp": 0}), json!({"output_norm": false}), json!({"layers":1})] {
    println!("{config}");
    let delta = slot::<fwp_rule_delta::Delta, fwp_map_identity::Identity>(json!({}), json!({"normalise": "l2"}), 4, 32, 32);
    let programs = compose::<fwp_net_transformer::Transformer>(config, &task, Some(delta));
    let model = Model::new(&programs, Precision { kind: Kind::Float, device: Device::Cpu }, 1, u64::MAX).unwrap();
    let tokens = Tensor::randint(vocab as i64, [batch, time], (Kind::Int64, Device::Cpu));
    let inputs = BTreeMap::from([("tokens".to_string(), tokens.shallow_clone())]);
    let (mut forward, mut whole) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..30 {
        let began = Instant::now();
        let logits = model.forward(&inputs, &TRAIN, None).unwrap().values.remove("logits").unwrap();
        let loss = logits.reshape([-1, vocab as i64]).cross_entropy_for_logits(&tokens.reshape([-1]));
        forward = forward.min(began.elapsed().as_secs_f64());
        loss.backward();
        whole = whole.min(began.elapsed().as_secs_f64());
    }
    let tokens = (batch * time) as f64;
    println!("best of 30: forward {:.1} ms, with backward {:.1} ms, {:.0} tokens/s", forward * 1e3, whole * 1e3, tokens / whole);
}}
