//! The sections of a recipe and their keys, as data.
//!
//! The tables here check recipes and print the list of keys, so documentation and behaviour are the
//! same thing.

use std::fmt::Write;

use fwp_task::schema::{Default, KeyInfo, Kind};

/// The largest recipe file, in bytes.
pub const MAX_BYTES: u64 = 1_000_000;
/// How deep tables and lists may be nested.
pub const MAX_DEPTH: usize = 16;
/// How many values a recipe may have.
pub const MAX_VALUES: usize = 10_000;

/// A section of a recipe.
#[derive(Clone, Copy, Debug)]
pub struct SectionInfo {
    /// Its name; empty for the keys above the first section.
    pub name: &'static str,
    /// One line on what it says.
    pub doc: &'static str,
    /// Its keys. For the sections of plugins these are the ones that the host itself reads; all
    /// others belong to the plugin.
    pub keys: &'static [KeyInfo],
    /// Whether further keys are left to a plugin.
    pub open: bool,
}

/// A count that may be zero.
const COUNT: Kind = Kind::Integer { min: 0, max: 1_000_000_000_000 };
/// A count of at least one.
const POSITIVE: Kind = Kind::Integer { min: 1, max: 1_000_000_000_000 };
const BATCH: Kind = Kind::Integer { min: 1, max: 1_048_576 };
const NOT_NEGATIVE: Kind = Kind::Float { min: 0.0, max: f64::INFINITY, min_included: true, max_included: false };
const ABOVE_ZERO: Kind = Kind::Float { min: 0.0, max: f64::INFINITY, min_included: false, max_included: false };
const FRACTION: Kind = Kind::Float { min: 0.0, max: 1.0, min_included: true, max_included: true };
const FINITE: Kind = Kind::Float { min: f64::NEG_INFINITY, max: f64::INFINITY, min_included: false, max_included: false };

const fn key(name: &'static str, kind: Kind, default: Default, doc: &'static str) -> KeyInfo {
    KeyInfo { name, kind, default, doc }
}

const PLUGIN: KeyInfo =
    key("plugin", Kind::Text, Default::Required, "the name of the part; a library's path only on the command line");

const TOP: SectionInfo = SectionInfo {
    name: "",
    doc: "what this is, for people",
    open: false,
    keys: &[
        key("title", Kind::Text, Default::Absent("none"), "one line: model and task"),
        key("cite", Kind::Text, Default::Absent("none"), "paper, year, section"),
        key("notes", Kind::Text, Default::Absent("none"), "anything else worth knowing"),
    ],
};

const SLOW_NET: SectionInfo =
    SectionInfo { name: "slow_net", doc: "the net that is trained by gradient descent", open: true, keys: &[PLUGIN] };

const FEATURE_MAP: SectionInfo = SectionInfo {
    name: "feature_map",
    doc: "the map of keys and queries; several as [feature_map.NAME]",
    open: true,
    keys: &[key(
        "plugin",
        Kind::Text,
        Default::Text("identity"),
        "the name of the part; a library's path only on the command line",
    )],
};

const UPDATE_RULE: SectionInfo = SectionInfo {
    name: "update_rule",
    doc: "how the fast weights are rewritten; several as [update_rule.NAME]",
    open: true,
    keys: &[
        PLUGIN,
        key(
            "feature_map",
            Kind::Text,
            Default::Derived("the map of the rule's own name, else `main`"),
            "the name of the feature map that goes with the rule",
        ),
        key(
            "layers",
            Kind::Text,
            Default::Derived("all layers that no other rule names"),
            "the layers that use the rule: an ascending list of numbers from 0",
        ),
    ],
};

