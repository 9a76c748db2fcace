//! The step loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use fwp_recipe::{
    Carry, CheckpointSettings, EvalSettings, MonitorSettings, OnNonfinite, Plan, RunDir, StopSettings, Target, TrainSettings,
};
use fwp_task::Task;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use tokio::runtime::Runtime;

use super::checkpoint::{self, Loaded, Snapshot, State, to_hex};
use super::data::{Ahead, Place, Tensors, compare};
use super::evaluate::{Evaluation, EvaluationOptions, evaluate};
use super::interrupt::Interrupt;
use super::model::{Parameter, Pass, TrainModel};
use super::optimiser::Optimiser;
use super::save::Saver;
use super::tensors::HostTensor;
use crate::monitor::Monitor;
use crate::shim::{RandomState, ShimError, clear_gradients, clip, first_line, global_norm, manual_seed};

/// The shortest time over which speed is measured, in seconds: single steps vary too much.
const SPEED_WINDOW: f64 = 0.5;
/// The most values of one tensor that a histogram looks at.
const HISTOGRAM_VALUES: i64 = 65_536;

/// The sections of a plan that concern training.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How the slow net is trained.
    pub train: TrainSettings,
    /// Evaluation during training.
    pub eval: EvalSettings,
    /// When a run ends before its last step.
    pub stop: StopSettings,
    /// What is kept on disk.
    pub checkpoint: CheckpointSettings,
    /// What is written while training.
    pub monitor: MonitorSettings,
}

impl From<&Plan> for Settings {
    fn from(plan: &Plan) -> Self {
        Self {
            train: plan.train.clone(),
            eval: plan.eval.clone(),
            stop: plan.stop.clone(),
            checkpoint: plan.checkpoint.clone(),
            monitor: plan.monitor.clone(),
        }
    }
}

/// Where a run begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Resume {
    /// At the newest sound checkpoint of the run's folder, or at step 0 without one.
    #[default]
    Auto,
    /// At this checkpoint, or the newest one of this run.
    Path(PathBuf),
    /// At step 0; checkpoints that are there are set aside.
    Never,
}

impl FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "never" => Self::Never,
            path => Self::Path(path.into()),
        })
    }
}

/// Finds and reads the checkpoint that a run begins with, and warnings about newer damaged ones.
///
/// # Errors
///
/// A named checkpoint that is incomplete or damaged, and a run of which every checkpoint is.
pub fn find_start(resume: &Resume, run: &RunDir) -> anyhow::Result<(Option<Loaded>, Vec<String>)> {
    let newest = |folder: &Path| -> anyhow::Result<_> {
        let (found, warnings) = checkpoint::newest(folder)?;
        if found.is_none() && !warnings.is_empty() {
            anyhow::bail!(
                "no checkpoint in {} is sound ({}); begin again with --resume never",
                folder.display(),
                warnings.join("; ")
            );
        }
        Ok((found, warnings))
    };
    match resume {
        Resume::Never => Ok((None, Vec::new())),
        Resume::Auto => newest(&run.checkpoints()),
        Resume::Path(path) => match RunDir::open(path) {
            Ok(other) => {
                let (found, warnings) = newest(&other.checkpoints())?;
                anyhow::ensure!(found.is_some(), "the run {} has no checkpoint", path.display());
                Ok((found, warnings))
            }
            Err(_) => Ok((Some(checkpoint::read(path)?), Vec::new())),
        },
    }
}

/// The best evaluation of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Steps done when it was made.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// All steps are done.
    Completed,
    /// The evaluation loss is as low as was asked for.
    TargetReached,
    /// Too many evaluations without a new best loss.
    PatienceExhausted,
    /// A signal; the state is saved.
    Interrupted,
    /// A loss or gradient that is not finite; the text says where. The parameters are still sound.
    NotFinite(String),
}

/// How a run went.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// Steps done, those before a resume included.
    pub step: u64,
    /// Tokens seen in training, those before a resume included.
    pub tokens: u64,
    /// Seconds of training without evaluation, those before a resume included.
    pub seconds: f64,
    /// Steps left out because of values that were not finite.
    pub skipped: u64,
    /// The newest evaluation.
    pub evaluation: Option<Evaluation>,
    /// The best evaluation.
    pub best: Option<Best>,
    /// The smallest and the largest value of each metric of evaluations.
    pub ranges: BTreeMap<String, [f64; 2]>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
}

