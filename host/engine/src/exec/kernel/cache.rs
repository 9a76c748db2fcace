//! Compiled kernels in the user's cache folder.
//!
//! The folder is `kernels` in `$FWP_CACHE`, else in `$XDG_CACHE_HOME/fwp-host`, else in `~/.cache/fwp-host`.
//! What is opened from it runs with the user's rights, so it is made with mode 0700 and refused when it belongs to someone else or others may write in it.
//! A kernel is three files: `KEY.c`, `KEY.so`, and `KEY.sha256` with the sum of the library, which is checked before the library is opened.
//! Files are written beside their place, synced and renamed; a lock a key keeps processes that want the same kernel from compiling it twice.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::compile::{CompileError, Compiler, Limits, compile, processor};

/// The folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// Why a kernel is not there.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No folder is named.
    #[error("there is no folder for compiled kernels: set FWP_CACHE, XDG_CACHE_HOME or HOME")]
    NoFolder,
    /// The folder cannot be trusted.
    #[error("the folder of compiled kernels {} is not used: {why}", .folder.display())]
    Untrusted {
        /// The folder.
        folder: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// The folder cannot be made.
    #[error("the folder of compiled kernels {} cannot be made ({error}): set FWP_CACHE to another one", .folder.display())]
    Unmade {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The folder cannot be used.
    #[error("{}: {error}", .path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The text was not compiled; it is kept.
    #[error("{error} (the text is {})", .text.display())]
    Compile {
        /// The compiler's failure.
        error: CompileError,
        /// The text.
        text: PathBuf,
    },
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The library.
    pub library: PathBuf,
    /// Its text.
    pub text: PathBuf,
    /// Whether it was compiled just now.
    pub compiled: bool,
}

/// The folder that the environment names, whether or not it is there.
pub fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let own = variable("FWP_CACHE").and_then(|p| std::path::absolute(p).ok());
    // The base directory specification says that relative ones are to be ignored.
    let named = |name: &str| variable(name).filter(|p| p.is_absolute());
    let shared = || named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache"))).map(|c| c.join("fwp-host"));
    Some(own.or_else(shared)?.join("kernels"))
}

impl Cache {
    /// The cache of this process's environment.
    ///
    /// # Errors
    /// No folder, or one that cannot be trusted or made.
    pub fn open() -> Result<Cache, CacheError> {
        Cache::at(&folder().ok_or(CacheError::NoFolder)?)
    }

