//! The step loop on a toy model: an embedding, dropout, a carried mean and a linear layer.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fwp_recipe::{
    Carry, CheckpointSettings, Dtype, EvalSettings, MonitorSettings, OnNonfinite, Optimiser, OptimiserKind, RunDir, Schedule,
    ScheduleKind, StopSettings, Target, TrainSettings,
};
use fwp_task::{Batch, Loss, Task, TaskIo};
use tch::{Device, Kind, Tensor};

use super::*;
use crate::monitor::{Monitor, MonitorOptions, Progress};
use crate::shim::testing::alone;

thread_local! {
    /// Makes the loop behave as on a GPU: numbers are looked at one step later.
    pub(super) static ASK_LATER: Cell<bool> = const { Cell::new(false) };
}

const VALUES: usize = 5;

/// The next symbol is a function of this one.
struct ToyTask {
    io: TaskIo,
    name: &'static str,
    panics_at: Option<u64>,
}

impl ToyTask {
    fn new() -> Self {
        let io = TaskIo { inputs: vec![], outputs: vec![], values: VALUES, max_len: 3 };
        Self { io, name: "toy", panics_at: None }
    }

    fn batch(&self, place: u64, size: usize) -> Batch {
        let symbol = |i: u64| ((place * 7 + i * 3 + place / 3) % VALUES as u64) as i64;
        let data: Vec<i64> = (0..size as u64 * 3).map(symbol).collect();
        Batch {
            size,
            targets: data.iter().map(|x| (x * 2 + 1) % VALUES as i64).collect(),
            target_shape: vec![size, 3],
            tokens: data.len(),
            inputs: vec![("x".into(), data, vec![size, 3])],
            weights: None,
            resets: Some((0..size).map(|row| row == 0 && place.is_multiple_of(4)).collect()),
            set: 0,
        }
    }
}

impl Task for ToyTask {
    fn io(&self) -> &TaskIo {
        &self.io
    }
    fn loss(&self) -> Loss {
        Loss::CrossEntropy
    }
    fn output_name(&self) -> &str {
        "y"
    }
    fn train_batch(&self, seed: u64, step: u64, micro: u64, batch_size: usize) -> Batch {
        assert_ne!(Some(step), self.panics_at, "the toy task panics, on purpose");
        self.batch(seed + step * 2 + micro, batch_size)
    }
    fn eval_len(&self, _: usize) -> usize {
        2
    }
    fn eval_batch(&self, seed: u64, index: usize, batch_size: usize) -> Batch {
        self.batch(seed + 1000 + index as u64, batch_size)
    }
    fn describe(&self) -> String {
        self.name.into()
    }
    fn fingerprint(&self) -> String {
        self.name.into()
    }
}

struct ToyModel {
    parameters: Vec<Parameter>,
    dropout: f64,
    /// The steps (from 0) whose output is not finite.
    bad: Vec<u64>,
    /// Asked at this step.
    interrupt: Option<(u64, Interrupt)>,
    fails_at: Option<u64>,
    panics_at: Option<u64>,
    /// At this step the folder is replaced by a file.
    breaks: Option<(u64, std::path::PathBuf)>,
    pause: Duration,
}

impl ToyModel {
    fn new() -> Self {
        let numbers = |n: i64, phase: f64| ((Tensor::arange(n, (Kind::Float, Device::Cpu)) + phase) * 12.9898).sin() * 0.1;
        let parameter = |name: &str, tensor: Tensor, trainable: bool| Parameter {
            name: name.into(),
            tensor: tensor.set_requires_grad(trainable),
            decay: name.ends_with("weight"),
            trainable,
        };
        Self {
            parameters: vec![
                parameter("embedding.weight", numbers(VALUES as i64 * 4, 0.).view([VALUES as i64, 4]), true),
                parameter("out.weight", numbers(4 * VALUES as i64, 0.5).view([4, VALUES as i64]), true),
                parameter("out.bias", numbers(VALUES as i64, 0.7), true),
                parameter("frozen", numbers(2, 0.9), false),
            ],
            dropout: 0.,
            bad: vec![],
            interrupt: None,
            fails_at: None,
            panics_at: None,
            breaks: None,
            pause: Duration::ZERO,
        }
    }

    fn values(&self) -> Vec<f32> {
        self.parameters.iter().flat_map(|p| Vec::<f32>::try_from(p.tensor.detach().view([-1])).unwrap()).collect()
    }
}

