//! Lines and points between two axes, with a legend beside them that never lies over the data.

use super::axis::{Axis, Tick};
use super::font;
use super::svg::{Anchor, Picture, Stroke};

/// Colours that differ for every kind of sight, dark enough for lines on white (Okabe and Ito 2008, without yellow; two of
/// Paul Tol's behind them).
const COLOURS: [&str; 9] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#882255", "#999933"];

/// What stands for published values in the legend.
const GREY: &str = "#555555";
const AXIS: &str = "#333333";
const GRID: &str = "#E4E4E4";
const TEXT: f64 = 12.0;
const TITLE: f64 = 14.0;
const BLACK: &str = "#000000";
const WHITE: &str = "#FFFFFF";
/// Of what was published.
const DASH: (f64, f64) = (5.0, 3.0);
/// Of a guide.
const DOTS: (f64, f64) = (2.0, 3.0);
/// The plot itself, without what is written around it.
const SIZE: (f64, f64) = (440.0, 300.0);
const RADIUS: f64 = 3.6;

/// A place on the plot with the range of what it stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dot {
    pub x: f64,
    pub y: f64,
    /// The least and the greatest value.
    pub range: (f64, f64),
}

/// What belongs together under one name.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// The name.
    pub label: String,
    /// What was measured.
    pub measured: Vec<Dot>,
    /// Values of x at which nothing was measured yet: no line leads over them.
    pub missing: Vec<f64>,
    /// What was published, x and y.
    pub published: Vec<(f64, f64)>,
    /// Curves without marks, one a run.
    pub curves: Vec<Vec<(f64, f64)>>,
}

/// All that is drawn.
#[derive(Clone, Debug)]
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    /// Whether ticks stand at the measured values of x where they can be read.
    pub ticks_at_values: bool,
    /// A value of y that means something, with a name.
    pub guide: Option<(f64, String)>,
    pub series: Vec<Series>,
}

/// The frame of the plot: from values to places.
struct Frame<'a> {
    left: f64,
    top: f64,
    plot: &'a Plot,
}

impl Frame<'_> {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        // Far outside is as good as further outside, and keeps the numbers of the document small.
        let place = |axis: &Axis, v: f64| axis.place(v).clamp(-0.5, 1.5);
        (self.left + place(&self.plot.x, x) * SIZE.0, self.top + (1.0 - place(&self.plot.y, y)) * SIZE.1)
    }
}

/// Draws a plot.
pub fn draw(plot: &Plot) -> Picture {
    let of_series = |s: &Series| s.measured.iter().map(|d| d.x).chain(s.published.iter().map(|p| p.0)).collect::<Vec<f64>>();
    let xs: Vec<f64> = plot.series.iter().flat_map(of_series).collect();
    let x_ticks = if plot.ticks_at_values { plot.x.ticks_at(&xs, SIZE.0, TEXT) } else { plot.x.ticks() };
    let y_ticks = plot.y.ticks();
    let labels = y_ticks.iter().map(|t| font::width(&t.label, TEXT)).fold(0.0, f64::max);
    let frame = Frame { left: labels + 3.4 * TEXT, top: 2.6 * TEXT, plot };
    let legend = Legend::of(plot);
    let last = x_ticks.last().map_or(0.0, |t| font::width(&t.label, TEXT) / 2.0);
    let width = (frame.left + SIZE.0 + legend.width.max(last + 4.0)).max(frame.left + font::width(&plot.title, TITLE) + 8.0);
    let height = frame.top + SIZE.1.max(legend.height) + 4.2 * TEXT;
    let mut picture = Picture::new(&plot.title, width, height);
    axes(&mut picture, &frame, &x_ticks, &y_ticks);
    picture.clipped(
        (frame.left - RADIUS - 1.0, frame.top - RADIUS - 1.0),
        (SIZE.0 + 2.0 * RADIUS + 2.0, SIZE.1 + 2.0 * RADIUS + 2.0),
        |picture| {
            if let Some((value, _)) = &plot.guide {
                let (from, to) = (frame.at(plot.x.min, *value), frame.at(plot.x.max, *value));
                picture.line(from, to, Stroke::dashed(GREY, 1.0, DOTS));
            }
            // What was published lies below what was measured.
            for (i, series) in plot.series.iter().enumerate() {
                published(picture, &frame, series, i);
            }
            for (i, series) in plot.series.iter().enumerate() {
                measured(picture, &frame, series, i);
            }
        },
    );
    legend.draw(&mut picture, &frame);
    picture
}

