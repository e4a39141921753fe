//! The command line. The only part of the crate that prints.
#![allow(clippy::print_stderr)]

mod bench;
mod chat;
mod devices;
mod embed;
mod engine;
mod format;
mod generate;
mod inspect;
mod log;
mod progress;
mod pull;
mod sampling;
mod serve;
mod shown;
mod size;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Serve and run large language models.
#[derive(Debug, Parser)]
#[command(name = "sconce", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over HTTP, with OpenAI's API and vLLM's /generate.
    Serve(serve::Args),
    /// Continue a prompt, or answer a question with --chat.
    Generate(generate::Args),
    /// Print a vector for each text, as lines of JSON.
    Embed(embed::Args),
    /// Talk with a model in the terminal.
    Chat(chat::Args),
    /// Say what a model is, what it needs, and whether it can run, without loading it.
    Inspect(inspect::Args),
    /// List what models can run on here, and where there is no GPU, say why.
    Devices(devices::Args),
    /// Measure a model, or a server.
    Bench(bench::Args),
    /// Bring a model from the Hugging Face hub into the cache.
    Pull(pull::Args),
}

/// A command's error, as its user reads it.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    log::init(match &cli.command {
        Command::Serve(_) => "info",
        _ => "warn",
    });
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Pull(args) => pull::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}
