//! One node as an expression of its operands' expressions.

use fwp_sdk::program::bytes::Attribute;
use fwp_sdk::program::{Argument, Function, MapRole, Node, NodeId, Op, Program, QueryScale, ReadAt, Type};

use crate::graph::{elements, sizes};

/// An expression and how tightly it holds together.
#[derive(Clone)]
pub(super) struct Text {
    pub text: String,
    pub level: u8,
}

const COMPARE: u8 = 0;
const SUM: u8 = 1;
const MINUS: u8 = 2;
const PRODUCT: u8 = 3;
const OUTER: u8 = 4;
const APPLY: u8 = 5;
const POSTFIX: u8 = 6;
const ATOM: u8 = 7;

/// Stands between the operands of a gradient until one of its parts is asked for.
const BETWEEN: &str = "\u{1f}";
/// Longest expression that is written into another.
const LONGEST: usize = 56;
/// Longest expression that is written where fast weights are given it.
const LONGEST_GIVEN: usize = 12;

impl Text {
    /// The level of a name that was given before its node was reached.
    pub const NAMED: u8 = 8;

    pub fn atom(text: &str) -> Text {
        Text { text: text.to_string(), level: ATOM }
    }

    /// The text, in parentheses where it holds together less than `level`.
    fn at(&self, level: u8) -> String {
        if self.level >= level { self.text.clone() } else { format!("({})", self.text) }
    }
}

/// A hint for the name of a node that gets a line of its own; `None` where it is written into what uses it.
pub(super) fn own_line<'f>(f: &'f Function, n: usize, uses: usize, readers: &[NodeId], text: &Text) -> Option<&'f str> {
    let node = &f.nodes[n];
    let reader = |want: fn(&Op) -> bool| readers.iter().any(|r| want(&f.nodes[*r as usize].op));
    if readers.iter().any(|r| f.nodes[*r as usize].op == Op::Gradient && f.nodes[*r as usize].operands[0] as usize == n) {
        return Some("loss");
    }
    let constant = matches!(
        node.op,
        Op::Full { .. } | Op::Eye { .. } | Op::Arange { .. } | Op::StepIndex | Op::LayerIndex | Op::HeadIndex | Op::Gradient
    );
    if constant {
        return None;
    }
    // What is handed to the fast weights is named after what it is for.
    if let [reader] = readers
        && text.text.chars().count() > LONGEST_GIVEN
        && let Some(input) = given_as(&f.nodes[*reader as usize], n)
    {
        return Some(input);
    }
    let linear = |op: &Op| matches!(op, Op::MatVec | Op::MatVecT | Op::MatMul | Op::Outer | Op::Dot);
    // A difference of a target and a read is what rules call the error.
    let error = matches!(node.op, Op::Sub) && node.operands.iter().any(|o| linear(&f.nodes[*o as usize].op));
    let sum = matches!(node.op, Op::Add | Op::Sub) && node.operands.iter().any(|o| linear(&f.nodes[*o as usize].op));
    if (sum && reader(linear)) || uses > 1 || text.text.chars().count() > LONGEST {
        return Some(if error { "e" } else { "t" });
    }
    None
}

/// The input of a fast-weight node that node `n` is given as.
fn given_as(reader: &Node, n: usize) -> Option<&str> {
    let (inputs, first) = match &reader.op {
        Op::FastWeights { inputs, .. } => (inputs, 0),
        Op::FastWrite { inputs, .. } | Op::FastRead { inputs, .. } => (inputs, 1),
        _ => return None,
    };
    let position = reader.operands.iter().position(|o| *o as usize == n)?;
    inputs.get(position.checked_sub(first)?).map(String::as_str)
}

/// A number without a needless `.0`.
fn number(x: f64) -> Text {
    let text = if x != 0.0 && (x.abs() < 1e-4 || x.abs() >= 1e9) { format!("{x:e}") } else { format!("{x}") };
    Text { level: if text.starts_with('-') { MINUS } else { ATOM }, text }
}

