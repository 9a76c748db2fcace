//! The zoo: running its recipes, judging and collecting what came out, and drawing it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fwp_test_support::repository;
use fwp_tests::process::{children, lines, name, send, wait_until, wait_until_gone};
use fwp_tests::run::Run;
use fwp_tests::{Case, MEMORY, said};
use serde_json::Value;

/// A paper's recipe, ten steps of a small memory with two evaluations.
fn recipe(more: &str) -> String {
    let cited = MEMORY.replace("cite = \"none\"", "cite = \"Somebody 2021, arXiv 2100.00001, table 1\"");
    cited.replace("steps = 30", "steps = 10").replace(EVERY, "[eval]\nevery = 5") + more
}

const EVERY: &str = "[eval]\nevery = 10";

/// Points of every verdict. The loss begins near 0.5 and is never as small as 1e-9.
const POINTS: &str = r#"
seeds = [1, 2]

[[point]]
name = "success"
set = { "task.keys" = 4 }
published = 0.25
at_most = 10.0
note = "row 1"

[[point]]
name = "failure"
set = { "task.keys" = 3 }
published = 0.5
at_least = 10.0
seeds = [1]

[[point]]
name = "missed"
set = { "task.keys" = 2 }
published = 1e-9
at_most = 1e-9
seeds = [1]
quick = true

[[point]]
name = "free"
published = 0.125
seeds = [1]

[[point]]
name = "later"
at_most = 10.0
"#;

const FIGURES: &str = r#"
[[figure]]
name = "sweep"
title = "Loss & keys"
caption = "As figure 2 of Somebody 2021."
kind = "sweep"
x = { key = "task.keys", label = "keys" }
y = { label = "loss", log = true }
guide = 0.001
guide_label = "success"

[[figure.series]]
label = "delta <1>"
variant = "small"

[[figure.series]]
label = "not yet"
variant = "other"

[[figure]]
name = "curves"
title = "Loss over steps"
caption = "Each line is a seed."
kind = "curves"

[[figure.series]]
label = "delta"
variant = "small"
points = "succ*"

[[figure]]
name = "states"
title = "Loss and state"
caption = "As Zoology draws it."
kind = "scatter"
x = { log = true }

[[figure.series]]
label = "delta"
variant = "small"

[[figure]]
name = "never"
title = "Never run"
caption = "There is nothing to draw."
kind = "curves"

[[figure.series]]
label = "delta"
variant = "other"

[[figure]]
name = "which"
title = "Which can do what"
caption = "Losses."
kind = "heat-map"
y = { label = "loss", min = 0, max = 1 }
cell = { variant = "{row}", point = "{column}" }
row = [{ label = "small one", id = "small" }, { label = "other one", id = "other" }]
column = [{ label = "success", id = "success", beside = ["state_size", "parameters", "tokens_per_second"] }, { label = "missed", id = "missed" }, { label = "main", id = "main" }]
"#;

/// A folder with a zoo of two recipes.
fn zoo() -> Case {
    let case = Case::new();
    case.write("zoo/small/recipe.toml", &recipe(""));
    case.write("zoo/small/points.toml", POINTS);
    let expect = "\n[expect]\nmetric = \"eval/loss\"\npublished = 0.5\nat_most = 10.0\n";
    case.write("zoo/other/recipe.toml", &(recipe(expect).replace("Somebody 2021, arXiv 2100.00001", "Else 2020")));
    case
}

/// The command with the zoo of the folder.
fn command(case: &Case, arguments: &str) -> Command {
    let mut command = case.command(arguments);
    command.env("FWP_ZOO", case.path("zoo"));
    command
}

fn run(case: &Case, arguments: &str) -> Output {
    command(case, arguments).output().unwrap()
}

/// Runs a command that must end with a code; gives stdout and stderr.
fn ends(case: &Case, arguments: &str, code: i32) -> (String, String) {
    let output = run(case, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments}: {}", said(&output));
    (String::from_utf8(output.stdout.clone()).unwrap(), said(&output))
}

