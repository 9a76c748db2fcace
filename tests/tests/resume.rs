//! A run that was stopped and resumed is, bit for bit, the run that was never stopped.

use std::process::{Child, Stdio};

use fwp_tests::process::{engine_of, lines, send, wait_until, wait_until_gone};
use fwp_tests::run::Run;
use fwp_tests::{Case, said};

/// What is trained, and how many lines of metrics it has written when it is stopped.
struct Training {
    recipe: &'static str,
    more: &'static str,
    stop_after: usize,
}

const MEMORY: Training =
    Training { recipe: "memory", more: "--steps 300 --set eval.every=40 --set checkpoint.every=50", stop_after: 120 };

/// With dropout, micro-batches and a cosine schedule.
const LANGUAGE: Training =
    Training { recipe: "language", more: "--steps 80 --set eval.every=25 --set checkpoint.every=10", stop_after: 30 };

/// With fast weights that pass from step to step.
const CARRIED: Training = Training {
    recipe: "language",
    more: "--steps 80 --set task.order=sequential --set train.carry=detached --set eval.every=25 --set checkpoint.every=10",
    stop_after: 30,
};

/// With random features that are drawn anew for every batch, and dropout beside them.
const REDRAWN: Training = Training {
    recipe: "language",
    more: "--steps 80 --set feature_map.plugin=favor+ --set feature_map.m=6 --set eval.every=25 --set checkpoint.every=10",
    stop_after: 30,
};

impl Training {
    fn whole(&self, case: &Case) -> Run {
        case.train(self.recipe, "whole", self.more)
    }

    /// Starts a run and waits until it is in the middle.
    fn start(&self, case: &Case, run: &str) -> Child {
        let mut child = self.command(case, run).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let metrics = case.path(run).join("metrics.jsonl");
        wait_until(&mut child, "the run is in the middle", || lines(&metrics) >= self.stop_after);
        child
    }

    fn command(&self, case: &Case, run: &str) -> std::process::Command {
        let data = if self.recipe == "language" { "--data text.txt" } else { "" };
        let recipe = self.recipe;
        case.command(&format!("train --recipe {recipe}.toml --run-dir {run} --progress none {data} {}", self.more))
    }

    fn steps(&self) -> u64 {
        self.more.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Asserts that a run was stopped on its way.
    fn assert_stopped(&self, run: &Run) -> u64 {
        let at = *run.checkpoints().last().expect("a checkpoint");
        assert!(at > 0 && at < self.steps(), "stopped at step {at}");
        at
    }
}

fn finish(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), said(&output))
}

/// Stops by SIGTERM and goes on; also a second time, by the run's own folder.
fn stopped_by_sigterm(training: &Training) {
    let case = Case::new();
    let whole = training.whole(&case);
    let child = training.start(&case, "out");
    send("TERM", child.id());
    let (code, text) = finish(child);
    assert_eq!(code, Some(7), "{text}");
    assert!(text.contains("train --resume"), "it says how to go on: {text}");
    let stopped = Run::at(&case.path("out"));
    let at = training.assert_stopped(&stopped);
    // All that was done is saved: the checkpoint is that of the last step that was recorded.
    assert_eq!(stopped.metric("train/loss").last_key_value().unwrap().0, &at);

    let said = said(&case.run("train --resume out --progress none"));
    assert!(said.contains(&format!("resumed    at step {at}")), "{said}");
    Run::at(&case.path("out")).assert_same(&whole);
}

/// Ends the engine by SIGKILL, which nothing can prepare for, and goes on.
fn killed(training: &Training) {
    let case = Case::new();
    let whole = training.whole(&case);
    let mut child = training.start(&case, "out");
    let engine = engine_of(&mut child);
    send("KILL", engine);
    let (code, text) = finish(child);
    assert_eq!(code, Some(5), "{text}");
    assert!(text.contains("the engine was killed"), "{text}");
    training.assert_stopped(&Run::at(&case.path("out")));
    // The same command again goes on.
    let output = training.command(&case, "out").output().unwrap();
    assert!(output.status.success() && said(&output).contains("resumed    at step"), "{}", said(&output));
    Run::at(&case.path("out")).assert_same(&whole);
}

/// Ends the host by SIGKILL: the engine, which nobody watches any more, saves and leaves.
#[test]
fn an_engine_whose_host_was_killed_saves_and_leaves() {
    let case = Case::new();
    let whole = MEMORY.whole(&case);
    let mut child = MEMORY.start(&case, "out");
    let engine = engine_of(&mut child);
    child.kill().unwrap();
    // Waits for the end of stderr too, which the engine holds.
    let (code, text) = finish(child);
    assert_eq!(code, None, "{text}");
    wait_until_gone(engine);
    let stopped = Run::at(&case.path("out"));
    let at = MEMORY.assert_stopped(&stopped);
    // It was asked, not killed: the checkpoint is that of the last step that was recorded.
    assert_eq!(stopped.metric("train/loss").last_key_value().unwrap().0, &at);
    case.ok("train --resume out --progress none");
    Run::at(&case.path("out")).assert_same(&whole);
}

#[test]
fn a_memory_stopped_by_sigterm() {
    stopped_by_sigterm(&MEMORY);
}

#[test]
fn a_memory_killed() {
    killed(&MEMORY);
}

#[test]
fn a_language_model_stopped_by_sigterm() {
    stopped_by_sigterm(&LANGUAGE);
}

#[test]
fn a_language_model_killed() {
    killed(&LANGUAGE);
}

#[test]
fn a_language_model_that_carries_its_fast_weights_stopped_by_sigterm() {
    stopped_by_sigterm(&CARRIED);
}

#[test]
fn a_language_model_that_carries_its_fast_weights_killed() {
    killed(&CARRIED);
}

#[test]
fn a_language_model_with_features_drawn_anew_for_every_batch_killed() {
    killed(&REDRAWN);
}

#[test]
fn a_run_goes_on_when_plugins_and_recipe_are_gone() {
    let case = Case::installed();
    let whole = MEMORY.whole(&case);
    let child = MEMORY.start(&case, "out");
    send("INT", child.id());
    assert_eq!(finish(child).0, Some(7));
    MEMORY.assert_stopped(&Run::at(&case.path("out")));
    std::fs::remove_dir_all(case.path("bin/plugins")).unwrap();
    std::fs::remove_file(case.path("memory.toml")).unwrap();
    assert_eq!(case.run("plugins show delta").status.code(), Some(4), "the plugins are gone");
    case.ok("train --resume out --progress none");
    Run::at(&case.path("out")).assert_same(&whole);
}

#[test]
fn a_longer_run_goes_on_as_if_it_had_been_longer_from_the_start() {
    let case = Case::new();
    let whole = case.train("memory", "whole", "--steps 40");
    case.train("memory", "out", "--steps 20");
    let longer = case.train("memory", "out", "--steps 40");
    longer.assert_same(&whole);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let case = Case::new();
    let whole = case.train("memory", "whole", "--set checkpoint.every=10 --set checkpoint.keep=9");
    case.train("memory", "out", "--set checkpoint.every=10 --set checkpoint.keep=9");
    let model = case.path("out/checkpoints/step-30/model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&model, bytes).unwrap();
    let said = said(&case.run("train --resume out --progress none"));
    assert!(said.contains("resumed    at step 20") && said.contains("model.safetensors"), "{said}");
    Run::at(&case.path("out")).assert_same(&whole);
}
