//! The recipes of the zoo, and what is refused in a recipe.

use std::path::{Path, PathBuf};

use fwp_test_support::repository;
use fwp_tests::run::Run;
use fwp_tests::{Case, MEMORY, folders, said, skipped};

/// Every folder of the zoo; each must hold a recipe.
fn zoo() -> Vec<PathBuf> {
    let found = folders(&repository().join("zoo"));
    assert!(found.len() >= 4, "{found:?}");
    found
}

fn name(recipe: &Path) -> &str {
    recipe.file_name().and_then(|n| n.to_str()).expect("a name")
}

fn table(text: &str) -> toml::Table {
    text.parse().expect("TOML")
}

/// What a recipe needs from the command line: data, and little of it; and a warm-up that fits into two steps.
fn needs(recipe: &toml::Table) -> (&'static str, String) {
    let (data, sizes) = match recipe["task"]["name"].as_str() {
        Some("text") => (" --data text.txt", ""),
        Some("mqar") => ("", " --set train.batch_size=2 --set task.train=32x2 --set task.eval=32x2:2"),
        _ => ("", " --set train.batch_size=2 --set task.eval_sequences=2"),
    };
    let mut sizes = sizes.to_string();
    if recipe["train"].get("schedule").is_some_and(|s| s.get("warmup").is_some()) {
        sizes += " --set train.schedule.warmup=1";
    }
    (data, sizes)
}

#[test]
fn every_recipe_of_the_zoo_trains() {
    let case = Case::new();
    for folder in zoo() {
        let text = std::fs::read_to_string(folder.join("recipe.toml")).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let recipe = table(&text);
        let run = format!("runs/{}", name(&folder));
        let (path, (data, sizes)) = (folder.display(), needs(&recipe));
        case.ok(&format!("recipe check {path}{data}"));
        let output = case.run(&format!("train --recipe {path} --steps 2 --run-dir {run} --progress plain{data}{sizes}"));
        let said = said(&output);
        assert!(output.status.success(), "{path}: {said}");
        let run = Run::at(&case.path(&run));
        for metric in ["train/loss", "train/lr", "train/grad_norm", "eval/loss"] {
            let value = run.metric(metric)[&2];
            assert!(value.is_finite(), "{path}: {metric} is {value}");
        }
        assert_eq!(run.checkpoints(), [2], "{path}");
        // What it must reach is printed beside what was measured.
        if let Some(expect) = recipe.get("expect").and_then(toml::Value::as_table) {
            let expected = said.lines().find(|l| l.starts_with("result") && l.contains("measured")).unwrap_or_default();
            let metric = expect["metric"].as_str().expect("a metric");
            assert!(expected.contains(&format!("{metric} measured")), "{path}: {said}");
            let verdict = match (expect.contains_key("at_least"), expect.contains_key("at_most"), metric.ends_with("accuracy")) {
                (false, false, _) => ": not judged",
                (true, false, false) | (false, true, true) => ": as expected",
                _ => ": not as expected",
            };
            // An accuracy on two sequences may be right by luck.
            assert!(expected.ends_with(verdict) || metric != "eval/loss", "two steps learn nothing: {path}: {said}");
            if let Some(published) = expect.get("published") {
                assert!(expected.contains(&format!("published {published}")), "{path}: {expected}");
            }
        }
        assert!(recipe["title"].is_str() && recipe["cite"].is_str(), "{path} has no title or source");
        let readme = std::fs::read_to_string(folder.join("README.md")).unwrap_or_else(|e| panic!("{path}: {e}"));
        for section in ["## Run", "## Expected", "## Known deviations"] {
            assert!(readme.contains(section), "{path}: README.md lacks {section}");
        }
    }
}

#[test]
fn the_text_recipe_reads_a_real_text() {
    let Some(data) = std::env::var_os("FWP_TEST_TEXT").map(std::path::PathBuf::from) else {
        return skipped("FWP_TEST_TEXT does not name the text that the published numbers are of");
    };
    let case = Case::new();
    let report = case.ok(&format!("recipe check {}/zoo/deltanet-text --json --data {}", repository().display(), data.display()));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["trained_parameters"], 681_472);
}

/// What is printed is a recipe that could be trained, as far as its keys go.
#[test]
fn a_recipe_with_a_key_that_no_part_has_is_not_shown() {
    let case = Case::new();
    for (setting, near) in [("feature_map.mu=2", "`nu`"), ("slow_net.keydim=3", "`key_dim`"), ("update_rule.epss=1e-6", "`eps`")]
    {
        let said = case.fails(&format!("recipe show memory.toml --set {setting}"), 3);
        let key = setting.split('=').next().unwrap_or_default();
        assert!(said.contains(&format!("{key}: unknown key")) && said.contains(near), "{said}");
    }
    // A part that is not there cannot be asked; what is known is shown.
    let output = case.run("recipe show memory.toml --set update_rule.plugin=of-tomorrow --set update_rule.key=1");
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("note: the keys of [update_rule] are not checked"), "{}", said(&output));
}

