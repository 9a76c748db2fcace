//! `fwp-host train`

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use fwp_recipe::{Overrides, ReadOptions, Resolved, RunDir};

use super::{PluginOptions, RecipeOptions};
use crate::compose::{Composition, compose};
use crate::engine::{self, Engine};
use crate::failure::{Code, Failure, literal};
use crate::output;
use crate::run::{self, Old, OpenTask};

/// Trains a recipe, or goes on with a run.
///
/// A new run gets a folder with the resolved recipe, the program of every part, metrics, TensorBoard events and checkpoints; it
/// needs neither recipe nor plugins from then on. The same command with the same --run-dir goes on where the run stopped.
/// Ctrl-C or SIGTERM finishes the step, saves and ends with exit code 7.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fwp-host train --recipe zoo/deltanet
  fwp-host train --recipe zoo/deltanet-text --data text.txt --steps 500
  fwp-host train --recipe zoo/deltanet --seeds 1..3
  fwp-host train --recipe zoo/deltanet --set update_rule.plugin=./libmy_rule.so
  fwp-host train --resume runs/deltanet/20260302-101500-seed1 --steps 4000")]
pub struct Train {
    /// The recipe: a file, or a folder with a recipe.toml; a name means the one of the zoo.
    #[arg(long, value_name = "PATH")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    changes: RecipeOptions,
    /// The data of the task: task.path.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// How rules are executed: auto, reference, chunkwise or scan.
    #[arg(long, value_name = "EXECUTOR")]
    exec: Option<String>,
    /// Which run to go on with: auto (the one in --run-dir, if there is one), never, or the folder of a run.
    #[arg(long, value_name = "auto|PATH|never", default_value = "auto")]
    resume: Resume,
    /// When going on: uses the run's own programs although a plugin describes another one by now.
    #[arg(long)]
    keep_programs: bool,
    /// How many optimiser steps: train.steps.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Decides parameters, data and dropout: train.seed.
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Trains once for each of several seeds, one after another, and compares: a list such as 1,2,5 or a range such as 1..3,
    /// both ends included. With --run-dir DIR the runs are DIR/seed-N.
    #[arg(long, value_name = "LIST")]
    seeds: Option<Seeds>,
    /// The folder of the run (default: runs/RECIPE/TIME-SEED).
    #[arg(long, value_name = "PATH")]
    run_dir: Option<PathBuf>,
    /// How progress is shown: auto is a bar on a terminal and plain lines elsewhere.
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    progress: Progress,
    #[command(flatten)]
    pub plugins: PluginOptions,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Progress {
    Auto,
    Plain,
    None,
}

impl Progress {
    fn name(self) -> &'static str {
        match self {
            Progress::Auto => "auto",
            Progress::Plain => "plain",
            Progress::None => "none",
        }
    }
}

/// Which run to go on with.
#[derive(Clone, Debug, PartialEq)]
enum Resume {
    Auto,
    Never,
    Path(PathBuf),
}

impl FromStr for Resume {
    type Err = String;
    fn from_str(text: &str) -> Result<Resume, String> {
        match text {
            "auto" => Ok(Resume::Auto),
            "never" => Ok(Resume::Never),
            "" => Err("expected auto, never or the folder of a run".into()),
            path => Ok(Resume::Path(path.into())),
        }
    }
}

/// Seeds: `1,2,5` or `1..3`, both ends included.
#[derive(Clone, Debug, PartialEq)]
struct Seeds(Vec<u64>);

/// More runs than this in one command are a slip of the finger.
const MAX_SEEDS: u64 = 1000;

impl FromStr for Seeds {
    type Err = String;
    fn from_str(text: &str) -> Result<Seeds, String> {
        let number = |t: &str| t.trim().parse::<u64>().map_err(|_| format!("`{t}` is no seed; write 1,2,5 or 1..3"));
        let mut seeds = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
                    if last < first || last - first >= MAX_SEEDS {
                        return Err(format!("`{part}` is no range of at most {MAX_SEEDS} seeds"));
                    }
                    seeds.extend(first..=last);
                }
                None => seeds.push(number(part)?),
            }
        }
        match (1..seeds.len()).find(|i| seeds[..*i].contains(&seeds[*i])) {
            Some(i) => Err(format!("seed {} is there twice", seeds[i])),
            None => Ok(Seeds(seeds)),
        }
    }
}

