//! Trains the plan of a run folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use fwp_program::{Estimate, ModelPrograms, SlotPrograms};
use fwp_recipe::{Dtype, Expect, PartFile, Plan, RunDir};
use fwp_sdk::program::Program;
use fwp_task::Task;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tch::{Device, Kind};

use super::failure::{Failure, Kind as FailureKind};
use crate::exec::choose::{Executor, Executors, Policy, Refused};
use crate::exec::value::Precision;
use crate::machine::{available_memory, mebibytes};
use crate::model::Model;
use crate::monitor::{HparamValue, Monitor, MonitorOptions, Progress, say};
use crate::shim;
use crate::train::{End, Evaluation, Interrupt, Outcome, Resume, Settings, TrainModel, find_start, rehearse, train};

/// How a run is trained, beside its plan.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it begins.
    pub resume: Resume,
    /// `auto`, `cpu` or `cuda`; none is the plan's.
    pub device: Option<String>,
    /// `auto` or the name of an executor; none is the plan's.
    pub exec: Option<String>,
    /// How progress is shown.
    pub progress: Progress,
}

/// A run opened for computing.
pub struct Opened {
    /// The plan.
    pub plan: Plan,
    /// The folder.
    pub run: RunDir,
    /// The task.
    pub task: Arc<dyn Task>,
    /// The model with its initial parameters.
    pub model: Model,
    /// What training takes.
    pub estimate: Estimate,
    /// Bytes that one scan may keep.
    pub memory_limit: u64,
    /// What carries out the rules of the model.
    pub executors: Arc<Executors>,
}

/// Opens a run: reads the plan, checks the data, composes the model.
pub fn open(
    run: &RunDir,
    device_name: Option<&str>,
    exec: Option<&str>,
    data: Option<&std::path::Path>,
) -> Result<Opened, Failure> {
    let plan = run.read_plan().map_err(Failure::input)?;
    let policy: Policy = exec.unwrap_or(&plan.train.exec).parse().map_err(|e: String| Failure::input(anyhow!(e)))?;
    let device = device(device_name.unwrap_or(&plan.train.device)).map_err(Failure::environment)?;
    let kind = match plan.train.dtype {
        Dtype::Float32 => Kind::Float,
        Dtype::Float64 => Kind::Double,
    };
    let mut spec = plan.task.clone();
    if let Some(path) = data {
        spec.set_path(path).map_err(|e| Failure::input(anyhow!(e)))?;
    }
    let task: Arc<dyn Task> = Arc::from(fwp_task::open(&spec).map_err(Failure::input)?);
    if let Some(recorded) = plan.task_fingerprint.as_deref().filter(|_| data.is_none())
        && recorded != task.fingerprint()
    {
        return Err(Failure::input(anyhow!(
            "the data is not what this run began with: restore it, or start a new run ({})",
            task.describe()
        )));
    }
    measures(&plan, task.as_ref()).map_err(Failure::input)?;
    let programs = programs(run, &plan).map_err(Failure::input)?;
    let lengths: BTreeMap<String, usize> = axes(task.as_ref());
    let estimate = fwp_program::estimate(&programs, plan.train.batch_size, &lengths, if kind == Kind::Double { 8 } else { 4 });
    let memory_limit = plan.train.memory_limit.unwrap_or_else(|| available_memory() / 4);
    let executors = Arc::new(Executors::new(policy));
    let model = Model::new(&programs, Precision { kind, device }, plan.train.seed, memory_limit).map_err(Failure::input)?;
    let model = model.with_executors(executors.clone());
    Ok(Opened { plan, run: run.clone(), task, model, estimate, memory_limit, executors })
}

/// Refuses a plan that waits for a metric that its task does not have.
fn measures(plan: &Plan, task: &dyn Task) -> Result<()> {
    let names = fwp_task::metric_names(task);
    let asked = [("stop", plan.stop.target.as_ref().map(|t| &t.metric)), ("expect", plan.expect.as_ref().map(|e| &e.metric))];
    for (section, metric) in asked.iter().filter_map(|(section, metric)| Some((section, (*metric)?))) {
        ensure!(names.contains(metric), "{section}.metric: the task gives no {metric:?}; there are {}", names.join(", "));
    }
    Ok(())
}

fn programs(run: &RunDir, plan: &Plan) -> Result<ModelPrograms> {
    let read = |part: &PartFile| -> Result<Program> {
        let bytes = run.read_program(part)?;
        Program::from_bytes(&bytes).with_context(|| format!("reading {}", part.file))
    };
    let slots = plan.slots.iter().map(|s| {
        Ok(SlotPrograms {
            name: s.name.clone(),
            layers: s.layers.clone(),
            map: read(&s.feature_map)?,
            rule: read(&s.update_rule)?,
        })
    });
    let programs = ModelPrograms { net: read(&plan.slow_net)?, slots: slots.collect::<Result<_>>()? };
    programs.check()?;
    Ok(programs)
}

