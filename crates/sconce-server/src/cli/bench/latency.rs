//! `sconce bench latency`: one request at a time.

use std::process::ExitCode;
use std::time::Instant;

use sconce::{EngineStatus, GenerationOutput, StreamEvent};
use serde_json::{Value, json};

use super::parse_count;
use super::percentiles::Summary;
use super::report::{Multiplying, Reading, Table, figure, model_json, model_line, one_or_list};
use super::roof::{EXPLANATION, Reached, Work};
use super::subject::{Subject, SubjectArgs, check_answer};
use crate::cli::{Failure, progress};

/// Flags of `sconce bench latency`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Tokens of a prompt; several lengths, with commas between them, are measured each.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512", value_parser = parse_count)]
    pub(super) input_len: Vec<usize>,
    /// Tokens decoded.
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse_count)]
    pub(super) output_len: usize,
    /// Tokens of the prompt that is decoded from; with 32, attention costs little. Several lengths are measured each.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "32", value_parser = parse_count)]
    pub(super) decode_after: Vec<usize>,
    /// Rounds that are measured, after one that is not.
    #[arg(long, value_name = "N", default_value = "5", value_parser = parse_count)]
    pub(super) num_iters: usize,
    #[command(flatten)]
    subject: SubjectArgs,
}

/// Seconds of every round.
struct Measured {
    /// For each input length.
    prompts: Vec<Vec<f64>>,
    /// For each length that is decoded after.
    decodes: Vec<Vec<f64>>,
    /// Drafts of all rounds, and how many were right.
    drafts: [usize; 2],
}

/// Runs `sconce bench latency`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut subject = args.subject.load(1, false)?;
    for &len in &args.input_len {
        subject.check_fits(&format!("--input-len {len} and a token generated"), len.saturating_add(1))?;
    }
    for &len in &args.decode_after {
        let flags = format!("--output-len {} after a prompt of {len} and its first token", args.output_len);
        subject.check_fits(&flags, args.output_len.saturating_add(len).saturating_add(1))?;
    }
    let measured = measure(&mut subject, &args)?;
    subject.measure_peaks_again()?;
    args.subject.print(&to_json(&subject, &args, &measured), &to_text(&subject, &args, &measured))?;
    Ok(ExitCode::SUCCESS)
}

/// Rounds in turn, so that what disturbs the machine for a while does not fall on one figure alone.
fn measure(subject: &mut Subject, args: &Args) -> Result<Measured, Failure> {
    let counter = progress::counter("measuring rounds", args.num_iters + 1);
    let [prompts, decodes] = [&args.input_len, &args.decode_after].map(|lens| vec![Vec::new(); lens.len()]);
    let mut measured = Measured { prompts, decodes, drafts: [0; 2] };
    let mut of_warm_up = [0; 2];
    for round in 0..=args.num_iters {
        let is_warm_up = round == 0;
        for (&len, seconds) in args.input_len.iter().zip(&mut measured.prompts) {
            let taken = prompt_seconds(subject, len)?;
            seconds.extend((!is_warm_up).then_some(taken));
        }
        for (&len, seconds) in args.decode_after.iter().zip(&mut measured.decodes) {
            let taken = decode_seconds(subject, len, args.output_len)?;
            seconds.extend((!is_warm_up).then_some(taken));
        }
        if is_warm_up {
            of_warm_up = drafts(subject);
        }
        counter.advance();
    }
    let in_all = drafts(subject);
    measured.drafts = std::array::from_fn(|idx| in_all[idx] - of_warm_up[idx]);
    Ok(measured)
}

/// From the request to its only token.
fn prompt_seconds(subject: &mut Subject, input_len: usize) -> Result<f64, Failure> {
    let request = subject.request(input_len, 1);
    let start = Instant::now();
    let output = subject.engine.generate(request)?;
    let seconds = start.elapsed().as_secs_f64();
    check_answer(&output, input_len, 1, None)?;
    Ok(seconds)
}

/// From the first token, which the prompt's step gives, over `output_len` more to the last.
fn decode_seconds(subject: &mut Subject, input_len: usize, output_len: usize) -> Result<f64, Failure> {
    let num_tokens = output_len + 1;
    let request = subject.request(input_len, num_tokens);
    let mut stream = subject.engine.stream(request)?;
    let mut output = GenerationOutput::new(1);
    let (mut first, mut last) = (None, Instant::now());
    while let Some(event) = stream.blocking_next() {
        let event = event?;
        if matches!(event, StreamEvent::Token(_)) {
            last = Instant::now();
            first.get_or_insert(last);
        }
        output.apply(event);
    }
    check_answer(&output, input_len, num_tokens, None)?;
    Ok(first.map_or(0.0, |first| (last - first).as_secs_f64()).max(1e-9))
}

/// Tokens a second of each round, in few figures.
fn rates(num_tokens: usize, seconds: &[f64]) -> Summary {
    let rates = seconds.iter().map(|seconds| num_tokens as f64 / seconds).collect();
    Summary::new(rates).expect("invariant: there is at least one round")
}

