//! What can be wrong with a program.

use std::fmt;

use fwp_sdk::program::{Program, Span};

/// A program that cannot be used: which part, where in its source, and what is wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct CheckError {
    /// The part, such as "update-rule `delta`".
    pub part: String,
    /// `file:line:column` in the plugin's source; empty where it is unknown.
    pub place: String,
    /// What is wrong.
    pub problem: Box<Problem>,
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A shape error names place and part itself.
        if let Problem::Shape(message) = &*self.problem {
            return f.write_str(message);
        }
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        write!(f, "{}: {}", self.part, self.problem)
    }
}

impl CheckError {
    pub(crate) fn new(p: &Program, problem: Problem) -> CheckError {
        CheckError { part: part(p), place: String::new(), problem: Box::new(problem) }
    }
    pub(crate) fn at(p: &Program, span: Span, problem: Problem) -> CheckError {
        CheckError { part: part(p), place: p.place(span), problem: Box::new(problem) }
    }
}

pub(crate) fn part(p: &Program) -> String {
    format!("{} `{}`", p.kind, p.name)
}

/// The kinds of mistake.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A node whose operands do not fit; the text names part, function and place.
    #[error("{0}")]
    Shape(String),
    /// An entry that this kind of part must have.
    #[error("it has no function `{0}`; describe the part again with this version of the SDK")]
    MissingEntry(&'static str),
    /// An entry that this kind of part cannot have, or has twice.
    #[error("the function `{0}` is not one that a host enters here, or it is there twice")]
    UnexpectedEntry(String),
    /// Arguments of an entry that are not what was declared.
    #[error("function `{function}` takes {found}, declared is {declared}")]
    Arguments {
        /// Function.
        function: String,
        /// What it takes.
        found: String,
        /// What was declared.
        declared: String,
    },
    /// A result that was declared and never set.
    #[error("function `{function}` never sets `{name}`")]
    MissingOutput {
        /// Function.
        function: String,
        /// Name of the result.
        name: String,
    },
    /// A result that was not declared, or is set twice.
    #[error("function `{function}` sets `{name}`, which was not declared or is set twice")]
    UnexpectedOutput {
        /// Function.
        function: String,
        /// Name of the result.
        name: String,
    },
    /// A result of another type than declared.
    #[error("function `{function}`: `{name}` is {found}, declared is {declared}")]
    OutputType {
        /// Function.
        function: String,
        /// Name of the result.
        name: String,
        /// Its type.
        found: String,
        /// The declared type.
        declared: String,
    },
    /// An input that no result depends on.
    #[error("input `{0}` is declared and never used: use it in the step or remove it from the signature")]
    UnusedInput(String),
    /// A state that nothing reads.
    #[error("state `{0}` is written and never read: read it in the step or remove it from the signature")]
    UnusedState(String),
    /// Two things of one name.
    #[error("two {what} are called `{name}`")]
    Duplicate {
        /// Kind of thing.
        what: &'static str,
        /// Name.
        name: String,
    },
    /// An operator where it has no meaning.
    #[error("function `{function}`: `{operator}` cannot be used here: {why}")]
    NotAllowed {
        /// Function.
        function: String,
        /// Operator.
        operator: String,
        /// Reason and what to do.
        why: String,
    },
    /// A declaration that contradicts itself.
    #[error("{what} `{name}`: {why}")]
    Declaration {
        /// Kind of thing.
        what: &'static str,
        /// Name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Loops that unroll to too much, or nest too deeply.
    #[error("function `{function}` {what}, the limit is {limit}: use smaller counts")]
    TooLarge {
        /// Function.
        function: String,
        /// What it amounts to.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// A gradient that cannot be written out.
    #[error("the gradient cannot be formed: {0}")]
    Gradient(String),
    /// One parameter path for two declarations.
    #[error("two parameters would be called `{path}`: one of {first}, one of {second}; give the nodes different names")]
    ParameterTwice {
        /// The path.
        path: String,
        /// The first declaration.
        first: String,
        /// The second declaration.
        second: String,
    },
    /// A slow net and the parts of its slots that do not fit.
    #[error("slot `{slot}`: {why}")]
    Slot {
        /// Name of the slot.
        slot: String,
        /// What does not fit.
        why: String,
    },
}

/// Something worth saying that stops nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// `file:line:column` in the plugin's source; empty where it is unknown.
    pub place: String,
    /// What was noticed.
    pub message: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.message)
    }
}
