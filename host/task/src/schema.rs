//! Configuration keys as data: name, type, range, default and documentation.
//!
//! The same description checks a recipe, names the key that a typing error meant, and prints the
//! list of keys for a person, so the three cannot disagree.

use std::fmt;

/// A configuration value, free of any file format.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// `true` or `false`.
    Boolean(bool),
    /// A string.
    Text(String),
    /// A list of numbers.
    Floats(Vec<f64>),
    /// A list of whole numbers.
    Integers(Vec<i64>),
}

impl Value {
    /// What a person calls this type of value, with its article.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::Text(_) => "a string",
            Self::Floats(_) => "a list of numbers",
            Self::Integers(_) => "a list of integers",
        }
    }
}

impl fmt::Display for Value {
    /// Writes the value as TOML would.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v:?}"),
            Self::Boolean(v) => write!(f, "{v}"),
            Self::Text(v) => write!(f, "{v:?}"),
            Self::Floats(v) => write!(f, "{v:?}"),
            Self::Integers(v) => write!(f, "{v:?}"),
        }
    }
}

/// The type and range of a key's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// An integer in `min..=max`.
    Integer {
        /// The smallest value.
        min: i64,
        /// The largest value.
        max: i64,
    },
    /// A finite number; an integer is taken as one.
    Float {
        /// The lower bound.
        min: f64,
        /// The upper bound.
        max: f64,
        /// Whether the lower bound itself is allowed.
        min_included: bool,
        /// Whether the upper bound itself is allowed.
        max_included: bool,
    },
    /// Exactly `len` finite numbers in `min..max` (the upper bound excluded).
    Floats {
        /// How many.
        len: usize,
        /// The lower bound, included.
        min: f64,
        /// The upper bound, excluded.
        max: f64,
    },
    /// At least one integer, each in `min..=max`.
    Integers {
        /// The smallest value.
        min: i64,
        /// The largest value.
        max: i64,
    },
    /// `true` or `false`.
    Boolean,
    /// Any string.
    Text,
    /// A path of a file.
    Path,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A number of bytes: an integer, or a string with a unit such as `"4GiB"`.
    Bytes,
}

impl Kind {
    /// Checks a value against the type and range, and brings it into the type's own form
    /// (an integer given for a float becomes a float, a size with a unit becomes bytes).
    ///
    /// # Errors
    /// What was expected and what was found, as one phrase that follows the key's name.
    pub fn check(&self, value: Value) -> Result<Value, Mismatch> {
        let wrong_type =
            |value: &Value| Mismatch::new(format!("expected {}, found {} ({value})", self.noun(), value.type_name()));
        match (self, value) {
            (Self::Integer { min, max }, Value::Integer(v)) => {
                if v < *min || v > *max {
                    let range = match *max {
                        i64::MAX => self.to_string(),
                        _ => format!("in {self}"),
                    };
                    return Err(Mismatch::new(format!("{v} is not {range}")));
                }
                Ok(Value::Integer(v))
            }
            (Self::Float { .. }, Value::Integer(v)) => self.check(Value::Float(v as f64)),
            (Self::Float { min, max, min_included, max_included }, Value::Float(v)) => {
                let above = if *min_included { v >= *min } else { v > *min };
                let below = if *max_included { v <= *max } else { v < *max };
                if !v.is_finite() || !above || !below {
                    return Err(Mismatch::new(format!("{v:?} is not {self}")));
                }
                Ok(Value::Float(v))
            }
            (Self::Floats { len, min, max }, Value::Floats(v)) => {
                if v.len() != *len {
                    return Err(Mismatch::new(format!("expected {len} numbers, found {}", v.len())));
                }
                match v.iter().find(|x| !x.is_finite() || **x < *min || **x >= *max) {
                    Some(x) => Err(Mismatch::new(format!("{x:?} is not in {min}..{max}"))),
                    None => Ok(Value::Floats(v)),
                }
            }
            // A list is read as numbers; whole ones below 2^53 are exact.
            (Self::Integers { .. }, Value::Floats(v)) if v.iter().all(|x| x.fract() == 0.0 && x.abs() < 9e15) => {
                self.check(Value::Integers(v.into_iter().map(|x| x as i64).collect()))
            }
            (Self::Integers { min, max }, Value::Integers(v)) => {
                if v.is_empty() {
                    return Err(Mismatch::new("expected at least one integer".into()));
                }
                match v.iter().find(|x| !(*min..=*max).contains(x)) {
                    Some(x) => Err(Mismatch::new(format!("{x} is not in {min}..={max}"))),
                    None => Ok(Value::Integers(v)),
                }
            }
            (Self::Boolean, v @ Value::Boolean(_)) | (Self::Text, v @ Value::Text(_)) => Ok(v),
            (Self::Path, Value::Text(v)) => {
                if v.is_empty() || v.contains('\0') {
                    return Err(Mismatch::new(format!("{v:?} is not a path")));
                }
                Ok(Value::Text(v))
            }
            (Self::Choice(words), Value::Text(v)) => {
                if words.contains(&v.as_str()) {
                    return Ok(Value::Text(v));
                }
                Err(Mismatch {
                    message: format!("{v:?} is none of {}", list(words)),
                    help: did_you_mean(&v, words.iter().copied()),
                })
            }
            (Self::Bytes, Value::Integer(v)) if v > 0 => Ok(Value::Integer(v)),
            (Self::Bytes, Value::Text(v)) => match bytes(&v) {
                Some(n) => Ok(Value::Integer(n)),
                None => Err(Mismatch::new(format!("{v:?} is not {self}"))),
            },
            (Self::Bytes, Value::Integer(v)) => Err(Mismatch::new(format!("{v} is not {self}"))),
            (_, value) => Err(wrong_type(&value)),
        }
    }