impl Outcome {
    /// Tokens a second over the whole training.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0. { self.tokens as f64 / self.seconds } else { 0. }
    }
}

/// Copies saved tensors into the parameters of a model.
///
/// # Errors
///
/// A missing or foreign name, or another shape; parameters before it are then already replaced.
pub fn load_parameters(parameters: &[Parameter], saved: &BTreeMap<String, Tensor>) -> anyhow::Result<()> {
    if let Some(foreign) = saved.keys().find(|name| !parameters.iter().any(|p| p.name == **name)) {
        anyhow::bail!("the checkpoint has a parameter {foreign:?} that this model does not have");
    }
    for parameter in parameters {
        let Some(tensor) = saved.get(&parameter.name) else {
            anyhow::bail!("the checkpoint has no parameter {:?}, which this model has", parameter.name);
        };
        let (found, expected) = (tensor.size(), parameter.tensor.size());
        anyhow::ensure!(
            found == expected,
            "the parameter {:?} has the shape {found:?} in the checkpoint and {expected:?} in this model",
            parameter.name
        );
        tch::no_grad(|| parameter.tensor.shallow_clone().f_copy_(tensor)).map_err(ShimError::from)?;
    }
    Ok(())
}

/// Trains a model until the plan or a signal ends it.
///
/// - `start`: the checkpoint to begin with, from [`find_start`]; parameters, optimiser, generators
///   and carried states are replaced by it. The monitor was opened for the same step.
/// - `run`: gets checkpoints and, on failure, a post-mortem.
///
/// Not to be called from a task of an asynchronous runtime.
///
/// # Errors
///
/// A checkpoint of another model, task or seed; what the model or libtorch refuses (a post-mortem
/// says at which step); a last checkpoint that could not be written.
pub fn train<M: TrainModel>(
    model: &M,
    task: &Arc<dyn Task>,
    settings: &Settings,
    run: &RunDir,
    start: Option<Loaded>,
    monitor: &Monitor,
    interrupt: &Interrupt,
) -> anyhow::Result<Outcome> {
    let mut trainer = Trainer::new(model, task, settings, run, start, monitor, interrupt)?;
    // Operations of the binding without a fallible twin panic; that must end in a post-mortem too.
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| trainer.run()));
    let end = caught.unwrap_or_else(|payload| {
        let text = first_line(&crate::shim::panic_text(&*payload));
        Err(anyhow::anyhow!("panic in step {}: {text}", trainer.state.step + 1))
    });
    match &end {
        Err(error) => {
            let (step, newest) = (trainer.state.step, trainer.last_checkpoint());
            let text = error.chain().map(|e| first_line(&e.to_string())).collect::<Vec<_>>().join(": ");
            post_mortem(
                run,
                monitor,
                &serde_json::json!({
                    "reason": "error", "message": text, "steps_done": step, "checkpoint": newest,
                }),
            );
        }
        Ok(_) => {
            // What an earlier attempt left would speak of a failure that is over.
            if !matches!(end, Ok(End::NotFinite(_))) {
                let _ = std::fs::remove_file(run.post_mortem());
            }
        }
    }
    trainer.finish(end?)
}

/// One step's numbers, on the device until they are asked for.
struct Pending {
    /// Steps done with this one.
    step: u64,
    loss: Tensor,
    /// Of the gradients.
    norm: Tensor,
    rate: f64,
}

/// A run in progress.
struct Trainer<'a, M: TrainModel> {
    model: &'a M,
    task: &'a Arc<dyn Task>,
    settings: &'a Settings,
    run: &'a RunDir,
    monitor: &'a Monitor,
    interrupt: &'a Interrupt,
    optimiser: Optimiser,
    state: State,
    /// The carried states of each micro-batch.
    carry: Vec<Option<M::Carry>>,
    pending: Option<Pending>,
    /// The checkpoint that this run began with.
    began_with: Option<PathBuf>,
    saved_at: Option<u64>,
    /// Tokens and seconds since speed was last computed, and the last value.
    window: (u64, f64),
    speed: Option<f64>,
    // Dropped in this order: the tasks end before their runtime.
    ahead: Option<Ahead>,
    saver: Option<Saver>,
    runtime: Runtime,
}

