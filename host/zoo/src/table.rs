//! The document with all tables: measured beside published, for every paper and variant.

use std::fmt::Write;

use crate::paper::{Paper, grouped};
use crate::points::Point;
use crate::results::{Measurement, quoted};
use crate::run::Ended;
use crate::variant::Variant;
use crate::verdict::{Judgement, Verdict, judge};

/// A variant with the measurements that count.
#[derive(Debug)]
pub struct Measured {
    /// The variant.
    pub variant: Variant,
    /// What was measured, in the order of its points.
    pub measurements: Vec<Measurement>,
}

impl Measured {
    /// The measurements of a point, by seed.
    pub fn of(&self, point: &Point) -> Vec<&Measurement> {
        self.measurements.iter().filter(|m| m.point == point.name).collect()
    }

    /// The verdict of a point.
    pub fn judge(&self, point: &Point) -> Judgement {
        let values: Vec<Option<f64>> = self.of(point).iter().map(|m| m.value_of(point)).collect();
        judge(point, &values)
    }

    /// How many points have which verdict, in the order of [`Verdict::ALL`].
    pub fn counts(&self) -> [usize; 5] {
        let verdicts: Vec<Verdict> = self.variant.points.iter().map(|p| self.judge(p).verdict).collect();
        Verdict::ALL.map(|wanted| verdicts.iter().filter(|v| **v == wanted).count())
    }
}

/// A figure as the document shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The name of its files.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// What the paper is, and whatever else has to be said.
    pub caption: String,
    /// The same as a table, where the figure is one.
    pub table: Option<String>,
}

const OPENING: &str = "\
# Results

What was measured with the recipes of the [zoo](../zoo), beside what was published.
Written by `fwp-host zoo results` from `zoo/NAME/results.json`; do not edit it by hand.
Nothing stands here that was not measured: a point without a run is *not run*.

The value of a run is its best evaluation, or its last one where `points.toml` says so; values are in the order of the seeds, and a dash is a seed that was not run.
*Reproduced* means that enough seeds (the column \"expected\" says how many) are within the bounds, *better than published* that a published failure did not come, and *reported* that there are no bounds.
Where nothing was published it is *as expected* in the place of *reproduced*; the counts below hold both.
Times are of training alone, without evaluation, on the machine that is named.
[zoo.md](zoo.md) says how runs are started and collected.
";

/// The whole document.
pub fn document(all: Vec<Measured>, figures: &[Shown]) -> String {
    let groups = grouped(all.into_iter().map(|m| (m.variant.paper(), m)).collect());
    let mut text = OPENING.to_string();
    text += &summary(&groups);
    if !figures.is_empty() {
        text += "\n## Figures\n";
    }
    for figure in figures {
        _ = write!(text, "\n### {}\n\n![{}](figures/{}.svg)\n\n{}\n", figure.title, figure.title, figure.name, figure.caption);
        if let Some(table) = &figure.table {
            _ = write!(text, "\n{table}");
        }
    }
    for (paper, variants) in &groups {
        _ = write!(text, "\n## {}\n", cell(&paper.title()));
        for measured in variants {
            text += &section(measured);
        }
    }
    text
}

/// How many points of each paper have which verdict.
fn summary(groups: &[(Paper, Vec<Measured>)]) -> String {
    let mut text = String::from("\n| paper | points |");
    Verdict::ALL.iter().for_each(|v| _ = write!(text, " {} |", v.name()));
    text += "\n|---|---|---|---|---|---|---|\n";
    for (paper, variants) in groups {
        let mut sums = [0; 5];
        for counts in variants.iter().map(Measured::counts) {
            sums.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
        _ = write!(text, "| {} | {} |", cell(&paper.title()), sums.iter().sum::<usize>());
        sums.iter().for_each(|n| _ = write!(text, " {n} |"));
        text.push('\n');
    }
    text
}

/// The points of one variant.
fn section(measured: &Measured) -> String {
    let variant = &measured.variant;
    let mut text = format!("\n### [{0}](../zoo/{0})\n\n", variant.name);
    let recipe = &variant.recipe;
    if let Some(title) = &recipe.title {
        _ = writeln!(text, "{}.", cell(title).trim_end_matches('.'));
    }
    let changes = if variant.points.iter().any(|p| !p.set.is_empty()) { " CHANGE" } else { "" };
    let data = if variant.reads_data() { " --data TEXT" } else { "" };
    _ = writeln!(text, "`fwp-host train --recipe zoo/{}{changes}{data} --seed SEED`", variant.name);
    let said = |of: &dyn Fn(&Measurement) -> Option<&String>| {
        let mut list: Vec<&String> = measured.measurements.iter().filter_map(of).collect();
        list.sort();
        list.dedup();
        list.iter().map(|s| cell(s)).collect::<Vec<_>>().join("; ")
    };
    let (machine, executor) = (said(&|m| m.machine.as_ref()), said(&|m| m.executor.as_ref()));
    let ran = [machine, executor].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("; ");
    if !ran.is_empty() {
        _ = writeln!(text, "Ran on: {ran}.");
    }
    let seeds = |p: &Point| p.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let same = variant.points.windows(2).all(|p| p[0].seeds == p[1].seeds);
    let heading = if same { format!("seeds {}", seeds(&variant.points[0])) } else { "by seed".into() };
    let metrics: Vec<&str> = variant.points.iter().map(|p| p.metric.as_str()).collect();
    let one_metric = metrics.windows(2).all(|m| m[0] == m[1]);
    let metric = if one_metric { format!("`{}`, {heading}", metrics[0]) } else { heading };
    _ = write!(text, "\n| point | change | published | expected | {metric} | verdict | seconds | commit | date |\n");
    text += "|---|---|---|---|---|---|---|---|---|\n";
    for point in &variant.points {
        let runs = measured.of(point);
        let mut values = values(point, &runs);
        if !same && !runs.is_empty() {
            values = format!("{values} (seeds {})", seeds(point));
        }
        if !one_metric {
            values = format!("{values} (`{}`)", point.metric);
        }
        let name = match &point.note {
            Some(note) => format!("{}<br>{}", point.name, cell(note)),
            None => point.name.clone(),
        };
        let changes: Vec<String> = point.set.iter().map(|s| format!("`--set {}`", quoted(s).replace('|', "\\|"))).collect();
        _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {values} | {} | {} | {} | {} |",
            changes.join(" "),
            point.published.map_or(String::new(), exact),
            expected(point),
            measured.judge(point).text(point),
            median(runs.iter().filter_map(|m| m.seconds).collect()).map_or(String::new(), duration),
            distinct(runs.iter().filter_map(|m| m.commit.as_deref())),
            distinct(runs.iter().map(|m| m.day())),
        );
    }
    text
}

/// The values of a point in the order of its seeds.
fn values(point: &Point, runs: &[&Measurement]) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let one = |seed: &u64| match runs.iter().find(|m| m.seed == *seed) {
        None => "–".into(),
        Some(m) => {
            let value = m.value_of(point).map_or("NaN".into(), number);
            if m.ended == Ended::NotFinite { format!("{value} (not finite at step {})", m.steps) } else { value }
        }
    };
    point.seeds.iter().map(one).collect::<Vec<String>>().join(", ")
}

