//! Small cases written out.

use super::*;

const LIMITS: BeamLimits = BeamLimits { prompt_len: 5, max_tokens: 10, num_end_token_ids: 1 };
const END: u32 = 0;

fn end_token(_parent: usize, token_id: u32) -> Option<FinishKind> {
    (token_id == END).then_some(FinishKind::EndToken)
}

fn candidate((parent, token_id, logprob): (usize, u32, f32)) -> BeamCandidate {
    BeamCandidate { parent, token_id, logprob }
}

/// Steps and shows the result as (parent, token) of the beams, and (parent, token, slot) of what finished.
fn check(
    search: &mut BeamSearch,
    candidates: &[(usize, u32, f32)],
    beams: &[(usize, u32)],
    finished: &[(usize, u32, usize)],
) {
    let candidates: Vec<_> = candidates.iter().copied().map(candidate).collect();
    let step = search.step(&candidates, end_token);
    let found: Vec<_> = step.beams.iter().map(|b| (b.parent, b.token_id)).collect();
    assert_eq!(found, beams);
    let found: Vec<_> = step.finished.iter().map(|f| (f.parent, f.token_id.unwrap(), f.slot)).collect();
    assert_eq!(found, finished);
}

#[test]
fn a_step_forks_drops_and_finishes() {
    let mut search = BeamSearch::new(BeamParams::new(2), LIMITS);
    assert_eq!((search.num_running(), search.num_candidates()), (1, 4));
    check(&mut search, &[(0, 1, -1.0), (0, 2, -2.0), (0, 3, -3.0), (0, END, -4.0)], &[(0, 1), (0, 2)], &[]);
    // Beam 1 is dropped, beam 0 is forked and finishes too.
    check(
        &mut search,
        &[(0, END, -0.5), (0, 5, -0.6), (0, 6, -0.7), (0, 7, -0.8), (1, END, -0.5), (1, 8, -0.9)],
        &[(0, 5), (0, 6)],
        &[(0, END, 0)],
    );
    // The end token ranks third of width 2: it does not finish.
    check(&mut search, &[(0, END, -0.5), (0, 1, -0.25), (1, 1, -0.25), (1, END, -9.0)], &[(0, 1), (1, 1)], &[]);
    let best = search.best(3);
    assert_eq!(best[0].source, BeamSource::Running(0));
    assert_eq!(best[2].source, BeamSource::Finished(0));
    assert_eq!(search.token_ids(best[0].source), [1, 5, 1]);
    assert_eq!(search.token_ids(best[2].source), [1, END]);
}

#[test]
fn the_slot_of_the_worst_is_given_to_a_better_one() {
    let params = BeamParams { early_stopping: EarlyStopping::Never, length_penalty: 2.0, ..BeamParams::new(2) };
    let mut search = BeamSearch::new(params, LIMITS);
    check(&mut search, &[(0, END, -1.0), (0, 1, -1.5), (0, 2, -1.5)], &[(0, 1), (0, 2)], &[(0, END, 0)]);
    check(&mut search, &[(0, END, -0.1), (0, 1, -0.2), (1, 1, -0.2)], &[(0, 1), (1, 1)], &[(0, END, 1)]);
    check(&mut search, &[(0, END, -0.1), (0, 1, -0.2), (1, 1, -0.2)], &[(0, 1), (1, 1)], &[(0, END, 0)]);
    let best: Vec<_> = search.best(4).iter().map(|h| h.source).collect();
    use BeamSource::{Finished, Running};
    assert_eq!(best, [Finished(0), Running(0), Running(1), Finished(1)]);
    assert!(search.token_ids(Finished(7)).is_empty() && search.token_ids(Running(2)).is_empty());
}

#[test]
fn ends_are_asked_best_first_and_only_where_it_matters() {
    let mut search = BeamSearch::new(BeamParams::new(2), LIMITS);
    let candidates: Vec<_> = (1..=6).map(|id| candidate((0, id, -(id as f32)))).rev().collect();
    let mut asked = Vec::new();
    // Token 2 ends: token 3 is needed for the second beam, token 4 is not.
    search.step(&candidates, |parent, id| {
        asked.push((parent, id));
        (id == 2).then_some(FinishKind::Stop)
    });
    assert_eq!(asked, [(0, 1), (0, 2), (0, 3)]);
}