impl TrainModel for ToyModel {
    type Carry = Tensor;

    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }
    fn device(&self) -> Device {
        Device::Cpu
    }
    fn kind(&self) -> Kind {
        Kind::Float
    }
    fn forward(&self, inputs: &BTreeMap<String, Tensor>, pass: &Pass, carry: Option<Tensor>) -> anyhow::Result<Output<Tensor>> {
        if pass.train {
            std::thread::sleep(self.pause);
            anyhow::ensure!(self.fails_at != Some(pass.step), "the toy model fails, on purpose");
            assert_ne!(self.panics_at, Some(pass.step), "the toy model panics, on purpose");
            if let Some((_, folder)) = self.breaks.as_ref().filter(|(step, _)| *step == pass.step && pass.micro == 0) {
                std::fs::remove_dir_all(folder)?;
                std::fs::write(folder, "")?;
            }
            if let Some((step, interrupt)) = &self.interrupt
                && *step == pass.step
            {
                interrupt.ask();
            }
        }
        let p = &self.parameters;
        let hidden = Tensor::embedding(&p[0].tensor, &inputs["x"], -1, false, false);
        let hidden = hidden.dropout(self.dropout, pass.train);
        let mean = hidden.mean_dim(1i64, true, Kind::Float);
        let hidden = match carry {
            Some(state) => {
                let keep: Vec<f32> = pass.resets.iter().flatten().map(|&fresh| if fresh { 0. } else { 0.5 }).collect();
                hidden + state * Tensor::from_slice(&keep).view([-1, 1, 1])
            }
            None => hidden,
        };
        let mut output = hidden.matmul(&p[1].tensor) + &p[2].tensor;
        if pass.train && self.bad.contains(&pass.step) {
            output *= f64::NAN;
        }
        let carry = pass.carry.then(|| mean.detach());
        Ok(Output { values: [("y".to_owned(), output)].into(), carry })
    }
    fn probes(&self, inputs: &BTreeMap<String, Tensor>) -> anyhow::Result<Vec<(String, Tensor)>> {
        Ok(vec![("fwp/x".into(), inputs["x"].shallow_clone())])
    }
    fn save_carry(&self, carry: &Tensor) -> Vec<(String, Tensor)> {
        vec![("mean".into(), carry.shallow_clone())]
    }
    fn load_carry(&self, mut tensors: BTreeMap<String, Tensor>) -> anyhow::Result<Tensor> {
        tensors.remove("mean").ok_or_else(|| anyhow::anyhow!("no mean"))
    }
}

fn settings(steps: u64) -> Settings {
    Settings {
        train: TrainSettings {
            steps,
            batch_size: 4,
            accumulate: 2,
            seed: 3,
            optimiser: Optimiser { name: OptimiserKind::AdamW, lr: 0.05, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.01 },
            schedule: Schedule { name: ScheduleKind::Cosine, warmup: 3, min_ratio: 0.1, decay_fraction: 0.1 },
            clip: 1.,
            carry: Carry::None,
            on_nonfinite: OnNonfinite::Stop,
            dtype: Dtype::Float32,
            device: "cpu".into(),
            exec: "auto".into(),
            memory_limit: None,
        },
        eval: EvalSettings { every: 5, batch_size: 4 },
        stop: StopSettings { eval_loss_at_most: None, patience: 0, target: None },
        checkpoint: CheckpointSettings { every: 4, keep: 2, keep_best: false },
        monitor: MonitorSettings { log_every: 1, tensorboard: false, histograms_every: 0, images_every: 0 },
    }
}

fn run_dir(folder: &Path) -> RunDir {
    RunDir::create(folder).unwrap()
}

/// Trains as the engine does: finds the start, opens the monitor, trains.
fn go(model: &ToyModel, task: ToyTask, settings: &Settings, run: &RunDir, resume: &Resume) -> anyhow::Result<Outcome> {
    let interrupt = model.interrupt.as_ref().map(|(_, i)| i.clone()).unwrap_or_default();
    let (start, _) = find_start(resume, run)?;
    let monitor = Monitor::start(MonitorOptions {
        metrics: run.metrics(),
        events: settings.monitor.tensorboard.then(|| run.path().to_owned()),
        resumed_at: start.as_ref().map(|s| s.state.step),
        total_steps: settings.train.steps,
        evaluate_every: settings.eval.every,
        progress: Progress::None,
    })?;
    let task: Arc<dyn Task> = Arc::new(task);
    let outcome = train(model, &task, settings, run, start, &monitor, &interrupt);
    monitor.finish(outcome.is_ok());
    outcome
}

