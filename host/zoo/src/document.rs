//! Files of the zoo that people write: TOML of bounded size, whose mistakes are told with file, line and column.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use fwp_recipe::{RecipeError, RunDirError};
use serde::de::DeserializeOwned;

/// The largest file that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

/// Why a file of the zoo was refused, or could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ZooError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file says something that cannot be.
    #[error("{place}: {message}")]
    Refused {
        /// File, line and column.
        place: String,
        /// What is wrong.
        message: String,
        /// What to do.
        help: String,
    },
    /// The recipe was refused.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The folder of a run cannot be read.
    #[error(transparent)]
    Run(#[from] RunDirError),
}

/// What went wrong with a path.
pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> ZooError + 'a {
    move |source| ZooError::Io { action, path: path.into(), source }
}

/// The text of a file of bounded size.
pub(crate) fn load(path: &Path) -> Result<String, ZooError> {
    let mut text = String::new();
    let file = File::open(path).map_err(io("read", path))?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io("read", path))?;
    if text.len() as u64 > MAX_BYTES {
        let error = std::io::Error::other(format!("it has more than {MAX_BYTES} bytes"));
        return Err(io("read", path)(error));
    }
    Ok(text)
}

/// A TOML file that was read, and where everything in it stands.
pub(crate) struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Reads a file as a structure of serde's.
    pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<(Document, T), ZooError> {
        let document = Document { path: path.into(), text: load(path)? };
        let parsed = toml::from_str(&document.text)
            .map_err(|e| document.refuse(e.span().map_or(0, |s| s.start), e.message().replace('\n', ", ")))?;
        Ok((document, parsed))
    }

    /// File, line and column of a place in the text.
    pub(crate) fn place(&self, offset: usize) -> String {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let column = 1 + String::from_utf8_lossy(&before[start..]).chars().count();
        format!("{}:{line}:{column}", self.path.display())
    }

    /// The refusal of what stands at a place.
    pub(crate) fn refuse(&self, offset: usize, message: impl Into<String>) -> ZooError {
        ZooError::Refused { place: self.place(offset), message: message.into(), help: "see docs/zoo.md".into() }
    }
}

/// Writes a file, unless it holds just that already; says whether it did. The file is at any time the old or the new one.
///
/// # Errors
/// What the system says.
pub fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<bool, ZooError> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(io("create", folder))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let beside = path.with_file_name(name);
    std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, path)).map_err(io("write", path))?;
    Ok(true)
}
