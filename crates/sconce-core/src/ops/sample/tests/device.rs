//! `kernels/sample.cu` against the reference: equal bit for bit, tokens, ranks and logprobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::cuda::{Answers, SampleSpace, cuda};
use super::super::encode::{MAX_EDITED_ROWS, MAX_EDITS_LEN, MAX_ROWS, MAX_VOCAB_SIZE};
use super::super::reference;
use crate::backend::cpu::Buffer;
use crate::backend::cuda::device::{Device, ElemType};
use crate::config::{LogprobsMode, SamplingParams};
use crate::ops::testing::{devices, on_device};
use crate::sample::{SampleInput, SampleKind, SampleResults, SampleRow, Sampled, TokenCounts, TokenMask, uniform};

/// Reproducible numbers.
struct Numbers {
    seed: u64,
    position: u32,
}

impl Numbers {
    fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    fn unit(&mut self) -> f32 {
        self.position += 1;
        uniform(self.seed, 0, self.position, 7) as f32
    }

    fn below(&mut self, end: usize) -> usize {
        ((self.unit() * end as f32) as usize).min(end - 1)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn ids(&mut self, max_len: usize, vocab_size: usize) -> Vec<u32> {
        (0..self.below(max_len + 1)).map(|_| self.below(vocab_size) as u32).collect()
    }

    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.unit() * 2.0 - 1.0).sum::<f32>() / 1.4
    }

    /// A row as models have them, or one that is a trial for a sampler.
    fn logits(&mut self, len: usize) -> Vec<f32> {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, 0.0, 1e-40, -1e38];
        let trial = self.below(12);
        let spread = self.one_of(&[0.01, 1.0, 3.0, 20.0]);
        let one = |numbers: &mut Self| match trial {
            0 => 2.5,
            1 => f32::NEG_INFINITY,
            2 => f32::NAN,
            3 => (numbers.normal() * spread).round(),
            4 => numbers.one_of(&odd),
            5 if numbers.below(4) == 0 => numbers.one_of(&odd),
            6 => numbers.one_of(&[f32::NEG_INFINITY, 3.0, 3.0000002]),
            7 => numbers.one_of(&[2.5, 2.5, 2.5, 2.5, 2.5, 2.51]),
            _ => numbers.normal() * spread,
        };
        (0..len).map(|_| one(self)).collect()
    }

    fn params(&mut self, vocab_size: usize) -> SamplingParams {
        let mut params = SamplingParams {
            temperature: self.one_of(&[0.0, 0.3, 1.0, 1.0, 1.7, 50.0, 1e-30]),
            logprobs: self.one_of(&[None, Some(0), Some(5), Some(20)]),
            logprobs_mode: self.one_of(&[LogprobsMode::Raw, LogprobsMode::Processed]),
            ..Default::default()
        };
        if self.below(2) == 0 {
            params.top_k = self.one_of(&[None, Some(1), Some(3), Some(50), Some(1200), Some(4000), Some(usize::MAX)]);
            params.top_p = self.one_of(&[1.0, 0.95, 0.5, 1e-6, 0.999_999]);
            params.min_p = self.one_of(&[0.0, 0.0, 0.05, 1.0, 1e-9]);
        }
        if self.below(3) == 0 {
            params.repetition_penalty = self.one_of(&[1.0, 1.3, 0.7]);
            params.frequency_penalty = self.one_of(&[0.0, 0.4, -1.1]);
            params.presence_penalty = self.one_of(&[0.0, 0.9]);
        }
        if self.below(3) == 0 {
            let ids = self.ids(6, vocab_size);
            // The same token may come twice.
            params.logit_bias = ids.iter().chain(&ids).map(|&id| (id, self.normal() * 5.0)).collect();
        }
        if self.below(4) == 0 {
            params.min_tokens = 3;
            params.stop_token_ids = self.ids(4, vocab_size);
        }
        if self.below(40) == 0 {
            params.min_tokens = 3;
            params.stop_token_ids = (0..vocab_size as u32).collect();
        }
        params
    }

    /// What a grammar may allow: a few tokens, most of them, or none; shorter than the vocabulary, or longer.
    fn mask(&mut self, vocab_size: usize) -> TokenMask {
        let (end, share) = (1 + self.below(vocab_size + 40), self.one_of(&[0.0, 0.01, 0.9, 1.0]));
        TokenMask::from_ids((0..end as u32).filter(|_| self.unit() < share))
    }

    fn kind<'a>(&mut self, asked: &'a Asked, counts: &'a TokenCounts, vocab_size: usize) -> SampleKind<'a> {
        let Asked { params, allowed } = asked;
        let input = SampleInput {
            params,
            counts,
            seed: self.seed,
            sequence_index: self.below(3) as u32,
            position: self.below(4) as u32,
            end_token_ids: &[0],
            allowed: allowed.as_ref(),
        };
        match self.below(6) {
            0 => SampleKind::BeamCandidates { input, k: self.one_of(&[2, 8, 70]) },
            1 => SampleKind::PromptLogprobs {
                chosen: self.one_of(&[0, self.position % vocab_size as u32, u32::MAX]),
                num_top: self.one_of(&[0, 1, 20]),
            },
            _ => SampleKind::Token(input),
        }
    }
}

