//! The executors as a user meets them: what is chosen, what is said of it, and what happens where one cannot serve.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use fwp_test_support::script;
use fwp_tests::run::Run;
use fwp_tests::{Case, said};
use serde_json::Value;

/// The choices that a run has recorded.
fn choices(run: &Run) -> Vec<Value> {
    let text = fs::read_to_string(run.path("executor.json")).expect("a record");
    let record: Value = serde_json::from_str(&text).expect("JSON");
    record["choices"].as_array().expect("choices").clone()
}

#[test]
fn the_choice_is_said_and_recorded_with_its_reason() {
    let case = Case::new();
    let output = case.run("train --recipe memory.toml --run-dir out --steps 12 --progress plain");
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("executor   scan for `delta` (walk back): "), "{}", said(&output));
    let all = choices(&Run::at(&case.path("out")));
    let step = all.iter().find(|c| c["part"] == "walk back").expect("the choice of one query");
    assert_eq!((&step["executor"], &step["rule"], &step["dtype"]), (&"scan".into(), &"delta".into(), &"float32".into()));
    assert!(!step["reason"].as_str().unwrap().is_empty());
    let details = &step["details"];
    assert!(details["blocks"].as_u64().unwrap() > 0 && !details["compiler_version"].as_str().unwrap().is_empty(), "{details}");
    assert!(std::path::Path::new(details["text"].as_str().unwrap()).is_file(), "the text is kept");
}

#[test]
fn what_is_only_summed_up_is_a_matrix_product_where_it_is_long() {
    let case = Case::new();
    // An evaluation asks several queries of each sequence.
    let write = |rule: &str, pairs: usize| -> String {
        let out = format!("{rule}-{pairs}");
        case.ok(&format!(
            "train --recipe memory.toml --run-dir {out} --steps 1 --set update_rule.plugin={rule} --set task.eval_length={pairs}"
        ));
        let all = choices(&Run::at(&case.path(&out)));
        let step = all.iter().find(|c| c["part"] == "write" && c["steps"] == pairs).unwrap_or_else(|| panic!("{all:?}"));
        step["executor"].as_str().unwrap().to_string()
    };
    let found = [write("additive", 70), write("additive", 20), write("delta", 70)];
    assert_eq!(found, ["chunkwise", "scan", "scan"]);
}

#[test]
fn all_executors_train_alike() {
    let case = Case::new();
    let losses = |exec: &str| case.train("memory", exec, &format!("--steps 12 --exec {exec}")).metric("train/loss");
    let reference = losses("reference");
    for exec in ["scan", "chunkwise", "auto"] {
        for (step, loss) in losses(exec) {
            assert!((loss - reference[&step]).abs() < 1e-4 * reference[&step].abs(), "{exec}, step {step}: {loss}");
        }
    }
}

#[test]
fn evaluation_takes_an_executor_too() {
    let case = Case::new();
    let run = case.train("memory", "out", "--steps 12");
    let loss = |exec: &str| -> f64 {
        let text = case.ok(&format!("eval --run {} --exec {exec} --json", run.path("").display()));
        serde_json::from_str::<Value>(&text).unwrap()["eval/loss"].as_f64().unwrap()
    };
    let reference = loss("reference");
    assert!((loss("scan") - reference).abs() < 1e-4 * reference && (loss("auto") - reference).abs() < 1e-4 * reference);
    case.fails(&format!("eval --run {} --exec slow", run.path("").display()), 2);
}

#[test]
fn a_machine_without_a_compiler_trains_and_says_what_it_lost() {
    let case = Case::new();
    let with = case.train("memory", "with", "--steps 12");
    for (name, value) in [("CC", "/nonexistent"), ("PATH", "/nonexistent")] {
        let mut command = case.command(&format!("train --recipe memory.toml --run-dir {name} --steps 12 --progress plain"));
        let output = command.env_remove("CC").env(name, value).output().unwrap();
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        let warning =
            said.lines().find(|l| l.starts_with("warning: no fused scan for `delta`")).unwrap_or_else(|| panic!("{said}"));
        assert!(warning.contains("slower") && warning.contains("compiler"), "{warning}");
        assert_eq!(said.matches("warning: no fused scan").count(), 1, "said once: {said}");
        let run = Run::at(&case.path(name));
        assert!(choices(&run).iter().all(|c| c["executor"] != "scan"));
        for (step, loss) in run.metric("train/loss") {
            assert!((loss - with.metric("train/loss")[&step]).abs() < 1e-4, "step {step}");
        }
        // Asked for, it is an error and no silent other way.
        let mut command = case.command("train --recipe memory.toml --run-dir none --steps 2 --exec scan --progress none");
        let output = command.env_remove("CC").env(name, value).output().unwrap();
        let said = fwp_tests::said(&output);
        assert!(!output.status.success() && said.contains("--exec scan does not serve update rule `delta`"), "{said}");
        assert!(said.contains("cause: ") && said.contains("compiler") && said.contains("remedy: use --exec auto"), "{said}");
        assert!(!case.path("none").exists(), "the folder of a run that did not begin is in the way of the next");
        let mut command = case.command(&format!("train --resume {name} --steps 14 --exec scan --progress none"));
        assert!(!command.env_remove("CC").env(name, value).output().unwrap().status.success());
        assert!(run.path("checkpoints").read_dir().unwrap().count() > 0, "a run that was trained loses nothing");
    }
}

