//! Metrics, TensorBoard events and the progress display, on a thread of their own.
//!
//! The step loop hands over numbers through a bounded channel and never waits for a disk or a terminal.
//! What happens here cannot reach it: an error or a panic of one sink ends that sink with one warning, and the others and the training go on.
//!
//! | module | writes |
//! |---|---|
//! | `record` | `metrics.jsonl`, one object a line: the record of truth |
//! | `events` | TensorBoard events: scalars, text, hparams, histograms, images |
//! | `display` | a progress bar on a terminal, plain lines elsewhere |
//!
//! Tags are the same everywhere: `train/loss`, `train/lr`, `train/grad_norm`, `train/tokens_per_second`, `eval/loss`, and `fwp/...` for what is inside the model, with images at `fwp/.../image`.

mod display;
mod events;
mod image;
mod record;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use display::{Progress, say};
pub use events::HparamValue;

use display::Display;
use events::Events;
use record::Record;

/// Room for that many messages: minutes of a fast run, a few megabytes.
const CAPACITY: usize = 4096;
/// How often what was written is handed to the operating system.
const FLUSH_EVERY: Duration = Duration::from_secs(3);
/// How long metrics wait for room before the monitor counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of a run waits for the monitor.
const FINISH_WITHIN: Duration = Duration::from_secs(20);

/// Where a run is recorded and how it is shown.
#[derive(Debug, Clone)]
pub struct MonitorOptions {
    /// The file of metrics, `metrics.jsonl` in the run's folder; the folder exists.
    pub metrics: PathBuf,
    /// The folder for TensorBoard events, made when missing; `None` writes none.
    pub events: Option<PathBuf>,
    /// The number of steps done by the checkpoint that this run continues; records beyond it are
    /// removed. `None` for a fresh run.
    pub resumed_at: Option<u64>,
    /// The step at which the run ends, for the display.
    pub total_steps: u64,
    /// Every how many steps an evaluation follows, 0 for only after the last, for the display.
    pub evaluate_every: u64,
    /// How progress is shown on stderr.
    pub progress: Progress,
}

/// What the step loop hands over.
enum Message {
    Metrics {
        step: u64,
        time: f64,
        values: Vec<(String, f64)>,
    },
    Text {
        name: String,
        text: String,
    },
    Hparams(Vec<(String, HparamValue)>),
    Histogram {
        tag: String,
        step: u64,
        values: Vec<f32>,
    },
    Image {
        tag: String,
        step: u64,
        rows: usize,
        values: Vec<f32>,
    },
    Note(String),
    Flush(SyncSender<()>),
    Finish {
        succeeded: bool,
    },
    #[cfg(test)]
    Panic,
}

/// The handle of the monitor's thread. Dropping it ends the thread as [`Monitor::finish`] does.
pub struct Monitor {
    sender: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
    /// Set once the warning was printed; from then on messages are discarded.
    lost: Arc<AtomicBool>,
    /// Histograms and images that found no room: they are large and may be left out.
    left_out: AtomicU64,
}

impl Monitor {
    /// Opens the files and starts the thread.
    ///
    /// # Errors
    ///
    /// `metrics.jsonl` cannot be opened. TensorBoard events that cannot be written are a warning.
    pub fn start(options: MonitorOptions) -> std::io::Result<Self> {
        let record = Record::open(&options.metrics, options.resumed_at)?;
        let lost = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = sync_channel(CAPACITY);
        let flag = lost.clone();
        let thread = std::thread::Builder::new().name("monitor".into()).spawn(move || {
            let work = std::panic::AssertUnwindSafe(|| Actor::new(record, &options).run(&receiver));
            if let Err(payload) = std::panic::catch_unwind(work) {
                std::mem::forget(payload);
                warn_lost(&flag, "its thread panicked");
            }
        })?;
        Ok(Self { sender, thread: Some(thread), lost, left_out: AtomicU64::new(0) })
    }

    /// Records values at a step; the time is now.
    ///
    /// They go to `metrics.jsonl` as one line, to TensorBoard as scalars, and to the display.
    pub fn metrics(&self, step: u64, values: Vec<(String, f64)>) {
        self.send(Message::Metrics { step, time: now(), values });
    }

