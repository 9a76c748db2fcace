//! Adam and AdamW with a state that can be saved.

use std::collections::BTreeMap;

use fwp_recipe::{Optimiser as Settings, OptimiserKind};
use tch::{Kind, Tensor};

use super::model::Parameter;
use crate::shim::{AdamStep, ShimError, fused_adam};

/// The optimiser of a run: moments and step counts of every trained parameter.
pub struct Optimiser {
    settings: Settings,
    members: Vec<Member>,
}

/// One trained parameter and its state.
struct Member {
    name: String,
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    /// A float32 number of no axes: the kernels read it on the device.
    steps: Tensor,
    decay: bool,
}

/// Why a saved state does not fit.
#[derive(Debug, thiserror::Error)]
pub enum OptimiserError {
    /// A tensor is missing.
    #[error("the optimiser's state has no tensor {0:?}: the checkpoint belongs to another model")]
    Missing(String),
    /// A tensor has another shape.
    #[error("the optimiser's tensor {name:?} has the shape {found:?}, the model needs {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// The shape in the checkpoint.
        found: Vec<i64>,
        /// The shape in the model.
        expected: Vec<i64>,
    },
    /// A tensor that no parameter knows.
    #[error("the optimiser's state has a tensor {0:?} that this model does not know")]
    Foreign(String),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] ShimError),
}

