//! The life of the engine is bound to that of the host that started it.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, kill_process, set_parent_process_death_signal, test_kill_process};

/// The variable in which a host names itself to the engine that it starts.
pub const HOST: &str = "FWP_HOST_PROCESS";

/// Asks the system for SIGTERM when the host that started this process is gone, however it ended: a run then finishes its step,
/// saves and leaves, as it would for a SIGTERM of the user's.
///
/// Without a host, which names itself in [`HOST`], nothing is asked: who starts the engine by hand may leave before it.
/// Call it first of all. A host that was gone even before ends the process, by the same signal.
pub fn end_with_host() {
    let Some(host) = std::env::var(HOST).ok().and_then(|id| Pid::from_raw(id.parse().ok()?)) else { return };
    // Where the system refuses, the engine merely outlives a host that is killed.
    _ = set_parent_process_death_signal(Some(Signal::TERM));
    // Asked too late when the host ended in between. The parent may also be a script that stands between the two, so ask for the host.
    if test_kill_process(host) == Err(Errno::SRCH) {
        _ = kill_process(getpid(), Signal::TERM);
    }
}
