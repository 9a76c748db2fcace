//! A TOML document as a tree in which every value knows its source.

use std::fmt;
use std::sync::Arc;

use fwp_task::schema::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::RecipeError;
use crate::keys::{MAX_DEPTH, MAX_VALUES};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said it.
    Default,
    /// A recipe file.
    File {
        /// The file as the user named it.
        file: Arc<str>,
        /// The line, from 1.
        line: u32,
        /// The column, in characters from 1.
        column: u32,
    },
    /// The command line.
    CommandLine {
        /// The option, such as `--set` or `--steps`.
        option: &'static str,
        /// The option with its value, as typed.
        text: Arc<str>,
    },
}

impl Source {
    /// Whether the value was typed on the command line.
    pub fn is_command_line(&self) -> bool {
        matches!(self, Self::CommandLine { .. })
    }

    /// Where an error about the value is placed.
    pub(crate) fn place(&self, file: &str) -> String {
        match self {
            Self::Default => file.into(),
            Self::File { file, line, column } => format!("{file}:{line}:{column}"),
            Self::CommandLine { text, .. } => text.to_string(),
        }
    }
}

impl fmt::Display for Source {
    /// The short form: `default`, `recipe.toml:12`, `--set`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line, .. } => {
                let name = file.rsplit('/').next().unwrap_or(file);
                write!(f, "{name}:{line}")
            }
            Self::CommandLine { option, .. } => f.write_str(option),
        }
    }
}

/// A value with its source.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub item: Item,
    pub source: Source,
    /// What was typed, for a plain value of the command line: `--set title=1` means the string.
    pub raw: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) enum Item {
    Value(Value),
    Array(Vec<Node>),
    Table(Table),
}

impl Node {
    pub fn new(item: Item, source: Source) -> Self {
        Self { item, source, raw: None }
    }

    pub fn value(value: Value, source: Source) -> Self {
        // A list of numbers has one form in the tree, whoever made it.
        match value {
            Value::Floats(list) => {
                let list = list.into_iter().map(|x| Self::value(Value::Float(x), source.clone())).collect();
                Self::new(Item::Array(list), source)
            }
            Value::Integers(list) => {
                let list = list.into_iter().map(|x| Self::value(Value::Integer(x), source.clone())).collect();
                Self::new(Item::Array(list), source)
            }
            value => Self::new(Item::Value(value), source),
        }
    }

    /// What a person calls this type of value.
    pub fn type_name(&self) -> &'static str {
        match &self.item {
            Item::Value(value) => value.type_name(),
            Item::Array(_) => "a list",
            Item::Table(_) => "a table",
        }
    }

    /// The value for a key of the schema; `None` for a table or a list of anything but numbers.
    pub fn to_value(&self) -> Option<Value> {
        match &self.item {
            Item::Value(value) => Some(value.clone()),
            Item::Array(items) => items
                .iter()
                .map(|node| match node.item {
                    Item::Value(Value::Integer(v)) => Some(v as f64),
                    Item::Value(Value::Float(v)) => Some(v),
                    _ => None,
                })
                .collect::<Option<_>>()
                .map(Value::Floats),
            Item::Table(_) => None,
        }
    }

    /// The value as a TOML value without sources.
    pub fn to_toml(&self) -> toml::Value {
        match &self.item {
            Item::Value(Value::Integer(v)) => toml::Value::Integer(*v),
            Item::Value(Value::Float(v)) => toml::Value::Float(*v),
            Item::Value(Value::Boolean(v)) => toml::Value::Boolean(*v),
            Item::Value(Value::Text(v)) => toml::Value::String(v.clone()),
            Item::Value(Value::Floats(v)) => toml::Value::Array(v.iter().map(|x| toml::Value::Float(*x)).collect()),
            Item::Value(Value::Integers(v)) => toml::Value::Array(v.iter().map(|x| toml::Value::Integer(*x)).collect()),
            Item::Array(v) => toml::Value::Array(v.iter().map(Self::to_toml).collect()),
            Item::Table(v) => toml::Value::Table(v.to_toml()),
        }
    }
}