fn results(case: &Case, variant: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(case.path(&format!("zoo/{variant}/results.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn document(case: &Case) -> String {
    std::fs::read_to_string(case.path("docs/results.md")).unwrap()
}

/// The line of a point in a table.
fn row<'a>(text: &'a str, point: &str) -> &'a str {
    let found = text.lines().find(|l| l.starts_with(point) || l.starts_with(&format!("| {point}")));
    found.unwrap_or_else(|| panic!("no {point} in {text}"))
}

#[test]
fn runs_are_trained_judged_collected_and_drawn() {
    let case = zoo();
    case.write("zoo/figures.toml", FIGURES);
    // What would run, before anything did.
    let (plan, _) = ends(&case, "zoo run small --dry-run", 0);
    assert!(plan.contains("small/success-seed2") && plan.contains("7 of 7 runs are to do"), "{plan}");
    assert!(!case.path("runs").exists());
    // Some points, two runs at once.
    let (out, err) = ends(&case, "zoo run small --points s* --points f* --points missed --jobs 2", 0);
    for (run, published, verdict) in [
        ("small/success-seed1", "published 0.25", "as expected (eval/loss <= 10)"),
        ("small/success-seed2", "published 0.25", "as expected (eval/loss <= 10)"),
        ("small/failure-seed1", "published 0.5", "better than expected (eval/loss >= 10)"),
        ("small/missed-seed1", "published 0.000000001", "not as expected (eval/loss <= 0.000000001)"),
        ("small/free-seed1", "published 0.125", "reported"),
    ] {
        let line = row(&out, run);
        assert!(line.contains(published) && line.contains(verdict), "{line}\n{out}\n{err}");
    }
    for (point, verdict) in
        [("success", "reproduced"), ("failure", "better than published"), ("missed", "not reproduced"), ("free", "reported")]
    {
        let line = out.lines().rfind(|l| l.starts_with(&format!("small/{point} "))).unwrap();
        assert!(line.contains(verdict), "{line}");
    }
    // Each is a run as `train` makes it, with its words beside it.
    let first = Run::at(&case.path("runs/zoo/small/success-seed1"));
    assert_eq!(first.checkpoints().last(), Some(&10));
    assert!(std::fs::read_to_string(case.path("runs/zoo/small/success-seed1.log")).unwrap().contains("ended      at step 10"));
    // What is finished is not run again.
    let before = first.read("metrics.jsonl");
    let (out, err) = ends(&case, "zoo run small --points success", 0);
    assert!(err.contains("2 of 2 runs are finished already") && out.contains("reproduced"), "{out}{err}");
    assert_eq!(first.read("metrics.jsonl"), before);
    let (plan, _) = ends(&case, "zoo run small --dry-run", 0);
    assert!(row(&plan, "small/success-seed1").contains("done: ") && plan.contains("2 of 7 runs are to do"), "{plan}");
    assert!(plan.contains("about "), "the time of one is known from its like: {plan}");
    let (plan, _) = ends(&case, "zoo run * --quick --dry-run", 0);
    assert!(plan.contains("0 of 1 runs are to do"), "{plan}");

    collected(&case);
    let (list, _) = ends(&case, "zoo list small --points", 0);
    assert!(row(&list, "      success ").contains("  0.25 "), "{list}");
    assert!(row(&list, "      missed ").contains("not reproduced") && row(&list, "      later ").contains("not run"), "{list}");
    figures(&case);
    merged(&case);
    changed(&case);
}

/// Collecting writes the measurements, the tables and nothing that was not measured.
fn collected(case: &Case) {
    let (out, _) = ends(case, "zoo results", 0);
    assert!(row(&out, "small").split_whitespace().eq(["small", "5", "1", "1", "1", "1", "1"]), "{out}");
    let there = results(case, "small");
    let seeds: Vec<(&str, u64)> = there.iter().map(|m| (m["point"].as_str().unwrap(), m["seed"].as_u64().unwrap())).collect();
    assert_eq!(seeds, [("success", 1), ("success", 2), ("failure", 1), ("missed", 1), ("free", 1)]);
    let one = &there[0];
    let run = Run::at(&case.path("runs/zoo/small/success-seed1"));
    let best = run.metric("eval/loss").into_values().fold(f64::INFINITY, f64::min);
    assert_eq!((one["value"].as_f64(), one["steps"].as_u64()), (Some(best), Some(10)));
    assert_eq!(one["command"], "fwp-host train --recipe zoo/small --set task.keys=4 --seed 1");
    let host: Value = serde_json::from_str(&run.read("plan.json")).unwrap();
    assert!(host["host"].as_str().unwrap().contains(one["commit"].as_str().unwrap()), "{one}");
    assert!(one["machine"].as_str().unwrap().contains("core") && one["executor"].as_str().unwrap().contains("thread"), "{one}");
    assert!(one["date"].as_str().unwrap().ends_with('Z') && one["seconds"].as_f64().unwrap() > 0.0, "{one}");
    // A key of 8 features, a value of 4, and no other state.
    assert_eq!(one["state_size"], 32);
    let checked: Value = serde_json::from_str(&ends(case, "recipe check small --set task.keys=4 --json", 0).0).unwrap();
    assert_eq!(one["parameters"], checked["trained_parameters"]);
    assert!(!case.path("zoo/other/results.json").exists());

    let text = document(case);
    for (point, says) in [
        ("success<br>row 1 |", "| reproduced |"),
        ("failure |", "| better than published |"),
        ("missed |", "| not reproduced |"),
        ("free |", "| reported |"),
        ("later |", "|  | not run |  |  |  |"),
        ("main |", "|  | not run |  |  |  |"),
    ] {
        assert!(row(&text, point).contains(says), "{}", row(&text, point));
    }
    assert!(text.contains("## Somebody 2021, arXiv 2100.00001") && text.contains("## Else 2020"), "{text}");
    assert!(
        row(&text, "success<br>").contains("`--set task.keys=4`")
            && row(&text, "success<br>").contains(one["commit"].as_str().unwrap())
    );
    let (list, _) = ends(case, "zoo list", 0);
    assert!(list.starts_with("Else 2020\n  other\n") && list.contains("    5 points: 1 reproduced, 1 better"), "{list}");
    let list: Value = serde_json::from_str(&ends(case, "zoo list small --json", 0).0).unwrap();
    assert_eq!((&list[0]["points"][0]["verdict"], &list[0]["points"][0]["published"]), (&"reproduced".into(), &0.25.into()));

    // Nothing changes where nothing was run, and the check says so; any change of a table or a measurement is seen.
    let (_, err) = ends(case, "zoo results", 0);
    assert!(!err.contains("written"), "{err}");
    ends(case, "zoo results --check", 0);
    std::fs::write(case.path("docs/results.md"), text.replace("not reproduced", "reproduced")).unwrap();
    assert!(ends(case, "zoo results --check", 8).1.contains("not up to date: "));
    std::fs::write(case.path("docs/results.md"), text).unwrap();
    let path = case.path("zoo/small/results.json");
    let kept = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, kept.replace(&format!("\"value\":{best}"), "\"value\":0.001")).unwrap();
    ends(case, "zoo results --check", 8);
    std::fs::write(&path, kept).unwrap();
    ends(case, "zoo results --check", 0);
}

