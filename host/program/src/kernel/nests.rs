//! The loop form: in which sweeps over rows, and in which passes within them, a step is computed.
//!
//! A *sweep* goes through one axis in blocks of lanes. Within a block come sections, one after another:
//! values of the rows themselves, and *passes*, loops over the remaining axes in which matrices are read, folded and stored.
//! Values of several axes are never stored between passes; each pass computes them again from what is in memory.
//! What is folded along a row is there for the next section of the same block; what is folded across rows is there after the sweep.
//! The form says nothing of a language or of how lanes are made.

use std::collections::{HashMap, HashSet};

use super::graph::{Axis, Dtype, Graph, Id, Leaf, What};

/// Where a result of a routine goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dest {
    /// A state after the step.
    State(usize),
    /// A state before the step, computed back.
    Before(usize),
    /// A kept value.
    Kept(usize),
    /// Stored for the step backwards.
    Saved(usize),
    /// A sum over a state, for the step backwards.
    Passed(usize),
    /// A sum over a state and its gradient before the step.
    Carried(usize),
    /// Brought to later strata of the step.
    Brought(usize),
    /// Handed on to later strata of the step back.
    Handed(usize),
    /// Gradient of an argument.
    Argument(usize),
    /// Left factor of the gradient of an argument.
    Left(usize),
    /// Right factor of the gradient of an argument.
    Right(usize),
    /// Gradient of a state before the step.
    StateGradient(usize),
}

/// A result of a routine.
#[derive(Clone, Debug)]
pub struct Output {
    pub node: Id,
    /// Axes of the place it goes to, ascending; the value may vary along fewer.
    pub axes: Vec<Axis>,
    pub dest: Dest,
}

/// A piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Computes a node.
    Node(Id),
    /// Puts result number so and so where it goes.
    Store(usize),
}

/// A loop over the axes beside the lanes of a sweep.
#[derive(Clone, Debug)]
pub struct Pass {
    /// Loops from the outermost; the last one is the innermost.
    pub loops: Vec<Axis>,
    pub tasks: Vec<Task>,
}

/// A part of what is done for a block of rows.
#[derive(Clone, Debug)]
pub enum Section {
    /// Values of the rows.
    Rows(Vec<Task>),
    /// A loop.
    Pass(Pass),
}

/// One stage of a routine.
#[derive(Clone, Debug)]
pub enum Item {
    /// Scalars, in order.
    Scalars(Vec<Task>),
    /// A node with a loop of its own kind (running sum, linear system).
    Alone(Id),
    /// A sweep over an axis.
    Sweep { lane: Axis, sections: Vec<Section> },
}

/// How a task reads a value that another one computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// At its own place.
    Aligned,
    /// Anywhere.
    Whole,
}

/// What a task reads.
#[derive(Clone, Debug, Default)]
struct Reads {
    held: Vec<(Id, Access)>,
    leaves: Vec<(Leaf, Access)>,
}

/// A routine in loop form.
pub struct Nests {
    pub outputs: Vec<Output>,
    pub items: Vec<Item>,
    /// Nodes that are computed once and then held; all others are computed where they are used.
    pub held: HashSet<Id>,
    /// Held nodes that must be in memory, because they are read outside of the block or the sweep that computes them.
    pub stored: HashSet<Id>,
    /// Results that replace what the routine still reads: they go elsewhere first and are copied at the end.
    pub late: HashSet<usize>,
}

/// Orders the work of a routine.
pub fn arrange(g: &Graph, outputs: Vec<Output>) -> Result<Nests, String> {
    let held = held(g, &outputs);
    let mut tasks: Vec<Task> = Vec::new();
    let mut seen = vec![false; g.nodes.len()];
    let mut roots: Vec<Id> = outputs.iter().map(|o| o.node).collect();
    while let Some(n) = roots.pop() {
        if !std::mem::replace(&mut seen[n], true) {
            roots.extend(&g.nodes[n].operands);
        }
    }
    tasks.extend((0..g.nodes.len()).filter(|n| seen[*n] && held.contains(n)).map(Task::Node));
    tasks.extend((0..outputs.len()).map(Task::Store));
    let mut arranger =
        Arranger { g, held: &held, outputs: &outputs, reads: HashMap::new(), work: HashMap::new(), tasks, late: HashSet::new() };
    arranger.prepare();
    let items = arranger.items()?;
    let late = arranger.late.clone();
    let stored = arranger.stored(&items);
    Ok(Nests { items, held: held.clone(), stored, late, outputs })
}

