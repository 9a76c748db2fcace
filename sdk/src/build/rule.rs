//! Update rules: what they declare and how a step is written.

use std::cell::RefCell;
use std::rc::Rc;

use crate::program::{Function, Op, Program, Role, RuleInput, Scope, State, StateInit, TensorType, Training, entry};

use super::expr::Expr;
use super::graph::{Graph, Shared, mistake};
use super::init::Init;

/// The sizes that a rule is described for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dims {
    /// Number of heads.
    pub heads: usize,
    /// Features of a raw key or query, before the feature map.
    pub key_raw: usize,
    /// Features of a key or query after the feature map.
    pub key: usize,
    /// Features of a value.
    pub value: usize,
}

/// Initial value of a state.
#[derive(Clone)]
pub enum StateStart {
    /// Zeros.
    Zeros,
    /// Every element the same.
    Constant(f64),
    /// A trained parameter of the state's shape, one a head, with this initialiser.
    Trained(Init),
}

#[derive(Clone)]
struct RuleParameter {
    name: String,
    shape: Vec<usize>,
    scope: Scope,
    training: Training,
    init: Init,
}

enum Last {
    Nothing,
    Input,
    State,
    Parameter,
}

/// What an update rule declares: inputs with their roles, states, parameters and outputs.
pub struct Signature {
    dims: Dims,
    inputs: Vec<RuleInput>,
    states: Vec<(State, StateStart)>,
    parameters: Vec<RuleParameter>,
    output: Vec<usize>,
    extras: Vec<(String, Vec<usize>)>,
    last: Last,
}

impl Signature {
    /// The usual inputs: query `q` and key `k` after the feature map, value `v`; the output has the value's size.
    pub fn new(dims: Dims) -> Signature {
        Signature::without_inputs(dims).query("q", [dims.key]).key("k", [dims.key]).value("v", [dims.value])
    }

    /// No inputs yet, for a rule that declares its own. The output has the value's size until [`Signature::output`] says otherwise.
    pub fn without_inputs(dims: Dims) -> Signature {
        Signature {
            dims,
            inputs: Vec::new(),
            states: Vec::new(),
            parameters: Vec::new(),
            output: vec![dims.value],
            extras: Vec::new(),
            last: Last::Nothing,
        }
    }

    #[track_caller]
    fn input(mut self, name: &str, role: Role, shape: &[usize]) -> Signature {
        self.fresh(name);
        let input = RuleInput { name: name.into(), role, raw: false, count: None, heads: None, shape: shape.into() };
        self.inputs.push(input);
        self.last = Last::Input;
        self
    }

    #[track_caller]
    fn fresh(&self, name: &str) {
        let taken = self.inputs.iter().any(|i| i.name == name)
            || self.states.iter().any(|s| s.0.name == name)
            || self.parameters.iter().any(|p| p.name == name)
            || matches!(name, "o" | "write" | "reset");
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.is_empty();
        if taken || !plain {
            mistake(format!("`{name}` cannot be declared: it is taken, reserved or not a plain name"));
        }
    }

    /// A query; the recipe's feature map is applied to it unless [`Signature::raw`] follows.
    #[track_caller]
    pub fn query<const N: usize>(self, name: &str, shape: [usize; N]) -> Signature {
        self.input(name, Role::Query, &shape)
    }
    /// A key; the recipe's feature map is applied to it unless [`Signature::raw`] follows.
    #[track_caller]
    pub fn key<const N: usize>(self, name: &str, shape: [usize; N]) -> Signature {
        self.input(name, Role::Key, &shape)
    }
    /// A value.
    #[track_caller]
    pub fn value<const N: usize>(self, name: &str, shape: [usize; N]) -> Signature {
        self.input(name, Role::Value, &shape)
    }
    /// Any other signal of the slow net, raw: the rule applies the activation.
    #[track_caller]
    pub fn signal<const N: usize>(self, name: &str, shape: [usize; N]) -> Signature {
        self.input(name, Role::Gate, &shape)
    }