    /// Records a text (Markdown) in TensorBoard, such as the resolved recipe.
    pub fn text(&self, name: &str, text: String) {
        self.send(Message::Text { name: name.to_owned(), text });
    }

    /// Records what was chosen for this run in TensorBoard's table of hyper-parameters.
    pub fn hparams(&self, values: Vec<(String, HparamValue)>) {
        self.send(Message::Hparams(values));
    }

    /// Records the distribution of `values` in TensorBoard. Left out when the monitor is behind.
    pub fn histogram(&self, tag: &str, step: u64, values: Vec<f32>) {
        self.offer(Message::Histogram { tag: tag.to_owned(), step, values });
    }

    /// Records a matrix of `rows` rows, row by row from the top, as an image in TensorBoard.
    ///
    /// Zero is white, positive red, negative blue. Left out when the monitor is behind.
    /// Its tag is `TAG/image`: TensorBoard shows nothing of a tag that has summaries of two kinds, and there may be histograms of `TAG`.
    pub fn image(&self, tag: &str, step: u64, rows: usize, values: Vec<f32>) {
        self.offer(Message::Image { tag: format!("{tag}/image"), step, rows, values });
    }

    /// Prints a line on stderr without disturbing the progress bar.
    pub fn note(&self, text: impl Into<String>) {
        let text = text.into();
        if self.is_lost() {
            say(&text);
        } else {
            self.send(Message::Note(text));
        }
    }

