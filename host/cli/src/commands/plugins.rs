//! `fwp-host plugins`

use clap::{Args, Subcommand, ValueEnum};
use fwp_recipe::PluginRef;
use fwp_sdk::build::{Dims, Memory, TaskIo};
use fwp_sdk::program::{Kind, Program, Role, RuleInput, SlotInterface};
use fwp_sdk::{Ask, Memories, NO_FAST_WEIGHTS, PartInfo};
use fwp_task::{TaskSpec, schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::PluginOptions;
use crate::compose::{cannot_describe, checked, task_io};
use crate::failure::{Code, Failure, literal};
use crate::output::{self, WIDTH};
use crate::plugins::ask::sha256_of;
use crate::plugins::catalogue::{Catalogue, Status};
use crate::plugins::{Asker, Chosen, Refusal};
use crate::proved::{self, Proved};

/// Lists plugins and shows what they are.
#[derive(Subcommand, Debug)]
pub enum Plugins {
    List(List),
    Show(Show),
}

/// Lists every part that was found, and every library that was refused with the reason.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fwp-host plugins list --plugin-path my_rule/target/release")]
pub struct List {
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    plugins: PluginOptions,
}

/// Shows a part: documentation, configuration, citation, signature, what the host proved of it, and program.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fwp-host plugins show delta
  fwp-host plugins show dpfp --set nu=3 --key-dim 16
  fwp-host plugins show my_rule/target/release/libmy_rule.so")]
pub struct Show {
    /// The name of a part, or the path of a library (PATH#NAME where it has several parts).
    #[arg(value_name = "NAME")]
    name: String,
    /// The kind of part, where parts of several kinds have the name.
    #[arg(long, value_enum)]
    kind: Option<KindArgument>,
    /// Sets a key of the part's configuration; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Heads of the example that the program is printed for.
    #[arg(long, value_name = "N", value_parser = super::size, default_value_t = 2)]
    heads: usize,
    /// Features of a raw key in the example.
    #[arg(long, value_name = "N", value_parser = super::size, default_value_t = 8)]
    key_dim: usize,
    /// Features of a key after the feature map in the example (default: as --key-dim).
    #[arg(long, value_name = "N", value_parser = super::size)]
    mapped_key_dim: Option<usize>,
    /// Features of a value in the example (default: half of --key-dim, where the rule lets it).
    #[arg(long, value_name = "N", value_parser = super::size)]
    value_dim: Option<usize>,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    plugins: PluginOptions,
}

/// A kind of part on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArgument {
    UpdateRule,
    FeatureMap,
    SlowNet,
}

impl From<KindArgument> for Kind {
    fn from(kind: KindArgument) -> Kind {
        match kind {
            KindArgument::UpdateRule => Kind::UpdateRule,
            KindArgument::FeatureMap => Kind::FeatureMap,
            KindArgument::SlowNet => Kind::SlowNet,
        }
    }
}

impl Plugins {
    /// Whether details of errors are shown.
    pub fn verbose(&self) -> bool {
        match self {
            Plugins::List(c) => c.plugins.verbose,
            Plugins::Show(c) => c.plugins.verbose,
        }
    }

    /// Does it.
    pub async fn run(self) -> Result<u8, Failure> {
        match self {
            Plugins::List(c) => c.run().await?,
            Plugins::Show(c) => c.run().await?,
        }
        Ok(0)
    }
}

