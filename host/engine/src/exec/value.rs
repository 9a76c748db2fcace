//! Values at run time: tensors with the leading axes that the host adds.

use anyhow::{Result, bail};
use tch::{Device, Kind, Tensor};

use super::back::Deferred;

/// The leading axes of a tensor, always in this order.
///
/// A program speaks of one sample; its value at run time may also vary by step, by sample and along a sequence axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lead {
    /// All steps of a scan at once, `[time, ...]`.
    pub steps: bool,
    /// Samples; in a scan, samples times heads.
    pub batch: bool,
    /// A slow net's sequence axis.
    pub axis: bool,
}

impl Lead {
    /// The same for every sample and step.
    pub const NONE: Lead = Lead { steps: false, batch: false, axis: false };
    /// One a sample.
    pub const BATCH: Lead = Lead { steps: false, batch: true, axis: false };
    /// One a sample and step of a sequence axis.
    pub const AXIS: Lead = Lead { steps: false, batch: true, axis: true };
    /// One a step of a scan and sample.
    pub const STEPS: Lead = Lead { steps: true, batch: true, axis: false };

    /// Number of leading axes.
    pub fn count(self) -> usize {
        usize::from(self.steps) + usize::from(self.batch) + usize::from(self.axis)
    }

    /// The axes that either has.
    pub fn union(self, other: Lead) -> Lead {
        Lead { steps: self.steps || other.steps, batch: self.batch || other.batch, axis: self.axis || other.axis }
    }

    fn flags(self) -> [bool; 3] {
        [self.steps, self.batch, self.axis]
    }
}

/// A tensor and the leading axes that it has.
#[derive(Debug)]
pub struct Value {
    /// The tensor, leading axes first.
    pub tensor: Tensor,
    /// Its leading axes.
    pub lead: Lead,
}

impl Clone for Value {
    /// Another handle on the same tensor.
    fn clone(&self) -> Value {
        Value { tensor: self.tensor.shallow_clone(), lead: self.lead }
    }
}

impl Value {
    /// A tensor with these leading axes.
    pub fn new(tensor: Tensor, lead: Lead) -> Value {
        Value { tensor, lead }
    }

    /// Number of axes for one sample.
    pub fn rank(&self) -> usize {
        self.tensor.dim() - self.lead.count()
    }

    /// The position of a sample's axis in the tensor.
    pub fn dim(&self, axis: usize) -> i64 {
        (self.lead.count() + axis) as i64
    }

    /// Sizes for one sample.
    pub fn shape(&self) -> Vec<i64> {
        self.tensor.size()[self.lead.count()..].to_vec()
    }

    /// Sizes of the leading axes.
    pub fn lead_shape(&self) -> Vec<i64> {
        self.tensor.size()[..self.lead.count()].to_vec()
    }

    /// The tensor with a place for every axis of `lead`, of size 1 where the value does not vary, and padded to `rank` axes for one sample.
    pub fn aligned(&self, lead: Lead, rank: usize) -> Result<Tensor> {
        if self.lead == lead && self.rank() == rank {
            return Ok(self.tensor.shallow_clone());
        }
        let mut size = self.tensor.size().into_iter();
        let mut shape = Vec::with_capacity(lead.count() + rank);
        for (has, wants) in self.lead.flags().into_iter().zip(lead.flags()) {
            match (has, wants) {
                (true, true) => shape.extend(size.next()),
                (false, true) => shape.push(1),
                (false, false) => {}
                (true, false) => bail!("a value of leading axes {:?} does not fit into {lead:?}", self.lead),
            }
        }
        let own: Vec<i64> = size.collect();
        // Only a scalar is padded: shapes were checked with the program.
        shape.extend(std::iter::repeat_n(1, rank - own.len()));
        shape.extend(own);
        reshaped(&self.tensor, &shape)
    }
}

/// `t` repeated to these sizes. Where it has them already it is `t` itself: an operation that changes nothing costs as much as a small one
/// that does, twice where gradients are recorded.
pub fn expanded(t: Tensor, size: &[i64]) -> Result<Tensor> {
    Ok(if t.size() == size { t } else { t.f_expand(size, false)? })
}

/// `t` in this shape, where -1 stands for what is left; `t` itself where it has it already.
pub fn reshaped(t: &Tensor, size: &[i64]) -> Result<Tensor> {
    Ok(if t.size() == size { t.shallow_clone() } else { t.f_reshape(size)? })
}

/// Its steps the other way round.
pub fn turned(v: &Value) -> Result<Value> {
    Ok(if v.lead.steps { Value::new(v.tensor.f_flip([0])?, v.lead) } else { v.clone() })
}

/// The union of the leading axes of values.
pub fn joined<'a>(values: impl IntoIterator<Item = &'a Value>) -> Lead {
    values.into_iter().fold(Lead::NONE, |l, v| l.union(v.lead))
}

/// What a node may hold.
#[derive(Clone, Debug)]
pub enum Datum {
    /// A tensor.
    Value(Value),
    /// Several.
    Tuple(Vec<Datum>),
    /// The fast weights of a slot.
    Memory(Memory),
    /// Those with nothing written into them, which their first write makes.
    Fresh,
    /// Those, not yet written.
    Deferred(Deferred),
}

impl Datum {
    /// The tensor; programs are checked, so anything else is a fault of the host.
    pub fn value(&self) -> Result<&Value> {
        match self {
            Datum::Value(v) => Ok(v),
            other => bail!("internal: expected a tensor, found {other:?}"),
        }
    }
}

/// Fast weights between writes and reads.
#[derive(Debug)]
pub struct Memory {
    /// Index of the slot.
    pub slot: usize,
    /// The states in the rule's order, `[samples * heads, ...]`.
    pub states: Vec<Tensor>,
    /// Steps since the reset, `[samples * heads]` integers.
    pub index: Tensor,
}

impl Clone for Memory {
    fn clone(&self) -> Memory {
        Memory {
            slot: self.slot,
            states: self.states.iter().map(Tensor::shallow_clone).collect(),
            index: self.index.shallow_clone(),
        }
    }
}

/// Precision and place of computation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Kind of float.
    pub kind: Kind,
    /// Device.
    pub device: Device,
}

impl Precision {
    /// A float scalar.
    pub fn scalar(self, x: f64) -> Result<Tensor> {
        Ok(Tensor::f_full([0i64; 0], x, (self.kind, self.device))?)
    }
}
