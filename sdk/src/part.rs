//! The three kinds of part, and how a host asks for their descriptions.

use serde::{Deserialize, Serialize};
use serde_json::{Map as Table, Value};

use crate::build::{self, Dims, Expr, Map, Memory, Net, NetContext, Signature, Step, TaskIo, refuse};
use crate::config::{self, Config, Field};
use crate::program::{Kind, Op, Program, SlotInterface};

/// How fast weights change at every step. The implementing struct is the rule's configuration.
pub trait UpdateRule: Config {
    /// Name in recipes, in the field's own terms.
    const NAME: &'static str;
    /// Paper and equation.
    const CITATION: &'static str;
    /// The local objective whose minimisation the update is, or why there is none.
    const OBJECTIVE: &'static str;

    /// Inputs, states, parameters and outputs.
    fn signature(&self, dims: Dims) -> Signature;
    /// One step for one head of one sequence.
    fn step(&self, s: &mut Step);
    /// Whether [`UpdateRule::restated`] says the step a second time.
    const RESTATED: bool = false;
    /// The step said another way, such as by its objective; the host checks that both agree.
    fn restated(&self, s: &mut Step) {
        let _ = s;
    }
}

/// phi, applied to keys and queries. The implementing struct is the map's configuration.
pub trait FeatureMap: Config {
    /// Name in recipes.
    const NAME: &'static str;
    /// Paper and equation.
    const CITATION: &'static str;

    /// Number of features for a key of `dim` elements.
    fn features(&self, dim: usize) -> usize;
    /// The features of `map.input()`.
    fn apply(&self, map: &Map) -> Expr;
}

/// The message of a slow net without fast weights that is given an update rule.
pub const NO_FAST_WEIGHTS: &str = "this slow net has no fast weights, and there is an update rule for them";

/// The message of a slow net with fast weights for which there is no update rule.
pub const NEEDS_FAST_WEIGHTS: &str = "this slow net has fast weights, and there is no update rule for them";

/// What emits keys, values, queries and gates. The implementing struct is the net's configuration.
pub trait SlowNet: Config {
    /// Name in recipes.
    const NAME: &'static str;
    /// Paper and section.
    const CITATION: &'static str;

    /// Names of the rules that the net tells apart, such as those of two memories of different sizes; none where it takes any.
    const SLOTS: &'static [&'static str] = &[];

    /// The fast weights that slot `slot` needs for this task; a net that has none leaves this out.
    fn memory(&self, task: &TaskIo, slot: &str) -> Memory {
        let _ = (task, slot);
        refuse(NO_FAST_WEIGHTS)
    }
    /// Number of layers, for rules that treat layers differently.
    fn layers(&self) -> usize {
        1
    }
    /// From the task's inputs to its outputs.
    fn forward(&self, net: &mut Net);
}

crate::choices! {
    /// How the features of keys and queries are normalised.
    pub enum Normalise {
        /// Not at all.
        None = "none",
        /// To sum one (Schlag, Irie, Schmidhuber 2021, Eq. 29).
        Sum = "sum",
        /// To length one.
        L2 = "l2",
    }
}

crate::config! {
    /// What every feature map understands beside its own keys.
    pub struct Normalisation {
        /// How the features are normalised.
        normalise: Normalise = Normalise::None,
        /// Added to the sum, or to the squared length under the root, before dividing.
        normalise_eps: f64 = 1e-6,
    }
    validate(me) {
        if me.normalise_eps < 0.0 { return Err("`normalise_eps`: expected a number from 0".into()); }
        Ok(())
    }
}

/// What a library says of one part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Kind of part.
    pub kind: Kind,
    /// Name.
    pub name: String,
    /// Documentation.
    pub doc: String,
    /// Paper and equation.
    pub citation: String,
    /// Configuration keys.
    pub fields: Vec<Field>,
    /// Names of the rules that a slow net tells apart.
    #[serde(default)]
    pub slots: Vec<String>,
}

/// What a host wants to know of a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Kind of part.
    pub kind: Kind,
    /// Name of the part.
    pub name: String,
    /// Its table of the recipe.
    pub config: Table<String, Value>,
    /// What is asked.
    pub ask: Ask,
}

/// The fast weights that a slow net wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memories {
    /// One a slot, in the order of the question.
    pub slots: Vec<Memory>,
    /// Number of layers of the slow net.
    pub layers: usize,
}

/// The questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// The program of an update rule; the answer is a program's bytes.
    Rule {
        /// For these sizes.
        dims: Dims,
    },
    /// The number of features of a feature map; the answer is JSON.
    Features {
        /// Size of a raw key.
        dim: usize,
    },
    /// The program of a feature map; the answer is a program's bytes.
    Map {
        /// Size of a raw key.
        dim: usize,
    },
    /// The fast weights that a slow net needs; the answer is JSON, [`Memories`].
    Memories {
        /// For this task.
        task: TaskIo,
        /// Names of the slots.
        slots: Vec<String>,
    },
    /// The program of a slow net; the answer is a program's bytes.
    Net {
        /// For this task.
        task: TaskIo,
        /// With these rules.
        slots: Vec<SlotInterface>,
        /// Layers that each slot lists.
        layers: Vec<(String, Option<Vec<usize>>)>,
    },
}

/// One part of a library, behind plain functions. Made by [`export!`](crate::export!).
pub struct Part {
    info: fn() -> PartInfo,
    describe: fn(&Request) -> Result<Vec<u8>, String>,
}

