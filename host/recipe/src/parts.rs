//! Which plugins a recipe names, and for which layers.
//!
//! `[update_rule]` with a key `plugin` is the single rule `main`; without one, each of its tables is
//! a rule of that name. `[feature_map]` works the same way.
//! A rule takes the map that it names, else the map of its own name, else `main`.
//! A rule's `layers` lists the layers that use it; one rule may leave it out and takes all others.

use std::path::{Path, PathBuf};

use fwp_task::schema::{Value, did_you_mean, list};

use crate::RecipeError;
use crate::tree::{Item, Node, Source, Table, is_bare_key, shorten};

/// The kind of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// The net that is trained by gradient descent.
    SlowNet,
    /// The map of keys and queries.
    FeatureMap,
    /// How the fast weights are rewritten.
    UpdateRule,
}

impl PartKind {
    /// The name of the kind's section in a recipe.
    pub fn section(self) -> &'static str {
        match self {
            Self::SlowNet => "slow_net",
            Self::FeatureMap => "feature_map",
            Self::UpdateRule => "update_rule",
        }
    }

    /// The name of the kind in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlowNet => "slow-net",
            Self::FeatureMap => "feature-map",
            Self::UpdateRule => "update-rule",
        }
    }

    /// The keys of a part's table that are the host's; all others are the plugin's.
    fn reserved(self) -> &'static [&'static str] {
        match self {
            Self::SlowNet | Self::FeatureMap => &["plugin"],
            Self::UpdateRule => &["plugin", "feature_map", "layers"],
        }
    }
}

/// How a recipe refers to a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PluginRef {
    /// By the name of a part, to be found on the search path.
    Name(String),
    /// By the path of a library.
    Path {
        /// The library, as an absolute path.
        path: PathBuf,
        /// Whether the path was typed on the command line; a library named by a recipe file may be
        /// opened only when the user said that the file is trusted.
        from_command_line: bool,
    },
}

/// A part that a recipe asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct PartChoice {
    /// Its kind.
    pub kind: PartKind,
    /// `main`, or the name of its table.
    pub name: String,
    /// The dotted path of its table, such as `update_rule.fast`, for messages.
    pub section: String,
    /// Which plugin.
    pub plugin: PluginRef,
    /// The plugin's own configuration.
    pub config: toml::Table,
}

/// An update rule with its feature map and its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotChoice {
    /// The name of the rule.
    pub name: String,
    /// The layers that use it, ascending; `None` means all that no other slot names.
    pub layers: Option<Vec<usize>>,
    /// The map of keys and queries.
    pub feature_map: PartChoice,
    /// The rule.
    pub update_rule: PartChoice,
}

/// What the parts of a recipe need from their surroundings.
pub(crate) struct Context<'a> {
    /// The recipe file, as the user named it.
    pub file: &'a str,
    /// The folder that paths in the file are relative to.
    pub folder: &'a Path,
    /// Whether the file may name libraries by path.
    pub trust_paths: bool,
}

impl Context<'_> {
    pub(crate) fn error(&self, source: &Source, key: impl Into<String>, message: impl Into<String>) -> RecipeError {
        RecipeError::new(source.place(self.file), key, message)
    }
}

/// The parts of a recipe.
pub(crate) struct Parts {
    pub slow_net: PartChoice,
    pub slots: Vec<SlotChoice>,
    /// The names of feature maps that no rule uses.
    pub unused_maps: Vec<String>,
}

/// Reads the three sections of parts. Paths in the tree become absolute, and the feature map of a rule that has none is filled
/// in. There may be no rule.
pub(crate) fn read(context: &Context, recipe: &mut Table) -> Result<Parts, RecipeError> {
    // A slow net without fast weights has no rule; whether it wants one is the net's to say.
    let empty = |recipe: &Table, section: &str| match recipe.get(section).map(|n| &n.item) {
        Some(Item::Table(table)) => table.is_empty(),
        Some(_) => false,
        None => true,
    };
    if empty(recipe, "update_rule") {
        recipe.remove("update_rule");
        if empty(recipe, "feature_map") {
            recipe.remove("feature_map");
        }
    } else if recipe.get("feature_map").is_none() {
        let mut table = Table::default();
        table.insert("plugin", Node::value(Value::Text("identity".into()), Source::Default));
        recipe.insert("feature_map", Node::new(Item::Table(table), Source::Default));
    } else if let Some(Item::Table(table)) = recipe.get("feature_map").map(|n| &n.item) {
        // `--set feature_map.plugin=` empties the section.
        if table.is_empty() {
            recipe.remove("feature_map");
            return read(context, recipe);
        }
    }

    let mut slow_nets = section(context, recipe, PartKind::SlowNet)?;
    let mut optional = |kind: PartKind| match recipe.get(kind.section()) {
        Some(_) => section(context, recipe, kind),
        None => Ok(Vec::new()),
    };
    let maps = optional(PartKind::FeatureMap)?;
    let rules = optional(PartKind::UpdateRule)?;

    let mut slots: Vec<SlotChoice> = Vec::new();
    let mut used = Vec::new();
    for rule in rules {
        let node = recipe.at(&rule.section);
        let Some(Item::Table(table)) = node.map(|n| &n.item) else {
            continue;
        };
        let feature_map = map_of(context, &rule, table, &maps)?;
        let layers = layers(context, &rule, table)?;
        for other in &slots {
            overlap(context, recipe, other, &rule, layers.as_deref())?;
        }
        used.push(feature_map.name.clone());
        slots.push(SlotChoice { name: rule.name.clone(), layers, feature_map, update_rule: rule });
    }
    let unused_maps = maps.iter().map(|m| m.name.clone()).filter(|m| !used.contains(m)).collect();
    Ok(Parts { slow_net: slow_nets.swap_remove(0), slots, unused_maps })
}

