//! `sconce generate`: one prompt, one answer.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Instant;

use sconce::{ChatInput, GenerationOutput, GenerationRequest, StreamEvent};
use serde_json::json;

use super::engine::EngineArgs;
use super::format::FormatArgs;
use super::sampling::SamplingArgs;
use super::shown::Shown;
use super::{Failure, progress};

/// Flags of `sconce generate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The prompt; - reads it from stdin.
    #[arg(value_name = "PROMPT")]
    pub(super) prompt: String,
    /// A GGUF file, a folder, or an id of the Hugging Face hub [default: the starter model].
    #[arg(long, short, value_name = "PATH|ID")]
    pub(super) model: Option<String>,
    /// Print tokens as they come.
    #[arg(long)]
    pub(super) stream: bool,
    /// Apply the model's chat template: the prompt is a message to be answered, rather than text to be continued.
    #[arg(long)]
    pub(super) chat: bool,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Runs `sconce generate`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut prompt = args.prompt;
    if prompt == "-" {
        prompt.clear();
        io::stdin().read_to_string(&mut prompt).map_err(|e| format!("stdin: {e}"))?;
    }
    let request = if args.chat {
        let messages = vec![json!({"role": "user", "content": prompt})];
        GenerationRequest::chat(ChatInput { messages, ..ChatInput::default() })
    } else {
        GenerationRequest::text(prompt)
    };
    let mut request = request.with_params(args.sampling.params());
    request.grammar = args.format.grammar()?;
    request.adapter = args.engine.only_adapter()?;
    let engine = args.engine.load(args.model.as_deref(), progress::progress())?;
    let start = Instant::now();
    if args.chat {
        request.marks = engine.handle().answer_form().marks().clone();
    }
    let mut stream = engine.stream(request)?;
    let mut output = GenerationOutput::new(stream.num_sequences());
    let (mut shown, mut stdout) = (Shown::new(stream.answer_reader().clone()), io::stdout().lock());
    while let Some(event) = stream.blocking_next() {
        let event = event?;
        if let (true, StreamEvent::Token(token)) = (args.stream, &event) {
            shown.push(&token.text, false, &mut stdout)?;
        }
        output.apply(event);
    }
    let rest = if args.stream { String::new() } else { output.outputs.iter().map(|o| o.text.as_str()).collect() };
    shown.push(&rest, true, &mut stdout)?;
    writeln!(stdout)?;
    let (seconds, usage) = (start.elapsed().as_secs_f64(), output.usage);
    eprintln!(
        "{} prompt tokens, {} generated tokens in {seconds:.2} s ({:.1} tokens/s)",
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.completion_tokens as f64 / seconds.max(1e-9)
    );
    Ok(ExitCode::SUCCESS)
}
