//! Shape rules: the type of a node from its operator and operands.
//!
//! Nothing broadcasts but a scalar with anything.
//! A value without a sequence axis combines with one that has an axis (it is the same at every step);
//! two different sequence axes never meet in one element-wise operator.

use super::{Argument, DType, Op, Parameter, Program, SlotInterface, State, TensorType, Type};

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

const LARGEST: usize = 1 << 34;

/// The type of `op` applied to operands of these types, or what is wrong.
pub fn infer(op: &Op, operands: &[&Type], cx: &Context<'_>) -> Result<Type> {
    let ty = infer_unlimited(op, operands, cx)?;
    if let Type::Tensor(t) = &ty {
        let elements = t.shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s));
        if elements.is_none_or(|n| n > LARGEST) {
            return Err(format!("a result of shape {:?} is too large", t.shape));
        }
    }
    Ok(ty)
}

fn infer_unlimited(op: &Op, operands: &[&Type], cx: &Context<'_>) -> Result<Type> {
    use Op::*;
    let args = Operands { op, types: operands };
    Ok(match op {
        StepIndex | LayerIndex | HeadIndex => args.none(TensorType::int(&[]))?,
        Argument { index } => {
            args.count(0)?;
            let a = cx.arguments.get(*index as usize).ok_or("there is no such argument")?;
            return Ok(a.ty.clone());
        }
        Parameter { index } => {
            let p = cx.parameters.get(*index as usize).ok_or("there is no such parameter")?;
            args.none(TensorType::float(&p.shape))?
        }
        State { index } => {
            let s = cx.states.get(*index as usize).ok_or("there is no such state")?;
            args.none(TensorType::float(&s.shape))?
        }
        Constant { .. } => args.none(TensorType::float(&[]))?,
        Integer { .. } => args.none(TensorType::int(&[]))?,
        Table { shape, values } => {
            if shape.iter().product::<usize>() != values.len() {
                return Err(format!(
                    "a table of shape {shape:?} needs {} values, not {}",
                    shape.iter().product::<usize>(),
                    values.len()
                ));
            }
            args.none(TensorType::float(shape))?
        }
        Full { shape, .. } | RandomNormal { shape } | RandomUniform { shape } => args.none(TensorType::float(shape))?,
        Eye { n } => args.none(TensorType::float(&[*n, *n]))?,
        RandomOrthogonal { rows, n } => args.none(TensorType::float(&[*rows, *n]))?,
        Arange { n } => args.none(TensorType::int(&[*n]))?,
        Element { index } => {
            args.count(1)?;
            let Type::Tuple(parts) = operands[0] else {
                return Err(format!("expected several values, got {}", operands[0]));
            };
            return parts.get(*index as usize).cloned().ok_or_else(|| format!("there is no part {index} of {}", operands[0]));
        }

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
        | Dropout { .. } => args.one(DType::Float)?.clone(),
        ToFloat => {
            args.count(1)?;
            TensorType { dtype: DType::Float, ..args.tensor(0)?.clone() }
        }
        Not => args.one(DType::Mask)?.clone(),
        TrailingZeros => args.one(DType::Int)?.clone(),
        Add | Sub | Mul | Max | Min | Rem => {
            args.count(2)?;
            let t = args.same(&[0, 1])?;
            if t.dtype == DType::Mask {
                return Err("a mask is not a number; use to_float".into());
            }
            t
        }
        Div | Pow => args.all(2, DType::Float)?,
        DivOr => args.all(3, DType::Float)?,
        Less | LessEqual | Equal => {
            args.count(2)?;
            TensorType { dtype: DType::Mask, ..args.same(&[0, 1])? }
        }
        And | Or => args.all(2, DType::Mask)?,
        BitAnd | BitOr | BitXor | ShiftLeft | ShiftRight => args.all(2, DType::Int)?,
        Select => {
            args.count(3)?;
            let mask = args.tensor(0)?;
            if mask.dtype != DType::Mask {
                return Err(format!("the first operand must be a mask, not {mask}"));
            }
            let value = args.same(&[1, 2])?;
            let shaped = TensorType { dtype: value.dtype, ..mask.clone() };
            TensorType { dtype: value.dtype, ..combine(&[&shaped, &value])? }
        }

        MatVec | MatVecT | MatMul | Outer | Dot => return linear_algebra(op, &args),
        SolveSpd { .. } => {
            args.count(2)?;
            let (a, b) = (args.float(0)?, args.float(1)?);
            if a.shape.len() != 2 || a.shape[0] != a.shape[1] || b.shape != a.shape[1..] {
                return Err(format!("expected a matrix [n, n] and a vector [n], got {a} and {b}"));
            }
            TensorType { axis: join_axes(&[a, b])?, ..b.clone() }
        }

        Reshape { shape } => {
            args.count(1)?;
            let t = args.tensor(0)?;
            if shape.iter().product::<usize>() != t.elements() {
                return Err(format!(
                    "{t} has {} elements, the shape {shape:?} has {}",
                    t.elements(),
                    shape.iter().product::<usize>()
                ));
            }
            TensorType { shape: shape.clone(), ..t.clone() }
        }
        Transpose { order } => {
            args.count(1)?;
            let t = args.tensor(0)?;
            let mut sorted = order.clone();
            sorted.sort_unstable();
            if sorted != (0..t.shape.len()).collect::<Vec<_>>() {
                return Err(format!("{order:?} is not an order of the {} axes of {t}", t.shape.len()));
            }
            TensorType { shape: order.iter().map(|i| t.shape[*i]).collect(), ..t.clone() }
        }
        Slice { axis, start, length } => {
            let mut t = args.with_axis(*axis)?;
            if start.checked_add(*length).is_none_or(|end| end > t.shape[*axis]) || *length == 0 {
                return Err(format!("no {length} elements from {start} on axis {axis} of {t}"));
            }
            t.shape[*axis] = *length;
            t
        }
        Concat { axis } => {
            if operands.is_empty() {
                return Err("nothing to concatenate".into());
            }
            let first = args.tensor(0)?.clone();
            check_axis(&first, *axis)?;
            let mut size = 0;
            let mut parts = Vec::new();
            for i in 0..operands.len() {
                let t = args.tensor(i)?;
                let fits = t.dtype == first.dtype
                    && t.shape.len() == first.shape.len()
                    && t.shape.iter().zip(&first.shape).enumerate().all(|(d, (a, b))| d == *axis || a == b);
                if !fits {
                    return Err(format!("{first} and {t} differ outside of axis {axis}"));
                }
                size += t.shape[*axis];
                parts.push(t);
            }
            let mut t = first.clone();
            t.axis = join_axes(&parts)?;
            t.shape[*axis] = size;
            t
        }
        Expand { axis, size } => {
            args.count(1)?;
            let mut t = args.tensor(0)?.clone();
            if *axis > t.shape.len() || *size == 0 {
                return Err(format!("no place for an axis {axis} of size {size} in {t}"));
            }
            t.shape.insert(*axis, *size);
            t
        }
        Roll { axis, .. } | Flip { axis } => args.with_axis(*axis)?,
        Cumsum { axis } | Softmax { axis } | LogSoftmax { axis } => {
            args.one(DType::Float)?;
            args.with_axis(*axis)?
        }
        LogSumExp { axis } => {
            args.one(DType::Float)?;
            let mut t = args.with_axis(*axis)?;
            t.shape.remove(*axis);
            t
        }
        OneHot { size } => {
            let mut t = args.one(DType::Int)?.clone();
            t.dtype = DType::Float;
            t.shape.push(*size);
            t
        }
        Gather => {
            args.count(2)?;
            let (table, index) = (args.tensor(0)?, args.tensor(1)?);
            if index.dtype != DType::Int || table.shape.is_empty() {
                return Err(format!("expected a table and integers, got {table} and {index}"));
            }
            let shape = index.shape.iter().chain(&table.shape[1..]).copied().collect();
            TensorType { dtype: table.dtype, axis: join_axes(&[table, index])?, shape }
        }
        Sum { axes } | Mean { axes } | ReduceMax { axes } | ReduceMin { axes } => {
            let mut t = args.one(DType::Float)?.clone();
            let mut sorted = axes.clone();
            sorted.sort_unstable();
            sorted.dedup();
            if sorted.len() != axes.len() || sorted.last().is_some_and(|a| *a >= t.shape.len()) {
                return Err(format!("{axes:?} are not axes of {t}"));
            }
            for a in sorted.iter().rev() {
                t.shape.remove(*a);
            }
            t
        }
        RmsNorm { .. } | LayerNorm { .. } | L2Normalise { .. } | SumNormalise { .. } => {
            let t = args.one(DType::Float)?;
            if t.shape.is_empty() {
                return Err("a scalar has no last axis to normalise".into());
            }
            t.clone()
        }
        Rotary { .. } => {
            args.count(2)?;
            let (x, position) = (args.float(0)?, args.tensor(1)?);
            if x.shape.last().is_none_or(|d| d % 2 == 1) || position.dtype != DType::Int || !position.shape.is_empty() {
                return Err(format!("expected [.., d] with even d and an integer position, got {x} and {position}"));
            }
            TensorType { axis: join_axes(&[x, position])?, ..x.clone() }
        }
        Gradient => {
            if operands.len() < 2 {
                return Err("expected a scalar and what to differentiate with respect to".into());
            }
            let y = args.float(0)?;
            if !y.shape.is_empty() {
                return Err(format!("only a scalar has a gradient, got {y}"));
            }
            let parts: Result<Vec<Type>> = (1..operands.len()).map(|i| Ok(Type::Tensor(args.float(i)?.clone()))).collect();
            return Ok(Type::Tuple(parts?));
        }
        Phi { role, size } => {
            if role != "query" && role != "key" {
                return Err(format!("the role is `query` or `key`, not `{role}`"));
            }
            let t = args.one(DType::Float)?;
            let mut shape = t.shape.clone();
            *shape.last_mut().ok_or("a scalar has no features")? = *size;
            TensorType { shape, ..t.clone() }
        }

        Position | TimeCumsum | Last | MeanOver | Shift { .. } | CausalConv | Along | Attention { .. } => {
            return along_axis(op, &args);
        }
        Call { .. } | Loop { .. } | Blocks { .. } | Scan { .. } => return calls(op, &args, cx),
        FastWeights { .. } | MemoryInit { .. } | FastWrite { .. } | FastRead { .. } => return fast_weights(op, &args, cx),
    }
    .into())
}

