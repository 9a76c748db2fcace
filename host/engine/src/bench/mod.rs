//! All executors of a rule on one shape, side by side in one run.
//!
//! What is measured:
//!
//! - *forward*: from the rule's inputs, `[batch, time, heads, dim]`, to the output, with everything kept that the backward pass needs;
//! - *backward*: from a gradient of the output to the gradients of every input and parameter;
//! - executors take turns, round by round, after one round that is not counted; given are median, least and greatest;
//! - *tokens a second*: batch times time, divided by the median of forward + backward;
//! - *peak*: by how much the resident memory of a process of its own grows at most during one forward + backward (see [`peak`]);
//! - *share*: operations of the step as it is written (see [`operations`]), three times for forward + backward,
//!   a second, divided by those of a matrix product of the same type, measured in the same rounds on the same threads;
//! - *others busy*: processors that other processes kept busy meanwhile.

pub mod load;
pub mod operations;
pub mod peak;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::command::apply;
use crate::exec::value::Precision;
use crate::machine::{available_memory, mebibytes};
use crate::monitor::say;
use crate::shim;
use crate::trial::draw::normal;
use crate::trial::executor::{self, Executor};
use crate::trial::{Data, Described, Outcome, Subject, Wanted};
use fwp_program::interpret::Random;
use fwp_sdk::program::Type;
use load::Others;

/// What `fwp-host bench` asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The rule.
    pub rule: Described,
    /// Sequences.
    pub batch: usize,
    /// Steps.
    pub time: usize,
    /// `float32` or `float64`.
    pub dtype: String,
    /// The executors; all where it is empty.
    pub executors: Vec<String>,
    /// Threads; libtorch's own number where none is given.
    pub threads: Option<usize>,
    /// Rounds at most.
    pub rounds: usize,
    /// Seconds of rounds for each executor: a slow one gets fewer rounds, but at least one.
    pub seconds: f64,
    /// Whether the peak of memory is measured as well.
    pub peak: bool,
}

/// An executor's figures; an executor that does not apply has `why` and nothing after it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub executor: String,
    /// Whether it can run the rule on this shape.
    pub applies: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What was measured.
    #[serde(flatten)]
    pub figures: Option<Figures>,
}

/// What was measured of an executor.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Median of the forward pass.
    pub forward_ms: f64,
    /// Median of the backward pass.
    pub backward_ms: f64,
    /// Batch times time, divided by the median of forward + backward.
    pub tokens_per_second: f64,
    /// Growth of resident memory during forward + backward; absent where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// Median of forward + backward.
    pub total_ms: f64,
    /// Least and greatest of the forward pass.
    pub forward_ms_range: [f64; 2],
    /// Least and greatest of the backward pass.
    pub backward_ms_range: [f64; 2],
    /// Least and greatest of forward + backward.
    pub total_ms_range: [f64; 2],
    /// Rounds that were counted.
    pub rounds: usize,
    /// Operations of the step, forward + backward, a second, relative to those of a matrix product.
    pub share_of_matmul: f64,
    /// Operations a second of the matrix product, in units of 1e9.
    pub matmul_gflops: f64,
    /// Threads.
    pub threads: usize,
    /// Processors that others kept busy meanwhile.
    pub others_busy: f64,
    /// Whether outputs and gradients were finite: of others, times say little.
    pub finite: bool,
}

/// Processors that others may keep busy before the figures are flagged.
pub const BUSY: f64 = 0.1;

/// Rows of the matrix product that stands for the machine's rate.
const MATMUL: i64 = 1024;
/// Steps of the round that makes everything ready before memory is measured.
const WARM_STEPS: usize = 64;

struct Bench {
    subject: Subject,
    precision: Precision,
    data: Data,
    weights: Vec<Tensor>,
}

impl Bench {
    fn open(job: &Job, steps: usize) -> Result<Bench> {
        let precision = Precision { kind: apply::kind(&job.dtype)?, device: Device::Cpu };
        ensure!(job.batch > 0 && steps > 0, "there is nothing to measure: batch {}, time {steps}", job.batch);
        let subject = Subject::open(&job.rule)?;
        enough_memory(&subject, precision, job, steps)?;
        let wanted = Wanted { batch: job.batch as i64, steps: steps as i64, states: false, masks: false };
        let mut data = subject.draw(wanted, 0)?;
        for (_, t) in data.inputs.iter_mut().chain(&mut data.parameters) {
            *t = t.f_to_kind(precision.kind)?;
        }
        // Only outputs have a gradient: final states go nowhere in training unless they are carried over.
        let interface = subject.slot.step.function.outputs.iter().filter(|o| !o.name.starts_with("state."));
        let types = &subject.slot.rule.types.nodes[subject.slot.rule.entry(fwp_sdk::program::entry::STEP)?];
        let mut random = Random::new(1);
        let mut weights = Vec::new();
        for o in interface {
            let fwp_sdk::program::Type::Tensor(t) = &types[o.node as usize] else {
                bail!("internal: an output that is no tensor")
            };
            let own = t.shape.iter().map(|n| *n as i64);
            let size: Vec<i64> = [wanted.batch, wanted.steps, subject.heads].into_iter().chain(own).collect();
            weights.push(normal(&mut random, &size)?.f_to_kind(precision.kind)?);
        }
        Ok(Bench { subject, precision, data, weights })
    }

