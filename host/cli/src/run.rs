//! Run folders: writing a new one, and going on with an old one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fwp_recipe::{Overrides, PartChoice, PartFile, Plan, PluginRef, ReadOptions, Resolved, RunDir, Slot};
use fwp_sdk::program::Program;
use fwp_task::schema::did_you_mean;
use fwp_task::{TaskIo, TaskSpec};

use crate::compose::{Composition, Part};
use crate::failure::{Code, Failure};

/// A task that was opened: what nets serve, and what identifies its data.
pub struct OpenTask {
    /// Inputs and outputs.
    pub io: TaskIo,
    /// Equal for equal data.
    pub fingerprint: String,
    /// One line for a person.
    pub description: String,
    /// The metrics of its evaluations, by name.
    pub metrics: Vec<String>,
    /// Lengths of the sequence axes in training.
    pub lengths: BTreeMap<String, usize>,
}

/// Opens the task of a recipe, which reads its data.
///
/// # Errors
/// Data that is missing, unreadable, too short or of the wrong encoding.
pub fn open_task(spec: &TaskSpec) -> Result<OpenTask, Failure> {
    let task = fwp_task::open(spec).map_err(|e| {
        let text = e.to_string();
        let (cause, remedy) = text.split_once("; ").or_else(|| text.split_once(": ")).unwrap_or((&text, ""));
        Failure::new(Code::Input, "the task cannot be opened", cause, remedy)
    })?;
    let io = task.io().clone();
    // Rows may differ in length: as many as make the longest a usual one.
    let batch = task.train_batch(0, 0, 0, 16);
    let mut lengths = BTreeMap::new();
    for (port, (_, _, shape)) in io.inputs.iter().zip(&batch.inputs) {
        if let (Some(axis), Some(length)) = (&port.axis, shape.get(1)) {
            lengths.insert(axis.clone(), *length);
        }
    }
    Ok(OpenTask {
        io,
        fingerprint: task.fingerprint(),
        description: task.describe(),
        metrics: fwp_task::metric_names(task.as_ref()),
        lengths,
    })
}

/// Refuses a recipe that waits for a metric that its task does not have.
///
/// # Errors
/// The key that names it.
pub fn check_metrics(recipe: &Resolved, task: &OpenTask) -> Result<(), Failure> {
    let stop = recipe.stop.target.as_ref().map(|t| ("stop.metric", &t.metric));
    let expect = recipe.expect.as_ref().map(|e| ("expect.metric", &e.metric));
    for (key, metric) in stop.into_iter().chain(expect) {
        if !task.metrics.contains(metric) {
            let help = did_you_mean(metric, task.metrics.iter().map(String::as_str));
            let help = help.unwrap_or_else(|| format!("there are {}", task.metrics.join(", ")));
            return Err(recipe.error_at(key, &format!("task `{}` gives no {metric:?}", recipe.task.name()), Some(help)).into());
        }
    }
    Ok(())
}

/// Writes the folder of a new run: programs and recipe first, the plan last, because a folder with a plan is a run.
///
/// # Errors
/// What the system says.
pub fn write_new(folder: &RunDir, recipe: &Resolved, parts: &Composition, fingerprint: String) -> Result<(), Failure> {
    let write = |part: &Part, slot: &str| -> Result<PartFile, Failure> {
        Ok(folder.write_program(part.kind, slot, &part.name, &part.bytes, &part.origin)?)
    };
    let slow_net = write(&parts.slow_net, "main")?;
    let mut slots = Vec::new();
    for slot in &parts.slots {
        slots.push(Slot {
            name: slot.name.clone(),
            layers: slot.layers.clone(),
            feature_map: write(&slot.feature_map, &slot.name)?,
            update_rule: write(&slot.update_rule, &slot.name)?,
        });
    }
    let mut plan = recipe.plan(slow_net, slots);
    plan.host = Some(crate::output::VERSION.into());
    plan.task_fingerprint = Some(fingerprint);
    folder.write_recipe(&recipe.to_toml())?;
    folder.write_plan(&plan)?;
    Ok(())
}

