//! [`Subject`]: a model inside this process that is measured.

use std::io::{self, Write};

use sconce::{Engine, GenerationOutput, GenerationRequest, ModelInfo, Peaks, SamplingParams};
use serde_json::Value;

use super::random::Random;
use super::report::peaks_text;
use crate::cli::engine::EngineArgs;
use crate::cli::{Failure, progress};

/// Flags that say what is measured and how it is told.
#[derive(Debug, clap::Args)]
pub(super) struct SubjectArgs {
    /// A GGUF file, a folder, or an id of the Hugging Face hub [default: the starter model].
    #[arg(long, short, value_name = "PATH|ID")]
    model: Option<String>,
    /// Makes the prompts' random tokens.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// What the machine does at most, measured before: 10^9 bytes a second of memory and 10^9 operations a second of products (bf16 on a
    /// GPU, else f32) [default: both are measured].
    #[arg(long, value_name = "GB_PER_S,GFLOP_PER_S", value_parser = parse_peaks)]
    pub(super) peaks: Option<GivenPeaks>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Peaks of memory and of products.
pub(super) type GivenPeaks = [f64; 2];

fn parse_peaks(text: &str) -> Result<GivenPeaks, String> {
    let number = |text: &str| text.parse().ok().filter(|peak: &f64| peak.is_finite() && *peak > 0.0);
    let peaks = text.split_once(',').and_then(|(memory, products)| Some([number(memory)?, number(products)?]));
    peaks.ok_or_else(|| "expected two numbers above 0, with a comma between them".into())
}

/// A loaded model that is measured.
pub(super) struct Subject {
    pub(super) engine: Engine,
    /// What the machine does at most with the engine's number of threads.
    pub(super) peaks: Peaks,
    given_peaks: Option<GivenPeaks>,
    num_threads: Option<usize>,
    seed: u64,
    random: Random,
    /// Requests so far, which go through the adapters in turn.
    num_requests: usize,
}

impl SubjectArgs {
    /// The most sequences of one step, if that is given.
    pub(super) fn max_num_seqs(&self) -> Option<usize> {
        self.engine.config().max_num_seqs
    }

    /// Loads the model, for so many requests at once, without a prefix cache where every token is to be computed.
    pub(super) fn load(&self, num_requests: usize, finds_prompts: bool) -> Result<Subject, Failure> {
        self.load_as(self.engine.clone().measured(num_requests, finds_prompts))
    }

    /// The same with each operation timed.
    pub(super) fn load_profiled(&self, num_requests: usize) -> Result<Subject, Failure> {
        self.load_as(self.engine.clone().measured(num_requests, false).profiled())
    }

    fn load_as(&self, args: EngineArgs) -> Result<Subject, Failure> {
        let num_threads = args.config().num_threads;
        let engine = args.load(self.model.as_deref(), progress::progress())?;
        let peaks = match self.peaks {
            Some(peaks) => given_peaks(&engine, num_threads, peaks),
            None => measure_peaks(&engine, num_threads)?,
        };
        let random = Random::new(self.seed);
        Ok(Subject { engine, peaks, given_peaks: self.peaks, num_threads, seed: self.seed, random, num_requests: 0 })
    }

    /// Prints the results, for programs or for people.
    pub(super) fn print(&self, json: &Value, text: &str) -> Result<(), Failure> {
        print(self.json, json, text)
    }
}

/// Prints results: `json` if that is asked for, else `text`.
pub(super) fn print(as_json: bool, json: &Value, text: &str) -> Result<(), Failure> {
    let text = if as_json { &format!("{json:#}\n") } else { text };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

impl Subject {
    pub(super) fn info(&self) -> &ModelInfo {
        self.engine.handle().info()
    }

    /// Checks that a sequence of so many tokens can be run; `flags` says which ask for it.
    pub(super) fn check_fits(&self, flags: &str, num_tokens: usize) -> Result<(), Failure> {
        let max = self.info().max_model_len;
        if num_tokens > max {
            return Err(format!("{flags}: {num_tokens} tokens are beyond the context of {max} tokens").into());
        }
        Ok(())
    }

    /// A greedy request of random tokens that generates exactly so many, through the next adapter where there are some.
    pub(super) fn request(&mut self, input_len: usize, output_len: usize) -> GenerationRequest {
        let handle = self.engine.handle();
        let vocab_size = handle.info().config.vocab_size.min(handle.tokenizer().vocab_size());
        let params = SamplingParams {
            max_tokens: Some(output_len),
            temperature: 0.0,
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let adapters = &handle.info().adapters;
        let adapter = adapters.get(self.num_requests % adapters.len().max(1)).map(|adapter| adapter.name.clone());
        self.num_requests += 1;
        let request = GenerationRequest::tokens(self.random.token_ids(input_len, vocab_size)).with_params(params);
        GenerationRequest { adapter, ..request }
    }

    /// Makes the same prompts once more.
    pub(super) fn begin_anew(&mut self) {
        (self.random, self.num_requests) = (Random::new(self.seed), 0);
    }

    /// Measures the machine again, now that the model has been: the better of both is the peak.
    pub(super) fn measure_peaks_again(&mut self) -> Result<(), Failure> {
        if self.given_peaks.is_none() {
            self.peaks = self.peaks.best(measure_peaks(&self.engine, self.num_threads)?);
        }
        Ok(())
    }

    /// What the machine does at most, for people.
    pub(super) fn peaks_text(&self) -> String {
        let source = if self.given_peaks.is_some() { "as given" } else { "measured before and after" };
        peaks_text(self.info(), &self.peaks, source)
    }
}

/// What the device that the engine runs on does at most.
fn measure_peaks(engine: &Engine, num_threads: Option<usize>) -> Result<Peaks, Failure> {
    Ok(match engine.handle().info().gpu {
        Some(index) => Peaks::of_gpu(index)?,
        None => Peaks::of_cpu(num_threads),
    })
}

fn given_peaks(engine: &Engine, num_threads: Option<usize>, [memory, products]: GivenPeaks) -> Peaks {
    let is_gpu = engine.handle().info().gpu.is_some();
    Peaks {
        num_threads: num_threads.filter(|_| !is_gpu).unwrap_or(0),
        dram_read_gb_per_s: memory,
        f32_gflop_per_s: (!is_gpu).then_some(products),
        int8_gop_per_s: None,
        bf16_gflop_per_s: is_gpu.then_some(products),
    }
}

/// Checks that an answer is as long as was asked, and its prompt computed, or where `least_found` is given so many tokens of it found in
/// the cache: only then do the figures mean what they say.
pub(super) fn check_answer(
    output: &GenerationOutput,
    input_len: usize,
    output_len: usize,
    least_found: Option<usize>,
) -> Result<(), Failure> {
    let usage = output.usage;
    if let Some(least) = least_found.filter(|&least| usage.cached_tokens < least) {
        let found = usage.cached_tokens;
        let message = format!(
            "{found} of a prompt's tokens were found in the cache, and not {least}: it does not hold all prompts; \
             set a greater --kv-cache-bytes"
        );
        return Err(message.into());
    }
    let is_computed = usage.cached_tokens == 0 || least_found.is_some();
    if (usage.prompt_tokens, usage.completion_tokens) == (input_len, output_len) && is_computed {
        return Ok(());
    }
    Err(format!("expected {input_len} computed and {output_len} generated tokens, found {usage:?}").into())
}
