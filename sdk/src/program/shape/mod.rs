//! Shape rules: the type of a node from its operator and operands.
//!
//! Nothing broadcasts but a scalar with anything.
//! A value without a sequence axis combines with one that has an axis (it is the same at every step);
//! two different sequence axes never meet in one element-wise operator.
//! No axis is empty, and no sum or product of sizes can overflow: every type that is given out is within [`limits`].

mod calls;
mod elementwise;
mod layout;
pub mod limits;
mod linear;
mod memory;
mod operands;
mod reduce;
mod time;
mod values;

use super::{Argument, Op, Parameter, Program, SlotInterface, State, TensorType, Type};

use operands::Operands;

/// Types of a function's arguments and results.
#[derive(Clone, Debug, Default)]
pub struct FunctionType {
    /// Argument types.
    pub arguments: Vec<Type>,
    /// Result types.
    pub results: Vec<Type>,
}

/// What a node may refer to.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Earlier functions.
    pub functions: &'a [FunctionType],
    /// Arguments of this function.
    pub arguments: &'a [Argument],
    /// Parameters of this function.
    pub parameters: &'a [Parameter],
    /// States of the rule.
    pub states: &'a [State],
    /// Slots of the slow net.
    pub slots: &'a [SlotInterface],
}

type Result<T> = std::result::Result<T, String>;

/// The type of `op` applied to operands of these types, or what is wrong.
///
/// # Errors
/// What the operator expected and what it got, in one line, without a place.
pub fn infer(op: &Op, operands: &[&Type], cx: &Context<'_>) -> Result<Type> {
    if operands.len() > limits::MAX_OPERANDS {
        return Err(format!("{} operands are too many, the limit is {}", operands.len(), limits::MAX_OPERANDS));
    }
    let ty = infer_unlimited(op, operands, cx)?;
    match &ty {
        Type::Tensor(t) => limits::tensor(&t.shape)?,
        Type::Tuple(parts) => {
            for part in parts {
                match part {
                    Type::Tensor(t) => limits::tensor(&t.shape)?,
                    Type::Memory(_) => {}
                    Type::Tuple(_) => return Err("several values cannot hold several values".into()),
                }
            }
        }
        Type::Memory(_) => {}
    }
    Ok(ty)
}

fn infer_unlimited(op: &Op, operands: &[&Type], cx: &Context<'_>) -> Result<Type> {
    use Op::*;
    let args = Operands { op, types: operands };
    match op {
        StepIndex
        | LayerIndex
        | HeadIndex
        | Argument { .. }
        | Parameter { .. }
        | State { .. }
        | Constant { .. }
        | Integer { .. }
        | Table { .. }
        | Full { .. }
        | Eye { .. }
        | Arange { .. }
        | Element { .. }
        | RandomNormal { .. }
        | RandomUniform { .. }
        | RandomOrthogonal { .. } => values::values(op, &args, cx),

        Neg
        | Abs
        | Sign
        | Exp
        | Expm1
        | Log
        | Log1p
        | Sqrt
        | Rsqrt
        | Reciprocal
        | Square
        | Sin
        | Cos
        | Tanh
        | Sigmoid
        | LogSigmoid
        | Softplus
        | Relu
        | Gelu
        | GeluTanh
        | Silu
        | Erf
        | Floor
        | StopGradient
        | Dropout { .. }
        | ToFloat
        | Not
        | TrailingZeros
        | Add
        | Sub
        | Mul
        | Div
        | Max
        | Min
        | Pow
        | Rem
        | DivOr
        | Less
        | LessEqual
        | Equal
        | And
        | Or
        | BitAnd
        | BitOr
        | BitXor
        | ShiftLeft
        | ShiftRight
        | Select => elementwise::elementwise(op, &args).map(Type::Tensor),

        MatVec | MatVecT | MatMul | Outer | Dot | SolveSpd { .. } => linear::linear_algebra(op, &args).map(Type::Tensor),

        Reshape { .. }
        | Transpose { .. }
        | Slice { .. }
        | Concat { .. }
        | Expand { .. }
        | Roll { .. }
        | Flip { .. }
        | OneHot { .. }
        | Gather => layout::layout(op, &args).map(Type::Tensor),

        Cumsum { .. }
        | Sum { .. }
        | Mean { .. }
        | ReduceMax { .. }
        | ReduceMin { .. }
        | Softmax { .. }
        | LogSoftmax { .. }
        | LogSumExp { .. }
        | RmsNorm { .. }
        | LayerNorm { .. }
        | L2Normalise { .. }
        | SumNormalise { .. }
        | Rotary { .. }
        | Phi { .. } => reduce::reduce(op, &args).map(Type::Tensor),

        Gradient => linear::gradient(&args),

        Position | TimeCumsum | Last | MeanOver | Shift { .. } | CausalConv | Along | Attention { .. } => {
            time::along_axis(op, &args).map(Type::Tensor)
        }
        Call { .. } | Loop { .. } | Blocks { .. } | Scan { .. } => calls::calls(op, &args, cx),
        FastWeights { .. } | MemoryInit { .. } | FastWrite { .. } | FastRead { .. } => memory::fast_weights(op, &args, cx),
    }
}

