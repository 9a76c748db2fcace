//! Printing a resolved recipe: as plain TOML, or with the source of every value beside it.

use std::fmt::Write;

use fwp_task::schema::Value;

use crate::Resolved;
use crate::tree::{Item, Node, Table};

/// Values wider than this do not push the comments of all lines to the right.
const MAX_COLUMN: usize = 56;

impl Resolved {
    /// The merged recipe as TOML, each value with its source in a comment:
    /// `steps = 2000  # recipe.toml:21`.
    pub fn show(&self) -> String {
        let lines = lines(&self.tree);
        let column = lines
            .iter()
            .filter(|(_, source)| source.is_some())
            .map(|(text, _)| text.chars().count())
            .filter(|n| *n <= MAX_COLUMN)
            .max()
            .unwrap_or_default();
        let mut out = String::new();
        for (text, source) in lines {
            _ = match source {
                Some(source) => writeln!(out, "{text:column$}  # {source}"),
                None => writeln!(out, "{text}"),
            };
        }
        out
    }

    /// The merged recipe as TOML, defaults included, which reads back to the same recipe.
    ///
    /// Paths in it are absolute, so it must be read with
    /// [`trust_paths`](crate::ReadOptions::trust_paths) when it names data or a library.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for (text, _) in lines(&self.tree) {
            _ = writeln!(out, "{text}");
        }
        out
    }
}

/// The lines of a document: text, and the source of its value where it has one.
fn lines(tree: &Table) -> Vec<(String, Option<String>)> {
    let mut out = Vec::new();
    write_table(&mut out, tree, "");
    out
}

fn write_table(out: &mut Vec<(String, Option<String>)>, table: &Table, path: &str) {
    let is_table = |node: &Node| matches!(node.item, Item::Table(_));
    let values: Vec<_> = table.iter().filter(|(_, n)| !is_table(n)).collect();
    // A table that holds only tables needs no header, one that is empty does.
    if !path.is_empty() && (!values.is_empty() || table.is_empty()) {
        if !out.is_empty() {
            out.push((String::new(), None));
        }
        out.push((format!("[{path}]"), None));
    }
    for (key, node) in values {
        out.push((format!("{key} = {}", inline(node)), Some(node.source.to_string())));
    }
    for (key, node) in table.iter() {
        if let Item::Table(inner) = &node.item {
            let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            write_table(out, inner, &path);
        }
    }
}

/// A value on one line.
fn inline(node: &Node) -> String {
    let join = |items: Vec<String>| items.join(", ");
    match &node.item {
        Item::Value(value) => scalar(value),
        Item::Array(items) => format!("[{}]", join(items.iter().map(inline).collect())),
        Item::Table(table) if table.is_empty() => "{}".into(),
        Item::Table(table) => {
            let items = table.iter().map(|(k, n)| format!("{k} = {}", inline(n)));
            format!("{{ {} }}", join(items.collect()))
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        // Rust's shortest form that reads back to the same number is valid TOML, `NaN` excepted.
        Value::Float(x) if x.is_nan() => "nan".into(),
        other => other.to_string(),
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => _ = write!(out, "\\U{:08X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
