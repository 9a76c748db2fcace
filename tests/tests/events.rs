//! What TensorBoard's own reader finds in a run.

use std::collections::BTreeMap;
use std::process::Command;

use fwp_tests::run::Run;
use fwp_tests::{Case, said};
use serde_json::{Value, json};

/// Reads the events of a run with TensorBoard's reader; `None` where there is no Python.
fn read(run: &Run) -> Option<Value> {
    let script = fwp_test_support::repository().join("tests/python/read_events.py");
    let output = Command::new(fwp_tests::python()?).arg(script).arg(run.path("")).output().expect("Python starts");
    assert!(output.status.success(), "{}", said(&output));
    Some(serde_json::from_slice(&output.stdout).expect("one JSON document"))
}

const WATCHED: &str = "--set monitor.histograms_every=10 --set monitor.images_every=15 --set task.length=7";

/// Every scalar of the events, by name and step, against the record of truth. Events hold float32.
fn assert_same_scalars(events: &Value, run: &Run) {
    let scalars = events["scalars"].as_object().unwrap();
    let mut recorded: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    for line in run.metrics() {
        for (name, value) in line.as_object().unwrap() {
            if !matches!(name.as_str(), "step" | "time") {
                let point = (line["step"].as_u64().unwrap(), value.as_f64().unwrap() as f32);
                recorded.entry(name.clone()).or_default().push(point);
            }
        }
    }
    let names: Vec<&String> = recorded.keys().collect();
    assert_eq!(names, scalars.keys().collect::<Vec<_>>());
    for (name, points) in &recorded {
        let read = scalars[name].as_array().unwrap().iter();
        let read: Vec<(u64, f32)> = read.map(|p| (p[0].as_u64().unwrap(), p[1].as_f64().unwrap() as f32)).collect();
        assert_eq!(&read, points, "{name}");
    }
}

/// The steps at which a summary of a kind and tag was written.
fn steps(events: &Value, kind: &str, tag: &str) -> Vec<u64> {
    let list = events[kind][tag].as_array().unwrap_or_else(|| panic!("no {kind} {tag} in {}", events[kind]));
    list.iter().map(|e| e["step"].as_u64().unwrap()).collect()
}

#[test]
fn tensorboard_reads_every_kind_of_summary() {
    let case = Case::new();
    let run = case.train("memory", "out", WATCHED);
    let Some(events) = read(&run) else { return };
    assert_same_scalars(&events, &run);
    assert_eq!(events["scalars"]["train/loss"].as_array().unwrap().len(), 30);
    assert_eq!(events["scalars"]["eval/loss"].as_array().unwrap().len(), 3);

    // The whole recipe as a text, and what was chosen as hyper-parameters.
    let text = events["texts"]["recipe/text_summary"][0].as_str().expect("the recipe as a text");
    assert!(text.contains(run.read("recipe.toml").trim()), "{text}");
    let chosen = &events["hparams"]["session_start_info"];
    assert_eq!((&chosen["lr"], &chosen["seed"], &chosen["batch_size"]), (&json!(0.01), &json!(1.0), &json!(4.0)), "{chosen}");
    assert_eq!((&chosen["slow_net"], &chosen["main.update_rule"]), (&json!("retrieval"), &json!("delta")), "{chosen}");
    // STATUS_SUCCESS of TensorBoard's API.
    assert_eq!(events["hparams"]["session_end_info"], 1);

    // Fast weights, keys and write strengths. DPFP makes 8 features of a key of 4 elements; values are one-hot over 4.
    let histograms = events["histograms"].as_object().unwrap();
    let ends = |end: &str| -> String {
        let found: Vec<&String> = histograms.keys().filter(|t| t.starts_with("fwp/") && t.ends_with(end)).collect();
        assert_eq!(found.len(), 1, "{end}: {:?}", histograms.keys());
        found[0].clone()
    };
    for (end, values) in [("/w", 4 * 8), ("/k", 7 * 8), ("/beta", 7)] {
        let tag = ends(end);
        assert_eq!(steps(&events, "histograms", &tag), [10, 20, 30], "{tag}");
        for histogram in histograms[&tag].as_array().unwrap() {
            assert_eq!(histogram["num"], f64::from(values), "{tag}: {histogram}");
            let sum: f64 = histogram["counts"].as_array().unwrap().iter().map(|c| c.as_f64().unwrap()).sum();
            assert_eq!(sum, f64::from(values), "{tag}: {histogram}");
        }
    }
    // A write strength as it is used: after the sigmoid. Features of DPFP that are normalised by their sum.
    let within = |end: &str| {
        for h in histograms[&ends(end)].as_array().unwrap() {
            let (min, max) = (h["min"].as_f64().unwrap(), h["max"].as_f64().unwrap());
            assert!((0.0..=1.0).contains(&min) && (0.0..=1.0).contains(&max) && max > 0.0, "{end}: {h}");
        }
    };
    within("/beta");
    within("/k");

    // Rows are the image's height.
    for (end, size) in [("/w", json!([8, 4])), ("/k", json!([8, 7]))] {
        let tag = format!("{}/image", ends(end));
        assert_eq!(steps(&events, "images", &tag), [15, 30], "{tag}");
        for image in events["images"][&tag].as_array().unwrap() {
            assert_eq!((&image["size"], &image["png"]), (&size, &size), "{tag}");
        }
    }

    // TensorBoard's pages take a tag for one kind of summary and fail on another one there.
    let kinds = ["scalars", "histograms", "images", "texts"];
    let mut tags: Vec<&String> = kinds.iter().flat_map(|kind| events[kind].as_object().unwrap().keys()).collect();
    let all = tags.len();
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), all, "a tag with two kinds of summary");
}

#[test]
fn looking_inside_changes_nothing() {
    let case = Case::new();
    let plain = case.train("language", "plain", "--steps 20");
    let watched = case.train("language", "watched", "--steps 20 --set monitor.histograms_every=3 --set monitor.images_every=4");
    watched.assert_same(&plain);
    let without = case.train("language", "without", "--steps 20 --set monitor.tensorboard=false");
    without.assert_same(&plain);
    let names = std::fs::read_dir(without.path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|n| n.contains("tfevents")).count(), 0);
}

#[test]
fn a_resumed_run_has_no_point_twice() {
    let case = Case::new();
    let recipe = format!("--set checkpoint.every=10 --set eval.every=5 {WATCHED}");
    case.train("memory", "out", &recipe);
    // Half of the run again, as after a crash: the newest checkpoint is lost with all that came after the one before.
    std::fs::remove_dir_all(case.path("out/checkpoints/step-30")).unwrap();
    let run = case.train("memory", "out", &recipe);
    assert_eq!(run.metric("train/loss").len(), 30);
    let Some(events) = read(&run) else { return };
    assert_same_scalars(&events, &run);
    for tag in events["histograms"].as_object().unwrap().keys() {
        assert_eq!(steps(&events, "histograms", tag), [10, 20, 30], "{tag}");
    }
    for tag in events["images"].as_object().unwrap().keys() {
        assert_eq!(steps(&events, "images", tag), [15, 30], "{tag}");
    }
    assert_eq!(events["texts"]["recipe/text_summary"].as_array().unwrap().len(), 1);
}
