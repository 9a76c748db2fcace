//! What the folder of a run says: how far it is, how it ended, and what was measured.

use std::io::ErrorKind;
use std::path::Path;

use fwp_program::{ModelPrograms, SlotPrograms, state_size};
use fwp_recipe::{Experiment, Overrides, PartFile, Plan, ReadOptions, RunDir, more_is_better};
use fwp_sdk::program::{Program, Training};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::document::{ZooError, io, load};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// All its steps were done.
    Completed,
    /// An evaluation was good enough.
    Target,
    /// Too many evaluations brought no better one.
    Patience,
    /// A loss or a gradient was not finite.
    NotFinite,
}

impl Ended {
    /// A word for a person.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "all steps done",
            Self::Target => "target reached",
            Self::Patience => "no improvement",
            Self::NotFinite => "not finite",
        }
    }
}

/// How far a run is.
#[derive(Debug)]
pub enum RunState {
    /// There is nothing, or what a start that was cut off has left: no run, and nothing that was measured.
    Absent,
    /// There is a run.
    There(Box<RunRecord>),
}

/// A run and what it has recorded.
#[derive(Debug)]
pub struct RunRecord {
    /// The folder.
    pub run: RunDir,
    /// Its plan.
    pub plan: Plan,
    /// How it ended; none where it is going on, or was interrupted.
    pub ended: Option<Ended>,
    history: History,
}

/// The best evaluation of a metric and the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Best {
    /// The best value.
    pub value: Option<f64>,
    /// The step of the best value.
    pub step: u64,
    /// The last value.
    pub last: Option<f64>,
}

/// What `metrics.jsonl` holds.
#[derive(Debug, Default)]
struct History {
    /// Step and values of every evaluation.
    evaluations: Vec<(u64, Map<String, Value>)>,
    /// Tokens a second at every record that has them.
    speeds: Vec<f64>,
    step: u64,
    /// Seconds since 1970 at the last record.
    time: f64,
}

/// A line of the records.
#[derive(Deserialize)]
struct Line {
    step: u64,
    time: f64,
    #[serde(rename = "train/tokens_per_second")]
    speed: Option<f64>,
}

impl History {
    /// Reads the records; lines that cannot be read, such as one cut off by a crash, are passed over.
    fn read(path: &Path) -> Result<History, ZooError> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(History::default()),
            other => other.map_err(io("read", path))?,
        };
        let mut history = History::default();
        for line in text.lines() {
            let Ok(record) = serde_json::from_str::<Line>(line) else { continue };
            (history.step, history.time) = (history.step.max(record.step), record.time);
            history.speeds.extend(record.speed);
            if line.contains("\"eval/loss\"")
                && let Ok(values) = serde_json::from_str(line)
            {
                history.evaluations.push((record.step, values));
            }
        }
        Ok(history)
    }

    /// How the run ended, if it did, as the engine decides it: only the evaluation of the last step ends a run.
    fn ended(&self, plan: &Plan) -> Option<Ended> {
        let (step, last) = self.evaluations.last()?;
        let loss = |values: &Map<String, Value>| values["eval/loss"].as_f64().unwrap_or(f64::NAN);
        let stop = &plan.stop;
        if stop.eval_loss_at_most.is_some_and(|bound| loss(last) <= bound) {
            return Some(Ended::Target);
        }
        let value = |metric: &str| last.get(metric).and_then(Value::as_f64);
        if stop.target.as_ref().is_some_and(|t| value(&t.metric).is_some_and(|v| t.reached(v))) {
            return Some(Ended::Target);
        }
        let (mut best, mut without) = (f64::INFINITY, 0);
        for (_, values) in &self.evaluations {
            without = if loss(values) < best { 0 } else { without + 1 };
            best = best.min(loss(values));
        }
        if stop.patience > 0 && without >= stop.patience {
            return Some(Ended::Patience);
        }
        (*step >= plan.train.steps).then_some(Ended::Completed)
    }
}

