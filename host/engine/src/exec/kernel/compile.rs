//! The system's C compiler, with limits on time and memory.
//!
//! `CC` names it, with options if need be; without it `cc`, `gcc` and `clang` are looked for.
//! Options that change the floating-point mode of the whole process are never given, and refused in `CC`.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Compiler flags that every kernel is built with. Nothing here links code that changes the floating-point mode,
/// as `-ffast-math` does, nor folds checks for NaN away.
const FLAGS: [&str; 12] = [
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-freciprocal-math",
    "-ffp-contract=fast",
    "-w",
    "-shared",
    "-fPIC",
];

/// Added where the compiler takes it: GCC prefers half of a wide register by itself.
const WIDE: &str = "-mprefer-vector-width=512";

/// Wall time in which a compiler must say what it is.
const ANSWER: Duration = Duration::from_secs(10);

/// Flags that change the floating-point mode of a process that opens the result, or break NaN.
const REFUSED: [&str; 5] = ["-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-ffinite-math-only", "-mdaz-ftz"];

/// What a compiler may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Wall time of one kernel.
    pub time: Duration,
    /// Bytes of address space of each of the compiler's processes.
    pub memory: u64,
}

impl Limits {
    /// 4 GiB, and so many seconds as `FWP_COMPILE_SECONDS` says, a minute where it is not set.
    ///
    /// # Errors
    /// It says something else, for people.
    pub fn of(seconds: Option<&str>) -> Result<Limits, String> {
        let seconds = match seconds {
            None => 60.0,
            Some(text) => {
                let number = text.trim().parse::<f64>().ok().filter(|s| *s > 0.0 && *s < 1e6);
                number.ok_or_else(|| format!("FWP_COMPILE_SECONDS is `{text}`, not seconds above 0 and below 1000000"))?
            }
        };
        Ok(Limits { time: Duration::from_secs_f64(seconds), memory: 4 << 30 })
    }
}

/// A compiler that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// The program.
    pub path: PathBuf,
    /// Options that `CC` names behind it.
    pub options: Vec<String>,
    /// The first line of what it says of itself.
    pub version: String,
    /// All flags of a kernel, without input and output.
    pub flags: Vec<String>,
}

/// Why a text was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// No compiler.
    #[error("{0}")]
    NoCompiler(String),
    /// It took too long.
    #[error("the compiler was ended after {} seconds, the limit (FWP_COMPILE_SECONDS)", .0.as_secs_f64())]
    TimeOut(Duration),
    /// It refused the text or failed.
    #[error("the compiler ended with {status}: {said}")]
    Failed {
        /// Its exit status.
        status: ExitStatus,
        /// The first lines of what it said.
        said: String,
    },
    /// It could not be started or its output could not be read.
    #[error("the compiler cannot be run: {0}")]
    Io(#[from] std::io::Error),
}

/// The compiler of this process's environment, looked for once.
///
/// # Errors
/// There is none, or `CC` names one that does not work; for people, with what to do.
pub fn compiler() -> Result<&'static Compiler, String> {
    static FOUND: OnceLock<Result<Compiler, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find(std::env::var("CC").ok().as_deref()));
    found.as_ref().map_err(Clone::clone)
}

/// The compiler that `CC` names, or the first of `cc`, `gcc` and `clang` that runs.
///
/// # Errors
/// As [`compiler`].
pub fn find(cc: Option<&str>) -> Result<Compiler, String> {
    if let Some(cc) = cc.filter(|c| !c.trim().is_empty()) {
        let mut words = cc.split_whitespace().map(str::to_string);
        let program = words.next().unwrap_or_default();
        let options: Vec<String> = words.collect();
        if let Some(bad) = options.iter().find(|o| REFUSED.contains(&o.as_str())) {
            return Err(format!("CC holds {bad}, which changes the floating-point mode of the whole process: leave it out"));
        }
        return try_one(&program, options, ANSWER).map_err(|why| format!("CC is `{cc}`, {why}: set it to a C compiler"));
    }
    let found = ["cc", "gcc", "clang"].iter().find_map(|c| try_one(c, Vec::new(), ANSWER).ok());
    found.ok_or_else(|| "there is no C compiler (cc, gcc or clang): install one, or set CC".to_string())
}

