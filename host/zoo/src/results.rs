//! `results.json`: the measurements of a variant, and joining those of finished runs with those that are there.

use std::path::Path;

use fwp_recipe::{Overrides, Resolved};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document::{ZooError, io, load};
use crate::points::Point;
use crate::run::{Ended, RunRecord, RunState, look};
use crate::variant::{Variant, digest};

/// Points of a curve that is kept.
const CURVE: usize = 60;

/// What one finished run says of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The point.
    pub point: String,
    /// The seed.
    pub seed: u64,
    /// What was measured.
    pub metric: String,
    /// Its best value; none where no evaluation gave a finite one.
    pub value: Option<f64>,
    /// The step of the best value.
    pub step: u64,
    /// The last value.
    pub last: Option<f64>,
    /// Steps that were trained.
    pub steps: u64,
    /// How the run ended.
    pub ended: Ended,
    /// Seconds of training, evaluation left out.
    pub seconds: Option<f64>,
    /// The median of the speed, in tokens a second.
    pub tokens_per_second: Option<f64>,
    /// Trained parameters of the model.
    pub parameters: Option<u64>,
    /// Numbers that the model keeps of a sequence from step to step.
    pub state_size: Option<u64>,
    /// What the point changes in the recipe.
    pub set: Vec<String>,
    /// The command that repeats the run.
    pub command: String,
    /// The commit of the host that began the run, or its version where it was not built in a repository.
    pub commit: Option<String>,
    /// When the run ended, in UTC: `2026-03-02T10:15:00Z`.
    pub date: String,
    /// What it ran on.
    pub machine: Option<String>,
    /// What carried out the rules, and on how many threads.
    pub executor: Option<String>,
    /// A short name for what decided the numbers; see [`digest`].
    pub experiment: String,
    /// Step and value at some evaluations, where a figure draws them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<[f64; 2]>,
}

impl Measurement {
    /// The value of the run as its point wants it.
    pub fn value_of(&self, point: &Point) -> Option<f64> {
        if point.best { self.value } else { self.last }
    }

    /// The day of the measurement.
    pub fn day(&self) -> &str {
        self.date.get(..10).unwrap_or(&self.date)
    }

    /// What a run says of a point. `machine` is said of runs that did not record theirs.
    fn of(
        run: &RunRecord,
        variant: &Variant,
        point: &Point,
        seed: u64,
        experiment: String,
        machine: Option<&str>,
    ) -> Result<Option<Self>, ZooError> {
        let Some(ended) = run.ended else { return Ok(None) };
        let best = run.best(&point.metric);
        let (parameters, state_size) = run.sizes()?;
        let engine = run.engine();
        Ok(Some(Self {
            point: point.name.clone(),
            seed,
            metric: point.metric.clone(),
            value: best.value,
            step: best.step,
            last: best.last,
            steps: run.steps(),
            ended,
            seconds: run.seconds().map(rounded),
            tokens_per_second: run.tokens_per_second().map(f64::round),
            parameters: Some(parameters),
            state_size: Some(state_size),
            set: point.set.clone(),
            command: command(variant, point, seed),
            commit: run.plan.host.as_deref().map(commit),
            date: timestamp(run.time()),
            machine: engine["machine"].as_str().or(machine).map(str::to_owned),
            executor: executor(&engine),
            experiment,
            curve: Vec::new(),
        }))
    }
}

