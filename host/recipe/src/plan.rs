//! What a run executes: the resolved recipe joined with the programs of its parts.
//!
//! A plan lies in the run's folder as `plan.json` and is all that training, resuming and evaluating
//! need; neither the recipe nor a plugin is opened again.

use fwp_task::TaskSpec;
use serde::{Deserialize, Serialize};

use crate::settings::{CheckpointSettings, EvalSettings, Expect, MonitorSettings, StopSettings, TrainSettings};

/// The program of a part, as a file of the run's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartFile {
    /// `slow-net`, `feature-map` or `update-rule`.
    pub kind: String,
    /// The part's own name, such as `delta`.
    pub name: String,
    /// The file, relative to the run's folder: `programs/...`.
    pub file: String,
    /// The sha256 of the file, in hexadecimal.
    pub sha256: String,
    /// The library that described the part, and its sha256, for people.
    pub origin: String,
}

/// An update rule with its feature map and its layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// `main`, or the name that the recipe gives the rule.
    pub name: String,
    /// The layers that use it, ascending; `None` means all that no other slot names.
    pub layers: Option<Vec<usize>>,
    /// The map of keys and queries.
    pub feature_map: PartFile,
    /// The rule.
    pub update_rule: PartFile,
}

/// What a run executes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The version of this layout: [`Plan::FORMAT`].
    pub format: u32,
    /// The version and commit of the host that began the run.
    pub host: Option<String>,
    /// The recipe's short name.
    pub recipe: String,
    /// One line: model and task.
    pub title: Option<String>,
    /// Paper, year, section.
    pub cite: Option<String>,
    /// Anything else worth knowing.
    pub notes: Option<String>,
    /// The net that is trained by gradient descent.
    pub slow_net: PartFile,
    /// The rules with their maps and layers.
    pub slots: Vec<Slot>,
    /// What is learnt.
    pub task: TaskSpec,
    /// What the task's data looked like when the run began
    /// ([`Task::fingerprint`](fwp_task::Task::fingerprint)); a run that finds other data is refused.
    pub task_fingerprint: Option<String>,
    /// How the slow net is trained.
    pub train: TrainSettings,
    /// Evaluation during training.
    pub eval: EvalSettings,
    /// When a run ends before its last step.
    pub stop: StopSettings,
    /// What is kept on disk.
    pub checkpoint: CheckpointSettings,
    /// What is written while training.
    pub monitor: MonitorSettings,
    /// What was published, and what the recipe must reach.
    pub expect: Option<Expect>,
}

/// Why a plan cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A newer or older host wrote it.
    #[error("the plan has format {found} and this host reads {}; use the host that wrote it", Plan::FORMAT)]
    Format {
        /// The format found.
        found: u64,
    },
    /// Not a plan.
    #[error("not a plan: {0}; start a new run, or restore the file")]
    Malformed(#[from] serde_json::Error),
}

impl Plan {
    /// The version of the layout that this host writes and reads.
    pub const FORMAT: u32 = 1;

    /// The plan as JSON, for people too.
    ///
    /// # Errors
    /// A path in the plan that is not UTF-8.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// Another format, an unknown or missing field, or a value of the wrong type.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        /// The one field that every format has.
        #[derive(Deserialize)]
        struct Header {
            format: u64,
        }
        // Looked at first: the fields of another format would only give a puzzling message.
        let header: Header = serde_json::from_str(text)?;
        if header.format != u64::from(Self::FORMAT) {
            return Err(PlanError::Format { found: header.format });
        }
        Ok(serde_json::from_str(text)?)
    }
}
