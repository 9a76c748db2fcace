//! `text`: the next character or byte of a text file.
//!
//! The first part of the file trains, the rest validates.
//! A sample is a window of `context` symbols; the target at each position is the symbol after it.
//!
//! **Alphabet.** At level `char` it is the sorted set of the characters of the *whole* file, as in
//! the usual character-level recipes, so a character that occurs only in the validation part has a
//! symbol of its own. At level `byte` it is the 256 byte values. The text is taken as it is: line
//! ends and a byte-order mark stay.
//!
//! **Order.** With `random` each row is a window that starts anywhere in the training part.
//! With `sequential` each row walks through the training part window by window, so that fast
//! weights can be carried from step to step: row r of step n+1 continues row r of step n, and
//! [`Batch::resets`] says where a row is back at the beginning. The rows start at evenly spaced
//! places, micro-batches between them, and the seed shifts all of them together. After as many
//! steps as there are windows each row has read each window once. Up to `context` symbols at the
//! end of the training part do not fill a window and are left out.
//!
//! **Evaluation** reads the validation part in contiguous windows that do not overlap: each of its
//! symbols but the first is a target exactly once, and a last short window is padded with targets
//! of weight 0. With `eval_windows = N` it reads N of these windows, spread evenly, always the
//! same. With `sequential` order and all windows, each row of the evaluation walks through its own
//! stretch and may be carried, too.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::{Batch, Loss, Port, Task, TaskIo};
use crate::draw::{Draw, Purpose};
use crate::registry::{Checked, Spec, TaskError, TaskInfo, size};
use crate::schema::{Default, KeyError, KeyInfo, Kind, Value};

/// The largest file that is read: it is held in memory, at up to five times its size while the
/// alphabet is made.
const MAX_BYTES: u64 = 2 << 30;

const TEXT: TaskInfo = TaskInfo {
    name: "text",
    doc: "the next character or byte of a text file",
    keys: &[
        KeyInfo {
            name: "path",
            kind: Kind::Path,
            default: Default::Absent("none: give it with --data PATH"),
            doc: "the text file; relative to the recipe file",
        },
        KeyInfo {
            name: "level",
            kind: Kind::Choice(&["char", "byte"]),
            default: Default::Text("char"),
            doc: "what a symbol is: a character of the file's own alphabet, or a byte",
        },
        KeyInfo {
            name: "context",
            kind: Kind::Integer { min: 1, max: 16_777_216 },
            default: Default::Required,
            doc: "the number of symbols in a window (the time axis)",
        },
        KeyInfo {
            name: "train_fraction",
            kind: Kind::Float { min: 0.0, max: 1.0, min_included: false, max_included: false },
            default: Default::Float(0.9),
            doc: "the part of the file, from its beginning, that trains; the rest validates",
        },
        KeyInfo {
            name: "order",
            kind: Kind::Choice(&["random", "sequential"]),
            default: Default::Text("random"),
            doc: "windows at random places, or each row window by window through the text",
        },
        KeyInfo {
            name: "eval_windows",
            kind: Kind::Integer { min: 1, max: i64::MAX },
            default: Default::Absent("the whole validation part"),
            doc: "evaluate on this many windows, spread evenly, instead of all",
        },
    ],
};

/// What a symbol of the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// A character (Unicode scalar value) of the file's own alphabet.
    Char,
    /// A byte.
    Byte,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Char => "char",
            Self::Byte => "byte",
        }
    }
}

/// In which order training reads the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Each row is a window at a random place.
    Random,
    /// Each row continues where it ended in the step before.
    Sequential,
}

impl Order {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Sequential => "sequential",
        }
    }
}

/// The configuration of `text`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSpec {
    /// The text file; `None` until one is named.
    pub path: Option<PathBuf>,
    /// What a symbol is.
    pub level: Level,
    /// The number of symbols in a window.
    pub context: usize,
    /// The part of the file that trains.
    pub train_fraction: f64,
    /// In which order training reads.
    pub order: Order,
    /// How many windows an evaluation reads; `None` means all.
    pub eval_windows: Option<usize>,
}

impl Spec for TextSpec {
    const INFO: TaskInfo = TEXT;

