//! Libraries that were built for the border of another day, beside the host of today.

use std::path::PathBuf;

use fwp_test_support::{golden, repository};
use fwp_tests::Case;
use fwp_tests::outside::Crate;
use serde_json::{Value, json};

/// The border that was frozen, as the text of a library that needs nothing of this repository.
fn frozen() -> String {
    std::fs::read_to_string(repository().join("tests/golden/border/0.1.rs")).unwrap()
}

/// A library of this text for this version of the border.
fn built(case: &Case, version: &str, source: &str) -> PathBuf {
    // abi_stable compares the name of the package that a layout comes from; only the name of the file is this library's own.
    let manifest = format!(
        "[package]\nname = \"fwp-border\"\nversion = \"{version}\"\nedition = \"2024\"\n\n\
         [lib]\nname = \"built_before\"\ncrate-type = [\"cdylib\"]\n\n[dependencies]\nabi_stable = \"=0.11.3\"\n"
    );
    let parts = json!([{
        "kind": "update-rule", "name": "delta", "doc": "A rule of old.", "citation": "a paper",
        "fields": [{ "name": "eps", "kind": "a number", "default": 1e-6, "doc": "A number." }],
    }]);
    let mut program = golden::read("update-rules", "delta").remove(0).program;
    // An optional section that nobody knows yet.
    program.extend(b"\xff\xff\x05later");
    let files: [(&str, &[u8]); 4] = [
        ("Cargo.toml", manifest.as_bytes()),
        ("src/lib.rs", source.as_bytes()),
        ("src/parts.json", &serde_json::to_vec(&parts).unwrap()),
        ("src/program.fwp", &program),
    ];
    Crate::of(&case.path(version), "built_before", &files).build()
}

#[test]
fn a_library_of_the_frozen_border_is_loaded_and_one_of_another_is_refused() {
    let case = Case::new();
    let library = built(&case, "0.1.0", &frozen());
    let shown: Value = serde_json::from_str(&case.ok(&format!("plugins show {} --json", library.display()))).unwrap();
    assert_eq!((&shown["doc"], &shown["sdk_version"]), (&json!("A rule of old."), &json!("0.1.0")), "{shown}");
    assert!(
        shown["program"].as_str().unwrap().contains("beta") && shown["analysis"]["executors"]["chunkwise"]["applies"] == true
    );

    // A later one with a function more behind the last: this host calls what it knows.
    let more = "pub describe: extern \"C\" fn(RSlice<'_, u8>) -> RResult<RVec<u8>, RString>,";
    assert!(frozen().contains(more));
    let later = frozen()
        .replace(more, &format!("{more}\n    pub later: extern \"C\" fn(u64) -> u64,"))
        .replace("list, describe }", "list, describe, later }")
        .replace("extern \"C\" fn erased", "extern \"C\" fn later(x: u64) -> u64 {\n    x\n}\n\nextern \"C\" fn erased")
        .replace("\"0.1.0\".into()", "\"0.9.3\".into()");
    let library = built(&case, "0.1.7", &later);
    let shown: Value = serde_json::from_str(&case.ok(&format!("plugins show {} --json", library.display()))).unwrap();
    assert_eq!(shown["sdk_version"], "0.9.3", "the SDK may be a later one: {shown}");

    // The same text for the next border.
    let library = built(&case, "0.2.0", &frozen());
    let said = case.fails(&format!("plugins show {}", library.display()), 4);
    assert!(said.contains("built for version 0.2.0 of the border") && said.contains("this host has version 0.1."), "{said}");
    assert!(said.contains("  remedy: rebuild the plugin against fwp-sdk"), "{said}");

    // The right version, with something else in it.
    let other = frozen()
        .replace("pub list: extern \"C\" fn() ->", "pub list: extern \"C\" fn(u64) ->")
        .replace("fn list()", "fn list(_: u64)");
    let library = built(&case, "0.1.1", &other);
    let said = case.fails(&format!("plugins show {}", library.display()), 4);
    assert!(said.contains("laid out differently"), "{said}");
}
