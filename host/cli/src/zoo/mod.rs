//! The zoo on this machine: where it is, what of it is meant, and training it.
//!
//! What is measured, and how it is judged and shown, is in the crate `fwp_zoo`.

pub mod pool;
pub mod show;

use std::path::{Path, PathBuf};

use fwp_zoo::table::number;
use fwp_zoo::verdict::judge;
use fwp_zoo::{Point, Variant, variant};

use crate::failure::{Code, Failure};
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

/// The failure of a zoo that is not there.
pub fn none(cause: impl Into<String>) -> Failure {
    Failure::new(Code::Environment, "there is no zoo", cause, "name its folder with --zoo DIR or set FWP_ZOO")
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

/// A folder of the zoo.
pub struct Found {
    /// The folder.
    pub folder: PathBuf,
    /// What is in it, or why it is refused.
    pub variant: Result<Variant, Failure>,
}

/// The variants of a zoo whose names match one of the patterns, all where there are none, with those that are refused.
///
/// # Errors
/// A folder that cannot be read, and a pattern that matches nothing.
pub fn select(zoo: &Path, patterns: &[String]) -> Result<Vec<Found>, Failure> {
    let folders = variant::folders(zoo).map_err(|e| none(e.to_string()))?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = folders.iter().map(|f| name(f)).collect();
    // A name may come as the path that other commands take.
    let patterns: Vec<&str> = patterns.iter().map(|p| p.strip_prefix("zoo/").unwrap_or(p).trim_end_matches('/')).collect();
    if let Some(unknown) = patterns.iter().find(|p| !names.iter().any(|n| fwp_zoo::matches(p, n))) {
        let near = fwp_task::schema::did_you_mean(unknown, names.iter().map(String::as_str));
        return Err(Failure::new(
            Code::Usage,
            "the command line is wrong",
            format!("no recipe of {} is called {unknown:?}", zoo.display()),
            near.unwrap_or_else(|| "see `fwp-host zoo list`; patterns are as in 'capacity-*'".into()),
        ));
    }
    let wanted = |folder: &Path| patterns.is_empty() || patterns.iter().any(|p| fwp_zoo::matches(p, &name(folder)));
    let read = |folder: PathBuf| Found { variant: Variant::read(&folder).map_err(Failure::from), folder };
    Ok(folders.into_iter().filter(|f| wanted(f)).map(read).collect())
}

/// The heads of a table of [`row`]s.
pub const COLUMNS: [&str; 5] = ["POINT", "PUBLISHED", "EXPECTED", "VERDICT", "VALUES"];

/// What was published, expected and measured of a point, and what that says.
pub fn row(title: String, point: &Point, values: &[Option<f64>]) -> Vec<String> {
    let texts: Vec<String> = values.iter().map(|v| v.map_or("NaN".into(), number)).collect();
    vec![
        title,
        point.published.map_or("-".into(), |p| p.to_string()),
        format!("{}{}", point.metric, bounds(point.at_least, point.at_most)),
        judge(point, values).text(point),
        texts.join(" "),
    ]
}

/// Bounds for a person, with a space before them: ` from 1 to 2`, ` <= 2`, or nothing.
pub fn bounds(at_least: Option<f64>, at_most: Option<f64>) -> String {
    match (at_least, at_most) {
        (Some(least), Some(most)) => format!(" from {least} to {most}"),
        (Some(least), None) => format!(" >= {least}"),
        (None, Some(most)) => format!(" <= {most}"),
        (None, None) => String::new(),
    }
}
