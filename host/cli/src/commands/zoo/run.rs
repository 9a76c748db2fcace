//! `fwp-host zoo run`

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use fwp_recipe::{Overrides, Resolved};
use fwp_zoo::run::{RunRecord, clear, last_step, look};
use fwp_zoo::table::{median, number};
use fwp_zoo::verdict::{Place, place};
use fwp_zoo::{Ended, Measurement, Point, RunState, Variant};
use tokio::process::Command;

use super::{RUNS, ZooOptions};
use crate::commands::PluginOptions;
use crate::commands::train::{INTERRUPTED, Progress, Seeds};
use crate::compose::check_keys;
use crate::engine::Engine;
use crate::failure::{self, Code, Failure, literal};
use crate::parent;
use crate::zoo::pool::{self, Event};
use crate::zoo::show::{Show, time};
use crate::{output, zoo};

/// Trains recipes of the zoo at all their points and seeds, and says each value beside the published one.
///
/// Runs go to RUNS/NAME/POINT-seedN. What is finished there is not run again, what is unfinished goes on, and what a changed
/// recipe would no longer run is refused. A run that fails does not stop the others. Ctrl-C saves all that are going on and
/// ends with exit code 7; the same command goes on later. `zoo results` collects what is finished.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fwp-host zoo run deltanet
  fwp-host zoo run 'capacity-*' 'update-*' --quick
  fwp-host zoo run 'capacity-*' --points '200-keys' --seeds 1..3 --jobs 2
  fwp-host zoo run '*' --missing --dry-run")]
pub struct Run {
    /// The variants: their names, in which `*` stands for any characters and `?` for one.
    #[arg(value_name = "PATTERN", required = true)]
    patterns: Vec<String>,
    /// Only points whose name matches; may be given several times.
    #[arg(long, value_name = "PATTERN")]
    points: Vec<String>,
    /// These seeds in place of those of the points: 1,2,5 or 1..3.
    #[arg(long, value_name = "LIST")]
    seeds: Option<Seeds>,
    /// Only the points that points.toml marks as quick, and only the first seed of each.
    #[arg(long)]
    quick: bool,
    /// Only the points and seeds that results.json beside the recipe does not have yet.
    #[arg(long, conflicts_with = "set")]
    missing: bool,
    /// How many runs at once (default: one for each core, or fewer where OMP_NUM_THREADS gives each run more threads).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: Option<u32>,
    /// Where runs are, and go.
    #[arg(long, value_name = "DIR", default_value = RUNS)]
    runs: PathBuf,
    /// Changes a value of every recipe, as `train --set` does. Such runs are not collected by `zoo results`: give them a
    /// folder of their own with --runs.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The text of the recipes that learn one; without it they are left out.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Says what would run, what is done, and how long the rest takes where that is known; runs nothing.
    #[arg(long)]
    dry_run: bool,
    /// How progress is shown: auto is a bar on a terminal, plain and none are a line a run.
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    progress: Progress,
    #[command(flatten)]
    zoo: ZooOptions,
    #[command(flatten)]
    pub plugins: PluginOptions,
}

/// A point that is asked for.
struct Asked {
    /// `NAME/POINT`.
    title: String,
    recipe: Resolved,
}

/// One run: a point of a variant and a seed.
struct Job {
    variant: usize,
    point: usize,
    seed: u64,
    /// `NAME/POINT-seedN`.
    title: String,
    folder: PathBuf,
    /// Steps of the whole run.
    steps: u64,
    /// Steps after which runs of this point have ended before; all of them where none has.
    usual: u64,
    state: State,
    /// Seconds that the whole run is expected to take.
    estimate: Option<f64>,
}

/// What there is of a run.
enum State {
    /// Nothing.
    New,
    /// It goes on after this step.
    Begun(u64),
    /// It has ended with this value.
    Done { value: Option<f64>, ended: Ended },
    /// It cannot be run.
    Refused(Failure),
}

impl Job {
    fn is_waiting(&self) -> bool {
        matches!(self.state, State::New | State::Begun(_))
    }

