//! A program as a person reads it: what it declares, then every function as equations.
//!
//! A value that is used once is written where it is used; one that is used again, or grows long, has a line and a name.
//! A prime marks the next value of a state; the type of a line is at its end.

mod expression;

use fwp_sdk::program::shape::{self, Types};
use fwp_sdk::program::{Kind, NodeId, Op, Program, Scope, StateInit, Training, Type, entry};

use crate::check::role_name;
use crate::graph::{callee, consumers, live};
use expression::{Text, expression, own_line};

/// The whole program as text.
pub fn print(p: &Program) -> String {
    let mut out = format!("{} {}\n", p.kind, p.name);
    if !p.objective.is_empty() {
        out += &format!("objective: {}\n", p.objective);
    }
    declarations(p, &mut out);
    let types = match shape::types(p) {
        Ok(types) => types,
        Err(e) => return out + &format!("\n{e}\n"),
    };
    let mut entries: Vec<(Vec<&str>, u32)> = Vec::new();
    for (name, index) in &p.entries {
        match entries.iter_mut().find(|(_, i)| i == index) {
            Some((names, _)) => names.push(name),
            None => entries.push((vec![name], *index)),
        }
    }
    let mut printer = Printer { p, types: &types, printed: Vec::new() };
    for (names, index) in entries {
        out += &format!("\n{}\n", names.join(", "));
        for line in printer.function(index as usize, 0) {
            out += &format!("  {line}\n");
        }
    }
    out
}

/// A value of the step as one expression, such as `sigmoid(beta)`; parts that grow long are three dots.
pub fn formula(p: &Program, node: NodeId) -> String {
    const LONG: usize = 240;
    let index = p.entries.iter().find(|(name, _)| name == entry::STEP).map(|(_, index)| *index as usize);
    let Some((index, f)) = index.and_then(|index| Some((index, p.functions.get(index)?))) else { return String::new() };
    let Ok(types) = shape::types(p) else { return String::new() };
    let mut texts: Vec<Text> = Vec::new();
    for (n, inner) in f.nodes.iter().enumerate().take(node as usize + 1) {
        let operands: Vec<&Text> = inner.operands.iter().map(|o| &texts[*o as usize]).collect();
        let arguments = callee(&inner.op).and_then(|c| p.functions.get(c as usize)).map(|g| &g.arguments[..]);
        let text = expression(p, f, n, &types.nodes[index], &operands, arguments);
        // A value may be used twice at every level, so a text can double with every node.
        texts.push(if text.text.len() > LONG { Text::atom("...") } else { text });
    }
    texts.pop().map_or_else(String::new, |text| text.text)
}

fn declarations(p: &Program, out: &mut String) {
    let list = |shape: &[usize]| format!("[{}]", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "));
    let mut inputs = Vec::new();
    for i in &p.inputs {
        let mut notes = Vec::new();
        if i.mapped() {
            notes.push("after the feature map".to_string());
        }
        if let Some(n) = i.count {
            notes.push(format!("{n} a token"));
        }
        if let Some(h) = i.heads {
            notes.push(format!("{h} heads"));
        }
        inputs.push(vec![i.name.clone(), role_name(i.role).to_string(), list(&i.shape), notes.join(", ")]);
    }
    table("inputs", inputs, out);
    let mut states = Vec::new();
    for s in &p.states {
        let start = match &s.init {
            StateInit::Zeros => "starts at 0".to_string(),
            StateInit::Constant(c) => format!("starts at {c}"),
            StateInit::Parameter(q) => format!("starts at the parameter {q}"),
        };
        let held = if s.held > 1 { format!("held for {} steps", s.held) } else { String::new() };
        states.push(vec![s.name.clone(), list(&s.shape), start, held]);
    }
    table("states", states, out);
    let mut slots = Vec::new();
    for s in &p.slots {
        let sizes = format!("key {} to {}, value {}", s.key_raw, s.key, s.value);
        slots.push(vec![s.name.clone(), s.rule.clone(), format!("{} heads", s.heads), sizes]);
    }
    table("fast weights", slots, out);
    let mut parameters: Vec<Vec<String>> = Vec::new();
    // A net's parameters stand with their blocks; a rule's and a map's belong to the part.
    for f in &p.functions {
        for q in &f.parameters {
            let scope = match q.scope {
                Scope::Head => "one a head",
                Scope::Layer => "one a layer",
                Scope::Model => "one for the model",
            };
            let training = match q.training {
                Training::Trained { decay: true } => "trained",
                Training::Trained { decay: false } => "trained without weight decay",
                Training::Constant => "constant",
                Training::Redrawn => "drawn anew for every batch",
            };
            let row = vec![q.name.clone(), list(&q.shape), scope.to_string(), training.to_string()];
            if !parameters.contains(&row) {
                parameters.push(row);
            }
        }
    }
    if p.kind == Kind::SlowNet {
        parameters.iter_mut().for_each(|row| {
            row.remove(2);
        });
    }
    table("parameters", parameters, out);
}

fn table(title: &str, rows: Vec<Vec<String>>, out: &mut String) {
    if rows.is_empty() {
        return;
    }
    *out += &format!("\n{title}\n");
    let columns = rows[0].len();
    let widths: Vec<usize> = (0..columns).map(|c| rows.iter().map(|r| width(&r[c])).max().unwrap_or(0)).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| padded(cell, *w)).collect();
        *out += format!("  {}", cells.join("  ")).trim_end();
        *out += "\n";
    }
}