pub(crate) const TRAIN: SectionInfo = SectionInfo {
    name: "train",
    doc: "how the slow net is trained",
    open: false,
    keys: &[
        key("steps", POSITIVE, Default::Required, "how many optimiser steps (also --steps N)"),
        key("batch_size", BATCH, Default::Integer(32), "sequences in a micro-batch"),
        key("accumulate", BATCH, Default::Integer(1), "micro-batches in a step, their gradients averaged"),
        key("seed", Kind::Integer { min: 0, max: i64::MAX }, Default::Integer(1), "decides parameters, data and dropout"),
        key(
            "optimiser.name",
            Kind::Choice(&["adam", "adamw"]),
            Default::Text("adam"),
            "adam adds weight decay to the gradient, adamw applies it to the parameter",
        ),
        key("optimiser.lr", ABOVE_ZERO, Default::Float(1e-3), "the peak learning rate"),
        key(
            "optimiser.betas",
            Kind::Floats { len: 2, min: 0.0, max: 1.0 },
            Default::Pair([0.9, 0.999]),
            "decay of the first and second moment",
        ),
        key("optimiser.eps", ABOVE_ZERO, Default::Float(1e-8), "added to the root of the second moment"),
        key(
            "optimiser.weight_decay",
            NOT_NEGATIVE,
            Default::Float(0.0),
            "strength of the decay; excluded parameters stay without",
        ),
        key(
            "schedule.name",
            Kind::Choice(&["constant", "linear", "cosine", "wsd", "inverse-sqrt"]),
            Default::Text("constant"),
            "the learning rate over the steps, after the warm-up",
        ),
        key("schedule.warmup", COUNT, Default::Integer(0), "steps of linear warm-up"),
        key("schedule.min_ratio", FRACTION, Default::Float(0.0), "last learning rate / peak, for linear, cosine and wsd"),
        key("schedule.decay_fraction", FRACTION, Default::Float(0.1), "part of the steps, at the end, in which wsd decays"),
        key("clip", NOT_NEGATIVE, Default::Float(0.0), "largest global norm of the gradient; 0 clips nothing"),
        key(
            "carry",
            Kind::Choice(&["none", "detached"]),
            Default::Text("none"),
            "whether fast weights pass from a step to the next, without gradient",
        ),
        key(
            "on_nonfinite",
            Kind::Choice(&["stop", "skip"]),
            Default::Text("stop"),
            "what a loss or gradient that is not finite does: end the run, or leave out the step",
        ),
        key("max_consecutive", POSITIVE, Default::Integer(10), "steps in a row that skip leaves out before it stops"),
        key("dtype", Kind::Choice(&["float32", "float64"]), Default::Text("float32"), "the type of parameters and activations"),
        key("device", Kind::Text, Default::Text("auto"), "auto, cpu, cuda or cuda:N"),
        key(
            "exec",
            Kind::Choice(&["auto", "reference", "chunkwise", "scan"]),
            Default::Text("auto"),
            "what carries out the steps of rules: the fastest that serves, or one that must",
        ),
        key(
            "memory_limit",
            Kind::Bytes,
            Default::Absent("what the device has"),
            "long sequences are recomputed in segments above it",
        ),
    ],
};

pub(crate) const EVAL: SectionInfo = SectionInfo {
    name: "eval",
    doc: "evaluation during training",
    open: false,
    keys: &[
        key("every", COUNT, Default::Integer(100), "steps between evaluations; 0: at the end only"),
        key("batch_size", BATCH, Default::Derived("train.batch_size"), "sequences in a batch"),
    ],
};

pub(crate) const STOP: SectionInfo = SectionInfo {
    name: "stop",
    doc: "when a run ends before its last step",
    open: false,
    keys: &[
        key("eval_loss_at_most", FINITE, Default::Absent("never"), "an evaluation loss that is good enough"),
        key("patience", COUNT, Default::Integer(0), "evaluations in a row without a new best loss; 0: never"),
        key(
            "metric",
            Kind::Text,
            Default::Absent("none"),
            "another metric of evaluations that ends a run, such as eval/accuracy",
        ),
        key("at_most", FINITE, Default::Absent("no bound"), "this value of the metric, or less, is good enough"),
        key("at_least", FINITE, Default::Absent("no bound"), "this value of the metric, or more, is good enough"),
    ],
};

pub(crate) const CHECKPOINT: SectionInfo = SectionInfo {
    name: "checkpoint",
    doc: "what is kept on disk",
    open: false,
    keys: &[
        key("every", COUNT, Default::Integer(500), "steps between checkpoints; 0: at the end and on interruption only"),
        key("keep", POSITIVE, Default::Integer(2), "how many of the newest are kept"),
        key("keep_best", Kind::Boolean, Default::Boolean(true), "whether the one with the best evaluation loss is kept, too"),
    ],
};

