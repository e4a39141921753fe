//! `sconce bench serve`: a load on a server.

use std::process::ExitCode;

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::Answer;
use super::client::Client;
use super::lengths::LengthArgs;
use super::load::{Load, Outcome};
use super::parse_count;
use super::percentiles::Summary;
use super::random::{Random, fresh_seed};
use super::report::{Table, figure, summary_ms_json, summary_ms_row};
use super::subject::print;
use crate::cli::{Failure, progress};

/// Flags of `sconce bench serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the server is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub(super) base_url: String,
    /// The model's name there [default: the first of /v1/models].
    #[arg(long, short, value_name = "NAME")]
    model: Option<String>,
    /// Requests that are sent, beside a first one that is not measured.
    #[arg(long, value_name = "N", default_value = "100", value_parser = parse_count)]
    pub(super) num_prompts: usize,
    /// Words of each prompt on average, about as many tokens: common English words at random.
    #[arg(long, value_name = "WORDS", default_value = "256", value_parser = parse_count)]
    pub(super) input_len: usize,
    /// Most tokens that each request generates, on average.
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = parse_count)]
    pub(super) output_len: usize,
    #[command(flatten)]
    pub(super) lengths: LengthArgs,
    /// Send ignore_eos, so that every answer has its full length. Not every server knows it.
    #[arg(long)]
    pub(super) ignore_eos: bool,
    /// Most requests that are under way at once [default: all].
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(super) max_concurrency: Option<usize>,
    /// Requests a second on average, at random times (a Poisson process); inf sends all at once.
    #[arg(long, value_name = "R", default_value = "inf", value_parser = parse_rate)]
    pub(super) request_rate: f64,
    /// Makes prompts, lengths and times [default: another one each time, so that no prompt is in a server's cache].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The key that the server asks for.
    #[arg(long, value_name = "KEY", env = "SCONCE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 => Ok(rate),
        _ => Err("expected a number above 0, or inf".into()),
    }
}

/// Runs `sconce bench serve`. It fails where no request was answered.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let client = Client::new(&args.base_url, args.api_key.as_deref().filter(|key| !key.is_empty()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(&args, &client))
}

async fn measure(args: &Args, client: &Client) -> Result<ExitCode, Failure> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(client).await?,
    };
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let mut random = Random::new(seed);
    // Before the load, so that what every request would fail with is said at once.
    let means = [args.input_len, args.output_len];
    let first = Answer::fetch(client, body(args, &model, means, &mut random)).await;
    first.map_err(|error| format!("the first request failed: {error}"))?;
    let lengths = args.lengths.lengths(seed, args.num_prompts, means, usize::MAX);
    let bodies = lengths.into_iter().map(|lengths| body(args, &model, lengths, &mut random)).collect();
    let load = Load { request_rate: args.request_rate, max_concurrency: args.max_concurrency };
    let counter = progress::counter("requests", args.num_prompts);
    let outcome = load.run(client, bodies, &mut random, &counter).await;
    drop(counter);
    let report = Report { args, model, seed, outcome };
    print(args.json, &report.to_json(), &report.to_text())?;
    Ok(if report.outcome.answers.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn first_model(client: &Client) -> Result<String, String> {
    let models =
        client.get("/v1/models").await.map_err(|error| format!("{error}; --base-url says where a server is"))?;
    let id = models["data"][0]["id"].as_str();
    id.map(str::to_owned).ok_or_else(|| "/v1/models names no model: set --model".into())
}

fn body(args: &Args, model: &str, [input_len, output_len]: [usize; 2], random: &mut Random) -> Bytes {
    let mut body = json!({
        "model": model,
        "prompt": random.words(input_len),
        "max_tokens": output_len,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if args.ignore_eos {
        body["ignore_eos"] = json!(true);
    }
    body.to_string().into()
}

struct Report<'a> {
    args: &'a Args,
    model: String,
    seed: u64,
    outcome: Outcome,
}

impl Report<'_> {
    /// What is summed up, under its name for programs and for people.
    fn summaries(&self) -> [(&'static str, &'static str, Option<Summary>); 4] {
        let answers = &self.outcome.answers;
        let all = |seconds: fn(&Answer) -> f64| Summary::new(answers.iter().map(seconds).collect());
        let gaps = answers.iter().flat_map(|a| a.gaps_s.iter().copied());
        [
            ("ttft_ms", "time to first token", all(|a| a.first_s)),
            (
                "tpot_ms",
                "time per output token",
                Summary::new(answers.iter().filter_map(Answer::per_token_s).collect()),
            ),
            ("itl_ms", "inter-token latency", Summary::new(gaps.collect())),
            ("e2e_ms", "end to end", all(|a| a.whole_s)),
        ]
    }

    fn tokens(&self) -> [u64; 3] {
        let outcome = &self.outcome;
        [outcome.sum(|a| a.prompt_tokens), outcome.sum(|a| a.output_tokens), outcome.sum(|a| a.cached_tokens)]
    }

    fn to_text(&self) -> String {
        let Outcome { answers, num_failed, first_error, elapsed_s } = &self.outcome;
        let [prompt_tokens, output_tokens, cached_tokens] = self.tokens();
        let rate = |count: u64| figure(count as f64 / elapsed_s);
        let mut counts = Table::default();
        counts.row(["answered", &answers.len().to_string(), "requests"]);
        counts.row(["failed", &num_failed.to_string(), "requests"]);
        counts.row(["elapsed", &figure(*elapsed_s), "s"]);
        counts.row([
            "prompts",
            &prompt_tokens.to_string(),
            &format!("tokens, {cached_tokens} from the server's cache"),
        ]);
        counts.row(["generated", &output_tokens.to_string(), "tokens"]);
        counts.row(["requests", &rate(answers.len() as u64), "requests/s"]);
        counts.row(["output", &rate(output_tokens), "tok/s"]);
        counts.row(["total", &rate(prompt_tokens + output_tokens), "tok/s, prompts among them"]);
        let mut times = Table::default();
        times.row(["ms", "mean", "p50", "p90", "p99"]);
        self.summaries().into_iter().for_each(|(_, name, summary)| summary_ms_row(&mut times, name, summary));
        let error = first_error.as_ref().map_or(String::new(), |error| format!("\nfirst error: {error}\n"));
        format!("{} at {}, seed {}\n\n{counts}\n{times}{error}", self.model, self.args.base_url, self.seed)
    }

    fn to_json(&self) -> Value {
        let (args, Outcome { answers, num_failed, first_error, elapsed_s }) = (self.args, &self.outcome);
        let [prompt_tokens, output_tokens, cached_tokens] = self.tokens();
        let rate = |count: u64| count as f64 / elapsed_s;
        let mut report = json!({
            "command": "serve",
            "base_url": args.base_url,
            "model": self.model,
            "num_prompts": args.num_prompts,
            "input_len": args.input_len,
            "output_len": args.output_len,
            "spread": args.lengths.spread,
            "max_concurrency": args.max_concurrency,
            // JSON has no infinity.
            "request_rate": if args.request_rate.is_finite() { json!(args.request_rate) } else { json!("inf") },
            "seed": self.seed,
            "answered": answers.len(),
            "failed": num_failed,
            "first_error": first_error,
            "elapsed_s": elapsed_s,
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "output_tokens": output_tokens,
            "requests_per_s": rate(answers.len() as u64),
            "output_tok_per_s": rate(output_tokens),
            "total_tok_per_s": rate(prompt_tokens + output_tokens),
        });
        for (key, _, summary) in self.summaries() {
            report[key] = summary_ms_json(summary);
        }
        report
    }
}