/// An old run to go on with.
pub struct Old {
    /// Its folder.
    pub folder: RunDir,
    /// Its plan.
    pub plan: Plan,
    /// Its recipe.
    pub recipe: Resolved,
}

impl Old {
    /// Opens the folder of a run; checks every program in it against its hash.
    ///
    /// # Errors
    /// A folder that is no run, or files that are missing or changed.
    pub fn open(path: &Path) -> Result<Old, Failure> {
        let folder = RunDir::open(path)?;
        let plan = folder.read_plan()?;
        for file in files(&plan) {
            folder.read_program(file)?;
        }
        // It is the user's own run: paths in it were theirs.
        let recipe = fwp_recipe::read(&folder.recipe(), &Overrides::default(), &ReadOptions { trust_paths: true })?;
        Ok(Old { folder, plan, recipe })
    }

    /// The plan with what the command line or the recipe changed since. Only what leaves the model, the data and the steps so
    /// far as they are may change: how long to train, where, how to watch it, and when to stop.
    ///
    /// # Errors
    /// A change of anything else, with its name.
    pub fn changed(&self, new: &Resolved) -> Result<Plan, Failure> {
        let mut plan = new.plan(self.plan.slow_net.clone(), self.plan.slots.clone());
        plan.host = self.plan.host.clone();
        plan.task_fingerprint = self.plan.task_fingerprint.clone();
        plan.recipe = self.plan.recipe.clone();
        let refuse = |what: &str| {
            Err(Failure::new(
                Code::Input,
                format!("the run {} cannot go on", self.folder.path().display()),
                format!("{what} is not what the run began with"),
                "take the change back, or start a new run (another --run-dir, or --resume never)",
            ))
        };
        if !same_part(&new.slow_net, &self.recipe.slow_net) {
            return refuse("[slow_net]");
        }
        if new.slots.len() != self.recipe.slots.len() {
            return refuse("the number of update rules");
        }
        for (new, old) in new.slots.iter().zip(&self.recipe.slots) {
            if new.name != old.name || new.layers != old.layers || !same_part(&new.update_rule, &old.update_rule) {
                return refuse(&format!("[{}]", new.update_rule.section));
            }
            if !same_part(&new.feature_map, &old.feature_map) {
                return refuse(&format!("[{}]", new.feature_map.section));
            }
        }
        // The path of the data may change, its content may not: that is what the fingerprint in the plan is for.
        if without_path(&plan.task) != without_path(&self.plan.task) {
            return refuse("[task]");
        }
        let mut train = plan.train.clone();
        let old = &self.plan.train;
        (train.steps, train.memory_limit) = (old.steps, old.memory_limit);
        (train.device, train.exec) = (old.device.clone(), old.exec.clone());
        train.on_nonfinite = old.on_nonfinite;
        if train != *old {
            return refuse(&format!("[train] {}", differing(&train, old)));
        }
        Ok(plan)
    }

    /// Compares the run's programs with what the plugins describe now: documentation and source places may differ, what is
    /// computed may not. Gives the names of the parts that differ.
    ///
    /// # Errors
    /// A program that cannot be read.
    pub fn differing(&self, now: &Composition) -> Result<Vec<String>, Failure> {
        let mut pairs = vec![(&self.plan.slow_net, &now.slow_net)];
        for (old, new) in self.plan.slots.iter().zip(&now.slots) {
            pairs.push((&old.feature_map, &new.feature_map));
            pairs.push((&old.update_rule, &new.update_rule));
        }
        let mut differing = Vec::new();
        for (file, part) in pairs {
            let old = Program::from_bytes(&self.folder.read_program(file)?).map_err(|e| {
                Failure::new(
                    Code::Input,
                    format!("the program {} of the run cannot be read", file.file),
                    e.to_string(),
                    "use the fwp-host that began the run, or start a new one",
                )
            })?;
            if old.essence() != part.program.essence() {
                differing.push(format!("{} `{}`", file.kind, file.name));
            }
        }
        Ok(differing)
    }

