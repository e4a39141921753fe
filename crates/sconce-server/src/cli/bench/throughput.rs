//! `sconce bench throughput`: many requests at once.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sconce::{BeamParams, EngineStatus, GenerationOutput, GenerationRequest};
use serde_json::{Value, json};

use super::lengths::LengthArgs;
use super::parse_count;
use super::report::{Multiplying, Reading, Table, figure, model_json, model_line};
use super::roof::{EXPLANATION, Reached, Work};
use super::subject::{Subject, SubjectArgs, check_answer};
use super::together::{Steady, answer};
use crate::cli::Failure;

/// Flags of `sconce bench throughput`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Requests, all sent at once; several numbers, with commas between them, are measured each, with prompts that begin alike.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "32", value_parser = parse_count)]
    pub(super) num_prompts: Vec<usize>,
    /// Tokens of each prompt, on average.
    #[arg(long, value_name = "TOKENS", default_value = "256", value_parser = parse_count)]
    pub(super) input_len: usize,
    /// Tokens that each sequence generates, on average.
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse_count)]
    pub(super) output_len: usize,
    #[command(flatten)]
    pub(super) lengths: LengthArgs,
    /// Sequences that are sampled of each prompt.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_count)]
    pub(super) n: usize,
    /// What sequences are drawn with, from 0 to 2; 0: the likeliest tokens are taken [default: 0, or 1 where --n is above 1].
    #[arg(long, value_name = "T", value_parser = parse_temperature, conflicts_with = "beam_width")]
    pub(super) temperature: Option<f32>,
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
    pub(super) subject: SubjectArgs,
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    let temperature = text.parse().ok().filter(|temperature: &f32| (0.0..=2.0).contains(temperature));
    temperature.ok_or_else(|| format!("{text} is not a number from 0 to 2"))
}

impl Args {
    /// Sequences of a prompt.
    pub(super) fn num_sequences(&self) -> usize {
        self.beam_width.unwrap_or(self.n)
    }

    /// Greedy sequences of one prompt would be one.
    fn temperature(&self) -> f32 {
        self.temperature.unwrap_or(if self.n > 1 { 1.0 } else { 0.0 })
    }

    pub(super) fn with_params(&self, mut request: GenerationRequest, seed: u64) -> GenerationRequest {
        let params = &mut request.params;
        params.n = self.num_sequences();
        params.beam = self.beam_width.map(BeamParams::new);
        params.temperature = self.temperature();
        params.seed = (params.temperature > 0.0).then_some(seed);
        request
    }
}

/// What so many requests took together.
struct Measured {
    num_prompts: usize,
    seconds: f64,
    /// Steps of the engine, each of which reads the weights once.
    num_steps: usize,
    num_preemptions: usize,
    /// Tokens of all prompts, and of all sequences.
    prompt_tokens: usize,
    generated_tokens: usize,
    /// Of these, tokens that were multiplied with the layers' weights.
    computed_tokens: usize,
    /// Most tokens that the KV blocks in use at once have room for.
    peak_kv_tokens: usize,
    /// What all steps had to do.
    work: Work,
    decoding: Option<Decoding>,
    /// Whether the first request has the same tokens alone, if that was asked for.
    is_same_alone: Option<bool>,
}

/// Steps in which all sequences decode, and what they had to do.
struct Decoding {
    num_sequences: usize,
    num_steps: usize,
    seconds: f64,
    work: Work,
}