impl Optimiser {
    /// A fresh state for every trained parameter.
    ///
    /// # Errors
    ///
    /// What libtorch refuses, such as memory.
    pub fn new(settings: &Settings, parameters: &[Parameter]) -> Result<Self, OptimiserError> {
        let members = parameters
            .iter()
            .filter(|p| p.trainable)
            .map(|p| -> Result<Member, ShimError> {
                let zeros = || p.tensor.detach().f_zeros_like();
                Ok(Member {
                    name: p.name.clone(),
                    parameter: p.tensor.shallow_clone(),
                    first: zeros()?,
                    second: zeros()?,
                    steps: Tensor::f_zeros([0i64; 0], (Kind::Float, p.tensor.device()))?,
                    decay: p.decay,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { settings: settings.clone(), members })
    }

    /// The trained parameters.
    pub fn parameters(&self) -> Vec<&Tensor> {
        self.members.iter().map(|m| &m.parameter).collect()
    }

    /// The gradients that the last backward pass left, without the parameters it did not reach.
    pub fn gradients(&self) -> Vec<Tensor> {
        self.members.iter().map(|m| m.parameter.grad()).filter(Tensor::defined).collect()
    }

    /// The names of parameters whose gradient has a value that is not finite. Asks the device.
    pub fn not_finite(&self) -> Vec<String> {
        let bad = |m: &&Member| {
            let grad = m.parameter.grad();
            let finite = || i64::try_from(grad.f_isfinite().and_then(|t| t.f_all())?);
            grad.defined() && finite().unwrap_or(0) == 0
        };
        self.members.iter().filter(bad).map(|m| m.name.clone()).collect()
    }

    /// One step at this learning rate. A parameter without a gradient stays as it is.
    ///
    /// `found_inf`: see [`fused_adam`].
    ///
    /// # Errors
    ///
    /// What libtorch refuses.
    pub fn step(&mut self, rate: f64, found_inf: Option<&Tensor>) -> Result<(), OptimiserError> {
        // One call for each group: tensors of one element type, with or without decay.
        let mut groups: BTreeMap<(bool, String), Vec<(&Member, Tensor)>> = BTreeMap::new();
        for member in &self.members {
            let gradient = member.parameter.grad();
            if gradient.defined() {
                let kind = format!("{:?}", member.parameter.kind());
                groups.entry((member.decay, kind)).or_default().push((member, gradient));
            }
        }
        for ((decay, _), group) in &groups {
            let step = AdamStep {
                rate,
                beta1: self.settings.betas[0],
                beta2: self.settings.betas[1],
                weight_decay: if *decay { self.settings.weight_decay } else { 0. },
                epsilon: self.settings.eps,
                decoupled: self.settings.name == OptimiserKind::AdamW,
            };
            let list = |pick: fn(&Member) -> &Tensor| -> Vec<&Tensor> { group.iter().map(|(m, _)| pick(m)).collect() };
            fused_adam(
                &list(|m| &m.parameter),
                &group.iter().map(|(_, g)| g).collect::<Vec<_>>(),
                &list(|m| &m.first),
                &list(|m| &m.second),
                &list(|m| &m.steps),
                step,
                found_inf,
            )?;
        }
        Ok(())
    }

    /// The state as named tensors: `NAME/first`, `NAME/second` and `NAME/steps`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |m: &Member| {
            [
                (format!("{}/first", m.name), m.first.shallow_clone()),
                (format!("{}/second", m.name), m.second.shallow_clone()),
                (format!("{}/steps", m.name), m.steps.shallow_clone()),
            ]
        };
        self.members.iter().flat_map(named).collect()
    }

    /// Takes a state that [`Optimiser::state`] gave.
    ///
    /// # Errors
    ///
    /// A missing or foreign tensor or another shape; the state is then partly replaced.
    pub fn load(&mut self, mut state: BTreeMap<String, Tensor>) -> Result<(), OptimiserError> {
        for (name, mut tensor) in self.state() {
            let saved = state.remove(&name).ok_or_else(|| OptimiserError::Missing(name.clone()))?;
            if saved.size() != tensor.size() {
                let (found, expected) = (saved.size(), tensor.size());
                return Err(OptimiserError::Shape { name, found, expected });
            }
            tch::no_grad(|| tensor.f_copy_(&saved)).map_err(ShimError::from)?;
        }
        match state.into_keys().next() {
            Some(name) => Err(OptimiserError::Foreign(name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(name: OptimiserKind) -> Settings {
        Settings { name, lr: 0.1, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.5 }
    }

    fn parameter(name: &str, values: &[f64], decay: bool, trainable: bool) -> Parameter {
        let tensor = Tensor::from_slice(values).set_requires_grad(trainable);
        Parameter { name: name.into(), tensor, decay, trainable }
    }

    fn set(parameters: &[Parameter]) -> anyhow::Result<()> {
        let loss = parameters.iter().map(|p| (&p.tensor * &p.tensor).sum(Kind::Double)).reduce(|a, b| a + b);
        Ok(loss.unwrap().f_backward()?)
    }

    #[test]
    fn decay_reaches_only_the_parameters_that_ask_for_it() {
        // A zero gradient leaves decoupled decay alone.
        let list = [parameter("a", &[1.], true, true), parameter("b", &[1.], false, true)];
        let mut optimiser = Optimiser::new(&settings(OptimiserKind::AdamW), &list).unwrap();
        ((&list[0].tensor + &list[1].tensor) * 0.).sum(Kind::Double).backward();
        optimiser.step(0.1, None).unwrap();
        assert!((list[0].tensor.double_value(&[0]) - 0.95).abs() < 1e-12);
        assert_eq!(list[1].tensor.double_value(&[0]), 1.);
    }

    #[test]
    fn parameters_without_a_gradient_and_frozen_ones_stay() {
        let list = [parameter("a", &[1.], true, true), parameter("b", &[1.], true, true), parameter("c", &[1.], true, false)];
        let mut optimiser = Optimiser::new(&settings(OptimiserKind::AdamW), &list).unwrap();
        list[0].tensor.sum(Kind::Double).backward();
        assert_eq!(optimiser.gradients().len(), 1);
        optimiser.step(0.1, None).unwrap();
        assert!(list[0].tensor.double_value(&[0]) < 1.);
        assert_eq!(list[1].tensor.double_value(&[0]), 1.);
        assert_eq!(optimiser.parameters().len(), 2);
    }

    #[test]
    fn a_loaded_state_continues_bit_for_bit() {
        for kind in [OptimiserKind::Adam, OptimiserKind::AdamW] {
            let run = |break_at: Option<usize>| {
                let mut list = vec![parameter("a", &[1., -2.], true, true), parameter("b", &[3.], false, true)];
                let mut optimiser = Optimiser::new(&settings(kind), &list).unwrap();
                for step in 0..6 {
                    if break_at == Some(step) {
                        let state = optimiser.state().into_iter().map(|(n, t)| (n, t.copy())).collect();
                        list = list
                            .iter()
                            .map(|p| Parameter {
                                name: p.name.clone(),
                                tensor: p.tensor.detach().copy().set_requires_grad(true),
                                ..*p
                            })
                            .collect();
                        optimiser = Optimiser::new(&settings(kind), &list).unwrap();
                        optimiser.load(state).unwrap();
                    }
                    crate::shim::clear_gradients(&optimiser.parameters()).unwrap();
                    set(&list).unwrap();
                    optimiser.step(0.01, None).unwrap();
                }
                list.iter().flat_map(|p| Vec::<f64>::try_from(p.tensor.detach()).unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(run(None), run(Some(3)));
        }
    }

    #[test]
    fn a_state_of_another_model_is_refused_by_name() {
        let list = [parameter("a", &[1.], true, true)];
        let mut optimiser = Optimiser::new(&settings(OptimiserKind::Adam), &list).unwrap();
        let good = || -> BTreeMap<String, Tensor> {
            Optimiser::new(&settings(OptimiserKind::Adam), &list).unwrap().state().into_iter().collect()
        };
        let mut state = good();
        state.remove("a/second");
        assert!(optimiser.load(state).unwrap_err().to_string().contains("a/second"));
        let mut state = good();
        state.insert("z/first".into(), Tensor::from(0f32));
        assert!(optimiser.load(state).unwrap_err().to_string().contains("z/first"));
        let mut state = good();
        state.insert("a/first".into(), Tensor::from_slice(&[1f64, 2.]));
        assert!(optimiser.load(state).unwrap_err().to_string().contains("[2]"));
    }

    #[test]
    fn bad_gradients_are_named() {
        let list = [parameter("a", &[0.], true, true), parameter("b", &[1.], true, true)];
        let optimiser = Optimiser::new(&settings(OptimiserKind::Adam), &list).unwrap();
        (list[0].tensor.log() + &list[1].tensor).sum(Kind::Double).backward();
        assert_eq!(optimiser.not_finite(), ["a"]);
    }
}
