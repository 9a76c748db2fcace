//! Training as a user sees it: what is written, what is refused, how it ends.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fwp_tests::process::{engine_of, send};
use fwp_tests::run::Run;
use fwp_tests::{Case, said};
use safetensors::SafeTensors;
use serde_json::Value;

#[test]
fn a_device_that_is_not_there_leaves_no_folder() {
    let case = Case::new();
    let said = case.fails("train --recipe memory.toml --run-dir out --device cuda:99", 5);
    assert!(said.contains("no CUDA device 99") && said.contains("  remedy: "), "{said}");
    assert!(!case.path("out").exists(), "a folder is left behind");
    assert!(case.fails("train --recipe memory.toml --run-dir out --device gpu", 2).contains("cuda:N"));
}

#[test]
fn metrics_are_one_object_a_line() {
    let case = Case::new();
    let run = case.train("memory", "out", "--set monitor.log_every=5");
    let lines = run.metrics();
    let names = |step: u64| -> Vec<&str> {
        let of_step = lines.iter().filter(|l| l["step"] == step).flat_map(|l| l.as_object().unwrap().keys());
        of_step.map(String::as_str).filter(|n| !matches!(*n, "step" | "time")).collect()
    };
    let trained = ["train/grad_norm", "train/loss", "train/lr", "train/tokens_per_second"];
    assert_eq!(names(5), trained);
    let mut both = names(10);
    both.sort_unstable();
    assert_eq!(both, ["eval/accuracy", "eval/loss", trained[0], trained[1], trained[2], trained[3]]);
    assert!(names(7).is_empty());
    let mut times = lines.iter().map(|l| l["time"].as_f64().expect("a time"));
    assert!(times.clone().all(|t| t > 1.7e9), "seconds since 1970");
    assert!(times.clone().zip(times.by_ref().skip(1)).all(|(a, b)| a <= b));
    assert!(lines.iter().map(|l| l["step"].as_u64().expect("a step")).is_sorted());
    assert!(lines.iter().all(|l| l.as_object().unwrap().values().all(Value::is_number)));
    assert!(run.metric("train/tokens_per_second").values().all(|v| *v > 0.0));
    assert!(run.metric("train/lr").values().all(|v| *v == 0.01));
    // It learns: the mean over the values of a memory that answers nothing is one half.
    let losses = run.metric("eval/loss");
    assert_eq!(losses.keys().copied().collect::<Vec<_>>(), [10, 20, 30]);
    assert!(losses[&30] < 0.5 && losses[&30] > 0.0, "{losses:?}");
}

#[test]
fn it_says_what_runs_and_how_it_ended() {
    let case = Case::new();
    let recipe = fwp_tests::MEMORY.to_string() + "\n[expect]\nmetric = \"eval/loss\"\npublished = 0.0008\nat_most = 0.001\n";
    case.write("expecting.toml", &recipe);
    let output = case.run("train --recipe expecting.toml --run-dir out --progress plain");
    // Not reaching what is expected is a result, not a failure.
    assert_eq!(output.status.code(), Some(0));
    let said = said(&output);
    for words in [
        "A small memory",
        "associative-update",
        "retrieval with dpfp + delta",
        "trained parameters",
        "30 steps of 24 tokens, seed 1",
        "cpu",
        "executor   scan for `delta` (walk back)",
        "memory     about",
        "step 30/30",
        "ended      at step 30: all steps done",
        "published 0.0008",
        "expected at most 0.001: not as expected",
        "tokens/s",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains('\u{1b}') && !said.contains('\r'), "no terminal, no bar: {said:?}");
    let run = Run::at(&case.path("out"));
    let measured = run.metric("eval/loss").into_values().fold(f64::INFINITY, f64::min);
    assert!(said.contains(&format!("measured {measured:.6}")), "{said}");
    for name in ["recipe.toml", "plan.json", "executor.json", "metrics.jsonl", "programs/update-rule-main.fwp"] {
        assert!(run.path(name).is_file(), "{name}");
    }
    // The folder's own recipe, with every default, gives the same run again.
    case.ok("train --recipe out/recipe.toml --run-dir again --progress none");
    Run::at(&case.path("again")).assert_same(&run);
}

