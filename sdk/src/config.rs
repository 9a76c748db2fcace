//! Configuration of parts: documented structs that refuse unknown keys.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// One documented key of a part's configuration.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Field {
    /// The key in the recipe.
    pub name: String,
    /// Kind of value, in words.
    pub kind: String,
    /// The default as JSON.
    pub default: Value,
    /// What it means.
    pub doc: String,
}

/// The configuration of a part. Made by [`config!`](crate::config!).
pub trait Config: Default + 'static {
    /// The documentation comment of the struct.
    const DOC: &'static str;
    /// The keys in order.
    fn fields() -> Vec<Field>;
    /// Sets one key; `None` when there is no such key.
    fn set(&mut self, name: &str, value: &Value) -> Option<Result<(), String>>;
    /// All keys with their values.
    fn values(&self) -> Map<String, Value>;
    /// Refuses combinations that cannot work, before anything is built.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Fills a configuration from a table; unknown keys and wrong types are refused by name.
pub fn read<C: Config>(table: &Map<String, Value>) -> Result<C, String> {
    let mut config = C::default();
    for (key, value) in table {
        match config.set(key, value) {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(format!("`{key}`: {e}")),
            None => return Err(unknown(key, C::fields().iter().map(|f| f.name.clone()).collect())),
        }
    }
    config.validate()?;
    Ok(config)
}

/// The message for an unknown key, with the nearest valid name.
pub fn unknown(key: &str, valid: Vec<String>) -> String {
    let nearest = valid.iter().map(|v| (distance(key, v), v)).min();
    match nearest {
        Some((d, v)) if d <= 1 + key.len() / 3 => format!("unknown key `{key}`; did you mean `{v}`?"),
        _ if valid.is_empty() => format!("unknown key `{key}`; there is nothing to configure"),
        _ => format!("unknown key `{key}`; the keys are {}", valid.join(", ")),
    }
}

/// Number of edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let edit = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], edit);
        }
    }
    row[b.len()]
}

/// A kind of value that a configuration may hold.
pub trait ConfigValue: Sized {
    /// The kind in words.
    fn kind() -> String;
    /// Reads the value.
    fn from_json(value: &Value) -> Result<Self, String>;
    /// Writes the value.
    fn to_json(&self) -> Value;
}

macro_rules! config_value {
    ($ty:ty, $kind:literal, |$v:ident| $read:expr) => {
        impl ConfigValue for $ty {
            fn kind() -> String {
                $kind.into()
            }
            fn from_json($v: &Value) -> Result<Self, String> {
                $read.ok_or_else(|| format!("expected {}, got {}", $kind, $v))
            }
            fn to_json(&self) -> Value {
                Value::from(self.clone())
            }
        }
    };
}

config_value!(f64, "a number", |v| v.as_f64().filter(|x| x.is_finite()));
config_value!(usize, "a whole number from 0", |v| v.as_u64().and_then(|x| usize::try_from(x).ok()));
config_value!(i64, "a whole number", |v| v.as_i64());
config_value!(bool, "true or false", |v| v.as_bool());
config_value!(String, "a text", |v| v.as_str().map(str::to_string));

impl<T: ConfigValue> ConfigValue for Vec<T> {
    fn kind() -> String {
        format!("a list, each {}", T::kind())
    }
    fn from_json(value: &Value) -> Result<Self, String> {
        let list = value.as_array().ok_or_else(|| format!("expected {}, got {value}", Self::kind()))?;
        list.iter().map(T::from_json).collect()
    }
    fn to_json(&self) -> Value {
        Value::Array(self.iter().map(T::to_json).collect())
    }
}

impl<T: ConfigValue> ConfigValue for BTreeMap<String, T> {
    fn kind() -> String {
        format!("a table, each value {}", T::kind())
    }
    fn from_json(value: &Value) -> Result<Self, String> {
        let table = value.as_object().ok_or_else(|| format!("expected {}, got {value}", Self::kind()))?;
        table.iter().map(|(k, v)| Ok((k.clone(), T::from_json(v).map_err(|e| format!("{k}: {e}"))?))).collect()
    }
    fn to_json(&self) -> Value {
        Value::Object(self.iter().map(|(k, v)| (k.clone(), v.to_json())).collect())
    }
}

impl<T: ConfigValue> ConfigValue for Option<T> {
    fn kind() -> String {
        format!("{}, or absent", T::kind())
    }
    fn from_json(value: &Value) -> Result<Self, String> {
        if value.is_null() { Ok(None) } else { T::from_json(value).map(Some) }
    }
    fn to_json(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::to_json)
    }
}