fn try_one(program: &str, options: Vec<String>, limit: Duration) -> Result<Compiler, String> {
    let path = which(program).ok_or("which is not there")?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&path);
        command.args(&options).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().map_err(|_| "which does not run".to_string())?;
        // Both questions have answers of a few lines, which a pipe holds until they are read.
        match ended(&mut child, limit) {
            Ok(Some(status)) if status.success() => {}
            Ok(None) => return Err(format!("which does not answer within {} seconds", limit.as_secs_f64())),
            _ => return Err("which does not run".into()),
        }
        let mut said = Vec::new();
        _ = child.stdout.take().map(|pipe| pipe.take(64 << 10).read_to_end(&mut said));
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    let version = run(&["--version"])?.lines().next().unwrap_or("of unknown version").to_string();
    let mut flags: Vec<String> = FLAGS.iter().map(|f| f.to_string()).collect();
    if run(&["-march=native", WIDE, "-E", "-x", "c", "/dev/null"]).is_ok() {
        flags.push(WIDE.to_string());
    }
    Ok(Compiler { path, options, version, flags })
}

/// Waits for a child that leads a process group; past the limit the group is killed, and there is no status.
fn ended(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() >= limit {
            if let Some(group) = Pid::from_raw(child.id() as i32) {
                // Ended just now: then there is nothing to end.
                let _ = kill_process_group(group, Signal::KILL);
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The file that a name on `PATH` stands for.
fn which(program: &str) -> Option<PathBuf> {
    let absolute = |p: PathBuf| p.is_file().then(|| std::path::absolute(&p).ok()).flatten();
    if program.contains('/') {
        return absolute(PathBuf::from(program));
    }
    std::env::split_paths(&std::env::var_os("PATH")?).find_map(|folder| absolute(folder.join(program)))
}

/// Bytes of the widest vector registers of this machine that a kernel should use: 16, 32 or 64.
pub fn vector_bytes() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512dq") {
            return 64;
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return 32;
        }
    }
    16
}

/// What this processor can do, as far as `-march=native` may use it: part of a kernel's key.
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // The first processor's lines; "flags" on x86, "Features" on ARM.
    let wanted = ["vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part", "CPU implementer"];
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines = first.lines().filter(|l| wanted.contains(&l.split(':').next().unwrap_or_default().trim()));
    let found: Vec<&str> = lines.collect();
    format!("{} {} {}", std::env::consts::ARCH, std::env::consts::OS, found.join(";"))
}

/// Compiles a text into a shared library.
///
/// The compiler runs in a process group of its own and below the limits.
///
/// # Errors
/// Past the limits, or what the compiler says.
pub fn compile(compiler: &Compiler, text: &Path, library: &Path, limits: Limits) -> Result<(), CompileError> {
    let mut said: File = tempfile_beside(library)?;
    // The shell sets the limit before the compiler exists; a hard limit below it stays.
    let script = "ulimit -v \"$1\" 2>/dev/null; shift; exec \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh", &(limits.memory / 1024).to_string()]).arg(&compiler.path);
    command.args(&compiler.options).args(&compiler.flags).arg("-o").arg(library).arg(text).arg("-lm");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone()?).env("LC_ALL", "C").process_group(0);
    let mut child = command.spawn()?;
    let status = ended(&mut child, limits.time)?.ok_or(CompileError::TimeOut(limits.time))?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    said.rewind()?;
    said.take(64 << 10).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).take(8).collect();
    Err(CompileError::Failed { status, said: if lines.is_empty() { "it said nothing".into() } else { lines.join("\n") } })
}

/// A file without a name for the compiler's messages.
fn tempfile_beside(path: &Path) -> std::io::Result<File> {
    let name = path.with_extension("said");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&name)?;
    std::fs::remove_file(&name)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_compiler_that_does_not_say_what_it_is_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let cc = folder.path().join("cc");
        std::fs::write(&cc, "#!/bin/sh\nsleep 60\n").unwrap();
        std::fs::set_permissions(&cc, std::fs::Permissions::from_mode(0o755)).unwrap();
        let began = Instant::now();
        let why = try_one(cc.to_str().unwrap(), Vec::new(), Duration::from_millis(200)).unwrap_err();
        assert!(why.contains("does not answer within 0.2 seconds"), "{why}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
