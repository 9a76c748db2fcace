//! Loop nests as C with the vector extensions of GCC and clang.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use super::graph::{Axis, Dtype, Fold, Fun, Graph, Id, Leaf, What};
use super::layout::Layouts;
use super::nests::{Item, Nests, Pass, Section, Task};

/// Where a value lies.
#[derive(Clone, Debug)]
pub struct Place {
    /// A pointer expression.
    pub pointer: String,
    /// How.
    pub layout: Layout,
    /// Whether results are added to what is there.
    pub adds: bool,
}

/// How a value lies there.
#[derive(Clone, Debug)]
pub enum Layout {
    /// As [`Layouts`] says.
    Lanes,
    /// Row-major over these axes.
    Rows(Vec<Axis>),
}

impl Place {
    pub fn lanes(pointer: impl Into<String>) -> Place {
        Place { pointer: pointer.into(), layout: Layout::Lanes, adds: false }
    }
}

/// Memory that a kernel's functions share; it grows as places are asked for.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Elements so far.
    pub elements: usize,
}

impl Memory {
    /// The offset of so many elements, aligned for vectors.
    pub fn take(&mut self, elements: usize) -> usize {
        let at = self.elements;
        self.elements += elements.next_multiple_of(16);
        at
    }
}

/// A value in the text.
#[derive(Clone, Debug)]
struct Value {
    text: String,
    vector: bool,
}

/// Prints one routine.
pub struct Printer<'a> {
    pub g: &'a Graph,
    pub lay: &'a Layouts,
    pub nests: &'a Nests,
    /// Where leaves lie.
    pub leaves: &'a dyn Fn(Leaf) -> Place,
    /// Where results go.
    pub dests: Vec<Place>,
    pub memory: &'a mut Memory,
    /// Masks of axes whose last block is not full: offset in memory.
    pub masks: &'a mut HashMap<Axis, usize>,
    /// Constants that come before the function.
    pub globals: &'a mut String,
    /// Operations of one step.
    pub operations: usize,
    arrays: HashMap<Id, Place>,
    parts: HashMap<Id, usize>,
    tables: HashMap<Id, String>,
    out: String,
    declared: String,
    depth: usize,
    frames: Vec<HashMap<(Id, usize), Value>>,
    lane: Option<Axis>,
    /// Within a loop over the lanes of a vector.
    sub: bool,
    index: HashMap<Axis, String>,
    /// Rows that the current block of the sweep has in registers.
    rows: HashSet<Id>,
    names: usize,
}