    /// The part of the run that is done.
    fn done(&self) -> f64 {
        match self.state {
            State::New | State::Refused(_) => 0.0,
            State::Begun(step) => self.part(step),
            State::Done { .. } => 1.0,
        }
    }

    /// The part of the run that is done after a step, as far as it can be told of one that a rule may end early.
    fn part(&self, step: u64) -> f64 {
        let usual = step as f64 / self.usual.max(1) as f64;
        usual.min(ALMOST).max(step as f64 / self.steps.max(1) as f64)
    }

    /// Seconds that are left, where that is known.
    fn left(&self) -> Option<f64> {
        Some(self.estimate? * (1.0 - self.done()).max(0.0))
    }

    /// Where the run's own words go: beside its folder, which must be empty when it begins.
    fn log(&self) -> PathBuf {
        self.folder.with_file_name(format!("{}.log", self.folder.file_name().unwrap_or_default().to_string_lossy()))
    }
}

/// The part of a run that counts as done where others of its point had ended by then.
const ALMOST: f64 = 0.95;

/// A run that failed.
struct Failed {
    /// Its place among all runs.
    number: usize,
    title: String,
    code: u8,
    why: String,
}

impl Run {
    pub(super) async fn run(self) -> Result<u8, Failure> {
        let folder = self.zoo.folder()?;
        let mut variants = Vec::new();
        for found in zoo::select(&folder, &self.patterns)? {
            variants.push(found.variant?);
        }
        if let Some(data) = &self.data {
            std::fs::metadata(data).map_err(|e| {
                let text = format!("the text {} cannot be read", data.display());
                Failure::new(Code::Input, text, e.to_string(), "check the path given by --data")
            })?;
        } else {
            let (kept, left_out): (Vec<Variant>, Vec<Variant>) = variants.into_iter().partition(|v| !v.reads_data());
            for variant in left_out {
                output::say(&format!("note: {} is left out; it learns a text: name one with --data PATH", variant.name));
            }
            variants = kept;
        }
        let (mut jobs, points) = self.jobs(&variants)?;
        if jobs.is_empty() && self.missing && !points.is_empty() {
            output::print("nothing is missing: every run that is asked for was measured\n")?;
            return Ok(0);
        }
        if jobs.is_empty() {
            let (cause, remedy) = match variants.is_empty() {
                true => ("every recipe that is asked for learns a text, and none is named", "name one with --data PATH"),
                false => ("no point of these recipes is asked for", "see their points with `fwp-host zoo run NAME --dry-run`"),
            };
            return Err(Failure::new(Code::Usage, "there is nothing to run", cause, remedy));
        }
        self.check_keys(&points).await?;
        if self.dry_run {
            return self.say_what_would_run(&variants, &jobs);
        }
        self.train(&variants, &mut jobs).await
    }

    /// Refuses keys that a part does not have, and a part that every run misses: said once, and not by every run.
    async fn check_keys(&self, points: &[Asked]) -> Result<(), Failure> {
        let asker = self.plugins.asker();
        let mut catalogue = self.plugins.catalogue(&asker, None).await?;
        let mut missed = Vec::new();
        for point in points {
            let absent = check_keys(&point.recipe, &mut catalogue, &asker).await.map_err(|mut failure| {
                failure.headline = format!("{}: {}", point.title, failure.headline);
                failure
            })?;
            missed.extend(absent.into_iter().next());
        }
        // A part that some runs need is told by those; others go on.
        if missed.len() < points.len() {
            return Ok(());
        }
        missed.into_iter().next().map_or(Ok(()), |absent| Err(absent.why))
    }

