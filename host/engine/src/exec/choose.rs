//! Which executor carries out the steps of a rule, and why.
//!
//! The choice is made once for each rule, precision, device and size of call, when it is first met, and remembered.
//! What is chosen was compared with the reference before ([`super::verify`]).

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Result, ensure};
use fwp_program::analysis::{Stratum, analyse};
use fwp_sdk::program::{Kind as PartKind, Program, entry};
use serde_json::{Value as Json, json};
use tch::{Device, Kind};

use super::chunk::{self, ChunkPlan};
use super::kernel::build::Kernels;
use super::kernel::{self, Built};
use super::plan::StepPlan;
use super::prepared::Slot;
use super::scan::{FastWeights, Inputs, Masks};
use super::value::{Lead, Memory, Value, turned};
use super::verify::verify;
use super::walk::{length, walk};

/// Steps of a chunk in the comparison that a chunkwise form must pass: a few chunks of the few steps that are compared.
const SHORT: usize = 4;

/// A way to carry out the steps of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Executor {
    /// Operation by operation; serves every rule.
    Reference,
    /// Matrix products over chunks of steps; for rules whose update is affine in the state.
    Chunkwise,
    /// One compiled kernel that keeps the state close.
    Scan,
}

impl Executor {
    /// All of them.
    pub const ALL: [Executor; 3] = [Executor::Reference, Executor::Chunkwise, Executor::Scan];

    /// The name on the command line and in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Executor::Reference => "reference",
            Executor::Chunkwise => "chunkwise",
            Executor::Scan => "scan",
        }
    }
}

impl fmt::Display for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The fastest that serves.
    Auto,
    /// This one, or an error that says why it does not serve.
    Only(Executor),
}

impl FromStr for Policy {
    type Err = String;
    fn from_str(text: &str) -> Result<Policy, String> {
        if text == "auto" {
            return Ok(Policy::Auto);
        }
        let found = Executor::ALL.into_iter().find(|e| e.name() == text);
        found.map(Policy::Only).ok_or_else(|| format!("the executor is auto, reference, chunkwise or scan, not `{text}`"))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Auto => f.write_str("auto"),
            Policy::Only(e) => e.fmt(f),
        }
    }
}

/// What faster executors made of a plan.
#[derive(Default)]
pub struct Made {
    /// Its kernels.
    pub kernels: Kernels,
    chunk: OnceLock<Result<Arc<ChunkPlan>, String>>,
    /// By precision: whether the chunkwise form agrees with the step.
    verified: Mutex<HashMap<Kind, Result<(), String>>>,
    /// By whether inputs are mapped inside, and by the bits of the queries' scale: the plan for kernels.
    inside: Mutex<HashMap<Inside, Result<Arc<Slot>, String>>>,
}

/// Which plan for kernels: whether it maps inputs, and the bits of the queries' scale.
type Inside = (bool, Option<u64>);

impl Made {
    /// The slot whose plan does for a kernel what `plan` does, with as much in the steps as is good there.
    fn inside(&self, weights: &FastWeights, plan: &StepPlan, inputs: Inputs<'_>) -> Result<Arc<Slot>, String> {
        let (raw, scale) = match inputs {
            Inputs::Ready(_) => (false, None),
            Inputs::Raw { query_scale, .. } => (true, query_scale),
        };
        // Slots are put in whole, so a panic elsewhere leaves nothing half done.
        let mut table = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let made = table.entry((raw, scale.map(f64::to_bits)));
        made.or_insert_with(|| weights.slot.inside(plan, raw, scale).map(Arc::new)).clone()
    }
}

