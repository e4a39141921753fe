//! `sconce bench throughput`: many requests at once.

use std::process::ExitCode;
use std::time::Instant;

use sconce::{BeamParams, EngineStatus, GenerationOutput, GenerationRequest, TokenStream};
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
    /// Tokens of each prompt, on average.
    #[arg(long, value_name = "TOKENS", default_value = "256", value_parser = parse_count)]
    pub(super) input_len: usize,
    /// Tokens that each sequence generates, on average.
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse_count)]
    pub(super) output_len: usize,
    /// Lengths are log-normal, the standard deviation of their logarithms being this (conversations: about 1); 0: all are the
    /// same.
    #[arg(long, value_name = "SIGMA", default_value = "0", value_parser = parse_spread)]
    pub(super) spread: f64,
    /// Sequences that are sampled of each prompt.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_count)]
    pub(super) n: usize,
    /// Beams of each prompt, in place of sampling.
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with = "n")]
    pub(super) beam_width: Option<usize>,
    /// Compute the prompts once before, so that what is measured is decoding.
    #[arg(long, conflicts_with = "no_prefix_cache")]
    pub(super) cached_prompts: bool,
    /// Compute the first request once more, alone, and say whether its tokens are the same.
    #[arg(long)]
    pub(super) check_alone: bool,
    #[command(flatten)]
    subject: SubjectArgs,
}

fn parse_spread(text: &str) -> Result<f64, String> {
    let spread = text.parse().ok().filter(|spread: &f64| (0.0..=3.0).contains(spread));
    spread.ok_or_else(|| format!("{text} is not a number from 0 to 3"))
}

impl Args {
    /// Sequences of a prompt.
    fn num_sequences(&self) -> usize {
        self.beam_width.unwrap_or(self.n)
    }

    /// Tokens of each request's prompt and of each of its sequences, which together fit `max_len`.
    fn lengths(&self, subject: &mut Subject, max_len: usize) -> Vec<(usize, usize)> {
        let mut length = |mean: usize| match self.spread {
            0.0 => mean,
            spread => (subject.log_normal(mean as f64, spread).round() as usize).clamp(1, max_len / 2),
        };
        (0..self.num_prompts).map(|_| (length(self.input_len), length(self.output_len))).collect()
    }

    fn with_params(&self, mut request: GenerationRequest, seed: u64) -> GenerationRequest {
        let params = &mut request.params;
        params.n = self.num_sequences();
        params.beam = self.beam_width.map(BeamParams::new);
        if self.n > 1 {
            // Greedy sequences would be one.
            (params.temperature, params.seed) = (1.0, Some(seed));
        }
        request
    }
}

/// What all requests took together.
struct Measured {
    seconds: f64,
    /// Steps of the engine, each of which reads the weights once.
    num_steps: usize,
    num_preemptions: usize,
    /// Tokens of all prompts, and of all sequences.
    prompt_tokens: usize,
    generated_tokens: usize,
    /// Of these, tokens that were multiplied with the layers' weights.
    computed_tokens: usize,
    /// Whether the first request has the same tokens alone, if that was asked for.
    is_same_alone: Option<bool>,
}

/// Runs `sconce bench throughput`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let num_prompts = args.num_prompts;
    let mut subject = args.subject.load(num_prompts, args.cached_prompts)?;
    let (input_len, output_len) = (args.input_len, args.output_len);
    let flags = format!("--input-len {input_len} and --output-len {output_len}");
    subject.check_fits(&flags, input_len.saturating_add(output_len))?;
    let warm_up = subject.request(input_len, 1);
    subject.engine.generate(warm_up)?;
    let max_len = subject.info().max_model_len;
    let lengths = args.lengths(&mut subject, max_len);
    let requests = lengths
        .iter()
        .zip(0..)
        .map(|(&(input_len, output_len), seed)| args.with_params(subject.request(input_len, output_len), seed));
    let requests: Vec<_> = requests.collect();
    if args.cached_prompts {
        answer(&subject, &requests.iter().cloned().map(of_one_token).collect::<Vec<_>>())?;
    }
    let measured = measure(&subject, &args, &lengths, &requests)?;
    subject.measure_peaks_again()?;
    args.subject.print(&to_json(&subject, &args, &measured), &to_text(&subject, &args, &measured))?;
    Ok(ExitCode::SUCCESS)
}

fn of_one_token(mut request: GenerationRequest) -> GenerationRequest {
    (request.params.max_tokens, request.params.n, request.params.beam) = (Some(1), 1, None);
    request
}

/// All at once.
fn answer(subject: &Subject, requests: &[GenerationRequest]) -> Result<Vec<GenerationOutput>, Failure> {
    let counter = progress::counter("requests", requests.len());
    let streams = requests.iter().map(|request| subject.engine.stream(request.clone()));
    let streams = streams.collect::<sconce::Result<Vec<TokenStream>>>()?;
    let collect = |stream: TokenStream| {
        let output = stream.blocking_collect();
        counter.advance();
        output
    };
    Ok(streams.into_iter().map(collect).collect::<sconce::Result<_>>()?)
}

