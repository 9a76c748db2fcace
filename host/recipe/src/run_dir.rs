//! The folder of a run.
//!
//! | name | holds | written by |
//! |---|---|---|
//! | `recipe.toml` | the resolved recipe | host, once |
//! | `plan.json` | the [`Plan`] | host, once, last |
//! | `programs/*.fwp` | the program of every part | host, once |
//! | `metrics.jsonl` | one record a line: the record of truth | engine |
//! | `events.out.tfevents.*` | TensorBoard events, in the folder itself | engine |
//! | `checkpoints/` | checkpoints | engine |
//! | `post-mortem.json` | why a run failed | engine |
//!
//! A folder with a `plan.json` is a run; the plan is written last, so a folder without one is not.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::parts::{PartKind, is_name};
use crate::plan::{PartFile, Plan, PlanError};

/// The largest plan that is read, in bytes.
const MAX_PLAN: u64 = 16 << 20;
/// The largest program that is read, in bytes.
const MAX_PROGRAM: u64 = 256 << 20;

/// Why something in a run's folder cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
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
    /// The folder of a new run holds something already.
    #[error("{} exists and is not empty; name another folder, or resume the run in it", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is not that of a run.
    #[error("{} is no run: it holds no plan.json; give the folder that `train` printed", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// A file is larger than is ever written.
    #[error("{} is larger than {limit} bytes and is not read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The plan cannot be used.
    #[error("{}: {source}", path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PlanError,
    },
    /// The plan names a program outside `programs/`.
    #[error("the plan names the program {file:?}, which is not in the folder `programs`; start a new run")]
    Outside {
        /// The name in the plan.
        file: String,
    },
    /// A program is not the one that the run began with.
    #[error("{} has changed: sha256 {found}, and the plan says {expected}; restore the file, or start a new run", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its sha256.
        found: String,
        /// The one in the plan.
        expected: String,
    },
}