/// The parts of one section: one, or (maps and rules) several with names. Never empty.
fn section(context: &Context, recipe: &mut Table, kind: PartKind) -> Result<Vec<PartChoice>, RecipeError> {
    let section = kind.section();
    let missing = || {
        RecipeError::new(context.file, section, "the recipe names no such part")
            .help(format!("write [{section}] with plugin = \"NAME\""))
    };
    let node = recipe.get(section).cloned().ok_or_else(missing)?;
    let Item::Table(table) = &node.item else {
        return Err(context
            .error(&node.source, section, format!("expected a table, found {}", node.type_name()))
            .help(format!("write [{section}] with plugin = \"NAME\"")));
    };
    if table.is_empty() {
        return Err(missing());
    }
    let mut parts = Vec::new();
    if table.get("plugin").is_some() || kind == PartKind::SlowNet {
        for (name, child) in table.iter() {
            if matches!(&child.item, Item::Table(t) if t.get("plugin").is_some()) {
                return Err(context
                    .error(
                        &child.source,
                        format!("{section}.{name}"),
                        format!("[{section}] has a plugin of its own and a part with a name"),
                    )
                    .help("give every part a name, or none".to_string()));
            }
        }
        parts.push(part(context, recipe, kind, section, "main", table, &node.source)?);
        return Ok(parts);
    }
    for (name, child) in table.iter() {
        let path = format!("{section}.{name}");
        let Item::Table(child_table) = &child.item else {
            let help = did_you_mean(name, ["plugin"])
                .unwrap_or_else(|| format!("[{section}] needs `plugin`, or tables [{section}.NAME] that have it"));
            return Err(context.error(&child.source, path, "unknown key").help(help));
        };
        if name.len() > 64 || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(context
                .error(&child.source, path, "not a name for a part")
                .help("names start with a letter or digit and have at most 64".to_string()));
        }
        parts.push(part(context, recipe, kind, &path, name, child_table, &child.source)?);
    }
    Ok(parts)
}

fn part(
    context: &Context,
    recipe: &mut Table,
    kind: PartKind,
    section: &str,
    name: &str,
    table: &Table,
    source: &Source,
) -> Result<PartChoice, RecipeError> {
    let key = format!("{section}.plugin");
    let Some(node) = table.get("plugin") else {
        let near = table.iter().find(|(k, _)| did_you_mean(k, ["plugin"]).is_some());
        return Err(match near {
            Some((near, node)) => {
                context.error(&node.source, format!("{section}.{near}"), "unknown key").help("did you mean `plugin`?".to_string())
            }
            None => context.error(source, section, "needs `plugin`").help("write plugin = \"NAME\"".to_string()),
        });
    };
    let plugin = plugin(context, &key, node)?;
    if let PluginRef::Path { path, .. } = &plugin {
        let Some(text) = path.to_str() else {
            return Err(context.error(&node.source, key, "the path is not UTF-8"));
        };
        let absolute = Node::value(Value::Text(text.into()), node.source.clone());
        replace(recipe, &key, absolute);
    }
    let mut config = table.clone();
    for reserved in kind.reserved() {
        config.remove(reserved);
    }
    Ok(PartChoice { kind, name: name.into(), section: section.into(), plugin, config: config.to_toml() })
}

/// Replaces the node at a dotted path that exists.
pub(crate) fn replace(recipe: &mut Table, path: &str, node: Node) {
    let mut table = recipe;
    let mut keys = path.split('.').peekable();
    while let Some(key) = keys.next() {
        if keys.peek().is_none() {
            table.insert(key, node);
            return;
        }
        match table.table_mut(key, &Source::Default) {
            Ok(inner) => table = inner,
            Err(_) => return,
        }
    }
}

