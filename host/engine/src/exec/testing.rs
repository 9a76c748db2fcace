//! Helpers of tests: the delta rule on shapes of a test's own.

use std::sync::Arc;

use fwp_program::SlotPrograms;
use fwp_sdk::build::Dims;
use fwp_sdk::program::{Kind as PartKind, Program};
use fwp_sdk::{Ask, Part, Request};
use tch::{Device, Kind};

use super::choose::Executors;
use super::evaluate::Table;
use super::prepared::Slot;
use super::scan::FastWeights;
use super::value::Precision;

/// The delta rule with keys and values of these sizes.
pub(crate) fn delta(key: usize, value: usize) -> Arc<Slot> {
    let dims = Dims { key_raw: key, key, value, heads: 1, ..Dims::ONE };
    let request =
        Request { kind: PartKind::UpdateRule, name: "delta".into(), config: serde_json::Map::new(), ask: Ask::Rule { dims } };
    let rule = Part::update_rule::<fwp_rule_delta::Delta>().describe(&request).unwrap();
    let rule = Program::from_bytes(&rule).unwrap();
    let map = crate::command::apply::identity(key);
    Arc::new(Slot::new(&SlotPrograms { name: "main".into(), layers: None, map, rule }).unwrap())
}

/// Fast weights of a rule without parameters.
pub(crate) fn fast_weights(slot: &Arc<Slot>, kind: Kind, executors: Executors) -> FastWeights {
    FastWeights {
        slot: slot.clone(),
        index: 0,
        parameters: Table::default(),
        prefix: String::new(),
        precision: Precision { kind, device: Device::Cpu },
        memory_limit: u64::MAX,
        executors: Arc::new(executors),
    }
}
