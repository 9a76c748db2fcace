//! What an independent implementation of a rule is, and how its gradients are found.

use std::collections::BTreeMap;

use fwp_tests::arrays::{Array, Arrays};

use crate::dual::{Dual, Matrix, Vector};

/// Sizes of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub batch: usize,
    pub time: usize,
    pub heads: usize,
    /// Of a key before a feature map; without one, of a key.
    pub key: usize,
    pub value: usize,
}

/// Sizes that are all different primes show transposed axes.
pub const PRIMES: Sizes = Sizes { batch: 2, time: 11, heads: 3, key: 7, value: 5 };
/// Sizes that are all equal show broadcast ones.
pub const EQUAL: Sizes = Sizes { batch: 4, time: 4, heads: 4, key: 4, value: 4 };

/// What a tensor of the file is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// One a token and head, or group of heads.
    Input { heads: usize },
    /// A parameter that every head has its own of.
    Parameter,
    /// A parameter that all heads share.
    Shared,
    /// A state.
    State,
}

/// A tensor that a rule reads.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub role: Role,
    /// Of one head and token.
    pub shape: Vec<usize>,
    /// Its numbers in the file are drawn between these.
    pub range: (f64, f64),
    /// A square matrix that is symmetric and not negative; only the symmetric part of its gradient is defined.
    pub symmetric: bool,
}

/// Every matrix of an array becomes `f(matrix, i, j)`.
fn squares(array: &mut Array, f: impl Fn(&dyn Fn(usize, usize) -> f64, usize, usize) -> f64) {
    let n = *array.shape.last().expect("a matrix");
    for matrix in array.data.chunks_exact_mut(n * n) {
        let old = matrix.to_vec();
        matrix.iter_mut().enumerate().for_each(|(at, x)| *x = f(&|i, j| old[i * n + j], at / n, at % n));
    }
}

/// The symmetric part of every matrix.
pub fn symmetrise(array: &mut Array) {
    squares(array, |m, i, j| 0.5 * (m(i, j) + m(j, i)));
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its name in the file.
    pub fn key(&self) -> String {
        match self.role {
            Role::Input { .. } => self.name.clone(),
            Role::Parameter | Role::Shared => format!("param.{}", self.name),
            Role::State => format!("state.{}", self.name),
        }
    }

    /// Its shape in the file.
    pub fn full_shape(&self, n: &Sizes) -> Vec<usize> {
        let mut shape = match self.role {
            Role::Input { heads } => vec![n.batch, n.time, heads],
            Role::Parameter => vec![n.heads],
            Role::Shared => vec![],
            Role::State => vec![n.batch, n.heads],
        };
        shape.extend(&self.shape);
        shape
    }

    /// Where its numbers for a sequence, head and step begin in the file.
    fn at(&self, n: &Sizes, b: usize, h: usize, t: usize) -> usize {
        let place = match self.role {
            // Neighbouring heads share a group.
            Role::Input { heads } => (b * n.time + t) * heads + h / (n.heads / heads),
            Role::Parameter => h,
            Role::Shared => 0,
            Role::State => b * n.heads + h,
        };
        place * self.len()
    }

    pub fn random(&self, n: &Sizes) -> Array {
        let mut array = Array::random(&self.key(), &self.full_shape(n));
        let (low, high) = self.range;
        array.data.iter_mut().for_each(|x| *x = low + (high - low) * 0.5 * (*x + 1.0));
        if self.symmetric {
            let n = self.shape[0];
            squares(&mut array, |m, i, j| (0..n).map(|l| m(i, l) * m(j, l)).sum());
        }
        array
    }
}

/// One head of one sequence at one step: what the rule reads by name, and what it sets.
pub struct Head {
    /// Number of the step, from 0.
    pub t: usize,
    /// Number of the head, from 0.
    pub head: usize,
    /// Whether signals are given as they are used.
    effective: bool,
    values: BTreeMap<String, (Vec<usize>, Vec<Dual>)>,
}

impl Head {
    fn value(&self, name: &str, axes: usize) -> &(Vec<usize>, Vec<Dual>) {
        let value = self.values.get(name).unwrap_or_else(|| panic!("there is no `{name}`"));
        assert_eq!(value.0.len(), axes, "`{name}`");
        value
    }