/// A run that is ready to be trained.
struct Ready {
    folder: RunDir,
    recipe: Resolved,
    /// Whether it is there already.
    old: bool,
}

impl Train {
    /// Does it.
    pub async fn run(self) -> Result<u8, Failure> {
        // Before anything is written: without an engine there is nothing to train with.
        let engine = Engine::find()?;
        match &self.seeds {
            None => {
                let ready = self.ready(self.seed, self.run_dir.clone()).await?;
                self.train(&engine, &ready).await
            }
            Some(seeds) => self.train_all(&engine, &seeds.0).await,
        }
    }

    async fn train_all(&self, engine: &Engine, seeds: &[u64]) -> Result<u8, Failure> {
        if matches!(self.resume, Resume::Path(_)) {
            return Err(usage("--seeds and --resume PATH exclude each other", "name the runs' common folder with --run-dir"));
        }
        let mut rows = Vec::new();
        let mut worst = 0;
        let mut metric = "eval/loss".to_string();
        for seed in seeds {
            let folder = self.run_dir.as_ref().map(|d| d.join(format!("seed-{seed}")));
            let ready = self.ready(Some(*seed), folder).await?;
            let code = self.train(engine, &ready).await?;
            let expect = ready.recipe.expect.clone();
            if let Some(expect) = &expect {
                metric.clone_from(&expect.metric);
            }
            let more = expect.as_ref().is_some_and(fwp_recipe::Expect::more_is_better);
            let outcome = run::outcome(&ready.folder.metrics(), &metric, more);
            let passed = match expect.filter(fwp_recipe::Expect::judges) {
                Some(expect) if outcome.best.is_some_and(|best| expect.passes(best)) => "yes",
                Some(_) => "no",
                None => "-",
            };
            let number = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.6}"));
            rows.push(vec![
                seed.to_string(),
                number(outcome.best),
                number(outcome.last),
                outcome.step.to_string(),
                passed.into(),
                ready.folder.path().display().to_string(),
            ]);
            if code == INTERRUPTED {
                worst = code;
                break;
            }
            if worst == 0 {
                worst = code;
            }
        }
        let best = format!("BEST {metric}");
        output::print(&format!("\n{}", output::table(&["SEED", &best, "LAST", "STEPS", "PASSED", "RUN"], &rows)))?;
        Ok(worst)
    }

    async fn train(&self, engine: &Engine, ready: &Ready) -> Result<u8, Failure> {
        output::print(&format!("run        {}\n", ready.folder.path().display()))?;
        let resume = if ready.old { "auto" } else { "never" };
        let arguments = engine::arguments(&[
            &"train",
            &"--run",
            &ready.folder.path().as_os_str(),
            &"--resume",
            &resume,
            &"--progress",
            &self.progress.name(),
        ]);
        if self.plugins.verbose {
            engine::announce(engine, &arguments);
        }
        engine.run(&arguments).await
    }

    /// Makes the folder of the run ready: a new one, or one to go on with.
    async fn ready(&self, seed: Option<u64>, run_dir: Option<PathBuf>) -> Result<Ready, Failure> {
        let old = match &self.resume {
            Resume::Path(path) => {
                if run_dir.as_ref().is_some_and(|d| d != path) {
                    return Err(usage("--resume PATH and --run-dir name different folders", "leave --run-dir out"));
                }
                Some(path.clone())
            }
            Resume::Auto => run_dir.clone().filter(|d| run::is_run(d)),
            Resume::Never => None,
        };
        match old {
            Some(path) => self.go_on(&path, seed).await,
            None => self.begin(seed, run_dir.as_deref()).await,
        }
    }

    fn overrides(&self, seed: Option<u64>) -> Overrides {
        Overrides {
            set: self.changes.set.clone(),
            steps: self.steps,
            seed,
            data: self.data.clone(),
            device: self.device.clone(),
            exec: self.exec.clone(),
        }
    }

    async fn begin(&self, seed: Option<u64>, run_dir: Option<&Path>) -> Result<Ready, Failure> {
        let Some(path) = &self.recipe else {
            return Err(usage("no recipe is named", "name one with --recipe PATH, or a run to go on with by --resume PATH"));
        };
        let recipe = self.changes.read(path, self.overrides(seed))?;
        let task = run::open_task(&recipe.task)?;
        run::check_metrics(&recipe, &task)?;
        let parts = self.compose(&recipe, &task).await?;
        let folder = run::new_folder(run_dir, &recipe)?;
        run::write_new(&folder, &recipe, &parts, task.fingerprint.clone())?;
        Ok(Ready { folder, recipe, old: false })
    }

    async fn go_on(&self, path: &Path, seed: Option<u64>) -> Result<Ready, Failure> {
        let old = Old::open(path)?;
        let recipe = match &self.recipe {
            Some(recipe) => self.changes.read(recipe, self.overrides(seed))?,
            None => fwp_recipe::read(&old.folder.recipe(), &self.overrides(seed), &ReadOptions { trust_paths: true })?,
        };
        let plan = old.changed(&recipe)?;
        let task = run::open_task(&recipe.task)?;
        run::check_metrics(&recipe, &task)?;
        if plan.task_fingerprint.as_ref().is_some_and(|f| *f != task.fingerprint) {
            return Err(Failure::new(
                Code::Input,
                format!("the run {} cannot go on", path.display()),
                "the data is not the data that the run began with",
                "name the old data with --data, or start a new run",
            ));
        }
        // The run needs no plugin. Where they are there, a difference is worth knowing.
        match self.compose(&recipe, &task).await {
            Ok(now) => {
                let differing = old.differing(&now)?;
                if !differing.is_empty() && !self.keep_programs {
                    return Err(Failure::new(
                        Code::Plugin,
                        format!("the run {} cannot go on", path.display()),
                        format!("the plugins now describe another program for {}", differing.join(", ")),
                        "go on with the run's own programs by --keep-programs, or start a new run",
                    ));
                }
                if !differing.is_empty() {
                    output::say(&format!(
                        "note: the plugins describe another program for {} by now; the run keeps its own",
                        differing.join(", ")
                    ));
                }
            }
            Err(failure) => output::say(&format!(
                "note: going on with the run's own programs; the plugins cannot be asked ({}: {})",
                literal(&failure.headline),
                literal(&failure.cause)
            )),
        }
        old.write(&plan, &recipe)?;
        Ok(Ready { folder: old.folder, recipe, old: true })
    }

    async fn compose(&self, recipe: &Resolved, task: &OpenTask) -> Result<Composition, Failure> {
        let asker = self.plugins.asker();
        let mut catalogue = self.plugins.catalogue(&asker, self.changes.library_folder(recipe)).await?;
        let parts = compose(recipe, &task.io, &mut catalogue, &asker).await?;
        for notice in &parts.notices {
            output::say(&format!("note: {}", literal(notice)));
        }
        Ok(parts)
    }
}

/// The exit code of a run that was interrupted and saved.
const INTERRUPTED: u8 = 7;

fn usage(cause: &str, remedy: &str) -> Failure {
    Failure::new(Code::Usage, "the command line is wrong", cause, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_lists_and_ranges_with_both_ends() {
        let seeds = |t: &str| t.parse::<Seeds>().map(|s| s.0);
        assert_eq!(seeds("1..3"), Ok(vec![1, 2, 3]));
        assert_eq!(seeds("1..=3"), Ok(vec![1, 2, 3]));
        assert_eq!(seeds("4, 1..2"), Ok(vec![4, 1, 2]));
        assert_eq!(seeds("7"), Ok(vec![7]));
        for wrong in ["", "a", "3..1", "1..5000", "1,1", "1..3,2", "-1", "1.."] {
            assert!(seeds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn resume_is_a_word_or_a_path() {
        assert_eq!("auto".parse(), Ok(Resume::Auto));
        assert_eq!("never".parse(), Ok(Resume::Never));
        assert_eq!("runs/x".parse(), Ok(Resume::Path("runs/x".into())));
        assert!("".parse::<Resume>().is_err());
    }
}
