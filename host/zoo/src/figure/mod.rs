//! Figures as papers draw them, from measurements: SVG, and PNG of the same drawing.
//!
//! | module | does |
//! |---|---|
//! | [`spec`] | `figures.toml` |
//! | `plot` | lines and points between axes, with a legend beside them |
//! | `heat` | a matrix of values as coloured cells |
//! | `axis` | scales and ticks |
//! | `svg`, `png` | shapes, as a document and as pixels |
//! | `font` | the widths of texts |
//!
//! # Why the drawing is our own
//!
//! A figure has to be the same in both files, whatever fonts a machine has: so there is one list of shapes, measured with a font
//! that is part of the program, written as SVG and painted by `tiny-skia`.
//! The plotting libraries that were looked at measure and place text anew for each format, and have neither logarithmic ticks as
//! papers have them nor a legend that keeps off the data.

mod axis;
mod font;
mod heat;
mod plot;
mod png;
pub mod spec;
mod svg;

use fwp_recipe::more_is_better;

use crate::points::Point;
use crate::results::Measurement;
use crate::table::{Measured, Shown, median, number};

use axis::Axis;
use heat::Heat;
use plot::{Dot, Plot, Series};
use spec::{Beside, Column, Figure, Kind, Seeds, SeriesSpec};
use svg::Picture;

/// A figure that was drawn.
pub struct Drawn {
    /// The name of its files.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// What is said below it.
    pub caption: String,
    /// The drawing as an SVG document.
    pub svg: String,
    picture: Picture,
    /// The same as a table, of a heat map.
    pub table: Option<String>,
}

impl Drawn {
    /// The drawing as a PNG file; nothing where it would be larger than any figure is.
    pub fn png(&self) -> Option<Vec<u8>> {
        png::render(&self.picture)
    }

    /// The figure as the document shows it.
    pub fn shown(&self) -> Shown {
        Shown { name: self.name.clone(), title: self.title.clone(), caption: self.caption.clone(), table: self.table.clone() }
    }
}

/// Draws a figure; nothing where nothing of it was measured.
pub fn draw(figure: &Figure, all: &[Measured]) -> Option<Drawn> {
    let (picture, table) = match figure.kind {
        Kind::HeatMap => {
            let heat = heat_of(figure, all)?;
            (heat::draw(&heat), Some(heat.table()))
        }
        _ => (plot::draw(&plot_of(figure, all)?), None),
    };
    let (title, caption) = (figure.title.clone(), figure.caption.clone());
    Some(Drawn { name: figure.name.get_ref().clone(), title, caption, svg: picture.svg(), picture, table })
}

/// The measurements of a point that gave a value, with it.
fn values<'a>(measured: &'a Measured, point: &Point) -> Vec<(f64, &'a Measurement)> {
    measured.of(point).into_iter().filter_map(|m| Some((m.value_of(point).filter(|v| v.is_finite())?, m))).collect()
}

/// The value that stands for several seeds.
fn chosen(figure: &Figure, metric: &str, values: &[f64]) -> Option<f64> {
    match figure.seeds {
        Seeds::Median => median(values.to_vec()),
        Seeds::Best if more_is_better(metric) => values.iter().copied().reduce(f64::max),
        Seeds::Best => values.iter().copied().reduce(f64::min),
    }
}

fn plot_of(figure: &Figure, all: &[Measured]) -> Option<Plot> {
    let mut series = Vec::new();
    let mut metric = String::new();
    for spec in figure.series.iter().map(|s| s.get_ref()) {
        let measured = all.iter().find(|m| m.variant.name == spec.variant)?;
        if let Some(point) = measured.variant.points.iter().find(|p| spec.holds(&spec.variant, &p.name)) {
            metric.clone_from(&point.metric);
        }
        series.push(series_of(figure, spec, measured));
    }
    let is_measured = |s: &Series| !s.measured.is_empty() || !s.curves.is_empty();
    if !series.iter().any(is_measured) {
        return None;
    }
    for (s, spec) in series.iter_mut().zip(&figure.series).filter(|(s, _)| !is_measured(s)) {
        let spec = spec.get_ref();
        let measured = all.iter().filter(|m| m.variant.name == spec.variant).flat_map(|m| &m.measurements);
        // Of a measurement whose run is gone there may be a value and no curve.
        let ran = measured.into_iter().any(|m| spec.holds(&spec.variant, &m.point));
        s.label += if ran { " (no curve)" } else { " (not run)" };
    }
    let curves = || series.iter().flat_map(|s| s.curves.iter().flatten().copied());
    let published = || series.iter().flat_map(|s| s.published.iter().copied());
    let dots = || series.iter().flat_map(|s| s.measured.iter());
    let xs = dots().map(|d| d.x).chain(curves().chain(published()).map(|p| p.0));
    let ranges = dots().flat_map(|d| [d.y, d.range.0, d.range.1]);
    let ys = ranges.chain(curves().chain(published()).map(|p| p.1)).chain(figure.guide);
    let x_label = figure.x.label.clone().unwrap_or_else(|| match (figure.kind, &figure.x.key) {
        (Kind::Curves, _) => "steps".into(),
        (Kind::Scatter, _) => "state size (numbers kept of a sequence)".into(),
        (_, key) => key.as_ref().map_or(String::new(), |k| k.get_ref().clone()),
    });
    let y_label = figure.y.label.clone().unwrap_or(metric);
    let x = Axis::around(&x_label, figure.x.log, xs, figure.x.min, figure.x.max);
    let y = Axis::around(&y_label, figure.y.log, ys, figure.y.min, figure.y.max);
    let guide = figure.guide.map(|v| (v, figure.guide_label.clone().unwrap_or_default()));
    Some(Plot { title: figure.title.clone(), x, y, ticks_at_values: figure.kind != Kind::Curves, guide, series })
}

