//! [`SamplingParams`]: how one request is to be continued, and its validation.

use super::BeamParams;
use crate::error::{Error, Result};

/// Which distribution reported logprobs are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogprobsMode {
    /// The model's own, before penalties, temperature and filters (OpenAI's meaning).
    #[default]
    Raw,
    /// After penalties, temperature and filters (vLLM 0.5's meaning).
    Processed,
}

/// How one request is to be continued. Field names, defaults and ranges are those of the request API.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Sequences to return, 1..=[`SamplingParams::MAX_N`].
    pub n: usize,
    /// Sequences to generate, of which the n best are returned; n..=[`SamplingParams::MAX_N`]. `None`: n. With beams it
    /// can only say again how wide they are.
    pub best_of: Option<usize>,
    /// Beam search in place of sampling.
    pub beam: Option<BeamParams>,
    /// Most tokens to generate. `None`: the rest of the context.
    pub max_tokens: Option<usize>,
    /// End tokens and stop ids cannot be chosen before this many tokens.
    pub min_tokens: usize,
    /// Subtracted once from the logit of every token generated before, [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted from a logit as often as its token was generated before, [-2, 2].
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output, (0, 2].
    pub repetition_penalty: f32,
    /// Logits are divided by it; 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches it, (0, 1].
    pub top_p: f32,
    /// Keep so many most probable tokens; `None`: all.
    pub top_k: Option<usize>,
    /// Keep tokens with at least this share of the greatest probability, [0, 1].
    pub min_p: f32,
    /// Makes the tokens reproducible. `None`: drawn at submit.
    pub seed: Option<u64>,
    /// Texts that end a sequence; at most 16, none empty.
    pub stop: Vec<String>,
    /// Tokens that end a sequence.
    pub stop_token_ids: Vec<u32>,
    /// Whether the stop text that ended a sequence stays in its text.
    pub include_stop_str_in_output: bool,
    /// Whether the model's end tokens are generated like any other.
    pub ignore_eos: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Whether special tokens that are kept are set apart by spaces.
    pub spaces_between_special_tokens: bool,
    /// Report the chosen token and so many most probable ones, 0..=20.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Which distribution logprobs are of.
    pub logprobs_mode: LogprobsMode,
    /// Added to logits: (token id, bias), bias in [-100, 100].
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            n: 1,
            best_of: None,
            beam: None,
            max_tokens: None,
            min_tokens: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            ignore_eos: false,
            skip_special_tokens: true,
            spaces_between_special_tokens: true,
            logprobs: None,
            prompt_logprobs: None,
            logprobs_mode: LogprobsMode::Raw,
            logit_bias: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Most sequences that one request may ask for.
    pub const MAX_N: usize = 64;
    /// Most alternatives that logprobs report.
    pub const MAX_LOGPROBS: usize = 20;
    /// Most stop texts, and most `stop_token_ids`.
    pub const MAX_STOP: usize = 16;
    /// Most bytes of a stop text.
    pub const MAX_STOP_BYTES: usize = 4096;

    /// Whether the most probable token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether any of the three penalties does something.
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }

    /// Checks every field against its range and ids against the vocabulary. The error names the field.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        check_count("n", self.n, 1, Self::MAX_N)?;
        if let Some(best_of) = self.best_of {
            check_count("best_of", best_of, self.n, Self::MAX_N)?;
        }
        if let Some(beam) = &self.beam {
            beam.validate(self)?;
        }
        if let Some(max_tokens) = self.max_tokens {
            check_count("max_tokens", max_tokens, 1, usize::MAX)?;
            check_count("min_tokens", self.min_tokens, 0, max_tokens)?;
        }
        check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        check_above_zero("repetition_penalty", self.repetition_penalty, 2.0)?;
        check_range("temperature", self.temperature, 0.0, f32::MAX)?;
        check_above_zero("top_p", self.top_p, 1.0)?;
        if self.top_k == Some(0) {
            return Err(Error::invalid("top_k", "top_k: must be at least 1 (-1 turns it off), found 0"));
        }
        check_range("min_p", self.min_p, 0.0, 1.0)?;
        check_count("stop", self.stop.len(), 0, Self::MAX_STOP)?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::invalid("stop", "stop: an empty string cannot be a stop string"));
        }
        if let Some(stop) = self.stop.iter().find(|stop| stop.len() > Self::MAX_STOP_BYTES) {
            let (most, found) = (Self::MAX_STOP_BYTES, stop.len());
            return Err(Error::invalid("stop", format!("stop: a stop string has at most {most} bytes, found {found}")));
        }
        check_count("stop_token_ids", self.stop_token_ids.len(), 0, Self::MAX_STOP)?;
        for (param, count) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            check_count(param, count.unwrap_or(0), 0, Self::MAX_LOGPROBS)?;
        }
        for &id in &self.stop_token_ids {
            check_token_id("stop_token_ids", id, vocab_size)?;
        }
        for &(id, bias) in &self.logit_bias {
            check_token_id("logit_bias", id, vocab_size)?;
            check_range("logit_bias", bias, -100.0, 100.0)?;
        }
        Ok(())
    }
}

pub(super) fn check_count(param: &'static str, value: usize, min: usize, max: usize) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let bound = if max == usize::MAX { format!("at least {min}") } else { format!("from {min} to {max}") };
    Err(Error::invalid(param, format!("{param}: must be {bound}, found {value}")))
}

fn check_range(param: &'static str, value: f32, min: f32, max: f32) -> Result<()> {
    if value.is_finite() && (min..=max).contains(&value) {
        return Ok(());
    }
    let bound =
        if max == f32::MAX { format!("a finite number, at least {min}") } else { format!("from {min} to {max}") };
    Err(Error::invalid(param, format!("{param}: must be {bound}, found {value}")))
}

fn check_above_zero(param: &'static str, value: f32, max: f32) -> Result<()> {
    if value > 0.0 && value <= max {
        return Ok(());
    }
    Err(Error::invalid(param, format!("{param}: must be greater than 0 and at most {max}, found {value}")))
}

pub(crate) fn check_token_id(param: &'static str, id: u32, vocab_size: usize) -> Result<()> {
    if (id as usize) < vocab_size {
        return Ok(());
    }
    Err(Error::invalid(param, format!("{param}: token id {id} is outside the vocabulary of {vocab_size}")))
}