#[test]
fn a_seed_decides_everything() {
    let case = Case::new();
    for recipe in ["memory", "language"] {
        let run = |name: &str, seed: u64| case.train(recipe, &format!("{recipe}-{name}"), &format!("--steps 12 --seed {seed}"));
        let (a, b, c) = (run("a", 3), run("b", 3), run("c", 4));
        a.assert_same(&b);
        assert_ne!(a.metric("train/loss"), c.metric("train/loss"), "{recipe}");
        assert!(a.model() != c.model(), "{recipe}");
    }
}

#[test]
fn several_seeds_are_trained_and_compared() {
    let case = Case::new();
    let table = case.ok("train --recipe memory.toml --seeds 2,1 --run-dir all --steps 12 --progress none");
    let (first, second) = (Run::at(&case.path("all/seed-1")), Run::at(&case.path("all/seed-2")));
    assert_ne!(first.model(), second.model());
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    let header = rows.iter().position(|r| r.first() == Some(&"SEED")).unwrap_or_else(|| panic!("no table: {table}"));
    for (row, (seed, run)) in rows[header + 1..].iter().zip([("2", &second), ("1", &first)]) {
        let losses = run.metric("eval/loss");
        let best = losses.values().copied().fold(f64::INFINITY, f64::min);
        let last = losses.last_key_value().unwrap().1;
        assert_eq!(row[..4], [seed, &format!("{best:.6}"), &format!("{last:.6}"), "12"], "{table}");
    }
    assert_eq!(rows.len(), header + 3, "{table}");
    case.train("memory", "alone", "--steps 12 --seed 2").assert_same(&second);
}

#[test]
fn a_folder_that_is_not_empty_is_only_gone_on_with() {
    let case = Case::new();
    case.write("full/notes.txt", "mine");
    let said = case.fails("train --recipe memory.toml --run-dir full", 3);
    assert!(said.contains("full exists and is not empty"), "{said}");
    assert_eq!(std::fs::read_dir(case.path("full")).unwrap().count(), 1);
    let run = case.train("memory", "out", "--steps 12");
    let before = run.read("metrics.jsonl");
    let said = case.fails("train --recipe memory.toml --run-dir out --resume never", 3);
    assert!(said.contains("not empty"), "{said}");
    // Another recipe is no way to go on.
    let said = case.fails("train --recipe memory.toml --run-dir out --set task.keys=5", 3);
    assert!(said.contains("[task] is not what the run began with"), "{said}");
    assert_eq!(run.read("metrics.jsonl"), before);
    // A finished run is finished: the same command again changes nothing.
    case.train("memory", "out", "--steps 12");
    assert_eq!(run.read("metrics.jsonl"), before);
    // An empty folder is as good as none.
    std::fs::create_dir(case.path("empty")).unwrap();
    case.train("memory", "empty", "--steps 12").assert_same(&run);
    // Without a name a run gets its own folder each time.
    case.ok("train --recipe memory.toml --steps 2 --progress none");
    case.ok("train --recipe memory.toml --steps 2 --progress none");
    let names = fwp_tests::folders(&case.path("runs/memory"));
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.iter().all(|n| n.to_string_lossy().contains("seed1")), "{names:?}");
}

/// Asserts that the newest checkpoint can be used, and gives its step.
fn sound(case: &Case, run: &Run) -> u64 {
    let bytes = run.model();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (name, tensor) in tensors.tensors() {
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        assert!(values.clone().count() > 0 && values.into_iter().all(f32::is_finite), "{name} is not finite");
    }
    let report: Value = serde_json::from_str(&case.ok("eval --run out --json")).unwrap();
    report["step"].as_u64().unwrap()
}

const DIVERGES: &str = "--set train.optimiser.lr=1e9 --set checkpoint.every=1 --set eval.every=0 --progress none";