/// Nodes that are computed once.
fn held(g: &Graph, outputs: &[Output]) -> HashSet<Id> {
    let mut readers: HashMap<Id, usize> = HashMap::new();
    let mut seen = vec![false; g.nodes.len()];
    let mut roots: Vec<Id> = outputs.iter().map(|o| o.node).collect();
    outputs.iter().for_each(|o| *readers.entry(o.node).or_default() += 1);
    let mut held = HashSet::new();
    while let Some(n) = roots.pop() {
        if std::mem::replace(&mut seen[n], true) {
            continue;
        }
        let node = &g.nodes[n];
        for o in &node.operands {
            *readers.entry(*o).or_default() += 1;
        }
        // What is read at any place is in memory; a leaf and a table are there already.
        let whole: &[Id] = match node.what {
            What::Take(_) => &node.operands[..1],
            _ => &[],
        };
        for o in whole {
            if !matches!(g.nodes[*o].what, What::Leaf(_) | What::Table(..)) {
                held.insert(*o);
            }
        }
        roots.extend(&node.operands);
    }
    for n in (0..g.nodes.len()).filter(|n| seen[*n]) {
        let node = &g.nodes[n];
        let hold = match node.what {
            What::Fold(..) | What::Cumsum(_) | What::Solve { .. } => true,
            What::Map(fun) => match (node.dtype, node.axes.len()) {
                (Dtype::Float, 0 | 1) | (_, 0) => true,
                // What is dear is computed once, if more than one thing reads it.
                (Dtype::Float, _) => fun.cost() > 4 && readers.get(&n).is_some_and(|r| *r > 1),
                _ => false,
            },
            _ => false,
        };
        if hold {
            held.insert(n);
        }
    }
    held
}

struct Arranger<'a> {
    g: &'a Graph,
    held: &'a HashSet<Id>,
    outputs: &'a [Output],
    reads: HashMap<Task, Reads>,
    work: HashMap<Task, Vec<Axis>>,
    tasks: Vec<Task>,
    late: HashSet<usize>,
}

/// What has been computed while items are found.
#[derive(Clone, Default)]
struct Done {
    tasks: HashSet<Task>,
}

impl Done {
    fn node(&self, n: Id) -> bool {
        self.tasks.contains(&Task::Node(n))
    }
}