#[test]
fn cells_are_not_walked_in_chunks() {
    let case = Case::new();
    let recipe = fwp_test_support::repository().join("zoo/lstm-languages");
    let said = case.fails(&format!("train --recipe {} --run-dir none --steps 2 --exec chunkwise", recipe.display()), 3);
    assert!(said.contains("--exec chunkwise does not serve the cells of slow net `lstm`"), "{said}");
    assert!(said.contains("recurrent cell") && !case.path("none").exists(), "{said}");
}

#[test]
fn a_resumed_run_says_when_its_executor_changes() {
    let case = Case::new();
    case.train("memory", "out", "--steps 6 --exec chunkwise");
    let resume = |more: &str| said(&case.run(&format!("train --resume out --progress plain {more}")));
    let same = resume("--steps 8 --exec chunkwise");
    assert!(!same.contains("not with the same bits"), "{same}");
    let other = resume("--steps 10 --exec scan");
    assert!(other.contains("warning: `delta` was carried out by chunkwise so far and is now by scan"), "{other}");
}

#[test]
fn a_cache_that_others_may_write_is_not_used() {
    let case = Case::new();
    let kernels = case.path("cache/kernels");
    fs::create_dir_all(&kernels).unwrap();
    fs::set_permissions(&kernels, fs::Permissions::from_mode(0o777)).unwrap();
    let train = |run: &str| {
        let mut command = case.command(&format!("train --recipe memory.toml --run-dir {run} --steps 2 --progress plain"));
        command.env("FWP_CACHE", case.path("cache")).output().unwrap()
    };
    let output = train("refused");
    assert!(output.status.success() && said(&output).contains("chmod 700"), "{}", said(&output));
    assert_eq!(fs::read_dir(&kernels).unwrap().count(), 0, "nothing is written there");
    let doctor = case.command("doctor").env("FWP_CACHE", case.path("cache")).output().unwrap();
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("chmod 700"));
    fs::set_permissions(&kernels, fs::Permissions::from_mode(0o700)).unwrap();
    let output = train("used");
    assert!(said(&output).contains("executor   scan for `delta`"), "{}", said(&output));
    assert!(fs::read_dir(&kernels).unwrap().count() >= 3);
}

#[test]
fn a_compiler_that_fails_is_quoted_and_the_run_goes_on() {
    let case = Case::new();
    let train = |run: &str, fails: &str, seconds: &str| {
        let answers = "*--version*) echo broken 1.0;; *-E*) exit 0;;";
        script(&case.path("cc"), &format!("#!/bin/sh\ncase \"$*\" in {answers} *) {fails};; esac\n"));
        let mut command = case.command(&format!("train --recipe memory.toml --run-dir {run} --steps 2 --progress plain"));
        command.env("CC", case.path("cc")).env("FWP_CACHE", case.path("cache")).env("FWP_COMPILE_SECONDS", seconds);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let failing = train("failing", "echo 'cc1: out of luck' >&2; exit 4", "60");
    assert!(failing.contains("cc1: out of luck") && failing.contains(".c)"), "{failing}");
    let slow = train("slow", "sleep 60", "0.5");
    assert!(slow.contains("0.5 seconds") && slow.contains("FWP_COMPILE_SECONDS"), "{slow}");
}

#[test]
fn doctor_shows_compiler_cache_and_vectors() {
    let case = Case::new();
    let report: Value = serde_json::from_str(&case.ok("doctor --json")).unwrap();
    let kernels = &report["engine"]["kernels"];
    assert!(kernels["compiler"]["path"].as_str().unwrap().starts_with('/'), "{kernels}");
    assert!(!kernels["compiler"]["version"].as_str().unwrap().is_empty());
    assert!([16, 32, 64].contains(&kernels["vector_bytes"].as_u64().unwrap()));
    assert!(kernels["cache"]["folder"].as_str().unwrap().ends_with("kernels"));
    let text = case.ok("doctor");
    assert!(text.contains("vectors of"), "{text}");
    let output = case.command("doctor").env("CC", "/nonexistent").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "kernels are no condition of training");
    assert!(text.contains("CC is `/nonexistent`") && text.contains("install a C compiler"), "{text}");
}