    fn read(table: &Checked) -> Result<Self, KeyError> {
        Ok(Self {
            path: table.text("path").map(PathBuf::from),
            level: match table.text("level").as_deref() {
                Some("byte") => Level::Byte,
                _ => Level::Char,
            },
            context: table.size("context"),
            train_fraction: table.float("train_fraction"),
            order: match table.text("order").as_deref() {
                Some("sequential") => Order::Sequential,
                _ => Order::Random,
            },
            eval_windows: table.optional_size("eval_windows"),
        })
    }

    fn values(&self) -> Vec<(&'static str, Value)> {
        let mut values = Vec::new();
        if let Some(path) = &self.path {
            values.push(("path", Value::Text(path.to_string_lossy().into_owned())));
        }
        values.push(("level", Value::Text(self.level.name().into())));
        values.push(("context", size(self.context)));
        values.push(("train_fraction", Value::Float(self.train_fraction)));
        values.push(("order", Value::Text(self.order.name().into())));
        if let Some(n) = self.eval_windows {
            values.push(("eval_windows", size(n)));
        }
        values
    }

    fn max_len(&self) -> usize {
        self.context
    }

    fn open(&self) -> Result<Box<dyn Task>, TaskError> {
        Ok(Box::new(Text::open(self)?))
    }
}

/// The text as symbols, in the narrowest integers that hold them.
enum Symbols {
    Narrow(Vec<u8>),
    Wide(Vec<u32>),
}

impl Symbols {
    fn len(&self) -> usize {
        match self {
            Self::Narrow(s) => s.len(),
            Self::Wide(s) => s.len(),
        }
    }

    /// Appends `count` symbols from `start` on.
    fn copy(&self, start: usize, count: usize, out: &mut Vec<i64>) {
        let range = start..start + count;
        match self {
            Self::Narrow(s) => out.extend(s[range].iter().map(|x| i64::from(*x))),
            Self::Wide(s) => out.extend(s[range].iter().map(|x| i64::from(*x))),
        }
    }
}

/// A text file, opened.
pub struct Text {
    io: TaskIo,
    path: PathBuf,
    sha256: String,
    level: Level,
    order: Order,
    context: usize,
    symbols: Symbols,
    /// Symbols before this index train, the others validate.
    split: usize,
    /// The windows of the validation part that an evaluation reads, in order.
    eval: Windows,
}

/// Which windows of the validation part are read.
struct Windows {
    /// How many windows the part has.
    all: usize,
    /// How many of them are read.
    read: usize,
}

impl Windows {
    /// The place, among all windows, of the i-th that is read.
    fn place(&self, i: usize) -> usize {
        (i as u128 * self.all as u128 / self.read as u128) as usize
    }
}

/// A window of the text.
struct Window {
    /// The index of its first symbol.
    start: usize,
    /// How many of its positions have a target; the others are padding.
    filled: usize,
    /// Whether it does not continue the same row of the batch before.
    fresh: bool,
}

impl Text {
    /// Reads the file and splits it.
    ///
    /// # Errors
    /// No path, a path that is missing or not a file, a file that is empty, too large, too short
    /// for the context, or (at level `char`) not UTF-8.
    pub fn open(spec: &TextSpec) -> Result<Self, TaskError> {
        let path = spec.path.clone().ok_or(TaskError::NoData { task: TEXT.name })?;
        let bytes = read(&path)?;
        let sha256 = hex(&Sha256::digest(&bytes));
        let (symbols, vocab) = match spec.level {
            Level::Byte => (Symbols::Narrow(bytes), 256),
            Level::Char => encode(&path, &bytes)?,
        };
        let len = symbols.len();
        let (context, unit) = (spec.context, spec.level.name());
        // Truncation as in the usual recipes: `int(0.9 * len)`.
        let split = ((len as f64 * spec.train_fraction) as usize).min(len);
        let too_short = |message| TaskError::TooShort { path: path.clone(), message };
        if len == 0 {
            return Err(too_short("it is empty".into()));
        }
        if split < context + 1 {
            return Err(too_short(format!(
                "{split} of its {len} {unit}s train, and a window needs {}; lower task.context or give more text",
                context + 1
            )));
        }
        if len - split < 2 {
            return Err(too_short(format!(
                "{} of its {len} {unit}s validate, and one target needs 2; lower task.train_fraction or give more text",
                len - split
            )));
        }
        let all = (len - split - 1).div_ceil(context);
        Ok(Self {
            io: TaskIo {
                inputs: vec![Port::symbols("tokens", "time", vocab)],
                outputs: vec![Port::vectors("logits", "time", vocab)],
                values: vocab,
                max_len: context,
            },
            path,
            sha256,
            level: spec.level,
            order: spec.order,
            context,
            symbols,
            split,
            eval: Windows { all, read: spec.eval_windows.unwrap_or(all).clamp(1, all) },
        })
    }