impl List {
    async fn run(self) -> Result<(), Failure> {
        let asker = self.plugins.asker();
        let catalogue = self.plugins.catalogue(&asker, None).await?;
        if self.json {
            return output::json(&as_json(&catalogue));
        }
        let mut rows: Vec<Vec<String>> = Vec::new();
        for part in &catalogue.parts {
            let status = match &part.status {
                Status::Ok => "ok".to_string(),
                Status::Shadowed(other) => format!("shadowed by {}", other.display()),
                Status::Ambiguous(other) => format!("ambiguous: also in {}", other.display()),
            };
            rows.push(vec![
                part.info.name.clone(),
                part.info.kind.to_string(),
                part.sdk_version.clone(),
                status,
                part.library.display().to_string(),
            ]);
        }
        let mut text = output::table(&["NAME", "KIND", "SDK", "STATUS", "LIBRARY"], &rows);
        if catalogue.parts.is_empty() {
            text = "no plugins were found\n".into();
        }
        for refused in &catalogue.refused {
            text += &format!(
                "\nrefused {}\n  cause: {}\n  remedy: {}\n",
                literal(&refused.path.display().to_string()),
                literal(&refused.refusal.cause),
                literal(&refused.refusal.remedy)
            );
            if self.plugins.verbose && !refused.refusal.detail.is_empty() {
                text += &output::indented(&refused.refusal.detail.lines().map(literal).collect::<Vec<_>>().join("\n"), 4);
                text.push('\n');
            }
        }
        if catalogue.parts.is_empty() || self.plugins.verbose {
            text += "\nlooked in\n";
            for folder in &catalogue.folders {
                text += &format!("  {} ({})\n", folder.path.display(), folder.reason.text());
            }
        }
        output::print(&text)
    }
}

/// The catalogue as JSON; also part of what `doctor` says.
pub fn as_json(catalogue: &Catalogue) -> Value {
    let parts = catalogue.parts.iter().map(|p| {
        let (status, other) = match &p.status {
            Status::Ok => ("ok", None),
            Status::Shadowed(other) => ("shadowed", Some(other)),
            Status::Ambiguous(other) => ("ambiguous", Some(other)),
        };
        json!({
            "name": p.info.name, "kind": p.info.kind, "sdk_version": p.sdk_version, "status": status,
            "other": other.map(|o| o.display().to_string()),
            "library": p.library.display().to_string(), "found_by": p.reason,
        })
    });
    let refused = catalogue.refused.iter().map(|r| {
        json!({
            "library": r.path.display().to_string(), "status": "refused", "found_by": r.reason,
            "cause": r.refusal.cause, "remedy": r.refusal.remedy,
        })
    });
    let folders = catalogue.folders.iter().map(|f| json!({"path": f.path.display().to_string(), "found_by": f.reason}));
    json!({"parts": parts.collect::<Vec<_>>(), "refused": refused.collect::<Vec<_>>(), "folders": folders.collect::<Vec<_>>()})
}

/// A part as the user named it: by its name, or by the path of its library.
pub fn reference(text: &str) -> PluginRef {
    let library = text.split('#').next().unwrap_or(text);
    if text.contains('/') || library.ends_with(std::env::consts::DLL_SUFFIX) {
        let path = std::path::absolute(text).unwrap_or_else(|_| text.into());
        return PluginRef::Path { path, from_command_line: true };
    }
    PluginRef::Name(text.into())
}

/// `KEY=VALUE` of a part's configuration; the value is read as TOML and, where it is none, as plain text.
pub fn setting(text: &str) -> Result<(String, Value), Failure> {
    let wrong = |cause: String| {
        Failure::new(Code::Usage, "the command line is wrong", cause, "write --set KEY=VALUE, such as --set nu=3")
    };
    let (key, value) = text.split_once('=').ok_or_else(|| wrong(format!("--set {text} has no `=`")))?;
    let (key, value) = (key.trim().to_string(), value.trim());
    let read = toml::from_str::<toml::Table>(&format!("value = {value}")).ok().filter(|t| t.len() == 1);
    let table = read.unwrap_or_else(|| [("value".to_string(), toml::Value::String(value.into()))].into_iter().collect());
    let json = crate::compose::config(&table).map_err(|e| wrong(format!("--set {text}: {e}")))?;
    Ok((key, json.into_iter().next().map_or(Value::Null, |(_, v)| v)))
}

