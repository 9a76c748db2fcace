//! Finding and starting `fwp-engine`, passing signals on, and saying how it ended.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Code, Failure};
use crate::output;
use crate::plugins::search::executable_folder;

/// The exit code of a system's loader when a library is missing.
const LOADER_FAILED: i32 = 127;

/// How long a thread spins before it sleeps.
const SPIN: Duration = Duration::from_micros(200);

/// Turns of libgomp's waiting loop in this time. One takes as long as the processor's pause, which is 24 ns on some and 60 on others.
fn turns(time: Duration) -> u128 {
    const SAMPLE: u32 = 500;
    let sample = || {
        let start = Instant::now();
        (0..SAMPLE).for_each(|_| std::hint::spin_loop());
        start.elapsed()
    };
    // The fastest: an interruption only adds.
    let fastest = sample().min(sample()).min(sample()).max(Duration::from_nanos(1));
    time.as_nanos() * u128::from(SAMPLE) / fastest.as_nanos()
}

/// The engine, ready to be started.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The executable.
    pub path: PathBuf,
    /// What goes in front of `LD_LIBRARY_PATH`.
    pub libraries: Vec<PathBuf>,
}

impl Engine {
    /// Finds the engine: beside this executable, else `$FWP_ENGINE`.
    ///
    /// # Errors
    /// None there.
    pub fn find() -> Result<Engine, Failure> {
        let beside = executable_folder().map(|f| f.join("fwp-engine"));
        let named = std::env::var_os("FWP_ENGINE").map(PathBuf::from);
        let found = [beside.clone(), named].into_iter().flatten().find(|p| p.is_file());
        match found {
            Some(path) => Ok(Engine { path, libraries: libtorch().map(|t| library_folders(&t)).unwrap_or_default() }),
            None => Err(Failure::new(
                Code::Environment,
                "the engine, which does all computing, is not there",
                match beside {
                    Some(path) => format!("{} does not exist, and FWP_ENGINE names no file", path.display()),
                    None => "FWP_ENGINE names no file".into(),
                },
                "build it with `./scripts/fwp doctor` or `cargo build --release -p fwp-engine`, or set FWP_ENGINE",
            )),
        }
    }