    /// The batch of these windows; `None` stands for a row of padding alone.
    fn batch(&self, windows: &[Option<Window>], resets: bool) -> Batch {
        let (size, context) = (windows.len(), self.context);
        let mut tokens = Vec::with_capacity(size * context);
        let mut targets = Vec::with_capacity(size * context);
        let mut weights = Vec::with_capacity(size * context);
        let mut real = 0;
        for (row, window) in windows.iter().enumerate() {
            let filled = window.as_ref().map_or(0, |w| w.filled);
            if let Some(window) = window {
                self.symbols.copy(window.start, filled, &mut tokens);
                self.symbols.copy(window.start + 1, filled, &mut targets);
            }
            weights.resize(row * context + filled, 1.0);
            tokens.resize((row + 1) * context, 0);
            targets.resize((row + 1) * context, 0);
            weights.resize((row + 1) * context, 0.0);
            real += filled;
        }
        Batch {
            size,
            inputs: vec![("tokens".into(), tokens, vec![size, context])],
            targets,
            target_shape: vec![size, context],
            weights: (real < size * context).then_some(weights),
            tokens: real,
            resets: resets.then(|| windows.iter().map(|w| w.as_ref().is_none_or(|w| w.fresh)).collect()),
            set: 0,
        }
    }

    /// A window of the validation part.
    fn eval_window(&self, place: usize, fresh: bool) -> Window {
        let offset = place * self.context;
        Window { start: self.split + offset, filled: self.context.min(self.symbols.len() - self.split - 1 - offset), fresh }
    }

    /// How many rows an evaluation batch has and how many windows each row reads.
    ///
    /// A row reads neighbouring windows, so that its state may be carried.
    fn eval_grid(&self, batch_size: usize) -> (usize, usize) {
        let per_row = self.eval.read.div_ceil(batch_size.max(1));
        (self.eval.read.div_ceil(per_row), per_row)
    }
}

impl Task for Text {
    fn io(&self) -> &TaskIo {
        &self.io
    }

    fn loss(&self) -> Loss {
        Loss::CrossEntropy
    }

    fn output_name(&self) -> &str {
        "logits"
    }

    fn train_batch(&self, seed: u64, step: u64, micro: u64, batch_size: usize) -> Batch {
        let full = |start, fresh| Some(Window { start, filled: self.context, fresh });
        match self.order {
            Order::Random => {
                // The last start leaves a target for the last position.
                let starts = self.split - self.context;
                let windows: Vec<_> = (0..batch_size as u64)
                    .map(|row| {
                        let start = Draw::at(seed, Purpose::Train, step, micro, row).below(starts);
                        full(start, true)
                    })
                    .collect();
                self.batch(&windows, false)
            }
            Order::Sequential => {
                let all = (self.split - 1) / self.context;
                let shift = Draw::at(seed, Purpose::Layout, 0, 0, 0).below(all);
                let windows: Vec<_> = (0..batch_size)
                    .map(|row| {
                        // Micro-batches halve the gaps between rows, then halve them again, so
                        // that the starts are even without knowing how many there will be.
                        let start = (row as f64 + halving(micro)) / batch_size as f64;
                        let start = shift + (start * all as f64) as usize;
                        let place = (start % all + (step % all as u64) as usize) % all;
                        full(place * self.context, step == 0 || place == 0)
                    })
                    .collect();
                self.batch(&windows, true)
            }
        }
    }

    fn eval_len(&self, batch_size: usize) -> usize {
        match self.order {
            Order::Random => self.eval.read.div_ceil(batch_size.max(1)),
            Order::Sequential => self.eval_grid(batch_size).1,
        }
    }