    /// The cache in a folder, made with its parents where it is not there.
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn at(folder: &Path) -> Result<Cache, CacheError> {
        let io = |error| CacheError::Io { path: folder.to_path_buf(), error };
        let unmade = |error| CacheError::Unmade { folder: folder.to_path_buf(), error };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unmade)?;
        if let Some(why) = distrust(folder).map_err(io)? {
            return Err(CacheError::Untrusted { folder: folder.to_path_buf(), why });
        }
        Ok(Cache { folder: folder.to_path_buf() })
    }

    /// The compiled form of a text, compiled now if it is not there or not whole.
    ///
    /// # Errors
    /// What the compiler or the file system refuses.
    pub fn get(&self, text: &str, compiler: &Compiler, limits: Limits) -> Result<Entry, CacheError> {
        let key = key(text, compiler);
        let place = |extension: &str| self.folder.join(format!("{key}.{extension}"));
        let (library, source, sum) = (place("so"), place("c"), place("sha256"));
        let entry = |compiled| Entry { library: library.clone(), text: source.clone(), compiled };
        if whole(&library, &sum) {
            return Ok(entry(false));
        }
        // Where the file system has no locks, two processes compile the same text; that is only slower.
        let lock = File::create(place("lock")).ok();
        if let Some(lock) = &lock {
            let _ = flock(lock, FlockOperation::LockExclusive);
        }
        if whole(&library, &sum) {
            return Ok(entry(false));
        }
        self.sweep();
        write(&source, text.as_bytes())?;
        let made = beside(&library);
        let compiled = compile(compiler, &source, &made, limits);
        let done = compiled.map_err(|error| CacheError::Compile { error, text: source.clone() }).and_then(|()| {
            let io = |error| CacheError::Io { path: made.clone(), error };
            let bytes = fs::read(&made).map_err(io)?;
            // Whatever the user's mask: what others may write in is not opened.
            fs::set_permissions(&made, fs::Permissions::from_mode(0o700)).map_err(io)?;
            File::open(&made).and_then(|f| f.sync_all()).map_err(io)?;
            // The sum first: a library without its sum is compiled again, and so is one with another's.
            write(&sum, hex(&bytes).as_bytes())?;
            fs::rename(&made, &library).map_err(io)
        });
        if done.is_err() {
            let _ = fs::remove_file(&made);
        }
        let _ = fs::remove_file(place("lock"));
        done.map(|()| entry(true))
    }

    /// Removes what processes left that were ended while they wrote.
    fn sweep(&self) {
        let old = SystemTime::now() - Duration::from_secs(24 * 3600);
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries.filter(|e| e.file_name().to_string_lossy().starts_with('.')) {
            let stale = entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t < old);
            if stale {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Number of libraries and bytes of all files.
    pub fn size(&self) -> (usize, u64) {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        files.fold((0, 0), |(n, bytes), f| {
            let library = f.path().extension().is_some_and(|e| e == "so");
            (n + usize::from(library), bytes + f.metadata().map_or(0, |m| m.len()))
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Whether a folder that is not there can be made.
///
/// # Errors
/// What stands in its way.
pub fn can_be_made(folder: &Path) -> io::Result<()> {
    let Some(above) = folder.ancestors().find(|f| f.symlink_metadata().is_ok()) else { return Ok(()) };
    if !above.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is not a folder", above.display())));
    }
    rustix::fs::access(above, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|e| io::Error::new(e.kind(), format!("{} cannot be written to ({e})", above.display())))
}

/// Why nothing is opened from a folder, if something is wrong with it.
///
/// # Errors
/// The folder cannot be looked at.
pub fn distrust(folder: &Path) -> io::Result<Option<String>> {
    let found = fs::metadata(folder)?;
    let me = rustix::process::geteuid().as_raw();
    Ok(if !found.is_dir() {
        Some("it is not a folder: remove it".into())
    } else if found.uid() != me {
        Some(format!("it belongs to user {}, not to you ({me}): set FWP_CACHE to a folder of your own", found.uid()))
    } else if found.mode() & 0o022 != 0 {
        Some(format!("others may write in it: chmod 700 {}", folder.display()))
    } else {
        None
    })
}

/// Whether library and sum are there and belong together.
fn whole(library: &Path, sum: &Path) -> bool {
    let (Ok(bytes), Ok(sum)) = (fs::read(library), fs::read_to_string(sum)) else { return false };
    let mine = fs::metadata(library).is_ok_and(|m| m.uid() == rustix::process::geteuid().as_raw() && m.mode() & 0o022 == 0);
    mine && hex(&bytes) == sum.trim()
}

/// What a kernel is found by.
fn key(text: &str, compiler: &Compiler) -> String {
    let mut all = Sha256::new();
    let parts = [text, &compiler.path.to_string_lossy(), &compiler.version, &processor()];
    for part in parts.into_iter().chain(compiler.options.iter().chain(&compiler.flags).map(String::as_str)) {
        all.update((part.len() as u64).to_le_bytes());
        all.update(part);
    }
    let sum = all.finalize();
    sum.iter().take(20).map(|b| format!("{b:02x}")).collect()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A name that no other process or thread writes to; hidden, so that leftovers are known.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{}.{number}.{name}", std::process::id()))
}

/// Writes a file whole.
fn write(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    let new = beside(path);
    let io = |error| CacheError::Io { path: path.to_path_buf(), error };
    let written = File::create(&new).and_then(|mut f| {
        f.write_all(bytes)?;
        f.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&new, path));
    if done.is_err() {
        let _ = fs::remove_file(&new);
    }
    done.map_err(io)
}
