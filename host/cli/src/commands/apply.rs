//! `fwp-host apply`

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use fwp_sdk::Ask;
use fwp_sdk::build::Dims;
use fwp_sdk::program::{Kind, Program};
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use super::PluginOptions;
use super::plugins::{reference, setting};
use crate::compose::{cannot_describe, checked, interface};
use crate::engine::{self, Engine};
use crate::failure::{self, Code, Failure};
use crate::plugins::wire::Question;
use crate::plugins::{Asker, Chosen, Refusal};

/// Runs one update rule (and feature map) on tensors from a safetensors file, optionally with gradients.
///
/// The cross-check against any other framework. The input holds the rule's inputs by their names, such as q, k, v and its signals:
/// [batch, time, heads, dim], a scalar signal [batch, time, heads], several keys a token [batch, time, heads, n, dim]; optionally
/// state.NAME [batch, heads, ...], param.NAME and param.feature_map.NAME ([heads, ...] where every head has its own). The output gets
/// o, extra.NAME, the final state.NAME and, with --grad, grad.NAME of every tensor that was read, from grad.o (and optional
/// grad.extra.NAME and grad.state.NAME) in the input. Without a feature map: identity, no normalisation, no scale.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fwp-host apply --rule delta --input in.safetensors --output out.safetensors
  fwp-host apply --rule delta --feature-map dpfp --set feature_map.nu=3 --grad \\
      --dtype float64 --signals effective --input in.safetensors --output out.safetensors")]
pub struct Apply {
    /// The update rule: a name, or the path of a library (PATH#NAME where it has several).
    #[arg(long, value_name = "NAME|PATH")]
    rule: String,
    /// The feature map of keys and queries: a name, or the path of a library.
    #[arg(long, value_name = "NAME|PATH")]
    feature_map: Option<String>,
    /// Sets a key of the rule's configuration, or of the map's with `feature_map.` in front; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The type to compute in.
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    dtype: Dtype,
    /// Computes the gradients of every input from grad.o.
    #[arg(long)]
    grad: bool,
    /// How signals are given: raw, as a slow net emits them, or effective, after their activation, as other frameworks hold them.
    #[arg(long, value_enum, default_value_t = Signals::Raw)]
    signals: Signals,
    /// The safetensors file to read.
    #[arg(long, value_name = "IN")]
    input: PathBuf,
    /// The safetensors file to write.
    #[arg(long, value_name = "OUT")]
    output: PathBuf,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", value_parser = super::device, default_value = "auto")]
    device: String,
    /// What carries out the rule: auto, reference, chunkwise or scan.
    #[arg(long, value_name = "EXECUTOR", value_parser = super::EXECUTORS, default_value = "auto")]
    exec: String,
    /// Size of a key before the feature map, where the input holds no tensor k or q.
    #[arg(long, value_name = "N")]
    key_dim: Option<usize>,
    /// Size of a value, where the input holds no tensor v.
    #[arg(long, value_name = "N")]
    value_dim: Option<usize>,
    /// Number of layers of the model that the rule stands in, for rules that differ from layer to layer.
    #[arg(long, value_name = "N", default_value_t = 1)]
    layers: usize,
    /// The layer of these that the rule stands in, from 0.
    #[arg(long, value_name = "I", default_value_t = 0)]
    layer: usize,
    /// Longest sequence that the rule is to serve, for rules whose size depends on it; the time of the input where it is not given.
    #[arg(long, value_name = "N")]
    max_len: Option<usize>,
    #[command(flatten)]
    pub plugins: PluginOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    Float32,
    Float64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Signals {
    Raw,
    Effective,
}

/// Names and shapes of the tensors of a file.
type Shapes = Vec<(String, Vec<usize>)>;

impl Apply {
    /// Does it.
    pub async fn run(self) -> Result<u8, Failure> {
        let engine = Engine::find()?;
        let shapes = shapes(&self.input)?;
        let (mut rule_config, mut map_config) = (Map::new(), Map::new());
        for text in &self.set {
            let (key, value) = setting(text)?;
            match key.strip_prefix("feature_map.") {
                Some(key) => map_config.insert(key.into(), value),
                None => rule_config.insert(key.strip_prefix("update_rule.").unwrap_or(&key).into(), value),
            };
        }
        let usage = |cause: String, remedy: &str| Failure::new(Code::Usage, "the command line is wrong", cause, remedy);
        if self.layer >= self.layers {
            let cause = format!("--layer {} is none of {} layers, which count from 0", self.layer, self.layers);
            return Err(usage(cause, "say with --layers N how many layers there are"));
        }
        if self.max_len == Some(0) {
            return Err(usage("--max-len is 0".into(), "give a number of steps from 1"));
        }
        if self.feature_map.is_none() && !map_config.is_empty() {
            let cause = "--set feature_map.… configures a feature map and none is named";
            return Err(usage(cause.into(), "name one with --feature-map NAME"));
        }
        let asker = self.plugins.asker();
        let mut catalogue = self.plugins.catalogue(&asker, None).await?;
        let rule = catalogue.choose(&asker, Kind::UpdateRule, &reference(&self.rule)).await?;
        let map = match &self.feature_map {
            Some(name) => Some(catalogue.choose(&asker, Kind::FeatureMap, &reference(name)).await?),
            None => None,
        };

        let mut dims = self.dims(&shapes)?;
        if let Some(map) = &map {
            let bytes = ask(&asker, map, &map_config, Ask::Features { dim: dims.key_raw }).await?;
            dims.key = serde_json::from_slice(&bytes)
                .map_err(|e| cannot_describe(&map.title(), Refusal::new(e.to_string(), "correct the plugin")))?;
        }
        let rule_bytes = ask(&asker, &rule, &rule_config, Ask::Rule { dims }).await?;
        let mut notices = Vec::new();
        let program = checked(Kind::UpdateRule, &rule, &rule_bytes, &mut notices)?;
        fits(&shapes, dims, &program, &self.input)?;
        let map_bytes = match &map {
            Some(map) => {
                let bytes = ask(&asker, map, &map_config, Ask::Map { dim: dims.key_raw }).await?;
                checked(Kind::FeatureMap, map, &bytes, &mut notices)?;
                Some(bytes)
            }
            None => None,
        };
        let unused = unused(&shapes, &program);
        if !unused.is_empty() {
            notices.push(format!("{} also holds {}, which the rule does not take", self.input.display(), unused.join(", ")));
        }
        for notice in &notices {
            crate::output::say(&format!("note: {}", failure::literal(notice)));
        }
        self.start(&engine, &rule_bytes, map_bytes.as_deref()).await
    }

