//! Reading, merging and checking a recipe.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use fwp_task::TaskSpec;
use fwp_task::schema::{Default as KeyDefault, KeyInfo, Kind, Mismatch, Value, did_you_mean, list};

use crate::keys::{self, MAX_BYTES, SectionInfo};
use crate::parts::{self, Context};
use crate::plan::{PartFile, Plan, Slot};
use crate::settings::{
    Carry, CheckpointSettings, Dtype, EvalSettings, Expect, MonitorSettings, OnNonfinite, Optimiser, OptimiserKind, Schedule,
    ScheduleKind, StopSettings, Target, TrainSettings,
};
use crate::tree::{self, Item, Node, Source, Table, shorten};
use crate::{Overrides, PartChoice, PluginRef, RecipeError, SlotChoice};

/// How many positions (rows times length) a micro-batch may have: what a 32-bit index reaches.
const MAX_POSITIONS: usize = 1 << 31;

/// What the caller lets a recipe file do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Takes paths in the file as if the user had typed them: libraries by path, and data outside
    /// the recipe's folder. For the resolved recipe of the user's own run, and for users who say so.
    pub trust_paths: bool,
}

/// A recipe with every default filled in, every value checked, and the source of each.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The recipe's short name, for folders: that of its folder, or of its file.
    pub name: String,
    /// The recipe file.
    pub file: PathBuf,
    /// One line: model and task.
    pub title: Option<String>,
    /// Paper, year, section.
    pub cite: Option<String>,
    /// Anything else worth knowing.
    pub notes: Option<String>,
    /// The net that is trained by gradient descent.
    pub slow_net: PartChoice,
    /// The rules with their maps and layers, in the order of the recipe; never empty.
    pub slots: Vec<SlotChoice>,
    /// What is learnt.
    pub task: TaskSpec,
    /// How the slow net is trained.
    pub train: TrainSettings,
    /// Evaluation during training.
    pub eval: EvalSettings,
    /// When a run ends before its last step.
    pub stop: StopSettings,
    /// What is kept on disk.
    pub checkpoint: CheckpointSettings,
    /// What is written while training.
    pub monitor: MonitorSettings,
    /// What was published, and what the recipe must reach.
    pub expect: Option<Expect>,
    /// What is allowed but has no effect, one line each.
    pub warnings: Vec<String>,
    /// The whole recipe with sources, in the order in which it is shown.
    pub(crate) tree: Table,
}

/// Finds the file of a recipe: the path itself, or `recipe.toml` in the folder it names.
///
/// # Errors
/// Nothing there, with the nearest name that is; or a folder without `recipe.toml`.
pub fn find(path: &Path) -> Result<PathBuf, RecipeError> {
    let shown = path.display().to_string();
    let refuse = |message: String, help: Option<String>| Err(RecipeError::new(shown.clone(), "", message).help(help));
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let file = path.join("recipe.toml");
            if file.exists() {
                return Ok(file);
            }
            refuse(
                "the folder holds no recipe.toml".into(),
                near(path).or_else(|| Some("name a recipe file or its folder".into())),
            )
        }
        Ok(_) => Ok(path.into()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let help = near(path).or_else(|| Some("see `fwp-host zoo list` for those of the zoo".into()));
            refuse("there is no such recipe".into(), help)
        }
        Err(e) => refuse(format!("cannot be read: {e}"), None),
    }
}

