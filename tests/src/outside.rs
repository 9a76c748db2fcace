//! A plugin crate outside of the repository, as a user writes one.

use std::path::{Path, PathBuf};
use std::process::Command;

use fwp_test_support::repository;

use crate::documents::{Block, blocks};
use crate::said;

/// A crate in a folder of its own.
pub struct Crate {
    folder: PathBuf,
    name: String,
}

impl Crate {
    /// The crate that the README shows: its two files, word for word, but for the path of the SDK.
    ///
    /// # Panics
    /// When the README does not show it.
    pub fn of_the_readme(folder: &Path) -> Crate {
        let readme = blocks(&repository().join("README.md"));
        let find = |language: &str, holds: &str| -> String {
            let found: Vec<&Block> = readme.iter().filter(|b| b.language == language && b.text.contains(holds)).collect();
            assert_eq!(found.len(), 1, "one ```{language} block of the README holds {holds}");
            found[0].text.clone()
        };
        let manifest = find("toml", "crate-type");
        let sdk = repository().join("sdk");
        let path = "path = \"../fwp-host/sdk\"";
        assert!(manifest.contains(path), "{manifest}");
        let made = Crate { folder: folder.into(), name: "my-delta".into() };
        made.write("Cargo.toml", manifest.replace(path, &format!("path = {:?}", sdk.display().to_string())));
        made.write("src/lib.rs", find("rust", "export!"));
        made.with_lock()
    }

    /// A crate of these files; `name` is that of its library.
    pub fn of(folder: &Path, name: &str, files: &[(&str, &[u8])]) -> Crate {
        let made = Crate { folder: folder.into(), name: name.into() };
        files.iter().for_each(|(file, bytes)| made.write(file, bytes));
        made.with_lock()
    }

    /// The same versions as the repository's, so that nothing is fetched and what is built already serves.
    fn with_lock(self) -> Crate {
        std::fs::copy(repository().join("Cargo.lock"), self.folder.join("Cargo.lock")).expect("a copy of Cargo.lock");
        self
    }

    /// The text of the library.
    pub fn source(&self) -> String {
        std::fs::read_to_string(self.folder.join("src/lib.rs")).expect("the source")
    }

    /// Replaces the text of the library.
    pub fn write_source(&self, text: &str) {
        self.write("src/lib.rs", text);
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder of the crate");
        std::fs::write(path, text).expect("a file of the crate");
    }

    /// Builds it; gives the library, in `target/release` of the crate as if it had been built there.
    ///
    /// The target folder of the running test has the crates that the SDK needs, so it is used.
    ///
    /// # Panics
    /// When cargo cannot build it.
    pub fn build(&self) -> PathBuf {
        let target = target();
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["build", "--release", "--quiet", "--offline", "--target-dir"]).arg(&target).current_dir(&self.folder);
        for setting in release_profile() {
            command.args(["--config", &setting]);
        }
        // The folder is another one each time: what cargo would keep for the next build is never used.
        let output = command.env("CARGO_INCREMENTAL", "0").output().expect("cargo starts");
        assert!(output.status.success(), "{}", said(&output));
        let file = format!("lib{}.{}", self.name.replace('-', "_"), std::env::consts::DLL_EXTENSION);
        let own = self.folder.join("target/release");
        std::fs::create_dir_all(&own).expect("the target folder of the crate");
        // Written beside and renamed: a process that has the old one open keeps it.
        let new = own.join("new");
        std::fs::copy(target.join("release").join(&file), &new).expect("the library");
        std::fs::rename(new, own.join(&file)).expect("the library");
        own.join(file)
    }
}

/// The target folder of the running test: `TARGET[/TRIPLE]/PROFILE/deps/TEST`.
fn target() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    let marked = test.ancestors().find(|a| a.join(".rustc_info.json").is_file());
    marked.expect("a target folder").to_path_buf()
}

/// The release profile of the repository, as settings for cargo's command line: crates built otherwise are built anew.
fn release_profile() -> Vec<String> {
    let text = std::fs::read_to_string(repository().join("Cargo.toml")).expect("the workspace");
    let manifest: toml::Table = text.parse().expect("a manifest");
    let release = manifest["profile"]["release"].as_table().expect("a release profile");
    release.iter().map(|(key, value)| format!("profile.release.{key}={value}")).collect()
}