fn reading(subject: &Subject, tok_per_s: f64) -> Reading {
    Reading { gb_per_s: subject.info().token_cost.bytes_read as f64 * tok_per_s / 1e9 }
}

fn multiplying(subject: &Subject, input_len: usize, tok_per_s: f64) -> Multiplying {
    Multiplying::new(subject.info(), input_len, 1, input_len as f64 / tok_per_s)
}

/// A whole prompt and its token.
fn prompt_reached(subject: &Subject, len: usize, tok_per_s: f64) -> Reached {
    let info = subject.info();
    Reached::new(Work::weights(info, 1, len, 1) + Work::prompt(info, len), len as f64 / tok_per_s)
}

/// All of the tokens behind the first.
fn decode_reached(subject: &Subject, input_len: usize, num: usize, tok_per_s: f64) -> Reached {
    let info = subject.info();
    let work = Work::weights(info, num, num, num) + Work::decoding(info, input_len, 1..num + 1, 1);
    Reached::new(work, num as f64 / tok_per_s)
}

fn to_text(subject: &Subject, args: &Args, measured: &Measured) -> String {
    let mut table = Table::default();
    table.row(["tok/s", "median", "least", "most", "ms", "reached"]);
    let cells = |rates: Summary| [rates.p50, rates.min, rates.max].map(figure);
    for (&len, seconds) in args.input_len.iter().zip(&measured.prompts) {
        let rates = rates(len, seconds);
        let [p50, min, max] = cells(rates);
        let peaks = &subject.peaks;
        let (weights, all) = (multiplying(subject, len, rates.p50), prompt_reached(subject, len, rates.p50));
        let reached = format!("{}; {}", weights.text(peaks), all.text(peaks));
        let ms = figure(1e3 * len as f64 / rates.p50);
        table.row([&format!("prompt of {len}"), &p50, &min, &max, &ms, &reached]);
    }
    for (&len, seconds) in args.decode_after.iter().zip(&measured.decodes) {
        let rates = rates(args.output_len, seconds);
        let [p50, min, max] = cells(rates);
        let peaks = &subject.peaks;
        let (weights, all) = (reading(subject, rates.p50), decode_reached(subject, len, args.output_len, rates.p50));
        let reached = format!("{}; {}", weights.text(peaks), all.text(peaks));
        let ms = format!("{}/token", figure(1e3 / rates.p50));
        table.row([&format!("decode of {} after {len}", args.output_len), &p50, &min, &max, &ms, &reached]);
    }
    let rounds = if args.num_iters == 1 { "one round".to_owned() } else { format!("{} rounds", args.num_iters) };
    let drafts = match measured.drafts {
        [0, _] => String::new(),
        [num_drafts, num_accepted] => format!("; {num_accepted} of {num_drafts} drafts were right"),
    };
    let (model, peaks) = (model_line(subject.info(), false), subject.peaks_text());
    format!("{model}{rounds} after a warm-up{drafts}\n\n{table}\n{peaks}{EXPLANATION}")
}

/// Drafts so far, and how many were right.
fn drafts(subject: &Subject) -> [usize; 2] {
    let status = subject.engine.handle().status();
    [&status.num_draft_tokens, &status.num_accepted_tokens].map(EngineStatus::get)
}

fn to_json(subject: &Subject, args: &Args, measured: &Measured) -> Value {
    let of_rates = |rates: Summary| {
        json!({
            "tok_per_s": rates.p50,
            "least_tok_per_s": rates.min,
            "most_tok_per_s": rates.max,
        })
    };
    let prompt = |(&len, seconds): (&usize, &Vec<f64>)| {
        let rates = rates(len, seconds);
        let mut report = of_rates(rates);
        report["input_len"] = json!(len);
        report["ms"] = json!(1e3 * len as f64 / rates.p50);
        multiplying(subject, len, rates.p50).add_to(&mut report, &subject.peaks);
        report["roof"] = prompt_reached(subject, len, rates.p50).to_json(&subject.peaks);
        report
    };
    let decode = |(&len, seconds): (&usize, &Vec<f64>)| {
        let rates = rates(args.output_len, seconds);
        let mut report = of_rates(rates);
        report["input_len"] = json!(len);
        report["output_len"] = json!(args.output_len);
        report["ms_per_token"] = json!(1e3 / rates.p50);
        reading(subject, rates.p50).add_to(&mut report, &subject.peaks);
        report["roof"] = decode_reached(subject, len, args.output_len, rates.p50).to_json(&subject.peaks);
        report
    };
    let decodes = args.decode_after.iter().zip(&measured.decodes).map(decode).collect();
    let mut report = model_json("latency", subject.info(), &subject.peaks);
    report.insert("num_iters".into(), json!(args.num_iters));
    let [num_drafts, num_accepted] = measured.drafts;
    report.insert("draft_tokens".into(), json!(num_drafts));
    report.insert("accepted_tokens".into(), json!(num_accepted));
    report.insert("prompt".into(), args.input_len.iter().zip(&measured.prompts).map(prompt).collect());
    report.insert("decode".into(), one_or_list(decodes));
    report.into()
}
