//! How much memory forward and backward take, as the system sees it.
//!
//! Measured is the growth of resident memory from just before the forward pass to its highest point until the end of the backward pass,
//! in a process of its own that has run once on a short sequence.
//! It holds all that is allocated by whomever: outputs, what is kept for the backward pass, scratch of kernels, gradients; not the inputs.
//! In that process every allocation of 64 KiB or more is given back to the system when it is freed, so memory that was used before
//! and is used again is seen as well.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Resident memory at a moment.
pub struct Resident {
    bytes: u64,
}

impl Resident {
    /// Takes the moment and resets the highest point.
    ///
    /// # Errors
    /// A system that does not say.
    pub fn start() -> Result<Resident> {
        // Where this is not allowed the highest point may lie in the past, and what is reported is too much rather than too little.
        _ = std::fs::write("/proc/self/clear_refs", "5");
        Ok(Resident { bytes: status("VmRSS:")? })
    }

    /// Bytes from then to the highest point since.
    ///
    /// # Errors
    /// A system that does not say.
    pub fn grown(&self) -> Result<u64> {
        Ok(status("VmHWM:")?.saturating_sub(self.bytes))
    }
}

fn status(key: &str) -> Result<u64> {
    let text =
        std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status, which tells the memory of a process")?;
    let line = text.lines().find_map(|l| l.strip_prefix(key)).with_context(|| format!("/proc/self/status has no {key}"))?;
    let number = line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    Ok(number.with_context(|| format!("{key} is not a number"))? * 1024)
}

/// Measures an executor in a process of its own.
///
/// # Errors
/// A process that does not start, fails, or gives no number.
pub fn in_a_process(job: &Path, executor: &str) -> Result<u64> {
    let program = std::env::current_exe().context("finding this executable")?;
    let output = Command::new(program)
        .args(["bench", "--peak", executor, "--job"])
        .arg(job)
        // glibc: allocations of this size are mapped and unmapped one by one.
        .envs([("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_MMAP_MAX_", "1000000"), ("MALLOC_TRIM_THRESHOLD_", "65536")])
        .stdin(Stdio::null())
        .output()
        .context("starting a process to measure memory")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "measuring the memory of {executor} failed ({}): {}", output.status, said.trim());
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("the process that measures memory answered `{}`", text.trim()))
}