/// Length of every axis of the task's first training batch.
fn axes(task: &dyn Task) -> BTreeMap<String, usize> {
    // Rows may differ in length: as many as make the longest a usual one.
    let batch = task.train_batch(0, 0, 0, 16);
    let ports = task.io().inputs.iter();
    ports.zip(&batch.inputs).filter_map(|(port, (_, _, shape))| Some((port.axis.clone()?, *shape.get(1)?))).collect()
}

/// The device of a name.
pub fn device(name: &str) -> Result<Device> {
    let count = tch::Cuda::device_count();
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(if count > 0 { Device::Cuda(0) } else { Device::Cpu }),
        _ => {
            let index = match name.strip_prefix("cuda") {
                Some("") => 0,
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()).with_context(|| unknown(name))?,
                None => bail!(unknown(name)),
            };
            ensure!(
                (index as i64) < count,
                "there is no CUDA device {index} ({count} found): use --device cpu, and see `fwp-host doctor`"
            );
            Ok(Device::Cuda(index))
        }
    }
}

fn unknown(name: &str) -> String {
    format!("the device is auto, cpu, cuda or cuda:N, not `{name}`")
}

/// Keeps every other engine from training the same run, until it is dropped or this process ends.
///
/// Two of them would mix their metrics and remove each other's checkpoints.
fn lock(run: &RunDir) -> Result<File, Failure> {
    let folder =
        File::open(run.path()).map_err(|e| Failure::environment(anyhow!("cannot open {}: {e}", run.path().display())))?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(Failure::environment(anyhow!(
            "another process trains the run {} right now: wait for it, end it, or name another folder with --run-dir",
            run.path().display()
        ))),
        // Some network file systems have no locks; that is no reason not to train.
        _ => Ok(folder),
    }
}

/// Trains a run.
pub fn run(run: &RunDir, options: &Options) -> Result<Outcome, Failure> {
    let _lock = lock(run)?;
    let opened = open(run, options.device.as_deref(), options.exec.as_deref(), None)?;
    let (start, warnings) = find_start(&options.resume, run).map_err(Failure::input)?;
    let settings = Settings::from(&opened.plan);
    let monitor = Monitor::start(MonitorOptions {
        metrics: run.metrics(),
        events: opened.plan.monitor.tensorboard.then(|| run.path().to_path_buf()),
        resumed_at: start.as_ref().map(|l| l.state.step),
        total_steps: opened.plan.train.steps,
        evaluate_every: settings.eval.every,
        progress: options.progress,
    })
    .map_err(|e| Failure::environment(anyhow!("{} cannot be written: {e}", run.metrics().display())))?;
    for warning in warnings {
        monitor.note(format!("warning: {warning}"));
    }
    // From here on a signal is heeded: a rehearsal may take as long as a step.
    let interrupt = Interrupt::on_signals(monitor.speaker()).map_err(Failure::environment)?;
    if opened.executors.policy() != Policy::Only(Executor::Reference)
        && let Err(refused) = rehearse(&opened.model, &opened.task, opened.plan.train.seed, opened.plan.train.batch_size)
        && refused.chain().any(|cause| cause.is::<Refused>())
    {
        // Anything else is met again by the first step, which knows more about it.
        monitor.finish(false);
        if options.resume == Resume::Never && run.checkpoints().read_dir().is_ok_and(|mut all| all.next().is_none()) {
            // The folder of a run that could not begin is in the way of one that can.
            let _ = std::fs::remove_dir_all(run.path());
        }
        return Err(Failure::input(refused));
    }
    introduce(&opened, start.as_ref().map(|l| l.state.step), &monitor);
    if start.is_some()
        && let Some(change) = changed_executors(&opened)
    {
        monitor.note(format!("warning: {change}"));
    }
    record_executors(&opened).map_err(Failure::environment)?;
    if start.is_none() {
        describe(&opened, &monitor);
    }
    let outcome = train(&opened.model, &opened.task, &settings, run, start, &monitor, &interrupt);
    for notice in opened.executors.take_notices() {
        monitor.note(format!("warning: {notice}"));
    }
    record_executors(&opened).map_err(Failure::environment)?;
    let ended_well = matches!(&outcome, Ok(o) if !matches!(o.end, End::NotFinite(_)));
    monitor.finish(ended_well);
    let outcome = outcome?;
    conclude(&opened.plan, run, &outcome);
    match &outcome.end {
        End::NotFinite(text) => Err(Failure { kind: FailureKind::Training, error: anyhow!("{text}") }),
        _ => Ok(outcome),
    }
}

