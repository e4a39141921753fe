//! The rules of beam search, as plainly as they can be said: whole sequences, everything sorted, nothing kept.

use super::*;

type Sequence = Vec<u32>;

fn cumulative(model: &Model, token_ids: &[u32]) -> f64 {
    (0..token_ids.len()).map(|i| f64::from(model.logprobs(&token_ids[..i])[token_ids[i] as usize])).sum()
}

fn score_at(model: &Model, params: BeamParams, token_ids: &[u32], mut len: usize) -> f64 {
    if params.length == BeamLength::PromptAndGenerated {
        len += model.limits(1).prompt_len;
    }
    cumulative(model, token_ids) / (len as f64).powf(params.length_penalty.into())
}

pub(super) fn score(model: &Model, params: BeamParams, token_ids: &[u32], finish: Option<FinishKind>) -> f64 {
    let has_free_end = params.length == BeamLength::PromptAndGenerated && finish == Some(FinishKind::EndToken);
    score_at(model, params, token_ids, token_ids.len() - usize::from(has_free_end))
}

/// Every sequence one token longer than one of `sequences`, best first.
fn continuations(model: &Model, sequences: &[Sequence]) -> Vec<Sequence> {
    let mut longer = Vec::new();
    for sequence in sequences {
        let row = model.logprobs(sequence);
        let possible = (0..model.vocab_size).filter(|&id| row[id as usize].is_finite());
        longer.extend(possible.map(|id| [sequence.as_slice(), &[id]].concat()));
    }
    longer.sort_by(|a, b| cumulative(model, b).total_cmp(&cumulative(model, a)));
    longer
}

pub(super) fn search(model: &Model, params: BeamParams, max_tokens: usize) -> Vec<Found> {
    let width = params.width;
    let mut running = vec![Sequence::new()];
    let mut finished: Vec<Found> = Vec::new();
    for len in 1..=max_tokens {
        let mut top = continuations(model, &running);
        if top.is_empty() {
            let as_they_are = running.iter().map(|token_ids| {
                let score = if len == 1 { 0.0 } else { score(model, params, token_ids, None) };
                Found { token_ids: token_ids.clone(), score, finish: Some(FinishKind::Length) }
            });
            finished.extend(as_they_are);
            finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            finished.truncate(width);
            break;
        }
        top.truncate(width * (1 + model.num_end_tokens as usize).max(2));
        let finish_of = |s: &Sequence| model.ends(s).or((len == max_tokens).then_some(FinishKind::Length));
        for sequence in top.iter().take(width).filter(|s| finish_of(s).is_some()) {
            let finish = finish_of(sequence);
            let score = score(model, params, sequence, finish);
            finished.push(Found { token_ids: sequence.clone(), score, finish });
        }
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(width);
        running = top.into_iter().filter(|s| finish_of(s).is_none()).take(width).collect();
        let Some(best) = running.first() else { break };
        let best_len = match params.early_stopping {
            EarlyStopping::Never if params.length_penalty > 0.0 => max_tokens,
            _ => len,
        };
        let cannot_improve = finished.last().is_some_and(|f| score_at(model, params, best, best_len) <= f.score);
        if finished.len() == width && (params.early_stopping == EarlyStopping::True || cannot_improve) {
            break;
        }
    }
    finished
}

/// Every sequence that can be generated, best first; equals by length, cumulative logprob, tokens.
pub(super) fn all(model: &Model, params: BeamParams, max_tokens: usize) -> Vec<Found> {
    let mut open = vec![Sequence::new()];
    let mut found = Vec::new();
    for len in 1..=max_tokens {
        let (ended, next): (Vec<_>, Vec<_>) =
            continuations(model, &open).into_iter().partition(|s| len == max_tokens || model.ends(s).is_some());
        found.extend(ended.into_iter().map(|token_ids| {
            let finish = model.ends(&token_ids).or(Some(FinishKind::Length));
            let score = score(model, params, &token_ids, finish);
            Found { token_ids, score, finish }
        }));
        open = next;
    }
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found
}