#[test]
fn a_loss_that_is_not_finite_ends_the_run_with_a_post_mortem() {
    let case = Case::new();
    let said = case.fails(&format!("train --recipe memory.toml --run-dir out {DIVERGES}"), 6);
    for words in ["error: ", "is NaN", "train.optimiser.lr", "checkpoint"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(said.matches("is NaN").count(), 1, "it is said once: {said}");
    let run = Run::at(&case.path("out"));
    let post_mortem: Value = serde_json::from_str(&run.read("post-mortem.json")).unwrap();
    let failed = post_mortem["step"].as_u64().expect("the step that failed");
    assert_eq!((&post_mortem["reason"], &post_mortem["loss"]), (&"not finite".into(), &"NaN".into()));
    assert!(!post_mortem["gradients_not_finite"].as_array().unwrap().is_empty());
    // The step that failed was not taken.
    assert_eq!(sound(&case, &run), failed - 1);
    assert!(post_mortem["checkpoint"].as_str().unwrap().ends_with(&format!("step-{}", failed - 1)));
    assert!(!run.metric("train/loss").contains_key(&failed));
    // Going on fails in the same place, and harms nothing.
    case.fails("train --resume out --progress none", 6);
    assert_eq!(sound(&case, &run), failed - 1);
}

#[test]
fn steps_that_are_not_finite_are_left_out_where_the_recipe_says_so() {
    let case = Case::new();
    let policy = "--set train.on_nonfinite=skip --set train.max_consecutive=3";
    let said = case.fails(&format!("train --recipe memory.toml --run-dir out {DIVERGES} {policy}"), 6);
    assert_eq!(said.matches("left out").count(), 3 + usize::from(said.contains("be left out")), "{said}");
    let run = Run::at(&case.path("out"));
    let skipped = run.metric("train/skipped_steps");
    assert_eq!(skipped.values().copied().collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
    let first = *skipped.first_key_value().unwrap().0;
    // What was left out is recorded as no number, and changed nothing.
    let null = run.metrics().iter().filter(|l| l["train/loss"].is_null() && l.get("train/loss").is_some()).count();
    assert_eq!(null, 3);
    let step = sound(&case, &run);
    assert_eq!(step, first + 2);
    let at = |step: u64| std::fs::read(run.path(&format!("checkpoints/step-{step}/model.safetensors"))).unwrap();
    assert!(at(step) == at(step - 1), "a step that is left out leaves the parameters");
    assert!(run.path("post-mortem.json").is_file());
}

#[test]
fn a_run_is_trained_by_one_process_at_a_time() {
    let case = Case::new();
    let train = "train --recipe memory.toml --run-dir out --progress none --steps 100000";
    let mut first = case.command(train).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let metrics = case.path("out/metrics.jsonl");
    fwp_tests::process::wait_until(&mut first, "it trains", || fwp_tests::process::lines(&metrics) > 5);
    let said = case.fails("train --resume out --progress none", 5);
    assert!(said.contains("another process trains the run"), "{said}");
    send("TERM", first.id());
    assert_eq!(first.wait().unwrap().code(), Some(7), "the first one goes on undisturbed");
    let run = Run::at(&case.path("out"));
    let steps: Vec<u64> = run.metric("train/loss").into_keys().collect();
    assert!(steps.iter().copied().eq(1..=steps.len() as u64), "{steps:?}");
    // Once it has ended the run can be gone on with.
    case.ok(&format!("train --resume out --progress none --steps {}", steps.len() + 3));
}

#[test]
fn a_second_signal_leaves_at_once() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let case = Case::new();
        // One step of this takes many seconds.
        let long = "--exec reference --set task.length=20000 --set train.batch_size=64 --set task.eval_length=4 --progress none";
        let mut child = case
            .command(&format!("train --recipe memory.toml --run-dir out {long}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let engine = engine_of(&mut child);
        // The engine takes signals in hand just before its first step, when the file of metrics is there.
        let metrics = case.path("out/metrics.jsonl");
        fwp_tests::process::wait_until(&mut child, "it trains", || metrics.is_file());
        std::thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        send(signal, child.id());
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "the first one waits for the step");
        send(signal, child.id());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        assert!(start.elapsed() < Duration::from_secs(5));
        let gone = !Command::new("kill").args(["-0", &engine.to_string()]).stderr(Stdio::null()).status().unwrap().success();
        assert!(gone, "the engine has ended, too");
    }
}
