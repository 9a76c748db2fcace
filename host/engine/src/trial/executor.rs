//! Which executors there are for a rule, and running one by its name.

use std::sync::Arc;

use anyhow::Result;

use super::draw::Wanted;
use super::run::Subject;
use crate::exec::choose::{Executor as Kinds, Executors, Policy, Refused};
use crate::exec::value::Precision;

/// The executor that judges all others.
pub const REFERENCE: &str = "reference";

/// An executor, and whether it can run a rule.
#[derive(Clone, Debug)]
pub struct Executor {
    /// Its name, as `--exec` takes it.
    pub name: &'static str,
    /// Why it cannot run the rule, if it cannot.
    pub applies: Result<(), String>,
}

/// Every executor, the reference first, tried on two steps forward and backward.
///
/// # Errors
/// Numbers to try it on that cannot be drawn.
pub fn executors_of(subject: &Subject, precision: Precision) -> Result<Vec<Executor>> {
    let data = subject.draw(Wanted { batch: 1, steps: 2, states: false, masks: false }, 0)?;
    let plain = subject.run(REFERENCE, precision, &data, None)?;
    let weights: Vec<_> = subject.weights(&plain, 0)?;
    let one = |name: &'static str| {
        let applies = match subject.run(name, precision, &data, Some(&weights)) {
            Err(e) => refusal(&e).map_or(Ok(()), Err),
            // What goes wrong in it otherwise is a fault, and shows where it is used.
            Ok(_) => Ok(()),
        };
        Executor { name, applies }
    };
    Ok(names().into_iter().map(one).collect())
}

/// The names of all executors, the reference first.
pub fn names() -> Vec<&'static str> {
    Kinds::ALL.into_iter().map(Kinds::name).collect()
}

/// Runs with one executor and no other.
///
/// # Errors
/// There is none of this name.
pub fn only(name: &str) -> Result<Arc<Executors>> {
    Ok(Arc::new(Executors::new(name.parse::<Policy>().map_err(anyhow::Error::msg)?)))
}

/// The reason, where the error is that an executor does not serve a rule.
fn refusal(error: &anyhow::Error) -> Option<String> {
    let refused = error.chain().find_map(|cause| cause.downcast_ref::<Refused>())?;
    Some(refused.why.trim_end_matches(['.', ' ']).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_a_fault() {
        let why = "there is no compiler (cc). ".to_string();
        let refused = anyhow::Error::from(Refused { executor: Kinds::Scan, part: "r".into(), why }).context("in layer 1");
        assert_eq!(refusal(&refused).as_deref(), Some("there is no compiler (cc)"));
        assert_eq!(refusal(&anyhow::anyhow!("a matrix has other sizes")), None);
    }

    #[test]
    fn every_name_is_a_policy() {
        assert!(names().len() >= 3 && names()[0] == REFERENCE);
        assert!(names().iter().all(|n| only(n).is_ok()) && only("nothing").is_err());
    }
}