/// Step, tag and value of all metrics but those of time.
fn metrics(run: &RunDir) -> Vec<(u64, String, String)> {
    let text = std::fs::read_to_string(run.metrics()).unwrap();
    let mut all = Vec::new();
    for line in text.lines() {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let step = object["step"].as_u64().unwrap();
        for (tag, value) in &object {
            if !["step", "time", "train/tokens_per_second"].contains(&tag.as_str()) {
                all.push((step, tag.clone(), value.to_string()));
            }
        }
    }
    all
}

fn checkpoints(run: &RunDir) -> Vec<u64> {
    checkpoint::list(&run.checkpoints()).unwrap().into_iter().map(|(step, _)| step).collect()
}

/// The bytes of everything in a checkpoint that must not depend on how often the run was stopped.
fn tensors_of(run: &RunDir, step: u64) -> Vec<Vec<u8>> {
    let folder = run.checkpoints().join(format!("step-{step}"));
    let names = ["model.safetensors", "optimiser.safetensors", "carry.safetensors"];
    names.iter().filter_map(|name| std::fs::read(folder.join(name)).ok()).collect()
}

#[test]
fn training_learns_evaluates_and_saves() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_dir(folder.path());
    let outcome = go(&ToyModel::new(), ToyTask::new(), &settings(60), &run, &Resume::Auto).unwrap();
    assert_eq!((outcome.end.clone(), outcome.step), (End::Completed, 60));
    assert_eq!(outcome.tokens, 60 * 2 * 4 * 3);
    assert!(outcome.tokens_per_second() > 0.);
    assert!(outcome.evaluation.as_ref().unwrap().loss < 0.5, "{outcome:?}");
    assert_eq!(outcome.evaluation.as_ref().unwrap().accuracy, 1.);
    assert_eq!(checkpoints(&run), [60, 56]);
    assert_eq!(outcome.checkpoint.unwrap(), run.checkpoints().join("step-60"));
    let metrics = metrics(&run);
    let count = |tag: &str| metrics.iter().filter(|(_, t, _)| t == tag).count();
    assert_eq!((count("train/loss"), count("eval/loss"), count("train/grad_norm")), (60, 12, 60));
    let rate: Vec<f64> = metrics.iter().filter(|(_, t, _)| t == "train/lr").map(|(_, _, v)| v.parse().unwrap()).collect();
    assert_eq!(rate[0], settings(60).train.lr_at(0));
    assert_eq!(rate[59], settings(60).train.lr_at(59));
    assert!(!run.post_mortem().exists());
}

