//! Expressions: what a step, a feature map or a slow net is written in.

use std::panic::Location;

use crate::program::{DType, NodeId, Op, Span, TensorType, Type};

use super::graph::{Graph, mistake};
use super::operators::Operand;

/// A value in the graph under construction.
///
/// Cloning is cheap and means the same value.
/// Arithmetic works on values and references; a number stands for a scalar.
#[derive(Clone)]
pub struct Expr {
    pub(crate) graph: Graph,
    pub(crate) id: NodeId,
}

macro_rules! unary {
    ($( $(#[$doc:meta])* $name:ident $op:ident; )*) => {
        $( $(#[$doc])* #[track_caller] pub fn $name(&self) -> Expr { self.graph.node(Op::$op, &[self]) } )*
    };
}

macro_rules! binary {
    ($( $(#[$doc:meta])* $name:ident $op:ident; )*) => {
        $( $(#[$doc])* #[track_caller] pub fn $name(&self, other: impl Operand) -> Expr {
            let other = other.of(self);
            self.graph.node(Op::$op, &[self, &other])
        } )*
    };
}

macro_rules! on_axis {
    ($( $(#[$doc:meta])* $name:ident $op:ident; )*) => {
        $( $(#[$doc])* #[track_caller] pub fn $name(&self, axis: usize) -> Expr { self.graph.node(Op::$op { axis }, &[self]) } )*
    };
}

macro_rules! reduce {
    ($( $(#[$doc:meta])* $name:ident $over:ident $op:ident; )*) => {
        $(
            $(#[$doc])* #[track_caller] pub fn $name(&self) -> Expr {
                let axes = (0..self.shape().len()).collect();
                self.graph.node(Op::$op { axes }, &[self])
            }
            /// The same over the given axes.
            #[track_caller] pub fn $over(&self, axes: &[usize]) -> Expr {
                self.graph.node(Op::$op { axes: axes.to_vec() }, &[self])
            }
        )*
    };
}

impl Expr {
    unary! {
        /// |x|
        abs Abs;
        /// -1, 0 or 1
        sign Sign;
        /// e^x
        exp Exp;
        /// e^x - 1
        expm1 Expm1;
        /// Natural logarithm.
        log Log;
        /// log(1 + x)
        log1p Log1p;
        /// Square root.
        sqrt Sqrt;
        /// 1 / sqrt(x)
        rsqrt Rsqrt;
        /// 1 / x
        reciprocal Reciprocal;
        /// x * x
        square Square;
        /// Sine.
        sin Sin;
        /// Cosine.
        cos Cos;
        /// Hyperbolic tangent.
        tanh Tanh;
        /// 1 / (1 + e^-x)
        sigmoid Sigmoid;
        /// log(sigmoid(x))
        log_sigmoid LogSigmoid;
        /// log(1 + e^x)
        softplus Softplus;
        /// max(x, 0)
        relu Relu;
        /// GELU with the error function.
        gelu Gelu;
        /// GELU in its tanh approximation.
        gelu_tanh GeluTanh;
        /// x sigmoid(x)
        silu Silu;
        /// Error function.
        erf Erf;
        /// Largest whole number not above x.
        floor Floor;
        /// Integers or a mask as floats.
        to_float ToFloat;
        /// The same value, constant for every gradient.
        stop_gradient StopGradient;
        /// Logical not.
        not Not;
        /// Number of trailing zero bits.
        trailing_zeros TrailingZeros;
        /// Place in the sequence since the last reset, along this value's axis.
        position Position;
        /// Sum over the steps up to and including this one.
        time_cumsum TimeCumsum;
        /// The last step's value.
        last Last;
        /// Mean over all steps.
        mean_over MeanOver;
    }
    binary! {
        /// Larger of the two.
        max Max;
        /// Smaller of the two.
        min Min;
        /// Power.
        pow Pow;
        /// Remainder with the sign of the divisor.
        rem Rem;
        /// a < b
        less Less;
        /// a <= b
        less_equal LessEqual;
        /// a = b
        equal Equal;
        /// Logical and.
        and And;
        /// Logical or.
        or Or;
        /// Bitwise and.
        bit_and BitAnd;
        /// Bitwise or.
        bit_or BitOr;
        /// Bitwise exclusive or.
        bit_xor BitXor;
        /// Shifted left.
        shift_left ShiftLeft;
        /// Shifted right.
        shift_right ShiftRight;
        /// Matrix `[m, n]` times vector `[n]`: `[m]`.
        matvec MatVec;
        /// Transposed matrix `[m, n]` times vector `[m]`: `[n]`.
        matvec_t MatVecT;
        /// Matrix `[m, k]` times matrix `[k, n]`: `[m, n]`.
        matmul MatMul;
        /// Inner product of two values of one shape, a scalar.
        dot Dot;
        /// Rows of this table `[n, ..]` chosen by integers `[i]`: `[i, ..]`.
        gather Gather;
    }
    on_axis! {
        /// Reversed along an axis.
        flip Flip;
        /// Running sum along an axis.
        cumsum Cumsum;
        /// Softmax along an axis.
        softmax_on Softmax;
        /// Logarithm of the softmax along an axis.
        log_softmax_on LogSoftmax;
        /// log(sum(exp(x))) along an axis.
        log_sum_exp_on LogSumExp;
    }
    reduce! {
        /// Sum of all elements.
        sum sum_over_axes Sum;
        /// Mean of all elements.
        mean mean_over_axes Mean;
        /// Largest element.
        largest largest_over_axes ReduceMax;
        /// Smallest element.
        smallest smallest_over_axes ReduceMin;
    }

    /// Where the plugin's source made this value.
    pub(crate) fn span(&self) -> Span {
        self.graph.0.borrow().function.nodes[self.id as usize].span
    }
    /// Type of the value.
    pub fn ty(&self) -> Type {
        self.graph.0.borrow().types[self.id as usize].clone()
    }
    #[track_caller]
    pub(crate) fn tensor_type(&self) -> TensorType {
        match self.ty() {
            Type::Tensor(t) => t,
            other => mistake(format!("expected a tensor, got {other}")),
        }
    }
    /// Sizes of the value at one step; empty for a scalar.
    #[track_caller]
    pub fn shape(&self) -> Vec<usize> {
        self.tensor_type().shape
    }
    /// Sum of squares of all elements, a scalar.
    #[track_caller]
    pub fn norm_squared(&self) -> Expr {
        self.graph.node(Op::Dot, &[self, self])
    }
    /// Euclidean (Frobenius) norm, a scalar.
    #[track_caller]
    pub fn norm(&self) -> Expr {
        let squared = self.graph.node(Op::Dot, &[self, self]);
        self.graph.node(Op::Sqrt, &[&squared])
    }
    /// a > b
    #[track_caller]
    pub fn greater(&self, other: impl Operand) -> Expr {
        let other = other.of(self);
        self.graph.node(Op::Less, &[&other, self])
    }
    /// a >= b
    #[track_caller]
    pub fn greater_equal(&self, other: impl Operand) -> Expr {
        let other = other.of(self);
        self.graph.node(Op::LessEqual, &[&other, self])
    }
    /// Softmax along the last axis.
    #[track_caller]
    pub fn softmax(&self) -> Expr {
        let axis = self.last_axis();
        self.graph.node(Op::Softmax { axis }, &[self])
    }
    /// x / sqrt(mean(x^2) + eps) along the last axis.
    #[track_caller]
    pub fn rms_norm(&self, eps: f64) -> Expr {
        self.graph.node(Op::RmsNorm { eps }, &[self])
    }
    /// (x - mean) / sqrt(variance + eps) along the last axis.
    #[track_caller]
    pub fn layer_norm(&self, eps: f64) -> Expr {
        self.graph.node(Op::LayerNorm { eps }, &[self])
    }
    /// x / sqrt(sum(x^2) + eps) along the last axis.
    #[track_caller]
    pub fn l2_normalise(&self, eps: f64) -> Expr {
        self.graph.node(Op::L2Normalise { eps }, &[self])
    }
    /// x / (sum(x) + eps) along the last axis.
    #[track_caller]
    pub fn sum_normalise(&self, eps: f64) -> Expr {
        self.graph.node(Op::SumNormalise { eps }, &[self])
    }
    #[track_caller]
    fn last_axis(&self) -> usize {
        match self.shape().len() {
            0 => mistake("a scalar has no last axis"),
            n => n - 1,
        }
    }
    /// a / b where b is not 0, else `otherwise`, without a gradient to a and b there.
    #[track_caller]
    pub fn div_or(&self, divisor: impl Operand, otherwise: impl Operand) -> Expr {
        let (divisor, otherwise) = (divisor.of(self), otherwise.of(self));
        self.graph.node(Op::DivOr, &[self, &divisor, &otherwise])
    }
    /// Where this mask holds `yes`, else `no`.
    #[track_caller]
    pub fn select(&self, yes: impl Operand, no: impl Operand) -> Expr {
        // A number stands for a float here: this value is a mask and gives no hint of its own.
        let (yes, no) = (yes.of_kind(self, DType::Float), no.of_kind(self, DType::Float));
        self.graph.node(Op::Select, &[self, &yes, &no])
    }
    /// The same elements in another shape, row-major.
    #[track_caller]
    pub fn reshape(&self, shape: &[usize]) -> Expr {
        self.graph.node(Op::Reshape { shape: shape.to_vec() }, &[self])
    }
    /// Axes in another order.
    #[track_caller]
    pub fn permute(&self, order: &[usize]) -> Expr {
        self.graph.node(Op::Transpose { order: order.to_vec() }, &[self])
    }
    /// Transposed matrix: `[m, n]` to `[n, m]`.
    #[track_caller]
    pub fn transpose(&self) -> Expr {
        self.graph.node(Op::Transpose { order: vec![1, 0] }, &[self])
    }
    /// `length` elements of an axis from `start`.
    #[track_caller]
    pub fn slice(&self, axis: usize, start: usize, length: usize) -> Expr {
        self.graph.node(Op::Slice { axis, start, length }, &[self])
    }
    /// Element `index` of the first axis: `[n, ..]` to `[..]`.
    #[track_caller]
    pub fn at(&self, index: usize) -> Expr {
        let shape = self.shape();
        let row = self.graph.node(Op::Slice { axis: 0, start: index, length: 1 }, &[self]);
        self.graph.node(Op::Reshape { shape: shape[1..].to_vec() }, &[&row])
    }
    /// Consecutive parts of the given sizes along an axis; the sizes add up to that of the axis.
    #[track_caller]
    pub fn split(&self, axis: usize, sizes: &[usize]) -> Vec<Expr> {
        let mut start = 0;
        let mut parts = Vec::new();
        let size = self.tensor_type().shape.get(axis).copied();
        if size.is_some_and(|n| sizes.iter().try_fold(0usize, |sum, s| sum.checked_add(*s)) != Some(n)) {
            mistake(format!("`split`: the sizes {sizes:?} do not add up to axis {axis} of {}", self.ty()));
        }
        for &length in sizes {
            parts.push(self.graph.node(Op::Slice { axis, start, length }, &[self]));
            start += length;
        }
        parts
    }
    /// A new axis of `size` equal copies at `axis`.
    #[track_caller]
    pub fn expand(&self, axis: usize, size: usize) -> Expr {
        self.graph.node(Op::Expand { axis, size }, &[self])
    }
    /// Cyclic shift: element i moves to i + shift along the axis.
    #[track_caller]
    pub fn roll(&self, axis: usize, shift: i64) -> Expr {
        self.graph.node(Op::Roll { axis, shift }, &[self])
    }
    /// Integers `[..]` as one-hot float vectors `[.., size]`.
    #[track_caller]
    pub fn one_hot(&self, size: usize) -> Expr {
        self.graph.node(Op::OneHot { size }, &[self])
    }
    /// Every column j of this matrix `[m, n]` multiplied by element j of `by` `[n]`: M Diag(by).
    #[track_caller]
    pub fn scale_columns(&self, by: impl Into<Expr>) -> Expr {
        let rows = self.matrix_shape().0;
        let by = self.graph.node(Op::Expand { axis: 0, size: rows }, &[&by.into()]);
        self.graph.node(Op::Mul, &[self, &by])
    }
    /// Every row i of this matrix `[m, n]` multiplied by element i of `by` `[m]`: Diag(by) M.
    #[track_caller]
    pub fn scale_rows(&self, by: impl Into<Expr>) -> Expr {
        let columns = self.matrix_shape().1;
        let by = self.graph.node(Op::Expand { axis: 1, size: columns }, &[&by.into()]);
        self.graph.node(Op::Mul, &[self, &by])
    }
    #[track_caller]
    fn matrix_shape(&self) -> (usize, usize) {
        match self.shape()[..] {
            [m, n] => (m, n),
            _ => mistake(format!("expected a matrix, got {}", self.ty())),
        }
    }
    /// Gradient of this scalar with respect to one value, taken as a free variable; it has the value's shape.
    #[track_caller]
    pub fn gradient(&self, wrt: impl Into<Expr>) -> Expr {
        let all = self.graph.node(Op::Gradient, &[self, &wrt.into()]);
        self.graph.node(Op::Element { index: 0 }, &[&all])
    }
    /// Gradients of this scalar with respect to several values.
    #[track_caller]
    pub fn gradients(&self, wrt: &[&Expr]) -> Vec<Expr> {
        let operands: Vec<&Expr> = std::iter::once(self).chain(wrt.iter().copied()).collect();
        self.graph.node(Op::Gradient, &operands).elements()
    }
    /// Solution x `[n]` of A x = b for this symmetric positive definite matrix A `[n, n]` and b `[n]`, by conjugate gradients
    /// that end after `iterations` or when the residual is below `tolerance` times |b|.
    #[track_caller]
    pub fn solve_spd(&self, b: impl Into<Expr>, iterations: usize, tolerance: f64) -> Expr {
        self.graph.node(Op::SolveSpd { iterations, tolerance }, &[self, &b.into()])
    }
    /// Delayed by `steps`, zeros before the first step.
    #[track_caller]
    pub fn shift(&self, steps: usize) -> Expr {
        self.graph.node(Op::Shift { steps }, &[self])
    }
    /// Rotary position encoding of the last axis.
    #[track_caller]
    pub fn rotary(&self, position: impl Into<Expr>, base: f64, interleaved: bool) -> Expr {
        self.graph.node(Op::Rotary { base, interleaved }, &[self, &position.into()])
    }
    /// Dropped with probability p while training.
    #[track_caller]
    pub fn dropout(&self, p: f64) -> Expr {
        if p == 0.0 { self.clone() } else { self.graph.node(Op::Dropout { p }, &[self]) }
    }
    /// This value, repeated along the axis of another.
    #[track_caller]
    pub fn along(&self, like: impl Into<Expr>) -> Expr {
        self.graph.node(Op::Along, &[self, &like.into()])
    }
    /// A tensor of this graph with every element `value`.
    #[track_caller]
    pub fn full(&self, shape: &[usize], value: f64) -> Expr {
        self.graph.node(Op::Full { shape: shape.to_vec(), value }, &[])
    }
    #[track_caller]
    pub(crate) fn elements(&self) -> Vec<Expr> {
        let at = Location::caller();
        match self.ty() {
            Type::Tuple(parts) => {
                (0..parts.len() as u32).map(|index| self.graph.node_at(at, Op::Element { index }, &[self])).collect()
            }
            other => mistake(format!("expected several values, got {other}")),
        }
    }
}

/// Column times row: `[m]` and `[n]` to `[m, n]`.
#[track_caller]
pub fn outer(column: impl Into<Expr>, row: impl Into<Expr>) -> Expr {
    let (column, row) = (column.into(), row.into());
    column.graph.node(Op::Outer, &[&column, &row])
}

/// Values one after another along an axis.
#[track_caller]
pub fn concat(axis: usize, parts: &[&Expr]) -> Expr {
    match parts.first() {
        Some(first) => first.graph.node(Op::Concat { axis }, parts),
        None => mistake("nothing to concatenate"),
    }
}

/// n values of one shape `[..]` along a new first axis: `[n, ..]`.
#[track_caller]
pub fn stack(parts: &[&Expr]) -> Expr {
    let at = Location::caller();
    let grown: Vec<Expr> = parts.iter().map(|p| p.graph.node_at(at, Op::Expand { axis: 0, size: 1 }, &[p])).collect();
    match grown.first() {
        Some(first) => first.graph.node(Op::Concat { axis: 0 }, &grown.iter().collect::<Vec<_>>()),
        None => mistake("nothing to stack"),
    }
}
