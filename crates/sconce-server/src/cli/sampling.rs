//! Flags that say how a prompt is continued.

use sconce::SamplingParams;

/// How a prompt is continued.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingArgs {
    /// Most tokens to generate [default: the rest of the context].
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// 0 always takes the most probable token; higher is more diverse.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,
    /// Keep the most probable tokens whose probabilities add up to this, above 0 and at most 1.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep so many most probable tokens [default: all].
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep tokens with at least this share of the greatest probability, 0 to 1.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Against tokens that were generated before, -2 to 2.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Against tokens as often as they were generated before, -2 to 2.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Against tokens of prompt and output, above 0 and at most 2; 1 is off.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Makes the tokens reproducible.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// A text that ends the output; can be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// The parameters of a request.
    pub(super) fn params(&self) -> SamplingParams {
        SamplingParams {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            // As on the wire, 0 is off.
            top_k: self.top_k.filter(|&k| k > 0),
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop: self.stop.clone(),
            ..SamplingParams::default()
        }
    }
}