#[test]
fn a_run_of_accumulated_batches_equals_one_of_large_ones() {
    // Rows depend on their place alone in this comparison: the same batch twice.
    struct Same(ToyTask);
    impl Task for Same {
        fn io(&self) -> &TaskIo {
            &self.0.io
        }
        fn loss(&self) -> Loss {
            Loss::HalfSquaredError
        }
        fn output_name(&self) -> &str {
            "y"
        }
        fn train_batch(&self, _: u64, step: u64, _: u64, size: usize) -> Batch {
            self.0.batch(step, size)
        }
        fn eval_len(&self, _: usize) -> usize {
            1
        }
        fn eval_batch(&self, _: u64, _: usize, size: usize) -> Batch {
            self.0.batch(0, size)
        }
        fn describe(&self) -> String {
            String::new()
        }
        fn fingerprint(&self) -> String {
            String::new()
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let parameters = |accumulate: usize| {
        let run = run_dir(&folder.path().join(accumulate.to_string()));
        let mut settings = settings(5);
        settings.train.accumulate = accumulate;
        let model = ToyModel::new();
        let monitor = Monitor::start(MonitorOptions {
            metrics: run.metrics(),
            events: None,
            resumed_at: None,
            total_steps: 5,
            evaluate_every: settings.eval.every,
            progress: Progress::None,
        })
        .unwrap();
        let task: Arc<dyn Task> = Arc::new(Same(ToyTask::new()));
        train(&model, &task, &settings, &run, None, &monitor, &Interrupt::default()).unwrap();
        model.values()
    };
    for (a, b) in parameters(1).iter().zip(parameters(3)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn a_stopped_and_resumed_run_is_the_same_bit_for_bit() {
    alone("train::tests::resume_inner");
}

#[test]
#[ignore = "run by the test above, in a process of its own: dropout draws from the generator of all threads"]
fn resume_inner() {
    for (later, carry) in [(false, Carry::Detached), (true, Carry::None)] {
        ASK_LATER.set(later);
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(17);
        settings.train.carry = carry;
        let model = |interrupt: Option<u64>| ToyModel {
            dropout: 0.3,
            interrupt: interrupt.map(|step| (step, Interrupt::default())),
            ..ToyModel::new()
        };
        let whole = run_dir(&folder.path().join("whole"));
        let reference = model(None);
        let outcome = go(&reference, ToyTask::new(), &settings, &whole, &Resume::Auto).unwrap();
        assert_eq!(outcome.end, End::Completed);

        // Stopped in step 5, whose evaluation is then still to come, in step 8 and in step 12.
        let parts = run_dir(&folder.path().join("parts"));
        for stop in [4, 7, 11] {
            let outcome = go(&model(Some(stop)), ToyTask::new(), &settings, &parts, &Resume::Auto).unwrap();
            assert_eq!((outcome.end, outcome.step), (End::Interrupted, stop + 1));
            tch::manual_seed(stop as i64);
        }
        let last = model(None);
        let outcome = go(&last, ToyTask::new(), &settings, &parts, &Resume::Auto).unwrap();
        assert_eq!((outcome.end, outcome.tokens), (End::Completed, 17 * 2 * 4 * 3));
        assert_eq!(reference.values(), last.values());
        assert_eq!(metrics(&whole), metrics(&parts));
        assert_eq!(tensors_of(&whole, 17), tensors_of(&parts, 17));
        assert_eq!(tensors_of(&whole, 17).len(), if carry == Carry::None { 2 } else { 3 });

        // From a named, older checkpoint: what lies beyond is set aside.
        let again = model(None);
        let named = Resume::Path(parts.checkpoints().join("step-16"));
        go(&again, ToyTask::new(), &settings, &parts, &named).unwrap();
        assert_eq!(reference.values(), again.values());
        assert!(parts.checkpoints().join("aside/step-17.0").exists());
    }
}

#[test]
fn a_killed_run_goes_on_as_if_nothing_had_happened() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let killed = folder.path().join("killed");
    let start = |path: &Path| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::tests::kill_inner", "--ignored"])
            .env("FWP_TEST_RUN", path)
            .env("OMP_WAIT_POLICY", "passive")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    assert!(start(&whole).wait().unwrap().success());
    let mut child = start(&killed);
    for attempt in 0..6u64 {
        std::thread::sleep(Duration::from_millis(150 + attempt * 37 % 120));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        child = start(&killed);
    }
    assert!(child.wait().unwrap().success());
    let open = |path: &Path| {
        std::fs::write(path.join("plan.json"), "").unwrap();
        RunDir::open(path).unwrap()
    };
    let (whole, killed) = (open(&whole), open(&killed));
    assert_eq!(metrics(&whole), metrics(&killed));
    assert_eq!(tensors_of(&whole, 50), tensors_of(&killed, 50));
}

#[test]
#[ignore = "run by the test above, in processes of its own that are killed"]
fn kill_inner() {
    let path = std::path::PathBuf::from(std::env::var_os("FWP_TEST_RUN").unwrap());
    // A killed process leaves the folder as it is; the engine is given the folder of a run.
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("plan.json"), "").unwrap();
    let run = RunDir::open(&path).unwrap();
    let model = ToyModel { dropout: 0.3, pause: Duration::from_millis(3), ..ToyModel::new() };
    let mut settings = settings(50);
    settings.checkpoint.every = 2;
    go(&model, ToyTask::new(), &settings, &run, &Resume::Auto).unwrap();
}

#[test]
fn a_value_that_is_not_finite_stops_the_run_and_harms_no_parameter() {
    for later in [false, true] {
        ASK_LATER.set(later);
        let folder = tempfile::tempdir().unwrap();
        let reference = ToyModel::new();
        let run = run_dir(&folder.path().join("reference"));
        let mut plan = settings(6);
        plan.train.schedule.name = ScheduleKind::Constant;
        go(&reference, ToyTask::new(), &plan, &run, &Resume::Auto).unwrap();

        let run = run_dir(&folder.path().join("bad"));
        let model = ToyModel { bad: vec![6], ..ToyModel::new() };
        plan.train.steps = 20;
        let outcome = go(&model, ToyTask::new(), &plan, &run, &Resume::Auto).unwrap();
        let End::NotFinite(message) = &outcome.end else { panic!("{outcome:?}") };
        assert!(message.contains("step 7") && message.contains("NaN"), "{message}");
        assert!(message.contains("step-4"), "{message}");
        assert_eq!(model.values(), reference.values(), "later: {later}");
        let text = std::fs::read_to_string(run.post_mortem()).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&report["step"], &report["loss"]), (&7.into(), &"NaN".into()));
        assert_eq!(report["batch"]["step"], 6);
        assert!(report["checkpoint"].as_str().unwrap().ends_with("step-4"));
        assert_eq!(report["gradients_not_finite"].as_array().unwrap().is_empty(), later);
        assert_eq!(checkpoints(&run), [4]);
    }
    ASK_LATER.set(false);
}

