//! The graph under construction that expressions point into.

use std::cell::RefCell;
use std::fmt::Display;
use std::panic::Location;
use std::rc::Rc;

use crate::program::shape::{self, Context, FunctionType};
use crate::program::{
    Argument, Function, Node, NodeId, Op, Output, Parameter, Scope, SlotInterface, Span, State, Training, Type,
};

use super::expr::Expr;
use super::init::Init;

/// A place in a plugin's source.
pub(crate) type Place = Location<'static>;

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
    mistake_at(Location::caller(), message)
}

/// Ends the description with a message that carries a place remembered earlier, such as that of a declaration.
pub(crate) fn mistake_at(at: impl Display, message: impl Into<String>) -> ! {
    std::panic::panic_any(Mistake { message: message.into(), place: at.to_string() })
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
    /// Where every node stands, if not where the builder's method was called.
    pub declared_at: Option<&'static Place>,
}

/// A handle on the function under construction.
#[derive(Clone)]
pub(crate) struct Graph(pub Rc<RefCell<Building>>);

impl Graph {
    pub fn new(name: &str, shared: &Rc<RefCell<Shared>>) -> Graph {
        let function = Function { name: name.to_string(), ..Function::default() };
        Graph(Rc::new(RefCell::new(Building { function, types: Vec::new(), shared: shared.clone(), declared_at: None })))
    }

    pub fn shared(&self) -> Rc<RefCell<Shared>> {
        self.0.borrow().shared.clone()
    }

    #[track_caller]
    pub fn node(&self, op: Op, operands: &[&Expr]) -> Expr {
        self.node_at(Location::caller(), op, operands)
    }

    /// As [`Graph::node`] with the place given: closures cannot pass on their caller's.
    pub fn node_at(&self, at: &'static Place, op: Op, operands: &[&Expr]) -> Expr {
        // What an initialiser of this crate draws stands where the parameter is declared.
        let at = self.0.borrow().declared_at.unwrap_or(at);
        let file = {
            let building = self.0.borrow();
            let files = &mut building.shared.borrow_mut().files;
            files.iter().position(|f| f == at.file()).unwrap_or_else(|| {
                files.push(at.file().to_string());
                files.len() - 1
            })
        };
        self.node_with(Span { file: file as u32, line: at.line(), column: at.column() }, op, operands)
    }

    /// As [`Graph::node`] for what the plugin does not write itself: no place, or that of the value it belongs to.
    pub fn node_with(&self, span: Span, op: Op, operands: &[&Expr]) -> Expr {
        let wrong = |message: String| -> ! {
            let place = self.place(span);
            mistake_at(place, format!("`{}`: {message}", op.name()))
        };
        for o in operands {
            if !Rc::ptr_eq(&o.graph.0, &self.0) {
                wrong("this value belongs to another function: hand it over as an operand of the block, loop or cell".into());
            }
        }
        let ids: Vec<NodeId> = operands.iter().map(|o| o.id).collect();
        let ty = {
            let building = self.0.borrow();
            let shared = building.shared.borrow();
            let types: Vec<&Type> = ids.iter().map(|i| &building.types[*i as usize]).collect();
            let cx = Context {
                functions: &shared.types,
                arguments: &building.function.arguments,
                parameters: &building.function.parameters,
                states: &shared.states,
                slots: &shared.slots,
            };
            shape::infer(&op, &types, &cx)
        };
        let ty = ty.unwrap_or_else(|e| wrong(e));
        let mut building = self.0.borrow_mut();
        building.function.nodes.push(Node { op, operands: ids, span });
        building.types.push(ty);
        Expr { graph: self.clone(), id: building.types.len() as NodeId - 1 }
    }

    /// `file:line:column` of a span.
    pub fn place(&self, span: Span) -> String {
        let building = self.0.borrow();
        let shared = building.shared.borrow();
        match shared.files.get(span.file as usize) {
            Some(file) if span.line > 0 => format!("{file}:{}:{}", span.line, span.column),
            _ => String::new(),
        }
    }

    #[track_caller]
    pub fn argument(&self, name: &str, ty: Type) -> Expr {
        self.argument_at(Location::caller(), name, ty)
    }

    pub fn argument_at(&self, at: &'static Place, name: &str, ty: Type) -> Expr {
        let index = self.declare_argument(name, ty);
        self.node_at(at, Op::Argument { index }, &[])
    }

