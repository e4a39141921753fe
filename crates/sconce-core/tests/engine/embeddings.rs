//! Embeddings: a text's vector is the same alone and beside whatever else runs, and costs what it has to.

use sconce_core::ErrorKind;
use sconce_core::config::{EngineConfig, SamplingParams};
use sconce_core::engine::{
    EmbeddingOutput, EmbeddingRequest, EngineHandle, EngineStatus, FinishReason, GenerationRequest, Prompt,
};

use crate::common::{BLOCK_BYTES, prompt, tiny_engine, used_blocks, wait_until, write_adapter};

fn request(inputs: &[Vec<u32>]) -> EmbeddingRequest {
    EmbeddingRequest::new(inputs.iter().cloned().map(Prompt::Tokens).collect())
}

fn embed(engine: &EngineHandle, request: EmbeddingRequest) -> EmbeddingOutput {
    engine.embed(request).unwrap().blocking_collect().unwrap()
}

fn vectors(engine: &EngineHandle, inputs: &[Vec<u32>]) -> Vec<Vec<f32>> {
    embed(engine, request(inputs)).embeddings
}

fn num_unfinished(engine: &EngineHandle) -> usize {
    EngineStatus::get(&engine.status().num_unfinished_requests)
}

/// From one token to the whole context, some of them twice, and some that begin alike.
fn inputs() -> Vec<Vec<u32>> {
    let lens = [1, 2, 15, 16, 17, 33, 64, 100, 255, 256];
    let mut inputs: Vec<_> = lens.iter().enumerate().map(|(i, &len)| prompt(len, i)).collect();
    inputs.extend([prompt(33, 5), prompt(100, 5), [prompt(32, 5), vec![3]].concat()]);
    inputs
}

fn alone(engine: &EngineHandle, inputs: &[Vec<u32>]) -> Vec<Vec<f32>> {
    inputs.iter().flat_map(|input| vectors(engine, std::slice::from_ref(input))).collect()
}

/// Requests that generate meanwhile, of every kind of step.
fn generation(i: usize) -> GenerationRequest {
    let params = SamplingParams {
        max_tokens: Some(40),
        temperature: if i == 0 { 0.0 } else { 0.8 },
        seed: Some(7),
        n: 1 + i,
        repetition_penalty: if i == 1 { 1.2 } else { 1.0 },
        ignore_eos: true,
        ..Default::default()
    };
    // It says the same again, so that there is something to draft.
    GenerationRequest::tokens([prompt(20, i), prompt(20, i)].concat()).with_params(params)
}

#[test]
fn vectors_together_equal_vectors_alone() {
    let inputs = inputs();
    let lone = tiny_engine(|c| c.prefix_cache = false);
    let expected = alone(&lone, &inputs);
    for vector in &expected {
        let norm: f64 = vector.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!(vector.len() == 64 && (norm - 1.0).abs() < 1e-6, "{norm}");
    }
    assert_eq!(expected[5], expected[10]);
    assert!(expected[0] != expected[1] && expected[11] != expected[12]);
    let generated = |engine: &EngineHandle| {
        let streams: Vec<_> = (0..3).map(|i| engine.submit(generation(i)).unwrap()).collect();
        let pending: Vec<_> = (0..2).map(|_| engine.embed(request(&inputs)).unwrap()).collect();
        for pending in pending {
            assert!(pending.blocking_collect().unwrap().embeddings == expected);
        }
        let answers = streams.into_iter().map(|stream| stream.blocking_collect().unwrap().outputs);
        answers.flatten().map(|output| output.token_ids).collect::<Vec<_>>()
    };
    let answers = generated(&tiny_engine(|_| {}));
    let changes: [&dyn Fn(&mut EngineConfig); 4] = [
        // In chunks, beside decodes.
        &|c| (c.max_num_batched_tokens, c.max_num_seqs) = (Some(24), Some(20)),
        // More inputs than run at once.
        &|c| c.max_num_seqs = Some(3),
        &|c| c.num_speculative_tokens = 5,
        // A pool that does not hold all of them.
        &|c| c.kv_cache_bytes = Some(16 * BLOCK_BYTES),
    ];
    for change in changes {
        let engine = tiny_engine(change);
        assert_eq!(generated(&engine), answers);
        wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
        wait_until("all are counted", || num_unfinished(&engine) == 0);
    }
}

#[test]
fn what_is_cached_is_found_but_for_the_last_token() {
    let engine = tiny_engine(|_| {});
    let found = |len: usize| {
        let output = embed(&engine, request(&[prompt(len, 3)]));
        (output.embeddings, output.prompt_tokens, output.cached_tokens)
    };
    let first = found(48);
    assert_eq!((first.1, first.2), (48, 0));
    // The third block ends with the token whose state is wanted.
    assert_eq!(found(48), (first.0.clone(), 48, 32));
    assert_eq!(found(49).2, 48);
    // What a prompt has computed serves a text, and the other way round.
    let generate = |len| {
        let params = SamplingParams { max_tokens: Some(1), ..Default::default() };
        let request = GenerationRequest::tokens(prompt(len, 4)).with_params(params);
        engine.submit(request).unwrap().blocking_collect().unwrap().usage.cached_tokens
    };
    assert_eq!(generate(40), 0);
    assert_eq!(embed(&engine, request(&[prompt(60, 4)])).cached_tokens, 32);
    assert_eq!(generate(61), 48);
}

