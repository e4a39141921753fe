//! The sampler as a whole, against slow references.

mod golden;
mod reference;
mod robustness;

use super::*;
use crate::config::{LogprobsMode, SamplingParams};

/// One row and the request that samples it.
struct Case {
    row: Vec<f32>,
    params: SamplingParams,
    counts: TokenCounts,
    end_token_ids: Vec<u32>,
    allowed: Option<TokenMask>,
}

impl Case {
    fn new(row: &[f32], params: SamplingParams) -> Self {
        Self { row: row.to_vec(), params, counts: TokenCounts::new(&[]), end_token_ids: Vec::new(), allowed: None }
    }

    fn sample(&self, sampler: &mut Sampler, seed: u64, position: u32) -> Sampled {
        let input = SampleInput {
            params: &self.params,
            counts: &self.counts,
            seed,
            sequence_index: 0,
            position,
            end_token_ids: &self.end_token_ids,
            allowed: self.allowed.as_ref(),
        };
        sampler.sample(&self.row, &input)
    }

    fn sample_afresh(&self, seed: u64, position: u32) -> Sampled {
        self.sample(&mut Sampler::new(self.row.len()), seed, position)
    }

    /// The distribution that tokens are drawn from: (token, probability), best first.
    fn survivors(&self) -> Vec<(u32, f64)> {
        let params = SamplingParams {
            logprobs: Some(self.row.len()),
            logprobs_mode: LogprobsMode::Processed,
            ..self.params.clone()
        };
        let case = Case {
            row: self.row.clone(),
            params,
            counts: self.counts.clone(),
            end_token_ids: self.end_token_ids.clone(),
            allowed: self.allowed.clone(),
        };
        let report = case.sample_afresh(0, 0).logprobs.unwrap();
        report.top.iter().map(|logprob| (logprob.token_id, f64::from(logprob.logprob).exp())).collect()
    }
}

/// Random numbers for tests, of the crate's own generator under a seed that failures print.
struct TestRng {
    seed: u64,
    position: u32,
}

impl TestRng {
    fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    fn unit(&mut self) -> f64 {
        self.position += 1;
        uniform(self.seed, u32::MAX, self.position, 9)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    /// About normal: the sum of uniform numbers.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// Logits of the spread that models have, or of few distinct values so that most are tied.
    fn row(&mut self, len: usize) -> Vec<f32> {
        let is_tied = self.below(2) == 0;
        let spread = 0.3 + 4.0 * self.unit();
        (0..len)
            .map(|_| (self.normal() * spread) as f32)
            .map(|logit| if is_tied { (logit * 2.0).round() / 2.0 } else { logit })
            .collect()
    }
}

const ROW_LENS: [usize; 8] = [1, 2, 17, 63, 64, 65, 1000, 5003];

#[test]
fn neutral_settings_are_the_identity() {
    let mut rng = TestRng::new(1);
    for len in ROW_LENS {
        let row = rng.row(len);
        let default = Case::new(&row, SamplingParams::default());
        let neutral = SamplingParams { top_k: Some(len), logit_bias: vec![(0, 0.0)], ..Default::default() };
        let mut neutral = Case::new(&row, neutral);
        neutral.counts = TokenCounts::from_tokens(&[0, 1, 2], &[0, 0, 3]);
        for position in 0..50 {
            assert_eq!(default.sample_afresh(3, position), neutral.sample_afresh(3, position), "{len} tokens");
        }
        assert_eq!(default.survivors().len(), len);
    }
}

#[test]
fn a_token_depends_on_its_counter_and_not_on_what_was_sampled_before() {
    let mut rng = TestRng::new(2);
    let params = [
        SamplingParams::default(),
        SamplingParams { top_p: 0.8, temperature: 0.7, logprobs: Some(5), ..Default::default() },
        SamplingParams { top_k: Some(40), min_p: 0.02, repetition_penalty: 1.2, ..Default::default() },
        SamplingParams { temperature: 0.0, logprobs: Some(0), ..Default::default() },
    ];
    let cases: Vec<Case> =
        ROW_LENS.iter().flat_map(|&len| params.clone().map(|params| Case::new(&rng.row(len), params))).collect();
    let mut used = Sampler::new(64);
    for _ in 0..500 {
        let case = &cases[rng.below(cases.len())];
        let (seed, position) = (rng.below(4) as u64, rng.below(100) as u32);
        assert_eq!(case.sample(&mut used, seed, position), case.sample_afresh(seed, position));
    }
}

/// Draws 100,000 tokens and holds their counts against the probabilities by Pearson's chi-square.
fn check_frequencies(params: SamplingParams) {
    const NUM_DRAWS: u32 = 100_000;
    let row: Vec<f32> = (0..150).map(|i| ((i * 37) % 150) as f32 * 0.04).collect();
    let case = Case::new(&row, params);
    let mut sampler = Sampler::new(row.len());
    let mut counts = vec![0.0; row.len()];
    for position in 0..NUM_DRAWS {
        counts[case.sample(&mut sampler, 11, position).token_id as usize] += 1.0;
    }
    let survivors = case.survivors();
    let mut chi_square = 0.0;
    for &(token_id, probability) in &survivors {
        let expected = probability * f64::from(NUM_DRAWS);
        assert!(expected > 5.0, "the test needs probable tokens, found {probability} for {token_id}");
        chi_square += (counts[token_id as usize] - expected).powi(2) / expected;
        counts[token_id as usize] = 0.0;
    }
    assert_eq!(counts.iter().sum::<f64>(), 0.0, "{:?}: a token was drawn that filters removed", case.params);
    let freedom = survivors.len() as f64 - 1.0;
    let bound = freedom + 4.0 * (2.0 * freedom).sqrt();
    assert!(chi_square < bound, "{:?}: chi-square {chi_square} of {freedom} degrees", case.params);
}

#[test]
fn frequencies_are_the_probabilities() {
    check_frequencies(SamplingParams::default());
    check_frequencies(SamplingParams { temperature: 1.7, ..Default::default() });
    check_frequencies(SamplingParams { top_p: 0.7, ..Default::default() });
    check_frequencies(SamplingParams { top_k: Some(30), top_p: 0.9, temperature: 2.0, ..Default::default() });
    check_frequencies(SamplingParams { min_p: 0.1, ..Default::default() });
}

#[test]
fn sequences_of_a_request_and_positions_differ() {
    let row = vec![0.0; 1000];
    let params = SamplingParams::default();
    let counts = TokenCounts::new(&[]);
    let mut sampler = Sampler::new(row.len());
    let mut tokens = std::collections::HashSet::new();
    for sequence_index in 0..10 {
        for position in 0..10 {
            let input = SampleInput {
                params: &params,
                counts: &counts,
                seed: 5,
                sequence_index,
                position,
                end_token_ids: &[],
                allowed: None,
            };
            tokens.insert(sampler.sample(&row, &input).token_id);
        }
    }
    // A hundred draws of a thousand equal tokens: about 95 distinct ones.
    assert!(tokens.len() > 80, "{} distinct tokens", tokens.len());
}
