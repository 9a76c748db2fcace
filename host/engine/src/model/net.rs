//! What a slow net reaches while it is carried out: parameters, sequence axes, recurrent cells and fast weights.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use fwp_program::{Source, child};
use fwp_sdk::program::{Node, Op, Parameter, QueryScale, Role, SlotInterface, Training};
use tch::{Kind, Tensor};

use super::cell::{Call as CellCall, Cell};
use super::{Carry, Model, Probes, init, source};
use crate::exec::back::Deferred;
use crate::exec::evaluate::{self, Place, Surroundings, Table};
use crate::exec::scan::{FastWeights, Masks, per_sample};
use crate::exec::time::{self, Along, Attention};
use crate::exec::value::{Datum, Lead, Memory, Precision, Value, expanded, reshaped};
use crate::train::Pass;

/// One forward pass.
pub(super) struct InNet<'a> {
    model: &'a Model,
    pass: &'a Pass,
    batch: i64,
    entering: Option<Carry>,
    leaving: RefCell<Carry>,
    /// Rows that start afresh, `[batch]`.
    rows: Option<Tensor>,
    /// Steps that start a new sequence, `[batch, time]`.
    steps: Option<Tensor>,
    drawn: RefCell<HashMap<String, Tensor>>,
    /// How often each place was reached that remembers something.
    visits: RefCell<HashMap<String, usize>>,
    probes: Option<RefCell<Probes>>,
}

