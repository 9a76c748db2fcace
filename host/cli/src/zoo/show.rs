//! How far all runs together are: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// Columns beside the bar.
const BESIDE: u16 = 60;
/// Parts of the bar; how far a run is, is a fraction.
const PARTS: u64 = 10_000;

/// What is shown of all runs together.
pub struct Show {
    bar: Option<ProgressBar>,
    began: Instant,
    /// What of each run was done when the command began, and is done now: from 0 to 1.
    first: Vec<f64>,
    done: Vec<f64>,
    /// What each run counts for: its expected time, or 1 where nothing is known.
    weights: Vec<f64>,
}

impl Show {
    /// Shows runs of which fractions are done, each with its weight; without a bar nothing but lines is printed.
    pub fn new(bar: bool, done: Vec<f64>, weights: Vec<f64>) -> Show {
        let bar = (bar && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(PARTS), ProgressDrawTarget::stderr_with_hz(5));
            let columns = console::Term::stderr().size_checked().map_or(80, |(_, columns)| columns);
            let width = columns.saturating_sub(BESIDE).clamp(8, 32);
            // What does not fit is cut off at the end: a bar never takes two lines.
            if let Ok(style) = ProgressStyle::with_template(&format!("{{bar:{width}}} {{percent}} %  {{wide_msg}}")) {
                bar.set_style(style);
            }
            bar
        });
        Show { bar, began: Instant::now(), first: done.clone(), done, weights }
    }

    /// How far a run is, from 0 to 1; shown with the next [`tick`](Self::tick).
    pub fn set(&mut self, number: usize, done: f64) {
        if let Some(place) = self.done.get_mut(number) {
            *place = done.clamp(0.0, 1.0);
        }
    }

    /// Brings the bar up to date. Beside it stand how much is done, the time that is left, and what runs, which may be cut off.
    pub fn tick(&self, done: &str, running: &str) {
        let Some(bar) = &self.bar else { return };
        let sum = |done: &[f64]| done.iter().zip(&self.weights).map(|(d, w)| d * w).sum::<f64>();
        let (all, now, first) = (self.weights.iter().sum::<f64>(), sum(&self.done), sum(&self.first));
        bar.set_position((now / all.max(f64::MIN_POSITIVE) * PARTS as f64) as u64);
        let left = (now > first).then(|| self.began.elapsed().as_secs_f64() * (all - now) / (now - first));
        let left = left.map_or(String::new(), |seconds| format!(", about {} left", time(seconds)));
        bar.set_message(format!("{done}{left}; {running}"));
    }

    /// Prints a line of the answer on stdout, above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            // A failure to print is met again at the end.
            Some(bar) => bar.suspend(|| _ = output::print(&format!("{text}\n"))),
            None => _ = output::print(&format!("{text}\n")),
        }
    }

    /// Says something on stderr, above the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::say(text)),
            None => output::say(text),
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A time for a person: `45 s`, `12 min`, `3 h 20 min`.
pub fn time(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..100 => format!("{whole} s"),
        100..5940 => format!("{} min", (whole + 30) / 60),
        _ => format!("{} h {:02} min", (whole + 30) / 3600, (whole + 30) / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_readable() {
        for (seconds, text) in [(0.2, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (5900.0, "98 min"), (12_000.0, "3 h 20 min")] {
            assert_eq!(time(seconds), text);
        }
    }
}