/// What `show` tells of a part.
#[derive(Serialize)]
struct Shown {
    kind: Kind,
    name: String,
    doc: String,
    citation: String,
    objective: String,
    library: String,
    sha256: String,
    sdk_version: String,
    fields: Vec<fwp_sdk::config::Field>,
    example: String,
    inputs: Vec<RuleInput>,
    states: Vec<Value>,
    program: String,
    program_sha256: String,
    /// What was proved of an update rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    analysis: Option<Value>,
    notices: Vec<String>,
}

impl Show {
    async fn run(self) -> Result<(), Failure> {
        let asker = self.plugins.asker();
        let mut catalogue = self.plugins.catalogue(&asker, None).await?;
        let chosen = self.chosen(&mut catalogue, &asker).await?;
        let mut config = Map::new();
        for text in &self.set {
            let (key, value) = setting(text)?;
            config.insert(key, value);
        }
        let (example, bytes) = self.describe(&asker, &chosen, &config).await?;
        let mut notices = Vec::new();
        let program = checked(chosen.info.kind, &chosen, &bytes, &mut notices)?;
        let found = match program.kind {
            Kind::UpdateRule => Some(Proved::of(&program).map_err(|e| {
                let cause = literal(&e.to_string());
                Failure::new(Code::Plugin, format!("cannot analyse {}", chosen.title()), cause, "correct the plugin's step")
            })?),
            _ => None,
        };
        let shown = Shown {
            kind: chosen.info.kind,
            name: chosen.info.name.clone(),
            doc: chosen.info.doc.clone(),
            citation: chosen.info.citation.clone(),
            objective: program.objective.clone(),
            library: chosen.library.display().to_string(),
            sha256: sha256_of(&chosen.library)?,
            sdk_version: chosen.sdk_version.clone(),
            fields: chosen.info.fields.clone(),
            example,
            inputs: program.inputs.clone(),
            states: program.states.iter().map(|s| json!({"name": s.name, "shape": s.shape, "held": s.held})).collect(),
            program: fwp_program::print(&program),
            program_sha256: hex(&program.to_bytes()),
            analysis: found.as_ref().map(|a| proved::json(&program, a)),
            notices,
        };
        if self.json {
            return output::json(&shown);
        }
        output::print(&text(&shown, &chosen.info, &program, found.as_ref()))
    }

    async fn chosen(&self, catalogue: &mut Catalogue, asker: &Asker) -> Result<Chosen, Failure> {
        let plugin = reference(&self.name);
        let kinds: Vec<Kind> = match self.kind {
            Some(kind) => vec![kind.into()],
            None => vec![Kind::UpdateRule, Kind::FeatureMap, Kind::SlowNet],
        };
        if let PluginRef::Name(name) = &plugin {
            let found: Vec<Kind> = kinds
                .iter()
                .copied()
                .filter(|k| catalogue.parts.iter().any(|p| p.info.kind == *k && p.info.name == *name))
                .collect();
            if found.len() > 1 {
                let names: Vec<&str> = found.iter().map(|k| k.name()).collect();
                return Err(Failure::new(
                    Code::Usage,
                    format!("`{name}` is the name of several parts"),
                    format!("there is one of each kind: {}", names.join(", ")),
                    format!("say which one: --kind {}", names[0]),
                ));
            }
            if found.is_empty() && self.kind.is_none() {
                let names = catalogue.parts.iter().map(|p| p.info.name.as_str());
                let hint = schema::did_you_mean(name, names);
                return Err(Failure::new(
                    Code::Plugin,
                    format!("there is no part `{name}`"),
                    "no library on the plugin path has a part of that name",
                    hint.unwrap_or_else(|| "`fwp-host plugins list` shows everything that was found".into()),
                ));
            }
            return catalogue.find(found.first().copied().unwrap_or(kinds[0]), name).map(Chosen::of);
        }
        let mut last = None;
        for kind in kinds {
            match catalogue.choose(asker, kind, &plugin).await {
                Ok(chosen) => return Ok(chosen),
                // The failure of the first kind is kept unless a later one is more to the point.
                Err(e) => last = Some(last.unwrap_or(e)),
            }
        }
        Err(last.unwrap_or_else(|| Failure::new(Code::Unexpected, "there is no kind of part", "", "report this")))
    }

