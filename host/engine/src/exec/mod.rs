//! Executors: programs carried out on libtorch tensors.
//!
//! The reference executor carries a program out operation by operation; its gradients are libtorch's.
//! It is always available and is the judge of every faster executor.
//!
//! | module | does |
//! |---|---|
//! | [`value`] | tensors with the leading axes that the host adds |
//! | [`ops`] | operators that need nothing but their operands |
//! | [`fused`] | operations in one pass over memory, where libtorch needs several |
//! | [`linear`] | linear maps of the same rows, one node of the graph for all of them |
//! | [`lookup`] | linear maps of rows that are looked up |
//! | [`loss`] | losses of outputs against symbols |
//! | [`joint`] | which nodes of a function are carried out together |
//! | [`solve`] | conjugate gradients with an implicit backward |
//! | [`time`] | operators along a slow net's sequence axis |
//! | [`evaluate`] | functions: parameters, calls, loops, blocks, cells |
//! | [`prepared`] | programs made ready to run |
//! | [`plan`] | when and how each node of a step is computed |
//! | [`scan`] | fast weights: initial memory, writes, reads |
//! | [`back`] | one query of a memory without the memory |
//! | [`walk`] | the steps, one after another, in recomputed segments where memory is short |
//! | [`kernel`] | the steps as one compiled kernel |
//! | [`chunk`] | affine rules as matrix products over chunks of steps |
//! | [`choose`] | which executor carries out the steps of a rule, and why |
//! | [`verify`] | a faster executor compared with the reference on small random data |

pub mod back;
pub mod choose;
pub mod chunk;
pub mod evaluate;
pub mod fused;
pub mod joint;
pub mod kernel;
pub mod linear;
pub mod lookup;
pub mod loss;
pub mod ops;
pub mod plan;
pub mod prepared;
pub mod scan;
pub mod solve;
#[cfg(test)]
pub(crate) mod testing;
pub mod time;
pub mod value;
pub mod verify;
pub mod walk;
