//! From a recipe to the programs of its parts.
//!
//! The order in which parts are asked follows from what each must know:
//! the slow net says which fast weights it wants in each slot; the feature map says how many features it makes of a key; then map
//! and rule are described for those sizes; last the slow net, which is told what each rule takes and gives.

use fwp_program::{Difference, ModelPrograms, Notice, SlotPrograms};
use fwp_recipe::{PartChoice, PartKind, Resolved};
use fwp_sdk::build::{self, Dims, Memory};
use fwp_sdk::program::{Kind, Program, SlotInterface, Type, entry, shape};
use fwp_sdk::{Ask, Memories, NEEDS_FAST_WEIGHTS, NO_FAST_WEIGHTS, PartInfo};
use fwp_task::TaskIo;
use serde_json::{Map, Value};

use crate::failure::{Code, Failure};
use crate::plugins::ask::sha256_of;
use crate::plugins::wire::LibraryJob;
use crate::plugins::{Asker, Catalogue, Chosen, Refusal};

/// A part with its program.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its kind.
    pub kind: PartKind,
    /// Its own name.
    pub name: String,
    /// What it describes, checked.
    pub program: Program,
    /// The canonical bytes of the program.
    pub bytes: Vec<u8>,
    /// Library, SDK version and sha256, for people.
    pub origin: String,
}

/// A slot with the programs of its rule and map.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Name of the slot.
    pub name: String,
    /// Layers that it lists.
    pub layers: Option<Vec<usize>>,
    /// The map.
    pub feature_map: Part,
    /// The rule.
    pub update_rule: Part,
}

/// All programs of a recipe.
#[derive(Clone, Debug)]
pub struct Composition {
    /// The slow net.
    pub slow_net: Part,
    /// The slots.
    pub slots: Vec<Slot>,
    /// What was noticed and stops nothing, one line each.
    pub notices: Vec<String>,
}

impl Composition {
    /// The programs, as the analyses take them.
    pub fn programs(&self) -> ModelPrograms {
        ModelPrograms {
            net: self.slow_net.program.clone(),
            slots: self
                .slots
                .iter()
                .map(|s| SlotPrograms {
                    name: s.name.clone(),
                    layers: s.layers.clone(),
                    map: s.feature_map.program.clone(),
                    rule: s.update_rule.program.clone(),
                })
                .collect(),
        }
    }
}

/// The task as the SDK says it.
pub fn task_io(io: &TaskIo) -> build::TaskIo {
    let port = |p: &fwp_task::Port| build::Port {
        name: p.name.clone(),
        axis: p.axis.clone(),
        kind: match p.kind {
            fwp_task::PortKind::Symbol { vocab } => build::PortKind::Symbol { vocab },
            fwp_task::PortKind::Vector { dim } => build::PortKind::Vector { dim },
        },
    };
    build::TaskIo {
        inputs: io.inputs.iter().map(port).collect(),
        outputs: io.outputs.iter().map(port).collect(),
        max_len: io.max_len,
    }
}

/// A part of the recipe, the library that serves it, and its configuration.
struct Source<'a> {
    recipe: &'a Resolved,
    choice: &'a PartChoice,
    chosen: Chosen,
    config: Map<String, Value>,
}

impl Source<'_> {
    fn job(&self, ask: Ask) -> LibraryJob {
        self.chosen.job(&self.config, ask)
    }

    /// What the user is told when the part refuses: a mistake of its configuration is placed in the recipe.
    fn refused(&self, refusal: Refusal) -> Failure {
        // A part that refuses while it describes itself says where in its own source. A key of a recipe is only what it declares:
        // other names between backticks are the plugin's own.
        let (place, cause) = placed(&refusal.cause);
        let name = &self.chosen.info.name;
        if cause == NEEDS_FAST_WEIGHTS {
            let help = Some("write [update_rule] with plugin = \"NAME\"".into());
            return self.recipe.error_at("update_rule", &format!("the slow net `{name}` needs an update rule"), help).into();
        }
        if cause == NO_FAST_WEIGHTS {
            let help = Some("take [update_rule] and [feature_map] out, or --set update_rule= --set feature_map=".into());
            return self.recipe.error_at("update_rule", &format!("the slow net `{name}` has no fast weights"), help).into();
        }
        let declared = |key: &str| self.chosen.info.fields.iter().any(|f| f.name == key);
        if let Some((key, message, help)) = blamed_key(cause).filter(|(key, ..)| place.is_none() || declared(key)) {
            let path = format!("{}.{key}", self.choice.section);
            let look = format!("`fwp-host plugins show {}` shows its keys", self.chosen.info.name);
            let help = help.map_or(look.clone(), |h| format!("{h} ({look})"));
            return self.recipe.error_at(&path, &message, Some(help)).into();
        }
        cannot_describe(&self.chosen.title(), refusal)
    }

    fn program(&self, bytes: Vec<u8>, notices: &mut Vec<String>) -> Result<Part, Failure> {
        let kind = self.chosen.info.kind;
        let program = checked(kind, &self.chosen, &bytes, notices)?;
        let sha256 = sha256_of(&self.chosen.library)?;
        Ok(Part {
            kind: self.choice.kind,
            name: self.chosen.info.name.clone(),
            // As this host writes them: a newer SDK may have added sections that it passes over.
            bytes: program.to_bytes(),
            program,
            origin: format!("{} (fwp-sdk {}, sha256 {sha256})", self.chosen.library.display(), self.chosen.sdk_version),
        })
    }
}

