use super::*;
use crate::settings::{Dtype, OptimiserKind};

/// The smallest recipe. Line numbers below count from its first line.
const MINIMAL: &str = "\
[slow_net]
plugin = \"retrieval\"
[update_rule]
plugin = \"delta\"
[task]
name = \"associative-update\"
keys = 20
[train]
steps = 100
";

fn resolve_with(text: &str, overrides: &Overrides, trust_paths: bool) -> Result<Resolved, String> {
    let context = Context { file: "zoo/x/recipe.toml", folder: Path::new("/zoo/x"), trust_paths };
    let file = PathBuf::from("zoo/x/recipe.toml");
    resolve(&context, text, overrides, "x".into(), file).map_err(|e| e.to_string())
}

fn sets(list: &[&str]) -> Overrides {
    Overrides { set: list.iter().map(|s| s.to_string()).collect(), ..Overrides::default() }
}

fn ok(text: &str) -> Resolved {
    resolve_with(text, &Overrides::default(), false).unwrap()
}

fn ok_set(list: &[&str]) -> Resolved {
    resolve_with(MINIMAL, &sets(list), false).unwrap()
}

fn refused(text: &str) -> String {
    resolve_with(text, &Overrides::default(), false).unwrap_err()
}

fn refused_set(list: &[&str]) -> String {
    resolve_with(MINIMAL, &sets(list), false).unwrap_err()
}

/// The minimal recipe with further lines.
fn with(more: &str) -> String {
    format!("{MINIMAL}{more}\n")
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let r = ok(MINIMAL);
    assert_eq!(r.train.batch_size, 32);
    assert_eq!(r.train.optimiser.name, OptimiserKind::Adam);
    assert_eq!(r.train.optimiser.betas, [0.9, 0.999]);
    assert_eq!(r.train.lr_at(0), 1e-3);
    assert_eq!(r.train.dtype, Dtype::Float32);
    assert_eq!((r.train.seed, r.train.clip), (1, 0.0));
    assert_eq!((r.eval.every, r.eval.batch_size), (100, 32));
    assert_eq!(r.checkpoint.keep, 2);
    assert!(r.monitor.tensorboard && r.expect.is_none() && r.warnings.is_empty());
    assert_eq!(r.slots.len(), 1);
    assert_eq!(r.slots[0].name, "main");
    assert_eq!(r.slots[0].layers, None);
    assert_eq!(r.slots[0].feature_map.plugin, PluginRef::Name("identity".into()));
    assert_eq!(r.plugin_reference("slow_net"), Some(&PluginRef::Name("retrieval".into())));
    // The evaluation's batch follows the training's.
    assert_eq!(ok_set(&["train.batch_size=7"]).eval.batch_size, 7);
}

