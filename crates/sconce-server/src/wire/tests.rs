//! Request bodies: what is accepted, what it becomes, and what the refusals say.

use sconce::{BeamLength, BeamParams, ChatInput, EarlyStopping, Grammar, LogprobsMode, Prompt, SamplingParams};
use serde_json::{Value, json};

use super::{Endpoint, FIELDS, WireRequest};

/// Parses a body that must be accepted.
pub(super) fn accept(endpoint: Endpoint, body: &str) -> WireRequest {
    WireRequest::parse(endpoint, body.as_bytes()).unwrap_or_else(|e| panic!("{body}: {e:?}"))
}

/// Parses a body that must be refused: the error's `param` and message.
fn refuse(endpoint: Endpoint, body: &str) -> (Option<String>, String) {
    let error = WireRequest::parse(endpoint, body.as_bytes()).expect_err(body).to_json();
    let error = &error["error"];
    (error["param"].as_str().map(str::to_owned), error["message"].as_str().unwrap().to_owned())
}

/// Checks that `/generate` refuses a prompt with `field`, names it, and says `words`.
fn check_refused(field: &str, words: &str) {
    check_refused_by(Endpoint::Generate, &format!(r#"{{"prompt": "a", {field}}}"#), words);
}

pub(super) fn check_refused_by(endpoint: Endpoint, body: &str, words: &str) {
    let (param, message) = refuse(endpoint, body);
    let param = param.unwrap_or_else(|| panic!("{body}: no param: {message}"));
    assert!(message.starts_with(&param), "{body}: {message} does not begin with {param}");
    assert!(message.contains(words), "{body}: {message}");
}

fn params(field: &str) -> SamplingParams {
    accept(Endpoint::Generate, &format!(r#"{{"prompt": "a", {field}}}"#)).params
}

#[test]
fn a_prompt_alone_gets_the_defaults() {
    let mut request = accept(Endpoint::Generate, r#"{"prompt": "a"}"#);
    assert_eq!(request.params, SamplingParams { max_tokens: Some(16), ..SamplingParams::default() });
    assert!(!request.stream && !request.has_messages());
    let request = request.take_request().unwrap();
    assert!(matches!(request.prompt, Prompt::Text(text) if text == "a"));
    assert!(request.add_special_tokens);
}

#[test]
fn a_conversation_gets_the_rest_of_the_context() {
    for endpoint in [Endpoint::Generate, Endpoint::Chat] {
        let request = accept(endpoint, r#"{"messages": [{"role": "user", "content": "a"}]}"#);
        assert_eq!(request.params, SamplingParams::default());
        assert!(request.has_messages());
    }
}

#[test]
fn every_sampling_field_reaches_the_parameters() {
    let body = r#""max_tokens": 5, "min_tokens": 2, "n": 3, "best_of": 3, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.5, "temperature": 0, "top_p": 0.25, "top_k": 7, "min_p": 0,
        "use_beam_search": false, "length_penalty": 1, "early_stopping": false, "beam_length": "hf", "stop": ["x", "y"],
        "stop_token_ids": [1, 2], "include_stop_str_in_output": true, "ignore_eos": true, "skip_special_tokens": false,
        "spaces_between_special_tokens": false, "seed": 9, "logprobs": 4, "prompt_logprobs": 3,
        "logprobs_mode": "processed", "logit_bias": {"17": -1.5}"#;
    let expected = SamplingParams {
        n: 3,
        best_of: Some(3),
        max_tokens: Some(5),
        min_tokens: 2,
        presence_penalty: 0.5,
        frequency_penalty: -0.5,
        repetition_penalty: 1.5,
        temperature: 0.0,
        top_p: 0.25,
        top_k: Some(7),
        min_p: 0.0,
        seed: Some(9),
        stop: vec!["x".into(), "y".into()],
        stop_token_ids: vec![1, 2],
        include_stop_str_in_output: true,
        ignore_eos: true,
        skip_special_tokens: false,
        spaces_between_special_tokens: false,
        logprobs: Some(4),
        prompt_logprobs: Some(3),
        logprobs_mode: LogprobsMode::Processed,
        logit_bias: vec![(17, -1.5)],
        ..SamplingParams::default()
    };
    assert_eq!(params(body), expected);
}

#[test]
fn null_means_absent() {
    let nulls: Vec<String> = FIELDS
        .iter()
        .filter(|f| f.is_of(Endpoint::Generate) && f.name != "prompt")
        .map(|f| format!("\"{}\": null", f.name))
        .collect();
    assert_eq!(params(&nulls.join(", ")), params(r#""stream": false"#));
}

#[test]
fn integers_may_be_written_with_a_point() {
    assert_eq!(params(r#""max_tokens": 3.0"#).max_tokens, Some(3));
    check_refused(r#""max_tokens": 3.5"#, "expected an integer, at least 1, found 3.5");
    check_refused(r#""max_tokens": -1"#, "expected an integer, at least 1, found -1");
    check_refused(r#""min_tokens": -1"#, "expected an integer, at least 0, found -1");
    check_refused(r#""n": 1e300"#, "expected an integer");
    assert_eq!(params(r#""seed": -1"#).seed, Some(u64::MAX));
    assert_eq!(params(r#""seed": 18446744073709551615"#).seed, Some(u64::MAX));
}

#[test]
fn top_k_is_off_at_minus_one_and_zero() {
    for (value, expected) in [("-1", None), ("0", None), ("1", Some(1)), ("-1.0", None)] {
        assert_eq!(params(&format!("\"top_k\": {value}")).top_k, expected, "{value}");
    }
    check_refused(r#""top_k": -2"#, "found -2");
}

#[test]
fn stop_is_one_string_or_several() {
    assert_eq!(params(r#""stop": "x""#).stop, ["x"]);
    assert!(params(r#""stop": []"#).stop.is_empty());
    check_refused(r#""stop": ["x", 1]"#, "stop[1]: expected a string, found 1");
    check_refused(r#""stop": 1"#, "expected a string or a list of strings");
}

#[test]
fn wrong_types_are_named() {
    check_refused(r#""temperature": "hot""#, r#"temperature: expected a number, found "hot""#);
    check_refused(r#""temperature": true"#, "found true");
    check_refused(r#""stream": 1"#, "expected true or false, found 1");
    check_refused(r#""max_tokens": -1"#, "found -1");
    check_refused(r#""stop_token_ids": 5"#, "expected a list, found 5");
    check_refused(r#""stop_token_ids": [-5]"#, "stop_token_ids[0]: expected a token id, found -5");
    check_refused(r#""logit_bias": {"x": 1}"#, "logit_bias.x: the name must be a token id");
    check_refused(r#""logit_bias": {"1": "x"}"#, "logit_bias.1: expected a number");
    check_refused(r#""logprobs": true"#, "expected an integer");
    check_refused(r#""model": {}"#, "expected a string, found an object");
    check_refused(r#""truncate_prompt_tokens": 0"#, "at least 1");
    check_refused(r#""logprobs_mode": "cooked""#, "\"raw\" or \"processed\"");
}

#[test]
fn unknown_fields_are_named() {
    check_refused(r#""temprature": 1"#, "temprature: unknown field of /generate");
    check_refused(r#""echo": true"#, "unknown field");
    check_refused(r#""temprature": null"#, "unknown field");
    check_refused_by(Endpoint::Chat, r#"{"messages": [], "prompt": "a"}"#, "messages: must not be empty");
}

#[test]
fn the_fields_of_a_beam_search_make_one() {
    let check = |fields: &str, expected: BeamParams| {
        assert_eq!(params(&format!(r#""use_beam_search": true, {fields}"#)).beam, Some(expected), "{fields}");
    };
    check(r#""n": 3"#, BeamParams::new(3));
    check(r#""n": 2, "best_of": 5"#, BeamParams::new(5));
    check(r#""best_of": 2"#, BeamParams::new(2));
    let four = BeamParams { length_penalty: -0.5, early_stopping: EarlyStopping::Never, ..BeamParams::new(4) };
    check(r#""n": 4, "length_penalty": -0.5, "early_stopping": "never""#, four);
    let two = BeamParams {
        early_stopping: EarlyStopping::True,
        length: BeamLength::PromptAndGenerated,
        ..BeamParams::new(2)
    };
    check(r#""n": 2, "early_stopping": true, "beam_length": "vllm""#, two);
    check(r#""n": 2, "early_stopping": false, "beam_length": "hf""#, BeamParams::new(2));
}

#[test]
fn without_a_beam_search_its_fields_are_neutral() {
    check_refused(r#""length_penalty": 2"#, "must be 1 without use_beam_search");
    check_refused(r#""early_stopping": true"#, "must be false without");
    check_refused(r#""early_stopping": "never""#, "must be false without");
    check_refused(r#""early_stopping": "soon""#, "\"never\"");
    check_refused(r#""beam_length": "vllm""#, "must be \"hf\" without");
    check_refused(r#""beam_length": "long""#, "\"vllm\"");
    assert_eq!(params(r#""use_beam_search": false, "length_penalty": 1"#).beam, None);
    assert_eq!(params(r#""best_of": 5, "n": 2"#).best_of, Some(5));
}

#[test]
fn exactly_one_of_prompt_and_messages() {
    let messages = r#""messages": [{"role": "user", "content": "a"}]"#;
    check_refused_by(Endpoint::Generate, "{}", "either prompt or messages is required");
    check_refused_by(Endpoint::Generate, r#"{"prompt": null}"#, "either prompt or messages is required");
    check_refused_by(Endpoint::Generate, &format!(r#"{{"prompt": "a", {messages}}}"#), "cannot stand beside messages");
    check_refused_by(Endpoint::Generate, r#"{"prompt": ""}"#, "prompt: must not be empty");
    check_refused_by(Endpoint::Generate, r#"{"prompt": []}"#, "prompt: must not be empty");
    check_refused_by(Endpoint::Generate, r#"{"messages": []}"#, "messages: must not be empty");
    check_refused_by(Endpoint::Completions, "{}", "prompt: is required");
    check_refused_by(Endpoint::Chat, "{}", "messages: is required");
    check_refused_by(Endpoint::Detokenize, "{}", "tokens: is required");
}

#[test]
fn completions_take_prompts_in_four_forms() {
    for (prompt, expected) in
        [(r#""a""#, 1), ("[1, 2]", 1), (r#"["a", "b", "c"]"#, 3), ("[[1], [2, 3]]", 2), (r#"["a", [1]]"#, 2)]
    {
        let mut request = accept(Endpoint::Completions, &format!(r#"{{"prompt": {prompt}}}"#));
        assert_eq!(request.num_requests(), expected, "{prompt}");
        assert_eq!(request.take_requests().count(), expected, "{prompt}");
    }
    check_refused_by(Endpoint::Completions, r#"{"prompt": [1, "a"]}"#, "prompt[1]: expected a token id");
    check_refused_by(Endpoint::Completions, r#"{"prompt": ["a", ""]}"#, "prompt[1]: must not be empty");
    check_refused_by(Endpoint::Completions, r#"{"prompt": [["a"]]}"#, "prompt[0][0]: expected a token id");
    check_refused_by(Endpoint::Generate, r#"{"prompt": ["a"]}"#, "prompt[0]: expected a token id");
}

#[test]
fn embeddings_take_inputs_in_the_same_forms() {
    let mut request = accept(
        Endpoint::Embeddings,
        r#"{"input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 7, "truncate_prompt_tokens": 9,
            "add_special_tokens": false, "user": "b"}"#,
    );
    assert!(request.is_base64);
    let request = request.take_embeddings();
    assert!(matches!(&request.inputs[..], [Prompt::Text(text), Prompt::Tokens(ids)] if text == "a" && *ids == [1, 2]));
    assert_eq!((request.dimensions, request.truncate_prompt_tokens), (Some(7), Some(9)));
    assert!(!request.add_special_tokens);
    let mut request = accept(Endpoint::Embeddings, r#"{"input": [3, 4]}"#);
    assert!(!request.is_base64);
    let request = request.take_embeddings();
    assert!(matches!(&request.inputs[..], [Prompt::Tokens(ids)] if *ids == [3, 4]));
    assert!(request.add_special_tokens && request.dimensions.is_none());
    let of = |len: usize, input: Value| json!({"input": vec![input; len]}).to_string();
    accept(Endpoint::Embeddings, &of(2048, json!("a")));
    accept(Endpoint::Embeddings, &of(3000, json!(1)));
    check_refused_by(Endpoint::Embeddings, &of(2049, json!([1])), "input: has 2049 texts");
    check_refused_by(Endpoint::Embeddings, "{}", "input: is required");
}

#[test]
fn special_tokens_are_added_to_text_alone() {
    let refused = |endpoint, body: &str| check_refused_by(endpoint, body, "add_special_tokens: cannot be true for");
    refused(Endpoint::Completions, r#"{"prompt": [1, 2], "add_special_tokens": true}"#);
    refused(Endpoint::Completions, r#"{"prompt": ["a", [1]], "add_special_tokens": true}"#);
    refused(Endpoint::Tokenize, r#"{"messages": [{"role": "user", "content": "a"}], "add_special_tokens": true}"#);
    for (body, expected) in [
        (r#"{"prompt": "a", "add_special_tokens": true}"#, true),
        (r#"{"prompt": "a"}"#, true),
        (r#"{"prompt": "a", "add_special_tokens": false}"#, false),
        (r#"{"prompt": [1], "add_special_tokens": false}"#, false),
    ] {
        assert_eq!(accept(Endpoint::Completions, body).take_request().unwrap().add_special_tokens, expected, "{body}");
    }
}

#[test]
fn errors_name_the_field_that_was_sent() {
    let chat = |fields: &str| format!(r#"{{"messages": [{{"role": "user", "content": "a"}}], {fields}}}"#);
    let refused = |fields: &str, message: &str| check_refused_by(Endpoint::Chat, &chat(fields), message);
    refused(r#""logprobs": true, "top_logprobs": 21"#, "top_logprobs: must be from 0 to 20, found 21");
    refused(r#""max_completion_tokens": 0"#, "max_completion_tokens: expected an integer, at least 1, found 0");
}

#[test]
fn a_prediction_is_text_in_either_form() {
    let chat = |prediction: &str| {
        format!(r#"{{"messages": [{{"role": "user", "content": "a"}}], "prediction": {prediction}}}"#)
    };
    for (content, expected) in
        [(r#""ab""#, "ab"), (r#""""#, ""), (r#"[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]"#, "ab")]
    {
        let body = chat(&format!(r#"{{"type": "content", "content": {content}}}"#));
        let request = accept(Endpoint::Chat, &body).take_request().unwrap();
        assert_eq!(request.prediction.as_deref(), Some(expected), "{content}");
    }
    let refused = |prediction: &str, message: &str| check_refused_by(Endpoint::Chat, &chat(prediction), message);
    refused(r#""ab""#, "prediction: expected an object");
    refused(r#"{"content": "ab"}"#, "prediction: has no type");
    refused(r#"{"type": "content"}"#, "prediction: has no content");
    refused(r#"{"type": "text", "content": "ab"}"#, "prediction.type: expected \"content\"");
    refused(r#"{"type": "content", "content": 1}"#, "prediction.content: expected a string or a list");
    refused(r#"{"type": "content", "content": "a", "more": 1}"#, "prediction.more: unknown field");
    check_refused_by(Endpoint::Completions, r#"{"prompt": "a", "prediction": {}}"#, "prediction: unknown field");
}

#[test]
fn messages_are_checked() {
    let refused = [
        (r#""a""#, "messages: expected a list of messages"),
        (r#"["a"]"#, "messages[0]: expected an object"),
        (r#"[{"content": "a"}]"#, "messages[0]: has no role"),
        (r#"[{"role": "user"}]"#, "messages[0]: has no content"),
        (r#"[{"role": "user", "content": null}]"#, "messages[0]: has no content"),
        (r#"[{"role": "wizard", "content": "a"}]"#, "messages[0].role: expected"),
        (r#"[{"role": "user", "content": 1}]"#, "messages[0].content: expected a string"),
        (r#"[{"role": "user", "content": "a", "mood": "good"}]"#, "messages[0].mood: unknown"),
        (
            r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]"#,
            "messages[0].content[0].type: expected \"text\"",
        ),
        (r#"[{"role": "user", "content": [{"type": "text"}]}]"#, "messages[0].content[0]: expected"),
        (r#"[{"role": "assistant", "content": "a", "tool_calls": [{}]}]"#, "messages[0].tool_calls[0]: has no type"),
    ];
    for (messages, words) in refused {
        check_refused_by(Endpoint::Chat, &format!(r#"{{"messages": {messages}}}"#), words);
    }
    let body = r#"{"messages": [{"role": "developer", "content": "a"}, {"role": "user", "content":
        [{"type": "text", "text": "b"}]}, {"role": "assistant", "content": "c", "refusal": null, "tool_calls": []}]}"#;
    let Prompt::Chat(chat) = accept(Endpoint::Chat, body).take_request().unwrap().prompt else { panic!("no chat") };
    let expected = serde_json::json!([
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
    ]);
    assert_eq!(serde_json::Value::Array(chat.messages), expected);
}

/// A chat request with `fields`.
fn chat_input(endpoint: Endpoint, fields: &str) -> ChatInput {
    match accept(endpoint, &chat(fields)).take_request().unwrap().prompt {
        Prompt::Chat(input) => input,
        other => panic!("{fields}: {other:?}"),
    }
}

#[test]
fn fields_of_the_template_reach_it() {
    for endpoint in [Endpoint::Generate, Endpoint::Chat, Endpoint::Tokenize] {
        let plain = chat_input(endpoint, r#""model": "m""#);
        assert!(plain.template_kwargs.is_empty() && !plain.continue_final_message);
        for (fields, expected) in [
            (r#""add_generation_prompt": false"#, json!({"add_generation_prompt": false})),
            (
                r#""add_generation_prompt": true, "chat_template_kwargs": {"add_generation_prompt": true}"#,
                json!({"add_generation_prompt": true}),
            ),
            (
                r#""add_generation_prompt": false, "chat_template_kwargs": {"think": [1]}"#,
                json!({"think": [1], "add_generation_prompt": false}),
            ),
            (r#""chat_template_kwargs": {"think": true}, "add_generation_prompt": null"#, json!({"think": true})),
        ] {
            assert_eq!(Value::Object(chat_input(endpoint, fields).template_kwargs), expected, "{fields}");
        }
        assert!(chat_input(endpoint, r#""continue_final_message": true"#).continue_final_message);
        let contrary = r#""add_generation_prompt": false, "chat_template_kwargs": {"add_generation_prompt": true}"#;
        check_refused_by(endpoint, &chat(contrary), "is false, but true in chat_template_kwargs");
        check_refused_by(endpoint, &chat(r#""add_generation_prompt": 1"#), "expected true or false");
        check_refused_by(endpoint, &chat(r#""chat_template_kwargs": []"#), "expected an object");
    }
    check_refused(r#""add_generation_prompt": true"#, "needs messages");
    check_refused(r#""continue_final_message": true"#, "needs messages");
    check_refused(r#""chat_template_kwargs": {"a": 1}"#, "needs messages");
}

pub(super) fn chat(fields: &str) -> String {
    format!(r#"{{"messages": [{{"role": "user", "content": "a"}}], {fields}}}"#)
}

#[test]
fn chat_fields_of_the_official_client() {
    let neutral = r#""user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
        "parallel_tool_calls": true, "response_format": {"type": "text"}, "tools": [], "tool_choice": "auto",
        "modalities": ["text"], "safety_identifier": "s", "prompt_cache_key": "k""#;
    accept(Endpoint::Chat, &chat(neutral));
    accept(Endpoint::Chat, &chat(r#""tools": null, "tool_choice": "none", "response_format": null"#));
    for (field, words) in [
        (r#""response_format": {"type": "xml"}"#, "response_format.type: expected \"text\""),
        (r#""store": true"#, "store: expected false"),
        (r#""service_tier": "flex""#, "service_tier: expected"),
        (r#""top_logprobs": 2"#, "top_logprobs: needs logprobs"),
        (r#""logprobs": 2"#, "logprobs: expected true or false"),
        (r#""stream_options": {"include_usage": true}"#, "stream_options: needs stream"),
        (r#""stream": true, "stream_options": {"usage": true}"#, "stream_options.usage: unknown field"),
        (r#""stream": true, "prompt_logprobs": 1"#, "prompt_logprobs: cannot be streamed"),
        (r#""max_tokens": 1, "max_completion_tokens": 2"#, "max_completion_tokens: is 2"),
    ] {
        check_refused_by(Endpoint::Chat, &chat(field), words);
    }
    let with = |fields| accept(Endpoint::Chat, &chat(fields));
    assert_eq!(with(r#""logprobs": true"#).params.logprobs, Some(0));
    assert_eq!(with(r#""logprobs": true, "top_logprobs": 5"#).params.logprobs, Some(5));
    assert_eq!(with(r#""logprobs": false, "top_logprobs": 0"#).params.logprobs, None);
    assert_eq!(with(r#""max_completion_tokens": 7"#).params.max_tokens, Some(7));
    assert_eq!(with(r#""stream": true, "stream_options": {"include_usage": true}"#).stream_usage, Some(true));
    assert_eq!(with(r#""stream": true, "stream_options": {}"#).stream_usage, Some(false));
}

#[test]
fn completions_fields() {
    let with = |fields: &str| accept(Endpoint::Completions, &format!(r#"{{"prompt": "a", {fields}}}"#));
    let echoed = with(r#""echo": true, "logprobs": 2"#).params;
    assert_eq!((echoed.logprobs, echoed.prompt_logprobs), (Some(2), Some(2)));
    assert_eq!(with(r#""echo": true"#).params.prompt_logprobs, None);
    let streamed = r#"{"prompt": "a", "echo": true, "stream": true, "prompt_logprobs": 1}"#;
    check_refused_by(Endpoint::Completions, streamed, "prompt_logprobs: cannot be streamed");
    assert_eq!(with(r#""echo": true, "stream": true, "logprobs": 1"#).params.prompt_logprobs, Some(1));
    with(r#""suffix": """#);
    check_refused_by(Endpoint::Completions, r#"{"prompt": "a", "suffix": "b"}"#, "suffix: expected no suffix");
}

#[test]
fn min_tokens_raises_the_default_of_max_tokens() {
    assert_eq!(params(r#""min_tokens": 20"#).max_tokens, Some(20));
    assert_eq!(params(r#""min_tokens": 2"#).max_tokens, Some(16));
}

#[test]
fn bodies_that_are_no_json_object() {
    let message = |body: &[u8]| WireRequest::parse(Endpoint::Generate, body).expect_err("refused").message;
    assert!(
        message(b"{\"prompt\": \n \"a\" x}").contains("line 2 column 6"),
        "{}",
        message(b"{\"prompt\": \n \"a\" x}")
    );
    assert!(message(b"").contains("not JSON"));
    assert!(message(b"{\"prompt\": \"\xff\"}").contains("not UTF-8: invalid byte at offset 12"));
    assert!(message(b"[1]").contains("expected a JSON object, found a list"));
    assert!(message("[".repeat(100_000).as_bytes()).contains("not JSON"));
    assert!(message(br#"{"prompt": "\ud800"}"#).contains("not JSON"));
}

#[test]
fn no_endpoint_has_two_fields_of_one_name() {
    use Endpoint::{Chat, Completions, Detokenize, Generate, Tokenize};
    for endpoint in [Generate, Completions, Chat, Tokenize, Detokenize] {
        let mut names: Vec<_> = FIELDS.iter().filter(|f| f.is_of(endpoint)).map(|f| f.name).collect();
        let num_names = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), num_names, "{endpoint:?}");
    }
}

#[test]
fn formats_become_grammars() {
    let schema = || Some(Grammar::JsonSchema(r#"{"type":"object","b":1,"a":2}"#.into()));
    for (field, expected) in [
        (r#""response_format": {"type": "text"}"#, None),
        (r#""response_format": {"type": "json_object"}"#, Some(Grammar::JsonObject)),
        (r#""response_format": {"type": "json_object", "schema": {"type": "object", "b": 1, "a": 2}}"#, schema()),
        (
            r#""response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true,
                "schema": {"type": "object", "b": 1, "a": 2}}}"#,
            schema(),
        ),
        (r#""structured_outputs": {"json": {"type": "object", "b": 1, "a": 2}, "regex": null}"#, schema()),
        (r#""structured_outputs": {"json_object": true}"#, Some(Grammar::JsonObject)),
        (r#""structured_outputs": {"regex": "a+"}"#, Some(Grammar::Regex("a+".into()))),
        (r#""structured_outputs": {"choice": ["a", "b"]}"#, Some(Grammar::Choice(vec!["a".into(), "b".into()]))),
        (r#""structured_outputs": {"grammar": "start: A"}"#, Some(Grammar::Lark("start: A".into()))),
        (r#""guided_json": "{\"type\":\"object\",\"b\":1,\"a\":2}""#, schema()),
        (r#""guided_regex": "a+""#, Some(Grammar::Regex("a+".into()))),
        (r#""guided_choice": ["a"]"#, Some(Grammar::Choice(vec!["a".into()]))),
        (r#""guided_grammar": "start: A""#, Some(Grammar::Lark("start: A".into()))),
    ] {
        for endpoint in [Endpoint::Generate, Endpoint::Completions] {
            let mut request = accept(endpoint, &format!(r#"{{"prompt": "a", {field}}}"#));
            assert_eq!(request.take_request().unwrap().grammar, expected, "{field}");
        }
    }
    check_refused(r#""response_format": {"schema": {}}"#, "has no type");
    check_refused(r#""response_format": {"type": "xml"}"#, "expected \"text\", \"json_object\" or \"json_schema\"");
    check_refused(r#""response_format": {"type": "json_schema"}"#, "has no json_schema");
    check_refused(r#""response_format": {"type": "json_schema", "json_schema": {"name": "n"}}"#, "has no schema");
    check_refused(r#""response_format": {"type": "text", "schema": {}}"#, "schema goes with");
    check_refused(r#""structured_outputs": {}"#, "needs just one of");
    check_refused(r#""structured_outputs": {"regex": "a", "choice": ["a"]}"#, "needs just one of");
    check_refused(r#""structured_outputs": {"structural_tag": "a"}"#, "unknown field");
    check_refused(r#""guided_regex": "a", "guided_choice": ["a"]"#, "cannot stand beside guided_regex");
}
