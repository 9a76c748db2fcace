//! Evaluates a checkpoint of a run.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use fwp_recipe::{Carry, RunDir};
use serde_json::{Value, json};

use super::failure::Failure;
use super::train::{compare, open, summary};
use crate::train::{EvaluationOptions, TrainModel, checkpoint, evaluate, load_parameters};

/// What is evaluated.
#[derive(Clone, Debug)]
pub struct Options {
    /// `latest`, `best`, a step, or the path of a checkpoint.
    pub checkpoint: String,
    /// Other data than the run's.
    pub data: Option<PathBuf>,
    /// Whether sequences are drawn by which nothing of the run was chosen.
    pub test: bool,
    /// `auto`, `cpu` or `cuda`; none is the plan's.
    pub device: Option<String>,
    /// `auto` or the name of an executor; none is the plan's.
    pub exec: Option<String>,
    /// Whether the answer is one JSON document.
    pub json: bool,
}

/// Evaluates and prints.
pub fn run(run: &RunDir, options: &Options) -> Result<(), Failure> {
    let opened = open(run, options.device.as_deref(), options.exec.as_deref(), options.data.as_deref())?;
    let loaded = find(run, &options.checkpoint)?;
    load_parameters(opened.model.parameters(), &loaded.model).map_err(Failure::input)?;
    let plan = &opened.plan;
    if options.test && opened.plan.task.reads_file() {
        return Err(Failure::input(anyhow!(
            "--test draws new sequences, and this task reads a file: name another text with --data and leave --test out"
        )));
    }
    let how = EvaluationOptions {
        seed: plan.train.seed,
        data_seed: if options.test { fwp_task::test_seed(plan.train.seed) } else { plan.train.seed },
        step: loaded.state.step,
        batch_size: plan.eval.batch_size,
        carry: plan.train.carry != Carry::None,
    };
    let found = evaluate(&opened.model, &opened.task, how, None)?.context("the evaluation was interrupted")?;
    opened.executors.take_notices().iter().for_each(|notice| eprintln!("warning: {notice}"));
    let split = if options.test { "test" } else { "validation" };
    let measured = |name: &str| found.metrics.get(name).copied().unwrap_or(f64::NAN);
    let passes = plan.expect.as_ref().filter(|e| e.judges()).map(|e| e.passes(measured(&e.metric)));
    if options.json {
        let mut document: Value = json!({
            "run": run.path(), "checkpoint": loaded.path, "split": split, "step": found.step,
            "eval/loss": found.loss, "eval/accuracy": found.accuracy, "tokens": found.tokens, "seconds": found.seconds,
        });
        for (name, value) in &found.metrics {
            document[name] = json!(value);
        }
        if let Some(expect) = &plan.expect {
            document["expect"] = json!({ "metric": expect.metric, "published": expect.published, "at_most": expect.at_most, "at_least": expect.at_least, "passes": passes });
        }
        println!("{document:#}");
        return Ok(());
    }
    println!("checkpoint {} (step {})", loaded.path.display(), found.step);
    println!("evaluation {} ({split} split)", summary(&found));
    println!("read       {} tokens in {:.1} s", found.tokens, found.seconds);
    if let Some(expect) = &plan.expect {
        println!("{}", compare(expect, measured(&expect.metric)));
    }
    Ok(())
}

fn find(run: &RunDir, which: &str) -> Result<checkpoint::Loaded, Failure> {
    let folder = run.checkpoints();
    let nothing = || Failure::input(anyhow!("{} has no checkpoint yet: train it first", run.path().display()));
    let list = checkpoint::list(&folder).map_err(Failure::input)?;
    if list.is_empty() {
        return Err(nothing());
    }
    let path = match which {
        "latest" => return newest(&folder),
        "best" => {
            // Only the newest one knows which was the best of the whole run.
            let step = newest(&folder)?.state.best.map(|b| b.step);
            let found = list.iter().find(|(s, _)| Some(*s) == step);
            &found
                .ok_or_else(|| {
                    Failure::input(anyhow!("the best checkpoint (step {step:?}) was not kept: set checkpoint.keep_best = true"))
                })?
                .1
        }
        other => match other.parse::<u64>() {
            Ok(step) => {
                let steps: Vec<String> = list.iter().map(|(s, _)| s.to_string()).collect();
                let found = list.iter().find(|(s, _)| *s == step);
                &found
                    .ok_or_else(|| {
                        Failure::input(anyhow!("there is no checkpoint of step {step}; there are {}", steps.join(", ")))
                    })?
                    .1
            }
            Err(_) => &PathBuf::from(other),
        },
    };
    checkpoint::read(path).map_err(Failure::input)
}

/// The newest sound checkpoint; damaged ones that are newer are named on stderr.
fn newest(folder: &Path) -> Result<checkpoint::Loaded, Failure> {
    let (found, warnings) = checkpoint::newest(folder).map_err(Failure::input)?;
    let Some(found) = found else {
        return Err(Failure::input(anyhow!("no checkpoint in {} is sound ({})", folder.display(), warnings.join("; "))));
    };
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    Ok(found)
}
