//! What an update rule declares.

use std::panic::Location;

use crate::program::{Role, RuleInput, Scope, State, StateInit, Training};

use super::graph::{Place, mistake, mistake_at};
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
    /// Number of layers of the slow net, whichever of them use the rule.
    pub layers: usize,
    /// Longest sequence, in steps.
    pub max_len: usize,
}

impl Dims {
    /// Sizes of one, a single layer, and 1,024 steps: what is left out of a description is filled in from here.
    pub const ONE: Dims = Dims { heads: 1, key_raw: 1, key: 1, value: 1, layers: 1, max_len: 1024 };
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

/// A declared parameter.
#[derive(Clone)]
pub(crate) struct RuleParameter {
    pub name: String,
    pub shape: Vec<usize>,
    pub scope: Scope,
    pub training: Training,
    pub init: Init,
}

/// What a modifier such as [`Signature::raw`] refers to.
enum Last {
    Nothing,
    Input,
    State,
    Parameter,
}

/// What an update rule declares: inputs with their roles, states, parameters and outputs.
pub struct Signature {
    pub(crate) dims: Dims,
    pub(crate) inputs: Vec<RuleInput>,
    pub(crate) states: Vec<(State, StateStart)>,
    pub(crate) parameters: Vec<RuleParameter>,
    pub(crate) output: Vec<usize>,
    pub(crate) extras: Vec<(String, Vec<usize>)>,
    /// Every declared name, and where.
    names: Vec<(String, &'static Place)>,
    /// Where the output is declared.
    pub(crate) output_at: &'static Place,
    last: Last,
}

impl Signature {
    /// The usual inputs: query `q` and key `k` after the feature map, value `v`; the output has the value's size.
    #[track_caller]
    pub fn new(dims: Dims) -> Signature {
        Signature::without_inputs(dims).query("q", [dims.key]).key("k", [dims.key]).value("v", [dims.value])
    }

    /// No inputs yet, for a rule that declares its own. The output has the value's size until [`Signature::output`] says otherwise.
    #[track_caller]
    pub fn without_inputs(dims: Dims) -> Signature {
        Signature {
            dims,
            inputs: Vec::new(),
            states: Vec::new(),
            parameters: Vec::new(),
            output: vec![dims.value],
            extras: Vec::new(),
            names: Vec::new(),
            output_at: Location::caller(),
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
    fn fresh(&mut self, name: &str) {
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.is_empty();
        if !plain {
            mistake(format!("`{name}` cannot be declared: a name is made of letters, digits and `_`"));
        }
        if matches!(name, "o" | "write" | "reset" | "layer") {
            mistake(format!("`{name}` cannot be declared: the host uses this name itself"));
        }
        if let Some((_, at)) = self.names.iter().find(|(n, _)| n == name) {
            mistake(format!("`{name}` cannot be declared: it is declared already at {}:{}", at.file(), at.line()));
        }
        self.names.push((name.into(), Location::caller()));
    }

    /// Where this name is declared.
    pub(crate) fn place(&self, name: &str) -> &'static Place {
        self.names.iter().find(|(n, _)| n == name).map_or(self.output_at, |(_, at)| at)
    }

    /// Refuses what only the whole declaration shows.
    pub(crate) fn check(&self) {
        for i in self.inputs.iter().filter(|i| i.mapped()) {
            if i.shape.last() != Some(&self.dims.key) {
                mistake_at(
                    self.place(&i.name),
                    format!(
                        "input `{}` comes from the feature map, so its last axis has `dims.key` = {} features, not {:?}; say `.raw()` behind it to leave it unmapped",
                        i.name, self.dims.key, i.shape
                    ),
                );
            }
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
        if n == 0 {
            mistake("an input comes at least once a token, not 0 times");
        }
        self.last_input().count = Some(n);
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
        if let StateStart::Trained(_) = start {
            self.fresh(&initial(name));
        }
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
            _ => mistake("`held` follows the declaration of a state and takes at least 1 step"),
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
    #[track_caller]
    pub fn output<const N: usize>(mut self, shape: [usize; N]) -> Signature {
        self.output = shape.into();
        self.output_at = Location::caller();
        self.last = Last::Nothing;
        self
    }
    /// An extra named output beside the output.
    #[track_caller]
    pub fn extra<const N: usize>(mut self, name: &str, shape: [usize; N]) -> Signature {
        self.fresh(name);
        self.extras.push((name.into(), shape.into()));
        self.last = Last::Nothing;
        self
    }
}

/// Name of the parameter that holds the trained initial value of a state.
pub(crate) fn initial(state: &str) -> String {
    format!("{state}_0")
}
