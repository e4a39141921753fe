//! Beam search over made-up language models, against slow references.

mod edges;
mod reference;

use super::*;
use crate::sample::uniform;

const WIDTHS: [usize; 4] = [1, 2, 3, 5];
const PENALTIES: [f32; 6] = [-2.0, -0.5, 0.0, 0.5, 1.0, 2.5];
const EARLY: [EarlyStopping; 3] = [EarlyStopping::False, EarlyStopping::True, EarlyStopping::Never];
const LENGTHS: [BeamLength; 2] = [BeamLength::Generated, BeamLength::PromptAndGenerated];

/// A language model whose logprobs are a function of (seed, tokens so far). They are few and coarse, so that there are
/// ties, and their sums exact.
struct Model {
    seed: u64,
    vocab_size: u32,
    num_end_tokens: u32,
    /// Two tokens that end a sequence where they stand side by side, as a stop text would.
    stop_pair: Option<[u32; 2]>,
}

impl Model {
    fn new(seed: u64) -> Self {
        let draw = |number, below: u32| (uniform(seed, 0, 0, number) * f64::from(below)) as u32;
        let vocab_size = 2 + draw(0, 6);
        let stop_pair = (draw(1, 2) == 0).then(|| [draw(2, vocab_size), draw(3, vocab_size)]);
        Self { seed, vocab_size, num_end_tokens: draw(4, 3).min(vocab_size - 1), stop_pair }
    }

    /// Of each token after `token_ids`; now and then a token is impossible.
    fn logprobs(&self, token_ids: &[u32]) -> Vec<f32> {
        let path = token_ids.iter().fold(1, |hash: u32, &id| hash.wrapping_mul(31).wrapping_add(id + 1));
        let logprob = |id: u32| match (uniform(self.seed, 1, path, id) * 16.0) as u32 {
            15 if id.is_multiple_of(2) => f32::NAN,
            15 => f32::NEG_INFINITY,
            steps => -0.25 * (steps + 1) as f32,
        };
        (0..self.vocab_size).map(logprob).collect()
    }

    /// How a sequence that has grown by its last token ends.
    fn ends(&self, token_ids: &[u32]) -> Option<FinishKind> {
        if token_ids.last().is_some_and(|&id| id < self.num_end_tokens) {
            return Some(FinishKind::EndToken);
        }
        let stops = self.stop_pair.is_some_and(|pair| token_ids.ends_with(&pair));
        stops.then_some(FinishKind::Stop)
    }

    fn limits(&self, max_tokens: usize) -> BeamLimits {
        BeamLimits { prompt_len: 3, max_tokens, num_end_token_ids: self.num_end_tokens as usize }
    }
}

/// A result in full.
#[derive(Debug, PartialEq)]
struct Found {
    token_ids: Vec<u32>,
    score: f64,
    finish: Option<FinishKind>,
}

/// A search with sequences that are moved as its steps say: what an engine does with blocks and text.
struct Driver<'a> {
    model: &'a Model,
    search: BeamSearch,
    beams: Vec<Vec<u32>>,
    slots: Vec<Vec<u32>>,
}

impl<'a> Driver<'a> {
    fn new(model: &'a Model, params: BeamParams, max_tokens: usize) -> Self {
        let search = BeamSearch::new(params, model.limits(max_tokens));
        Self { model, search, beams: vec![Vec::new()], slots: vec![Vec::new(); params.width] }
    }

    fn step(&mut self) {
        let Self { model, search, beams, slots } = self;
        let mut candidates = Vec::new();
        for (parent, token_ids) in beams.iter().enumerate() {
            let row = model.logprobs(token_ids).into_iter();
            candidates.extend((0..).zip(row).map(|(token_id, logprob)| BeamCandidate { parent, token_id, logprob }));
        }
        // Their order means nothing.
        candidates.reverse();
        let grown = |parent: usize, token_id: Option<u32>| beams[parent].iter().copied().chain(token_id).collect();
        let step = search.step(&candidates, |parent, id| model.ends(&grown(parent, Some(id)) as &Vec<u32>));
        for finished in &step.finished {
            slots[finished.slot] = grown(finished.parent, finished.token_id);
        }
        let next = step.beams.iter().map(|beam| grown(beam.parent, Some(beam.token_id))).collect();
        assert_eq!(step.is_done, step.beams.is_empty());
        self.beams = next;
        assert_eq!((self.search.num_running(), self.search.is_done()), (self.beams.len(), self.beams.is_empty()));
        for (idx, beam) in self.beams.iter().enumerate() {
            assert_eq!(&self.search.token_ids(BeamSource::Running(idx)), beam);
            assert_eq!(beam.len(), self.search.num_generated());
        }
    }