    /// The program at example sizes, and the sizes in words.
    async fn describe(&self, asker: &Asker, chosen: &Chosen, config: &Map<String, Value>) -> Result<(String, Vec<u8>), Failure> {
        let mut causes: Vec<String> = Vec::new();
        let mut refused = None;
        for (mut example, first, slots) in self.examples(&chosen.info) {
            let mut answer = ask(asker, chosen, config, first.clone()).await?;
            // A slow net says first which fast weights it wants.
            if let Ask::Memories { task, .. } = first {
                let (slots, layers) = match &answer {
                    Ok(bytes) => {
                        let memories = serde_json::from_slice::<Memories>(bytes).map(|m| m.slots).unwrap_or_default();
                        if memories.len() != slots.len() {
                            return Err(cannot_describe(
                                &chosen.title(),
                                Refusal::new("its answer cannot be used", "correct the plugin"),
                            ));
                        }
                        let interfaces = slots.iter().zip(memories).map(|(name, memory)| interface(name, memory)).collect();
                        (interfaces, slots.iter().map(|name| (name.clone(), None)).collect())
                    }
                    Err(refusal) if refusal.cause.ends_with(NO_FAST_WEIGHTS) => {
                        example = example.replace(WITH_RULE, "");
                        (vec![], vec![])
                    }
                    Err(refusal) => {
                        causes.push(refusal.cause.clone());
                        refused = Some(refusal.clone());
                        continue;
                    }
                };
                answer = ask(asker, chosen, config, Ask::Net { task, slots, layers }).await?;
            }
            match answer {
                Ok(bytes) => return Ok((example, bytes)),
                Err(refusal) => {
                    if !causes.contains(&refusal.cause) {
                        causes.push(refusal.cause.clone());
                    }
                    refused = Some(refusal);
                }
            }
        }
        let refusal = refused.unwrap_or_else(|| Refusal::new("", ""));
        Err(cannot_describe(&chosen.title(), Refusal { cause: causes.join("; "), ..refusal }))
    }

    /// Examples to try in order: in words, the first question, and the slot of a slow net.
    fn examples(&self, info: &PartInfo) -> Vec<(String, Ask, Vec<String>)> {
        let slots = if info.slots.is_empty() { vec!["main".to_string()] } else { info.slots.clone() };
        match info.kind {
            Kind::FeatureMap => vec![(format!("a key of {}", self.key_dim), Ask::Map { dim: self.key_dim }, slots)],
            Kind::UpdateRule => {
                let key = self.mapped_key_dim.unwrap_or(self.key_dim);
                // Different sizes read best; a rule that wants them equal gets them equal.
                let values = match self.value_dim {
                    Some(value) => vec![value],
                    None => vec![(key / 2).max(1), key],
                };
                let dims =
                    values.into_iter().map(|value| Dims { heads: self.heads, key_raw: self.key_dim, key, value, ..Dims::ONE });
                let words = |d: Dims| format!("{} heads, keys of {}, values of {}", d.heads, d.key, d.value);
                dims.map(|dims| (words(dims), Ask::Rule { dims }, slots.clone())).collect()
            }
            Kind::SlowNet => example_tasks()
                .into_iter()
                .map(|(name, task)| {
                    let ask = Ask::Memories { task, slots: slots.clone() };
                    (format!("task {name}{WITH_RULE}"), ask, slots.clone())
                })
                .collect(),
        }
    }
}

/// What is said of the rule of a slow net's example.
const WITH_RULE: &str = ", a rule with q, k, v and beta";

