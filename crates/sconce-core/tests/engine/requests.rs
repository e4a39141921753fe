//! The engine on a tiny model with random weights: what runs beside a request changes nothing in it.

use std::path::Path;
use std::time::Duration;

use crate::common::{
    BLOCK_BYTES, prompt, tiny_config, tiny_engine, tiny_engine_of, used_blocks, wait_until, write_adapter,
    write_tiny_model,
};
use sconce_core::ErrorKind;
use sconce_core::config::{BeamParams, EngineConfig, SamplingParams};
use sconce_core::engine::{
    self, EngineHandle, EngineStatus, FinishReason, GenerationOutput, GenerationRequest, NoProgress, Prompt,
    StopReason, StreamEvent, TokenStream,
};
use sconce_core::text::ChatInput;
use serde_json::json;

/// The tiny model, for 32,768 tokens: what has no end of its own is still running when a test gets to it.
fn long_tiny_engine() -> EngineHandle {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(32768);
    std::fs::write(path, config.to_string()).unwrap();
    tiny_engine_of(dir.path(), |c| c.kv_cache_bytes = Some(16 << 20))
}

/// Before tokens are made of it; where only its end counts, it is not.
#[test]
fn a_text_far_too_long_is_refused_at_once() {
    let engine = tiny_engine(|_| ());
    let text = "ab ".repeat(100_000);
    let request = |text: &str| {
        GenerationRequest::text(text).with_params(SamplingParams { max_tokens: Some(2), ..Default::default() })
    };
    let error = engine.submit(request(&text)).unwrap_err();
    assert_eq!((error.kind(), error.param()), (ErrorKind::InvalidRequest, Some("prompt")));
    assert!(error.to_string().contains("300000 bytes of text are far more than the context"), "{error}");
    let cut = GenerationRequest { truncate_prompt_tokens: Some(8), ..request(&text) };
    assert_eq!(collect(engine.submit(cut).unwrap()).usage.prompt_tokens, 8);
}

/// 16 requests of different lengths and parameters: greedy, seeded, with filters, penalties, n, logprobs.
fn requests() -> Vec<GenerationRequest> {
    let request = |i: usize| {
        let params = SamplingParams {
            max_tokens: Some(20 + 7 * i),
            temperature: if i.is_multiple_of(2) { 0.0 } else { 0.5 + 0.1 * i as f32 },
            seed: Some(i as u64),
            n: 1 + i % 3,
            top_k: i.is_multiple_of(4).then_some(20),
            top_p: if i % 5 == 1 { 0.8 } else { 1.0 },
            min_p: if i % 7 == 3 { 0.05 } else { 0.0 },
            repetition_penalty: if i % 3 == 1 { 1.3 } else { 1.0 },
            presence_penalty: if i % 4 == 3 { 0.6 } else { 0.0 },
            logprobs: (i % 3 == 2).then_some(3),
            prompt_logprobs: (i % 6 == 5).then_some(2),
            min_tokens: 5,
            ..Default::default()
        };
        GenerationRequest::tokens(prompt(1 + 9 * i, i)).with_params(params)
    };
    (0..16).map(request).collect()
}

fn run_alone(engine: &EngineHandle) -> Vec<GenerationOutput> {
    requests().into_iter().map(|r| collect(engine.submit(r).unwrap())).collect()
}

fn run_together(engine: &EngineHandle) -> Vec<GenerationOutput> {
    let streams: Vec<_> = requests().into_iter().map(|r| engine.submit(r).unwrap()).collect();
    streams.into_iter().map(collect).collect()
}

/// The answer, but for what was in the cache before.
fn collect(stream: TokenStream) -> GenerationOutput {
    let mut output = stream.blocking_collect().unwrap();
    output.usage.cached_tokens = 0;
    output
}

#[test]
fn requests_together_equal_requests_alone() {
    let engine = tiny_engine(|_| {});
    let alone = run_alone(&engine);
    assert_eq!(run_together(&engine), alone);
    // Small steps: prompts in chunks, mixed with decodes.
    let chunked = tiny_engine(|c| (c.max_num_batched_tokens, c.max_num_seqs) = (Some(24), Some(20)));
    assert_eq!(run_together(&chunked), alone);
    for (request, output) in requests().iter().zip(&alone) {
        assert_eq!(output.outputs.len(), request.params.n);
        assert_eq!(output.prompt_logprobs.is_some(), request.params.prompt_logprobs.is_some());
        for sequence in &output.outputs {
            assert_eq!(sequence.logprobs.is_empty(), request.params.logprobs.is_none());
        }
    }
    wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
}

