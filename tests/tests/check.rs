//! The conformance of rules and executors, and the runner that gives every case a process.

use std::time::{Duration, Instant};

use fwp_test_support::{self as support, script};
use fwp_tests::{Case, process, said};
use serde_json::Value;

/// The document of a check, with its exit code.
fn check(case: &Case, arguments: &str) -> (Value, i32) {
    let output = case.run(&format!("check {arguments} --json"));
    let text = String::from_utf8_lossy(&output.stdout);
    let document = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments}: {e}: {text}{}", said(&output)));
    (document, output.status.code().expect("an exit code"))
}

fn results(document: &Value) -> Vec<(&str, &str)> {
    let cases = document["cases"].as_array().unwrap().iter();
    cases.map(|c| (c["name"].as_str().unwrap(), c["result"].as_str().unwrap())).collect()
}

/// Asserts that this case of a scan is the only one, and passed; without a compiler it is skipped.
fn passed_where_there_is_a_compiler(document: &Value, code: i32, name: &str) {
    let found = results(document);
    assert!(found == [(name, "passed")] || found == [(name, "skipped")], "{document}");
    assert!(code == 0 || found[0].1 == "skipped", "{document}");
}

#[test]
fn the_delta_rule_conforms() {
    let case = Case::new();
    let (document, code) = check(&case, "delta --quick");
    assert_eq!((code, &document["ok"], &document["seed"]), (0, &Value::Bool(true), &Value::from(1)), "{document}");
    let results = results(&document);
    for name in ["rule.restated", "reference.steps", "reference.gradients", "chunkwise.agreement.primes", "chunkwise.carry"] {
        assert!(results.contains(&(name, "passed")), "{name}: {results:?}");
    }
    for name in ["scan.agreement.equal", "scan.nan", "scan.threads", "scan.mode"] {
        // Without a compiler there is no scan; then it says so and nothing fails.
        let found = results.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{name}: {results:?}"));
        assert!(matches!(found.1, "passed" | "skipped"), "{found:?}");
    }
    for c in document["cases"].as_array().unwrap() {
        assert!(c["says"].as_str().is_some_and(|s| s.ends_with('.')), "{c}");
        assert!(c["seconds"].as_f64().unwrap() > 0.0 && c["message"].is_string(), "{c}");
    }
}

#[test]
fn a_rule_that_wants_values_as_long_as_keys_gets_them() {
    let case = Case::new();
    // This case is one of the sizes that differ.
    let (document, code) = check(&case, "ttt-linear --quick --case reference.steps");
    assert_eq!((code, results(&document)), (0, vec![("reference.steps", "passed")]), "{document}");
}

#[test]
fn a_rule_that_divides_by_what_cancels_is_judged_by_what_it_amplifies() {
    let case = Case::new();
    // Keys of length one and either sign: their sum in the denominator may be as good as nothing.
    let (document, code) = check(&case, "gated-sum --set attention_normalisation=true --quick --case scan.agreement.primes");
    passed_where_there_is_a_compiler(&document, code, "scan.agreement.primes");
}

#[test]
fn the_gradient_of_an_initial_vector_keeps_its_digits_over_a_long_walk() {
    let case = Case::new();
    // The kernel computes states back from later ones, and every step back adds a rounding.
    let (document, code) = check(&case, "delta-rnn --case scan.agreement.equal");
    passed_where_there_is_a_compiler(&document, code, "scan.agreement.equal");
}

#[test]
fn states_that_grow_keep_the_digits_of_their_gradients() {
    let case = Case::new();
    // Keys of either map are longer than a step of the delta rule bears: its states grow with every write.
    for map in ["elu+1", "rebased"] {
        let (document, code) = check(&case, &format!("delta --feature-map {map} --quick --case scan.agreement.equal"));
        passed_where_there_is_a_compiler(&document, code, "scan.agreement.equal");
    }
    // What is not a number in one sequence of its own is not held against another.
    let (document, code) = check(&case, "delta --feature-map elu+1 --quick --case scan.nan");
    passed_where_there_is_a_compiler(&document, code, "scan.nan");
}

