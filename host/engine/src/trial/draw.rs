//! Numbers to try a rule on.

use anyhow::Result;
use fwp_program::interpret::Random;
use fwp_sdk::program::{Program, Role};
use tch::{Device, Kind, Tensor};

/// What a trial consists of beside the rule.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Sequences.
    pub batch: i64,
    /// Steps.
    pub steps: i64,
    /// Whether states are given; otherwise they begin as the rule says.
    pub states: bool,
    /// Whether some steps reset the state and some writes are masked.
    pub masks: bool,
}

/// What a rule is tried on, in float64 on the CPU.
#[derive(Debug)]
pub struct Data {
    /// The rule's inputs in order, `[batch, time, heads, ...]`, before the feature map.
    pub inputs: Vec<(String, Tensor)>,
    /// Initial states in order, `[batch, heads, ...]`; none are given where the list is empty.
    pub states: Vec<(String, Tensor)>,
    /// Steps since the reset with which each sequence begins, `[batch * heads]`; none is 0.
    pub index: Option<Tensor>,
    /// Parameters of rule and map by path.
    pub parameters: Vec<(String, Tensor)>,
    /// `[batch, time]`: the state returns to its initial value before the step.
    pub reset: Option<Tensor>,
    /// `[batch, time]`: where false the step leaves the state as it is.
    pub write: Option<Tensor>,
}

impl Data {
    /// The same numbers; nothing is shared with the original.
    pub fn copied(&self) -> Data {
        let all = |list: &[(String, Tensor)]| list.iter().map(|(n, t)| (n.clone(), t.copy())).collect();
        Data {
            inputs: all(&self.inputs),
            states: all(&self.states),
            index: self.index.as_ref().map(Tensor::copy),
            parameters: all(&self.parameters),
            reset: self.reset.as_ref().map(Tensor::copy),
            write: self.write.as_ref().map(Tensor::copy),
        }
    }

    /// The steps from `start` on, `length` of them, with the same states.
    pub fn cut(&self, start: i64, length: i64) -> Result<Data> {
        let mut part = self.copied();
        for (_, t) in &mut part.inputs {
            *t = t.f_narrow(1, start, length)?.copy();
        }
        for mask in [&mut part.reset, &mut part.write].into_iter().flatten() {
            *mask = mask.f_narrow(1, start, length)?.copy();
        }
        Ok(part)
    }
}

/// How far the gates of different heads and features lie apart, in standard deviations of one gate:
/// some decays are then near 1 and some near 0, whatever activation the rule applies.
const GATE_SPREAD: f64 = 2.0;
/// One step in so many is a reset, and one write in so many is masked.
const RESET_EVERY: f64 = 12.0;
const MASK_EVERY: f64 = 4.0;

/// Draws inputs, states and masks for a rule whose keys and queries have `raw` elements before the map.
///
/// Keys and queries have unit length where `unit` says so, which keeps rules with an erasing transition stable;
/// values are normal; the gates of a head lie around a mean of their own.
pub fn data(rule: &Program, heads: i64, raw: i64, unit: bool, wanted: Wanted, seed: u64) -> Result<Data> {
    let mut random = Random::new(seed);
    let (batch, steps) = (wanted.batch, wanted.steps);
    let mut inputs = Vec::new();
    for input in &rule.inputs {
        let mut own: Vec<i64> = input.full_shape().iter().map(|n| *n as i64).collect();
        if let (true, Some(last)) = (input.mapped(), own.last_mut()) {
            *last = raw;
        }
        let lead = [batch, steps, input.heads.map_or(heads, |h| h as i64)];
        let shape = [&lead[..], &own].concat();
        let mut t = normal(&mut random, &shape)?;
        if input.role == Role::Gate {
            let mean = normal(&mut random, &[&[1, 1, lead[2]], &own[..]].concat())?;
            t = t.f_add(&mean.f_mul(&scalar(GATE_SPREAD))?)?;
        } else if input.role != Role::Value && unit && !own.is_empty() {
            let length = t.f_square()?.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Double)?.f_sqrt()?;
            t = t.f_div(&length)?;
        }
        inputs.push((input.name.clone(), t));
    }
    let mut flags = |every: f64| -> Result<Tensor> {
        let list: Vec<bool> = (0..batch * steps).map(|_| random.uniform() * every < 1.0).collect();
        Ok(Tensor::f_from_slice(&list)?.f_reshape([batch, steps])?)
    };
    let (reset, write) =
        if wanted.masks { (Some(flags(RESET_EVERY)?), Some(flags(MASK_EVERY)?.f_logical_not()?)) } else { (None, None) };
    Ok(Data { inputs, states: Vec::new(), index: None, parameters: Vec::new(), reset, write })
}

/// Draws from the standard normal distribution, float64.
pub fn normal(random: &mut Random, shape: &[i64]) -> Result<Tensor> {
    let n: i64 = shape.iter().product();
    let list: Vec<f64> = (0..n).map(|_| random.normal()).collect();
    Ok(Tensor::f_from_slice(&list)?.f_reshape(shape)?)
}

/// A float64 scalar on the CPU.
pub fn scalar(x: f64) -> Tensor {
    Tensor::full([0i64; 0], x, (Kind::Double, Device::Cpu))
}

/// A seed of its own for everything that has a name.
pub fn seed_of(seed: u64, name: &str) -> u64 {
    // FNV-1a: the same on every machine.
    name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