#[test]
fn a_pool_too_small_for_all_preempts_and_changes_nothing() {
    let alone = run_alone(&tiny_engine(|_| {}));
    // 16 blocks hold one sequence of the whole context.
    let small = tiny_engine(|c| c.kv_cache_bytes = Some(16 * BLOCK_BYTES));
    assert_eq!(small.info().num_kv_blocks, 16);
    assert_eq!(run_together(&small), alone);
    assert!(EngineStatus::get(&small.status().num_preemptions) > 0, "the pool was meant to be too small");
    wait_until("blocks return to the pool", || used_blocks(&small) == 0);
}

#[test]
fn dropped_streams_free_their_blocks() {
    let engine = long_tiny_engine();
    let submit = |i: usize| {
        let max_tokens = if i < 8 { None } else { Some(200) };
        let params = SamplingParams { ignore_eos: true, seed: Some(i as u64), n: 2, max_tokens, ..Default::default() };
        engine.submit(GenerationRequest::tokens(prompt(20, i)).with_params(params)).unwrap()
    };
    let mut streams: Vec<TokenStream> = (0..16).map(submit).collect();
    streams.iter_mut().for_each(|s| assert!(matches!(s.blocking_next(), Some(Ok(_)))));
    let kept = streams.split_off(8);
    drop(streams);
    wait_until("8 are cancelled", || EngineStatus::get(&engine.status().num_cancelled_requests) == 8);
    for stream in kept {
        // One token of the two sequences has been taken above.
        let output = stream.blocking_collect().unwrap();
        assert_eq!(output.outputs.iter().map(|o| o.token_ids.len()).sum::<usize>(), 2 * 200 - 1);
    }
    wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
    assert_eq!(EngineStatus::get(&engine.status().num_unfinished_requests), 0);
}

#[test]
fn a_stream_outlives_the_handle_it_is_from() {
    let stream = {
        let engine = tiny_engine(|_| {});
        let params = SamplingParams { ignore_eos: true, max_tokens: Some(50), ..Default::default() };
        engine.submit(GenerationRequest::tokens([1, 2, 3]).with_params(params)).unwrap()
    };
    let output = stream.blocking_collect().unwrap().outputs.remove(0);
    assert_eq!((output.token_ids.len(), output.finish.unwrap().reason), (50, FinishReason::Length));
}

#[test]
fn a_sequence_does_not_depend_on_n() {
    let engine = tiny_engine(|c| c.max_num_seqs = Some(3));
    let run = |n: usize| {
        let params = SamplingParams { n, seed: Some(7), max_tokens: Some(12), ..Default::default() };
        let stream = engine.submit(GenerationRequest::tokens(prompt(21, 3)).with_params(params)).unwrap();
        let mut outputs = stream.blocking_collect().unwrap().outputs;
        outputs.sort_by_key(|o| o.index);
        outputs
    };
    let eight = run(8);
    assert_eq!(run(2), eight[..2]);
    assert_eq!(run(1), eight[..1]);
    assert_ne!(eight[0].token_ids, eight[1].token_ids);
}

#[test]
fn greedy_sequences_are_one_decode_answered_n_times() {
    let engine = tiny_engine(|_| {});
    let params =
        SamplingParams { n: 3, temperature: 0.0, max_tokens: Some(9), logprobs: Some(1), ..Default::default() };
    let stream = engine.submit(GenerationRequest::tokens(prompt(5, 1)).with_params(params)).unwrap();
    let output = stream.blocking_collect().unwrap();
    assert_eq!(output.usage.completion_tokens, 27);
    assert_eq!(EngineStatus::get(&engine.status().num_generated_tokens), 9);
    for (i, sequence) in output.outputs.iter().enumerate() {
        assert_eq!((sequence.index, &sequence.token_ids), (i, &output.outputs[0].token_ids));
        assert_eq!(sequence.logprobs.len(), 9);
    }
}

