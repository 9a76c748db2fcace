//! `fwp-host check`

use std::num::NonZeroUsize;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use fwp_sdk::build::Dims;
use fwp_zoo::results::quoted;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::PluginOptions;
use super::alone::{Alone, folder};
use crate::engine::{self, Engine};
use crate::failure::{self, Code, Failure};
use crate::output;

/// Checks an update rule and every executor of it in numbers.
///
/// Each executor is compared with the reference: outputs, final states and every gradient, over many lengths and sizes, with and
/// without initial states, resets and write masks, in float32 and float64. Its error against float64 may be four times that of the
/// float32 reference. The reference itself is compared with the step evaluated alone and with finite differences. Further cases:
/// causality, independence of sequences, carried states, NaN, floating-point mode, number of threads.
/// Every case runs in a process of its own with a time limit.
#[derive(Args, Debug)]
#[command(after_help = "\
Results of a case: passed, failed, crashed (ended by a signal), timed-out, skipped (with the reason).

Exit codes: 0 when at least one case passed, one of each executor that --exec names, and none failed, crashed or timed out; 8
otherwise; 2 to 5 when the check could not begin (see `fwp-host --help`).

With --json: one object with rule, library, seed, ok, counts, unchecked and cases; unchecked has executor and why of each that
--exec names and of which no case passed; each case has name, executor, says, result, message and seconds.

Examples:
  fwp-host check delta
  fwp-host check target/release/libmy_rule.so --quick
  fwp-host check delta --case scan.agreement.primes --seed 7")]
pub struct Check {
    /// The update rule: a name, or the path of a library (PATH#NAME where it has several).
    #[arg(value_name = "RULE|PATH")]
    rule: String,
    /// The feature map of keys and queries: a name, or the path of a library; without it keys and queries of length one are used.
    #[arg(long, value_name = "NAME|PATH")]
    feature_map: Option<String>,
    /// Sets a key of the rule's configuration, or of the map's with `feature_map.` in front; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The executors, divided by commas; all without it.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = ["reference", "chunkwise", "scan"])]
    exec: Vec<String>,
    /// Fewer lengths and sizes.
    #[arg(long)]
    quick: bool,
    /// Only this case, or all under a name up to a dot (`scan`, `scan.agreement`); may be given several times.
    #[arg(long = "case", value_name = "NAME")]
    case: Vec<String>,
    /// Seed of all numbers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Seconds that a case may take, where not as many as it says itself.
    #[arg(long, value_name = "S", value_parser = super::seconds)]
    timeout: Option<Duration>,
    /// Cases that run at the same time; as many as there are processors without it.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Lists the cases and runs none.
    #[arg(long)]
    list: bool,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub plugins: PluginOptions,
}

/// The exit code of a rule or an executor that does not conform.
const DOES_NOT_CONFORM: u8 = 8;

/// Sizes of a check: name, heads, elements of a key, elements of a value. The first two are those of `--quick`.
const SIZES: [(&str, usize, usize, usize); 6] = [
    // Equal sizes show what is broadcast by accident, different primes what is transposed.
    ("equal", 4, 4, 4),
    ("primes", 3, 7, 11),
    ("wide", 2, 32, 16),
    ("tall", 1, 16, 48),
    ("square", 1, 64, 64),
    // Larger than a block of rows and a vector register, and a multiple of neither.
    ("large-primes", 1, 37, 67),
];

/// Bytes of an answer and of messages that are read.
const MAX_ANSWER: u64 = 1 << 20;

/// A case as the engine lists it.
#[derive(Clone, Debug, Deserialize)]
struct Case {
    name: String,
    executor: Option<String>,
    says: String,
    seconds: u64,
}

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Passed,
    Failed,
    Crashed,
    TimedOut,
    Skipped,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::Crashed => "crashed",
            Verdict::TimedOut => "timed-out",
            Verdict::Skipped => "skipped",
        }
    }

    fn is_bad(self) -> bool {
        matches!(self, Verdict::Failed | Verdict::Crashed | Verdict::TimedOut)
    }
}

/// What the engine says of a case that came to its end.
#[derive(Deserialize)]
struct Report {
    result: Verdict,
    message: String,
}

