//! Beams, best_of and n inside continuous batching, on a tiny model with random weights.

use std::time::Duration;

use crate::common::{BLOCK_BYTES, prompt, tiny_engine, used_blocks, wait_until};
use sconce_core::config::{BeamLength, BeamParams, EarlyStopping, SamplingParams};
use sconce_core::engine::{
    CompletionOutput, EngineHandle, EngineStatus, FinishReason, GenerationOutput, GenerationRequest, StopReason,
    StreamEvent,
};

fn run(engine: &EngineHandle, request: GenerationRequest) -> GenerationOutput {
    engine.submit(request).unwrap().blocking_collect().unwrap()
}

fn beams(width: usize) -> SamplingParams {
    SamplingParams { n: width, beam: Some(BeamParams::new(width)), max_tokens: Some(16), ..Default::default() }
}

fn tokens(outputs: &[CompletionOutput]) -> Vec<&[u32]> {
    outputs.iter().map(|o| o.token_ids.as_slice()).collect()
}

/// A request of one of four kinds, with penalties, stop texts and stop ids.
fn request_of_any_kind(i: usize) -> GenerationRequest {
    let length_penalty = [0.0, 1.0, -0.5, 2.0][i / 4 % 4];
    let early_stopping = [EarlyStopping::False, EarlyStopping::True, EarlyStopping::Never][i / 4 % 3];
    let beam = BeamParams { length_penalty, early_stopping, ..BeamParams::new(4) };
    let (n, best_of, beam, temperature) = match i % 4 {
        0 => (1, None, None, 0.0),
        1 => (3, None, None, 0.9),
        2 => (2, Some(5), None, 1.1),
        _ => (1 + i / 4 % 4, None, Some(beam), 1.0),
    };
    let params = SamplingParams {
        n,
        best_of,
        beam,
        temperature,
        seed: Some(i as u64),
        max_tokens: Some(40 + i % 47),
        min_tokens: 20 + i % 9,
        repetition_penalty: 1.1,
        presence_penalty: 0.1 * (i % 5) as f32,
        frequency_penalty: 0.2,
        stop: vec!["q".into(), format!("{}z", i % 10)],
        stop_token_ids: vec![(i * 7 % 256) as u32],
        logprobs: i.is_multiple_of(5).then_some(2),
        logit_bias: if i % 7 == 3 { vec![(33, 2.0), (200, -5.0)] } else { vec![] },
        ..Default::default()
    };
    // Some prompts begin alike.
    GenerationRequest::tokens(prompt(1 + 3 * (i % 20), i % 6)).with_params(params)
}