/// A recipe with one mistake, and what must be said of it.
struct Mistake {
    from: &'static str,
    to: &'static str,
    code: i32,
    says: &'static [&'static str],
}

const MISTAKES: &[Mistake] = &[
    // Unknown keys, of the host, of a task and of plugins.
    Mistake { from: "batch_size = 4", to: "batchsize = 4", code: 3, says: &["batchsize", "`batch_size`"] },
    Mistake { from: "length = 6", to: "lenght = 6", code: 3, says: &["lenght", "`length`"] },
    Mistake { from: "nu = 1", to: "mu = 1", code: 3, says: &["feature_map.mu", "`nu`"] },
    Mistake { from: "key_dim = 4", to: "keydim = 4", code: 3, says: &["slow_net.keydim", "`key_dim`"] },
    Mistake { from: "[monitor]", to: "[moniter]", code: 3, says: &["moniter", "`monitor`"] },
    Mistake { from: "lr = 1e-2", to: "lr = 1e-2, beta = 3", code: 3, says: &["beta", "`betas`"] },
    // Wrong types.
    Mistake { from: "steps = 30", to: "steps = \"30\"", code: 3, says: &["train.steps"] },
    Mistake { from: "keys = 4", to: "keys = 4.5", code: 3, says: &["task.keys"] },
    Mistake { from: "nu = 1", to: "nu = true", code: 3, says: &["feature_map.nu"] },
    // Out of range.
    Mistake { from: "steps = 30", to: "steps = 0", code: 3, says: &["train.steps"] },
    Mistake { from: "lr = 1e-2", to: "lr = -1e-2", code: 3, says: &["train.optimiser.lr"] },
    Mistake { from: "lr = 1e-2", to: "lr = nan", code: 3, says: &["train.optimiser.lr"] },
    Mistake { from: "nu = 1", to: "nu = 0", code: 3, says: &["feature_map.nu"] },
    Mistake { from: "nu = 1", to: "nu = 8", code: 3, says: &["feature_map.nu", "1 to 7"] },
    Mistake { from: "keys = 4", to: "keys = 0", code: 3, says: &["task.keys"] },
    Mistake { from: "\"sum\"", to: "\"some\"", code: 3, says: &["normalise", "\"sum\""] },
    // Missing.
    Mistake { from: "steps = 30\n", to: "", code: 3, says: &["memory.toml", "train.steps"] },
    Mistake { from: "plugin = \"delta\"\n", to: "", code: 3, says: &["memory.toml", "update_rule", "plugin"] },
    // Not TOML.
    Mistake { from: "keys = 4", to: "keys = ", code: 3, says: &[] },
    // Names of things that are not there.
    Mistake { from: "\"delta\"", to: "\"dellta\"", code: 4, says: &["no update-rule `dellta`", "`delta`"] },
    Mistake { from: "\"dpfp\"", to: "\"dpf\"", code: 4, says: &["no feature-map `dpf`", "`dpfp`"] },
    Mistake { from: "\"associative-update\"", to: "\"associative-updat\"", code: 3, says: &["`associative-update`"] },
    Mistake { from: "\"adam\"", to: "\"adan\"", code: 3, says: &["adam"] },
    // A library by its path.
    Mistake { from: "\"delta\"", to: "\"./libmine.so\"", code: 3, says: &["path"] },
];

#[test]
fn mistakes_are_refused_with_place_and_nearest_name_and_leave_nothing_behind() {
    let case = Case::new();
    for Mistake { from, to, code, says } in MISTAKES {
        assert_eq!(MEMORY.matches(from).count(), 1, "{from} stands once in the recipe");
        case.write("memory.toml", &MEMORY.replace(from, to));
        for command in ["train --recipe memory.toml --run-dir out", "train --recipe memory.toml", "recipe check memory.toml"] {
            let said = case.fails(command, *code);
            let place = format!("`{from}` -> `{to}`: {command}: {said}");
            assert!(said.contains("error: ") && said.contains("  cause: ") && said.contains("  remedy: "), "{place}");
            says.iter().for_each(|words| assert!(said.contains(words), "{words}: {place}"));
            if !to.is_empty() {
                let line = 1 + MEMORY[..MEMORY.find(from).unwrap()].matches('\n').count();
                assert!(said.contains(&format!("memory.toml:{line}")), "line {line}: {place}");
            }
            assert!(!case.path("out").exists() && !case.path("runs").exists(), "a folder is left behind: {place}");
        }
    }
}