/// Size of a PNG, after its pixels were decoded; and how many different colours it has.
fn png(path: &Path) -> (u32, u32, usize) {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let bytes = info.color_type.samples();
    let colours: std::collections::HashSet<&[u8]> = pixels.chunks(bytes).collect();
    (info.width, info.height, colours.len())
}

fn figures(case: &Case) {
    let folder = case.path("docs/figures");
    let text = document(case);
    for (name, texts, dashed) in [
        ("sweep", &["Loss & keys", "delta <1>", "not yet (not run)", "published", "success", "keys", "loss", "10⁻⁴"][..], true),
        ("curves", &["Loss over steps", "steps", "eval/loss"], false),
        ("states", &["Loss and state"], true),
        ("which", &["small one", "other one", "missed", "state size (success)", "tokens / s (success)", "32", "–"], false),
    ] {
        let svg = std::fs::read_to_string(folder.join(format!("{name}.svg"))).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap_or_else(|e| panic!("{name}: {e}"));
        let root = document.root_element();
        assert_eq!(root.tag_name().name(), "svg");
        let said: Vec<&str> = document
            .descendants()
            .filter(|n| n.has_tag_name(("http://www.w3.org/2000/svg", "text")))
            .filter_map(|n| n.text())
            .collect();
        for text in texts {
            assert!(said.contains(text), "{name}: {text}: {said:?}");
        }
        assert_eq!(document.descendants().any(|n| n.attribute("stroke-dasharray") == Some("5 3")), dashed, "{name}");
        let size = |what: &str| root.attribute(what).unwrap().parse::<u32>().unwrap();
        // What is written stays inside.
        for node in document.descendants().filter(|n| n.has_tag_name(("http://www.w3.org/2000/svg", "text"))) {
            let at = |what: &str| node.attribute(what).unwrap().parse::<f64>().unwrap();
            assert!(at("x") >= 0.0 && at("x") <= f64::from(size("width")) && at("y") <= f64::from(size("height")), "{node:?}");
        }
        let (width, height, colours) = png(&folder.join(format!("{name}.png")));
        assert_eq!((width, height), (2 * size("width"), 2 * size("height")), "{name}");
        assert!(colours > 20, "{name}: {colours}");
        assert!(text.contains(&format!("(figures/{name}.svg)")), "{name}");
    }
    // A heat map is a table, too, and curves are kept only where they are drawn.
    assert!(row(&text, "small one |").contains("| 32 |"), "{text}");
    assert!(!folder.join("never.svg").exists() && !text.contains("Never run"));
    let curves: Vec<bool> = results(case, "small").iter().map(|m| m["curve"].is_array()).collect();
    assert_eq!(curves, [true, true, false, false, false]);
    // A figure that is gone or no longer declared is not up to date.
    let png = folder.join("sweep.png");
    std::fs::rename(&png, folder.join("old.png")).unwrap();
    let (_, err) = ends(case, "zoo results --check", 8);
    assert!(err.contains("not up to date: ") && err.contains("no figure any more: "), "{err}");
    std::fs::rename(folder.join("old.png"), &png).unwrap();
    ends(case, "zoo results --check", 0);
}