/// Declares the configuration of a part: a documented struct with a default for every key.
///
/// `with` adds groups of keys that several parts have in common: each is a `config!` of its own, whose keys stand beside the
/// struct's in the one table of the recipe.
/// `validate` refuses what cannot work, after the groups have had a look.
///
/// ```
/// fwp_sdk::config! {
///     /// Deterministic parameter-free projection.
///     pub struct Dpfp {
///         /// Number of shifts.
///         nu: usize = 1,
///     }
/// }
///
/// fwp_sdk::config! {
///     /// What several nets have in common.
///     pub struct Sizes {
///         /// Features.
///         width: usize = 64,
///     }
///     validate(me) {
///         if me.width == 0 { return Err("`width`: expected at least 1, got 0".into()); }
///         Ok(())
///     }
/// }
///
/// fwp_sdk::config! {
///     /// A net.
///     pub struct Net {
///         /// Number of layers.
///         layers: usize = 2,
///     }
///     with {
///         /// Its sizes.
///         sizes: Sizes,
///     }
/// }
/// ```
#[macro_export]
macro_rules! config {
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident {
            $( $(#[doc = $fdoc:literal])* $field:ident : $ty:ty = $default:expr ),* $(,)?
        }
        $( with { $( $(#[doc = $gdoc:literal])* $group:ident : $gty:ty ),* $(,)? } )?
        $( validate($me:ident) $check:block )?
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $( $(#[doc = $fdoc])* pub $field: $ty, )*
            $( $( $(#[doc = $gdoc])* pub $group: $gty, )* )?
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $( $field: $default, )* $( $( $group: Default::default(), )* )? }
            }
        }

        impl $crate::Config for $name {
            const DOC: &'static str = concat!($( $doc, "\n" ),*);

            fn fields() -> Vec<$crate::config::Field> {
                #[allow(unused_variables)]
                let default = $name::default();
                #[allow(unused_mut)]
                let mut fields = vec![ $( $crate::config::Field {
                    name: stringify!($field).into(),
                    kind: <$ty as $crate::config::ConfigValue>::kind(),
                    default: $crate::config::ConfigValue::to_json(&default.$field),
                    doc: concat!($( $fdoc, "\n" ),*).trim().into(),
                } ),* ];
                $( $( fields.extend(<$gty as $crate::Config>::fields()); )* )?
                fields
            }

            fn set(&mut self, name: &str, value: &$crate::serde_json::Value) -> Option<Result<(), String>> {
                $( if name == stringify!($field) {
                    return Some($crate::config::ConfigValue::from_json(value).map(|v| self.$field = v));
                } )*
                $( $( if let Some(set) = $crate::Config::set(&mut self.$group, name, value) {
                    return Some(set);
                } )* )?
                let _ = value;
                None
            }

            fn values(&self) -> $crate::serde_json::Map<String, $crate::serde_json::Value> {
                #[allow(unused_mut)]
                let mut map = $crate::serde_json::Map::new();
                $( map.insert(stringify!($field).into(), $crate::config::ConfigValue::to_json(&self.$field)); )*
                $( $( map.extend($crate::Config::values(&self.$group)); )* )?
                map
            }

            fn validate(&self) -> Result<(), String> {
                $( $( $crate::Config::validate(&self.$group)?; )* )?
                let verdict: Result<(), String> = Ok(());
                $(
                    let $me = self;
                    let verdict: Result<(), String> = verdict.and($check);
                )?
                verdict
            }
        }
    };
}

/// Declares the named choices of a configuration key.
///
/// ```
/// fwp_sdk::choices! {
///     /// How features are normalised.
///     pub enum Normalise {
///         /// Not at all.
///         None = "none",
///         /// To sum one.
///         Sum = "sum",
///     }
/// }
/// ```
#[macro_export]
macro_rules! choices {
    (
        $(#[$doc:meta])*
        pub enum $name:ident { $( $(#[$vdoc:meta])* $variant:ident = $text:literal ),* $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[$vdoc])* $variant ),* }

        impl $crate::config::ConfigValue for $name {
            fn kind() -> String {
                [$( concat!("\"", $text, "\"") ),*].join(" or ")
            }
            fn from_json(value: &$crate::serde_json::Value) -> Result<Self, String> {
                match value.as_str() {
                    $( Some($text) => Ok($name::$variant), )*
                    _ => Err(format!("expected {}, got {value}", Self::kind())),
                }
            }
            fn to_json(&self) -> $crate::serde_json::Value {
                match self { $( $name::$variant => $text.into() ),* }
            }
        }
    };
}
