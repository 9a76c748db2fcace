//! What the command line changes in a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fwp_task::schema::Value;

use crate::RecipeError;
use crate::tree::{Item, Node, Source, Table, is_bare_key, parse_value, shorten};

/// What the command line changes: `--set` in the order given, then the options that have a name of
/// their own, which win.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `KEY=VALUE` of every `--set`.
    ///
    /// The key is a dotted path. The value is read as TOML (`1e-3`, `true`, `[0, 2]`,
    /// `{ name = "adamw" }`) and, where it is not valid TOML, as a plain string, so that
    /// `update_rule.plugin=delta` needs no quotes. A table is merged into the one that is there,
    /// everything else replaces. An empty value (`feature_map.nu=`) takes the key out of the recipe,
    /// back to its default.
    pub set: Vec<String>,
    /// `--steps`: `train.steps`.
    pub steps: Option<u64>,
    /// `--seed`: `train.seed`.
    pub seed: Option<u64>,
    /// `--data`: `task.path`, relative to the current folder.
    pub data: Option<PathBuf>,
    /// `--device`: `train.device`.
    pub device: Option<String>,
    /// `--exec`: `train.exec`.
    pub exec: Option<String>,
}

impl Overrides {
    /// Merges the changes into a recipe.
    pub(crate) fn apply(&self, recipe: &mut Table) -> Result<(), RecipeError> {
        for text in &self.set {
            set(recipe, text)?;
        }
        let number = |n: u64| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
        let data = match &self.data {
            Some(path) => Some(utf8(path)?),
            None => None,
        };
        for (option, path, value) in [
            ("--steps", "train.steps", self.steps.map(number)),
            ("--seed", "train.seed", self.seed.map(number)),
            ("--data", "task.path", data.map(Value::Text)),
            ("--device", "train.device", self.device.clone().map(Value::Text)),
            ("--exec", "train.exec", self.exec.clone().map(Value::Text)),
        ] {
            let Some(value) = value else { continue };
            let shown = match &value {
                Value::Text(text) => text.clone(),
                other => other.to_string(),
            };
            let source = Source::CommandLine { option, text: format!("{option} {shown}").into() };
            put(recipe, path, Some(Node::value(value, source.clone())), &source)?;
        }
        Ok(())
    }
}

/// Applies one `KEY=VALUE`.
fn set(recipe: &mut Table, text: &str) -> Result<(), RecipeError> {
    let shown: Arc<str> = format!("--set {}", shorten(text)).into();
    let Some((path, value)) = text.split_once('=') else {
        return Err(RecipeError::new(&*shown, "", "expected KEY=VALUE").help("for example --set train.steps=1000".to_string()));
    };
    let (path, value) = (path.trim(), value.trim());
    if !path.split('.').all(is_bare_key) || path.split('.').count() > crate::keys::MAX_DEPTH {
        return Err(RecipeError::new(&*shown, "", format!("{:?} is not a key", shorten(path)))
            .help("write it as in train.optimiser.lr".to_string()));
    }
    let source = Source::CommandLine { option: "--set", text: shown };
    let node = (!value.is_empty()).then(|| match parse_value(value, path, &source) {
        Some(mut node) => {
            if let Item::Value(Value::Integer(_) | Value::Float(_) | Value::Boolean(_)) = node.item {
                node.raw = Some(value.into());
            }
            node
        }
        None => Node::value(Value::Text(value.into()), source.clone()),
    });
    put(recipe, path, node, &source)
}

/// Puts a node at a dotted path, or takes away what is there.
fn put(recipe: &mut Table, path: &str, node: Option<Node>, source: &Source) -> Result<(), RecipeError> {
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut table = recipe;
    for (depth, key) in keys.iter().enumerate() {
        if node.is_none() && table.get(key).is_none() {
            return Ok(());
        }
        table = table.table_mut(key, source).map_err(|found| {
            RecipeError::new(source.place(""), keys[..=depth].join("."), format!("the recipe has {found} here, not a table"))
        })?;
    }
    match node {
        Some(node) => table.merge(last, node),
        None => _ = table.remove(last),
    }
    Ok(())
}

fn utf8(path: &Path) -> Result<String, RecipeError> {
    path.to_str().map(Into::into).ok_or_else(|| {
        RecipeError::new(format!("--data {}", path.display()), "task.path", "the path is not UTF-8")
            .help("rename the file or link to it".to_string())
    })
}
