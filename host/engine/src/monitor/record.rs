//! `metrics.jsonl`: one JSON object a line, the record of truth of a run.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// The open file. Each line is written with one call, so that a reader sees whole lines.
pub(super) struct Record {
    path: PathBuf,
    file: File,
}

impl Record {
    /// Opens the file: empty for a fresh run, else cut after the last line of step `resumed_at`.
    pub(super) fn open(path: &Path, resumed_at: Option<u64>) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let mut open = OpenOptions::new();
        open.create(true);
        let file = match resumed_at {
            None => open.write(true).truncate(true).open(path).map_err(named)?,
            Some(step) => {
                let file = open.read(true).append(true).open(path).map_err(named)?;
                let keep = valid_up_to(&file, step).map_err(named)?;
                if keep < file.metadata().map_err(named)?.len() {
                    file.set_len(keep).map_err(named)?;
                }
                file
            }
        };
        Ok(Self { path: path.to_owned(), file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one line. A value that is not finite becomes `null`, which every JSON reader knows.
    pub(super) fn write(&mut self, step: u64, time: f64, values: &[(String, f64)]) -> io::Result<()> {
        let mut object = Map::new();
        object.insert("step".into(), step.into());
        object.insert("time".into(), time.into());
        for (name, value) in values {
            object.insert(name.clone(), Value::from(*value));
        }
        let mut line = serde_json::to_vec(&object)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }

    /// Makes sure that the file is still the one at its path: writing to a removed file succeeds.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let same = match std::fs::metadata(&self.path) {
            Ok(there) => there.ino() == self.file.metadata()?.ino(),
            Err(_) => false,
        };
        if same { Ok(()) } else { Err(io::Error::other("the file was removed")) }
    }
}

/// The length of the beginning of the file that holds whole lines of steps up to `step`.
fn valid_up_to(file: &File, step: u64) -> io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut keep = 0;
    loop {
        line.clear();
        let size = reader.read_until(b'\n', &mut line)?;
        let whole = line.last() == Some(&b'\n');
        let at = serde_json::from_slice::<Value>(&line).ok().and_then(|v| v["step"].as_u64());
        if size == 0 || !whole || at.is_none_or(|at| at > step) {
            return Ok(keep);
        }
        keep += size as u64;
    }
}
