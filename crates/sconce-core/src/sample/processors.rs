//! [`LogitsProcessor`]: the edits of a row that come before temperature.

use super::{SampleInput, TokenCounts, TokenMask};
use crate::config::SamplingParams;

/// What a request asks to be done to its rows before temperature, in this order: the grammar's mask, the min_tokens mask,
/// logit_bias, penalties (repetition, then frequency and presence). Without a grammar it touches few tokens and never walks
/// the whole row.
#[derive(Debug, Clone, Copy)]
pub struct LogitsProcessor<'a> {
    params: &'a SamplingParams,
    counts: &'a TokenCounts,
    end_token_ids: &'a [u32],
    masks_ends: bool,
    allowed: Option<&'a TokenMask>,
}

impl<'a> LogitsProcessor<'a> {
    /// The edits for the token that comes next.
    pub fn new(input: &SampleInput<'a>) -> Self {
        let SampleInput { params, counts, end_token_ids, allowed, .. } = *input;
        // Under ignore_eos an end token ends nothing, so that min_tokens has no reason to forbid it.
        let end_token_ids = if params.ignore_eos { &[] } else { end_token_ids };
        let has_ends = !(end_token_ids.is_empty() && params.stop_token_ids.is_empty());
        let is_end = |id: &u32| end_token_ids.contains(id) || params.stop_token_ids.contains(id);
        // Where a grammar is at its end there is nothing else.
        let masks_ends = has_ends
            && (input.position as usize) < params.min_tokens
            && allowed.is_none_or(|allowed| !allowed.ids().all(|id| is_end(&id)));
        Self { params, counts, end_token_ids, masks_ends, allowed }
    }

    /// Whether [`LogitsProcessor::apply`] would leave every row as it is, so that no copy need be made for it.
    pub fn is_neutral(&self) -> bool {
        self.allowed.is_none() && !self.masks_ends && self.params.logit_bias.is_empty() && !self.params.has_penalties()
    }

    /// The tokens that the request's grammar allows now, if it has one.
    pub fn allowed(&self) -> Option<&'a TokenMask> {
        self.allowed
    }

    /// The tokens that min_tokens forbids now, in no order; some may come twice.
    pub fn masked_ids(&self) -> impl Iterator<Item = u32> {
        let all = self.end_token_ids.iter().chain(&self.params.stop_token_ids);
        all.copied().take(if self.masks_ends { usize::MAX } else { 0 })
    }

    /// Edits a row. Ids outside the row are passed over.
    pub fn apply(&self, row: &mut [f32]) {
        if let Some(allowed) = self.allowed {
            allowed.apply(row);
        }
        for token_id in self.masked_ids() {
            if let Some(logit) = row.get_mut(token_id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for &(token_id, bias) in &self.params.logit_bias {
            if let Some(logit) = row.get_mut(token_id as usize) {
                *logit += bias;
            }
        }
        self.counts.penalize(row, self.params);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(params: SamplingParams, position: u32, expected: &[f32]) {
        check_allowed(params, position, None, expected);
    }

    fn check_allowed(params: SamplingParams, position: u32, allowed: Option<&TokenMask>, expected: &[f32]) {
        let counts = TokenCounts::from_tokens(&[0], &[3]);
        let end_token_ids = [1, 99];
        let input = SampleInput {
            params: &params,
            counts: &counts,
            seed: 0,
            sequence_index: 0,
            position,
            end_token_ids: &end_token_ids,
            allowed,
        };
        let raw = [4.0, 3.0, 2.0, 1.0];
        let mut row = raw;
        let processor = LogitsProcessor::new(&input);
        processor.apply(&mut row);
        assert_eq!(row, expected, "{params:?} at {position}");
        assert_eq!(processor.is_neutral(), row == raw, "{params:?} at {position}");
    }

    #[test]
    fn ends_are_masked_until_min_tokens() {
        const OUT: f32 = f32::NEG_INFINITY;
        let params = SamplingParams { min_tokens: 2, stop_token_ids: vec![2], ..Default::default() };
        check(params.clone(), 0, &[4.0, OUT, OUT, 1.0]);
        check(params.clone(), 1, &[4.0, OUT, OUT, 1.0]);
        check(params.clone(), 2, &[4.0, 3.0, 2.0, 1.0]);
        check(SamplingParams { ignore_eos: true, ..params.clone() }, 1, &[4.0, 3.0, OUT, 1.0]);
        check(SamplingParams { ignore_eos: true, stop_token_ids: vec![], ..params.clone() }, 1, &[4.0, 3.0, 2.0, 1.0]);
        // A bias cannot bring back what is masked.
        check(SamplingParams { logit_bias: vec![(1, 100.0)], ..params }, 0, &[4.0, OUT, OUT, 1.0]);
    }

    #[test]
    fn what_a_grammar_forbids_stays_out() {
        const OUT: f32 = f32::NEG_INFINITY;
        let bias = SamplingParams { logit_bias: vec![(0, 100.0), (3, 1.0)], ..Default::default() };
        check_allowed(bias, 0, Some(&TokenMask::from_ids([1, 3])), &[OUT, 3.0, OUT, 2.0]);
        // Ends wait for min_tokens, unless the grammar allows nothing else.
        let params = SamplingParams { min_tokens: 2, stop_token_ids: vec![2], ..Default::default() };
        check_allowed(params.clone(), 0, Some(&TokenMask::from_ids([1, 2, 3])), &[OUT, OUT, OUT, 1.0]);
        check_allowed(params, 0, Some(&TokenMask::from_ids([1, 2])), &[OUT, 3.0, 2.0, OUT]);
    }

    #[test]
    fn bias_comes_before_penalties() {
        let params = SamplingParams { logit_bias: vec![(0, -6.0), (3, 3.0), (50, 1.0)], ..Default::default() };
        check(params.clone(), 0, &[-2.0, 3.0, 2.0, 4.0]);
        check(SamplingParams { repetition_penalty: 2.0, ..params }, 0, &[-4.0, 3.0, 2.0, 2.0]);
    }
}