#[test]
fn a_request_of_many_inputs_holds_nobody_up() {
    let engine = tiny_engine(|c| c.max_num_seqs = Some(4));
    let many: Vec<_> = (0..2000).map(|i| prompt(100, i)).collect();
    let many = engine.embed(request(&many)).unwrap();
    vectors(&engine, &[prompt(30, 1)]);
    engine.submit(generation(0)).unwrap().blocking_collect().unwrap();
    wait_until("the many last, and they alone", || num_unfinished(&engine) == 1);
    // Whoever goes away takes all inputs along.
    drop(many);
    wait_until("they are cancelled", || EngineStatus::get(&engine.status().num_cancelled_requests) == 1);
    wait_until("blocks return to the pool", || used_blocks(&engine) == 0 && num_unfinished(&engine) == 0);
    assert_eq!(vectors(&engine, &[prompt(30, 1)]).len(), 1);
}

#[test]
fn adapters_have_vectors_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let adapters: Vec<_> =
        ["one", "two"].into_iter().zip(1..).map(|(name, seed)| write_adapter(dir.path(), name, seed)).collect();
    let engine = tiny_engine(|c| c.adapters.clone_from(&adapters));
    let inputs = [prompt(40, 1), prompt(7, 2)];
    let through = |name: Option<&str>| EmbeddingRequest { adapter: name.map(str::to_owned), ..request(&inputs) };
    let names = [None, Some("one"), Some("two")];
    let alone = names.map(|name| embed(&engine, through(name)));
    assert_eq!(alone[0].embeddings, vectors(&tiny_engine(|_| {}), &inputs));
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone.iter().all(|output| output.cached_tokens == 0));
    let together: Vec<_> = names.iter().map(|&name| engine.embed(through(name)).unwrap()).collect();
    for (pending, expected) in together.into_iter().zip(alone) {
        assert_eq!(pending.blocking_collect().unwrap().embeddings, expected.embeddings);
    }
    let error = engine.embed(request(&inputs).with_adapter("three")).unwrap_err();
    assert_eq!(error.param(), Some("adapter"));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let engine = tiny_engine(|_| {});
    let check = |request: EmbeddingRequest, param: &str, words: &str| {
        let error = engine.embed(request).expect_err(words);
        assert_eq!((error.kind(), error.param()), (ErrorKind::InvalidRequest, Some(param)), "{error}");
        let message = error.to_string();
        assert!(message.starts_with(&format!("{param}: ")) && message.contains(words), "{message}");
    };
    let text = |text: &str| Prompt::Text(text.into());
    check(request(&[]), "input", "empty");
    check(request(&[vec![]]), "input", "empty");
    check(EmbeddingRequest::texts([""]), "input", "empty");
    check(EmbeddingRequest::new(vec![text("a"), Prompt::Tokens(vec![1, 2]), text("")]), "input[2]", "empty");
    check(request(&[vec![1], vec![2, 258]]), "input[1]", "258 is outside the vocabulary of 258");
    check(request(&[vec![1], prompt(257, 0)]), "input[1]", "257 tokens, more than the context of 256");
    check(request(&[vec![1]]).with_dimensions(63), "dimensions", "64");
    check(EmbeddingRequest { truncate_prompt_tokens: Some(0), ..request(&[vec![1]]) }, "truncate_prompt_tokens", "1");
    assert_eq!(num_unfinished(&engine), 0);
    // What is truncated is its last tokens.
    let truncated = EmbeddingRequest { truncate_prompt_tokens: Some(9), ..request(&[prompt(400, 2)]) };
    let output = embed(&engine, truncated.with_dimensions(64));
    assert_eq!((output.embeddings, output.prompt_tokens), (vectors(&engine, &[prompt(400, 2)[391..].to_vec()]), 9));
}

#[test]
fn an_answer_outlives_the_handle_it_is_from() {
    let pending = tiny_engine(|_| {}).embed(EmbeddingRequest::texts(["the sea", "the sky"])).unwrap();
    assert_eq!(pending.blocking_collect().unwrap().embeddings.len(), 2);
    let engine = tiny_engine(|_| {});
    let many: Vec<_> = (0..2000).map(|i| prompt(200, i)).collect();
    let many = engine.embed(request(&many)).unwrap();
    let params = SamplingParams { max_tokens: Some(1), ..Default::default() };
    let stream = engine.submit(GenerationRequest::tokens([1]).with_params(params)).unwrap();
    engine.shutdown(std::time::Duration::ZERO);
    assert_eq!(many.blocking_collect().unwrap_err().kind(), ErrorKind::Unavailable);
    let finish = stream.blocking_collect().unwrap().outputs.remove(0).finish.unwrap();
    assert!(matches!(finish.reason, FinishReason::Abort | FinishReason::Length | FinishReason::Stop));
}
