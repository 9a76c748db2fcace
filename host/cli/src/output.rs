//! Writing to stdout: plain text for people, one JSON document for programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::{Code, Failure, literal};

/// The version and, where it was built in a repository, the commit: `0.1.0 (0123456789ab)`.
pub const VERSION: &str = env!("FWP_VERSION");

/// Writes text to stdout.
///
/// A reader that closes early (`fwp-host plugins list | head -1`) has what it wanted, so that is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Failure::new(
            Code::Environment,
            "cannot write the answer to stdout",
            e.to_string(),
            "check where the output is redirected to",
        )),
        Ok(()) => Ok(()),
    }
}

/// Writes one JSON document to stdout.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(Code::Unexpected, "the answer cannot be written as JSON", e.to_string(), "report this"))?;
    print(&(text + "\n"))
}

/// Says something on stderr beside the answer: progress, warnings. Nobody reading it is no failure.
pub fn say(text: &str) {
    _ = writeln!(io::stderr().lock(), "{text}");
}

/// A table with aligned columns; the last column may be of any width.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|cell| literal(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count());
        cells.chain([headers[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (cell, width) in cells.zip(&widths) {
            out += &format!("{cell:width$}  ");
        }
        text += out.trim_end();
        text.push('\n');
    };
    line(&mut headers.iter().copied());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Lines moved to the right.
pub fn indented(text: &str, by: usize) -> String {
    let lines = text.lines().map(|l| if l.is_empty() { String::new() } else { format!("{:by$}{l}", "") });
    lines.collect::<Vec<_>>().join("\n")
}

/// Columns that text for people fits into, where its words allow it.
pub const WIDTH: usize = 80;

/// Lines longer than `width` broken between words, the rest indented like their line.
pub fn wrapped(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let indent: String = line.chars().take_while(|c| *c == ' ').collect();
        let mut rest = line.to_string();
        while rest.chars().count() > width {
            let fits = |(i, c): &(usize, char)| *c == ' ' && *i > indent.len() && rest[..*i].chars().count() <= width;
            // A word that is too long for a line stays whole.
            let too_long = || rest.char_indices().find(|(i, c)| *c == ' ' && *i > indent.len());
            let Some((at, _)) = rest.char_indices().rfind(fits).or_else(too_long) else { break };
            let next = format!("{indent}{}", rest[at..].trim_start());
            lines.push(rest[..at].trim_end().to_string());
            rest = next;
        }
        lines.push(rest);
    }
    lines.join("\n")
}

/// A number with its thousands apart: `684 032`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// A number of things.
pub fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A number of bytes with a unit.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(684032), "684 032");
        assert_eq!(grouped(1000), "1 000");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
    }

    #[test]
    fn long_lines_break_between_words() {
        assert_eq!(wrapped("  one two three", 9), "  one two\n  three");
        assert_eq!(wrapped("short\n\nlonger words here", 12), "short\n\nlonger words\nhere");
        assert_eq!(wrapped("  unbreakableword x", 8), "  unbreakableword\n  x");
        assert_eq!(wrapped("  ⊗⊗⊗⊗ ⊗⊗", 6), "  ⊗⊗⊗⊗\n  ⊗⊗");
        assert_eq!(wrapped("unbreakableword", 8), "unbreakableword");
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let text = table(&["A", "B"], &[vec!["long".into(), "x".into()], vec!["s".into(), String::new()]]);
        assert_eq!(text, "A     B\nlong  x\ns\n");
    }
}
