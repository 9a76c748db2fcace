//! `fwp-host zoo results`

use std::path::{Path, PathBuf};

use clap::Args;
use fwp_zoo::figure::spec::Figures;
use fwp_zoo::figure::{self, Drawn};
use fwp_zoo::table::{Measured, document};
use fwp_zoo::{Point, Variant, Verdict, results, write_if_changed};

use super::{RUNS, ZooOptions};
use crate::failure::{Code, Failure, literal};
use crate::{output, zoo};

/// Collects finished runs, and writes tables and figures: measured beside published.
///
/// Every measurement goes into results.json beside its recipe, with command, commit, date and machine; those that are there
/// stay where no newer run is found. From these files, and nothing else, DOCS/results.md and DOCS/figures are written.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fwp-host zoo results
  fwp-host zoo results 'capacity-*' --runs /data/zoo-runs
  fwp-host zoo results --check")]
pub struct Results {
    /// Collects only variants whose name matches; `*` stands for any characters, `?` for one. Tables and figures are of all.
    #[arg(value_name = "PATTERN")]
    patterns: Vec<String>,
    /// The folder of the runs.
    #[arg(long, value_name = "DIR", default_value = RUNS)]
    runs: PathBuf,
    /// The folder of the documentation (default: docs beside the zoo).
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
    /// What to say of the machine for runs that did not record it.
    #[arg(long, value_name = "TEXT")]
    machine: Option<String>,
    /// Writes nothing; ends with exit code 8 where tables or figures are not those of results.json.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    zoo: ZooOptions,
}

/// The exit code of a check that failed.
const FAILED: u8 = 8;

impl Results {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let folder = self.zoo.folder()?;
        let docs = self.docs.clone().unwrap_or_else(|| beside(&folder));
        let chosen: Vec<PathBuf> = zoo::select(&folder, &self.patterns)?.into_iter().map(|f| f.folder).collect();
        if !self.check && self.runs != Path::new(RUNS) && !self.runs.is_dir() {
            return Err(Failure::new(
                Code::Usage,
                "the command line is wrong",
                format!("{} is no folder", self.runs.display()),
                "name the folder of the runs with --runs",
            ));
        }
        let mut variants = Vec::new();
        for found in zoo::select(&folder, &[])? {
            variants.push((found.folder, found.variant?));
        }
        let figures = Figures::read(&folder.join("figures.toml"), &variants.iter().map(|(_, v)| v).collect::<Vec<_>>())?;
        let mut all = Vec::new();
        for (path, variant) in variants {
            let collect = !self.check && chosen.contains(&path);
            all.push(self.measured(variant, collect, &figures)?);
        }
        let drawn: Vec<Drawn> = figures.figures.iter().filter_map(|f| figure::draw(f, &all)).collect();
        let summary = summary(&all);
        let mut files = vec![(docs.join("results.md"), document(all, &drawn.iter().map(Drawn::shown).collect::<Vec<_>>()))];
        let place = |drawn: &Drawn, ending: &str| docs.join("figures").join(format!("{}.{ending}", drawn.name));
        files.extend(drawn.iter().map(|d| (place(d, "svg"), d.svg.clone())));
        let pictures: Vec<PathBuf> = drawn.iter().map(|d| place(d, "png")).collect();
        if self.check {
            return check(&files, &pictures);
        }
        for (path, text) in &files {
            written(path, text.as_bytes())?;
        }
        for (drawn, path) in drawn.iter().zip(&pictures) {
            let picture = drawn.png().ok_or_else(|| {
                let cause = format!("{} cannot be rendered", drawn.name);
                Failure::new(Code::Unexpected, "a figure cannot be drawn", cause, "report this with zoo/figures.toml")
            })?;
            written(path, &picture)?;
        }
        for path in left_over(&files, &pictures) {
            output::say(&format!("note: {} is no figure any more; remove it", path.display()));
        }
        output::print(&summary)?;
        Ok(0)
    }

    /// The measurements of a variant; collected anew from runs, or as they are kept.
    fn measured(&self, variant: Variant, collect: bool, figures: &Figures) -> Result<Measured, Failure> {
        let path = variant.results();
        let old = results::read(&path)?;
        let collected = match collect {
            true => {
                let curves = |point: &Point| figures.draws_curve(&variant.name, point);
                results::collect(&variant, Some(&self.runs), old, self.machine.as_deref(), curves)?
            }
            false => results::counted(&variant, old)?,
        };
        for notice in &collected.notices {
            output::say(&format!("note: {}", literal(notice)));
        }
        if collect && results::write(&path, &collected.measurements)? {
            output::say(&format!("written    {}", path.display()));
        }
        Ok(Measured { variant, measurements: collected.measurements })
    }
}

/// The folder of the documentation that belongs to a zoo.
fn beside(zoo: &Path) -> PathBuf {
    let zoo = std::path::absolute(zoo).unwrap_or_else(|_| zoo.into());
    zoo.parent().unwrap_or(Path::new(".")).join("docs")
}

/// Writes a file and says so, unless it holds just that already.
fn written(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if write_if_changed(path, bytes)? {
        output::say(&format!("written    {}", path.display()));
    }
    Ok(())
}

/// Figures that lie where figures are written, and are none of these.
fn left_over(files: &[(PathBuf, String)], pictures: &[PathBuf]) -> Vec<PathBuf> {
    let Some(folder) = files.first().and_then(|(path, _)| path.parent()).map(|docs| docs.join("figures")) else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let is_figure = |p: &PathBuf| p.extension().is_some_and(|e| e == "svg" || e == "png");
    let known = |p: &PathBuf| files.iter().any(|(path, _)| path == p) || pictures.contains(p);
    let mut found: Vec<PathBuf> = entries.filter(|p| is_figure(p) && !known(p)).collect();
    found.sort();
    found
}

/// Compares what would be written with what is there. Pictures are only looked for: how they are rendered may change with the
/// library that does it.
fn check(files: &[(PathBuf, String)], pictures: &[PathBuf]) -> Result<u8, Failure> {
    let differs = |path: &Path, text: &str| !std::fs::read(path).is_ok_and(|there| there == text.as_bytes());
    let stale = files.iter().filter(|(path, text)| differs(path, text)).map(|(path, _)| path);
    let stale: Vec<&PathBuf> = stale.chain(pictures.iter().filter(|p| !p.is_file())).collect();
    let left = left_over(files, pictures);
    for path in &stale {
        output::say(&format!("not up to date: {}", path.display()));
    }
    for path in &left {
        output::say(&format!("no figure any more: {}", path.display()));
    }
    if !stale.is_empty() || !left.is_empty() {
        output::say("write them with `fwp-host zoo results`");
        return Ok(FAILED);
    }
    output::print(&format!("{} files are those of results.json\n", files.len() + pictures.len()))?;
    Ok(0)
}

/// How many points of each variant have which verdict; variants of which nothing was measured are left out.
fn summary(all: &[Measured]) -> String {
    let mut rows = Vec::new();
    for measured in all.iter().filter(|m| !m.measurements.is_empty()) {
        let mut row = vec![measured.variant.name.clone(), measured.variant.points.len().to_string()];
        row.extend(measured.counts().map(|n| n.to_string()));
        rows.push(row);
    }
    if rows.is_empty() {
        return "nothing was measured yet\n".into();
    }
    let names: Vec<String> = Verdict::ALL.iter().map(|v| v.name().to_uppercase()).collect();
    let mut headers = vec!["VARIANT", "POINTS"];
    headers.extend(names.iter().map(String::as_str));
    output::table(&headers, &rows)
}