fn width(s: &str) -> usize {
    s.chars().count()
}

fn padded(s: &str, to: usize) -> String {
    format!("{s}{}", " ".repeat(to.saturating_sub(width(s))))
}

enum Line {
    /// name = text, with its type.
    Equation(String, String, String),
    /// Lines of an inner function.
    Body(Vec<String>),
}

struct Printer<'a> {
    p: &'a Program,
    types: &'a Types,
    /// Inner functions that were printed.
    printed: Vec<u32>,
}

impl Printer<'_> {
    /// The lines of a function's equations.
    fn function(&mut self, index: usize, depth: usize) -> Vec<String> {
        let (Some(f), Some(types)) = (self.p.functions.get(index), self.types.nodes.get(index)) else { return Vec::new() };
        let used = live(f);
        let readers = consumers(f);
        let count = |n: usize| -> usize {
            let read: usize = readers[n]
                .iter()
                .filter(|r| used[**r as usize])
                .map(|r| f.nodes[*r as usize].operands.iter().filter(|o| **o as usize == n).count())
                .sum();
            read + f.outputs.iter().filter(|o| o.node as usize == n).count()
        };
        let mut names = Names::of(self.p, index);
        let mut texts: Vec<Text> = vec![Text::atom(""); f.nodes.len()];
        let mut lines = Vec::new();
        // The first result of a node names it; the others are lines of their own at the end.
        let mut result_of: Vec<Option<usize>> = vec![None; f.nodes.len()];
        let leaf = |op: &Op| {
            matches!(op, Op::Argument { .. } | Op::Parameter { .. } | Op::State { .. } | Op::Constant { .. } | Op::Integer { .. })
        };
        for (i, o) in f.outputs.iter().enumerate() {
            let slot = &mut result_of[o.node as usize];
            if slot.is_none() && !leaf(&f.nodes[o.node as usize].op) {
                *slot = Some(i);
            }
        }
        let result_name = |i: usize, depth: usize| result_name(&f.outputs[i].name, depth);
        for (n, node) in f.nodes.iter().enumerate() {
            if !used[n] || matches!(node.op, Op::Element { .. }) && texts[n].level == Text::NAMED {
                continue;
            }
            let operands: Vec<&Text> = node.operands.iter().map(|o| &texts[*o as usize]).collect();
            let arguments = callee(&node.op).and_then(|c| self.p.functions.get(c as usize)).map(|g| &g.arguments[..]);
            let mut text = expression(self.p, f, n, types, &operands, arguments);
            let several = matches!(types[n], Type::Tuple(_)) && node.op != Op::Gradient;
            if several {
                let parts: Vec<usize> = readers[n]
                    .iter()
                    .map(|r| *r as usize)
                    .filter(|r| used[*r] && matches!(f.nodes[*r].op, Op::Element { .. }))
                    .collect();
                let mut shown: Vec<(u32, String, String)> = Vec::new();
                for part in parts {
                    let Op::Element { index } = f.nodes[part].op else { continue };
                    let name = match (shown.iter().find(|(i, ..)| *i == index), result_of[part]) {
                        (Some((_, name, _)), _) => name.clone(),
                        (None, Some(result)) => result_name(result, depth),
                        (None, None) => names.fresh("t"),
                    };
                    shown.push((index, name.clone(), types[part].to_string()));
                    texts[part] = Text { text: name, level: Text::NAMED };
                }
                shown.sort();
                shown.dedup();
                let name = shown.iter().map(|s| s.1.clone()).collect::<Vec<_>>().join(", ");
                let ty = shown.iter().map(|s| s.2.clone()).collect::<Vec<_>>().join(", ");
                lines.push(Line::Equation(name, text.text, ty));
                if let Some(inner) = callee(&node.op) {
                    lines.push(Line::Body(self.body(inner, depth)));
                }
                continue;
            }
            let name = match result_of[n] {
                Some(result) => Some(result_name(result, depth)),
                None if leaf(&node.op) || text.level == Text::NAMED => None,
                None => own_line(f, n, count(n), &readers[n], &text).map(|hint| names.fresh(hint)),
            };
            if let Some(name) = name {
                lines.push(Line::Equation(name.clone(), text.text, types[n].to_string()));
                text = Text::atom(&name);
            }
            texts[n] = text;
        }
        for (i, o) in f.outputs.iter().enumerate() {
            let n = o.node as usize;
            if result_of[n] != Some(i) {
                lines.push(Line::Equation(result_name(i, depth), texts[n].text.clone(), types[n].to_string()));
            }
        }
        aligned(lines)
    }

    fn body(&mut self, inner: u32, depth: usize) -> Vec<String> {
        if self.printed.contains(&inner) {
            return vec!["(as above)".into()];
        }
        if depth > crate::check::MAX_DEPTH {
            return vec!["(deeper than can be shown)".into()];
        }
        self.printed.push(inner);
        self.function(inner as usize, depth + 1)
    }
}

