//! Evaluation of what was trained.

use fwp_tests::run::Run;
use fwp_tests::{Case, said, text};
use serde_json::Value;

fn eval(case: &Case, arguments: &str) -> Value {
    serde_json::from_str(&case.ok(&format!("eval --json --run {arguments}"))).expect("one JSON document")
}

fn last(run: &Run, name: &str) -> f64 {
    *run.metric(name).last_key_value().unwrap().1
}

#[test]
fn it_gives_what_training_saw() {
    let case = Case::new();
    for recipe in ["memory", "language"] {
        let run = case.train(recipe, recipe, "--steps 20 --set eval.every=4");
        let found = eval(&case, recipe);
        assert_eq!(found["eval/loss"], last(&run, "eval/loss"), "{recipe}: {found}");
        assert_eq!(found["eval/accuracy"], last(&run, "eval/accuracy"), "{recipe}");
        assert_eq!(found["step"], 20, "{recipe}");
        // Every number but the clock's is the same again.
        let again = eval(&case, recipe);
        let without = |mut v: Value| {
            v.as_object_mut().unwrap().remove("seconds").expect("seconds");
            v
        };
        assert_eq!(without(found), without(again), "{recipe}");
        // It leaves the run as it is.
        assert_eq!(run.metric("eval/loss").len(), 5);
    }
}

#[test]
fn the_test_split_is_another_one_and_always_the_same() {
    let case = Case::new();
    let run = case.train("memory", "out", "--steps 20 --set eval.every=4");
    let (validation, test) = (eval(&case, "out"), eval(&case, "out --test"));
    assert_eq!((&validation["split"], &test["split"]), (&"validation".into(), &"test".into()));
    assert_eq!(validation["eval/loss"], last(&run, "eval/loss"));
    // Other sequences of the same kind: another loss, and not far.
    let (a, b) = (validation["eval/loss"].as_f64().unwrap(), test["eval/loss"].as_f64().unwrap());
    assert!(a != b && (a - b).abs() < 0.2, "{a} {b}");
    assert_eq!(eval(&case, "out --test")["eval/loss"], test["eval/loss"]);
    assert!(case.ok("eval --run out --test").contains("(test split)"));
    // What a file holds is not drawn.
    case.train("language", "text", "--steps 12");
    let said = case.fails("eval --run text --test", 3);
    assert!(said.contains("reads a file") && said.contains("--data"), "{said}");
}

#[test]
fn the_best_checkpoint_is_kept_and_found() {
    let case = Case::new();
    // A rate at which the loss goes up and down.
    let run = case.train("memory", "out", "--set eval.every=2 --set train.optimiser.lr=0.3 --set checkpoint.keep=1");
    let losses = run.metric("eval/loss");
    let (step, loss) = losses.iter().min_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    let best = eval(&case, "out --checkpoint best");
    assert_eq!((&best["step"], &best["eval/loss"]), (&(*step).into(), &(*loss).into()));
    let named = eval(&case, &format!("out --checkpoint {step}"));
    assert_eq!(named["eval/loss"], *loss);
    assert_eq!(eval(&case, "out")["step"], 30);
    let kept: std::collections::BTreeSet<u64> = [*step, 30].into();
    assert_eq!(run.checkpoints(), kept.into_iter().collect::<Vec<_>>());
    // Also where older checkpoints are kept that had another best one in their time.
    let all = case.train("memory", "all", "--set eval.every=2 --set train.optimiser.lr=0.3 --set checkpoint.keep=99");
    assert_eq!(all.metric("eval/loss"), losses);
    assert!(all.checkpoints().len() > 2, "{:?}", all.checkpoints());
    assert_eq!(eval(&case, "all --checkpoint best")["step"], *step);
    let said = case.fails("eval --run out --checkpoint 7", 3);
    assert!(said.contains("no checkpoint of step 7") && said.contains("30"), "{said}");
}

#[test]
fn it_needs_neither_recipe_nor_plugins_and_the_data_may_move() {
    let case = Case::installed();
    let run = case.train("language", "out", "--steps 10");
    std::fs::remove_dir_all(case.path("bin/plugins")).unwrap();
    std::fs::remove_file(case.path("language.toml")).unwrap();
    std::fs::rename(case.path("text.txt"), case.path("moved.txt")).unwrap();
    let gone = case.fails("eval --run out --json", 3);
    assert!(gone.contains("text.txt"), "{gone}");
    let moved = eval(&case, "out --data moved.txt");
    assert_eq!(moved["eval/loss"], last(&run, "eval/loss"));
    // Another text of the same alphabet has another loss.
    let mut lines: Vec<String> = text(6000).lines().map(str::to_string).collect();
    lines.reverse();
    case.write("other.txt", &lines.join("\n"));
    let other = eval(&case, "out --data other.txt");
    assert_ne!(other["eval/loss"], moved["eval/loss"]);
}

#[test]
fn the_whole_validation_part_is_read() {
    let case = Case::new();
    // Without `eval_windows` every character of the validation part is predicted but those before the first.
    case.train("language", "out", "--steps 2 --set train.schedule.warmup=1 --set task.eval_windows=");
    let validation = text(6000).chars().count() - (text(6000).chars().count() as f64 * 0.9).floor() as usize;
    let tokens = eval(&case, "out")["tokens"].as_u64().unwrap() as usize;
    assert!(tokens <= validation && tokens + 7 >= validation, "{tokens} of {validation}");
}

#[test]
fn what_is_no_run_or_damaged_is_refused() {
    let case = Case::new();
    case.write("empty/notes.txt", "");
    assert!(case.fails("eval --run empty", 3).contains("is no run"));
    assert!(case.fails("eval --run nothing", 3).contains("is no run"));
    let run = case.train("memory", "out", "--steps 10");
    let text = case.ok("eval --run out");
    assert!(text.contains("eval/loss") && text.contains("step 10"), "{text}");
    let program = run.path("programs/update-rule-main.fwp");
    let good = std::fs::read(&program).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(&program, bad).unwrap();
    assert!(case.fails("eval --run out", 3).contains("has changed"));
    std::fs::write(&program, good).unwrap();
    let model = run.path("checkpoints/step-10/model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    bytes.pop();
    std::fs::write(&model, bytes).unwrap();
    let output = case.run("eval --run out");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("model.safetensors"), "{}", said(&output));
}
