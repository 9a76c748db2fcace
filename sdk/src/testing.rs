//! For a plugin's own tests: a part described as a host would, without a library or a child process.
//!
//! The request passes through the same border as in a built plugin, so a mistake in a description comes back as its message.
//! Every part is described twice: one that answers differently the second time is refused, as a host would refuse to resume with it.
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
use crate::program::{Program, Role, Scope, SlotInterface, Training, entry};

/// The border is not made for concurrent calls (it replaces the panic hook), and tests run on several threads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Sizes for a rule that are all different primes: what fits by accident with equal sizes does not fit here.
pub const DIMS: Dims = Dims { heads: 2, key_raw: 5, key: 7, value: 3, layers: 11, max_len: 1000 };

fn answer(part: Part, config: Value, ask: Ask) -> Result<Vec<u8>, String> {
    let Value::Object(config) = config else {
        return Err(format!("a configuration is a table, not {config}"));
    };
    let info = part.info();
    let request = Request { kind: info.kind, name: info.name, config, ask };
    let request = serde_json::to_vec(&request).map_err(|e| e.to_string())?;
    // The lock guards no data, so a test that panicked while holding it spoils nothing.
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let describe = || border::describe(std::slice::from_ref(&part), request.as_slice().into()).into_result();
    let (first, second) = (describe().map_err(String::from)?, describe().map_err(String::from)?);
    if first != second {
        return Err("the same request was answered in two ways".into());
    }
    Ok(first.into())
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

/// What a rule declares, in one line: inputs, states, parameters, and outputs other than `output`, each with its shape.
///
/// ```
/// use fwp_sdk::{prelude::*, serde_json::json, testing};
///
/// config! {
///     /// W_t = a W_{t-1} + v_t k_t^T,  o_t = W_t q_t
///     pub struct Faded {}
/// }
///
/// impl UpdateRule for Faded {
///     const NAME: &'static str = "faded";
///     const CITATION: &'static str = "example";
///     const OBJECTIVE: &'static str = "example";
///     fn signature(&self, dims: Dims) -> Signature {
///         Signature::new(dims)
///             .state("w", [dims.value, dims.key], StateStart::Zeros)
///             .parameter("a", [], Init::ones())
///             .constant()
///     }
///     fn step(&self, s: &mut Step) {
///         let (q, k, v) = s.query_key_value();
///         let w = s.parameter("a") * s.state("w") + outer(v, k);
///         s.output(w.matvec(q));
///         s.set_state("w", w);
///     }
/// }
///
/// let program = testing::rule::<Faded>(json!({}), testing::DIMS).unwrap();
/// assert_eq!(testing::signature(&program), "query q [7], key k [7], value v [3]; state w [3, 7]; constant a []");
/// ```
///
/// `raw` stands before a query or key that the feature map leaves alone, `n of` before an input that comes n times a token,
/// `for n heads` behind one that heads share, `held n` behind a held state, `no decay` and a wider scope behind a parameter.
pub fn signature(rule: &Program) -> String {
    let inputs = rule.inputs.iter().map(|i| {
        let raw = if matches!(i.role, Role::Query | Role::Key) && !i.mapped() { "raw " } else { "" };
        let count = i.count.map(|n| format!("{n} of ")).unwrap_or_default();
        let heads = i.heads.map(|n| format!(" for {n} heads")).unwrap_or_default();
        let role = match i.role {
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
            Role::Gate => "signal",
        };
        format!("{raw}{count}{role} {} {:?}{heads}", i.name, i.shape)
    });
    let states = rule.states.iter().map(|s| {
        let held = if s.held > 1 { format!(" held {}", s.held) } else { String::new() };
        format!("state {} {:?}{held}", s.name, s.shape)
    });
    let step = rule.entry(entry::STEP);
    let parameters = step.into_iter().flat_map(|f| &f.parameters).map(|p| {
        let (kind, decay) = match p.training {
            Training::Trained { decay: true } => ("parameter", ""),
            Training::Trained { decay: false } => ("parameter", " no decay"),
            Training::Constant => ("constant", ""),
            Training::Redrawn => ("redrawn", ""),
        };
        let scope = if p.scope == Scope::Head { String::new() } else { format!(" for a {:?}", p.scope).to_lowercase() };
        format!("{kind} {} {:?}{decay}{scope}", p.name, p.shape)
    });
    let extras =
        step.into_iter().flat_map(|f| &f.outputs).filter_map(|o| o.name.strip_prefix("extra.").map(|n| format!("extra {n}")));
    let parts: [Vec<String>; 4] = [inputs.collect(), states.collect(), parameters.collect(), extras.collect()];
    parts.iter().filter(|p| !p.is_empty()).map(|p| p.join(", ")).collect::<Vec<_>>().join("; ")
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