fn list(shape: &[usize]) -> String {
    format!("[{}]", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}

pub(super) fn expression(
    p: &Program,
    f: &Function,
    n: usize,
    types: &[Type],
    x: &[&Text],
    callee_arguments: Option<&[Argument]>,
) -> Text {
    let node = &f.nodes[n];
    let infix =
        |sign: &str, level: u8, left: u8, right: u8| Text { text: format!("{}{sign}{}", x[0].at(left), x[1].at(right)), level };
    let postfix = |mark: &str| Text { text: format!("{}{mark}", x[0].at(POSTFIX)), level: POSTFIX };
    let of = |name: &str, more: &[String]| {
        let mut parts: Vec<String> = x.iter().map(|t| t.text.clone()).collect();
        parts.extend_from_slice(more);
        Text::atom(&format!("{name}({})", parts.join(", ")))
    };
    let operand_shape = |i: usize| sizes(&types[node.operands[i] as usize]);
    match &node.op {
        Op::Argument { index } => Text::atom(f.arguments.get(*index as usize).map_or("?", |a| &a.name)),
        Op::Parameter { index } => Text::atom(f.parameters.get(*index as usize).map_or("?", |q| &q.name)),
        Op::State { index } => Text::atom(p.states.get(*index as usize).map_or("?", |s| &s.name)),
        Op::StepIndex => Text::atom("index"),
        Op::LayerIndex => Text::atom("layer"),
        Op::HeadIndex => Text::atom("head"),
        Op::Constant { value } => number(*value),
        Op::Integer { value } => Text { level: if *value < 0 { MINUS } else { ATOM }, text: value.to_string() },
        Op::Full { shape, value: 0.0 } => Text::atom(&format!("zeros{}", list(shape))),
        Op::Full { shape, value: 1.0 } => Text::atom(&format!("ones{}", list(shape))),
        Op::Full { shape, value } => Text::atom(&format!("full{}({value})", list(shape))),
        Op::Table { shape, .. } => Text::atom(&format!("table{}", list(shape))),
        Op::Eye { .. } => Text::atom("I"),
        Op::Arange { n } => Text::atom(&format!("range({n})")),

        Op::Neg => Text { text: format!("-{}", x[0].at(PRODUCT)), level: MINUS },
        Op::Abs => Text::atom(&format!("|{}|", x[0].text)),
        Op::Square => postfix("²"),
        Op::Reciprocal => Text { text: format!("1 / {}", x[0].at(OUTER)), level: PRODUCT },
        Op::Rsqrt => Text { text: format!("1 / sqrt({})", x[0].text), level: PRODUCT },
        Op::ToFloat => of("float", &[]),
        Op::Add => infix(" + ", SUM, SUM, PRODUCT),
        Op::Sub => infix(" - ", SUM, SUM, PRODUCT),
        Op::Mul => infix(" * ", PRODUCT, PRODUCT, OUTER),
        Op::Div => infix(" / ", PRODUCT, PRODUCT, APPLY),
        Op::Pow => infix("^", POSTFIX, ATOM, ATOM),
        Op::Rem => infix(" mod ", PRODUCT, PRODUCT, OUTER),
        Op::Less => infix(" < ", COMPARE, SUM, SUM),
        Op::LessEqual => infix(" <= ", COMPARE, SUM, SUM),
        Op::Equal => infix(" == ", COMPARE, SUM, SUM),
        Op::And => infix(" and ", COMPARE, SUM, SUM),
        Op::Or => infix(" or ", COMPARE, SUM, SUM),
        Op::Select => Text::atom(&format!("where({}, {}, else {})", x[0].text, x[1].text, x[2].text)),
        Op::DivOr => Text::atom(&format!("({} / {}, or {} where 0)", x[0].at(PRODUCT), x[1].at(APPLY), x[2].text)),

        Op::MatVec | Op::MatMul => infix(" ", APPLY, POSTFIX, POSTFIX),
        Op::MatVecT => Text { text: format!("{}ᵀ {}", x[0].at(ATOM), x[1].at(POSTFIX)), level: APPLY },
        Op::Outer => infix(" ⊗ ", OUTER, POSTFIX, POSTFIX),
        Op::Dot if node.operands[0] == node.operands[1] => Text::atom(&format!("|{}|²", x[0].text)),
        Op::Dot => infix(" · ", OUTER, POSTFIX, POSTFIX),
        Op::Transpose { order } if order[..] == [1, 0] => Text { text: format!("{}ᵀ", x[0].at(ATOM)), level: POSTFIX },
        Op::Element { index } => match &f.nodes[node.operands[0] as usize] {
            g if g.op == Op::Gradient => {
                let mut parts = x[0].text.split(BETWEEN);
                let y = parts.next().unwrap_or_default();
                Text::atom(&format!("gradient({y}, {})", parts.nth(*index as usize).unwrap_or_default()))
            }
            _ => postfix(&format!(".{index}")),
        },
        // Taken apart again by `Element` above.
        Op::Gradient => Text::atom(&x.iter().map(|t| t.text.clone()).collect::<Vec<_>>().join(BETWEEN)),

        Op::Reshape { shape } => {
            let from = &f.nodes[node.operands[0] as usize];
            match from.op {
                // One row of something, its axis dropped.
                Op::Slice { axis: 0, start, length: 1 } if operand_shape(0).get(1..) == Some(&shape[..]) => {
                    let whole = x[0].text.strip_suffix(&format!("[{start}:{}]", start + 1));
                    match whole {
                        Some(whole) => Text { text: format!("{whole}[{start}]"), level: POSTFIX },
                        None => of("reshape", &[list(shape)]),
                    }
                }
                _ => of("reshape", &[list(shape)]),
            }
        }
        Op::Slice { axis, start, length } => postfix(&format!("[{}{start}:{}]", ":, ".repeat(*axis), start + length)),
        Op::Expand { axis, size } => of("repeat", &[size.to_string(), format!("axis {axis}")]),
        Op::Concat { axis: 0 } => Text::atom(&format!("[{}]", x.iter().map(|t| t.text.clone()).collect::<Vec<_>>().join("; "))),
        Op::Concat { axis } | Op::Flip { axis } => of(node.op.name(), &[format!("axis {axis}")]),
        Op::Roll { axis, shift } => of("roll", &[shift.to_string(), format!("axis {axis}")]),
        Op::Cumsum { axis } | Op::Softmax { axis } | Op::LogSoftmax { axis } | Op::LogSumExp { axis } => {
            let last = operand_shape(0).len() == axis + 1;
            if last { of(node.op.name(), &[]) } else { of(node.op.name(), &[format!("axis {axis}")]) }
        }
        Op::Sum { axes } | Op::Mean { axes } | Op::ReduceMax { axes } | Op::ReduceMin { axes } => {
            let name = match node.op {
                Op::ReduceMax { .. } => "largest",
                Op::ReduceMin { .. } => "smallest",
                _ => node.op.name(),
            };
            let all = elements(&types[n]) == 1 && axes.len() == operand_shape(0).len();
            if all { of(name, &[]) } else { of(name, &[format!("axes {}", list(axes))]) }
        }
        Op::RmsNorm { eps } | Op::LayerNorm { eps } | Op::L2Normalise { eps } | Op::SumNormalise { eps } => {
            of(node.op.name(), &[format!("eps {}", number(*eps).text)])
        }
        Op::OneHot { size } => of("one_hot", &[size.to_string()]),
        Op::Gather => Text { text: format!("{}[{}]", x[0].at(ATOM), x[1].text), level: POSTFIX },
        Op::Phi { role, .. } => of(if *role == MapRole::Query { "phi_query" } else { "phi" }, &[]),
        Op::Along => Text::atom(&format!("{} along {}", x[0].at(ATOM), x[1].at(ATOM))),
        Op::Attention { causal, window, scale } => {
            let mut more = vec![format!("scale {}", number(*scale).text)];
            if *causal {
                more.push("causal".into());
            }
            if *window > 0 {
                more.push(format!("window {window}"));
            }
            of("attention", &more)
        }

        Op::Call { name, .. } => called(&format!("call {name}"), x, callee_arguments),
        Op::Loop { name, count, .. } => called(&format!("{count} times {name}"), x, callee_arguments),
        Op::Blocks { name, count, first, .. } => {
            let last = first + count.saturating_sub(1);
            called(&format!("blocks {name}.{first} to {name}.{last}"), x, callee_arguments)
        }
        Op::Scan { name, .. } => called(&format!("scan {name}"), x, callee_arguments),
        Op::FastWeights { slot, name, inputs, scale, read } => {
            let mut head = format!("fast weights `{slot}` as {name}");
            if *scale != QueryScale::None {
                head += &format!(", scaled {}", scale.show());
            }
            if *read != ReadAt::After {
                head += &format!(", read {}", read.show());
            }
            with_inputs(&head, inputs, x)
        }
        Op::MemoryInit { slot, .. } => Text::atom(&format!("memory(`{slot}`)")),
        Op::FastWrite { inputs, .. } => with_inputs(&format!("write {}", x[0].at(ATOM)), inputs, &x[1..]),
        Op::FastRead { inputs, .. } => with_inputs(&format!("read {}", x[0].at(ATOM)), inputs, &x[1..]),

        op => {
            let more: Vec<String> = op.attributes().into_iter().map(|(name, value)| format!("{name} {value}")).collect();
            of(op.name(), &more)
        }
    }
}

/// A call with what becomes of its arguments inside.
fn called(head: &str, x: &[&Text], arguments: Option<&[Argument]>) -> Text {
    let names = arguments.unwrap_or_default();
    let given = x.iter().enumerate().map(|(i, t)| match names.get(i) {
        Some(a) if a.name != t.text => format!("{} = {}", a.name, t.text),
        _ => t.text.clone(),
    });
    Text::atom(&format!("{} ({})", head.trim_end(), given.collect::<Vec<_>>().join(", ")))
}

fn with_inputs(head: &str, inputs: &[String], x: &[&Text]) -> Text {
    let given = inputs.iter().zip(x).map(|(name, t)| if *name == t.text { name.clone() } else { format!("{name} = {}", t.text) });
    Text::atom(&format!("{head} ({})", given.collect::<Vec<_>>().join(", ")))
}