fn linear_algebra(op: &Op, args: &Operands<'_>) -> Result<Type> {
    args.count(2)?;
    let (a, b) = (args.float(0)?, args.float(1)?);
    let mismatch = |wanted: &str| Err(format!("expected {wanted}, got {a} and {b}"));
    let shape = match op {
        Op::MatVec => match (&a.shape[..], &b.shape[..]) {
            ([m, n], [k]) if n == k => vec![*m],
            _ => return mismatch("a matrix [m, n] and a vector [n]"),
        },
        Op::MatVecT => match (&a.shape[..], &b.shape[..]) {
            ([m, n], [k]) if m == k => vec![*n],
            _ => return mismatch("a matrix [m, n] and a vector [m]"),
        },
        Op::MatMul => match (&a.shape[..], &b.shape[..]) {
            ([m, k], [l, n]) if k == l => vec![*m, *n],
            _ => return mismatch("matrices [m, k] and [k, n]"),
        },
        Op::Outer => match (&a.shape[..], &b.shape[..]) {
            ([m], [n]) => vec![*m, *n],
            _ => return mismatch("two vectors"),
        },
        _ if a.shape == b.shape => vec![],
        _ => return mismatch("two values of one shape"),
    };
    Ok(TensorType { dtype: DType::Float, axis: join_axes(&[a, b])?, shape }.into())
}

