//! What programs read: one JSON document on stdout, and exit codes.

use fwp_test_support::repository;
use fwp_tests::{Case, documents, folders};
use serde_json::Value;

fn json(case: &Case, arguments: &str) -> Value {
    let text = case.ok(arguments);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments} prints no single JSON document: {e}: {text}"))
}

#[test]
fn a_recipe_is_shown_as_a_recipe() {
    let case = Case::new();
    for folder in folders(&repository().join("zoo")) {
        let path = folder.display();
        let shown = case.ok(&format!("recipe show {path} --set train.seed=77"));
        let shown: toml::Table = shown.parse().unwrap_or_else(|e| panic!("{path}: {e}: {shown}"));
        let text = std::fs::read_to_string(folder.join("recipe.toml")).unwrap();
        let written: toml::Table = text.parse().unwrap();
        assert_eq!(shown["train"]["seed"].as_integer(), Some(77), "{path}");
        assert!(shown["checkpoint"]["every"].is_integer(), "{path}: defaults are shown");
        // Everything that the recipe says is shown as it says it.
        for section in ["slow_net", "update_rule", "task", "eval", "expect"] {
            for (key, value) in written.get(section).and_then(|s| s.as_table()).into_iter().flatten() {
                assert_eq!(shown[section].get(key), Some(value), "{path}: {section}.{key}");
            }
        }
    }
    let shown = case.ok("recipe show memory.toml --set train.seed=77");
    let line = |key: &str| shown.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("{key}: {shown}")).to_string();
    assert!(line("seed = 77").contains("--set"), "{shown}");
    assert!(line("steps = 30").contains("memory.toml:22"), "{shown}");
    assert!(line("clip = ").contains("default"), "{shown}");
}

#[test]
fn a_recipe_is_checked_as_json() {
    let case = Case::new();
    let report = json(&case, "recipe check memory.toml --json");
    let names: Vec<&str> = report["parts"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["retrieval", "dpfp", "delta"]);
    assert!(report["memory"]["total"].as_u64().unwrap() > 0 && report["parameters"].as_u64().unwrap() > 0);
    assert!(case.ok("recipe check memory.toml").contains("is in order"));
    let keys = case.ok("recipe keys");
    for key in ["optimiser.lr", "histograms_every", "eval_loss_at_most", "eval_windows"] {
        assert!(keys.contains(key), "{key}");
    }
}

#[test]
fn the_zoo_is_listed() {
    let case = Case::new();
    let list = json(&case, "zoo list --json");
    let listed: Vec<&str> = list.as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    let there = folders(&repository().join("zoo"));
    let there: Vec<&str> = there.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(listed, there);
    for entry in list.as_array().unwrap() {
        assert!(entry["error"].is_null() && entry["title"].is_string() && entry["cite"].is_string(), "{entry}");
        let expect = &entry["expect"];
        assert!(expect.is_null() || expect["metric"].as_str().is_some_and(|m| m.starts_with("eval/")), "{entry}");
    }
    let text = case.ok("zoo list");
    assert!(there.iter().all(|name| text.contains(name)), "{text}");
}