    /// The engine with its libraries and environment, ready for arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        if !self.libraries.is_empty() {
            let old = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let folders = self.libraries.iter().cloned().chain(std::env::split_paths(&old).filter(|p| !p.as_os_str().is_empty()));
            if let Ok(joined) = std::env::join_paths(folders) {
                command.env("LD_LIBRARY_PATH", joined);
            }
        }
        // Threads that spin for long while they wait starve every other process of the machine; threads that sleep at once are
        // woken hundreds of times a step, tens of microseconds each. So they spin for a while.
        // libgomp and malloc read such variables before `main`, so the engine cannot set them itself.
        if ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"].iter().all(|name| std::env::var_os(name).is_none()) {
            command.env("OMP_WAIT_POLICY", "passive").env("GOMP_SPINCOUNT", turns(SPIN).to_string());
        }
        // The same memory is wanted at every step: given back to the system in between, its pages are cleared and mapped anew.
        let of_malloc = ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"];
        if of_malloc.iter().all(|name| std::env::var_os(name).is_none()) {
            command.envs(of_malloc.into_iter().zip(["1073741824", "33554432", "16777216"]));
        }
        // By this the engine knows whom to end with. Its thread must live as long as we do: the system watches the thread.
        command.env("FWP_HOST_PROCESS", std::process::id().to_string());
        command.stdin(Stdio::null());
        command
    }

    /// Runs the engine to its end, with its output going where ours goes; gives its exit code.
    ///
    /// Signals are passed on: the engine finishes its step, saves and ends.
    ///
    /// # Errors
    /// An engine that cannot be started or is ended by a signal.
    pub async fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<u8, Failure> {
        let mut command = self.command();
        // A group of its own: otherwise a Ctrl-C in the terminal would reach the engine directly and through us, and the second
        // one means "leave at once".
        command.args(arguments).process_group(0);
        // Before the start, so that no signal falls between.
        let kinds = [
            (SignalKind::interrupt(), Signal::INT),
            (SignalKind::terminate(), Signal::TERM),
            (SignalKind::hangup(), Signal::HUP),
            (SignalKind::quit(), Signal::QUIT),
        ];
        let mut streams = Vec::new();
        for (kind, sent) in kinds {
            streams.push((signal(kind).map_err(|e| self.cannot_start(&e))?, sent));
        }
        let mut stop = signal(SignalKind::from_raw(Signal::TSTP.as_raw())).map_err(|e| self.cannot_start(&e))?;
        let mut child = command.spawn().map_err(|e| self.cannot_start(&e))?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let send = |what: Signal| {
            if let Some(pid) = pid {
                _ = rustix::process::kill_process(pid, what);
            }
        };
        let [(interrupt, _), (terminate, _), (hangup, _), (quit, _)] = &mut streams[..] else {
            return Err(Failure::new(Code::Unexpected, "signals cannot be passed on", "", "report this"));
        };
        let mut passed_on = false;
        let status = loop {
            let received = tokio::select! {
                status = child.wait() => break status.map_err(|e| self.cannot_start(&e))?,
                _ = interrupt.recv() => Signal::INT,
                _ = terminate.recv() => Signal::TERM,
                _ = hangup.recv() => Signal::HUP,
                _ = quit.recv() => Signal::QUIT,
                _ = stop.recv() => Signal::TSTP,
            };
            if received == Signal::TSTP {
                // Ctrl-Z stops both; whoever continues us continues the engine.
                send(Signal::STOP);
                _ = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
                send(Signal::CONT);
            } else {
                passed_on = true;
                // The engine knows two: finish and save, or leave at once when they come again.
                send(if received == Signal::INT { Signal::INT } else { Signal::TERM });
            }
        };
        self.code(status, passed_on)
    }

    /// Runs the engine and takes what it prints.
    ///
    /// # Errors
    /// An engine that cannot be started.
    pub async fn output<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Output, Failure> {
        self.command().args(arguments).kill_on_drop(true).output().await.map_err(|e| self.cannot_start(&e))
    }

    /// Runs the engine to its end and takes what it prints on stdout, stderr going where ours goes; its exit code where that is not 0.
    ///
    /// # Errors
    /// An engine that cannot be started or is ended by a signal.
    pub async fn printed<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<std::result::Result<Vec<u8>, u8>, Failure> {
        let mut command = self.command();
        command.args(arguments).kill_on_drop(true).stdout(Stdio::piped());
        let child = command.spawn().map_err(|e| self.cannot_start(&e))?;
        let output = child.wait_with_output().await.map_err(|e| self.cannot_start(&e))?;
        Ok(match self.code(output.status, false)? {
            0 => Ok(output.stdout),
            code => Err(code),
        })
    }

    /// Refuses a device that is named and not there. The processor always is, and `auto` takes what there is.
    ///
    /// # Errors
    /// What the engine says of the device.
    pub async fn has_device(&self, name: &str) -> Result<(), Failure> {
        if matches!(name, "auto" | "cpu") {
            return Ok(());
        }
        let output = self.output(&arguments(&[&"device", &name])).await?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or_default().split(": use ").next().unwrap_or_default();
        Err(Failure::new(
            Code::Environment,
            format!("the device {name} cannot be used"),
            said.strip_prefix("error: ").unwrap_or(said),
            "take another with --device, such as cpu; `fwp-host doctor` shows what there is",
        ))
    }

    /// The failure of an engine that does not start.
    pub fn cannot_start(&self, e: &std::io::Error) -> Failure {
        Failure::new(
            Code::Environment,
            format!("the engine {} cannot be started", self.path.display()),
            e.to_string(),
            "build it again with `cargo build --release -p fwp-engine`",
        )
    }

    /// The exit code that a status stands for.
    fn code(&self, status: ExitStatus, passed_on: bool) -> Result<u8, Failure> {
        match (status.code(), status.signal()) {
            (Some(LOADER_FAILED), _) => Err(no_libtorch()),
            (Some(code), _) => Ok(u8::try_from(code).unwrap_or(Code::Unexpected as u8)),
            (None, Some(signal)) if passed_on => Err(Failure::new(
                Code::Unexpected,
                "interrupted before the run could be saved",
                format!("the engine was ended by signal {signal}"),
                "resume from the last checkpoint, if there is one",
            )),
            // Nothing else of the system kills a process like that.
            (None, Some(9)) => Err(Failure {
                code: Code::Environment,
                headline: "the engine was killed".into(),
                cause: "signal 9 from outside, most likely because the machine ran out of memory".into(),
                remedy: "lower train.batch_size or set train.memory_limit, and resume the run".into(),
                detail: String::new(),
            }),
            (None, signal) => Err(Failure::new(
                Code::Unexpected,
                "the engine crashed",
                format!("signal {}", signal.unwrap_or_default()),
                "resume from the last checkpoint; if it happens again, report this with the run's folder",
            )),
        }
    }
}

/// The failure of an engine whose libraries are not found.
pub fn no_libtorch() -> Failure {
    Failure::new(
        Code::Environment,
        "the engine cannot load libtorch",
        "a library that it is linked to was not found, as the system's loader says above",
        "run `./scripts/fwp doctor`, which fetches libtorch, or set LIBTORCH to the one that the engine was built with",
    )
}

/// The folder of libtorch (which holds `lib/`): `$LIBTORCH`, else `.libtorch/torch` in a folder above the executable.
pub fn libtorch() -> Option<PathBuf> {
    if let Some(set) = std::env::var_os("LIBTORCH").filter(|l| !l.is_empty()) {
        return Some(set.into());
    }
    let start = executable_folder()?;
    start.ancestors().map(|a| a.join(".libtorch/torch")).find(|t| t.join("lib").is_dir())
}

/// The folders of libraries of a libtorch: its own, and those of NVIDIA that lie beside it.
fn library_folders(libtorch: &Path) -> Vec<PathBuf> {
    let mut folders = vec![libtorch.join("lib")];
    if let Some(entries) = libtorch.parent().and_then(|p| std::fs::read_dir(p.join("nvidia")).ok()) {
        let mut beside: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path().join("lib"))).collect();
        beside.sort();
        folders.extend(beside);
    }
    folders.retain(|f| f.is_dir());
    folders
}

/// Arguments of mixed kinds as one list.
pub fn arguments(parts: &[&dyn AsRef<OsStr>]) -> Vec<OsString> {
    parts.iter().map(|p| p.as_ref().to_os_string()).collect()
}

/// Says on stderr what is started, for `-v`.
pub fn announce(engine: &Engine, arguments: &[OsString]) {
    let words: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    output::say(&format!("starting {} {}", engine.path.display(), words.join(" ")));
}
