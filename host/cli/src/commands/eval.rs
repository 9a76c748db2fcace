//! `fwp-host eval`

use std::path::PathBuf;

use clap::Args;

use crate::engine::Engine;
use crate::failure::Failure;

/// Evaluates a checkpoint of a run, deterministically, over the whole validation split, or over a test split of its own.
///
/// Needs the run's folder only, no plugin.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fwp-host eval --run runs/deltanet/20260302-101500-seed1
  fwp-host eval --run runs/deltanet/20260302-101500-seed1 --checkpoint best --test
  fwp-host eval --run runs/text/seed-1 --checkpoint best --data other.txt --json")]
pub struct Eval {
    /// The folder of the run.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Which checkpoint: latest, best, or the number of a step.
    #[arg(long, value_name = "latest|best|STEP", default_value = "latest", value_parser = checkpoint)]
    checkpoint: String,
    /// Other data than the run's own.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Draws as many other sequences, by which nothing of the run was chosen; not for tasks that read a file.
    #[arg(long, conflicts_with = "data")]
    test: bool,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", value_parser = super::device)]
    device: Option<String>,
    /// What carries out the rules: auto, reference, chunkwise or scan; the run's own choice without it.
    #[arg(long, value_name = "EXECUTOR", value_parser = super::EXECUTORS)]
    exec: Option<String>,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
}

fn checkpoint(text: &str) -> Result<String, String> {
    let known = matches!(text, "latest" | "best") || text.parse::<u64>().is_ok();
    if known { Ok(text.into()) } else { Err("expected latest, best or the number of a step".into()) }
}

impl Eval {
    /// Does it.
    pub async fn run(self) -> Result<u8, Failure> {
        let engine = Engine::find()?;
        // Said here, before libtorch is loaded for nothing.
        fwp_recipe::RunDir::open(&self.run)?;
        let mut arguments = vec!["eval".into(), "--run".into(), self.run.into_os_string()];
        arguments.extend(["--checkpoint".into(), self.checkpoint.into()]);
        if let Some(data) = self.data {
            arguments.extend(["--data".into(), data.into_os_string()]);
        }
        if self.test {
            arguments.push("--test".into());
        }
        if let Some(device) = self.device {
            arguments.extend(["--device".into(), device.into()]);
        }
        if let Some(exec) = self.exec {
            arguments.extend(["--exec".into(), exec.into()]);
        }
        if self.json {
            arguments.push("--json".into());
        }
        engine.run(&arguments).await
    }
}