#[test]
fn every_part_is_listed_and_shown() {
    let case = Case::new();
    let list = json(&case, "plugins list --json");
    assert_eq!(list["refused"].as_array().map(Vec::len), Some(0), "{list}");
    let parts: Vec<(&str, &str)> =
        list["parts"].as_array().unwrap().iter().map(|p| (p["kind"].as_str().unwrap(), p["name"].as_str().unwrap())).collect();
    for part in [
        ("update-rule", "additive"),
        ("update-rule", "comba"),
        ("update-rule", "delta"),
        ("update-rule", "delta-lstm"),
        ("update-rule", "delta-rnn"),
        ("update-rule", "deltaproduct"),
        ("update-rule", "fwm"),
        ("update-rule", "fwp-1991"),
        ("update-rule", "gated-delta"),
        ("update-rule", "gated-sum"),
        ("update-rule", "gdn2"),
        ("update-rule", "gla"),
        ("update-rule", "gsa"),
        ("update-rule", "hebbian-decay"),
        ("update-rule", "hgrn2"),
        ("update-rule", "kda"),
        ("update-rule", "log-linear"),
        ("update-rule", "longhorn"),
        ("update-rule", "mamba2"),
        ("update-rule", "mesa"),
        ("update-rule", "mlstm"),
        ("update-rule", "oja"),
        ("update-rule", "retnet"),
        ("update-rule", "rwkv6"),
        ("update-rule", "rwkv7"),
        ("update-rule", "srwm"),
        ("update-rule", "titans"),
        ("update-rule", "ttt-linear"),
        ("update-rule", "ttt-mlp"),
        ("feature-map", "identity"),
        ("feature-map", "elu+1"),
        ("feature-map", "dpfp"),
        ("feature-map", "softmax"),
        ("feature-map", "silu"),
        ("feature-map", "tanh"),
        ("feature-map", "relu"),
        ("feature-map", "taylor2"),
        ("feature-map", "rebased"),
        ("feature-map", "favor+"),
        ("feature-map", "rfa"),
        ("feature-map", "hedgehog"),
        ("feature-map", "t2r"),
        ("slow-net", "retrieval"),
        ("slow-net", "transformer"),
    ] {
        assert!(parts.contains(&part), "{part:?} in {parts:?}");
    }
    for (kind, name) in parts {
        // Before anything else: which part, with a document for programs and a text for people.
        let shown = json(&case, &format!("plugins show {name} --kind {kind} --json"));
        assert_eq!((shown["kind"].as_str(), shown["name"].as_str()), (Some(kind), Some(name)), "{shown}");
        for key in ["doc", "citation", "program"] {
            assert!(shown[key].as_str().is_some_and(|t| !t.is_empty()), "{name}: {key}: {shown}");
        }
    }
    let text = case.ok("plugins show delta");
    for words in ["Signature", "beta", "Configuration", "Schlag", "Eq. 20-25", "sigmoid(beta)", "output = w' q"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_rule_is_shown_with_what_was_proved_of_it() {
    let case = Case::new();
    let text = case.ok("plugins show delta");
    for words in ["w: identity plus rank 1, from the right", "w' = w + (u + w p) ⊗ k", "chunkwise  yes: w in chunks"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    for name in ["delta", "additive --set attention_normalisation=true", "dpfp", "transformer"] {
        let text = case.ok(&format!("plugins show {name}"));
        // The equations of a program stay whole; everything else fits into a terminal.
        for line in text.lines().take_while(|l| !l.starts_with("Program")) {
            let path = line.starts_with("library");
            assert!(path || line.chars().count() <= 80, "{name}: {line}");
        }
    }
    let found = &json(&case, "plugins show delta --json")["analysis"];
    assert_eq!(found["strata"][0]["class"], "identity plus rank 1, from the right");
    assert_eq!(found["strata"][0]["formula"][0], "w' = w + (u + w p) ⊗ k");
    assert_eq!(found["executors"]["chunkwise"]["applies"], true);
    assert!(json(&case, "plugins show dpfp --json")["analysis"].is_null());
}

#[test]
fn the_doctor_says_what_is_there() {
    let case = Case::installed();
    let report = json(&case, "doctor --json");
    assert_eq!(report["ok"], true, "{report}");
    assert!(report["engine"]["libtorch"].as_str().is_some_and(|v| v.starts_with("2.11")), "{report}");
    let state = |report: &Value, name: &str| -> String {
        let findings = report["findings"].as_array().unwrap().iter();
        let found = findings.filter(|f| f["name"] == name).map(|f| f["state"].as_str().unwrap().to_string());
        found.collect::<Vec<_>>().join(",")
    };
    assert_eq!((state(&report, "engine"), state(&report, "plugins")), ("ok".into(), "ok".into()), "{report}");

    std::fs::remove_file(case.path("bin/fwp-engine")).unwrap();
    let output = case.run("doctor --json");
    assert_eq!(output.status.code(), Some(5));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a document all the same");
    assert_eq!((&report["ok"], state(&report, "engine")), (&Value::Bool(false), "missing".into()), "{report}");
    // What needs no engine works, what needs it says so.
    case.ok("recipe check memory.toml");
    let said = case.fails("train --recipe memory.toml --run-dir out", 5);
    assert!(said.contains("the engine") && said.contains("remedy: "), "{said}");
    assert!(!case.path("out").exists());
}

#[test]
fn a_libtorch_that_is_not_there_is_a_matter_of_the_environment() {
    let case = Case::installed();
    // The engine as it was built looks in the folder of its build, too: without that there would be nothing to see.
    let output = case.command("doctor --json").env("LIBTORCH", case.path("nothing")).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ok = report["ok"] == true;
    assert_eq!(output.status.code(), Some(if ok { 0 } else { 5 }), "{report}");
    let output = case.command("train --recipe memory.toml --run-dir out").env("LIBTORCH", case.path("nothing")).output().unwrap();
    assert_eq!(output.status.code(), Some(if ok { 0 } else { 5 }), "{}", fwp_tests::said(&output));
}

#[test]
fn exit_codes_are_documented_where_people_look() {
    let case = Case::new();
    let help = case.ok("--help");
    let readme = documents::text(&repository().join("README.md"));
    for code in 0..=8 {
        assert!(help.lines().any(|l| l.starts_with(&format!("  {code}  "))), "{code}: {help}");
        assert!(readme.lines().any(|l| l.starts_with(&format!("| {code} | "))), "{code}");
    }
    for (arguments, code) in [
        ("--version", 0),
        ("nonsense", 2),
        ("train --nonsense", 2),
        ("recipe show nothing.toml", 3),
        ("plugins show nothing", 4),
        ("zoo list --zoo nothing", 5),
    ] {
        assert_eq!(case.run(arguments).status.code(), Some(code), "{arguments}");
    }
}
