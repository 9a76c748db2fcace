//! How a command ends: exit codes shared with `fwp-host`.

use std::fmt;
use std::process::ExitCode;

use crate::exec::choose::Refused;

/// Why a command failed, by what the user can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything else.
    Unexpected = 1,
    /// A recipe, program or input is refused.
    Input = 3,
    /// libtorch, a device, memory or the disk.
    Environment = 5,
    /// The loss became non-finite, or memory ran out.
    Training = 6,
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// By what the user can do.
    pub kind: Kind,
    /// What happened and what to do.
    pub error: anyhow::Error,
}

/// The exit code of a run that was interrupted and saved.
pub const INTERRUPTED: u8 = 7;

impl Failure {
    /// An input that is refused.
    pub fn input(error: impl Into<anyhow::Error>) -> Failure {
        Failure { kind: Kind::Input, error: error.into() }
    }

    /// Something around the program that is not as needed.
    pub fn environment(error: impl Into<anyhow::Error>) -> Failure {
        Failure { kind: Kind::Environment, error: error.into() }
    }

    /// Prints the failure on stderr and gives its exit code.
    pub fn report(&self) -> ExitCode {
        match self.error.chain().find_map(|cause| cause.downcast_ref::<Refused>()) {
            // Where in the slow net the rule stands adds nothing: the choice is the rule's.
            Some(refused) => eprintln!("error: {}\n  cause: {}\n  remedy: use --exec auto", refused.headline(), refused.why),
            None => eprintln!("error: {self}"),
        }
        ExitCode::from(self.kind as u8)
    }
}

/// What libtorch says where memory ran out: on the CPU, on a GPU.
const NO_MEMORY: &[&str] = &["can't allocate memory", "out of memory"];

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        if error.chain().any(|link| NO_MEMORY.iter().any(|words| link.to_string().contains(words))) {
            let what = "memory ran out: lower train.batch_size (with more train.accumulate) or train.memory_limit";
            return Failure { kind: Kind::Training, error: error.context(what) };
        }
        Failure { kind: Kind::Unexpected, error }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The chain from outside to inside, each link once; messages of libtorch end at their first line.
        let mut last = String::new();
        for (i, link) in self.error.chain().enumerate() {
            let text = crate::shim::first_line(&link.to_string());
            if last.contains(&text) {
                continue;
            }
            if i > 0 {
                f.write_str(": ")?;
            }
            f.write_str(&text)?;
            last = text;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn memory_that_ran_out_is_told_from_the_unexpected() {
        let inner = anyhow!("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 7 bytes");
        let failure = Failure::from(inner.context("step 1"));
        assert_eq!(failure.kind, Kind::Training);
        assert!(failure.to_string().starts_with("memory ran out: lower train.batch_size"), "{failure}");
        assert!(failure.to_string().contains("step 1: [enforce fail"), "{failure}");
        assert_eq!(Failure::from(anyhow!("CUDA out of memory. Tried to allocate 2 GiB")).kind, Kind::Training);
        assert_eq!(Failure::from(anyhow!("shapes differ")).kind, Kind::Unexpected);
    }
}