#[test]
fn faults_of_a_file_are_placed_and_named() {
    let far = format!("{MINIMAL}batch_size = 1048576\n[task2]\n").replace("keys = 20", "keys = 20\nlength = 9999");
    for (text, want) in [
        (with("stepz = 1"), "zoo/x/recipe.toml:10:1: train.stepz: unknown key; did you mean `steps`?"),
        (with("optimizer = { lr = 1 }"), "zoo/x/recipe.toml:10:1: train.optimizer: unknown key; did you mean `optimiser`?"),
        (
            with("optimiser = { name = \"adam\", rate = 1 }"),
            "zoo/x/recipe.toml:10:30: train.optimiser.rate: unknown key; there are `name`, `lr`, `betas`, `eps`, `weight_decay`",
        ),
        (
            with("optimiser = \"adam\""),
            "zoo/x/recipe.toml:10:1: train.optimiser: expected a table, found a string; write it as in optimiser = { name = \"...\" }",
        ),
        (
            with("optimiser.name = \"adamw2\""),
            "zoo/x/recipe.toml:10:11: train.optimiser.name: \"adamw2\" is none of `adam`, `adamw`; did you mean `adamw`?",
        ),
        (with("optimiser.lr = 0"), "zoo/x/recipe.toml:10:11: train.optimiser.lr: 0.0 is not a number > 0"),
        (with("optimiser.lr = nan"), "zoo/x/recipe.toml:10:11: train.optimiser.lr: NaN is not a number > 0"),
        (with("optimiser.betas = [0.9]"), "zoo/x/recipe.toml:10:11: train.optimiser.betas: expected 2 numbers, found 1"),
        (with("optimiser.betas = [0.9, 1]"), "zoo/x/recipe.toml:10:11: train.optimiser.betas: 1.0 is not in 0..1"),
        (
            with("optimiser.betas = [0.9, \"x\"]"),
            "zoo/x/recipe.toml:10:11: train.optimiser.betas: expected a list of 2 numbers, found a list",
        ),
        (with("batch_size = 0"), "zoo/x/recipe.toml:10:1: train.batch_size: 0 is not in 1..=1048576"),
        (with("batch_size = 1.5"), "zoo/x/recipe.toml:10:1: train.batch_size: expected an integer, found a number (1.5)"),
        (with("seed = -1"), "zoo/x/recipe.toml:10:1: train.seed: -1 is not an integer >= 0"),
        (
            with("memory_limit = \"4 elephants\""),
            "zoo/x/recipe.toml:10:1: train.memory_limit: \"4 elephants\" is not a size in bytes such as 4294967296 or \"4GiB\"",
        ),
        (
            with("device = \"gpu\""),
            "zoo/x/recipe.toml:10:1: train.device: \"gpu\" is no device; there are `auto`, `cpu`, `cuda` and `cuda:N`",
        ),
        (
            with("schedule = { warmup = 101 }"),
            "zoo/x/recipe.toml:10:14: train.schedule.warmup: 101 steps of warm-up are more than train.steps = 100; shorten the warm-up, or train longer",
        ),
        (
            with("schedule = { name = \"wsd\", warmup = 60, decay_fraction = 0.5 }"),
            "zoo/x/recipe.toml:10:41: train.schedule.decay_fraction: 60 steps of warm-up and 50 of decay are more than train.steps = 100; shorten one of them",
        ),
        (
            with("schedule.decay_fraction = 1.1"),
            "zoo/x/recipe.toml:10:10: train.schedule.decay_fraction: 1.1 is not a number >= 0 and <= 1",
        ),
        (
            with("carry = \"detached\""),
            "zoo/x/recipe.toml:10:1: train.carry: task `associative-update` starts new sequences at every step, so there is nothing to carry; set train.carry = \"none\"",
        ),
        (
            far.replace("[task2]\n", ""),
            "zoo/x/recipe.toml:11:1: train.batch_size: 1048576 sequences of 9999 are more than 2147483648 positions; lower it, and raise train.accumulate",
        ),
        (far, "zoo/x/recipe.toml:12:2: task2: unknown section; did you mean `task`?"),
        (
            with("[eval]\nevery = 0\n[stop]\npatience = 3"),
            "zoo/x/recipe.toml:13:1: stop.patience: looks at evaluations during training, but eval.every = 0 makes none; set eval.every",
        ),
        (
            with("[stop]\nat_least = 0.9"),
            "zoo/x/recipe.toml:11:1: stop.at_least: needs `metric` beside it; write metric = \"eval/accuracy\"",
        ),
        (
            with("[stop]\nmetric = \"eval/accuracy\""),
            "zoo/x/recipe.toml:11:1: stop.metric: is expected to reach nothing; add at_most or at_least",
        ),
        (
            with("[expect]\nmetric = \"eval/loss\""),
            "zoo/x/recipe.toml:11:1: expect.metric: has nothing beside it that is expected; add published, at_most or at_least",
        ),
        (
            with("[expect]\nat_most = 1.0"),
            "zoo/x/recipe.toml:11:1: expect.at_most: needs `metric` beside it; write metric = \"eval/loss\"",
        ),
        (
            with("[expect]\nmetric = \"eval/loss\"\nat_most = 1\nat_least = 2"),
            "zoo/x/recipe.toml:12:1: expect.at_most: 1 is below at_least = 2, so no value passes",
        ),
        (
            with("[expect]\nmetric = \"eval loss\"\nat_most = 1"),
            "zoo/x/recipe.toml:11:1: expect.metric: \"eval loss\" is not the name of a metric; write it as in metrics.jsonl: eval/loss",
        ),
        (format!("titel = \"x\"\n{MINIMAL}"), "zoo/x/recipe.toml:1:1: titel: unknown key; did you mean `title`?"),
        (format!("title = 3\n{MINIMAL}"), "zoo/x/recipe.toml:1:1: title: expected a string, found an integer (3)"),
        (
            MINIMAL.replace("keys = 20", "kees = 20"),
            "zoo/x/recipe.toml:7:1: task.kees: task `associative-update` has no such key; did you mean `keys`?",
        ),
        (
            MINIMAL.replace("keys = 20\n", ""),
            "zoo/x/recipe.toml:6:1: task.keys: task `associative-update` needs it; the number S of keys, and of values",
        ),
        (
            MINIMAL.replace("keys = 20", "keys = { n = 20 }"),
            "zoo/x/recipe.toml:7:1: task.keys: expected an integer, found a table",
        ),
        (
            MINIMAL.replace("associative-update", "associative_update"),
            "zoo/x/recipe.toml:6:1: task.name: \"associative_update\" is no task; did you mean `associative-update`?",
        ),
        (
            MINIMAL.replace("name = \"associative-update\"\n", ""),
            "zoo/x/recipe.toml:5:2: task.name: the recipe names no task; there are `associative-capacity`, `associative-update`, `associative-retrieval`, `mqar`, `parity`, `modular-arithmetic`, `group-words`, `formal-language`, `code-execution`, `list-ops`, `text`",
        ),
        (
            MINIMAL.replace("steps = 100\n", ""),
            "zoo/x/recipe.toml:8:2: train.steps: needs a value; how many optimiser steps (also --steps N)",
        ),
        (String::new(), "zoo/x/recipe.toml: slow_net: the recipe names no such part; write [slow_net] with plugin = \"NAME\""),
        (with("steps = 5"), "zoo/x/recipe.toml:10:1: not valid TOML: duplicate key"),
        (with("x = \"a"), "zoo/x/recipe.toml:10:7: not valid TOML: invalid basic string, expected `\"`"),
        (
            with("seed = 99999999999999999999"),
            "zoo/x/recipe.toml:10:1: train.seed: 99999999999999999999 does not fit into 64 bits",
        ),
        (with("seed = 2020-01-01"), "zoo/x/recipe.toml:10:1: train.seed: no key takes a date (2020-01-01); put it in quotes"),
        (with("\"a b\" = 1"), "zoo/x/recipe.toml:10:1: \"a b\" is not a key; keys are letters, digits, `_` and `-`"),
        (with("[[eval]]\nevery = 1"), "zoo/x/recipe.toml:10:3: eval: expected a table, found a list"),
    ] {
        assert_eq!(refused(&text), want);
    }
}

