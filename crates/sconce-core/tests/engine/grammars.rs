//! Answers that match a grammar: however they are sampled, whatever runs beside them, with drafts and without.

use crate::common::{
    BLOCK_BYTES, prompt, tiny_config, tiny_engine, tiny_engine_of, used_blocks, wait_until, write_tiny_model,
};
use sconce_core::ErrorKind;
use sconce_core::config::{BeamParams, EngineConfig, Grammar, LogprobsMode, SamplingParams};
use sconce_core::engine::{
    self, EngineHandle, EngineStatus, FinishReason, GenerationOutput, GenerationRequest, NoProgress,
};
use sconce_core::text::{ChatInput, Section};
use serde_json::Value;

/// The tiny model's end token.
const END: u32 = 257;

fn grammars() -> [Grammar; 5] {
    let schema = r#"{"type": "object", "additionalProperties": false, "required": ["name", "size"], "properties": {
        "name": {"enum": ["first", "second", "third of three"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "is_new": {"type": "boolean"}}, "x-guidance": {"whitespace_flexible": false}}"#;
    [
        Grammar::JsonSchema(schema.into()),
        Grammar::Regex(r"(ab|c){3,9}\.".into()),
        Grammar::Choice(vec!["yes".into(), "no, never".into(), "no".into()]),
        Grammar::Lark("start: pair (\",\" pair)*\npair: KEY \"=\" /[0-9]/\nKEY: /[a-c]{1,3}/".into()),
        Grammar::Regex("[a-z ]{0,30}é?".into()),
    ]
}

fn matches(idx: usize, text: &str) -> bool {
    match idx {
        0 => serde_json::from_str(text).is_ok_and(|value: Value| {
            let name = value["name"].as_str().unwrap();
            let is_size =
                value["size"].as_f64().is_some_and(|size| size.fract() == 0.0 && (0.0..=99.0).contains(&size));
            is_size && ["first", "second", "third of three"].contains(&name)
        }),
        1 => {
            let inner = text.strip_suffix('.').unwrap_or_default().replace("ab", "c");
            (3..=9).contains(&inner.len()) && inner.bytes().all(|byte| byte == b'c')
        }
        2 => ["yes", "no, never", "no"].contains(&text),
        3 => text.split(',').all(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or_default();
            (1..=3).contains(&key.len())
                && key.bytes().all(|byte| b"abc".contains(&byte))
                && value.len() == 1
                && value.as_bytes()[0].is_ascii_digit()
        }),
        _ => {
            let letters = text.strip_suffix('é').unwrap_or(text);
            letters.len() <= 30 && letters.bytes().all(|byte| byte == b' ' || byte.is_ascii_lowercase())
        }
    }
}

/// Each grammar asked for in every way, and which it is; between them requests without one.
fn requests() -> Vec<(Option<usize>, GenerationRequest)> {
    let plain = SamplingParams { max_tokens: Some(120), temperature: 0.0, ..Default::default() };
    let drawn = |seed| SamplingParams { temperature: 1.0, seed: Some(seed), ..plain.clone() };
    let ways = [
        plain.clone(),
        SamplingParams { n: 3, ..drawn(1) },
        SamplingParams { best_of: Some(3), top_k: Some(40), ..drawn(2) },
        SamplingParams { n: 2, beam: Some(BeamParams::new(4)), ..plain.clone() },
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.5, logprobs: Some(2), ..drawn(3) },
        SamplingParams { min_tokens: 10, top_p: 0.8, ..drawn(4) },
        SamplingParams {
            logprobs: Some(3),
            logprobs_mode: LogprobsMode::Processed,
            prompt_logprobs: Some(1),
            ..drawn(5)
        },
        SamplingParams { max_tokens: Some(2), ..drawn(6) },
        SamplingParams { logit_bias: vec![(END, 30.0), (7, 100.0)], ..plain.clone() },
    ];
    let mut requests = Vec::new();
    for (i, params) in ways.into_iter().enumerate() {
        for (idx, grammar) in grammars().into_iter().enumerate() {
            let request = GenerationRequest::tokens(prompt(3 + 11 * i + idx, i)).with_params(params.clone());
            if idx == 2 {
                requests.push((None, request.clone()));
            }
            requests.push((Some(idx), request.with_grammar(grammar)));
        }
    }
    requests
}

fn collect(stream: engine::TokenStream) -> GenerationOutput {
    let mut output = stream.blocking_collect().unwrap();
    output.usage.cached_tokens = 0;
    output
}

fn run_together(engine: &EngineHandle) -> Vec<GenerationOutput> {
    let streams: Vec<_> = requests().into_iter().map(|(_, request)| engine.submit(request).unwrap()).collect();
    streams.into_iter().map(collect).collect()
}

fn run_alone(engine: &EngineHandle) -> Vec<GenerationOutput> {
    requests().into_iter().map(|(_, request)| collect(engine.submit(request).unwrap())).collect()
}

