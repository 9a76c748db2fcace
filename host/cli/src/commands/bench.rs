//! `fwp-host bench`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use fwp_sdk::build::Dims;
use serde_json::{Value, json};

use super::PluginOptions;
use super::alone::Alone;
use crate::engine::{self, Engine};
use crate::failure::{self, Code, Failure};
use crate::output;

/// Threads for each processor that anybody asks for on purpose; libtorch makes any number, which takes minutes.
const MOST_THREADS: usize = 8;

/// Times all executors of an update rule on one shape, forward and backward, side by side in one run.
///
/// The figures: forward is from the rule's inputs to its output with everything kept that the backward pass needs; backward is
/// from a gradient of the output to those of all inputs. Executors take turns, after a round that is not counted; shown are the
/// median and the spread. The share is that of this machine's rate of matrix products, measured in the same rounds: operations of
/// the step as it is written, three times for forward and backward. The peak is the growth of resident memory during one forward
/// and backward pass in a process of its own.
#[derive(Args, Debug)]
#[command(after_help = "\
With --json: one array, an object an executor. Every object has executor and applies; one that does not apply has why and nothing
else; any other has forward_ms, backward_ms, total_ms (medians), forward_ms_range, backward_ms_range, total_ms_range (least and
greatest), tokens_per_second, peak_bytes, rounds, share_of_matmul, matmul_gflops, threads, finite (whether all numbers that came
out were) and others_busy (processors that other processes kept busy meanwhile).

Examples:
  fwp-host bench --rule delta --batch 1 --heads 4 --time 2048 --key-dim 64 --value-dim 64 --json
  fwp-host bench --rule delta --feature-map dpfp --set feature_map.nu=2 --exec chunkwise,scan")]
pub struct Bench {
    /// The update rule: a name, or the path of a library (PATH#NAME where it has several).
    #[arg(long, value_name = "NAME|PATH")]
    rule: String,
    /// The feature map of keys and queries: a name, or the path of a library; without it keys go to the rule as they are.
    #[arg(long, value_name = "NAME|PATH")]
    feature_map: Option<String>,
    /// Sets a key of the rule's configuration, or of the map's with `feature_map.` in front; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Sequences.
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Heads.
    #[arg(long, value_name = "N", default_value_t = 4)]
    heads: usize,
    /// Steps.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    time: usize,
    /// Elements of a key before the feature map.
    #[arg(long, value_name = "N", default_value_t = 64)]
    key_dim: usize,
    /// Elements of a value.
    #[arg(long, value_name = "N", default_value_t = 64)]
    value_dim: usize,
    /// The type to compute in.
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    dtype: Dtype,
    /// The executors, divided by commas; all without it.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = ["reference", "chunkwise", "scan"])]
    exec: Vec<String>,
    /// Threads; libtorch's own number without it.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Rounds at most; a slow executor gets fewer, see --seconds.
    #[arg(long, value_name = "N", default_value_t = 11)]
    rounds: usize,
    /// Seconds of rounds for each executor.
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// Leaves out the peak of memory.
    #[arg(long)]
    no_peak: bool,
    /// Prints one JSON array.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub plugins: PluginOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    Float32,
    Float64,
}

impl Bench {
    /// Does it.
    pub async fn run(self) -> Result<u8, Failure> {
        self.sensible()?;
        let engine = Engine::find()?;
        let alone = Alone::find(&self.plugins, &self.rule, self.feature_map.as_deref(), &self.set).await?;
        let dims = Dims {
            heads: self.heads,
            key_raw: self.key_dim,
            key: self.key_dim,
            value: self.value_dim,
            max_len: self.time,
            ..Dims::ONE
        };
        let programs = alone.describe(dims).await?;
        for notice in &programs.notices {
            output::say(&format!("note: {}", failure::literal(notice)));
        }
        let folder = super::alone::folder("fwp-bench-")?;
        let rule = folder.write("update-rule.fwp", &programs.rule)?;
        let map = programs.map.map(|bytes| folder.write("feature-map.fwp", &bytes)).transpose()?;
        let job = json!({
            "rule": {
                "name": "bench",
                "heads": self.heads,
                "key": self.key_dim,
                "value": self.value_dim,
                "rule": { "Ok": rule },
                "map": map,
            },
            "batch": self.batch,
            "time": self.time,
            "dtype": self.dtype.to_possible_value().map(|v| v.get_name().to_string()),
            "executors": self.exec,
            "threads": self.threads,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "peak": !self.no_peak,
        });
        let job: PathBuf = folder.write("bench.json", job.to_string().as_bytes())?;
        let arguments = engine::arguments(&[&"bench", &"--job", &job]);
        if self.plugins.verbose {
            engine::announce(&engine, &arguments);
        }
        let printed = match engine.printed(&arguments).await? {
            Ok(printed) => printed,
            // The engine has said why.
            Err(code) => return Ok(code),
        };
        let rows: Vec<Value> = serde_json::from_slice(&printed).map_err(|e| {
            Failure::new(Code::Unexpected, "the engine's answer cannot be read", e.to_string(), "build host and engine together")
        })?;
        let serves = rows.iter().any(|r| r["applies"] == true);
        if self.json {
            output::json(&rows)?
        } else if serves {
            output::print(&self.table(alone.name(), &rows))?
        }
        if !serves {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
            let why: Vec<String> = rows.iter().map(|r| format!("{}: {}", text(&r["executor"]), text(&r["why"]))).collect();
            let why = failure::literal(&why.join("; "));
            let remedy = format!("leave out --exec; `fwp-host plugins show {}` says what serves the rule", alone.name());
            return Err(Failure::new(Code::Input, "none of these executors serves the rule", why, remedy));
        }
        Ok(0)
    }

