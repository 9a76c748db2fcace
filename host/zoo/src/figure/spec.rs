//! `figures.toml`: which figures there are, and of what they are made.

use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use crate::document::{Document, ZooError};
use crate::pattern::matches;
use crate::points::Point;
use crate::variant::Variant;

/// The figures of a zoo, as they are declared, and checked against its variants.
#[derive(Debug, Default)]
pub struct Figures {
    /// In the order of the file.
    pub figures: Vec<Figure>,
}

/// How a figure shows its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A value of every point over a key of the recipe.
    Sweep,
    /// The metric over the steps of every run.
    Curves,
    /// A value of every point over the size of the state.
    Scatter,
    /// Values as a matrix of coloured cells.
    HeatMap,
}

/// Which of several seeds a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seeds {
    /// The one in the middle.
    #[default]
    Median,
    /// The best.
    Best,
}

/// A figure.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The name of its files.
    pub name: Spanned<String>,
    /// What it shows.
    pub title: String,
    /// The paper whose figure it is like, and whatever else has to be said.
    pub caption: String,
    /// How.
    pub kind: Kind,
    /// The axis from left to right.
    #[serde(default)]
    pub x: AxisSpec,
    /// The axis upwards; of a heat map the range of its colours.
    #[serde(default)]
    pub y: AxisSpec,
    /// Which of several seeds a value is.
    #[serde(default)]
    pub seeds: Seeds,
    /// Whether published values are drawn, too.
    #[serde(default = "yes")]
    pub published: bool,
    /// A value of y that means something.
    pub guide: Option<f64>,
    /// What it means.
    pub guide_label: Option<String>,
    /// Lines, curves or groups of points.
    #[serde(default)]
    pub series: Vec<Spanned<SeriesSpec>>,
    /// The rows of a heat map.
    #[serde(default)]
    pub row: Vec<Row>,
    /// The columns of a heat map.
    #[serde(default)]
    pub column: Vec<Column>,
    /// Where the value of a cell is.
    pub cell: Option<Spanned<Cell>>,
}

fn yes() -> bool {
    true
}

/// An axis.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AxisSpec {
    /// The key of the recipe whose value it is.
    pub key: Option<Spanned<String>>,
    /// What is written along it.
    pub label: Option<String>,
    /// Whether equal distances are equal ratios.
    #[serde(default)]
    pub log: bool,
    /// Its first value.
    pub min: Option<f64>,
    /// Its last value.
    pub max: Option<f64>,
}

/// What belongs together under one name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesSpec {
    /// The name.
    pub label: String,
    /// The variant.
    pub variant: String,
    /// Which of its points.
    #[serde(default = "all")]
    pub points: String,
}

fn all() -> String {
    "*".into()
}

/// A row of a heat map.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What is written beside it.
    pub label: String,
    /// What takes the place of `{row}` in the names of a cell.
    pub id: String,
}

/// A column of a heat map.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// What is written above it.
    pub label: String,
    /// What takes the place of `{column}` in the names of a cell.
    pub id: String,
    /// The values of the lightest and the darkest colour, where they are others than those of the figure; less may be darker.
    pub range: Option<[f64; 2]>,
    /// What of its runs stands beside the rows. Columns may have nets of different sizes, so each speaks for itself.
    #[serde(default)]
    pub beside: Vec<Beside>,
}

/// Where the value of a cell is: names in which `{row}` and `{column}` are replaced.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The variant.
    pub variant: String,
    /// The point.
    #[serde(default = "main_point")]
    pub point: String,
}

fn main_point() -> String {
    "main".into()
}

/// What of the runs of a column stands beside the rows of a heat map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beside {
    /// Numbers that the model keeps from step to step.
    StateSize,
    /// Trained parameters.
    Parameters,
    /// Speed of training.
    TokensPerSecond,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    figure: Vec<Figure>,
}

impl Cell {
    /// The names of variant and point for a row and a column.
    pub fn names(&self, row: &Row, column: &Column) -> (String, String) {
        let put = |text: &str| text.replace("{row}", &row.id).replace("{column}", &column.id);
        (put(&self.variant), put(&self.point))
    }
}