#[test]
fn prompt_logprobs_are_those_of_generation() {
    let engine = tiny_engine(|_| {});
    let run = |ids: Vec<u32>, params: SamplingParams| {
        engine.submit(GenerationRequest::tokens(ids).with_params(params)).unwrap().blocking_collect().unwrap()
    };
    let params = SamplingParams { temperature: 0.0, logprobs: Some(4), max_tokens: Some(60), ..Default::default() };
    let generated = run(prompt(10, 2), SamplingParams { ignore_eos: true, ..params.clone() }).outputs.remove(0);
    let whole = [prompt(10, 2), generated.token_ids].concat();
    let scored = run(whole, SamplingParams { prompt_logprobs: Some(4), max_tokens: Some(1), ..params });
    let logprobs = scored.prompt_logprobs.unwrap();
    assert_eq!((logprobs.len(), &logprobs[0]), (70, &None));
    let scored: Vec<_> = logprobs.into_iter().skip(10).flatten().collect();
    assert_eq!(scored, generated.logprobs);
}

#[test]
fn stop_texts_stop_ids_and_min_tokens_end_a_sequence() {
    let engine = tiny_engine(|_| {});
    let run = |params: SamplingParams| {
        let request = GenerationRequest::text("hello").with_params(SamplingParams { seed: Some(5), ..params });
        engine.submit(request).unwrap().blocking_collect().unwrap().outputs.remove(0)
    };
    let free = SamplingParams { max_tokens: Some(40), ignore_eos: true, ..Default::default() };
    let whole = run(free.clone());
    assert_eq!(whole.finish.as_ref().unwrap().reason, FinishReason::Length);
    assert_eq!(whole.text, engine.tokenizer().decode(&whole.token_ids, true));

    let id = whole.token_ids[12];
    let first = whole.token_ids.iter().position(|&t| t == id).unwrap();
    let stopped = run(SamplingParams { stop_token_ids: vec![id], ..free.clone() });
    assert_eq!(stopped.token_ids, whole.token_ids[..=first]);
    let finish = stopped.finish.unwrap();
    assert_eq!((finish.reason, finish.stop_reason), (FinishReason::Stop, Some(StopReason::Token(id))));
    assert!(run(SamplingParams { stop_token_ids: vec![id], min_tokens: 20, ..free.clone() }).token_ids.len() >= 20);

    let stop: String = whole.text.chars().skip(8).take(3).collect();
    let stopped = run(SamplingParams { stop: vec![stop.clone()], ..free.clone() });
    assert_eq!(stopped.text, whole.text[..whole.text.find(&stop).unwrap()]);
    assert_eq!(stopped.finish.unwrap().stop_reason, Some(StopReason::Text(stop.clone())));
    let kept = run(SamplingParams { stop: vec![stop.clone()], include_stop_str_in_output: true, ..free });
    assert!(kept.text.ends_with(&stop) && whole.text.starts_with(&kept.text));
}

#[test]
fn a_stream_ends_with_done_and_then_nothing() {
    let engine = tiny_engine(|_| {});
    let params = SamplingParams { max_tokens: Some(3), ..Default::default() };
    let mut stream = engine.submit(GenerationRequest::text("ab").with_params(params)).unwrap();
    assert_eq!((stream.prompt_text(), stream.prompt_token_ids().len()), (Some("ab"), 2));
    let mut events = Vec::new();
    while let Some(event) = stream.blocking_next() {
        events.push(event.unwrap());
    }
    let Some(StreamEvent::Done(usage)) = events.last() else { panic!("no Done at the end") };
    assert_eq!(usage.prompt_tokens, 2);
    assert!(stream.blocking_next().is_none());
}