/// The command that repeats a run.
pub fn command(variant: &Variant, point: &Point, seed: u64) -> String {
    let mut command = format!("fwp-host train --recipe zoo/{}", variant.name);
    for set in &point.set {
        command += &format!(" --set {}", quoted(set));
    }
    if variant.reads_data() {
        command += " --data TEXT";
    }
    command + &format!(" --seed {seed}")
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=+:,@%".contains(c);
    if word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// The commit in `0.1.0 (195794f42c51)`, else all of it.
fn commit(host: &str) -> String {
    let inside = host.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inside.unwrap_or(host).into()
}

/// What carried out the rules: `scan`, or `chunkwise and scan`, with the number of threads.
fn executor(engine: &Value) -> Option<String> {
    let mut names: Vec<&str> = engine["choices"].as_array()?.iter().filter_map(|c| c["executor"].as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let names = if names.is_empty() { "libtorch".into() } else { names.join(" and ") };
    let threads = match engine["threads"].as_u64() {
        Some(1) => ", 1 thread".into(),
        Some(n) => format!(", {n} threads"),
        None => String::new(),
    };
    Some(names + &threads)
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}

/// A point in time, from seconds since 1970, as `2026-03-02T10:15:00Z`.
pub fn timestamp(seconds: u64) -> String {
    let text = fwp_recipe::timestamp(seconds);
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    format!("{}-{}-{}T{}:{}:{}Z", part(0, 4), part(4, 6), part(6, 8), part(9, 11), part(11, 13), part(13, 15))
}

/// What there is to say of a variant, and what was left out.
#[derive(Debug, Default)]
pub struct Collected {
    /// One for each point and seed that was measured, in the order of the points.
    pub measurements: Vec<Measurement>,
    /// What was not taken and why, one line each.
    pub notices: Vec<String>,
}

/// The measurements that lie beside a recipe, as they were written.
///
/// # Errors
/// A file that cannot be read.
pub fn read(path: &Path) -> Result<Vec<Measurement>, ZooError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&load(path)?).map_err(|e| ZooError::Refused {
        place: format!("{}:{}:{}", path.display(), e.line(), e.column()),
        message: format!("not the measurements of a variant: {e}"),
        help: "restore the file, or remove it and collect the runs again with `zoo results`".into(),
    })
}

/// The text of a file of measurements: one a line, so that a change of one is one line.
pub fn text(measurements: &[Measurement]) -> String {
    let lines: Vec<String> = measurements.iter().map(|m| serde_json::to_string(m).unwrap_or_default()).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// Writes measurements; says whether the file changed. Without any the file is taken away.
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, measurements: &[Measurement]) -> Result<bool, ZooError> {
    if measurements.is_empty() {
        return match path.exists() {
            true => std::fs::remove_file(path).map(|()| true).map_err(io("remove", path)),
            false => Ok(false),
        };
    }
    crate::write_if_changed(path, text(measurements).as_bytes())
}

/// The measurements of a variant that lie beside its recipe and count.
///
/// # Errors
/// As [`read`] and [`counted`].
pub fn of(variant: &Variant) -> Result<Vec<Measurement>, ZooError> {
    Ok(counted(variant, read(&variant.results())?)?.measurements)
}

/// The measurements of a variant that count: of points and seeds that there are, by the recipe as it is now.
///
/// # Errors
/// A point that the recipe refuses.
pub fn counted(variant: &Variant, measurements: Vec<Measurement>) -> Result<Collected, ZooError> {
    collect(variant, None, measurements, None, |_| false)
}

/// Joins the measurements that are there with those of the finished runs below a folder.
///
/// A run counts where its experiment is that of the recipe and point as they are now; the newer of two that count wins.
/// `machine` is said of runs that did not record theirs; `curves` says for which points figures draw curves.
///
/// # Errors
/// A point that the recipe refuses, and runs that cannot be read.
pub fn collect(
    variant: &Variant,
    runs: Option<&Path>,
    old: Vec<Measurement>,
    machine: Option<&str>,
    curves: impl Fn(&Point) -> bool,
) -> Result<Collected, ZooError> {
    let mut collected = Collected::default();
    let mut old = old;
    for point in &variant.points {
        let resolved = variant.resolve(point, &Overrides::default())?;
        let experiment = digest(&resolved);
        for seed in &point.seeds {
            let title = format!("{}/{}-seed{seed}", variant.name, point.name);
            let kept = old.iter().position(|m| m.point == point.name && m.seed == *seed).map(|i| old.remove(i));
            let kept = kept.filter(|m| {
                let same = m.experiment == experiment && m.metric == point.metric;
                if !same {
                    collected.notices.push(format!("{title}: measured with another recipe; it does not count any more"));
                }
                same
            });
            let new = match runs {
                Some(runs) => match finished(&variant.run_folder(runs, point, *seed), &resolved, *seed)? {
                    Found::Run(run) => {
                        let new = Measurement::of(&run, variant, point, *seed, experiment.clone(), machine)?;
                        let curve = if curves(point) { run.curve(&point.metric, CURVE) } else { Vec::new() };
                        new.map(|new| Measurement { curve, ..new })
                    }
                    Found::Other(differences) => {
                        collected.notices.push(format!("{title}: the run is left out, {differences}"));
                        None
                    }
                    Found::Nothing => None,
                },
                None => None,
            };
            let newest = match (kept, new) {
                (Some(kept), Some(new)) if kept.date > new.date => Some(kept),
                // The same run, collected again: what was said of its machine holds.
                (Some(kept), Some(new)) if kept.date == new.date => {
                    Some(Measurement { machine: new.machine.or(kept.machine), ..new })
                }
                (kept, new) => new.or(kept),
            };
            collected.measurements.extend(newest);
        }
    }
    for gone in old {
        let title = format!("{}/{}-seed{}", variant.name, gone.point, gone.seed);
        collected.notices.push(format!("{title}: there is no such point or seed any more; it does not count"));
    }
    Ok(collected)
}