    /// Milliseconds forward and backward, and what came out.
    fn round(&self, executor: &str) -> Result<([f64; 2], Outcome)> {
        let start = Instant::now();
        let forward = self.subject.forward(executor, self.precision, &self.data, true)?;
        let between = Instant::now();
        let outcome = forward.backward(Some(&self.weights))?;
        let end = Instant::now();
        Ok(([between - start, end - between].map(|d| d.as_secs_f64() * 1e3), outcome))
    }
}

/// Measures all executors of a job.
///
/// `job_file` is the job once more, for the processes in which memory is measured.
///
/// # Errors
/// A job that makes no sense, an executor that does not exist or fails, or none that applies.
pub fn run(job: &Job, job_file: &Path) -> Result<Vec<Row>> {
    ensure!(job.rounds > 0, "at least one round is needed");
    if let Some(threads) = job.threads {
        shim::set_num_threads(i32::try_from(threads).context("that many threads")?);
    }
    let known = executor::names();
    if let Some(unknown) = job.executors.iter().find(|e| !known.contains(&e.as_str())) {
        bail!("there is no executor `{unknown}`; there are: {}", known.join(", "));
    }
    let bench = Bench::open(job, job.time)?;
    let wanted = |e: &Executor| job.executors.is_empty() || job.executors.iter().any(|w| w == e.name);
    let found: Vec<Executor> = executor::executors_of(&bench.subject, bench.precision)?.into_iter().filter(wanted).collect();
    let others = Others::new();
    let mut taken: Vec<Taken> = found.iter().filter(|e| e.applies.is_ok()).map(|e| Taken::new(e.name)).collect();
    let row = |e: &Executor, figures| Row {
        executor: e.name.into(),
        applies: e.applies.is_ok(),
        why: e.applies.clone().err(),
        figures,
    };
    if taken.is_empty() {
        return Ok(found.iter().map(|e| row(e, None)).collect());
    }
    let product = Product::new(bench.precision)?;
    product.time()?;
    for t in &mut taken {
        say(&format!("{}: a round to warm up", t.executor));
        let first = Instant::now();
        let (_, outcome) = bench.round(t.executor).with_context(|| format!("executor {}", t.executor))?;
        t.finite = outcome.is_finite()?;
        if !t.finite {
            say(&format!("warning: {}: infinite numbers or NaN come out, whose times say little", t.executor));
        }
        drop(outcome);
        // The first round compiles what must be compiled; where it was slow, a second one tells what a round takes.
        let mut seconds = first.elapsed().as_secs_f64();
        if seconds < job.seconds {
            let second = Instant::now();
            bench.round(t.executor)?;
            seconds = second.elapsed().as_secs_f64();
        }
        t.wanted = ((job.seconds / seconds.max(1e-6)) as usize).clamp(1, job.rounds);
    }
    let mut products = Vec::new();
    for round in 0..job.rounds {
        // Who goes first changes every round, so that no executor always follows the same one.
        let count = taken.len();
        for k in 0..count {
            let t = &mut taken[(k + round) % count];
            if round < t.wanted {
                t.rounds.push(bench.round(t.executor)?.0);
            }
        }
        products.push(product.time()?);
    }
    let gflops = product.operations() / median(&products) / 1e6;
    let busy = others.busy();
    let operations = 3.0 * operations::of_step(&bench.subject)? * (job.batch * job.time) as f64 * bench.subject.heads as f64;
    let threads = shim::get_num_threads() as usize;
    let mut rows = Vec::new();
    for e in &found {
        let Some(t) = taken.iter().find(|t| t.executor == e.name) else {
            rows.push(row(e, None));
            continue;
        };
        let forward: Vec<f64> = t.rounds.iter().map(|r| r[0]).collect();
        let backward: Vec<f64> = t.rounds.iter().map(|r| r[1]).collect();
        let total: Vec<f64> = t.rounds.iter().map(|r| r[0] + r[1]).collect();
        let peak_bytes = if job.peak { Some(peak::in_a_process(job_file, e.name)?) } else { None };
        rows.push(row(
            e,
            Some(Figures {
                forward_ms: median(&forward),
                backward_ms: median(&backward),
                tokens_per_second: (job.batch * job.time) as f64 / median(&total) * 1e3,
                peak_bytes,
                total_ms: median(&total),
                forward_ms_range: range(&forward),
                backward_ms_range: range(&backward),
                total_ms_range: range(&total),
                rounds: t.rounds.len(),
                share_of_matmul: operations / (median(&total) * 1e6) / gflops,
                matmul_gflops: gflops,
                threads,
                others_busy: busy,
                finite: t.finite,
            }),
        ));
    }
    if busy > BUSY {
        say(&format!(
            "warning: others kept {busy:.2} processors busy meanwhile: compare ratios only, or measure again when it is idle"
        ));
    }
    Ok(rows)
}

