//! docs/recipes.md lists what the tables of keys say.

use std::path::Path;

use fwp_recipe::keys::sections;
use fwp_task::schema::{KeyInfo, Kind};

/// The table of a section as it must stand in the document.
fn table(keys: &[KeyInfo]) -> String {
    let rows = keys.iter().map(|key| format!("| `{}` | {} | {} | {} |\n", key.name, kind(key), default(key), key.doc));
    format!("| key | value | default | meaning |\n|---|---|---|---|\n{}\n", rows.collect::<String>())
}

fn kind(key: &KeyInfo) -> String {
    match key.kind {
        // Their lists are read by the host itself.
        _ if key.name == "layers" => "a list of integers".into(),
        // So large that the bound is only there to have one.
        Kind::Integer { min, max } if max >= 1_000_000_000 => format!("an integer >= {min}"),
        Kind::Integer { min, max } => format!("{} to {}", thousands(min), thousands(max)),
        kind => kind.to_string(),
    }
}

/// A constant as it is written in a recipe, any other default in words.
fn default(key: &KeyInfo) -> String {
    match key.default.value() {
        Some(value) => format!("`{value}`"),
        None => key.default.to_string(),
    }
}

fn thousands(number: i64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|g| String::from_utf8_lossy(g).into_owned());
    groups.collect::<Vec<_>>().join(",")
}

#[test]
fn the_document_lists_every_key_as_the_host_reads_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipes.md");
    let document = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let holds = |heading: &str, keys: &[KeyInfo]| {
        let after = document.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading:?}")).1;
        // Up to the next heading of any level.
        let section = after.split("\n#").next().unwrap_or(after).to_string() + "\n";
        let wanted = table(keys);
        assert!(section.contains(&wanted), "below {heading:?}, docs/recipes.md must say\n\n{wanted}but says\n\n{section}");
    };
    for section in sections() {
        let heading =
            if section.name.is_empty() { "## Above the first section".into() } else { format!("## `[{}]`", section.name) };
        holds(&heading, section.keys);
    }
    for task in fwp_task::tasks() {
        holds(&format!("### `{}`", task.name), task.keys);
    }
}