/// The chunkwise form of a plan, compared with the reference now if it was not yet.
///
/// # Errors
/// Why there is none, for people.
pub fn chunkwise(
    weights: &FastWeights,
    plan: &Arc<StepPlan>,
    inputs: &[Value],
    memory: &Memory,
) -> Result<Arc<ChunkPlan>, String> {
    let rule = &weights.slot.rule.program;
    if rule.kind != PartKind::UpdateRule {
        return Err("it is for update rules, and a recurrent cell is none: what it writes depends on what it has read".into());
    }
    let write = weights.slot.writes_alone(plan);
    if !write && !Arc::ptr_eq(plan, &weights.slot.step) {
        return Err("its outputs read an earlier state, which is not served in chunks".into());
    }
    let made = plan.made.chunk.get_or_init(|| {
        // Writes alone are a rule whose step gives nothing but its states.
        let alone = write.then(|| writes(rule, plan));
        let rule = alone.as_ref().unwrap_or(rule);
        let found = analyse(rule).map_err(|e| e.to_string())?;
        let canonical = found.canonical.map_err(|why| why.to_string())?;
        if canonical.strata.iter().all(|s| matches!(s, Stratum::Walk(_))) {
            let why = canonical.strata.iter().find_map(|s| if let Stratum::Walk(w) = s { Some(w.why.clone()) } else { None });
            return Err(why.unwrap_or_else(|| "it has no state".into()));
        }
        // The form itself, with several chunks, before precision and the length of a chunk are chosen for this run.
        let short = ChunkPlan::new(rule, &canonical)?.with_chunk(SHORT);
        let run = |w: &FastWeights, _: &Arc<StepPlan>, i: &[Value], m: Memory, masks: &Masks| chunk::run(w, &short, i, m, masks);
        verify(weights, plan, inputs, memory, Kind::Double, &run).map_err(|why| format!("its chunkwise form {why}"))?;
        ChunkPlan::new(rule, &canonical).map(Arc::new)
    });
    let chunk = made.clone()?;
    let run = |w: &FastWeights, _: &Arc<StepPlan>, i: &[Value], m: Memory, masks: &Masks| chunk::run(w, &chunk, i, m, masks);
    // Results are put in whole, so a panic elsewhere leaves nothing half done.
    let mut verified = plan.made.verified.lock().unwrap_or_else(PoisonError::into_inner);
    let agrees = verified.entry(weights.precision.kind).or_insert_with(|| {
        verify(weights, plan, inputs, memory, weights.precision.kind, &run).map_err(|why| format!("its chunkwise form {why}"))
    });
    agrees.clone()?;
    Ok(chunk)
}

/// The rule with the function of a plan as its step.
fn writes(rule: &Program, plan: &StepPlan) -> Program {
    let mut alone = rule.clone();
    alone.functions.push(plan.function.clone());
    let last = alone.functions.len() as u32 - 1;
    alone.entries.iter_mut().filter(|(name, _)| name == entry::STEP).for_each(|(_, index)| *index = last);
    alone.inputs.retain(|i| plan.function.arguments.iter().any(|a| a.name == i.name));
    alone
}

/// One choice, for people and for the run's record.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The slot of the model.
    pub slot: String,
    /// The update rule.
    pub rule: String,
    /// What is carried out: `step`, `write`, or the name of a cell.
    pub part: String,
    /// The executor.
    pub executor: Executor,
    /// Why it was chosen.
    pub reason: String,
    /// Samples times heads.
    pub samples: i64,
    /// Steps.
    pub steps: i64,
    /// Sizes of the states.
    pub states: Vec<Vec<usize>>,
    /// `float32` or `float64`.
    pub dtype: String,
    /// Tiles, compiler and what else the executor says of itself.
    pub details: Json,
}

impl Choice {
    /// One line.
    pub fn line(&self) -> String {
        let part = if self.part == "step" { String::new() } else { format!(" ({})", self.part) };
        format!("{} for `{}`{part}: {}", self.executor, self.rule, self.reason)
    }

    /// As the run's folder records it.
    pub fn record(&self) -> Json {
        json!({
            "slot": self.slot, "rule": self.rule, "part": self.part, "executor": self.executor.name(), "reason": self.reason,
            "samples": self.samples, "steps": self.steps, "states": self.states, "dtype": self.dtype, "details": self.details,
        })
    }
}

/// The executor that was asked for does not serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}. Use --exec auto", self.headline())]
pub struct Refused {
    /// The executor.
    pub executor: Executor,
    /// What it does not serve, with its name.
    pub part: String,
    /// Reason.
    pub why: String,
}

impl Refused {
    /// What does not serve what.
    pub fn headline(&self) -> String {
        format!("--exec {} does not serve {}", self.executor, self.part)
    }
}

/// How a walk is carried out.
#[derive(Clone)]
enum Pick {
    Reference,
    Chunkwise(Arc<ChunkPlan>),
    Scan,
    /// As the plan of this slot, which takes inputs as they are given.
    Inside(Arc<Slot>),
}

