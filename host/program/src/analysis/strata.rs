//! Strata, their order, and what each reads: from the drafts of single states to the canonical form.

use std::collections::{BTreeMap, HashMap, HashSet};

use fwp_sdk::program::{Argument, Function, Program, TensorType, Type};

use super::derive::{Draft, DraftDecay, draft};
use super::emit::{Leaf, function};
use super::fault::{Blocked, Obstacle};
use super::flatten::Flat;
use super::form::{Canonical, Decay, Factor, Form, Query, Range, Segment, Side, StateRead, Stratum, Term, Walk};
use super::store::{Ask, Id, Kind, Read, States};
use super::symbolic::{Symbolic, Value};

/// States that are computed together, and what is known of them.
pub(super) struct Group {
    /// The states, in order.
    pub states: Vec<usize>,
    /// The form of a state alone in its group, or what is in the way.
    pub form: Result<Draft, Box<Blocked>>,
}

/// The strongly connected groups of states, in an order in which they can be computed.
pub(super) fn groups(p: &Program, sym: &mut Symbolic<'_>) -> Vec<Group> {
    let n = p.states.len();
    let drafts: Vec<Result<Draft, Box<Blocked>>> = (0..n).map(|s| draft(p, sym, s)).collect();
    // As long as a state is held its value is given, so what reads it does not depend on it from step to step.
    let held = (0..n).filter(|s| p.states[*s].held > 1).fold(0, |all: States, s| all | 1 << s);
    let needs: Vec<States> = (0..n)
        .map(|s| {
            let of_values = || sym.updates[s].iter().fold(0, |all, v| all | states_of(sym, v));
            let all = match &drafts[s] {
                Ok(d) => d.coefficients().iter().fold(0, |all, id| all | sym.store.states(*id)),
                Err(_) => of_values(),
            };
            all & !(1 << s) & !held
        })
        .collect();
    let mut reach = needs.clone();
    for via in 0..n {
        for from in 0..n {
            if reach[from] & (1 << via) != 0 {
                reach[from] |= reach[via];
            }
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut grouped = vec![false; n];
    for s in 0..n {
        if grouped[s] {
            continue;
        }
        let members: Vec<usize> =
            (s..n).filter(|t| *t == s || (reach[s] & (1 << *t) != 0 && reach[*t] & (1 << s) != 0)).collect();
        members.iter().for_each(|m| grouped[*m] = true);
        let form = match members[..] {
            [_] => drafts[s].clone(),
            // An update that is not affine even alone is the better reason.
            _ => Err(match members.iter().filter_map(|m| drafts[*m].as_ref().err()).find(|b| b.obstacle != Obstacle::Coupled) {
                Some(alone) => alone.clone(),
                None => Box::new(coupled(p, sym, &members)),
            }),
        };
        groups.push(Group { states: members, form });
    }
    // A group needs fewer states than every group that needs it.
    groups.sort_by_key(|g| (g.states.iter().fold(0, |all, s| all | reach[*s]).count_ones(), g.states[0]));
    groups
}

fn coupled(p: &Program, sym: &Symbolic<'_>, members: &[usize]) -> Blocked {
    let names: Vec<String> = members.iter().map(|m| format!("`{}`", p.states[*m].name)).collect();
    let why = format!("states {} depend on each other", names.join(" and "));
    let states = members.iter().fold(0, |all, m| all | 1 << *m);
    Blocked { obstacle: Obstacle::Coupled, origin: sym.made[members[0]], why, states }
}

pub(super) fn states_of(sym: &Symbolic<'_>, v: &Value) -> States {
    match v {
        Value::Expr(id) => sym.store.states(*id),
        Value::Matrix(m) => m.states(&sym.store),
        Value::Blocked(b) => b.states,
    }
}

/// The canonical form, or the operation in the way.
pub(super) fn canonical(p: &Program, flat: &Flat, sym: &mut Symbolic<'_>, groups: &[Group]) -> Result<Canonical, Box<Blocked>> {
    // A state with a matrix must have a form; what is small may be walked.
    for g in groups {
        let small = g.states.iter().all(|s| p.states[*s].shape.len() < 2 && p.states[*s].held <= 1);
        if let Err(b) = &g.form
            && !small
        {
            return Err(b.clone());
        }
        // A small one that needs all of a matrix cannot be walked apart from it.
        let whole = g.states.iter().flat_map(|s| &sym.updates[*s]).find_map(|v| match v {
            Value::Expr(_) => None,
            Value::Blocked(b) => Some(b.clone()),
            Value::Matrix(_) => g.form.as_ref().err().cloned(),
        });
        if let (Some(b), true) = (whole, g.form.is_err()) {
            return Err(b);
        }
    }
    if let Some(Err(b)) = groups.iter().map(|g| &g.form).find(|f| f.is_err())
        && groups.iter().all(|g| g.form.is_err())
    {
        return Err(b.clone());
    }
    let mut results: Vec<(String, Id)> = Vec::new();
    for (name, value) in sym.results.clone() {
        let id = match value {
            Value::Expr(id) => id,
            Value::Blocked(b) => return Err(b),
            Value::Matrix(m) => match sym.store.dense(&m) {
                Some(id) => id,
                None => return Err(Box::new(whole(flat, sym, &m, &name))),
            },
        };
        results.push((name, id));
    }
    Assembly::new(p, flat, sym, groups, results)?.assemble()
}

fn whole(flat: &Flat, sym: &Symbolic<'_>, m: &super::matrix::Matrix, result: &str) -> Blocked {
    let state = m.bases.first().map_or(0, |b| b.state);
    let why = format!("result `{result}` takes all of state `{}`", sym.names[state]);
    let origin = flat.origin(result).unwrap_or(sym.made[state]);
    Blocked { obstacle: Obstacle::NotAffine, origin, why, states: m.states(&sym.store) }
}

/// A read that goes from a stratum to later ones.
struct Exported {
    id: Id,
    name: String,
}

struct Assembly<'s, 'a> {
    p: &'s Program,
    flat: &'s Flat,
    sym: &'s mut Symbolic<'a>,
    groups: &'s [Group],
    results: Vec<(String, Id)>,
    /// Group of every state.
    group_of: Vec<usize>,
    /// Reads that a group hands on, in order.
    reads: Vec<Vec<Exported>>,
}

type Outcome<T> = Result<T, Box<Blocked>>;

impl<'s, 'a> Assembly<'s, 'a> {
    fn new(
        p: &'s Program,
        flat: &'s Flat,
        sym: &'s mut Symbolic<'a>,
        groups: &'s [Group],
        results: Vec<(String, Id)>,
    ) -> Outcome<Self> {
        let mut group_of = vec![0; p.states.len()];
        for (i, g) in groups.iter().enumerate() {
            g.states.iter().for_each(|s| group_of[*s] = i);
        }
        let reads = groups.iter().map(|_| Vec::new()).collect();
        let mut me = Assembly { p, flat, sym, groups, results, group_of, reads };
        me.collect_reads()?;
        Ok(me)
    }

    /// The expressions that a group's function computes, without its reads.
    fn own(&self, group: usize) -> Vec<Id> {
        match &self.groups[group].form {
            Ok(d) => d.coefficients(),
            Err(_) => self.updates(group).into_iter().map(|(_, id)| id).collect(),
        }
    }

    /// Next values of the states of a walked group.
    fn updates(&self, group: usize) -> Vec<(usize, Id)> {
        let of = |s: usize| match self.sym.updates[s].last() {
            Some(Value::Expr(id)) => Some((s, *id)),
            _ => None,
        };
        self.groups[group].states.iter().filter_map(|s| of(*s)).collect()
    }

    fn walked(&self, group: usize) -> bool {
        self.groups[group].form.is_err()
    }

    /// Which reads cross from a group to another or to the rest.
    fn collect_reads(&mut self) -> Outcome<()> {
        let mut found: Vec<(usize, Id)> = Vec::new();
        let mut seen: HashSet<(Option<usize>, Id)> = HashSet::new();
        // What is computed, and in which group; the rest belongs to none.
        let mut todo: Vec<(Option<usize>, Id)> = self.results.iter().map(|r| (None, r.1)).collect();
        for g in 0..self.groups.len() {
            todo.extend(self.own(g).into_iter().map(|id| (Some(g), id)));
        }
        while let Some((home, id)) = todo.pop() {
            if self.sym.store.states(id) == 0 || !seen.insert((home, id)) {
                continue;
            }
            let Kind::Read(r) = *self.sym.store.kind(id) else {
                todo.extend(self.sym.store.operands(id).into_iter().map(|o| (home, o)));
                continue;
            };
            let g = self.group_of[r.state];
            let query = match r.query {
                Ask::Right(q) | Ask::Left(q) => Some(q),
                Ask::Whole => None,
            };
            if self.walked(g) {
                // What is walked hands on its states; products with them are formed where they are needed.
                todo.extend(query.map(|q| (home, q)));
                if home != Some(g) {
                    let shape = self.p.states[r.state].shape.clone();
                    let whole = self.sym.store.read(Read { query: Ask::Whole, ..r }, &shape);
                    found.push((g, whole));
                }
            } else if home != Some(g) {
                if let Some(q) = query {
                    if self.sym.store.depends(q, r.state) {
                        let name = &self.p.states[r.state].name;
                        let why = format!("state `{name}` is read with a query that depends on another read of it");
                        return Err(self.blocked(Obstacle::Round, why, q));
                    }
                    todo.push((Some(g), q));
                }
                found.push((g, id));
            }
        }
        for (g, id) in found {
            if !self.reads[g].iter().any(|e| e.id == id) {
                self.reads[g].push(Exported { id, name: String::new() });
            }
        }
        let store = &self.sym.store;
        for reads in &mut self.reads {
            let key = |id: Id| match store.kind(id) {
                Kind::Read(r) => (r.state, r.after, matches!(r.query, Ask::Left(_)), matches!(r.query, Ask::Whole)),
                _ => (0, 0, false, false),
            };
            reads.sort_by(|a, b| key(a.id).cmp(&key(b.id)).then_with(|| store.order(a.id, b.id)));
            let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
            for e in reads {
                let state = key(e.id).0;
                let count = counts.entry(state).or_default();
                e.name = format!("read.{}.{count}", self.p.states[state].name);
                *count += 1;
            }
        }
        Ok(())
    }

    fn blocked(&self, obstacle: Obstacle, why: String, at: Id) -> Box<Blocked> {
        let s = &self.sym.store;
        Box::new(Blocked { obstacle, origin: s.origin_of(at), why, states: s.states(at) })
    }

    /// The groups in an order in which queries, too, are known in time.
    fn ordered(&self) -> Outcome<Vec<usize>> {
        let n = self.groups.len();
        let mut needs: Vec<u64> = vec![0; n];
        for (g, need) in needs.iter_mut().enumerate() {
            let queries = self.reads[g].iter().filter_map(|e| match self.sym.store.kind(e.id) {
                Kind::Read(Read { query: Ask::Right(q) | Ask::Left(q), .. }) => Some(*q),
                _ => None,
            });
            for id in self.own(g).into_iter().chain(queries) {
                for s in 0..self.p.states.len() {
                    if self.sym.store.depends(id, s) && self.group_of[s] != g {
                        *need |= 1 << self.group_of[s];
                    }
                }
            }
        }
        let mut done: Vec<usize> = Vec::new();
        let mut ready: u64 = 0;
        while done.len() < n {
            let Some(g) = (0..n).find(|g| ready & (1 << g) == 0 && needs[*g] & !ready == 0) else {
                let stuck = (0..n).find(|g| ready & (1 << g) == 0).unwrap_or(0);
                let name = &self.p.states[self.groups[stuck].states[0]].name;
                let why = format!("state `{name}` is read with a query that depends on a state which depends on that read");
                let at = self.reads[stuck].first().map(|e| e.id).or_else(|| self.own(stuck).first().copied()).unwrap_or(0);
                return Err(self.blocked(Obstacle::Round, why, at));
            };
            ready |= 1 << g;
            done.push(g);
        }
        Ok(done)
    }

    fn assemble(mut self) -> Outcome<Canonical> {
        let order = self.ordered()?;
        let mut arguments = self.flat.step.arguments.clone();
        let mut leaves: HashMap<Id, Leaf> = HashMap::new();
        let mut strata = Vec::new();
        for g in order {
            let stratum = match self.groups[g].form.clone() {
                Ok(draft) => Stratum::Chunk(self.form(g, draft, &arguments, &leaves)?),
                Err(why) => Stratum::Walk(self.walk(g, &why, &arguments, &leaves)?),
            };
            for e in &self.reads[g] {
                let shape = self.sym.store.shape(e.id).to_vec();
                leaves.insert(e.id, Leaf::Argument(arguments.len() as u32));
                arguments.push(Argument { name: e.name.clone(), ty: Type::Tensor(TensorType::float(&shape)) });
            }
            if self.walked(g) {
                self.products_with(g, &mut leaves);
            }
            strata.push(stratum);
        }
        let rest = self.emit("rest", arguments, &self.results, &leaves)?;
        Ok(Canonical { strata, rest })
    }

    /// Inner products with a walked vector state are formed from the state.
    fn products_with(&mut self, g: usize, leaves: &mut HashMap<Id, Leaf>) {
        for id in 0..self.sym.store.len() {
            if let Kind::Read(r) = *self.sym.store.kind(id)
                && self.group_of[r.state] == g
                && let Ask::Right(q) = r.query
            {
                let shape = self.p.states[r.state].shape.clone();
                let whole = self.sym.store.read(Read { query: Ask::Whole, ..r }, &shape);
                leaves.insert(id, Leaf::Dot(whole, q));
            }
        }
    }

    fn emit(
        &self,
        name: &str,
        arguments: Vec<Argument>,
        results: &[(String, Id)],
        leaves: &HashMap<Id, Leaf>,
    ) -> Outcome<Function> {
        function(&self.sym.store, name, arguments, &self.flat.step.parameters, results, leaves)
            .map_err(|id| self.blocked(Obstacle::Round, "it needs a read that comes later".into(), id))
    }

    fn form(&mut self, g: usize, mut draft: Draft, arguments: &[Argument], leaves: &HashMap<Id, Leaf>) -> Outcome<Form> {
        // Without erasing the side is free: the one from which it is read is the better one.
        let reads: Vec<Id> = self.reads[g].iter().map(|e| e.id).collect();
        let from_left = |id: &Id| matches!(self.sym.store.kind(*id), Kind::Read(Read { query: Ask::Left(_), .. }));
        if !draft.erases && !reads.is_empty() && reads.iter().all(from_left) && self.p.states[draft.state].shape.len() == 2 {
            draft = self.turned(draft);
        }
        let [rows, columns] = draft.size;
        let mut list = Coefficients { ids: Vec::new() };
        let mut segments = Vec::new();
        for s in &draft.segments {
            let mut factor = |me: &mut Self, a: Id, shape: &[usize]| {
                let (range, id) = me.sym.store.decay_range(a);
                if range == Range::Signed && shape.iter().any(|n| *n > 1) {
                    let name = &me.p.states[draft.state].name;
                    let why =
                        format!("state `{name}` decays along an axis, by what may be zero or negative and so has no logarithm");
                    return Err(me.blocked(Obstacle::Signed, why, a));
                }
                let id = me.sym.store.spread(id, shape);
                Ok(Factor { coefficient: list.place(id), range })
            };
            let decay = match s.decay {
                DraftDecay::One => Decay::One,
                DraftDecay::Scalar(a) => Decay::Scalar(factor(self, a, &[])?),
                DraftDecay::Columns(a) => Decay::Columns(factor(self, a, &[columns])?),
                DraftDecay::Rows(a) => Decay::Rows(factor(self, a, &[rows])?),
            };
            let terms = s.terms.iter().map(|t| {
                let mut wide = |id: Id, n: usize| {
                    let id = self.sym.store.spread(id, &[n]);
                    list.place(id)
                };
                Term {
                    column: t.column.map(|u| wide(u, rows)),
                    erase: t.erase.map(|p| wide(p, columns)),
                    row: wide(t.row, columns),
                }
            });
            segments.push(Segment { decay, terms: terms.collect() });
        }
        let mut state_reads = Vec::new();
        for (i, id) in reads.into_iter().enumerate() {
            let Kind::Read(r) = *self.sym.store.kind(id) else { continue };
            let query = match (r.query, draft.side) {
                (Ask::Whole, _) => Query::Whole,
                (Ask::Right(q), Side::Right) | (Ask::Left(q), Side::Left) => Query::Right(list.place(q)),
                (Ask::Left(q), Side::Right) | (Ask::Right(q), Side::Left) => Query::Left(list.place(q)),
            };
            let shape = self.sym.store.shape(id).to_vec();
            state_reads.push(StateRead { name: self.reads[g][i].name.clone(), after: r.after, query, shape });
        }
        let results: Vec<(String, Id)> = list.ids.iter().enumerate().map(|(i, id)| (format!("c{i}"), *id)).collect();
        let coefficients = self.emit("coefficients", arguments.to_vec(), &results, leaves)?;
        Ok(Form { state: draft.state as u32, side: draft.side, size: draft.size, coefficients, segments, reads: state_reads })
    }

    /// The form of the transposed matrix; what is scalar stays with the column.
    fn turned(&mut self, draft: Draft) -> Draft {
        let mut draft = draft.turned();
        let store = &mut self.sym.store;
        for t in draft.segments.iter_mut().flat_map(|s| &mut s.terms) {
            if let Some(u) = t.column {
                let (c, row) = store.split_scalar(u);
                t.column = Some(store.mul(c, t.row));
                t.row = row;
            }
        }
        draft
    }

    fn walk(&mut self, g: usize, why: &Blocked, arguments: &[Argument], leaves: &HashMap<Id, Leaf>) -> Outcome<Walk> {
        let mut leaves = leaves.clone();
        let updates = self.updates(g);
        for id in 0..self.sym.store.len() {
            let Kind::Read(r) = *self.sym.store.kind(id) else { continue };
            let Some((_, update)) = updates.iter().find(|(s, _)| *s == r.state) else { continue };
            if r.query == Ask::Whole {
                leaves.insert(id, if r.after == 0 { Leaf::State(r.state as u32) } else { Leaf::Value(*update) });
            }
        }
        self.products_with(g, &mut leaves);
        // Products with a state as it is before or after may need the state itself.
        for (s, update) in &updates {
            for after in [0, 1] {
                let shape = self.p.states[*s].shape.clone();
                let whole = self.sym.store.read(Read { state: *s, after, query: Ask::Whole }, &shape);
                leaves.insert(whole, if after == 0 { Leaf::State(*s as u32) } else { Leaf::Value(*update) });
            }
        }
        let mut results: Vec<(String, Id)> = self.reads[g].iter().map(|e| (e.name.clone(), e.id)).collect();
        for s in &self.groups[g].states {
            let next = match updates.iter().find(|(t, _)| t == s) {
                Some((_, update)) => *update,
                None => {
                    let shape = self.p.states[*s].shape.clone();
                    self.sym.store.read(Read { state: *s, after: 0, query: Ask::Whole }, &shape)
                }
            };
            results.push((format!("state.{}", self.p.states[*s].name), next));
        }
        let step = self.emit("walk", arguments.to_vec(), &results, &leaves)?;
        let place = self.p.place(why.origin.span);
        let place = if place.is_empty() { place } else { format!("{place}: ") };
        Ok(Walk {
            states: self.groups[g].states.iter().map(|s| *s as u32).collect(),
            step,
            reads: self.reads[g].iter().map(|e| e.name.clone()).collect(),
            why: format!("{place}`{}`: {}", why.origin.operator, why.why),
        })
    }
}

/// Expressions in the order in which a form names them, each once.
struct Coefficients {
    ids: Vec<Id>,
}

impl Coefficients {
    fn place(&mut self, id: Id) -> usize {
        if let Some(i) = self.ids.iter().position(|o| *o == id) {
            return i;
        }
        self.ids.push(id);
        self.ids.len() - 1
    }
}