    /// What a person calls a value of this type, without its range.
    pub fn noun(&self) -> String {
        match self {
            Self::Integer { .. } => "an integer".into(),
            Self::Float { .. } => "a number".into(),
            Self::Floats { len, .. } => format!("a list of {len} numbers"),
            Self::Integers { .. } => "a list of integers".into(),
            Self::Boolean => "true or false".into(),
            Self::Text | Self::Choice(_) => "a string".into(),
            Self::Path => "a path".into(),
            Self::Bytes => self.to_string(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer { min, max } if *max == i64::MAX => write!(f, "an integer >= {min}"),
            Self::Integer { min, max } => write!(f, "{min}..={max}"),
            Self::Float { min, max, min_included, max_included } => {
                let least = if *min_included { ">=" } else { ">" };
                let most = if *max_included { "<=" } else { "<" };
                match (min.is_finite(), max.is_finite()) {
                    (true, true) => write!(f, "a number {least} {min} and {most} {max}"),
                    (true, false) => write!(f, "a number {least} {min}"),
                    (false, true) => write!(f, "a number {most} {max}"),
                    (false, false) => write!(f, "a finite number"),
                }
            }
            Self::Floats { len, min, max } => write!(f, "{len} numbers in {min}..{max}"),
            Self::Integers { min, max } => write!(f, "a list of integers in {min}..={max}"),
            Self::Boolean => write!(f, "true or false"),
            Self::Text => write!(f, "a string"),
            Self::Path => write!(f, "a path"),
            Self::Choice(words) => write!(f, "{}", list(words)),
            Self::Bytes => write!(f, "a size in bytes such as 4294967296 or \"4GiB\""),
        }
    }
}

/// Why a value does not suit its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// What is wrong, without the key's name.
    pub message: String,
    /// What to do, where that is known.
    pub help: Option<String>,
}

impl Mismatch {
    fn new(message: String) -> Self {
        Self { message, help: None }
    }
}