/// Looks at the folder of a run.
///
/// # Errors
/// A folder that holds something else than a run, and files that cannot be read.
pub fn look(path: &Path) -> Result<RunState, ZooError> {
    let Ok(run) = RunDir::open(path) else {
        return if is_remains(path)? {
            Ok(RunState::Absent)
        } else {
            Err(ZooError::Refused {
                place: path.display().to_string(),
                message: "the folder holds something, but no run".into(),
                help: "move it away, or name another folder with --runs".into(),
            })
        };
    };
    let plan = run.read_plan()?;
    let history = History::read(&run.metrics())?;
    let ended = if failed_for_good(&run) { Some(Ended::NotFinite) } else { history.ended(&plan) };
    Ok(RunState::There(Box::new(RunRecord { run, plan, ended, history })))
}

/// What a host leaves that was ended before the run had a plan: folders and the recipe, and nothing that was computed.
const REMAINS: [&str; 5] = ["programs", "checkpoints", "recipe.toml", "recipe.toml.tmp", "plan.json.tmp"];

/// Whether a folder is missing, empty, or holds only what a start that was cut off has left.
fn is_remains(path: &Path) -> Result<bool, ZooError> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(true),
        other => other.map_err(io("read", path))?,
    };
    for entry in entries {
        let name = entry.map_err(io("read", path))?.file_name();
        let empty = |name: &str| std::fs::read_dir(path.join(name)).is_ok_and(|mut e| e.next().is_none());
        let known = name.to_str().is_some_and(|n| REMAINS.contains(&n) && (n != "checkpoints" || empty(n)));
        if !known {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes away what a start that was cut off has left, so that a run can begin in the folder; see [`RunState::Absent`].
///
/// # Errors
/// What the system says; and nothing is taken away from a folder that holds anything else.
pub fn clear(path: &Path) -> Result<(), ZooError> {
    if path.exists() && RunDir::open(path).is_err() && is_remains(path)? {
        std::fs::remove_dir_all(path).map_err(io("remove", path))?;
    }
    Ok(())
}

/// Whether the run ended at a value that is not finite: it would again, because nothing in it is random.
fn failed_for_good(run: &RunDir) -> bool {
    let text = std::fs::read_to_string(run.post_mortem()).unwrap_or_default();
    serde_json::from_str::<Value>(&text).is_ok_and(|v| v["reason"] == "not finite")
}

/// The last step of a run that may be going on, from the end of its records; 0 where there is none.
pub fn last_step(path: &Path) -> u64 {
    use std::io::{Read, Seek, SeekFrom};
    /// Some records.
    const TAIL: i64 = 8192;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path.join("metrics.jsonl"))?;
        let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
        file.seek(SeekFrom::End(-length.min(TAIL)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    let lines = tail.split(|b| *b == b'\n').rev();
    lines.filter_map(|l| serde_json::from_slice::<Line>(l).ok()).map(|r| r.step).next().unwrap_or_default()
}

impl RunRecord {
    /// What decided the numbers of the run.
    ///
    /// # Errors
    /// A recipe in the folder that this host does not read.
    pub fn experiment(&self) -> Result<Experiment, ZooError> {
        let trusted = ReadOptions { trust_paths: true };
        Ok(fwp_recipe::read(&self.run.recipe(), &Overrides::default(), &trusted)?.experiment())
    }

    /// The best and the last evaluation of a metric.
    pub fn best(&self, metric: &str) -> Best {
        let more = more_is_better(metric);
        let mut best = Best::default();
        for (step, values) in &self.history.evaluations {
            best.last = values.get(metric).and_then(Value::as_f64);
            let Some(value) = best.last else { continue };
            if best.value.is_none_or(|old| if more { value > old } else { value < old }) {
                (best.value, best.step) = (Some(value), *step);
            }
        }
        best
    }

    /// Steps that were done, as far as they were recorded.
    pub fn steps(&self) -> u64 {
        self.history.step
    }

    /// Seconds since 1970 at the last record.
    pub fn time(&self) -> u64 {
        self.history.time.max(0.0) as u64
    }

    /// The median of the speed while training, in tokens a second.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let mut speeds = self.history.speeds.clone();
        speeds.sort_by(f64::total_cmp);
        speeds.get(speeds.len() / 2).copied()
    }

    /// Seconds of training without evaluation, from the newest checkpoint.
    pub fn seconds(&self) -> Option<f64> {
        let entries = std::fs::read_dir(self.run.checkpoints()).ok()?;
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let newest = names.filter_map(|n| n.strip_prefix("step-")?.parse::<u64>().ok()).max()?;
        let text = load(&self.run.checkpoints().join(format!("step-{newest}/state.json"))).ok()?;
        serde_json::from_str::<Value>(&text).ok()?["seconds"].as_f64()
    }

    /// Step and value of a metric at every evaluation, at most so many of them, the first and the last among them.
    pub fn curve(&self, metric: &str, most: usize) -> Vec<[f64; 2]> {
        let all: Vec<[f64; 2]> = self
            .history
            .evaluations
            .iter()
            .filter_map(|(step, values)| Some([*step as f64, values.get(metric)?.as_f64()?]))
            .collect();
        if all.len() <= most || most < 2 {
            return all;
        }
        (0..most).map(|i| all[i * (all.len() - 1) / (most - 1)]).collect()
    }

    /// Trained parameters of the model, and the elements of state that a sequence keeps from step to step.
    ///
    /// # Errors
    /// A program that was changed, or that this host cannot read.
    pub fn sizes(&self) -> Result<(u64, u64), ZooError> {
        let refuse = |message: String| ZooError::Refused {
            place: self.run.path().display().to_string(),
            message,
            help: "measure it anew with this host".into(),
        };
        let program = |part: &PartFile| -> Result<Program, ZooError> {
            let bytes = self.run.read_program(part)?;
            Program::from_bytes(&bytes).map_err(|e| refuse(format!("{}: {e}", part.file)))
        };
        let mut slots = Vec::new();
        for slot in &self.plan.slots {
            slots.push(SlotPrograms {
                name: slot.name.clone(),
                layers: slot.layers.clone(),
                map: program(&slot.feature_map)?,
                rule: program(&slot.update_rule)?,
            });
        }
        let model = ModelPrograms { net: program(&self.plan.slow_net)?, slots };
        let parameters = model.parameters().map_err(|e| refuse(e.to_string()))?;
        let trained = parameters.iter().filter(|p| matches!(p.training, Training::Trained { .. }));
        let trained = trained.map(|p| p.shape.iter().map(|n| *n as u64).product::<u64>()).sum();
        Ok((trained, state_size(&model, self.plan.task.max_len())))
    }

    /// What the engine recorded of itself: executors, threads and machine.
    pub fn engine(&self) -> Value {
        let text = load(&self.run.path().join("executor.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a plan, and the lines of its records.
    fn run(stop: &str, lines: &[&str]) -> (tempfile::TempDir, RunState) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let run = RunDir::create(&path).unwrap();
        let recipe = format!(
            "[slow_net]\nplugin = \"retrieval\"\n[update_rule]\nplugin = \"delta\"\n[task]\nname = \"parity\"\n[train]\nsteps = 40\n[eval]\nevery = 10\n[stop]\n{stop}\n"
        );
        std::fs::write(run.recipe(), recipe).unwrap();
        let resolved = fwp_recipe::read(&run.recipe(), &Overrides::default(), &ReadOptions::default()).unwrap();
        let part = |kind: &str| PartFile {
            kind: kind.into(),
            name: "x".into(),
            file: "programs/x.fwp".into(),
            sha256: String::new(),
            origin: String::new(),
        };
        run.write_plan(&resolved.plan(part("slow-net"), Vec::new())).unwrap();
        std::fs::write(run.metrics(), lines.join("\n")).unwrap();
        let state = look(&path).unwrap();
        (folder, state)
    }

    fn evaluation(step: u64, loss: &str, accuracy: f64) -> String {
        format!(r#"{{"step": {step}, "time": {step}.5, "eval/loss": {loss}, "eval/accuracy": {accuracy}}}"#)
    }

    #[test]
    fn a_run_has_ended_where_the_engine_would_have_ended_it() {
        let (first, second, third) = (evaluation(10, "0.5", 0.4), evaluation(20, "0.6", 0.7), evaluation(30, "null", 0.6));
        let (last, good) = (evaluation(40, "0.55", 0.5), evaluation(20, "0.05", 0.95));
        let ended = |stop: &str, lines: &[&str]| match run(stop, lines).1 {
            RunState::There(run) => run.ended.ok_or(run.steps()),
            RunState::Absent => panic!("a run"),
        };
        assert_eq!(ended("", &[&first, &second]), Err(20));
        assert_eq!(ended("", &[]), Err(0));
        assert_eq!(ended("", &[&first, &second, &third, &last]), Ok(Ended::Completed));
        assert_eq!(ended("patience = 2", &[&first, &second]), Err(20));
        assert_eq!(ended("patience = 2", &[&first, &second, &third]), Ok(Ended::Patience));
        assert_eq!(ended("eval_loss_at_most = 0.1", &[&first, &good]), Ok(Ended::Target));
        assert_eq!(ended("metric = \"eval/accuracy\"\nat_least = 0.9", &[&first, &good]), Ok(Ended::Target));
        // A line that was cut off, and steps after the last evaluation.
        assert_eq!(ended("", &[&first, r#"{"step": 25, "time": 1}"#, r#"{"step": 40, "ti"#]), Err(25));
    }

    #[test]
    fn the_best_evaluation_is_the_smallest_loss_and_the_largest_accuracy() {
        let lines =
            [evaluation(10, "0.5", 0.4), evaluation(20, "0.4", 0.7), evaluation(30, "null", 0.6), evaluation(40, "0.9", 0.7)];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (_folder, RunState::There(run)) = run("", &lines) else { panic!("a run") };
        assert_eq!(run.best("eval/loss"), Best { value: Some(0.4), step: 20, last: Some(0.9) });
        assert_eq!(run.best("eval/accuracy"), Best { value: Some(0.7), step: 20, last: Some(0.7) });
        assert_eq!(run.best("eval/nothing"), Best::default());
        assert_eq!(run.curve("eval/accuracy", 3), [[10.0, 0.4], [20.0, 0.7], [40.0, 0.7]]);
        assert_eq!(run.curve("eval/loss", 60).len(), 3);
        assert_eq!((run.steps(), run.time(), run.tokens_per_second()), (40, 40, None));
    }

    #[test]
    fn what_a_start_that_was_cut_off_left_is_no_run_and_anything_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        assert!(matches!(look(&path), Ok(RunState::Absent)));
        let run = RunDir::create(&path).unwrap();
        run.write_recipe("x").unwrap();
        assert!(matches!(look(&path), Ok(RunState::Absent)));
        std::fs::write(path.join("checkpoints/mine"), "x").unwrap();
        assert!(look(&path).is_err());
        clear(&path).unwrap();
        assert!(path.join("checkpoints/mine").exists());
        std::fs::remove_file(path.join("checkpoints/mine")).unwrap();
        clear(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_value_that_is_not_finite_ends_a_run_for_good() {
        let (folder, state) = run("", &[&evaluation(10, "0.5", 0.4)]);
        let ended = |state: RunState| match state {
            RunState::There(run) => run.ended,
            RunState::Absent => panic!("a run"),
        };
        assert_eq!(ended(state), None);
        let path = folder.path().join("run");
        assert_eq!(last_step(&path), 10);
        std::fs::write(path.join("post-mortem.json"), r#"{"reason": "error"}"#).unwrap();
        assert_eq!(ended(look(&path).unwrap()), None);
        std::fs::write(path.join("post-mortem.json"), r#"{"reason": "not finite"}"#).unwrap();
        assert_eq!(ended(look(&path).unwrap()), Some(Ended::NotFinite));
    }
}