/// The failure of a part that gives no description.
pub fn cannot_describe(title: &str, refusal: Refusal) -> Failure {
    Failure::new(Code::Plugin, format!("{title} does not describe itself"), refusal.cause, refusal.remedy).detail(refusal.detail)
}

/// A message without the place in the plugin's source that stands in front of it, `FILE:LINE:COLUMN: `, and that place.
fn placed(message: &str) -> (Option<&str>, &str) {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let split = || {
        let (place, rest) = message.split_once(": ")?;
        let mut parts = place.rsplitn(3, ':');
        let is_place = parts.next().is_some_and(digits) && parts.next().is_some_and(digits) && parts.next().is_some();
        is_place.then_some((Some(place), rest))
    };
    split().unwrap_or((None, message))
}

/// The key that a part's message blames, with the rest of the message and a hint.
fn blamed_key(message: &str) -> Option<(String, String, Option<String>)> {
    let (text, unknown) = match message.strip_prefix("unknown key `") {
        Some(rest) => (rest, true),
        None => (message.strip_prefix('`')?, false),
    };
    let (key, rest) = text.split_once('`')?;
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        return None;
    }
    if unknown {
        let help = rest.trim_start_matches(';').trim();
        return Some((key.into(), "unknown key".into(), (!help.is_empty()).then(|| help.into())));
    }
    Some((key.into(), rest.strip_prefix(':')?.trim().into(), None))
}

/// The numbers on which a rule's two statements are compared; any will do, always the same ones give always the same verdict.
const RESTATED_SEED: u64 = 1;

/// Reads and checks a program: it comes from a library and is not trusted.
pub fn checked(kind: Kind, chosen: &Chosen, bytes: &[u8], notices: &mut Vec<String>) -> Result<Program, Failure> {
    let refuse = |cause: String| {
        Failure::new(
            Code::Plugin,
            format!("the program of {} is refused", chosen.title()),
            cause,
            format!("correct the plugin {}", chosen.library.display()),
        )
    };
    let program = Program::from_bytes(bytes).map_err(|e| refuse(e.to_string()))?;
    if program.kind != kind || program.name != chosen.info.name {
        return Err(refuse(format!("it describes {} `{}` instead", program.kind, program.name)));
    }
    let found = fwp_program::check(&program).map_err(|e| refuse(e.to_string()))?;
    notices.extend(found.iter().map(|n: &Notice| format!("{}: {n}", chosen.title())));
    // A rule that says its step twice is held to it: trained would be the first, believed perhaps the second.
    match fwp_program::restated_agrees(&program, RESTATED_SEED) {
        Ok(_) => {}
        Err(Difference::NoValue(why)) => {
            notices.push(format!("{}: its two statements cannot be compared: {why}", chosen.title()))
        }
        Err(difference) => return Err(refuse(format!("its step and its second statement differ: {difference}"))),
    }
    Ok(program)
}

/// A part's table as JSON.
pub fn config(table: &toml::Table) -> Result<Map<String, Value>, String> {
    table.iter().map(|(k, v)| Ok((k.clone(), value(v).map_err(|e| format!("`{k}`: {e}"))?))).collect()
}

