//! Formulas with the plugin's own names.

use fwp_sdk::program::{MapRole, Op, Program};

use super::derive::{Draft, DraftDecay};
use super::form::{Range, Side};
use super::store::{Ask, Id, Kind, Store};
use super::symbolic::{Symbolic, Value};

/// Longest coefficient that is written into the equation of a state.
const SHORT: usize = 14;
/// Longest text of a formula; what is longer ends in dots.
const LONGEST: usize = 160;

const SUM: u8 = 1;
const PRODUCT: u8 = 2;
const APPLY: u8 = 3;
const ATOM: u8 = 4;

/// An update in symbols.
pub(super) struct Formula {
    /// The equations of the segments, then what their coefficients are.
    pub lines: Vec<String>,
    /// Decays and their ranges.
    pub ranges: Vec<(String, Range)>,
}

/// The update of a state in symbols.
pub(super) fn formula(p: &Program, sym: &mut Symbolic<'_>, draft: &Draft) -> Formula {
    let name = p.states[draft.state].name.as_str();
    let mut names = Names { taken: taken(p), lines: Vec::new() };
    let mut ranges = Vec::new();
    let mut equations = Vec::new();
    let matrix = p.states[draft.state].shape.len() == 2;
    let last = draft.segments.len();
    for (i, segment) in draft.segments.iter().enumerate() {
        let before = if i == 0 { name.to_string() } else { format!("{name}{i}") };
        let after = if i + 1 == last { format!("{name}'") } else { format!("{name}{}", i + 1) };
        let mut parts = Vec::new();
        let decay = match segment.decay {
            DraftDecay::One => None,
            DraftDecay::Scalar(a) | DraftDecay::Columns(a) | DraftDecay::Rows(a) => Some(a),
        };
        let range = decay.map(|a| sym.store.decay_range(a).0);
        let store = &sym.store;
        let right = draft.side == Side::Right;
        let a = decay.map(|a| names.of(p, store, "a", a, PRODUCT));
        if let (Some(a), Some(range), false) = (&a, range, decay.is_some_and(|a| store.is_zero(a))) {
            ranges.push((a.clone(), range));
        }
        match (segment.decay, a) {
            (DraftDecay::Scalar(z), _) if store.is_zero(z) => {}
            (DraftDecay::Scalar(_), Some(a)) => parts.push(format!("{a} * {before}")),
            (DraftDecay::Columns(_) | DraftDecay::Rows(_), Some(a)) if !matrix => parts.push(format!("{a} * {before}")),
            (d, Some(a)) if matches!(d, DraftDecay::Columns(_)) == right => parts.push(format!("{before} Diag({a})")),
            (_, Some(a)) => parts.push(format!("Diag({a}) {before}")),
            _ => parts.push(before.clone()),
        }
        for t in &segment.terms {
            // A vector's one row and a scalar's one element are not written.
            let ones = |id: Id| text(p, store, id, ATOM) == "1";
            let u = t.column.map(|u| names.of(p, store, "u", u, SUM));
            let erased = t.erase.map(|q| (names.of(p, store, "p", q, APPLY), q));
            let w = names.of(p, store, "b", t.row, APPLY);
            let read = erased.map(|(q, _)| match (matrix, right) {
                (false, _) => format!("({before} · {q})"),
                (true, true) => format!("{before} {q}"),
                (true, false) => format!("{before}^T {q}"),
            });
            let inner = match (&u, &read) {
                (Some(u), Some(r)) => format!("({u} + {r})"),
                (Some(x), None) if needs_brackets(x) => format!("({x})"),
                (Some(x), None) => x.clone(),
                (None, Some(r)) => {
                    if matrix {
                        format!("({r})")
                    } else {
                        r.clone()
                    }
                }
                (None, None) => continue,
            };
            parts.push(match (matrix, right) {
                (true, true) => format!("{inner} ⊗ {w}"),
                (true, false) => format!("{w} ⊗ {inner}"),
                (false, _) if ones(t.row) => u.or(read).unwrap_or_default(),
                (false, _) if t.column.is_some_and(ones) => w,
                (false, _) => format!("{inner} * {w}"),
            });
        }
        let right_side = if parts.is_empty() { "0".into() } else { parts.join(" + ") };
        equations.push(format!("{after} = {right_side}"));
    }
    if draft.segments.is_empty() {
        equations.push(format!("{name}' = {name}"));
    }
    equations.extend(names.lines.into_iter().map(|(_, name, text)| format!("{name} = {text}")));
    Formula { lines: equations, ranges }
}