#[test]
fn sixty_four_requests_of_all_kinds_equal_their_lone_runs_in_a_pool_for_a_quarter_of_them() {
    const NUM_REQUESTS: usize = 64;
    let quiet = tiny_engine(|c| c.prefix_cache = false);
    let lone: Vec<_> = (0..NUM_REQUESTS).map(|i| run(&quiet, request_of_any_kind(i))).collect();

    // Blocks that the answers alone would need, each on its own.
    let blocks_of = |output: &GenerationOutput, i: usize| {
        let prompt_len = 1 + 3 * (i % 20);
        let blocks = |o: &CompletionOutput| (prompt_len + o.token_ids.len()).div_ceil(16);
        output.outputs.iter().map(blocks).sum::<usize>()
    };
    let quarter = lone.iter().enumerate().map(|(i, output)| blocks_of(output, i)).sum::<usize>() / 4;
    // 10 blocks hold one sequence of the whole context, and not the candidates of one request.
    for (num_blocks, prefix_cache) in [(quarter, true), (quarter, false), (10, true), (10, false)] {
        let engine = tiny_engine(|c| {
            c.max_model_len = Some(160);
            c.kv_cache_bytes = Some(num_blocks * BLOCK_BYTES);
            (c.max_num_seqs, c.max_num_batched_tokens) = (Some(128), Some(160));
            c.prefix_cache = prefix_cache;
        });
        assert_eq!(engine.info().num_kv_blocks, num_blocks);
        let mut streams: Vec<_> =
            (0..NUM_REQUESTS).map(|i| Some(engine.submit(request_of_any_kind(i)).unwrap())).collect();
        // A third goes away at different times.
        for round in 0..NUM_REQUESTS / 3 {
            let i = (round * 37 + 5) % NUM_REQUESTS;
            streams[i] = None;
            std::thread::sleep(Duration::from_micros((round as u64 * 7919) % 3000));
        }
        let mut num_compared = 0;
        for (i, stream) in streams.into_iter().enumerate() {
            let Some(stream) = stream else { continue };
            let mut found = stream.blocking_collect().unwrap();
            found.usage.cached_tokens = 0;
            assert_eq!(found, lone[i], "request {i}");
            num_compared += 1;
        }
        assert_eq!(num_compared, NUM_REQUESTS - NUM_REQUESTS / 3);
        wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
        let get = |counter| EngineStatus::get(counter);
        println!("{num_blocks} blocks, {} preemptions", get(&engine.status().num_preemptions));
        assert!(num_blocks > 10 || get(&engine.status().num_preemptions) > 0, "the pool was meant to be too small");
        let has_found = get(&engine.status().num_cached_prompt_tokens) > 0;
        assert!(has_found == prefix_cache || num_blocks == 10, "a pool of one sequence keeps no prompt for long");
        assert_eq!(get(&engine.status().num_unfinished_requests), 0);
    }
}

#[test]
fn the_best_of_five_are_the_best_of_the_same_five() {
    let engine = tiny_engine(|_| {});
    let params = SamplingParams { seed: Some(3), max_tokens: Some(20), logprobs: Some(1), ..Default::default() };
    let request = |n: usize, best_of: Option<usize>| {
        GenerationRequest::tokens(prompt(20, 1)).with_params(SamplingParams { n, best_of, ..params.clone() })
    };
    let all = run(&engine, request(5, None));
    let best = run(&engine, request(2, Some(5)));
    assert_eq!(tokens(&best.outputs), tokens(&all.outputs)[..2]);
    for (i, (best, same)) in best.outputs.iter().zip(&all.outputs).enumerate() {
        assert_eq!((best.index, &best.text, &best.logprobs), (i, &same.text, &same.logprobs));
        assert_eq!(best.finish, same.finish);
    }
    let num_tokens: usize = best.outputs.iter().map(|o| o.token_ids.len()).sum();
    assert_eq!(best.usage.completion_tokens, num_tokens);
    // As many as are returned: nothing is ranked while they grow.
    assert_eq!(run(&engine, request(5, Some(5))).outputs, all.outputs);
}

#[test]
fn greedy_best_of_is_one_decode() {
    let engine = tiny_engine(|_| {});
    let params = SamplingParams { n: 2, best_of: Some(4), temperature: 0.0, max_tokens: Some(9), ..Default::default() };
    let output = run(&engine, GenerationRequest::tokens(prompt(5, 1)).with_params(params));
    assert_eq!((output.outputs.len(), output.usage.completion_tokens), (2, 18));
    assert_eq!(EngineStatus::get(&engine.status().num_generated_tokens), 9);
}

#[test]
fn a_stream_shows_the_best_so_far_and_ends_with_the_answer() {
    let engine = tiny_engine(|_| {});
    let best_of = SamplingParams { n: 2, best_of: Some(4), seed: Some(1), max_tokens: Some(24), ..Default::default() };
    for params in [beams(3), best_of] {
        let n = params.n;
        let request = || GenerationRequest::tokens(prompt(9, 4)).with_params(params.clone());
        let expected = run(&engine, request());
        let mut stream = engine.submit(request()).unwrap();
        let (mut shown, mut found) = (0, GenerationOutput::new(n));
        while let Some(event) = stream.blocking_next() {
            let event = event.unwrap();
            if let StreamEvent::Best(outputs) = &event {
                assert!((1..=n).contains(&outputs.len()));
                assert!(outputs.iter().enumerate().all(|(i, o)| o.index == i && !o.token_ids.is_empty()));
                shown += 1;
            }
            assert!(!matches!(event, StreamEvent::Token(_)));
            found.apply(event);
        }
        found.usage.cached_tokens = expected.usage.cached_tokens;
        assert_eq!(found, expected);
        assert!(shown > 1, "only the answer was shown");
    }
}

