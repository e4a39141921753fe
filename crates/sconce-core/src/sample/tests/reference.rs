//! Filters, selections and logprobs against full sorts in f64.

use super::*;

/// The indices of a row, best first, without what can never be chosen.
fn sorted(row: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len() as u32).filter(|&id| row[id as usize] > f32::NEG_INFINITY).collect();
    ids.sort_by(|&a, &b| row[b as usize].partial_cmp(&row[a as usize]).unwrap().then(a.cmp(&b)));
    ids
}

/// What the filters of `params` leave of a row: (token, probability), best first.
fn filtered(row: &[f32], params: &SamplingParams) -> Vec<(u32, f64)> {
    let mut ids = sorted(row);
    let max = f64::from(row[ids[0] as usize]);
    let weight = |id: &u32| ((f64::from(row[*id as usize]) - max) / f64::from(params.temperature)).exp();
    let total = |ids: &[u32]| ids.iter().map(weight).sum::<f64>();
    if let Some(k) = params.top_k.filter(|&k| k < ids.len()) {
        let kth = row[ids[k - 1] as usize];
        ids.retain(|&id| row[id as usize] >= kth);
    }
    if params.top_p < 1.0 {
        let target = total(&ids) * f64::from(params.top_p);
        let mut mass = 0.0;
        let mut len = 0;
        while mass < target {
            mass += weight(&ids[len]);
            len += 1;
        }
        ids.truncate(len);
    }
    ids.retain(|id| weight(id) >= f64::from(params.min_p));
    let total = total(&ids);
    ids.iter().map(|id| (*id, weight(id) / total)).collect()
}

#[test]
fn filters_agree_with_full_sorts() {
    for seed in 0..300 {
        let mut rng = TestRng::new(seed);
        let row_len = ROW_LENS[rng.below(ROW_LENS.len())];
        let row = rng.row(row_len);
        let mut params = SamplingParams { temperature: (0.2 + 2.0 * rng.unit()) as f32, ..Default::default() };
        if rng.below(2) == 0 {
            let most = [50, row_len][rng.below(2)];
            params.top_k = Some(1 + rng.below(most));
        }
        if rng.below(2) == 0 {
            params.top_p = [0.001, 0.3, 0.9, 0.9999, 1.0 - f32::EPSILON][rng.below(5)] - (rng.unit() * 1e-4) as f32;
            params.top_p = params.top_p.max(1e-6);
        }
        if rng.below(2) == 0 {
            params.min_p = (rng.unit() * 0.2) as f32;
        }
        let expected = filtered(&row, &params);
        let found = Case::new(&row, params.clone()).survivors();
        let ids = |survivors: &[(u32, f64)]| survivors.iter().map(|&(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(&found), ids(&expected), "seed {seed}: {row_len} tokens, {params:?}");
        for ((id, found), (_, expected)) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6, "seed {seed}: token {id}: {found}, not {expected}");
        }
    }
}

#[test]
fn boundary_ties_go_to_the_lowest_ids_under_top_p_and_stay_under_top_k() {
    let row = [0.0, 1.0, 1.0, 1.0, 1.0, -9.0];
    let survivors = |params| Case::new(&row, params).survivors().iter().map(|&(id, _)| id).collect::<Vec<_>>();
    assert_eq!(survivors(SamplingParams { top_k: Some(2), ..Default::default() }), [1, 2, 3, 4]);
    assert_eq!(survivors(SamplingParams { top_p: 0.4, ..Default::default() }), [1, 2]);
    assert_eq!(survivors(SamplingParams { top_p: 1e-6, ..Default::default() }), [1]);
    assert_eq!(survivors(SamplingParams { min_p: 1.0, ..Default::default() }), [1, 2, 3, 4]);
}

#[test]
fn top_candidates_are_those_of_a_full_sort() {
    let mut selector = Selector::default();
    let mut found = vec![(7, 7.0)];
    for seed in 0..200 {
        let mut rng = TestRng::new(1000 + seed);
        let mut row = rng.row(ROW_LENS[seed as usize % ROW_LENS.len()]);
        for _ in 0..rng.below(4) {
            let idx = rng.below(row.len());
            row[idx] = [f32::NAN, f32::NEG_INFINITY, 0.0, -0.0][rng.below(4)];
        }
        let k = [0, 1, 20, 300, row.len(), 2 * row.len()][rng.below(6)];
        let expected: Vec<(u32, f32)> = sorted(&row).iter().take(k).map(|&id| (id, row[id as usize])).collect();
        top_candidates(&row, k, &mut selector, &mut found);
        assert_eq!(found, expected, "seed {seed}: best {k} of {}", row.len());
    }
}

