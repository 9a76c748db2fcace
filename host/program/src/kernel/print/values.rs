//! Values where they are used: as scalars, as vectors, or lane by lane.

use super::{Layout, Printer, Value};
use crate::kernel::graph::{Axis, Dtype, Fun, Id, Leaf, What};

impl Printer<'_> {
    /// The value of a node where we are, as an operand.
    pub(super) fn eval(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let node = &self.g.nodes[n];
        let has_lane = self.lane.is_some_and(|l| node.axes.contains(&l));
        let key = (n, if has_lane { reg } else { 0 });
        for frame in self.frames.iter().rev() {
            if let Some(v) = frame.get(&key) {
                if v.vector && self.sub {
                    return Ok(Value { text: format!("{}[l]", v.text), vector: false });
                }
                return Ok(v.clone());
            }
        }
        if self.nests.held.contains(&n) {
            if node.axes.is_empty() {
                return Ok(Value { text: format!("v{n}"), vector: false });
            }
            if has_lane && self.rows.contains(&n) {
                let name = format!("r{n}_{reg}");
                return Ok(if self.sub {
                    Value { text: format!("{name}[l]"), vector: false }
                } else {
                    Value { text: name, vector: true }
                });
            }
            let v = self.load(n, reg)?;
            return Ok(self.bind(n, key, v));
        }
        let v = match &node.what {
            What::Const(bits) => return Ok(Value { text: number(f64::from_bits(*bits)), vector: false }),
            What::Integer(i) => return Ok(Value { text: format!("INT64_C({i})"), vector: false }),
            What::Leaf(Leaf::Index) => return Ok(Value { text: "index".into(), vector: false }),
            What::Iota(a) => match self.index.get(a) {
                Some(i) => return Ok(Value { text: format!("(int64_t)({i})"), vector: false }),
                None => return self.by_lanes(n, reg),
            },
            What::Leaf(_) | What::Table(..) => self.load(n, reg)?,
            What::Take(_) => self.take(n, reg)?,
            What::Map(fun) => {
                let integers = node.operands.iter().any(|o| self.g.nodes[*o].dtype == Dtype::Int);
                match self.known(n, reg)? {
                    Some(v) => v,
                    None if integers && has_lane && !self.sub => self.by_lanes(n, reg)?,
                    None => self.map(n, *fun, reg)?,
                }
            }
            What::Fold(..) | What::Cumsum(_) | What::Solve { .. } => return Err("a folded value is not held".into()),
        };
        Ok(self.bind(n, key, v))
    }

    /// A function of its operands where we are.
    pub(super) fn map(&mut self, n: Id, fun: Fun, reg: usize) -> Result<Value, String> {
        if let Some(v) = self.known(n, reg)? {
            return Ok(v);
        }
        let operands = self.g.nodes[n].operands.clone();
        let given = operands.iter().map(|o| self.eval(*o, reg)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.apply(fun, &operands, &given))
    }

    pub(super) fn c_type(&self, n: Id, vector: bool) -> &'static str {
        match (self.g.nodes[n].dtype, vector) {
            (Dtype::Float, true) => "vf",
            (_, true) => "vi",
            (Dtype::Float, false) => "real",
            (Dtype::Int, false) => "int64_t",
            (Dtype::Mask, false) => "int",
        }
    }

    /// Gives a value a name.
    pub(super) fn bind(&mut self, n: Id, key: (Id, usize), v: Value) -> Value {
        let name = self.name();
        let ty = self.c_type(n, v.vector);
        self.line(format!("const {ty} {name} = {};", v.text));
        let v = Value { text: name, vector: v.vector };
        if let Some(frame) = self.frames.last_mut() {
            frame.insert(key, v.clone());
        }
        v
    }

    /// A vector made lane by lane.
    pub(super) fn by_lanes(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let lane = self.lane.ok_or("lanes outside of a sweep")?;
        let ty = self.c_type(n, true);
        let name = self.name();
        self.line(format!("{ty} {name} = {{0}};"));
        self.open("for (int l = 0; l < FWP_LANES; l++)");
        let block = self.lay.block(lane);
        let i = format!("i{name}");
        // Rows that only fill the block read the last one.
        self.line(format!(
            "const int {i} = blk * {block} + {} + l < {size} ? blk * {block} + {} + l : {};",
            reg * self.lay.lanes,
            reg * self.lay.lanes,
            self.lay.sizes[lane] - 1,
            size = self.lay.sizes[lane],
        ));
        self.index.insert(lane, i);
        self.sub = true;
        let v = self.eval(n, reg);
        self.sub = false;
        self.index.remove(&lane);
        let v = v?;
        let text = if ty == "vi" { format!("-({} != 0)", v.text) } else { v.text };
        self.line(format!("{name}[l] = {text};"));
        self.close();
        Ok(Value { text: name, vector: true })
    }

    /// The constant by which a place along `axis` is moved, where it is that.
    pub(super) fn moved(&self, place: Id, axis: Axis) -> Option<i64> {
        let node = &self.g.nodes[place];
        match node.what {
            What::Iota(a) if a == axis => Some(0),
            What::Map(Fun::Add) => match (&self.g.nodes[node.operands[0]].what, &self.g.nodes[node.operands[1]].what) {
                (What::Iota(a), What::Integer(i)) | (What::Integer(i), What::Iota(a)) if *a == axis => Some(*i),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn take(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let node = self.g.nodes[n].clone();
        let What::Take(axes) = &node.what else { return Err("no take".into()) };
        let x = node.operands[0];
        let own = self.g.axes(x).to_vec();
        let place = self.array(x)?;
        let in_lanes = self.lane.filter(|l| node.axes.contains(l) && !self.sub);
        if let Some(lane) = in_lanes {
            if let Some(v) = self.fixed_take(n, None, lane, reg)? {
                return Ok(v);
            }
            let from = self.g.lane(&own);
            // Straight vectors: the operand's lanes move by a constant, its other places do not depend on the lane.
            let at = |a: Axis| axes.iter().position(|b| *b == a).map(|p| node.operands[1 + p]);
            let mut straight = matches!(place.layout, Layout::Lanes) && from.is_some();
            let mut start = 0;
            for a in &own {
                if Some(*a) == from {
                    match at(*a) {
                        Some(i) => match self.moved(i, lane) {
                            Some(by) if by >= 0 && own.len() == 1 => start = by,
                            _ => straight = false,
                        },
                        None => straight &= *a == lane,
                    }
                } else {
                    straight &= match at(*a) {
                        Some(i) => !self.g.axes(i).contains(&lane),
                        None => *a != lane,
                    };
                }
            }
            // A vector that is longer than what it is taken from must not be read beyond that; what the caller hands in ends there.
            let end = self.lay.padded(lane) + start as usize;
            let from_lane = from.unwrap_or(lane);
            let given = matches!(self.g.nodes[x].what, What::Leaf(Leaf::Argument(_)));
            straight &= end <= self.lay.padded(from_lane) + if given { 0 } else { self.lay.lanes };
            if !straight {
                return self.by_lanes(n, reg);
            }
            let saved = self.index.clone();
            for (p, a) in axes.iter().enumerate() {
                if Some(*a) != from {
                    let i = self.eval(node.operands[1 + p], reg)?;
                    self.index.insert(*a, i.text);
                }
            }
            let at = if own.len() == 1 {
                Ok(format!("blk * {} + {}", self.lay.block(lane), reg as i64 * self.lay.lanes as i64 + start))
            } else {
                self.vector_offset(&own, from_lane, reg)
            };
            self.index = saved;
            return Ok(Value { text: format!("*(const vfu *)({} + {})", place.pointer, at?), vector: true });
        }
        let mut index = self.index.clone();
        for (p, a) in axes.iter().enumerate() {
            let i = self.eval(node.operands[1 + p], reg)?;
            index.insert(*a, i.text);
        }
        let at = self.offset(&place.layout, &own, &index)?;
        Ok(Value { text: format!("{}[{at}]", place.pointer), vector: false })
    }

    pub(super) fn wide(&self, n: Id, v: &Value) -> String {
        match (v.vector, self.g.nodes[n].dtype) {
            (true, _) => v.text.clone(),
            (false, Dtype::Float) => format!("fwp_splat({})", v.text),
            (false, _) => format!("((vi){{0}} - ({} != 0))", v.text),
        }
    }

    pub(super) fn apply(&self, fun: Fun, x: &[Id], v: &[Value]) -> Value {
        let vector = v.iter().any(|v| v.vector);
        let kind = self.g.nodes[*x.last().unwrap_or(&0)].dtype;
        let first = x.first().map_or(kind, |n| self.g.nodes[*n].dtype);
        let t = |i: usize| v[i].text.clone();
        let w = |i: usize| self.wide(x[i], &v[i]);
        let text = match (fun, first, vector) {
            (Fun::Add, Dtype::Float, _) => format!("{} + {}", t(0), t(1)),
            (Fun::Sub, Dtype::Float, _) => format!("{} - {}", t(0), t(1)),
            (Fun::Mul, Dtype::Float, _) => format!("{} * {}", t(0), t(1)),
            (Fun::Div, Dtype::Float, _) => format!("{} / {}", t(0), t(1)),
            (Fun::Neg, _, _) => format!("-{}", t(0)),
            (Fun::Select, _, _) if !v[0].vector => {
                if vector {
                    format!("{} ? {} : {}", t(0), w(1), w(2))
                } else {
                    format!("{} ? {} : {}", t(0), t(1), t(2))
                }
            }
            (Fun::Select, _, _) if kind == Dtype::Float => format!("fwp_select({}, {}, {})", t(0), w(1), w(2)),
            (Fun::Select, _, _) => format!("({m} & {}) | (~{m} & {})", w(1), w(2), m = t(0)),
            (Fun::ToFloat, Dtype::Mask, true) => format!("fwp_select({}, fwp_splat(1), fwp_splat(0))", t(0)),
            (Fun::ToFloat, Dtype::Float, _) => t(0),
            (Fun::ToFloat, _, _) => format!("(real){}", t(0)),
            (Fun::Not, _, true) => format!("~{}", t(0)),
            (Fun::Not, _, false) => format!("!{}", t(0)),
            (Fun::And, _, true) => format!("{} & {}", w(0), w(1)),
            (Fun::Or, _, true) => format!("{} | {}", w(0), w(1)),
            (Fun::And, _, false) => format!("{} & {}", t(0), t(1)),
            (Fun::Or, _, false) => format!("{} | {}", t(0), t(1)),
            (Fun::Less, Dtype::Mask, true) => format!("~{} & {}", w(0), w(1)),
            (Fun::LessEqual, Dtype::Mask, true) => format!("~{} | {}", w(0), w(1)),
            (Fun::Equal, Dtype::Mask, true) => format!("~({} ^ {})", w(0), w(1)),
            (Fun::Less, _, true) => format!("(vi)({} < {})", w(0), w(1)),
            (Fun::LessEqual, _, true) => format!("(vi)({} <= {})", w(0), w(1)),
            (Fun::Equal, _, true) => format!("(vi)({} == {})", w(0), w(1)),
            (Fun::Less, _, false) => format!("{} < {}", t(0), t(1)),
            (Fun::LessEqual, _, false) => format!("{} <= {}", t(0), t(1)),
            (Fun::Equal, _, false) => format!("{} == {}", t(0), t(1)),
            (_, Dtype::Int, _) => {
                let name = integer_function(fun);
                if v.len() == 1 { format!("{name}({})", t(0)) } else { format!("{name}({}, {})", t(0), t(1)) }
            }
            (Fun::Pow, _, true) => format!("fwp_pow({}, {})", w(0), w(1)),
            (Fun::Rem, _, true) => format!("fwp_rem({}, {})", w(0), w(1)),
            (Fun::Max, _, true) => format!("fwp_max({}, {})", w(0), w(1)),
            (Fun::Min, _, true) => format!("fwp_min({}, {})", w(0), w(1)),
            (Fun::Pow | Fun::Rem | Fun::Max | Fun::Min, _, false) => {
                format!("fwp_{}1({}, {})", float_function(fun), t(0), t(1))
            }
            (_, _, true) => format!("fwp_{}({})", float_function(fun), t(0)),
            (_, _, false) => format!("fwp_{}1({})", float_function(fun), t(0)),
        };
        Value { text, vector }
    }
}

/// A number in C.
pub fn number(v: f64) -> String {
    if v.is_nan() {
        "(real)__builtin_nan(\"\")".into()
    } else if v.is_infinite() {
        format!("({}(real)__builtin_inf())", if v < 0.0 { "-" } else { "" })
    } else {
        format!("((real){v:?})")
    }
}

fn float_function(fun: Fun) -> &'static str {
    match fun {
        Fun::Abs => "abs",
        Fun::Sign => "sign",
        Fun::Exp => "exp",
        Fun::Expm1 => "expm1",
        Fun::Log => "log",
        Fun::Log1p => "log1p",
        Fun::Sqrt => "sqrt",
        Fun::Rsqrt => "rsqrt",
        Fun::Sin => "sin",
        Fun::Cos => "cos",
        Fun::Tanh => "tanh",
        Fun::Sigmoid => "sigmoid",
        Fun::LogSigmoid => "log_sigmoid",
        Fun::Softplus => "softplus",
        Fun::Relu => "relu",
        Fun::Erf => "erf",
        Fun::Floor => "floor",
        Fun::Pow => "pow",
        Fun::Rem => "rem",
        Fun::Max => "max",
        Fun::Min => "min",
        _ => "unknown",
    }
}

fn integer_function(fun: Fun) -> &'static str {
    match fun {
        Fun::Add => "fwp_int_add",
        Fun::Sub => "fwp_int_sub",
        Fun::Mul => "fwp_int_mul",
        Fun::Max => "fwp_int_max",
        Fun::Min => "fwp_int_min",
        Fun::Rem => "fwp_int_rem",
        Fun::Quotient => "fwp_int_quotient",
        Fun::BitAnd => "fwp_int_and",
        Fun::BitOr => "fwp_int_or",
        Fun::BitXor => "fwp_int_xor",
        Fun::ShiftLeft => "fwp_int_left",
        Fun::ShiftRight => "fwp_int_right",
        Fun::TrailingZeros => "fwp_int_trailing",
        _ => "fwp_int_unknown",
    }
}
