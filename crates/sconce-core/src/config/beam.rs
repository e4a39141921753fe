//! [`BeamParams`]: how a beam search is done, and its validation.

use super::sampling::{SamplingParams, check_count};
use crate::error::{Error, Result};

/// When a beam search ends, once as many hypotheses have finished as it is wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// When the best running beam, scored at its present length, cannot beat the worst finished one.
    #[default]
    False,
    /// At once.
    True,
    /// When the best running beam cannot beat the worst finished one at any length: with a length penalty above 0 it is
    /// scored at the greatest length, else at its present one.
    Never,
}

/// Which length the score of a hypothesis is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BeamLength {
    /// The generated tokens, an end token among them ("hf": the rule of transformers since 4.38).
    #[default]
    Generated,
    /// Prompt and generated tokens, without an end token of the model ("vllm": the rule of vLLM 0.5).
    PromptAndGenerated,
}

/// How a beam search is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamParams {
    /// Beams that are followed and hypotheses that are kept.
    pub width: usize,
    /// Exponent of the length that a cumulative logprob is divided by. Above 0 it favours long hypotheses.
    pub length_penalty: f32,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
    /// Which length counts.
    pub length: BeamLength,
}

impl BeamParams {
    /// The defaults of the request API at a width.
    pub fn new(width: usize) -> Self {
        let (early_stopping, length) = (EarlyStopping::default(), BeamLength::default());
        Self { width, length_penalty: 1.0, early_stopping, length }
    }

    /// Checks the search and that `params`, which it belongs to, ask for nothing that only sampling can do.
    pub(super) fn validate(&self, params: &SamplingParams) -> Result<()> {
        let width = self.width;
        if !(2..=SamplingParams::MAX_N).contains(&width) {
            let bound = format!("a width (best_of, else n) from 2 to {}", SamplingParams::MAX_N);
            return Err(Error::invalid("use_beam_search", format!("use_beam_search: needs {bound}, found {width}")));
        }
        check_count("n", params.n, 1, width)?;
        if let Some(best_of) = params.best_of.filter(|&best_of| best_of != width) {
            let message = format!("best_of: must be the width of the beam search, {width}, found {best_of}");
            return Err(Error::invalid("best_of", message));
        }
        if !self.length_penalty.is_finite() {
            let message = format!("length_penalty: must be a finite number, found {}", self.length_penalty);
            return Err(Error::invalid("length_penalty", message));
        }
        let neutral = |param: &'static str, is_neutral: bool, bound: &str, found: f32| {
            let message = || format!("{param}: must be {bound} with use_beam_search, found {found}");
            if is_neutral { Ok(()) } else { Err(Error::invalid(param, message())) }
        };
        neutral("temperature", [0.0, 1.0].contains(&params.temperature), "0 or 1", params.temperature)?;
        neutral("top_p", params.top_p == 1.0, "1", params.top_p)?;
        neutral("top_k", params.top_k.is_none(), "-1 (off)", params.top_k.unwrap_or_default() as f32)?;
        neutral("min_p", params.min_p == 0.0, "0", params.min_p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(change: impl Fn(&mut SamplingParams, &mut BeamParams)) -> SamplingParams {
        let mut beam = BeamParams::new(4);
        let mut params = SamplingParams { n: 2, ..Default::default() };
        change(&mut params, &mut beam);
        SamplingParams { beam: Some(beam), ..params }
    }

    #[test]
    fn neutral_parameters_are_accepted() {
        let check = |change: fn(&mut SamplingParams, &mut BeamParams)| params(change).validate(10).unwrap();
        check(|_, _| {});
        check(|p, _| p.temperature = 0.0);
        check(|p, _| p.best_of = Some(4));
        check(|p, _| p.n = 4);
        check(|p, b| (p.n, b.width) = (64, 64));
        check(|p, _| (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) = (1.5, 1.0, -1.0));
        check(|p, _| (p.logprobs, p.stop, p.stop_token_ids) = (Some(3), vec!["x".into()], vec![9]));
        check(|_, b| (b.length_penalty, b.early_stopping) = (-3.5, EarlyStopping::Never));
        check(|_, b| b.length = BeamLength::PromptAndGenerated);
    }

    #[test]
    fn errors_name_the_field() {
        let check = |param: &str, change: fn(&mut SamplingParams, &mut BeamParams)| {
            let error = params(change).validate(10).unwrap_err();
            assert_eq!(error.param(), Some(param), "{error}");
            assert!(error.to_string().starts_with(&format!("{param}: ")), "{error}");
        };
        check("use_beam_search", |p, b| (p.n, b.width) = (1, 0));
        check("use_beam_search", |p, b| (p.n, b.width) = (1, 1));
        check("use_beam_search", |_, b| b.width = 65);
        check("n", |p, _| p.n = 5);
        check("n", |p, _| p.n = 0);
        check("best_of", |p, _| p.best_of = Some(3));
        check("length_penalty", |_, b| b.length_penalty = f32::NAN);
        check("length_penalty", |_, b| b.length_penalty = f32::NEG_INFINITY);
        check("temperature", |p, _| p.temperature = 0.7);
        check("top_p", |p, _| p.top_p = 0.9);
        check("top_k", |p, _| p.top_k = Some(1));
        check("min_p", |p, _| p.min_p = 0.1);
    }

    #[test]
    fn best_of_without_beams_is_at_least_n() {
        let check = |n: usize, best_of: usize| {
            SamplingParams { n, best_of: Some(best_of), ..Default::default() }.validate(10).map_err(|error| {
                assert_eq!(error.param(), Some("best_of"), "{error}");
                error.to_string()
            })
        };
        assert_eq!(check(1, 1), Ok(()));
        assert_eq!(check(2, 64), Ok(()));
        assert_eq!(check(3, 2), Err("best_of: must be from 3 to 64, found 2".into()));
        assert_eq!(check(3, 65), Err("best_of: must be from 3 to 64, found 65".into()));
    }
}
