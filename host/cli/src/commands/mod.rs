//! The commands: one file each, with its options, their documentation and what it does.

pub mod alone;
pub mod apply;
pub mod bench;
pub mod check;
pub mod doctor;
pub mod eval;
pub mod plugins;
pub mod recipe;
pub mod train;
pub mod zoo;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use fwp_recipe::{Overrides, ReadOptions, Resolved};

use crate::failure::Failure;
use crate::output;
use crate::plugins::{Asker, Catalogue, search};

/// Where plugins come from; the same for every command that asks them.
#[derive(Args, Debug)]
pub struct PluginOptions {
    /// A folder with plugins, looked at before all others; may be given several times.
    #[arg(long = "plugin-path", value_name = "DIR")]
    pub plugin_path: Vec<PathBuf>,
    /// Shows what plugins print, and details of errors.
    #[arg(short, long)]
    pub verbose: bool,
}

impl PluginOptions {
    /// Who asks plugins.
    pub fn asker(&self) -> Asker {
        Asker::new(self.verbose)
    }

    /// Everything on the search path; with a recipe's folder where the user lets it take part.
    pub async fn catalogue(&self, asker: &Asker, recipe_folder: Option<&Path>) -> Result<Catalogue, Failure> {
        Catalogue::discover(asker, search::folders(&self.plugin_path, recipe_folder)).await
    }
}

/// What `--exec` takes where one executor is asked for, or the choice is left to the host.
pub const EXECUTORS: [&str; 4] = ["auto", "reference", "chunkwise", "scan"];

/// A size or count, which begins at 1.
pub fn size(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "it is a whole number from 1".into())
}

/// A length of time in seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).filter(|time| !time.is_zero());
    time.ok_or_else(|| "it is a number of seconds above 0".into())
}

/// The name of a device, for `--device`.
pub fn device(name: &str) -> Result<String, String> {
    if fwp_recipe::is_device(name) { Ok(name.into()) } else { Err("there are auto, cpu, cuda and cuda:N".into()) }
}

/// A recipe and what changes it.
#[derive(Args, Debug, Default)]
pub struct RecipeOptions {
    /// Changes a value of the recipe: a dotted key and a TOML value, or nothing to go back to the default; may be given
    /// several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Lets the recipe name libraries by path, looks for plugins in its folder, and lets it read data from anywhere. Opening a
    /// library runs its code with your rights: use it for recipes that you trust.
    #[arg(long)]
    pub allow_recipe_libraries: bool,
}

impl RecipeOptions {
    /// Reads a recipe; `more` holds the options that have names of their own.
    pub fn read(&self, path: &Path, more: Overrides) -> Result<Resolved, Failure> {
        let overrides = Overrides { set: self.set.clone(), ..more };
        let options = ReadOptions { trust_paths: self.allow_recipe_libraries };
        let path = crate::zoo::recipe(path);
        let resolved = fwp_recipe::read(&path, &overrides, &options)?;
        for warning in &resolved.warnings {
            output::say(&format!("warning: {}", crate::failure::literal(warning)));
        }
        Ok(resolved)
    }

    /// The recipe's folder, where its libraries may be opened.
    pub fn library_folder<'a>(&self, recipe: &'a Resolved) -> Option<&'a Path> {
        recipe.file.parent().filter(|_| self.allow_recipe_libraries)
    }
}
