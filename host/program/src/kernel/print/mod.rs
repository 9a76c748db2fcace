//! Loop nests as C with the vector extensions of GCC and clang.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use super::graph::{Axis, Graph, Id, Leaf, What};
use super::layout::Layouts;
use super::nests::{Item, Nests};

mod fixed;
mod items;
mod passes;
mod sweeps;
mod values;

use values::number;

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
