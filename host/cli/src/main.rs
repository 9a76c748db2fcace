//! `fwp-host`: what a person types.
//!
//! It reads recipes, asks plugins for their programs (in child processes), checks what they say, writes run folders, and
//! starts `fwp-engine` for everything that computes. It links no libtorch, so it answers at once and also where libtorch is broken.
//!
//! | module | does |
//! |---|---|
//! | `commands` | one file a command: its options with their documentation, and what it does |
//! | `plugins` | finding, examining and asking plugins |
//! | `compose` | from a recipe to the programs of its parts |
//! | `run` | run folders: new ones, and going on with old ones |
//! | `zoo` | where the recipes of published variants are, and training them side by side |
//! | `parent` | ending with the command that started this one |
//! | `engine` | finding and starting `fwp-engine`, signals, how it ended |
//! | `failure` | what a person is told, and exit codes |
//! | `output` | stdout: text and JSON |

mod commands;
mod compose;
mod engine;
mod failure;
mod output;
mod parent;
mod plugins;
mod proved;
mod run;
mod zoo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::{Code, Failure};

/// Trains and runs Fast Weight Programmers: a slow net, a feature map and an update rule, each a plugin, composed by a recipe.
#[derive(Parser)]
#[command(name = "fwp-host", version = output::VERSION, max_term_width = 100, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Example:
  fwp-host train --recipe zoo/deltanet

Exit codes:
  0  done
  1  something unexpected
  2  the command line is wrong
  3  a recipe, program, checkpoint or data file was refused
  4  a plugin was refused or failed
  5  the environment: libtorch, engine, device or disk
  6  training failed: a loss that is not finite, or memory ran out
  7  interrupted; the run was saved and can be resumed
  8  check: a case failed, crashed or took too long, or none passed,
     or none of an executor that --exec names;
     zoo results --check: tables or figures are not up to date

Plugins are looked for in these folders, and never in the working directory:
  --plugin-path, $FWP_PLUGIN_PATH, $XDG_DATA_HOME/fwp-host/plugins, and plugins/
  beside fwp-host: every library; the folder of fwp-host itself: libfwp_*

Environment:
  FWP_PLUGIN_PATH     more folders with plugins, divided by colons
  FWP_PLUGIN_TIMEOUT  seconds that a plugin may take to answer (10)
  FWP_ENGINE          the engine, where it is not beside fwp-host
  FWP_ZOO             the folder of recipes, where it is not above fwp-host
  LIBTORCH            a libtorch of your own, as the build took it";

#[derive(Subcommand)]
enum Command {
    Train(commands::train::Train),
    Eval(commands::eval::Eval),
    Apply(commands::apply::Apply),
    Bench(commands::bench::Bench),
    Check(commands::check::Check),
    #[command(subcommand)]
    Plugins(commands::plugins::Plugins),
    #[command(subcommand)]
    Recipe(commands::recipe::Recipe),
    #[command(subcommand)]
    Zoo(commands::zoo::Zoo),
    Doctor(commands::doctor::Doctor),
    /// Opens plugins and asks them; a job on stdin, answers on stdout. Started by fwp-host itself.
    #[command(name = "__describe", hide = true)]
    Describe {
        /// Seconds of processor time, as a last resort.
        seconds: u64,
    },
}

fn main() -> ExitCode {
    parent::end_with_parent();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Nobody reading it, as in `fwp-host --help | head -1`, is no failure.
            _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(Code::Usage as u8));
        }
    };
    let verbose = match &cli.command {
        Command::Train(c) => c.plugins.verbose,
        Command::Apply(c) => c.plugins.verbose,
        Command::Bench(c) => c.plugins.verbose,
        Command::Check(c) => c.plugins.verbose,
        Command::Plugins(c) => c.verbose(),
        Command::Recipe(c) => c.verbose(),
        Command::Doctor(c) => c.plugins.verbose,
        Command::Zoo(c) => c.verbose(),
        Command::Eval(_) => false,
        Command::Describe { seconds } => return ExitCode::from(plugins::child::run(*seconds)),
    };
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::say(failure.text(verbose).trim_end());
            ExitCode::from(failure.code as u8)
        }
    }
}

fn run(command: Command) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Code::Environment, "fwp-host cannot start", e.to_string(), "check the limits (ulimit -a)"))?;
    runtime.block_on(async {
        match command {
            Command::Train(c) => c.run().await,
            Command::Eval(c) => c.run().await,
            Command::Apply(c) => c.run().await,
            Command::Bench(c) => c.run().await,
            Command::Check(c) => c.run().await,
            Command::Plugins(c) => c.run().await,
            Command::Recipe(c) => c.run().await,
            Command::Zoo(c) => c.run().await,
            Command::Doctor(c) => c.run().await,
            Command::Describe { .. } => Ok(0),
        }
    })
}