#[test]
fn parts_are_checked() {
    let rule = |text: &str| MINIMAL.replace("[update_rule]\nplugin = \"delta\"", text);
    let map = |text: &str| format!("{MINIMAL}{text}");
    for (text, want) in [
        (
            rule("[update_rule]\nplugins = \"delta\""),
            "zoo/x/recipe.toml:4:1: update_rule.plugins: unknown key; did you mean `plugin`?",
        ),
        (
            rule("[update_rule]\nbeta = 1"),
            "zoo/x/recipe.toml:4:1: update_rule.beta: unknown key; [update_rule] needs `plugin`, or tables [update_rule.NAME] that have it",
        ),
        (
            rule("[update_rule.fast]\nbeta = 1"),
            "zoo/x/recipe.toml:3:14: update_rule.fast: needs `plugin`; write plugin = \"NAME\"",
        ),
        (
            rule("[update_rule]\nplugin = 3"),
            "zoo/x/recipe.toml:4:1: update_rule.plugin: expected the name of a plugin, found an integer",
        ),
        (
            rule("[update_rule]\nplugin = \"delta rule\""),
            "zoo/x/recipe.toml:4:1: update_rule.plugin: \"delta rule\" is not the name of a plugin; names are letters, digits and `.`, `_`, `+`, `-`",
        ),
        (
            rule("[update_rule]\nplugin = \"../libevil.so\""),
            "zoo/x/recipe.toml:4:1: update_rule.plugin: a recipe may not open a library by its path; name it on the command line: --set update_rule.plugin=PATH",
        ),
        (
            rule("[update_rule]\nplugin = \"libevil.so\""),
            "zoo/x/recipe.toml:4:1: update_rule.plugin: a recipe may not open a library by its path; name it on the command line: --set update_rule.plugin=PATH",
        ),
        (
            rule("[update_rule]\nplugin = \"delta\"\n[update_rule.b]\nplugin = \"delta\""),
            "zoo/x/recipe.toml:5:14: update_rule.b: [update_rule] has a plugin of its own and a part with a name; give every part a name, or none",
        ),
        (
            rule("[update_rule.a]\nplugin = \"delta\"\nlayers = [0, 1]\n[update_rule.b]\nplugin = \"delta\"\nlayers = [1]"),
            "zoo/x/recipe.toml:8:1: update_rule.b.layers: layer 1 belongs to `a` already; give each layer one rule",
        ),
        (
            rule("[update_rule]\nplugin = \"delta\"\nlayers = [2, 0]"),
            "zoo/x/recipe.toml:5:14: update_rule.layers: layer 0 stands after layer 2; list each layer once, in ascending order",
        ),
        (
            rule("[update_rule]\nplugin = \"delta\"\nlayers = [-1]"),
            "zoo/x/recipe.toml:5:11: update_rule.layers: a layer is an integer in 0..10000; write it as in layers = [0, 2]",
        ),
        (
            rule("[update_rule]\nplugin = \"delta\"\nlayers = []"),
            "zoo/x/recipe.toml:5:1: update_rule.layers: the rule has no layers; list some, or take the rule out",
        ),
        (
            rule("[update_rule]\nplugin = \"delta\"\nlayers = \"all\""),
            "zoo/x/recipe.toml:5:1: update_rule.layers: expected a list of integers, found a string; write it as in layers = [0, 2]",
        ),
        (
            rule("[update_rule]\nplugin = \"delta\"\nfeature_map = \"wide\"\n[feature_map.wider]\nplugin = \"dpfp\""),
            "zoo/x/recipe.toml:5:1: update_rule.feature_map: there is no [feature_map.wide]; did you mean `wider`?",
        ),
        (
            map("[feature_map.wide]\nplugin = \"dpfp\""),
            "zoo/x/recipe.toml:4:1: update_rule.feature_map: no feature map goes with this rule by name; set it to one of `wide`",
        ),
        (
            rule("[update_rule]\n[update_rule.-a]\nplugin = \"delta\""),
            "zoo/x/recipe.toml:4:14: update_rule.-a: not a name for a part; names start with a letter or digit and have at most 64",
        ),
        (
            MINIMAL.replace("[slow_net]\nplugin = \"retrieval\"", "slow_net = \"retrieval\""),
            "zoo/x/recipe.toml:1:1: slow_net: expected a table, found a string; write [slow_net] with plugin = \"NAME\"",
        ),
    ] {
        assert_eq!(refused(&text), want);
    }
}

