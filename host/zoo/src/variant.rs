//! A folder of the zoo: its recipe and its points.

use std::path::{Path, PathBuf};

use fwp_recipe::{Overrides, ReadOptions, RecipeError, Resolved};
use sha2::{Digest, Sha256};

use crate::document::{ZooError, io};
use crate::paper::Paper;
use crate::points::{self, Point};

/// A variant of the zoo.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Its name: that of its folder.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Its recipe as it stands there.
    pub recipe: Resolved,
    /// What is measured with it; never empty.
    pub points: Vec<Point>,
}

impl Variant {
    /// Reads the recipe and the points in a folder.
    ///
    /// # Errors
    /// A recipe or `points.toml` that is refused.
    pub fn read(folder: &Path) -> Result<Variant, ZooError> {
        let recipe = fwp_recipe::read(folder, &Overrides::default(), &ReadOptions::default())?;
        let path = folder.join("points.toml");
        let points = match path.is_file() {
            true => points::read(&path, recipe.expect.as_ref())?,
            false => vec![Point::of_recipe(recipe.expect.as_ref(), recipe.file.display().to_string())],
        };
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Variant { name, folder: folder.into(), recipe, points })
    }

    /// The paper that the recipe cites.
    pub fn paper(&self) -> Paper {
        Paper::of(self.recipe.cite.as_deref())
    }

    /// The point of a name.
    pub fn point(&self, name: &str) -> Option<&Point> {
        self.points.iter().find(|p| p.name == name)
    }

    /// Where the measurements of the variant are kept.
    pub fn results(&self) -> PathBuf {
        self.folder.join("results.json")
    }

    /// The folder of a run, below that of all runs.
    pub fn run_folder(&self, runs: &Path, point: &Point, seed: u64) -> PathBuf {
        runs.join(&self.name).join(format!("{}-seed{seed}", point.name))
    }

    /// Whether the task reads a file, which the command line has to name.
    pub fn reads_data(&self) -> bool {
        self.recipe.task.reads_file()
    }

    /// The recipe as a point changes it; the command line's own changes come last and win.
    ///
    /// # Errors
    /// A change that the recipe refuses, at the point's place where the point makes it.
    pub fn resolve(&self, point: &Point, more: &Overrides) -> Result<Resolved, ZooError> {
        let set = point.set.iter().chain(&more.set).cloned().collect();
        let overrides = Overrides { set, ..more.clone() };
        fwp_recipe::read(&self.folder, &overrides, &ReadOptions::default()).map_err(|e| ZooError::Recipe(blame(point, more, e)))
    }
}

/// An error of a change, at the place where the change stands.
fn blame(point: &Point, more: &Overrides, error: RecipeError) -> RecipeError {
    let makes = |set: &[String]| {
        let keys = set.iter().filter_map(|s| s.split_once('='));
        keys.into_iter().any(|(key, _)| error.place.starts_with(&format!("--set {key}=")))
    };
    if makes(&point.set) && !makes(&more.set) { RecipeError { place: point.place.clone(), ..error } } else { error }
}

/// A short name for what decides the numbers of a run: equal for equal experiments.
pub fn digest(recipe: &Resolved) -> String {
    let sum = Sha256::digest(recipe.experiment().text());
    sum.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// The folders of a zoo that hold a recipe, by name.
///
/// # Errors
/// A folder that cannot be read.
pub fn folders(zoo: &Path) -> Result<Vec<PathBuf>, ZooError> {
    let entries = std::fs::read_dir(zoo).map_err(io("read", zoo))?;
    let mut found: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.join("recipe.toml").is_file()).collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_is_refused_is_told_at_its_own_place() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = "[slow_net]\nplugin = \"retrieval\"\n[update_rule]\nplugin = \"delta\"\n[task]\nname = \"associative-update\"\nkeys = 4\n[train]\nsteps = 3\n";
        std::fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
        let points = "[[point]]\nname = \"a\"\n\n[[point]]\nname = \"b\"\nset = { \"task.kyes\" = 3 }\n";
        std::fs::write(folder.path().join("points.toml"), points).unwrap();
        let variant = Variant::read(folder.path()).unwrap();
        assert!(variant.resolve(&variant.points[0], &Overrides::default()).is_ok());
        let error = variant.resolve(&variant.points[1], &Overrides::default()).unwrap_err().to_string();
        assert!(error.contains("points.toml:4:1: task.kyes: ") && error.contains("`keys`"), "{error}");
        let typed = Overrides { set: vec!["task.kyes=9".into()], ..Overrides::default() };
        let error = variant.resolve(&variant.points[0], &typed).unwrap_err().to_string();
        assert!(error.starts_with("--set task.kyes=9: "), "{error}");
        let base = variant.resolve(&variant.points[0], &Overrides::default()).unwrap();
        assert_eq!(digest(&base), digest(&variant.recipe));
        assert!(!variant.reads_data());
    }
}
