//! `points.toml`: what a paper measured with a recipe, where that is more than one value.

use std::path::Path;

use fwp_recipe::{Expect, more_is_better};
use serde::Deserialize;
use toml::Spanned;

use crate::document::{Document, ZooError};

/// The seeds of a point that names none.
pub const SEEDS: [u64; 3] = [1, 2, 3];

/// The metric of a recipe that expects nothing.
const METRIC: &str = "eval/loss";

/// One value of a paper, and how it is measured here.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its name, unique in the variant; the folders of its runs begin with it.
    pub name: String,
    /// What it changes in the recipe, each as `--set` takes it.
    pub set: Vec<String>,
    /// The value in the paper or its logs.
    pub published: Option<f64>,
    /// A measured value is within the bounds with this value or less.
    pub at_most: Option<f64>,
    /// A measured value is within the bounds with this value or more.
    pub at_least: Option<f64>,
    /// Anything worth saying beside the value.
    pub note: Option<String>,
    /// The seeds that are measured.
    pub seeds: Vec<u64>,
    /// How many of them must be within the bounds.
    pub needed: usize,
    /// Whether the value of a run is that of its best evaluation, and not of its last.
    pub best: bool,
    /// Whether it is part of a quick look at the zoo.
    pub quick: bool,
    /// What is measured, by its name in `metrics.jsonl`.
    pub metric: String,
    /// Where the point stands, for errors.
    pub place: String,
}

impl Point {
    /// Whether values are judged at all.
    pub fn is_judged(&self) -> bool {
        self.at_most.is_some() || self.at_least.is_some()
    }

    /// Whether a failure is expected: a bound on the side on which values are better.
    pub fn is_failure(&self) -> bool {
        if more_is_better(&self.metric) { self.at_most.is_some() } else { self.at_least.is_some() }
    }

    /// The only point of a recipe without `points.toml`.
    pub(crate) fn of_recipe(expect: Option<&Expect>, place: String) -> Point {
        Point {
            name: "main".into(),
            set: Vec::new(),
            published: expect.and_then(|e| e.published),
            at_most: expect.and_then(|e| e.at_most),
            at_least: expect.and_then(|e| e.at_least),
            note: expect.and_then(|e| e.note.clone()),
            seeds: SEEDS.into(),
            needed: majority(SEEDS.len()),
            best: true,
            quick: false,
            metric: expect.map_or(METRIC.into(), |e| e.metric.clone()),
            place,
        }
    }
}

/// More than half.
fn majority(n: usize) -> usize {
    n / 2 + 1
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    seeds: Option<Spanned<Vec<u64>>>,
    needed: Option<Spanned<usize>>,
    best: Option<bool>,
    #[serde(default)]
    point: Vec<Spanned<Entry>>,
}

/// A `[[point]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    #[serde(default)]
    set: toml::Table,
    published: Option<Spanned<f64>>,
    at_most: Option<Spanned<f64>>,
    at_least: Option<Spanned<f64>>,
    note: Option<String>,
    seeds: Option<Spanned<Vec<u64>>>,
    needed: Option<Spanned<usize>>,
    best: Option<bool>,
    #[serde(default)]
    quick: bool,
    metric: Option<String>,
}

/// Reads the points of a variant from its `points.toml`.
///
/// # Errors
/// A file that cannot be read, or the first mistake in it with its line.
pub fn read(path: &Path, expect: Option<&Expect>) -> Result<Vec<Point>, ZooError> {
    let (document, file): (Document, File) = Document::read(path)?;
    if file.point.is_empty() {
        return Err(document.refuse(0, "it has no [[point]]; without the file the recipe itself is the only point"));
    }
    let mut points: Vec<Point> = Vec::new();
    for entry in &file.point {
        let (span, entry) = (entry.span(), entry.get_ref());
        let (name, at) = (entry.name.get_ref(), entry.name.span().start);
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(allowed) {
            return Err(document.refuse(at, format!("{name:?} is no name of a point: use letters, digits and . _ + -")));
        }
        if points.iter().any(|p| p.name == *name) {
            return Err(document.refuse(at, format!("the point {name:?} is there twice")));
        }
        for number in [&entry.published, &entry.at_most, &entry.at_least].into_iter().flatten() {
            if !number.get_ref().is_finite() {
                return Err(document.refuse(number.span().start, "the number is not finite; leave it out and say so in `note`"));
            }
        }
        let value = |n: &Option<Spanned<f64>>| n.as_ref().map(|n| *n.get_ref());
        let (at_most, at_least) = (value(&entry.at_most), value(&entry.at_least));
        if let (Some(most), Some(least), Some(place)) = (at_most, at_least, &entry.at_most)
            && most < least
        {
            let text = format!("at_most = {most} is below at_least = {least}, so no value is within");
            return Err(document.refuse(place.span().start, text));
        }
        let seeds = match entry.seeds.as_ref().or(file.seeds.as_ref()) {
            Some(seeds) => checked_seeds(&document, seeds)?,
            None => SEEDS.into(),
        };
        let needed = match entry.needed.as_ref().or(file.needed.as_ref()) {
            // The file's number may be meant for more seeds than this point has.
            Some(n) if entry.needed.is_none() && *n.get_ref() > seeds.len() => seeds.len(),
            Some(n) => *n.get_ref(),
            None => majority(seeds.len()),
        };
        if let Some(n) = entry.needed.as_ref().or(file.needed.as_ref()).filter(|_| !(1..=seeds.len()).contains(&needed)) {
            return Err(document.refuse(n.span().start, format!("needed = {needed}, but there are {} seeds", seeds.len())));
        }
        let set = entry.set.iter().map(|(key, value)| format!("{key}={}", typed(value))).collect();
        let metric = entry.metric.clone().or_else(|| expect.map(|e| e.metric.clone()));
        points.push(Point {
            name: name.clone(),
            set,
            published: value(&entry.published),
            at_most,
            at_least,
            note: entry.note.clone(),
            seeds,
            needed,
            best: entry.best.or(file.best).unwrap_or(true),
            quick: entry.quick,
            metric: metric.unwrap_or_else(|| METRIC.into()),
            place: document.place(span.start),
        });
    }
    Ok(points)
}

