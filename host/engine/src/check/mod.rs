//! The conformance of a rule and of its executors, in numbers.
//!
//! `fwp-host check` is the runner: it starts `fwp-engine check` once for the list of cases and then once a case,
//! so that a case which crashes or never ends takes nothing else with it.
//! Here is what a case does.
//!
//! | module | cases |
//! |---|---|
//! | [`agree`] | an executor against the reference |
//! | [`behave`] | causality, independence of samples, carried states, NaN, floating-point mode, threads |
//! | [`judge`] | the reference against the interpreter and against finite differences |

mod agree;
mod behave;
mod judge;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::exec::value::Precision;
use crate::trial::executor::{self, REFERENCE};
use crate::trial::{Data, Described, Subject, Wanted};

/// What `fwp-host check` asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The rule for several sizes; the first two are `equal` and `primes`.
    pub sizes: Vec<Described>,
    /// The executors to check; all where it is empty.
    pub executors: Vec<String>,
    /// Seed of all numbers.
    pub seed: u64,
    /// Fewer lengths and sizes.
    pub quick: bool,
}

impl Job {
    /// Reads a job.
    ///
    /// # Errors
    /// A file that is not there or is no job.
    pub fn read(path: &PathBuf) -> Result<Job> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).context("reading the job")
    }
}

/// A case: its name and what it is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Its name, which `--case` takes.
    pub name: String,
    /// The executor that is checked; none for the rule itself.
    pub executor: Option<String>,
    /// What must hold, in one sentence.
    pub says: String,
    /// Seconds that it may take.
    pub seconds: u64,
}

/// How a case ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What became of it.
    pub result: Verdict,
    /// What was found: for a failure what differs where, for a skipped case why.
    pub message: String,
}

/// What became of a case that came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed,
    /// It does not apply.
    Skipped,
}

impl Report {
    fn passed(message: impl Into<String>) -> Report {
        Report { result: Verdict::Passed, message: message.into() }
    }
    fn failed(message: impl Into<String>) -> Report {
        Report { result: Verdict::Failed, message: message.into() }
    }
    fn skipped(message: impl Into<String>) -> Report {
        Report { result: Verdict::Skipped, message: message.into() }
    }
}

/// The kinds of case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Agreement,
    Causality,
    Batch,
    Carry,
    Nan,
    Mode,
    Threads,
    Steps,
    Gradients,
    Restated,
}

/// A case with all that it needs to be run.
struct Planned {
    case: Case,
    what: What,
    sizes: usize,
}

/// Seconds for a case: several times what the slowest of them takes on a slow machine.
const SECONDS: u64 = 120;

/// All cases of a job.
///
/// # Errors
/// An executor that does not exist, or a job without sizes.
pub fn cases(job: &Job) -> Result<Vec<Case>> {
    Ok(planned(job)?.into_iter().map(|p| p.case).collect())
}