fn needs_brackets(text: &str) -> bool {
    text.contains(" + ") || text.contains(" - ")
}

fn taken(p: &Program) -> Vec<String> {
    p.inputs.iter().map(|i| i.name.clone()).chain(p.states.iter().map(|s| s.name.clone())).collect()
}

/// Names for coefficients that are too long to be written where they are used.
struct Names {
    taken: Vec<String>,
    lines: Vec<(Id, String, String)>,
}

impl Names {
    fn of(&mut self, p: &Program, s: &Store<'_>, hint: &str, id: Id, level: u8) -> String {
        if let Some((_, name, _)) = self.lines.iter().find(|(other, ..)| *other == id) {
            return name.clone();
        }
        let short = text(p, s, id, level);
        if short.chars().count() <= SHORT {
            return short;
        }
        let mut name = hint.to_string();
        let mut count = 1;
        while self.taken.contains(&name) {
            count += 1;
            name = format!("{hint}{count}");
        }
        self.taken.push(name.clone());
        self.lines.push((id, name.clone(), text(p, s, id, 0)));
        name
    }
}

/// What the results of a step read of its states.
pub(super) fn reads(p: &Program, sym: &Symbolic<'_>) -> Vec<String> {
    let mut found: Vec<Id> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut todo: Vec<Id> =
        sym.results.iter().filter_map(|(_, v)| if let Value::Expr(id) = v { Some(*id) } else { None }).collect();
    while let Some(id) = todo.pop() {
        if sym.store.states(id) == 0 || !seen.insert(id) {
            continue;
        }
        todo.extend(sym.store.operands(id));
        if matches!(sym.store.kind(id), Kind::Read(_)) {
            found.push(id);
        }
    }
    found.sort_by(|a, b| sym.store.order(*a, *b));
    found.iter().map(|id| text(p, &sym.store, *id, 0)).collect()
}

/// An expression as text, in brackets where it holds together less than `level`.
pub(super) fn text(p: &Program, s: &Store<'_>, id: Id, level: u8) -> String {
    let mut budget = LONGEST;
    let (out, own) = written(p, s, id, &mut budget);
    if own >= level { out } else { format!("({out})") }
}

