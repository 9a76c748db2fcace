//! Opening compiled kernels and calling them: the unsafe side of [`super`].
//!
//! What makes it sound: a library is opened only by an absolute path in the user's own cache folder, after its sum was compared with the one
//! written when it was compiled, from a text that `fwp_program::kernel` wrote; and every buffer is checked against the sizes of that text's contract
//! ([`fwp_program::kernel::Kernel`]) before a pointer to it is handed out.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use fwp_program::kernel::{Gradient, Kernel};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use tch::{Device, Kind, Tensor};

use super::buffers::Line;
use super::turns::Units;

type Entry = unsafe extern "C" fn(*const Scan, i64, i64, i64, *mut c_void, *mut c_void);

/// A kernel's functions. Its library is never closed: a backward pass may run at any time until the process ends.
pub(super) struct Opened {
    forward: Entry,
    backward: Entry,
}

/// `struct fwp_scan` of the kernel's text.
#[repr(C)]
struct Scan {
    steps: i64,
    sequences: i64,
    interval: i64,
    early: i64,
    input: *const *const c_void,
    in_step: *const i64,
    in_sequence: *const i64,
    start: *const *const c_void,
    fresh: *const *const c_void,
    reset: *const u8,
    write: *const u8,
    index: *const i64,
    kept: *const *mut c_void,
    end: *const *mut c_void,
    checkpoint: *const *mut c_void,
    kept_gradient: *const *const c_void,
    end_gradient: *const *const c_void,
    in_gradient: *const *mut c_void,
    start_gradient: *const *mut c_void,
    fresh_gradient: *const *mut c_void,
    saved: *mut c_void,
    together: i64,
    time: i64,
}

/// Opens a compiled kernel, once for each file of this process's life.
///
/// # Errors
/// What the loader says, a missing function, or a library that changes the floating-point mode.
pub(super) fn open(path: &Path) -> Result<&'static Opened> {
    static OPEN: Mutex<Option<HashMap<PathBuf, &'static Opened>>> = Mutex::new(None);
    ensure!(path.is_absolute(), "internal: a kernel is opened by its absolute path, not {}", path.display());
    // Entries are put in whole, so a panic elsewhere leaves nothing half done.
    let mut table = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let table = table.get_or_insert_default();
    if let Some(opened) = table.get(path) {
        return Ok(opened);
    }
    let before = float_mode();
    // SAFETY: the file is one that this user's compiler made of a text of ours (see the head of this module). It has no initialisers:
    // it is C without constructors, linked without fast-math, which would add one.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|e| match std::error::Error::source(&e) {
        Some(cause) => anyhow::anyhow!("{cause}"),
        None => anyhow::anyhow!("{e}"),
    });
    let library = library.with_context(|| format!("opening the compiled kernel {}", path.display()))?;
    if float_mode() != before {
        set_float_mode(before);
        // It stays open, unused: closing it would run code of it again.
        std::mem::forget(library);
        anyhow::bail!("the compiled kernel {} changes the floating-point mode: compile without fast-math", path.display());
    }
    let entry = |name: &str| -> Result<Entry> {
        // SAFETY: the text defines both functions with exactly this type.
        let symbol = unsafe { library.get::<Entry>(name.as_bytes()) };
        symbol.map(|s| *s).map_err(|_| anyhow::anyhow!("the compiled kernel {} has no {name}", path.display()))
    };
    let opened: &'static Opened =
        Box::leak(Box::new(Opened { forward: entry("fwp_forward")?, backward: entry("fwp_backward")? }));
    std::mem::forget(library);
    table.insert(path.to_path_buf(), opened);
    Ok(opened)
}

/// The floating-point mode of this thread; always 0 where there is no such register to read.
pub(crate) fn float_mode() -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        let mut mode = 0u32;
        // SAFETY: stores the register into a local variable and changes nothing else.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack, preserves_flags)) };
        // The lowest six bits are flags of what happened, not a mode.
        mode & !0x3f
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

fn set_float_mode(mode: u32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `mode` was read from the register, so it is a valid one.
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, preserves_flags, readonly))
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = mode;
}

/// A value that crosses into the steps.
#[derive(Debug)]
pub(super) struct Input {
    /// The tensor; the elements of one step are contiguous.
    pub tensor: Tensor,
    /// Whether it varies by step, its first axis then.
    pub steps: bool,
    /// Whether it varies by sequence, the axis after that.
    pub sequences: bool,
    /// Elements of one step.
    pub elements: i64,
    /// Its kind.
    pub kind: Kind,
}