/// Asks one question; a library that cannot be opened or breaks is a failure, an answer that is an error is not.
async fn ask(asker: &Asker, chosen: &Chosen, config: &Map<String, Value>, ask: Ask) -> Result<Result<Vec<u8>, Refusal>, Failure> {
    let mut answers = asker.ask(vec![chosen.job(config, ask)]).await?.remove(0);
    answers.opened.map_err(|r| cannot_describe(&chosen.title(), r))?;
    Ok(answers.answers.remove(0))
}

/// Inputs and outputs of each task, small.
fn example_tasks() -> Vec<(&'static str, TaskIo)> {
    let mut found = Vec::new();
    for info in fwp_task::tasks() {
        let required = info.keys.iter().filter(|k| k.default == schema::Default::Required);
        let value = |kind: schema::Kind| match kind {
            schema::Kind::Choice(words) => schema::Value::Text(words[0].into()),
            _ => schema::Value::Integer(20),
        };
        let values = required.map(|k| (k.name.to_string(), value(k.kind))).collect();
        let Ok(spec) = TaskSpec::from_values(info.name, &values) else { continue };
        let opened = match &spec {
            TaskSpec::Text(text) => example_text(text),
            spec => fwp_task::open(spec).ok(),
        };
        if let Some(task) = opened {
            found.push((info.name, task_io(task.io())));
        }
    }
    found
}

/// The text task over a small alphabet.
fn example_text(text: &fwp_task::text::TextSpec) -> Option<Box<dyn fwp_task::Task>> {
    let file = tempfile::NamedTempFile::new().ok()?;
    std::fs::write(file.path(), "abcdefghijklmnopqrstuvwxyz .\n".repeat(400)).ok()?;
    let spec = fwp_task::text::TextSpec { path: Some(file.path().into()), ..text.clone() };
    fwp_task::open(&TaskSpec::Text(spec)).ok()
}

/// A rule for the slot of a slow net in an example.
fn interface(name: &str, memory: Memory) -> SlotInterface {
    let input = |name: &str, role, shape: &[usize]| RuleInput {
        name: name.into(),
        role,
        raw: false,
        count: None,
        heads: None,
        shape: shape.into(),
    };
    SlotInterface {
        name: name.into(),
        rule: "example".into(),
        heads: memory.heads,
        key_raw: memory.key,
        key: memory.key,
        value: memory.value,
        inputs: vec![
            input("q", Role::Query, &[memory.key]),
            input("k", Role::Key, &[memory.key]),
            input("v", Role::Value, &[memory.value]),
            input("beta", Role::Gate, &[]),
        ],
        output: vec![memory.value],
        extras: Vec::new(),
    }
}

fn text(shown: &Shown, info: &PartInfo, program: &Program, found: Option<&Proved>) -> String {
    let lines = |text: &str| text.lines().map(literal).collect::<Vec<_>>().join("\n");
    let paragraph = |text: &str, by: usize| output::wrapped(&output::indented(&lines(text), by), WIDTH);
    // What follows a label of 11 columns, its further lines below it.
    let labelled = |label: &str, text: &str| {
        let body = paragraph(&text.lines().collect::<Vec<_>>().join(" "), 11);
        format!("{label:11}{}\n", body.trim_start())
    };
    let mut text = format!("{} ({})\n", shown.name, shown.kind);
    if !shown.doc.is_empty() {
        text += &format!("\n{}\n", paragraph(&shown.doc, 2));
    }
    text.push('\n');
    if !shown.citation.is_empty() {
        text += &labelled("source", &shown.citation);
    }
    if !shown.objective.is_empty() {
        text += &labelled("objective", &shown.objective);
    }
    text += &labelled("library", &shown.library);
    text += &labelled("sdk", &format!("fwp-sdk {}", shown.sdk_version));
    text += &labelled("sha256", &shown.sha256);

    text += "\nConfiguration\n";
    if info.fields.is_empty() {
        text += "  nothing to configure\n";
    } else {
        // A key a paragraph: kinds and meanings are too long for columns.
        for f in &info.fields {
            let default = if f.default.is_null() { "absent".to_string() } else { f.default.to_string() };
            text += &format!("{}\n", paragraph(&format!("{} = {default}: {}", f.name, f.kind), 2));
            text += &format!("{}\n", paragraph(&f.doc.split_whitespace().collect::<Vec<_>>().join(" "), 6));
        }
    }
    if program.kind == Kind::UpdateRule {
        text += &format!("\nSignature ({})\n", shown.example);
        text += &output::wrapped(&output::indented(&signature(program), 2), WIDTH);
        text.push('\n');
    }
    if let Some(found) = found {
        text += &format!("\nFound ({})\n{}", shown.example, proved::text(program, found));
    }
    text += &format!("\nProgram ({})\n  sha256 {}\n\n", shown.example, shown.program_sha256);
    text += &output::indented(&lines(&shown.program), 2);
    text.push('\n');
    for notice in &shown.notices {
        text += &format!("\n{}\n", paragraph(&format!("note: {notice}"), 0));
    }
    text
}

