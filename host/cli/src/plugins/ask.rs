//! The parent of child processes: starts them, bounds them, and says what became of them.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::{Instant, timeout, timeout_at};

use super::wire::{FrameKind, HEAD, Head, Job, LibraryJob, MAX_ANSWER, Question};
use super::{Refusal, child};
use crate::failure::{Code, Failure};

/// How long a library may take to be opened, and for each answer.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Overrides [`TIME_LIMIT`], in seconds, for machines that are slower than anyone expects.
pub const TIME_LIMIT_VARIABLE: &str = "FWP_PLUGIN_TIMEOUT";

/// How much of what a child prints is kept: the end, where the reason of a crash stands.
const MAX_CHATTER: usize = 64 << 10;

/// What a library answered.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The version of its SDK, or why it cannot be used.
    pub opened: Result<String, Refusal>,
    /// An answer a question, as far as it got.
    pub answers: Vec<Result<Vec<u8>, Refusal>>,
}

/// Asks libraries in child processes.
#[derive(Clone, Debug)]
pub struct Asker {
    limit: Duration,
    /// Whether what plugins print is passed on to stderr.
    verbose: bool,
}

/// How a child's part of the work ended.
struct Round {
    /// The answers of each library that it came to.
    done: Vec<Answers>,
    /// What went wrong after those, if anything: with the library that was in work.
    broken: Option<Refusal>,
}

impl Asker {
    /// An asker with the usual limits.
    pub fn new(verbose: bool) -> Asker {
        let seconds = std::env::var(TIME_LIMIT_VARIABLE).ok().and_then(|t| t.parse::<u64>().ok()).filter(|s| *s > 0);
        Asker { limit: seconds.map_or(TIME_LIMIT, Duration::from_secs), verbose }
    }

    /// Asks one question of one library.
    pub async fn one(&self, library: &Path, question: Question) -> Result<Result<Vec<u8>, Refusal>, Failure> {
        let job = LibraryJob { path: library.into(), questions: vec![question] };
        let mut all = self.ask(vec![job]).await?;
        let Answers { opened, mut answers } = all.remove(0);
        Ok(opened.and_then(|_| answers.remove(0)))
    }

    /// Asks libraries their questions; gives the answers in the order of the libraries.
    ///
    /// One child serves them all. Where it breaks, the library in work is asked again in a child of its own, so that none is
    /// blamed for what an earlier one did to the process, and another child goes on with the rest.
    ///
    /// # Errors
    /// A child that cannot be started. Everything that a library does is in its [`Answers`].
    pub async fn ask(&self, libraries: Vec<LibraryJob>) -> Result<Vec<Answers>, Failure> {
        let mut results: Vec<Answers> = Vec::new();
        while results.len() < libraries.len() {
            let rest = &libraries[results.len()..];
            let round = self.round(rest).await?;
            let came_to = round.done.len();
            results.extend(round.done);
            let Some(refusal) = round.broken else { continue };
            if came_to == 0 {
                results.push(Answers { opened: Err(refusal), answers: Vec::new() });
                continue;
            }
            // The library in work was not alone: its verdict is that of a child of its own.
            let alone = self.round(&rest[came_to..=came_to]).await?;
            let verdict = alone.done.into_iter().next();
            results
                .push(verdict.unwrap_or_else(|| Answers { opened: Err(alone.broken.unwrap_or(refusal)), answers: Vec::new() }));
        }
        Ok(results)
    }

