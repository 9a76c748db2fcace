//! Every task trains the transformer from the command line.

use fwp_tests::Case;

/// A net small enough to train on anything in a second.
const NET: &str = r#"
[slow_net]
plugin = "transformer"
width = 16
layers = 2
heads = 2
mlp = 0

[feature_map]
plugin = "identity"
normalise = "l2"

[update_rule]
plugin = "delta"

[train]
steps = 4
batch_size = 8
optimiser = { name = "adamw", lr = 1e-3 }

[eval]
every = 2

[monitor]
log_every = 1
tensorboard = false

[task]
"#;

#[test]
fn the_transformer_trains_on_every_task_of_sequences() {
    let case = Case::new();
    let small = "train_sequences = 50\neval_sequences = 12\n";
    let lengths = "min_length = 5\nmax_length = 12\neval_min_length = 12\neval_max_length = 20\n";
    let tasks: [(&str, String, &[&str]); 10] = [
        ("associative-retrieval", small.into(), &["accuracy", "error"]),
        (
            "mqar",
            "train = \"16x2:20 32x4:20\"\neval = \"16x2:10 32x4:10\"\nvocab = 64\n".into(),
            &["16x2/accuracy", "32x4/sequence_accuracy", "accuracy"],
        ),
        ("parity", format!("{small}{lengths}"), &["accuracy", "scaled_accuracy"]),
        ("modular-arithmetic", format!("{small}{lengths}"), &["scaled_accuracy"]),
        ("modular-arithmetic", format!("brackets = true\n{small}{lengths}"), &["scaled_accuracy"]),
        (
            "group-words",
            format!("group = \"S3\"\nlength = 12\neval_lengths = [12, 24]\n{small}"),
            &["length_12/accuracy", "length_24/scaled_accuracy", "sequence_accuracy"],
        ),
        ("formal-language", format!("language = \"dyck-1\"\n{small}"), &["bin0/sequence_accuracy", "bin1/sequence_accuracy"]),
        ("formal-language", format!("language = \"counter-3\"\n{small}"), &["bin1/loss"]),
        ("code-execution", format!("statements = 6\n{small}"), &["print_accuracy", "sequence_accuracy"]),
        ("list-ops", format!("depth = 3\nmax_length = 128\n{small}"), &["scaled_accuracy"]),
    ];
    for (i, (name, keys, metrics)) in tasks.iter().enumerate() {
        // The last metric is waited for, in both sections.
        let metric = metrics[metrics.len() - 1];
        let waits = format!("metric = \"eval/{metric}\"\nat_least = 1000\n");
        let recipe = format!("{NET}name = \"{name}\"\n{keys}\n[stop]\n{waits}\n[expect]\n{waits}");
        case.write(&format!("task{i}.toml"), &recipe);
        case.ok(&format!("recipe show task{i}.toml"));
        case.ok(&format!("recipe check task{i}.toml"));
        let run = case.train(&format!("task{i}"), &format!("run{i}"), "");
        assert_eq!(run.metric("train/loss").len(), 4, "{name}");
        for metric in metrics.iter().chain(&["loss"]) {
            let values = run.metric(&format!("eval/{metric}"));
            assert_eq!(values.keys().copied().collect::<Vec<_>>(), [2, 4], "{name}: {metric}");
            assert!(values.values().all(|v| v.is_finite()), "{name}: {metric} {values:?}");
        }
        let document: serde_json::Value = serde_json::from_str(&case.ok(&format!("eval --run run{i} --json"))).unwrap();
        assert_eq!(document[format!("eval/{metric}")].as_f64(), run.metric(&format!("eval/{metric}")).get(&4).copied());
        assert_eq!(document["expect"]["passes"], false);
    }
}

#[test]
fn a_metric_ends_a_run_and_one_that_is_not_there_is_refused() {
    let case = Case::new();
    let recipe = |metric: &str| {
        let task = "name = \"parity\"\neval_sequences = 12\nmax_length = 12\neval_max_length = 44\n";
        format!("{NET}{task}\n[stop]\nmetric = \"{metric}\"\nat_least = 0\n[expect]\nmetric = \"{metric}\"\nat_least = 0\n")
    };
    case.write("good.toml", &recipe("eval/accuracy"));
    let said = fwp_tests::said(&case.run("train --recipe good.toml --run-dir good --progress none"));
    assert!(said.contains("ended      at step 2: target reached"), "{said}");
    assert!(said.contains("result     eval/accuracy measured") && said.contains("as expected"), "{said}");
    case.write("bad.toml", &recipe("eval/acuracy"));
    for command in ["train --run-dir bad --recipe bad.toml", "recipe check bad.toml"] {
        let said = case.fails(command, 3);
        assert!(said.contains("stop.metric") && said.contains("did you mean `eval/accuracy`?"), "{said}");
    }
}