    /// Every run that is asked for, with what there is of it, and every point.
    fn jobs(&self, variants: &[Variant]) -> Result<(Vec<Job>, Vec<Asked>), Failure> {
        let wanted = |point: &&Point| {
            let named = self.points.is_empty() || self.points.iter().any(|p| fwp_zoo::matches(p, &point.name));
            named && (!self.quick || point.quick)
        };
        let more = Overrides { set: self.set.clone(), data: self.data.clone(), ..Overrides::default() };
        let (mut jobs, mut asked) = (Vec::new(), Vec::new());
        for (v, variant) in variants.iter().enumerate() {
            let first = jobs.len();
            let more = if variant.reads_data() { more.clone() } else { Overrides { data: None, ..more.clone() } };
            let measured = match self.missing {
                true => fwp_zoo::results::of(variant)?,
                false => Vec::new(),
            };
            for (p, point) in variant.points.iter().enumerate().filter(|(_, p)| wanted(p)) {
                let recipe = variant.resolve(point, &more)?;
                let seeds = match &self.seeds {
                    Some(seeds) => &seeds.0[..],
                    None if self.quick => &point.seeds[..1],
                    None => &point.seeds[..],
                };
                let is_there = |seed: u64| measured.iter().any(|m| m.point == point.name && m.seed == seed);
                for seed in seeds.iter().filter(|seed| !is_there(**seed)) {
                    let folder = variant.run_folder(&self.runs, point, *seed);
                    let title = format!("{}/{}-seed{seed}", variant.name, point.name);
                    let state = state(&folder, &recipe, point, *seed);
                    jobs.push(Job {
                        variant: v,
                        point: p,
                        seed: *seed,
                        title,
                        folder,
                        steps: recipe.train.steps,
                        usual: recipe.train.steps,
                        state,
                        estimate: None,
                    });
                }
                asked.push(Asked { title: format!("{}/{}", variant.name, point.name), recipe });
            }
            estimate(variant, &mut jobs[first..])?;
        }
        Ok((jobs, asked))
    }