#[test]
fn mistakes_on_the_command_line_are_refused_alike() {
    let case = Case::new();
    for (change, code, says) in [
        ("train.stepps=3", 3, "`steps`"),
        ("train.steps=few", 3, "train.steps"),
        ("feature_map.mu=1", 3, "`nu`"),
        ("update_rule.plugin=dellta", 4, "`delta`"),
        ("update_rule.plugin=/nowhere/libmine.so", 4, "/nowhere/libmine.so"),
        ("feature_map.nu=8", 3, "1 to 7"),
        ("train.device=tpu", 3, "tpu"),
        ("train.exec=scna", 3, "`scan`"),
        ("train.schedule.warmup=31", 3, "warm-up"),
    ] {
        let said = case.fails(&format!("train --recipe memory.toml --run-dir out --set {change}"), code);
        assert!(said.contains(says), "{change}: {said}");
        assert!(!case.path("out").exists(), "{change}: a folder is left behind");
    }
    for wrong in ["--steps x", "--seed -1", "--resume", "--sed 1", "--seed 1 --seeds 1,2"] {
        let output = case.run(&format!("train --recipe memory.toml --run-dir out {wrong}"));
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", said(&output));
        assert!(!case.path("out").exists(), "{wrong}");
    }
    // Data that is not there, not given, or no text.
    let train = "train --recipe language.toml --run-dir out";
    assert!(case.fails(train, 3).contains("--data"));
    assert!(case.fails(&format!("{train} --data nothing.txt"), 3).contains("nothing.txt"));
    case.write("short.txt", "ab");
    assert!(case.fails(&format!("{train} --data short.txt"), 3).contains("short.txt"));
    std::fs::write(case.path("binary.txt"), [0xff_u8; 4000]).unwrap();
    assert!(case.fails(&format!("{train} --data binary.txt"), 3).contains("byte"));
    assert!(!case.path("out").exists());
    // A recipe reads data from its own folder only.
    let outside = repository().join("README.md");
    case.write("sly.toml", &fwp_tests::LANGUAGE.replace("name = \"text\"", &format!("name = \"text\"\npath = {outside:?}")));
    let line = 2 + fwp_tests::LANGUAGE.lines().position(|l| l == "name = \"text\"").unwrap();
    let said = case.fails("train --recipe sly.toml --run-dir out", 3);
    assert!(said.contains(&format!("sly.toml:{line}:")) && said.contains("--data"), "{said}");
    assert!(case.fails("train --recipe nothing.toml --run-dir out", 3).contains("nothing.toml"));
}

#[test]
fn a_layer_that_the_net_lacks_is_refused_with_place() {
    let case = Case::new();
    let rule = "[update_rule]\nplugin = \"delta\"\n";
    let rules = "[update_rule.a]\nplugin = \"delta\"\n[update_rule.b]\nplugin = \"additive\"\n";
    let fails = |recipe: &str, at: &str, says: &[&str]| {
        case.write("layers.toml", recipe);
        let data = if recipe.contains("name = \"text\"") { " --data text.txt" } else { "" };
        let said = case.fails(&format!("recipe check layers.toml{data}"), 3);
        let line = 1 + recipe[..recipe.find(at).expect("a place in the recipe")].matches('\n').count();
        assert!(said.contains(&format!("layers.toml:{line}:")), "line {line}: {said}");
        says.iter().for_each(|words| assert!(said.contains(words), "{words}: {said}"));
    };
    let language = fwp_tests::LANGUAGE.replace("layers = 1", "layers = 2").replace(rule, &format!("{rules}layers = LISTED\n"));
    // The first that is missing, with the number that there is.
    let says = ["update_rule.b.layers", "no layer 2", "`transformer` has 2 layers", "below 2"];
    fails(&language.replace("LISTED", "[1, 2, 9]"), "layers = [1, 2, 9]", &says);
    // A rule for all other layers, of which none is left.
    fails(&language.replace("LISTED", "[0, 1]"), "[update_rule.a]", &["update_rule.a: no layer is left"]);
    // A net without blocks has one layer.
    let memory = MEMORY.replace(rule, &rules.replace("\n[update_rule.b]", "\nlayers = [0]\n[update_rule.b]"));
    let memory = memory.replace("\"additive\"\n", "\"additive\"\nlayers = [3]\n");
    fails(&memory, "layers = [3]", &["no layer 3", "`retrieval` has 1 layer"]);
    // All of them are there.
    case.write("layers.toml", &language.replace("LISTED", "[1]"));
    case.ok("recipe check layers.toml --data text.txt");
}