impl<'a> Printer<'a> {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        g: &'a Graph,
        lay: &'a Layouts,
        nests: &'a Nests,
        leaves: &'a dyn Fn(Leaf) -> Place,
        dests: Vec<Place>,
        memory: &'a mut Memory,
        masks: &'a mut HashMap<Axis, usize>,
        globals: &'a mut String,
    ) -> Printer<'a> {
        Printer {
            g,
            lay,
            nests,
            leaves,
            dests,
            memory,
            masks,
            globals,
            operations: 0,
            arrays: HashMap::new(),
            parts: HashMap::new(),
            tables: HashMap::new(),
            out: String::new(),
            declared: String::new(),
            depth: 1,
            frames: vec![HashMap::new()],
            lane: None,
            sub: false,
            index: HashMap::new(),
            rows: HashSet::new(),
            names: 0,
        }
    }

    /// The body of the routine.
    pub fn body(&mut self) -> Result<String, String> {
        let mut stored: Vec<Id> = self.nests.stored.iter().copied().collect();
        stored.sort_unstable();
        for n in stored {
            let room = self.lay.room(self.g, self.g.axes(n));
            let at = self.memory.take(room);
            self.arrays.insert(n, Place::lanes(format!("(m + {at})")));
        }
        for item in &self.nests.items {
            match item {
                Item::Scalars(tasks) => tasks.iter().try_for_each(|t| self.scalar(*t))?,
                Item::Alone(n) => self.alone(*n)?,
                Item::Sweep { lane, sections } => self.sweep(*lane, sections)?,
            }
        }
        Ok(format!("{}{}", self.declared, self.out))
    }

    fn line(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(self.out, "{:indent$}{}", "", text.as_ref(), indent = 4 * self.depth);
    }

    fn open(&mut self, text: impl AsRef<str>) {
        self.line(format!("{} {{", text.as_ref()).trim_start());
        self.depth += 1;
        self.frames.push(HashMap::new());
    }

    fn close(&mut self) {
        self.frames.pop();
        self.depth -= 1;
        self.line("}");
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("t{}", self.names)
    }

    fn count(&mut self, axes: &[Axis], n: Id) {
        // Everything that is computed on the way to a held value.
        let mut seen = HashSet::new();
        let mut open = match self.g.nodes[n].what {
            What::Map(_) | What::Fold(..) => self.g.nodes[n].operands.clone(),
            _ => vec![],
        };
        let mut cost = match self.g.nodes[n].what {
            What::Map(f) => f.cost() * self.g.elements(self.g.axes(n)),
            What::Fold(..) => self.g.elements(axes),
            _ => 0,
        };
        while let Some(o) = open.pop() {
            if self.nests.held.contains(&o) || !seen.insert(o) {
                continue;
            }
            if let What::Map(f) = self.g.nodes[o].what {
                cost += f.cost() * self.g.elements(self.g.axes(o));
                open.extend(&self.g.nodes[o].operands);
            }
        }
        self.operations += cost;
    }

    // ---- places ----

    fn place_of(&self, axes: impl Iterator<Item = Axis>, index: &HashMap<Axis, String>) -> Result<String, String> {
        place_of(self.lay, axes, index)
    }

    fn offset(&self, layout: &Layout, axes: &[Axis], index: &HashMap<Axis, String>) -> Result<String, String> {
        offset(self.g, self.lay, layout, axes, index)
    }

    /// The offset of a vector of the current block.
    fn vector_offset(&self, axes: &[Axis], lane: Axis, reg: usize) -> Result<String, String> {
        let others: Vec<Axis> = axes.iter().copied().filter(|a| *a != lane).collect();
        let n: usize = others.iter().map(|a| self.lay.sizes[*a]).product();
        let block = self.lay.block(lane);
        let start = reg * self.lay.lanes;
        let blocks = self.lay.blocks(lane);
        let x = self.place_of(others.into_iter(), &self.index)?;
        let b = if blocks == 1 { String::new() } else { format!("blk * {} + ", n * block) };
        Ok(if x == "0" { format!("{b}{start}") } else { format!("{b}{x} * {block} + {start}") })
    }

    fn array(&mut self, n: Id) -> Result<Place, String> {
        if let Some(place) = self.arrays.get(&n) {
            return Ok(place.clone());
        }
        match &self.g.nodes[n].what {
            What::Leaf(leaf) => Ok((self.leaves)(*leaf)),
            What::Table(axes, bits) => {
                let name = match self.tables.get(&n) {
                    Some(name) => name.clone(),
                    None => {
                        let name = format!("fwp_table{}", self.globals.matches("fwp_table").count());
                        let values: Vec<String> = bits.iter().map(|b| number(f64::from_bits(*b))).collect();
                        let _ = writeln!(self.globals, "static const real {name}[] = {{{}}};", values.join(", "));
                        self.tables.insert(n, name.clone());
                        name
                    }
                };
                Ok(Place { pointer: name, layout: Layout::Rows(axes.clone()), adds: false })
            }
            _ => Err(format!("a value has no place (node {n}: {:?})", self.g.nodes[n].what)),
        }
    }

    /// Reads an element or a vector.
    fn load(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let place = self.array(n)?;
        let axes = self.g.axes(n).to_vec();
        if let (Some(lane), false) = (self.lane, self.sub)
            && axes.contains(&lane)
        {
            if !matches!(place.layout, Layout::Lanes) || self.g.lane(&axes) != Some(lane) {
                return self.by_lanes(n, reg);
            }
            let at = self.vector_offset(&axes, lane, reg)?;
            return Ok(Value { text: format!("*(const vfu *)({} + {at})", place.pointer), vector: true });
        }
        let at = self.offset(&place.layout, &axes, &self.index)?;
        Ok(Value { text: format!("{}[{at}]", place.pointer), vector: false })
    }

    // ---- values ----

    /// The value of a node where we are, as an operand.
    fn eval(&mut self, n: Id, reg: usize) -> Result<Value, String> {
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
                if integers && has_lane && !self.sub {
                    self.by_lanes(n, reg)?
                } else {
                    let operands = node.operands.clone();
                    let given = operands.iter().map(|o| self.eval(*o, reg)).collect::<Result<Vec<_>, _>>()?;
                    self.apply(*fun, &operands, &given)
                }
            }
            What::Fold(..) | What::Cumsum(_) | What::Solve { .. } => return Err("a folded value is not held".into()),
        };
        Ok(self.bind(n, key, v))
    }

    fn c_type(&self, n: Id, vector: bool) -> &'static str {
        match (self.g.nodes[n].dtype, vector) {
            (Dtype::Float, true) => "vf",
            (_, true) => "vi",
            (Dtype::Float, false) => "real",
            (Dtype::Int, false) => "int64_t",
            (Dtype::Mask, false) => "int",
        }
    }

    /// Gives a value a name.
    fn bind(&mut self, n: Id, key: (Id, usize), v: Value) -> Value {
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
    fn by_lanes(&mut self, n: Id, reg: usize) -> Result<Value, String> {
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
    fn moved(&self, place: Id, axis: Axis) -> Option<i64> {
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

    fn take(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let node = self.g.nodes[n].clone();
        let What::Take(axes) = &node.what else { return Err("no take".into()) };
        let x = node.operands[0];
        let own = self.g.axes(x).to_vec();
        let place = self.array(x)?;
        let in_lanes = self.lane.filter(|l| node.axes.contains(l) && !self.sub);
        if let Some(lane) = in_lanes {
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
            // A vector that is longer than what it is taken from must not be read beyond that.
            let end = self.lay.padded(lane) + start as usize;
            let from_lane = from.unwrap_or(lane);
            straight &= end <= self.lay.padded(from_lane) + self.lay.lanes;
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

    fn wide(&self, n: Id, v: &Value) -> String {
        match (v.vector, self.g.nodes[n].dtype) {
            (true, _) => v.text.clone(),
            (false, Dtype::Float) => format!("fwp_splat({})", v.text),
            (false, _) => format!("((vi){{0}} - ({} != 0))", v.text),
        }
    }

    fn apply(&self, fun: Fun, x: &[Id], v: &[Value]) -> Value {
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

    // ---- items ----

    fn scalar(&mut self, task: Task) -> Result<(), String> {
        match task {
            Task::Node(n) => {
                self.count(&[], n);
                let operands = self.g.nodes[n].operands.clone();
                let given = operands.iter().map(|o| self.eval(*o, 0)).collect::<Result<Vec<_>, _>>()?;
                let What::Map(fun) = self.g.nodes[n].what else {
                    let v = match self.g.nodes[n].what {
                        What::Take(_) => self.take(n, 0)?,
                        _ => self.load(n, 0)?,
                    };
                    return self.assign(n, &v.text);
                };
                let v = self.apply(fun, &operands, &given);
                self.assign(n, &v.text)
            }
            Task::Store(i) => {
                let v = self.eval(self.nests.outputs[i].node, 0)?;
                let place = &self.dests[i];
                let text = format!("{}[0] {} {};", place.pointer, if place.adds { "+=" } else { "=" }, v.text);
                self.line(text);
                Ok(())
            }
        }
    }

    /// Sets a scalar that the whole routine may read.
    fn assign(&mut self, n: Id, text: &str) -> Result<(), String> {
        let ty = self.c_type(n, false);
        let _ = writeln!(self.declared, "    {ty} v{n};");
        self.line(format!("v{n} = {text};"));
        Ok(())
    }

    fn loops(&mut self, axes: &[Axis]) {
        for a in axes {
            self.open(format!("for (int x{a} = 0; x{a} < {}; x{a}++)", self.lay.sizes[*a]));
            self.index.insert(*a, format!("x{a}"));
        }
    }

    fn end_loops(&mut self, axes: &[Axis]) {
        for a in axes {
            self.index.remove(a);
            self.close();
        }
    }

    fn alone(&mut self, n: Id) -> Result<(), String> {
        let node = self.g.nodes[n].clone();
        let to = self.array(n)?;
        match node.what {
            What::Cumsum(axis) => {
                let others: Vec<Axis> = node.axes.iter().copied().filter(|a| *a != axis).collect();
                self.operations += self.g.elements(&node.axes);
                self.loops(&others);
                self.line("real run = 0;");
                self.loops(&[axis]);
                let v = self.eval(node.operands[0], 0)?;
                let b = self.offset(&to.layout, &node.axes, &self.index)?;
                self.line(format!("run += {};", v.text));
                self.line(format!("{}[{b}] = run;", to.pointer));
                self.end_loops(&[axis]);
                self.end_loops(&others);
                Ok(())
            }
            What::Solve { first, second, iterations, tolerance } => {
                let (matrix, right) = (node.operands[0], node.operands[1]);
                let size = self.lay.sizes[second];
                self.operations += 2 * size * size * iterations;
                let dense = self.memory.take(size * size);
                let work = self.memory.take(5 * size);
                self.open("");
                self.loops(&[first, second]);
                let v = self.eval(matrix, 0)?;
                self.line(format!("m[{dense} + x{first} * {size} + x{second}] = {};", v.text));
                self.end_loops(&[first, second]);
                self.loops(&[second]);
                let v = self.eval(right, 0)?;
                self.line(format!("m[{work} + x{second}] = {};", v.text));
                self.end_loops(&[second]);
                let tolerance = number(f64::from_bits(tolerance));
                self.line(format!("fwp_solve({size}, m + {dense}, m + {work}, {iterations}, {tolerance});"));
                self.loops(&[second]);
                let at = self.offset(&to.layout, &node.axes, &self.index)?;
                self.line(format!("{}[{at}] = m[{work} + {size} + x{second}];", to.pointer));
                self.end_loops(&[second]);
                self.close();
                Ok(())
            }
            _ => Err("a node has no loop of its own".into()),
        }
    }

    fn identity(fold: Fold) -> &'static str {
        match fold {
            Fold::Sum => "0",
            Fold::Max => "-(real)__builtin_inf()",
            Fold::Min => "(real)__builtin_inf()",
        }
    }

    fn join(fold: Fold, a: &str, b: &str) -> String {
        match fold {
            Fold::Sum => format!("{a} + {b}"),
            Fold::Max => format!("fwp_max({a}, {b})"),
            Fold::Min => format!("fwp_min({a}, {b})"),
        }
    }

    fn fold_of(&self, n: Id) -> Option<(Fold, Axis)> {
        match self.g.nodes[n].what {
            What::Fold(fold, axis) => Some((fold, axis)),
            _ => None,
        }
    }

    /// A value that is to be folded across lanes: rows that only fill the last block do not count.
    fn masked(&mut self, n: Id, lane: Axis, reg: usize, fold: Fold) -> Result<String, String> {
        let v = self.eval(n, reg)?;
        let text = self.wide(n, &v);
        // Only vectors that may reach beyond the last row.
        let full = self.lay.sizes[lane] / self.lay.lanes;
        let last = (self.lay.blocks(lane) - 1) * self.lay.registers[lane] + reg;
        if last < full {
            return Ok(text);
        }
        let at = match self.masks.get(&lane) {
            Some(at) => *at,
            None => {
                let at = self.memory.take(self.lay.padded(lane));
                self.masks.insert(lane, at);
                at
            }
        };
        let offset = format!("blk * {} + {}", self.lay.block(lane), reg * self.lay.lanes);
        Ok(format!("fwp_select(*(const vi *)(m + {at} + {offset}), {text}, fwp_splat({}))", Self::identity(fold)))
    }

    fn sweep(&mut self, lane: Axis, sections: &[Section]) -> Result<(), String> {
        let tasks = sections.iter().flat_map(|s| match s {
            Section::Rows(tasks) => tasks,
            Section::Pass(pass) => &pass.tasks,
        });
        let across: Vec<(Id, Fold)> = tasks
            .filter_map(|t| match t {
                Task::Node(n) => self.fold_of(*n).filter(|(_, a)| *a == lane).map(|(fold, _)| (*n, fold)),
                Task::Store(_) => None,
            })
            .collect();
        let blocks = self.lay.blocks(lane);
        self.rows.clear();
        self.lane = None;
        self.open("");
        for (n, fold) in &across {
            let axes = self.g.axes(*n).to_vec();
            if axes.is_empty() {
                self.line(format!("vf c{n} = fwp_splat({});", Self::identity(*fold)));
                continue;
            }
            // One vector of partial results for every result; those are folded after as many as there are lanes, or after the sweep.
            let elements = self.g.elements(&axes);
            if self.folds_at_once(*n, *fold) {
                let at = match self.parts.get(n) {
                    Some(at) => *at,
                    None => self.memory.take(self.lay.lanes * self.lay.lanes),
                };
                self.parts.insert(*n, at);
                if blocks > 1 {
                    let to = self.array(*n)?;
                    self.line(format!("for (int i = 0; i < {elements}; i++) {}[i] = 0;", to.pointer));
                }
                continue;
            }
            let room = elements.next_multiple_of(self.lay.lanes) * self.lay.lanes;
            let at = match self.parts.get(n) {
                Some(at) => *at,
                None => self.memory.take(room),
            };
            self.parts.insert(*n, at);
            if blocks > 1 {
                self.line(format!(
                    "for (int i = 0; i < {elements}; i++) *(vf *)(m + {at} + i * FWP_LANES) = fwp_splat({});",
                    Self::identity(*fold)
                ));
            }
        }
        if blocks > 1 {
            self.open(format!("for (int blk = 0; blk < {blocks}; blk++)"));
        } else {
            self.open("");
            self.line("enum { blk = 0 };");
        }
        self.lane = Some(lane);
        for s in sections {
            match s {
                Section::Rows(tasks) => {
                    for t in tasks {
                        self.row(*t, lane)?;
                    }
                }
                Section::Pass(pass) => self.pass(pass, lane)?,
            }
        }
        self.close();
        self.lane = None;
        self.rows.clear();
        for (n, fold) in across {
            self.folded(n, fold)?;
        }
        self.close();
        Ok(())
    }

    /// Whether sums across lanes are completed in the pass that makes their parts.
    fn folds_at_once(&self, n: Id, fold: Fold) -> bool {
        fold == Fold::Sum && self.g.axes(n).len() == 1
    }

    /// What was folded across lanes, put together after the sweep.
    fn folded(&mut self, n: Id, fold: Fold) -> Result<(), String> {
        let axes = self.g.axes(n).to_vec();
        let all = match fold {
            Fold::Sum => "fwp_lanes_sum",
            Fold::Max => "fwp_lanes_max",
            Fold::Min => "fwp_lanes_min",
        };
        if axes.is_empty() {
            return self.assign(n, &format!("{all}(c{n})"));
        }
        if self.folds_at_once(n, fold) {
            return Ok(());
        }
        let at = self.parts[&n];
        let to = self.array(n)?;
        self.loops(&axes);
        let x = self.place_of(axes.iter().copied(), &self.index)?;
        let o = self.offset(&to.layout, &axes, &self.index)?;
        self.line(format!("{}[{o}] = {all}(*(const vf *)(m + {at} + ({x}) * FWP_LANES));", to.pointer));
        let back: Vec<Axis> = axes.iter().rev().copied().collect();
        self.end_loops(&back);
        Ok(())
    }

    /// Puts a vector of the current block where it goes.
    fn store(&mut self, place: &Place, axes: &[Axis], lane: Axis, reg: usize, text: &str) -> Result<(), String> {
        let at = self.vector_offset(axes, lane, reg)?;
        let assign = if place.adds { "+=" } else { "=" };
        self.line(format!("*(vf *)({} + {at}) {assign} {text};", place.pointer));
        Ok(())
    }

    /// Something of the rows of the current block.
    fn row(&mut self, task: Task, lane: Axis) -> Result<(), String> {
        let registers = self.lay.registers[lane];
        match task {
            Task::Store(i) => {
                let (node, axes) = (self.nests.outputs[i].node, self.nests.outputs[i].axes.clone());
                let place = self.dests[i].clone();
                for reg in 0..registers {
                    let v = self.eval(node, reg)?;
                    let text = self.wide(node, &v);
                    self.store(&place, &axes, lane, reg, &text)?;
                }
            }
            Task::Node(n) => {
                self.count(&[lane], n);
                if let Some((fold, axis)) = self.fold_of(n)
                    && axis == lane
                {
                    let x = self.g.nodes[n].operands[0];
                    for reg in 0..registers {
                        let text = self.masked(x, lane, reg, fold)?;
                        let c = format!("c{n}");
                        let joined = Self::join(fold, &c, &text);
                        self.line(format!("{c} = {joined};"));
                    }
                    return Ok(());
                }
                for reg in 0..registers {
                    let node = &self.g.nodes[n];
                    let v = match node.what {
                        What::Map(fun) if !node.operands.iter().any(|o| self.g.nodes[*o].dtype == Dtype::Int) => {
                            let operands = node.operands.clone();
                            let given = operands.iter().map(|o| self.eval(*o, reg)).collect::<Result<Vec<_>, _>>()?;
                            self.apply(fun, &operands, &given)
                        }
                        What::Take(_) => self.take(n, reg)?,
                        _ => self.unheld_by_lanes(n, reg)?,
                    };
                    let text = self.wide(n, &v);
                    self.line(format!("const vf r{n}_{reg} = {text};"));
                }
                self.keep(n, lane)?;
            }
        }
        Ok(())
    }

    /// A held value of integers, made lane by lane.
    fn unheld_by_lanes(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let lane = self.lane.ok_or("lanes outside of a sweep")?;
        let name = self.name();
        self.line(format!("vf {name} = {{0}};"));
        self.open("for (int l = 0; l < FWP_LANES; l++)");
        let block = self.lay.block(lane);
        let first = reg * self.lay.lanes;
        let size = self.lay.sizes[lane];
        self.line(format!(
            "const int i{name} = blk * {block} + {first} + l < {size} ? blk * {block} + {first} + l : {};",
            size - 1
        ));
        self.index.insert(lane, format!("i{name}"));
        self.sub = true;
        let result = self.unheld(n, reg);
        self.sub = false;
        self.index.remove(&lane);
        let v = result?;
        self.line(format!("{name}[l] = {};", v.text));
        self.close();
        Ok(Value { text: name, vector: true })
    }

    fn unheld(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let operands = self.g.nodes[n].operands.clone();
        match self.g.nodes[n].what {
            What::Map(fun) => {
                let given = operands.iter().map(|o| self.eval(*o, reg)).collect::<Result<Vec<_>, _>>()?;
                Ok(self.apply(fun, &operands, &given))
            }
            _ => self.load(n, reg),
        }
    }

    /// Rows that have just been computed: also in memory, where something reads them there.
    fn keep(&mut self, n: Id, lane: Axis) -> Result<(), String> {
        self.rows.insert(n);
        if let Some(place) = self.arrays.get(&n).cloned() {
            let axes = self.g.axes(n).to_vec();
            for reg in 0..self.lay.registers[lane] {
                self.store(&place, &axes, lane, reg, &format!("r{n}_{reg}"))?;
            }
        }
        Ok(())
    }

    fn pass(&mut self, pass: &Pass, lane: Axis) -> Result<(), String> {
        let Some((inner, outer)) = pass.loops.split_last() else { return Err("a pass without a loop".into()) };
        let registers = self.lay.registers[lane];
        let folds: Vec<(Id, Fold)> = pass
            .tasks
            .iter()
            .filter_map(|t| match t {
                Task::Node(n) => self.fold_of(*n).filter(|(_, a)| *a != lane).map(|(fold, _)| (*n, fold)),
                Task::Store(_) => None,
            })
            .collect();
        let all: Vec<Axis> = pass.loops.iter().copied().chain([lane]).collect();
        for t in &pass.tasks {
            match t {
                Task::Node(n) => self.count(&all, *n),
                Task::Store(i) => {
                    let node = self.nests.outputs[*i].node;
                    if !self.nests.held.contains(&node) {
                        self.count(&all, node);
                    }
                }
            }
        }
        // So many sums at the same time that one need not wait for another.
        let chains = (folds.len() * registers).max(1);
        let mut unroll = (8 / chains).clamp(1, 4);
        if folds.is_empty() {
            unroll = if registers >= 4 { 1 } else { 2 };
        }
        let size = self.lay.sizes[*inner];
        if size < 2 * unroll {
            unroll = 1;
        }
        self.before(pass, lane)?;
        self.loops(outer);
        for (n, fold) in &folds {
            for reg in 0..registers {
                for u in 0..unroll {
                    self.line(format!("vf a{n}_{reg}_{u} = fwp_splat({});", Self::identity(*fold)));
                }
            }
        }
        let at_once: Vec<Id> = pass
            .tasks
            .iter()
            .filter_map(|t| match t {
                Task::Node(n) => self.fold_of(*n).filter(|(f, a)| *a == lane && self.folds_at_once(*n, *f)).map(|_| *n),
                Task::Store(_) => None,
            })
            .collect();
        if at_once.is_empty() {
            self.run(pass, lane, *inner, ("0", &size.to_string()), unroll)?;
        } else {
            // Parts of as many sums as there are lanes are put together at a time: they stay in the nearest cache.
            let lanes = self.lay.lanes;
            let full = size / lanes * lanes;
            if full > 0 {
                self.open(format!("for (int part = 0; part < {full}; part += FWP_LANES)"));
                self.run(pass, lane, *inner, ("part", "part + FWP_LANES"), unroll.min(lanes))?;
                self.put_together(&at_once, lane)?;
                self.close();
            }
            if full < size {
                self.open("");
                self.line(format!("const int part = {full};"));
                self.run(pass, lane, *inner, ("part", &size.to_string()), 1)?;
                self.put_together(&at_once, lane)?;
                self.close();
            }
        }
        self.index.remove(inner);
        for (n, fold) in &folds {
            for reg in 0..registers {
                let mut text = format!("a{n}_{reg}_0");
                for u in 1..unroll {
                    text = Self::join(*fold, &text, &format!("a{n}_{reg}_{u}"));
                }
                self.line(format!("const vf r{n}_{reg} = {text};"));
            }
            if outer.is_empty() {
                self.keep(*n, lane)?;
            } else {
                let place = self.array(*n)?;
                let axes = self.g.axes(*n).to_vec();
                for reg in 0..registers {
                    self.store(&place, &axes, lane, reg, &format!("r{n}_{reg}"))?;
                }
            }
        }
        let back: Vec<Axis> = outer.iter().rev().copied().collect();
        self.end_loops(&back);
        Ok(())
    }

    /// What a pass reads that does not change in its loops: scalars and rows.
    fn before(&mut self, pass: &Pass, lane: Axis) -> Result<(), String> {
        let mut open: Vec<Id> = Vec::new();
        for t in &pass.tasks {
            match t {
                Task::Node(n) => open.extend(&self.g.nodes[*n].operands),
                Task::Store(i) => open.push(self.nests.outputs[*i].node),
            }
        }
        let mut seen = HashSet::new();
        while let Some(n) = open.pop() {
            let node = &self.g.nodes[n];
            let simple = matches!(node.what, What::Const(_) | What::Integer(_) | What::Iota(_));
            if simple || node.dtype != Dtype::Float || !seen.insert(n) {
                continue;
            }
            if node.axes.iter().all(|a| *a == lane) {
                let copies = if node.axes.is_empty() { 1 } else { self.lay.registers[lane] };
                for reg in 0..copies {
                    self.eval(n, reg)?;
                }
            } else if !self.nests.held.contains(&n) && !matches!(node.what, What::Take(_)) {
                open.extend(node.operands.clone());
            }
        }
        Ok(())
    }

    /// The innermost loop of a pass, several places at a time.
    fn run(&mut self, pass: &Pass, lane: Axis, inner: Axis, bounds: (&str, &str), unroll: usize) -> Result<(), String> {
        let x = format!("x{inner}");
        let (start, end) = bounds;
        let size = self.lay.sizes[inner];
        // A part of the loop has a length that the unrolling divides.
        let whole = if start == "0" { (size / unroll * unroll).to_string() } else { end.to_string() };
        self.open(format!("for (int {x} = {start}; {x} < {whole}; {x} += {unroll})"));
        for u in 0..unroll {
            self.open("");
            self.index.insert(inner, if u == 0 { x.clone() } else { format!("({x} + {u})") });
            self.inside(pass, lane, u)?;
            self.close();
        }
        self.close();
        if start == "0" && !size.is_multiple_of(unroll) {
            self.open(format!("for (int {x} = {whole}; {x} < {end}; {x}++)"));
            self.index.insert(inner, x.clone());
            self.inside(pass, lane, 0)?;
            self.close();
        }
        Ok(())
    }

    /// Completes sums across lanes whose parts are there.
    fn put_together(&mut self, nodes: &[Id], lane: Axis) -> Result<(), String> {
        for n in nodes {
            let to = self.array(*n)?;
            let assign = if self.lay.blocks(lane) > 1 { "+=" } else { "=" };
            let at = self.parts[n];
            self.line(format!("*(vf *)({} + part) {assign} fwp_reduce_lanes((const vf *)(m + {at}));", to.pointer));
        }
        Ok(())
    }

    /// What a pass does at one place.
    fn inside(&mut self, pass: &Pass, lane: Axis, u: usize) -> Result<(), String> {
        let registers = self.lay.registers[lane];
        // Results that replace something come last, after all that is read here.
        for t in pass.tasks.iter().filter(|t| matches!(t, Task::Node(_))) {
            let Task::Node(n) = *t else { continue };
            let x = self.g.nodes[n].operands.first().copied();
            match self.fold_of(n) {
                Some((fold, axis)) if axis != lane => {
                    let x = x.ok_or("a fold of nothing")?;
                    for reg in 0..registers {
                        let v = self.eval(x, reg)?;
                        let text = self.wide(x, &v);
                        let a = format!("a{n}_{reg}_{u}");
                        let joined = Self::join(fold, &a, &text);
                        self.line(format!("{a} = {joined};"));
                    }
                }
                Some((fold, _)) => {
                    let x = x.ok_or("a fold of nothing")?;
                    let mut text = String::new();
                    for reg in 0..registers {
                        let part = self.masked(x, lane, reg, fold)?;
                        text = if text.is_empty() { part } else { Self::join(fold, &text, &part) };
                    }
                    let axes = self.g.axes(n).to_vec();
                    let at_once = self.folds_at_once(n, fold);
                    let mut place = self.place_of(axes.into_iter(), &self.index)?;
                    if at_once {
                        place = format!("({place} - part)");
                    }
                    let at = format!("*(vf *)(m + {} + {place} * FWP_LANES)", self.parts[&n]);
                    let text = if self.lay.blocks(lane) > 1 && !at_once { Self::join(fold, &at, &text) } else { text };
                    self.line(format!("{at} = {text};"));
                }
                None => {
                    let place = self.array(n)?;
                    let axes = self.g.axes(n).to_vec();
                    for reg in 0..registers {
                        let v = self.fresh(n, reg)?;
                        let text = self.wide(n, &v);
                        self.store(&place, &axes, lane, reg, &text)?;
                    }
                }
            }
        }
        for t in &pass.tasks {
            let Task::Store(i) = *t else { continue };
            let (node, axes) = (self.nests.outputs[i].node, self.nests.outputs[i].axes.clone());
            let place = self.dests[i].clone();
            for reg in 0..registers {
                let v = self.eval(node, reg)?;
                let text = self.wide(node, &v);
                self.store(&place, &axes, lane, reg, &text)?;
            }
        }
        Ok(())
    }

    /// A held value of several axes where it is computed.
    fn fresh(&mut self, n: Id, reg: usize) -> Result<Value, String> {
        let node = &self.g.nodes[n];
        match node.what {
            What::Map(fun) if !node.operands.iter().any(|o| self.g.nodes[*o].dtype == Dtype::Int) => {
                let operands = node.operands.clone();
                let given = operands.iter().map(|o| self.eval(*o, reg)).collect::<Result<Vec<_>, _>>()?;
                Ok(self.apply(fun, &operands, &given))
            }
            What::Take(_) => self.take(n, reg),
            _ => self.unheld_by_lanes(n, reg),
        }
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

/// The place along axes as one number.
fn place_of(lay: &Layouts, axes: impl Iterator<Item = Axis>, index: &HashMap<Axis, String>) -> Result<String, String> {
    let mut text = String::new();
    for a in axes {
        let i = index.get(&a).ok_or("a loop over an axis is not there")?;
        text = if text.is_empty() { i.clone() } else { format!("({text} * {} + {i})", lay.sizes[a]) };
    }
    Ok(if text.is_empty() { "0".into() } else { text })
}

/// The offset of one element.
pub fn offset(g: &Graph, lay: &Layouts, layout: &Layout, axes: &[Axis], index: &HashMap<Axis, String>) -> Result<String, String> {
    if let Layout::Rows(order) = layout {
        return place_of(lay, order.iter().copied(), index);
    }
    let Some(lane) = g.lane(axes) else { return Ok("0".into()) };
    let others: Vec<Axis> = axes.iter().copied().filter(|a| *a != lane).collect();
    let i = index.get(&lane).ok_or("a loop over an axis is not there")?;
    if others.is_empty() {
        return Ok(i.clone());
    }
    let n: usize = others.iter().map(|a| lay.sizes[*a]).product();
    let x = place_of(lay, others.into_iter(), index)?;
    let block = lay.block(lane);
    Ok(format!("(({i}) / {block} * {n} + {x}) * {block} + ({i}) % {block}"))
}
