//! The child process: opens libraries, passes questions on, and ends.
//!
//! Whatever a library does, it does here: a panic, a crash, an endless loop, an `exit` or a changed floating-point mode end
//! with this process.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use rustix::process::{Resource, Rlimit};

use super::open_unsafe::Plugin;
use super::wire::{self, FrameKind, Job, LibraryJob, Question};
use super::{Refusal, examine};

/// The address space that describing a part may take: far above any description, far below a machine.
pub const MEMORY_LIMIT: u64 = 2 << 30;

/// Longest job that is read.
const MAX_JOB: u64 = 64 << 20;

/// Reads the job from stdin and answers on what was stdout. Gives the exit code of the process.
pub fn run(seconds: u64) -> u8 {
    match answer(seconds) {
        Ok(()) => 0,
        Err(e) => {
            // The parent shows this as what the child printed.
            _ = writeln!(std::io::stderr(), "__describe: {e}");
            1
        }
    }
}

fn answer(seconds: u64) -> Result<(), Box<dyn std::error::Error>> {
    limit(seconds);
    let mut text = Vec::new();
    std::io::stdin().lock().take(MAX_JOB + 1).read_to_end(&mut text)?;
    let job: Job = serde_json::from_slice(&text)?;

    // The answers go to a descriptor that plugins do not know of; what they print on stdout goes where stderr goes.
    let mut out = File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 100)?);
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;

    for (index, library) in job.libraries.iter().enumerate() {
        wire::write(&mut out, FrameKind::Opening, index, 0, b"")?;
        let plugin = examine::examine(Path::new(&library.path)).and_then(|path| Plugin::open(&path));
        match plugin {
            Ok(plugin) => questions(&mut out, index, library, &plugin)?,
            Err(refusal) => wire::write(&mut out, FrameKind::Refused, index, 0, &serde_json::to_vec(&refusal)?)?,
        }
    }
    wire::write(&mut out, FrameKind::End, 0, 0, b"")?;
    Ok(())
}

fn questions(out: &mut File, index: usize, library: &LibraryJob, plugin: &Plugin) -> Result<(), Box<dyn std::error::Error>> {
    wire::write(out, FrameKind::Opened, index, 0, plugin.sdk_version().as_bytes())?;
    for (number, question) in library.questions.iter().enumerate() {
        let answer = match question {
            Question::List => plugin.list(),
            Question::Describe(request) => plugin.describe(&serde_json::to_vec(request)?),
        };
        match answer {
            Ok(bytes) => wire::write(out, FrameKind::Answer, index, number, &bytes)?,
            Err(text) => wire::write(out, FrameKind::Error, index, number, text.as_bytes())?,
        }
    }
    Ok(())
}

/// Bounds what a library can take from the machine. A limit that cannot be set is not worth failing for: the parent has its own.
fn limit(seconds: u64) {
    let set = |resource, value: u64| {
        let old = rustix::process::getrlimit(resource);
        let value = old.maximum.map_or(value, |max| value.min(max));
        _ = rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    };
    set(Resource::As, MEMORY_LIMIT);
    set(Resource::Core, 0);
    // For the case that the parent is gone; it counts processor time, so it ends after the parent would have ended it.
    set(Resource::Cpu, seconds + 2);
    #[cfg(target_os = "linux")]
    {
        _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    }
}

/// The refusal of a library that ended the process, told by what it printed last.
pub fn out_of_memory() -> Refusal {
    Refusal::new(
        format!("it asked for more memory than the {} GiB that a description may take", MEMORY_LIMIT >> 30),
        "a plugin describes its part and computes nothing: look for a size that is far too large",
    )
}