impl<'a> InNet<'a> {
    pub fn new(
        model: &'a Model,
        pass: &'a Pass,
        batch: i64,
        entering: Option<Carry>,
        steps: Option<&Tensor>,
        probing: bool,
    ) -> Result<InNet<'a>> {
        let rows = match (&entering, &pass.resets) {
            (Some(_), Some(rows)) if rows.iter().any(|r| *r) => {
                Some(Tensor::from_slice(rows).f_to_device(model.precision.device)?)
            }
            _ => None,
        };
        // Rows that all start afresh need nothing carried; that is also what a missing list means.
        let entering = if pass.resets.as_ref().is_none_or(|r| r.iter().all(|x| *x)) { None } else { entering };
        let steps = steps.map(|t| t.f_to_kind(Kind::Bool)).transpose()?;
        Ok(InNet {
            model,
            pass,
            batch,
            entering,
            leaving: RefCell::default(),
            rows,
            steps,
            drawn: RefCell::default(),
            visits: RefCell::default(),
            probes: probing.then(RefCell::default),
        })
    }

    pub fn finish(self) -> (Carry, Probes) {
        let detached = self.leaving.into_inner().into_iter().map(|(k, v)| (k, v.iter().map(Tensor::detach).collect()));
        (detached.collect(), self.probes.map(RefCell::into_inner).unwrap_or_default())
    }

    /// `[batch, length]`: where a new sequence starts along an axis; none where nothing does.
    fn resets(&self, axis: Option<&str>, length: i64) -> Result<Option<Tensor>> {
        let of_steps = match &self.steps {
            Some(s) if axis == Some("time") && s.size()[1] == length => Some(s.shallow_clone()),
            _ => None,
        };
        let Some(rows) = self.rows.as_ref().filter(|_| self.entering.is_some()) else { return Ok(of_steps) };
        let first = rows.f_unsqueeze(1)?;
        let rest = Tensor::f_zeros([self.batch, length - 1], (Kind::Bool, rows.device()))?;
        let of_rows = Tensor::f_cat(&[first, rest], 1)?;
        Ok(Some(match of_steps {
            Some(s) => s.f_logical_or(&of_rows)?,
            None => of_rows,
        }))
    }

    /// The name under which a node's memory is carried: its place, numbered where repetitions share one.
    fn key(&self, at: &Place<'_>) -> String {
        let place = format!("{}#{}", at.prefix, at.node);
        let mut visits = self.visits.borrow_mut();
        let visit = visits.entry(place.clone()).and_modify(|n| *n += 1).or_insert(1);
        if *visit == 1 { place } else { format!("{place}@{visit}") }
    }

    /// Carries out an operator that may remember something for the next call.
    fn remembering(
        &self,
        at: &Place<'_>,
        length: i64,
        work: impl FnOnce(&Along<'_>) -> Result<(Value, Vec<Tensor>)>,
    ) -> Result<Datum> {
        let key = self.key(at);
        let reset = self.resets(at.axis(), length)?;
        let carried = self.entering.as_ref().and_then(|c| c.get(&key)).map(Vec::as_slice);
        let (value, left) = work(&Along { reset: reset.as_ref(), carried })?;
        if self.pass.carry {
            self.leaving.borrow_mut().insert(key, left);
        }
        Ok(Datum::Value(value))
    }

    fn value_of(&self, path: &str) -> Result<Tensor> {
        let index = *self.model.by_path.get(path).with_context(|| format!("internal: there is no parameter `{path}`"))?;
        let spec = &self.model.specs[index];
        if spec.training != Training::Redrawn || !self.pass.train {
            return Ok(self.model.parameters[index].tensor.shallow_clone());
        }
        if let Some(t) = self.drawn.borrow().get(path) {
            return Ok(t.shallow_clone());
        }
        // Draw 0 is the fixed one of evaluation; micro-batches of one step share their draw.
        let prepared = source(&self.model.composed, spec.source);
        let t = init::draw(prepared, spec, self.model.precision, self.pass.seed, self.pass.step + 1)?;
        self.drawn.borrow_mut().insert(path.to_string(), t.shallow_clone());
        Ok(t)
    }

    fn interface(&self, slot: &str) -> Result<(usize, &SlotInterface)> {
        let slots = &self.model.composed.net.program.slots;
        let found = slots.iter().enumerate().find(|(_, s)| s.name == slot);
        found.with_context(|| format!("internal: there is no slot `{slot}`"))
    }

    /// The fast weights at a place of the net.
    fn weights(&self, at: &Place<'_>, slot: &str, name: &str) -> Result<FastWeights> {
        let (index, _) = self.interface(slot)?;
        let prefix = child(at.prefix, name);
        let shared = format!("shared.{slot}.");
        let mut table = Table::default();
        for spec in &self.model.specs {
            let own = matches!(spec.source, Source::Rule(i) | Source::Map(i) if i == index);
            if !own || !(spec.path.starts_with(&prefix) || spec.path.starts_with(&shared)) {
                continue;
            }
            let t = self.value_of(&spec.path)?;
            let value = per_sample(&t, spec.scope, self.batch)?;
            table.0.insert(spec.path.clone(), value);
        }
        Ok(FastWeights {
            slot: self.model.composed.slots[index].clone(),
            index,
            parameters: table,
            prefix,
            precision: self.model.precision,
            memory_limit: self.model.memory_limit,
            executors: self.model.executors.clone(),
        })
    }

    /// From the net's layout `[batch, (time,) heads, ...]` to the scan's `[(time,) batch * heads, ...]`.
    fn to_scan(&self, x: &Value, heads: usize, length: Option<i64>) -> Result<Value> {
        let lead = if length.is_some() { Lead::AXIS } else { Lead::BATCH };
        let own = x.shape();
        let full: Vec<i64> = std::iter::once(self.batch).chain(length).chain(own.iter().copied()).collect();
        let mut t = expanded(x.aligned(lead, x.rank())?, &full)?;
        let head_axis = lead.count() as i64;
        let groups = heads as i64 / own[0];
        if groups > 1 {
            t = t.f_repeat_interleave_self_int(groups, head_axis, None)?;
        }
        let rest: Vec<i64> = own[1..].to_vec();
        if let Some(length) = length {
            let flat: Vec<i64> = [length, self.batch * heads as i64].into_iter().chain(rest).collect();
            return Ok(Value::new(reshaped(&t.f_transpose(0, 1)?, &flat)?, Lead::STEPS));
        }
        let flat: Vec<i64> = std::iter::once(self.batch * heads as i64).chain(rest).collect();
        Ok(Value::new(reshaped(&t, &flat)?, Lead::BATCH))
    }

    /// From the scan's layout to the net's.
    fn to_net(&self, x: &Value, heads: usize) -> Result<Value> {
        let rest = x.shape();
        let heads = heads as i64;
        if x.lead.steps {
            let split: Vec<i64> = [x.tensor.size()[0], self.batch, heads].into_iter().chain(rest).collect();
            return Ok(Value::new(reshaped(&x.tensor, &split)?.f_transpose(0, 1)?, Lead::AXIS));
        }
        let split: Vec<i64> = [self.batch, heads].into_iter().chain(rest).collect();
        Ok(Value::new(x.tensor.f_reshape(split)?, Lead::BATCH))
    }

    /// Operands in the scan's layout, before the feature map; the write mask apart.
    fn operands(&self, call: &Call<'_>) -> Result<(Vec<(String, Value)>, Masks)> {
        let heads = call.interface.heads;
        let reset = match call.length {
            Some(length) => self.resets(call.axis, length)?,
            None => None,
        };
        let per_head = |mask: &Tensor| -> Result<Tensor> {
            Ok(mask.f_transpose(0, 1)?.f_repeat_interleave_self_int(heads as i64, 1, None)?)
        };
        let mut masks = Masks { reset: reset.map(|r| per_head(&r)).transpose()?, ..Masks::default() };
        let steps = call.length.unwrap_or(1);
        let mut inputs = Vec::new();
        for (name, x) in &call.inputs {
            if name == "write" {
                let t = expanded(x.aligned(Lead::AXIS, 0)?, &[self.batch, steps])?;
                masks.write = Some(per_head(&t)?);
                continue;
            }
            inputs.push((name.clone(), self.to_scan(x, heads, call.length)?));
        }
        Ok((inputs, masks))
    }

    fn outputs(&self, parts: Vec<Value>, call: &Call<'_>) -> Result<Vec<Datum>> {
        let scale = (call.interface.key as f64).powf(-0.5);
        parts
            .iter()
            .enumerate()
            .map(|(i, v)| {
                let mut v = self.to_net(v, call.interface.heads)?;
                if i == 0 && call.scale == QueryScale::Output {
                    v.tensor = v.tensor.f_mul_scalar(scale)?;
                }
                Ok(Datum::Value(v))
            })
            .collect()
    }

    fn fast_weights(&self, at: &Place<'_>, op: &Op, operands: &[&Datum]) -> Result<Datum> {
        let n = |interface: &SlotInterface| self.batch * interface.heads as i64;
        match op {
            Op::MemoryInit { slot, name } => {
                if alone(at, |op| matches!(op, Op::FastWrite { .. })) {
                    return Ok(Datum::Fresh);
                }
                let (_, interface) = self.interface(slot)?;
                Ok(Datum::Memory(self.weights(at, slot, name)?.initial(n(interface))?))
            }
            Op::FastWeights { slot, name, inputs, scale, read } => {
                let weights = self.weights(at, slot, name)?;
                let (_, interface) = self.interface(slot)?;
                let call = Call::new(interface, inputs, operands, *scale, at.axis())?;
                let key = self.key(at);
                let memory = match self.entering.as_ref().and_then(|c| c.get(&key)) {
                    Some(left) => unpack(left, weights.index)?,
                    None => weights.initial(n(interface))?,
                };
                let (given, masks) = self.operands(&call)?;
                let shown = self.shown(&call, &weights, &memory, &masks, &given)?;
                let (parts, memory) = weights.scan(&given, call.query_scale(), memory, &masks, *read)?;
                if self.pass.carry {
                    self.leaving.borrow_mut().insert(key, pack(&memory));
                }
                self.probe(&weights, interface, shown, &memory)?;
                let mut data = self.outputs(parts, &call)?;
                data.push(Datum::Memory(memory));
                Ok(Datum::Tuple(data))
            }
            Op::FastWrite { slot, name, inputs } => {
                let weights = self.weights(at, slot, name)?;
                let (_, interface) = self.interface(slot)?;
                let call = Call::new(interface, inputs, &operands[1..], QueryScale::None, at.axis())?;
                let (given, masks) = self.operands(&call)?;
                let before = match operands[0] {
                    Datum::Fresh => None,
                    other => Some(memory(other)?),
                };
                let deferred = Deferred { memory: before, samples: n(interface), inputs: given };
                if self.read_alone(at, &call, &masks) && weights.walks_back() {
                    return Ok(Datum::Deferred(deferred));
                }
                let (memory, given) = (weights.before(&deferred)?, deferred.inputs);
                let shown = self.shown(&call, &weights, &memory, &masks, &given)?;
                let given: Vec<(String, Value)> = match call.length {
                    Some(_) => given,
                    // One write is a walk of one step.
                    None => given
                        .into_iter()
                        .map(|(n, v)| Ok((n, Value::new(v.tensor.f_unsqueeze(0)?, Lead::STEPS))))
                        .collect::<Result<_>>()?,
                };
                let memory = weights.write(&given, memory, &masks)?;
                self.probe(&weights, interface, shown, &memory)?;
                Ok(Datum::Memory(memory))
            }
            Op::FastRead { slot, name, inputs, scale } => {
                let weights = self.weights(at, slot, name)?;
                let (_, interface) = self.interface(slot)?;
                let call = Call::new(interface, inputs, &operands[1..], *scale, at.axis())?;
                let (given, masks) = self.operands(&call)?;
                let parts = match operands[0] {
                    Datum::Deferred(deferred) if call.length.is_none_or(|n| n == 1) => {
                        weights.read_back(deferred, &given, call.query_scale())?
                    }
                    Datum::Deferred(d) => {
                        let memory = weights.write(&d.inputs, weights.before(d)?, &Masks::default())?;
                        weights.read(&given, call.query_scale(), &memory, &masks)?
                    }
                    other => weights.read(&given, call.query_scale(), &memory(other)?, &masks)?,
                };
                Ok(Datum::Tuple(self.outputs(parts, &call)?))
            }
            other => bail!("internal: `{}` is not an operator on fast weights", other.name()),
        }
    }

    /// Whether nothing but one read looks at what this node writes along a sequence.
    fn read_alone(&self, at: &Place<'_>, call: &Call<'_>, masks: &Masks) -> bool {
        let plain = masks.reset.is_none() && masks.write.is_none() && self.probes.is_none() && call.length.is_some();
        plain && alone(at, |op| matches!(op, Op::FastRead { .. }))
    }

    /// Inputs as they are shown, where anybody looks: after the feature map.
    fn shown(
        &self,
        call: &Call<'_>,
        weights: &FastWeights,
        memory: &Memory,
        masks: &Masks,
        given: &[(String, Value)],
    ) -> Result<Option<Vec<(String, Value)>>> {
        self.probes.as_ref().map(|_| weights.all_mapped(given, call.query_scale(), memory, masks)).transpose()
    }

    /// Records fast weights, inputs and effective signals of the first sample for histograms and images.
    fn probe(
        &self,
        weights: &FastWeights,
        interface: &SlotInterface,
        inputs: Option<Vec<(String, Value)>>,
        memory: &Memory,
    ) -> Result<()> {
        let (Some(probes), Some(inputs)) = (&self.probes, inputs) else { return Ok(()) };
        let mut probes = probes.borrow_mut();
        // A cell writes at every step; its last is shown.
        let mut show = |name: String, t: Tensor| {
            probes.retain(|(n, _)| *n != name);
            probes.push((name, t));
        };
        let place = weights.prefix.trim_end_matches('.').replace('.', "/");
        let heads = interface.heads as i64;
        for (state, t) in weights.slot.rule.program.states.iter().zip(&memory.states) {
            show(format!("fwp/{place}/{}", state.name), t.f_narrow(0, 0, heads)?);
        }
        let keys = inputs.iter().filter(|(n, _)| interface.inputs.iter().any(|i| i.name == *n && i.role == Role::Key));
        for (name, v) in keys.map(|(n, v)| (n.clone(), v.clone())).chain(weights.signals(&inputs)?) {
            if v.lead == Lead::STEPS {
                show(format!("fwp/{place}/{name}"), v.tensor.f_narrow(1, 0, heads)?.f_transpose(0, 1)?);
            }
        }
        Ok(())
    }

    fn scan(&self, at: &Place<'_>, function: usize, name: &str, states: usize, operands: &[&Datum]) -> Result<Datum> {
        let prefix = child(at.prefix, name);
        let key = self.key(at);
        let initial: Vec<Datum> = operands[..states].iter().map(|d| self.per_sample(d)).collect::<Result<_>>()?;
        let mut current: Vec<Datum> = match self.entering.as_ref().and_then(|c| c.get(&key)) {
            Some(left) => unflatten(left, &initial)?,
            None => initial.clone(),
        };
        // Fast weights that somebody looks at are written step by step, where each write can be seen.
        let walks = |cell: &Arc<Cell>| self.probes.is_none() || !cell.has_memories();
        if let Some(cell) = self.model.cell(function, states).filter(walks) {
            return self.walked(at, &cell, &prefix, key, &initial, &current, &operands[states..]);
        }
        let sequences: Vec<Vec<Tensor>> =
            operands[states..].iter().map(|d| Ok(d.value()?.tensor.f_unbind(1)?)).collect::<Result<_>>()?;
        let length = sequences.first().map_or(0, Vec::len);
        let reset = self.resets(at.axis(), length as i64)?.map(|r| r.f_unbind(1)).transpose()?;
        let mut outputs: Vec<Vec<Tensor>> = Vec::new();
        for t in 0..length {
            if let Some(reset) = &reset {
                current = current.iter().zip(&initial).map(|(c, i)| choose(&reset[t], i, c)).collect::<Result<_>>()?;
            }
            let mut arguments = std::mem::take(&mut current);
            arguments.extend(sequences.iter().map(|s| Datum::Value(Value::new(s[t].shallow_clone(), Lead::BATCH))));
            let mut results = evaluate::function(self, at.prepared, function, &prefix, at.layer, &arguments)?;
            let step: Vec<Datum> = results.split_off(states);
            current = results.iter().map(|d| self.per_sample(d)).collect::<Result<_>>()?;
            outputs.resize_with(step.len(), || Vec::with_capacity(length));
            for (list, d) in outputs.iter_mut().zip(&step) {
                match self.per_sample(d)? {
                    Datum::Value(v) => list.push(v.tensor),
                    _ => bail!("internal: a memory cannot be an output of a cell"),
                }
            }
        }
        if self.pass.carry {
            self.leaving.borrow_mut().insert(key, flatten(&current));
        }
        let mut all = current;
        for list in outputs {
            all.push(Datum::Value(Value::new(Tensor::f_stack(&list, 1)?, Lead::AXIS)));
        }
        Ok(Datum::Tuple(all))
    }

    /// A cell whose steps are a walk.
    #[expect(clippy::too_many_arguments, reason = "what `scan` has found")]
    fn walked(
        &self,
        at: &Place<'_>,
        cell: &Cell,
        prefix: &str,
        key: String,
        initial: &[Datum],
        current: &[Datum],
        sequences: &[&Datum],
    ) -> Result<Datum> {
        let sequences: Vec<Tensor> = sequences.iter().map(|d| Ok(d.value()?.tensor.shallow_clone())).collect::<Result<_>>()?;
        let length = sequences.first().context("internal: a cell without inputs")?.size()[1];
        let mut parameters = Table::default();
        for spec in &self.model.specs {
            if spec.path.starts_with(prefix) || spec.path.starts_with("shared.") {
                parameters.0.insert(spec.path.clone(), Value::new(self.value_of(&spec.path)?, Lead::NONE));
            }
        }
        let (states, outputs) = cell.run(CellCall {
            prefix,
            parameters,
            initial,
            current,
            sequences,
            reset: self.resets(at.axis(), length)?,
            precision: self.model.precision,
            memory_limit: self.model.memory_limit,
            executors: self.model.executors.clone(),
        })?;
        if self.pass.carry {
            self.leaving.borrow_mut().insert(key, flatten(&states));
        }
        let along = outputs.into_iter().map(|t| Datum::Value(Value::new(t, Lead::AXIS)));
        Ok(Datum::Tuple(states.into_iter().chain(along).collect()))
    }

    /// A value with its batch axis written out.
    fn per_sample(&self, d: &Datum) -> Result<Datum> {
        Ok(match d {
            Datum::Value(v) => {
                let shape: Vec<i64> = std::iter::once(self.batch).chain(v.shape()).collect();
                Datum::Value(Value::new(expanded(v.aligned(Lead::BATCH, v.rank())?, &shape)?, Lead::BATCH))
            }
            other => other.clone(),
        })
    }
}

