//! Builds what black-box tests need and says where it is.
//!
//! `cargo test` builds neither the plugins nor the executables of other crates.
//! A test that took what lies in the target folder would run yesterday's build, or none on a fresh clone.
//! So a test asks here, and cargo builds what is missing with the profile and target folder of the test itself.
//!
//! ```no_run
//! let library = fwp_test_support::plugin("fwp-rule-delta");
//! let host = fwp_test_support::executable("fwp-host");
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

/// What was built already: the files by package (or `package/example`).
static BUILT: LazyLock<Mutex<HashMap<String, Vec<PathBuf>>>> = LazyLock::new(Mutex::default);

/// The plugin library of a workspace package.
///
/// # Panics
/// When cargo cannot build it, with cargo's messages on stderr.
pub fn plugin(package: &str) -> PathBuf {
    let files = built(package, &["-p", package, "--lib"], Some("cdylib"));
    files.into_iter().next().unwrap_or_else(|| panic!("package {package} has no cdylib"))
}

/// Several plugin libraries, built by one cargo.
///
/// # Panics
/// As [`plugin`].
pub fn plugins(packages: &[&str]) -> Vec<PathBuf> {
    let arguments: Vec<&str> = packages.iter().flat_map(|p| ["-p", p]).chain(["--lib"]).collect();
    let files = built(&packages.join(" "), &arguments, Some("cdylib"));
    packages
        .iter()
        .map(|package| {
            let name = format!("lib{}.{}", package.replace('-', "_"), std::env::consts::DLL_EXTENSION);
            let found = files.iter().find(|f| f.file_name().is_some_and(|n| n == name.as_str()));
            found.cloned().unwrap_or_else(|| panic!("package {package} has no cdylib"))
        })
        .collect()
}

/// A fixture library of `tests/fixtures`.
///
/// # Panics
/// As [`plugin`].
pub fn fixture(name: &str) -> PathBuf {
    let files = built("fwp-fixtures", &["-p", "fwp-fixtures", "--examples"], Some("cdylib"));
    let file = format!("lib{name}.{}", std::env::consts::DLL_EXTENSION);
    let found = files.into_iter().find(|f| f.file_name().is_some_and(|n| n == file.as_str()));
    found.unwrap_or_else(|| panic!("there is no fixture {name}"))
}

/// An executable of a workspace package: `fwp-host` or `fwp-engine`.
///
/// Plugins that lie in the executable's folder are found by `fwp-host`; a test that wants only its own
/// names them with `--plugin-path` and takes the host from [`lonely_host`].
///
/// # Panics
/// As [`plugin`].
pub fn executable(package: &str) -> PathBuf {
    let files = built(&format!("bin {package}"), &["-p", package, "--bin", package], None);
    files.into_iter().next().unwrap_or_else(|| panic!("package {package} has no executable"))
}

/// A copy of an executable in a folder of its own, beside which no plugin and no engine lies.
///
/// # Panics
/// When the folder cannot be written.
pub fn lonely_host(host: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join("fwp-host");
    std::fs::create_dir_all(folder).expect("the folder of the executable");
    // A hard link is instant and needs no disk; a folder on another file system gets a copy.
    if std::fs::hard_link(host, &copy).is_err() {
        std::fs::copy(host, &copy).expect("a copy of the executable");
    }
    copy
}

/// The library of a plugin crate outside of the workspace, built in its own target folder.
///
/// # Panics
/// When cargo cannot build it.
pub fn outside_plugin(folder: &Path) -> PathBuf {
    let manifest = folder.join("Cargo.toml");
    let target = folder.join("target");
    let arguments = ["--manifest-path", path(&manifest), "--target-dir", path(&target), "--lib"];
    let files = cargo_build(&arguments, Some("cdylib"));
    files.into_iter().next().unwrap_or_else(|| panic!("{} has no cdylib", folder.display()))
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the repository").to_path_buf()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Builds once a process; cargo itself finds out what is fresh.
fn built(key: &str, arguments: &[&str], crate_type: Option<&str>) -> Vec<PathBuf> {
    let mut done = BUILT.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(files) = done.get(key) {
        return files.clone();
    }
    let (target, profile, triple) = layout();
    let manifest = repository().join("Cargo.toml");
    let mut all = vec!["--manifest-path", path(&manifest), "--target-dir", path(&target), "--profile", &profile];
    if let Some(triple) = &triple {
        all.extend(["--target", triple]);
    }
    all.extend(arguments);
    let files = cargo_build(&all, crate_type);
    done.insert(key.into(), files.clone());
    files
}

/// Target folder, profile and target triple of the running test: `TARGET[/TRIPLE]/PROFILE/deps/TEST`.
fn layout() -> (PathBuf, String, Option<String>) {
    let test = std::env::current_exe().expect("the path of the test");
    let folder = test.parent().and_then(Path::parent).expect("the folder of the profile");
    let name = |p: &Path| p.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
    let profile = match name(folder).as_str() {
        "debug" => "dev".into(),
        other => other.to_string(),
    };
    let above = folder.parent().expect("the target folder");
    if above.join("CACHEDIR.TAG").exists() {
        return (above.into(), profile, None);
    }
    (above.parent().expect("the target folder").into(), profile, Some(name(above)))
}

/// Runs `cargo build` and gives the files of the wanted kind: libraries of a crate type, or executables.
fn cargo_build(arguments: &[&str], crate_type: Option<&str>) -> Vec<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--message-format=json-render-diagnostics"])
        .args(arguments)
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo build {} failed:\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    let mut files = Vec::new();
    for line in output.stdout.split(|b| *b == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        match crate_type {
            None => files.extend(message["executable"].as_str().map(PathBuf::from)),
            Some(kind) => {
                let kinds = message["target"]["crate_types"].as_array();
                if kinds.is_some_and(|k| k.iter().any(|k| k == kind)) {
                    let names = message["filenames"].as_array().into_iter().flatten().filter_map(|f| f.as_str());
                    files.extend(names.filter(|f| f.ends_with(std::env::consts::DLL_SUFFIX)).map(PathBuf::from));
                }
            }
        }
    }
    files
}
