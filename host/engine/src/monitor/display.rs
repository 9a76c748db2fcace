//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a plain line is printed when nothing else asks for one.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Columns of the label that a line such as `task       text ...` begins with.
const LABEL: usize = 11;
/// Columns of a terminal that does not say.
const COLUMNS: usize = 80;
/// Columns beside the bar: step, loss, evaluation, speed and time left.
const BESIDE_BAR: usize = 68;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// A bar when stderr is a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// Plain lines.
    Plain,
    /// Nothing but warnings.
    None,
}

impl FromStr for Progress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "plain" => Ok(Self::Plain),
            "none" => Ok(Self::None),
            other => Err(format!("progress is auto, plain or none, not {other:?}")),
        }
    }
}

/// What is shown, and the newest values.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    lines: bool,
    total: u64,
    first: u64,
    evaluate_every: u64,
    started: Instant,
    printed: Option<Instant>,
    newest: Newest,
}

#[derive(Default, Clone)]
struct Newest {
    step: u64,
    loss: Option<f64>,
    eval: Option<f64>,
    speed: Option<f64>,
}

impl Display {
    pub(super) fn new(progress: Progress, total: u64, first: u64, evaluate_every: u64) -> Self {
        let terminal = progress == Progress::Auto && std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
            let bar_columns = columns().saturating_sub(BESIDE_BAR).clamp(8, 32);
            // What does not fit is cut off at the end: a bar never takes two lines.
            if let Ok(style) = ProgressStyle::with_template(&format!("{{bar:{bar_columns}}} {{pos}}/{{len}}  {{wide_msg}}")) {
                bar.set_style(style);
            }
            bar.set_position(first);
            bar
        });
        Self {
            lines: !terminal && progress != Progress::None,
            bar,
            total,
            first,
            evaluate_every,
            started: Instant::now(),
            printed: None,
            newest: Newest { step: first, ..Newest::default() },
        }
    }

    pub(super) fn update(&mut self, step: u64, values: &[(String, f64)]) {
        let mut evaluated = false;
        self.newest.step = step;
        for (name, value) in values {
            match name.as_str() {
                "train/loss" => self.newest.loss = Some(*value),
                "train/tokens_per_second" => self.newest.speed = Some(*value),
                "eval/loss" => {
                    self.newest.eval = Some(*value);
                    evaluated = true;
                }
                _ => {}
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(tail(&self.newest, self.remaining()));
        }
        if self.lines && self.is_due(step, evaluated) {
            self.printed = Some(Instant::now());
            put(&format!("step {step}/{}  {}", self.total, tail(&self.newest, self.remaining())));
        }
    }

    /// Whether a plain line is printed now; where an evaluation of this very step follows, it is printed then, once for both.
    fn is_due(&self, step: u64, evaluated: bool) -> bool {
        let follows = step >= self.total || (self.evaluate_every > 0 && step.is_multiple_of(self.evaluate_every));
        evaluated || (!follows && self.printed.is_none_or(|at| at.elapsed() >= LINE_EVERY))
    }

    /// Prints a line above the bar, or as it is.
    pub(super) fn line(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    /// Leaves a full bar as it stands and takes any other away: what was reached is said elsewhere.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            if self.newest.step >= self.total { bar.abandon() } else { bar.finish_and_clear() }
        }
    }

    /// The time left, from the mean speed of this process.
    fn remaining(&self) -> Option<Duration> {
        let done = self.newest.step.checked_sub(self.first).filter(|&n| n > 0)?;
        let left = self.total.saturating_sub(self.newest.step);
        Some(self.started.elapsed().mul_f64(left as f64 / done as f64))
    }
}

/// Prints a line on stderr; on a terminal, one that is too long goes on below its beginning.
pub fn say(text: &str) {
    if std::io::stderr().is_terminal() {
        put(&wrapped(text, columns()));
    } else {
        put(text);
    }
}