/// One use of fast weights.
struct Call<'a> {
    interface: &'a SlotInterface,
    inputs: Vec<(String, &'a Value)>,
    scale: QueryScale,
    /// Length of the operands' axis; none for a single step.
    length: Option<i64>,
    axis: Option<&'a str>,
}

impl<'a> Call<'a> {
    fn new(
        interface: &'a SlotInterface,
        names: &[String],
        operands: &[&'a Datum],
        scale: QueryScale,
        axis: Option<&'a str>,
    ) -> Result<Call<'a>> {
        let inputs: Vec<(String, &Value)> =
            names.iter().zip(operands).map(|(n, d)| Ok((n.clone(), d.value()?))).collect::<Result<_>>()?;
        let length = inputs.iter().find(|(_, v)| v.lead.axis).map(|(_, v)| v.tensor.size()[1]);
        Ok(Call { interface, inputs, scale, length, axis })
    }

    /// What queries are multiplied by after the feature map.
    fn query_scale(&self) -> Option<f64> {
        (self.scale == QueryScale::Query).then(|| (self.interface.key as f64).powf(-0.5))
    }
}

/// Whether one node alone looks at the fast weights of this one, and is such a one.
fn alone(at: &Place<'_>, is: impl Fn(&Op) -> bool) -> bool {
    let f = at.function;
    let found = |n: &Node| is(&n.op) && n.operands[0] as usize == at.node;
    let uses = f.nodes.iter().flat_map(|n| &n.operands).filter(|o| **o as usize == at.node).count();
    uses == 1 && f.nodes.iter().any(found) && f.outputs.iter().all(|o| o.node as usize != at.node)
}