    #[track_caller]
    fn last_input(&mut self) -> &mut RuleInput {
        match (&self.last, self.inputs.last_mut()) {
            (Last::Input, Some(i)) => i,
            _ => mistake("this must follow the declaration of an input"),
        }
    }

    /// The feature map leaves the input just declared alone.
    #[track_caller]
    pub fn raw(mut self) -> Signature {
        self.last_input().raw = true;
        self
    }
    /// The input just declared comes `n` times a token, as a leading axis.
    #[track_caller]
    pub fn count(mut self, n: usize) -> Signature {
        self.last_input().count = Some(n.max(1));
        self
    }
    /// The input just declared is shared by groups of heads; `heads` must divide the number of heads.
    #[track_caller]
    pub fn heads(mut self, heads: usize) -> Signature {
        if heads == 0 || !self.dims.heads.is_multiple_of(heads) {
            mistake(format!("{heads} does not divide the {} heads", self.dims.heads));
        }
        self.last_input().heads = Some(heads);
        self
    }

    /// A state of every head, with its initial value.
    #[track_caller]
    pub fn state<const N: usize>(mut self, name: &str, shape: [usize; N], start: StateStart) -> Signature {
        self.fresh(name);
        let state = State { name: name.into(), shape: shape.into(), init: StateInit::Zeros, held: 1 };
        self.states.push((state, start));
        self.last = Last::State;
        self
    }

    /// The state just declared is held: its next value takes effect only after every `steps`-th step since the reset.
    #[track_caller]
    pub fn held(mut self, steps: usize) -> Signature {
        match (&self.last, self.states.last_mut()) {
            (Last::State, Some((s, _))) if steps > 0 => s.held = steps,
            _ => mistake("this must follow the declaration of a state"),
        }
        self
    }

    /// A trained parameter, one a head and layer, with weight decay.
    #[track_caller]
    pub fn parameter<const N: usize>(mut self, name: &str, shape: [usize; N], init: Init) -> Signature {
        self.fresh(name);
        let training = Training::Trained { decay: true };
        self.parameters.push(RuleParameter { name: name.into(), shape: shape.into(), scope: Scope::Head, training, init });
        self.last = Last::Parameter;
        self
    }

    #[track_caller]
    fn last_parameter(&mut self) -> &mut RuleParameter {
        match (&self.last, self.parameters.last_mut()) {
            (Last::Parameter, Some(p)) => p,
            _ => mistake("this must follow the declaration of a parameter"),
        }
    }

    /// What the parameter just declared is shared by.
    #[track_caller]
    pub fn scope(mut self, scope: Scope) -> Signature {
        self.last_parameter().scope = scope;
        self
    }
    /// Weight decay leaves the parameter just declared alone.
    #[track_caller]
    pub fn no_decay(mut self) -> Signature {
        self.last_parameter().training = Training::Trained { decay: false };
        self
    }
    /// The parameter just declared keeps its initial values.
    #[track_caller]
    pub fn constant(mut self) -> Signature {
        self.last_parameter().training = Training::Constant;
        self
    }

    /// Sizes of the output where they are not the value's.
    pub fn output<const N: usize>(mut self, shape: [usize; N]) -> Signature {
        self.output = shape.into();
        self
    }
    /// An extra named output beside the output.
    #[track_caller]
    pub fn extra<const N: usize>(mut self, name: &str, shape: [usize; N]) -> Signature {
        self.fresh(name);
        self.extras.push((name.into(), shape.into()));
        self
    }
}

/// One step of an update rule, for one head of one sequence.
pub struct Step {
    graph: Graph,
    inputs: Vec<(String, Expr)>,
    states: Vec<(String, Expr)>,
    parameters: Vec<(String, Expr)>,
    written: RefCell<Vec<(String, Expr)>>,
    output: Vec<usize>,
    extras: Vec<(String, Vec<usize>)>,
    key: usize,
}