fn value(v: &toml::Value) -> Result<Value, String> {
    Ok(match v {
        toml::Value::String(s) => s.clone().into(),
        toml::Value::Integer(i) => (*i).into(),
        toml::Value::Float(x) => {
            serde_json::Number::from_f64(*x).map(Value::Number).ok_or_else(|| format!("expected a finite number, got {x}"))?
        }
        toml::Value::Boolean(b) => (*b).into(),
        toml::Value::Array(a) => Value::Array(a.iter().map(value).collect::<Result<_, _>>()?),
        toml::Value::Table(t) => Value::Object(t.iter().map(|(k, v)| Ok((k.clone(), value(v)?))).collect::<Result<_, String>>()?),
        toml::Value::Datetime(d) => return Err(format!("no key takes a date ({d})")),
    })
}

/// What a slow net must know of a rule, from the rule's program.
pub fn interface(slot: &str, dims: Dims, rule: &Program) -> Result<SlotInterface, String> {
    let types = shape::types(rule)?;
    let index = rule.entries.iter().find(|(n, _)| n == entry::STEP).map(|(_, i)| *i as usize).ok_or("it has no step")?;
    let (step, ty) = rule.functions.get(index).zip(types.functions.get(index)).ok_or("it has no step")?;
    let mut output = None;
    let mut extras = Vec::new();
    for (o, ty) in step.outputs.iter().zip(&ty.results) {
        let Type::Tensor(t) = ty else { return Err(format!("its output `{}` is {ty}, not a tensor", o.name)) };
        if o.name == "output" {
            output = Some(t.shape.clone());
        } else if let Some(extra) = o.name.strip_prefix("extra.") {
            extras.push((extra.to_string(), t.shape.clone()));
        }
    }
    Ok(SlotInterface {
        name: slot.into(),
        rule: rule.name.clone(),
        heads: dims.heads,
        key_raw: dims.key_raw,
        key: dims.key,
        value: dims.value,
        inputs: rule.inputs.clone(),
        output: output.ok_or("its step has no output")?,
        extras,
    })
}

/// Asks the parts of a recipe for their programs.
///
/// # Errors
/// A part that is not there, refuses its configuration, or describes something that cannot be used.
pub async fn compose(recipe: &Resolved, io: &TaskIo, catalogue: &mut Catalogue, asker: &Asker) -> Result<Composition, Failure> {
    let net = source(recipe, &recipe.slow_net, catalogue, asker).await?;
    rules_have_their_places(recipe, &net.chosen.info)?;
    let mut maps = Vec::new();
    let mut rules = Vec::new();
    for slot in &recipe.slots {
        maps.push(source(recipe, &slot.feature_map, catalogue, asker).await?);
        rules.push(source(recipe, &slot.update_rule, catalogue, asker).await?);
    }
    let task = task_io(io);
    let mut notices = Vec::new();

    let names: Vec<String> = recipe.slots.iter().map(|s| s.name.clone()).collect();
    let ask = Ask::Memories { task: task.clone(), slots: names.clone() };
    let bytes = all(asker, vec![(&net, net.job(ask))]).await?.remove(0);
    let Memories { slots: memories, layers } = serde_json::from_slice(&bytes).map_err(|e| unreadable(&net, &e.to_string()))?;
    if layers == 0 || memories.len() != names.len() || memories.iter().any(|m| m.heads == 0 || m.key == 0 || m.value == 0) {
        return Err(unreadable(&net, "it must want fast weights of at least one head, key and value in every slot"));
    }

    let jobs = maps.iter().zip(&memories).map(|(m, memory)| (m, m.job(Ask::Features { dim: memory.key }))).collect();
    let mut dims = Vec::new();
    for ((bytes, map), memory) in all(asker, jobs).await?.iter().zip(&maps).zip(&memories) {
        let features: usize = serde_json::from_slice(bytes).map_err(|e| unreadable(map, &e.to_string()))?;
        if features == 0 {
            return Err(unreadable(map, &format!("it makes no features of a key of {}", memory.key)));
        }
        let Memory { heads, key: key_raw, value } = *memory;
        dims.push(Dims { heads, key_raw, key: features, value, layers, max_len: io.max_len });
    }

    let map_jobs = maps.iter().zip(&dims).map(|(m, d)| (m, m.job(Ask::Map { dim: d.key_raw })));
    let rule_jobs = rules.iter().zip(&dims).map(|(r, d)| (r, r.job(Ask::Rule { dims: *d })));
    let mut described = all(asker, map_jobs.chain(rule_jobs).collect()).await?;
    let rule_bytes = described.split_off(maps.len());
    let mut slots = Vec::new();
    let mut interfaces = Vec::new();
    for (i, slot) in recipe.slots.iter().enumerate() {
        let feature_map = maps[i].program(std::mem::take(&mut described[i]), &mut notices)?;
        let update_rule = rules[i].program(rule_bytes[i].clone(), &mut notices)?;
        interfaces.push(interface(&slot.name, dims[i], &update_rule.program).map_err(|e| unreadable(&rules[i], &e))?);
        slots.push(Slot { name: slot.name.clone(), layers: slot.layers.clone(), feature_map, update_rule });
    }

    let layers = recipe.slots.iter().map(|s| (s.name.clone(), s.layers.clone())).collect();
    let ask = Ask::Net { task, slots: interfaces, layers };
    let bytes = all(asker, vec![(&net, net.job(ask))]).await?.remove(0);
    let slow_net = net.program(bytes, &mut notices)?;
    let composition = Composition { slow_net, slots, notices };
    composition.programs().check().map_err(|e| {
        Failure::new(
            Code::Plugin,
            "the parts do not fit together",
            e.to_string(),
            "correct the plugin that is named, or choose parts that fit",
        )
    })?;
    every_layer_is_there(recipe, &composition)?;
    Ok(composition)
}