impl Part {
    /// An update rule.
    pub const fn update_rule<R: UpdateRule>() -> Part {
        Part { info: || info::<R>(Kind::UpdateRule, R::NAME, R::CITATION, vec![]), describe: describe_rule::<R> }
    }
    /// A feature map.
    pub const fn feature_map<M: FeatureMap>() -> Part {
        Part { info: || info::<M>(Kind::FeatureMap, M::NAME, M::CITATION, Normalisation::fields()), describe: describe_map::<M> }
    }
    /// A slow net.
    pub const fn slow_net<N: SlowNet>() -> Part {
        fn own<N: SlowNet>() -> PartInfo {
            let slots = N::SLOTS.iter().map(|s| s.to_string()).collect();
            PartInfo { slots, ..info::<N>(Kind::SlowNet, N::NAME, N::CITATION, vec![]) }
        }
        Part { info: own::<N>, describe: describe_net::<N> }
    }

    /// What the part says of itself.
    pub fn info(&self) -> PartInfo {
        (self.info)()
    }

    /// Answers a request.
    pub fn describe(&self, request: &Request) -> Result<Vec<u8>, String> {
        (self.describe)(request)
    }
}

fn info<C: Config>(kind: Kind, name: &str, citation: &str, more: Vec<Field>) -> PartInfo {
    let fields = C::fields().into_iter().chain(more).collect();
    PartInfo { kind, name: name.into(), doc: plain(C::DOC), citation: citation.into(), fields, slots: Vec::new() }
}

/// Documentation text without the space that follows `///`.
fn plain(doc: &str) -> String {
    let lines: Vec<&str> = doc.lines().map(|l| l.strip_prefix(' ').unwrap_or(l).trim_end()).collect();
    lines.join("\n").trim().to_string()
}

fn blank(kind: Kind, name: &str, citation: &str, objective: &str, doc: &str, config: &Table<String, Value>) -> Program {
    Program {
        kind,
        name: name.into(),
        config: Value::Object(config.clone()).to_string(),
        doc: plain(doc),
        citation: citation.into(),
        objective: objective.into(),
        inputs: Vec::new(),
        states: Vec::new(),
        slots: Vec::new(),
        functions: Vec::new(),
        entries: Vec::new(),
        files: Vec::new(),
    }
}

fn unexpected(kind: Kind, name: &str) -> String {
    format!("{kind} `{name}` was asked a question for another kind of part")
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|e| e.to_string())
}

fn describe_rule<R: UpdateRule>(request: &Request) -> Result<Vec<u8>, String> {
    let Ask::Rule { dims } = request.ask else { return Err(unexpected(Kind::UpdateRule, R::NAME)) };
    let rule: R = config::read(&request.config)?;
    let program = blank(Kind::UpdateRule, R::NAME, R::CITATION, R::OBJECTIVE, R::DOC, &rule.values());
    let restated: &dyn Fn(&mut Step) = &|s| rule.restated(s);
    let program = build::build_rule(rule.signature(dims), &|s| rule.step(s), R::RESTATED.then_some(restated), program);
    Ok(program.to_bytes())
}

fn describe_map<M: FeatureMap>(request: &Request) -> Result<Vec<u8>, String> {
    // The table holds the map's own keys and the common ones of the normalisation.
    let common: Vec<String> = Normalisation::fields().into_iter().map(|f| f.name).collect();
    if let Some(field) = M::fields().into_iter().find(|f| common.contains(&f.name)) {
        let message =
            format!("the key `{}` of feature map `{}` is one that every map has: name it otherwise", field.name, M::NAME);
        return Err(message);
    }
    let mut own = Table::new();
    let mut shared = Table::new();
    for (key, value) in &request.config {
        if common.contains(key) { &mut shared } else { &mut own }.insert(key.clone(), value.clone());
    }
    let normalisation: Normalisation = config::read(&shared)?;
    let map: M = config::read(&own).map_err(|e| match e.strip_prefix("unknown key `").and_then(|r| r.split('`').next()) {
        Some(key) => config::unknown(key, M::fields().into_iter().map(|f| f.name).chain(common).collect()),
        None => e,
    })?;
    match request.ask {
        Ask::Features { dim } => json(&map.features(dim)),
        Ask::Map { dim } => {
            let mut values = map.values();
            values.extend(normalisation.values());
            let program = blank(Kind::FeatureMap, M::NAME, M::CITATION, "", M::DOC, &values);
            let eps = normalisation.normalise_eps;
            let normalise = match normalisation.normalise {
                Normalise::None => None,
                Normalise::Sum => Some(Op::SumNormalise { eps }),
                Normalise::L2 => Some(Op::L2Normalise { eps }),
            };
            Ok(build::build_map(dim, map.features(dim), &|m| map.apply(m), normalise, program).to_bytes())
        }
        _ => Err(unexpected(Kind::FeatureMap, M::NAME)),
    }
}

fn describe_net<N: SlowNet>(request: &Request) -> Result<Vec<u8>, String> {
    let net: N = config::read(&request.config)?;
    match &request.ask {
        Ask::Memories { task, slots } => {
            let memories: Vec<Memory> = slots.iter().map(|s| net.memory(task, s)).collect();
            json(&Memories { slots: memories, layers: net.layers() })
        }
        Ask::Net { task, slots, layers } => {
            let program = blank(Kind::SlowNet, N::NAME, N::CITATION, "", N::DOC, &net.values());
            let context = NetContext { task: task.clone(), slots: slots.clone(), layers: layers.clone() };
            Ok(build::build_net(context, &|n| net.forward(n), program)?.to_bytes())
        }
        _ => Err(unexpected(Kind::SlowNet, N::NAME)),
    }
}