    /// Runs at once, and threads of each.
    fn division(&self, waiting: usize) -> (usize, Option<usize>) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let set = std::env::var("OMP_NUM_THREADS").ok().and_then(|n| n.parse::<usize>().ok()).filter(|n| *n > 0);
        let at_once = self.jobs.map_or_else(|| (cores / set.unwrap_or(1)).max(1), |n| n as usize).min(waiting.max(1));
        // What the user says of threads holds; otherwise the cores are divided.
        (at_once, if set.is_some() { None } else { Some((cores / at_once).max(1)) })
    }

    fn say_what_would_run(&self, variants: &[Variant], jobs: &[Job]) -> Result<u8, Failure> {
        let mut rows = Vec::new();
        let (mut left, mut unknown) = (0.0, 0);
        for job in jobs {
            let point = &variants[job.variant].points[job.point];
            let published = point.published.map_or("-".into(), |p| p.to_string());
            let (what, takes) = match &job.state {
                State::Done { value, ended } => (format!("done: {}", value_text(*value, *ended)), String::new()),
                State::Refused(why) => (format!("refused: {}", why.cause), String::new()),
                State::New => (format!("{} steps", job.steps), job.left().map_or("?".into(), time)),
                State::Begun(step) => (format!("goes on at step {step} of {}", job.steps), job.left().map_or("?".into(), time)),
            };
            if job.is_waiting() {
                match job.left() {
                    Some(seconds) => left += seconds,
                    None => unknown += 1,
                }
            }
            rows.push(vec![job.title.clone(), published, takes, what]);
        }
        let mut text = output::table(&["RUN", "PUBLISHED", "TAKES", "STATE"], &rows);
        let waiting = jobs.iter().filter(|j| j.is_waiting()).count();
        let (at_once, threads) = self.division(waiting);
        let threads = threads.map_or(String::new(), |n| format!(", {n} {} each", if n == 1 { "thread" } else { "threads" }));
        text += &format!("\n{} of {} runs are to do; {at_once} at once{threads}", waiting, jobs.len());
        if waiting > unknown {
            text += &format!(", about {}", time(left / at_once as f64));
            if unknown > 0 {
                text += &format!(" and the {unknown} whose time is not known");
            }
        }
        output::print(&(text + "\n"))?;
        Ok(0)
    }

    async fn train(&self, variants: &[Variant], jobs: &mut [Job]) -> Result<u8, Failure> {
        // Before anything is written: without an engine there is nothing to train with.
        Engine::find()?;
        std::fs::create_dir_all(&self.runs).map_err(|e| {
            let runs = self.runs.display();
            Failure::new(Code::Environment, format!("runs cannot go to {runs}"), e.to_string(), "name another folder with --runs")
        })?;
        let mut failed: Vec<Failed> = Vec::new();
        for (number, job) in jobs.iter().enumerate() {
            if let State::Refused(why) = &job.state {
                let text = format!("{}; {}", why.cause, why.remedy);
                failed.push(Failed { number, title: job.title.clone(), code: why.code as u8, why: text });
            }
        }
        let waiting: Vec<usize> = (0..jobs.len()).filter(|i| jobs[*i].is_waiting()).collect();
        let (at_once, threads) = self.division(waiting.len());
        let orders: Vec<Order> =
            waiting.iter().map(|i| self.order(&variants[jobs[*i].variant], &jobs[*i], threads)).collect::<Result<_, _>>()?;
        let known: Vec<f64> = jobs.iter().filter_map(|j| j.estimate).collect();
        let usual = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
        let weights = jobs.iter().map(|j| j.estimate.unwrap_or(usual).max(1e-3)).collect();
        let mut show = Show::new(matches!(self.progress, Progress::Auto), jobs.iter().map(Job::done).collect(), weights);
        let finished = jobs.iter().filter(|j| matches!(j.state, State::Done { .. })).count();
        if finished > 0 {
            show.say(&format!("{finished} of {} runs are finished already", jobs.len()));
        }
        let mut running: Vec<(usize, Instant)> = Vec::new();
        let stopped = pool::run(
            orders.len(),
            at_once,
            |n| orders[n].command(),
            |event| match event {
                Event::Started(n) => running.push((waiting[n], Instant::now())),
                Event::Ended(n, status) => {
                    let i = waiting[n];
                    let began = running.iter().find(|(r, _)| *r == i).map_or(Duration::ZERO, |(_, began)| began.elapsed());
                    running.retain(|(r, _)| *r != i);
                    let point = &variants[jobs[i].variant].points[jobs[i].point];
                    match ended(&mut jobs[i], point, status, began) {
                        Ok(line) => show.line(&line),
                        Err(None) => {
                            show.say(&format!("{}: interrupted, saved at step {}", jobs[i].title, last_step(&jobs[i].folder)))
                        }
                        Err(Some((code, why))) => {
                            let title = jobs[i].title.clone();
                            show.say(&format!("{title}: failed with exit code {code}: {}", literal(&why)));
                            failed.push(Failed { number: i, title, code, why });
                        }
                    }
                    show.set(i, 1.0);
                }
                Event::Stopping(1) => show.say("stopping: every run finishes its step and saves; once more leaves at once"),
                Event::Stopping(_) => show.say("leaving at once"),
                Event::Tick => {
                    for (i, _) in &running {
                        show.set(*i, jobs[*i].part(last_step(&jobs[*i].folder)));
                    }
                    let over = jobs.iter().filter(|j| matches!(j.state, State::Done { .. })).count();
                    let names: Vec<&str> = running.iter().map(|(i, _)| jobs[*i].title.as_str()).collect();
                    let fails = if failed.is_empty() { String::new() } else { format!(", {} failed", failed.len()) };
                    show.tick(&format!("{over} of {} runs{fails}", jobs.len()), &names.join(", "));
                }
            },
        )
        .await?;
        show.finish();
        failed.sort_by_key(|f| f.number);
        self.conclude(variants, jobs, &failed, stopped)
    }

    /// What has to be done for a run.
    fn order(&self, variant: &Variant, job: &Job, threads: Option<usize>) -> Result<Order, Failure> {
        let point = &variant.points[job.point];
        let host = std::env::current_exe().map_err(|e| failure::io("find", Path::new("fwp-host"), &e))?;
        let mut arguments: Vec<OsString> = ["train", "--progress", "plain", "--recipe"].map(Into::into).into();
        arguments.push(variant.folder.clone().into());
        for set in point.set.iter().chain(&self.set) {
            arguments.extend(["--set".into(), set.into()]);
        }
        if let Some(data) = self.data.as_ref().filter(|_| variant.reads_data()) {
            arguments.extend(["--data".into(), data.into()]);
        }
        for folder in &self.plugins.plugin_path {
            arguments.extend(["--plugin-path".into(), folder.into()]);
        }
        if self.plugins.verbose {
            arguments.push("--verbose".into());
        }
        arguments.extend(["--seed".into(), job.seed.to_string().into(), "--run-dir".into(), job.folder.clone().into()]);
        Ok(Order { host, arguments, threads, folder: job.folder.clone(), log: job.log() })
    }

    /// Says what came out, point by point, and what failed.
    fn conclude(&self, variants: &[Variant], jobs: &[Job], failed: &[Failed], stopped: bool) -> Result<u8, Failure> {
        let mut rows = Vec::new();
        for (v, variant) in variants.iter().enumerate() {
            for (p, point) in variant.points.iter().enumerate() {
                let runs: Vec<&Job> = jobs.iter().filter(|j| j.variant == v && j.point == p).collect();
                let values: Vec<Option<f64>> = runs
                    .iter()
                    .filter_map(|j| match j.state {
                        State::Done { value, .. } => Some(value),
                        _ => None,
                    })
                    .collect();
                if runs.is_empty() {
                    continue;
                }
                rows.push(zoo::row(format!("{}/{}", variant.name, point.name), point, &values));
            }
        }
        let mut text = format!("\n{}", output::table(&zoo::COLUMNS, &rows));
        if !failed.is_empty() {
            text += &format!("\n{} of {} runs failed:\n", failed.len(), jobs.len());
            for f in failed {
                text += &format!("  {}  exit code {}: {}\n", f.title, f.code, literal(&f.why));
            }
        }
        output::print(&text)?;
        if stopped {
            output::say("interrupted; the same command goes on");
            return Ok(INTERRUPTED);
        }
        Ok(failed.first().map_or(0, |f| f.code))
    }
}

