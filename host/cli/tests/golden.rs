//! Update rules and feature maps as they were built once: their programs are read, checked and run as on the day they were written.
//!
//! Slow nets are in the tests of the engine: what works along a sequence needs it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fwp_program::equivalent::random_inputs;
use fwp_program::interpret::{Array, Random, Value as Tensor, evaluate};
use fwp_program::{check, expand_gradients};
use fwp_sdk::program::{MapRole, Program, StateInit, entry};
use fwp_test_support::executable;
use fwp_test_support::golden::{self, Golden, Numbers, assert_same, digest};
use serde_json::{Value, json};

/// Steps that a rule is run for: a state that is held for four of them changes once and is then read.
const STEPS: i64 = 5;

/// The configurations of a rule in which its program has other operations; the first is the default.
fn rule_variants(name: &str) -> Vec<Value> {
    let more = match name {
        "additive" | "gated-sum" | "delta" => vec![json!({ "attention_normalisation": true })],
        "deltaproduct" => vec![json!({ "gated": true, "steps": 3 })],
        "fwm" => vec![json!({ "output_norm": false })],
        "fwp-1991" => vec![json!({ "squash": "sigmoid" })],
        "gated-delta" => vec![json!({ "decay": "sigmoid", "beta_scale": 2.0 })],
        "gsa" => vec![json!({ "slots": 3 })],
        "longhorn" => vec![json!({ "write_strength": "scalar" })],
        "mamba2" => vec![json!({ "groups": 2 })],
        "mesa" => vec![json!({ "tolerance": 1e-6 })],
        "mlstm" => vec![json!({ "forget": "exp" })],
        "srwm" => vec![json!({ "input_softmax": false })],
        "titans" => vec![json!({ "depth": 2, "hidden_factor": 2 })],
        "ttt-linear" => vec![json!({ "batch": 4 })],
        "ttt-mlp" => vec![json!({ "batch": 4, "hidden_factor": 2 })],
        _ => vec![],
    };
    [json!({})].into_iter().chain(more).collect()
}

/// The configurations of a feature map in which its program has other operations, each in another normalisation.
fn map_variants(name: &str) -> Vec<Value> {
    let sum = json!({ "normalise": "sum" });
    match name {
        "identity" => vec![json!({}), sum, json!({ "normalise": "l2" })],
        "dpfp" => vec![json!({}), json!({ "nu": 2, "normalise": "sum" })],
        "favor+" => vec![json!({ "m": 3 }), json!({ "m": 3, "redraw": "never", "orthogonal": false })],
        "rfa" => vec![json!({ "directions": 3 }), json!({ "directions": 3, "redraw": "never", "sigma_trained": false })],
        "hedgehog" => vec![json!({}), json!({ "tied": true, "bias": false })],
        "t2r" => vec![json!({}), json!({ "features": 5, "tied": false, "bias": false })],
        _ => vec![json!({})],
    }
}

/// What a rule is asked; sizes are small, because some rules hold a table of them.
fn rule_question(name: &str) -> Value {
    // The weights of these map a key to another vector of its size.
    let value = if name.starts_with("ttt-") { 4 } else { 5 };
    json!({ "rule": { "dims": { "heads": 2, "key_raw": 3, "key": 4, "value": value, "layers": 2, "max_len": 6 } } })
}

/// A part that the host found.
struct Found {
    kind: String,
    name: String,
    library: PathBuf,
}

fn found() -> Vec<Found> {
    let output = Command::new(executable("fwp-host")).args(["plugins", "list", "--json"]).output().unwrap();
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_string();
    let parts = listed["parts"].as_array().unwrap().iter().filter(|p| p["status"] == "ok");
    parts.map(|p| Found { kind: text(&p["kind"]), name: text(&p["name"]), library: text(&p["library"]).into() }).collect()
}