/// Refuses an attribute that is not a finite number from `least`.
fn attribute(what: &str, value: f64, least: f64) -> Result<()> {
    if value.is_finite() && value >= least {
        Ok(())
    } else {
        Err(format!("the {what} is a finite number from {least}, not {value}"))
    }
}

/// The types of all nodes of every function of a program.
pub struct Types {
    /// For every function, the type of every node.
    pub nodes: Vec<Vec<Type>>,
    /// For every function, its arguments and results.
    pub functions: Vec<FunctionType>,
}

/// Computes the type of every node.
///
/// # Errors
/// A message that names the part, the function, the operator and its source place.
pub fn types(p: &Program) -> Result<Types> {
    let mut all = Types { nodes: Vec::new(), functions: Vec::new() };
    let mut budget = limits::Budget::default();
    for f in &p.functions {
        let function = || format!("{} `{}`, function `{}`", p.kind, p.name, f.name);
        for a in &f.arguments {
            match &a.ty {
                Type::Tensor(t) => limits::tensor(&t.shape).map_err(|e| format!("{}: argument `{}`: {e}", function(), a.name))?,
                Type::Memory(_) => {}
                Type::Tuple(_) => return Err(format!("{}: argument `{}` holds several values", function(), a.name)),
            }
            budget.take(&a.ty).map_err(|e| format!("{}: {e}", function()))?;
        }
        let cx = Context {
            functions: &all.functions,
            arguments: &f.arguments,
            parameters: &f.parameters,
            states: &p.states,
            slots: &p.slots,
        };
        let mut types: Vec<Type> = Vec::with_capacity(f.nodes.len());
        for (i, node) in f.nodes.iter().enumerate() {
            let at = || {
                let place = p.place(node.span);
                let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
                format!("{place}{}, `{}` (node {i})", function(), node.op.name())
            };
            let operands: Option<Vec<&Type>> = node.operands.iter().map(|o| types.get(*o as usize)).collect();
            let operands = operands.ok_or_else(|| format!("{}: an operand does not come before the node", at()))?;
            let ty = infer(&node.op, &operands, &cx).map_err(|e| format!("{}: {e}", at()))?;
            budget.take(&ty).map_err(|e| format!("{}: {e}", at()))?;
            types.push(ty);
        }
        for parameter in &f.parameters {
            let init = all.functions.get(parameter.init as usize);
            let wanted = Type::Tensor(TensorType::float(&parameter.shape));
            if init.is_none_or(|i| !i.arguments.is_empty() || i.results != [wanted]) {
                return Err(format!(
                    "{} `{}`: the initialiser of parameter `{}` does not give {:?}",
                    p.kind, p.name, parameter.name, parameter.shape
                ));
            }
        }
        let mut results = Vec::new();
        for o in &f.outputs {
            let ty =
                types.get(o.node as usize).ok_or_else(|| format!("{}: an output names a node that is not there", function()))?;
            if let Type::Tuple(_) = ty {
                return Err(format!("{}: output `{}` holds several values; take them apart", function(), o.name));
            }
            budget.take(ty).map_err(|e| format!("{}: {e}", function()))?;
            results.push(ty.clone());
        }
        if results.len() > limits::MAX_OPERANDS {
            return Err(format!("{}: {} results are too many, the limit is {}", function(), results.len(), limits::MAX_OPERANDS));
        }
        all.functions.push(FunctionType { arguments: f.arguments.iter().map(|a| a.ty.clone()).collect(), results });
        all.nodes.push(types);
    }
    Ok(all)
}

/// Everything that a reader of untrusted bytes asks of a program beyond its encoding.
pub(super) fn check(p: &Program) -> Result<()> {
    limits::declarations(p)?;
    types(p)?;
    for (name, index) in &p.entries {
        if *index as usize >= p.functions.len() {
            return Err(format!("{} `{}`: entry `{name}` names a function that is not there", p.kind, p.name));
        }
    }
    Ok(())
}