fn series_of(figure: &Figure, spec: &SeriesSpec, measured: &Measured) -> Series {
    let mut series = Series { label: spec.label.clone(), ..Series::default() };
    let variant = &measured.variant;
    for point in variant.points.iter().filter(|p| spec.holds(&variant.name, &p.name)) {
        let found = values(measured, point);
        if figure.kind == Kind::Curves {
            let curves = measured.of(point).into_iter().filter(|m| m.curve.len() > 1);
            series.curves.extend(curves.map(|m| m.curve.iter().map(|[x, y]| (*x, *y)).collect()));
            continue;
        }
        let x = match figure.kind {
            Kind::Scatter => median(found.iter().filter_map(|(_, m)| m.state_size).map(|n| n as f64).collect()),
            _ => figure.x.key.as_ref().and_then(|k| variant.resolve(point, &Default::default()).ok()?.number(k.get_ref())),
        };
        let Some(x) = x else { continue };
        if let Some(published) = point.published.filter(|_| figure.published) {
            series.published.push((x, published));
        }
        let ys: Vec<f64> = found.iter().map(|(y, _)| *y).collect();
        let Some(y) = chosen(figure, &point.metric, &ys) else {
            series.missing.push(x);
            continue;
        };
        let low = ys.iter().copied().fold(y, f64::min);
        let high = ys.iter().copied().fold(y, f64::max);
        series.measured.push(Dot { x, y, range: (low, high) });
    }
    series.measured.sort_by(|a, b| a.x.total_cmp(&b.x));
    series.published.sort_by(|a, b| a.0.total_cmp(&b.0));
    series
}

fn heat_of(figure: &Figure, all: &[Measured]) -> Option<Heat> {
    let cell = figure.cell.as_ref()?.get_ref();
    let mut heat = Heat {
        title: figure.title.clone(),
        label: figure.y.label.clone().unwrap_or_default(),
        columns: figure.column.iter().map(|c| c.label.clone()).collect(),
        ranges: figure.column.iter().map(|c| c.range.map(|[light, dark]| (light, dark))).collect(),
        beside: beside(figure).map(|(column, what)| (format!("{} ({})", heading(what), column.label), Vec::new())).collect(),
        ..Heat::default()
    };
    for row in &figure.row {
        // What was measured for a column of this row.
        let found = |column: &Column| {
            let (variant, name) = cell.names(row, column);
            let measured = all.iter().find(|m| m.variant.name == variant)?;
            let point = measured.variant.point(&name)?;
            Some((point, values(measured, point)))
        };
        let mut line = Vec::new();
        for column in &figure.column {
            line.push(found(column).and_then(|(point, found)| {
                if heat.label.is_empty() {
                    heat.label.clone_from(&point.metric);
                }
                chosen(figure, &point.metric, &found.iter().map(|(y, _)| *y).collect::<Vec<_>>())
            }));
        }
        heat.rows.push(row.label.clone());
        heat.values.push(line);
        for ((column, what), (_, texts)) in beside(figure).zip(&mut heat.beside) {
            let number_of = |m: &Measurement| match what {
                Beside::StateSize => m.state_size.map(|n| n as f64),
                Beside::Parameters => m.parameters.map(|n| n as f64),
                Beside::TokensPerSecond => m.tokens_per_second,
            };
            let numbers = found(column).map_or(Vec::new(), |(_, runs)| runs.iter().filter_map(|(_, m)| number_of(m)).collect());
            texts.push(median(numbers).map_or(String::new(), counted));
        }
    }
    if heat.values.iter().flatten().all(Option::is_none) {
        return None;
    }
    // Of the columns without a range of their own.
    let shared = |line: &Vec<Option<f64>>| {
        let own = line.iter().zip(&heat.ranges).filter(|(_, range)| range.is_none());
        own.filter_map(|(value, _)| *value).collect::<Vec<f64>>()
    };
    let found: Vec<f64> = heat.values.iter().flat_map(shared).collect();
    let low = figure.y.min.unwrap_or_else(|| found.iter().copied().fold(f64::INFINITY, f64::min));
    let high = figure.y.max.unwrap_or_else(|| found.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    heat.range = if low <= high { (low, high) } else { (0.0, 1.0) };
    Some(heat)
}

/// What stands beside the rows, with the column whose runs it is of.
fn beside(figure: &Figure) -> impl Iterator<Item = (&Column, Beside)> {
    figure.column.iter().flat_map(|column| column.beside.iter().map(move |what| (column, *what)))
}

fn heading(beside: Beside) -> &'static str {
    match beside {
        Beside::StateSize => "state size",
        Beside::Parameters => "parameters",
        Beside::TokensPerSecond => "tokens / s",
    }
}

/// A count for a person: `4096`, `16.4k`, `1.31M`.
fn counted(n: f64) -> String {
    match n {
        n if n < 10_000.0 => format!("{n:.0}"),
        n if n < 1e6 => format!("{}k", number(n / 1e3)),
        n => format!("{}M", number(n / 1e6)),
    }
}
