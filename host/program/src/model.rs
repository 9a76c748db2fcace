//! A whole model: a slow net with the feature map and update rule of every slot, and the names of its parameters.
//!
//! # Names
//!
//! The net's function is walked with a prefix that is empty at first and ends with a dot otherwise.
//! A parameter `p` of a function is `PREFIX p`; a call, loop or cell named `n` adds `n.`, repetition i of blocks named `n` adds `n.i.`.
//! A fast-weight node named `n` adds `n.` for the rule's parameters and `n.feature_map.` for the map's.
//! Parameters of the whole model (`Scope::Model`) are `shared.p`, or `shared.SLOT.p` for those of a rule or map, wherever they are used.

use std::collections::HashMap;

use fwp_sdk::program::{Function, Kind, Op, Parameter, Program, Scope, SlotInterface, Training, entry};

use crate::check::{self, Class};
use crate::error::{CheckError, Problem, part};
use crate::separate::separate;

/// The programs that a model is composed of.
#[derive(Clone, Debug)]
pub struct ModelPrograms {
    /// The slow net.
    pub net: Program,
    /// What fills its slots.
    pub slots: Vec<SlotPrograms>,
}

/// The programs of one slot.
#[derive(Clone, Debug)]
pub struct SlotPrograms {
    /// Name of the slot, as in the net's fast-weight nodes.
    pub name: String,
    /// Layers that the slot is for; `None` is all that no other slot lists.
    pub layers: Option<Vec<usize>>,
    /// The feature map.
    pub map: Program,
    /// The update rule.
    pub rule: Program,
}

/// Where a parameter is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// By the slow net.
    Net,
    /// By the feature map of this slot, an index into [`ModelPrograms::slots`].
    Map(usize),
    /// By the update rule of this slot, an index into [`ModelPrograms::slots`].
    Rule(usize),
}

/// A parameter of the whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Its name in checkpoints; see the [module](self).
    pub path: String,
    /// Sizes, with a leading axis of `heads` for [`Scope::Head`].
    pub shape: Vec<usize>,
    /// What shares it.
    pub scope: Scope,
    /// How it gets its values.
    pub training: Training,
    /// Where it is declared.
    pub source: Source,
    /// Its initialiser: a function of the source's program.
    pub init: u32,
    /// Heads of the slot; 1 for the net's own.
    pub heads: usize,
    /// Repetition of the innermost blocks that it is in; 0 outside of any.
    pub layer: usize,
}

/// The prefix within a call, loop or cell named `name`; the same prefix where the name is empty.
pub fn child(prefix: &str, name: &str) -> String {
    if name.is_empty() { prefix.to_string() } else { format!("{prefix}{name}.") }
}

/// The prefix within repetition `index` of blocks named `name`; `index` counts from the blocks' `first`.
pub fn block(prefix: &str, name: &str, index: usize) -> String {
    format!("{}{index}.", child(prefix, name))
}

/// The prefix of a feature map's parameters, from that of the fast-weight node's rule: `child(prefix, name)`.
pub fn map_prefix(rule_prefix: &str) -> String {
    child(rule_prefix, "feature_map")
}

/// The path of parameter `p` of a function at `prefix`; `slot` is the slot whose rule or map declares it, `None` for the net.
pub fn path(prefix: &str, p: &Parameter, slot: Option<&str>) -> String {
    match (p.scope, slot) {
        (Scope::Model, Some(slot)) => format!("shared.{slot}.{}", p.name),
        (Scope::Model, None) => format!("shared.{}", p.name),
        _ => format!("{prefix}{}", p.name),
    }
}

/// Most parameters that a model may have; a hostile program with huge repetitions ends here.
const MAX_PARAMETERS: usize = 1 << 20;

impl ModelPrograms {
    /// Index and programs of the slot with this name.
    pub fn slot(&self, name: &str) -> Option<(usize, &SlotPrograms)> {
        self.slots.iter().enumerate().find(|(_, s)| s.name == name)
    }

