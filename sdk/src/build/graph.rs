//! The graph under construction that expressions point into.

use std::cell::RefCell;
use std::panic::Location;
use std::rc::Rc;

use crate::program::shape::{self, Context, FunctionType};
use crate::program::{
    Argument, Function, Node, NodeId, Op, Output, Parameter, Scope, SlotInterface, Span, State, Training, Type,
};

use super::expr::Expr;
use super::init::Init;

/// A mistake in a description: what is wrong and where in the plugin's source.
///
/// Builder methods raise it by unwinding, so that a step reads like its equation; the export macro turns it into a message.
pub struct Mistake {
    /// What is wrong.
    pub message: String,
    /// `file:line:column`.
    pub place: String,
}

/// Ends the description with a message that carries the caller's source place.
#[track_caller]
pub(crate) fn mistake(message: impl Into<String>) -> ! {
    let at = Location::caller();
    std::panic::panic_any(Mistake { message: message.into(), place: format!("{}:{}:{}", at.file(), at.line(), at.column()) })
}

/// Refuses to describe the part as it is configured: the host shows the message with the caller's source place.
///
/// For what [`Config::validate`](crate::Config::validate) cannot see, because it depends on the sizes, the task or the rule.
#[track_caller]
pub fn refuse(message: impl Into<String>) -> ! {
    mistake(message)
}

/// What all functions of a program share while it is built.
#[derive(Default)]
pub(crate) struct Shared {
    pub functions: Vec<Function>,
    pub types: Vec<FunctionType>,
    pub files: Vec<String>,
    pub states: Vec<State>,
    pub slots: Vec<SlotInterface>,
}

/// One function under construction.
pub(crate) struct Building {
    pub function: Function,
    pub types: Vec<Type>,
    pub shared: Rc<RefCell<Shared>>,
}

/// A handle on the function under construction.
#[derive(Clone)]
pub(crate) struct Graph(pub Rc<RefCell<Building>>);

impl Graph {
    pub fn new(name: &str, shared: &Rc<RefCell<Shared>>) -> Graph {
        let function = Function { name: name.to_string(), ..Function::default() };
        Graph(Rc::new(RefCell::new(Building { function, types: Vec::new(), shared: shared.clone() })))
    }

    pub fn shared(&self) -> Rc<RefCell<Shared>> {
        self.0.borrow().shared.clone()
    }

    #[track_caller]
    pub fn node(&self, op: Op, operands: &[&Expr]) -> Expr {
        for o in operands {
            if !Rc::ptr_eq(&o.graph.0, &self.0) {
                mistake("this value belongs to another function: hand it over as an operand of the block, loop or cell");
            }
        }
        let ids: Vec<NodeId> = operands.iter().map(|o| o.id).collect();
        let at = Location::caller();
        let mut building = self.0.borrow_mut();
        let building = &mut *building;
        let shared = &mut *building.shared.borrow_mut();
        let types: Vec<&Type> = ids.iter().map(|i| &building.types[*i as usize]).collect();
        let cx = Context {
            functions: &shared.types,
            arguments: &building.function.arguments,
            parameters: &building.function.parameters,
            states: &shared.states,
            slots: &shared.slots,
        };
        let ty = match shape::infer(&op, &types, &cx) {
            Ok(ty) => ty,
            Err(e) => mistake(format!("`{}`: {e}", op.name())),
        };
        let file = match shared.files.iter().position(|f| f == at.file()) {
            Some(i) => i,
            None => {
                shared.files.push(at.file().to_string());
                shared.files.len() - 1
            }
        };
        let span = Span { file: file as u32, line: at.line(), column: at.column() };
        building.function.nodes.push(Node { op, operands: ids, span });
        building.types.push(ty);
        Expr { graph: self.clone(), id: building.types.len() as NodeId - 1 }
    }

    #[track_caller]
    pub fn argument(&self, name: &str, ty: Type) -> Expr {
        let index = {
            let arguments = &mut self.0.borrow_mut().function.arguments;
            arguments.push(Argument { name: name.to_string(), ty });
            arguments.len() as u32 - 1
        };
        self.node(Op::Argument { index }, &[])
    }

    #[track_caller]
    pub fn parameter(&self, name: &str, shape: &[usize], scope: Scope, training: Training, init: &Init) -> Expr {
        let existing = self.0.borrow().function.parameters.iter().position(|p| p.name == name);
        if let Some(index) = existing {
            if self.0.borrow().function.parameters[index].shape != shape {
                mistake(format!("parameter `{name}` is declared twice with different shapes"));
            }
            return self.node(Op::Parameter { index: index as u32 }, &[]);
        }
        let init = init.build(shape, &self.shared());
        let index = {
            let parameters = &mut self.0.borrow_mut().function.parameters;
            parameters.push(Parameter { name: name.to_string(), shape: shape.to_vec(), scope, training, init });
            parameters.len() as u32 - 1
        };
        self.node(Op::Parameter { index }, &[])
    }

    #[track_caller]
    pub fn output(&self, name: &str, value: &Expr) {
        if !Rc::ptr_eq(&value.graph.0, &self.0) {
            mistake(format!("output `{name}` belongs to another function"));
        }
        let outputs = &mut self.0.borrow_mut().function.outputs;
        if outputs.iter().any(|o| o.name == name) {
            mistake(format!("`{name}` is set twice"));
        }
        outputs.push(Output { name: name.to_string(), node: value.id });
    }

    /// Ends the function and gives its index.
    pub fn finish(self) -> u32 {
        let building = self.0.borrow();
        let results = building.function.outputs.iter().map(|o| building.types[o.node as usize].clone()).collect();
        let arguments = building.function.arguments.iter().map(|a| a.ty.clone()).collect();
        let mut shared = building.shared.borrow_mut();
        // A function written twice (an initialiser, say) is stored once: fewer bytes, one canonical form.
        if let Some(i) = shared.functions.iter().position(|f| same(f, &building.function)) {
            return i as u32;
        }
        shared.functions.push(building.function.clone());
        shared.types.push(FunctionType { arguments, results });
        shared.functions.len() as u32 - 1
    }
}

fn same(a: &Function, b: &Function) -> bool {
    a.name == b.name
        && a.arguments == b.arguments
        && a.parameters == b.parameters
        && a.outputs == b.outputs
        && a.nodes.len() == b.nodes.len()
        && a.nodes.iter().zip(&b.nodes).all(|(x, y)| x.op == y.op && x.operands == y.operands)
}