/// The folder of a run and the names of everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Creates `ROOT/RECIPE/TIME-SEED` (`runs/deltanet/20260302-101500-seed1`; the time is UTC),
    /// with `-2`, `-3` ... behind it where the name is taken.
    ///
    /// # Errors
    /// A folder that cannot be created.
    pub fn create_default(root: &Path, recipe: &str, seed: u64) -> Result<Self, RunDirError> {
        Self::create_at(root, recipe, seed, SystemTime::now())
    }

    fn create_at(root: &Path, recipe: &str, seed: u64, now: SystemTime) -> Result<Self, RunDirError> {
        let parent = root.join(recipe);
        fs::create_dir_all(&parent).map_err(io("create", &parent))?;
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let name = format!("{}-seed{seed}", timestamp(seconds));
        for attempt in 1_u64.. {
            let path = match attempt {
                1 => parent.join(&name),
                n => parent.join(format!("{name}-{n}")),
            };
            // `create_dir` fails where something exists, so two runs never share a folder.
            match fs::create_dir(&path) {
                Ok(()) => return Self { path }.prepare(),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io("create", &path)(e)),
            }
        }
        unreachable!("2^64 folders cannot all exist")
    }

    /// Creates the folder of a new run at a path that the user chose; an empty folder may be there.
    ///
    /// # Errors
    /// A folder that is not empty or cannot be created.
    pub fn create(path: &Path) -> Result<Self, RunDirError> {
        fs::create_dir_all(path).map_err(io("create", path))?;
        let mut entries = fs::read_dir(path).map_err(io("read", path))?;
        if entries.next().is_some() {
            return Err(RunDirError::Occupied { path: path.into() });
        }
        Self { path: path.into() }.prepare()
    }

    /// Opens the folder of an existing run.
    ///
    /// # Errors
    /// A folder without a plan.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let run = Self { path: path.into() };
        if !run.plan().is_file() {
            return Err(RunDirError::NotARun { path: path.into() });
        }
        Ok(run)
    }

    fn prepare(self) -> Result<Self, RunDirError> {
        let programs = self.programs();
        fs::create_dir(&programs).map_err(io("create", &programs))?;
        let checkpoints = self.checkpoints();
        fs::create_dir(&checkpoints).map_err(io("create", &checkpoints))?;
        Ok(self)
    }

    /// The folder itself, where TensorBoard events lie.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }

    /// The plan.
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan.json")
    }

    /// The folder of programs.
    pub fn programs(&self) -> PathBuf {
        self.path.join("programs")
    }

    /// The metrics, one record a line.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Why the run failed, if it did.
    pub fn post_mortem(&self) -> PathBuf {
        self.path.join("post-mortem.json")
    }

    /// Writes the resolved recipe ([`Resolved::to_toml`](crate::Resolved::to_toml)).
    ///
    /// # Errors
    /// What the system said.
    pub fn write_recipe(&self, text: &str) -> Result<(), RunDirError> {
        write(&self.recipe(), text.as_bytes())
    }

    /// Writes the plan, which makes the folder a run; everything it names must be there before.
    ///
    /// # Errors
    /// What the system said, or a path in the plan that is not UTF-8.
    pub fn write_plan(&self, plan: &Plan) -> Result<(), RunDirError> {
        let path = self.plan();
        let text = plan.to_json().map_err(|e| RunDirError::Plan { path: path.clone(), source: e.into() })?;
        write(&path, text.as_bytes())
    }

    /// Reads the plan.
    ///
    /// # Errors
    /// A file that is missing, too large, of another format or malformed.
    pub fn read_plan(&self) -> Result<Plan, RunDirError> {
        let path = self.plan();
        let bytes = read(&path, MAX_PLAN)?;
        let text = String::from_utf8_lossy(&bytes);
        Plan::from_json(&text).map_err(|source| RunDirError::Plan { path, source })
    }

    /// Writes the program of a part and gives the entry for the plan.
    ///
    /// `slot` tells the parts of several rules apart (`main` for a single one); `name` is the part's
    /// own name, `origin` the library and its sha256.
    ///
    /// # Errors
    /// What the system said.
    pub fn write_program(
        &self,
        kind: PartKind,
        slot: &str,
        name: &str,
        bytes: &[u8],
        origin: &str,
    ) -> Result<PartFile, RunDirError> {
        // The names come from a recipe that was checked; this keeps any other caller inside.
        if !is_name(slot) {
            return Err(RunDirError::Outside { file: slot.into() });
        }
        let file = match kind {
            PartKind::SlowNet => format!("programs/{}.fwp", kind.name()),
            _ => format!("programs/{}-{slot}.fwp", kind.name()),
        };
        write(&self.path.join(&file), bytes)?;
        Ok(PartFile { kind: kind.name().into(), name: name.into(), file, sha256: sha256(bytes), origin: origin.into() })
    }

    /// Reads the program of a part and checks that it is the one the run began with.
    ///
    /// # Errors
    /// A name that leads out of `programs/`, a file that is missing or too large, or another sha256.
    pub fn read_program(&self, part: &PartFile) -> Result<Vec<u8>, RunDirError> {
        let parts: Vec<_> = Path::new(&part.file).components().collect();
        let inside = matches!(
            parts.as_slice(),
            [Component::Normal(folder), Component::Normal(_)] if *folder == "programs"
        );
        if !inside {
            return Err(RunDirError::Outside { file: part.file.clone() });
        }
        let path = self.path.join(&part.file);
        let bytes = read(&path, MAX_PROGRAM)?;
        let found = sha256(&bytes);
        if !found.eq_ignore_ascii_case(&part.sha256) {
            return Err(RunDirError::Changed { path, found, expected: part.sha256.clone() });
        }
        Ok(bytes)
    }
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> RunDirError + 'a {
    move |source| RunDirError::Io { action, path: path.into(), source }
}

