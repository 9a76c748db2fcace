//! A matrix of values as coloured cells with their numbers, and columns of text beside it.

use std::fmt::Write;

use super::font;
use super::svg::{Anchor, Picture, Stroke};
use crate::table::number;

const TEXT: f64 = 12.0;
const TITLE: f64 = 14.0;
/// From one line to the next, in heights of letters.
const LINE: f64 = 1.3;
const CELL: (f64, f64) = (54.0, 25.0);
const BLACK: &str = "#000000";
const GREY: &str = "#333333";
/// Between cells.
const BORDER: Stroke = Stroke::solid("#FFFFFF", 1.0);
/// Degrees by which headings are turned to the right.
const RISE: f64 = -40.0;

/// White to dark blue, even in lightness (after ColorBrewer's Blues).
const COLOURS: [(f64, f64, f64); 6] = [
    (247.0, 251.0, 255.0),
    (210.0, 227.0, 243.0),
    (154.0, 200.0, 225.0),
    (82.0, 157.0, 204.0),
    (28.0, 108.0, 177.0),
    (8.0, 48.0, 107.0),
];

/// A matrix of values.
#[derive(Clone, Debug, Default)]
pub struct Heat {
    pub title: String,
    /// What the values are.
    pub label: String,
    pub rows: Vec<String>,
    pub columns: Vec<String>,
    /// By row and column; nothing where nothing was measured.
    pub values: Vec<Vec<Option<f64>>>,
    /// The values of the lightest and the darkest colour.
    pub range: (f64, f64),
    /// The same of columns that have their own.
    pub ranges: Vec<Option<(f64, f64)>>,
    /// Columns of text behind the cells: a heading, and a text for each row.
    pub beside: Vec<(String, Vec<String>)>,
}

impl Heat {
    /// The matrix as a table of Markdown.
    pub fn table(&self) -> String {
        let beside: Vec<&str> = self.beside.iter().map(|(heading, _)| heading.as_str()).collect();
        let mut text = format!("| {} |", self.label);
        self.columns.iter().map(String::as_str).chain(beside).for_each(|c| _ = write!(text, " {c} |"));
        text += "\n|---|";
        text += &"---|".repeat(self.columns.len() + self.beside.len());
        text.push('\n');
        for (i, row) in self.rows.iter().enumerate() {
            _ = write!(text, "| {row} |");
            for j in 0..self.columns.len() {
                _ = write!(text, " {} |", self.value(i, j).map_or(String::new(), |v| written(v, self.range_of(j))));
            }
            for (_, texts) in &self.beside {
                _ = write!(text, " {} |", texts.get(i).map_or("", String::as_str));
            }
            text.push('\n');
        }
        text
    }

    /// The ranges that the colours stand for, with what each is of: the heat map's own first, then those that columns have.
    fn scales(&self) -> Vec<((f64, f64), String)> {
        let mut scales = vec![(self.range, self.label.clone())];
        for (column, range) in self.columns.iter().zip(&self.ranges) {
            let Some(range) = *range else { continue };
            match scales[1..].iter_mut().find(|(known, _)| *known == range) {
                Some((_, label)) => *label += &format!(", {column}"),
                None => scales.push((range, column.clone())),
            }
        }
        scales
    }

    fn range_of(&self, column: usize) -> (f64, f64) {
        self.ranges.get(column).copied().flatten().unwrap_or(self.range)
    }

    fn value(&self, row: usize, column: usize) -> Option<f64> {
        self.values.get(row)?.get(column).copied().flatten()
    }
}

/// A value in a cell: two places, or three digits where it is larger. Where less is better, small values differ by their size.
fn written(value: f64, (light, dark): (f64, f64)) -> String {
    if light > dark && value != 0.0 && value.abs() < 0.01 {
        return format!("{value:.1e}");
    }
    if value.abs() >= 9.995 {
        return number(value);
    }
    let text = format!("{value:.2}");
    if text == "-0.00" { "0.00".into() } else { text }
}

/// Draws a matrix.
pub fn draw(heat: &Heat) -> Picture {
    let widest = |texts: &[String]| texts.iter().map(|t| font::width(t, TEXT)).fold(0.0, f64::max);
    let left = widest(&heat.rows) + 18.0;
    // Headings rise to the right, at 40 degrees.
    let headings: Vec<String> = heat.columns.iter().cloned().chain(heat.beside.iter().map(|(h, _)| h.clone())).collect();
    let rise = widest(&headings) * 0.643 + 14.0;
    let top = 2.4 * TEXT + rise;
    let (columns, rows) = (heat.columns.len() as f64, heat.rows.len() as f64);
    let (right, bottom) = (left + columns * CELL.0, top + rows * CELL.1);
    let beside: Vec<f64> = heat.beside.iter().map(|(_, texts)| widest(texts).max(30.0) + 16.0).collect();
    let last = headings.last().map_or(0.0, |h| font::width(h, TEXT) * 0.766);
    let width = right + beside.iter().sum::<f64>() + last.max(12.0);
    let width = width.max(font::width(&heat.title, TITLE) + 20.0);
    let height = bottom + (4.6 + LINE * (heat.scales().len() - 1) as f64) * TEXT;
    let mut picture = Picture::new(&heat.title, width, height);
    picture.text((10.0, 1.5 * TEXT), &heat.title, TITLE, Anchor::Start, BLACK);
    for (j, column) in heat.columns.iter().enumerate() {
        picture.turned((left + (j as f64 + 0.45) * CELL.0, top - 6.0), column, TEXT, Anchor::Start, BLACK, RISE);
    }
    for (i, row) in heat.rows.iter().enumerate() {
        let y = top + i as f64 * CELL.1;
        picture.text((left - 8.0, y + CELL.1 / 2.0 + 0.35 * TEXT), row, TEXT, Anchor::End, BLACK);
        for j in 0..heat.columns.len() {
            cell(&mut picture, heat.range_of(j), heat.value(i, j), (left + j as f64 * CELL.0, y));
        }
    }
    let mut x = right;
    for ((heading, texts), width) in heat.beside.iter().zip(&beside) {
        picture.turned((x + width * 0.55, top - 6.0), heading, TEXT, Anchor::Start, GREY, RISE);
        x += width;
        for (i, text) in texts.iter().enumerate() {
            let y = top + (i as f64 + 0.5) * CELL.1 + 0.35 * TEXT;
            picture.text((x - 4.0, y), text, TEXT, Anchor::End, GREY);
        }
    }
    scale(&mut picture, heat, (left, bottom + 1.3 * TEXT));
    picture
}

