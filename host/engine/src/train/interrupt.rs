//! Leaving on request: the first signal ends the run after its step, the second at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::shim::leave_now;

/// The exit code of the second signal, as a shell gives it for SIGINT and for SIGTERM.
const CODES: [i32; 2] = [130, 143];

/// Whether the run has been asked to end. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens to SIGINT and SIGTERM for the rest of the process.
    ///
    /// The first of them sets the flag and says so through `say`; the second ends the process with code 130 or 143.
    ///
    /// # Errors
    ///
    /// The system refused the handlers or the thread.
    pub fn on_signals(say: impl Fn(&str) + Send + 'static) -> std::io::Result<Self> {
        let interrupt = Self::default();
        let asked = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        // Registered before the thread starts: no signal is missed after this function returns.
        let (mut int, mut term) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async move {
                loop {
                    let code = tokio::select! {
                        _ = int.recv() => CODES[0],
                        _ = term.recv() => CODES[1],
                    };
                    if asked.is_asked() {
                        leave_now(code);
                    }
                    asked.ask();
                    say("finishing the step and saving; a second signal leaves at once");
                }
            });
        })?;
        Ok(interrupt)
    }

    /// Asks the run to end after its step.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Whether the run has been asked to end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn the_first_signal_asks_and_the_second_leaves() {
        let binary = std::env::current_exe().unwrap();
        let inner = "train::interrupt::tests::two_signals_inner";
        let output = Command::new(binary).args(["--exact", inner, "--ignored", "--nocapture"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(143), "{text}");
        assert!(text.contains("finishing the step and saving"), "{text}");
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own: it ends the process"]
    fn two_signals_inner() {
        let kill = |name: &str| {
            Command::new("kill").args([name, &std::process::id().to_string()]).status().unwrap();
        };
        let interrupt = Interrupt::on_signals(|text| eprintln!("{text}")).unwrap();
        kill("-INT");
        let until = Instant::now() + Duration::from_secs(5);
        while !interrupt.is_asked() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(interrupt.is_asked());
        kill("-TERM");
        std::thread::sleep(Duration::from_secs(5));
        panic!("the second signal did not end the process");
    }
}