#[test]
fn a_slow_net_without_fast_weights_has_neither_rule_nor_map() {
    let without = |more: &str| ok(&MINIMAL.replace("[update_rule]\nplugin = \"delta\"", more));
    for text in ["", "[update_rule]", "[update_rule]\n[feature_map]"] {
        let r = without(text);
        assert!(r.slots.is_empty() && r.warnings.is_empty(), "{text}: {:?}", r.warnings);
        assert_eq!((r.source("feature_map.plugin"), r.source("update_rule.plugin")), (None, None));
    }
    // A map alone is used by nothing, which is said.
    let r = without("[feature_map]\nplugin = \"silu\"");
    assert!(r.slots.is_empty() && r.warnings[0].contains("feature map `main` is used by no rule"), "{:?}", r.warnings);
    let r = ok_set(&["update_rule.plugin="]);
    assert!(r.slots.is_empty());
    // Names alone may tell rules apart; whether they do is for the slow net to say.
    let r = without("[update_rule.a]\nplugin = \"delta\"\n[update_rule.b]\nplugin = \"delta\"");
    assert_eq!(r.slots.len(), 2);
}

#[test]
fn rules_find_their_maps_and_keep_their_configuration() {
    let text = MINIMAL.replace(
        "[update_rule]\nplugin = \"delta\"",
        "\
[feature_map.main]
plugin = \"elu+1\"
[feature_map.b]
plugin = \"dpfp\"
nu = 2
normalise = \"sum\"
[feature_map.spare]
plugin = \"silu\"
[update_rule.a]
plugin = \"additive\"
layers = [0, 2]
eps = 1e-6
[update_rule.b]
plugin = \"delta\"
[update_rule.c]
plugin = \"delta\"
layers = [3]
feature_map = \"b\"
options = { deep = [1, { x = 2 }] }",
    );
    let r = ok(&text);
    let maps: Vec<(&str, &str)> = r.slots.iter().map(|s| (s.name.as_str(), s.feature_map.section.as_str())).collect();
    assert_eq!(maps, [("a", "feature_map.main"), ("b", "feature_map.b"), ("c", "feature_map.b")]);
    assert_eq!(r.slots[0].layers, Some(vec![0, 2]));
    assert_eq!(r.slots[1].layers, None);
    assert_eq!(r.slots[1].feature_map.config, "nu = 2\nnormalise = \"sum\"".parse().unwrap());
    assert_eq!(r.slots[0].update_rule.config, "eps = 1e-6".parse().unwrap());
    assert_eq!(r.slots[2].update_rule.config, "options = { deep = [1, { x = 2 }] }".parse().unwrap());
    assert_eq!(r.warnings, ["zoo/x/recipe.toml:9:14: feature map `spare` is used by no rule"]);
    assert_eq!(r.plugin_reference("update_rule.c"), Some(&PluginRef::Name("delta".into())));
}