    /// Writes a changed plan; does nothing where nothing changed.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, plan: &Plan, recipe: &Resolved) -> Result<(), Failure> {
        if *plan != self.plan {
            self.folder.write_recipe(&recipe.to_toml())?;
            self.folder.write_plan(plan)?;
        }
        Ok(())
    }
}

fn files(plan: &Plan) -> impl Iterator<Item = &PartFile> {
    std::iter::once(&plan.slow_net).chain(plan.slots.iter().flat_map(|s| [&s.feature_map, &s.update_rule]))
}

/// Whether two recipes ask for the same part. A path is the same whoever said it.
fn same_part(a: &PartChoice, b: &PartChoice) -> bool {
    let plugin = match (&a.plugin, &b.plugin) {
        (PluginRef::Path { path: a, .. }, PluginRef::Path { path: b, .. }) => a == b,
        (a, b) => a == b,
    };
    plugin && a.name == b.name && a.config == b.config
}

fn without_path(task: &TaskSpec) -> TaskSpec {
    match task {
        TaskSpec::Text(text) => TaskSpec::Text(fwp_task::text::TextSpec { path: None, ..text.clone() }),
        other => other.clone(),
    }
}

/// The first fields that differ, by name.
fn differing(a: &impl serde::Serialize, b: &impl serde::Serialize) -> String {
    let (Ok(serde_json::Value::Object(a)), Ok(serde_json::Value::Object(b))) = (serde_json::to_value(a), serde_json::to_value(b))
    else {
        return String::new();
    };
    let names: Vec<&str> = a.iter().filter(|(k, v)| b.get(*k) != Some(v)).map(|(k, _)| k.as_str()).collect();
    names.join(", ")
}

/// The folder that a new run gets.
///
/// # Errors
/// A folder that cannot be created, or holds something already.
pub fn new_folder(chosen: Option<&Path>, recipe: &Resolved) -> Result<RunDir, Failure> {
    let folder = match chosen {
        Some(path) => RunDir::create(path)?,
        None => RunDir::create_default(Path::new("runs"), &recipe.name, recipe.train.seed)?,
    };
    Ok(folder)
}

/// Whether a folder holds a run.
pub fn is_run(path: &Path) -> bool {
    RunDir::open(path).is_ok()
}

/// The best and last value of a metric, and the last step, from a run's `metrics.jsonl`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The best value: the smallest, unless more is better.
    pub best: Option<f64>,
    /// The last value.
    pub last: Option<f64>,
    /// The last step of any record.
    pub step: u64,
}

/// Reads the outcome of a run. Lines that cannot be read, such as one cut off by a crash, are passed over.
pub fn outcome(metrics: &PathBuf, name: &str, more_is_better: bool) -> Outcome {
    let mut outcome = Outcome::default();
    let text = std::fs::read_to_string(metrics).unwrap_or_default();
    for line in text.lines() {
        let Ok(record) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        outcome.step = record["step"].as_u64().map_or(outcome.step, |s| s.max(outcome.step));
        if let Some(value) = record[name].as_f64() {
            outcome.last = Some(value);
            let better = |old: f64| if more_is_better { value > old } else { value < old };
            if outcome.best.is_none_or(better) {
                outcome.best = Some(value);
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_reads_over_a_line_that_was_cut_off() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = [
            r#"{"step": 1, "time": 1.5, "train/loss": 3.0}"#,
            r#"{"step": 10, "eval/loss": 0.5}"#,
            r#"{"step": 20, "eval/loss": 0.7}"#,
            r#"{"step": 30, "eval/lo"#,
        ];
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        let path = file.path().to_path_buf();
        assert_eq!(outcome(&path, "eval/loss", false), Outcome { best: Some(0.5), last: Some(0.7), step: 20 });
        assert_eq!(outcome(&path, "eval/loss", true).best, Some(0.7));
        assert_eq!(outcome(&path, "other", true), Outcome { best: None, last: None, step: 20 });
    }
}
