//! What the Markdown files of the repository say.

use std::path::{Path, PathBuf};

use fwp_test_support::repository;

use crate::folders;

/// A block of code.
#[derive(Clone, Debug)]
pub struct Block {
    /// The language behind the fence; empty for a block that is indented.
    pub language: String,
    /// Its lines.
    pub text: String,
}

/// The README, the files of `docs/`, and the READMEs of the zoo.
pub fn all() -> Vec<PathBuf> {
    let root = repository();
    let mut found = vec![root.join("README.md")];
    let docs = std::fs::read_dir(root.join("docs")).expect("docs/").map(|e| e.expect("an entry").path());
    found.extend(docs.filter(|p| p.extension().is_some_and(|e| e == "md")));
    found.extend(folders(&root.join("zoo")).into_iter().map(|f| f.join("README.md")));
    found.sort();
    found
}

/// The text of a document.
///
/// # Panics
/// When it cannot be read.
pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The blocks of code of a document, fenced and indented.
///
/// # Panics
/// When it cannot be read, or a fence is not closed.
pub fn blocks(path: &Path) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<(Block, bool)> = None;
    let text = text(path);
    for line in text.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (Some((_, true)), Some(_)) | (Some((_, false)), None) if fence.is_some() || !line.starts_with("    ") => {
                found.extend(open.take().map(|(b, _)| b));
            }
            (Some((block, fenced)), _) => {
                block.text += if *fenced { line } else { line.trim_start() };
                block.text.push('\n');
            }
            (None, Some(language)) => open = Some((Block { language: language.trim().into(), text: String::new() }, true)),
            (None, None) if line.starts_with("    ") => {
                open = Some((Block { language: String::new(), text: format!("{}\n", line.trim_start()) }, false));
            }
            (None, None) => {}
        }
    }
    assert!(!matches!(open, Some((_, true))), "{}: a fence is not closed", path.display());
    found.extend(open.map(|(b, _)| b));
    found
}

/// What stands between single backticks in the running text of a document.
pub fn inline_code(path: &Path) -> Vec<String> {
    let text = text(path);
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_string));
        }
    }
    found
}

/// The targets of links and pictures in a document that are files, as paths.
pub fn linked_files(path: &Path) -> Vec<PathBuf> {
    let text = text(path);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|t| !t.contains("://") && !t.starts_with('#'));
    let folder = path.parent().expect("a folder");
    local.map(|t| folder.join(t.split('#').next().unwrap_or(t))).collect()
}

/// The calls of `fwp-host` (also by `scripts/fwp`) among lines of shell, as their arguments.
///
/// Understands quotes and lines that end in a backslash; knows nothing of variables.
pub fn calls(shell: &str) -> Vec<Vec<String>> {
    let joined = shell.replace("\\\n", " ");
    let lines = joined.lines().map(words);
    let calls = lines.filter_map(|mut words| {
        let program = words.iter().position(|w| !w.contains('='))?;
        let name = words[program].rsplit('/').next()?;
        if !matches!(name, "fwp-host" | "fwp") || (name == "fwp" && !words[program].contains("scripts/")) {
            return None;
        }
        Some(words.split_off(program + 1))
    });
    calls.collect()
}

/// The words of a line of shell, without its comment.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