/// The bounds of a point, and how many seeds must be within.
fn expected(point: &Point) -> String {
    let bounds = match (point.at_least, point.at_most) {
        (Some(least), Some(most)) => format!("{} to {}", exact(least), exact(most)),
        (Some(least), None) => format!("≥ {}", exact(least)),
        (None, Some(most)) => format!("≤ {}", exact(most)),
        (None, None) => return String::new(),
    };
    match point.seeds.len() {
        1 => bounds,
        // So few seeds that do not fail are no success yet.
        n if point.is_failure() => format!("{bounds}, {} of {n}", point.needed.max(n + 1 - point.needed)),
        n => format!("{bounds}, {} of {n}", point.needed),
    }
}

/// The median; of an even number the upper one of the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A measured number, with three digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e5).contains(&size) {
        return format!("{value:.2e}");
    }
    let before = size.log10().floor() as i32 + 1;
    format!("{value:.*}", usize::try_from(3 - before).unwrap_or_default())
}

/// A number as somebody wrote it.
fn exact(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 { format!("{value:e}") } else { value.to_string() }
}

/// A time for a person.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => number(s),
        s => s.round().to_string(),
    }
}

fn distinct<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut found: Vec<&str> = Vec::new();
    texts.for_each(|t| {
        if !found.contains(&t) {
            found.push(t);
        }
    });
    found.join(", ")
}

/// Text of a file in a cell or a heading of Markdown.
fn cell(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            '|' | '<' | '*' | '_' | '`' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.000783, "7.83e-4"),
            (0.0245, "0.0245"),
            (0.5, "0.500"),
            (1.81, "1.81"),
            (60.813, "60.8"),
            (99.99, "100.0"),
            (12345.6, "12346"),
            (-3.5, "-3.50"),
            (123456.0, "1.23e5"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!((exact(0.00079), exact(0.00001), exact(1.0)), ("0.00079".into(), "1e-5".into(), "1".into()));
        assert_eq!((duration(1.234), duration(1234.5)), ("1.23".into(), "1235".into()));
    }

    #[test]
    fn text_of_a_recipe_stays_text() {
        assert_eq!(cell("a|b\nc_d <x>"), "a\\|b c\\_d \\<x>");
    }

    #[test]
    fn the_median_is_a_measured_value() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![1.0, 2.0]), median(vec![])), (Some(2.0), Some(2.0), None));
    }
}