/// Measurements whose runs are gone stay, new ones join them.
fn merged(case: &Case) {
    let before = results(case, "small");
    std::fs::remove_dir_all(case.path("runs/zoo/small/free-seed1")).unwrap();
    ends(case, "zoo run small --points later --seeds 2 --runs elsewhere --progress none", 0);
    let (_, err) = ends(case, "zoo results small --runs elsewhere", 0);
    assert!(err.contains("small/results.json"), "{err}");
    let after = results(case, "small");
    assert_eq!(after[..5], before[..]);
    assert_eq!((&after[5]["point"], &after[5]["seed"], after.len()), (&"later".into(), &2.into(), 6));
    assert!(row(&document(case), "later |").contains("1 of 2 seeds"), "{}", row(&document(case), "later |"));
    // What was measured is not missing, whether its run is still there or not.
    let (plan, _) = ends(case, "zoo run small --missing --dry-run", 0);
    assert!(plan.contains("small/later-seed1") && plan.contains("1 of 1 runs are to do"), "{plan}");
    let (out, _) = ends(case, "zoo run small --points free --missing --runs elsewhere", 0);
    assert!(out.contains("nothing is missing") && !case.path("elsewhere/small/free-seed1").exists(), "{out}");
    // Runs of something else are not taken, and other folders are not guessed.
    ends(case, "zoo run small --points later --seeds 1 --runs elsewhere --set task.length=5", 0);
    let (_, err) = ends(case, "zoo results --runs elsewhere", 0);
    assert!(err.contains("small/later-seed1: the run is left out, task.length is 5 there and 6 here"), "{err}");
    assert_eq!(results(case, "small"), after);
    assert!(ends(case, "zoo results --runs nowhere", 2).1.contains("nowhere"));
}