/// The buffers of a call, checked when they are handed over.
#[derive(Default)]
pub(super) struct Buffers {
    /// Number of steps.
    pub steps: i64,
    /// Number of sequences.
    pub sequences: i64,
    /// Steps between checkpoints.
    pub interval: i64,
    /// How much earlier all checkpoints but the first are.
    pub early: i64,
    /// Values that cross into the steps.
    pub inputs: Vec<Input>,
    /// Elements of every state.
    pub states: Vec<i64>,
    /// Elements of every kept value.
    pub kept_elements: Vec<i64>,
    /// States before the first step.
    pub start: Vec<Tensor>,
    /// States after a reset; empty without resets.
    pub fresh: Vec<Tensor>,
    /// Where sequences begin.
    pub reset: Option<Tensor>,
    /// Where states are written.
    pub write: Option<Tensor>,
    /// Index of every step.
    pub index: Option<Tensor>,
    /// Kept values, written by the forward pass.
    pub kept: Vec<Tensor>,
    /// States after the last step, written by the forward pass.
    pub end: Vec<Tensor>,
    /// Checkpoints; empty when none are kept.
    pub checkpoint: Vec<Tensor>,
    /// What the forward pass stores for the backward pass; none where there is no backward pass.
    pub saved: Option<Tensor>,
    /// Blocks of one unit.
    pub together: i64,
    /// Whether the last step in time is taken first.
    pub backwards: bool,
    /// Gradients; the forward pass has none.
    pub gradients: Option<Gradients>,
}

impl Buffers {
    /// Number of checkpoints: one in front of every segment, and one after the last.
    pub fn checkpoints(&self) -> i64 {
        let steps = self.steps + self.early;
        steps / self.interval + i64::from(steps % self.interval != 0) + 1
    }
}

/// The gradients of a backward pass.
pub(super) struct Gradients {
    /// Of the kept values.
    pub kept: Vec<Option<Tensor>>,
    /// Of the states after the last step.
    pub end: Vec<Option<Tensor>>,
    /// Of the inputs, and the elements that the kernel writes.
    pub inputs: Vec<Option<(Tensor, i64)>>,
    /// Of the states before the first step.
    pub start: Vec<Tensor>,
    /// Of the states after a reset; empty without resets.
    pub fresh: Vec<Tensor>,
}

/// A checked call.
pub(super) struct Call {
    buffers: Buffers,
    opened: &'static Opened,
    /// Elements of every gradient of an input that is given at every step; 0 of others.
    along: Vec<i64>,
    /// Bytes of a float.
    size: i64,
    /// Units of one sequence.
    parts: i64,
    /// Lines of memory of a unit.
    memory: usize,
    /// Lines of slots.
    slots: usize,
}

