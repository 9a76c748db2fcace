//! Checkpoints that survive a crash at any moment.
//!
//! A checkpoint is a folder `step-N` with three or four files and a manifest:
//!
//! | file | holds |
//! |---|---|
//! | `model.safetensors` | the parameters by name |
//! | `optimiser.safetensors` | moments and step counts |
//! | `carry.safetensors` | fast-weight states that pass from batch to batch, when the run carries them |
//! | `state.json` | [`State`] |
//! | `manifest.json` | format, and size and sha256 of every other file |
//!
//! It is written as `step-N.tmp` in the same folder: files, synced; the manifest last; the rename; the parent folder, synced.
//! So a folder without `.tmp` that has a manifest is complete, and what a crash leaves behind is ignored and removed by the next writer.
//! The order is enforced by types: [`Unfinished`] cannot be read, and [`Unfinished::finish`] consumes it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Tensor;

use super::tensors::{HostTensor, TensorError, from_safetensors, to_safetensors};
use super::{Best, Evaluation};
use crate::shim::RandomState;

/// The layout that this engine writes and reads.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const MODEL: &str = "model.safetensors";
const OPTIMISER: &str = "optimiser.safetensors";
const CARRY: &str = "carry.safetensors";
const STATE: &str = "state.json";
/// The largest manifest or state that is read, in bytes.
const MAX_JSON: u64 = 16 << 20;

/// Everything of a run that is not a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Tokens seen in training.
    pub tokens: u64,
    /// Seconds spent in training, evaluation left out.
    pub seconds: f64,
    /// The seed of the run; data is a function of it and the step.
    pub seed: u64,
    /// What the task's data looked like ([`fwp_task::Task::fingerprint`]).
    pub task: String,
    /// libtorch's CPU generator, in hexadecimal.
    pub random_cpu: String,
    /// The device's generator with its number, in hexadecimal.
    pub random_cuda: Option<(usize, String)>,
    /// The newest evaluation.
    pub evaluation: Option<Evaluation>,
    /// The best evaluation.
    pub best: Option<Best>,
    /// The smallest and the largest value of each metric of evaluations.
    #[serde(default)]
    pub ranges: BTreeMap<String, [f64; 2]>,
    /// Evaluations since the best one.
    pub without_improvement: u64,
    /// Steps left out because of values that were not finite.
    pub skipped: u64,
    /// Of these, the ones in a row up to now.
    pub skipped_in_a_row: u64,
}

impl State {
    /// The generators as libtorch takes them.
    ///
    /// # Errors
    ///
    /// A text that is not hexadecimal.
    pub fn random(&self) -> Result<RandomState, String> {
        let cuda = match &self.random_cuda {
            Some((index, text)) => Some((*index, from_hex(text)?)),
            None => None,
        };
        Ok(RandomState { cpu: from_hex(&self.random_cpu)?, cuda })
    }
}

/// Bytes as hexadecimal text.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    match digits {
        Some(digits) if digits.len() % 2 == 0 => Ok(digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()),
        _ => Err("the state of the random generator is not hexadecimal".to_owned()),
    }
}

/// All that a checkpoint holds, on the host, ready to be written elsewhere.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The parameters by name.
    pub model: Vec<HostTensor>,
    /// The optimiser's tensors.
    pub optimiser: Vec<HostTensor>,
    /// The carried states; empty when none are.
    pub carry: Vec<HostTensor>,
    /// Everything else.
    pub state: State,
}

