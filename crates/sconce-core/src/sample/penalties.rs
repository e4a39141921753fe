//! [`TokenCounts`]: which tokens a sequence has seen, and the penalties that follow from it.

use std::sync::Arc;

use crate::config::SamplingParams;

/// The distinct tokens of one sequence: of its prompt, and generated with how often.
///
/// Sparse, so that penalties cost O(distinct tokens) a step. A clone, for a fork of the sequence, shares the prompt's
/// part and copies the rest.
#[derive(Debug, Clone)]
pub struct TokenCounts {
    /// Distinct tokens of the prompt, ascending.
    prompt: Arc<[u32]>,
    /// Distinct generated tokens, ascending by id.
    generated: Vec<Generated>,
}

/// A token that was generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generated {
    /// The token.
    pub token_id: u32,
    /// How often.
    pub count: u32,
    /// Whether it is in the prompt too. Remembered, so that the repetition penalty meets every token once.
    pub in_prompt: bool,
}

impl TokenCounts {
    /// Counts of a sequence that has generated nothing yet.
    pub fn new(prompt: &[u32]) -> Self {
        let mut distinct = prompt.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        Self { prompt: distinct.into(), generated: Vec::new() }
    }

    /// Counts of a sequence as it stands.
    pub fn from_tokens(prompt: &[u32], generated: &[u32]) -> Self {
        let mut counts = Self::new(prompt);
        for &token_id in generated {
            counts.push(token_id);
        }
        counts
    }

    /// Counts one more generated token.
    pub fn push(&mut self, token_id: u32) {
        match self.generated.binary_search_by_key(&token_id, |seen| seen.token_id) {
            Ok(idx) => self.generated[idx].count += 1,
            Err(idx) => {
                let in_prompt = self.prompt.binary_search(&token_id).is_ok();
                self.generated.insert(idx, Generated { token_id, count: 1, in_prompt });
            }
        }
    }

    /// The distinct tokens of the prompt, ascending.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The distinct generated tokens, ascending by id.
    pub fn generated(&self) -> &[Generated] {
        &self.generated
    }

    /// Applies the three penalties of `params` to a row: repetition over prompt and generated tokens, then frequency
    /// and presence over generated tokens. Tokens outside the row are passed over.
    pub fn penalize(&self, row: &mut [f32], params: &SamplingParams) {
        let SamplingParams { repetition_penalty, frequency_penalty, presence_penalty, .. } = *params;
        if repetition_penalty != 1.0 {
            let only_generated = self.generated.iter().filter(|seen| !seen.in_prompt).map(|seen| seen.token_id);
            for token_id in self.prompt.iter().copied().chain(only_generated) {
                if let Some(logit) = row.get_mut(token_id as usize) {
                    *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
                }
            }
        }
        if frequency_penalty != 0.0 || presence_penalty != 0.0 {
            for seen in &self.generated {
                if let Some(logit) = row.get_mut(seen.token_id as usize) {
                    *logit -= frequency_penalty * seen.count as f32 + presence_penalty;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalized(counts: &TokenCounts, row: &[f32], params: SamplingParams) -> Vec<f32> {
        let mut row = row.to_vec();
        counts.penalize(&mut row, &params);
        row
    }

    #[test]
    fn each_penalty_reaches_its_own_tokens() {
        let counts = TokenCounts::from_tokens(&[1, 0, 1, 9], &[2, 1, 2]);
        let row = [2.0, -2.0, 3.0, 4.0];
        let repetition = SamplingParams { repetition_penalty: 2.0, ..Default::default() };
        assert_eq!(penalized(&counts, &row, repetition), [1.0, -4.0, 1.5, 4.0]);
        let frequency = SamplingParams { frequency_penalty: 0.5, ..Default::default() };
        assert_eq!(penalized(&counts, &row, frequency), [2.0, -2.5, 2.0, 4.0]);
        let presence = SamplingParams { presence_penalty: -0.5, ..Default::default() };
        assert_eq!(penalized(&counts, &row, presence), [2.0, -1.5, 3.5, 4.0]);
        let all = SamplingParams {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..Default::default()
        };
        assert_eq!(penalized(&counts, &row, all), [1.0, -4.75, 0.25, 4.0]);
    }

    #[test]
    fn a_fork_counts_on_its_own() {
        let mut first = TokenCounts::new(&[0]);
        first.push(1);
        let mut second = first.clone();
        second.push(1);
        let params = SamplingParams { frequency_penalty: 1.0, ..Default::default() };
        assert_eq!(penalized(&first, &[0.0, 0.0], params.clone()), [0.0, -1.0]);
        assert_eq!(penalized(&second, &[0.0, 0.0], params), [0.0, -2.0]);
    }

    #[test]
    fn tokens_outside_the_row_are_passed_over() {
        let counts = TokenCounts::from_tokens(&[7, u32::MAX], &[8]);
        let params = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 1.0,
            frequency_penalty: 1.0,
            ..Default::default()
        };
        assert_eq!(penalized(&counts, &[1.0], params), [1.0]);
    }
}