/// Says what runs.
fn introduce(opened: &Opened, resumed: Option<u64>, monitor: &Monitor) {
    let plan = &opened.plan;
    let rules: Vec<String> = plan.slots.iter().map(|s| format!("{} + {}", s.feature_map.name, s.update_rule.name)).collect();
    let trained = opened.model.trained_elements();
    let tokens = opened.task.train_batch(plan.train.seed, 0, 0, plan.train.batch_size).tokens * plan.train.accumulate;
    let threads = match opened.model.device() {
        Device::Cpu => format!(", {} threads", tch::get_num_threads()),
        _ => String::new(),
    };
    let device = format!("{}{threads}", device_name(opened.model.device()));
    let e = &opened.estimate;
    if let Some(title) = &plan.title {
        monitor.note(format!("recipe     {title}"));
    }
    if let Some(cite) = &plan.cite {
        monitor.note(format!("source     {cite}"));
    }
    monitor.note(format!("task       {}", opened.task.describe()));
    let with = if rules.is_empty() { String::new() } else { format!(" with {}", rules.join(", ")) };
    monitor.note(format!("model      {}{with}, {trained} trained parameters", plan.slow_net.name));
    monitor.note(format!("training   {} steps of {tokens} tokens, seed {}", plan.train.steps, plan.train.seed));
    monitor.note(format!("device     {device}, {}", type_name(opened.model.kind())));
    for line in executor_lines(opened) {
        monitor.note(format!("executor   {line}"));
    }
    for notice in opened.executors.take_notices() {
        monitor.note(format!("warning: {notice}"));
    }
    monitor.note(format!(
        "memory     about {}: parameters and optimiser {}, activations {}",
        mebibytes(e.parameter_bytes + e.optimiser_bytes + e.activation_bytes),
        mebibytes(e.parameter_bytes + e.optimiser_bytes),
        mebibytes(e.activation_bytes)
    ));
    let (needed, free) = (e.parameter_bytes + e.optimiser_bytes + e.activation_bytes, available_memory());
    if opened.model.device() == Device::Cpu && needed > free {
        monitor.note(format!(
            "warning: the machine has {} free: should memory run out, lower train.batch_size or train.memory_limit",
            mebibytes(free)
        ));
    }
    if let Some(step) = resumed {
        monitor.note(format!("resumed    at step {step}"));
    }
}

/// The name of a type as recipes have it.
fn type_name(kind: Kind) -> String {
    match kind {
        Kind::Float => "float32".into(),
        Kind::Double => "float64".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// One line for each executor and rule.
fn executor_lines(opened: &Opened) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for choice in opened.executors.choices() {
        let mut line = choice.line();
        if choice.executor == Executor::Reference {
            line += &format!("; scans above {} are recomputed in segments", mebibytes(opened.memory_limit));
        }
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.is_empty() && opened.plan.slots.is_empty() {
        lines.push("operations of libtorch: there is neither a rule nor a recurrent cell".into());
    } else if lines.is_empty() {
        // The reference is asked for, or the first batch reaches no rule.
        let policy = opened.executors.policy();
        lines.push(format!("{policy} asked for; scans above {} are recomputed in segments", mebibytes(opened.memory_limit)));
    }
    lines
}

/// What the run was carried out by before, where that differs: other executors round otherwise.
fn changed_executors(opened: &Opened) -> Option<String> {
    let text = std::fs::read_to_string(opened.run.path().join("executor.json")).ok()?;
    let before: serde_json::Value = serde_json::from_str(&text).ok()?;
    let before = before["choices"].as_array()?;
    let changed = opened.executors.choices().into_iter().find_map(|now| {
        let now_record = now.record();
        let same = |old: &&serde_json::Value| ["slot", "part", "steps", "samples"].iter().all(|key| old[key] == now_record[key]);
        let old = before.iter().find(same)?["executor"].as_str()?;
        (old != now.executor.name()).then(|| (old.to_string(), now))
    });
    let (old, now) = changed?;
    let (rule, new) = (now.rule, now.executor);
    Some(format!("`{rule}` was carried out by {old} so far and is now by {new}: the run goes on, but not with the same bits"))
}

/// Records which executors run and why, in the run's folder.
fn record_executors(opened: &Opened) -> Result<()> {
    let choices: Vec<serde_json::Value> = opened.executors.choices().iter().map(|c| c.record()).collect();
    let document = serde_json::json!({
        "policy": opened.executors.policy().to_string(),
        "choices": choices,
        "memory_limit": opened.memory_limit,
        "device": device_name(opened.model.device()),
        "threads": tch::get_num_threads(),
        "machine": machine(),
        "libtorch": shim::libtorch_version(),
        "host": env!("CARGO_PKG_VERSION"),
    });
    let path = opened.run.path().join("executor.json");
    std::fs::write(&path, format!("{document:#}\n")).with_context(|| format!("writing {}", path.display()))
}

/// The name of a device, as [`device`] takes it.
fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The processor and how many cores of it there are for us, for people who compare speeds.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("model name"));
    let name = line.and_then(|l| l.split_once(':')).map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {cores} {}", if cores == 1 { "core" } else { "cores" })
}