fn planned(job: &Job) -> Result<Vec<Planned>> {
    let known = executor::names();
    if let Some(unknown) = job.executors.iter().find(|e| !known.contains(&e.as_str())) {
        bail!("there is no executor `{unknown}`; there are: {}", known.join(", "));
    }
    let primes = job.sizes.iter().position(|s| s.name == "primes").context("internal: no sizes `primes`")?;
    let wanted: Vec<&str> =
        known.into_iter().filter(|e| job.executors.is_empty() || job.executors.iter().any(|w| w == e)).collect();
    let mut all = Vec::new();
    let mut add = |executor: Option<&str>, suffix: &str, what: What, sizes: usize, says: String| {
        let name = format!("{}.{suffix}", executor.unwrap_or("rule"));
        let case = Case { name, executor: executor.map(str::to_string), says, seconds: SECONDS };
        all.push(Planned { case, what, sizes });
    };
    add(None, "restated", What::Restated, primes, "The rule's second statement computes the same step.".into());
    for e in wanted {
        if e == REFERENCE {
            let says =
                "Outputs and final states are those of the step evaluated one head, sequence and step at a time in float64.";
            add(Some(e), "steps", What::Steps, primes, says.into());
            let says = "Gradients of every input, state and parameter are those of finite differences in float64.";
            add(Some(e), "gradients", What::Gradients, primes, says.into());
        } else {
            for (i, sizes) in job.sizes.iter().enumerate() {
                let says = format!(
                    "Outputs, final states and every gradient agree with the reference for {} heads, keys of {} and values of {}, \
                     in float32 and float64, at lengths {}, with and without initial states, resets and write masks.",
                    sizes.heads,
                    sizes.key,
                    sizes.value,
                    agree::lengths(job.quick).iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
                );
                add(Some(e), &format!("agreement.{}", sizes.name), What::Agreement, i, says);
            }
            let says = "Loading and running it changes neither rounding nor the handling of subnormal numbers, in any thread.";
            add(Some(e), "mode", What::Mode, primes, says.into());
        }
        let more = [
            ("causality", What::Causality, "A change of the inputs from one step on moves no earlier output."),
            (
                "batch",
                What::Batch,
                "A change of one sequence moves no other, and a sequence alone gives what it gives in a batch.",
            ),
            ("carry", What::Carry, "Two halves with the state carried over give what one pass gives."),
            ("nan", What::Nan, "NaN in an input comes out where the reference shows it, and in no other sequence."),
            ("threads", What::Threads, "Outputs and gradients have the same bits for 1, 2, 3 and 4 threads."),
        ];
        for (suffix, what, says) in more {
            add(Some(e), suffix, what, primes, says.into());
        }
    }
    Ok(all)
}

/// Runs one case.
///
/// # Errors
/// A case that does not exist. What goes wrong in a case is a failed case.
pub fn run(job: &Job, name: &str) -> Result<Report> {
    let all = planned(job)?;
    let planned = all.iter().find(|p| p.case.name == name).with_context(|| format!("there is no case `{name}`"))?;
    Ok(one(job, planned).unwrap_or_else(|e| Report::failed(crate::shim::first_line(&format!("{e:#}")))))
}

fn one(job: &Job, planned: &Planned) -> Result<Report> {
    let described = &job.sizes[planned.sizes];
    if let Err(why) = &described.rule {
        return Ok(Report::skipped(format!(
            "the rule is not described for keys of {} and values of {}: {why}",
            described.key, described.value
        )));
    }
    let subject = Subject::open(described)?;
    let name = planned.case.executor.as_deref().unwrap_or(REFERENCE);
    let found = executor::executors_of(&subject, DOUBLE)?;
    let executor = found.iter().find(|e| e.name == name).with_context(|| format!("internal: no executor `{name}`"))?;
    if let Err(why) = &executor.applies {
        return Ok(Report::skipped(format!("{name} does not apply: {why}")));
    }
    // Several cases run at the same time: each gets one thread, but for the one that is about threads.
    crate::shim::set_num_threads(1);
    let trial = Trial { subject: &subject, executor: name, seed: job.seed, quick: job.quick };
    match planned.what {
        What::Agreement => agree::agreement(&trial),
        What::Causality => behave::causality(&trial),
        What::Batch => behave::batch(&trial),
        What::Carry => behave::carry(&trial),
        What::Nan => behave::nan(&trial),
        What::Mode => behave::mode(&trial),
        What::Threads => behave::threads(&trial),
        What::Steps => judge::steps(&trial),
        What::Gradients => judge::gradients(&trial),
        What::Restated => judge::restated(&trial),
    }
}

/// What a case is run on.
struct Trial<'a> {
    subject: &'a Subject,
    executor: &'a str,
    seed: u64,
    quick: bool,
}

const DOUBLE: Precision = Precision { kind: Kind::Double, device: Device::Cpu };
const SINGLE: Precision = Precision { kind: Kind::Float, device: Device::Cpu };

/// How often inputs are made smaller, and by how much, where a rule explodes on them: gradient steps of a net do when they are too long.
const SMALLER: [f64; 3] = [0.25, 0.0625, 0.015_625];
/// What is larger has exploded.
const LARGE: f64 = 1e6;