/// Inputs, states and what is known of a rule, as a table and sentences.
fn signature(program: &Program) -> String {
    let sizes = |shape: &[usize]| format!("{shape:?}");
    let mut rows = Vec::new();
    for input in &program.inputs {
        let role = match input.role {
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
            Role::Gate => "signal",
        };
        let mut notes = Vec::new();
        match input.mapped() {
            true => notes.push("through the feature map".to_string()),
            false if matches!(input.role, Role::Query | Role::Key) => notes.push("raw".into()),
            false => {}
        }
        if let Some(count) = input.count {
            notes.push(format!("{count} a token"));
        }
        if let Some(heads) = input.heads {
            notes.push(format!("{heads} heads"));
        }
        rows.push(vec![role.into(), input.name.clone(), sizes(&input.full_shape()), notes.join(", ")]);
    }
    for state in &program.states {
        let held = if state.held > 1 { format!("held for {} steps", state.held) } else { String::new() };
        rows.push(vec!["state".into(), state.name.clone(), sizes(&state.shape), held]);
    }
    let mut text = output::table(&["ROLE", "NAME", "SHAPE", ""], &rows);
    for (name, effective) in fwp_program::effective_signals(program) {
        text += &match effective {
            Ok(node) => {
                format!("signal {name}: `apply --signals effective` takes {}\n", fwp_program::formula(program, node))
            }
            Err(why) => format!("signal {name} has no effective form: {}\n", literal(&why)),
        };
    }
    text += &match fwp_program::separate(program) {
        Ok(apart) => format!(
            "write and read are separable: a write takes {}, a read {}\n",
            listed(&apart.write_inputs),
            listed(&apart.read_inputs)
        ),
        Err(why) => format!("write and read are not separable: {}\n", literal(&why.to_string())),
    };
    text
}

fn hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Names of inputs, for people.
fn listed(names: &[String]) -> String {
    if names.is_empty() { "nothing but the states".into() } else { literal(&names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_toml_or_plain_text() {
        let read = |text: &str| setting(text).map(|(_, v)| v).unwrap();
        assert_eq!(read("a=3"), json!(3));
        assert_eq!(read("a = 1e-3"), json!(0.001));
        assert_eq!(read("a=[1, 2]"), json!([1, 2]));
        assert_eq!(read("a=sum"), json!("sum"));
        assert_eq!(read("a=1\nb=2"), json!("1\nb=2"));
        assert!(setting("a").is_err());
    }

    #[test]
    fn every_task_has_an_example() {
        let names: Vec<&str> = example_tasks().iter().map(|(n, _)| *n).collect();
        let all: Vec<&str> = fwp_task::tasks().iter().map(|t| t.name).collect();
        assert_eq!(names, all);
    }
}