    fn sensible(&self) -> Result<(), Failure> {
        let sizes = [self.batch, self.heads, self.time, self.key_dim, self.value_dim, self.rounds, self.threads.unwrap_or(1)];
        if sizes.contains(&0) || !(self.seconds >= 0.0 && self.seconds.is_finite()) {
            let cause = "sizes, threads and rounds begin at 1, and --seconds is a number from 0";
            return Err(Failure::new(Code::Usage, "the command line is wrong", cause, "see `fwp-host bench --help`"));
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        if self.threads.is_some_and(|n| n > MOST_THREADS * processors) {
            let cause =
                format!("--threads is at most {}, {MOST_THREADS} for each of {processors} processors", MOST_THREADS * processors);
            return Err(Failure::new(Code::Usage, "the command line is wrong", cause, "see `fwp-host bench --help`"));
        }
        Ok(())
    }

    fn table(&self, rule: &str, rows: &[Value]) -> String {
        let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let range = |row: &Value, key: &str| {
            let part = |i: usize| milliseconds(row[key][i].as_f64().unwrap_or(f64::NAN));
            format!("{} to {}", part(0), part(1))
        };
        let mut lines = Vec::new();
        for row in rows.iter().filter(|r| r["applies"] == true) {
            lines.push(vec![
                row["executor"].as_str().unwrap_or_default().to_string(),
                milliseconds(number(row, "forward_ms")),
                milliseconds(number(row, "backward_ms")),
                milliseconds(number(row, "total_ms")),
                range(row, "total_ms_range"),
                output::grouped(number(row, "tokens_per_second").round() as u64),
                row["peak_bytes"].as_u64().map_or("-".into(), output::bytes),
                format!("{:.1} %", 100.0 * number(row, "share_of_matmul")),
                row["rounds"].to_string(),
            ]);
        }
        let first = rows.iter().find(|r| r["applies"] == true).unwrap_or(&Value::Null);
        let mut text = format!(
            "{}: batch {}, {}, {}, keys of {}, values of {}, {}, {}\n\n",
            failure::literal(rule),
            self.batch,
            output::counted(self.heads, "head"),
            output::counted(self.time, "step"),
            self.key_dim,
            self.value_dim,
            if matches!(self.dtype, Dtype::Float32) { "float32" } else { "float64" },
            output::counted(first["threads"].as_u64().unwrap_or(0) as usize, "thread")
        );
        text += &output::table(
            &["EXECUTOR", "FORWARD ms", "BACKWARD ms", "BOTH ms", "SPREAD ms", "TOKENS/s", "PEAK", "SHARE", "ROUNDS"],
            &lines,
        );
        for row in rows.iter().filter(|r| r["applies"] != true) {
            let text_of = |key: &str| failure::literal(row[key].as_str().unwrap_or_default());
            text += &format!("\n{} does not apply: {}\n", text_of("executor"), text_of("why"));
        }
        text += &format!(
            "\nSHARE is of a matrix product's {:.0} GFLOP/s on this machine; others kept {:.2} processors busy meanwhile\n",
            number(first, "matmul_gflops"),
            number(first, "others_busy")
        );
        text
    }
}

/// Three figures.
fn milliseconds(ms: f64) -> String {
    match ms {
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x if x >= 1.0 => format!("{x:.2}"),
        x => format!("{x:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_figures() {
        let shown: Vec<String> = [1234.5, 99.94, 12.34, 1.234, 0.1234].into_iter().map(milliseconds).collect();
        assert_eq!(shown, ["1234", "99.9", "12.3", "1.23", "0.123"]);
    }
}
