//! `fwp-host zoo`

mod list;
mod results;
mod run;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::zoo;

/// The zoo: recipes of published variants, what is measured with them, and what was published.
#[derive(Subcommand, Debug)]
pub enum Zoo {
    List(list::List),
    Run(run::Run),
    Results(results::Results),
}

/// Where the zoo is; the same for every command.
#[derive(Args, Debug)]
pub struct ZooOptions {
    /// The folder of recipes (default: $FWP_ZOO, else zoo in a folder above fwp-host).
    #[arg(long, value_name = "DIR")]
    zoo: Option<PathBuf>,
}

impl ZooOptions {
    /// The folder of the zoo.
    fn folder(&self) -> Result<PathBuf, Failure> {
        match self.zoo.clone().or_else(zoo::folder) {
            Some(folder) => Ok(folder),
            None => Err(zoo::none("no folder above fwp-host holds one")),
        }
    }
}

/// Where runs are, and go.
const RUNS: &str = "runs/zoo";

impl Zoo {
    /// Whether details of errors are shown.
    pub fn verbose(&self) -> bool {
        matches!(self, Zoo::Run(c) if c.plugins.verbose)
    }

    /// Does it.
    pub async fn run(self) -> Result<u8, Failure> {
        match self {
            Zoo::List(c) => c.run(),
            Zoo::Run(c) => c.run().await,
            Zoo::Results(c) => c.run(),
        }
    }
}