/// `budget` is what is left of the length; beyond it everything is dots.
fn written(p: &Program, s: &Store<'_>, id: Id, budget: &mut usize) -> (String, u8) {
    if *budget == 0 {
        return ("...".into(), ATOM);
    }
    *budget -= (*budget).min(3);
    let mut at = |id: Id, level: u8| -> String {
        let (out, own) = written(p, s, id, budget);
        if own >= level { out } else { format!("({out})") }
    };
    match s.kind(id) {
        Kind::Sum(constant, terms) => {
            let mut out = if *constant == 0.0 { String::new() } else { number(*constant) };
            for (c, t) in terms {
                let sign = match (out.is_empty(), *c < 0.0) {
                    (true, true) => "-",
                    (true, false) => "",
                    (false, true) => " - ",
                    (false, false) => " + ",
                };
                let factor = if c.abs() == 1.0 { String::new() } else { format!("{} * ", number(c.abs())) };
                out += &format!("{sign}{factor}{}", at(*t, PRODUCT));
            }
            (out, SUM)
        }
        Kind::Product(c, over, under) => {
            let mut parts: Vec<String> = Vec::new();
            if c.abs() != 1.0 || over.is_empty() {
                parts.push(number(c.abs()));
            }
            let mut i = 0;
            while i < over.len() {
                let square = over.get(i + 1) == Some(&over[i]);
                let x = at(over[i], if square { ATOM } else { APPLY });
                parts.push(if square { format!("{x}²") } else { x });
                i += 1 + usize::from(square);
            }
            let mut out = parts.join(" * ");
            for u in under {
                out += &format!(" / {}", at(*u, APPLY));
            }
            if *c < 0.0 { (format!("-{out}"), SUM) } else { (out, PRODUCT) }
        }
        Kind::Read(r) => {
            let state = &p.states[r.state];
            // The last boundary is the new state; one in between has its number.
            let name = match r.after {
                0 => state.name.clone(),
                n if s.last.get(r.state) == Some(&n) => format!("{}'", state.name),
                n => format!("{}{n}", state.name),
            };
            match r.query {
                Ask::Whole => (name, ATOM),
                Ask::Right(q) if state.shape.len() == 1 => (format!("{name} · {}", at(q, APPLY)), PRODUCT),
                Ask::Right(q) => (format!("{name} {}", at(q, ATOM)), APPLY),
                Ask::Left(q) => (format!("{name}^T {}", at(q, ATOM)), APPLY),
            }
        }
        Kind::Op(op, x) => match op {
            Op::Argument { index } => (p.inputs.get(*index as usize).map_or("?", |i| i.name.as_str()).to_string(), ATOM),
            Op::Parameter { index } => (s.parameter(*index).to_string(), ATOM),
            Op::StepIndex => ("index".into(), ATOM),
            Op::Constant { value } | Op::Full { value, .. } => (number(*value), if *value < 0.0 { SUM } else { ATOM }),
            Op::Integer { value } => (value.to_string(), ATOM),
            Op::Expand { .. } => {
                let inner = at(x[0], APPLY);
                (inner, APPLY)
            }
            Op::Reshape { shape } => match s.kind(x[0]) {
                // One of several, its axis dropped.
                Kind::Op(Op::Slice { axis: 0, start, length: 1 }, y) if s.shape(x[0]).get(1..) == Some(&shape[..]) => {
                    (format!("{}[{start}]", at(y[0], ATOM)), ATOM)
                }
                _ => (at(x[0], APPLY), APPLY),
            },
            Op::Slice { axis, start, length } => {
                (format!("{}[{}{start}:{}]", at(x[0], ATOM), ":, ".repeat(*axis), start + length), ATOM)
            }
            Op::Dot if x[0] == x[1] => (format!("|{}|²", at(x[0], 0)), ATOM),
            Op::Dot => (format!("{} · {}", at(x[0], APPLY), at(x[1], APPLY)), PRODUCT),
            Op::MatVec => (format!("{} {}", at(x[0], ATOM), at(x[1], ATOM)), APPLY),
            Op::Outer => (format!("{} ⊗ {}", at(x[0], ATOM), at(x[1], ATOM)), APPLY),
            Op::Phi { role, .. } => {
                (format!("{}({})", if *role == MapRole::Query { "phi_query" } else { "phi" }, at(x[0], 0)), ATOM)
            }
            Op::Eye { .. } => ("I".into(), ATOM),
            Op::Pow => (format!("{}^{}", at(x[0], ATOM), at(x[1], ATOM)), APPLY),
            op => {
                let inner: Vec<String> = x.iter().map(|i| at(*i, 0)).collect();
                (format!("{}({})", op.name(), inner.join(", ")), ATOM)
            }
        },
    }
}

/// A number without needless digits.
fn number(x: f64) -> String {
    if x != 0.0 && (x.abs() < 1e-4 || x.abs() >= 1e9) { format!("{x:e}") } else { format!("{x}") }
}
