//! Several runs side by side, each a process of its own: starting them, passing signals on, and how each of them ended.

use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::failure::{Code, Failure};

/// How often whoever watches is told that time has passed.
const TICK: Duration = Duration::from_millis(500);
/// How long runs may take to leave after the second signal.
const PATIENCE: Duration = Duration::from_secs(10);

/// What happens while runs go on.
#[derive(Debug)]
pub enum Event {
    /// A run was started, by its number.
    Started(usize),
    /// A run has ended, by its number; an error is one of starting it.
    Ended(usize, std::io::Result<ExitStatus>),
    /// A signal asks for an end: how many have asked by now.
    Stopping(u32),
    /// Some time has passed.
    Tick,
}

/// Runs so many commands, at most `at_once` at a time, in their order, and tells `on` what happens. Says whether a signal ended
/// it early.
///
/// A command is made when its turn comes: what it holds, such as files, is then not held by all of them.
///
/// The first signal (Ctrl-C, SIGTERM and their like) is passed on to every run, which saves and leaves, and no other is
/// started. The second is passed on as well, which makes them leave at once; who has not left some seconds later is killed.
///
/// # Errors
/// Signals that cannot be heard.
pub async fn run(
    count: usize,
    at_once: usize,
    command: impl Fn(usize) -> std::io::Result<Command>,
    mut on: impl FnMut(Event),
) -> Result<bool, Failure> {
    let cannot = |e: std::io::Error| {
        Failure::new(Code::Environment, "fwp-host cannot listen for signals", e.to_string(), "check the limits (ulimit -a)")
    };
    // Before the first start, so that no signal falls between.
    let mut ends = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()] {
        ends.push(signal(kind).map_err(cannot)?);
    }
    let [interrupt, terminate, hangup, quit] = &mut ends[..] else { return Ok(false) };
    let mut stop = signal(SignalKind::from_raw(Signal::TSTP.as_raw())).map_err(cannot)?;
    let (pass_on, _) = broadcast::channel::<Signal>(16);
    let mut tick = tokio::time::interval(TICK);
    let mut waiting = 0..count;
    let mut running: JoinSet<(usize, std::io::Result<ExitStatus>)> = JoinSet::new();
    let mut asked = 0;
    loop {
        while asked == 0 && running.len() < at_once.max(1) {
            let Some(number) = waiting.next() else { break };
            // A group of its own: a Ctrl-C in the terminal reaches it through us alone.
            let child = command(number).and_then(|mut command| command.process_group(0).spawn());
            on(Event::Started(number));
            let signals = pass_on.subscribe();
            running.spawn(async move { (number, watched(child, signals).await) });
        }
        if running.is_empty() {
            return Ok(asked > 0);
        }
        tokio::select! {
            Some(Ok((number, status))) = running.join_next() => on(Event::Ended(number, status)),
            _ = tick.tick() => on(Event::Tick),
            _ = stop.recv() => {
                // Ctrl-Z stops all; whoever continues us continues them.
                _ = pass_on.send(Signal::TSTP);
                // Time for them to hear of it.
                tokio::time::sleep(Duration::from_millis(50)).await;
                _ = kill_process(getpid(), Signal::STOP);
                _ = pass_on.send(Signal::CONT);
            }
            sent = async {
                tokio::select! {
                    _ = interrupt.recv() => Signal::INT,
                    _ = terminate.recv() => Signal::TERM,
                    _ = hangup.recv() => Signal::TERM,
                    _ = quit.recv() => Signal::TERM,
                }
            } => {
                asked += 1;
                _ = pass_on.send(sent);
                if asked == 2 {
                    let later = pass_on.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(PATIENCE).await;
                        _ = later.send(Signal::KILL);
                    });
                }
                on(Event::Stopping(asked));
            }
        }
    }
}

/// Waits for a run to end, passing signals on to it.
async fn watched(child: std::io::Result<Child>, mut signals: broadcast::Receiver<Signal>) -> std::io::Result<ExitStatus> {
    let mut child = child?;
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    loop {
        tokio::select! {
            status = child.wait() => return status,
            Ok(sent) = signals.recv() => {
                if let Some(pid) = pid {
                    _ = kill_process(pid, sent);
                }
            }
        }
    }
}