/// What a row is sampled by.
struct Asked {
    params: SamplingParams,
    allowed: Option<TokenMask>,
}

/// The table that the test prints: of each kind how many rows were compared, and how far logprobs were apart at most.
#[derive(Default)]
struct Table(BTreeMap<&'static str, (usize, f32)>);

impl Table {
    fn compare(&mut self, row: &SampleRow<'_>, expected: &[Sampled], found: &[Sampled], logits: &[f32]) {
        let name = match row.kind {
            SampleKind::Token(input) if input.params.is_greedy() => "greedy",
            SampleKind::Token(_) => "drawn",
            SampleKind::BeamCandidates { .. } => "beam candidates",
            SampleKind::PromptLogprobs { .. } => "prompt logprobs",
        };
        let (num_rows, worst) = self.0.entry(name).or_default();
        *num_rows += 1;
        for (expected, found) in expected.iter().zip(found) {
            if expected.logprob != found.logprob {
                *worst = worst.max((expected.logprob - found.logprob).abs());
            }
        }
        assert_eq!(found, expected, "{} logits, {row:?}: {:?}...", logits.len(), &logits[..logits.len().min(40)]);
    }

    fn print(&self) {
        println!("{:<16} {:>6} {:>22}", "kind", "rows", "worst logprob error");
        for (name, (num_rows, worst)) in &self.0 {
            println!("{name:<16} {num_rows:>6} {worst:>22e}");
        }
    }
}

/// Samples rows on the device and by the reference.
fn check(device: &Arc<dyn Device>, table: &mut Table, data: &[f32], vocab_size: usize, rows: &[SampleRow<'_>]) {
    let logits = on_device::buffer(device, data, vocab_size, ElemType::F32);
    let mut space = SampleSpace::new(device, logits.max_rows(), vocab_size).unwrap();
    let (mut expected, mut answers) = (SampleResults::default(), Answers::new(device).unwrap());
    cuda(&mut space, &mut answers, &logits, rows).unwrap();
    let found = answers.read().unwrap();
    let mut sampled = vec![0u32; logits.max_rows()];
    // SAFETY: there is a word for each row.
    unsafe { device.download(bytemuck::cast_slice_mut(&mut sampled), space.sampled()).unwrap() };
    let data = Buffer::from_vec(data.to_vec(), vocab_size);
    reference(&mut expected, &data, rows);
    // Of each row the tokens that were sampled from it, of which a step that begins now finds one.
    let mut tokens = BTreeMap::<usize, Vec<u32>>::new();
    for row in rows {
        let [expected, found] = [&mut expected, found].map(|results| Vec::from_iter(results.take_next()));
        table.compare(row, &expected, &found, data.row(row.row));
        if let SampleKind::Token(_) = row.kind {
            tokens.entry(row.row).or_default().push(found[0].token_id);
        }
    }
    assert_eq!(found.take_next().len(), 0, "an answer too many");
    assert!(tokens.iter().all(|(&row, tokens)| tokens.contains(&sampled[row])), "{sampled:?} for {tokens:?}");
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&logits.to_f32().unwrap()), bits(data.data()), "the logits themselves stay");
}

