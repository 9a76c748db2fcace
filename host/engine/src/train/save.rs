//! The task that writes checkpoints while training goes on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::checkpoint::{Snapshot, purge, write};

/// How long a finished checkpoint waits for the metrics before it.
const METRICS_WITHIN: Duration = Duration::from_secs(5);
/// How long a report of a failure waits for the checkpoints before it.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// One thing to write.
struct Order {
    snapshot: Snapshot,
    /// Answers when the metrics up to this step are with the operating system: a run that resumes
    /// here must find them.
    metrics: Receiver<()>,
    /// The step of the best evaluation, whose checkpoint is kept.
    best: Option<u64>,
}

/// What became of the writes so far.
#[derive(Debug, Default, Clone)]
pub(super) struct Written {
    /// The newest complete checkpoint.
    pub(super) newest: Option<PathBuf>,
    /// The last error, unless a later write succeeded.
    pub(super) error: Option<String>,
    /// Warnings that nobody has seen yet.
    pub(super) warnings: Vec<String>,
    /// Orders that are done, well or not.
    done: u64,
}

/// The handle of the task. One checkpoint may wait while another is written; a third one blocks.
pub(super) struct Saver {
    sender: Option<mpsc::Sender<Order>>,
    task: Option<JoinHandle<()>>,
    written: Arc<Mutex<Written>>,
    /// Orders that were given.
    ordered: AtomicU64,
    runtime: Handle,
}

impl Saver {
    pub(super) fn start(runtime: &Handle, folder: PathBuf, keep: usize) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Order>(1);
        let written = Arc::new(Mutex::new(Written::default()));
        let shared = written.clone();
        let task = runtime.spawn_blocking(move || {
            while let Some(order) = receiver.blocking_recv() {
                let step = order.snapshot.state.step;
                let done = write(&folder, &order.snapshot, || {
                    let _ = order.metrics.recv_timeout(METRICS_WITHIN);
                });
                let purged = done.is_ok().then(|| purge(&folder, keep, order.best));
                let mut written = shared.lock().unwrap_or_else(PoisonError::into_inner);
                written.done += 1;
                match done {
                    Ok(path) => {
                        written.newest = Some(path);
                        written.error = None;
                    }
                    Err(error) => {
                        let text = format!("the checkpoint of step {step} was not written: {error}");
                        written.warnings.push(text.clone());
                        written.error = Some(text);
                    }
                }
                if let Some(Err(error)) = purged {
                    written.warnings.push(format!("old checkpoints stay: {error}"));
                }
            }
        });
        Self { sender: Some(sender), task: Some(task), written, ordered: AtomicU64::new(0), runtime: runtime.clone() }
    }

    /// Hands over a snapshot.
    pub(super) fn save(&self, snapshot: Snapshot, metrics: Receiver<()>, best: Option<u64>) {
        let order = Order { snapshot, metrics, best };
        let sent = self.sender.as_ref().is_some_and(|sender| sender.blocking_send(order).is_ok());
        if sent {
            self.ordered.fetch_add(1, Ordering::Relaxed);
        } else {
            let text = "the checkpoint was not written: its task has ended".to_owned();
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.warnings.push(text.clone());
            written.error = Some(text);
        }
    }

    /// The warnings since the last call.
    pub(super) fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner).warnings)
    }

    /// The newest complete checkpoint once all that was ordered is written, at most some seconds later.
    pub(super) fn settled(&self) -> Option<PathBuf> {
        let until = Instant::now() + SETTLED_WITHIN;
        while self.task.as_ref().is_some_and(|t| !t.is_finished()) && Instant::now() < until {
            if self.written.lock().unwrap_or_else(PoisonError::into_inner).done >= self.ordered.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.newest()
    }

    /// The newest complete checkpoint.
    pub(super) fn newest(&self) -> Option<PathBuf> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).newest.clone()
    }

    /// Waits until everything is written.
    pub(super) fn finish(mut self) -> Written {
        self.join();
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn join(&mut self) {
        drop(self.sender.take());
        if let Some(task) = self.task.take() {
            let _ = self.runtime.block_on(task);
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.join();
    }
}
