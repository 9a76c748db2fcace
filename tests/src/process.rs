//! Watching and ending processes, by what Linux says of them in `/proc`.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// The name of a process's executable, empty once it has ended.
pub fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_string()
}

/// The file names that a process has mapped into its memory.
pub fn mapped(pid: u32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let names = maps.lines().filter_map(|l| l.rsplit_once('/').map(|(_, name)| name.to_string()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.dedup();
    names
}

/// Sends a signal by its name.
pub fn send(signal: &str, pid: u32) {
    let status = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
    assert!(status.expect("kill starts").success(), "process {pid} cannot be signalled");
}

/// Waits until something holds.
///
/// # Panics
/// When it does not within a minute, or the process ends before.
pub fn wait_until(child: &mut Child, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited a minute until {what}");
        if let Some(status) = child.try_wait().expect("the state of the process") {
            panic!("the process ended with {status} before {what}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a process that is no child of ours has ended.
///
/// # Panics
/// When it does not within a minute.
pub fn wait_until_gone(pid: u32) {
    let start = Instant::now();
    // A zombie has ended too, where nobody collects it.
    let state = || Some(std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.rsplit_once(") ")?.1.starts_with('Z'));
    while state() == Some(false) {
        assert!(start.elapsed() < Duration::from_secs(60), "waited a minute until process {pid} ended");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the engine that a host started.
///
/// # Panics
/// As [`wait_until`].
pub fn engine_of(host: &mut Child) -> u32 {
    let pid = host.id();
    let engine = || children(pid).into_iter().find(|c| name(*c) == "fwp-engine");
    let mut found = None;
    wait_until(host, "the engine runs", || {
        found = engine();
        found.is_some()
    });
    found.expect("the engine")
}

/// How many whole lines a file has that may not be there yet.
pub fn lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

/// The libraries that an ELF file asks the loader for, as `readelf -d` says.
///
/// # Panics
/// When `readelf` cannot read the file.
pub fn needed(file: &Path) -> Vec<String> {
    let output = Command::new("readelf").arg("-d").arg(file).output().expect("readelf, from binutils, starts");
    assert!(output.status.success(), "{}: {}", file.display(), crate::said(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter(|l| l.contains("(NEEDED)"));
    lines.filter_map(|l| Some(l.split_once('[')?.1.trim_end_matches(']').to_string())).collect()
}
