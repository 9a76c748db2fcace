//! Whether a program is a complete and sensible part.

use fwp_sdk::program::shape::{self, Types};
use fwp_sdk::program::{DType, Function, Kind, NodeId, Op, Program, Role, Scope, StateInit, TensorType, Type, entry};

use crate::error::{CheckError, Notice, Problem, part};
use crate::graph::{callee, live};

/// Deepest nesting of calls.
pub const MAX_DEPTH: usize = 16;
/// Most operations of one entry with every loop, block and call counted as often as it runs.
pub const MAX_UNROLLED: u64 = 1_000_000;

/// Checks a program beyond its shapes.
///
/// An error is surely a mistake and names the part, the thing and the place in the plugin's source.
/// A notice is worth a look and stops nothing.
pub fn check(p: &Program) -> Result<Vec<Notice>, CheckError> {
    let types = shape::types(p).map_err(|e| CheckError::new(p, Problem::Shape(e)))?;
    let mut c = Check { p, types, notices: Vec::new() };
    c.names()?;
    c.entries()?;
    c.sizes()?;
    c.placement()?;
    match p.kind {
        Kind::UpdateRule => c.rule()?,
        Kind::FeatureMap => c.map()?,
        Kind::SlowNet => c.net()?,
    }
    c.parameters();
    Ok(c.notices)
}

/// What a function is for; it decides what may be used in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Step,
    Map,
    Net,
    Initialiser,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Class::Step => "a step",
            Class::Map => "a feature map",
            Class::Net => "a slow net",
            Class::Initialiser => "an initialiser",
        }
    }
}

/// The class of every function; `None` for those that nothing uses. A function used in two ways has the stricter one, initialiser.
pub(crate) fn classes_of(p: &Program) -> Vec<Option<Class>> {
    let own = match p.kind {
        Kind::UpdateRule => Class::Step,
        Kind::FeatureMap => Class::Map,
        Kind::SlowNet => Class::Net,
    };
    let mut classes = vec![None; p.functions.len()];
    for (_, index) in &p.entries {
        if let Some(c) = classes.get_mut(*index as usize) {
            *c = Some(own);
        }
    }
    // Callees come before callers, so one walk from the back sees every caller first.
    for i in (0..p.functions.len()).rev() {
        let Some(class) = classes[i] else { continue };
        for node in &p.functions[i].nodes {
            if let Some(c) = callee(&node.op).and_then(|c| classes.get_mut(c as usize))
                && *c != Some(Class::Initialiser)
            {
                *c = Some(class);
            }
        }
        for parameter in &p.functions[i].parameters {
            if let Some(c) = classes.get_mut(parameter.init as usize) {
                *c = Some(Class::Initialiser);
            }
        }
    }
    classes
}

/// Features before and after a map.
pub(crate) fn map_sizes(map: &Program) -> Option<(usize, usize)> {
    let types = shape::types(map).ok()?;
    let (_, index) = map.entries.iter().find(|(n, _)| n == entry::KEY)?;
    let f = types.functions.get(*index as usize)?;
    match (&f.arguments[..], &f.results[..]) {
        ([Type::Tensor(x)], [Type::Tensor(y)]) => match (&x.shape[..], &y.shape[..]) {
            ([a], [b]) => Some((*a, *b)),
            _ => None,
        },
        _ => None,
    }
}

/// Names and sizes of extra outputs.
type Extras = Vec<(String, Vec<usize>)>;

/// Sizes of a rule's output and of its extra outputs.
pub(crate) fn rule_outputs(rule: &Program) -> Option<(Vec<usize>, Extras)> {
    let types = shape::types(rule).ok()?;
    let (_, index) = rule.entries.iter().find(|(n, _)| n == entry::STEP)?;
    let f = rule.functions.get(*index as usize)?;
    let nodes = types.nodes.get(*index as usize)?;
    let sizes = |n: NodeId| nodes.get(n as usize).map(|t| crate::graph::sizes(t).to_vec());
    let output = sizes(f.output("output")?)?;
    let extras = f.outputs.iter().filter_map(|o| Some((o.name.strip_prefix("extra.")?.to_string(), sizes(o.node)?)));
    Some((output, extras.collect()))
}