#[test]
fn the_command_line_wins_and_leaves_its_mark() {
    let r = resolve_with(
        &with("seed = 3\noptimiser = { lr = 0.5, eps = 1e-6 }"),
        &Overrides {
            set: vec![
                "train.optimiser={ lr = 1e-2 }".into(),
                "train.steps=7".into(),
                "train.batch_size = 8".into(),
                "title=123".into(),
                "update_rule.plugin=gated-delta".into(),
                "feature_map.plugin=elu+1".into(),
                "feature_map.normalise=sum".into(),
                "train.memory_limit=4GiB".into(),
                "train.optimiser.betas=[0, 0.5]".into(),
                "checkpoint.keep_best=false".into(),
            ],
            steps: Some(9),
            device: Some("cuda:1".into()),
            ..Overrides::default()
        },
        false,
    )
    .unwrap();
    assert_eq!((r.train.steps, r.train.seed, r.train.batch_size), (9, 3, 8));
    assert_eq!((r.train.optimiser.lr, r.train.optimiser.eps), (1e-2, 1e-6));
    assert_eq!(r.train.optimiser.betas, [0.0, 0.5]);
    assert_eq!(r.train.memory_limit, Some(4 << 30));
    assert_eq!(r.title.as_deref(), Some("123"));
    assert!(!r.checkpoint.keep_best);
    assert_eq!(r.slots[0].update_rule.plugin, PluginRef::Name("gated-delta".into()));
    assert_eq!(r.slots[0].feature_map.config, "normalise = \"sum\"".parse().unwrap());
    for (path, want) in [
        ("train.steps", "--steps"),
        ("train.device", "--device"),
        ("train.seed", "recipe.toml:10"),
        ("train.optimiser.eps", "recipe.toml:11"),
        ("train.optimiser.lr", "--set"),
        ("train.optimiser.weight_decay", "default"),
        ("task.keys", "recipe.toml:7"),
        ("task.length", "default"),
        ("update_rule.plugin", "--set"),
        ("slow_net.plugin", "recipe.toml:2"),
    ] {
        assert_eq!(r.source(path).unwrap().to_string(), want, "{path}");
    }
    assert_eq!(r.source("train.nonsense"), None);
    let values = r.values();
    let steps = values.iter().find(|(path, _, _)| path == "train.steps");
    let (_, value, source) = steps.unwrap();
    assert_eq!((value.as_integer(), source.to_string()), (Some(9), "--steps".into()));
}

#[test]
fn faults_of_the_command_line_are_placed_there() {
    for (list, want) in [
        (vec!["train.steps"], "--set train.steps: expected KEY=VALUE; for example --set train.steps=1000"),
        (vec!["train..steps=1"], "--set train..steps=1: \"train..steps\" is not a key; write it as in train.optimiser.lr"),
        (vec!["train.steps=many"], "--set train.steps=many: train.steps: expected an integer, found a string (\"many\")"),
        (vec!["train.stepz=1"], "--set train.stepz=1: train.stepz: unknown key; did you mean `steps`?"),
        (vec!["trian.steps=1"], "--set trian.steps=1: trian: unknown section; did you mean `train`?"),
        (vec!["task.keys.x=1"], "--set task.keys.x=1: task.keys: the recipe has an integer here, not a table"),
        (
            vec!["train.schedule.warmup=500"],
            "--set train.schedule.warmup=500: train.schedule.warmup: 500 steps of warm-up are more than train.steps = 100; shorten the warm-up, or train longer",
        ),
        (
            vec!["task.name=associative-capacity", "task.length=9"],
            "--set task.length=9: task.length: task `associative-capacity` has no such key; it has `keys`, `eval_sequences`",
        ),
        (
            vec!["task.name=text"],
            "zoo/x/recipe.toml:7:1: task.keys: task `text` has no such key; take it out with --set task.keys=",
        ),
        (
            vec!["task.context=\u{1b}[31m"],
            "--set task.context=\\u{1b}[31m: task.context: task `associative-update` has no such key; it has `keys`, `length`, `eval_length`, `eval_sequences`",
        ),
    ] {
        assert_eq!(refused_set(&list), want);
    }
    let data = Overrides { data: Some("input.txt".into()), ..Overrides::default() };
    assert_eq!(
        resolve_with(MINIMAL, &data, false).unwrap_err(),
        "--data input.txt: task.path: task `associative-update` has no such key; it has `keys`, `length`, `eval_length`, `eval_sequences`"
    );
    let steps = Overrides { steps: Some(0), ..Overrides::default() };
    assert_eq!(resolve_with(MINIMAL, &steps, false).unwrap_err(), "--steps 0: train.steps: 0 is not in 1..=1000000000000");
}

#[test]
fn an_empty_value_takes_a_key_out() {
    let text = with("batch_size = 4\n[feature_map]\nplugin = \"dpfp\"\nnu = 3");
    let r = resolve_with(
        &text,
        &sets(&["feature_map.plugin=elu+1", "feature_map.nu=", "train.batch_size=", "stop.patience="]),
        false,
    )
    .unwrap();
    assert!(r.slots[0].feature_map.config.is_empty());
    assert_eq!(r.train.batch_size, 32);
    let r = resolve_with(&text, &sets(&["feature_map.plugin=", "feature_map.nu="]), false).unwrap();
    assert_eq!(r.slots[0].feature_map.plugin, PluginRef::Name("identity".into()));
}

#[test]
fn libraries_by_path_need_the_command_line_or_trust() {
    let r = ok_set(&["update_rule.plugin=/abs/libx.so"]);
    assert_eq!(
        r.plugin_reference("update_rule"),
        Some(&PluginRef::Path { path: "/abs/libx.so".into(), from_command_line: true })
    );
    let r = ok_set(&["update_rule.plugin=./libx.so"]);
    let Some(PluginRef::Path { path, .. }) = r.plugin_reference("update_rule") else { panic!() };
    assert!(path.is_absolute() && path.ends_with("libx.so"));

    let text = MINIMAL.replace("\"delta\"", "\"libs/libx.so\"");
    let trusted = resolve_with(&text, &Overrides::default(), true).unwrap();
    assert_eq!(
        trusted.slots[0].update_rule.plugin,
        PluginRef::Path { path: "/zoo/x/libs/libx.so".into(), from_command_line: false }
    );
}

