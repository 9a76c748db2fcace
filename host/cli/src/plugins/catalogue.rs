//! The parts that were found on the search path, and what was refused and why. Nothing found is ever hidden.

use std::path::{Path, PathBuf};

use fwp_recipe::PluginRef;
use fwp_sdk::program::Kind;
use fwp_sdk::{Ask, PartInfo, Request};
use fwp_task::schema::did_you_mean;
use serde::Serialize;
use serde_json::{Map, Value};

use super::ask::{Answers, Asker, listing};
use super::search::{self, Folder, Reason};
use super::wire::{LibraryJob, Question};
use super::{Refusal, examine};
use crate::failure::{Code, Failure};

/// Whether a part that was found is the one that its name means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "status", content = "other")]
pub enum Status {
    /// It is.
    Ok,
    /// An earlier folder of the search path has a part of that name.
    Shadowed(PathBuf),
    /// Another library of the same folder has a part of that name, so the name means neither.
    Ambiguous(PathBuf),
}

/// A part in a library.
#[derive(Clone, Debug)]
pub struct Part {
    /// What the library says of it.
    pub info: PartInfo,
    /// The library, by its canonical path.
    pub library: PathBuf,
    /// The version of the SDK that the library was built with.
    pub sdk_version: String,
    /// Why the library was looked at.
    pub reason: Reason,
    /// Whether the name means this part.
    pub status: Status,
}

/// A library, or a folder of the search path, that cannot be used.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The library as it was found.
    pub path: PathBuf,
    /// Why it was looked at.
    pub reason: Reason,
    /// Why it cannot be used.
    pub refusal: Refusal,
}

/// What the search path holds.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// The folders, in order.
    pub folders: Vec<Folder>,
    /// The parts, in the order of the folders.
    pub parts: Vec<Part>,
    /// What was refused.
    pub refused: Vec<Refused>,
}

impl Catalogue {
    /// Looks at every library of the folders.
    ///
    /// # Errors
    /// A child process that cannot be started.
    pub async fn discover(asker: &Asker, folders: Vec<Folder>) -> Result<Catalogue, Failure> {
        let mut catalogue = Catalogue { folders: folders.clone(), ..Catalogue::default() };
        let mut candidates: Vec<(PathBuf, Reason)> = Vec::new();
        for folder in &folders {
            match search::libraries(folder) {
                Ok(paths) => {
                    for path in paths {
                        match examine::examine(&path) {
                            Ok(real) if candidates.iter().any(|(p, _)| *p == real) => {}
                            Ok(real) => candidates.push((real, folder.reason)),
                            Err(refusal) => catalogue.refused.push(Refused { path, reason: folder.reason, refusal }),
                        }
                    }
                }
                Err(e) => {
                    let refusal = Refusal::new(
                        format!("the folder cannot be read: {e}"),
                        "check the path and its permissions, or take it off the search path",
                    );
                    catalogue.refused.push(Refused { path: folder.path.clone(), reason: folder.reason, refusal });
                }
            }
        }
        let jobs = candidates.iter().map(|(path, _)| listing(path)).collect();
        for ((path, reason), answers) in candidates.into_iter().zip(asker.ask(jobs).await?) {
            match parts_of(answers) {
                Ok((sdk_version, infos)) => {
                    for info in infos {
                        let (library, sdk_version) = (path.clone(), sdk_version.clone());
                        catalogue.parts.push(Part { info, library, sdk_version, reason, status: Status::Ok });
                    }
                }
                Err(refusal) => catalogue.refused.push(Refused { path, reason, refusal }),
            }
        }
        catalogue.mark();
        Ok(catalogue)
    }

    /// Finds out which names mean which parts.
    fn mark(&mut self) {
        for i in 0..self.parts.len() {
            let same = |a: &Part, b: &Part| a.info.kind == b.info.kind && a.info.name == b.info.name;
            let Some(first) = (0..i).find(|j| same(&self.parts[*j], &self.parts[i])) else { continue };
            let (one, two) = (self.parts[first].library.clone(), self.parts[i].library.clone());
            if one.parent() == two.parent() {
                self.parts[i].status = Status::Ambiguous(one);
                if self.parts[first].status == Status::Ok {
                    self.parts[first].status = Status::Ambiguous(two);
                }
            } else {
                self.parts[i].status = Status::Shadowed(one);
            }
        }
    }

    /// The part that a name means.
    ///
    /// # Errors
    /// No such part, with the nearest name and the libraries that were refused; or two of the same name in one folder.
    pub fn find(&self, kind: Kind, name: &str) -> Result<&Part, Failure> {
        let found = self.parts.iter().find(|p| p.info.kind == kind && p.info.name == name);
        match found {
            Some(part) => match &part.status {
                Status::Ambiguous(other) => Err(Failure::new(
                    Code::Plugin,
                    format!("{kind} `{name}` is there twice"),
                    format!("{} and {} both have it", part.library.display(), other.display()),
                    "remove one of them, or name the library by its path",
                )),
                _ => Ok(part),
            },
            None => Err(self.missing(kind, name)),
        }
    }