    pub fn scalar(&self, name: &str) -> Dual {
        self.value(name, 0).1[0]
    }

    pub fn vector(&self, name: &str) -> Vector {
        self.value(name, 1).1.clone()
    }

    pub fn matrix(&self, name: &str) -> Matrix {
        let (shape, data) = self.value(name, 2);
        Matrix { rows: shape[0], columns: shape[1], data: data.clone() }
    }

    /// Matrices of a stack.
    pub fn stack(&self, name: &str) -> Vec<Matrix> {
        let (shape, data) = self.value(name, 3);
        let parts = data.chunks_exact(shape[1] * shape[2]);
        parts.map(|part| Matrix { rows: shape[1], columns: shape[2], data: part.to_vec() }).collect()
    }

    /// A signal as it is used, from what a slow net emits, or as it is given where signals are given so.
    pub fn activated(&self, name: &str, f: impl Fn(Dual) -> Dual) -> Dual {
        if self.effective { self.scalar(name) } else { f(self.scalar(name)) }
    }

    /// The same for a signal of several numbers; `f` also gets the place.
    pub fn all_activated(&self, name: &str, f: impl Fn(usize, Dual) -> Dual) -> Vector {
        let given = self.vector(name);
        if self.effective { given } else { given.into_iter().enumerate().map(|(i, x)| f(i, x)).collect() }
    }

    pub fn qkv(&self) -> (Vector, Vector, Vector) {
        (self.vector("q"), self.vector("k"), self.vector("v"))
    }

    pub fn set_scalar(&mut self, name: &str, x: Dual) {
        self.values.insert(name.into(), (vec![], vec![x]));
    }

    pub fn set_vector(&mut self, name: &str, x: Vector) {
        self.values.insert(name.into(), (vec![x.len()], x));
    }

    pub fn set_matrix(&mut self, name: &str, x: Matrix) {
        self.values.insert(name.into(), (vec![x.rows, x.columns], x.data));
    }

    pub fn set_stack(&mut self, name: &str, x: Vec<Matrix>) {
        let shape = vec![x.len(), x[0].rows, x[0].columns];
        self.values.insert(name.into(), (shape, x.into_iter().flat_map(|m| m.data).collect()));
    }
}

/// One step of a rule: reads its inputs, parameters and states, sets its states and `extra.NAME`, gives its output.
pub type Step = Box<dyn Fn(&mut Head) -> Vector>;

/// Sets values that the file does not hold: initial states that are not zero, and parameters' own initial values.
pub type Start = Box<dyn Fn(&mut Head)>;

/// An independent implementation of a rule in one configuration.
pub struct Rule {
    /// The part that is compared: the rule or its feature map.
    pub subject: String,
    /// Name of the rule.
    pub plugin: String,
    /// Its configuration and more, as command line.
    pub options: String,
    pub tensors: Vec<Tensor>,
    /// Outputs beside `o`: names and shapes.
    pub extras: Vec<(String, Vec<usize>)>,
    pub output: usize,
    /// States that the file does not hold and that are not compared, because the order of their elements is the plugin's own.
    pub hidden: Vec<String>,
    /// Whether signals are given as they are used.
    pub effective: bool,
    pub step: Step,
    pub start: Start,
}

/// Outputs, final states and gradients by their names in the output file.
pub type Results = Arrays;

impl Rule {
    /// Without inputs; the step comes last.
    pub fn bare(plugin: &str, n: &Sizes) -> Rule {
        Rule {
            subject: plugin.into(),
            plugin: plugin.into(),
            options: String::new(),
            tensors: Vec::new(),
            extras: Vec::new(),
            output: n.value,
            hidden: Vec::new(),
            effective: false,
            step: Box::new(|_| panic!("the rule has no step")),
            start: Box::new(|_| ()),
        }
    }

    /// With q, k and v.
    pub fn new(plugin: &str, n: &Sizes) -> Rule {
        Rule::bare(plugin, n).input(n, "q", [n.key]).input(n, "k", [n.key]).input(n, "v", [n.value])
    }

