//! What the step loop needs of a model.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

/// One trained or frozen tensor of a model.
#[derive(Debug)]
pub struct Parameter {
    /// Its name, as in checkpoints: parts separated by points.
    pub name: String,
    /// A leaf; requires a gradient when it is trained.
    pub tensor: Tensor,
    /// Whether weight decay applies to it.
    pub decay: bool,
    /// Whether the optimiser changes it.
    pub trainable: bool,
}

/// The circumstances of one forward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// Training: dropout is on and gradients are recorded.
    pub train: bool,
    /// The number of steps done before this one.
    pub step: u64,
    /// The seed of the run.
    pub seed: u64,
    /// The number of the micro-batch in the step.
    pub micro: u64,
    /// Whether the fast-weight states at the end are asked for.
    pub carry: bool,
    /// For each row, whether it starts afresh although states are carried; `None`: all do.
    pub resets: Option<Vec<bool>>,
    /// The positions at which an output is asked for; `None`: all of all outputs.
    pub scored: Option<Scored>,
}

/// The positions of one output that a loss or a metric looks at.
///
/// A model may then give this output alone, as `[positions, ...]`, in place of `[batch, length, ...]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scored {
    /// The output.
    pub output: String,
    /// The positions in the order in which they are given: `row * length + step`.
    pub positions: Vec<i64>,
}

/// What a forward pass gives.
#[derive(Debug)]
pub struct Output<C> {
    /// The outputs of the slow net, by name.
    pub values: BTreeMap<String, Tensor>,
    /// The detached fast-weight states at the end, when asked for.
    pub carry: Option<C>,
}

/// A model that the step loop can train.
pub trait TrainModel {
    /// Fast-weight states that pass from one batch to the next.
    type Carry;

    /// All parameters, in an order that does not change.
    fn parameters(&self) -> &[Parameter];

    /// Where the parameters are, and where inputs must be.
    fn device(&self) -> Device;

    /// The element type of the parameters.
    fn kind(&self) -> Kind;

    /// Computes the outputs from the task's inputs.
    ///
    /// # Errors
    ///
    /// What does not fit together, or what libtorch refuses.
    fn forward(
        &self,
        inputs: &BTreeMap<String, Tensor>,
        pass: &Pass,
        carry: Option<Self::Carry>,
    ) -> anyhow::Result<Output<Self::Carry>>;

    /// Named tensors from inside the model on these inputs, for histograms and images, such as
    /// `fwp/layer0/beta`. Matrices are their last two axes.
    ///
    /// # Errors
    ///
    /// As [`TrainModel::forward`].
    fn probes(&self, inputs: &BTreeMap<String, Tensor>) -> anyhow::Result<Vec<(String, Tensor)>>;

    /// The carried states as named tensors, for a checkpoint.
    fn save_carry(&self, carry: &Self::Carry) -> Vec<(String, Tensor)>;

    /// The carried states from the tensors that [`TrainModel::save_carry`] gave.
    ///
    /// # Errors
    ///
    /// Missing or foreign names, or other shapes.
    fn load_carry(&self, tensors: BTreeMap<String, Tensor>) -> anyhow::Result<Self::Carry>;
}
