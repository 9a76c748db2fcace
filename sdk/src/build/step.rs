//! How a step is written, and the program of an update rule.

use std::cell::RefCell;
use std::rc::Rc;

use crate::program::{MapRole, Op, Program, Scope, State, StateInit, TensorType, Training, entry};

use super::expr::Expr;
use super::graph::{Graph, Place, Shared, constants, mistake, mistake_at};
use super::init::Init;
use super::signature::{Signature, StateStart, initial};
use super::tidy::tidy;

/// One step of an update rule, for one head of one sequence.
///
/// Shapes are those of the [`Signature`]: there is no axis for batch, time or heads.
pub struct Step {
    graph: Graph,
    inputs: Vec<(String, Expr)>,
    states: Vec<(String, Expr)>,
    parameters: Vec<(String, Expr)>,
    written: RefCell<Vec<(String, Expr)>>,
    output: Vec<usize>,
    extras: Vec<(String, Vec<usize>)>,
    key: usize,
    layers: usize,
}

#[track_caller]
fn named(what: &str, name: &str, list: &[(String, Expr)]) -> Expr {
    match list.iter().find(|(n, _)| n == name) {
        Some((_, e)) => e.clone(),
        None => {
            let names: Vec<&str> = list.iter().map(|(n, _)| n.as_str()).collect();
            let names = if names.is_empty() { "none".to_string() } else { names.join(", ") };
            mistake(format!("no {what} `{name}` was declared; declared are: {names}"))
        }
    }
}

constants!(Step);

impl Step {
    /// The query `q`, key `k` and value `v` of [`Signature::new`].
    #[track_caller]
    pub fn query_key_value(&self) -> (Expr, Expr, Expr) {
        (self.input("q"), self.input("k"), self.input("v"))
    }
    /// A declared query, key or value, after the feature map where it applies.
    #[track_caller]
    pub fn input(&self, name: &str) -> Expr {
        named("input", name, &self.inputs)
    }
    /// A declared signal, raw.
    #[track_caller]
    pub fn signal(&self, name: &str) -> Expr {
        named("signal", name, &self.inputs)
    }
    /// A state as it is before the step.
    #[track_caller]
    pub fn state(&self, name: &str) -> Expr {
        named("state", name, &self.states)
    }
    /// A declared parameter.
    #[track_caller]
    pub fn parameter(&self, name: &str) -> Expr {
        named("parameter", name, &self.parameters)
    }
    /// Steps since the reset, an integer.
    #[track_caller]
    pub fn index(&self) -> Expr {
        self.graph.node(Op::StepIndex, &[])
    }
    /// Row of a table `[layers, ..]` (a matrix or a vector) for the layer that these fast weights are in.
    ///
    /// The layer comes as a constant, as everything that differs between layers does, so executors need not know of it.
    #[track_caller]
    pub fn at_layer(&self, table: &Expr) -> Expr {
        let layers = self.layers;
        let shape = table.shape();
        if shape.first() != Some(&layers) || shape.len() > 2 {
            mistake(format!("expected a table with a row for each of {layers} layers (`dims.layers`), got {}", table.ty()));
        }
        let which = Init::program(move |random, _| random.layer().one_hot(layers));
        let which = self.graph.parameter("layer", &[layers], Scope::Layer, Training::Constant, &which);
        if shape.len() == 2 { table.matvec_t(which) } else { table.dot(which) }
    }
    /// The recipe's feature map, for a key: `[key_raw]` to `[key]`.
    #[track_caller]
    pub fn phi(&self, x: impl Into<Expr>) -> Expr {
        let x = x.into();
        x.graph.node(Op::Phi { role: MapRole::Key, size: self.key }, &[&x])
    }
    /// The recipe's feature map, for a query: `[key_raw]` to `[key]`.
    #[track_caller]
    pub fn phi_query(&self, x: impl Into<Expr>) -> Expr {
        let x = x.into();
        x.graph.node(Op::Phi { role: MapRole::Query, size: self.key }, &[&x])
    }
    /// `count` repetitions of `body`, which maps (carried values, values of `with`) to the new carried values.
    ///
    /// The body is described once. Values from outside are handed over in `with`; they are the same in every repetition.
    /// A body may repeat again, with values of its own.
    #[track_caller]
    pub fn repeat(
        &self,
        count: usize,
        carried: &[&Expr],
        with: &[&Expr],
        body: impl FnOnce(&[Expr], &[Expr]) -> Vec<Expr>,
    ) -> Vec<Expr> {
        // Inside of another body the values belong to that body's function, not to the step.
        let graph = carried.first().map_or(&self.graph, |c| &c.graph);
        graph.repeat("repeat", "", count, carried, with, |_, carried, with| body(carried, with))
    }
    /// Sets the value of a state after the step.
    #[track_caller]
    pub fn set_state(&self, name: &str, value: impl Into<Expr>) {
        let (value, state) = (value.into(), named("state", name, &self.states));
        if value.ty() != state.ty() {
            mistake(format!("state `{name}` is {}, the new value is {}", state.ty(), value.ty()));
        }
        self.write(&format!("state.{name}"), &format!("state `{name}`"), value);
    }
    /// Sets the output.
    #[track_caller]
    pub fn output(&self, value: impl Into<Expr>) {
        let value = value.into();
        self.expect(&value, "the output", &self.output);
        self.write("output", "the output", value);
    }
    /// Sets an extra output.
    #[track_caller]
    pub fn extra(&self, name: &str, value: impl Into<Expr>) {
        let value = value.into();
        let what = format!("extra output `{name}`");
        match self.extras.iter().find(|(n, _)| n == name) {
            Some((_, shape)) => self.expect(&value, &what, shape),
            None => mistake(format!("no {what} was declared; say `.extra(\"{name}\", ..)` in the signature")),
        }
        self.write(&format!("extra.{name}"), &what, value);
    }
    #[track_caller]
    fn expect(&self, value: &Expr, what: &str, shape: &[usize]) {
        let wanted = TensorType::float(shape);
        if value.tensor_type() != wanted {
            mistake(format!("{what} is declared as {wanted}, the value is {}", value.ty()));
        }
    }
    #[track_caller]
    fn write(&self, name: &str, what: &str, value: Expr) {
        if !Rc::ptr_eq(&value.graph.0, &self.graph.0) {
            mistake(format!("{what} is set to a value of another function: return it from the body of the repetition"));
        }
        let mut written = self.written.borrow_mut();
        if written.iter().any(|(n, _)| n == name) {
            mistake(format!("{what} is set twice"));
        }
        written.push((name.to_string(), value));
    }
}