/// Refuses rules that the slow net cannot tell apart: it knows them by their names, or by the layers that they list.
fn rules_have_their_places(recipe: &Resolved, net: &PartInfo) -> Result<(), Failure> {
    let refuse = |path: &str, message: String, help: String| Err(recipe.error_at(path, &message, Some(help)).into());
    if net.slots.is_empty() {
        let mut all = recipe.slots.iter().filter(|s| s.layers.is_none());
        if let (Some(first), Some(second)) = (all.next(), all.next()) {
            let message = format!("neither this rule nor `{}` lists its layers, so both take all", first.name);
            return refuse(&second.update_rule.section, message, "give all rules but one layers = [...]".into());
        }
        return Ok(());
    }
    let sections = || net.slots.iter().map(|s| format!("[update_rule.{s}]")).collect::<Vec<_>>().join(" and ");
    if let Some(other) = recipe.slots.iter().find(|s| !net.slots.contains(&s.name)) {
        let message = format!("the slow net `{}` has no place for a rule of this name", net.name);
        return refuse(&other.update_rule.section, message, format!("its rules are {}", sections()));
    }
    if let Some(name) = net.slots.iter().find(|n| !recipe.slots.iter().any(|s| s.name == **n)) {
        let message = format!("the slow net `{}` needs the rule `{name}`", net.name);
        return refuse("update_rule", message, format!("write {}, each with plugin = \"NAME\"", sections()));
    }
    Ok(())
}

/// Refuses a rule that lists a layer which the slow net lacks, or that is left without any.
fn every_layer_is_there(recipe: &Resolved, composition: &Composition) -> Result<(), Failure> {
    let net = &composition.slow_net;
    let used = fwp_program::layers_of_slots(&net.program);
    let count = used.count();
    let has = format!("the slow net `{}` has {count} layer{}", net.name, if count == 1 { ", layer 0" } else { "s, from 0" });
    for slot in &recipe.slots {
        let section = &slot.update_rule.section;
        let lacks = |layer: &&usize| !used.may_use(&slot.name, **layer);
        if let Some(layer) = slot.layers.iter().flatten().find(lacks) {
            let (message, help) = if *layer < count {
                (format!("layer {layer} of the slow net `{}` has no fast weights", net.name), "list layers that have them".into())
            } else {
                (format!("there is no layer {layer}: {has}"), format!("list layers below {count}, or change the slow net"))
            };
            return Err(recipe.error_at(&format!("{section}.layers"), &message, Some(help)).into());
        }
        if used.layers.is_empty() && used.outside.is_empty() {
            let message = format!("the slow net `{}` uses no fast weights as it is configured", net.name);
            let help = "take [update_rule] and [feature_map] out, or --set update_rule= --set feature_map=".into();
            return Err(recipe.error_at("update_rule", &message, Some(help)).into());
        }
        if !used.uses(&slot.name) {
            let message = format!("no layer is left for the rule: {has}, and other rules take them");
            return Err(recipe.error_at(section, &message, Some("take the rule out, or some layers from others".into())).into());
        }
    }
    Ok(())
}

/// A part of a recipe that is not there to be asked.
pub struct Absent {
    /// The section of the recipe that names it.
    pub section: String,
    pub why: Failure,
}

