//! What a run leaves behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folder of a run.
pub struct Run {
    folder: PathBuf,
}

/// What depends on the clock and not on the run.
const CLOCK: [&str; 2] = ["time", "train/tokens_per_second"];

impl Run {
    /// The run in a folder.
    ///
    /// # Panics
    /// When there is none.
    pub fn at(folder: &Path) -> Run {
        assert!(folder.join("plan.json").is_file(), "{} is no run", folder.display());
        Run { folder: folder.into() }
    }

    /// A path in the run's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The text of a file of the run.
    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The lines of `metrics.jsonl`.
    pub fn metrics(&self) -> Vec<Value> {
        let text = self.read("metrics.jsonl");
        assert!(text.ends_with('\n'), "a line of metrics is cut off");
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect()
    }

    /// The lines without what depends on the clock.
    pub fn numbers(&self) -> Vec<Value> {
        let mut lines = self.metrics();
        for line in &mut lines {
            let object = line.as_object_mut().expect("an object a line");
            CLOCK.iter().for_each(|name| _ = object.remove(*name));
        }
        lines
    }

    /// The values of one metric by step.
    pub fn metric(&self, name: &str) -> BTreeMap<u64, f64> {
        let lines = self.metrics();
        let values = lines.iter().filter_map(|l| Some((l["step"].as_u64()?, l[name].as_f64()?)));
        let mut found = BTreeMap::new();
        for (step, value) in values {
            assert!(found.insert(step, value).is_none(), "{name} is there twice at step {step}");
        }
        found
    }

    /// The steps of the checkpoints, ascending.
    pub fn checkpoints(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(self.path("checkpoints")).into_iter().flatten();
        let names = entries.map(|e| e.expect("an entry").file_name().into_string().expect("a name"));
        let mut steps: Vec<u64> = names.filter_map(|n| n.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }

    /// The parameters of the newest checkpoint, as bytes of a safetensors file.
    pub fn model(&self) -> Vec<u8> {
        let step = self.checkpoints().pop().expect("a checkpoint");
        std::fs::read(self.path(&format!("checkpoints/step-{step}/model.safetensors"))).expect("parameters")
    }

    /// Asserts that another run computed the same, bit for bit: every metric and the final parameters.
    pub fn assert_same(&self, other: &Run) {
        let (a, b) = (self.numbers(), other.numbers());
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(a, b, "{} and {} part here", self.folder.display(), other.folder.display());
        }
        assert_eq!(a.len(), b.len(), "numbers of lines");
        assert_eq!(self.checkpoints().last(), other.checkpoints().last());
        assert!(self.model() == other.model(), "the final parameters differ");
    }
}