/// A case with its result.
#[derive(Clone, Debug, Serialize)]
struct Done {
    name: String,
    executor: Option<String>,
    says: String,
    result: Verdict,
    message: String,
    seconds: f64,
}

/// An executor that is asked for by name and was not checked.
#[derive(Clone, Debug, Serialize)]
struct Unchecked {
    executor: String,
    why: String,
}

impl Check {
    /// Does it.
    pub async fn run(self) -> Result<u8, Failure> {
        let engine = Engine::find()?;
        let alone = Alone::find(&self.plugins, &self.rule, self.feature_map.as_deref(), &self.set).await?;
        let folder = folder("fwp-check-")?;
        let job = self.job(&alone, &folder).await?;
        let listed = match engine.printed(&engine::arguments(&[&"check", &"--job", &job])).await? {
            Ok(listed) => listed,
            // The engine has said why.
            Err(code) => return Ok(code),
        };
        let all: Vec<Case> = serde_json::from_slice(&listed).map_err(|e| {
            Failure::new(Code::Unexpected, "the engine's answer cannot be read", e.to_string(), "build host and engine together")
        })?;
        let cases = self.chosen(all)?;
        if self.list {
            return self.print_list(&cases).map(|()| 0);
        }
        output::say(&format!("{}: {}, seed {}", failure::literal(alone.name()), output::counted(cases.len(), "case"), self.seed));
        let done = self.run_all(&engine, &job, cases).await?;
        let unchecked = self.unchecked(&done);
        let passed = done.iter().any(|d| d.result == Verdict::Passed) && !done.iter().any(|d| d.result.is_bad());
        let ok = passed && unchecked.is_empty();
        self.print(&alone, &done, &unchecked, ok)?;
        Ok(if ok { 0 } else { DOES_NOT_CONFORM })
    }

    /// Writes the rule for all sizes, and the job.
    async fn job(&self, alone: &Alone, folder: &super::alone::Folder) -> Result<PathBuf, Failure> {
        let sizes = if self.quick { &SIZES[..2] } else { &SIZES[..] };
        let (mut described, mut first, mut notices) = (Vec::new(), None, Vec::new());
        for (name, heads, key, value) in sizes {
            let wanted = Dims { heads: *heads, key_raw: *key, key: *key, value: *value, ..Dims::ONE };
            let (rule, map, value) = match alone.describe_or_square(wanted).await {
                Ok(programs) => {
                    notices.extend(programs.notices);
                    let rule = folder.write(&format!("update-rule-{name}.fwp"), &programs.rule)?;
                    let map = programs.map.map(|m| folder.write(&format!("feature-map-{name}.fwp"), &m)).transpose()?;
                    (json!({ "Ok": rule }), map, programs.dims.value)
                }
                // A rule is checked for the sizes that it takes.
                Err(failure) => {
                    let why = json!({ "Err": failure.to_string() });
                    first.get_or_insert(failure);
                    (why, None, *value)
                }
            };
            described.push(json!({ "name": name, "heads": heads, "key": key, "value": value, "rule": rule, "map": map }));
        }
        // One that takes none of them cannot be checked, and says best itself why.
        if let (Some(failure), true) = (first, described.iter().all(|d| d["rule"]["Ok"].is_null())) {
            return Err(failure);
        }
        notices.dedup();
        for notice in &notices {
            output::say(&format!("note: {}", failure::literal(notice)));
        }
        let job = json!({ "sizes": described, "executors": self.exec, "seed": self.seed, "quick": self.quick });
        folder.write("check.json", job.to_string().as_bytes())
    }

    /// The cases that `--case` names.
    fn chosen(&self, all: Vec<Case>) -> Result<Vec<Case>, Failure> {
        let is = |case: &Case, wanted: &str| case.name == wanted || case.name.starts_with(&format!("{wanted}."));
        if let Some(unknown) = self.case.iter().find(|w| !all.iter().any(|c| is(c, w))) {
            return Err(Failure::new(
                Code::Usage,
                format!("there is no case `{unknown}`"),
                "a case is named in full or up to a dot; other executors, and no --quick, may give more of them",
                "see `fwp-host check RULE --list`",
            ));
        }
        Ok(all.into_iter().filter(|c| self.case.is_empty() || self.case.iter().any(|w| is(c, w))).collect())
    }