impl<'a, M: TrainModel> Trainer<'a, M> {
    fn new(
        model: &'a M,
        task: &'a Arc<dyn Task>,
        settings: &'a Settings,
        run: &'a RunDir,
        start: Option<Loaded>,
        monitor: &'a Monitor,
        interrupt: &'a Interrupt,
    ) -> anyhow::Result<Self> {
        let seed = settings.train.seed;
        let mut optimiser = Optimiser::new(&settings.train.optimiser, model.parameters())?;
        let mut carry: Vec<Option<M::Carry>> = (0..settings.train.accumulate).map(|_| None).collect();
        let began_with = start.as_ref().map(|loaded| loaded.path.clone());
        let state = match start {
            Some(loaded) => {
                let path = loaded.path.display().to_string();
                restore(model, task, seed, &mut optimiser, &mut carry, loaded)
                    .with_context(|| format!("cannot resume from {path}"))?
            }
            None => {
                // Not the generator that drew the initial parameters: dropout must not depend on how many there are.
                manual_seed(seed);
                State {
                    step: 0,
                    tokens: 0,
                    seconds: 0.,
                    seed,
                    task: task.fingerprint(),
                    random_cpu: String::new(),
                    random_cuda: None,
                    evaluation: None,
                    best: None,
                    ranges: BTreeMap::new(),
                    without_improvement: 0,
                    skipped: 0,
                    skipped_in_a_row: 0,
                }
            }
        };
        let aside = checkpoint::set_aside(&run.checkpoints(), state.step)?;
        if aside > 0 {
            monitor.note(format!("note: {aside} checkpoints beyond step {} were moved to checkpoints/aside", state.step));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("background")
            .build()
            .context("cannot start the background tasks")?;
        let accumulate = settings.train.accumulate as u64;
        let ahead = Ahead::start(
            runtime.handle(),
            task.clone(),
            seed,
            (state.step, settings.train.steps),
            (accumulate, settings.train.batch_size),
        );
        let saver = Saver::start(runtime.handle(), run.checkpoints(), settings.checkpoint.keep);
        Ok(Self {
            saved_at: began_with.is_some().then_some(state.step),
            model,
            task,
            settings,
            run,
            monitor,
            interrupt,
            optimiser,
            state,
            carry,
            pending: None,
            began_with,
            window: (0, 0.),
            speed: None,
            ahead: Some(ahead),
            saver: Some(saver),
            runtime,
        })
    }

    fn run(&mut self) -> anyhow::Result<End> {
        let last = self.settings.train.steps;
        // A run may have been stopped between a step and its evaluation, or at its very end.
        if self.state.step > 0
            && let Some(end) = self.after_step()?
        {
            return Ok(end);
        }
        while self.state.step < last {
            let step = self.state.step;
            let end = self.step().with_context(|| format!("step {}", step + 1))?;
            if let Some(end) = end {
                return Ok(end);
            }
            if let Some(end) = self.after_step()? {
                return Ok(end);
            }
        }
        Ok(End::Completed)
    }

    /// One optimiser step. Returns the end of the run when a value is not finite.
    fn step(&mut self) -> anyhow::Result<Option<End>> {
        let began = Instant::now();
        let train = &self.settings.train;
        let accumulate = train.accumulate.max(1);
        clear_gradients(&self.optimiser.parameters())?;
        let mut total: Option<Tensor> = None;
        let mut tokens = 0;
        let mut inputs = BTreeMap::new();
        for micro in 0..accumulate {
            let place = Place { step: self.state.step, micro: micro as u64 };
            let ahead = self.ahead.as_mut().context("data preparation has ended")?;
            let batch = ahead.next(place)?;
            let tensors = Tensors::new(&batch, self.model.device())?;
            tokens += batch.tokens as u64;
            let carried = train.carry == Carry::Detached && batch.resets.is_some();
            let pass = Pass {
                train: true,
                step: self.state.step,
                seed: train.seed,
                micro: micro as u64,
                carry: carried,
                resets: if carried { batch.resets.clone() } else { None },
                scored: tensors.scored(self.task.output_name()),
            };
            let before = if carried { self.carry[micro].take() } else { None };
            let output = self.model.forward(&tensors.inputs, &pass, before)?;
            self.carry[micro] = output.carry;
            let name = self.task.output_name();
            let value =
                output.values.get(name).with_context(|| format!("the slow net has no output {name:?}, which the task needs"))?;
            let sums = compare(self.task.loss(), value, &tensors)?;
            let loss = sums.mean(accumulate as f64)?;
            anyhow::ensure!(loss.requires_grad(), "the loss does not depend on any trained parameter");
            loss.f_backward().map_err(ShimError::from)?;
            let loss = loss.detach();
            total = Some(match total {
                Some(total) => total.f_add(&loss).map_err(ShimError::from)?,
                None => loss,
            });
            inputs = tensors.inputs;
        }
        let total = total.context("a step without a micro-batch")?;
        let gradients = self.optimiser.gradients();
        let norm = global_norm(&gradients)?;
        let rate = train.lr_at(self.state.step);
        if train.clip > 0. {
            clip(&gradients, &norm, train.clip)?;
        }
        let pending = Pending { step: self.state.step + 1, loss: total, norm, rate };
        if !self.asks_later() {
            // Asking costs nothing here, so a bad step is not even begun.
            let (end, good) = self.report(&pending)?;
            if end.is_some() {
                return Ok(end);
            }
            if good {
                self.optimiser.step(rate, None)?;
            }
        } else {
            // The device is asked about the step before; a bad step leaves the parameters alone by
            // itself, so that nothing is harmed until the answer is seen.
            if let Some(earlier) = self.pending.take() {
                let (end, _) = self.report(&earlier)?;
                if end.is_some() {
                    return Ok(end);
                }
            }
            let found = || {
                let good = pending.loss.f_isfinite()?.f_logical_and(&pending.norm.f_isfinite()?)?;
                good.f_logical_not()?.f_to_kind(Kind::Float)
            };
            let found = found().map_err(ShimError::from)?;
            self.optimiser.step(rate, Some(&found))?;
            self.pending = Some(pending);
        }
        self.state.step += 1;
        self.state.tokens += tokens;
        let seconds = began.elapsed().as_secs_f64();
        self.state.seconds += seconds;
        self.window = (self.window.0 + tokens, self.window.1 + seconds);
        self.probe(&inputs)?;
        Ok(None)
    }

    /// Whether a step's numbers are asked for one step later, so that the device never waits.
    fn asks_later(&self) -> bool {
        #[cfg(test)]
        if super::tests::ASK_LATER.get() {
            return true;
        }
        self.model.device() != Device::Cpu
    }

    /// Looks at a step's numbers: whether they are finite, and the metrics.
    ///
    /// Returns the end of the run, if this is one, and whether the step is to be taken.
    fn report(&mut self, pending: &Pending) -> anyhow::Result<(Option<End>, bool)> {
        let read = |t: &Tensor| f64::try_from(t).map_err(ShimError::from);
        let (loss, norm) = (read(&pending.loss)?, read(&pending.norm)?);
        let good = loss.is_finite() && norm.is_finite();
        if good {
            self.state.skipped_in_a_row = 0;
        } else {
            let allowed = match self.settings.train.on_nonfinite {
                OnNonfinite::Stop => 0,
                OnNonfinite::Skip { max_consecutive } => max_consecutive,
            };
            self.state.skipped_in_a_row += 1;
            if self.state.skipped_in_a_row > allowed {
                return Ok((Some(self.not_finite(pending.step, loss, norm)), false));
            }
            self.state.skipped += 1;
            self.monitor.note(format!("warning: step {} left out: loss {loss}, gradient norm {norm}", pending.step));
        }
        let step = pending.step;
        let log = step.is_multiple_of(self.settings.monitor.log_every.max(1)) || step == self.settings.train.steps || step == 1;
        if log || !good {
            let (tokens, seconds) = self.window;
            if seconds >= SPEED_WINDOW || (self.speed.is_none() && seconds > 0.) {
                self.speed = Some(tokens as f64 / seconds);
                self.window = (0, 0.);
            }
            let mut values = vec![
                ("train/loss".to_owned(), loss),
                ("train/lr".to_owned(), pending.rate),
                ("train/grad_norm".to_owned(), norm),
            ];
            values.extend(self.speed.map(|v| ("train/tokens_per_second".to_owned(), v)));
            if self.state.skipped > 0 {
                values.push(("train/skipped_steps".to_owned(), self.state.skipped as f64));
            }
            self.monitor.metrics(step, values);
        }
        Ok((None, good))
    }

    /// Writes the post-mortem of a value that is not finite.
    fn not_finite(&self, step: u64, loss: f64, norm: f64) -> End {
        let train = &self.settings.train;
        // The gradients of this very step are only there when the device was asked at once.
        let names = if self.asks_later() { Vec::new() } else { self.optimiser.not_finite() };
        let newest = self.last_checkpoint();
        let mut message = format!("the loss of step {step} is {loss}, the gradient norm {norm}");
        if let Some(name) = names.first() {
            message.push_str(&format!("; the first gradient that is not finite is that of {name:?}"));
        }
        match &newest {
            Some(path) => message.push_str(&format!("; the last checkpoint is {}", path.display())),
            None => message.push_str("; there is no checkpoint yet"),
        }
        message
            .push_str("; lower train.optimiser.lr, set train.clip, or leave such steps out with train.on_nonfinite = \"skip\"");
        let text = |v: f64| if v.is_finite() { serde_json::json!(v) } else { serde_json::json!(v.to_string()) };
        post_mortem(
            self.run,
            self.monitor,
            &serde_json::json!({
                "reason": "not finite",
                "message": message,
                "step": step,
                "loss": text(loss),
                "grad_norm": text(norm),
                "lr": train.lr_at(step.saturating_sub(1)),
                "gradients_not_finite": names,
                "checkpoint": newest,
                "batch": {
                    "seed": train.seed,
                    "step": step.saturating_sub(1),
                    "micro_batches": train.accumulate,
                    "batch_size": train.batch_size,
                },
                "skipped_in_a_row": self.state.skipped_in_a_row.saturating_sub(1),
            }),
        );
        End::NotFinite(message)
    }

    /// What follows a step: evaluation, stop criteria, checkpoints, signals.
    fn after_step(&mut self) -> anyhow::Result<Option<End>> {
        let (step, last) = (self.state.step, self.settings.train.steps);
        let every = self.settings.eval.every;
        let due = step >= last || (every > 0 && step % every == 0);
        let seen = self.state.evaluation.as_ref().is_some_and(|e| e.step == step);
        let mut new_best = false;
        if (due || self.interrupt.is_asked())
            && let Some(end) = self.drain()?
        {
            return Ok(Some(end));
        }
        if due && !seen && !self.interrupt.is_asked() {
            new_best = self.evaluate().with_context(|| format!("evaluation after step {step}"))?;
        }
        let end = self.verdict();
        let every = self.settings.checkpoint.every;
        let save = end.is_some()
            || step >= last
            || self.interrupt.is_asked()
            || (every > 0 && step % every == 0)
            || (new_best && self.settings.checkpoint.keep_best);
        if save && self.saved_at != Some(step) {
            if let Some(end) = self.drain()? {
                return Ok(Some(end));
            }
            self.save()?;
        }
        for warning in self.saver.iter().flat_map(Saver::warnings) {
            self.monitor.note(format!("warning: {warning}"));
        }
        Ok(match end {
            None if self.interrupt.is_asked() => Some(End::Interrupted),
            end => end,
        })
    }

    /// Whether the evaluation of this very step ends the run.
    fn verdict(&self) -> Option<End> {
        let stop = &self.settings.stop;
        let evaluation = self.state.evaluation.as_ref().filter(|e| e.step == self.state.step)?;
        if stop.eval_loss_at_most.is_some_and(|bound| evaluation.loss <= bound) {
            return Some(End::TargetReached);
        }
        let value = |target: &Target| evaluation.metrics.get(&target.metric).copied();
        if stop.target.as_ref().is_some_and(|target| value(target).is_some_and(|v| target.reached(v))) {
            return Some(End::TargetReached);
        }
        if stop.patience > 0 && self.state.without_improvement >= stop.patience {
            return Some(End::PatienceExhausted);
        }
        None
    }

    /// Waits for the numbers of the last step.
    fn drain(&mut self) -> anyhow::Result<Option<End>> {
        match self.pending.take() {
            Some(pending) => Ok(self.report(&pending)?.0),
            None => Ok(None),
        }
    }

    /// Evaluates; returns whether this is the best one so far.
    fn evaluate(&mut self) -> anyhow::Result<bool> {
        let options = EvaluationOptions {
            seed: self.settings.train.seed,
            data_seed: self.settings.train.seed,
            step: self.state.step,
            batch_size: self.settings.eval.batch_size,
            carry: self.settings.train.carry == Carry::Detached,
        };
        let Some(found) = evaluate(self.model, self.task, options, Some(self.interrupt))? else {
            return Ok(false);
        };
        let mut named: Vec<(String, f64)> = found.metrics.iter().map(|(n, v)| (n.clone(), *v)).collect();
        if !found.loss.is_finite() {
            named.push(("eval/loss".to_owned(), found.loss));
        }
        self.monitor.metrics(found.step, named);
        for (name, value) in &found.metrics {
            let range = self.state.ranges.entry(name.clone()).or_insert([*value; 2]);
            *range = [range[0].min(*value), range[1].max(*value)];
        }
        let (step, loss) = (found.step, found.loss);
        self.state.evaluation = Some(found);
        let better = loss.is_finite() && self.state.best.is_none_or(|best| loss < best.loss);
        if better {
            self.state.best = Some(Best { step, loss });
            self.state.without_improvement = 0;
        } else {
            self.state.without_improvement += 1;
        }
        Ok(better)
    }

    /// Copies everything to the host and hands it to the saver.
    fn save(&mut self) -> anyhow::Result<()> {
        let random = RandomState::capture(self.model.device())?;
        self.state.random_cpu = to_hex(&random.cpu);
        self.state.random_cuda = random.cuda.map(|(index, bytes)| (index, to_hex(&bytes)));
        let mut carry = Vec::new();
        for (micro, carried) in self.carry.iter().enumerate() {
            for (name, tensor) in carried.iter().flat_map(|c| self.model.save_carry(c)) {
                carry.push(HostTensor::copy(&format!("{micro}/{name}"), &tensor)?);
            }
        }
        let optimiser = self.optimiser.state();
        let snapshot = Snapshot {
            model: HostTensor::copy_all(self.model.parameters().iter().map(|p| (p.name.as_str(), &p.tensor)))?,
            optimiser: HostTensor::copy_all(optimiser.iter().map(|(n, t)| (n.as_str(), t)))?,
            carry,
            state: self.state.clone(),
        };
        let best = self.state.best.filter(|_| self.settings.checkpoint.keep_best).map(|b| b.step);
        if let Some(saver) = &self.saver {
            saver.save(snapshot, self.monitor.flush_later(), best);
        }
        self.saved_at = Some(self.state.step);
        Ok(())
    }

    /// Hands histograms and images of the model's inside to the monitor, when they are due.
    fn probe(&self, inputs: &BTreeMap<String, Tensor>) -> anyhow::Result<()> {
        let (step, monitor) = (self.state.step, &self.settings.monitor);
        let due = |every: u64| every > 0 && step % every == 0;
        let (histograms, images) = (due(monitor.histograms_every), due(monitor.images_every));
        if !monitor.tensorboard || !(histograms || images) {
            return Ok(());
        }
        let random = RandomState::capture(self.model.device())?;
        let probes = tch::no_grad(|| self.model.probes(inputs));
        random.restore()?;
        for (tag, tensor) in probes? {
            if histograms {
                self.monitor.histogram(&tag, step, sample(&tensor).map_err(ShimError::from)?);
            }
            if images && tensor.dim() >= 2 {
                let (rows, values) = first_matrix(&tensor).map_err(ShimError::from)?;
                self.monitor.image(&tag, step, rows, values);
            }
        }
        Ok(())
    }

    fn newest_checkpoint(&self) -> Option<PathBuf> {
        self.saver.as_ref().and_then(Saver::newest).or_else(|| self.began_with.clone())
    }

    /// The checkpoint that a failed run goes back to: those on their way are waited for.
    fn last_checkpoint(&self) -> Option<PathBuf> {
        self.saver.as_ref().and_then(Saver::settled).or_else(|| self.began_with.clone())
    }

    /// Waits for the background tasks and sums up.
    fn finish(mut self, end: End) -> anyhow::Result<Outcome> {
        drop(self.ahead.take());
        let newest = self.newest_checkpoint();
        let written = self.saver.take().map(Saver::finish).unwrap_or_default();
        for warning in &written.warnings {
            self.monitor.note(format!("warning: {warning}"));
        }
        if let (Some(error), false) = (&written.error, matches!(end, End::NotFinite(_))) {
            anyhow::bail!("the run ended at step {} ({end:?}), but {error}", self.state.step);
        }
        let outcome = Outcome {
            end,
            step: self.state.step,
            tokens: self.state.tokens,
            seconds: self.state.seconds,
            skipped: self.state.skipped,
            evaluation: self.state.evaluation,
            best: self.state.best,
            ranges: self.state.ranges,
            checkpoint: written.newest.or(newest),
        };
        self.runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        Ok(outcome)
    }
}

/// Puts a checkpoint into the model, the optimiser, the generators and the carried states.
fn restore<M: TrainModel>(
    model: &M,
    task: &Arc<dyn Task>,
    seed: u64,
    optimiser: &mut Optimiser,
    carry: &mut [Option<M::Carry>],
    loaded: Loaded,
) -> anyhow::Result<State> {
    let state = loaded.state;
    anyhow::ensure!(
        state.seed == seed,
        "it was made with seed {} and this run has seed {seed}: name the same seed, or begin again with --resume never",
        state.seed
    );
    anyhow::ensure!(
        state.task == task.fingerprint(),
        "the task's data is not the one it was made with ({:?}, now {:?}): restore the data, or begin again with --resume never",
        state.task,
        task.fingerprint()
    );
    load_parameters(model.parameters(), &loaded.model)?;
    optimiser.load(loaded.optimiser)?;
    let mut states: BTreeMap<usize, BTreeMap<String, Tensor>> = BTreeMap::new();
    for (name, tensor) in loaded.carry {
        let place = name.split_once('/').and_then(|(m, rest)| Some((m.parse().ok()?, rest.to_owned())));
        let (micro, rest) = place
            .filter(|(m, _)| *m < carry.len())
            .with_context(|| format!("it carries the state {name:?}, which belongs to a run with other micro-batches"))?;
        states.entry(micro).or_default().insert(rest, tensor);
    }
    for (micro, tensors) in states {
        carry[micro] = Some(model.load_carry(tensors)?);
    }
    state.random().map_err(anyhow::Error::msg)?.restore()?;
    Ok(state)
}

/// Writes the post-mortem; a failure to do so is only worth a warning beside the failure itself.
fn post_mortem(run: &RunDir, monitor: &Monitor, value: &serde_json::Value) {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
    if let Err(error) = std::fs::write(run.post_mortem(), text + "\n") {
        monitor.note(format!("warning: cannot write {}: {error}", run.post_mortem().display()));
    }
}

/// Up to [`HISTOGRAM_VALUES`] values of a tensor, evenly spread.
fn sample(tensor: &Tensor) -> Result<Vec<f32>, tch::TchError> {
    let flat = tensor.detach().f_reshape([-1])?;
    let count = flat.numel() as i64;
    let stride = (count + HISTOGRAM_VALUES - 1) / HISTOGRAM_VALUES;
    let flat = if stride > 1 { flat.f_slice(0, 0, count, stride)? } else { flat };
    host(&flat)
}

/// The first matrix of a tensor with two axes or more: its rows, and its values row by row.
fn first_matrix(tensor: &Tensor) -> Result<(usize, Vec<f32>), tch::TchError> {
    let mut matrix = tensor.detach();
    while matrix.dim() > 2 {
        matrix = matrix.f_select(0, 0)?;
    }
    let rows = matrix.size2()?.0;
    Ok((rows as usize, host(&matrix.f_reshape([-1])?)?))
}

fn host(flat: &Tensor) -> Result<Vec<f32>, tch::TchError> {
    Vec::<f32>::try_from(flat.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?)
}