#[test]
fn ties_go_to_the_lowest_beam_and_token() {
    let mut search = BeamSearch::new(BeamParams::new(2), LIMITS);
    check(&mut search, &[(0, 9, -1.0), (0, 4, -1.0), (0, 6, -1.0)], &[(0, 4), (0, 6)], &[]);
    check(&mut search, &[(1, 1, -1.0), (0, 8, -1.0), (0, 7, -1.0)], &[(0, 7), (0, 8)], &[]);
    check(&mut search, &[(1, 1, -1.0), (0, 8, -1.0)], &[(0, 8), (1, 1)], &[]);
}

#[test]
fn impossible_tokens_are_never_chosen() {
    let mut search = BeamSearch::new(BeamParams::new(3), LIMITS);
    let row = [(0, 1, f32::NAN), (0, 2, f32::NEG_INFINITY), (0, 3, -1.0), (0, 4, f32::INFINITY), (0, 5, -f32::MAX)];
    check(&mut search, &row, &[(0, 3), (0, 5)], &[]);
    // A beam with nothing possible is dropped.
    check(&mut search, &[(0, 1, f32::NAN), (1, 6, -1.0)], &[(1, 6)], &[]);
    assert!(search.best(9).iter().all(|h| h.score.is_finite()));
}

#[test]
fn where_nothing_is_possible_beams_end_as_they_are() {
    let mut search = BeamSearch::new(BeamParams::new(2), LIMITS);
    check(&mut search, &[(0, 3, -1.0), (0, 4, -2.0)], &[(0, 3), (0, 4)], &[]);
    let step = search.step(&[candidate((0, 1, f32::NAN))], end_token);
    assert!(step.is_done && step.beams.is_empty());
    let ended = |parent| FinishedBeam { parent, token_id: None, kind: FinishKind::Length, slot: parent };
    assert_eq!(step.finished, [ended(0), ended(1)]);
    let best = search.best(2);
    assert_eq!((best[0].score, best[1].score), (-1.0, -2.0));
    assert_eq!(search.token_ids(best[0].source), [3]);

    let mut empty = BeamSearch::new(BeamParams::new(2), LIMITS);
    assert!(empty.step(&[], end_token).is_done);
    assert_eq!((empty.best(2).len(), empty.best(2)[0].score), (1, 0.0));
}

#[test]
fn an_end_on_the_last_token_is_an_end() {
    let limits = BeamLimits { max_tokens: 1, ..LIMITS };
    let mut search = BeamSearch::new(BeamParams::new(2), limits);
    check(&mut search, &[(0, 1, -1.0), (0, END, -2.0), (0, 3, -3.0)], &[], &[(0, 1, 0), (0, END, 1)]);
    let kinds: Vec<_> = search.best(2).iter().map(|h| h.finish.unwrap()).collect();
    assert_eq!(kinds, [FinishKind::Length, FinishKind::EndToken]);
}

#[test]
fn scores_stay_finite_at_any_length_penalty() {
    for length_penalty in [f32::MAX, f32::MIN, 1e4, -1e4] {
        for logprob in [-1.0, 0.0, 2.0] {
            let params = BeamParams { length_penalty, ..BeamParams::new(2) };
            let mut search = BeamSearch::new(params, LIMITS);
            check(&mut search, &[(0, 1, logprob), (0, 2, logprob)], &[(0, 1), (0, 2)], &[]);
            check(&mut search, &[(0, END, logprob), (1, 1, logprob)], &[(1, 1)], &[(0, END, 0)]);
            assert!(search.best(3).iter().all(|h| h.score.is_finite()), "{length_penalty} {logprob}");
        }
    }
}

#[test]
fn the_end_token_counts_as_the_convention_says() {
    let check = |length: BeamLength, ends: FinishKind, divisor: f64| {
        let params = BeamParams { length, ..BeamParams::new(1) };
        let mut search = BeamSearch::new(params, LIMITS);
        search.step(&[candidate((0, 1, -1.0))], |_, _| None);
        search.step(&[candidate((0, 2, -2.0))], |_, _| Some(ends));
        assert_eq!(search.best(1)[0].score, -3.0 / divisor, "{length:?} {ends:?}");
    };
    check(BeamLength::Generated, FinishKind::EndToken, 2.0);
    check(BeamLength::Generated, FinishKind::Stop, 2.0);
    check(BeamLength::PromptAndGenerated, FinishKind::EndToken, 6.0);
    check(BeamLength::PromptAndGenerated, FinishKind::Stop, 7.0);
}