impl SeriesSpec {
    /// Whether a point of a variant belongs to it.
    pub fn holds(&self, variant: &str, point: &str) -> bool {
        self.variant == variant && matches(&self.points, point)
    }
}

impl Figures {
    /// Reads the figures of a zoo; there are none without the file.
    ///
    /// # Errors
    /// A file that cannot be read, and what it says of variants, points or keys that are not there, with the line.
    pub fn read(path: &Path, variants: &[&Variant]) -> Result<Figures, ZooError> {
        if !path.exists() {
            return Ok(Figures::default());
        }
        let (document, file): (Document, File) = Document::read(path)?;
        for (i, figure) in file.figure.iter().enumerate() {
            check(&document, figure, &file.figure[..i], variants)?;
        }
        Ok(Figures { figures: file.figure })
    }

    /// Whether a figure draws the curves of a point.
    pub fn draws_curve(&self, variant: &str, point: &Point) -> bool {
        let curves = self.figures.iter().filter(|f| f.kind == Kind::Curves);
        curves.flat_map(|f| &f.series).any(|s| s.get_ref().holds(variant, &point.name))
    }
}

fn check(document: &Document, figure: &Figure, before: &[Figure], variants: &[&Variant]) -> Result<(), ZooError> {
    let (name, at) = (figure.name.get_ref(), figure.name.span().start);
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.chars().all(allowed) {
        return Err(document.refuse(at, format!("{name:?} is no name of a figure: use letters, digits and . _ -")));
    }
    if before.iter().any(|f| f.name.get_ref() == name) {
        return Err(document.refuse(at, format!("the figure {name:?} is there twice")));
    }
    let find = |name: &str, at: usize| {
        let near = || fwp_task::schema::did_you_mean(name, variants.iter().map(|v| v.name.as_str()));
        let near = || near().map_or(String::new(), |n| format!("; {n}"));
        let found = variants.iter().find(|v| v.name == name);
        found.ok_or_else(|| document.refuse(at, format!("the zoo has no {name:?}{}", near())))
    };
    match figure.kind {
        Kind::HeatMap => {
            let Some(cell) = &figure.cell else {
                return Err(document.refuse(at, "a heat map needs `cell`, which says where its values are"));
            };
            if figure.row.is_empty() || figure.column.is_empty() {
                return Err(document.refuse(at, "a heat map needs [[figure.row]] and [[figure.column]]"));
            }
            // Not every rule need be tried with every task; but a row or a column without any is a mistake.
            let there = |row: &Row, column: &Column| {
                let (variant, point) = cell.get_ref().names(row, column);
                variants.iter().any(|v| v.name == variant && v.point(&point).is_some())
            };
            for row in &figure.row {
                if !figure.column.iter().any(|c| there(row, c)) {
                    return Err(document.refuse(cell.span().start, format!("no cell of the row {:?} is in the zoo", row.label)));
                }
            }
            for column in &figure.column {
                if !figure.row.iter().any(|r| there(r, column)) {
                    let text = format!("no cell of the column {:?} is in the zoo", column.label);
                    return Err(document.refuse(cell.span().start, text));
                }
            }
        }
        _ if figure.series.is_empty() => return Err(document.refuse(at, "it has no [[figure.series]]")),
        kind => {
            for series in &figure.series {
                let (at, series) = (series.span().start, series.get_ref());
                let variant = find(&series.variant, at)?;
                let points: Vec<&Point> = variant.points.iter().filter(|p| matches(&series.points, &p.name)).collect();
                if points.is_empty() {
                    return Err(document.refuse(at, format!("{} has no point {:?}", series.variant, series.points)));
                }
                if kind != Kind::Sweep {
                    continue;
                }
                let Some(key) = &figure.x.key else {
                    return Err(document.refuse(figure.name.span().start, "a sweep needs x.key, the key that it sweeps"));
                };
                for point in points {
                    if variant.resolve(point, &Default::default())?.number(key.get_ref()).is_none() {
                        let text = format!("{} of {}/{} is no number", key.get_ref(), variant.name, point.name);
                        return Err(document.refuse(key.span().start, text));
                    }
                }
            }
        }
    }
    Ok(())
}