impl Arranger<'_> {
    fn prepare(&mut self) {
        for task in self.tasks.clone() {
            let mut reads = Reads::default();
            let mut seen = HashSet::new();
            let (work, roots): (Vec<Axis>, Vec<Id>) = match task {
                Task::Store(i) => (self.outputs[i].axes.clone(), vec![self.outputs[i].node]),
                Task::Node(n) => {
                    let node = &self.g.nodes[n];
                    let work = match node.what {
                        What::Fold(..) => self.g.axes(node.operands[0]).to_vec(),
                        _ => node.axes.clone(),
                    };
                    (work, node.operands.clone())
                }
            };
            let first = match task {
                Task::Node(n) if matches!(self.g.nodes[n].what, What::Cumsum(_) | What::Solve { .. }) => Access::Whole,
                _ => Access::Aligned,
            };
            for n in roots {
                self.collect(n, first, &mut reads, &mut seen);
            }
            self.reads.insert(task, reads);
            self.work.insert(task, work);
        }
        // Small states are put aside and copied at the end; large ones are replaced where they are read last.
        for (i, o) in self.outputs.iter().enumerate() {
            if matches!(o.dest, Dest::State(_) | Dest::StateGradient(_) | Dest::Carried(_)) && o.axes.len() <= 1 {
                self.late.insert(i);
            }
        }
    }

    fn collect(&self, n: Id, access: Access, reads: &mut Reads, seen: &mut HashSet<(Id, bool)>) {
        if !seen.insert((n, access == Access::Whole)) {
            return;
        }
        if self.held.contains(&n) {
            reads.held.push((n, access));
            return;
        }
        let node = &self.g.nodes[n];
        match &node.what {
            What::Leaf(leaf) => reads.leaves.push((*leaf, access)),
            What::Take(_) => {
                self.collect(node.operands[0], Access::Whole, reads, seen);
                for i in &node.operands[1..] {
                    self.collect(*i, access, reads, seen);
                }
            }
            _ => node.operands.iter().for_each(|o| self.collect(*o, access, reads, seen)),
        }
    }

    fn lane(&self, task: Task) -> Option<Axis> {
        self.g.lane(&self.work[&task])
    }

    fn alone(&self, task: Task) -> bool {
        matches!(task, Task::Node(n) if matches!(self.g.nodes[n].what, What::Cumsum(_) | What::Solve { .. }))
    }

    /// Whether a task folds across the lanes.
    fn across(&self, task: Task, lane: Axis) -> bool {
        matches!(task, Task::Node(n) if matches!(self.g.nodes[n].what, What::Fold(_, a) if a == lane))
    }

    /// Whether everything that a task reads is there; `block` holds what the block of rows of a sweep over `lane` has so far.
    fn ready(&self, task: Task, done: &Done, block: Option<(Axis, &HashSet<Id>)>) -> bool {
        self.reads[&task].held.iter().all(|(n, access)| {
            done.node(*n)
                || block
                    .is_some_and(|(lane, here)| *access == Access::Aligned && here.contains(n) && self.g.axes(*n).contains(&lane))
        })
    }

    /// The leaf that a result replaces.
    fn replaced(&self, output: usize) -> Option<Leaf> {
        if self.late.contains(&output) {
            return None;
        }
        match self.outputs[output].dest {
            Dest::State(i) => Some(Leaf::State(i)),
            Dest::Before(i) => Some(Leaf::After(i)),
            Dest::StateGradient(i) => Some(Leaf::StateGradient(i)),
            _ => None,
        }
    }

    /// Whether a result may be put in its place: everything else that reads what was there has been computed, or reads it at the same place.
    fn may_replace(&self, task: Task, done: &Done, here: &HashSet<Task>, beside: &[Task]) -> bool {
        let Task::Store(output) = task else { return true };
        let Some(leaf) = self.replaced(output) else { return true };
        self.tasks.iter().filter(|t| **t != task && !done.tasks.contains(*t)).all(|t| {
            let mut uses = self.reads[t].leaves.iter().filter(|(l, _)| *l == leaf);
            // Other blocks of rows may not have come so far: what is read anywhere must have been read by all of them.
            match beside.contains(t) || here.contains(t) {
                true => uses.all(|(_, access)| *access == Access::Aligned),
                false => uses.next().is_none(),
            }
        })
    }

    fn items(&mut self) -> Result<Vec<Item>, String> {
        let mut done = Done::default();
        let mut items = Vec::new();
        let total = self.tasks.len();
        while done.tasks.len() < total {
            let left: Vec<Task> = self.tasks.iter().copied().filter(|t| !done.tasks.contains(t)).collect();
            let mut scalars = Vec::new();
            loop {
                let more: Vec<Task> = left
                    .iter()
                    .copied()
                    .filter(|t| {
                        self.work[t].is_empty() && !self.alone(*t) && !done.tasks.contains(t) && self.ready(*t, &done, None)
                    })
                    .collect();
                if more.is_empty() {
                    break;
                }
                done.tasks.extend(&more);
                scalars.extend(more);
            }
            if !scalars.is_empty() {
                items.push(Item::Scalars(scalars));
                continue;
            }
            if let Some(t) = left.iter().copied().find(|t| self.alone(*t) && self.ready(*t, &done, None)) {
                done.tasks.insert(t);
                if let Task::Node(n) = t {
                    items.push(Item::Alone(n));
                }
                continue;
            }
            let lanes: Vec<Axis> = self.g.order.clone();
            // Vectors on which other sweeps wait come first, so that a sweep over a matrix finds all it can use.
            let small = lanes.iter().rev().find_map(|lane| {
                let tasks = self.waited_for(*lane, &left, &done);
                (!tasks.is_empty()).then_some((*lane, tasks))
            });
            let (lane, allowed) = match small {
                Some(found) => found,
                None => {
                    let open = |lane: &&Axis| {
                        left.iter()
                            .any(|t| self.lane(*t) == Some(**lane) && self.ready(*t, &done, None) && self.may_start(*t, &done))
                    };
                    match lanes.iter().find(open) {
                        Some(lane) => (*lane, left.iter().copied().collect()),
                        None => {
                            // Two results each wait until the other has been read: one goes elsewhere first.
                            let stuck = left.iter().find_map(|t| match t {
                                Task::Store(i) if self.replaced(*i).is_some() && self.ready(*t, &done, None) => Some(*i),
                                _ => None,
                            });
                            let stuck = stuck.ok_or("the order of its loops was not found")?;
                            self.late.insert(stuck);
                            continue;
                        }
                    }
                }
            };
            let before = done.tasks.len();
            let sections = self.sweep(lane, &allowed, &mut done);
            if done.tasks.len() == before {
                return Err("the order of its loops was not found".into());
            }
            items.push(Item::Sweep { lane, sections });
        }
        Ok(items)
    }

    /// Whether a task could be in the first pass of a sweep.
    fn may_start(&self, task: Task, done: &Done) -> bool {
        let beside: Vec<Task> = self
            .tasks
            .iter()
            .copied()
            .filter(|t| !done.tasks.contains(t) && self.lane(*t) == self.lane(task) && self.ready(*t, done, None))
            .collect();
        self.may_replace(task, done, &HashSet::new(), &beside)
    }

    /// Vectors along `lane` that can be computed now and that something outside of a sweep over `lane` waits for.
    fn waited_for(&self, lane: Axis, left: &[Task], done: &Done) -> HashSet<Task> {
        let vectors: Vec<Task> = left.iter().copied().filter(|t| self.work[t] == [lane] && !self.alone(*t)).collect();
        let mut here: HashSet<Id> = HashSet::new();
        let mut can: Vec<Task> = Vec::new();
        loop {
            let more: Vec<Task> =
                vectors.iter().copied().filter(|t| !can.contains(t) && self.ready(*t, done, Some((lane, &here)))).collect();
            if more.is_empty() {
                break;
            }
            for t in more {
                if let Task::Node(n) = t
                    && !self.across(t, lane)
                {
                    here.insert(n);
                }
                can.push(t);
            }
        }
        let mut wanted: HashSet<Task> = HashSet::new();
        let mut open: Vec<Task> = can
            .iter()
            .copied()
            .filter(|t| {
                let Task::Node(n) = *t else { return false };
                let outside = |u: &&Task| {
                    self.reads[*u].held.iter().any(|(m, access)| {
                        *m == n && (*access == Access::Whole || self.lane(**u) != Some(lane) || !self.g.axes(n).contains(&lane))
                    })
                };
                left.iter().any(|u| outside(&u))
            })
            .collect();
        while let Some(t) = open.pop() {
            if wanted.insert(t) {
                for (n, _) in &self.reads[&t].held {
                    let t = Task::Node(*n);
                    if can.contains(&t) {
                        open.push(t);
                    }
                }
            }
        }
        wanted
    }

    /// As much as one sweep over `lane` can do of the allowed tasks.
    fn sweep(&self, lane: Axis, allowed: &HashSet<Task>, done: &mut Done) -> Vec<Section> {
        let mine: Vec<Task> = self
            .tasks
            .iter()
            .copied()
            .filter(|t| allowed.contains(t) && !done.tasks.contains(t) && !self.alone(*t) && self.lane(*t) == Some(lane))
            .collect();
        let mut here: HashSet<Id> = HashSet::new();
        let mut taken: HashSet<Task> = HashSet::new();
        let mut sections = Vec::new();
        loop {
            let mut rows = Vec::new();
            loop {
                let more: Vec<Task> = mine
                    .iter()
                    .copied()
                    .filter(|t| self.work[t].len() == 1 && !taken.contains(t) && self.ready(*t, done, Some((lane, &here))))
                    .collect();
                if more.is_empty() {
                    break;
                }
                for t in more {
                    taken.insert(t);
                    rows.push(t);
                    if let Task::Node(n) = t
                        && !self.across(t, lane)
                    {
                        here.insert(n);
                    }
                }
            }
            let any_rows = !rows.is_empty();
            if any_rows {
                sections.push(Section::Rows(rows));
            }
            let ready: Vec<Task> = mine
                .iter()
                .copied()
                .filter(|t| self.work[t].len() > 1 && !taken.contains(t) && self.ready(*t, done, Some((lane, &here))))
                .collect();
            let Some(pass) = self.pass(lane, &ready, done, &taken) else {
                if any_rows {
                    continue;
                }
                break;
            };
            for t in &pass.tasks {
                taken.insert(*t);
                if let Task::Node(n) = *t
                    && !self.across(*t, lane)
                {
                    here.insert(n);
                }
            }
            sections.push(Section::Pass(pass));
        }
        done.tasks.extend(taken);
        sections
    }

    /// The pass that does most of the tasks that are ready.
    fn pass(&self, lane: Axis, ready: &[Task], done: &Done, taken: &HashSet<Task>) -> Option<Pass> {
        let folded = |t: Task| match t {
            Task::Node(n) => match self.g.nodes[n].what {
                What::Fold(_, a) if a != lane => Some(a),
                _ => None,
            },
            Task::Store(_) => None,
        };
        let mut best: Option<Pass> = None;
        let mut keys: Vec<(Vec<Axis>, Option<Axis>)> = ready.iter().map(|t| (self.work[t].clone(), folded(*t))).collect();
        keys.sort();
        keys.dedup();
        for (work, over) in keys {
            let mut tasks: Vec<Task> =
                ready.iter().copied().filter(|t| self.work[t] == work && (folded(*t) == over || folded(*t).is_none())).collect();
            // A result that replaces what later passes read waits for them.
            loop {
                let fits: Vec<Task> = tasks.iter().copied().filter(|t| self.may_replace(*t, done, taken, &tasks)).collect();
                if fits.len() == tasks.len() {
                    break;
                }
                tasks = fits;
            }
            let mut loops: Vec<Axis> = work.iter().copied().filter(|a| *a != lane && Some(*a) != over).collect();
            loops.extend(over);
            if !tasks.is_empty() && best.as_ref().is_none_or(|b| tasks.len() > b.tasks.len()) {
                best = Some(Pass { loops, tasks });
            }
        }
        best
    }

    /// Held nodes that are read where they are not at hand.
    fn stored(&self, items: &[Item]) -> HashSet<Id> {
        let mut at: HashMap<Task, usize> = HashMap::new();
        for (i, item) in items.iter().enumerate() {
            match item {
                Item::Scalars(tasks) => at.extend(tasks.iter().map(|t| (*t, i))),
                Item::Alone(n) => at.extend([(Task::Node(*n), i)]),
                Item::Sweep { sections, .. } => {
                    for s in sections {
                        let tasks = match s {
                            Section::Rows(tasks) => tasks,
                            Section::Pass(pass) => &pass.tasks,
                        };
                        at.extend(tasks.iter().map(|t| (*t, i)));
                    }
                }
            }
        }
        let mut stored = HashSet::new();
        for task in &self.tasks {
            if let Task::Node(n) = *task {
                // Scalars and single rows are at hand where they are computed; all else has a place.
                let one_row = self.g.axes(n).len() <= 1 && !self.alone(*task);
                let computed_by_rows = self.g.axes(n).is_empty() || self.lane(*task).is_some_and(|l| self.g.axes(n).contains(&l));
                if !(self.g.axes(n).is_empty() || one_row && computed_by_rows) {
                    stored.insert(n);
                }
            }
            for (n, access) in &self.reads[task].held {
                if !self.g.axes(*n).is_empty() && (*access == Access::Whole || at.get(task) != at.get(&Task::Node(*n))) {
                    stored.insert(*n);
                }
            }
        }
        stored
    }
}
