//! A kernel from its text to a function that has been compared with the reference.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fwp_program::kernel::{Kernel, Per, Real, Target, generate};
use tch::Device;

use super::cache::{Cache, Entry};
use super::compile::{Compiler, Limits, compiler, vector_bytes};
use super::lower::{Lowered, lower};
use super::open_unsafe::{Opened, open};
use super::run::{Given, Sample, real, run_built};
use crate::exec::plan::StepPlan;
use crate::exec::scan::{FastWeights, Masks};
use crate::exec::value::{Memory, Value};
use crate::exec::verify::verify;
use crate::exec::walk::Around;

/// A kernel that is open.
pub struct Built {
    /// What the generator says of it; its text is in the cache folder.
    pub kernel: Kernel,
    /// The step.
    pub lowered: Arc<Lowered>,
    /// How often every argument changes.
    pub per: Vec<Per>,
    /// Its precision.
    pub real: Real,
    /// Its files.
    pub entry: Entry,
    /// What compiled it.
    pub compiler: &'static Compiler,
    /// Time from text to open library.
    pub took: Duration,
    pub(super) opened: &'static Opened,
}

/// Kernels that were made of a plan, or why they were not.
#[derive(Default)]
pub struct Kernels {
    lowered: OnceLock<Result<Arc<Lowered>, String>>,
    #[expect(clippy::type_complexity, reason = "by precision and how often arguments change")]
    built: Mutex<HashMap<(Real, Vec<Per>), Result<Arc<Built>, String>>>,
}

/// The kernel for such a walk, made and verified now if it is not there.
///
/// # Errors
/// Why there is none, for people.
pub fn prepare(
    weights: &FastWeights,
    plan: &Arc<StepPlan>,
    inputs: &[Value],
    memory: &Memory,
    masks: &Masks,
) -> Result<Arc<Built>, String> {
    if weights.precision.device != Device::Cpu {
        return Err("kernels are for the processor only".into());
    }
    // Before anything is computed: without a compiler nothing else matters.
    compiler()?;
    let lowered = lowered(weights, plan)?;
    let per = tch::no_grad(|| {
        let (around, _) = Around::before(weights, plan, inputs, memory, masks)?;
        anyhow::Ok(Given::gather(weights, &lowered, &around)?.per)
    });
    let per = per.map_err(|e| format!("{e:#}"))?;
    built(weights, plan, &lowered, &per, &Sample { inputs, memory })
}

/// The steps of a plan as a function of their own.
pub(super) fn lowered(weights: &FastWeights, plan: &StepPlan) -> Result<Arc<Lowered>, String> {
    plan.made.kernels.lowered.get_or_init(|| lower(&weights.slot.rule.program, plan).map(Arc::new)).clone()
}

/// The kernel for these arguments.
pub(super) fn built(
    weights: &FastWeights,
    plan: &Arc<StepPlan>,
    lowered: &Arc<Lowered>,
    per: &[Per],
    sample: &Sample<'_>,
) -> Result<Arc<Built>, String> {
    let real = real(weights.precision.kind)?;
    // Kernels are put in whole, so a panic elsewhere leaves nothing half done.
    let mut table = plan.made.kernels.built.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (real, per.to_vec());
    if let Some(known) = table.get(&key) {
        return known.clone();
    }
    let made = build(lowered, per, real).and_then(|built| {
        let run =
            |w: &FastWeights, p: &Arc<StepPlan>, i: &[Value], m: Memory, masks: &Masks| run_built(&built, w, p, i, m, masks);
        verify(weights, plan, sample.inputs, sample.memory, weights.precision.kind, &run)
            .map_err(|why| format!("its kernel ({}) {why}", built.entry.text.display()))?;
        Ok(built)
    });
    table.insert(key, made.clone());
    made
}

fn build(lowered: &Arc<Lowered>, per: &[Per], real: Real) -> Result<Arc<Built>, String> {
    let target = Target { real, vector_bytes: vector_bytes() };
    let kernel = generate(&lowered.with(per.to_vec()), target).map_err(|e| e.to_string())?;
    let cache = Cache::open().map_err(|e| e.to_string())?;
    assembled(lowered, per, real, kernel, &cache)
}

/// Compiles and opens a kernel's text.
pub(super) fn assembled(
    lowered: &Arc<Lowered>,
    per: &[Per],
    real: Real,
    mut kernel: Kernel,
    cache: &Cache,
) -> Result<Arc<Built>, String> {
    let began = Instant::now();
    let compiler = compiler()?;
    let text = std::mem::take(&mut kernel.source);
    let limits = Limits::of(std::env::var("FWP_COMPILE_SECONDS").ok().as_deref())?;
    let entry = cache.get(&text, compiler, limits).map_err(|e| e.to_string())?;
    let opened = open(&entry.library).map_err(|e| format!("{e:#}"))?;
    let took = began.elapsed();
    Ok(Arc::new(Built { kernel, lowered: lowered.clone(), per: per.to_vec(), real, entry, compiler, took, opened }))
}