#[track_caller]
fn named(what: &str, name: &str, list: &[(String, Expr)]) -> Expr {
    match list.iter().find(|(n, _)| n == name) {
        Some((_, e)) => e.clone(),
        None => {
            let names: Vec<&str> = list.iter().map(|(n, _)| n.as_str()).collect();
            mistake(format!("no {what} `{name}` was declared; declared are: {}", names.join(", ")))
        }
    }
}

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
    /// A float scalar.
    #[track_caller]
    pub fn constant(&self, value: f64) -> Expr {
        self.graph.node(Op::Constant { value }, &[])
    }
    /// A constant tensor, every element `value`.
    #[track_caller]
    pub fn full(&self, shape: &[usize], value: f64) -> Expr {
        self.graph.node(Op::Full { shape: shape.to_vec(), value }, &[])
    }
    /// Identity matrix.
    #[track_caller]
    pub fn eye(&self, n: usize) -> Expr {
        self.graph.node(Op::Eye { n }, &[])
    }
    /// The integers 0 to n - 1.
    #[track_caller]
    pub fn arange(&self, n: usize) -> Expr {
        self.graph.node(Op::Arange { n }, &[])
    }
    /// The recipe's feature map, for a key.
    #[track_caller]
    pub fn phi(&self, x: &Expr) -> Expr {
        self.graph.node(Op::Phi { role: "key".into(), size: self.key }, &[x])
    }
    /// The recipe's feature map, for a query.
    #[track_caller]
    pub fn phi_query(&self, x: &Expr) -> Expr {
        self.graph.node(Op::Phi { role: "query".into(), size: self.key }, &[x])
    }
    /// `count` repetitions of `body`, which takes and returns the carried values; values used from outside are handed over in `with`.
    #[track_caller]
    pub fn repeat(
        &self,
        count: usize,
        carried: &[&Expr],
        with: &[&Expr],
        body: impl FnOnce(&[Expr], &[Expr]) -> Vec<Expr>,
    ) -> Vec<Expr> {
        let inner = Graph::new("repeat", &self.graph.shared());
        let declare = |prefix: &str, values: &[&Expr]| -> Vec<Expr> {
            values.iter().enumerate().map(|(i, v)| inner.argument(&format!("{prefix}{i}"), v.ty())).collect()
        };
        let (inner_carried, inner_with) = (declare("carried", carried), declare("with", with));
        for (i, result) in body(&inner_carried, &inner_with).iter().enumerate() {
            inner.output(&format!("carried{i}"), result);
        }
        let op = Op::Loop { function: inner.finish(), name: String::new(), count, carried: carried.len() };
        let operands: Vec<&Expr> = carried.iter().chain(with).copied().collect();
        self.graph.node(op, &operands).elements()
    }
    /// Sets the value of a state after the step.
    #[track_caller]
    pub fn set_state(&self, name: &str, value: impl Into<Expr>) {
        let (value, state) = (value.into(), named("state", name, &self.states));
        if value.ty() != state.ty() {
            mistake(format!("state `{name}` is {}, the new value is {}", state.ty(), value.ty()));
        }
        self.write(&format!("state.{name}"), value);
    }
    /// Sets the output.
    #[track_caller]
    pub fn output(&self, value: impl Into<Expr>) {
        let value = value.into();
        self.expect(&value, "the output", &self.output);
        self.write("output", value);
    }
    /// Sets an extra output.
    #[track_caller]
    pub fn extra(&self, name: &str, value: impl Into<Expr>) {
        let value = value.into();
        match self.extras.iter().find(|(n, _)| n == name) {
            Some((_, shape)) => self.expect(&value, &format!("extra output `{name}`"), shape),
            None => mistake(format!("no extra output `{name}` was declared")),
        }
        self.write(&format!("extra.{name}"), value);
    }
    #[track_caller]
    fn expect(&self, value: &Expr, what: &str, shape: &[usize]) {
        let wanted = TensorType::float(shape);
        if value.tensor_type() != wanted {
            mistake(format!("{what} is declared as {wanted}, the value is {}", value.ty()));
        }
    }
    #[track_caller]
    fn write(&self, name: &str, value: Expr) {
        let mut written = self.written.borrow_mut();
        if written.iter().any(|(n, _)| n == name) {
            mistake(format!("`{name}` is set twice"));
        }
        written.push((name.to_string(), value));
    }
}