    /// One child.
    async fn round(&self, libraries: &[LibraryJob]) -> Result<Round, Failure> {
        let mut child = self.start()?;
        let job = serde_json::to_vec(&Job { libraries: libraries.to_vec() })
            .map_err(|e| Failure::new(Code::Unexpected, "a plugin cannot be asked", e.to_string(), "report this"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(cannot_start("its pipes are missing"));
        };
        let chatter = tokio::spawn(keep_end(stderr));
        // A child that ends early leaves a broken pipe here; how it ended says more.
        tokio::spawn(async move { _ = stdin.write_all(&job).await });

        let mut reading = Reading { stdout, limit: self.limit, done: Vec::new(), open: false, started: false };
        let end = reading.all(libraries).await;
        // Whether it ended or not: nothing that it started may live on.
        let status = reap(&mut child, matches!(end, Ended::Early)).await;
        let said = timeout(Duration::from_millis(500), chatter).await.ok().and_then(Result::ok).unwrap_or_default();
        if self.verbose && !said.trim().is_empty() {
            crate::output::say(&format!("plugins printed:\n{}", crate::output::indented(&shown(&said), 2)));
        }
        if !reading.started && matches!(end, Ended::Early) {
            return Err(cannot_start(&format!("it ended before it began ({})", ended_how(status))).detail(shown(&said)));
        }
        let broken = match end {
            Ended::Complete => None,
            Ended::Early => Some(crashed(status, &said)),
            Ended::Broken(refusal) => Some(refusal.detail(shown(&said))),
        };
        Ok(Round { done: reading.done, broken })
    }

    fn start(&self) -> Result<Child, Failure> {
        // The path of a running executable on Linux, also after it was replaced by a newer build.
        let own = Path::new("/proc/self/exe");
        let own =
            if own.exists() { own.to_path_buf() } else { std::env::current_exe().map_err(|e| cannot_start(&e.to_string()))? };
        Command::new(own)
            .arg0("fwp-host")
            .arg("__describe")
            .arg(self.limit.as_secs().to_string())
            // A plugin sees nothing of the user's environment: its answer depends on the question only.
            .env_clear()
            .env("LC_ALL", "C.UTF-8")
            .env("RUST_BACKTRACE", "0")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| cannot_start(&e.to_string()))
    }
}

fn cannot_start(why: &str) -> Failure {
    Failure::new(
        Code::Environment,
        "plugins cannot be asked: a child process cannot be started",
        why,
        "check the limits on processes and memory (ulimit -a)",
    )
}

/// How reading ended.
enum Ended {
    /// With the last frame.
    Complete,
    /// The pipe was closed before.
    Early,
    /// Something else that is the library's doing.
    Broken(Refusal),
}

/// Reads the frames of a child.
struct Reading {
    stdout: ChildStdout,
    limit: Duration,
    done: Vec<Answers>,
    /// Whether the last of `done` is a library still in work.
    open: bool,
    /// Whether the child said anything.
    started: bool,
}

impl Reading {
    async fn all(&mut self, libraries: &[LibraryJob]) -> Ended {
        let end = self.frames(libraries).await;
        if self.open && !matches!(end, Ended::Complete) {
            self.done.pop();
        }
        end
    }

    async fn frames(&mut self, libraries: &[LibraryJob]) -> Ended {
        loop {
            let deadline = Instant::now() + self.limit;
            let (head, bytes) = match timeout_at(deadline, frame(&mut self.stdout)).await {
                Ok(Ok(frame)) => frame,
                Ok(Err(end)) => return end,
                Err(_) => return Ended::Broken(too_slow(self.limit)),
            };
            self.started = true;
            if let Err(what) = self.take(libraries, head, bytes) {
                return what;
            }
        }
    }

    /// Takes a frame. Every frame must be the one that is due: the process that wrote it also runs the library's code.
    fn take(&mut self, libraries: &[LibraryJob], head: Head, bytes: Vec<u8>) -> Result<(), Ended> {
        let garbled = || Err(Ended::Broken(garbled()));
        if head.kind == FrameKind::Opening || head.kind == FrameKind::End {
            if let Some(last) = self.done.last().filter(|_| self.open) {
                let wanted = libraries.get(self.done.len() - 1).map_or(0, |l| l.questions.len());
                if last.opened.is_ok() && last.answers.len() != wanted {
                    return garbled();
                }
            }
            self.open = false;
        }
        match head.kind {
            FrameKind::End if self.done.len() == libraries.len() => return Err(Ended::Complete),
            FrameKind::Opening if head.library == self.done.len() && head.library < libraries.len() => {
                let refusal = Refusal::new("it was not opened", "");
                self.done.push(Answers { opened: Err(refusal), answers: Vec::new() });
                self.open = true;
                return Ok(());
            }
            FrameKind::End | FrameKind::Opening => return garbled(),
            _ => {}
        }
        let due = head.library + 1 == self.done.len() && self.open;
        let Some(last) = self.done.last_mut().filter(|_| due) else { return garbled() };
        let question_due = last.opened.is_ok() && head.question == last.answers.len();
        match head.kind {
            FrameKind::Opened => last.opened = Ok(String::from_utf8_lossy(&bytes).into_owned()),
            FrameKind::Refused => match serde_json::from_slice(&bytes) {
                Ok(refusal) => last.opened = Err(refusal),
                Err(_) => return garbled(),
            },
            FrameKind::Answer if question_due => last.answers.push(Ok(bytes)),
            FrameKind::Error if question_due => last.answers.push(Err(Refusal::new(
                String::from_utf8_lossy(&bytes).into_owned(),
                "correct the configuration, or the plugin at the place that is named",
            ))),
            _ => return garbled(),
        }
        Ok(())
    }
}

