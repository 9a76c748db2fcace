//! For a plugin's own tests: a part described as a host would, without a library or a child process.
//!
//! The request passes through the same border as in a built plugin, so a mistake in a description comes back as its message.
//!
//! ```
//! use fwp_sdk::{prelude::*, serde_json::json, testing};
//!
//! config! {
//!     /// phi(x) = max(x, 0)
//!     pub struct Relu {}
//! }
//!
//! impl FeatureMap for Relu {
//!     const NAME: &'static str = "relu";
//!     const CITATION: &'static str = "example";
//!     fn features(&self, dim: usize) -> usize {
//!         dim
//!     }
//!     fn apply(&self, map: &Map) -> Expr {
//!         map.input().relu()
//!     }
//! }
//!
//! let program = testing::map::<Relu>(json!({ "normalise": "sum" }), 7).unwrap();
//! assert_eq!(program.name, "relu");
//! assert!(testing::map::<Relu>(json!({ "colour": 1 }), 7).unwrap_err().contains("unknown key `colour`"));
//! ```

use std::sync::Mutex;

use serde_json::Value;

use crate::border;
use crate::build::{Dims, Memory, TaskIo};
use crate::part::{Ask, FeatureMap, Memories, Part, Request, SlowNet, UpdateRule};
use crate::program::{Program, SlotInterface};

/// The border is not made for concurrent calls (it replaces the panic hook), and tests run on several threads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn answer(part: Part, config: Value, ask: Ask) -> Result<Vec<u8>, String> {
    let Value::Object(config) = config else {
        return Err(format!("a configuration is a table, not {config}"));
    };
    let info = part.info();
    let request = Request { kind: info.kind, name: info.name, config, ask };
    let request = serde_json::to_vec(&request).map_err(|e| e.to_string())?;
    // The lock guards no data, so a test that panicked while holding it spoils nothing.
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let answer = border::describe(&[part], request.as_slice().into());
    answer.into_result().map(Vec::from).map_err(String::from)
}

fn program(part: Part, config: Value, ask: Ask) -> Result<Program, String> {
    Program::from_bytes(&answer(part, config, ask)?).map_err(|e| e.to_string())
}

fn json<T: serde::de::DeserializeOwned>(part: Part, config: Value, ask: Ask) -> Result<T, String> {
    serde_json::from_slice(&answer(part, config, ask)?).map_err(|e| e.to_string())
}

/// The program of an update rule with this configuration, for these sizes.
///
/// # Errors
/// The message that a host would show.
pub fn rule<R: UpdateRule>(config: Value, dims: Dims) -> Result<Program, String> {
    program(Part::update_rule::<R>(), config, Ask::Rule { dims })
}

/// The program of a feature map with this configuration, for raw keys of `dim` elements.
///
/// # Errors
/// The message that a host would show.
pub fn map<M: FeatureMap>(config: Value, dim: usize) -> Result<Program, String> {
    program(Part::feature_map::<M>(), config, Ask::Map { dim })
}

/// How many features a feature map promises for raw keys of `dim` elements.
///
/// # Errors
/// The message that a host would show.
pub fn features<M: FeatureMap>(config: Value, dim: usize) -> Result<usize, String> {
    json(Part::feature_map::<M>(), config, Ask::Features { dim })
}

/// The fast weights that a slow net wants in the slot `main` for a task.
///
/// # Errors
/// The message that a host would show.
pub fn memory<N: SlowNet>(config: Value, task: &TaskIo) -> Result<Memory, String> {
    memory_of::<N>(config, task, "main")
}

/// The fast weights that a slow net wants in the slot of this name for a task.
///
/// # Errors
/// The message that a host would show.
pub fn memory_of<N: SlowNet>(config: Value, task: &TaskIo, slot: &str) -> Result<Memory, String> {
    let ask = Ask::Memories { task: task.clone(), slots: vec![slot.into()] };
    let memories: Memories = json(Part::slow_net::<N>(), config, ask)?;
    memories.slots.into_iter().next().ok_or_else(|| "the slow net answers for no slot".to_string())
}

/// The program of a slow net for a task; each slot comes with the layers that use it, `None` for all that no other slot lists.
///
/// # Errors
/// The message that a host would show.
pub fn net<N: SlowNet>(config: Value, task: &TaskIo, slots: &[(SlotInterface, Option<Vec<usize>>)]) -> Result<Program, String> {
    let layers = slots.iter().map(|(s, l)| (s.name.clone(), l.clone())).collect();
    let slots = slots.iter().map(|(s, _)| s.clone()).collect();
    program(Part::slow_net::<N>(), config, Ask::Net { task: task.clone(), slots, layers })
}