#[test]
fn an_answer_that_is_waited_for_comes_without_snapshots() {
    let engine = tiny_engine(|_| {});
    let mut stream = engine.submit(GenerationRequest::tokens([1, 2]).with_params(beams(2))).unwrap();
    stream.skip_snapshots();
    let mut events = Vec::new();
    while let Some(event) = stream.blocking_next() {
        events.push(event.unwrap());
    }
    // One may have been on its way before it was told.
    assert!(events.len() <= 3, "{events:?}");
    assert!(matches!(events[events.len() - 2..], [StreamEvent::Best(_), StreamEvent::Done(_)]));
}

/// Cumulative logprobs and scores are those of the tokens, whatever edits the logits.
#[test]
fn scores_follow_from_the_tokens_logprobs() {
    let engine = tiny_engine(|_| {});
    for (length_penalty, length) in [(1.0, BeamLength::Generated), (-0.7, BeamLength::PromptAndGenerated)] {
        for penalty in [1.0, 1.4] {
            let beam = BeamParams { length_penalty, length, ..BeamParams::new(4) };
            let params = SamplingParams {
                beam: Some(beam),
                repetition_penalty: penalty,
                logprobs: Some(3),
                logprobs_mode: sconce_core::config::LogprobsMode::Processed,
                ..beams(4)
            };
            let output = run(&engine, GenerationRequest::tokens(prompt(12, 2)).with_params(params));
            assert_eq!(output.outputs.len(), 4);
            let mut last = f64::INFINITY;
            for o in &output.outputs {
                let finish = o.finish.as_ref().unwrap();
                assert_eq!(o.logprobs.len(), o.token_ids.len());
                assert!(
                    o.logprobs.iter().zip(&o.token_ids).all(|(l, &id)| l.chosen.token_id == id && l.top.len() == 3)
                );
                let sum: f64 = o.logprobs.iter().map(|l| f64::from(l.chosen.logprob)).sum();
                assert!((finish.cumulative_logprob - sum).abs() < 1e-9);
                let mut len = o.token_ids.len();
                if length == BeamLength::PromptAndGenerated {
                    len += 12 - usize::from(o.token_ids.last() == Some(&257));
                }
                let score = sum / (len as f64).powf(f64::from(length_penalty));
                assert!((finish.beam_score.unwrap() - score).abs() < 1e-9, "{finish:?}, {score}");
                assert!(score <= last, "best first");
                last = score;
            }
        }
    }
}

#[test]
fn beams_end_at_stop_texts_stop_ids_and_not_before_min_tokens() {
    let engine = tiny_engine(|_| {});
    let run = |params: SamplingParams| run(&engine, GenerationRequest::text("hello").with_params(params)).outputs;
    let free = run(SamplingParams { ignore_eos: true, ..beams(4) });
    assert!(free.iter().all(|o| o.token_ids.len() == 16));
    assert!(free.iter().all(|o| o.finish.as_ref().unwrap().reason == FinishReason::Length));

    let id = free[0].token_ids[6];
    let stopped = run(SamplingParams { ignore_eos: true, stop_token_ids: vec![id], ..beams(4) });
    let ended = stopped.iter().filter(|o| o.token_ids.last() == Some(&id)).collect::<Vec<_>>();
    assert!(!ended.is_empty());
    for o in ended {
        let finish = o.finish.as_ref().unwrap();
        assert_eq!((finish.reason, &finish.stop_reason), (FinishReason::Stop, &Some(StopReason::Token(id))));
        assert_eq!(o.token_ids.iter().filter(|&&t| t == id).count(), 1);
        assert_eq!(o.text, engine.tokenizer().decode(&o.token_ids[..o.token_ids.len() - 1], true));
    }
    let late = run(SamplingParams { ignore_eos: true, stop_token_ids: vec![id], min_tokens: 9, ..beams(4) });
    assert!(late.iter().all(|o| o.token_ids.len() >= 9));

    // A candidate that ends may finish only if it is among the best of its step: not every stop text is reached.
    let mut num_ended = 0;
    for at in 0..8 {
        let stop: String = free[0].text.chars().skip(at).take(2).collect();
        let stopped = run(SamplingParams { ignore_eos: true, stop: vec![stop.clone()], ..beams(4) });
        let reason = Some(StopReason::Text(stop.clone()));
        num_ended += stopped.iter().filter(|o| o.finish.as_ref().unwrap().stop_reason == reason).count();
        assert!(stopped.iter().all(|o| !o.text.contains(&stop)), "{stop:?}: {stopped:?}");
    }
    assert!(num_ended > 0);
}