fn build_step(name: &str, signature: &Signature, shared: &Rc<RefCell<Shared>>, body: &dyn Fn(&mut Step)) -> Result<u32, String> {
    let graph = Graph::new(name, shared);
    let inputs = signature
        .inputs
        .iter()
        .map(|i| (i.name.clone(), graph.argument(&i.name, TensorType::float(&i.full_shape()).into())))
        .collect();
    let states: Vec<(String, Expr)> = signature
        .states
        .iter()
        .enumerate()
        .map(|(i, (s, _))| (s.name.clone(), graph.node(Op::State { index: i as u32 }, &[])))
        .collect();
    for (state, start) in &signature.states {
        if let StateStart::Trained(init) = start {
            graph.parameter(&initial(&state.name), &state.shape, Scope::Head, Training::Trained { decay: true }, init);
        }
    }
    let parameters = signature
        .parameters
        .iter()
        .map(|p| (p.name.clone(), graph.parameter(&p.name, &p.shape, p.scope, p.training, &p.init)))
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
    };
    body(&mut step);
    let written = step.written.into_inner();
    let mut order = vec!["output".to_string()];
    order.extend(signature.extras.iter().map(|(n, _)| format!("extra.{n}")));
    order.extend(signature.states.iter().map(|(s, _)| format!("state.{}", s.name)));
    for name in &order {
        match written.iter().find(|(n, _)| n == name) {
            Some((_, value)) => graph.output(name, value),
            None => return Err(format!("the {name_of} `{name}` is never set", name_of = entry_word(name))),
        }
    }
    Ok(graph.finish())
}

fn entry_word(name: &str) -> &'static str {
    if name.starts_with("state.") { "state" } else { "output" }
}

fn initial(state: &str) -> String {
    format!("{state}_0")
}

/// Builds the program of an update rule.
pub(crate) fn build_rule(
    signature: Signature,
    step: &dyn Fn(&mut Step),
    restated: Option<&dyn Fn(&mut Step)>,
    mut program: Program,
) -> Result<Program, String> {
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
    let index = build_step(entry::STEP, &signature, &shared, step)?;
    program.entries.push((entry::STEP.into(), index));
    if let Some(restated) = restated {
        let index = build_step(entry::RESTATED, &signature, &shared, restated)?;
        program.entries.push((entry::RESTATED.into(), index));
    }
    program.inputs = signature.inputs;
    program.states = states;
    let shared = shared.take();
    program.functions = shared.functions.into_iter().map(without_unused).collect();
    program.files = shared.files;
    Ok(program)
}

/// Drops nodes that no output needs: a leftover line in a step changes neither bytes nor speed.
pub(crate) fn without_unused(mut f: Function) -> Function {
    let mut used = vec![false; f.nodes.len()];
    for o in &f.outputs {
        used[o.node as usize] = true;
    }
    for i in (0..f.nodes.len()).rev() {
        if used[i] {
            for o in &f.nodes[i].operands {
                used[*o as usize] = true;
            }
        }
    }
    let mut renumbered = vec![0u32; f.nodes.len()];
    let mut kept = Vec::new();
    for (i, mut node) in std::mem::take(&mut f.nodes).into_iter().enumerate() {
        if used[i] {
            node.operands.iter_mut().for_each(|o| *o = renumbered[*o as usize]);
            renumbered[i] = kept.len() as u32;
            kept.push(node);
        }
    }
    f.outputs.iter_mut().for_each(|o| o.node = renumbered[o.node as usize]);
    f.nodes = kept;
    f
}
