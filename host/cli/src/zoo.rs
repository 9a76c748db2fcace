//! Where the recipes of published variants are.

use std::path::{Path, PathBuf};

use crate::output;
use crate::plugins::search::executable_folder;

/// The folder of recipes: `$FWP_ZOO`, else `zoo` in a folder above the executable.
pub fn folder() -> Option<PathBuf> {
    if let Some(set) = std::env::var_os("FWP_ZOO") {
        return Some(set.into());
    }
    let start = executable_folder()?;
    start.ancestors().map(|a| a.join("zoo")).find(|z| z.is_dir())
}

/// The path of a recipe as the user named it; where nothing is there, `NAME` or `zoo/NAME` means the one of the zoo.
pub fn recipe(named: &Path) -> PathBuf {
    if named.exists() || named.is_absolute() {
        return named.into();
    }
    let name = named.strip_prefix("zoo").unwrap_or(named);
    let plain = name.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    let said_so = named.starts_with("zoo") && !Path::new("zoo").exists();
    match folder().map(|z| z.join(name)) {
        Some(found) if plain && found.exists() => {
            output::say(&format!("recipe: {}", found.display()));
            found
        }
        // Not there either; but the nearest name is.
        Some(found) if plain && said_so => found,
        _ => named.into(),
    }
}