/// Runs `sconce bench throughput`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    if args.n > 1 && args.temperature() == 0.0 {
        return Err(format!("--temperature 0: the {} sequences of --n would be the same", args.n).into());
    }
    let most = args.num_prompts.iter().copied().max().unwrap_or(0);
    let mut subject = args.subject.load(most, args.cached_prompts)?;
    let (input_len, output_len) = (args.input_len, args.output_len);
    let flags = format!("--input-len {input_len} and --output-len {output_len}");
    subject.check_fits(&flags, input_len.saturating_add(output_len))?;
    let runs = args.num_prompts.iter().map(|&num_prompts| run_one(&mut subject, &args, num_prompts));
    let runs = runs.collect::<Result<Vec<Measured>, Failure>>()?;
    subject.measure_peaks_again()?;
    let texts: Vec<String> = runs.iter().map(|measured| to_text(&subject, &args, measured)).collect();
    let mut reports: Vec<Value> = runs.iter().map(|measured| to_json(&subject, &args, measured)).collect();
    let report = if reports.len() == 1 { reports.remove(0) } else { json!({ "runs": reports }) };
    let text = format!("{}\n{}{EXPLANATION}", texts.join("\n"), subject.peaks_text());
    args.subject.print(&report, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the requests, does once what is not measured, and measures them.
fn run_one(subject: &mut Subject, args: &Args, num_prompts: usize) -> Result<Measured, Failure> {
    subject.begin_anew();
    let warm_up = subject.request(args.input_len, 1);
    subject.engine.generate(warm_up)?;
    let means = [args.input_len, args.output_len];
    let limit = subject.info().max_model_len / 2;
    let lengths = args.lengths.lengths(args.subject.seed, num_prompts, means, limit);
    let requests = lengths
        .iter()
        .zip(0..)
        .map(|(&[input_len, output_len], seed)| args.with_params(subject.request(input_len, output_len), seed));
    let requests: Vec<_> = requests.collect();
    if args.cached_prompts {
        answer(subject, &requests.iter().cloned().map(of_one_token).collect::<Vec<_>>())?;
    }
    measure(subject, args, &lengths, &requests)
}

fn of_one_token(mut request: GenerationRequest) -> GenerationRequest {
    (request.params.max_tokens, request.params.n, request.params.beam) = (Some(1), 1, None);
    request
}

fn measure(
    subject: &Subject,
    args: &Args,
    lengths: &[[usize; 2]],
    requests: &[GenerationRequest],
) -> Result<Measured, Failure> {
    let status = subject.engine.handle().status();
    let counts = || [&status.num_steps, &status.num_preemptions, &status.num_draft_tokens].map(EngineStatus::get);
    status.peak_used_blocks.store(0, Ordering::Relaxed);
    let (start, before) = (Instant::now(), counts());
    let (outputs, steady) = answer(subject, requests)?;
    let (seconds, after) = (start.elapsed().as_secs_f64(), counts());
    let [num_steps, num_preemptions, num_drafts] = std::array::from_fn(|idx| after[idx] - before[idx]);
    let peak_kv_tokens = subject.info().kv_tokens(EngineStatus::get(&status.peak_used_blocks));
    let num_sequences = args.num_sequences();
    for (output, &[input_len, output_len]) in outputs.iter().zip(lengths) {
        // Whole blocks are found, and the last token is computed.
        let least_found = (input_len - 1) / subject.info().layers.prefix_unit() * subject.info().layers.prefix_unit();
        let least_found = args.cached_prompts.then_some(least_found);
        check_answer(output, input_len, num_sequences * output_len, least_found)?;
    }
    let is_same_alone = args.check_alone.then(|| -> Result<bool, Failure> {
        let tokens = |output: &GenerationOutput| output.outputs.iter().map(|o| o.token_ids.clone()).collect::<Vec<_>>();
        Ok(tokens(&subject.engine.generate(requests[0].clone())?) == tokens(&outputs[0]))
    });
    let [prompt_tokens, sequence_tokens] = [0, 1].map(|idx| lengths.iter().map(|lens| lens[idx]).sum::<usize>());
    let generated_tokens = num_sequences * sequence_tokens;
    // The last token of a sequence is sampled and not computed further.
    let computed_tokens =
        num_sequences * (sequence_tokens - lengths.len()) + if args.cached_prompts { 0 } else { prompt_tokens };
    let info = subject.info();
    let attention = |&[input_len, output_len]: &[usize; 2]| {
        let prompt = if args.cached_prompts { Work::default() } else { Work::prompt(info, input_len) };
        prompt + Work::decoding(info, input_len, 1..output_len, num_sequences)
    };
    // A sequence that was computed again decodes for another; drafts make more than a token a step.
    let steady = steady.filter(|_| num_preemptions == 0 && num_drafts == 0);
    Ok(Measured {
        num_prompts: lengths.len(),
        seconds,
        num_steps,
        num_preemptions,
        prompt_tokens,
        generated_tokens,
        computed_tokens,
        peak_kv_tokens,
        work: Work::weights(info, num_steps, computed_tokens, generated_tokens) + lengths.iter().map(attention).sum(),
        decoding: steady.map(|steady| Decoding::new(subject, steady, lengths, num_sequences)),
        is_same_alone: is_same_alone.transpose()?,
    })
}

impl Decoding {
    fn new(subject: &Subject, steady: Steady, lengths: &[[usize; 2]], num_sequences: usize) -> Self {
        let (info, num_steps) = (subject.info(), steady.tokens.len());
        let num_rows = num_sequences * lengths.len();
        let attention = lengths.iter().map(|lens| Work::decoding(info, lens[0], steady.tokens.clone(), num_sequences));
        let work = Work::weights(info, num_steps, num_rows * num_steps, num_rows * num_steps) + attention.sum();
        Self { num_sequences: num_rows, num_steps, seconds: steady.seconds, work }
    }

    fn ms_per_step(&self) -> f64 {
        1e3 * self.seconds / self.num_steps as f64
    }

    fn tok_per_s(&self) -> f64 {
        (self.num_sequences * self.num_steps) as f64 / self.seconds
    }

    fn reached(&self) -> Reached {
        Reached::new(self.work, self.seconds)
    }
}

impl Measured {
    fn reading(&self, subject: &Subject) -> Reading {
        let bytes = subject.info().token_cost.bytes_read as f64 * self.num_steps as f64;
        Reading { gb_per_s: bytes / self.seconds / 1e9 }
    }

    fn multiplying(&self, subject: &Subject) -> Multiplying {
        Multiplying::new(subject.info(), self.computed_tokens, self.generated_tokens, self.seconds)
    }

    fn reached(&self) -> Reached {
        Reached::new(self.work, self.seconds)
    }
}

fn to_text(subject: &Subject, args: &Args, measured: &Measured) -> String {
    let (Args { input_len, output_len, .. }, num_prompts) = (args, measured.num_prompts);
    let rate = |count: usize| figure(count as f64 / measured.seconds);
    let mut table = Table::default();
    table.row(["elapsed", &figure(measured.seconds), "s"]);
    table.row(["requests", &rate(num_prompts), "requests/s"]);
    table.row(["generated", &rate(measured.generated_tokens), "tok/s"]);
    let total = if args.cached_prompts { 0 } else { measured.prompt_tokens } + measured.generated_tokens;
    table.row(["total", &rate(total), "tok/s, prompts among them"]);
    table.row(["steps", &measured.num_steps.to_string(), "of the engine"]);
    table.row(["KV cache", &measured.peak_kv_tokens.to_string(), "tokens at most"]);
    if measured.num_preemptions > 0 {
        table.row(["preempted", &measured.num_preemptions.to_string(), "sequences, which were computed again"]);
    }
    if let Some(is_same) = measured.is_same_alone {
        table.row(["alone", if is_same { "same" } else { "different" }, "tokens of the first request"]);
    }
    let peaks = &subject.peaks;
    let decoding = measured.decoding.as_ref().map_or(String::new(), |decoding| {
        let (ms, rate) = (figure(decoding.ms_per_step()), figure(decoding.tok_per_s()));
        let (num_steps, reached) = (decoding.num_steps, decoding.reached().text(peaks));
        format!("while all decode, {num_steps} steps: {ms} ms/step, {rate} tok/s, {reached}\n")
    });
    let sequences = match (args.beam_width, args.n) {
        (Some(width), _) => format!(" in each of {width} beams"),
        (None, 1) => String::new(),
        (None, n) => format!(" in each of {n} sequences"),
    };
    let lengths = if args.lengths.spread > 0.0 { " on average" } else { "" };
    let prompts = if args.cached_prompts { ", of prompts computed before" } else { "" };
    format!(
        "{}{num_prompts} requests of {input_len} tokens and {output_len} generated{sequences}{lengths}{prompts}\n\n{table}\n\
         multiplying with weights: {}\n\
         reading weights, if once a step: {}\n\
         all: {}\n{decoding}",
        model_line(subject.info(), args.cached_prompts),
        measured.multiplying(subject).text(peaks),
        measured.reading(subject).text(peaks),
        measured.reached().text(peaks),
    )
}

fn to_json(subject: &Subject, args: &Args, measured: &Measured) -> Value {
    let num_prompts = measured.num_prompts;
    let rate = |count: usize| count as f64 / measured.seconds;
    let mut report = Value::from(model_json("throughput", subject.info(), &subject.peaks));
    let computed_prompts = if args.cached_prompts { 0 } else { measured.prompt_tokens };
    let decoding = measured.decoding.as_ref().map(|decoding| {
        json!({
            "num_sequences": decoding.num_sequences,
            "num_steps": decoding.num_steps,
            "ms_per_step": decoding.ms_per_step(),
            "tok_per_s": decoding.tok_per_s(),
            "roof": decoding.reached().to_json(&subject.peaks),
        })
    });
    for (key, value) in [
        ("num_prompts", json!(num_prompts)),
        ("input_len", json!(args.input_len)),
        ("output_len", json!(args.output_len)),
        ("spread", json!(args.lengths.spread)),
        ("n", json!(args.n)),
        ("temperature", json!(args.temperature())),
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
        ("peak_kv_tokens", json!(measured.peak_kv_tokens)),
        ("decoding", json!(decoding)),
        ("roof", measured.reached().to_json(&subject.peaks)),
        ("is_same_alone", json!(measured.is_same_alone)),
    ] {
        report[key] = value;
    }
    measured.multiplying(subject).add_to(&mut report, &subject.peaks);
    measured.reading(subject).add_to(&mut report, &subject.peaks);
    report
}