#[test]
fn bad_steps_can_be_left_out_up_to_a_limit() {
    for later in [false, true] {
        ASK_LATER.set(later);
        let folder = tempfile::tempdir().unwrap();
        let mut plan = settings(10);
        plan.train.on_nonfinite = OnNonfinite::Skip { max_consecutive: 2 };
        let run = run_dir(&folder.path().join("some"));
        let model = ToyModel { bad: vec![2, 3, 5], ..ToyModel::new() };
        let outcome = go(&model, ToyTask::new(), &plan, &run, &Resume::Auto).unwrap();
        assert_eq!((outcome.end, outcome.step, outcome.skipped), (End::Completed, 10, 3));
        assert!(model.values().iter().all(|v| v.is_finite()));
        assert!(metrics(&run).contains(&(10, "train/skipped_steps".into(), "3.0".into())));

        let run = run_dir(&folder.path().join("many"));
        let model = ToyModel { bad: vec![2, 3, 4], ..ToyModel::new() };
        let outcome = go(&model, ToyTask::new(), &plan, &run, &Resume::Auto).unwrap();
        assert!(matches!(&outcome.end, End::NotFinite(m) if m.contains("step 5")), "{outcome:?}");
        assert!(model.values().iter().all(|v| v.is_finite()));
    }
    ASK_LATER.set(false);
}

#[test]
fn a_run_stops_when_it_is_good_enough_and_stays_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_dir(folder.path());
    let mut plan = settings(500);
    plan.stop.eval_loss_at_most = Some(0.5);
    let outcome = go(&ToyModel::new(), ToyTask::new(), &plan, &run, &Resume::Auto).unwrap();
    assert_eq!(outcome.end, End::TargetReached);
    assert!(outcome.step < 100 && outcome.step.is_multiple_of(5) && outcome.evaluation.as_ref().unwrap().loss <= 0.5);
    let again = go(&ToyModel::new(), ToyTask::new(), &plan, &run, &Resume::Auto).unwrap();
    assert_eq!((again.end, again.step, again.evaluation), (End::TargetReached, outcome.step, outcome.evaluation));

    // By another metric.
    let run = run_dir(&folder.path().join("accuracy"));
    let mut plan = settings(500);
    plan.stop.target = Some(Target { metric: "eval/accuracy".into(), at_most: None, at_least: Some(0.9) });
    let outcome = go(&ToyModel::new(), ToyTask::new(), &plan, &run, &Resume::Auto).unwrap();
    assert_eq!(outcome.end, End::TargetReached);
    let evaluation = outcome.evaluation.as_ref().unwrap();
    assert!(evaluation.accuracy >= 0.9 && evaluation.metrics["eval/accuracy"] == evaluation.accuracy);
    let range = outcome.ranges["eval/accuracy"];
    assert!(range[0] < 0.9 && range[1] == evaluation.accuracy, "{range:?}");
}

#[test]
fn a_run_stops_without_improvement_and_its_best_checkpoint_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_dir(folder.path());
    let mut plan = settings(500);
    // A rate that makes it worse after a while.
    plan.train.optimiser.lr = 3.;
    plan.train.schedule.warmup = 100;
    plan.stop.patience = 3;
    plan.checkpoint.keep_best = true;
    plan.checkpoint.keep = 1;
    let outcome = go(&ToyModel::new(), ToyTask::new(), &plan, &run, &Resume::Auto).unwrap();
    assert_eq!(outcome.end, End::PatienceExhausted);
    let best = outcome.best.unwrap();
    assert_eq!(outcome.step, best.step + 15);
    assert_eq!(checkpoints(&run), [outcome.step, best.step]);
}