    /// Every parameter of the model, in the order in which the net reaches it; a function's own come before those of what it calls.
    ///
    /// Several nodes with one name and one declaration share their parameters.
    /// Two declarations under one path are an error that names both, unless they are one map's for keys and queries,
    /// or a map's and its copy in the rule ([`crate::with_feature_map`]), and agree in everything.
    pub fn parameters(&self) -> Result<Vec<ParameterSpec>, CheckError> {
        let mut walk = Walk { model: self, found: Vec::new(), seen: HashMap::new(), visited: HashMap::new(), work: 0 };
        let forward = entry_function(&self.net, entry::FORWARD)?;
        walk.function(&self.net, forward, &Place { source: Source::Net, slot: None, heads: 1, layer: 0 }, "", 0)?;
        Ok(walk.found)
    }

    /// Checks every program, that the slots fit the net, and that all parameters have names of their own.
    pub fn check(&self) -> Result<(), CheckError> {
        let expect = |p: &Program, kind: Kind| {
            if p.kind == kind {
                return Ok(());
            }
            let why = format!("expected a {kind}");
            Err(CheckError::new(p, Problem::Declaration { what: "part", name: p.name.clone(), why }))
        };
        expect(&self.net, Kind::SlowNet)?;
        check::check(&self.net)?;
        for (i, s) in self.slots.iter().enumerate() {
            expect(&s.map, Kind::FeatureMap)?;
            expect(&s.rule, Kind::UpdateRule)?;
            check::check(&s.map)?;
            check::check(&s.rule)?;
            if self.slots[..i].iter().any(|t| t.name == s.name) {
                return Err(CheckError::new(&self.net, Problem::Duplicate { what: "slots", name: s.name.clone() }));
            }
        }
        for interface in &self.net.slots {
            let Some((_, slot)) = self.slot(&interface.name) else {
                let why = "no update rule of the recipe fills it".to_string();
                return Err(CheckError::new(&self.net, Problem::Slot { slot: interface.name.clone(), why }));
            };
            fits(interface, slot)
                .map_err(|why| CheckError::new(&slot.rule, Problem::Slot { slot: interface.name.clone(), why }))?;
        }
        self.check_separate_use()?;
        self.parameters().map(|_| ())
    }

    /// Nodes that write or read alone need a rule whose step comes apart, and all the inputs of that half.
    fn check_separate_use(&self) -> Result<(), CheckError> {
        let classes = check::classes_of(&self.net);
        for (f, class) in self.net.functions.iter().zip(classes) {
            if class != Some(Class::Net) {
                continue;
            }
            for node in &f.nodes {
                let (slot, inputs, writes) = match &node.op {
                    Op::FastWrite { slot, inputs, .. } => (slot, inputs, true),
                    Op::FastRead { slot, inputs, .. } => (slot, inputs, false),
                    _ => continue,
                };
                let Some((_, programs)) = self.slot(slot) else { continue };
                let wrong = |why: String| CheckError::at(&self.net, node.span, Problem::Slot { slot: slot.clone(), why });
                let halves = separate(&programs.rule)
                    .map_err(|e| wrong(format!("writing and reading cannot be told apart: {e}; use one fast_weights node")))?;
                let (needed, half) = if writes { (&halves.write_inputs, "writing") } else { (&halves.read_inputs, "reading") };
                let missing: Vec<&str> = needed.iter().map(String::as_str).filter(|n| !inputs.iter().any(|i| i == n)).collect();
                if !missing.is_empty() {
                    return Err(wrong(format!("{half} also needs {}", missing.join(", "))));
                }
            }
        }
        Ok(())
    }
}