#[test]
fn a_beam_search_needs_no_more_room_than_one_sequence() {
    let expected = run(&tiny_engine(|_| {}), GenerationRequest::tokens(prompt(40, 5)).with_params(beams(8)));
    // 4 blocks hold one sequence; or a step holds 3 of the 8 beams.
    let small = tiny_engine(|c| (c.max_model_len, c.kv_cache_bytes) = (Some(64), Some(4 * BLOCK_BYTES)));
    assert_eq!(small.info().num_kv_blocks, 4);
    let narrow = tiny_engine(|c| c.max_num_seqs = Some(3));
    for engine in [small, narrow] {
        let found = run(&engine, GenerationRequest::tokens(prompt(40, 5)).with_params(beams(8)));
        assert_eq!(found.outputs, expected.outputs);
        wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
    }
}

#[test]
fn aborted_beams_end_as_they_are() {
    let engine = tiny_engine(|_| {});
    let params = SamplingParams { ignore_eos: true, max_tokens: None, ..beams(4) };
    let stream = engine.submit(GenerationRequest::tokens([1, 2, 3]).with_params(params)).unwrap();
    wait_until("it runs", || EngineStatus::get(&engine.status().num_generated_tokens) > 8);
    engine.shutdown(Duration::ZERO);
    let output = stream.blocking_collect().unwrap();
    assert_eq!(output.outputs.len(), 4);
    assert!(output.outputs.iter().all(|o| o.finish.as_ref().unwrap().reason == FinishReason::Abort));
}

#[test]
fn a_repeated_prompt_is_found_and_changes_nothing() {
    let engine = tiny_engine(|_| {});
    let params = SamplingParams { seed: Some(2), max_tokens: Some(20), logprobs: Some(2), ..Default::default() };
    let request = |len: usize| GenerationRequest::tokens(prompt(len, 3)).with_params(params.clone());
    let first = run(&engine, request(50));
    assert_eq!(first.usage.cached_tokens, 0);
    let again = run(&engine, request(50));
    assert_eq!(again.usage.cached_tokens, 48);
    assert_eq!(again.outputs, first.outputs);
    // The answer is found too, as when a conversation goes on.
    let next = [prompt(50, 3), first.outputs[0].token_ids.clone(), vec![7; 3]].concat();
    let next = run(&engine, GenerationRequest::tokens(next).with_params(params.clone()));
    let num_computed = 50 + first.outputs[0].token_ids.len() - 1;
    assert_eq!(next.usage.cached_tokens, num_computed / 16 * 16);
    // All logits of the prompt are wanted: it is computed.
    let scored = SamplingParams { prompt_logprobs: Some(1), ..params.clone() };
    let scored = run(&engine, GenerationRequest::tokens(prompt(50, 3)).with_params(scored));
    assert_eq!((scored.usage.cached_tokens, scored.prompt_logprobs.unwrap().len()), (0, 50));
    wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
}