#[test]
fn kernels_equal_the_reference_bit_for_bit() {
    for device in devices() {
        let mut table = Table::default();
        check_random_rows(&device, &mut table);
        println!("{}", device.name());
        table.print();
    }
}

fn check_random_rows(device: &Arc<dyn Device>, table: &mut Table) {
    const VOCAB_SIZES: [usize; 10] = [1, 2, 31, 300, 1000, 4096, 4097, 5003, 9001, 70_001];
    for (seed, vocab_size) in VOCAB_SIZES.into_iter().cycle().take(30).enumerate() {
        let mut numbers = Numbers::new(seed as u64);
        for num_rows in [0, 1, 7] {
            let logits: Vec<f32> = (0..num_rows).flat_map(|_| numbers.logits(vocab_size)).collect();
            let num_wanted = num_rows * 3;
            let asked = |numbers: &mut Numbers| Asked {
                params: numbers.params(vocab_size),
                allowed: (numbers.below(3) == 0).then(|| numbers.mask(vocab_size)),
            };
            let asked: Vec<_> = (0..num_wanted).map(|_| asked(&mut numbers)).collect();
            let counts = TokenCounts::from_tokens(&numbers.ids(40, vocab_size), &numbers.ids(20, vocab_size));
            let row =
                |asked| SampleRow { row: numbers.below(num_rows), kind: numbers.kind(asked, &counts, vocab_size) };
            let rows: Vec<_> = asked.iter().map(row).collect();
            check(device, table, &logits, vocab_size, &rows);
        }
    }
}

#[test]
fn a_launch_that_is_full_is_followed_by_another() {
    devices().iter().for_each(check_full_launches);
}

fn check_full_launches(device: &Arc<dyn Device>) {
    const VOCAB_SIZE: usize = 1500;
    let mut table = Table::default();
    let logits = Numbers::new(3).logits(VOCAB_SIZE);
    let counts = TokenCounts::new(&[]);
    let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
    let biased = SamplingParams { logit_bias: vec![(3, 9.0)], ..greedy.clone() };
    let input = |params| SampleInput {
        params,
        counts: &counts,
        seed: 1,
        sequence_index: 0,
        position: 0,
        end_token_ids: &[],
        allowed: None,
    };
    let row = |kind| SampleRow { row: 0, kind };
    // More rows than a launch takes, more copies, and a list that is longer than one can be.
    let many = vec![row(SampleKind::Token(input(&greedy))); MAX_ROWS + 1];
    check(device, &mut table, &logits, VOCAB_SIZE, &many);
    let mut many = vec![row(SampleKind::Token(input(&biased))); MAX_EDITED_ROWS + 1];
    many.push(row(SampleKind::BeamCandidates { input: input(&biased), k: 1100 }));
    many.push(row(SampleKind::Token(input(&greedy))));
    check(device, &mut table, &logits, VOCAB_SIZE, &many);
    // More results than come at once.
    let long = vec![row(SampleKind::BeamCandidates { input: input(&greedy), k: 1000 }); 140];
    check(device, &mut table, &logits, VOCAB_SIZE, &long);
    // More edits than there is room for.
    let heavy = SamplingParams { logit_bias: vec![(7, 0.01); MAX_EDITS_LEN / 2 + 1], ..greedy.clone() };
    let much = [row(SampleKind::Token(input(&greedy))), row(SampleKind::Token(input(&heavy)))];
    check(device, &mut table, &logits, VOCAB_SIZE, &much);
    // Nothing of a longer row fits.
    let logits = vec![0.5; MAX_VOCAB_SIZE + 1];
    check(device, &mut table, &logits, logits.len(), &[row(SampleKind::Token(input(&greedy)))]);
}