/// What a choice depends on.
#[derive(PartialEq, Eq, Hash)]
struct Case {
    /// The plan's address; the entry keeps the plan alive.
    plan: usize,
    kind: Kind,
    device: Option<usize>,
    samples: i64,
    /// Rounded up to a power of two: lengths that change with every batch are not a case each.
    steps: i64,
    leads: Vec<Lead>,
    query_scale: Option<u64>,
    reset: bool,
    write: bool,
}

/// Chooses executors and runs them.
pub struct Executors {
    policy: Policy,
    state: Mutex<Chosen>,
}

#[derive(Default)]
struct Chosen {
    picks: HashMap<Case, (Arc<StepPlan>, Pick)>,
    choices: Vec<Choice>,
    said: BTreeSet<String>,
    notices: Vec<String>,
}

impl Default for Executors {
    /// The reference for everything.
    fn default() -> Executors {
        Executors::new(Policy::Only(Executor::Reference))
    }
}

impl Executors {
    /// Executors by this policy.
    pub fn new(policy: Policy) -> Executors {
        Executors { policy, state: Mutex::default() }
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Whether the fastest way is wanted and not one by name.
    pub fn chooses(&self) -> bool {
        self.policy == Policy::Auto
    }

    /// The choices made so far, in the order in which they were made.
    pub fn choices(&self) -> Vec<Choice> {
        self.lock().choices.clone()
    }

    /// What the user should know and has not been told: executors that could not serve, and what that costs. Each is said once.
    pub fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().notices)
    }

    /// Carries out a walk, as [`walk`] does.
    ///
    /// # Errors
    /// The executor that was asked for does not serve, with the reason; or what the walk meets.
    pub fn run(
        &self,
        weights: &FastWeights,
        plan: &Arc<StepPlan>,
        inputs: Inputs<'_>,
        memory: Memory,
        masks: &Masks,
    ) -> Result<(Vec<Value>, Memory)> {
        let pick = self.pick(weights, plan, inputs, &memory, masks)?;
        if let Pick::Inside(slot) = &pick {
            return kernel::run(&weights.with_slot(slot), &slot.step, inputs.given(), memory, masks);
        }
        let ready = inputs.ready(weights, plan, &memory, masks)?;
        let walked = |ready: &[Value], memory, masks: &Masks| match &pick {
            Pick::Chunkwise(chunk) => chunk::run(weights, chunk, ready, memory, masks),
            Pick::Scan => kernel::run(weights, plan, ready, memory, masks),
            _ => walk(weights, plan, ready, memory, masks),
        };
        if !masks.backwards || matches!(pick, Pick::Scan) {
            return walked(&ready, memory, masks);
        }
        // The others know one direction, and count steps along it.
        ensure!(!plan.uses_index, "internal: steps that are counted, taken from the last to the first");
        let ready: Vec<Value> = ready.iter().map(turned).collect::<Result<_>>()?;
        let (outputs, memory) = walked(&ready, memory, &masks.turned()?)?;
        Ok((outputs.iter().map(turned).collect::<Result<_>>()?, memory))
    }

    /// Reads along a sequence, for a plan of [`super::plan::read_along`] and a memory without states: the outputs, or none where the
    /// reference is to read.
    ///
    /// # Errors
    /// As [`Executors::run`].
    pub fn read(
        &self,
        weights: &FastWeights,
        plan: &Arc<StepPlan>,
        inputs: Inputs<'_>,
        memory: Memory,
    ) -> Result<Option<Vec<Value>>> {
        let masks = Masks::default();
        // Many queries are a matrix product.
        let many = length(inputs.given(), &masks) >= LONG;
        if many || matches!(self.policy, Policy::Only(Executor::Reference | Executor::Chunkwise)) {
            return Ok(None);
        }
        match self.pick(weights, plan, inputs, &memory, &masks)? {
            Pick::Inside(slot) => Ok(Some(kernel::run(&weights.with_slot(&slot), &slot.step, inputs.given(), memory, &masks)?.0)),
            _ => Ok(None),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Chosen> {
        // Entries are put in whole, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pick(
        &self,
        weights: &FastWeights,
        plan: &Arc<StepPlan>,
        inputs: Inputs<'_>,
        memory: &Memory,
        masks: &Masks,
    ) -> Result<Pick> {
        if self.policy == Policy::Only(Executor::Reference) && !self.lock().said.insert(format!("{:p}", Arc::as_ptr(plan))) {
            return Ok(Pick::Reference);
        }
        let steps = length(inputs.given(), masks);
        let case = Case {
            plan: Arc::as_ptr(plan) as usize,
            kind: weights.precision.kind,
            device: match weights.precision.device {
                Device::Cuda(i) => Some(i),
                _ => None,
            },
            samples: memory.index.size()[0],
            steps: steps.max(1).unsigned_abs().next_power_of_two() as i64,
            leads: inputs.given().iter().map(|v| v.lead).collect(),
            query_scale: match inputs {
                Inputs::Raw { query_scale, .. } => query_scale.map(f64::to_bits),
                Inputs::Ready(_) => None,
            },
            reset: masks.reset.is_some(),
            write: masks.write.is_some(),
        };
        if let Some((_, pick)) = self.lock().picks.get(&case) {
            return Ok(pick.clone());
        }
        // Not under the lock: a kernel may take a minute to compile, and only this thread of a model walks.
        let call = Call { weights, plan, inputs, memory, masks, steps };
        let Decided { pick, executor, reason, details, notice } = self.decide(&call)?;
        let choice = Choice {
            slot: weights.slot.name.clone(),
            rule: weights.slot.rule.program.name.clone(),
            part: plan.function.name.clone(),
            executor,
            reason,
            samples: case.samples,
            steps,
            states: plan.states.iter().map(|s| s.state.shape.clone()).collect(),
            dtype: if case.kind == Kind::Double { "float64".into() } else { "float32".into() },
            details,
        };
        let mut state = self.lock();
        if let Some(notice) = notice.filter(|n| state.said.insert(n.clone())) {
            state.notices.push(notice);
        }
        state.choices.push(choice);
        state.picks.insert(case, (plan.clone(), pick.clone()));
        Ok(pick)
    }

    fn decide(&self, call: &Call<'_>) -> Result<Decided> {
        if call.plan.states.is_empty() {
            // A read, which is no walk: what was asked for does not speak of it.
            return Ok(match call.scan() {
                Ok(found) => Decided::scan(found, ""),
                Err(why) => Decided::reference(format!("no fused read: {}", first(&why)), None),
            });
        }
        let rule = &call.weights.slot.rule.program.name;
        let part = if call.is_cell() { format!("the cells of slow net `{rule}`") } else { format!("update rule `{rule}`") };
        let refused = |executor: Executor, why: String| Refused { executor, part: part.clone(), why };
        match self.policy {
            Policy::Only(Executor::Reference) => Ok(Decided::reference("asked for".into(), None)),
            Policy::Only(Executor::Scan) => match call.scan() {
                Ok(found) => Ok(Decided::scan(found, "asked for; ")),
                Err(why) => Err(refused(Executor::Scan, why).into()),
            },
            Policy::Only(Executor::Chunkwise) => match call.chunkwise() {
                Ok(chunk) => Ok(Decided::chunkwise(chunk, "asked for".into(), None)),
                Err(why) => Err(refused(Executor::Chunkwise, why).into()),
            },
            // A chunkwise form is derived and compared only where it may be taken.
            Policy::Auto => Ok(if let Some(sums) = call.sums() {
                Decided::chunkwise(
                    sums,
                    "nothing is read before the end, so a matrix product sums up what a chunk writes".into(),
                    None,
                )
            } else {
                match (call.scan(), call.chunks_are_faster()) {
                    (Ok(found), false) => Decided::scan(found, ""),
                    (scan, _) => Decided::with_chunks(rule, scan, call.chunkwise()),
                }
            }),
        }
    }
}

/// A kernel, and the slot that it belongs to where that takes inputs as they are given.
type Kernel = (Arc<Built>, Option<Arc<Slot>>);

/// A choice with what carries it out.
struct Decided {
    pick: Pick,
    executor: Executor,
    reason: String,
    details: Json,
    notice: Option<String>,
}

impl Decided {
    fn reference(reason: String, notice: Option<String>) -> Decided {
        Decided { pick: Pick::Reference, executor: Executor::Reference, reason, details: json!({}), notice }
    }

    /// Where chunks are to be preferred, or the only fast form.
    fn with_chunks(rule: &str, scan: Result<Kernel, String>, chunks: Result<Arc<ChunkPlan>, String>) -> Decided {
        match (scan, chunks) {
            (Ok(_), Ok(chunk)) => Decided::chunkwise(chunk, "a state is too large for a kernel's walk to be faster".into(), None),
            (Ok(found), Err(_)) => Decided::scan(found, ""),
            (Err(why), Ok(chunk)) => {
                let notice =
                    format!("no fused scan for `{rule}`, matrix products over chunks run instead, which may be slower: {why}");
                Decided::chunkwise(chunk, format!("no fused scan: {}", first(&why)), Some(notice))
            }
            (Err(why), Err(no_chunks)) => {
                let notice = format!("no fused scan for `{rule}`, the reference runs instead, which is many times slower: {why}");
                let reason = format!("no fused scan: {}; no chunkwise form: {}", first(&why), first(&no_chunks));
                Decided::reference(reason, Some(notice))
            }
        }
    }

    fn chunkwise(chunk: Arc<ChunkPlan>, reason: String, notice: Option<String>) -> Decided {
        Decided { pick: Pick::Chunkwise(chunk), executor: Executor::Chunkwise, reason, details: json!({}), notice }
    }

    fn scan((built, inside): Kernel, before: &str) -> Decided {
        let reason = format!("{before}{}", shown(&built));
        let details = described(&built, inside.is_some());
        let pick = inside.map_or(Pick::Scan, Pick::Inside);
        Decided { pick, executor: Executor::Scan, reason, details, notice: None }
    }
}

/// One call that an executor is chosen for.
struct Call<'a> {
    weights: &'a FastWeights,
    plan: &'a Arc<StepPlan>,
    inputs: Inputs<'a>,
    memory: &'a Memory,
    masks: &'a Masks,
    steps: i64,
}

