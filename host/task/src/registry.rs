//! The list of tasks, their typed configuration, and opening one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Task;
use crate::associative::{self, CapacitySpec, UpdateSpec};
use crate::schema::{Default, KeyError, KeyInfo, Value, did_you_mean, list};
use crate::text::{self, TextSpec};

/// What is known of a task before it is opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskInfo {
    /// The name that a recipe gives, such as `associative-update`.
    pub name: &'static str,
    /// One line on what the task is.
    pub doc: &'static str,
    /// The keys of its table, in the order in which they are shown.
    pub keys: &'static [KeyInfo],
}

static TASKS: [TaskInfo; 3] = [associative::CAPACITY, associative::UPDATE, text::TEXT];

/// All tasks.
pub fn tasks() -> &'static [TaskInfo] {
    &TASKS
}

/// A task with its configuration, checked.
///
/// It is written into a run's folder, and all that [`open`] needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum TaskSpec {
    /// Keys and values drawn without replacement: how much fits into the fast weights.
    AssociativeCapacity(CapacitySpec),
    /// Keys and values drawn with replacement: whether a fast weight can be overwritten.
    AssociativeUpdate(UpdateSpec),
    /// The next character or byte of a text file.
    Text(TextSpec),
}

impl TaskSpec {
    /// Builds a specification from a table of values, as a recipe gives it (without `name`).
    ///
    /// # Errors
    /// An unknown task, an unknown or missing key, a wrong type or a value out of range; the error
    /// names the key (`name` when the task itself is unknown) so that a caller can find its line.
    pub fn from_values(name: &str, values: &BTreeMap<String, Value>) -> Result<Self, KeyError> {
        let Some(info) = tasks().iter().find(|t| t.name == name) else {
            let names: Vec<&str> = tasks().iter().map(|t| t.name).collect();
            return Err(KeyError {
                key: "name".into(),
                message: format!("{name:?} is no task"),
                help: Some(did_you_mean(name, names.iter().copied()).unwrap_or_else(|| format!("there are {}", list(&names)))),
            });
        };
        let table = Checked::new(info, values)?;
        Ok(match info.name {
            "associative-capacity" => {
                Self::AssociativeCapacity(CapacitySpec { keys: table.size("keys"), eval_sequences: table.size("eval_sequences") })
            }
            "associative-update" => {
                let keys = table.size("keys");
                Self::AssociativeUpdate(UpdateSpec {
                    keys,
                    length: table.optional_size("length").unwrap_or(2 * keys),
                    eval_length: table.optional_size("eval_length").unwrap_or(keys),
                    eval_sequences: table.size("eval_sequences"),
                })
            }
            _ => Self::Text(TextSpec {
                path: table.text("path").map(PathBuf::from),
                level: match table.text("level").as_deref() {
                    Some("byte") => text::Level::Byte,
                    _ => text::Level::Char,
                },
                context: table.size("context"),
                train_fraction: table.float("train_fraction"),
                order: match table.text("order").as_deref() {
                    Some("sequential") => text::Order::Sequential,
                    _ => text::Order::Random,
                },
                eval_windows: table.optional_size("eval_windows"),
            }),
        })
    }

