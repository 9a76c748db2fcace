//! One forward pass before training begins.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fwp_task::Task;

use super::data::Tensors;
use super::model::{Pass, TrainModel};
use crate::shim::RandomState;

/// Computes the first batch of a run once, without gradients or dropout, and leaves the random generators as they were.
///
/// So what is chosen and compiled when a size is first met is there, and can be told, before the first step.
///
/// # Errors
///
/// What training will meet too, which says more about it.
pub fn rehearse<M: TrainModel>(model: &M, task: &Arc<dyn Task>, seed: u64, batch_size: usize) -> anyhow::Result<()> {
    let random = RandomState::capture(model.device())?;
    let work = || -> anyhow::Result<()> {
        let batch = task.train_batch(seed, 0, 0, batch_size);
        if batch.size > 0 {
            let tensors = Tensors::new(&batch, model.device())?;
            let pass = Pass {
                train: false,
                step: 0,
                seed,
                micro: 0,
                carry: false,
                resets: None,
                scored: tensors.scored(task.output_name()),
            };
            model.forward(&tensors.inputs, &pass, None)?;
        }
        Ok(())
    };
    // Operations of the binding without a fallible twin panic.
    let done = catch_unwind(AssertUnwindSafe(|| tch::no_grad(work)));
    random.restore()?;
    done.unwrap_or_else(|payload| Err(anyhow::anyhow!("panic: {}", crate::shim::panic_text(&*payload))))
}
