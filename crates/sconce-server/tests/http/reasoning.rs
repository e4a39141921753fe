//! Reasoning from end to end: a tiny model whose weights are random thinks, and then answers as it must.

use std::path::Path;
use std::sync::Arc;

use sconce::{DeviceKind, Engine, LoadFormat};
use sconce_server::{Served, Settings, State, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Answer, Client};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama");
/// Ids of tokens that the fixture does not have: two that are not special, then those of channels.
const CLOSE: u32 = 305;
const CHANNEL: u32 = 306;
const TOKENS: [&str; 8] =
    ["<think>", "</think>", "<|channel|>", "<|message|>", "<|start|>", "<|call|>", "<|return|>", "<|constrain|>"];

/// The golden fixture `llama` with more tokens and another template; its weights are dummies.
fn model(dir: &Path, template: &str) {
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(Path::new(GOLDEN).join(name)).unwrap()).unwrap()
    };
    let mut config = read("config.json");
    config["vocab_size"] = 312.into();
    config["max_position_embeddings"] = 512.into();
    let mut tokenizer = read("tokenizer.json");
    for (content, id) in TOKENS.iter().zip(304u32..) {
        let token = json!({"id": id, "content": content, "special": id > CLOSE, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false});
        tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let mut tokenizer_config = read("tokenizer_config.json");
    tokenizer_config["chat_template"] = template.into();
    for (name, file) in
        [("config.json", config), ("tokenizer.json", tokenizer), ("tokenizer_config.json", tokenizer_config)]
    {
        std::fs::write(dir.join(name), file.to_string()).unwrap();
    }
}

/// Thinks unless it is told not to, shows what was thought before, and knows an effort.
const THINKING: &str = "{% for m in messages %}<|head|>{{ m.role }}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\
    {% endif %}<|body|>{{ m.content }}<|stop|>{% endfor %}{{ reasoning_effort }}<|head|>assistant<|body|>\
    {% if enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}";
const CHANNELS: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|start|>{{ m.role }}<|channel|>final<|message|>\
    {{ m.content }}<|end|>{% endfor %}<|start|>assistant";

async fn client() -> Client {
    let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let served = [("thinking", THINKING), ("channels", CHANNELS), ("plain", plain)].map(|(name, template)| {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), template);
        let builder = Engine::builder(dir.path().to_str().unwrap()).device(DeviceKind::Cpu).num_threads(1);
        let builder = builder.kv_cache_bytes(4 << 20).load_format(LoadFormat::Dummy).served_name(name);
        Served::new(builder.build().unwrap(), None)
    });
    let state = Arc::new(State::new(Settings::default()));
    state.set_models(served.into()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(serve(state, listener, std::future::pending()));
    Client::connect(port).await
}