impl Call<'_> {
    fn is_cell(&self) -> bool {
        self.weights.slot.rule.program.kind != PartKind::UpdateRule
    }

    fn chunkwise(&self) -> Result<Arc<ChunkPlan>, String> {
        let ready = self.ready()?;
        chunkwise(self.weights, self.plan, &ready, self.memory)
    }

    /// The chunkwise form of writes alone that add to what is there: a matrix product a chunk, where a kernel walks through every state.
    ///
    /// Measured on one core, whole steps of training of `zoo/capacity-dpfp-3`, `--exec chunkwise` beside `--exec scan`: 0.8 of the time with 100 pairs, 0.25
    /// with 200.
    fn sums(&self) -> Option<Arc<ChunkPlan>> {
        if self.steps < LONG || !self.weights.slot.writes_alone(self.plan) {
            return None;
        }
        self.chunkwise().ok().filter(|chunk| chunk.sums())
    }

    fn ready(&self) -> Result<Cow<'_, [Value]>, String> {
        tch::no_grad(|| self.inputs.ready(self.weights, self.plan, self.memory, self.masks)).map_err(|e| format!("{e:#}"))
    }

    /// Whether matrix products over chunks take less time than a kernel. It depends on sizes only: with it the bits of a run would depend on anything else.
    fn chunks_are_faster(&self) -> bool {
        let bytes = if self.weights.precision.kind == Kind::Double { 8 } else { 4 };
        let largest = self.plan.states.iter().map(|s| s.state.shape.iter().product::<usize>() * bytes).max().unwrap_or(0);
        self.steps >= LONG && largest >= LARGE
    }

    fn scan(&self) -> Result<Kernel, String> {
        let inside = self.plan.made.inside(self.weights, self.plan, self.inputs).and_then(|slot| {
            let weights = self.weights.with_slot(&slot);
            let built = kernel::prepare(&weights, &slot.step, self.inputs.given(), self.memory, self.masks)?;
            Ok((built, Some(slot)))
        });
        // A read has no steps but those of a plan of its own.
        if inside.is_ok() || self.plan.states.is_empty() {
            return inside;
        }
        Ok((kernel::prepare(self.weights, self.plan, &self.ready()?, self.memory, self.masks)?, None))
    }
}