/// Numbers on which the rule does not explode.
fn tame(subject: &Subject, wanted: Wanted, seed: u64) -> Result<Data> {
    let mut data = subject.draw(wanted, seed)?;
    for factor in SMALLER {
        let outcome = subject.run(REFERENCE, DOUBLE, &data, None)?;
        // NaN is not smaller than anything.
        let bounded = |t: &Tensor| Ok(t.numel() == 0 || t.f_abs()?.f_max()?.f_double_value(&[])? < LARGE);
        if outcome.values.iter().map(|(_, t)| bounded(t)).collect::<Result<Vec<bool>>>()?.into_iter().all(|b| b) {
            break;
        }
        data = subject.draw_smaller(wanted, seed, factor)?;
    }
    Ok(data)
}

/// Distance of two tensors relative to the length of the second; absolute where that is 0.
/// NaN and infinity in one of them only, or in different places, are infinitely far apart.
fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (apart, length) = apart(a, b)?;
    Ok(if length > 0.0 { apart / length } else { apart })
}

/// Distance of two tensors, and the length of the second.
fn apart(a: &Tensor, b: &Tensor) -> Result<(f64, f64)> {
    if a.size() != b.size() {
        return Ok((f64::INFINITY, 1.0));
    }
    let (a, b) = (a.f_to_kind(Kind::Double)?, b.f_to_kind(Kind::Double)?);
    let norm = |t: &Tensor| -> Result<f64> { Ok(t.f_square()?.f_sum(Kind::Double)?.f_sqrt()?.f_double_value(&[])?) };
    let (apart, length) = (norm(&a.f_sub(&b)?)?, norm(&b)?);
    Ok(if apart.is_finite() && length.is_finite() { (apart, length) } else { (f64::INFINITY, 1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_relative_and_nan_is_far() {
        let (a, b) = (Tensor::from_slice(&[3.0, 4.0]), Tensor::from_slice(&[3.0, 4.5]));
        assert!((distance(&b, &a).unwrap() - 0.1).abs() < 1e-15);
        assert_eq!(distance(&a, &a).unwrap(), 0.0);
        // Against zeros there is nothing to be relative to.
        assert!((distance(&a, &Tensor::from_slice(&[0.0, 0.0])).unwrap() - 5.0).abs() < 1e-15);
        let spoiled = Tensor::from_slice(&[3.0, f64::NAN]);
        assert_eq!(distance(&spoiled, &a).unwrap(), f64::INFINITY);
        assert_eq!(distance(&a, &Tensor::from_slice(&[3.0])).unwrap(), f64::INFINITY);
    }

    #[test]
    fn every_case_has_a_name_of_its_own_and_a_sentence() {
        let sizes = ["equal", "primes"].map(|name| Described {
            name: name.into(),
            heads: 1,
            key: 1,
            value: 1,
            rule: Err("not here".into()),
            map: None,
        });
        let job = Job { sizes: sizes.into(), executors: vec![], seed: 1, quick: true };
        let all = cases(&job).unwrap();
        for (i, case) in all.iter().enumerate() {
            assert!(case.says.ends_with('.') && case.seconds > 0, "{case:?}");
            assert!(all[..i].iter().all(|c| c.name != case.name), "{case:?}");
        }
        let of = |e: &str| all.iter().filter(|c| c.executor.as_deref() == Some(e)).count();
        assert!(of("reference") >= 7 && executor::names().iter().all(|e| *e == REFERENCE || of(e) >= 8));
        // A rule that is not described for these sizes is skipped with the reason.
        let report = run(&job, "reference.steps").unwrap();
        assert!(report.result == Verdict::Skipped && report.message.contains("not here"), "{report:?}");
        assert!(run(&job, "nothing").is_err());
        assert!(cases(&Job { executors: vec!["nothing".into()], ..job }).unwrap_err().to_string().contains("reference"));
    }
}
