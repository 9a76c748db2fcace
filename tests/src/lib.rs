//! What the black-box tests share: a host as a user has it, small recipes, and reading what a run leaves behind.
//!
//! Nothing here links a crate of the host: the tests see executables, files and exit codes, as a user does.

pub mod arrays;
pub mod documents;
pub mod outside;
pub mod process;
pub mod run;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fwp_test_support as support;

/// The recipe of a small associative memory; a step takes a few milliseconds.
pub const MEMORY: &str = r#"title = "A small memory"
cite = "none"

[slow_net]
plugin = "retrieval"
key_dim = 4

[feature_map]
plugin = "dpfp"
nu = 1
normalise = "sum"

[update_rule]
plugin = "delta"

[task]
name = "associative-update"
keys = 4
length = 6

[train]
steps = 30
batch_size = 4
optimiser = { name = "adam", lr = 1e-2 }

[eval]
every = 10

[monitor]
log_every = 1
"#;

/// The recipe of a small language model that uses all that a resumed run must restore: dropout, micro-batches, a schedule.
pub const LANGUAGE: &str = r#"title = "A small language model"

[slow_net]
plugin = "transformer"
width = 8
layers = 1
heads = 2
conv = 2
mlp = 8
dropout = 0.2

[feature_map]
plugin = "identity"
normalise = "l2"

[update_rule]
plugin = "delta"

[task]
name = "text"
context = 6
eval_windows = 10

[train]
steps = 60
batch_size = 3
accumulate = 2
optimiser = { name = "adamw", lr = 1e-2, weight_decay = 0.1 }
schedule = { name = "cosine", warmup = 10, min_ratio = 0.1 }
clip = 1.0

[eval]
every = 25

[monitor]
log_every = 1
"#;

/// A folder of its own with recipes and a text, and the host that was just built.
pub struct Case {
    folder: tempfile::TempDir,
    host: PathBuf,
    library: Option<PathBuf>,
}

impl Default for Case {
    fn default() -> Case {
        Case::new()
    }
}

impl Case {
    /// The host where cargo left it, with the plugins of the repository beside it.
    pub fn new() -> Case {
        build();
        Case::with(support::executable("fwp-host"))
    }

    /// A copy of host, engine and plugins in the folder itself: `bin/`, with the plugins in `bin/plugins/`.
    pub fn installed() -> Case {
        let libraries = build();
        let host = support::executable("fwp-host");
        let case = Case::with(host.clone());
        let plugins = case.path("bin/plugins");
        std::fs::create_dir_all(&plugins).expect("a folder for plugins");
        support::lonely_host(&host, &case.path("bin"));
        std::fs::copy(support::executable("fwp-engine"), case.path("bin/fwp-engine")).expect("a copy of the engine");
        for library in libraries {
            std::fs::copy(&library, plugins.join(library.file_name().expect("a file"))).expect("a copy of a plugin");
        }
        Case { host: case.path("bin/fwp-host"), ..case }
    }

    fn with(host: PathBuf) -> Case {
        let folder = tempfile::Builder::new().prefix("fwp-test-").tempdir().expect("a temporary folder");
        let case = Case { folder, host, library: libtorch() };
        case.write("memory.toml", MEMORY);
        case.write("language.toml", LANGUAGE);
        case.write("text.txt", &text(6000));
        case
    }

