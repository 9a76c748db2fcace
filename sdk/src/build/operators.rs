//! Arithmetic on expressions, references to them, and numbers.

use std::ops;

use crate::program::{DType, Op};

use super::expr::Expr;

impl From<&Expr> for Expr {
    fn from(e: &Expr) -> Expr {
        e.clone()
    }
}

/// What may stand beside an expression: another expression or a number.
pub trait Operand {
    /// The operand in the graph of `beside`.
    #[track_caller]
    fn of(&self, beside: &Expr) -> Expr;
    /// The operand in the graph of `beside`, a number becoming this kind of element.
    #[track_caller]
    fn of_kind(&self, beside: &Expr, kind: DType) -> Expr;
}

impl Operand for Expr {
    fn of(&self, _: &Expr) -> Expr {
        self.clone()
    }
    fn of_kind(&self, _: &Expr, _: DType) -> Expr {
        self.clone()
    }
}

impl Operand for &Expr {
    fn of(&self, _: &Expr) -> Expr {
        (*self).clone()
    }
    fn of_kind(&self, _: &Expr, _: DType) -> Expr {
        (*self).clone()
    }
}

impl Operand for f64 {
    #[track_caller]
    fn of(&self, beside: &Expr) -> Expr {
        self.of_kind(beside, DType::Float)
    }
    #[track_caller]
    fn of_kind(&self, beside: &Expr, _: DType) -> Expr {
        beside.graph.node(Op::Constant { value: *self }, &[])
    }
}

impl Operand for i64 {
    #[track_caller]
    fn of(&self, beside: &Expr) -> Expr {
        self.of_kind(beside, beside.tensor_type().dtype)
    }
    #[track_caller]
    fn of_kind(&self, beside: &Expr, kind: DType) -> Expr {
        match kind {
            DType::Float => beside.graph.node(Op::Constant { value: *self as f64 }, &[]),
            _ => beside.graph.node(Op::Integer { value: *self }, &[]),
        }
    }
}

macro_rules! operator {
    ($trait:ident $method:ident $op:ident) => {
        impl<T: Operand> ops::$trait<T> for Expr {
            type Output = Expr;
            #[track_caller]
            fn $method(self, other: T) -> Expr {
                let other = other.of(&self);
                self.graph.node(Op::$op, &[&self, &other])
            }
        }
        impl<T: Operand> ops::$trait<T> for &Expr {
            type Output = Expr;
            #[track_caller]
            fn $method(self, other: T) -> Expr {
                let other = other.of(self);
                self.graph.node(Op::$op, &[self, &other])
            }
        }
        operator!(number $trait $method $op f64 Expr);
        operator!(number $trait $method $op f64 &Expr);
        operator!(number $trait $method $op i64 Expr);
        operator!(number $trait $method $op i64 &Expr);
    };
    (number $trait:ident $method:ident $op:ident $number:ident $($expr:tt)+) => {
        impl ops::$trait<$($expr)+> for $number {
            type Output = Expr;
            #[track_caller]
            fn $method(self, other: $($expr)+) -> Expr {
                let number = self.of(&other);
                number.graph.node(Op::$op, &[&number, &other])
            }
        }
    };
}

operator!(Add add Add);
operator!(Sub sub Sub);
operator!(Mul mul Mul);
operator!(Div div Div);

impl ops::Neg for Expr {
    type Output = Expr;
    #[track_caller]
    fn neg(self) -> Expr {
        self.graph.node(Op::Neg, &[&self])
    }
}

impl ops::Neg for &Expr {
    type Output = Expr;
    #[track_caller]
    fn neg(self) -> Expr {
        self.graph.node(Op::Neg, &[self])
    }
}