/// Whether the parts of a slot have the sizes that the net was told.
fn fits(interface: &SlotInterface, slot: &SlotPrograms) -> Result<(), String> {
    let (rule, map) = (&slot.rule, &slot.map);
    if interface.heads == 0 {
        return Err("it has no heads".into());
    }
    if interface.inputs != rule.inputs {
        return Err(format!("the slow net was described with other inputs than rule `{}` has: describe both anew", rule.name));
    }
    for i in &rule.inputs {
        if i.heads.is_some_and(|h| h == 0 || !interface.heads.is_multiple_of(h)) {
            let heads = i.heads.unwrap_or(0);
            return Err(format!("input `{}` has {heads} heads, which does not divide the slot's {}", i.name, interface.heads));
        }
        if i.mapped() && i.shape.last() != Some(&interface.key) {
            return Err(format!(
                "input `{}` has shape {:?}, after the feature map it ends with {}",
                i.name, i.shape, interface.key
            ));
        }
    }
    let shapes = check::map_sizes(map).ok_or("its feature map does not map a vector to a vector")?;
    if shapes != (interface.key_raw, interface.key) {
        return Err(format!(
            "feature map `{}` maps {} features to {}, the slot needs {} to {}",
            map.name, shapes.0, shapes.1, interface.key_raw, interface.key
        ));
    }
    let (output, extras) = check::rule_outputs(rule).ok_or("its rule has no step")?;
    if output != interface.output || extras != interface.extras {
        return Err(format!("the slow net was described with other outputs than rule `{}` has: describe both anew", rule.name));
    }
    check::phi_sizes(rule).into_iter().try_for_each(|(from, to)| {
        if (from, to) == (interface.key_raw, interface.key) {
            return Ok(());
        }
        Err(format!(
            "the rule uses `phi` from {from} to {to} features, the map goes from {} to {}",
            interface.key_raw, interface.key
        ))
    })
}

pub(crate) fn entry_function<'a>(p: &'a Program, name: &'static str) -> Result<&'a Function, CheckError> {
    p.entry(name).ok_or_else(|| CheckError::new(p, Problem::MissingEntry(name)))
}

/// Where in the model a function is used.
#[derive(Clone)]
struct Place<'a> {
    source: Source,
    slot: Option<&'a str>,
    heads: usize,
    layer: usize,
}

struct Walk<'a> {
    model: &'a ModelPrograms,
    found: Vec<ParameterSpec>,
    /// For every path its number in `found` and its declaration: program, function name and parameter.
    seen: HashMap<String, (usize, String)>,
    /// Functions that were walked at a prefix for a source: walking them again finds nothing new.
    visited: HashMap<(Source, String), Vec<(*const Function, usize)>>,
    work: usize,
}

