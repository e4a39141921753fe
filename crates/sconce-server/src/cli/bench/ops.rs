//! `sconce bench ops`: each operation of the model by itself.

use std::process::ExitCode;

use sconce::{OpProfile, OpTime, StepShape, StreamEvent, TokenStream};
use serde_json::{Value, json};

use super::parse_count;
use super::report::{Table, figure, model_json, model_line, percent};
use super::subject::{Subject, SubjectArgs};
use crate::cli::{Failure, progress};

/// Flags of `sconce bench ops`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Tokens of the prompt that is timed.
    #[arg(long, value_name = "TOKENS", default_value = "512", value_parser = parse_count)]
    input_len: usize,
    /// Tokens that each sequence decodes.
    #[arg(long, value_name = "TOKENS", default_value = "64", value_parser = parse_count)]
    output_len: usize,
    /// Tokens of the prompts that are decoded from.
    #[arg(long, value_name = "TOKENS", default_value = "32", value_parser = parse_count)]
    decode_after: usize,
    /// Sequences that decode at once.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_count)]
    batch_size: usize,
    /// Rounds that are timed, after one that is not.
    #[arg(long, value_name = "N", default_value = "3", value_parser = parse_count)]
    num_iters: usize,
    #[command(flatten)]
    subject: SubjectArgs,
}

/// What was timed of one kind of work.
struct Part {
    name: String,
    /// Milliseconds of all rounds are divided by this.
    num_steps: usize,
    /// Times between operations among them.
    ops: Vec<OpTime>,
}

/// Runs `sconce bench ops`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let num_seqs = args.batch_size;
    let check = |most: usize| match num_seqs > most {
        true => Err(Failure::from(format!("--batch-size {num_seqs} is more than --max-num-seqs {most}"))),
        false => Ok(()),
    };
    // Where it is known, before anything is read.
    args.subject.max_num_seqs().map_or(Ok(()), check)?;
    let mut subject = args.subject.load_profiled(num_seqs)?;
    check(subject.info().max_num_seqs)?;
    subject.check_fits(
        &format!("--input-len {} and a token generated", args.input_len),
        args.input_len.saturating_add(1),
    )?;
    let decode_len = args.output_len.saturating_add(args.decode_after).saturating_add(1);
    subject.check_fits(
        &format!("--output-len {} after a prompt of {} and its first token", args.output_len, args.decode_after),
        decode_len,
    )?;
    let counter = progress::counter("timing rounds", args.num_iters + 1);
    let [mut prompt, mut decode] = [Vec::new(), Vec::new()];
    for round in 0..=args.num_iters {
        let ops = [time_prompt(&mut subject, &args)?, time_decode(&mut subject, &args)?];
        if round > 0 {
            let [of_prompt, of_decode] = ops;
            of_prompt.into_iter().for_each(|op| op.add_to(&mut prompt));
            of_decode.into_iter().for_each(|op| op.add_to(&mut decode));
        }
        counter.advance();
    }
    subject.measure_peaks_again()?;
    let num_decodes = decode.iter().find(|op| op.op == "sample").map_or(0, |op| op.num_calls);
    if num_decodes == 0 {
        let (len, num_seqs) = (args.output_len, args.batch_size);
        let message = format!("--output-len {len} is too short: {num_seqs} sequences were never all decoding at once");
        return Err(message.into());
    }
    let name = format!("decode of {} after {}, {} at once", args.output_len, args.decode_after, args.batch_size);
    let parts = [
        Part::new(format!("prompt of {}", args.input_len), args.num_iters, prompt),
        Part::new(name, num_decodes, decode),
    ];
    args.subject.print(&to_json(&subject, &parts), &to_text(&subject, &parts))?;
    Ok(ExitCode::SUCCESS)
}

fn profile(subject: &Subject) -> &OpProfile {
    subject.engine.handle().op_profile().expect("invariant: the engine was loaded with its operations timed")
}

fn time_prompt(subject: &mut Subject, args: &Args) -> Result<Vec<OpTime>, Failure> {
    let request = subject.request(args.input_len, 1);
    profile(subject).take();
    subject.engine.generate(request)?;
    Ok(profile(subject).take())
}