#[test]
fn bad_requests_name_their_field() {
    let engine = tiny_engine(|c| c.max_model_len = Some(64));
    let check = |request: GenerationRequest, param: &str| {
        let error = engine.submit(request).unwrap_err();
        assert_eq!((error.kind(), error.param()), (ErrorKind::InvalidRequest, Some(param)), "{error}");
        assert!(error.to_string().contains(param), "{error}");
    };
    check(GenerationRequest::text(""), "prompt");
    check(GenerationRequest::tokens([]), "prompt");
    check(GenerationRequest::tokens([258]), "prompt");
    check(GenerationRequest::tokens(prompt(64, 0)), "prompt");
    let params = |p: SamplingParams| GenerationRequest::tokens([1, 2]).with_params(p);
    check(params(SamplingParams { n: 1_000_000_000, ..Default::default() }), "n");
    check(params(SamplingParams { temperature: f32::NAN, ..Default::default() }), "temperature");
    check(params(SamplingParams { logit_bias: vec![(300, 1.0)], ..Default::default() }), "logit_bias");
    check(params(SamplingParams { min_tokens: 63, ..Default::default() }), "min_tokens");
    check(params(SamplingParams { n: 2, best_of: Some(1), ..Default::default() }), "best_of");
    let beam = Some(BeamParams::new(1));
    check(params(SamplingParams { beam, ..Default::default() }), "use_beam_search");
    let truncated = GenerationRequest { truncate_prompt_tokens: Some(40), ..GenerationRequest::tokens(prompt(99, 0)) };
    let output = engine.submit(truncated).unwrap().blocking_collect().unwrap();
    assert_eq!(output.usage.prompt_tokens, 40);
}

#[test]
fn conversations_are_rendered() {
    let engine = tiny_engine(|_| {});
    let chat = ChatInput { messages: vec![json!({"role": "user", "content": "Hi"})], ..Default::default() };
    let request = GenerationRequest::new(Prompt::Chat(chat))
        .with_params(SamplingParams { max_tokens: Some(2), ..Default::default() });
    let stream = engine.submit(request).unwrap();
    assert_eq!(stream.prompt_text(), Some("user: Hi\nassistant:"));
    stream.blocking_collect().unwrap();
}