    /// The task's name.
    pub fn name(&self) -> &'static str {
        self.info().name
    }

    /// What is known of the task.
    pub fn info(&self) -> &'static TaskInfo {
        match self {
            Self::AssociativeCapacity(_) => &TASKS[0],
            Self::AssociativeUpdate(_) => &TASKS[1],
            Self::Text(_) => &TASKS[2],
        }
    }

    /// Every key with its effective value, defaults included, in the order of
    /// [`TaskInfo::keys`]; keys that are absent are left out.
    pub fn values(&self) -> Vec<(&'static str, Value)> {
        let size = |n: usize| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
        match self {
            Self::AssociativeCapacity(s) => vec![("keys", size(s.keys)), ("eval_sequences", size(s.eval_sequences))],
            Self::AssociativeUpdate(s) => vec![
                ("keys", size(s.keys)),
                ("length", size(s.length)),
                ("eval_length", size(s.eval_length)),
                ("eval_sequences", size(s.eval_sequences)),
            ],
            Self::Text(s) => {
                let mut values = Vec::new();
                if let Some(path) = &s.path {
                    values.push(("path", Value::Text(path.to_string_lossy().into_owned())));
                }
                values.push(("level", Value::Text(s.level.name().into())));
                values.push(("context", size(s.context)));
                values.push(("train_fraction", Value::Float(s.train_fraction)));
                values.push(("order", Value::Text(s.order.name().into())));
                if let Some(n) = s.eval_windows {
                    values.push(("eval_windows", size(n)));
                }
                values
            }
        }
    }

    /// Makes the task read this file instead of its own.
    ///
    /// # Errors
    /// A task that reads no file.
    pub fn set_path(&mut self, path: &std::path::Path) -> Result<(), String> {
        match self {
            Self::Text(s) => {
                s.path = Some(path.to_path_buf());
                Ok(())
            }
            other => Err(format!("task {:?} reads no data file; leave out --data", other.name())),
        }
    }

    /// The longest extent, in training or evaluation, of the axis that the fast weights are
    /// written along; the same as [`TaskIo::max_len`](crate::TaskIo::max_len), without opening
    /// the task.
    pub fn max_len(&self) -> usize {
        match self {
            Self::AssociativeCapacity(s) => s.keys,
            Self::AssociativeUpdate(s) => s.length.max(s.eval_length),
            Self::Text(s) => s.context,
        }
    }

    /// Whether a row of one step continues that row of the step before, so that fast weights may
    /// be carried over.
    pub fn continues(&self) -> bool {
        matches!(self, Self::Text(s) if s.order == text::Order::Sequential)
    }
}

/// A table whose keys and values have been checked and whose constant defaults are filled in.
struct Checked(BTreeMap<&'static str, Value>);

impl Checked {
    fn new(info: &TaskInfo, values: &BTreeMap<String, Value>) -> Result<Self, KeyError> {
        let mut table = BTreeMap::new();
        for (key, value) in values {
            let Some(known) = info.keys.iter().find(|k| k.name == key) else {
                let names: Vec<&str> = info.keys.iter().map(|k| k.name).collect();
                return Err(KeyError {
                    key: key.clone(),
                    message: format!("task `{}` has no such key", info.name),
                    help: Some(did_you_mean(key, names.iter().copied()).unwrap_or_else(|| format!("it has {}", list(&names)))),
                });
            };
            let value =
                known.kind.check(value.clone()).map_err(|m| KeyError { key: key.clone(), message: m.message, help: m.help })?;
            table.insert(known.name, value);
        }
        for key in info.keys {
            if table.contains_key(key.name) {
                continue;
            }
            if let Some(value) = key.default.value() {
                table.insert(key.name, value);
            } else if key.default == Default::Required {
                return Err(KeyError {
                    key: key.name.into(),
                    message: format!("task `{}` needs it", info.name),
                    help: Some(key.doc.into()),
                });
            }
        }
        Ok(Self(table))
    }

    fn optional_size(&self, key: &str) -> Option<usize> {
        match self.0.get(key) {
            Some(Value::Integer(v)) => usize::try_from(*v).ok(),
            _ => None,
        }
    }

    /// A size that the schema guarantees to be there.
    fn size(&self, key: &str) -> usize {
        self.optional_size(key).unwrap_or_default()
    }

    fn float(&self, key: &str) -> f64 {
        match self.0.get(key) {
            Some(Value::Float(v)) => *v,
            _ => 0.0,
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.0.get(key) {
            Some(Value::Text(v)) => Some(v.clone()),
            _ => None,
        }
    }
}

/// Why a task could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The specification itself is out of range (a plan edited by hand).
    #[error("task `{task}`: {source}")]
    Spec {
        /// The task's name.
        task: &'static str,
        /// The key and what is wrong with it.
        source: KeyError,
    },
    /// The task reads a file and none was named.
    #[error("task `{task}` reads a file and none is named; pass --data PATH or set task.path")]
    NoData {
        /// The task's name.
        task: &'static str,
    },
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}; check the path given by --data or task.path", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path names something that is not a file.
    #[error("{} is {what}, not a file; give the path of one text file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// The file is larger than a task holds in memory.
    #[error("{} has {bytes} bytes; a text of at most {limit} bytes is held in memory: give a part of it", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The file is too short for the context and the split.
    #[error("{} is too short: {message}", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// How long it is, how long it must be, and what to change.
        message: String,
    },
    /// The file is not UTF-8 and was to be read as characters.
    #[error("{} is not UTF-8: the byte at offset {offset} (0x{byte:02x}) starts no valid character; read it as bytes with task.level = \"byte\"", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The offset of the first invalid byte, from 0.
        offset: usize,
        /// That byte.
        byte: u8,
    },
}

