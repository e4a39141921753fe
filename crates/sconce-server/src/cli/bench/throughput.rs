//! `sconce bench throughput`: many requests at once.

use std::process::ExitCode;
use std::time::Instant;

use sconce::{EngineStatus, GenerationRequest, TokenStream};
use serde_json::{Value, json};

use super::parse_count;
use super::report::{Multiplying, Reading, Table, figure, model_json, model_line, peaks_text};
use super::subject::{Subject, SubjectArgs, check_answer};
use crate::cli::{Failure, progress};

/// Flags of `sconce bench throughput`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Requests, all sent at once.
    #[arg(long, value_name = "N", default_value = "32", value_parser = parse_count)]
    pub(super) num_prompts: usize,
    /// Tokens of each prompt.
    #[arg(long, value_name = "TOKENS", default_value = "256", value_parser = parse_count)]
    pub(super) input_len: usize,
    /// Tokens that each request generates.
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse_count)]
    pub(super) output_len: usize,
    #[command(flatten)]
    subject: SubjectArgs,
}

/// What all requests took together.
struct Measured {
    seconds: f64,
    /// Steps of the engine, each of which reads the weights once.
    num_steps: usize,
    num_preemptions: usize,
}

/// Runs `sconce bench throughput`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut subject = args.subject.load(args.num_prompts)?;
    let (input_len, output_len) = (args.input_len, args.output_len);
    let flags = format!("--input-len {input_len} and --output-len {output_len}");
    subject.check_fits(&flags, input_len.saturating_add(output_len))?;
    let warm_up = subject.request(input_len, 1);
    subject.engine.generate(warm_up)?;
    let requests: Vec<_> = (0..args.num_prompts).map(|_| subject.request(input_len, output_len)).collect();
    let measured = measure(&subject, &args, requests)?;
    subject.measure_peaks_again()?;
    args.subject.print(&to_json(&subject, &args, &measured), &to_text(&subject, &args, &measured))?;
    Ok(ExitCode::SUCCESS)
}

fn measure(subject: &Subject, args: &Args, requests: Vec<GenerationRequest>) -> Result<Measured, Failure> {
    let counter = progress::counter("requests", requests.len());
    let status = subject.engine.handle().status();
    let counts = || (EngineStatus::get(&status.num_steps), EngineStatus::get(&status.num_preemptions));
    let (start, before) = (Instant::now(), counts());
    let streams = requests.into_iter().map(|request| subject.engine.stream(request));
    let streams = streams.collect::<sconce::Result<Vec<TokenStream>>>()?;
    for stream in streams {
        let output = stream.blocking_collect()?;
        check_answer(&output, args.input_len, args.output_len)?;
        counter.advance();
    }
    let (seconds, after) = (start.elapsed().as_secs_f64(), counts());
    Ok(Measured { seconds, num_steps: after.0 - before.0, num_preemptions: after.1 - before.1 })
}

impl Measured {
    fn reading(&self, subject: &Subject) -> Reading {
        let bytes = subject.info().token_cost.bytes_read as f64 * self.num_steps as f64;
        Reading { gb_per_s: bytes / self.seconds / 1e9 }
    }

    /// The last token of a sequence is sampled and not computed further.
    fn multiplying(&self, subject: &Subject, args: &Args) -> Multiplying {
        let (num_tokens, num_sampled) = (args.input_len + args.output_len - 1, args.output_len);
        let n = args.num_prompts;
        Multiplying::new(subject.info(), n * num_tokens, n * num_sampled, self.seconds)
    }
}

fn to_text(subject: &Subject, args: &Args, measured: &Measured) -> String {
    let Args { num_prompts, input_len, output_len, .. } = *args;
    let rate = |count: usize| figure(count as f64 / measured.seconds);
    let mut table = Table::default();
    table.row(["elapsed", &figure(measured.seconds), "s"]);
    table.row(["requests", &rate(num_prompts), "requests/s"]);
    table.row(["generated", &rate(num_prompts * output_len), "tok/s"]);
    table.row(["total", &rate(num_prompts * (input_len + output_len)), "tok/s, prompts among them"]);
    table.row(["steps", &measured.num_steps.to_string(), "of the engine"]);
    if measured.num_preemptions > 0 {
        table.row(["preempted", &measured.num_preemptions.to_string(), "sequences, which were computed again"]);
    }
    format!(
        "{}{num_prompts} requests of {input_len} tokens and {output_len} generated\n\n{table}\n\
         multiplying with weights: {}\n\
         reading weights, if once a step: {}\n\n{}",
        model_line(subject.info()),
        measured.multiplying(subject, args).text(&subject.peaks),
        measured.reading(subject).text(&subject.peaks),
        peaks_text(subject.info(), &subject.peaks),
    )
}

fn to_json(subject: &Subject, args: &Args, measured: &Measured) -> Value {
    let Args { num_prompts, input_len, output_len, .. } = *args;
    let rate = |count: usize| count as f64 / measured.seconds;
    let mut report = Value::from(model_json("throughput", subject.info(), &subject.peaks));
    for (key, value) in [
        ("num_prompts", json!(num_prompts)),
        ("input_len", json!(input_len)),
        ("output_len", json!(output_len)),
        ("elapsed_s", json!(measured.seconds)),
        ("prompt_tokens", json!(num_prompts * input_len)),
        ("generated_tokens", json!(num_prompts * output_len)),
        ("requests_per_s", json!(rate(num_prompts))),
        ("generated_tok_per_s", json!(rate(num_prompts * output_len))),
        ("total_tok_per_s", json!(rate(num_prompts * (input_len + output_len)))),
        ("num_steps", json!(measured.num_steps)),
        ("num_preemptions", json!(measured.num_preemptions)),
    ] {
        report[key] = value;
    }
    measured.multiplying(subject, args).add_to(&mut report, &subject.peaks);
    measured.reading(subject).add_to(&mut report, &subject.peaks);
    report
}