fn memory(d: &Datum) -> Result<Memory> {
    match d {
        Datum::Memory(m) => Ok(m.clone()),
        _ => bail!("internal: expected a memory"),
    }
}

fn pack(m: &Memory) -> Vec<Tensor> {
    m.states.iter().chain([&m.index]).map(Tensor::shallow_clone).collect()
}

fn unpack(left: &[Tensor], slot: usize) -> Result<Memory> {
    let (index, states) = left.split_last().context("internal: an empty carried memory")?;
    Ok(Memory { slot, states: states.iter().map(Tensor::shallow_clone).collect(), index: index.shallow_clone() })
}

fn flatten(data: &[Datum]) -> Vec<Tensor> {
    data.iter()
        .flat_map(|d| match d {
            Datum::Value(v) => vec![v.tensor.shallow_clone()],
            Datum::Memory(m) => pack(m),
            // Only one write or read knows of it.
            Datum::Fresh | Datum::Deferred(_) => vec![],
            Datum::Tuple(parts) => flatten(parts),
        })
        .collect()
}

fn unflatten(left: &[Tensor], like: &[Datum]) -> Result<Vec<Datum>> {
    let mut rest = left;
    let mut out = Vec::new();
    for d in like {
        let n = flatten(std::slice::from_ref(d)).len();
        let (own, later) = rest.split_at_checked(n).context("internal: too few carried tensors")?;
        out.push(match d {
            Datum::Memory(m) => Datum::Memory(unpack(own, m.slot)?),
            _ => Datum::Value(Value::new(own[0].shallow_clone(), Lead::BATCH)),
        });
        rest = later;
    }
    Ok(out)
}