    fn eval_batch(&self, _seed: u64, index: usize, batch_size: usize) -> Batch {
        if index >= self.eval_len(batch_size) {
            return self.batch(&[], false);
        }
        let window = |i: usize, fresh| (i < self.eval.read).then(|| self.eval_window(self.eval.place(i), fresh));
        match self.order {
            Order::Random => {
                let first = index * batch_size.max(1);
                let windows: Vec<_> = (first..(first + batch_size.max(1)).min(self.eval.read)).map(|i| window(i, true)).collect();
                self.batch(&windows, false)
            }
            Order::Sequential => {
                let (rows, per_row) = self.eval_grid(batch_size);
                let fresh = index == 0 || self.eval.read < self.eval.all;
                // A row that has ended early keeps its place as padding: the batch must keep its
                // shape for states to be carried.
                let windows: Vec<_> = (0..rows).map(|row| window(row * per_row + index, fresh)).collect();
                self.batch(&windows, true)
            }
        }
    }

    fn describe(&self) -> String {
        let unit = self.level.name();
        let part = if self.eval.read < self.eval.all {
            format!("{} of {} windows", self.eval.read, self.eval.all)
        } else {
            format!("all {} windows", self.eval.all)
        };
        format!(
            "text: {}, {} {unit}s train and {} validate, alphabet of {}, windows of {} in {} order, evaluated on {part}",
            shown(&self.path).display(),
            self.split,
            self.symbols.len() - self.split,
            self.io.values,
            self.context,
            self.order.name(),
        )
    }

    fn fingerprint(&self) -> String {
        format!(
            "text v1 sha256={} level={} context={} split={} order={} eval_windows={}",
            self.sha256,
            self.level.name(),
            self.context,
            self.split,
            self.order.name(),
            self.eval.read
        )
    }
}

/// The fractions 0, 1/2, 1/4, 3/4, 1/8, ...: the bits of `i` mirrored behind the point.
fn halving(i: u64) -> f64 {
    i.reverse_bits() as f64 / 2.0_f64.powi(64)
}

/// A path as a person would write it: without detours, and from the working directory where that holds it.
fn shown(path: &Path) -> PathBuf {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let here = std::env::current_dir().and_then(|d| d.canonicalize());
    here.ok().and_then(|d| path.strip_prefix(d).ok()).unwrap_or(&path).to_owned()
}

/// Reads a regular file of bounded size.
fn read(path: &Path) -> Result<Vec<u8>, TaskError> {
    let error = |source| TaskError::Read { path: path.into(), source };
    // Before opening: opening a named pipe would wait for its writer.
    let found = std::fs::metadata(path).map_err(error)?;
    if !found.is_file() {
        return Err(TaskError::NotAFile {
            path: path.into(),
            what: if found.is_dir() { "a folder" } else { "a device, pipe or socket" },
        });
    }
    let mut bytes = Vec::with_capacity(found.len().min(MAX_BYTES) as usize);
    let file = File::open(path).map_err(error)?;
    // The file may have grown since, hence the bound on what is read as well.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(TaskError::TooLarge { path: path.into(), bytes: found.len().max(MAX_BYTES + 1), limit: MAX_BYTES });
    }
    Ok(bytes)
}

/// The characters of a text as indices into its sorted alphabet, and the alphabet's size.
fn encode(path: &Path, bytes: &[u8]) -> Result<(Symbols, usize), TaskError> {
    let text = std::str::from_utf8(bytes).map_err(|e| TaskError::NotUtf8 {
        path: path.into(),
        offset: e.valid_up_to(),
        byte: bytes.get(e.valid_up_to()).copied().unwrap_or_default(),
    })?;
    let alphabet: BTreeSet<char> = text.chars().collect();
    let vocab = alphabet.len();
    let index: std::collections::HashMap<char, u32> = alphabet.into_iter().zip(0..).collect();
    let symbols = if vocab <= 256 {
        Symbols::Narrow(text.chars().map(|c| index[&c] as u8).collect())
    } else {
        Symbols::Wide(text.chars().map(|c| index[&c]).collect())
    };
    Ok((symbols, vocab))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests;