fn along_axis(op: &Op, args: &Operands<'_>) -> Result<Type> {
    let with_axis = |i: usize| -> Result<&TensorType> {
        let t = args.tensor(i)?;
        match &t.axis {
            Some(_) => Ok(t),
            None => Err(format!("{t} has no sequence axis")),
        }
    };
    Ok(match op {
        Op::Position => {
            args.count(1)?;
            TensorType { dtype: DType::Int, axis: with_axis(0)?.axis.clone(), shape: vec![] }
        }
        Op::TimeCumsum | Op::Shift { .. } => {
            args.one(DType::Float)?;
            with_axis(0)?.clone()
        }
        Op::Last => {
            args.count(1)?;
            TensorType { axis: None, ..with_axis(0)?.clone() }
        }
        Op::MeanOver => {
            args.one(DType::Float)?;
            TensorType { axis: None, ..with_axis(0)?.clone() }
        }
        Op::Along => {
            args.count(2)?;
            let (x, like) = (args.tensor(0)?, with_axis(1)?);
            if x.axis.is_some() {
                return Err(format!("{x} has a sequence axis already"));
            }
            TensorType { axis: like.axis.clone(), ..x.clone() }
        }
        Op::CausalConv => {
            args.count(2)?;
            let (x, kernel) = (with_axis(0)?, args.float(1)?);
            if x.dtype != DType::Float
                || x.shape.len() != 1
                || kernel.shape.len() != 2
                || kernel.shape[0] != x.shape[0]
                || kernel.axis.is_some()
            {
                return Err(format!("expected [c] along an axis and a kernel [c, width], got {x} and {kernel}"));
            }
            x.clone()
        }
        Op::Attention { .. } => {
            args.count(3)?;
            let (q, k, v) = (with_axis(0)?, with_axis(1)?, with_axis(2)?);
            let fits = match (&q.shape[..], &k.shape[..], &v.shape[..]) {
                ([h, d], [g, e], [f, _]) => d == e && g == f && *g > 0 && h % g == 0,
                _ => false,
            };
            let causal = matches!(op, Op::Attention { causal: true, .. });
            if !fits || k.axis != v.axis || (causal && q.axis != k.axis) {
                return Err(format!(
                    "expected queries [h, d], keys [g, d] and values [g, e] with g a divisor of h, got {q}, {k} and {v}"
                ));
            }
            TensorType { dtype: DType::Float, axis: q.axis.clone(), shape: vec![q.shape[0], v.shape[1]] }
        }
        _ => unreachable!("operators along an axis"),
    }
    .into())
}