#[test]
fn checkpoints_of_another_seed_task_or_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_dir(folder.path());
    go(&ToyModel::new(), ToyTask::new(), &settings(4), &run, &Resume::Auto).unwrap();
    let refused = |model: ToyModel, task: ToyTask, plan: Settings| {
        let error = go(&model, task, &plan, &run, &Resume::Auto).unwrap_err();
        format!("{error:#}")
    };
    let mut other = settings(8);
    other.train.seed = 4;
    let text = refused(ToyModel::new(), ToyTask::new(), other);
    assert!(text.contains("seed 3") && text.contains("seed 4") && text.contains("step-4"), "{text}");
    let text = refused(ToyModel::new(), ToyTask { name: "other", ..ToyTask::new() }, settings(8));
    assert!(text.contains("\"toy\"") && text.contains("\"other\""), "{text}");
    let mut model = ToyModel::new();
    model.parameters[2].tensor = Tensor::zeros([9], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let text = refused(model, ToyTask::new(), settings(8));
    assert!(text.contains("out.bias") && text.contains("[9]"), "{text}");
    let mut model = ToyModel::new();
    model.parameters[3].name = "renamed".into();
    assert!(refused(model, ToyTask::new(), settings(8)).contains("frozen"));
    // A longer plan is no other run.
    assert_eq!(go(&ToyModel::new(), ToyTask::new(), &settings(8), &run, &Resume::Auto).unwrap().step, 8);
}

#[test]
fn a_named_checkpoint_must_be_sound_and_never_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_dir(folder.path());
    let first = ToyModel::new();
    go(&first, ToyTask::new(), &settings(4), &run, &Resume::Auto).unwrap();
    let second = ToyModel::new();
    let outcome = go(&second, ToyTask::new(), &settings(4), &run, &Resume::Never).unwrap();
    assert_eq!((outcome.step, first.values()), (4, second.values()));
    assert!(run.checkpoints().join("aside/step-4.0").exists());
    let path = run.checkpoints().join("step-4");
    std::fs::write(path.join("model.safetensors"), "damaged").unwrap();
    for resume in [Resume::Path(path.clone()), Resume::Auto, Resume::Path(folder.path().join("none"))] {
        assert!(find_start(&resume, &run).is_err(), "{resume:?}");
    }
    assert_eq!("auto".parse(), Ok(Resume::Auto));
    assert_eq!("some/where".parse(), Ok(Resume::Path("some/where".into())));
}

#[test]
fn failures_leave_a_post_mortem_with_their_cause() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (ToyModel { fails_at: Some(2), ..ToyModel::new() }, ToyTask::new(), "the toy model fails"),
        (ToyModel { panics_at: Some(2), ..ToyModel::new() }, ToyTask::new(), "the toy model panics"),
        (ToyModel::new(), ToyTask { panics_at: Some(2), ..ToyTask::new() }, "data preparation for step 2 failed"),
    ];
    for (index, (model, task, cause)) in cases.into_iter().enumerate() {
        let run = run_dir(&folder.path().join(index.to_string()));
        let error = go(&model, task, &settings(5), &run, &Resume::Auto).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("step 3") && text.contains(cause), "{text}");
        let report = std::fs::read_to_string(run.post_mortem()).unwrap();
        assert!(report.contains(cause) && report.contains("\"steps_done\": 2"), "{report}");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_a_warning_until_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_dir(folder.path());
    let model = ToyModel { breaks: Some((2, run.checkpoints())), ..ToyModel::new() };
    let error = go(&model, ToyTask::new(), &settings(9), &run, &Resume::Auto).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("ended at step 9") && text.contains("checkpoint of step 9 was not written"), "{text}");
    assert_eq!(metrics(&run).iter().filter(|(_, t, _)| t == "train/loss").count(), 9);
}

#[test]
fn probes_become_histograms_and_images() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_dir(folder.path());
    let mut plan = settings(4);
    plan.monitor = MonitorSettings { log_every: 2, tensorboard: true, histograms_every: 2, images_every: 4 };
    go(&ToyModel::new(), ToyTask::new(), &plan, &run, &Resume::Auto).unwrap();
    let file = std::fs::read_dir(run.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_string_lossy().contains("tfevents"))
        .unwrap();
    let bytes = std::fs::read(file).unwrap();
    let count = |needle: &[u8]| bytes.windows(needle.len()).filter(|w| *w == needle).count();
    assert_eq!(count(b"fwp/x"), 3, "two histograms and an image");
    assert_eq!(count(b"IHDR"), 1);
    let logged: Vec<u64> = metrics(&run).iter().filter(|(_, t, _)| t == "train/loss").map(|(s, _, _)| *s).collect();
    assert_eq!(logged, [1, 2, 4]);
}
