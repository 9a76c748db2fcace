//! `fwp-host recipe`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fwp_program::{ModelPrograms, estimate};
use fwp_recipe::{Dtype, Overrides, Resolved};
use fwp_sdk::program::Training;
use serde::Serialize;

use super::{PluginOptions, RecipeOptions};
use crate::compose::{Absent, check_keys, compose};
use crate::failure::{Code, Failure, literal};
use crate::output;
use crate::run::{self, OpenTask};

/// Shows and checks recipes.
#[derive(Subcommand, Debug)]
pub enum Recipe {
    Show(Show),
    Check(Check),
    Keys(Keys),
}

/// Prints the merged recipe with the source of every value: the default, the file with its line, or the command line.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fwp-host recipe show zoo/deltanet --set train.optimiser.lr=3e-4")]
pub struct Show {
    /// The recipe: a file, or a folder with a recipe.toml; a name means the one of the zoo.
    #[arg(value_name = "PATH")]
    recipe: PathBuf,
    #[command(flatten)]
    changes: RecipeOptions,
    #[command(flatten)]
    plugins: PluginOptions,
}

/// Checks a recipe without training: its keys and values, its plugins and their programs, and whether they fit together.
///
/// Prints the number of parameters and the memory that training will take.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fwp-host recipe check zoo/deltanet")]
pub struct Check {
    /// The recipe: a file, or a folder with a recipe.toml; a name means the one of the zoo.
    #[arg(value_name = "PATH")]
    recipe: PathBuf,
    #[command(flatten)]
    changes: RecipeOptions,
    /// The data of the task: task.path.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    plugins: PluginOptions,
}

/// Prints every key of a recipe with its type, default and meaning.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fwp-host recipe keys")]
pub struct Keys {}

impl Recipe {
    /// Whether details of errors are shown.
    pub fn verbose(&self) -> bool {
        match self {
            Recipe::Show(c) => c.plugins.verbose,
            Recipe::Check(c) => c.plugins.verbose,
            Recipe::Keys(_) => false,
        }
    }

    /// Does it.
    pub async fn run(self) -> Result<u8, Failure> {
        match self {
            Recipe::Show(c) => {
                let recipe = c.changes.read(&c.recipe, Overrides::default())?;
                let asker = c.plugins.asker();
                let mut catalogue = c.plugins.catalogue(&asker, c.changes.library_folder(&recipe)).await?;
                for Absent { section, why } in check_keys(&recipe, &mut catalogue, &asker).await? {
                    output::say(&format!("note: the keys of [{section}] are not checked: {}", literal(&why.headline)));
                }
                output::print(&recipe.show())?;
            }
            Recipe::Check(c) => c.run().await?,
            Recipe::Keys(Keys {}) => output::print(fwp_recipe::keys::reference().trim_start_matches('\n'))?,
        }
        Ok(0)
    }
}

/// What a check found.
#[derive(Serialize)]
struct Report {
    recipe: String,
    title: Option<String>,
    task: String,
    parts: Vec<PartReport>,
    parameters: u64,
    trained_parameters: u64,
    memory: MemoryReport,
    notices: Vec<String>,
}

#[derive(Serialize)]
struct PartReport {
    section: String,
    kind: String,
    name: String,
    library: String,
}

/// Bytes of training with the reference executor, when nothing is recomputed.
#[derive(Serialize)]
struct MemoryReport {
    total: u64,
    parameters: u64,
    gradients: u64,
    optimiser: u64,
    activations: u64,
}

impl MemoryReport {
    fn of(recipe: &Resolved, programs: &ModelPrograms, task: &OpenTask) -> MemoryReport {
        let bytes = match recipe.train.dtype {
            Dtype::Float32 => 4,
            Dtype::Float64 => 8,
        };
        let e = estimate(programs, recipe.train.batch_size, &task.lengths, bytes);
        MemoryReport {
            total: e.total_bytes(),
            parameters: e.parameter_bytes,
            gradients: e.gradient_bytes,
            optimiser: e.optimiser_bytes,
            activations: e.activation_bytes,
        }
    }

    fn text(&self) -> String {
        let parts = [
            ("parameters", self.parameters),
            ("gradients", self.gradients),
            ("optimiser", self.optimiser),
            ("activations", self.activations),
        ];
        let parts = parts.map(|(name, n)| format!("{name} {}", output::bytes(n)));
        format!("{} ({})", output::bytes(self.total), parts.join(", "))
    }
}

impl Check {
    async fn run(self) -> Result<(), Failure> {
        let overrides = Overrides { data: self.data.clone(), ..Overrides::default() };
        let recipe = self.changes.read(&self.recipe, overrides)?;
        let task = run::open_task(&recipe.task)?;
        run::check_metrics(&recipe, &task)?;
        let asker = self.plugins.asker();
        let mut catalogue = self.plugins.catalogue(&asker, self.changes.library_folder(&recipe)).await?;
        let parts = compose(&recipe, &task.io, &mut catalogue, &asker).await?;
        let programs = parts.programs();
        let refuse =
            |e: String| Failure::new(Code::Plugin, "the parts do not fit together", e, "correct the plugin that is named");
        let parameters = programs.parameters().map_err(|e| refuse(e.to_string()))?;
        let count = |trained: bool| -> u64 {
            let counted = parameters.iter().filter(|p| !trained || matches!(p.training, Training::Trained { .. }));
            counted.map(|p| p.shape.iter().map(|n| *n as u64).product::<u64>()).sum()
        };
        let memory = MemoryReport::of(&recipe, &programs, &task);
        let mut list = vec![("slow_net".to_string(), &parts.slow_net)];
        for (slot, choice) in parts.slots.iter().zip(&recipe.slots) {
            list.push((choice.feature_map.section.clone(), &slot.feature_map));
            list.push((choice.update_rule.section.clone(), &slot.update_rule));
        }
        let report = Report {
            recipe: recipe.name.clone(),
            title: recipe.title.clone(),
            task: task.description,
            parts: list
                .into_iter()
                .map(|(section, part)| PartReport {
                    section,
                    kind: part.kind.name().into(),
                    name: part.name.clone(),
                    library: part.origin.clone(),
                })
                .collect(),
            parameters: count(false),
            trained_parameters: count(true),
            memory,
            notices: parts.notices,
        };
        if self.json { output::json(&report) } else { output::print(&text(&report)) }
    }
}

fn text(report: &Report) -> String {
    let mut text = format!("recipe {} is in order\n\n", literal(&report.recipe));
    if let Some(title) = &report.title {
        text += &format!("title        {}\n", literal(title));
    }
    text += &format!("task         {}\n", literal(&report.task));
    for part in &report.parts {
        // Version and hash are for programs.
        let library = part.library.split(" (").next().unwrap_or_default();
        text += &format!("{:11}  {}  {}\n", part.kind, part.name, literal(library));
    }
    text += &format!("parameters   {}", output::grouped(report.parameters));
    if report.trained_parameters != report.parameters {
        text += &format!(", {} of them trained", output::grouped(report.trained_parameters));
    }
    text += &format!("\nmemory       about {}\n", report.memory.text());
    for notice in &report.notices {
        text += &format!("note: {}\n", literal(notice));
    }
    text
}