#[test]
fn answers_match_however_they_are_sampled() {
    let engine = tiny_engine(|_| {});
    let answers = run_alone(&engine);
    let (mut num_matched, mut num_cut) = (0, 0);
    for ((idx, request), answer) in requests().iter().zip(&answers) {
        let Some(idx) = *idx else { continue };
        assert_eq!(answer.outputs.len(), request.params.n);
        for output in &answer.outputs {
            match output.finish.as_ref().unwrap().reason {
                FinishReason::Stop => {
                    assert_eq!(output.token_ids.last(), Some(&END));
                    assert!(matches(idx, &output.text), "{:?}: {:?}", request.grammar, output.text);
                    num_matched += 1;
                }
                reason => {
                    assert_eq!(reason, FinishReason::Length);
                    num_cut += 1;
                }
            }
        }
    }
    assert!(num_matched > 50 && num_cut >= 5, "{num_matched} matched, {num_cut} were cut off");
    // Whatever is beside them, in whatever steps, and without enough memory for all.
    assert_eq!(run_together(&engine), answers);
    let chunked = tiny_engine(|c| (c.max_num_batched_tokens, c.max_num_seqs) = (Some(24), Some(20)));
    assert_eq!(run_together(&chunked), answers);
    let crowded = tiny_engine(|c| c.kv_cache_bytes = Some(24 * BLOCK_BYTES));
    assert_eq!(run_together(&crowded), answers);
    assert!(EngineStatus::get(&crowded.status().num_preemptions) > 0);
    wait_until("blocks return to the pool", || used_blocks(&crowded) == 0);
}

fn counts(engine: &EngineHandle) -> [usize; 3] {
    let status = engine.status();
    [&status.num_draft_tokens, &status.num_accepted_tokens, &status.num_steps].map(EngineStatus::get)
}

#[test]
fn drafts_change_no_answer() {
    let plain = tiny_engine(|_| {});
    let expected = run_alone(&plain);
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let load = |draft: bool| {
        let config: EngineConfig = tiny_config(|config| config.num_speculative_tokens = 6);
        let draft = draft.then_some(("draft", dir.path()));
        engine::load_with_draft(("tiny", dir.path()), draft, &config, &NoProgress).unwrap()
    };
    for engine in [load(false), load(true)] {
        assert_eq!(run_alone(&engine), expected);
        let [num_drafts, num_accepted, num_steps] = counts(&engine);
        assert!(num_steps < counts(&plain)[2], "{num_steps} steps, {} without drafts", counts(&plain)[2]);
        assert!(num_accepted > 300, "{num_accepted} of {num_drafts} drafts were right");
        assert_eq!(run_together(&engine), expected);
        wait_until("blocks return to the pool", || used_blocks(&engine) == 0);
    }
}

/// What has to come is drafted, and right.
#[test]
fn what_a_grammar_has_follow_takes_few_steps() {
    let engine = tiny_engine(|config| config.num_speculative_tokens = 8);
    let text = "The quick brown fox jumps over the lazy dog.";
    let params = SamplingParams { max_tokens: Some(100), ..Default::default() };
    let request = GenerationRequest::tokens(prompt(5, 0)).with_params(params);
    let answer = collect(engine.submit(request.with_grammar(Grammar::Choice(vec![text.into()]))).unwrap());
    assert_eq!(answer.outputs[0].text, text);
    let [num_drafts, num_accepted, num_steps] = counts(&engine);
    assert_eq!(num_drafts, num_accepted);
    assert!(num_steps <= 2 + text.len().div_ceil(9), "{num_steps} steps");
}

#[test]
fn what_cannot_be_matched_is_refused_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let path = dir.path().join("tokenizer.json");
    // A vocabulary without the letter 7.
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    let id = vocab.remove("7").unwrap();
    vocab.insert("seven".into(), id);
    std::fs::write(&path, file.to_string()).unwrap();
    let engine = tiny_engine_of(dir.path(), |_| {});
    let params = SamplingParams { max_tokens: Some(40), temperature: 0.0, ..Default::default() };
    let request = |grammar: &str| {
        let request = GenerationRequest::tokens(prompt(9, 3)).with_params(params.clone());
        request.with_grammar(Grammar::Regex(grammar.into()))
    };
    let expected = collect(engine.submit(request("[a-z]{30}")).unwrap());
    let streams = ["[a-z]{30}", "[a-z]{5}7", "[a-z]{30}"].map(|grammar| engine.submit(request(grammar)).unwrap());
    let [before, failing, after] = streams;
    let error = failing.blocking_collect().unwrap_err();
    assert_eq!((error.kind(), error.param()), (ErrorKind::InvalidRequest, Some("grammar")), "{error}");
    assert_eq!([collect(before), collect(after)], [expected.clone(), expected]);
    wait_until("blocks return to the pool", || used_blocks(&engine) == 0);

    // Nor does a draft that leads nowhere harm its own request.
    let drafting = tiny_engine_of(dir.path(), |config| config.num_speculative_tokens = 4);
    let twice = [&prompt(9, 3)[..], &[u32::from(b'c'), u32::from(b'd')], &prompt(9, 3)].concat();
    let biased = SamplingParams { logit_bias: vec![(u32::from(b'e'), 100.0)], ..params.clone() };
    let dead_end = GenerationRequest::tokens(twice).with_params(biased).with_grammar(Grammar::Regex("c(d7|ef)".into()));
    let answer = collect(drafting.submit(dead_end).unwrap());
    assert_eq!(answer.outputs[0].text, "cef");
    assert!(counts(&drafting)[0] > 0, "nothing was drafted");

    let refused = |request: GenerationRequest, param: &str| {
        let error = engine.submit(request).unwrap_err();
        assert_eq!(error.param(), Some(param), "{error}");
    };
    refused(request("(a"), "grammar");
    let ignoring = SamplingParams { ignore_eos: true, ..params.clone() };
    refused(request("a").with_params(ignoring), "ignore_eos");
    assert_eq!(EngineStatus::get(&engine.status().num_unfinished_requests), 0);
}