/// Refuses keys that a part of the recipe does not have; parts that are not there to be asked are given back.
///
/// # Errors
/// The first key that its part does not have, with its place in the recipe.
pub async fn check_keys(recipe: &Resolved, catalogue: &mut Catalogue, asker: &Asker) -> Result<Vec<Absent>, Failure> {
    let slots = recipe.slots.iter().flat_map(|s| [&s.feature_map, &s.update_rule]);
    let mut absent = Vec::new();
    for choice in std::iter::once(&recipe.slow_net).chain(slots) {
        match source(recipe, choice, catalogue, asker).await {
            Ok(part) => {
                let names: Vec<String> = part.chosen.info.fields.iter().map(|f| f.name.clone()).collect();
                if let Some(key) = choice.config.keys().find(|k| !names.contains(k)) {
                    return Err(part.refused(Refusal::new(fwp_sdk::config::unknown(key, names), "")));
                }
            }
            Err(why) => absent.push(Absent { section: choice.section.clone(), why }),
        }
    }
    Ok(absent)
}

async fn source<'a>(
    recipe: &'a Resolved,
    choice: &'a PartChoice,
    catalogue: &mut Catalogue,
    asker: &Asker,
) -> Result<Source<'a>, Failure> {
    let kind = match choice.kind {
        PartKind::SlowNet => Kind::SlowNet,
        PartKind::FeatureMap => Kind::FeatureMap,
        PartKind::UpdateRule => Kind::UpdateRule,
    };
    let chosen = catalogue.choose(asker, kind, &choice.plugin).await.map_err(|mut failure| {
        // Where the recipe says so helps more than that it says so.
        let path = format!("{}.plugin", choice.section);
        if let Some(source) = recipe.source(&path) {
            failure.headline = format!("{} ({path}, {source})", failure.headline);
        }
        failure
    })?;
    let config = config(&choice.config).map_err(|message| match blamed_key(&message) {
        Some((key, message, help)) => recipe.error_at(&format!("{}.{key}", choice.section), &message, help).into(),
        None => Failure::from(recipe.error_at(&choice.section, &message, None)),
    })?;
    Ok(Source { recipe, choice, chosen, config })
}

/// Asks several parts one question each, in as few child processes as there is harmony.
async fn all(asker: &Asker, jobs: Vec<(&Source<'_>, LibraryJob)>) -> Result<Vec<Vec<u8>>, Failure> {
    let (sources, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
    let answers = asker.ask(jobs).await?;
    let mut out = Vec::new();
    for (source, answers) in sources.into_iter().zip(answers) {
        let answer = answers.opened.and_then(|_| {
            answers.answers.into_iter().next().unwrap_or_else(|| Err(Refusal::new("it did not answer", "rebuild the plugin")))
        });
        out.push(answer.map_err(|r| source.refused(r))?);
    }
    Ok(out)
}

fn unreadable(source: &Source<'_>, what: &str) -> Failure {
    let refusal = Refusal::new(format!("its answer cannot be used: {what}"), "correct the plugin");
    cannot_describe(&source.chosen.title(), refusal)
}

#[cfg(test)]
mod tests {
    use super::{blamed_key, placed};

    #[test]
    fn the_place_in_a_plugins_source_is_told_from_its_message() {
        let message = "src/lib.rs:31:13: `nu`: 8 is out of range: use 1 to 7";
        assert_eq!(placed(message), (Some("src/lib.rs:31:13"), "`nu`: 8 is out of range: use 1 to 7"));
        for plain in ["`nu`: expected 1", "panic: 3:4", "a:b:4: x", "1:2: x", ""] {
            assert_eq!(placed(plain), (None, plain));
        }
    }

    #[test]
    fn the_key_that_a_part_blames_is_found() {
        let key = |text: &str| blamed_key(text);
        assert_eq!(
            key("unknown key `nuu`; did you mean `nu`?"),
            Some(("nuu".into(), "unknown key".into(), Some("did you mean `nu`?".into())))
        );
        assert_eq!(
            key("`nu`: expected a whole number from 0, got -1"),
            Some(("nu".into(), "expected a whole number from 0, got -1".into(), None))
        );
        assert_eq!(key("src/lib.rs:3:1: `a` and `b` differ"), None);
        assert_eq!(key("`a b`: x"), None);
        assert_eq!(key("`a` and more"), None);
    }
}