async fn ask(client: &mut Client, path: &str, fields: Value) -> Answer {
    let mut body = json!({"model": "thinking", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    client.ask("POST", path, "content-type: application/json\r\n", &body.to_string()).await
}

async fn chat(client: &mut Client, fields: Value) -> Value {
    let answer = ask(client, "/v1/chat/completions", fields.clone()).await;
    assert_eq!(answer.status, 200, "{fields}: {answer:?}");
    answer.json()
}

/// The end of reasoning is as likely as some dozen others together, so that it comes soon.
fn ending() -> Value {
    json!({CLOSE.to_string(): 4})
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_is_free_and_the_answer_is_bound() {
    let mut client = client().await;
    let choices = ["yes", "no, never"];
    let ways = [
        json!({"n": 4, "seed": 1}),
        json!({"n": 2, "best_of": 4, "seed": 2}),
        json!({"n": 2, "best_of": 3, "use_beam_search": true}),
    ];
    for way in ways {
        let mut fields = json!({"guided_choice": choices, "logit_bias": ending(), "max_tokens": 300, "logprobs": true});
        fields.as_object_mut().unwrap().extend(way.as_object().unwrap().clone());
        let answer = chat(&mut client, fields).await;
        let (mut num_in_all, mut num_thoughts) = (0, 0);
        for choice in answer["choices"].as_array().unwrap() {
            let message = &choice["message"];
            assert!(choices.map(Value::from).contains(&message["content"]), "{way}: {choice}");
            assert_eq!(message["reasoning"], message["reasoning_content"]);
            num_thoughts += usize::from(message["reasoning"].is_string());
            num_in_all += choice["logprobs"]["content"].as_array().unwrap().len() as u64;
        }
        let usage = &answer["usage"];
        let num_reasoning = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
        assert_eq!(usage["completion_tokens"], num_in_all, "{way}");
        assert!(num_reasoning > num_thoughts as u64 && num_reasoning < num_in_all, "{way}: {usage}");
        // The best are likely to be those that think little.
        assert!(num_thoughts > 0 || !way["best_of"].is_null(), "{way}: {answer}");
    }
    // Cut off while it thinks; and not thinking at all.
    let answer = chat(&mut client, json!({"max_tokens": 5, "logit_bias": {CLOSE.to_string(): -100}, "seed": 1})).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&Value::Null, &json!("length")));
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 5);
    let fields = json!({"guided_choice": choices, "chat_template_kwargs": {"enable_thinking": false}, "include_reasoning": true});
    let answer = chat(&mut client, fields).await;
    assert!(choices.map(Value::from).contains(&answer["choices"][0]["message"]["content"]), "{answer}");
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
    // The raw text is /generate's.
    let fields = json!({"guided_choice": ["yes"], "logit_bias": ending(), "max_tokens": 300, "seed": 3});
    let text = ask(&mut client, "/generate", fields).await.json()["text"][0].clone();
    assert!(text.as_str().unwrap().ends_with("</think>yes"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_message_is_bound_and_calls_come_as_messages() {
    let mut client = client().await;
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let fields = json!({"model": "channels", "tools": tools, "tool_choice": "required", "seed": 1, "max_tokens": 400,
        "logit_bias": {"299": 8}, "n": 2});
    let answer = chat(&mut client, fields).await;
    for choice in answer["choices"].as_array().unwrap() {
        let call = &choice["message"]["tool_calls"][0]["function"];
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert_eq!((&call["name"], arguments), (&json!("f"), json!({})), "{choice}");
        assert_eq!(choice["finish_reason"], "tool_calls");
        assert_eq!(choice["message"]["content"], Value::Null);
    }
    // Nothing but a message's header can come where it is certain that one does.
    let fields = json!({"model": "channels", "max_tokens": 20, "logit_bias": {CHANNEL.to_string(): 100}, "seed": 1});
    let answer = chat(&mut client, fields).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_template_does_not_know_is_refused_and_what_it_knows_reaches_it() {
    let mut client = client().await;
    let mut count = async |fields: Value| ask(&mut client, "/tokenize", fields).await.json()["count"].as_u64().unwrap();
    let thought = |name: &str| json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a", name: "a long thought"}]});
    let without = count(thought("name")).await;
    assert_eq!(count(thought("reasoning")).await, count(thought("reasoning_content")).await);
    assert!(count(thought("reasoning")).await > without + 5);
    assert!(count(json!({"reasoning_effort": "high"})).await > count(json!({})).await);
    for (fields, param) in [
        (json!({"model": "plain", "reasoning_effort": "high"}), "reasoning_effort"),
        (json!({"reasoning_effort": "much"}), "reasoning_effort"),
        (json!({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}), "reasoning_effort"),
        (json!({"messages": [{"role": "user", "content": "a", "reasoning": "b"}]}), "messages[0].reasoning"),
        (
            json!({"messages": [{"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "c"}]}),
            "messages[0]",
        ),
    ] {
        let answer = ask(&mut client, "/v1/chat/completions", fields.clone()).await;
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(param)), "{fields}: {answer:?}");
    }
}