    /// Prints lines as [`Monitor::note`] does, from another thread and also after the monitor's end. Never waits.
    pub fn speaker(&self) -> impl Fn(&str) + Send + 'static {
        let (sender, lost) = (self.sender.clone(), self.lost.clone());
        move |text| {
            if lost.load(Ordering::Relaxed) || sender.try_send(Message::Note(text.to_owned())).is_err() {
                say(text);
            }
        }
    }

    /// Waits until everything sent so far is with the operating system, at most some seconds.
    pub fn flush(&self) {
        let _ = self.flush_later().recv_timeout(PATIENCE);
    }

    /// Asks for a flush without waiting; the receiver hears when it is done, or hangs up.
    pub fn flush_later(&self) -> Receiver<()> {
        let (sender, done) = sync_channel(1);
        self.send(Message::Flush(sender));
        done
    }

    /// Whether the monitor has ended before its time.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Writes what is left and ends. `succeeded` is recorded as the state of the session.
    pub fn finish(mut self, succeeded: bool) {
        self.end(succeeded);
    }

    fn end(&mut self, succeeded: bool) {
        let Some(thread) = self.thread.take() else { return };
        let left_out = self.left_out.load(Ordering::Relaxed);
        if left_out > 0 {
            self.note(format!("note: {left_out} histograms and images were left out, the monitor was behind"));
        }
        self.send(Message::Finish { succeeded });
        let until = Instant::now() + FINISH_WITHIN;
        while !thread.is_finished() {
            if Instant::now() > until {
                warn_lost(&self.lost, "it did not end in time");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = thread.join();
    }

    /// Sends what must not be left out, and waits a little when there is no room.
    fn send(&self, message: Message) {
        let mut message = message;
        let until = Instant::now() + PATIENCE;
        while !self.is_lost() {
            match self.sender.try_send(message) {
                Ok(()) => return,
                Err(TrySendError::Disconnected(_)) => return warn_lost(&self.lost, "its thread ended"),
                Err(TrySendError::Full(back)) => message = back,
            }
            if Instant::now() > until {
                return warn_lost(&self.lost, "it has not kept up for some seconds");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends what may be left out.
    fn offer(&self, message: Message) {
        if !self.is_lost() && matches!(self.sender.try_send(message), Err(TrySendError::Full(_))) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Says once that there will be no more records.
fn warn_lost(lost: &AtomicBool, why: &str) {
    if !lost.swap(true, Ordering::Relaxed) {
        eprintln!("warning: monitoring lost ({why}); training goes on");
    }
}

/// The thread's own state: three sinks, each of which may end alone.
struct Actor {
    record: Option<Record>,
    events: Option<Events>,
    display: Display,
}

impl Actor {
    fn new(record: Record, options: &MonitorOptions) -> Self {
        let first = options.resumed_at.unwrap_or(0);
        let display = Display::new(options.progress, options.total_steps, first, options.evaluate_every);
        let mut actor = Self { record: Some(record), events: None, display };
        if let Some(folder) = &options.events {
            match Events::open(folder, options.resumed_at) {
                Ok(events) => actor.events = Some(events),
                Err(why) => actor.warn("TensorBoard events", &why),
            }
        }
        actor
    }

    fn run(mut self, receiver: &Receiver<Message>) {
        let mut flushed = Instant::now();
        loop {
            let wait = FLUSH_EVERY.saturating_sub(flushed.elapsed());
            match receiver.recv_timeout(wait) {
                Ok(Message::Finish { succeeded }) => {
                    self.with_events(|events| events.finish(succeeded));
                    self.flush();
                    self.display.finish();
                    // Dropping the writer joins its thread, which panics when that thread is dead.
                    if let Some(events) = self.events.take() {
                        events.close();
                    }
                    return;
                }
                Ok(Message::Flush(done)) => {
                    self.flush();
                    flushed = Instant::now();
                    let _ = done.try_send(());
                }
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if flushed.elapsed() >= FLUSH_EVERY {
                self.flush();
                flushed = Instant::now();
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Metrics { step, time, values } => {
                self.with_record(|record| record.write(step, time, &values));
                self.with_events(|events| events.scalars(step, &values));
                self.display.update(step, &values);
            }
            Message::Text { name, text } => self.with_events(|e| e.text(&name, &text)),
            Message::Hparams(values) => self.with_events(|e| e.hparams(&values)),
            Message::Histogram { tag, step, values } => {
                self.with_events(|e| e.histogram(&tag, step, &values));
            }
            Message::Image { tag, step, rows, values } => {
                self.with_events(|e| e.image(&tag, step, rows, &values));
            }
            Message::Note(text) => self.display.line(&text),
            Message::Flush(_) | Message::Finish { .. } => {}
            #[cfg(test)]
            Message::Panic => panic!("a panic in the monitor, on purpose"),
        }
    }

    fn flush(&mut self) {
        self.with_record(Record::flush);
        self.with_events(Events::flush);
    }

    fn with_record(&mut self, work: impl FnOnce(&mut Record) -> std::io::Result<()>) {
        let Some(record) = &mut self.record else { return };
        if let Err(error) = work(record) {
            let name = record.path().display().to_string();
            self.record = None;
            self.warn(&name, &error.to_string());
        }
    }

    fn with_events(&mut self, work: impl FnOnce(&mut Events) -> Result<(), String>) {
        let Some(events) = &mut self.events else { return };
        if let Err(why) = work(events) {
            if let Some(events) = self.events.take() {
                events.abandon();
            }
            self.warn("TensorBoard events", &why);
        }
    }

    fn warn(&mut self, what: &str, why: &str) {
        self.display.line(&format!("warning: monitoring lost: {what}: {why}; training goes on"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn options(folder: &Path) -> MonitorOptions {
        MonitorOptions {
            metrics: folder.join("metrics.jsonl"),
            events: Some(folder.join("events")),
            resumed_at: None,
            total_steps: 10,
            evaluate_every: 0,
            progress: Progress::None,
        }
    }

    fn lines(folder: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn loss(value: f64) -> Vec<(String, f64)> {
        vec![("train/loss".to_owned(), value)]
    }

    #[test]
    fn metrics_are_one_object_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let monitor = Monitor::start(options(folder.path())).unwrap();
        monitor.metrics(1, loss(0.5));
        monitor.metrics(2, vec![("train/loss".into(), f64::NAN), ("eval/loss".into(), 0.25)]);
        monitor.flush();
        assert_eq!(lines(folder.path()).len(), 2, "a flush waits until it is written");
        monitor.finish(true);
        let lines = lines(folder.path());
        assert_eq!((&lines[0]["step"], &lines[0]["train/loss"]), (&1.into(), &0.5.into()));
        assert!(lines[0]["time"].as_f64().unwrap() > 1.6e9);
        assert!(lines[1]["train/loss"].is_null() && lines[1]["eval/loss"] == 0.25);
    }

    #[test]
    fn a_resumed_run_removes_what_is_beyond_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let monitor = Monitor::start(options(folder.path())).unwrap();
        (1..=5).for_each(|step| monitor.metrics(step, loss(step as f64)));
        monitor.finish(false);
        // The last line of a killed process may be cut.
        let mut text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        text.push_str("{\"step\": 3, \"ti");
        std::fs::write(folder.path().join("metrics.jsonl"), text).unwrap();
        let resumed = MonitorOptions { resumed_at: Some(3), ..options(folder.path()) };
        let monitor = Monitor::start(resumed).unwrap();
        monitor.metrics(4, loss(40.));
        monitor.finish(true);
        let got: Vec<f64> = lines(folder.path()).iter().map(|l| l["train/loss"].as_f64().unwrap()).collect();
        assert_eq!(got, [1., 2., 3., 40.]);
        let files = std::fs::read_dir(folder.path().join("events")).unwrap().count();
        assert_eq!(files, 2, "a resumed run opens a file of its own");
    }

    #[test]
    fn a_panic_in_the_monitor_does_not_reach_its_user() {
        let folder = tempfile::tempdir().unwrap();
        let monitor = Monitor::start(options(folder.path())).unwrap();
        monitor.metrics(1, loss(1.));
        monitor.send(Message::Panic);
        let until = Instant::now() + Duration::from_secs(5);
        while !monitor.is_lost() {
            assert!(Instant::now() < until);
            monitor.metrics(2, loss(2.));
        }
        monitor.metrics(3, loss(3.));
        monitor.flush();
        monitor.finish(true);
    }

    #[test]
    fn a_full_disk_ends_the_record_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", folder.path().join("metrics.jsonl")).unwrap();
        let monitor = Monitor::start(options(folder.path())).unwrap();
        (1..100).for_each(|step| monitor.metrics(step, loss(1.)));
        monitor.flush();
        assert!(!monitor.is_lost(), "the other sinks go on");
        monitor.finish(true);
        assert_eq!(events::tests::read_folder(&folder.path().join("events")).len(), 100);
    }

    #[test]
    fn a_removed_folder_ends_the_records() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("run");
        std::fs::create_dir(&inner).unwrap();
        let monitor = Monitor::start(options(&inner)).unwrap();
        monitor.metrics(1, loss(1.));
        monitor.flush();
        std::fs::remove_dir_all(&inner).unwrap();
        (2..50).for_each(|step| monitor.metrics(step, loss(1.)));
        monitor.flush();
        monitor.finish(true);
        assert!(!inner.exists());
    }

    #[test]
    fn events_that_cannot_be_opened_leave_the_record() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("events"), "a file where the folder should be").unwrap();
        let monitor = Monitor::start(options(folder.path())).unwrap();
        monitor.metrics(1, loss(1.));
        monitor.finish(true);
        assert_eq!(lines(folder.path()).len(), 1);
    }

    /// A file system of 64 kB, where this process may mount one.
    struct SmallDisk(tempfile::TempDir);
    impl SmallDisk {
        fn mount() -> Option<Self> {
            let folder = tempfile::tempdir().ok()?;
            let done = std::process::Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=64k", "fwp-test"])
                .arg(folder.path())
                .stderr(std::process::Stdio::null())
                .status()
                .is_ok_and(|status| status.success());
            done.then_some(Self(folder))
        }
    }
    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
        }
    }

    #[test]
    fn a_disk_that_fills_up_never_stops_the_caller() {
        let Some(disk) = SmallDisk::mount() else {
            eprintln!("skipped: mounting a file system is not allowed here");
            return;
        };
        let monitor = Monitor::start(options(disk.0.path())).unwrap();
        for step in 1..3000 {
            monitor.metrics(step, loss(1.));
        }
        monitor.flush();
        monitor.finish(true);
        let used = std::fs::metadata(disk.0.path().join("metrics.jsonl")).unwrap().len();
        assert!(used <= 65_536, "the disk was full: {used}");
    }
}