fn calls(op: &Op, args: &Operands<'_>, cx: &Context<'_>) -> Result<Type> {
    let function = match op {
        Op::Call { function, .. } | Op::Loop { function, .. } | Op::Blocks { function, .. } | Op::Scan { function, .. } => {
            *function
        }
        _ => unreachable!("operators that call"),
    };
    let f = cx.functions.get(function as usize).ok_or_else(|| format!("there is no function {function} before this one"))?;
    match op {
        Op::Call { .. } => {
            args.match_arguments(&f.arguments, |t| t.clone())?;
            Ok(Type::Tuple(f.results.clone()))
        }
        Op::Loop { count, carried, .. } | Op::Blocks { count, carried, .. } => {
            args.match_arguments(&f.arguments, |t| t.clone())?;
            if *count == 0 || f.results.len() != *carried || f.arguments.get(..*carried) != Some(&f.results[..]) {
                return Err("every repetition must return values of the types that it takes over".into());
            }
            Ok(Type::Tuple(f.results.clone()))
        }
        _ => {
            let Op::Scan { states, .. } = op else { unreachable!("the last operator that calls") };
            let (states, types) = (*states, args.types);
            if types.len() != f.arguments.len() || states > types.len() || f.results.len() < states {
                return Err(format!("the cell takes {} operands, got {}", f.arguments.len(), types.len()));
            }
            let mut axis: Option<&String> = None;
            for (i, (given, wanted)) in types.iter().zip(&f.arguments).enumerate() {
                let stepped = match given {
                    Type::Tensor(t) if i >= states => {
                        match (&t.axis, axis) {
                            (None, _) => return Err(format!("operand {i} ({t}) has no sequence axis to scan")),
                            (Some(a), Some(b)) if a != b => {
                                return Err(format!("operands along `{b}` and along `{a}` cannot be scanned together"));
                            }
                            (Some(a), _) => axis = Some(a),
                        }
                        Type::Tensor(TensorType { axis: None, ..t.clone() })
                    }
                    other => (*other).clone(),
                };
                if stepped != *wanted {
                    return Err(format!("operand {i} of the cell is {wanted}, got {given}"));
                }
            }
            if f.results[..states] != f.arguments[..states] {
                return Err("a cell must return states of the types that it takes".into());
            }
            let axis = axis.ok_or("a cell needs a sequence to scan")?;
            let results = f.results.iter().enumerate().map(|(i, t)| match t {
                Type::Tensor(t) if i >= states => Type::Tensor(t.clone().along(axis)),
                other => other.clone(),
            });
            Ok(Type::Tuple(results.collect()))
        }
    }
}

