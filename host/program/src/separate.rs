//! Writing and reading as two functions.
//!
//! A step comes apart where its outputs depend on what is written only through the new states.
//! Then a memory can be written along one sequence and read along another, or read once at the end.

use std::fmt;

use fwp_sdk::program::{Function, Node, NodeId, Op, Output, Program, Span, entry};

use crate::error::part;
use crate::graph::{ancestors, classes, pruned, with_arguments_used};

/// How a step comes apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Separation {
    /// Inputs that the new states depend on, in declared order.
    pub write_inputs: Vec<String>,
    /// Inputs that the outputs depend on beside the new states, in declared order.
    pub read_inputs: Vec<String>,
    /// The step without its outputs: the arguments of the step that it needs, results `state.*`.
    pub write: Function,
    /// The outputs: `read_inputs` as arguments, results `output` and `extra.*`; `State` nodes stand for the states after the write.
    pub read: Function,
}

impl Separation {
    /// The function that writes, with `write_inputs` as its arguments. Functions and parameters keep their numbers in the program.
    pub fn write_function(&self) -> &Function {
        &self.write
    }
    /// The function that reads, with `read_inputs` as its arguments.
    pub fn read_function(&self) -> &Function {
        &self.read
    }
}

/// Why a step does not come apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Inseparable {
    /// The part.
    pub part: String,
    /// `file:line:column` of the operation in the way; empty where it is unknown.
    pub place: String,
    /// The operation in the way.
    pub operator: String,
    /// The result that needs it.
    pub result: String,
    /// Reason.
    pub why: String,
}

impl fmt::Display for Inseparable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        write!(f, "{}: `{}` uses `{}`: {}", self.part, self.result, self.operator, self.why)
    }
}

impl std::error::Error for Inseparable {}

/// Separates the step of an update rule. Gradients may be written out or not.
pub fn separate(p: &Program) -> Result<Separation, Inseparable> {
    let no = |span: Span, operator: &str, result: &str, why: String| Inseparable {
        part: part(p),
        place: p.place(span),
        operator: operator.to_string(),
        result: result.to_string(),
        why,
    };
    let Some(step) = p.entry(entry::STEP) else {
        return Err(no(Span::default(), "step", "output", "it is no update rule".into()));
    };
    let class = classes(step);
    let varies = varying(step);
    // The node of every state's next value, where that value is more than a constant.
    let next: Vec<Option<NodeId>> = p
        .states
        .iter()
        .map(|s| step.output(&format!("state.{}", s.name)).filter(|n| varies[*n as usize]).map(|n| class[n as usize]))
        .collect();
    let states = step.outputs.iter().filter(|o| o.name.starts_with("state."));
    let writing = ancestors(step, states.map(|o| o.node));
    let written = |index: u32| {
        let read = |(n, w): (&Node, &bool)| *w && n.op == (Op::Argument { index });
        step.nodes.iter().zip(&writing).any(read)
    };

    // The outputs again, stopping at the new states.
    let mut read = Function { nodes: Vec::new(), outputs: Vec::new(), ..step.clone() };
    let mut reader = Reader { step, class: &class, next: &next, nodes: Vec::new(), map: vec![None; step.nodes.len()] };
    for o in step.outputs.iter().filter(|o| !o.name.starts_with("state.")) {
        let blame = |blocked: Blocked| {
            let node = &step.nodes[blocked.consumer as usize];
            let why = match blocked.what {
                What::OldState(i) => format!("it reads state `{}` as it was before the write", p.states[i].name),
                What::Held(i) => format!("it reads the next value of state `{}`, which is held", p.states[i].name),
                What::Index => "it reads the step index, which belongs to the write".to_string(),
                What::Input(i) => {
                    let name = p.inputs.get(i).map_or("?", |a| a.name.as_str());
                    format!("it reads input `{name}`, which is also written, past the state")
                }
            };
            no(node.span, node.op.name(), &o.name, why)
        };
        let node = reader.visit(o.node, o.node, p, &written).map_err(blame)?;
        read.outputs.push(Output { name: o.name.clone(), node });
    }
    read.nodes = reader.nodes;
    let mut read = with_arguments_used(read);

    let mut write = Function { outputs: step.outputs.clone(), ..step.clone() };
    write.outputs.retain(|o| o.name.starts_with("state."));
    let mut write = with_arguments_used(pruned(&write));
    let names = |f: &Function| f.arguments.iter().map(|a| a.name.clone()).collect();
    read.name = "read".into();
    write.name = "write".into();
    Ok(Separation { write_inputs: names(&write), read_inputs: names(&read), write, read })
}

/// Which nodes depend on an argument, a state or the step index.
fn varying(f: &Function) -> Vec<bool> {
    let mut varies: Vec<bool> = Vec::with_capacity(f.nodes.len());
    for node in &f.nodes {
        let own = matches!(node.op, Op::Argument { .. } | Op::State { .. } | Op::StepIndex);
        varies.push(own || node.operands.iter().any(|o| varies[*o as usize]));
    }
    varies
}

enum What {
    OldState(usize),
    Held(usize),
    Index,
    Input(usize),
}

struct Blocked {
    what: What,
    /// The node that reads it.
    consumer: NodeId,
}

struct Reader<'a> {
    step: &'a Function,
    class: &'a [NodeId],
    next: &'a [Option<NodeId>],
    nodes: Vec<Node>,
    map: Vec<Option<NodeId>>,
}

impl Reader<'_> {
    /// Copies what node `root` needs into the reading function.
    fn visit(&mut self, root: NodeId, consumer: NodeId, p: &Program, written: &dyn Fn(u32) -> bool) -> Result<NodeId, Blocked> {
        // A stack of its own: programs may be deeper than the thread's.
        let mut stack = vec![(root, consumer, false)];
        while let Some((n, consumer, ready)) = stack.pop() {
            if self.map[n as usize].is_some() {
                continue;
            }
            let node = &self.step.nodes[n as usize];
            let blocked = |what| Err(Blocked { what, consumer });
            if let Some(i) = self.next.iter().position(|s| *s == Some(self.class[n as usize])) {
                if p.states[i].held > 1 {
                    return blocked(What::Held(i));
                }
                self.map[n as usize] = Some(self.push(Op::State { index: i as u32 }, Vec::new(), node.span));
                continue;
            }
            match node.op {
                Op::State { index } => return blocked(What::OldState(index as usize)),
                Op::StepIndex => return blocked(What::Index),
                Op::Argument { index } if written(index) => return blocked(What::Input(index as usize)),
                _ => {}
            }
            if ready || node.operands.is_empty() {
                let operands = node.operands.iter().map(|o| self.map[*o as usize].unwrap_or_default()).collect();
                self.map[n as usize] = Some(self.push(node.op.clone(), operands, node.span));
            } else {
                stack.push((n, consumer, true));
                stack.extend(node.operands.iter().rev().map(|o| (*o, n, false)));
            }
        }
        Ok(self.map[root as usize].unwrap_or_default())
    }

    fn push(&mut self, op: Op, operands: Vec<NodeId>, span: Span) -> NodeId {
        self.nodes.push(Node { op, operands, span });
        self.nodes.len() as NodeId - 1
    }
}
