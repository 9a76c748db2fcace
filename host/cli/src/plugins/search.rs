//! Where plugins are looked for. Never in the working directory: what lies there was not chosen by anyone.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Why a folder is on the search path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// `--plugin-path`.
    Option,
    /// The folder of the recipe, with `--allow-recipe-libraries`.
    Recipe,
    /// `$FWP_PLUGIN_PATH`.
    Environment,
    /// `$XDG_DATA_HOME/fwp-host/plugins`.
    User,
    /// `plugins/` beside the executable.
    Installed,
    /// The folder of the executable itself, where a build leaves the plugins.
    Executable,
}

impl Reason {
    /// The reason in words.
    pub fn text(self) -> &'static str {
        match self {
            Reason::Option => "--plugin-path",
            Reason::Recipe => "--allow-recipe-libraries",
            Reason::Environment => "$FWP_PLUGIN_PATH",
            Reason::User => "user data folder",
            Reason::Installed => "plugins/ beside fwp-host",
            Reason::Executable => "folder of fwp-host",
        }
    }
}

/// A folder of the search path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// Why it is looked at.
    pub reason: Reason,
}

/// The folders in the order in which they are looked at; the first that has a part wins.
pub fn folders(options: &[PathBuf], recipe_folder: Option<&Path>) -> Vec<Folder> {
    let mut folders = Vec::new();
    let mut add = |path: PathBuf, reason| {
        // A relative entry would make the working directory part of the search path.
        let absolute = match reason {
            Reason::Option | Reason::Recipe => std::path::absolute(&path).unwrap_or(path),
            _ => path,
        };
        if absolute.is_absolute() && !folders.iter().any(|f: &Folder| f.path == absolute) {
            folders.push(Folder { path: absolute, reason });
        }
    };
    for path in options {
        add(path.clone(), Reason::Option);
    }
    if let Some(path) = recipe_folder {
        add(path.into(), Reason::Recipe);
    }
    if let Some(list) = std::env::var_os("FWP_PLUGIN_PATH") {
        for path in std::env::split_paths(&list) {
            add(path, Reason::Environment);
        }
    }
    if let Some(data) = data_home() {
        add(data.join("fwp-host/plugins"), Reason::User);
    }
    if let Some(folder) = executable_folder() {
        add(folder.join("plugins"), Reason::Installed);
        add(folder, Reason::Executable);
    }
    folders
}

/// The folder of this executable, links followed.
pub fn executable_folder() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(Path::to_path_buf)
}

fn data_home() -> Option<PathBuf> {
    let set = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    set.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")))
}

/// The libraries of a folder, by name. A folder that is not there has none.
pub fn libraries(folder: &Folder) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(&folder.path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && folder.reason != Reason::Option => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_library(p, folder.reason)).collect();
    found.sort();
    Ok(found)
}

fn is_library(path: &Path, reason: Reason) -> bool {
    let suffix = path.extension() == Some(OsStr::new(std::env::consts::DLL_EXTENSION));
    // Other libraries may lie beside an executable or a recipe; plugins say so in their name.
    let named = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"libfwp_"));
    suffix && (named || !matches!(reason, Reason::Executable | Reason::Recipe))
}