#[test]
fn a_rule_that_hides_what_is_not_a_number_does_not_conform() {
    let case = Case::new();
    let rule = support::fixture("hides_nan");
    let rule = rule.display();
    let (document, code) = check(&case, &format!("{rule} --quick --exec reference"));
    assert_eq!((code, &document["ok"], &document["rule"]), (8, &Value::Bool(false), &Value::from("hides-nan")), "{document}");
    let bad: Vec<_> = results(&document).into_iter().filter(|(_, r)| !matches!(*r, "passed" | "skipped")).collect();
    assert_eq!(bad, [("reference.nan", "failed")]);
    // One case alone, as the message at the end says.
    let output = case.run(&format!("check {rule} --quick --case reference.nan --seed 7"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(8), "{text}");
    for words in ["failed", "never comes out", "1 failed (seed 7)", "--case reference.nan --seed 7 --quick\n"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let (document, code) = check(&case, &format!("{rule} --quick --exec reference --case reference.steps"));
    assert_eq!((code, results(&document)), (0, vec![("reference.steps", "passed")]));
    // Skipped is not passed: a check of nothing is no success.
    let (document, code) = check(&case, &format!("{rule} --quick --case rule.restated"));
    assert_eq!((code, results(&document)), (8, vec![("rule.restated", "skipped")]));
}

#[test]
fn an_executor_that_is_asked_for_and_serves_nothing_is_no_success() {
    let case = Case::new();
    // The rule's second statement passes, and says nothing of the executor.
    let (document, code) = check(&case, "fwm --quick --exec chunkwise");
    assert!(results(&document).contains(&("rule.restated", "passed")), "{document}");
    assert_eq!((code, &document["ok"], &document["unchecked"][0]["executor"]), (8, &false.into(), &"chunkwise".into()));
    let why = document["unchecked"][0]["why"].as_str().unwrap();
    assert!(why.contains("does not apply") && why.contains("plugins/update-rules/fwm/src/lib.rs:"), "{why}");
    // Others that are asked for beside it do not stand in for it.
    let case_only = "fwm --quick --exec reference,chunkwise --case reference.causality --case chunkwise.causality";
    let output = case.run(&format!("check {case_only}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(8), "{text}");
    assert!(text.contains("\nnot checked: chunkwise: chunkwise does not apply"), "{text}");
    // Not asked for by name, it may be left out; and one that serves is enough.
    for passes in [
        "fwm --quick --case reference.causality --case chunkwise.causality",
        "delta --quick --exec chunkwise --case chunkwise.causality",
    ] {
        let (document, code) = check(&case, passes);
        assert_eq!((code, &document["unchecked"]), (0, &Value::Array(Vec::new())), "{document}");
    }
    // An executor without a case among those that --case names.
    let (document, code) = check(&case, "delta --quick --exec chunkwise --case rule.restated");
    assert_eq!((code, results(&document)), (8, vec![("rule.restated", "passed")]), "{document}");
    assert_eq!(document["unchecked"][0]["why"], "none of its cases was to be run");
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let case = Case::new();
    for (arguments, code, words) in [
        ("check dellta", 4, "did you mean `delta`?"),
        ("check delta --case nothing", 2, "no case `nothing`"),
        ("check delta --exec quick", 2, "chunkwise"),
        ("check delta --set colour=1", 4, "unknown key `colour`"),
        ("check elu+1", 4, "elu+1"),
    ] {
        let said = case.fails(arguments, code);
        assert!(said.contains(words), "{arguments}: {words}: {said}");
    }
    let list: Value = serde_json::from_str(&case.ok("check delta --quick --list --json")).unwrap();
    assert!(list.as_array().unwrap().iter().any(|c| c["name"] == "reference.causality"), "{list}");
}

/// An engine that has one case for each way to end.
const ENGINE: &str = r#"#!/bin/sh
case "$*" in
*"--case good"*) echo '{"result":"passed","message":"fine"}' ;;
*"--case bad"*) echo '{"result":"failed","message":"wrong by 1"}' ;;
*"--case crash"*) kill -SEGV $$ ;;
*"--case loop"*) echo $$ > loop.pid; sleep 600 & wait ;;
*"--case panic"*) echo "thread 'main' panicked at a.rs:1:2:" >&2; echo "no such thing" >&2; exit 101 ;;
*"--case mute"*) exit 0 ;;
*"--case noise"*) head -c 3000000 /dev/zero >&2; echo '{"result":"passed","message":""}' ;;
*) echo CASES ;;
esac
"#;

/// A host whose engine is that script, with these cases.
fn with_engine(names: &[&str]) -> Case {
    let case = Case::installed();
    let cases: Vec<String> =
        names.iter().map(|n| format!(r#"{{"name":"{n}","executor":null,"says":"It holds.","seconds":60}}"#)).collect();
    let engine = case.path("bin/fwp-engine");
    script(&engine, &ENGINE.replace("CASES", &format!("'[{}]'", cases.join(","))));
    case
}

#[test]
fn every_way_to_end_is_told_apart_and_stops_no_other_case() {
    let case = with_engine(&["crash", "loop", "panic", "mute", "bad", "noise", "good"]);
    let start = Instant::now();
    let (document, code) = check(&case, "delta --timeout 2");
    assert!(start.elapsed() < Duration::from_secs(60), "the time limit holds");
    assert_eq!((code, &document["ok"]), (8, &Value::Bool(false)));
    let wanted = [
        ("crash", "crashed"),
        ("loop", "timed-out"),
        ("panic", "failed"),
        ("mute", "failed"),
        ("bad", "failed"),
        ("noise", "passed"),
        ("good", "passed"),
    ];
    assert_eq!(results(&document), wanted);
    let message = |i: usize| document["cases"][i]["message"].as_str().unwrap();
    assert!(message(0).contains("signal 11") && message(1).contains("2 s"), "{document}");
    assert!(message(2).contains("no such thing") && message(4) == "wrong by 1", "{document}");
    assert_eq!(document["counts"]["failed"], 3, "{document}");
    // Nothing of the case that never ends is left behind, not even what it started.
    let pid: u32 = std::fs::read_to_string(case.path("loop.pid")).unwrap().trim().parse().unwrap();
    let start = Instant::now();
    while !process::name(pid).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "process {pid} still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_check_without_cases_is_no_success() {
    let case = with_engine(&[]);
    let (document, code) = check(&case, "delta");
    assert_eq!((code, &document["ok"]), (8, &Value::Bool(false)));
    let output = case.run("check delta");
    assert!(String::from_utf8_lossy(&output.stdout).contains("no case ran"));
    let case = with_engine(&["good"]);
    assert_eq!(check(&case, "delta").1, 0);
}

#[test]
fn the_command_that_runs_a_case_again_says_all_that_decides_it() {
    let case = with_engine(&["bad", "good"]);
    let output = case.run("check delta --feature-map dpfp --set beta_scale=2 --set feature_map.nu=2 --timeout 50 --jobs 1");
    let text = String::from_utf8_lossy(&output.stdout);
    let again = text.lines().find_map(|l| l.strip_prefix("again: fwp-host ")).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(again, "check delta --feature-map dpfp --set beta_scale=2 --set feature_map.nu=2 --case bad --seed 1");
    assert_eq!(case.run(again).status.code(), Some(8));
}
