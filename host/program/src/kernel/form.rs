//! What goes into a kernel and what comes out: the agreement between the generator, which knows no memory, and the engine, which runs the kernel.

use fwp_sdk::program::{Function, State};

/// A step as a kernel walks it: everything that can be computed before or after the walk has been taken out.
#[derive(Clone, Debug, PartialEq)]
pub struct InStep {
    /// Name, for the kernel's text.
    pub name: String,
    /// Arguments are the values that cross into the step. `State` nodes read the states before the step, `StepIndex` the index.
    /// Outputs: the kept values in order, then `state.NAME` for every state in order.
    /// Calls and loops are of functions in `callees`.
    pub function: Function,
    /// The functions that `function` may call; numbers are indices.
    pub callees: Vec<Function>,
    /// How often every argument changes.
    pub per: Vec<Per>,
    /// The states.
    pub states: Vec<KernelState>,
    /// Number of kept values.
    pub kept: usize,
}

/// How often an argument changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// At every step of every sequence.
    Step,
    /// With the sequence (a parameter of a head).
    Sequence,
    /// Never (a parameter of a layer, a constant).
    Once,
}

/// A state of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelState {
    /// Its declaration: shape, and for how many steps it is held.
    pub state: State,
    /// Whether a masked write leaves it alone.
    pub masked: bool,
}

/// Precision of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Real {
    /// float
    F32,
    /// double
    F64,
}

/// What a kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Precision.
    pub real: Real,
    /// Bytes of a vector register: 16, 32 or 64.
    pub vector_bytes: usize,
}

impl Target {
    /// Bytes of an element.
    pub fn bytes(&self) -> usize {
        match self.real {
            Real::F32 => 4,
            Real::F64 => 8,
        }
    }
}

/// A kernel's text and what its buffers are.
///
/// The text defines, for C11 with the vector extensions of GCC and clang:
///
/// ```c
/// struct fwp_scan {
///     int64_t steps, sequences;
///     int64_t interval, early;         /* steps between two checkpoints; how much earlier all but that before step 0 are, 0 <= early < interval */
///     const void *const *in;           /* crossing values: real, int64_t or uint8_t (mask) by their type; elements of one step are contiguous */
///     const int64_t *in_step;          /* elements from one step to the next; 0: the same at every step */
///     const int64_t *in_sequence;      /* elements from one sequence to the next; 0: the same for all */
///     const real *const *start;        /* states before the first step, [sequences, state] */
///     const real *const *fresh;        /* states after a reset, [sequences, state]; null without resets */
///     const uint8_t *reset, *write;    /* [steps, sequences]; null: no resets, everything is written */
///     const int64_t *index;            /* [steps, sequences]; null: the step's number */
///     real *const *kept;               /* [steps, sequences, value] */
///     real *const *end;                /* states after the last step, [sequences, state] */
///     real *const *checkpoint;         /* [ceil((steps + early) / interval) + 1, sequences, state], states before steps 0, interval - early, 2 interval - early, ..., and after the last; null: none are kept */
///     /* backward only */
///     const real *const *kept_gradient;     /* as kept; an entry is null where nothing depends on it */
///     const real *const *end_gradient;      /* as end; an entry may be null */
///     real *const *in_gradient;        /* see Gradient; an entry is null where it is not wanted */
///     real *const *start_gradient;     /* [sequences, state] */
///     real *const *fresh_gradient;     /* [sequences, state]; null without resets */
///     /* both */
///     real *saved;                     /* [sequences, blocks, steps, Kernel::saved], aligned to 64 bytes; written forward, read backward; null forward: nothing is kept */
///     int64_t together;                /* blocks of one unit, a divisor of all blocks of a sequence */
///     int64_t time;                    /* values of [steps, sequences] from one step to the next: sequences; -sequences where the last step in time is taken first: pointers to such values are to those of the last step, and `in_step` is negative */
/// };
/// void fwp_forward(const struct fwp_scan *s, int64_t unit, int64_t from, int64_t to, void *memory, void *slots);
/// void fwp_backward(const struct fwp_scan *s, int64_t unit, int64_t from, int64_t to, void *memory, void *slots);
/// ```
///
/// A *unit* is `together` blocks of rows of one sequence: unit = sequence * (blocks / together) + part. Units share nothing and may run at the same time.
/// The blocks of a unit take turns, a segment each, so that what they all read is still close by.
/// While a unit runs, results below the smallest normal number are zero; the mode of the calling thread is then as before.
/// A walk goes from segment to segment, forward from the first to the last and backward from the last to the first; a call goes through those at the places
/// `from` to `to` of that order. Calls of a unit come one after another, until `to` is the number of segments, from any thread.
/// `memory` is what a unit goes on with: it is the same from the first call of a unit to the last. `slots` are free between calls.
/// Both are 64-byte aligned, at first of any content, and not shared by units that run at the same time. Forward has no `slots`.
/// States are computed back from those after the segment, or again from its checkpoint; the latter, or sums over them, are kept in `slots`. Vectors that the adjoint reads are in `saved`.
/// All entries of `in_gradient` that are not null are written in full.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The text.
    pub source: String,
    /// Blocks of rows of one sequence.
    pub blocks: usize,
    /// Bytes of `memory`, forward and backward, for every block of a unit; a multiple of 64.
    pub memory: [usize; 2],
    /// Bytes of `slots` for every step of the interval.
    pub slots_a_step: usize,
    /// Further bytes for every block of a unit.
    pub slots_a_block: usize,
    /// Whether states are computed back. Slots are touched in the first segment, in those with resets, and where digits would be lost.
    pub computed_back: bool,
    /// Elements that a block stores for the backward pass at every step.
    pub saved: usize,
    /// The gradient of every argument.
    pub gradients: Vec<Gradient>,
    /// Floating point operations of one step of one sequence, forward and backward, for the choice of executor.
    pub operations: [usize; 2],
    /// What is worth saying of it: how it is tiled, and what the state fits into.
    pub notes: Vec<String>,
}

impl Kernel {
    /// Bytes of `slots` for segments of `interval` steps and units of `together` blocks.
    pub fn slots(&self, interval: usize, together: usize) -> usize {
        self.slots_a_step.saturating_mul(interval).saturating_add(self.slots_a_block.saturating_mul(together))
    }
}

/// The buffer of an argument's gradient.
#[derive(Clone, Debug, PartialEq)]
pub enum Gradient {
    /// None: integers, masks, or nothing depends on it.
    None,
    /// `[parts, steps, sequences, value]`, to be summed over the parts; `parts` is 1 or the number of blocks, fewer where blocks are `together`. For [`Per::Step`].
    Steps {
        /// Partial sums.
        parts: usize,
    },
    /// `[parts, sequences, value]`, to be summed over the parts, and over sequences for [`Per::Once`].
    Sequences {
        /// Partial sums.
        parts: usize,
    },
    /// The sum over steps and sequences of outer products: left `[steps, sequences, m]` times right `[steps, sequences, n]`, one matrix product afterwards.
    /// The entry of `in_gradient` points to both, left first. For matrices that are [`Per::Once`].
    Product {
        /// Size m of the left factor.
        left: usize,
        /// Size n of the right factor.
        right: usize,
    },
}
