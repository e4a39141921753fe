//! A model whose long sequences turn by other angles than short ones (`longrope`): what it says is what passes over whole sequences
//! say, whatever runs beside them.

use crate::common::{
    BLOCK_BYTES, ROPE_FACTORS, prompt, tiny_config, tiny_engine_of, used_blocks, wait_until, write_long_rope_model,
    write_tiny_model,
};
use sconce_core::config::{BeamParams, EngineConfig, KvCacheDtype, SamplingParams};
use sconce_core::engine::{
    self, EngineHandle, EngineStatus, FinishReason, GenerationOutput, GenerationRequest, NoProgress,
};
use tempfile::TempDir;

/// Tokens of a short sequence, at most: not a whole number of blocks.
const SHORT_LEN: usize = 40;
const SHORT: [f32; 6] = ROPE_FACTORS[0];
const LONG: [f32; 6] = ROPE_FACTORS[1];

fn model(short_len: usize, factors: [[f32; 6]; 2]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_long_rope_model(dir.path(), short_len, factors);
    dir
}

fn engine(change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    tiny_engine_of(model(SHORT_LEN, [SHORT, LONG]).path(), change)
}

fn greedy(max_tokens: usize) -> SamplingParams {
    let logprobs = Some(2);
    SamplingParams { max_tokens: Some(max_tokens), temperature: 0.0, ignore_eos: true, logprobs, ..Default::default() }
}

/// But for what was in the cache before.
fn ask(engine: &EngineHandle, request: GenerationRequest) -> GenerationOutput {
    let mut output = engine.submit(request).unwrap().blocking_collect().unwrap();
    output.usage.cached_tokens = 0;
    output
}

/// Every token, and the probabilities of others in its place, are those of a model that knows one set of factors alone: which one, all
/// tokens before it say.
#[test]
fn each_token_comes_of_a_pass_over_all_before_it() {
    let engine = engine(|_| {});
    let plain = [SHORT, LONG].map(|factors| tiny_engine_of(model(SHORT_LEN, [factors; 2]).path(), |_| {}));
    for (seed, prompt_len) in [1, 20, 38, 39, 40, 41, 42, 60].into_iter().enumerate() {
        let tokens = prompt(prompt_len, seed);
        let output = ask(&engine, GenerationRequest::tokens(tokens.clone()).with_params(greedy(30))).outputs.remove(0);
        let mut differs = 0;
        for (i, logprobs) in output.logprobs.iter().enumerate() {
            let before = [&tokens[..], &output.token_ids[..i]].concat();
            let is_long = before.len() > SHORT_LEN;
            let next = |engine: &EngineHandle| {
                ask(engine, GenerationRequest::tokens(before.clone()).with_params(greedy(1))).outputs.remove(0)
            };
            let found = next(&plain[usize::from(is_long)]);
            assert_eq!((found.token_ids[0], &found.logprobs[0]), (output.token_ids[i], logprobs), "{}", before.len());
            differs += usize::from(next(&plain[usize::from(!is_long)]).logprobs[0] != *logprobs);
        }
        assert!(differs > 25, "the factors of {differs} tokens of 30 made a difference");
    }
}

/// Some of every kind that become long, at once or not, and some that do not.
fn requests() -> Vec<GenerationRequest> {
    let drawn = |i: usize| SamplingParams { temperature: 0.6, seed: Some(i as u64), ..greedy(12 + i) };
    let params = [
        greedy(30),
        SamplingParams { n: 3, ..drawn(1) },
        SamplingParams { best_of: Some(3), ..drawn(2) },
        SamplingParams { repetition_penalty: 1.2, frequency_penalty: 0.2, ..greedy(20) },
        SamplingParams { prompt_logprobs: Some(1), ..drawn(4) },
        SamplingParams { n: 3, beam: Some(BeamParams::new(3)), ..greedy(14) },
        SamplingParams { stop_token_ids: (0..40).step_by(3).take(16).collect(), min_tokens: 10, ..greedy(30) },
    ];
    let lens = [30, 39, 40, 35, 41, 33, 70, 12];
    let all = lens.into_iter().zip(params.iter().cycle()).enumerate();
    let once = all.map(|(i, (len, params))| GenerationRequest::tokens(prompt(len, i)).with_params(params.clone()));
    // What is said twice is drafted; and beams that become long with their first token, and with a later one.
    let twice = [12, 17, 19].map(|len| [prompt(len, len), prompt(len, len)].concat());
    let twice = twice.into_iter().map(|tokens| GenerationRequest::tokens(tokens).with_params(greedy(40)));
    let beams = |len| GenerationRequest::tokens(prompt(len, 3)).with_params(params[5].clone());
    once.chain(twice).chain([40, 37, 28].map(beams)).collect()
}

fn run(engine: &EngineHandle, requests: &[GenerationRequest]) -> Vec<GenerationOutput> {
    let streams: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let answer = |output: GenerationOutput| {
        let mut output = output;
        output.usage.cached_tokens = 0;
        output.outputs.sort_by_key(|output| output.index);
        output
    };
    streams.into_iter().map(|stream| answer(stream.blocking_collect().unwrap())).collect()
}