fn plugin(context: &Context, key: &str, node: &Node) -> Result<PluginRef, RecipeError> {
    let error = |message: String| context.error(&node.source, key, message);
    let text = match (&node.item, &node.raw) {
        (_, Some(raw)) => raw.clone(),
        (Item::Value(Value::Text(text)), _) => text.clone(),
        _ => {
            return Err(error(format!("expected the name of a plugin, found {}", node.type_name())));
        }
    };
    let library = [".so", ".dylib", ".dll"].iter().any(|e| text.ends_with(e));
    if text.contains(['/', '\\']) || library {
        if text.contains('\0') || text.len() > 4096 {
            return Err(error(format!("{:?} is not a path", shorten(&text))));
        }
        let from_command_line = node.source.is_command_line();
        if !from_command_line && !context.trust_paths {
            return Err(error("a recipe may not open a library by its path".into())
                .help(format!("name it on the command line: --set {key}=PATH")));
        }
        let path = if from_command_line {
            std::path::absolute(&text).unwrap_or_else(|_| text.into())
        } else {
            context.folder.join(&text)
        };
        return Ok(PluginRef::Path { path, from_command_line });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || text.len() > 64 || !text.chars().all(allowed) {
        return Err(error(format!("{:?} is not the name of a plugin", shorten(&text)))
            .help("names are letters, digits and `.`, `_`, `+`, `-`".to_string()));
    }
    Ok(PluginRef::Name(text))
}

fn map_of(context: &Context, rule: &PartChoice, table: &Table, maps: &[PartChoice]) -> Result<PartChoice, RecipeError> {
    let find = |name: &str| maps.iter().find(|m| m.name == name).cloned();
    let names: Vec<&str> = maps.iter().map(|m| m.name.as_str()).collect();
    let key = format!("{}.feature_map", rule.section);
    if let Some(node) = table.get("feature_map") {
        let Item::Value(Value::Text(wanted)) = &node.item else {
            return Err(context
                .error(&node.source, key, format!("expected the name of a map, found {}", node.type_name()))
                .help(format!("there are {}", list(&names))));
        };
        return find(wanted).ok_or_else(|| {
            context
                .error(&node.source, key, format!("there is no [feature_map.{}]", shorten(wanted)))
                .help(did_you_mean(wanted, names.iter().copied()).unwrap_or_else(|| format!("there are {}", list(&names))))
        });
    }
    find(&rule.name).or_else(|| find("main")).ok_or_else(|| {
        let source = table.get("plugin").map_or(Source::Default, |n| n.source.clone());
        context
            .error(&source, key, "no feature map goes with this rule by name")
            .help(format!("set it to one of {}", list(&names)))
    })
}

fn layers(context: &Context, rule: &PartChoice, table: &Table) -> Result<Option<Vec<usize>>, RecipeError> {
    let Some(node) = table.get("layers") else {
        return Ok(None);
    };
    let key = format!("{}.layers", rule.section);
    let example = || "write it as in layers = [0, 2]".to_string();
    let Item::Array(items) = &node.item else {
        return Err(context
            .error(&node.source, key, format!("expected a list of integers, found {}", node.type_name()))
            .help(example()));
    };
    let mut layers: Vec<usize> = Vec::new();
    for item in items {
        let layer = match item.item {
            // No net has ten thousand layers; the bound keeps a slip from becoming a memory error.
            Item::Value(Value::Integer(n)) if (0..10_000).contains(&n) => n as usize,
            _ => {
                return Err(context.error(&item.source, key, "a layer is an integer in 0..10000").help(example()));
            }
        };
        if let Some(last) = layers.last()
            && *last >= layer
        {
            return Err(context
                .error(&item.source, key, format!("layer {layer} stands after layer {last}"))
                .help("list each layer once, in ascending order".to_string()));
        }
        layers.push(layer);
    }
    if layers.is_empty() {
        return Err(context
            .error(&node.source, key, "the rule has no layers")
            .help("list some, or take the rule out".to_string()));
    }
    Ok(Some(layers))
}

/// Refuses two rules for one listed layer. Whether two rules may both list none is the slow net's to say, which may know them by name.
fn overlap(
    context: &Context,
    recipe: &Table,
    other: &SlotChoice,
    rule: &PartChoice,
    layers: Option<&[usize]>,
) -> Result<(), RecipeError> {
    let source = |key: &str| {
        let path = format!("{}.{key}", rule.section);
        recipe.at(&path).map_or(Source::Default, |n| n.source.clone())
    };
    match (&other.layers, layers) {
        (Some(theirs), Some(ours)) => match ours.iter().find(|l| theirs.contains(l)) {
            Some(layer) => Err(context
                .error(
                    &source("layers"),
                    format!("{}.layers", rule.section),
                    format!("layer {layer} belongs to `{}` already", other.name),
                )
                .help("give each layer one rule".to_string())),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Whether a name can stand in a dotted path and a file name.
pub(crate) fn is_name(name: &str) -> bool {
    is_bare_key(name) && name.len() <= 64
}