fn axes(picture: &mut Picture, frame: &Frame<'_>, x_ticks: &[Tick], y_ticks: &[Tick]) {
    let (left, top) = (frame.left, frame.top);
    let (right, bottom) = (left + SIZE.0, top + SIZE.1);
    let plot = frame.plot;
    picture.text((left, top - 0.9 * TEXT), &plot.title, TITLE, Anchor::Start, BLACK);
    for tick in y_ticks {
        let (_, y) = frame.at(plot.x.min, tick.value);
        let whole = !tick.label.is_empty();
        if whole {
            picture.line((left, y), (right, y), Stroke::solid(GRID, 1.0));
            picture.text((left - 7.0, y + 0.35 * TEXT), &tick.label, TEXT, Anchor::End, AXIS);
        }
        picture.line((left - if whole { 5.0 } else { 3.0 }, y), (left, y), Stroke::solid(AXIS, 1.0));
    }
    for tick in x_ticks {
        let (x, _) = frame.at(tick.value, plot.y.min);
        let whole = !tick.label.is_empty();
        if whole {
            picture.line((x, top), (x, bottom), Stroke::solid(GRID, 1.0));
            picture.text((x, bottom + 1.5 * TEXT), &tick.label, TEXT, Anchor::Middle, AXIS);
        }
        picture.line((x, bottom), (x, bottom + if whole { 5.0 } else { 3.0 }), Stroke::solid(AXIS, 1.0));
    }
    picture.line((left, top), (left, bottom), Stroke::solid(AXIS, 1.0));
    picture.line((left, bottom), (right, bottom), Stroke::solid(AXIS, 1.0));
    picture.text((left + SIZE.0 / 2.0, bottom + 3.1 * TEXT), &plot.x.label, TEXT, Anchor::Middle, BLACK);
    picture.turned((1.3 * TEXT, top + SIZE.1 / 2.0), &plot.y.label, TEXT, Anchor::Middle, BLACK, -90.0);
}

fn colour(series: usize) -> &'static str {
    COLOURS[series % COLOURS.len()]
}

fn published(picture: &mut Picture, frame: &Frame<'_>, series: &Series, number: usize) {
    let points: Vec<(f64, f64)> = series.published.iter().map(|(x, y)| frame.at(*x, *y)).collect();
    if points.len() > 1 {
        picture.polyline(points.clone(), Stroke { opacity: 0.75, ..Stroke::dashed(colour(number), 1.3, DASH) });
    }
    for at in points {
        mark(picture, at, number, true);
    }
}

fn measured(picture: &mut Picture, frame: &Frame<'_>, series: &Series, number: usize) {
    for curve in &series.curves {
        let points = curve.iter().map(|(x, y)| frame.at(*x, *y)).collect();
        picture.polyline(points, Stroke { opacity: 0.85, ..Stroke::solid(colour(number), 1.5) });
    }
    let points: Vec<(f64, f64)> = series.measured.iter().map(|d| frame.at(d.x, d.y)).collect();
    let over_a_gap = |pair: &[Dot]| series.missing.iter().any(|x| pair[0].x < *x && *x < pair[1].x);
    let mut begin = 0;
    for end in 1..=points.len() {
        if end == points.len() || over_a_gap(&series.measured[end - 1..=end]) {
            if end - begin > 1 {
                picture.polyline(points[begin..end].to_vec(), Stroke::solid(colour(number), 1.8));
            }
            begin = end;
        }
    }
    let bar = Stroke::solid(colour(number), 1.2);
    for dot in &series.measured {
        if dot.range.0 < dot.range.1 {
            let (low, high) = (frame.at(dot.x, dot.range.0), frame.at(dot.x, dot.range.1));
            picture.line(low, high, bar);
            for end in [low, high] {
                picture.line((end.0 - 3.0, end.1), (end.0 + 3.0, end.1), bar);
            }
        }
    }
    for at in points {
        mark(picture, at, number, false);
    }
}