impl Call {
    /// Checks every buffer against the kernel's contract.
    ///
    /// # Errors
    /// A buffer that does not fit: a fault of the host.
    pub fn new(opened: &'static Opened, buffers: Buffers, real: Kind, kernel: &Kernel) -> Result<Call> {
        let b = &buffers;
        let blocks = kernel.blocks as i64;
        let parted = b.together > 0 && blocks > 0 && blocks % b.together == 0;
        ensure!(
            b.steps > 0 && b.sequences > 0 && (0..b.interval).contains(&b.early) && parted,
            "internal: a kernel without work"
        );
        let whole = |what: &str, t: &Tensor, kind: Kind, elements: i64| -> Result<()> {
            let fits = t.device() == Device::Cpu && t.kind() == kind && t.is_contiguous() && t.numel() as i64 == elements;
            ensure!(fits, "internal: {what} of a kernel is {:?} {:?}; expected {elements} elements {kind:?}", t.size(), t.kind());
            Ok(())
        };
        let all = |what: &str, list: &[Tensor], elements: &[i64], times: i64| -> Result<()> {
            ensure!(list.len() == elements.len(), "internal: {} of {} {what} of a kernel", list.len(), elements.len());
            list.iter().zip(elements).try_for_each(|(t, e)| whole(what, t, real, e * times))
        };
        for input in &b.inputs {
            let t = &input.tensor;
            let size = t.size();
            let lead = usize::from(input.steps) + usize::from(input.sequences);
            let (own, stride) = (&size[lead.min(size.len())..], t.stride());
            ensure!(t.device() == Device::Cpu && t.kind() == input.kind, "internal: an input of a kernel is {:?}", t.kind());
            ensure!(own.iter().product::<i64>() == input.elements, "internal: an input of a kernel is {size:?}");
            ensure!(!input.steps || size[0] == b.steps, "internal: an input of {:?} steps for {}", size, b.steps);
            ensure!(!input.sequences || size[lead - 1] == b.sequences, "internal: an input of {size:?} for {}", b.sequences);
            ensure!(dense(own, &stride[lead..]), "internal: an input of a kernel is strided {stride:?}");
        }
        let grid = b.steps * b.sequences;
        all("start", &b.start, &b.states, b.sequences)?;
        if b.reset.is_some() {
            all("fresh", &b.fresh, &b.states, b.sequences)?;
        }
        for (mask, kind) in [(&b.reset, Kind::Bool), (&b.write, Kind::Bool), (&b.index, Kind::Int64)] {
            mask.iter().try_for_each(|m| whole("a mask or index", m, kind, grid))?;
        }
        if !b.checkpoint.is_empty() {
            all("checkpoint", &b.checkpoint, &b.states, b.checkpoints() * b.sequences)?;
        }
        if let Some(t) = &b.saved {
            whole("what is saved", t, real, grid * blocks * kernel.saved as i64)?;
        }
        match &b.gradients {
            None => {
                all("kept", &b.kept, &b.kept_elements, grid)?;
                all("end", &b.end, &b.states, b.sequences)?;
            }
            Some(g) => {
                let all_there = b.saved.is_some() && (!b.checkpoint.is_empty() || b.states.is_empty());
                ensure!(all_there, "internal: a backward pass without what the forward pass keeps for it");
                let some = |what: &str, list: &[Option<Tensor>], elements: &[i64], times: i64| -> Result<()> {
                    ensure!(list.len() == elements.len(), "internal: {} of {} {what} gradients", list.len(), elements.len());
                    let mut each = list.iter().zip(elements);
                    each.try_for_each(|(t, e)| t.iter().try_for_each(|t| whole(what, t, real, e * times)))
                };
                some("kept", &g.kept, &b.kept_elements, grid)?;
                some("end", &g.end, &b.states, b.sequences)?;
                ensure!(g.inputs.len() == b.inputs.len(), "internal: {} gradients of inputs", g.inputs.len());
                g.inputs.iter().flatten().try_for_each(|(t, elements)| whole("gradient", t, real, *elements))?;
                all("start gradient", &g.start, &b.states, b.sequences)?;
                if b.reset.is_some() {
                    all("fresh gradient", &g.fresh, &b.states, b.sequences)?;
                }
            }
        }
        let together = b.together as usize;
        let memory = kernel.memory[usize::from(b.gradients.is_some())].saturating_mul(together);
        let slots = match &b.gradients {
            None => 0,
            Some(_) => kernel.slots(b.interval as usize, together),
        };
        let lines = |bytes: usize| bytes.div_ceil(size_of::<Line>()).max(1);
        let along = b.inputs.iter().zip(&kernel.gradients);
        let along = along.map(|(i, g)| if matches!(g, Gradient::Steps { .. }) { i.elements } else { 0 }).collect();
        let size = real.elt_size_in_bytes() as i64;
        let (memory, slots) = (lines(memory), lines(slots));
        Ok(Call { parts: blocks / b.together, along, size, buffers, opened, memory, slots })
    }

    /// Number of units.
    pub fn units(&self) -> usize {
        (self.buffers.sequences * self.parts) as usize
    }

    /// The buffers, when all units have run.
    pub fn finish(self) -> Buffers {
        self.buffers
    }