    fn missing(&self, kind: Kind, name: &str) -> Failure {
        let names: Vec<&str> = self.parts.iter().filter(|p| p.info.kind == kind).map(|p| p.info.name.as_str()).collect();
        let other_kind = self.parts.iter().find(|p| p.info.name == name).map(|p| p.info.kind);
        let mut remedy = match did_you_mean(name, names.iter().copied()) {
            Some(hint) => hint,
            None if names.is_empty() => {
                "build the plugins (cargo build --release), or name their folder with --plugin-path".into()
            }
            None => format!("there are {}; `fwp-host plugins list` shows everything that was found", names.join(", ")),
        };
        if let Some(other) = other_kind {
            remedy = format!("`{name}` is there as {other}; {remedy}");
        }
        let mut cause = "there is none of that name in the libraries on the plugin path".to_string();
        if !self.refused.is_empty() {
            let refused: Vec<String> =
                self.refused.iter().map(|r| format!("{} ({})", r.path.display(), r.refusal.cause)).collect();
            cause += &format!("; refused were {}", refused.join(", "));
        }
        Failure::new(Code::Plugin, format!("there is no {kind} `{name}`"), cause, remedy)
    }

    /// The part that a recipe refers to: by name on the search path, or by the path of a library, with `#NAME` behind it where
    /// the library has several parts of the kind.
    ///
    /// # Errors
    /// As [`Catalogue::find`]; or a library that is refused or has no such part.
    pub async fn choose(&mut self, asker: &Asker, kind: Kind, plugin: &PluginRef) -> Result<Chosen, Failure> {
        let path = match plugin {
            PluginRef::Name(name) => return self.find(kind, name).map(Chosen::of),
            PluginRef::Path { path, .. } => path,
        };
        let (path, name) = split_name(path);
        let headline = || format!("the plugin {} is refused", path.display());
        let refuse = |r: Refusal| Failure::new(Code::Plugin, headline(), r.cause, r.remedy).detail(r.detail);
        let real = examine::examine(&path).map_err(refuse)?;
        let mut answers = asker.ask(vec![listing(&real)]).await?;
        let (sdk_version, infos) = parts_of(answers.remove(0)).map_err(refuse)?;
        let of_kind: Vec<&PartInfo> = infos.iter().filter(|i| i.kind == kind).collect();
        let names = of_kind.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ");
        let info = match (&name, of_kind.as_slice()) {
            (_, []) => {
                let has = infos.iter().map(|i| format!("{} `{}`", i.kind, i.name)).collect::<Vec<_>>().join(", ");
                return Err(refuse(Refusal::new(
                    format!("it has no {kind}; it has {}", if has.is_empty() { "no parts at all" } else { &has }),
                    "name a library that has one".to_string(),
                )));
            }
            (None, [one]) => *one,
            (None, _) => {
                return Err(refuse(Refusal::new(
                    format!("it has several {kind}s: {names}"),
                    format!("say which one: {}#NAME", path.display()),
                )));
            }
            (Some(name), _) => of_kind
                .iter()
                .find(|i| i.name == *name)
                .copied()
                .ok_or_else(|| refuse(Refusal::new(format!("it has no {kind} `{name}`"), format!("it has {names}"))))?,
        };
        Ok(Chosen { info: info.clone(), library: real, sdk_version })
    }
}

/// The library and the name in `PATH#NAME`.
fn split_name(path: &Path) -> (PathBuf, Option<String>) {
    if path.exists() {
        return (path.into(), None);
    }
    match path.to_str().and_then(|t| t.rsplit_once('#')) {
        Some((library, name)) => (library.into(), Some(name.into())),
        None => (path.into(), None),
    }
}

/// The parts that a library lists, checked: they come from the library.
fn parts_of(answers: Answers) -> Result<(String, Vec<PartInfo>), Refusal> {
    let version = answers.opened?;
    let bytes = answers.answers.into_iter().next().unwrap_or_else(|| Err(Refusal::new("it did not answer", "")))?;
    let rebuild = "rebuild the plugin with fwp_sdk::export!";
    let infos: Vec<PartInfo> =
        serde_json::from_slice(&bytes).map_err(|e| Refusal::new(format!("its list of parts cannot be read: {e}"), rebuild))?;
    for info in &infos {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        let well = info.name.starts_with(|c: char| c.is_ascii_alphanumeric()) && info.name.len() <= 64;
        if !well || !info.name.chars().all(plain) {
            return Err(Refusal::new(
                format!("{:?} is not a name for a part", info.name.chars().take(80).collect::<String>()),
                "names are letters, digits and `.`, `_`, `+`, `-`, at most 64",
            ));
        }
        let twice = infos.iter().filter(|i| i.kind == info.kind && i.name == info.name).count() > 1;
        if twice {
            return Err(Refusal::new(
                format!("it lists {} `{}` twice", info.kind, info.name),
                "give every part a name of its own",
            ));
        }
    }
    Ok((version, infos))
}

/// A part that was chosen, with the library to ask.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// What the library says of it.
    pub info: PartInfo,
    /// The library, by its canonical path.
    pub library: PathBuf,
    /// The version of the SDK that the library was built with.
    pub sdk_version: String,
}

impl Chosen {
    /// A part of the catalogue.
    pub fn of(part: &Part) -> Chosen {
        Chosen { info: part.info.clone(), library: part.library.clone(), sdk_version: part.sdk_version.clone() }
    }

    /// A question to this part.
    pub fn job(&self, config: &Map<String, Value>, ask: Ask) -> LibraryJob {
        let request = Request { kind: self.info.kind, name: self.info.name.clone(), config: config.clone(), ask };
        LibraryJob { path: self.library.clone().into(), questions: vec![Question::Describe(request)] }
    }

    /// The part in messages: its kind and name.
    pub fn title(&self) -> String {
        format!("{} `{}`", self.info.kind, self.info.name)
    }
}
