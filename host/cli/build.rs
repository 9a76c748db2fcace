//! Puts the commit into the executable: a measurement says which code made it.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Every commit and checkout adds a line to this file; a source archive has none, and then there is only the version.
    if let Some(folder) = git(&["rev-parse", "--absolute-git-dir"]) {
        let log = Path::new(&folder).join("logs").join("HEAD");
        println!("cargo:rerun-if-changed={}", log.display());
    }
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let version = match git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]) {
        Some(commit) => format!("{version} ({commit})"),
        None => version,
    };
    println!("cargo:rustc-env=FWP_VERSION={version}");
}

/// What git says of the folder of this crate.
fn git(arguments: &[&str]) -> Option<String> {
    let said = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(said.stdout).ok()?;
    let line = text.trim();
    (said.status.success() && !line.is_empty()).then(|| line.to_owned())
}