/// The steps in which every sequence decodes. Those before, with prompts or fewer sequences, are left out.
fn time_decode(subject: &mut Subject, args: &Args) -> Result<Vec<OpTime>, Failure> {
    let mut streams = Vec::new();
    for _ in 0..args.batch_size {
        let request = subject.request(args.decode_after, args.output_len + 1);
        streams.push(subject.engine.stream(request)?);
    }
    for stream in &mut streams {
        while next(stream)?.is_some() {}
    }
    let decode = StepShape { num_seqs: args.batch_size, num_tokens: args.batch_size };
    Ok(profile(subject).take().into_iter().filter(|op| op.step == decode).collect())
}

fn next(stream: &mut TokenStream) -> Result<Option<StreamEvent>, Failure> {
    Ok(stream.blocking_next().transpose()?)
}

impl Part {
    /// The sum over its steps, in order of time.
    fn new(name: String, num_steps: usize, ops: Vec<OpTime>) -> Self {
        let mut sum = Vec::new();
        let any = StepShape::default();
        ops.into_iter().for_each(|op| OpTime { step: any, ..op }.add_to(&mut sum));
        sum.sort_by_key(|op| std::cmp::Reverse(op.time));
        Self { name, num_steps, ops: sum }
    }

    /// Seconds of all.
    fn seconds(&self) -> f64 {
        self.ops.iter().map(|op| op.time.as_secs_f64()).sum()
    }

    fn ms(&self, seconds: f64) -> f64 {
        1e3 * seconds / self.num_steps as f64
    }
}

fn name(op: &OpTime) -> String {
    op.weight.map_or_else(|| op.op.to_owned(), |[rows, cols]| format!("{} {rows} x {cols}", op.op))
}

/// 10^9 a second.
fn rate(count: u64, op: &OpTime) -> f64 {
    count as f64 / op.time.as_secs_f64().max(1e-12) / 1e9
}

fn to_text(subject: &Subject, parts: &[Part]) -> String {
    let peaks = &subject.peaks;
    let mut text = model_line(subject.info(), false);
    for part in parts {
        let mut table = Table::default();
        table.row([&part.name, "ms", "share", "calls", "us each", "GB/s", "of DRAM", "GFLOP/s"]);
        for op in &part.ops {
            let seconds = op.time.as_secs_f64();
            let [mut gb, mut of_dram, mut flops] = ["-"; 3].map(str::to_owned);
            if op.products > 0 {
                let gb_per_s = rate(op.weight_bytes, op);
                (gb, of_dram) = (figure(gb_per_s), percent(gb_per_s, peaks.dram_read_gb_per_s));
                flops = figure(rate(2 * op.products, op));
            }
            let calls = figure(op.num_calls as f64 / part.num_steps as f64);
            let each = figure(1e6 * seconds / op.num_calls as f64);
            let share = percent(seconds, part.seconds());
            table.row([&name(op), &figure(part.ms(seconds)), &share, &calls, &each, &gb, &of_dram, &flops]);
        }
        table.row(["all", &figure(part.ms(part.seconds())), "100 %", "-", "-", "-", "-", "-"]);
        text += &format!("\n{table}");
    }
    format!("{text}\n{}", subject.peaks_text())
}

fn to_json(subject: &Subject, parts: &[Part]) -> Value {
    let op = |part: &Part, op: &OpTime| {
        json!({
            "op": op.op,
            "weight": op.weight,
            "ms": part.ms(op.time.as_secs_f64()),
            "num_calls": op.num_calls as f64 / part.num_steps as f64,
            "weight_gb_per_s": (op.products > 0).then(|| rate(op.weight_bytes, op)),
            "gflop_per_s": (op.products > 0).then(|| rate(2 * op.products, op)),
        })
    };
    let part = |part: &Part| {
        json!({
            "work": part.name,
            "ms": part.ms(part.seconds()),
            "ops": part.ops.iter().map(|of| op(part, of)).collect::<Value>(),
        })
    };
    let mut report = model_json("ops", subject.info(), &subject.peaks);
    report.insert("parts".into(), parts.iter().map(part).collect());
    report.into()
}
