//! One rule, with its feature map, on tensors from a file: the cross-check against any other framework.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use fwp_program::{ModelPrograms, ParameterSpec, SlotPrograms, Source};
use fwp_sdk::program::{
    Argument, Function, Kind as PartKind, Node, Op, Output, Program, ReadAt, SlotInterface, Span, TensorType, entry,
};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::exec::choose::{Executors, Policy};
use crate::exec::evaluate::Table;
use crate::exec::ops::sizes;
use crate::exec::prepared::Slot;
use crate::exec::scan::{FastWeights, Masks, per_sample};
use crate::exec::value::{Lead, Memory, Precision, Value};
use crate::model::{init, with_maps_inside};
use crate::shim;
use crate::train::tensors::{HostTensor, from_safetensors, to_safetensors};

/// What `fwp-host apply` asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The rule's program.
    pub rule: PathBuf,
    /// The feature map's program; none is the identity.
    pub map: Option<PathBuf>,
    /// `float32` or `float64`.
    pub dtype: String,
    /// Whether gradients are asked for.
    pub grad: bool,
    /// `raw` or `effective`.
    pub signals: String,
    /// The safetensors file to read.
    pub input: PathBuf,
    /// The safetensors file to write.
    pub output: PathBuf,
    /// `auto`, `cpu` or `cuda`.
    pub device: String,
    /// `auto` or the name of an executor.
    #[serde(default = "auto")]
    pub exec: String,
    /// The layer that the rule is in, from 0.
    #[serde(default)]
    pub layer: usize,
}

fn auto() -> String {
    "auto".into()
}

/// Reads the input file and applies the rule; the bytes of the output file.
pub fn run(job: &Job) -> Result<Vec<u8>> {
    let precision = Precision { kind: kind(&job.dtype)?, device: super::train::device(&job.device)? };
    let bytes = std::fs::read(&job.input).with_context(|| format!("reading {}", job.input.display()))?;
    let file = from_safetensors(&bytes).with_context(|| format!("reading {}", job.input.display()))?;
    let mut rule = program(&job.rule)?;
    if job.signals == "effective" {
        rule = fwp_program::with_effective(&rule);
    }
    let map = match &job.map {
        Some(path) => program(path)?,
        None => identity(rule.inputs.iter().find(|i| i.mapped()).map_or(1, |i| i.shape.last().copied().unwrap_or(1))),
    };
    let executors = Arc::new(Executors::new(job.exec.parse::<Policy>().map_err(anyhow::Error::msg)?));
    let outputs = apply_in_layer(job.layer, &rule, &map, &file, precision, job.grad, &executors)?;
    executors.take_notices().iter().for_each(|line| eprintln!("{line}"));
    let host: Result<Vec<HostTensor>, _> = outputs.iter().map(|(n, t)| HostTensor::copy(n, t)).collect();
    let metadata = BTreeMap::from([("rule".to_string(), rule.name.clone()), ("feature_map".to_string(), map.name.clone())]);
    Ok(to_safetensors(&host?, metadata)?)
}

/// [`apply_in_layer`] 0.
pub fn apply(
    rule: &Program,
    map: &Program,
    file: &BTreeMap<String, Tensor>,
    precision: Precision,
    grad: bool,
    executors: &Arc<Executors>,
) -> Result<BTreeMap<String, Tensor>> {
    apply_in_layer(0, rule, map, file, precision, grad, executors)
}