/// A changed recipe: its old runs and measurements do not count, and are not run over.
fn changed(case: &Case) {
    case.write("zoo/small/recipe.toml", &recipe("").replace("batch_size = 4", "batch_size = 5"));
    let (out, _) = ends(case, "zoo run small --points success --points free", 3);
    assert!(out.contains("batch_size is 4 there and 5 here") && out.contains("move its folder away"), "{out}");
    assert!(row(&out, "small/free-seed1").contains("reported"), "the others ran: {out}");
    let (_, err) = ends(case, "zoo results", 0);
    assert!(err.contains("small/failure-seed1: measured with another recipe"), "{err}");
    let left: Vec<String> = results(case, "small").iter().map(|m| m["point"].as_str().unwrap().to_string()).collect();
    assert_eq!(left, ["free"]);
    assert!(row(&document(case), "failure |").contains("not run"));
}

#[test]
fn a_run_that_fails_does_not_stop_the_others() {
    let case = zoo();
    case.write("zoo/nan/recipe.toml", &recipe("").replace("lr = 1e-2", "lr = 1e30"));
    case.write("zoo/nan/points.toml", "[[point]]\nname = \"huge\"\nseeds = [1]\nat_most = 0.001\n");
    case.write("zoo/alien/recipe.toml", &recipe("").replace("\"delta\"", "\"deltta\""));
    case.write("zoo/alien/points.toml", "[[point]]\nname = \"a\"\nseeds = [1]\n");
    let (out, err) = ends(&case, "zoo run * --points a --points huge --points free", 4);
    assert!(
        err.contains("alien/a-seed1: failed with exit code 4") && err.contains("nan/huge-seed1: failed with exit code 6"),
        "{err}"
    );
    assert!(out.contains("2 of 3 runs failed:") && out.contains("`deltta`") && out.contains("alien/a-seed1.log"), "{out}");
    assert!(row(&out, "small/free-seed1").contains("reported"), "{out}");
    // A value that is not finite is an end that would come again; a missing plugin is not.
    let (out, err) = ends(&case, "zoo run nan alien", 4);
    assert!(!err.contains("nan/huge-seed1: failed") && err.contains("alien/a-seed1: failed"), "{err}");
    assert!(row(&out, "nan/huge").contains("not as expected"), "{out}");
    ends(&case, "zoo results nan", 0);
    assert_eq!(results(&case, "nan")[0]["ended"], "not-finite");
    assert!(row(&document(&case), "huge |").contains("not finite at step"), "{}", document(&case));
}

/// Runs that take long enough to be stopped, with what resuming needs.
fn long(case: &Case) {
    let recipe =
        recipe("\n[checkpoint]\nevery = 50\n").replace("steps = 10", "steps = 1000").replace("every = 5\n", "every = 100\n");
    case.write("zoo/long/recipe.toml", &recipe);
    case.write("zoo/long/points.toml", "[[point]]\nname = \"a\"\nseeds = [1, 2, 3]\n");
}

/// Starts the runs and waits until the first two are in the middle; gives the command and its engines.
fn start(case: &Case) -> (std::process::Child, Vec<u32>) {
    let mut host = command(case, "zoo run long --jobs 2").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = |seed: u32| case.path(&format!("runs/zoo/long/a-seed{seed}/metrics.jsonl"));
    wait_until(&mut host, "both runs are in the middle", || lines(&metrics(1)) >= 60 && lines(&metrics(2)) >= 20);
    let engines = children(host.id()).into_iter().flat_map(children).filter(|pid| name(*pid) == "fwp-engine").collect();
    (host, engines)
}