    /// The best hypotheses; the search's own tokens must be those that the steps have made.
    fn best(&self) -> Vec<Found> {
        let found = |h: &BeamHypothesis| {
            let token_ids = match h.source {
                BeamSource::Running(idx) => self.beams[idx].clone(),
                BeamSource::Finished(slot) => self.slots[slot].clone(),
            };
            assert_eq!(self.search.token_ids(h.source), token_ids);
            Found { token_ids, score: h.score, finish: h.finish }
        };
        self.search.best(usize::MAX).iter().map(found).collect()
    }

    fn run(mut self) -> Vec<Found> {
        while !self.search.is_done() {
            self.step();
        }
        self.best()
    }
}

fn search(model: &Model, params: BeamParams, max_tokens: usize) -> Vec<Found> {
    Driver::new(model, params, max_tokens).run()
}

/// Every combination of parameters at a width.
fn all_params(width: usize) -> impl Iterator<Item = BeamParams> {
    let lengths = |length| EARLY.map(|early_stopping| (length, early_stopping));
    let penalties = move |(length, early_stopping)| {
        PENALTIES.map(|length_penalty| BeamParams { width, length_penalty, early_stopping, length })
    };
    LENGTHS.into_iter().flat_map(lengths).flat_map(penalties)
}

#[test]
fn searches_equal_the_reference() {
    let (mut num_early, mut num_short) = (0, 0);
    for seed in 0..60 {
        let model = Model::new(seed);
        let max_tokens = 1 + seed as usize % 9;
        for params in WIDTHS.into_iter().flat_map(all_params) {
            let found = search(&model, params, max_tokens);
            let expected = reference::search(&model, params, max_tokens);
            assert_eq!(found, expected, "seed {seed}, {params:?}, max_tokens {max_tokens}");
            num_early += usize::from(found.iter().all(|h| h.token_ids.len() < max_tokens));
            num_short += usize::from(found.len() < params.width);
        }
    }
    // The cases are of all sorts: decided before max_tokens, and with less to find than there is room for.
    assert!(num_early > 1000 && num_short > 100, "{num_early} ended early, {num_short} found fewer than width");
}

#[test]
fn a_search_wide_enough_finds_the_best_of_all() {
    for seed in 0..20 {
        let model = Model { vocab_size: 3, ..Model::new(seed) };
        let max_tokens = 4;
        for params in all_params(3usize.pow(4)) {
            let found = search(&model, params, max_tokens);
            assert_eq!(found, reference::all(&model, params, max_tokens), "seed {seed}, {params:?}");
        }
    }
}

#[test]
fn one_beam_is_greedy() {
    for seed in 0..200 {
        let model = Model::new(seed);
        let mut greedy = Vec::new();
        while greedy.len() < 12 && model.ends(&greedy).is_none() {
            let row = model.logprobs(&greedy);
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let Some(token_id) = row.iter().position(|&l| l == best && l.is_finite()) else { break };
            greedy.push(token_id as u32);
        }
        for params in all_params(1).filter(|params| params.early_stopping == EarlyStopping::True) {
            let found = search(&model, params, 12);
            assert_eq!(found.len(), 1, "seed {seed}");
            assert_eq!(found[0].token_ids, greedy, "seed {seed}, {params:?}");
        }
    }
}

#[test]
fn scores_follow_from_token_logprobs() {
    for seed in 0..40 {
        let model = Model::new(seed);
        for params in all_params(4) {
            let mut driver = Driver::new(&model, params, 8);
            while !driver.search.is_done() {
                driver.step();
                let best = driver.best();
                assert!(best.is_sorted_by(|a, b| a.score >= b.score), "seed {seed}, {params:?}");
                for h in best.iter().filter(|h| !h.token_ids.is_empty()) {
                    let expected = reference::score(&model, params, &h.token_ids, h.finish);
                    assert_eq!(h.score, expected, "seed {seed}, {params:?}, {h:?}");
                }
            }
        }
    }
}
