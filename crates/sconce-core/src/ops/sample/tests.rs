//! What threads, neighbours and devices must not change.

mod device;

use super::*;
use crate::backend::cpu::Isa;
use crate::config::{LogprobsMode, SamplingParams};
use crate::ops::testing::random;
use crate::sample::{SampleInput, SampleKind, Sampled, TokenCounts};

const VOCAB_SIZE: usize = 300;
const NUM_LOGIT_ROWS: usize = 5;

fn params() -> [SamplingParams; 4] {
    [
        SamplingParams { temperature: 0.0, logprobs: Some(3), ..Default::default() },
        SamplingParams { presence_penalty: 0.5, logprobs: Some(0), ..Default::default() },
        SamplingParams { top_k: Some(7), logit_bias: vec![(3, -9.0)], ..Default::default() },
        SamplingParams {
            top_p: 0.6,
            repetition_penalty: 1.3,
            logprobs: Some(2),
            logprobs_mode: LogprobsMode::Processed,
            ..Default::default()
        },
    ]
}

/// Every kind of row, and now and then the same row of logits several times.
fn row<'a>(idx: usize, params: &'a [SamplingParams], counts: &'a TokenCounts) -> SampleRow<'a> {
    let input = SampleInput {
        params: &params[idx % params.len()],
        counts,
        seed: 17,
        sequence_index: idx as u32,
        position: 3,
        end_token_ids: &[],
        allowed: None,
    };
    let kind = match idx % 3 {
        0 => SampleKind::Token(input),
        1 => SampleKind::BeamCandidates { input, k: 1 + idx },
        _ => SampleKind::PromptLogprobs { chosen: idx as u32, num_top: idx % 4 },
    };
    SampleRow { row: idx * 3 % NUM_LOGIT_ROWS, kind }
}

fn taken(mut results: SampleResults, num_rows: usize) -> Vec<Vec<Sampled>> {
    let rows = (0..num_rows).map(|_| results.take_next().collect()).collect();
    assert_eq!(results.take_next().len(), 0, "an answer too many");
    rows
}

#[test]
fn threads_and_neighbours_change_nothing() {
    let logits: Vec<f32> = random(NUM_LOGIT_ROWS * VOCAB_SIZE, 4).iter().map(|x| x * 5.0).collect();
    let logits = Buffer::from_vec(logits, VOCAB_SIZE);
    let (params, counts) = (params(), TokenCounts::from_tokens(&[1, 2, 3], &[2, 9]));
    for num_threads in [1, 2, 5] {
        let mut threads = Cpu::new(num_threads, Isa::detect());
        for num_rows in [0, 1, 7, 36] {
            let rows: Vec<_> = (0..num_rows).map(|idx| row(idx, &params, &counts)).collect();
            let (mut expected, mut found) = (SampleResults::default(), SampleResults::default());
            reference(&mut expected, &logits, &rows);
            cpu(&mut threads, &mut found, &logits, &rows);
            let found = taken(found, num_rows);
            assert_eq!(found, taken(expected, num_rows), "{num_rows} rows, {num_threads} threads");
            for (row, found) in rows.iter().zip(found) {
                let mut alone = SampleResults::default();
                reference(&mut alone, &logits, &[*row]);
                assert_eq!(taken(alone, 1), [found], "{row:?}");
            }
        }
    }
}

#[test]
fn every_kind_gives_what_the_sampler_does() {
    let logits = Buffer::from_vec(random(VOCAB_SIZE, 6), VOCAB_SIZE);
    let (params, counts) = (params(), TokenCounts::new(&[4]));
    let rows: Vec<_> = (0..12).map(|idx| SampleRow { row: 0, ..row(idx, &params, &counts) }).collect();
    let (mut results, mut sampler) = (SampleResults::default(), Sampler::new(VOCAB_SIZE));
    reference(&mut results, &logits, &rows);
    for (row, found) in rows.iter().zip(taken(results, rows.len())) {
        match row.kind {
            SampleKind::Token(input) => assert_eq!(found, [sampler.sample(logits.row(0), &input)]),
            SampleKind::BeamCandidates { input, k } => {
                let mut expected = Default::default();
                sampler.beam_candidates(logits.row(0), &input, k, &mut expected);
                assert_eq!((found.len(), &found), (k, &Vec::from(expected)));
            }
            SampleKind::PromptLogprobs { chosen, num_top } => {
                let report = sampler.prompt_logprobs(logits.row(0), chosen, num_top);
                assert_eq!((found[0].token_id, found[0].logprob), (chosen, report.chosen.logprob));
                assert_eq!((found.len(), found[0].logprobs.as_ref()), (1, Some(&report)));
            }
        }
    }
}