/// What holds when a key is not given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// The key must be given.
    Required,
    /// The key may be left out and then nothing takes its place; the text says what that means.
    Absent(&'static str),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// Two numbers.
    Pair([f64; 2]),
    /// A list of whole numbers.
    Integers(&'static [i64]),
    /// A truth value.
    Boolean(bool),
    /// A string.
    Text(&'static str),
    /// A value computed from other keys; the text says how.
    Derived(&'static str),
}

impl Default {
    /// The value, where it is a constant.
    pub fn value(&self) -> Option<Value> {
        Some(match self {
            Self::Required | Self::Absent(_) | Self::Derived(_) => return None,
            Self::Integer(v) => Value::Integer(*v),
            Self::Float(v) => Value::Float(*v),
            Self::Pair(v) => Value::Floats(v.to_vec()),
            Self::Integers(v) => Value::Integers(v.to_vec()),
            Self::Boolean(v) => Value::Boolean(*v),
            Self::Text(v) => Value::Text((*v).into()),
        })
    }
}

impl fmt::Display for Default {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Required => write!(f, "required"),
            Self::Absent(what) | Self::Derived(what) => write!(f, "{what}"),
            _ => match self.value() {
                Some(value) => write!(f, "{value}"),
                None => Ok(()),
            },
        }
    }
}

/// One key of a table, documented.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyInfo {
    /// The key, with dots where it lies in a nested table (`optimiser.lr`).
    pub name: &'static str,
    /// Its type and range.
    pub kind: Kind,
    /// What holds when it is not given.
    pub default: Default,
    /// One line on what it means.
    pub doc: &'static str,
}

/// A key that is unknown, missing or has an unsuitable value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", render(key, message, help))]
pub struct KeyError {
    /// The key, relative to its table; empty when the table as a whole is meant.
    pub key: String,
    /// What is wrong, without the key's name.
    pub message: String,
    /// What to do, where that is known.
    pub help: Option<String>,
}

fn render(key: &str, message: &str, help: &Option<String>) -> String {
    let help = help.as_ref().map(|h| format!("; {h}")).unwrap_or_default();
    if key.is_empty() { format!("{message}{help}") } else { format!("{key}: {message}{help}") }
}

/// Words in quotes, joined by commas.
pub fn list(words: &[&str]) -> String {
    words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ")
}

/// The known word that a mistyped one most likely meant, or `None` when none is near.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A file may hold a word of any length, and the comparison takes time and memory in its square.
    if word.chars().count() > 64 {
        return None;
    }
    let plain = |w: &str| w.to_lowercase().replace('-', "_");
    let word = plain(word);
    known
        .into_iter()
        .map(|k| {
            let score = strsim::normalized_damerau_levenshtein(&word, &plain(k));
            (k, score)
        })
        .filter(|(_, score)| *score > 0.5)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(k, _)| k)
}

/// ``did you mean `x`?`` for the nearest known word, where one is near.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, known).map(|k| format!("did you mean `{k}`?"))
}

/// A number of bytes from a text such as `512MiB`, `4 GB` or `1024`.
fn bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let size = number.parse::<f64>().ok()? * factor;
    // Past 2^53 a float no longer holds every integer; no machine has that much memory.
    (1.0..=9.0e15).contains(&size).then_some(size as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, want) in [
            ("1024", Some(1024)),
            ("4GiB", Some(4 << 30)),
            ("4 gib", Some(4 << 30)),
            ("1.5kB", Some(1500)),
            ("0", None),
            ("-1", None),
            ("4 elephants", None),
            ("", None),
            ("1e999GiB", None),
            ("99999999TiB", None),
        ] {
            assert_eq!(bytes(text), want, "{text}");
        }
    }

    #[test]
    fn floats_refuse_what_is_not_a_number_in_range() {
        let lr = Kind::Float { min: 0.0, max: f64::INFINITY, min_included: false, max_included: false };
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(lr.check(Value::Float(bad)).is_err(), "{bad}");
        }
        assert_eq!(lr.check(Value::Integer(1)), Ok(Value::Float(1.0)));
    }

    #[test]
    fn nearest_finds_typing_errors_only() {
        let known = ["steps", "batch_size", "optimiser"];
        assert_eq!(nearest("step", known), Some("steps"));
        assert_eq!(nearest("batch-size", known), Some("batch_size"));
        assert_eq!(nearest("optimizer", known), Some("optimiser"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest(&"s".repeat(100_000), known), None);
    }
}