async fn frame(stdout: &mut ChildStdout) -> Result<(Head, Vec<u8>), Ended> {
    let mut head = [0; HEAD];
    stdout.read_exact(&mut head).await.map_err(|_| Ended::Early)?;
    let head = Head::read(&head).ok_or_else(|| Ended::Broken(garbled()))?;
    if head.length > MAX_ANSWER as u64 {
        return Err(Ended::Broken(Refusal::new(
            format!("its answer has {} bytes, more than the {} MiB that are read", head.length, MAX_ANSWER >> 20),
            "describe repetition with `repeat` or `blocks` instead of writing it out",
        )));
    }
    let mut bytes = vec![0; head.length as usize];
    stdout.read_exact(&mut bytes).await.map_err(|_| Ended::Early)?;
    Ok((head, bytes))
}

fn garbled() -> Refusal {
    Refusal::new(
        "its answer is garbled: something in the plugin wrote on the host's own pipe",
        "remove what writes on descriptors that it did not open",
    )
}

fn too_slow(limit: Duration) -> Refusal {
    Refusal::new(
        format!("it did not answer within {} s and was ended", limit.as_secs()),
        format!("look for a loop without an end in the plugin; on a very slow machine set {TIME_LIMIT_VARIABLE} to more seconds"),
    )
}

/// What a child's end says of the library that was in work.
fn crashed(status: Option<ExitStatus>, said: &str) -> Refusal {
    let look = "correct the plugin; what it printed is shown with -v";
    if said.contains("memory allocation of") || said.contains("Cannot allocate memory") {
        return child::out_of_memory().detail(shown(said));
    }
    let refusal = match status {
        None => Refusal::new("its process could not be waited for", look),
        Some(status) => match (status.signal(), status.code()) {
            _ if said.contains("has overflowed its stack") => {
                Refusal::new("it overflowed the stack", "look for a recursion without an end in the plugin")
            }
            (Some(signal), _) => {
                let what = signal_name(signal);
                Refusal::new(format!("it crashed: signal {signal} ({what})"), look)
            }
            (None, Some(1)) if said.contains("Aborting") => {
                Refusal::new("it panicked outside of what fwp_sdk::export! guards", "let nothing run before or after describing")
            }
            (None, Some(code)) => Refusal::new(
                format!("it ended the process with exit code {code} before it answered"),
                "a plugin must not call exit",
            ),
            (None, None) => Refusal::new("its process ended before it answered", look),
        },
    };
    refusal.detail(shown(said))
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => "SIGILL, illegal instruction",
        6 => "SIGABRT, abort",
        7 => "SIGBUS, bus error",
        8 => "SIGFPE, arithmetic error",
        9 => "SIGKILL, killed from outside",
        11 => "SIGSEGV, invalid memory access",
        24 => "SIGXCPU, processor time used up",
        _ => "see `kill -l`",
    }
}

/// How a process ended, in words.
fn ended_how(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "unknown how".into(), |s| s.to_string())
}

/// Gives a child that is about to end a moment, ends it and everything in its process group, and reaps it.
async fn reap(child: &mut Child, ending: bool) -> Option<ExitStatus> {
    let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(id) = id {
        // The child is looked at without being reaped: until then its number belongs to its group and to nobody else.
        let over = || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            !matches!(rustix::process::waitid(WaitId::Pid(id), options), Ok(None))
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        while ending && !over() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        _ = rustix::process::kill_process_group(id, Signal::KILL);
    }
    child.wait().await.ok()
}

/// The end of what a child prints. It is read to its end, so that the child never waits for a full pipe.
async fn keep_end(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 8 << 10];
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..n]);
        if kept.len() > 2 * MAX_CHATTER {
            kept.drain(..kept.len() - MAX_CHATTER);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// What a child printed, shortened to lines that help.
fn shown(said: &str) -> String {
    let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(40);
    lines[from..].join("\n")
}

/// The sha256 of a file, in hexadecimal.
pub fn sha256_of(path: &Path) -> Result<String, Failure> {
    use sha2::Digest;
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let mut hash = sha2::Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    };
    read().map_err(|e| crate::failure::io("read", path, &e))
}

/// A library as a job that lists its parts.
pub fn listing(path: &PathBuf) -> LibraryJob {
    LibraryJob { path: path.into(), questions: vec![Question::List] }
}