/// A checkpoint that was read and verified.
#[derive(Debug)]
pub struct Loaded {
    /// Its folder.
    pub path: PathBuf,
    /// The parameters by name, on the CPU.
    pub model: BTreeMap<String, Tensor>,
    /// The optimiser's tensors, on the CPU.
    pub optimiser: BTreeMap<String, Tensor>,
    /// The carried states, on the CPU.
    pub carry: BTreeMap<String, Tensor>,
    /// Everything else.
    pub state: State,
}

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder has no manifest.
    #[error("{} is not a complete checkpoint: it has no {MANIFEST}; name another one", path.display())]
    Incomplete {
        /// The folder.
        path: PathBuf,
    },
    /// A newer host wrote it.
    #[error("{} has format {found} and this host reads {FORMAT}; use the host that wrote it", path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// The format found.
        found: u64,
    },
    /// A file is not what the manifest says.
    #[error("{} is damaged: {why}; name another checkpoint", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A tensor that cannot be written.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io { action, path, source }
}

fn damaged(path: &Path, why: impl ToString) -> CheckpointError {
    CheckpointError::Damaged { path: path.to_owned(), why: why.to_string() }
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u64,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    size: u64,
    sha256: String,
}

/// A checkpoint on its way. Dropping it removes what was written.
#[derive(Debug)]
pub struct Unfinished {
    folder: PathBuf,
    temporary: PathBuf,
    step: u64,
    files: BTreeMap<String, Entry>,
    finished: bool,
}

impl Unfinished {
    /// Begins `step-N` in `folder`, which is made when missing. What an earlier attempt at the same
    /// step left is removed.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn begin(folder: &Path, step: u64) -> Result<Self, CheckpointError> {
        let temporary = folder.join(format!("step-{step}.tmp"));
        fs::create_dir_all(folder).map_err(io_error("create", folder))?;
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &temporary)(error));
            }
            _ => {}
        }
        fs::create_dir(&temporary).map_err(io_error("create", &temporary))?;
        Ok(Self { folder: folder.to_owned(), temporary, step, files: BTreeMap::new(), finished: false })
    }

    /// Writes one file and syncs it.
    ///
    /// # Errors
    ///
    /// What the system said. No checkpoint has been changed.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.write(name, bytes)?;
        let entry = Entry { size: bytes.len() as u64, sha256: to_hex(&Sha256::digest(bytes)) };
        self.files.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Writes the manifest and gives the folder its name; returns its path.
    ///
    /// # Errors
    ///
    /// What the system said. An earlier checkpoint of the same step is still there unless the
    /// message names the rename.
    pub fn finish(mut self) -> Result<PathBuf, CheckpointError> {
        let manifest = Manifest { format: FORMAT.into(), files: std::mem::take(&mut self.files) };
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| damaged(&self.temporary, e))?;
        self.write(MANIFEST, &text)?;
        sync_folder(&self.temporary)?;
        let path = self.folder.join(format!("step-{}", self.step));
        if path.exists() {
            // A folder with files cannot be renamed over. The old one goes under a name that no
            // reader looks at, then away.
            let old = self.folder.join(format!("step-{}.old.tmp", self.step));
            let _ = fs::remove_dir_all(&old);
            fs::rename(&path, &old).map_err(io_error("rename", &path))?;
            fs::rename(&self.temporary, &path).map_err(io_error("rename", &self.temporary))?;
            let _ = fs::remove_dir_all(&old);
        } else {
            fs::rename(&self.temporary, &path).map_err(io_error("rename", &self.temporary))?;
        }
        self.finished = true;
        sync_folder(&self.folder)?;
        Ok(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let path = self.temporary.join(name);
        let write = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(io_error("write", &path))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("sync", path))
}

/// Writes a snapshot as `step-N` in `folder`; `before_rename` runs when all is on disk but the name.
///
/// # Errors
///
/// What the system said; checkpoints that were there stay.
pub fn write(folder: &Path, snapshot: &Snapshot, before_rename: impl FnOnce()) -> Result<PathBuf, CheckpointError> {
    let mut unfinished = Unfinished::begin(folder, snapshot.state.step)?;
    let note = |what: &str| BTreeMap::from([("fwp-host".to_owned(), what.to_owned())]);
    unfinished.add(MODEL, &to_safetensors(&snapshot.model, note("model"))?)?;
    unfinished.add(OPTIMISER, &to_safetensors(&snapshot.optimiser, note("optimiser"))?)?;
    if !snapshot.carry.is_empty() {
        unfinished.add(CARRY, &to_safetensors(&snapshot.carry, note("carry"))?)?;
    }
    let state = serde_json::to_vec_pretty(&snapshot.state).map_err(|e| damaged(folder, e))?;
    unfinished.add(STATE, &state)?;
    before_rename();
    unfinished.finish()
}

