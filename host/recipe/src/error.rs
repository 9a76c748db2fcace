//! The error of this crate: one line that a person can act on.

use std::fmt;

/// Why a recipe was refused.
///
/// Its text is one line: `FILE:LINE:COLUMN: KEY: cause; remedy`, or `--set KEY=VALUE: KEY: cause;
/// remedy` for what the command line said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipeError {
    /// Where: file, line and column, or the option of the command line.
    pub place: String,
    /// The key, with dots; empty when none is to blame.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do, where that is known.
    pub help: Option<String>,
}

impl RecipeError {
    pub(crate) fn new(place: impl Into<String>, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), key: key.into(), message: message.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.place.clone();
        if !self.key.is_empty() {
            text = format!("{text}: {}", self.key);
        }
        text = format!("{text}: {}", self.message);
        if let Some(help) = &self.help {
            text = format!("{text}; {help}");
        }
        // The text may quote the file: keep it to one line that a terminal takes literally.
        for c in text.chars() {
            match c {
                '\n' => f.write_str(" ")?,
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for RecipeError {}
