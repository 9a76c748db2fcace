//! `fwp-host zoo list`

use std::path::PathBuf;

use clap::Args;
use fwp_zoo::paper::{Paper, grouped};
use fwp_zoo::table::Measured;
use fwp_zoo::{Judgement, Point, Verdict};
use serde::Serialize;

use super::ZooOptions;
use crate::failure::{Code, Failure, literal};
use crate::zoo::Found;
use crate::{output, zoo};

/// Lists the recipes of the zoo by paper, with what is measured and what was published.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fwp-host zoo list
  fwp-host zoo list 'capacity-*'
  fwp-host zoo list deltanet --points
  fwp-host zoo list --json")]
pub struct List {
    /// Only variants whose name matches; `*` stands for any characters, `?` for one.
    #[arg(value_name = "PATTERN")]
    patterns: Vec<String>,
    /// Every point beside its recipe: what was published, what is expected, and what was measured.
    #[arg(long, conflicts_with = "json")]
    points: bool,
    #[command(flatten)]
    zoo: ZooOptions,
    /// Prints one JSON document; points are in it.
    #[arg(long)]
    json: bool,
}

/// A recipe of the zoo.
#[derive(Serialize)]
struct Entry {
    name: String,
    path: PathBuf,
    paper: String,
    title: Option<String>,
    cite: Option<String>,
    expect: Option<fwp_recipe::Expect>,
    points: Vec<PointEntry>,
    /// Why the recipe cannot be used.
    error: Option<String>,
}

/// A point of a recipe, and what its measurements say.
#[derive(Serialize)]
struct PointEntry {
    name: String,
    set: Vec<String>,
    metric: String,
    published: Option<f64>,
    at_most: Option<f64>,
    at_least: Option<f64>,
    seeds: Vec<u64>,
    values: Vec<Option<f64>>,
    #[serde(flatten)]
    judgement: Judgement,
    /// The same as a row for a person.
    #[serde(skip)]
    row: Vec<String>,
}

impl List {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let folder = self.zoo.folder()?;
        let found = zoo::select(&folder, &self.patterns)?;
        let entries: Vec<(Paper, Entry)> = found.into_iter().map(entry).collect();
        let code = if entries.iter().any(|(_, entry)| entry.error.is_some()) { Code::Input as u8 } else { 0 };
        if self.json {
            output::json(&entries.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>())?;
            return Ok(code);
        }
        if entries.is_empty() {
            output::say(&format!("{} holds no recipes", folder.display()));
            return Ok(0);
        }
        let mut text = String::new();
        for (paper, entries) in grouped(entries) {
            text += &format!("{}\n", literal(&paper.title()));
            for entry in entries {
                text += &shown(&entry);
                if self.points {
                    text += &shown_points(&entry);
                }
            }
            text.push('\n');
        }
        output::print(&format!("{}\n", text.trim_end()))?;
        Ok(code)
    }
}

fn entry(Found { folder: path, variant }: Found) -> (Paper, Entry) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let measured = variant.and_then(|variant| {
        let measurements = fwp_zoo::results::of(&variant)?;
        Ok(Measured { variant, measurements })
    });
    match measured {
        Ok(measured) => {
            let points = measured.variant.points.iter().map(|p| point(&measured, p)).collect();
            let recipe = measured.variant.recipe;
            let paper = Paper::of(recipe.cite.as_deref());
            let entry = Entry {
                name,
                path,
                paper: paper.title(),
                title: recipe.title,
                cite: recipe.cite,
                expect: recipe.expect,
                points,
                error: None,
            };
            (paper, entry)
        }
        Err(e) => {
            let paper = Paper::of(Some("refused"));
            let error = Some(e.cause);
            (paper, Entry { name, path, paper: String::new(), title: None, cite: None, expect: None, points: Vec::new(), error })
        }
    }
}

fn point(measured: &Measured, point: &Point) -> PointEntry {
    let values: Vec<Option<f64>> = measured.of(point).iter().map(|m| m.value_of(point)).collect();
    PointEntry {
        row: zoo::row(point.name.clone(), point, &values),
        name: point.name.clone(),
        set: point.set.clone(),
        metric: point.metric.clone(),
        published: point.published,
        at_most: point.at_most,
        at_least: point.at_least,
        seeds: point.seeds.clone(),
        values,
        judgement: measured.judge(point),
    }
}

/// The name, and what is known of the recipe below it: titles are too long for a table.
fn shown(entry: &Entry) -> String {
    let mut text = format!("  {}\n", literal(&entry.name));
    let mut line = |said: &str| {
        if !said.is_empty() {
            text += &format!("    {}\n", literal(said));
        }
    };
    if let Some(error) = &entry.error {
        line(&format!("refused: {error}"));
        return text;
    }
    line(entry.title.as_deref().unwrap_or_default());
    if let Some(expect) = &entry.expect {
        line(&format!("expected: {}{}", expect.metric, zoo::bounds(expect.at_least, expect.at_most)));
    }
    let counts: Vec<String> = Verdict::ALL
        .iter()
        .map(|v| (entry.points.iter().filter(|p| p.judgement.verdict == *v).count(), v.name()))
        .filter(|(n, _)| *n > 0)
        .map(|(n, name)| format!("{n} {name}"))
        .collect();
    let points = if entry.points.len() == 1 { "point" } else { "points" };
    line(&format!("{} {points}: {}", entry.points.len(), counts.join(", ")));
    text
}

/// A table of a recipe's points below it.
fn shown_points(entry: &Entry) -> String {
    let rows: Vec<Vec<String>> = entry.points.iter().map(|p| p.row.clone()).collect();
    output::table(&zoo::COLUMNS, &rows).lines().map(|line| format!("      {line}\n")).collect()
}