/// Prints on stderr. Nobody may be there to read it any more, which is no reason to end.
fn put(text: &str) {
    _ = writeln!(std::io::stderr(), "{text}");
}

/// The columns of the terminal.
fn columns() -> usize {
    console::Term::stderr().size_checked().map_or(COLUMNS, |(_, columns)| usize::from(columns))
}

/// Breaks a line between words; what goes on stands below what follows the label.
fn wrapped(text: &str, columns: usize) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let labelled = line.get(..LABEL).is_some_and(|head| head.ends_with(' ') && !head.trim().contains(' '));
        let indent = if labelled && columns > 3 * LABEL { LABEL } else { 0 };
        let (mut current, mut empty) = (line[..indent].to_owned(), true);
        for word in line[indent..].split(' ') {
            if !empty && current.chars().count() + 1 + word.chars().count() > columns {
                lines.push(std::mem::replace(&mut current, " ".repeat(indent)));
                empty = true;
            }
            if !empty {
                current.push(' ');
            }
            current.push_str(word);
            empty = false;
        }
        lines.push(current);
    }
    lines.join("\n")
}

/// `loss 0.1234  eval 0.2345  12345 tokens/s  eta 0:32`, as far as known.
fn tail(newest: &Newest, remaining: Option<Duration>) -> String {
    let mut parts = Vec::new();
    parts.extend(newest.loss.map(|v| format!("loss {}", short(v))));
    parts.extend(newest.eval.map(|v| format!("eval {}", short(v))));
    parts.extend(newest.speed.map(|v| format!("{v:.0} tokens/s")));
    parts.extend(remaining.map(|d| format!("eta {}", clock(d))));
    parts.join("  ")
}

/// Four places after the point, or scientific where that would show nothing.
fn short(value: f64) -> String {
    if value != 0. && value.abs() < 0.001 { format!("{value:.2e}") } else { format!("{value:.4}") }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_documented() {
        let newest = Newest { step: 100, loss: Some(0.1234), eval: Some(0.00008), speed: Some(12345.4) };
        assert_eq!(tail(&newest, Some(Duration::from_secs(32))), "loss 0.1234  eval 8.00e-5  12345 tokens/s  eta 0:32");
        assert_eq!(tail(&Newest::default(), None), "");
        assert_eq!(clock(Duration::from_secs(3725)), "1:02:05");
        assert_eq!(short(f64::NAN), "NaN");
    }

    #[test]
    fn a_step_that_is_evaluated_has_one_line() {
        let mut display = Display::new(Progress::None, 25, 0, 10);
        assert!(display.is_due(1, false), "nothing was printed yet");
        assert!(!display.is_due(10, false) && display.is_due(10, true));
        assert!(!display.is_due(25, false) && display.is_due(25, true), "the last step is evaluated too");
        display.printed = Some(Instant::now());
        assert!(!display.is_due(11, false) && display.is_due(20, true));
        let only_last = Display::new(Progress::None, 25, 0, 0);
        assert!(only_last.is_due(10, false) && !only_last.is_due(25, false));
    }

    #[test]
    fn a_long_line_goes_on_below_its_value() {
        let text = "task       text: a/file, 1000 chars train";
        assert_eq!(wrapped(text, 80), text);
        assert_eq!(wrapped(text, 34), "task       text: a/file, 1000\n           chars train");
        assert_eq!(wrapped("warning: monitoring lost", 12), "warning:\nmonitoring\nlost");
        assert_eq!(wrapped("run        averyveryverylongpathwithoutspaces", 34), "run        averyveryverylongpathwithoutspaces");
        assert_eq!(wrapped("task       ä", 34), "task       ä");
        assert_eq!(wrapped("", 80), "");
    }

    #[test]
    fn progress_is_read_from_its_names() {
        assert_eq!("plain".parse(), Ok(Progress::Plain));
        assert!("fancy".parse::<Progress>().unwrap_err().contains("auto, plain or none"));
    }
}