/// Writes the run's configuration to TensorBoard.
fn describe(opened: &Opened, monitor: &Monitor) {
    let plan = &opened.plan;
    let recipe = std::fs::read_to_string(opened.run.recipe()).unwrap_or_default();
    monitor.text("recipe", format!("```toml\n{recipe}\n```"));
    let mut values = vec![
        ("recipe".to_string(), HparamValue::Text(plan.recipe.clone())),
        ("slow_net".into(), HparamValue::Text(plan.slow_net.name.clone())),
        ("seed".into(), HparamValue::Number(plan.train.seed as f64)),
        ("lr".into(), HparamValue::Number(plan.train.optimiser.lr)),
        ("batch_size".into(), HparamValue::Number(plan.train.batch_size as f64)),
        ("steps".into(), HparamValue::Number(plan.train.steps as f64)),
    ];
    for slot in &plan.slots {
        values.push((format!("{}.update_rule", slot.name), HparamValue::Text(slot.update_rule.name.clone())));
        values.push((format!("{}.feature_map", slot.name), HparamValue::Text(slot.feature_map.name.clone())));
    }
    monitor.hparams(values);
}

/// Says how it ended: measured beside published.
fn conclude(plan: &Plan, run: &RunDir, outcome: &Outcome) {
    let how = match &outcome.end {
        End::Completed => "all steps done".to_string(),
        End::TargetReached => "target reached".to_string(),
        End::PatienceExhausted => "no improvement for too long".to_string(),
        End::Interrupted => "interrupted; the state is saved".to_string(),
        // The error that follows says which and what to do.
        End::NotFinite(_) => "a loss or gradient is not finite".to_string(),
    };
    let mut lines = vec![format!("ended      at step {}: {how}", outcome.step)];
    if let Some(evaluation) = &outcome.evaluation {
        lines.push(format!("last       {}", summary(evaluation)));
    }
    if let Some(best) = &outcome.best {
        lines.push(format!("best       eval/loss {:.6} at step {}", best.loss, best.step));
    }
    // What was interrupted is not judged: it is not done.
    if let Some(expect) = &plan.expect
        && let Some([least, most]) = outcome.ranges.get(&expect.metric)
        && outcome.end != End::Interrupted
    {
        lines.push(compare(expect, if expect.more_is_better() { *most } else { *least }));
    }
    lines.push(format!("speed      {:.0} tokens/s over {:.1} s of training", outcome.tokens_per_second(), outcome.seconds));
    if matches!(outcome.end, End::Interrupted) {
        lines.push(format!("resume     fwp-host train --resume {}", run.path().display()));
    }
    lines.iter().for_each(|line| say(line));
}

/// Loss and metrics over all evaluation sets, then the metrics of each set, on one line.
pub fn summary(evaluation: &Evaluation) -> String {
    let of_all = evaluation.metrics.iter().filter_map(|(name, value)| Some((name.strip_prefix("eval/")?, value)));
    let (sets, all): (Vec<_>, Vec<_>) = of_all.partition(|(name, _)| name.contains('/'));
    let others = all.into_iter().chain(sets).filter(|(name, _)| *name != "loss" && !name.ends_with("/loss"));
    let others: String = others.map(|(name, value)| format!(", {name} {value:.4}")).collect();
    format!("eval/loss {:.6}{others}", evaluation.loss)
}

/// One line: measured beside published.
pub fn compare(expect: &Expect, measured: f64) -> String {
    let published = expect.published.map_or("not published".to_string(), |p| format!("published {p}"));
    let wanted = match (expect.at_most, expect.at_least) {
        (Some(x), None) => format!("expected at most {x}"),
        (None, Some(x)) => format!("expected at least {x}"),
        (Some(x), Some(y)) => format!("expected from {y} to {x}"),
        (None, None) => return format!("result     {} measured {measured:.6}, {published}: not judged", expect.metric),
    };
    let verdict = if expect.passes(measured) { "as expected" } else { "not as expected" };
    format!("result     {} measured {measured:.6}, {published}, {wanted}: {verdict}", expect.metric)
}

/// Prepares libtorch: the CUDA library and the number of threads.
pub fn prepare() {
    shim::load_cuda();
}