/// A table in the order of its keys' first mention.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table(Vec<(String, Node)>);

impl Table {
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, n)| n)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(k, n)| (k.as_str(), n))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn remove(&mut self, key: &str) -> Option<Node> {
        let at = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.remove(at).1)
    }

    /// Sets a key, in its old place where it has one.
    pub fn insert(&mut self, key: &str, node: Node) {
        match self.0.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = node,
            None => self.0.push((key.into(), node)),
        }
    }

    /// The node at a dotted path.
    pub fn at(&self, path: &str) -> Option<&Node> {
        let (first, rest) = match path.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (path, None),
        };
        let node = self.get(first)?;
        match (rest, &node.item) {
            (None, _) => Some(node),
            (Some(rest), Item::Table(table)) => table.at(rest),
            (Some(_), _) => None,
        }
    }

    /// The table under a key, made where it is missing; `Err` is what stands there instead.
    pub fn table_mut(&mut self, key: &str, source: &Source) -> Result<&mut Table, &'static str> {
        let at = match self.0.iter().position(|(k, _)| k == key) {
            Some(at) => at,
            None => {
                let node = Node::new(Item::Table(Self::default()), source.clone());
                self.0.push((key.into(), node));
                self.0.len() - 1
            }
        };
        let node = &mut self.0[at].1;
        let found = node.type_name();
        match &mut node.item {
            Item::Table(table) => Ok(table),
            _ => Err(found),
        }
    }

    /// Puts a node under a key; tables are merged, everything else is replaced.
    pub fn merge(&mut self, key: &str, node: Node) {
        if let (Item::Table(new), Some(old)) = (&node.item, self.0.iter_mut().find(|(k, _)| k == key).map(|(_, n)| n))
            && let Item::Table(old) = &mut old.item
        {
            for (key, node) in &new.0 {
                old.merge(key, node.clone());
            }
            return;
        }
        self.insert(key, node);
    }

    pub fn to_toml(&self) -> toml::Table {
        self.iter().map(|(k, n)| (k.to_string(), n.to_toml())).collect()
    }
}

/// Whether a key can be written without quotes; no other keys are taken, so that a dotted path is
/// never ambiguous.
pub(crate) fn is_bare_key(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// Reads a TOML document.
pub(crate) fn parse(file: &str, text: &str) -> Result<Table, RecipeError> {
    let lines = Lines::new(file, text);
    let document = DeTable::parse(text).map_err(|e| {
        let place = lines.source(e.span().map_or(0, |s| s.start)).place(file);
        RecipeError::new(place, "", format!("not valid TOML: {}", e.message()))
    })?;
    let mut reader = Reader { file, source: &|offset| lines.source(offset), values: 0 };
    reader.table(document.get_ref(), "", 0)
}

/// Reads one value of the command line as TOML; `None` where it is not valid TOML or a date.
pub(crate) fn parse_value(text: &str, key: &str, source: &Source) -> Option<Node> {
    let value = DeValue::parse(text).ok()?;
    if value.get_ref().is_datetime() {
        return None;
    }
    let mut reader = Reader { file: "", source: &|_| source.clone(), values: 0 };
    let item = reader.item(&value, key, 0, source).ok()?;
    Some(Node::new(item, source.clone()))
}

/// Turns byte offsets into lines and columns.
struct Lines<'a> {
    file: Arc<str>,
    text: &'a str,
    /// The offset at which each line starts.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(file: &str, text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { file: file.into(), text, starts }
    }

    fn source(&self, offset: usize) -> Source {
        let line = self.starts.partition_point(|s| *s <= offset).max(1);
        let start = self.starts[line - 1];
        // An offset inside a character or past the end still gives a column.
        let before = self.text.as_bytes().get(start..offset).unwrap_or_default();
        let column = String::from_utf8_lossy(before).chars().count() + 1;
        Source::File {
            file: self.file.clone(),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
        }
    }
}