/// The mark of a series: its shape tells it apart where colours do not. Hollow ones are published.
fn mark(picture: &mut Picture, at: (f64, f64), series: usize, hollow: bool) {
    let (stroke, fill) = (Stroke::solid(colour(series), 1.2), if hollow { WHITE } else { colour(series) });
    // Corners of a shape about as large as the circle, in its radius.
    let corners: &[(f64, f64)] = match (series + series / COLOURS.len()) % 5 {
        0 => return picture.circle(at, RADIUS, fill, stroke),
        1 => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2 => &[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        3 => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
        _ => &[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    };
    picture.polygon(corners.iter().map(|(x, y)| (at.0 + RADIUS * x, at.1 + RADIUS * y)).collect(), fill, Some(stroke));
}

/// What stands for what, to the right of the plot.
struct Legend {
    rows: Vec<Row>,
    width: f64,
    height: f64,
}

enum Row {
    /// A series: its number and name.
    Series(usize, String, Sample),
    Published,
    Guide(String),
}

/// What stands before the name of a series.
#[derive(Clone, Copy)]
enum Sample {
    /// A line with a mark.
    Measured,
    /// A dashed line with a hollow mark: only what was published is there.
    Published,
    /// A line.
    Curve,
    /// Nothing is drawn of it.
    Nothing,
}

impl Sample {
    fn of(series: &Series) -> Sample {
        match series {
            s if !s.measured.is_empty() => Sample::Measured,
            s if !s.curves.is_empty() => Sample::Curve,
            s if !s.published.is_empty() => Sample::Published,
            _ => Sample::Nothing,
        }
    }
}

const ROW: f64 = 1.65 * TEXT;
/// Room for a piece of line.
const SAMPLE: f64 = 30.0;
/// The widest text.
const WIDEST: f64 = 230.0;

impl Legend {
    fn of(plot: &Plot) -> Legend {
        let name = |text: &str| font::fitted(text, TEXT, WIDEST);
        let series = plot.series.iter().enumerate();
        let mut rows: Vec<Row> = series.map(|(i, s)| Row::Series(i, name(&s.label), Sample::of(s))).collect();
        if plot.series.iter().any(|s| !s.published.is_empty()) {
            rows.push(Row::Published);
        }
        if let Some((_, label)) = plot.guide.as_ref().filter(|(_, label)| !label.is_empty()) {
            rows.push(Row::Guide(name(label)));
        }
        let text = |row: &Row| match row {
            Row::Series(_, text, _) | Row::Guide(text) => font::width(text, TEXT),
            Row::Published => font::width(PUBLISHED, TEXT),
        };
        let widest = rows.iter().map(text).fold(0.0, f64::max);
        Legend { width: 16.0 + SAMPLE + 6.0 + widest + 8.0, height: rows.len() as f64 * ROW, rows }
    }

    fn draw(&self, picture: &mut Picture, frame: &Frame<'_>) {
        let left = frame.left + SIZE.0 + 16.0;
        for (i, row) in self.rows.iter().enumerate() {
            let y = frame.top + (i as f64 + 0.5) * ROW;
            let (from, to, middle) = ((left, y), (left + SAMPLE, y), (left + SAMPLE / 2.0, y));
            let text = match row {
                Row::Series(series, text, sample) => {
                    let (line, dashes) = (Stroke::solid(colour(*series), 1.8), Stroke::dashed(colour(*series), 1.3, DASH));
                    match sample {
                        Sample::Measured | Sample::Curve => picture.line(from, to, line),
                        Sample::Published => picture.line(from, to, dashes),
                        Sample::Nothing => {}
                    }
                    if let Sample::Measured | Sample::Published = sample {
                        mark(picture, middle, *series, matches!(sample, Sample::Published));
                    }
                    text
                }
                Row::Published => {
                    picture.line(from, to, Stroke::dashed(GREY, 1.3, DASH));
                    picture.circle(middle, RADIUS, WHITE, Stroke::solid(GREY, 1.2));
                    PUBLISHED
                }
                Row::Guide(text) => {
                    picture.line(from, to, Stroke::dashed(GREY, 1.0, DOTS));
                    text
                }
            };
            picture.text((left + SAMPLE + 6.0, y + 0.35 * TEXT), text, TEXT, Anchor::Start, BLACK);
        }
    }
}

const PUBLISHED: &str = "published";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_leads_over_what_was_not_measured() {
        let dot = |x: f64| Dot { x, y: 1.0, range: (0.5, 2.0) };
        let axis = |label: &str| Axis::around(label, false, [0.0, 5.0].into_iter(), None, None);
        let lines = |missing: Vec<f64>| {
            let series = Series { measured: [1.0, 2.0, 3.0, 4.0].map(dot).into(), missing, ..Series::default() };
            let plot =
                Plot { title: "t".into(), x: axis("x"), y: axis("y"), ticks_at_values: true, guide: None, series: vec![series] };
            let svg = draw(&plot).svg();
            let lines = svg.lines().filter(|l| l.starts_with("<polyline") && l.contains(r#"stroke-width="1.8""#));
            lines.map(|l| l.matches(',').count()).collect::<Vec<_>>()
        };
        // The last is the piece of line in the legend.
        assert_eq!(lines(vec![]), [4, 2]);
        assert_eq!(lines(vec![2.5]), [2, 2, 2]);
        assert_eq!(lines(vec![1.5, 0.5, 9.0]), [3, 2]);
    }
}
