//! The functions of one step: forwards, forwards again, backwards.

use std::fmt::Write;

use super::ports::Way;
use super::{Back, Driver, Given, Port, Routine, c_type};
use crate::kernel::form::{Gradient, Per};
use crate::kernel::graph::{Dtype, Id, Leaf, What};
use crate::kernel::nests::{Dest, Output, arrange};
use crate::kernel::print::{Place, Printer};
use crate::kernel::strata::Handed;

impl Driver<'_> {
    pub(super) fn routine(&mut self, outputs: Vec<Output>, given: &[Given]) -> Result<Routine, String> {
        let nests = arrange(self.g(), outputs)?;
        let mut after = String::new();
        let mut dests = Vec::new();
        for (i, o) in nests.outputs.iter().enumerate() {
            let room = self.lay.room(self.g(), &o.axes);
            let place = match o.dest {
                Dest::State(k) if !nests.late.contains(&i) => Place::lanes(format!("next{k}")),
                Dest::StateGradient(k) if !nests.late.contains(&i) => Place::lanes(format!("state_gradient_out{k}")),
                Dest::Before(k) => Place::lanes(format!("before{k}")),
                Dest::Saved(k) => Place::lanes(format!("saved{k}")),
                Dest::Passed(k) => Place::lanes(format!("passed{k}")),
                Dest::Brought(k) => Place::lanes(format!("brought{k}")),
                Dest::Handed(k) => Place::lanes(format!("handed{k}")),
                Dest::Argument(k) => match given[k] {
                    Given::Summed(at) => Place { adds: true, ..Place::lanes(format!("(m + {at})")) },
                    _ => {
                        let at = self.memory_take(room);
                        let p = &self.arguments[k];
                        let (own, theirs) = (format!("(m + {at})"), format!("in_gradient{k}"));
                        let _ =
                            write!(after, "    if (in_gradient{k}) {{\n{}    }}\n", self.give(p, &own, &theirs, "at->adds", 8)?);
                        Place::lanes(format!("(m + {at})"))
                    }
                },
                dest => {
                    let at = self.memory_take(room);
                    match dest {
                        Dest::State(k) => {
                            let _ = writeln!(after, "    __builtin_memcpy(next{k}, m + {at}, {room} * sizeof(real));");
                        }
                        Dest::StateGradient(k) => {
                            let _ =
                                writeln!(after, "    __builtin_memcpy(state_gradient_out{k}, m + {at}, {room} * sizeof(real));");
                        }
                        Dest::Carried(k) => {
                            let _ = writeln!(after, "    __builtin_memcpy(carried_out{k}, m + {at}, {room} * sizeof(real));");
                        }
                        Dest::Kept(k) => {
                            let p = &self.kept[k];
                            let own = format!("(m + {at})");
                            after += &self.transfer(p, &own, &format!("kept{k}"), Way::Out, 4)?;
                        }
                        Dest::Left(k) | Dest::Right(k) => {
                            let left = matches!(dest, Dest::Left(_));
                            let side = if left { "left" } else { "right" };
                            let p =
                                Port { dims: vec![Some(o.axes[0])], shape: vec![self.lay.sizes[o.axes[0]]], dtype: Dtype::Float };
                            let text = self.transfer(&p, &format!("(m + {at})"), &format!("{side}{k}"), Way::Out, 8)?;
                            let _ = write!(after, "    if ({side}{k}) {{\n{text}    }}\n");
                        }
                        Dest::Argument(_)
                        | Dest::Before(_)
                        | Dest::Saved(_)
                        | Dest::Passed(_)
                        | Dest::Brought(_)
                        | Dest::Handed(_) => {}
                    }
                    Place::lanes(format!("(m + {at})"))
                }
            };
            dests.push(place);
        }
        let Driver { graph, lay, memory, masks, globals, .. } = &mut *self;
        let graph = *graph;
        let (lay, mut memory_now, mut masks_now, mut globals_now) =
            (lay.clone(), std::mem::take(memory), std::mem::take(masks), std::mem::take(globals));
        let leaves = |leaf: Leaf| self.place_of(leaf);
        let mut printer = Printer::new(graph, &lay, &nests, &leaves, dests, &mut memory_now, &mut masks_now, &mut globals_now);
        let body = printer.body()?;
        let operations = printer.operations;
        self.memory = memory_now;
        self.masks = masks_now;
        self.globals = globals_now;
        Ok(Routine { body, after, operations })
    }

    /// How the gradient of every argument is handed over.
    pub(super) fn gradients(&mut self) -> (Vec<Given>, Vec<Gradient>) {
        let mut given = Vec::new();
        let mut form = Vec::new();
        let parts_of = |d: &Driver<'_>, p: &Port| match d.split {
            Some((axis, blocks)) if !p.axes().contains(&axis) => blocks,
            _ => 1,
        };
        for i in 0..self.arguments.len() {
            let Some(node) = self.low.argument_gradients[i] else {
                given.push(Given::Nothing);
                form.push(Gradient::None);
                continue;
            };
            let zero = matches!(self.g().nodes[node].what, What::Const(0));
            let parts = parts_of(self, &self.arguments[i]);
            match self.step.per[i] {
                _ if zero => {
                    given.push(Given::Nothing);
                    form.push(Gradient::None);
                }
                Per::Step => {
                    given.push(Given::Steps);
                    form.push(Gradient::Steps { parts });
                }
                per => {
                    let factors = self.low.factors.iter().find(|f| f.0 == i).filter(|_| per == Per::Once && self.split.is_none());
                    if let Some((_, left, right, axes)) = factors {
                        given.push(Given::Factors { left: *left, right: *right, axes: *axes });
                        form.push(Gradient::Product { left: self.lay.sizes[axes[0]], right: self.lay.sizes[axes[1]] });
                    } else {
                        let room = self.lay.room(self.g(), &self.arguments[i].axes());
                        given.push(Given::Summed(self.memory_take(room)));
                        form.push(Gradient::Sequences { parts });
                    }
                }
            }
        }
        (given, form)
    }

    /// The routines of the step back, and their operations.
    pub(super) fn adjoint(&mut self, name: &'static str, given: Vec<Given>) -> Result<(Back, usize), String> {
        let (mut texts, mut operations) = (Vec::new(), 0);
        for (k, outputs) in self.outputs_back(&given).into_iter().enumerate() {
            let routine = self.routine(outputs, &given)?;
            operations += routine.operations;
            texts.push(self.function(&format!("{name}{k}"), &routine, true));
        }
        Ok((Back { name, texts, given }, operations))
    }

    /// Those of the form with stored states; gradients go where the other form's go.
    pub(super) fn stored(&mut self, given: &[Given]) -> Result<Back, String> {
        let mut own = Vec::new();
        for (i, g) in given.iter().enumerate() {
            own.push(match g {
                Given::Nothing => Given::Nothing,
                Given::Steps => Given::Steps,
                Given::Summed(at) => Given::Summed(*at),
                Given::Factors { axes, .. } => match self.low.factors.iter().find(|f| f.0 == i) {
                    Some((_, left, right, own)) if own == axes => Given::Factors { left: *left, right: *right, axes: *axes },
                    _ => return Err("internal: a gradient is a product in one form of the step only".into()),
                },
            });
        }
        Ok(self.adjoint("fwp_step_back_stored", own)?.0)
    }

    /// Declarations of what a routine reads, out of its arguments.
    pub(super) fn function(&self, name: &str, r: &Routine, back: bool) -> String {
        let mut t = String::new();
        let _ = writeln!(t, "static __attribute__((noinline)) void {name}(real *m, const struct fwp_at *at)\n{{");
        let _ = writeln!(
            t,
            "    const int64_t index = at->index;\n    const int64_t row0 = at->row0;\n    (void)index, (void)row0, (void)m;"
        );
        let mut line = |used: &str, text: String| {
            if r.body.contains(used) || r.after.contains(used) {
                let _ = writeln!(t, "    {text}");
            }
        };
        for (i, p) in self.arguments.iter().enumerate() {
            let ty = c_type(p.dtype);
            line(&format!("in{i}"), format!("const {ty} *const in{i} = (const {ty} *)at->in[{i}]; (void)in{i};"));
            if back {
                line(
                    &format!("in_gradient{i}"),
                    format!("real *const in_gradient{i} = at->in_gradient[{i}]; (void)in_gradient{i};"),
                );
                line(&format!("left{i}"), format!("real *const left{i} = at->in_gradient[{i}]; (void)left{i};"));
                line(&format!("right{i}"), format!("real *const right{i} = at->right[{i}]; (void)right{i};"));
            }
        }
        line("follows", "const real *const follows = at->follows; (void)follows;".into());
        for i in 0..self.states.len() {
            line(&format!("state{i}"), format!("const real *const state{i} = at->state[{i}]; (void)state{i};"));
            line(&format!("next{i}"), format!("real *const next{i} = at->next[{i}]; (void)next{i};"));
            if back {
                line(&format!("after{i}"), format!("const real *const after{i} = at->after[{i}]; (void)after{i};"));
                line(&format!("before{i}"), format!("real *const before{i} = at->before[{i}]; (void)before{i};"));
                line(
                    &format!("state_gradient{i}"),
                    format!("const real *const state_gradient{i} = at->state_gradient[{i}]; (void)state_gradient{i};"),
                );
                line(
                    &format!("state_gradient_out{i}"),
                    format!("real *const state_gradient_out{i} = at->state_gradient_out[{i}]; (void)state_gradient_out{i};"),
                );
                line(&format!("carried{i}"), format!("const real *const carried{i} = at->carried[{i}]; (void)carried{i};"));
                line(
                    &format!("carried_out{i}"),
                    format!("real *const carried_out{i} = at->carried_out[{i}]; (void)carried_out{i};"),
                );
            }
        }
        for i in 0..self.kept.len() {
            line(&format!("kept{i}"), format!("real *const kept{i} = at->kept[{i}]; (void)kept{i};"));
            line(
                &format!("kept_gradient{i}"),
                format!("const real *const kept_gradient{i} = at->kept_gradient[{i}]; (void)kept_gradient{i};"),
            );
        }
        let passed: Vec<Id> = self.low.passed.iter().map(|p| p.1).collect();
        let nodes = |handed: &[Handed]| -> Vec<Id> { handed.iter().map(|h| h.node).collect() };
        let (brought, handed) = (nodes(&self.low.ahead.brought), nodes(&self.low.strata.handed));
        for (name, values) in [("saved", &self.saved), ("passed", &passed), ("brought", &brought), ("handed", &handed)] {
            let mut offset = 0;
            for (k, n) in values.iter().enumerate() {
                line(&format!("{name}{k}"), format!("real *const {name}{k} = at->{name} + {offset}; (void){name}{k};"));
                offset += self.vector_room(*n);
            }
        }
        t += &r.body;
        t += &r.after;
        t += "}\n\n";
        t
    }

    pub(super) fn saved_room(&self) -> usize {
        self.saved.iter().map(|n| self.vector_room(*n)).sum()
    }

    /// Elements of the sums over states of one step.
    pub(super) fn passed_room(&self) -> usize {
        self.low.passed.iter().map(|p| self.vector_room(p.1)).sum()
    }

    /// Elements of what the strata of a step bring later ones.
    pub(super) fn brought_room(&self) -> usize {
        self.low.ahead.brought.iter().map(|h| self.vector_room(h.node)).sum()
    }

    /// Elements of what the strata of a step back hand on.
    pub(super) fn handed_room(&self) -> usize {
        self.low.strata.handed.iter().map(|h| self.vector_room(h.node)).sum()
    }

    /// Elements of a value among others that are stored one after the other.
    pub(super) fn vector_room(&self, n: Id) -> usize {
        self.lay.room(self.g(), self.g().axes(n)).next_multiple_of(16)
    }

    /// States again, from those before the step, and the sums over them that the way back reads.
    pub(super) fn outputs_again(&self) -> Vec<Output> {
        let again = self.low.again.iter().enumerate().filter_map(|(i, n)| Some((i, (*n)?)));
        let states = again.map(|(i, node)| Output { node, axes: self.states[i].axes(), dest: Dest::State(i) });
        let passed = self.low.passed.iter().enumerate();
        let sums = passed.map(|(k, (_, n))| Output { node: *n, axes: self.g().axes(*n).to_vec(), dest: Dest::Passed(k) });
        states.chain(sums).collect()
    }

    /// The results of every stratum of the step back.
    fn outputs_back(&self, given: &[Given]) -> Vec<Vec<Output>> {
        let (low, strata) = (self.low, &self.low.strata);
        let mut of = vec![Vec::new(); strata.count];
        for (i, n) in low.state_gradients.iter().enumerate() {
            of[strata.states[i]].push(Output { node: *n, axes: self.states[i].axes(), dest: Dest::StateGradient(i) });
        }
        for (i, n) in low.undo.iter().enumerate().filter_map(|(i, n)| Some((i, (*n)?))) {
            of[strata.states[i]].push(Output { node: n, axes: self.states[i].axes(), dest: Dest::Before(i) });
        }
        for (i, g) in given.iter().enumerate() {
            match (g, low.argument_gradients[i]) {
                (Given::Steps | Given::Summed(_), Some(node)) => {
                    let output = Output { node, axes: self.arguments[i].axes(), dest: Dest::Argument(i) };
                    of[strata.arguments[i]].push(output);
                }
                (Given::Factors { left, right, axes }, _) => {
                    let sides = low.factors.iter().position(|f| f.0 == i).map_or([0, 0], |k| strata.factors[k]);
                    of[sides[0]].push(Output { node: *left, axes: vec![axes[0]], dest: Dest::Left(i) });
                    of[sides[1]].push(Output { node: *right, axes: vec![axes[1]], dest: Dest::Right(i) });
                }
                _ => {}
            }
        }
        for (k, h) in strata.handed.iter().enumerate() {
            of[h.stratum].push(Output { node: h.node, axes: self.g().axes(h.node).to_vec(), dest: Dest::Handed(k) });
        }
        for (i, c) in low.carried.iter().enumerate().filter_map(|(i, c)| Some((i, c.as_ref()?))) {
            of[strata.states[i]].push(Output { node: c.before, axes: self.g().axes(c.before).to_vec(), dest: Dest::Carried(i) });
        }
        of
    }

    /// The results of every stratum of the step.
    pub(super) fn outputs(&self) -> Vec<Vec<Output>> {
        let (low, ahead) = (self.low, &self.low.ahead);
        let mut of = vec![Vec::new(); ahead.count];
        for (i, (n, s)) in low.kept.iter().zip(&ahead.kept).enumerate() {
            of[*s].push(Output { node: *n, axes: self.kept[i].axes(), dest: Dest::Kept(i) });
        }
        for (i, (n, s)) in low.next.iter().zip(&ahead.states).enumerate() {
            of[*s].push(Output { node: *n, axes: self.states[i].axes(), dest: Dest::State(i) });
        }
        let axes = |n: Id| self.g().axes(n).to_vec();
        for (k, (n, s)) in self.saved.iter().zip(&ahead.saved).enumerate() {
            of[*s].push(Output { node: *n, axes: axes(*n), dest: Dest::Saved(k) });
        }
        for (k, h) in ahead.brought.iter().enumerate() {
            of[h.stratum].push(Output { node: h.node, axes: axes(h.node), dest: Dest::Brought(k) });
        }
        of
    }
}