/// Features before and after every `phi` of a rule.
pub(crate) fn phi_sizes(rule: &Program) -> Vec<(usize, usize)> {
    let Ok(types) = shape::types(rule) else { return Vec::new() };
    let mut found = Vec::new();
    for (f, types) in rule.functions.iter().zip(&types.nodes) {
        for node in &f.nodes {
            if let Op::Phi { size, .. } = &node.op
                && let Some(from) = node.operands.first().and_then(|o| crate::graph::sizes(&types[*o as usize]).last())
            {
                found.push((*from, *size));
            }
        }
    }
    found
}

struct Check<'a> {
    p: &'a Program,
    types: Types,
    notices: Vec<Notice>,
}

impl Check<'_> {
    fn error(&self, problem: Problem) -> CheckError {
        CheckError::new(self.p, problem)
    }

    fn notice(&mut self, place: String, message: String) {
        self.notices.push(Notice { place, message: format!("{}: {message}", part(self.p)) });
    }

    fn declaration(&self, what: &'static str, name: &str, why: impl Into<String>) -> CheckError {
        self.error(Problem::Declaration { what, name: name.to_string(), why: why.into() })
    }

    fn unique<'n>(&self, what: &'static str, names: impl Iterator<Item = &'n str>) -> Result<(), CheckError> {
        let mut seen: Vec<&str> = Vec::new();
        for name in names {
            if seen.contains(&name) {
                return Err(self.error(Problem::Duplicate { what, name: name.to_string() }));
            }
            seen.push(name);
        }
        Ok(())
    }

    fn names(&self) -> Result<(), CheckError> {
        let p = self.p;
        self.unique("inputs", p.inputs.iter().map(|i| i.name.as_str()))?;
        self.unique("states", p.states.iter().map(|s| s.name.as_str()))?;
        self.unique("slots", p.slots.iter().map(|s| s.name.as_str()))?;
        for f in &p.functions {
            self.unique("parameters of one function", f.parameters.iter().map(|q| q.name.as_str()))?;
            self.unique("arguments of one function", f.arguments.iter().map(|a| a.name.as_str()))?;
            self.unique("results of one function", f.outputs.iter().map(|o| o.name.as_str()))?;
        }
        let stray = |what: &'static str, name: &str| Err(self.declaration(what, name, format!("a {} has none", p.kind)));
        match p.kind {
            Kind::UpdateRule => {}
            _ if !p.inputs.is_empty() => return stray("input", &p.inputs[0].name),
            _ if !p.states.is_empty() => return stray("state", &p.states[0].name),
            _ => {}
        }
        match p.slots.first() {
            Some(s) if p.kind != Kind::SlowNet => stray("slot", &s.name),
            _ => Ok(()),
        }
    }

    fn entries(&self) -> Result<(), CheckError> {
        let (needed, optional): (&[&'static str], &[&'static str]) = match self.p.kind {
            Kind::UpdateRule => (&[entry::STEP], &[entry::RESTATED]),
            Kind::FeatureMap => (&[entry::KEY, entry::QUERY], &[]),
            Kind::SlowNet => (&[entry::FORWARD], &[]),
        };
        for name in needed {
            if self.p.entry(name).is_none() {
                return Err(self.error(Problem::MissingEntry(name)));
            }
        }
        for (i, (name, index)) in self.p.entries.iter().enumerate() {
            let known = needed.iter().chain(optional).any(|n| n == name) && (*index as usize) < self.p.functions.len();
            if !known || self.p.entries[..i].iter().any(|(n, _)| n == name) {
                return Err(self.error(Problem::UnexpectedEntry(name.clone())));
            }
        }
        Ok(())
    }

    /// Nesting and the number of operations with loops counted as often as they run.
    fn sizes(&self) -> Result<(), CheckError> {
        let mut costs: Vec<(u64, usize)> = Vec::new();
        for f in &self.p.functions {
            let (mut cost, mut depth) = (0u64, 1);
            let mut largest: Option<(u64, usize)> = None;
            for (i, node) in f.nodes.iter().enumerate() {
                let mut own = 1u64;
                if let Some((inner, inner_depth)) = callee(&node.op).and_then(|c| costs.get(c as usize)) {
                    let count = match node.op {
                        Op::Loop { count, .. } | Op::Blocks { count, .. } => count as u64,
                        _ => 1,
                    };
                    // A body without operations is still run.
                    own = count.saturating_mul((*inner).max(1)).saturating_add(1);
                    depth = depth.max(inner_depth + 1);
                }
                cost = cost.saturating_add(own);
                if largest.is_none_or(|(c, _)| own > c) {
                    largest = Some((own, i));
                }
            }
            let too_large = |what: String, limit: u64| {
                let problem = Problem::TooLarge { function: f.name.clone(), what, limit };
                match largest {
                    Some((_, i)) => CheckError::at(self.p, f.nodes[i].span, problem),
                    None => self.error(problem),
                }
            };
            if cost > MAX_UNROLLED {
                return Err(too_large(format!("runs {cost} operations"), MAX_UNROLLED));
            }
            if depth > MAX_DEPTH {
                return Err(too_large(format!("nests {depth} calls"), MAX_DEPTH as u64));
            }
            costs.push((cost, depth));
        }
        Ok(())
    }

    /// Every operator only where it has a meaning.
    fn placement(&mut self) -> Result<(), CheckError> {
        let p = self.p;
        let classes = classes_of(p);
        for (i, (f, class)) in p.functions.iter().zip(&classes).enumerate() {
            let Some(class) = *class else {
                self.notice(String::new(), format!("function {i} `{}` is never used", f.name));
                continue;
            };
            let entered = p.entries.iter().any(|(_, e)| *e as usize == i);
            let called_too = entered && p.functions.iter().flat_map(|g| &g.nodes).any(|n| callee(&n.op) == Some(i as u32));
            for node in &f.nodes {
                let why = misplaced(&node.op, class, entered && !called_too).or_else(|| self.outside(f, class, &node.op));
                if let Some(why) = why {
                    let operator = node.op.name().to_string();
                    return Err(CheckError::at(p, node.span, Problem::NotAllowed { function: f.name.clone(), operator, why }));
                }
            }
            // A tuple of gradients exists only to be taken apart.
            for (n, node) in f.nodes.iter().enumerate() {
                let gradient = |o: &NodeId| f.nodes[*o as usize].op == Op::Gradient;
                let whole = f.outputs.iter().any(|o| o.node as usize == n) && node.op == Op::Gradient;
                if whole || (!matches!(node.op, Op::Element { .. }) && node.operands.iter().any(gradient)) {
                    let why = "take its parts one by one".to_string();
                    let problem = Problem::NotAllowed { function: f.name.clone(), operator: "gradient".into(), why };
                    return Err(CheckError::at(p, node.span, problem));
                }
            }
            if class == Class::Initialiser && !f.parameters.is_empty() {
                let name = f.parameters[0].name.clone();
                return Err(self.declaration("parameter", &name, "an initialiser has no parameters of its own"));
            }
        }
        Ok(())
    }

    /// Scopes that have no meaning in a class of function.
    fn outside(&self, f: &Function, class: Class, op: &Op) -> Option<String> {
        let Op::Parameter { index } = op else { return None };
        let parameter = f.parameters.get(*index as usize)?;
        (class == Class::Net && parameter.scope == Scope::Head).then(|| {
            format!("parameter `{}` is one a head, and a slow net has no heads; use the scope of a layer", parameter.name)
        })
    }

    fn rule(&mut self) -> Result<(), CheckError> {
        let p = self.p;
        for i in &p.inputs {
            if i.heads == Some(0) || i.count == Some(0) || i.shape.contains(&0) {
                return Err(self.declaration("input", &i.name, "sizes, counts and heads start at 1"));
            }
            if i.mapped() && i.shape.is_empty() {
                return Err(self.declaration("input", &i.name, "the feature map needs a vector; declare it raw"));
            }
            if matches!(i.role, Role::Gate | Role::Value) && i.raw {
                let message = format!("input `{}` is raw, which means nothing for a {}", i.name, role_name(i.role));
                self.notice(String::new(), message);
            }
        }
        for (name, index) in &p.entries {
            let f = &p.functions[*index as usize];
            self.step(name, f, *index as usize)?;
        }
        let (_, index) =
            p.entries.iter().find(|(n, _)| n == entry::STEP).ok_or_else(|| self.error(Problem::MissingEntry(entry::STEP)))?;
        let step = &p.functions[*index as usize];
        let used = live(step);
        let reads = |op: Op| step.nodes.iter().zip(&used).any(|(n, used)| *used && n.op == op);
        for (i, input) in p.inputs.iter().enumerate() {
            let index = i as u32;
            if !reads(Op::Argument { index }) {
                return Err(self.error(Problem::UnusedInput(input.name.clone())));
            }
        }
        for (i, state) in p.states.iter().enumerate() {
            let index = i as u32;
            let next = step.output(&format!("state.{}", state.name));
            if !reads(Op::State { index }) {
                let problem = Problem::UnusedState(state.name.clone());
                return Err(match next {
                    Some(n) => CheckError::at(p, step.nodes[n as usize].span, problem),
                    None => self.error(problem),
                });
            }
            if let Some(n) = next
                && step.nodes[n as usize].op == (Op::State { index })
            {
                let place = p.place(step.nodes[n as usize].span);
                self.notice(place, format!("state `{}` never changes; a trained constant is a parameter", state.name));
            }
        }
        self.idle_states(step);
        if !step.nodes.iter().zip(&used).any(|(n, used)| *used && matches!(n.op, Op::State { .. })) {
            self.notice(String::new(), "the rule remembers nothing: no state is read".into());
        }
        Ok(())
    }

    /// States that reach no output through any number of steps.
    fn idle_states(&mut self, step: &Function) {
        let p = self.p;
        let mut reaches = vec![false; p.states.len()];
        loop {
            let roots = step.outputs.iter().filter(|o| match o.name.strip_prefix("state.") {
                Some(name) => p.states.iter().position(|s| s.name == name).is_some_and(|i| reaches[i]),
                None => true,
            });
            let needed = crate::graph::ancestors(step, roots.map(|o| o.node));
            let mut grown = false;
            for (node, needed) in step.nodes.iter().zip(needed) {
                if let (Op::State { index }, true) = (&node.op, needed)
                    && !std::mem::replace(&mut reaches[*index as usize], true)
                {
                    grown = true;
                }
            }
            if !grown {
                break;
            }
        }
        for (state, _) in p.states.iter().zip(reaches).filter(|(_, r)| !r) {
            let node = step.output(&format!("state.{}", state.name)).map(|n| step.nodes[n as usize].span);
            let place = node.map(|s| p.place(s)).unwrap_or_default();
            self.notice(place, format!("state `{}` never reaches an output", state.name));
        }
    }

    fn step(&self, name: &str, f: &Function, index: usize) -> Result<(), CheckError> {
        let p = self.p;
        let declared: Vec<(&str, Type)> =
            p.inputs.iter().map(|i| (i.name.as_str(), TensorType::float(&i.full_shape()).into())).collect();
        let found: Vec<(&str, Type)> = f.arguments.iter().map(|a| (a.name.as_str(), a.ty.clone())).collect();
        if declared != found {
            let words = |list: &[(&str, Type)]| {
                let words: Vec<String> = list.iter().map(|(n, t)| format!("{n} {t}")).collect();
                if words.is_empty() { "nothing".to_string() } else { words.join(", ") }
            };
            return Err(self.error(Problem::Arguments {
                function: name.to_string(),
                found: words(&found),
                declared: words(&declared),
            }));
        }
        if f.output("output").is_none() {
            return Err(self.error(Problem::MissingOutput { function: name.to_string(), name: "output".into() }));
        }
        for state in &p.states {
            let result = format!("state.{}", state.name);
            let Some(node) = f.output(&result) else {
                return Err(self.error(Problem::MissingOutput { function: name.to_string(), name: result }));
            };
            let declared = Type::from(TensorType::float(&state.shape));
            let found = &self.types.nodes[index][node as usize];
            if *found != declared {
                let (found, declared) = (found.to_string(), declared.to_string());
                let problem = Problem::OutputType { function: name.to_string(), name: result, found, declared };
                return Err(CheckError::at(p, f.nodes[node as usize].span, problem));
            }
            self.initial(f, state)?;
        }
        for o in &f.outputs {
            let known = o.name == "output"
                || o.name.strip_prefix("extra.").is_some_and(|n| !n.is_empty())
                || o.name.strip_prefix("state.").is_some_and(|n| p.states.iter().any(|s| s.name == n));
            if !known {
                return Err(self.error(Problem::UnexpectedOutput { function: name.to_string(), name: o.name.clone() }));
            }
            self.plain_float(name, f, index, o.node, &o.name)?;
        }
        Ok(())
    }

    /// A result that must be a float tensor without a sequence axis.
    fn plain_float(&self, name: &str, f: &Function, index: usize, node: NodeId, result: &str) -> Result<(), CheckError> {
        match &self.types.nodes[index][node as usize] {
            Type::Tensor(t) if t.dtype == DType::Float && t.axis.is_none() => Ok(()),
            found => {
                let declared = "floats without a sequence axis".to_string();
                let problem =
                    Problem::OutputType { function: name.into(), name: result.into(), found: found.to_string(), declared };
                Err(CheckError::at(self.p, f.nodes[node as usize].span, problem))
            }
        }
    }

    fn initial(&self, f: &Function, state: &fwp_sdk::program::State) -> Result<(), CheckError> {
        if state.held == 0 {
            return Err(self.declaration("state", &state.name, "it is held for 0 steps; 1 changes it at every step"));
        }
        let StateInit::Parameter(name) = &state.init else { return Ok(()) };
        match f.parameters.iter().find(|q| q.name == *name) {
            Some(q) if q.shape == state.shape => Ok(()),
            Some(q) => {
                let why = format!("it starts as parameter `{name}` of shape {:?}, and has shape {:?}", q.shape, state.shape);
                Err(self.declaration("state", &state.name, why))
            }
            None => Err(self.declaration("state", &state.name, format!("it starts as parameter `{name}`, which is not there"))),
        }
    }

    fn map(&mut self) -> Result<(), CheckError> {
        let p = self.p;
        let mut sizes: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        for (name, index) in &p.entries {
            let f = &p.functions[*index as usize];
            let vector =
                |t: &Type| matches!(t, Type::Tensor(t) if t.dtype == DType::Float && t.axis.is_none() && t.shape.len() == 1);
            if f.arguments.len() != 1 || !vector(&f.arguments[0].ty) {
                let found = f.arguments.iter().map(|a| a.ty.to_string()).collect::<Vec<_>>().join(", ");
                return Err(self.error(Problem::Arguments { function: name.clone(), found, declared: "one vector".into() }));
            }
            let results = &self.types.functions[*index as usize].results;
            if results.len() != 1 || !vector(&results[0]) {
                let found = results.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
                return Err(self.error(Problem::OutputType {
                    function: name.clone(),
                    name: f.outputs.first().map(|o| o.name.clone()).unwrap_or_default(),
                    found,
                    declared: "one vector of features".into(),
                }));
            }
            let used = live(f);
            if !f.nodes.iter().zip(used).any(|(n, used)| used && n.op == (Op::Argument { index: 0 })) {
                return Err(self.error(Problem::UnusedInput(f.arguments[0].name.clone())));
            }
            sizes.push((crate::graph::sizes(&f.arguments[0].ty).to_vec(), crate::graph::sizes(&results[0]).to_vec()));
        }
        if sizes.windows(2).any(|w| w[0] != w[1]) {
            return Err(self.declaration("feature map", &p.name, "keys and queries have different sizes before or after it"));
        }
        Ok(())
    }

    fn net(&mut self) -> Result<(), CheckError> {
        let p = self.p;
        for (name, index) in &p.entries {
            let f = &p.functions[*index as usize];
            if f.outputs.is_empty() {
                return Err(self.error(Problem::MissingOutput { function: name.clone(), name: "an output of the task".into() }));
            }
            for o in &f.outputs {
                let found = &self.types.nodes[*index as usize][o.node as usize];
                if !matches!(found, Type::Tensor(_)) {
                    return Err(self.error(Problem::OutputType {
                        function: name.clone(),
                        name: o.name.clone(),
                        found: found.to_string(),
                        declared: "a tensor".into(),
                    }));
                }
            }
            let used = live(f);
            for (i, a) in f.arguments.iter().enumerate() {
                let index = i as u32;
                if !f.nodes.iter().zip(&used).any(|(n, used)| *used && n.op == (Op::Argument { index })) {
                    self.notice(String::new(), format!("the task's input `{}` is not used", a.name));
                }
            }
        }
        Ok(())
    }

    /// Parameters that nothing reads are not wrong, but cost memory and confuse.
    fn parameters(&mut self) {
        let p = self.p;
        for (f, class) in p.functions.iter().zip(classes_of(p)) {
            if class.is_none() {
                continue;
            }
            let used = live(f);
            for (i, parameter) in f.parameters.iter().enumerate() {
                let index = i as u32;
                let read = f.nodes.iter().zip(&used).any(|(n, used)| *used && n.op == (Op::Parameter { index }));
                let starts = p.states.iter().any(|s| s.init == StateInit::Parameter(parameter.name.clone()));
                if !read && !starts {
                    self.notice(String::new(), format!("function `{}`: parameter `{}` is never used", f.name, parameter.name));
                }
            }
        }
    }
}

pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Query => "query",
        Role::Key => "key",
        Role::Value => "value",
        Role::Gate => "signal",
    }
}

/// Why an operator may not stand in a function of this class; `entered` says that the host enters the function and nothing calls it.
fn misplaced(op: &Op, class: Class, entered: bool) -> Option<String> {
    use Class::*;
    let only = |what: &str| Some(format!("it belongs in {what}, this is {}", class.name()));
    match op {
        Op::RandomNormal { .. } | Op::RandomUniform { .. } | Op::RandomOrthogonal { .. } | Op::HeadIndex
            if class != Initialiser =>
        {
            only("an initialiser")
        }
        Op::Parameter { .. } if class == Initialiser => only("a step, a feature map or a slow net"),
        Op::State { .. } if class != Step => only("a step"),
        Op::State { .. } if !entered => Some("hand the state over to the repeated part as an operand".into()),
        Op::Phi { .. } if class != Step => only("a step"),
        Op::StepIndex if !matches!(class, Step | Map) => only("a step or a feature map; a slow net has `position`"),
        Op::StepIndex if !entered => Some("hand the index over to the repeated part as an operand".into()),
        Op::LayerIndex if !matches!(class, Net | Initialiser) => only("a slow net or an initialiser"),
        Op::Gradient if !matches!(class, Step | Map) => only("a step or a feature map; the host forms a slow net's gradients"),
        Op::Position
        | Op::CausalConv
        | Op::TimeCumsum
        | Op::Last
        | Op::MeanOver
        | Op::Along
        | Op::Shift { .. }
        | Op::Attention { .. }
        | Op::Dropout { .. }
        | Op::Blocks { .. }
        | Op::Scan { .. }
        | Op::FastWeights { .. }
        | Op::MemoryInit { .. }
        | Op::FastWrite { .. }
        | Op::FastRead { .. }
            if class != Net =>
        {
            only("a slow net")
        }
        _ => None,
    }
}
