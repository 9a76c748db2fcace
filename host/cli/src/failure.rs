//! What a person is told when something does not work, and the exit code that goes with it.

use std::fmt;

use fwp_recipe::{RecipeError, RunDirError};
use fwp_zoo::ZooError;

/// The exit codes of `fwp-host`; `fwp-engine` uses the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Something that should never happen.
    Unexpected = 1,
    /// The command line itself; also what the parser of arguments ends with.
    Usage = 2,
    /// A recipe, program, checkpoint or data file was refused.
    Input = 3,
    /// A plugin was refused or failed.
    Plugin = 4,
    /// libtorch, the engine, the disk or a device is missing or unusable.
    Environment = 5,
}

/// Why a command ended: one headline, one cause, one remedy.
///
/// Everything longer, such as the layout dump of a library or what a plugin printed, is the detail and shown with `-v` only.
#[derive(Clone, Debug)]
pub struct Failure {
    /// How the process ends.
    pub code: Code,
    /// What could not be done.
    pub headline: String,
    /// Why.
    pub cause: String,
    /// What to do.
    pub remedy: String,
    /// More, for `-v`.
    pub detail: String,
}

impl Failure {
    /// A failure without detail. An empty cause or remedy is not printed.
    pub fn new(code: Code, headline: impl Into<String>, cause: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure { code, headline: headline.into(), cause: cause.into(), remedy: remedy.into(), detail: String::new() }
    }

    /// Adds what `-v` shows.
    pub fn detail(mut self, detail: impl Into<String>) -> Failure {
        self.detail = detail.into();
        self
    }

    /// The text for stderr; `verbose` adds the detail.
    pub fn text(&self, verbose: bool) -> String {
        let mut text = format!("error: {}\n", literal(&self.headline));
        for (name, value) in [("cause", &self.cause), ("remedy", &self.remedy)] {
            if !value.is_empty() {
                text += &format!("  {name}: {}\n", literal(value));
            }
        }
        if !self.detail.is_empty() {
            if verbose {
                for line in self.detail.lines() {
                    text += &format!("  | {}\n", literal(line));
                }
            } else {
                text += "  (more with -v)\n";
            }
        }
        text
    }
}

/// Text that may come from a plugin or a file, on one line and without control characters, so that it cannot steer the terminal.
pub fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push(' '),
            '\t' => out.push_str("    "),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.headline, self.cause)
    }
}

impl std::error::Error for Failure {}

impl From<RecipeError> for Failure {
    fn from(e: RecipeError) -> Failure {
        let key = if e.key.is_empty() { String::new() } else { format!("{}: ", e.key) };
        Failure::new(
            Code::Input,
            "the recipe is refused",
            format!("{}: {key}{}", e.place, e.message),
            e.help.unwrap_or_else(|| "see `fwp-host recipe keys` for every key with its meaning".into()),
        )
    }
}

impl From<RunDirError> for Failure {
    fn from(e: RunDirError) -> Failure {
        let code = match e {
            RunDirError::Io { .. } => Code::Environment,
            _ => Code::Input,
        };
        // These errors say cause and remedy in one sentence, divided by a semicolon.
        let text = e.to_string();
        let (cause, remedy) = text.split_once("; ").unwrap_or((&text, "check the folder, its permissions and the disk"));
        Failure::new(code, "the run's folder cannot be used", cause, remedy)
    }
}

impl From<ZooError> for Failure {
    fn from(e: ZooError) -> Failure {
        match e {
            ZooError::Io { action, path, source } => io(action, &path, &source),
            ZooError::Refused { place, message, help } => {
                Failure::new(Code::Input, "a file of the zoo is refused", format!("{place}: {message}"), help)
            }
            ZooError::Recipe(e) => e.into(),
            ZooError::Run(e) => e.into(),
        }
    }
}

/// The failure of writing or reading a file.
pub fn io(action: &str, path: &std::path::Path, e: &std::io::Error) -> Failure {
    Failure::new(
        Code::Environment,
        format!("cannot {action} {}", path.display()),
        e.to_string(),
        "check the path, its permissions and the free space of the disk",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_plugin_cannot_steer_the_terminal() {
        let failure = Failure::new(Code::Plugin, "a\x1b[2Jb", "two\nlines", "").detail("x\u{7}y");
        let text = failure.text(true);
        assert_eq!(text, "error: a\\u{1b}[2Jb\n  cause: two lines\n  | x\\u{7}y\n");
        assert!(failure.text(false).ends_with("(more with -v)\n"));
    }
}