    /// Writes programs and job where the engine finds them, and starts it.
    async fn start(&self, engine: &Engine, rule: &[u8], map: Option<&[u8]>) -> Result<u8, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("fwp-apply-")
            .tempdir()
            .map_err(|e| failure::io("write", &std::env::temp_dir(), &e))?;
        let write = |name: &str, bytes: &[u8]| -> Result<PathBuf, Failure> {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).map_err(|e| failure::io("write", &path, &e))?;
            Ok(path)
        };
        let rule = write("update-rule.fwp", rule)?;
        let map = map.map(|bytes| write("feature-map.fwp", bytes)).transpose()?;
        let job = json!({
            "rule": utf8(&rule)?,
            "map": map.as_deref().map(utf8).transpose()?,
            "dtype": self.dtype.to_possible_value().map(|v| v.get_name().to_string()),
            "grad": self.grad,
            "signals": self.signals.to_possible_value().map(|v| v.get_name().to_string()),
            "input": utf8(&absolute(&self.input))?,
            "output": utf8(&absolute(&self.output))?,
            "device": self.device,
            "exec": self.exec,
            "layer": self.layer,
        });
        let job = write("apply.json", job.to_string().as_bytes())?;
        let arguments = engine::arguments(&[&"apply", &"--job", &job]);
        if self.plugins.verbose {
            engine::announce(engine, &arguments);
        }
        engine.run(&arguments).await
    }

    /// The sizes that the rule is described for, from the shapes of the input.
    fn dims(&self, shapes: &Shapes) -> Result<Dims, Failure> {
        let refuse = |cause: String, remedy: &str| {
            Failure::new(Code::Input, format!("{} does not fit", self.input.display()), cause, remedy)
        };
        let last = |names: &[&str]| {
            let found = shapes.iter().find(|(n, s)| names.contains(&n.as_str()) && s.len() >= 4);
            found.and_then(|(_, s)| s.last().copied())
        };
        // Groups of heads may share an input, so the largest number is that of all heads.
        let inputs = shapes.iter().filter(|(n, s)| !n.contains('.') && s.len() >= 3);
        let states = shapes.iter().filter(|(n, s)| n.starts_with("state.") && s.len() >= 2);
        let time = inputs.clone().map(|(_, s)| s[1]).max().unwrap_or(0).max(1);
        let heads = inputs.map(|(_, s)| s[2]).chain(states.map(|(_, s)| s[1])).max();
        let Some(heads) = heads.filter(|h| *h > 0) else {
            return Err(refuse(
                "it holds no tensor [batch, time, heads, ...]".into(),
                "store the rule's inputs by their names: q, k, v ...",
            ));
        };
        let key = last(&["k", "q"]).or(self.key_dim);
        let value = last(&["v"]).or(self.value_dim);
        match (key, value) {
            (Some(key), Some(value)) if key > 0 && value > 0 => {
                let max_len = self.max_len.unwrap_or(time);
                Ok(Dims { heads, key_raw: key, key, value, layers: self.layers, max_len })
            }
            (None, _) => Err(refuse(
                "it holds no tensor k or q of four axes, so the size of a key is unknown".into(),
                "say it with --key-dim N",
            )),
            (_, None) => Err(refuse(
                "it holds no tensor v of four axes, so the size of a value is unknown".into(),
                "say it with --value-dim N",
            )),
            _ => Err(refuse("a key or value has no elements".into(), "give tensors that are not empty")),
        }
    }
}

