//! The engine of fwp-host: trains, evaluates and applies what `fwp-host` has composed.
//!
//! `fwp-host` starts it; a person seldom does.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use fwp_engine::command::failure::{Failure, INTERRUPTED};
use fwp_engine::command::{apply, doctor, eval, parent, train};
use fwp_engine::monitor::Progress;
use fwp_engine::train::{End, Resume};
use fwp_engine::{bench, check};
use fwp_recipe::RunDir;

/// The engine of fwp-host; started by it.
#[derive(Parser)]
#[command(name = "fwp-engine", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the plan of a run folder.
    Train {
        /// The run folder.
        #[arg(long)]
        run: PathBuf,
        /// auto, never, or the path of a checkpoint or run.
        #[arg(long, default_value = "auto")]
        resume: Resume,
        /// auto, cpu, cuda or cuda:N; the plan's when absent.
        #[arg(long)]
        device: Option<String>,
        /// auto or the name of an executor; the plan's when absent.
        #[arg(long)]
        exec: Option<String>,
        /// auto, plain or none.
        #[arg(long, default_value = "auto")]
        progress: Progress,
    },
    /// Evaluate a checkpoint of a run folder.
    Eval {
        /// The run folder.
        #[arg(long)]
        run: PathBuf,
        /// latest, best, a step, or the path of a checkpoint.
        #[arg(long, default_value = "latest")]
        checkpoint: String,
        /// Other data than the run's.
        #[arg(long)]
        data: Option<PathBuf>,
        /// Sequences by which nothing of the run was chosen.
        #[arg(long)]
        test: bool,
        /// auto, cpu, cuda or cuda:N; the plan's when absent.
        #[arg(long)]
        device: Option<String>,
        /// auto or the name of an executor; the plan's when absent.
        #[arg(long)]
        exec: Option<String>,
        /// One JSON document on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Apply a rule to tensors, as a job file says.
    Apply {
        /// The job, JSON.
        #[arg(long)]
        job: PathBuf,
    },
    /// Time the executors of a rule, as a job file says; one JSON document on stdout.
    Bench {
        /// The job, JSON.
        #[arg(long)]
        job: PathBuf,
        /// Only the memory of this executor: a number of bytes on stdout.
        #[arg(long)]
        peak: Option<String>,
    },
    /// The cases of a check, or one of them, as a job file says; one JSON document on stdout.
    Check {
        /// The job, JSON.
        #[arg(long)]
        job: PathBuf,
        /// The case to run; without it all are listed.
        #[arg(long)]
        case: Option<String>,
    },
    /// Says whether a device can be used.
    Device {
        /// Its name.
        name: String,
    },
    /// What is found of libtorch and devices.
    Doctor {
        /// One JSON document on stdout (the only form).
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    parent::end_with_host();
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    let open = |path: &PathBuf| RunDir::open(path).map_err(Failure::input);
    match command {
        Command::Train { run, resume, device, exec, progress } => {
            train::prepare();
            let outcome = train::run(&open(&run)?, &train::Options { resume, device, exec, progress })?;
            Ok(if outcome.end == End::Interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
        }
        Command::Eval { run, checkpoint, data, test, device, exec, json } => {
            train::prepare();
            eval::run(&open(&run)?, &eval::Options { checkpoint, data, test, device, exec, json })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Apply { job } => {
            train::prepare();
            let text =
                std::fs::read_to_string(&job).with_context(|| format!("reading {}", job.display())).map_err(Failure::input)?;
            let job: apply::Job = serde_json::from_str(&text).context("reading the job").map_err(Failure::input)?;
            train::device(&job.device).map_err(Failure::environment)?;
            let bytes = apply::run(&job).map_err(Failure::input)?;
            let written = std::fs::write(&job.output, bytes).with_context(|| format!("writing {}", job.output.display()));
            written.map_err(Failure::environment)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench { job: file, peak } => {
            let job = bench::Job::read(&file).map_err(Failure::input)?;
            match peak {
                Some(executor) => println!("{}", bench::peak(&job, &executor).map_err(Failure::input)?),
                None => print_json(&bench::run(&job, &file).map_err(Failure::input)?)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { job, case } => {
            let job = check::Job::read(&job).map_err(Failure::input)?;
            match case {
                Some(case) => print_json(&check::run(&job, &case).map_err(Failure::input)?)?,
                None => print_json(&check::cases(&job).map_err(Failure::input)?)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Device { name } => {
            train::prepare();
            train::device(&name).map_err(Failure::environment)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor { .. } => {
            println!("{:#}", doctor::run());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string(value).context("writing the answer")?);
    Ok(())
}