    fn print_list(&self, cases: &[Case]) -> Result<(), Failure> {
        if self.json {
            let list: Vec<Value> = cases
                .iter()
                .map(|c| json!({ "name": c.name, "executor": c.executor, "says": c.says, "seconds": c.seconds }))
                .collect();
            return output::json(&list);
        }
        let rows: Vec<Vec<String>> = cases.iter().map(|c| vec![c.name.clone(), c.says.clone()]).collect();
        output::print(&output::table(&["CASE", "WHAT MUST HOLD"], &rows))
    }

    /// The executors that are asked for by name and of which no case passed.
    fn unchecked(&self, done: &[Done]) -> Vec<Unchecked> {
        let mut unchecked: Vec<Unchecked> = Vec::new();
        for executor in &self.exec {
            let cases: Vec<&Done> = done.iter().filter(|d| d.executor.as_ref() == Some(executor)).collect();
            if unchecked.iter().any(|u| u.executor == *executor) || cases.iter().any(|d| d.result == Verdict::Passed) {
                continue;
            }
            let why = match &cases[..] {
                [] => "none of its cases was to be run".to_string(),
                // What does not serve a rule says so in every case.
                [first, ..] if cases.iter().all(|d| d.result == Verdict::Skipped) => first.message.clone(),
                _ => "none of its cases passed".to_string(),
            };
            unchecked.push(Unchecked { executor: executor.clone(), why });
        }
        unchecked
    }

    /// Runs cases, several at a time; the results in the order of the cases.
    async fn run_all(&self, engine: &Engine, job: &Path, cases: Vec<Case>) -> Result<Vec<Done>, Failure> {
        let at_once = self.jobs.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
        let slots = Arc::new(Semaphore::new(at_once));
        let total = cases.len();
        let mut running = JoinSet::new();
        for (i, case) in cases.into_iter().enumerate() {
            let (engine, job, slots) = (engine.clone(), job.to_path_buf(), slots.clone());
            let limit = self.timeout.unwrap_or_else(|| Duration::from_secs(case.seconds));
            running.spawn(async move {
                // Never closed, so there is always a permit to wait for.
                let _slot = slots.acquire_owned().await;
                (i, one(&engine, &job, case, limit).await)
            });
        }
        let mut done: Vec<(usize, Done)> = Vec::new();
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        while !running.is_empty() {
            tokio::select! {
                // What is dropped here kills its process.
                _ = &mut interrupt => {
                    running.shutdown().await;
                    return Err(Failure::new(Code::Unexpected, "interrupted", format!("{} of {total} cases were done", done.len()), ""));
                }
                Some(ended) = running.join_next() => {
                    let (i, case) = ended
                        .map_err(|e| Failure::new(Code::Unexpected, "a case was lost", e.to_string(), "report this"))
                        .and_then(|(i, case)| Ok((i, case?)))?;
                    let bad = if case.result.is_bad() { format!(": {}", failure::literal(&case.message)) } else { String::new() };
                    let width = total.to_string().len();
                    output::say(&format!(
                        "{:>width$}/{total} {:9} {} ({:.1} s){bad}", done.len() + 1, case.result.name(), case.name, case.seconds
                    ));
                    done.push((i, case));
                }
            }
        }
        done.sort_by_key(|(i, _)| *i);
        Ok(done.into_iter().map(|(_, d)| d).collect())
    }

    /// The command that runs one case on the same numbers.
    fn again(&self, case: &str) -> String {
        let mut words = vec!["fwp-host check".to_string(), quoted(&self.rule)];
        let mut option = |name: &str, value: &str| words.extend([name.to_string(), quoted(value)]);
        self.plugins.plugin_path.iter().for_each(|folder| option("--plugin-path", &folder.display().to_string()));
        self.feature_map.iter().for_each(|map| option("--feature-map", map));
        self.set.iter().for_each(|set| option("--set", set));
        option("--case", case);
        option("--seed", &self.seed.to_string());
        // Without it there are cases of the same names that take more lengths.
        if self.quick {
            words.push("--quick".into());
        }
        words.join(" ")
    }