/// Writes a file so that it is either the old or the new one, whatever happens: beside it, synced,
/// renamed, the folder synced.
fn write(path: &Path, bytes: &[u8]) -> Result<(), RunDirError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let beside = path.with_file_name(name);
    let done = (|| {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    })();
    done.map_err(|e| {
        _ = fs::remove_file(&beside);
        io("write", path)(e)
    })
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, RunDirError> {
    let found = fs::metadata(path).map_err(io("read", path))?;
    if !found.is_file() {
        let error = io::Error::other("not a file");
        return Err(io("read", path)(error));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(limit + 1).read_to_end(&mut bytes)).map_err(io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(RunDirError::TooLarge { path: path.into(), limit });
    }
    Ok(bytes)
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// `YYYYMMDD-HHMMSS` in UTC, from seconds since 1970.
pub fn timestamp(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The calendar repeats every 400 years, counted here from 1 March of year 0, so that a leap day
    // is the last day of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        for (seconds, want) in [
            (0, "19700101-000000"),
            (951_782_400, "20000229-000000"),
            (951_868_799, "20000229-235959"),
            (951_868_800, "20000301-000000"),
            (1_709_164_800, "20240229-000000"),
            (1_735_689_599, "20241231-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(timestamp(seconds), want);
        }
    }

    #[test]
    fn runs_of_the_same_second_have_folders_of_their_own() {
        let root = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(951_782_400);
        let names: Vec<String> = (0..3)
            .map(|_| {
                let run = RunDir::create_at(root.path(), "deltanet", 1, now).unwrap();
                assert!(run.programs().is_dir() && run.checkpoints().is_dir());
                let name = run.path().file_name().unwrap();
                name.to_str().unwrap().to_string()
            })
            .collect();
        let first = "20000229-000000-seed1";
        assert_eq!(names, [first.to_string(), format!("{first}-2"), format!("{first}-3")]);
    }

    #[test]
    fn a_chosen_folder_must_be_empty_and_a_run_has_a_plan() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let run = RunDir::create(&path).unwrap();
        let again = RunDir::create(&path).unwrap_err().to_string();
        assert!(again.contains("is not empty; name another folder"), "{again}");
        let early = RunDir::open(&path).unwrap_err().to_string();
        assert!(early.contains("is no run"), "{early}");
        std::fs::write(run.plan(), "{}").unwrap();
        assert!(RunDir::open(&path).is_ok());
        let error = run.read_plan().unwrap_err().to_string();
        assert!(error.contains("not a plan: missing field `format`"), "{error}");
        std::fs::write(run.plan(), "{\"format\": 9}").unwrap();
        let error = run.read_plan().unwrap_err().to_string();
        assert!(error.contains("format 9 and this host reads 1"), "{error}");
    }

    #[test]
    fn programs_are_checked_against_their_hash_and_stay_in_their_folder() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(&root.path().join("r")).unwrap();
        let part = run.write_program(PartKind::UpdateRule, "main", "delta", b"program", "lib").unwrap();
        assert_eq!(part.file, "programs/update-rule-main.fwp");
        assert_eq!(run.read_program(&part).unwrap(), b"program");
        // No temporary file is left behind.
        assert_eq!(std::fs::read_dir(run.programs()).unwrap().count(), 1);

        std::fs::write(run.path().join(&part.file), b"prograM").unwrap();
        let error = run.read_program(&part).unwrap_err().to_string();
        assert!(error.contains("update-rule-main.fwp has changed: sha256"), "{error}");

        for file in ["/etc/passwd", "../x", "programs/../plan.json", "programs", "plan.json", "programs/a/b", ""] {
            let part = PartFile { file: file.into(), ..part.clone() };
            let error = run.read_program(&part).unwrap_err();
            assert!(matches!(error, RunDirError::Outside { .. }), "{file}: {error}");
        }
        assert!(run.write_program(PartKind::UpdateRule, "../x", "delta", b"", "").is_err());
    }
}