    /// `--set KEY=VALUE`
    pub fn set(mut self, key: &str, value: impl std::fmt::Display) -> Rule {
        self.options += &format!(" --set {key}={value}");
        self
    }

    /// More of the command line.
    pub fn option(mut self, text: &str) -> Rule {
        self.options += &format!(" {text}");
        self
    }

    /// With a feature map, which is then what is compared.
    pub fn feature_map(mut self, name: &str) -> Rule {
        self.subject = name.into();
        self.option(&format!("--feature-map {name}"))
    }

    fn tensor(mut self, name: &str, role: Role, shape: &[usize]) -> Rule {
        self.tensors.push(Tensor { name: name.into(), role, shape: shape.into(), range: (-1.0, 1.0), symmetric: false });
        self
    }

    pub fn input<const N: usize>(self, n: &Sizes, name: &str, shape: [usize; N]) -> Rule {
        self.tensor(name, Role::Input { heads: n.heads }, &shape)
    }

    /// An input that groups of heads share.
    pub fn grouped<const N: usize>(self, groups: usize, name: &str, shape: [usize; N]) -> Rule {
        self.tensor(name, Role::Input { heads: groups }, &shape)
    }

    pub fn parameter<const N: usize>(self, name: &str, shape: [usize; N]) -> Rule {
        self.tensor(name, Role::Parameter, &shape)
    }

    pub fn shared<const N: usize>(self, name: &str, shape: [usize; N]) -> Rule {
        self.tensor(name, Role::Shared, &shape)
    }

    pub fn state<const N: usize>(self, name: &str, shape: [usize; N]) -> Rule {
        self.tensor(name, Role::State, &shape)
    }

    /// With these signals as they are used, between 0 and 1, and without the parameters that only made them.
    pub fn effective(mut self, signals: &[&str], without: &[&str]) -> Rule {
        self.effective = true;
        self.tensors.retain(|t| !without.contains(&t.name.as_str()));
        signals.iter().fold(self, |rule, name| rule.between(name, 0.1, 0.9)).option("--signals effective")
    }

    fn named(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).expect("a tensor of the name")
    }

    /// Numbers of a tensor lie between these in the file.
    pub fn between(mut self, name: &str, low: f64, high: f64) -> Rule {
        self.named(name).range = (low, high);
        self
    }

    /// A tensor is a symmetric matrix that is not negative.
    pub fn symmetric(mut self, name: &str) -> Rule {
        self.named(name).symmetric = true;
        self
    }

    pub fn extra<const N: usize>(mut self, name: &str, shape: [usize; N]) -> Rule {
        self.extras.push((format!("extra.{name}"), shape.into()));
        self
    }

    /// Leaves a state out of the comparison.
    pub fn hide(mut self, name: &str) -> Rule {
        self.hidden.push(format!("state.{name}"));
        self
    }

    pub fn start(mut self, start: impl Fn(&mut Head) + 'static) -> Rule {
        self.start = Box::new(start);
        self
    }

    pub fn step(mut self, step: impl Fn(&mut Head) -> Vector + 'static) -> Rule {
        self.step = Box::new(step);
        self
    }

    /// Names and shapes of what the rule gives: output, extras and final states.
    pub fn outputs(&self, n: &Sizes) -> Vec<(String, Vec<usize>)> {
        let token = |shape: &[usize]| [&[n.batch, n.time, n.heads], shape].concat();
        let mut outputs = vec![("o".to_string(), token(&[self.output]))];
        outputs.extend(self.extras.iter().map(|(name, shape)| (name.clone(), token(shape))));
        let states = self.tensors.iter().filter(|t| t.role == Role::State && !self.hidden.contains(&t.key()));
        outputs.extend(states.map(|t| (t.key(), t.full_shape(n))));
        outputs
    }

    /// Outputs, final states and gradients of all tensors that are given, for the sum of all outputs and states, each
    /// weighted by `grad.NAME`.
    pub fn run(&self, n: &Sizes, given: &Arrays) -> Results {
        let mut results: Results = self.outputs(n).iter().map(|(name, shape)| (name.clone(), Array::zeros(shape))).collect();
        for tensor in self.tensors.iter().filter(|t| given.contains_key(&t.key())) {
            results.insert(format!("grad.{}", tensor.key()), Array::zeros(&tensor.full_shape(n)));
        }
        for b in 0..n.batch {
            for h in 0..n.heads {
                Lane { rule: self, n, b, h, given }.collect(&mut results);
            }
        }
        results
    }
}