struct Reader<'a> {
    file: &'a str,
    source: &'a dyn Fn(usize) -> Source,
    values: usize,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, path: &str, depth: usize) -> Result<Table, RecipeError> {
        // The parser sorts keys; the file's own order is that of their positions.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut out = Table::default();
        for (key, value) in entries {
            let source = (self.source)(key.span().start);
            let name = key.get_ref().as_ref();
            if !is_bare_key(name) {
                return Err(RecipeError::new(source.place(self.file), "", format!("{:?} is not a key", shorten(name)))
                    .help("keys are letters, digits, `_` and `-`".to_string()));
            }
            let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
            let item = self.item(value, &path, depth + 1, &source)?;
            out.0.push((name.into(), Node::new(item, source)));
        }
        Ok(out)
    }

    fn item(&mut self, value: &Spanned<DeValue<'_>>, path: &str, depth: usize, source: &Source) -> Result<Item, RecipeError> {
        let refuse = |message: String| Err(RecipeError::new(source.place(self.file), shorten(path), message));
        self.values += 1;
        if self.values > MAX_VALUES {
            return refuse(format!("a recipe has at most {MAX_VALUES} values"));
        }
        if depth > MAX_DEPTH {
            return refuse(format!("a recipe is nested at most {MAX_DEPTH} deep"));
        }
        Ok(match value.get_ref() {
            DeValue::String(v) => Item::Value(Value::Text(v.to_string())),
            DeValue::Integer(v) => match i64::from_str_radix(v.as_str(), v.radix()) {
                Ok(v) => Item::Value(Value::Integer(v)),
                Err(_) => return refuse(format!("{v} does not fit into 64 bits")),
            },
            DeValue::Float(v) => match v.as_str().parse() {
                Ok(v) => Item::Value(Value::Float(v)),
                Err(_) => return refuse(format!("{v} is not a number")),
            },
            DeValue::Boolean(v) => Item::Value(Value::Boolean(*v)),
            DeValue::Datetime(v) => {
                return refuse(format!("no key takes a date ({v}); put it in quotes"));
            }
            DeValue::Array(items) => {
                let mut out = Vec::with_capacity(items.len().min(MAX_VALUES));
                for item in items.iter() {
                    let place = (self.source)(item.span().start);
                    let item = self.item(item, path, depth + 1, &place)?;
                    out.push(Node::new(item, place));
                }
                Item::Array(out)
            }
            DeValue::Table(table) => Item::Table(self.table(table, path, depth)?),
        })
    }
}

/// The beginning of a text that may be of any length.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_characters() {
        let table = parse("f", "# é\na.b = 1 # x\r\n  \"c\" = { d = [1,\n 2] }\n").unwrap();
        let at = |path| table.at(path).unwrap().source.place("f");
        assert_eq!(at("a"), "f:2:1");
        assert_eq!(at("a.b"), "f:2:3");
        assert_eq!(at("c"), "f:3:3");
        assert_eq!(at("c.d"), "f:3:11");
    }

    #[test]
    fn deep_and_huge_documents_are_refused_without_a_crash() {
        let bombs = [
            format!("a{} = 1", ".a".repeat(200_000)),
            format!("a = {}1{}", "[".repeat(200_000), "]".repeat(200_000)),
            format!("a = {}", "{a = ".repeat(100_000)),
            format!("[a{}]", ".a".repeat(200_000)),
            format!("a{} = 1", ".a".repeat(40)),
            format!("a = [{}]", "1,".repeat(400_000)),
            (0..60_000).map(|i| format!("k{i}=1\n")).collect(),
            "[[a]]\n".repeat(100_000),
            format!("{} = 1", "k".repeat(900_000)),
            format!("\"{}\" = 1", "k ".repeat(400_000)),
        ];
        for bomb in bombs {
            let start = std::time::Instant::now();
            if let Err(error) = parse("f", &bomb) {
                let text = error.to_string();
                assert!(text.len() < 400, "{}", text.len());
            } else {
                assert!(bomb.starts_with("kkkk"));
            }
            assert!(start.elapsed().as_secs() < 20);
        }
    }
}