/// Asks a library as the host asks it, in words that need not be those of today's SDK.
fn describe(part: &Found, questions: &[(Value, Value)]) -> Vec<Result<Vec<u8>, String>> {
    let request = |(config, ask): &(Value, Value)| json!({ "describe": { "kind": part.kind, "name": part.name, "config": config, "ask": ask } });
    let questions: Vec<Value> = questions.iter().map(request).collect();
    let path = json!({ "Unix": part.library.as_os_str().as_encoded_bytes() });
    let job = json!({ "libraries": [{ "path": path, "questions": questions }] });
    let mut command = Command::new(executable("fwp-host"));
    let mut child = command.args(["__describe", "30"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(job.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    // Frames: kind, library, question, length, bytes.
    let (mut rest, mut answers) = (&output[..], Vec::new());
    while rest.len() >= 17 {
        let length = u64::from_le_bytes(rest[9..17].try_into().unwrap()) as usize;
        let bytes = rest[17..17 + length].to_vec();
        match rest[0] {
            3 => answers.push(Ok(bytes)),
            2 | 4 => answers.push(Err(String::from_utf8(bytes).unwrap())),
            _ => {}
        }
        rest = &rest[17 + length..];
    }
    answers
}

/// A smooth map to `size` features, in the place of the recipe's.
fn features(role: MapRole, x: &Array, size: usize) -> Array {
    let x = x.floats().unwrap();
    let feature = |i: usize| {
        0.5 + x.iter().enumerate().map(|(j, x)| x * ((1 + i + 2 * j + role as usize) as f64).sin()).sum::<f64>().tanh()
    };
    Array::new(&[size], (0..size).map(feature).collect()).unwrap()
}

fn add(numbers: &mut BTreeMap<String, Vec<f64>>, name: &str, value: &Tensor) {
    numbers.entry(name.into()).or_default().extend(value.tensor().unwrap().floats().unwrap());
}

/// A few steps from the initial state; outputs and last states.
fn run_rule(program: &Program, ask: &Value) -> Numbers {
    let program = expand_gradients(program).unwrap();
    let size = ask["rule"]["dims"]["key"].as_u64().unwrap() as usize;
    let phi = |role: MapRole, x: &Array| Ok(features(role, x, size));
    let step = program.entry(entry::STEP).unwrap();
    let mut random = Random::new(1);
    let mut inputs = random_inputs(&program, &[step], 0, &mut random).unwrap();
    inputs.phi = Some(&phi);
    (inputs.layer, inputs.head) = (1, 1);
    for (state, declared) in inputs.states.iter_mut().zip(&program.states) {
        *state = match &declared.init {
            StateInit::Zeros => Array::full(&declared.shape, 0.0),
            StateInit::Constant(c) => Array::full(&declared.shape, *c),
            StateInit::Parameter(name) => inputs.parameters[name].clone(),
        };
    }
    let mut all = BTreeMap::new();
    for index in 0..STEPS {
        inputs.index = index;
        inputs.arguments = random_inputs(&program, &[step], index, &mut random).unwrap().arguments;
        let results = evaluate(&program, step, &mut inputs).unwrap();
        for (output, value) in step.outputs.iter().zip(&results) {
            match output.name.strip_prefix("state.").and_then(|name| program.states.iter().position(|s| s.name == name)) {
                Some(i) if (index + 1) % program.states[i].held as i64 == 0 => inputs.states[i] = value.tensor().unwrap().clone(),
                Some(_) => {}
                None => add(&mut all, &output.name, value),
            }
        }
    }
    for (declared, state) in program.states.iter().zip(&inputs.states) {
        add(&mut all, &format!("state.{}", declared.name), &state.clone().into());
    }
    all.iter().map(|(name, values)| (name.clone(), digest(values))).collect()
}

/// The features of a key and of a query.
fn run_map(program: &Program, _: &Value) -> Numbers {
    let mut numbers = Numbers::new();
    for name in [entry::KEY, entry::QUERY] {
        let f = program.entry(name).unwrap();
        let mut inputs = random_inputs(program, &[f], 0, &mut Random::new(1)).unwrap();
        let results = evaluate(program, f, &mut inputs).unwrap();
        numbers.insert(name.into(), digest(results[0].tensor().unwrap().floats().unwrap()));
    }
    numbers
}

/// All golden programs of a kind, and what the parts of today answer to the same questions.
fn as_on_the_day_they_were_written(
    kind: &str,
    folder: &str,
    variants: impl Fn(&str) -> Vec<(Value, Value)>,
    run: impl Fn(&Program, &Value) -> Numbers,
) {
    let parts: Vec<Found> = found().into_iter().filter(|p| p.kind == kind).collect();
    for part in &parts {
        let mut known = golden::read(folder, &part.name);
        let mut questions: Vec<(Value, Value)> = known.iter().map(|g| (g.config.clone(), g.ask.clone())).collect();
        questions.extend(variants(&part.name));
        let mut asked: Vec<(Value, Value)> = Vec::new();
        questions.into_iter().for_each(|q| {
            if !asked.contains(&q) {
                asked.push(q)
            }
        });
        let answers = describe(part, &asked);
        assert_eq!(answers.len(), asked.len(), "{}", part.name);
        for ((config, ask), answer) in asked.into_iter().zip(answers) {
            let what = format!("{kind} `{}` with {config}", part.name);
            let today = Program::from_bytes(&answer.unwrap_or_else(|e| panic!("{what}: {e}"))).unwrap();
            let (program, numbers) = (today.essence(), run(&today, &ask));
            let same = known.iter().any(|g| g.program == program);
            let asked_before = known.iter().any(|g| g.config == config && g.ask == ask);
            if !same && golden::writing() {
                let new = Golden { config, ask, program, numbers };
                golden::add(folder, &part.name, &new);
                known.push(new);
            } else {
                // A part may change: the programs of its past stay.
                assert!(asked_before, "{what} has no golden program: FWP_WRITE_GOLDEN=1 adds it");
            }
        }
    }
    // The parts of the past need not be there any more.
    for name in golden::names(folder) {
        for (i, golden) in golden::read(folder, &name).iter().enumerate() {
            let what = format!("line {} of {folder}/{name}.jsonl", i + 1);
            let program = Program::from_bytes(&golden.program).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(program.essence() == golden.program, "{what}: it is written in other bytes");
            check(&program).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_same(&run(&program, &golden.ask), &golden.numbers, &what);
        }
    }
    let names: Vec<&str> = parts.iter().map(|p| p.name.as_str()).collect();
    assert!(names.contains(&"delta") || names.contains(&"identity"), "no parts were found: {names:?}");
}

#[test]
fn update_rules_of_the_past_give_the_same_numbers() {
    let variants = |name: &str| rule_variants(name).into_iter().map(|config| (config, rule_question(name))).collect();
    as_on_the_day_they_were_written("update-rule", "update-rules", variants, run_rule);
}

#[test]
fn feature_maps_of_the_past_give_the_same_numbers() {
    let variants = |name: &str| map_variants(name).into_iter().map(|config| (config, json!({ "map": { "dim": 4 } }))).collect();
    as_on_the_day_they_were_written("feature-map", "feature-maps", variants, run_map);
}

#[test]
fn every_slow_net_has_golden_programs() {
    let known = golden::names("slow-nets");
    let nets: Vec<Found> = found().into_iter().filter(|p| p.kind == "slow-net").collect();
    assert!(nets.len() >= 10, "slow nets were found");
    for net in nets {
        assert!(known.contains(&net.name), "`{}` is missing in the test of the engine, tests/golden.rs", net.name);
    }
}