/// Applies a rule, as it is in that layer, to named tensors `[batch, time, heads, ...]`.
///
/// Gives `o`, `extra.NAME`, the final `state.NAME` and, where asked, `grad.*` of every tensor that was read.
pub fn apply_in_layer(
    layer: usize,
    rule: &Program,
    map: &Program,
    file: &BTreeMap<String, Tensor>,
    precision: Precision,
    grad: bool,
    executors: &Arc<Executors>,
) -> Result<BTreeMap<String, Tensor>> {
    // Detached: a tensor that needs no conversion would otherwise be the caller's own.
    let float = |t: &Tensor| -> Result<Tensor> {
        Ok(t.f_to_kind(precision.kind)?.f_to_device(precision.device)?.f_detach()?.f_set_requires_grad(grad)?)
    };
    let mut leaves: Vec<(String, Tensor)> = Vec::new();
    let mut leaf = |name: &str, t: &Tensor| -> Result<Tensor> {
        let t = float(t)?;
        leaves.push((name.to_string(), t.shallow_clone()));
        Ok(t)
    };

    // Sizes: batch and time from any input, heads from one that every head has its own of.
    let (mut batch, mut steps, mut heads) = (0, 0, 0);
    for input in &rule.inputs {
        let t = file.get(&input.name).with_context(|| missing(&input.name, rule))?;
        let size = t.size();
        ensure!(
            size.len() == 3 + input.full_shape().len(),
            "`{}` is {size:?}; expected [batch, time, heads{}]",
            input.name,
            shown(&input.full_shape())
        );
        (batch, steps) = (size[0], size[1]);
        heads = heads.max(size[2]);
    }
    known(rule, file)?;
    ensure!(
        batch > 0 && steps > 0 && heads > 0,
        "there is nothing to apply the rule to: batch {batch}, time {steps}, heads {heads}"
    );

    let programs = alone(rule, map, heads as usize);
    let slot = Arc::new(Slot::new(&programs.slots[0])?);
    let mut table = Table::default();
    let specs = with_maps_inside(&programs)?.parameters()?;
    for name in file.keys().filter_map(|n| n.strip_prefix("param.")) {
        let paths: Vec<String> = specs.iter().map(parameter_name).collect();
        ensure!(
            paths.iter().any(|p| p == name),
            "`param.{name}` names a parameter that update rule `{}` and feature map `{}` do not have; they have: {}",
            rule.name,
            map.name,
            if paths.is_empty() { "none".to_string() } else { paths.join(", ") }
        );
    }
    for spec in specs {
        let name = format!("param.{}", parameter_name(&spec));
        let t = match file.get(&name) {
            Some(t) => {
                ensure!(t.size() == sizes(&spec.shape), "`{name}` is {:?}; expected {:?}", t.size(), spec.shape);
                leaf(&name, t)?
            }
            None => initial(&slot, &ParameterSpec { layer, ..spec.clone() }, precision)?,
        };
        table.0.insert(spec.path.clone(), per_sample(&t, spec.scope, batch)?);
    }
    let weights = FastWeights {
        slot: slot.clone(),
        index: 0,
        parameters: table,
        prefix: String::new(),
        precision,
        memory_limit: u64::MAX,
        executors: executors.clone(),
    };

    let mut memory = weights.initial(batch * heads)?;
    for (i, state) in rule.states.iter().enumerate() {
        if let Some(t) = file.get(&format!("state.{}", state.name)) {
            let wanted: Vec<i64> = [batch, heads].into_iter().chain(sizes(&state.shape)).collect();
            ensure!(t.size() == wanted, "`state.{}` is {:?}; expected {wanted:?}", state.name, t.size());
            let flat: Vec<i64> = std::iter::once(-1).chain(sizes(&state.shape)).collect();
            memory.states[i] = leaf(&format!("state.{}", state.name), t)?.f_reshape(flat)?;
        }
    }
    let mask = |name: &str| -> Result<Option<Tensor>> {
        let Some(t) = file.get(name) else { return Ok(None) };
        ensure!(t.size() == [batch, steps], "`{name}` is {:?}; expected [{batch}, {steps}]", t.size());
        let t = t.f_to_kind(Kind::Bool)?.f_to_device(precision.device)?.f_transpose(0, 1)?;
        Ok(Some(t.f_repeat_interleave_self_int(heads, 1, None)?))
    };
    let masks = Masks { reset: mask("reset")?, write: mask("write")?, ..Masks::default() };

    let mut inputs = Vec::new();
    for input in &rule.inputs {
        let t = leaf(&input.name, &file[&input.name])?;
        let mut own = sizes(&input.full_shape());
        if input.mapped()
            && let Some(last) = own.last_mut()
        {
            *last = map_dim(map)?;
        }
        let size = t.size();
        ensure!(
            size[..2] == [batch, steps] && size[3..] == own[..] && size[2] > 0 && heads % size[2] == 0,
            "`{}` is {size:?}; expected [{batch}, {steps}, {heads}{}], where the heads may be fewer by a whole factor",
            input.name,
            own.iter().map(|n| format!(", {n}")).collect::<String>()
        );
        let repeated = if size[2] < heads { t.f_repeat_interleave_self_int(heads / size[2], 2, None)? } else { t };
        let order: Vec<i64> = [1, 0].into_iter().chain(2..repeated.dim() as i64).collect();
        let flat: Vec<i64> = [steps, batch * heads].into_iter().chain(own).collect();
        let x = Value::new(repeated.f_permute(order)?.f_reshape(flat)?, Lead::STEPS);
        inputs.push((input.name.clone(), x));
    }

    let (parts, memory) = weights.scan(&inputs, None, memory, &masks, ReadAt::After)?;
    let mut outputs: Vec<(String, Tensor)> = Vec::new();
    let names = slot.step.function.outputs.iter().filter(|o| !o.name.starts_with("state."));
    for (name, part) in names.zip(&parts) {
        let rest = part.shape();
        let split: Vec<i64> = [steps, batch, heads].into_iter().chain(rest).collect();
        let t = part.tensor.f_reshape(split)?;
        let order: Vec<i64> = [1, 0].into_iter().chain(2..t.dim() as i64).collect();
        let name = if name.name == "output" { "o".to_string() } else { name.name.clone() };
        outputs.push((name, t.f_permute(order)?.f_contiguous()?));
    }
    outputs.extend(final_states(rule, &memory, batch, heads)?);

    let mut result: BTreeMap<String, Tensor> = outputs.iter().map(|(n, t)| (n.clone(), t.detach())).collect();
    if grad {
        let mut roots = Vec::new();
        for (name, t) in &outputs {
            let Some(g) = file.get(&format!("grad.{name}")) else { continue };
            ensure!(g.size() == t.size(), "`grad.{name}` is {:?}; expected {:?}", g.size(), t.size());
            if t.requires_grad() {
                roots.push((t, g.f_to_kind(precision.kind)?.f_to_device(precision.device)?));
            }
        }
        ensure!(!roots.is_empty(), "gradients need `grad.o` in the input file (or `grad.state.NAME`)");
        let tensors: Vec<&Tensor> = roots.iter().map(|(t, _)| *t).collect();
        let weights: Vec<Option<&Tensor>> = roots.iter().map(|(_, g)| Some(g)).collect();
        let wrt: Vec<&Tensor> = leaves.iter().map(|(_, t)| t).collect();
        let gradients = shim::gradients(&tensors, &weights, &wrt, false, false)?;
        for ((name, t), g) in leaves.iter().zip(gradients) {
            let g = match g {
                Some(g) => g,
                None => t.f_zeros_like()?,
            };
            result.insert(format!("grad.{name}"), g.f_contiguous()?);
        }
    }
    Ok(result)
}

