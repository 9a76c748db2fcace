//! `fwp-host doctor`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::PluginOptions;
use super::plugins::as_json;
use crate::engine::{self, Engine};
use crate::failure::{Code, Failure, literal};
use crate::output;

/// Says what is there and what to do: libtorch, CUDA, compiler, cache, plugins, write access, TensorBoard.
///
/// Ends with exit code 5 when something is missing without which nothing can be trained.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fwp-host doctor")]
pub struct Doctor {
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub plugins: PluginOptions,
}

/// How a thing was found.
#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// In order.
    Ok,
    /// Not there; something works less well.
    Note,
    /// Not there; nothing can be trained.
    Missing,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    name: &'static str,
    state: State,
    found: String,
    /// What to do; empty when nothing.
    remedy: String,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, state: State::Ok, found: found.into(), remedy: String::new() }
    }
    fn note(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { name, state: State::Note, found: found.into(), remedy: remedy.into() }
    }
    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { name, state: State::Missing, found: found.into(), remedy: remedy.into() }
    }
}

#[derive(Serialize)]
struct Report {
    fwp_host: &'static str,
    ok: bool,
    findings: Vec<Finding>,
    /// What the engine says of itself.
    engine: Option<Value>,
    plugins: Value,
}

impl Doctor {
    /// Does it.
    pub async fn run(self) -> Result<u8, Failure> {
        let mut findings = vec![libtorch()];
        let (engine, said) = engine().await;
        findings.extend(engine);
        findings.push(compiler());
        findings.extend(kernels(said.as_ref()));
        let asker = self.plugins.asker();
        let catalogue = self.plugins.catalogue(&asker, None).await?;
        findings.push(match (catalogue.parts.len(), catalogue.refused.len()) {
            (0, _) => Finding::missing(
                "plugins",
                "none were found",
                "build them with `cargo build --release`; `fwp-host plugins list` says where was looked",
            ),
            (parts, 0) => Finding::ok("plugins", format!("{parts} parts")),
            (parts, refused) => Finding::note(
                "plugins",
                format!("{parts} parts, {refused} libraries refused"),
                "`fwp-host plugins list` says why and what to do",
            ),
        });
        findings.push(runs());
        findings.push(tensorboard());
        let ok = findings.iter().all(|f| f.state != State::Missing);
        let report = Report { fwp_host: env!("CARGO_PKG_VERSION"), ok, findings, engine: said, plugins: as_json(&catalogue) };
        if self.json {
            output::json(&report)?;
        } else {
            output::print(&text(&report))?;
        }
        Ok(if ok { 0 } else { Code::Environment as u8 })
    }
}

fn text(report: &Report) -> String {
    let mut text = format!("fwp-host {}\n\n", report.fwp_host);
    for finding in &report.findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Missing => "MISSING",
        };
        text += &format!("{state:8} {:12} {}\n", finding.name, literal(&finding.found));
        if !finding.remedy.is_empty() {
            text += &format!("{:21} to do: {}\n", "", literal(&finding.remedy));
        }
    }
    text += if report.ok { "\nready to train\n" } else { "\nnot ready to train: see what is MISSING\n" };
    text
}