/// A hint at a recipe whose name is near to a path that holds none.
fn near(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    if path.components().count() == 1 {
        let zoo = Path::new("zoo").join(name);
        if zoo.join("recipe.toml").exists() {
            return Some(format!("did you mean `{}`?", zoo.display()));
        }
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A folder may hold any number of files; a hint is not worth reading more than these.
    let names: Vec<String> = std::fs::read_dir(parent)
        .ok()?
        .take(1000)
        .flatten()
        .filter(|e| e.path().join("recipe.toml").exists() || e.path().extension() == Some("toml".as_ref()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    let found = fwp_task::schema::nearest(name, names.iter().map(String::as_str))?;
    Some(format!("did you mean `{}`?", path.with_file_name(found).display()))
}

/// Reads a recipe file (or the folder that holds it), merges the command line into it, fills in the
/// defaults and checks everything that can be checked without opening a plugin.
///
/// # Errors
/// The first fault found, with its place and remedy.
pub fn read(path: &Path, overrides: &Overrides, options: &ReadOptions) -> Result<Resolved, RecipeError> {
    let file = find(path)?;
    let text = load(&file)?;
    let absolute = std::path::absolute(&file).unwrap_or_else(|_| file.clone());
    let folder = absolute.parent().unwrap_or(Path::new("/")).to_path_buf();
    let context = Context { file: &file.display().to_string(), folder: &folder, trust_paths: options.trust_paths };
    resolve(&context, &text, overrides, recipe_name(&absolute), file.clone())
}

/// The text of a recipe file, of bounded size and without a byte-order mark.
fn load(file: &Path) -> Result<String, RecipeError> {
    let shown = file.display().to_string();
    let refuse = |message: String| RecipeError::new(shown.clone(), "", message);
    let found = std::fs::metadata(file).map_err(|e| refuse(format!("cannot be read: {e}")))?;
    // Before opening: opening a named pipe would wait for its writer.
    if !found.is_file() {
        return Err(refuse("is not a file".into()));
    }
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| refuse(format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse(format!("a recipe has at most {MAX_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        RecipeError::new(format!("{shown}:{line}"), "", "the file is not UTF-8").help("save it as UTF-8".to_string())
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_string())
}

/// The name of a recipe: that of its folder where the file is `recipe.toml`, else of the file.
fn recipe_name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default();
    let name = if stem == "recipe" {
        // Canonical, so that `./recipe.toml` still has a folder with a name.
        let folder = file.canonicalize().ok();
        let folder = folder.as_deref().unwrap_or(file).parent();
        folder.and_then(Path::file_name).unwrap_or(stem).to_owned()
    } else {
        stem.to_owned()
    };
    let name: String = name
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '-' })
        .take(64)
        .collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "recipe" } else { name }.to_string()
}

/// Resolves the text of a recipe.
fn resolve(context: &Context, text: &str, overrides: &Overrides, name: String, file: PathBuf) -> Result<Resolved, RecipeError> {
    let mut recipe = tree::parse(context.file, text)?;
    overrides.apply(&mut recipe)?;
    check_top(context, &recipe)?;

    let parts = parts::read(context, &mut recipe)?;
    let mut top = Table::default();
    for key in keys::top().keys {
        if let Some(node) = recipe.remove(key.name) {
            top.insert(key.name, node);
        }
    }
    let top_node = Node::new(Item::Table(top), Source::Default);
    let top = Section::read(context, keys::top(), Some(top_node))?;
    let (task, task_table) = read_task(context, &mut recipe)?;
    let train = Section::read(context, &keys::TRAIN, recipe.remove("train"))?;
    let mut eval = Section::read(context, &keys::EVAL, recipe.remove("eval"))?;
    let stop = Section::read(context, &keys::STOP, recipe.remove("stop"))?;
    let checkpoint = Section::read(context, &keys::CHECKPOINT, recipe.remove("checkpoint"))?;
    let monitor = Section::read(context, &keys::MONITOR, recipe.remove("monitor"))?;
    let expect = Section::read(context, &keys::EXPECT, recipe.remove("expect"))?;
    eval.values.entry("batch_size").or_insert_with(|| (Value::Integer(train.int("batch_size")), Source::Default));

    let mut warnings: Vec<String> = parts
        .unused_maps
        .iter()
        .map(|name| {
            let section = ["feature_map".to_string(), format!("feature_map.{name}")];
            let node = section.iter().rev().find_map(|s| recipe.at(s));
            let place = node.map_or(context.file.into(), |n| n.source.place(context.file));
            format!("{place}: feature map `{name}` is used by no rule")
        })
        .collect();
    check_train(context, &train, &eval, &task, &mut warnings)?;
    check_stop(context, &stop, &eval)?;
    let target = read_target(context, &stop)?;
    let expectation = read_expect(context, &expect)?;

    let mut tree = Table::default();
    top.write(&mut tree);
    for section in ["slow_net", "feature_map", "update_rule"] {
        if let Some(node) = recipe.remove(section) {
            tree.insert(section, node);
        }
    }
    tree.insert("task", Node::new(Item::Table(task_table), Source::Default));
    for section in [&train, &eval, &stop, &checkpoint, &monitor, &expect] {
        section.write(&mut tree);
    }

    Ok(Resolved {
        name,
        file,
        title: top.text("title"),
        cite: top.text("cite"),
        notes: top.text("notes"),
        slow_net: parts.slow_net,
        slots: parts.slots,
        task,
        train: train_settings(&train),
        eval: EvalSettings { every: eval.count("every"), batch_size: eval.size("batch_size") },
        stop: StopSettings { eval_loss_at_most: stop.float("eval_loss_at_most"), patience: stop.count("patience"), target },
        checkpoint: CheckpointSettings {
            every: checkpoint.count("every"),
            keep: checkpoint.size("keep"),
            keep_best: checkpoint.flag("keep_best"),
        },
        monitor: MonitorSettings {
            log_every: monitor.count("log_every"),
            tensorboard: monitor.flag("tensorboard"),
            histograms_every: monitor.count("histograms_every"),
            images_every: monitor.count("images_every"),
        },
        expect: expectation,
        warnings,
        tree,
    })
}

impl Resolved {
    /// Where the value at a dotted path came from; `None` where the recipe has no such value.
    pub fn source(&self, path: &str) -> Option<&Source> {
        self.tree.at(path).map(|node| &node.source)
    }

    /// Every value with its dotted path and its source, in the order in which the recipe is shown;
    /// tables are not listed themselves.
    pub fn values(&self) -> Vec<(String, toml::Value, Source)> {
        fn walk(table: &Table, prefix: &str, out: &mut Vec<(String, toml::Value, Source)>) {
            for (key, node) in table.iter() {
                let path = format!("{prefix}{key}");
                match &node.item {
                    Item::Table(inner) => walk(inner, &format!("{path}."), out),
                    _ => out.push((path, node.to_toml(), node.source.clone())),
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.tree, "", &mut out);
        out
    }

    /// How the part of a section (`slow_net`, `update_rule`, `feature_map.NAME`) is referred to.
    pub fn plugin_reference(&self, section: &str) -> Option<&PluginRef> {
        std::iter::once(&self.slow_net)
            .chain(self.slots.iter().flat_map(|s| [&s.feature_map, &s.update_rule]))
            .find(|part| part.section == section)
            .map(|part| &part.plugin)
    }

    /// An error about the value at a dotted path, for checks that only a plugin or an engine can do.
    ///
    /// It is placed at the value, or at the nearest table around it where there is no such value.
    /// Where the command line chose the plugin and the file wrote the key for another one, the text
    /// says how to take the key out.
    pub fn error_at(&self, path: &str, message: &str, help: Option<String>) -> RecipeError {
        let mut at = path;
        let node = loop {
            if let Some(node) = self.tree.at(at) {
                break Some(node);
            }
            match at.rsplit_once('.') {
                Some((parent, _)) => at = parent,
                None => break None,
            }
        };
        let source = node.map_or(&Source::Default, |n| &n.source);
        let file = self.file.display().to_string();
        let section = path.rsplit_once('.').map_or("", |(section, _)| section);
        let plugin = self.source(&format!("{section}.plugin"));
        let chosen_elsewhere = plugin.is_some_and(Source::is_command_line) && at == path && !source.is_command_line();
        let help = if chosen_elsewhere {
            let take_out = format!("take it out with --set {path}=");
            Some(help.map_or(take_out.clone(), |h| format!("{h} or {take_out}")))
        } else {
            help
        };
        RecipeError::new(source.place(&file), path, message).help(help)
    }

    /// Joins the recipe with the programs of its parts.
    pub fn plan(&self, slow_net: PartFile, slots: Vec<Slot>) -> Plan {
        Plan {
            format: Plan::FORMAT,
            host: None,
            recipe: self.name.clone(),
            title: self.title.clone(),
            cite: self.cite.clone(),
            notes: self.notes.clone(),
            slow_net,
            slots,
            task: self.task.clone(),
            task_fingerprint: None,
            train: self.train.clone(),
            eval: self.eval.clone(),
            stop: self.stop.clone(),
            checkpoint: self.checkpoint.clone(),
            monitor: self.monitor.clone(),
            expect: self.expect.clone(),
        }
    }
}

/// Refuses what is no section and no key at the top of a recipe.
fn check_top(context: &Context, recipe: &Table) -> Result<(), RecipeError> {
    let names = keys::top_names();
    for (name, node) in recipe.iter() {
        if names.contains(&name) {
            continue;
        }
        let what = match node.item {
            Item::Table(_) => "unknown section",
            _ => "unknown key",
        };
        return Err(context
            .error(&node.source, shorten(name), what)
            .help(did_you_mean(name, names.iter().copied()).unwrap_or_else(|| format!("a recipe has {}", list(&names)))));
    }
    Ok(())
}

/// A section whose keys are all known and whose values are all checked.
struct Section {
    info: &'static SectionInfo,
    /// Values by dotted key, constant defaults included.
    values: BTreeMap<&'static str, (Value, Source)>,
}

impl Section {
    fn read(context: &Context, info: &'static SectionInfo, node: Option<Node>) -> Result<Self, RecipeError> {
        let mut section = Self { info, values: BTreeMap::new() };
        if let Some(node) = &node {
            let Item::Table(table) = &node.item else {
                return Err(context.error(&node.source, info.name, format!("expected a table, found {}", node.type_name())));
            };
            section.take(context, table, "")?;
        }
        for key in info.keys {
            if section.values.contains_key(key.name) {
                continue;
            }
            if let Some(value) = key.default.value() {
                section.values.insert(key.name, (value, Source::Default));
            } else if key.default == KeyDefault::Required {
                let source = node.as_ref().map_or(&Source::Default, |n| &n.source);
                return Err(context.error(source, section.path(key.name), "needs a value").help(key.doc.to_string()));
            }
        }
        Ok(section)
    }

    /// The dotted path of a key of this section.
    fn path(&self, key: &str) -> String {
        match self.info.name {
            "" => key.into(),
            section => format!("{section}.{key}"),
        }
    }

    /// Takes the values of a table; `prefix` ends with a dot unless it is empty.
    fn take(&mut self, context: &Context, table: &Table, prefix: &str) -> Result<(), RecipeError> {
        for (name, node) in table.iter() {
            let full = format!("{prefix}{name}");
            let inner = format!("{full}.");
            if let Some(key) = self.info.keys.iter().find(|k| k.name == full) {
                let value =
                    value_of(node, key).map_err(|m| context.error(&node.source, self.path(key.name), m.message).help(m.help))?;
                self.values.insert(key.name, (value, node.source.clone()));
            } else if self.info.keys.iter().any(|k| k.name.starts_with(&inner)) {
                let Item::Table(table) = &node.item else {
                    return Err(context
                        .error(&node.source, self.path(&full), format!("expected a table, found {}", node.type_name()))
                        .help(format!("write it as in {name} = {{ name = \"...\" }}")));
                };
                self.take(context, table, &inner)?;
            } else {
                // Only the names of this level: the part up to the next dot.
                let mut known: Vec<&str> = self
                    .info
                    .keys
                    .iter()
                    .filter_map(|k| k.name.strip_prefix(prefix))
                    .map(|k| k.split('.').next().unwrap_or(k))
                    .collect();
                known.dedup();
                let help = did_you_mean(name, known.iter().copied()).unwrap_or_else(|| format!("there are {}", list(&known)));
                return Err(context.error(&node.source, shorten(&self.path(&full)), "unknown key").help(help));
            }
        }
        Ok(())
    }

    /// Writes the section into the tree that is shown, keys in their documented order.
    fn write(&self, tree: &mut Table) {
        if self.values.is_empty() {
            return;
        }
        for key in self.info.keys {
            let Some((value, source)) = self.values.get(key.name) else {
                continue;
            };
            let mut table = &mut *tree;
            let path = self.path(key.name);
            let mut names = path.split('.').peekable();
            while let Some(name) = names.next() {
                if names.peek().is_none() {
                    table.insert(name, Node::value(value.clone(), source.clone()));
                    break;
                }
                match table.table_mut(name, &Source::Default) {
                    Ok(inner) => table = inner,
                    Err(_) => break,
                }
            }
        }
    }

    fn source(&self, key: &str) -> &Source {
        self.values.get(key).map_or(&Source::Default, |(_, s)| s)
    }

    /// Whether somebody gave the key another value than its default.
    fn changed(&self, key: &str) -> bool {
        let default = self.info.keys.iter().find(|k| k.name == key);
        let default = default.and_then(|k| k.default.value());
        self.values.get(key).map(|(v, _)| v) != default.as_ref()
    }

    fn int(&self, key: &str) -> i64 {
        match self.values.get(key) {
            Some((Value::Integer(v), _)) => *v,
            _ => 0,
        }
    }

    fn count(&self, key: &str) -> u64 {
        u64::try_from(self.int(key)).unwrap_or_default()
    }

    fn size(&self, key: &str) -> usize {
        usize::try_from(self.int(key)).unwrap_or_default()
    }

    fn float(&self, key: &str) -> Option<f64> {
        match self.values.get(key) {
            Some((Value::Float(v), _)) => Some(*v),
            _ => None,
        }
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.values.get(key), Some((Value::Boolean(true), _)))
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.values.get(key) {
            Some((Value::Text(v), _)) => Some(v.clone()),
            _ => None,
        }
    }

    fn error(&self, context: &Context, key: &str, message: impl Into<String>) -> RecipeError {
        context.error(self.source(key), self.path(key), message)
    }
}

/// A node as a value of a key, checked.
fn value_of(node: &Node, key: &KeyInfo) -> Result<Value, Mismatch> {
    key.kind.check(
        loose_value(node, &key.kind).ok_or_else(|| Mismatch {
            message: format!("expected {}, found {}", key.kind.noun(), node.type_name()),
            help: None,
        })?,
    )
}

/// A node as a value. What was typed on the command line is a string where a string is wanted,
/// whatever it looks like.
fn loose_value(node: &Node, kind: &Kind) -> Option<Value> {
    match (kind, &node.raw) {
        (Kind::Text | Kind::Path | Kind::Choice(_) | Kind::Bytes, Some(raw)) => Some(Value::Text(raw.clone())),
        _ => node.to_value(),
    }
}

/// Reads `[task]`, and gives its table as it is shown.
fn read_task(context: &Context, recipe: &mut Table) -> Result<(TaskSpec, Table), RecipeError> {
    let names: Vec<&str> = fwp_task::tasks().iter().map(|t| t.name).collect();
    let missing = |source: &Source| {
        context.error(source, "task.name", "the recipe names no task").help(format!("there are {}", list(&names)))
    };
    let node = recipe.remove("task").ok_or_else(|| missing(&Source::Default))?;
    let Item::Table(mut table) = node.item else {
        return Err(context
            .error(&node.source, "task", format!("expected a table, found {}", node.type_name()))
            .help("write [task] with name = \"NAME\"".to_string()));
    };
    let name_node = table.get("name").cloned();
    let name_node = name_node.ok_or_else(|| missing(&node.source))?;
    let name = match loose_value(&name_node, &Kind::Text) {
        Some(Value::Text(name)) => name,
        _ => {
            return Err(context.error(
                &name_node.source,
                "task.name",
                format!("expected a string, found {}", name_node.type_name()),
            ));
        }
    };
    let info = fwp_task::tasks().iter().find(|t| t.name == name);
    let keys = info.map_or(&[][..], |t| t.keys);

    if keys.iter().any(|k| k.name == "path")
        && let Some(node) = table.get("path").cloned()
    {
        table.insert("path", data_path(context, &node)?);
    }
    let mut values = BTreeMap::new();
    for (key, node) in table.iter().filter(|(key, _)| *key != "name") {
        let kind = keys.iter().find(|k| k.name == key).map(|k| k.kind);
        let value = match kind {
            Some(kind) => loose_value(node, &kind).ok_or_else(|| {
                context.error(
                    &node.source,
                    format!("task.{key}"),
                    format!("expected {}, found {}", kind.noun(), node.type_name()),
                )
            })?,
            // Refused below, by its name.
            None => Value::Boolean(true),
        };
        values.insert(key.to_string(), value);
    }
    let spec = TaskSpec::from_values(&name, &values).map_err(|e| {
        let at = table.get(&e.key);
        let source = at.map_or(&name_node.source, |n| &n.source);
        let unknown = !keys.iter().any(|k| k.name == e.key) && e.key != "name";
        let written_for_another = unknown && name_node.source.is_command_line() && !source.is_command_line();
        let key = format!("task.{}", shorten(&e.key));
        let help = if written_for_another { Some(format!("take it out with --set {key}=")) } else { e.help };
        context.error(source, key, e.message).help(help)
    })?;

    let mut shown = Table::default();
    shown.insert("name", Node::value(Value::Text(name), name_node.source.clone()));
    for (key, value) in spec.values() {
        let source = table.get(key).map_or(Source::Default, |n| n.source.clone());
        shown.insert(key, Node::value(value, source));
    }
    Ok((spec, shown))
}

/// The absolute path of a data file. A recipe file reaches only into its own folder.
fn data_path(context: &Context, node: &Node) -> Result<Node, RecipeError> {
    let refuse = |message: String| {
        context.error(&node.source, "task.path", message).help("name the file on the command line: --data PATH".to_string())
    };
    let Some(Value::Text(text)) = loose_value(node, &Kind::Path) else {
        return Ok(node.clone());
    };
    if Kind::Path.check(Value::Text(text.clone())).is_err() {
        return Ok(node.clone());
    }
    let path = Path::new(&text);
    let absolute = if node.source.is_command_line() {
        std::path::absolute(path).unwrap_or_else(|_| path.into())
    } else if context.trust_paths {
        context.folder.join(path)
    } else {
        let inside = |c| matches!(c, Component::Normal(_) | Component::CurDir);
        if !path.components().all(inside) {
            return Err(refuse(format!("{:?} leads out of the recipe's folder", shorten(&text))));
        }
        let joined = context.folder.join(path);
        // A link may lead out of the folder, too.
        if let (Ok(real), Ok(folder)) = (joined.canonicalize(), context.folder.canonicalize())
            && !real.starts_with(folder)
        {
            return Err(refuse(format!("{:?} links out of the recipe's folder", shorten(&text))));
        }
        joined
    };
    match absolute.to_str() {
        Some(text) => Ok(Node::value(Value::Text(text.into()), node.source.clone())),
        None => Err(refuse("the path is not UTF-8".into())),
    }
}

fn train_settings(train: &Section) -> TrainSettings {
    let text = |key| train.text(key).unwrap_or_default();
    let float = |key| train.float(key).unwrap_or_default();
    TrainSettings {
        steps: train.count("steps"),
        batch_size: train.size("batch_size"),
        accumulate: train.size("accumulate"),
        seed: train.count("seed"),
        optimiser: Optimiser {
            name: match text("optimiser.name").as_str() {
                "adamw" => OptimiserKind::AdamW,
                _ => OptimiserKind::Adam,
            },
            lr: float("optimiser.lr"),
            betas: match train.values.get("optimiser.betas") {
                Some((Value::Floats(v), _)) if v.len() == 2 => [v[0], v[1]],
                _ => [0.9, 0.999],
            },
            eps: float("optimiser.eps"),
            weight_decay: float("optimiser.weight_decay"),
        },
        schedule: schedule(train),
        clip: float("clip"),
        carry: match text("carry").as_str() {
            "detached" => Carry::Detached,
            _ => Carry::None,
        },
        on_nonfinite: match text("on_nonfinite").as_str() {
            "skip" => OnNonfinite::Skip { max_consecutive: train.count("max_consecutive") },
            _ => OnNonfinite::Stop,
        },
        dtype: match text("dtype").as_str() {
            "float64" => Dtype::Float64,
            _ => Dtype::Float32,
        },
        device: text("device"),
        exec: text("exec"),
        memory_limit: match train.values.get("memory_limit") {
            Some((Value::Integer(v), _)) => u64::try_from(*v).ok(),
            _ => None,
        },
    }
}

fn schedule(train: &Section) -> Schedule {
    Schedule {
        name: match train.text("schedule.name").unwrap_or_default().as_str() {
            "linear" => ScheduleKind::Linear,
            "cosine" => ScheduleKind::Cosine,
            "wsd" => ScheduleKind::Wsd,
            "inverse-sqrt" => ScheduleKind::InverseSqrt,
            _ => ScheduleKind::Constant,
        },
        warmup: train.count("schedule.warmup"),
        min_ratio: train.float("schedule.min_ratio").unwrap_or_default(),
        decay_fraction: train.float("schedule.decay_fraction").unwrap_or_default(),
    }
}

/// Refuses combinations of training settings that cannot be meant, and warns of those without
/// effect.
fn check_train(
    context: &Context,
    train: &Section,
    eval: &Section,
    task: &TaskSpec,
    warnings: &mut Vec<String>,
) -> Result<(), RecipeError> {
    let (steps, schedule) = (train.count("steps"), schedule(train));
    if schedule.warmup > steps {
        return Err(train
            .error(
                context,
                "schedule.warmup",
                format!("{} steps of warm-up are more than train.steps = {steps}", schedule.warmup),
            )
            .help("shorten the warm-up, or train longer".to_string()));
    }
    let decay = schedule.decay_steps(steps);
    if schedule.name == ScheduleKind::Wsd && schedule.warmup + decay > steps {
        return Err(train
            .error(
                context,
                "schedule.decay_fraction",
                format!("{} steps of warm-up and {decay} of decay are more than train.steps = {steps}", schedule.warmup),
            )
            .help("shorten one of them".to_string()));
    }
    let device = train.text("device").unwrap_or_default();
    let number = device.strip_prefix("cuda:");
    let known = ["auto", "cpu", "cuda"].contains(&device.as_str())
        || number.is_some_and(|n| n.len() <= 3 && n.bytes().all(|b| b.is_ascii_digit()) && n.parse::<u8>().is_ok());
    if !known {
        return Err(train
            .error(context, "device", format!("{:?} is no device", shorten(&device)))
            .help("there are `auto`, `cpu`, `cuda` and `cuda:N`".to_string()));
    }
    if train.text("carry").as_deref() == Some("detached") && !task.continues() {
        let help = match task {
            TaskSpec::Text(_) => "set task.order = \"sequential\"",
            _ => "set train.carry = \"none\"",
        };
        return Err(train
            .error(
                context,
                "carry",
                format!("task `{}` starts new sequences at every step, so there is nothing to carry", task.name()),
            )
            .help(help.to_string()));
    }
    for section in [train, eval] {
        let batch = section.size("batch_size");
        let positions = batch.checked_mul(task.max_len());
        if positions.is_none_or(|n| n > MAX_POSITIONS) {
            return Err(section
                .error(
                    context,
                    "batch_size",
                    format!("{batch} sequences of {} are more than {MAX_POSITIONS} positions", task.max_len()),
                )
                .help("lower it, and raise train.accumulate".to_string()));
        }
    }

    let mut idle = |key: &str, why: &str| {
        if train.changed(key) {
            let place = train.source(key).place(context.file);
            warnings.push(format!("{place}: train.{key} has no effect {why}"));
        }
    };
    let falls = matches!(schedule.name, ScheduleKind::Linear | ScheduleKind::Cosine | ScheduleKind::Wsd);
    if !falls {
        idle("schedule.min_ratio", "with this schedule");
    }
    if schedule.name != ScheduleKind::Wsd {
        idle("schedule.decay_fraction", "without schedule wsd");
    }
    if train.text("on_nonfinite").as_deref() != Some("skip") {
        idle("max_consecutive", "without on_nonfinite = \"skip\"");
    }
    Ok(())
}

fn check_stop(context: &Context, stop: &Section, eval: &Section) -> Result<(), RecipeError> {
    if eval.count("every") > 0 {
        return Ok(());
    }
    for key in ["eval_loss_at_most", "patience", "metric"] {
        if stop.changed(key) {
            return Err(stop
                .error(context, key, "looks at evaluations during training, but eval.every = 0 makes none")
                .help("set eval.every".to_string()));
        }
    }
    Ok(())
}

fn read_expect(context: &Context, expect: &Section) -> Result<Option<Expect>, RecipeError> {
    let bounds = read_bounds(context, expect, "eval/loss")?;
    let expectation = |Target { metric, at_most, at_least }| Expect {
        metric,
        at_most,
        at_least,
        published: expect.float("published"),
        note: expect.text("note"),
    };
    match (bounds, expect.values.keys().next()) {
        (Some(Target { at_most: None, at_least: None, .. }), _) if expect.float("published").is_none() => Err(expect
            .error(context, "metric", "has nothing beside it that is expected")
            .help("add published, at_most or at_least".to_string())),
        (None, Some(key)) => {
            Err(expect.error(context, key, "needs `metric` beside it").help("write metric = \"eval/loss\"".to_string()))
        }
        (bounds, _) => Ok(bounds.map(expectation)),
    }
}

fn read_target(context: &Context, stop: &Section) -> Result<Option<Target>, RecipeError> {
    match read_bounds(context, stop, "eval/accuracy")? {
        Some(Target { at_most: None, at_least: None, .. }) => {
            Err(stop.error(context, "metric", "is expected to reach nothing").help("add at_most or at_least".to_string()))
        }
        target => Ok(target),
    }
}

/// The keys `metric`, `at_most` and `at_least` of a section; nothing where it names no metric.
fn read_bounds(context: &Context, section: &Section, example: &str) -> Result<Option<Target>, RecipeError> {
    let (at_most, at_least) = (section.float("at_most"), section.float("at_least"));
    let Some(metric) = section.text("metric") else {
        return match ["at_most", "at_least"].into_iter().find(|key| section.float(key).is_some()) {
            Some(key) => {
                Err(section.error(context, key, "needs `metric` beside it").help(format!("write metric = \"{example}\"")))
            }
            None => Ok(None),
        };
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "/_.-".contains(c);
    if metric.is_empty() || metric.len() > 64 || !metric.chars().all(allowed) {
        return Err(section
            .error(context, "metric", format!("{:?} is not the name of a metric", shorten(&metric)))
            .help("write it as in metrics.jsonl: eval/loss".to_string()));
    }
    match (at_most, at_least) {
        (Some(most), Some(least)) if most < least => {
            Err(section.error(context, "at_most", format!("{most} is below at_least = {least}, so no value passes")))
        }
        _ => Ok(Some(Target { metric, at_most, at_least })),
    }
}

#[cfg(test)]
mod tests;
