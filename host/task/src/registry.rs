//! The list of tasks, their typed configuration, and opening one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Task;
use crate::associative::{CapacitySpec, UpdateSpec};
use crate::code_execution::CodeSpec;
use crate::formal_language::LanguageSpec;
use crate::group_words::GroupSpec;
use crate::list_ops::ListOpsSpec;
use crate::mqar::MqarSpec;
use crate::retrieval::RetrievalSpec;
use crate::schema::{Default, KeyError, KeyInfo, Value, did_you_mean, list};
use crate::state_tracking::{ArithmeticSpec, ParitySpec};
use crate::text::{Order, TextSpec};

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

/// The typed configuration of a task: what one module says of its own.
pub(crate) trait Spec: Sized {
    /// Name and keys.
    const INFO: TaskInfo;

    /// Takes the values of a table whose keys and values suit [`INFO`](Self::INFO).
    ///
    /// # Errors
    /// Values that do not go together; the error names the key.
    fn read(table: &Checked) -> Result<Self, KeyError>;

    /// Every key with its effective value, in the order of the keys; absent keys are left out.
    fn values(&self) -> Vec<(&'static str, Value)>;

    /// The longest extent of the axis that the fast weights are written along.
    fn max_len(&self) -> usize;

    /// Makes the task.
    fn open(&self) -> Result<Box<dyn Task>, TaskError>;
}

/// The list of tasks: a variant each, whose name in words joined by hyphens is the task's.
macro_rules! tasks {
    ($( $(#[$doc:meta])* $variant:ident($spec:ty), )*) => {
        /// A task with its configuration, checked.
        ///
        /// It is written into a run's folder, and all that [`open`] needs.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name", rename_all = "kebab-case")]
        pub enum TaskSpec {
            $( $(#[$doc])* $variant($spec), )*
        }

        static TASKS: &[TaskInfo] = &[$( <$spec as Spec>::INFO, )*];

        impl TaskSpec {
            fn read(name: &str, table: &Checked) -> Option<Result<Self, KeyError>> {
                $( if name == <$spec as Spec>::INFO.name {
                    return Some(<$spec as Spec>::read(table).map(Self::$variant));
                } )*
                None
            }

            /// What is known of the task.
            pub fn info(&self) -> &'static TaskInfo {
                match self {
                    $( Self::$variant(_) => &<$spec as Spec>::INFO, )*
                }
            }

            /// Every key with its effective value, defaults included, in the order of
            /// [`TaskInfo::keys`]; keys that are absent are left out.
            pub fn values(&self) -> Vec<(&'static str, Value)> {
                match self {
                    $( Self::$variant(spec) => spec.values(), )*
                }
            }

            /// The longest extent, in training or evaluation, of the axis that the fast weights
            /// are written along; the same as [`TaskIo::max_len`](crate::TaskIo::max_len), without
            /// opening the task.
            pub fn max_len(&self) -> usize {
                match self {
                    $( Self::$variant(spec) => spec.max_len(), )*
                }
            }

            fn open(&self) -> Result<Box<dyn Task>, TaskError> {
                match self {
                    $( Self::$variant(spec) => spec.open(), )*
                }
            }
        }
    };
}

tasks! {
    /// Keys and values drawn without replacement: how much fits into the fast weights.
    AssociativeCapacity(CapacitySpec),
    /// Keys and values drawn with replacement: whether a fast weight can be overwritten.
    AssociativeUpdate(UpdateSpec),
    /// The digit of a letter, at the end of a line of letters and digits.
    AssociativeRetrieval(RetrievalSpec),
    /// Many keys that are asked again.
    Mqar(MqarSpec),
    /// Whether the number of ones is odd.
    Parity(ParitySpec),
    /// The value of an expression modulo 5.
    ModularArithmetic(ArithmeticSpec),
    /// The product of the elements of a group.
    GroupWords(GroupSpec),
    /// What may follow in a word.
    FormalLanguage(LanguageSpec),
    /// What a program prints.
    CodeExecution(CodeSpec),
    /// The value of nested operations on lists.
    ListOps(ListOpsSpec),
    /// The next character or byte of a text file.
    Text(TextSpec),
}

/// All tasks.
pub fn tasks() -> &'static [TaskInfo] {
    TASKS
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
        Self::read(info.name, &table).unwrap_or_else(|| unreachable!("{name} is in the list that was just searched"))
    }

    /// The task's name.
    pub fn name(&self) -> &'static str {
        self.info().name
    }

    /// Whether the task reads a file; all others draw their data by the seed.
    pub fn reads_file(&self) -> bool {
        self.info().keys.iter().any(|k| k.name == "path")
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

    /// Whether a row of one step continues that row of the step before, so that fast weights may
    /// be carried over.
    pub fn continues(&self) -> bool {
        matches!(self, Self::Text(s) if s.order == Order::Sequential)
    }
}

/// A table whose keys and values have been checked and whose constant defaults are filled in.
pub(crate) struct Checked(BTreeMap<&'static str, Value>);

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

    /// A size that may be absent.
    pub(crate) fn optional_size(&self, key: &str) -> Option<usize> {
        match self.0.get(key) {
            Some(Value::Integer(v)) => usize::try_from(*v).ok(),
            _ => None,
        }
    }

    /// A size that the schema guarantees to be there.
    pub(crate) fn size(&self, key: &str) -> usize {
        self.optional_size(key).unwrap_or_default()
    }

    /// A number that the schema guarantees to be there.
    pub(crate) fn float(&self, key: &str) -> f64 {
        match self.0.get(key) {
            Some(Value::Float(v)) => *v,
            _ => 0.0,
        }
    }

    /// A truth value that may be absent.
    pub(crate) fn optional_flag(&self, key: &str) -> Option<bool> {
        match self.0.get(key) {
            Some(Value::Boolean(v)) => Some(*v),
            _ => None,
        }
    }

    /// A truth value that the schema guarantees to be there.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.optional_flag(key).unwrap_or_default()
    }

    /// A list of sizes that the schema guarantees to be there.
    pub(crate) fn sizes(&self, key: &str) -> Vec<usize> {
        match self.0.get(key) {
            Some(Value::Integers(v)) => v.iter().filter_map(|x| usize::try_from(*x).ok()).collect(),
            _ => Vec::new(),
        }
    }

    /// A string that may be absent.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
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
    spec.open()
}

/// The text that identifies the batches of a task by its configuration, for
/// [`Task::fingerprint`]; `version` changes when the same configuration gives other batches.
pub(crate) fn fingerprint<S: Spec>(spec: &S, version: u32) -> String {
    let values: String = spec.values().iter().map(|(key, value)| format!(" {key}={value}")).collect();
    format!("{} v{version}{values}", S::INFO.name)
}

/// A size as the value of a key.
pub(crate) fn size(n: usize) -> Value {
    Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

/// Sizes as the value of a key.
pub(crate) fn sizes(list: &[usize]) -> Value {
    Value::Integers(list.iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect())
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
        let unknown = build("zzz", &[]).unwrap_err();
        assert!(unknown.starts_with(r#"name: "zzz" is no task; there are `associative-capacity`, `associative-update`, "#));
        assert!(unknown.ends_with("`text`"));
    }

    #[test]
    fn specifications_survive_json_and_their_own_values() {
        use Value::{Integer, Text};
        // What each task needs, and a value for every key that may be absent.
        let given: &[(&str, &[(&str, Value)])] = &[
            ("associative-capacity", &[("keys", Integer(60))]),
            ("associative-update", &[("keys", Integer(20))]),
            ("group-words", &[("group", Text("S5".into())), ("moves", Integer(3))]),
            ("formal-language", &[("language", Text("shuffle-2".into()))]),
            (
                "text",
                &[
                    ("context", Integer(64)),
                    ("path", Text("/a/b".into())),
                    ("order", Text("sequential".into())),
                    ("eval_windows", Integer(9)),
                ],
            ),
        ];
        for info in tasks() {
            let table = given.iter().find(|(name, _)| *name == info.name).map_or(&[][..], |(_, table)| table);
            let spec = build(info.name, table).unwrap();
            assert_eq!(spec.info(), info);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<TaskSpec>(&json).unwrap(), spec);
            assert!(json.starts_with(&format!("{{\"name\":\"{}\"", info.name)), "{json}");
            let unknown = json.replacen('{', "{\"bogus\":1,", 1);
            assert!(serde_json::from_str::<TaskSpec>(&unknown).is_err());
            let values = spec.values();
            assert_eq!(build(info.name, &values).unwrap(), spec);
            assert_eq!(values.iter().map(|v| v.0).collect::<Vec<_>>(), info.keys.iter().map(|k| k.name).collect::<Vec<_>>());
            if let Ok(task) = open(&spec) {
                assert_eq!(task.io().max_len, spec.max_len(), "{}", info.name);
            }
        }
    }

    /// `cargo test --release -p fwp-task --lib -- --ignored --nocapture speed`
    #[test]
    #[ignore = "measures; prints tokens a second of every generator on one core"]
    fn speed_of_generation() {
        let text = |key: &'static str, value: &str| (key, Value::Text(value.into()));
        let tasks = [
            ("associative-retrieval", vec![]),
            ("mqar", vec![text("train", "64x4")]),
            ("mqar", vec![text("train", "1024x256")]),
            ("parity", vec![]),
            ("modular-arithmetic", vec![]),
            ("modular-arithmetic", vec![("brackets", Value::Boolean(true))]),
            ("group-words", vec![text("group", "S5")]),
            ("formal-language", vec![text("language", "parity")]),
            ("formal-language", vec![text("language", "counter-3")]),
            ("formal-language", vec![text("language", "dyck-1")]),
            ("formal-language", vec![text("language", "shuffle-2")]),
            ("formal-language", vec![text("language", "reset-dyck-1")]),
            ("code-execution", vec![]),
            ("list-ops", vec![]),
            ("list-ops", vec![("depth", Value::Integer(16))]),
        ];
        for (name, table) in tasks {
            let task = open(&build(name, &table).unwrap()).unwrap();
            let (began, mut tokens) = (std::time::Instant::now(), 0);
            for step in 0.. {
                tokens += task.train_batch(1, step, 0, 64).tokens;
                if began.elapsed().as_secs_f64() > 0.5 {
                    break;
                }
            }
            let speed = tokens as f64 / began.elapsed().as_secs_f64() / 1e6;
            println!("{speed:8.2} million tokens/s  {}", task.describe());
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