/// One head of one sequence.
struct Lane<'a> {
    rule: &'a Rule,
    n: &'a Sizes,
    b: usize,
    h: usize,
    given: &'a Arrays,
}

/// A number of the file that is moved: tensor, step and place in it.
type Moved<'a> = Option<(&'a str, usize, usize)>;

impl Lane<'_> {
    fn collect(&self, results: &mut Results) {
        self.walk(None, |name, from, values| {
            let target = &mut results.get_mut(name).expect("a declared output").data[from..][..values.len()];
            target.iter_mut().zip(values).for_each(|(t, x)| *t = x.value);
        });
        for tensor in self.rule.tensors.iter().filter(|t| self.given.contains_key(&t.key())) {
            let steps = if matches!(tensor.role, Role::Input { .. }) { self.n.time } else { 1 };
            let gradient = results.get_mut(&format!("grad.{}", tensor.key())).expect("made above");
            for t in 0..steps {
                for i in 0..tensor.len() {
                    let mut slope = 0.0;
                    self.walk(Some((&tensor.name, t, i)), |name, from, values| {
                        let weights = &self.given[&format!("grad.{name}")].data[from..];
                        slope += values.iter().zip(weights).map(|(x, w)| x.slope * w).sum::<f64>();
                    });
                    gradient.data[tensor.at(self.n, self.b, self.h, t) + i] += slope;
                }
            }
        }
    }

    /// All steps; `see` gets every output by name, with its place in the file.
    fn walk(&self, moved: Moved<'_>, mut see: impl FnMut(&str, usize, &[Dual])) {
        let (n, b, h) = (self.n, self.b, self.h);
        let mut head = Head { t: 0, head: h, effective: self.rule.effective, values: BTreeMap::new() };
        let take = |head: &mut Head, tensor: &Tensor, t: usize| {
            let values = match self.given.get(&tensor.key()) {
                Some(array) => array.data[tensor.at(n, b, h, t)..][..tensor.len()].iter().map(|x| Dual::from(*x)).collect(),
                None => vec![Dual::ZERO; tensor.len()],
            };
            let mut values: Vec<Dual> = values;
            if let Some((name, step, i)) = moved
                && name == tensor.name
                && step == t
            {
                values[i].slope = 1.0;
            }
            head.values.insert(tensor.name.clone(), (tensor.shape.clone(), values));
        };
        let is_input = |tensor: &&Tensor| matches!(tensor.role, Role::Input { .. });
        for tensor in self.rule.tensors.iter().filter(|t| !is_input(t)) {
            take(&mut head, tensor, 0);
        }
        let absent: Vec<&Tensor> = self.rule.tensors.iter().filter(|t| !self.given.contains_key(&t.key())).collect();
        if !absent.is_empty() {
            let mut own = Head { t: 0, head: h, effective: self.rule.effective, values: head.values.clone() };
            (self.rule.start)(&mut own);
            for tensor in absent {
                head.values.insert(tensor.name.clone(), own.values[&tensor.name].clone());
            }
        }
        for t in 0..n.time {
            head.t = t;
            self.rule.tensors.iter().filter(is_input).for_each(|tensor| take(&mut head, tensor, t));
            let o = (self.rule.step)(&mut head);
            assert_eq!(o.len(), self.rule.output, "the size of the output");
            let token = (b * n.time + t) * n.heads + h;
            see("o", token * o.len(), &o);
            for (name, shape) in &self.rule.extras {
                see(name, token * shape.iter().product::<usize>(), &head.values[name].1);
            }
        }
        for tensor in self.rule.tensors.iter().filter(|t| t.role == Role::State && !self.rule.hidden.contains(&t.key())) {
            see(&tensor.key(), tensor.at(n, b, h, 0), &head.values[&tensor.name].1);
        }
    }
}