/// The token that ends reasoning in a tiny model whose template opens it.
const CLOSE: u32 = 258;

fn thinking_engine(change: impl Fn(&mut EngineConfig)) -> EngineHandle {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path());
    let edit = |name: &str, edit: &dyn Fn(&mut Value)| {
        let path = dir.path().join(name);
        let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut file);
        std::fs::write(&path, file.to_string()).unwrap();
    };
    edit("config.json", &|config| config["vocab_size"] = (CLOSE + 1).into());
    edit("tokenizer.json", &|file| {
        let mut token = file["added_tokens"][0].clone();
        (token["id"], token["content"], token["special"]) = (CLOSE.into(), "</think>".into(), false.into());
        file["added_tokens"].as_array_mut().unwrap().push(token);
    });
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n{# and then </think> #}";
    edit("tokenizer_config.json", &|config| config["chat_template"] = template.into());
    tiny_engine_of(dir.path(), change)
}

/// Grammars behind reasoning, which ends sooner or later.
fn thinking_requests() -> Vec<GenerationRequest> {
    let drawn = |seed| SamplingParams {
        max_tokens: Some(100),
        seed: Some(seed),
        logit_bias: vec![(CLOSE, 3.0)],
        ..Default::default()
    };
    let ways = [
        SamplingParams { n: 3, ..drawn(1) },
        SamplingParams { best_of: Some(3), ..drawn(2) },
        SamplingParams { n: 2, beam: Some(BeamParams::new(3)), ..drawn(3) },
        SamplingParams { repetition_penalty: 1.1, frequency_penalty: 0.2, logprobs: Some(2), ..drawn(4) },
        SamplingParams { temperature: 0.0, ..drawn(5) },
    ];
    let request = |(i, params): (usize, SamplingParams)| {
        let messages = vec![serde_json::json!({"role": "user", "content": "x".repeat(5 + 9 * i)})];
        let chat = ChatInput { messages, ..ChatInput::default() };
        GenerationRequest::chat(chat).with_params(params).with_grammar(grammars()[i].clone())
    };
    ways.into_iter().enumerate().map(request).collect()
}

#[test]
fn what_comes_behind_reasoning_matches_and_drafts_change_nothing() {
    let engine = thinking_engine(|_| {});
    let alone = |engine: &EngineHandle| -> Vec<GenerationOutput> {
        thinking_requests().into_iter().map(|request| collect(engine.submit(request).unwrap())).collect()
    };
    let answers = alone(&engine);
    let (mut num_matched, mut num_thoughts) = (0, 0);
    for (idx, answer) in answers.iter().enumerate() {
        let reader = engine.submit(thinking_requests().swap_remove(0)).unwrap().answer_reader().clone();
        for output in answer.outputs.iter().filter(|o| o.finish.as_ref().unwrap().reason == FinishReason::Stop) {
            let mut reader = reader.clone();
            let sections = [reader.push(&output.text), reader.finish()].concat();
            let content = sections.iter().find_map(|section| match section {
                Section::Content(text) => Some(text.as_str()),
                _ => None,
            });
            assert!(output.token_ids.contains(&CLOSE), "{output:?}");
            assert!(matches(idx, content.unwrap_or_default()), "{idx}: {:?}", output.text);
            num_matched += 1;
            num_thoughts += usize::from(output.token_ids[0] != CLOSE);
        }
    }
    assert!(num_matched >= 6 && num_thoughts > 2, "{num_matched} matched, {num_thoughts} thought");
    let crowded =
        thinking_engine(|c| (c.kv_cache_bytes, c.max_num_batched_tokens) = (Some(24 * BLOCK_BYTES), Some(24)));
    let streams: Vec<_> = thinking_requests().into_iter().map(|request| crowded.submit(request).unwrap()).collect();
    assert_eq!(streams.into_iter().map(collect).collect::<Vec<_>>(), answers);
    let drafting = thinking_engine(|config| config.num_speculative_tokens = 6);
    assert_eq!(alone(&drafting), answers);
    assert!(counts(&drafting)[1] > 0, "no draft was right");
}