async fn ask(asker: &Asker, part: &Chosen, config: &Map<String, Value>, ask: Ask) -> Result<Vec<u8>, Failure> {
    let mut job = part.job(config, ask);
    let question = job.questions.pop().unwrap_or(Question::List);
    let answer = asker.one(&part.library, question).await?;
    answer.map_err(|r| cannot_describe(&part.title(), r))
}

/// Refuses an input that lacks a tensor of the rule or has it in another shape, before libtorch is loaded for nothing.
fn fits(shapes: &Shapes, dims: Dims, rule: &Program, input: &Path) -> Result<(), Failure> {
    let refuse = |cause: String, remedy: String| {
        Err(Failure::new(Code::Input, format!("{} does not fit the rule", input.display()), cause, remedy))
    };
    let interface = interface("main", dims, rule)
        .map_err(|e| Failure::new(Code::Plugin, "the rule cannot be used", e, "correct the plugin"))?;
    let mut common: Option<(&str, &[usize])> = None;
    for declared in &rule.inputs {
        let wanted = interface.given_shape(declared);
        let form = |batch: &str| {
            let sizes: Vec<String> = wanted.iter().map(usize::to_string).collect();
            format!("[{batch}, {}]", sizes.join(", "))
        };
        let Some((name, found)) = shapes.iter().find(|(n, _)| *n == declared.name) else {
            let names: Vec<&str> = shapes.iter().map(|(n, _)| n.as_str()).collect();
            return refuse(
                format!("it holds no tensor `{}`; it holds {}", declared.name, names.join(", ")),
                format!("store it as {}", form("batch, time")),
            );
        };
        if found.len() != wanted.len() + 2 || found[2..] != wanted[..] {
            return refuse(
                format!("tensor `{name}` is {found:?}, the rule takes {}", form("batch, time")),
                "change the tensor, or the rule's configuration with --set".into(),
            );
        }
        match common {
            None => common = Some((name, &found[..2])),
            Some((other, sizes)) if sizes != &found[..2] => {
                return refuse(
                    format!("tensors `{other}` and `{name}` differ in batch or time: {sizes:?} and {:?}", &found[..2]),
                    "give all inputs the same batch and time".into(),
                );
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Tensors of the file that are no input of the rule; states, parameters and gradients are the engine's to judge.
fn unused<'a>(shapes: &'a Shapes, rule: &Program) -> Vec<&'a str> {
    let known = |name: &str| {
        let judged = ["state.", "param.", "grad."].iter().any(|p| name.starts_with(p));
        judged || rule.inputs.iter().any(|i| i.name == name)
    };
    shapes.iter().map(|(name, _)| name.as_str()).filter(|name| !known(name)).collect()
}

/// Longest header that is read; the format's own reader has the same limit.
const MAX_HEADER: u64 = 100_000_000;

/// Names and shapes from the header of a safetensors file; the data is the engine's.
fn shapes(path: &Path) -> Result<Shapes, Failure> {
    let refuse =
        |cause: String| Failure::new(Code::Input, format!("{} cannot be read", path.display()), cause, "give a safetensors file");
    let found = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?;
    if !found.is_file() {
        return Err(refuse("it is not a regular file".into()));
    }
    let mut file = File::open(path).map_err(|e| refuse(e.to_string()))?;
    let mut bytes = vec![0; 8];
    file.read_exact(&mut bytes).map_err(|_| refuse("it is shorter than any safetensors file".into()))?;
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    if length > MAX_HEADER || length > found.len() {
        return Err(refuse(format!("its header of {length} bytes does not fit into its {} bytes", found.len())));
    }
    bytes.clear();
    file.take(length).read_to_end(&mut bytes).map_err(|e| refuse(e.to_string()))?;
    // Reading it checks offsets and sizes, all but that the data is there.
    let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("its header is wrong: {e}")))?;
    let needed = (metadata.data_len() as u64).saturating_add(length + 8);
    if needed != found.len() {
        return Err(refuse(format!("its header speaks of {needed} bytes, there are {}", found.len())));
    }
    let mut shapes: Shapes = metadata.tensors().into_iter().map(|(name, info)| (name, info.shape.clone())).collect();
    shapes.sort();
    Ok(shapes)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

fn utf8(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| {
        Failure::new(Code::Usage, format!("{} cannot be used", path.display()), "the path is not UTF-8", "rename it")
    })
}