fn cell(picture: &mut Picture, range: (f64, f64), value: Option<f64>, at: (f64, f64)) {
    let Some(value) = value else {
        picture.rect(at, CELL, "#F4F4F4", Some(BORDER));
        picture.text((at.0 + CELL.0 / 2.0, at.1 + CELL.1 / 2.0 + 0.35 * TEXT), "–", TEXT, Anchor::Middle, "#999999");
        return;
    };
    let (fill, dark) = colour(part(range, value));
    picture.rect(at, CELL, fill, Some(BORDER));
    let ink = if dark { "#FFFFFF" } else { BLACK };
    picture.text((at.0 + CELL.0 / 2.0, at.1 + CELL.1 / 2.0 + 0.35 * TEXT), &written(value, range), TEXT, Anchor::Middle, ink);
}

/// What the colours mean.
fn scale(picture: &mut Picture, heat: &Heat, at: (f64, f64)) {
    const STEPS: usize = 40;
    const LENGTH: f64 = 160.0;
    for i in 0..STEPS {
        let x = at.0 + LENGTH * i as f64 / STEPS as f64;
        let (fill, _) = colour(i as f64 / (STEPS - 1) as f64);
        // A little wider than its step, so that no seam is seen.
        picture.rect((x, at.1), (LENGTH / STEPS as f64 + 0.5, 10.0), fill, None);
    }
    for (k, ((from, to), label)) in heat.scales().into_iter().enumerate() {
        let y = at.1 + 10.0 + (1.2 + k as f64 * LINE) * TEXT;
        picture.text((at.0, y), &written(from, (from, to)), 0.9 * TEXT, Anchor::Start, GREY);
        picture.text((at.0 + LENGTH, y), &written(to, (from, to)), 0.9 * TEXT, Anchor::End, GREY);
        picture.text((at.0 + LENGTH + 10.0, y), &label, 0.9 * TEXT, Anchor::Start, BLACK);
    }
}

/// Where a value lies between the lightest and the darkest; the darkest may be the lesser one.
fn part((light, dark): (f64, f64), value: f64) -> f64 {
    if dark == light { 0.0 } else { ((value - light) / (dark - light)).clamp(0.0, 1.0) }
}

/// A colour, and whether it needs white ink.
fn colour(part: f64) -> (String, bool) {
    let place = part.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let below = (place.floor() as usize).min(COLOURS.len() - 2);
    let between = place - below as f64;
    let (a, b) = (COLOURS[below], COLOURS[below + 1]);
    let mix = |a: f64, b: f64| a + (b - a) * between;
    let (red, green, blue) = (mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2));
    let light = (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255.0;
    (format!("#{:02X}{:02X}{:02X}", red.round() as u8, green.round() as u8, blue.round() as u8), light < 0.55)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_run_from_light_to_dark_and_numbers_stay_readable() {
        assert_eq!(colour(0.0), ("#F7FBFF".into(), false));
        assert_eq!(colour(1.0), ("#08306B".into(), true));
        assert_eq!(colour(7.0), colour(1.0));
        assert!(!colour(0.3).1 && colour(0.8).1);
    }

    #[test]
    fn the_table_says_what_the_cells_say() {
        let heat = Heat {
            title: "T".into(),
            label: "rule".into(),
            rows: vec!["delta".into(), "additive".into(), "none".into()],
            columns: vec!["parity".into(), "S3".into()],
            values: vec![vec![Some(0.996), Some(0.00083)], vec![Some(-0.001), Some(720.15)], vec![Some(0.004), None]],
            range: (0.0, 1.0),
            ranges: vec![None, Some((0.5, 0.0))],
            beside: vec![("state".into(), vec!["4 096".into(), String::new(), String::new()])],
        };
        let table = heat.table();
        // Where less is better, a success is told from what only looks like one.
        let wanted = "| rule | parity | S3 | state |\n|---|---|---|---|\n| delta | 1.00 | 8.3e-4 | 4 096 |\n| additive | 0.00 | 720 |  |\n| none | 0.00 |  |  |\n";
        assert_eq!(table, wanted);
        let svg = draw(&heat).svg();
        assert_eq!(
            (part((0.5, 0.0), 0.0), part((0.5, 0.0), 0.9), part((0.0, 1.0), 0.25), part((1.0, 1.0), 1.0)),
            (1.0, 0.0, 0.25, 0.0)
        );
        assert!(svg.contains(">1.00<") && svg.contains(">–<") && svg.contains(">parity<"));
        // The scale says what its ends are in columns with a range of their own.
        assert_eq!(heat.scales(), [((0.0, 1.0), "rule".into()), ((0.5, 0.0), "S3".into())]);
        assert!(svg.contains(">0.50<"));
    }
}