fn fast_weights(op: &Op, args: &Operands<'_>, cx: &Context<'_>) -> Result<Type> {
    let name = match op {
        Op::FastWeights { slot, .. } | Op::MemoryInit { slot, .. } | Op::FastWrite { slot, .. } | Op::FastRead { slot, .. } => {
            slot
        }
        _ => unreachable!("operators on fast weights"),
    };
    let slot = cx.slots.iter().find(|s| s.name == *name).ok_or_else(|| format!("there is no fast-weight slot `{name}`"))?;
    if let Op::FastWeights { scale, .. } | Op::FastRead { scale, .. } = op
        && !matches!(scale.as_str(), "none" | "query" | "output")
    {
        return Err(format!("the scale is `none`, `query` or `output`, not `{scale}`"));
    }
    if let Op::FastWeights { read, .. } = op {
        let chunk = read.strip_prefix("chunk:").map(str::parse::<usize>);
        if !matches!(read.as_str(), "after" | "before") && !matches!(chunk, Some(Ok(1..))) {
            return Err(format!("the read is `after`, `before` or `chunk:N`, not `{read}`"));
        }
    }
    let memory = Type::Memory(name.clone());
    let (first, inputs): (usize, &[String]) = match op {
        Op::MemoryInit { .. } => {
            args.count(0)?;
            return Ok(memory);
        }
        Op::FastWeights { inputs, .. } => (0, inputs),
        Op::FastWrite { inputs, .. } | Op::FastRead { inputs, .. } => {
            if args.types.first() != Some(&&memory) {
                return Err(format!("the first operand must be the memory of slot `{name}`"));
            }
            (1, inputs)
        }
        _ => unreachable!("operators on fast weights"),
    };
    args.count(first + inputs.len())?;
    let mut given = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let t = args.tensor(first + i)?;
        if input == "write" {
            if t.dtype != DType::Mask || !t.shape.is_empty() {
                return Err(format!("the write mask must be a scalar mask, not {t}"));
            }
        } else {
            let declared = slot.inputs.iter().find(|d| d.name == *input).ok_or_else(|| {
                let names: Vec<&str> = slot.inputs.iter().map(|d| d.name.as_str()).collect();
                format!("rule `{}` has no input `{input}`; it has {}", slot.rule, names.join(", "))
            })?;
            let wanted = slot.given_shape(declared);
            if t.dtype != DType::Float || t.shape != wanted {
                return Err(format!("input `{input}` of rule `{}` is {wanted:?}, got {t}", slot.rule));
            }
        }
        given.push(t);
    }
    let axis = join_axes(&given)?;
    let output = |shape: &[usize]| {
        let shape = [&[slot.heads], shape].concat();
        Type::Tensor(TensorType { dtype: DType::Float, axis: axis.clone(), shape })
    };
    let mut parts = vec![output(&slot.output)];
    parts.extend(slot.extras.iter().map(|(_, shape)| output(shape)));
    Ok(match op {
        Op::FastWrite { .. } => memory,
        Op::FastRead { .. } => Type::Tuple(parts),
        _ => {
            if axis.is_none() {
                return Err("fast weights need operands along a sequence axis".into());
            }
            let missing: Vec<&str> =
                slot.inputs.iter().map(|i| i.name.as_str()).filter(|n| !inputs.iter().any(|i| i == n)).collect();
            if !missing.is_empty() {
                return Err(format!("rule `{}` also needs {}", slot.rule, missing.join(", ")));
            }
            parts.push(memory);
            Type::Tuple(parts)
        }
    })
}

struct Operands<'a> {
    op: &'a Op,
    types: &'a [&'a Type],
}