#[test]
fn data_stays_in_the_recipes_folder() {
    let text =
        |path: &str| MINIMAL.replace("associative-update", "text").replace("keys = 20", &format!("context = 8\npath = {path:?}"));
    let path = |r: Resolved| match r.task {
        TaskSpec::Text(t) => t.path.unwrap(),
        _ => panic!(),
    };
    assert_eq!(path(ok(&text("data/a.txt"))), Path::new("/zoo/x/data/a.txt"));
    for bad in ["/etc/passwd", "../a.txt", "data/../../a.txt"] {
        assert_eq!(
            refused(&text(bad)),
            format!(
                "zoo/x/recipe.toml:8:1: task.path: {bad:?} leads out of the recipe's folder; name the file on the command line: --data PATH"
            )
        );
    }
    assert_eq!(refused(&text("a.b").replace("a.b", "a\\u0000b")), "zoo/x/recipe.toml:8:1: task.path: \"a\\0b\" is not a path");
    let data = Overrides { data: Some("/data/input.txt".into()), ..Overrides::default() };
    let r = resolve_with(&text("a.txt"), &data, false).unwrap();
    assert_eq!(r.source("task.path").unwrap().to_string(), "--data");
    assert_eq!(path(r), Path::new("/data/input.txt"));
    // Without a path a text recipe can still be shown; opening the task asks for it.
    let r = ok(&text("x").replace("path = \"x\"\n", ""));
    let error = fwp_task::open(&r.task).err().unwrap().to_string();
    assert!(error.contains("--data PATH"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link")).unwrap();
    std::fs::write(folder.path().join("recipe.toml"), text("link")).unwrap();
    let read = |trust_paths| read(folder.path(), &Overrides::default(), &ReadOptions { trust_paths });
    let error = read(false).unwrap_err().to_string();
    assert!(error.contains("links out of the recipe's folder"), "{error}");
    assert!(read(true).is_ok());
}

#[test]
fn carrying_needs_sequential_order() {
    let text = MINIMAL.replace("associative-update", "text").replace("keys = 20", "context = 8");
    let carried = format!("{text}carry = \"detached\"\n");
    assert!(refused(&carried).ends_with("set task.order = \"sequential\""));
    let r = resolve_with(&carried, &sets(&["task.order=sequential"]), false).unwrap();
    assert_eq!(r.train.carry, Carry::Detached);
}

#[test]
fn what_has_no_effect_is_said() {
    let r = ok(&with("max_consecutive = 3\nschedule = { min_ratio = 0.1, decay_fraction = 0.1 }"));
    assert_eq!(
        r.warnings,
        [
            "zoo/x/recipe.toml:11:14: train.schedule.min_ratio has no effect with this schedule",
            "zoo/x/recipe.toml:10:1: train.max_consecutive has no effect without on_nonfinite = \"skip\"",
        ]
    );
    let r = ok(&with("max_consecutive = 3\non_nonfinite = \"skip\""));
    assert_eq!(r.train.on_nonfinite, OnNonfinite::Skip { max_consecutive: 3 });
    assert!(r.warnings.is_empty());
}

const FULL: &str = "\
title = \"A \\\"quoted\\\" title\\twith é\"
cite  = \"Someone 2021\"
notes = \"\"\"
two
lines \\\\ and \\u0007 a bell\"\"\"

[slow_net]
plugin = \"transformer\"
width = 128
dropout = 0.1
nested = { a = [1, 2.5, \"x\"], deeper = { on = true } }
empty = {}
list = [{ a = 1 }, { b = [] }]

[feature_map.main]
plugin = \"elu+1\"

[feature_map.second]
plugin = \"dpfp\"
nu = 3

[update_rule.first]
plugin = \"delta\"
layers = [0, 2]

[update_rule.second]
plugin = \"additive\"
eps = 1e-300

[task]
name = \"associative-update\"
keys = 20
eval_length = 40

[train]
steps = 1000
optimiser = { name = \"adamw\", lr = 0.1, betas = [0.9, 0.99], weight_decay = 0.30000000000000004 }
schedule = { name = \"cosine\", warmup = 100, min_ratio = 0.1 }
clip = 1
memory_limit = \"1.5GiB\"
on_nonfinite = \"skip\"

[stop]
eval_loss_at_most = 0.001
patience = 11
metric = \"eval/length_512/accuracy\"
at_least = 0.99

[expect]
metric = \"eval/loss\"
published = 0.0008
at_most = 0.001
";

#[test]
fn what_is_printed_reads_back_to_the_same() {
    let data = MINIMAL.replace("associative-update", "text").replace("keys = 20", "context = 8\ntrain_fraction = 0.7");
    let lists =
        MINIMAL.replace("associative-update", "group-words").replace("keys = 20", "group = \"S3\"\neval_lengths = [8, 16]");
    for (text, overrides) in [
        (MINIMAL.to_string(), sets(&[])),
        (lists, sets(&["task.eval_lengths=[32]"])),
        (FULL.to_string(), sets(&[])),
        (FULL.to_string(), sets(&["train.seed=5", "update_rule.first.plugin=/a b/libx.so"])),
        (data, Overrides { data: Some("/a b/ü.txt".into()), ..Overrides::default() }),
    ] {
        let first = resolve_with(&text, &overrides, false).unwrap();
        for printed in [first.to_toml(), first.show()] {
            let second = resolve_with(&printed, &Overrides::default(), true).unwrap();
            assert_eq!(first.tree.to_toml(), second.tree.to_toml(), "{printed}");
            assert_eq!(first.train, second.train);
            assert_eq!((&first.task, &first.eval), (&second.task, &second.eval));
            assert_eq!((&first.stop, &first.expect), (&second.stop, &second.expect));
            assert_eq!((&first.checkpoint, &first.monitor), (&second.checkpoint, &second.monitor));
            assert_eq!((&first.title, &first.notes), (&second.title, &second.notes));
            assert_eq!(first.slow_net, second.slow_net);
            assert_eq!(first.slots.len(), second.slots.len());
            for (a, b) in first.slots.iter().zip(&second.slots) {
                assert_eq!(a.layers, b.layers);
                assert_eq!(a.update_rule.config, b.update_rule.config);
                assert_eq!(a.feature_map, b.feature_map);
            }
            assert_eq!(second.to_toml(), first.to_toml());
        }
    }
}

#[test]
fn show_names_the_source_of_every_value() {
    let r = resolve_with(MINIMAL, &sets(&["train.optimiser.lr=0.01"]), false).unwrap();
    let shown = r.show();
    for line in [
        "[slow_net]",
        "plugin = \"retrieval\"         # recipe.toml:2",
        "plugin = \"identity\"          # default",
        "length = 40                  # default",
        "[train.optimiser]",
        "lr = 0.01                    # --set",
        "betas = [0.9, 0.999]         # default",
        "batch_size = 32              # default",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}\n{shown}");
    }
    let values = shown.lines().filter(|l| l.contains(" = "));
    assert!(values.clone().count() > 30 && values.into_iter().all(|l| l.contains("  # ")));
}

#[test]
fn later_errors_are_placed_as_well() {
    let text = with("[feature_map]\nplugin = \"dpfp\"\nnuu = 3");
    let r = ok(&text);
    let error = |r: &Resolved, path: &str| r.error_at(path, "unknown key", Some("did you mean `nu`?".into())).to_string();
    assert_eq!(error(&r, "feature_map.nuu"), "zoo/x/recipe.toml:12:1: feature_map.nuu: unknown key; did you mean `nu`?");
    let r = resolve_with(&text, &sets(&["feature_map.plugin=elu+1"]), false).unwrap();
    assert_eq!(
        error(&r, "feature_map.nuu"),
        "zoo/x/recipe.toml:12:1: feature_map.nuu: unknown key; did you mean `nu`? or take it out with --set feature_map.nuu="
    );
    assert_eq!(
        r.error_at("feature_map.missing", "needs a value", None).to_string(),
        "zoo/x/recipe.toml:10:2: feature_map.missing: needs a value"
    );
}

#[test]
fn line_ends_and_byte_order_marks_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("\u{feff}{}", FULL.replace('\n', "\r\n"));
    std::fs::write(folder.path().join("recipe.toml"), text).unwrap();
    let r = read(folder.path(), &Overrides::default(), &ReadOptions::default()).unwrap();
    let plain = ok(FULL);
    assert_eq!(r.train, plain.train);
    assert_eq!(r.source("task.keys").unwrap().to_string(), plain.source("task.keys").unwrap().to_string());
    assert_eq!(r.name, recipe_name(&folder.path().join("recipe.toml")));
}

#[test]
fn files_are_found_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let zoo = folder.path().join("deltanet");
    std::fs::create_dir(&zoo).unwrap();
    std::fs::write(zoo.join("recipe.toml"), MINIMAL).unwrap();
    std::fs::write(folder.path().join("my debug.toml"), MINIMAL).unwrap();
    let read = |path: &Path| {
        read(path, &Overrides::default(), &ReadOptions::default())
            .map_err(|e| e.to_string().replace(folder.path().to_str().unwrap(), "ZOO"))
    };
    assert_eq!(read(&zoo).unwrap().name, "deltanet");
    assert_eq!(read(&zoo.join("recipe.toml")).unwrap().name, "deltanet");
    assert_eq!(read(&folder.path().join("my debug.toml")).unwrap().name, "my-debug");
    for (path, want) in [
        ("deltnet", "ZOO/deltnet: there is no such recipe; did you mean `ZOO/deltanet`?"),
        ("zzz", "ZOO/zzz: there is no such recipe; see `fwp-host zoo list` for those of the zoo"),
        ("", "ZOO/: the folder holds no recipe.toml; name a recipe file or its folder"),
    ] {
        assert_eq!(read(&folder.path().join(path)).unwrap_err(), want);
    }
    let file = folder.path().join("big.toml");
    std::fs::write(&file, "#".repeat(1_000_001)).unwrap();
    assert_eq!(read(&file).unwrap_err(), "ZOO/big.toml: a recipe has at most 1000000 bytes");
    std::fs::write(&file, b"a = 1\nb = \"\xff\"").unwrap();
    assert_eq!(read(&file).unwrap_err(), "ZOO/big.toml:2: the file is not UTF-8; save it as UTF-8");
    assert!(read(Path::new("/dev/zero")).unwrap_err().contains("is not a file"));
}

#[test]
fn a_plan_holds_the_recipe_and_reads_back_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let run = crate::RunDir::create(&folder.path().join("run")).unwrap();
    let r = ok(FULL);
    let program = |kind, slot, name| run.write_program(kind, slot, name, b"bytes", "lib").unwrap();
    use crate::PartKind::{FeatureMap, SlowNet, UpdateRule};
    let slots = r
        .slots
        .iter()
        .map(|s| Slot {
            name: s.name.clone(),
            layers: s.layers.clone(),
            feature_map: program(FeatureMap, &s.name, "m"),
            update_rule: program(UpdateRule, &s.name, "r"),
        })
        .collect();
    let plan = r.plan(program(SlowNet, "main", "transformer"), slots);
    run.write_plan(&plan).unwrap();
    run.write_recipe(&r.to_toml()).unwrap();
    let back = crate::RunDir::open(run.path()).unwrap().read_plan().unwrap();
    assert_eq!(back, plan);
    assert_eq!(back.train.optimiser.weight_decay.to_bits(), 0.30000000000000004_f64.to_bits());
    assert_eq!(back.slots[0].layers, Some(vec![0, 2]));
    let json = plan.to_json().unwrap();
    let unknown = json.replacen("\"steps\"", "\"stepz\": 1, \"steps\"", 1);
    assert!(Plan::from_json(&unknown).unwrap_err().to_string().contains("stepz"));
    // The resolved recipe of the run gives the same plan again.
    let again = read(&run.recipe(), &Overrides::default(), &ReadOptions { trust_paths: true }).unwrap();
    assert_eq!(again.train, r.train);
}

/// A small generator of its own: these tests need many inputs, not good randomness.
struct Noise(u64);

impl Noise {
    fn next(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[test]
fn no_input_panics() {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let pieces = [
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ".",
        ",",
        "\"",
        "'",
        "\"\"\"",
        "\n",
        "\r\n",
        "#",
        " ",
        "train",
        "task",
        "update_rule",
        "feature_map",
        "slow_net",
        "plugin",
        "layers",
        "name",
        "steps",
        "optimiser",
        "\"text\"",
        "1",
        "-1",
        "1e999",
        "nan",
        "inf",
        "0x",
        "2020-01-01",
        "true",
        "é",
        "\0",
        "\u{feff}",
        "9223372036854775807",
        "[0, 1]",
        "{ a = 1 }",
        "\"delta\"",
        "main",
        "\\u",
    ];
    let mut accepted = 0;
    for round in 0..20_000 {
        let mut text: Vec<u8> = if round % 2 == 0 { FULL.into() } else { Vec::new() };
        for _ in 0..1 + noise.next(12) {
            let at = noise.next(text.len() + 1);
            match noise.next(4) {
                0 if !text.is_empty() => {
                    let end = (at + noise.next(20)).min(text.len());
                    text.drain(at..end);
                }
                1 => text.insert(at, noise.next(256) as u8),
                _ => {
                    let piece = pieces[noise.next(pieces.len())].as_bytes();
                    text.splice(at..at, piece.iter().copied());
                }
            }
        }
        let text = String::from_utf8_lossy(&text);
        let set = format!("{}={}", pieces[noise.next(pieces.len())], text.get(..20).unwrap_or(&text));
        let overrides = if round % 3 == 0 { sets(&[&set]) } else { sets(&[]) };
        match resolve_with(&text, &overrides, round % 5 == 0) {
            Ok(r) => {
                accepted += 1;
                let printed = r.to_toml();
                let back = resolve_with(&printed, &sets(&[]), true);
                assert_eq!(back.map(|b| b.to_toml()), Ok(printed));
            }
            Err(message) => {
                assert!(!message.contains('\n') && message.len() < 2000, "{message}");
            }
        }
    }
    assert!(accepted > 50, "the mutations should leave some recipes whole: {accepted}");
}