impl<'a> Walk<'a> {
    fn function(
        &mut self,
        p: &'a Program,
        f: &'a Function,
        at: &Place<'a>,
        prefix: &str,
        depth: usize,
    ) -> Result<(), CheckError> {
        self.work += 1;
        if depth > check::MAX_DEPTH || self.work > MAX_PARAMETERS {
            let what = "is repeated or nested beyond what a model may hold".to_string();
            return Err(CheckError::new(p, Problem::TooLarge { function: f.name.clone(), what, limit: MAX_PARAMETERS as u64 }));
        }
        let walked = self.visited.entry((at.source, prefix.to_string())).or_default();
        if walked.contains(&(f as *const Function, at.layer)) {
            return Ok(());
        }
        walked.push((f as *const Function, at.layer));
        for parameter in &f.parameters {
            self.parameter(p, f, parameter, at, prefix)?;
        }
        for node in &f.nodes {
            match &node.op {
                Op::Call { function, name } | Op::Loop { function, name, .. } | Op::Scan { function, name, .. } => {
                    self.function(p, callee(p, *function)?, at, &child(prefix, name), depth + 1)?;
                }
                Op::Blocks { function, name, count, first, .. } => {
                    let inner = callee(p, *function)?;
                    for i in 0..*count {
                        let layer = first.saturating_add(i);
                        let at = Place { layer, ..at.clone() };
                        self.function(p, inner, &at, &block(prefix, name, layer), depth + 1)?;
                    }
                }
                Op::FastWeights { slot, name, .. }
                | Op::MemoryInit { slot, name }
                | Op::FastWrite { slot, name, .. }
                | Op::FastRead { slot, name, .. } => self.slot(slot, &child(prefix, name), at.layer, depth)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn slot(&mut self, name: &str, prefix: &str, layer: usize, depth: usize) -> Result<(), CheckError> {
        let model = self.model;
        let missing = |why: &str| CheckError::new(&model.net, Problem::Slot { slot: name.to_string(), why: why.to_string() });
        let (index, slot) = model.slot(name).ok_or_else(|| missing("no update rule of the recipe fills it"))?;
        let interface =
            model.net.slots.iter().find(|s| s.name == name).ok_or_else(|| missing("the slow net does not know it"))?;
        let at = |source| Place { source, slot: Some(&slot.name), heads: interface.heads, layer };
        for which in [entry::KEY, entry::QUERY] {
            let f = entry_function(&slot.map, which)?;
            self.function(&slot.map, f, &at(Source::Map(index)), &map_prefix(prefix), depth + 1)?;
        }
        let step = entry_function(&slot.rule, entry::STEP)?;
        self.function(&slot.rule, step, &at(Source::Rule(index)), prefix, depth + 1)
    }

    fn parameter(
        &mut self,
        p: &Program,
        f: &Function,
        parameter: &Parameter,
        at: &Place<'_>,
        prefix: &str,
    ) -> Result<(), CheckError> {
        let mut shape = parameter.shape.clone();
        if parameter.scope == Scope::Head {
            shape.insert(0, at.heads);
        }
        let path = path(prefix, parameter, at.slot);
        let declared = declaration(p, f, parameter);
        let spec = ParameterSpec {
            path: path.clone(),
            shape,
            scope: parameter.scope,
            training: parameter.training,
            source: at.source,
            init: parameter.init,
            heads: at.heads,
            layer: at.layer,
        };
        if let Some((index, first)) = self.seen.get(&path) {
            let old = &self.found[*index];
            if *first == declared || self.shared(old, &spec) {
                return Ok(());
            }
            return Err(CheckError::new(
                &self.model.net,
                Problem::ParameterTwice { path, first: first.clone(), second: declared },
            ));
        }
        if self.found.len() >= MAX_PARAMETERS {
            let what = "has too many parameters".to_string();
            return Err(CheckError::new(p, Problem::TooLarge { function: f.name.clone(), what, limit: MAX_PARAMETERS as u64 }));
        }
        self.seen.insert(path, (self.found.len(), declared));
        self.found.push(spec);
        Ok(())
    }

    /// Whether two declarations under one path may be one parameter: those of a map for keys and for queries, and a rule's copy of a map's.
    fn shared(&self, old: &ParameterSpec, new: &ParameterSpec) -> bool {
        let alike = old.shape == new.shape && old.scope == new.scope && old.training == new.training && old.heads == new.heads;
        alike
            && match (old.source, new.source) {
                (Source::Map(a), Source::Map(b)) => a == b && old.init == new.init,
                (Source::Map(a), Source::Rule(b)) => {
                    let slot = &self.model.slots[a];
                    let drawn = slot.map.functions.get(old.init as usize).map(|f| &f.nodes);
                    let copied = slot.rule.functions.get(new.init as usize).map(|f| &f.nodes);
                    let same = |x: &Vec<fwp_sdk::program::Node>, y: &Vec<fwp_sdk::program::Node>| {
                        x.len() == y.len() && x.iter().zip(y).all(|(x, y)| x.op == y.op && x.operands == y.operands)
                    };
                    a == b && matches!((drawn, copied), (Some(x), Some(y)) if same(x, y))
                }
                _ => false,
            }
    }
}

/// A declaration in words, with the place of its first use.
fn declaration(p: &Program, f: &Function, parameter: &Parameter) -> String {
    let number = f.parameters.iter().position(|q| std::ptr::eq(q, parameter));
    let used = f.nodes.iter().find(|n| matches!(n.op, Op::Parameter { index } if Some(index as usize) == number));
    let place = used.map(|n| p.place(n.span)).filter(|s| !s.is_empty());
    let number = p.functions.iter().position(|g| std::ptr::eq(g, f)).unwrap_or(0);
    let at = place.map(|s| format!(" ({s})")).unwrap_or_default();
    format!("{}, function {number} `{}`{at}", part(p), f.name)
}

fn callee(p: &Program, function: u32) -> Result<&Function, CheckError> {
    let missing = || CheckError::new(p, Problem::Shape(format!("{}: there is no function {function}", part(p))));
    p.functions.get(function as usize).ok_or_else(missing)
}
