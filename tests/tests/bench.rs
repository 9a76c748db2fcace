//! Executors side by side on one shape.

use fwp_tests::Case;
use serde_json::Value;

const BENCH: &str = "bench --rule delta --batch 2 --heads 2 --time 96 --key-dim 8 --value-dim 16 --rounds 3";

fn rows(case: &Case, arguments: &str) -> Vec<Value> {
    let text = case.ok(arguments);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments} prints no single JSON array: {e}: {text}"))
}

#[test]
fn every_executor_has_its_figures() {
    let case = Case::new();
    let rows = rows(&case, &format!("{BENCH} --dtype float32 --json"));
    let names: Vec<&str> = rows.iter().map(|r| r["executor"].as_str().unwrap()).collect();
    assert_eq!(names, ["reference", "chunkwise", "scan"]);
    for row in &rows {
        if row["applies"] == false {
            // Nothing is made up where nothing was measured.
            assert!(row["why"].as_str().is_some_and(|w| !w.is_empty()), "{row}");
            assert_eq!(row.as_object().unwrap().len(), 3, "{row}");
            continue;
        }
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
        for key in ["forward_ms", "backward_ms", "total_ms", "tokens_per_second", "matmul_gflops", "share_of_matmul"] {
            assert!(number(key) > 0.0 && number(key).is_finite(), "{key}: {row}");
        }
        assert!(row["peak_bytes"].is_u64() && row["threads"].as_u64() > Some(0), "{row}");
        assert!(row["rounds"] == 3 && number("others_busy") >= 0.0 && row["finite"] == true, "{row}");
        for part in ["forward", "backward", "total"] {
            let (median, range) = (number(&format!("{part}_ms")), &row[format!("{part}_ms_range")]);
            assert!(range[0].as_f64().unwrap() <= median && median <= range[1].as_f64().unwrap(), "{part}: {row}");
        }
        let tokens = 2.0 * 96.0 / number("total_ms") * 1e3;
        assert!((tokens / number("tokens_per_second") - 1.0).abs() < 1e-6, "{row}");
    }
    assert_eq!(rows[0]["applies"], true, "the reference serves every rule");
}

#[test]
fn chosen_executors_and_a_table_for_people() {
    let case = Case::new();
    let chosen = rows(&case, &format!("{BENCH} --exec reference --no-peak --threads 1 --json"));
    assert_eq!((chosen.len(), &chosen[0]["threads"]), (1, &Value::from(1)));
    assert!(chosen[0]["peak_bytes"].is_null());
    let text = case.ok(&format!("{BENCH} --exec reference --feature-map dpfp --set feature_map.nu=2 --dtype float64"));
    for words in ["delta: batch 2, 2 heads, 96 steps", "float64", "EXECUTOR", "reference", "GFLOP/s"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_peak_grows_with_the_length() {
    let case = Case::new();
    let peak = |steps: usize| {
        let call =
            format!("bench --rule delta --heads 4 --key-dim 32 --value-dim 32 --time {steps} --rounds 1 --exec reference --json");
        rows(&case, &call)[0]["peak_bytes"].as_u64().unwrap() as f64
    };
    // The reference keeps at least one state [4, 32, 32] of four bytes for every step.
    let (short, long) = (peak(256), peak(512));
    let state = 4.0 * 32.0 * 32.0 * 4.0;
    assert!(long - short > 256.0 * state, "{short} {long}");
    assert!(long < 3.0 * short, "{short} {long}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let case = Case::new();
    for (arguments, code, words) in [
        ("bench --rule dellta", 4, "did you mean `delta`?"),
        ("bench --rule delta --time 0", 2, "begin at 1"),
        ("bench --rule delta --seconds=-1", 2, "--seconds"),
        ("bench --rule delta --threads 1000000", 2, "8 for each of"),
        ("bench --rule mesa --time 4 --exec chunkwise", 3, "none of these executors serves the rule"),
        ("bench --rule delta --time 1000000000000", 3, "lower --batch"),
        ("bench --rule delta --time 9000000000000000000", 3, "lower --batch"),
        ("bench --rule delta --dtype float16", 2, "float32"),
        ("bench --rule delta --set colour=1", 4, "unknown key `colour`"),
        ("bench --rule delta --set feature_map.nu=1", 2, "--feature-map"),
        ("bench --rule delta --time 4 --exec quick", 2, "chunkwise"),
    ] {
        let said = case.fails(arguments, code);
        assert!(said.contains(words), "{arguments}: {words}: {said}");
    }
}
