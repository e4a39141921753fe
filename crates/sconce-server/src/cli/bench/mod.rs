//! `sconce bench`: how fast a model or a server is. Names and flags are those of `vllm bench` where they fit.

mod answer;
mod client;
mod latency;
mod lengths;
mod load;
mod ops;
mod percentiles;
mod random;
mod report;
mod roof;
mod serve;
mod subject;
mod throughput;
mod together;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use super::Failure;

/// Flags of `sconce bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Measure one request at a time inside this process: prompts and decoding, beside what the machine does at most.
    Latency(latency::Args),
    /// Time each operation of the model by itself: where prompts and decoding spend their time.
    Ops(ops::Args),
    /// Measure many requests at once inside this process.
    Throughput(throughput::Args),
    /// Measure a server by its /v1/completions, which may be of any kind.
    Serve(serve::Args),
}

/// Runs `sconce bench`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Latency(args) => latency::run(args),
        Command::Ops(args) => ops::run(args),
        Command::Throughput(args) => throughput::run(args),
        Command::Serve(args) => serve::run(args),
    }
}

/// Reads a length or a number of things, of which there must be some.
fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("expected a whole number of at least 1".into()),
    }
}