    /// A path in the folder, which is also the working directory of the host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the folder.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder of a file");
        std::fs::write(&path, content).expect("a file");
        path
    }

    /// The host's executable.
    pub fn host(&self) -> &Path {
        &self.host
    }

    /// The host with arguments that are divided by white space, in an environment that nobody else's settings reach.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.host);
        command.args(arguments.split_whitespace()).current_dir(self.folder.path()).stdin(Stdio::null());
        for name in ["FWP_PLUGIN_PATH", "FWP_PLUGIN_TIMEOUT", "FWP_ENGINE", "XDG_DATA_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env("HOME", self.folder.path()).env("FWP_ZOO", support::repository().join("zoo"));
        if let Some(library) = &self.library {
            command.env("LIBTORCH", library);
        }
        command
    }

    /// Runs the host to its end.
    pub fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect("the host starts")
    }

    /// Runs a command that must succeed; gives stdout.
    pub fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}\n{}", output.status, said(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a command that must fail with a code; gives stderr.
    pub fn fails(&self, arguments: &str, code: i32) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {}", said(&output));
        said(&output)
    }

    /// Trains a recipe of the folder into the folder `run`, without progress on stderr.
    pub fn train(&self, recipe: &str, run: &str, more: &str) -> run::Run {
        let data = if recipe == "language" { "--data text.txt" } else { "" };
        self.ok(&format!("train --recipe {recipe}.toml --run-dir {run} --progress none {data} {more}"));
        run::Run::at(&self.path(run))
    }
}

/// Builds host, engine and all plugins of the repository; gives the plugins' libraries.
pub fn build() -> Vec<PathBuf> {
    support::executable("fwp-engine");
    support::executable("fwp-host");
    let packages = plugin_packages();
    support::plugins(&packages.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The packages of all plugins of the repository, by a walk through their folders.
fn plugin_packages() -> Vec<String> {
    let kinds = folders(&support::repository().join("plugins"));
    let manifests = kinds.iter().flat_map(|kind| folders(kind)).map(|f| f.join("Cargo.toml"));
    let mut names: Vec<String> = manifests
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let manifest: toml::Table = text.parse().expect("a manifest");
            manifest["package"]["name"].as_str().expect("a name").to_string()
        })
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no plugins in the repository");
    names
}

/// The folders in a folder, sorted.
pub fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}

/// libtorch as the build found it, where the host itself cannot: its target folder may lie anywhere.
fn libtorch() -> Option<PathBuf> {
    let unpacked = support::repository().join(".libtorch/torch");
    match std::env::var_os("LIBTORCH") {
        Some(set) if !set.is_empty() => Some(set.into()),
        _ => unpacked.join("lib").is_dir().then_some(unpacked),
    }
}

/// What a process wrote to stderr.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A text of about that many characters with an order that a model can learn: sentences of a small grammar.
pub fn text(characters: usize) -> String {
    let words = ["key", "value", "query", "gate", "rule", "memory"];
    let verbs = ["writes", "reads", "holds", "adds to", "removes"];
    let mut state = 7_u64;
    let mut draw = |n: usize| {
        // Numerical Recipes' generator; the upper bits are the good ones.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let mut text = String::new();
    while text.len() < characters {
        text += &format!("the {} {} the {}.\n", words[draw(6)], verbs[draw(5)], words[draw(6)]);
    }
    text
}

/// The Python of the tests, which has TensorBoard's reader.
///
/// `None`, said on stderr, where nobody made one ready; `FWP_TEST_PYTHON` that does not work is a failure.
pub fn python() -> Option<PathBuf> {
    let Some(set) = std::env::var_os("FWP_TEST_PYTHON").filter(|s| !s.is_empty()) else {
        skipped("FWP_TEST_PYTHON names no Python; run ./scripts/test, or set it to what ./scripts/python-env prints");
        return None;
    };
    let python = PathBuf::from(set);
    let output = Command::new(&python).args(["-c", "import tensorboard, numpy, safetensors"]).output();
    match output {
        Ok(output) if output.status.success() => Some(python),
        Ok(output) => panic!("FWP_TEST_PYTHON = {} lacks packages: {}", python.display(), said(&output)),
        Err(e) => panic!("FWP_TEST_PYTHON = {} does not start: {e}", python.display()),
    }
}

/// Says that a test checked nothing, past the capture of a test's own output.
pub fn skipped(why: &str) {
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or("a test").to_string();
    _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