/// Bytes of a state of one head from which on matrix products are faster where there is a chunkwise form.
///
/// Measured on two idle cores with vectors of 512 bits and 2 MiB of second-level cache each, `fwp-host bench --exec scan,chunkwise` with one sequence of
/// 2,048 steps and 4 heads, forward and backward in float32: with keys and values of 128 elements the kernel of the delta rule took 0.67 of the time, of 160
/// elements 0.93, of 192 1.06, of 256 1.24; those of `gla` and `gated-delta` took 1.07 and 1.23 of it with 192 elements, 1.96 and 1.45 with 256.
const LARGE: usize = 128 << 10;

/// Steps below which there is too little for matrix products to gain.
const LONG: i64 = 64;

fn first(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

/// What is worth saying of a kernel.
fn shown(built: &Built) -> String {
    let mut parts = built.kernel.notes.clone();
    let how =
        if built.entry.compiled { format!("compiled in {:.1} s", built.took.as_secs_f64()) } else { "compiled before".into() };
    parts.push(how);
    parts.join("; ")
}

/// A kernel in the run's record.
fn described(built: &Built, inside: bool) -> Json {
    let k = &built.kernel;
    json!({
        "blocks": k.blocks,
        "feature_map_inside": inside,
        "memory_a_block": k.memory,
        "slots_a_step": k.slots_a_step,
        "slots_a_block": k.slots_a_block,
        "operations": k.operations,
        "notes": k.notes,
        "text": built.entry.text,
        "compiler": built.compiler.path,
        "compiler_version": built.compiler.version,
        "flags": built.compiler.flags,
        "vector_bytes": kernel::compile::vector_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;
    use crate::exec::testing::{delta, fast_weights};
    use crate::shim;
    use crate::shim::testing::numbers;

    const STEPS: i64 = 150;
    const N: i64 = 2;
    const KEY: usize = 5;
    const VALUE: usize = 6;

    /// Output, last state and the gradients of inputs and state; with `turn`, of steps that are laid the other way round before and
    /// laid back after.
    fn walked(policy: Policy, leaves: &[Tensor; 5], masks: &Masks, turn: bool) -> Vec<Tensor> {
        let weights = fast_weights(&delta(KEY, VALUE), Kind::Double, Executors::new(policy));
        let lay = |t: &Tensor| if turn { t.flip([0]) } else { t.shallow_clone() };
        let inputs: Vec<Value> = leaves[..4].iter().map(|t| Value::new(lay(t), Lead::STEPS)).collect();
        let memory =
            Memory { slot: 0, states: vec![leaves[4].shallow_clone()], index: Tensor::zeros([N], (Kind::Int64, Device::Cpu)) };
        let plan = weights.slot.step.clone();
        let (outputs, memory) = weights.executors.clone().run(&weights, &plan, Inputs::Ready(&inputs), memory, masks).unwrap();
        let (y, w) = (lay(&outputs[0].tensor), &memory.states[0]);
        let loss = (&y * y.detach().sin()).sum(Kind::Double) + (w * w.detach().cos()).sum(Kind::Double);
        let wrt: Vec<&Tensor> = leaves.iter().collect();
        let gradients = shim::gradients(&[loss], &[None::<Tensor>], &wrt, false, false).unwrap();
        [y.detach(), w.detach()].into_iter().chain(gradients.into_iter().map(Option::unwrap)).collect()
    }

    #[test]
    fn steps_are_taken_from_the_last_to_the_first_where_that_is_asked_for() {
        let grid = Tensor::arange(STEPS * N, (Kind::Int64, Device::Cpu)).view([STEPS, N]);
        let (key, value) = (KEY as i64, VALUE as i64);
        let leaf = |shape: &[i64]| (numbers(shape) * 0.6).set_requires_grad(true);
        let leaves = [&[STEPS, N, key][..], &[STEPS, N, key], &[STEPS, N, value], &[STEPS, N], &[N, value, key]].map(leaf);
        let (reset, write) = (grid.remainder(37).eq(5), grid.remainder(5).ne(2));
        for masked in [false, true] {
            let given = |t: &Tensor| masked.then(|| t.shallow_clone());
            let backwards = Masks { reset: given(&reset), write: given(&write), backwards: true };
            let forwards = backwards.turned().unwrap();
            assert!(!forwards.backwards);
            let wanted = walked(Policy::Only(Executor::Reference), &leaves, &forwards, true);
            for executor in Executor::ALL {
                for (i, (a, b)) in walked(Policy::Only(executor), &leaves, &backwards, false).iter().zip(&wanted).enumerate() {
                    let error = ((a - b).abs().max() / b.abs().max()).double_value(&[]);
                    assert!(error <= 1e-12, "{executor}, masks {masked}, tensor {i}: {error:e}");
                }
            }
        }
    }
}