/// A state's next value has a prime, and so has what a repeated function hands on.
fn result_name(name: &str, depth: usize) -> String {
    if let Some(state) = name.strip_prefix("state.") {
        return format!("{state}'");
    }
    match name.strip_prefix("extra.") {
        Some(extra) => extra.to_string(),
        None if depth > 0 => format!("{name}'"),
        None => name.to_string(),
    }
}

fn aligned(lines: Vec<Line>) -> Vec<String> {
    // Very long lines do not push the types of the others out of sight.
    const WIDEST: usize = 76;
    let equations = || lines.iter().filter_map(|l| if let Line::Equation(n, t, _) = l { Some((n, t)) } else { None });
    let names = equations().map(|(n, _)| width(n)).filter(|w| *w <= 24).max().unwrap_or(0);
    let texts = equations().map(|(_, t)| width(t)).filter(|w| *w <= WIDEST).max().unwrap_or(0);
    let mut out = Vec::new();
    for line in &lines {
        match line {
            Line::Equation(name, text, ty) => out.push(format!("{} = {}  {ty}", padded(name, names), padded(text, texts))),
            Line::Body(body) => out.extend(body.iter().map(|l| format!("    {l}"))),
        }
    }
    out
}

/// Names that are taken in a function.
struct Names(Vec<String>);

impl Names {
    fn of(p: &Program, index: usize) -> Names {
        let f = &p.functions[index];
        let mut taken: Vec<String> = f.arguments.iter().map(|a| a.name.clone()).collect();
        taken.extend(f.parameters.iter().map(|q| q.name.clone()));
        taken.extend(p.states.iter().map(|s| s.name.clone()));
        taken.extend(f.outputs.iter().map(|o| result_name(&o.name, 0)));
        Names(taken)
    }

    /// `t` becomes t1, t2, ...; other hints stand alone at first.
    fn fresh(&mut self, hint: &str) -> String {
        let candidates = (hint != "t").then(|| hint.to_string()).into_iter();
        let from = if hint == "t" { 1 } else { 2 };
        let name = candidates
            .chain((from..).map(|i| format!("{hint}{i}")))
            .find(|n| !self.0.contains(n))
            .unwrap_or_else(|| hint.to_string());
        self.0.push(name.clone());
        name
    }
}
