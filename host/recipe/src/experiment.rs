//! What decides the numbers of a run, and in what two recipes differ there.

use std::collections::BTreeMap;

use fwp_task::schema::{KeyInfo, Value};

use crate::Resolved;
use crate::keys;
use crate::tree::{Item, Node, Table};

/// Values that change nothing of what is computed: what is said for people, where and how it is computed, what is watched and
/// kept. The seed is left out as well, because the runs of one experiment have different ones, and the path of data, whose
/// content counts.
const BESIDE: [&str; 8] =
    ["title", "cite", "notes", "train.seed", "train.device", "train.exec", "train.memory_limit", "task.path"];

/// Sections of which the same holds.
const SECTIONS_BESIDE: [&str; 3] = ["checkpoint", "monitor", "expect"];

/// What decides the numbers of a run but its seed: values by dotted key, those left out that are their key's constant default.
///
/// So a recipe, the resolved recipe in the folder of its run, and the same recipe read by a later host that knows more keys
/// have the same experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experiment(BTreeMap<String, String>);

impl Experiment {
    /// The values as text, one `key = value` a line, sorted: equal for equal experiments.
    pub fn text(&self) -> String {
        self.0.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
    }

    /// The keys in which two experiments differ, with the value here and there; `None` is the default.
    pub fn differences<'a>(&'a self, other: &'a Experiment) -> Vec<(&'a str, Option<&'a str>, Option<&'a str>)> {
        let keys = self.0.keys().chain(other.0.keys().filter(|k| !self.0.contains_key(*k)));
        let value = |e: &'a Experiment, key: &str| e.0.get(key).map(String::as_str);
        keys.map(|k| (k.as_str(), value(self, k), value(other, k))).filter(|(_, a, b)| a != b).collect()
    }
}

impl Resolved {
    /// What decides the numbers of a run of this recipe, but its seed.
    pub fn experiment(&self) -> Experiment {
        let mut values = BTreeMap::new();
        collect(&self.tree, "", self.task.name(), &mut values);
        Experiment(values)
    }

    /// The value at a dotted path as a number, defaults included.
    pub fn number(&self, path: &str) -> Option<f64> {
        match self.tree.at(path)?.item {
            Item::Value(Value::Integer(v)) => Some(v as f64),
            Item::Value(Value::Float(v)) => Some(v),
            _ => None,
        }
    }
}

fn collect(table: &Table, prefix: &str, task: &str, out: &mut BTreeMap<String, String>) {
    for (name, node) in table.iter() {
        let path = format!("{prefix}{name}");
        if BESIDE.contains(&path.as_str()) || SECTIONS_BESIDE.contains(&path.as_str()) {
            continue;
        }
        match &node.item {
            Item::Table(inner) => collect(inner, &format!("{path}."), task, out),
            _ if is_default(&path, task, node) => {}
            _ => _ = out.insert(path, text(node)),
        }
    }
}

/// Whether a value is the constant default of its key. Keys of plugins have none that is known here.
fn is_default(path: &str, task: &str, node: &Node) -> bool {
    let Some((section, key)) = path.split_once('.') else { return false };
    let keys: &[KeyInfo] = match section {
        "task" => fwp_task::tasks().iter().find(|t| t.name == task).map_or(&[], |t| t.keys),
        _ => keys::sections().iter().find(|s| s.name == section).map_or(&[], |s| s.keys),
    };
    // The keys of one map of several stand one table deeper: `feature_map.NAME.plugin`.
    let key = if section == "feature_map" { key.rsplit('.').next().unwrap_or(key) } else { key };
    let found = keys.iter().find(|k| k.name == key);
    let default = found.and_then(|k| k.default.value()).map(|v| Node::value(v, crate::Source::Default));
    default.is_some_and(|default| text(&default) == text(node))
}

/// A value as text: a number has one spelling, whether it was written as an integer or not.
fn text(node: &Node) -> String {
    match &node.item {
        Item::Value(Value::Float(v)) if v.fract() == 0.0 && v.abs() < 1e15 => (*v as i64).to_string(),
        Item::Value(value) => value.to_string(),
        Item::Array(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", ")),
        Item::Table(table) => {
            let values: Vec<String> = table.iter().map(|(k, n)| format!("{k} = {}", text(n))).collect();
            format!("{{ {} }}", values.join(", "))
        }
    }
}