fn measure(
    subject: &Subject,
    args: &Args,
    lengths: &[(usize, usize)],
    requests: &[GenerationRequest],
) -> Result<Measured, Failure> {
    let status = subject.engine.handle().status();
    let counts = || (EngineStatus::get(&status.num_steps), EngineStatus::get(&status.num_preemptions));
    let (start, before) = (Instant::now(), counts());
    let outputs = answer(subject, requests)?;
    let (seconds, after) = (start.elapsed().as_secs_f64(), counts());
    let num_sequences = args.num_sequences();
    for (output, &(input_len, output_len)) in outputs.iter().zip(lengths) {
        // Whole blocks are found, and the last token is computed.
        let least_found = (input_len - 1) / subject.info().block_size * subject.info().block_size;
        let least_found = args.cached_prompts.then_some(least_found);
        check_answer(output, input_len, num_sequences * output_len, least_found)?;
    }
    let sum = |of: fn(&(usize, usize)) -> usize| lengths.iter().map(of).sum::<usize>();
    let (prompt_tokens, sequence_tokens) = (sum(|lens| lens.0), sum(|lens| lens.1));
    let is_same_alone = args.check_alone.then(|| -> Result<bool, Failure> {
        let tokens = |output: &GenerationOutput| output.outputs.iter().map(|o| o.token_ids.clone()).collect::<Vec<_>>();
        Ok(tokens(&subject.engine.generate(requests[0].clone())?) == tokens(&outputs[0]))
    });
    Ok(Measured {
        seconds,
        num_steps: after.0 - before.0,
        num_preemptions: after.1 - before.1,
        prompt_tokens,
        generated_tokens: num_sequences * sequence_tokens,
        // The last token of a sequence is sampled and not computed further.
        computed_tokens: num_sequences * (sequence_tokens - lengths.len())
            + if args.cached_prompts { 0 } else { prompt_tokens },
        is_same_alone: is_same_alone.transpose()?,
    })
}

impl Measured {
    fn reading(&self, subject: &Subject) -> Reading {
        let bytes = subject.info().token_cost.bytes_read as f64 * self.num_steps as f64;
        Reading { gb_per_s: bytes / self.seconds / 1e9 }
    }

    fn multiplying(&self, subject: &Subject) -> Multiplying {
        Multiplying::new(subject.info(), self.computed_tokens, self.generated_tokens, self.seconds)
    }
}

fn to_text(subject: &Subject, args: &Args, measured: &Measured) -> String {
    let Args { num_prompts, input_len, output_len, .. } = *args;
    let rate = |count: usize| figure(count as f64 / measured.seconds);
    let mut table = Table::default();
    table.row(["elapsed", &figure(measured.seconds), "s"]);
    table.row(["requests", &rate(num_prompts), "requests/s"]);
    table.row(["generated", &rate(measured.generated_tokens), "tok/s"]);
    let total = if args.cached_prompts { 0 } else { measured.prompt_tokens } + measured.generated_tokens;
    table.row(["total", &rate(total), "tok/s, prompts among them"]);
    table.row(["steps", &measured.num_steps.to_string(), "of the engine"]);
    if measured.num_preemptions > 0 {
        table.row(["preempted", &measured.num_preemptions.to_string(), "sequences, which were computed again"]);
    }
    if let Some(is_same) = measured.is_same_alone {
        table.row(["alone", if is_same { "same" } else { "different" }, "tokens of the first request"]);
    }
    let sequences = match (args.beam_width, args.n) {
        (Some(width), _) => format!(" in each of {width} beams"),
        (None, 1) => String::new(),
        (None, n) => format!(" in each of {n} sequences"),
    };
    let lengths = if args.spread > 0.0 { " on average" } else { "" };
    let prompts = if args.cached_prompts { ", of prompts computed before" } else { "" };
    format!(
        "{}{num_prompts} requests of {input_len} tokens and {output_len} generated{sequences}{lengths}{prompts}\n\n{table}\n\
         multiplying with weights: {}\n\
         reading weights, if once a step: {}\n\n{}",
        model_line(subject.info(), args.cached_prompts),
        measured.multiplying(subject).text(&subject.peaks),
        measured.reading(subject).text(&subject.peaks),
        peaks_text(subject.info(), &subject.peaks),
    )
}

fn to_json(subject: &Subject, args: &Args, measured: &Measured) -> Value {
    let Args { num_prompts, input_len, output_len, .. } = *args;
    let rate = |count: usize| count as f64 / measured.seconds;
    let mut report = Value::from(model_json("throughput", subject.info(), &subject.peaks));
    let computed_prompts = if args.cached_prompts { 0 } else { measured.prompt_tokens };
    for (key, value) in [
        ("num_prompts", json!(num_prompts)),
        ("input_len", json!(input_len)),
        ("output_len", json!(output_len)),
        ("spread", json!(args.spread)),
        ("n", json!(args.n)),
        ("beam_width", json!(args.beam_width)),
        ("cached_prompts", json!(args.cached_prompts)),
        ("elapsed_s", json!(measured.seconds)),
        ("prompt_tokens", json!(measured.prompt_tokens)),
        ("generated_tokens", json!(measured.generated_tokens)),
        ("requests_per_s", json!(rate(num_prompts))),
        ("generated_tok_per_s", json!(rate(measured.generated_tokens))),
        ("total_tok_per_s", json!(rate(computed_prompts + measured.generated_tokens))),
        ("num_steps", json!(measured.num_steps)),
        ("num_preemptions", json!(measured.num_preemptions)),
        ("is_same_alone", json!(measured.is_same_alone)),
    ] {
        report[key] = value;
    }
    measured.multiplying(subject).add_to(&mut report, &subject.peaks);
    measured.reading(subject).add_to(&mut report, &subject.peaks);
    report
}
