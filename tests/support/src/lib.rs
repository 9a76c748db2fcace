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
//!
//! [`golden`] reads the programs that parts had in the past.

pub mod golden;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex};

/// What one run of cargo builds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Selection {
    /// Libraries and executables of the whole workspace, as `scripts/fwp` builds them: cargo joins the features of what it
    /// builds together, so that a package built alone would be compiled again, with others.
    Workspace,
    /// The examples, which are the fixtures; built by `cargo test` as well.
    Examples,
}

/// What was built already, each selection once a process.
static BUILT: LazyLock<Mutex<HashMap<Selection, Vec<Artifact>>>> = LazyLock::new(Mutex::default);

/// A file that cargo wrote or found fresh.
#[derive(Clone)]
struct Artifact {
    path: PathBuf,
    executable: bool,
}

/// The plugin library of a workspace package.
///
/// # Panics
/// When cargo cannot build it, with cargo's messages on stderr.
pub fn plugin(package: &str) -> PathBuf {
    library(Selection::Workspace, &package.replace('-', "_")).unwrap_or_else(|| panic!("package {package} has no cdylib"))
}

/// Several plugin libraries.
///
/// # Panics
/// As [`plugin`].
pub fn plugins(packages: &[&str]) -> Vec<PathBuf> {
    packages.iter().map(|package| plugin(package)).collect()
}

/// A fixture library of `tests/fixtures`.
///
/// # Panics
/// As [`plugin`].
pub fn fixture(name: &str) -> PathBuf {
    library(Selection::Examples, name).unwrap_or_else(|| panic!("there is no fixture {name}"))
}

/// An executable of a workspace package: `fwp-host` or `fwp-engine`.
///
/// Plugins that lie in the executable's folder are found by `fwp-host`; a test that wants only its own
/// names them with `--plugin-path` and takes the host from [`lonely_host`].
///
/// # Panics
/// As [`plugin`].
pub fn executable(package: &str) -> PathBuf {
    let file = format!("{package}{}", std::env::consts::EXE_SUFFIX);
    named(Selection::Workspace, true, &file).unwrap_or_else(|| panic!("package {package} has no executable"))
}

fn library(selection: Selection, name: &str) -> Option<PathBuf> {
    named(selection, false, &format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX))
}

fn named(selection: Selection, executable: bool, file: &str) -> Option<PathBuf> {
    let is = |a: &Artifact| a.executable == executable && a.path.file_name().is_some_and(|n| n == file);
    built(selection).into_iter().find(is).map(|a| a.path)
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

/// Writes a shell script that can be run at once.
///
/// A process of its own writes it: a child that another thread of the test starts meanwhile would hold an own file open for writing, and
/// such a file is "busy" and not run.
///
/// # Panics
/// When it cannot be written.
pub fn script(path: &Path, text: &str) {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "rm -f \"$0\" && cat > \"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut child = command.spawn().expect("a shell");
    child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("the text of a script");
    assert!(child.wait().expect("the end of the shell").success(), "{} cannot be written", path.display());
}

/// The library of a plugin crate outside of the workspace, built in its own target folder.
///
/// # Panics
/// When cargo cannot build it.
pub fn outside_plugin(folder: &Path) -> PathBuf {
    let manifest = folder.join("Cargo.toml");
    let target = folder.join("target");
    let arguments = ["--manifest-path", path(&manifest), "--target-dir", path(&target), "--lib"];
    let mut libraries = cargo_build(&arguments).into_iter().filter(|a| !a.executable);
    // What a plugin depends on may be a shared library too; its own comes last.
    libraries.next_back().map(|a| a.path).unwrap_or_else(|| panic!("{} has no cdylib", folder.display()))
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the repository").to_path_buf()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Builds once a process; cargo itself finds out what is fresh.
fn built(selection: Selection) -> Vec<Artifact> {
    let mut done = BUILT.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(files) = done.get(&selection) {
        return files.clone();
    }
    let (target, profile, triple) = layout();
    let manifest = repository().join("Cargo.toml");
    let mut all = vec!["--manifest-path", path(&manifest), "--target-dir", path(&target), "--profile", &profile];
    if let Some(triple) = &triple {
        all.extend(["--target", triple]);
    }
    all.extend(["--workspace", "--locked"]);
    if selection == Selection::Examples {
        all.push("--examples");
    }
    let files = cargo_build(&all);
    done.insert(selection, files.clone());
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
    // Cargo keeps this file in the target folder itself. Its CACHEDIR.TAG is only there where cargo made the folder.
    if above.join(".rustc_info.json").exists() {
        return (above.into(), profile, None);
    }
    (above.parent().expect("the target folder").into(), profile, Some(name(above)))
}

/// Runs `cargo build` and gives the shared libraries and executables.
fn cargo_build(arguments: &[&str]) -> Vec<Artifact> {
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
        files.extend(message["executable"].as_str().map(|path| Artifact { path: path.into(), executable: true }));
        if message["target"]["crate_types"].as_array().is_some_and(|k| k.iter().any(|k| k == "cdylib")) {
            let names = message["filenames"].as_array().into_iter().flatten().filter_map(|f| f.as_str());
            let libraries = names.filter(|f| f.ends_with(std::env::consts::DLL_SUFFIX));
            files.extend(libraries.map(|path| Artifact { path: path.into(), executable: false }));
        }
    }
    files
}