/// A run that is to be started.
struct Order {
    host: PathBuf,
    arguments: Vec<OsString>,
    threads: Option<usize>,
    folder: PathBuf,
    log: PathBuf,
}

impl Order {
    /// The process of the run, whose words go to a file.
    fn command(&self) -> std::io::Result<Command> {
        // A run that was cut off before it began leaves a folder in which none can begin.
        clear(&self.folder).map_err(std::io::Error::other)?;
        if let Some(folder) = self.log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.host);
        command.args(&self.arguments).env(parent::PARENT, std::process::id().to_string());
        if let Some(threads) = self.threads {
            command.env("OMP_NUM_THREADS", threads.to_string());
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }
}

/// What there is of a run in its folder.
fn state(folder: &Path, recipe: &Resolved, point: &Point, seed: u64) -> State {
    let record = match look(folder) {
        Ok(RunState::Absent) => return State::New,
        Ok(RunState::There(record)) => record,
        Err(e) => return State::Refused(e.into()),
    };
    match fwp_zoo::results::differences(&record, recipe, seed) {
        Err(e) => State::Refused(e.into()),
        Ok(Some(differences)) => State::Refused(Failure::new(
            Code::Input,
            format!("the run {} is another one", folder.display()),
            format!("{}: {differences}", folder.display()),
            "move its folder away to run it anew, or name another folder with --runs",
        )),
        Ok(None) => of_record(&record, point),
    }
}

fn of_record(record: &RunRecord, point: &Point) -> State {
    let best = record.best(&point.metric);
    match record.ended {
        Some(ended) => State::Done { value: if point.best { best.value } else { best.last }, ended },
        None => State::Begun(record.steps()),
    }
}