    /// An argument that the plugin does not declare itself.
    pub fn given_argument(&self, name: &str, ty: Type) -> Expr {
        let index = self.declare_argument(name, ty);
        self.node_with(Span::default(), Op::Argument { index }, &[])
    }

    fn declare_argument(&self, name: &str, ty: Type) -> u32 {
        let arguments = &mut self.0.borrow_mut().function.arguments;
        arguments.push(Argument { name: name.to_string(), ty });
        arguments.len() as u32 - 1
    }

    /// Arguments named `prefix0`, `prefix1`, ... of the types of these values.
    pub fn arguments_like(&self, at: &'static Place, prefix: &str, values: &[&Expr]) -> Vec<Expr> {
        values.iter().enumerate().map(|(i, v)| self.argument_at(at, &format!("{prefix}{i}"), v.ty())).collect()
    }

    #[track_caller]
    pub fn parameter(&self, name: &str, shape: &[usize], scope: Scope, training: Training, init: &Init) -> Expr {
        self.parameter_at(Location::caller(), name, shape, scope, training, init)
    }

    pub fn parameter_at(
        &self,
        at: &'static Place,
        name: &str,
        shape: &[usize],
        scope: Scope,
        training: Training,
        init: &Init,
    ) -> Expr {
        let existing = self.0.borrow().function.parameters.iter().position(|p| p.name == name);
        let shared = self.shared();
        let init = init.build(at, shape, &shared);
        let declared = Parameter { name: name.to_string(), shape: shape.to_vec(), scope, training, init };
        if let Some(index) = existing {
            let before = self.0.borrow().function.parameters[index].clone();
            if before != declared {
                let what = if before.shape != declared.shape {
                    format!("with shapes {:?} and {shape:?}", before.shape)
                } else if before.init != declared.init {
                    "with different initialisers".into()
                } else {
                    "with different scopes or ways to train it".into()
                };
                mistake_at(at, format!("parameter `{name}` is declared twice, {what}"));
            }
            return self.node_at(at, Op::Parameter { index: index as u32 }, &[]);
        }
        let index = {
            let parameters = &mut self.0.borrow_mut().function.parameters;
            parameters.push(declared);
            parameters.len() as u32 - 1
        };
        self.node_at(at, Op::Parameter { index }, &[])
    }

    /// A function applied `count` times; see [`Op::Loop`].
    #[track_caller]
    pub fn repeat(
        &self,
        function: &str,
        name: &str,
        count: usize,
        carried: &[&Expr],
        with: &[&Expr],
        body: impl FnOnce(&Graph, &[Expr], &[Expr]) -> Vec<Expr>,
    ) -> Vec<Expr> {
        let at = Location::caller();
        let inner = Graph::new(function, &self.shared());
        let inner_carried = inner.arguments_like(at, "carried", carried);
        let inner_with = inner.arguments_like(at, "with", with);
        for (i, result) in body(&inner, &inner_carried, &inner_with).iter().enumerate() {
            inner.output(&format!("carried{i}"), result);
        }
        let op = Op::Loop { function: inner.finish(), name: name.into(), count, carried: carried.len() };
        let operands: Vec<&Expr> = carried.iter().chain(with).copied().collect();
        self.node(op, &operands).elements()
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

/// Whether two functions do the same, wherever they stand.
fn same(a: &Function, b: &Function) -> bool {
    a.name == b.name
        && a.arguments == b.arguments
        && a.parameters == b.parameters
        && a.outputs == b.outputs
        && a.nodes.len() == b.nodes.len()
        && a.nodes.iter().zip(&b.nodes).all(|(x, y)| x.op == y.op && x.operands == y.operands)
}

/// The constants that steps, maps and nets offer alike.
macro_rules! constants {
    ($builder:ident) => {
        impl $builder {
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
            /// A constant tensor of these values, row-major.
            #[track_caller]
            pub fn table(&self, shape: &[usize], values: Vec<f64>) -> Expr {
                self.graph.node(Op::Table { shape: shape.to_vec(), values }, &[])
            }
            /// Identity matrix `[n, n]`.
            #[track_caller]
            pub fn eye(&self, n: usize) -> Expr {
                self.graph.node(Op::Eye { n }, &[])
            }
            /// The integers 0 to n - 1, `[n]`.
            #[track_caller]
            pub fn arange(&self, n: usize) -> Expr {
                self.graph.node(Op::Arange { n }, &[])
            }
        }
    };
}
pub(super) use constants;