    /// Runs all units on libtorch's threads, each of so many floating point operations: backward where there are gradients, else forward.
    ///
    /// # Errors
    /// A panic in the loop.
    pub fn run(&self, operations: usize) -> Result<()> {
        let b = &self.buffers;
        let pointer = |t: &Tensor| t.data_ptr();
        let constant = |t: &Tensor| t.data_ptr().cast_const();
        let list = |l: &[Tensor]| -> Vec<*mut c_void> { l.iter().map(pointer).collect() };
        // Bytes from the first step in time to the one that is taken first, where a step has so many elements of this size.
        let ahead = |elements: i64, size: i64| if b.backwards { ((b.steps - 1) * elements * size) as isize } else { 0 };
        let grid = |elements: i64| ahead(b.sequences * elements, self.size);
        let constants = |l: &[Tensor]| -> Vec<*const c_void> { l.iter().map(constant).collect() };
        let optional = |l: &[Option<Tensor>]| -> Vec<*const c_void> {
            l.iter().map(|t| t.as_ref().map_or(std::ptr::null(), constant)).collect()
        };
        let to = if b.backwards { -1 } else { 1 };
        // A stride of an axis of size 1 says nothing, and is never used.
        let step = |i: &Input| if i.steps { i.tensor.stride()[0] } else { 0 };
        let sequence = |i: &Input| if i.sequences { i.tensor.stride()[usize::from(i.steps)] } else { 0 };
        let size = |i: &Input| i.tensor.kind().elt_size_in_bytes() as i64;
        let input = b.inputs.iter().map(|i| constant(&i.tensor).wrapping_byte_offset(ahead(step(i), size(i))));
        let input: Vec<*const c_void> = input.collect();
        let in_step: Vec<i64> = b.inputs.iter().map(|i| to * step(i)).collect();
        let in_sequence: Vec<i64> = b.inputs.iter().map(sequence).collect();
        let (start, fresh) = (constants(&b.start), constants(&b.fresh));
        let kept = b.kept.iter().zip(&b.kept_elements).map(|(t, n)| pointer(t).wrapping_byte_offset(grid(*n)));
        let kept: Vec<*mut c_void> = kept.collect();
        let (end, checkpoint) = (list(&b.end), list(&b.checkpoint));
        let of_step = |m: &Option<Tensor>, size: i64| {
            m.as_ref().map_or(std::ptr::null(), |m| constant(m).wrapping_byte_offset(ahead(b.sequences, size)))
        };
        let g = b.gradients.as_ref();
        let mut kept_gradient = g.map(|g| optional(&g.kept)).unwrap_or_default();
        for (p, n) in kept_gradient.iter_mut().zip(&b.kept_elements).filter(|(p, _)| !p.is_null()) {
            *p = p.wrapping_byte_offset(grid(*n));
        }
        let end_gradient = g.map(|g| optional(&g.end)).unwrap_or_default();
        let in_gradient: Vec<*mut c_void> = g
            .map(|g| {
                let at = |(t, _): &(Tensor, i64), n: i64| pointer(t).wrapping_byte_offset(grid(n));
                let each = g.inputs.iter().zip(&self.along);
                each.map(|(t, n)| t.as_ref().map_or(std::ptr::null_mut(), |t| at(t, *n))).collect()
            })
            .unwrap_or_default();
        let start_gradient = g.map(|g| list(&g.start)).unwrap_or_default();
        let fresh_gradient = g.map(|g| list(&g.fresh)).unwrap_or_default();
        let or_null = |list: &Vec<*mut c_void>| if list.is_empty() { std::ptr::null() } else { list.as_ptr() };
        let scan = Scan {
            steps: b.steps,
            sequences: b.sequences,
            interval: b.interval,
            early: b.early,
            input: input.as_ptr(),
            in_step: in_step.as_ptr(),
            in_sequence: in_sequence.as_ptr(),
            start: start.as_ptr(),
            fresh: if fresh.is_empty() { std::ptr::null() } else { fresh.as_ptr() },
            reset: of_step(&b.reset, 1).cast::<u8>(),
            write: of_step(&b.write, 1).cast::<u8>(),
            index: of_step(&b.index, 8).cast::<i64>(),
            kept: kept.as_ptr(),
            end: end.as_ptr(),
            checkpoint: or_null(&checkpoint),
            kept_gradient: kept_gradient.as_ptr(),
            end_gradient: end_gradient.as_ptr(),
            in_gradient: in_gradient.as_ptr(),
            start_gradient: start_gradient.as_ptr(),
            fresh_gradient: or_null(&fresh_gradient),
            saved: b.saved.as_ref().map_or(std::ptr::null_mut(), pointer),
            together: b.together,
            time: if b.backwards { -b.sequences } else { b.sequences },
        };
        let shared = Shared(&scan);
        let entry = if g.is_some() { self.opened.backward } else { self.opened.forward };
        let (count, segments) = (self.units(), b.checkpoints() as usize - 1);
        let units = Units { count, segments, operations, memory: self.memory, slots: self.slots };
        units.run(&|unit, some, memory, slots| {
            let (memory, slots) = (memory.as_mut_ptr().cast::<c_void>(), slots.as_mut_ptr().cast::<c_void>());
            // SAFETY: `scan` and the lists it points to live until all units have run, and the tensors behind them as long as `self`;
            // `Call::new` has checked all their sizes and kinds. Where the last step comes first, pointers are to its values and strides
            // along time are negative, so the same elements are reached. Units write disjoint parts of the outputs, by the kernel's contract.
            // `memory` is this unit's from its first segment to its last, which come in order, and `slots` are this thread's; both are aligned
            // to 64 bytes and as many as the kernel asks for.
            unsafe { entry(shared.pointer(), unit as i64, some.start as i64, some.end as i64, memory, slots) };
        })
    }
}

/// A call's description, seen by all threads.
struct Shared<'a>(&'a Scan);

// SAFETY: it is only read, and what it points to is written at places that no two units share.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    fn pointer(&self) -> *const Scan {
        self.0
    }
}

/// Whether elements of these sizes lie one after another.
pub(super) fn dense(size: &[i64], stride: &[i64]) -> bool {
    let mut expected = 1;
    size.iter().zip(stride).rev().all(|(n, s)| {
        let fits = *n == 1 || *s == expected;
        expected *= n;
        fits
    })
}