/// What a folder of runs has for a point and a seed.
enum Found {
    Run(Box<RunRecord>),
    /// A run of another experiment, and in what it differs.
    Other(String),
    Nothing,
}

fn finished(folder: &Path, wanted: &Resolved, seed: u64) -> Result<Found, ZooError> {
    let RunState::There(run) = look(folder)? else { return Ok(Found::Nothing) };
    if run.ended.is_none() {
        return Ok(Found::Nothing);
    }
    Ok(match differences(&run, wanted, seed)? {
        Some(text) => Found::Other(text),
        None => Found::Run(run),
    })
}

/// In what a run differs from what is wanted, for a person; nothing where both give the same numbers.
///
/// # Errors
/// A run that this host cannot read.
pub fn differences(run: &RunRecord, wanted: &Resolved, seed: u64) -> Result<Option<String>, ZooError> {
    let (there, here) = (run.experiment()?, wanted.experiment());
    let mut texts: Vec<String> = there
        .differences(&here)
        .iter()
        .map(|(key, there, here)| format!("{key} is {} there and {} here", there.unwrap_or("default"), here.unwrap_or("default")))
        .collect();
    if run.plan.train.seed != seed {
        texts.push(format!("its seed is {}", run.plan.train.seed));
    }
    Ok((!texts.is_empty()).then(|| texts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_read_back_and_stand_one_a_line() {
        let one = Measurement {
            point: "20-keys".into(),
            seed: 2,
            metric: "eval/loss".into(),
            value: Some(0.1 + 0.2),
            step: 600,
            last: None,
            steps: 600,
            ended: Ended::Target,
            seconds: Some(1.25),
            tokens_per_second: None,
            parameters: Some(1),
            state_size: None,
            set: vec!["task.keys=20".into()],
            command: "x".into(),
            commit: None,
            date: timestamp(951_868_799),
            machine: None,
            executor: None,
            experiment: "00".into(),
            curve: vec![[1.0, 0.5]],
        };
        assert_eq!((one.day(), one.date.as_str()), ("2000-02-29", "2000-02-29T23:59:59Z"));
        let both = [one.clone(), Measurement { seed: 3, curve: Vec::new(), ended: Ended::NotFinite, ..one }];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        assert!(write(&path, &both).unwrap() && !write(&path, &both).unwrap());
        assert_eq!(read(&path).unwrap(), both);
        assert_eq!(text(&both).lines().count(), 4);
        assert!(write(&path, &[]).unwrap() && !path.exists() && read(&path).unwrap().is_empty());
        std::fs::write(&path, "[\n{\"point\": 3}]").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("results.json:2:"), "{error}");
    }

    #[test]
    fn commands_are_quoted_as_a_shell_wants_them_and_commits_read_from_versions() {
        assert_eq!(quoted("task.keys=20"), "task.keys=20");
        assert_eq!(quoted("a={ b = \"c\" }"), "'a={ b = \"c\" }'");
        assert_eq!((commit("0.1.0 (1957-dirty)"), commit("0.1.0")), ("1957-dirty".into(), "0.1.0".into()));
        let engine =
            serde_json::json!({"threads": 2, "choices": [{"executor": "scan"}, {"executor": "chunkwise"}, {"executor": "scan"}]});
        assert_eq!(executor(&engine).as_deref(), Some("chunkwise and scan, 2 threads"));
        assert_eq!(executor(&serde_json::json!({"threads": 1, "choices": []})).as_deref(), Some("libtorch, 1 thread"));
        assert_eq!(executor(&Value::Null), None);
    }
}