/// Opens a task: checks the specification once more (it may come from a file) and reads its data.
///
/// # Errors
/// A specification out of range, or data that is missing, unreadable, too short or of the wrong
/// encoding.
pub fn open(spec: &TaskSpec) -> Result<Box<dyn Task>, TaskError> {
    let values = spec.values().into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    TaskSpec::from_values(spec.name(), &values).map_err(|source| TaskError::Spec { task: spec.name(), source })?;
    Ok(match spec {
        TaskSpec::AssociativeCapacity(s) => Box::new(associative::Associative::capacity(s)),
        TaskSpec::AssociativeUpdate(s) => Box::new(associative::Associative::update(s)),
        TaskSpec::Text(s) => Box::new(text::Text::open(s)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(name: &str, table: &[(&str, Value)]) -> Result<TaskSpec, String> {
        let table = table.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
        TaskSpec::from_values(name, &table).map_err(|e| e.to_string())
    }

    #[test]
    fn refusals_name_the_key_and_the_remedy() {
        use Value::{Integer, Text};
        for (name, table, want) in [
            ("associative-updat", vec![], r#"name: "associative-updat" is no task; did you mean `associative-update`?"#),
            ("zzz", vec![], r#"name: "zzz" is no task; there are `associative-capacity`, `associative-update`, `text`"#),
            (
                "associative-update",
                vec![("key", Integer(20))],
                "key: task `associative-update` has no such key; did you mean `keys`?",
            ),
            ("associative-capacity", vec![], "keys: task `associative-capacity` needs it; the number S of keys, and of values"),
            ("associative-capacity", vec![("keys", Integer(0))], "keys: 0 is not in 1..=65536"),
            ("associative-capacity", vec![("keys", Text("20".into()))], r#"keys: expected an integer, found a string ("20")"#),
            (
                "text",
                vec![("context", Integer(8)), ("level", Text("chars".into()))],
                r#"level: "chars" is none of `char`, `byte`; did you mean `char`?"#,
            ),
            (
                "text",
                vec![("context", Integer(8)), ("train_fraction", Integer(1))],
                "train_fraction: 1.0 is not a number > 0 and < 1",
            ),
        ] {
            assert_eq!(build(name, &table).unwrap_err(), want);
        }
    }

    #[test]
    fn specifications_survive_json_and_their_own_values() {
        for (name, table) in [
            ("associative-capacity", vec![("keys", Value::Integer(60))]),
            ("associative-update", vec![("keys", Value::Integer(20))]),
            (
                "text",
                vec![
                    ("context", Value::Integer(64)),
                    ("path", Value::Text("/a/b".into())),
                    ("order", Value::Text("sequential".into())),
                    ("eval_windows", Value::Integer(9)),
                ],
            ),
        ] {
            let spec = build(name, &table).unwrap();
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<TaskSpec>(&json).unwrap(), spec);
            assert!(json.starts_with(&format!("{{\"name\":\"{name}\"")), "{json}");
            let unknown = json.replacen('{', "{\"bogus\":1,", 1);
            assert!(serde_json::from_str::<TaskSpec>(&unknown).is_err());
            let again: Vec<(&str, Value)> = spec.values();
            assert_eq!(build(name, &again).unwrap(), spec);
        }
    }

    #[test]
    fn a_plan_edited_by_hand_is_refused() {
        let spec = TaskSpec::AssociativeCapacity(CapacitySpec { keys: 0, eval_sequences: 20 });
        let message = open(&spec).err().unwrap().to_string();
        assert_eq!(message, "task `associative-capacity`: keys: 0 is not in 1..=65536");
    }

    #[test]
    fn every_default_suits_its_own_kind() {
        for task in tasks() {
            for key in task.keys {
                if let Some(value) = key.default.value() {
                    assert!(key.kind.check(value).is_ok(), "{} {}", task.name, key.name);
                }
                assert!(!key.doc.is_empty());
            }
        }
    }
}