pub(crate) const MONITOR: SectionInfo = SectionInfo {
    name: "monitor",
    doc: "what is written while training",
    open: false,
    keys: &[
        key("log_every", POSITIVE, Default::Integer(10), "steps between records of training metrics"),
        key("tensorboard", Kind::Boolean, Default::Boolean(true), "whether TensorBoard events are written beside metrics.jsonl"),
        key("histograms_every", COUNT, Default::Integer(0), "steps between histograms; 0: none"),
        key("images_every", COUNT, Default::Integer(0), "steps between images of the fast weights; 0: none"),
    ],
};

pub(crate) const EXPECT: SectionInfo = SectionInfo {
    name: "expect",
    doc: "what was published, and what this recipe must reach",
    open: false,
    keys: &[
        key(
            "metric",
            Kind::Text,
            Default::Absent("no expectation"),
            "the metric by its name in metrics.jsonl, such as eval/loss",
        ),
        key("published", FINITE, Default::Absent("not published"), "the value in the paper or its logs"),
        key("at_most", FINITE, Default::Absent("no bound"), "the run passes with this value or less"),
        key("at_least", FINITE, Default::Absent("no bound"), "the run passes with this value or more"),
        key("note", Kind::Text, Default::Absent("none"), "where the published value stands"),
    ],
};

const TASK: SectionInfo = SectionInfo {
    name: "task",
    doc: "what is learnt; further keys belong to the task",
    open: true,
    keys: &[key("name", Kind::Text, Default::Required, "the name of the task")],
};

static SECTIONS: [SectionInfo; 11] =
    [TOP, SLOW_NET, FEATURE_MAP, UPDATE_RULE, TASK, TRAIN, EVAL, STOP, CHECKPOINT, MONITOR, EXPECT];

/// All sections, in the order in which they are shown. The keys of tasks are in
/// [`fwp_task::tasks`].
pub fn sections() -> &'static [SectionInfo] {
    &SECTIONS
}

/// The names that may stand at the top of a recipe: sections and the keys above them.
pub(crate) fn top_names() -> Vec<&'static str> {
    let sections = SECTIONS.iter().map(|s| s.name).filter(|n| !n.is_empty());
    TOP.keys.iter().map(|k| k.name).chain(sections).collect()
}

pub(crate) fn top() -> &'static SectionInfo {
    &SECTIONS[0]
}

/// Every section and key with type, default and meaning, as a text for a terminal.
pub fn reference() -> String {
    let mut text = String::new();
    for section in sections() {
        if !section.name.is_empty() {
            _ = writeln!(text, "\n[{}]  {}", section.name, section.doc);
        }
        list_keys(&mut text, section.keys);
        if section.name == "task" {
            for task in fwp_task::tasks() {
                _ = writeln!(text, "\n[task] name = \"{}\"  {}", task.name, task.doc);
                list_keys(&mut text, task.keys);
            }
        } else if section.open {
            _ = writeln!(text, "  ...  keys of the plugin: see `plugins show NAME`");
        }
    }
    text
}

fn list_keys(text: &mut String, keys: &[KeyInfo]) {
    let width = keys.iter().map(|k| k.name.len()).max().unwrap_or_default();
    for key in keys {
        let kind = match key.name {
            "layers" => "a list of integers".to_string(),
            _ => key.kind.to_string(),
        };
        _ = writeln!(text, "  {:width$}  {}\n  {:width$}  ({kind}; default: {})", key.name, key.doc, "", key.default);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_suits_its_own_kind() {
        for section in sections() {
            for key in section.keys {
                if let Some(value) = key.default.value() {
                    assert!(key.kind.check(value).is_ok(), "{}.{}", section.name, key.name);
                }
            }
        }
    }

    #[test]
    fn the_reference_names_every_key() {
        let text = reference();
        for section in sections() {
            for key in section.keys {
                assert!(text.contains(key.doc), "{}", key.name);
            }
        }
        assert!(text.contains("eval_sequences") && text.contains("train_fraction"));
    }
}