/// Reads a checkpoint and verifies every file of it.
///
/// # Errors
///
/// A folder that is incomplete, of another format or damaged; the message names the file.
pub fn read(path: &Path) -> Result<Loaded, CheckpointError> {
    let manifest_path = path.join(MANIFEST);
    if !path.is_dir() {
        let missing = io::Error::new(io::ErrorKind::NotFound, "there is no such folder");
        return Err(io_error("read", path)(missing));
    }
    if !manifest_path.is_file() {
        return Err(CheckpointError::Incomplete { path: path.to_owned() });
    }
    let bytes = read_limited(&manifest_path, MAX_JSON)?;
    // The format is looked at alone and first: other fields of another format would only puzzle.
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(&manifest_path, e))?;
    match value["format"].as_u64() {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(found) => return Err(CheckpointError::Format { path: path.to_owned(), found }),
        None => return Err(damaged(&manifest_path, "it names no format")),
    }
    let manifest: Manifest = serde_json::from_value(value).map_err(|e| damaged(&manifest_path, e))?;
    let file = |name: &str| -> Result<Option<Vec<u8>>, CheckpointError> {
        let Some(entry) = manifest.files.get(name) else { return Ok(None) };
        let path = path.join(name);
        let bytes = read_limited(&path, entry.size)?;
        let sum = to_hex(&Sha256::digest(&bytes));
        if sum != entry.sha256 {
            return Err(damaged(&path, format!("its sha256 is {sum}, the manifest says {}", entry.sha256)));
        }
        Ok(Some(bytes))
    };
    let needed = |name: &str| file(name)?.ok_or_else(|| damaged(&manifest_path, format!("it does not name {name}")));
    let tensors = |name: &str, bytes: &[u8]| from_safetensors(bytes).map_err(|e| damaged(&path.join(name), e));
    let state: State = serde_json::from_slice(&needed(STATE)?).map_err(|e| damaged(&path.join(STATE), e))?;
    Ok(Loaded {
        path: path.to_owned(),
        model: tensors(MODEL, &needed(MODEL)?)?,
        optimiser: tensors(OPTIMISER, &needed(OPTIMISER)?)?,
        carry: file(CARRY)?.map(|bytes| tensors(CARRY, &bytes)).transpose()?.unwrap_or_default(),
        state,
    })
}

/// Reads a file of exactly `size` bytes, or of at most so many for JSON.
fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let size = fs::metadata(path).map_err(io_error("read", path))?.len();
    if size > limit {
        return Err(damaged(path, format!("it has {size} bytes, expected {limit} at most")));
    }
    fs::read(path).map_err(io_error("read", path))
}

/// The complete checkpoints of a folder with their steps, newest first. None when it is missing.
///
/// # Errors
///
/// A folder that cannot be read.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read", folder)(error)),
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
            entry.path().join(MANIFEST).is_file().then(|| (step, entry.path()))
        })
        .collect();
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// The newest checkpoint that is complete and sound, and a warning for each newer one that is not.
///
/// # Errors
///
/// A folder that cannot be read.
pub fn newest(folder: &Path) -> Result<(Option<Loaded>, Vec<String>), CheckpointError> {
    let mut warnings = Vec::new();
    for (_, path) in list(folder)? {
        match read(&path) {
            Ok(loaded) => return Ok((Some(loaded), warnings)),
            Err(error) => warnings.push(error.to_string()),
        }
    }
    Ok((None, warnings))
}

