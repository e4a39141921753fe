//! Rows and settings at the edge: nothing panics, nothing impossible is chosen.

use super::*;

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let check = |row: &[f32], params: SamplingParams, expected| {
        let params = SamplingParams { temperature: 0.0, ..params };
        assert_eq!(Case::new(row, params).sample_afresh(0, 0).token_id, expected, "{row:?}");
    };
    check(&[1.0, 5.0, 5.0, 2.0], SamplingParams::default(), 1);
    check(&[-0.0, 0.0], SamplingParams::default(), 0);
    check(&[f32::NAN, -3.0, f32::NAN, -3.0], SamplingParams::default(), 1);
    check(&[1.0, f32::INFINITY, f32::MAX], SamplingParams::default(), 1);
    check(&[1.0, 5.0, 5.0], SamplingParams { logit_bias: vec![(2, 0.5)], ..Default::default() }, 2);
    let mut long = vec![0.0; 1000];
    long[700] = 1.0;
    long[701] = 1.0;
    check(&long, SamplingParams::default(), 700);
}

#[test]
fn filters_do_not_move_the_greedy_choice() {
    for seed in 0..50 {
        let row = TestRng::new(3000 + seed).row(300);
        let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
        let expected = Case::new(&row, greedy.clone()).sample_afresh(0, 0);
        let filtered = SamplingParams { top_k: Some(3), top_p: 0.5, min_p: 0.4, ..greedy };
        assert_eq!(Case::new(&row, filtered).sample_afresh(0, 0), expected, "seed {seed}");
        // One survivor is as good as greedy.
        let single = SamplingParams { top_p: 1e-9, ..Default::default() };
        assert_eq!(Case::new(&row, single).sample_afresh(seed, 0), expected, "seed {seed}");
    }
}

#[test]
fn no_row_and_no_setting_panics_or_chooses_the_impossible() {
    const NAN: f32 = f32::NAN;
    const INF: f32 = f32::INFINITY;
    let rows: Vec<Vec<f32>> = vec![
        vec![],
        vec![0.0],
        vec![NAN; 70],
        vec![-INF; 70],
        vec![INF; 70],
        vec![NAN, -INF, INF, -2.0, f32::MIN, f32::MAX],
        vec![f32::MIN, -INF, f32::MIN, NAN],
        vec![-INF, -INF, 1.0],
        vec![0.0; 200],
    ];
    for row in &rows {
        let has_number = row.iter().any(|&logit| logit > -INF);
        for setting in 0..768 {
            let pick = |divisor: usize| setting / divisor;
            let params = SamplingParams {
                temperature: [0.0, 1.0, f32::from_bits(1), f32::MAX][pick(1) % 4],
                top_k: [None, Some(1), Some(3), Some(1000)][pick(4) % 4],
                top_p: [1.0, 0.5, f32::MIN_POSITIVE][pick(16) % 3],
                min_p: [0.0, 1.0][pick(48) % 2],
                logit_bias: [vec![], vec![(0, -100.0), (9999, 1.0)]][pick(96) % 2].clone(),
                logprobs: [None, Some(20)][pick(192) % 2],
                logprobs_mode: [LogprobsMode::Raw, LogprobsMode::Processed][pick(384) % 2],
                ..Default::default()
            };
            let sampled = Case::new(row, params.clone()).sample_afresh(setting as u64, 0);
            let logit = row.get(sampled.token_id as usize).copied();
            assert!(logit.is_some() || row.is_empty(), "{row:?} {params:?}: {sampled:?}");
            assert!(!has_number || logit > Some(-INF), "{row:?} {params:?}: {sampled:?}");
            assert!(sampled.logprob <= 0.0, "{row:?} {params:?}: {sampled:?}");
        }
    }
}

#[test]
fn where_edits_leave_nothing_the_raw_row_decides() {
    let params = SamplingParams {
        min_tokens: 5,
        stop_token_ids: vec![0],
        logprobs: Some(2),
        logprobs_mode: LogprobsMode::Processed,
        ..Default::default()
    };
    let mut case = Case::new(&[1.0, 3.0, 2.0], params);
    case.end_token_ids = vec![1, 2];
    let sampled = case.sample_afresh(0, 0);
    let plain = SamplingParams { temperature: 0.0, logprobs: Some(2), ..Default::default() };
    assert_eq!(sampled, Case::new(&[1.0, 3.0, 2.0], plain).sample_afresh(0, 0));
    assert_eq!(sampled.token_id, 1);
}

#[test]
fn ends_are_never_drawn_before_min_tokens() {
    let params = SamplingParams { min_tokens: 50, stop_token_ids: vec![3], ..Default::default() };
    let mut case = Case::new(&[8.0, 0.0, 0.0, 8.0, 0.0], params);
    case.end_token_ids = vec![0];
    let is_end = |position| [0, 3].contains(&case.sample_afresh(4, position).token_id);
    assert!(!(0..50).any(is_end));
    assert!((50..100).any(is_end));
}

#[test]
fn a_token_outside_the_row_has_no_probability() {
    let report = Sampler::new(2).prompt_logprobs(&[1.0, 2.0], 7, 1);
    assert_eq!((report.chosen.logprob, report.chosen.rank), (f32::NEG_INFINITY, 3));
    assert_eq!(report.top.len(), 1);
    let mut nothing = [f32::NAN, f32::NEG_INFINITY];
    log_softmax(&mut nothing);
    assert_eq!(nothing, [f32::NEG_INFINITY; 2]);
    log_softmax(&mut []);
}
