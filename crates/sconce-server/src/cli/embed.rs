//! `sconce embed`: a vector for each text.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use sconce::EmbeddingRequest;
use serde_json::json;

use super::engine::EngineArgs;
use super::{Failure, progress};

/// Flags of `sconce embed`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The texts; - reads one from each line of stdin.
    #[arg(value_name = "TEXT", required = true)]
    texts: Vec<String>,
    /// A GGUF file, a folder, or an id of the Hugging Face hub [default: the starter model].
    #[arg(long, short, value_name = "PATH|ID")]
    model: Option<String>,
    /// Keep so many first numbers of each vector, where the model is trained for that.
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Runs `sconce embed`: a line of JSON for each text, in their order.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut texts = args.texts;
    if texts == ["-"] {
        let mut lines = String::new();
        io::stdin().read_to_string(&mut lines).map_err(|e| format!("stdin: {e}"))?;
        texts = lines.lines().map(str::to_owned).collect();
    }
    let mut request = EmbeddingRequest::texts(&texts);
    request.dimensions = args.dimensions;
    request.adapter = args.engine.only_adapter()?;
    let output = args.engine.load(args.model.as_deref(), progress::progress())?.embed(request)?;
    let mut stdout = io::stdout().lock();
    for (text, vector) in texts.iter().zip(&output.embeddings) {
        writeln!(stdout, "{{\"text\":{},\"embedding\":{}}}", json!(text), serde_json::to_string(vector)?)?;
    }
    Ok(ExitCode::SUCCESS)
}