/// Name of a parameter in the file: as the rule says it, or the map behind `feature_map.`, whoever shares it.
fn parameter_name(spec: &ParameterSpec) -> String {
    match (spec.path.strip_prefix("shared.main."), &spec.source) {
        (Some(name), Source::Map(_)) => format!("feature_map.{name}"),
        (Some(name), _) => name.to_string(),
        (None, _) => spec.path.clone(),
    }
}

/// Refuses states and parameters that the rule does not have: a misspelt name would otherwise be left out in silence.
fn known(rule: &Program, file: &BTreeMap<String, Tensor>) -> Result<()> {
    for name in file.keys() {
        let Some(state) = name.strip_prefix("grad.").unwrap_or(name).strip_prefix("state.") else { continue };
        let states: Vec<&str> = rule.states.iter().map(|s| s.name.as_str()).collect();
        ensure!(
            states.contains(&state),
            "`{name}` names a state that update rule `{}` does not have; its states are: {}",
            rule.name,
            states.join(", ")
        );
    }
    Ok(())
}

fn final_states(rule: &Program, memory: &Memory, batch: i64, heads: i64) -> Result<Vec<(String, Tensor)>> {
    rule.states
        .iter()
        .zip(&memory.states)
        .map(|(s, t)| {
            let split: Vec<i64> = [batch, heads].into_iter().chain(sizes(&s.shape)).collect();
            Ok((format!("state.{}", s.name), t.f_reshape(split)?.f_contiguous()?))
        })
        .collect()
}