fn build_step(name: &str, signature: &Signature, shared: &Rc<RefCell<Shared>>, body: &dyn Fn(&mut Step)) -> u32 {
    let graph = Graph::new(name, shared);
    let inputs = signature
        .inputs
        .iter()
        .map(|i| {
            let ty = TensorType::float(&i.full_shape()).into();
            (i.name.clone(), graph.argument_at(signature.place(&i.name), &i.name, ty))
        })
        .collect();
    let states: Vec<(String, Expr)> = signature
        .states
        .iter()
        .enumerate()
        .map(|(i, (s, _))| (s.name.clone(), graph.node_at(signature.place(&s.name), Op::State { index: i as u32 }, &[])))
        .collect();
    for (state, start) in &signature.states {
        if let StateStart::Trained(init) = start {
            let (at, training) = (signature.place(&state.name), Training::Trained { decay: true });
            graph.parameter_at(at, &initial(&state.name), &state.shape, Scope::Head, training, init);
        }
    }
    let parameters = signature
        .parameters
        .iter()
        .map(|p| {
            let at = signature.place(&p.name);
            (p.name.clone(), graph.parameter_at(at, &p.name, &p.shape, p.scope, p.training, &p.init))
        })
        .collect();
    let mut step = Step {
        graph: graph.clone(),
        inputs,
        states,
        parameters,
        written: RefCell::default(),
        output: signature.output.clone(),
        extras: signature.extras.clone(),
        key: signature.dims.key,
        layers: signature.dims.layers,
    };
    body(&mut step);
    let written = step.written.into_inner();
    // The order of the results is that of the declaration, whatever the order in which they were set.
    let finish = |output: &str, at: &'static Place, what: String, how: String| match written.iter().find(|(n, _)| n == output) {
        Some((_, value)) => graph.output(output, value),
        None => mistake_at(at, format!("{what} is never set: `{name}` must call `s.{how}`")),
    };
    finish("output", signature.output_at, "the output".into(), "output(..)".into());
    for (name, _) in &signature.extras {
        let (what, how) = (format!("extra output `{name}`"), format!("extra(\"{name}\", ..)"));
        finish(&format!("extra.{name}"), signature.place(name), what, how);
    }
    for (State { name, .. }, _) in &signature.states {
        let (what, how) = (format!("state `{name}`"), format!("set_state(\"{name}\", ..)"));
        finish(&format!("state.{name}"), signature.place(name), what, how);
    }
    graph.finish()
}

/// Builds the program of an update rule.
pub(crate) fn build_rule(
    signature: Signature,
    step: &dyn Fn(&mut Step),
    restated: Option<&dyn Fn(&mut Step)>,
    mut program: Program,
) -> Program {
    signature.check();
    let shared = Rc::new(RefCell::new(Shared::default()));
    let states: Vec<State> = signature
        .states
        .iter()
        .map(|(s, start)| {
            let init = match start {
                StateStart::Zeros => StateInit::Zeros,
                StateStart::Constant(c) => StateInit::Constant(*c),
                StateStart::Trained(_) => StateInit::Parameter(initial(&s.name)),
            };
            State { init, ..s.clone() }
        })
        .collect();
    shared.borrow_mut().states = states.clone();
    program.entries.push((entry::STEP.into(), build_step(entry::STEP, &signature, &shared, step)));
    if let Some(restated) = restated {
        program.entries.push((entry::RESTATED.into(), build_step(entry::RESTATED, &signature, &shared, restated)));
    }
    program.inputs = signature.inputs;
    program.states = states;
    tidy(program, shared.take())
}