impl<'a> Operands<'a> {
    fn count(&self, n: usize) -> Result<()> {
        if self.types.len() == n { Ok(()) } else { Err(format!("expected {n} operands, got {}", self.types.len())) }
    }
    fn none(&self, t: TensorType) -> Result<TensorType> {
        self.count(0)?;
        Ok(t)
    }
    fn tensor(&self, i: usize) -> Result<&'a TensorType> {
        match self.types.get(i) {
            Some(Type::Tensor(t)) => Ok(t),
            Some(other) => Err(format!("expected a tensor, got {other}")),
            None => Err(format!("`{}` lacks operand {i}", self.op.name())),
        }
    }
    fn float(&self, i: usize) -> Result<&'a TensorType> {
        let t = self.tensor(i)?;
        if t.dtype == DType::Float { Ok(t) } else { Err(format!("expected floats, got {t}; use to_float")) }
    }
    fn one(&self, dtype: DType) -> Result<&'a TensorType> {
        self.count(1)?;
        let t = self.tensor(0)?;
        if t.dtype == dtype {
            return Ok(t);
        }
        Err(format!(
            "expected {}, got {t}",
            match dtype {
                DType::Float => "floats",
                DType::Int => "integers",
                DType::Mask => "a mask",
            }
        ))
    }
    fn same(&self, which: &[usize]) -> Result<TensorType> {
        let ts: Result<Vec<&TensorType>> = which.iter().map(|i| self.tensor(*i)).collect();
        combine(&ts?)
    }
    fn all(&self, n: usize, dtype: DType) -> Result<TensorType> {
        self.count(n)?;
        let t = self.same(&(0..n).collect::<Vec<_>>())?;
        if t.dtype == dtype { Ok(t) } else { Err(format!("`{}` does not work on {t}", self.op.name())) }
    }
    fn with_axis(&self, axis: usize) -> Result<TensorType> {
        self.count(1)?;
        let t = self.tensor(0)?;
        check_axis(t, axis)?;
        Ok(t.clone())
    }
    fn match_arguments(&self, wanted: &[Type], adapt: impl Fn(&Type) -> Type) -> Result<()> {
        self.count(wanted.len())?;
        for (i, (given, wanted)) in self.types.iter().zip(wanted).enumerate() {
            if adapt(given) != *wanted {
                return Err(format!("operand {i} must be {wanted}, got {given}"));
            }
        }
        Ok(())
    }
}

fn check_axis(t: &TensorType, axis: usize) -> Result<()> {
    if axis < t.shape.len() { Ok(()) } else { Err(format!("{t} has no axis {axis}")) }
}

fn join_axes(ts: &[&TensorType]) -> Result<Option<String>> {
    let mut axis: Option<&String> = None;
    for a in ts.iter().filter_map(|t| t.axis.as_ref()) {
        if axis.is_some_and(|b| a != b) {
            return Err(format!("a value along `{}` cannot meet one along `{a}`", axis.expect("just seen")));
        }
        axis = Some(a);
    }
    Ok(axis.cloned())
}

/// The common type of element-wise operands.
fn combine(ts: &[&TensorType]) -> Result<TensorType> {
    let mut shape: &[usize] = &[];
    for t in ts {
        if t.dtype != ts[0].dtype {
            return Err(format!("{} and {t} are of different kinds", ts[0]));
        }
        if !t.shape.is_empty() {
            if !shape.is_empty() && shape != t.shape {
                let shaped = ts.iter().find(|u| !u.shape.is_empty()).expect("one has a shape");
                return Err(format!("{shaped} and {t} have different shapes, and only a scalar broadcasts"));
            }
            shape = &t.shape;
        }
    }
    Ok(TensorType { dtype: ts[0].dtype, axis: join_axes(ts)?, shape: shape.to_vec() })
}

/// The types of all nodes of every function of a program.
pub struct Types {
    /// For every function, the type of every node.
    pub nodes: Vec<Vec<Type>>,
    /// For every function, its arguments and results.
    pub functions: Vec<FunctionType>,
}

/// Computes the type of every node; an error names the function, the operator and its source place.
pub fn types(p: &Program) -> Result<Types> {
    let mut all = Types { nodes: Vec::new(), functions: Vec::new() };
    for f in &p.functions {
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
                format!("{place}{} `{}`, function `{}`, `{}` (node {i})", p.kind, p.name, f.name, node.op.name())
            };
            let operands: Option<Vec<&Type>> = node.operands.iter().map(|o| types.get(*o as usize)).collect();
            let operands = operands.ok_or_else(|| format!("{}: an operand does not come before the node", at()))?;
            types.push(infer(&node.op, &operands, &cx).map_err(|e| format!("{}: {e}", at()))?);
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
        let results: Option<Vec<Type>> = f.outputs.iter().map(|o| types.get(o.node as usize).cloned()).collect();
        let results = results
            .ok_or_else(|| format!("{} `{}`, function `{}`: an output names a node that is not there", p.kind, p.name, f.name))?;
        all.functions.push(FunctionType { arguments: f.arguments.iter().map(|a| a.ty.clone()).collect(), results });
        all.nodes.push(types);
    }
    Ok(all)
}

pub(super) fn check(p: &Program) -> Result<()> {
    types(p)?;
    for (name, index) in &p.entries {
        if *index as usize >= p.functions.len() {
            return Err(format!("{} `{}`: entry `{name}` names a function that is not there", p.kind, p.name));
        }
    }
    Ok(())
}