fn run_alone(engine: &EngineHandle, requests: &[GenerationRequest]) -> Vec<GenerationOutput> {
    requests.iter().flat_map(|request| run(engine, std::slice::from_ref(request))).collect()
}

#[test]
fn what_runs_beside_a_sequence_changes_nothing() {
    let requests = requests();
    let expected = run_alone(&engine(|config| config.prefix_cache = false), &requests);
    // No sequence has more tokens than the pool holds.
    let small = |config: &mut EngineConfig| {
        (config.max_model_len, config.kv_cache_bytes) = (Some(7 * 16), Some(7 * BLOCK_BYTES));
    };
    let changes: [&dyn Fn(&mut EngineConfig); 7] = [
        &|_| {},
        // In chunks beside decodes.
        &|config| (config.max_num_batched_tokens, config.max_num_seqs) = (Some(7), Some(6)),
        &|config| config.max_num_seqs = Some(2),
        &small,
        &|config| config.num_speculative_tokens = 4,
        &|config| (config.num_speculative_tokens, config.prefix_cache) = (15, false),
        &|config| {
            small(config);
            config.num_speculative_tokens = 15;
        },
    ];
    let mut num_preemptions: Vec<usize> = Vec::new();
    for (i, change) in changes.into_iter().enumerate() {
        let engine = engine(change);
        assert!(run(&engine, &requests) == expected, "change {i}");
        // Again, with what is in the cache.
        assert!(run_alone(&engine, &requests) == expected, "change {i}, alone");
        wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
        let get = EngineStatus::get;
        assert_eq!(get(&engine.status().num_accepted_tokens) > 20, i >= 4, "change {i}");
        num_preemptions.push(get(&engine.status().num_preemptions));
    }
    assert!(
        num_preemptions[3] > 0 && num_preemptions[6] > 0,
        "the pool was meant to be too small: {num_preemptions:?}"
    );
}

/// What was computed of short sequences is found for short ones, and of long for long.
#[test]
fn a_prefix_is_found_for_its_own_kind() {
    let engine = engine(|_| {});
    let cached = |tokens: Vec<u32>, max_tokens: usize| {
        let request = GenerationRequest::tokens(tokens).with_params(greedy(max_tokens));
        engine.submit(request).unwrap().blocking_collect().unwrap().usage.cached_tokens
    };
    assert_eq!(cached(prompt(36, 1), 1), 0);
    assert_eq!(cached(prompt(SHORT_LEN, 1), 1), 32);
    assert_eq!(cached(prompt(SHORT_LEN + 1, 1), 1), 0);
    assert_eq!(cached(prompt(60, 1), 1), 32);
    assert_eq!(cached(prompt(34, 1), 20), 32);
    assert_eq!(cached(prompt(65, 1), 1), 48);
    // What was short and became long has left both.
    assert_eq!((cached(prompt(33, 2), 20), cached(prompt(36, 2), 1), cached(prompt(50, 2), 1)), (0, 32, 32));
}

/// Where no sequence can be long, there is nothing to compute anew, and no blocks of other kinds.
#[test]
fn a_context_of_short_sequences_has_no_other() {
    let plain = tiny_engine_of(model(SHORT_LEN, [SHORT; 2]).path(), |_| {});
    let request = |len: usize| GenerationRequest::tokens(prompt(len, 7)).with_params(greedy(100));
    for max_model_len in [SHORT_LEN - 5, SHORT_LEN] {
        let engine = engine(|config| config.max_model_len = Some(max_model_len));
        let output = ask(&engine, request(20)).outputs.remove(0);
        assert_eq!(output.finish.as_ref().unwrap().reason, FinishReason::Length);
        assert_eq!(output.token_ids.len(), max_model_len - 20);
        let expected = ask(&plain, request(20)).outputs.remove(0);
        assert!(expected.token_ids.starts_with(&output.token_ids));
        assert_eq!(output.logprobs, expected.logprobs[..output.logprobs.len()]);
    }
}

/// A second model may turn as the model does, or otherwise elsewhere, or not at all.
#[test]
fn a_second_model_changes_no_answer() {
    let requests = requests();
    let dirs = [model(SHORT_LEN, [SHORT, LONG]), model(SHORT_LEN + 10, [SHORT, LONG]), tempfile::tempdir().unwrap()];
    write_tiny_model(dirs[2].path());
    let [same, later, plain] = dirs.each_ref().map(TempDir::path);
    for (target, draft) in [(same, same), (same, later), (later, same), (same, plain), (plain, same)] {
        let expected = run_alone(&tiny_engine_of(target, |_| {}), &requests);
        let config = tiny_config(|config| config.kv_cache_dtype = KvCacheDtype::F32);
        let engine = engine::load_with_draft(("tiny", target), Some(("draft", draft)), &config, &NoProgress).unwrap();
        assert!(run_alone(&engine, &requests) == expected, "{target:?} {draft:?}");
        let status = engine.status();
        let [num_drafts, num_accepted] = [&status.num_draft_tokens, &status.num_accepted_tokens].map(EngineStatus::get);
        assert!(num_drafts > 50, "{num_drafts} drafts");
        assert!(target != draft || 10 * num_accepted > 9 * num_drafts, "{num_accepted} of {num_drafts} were right");
        assert!(run(&engine, &requests) == expected, "{target:?} {draft:?}, together");
        wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
    }
}
