//! A rule of one's own, in a crate outside of the repository that depends on the SDK alone.

use std::time::{Duration, Instant};

use fwp_test_support::fixture;
use fwp_tests::Case;
use fwp_tests::outside::Crate;
use serde_json::Value;

fn plan(case: &Case, run: &str) -> Value {
    serde_json::from_slice(&std::fs::read(case.path(run).join("plan.json")).unwrap()).unwrap()
}

/// What a person has to write: lines with something on them, without comments and closing brackets.
fn written(source: &str) -> usize {
    let lines = source.lines().map(str::trim);
    lines.filter(|l| !l.is_empty() && !l.starts_with("//") && l.chars().any(|c| !"{}()[];,".contains(c))).count()
}

#[test]
fn the_rule_of_the_readme_is_built_found_and_trained() {
    let case = Case::new();
    let own = Crate::of_the_readme(&case.path("my-delta"));
    assert!(written(&own.source()) <= 20, "{} lines", written(&own.source()));
    let library = own.build();

    // By its path, relative to where one is, as in the README. It is the delta rule, so it learns the same to the last bit.
    let delta = case.train("memory", "delta", "");
    let mine = case.train("memory", "mine", "--set update_rule.plugin=my-delta/target/release/libmy_delta.so");
    mine.assert_same(&delta);
    let rule = &plan(&case, "mine")["slots"][0]["update_rule"];
    assert_eq!(rule["name"], "my-delta");
    assert!(rule["origin"].as_str().unwrap().contains("libmy_delta.so"), "{rule}");

    // By its name, from a folder of the search path.
    let folder = library.parent().unwrap().display().to_string();
    case.train("memory", "named", &format!("--set update_rule.plugin=my-delta --plugin-path {folder}")).assert_same(&delta);
    let train = "train --recipe memory.toml --progress none --set update_rule.plugin=my-delta --run-dir";
    let output = case.command(&format!("{train} found")).env("FWP_PLUGIN_PATH", &folder).output().unwrap();
    assert!(output.status.success());
    assert_eq!(plan(&case, "found")["slots"][0]["update_rule"]["name"], "my-delta");
    let shown = case.ok(&format!("plugins show my-delta --plugin-path {folder}"));
    assert!(shown.contains("Eq. 20-25") && shown.contains("beta"), "{shown}");

    // Without one of these it is not found, and nothing is left of the attempt.
    let said = case.fails(&format!("{train} lost"), 4);
    assert!(said.contains("no update-rule `my-delta`") && said.contains("did you mean `delta`?"), "{said}");
    assert!(!case.path("lost").exists());
}

#[test]
fn a_rule_rebuilt_to_the_same_program_goes_on_and_a_changed_one_does_not() {
    let case = Case::new();
    let own = Crate::of_the_readme(&case.path("my-delta"));
    let library = own.build();
    let by_path = format!("--set update_rule.plugin={}", library.display());
    let whole = case.train("memory", "whole", &by_path);
    let first = std::fs::read(&library).unwrap();
    case.train("memory", "out", &format!("--steps 10 {by_path}"));

    // Other words and other lines, the same equation.
    let words = own.source().replace("impl UpdateRule", "// A comment.\n\n// Another one.\nimpl UpdateRule");
    let words = words.replace("/// W_t", "/// Said otherwise: W_t");
    assert_ne!(words, own.source());
    own.write_source(&words);
    own.build();
    assert_ne!(std::fs::read(&library).unwrap(), first, "it was built anew");
    case.train("memory", "out", &format!("--steps 20 {by_path}"));

    // Another equation.
    let equation = own.source().replace("outer(v - w", "outer(2.0 * v - w");
    assert_ne!(equation, own.source());
    own.write_source(&equation);
    own.build();
    let train = format!("train --recipe memory.toml --run-dir out --progress none {by_path}");
    let said = case.fails(&train, 4);
    assert!(said.contains("another program for update-rule `my-delta`") && said.contains("--keep-programs"), "{said}");
    // The run keeps what it began with, where the user says so.
    case.train("memory", "out", &format!("--keep-programs {by_path}")).assert_same(&whole);
}

#[test]
fn a_rule_that_fails_while_describing_itself_ends_in_a_message() {
    let case = Case::new();
    let hostile = fixture("hostile");
    for (mode, words) in [
        ("panic-str", "a panic with a plain text"),
        ("abort", "SIGABRT"),
        ("segfault", "SIGSEGV"),
        ("loop", "did not answer within 2 s"),
    ] {
        let start = Instant::now();
        let mut command = case.command("train --recipe memory.toml --run-dir out");
        command.args(["--set", &format!("update_rule.plugin={}", hostile.display())]);
        command.args(["--set", &format!("update_rule.mode={mode}")]);
        let output = command.env("FWP_PLUGIN_TIMEOUT", "2").output().unwrap();
        let said = fwp_tests::said(&output);
        assert_eq!(output.status.code(), Some(4), "{mode}: {said}");
        assert!(said.contains("error: update-rule `hostile`") && said.contains(words), "{mode}: {said}");
        assert!(said.contains("  remedy: ") && !said.contains("backtrace"), "{mode}: {said}");
        assert!(start.elapsed() < Duration::from_secs(20), "{mode}: {:?}", start.elapsed());
        assert!(!case.path("out").exists(), "{mode}: a folder is left behind");
    }
}
