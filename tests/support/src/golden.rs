//! Programs of parts as they were built once: `tests/golden/KIND/NAME.jsonl`, a line a program.
//!
//! A line holds the configuration and the question that a host asked, the program's essence that the part answered, and numbers that
//! the program gave on seeded data. A line is never changed or removed: it is a part that somebody has built and still uses.
//! `FWP_WRITE_GOLDEN=1` adds lines for what is new, and touches no line that is there.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

/// Of every result, a sum with fixed weights and the sum of absolute values.
pub type Numbers = BTreeMap<String, [f64; 2]>;

/// How far a number may be from the recorded one, relative to the sum of absolute values.
///
/// Functions such as exp differ in their last digit from one system's library to another; recorded are ten digits.
const TOLERANCE: f64 = 1e-8;

/// One program of a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    /// The part's table of the recipe.
    pub config: Value,
    /// What a host asked.
    pub ask: Value,
    /// What the part answered, without documentation and source places.
    pub program: Vec<u8>,
    /// What the program gave.
    pub numbers: Numbers,
}

/// Whether new lines are to be written.
pub fn writing() -> bool {
    std::env::var_os("FWP_WRITE_GOLDEN").is_some()
}

fn folder(kind: &str) -> PathBuf {
    crate::repository().join("tests/golden").join(kind)
}

/// The parts of a kind that have golden programs.
///
/// # Panics
/// When the folder cannot be read.
pub fn names(kind: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder(kind)).unwrap_or_else(|e| panic!("{}: {e}", folder(kind).display()));
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// All programs of a part, from the oldest on; none where it has no file.
///
/// # Panics
/// When a line is not what [`add`] writes.
pub fn read(kind: &str, name: &str) -> Vec<Golden> {
    let text = std::fs::read_to_string(folder(kind).join(format!("{name}.jsonl"))).unwrap_or_default();
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> Golden {
    let line: Value = serde_json::from_str(line).expect("JSON");
    let digits = line["program"].as_str().expect("a program");
    let byte = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).expect("hexadecimal digits");
    let number = |v: &Value| v.as_str().and_then(|n| n.parse().ok()).expect("a number");
    let numbers = line["numbers"].as_object().expect("numbers");
    Golden {
        config: line["config"].clone(),
        ask: line["ask"].clone(),
        program: (0..digits.len()).step_by(2).map(byte).collect(),
        numbers: numbers.iter().map(|(name, v)| (name.clone(), [number(&v[0]), number(&v[1])])).collect(),
    }
}

/// Appends a program to the file of a part.
///
/// # Panics
/// When the file cannot be written.
pub fn add(kind: &str, name: &str, golden: &Golden) {
    let digits: String = golden.program.iter().map(|b| format!("{b:02x}")).collect();
    let number = |x: f64| format!("{x:.9e}");
    let numbers: BTreeMap<&String, [String; 2]> =
        golden.numbers.iter().map(|(n, [a, b])| (n, [number(*a), number(*b)])).collect();
    let line = json!({ "config": golden.config, "ask": golden.ask, "numbers": numbers, "program": digits });
    std::fs::create_dir_all(folder(kind)).expect("the folder of golden programs");
    let path = folder(kind).join(format!("{name}.jsonl"));
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("the file of golden programs");
    writeln!(file, "{line}").expect("a line");
}

/// The two numbers of a result.
pub fn digest(values: &[f64]) -> [f64; 2] {
    // No two weights are equal, so that elements that change places are noticed.
    let weighted = values.iter().enumerate().map(|(i, x)| x * (1.0 + i as f64).sqrt().sin()).sum();
    [weighted, values.iter().map(|x| x.abs()).sum()]
}

/// Compares numbers with the recorded ones.
///
/// # Panics
/// When a result is missing, or its numbers are others.
pub fn assert_same(found: &Numbers, recorded: &Numbers, what: &str) {
    let (names, wanted): (Vec<_>, Vec<_>) = (found.keys().collect(), recorded.keys().collect());
    assert_eq!(names, wanted, "{what}: results");
    for (name, wanted) in recorded {
        let found = found[name];
        assert!(found.iter().all(|x| x.is_finite()) && wanted[1] > 0.0, "{what}: {name} gives {found:?}");
        let apart = (found[0] - wanted[0]).abs().max((found[1] - wanted[1]).abs()) / wanted[1];
        assert!(apart <= TOLERANCE, "{what}: {name} gives {found:?}, and gave {wanted:?} when it was written");
    }
}