#[test]
fn a_full_engine_says_so_and_a_stopped_one_too() {
    let engine = tiny_engine(|c| (c.max_num_seqs, c.max_waiting) = (Some(1), 2));
    let request = || {
        let params = SamplingParams { ignore_eos: true, ..Default::default() };
        GenerationRequest::tokens([1, 2, 3]).with_params(params)
    };
    // Where this thread is kept waiting, some of them have ended before the last is sent.
    let mut streams: Vec<_> = (0..3).map(|_| engine.submit(request()).unwrap()).collect();
    let refused = (0..1000).find_map(|_| engine.submit(request()).map(|stream| streams.push(stream)).err());
    assert_eq!(refused.unwrap().kind(), ErrorKind::Overloaded);
    assert!(engine.is_healthy(Duration::from_secs(10)));
    engine.shutdown(Duration::ZERO);
    assert_eq!(engine.submit(request()).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(!engine.is_healthy(Duration::from_secs(10)));
    for stream in streams {
        let output = stream.blocking_collect().unwrap();
        assert!(output.outputs.iter().all(|o| o.finish.is_some()));
    }
    assert_eq!(used_blocks(&engine), 0);
}

#[test]
fn shutdown_lets_running_requests_end() {
    let engine = tiny_engine(|_| {});
    let params = SamplingParams { max_tokens: Some(50), ignore_eos: true, ..Default::default() };
    let stream = engine.submit(GenerationRequest::tokens([1, 2, 3]).with_params(params)).unwrap();
    engine.shutdown(Duration::from_secs(20));
    let output = stream.blocking_collect().unwrap().outputs.remove(0);
    assert_eq!((output.token_ids.len(), output.finish.unwrap().reason), (50, FinishReason::Length));
}

/// Sequences that have ended stay as they are, and the others end with all that they have said.
#[test]
fn shutting_down_ends_what_has_not_ended() {
    let engine = long_tiny_engine();
    let params = SamplingParams { n: 3, temperature: 0.0, ignore_eos: true, ..Default::default() };
    let stream = engine.submit(GenerationRequest::tokens([1, 2, 3]).with_params(params)).unwrap();
    wait_until("it runs", || EngineStatus::get(&engine.status().num_generated_tokens) > 8);
    engine.shutdown(Duration::ZERO);
    let outputs = stream.blocking_collect().unwrap().outputs;
    let finish = outputs[0].finish.clone().unwrap();
    assert!(finish.reason == FinishReason::Abort && finish.cumulative_logprob < 0.0, "{finish:?}");
    assert_eq!(outputs[0].text, engine.tokenizer().decode(&outputs[0].token_ids, true));
    // Equal sequences end alike.
    for output in &outputs[1..] {
        assert_eq!((&output.text, output.finish.as_ref()), (&outputs[0].text, Some(&finish)));
    }

    let engine = tiny_engine(|_| {});
    // Sixteen of 256 tokens end a sequence, so that some have ended when others have not.
    let stop_token_ids = (0..256).step_by(16).collect();
    let params = SamplingParams { n: 32, seed: Some(3), ignore_eos: true, stop_token_ids, ..Default::default() };
    let mut stream = engine.submit(GenerationRequest::tokens([1, 2, 3]).with_params(params)).unwrap();
    let mut finishes = vec![Vec::new(); 32];
    while let Some(event) = stream.blocking_next() {
        if let StreamEvent::Token(token) = event.unwrap() {
            finishes[token.index].extend(token.finish.map(|finish| finish.reason));
            if finishes.iter().any(|finishes| !finishes.is_empty()) {
                engine.shutdown(Duration::ZERO);
            }
        }
    }
    assert!(finishes.iter().all(|finishes| finishes.len() == 1), "{finishes:?}");
}

#[test]
fn what_ends_a_sequence_is_limited() {
    let engine = tiny_engine(|_| {});
    let refused = |params: SamplingParams| {
        engine.submit(GenerationRequest::tokens([1]).with_params(params)).err().unwrap().to_string()
    };
    let message = refused(SamplingParams { stop_token_ids: (0..17).collect(), ..Default::default() });
    assert!(message.contains("stop_token_ids: must be from 0 to 16, found 17"), "{message}");
    let message = refused(SamplingParams { stop: vec!["a".into(), "b".repeat(4097)], ..Default::default() });
    assert!(message.contains("stop: a stop string has at most 4096 bytes, found 4097"), "{message}");
}

#[test]
fn the_text_of_a_prompt_that_is_cut_off_is_that_of_its_tokens() {
    let engine = tiny_engine(|_| {});
    let text = |len: usize| {
        let request = GenerationRequest { truncate_prompt_tokens: Some(len), ..GenerationRequest::text("hello you") };
        let params = SamplingParams { max_tokens: Some(1), ..Default::default() };
        let stream = engine.submit(request.with_params(params)).unwrap();
        (stream.prompt_token_ids().len(), stream.prompt_text().map(str::to_owned))
    };
    let (len, whole) = text(100);
    assert_eq!(whole.as_deref(), Some("hello you"));
    assert_eq!(text(len - 1), (len - 1, None));
}

/// The longest sequence of a model may be longer than memory: no table is made of what no pool holds.
#[test]
fn a_context_beyond_memory_is_cut_to_what_the_pool_holds() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(2_147_483_647);
    std::fs::write(&path, config.to_string()).unwrap();
    let engine = tiny_engine_of(dir.path(), |c| c.kv_cache_bytes = Some(16 * BLOCK_BYTES));
    assert_eq!(engine.info().max_model_len, 16 * engine.info().block_size);
    let request = GenerationRequest::tokens([1, 2, 3]).with_params(SamplingParams::default());
    assert!(engine.submit(request).unwrap().blocking_collect().is_ok());
}

/// The tiny model's settings with adapters `one` and `two` in `dir`.
fn with_adapters(dir: &Path, change: impl Fn(&mut EngineConfig)) -> EngineConfig {
    let adapters = ["one", "two"].into_iter().zip(1..).map(|(name, seed)| write_adapter(dir, name, seed));
    let adapters: Vec<_> = adapters.collect();
    tiny_config(|config| {
        config.adapters.clone_from(&adapters);
        change(config);
    })
}

fn load(dir: &Path, draft: bool, config: &EngineConfig) -> EngineHandle {
    let draft = draft.then_some(("draft", dir));
    engine::load_with_draft(("tiny", dir), draft, config, &NoProgress).unwrap()
}

/// Each request through no adapter, through the first and through the second, one behind the other.
fn through_all(requests: Vec<GenerationRequest>) -> Vec<GenerationRequest> {
    let adapters = [None, Some("one"), Some("two")];
    let of = |request: GenerationRequest| {
        adapters.map(|name| GenerationRequest { adapter: name.map(Into::into), ..request.clone() })
    };
    requests.into_iter().flat_map(of).collect()
}