/// A value as a person types it behind `--set KEY=`: a word that TOML does not read as something else needs no quotes, and nothing
/// takes the key out.
fn typed(value: &toml::Value) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_+.".contains(c);
    match value {
        toml::Value::String(s) if s.chars().all(plain) && s.parse::<toml::Value>().is_err() => s.clone(),
        value => value.to_string(),
    }
}

fn checked_seeds(document: &Document, seeds: &Spanned<Vec<u64>>) -> Result<Vec<u64>, ZooError> {
    let list = seeds.get_ref();
    let twice = (1..list.len()).find(|i| list[..*i].contains(&list[*i]));
    match twice {
        _ if list.is_empty() => Err(document.refuse(seeds.span().start, "there are no seeds")),
        Some(i) => Err(document.refuse(seeds.span().start, format!("seed {} is there twice", list[i]))),
        None => Ok(list.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Point>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("points.toml");
        std::fs::write(&path, text).unwrap();
        let expect = Expect { metric: "eval/error".into(), published: None, at_most: None, at_least: None, note: None };
        read(&path, Some(&expect)).map_err(|e| e.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn a_file_says_what_holds_for_all_points_and_a_point_what_is_its_own() {
        let points = read_text(
            "seeds = [4, 5]\nneeded = 2\n[[point]]\nname = \"20-keys\"\nset = { \"task.keys\" = 20, train = { optimiser.name = \"adamw\" } }\n\
             published = 1\nat_most = 2.5\nquick = true\n[[point]]\nname = \"b\"\nseeds = [1]\nbest = false\nmetric = \"eval/loss\"",
        )
        .unwrap();
        let [a, b] = &points[..] else { panic!("{points:?}") };
        assert_eq!(a.set, ["task.keys=20", "train={ optimiser = { name = \"adamw\" } }"]);
        assert_eq!((a.published, a.at_most, a.at_least, a.quick, a.best), (Some(1.0), Some(2.5), None, true, true));
        assert_eq!((a.seeds.as_slice(), a.needed, a.metric.as_str()), (&[4, 5][..], 2, "eval/error"));
        assert_eq!((b.seeds.as_slice(), b.needed, b.metric.as_str(), b.best), (&[1][..], 1, "eval/loss", false));
        assert!(a.is_judged() && !b.is_judged() && a.place.ends_with("points.toml:3:1"), "{}", a.place);
    }

    #[test]
    fn words_need_no_quotes_where_nothing_else_is_meant() {
        let text = |s: &str| typed(&toml::Value::String(s.into()));
        assert_eq!((text("identity"), text("elu+1")), ("identity".into(), "elu+1".into()));
        for quoted in ["true", "1e3", "a b", "nan", "2021-01-01"] {
            assert_eq!(text(quoted), format!("{quoted:?}"));
        }
        // A key that is set to nothing is taken out of the recipe.
        assert_eq!(text(""), "");
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, place, says) in [
            ("seeds = [1]", "points.toml:1:1", "no [[point]]"),
            ("[[point]]\nname = \"a\"\nat_mots = 1", "points.toml:3:1", "at_mots"),
            ("[[point]]\nname = \"a\"\n[[point]]\nname = \"a\"", "points.toml:4:8", "twice"),
            ("[[point]]\nname = \"a/b\"", "points.toml:2:8", "no name of a point"),
            ("[[point]]\nname = \"a\"\nat_most = 1\nat_least = 2", "points.toml:3:11", "no value is within"),
            ("[[point]]\nname = \"a\"\npublished = nan", "points.toml:3:13", "not finite"),
            ("[[point]]\nname = \"a\"\nseeds = [1, 1]", "points.toml:3:9", "twice"),
            ("[[point]]\nname = \"a\"\nseeds = []", "points.toml:3:9", "no seeds"),
            ("[[point]]\nname = \"a\"\nneeded = 4", "points.toml:3:10", "3 seeds"),
            ("needed = 0\n[[point]]\nname = \"a\"", "points.toml:1:10", "3 seeds"),
            ("[[point]]\nname = 3", "points.toml:2:8", "string"),
            ("[[point]]\nname = ", "points.toml:2:", ""),
            ("[[point]]", "points.toml:1:1", "name"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.starts_with(place) && error.contains(says), "{text:?}: {error}");
        }
    }
}
