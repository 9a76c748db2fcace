//! The commands as a user sees them. A shell script stands for the engine: what it is told and how it ends is what counts here.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fwp_test_support::{fixture, lonely_host, plugin, plugins, script};
use serde_json::{Value, json};

const HOST: &str = env!("CARGO_BIN_EXE_fwp-host");

const RECIPE: &str = r#"
title = "A test"

[slow_net]
plugin = "retrieval"
key_dim = 4

[feature_map]
plugin = "dpfp"
nu = 1

[update_rule]
plugin = "twin-a"

[task]
name = "associative-update"
keys = 5

[train]
steps = 20

[expect]
metric = "eval/loss"
at_most = 0.3
"#;

/// Says what it was told, then does what `ENGINE_DOES` says.
const ENGINE: &str = r#"#!/bin/sh
echo "$@" >> "$ENGINE_LOG"
echo "OMP_WAIT_POLICY=$OMP_WAIT_POLICY GOMP_SPINCOUNT=$GOMP_SPINCOUNT" >> "$ENGINE_LOG"
echo "MALLOC_TRIM_THRESHOLD_=$MALLOC_TRIM_THRESHOLD_ MALLOC_TOP_PAD_=$MALLOC_TOP_PAD_" >> "$ENGINE_LOG"
echo "LD_LIBRARY_PATH=$LD_LIBRARY_PATH" >> "$ENGINE_LOG"
[ "$1" = apply ] && cp "$3" "$ENGINE_LOG.job" && cp "$(dirname "$3")"/*.fwp "$(dirname "$ENGINE_LOG")"
if [ "$1" = train ]; then
    echo '{"step": 10, "eval/loss": 0.25}' >> "$3/metrics.jsonl"
    echo '{"step": 20, "eval/loss": 0.5}' >> "$3/metrics.jsonl"
fi
eval "$ENGINE_DOES"
"#;

struct Case {
    folder: tempfile::TempDir,
    host: PathBuf,
}

impl Case {
    fn new() -> Case {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let host = lonely_host(Path::new(HOST), &root.join("bin"));
        let engine = root.join("engine.sh");
        script(&engine, ENGINE);
        std::fs::create_dir_all(root.join("torch/lib")).unwrap();
        std::fs::create_dir_all(root.join("nvidia/cu13/lib")).unwrap();
        std::fs::create_dir(root.join("plugins")).unwrap();
        for library in plugins(&["fwp-net-retrieval", "fwp-map-dpfp"]) {
            std::fs::copy(&library, root.join("plugins").join(library.file_name().unwrap())).unwrap();
        }
        std::fs::copy(fixture("twin_a"), root.join("plugins/rule.so")).unwrap();
        std::fs::create_dir(root.join("mine")).unwrap();
        std::fs::write(root.join("mine/recipe.toml"), RECIPE).unwrap();
        Case { folder, host }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.host);
        command
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .env("FWP_PLUGIN_PATH", self.path("plugins"))
            .env("FWP_ENGINE", self.path("engine.sh"))
            .env("ENGINE_LOG", self.path("log"))
            .env("ENGINE_DOES", "exit 0")
            .env("LIBTORCH", self.path("torch"))
            .env("HOME", self.folder.path())
            .env_remove("XDG_DATA_HOME")
            .env_remove("OMP_WAIT_POLICY")
            .env_remove("GOMP_SPINCOUNT")
            .env_remove("MALLOC_TRIM_THRESHOLD_")
            .env_remove("MALLOC_MMAP_THRESHOLD_")
            .env_remove("MALLOC_TOP_PAD_")
            .env_remove("FWP_ZOO");
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; gives stdout.
    fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must fail with a code; gives stderr.
    fn fails(&self, arguments: &str, code: i32) -> String {
        let output = self.run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {said}");
        assert!(said.contains("error: ") && said.contains("  cause: "), "{arguments}: {said}");
        said
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn plan(&self, run: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(run).join("plan.json")).unwrap()).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_answers_at_once_and_every_command_has_an_example() {
    let fastest = (0..5)
        .map(|_| {
            let start = Instant::now();
            assert!(Command::new(HOST).arg("--help").output().unwrap().status.success());
            start.elapsed()
        })
        .min()
        .unwrap();
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    let help = |arguments: &str| text(&Command::new(HOST).args(arguments.split_whitespace()).output().unwrap().stdout);
    let main = help("--help");
    assert!(main.contains("Exit codes:") && main.contains("FWP_PLUGIN_PATH"), "{main}");
    assert!(!main.contains("__describe"), "{main}");
    let commands =
        "train,eval,apply,plugins list,plugins show,recipe show,recipe check,recipe keys,zoo list,zoo run,zoo results,doctor";
    for command in commands.split(',') {
        assert!(help(&format!("{command} --help")).contains("Example"), "{command}");
    }
}

#[test]
fn the_command_line_links_no_libtorch() {
    let output = Command::new("readelf").args(["-d", HOST]).output().unwrap();
    let needed = text(&output.stdout);
    assert!(needed.contains("libc.so"), "{needed}");
    assert!(!needed.contains("torch") && !needed.contains("libc10") && !needed.contains("cuda"), "{needed}");
}

#[test]
fn a_reader_that_closes_early_is_no_failure() {
    for arguments in [vec!["--help"], vec!["recipe", "keys"], vec!["plugins", "list", "--json"]] {
        let mut child = Command::new(HOST).args(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    }
}

#[test]
fn a_recipe_is_shown_with_the_source_of_every_value() {
    let case = Case::new();
    let shown = case.ok("recipe show mine --set train.steps=30");
    for line in ["steps = 30", "--set", "recipe.toml:6", "# default"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(case.ok("recipe keys").contains("optimiser.lr"));
}

#[test]
fn a_recipe_is_checked_with_its_plugins() {
    let case = Case::new();
    let report: Value = serde_json::from_str(&case.ok("recipe check mine --json")).unwrap();
    assert_eq!(report["parts"].as_array().unwrap().len(), 3);
    assert!(report["parameters"].as_u64().unwrap() > 100 && report["memory"]["total"].as_u64().unwrap() > 1000, "{report}");
    assert!(case.ok("recipe check mine").contains("is in order"));

    // What only a plugin can know is placed in the recipe, too.
    std::fs::write(case.path("mine/recipe.toml"), RECIPE.replace("nu = 1", "nuu = 1")).unwrap();
    let said = case.fails("recipe check mine", 3);
    assert!(
        said.contains("mine/recipe.toml:10:1: feature_map.nuu: unknown key") && said.contains("did you mean `nu`?"),
        "{said}"
    );
    std::fs::write(case.path("mine/recipe.toml"), RECIPE.replace("nu = 1", "nu = \"x\"")).unwrap();
    let said = case.fails("recipe check mine", 3);
    assert!(said.contains("recipe.toml:10:1: feature_map.nu: expected a whole number"), "{said}");
    std::fs::write(case.path("mine/recipe.toml"), RECIPE.replace("twin-a", "twin-x")).unwrap();
    let said = case.fails("recipe check mine", 4);
    assert!(said.contains("no update-rule `twin-x`") && said.contains("did you mean `twin-a`?"), "{said}");
    assert!(said.contains("recipe.toml:13"), "{said}");
}

#[test]
fn a_new_run_has_everything_that_training_needs() {
    let case = Case::new();
    let said = case.ok("train --recipe mine --run-dir out --steps 7 --seed 3 --progress none");
    assert!(said == "run        out\n", "{said}");
    let log = case.log();
    assert!(log.contains("train --run out --resume never --progress none"), "{log}");
    let (_, spins) = log.split_once("OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=").unwrap_or_else(|| panic!("{log}"));
    let spins: u32 = spins.lines().next().unwrap_or_default().parse().unwrap();
    // 200 microseconds of a processor whose pause takes between one and two hundred nanoseconds.
    assert!((1_000..200_000).contains(&spins), "{spins}");
    assert!(log.contains("MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_TOP_PAD_=16777216\n"), "{log}");
    let torch = case.path("torch/lib");
    assert!(log.contains(&format!("LD_LIBRARY_PATH={}:{}", torch.display(), case.path("nvidia/cu13/lib").display())), "{log}");

    let plan = case.plan("out");
    assert_eq!((&plan["train"]["steps"], &plan["train"]["seed"]), (&json!(7), &json!(3)));
    assert!(plan["task_fingerprint"].is_string());
    for part in [&plan["slow_net"], &plan["slots"][0]["feature_map"], &plan["slots"][0]["update_rule"]] {
        let bytes = std::fs::read(case.path("out").join(part["file"].as_str().unwrap())).unwrap();
        assert!(bytes.starts_with(b"FWPp"));
        assert!(part["origin"].as_str().unwrap().contains(".so (fwp-sdk 0.1.0, sha256 "), "{part}");
    }
    assert!(std::fs::read_to_string(case.path("out/recipe.toml")).unwrap().contains("seed = 3"));

    case.ok("train --recipe mine");
    assert_eq!(std::fs::read_dir(case.path("runs/mine")).unwrap().count(), 1);
}

#[test]
fn the_users_own_settings_of_threads_and_memory_stay() {
    let case = Case::new();
    let output =
        case.command("train --recipe mine --run-dir out").env("OMP_WAIT_POLICY", "active").env("MALLOC_TOP_PAD_", "0").output();
    assert!(output.unwrap().status.success());
    assert!(case.log().contains("OMP_WAIT_POLICY=active GOMP_SPINCOUNT=\n"));
    assert!(case.log().contains("MALLOC_TRIM_THRESHOLD_= MALLOC_TOP_PAD_=0\n"));
}

#[test]
fn the_engines_end_is_passed_on() {
    let case = Case::new();
    for (does, code, words) in [
        ("exit 6", 6, ""),
        ("exit 7", 7, ""),
        ("exit 127", 5, "cannot load libtorch"),
        ("kill -9 $$", 5, "out of memory"),
        ("kill -SEGV $$", 1, "the engine crashed"),
    ] {
        let output = case.command("train --recipe mine").env("ENGINE_DOES", does).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{does}: {said}");
        assert!(said.contains(words), "{does}: {said}");
    }
    let output = case.command("train --recipe mine").env_remove("FWP_ENGINE").output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output.stderr).contains("the engine, which does all computing, is not there"));
}

/// Starts a command whose engine notes signals, and waits until it runs.
fn start(case: &Case) -> Child {
    let does = r#"
        trap 'echo got-INT >> "$ENGINE_LOG"; sleep 0.3; exit 7' INT
        trap 'echo got-TERM >> "$ENGINE_LOG"; exit 7' TERM
        echo waiting >> "$ENGINE_LOG"
        while true; do sleep 0.05; done"#;
    let child = case.command("train --recipe mine --run-dir out").env("ENGINE_DOES", does).spawn().unwrap();
    let start = Instant::now();
    while !case.log().contains("waiting") {
        assert!(start.elapsed() < Duration::from_secs(20), "the engine does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

#[test]
fn signals_reach_the_engine_once_and_its_exit_code_comes_back() {
    for (signal, noted) in [("-INT", "got-INT"), ("-TERM", "got-TERM"), ("-HUP", "got-TERM")] {
        let case = Case::new();
        let mut child = start(&case);
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(7), "{signal}");
        assert_eq!(case.log().matches("got-").count(), 1, "{}", case.log());
        assert!(case.log().contains(noted), "{}", case.log());
    }
}

#[test]
fn the_same_command_goes_on_also_when_the_plugins_are_gone() {
    let case = Case::new();
    case.ok("train --recipe mine --run-dir out");
    let before = case.plan("out");
    case.ok("train --recipe mine --run-dir out");
    assert!(case.log().contains("train --run out --resume auto"), "{}", case.log());
    assert_eq!(case.plan("out"), before);

    std::fs::remove_dir_all(case.path("plugins")).unwrap();
    let output = case.run("train --resume out --steps 40");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("going on with the run's own programs"), "{said}");
    assert_eq!(case.plan("out")["train"]["steps"], json!(40));
    assert_eq!(case.plan("out")["slots"], before["slots"]);
    assert!(std::fs::read_to_string(case.path("out/recipe.toml")).unwrap().contains("steps = 40"));
    // Going on where there is nothing to go on with.
    let said = case.fails("train --resume mine", 3);
    assert!(said.contains("is no run"), "{said}");
    let said = case.fails("train --recipe mine --run-dir out --resume never", 4);
    assert!(said.contains("no slow-net `retrieval`"), "{said}");
}

#[test]
fn a_run_never_goes_on_as_another_one() {
    let case = Case::new();
    case.ok("train --recipe mine --run-dir out");
    for (change, named) in [
        ("task.keys=6", "[task]"),
        ("slow_net.key_dim=6", "[slow_net]"),
        ("feature_map.nu=2", "[feature_map]"),
        ("train.batch_size=3", "batch_size"),
        ("train.seed=9", "seed"),
    ] {
        let said = case.fails(&format!("train --recipe mine --run-dir out --set {change}"), 3);
        assert!(said.contains(named), "{change}: {said}");
    }
    // Another program by the same name and configuration.
    std::fs::copy(fixture("twin_again"), case.path("plugins/rule.so")).unwrap();
    let said = case.fails("train --recipe mine --run-dir out", 4);
    assert!(said.contains("another program for update-rule `twin-a`") && said.contains("--keep-programs"), "{said}");
    case.ok("train --recipe mine --run-dir out --keep-programs");
    // A program that was changed in the run's folder.
    let file = case.path("out/programs/update-rule-main.fwp");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let said = case.fails("train --recipe mine --run-dir out --keep-programs", 3);
    assert!(said.contains("has changed"), "{said}");
    let said = case.fails("train --recipe mine --run-dir out --resume never", 3);
    assert!(said.contains("not empty"), "{said}");
}

#[test]
fn several_seeds_are_compared() {
    let case = Case::new();
    let said = case.ok("train --recipe mine --run-dir all --seeds 1..3");
    for seed in 1..=3 {
        assert_eq!(case.plan(&format!("all/seed-{seed}"))["train"]["seed"], json!(seed));
    }
    let table: Vec<&str> = said.lines().rev().take(4).collect();
    assert!(table[3].starts_with("SEED") && table[3].contains("BEST eval/loss"), "{said}");
    assert!(table[0].starts_with("3") && table[0].contains("0.250000") && table[0].contains("yes"), "{said}");
    let output = case.command("train --recipe mine --run-dir more --seeds 1,2").env("ENGINE_DOES", "exit 7").output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert!(!case.path("more/seed-2").exists());
    case.fails("train --resume all/seed-1 --seeds 1,2", 2);
    assert_eq!(case.run("train --recipe mine --seeds 3..1").status.code(), Some(2));
    case.fails("train", 2);
}

#[test]
fn a_rule_by_its_path_is_trained_and_recipes_may_not_name_one() {
    let case = Case::new();
    std::fs::remove_file(case.path("plugins/rule.so")).unwrap();
    let rule = fixture("twin_b");
    case.ok(&format!("train --recipe mine --run-dir out --set update_rule.plugin={}", rule.display()));
    assert_eq!(case.plan("out")["slots"][0]["update_rule"]["name"], "twin-b");

    std::fs::copy(&rule, case.path("mine/rule.so")).unwrap();
    std::fs::write(case.path("mine/recipe.toml"), RECIPE.replace("twin-a", "./rule.so")).unwrap();
    let said = case.fails("train --recipe mine", 3);
    assert!(said.contains("may not open a library by its path"), "{said}");
    case.ok("train --recipe mine --run-dir trusted --allow-recipe-libraries");
    // A plugin beside a recipe is found only when the user says so.
    std::fs::rename(case.path("mine/rule.so"), case.path("mine/libfwp_rule.so")).unwrap();
    std::fs::write(case.path("mine/recipe.toml"), RECIPE.replace("twin-a", "twin-b")).unwrap();
    case.fails("train --recipe mine", 4);
    case.ok("train --recipe mine --run-dir beside --allow-recipe-libraries");
}

#[test]
fn eval_needs_the_run_only() {
    let case = Case::new();
    case.ok("train --recipe mine --run-dir out");
    std::fs::remove_dir_all(case.path("plugins")).unwrap();
    case.ok("eval --run out --checkpoint best --json");
    assert!(case.log().contains("eval --run out --checkpoint best --json"), "{}", case.log());
    case.fails("eval --run mine", 3);
    assert_eq!(case.run("eval --run out --checkpoint worst").status.code(), Some(2));
}

/// A safetensors file of float32 zeros.
fn tensors(path: &Path, shapes: &[(&str, &[usize])]) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in shapes {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert((*name).into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn apply_learns_the_sizes_from_the_file() {
    let case = Case::new();
    std::fs::copy(plugin("fwp-rule-delta"), case.path("plugins/delta.so")).unwrap();
    let shapes: [(&str, &[usize]); 4] = [("q", &[2, 7, 3, 5]), ("k", &[2, 7, 3, 5]), ("v", &[2, 7, 3, 4]), ("beta", &[2, 7, 3])];
    tensors(&case.path("in"), &shapes);
    case.ok("apply --rule delta --feature-map dpfp --set feature_map.nu=2 --dtype float64 --grad --signals effective --input in --output out");
    let job: Value = serde_json::from_slice(&std::fs::read(case.path("log.job")).unwrap()).unwrap();
    assert_eq!(
        (&job["dtype"], &job["grad"], &job["signals"], &job["device"]),
        (&json!("float64"), &json!(true), &json!("effective"), &json!("auto"))
    );
    assert!(job["input"].as_str().unwrap().ends_with("/in") && job["map"].is_string(), "{job}");
    assert!(std::fs::read(case.path("update-rule.fwp")).unwrap().starts_with(b"FWPp"));
    // The programs were in a folder that is gone again.
    assert!(!Path::new(job["rule"].as_str().unwrap()).exists());

    case.ok("apply --rule delta --input in --output out");
    let job: Value = serde_json::from_slice(&std::fs::read(case.path("log.job")).unwrap()).unwrap();
    assert_eq!((&job["map"], &job["dtype"], &job["grad"]), (&Value::Null, &json!("float32"), &json!(false)));

    let without = |name: &str| shapes.into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    tensors(&case.path("in"), &without("beta"));
    let said = case.fails("apply --rule delta --input in --output out", 3);
    assert!(said.contains("no tensor `beta`") && said.contains("[batch, time, 3]"), "{said}");
    tensors(&case.path("in"), &without("v"));
    let said = case.fails("apply --rule delta --input in --output out", 3);
    assert!(said.contains("--value-dim"), "{said}");
    tensors(&case.path("in"), &[("q", &[2, 7, 3, 5]), ("k", &[2, 7, 3, 5]), ("v", &[2, 7, 3, 4]), ("beta", &[2, 7, 2])]);
    let said = case.fails("apply --rule delta --input in --output out", 3);
    assert!(said.contains("tensor `beta` is [2, 7, 2], the rule takes [batch, time, 3]"), "{said}");
    tensors(&case.path("in"), &[("q", &[2, 7, 3, 5]), ("k", &[2, 7, 3, 5]), ("v", &[2, 8, 3, 4]), ("beta", &[2, 7, 3])]);
    let said = case.fails("apply --rule delta --input in --output out", 3);
    assert!(said.contains("differ in batch or time"), "{said}");
}

#[test]
fn apply_refuses_files_that_are_no_safetensors() {
    let case = Case::new();
    let huge = u64::MAX.to_le_bytes();
    for bytes in [&b""[..], b"short", &huge, b"\x04\0\0\0\0\0\0\0nope", b"\x02\0\0\0\0\0\0\0{}"] {
        std::fs::write(case.path("in"), bytes).unwrap();
        case.fails("apply --rule twin-a --input in --output out", 3);
    }
    case.fails("apply --rule twin-a --input nothing --output out", 3);
    case.fails("apply --rule twin-a --input mine --output out", 3);
}

#[test]
fn doctor_says_what_is_missing_and_what_to_do() {
    let case = Case::new();
    let does = r#"echo '{"libtorch": "2.11.0", "cuda": false, "devices": ["cpu"], "threads": 2}'"#;
    let output = case.command("doctor --json").env("ENGINE_DOES", does).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let state = |name: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings.iter().find(|f| f["name"] == name).map(|f| f["state"].as_str().unwrap().to_string())
    };
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(state("engine").as_deref(), Some("ok"));
    assert_eq!(state("plugins").as_deref(), Some("ok"));
    // A folder that calls itself libtorch and holds none.
    assert_eq!(state("libtorch").as_deref(), Some("note"));

    let output = case.command("doctor").env("ENGINE_DOES", "echo 'libtorch_cpu.so: cannot open' >&2; exit 127").output().unwrap();
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("MISSING") && said.contains("libtorch_cpu.so: cannot open") && said.contains("to do: "), "{said}");
}

#[test]
fn the_zoo_is_listed_with_what_is_refused() {
    let case = Case::new();
    std::fs::create_dir_all(case.path("zoo/good")).unwrap();
    std::fs::create_dir_all(case.path("zoo/bad")).unwrap();
    std::fs::write(case.path("zoo/good/recipe.toml"), RECIPE).unwrap();
    std::fs::write(case.path("zoo/bad/recipe.toml"), "x = ").unwrap();
    let output = case.run("zoo list --zoo zoo --json");
    assert_eq!(output.status.code(), Some(3), "one is refused: {}", text(&output.stderr));
    let list: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!((&list[0]["name"], &list[1]["title"]), (&json!("bad"), &json!("A test")));
    assert!(list[0]["error"].is_string() && list[1]["error"].is_null());
    assert!(case.ok("zoo list --zoo zoo good").contains("eval/loss <= 0.3"));
    case.fails("zoo list --zoo nowhere", 5);
    // A recipe of the zoo is found by its name from anywhere.
    let output = case.command("recipe show good").current_dir("/").env("FWP_ZOO", case.path("zoo")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}