/// Beside each other, in chunks, beside drafts, in a pool that is too small: drawn, with several sequences, and as beams.
#[test]
fn adapters_give_each_request_what_it_gets_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let beams = SamplingParams { n: 2, beam: Some(BeamParams::new(3)), max_tokens: Some(12), ..Default::default() };
    let beams = GenerationRequest::tokens(prompt(37, 9)).with_params(beams);
    let requests = through_all(requests().into_iter().skip(1).step_by(3).chain([beams]).collect());
    let submit = |engine: &EngineHandle, request: &GenerationRequest| engine.submit(request.clone()).unwrap();
    let lone = load(dir.path(), false, &with_adapters(dir.path(), |_| {}));
    let alone: Vec<_> = requests.iter().map(|request| collect(submit(&lone, request))).collect();
    let plain = tiny_engine_of(dir.path(), |_| {});
    for (found, request) in alone.iter().zip(&requests).step_by(3) {
        assert_eq!(*found, collect(submit(&plain, request)), "the model as it is");
    }
    assert!(alone.chunks(3).all(|of| of[0].outputs != of[1].outputs && of[1].outputs != of[2].outputs));
    let changes: [&dyn Fn(&mut EngineConfig); 3] = [
        &|config| config.max_num_batched_tokens = Some(24),
        &|config| (config.num_speculative_tokens, config.kv_cache_bytes) = (5, Some(24 * BLOCK_BYTES)),
        &|config| config.max_num_seqs = Some(5),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let config = with_adapters(folder.path(), |config| {
            config.max_num_seqs = Some(24);
            change(config);
        });
        // A draft model drafts as the model would without adapters.
        let engine = load(dir.path(), i == 2, &config);
        let streams: Vec<_> = requests.iter().map(|request| submit(&engine, request)).collect();
        let together: Vec<_> = streams.into_iter().map(collect).collect();
        assert_eq!(together, alone, "with change {i}");
        if i == 1 {
            assert!(EngineStatus::get(&engine.status().num_preemptions) > 0, "the pool was meant to be too small");
        }
    }
}

#[test]
fn a_prompt_is_found_again_through_the_same_adapter_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let engine = load(dir.path(), false, &with_adapters(dir.path(), |_| {}));
    let params = SamplingParams { max_tokens: Some(4), temperature: 0.0, ignore_eos: true, ..Default::default() };
    let requests = through_all(vec![GenerationRequest::tokens(prompt(40, 3)).with_params(params)]);
    let run = |request: &GenerationRequest| engine.submit(request.clone()).unwrap().blocking_collect().unwrap();
    let first: Vec<_> = requests.iter().map(run).collect();
    let second: Vec<_> = requests.iter().map(run).collect();
    let cached = |outputs: &[GenerationOutput]| outputs.iter().map(|of| of.usage.cached_tokens).collect::<Vec<_>>();
    assert_eq!((cached(&first), cached(&second)), (vec![0; 3], vec![32; 3]));
    for (a, b) in first.iter().zip(&second) {
        assert_eq!(a.outputs, b.outputs);
    }
}

#[test]
fn names_of_adapters_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let engine = load(dir.path(), false, &with_adapters(dir.path(), |_| {}));
    let error = engine.submit(GenerationRequest::text("hello").with_adapter("three")).unwrap_err();
    assert_eq!((error.kind(), error.param()), (ErrorKind::InvalidRequest, Some("adapter")));
    assert_eq!(error.to_string(), "adapter: there is no \"three\"; there are: one, two");
    let error = tiny_engine(|_| {}).submit(GenerationRequest::text("hello").with_adapter("one")).unwrap_err();
    assert_eq!(error.to_string(), "adapter: there is no \"one\"; there are: none");
    for (name, expected) in [
        ("", "lora: the name of an adapter must not be empty"),
        ("tiny", "lora: \"tiny\" is the model's own name"),
        ("two", "lora: two adapters have the name \"two\""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = with_adapters(folder.path(), |config| config.adapters[0].name = name.into());
        let error = engine::load("tiny", dir.path(), &config, &NoProgress).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}