/// What a run that has ended says: a line for the user, nothing where it was interrupted, or exit code and cause of its failure.
fn ended(
    job: &mut Job,
    point: &Point,
    status: std::io::Result<ExitStatus>,
    took: Duration,
) -> Result<String, Option<(u8, String)>> {
    let fail = |code: u8, why: String| Some((code, why));
    let code = match status {
        Ok(status) => status.code().and_then(|c| u8::try_from(c).ok()),
        Err(e) => return Err(fail(Code::Environment as u8, format!("it cannot be started: {e}"))),
    };
    match code {
        Some(0) => {}
        Some(INTERRUPTED) => return Err(None),
        Some(code) => {
            let failed = fail(code, format!("{} ({})", last_error(&job.log()), job.log().display()));
            // A value that is not finite is an end, too: what was measured until then counts.
            if let Ok(RunState::There(record)) = look(&job.folder)
                && record.ended.is_some()
            {
                job.state = of_record(&record, point);
            }
            return Err(failed);
        }
        // By a signal: the second one, or from outside.
        None => return Err(fail(Code::Unexpected as u8, format!("it was ended by a signal ({})", job.log().display()))),
    }
    match look(&job.folder) {
        Ok(RunState::There(record)) if record.ended.is_some() => job.state = of_record(&record, point),
        Ok(_) => return Err(fail(Code::Unexpected as u8, format!("it left no end ({})", job.log().display()))),
        Err(e) => return Err(fail(Code::Environment as u8, e.to_string())),
    }
    let State::Done { value, ended } = job.state else { return Err(None) };
    let published = point.published.map_or(String::new(), |p| format!("  published {p}"));
    let verdict = match place(point, value) {
        _ if !point.is_judged() => "reported".into(),
        Place::Within => format!("as expected ({}{})", point.metric, zoo::bounds(point.at_least, point.at_most)),
        Place::Better => format!("better than expected ({}{})", point.metric, zoo::bounds(point.at_least, point.at_most)),
        Place::Worse => format!("not as expected ({}{})", point.metric, zoo::bounds(point.at_least, point.at_most)),
    };
    Ok(format!("{}  {}{published}  {verdict}  {}", job.title, value_text(value, ended), time(took.as_secs_f64())))
}

fn value_text(value: Option<f64>, ended: Ended) -> String {
    let value = value.map_or("NaN".into(), number);
    if ended == Ended::NotFinite { format!("{value}, then not finite") } else { value }
}

/// Characters of an error that are shown; the log has all of it.
const SHOWN: usize = 200;

/// What a run said last of an error: its headline and cause, cut off where they are long.
fn last_error(log: &Path) -> String {
    let text = std::fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let Some(at) = lines.iter().rposition(|l| l.starts_with("error: ")) else { return "it did not say why".into() };
    let headline = lines[at].trim_start_matches("error: ");
    let why = match lines.get(at + 1).and_then(|l| l.trim().strip_prefix("cause: ")) {
        Some(cause) => format!("{headline}: {cause}"),
        None => headline.into(),
    };
    match why.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &why[..end]),
        None => why,
    }
}

/// Expects of every run of a variant what was measured: of the same point, else of the variant in proportion to the steps.
fn estimate(variant: &Variant, jobs: &mut [Job]) -> Result<(), Failure> {
    let old: Vec<Measurement> = fwp_zoo::results::read(&variant.results())?;
    let mut known: Vec<(String, f64, u64)> = old.iter().filter_map(|m| Some((m.point.clone(), m.seconds?, m.steps))).collect();
    for job in jobs.iter().filter(|j| matches!(j.state, State::Done { .. })) {
        if let Ok(RunState::There(record)) = look(&job.folder)
            && let Some(seconds) = record.seconds()
        {
            known.push((variant.points[job.point].name.clone(), seconds, record.steps()));
        }
    }
    let rate = median(known.iter().filter(|k| k.2 > 0).map(|k| k.1 / k.2 as f64).collect());
    for job in jobs {
        let name = &variant.points[job.point].name;
        let same = |of: fn(&(String, f64, u64)) -> f64| median(known.iter().filter(|k| k.0 == *name).map(of).collect());
        job.estimate = same(|k| k.1).or(rate.map(|r| r * job.steps as f64));
        if let Some(steps) = same(|k| k.2 as f64) {
            job.usual = (steps as u64).min(job.steps);
        }
    }
    Ok(())
}