fn initial(slot: &Slot, spec: &ParameterSpec, precision: Precision) -> Result<Tensor> {
    let prepared = if matches!(spec.source, Source::Map(_)) { &slot.map } else { &slot.rule };
    init::draw(prepared, spec, precision, 0, 0)
}

pub(crate) fn kind(dtype: &str) -> Result<Kind> {
    match dtype {
        "float32" => Ok(Kind::Float),
        "float64" => Ok(Kind::Double),
        other => bail!("the precision is float32 or float64, not `{other}`"),
    }
}

pub(crate) fn program(path: &std::path::Path) -> Result<Program> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Program::from_bytes(&bytes).with_context(|| format!("reading {}", path.display()))
}

fn missing(name: &str, rule: &Program) -> String {
    let names: Vec<&str> = rule.inputs.iter().map(|i| i.name.as_str()).collect();
    format!("the input file lacks `{name}`; update rule `{}` reads {}", rule.name, names.join(", "))
}

fn shown(shape: &[usize]) -> String {
    shape.iter().map(|n| format!(", {n}")).collect()
}

fn map_dim(map: &Program) -> Result<i64> {
    let f = map.entry(entry::KEY).context("the feature map has no function for keys")?;
    match f.arguments.first().map(|a| &a.ty) {
        Some(fwp_sdk::program::Type::Tensor(t)) if t.shape.len() == 1 => Ok(t.shape[0] as i64),
        _ => bail!("the feature map does not take a vector"),
    }
}

/// A model that holds nothing but one memory of the rule, whose parameters therefore have no prefix.
pub(crate) fn alone(rule: &Program, map: &Program, heads: usize) -> ModelPrograms {
    let forward = Function {
        name: entry::FORWARD.into(),
        nodes: vec![Node {
            op: Op::MemoryInit { slot: "main".into(), name: String::new() },
            operands: vec![],
            span: Span::default(),
        }],
        outputs: vec![Output { name: "memory".into(), node: 0 }],
        ..Function::default()
    };
    let interface = SlotInterface {
        name: "main".into(),
        rule: rule.name.clone(),
        heads,
        key_raw: 0,
        key: 0,
        value: 0,
        inputs: rule.inputs.clone(),
        output: vec![],
        extras: vec![],
    };
    let net = Program {
        kind: PartKind::SlowNet,
        functions: vec![forward],
        entries: vec![(entry::FORWARD.into(), 0)],
        slots: vec![interface],
        ..identity(1)
    };
    ModelPrograms { net, slots: vec![SlotPrograms { name: "main".into(), layers: None, map: map.clone(), rule: rule.clone() }] }
}

/// The feature map that changes nothing.
pub(crate) fn identity(dim: usize) -> Program {
    let function = Function {
        name: "map".into(),
        arguments: vec![Argument { name: "x".into(), ty: TensorType::float(&[dim]).into() }],
        nodes: vec![Node { op: Op::Argument { index: 0 }, operands: vec![], span: Span::default() }],
        outputs: vec![Output { name: "y".into(), node: 0 }],
        ..Function::default()
    };
    Program {
        kind: PartKind::FeatureMap,
        name: "identity".into(),
        config: "{}".into(),
        doc: String::new(),
        citation: String::new(),
        objective: String::new(),
        inputs: vec![],
        states: vec![],
        slots: vec![],
        functions: vec![function],
        entries: vec![(entry::KEY.into(), 0), (entry::QUERY.into(), 0)],
        files: vec![],
    }
}