fn libtorch() -> Finding {
    let remedy = "run `./scripts/fwp doctor`, which fetches libtorch, or set LIBTORCH to the folder of a libtorch 2.11.0";
    let Some(folder) = engine::libtorch() else {
        return Finding::note("libtorch", "neither LIBTORCH nor .libtorch above fwp-host names one", remedy);
    };
    if !folder.join("lib/libtorch_cpu.so").exists() && !folder.join("lib/libtorch_cpu.dylib").exists() {
        return Finding::note("libtorch", format!("{} holds no lib/libtorch_cpu", folder.display()), remedy);
    }
    let version = fs::read_to_string(folder.join("build-version")).ok().map(|t| t.trim().to_string()).or_else(|| {
        let text = fs::read_to_string(folder.join("version.py")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"']).to_string())
    });
    Finding::ok("libtorch", format!("{} in {}", version.as_deref().unwrap_or("of unknown version"), folder.display()))
}

/// What the engine says: whether libtorch loads, CUDA and its devices, threads.
async fn engine() -> (Vec<Finding>, Option<Value>) {
    let engine = match Engine::find() {
        Ok(engine) => engine,
        Err(e) => return (vec![Finding::missing("engine", e.cause, e.remedy)], None),
    };
    let output = match engine.output(&["doctor", "--json"]).await {
        Ok(output) => output,
        Err(e) => return (vec![Finding::missing("engine", e.cause, e.remedy)], None),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().to_string();
    let Ok(report) = serde_json::from_slice::<Value>(&output.stdout) else {
        let remedy = engine::no_libtorch().remedy;
        return (vec![Finding::missing("engine", format!("it does not start ({}): {last}", output.status), remedy)], None);
    };
    let mut findings = vec![Finding::ok(
        "engine",
        format!("{} with libtorch {}", engine.path.display(), report["libtorch"].as_str().unwrap_or("of unknown version")),
    )];
    let devices: Vec<String> = report["devices"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|d| d.as_str().map_or_else(|| d.to_string(), ToString::to_string))
        .collect();
    findings.push(match report["cuda"].as_bool() {
        Some(true) => Finding::ok("cuda", devices.join(", ")),
        _ if Path::new("/proc/driver/nvidia").exists() => Finding::note(
            "cuda",
            "there is an NVIDIA driver, but libtorch does not see a device",
            "fetch the set for CUDA: FWP_LIBTORCH=cuda ./scripts/fwp doctor; the driver must be of version 580 or newer",
        ),
        _ => Finding::note("cuda", "no NVIDIA GPU: training runs on the processor", ""),
    });
    if let Some(threads) = report["threads"].as_u64() {
        findings.push(Finding::ok("threads", format!("{threads} (set OMP_NUM_THREADS for another number)")));
    }
    (findings, Some(report))
}

fn compiler() -> Finding {
    let named = std::env::var("CXX").ok().filter(|c| !c.trim().is_empty());
    let candidates = match &named {
        Some(named) => vec![named.as_str()],
        None => vec!["c++", "g++", "clang++"],
    };
    for candidate in candidates {
        // CXX may hold options or a launcher, as in "ccache g++".
        let mut words = candidate.split_whitespace();
        let Some(program) = words.next() else { continue };
        let output = Command::new(program).args(words).arg("--version").stdin(Stdio::null()).output();
        if let Ok(output) = output.as_ref().map_err(|_| ()).and_then(|o| if o.status.success() { Ok(o) } else { Err(()) }) {
            let text = String::from_utf8_lossy(&output.stdout);
            return Finding::ok("compiler", text.lines().next().unwrap_or(candidate).to_string());
        }
    }
    Finding::note(
        "compiler",
        match named {
            Some(named) => format!("CXX is `{named}`, which does not run"),
            None => "no C++ compiler".into(),
        },
        "install one (Debian, Ubuntu: apt install g++) to build fwp-host itself; a build that exists runs without",
    )
}

/// What the engine says of compiled kernels: their compiler and their cache folder.
fn kernels(said: Option<&Value>) -> Vec<Finding> {
    let Some(kernels) = said.map(|s| &s["kernels"]).filter(|k| k.is_object()) else { return Vec::new() };
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let (compiler, cache) = (&kernels["compiler"], &kernels["cache"]);
    let compiler = match compiler["missing"].as_str() {
        Some(why) => Finding::note(
            "kernels",
            format!("none: {why}"),
            "rules train without, several times slower; install a C compiler (Debian, Ubuntu: apt install gcc)",
        ),
        None => {
            let bits = kernels["vector_bytes"].as_u64().unwrap_or_default() * 8;
            let how = format!("{} ({}), vectors of {bits} bits", text(&compiler["path"]), text(&compiler["version"]));
            Finding::ok("kernels", how)
        }
    };
    let folder = text(&cache["folder"]);
    let cache = match (cache["refused"].as_str(), cache["exists"].as_bool()) {
        (Some(why), _) => {
            let remedy = "kernels are neither compiled nor opened until this is put right; FWP_CACHE names another folder";
            Finding::note(
                "cache",
                [folder, why.to_string()].iter().filter(|t| !t.is_empty()).cloned().collect::<Vec<_>>().join(": "),
                remedy,
            )
        }
        (None, Some(true)) => {
            let mib = cache["bytes"].as_f64().unwrap_or_default() / f64::from(1 << 20);
            let count = cache["kernels"].as_u64().unwrap_or_default();
            Finding::ok("cache", format!("{folder}: {count} kernels, {mib:.1} MiB (may be removed at any time)"))
        }
        _ => Finding::ok("cache", format!("{folder} (made when it is needed)")),
    };
    vec![compiler, cache]
}

/// Whether a run's folder can be written where `train` puts it.
fn runs() -> Finding {
    let folder = PathBuf::from("runs");
    let place = if folder.is_dir() { folder } else { PathBuf::from(".") };
    let shown = std::path::absolute(&place).unwrap_or(place.clone());
    match tempfile::Builder::new().prefix(".fwp-doctor-").tempfile_in(&place) {
        Ok(_) => Finding::ok("runs", format!("{} can be written", shown.display())),
        Err(e) => Finding::note(
            "runs",
            format!("{} cannot be written: {e}", shown.display()),
            "go elsewhere, or name another folder with --run-dir",
        ),
    }
}

fn tensorboard() -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).map(|p| p.join("tensorboard")).find(|p| p.is_file()) {
        Some(found) => Finding::ok("tensorboard", format!("{} (tensorboard --logdir runs)", found.display())),
        None => Finding::note(
            "tensorboard",
            "not on PATH: events are written all the same",
            "pip install tensorboard; tensorboard --logdir runs",
        ),
    }
}
