//! `fwp-host zoo`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fwp_recipe::{Overrides, ReadOptions};
use serde::Serialize;

use crate::failure::{Code, Failure, literal};
use crate::{output, zoo};

/// The zoo: recipes of published variants.
#[derive(Subcommand, Debug)]
pub enum Zoo {
    List(List),
}

/// Lists the recipes of the zoo with their source and what they must reach.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fwp-host zoo list")]
pub struct List {
    /// The folder of recipes (default: $FWP_ZOO, else zoo in a folder above fwp-host).
    #[arg(long, value_name = "DIR")]
    zoo: Option<PathBuf>,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
}

/// A recipe of the zoo.
#[derive(Serialize)]
struct Entry {
    name: String,
    path: PathBuf,
    title: Option<String>,
    cite: Option<String>,
    expect: Option<fwp_recipe::Expect>,
    /// Why the recipe cannot be used.
    error: Option<String>,
}

impl Zoo {
    /// Does it.
    pub fn run(self) -> Result<u8, Failure> {
        match self {
            Zoo::List(list) => list.run(),
        }
    }
}

impl List {
    fn run(self) -> Result<u8, Failure> {
        let none = |cause: String| {
            Failure::new(Code::Environment, "there is no zoo", cause, "name its folder with --zoo DIR or set FWP_ZOO")
        };
        let Some(folder) = self.zoo.or_else(zoo::folder) else {
            return Err(none("no folder above fwp-host holds one".into()));
        };
        let entries = std::fs::read_dir(&folder).map_err(|e| none(format!("{}: {e}", folder.display())))?;
        let mut paths: Vec<PathBuf> =
            entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.join("recipe.toml").is_file()).collect();
        paths.sort();
        let entries: Vec<Entry> = paths.into_iter().map(entry).collect();
        if self.json {
            output::json(&entries)?;
            return Ok(0);
        }
        if entries.is_empty() {
            output::say(&format!("{} holds no recipes", folder.display()));
            return Ok(0);
        }
        let texts: Vec<String> = entries.iter().map(text).collect();
        output::print(&texts.join("\n"))?;
        Ok(0)
    }
}

fn entry(path: PathBuf) -> Entry {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match fwp_recipe::read(&path, &Overrides::default(), &ReadOptions::default()) {
        Ok(recipe) => Entry { name, path, title: recipe.title, cite: recipe.cite, expect: recipe.expect, error: None },
        Err(e) => Entry { name, path, title: None, cite: None, expect: None, error: Some(e.to_string()) },
    }
}

/// The name, and what is known of the recipe below it: titles and sources are too long for a table.
fn text(entry: &Entry) -> String {
    let expected = entry.expect.as_ref().map_or_else(String::new, |e| {
        let bounds = match (e.at_least, e.at_most) {
            (Some(least), Some(most)) => format!(" from {least} to {most}"),
            (Some(least), None) => format!(" >= {least}"),
            (None, Some(most)) => format!(" <= {most}"),
            (None, None) => String::new(),
        };
        format!("expected: {}{bounds}", e.metric)
    });
    let title = match &entry.error {
        Some(error) => format!("refused: {error}"),
        None => entry.title.clone().unwrap_or_default(),
    };
    let mut text = literal(&entry.name) + "\n";
    for line in [title, entry.cite.clone().unwrap_or_default(), expected] {
        if !line.is_empty() {
            text += &format!("  {}\n", literal(&line));
        }
    }
    text
}
