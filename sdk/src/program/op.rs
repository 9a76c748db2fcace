//! The operators of a program.
//!
//! Every operator has a numeric code that never changes its meaning, a name for people, and typed attributes.
//! An operator acts on one sample: the host adds the batch, time and head axes that a value carries.

use super::attributes::{MapRole, QueryScale, ReadAt};
use super::bytes::{Attribute, BytesError, Reader, Writer};

macro_rules! operators {
    (
        plain { $( $(#[$pdoc:meta])* $pcode:literal $pvariant:ident $pname:literal, )* }
        with { $( $(#[$doc:meta])* $code:literal $variant:ident $name:literal { $( $(#[$fdoc:meta])* $field:ident : $ty:ty ),* }, )* }
    ) => {
        /// One operator with its attributes. Operands are listed in the node that holds it.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)] // attributes are explained with their operator
        pub enum Op {
            $( $(#[$pdoc])* $pvariant, )*
            $( $(#[$doc])* $variant { $( $(#[$fdoc])* $field: $ty ),* }, )*
        }

        impl Op {
            /// The operator's code in the byte format. A code never changes its meaning.
            pub fn code(&self) -> u16 {
                match self {
                    $( Op::$pvariant => $pcode, )*
                    $( Op::$variant { .. } => $code, )*
                }
            }

            /// The operator's name, as `plugins show` prints it.
            pub fn name(&self) -> &'static str {
                match self {
                    $( Op::$pvariant => $pname, )*
                    $( Op::$variant { .. } => $name, )*
                }
            }

            /// The attributes as `(name, text)`, in the order of the byte format.
            pub fn attributes(&self) -> Vec<(&'static str, String)> {
                match self {
                    $( Op::$pvariant => Vec::new(), )*
                    $( Op::$variant { $( $field ),* } => vec![ $( (stringify!($field), $field.show()) ),* ], )*
                }
            }

            /// Every operator's `(code, name)`.
            pub fn table() -> &'static [(u16, &'static str)] {
                &[ $( ($pcode, $pname), )* $( ($code, $name), )* ]
            }

            /// Every operator's code and its attributes as `name: type`, in the order of the byte format.
            pub fn layouts() -> Vec<(u16, Vec<String>)> {
                vec![
                    $( ($pcode, Vec::new()), )*
                    $( ($code, vec![ $( concat!(stringify!($field), ": ", stringify!($ty)).to_string() ),* ]), )*
                ]
            }

            pub(super) fn write(&self, w: &mut Writer) {
                w.u16(self.code());
                match self {
                    $( Op::$pvariant => {} )*
                    $( Op::$variant { $( $field ),* } => { $( $field.put(w); )* } )*
                }
            }

            pub(super) fn read(r: &mut Reader<'_>) -> Result<Op, BytesError> {
                let code = r.u16()?;
                Ok(match code {
                    $( $pcode => Op::$pvariant, )*
                    $( $code => Op::$variant { $( $field: <$ty as Attribute>::get(r)? ),* }, )*
                    _ => return Err(BytesError::UnknownOperator(code)),
                })
            }
        }
    };
}

operators! {
    plain {
        // Values that are just there.
        /// Steps since the last reset, an integer scalar; 0 at the first step.
        0x0001 StepIndex "step_index",
        /// Index of the current repetition of the innermost repeated block, an integer scalar.
        0x0002 LayerIndex "layer_index",
        /// Index of the head, an integer scalar. Only in initialisers.
        0x0003 HeadIndex "head_index",

        // One operand, element by element.
        /// -x
        0x0101 Neg "neg",
        /// |x|; gradient 0 at 0.
        0x0102 Abs "abs",
        /// -1, 0 or 1.
        0x0103 Sign "sign",
        /// e^x
        0x0104 Exp "exp",
        /// e^x - 1
        0x0105 Expm1 "expm1",
        /// Natural logarithm.
        0x0106 Log "log",
        /// log(1 + x)
        0x0107 Log1p "log1p",
        /// Square root.
        0x0108 Sqrt "sqrt",
        /// 1 / sqrt(x)
        0x0109 Rsqrt "rsqrt",
        /// 1 / x
        0x010a Reciprocal "reciprocal",
        /// x * x
        0x010b Square "square",
        /// Sine.
        0x010c Sin "sin",
        /// Cosine.
        0x010d Cos "cos",
        /// Hyperbolic tangent.
        0x010e Tanh "tanh",
        /// 1 / (1 + e^-x)
        0x010f Sigmoid "sigmoid",
        /// log(sigmoid(x))
        0x0110 LogSigmoid "log_sigmoid",
        /// log(1 + e^x)
        0x0111 Softplus "softplus",
        /// max(x, 0); NaN stays NaN.
        0x0112 Relu "relu",
        /// x Phi(x) with the normal distribution function (error function form).
        0x0113 Gelu "gelu",
        /// The tanh approximation of GELU.
        0x0114 GeluTanh "gelu_tanh",
        /// x sigmoid(x)
        0x0115 Silu "silu",
        /// Error function.
        0x0116 Erf "erf",
        /// Largest whole number not above x; gradient 0.
        0x0117 Floor "floor",
        /// Integer or mask to float.
        0x0118 ToFloat "to_float",
        /// The same value, constant for every gradient.
        0x0119 StopGradient "stop_gradient",
        /// Logical not of a mask.
        0x011a Not "not",
        /// Number of trailing zero bits of an integer; 63 for 0.
        0x011b TrailingZeros "trailing_zeros",

        // Two operands, element by element. Shapes are equal, or one operand is a scalar.
        /// a + b
        0x0201 Add "add",
        /// a - b
        0x0202 Sub "sub",
        /// a b
        0x0203 Mul "mul",
        /// a / b
        0x0204 Div "div",
        /// Larger of the two; NaN wins.
        0x0205 Max "max",
        /// Smaller of the two; NaN wins.
        0x0206 Min "min",
        /// a^b
        0x0207 Pow "pow",
        /// Remainder with the sign of b.
        0x0208 Rem "rem",
        /// a < b, a mask.
        0x0209 Less "less",
        /// a <= b, a mask.
        0x020a LessEqual "less_equal",
        /// a = b, a mask.
        0x020b Equal "equal",
        /// Logical and.
        0x020c And "and",
        /// Logical or.
        0x020d Or "or",
        /// Bitwise and of integers.
        0x020e BitAnd "bit_and",
        /// Bitwise or of integers.
        0x020f BitOr "bit_or",
        /// Bitwise exclusive or of integers.
        0x0210 BitXor "bit_xor",
        /// a shifted left by b bits.
        0x0211 ShiftLeft "shift_left",
        /// a shifted right by b bits.
        0x0212 ShiftRight "shift_right",
        /// a / b where b is not 0, else c; operands a, b, c. The gradient is 0 to a and b where b is 0.
        0x0213 DivOr "div_or",
        /// Where the mask holds the second operand, else the third.
        0x0214 Select "select",

        // Linear algebra.
        /// Matrix `[m, n]` times vector `[n]`.
        0x0301 MatVec "matvec",
        /// Transposed matrix `[m, n]` times vector `[m]`.
        0x0302 MatVecT "matvec_t",
        /// Matrix `[m, k]` times matrix `[k, n]`.
        0x0303 MatMul "matmul",
        /// Column `[m]` times row `[n]`: `[m, n]`.
        0x0304 Outer "outer",
        /// Inner product of two values of one shape, a scalar.
        0x0305 Dot "dot",
        /// Rows of the first operand chosen by the integers of the second: shape of the second, then the row's shape.
        0x0409 Gather "gather",
        /// Gradients of the scalar first operand with respect to each further operand, every one taken as a free variable: a tuple.
        0x0420 Gradient "gradient",

        // Along a sequence axis.
        /// Place in the sequence since the last reset, an integer scalar for every step of the operand's axis.
        0x0501 Position "position",
        /// Depthwise causal convolution: operands x `[c]`, kernel `[c, width]`; y_t = sum_j `kernel[:, j]` x_{t - width + 1 + j}.
        0x0502 CausalConv "causal_conv",
        /// Sum over the steps up to and including this one.
        0x0503 TimeCumsum "time_cumsum",
        /// The last step's value; the axis is gone.
        0x0504 Last "last",
        /// Mean over all steps; the axis is gone.
        0x0505 MeanOver "mean_over",
        /// First operand without an axis, repeated along the axis of the second.
        0x0506 Along "along",
    }
    with {
        /// Argument number `index` of the function.
        0x0010 Argument "argument" { index: u32 },
        /// Parameter number `index` of the function.
        0x0011 Parameter "parameter" { index: u32 },
        /// State number `index` of the update rule, as it is before the step.
        0x0012 State "state" { index: u32 },
        /// A float scalar.
        0x0013 Constant "constant" { value: f64 },
        /// An integer scalar.
        0x0014 Integer "integer" { value: i64 },
        /// A constant float tensor, row-major.
        0x0015 Table "table" { shape: Vec<usize>, values: Vec<f64> },
        /// Every element `value`.
        0x0016 Full "full" { shape: Vec<usize>, value: f64 },
        /// Identity matrix `[n, n]`.
        0x0017 Eye "eye" { n: usize },
        /// The integers 0 to n - 1.
        0x0018 Arange "arange" { n: usize },
        /// Part `index` of a tuple.
        0x0019 Element "element" { index: u32 },
        /// Draws from the standard normal distribution. Only in initialisers.
        0x001a RandomNormal "random_normal" { shape: Vec<usize> },
        /// Draws from [0, 1). Only in initialisers.
        0x001b RandomUniform "random_uniform" { shape: Vec<usize> },
        /// Rows drawn as Gaussian directions made orthogonal in blocks of n rows, with the lengths of Gaussian vectors. Only in initialisers.
        0x001c RandomOrthogonal "random_orthogonal" { rows: usize, n: usize },

        /// The same elements in another shape, row-major.
        0x0401 Reshape "reshape" { shape: Vec<usize> },
        /// Axes in the order `order`.
        0x0402 Transpose "transpose" { order: Vec<usize> },
        /// `length` elements of `axis` from `start`.
        0x0403 Slice "slice" { axis: usize, start: usize, length: usize },
        /// Operands one after another along `axis`.
        0x0404 Concat "concat" { axis: usize },
        /// A new axis of `size` equal copies at `axis`.
        0x0405 Expand "expand" { axis: usize, size: usize },
        /// Cyclic shift by `shift` along `axis`: element i moves to i + shift.
        0x0406 Roll "roll" { axis: usize, shift: i64 },
        /// Reversed along `axis`.
        0x0407 Flip "flip" { axis: usize },
        /// Integer i to a float vector of `size` zeros with a one at i, as a new last axis.
        0x0408 OneHot "one_hot" { size: usize },
        /// Running sum along `axis`.
        0x040a Cumsum "cumsum" { axis: usize },
        /// Sum over `axes`.
        0x040b Sum "sum" { axes: Vec<usize> },
        /// Mean over `axes`.
        0x040c Mean "mean" { axes: Vec<usize> },
        /// Largest element over `axes`.
        0x040d ReduceMax "reduce_max" { axes: Vec<usize> },
        /// Smallest element over `axes`.
        0x040e ReduceMin "reduce_min" { axes: Vec<usize> },
        /// Softmax along `axis`.
        0x0410 Softmax "softmax" { axis: usize },
        /// Logarithm of the softmax along `axis`.
        0x0411 LogSoftmax "log_softmax" { axis: usize },
        /// log(sum(exp(x))) along `axis`.
        0x0412 LogSumExp "log_sum_exp" { axis: usize },
        /// x / sqrt(mean(x^2) + eps) along the last axis.
        0x0413 RmsNorm "rms_norm" { eps: f64 },
        /// (x - mean) / sqrt(variance + eps) along the last axis.
        0x0414 LayerNorm "layer_norm" { eps: f64 },
        /// x / sqrt(sum(x^2) + eps) along the last axis.
        0x0415 L2Normalise "l2_normalise" { eps: f64 },
        /// x / (sum(x) + eps) along the last axis.
        0x0416 SumNormalise "sum_normalise" { eps: f64 },
        /// Solution of the symmetric positive definite system A x = b by conjugate gradients; its gradient is implicit.
        0x0417 SolveSpd "solve_spd" { iterations: usize, tolerance: f64 },
        /// Rotation of feature pairs by angles position * base^(-2i/d); operands x `[.., d]` and the integer position.
        0x0418 Rotary "rotary" { base: f64, interleaved: bool },
        /// The recipe's feature map for `role`; the result has `size` features.
        0x0421 Phi "phi" { role: MapRole, size: usize },

        /// Delayed by `steps` along the axis, zeros before the first step.
        0x0510 Shift "shift" { steps: usize },
        /// Softmax attention: queries `[h, d]`, keys `[g, d]`, values `[g, e]` with g a divisor of h; `window` 0 is unbounded.
        /// A fourth operand, integers along the one axis of all, parts the sequence: a step sees the steps of its own number.
        0x0511 Attention "attention" { scale: f64, causal: bool, window: usize },
        /// Zero with probability p while training, else x / (1 - p).
        0x0512 Dropout "dropout" { p: f64 },

        /// Function `function` applied once; its parameters are named under `name`.
        0x0601 Call "call" { function: u32, name: String },
        /// Function applied `count` times with the same parameters; the first `carried` operands and all results are carried. A tuple.
        0x0602 Loop "loop" { function: u32, name: String, count: usize, carried: usize },
        /// As `loop`, every repetition with parameters of its own, named `name.0`, `name.1`, ...; layers count from `first`.
        0x0603 Blocks "blocks" { function: u32, name: String, count: usize, carried: usize, first: usize },
        /// A recurrent cell along the axis: the first `states` operands are initial states, the others sequences.
        /// The function maps (states, step inputs) to (new states, step outputs); the result is a tuple of final states, then outputs along the axis.
        0x0604 Scan "scan" { function: u32, name: String, states: usize },

        /// Feature map and update rule of slot `slot` along the operands' axis; operands named by `inputs`, one may be "write" (a mask).
        /// `read` says which state the output reads.
        /// A tuple of the output, the extra outputs and the final memory.
        0x0701 FastWeights "fast_weights" { slot: String, name: String, inputs: Vec<String>, scale: QueryScale, read: ReadAt },
        /// The initial memory of slot `slot`.
        0x0702 MemoryInit "memory_init" { slot: String, name: String },
        /// The memory (first operand) after writing the other operands, along their axis or once.
        0x0703 FastWrite "fast_write" { slot: String, name: String, inputs: Vec<String> },
        /// The output read from a memory (first operand) with the other operands, for every step of their axis. A tuple of output and extra outputs.
        0x0704 FastRead "fast_read" { slot: String, name: String, inputs: Vec<String>, scale: QueryScale },
    }
}
