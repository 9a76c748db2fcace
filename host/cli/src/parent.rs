//! A run that `zoo run` started ends with it, however it ended.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, kill_process, set_parent_process_death_signal, test_kill_process};

/// The variable in which `zoo run` names itself to the processes that it starts.
pub const PARENT: &str = "FWP_ZOO_PROCESS";

/// Asks the system for SIGTERM when the process that is named in [`PARENT`] is gone: the run then saves and leaves, as it would
/// for a SIGTERM of the user's. Without that variable nothing is asked.
///
/// A parent that was gone even before ends the process, by the same signal.
pub fn end_with_parent() {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|id| Pid::from_raw(id.parse().ok()?)) else { return };
    // Where the system refuses, the run merely outlives a command that is killed.
    _ = set_parent_process_death_signal(Some(Signal::TERM));
    // Asked too late when the parent ended in between.
    if test_kill_process(parent) == Err(Errno::SRCH) {
        _ = kill_process(getpid(), Signal::TERM);
    }
}