/// Asserts that the command goes on with everything and that the runs are those that were never stopped.
fn goes_on(case: &Case) {
    let (out, err) = ends(case, "zoo run long --jobs 2", 0);
    for seed in 1..=3 {
        assert!(row(&out, &format!("long/a-seed{seed}")).contains("reported"), "{out}{err}");
    }
    // Those that were stopped.
    for seed in 1..=2 {
        let whole: PathBuf = case.path(&format!("whole-{seed}"));
        let output = run(
            case,
            &format!("train --recipe zoo/long/recipe.toml --seed {seed} --run-dir {} --progress none", whole.display()),
        );
        assert!(output.status.success(), "{}", said(&output));
        Run::at(&case.path(&format!("runs/zoo/long/a-seed{seed}"))).assert_same(&Run::at(&whole));
    }
}

#[test]
fn a_signal_saves_all_runs_and_the_same_command_goes_on() {
    let case = zoo();
    long(&case);
    let (host, engines) = start(&case);
    assert!(!engines.is_empty());
    send("INT", host.id());
    let output = host.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert!(said(&output).contains("the same command goes on"), "{}", said(&output));
    engines.into_iter().for_each(wait_until_gone);
    assert!(!case.path("runs/zoo/long/a-seed3").exists(), "no other is begun");
    let (plan, _) = ends(&case, "zoo run long --dry-run", 0);
    assert!(plan.contains("goes on at step"), "{plan}");
    goes_on(&case);
}

#[test]
fn a_command_that_is_killed_leaves_no_run_behind_and_the_same_command_goes_on() {
    let case = zoo();
    long(&case);
    let (mut host, engines) = start(&case);
    host.kill().unwrap();
    host.wait().unwrap();
    engines.into_iter().for_each(wait_until_gone);
    goes_on(&case);
}

#[test]
fn a_second_signal_leaves_at_once() {
    let case = zoo();
    long(&case);
    let (host, engines) = start(&case);
    send("INT", host.id());
    std::thread::sleep(Duration::from_millis(20));
    // Nobody is there to take it any more when the first was quick.
    _ = Command::new("kill").args(["-INT", &host.id().to_string()]).stderr(Stdio::null()).status();
    let output = host.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    engines.into_iter().for_each(wait_until_gone);
}