/// Refuses sizes at which the inputs alone, with their gradients, are more than the machine has.
fn enough_memory(subject: &Subject, precision: Precision, job: &Job, steps: usize) -> Result<()> {
    let bytes = 2 * precision.kind.elt_size_in_bytes() as u64;
    let sizes = subject.slot.step.function.arguments.iter();
    let elements = sizes.map(|a| if let Type::Tensor(t) = &a.ty { t.elements() as u64 } else { 0 }).fold(0, u64::saturating_add);
    let factors = [job.batch as u64, steps as u64, subject.heads as u64, bytes];
    let (needed, free) = (factors.into_iter().fold(elements, u64::saturating_mul), available_memory());
    ensure!(
        needed <= free,
        "the inputs and their gradients alone take {}, and the machine has {} free: lower --batch, --time, --heads or the sizes of keys and values",
        mebibytes(needed),
        mebibytes(free)
    );
    Ok(())
}

/// Runs one executor forward and backward, and gives by how many bytes resident memory grew at most.
///
/// # Errors
/// As [`run`], and a system that does not say how much memory is resident.
pub fn peak(job: &Job, executor: &str) -> Result<u64> {
    if let Some(threads) = job.threads {
        shim::set_num_threads(i32::try_from(threads).context("that many threads")?);
    }
    // Kernels, threads and libraries are there after a short run, and are no part of what a length costs.
    Bench::open(job, WARM_STEPS.min(job.time))?.round(executor)?;
    let bench = Bench::open(job, job.time)?;
    let before = peak::Resident::start()?;
    bench.round(executor)?;
    before.grown()
}

/// The rounds of an executor.
struct Taken {
    executor: &'static str,
    wanted: usize,
    rounds: Vec<[f64; 2]>,
    finite: bool,
}

impl Taken {
    fn new(executor: &'static str) -> Taken {
        Taken { executor, wanted: 1, rounds: Vec::new(), finite: true }
    }
}

/// A product of two matrices.
struct Product {
    a: Tensor,
    b: Tensor,
}

impl Product {
    fn new(precision: Precision) -> Result<Product> {
        let one = || Tensor::f_rand([MATMUL, MATMUL], (precision.kind, precision.device));
        Ok(Product { a: one()?, b: one()? })
    }

    fn operations(&self) -> f64 {
        2.0 * (MATMUL as f64).powi(3)
    }

    /// Milliseconds.
    fn time(&self) -> Result<f64> {
        let start = Instant::now();
        let product = tch::no_grad(|| self.a.f_matmul(&self.b))?;
        let seconds = start.elapsed().as_secs_f64();
        drop(product);
        Ok(seconds * 1e3)
    }
}

/// The middle value, or the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 { f64::NAN } else { 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]) }
}

fn range(values: &[f64]) -> [f64; 2] {
    [values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(0.0, f64::max)]
}

impl Job {
    /// Reads a job.
    ///
    /// # Errors
    /// A file that is not there or is no job.
    pub fn read(path: &PathBuf) -> Result<Job> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).context("reading the job")
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn medians_and_ranges() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(range(&[3.0, 1.0, 2.0]), [1.0, 3.0]);
    }

    #[test]
    fn the_rate_of_a_matrix_product_is_plausible() {
        let product = Product::new(Precision { kind: Kind::Float, device: Device::Cpu }).unwrap();
        product.time().unwrap();
        let gflops = product.operations() / product.time().unwrap() / 1e6;
        assert!(gflops > 0.1 && gflops < 1e6, "{gflops}");
    }
}