/// Removes all but the newest `keep` checkpoints and the one of step `best`, and what earlier
/// writers left unfinished.
///
/// # Errors
///
/// The first thing that could not be removed; the rest was tried.
pub fn purge(folder: &Path, keep: usize, best: Option<u64>) -> Result<(), CheckpointError> {
    let mut result = Ok(());
    for (step, path) in list(folder)?.into_iter().skip(keep.max(1)) {
        if Some(step) == best {
            continue;
        }
        // Renamed first: a checkpoint that is half removed must not look like a complete one.
        let doomed = folder.join(format!("step-{step}.old.tmp"));
        let done = fs::rename(&path, &doomed).map_err(io_error("remove", &path));
        result = result.and(done);
    }
    for entry in fs::read_dir(folder).map_err(io_error("read", folder))?.flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("step-") && name.to_string_lossy().ends_with(".tmp") {
            let done = fs::remove_dir_all(entry.path()).map_err(io_error("remove", &entry.path()));
            result = result.and(done);
        }
    }
    result
}

/// Moves the checkpoints beyond `step` into the folder `aside`: a run that goes on from an older
/// one leaves them behind, and the next automatic resume must not find them.
///
/// Returns how many there were.
///
/// # Errors
///
/// What the system said.
pub fn set_aside(folder: &Path, step: u64) -> Result<usize, CheckpointError> {
    let beyond: Vec<_> = list(folder)?.into_iter().filter(|(at, _)| *at > step).collect();
    let count = beyond.len();
    for (at, path) in beyond {
        let aside = folder.join("aside");
        fs::create_dir_all(&aside).map_err(io_error("create", &aside))?;
        let free = (0..u32::MAX).map(|n| aside.join(format!("step-{at}.{n}"))).find(|p| !p.exists());
        let Some(to) = free else { continue };
        fs::rename(&path, &to).map_err(io_error("rename", &path))?;
    }
    Ok(count)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn state(step: u64) -> State {
        State {
            step,
            tokens: step * 10,
            seconds: 1.5,
            seed: u64::MAX,
            task: "toy".into(),
            random_cpu: to_hex(&[0, 15, 255]),
            random_cuda: Some((1, "00ff".into())),
            evaluation: None,
            best: None,
            ranges: BTreeMap::new(),
            without_improvement: 2,
            skipped: 0,
            skipped_in_a_row: 0,
        }
    }

    fn snapshot(step: u64) -> Snapshot {
        let tensor = |x: f32| vec![HostTensor::copy("a.weight", &Tensor::from_slice(&[x, 2.])).unwrap()];
        Snapshot { model: tensor(step as f32), optimiser: tensor(3.), carry: Vec::new(), state: state(step) }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &snapshot(7), || {}).unwrap();
        assert_eq!(path, folder.path().join("step-7"));
        let loaded = read(&path).unwrap();
        assert_eq!(loaded.state, state(7));
        assert_eq!(Vec::<f32>::try_from(&loaded.model["a.weight"]).unwrap(), [7., 2.]);
        assert_eq!(loaded.state.random().unwrap().cpu, [0, 15, 255]);
        assert!(loaded.carry.is_empty());
        let carried = Snapshot { carry: snapshot(1).model, ..snapshot(8) };
        assert_eq!(read(&write(folder.path(), &carried, || {}).unwrap()).unwrap().carry.len(), 1);
    }

    #[test]
    fn the_same_step_may_be_written_again() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &snapshot(7), || {}).unwrap();
        let mut second = snapshot(7);
        second.state.tokens = 1;
        write(folder.path(), &second, || {}).unwrap();
        assert_eq!(read(&folder.path().join("step-7")).unwrap().state.tokens, 1);
        assert_eq!(names(folder.path()), ["step-7"]);
    }

    #[test]
    fn a_writer_that_stops_anywhere_leaves_the_older_one() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &snapshot(1), || {}).unwrap();
        // Killed after some files, and after all but the rename.
        for stop in 0..4 {
            let temporary = folder.path().join("step-2.tmp");
            fs::create_dir(&temporary).unwrap();
            for name in [MODEL, OPTIMISER, MANIFEST].iter().take(stop) {
                fs::write(temporary.join(name), "half a fi").unwrap();
            }
            let (found, warnings) = newest(folder.path()).unwrap();
            assert_eq!((found.unwrap().state.step, warnings.len()), (1, 0));
            fs::remove_dir_all(&temporary).unwrap();
        }
        fs::create_dir(folder.path().join("step-3.tmp")).unwrap();
        write(folder.path(), &snapshot(3), || {}).unwrap();
        assert_eq!(names(folder.path()), ["step-1", "step-3"]);
        drop(Unfinished::begin(folder.path(), 4).unwrap());
        assert_eq!(names(folder.path()), ["step-1", "step-3"]);
    }

    #[test]
    fn damage_names_the_file_and_falls_back_only_when_nobody_named_it() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &snapshot(1), || {}).unwrap();
        let path = write(folder.path(), &snapshot(2), || {}).unwrap();
        for name in [MODEL, OPTIMISER, STATE] {
            let file = path.join(name);
            let good = fs::read(&file).unwrap();
            let mut flipped = good.clone();
            *flipped.last_mut().unwrap() ^= 1;
            let longer: Vec<u8> = good.iter().chain(&[0]).copied().collect();
            for bad in [flipped, longer, good[..good.len() - 1].to_vec()] {
                fs::write(&file, bad).unwrap();
                let error = read(&path).unwrap_err().to_string();
                assert!(error.contains(name) && error.contains("damaged"), "{error}");
            }
            fs::write(&file, good).unwrap();
        }
        fs::remove_file(path.join(MODEL)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains(MODEL));
        let (found, warnings) = newest(folder.path()).unwrap();
        assert_eq!(found.unwrap().state.step, 1);
        assert!(warnings[0].contains("step-2"), "{warnings:?}");
    }

    #[test]
    fn other_formats_and_incomplete_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &snapshot(1), || {}).unwrap();
        fs::write(path.join(MANIFEST), r#"{"format": 9, "later": true}"#).unwrap();
        assert!(matches!(read(&path), Err(CheckpointError::Format { found: 9, .. })));
        fs::write(path.join(MANIFEST), "{").unwrap();
        assert!(matches!(read(&path), Err(CheckpointError::Damaged { .. })));
        fs::write(path.join(MANIFEST), r#"{"format": 1, "files": {}}"#).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains(STATE));
        fs::remove_file(path.join(MANIFEST)).unwrap();
        assert!(matches!(read(&path), Err(CheckpointError::Incomplete { .. })));
        assert!(matches!(read(&folder.path().join("none")), Err(CheckpointError::Io { .. })));
        assert!(list(&folder.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn purging_keeps_the_newest_and_the_best() {
        let folder = tempfile::tempdir().unwrap();
        (1..=5).for_each(|step| drop(write(folder.path(), &snapshot(step), || {}).unwrap()));
        fs::create_dir(folder.path().join("step-9.tmp")).unwrap();
        fs::create_dir(folder.path().join("notes")).unwrap();
        purge(folder.path(), 2, Some(1)).unwrap();
        assert_eq!(names(folder.path()), ["notes", "step-1", "step-4", "step-5"]);
        purge(folder.path(), 0, None).unwrap();
        assert_eq!(names(folder.path()), ["notes", "step-5"], "the newest always stays");
    }

    #[test]
    fn what_lies_beyond_is_set_aside_and_not_found() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            (1..=3).for_each(|step| drop(write(folder.path(), &snapshot(step), || {}).unwrap()));
            assert_eq!(set_aside(folder.path(), 1).unwrap(), 2);
        }
        assert_eq!(newest(folder.path()).unwrap().0.unwrap().state.step, 1);
        assert_eq!(names(&folder.path().join("aside")), ["step-2.0", "step-2.1", "step-3.0", "step-3.1"]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let error = write(&blocked, &snapshot(1), || {}).unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
    }
}