/// log-softmax of the row in f64.
fn logprobs_of(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    row.iter().map(|&logit| f64::from(logit) - f64::from(max) - total.ln()).collect()
}

#[test]
fn raw_logprobs_are_those_before_everything() {
    for seed in 0..100 {
        let mut rng = TestRng::new(2000 + seed);
        let row_len = ROW_LENS[rng.below(ROW_LENS.len())];
        let row = rng.row(row_len);
        let temperature = [0.0, 1.0, 0.6][rng.below(3)];
        let top_p = [1.0, 0.9][rng.below(2)];
        let logit_bias = if rng.below(2) == 0 { vec![] } else { vec![(0, 3.0)] };
        let params = SamplingParams { temperature, top_p, logit_bias, logprobs: Some(20), ..Default::default() };
        let sampled = Case::new(&row, params.clone()).sample_afresh(seed, 0);
        let report = sampled.logprobs.unwrap();
        let unreported = Case::new(&row, SamplingParams { logprobs: None, ..params }).sample_afresh(seed, 0);
        assert_eq!((unreported.token_id, unreported.logprob), (sampled.token_id, sampled.logprob));

        let order = sorted(&row);
        let expected = logprobs_of(&row);
        let ids: Vec<u32> = report.top.iter().map(|logprob| logprob.token_id).collect();
        assert_eq!(ids, order[..row_len.min(20)], "seed {seed}");
        assert_eq!(report.chosen.token_id, sampled.token_id);
        assert_eq!(report.chosen.logprob, sampled.logprob);
        for logprob in report.top.iter().chain([&report.chosen]) {
            assert_eq!(order[logprob.rank - 1], logprob.token_id, "seed {seed}");
            let expected = expected[logprob.token_id as usize];
            assert!((f64::from(logprob.logprob) - expected).abs() < 2e-6, "seed {seed}: {logprob:?}, not {expected}");
        }
        let of_prompt = Sampler::new(row_len).prompt_logprobs(&row, sampled.token_id, 20);
        assert_eq!(of_prompt, report, "seed {seed}");
        let mut in_place = row.clone();
        log_softmax(&mut in_place);
        assert_eq!(in_place[sampled.token_id as usize], sampled.logprob, "seed {seed}");
    }
}

#[test]
fn processed_logprobs_are_those_that_tokens_are_drawn_by() {
    let row = [1.0, 3.0, 2.0, 2.5, -1.0];
    let check = |params: SamplingParams, expected_row: &[f32], num_survivors: usize| {
        let params = SamplingParams { logprobs: Some(3), logprobs_mode: LogprobsMode::Processed, ..params };
        let sampled = Case::new(&row, params).sample_afresh(1, 0);
        let report = sampled.logprobs.unwrap();
        let expected = logprobs_of(expected_row);
        assert_eq!(report.top.len(), num_survivors.min(3));
        assert!(report.chosen.rank <= num_survivors);
        assert_eq!(report.chosen.logprob, sampled.logprob);
        for logprob in report.top.iter().chain([&report.chosen]) {
            let expected = expected[logprob.token_id as usize];
            assert!((f64::from(logprob.logprob) - expected).abs() < 1e-6, "{logprob:?}, not {expected}");
        }
    };
    const OUT: f32 = f32::NEG_INFINITY;
    let plain = SamplingParams::default();
    check(plain.clone(), &row, 5);
    check(SamplingParams { temperature: 0.0, top_k: Some(2), ..plain.clone() }, &row, 5);
    check(SamplingParams { temperature: 0.5, ..plain.clone() }, &[2.0, 6.0, 4.0, 5.0, -2.0], 5);
    check(SamplingParams { top_k: Some(2), ..plain.clone() }, &[OUT, 3.0, OUT, 2.5, OUT], 2);
    check(SamplingParams { top_k: Some(4), ..plain.clone() }, &[1.0, 3.0, 2.0, 2.5, OUT], 4);
    check(SamplingParams { min_p: 0.3, logit_bias: vec![(0, 5.0)], ..plain }, &[6.0, OUT, OUT, OUT, OUT], 1);
}