#[test]
fn mistakes_are_told_with_file_and_line() {
    let case = zoo();
    for (file, text, says) in [
        (
            "zoo/small/points.toml",
            POINTS.replace("published = 0.25", "publised = 0.25"),
            "points.toml:7:1: unknown field `publised`",
        ),
        ("zoo/small/points.toml", POINTS.replace("\"task.keys\" = 3", "\"task.kyes\" = 3"), "points.toml:11:1"),
        ("zoo/small/points.toml", POINTS.replace("\"later\"", "\"free\""), "points.toml:32:8: the point \"free\" is there twice"),
        ("zoo/small/points.toml", "[[point]".into(), "points.toml:1:"),
    ] {
        case.write(file, &text);
        for command in ["zoo run small", "zoo results"] {
            let (_, err) = ends(&case, command, 3);
            assert!(err.contains(says) && err.contains("  remedy: "), "{command}: {says}: {err}");
        }
        assert!(!case.path("runs").exists() && !case.path("docs").exists());
        let (list, _) = ends(&case, "zoo list", 3);
        assert!(list.contains("refused: ") && list.contains("other"), "{list}");
    }
    case.write("zoo/small/points.toml", POINTS);
    for (from, to, says) in [
        ("kind = \"sweep\"", "kind = \"sweap\"", "figures.toml:6:8: unknown variant `sweap`"),
        ("variant = \"small\"", "variant = \"smal\"", "figures.toml:12:1: the zoo has no \"smal\"; did you mean `small`?"),
        ("points = \"succ*\"", "points = \"suck*\"", "small has no point \"suck*\""),
        ("key = \"task.keys\"", "key = \"task.name\"", "figures.toml:7:13: task.name of small/success is no number"),
        ("name = \"curves\"", "name = \"sweep\"", "figures.toml:21:8: the figure \"sweep\" is there twice"),
        ("{ label = \"missed\", id = \"missed\" }", "{ label = \"mist\", id = \"mist\" }", "no cell of the column \"mist\""),
    ] {
        assert!(FIGURES.contains(from), "{from}");
        case.write("zoo/figures.toml", &FIGURES.replacen(from, to, 1));
        let (_, err) = ends(&case, "zoo results", 3);
        assert!(err.contains(says), "{says}: {err}");
    }
    // Names that are not there, and options that make no sense.
    let (_, err) = ends(&case, "zoo run smal", 2);
    assert!(err.contains("did you mean `small`?"), "{err}");
    for wrong in ["zoo run", "zoo run small --points nothing", "zoo run small --jobs 0", "zoo run small --seeds 3..1"] {
        ends(&case, wrong, 2);
    }
    // A key that a part does not have is told once, before anything runs.
    case.write("zoo/small/points.toml", &POINTS.replace("\"task.keys\" = 3", "\"update_rule.bogus\" = 3"));
    for (wrong, place) in [("--set slow_net.bogus=1", "small/success: "), ("", "small/failure: ")] {
        for command in ["zoo run small", "zoo run small --dry-run"] {
            let (out, err) = ends(&case, &format!("{command} {wrong}"), 3);
            assert_eq!((out.as_str(), err.matches("unknown key").count()), ("", 1), "{command} {wrong}: {out}{err}");
            assert!(err.contains(place), "{command} {wrong}: {err}");
        }
        assert!(!case.path("runs").exists(), "{wrong}");
    }
    case.write("zoo/small/points.toml", POINTS);
    // So is a part that every run misses, and a text that is not there.
    for (wrong, code, says) in [("--set update_rule.plugin=nosuch", 4, "`nosuch`"), ("--data nosuch.txt", 3, "nosuch.txt")] {
        let (out, err) = ends(&case, &format!("zoo run small {wrong}"), code);
        assert!(out.is_empty() && err.contains(says) && err.matches("error: ").count() == 1, "{wrong}: {out}{err}");
        assert!(!case.path("runs").exists(), "{wrong}");
    }
    // A folder in which nothing can be made is named once, before anything runs.
    case.write("file", "");
    let (out, err) = ends(&case, "zoo run small --runs file/below", 5);
    assert!(out.is_empty() && err.contains("runs cannot go to file/below") && err.contains("--runs"), "{out}{err}");
    // A folder that holds something else is left alone.
    case.write("runs/zoo/other/main-seed1/precious.txt", "mine");
    let (out, _) = ends(&case, "zoo run other --seeds 1", 3);
    assert!(out.contains("the folder holds something, but no run"), "{out}");
    assert!(case.path("runs/zoo/other/main-seed1/precious.txt").exists());
}

#[test]
fn a_text_is_only_for_those_who_learn_one() {
    let case = zoo();
    case.write("zoo/text/recipe.toml", &fwp_tests::LANGUAGE.replace("steps = 60", "steps = 12"));
    case.write("zoo/text/points.toml", "[[point]]\nname = \"a\"\nseeds = [1]\n");
    let (_, err) = ends(&case, "zoo run text", 2);
    assert!(err.contains("text is left out") && err.contains("remedy: name one with --data PATH"), "{err}");
    let (out, _) = ends(&case, "zoo run * --points a --points free --data text.txt --set train.batch_size=2 --runs own", 0);
    assert!(out.contains("text/a-seed1") && out.contains("small/free-seed1"), "{out}");
}

#[test]
fn the_tables_of_the_documentation_are_those_of_the_measurements() {
    let case = Case::new();
    let output =
        case.command("zoo results --check").args(["--docs", &repository().join("docs").display().to_string()]).output().unwrap();
    assert!(output.status.success(), "write them with `fwp-host zoo results`: {}", said(&output));
}