/// `yes` where the mask `[batch]` holds, else `no`.
fn choose(mask: &Tensor, yes: &Datum, no: &Datum) -> Result<Datum> {
    let pick = |y: &Tensor, n: &Tensor| -> Result<Tensor> {
        // A memory has samples times heads in front.
        let repeats = n.size()[0] / mask.size()[0];
        let m = if repeats > 1 { mask.f_repeat_interleave_self_int(repeats, 0, None)? } else { mask.shallow_clone() };
        let mut shape = m.size();
        shape.resize(n.dim(), 1);
        Ok(y.f_where_self(&m.f_reshape(shape)?, n)?)
    };
    Ok(match (yes, no) {
        (Datum::Value(y), Datum::Value(n)) => Datum::Value(Value::new(pick(&y.tensor, &n.tensor)?, n.lead)),
        (Datum::Memory(y), Datum::Memory(n)) => Datum::Memory(Memory {
            slot: n.slot,
            states: y.states.iter().zip(&n.states).map(|(a, b)| pick(a, b)).collect::<Result<_>>()?,
            index: pick(&y.index, &n.index)?,
        }),
        _ => bail!("internal: states of different kinds"),
    })
}

impl Surroundings for InNet<'_> {
    fn precision(&self) -> Precision {
        self.model.precision
    }

    fn parameter(&self, path: &str, _: &Parameter) -> Result<Value> {
        Ok(Value::new(self.value_of(path)?, Lead::NONE))
    }

    fn special(&self, at: &Place<'_>, op: &Op, operands: &[&Datum]) -> Result<Datum> {
        let length = |i: usize| -> Result<i64> { Ok(operands[i].value()?.tensor.size()[1]) };
        match op {
            Op::Shift { steps } => self.remembering(at, length(0)?, |a| time::shift(operands[0].value()?, *steps, a)),
            Op::CausalConv => {
                self.remembering(at, length(0)?, |a| time::causal_conv(operands[0].value()?, operands[1].value()?, at.silu, a))
            }
            Op::Position => self.remembering(at, length(0)?, |a| time::position(&operands[0].value()?.tensor, a)),
            Op::TimeCumsum => self.remembering(at, length(0)?, |a| time::cumsum(operands[0].value()?, a)),
            Op::Attention { scale, causal, window } => {
                let (q, k, v) = (operands[0].value()?, operands[1].value()?, operands[2].value()?);
                let part = operands.get(3).map(|p| p.value()).transpose()?;
                let one_axis = at.axis_of(0) == at.axis_of(1);
                let how = Attention { scale: *scale, causal: *causal, window: *window, one_axis, carry: self.pass.carry };
                self.remembering(at, length(0)?, |a| time::attention([q, k, v], part, how, a))
            }
            Op::Last => {
                let v = operands[0].value()?;
                Ok(Datum::Value(Value::new(v.tensor.f_select(1, v.tensor.size()[1] - 1)?, Lead::BATCH)))
            }
            Op::MeanOver => {
                let v = operands[0].value()?;
                Ok(Datum::Value(Value::new(v.tensor.f_mean_dim(1, false, None)?, Lead::BATCH)))
            }
            Op::Along => {
                let (v, like) = (operands[0].value()?, operands[1].value()?);
                let shape: Vec<i64> = like.lead_shape().into_iter().chain(v.shape()).collect();
                Ok(Datum::Value(Value::new(expanded(v.aligned(Lead::AXIS, v.rank())?, &shape)?, Lead::AXIS)))
            }
            Op::Dropout { p } => {
                let v = operands[0].value()?;
                Ok(Datum::Value(Value::new(v.tensor.f_dropout(*p, self.pass.train)?, v.lead)))
            }
            Op::Scan { function, name, states } => self.scan(at, *function as usize, name, *states, operands),
            Op::FastWeights { .. } | Op::MemoryInit { .. } | Op::FastWrite { .. } | Op::FastRead { .. } => {
                self.fast_weights(at, op, operands)
            }
            other => bail!("internal: `{}` is not for a slow net", other.name()),
        }
    }
}