    fn print(&self, alone: &Alone, done: &[Done], unchecked: &[Unchecked], ok: bool) -> Result<(), Failure> {
        let verdicts = [Verdict::Passed, Verdict::Failed, Verdict::Crashed, Verdict::TimedOut, Verdict::Skipped];
        let counts = verdicts.map(|v| (v.name(), done.iter().filter(|d| d.result == v).count()));
        if self.json {
            let counts: serde_json::Map<String, Value> = counts.iter().map(|(n, c)| (n.to_string(), json!(c))).collect();
            return output::json(&json!({
                "rule": alone.name(), "library": alone.library(), "seed": self.seed, "ok": ok, "counts": counts,
                "unchecked": unchecked, "cases": done,
            }));
        }
        let mut text = String::new();
        for d in done {
            text += &format!("{:9}  {}\n           {}\n", d.result.name(), failure::literal(&d.name), failure::literal(&d.says));
            if !d.message.is_empty() {
                text += &format!("           -> {}\n", failure::literal(&d.message));
            }
        }
        let counts: Vec<String> = counts.iter().filter(|(_, c)| *c > 0).map(|(n, c)| format!("{c} {n}")).collect();
        let counts = if counts.is_empty() { "no case ran".to_string() } else { counts.join(", ") };
        text += &format!("\n{}: {counts} (seed {})\n", failure::literal(alone.name()), self.seed);
        for d in done.iter().filter(|d| d.result.is_bad()) {
            text += &format!("again: {}\n", failure::literal(&self.again(&d.name)));
        }
        for u in unchecked {
            text += &format!("not checked: {}: {}\n", u.executor, failure::literal(&u.why));
        }
        output::print(&text)
    }
}

/// The process of a case, with all that it started: dropped, they are killed.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may have ended meanwhile.
            _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Runs one case in a process of its own.
async fn one(engine: &Engine, job: &Path, case: Case, limit: Duration) -> Result<Done, Failure> {
    let start = Instant::now();
    let mut command = engine.command();
    command.args(["check", "--job"]).arg(job).args(["--case", &case.name]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    // Several cases at once share the processors.
    command.env("OMP_NUM_THREADS", "1").env("MKL_NUM_THREADS", "1");
    let mut child = command.spawn().map_err(|e| engine.cannot_start(&e))?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ended = tokio::time::timeout(limit, async {
        let (out, err) = tokio::join!(read(out), read(err));
        (child.wait().await, out, err)
    })
    .await;
    let (result, message) = match ended {
        Err(_) => {
            drop(group);
            // Reaped, so that nothing of it is left behind.
            _ = child.wait().await;
            (Verdict::TimedOut, format!("it took more than {} s", limit.as_secs_f64()))
        }
        Ok((Err(e), ..)) => return Err(engine.cannot_start(&e)),
        Ok((Ok(status), out, err)) => {
            let said = String::from_utf8_lossy(&err);
            let last = said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default().to_string();
            match (status.signal(), status.success(), serde_json::from_slice::<Report>(&out)) {
                (Some(signal), ..) => (Verdict::Crashed, format!("signal {signal}{}", behind(&last))),
                (None, true, Ok(report)) => (report.result, report.message),
                // A panic, or an error outside of the case.
                (None, ..) => {
                    let panic = said.lines().skip_while(|l| !l.contains("panicked at")).take(2).collect::<Vec<_>>().join(" ");
                    let why = if panic.is_empty() { last } else { panic };
                    (Verdict::Failed, format!("the process ended with {status}{}", behind(&why)))
                }
            }
        }
    };
    let Case { name, executor, says, .. } = case;
    Ok(Done { name, executor, says, result, message, seconds: start.elapsed().as_secs_f64() })
}

fn behind(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// What a process writes, up to a limit; the rest is read and forgotten, so that the process does not wait.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let mut bytes = Vec::new();
    _ = (&mut stream).take(MAX_ANSWER).read_to_end(&mut bytes).await;
    _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    bytes
}
