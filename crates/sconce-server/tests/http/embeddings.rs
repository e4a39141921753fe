//! `/v1/embeddings` on a tiny model: both forms, all kinds of inputs, and what is refused.

use std::path::Path;
use std::sync::Arc;

use sconce::{DeviceKind, Engine};
use sconce_server::{Served, Settings, State, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Answer, Client, LIMIT};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama");

fn engine(dir: &str, name: &str) -> Engine {
    let builder = Engine::builder(dir).device(DeviceKind::Cpu).num_threads(1).kv_cache_bytes(4 << 20);
    builder.served_name(name).build().unwrap()
}

/// The golden fixture, and the same with a pooling that is not supported.
async fn start() -> (Client, Arc<State>, u16) {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(GOLDEN).unwrap().flatten().filter(|file| file.path().is_file()) {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let modules = r#"[{"type": "sentence_transformers.models.Dense"}]"#;
    std::fs::write(dir.path().join("modules.json"), modules).unwrap();
    let plain = Path::new(GOLDEN).to_str().unwrap();
    let served = [engine(plain, "plain"), engine(dir.path().to_str().unwrap(), "dense")];
    let state = Arc::new(State::new(Settings::default()));
    state.set_models(served.map(|engine| Served::new(engine, None)).into()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(serve(state.clone(), listener, std::future::pending()));
    (Client::connect(port).await, state, port)
}

async fn ask(client: &mut Client, fields: Value) -> Answer {
    let mut body = json!({"model": "plain"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    client.ask("POST", "/v1/embeddings", "content-type: application/json\r\n", &body.to_string()).await
}

async fn embed(client: &mut Client, fields: Value) -> Value {
    let answer = ask(client, fields.clone()).await;
    assert_eq!(answer.status, 200, "{fields}: {answer:?}");
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_and_tokens_have_vectors() {
    let (mut client, state, _) = start().await;
    let handle = state.models()[0].engine.handle();
    let tokens = ["The boat", "The old man"].map(|text| handle.tokenizer().encode(text, true).unwrap());
    let both = embed(&mut client, json!({"input": ["The boat", "The old man"], "user": "me"})).await;
    let num_tokens = tokens[0].len() + tokens[1].len();
    assert_eq!((&both["object"], &both["model"]), (&json!("list"), &json!("plain")));
    assert_eq!(both["usage"], json!({"prompt_tokens": num_tokens, "total_tokens": num_tokens}));
    let vector = |i: usize| both["data"][i]["embedding"].as_array().unwrap();
    assert_eq!((both["data"].as_array().unwrap().len(), vector(0).len()), (2, 32));
    assert_eq!((&both["data"][1]["object"], &both["data"][1]["index"]), (&json!("embedding"), &json!(1)));
    let norm: f64 = vector(0).iter().map(|x| x.as_f64().unwrap().powi(2)).sum();
    assert!((norm - 1.0).abs() < 1e-5 && vector(0) != vector(1), "{both}");
    for input in [json!(tokens), json!(["The boat", tokens[1]])] {
        assert_eq!(embed(&mut client, json!({"input": input})).await["data"], both["data"]);
    }
    for input in [json!("The boat"), json!(tokens[0]), json!(["The boat"])] {
        let alone = embed(&mut client, json!({"input": input, "encoding_format": "float", "dimensions": 32})).await;
        assert_eq!(alone["data"], json!([both["data"][0]]), "{input}");
    }
    let base64 = embed(&mut client, json!({"input": "The boat", "encoding_format": "base64"})).await;
    // 32 numbers of 4 bytes.
    assert_eq!(base64["data"][0]["embedding"].as_str().map(str::len), Some(172), "{base64}");
    let last = json!({"input": [[9, 8, 7, 6, 5]], "truncate_prompt_tokens": 2});
    assert_eq!(embed(&mut client, last).await["data"], embed(&mut client, json!({"input": [6, 5]})).await["data"]);
    let without = json!({"input": "The boat", "add_special_tokens": false});
    let tokens = handle.tokenizer().encode("The boat", false).unwrap();
    assert_eq!(embed(&mut client, without).await["usage"]["prompt_tokens"], tokens.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named() {
    let (mut client, ..) = start().await;
    for (fields, param, words) in [
        (json!({}), "input", "required"),
        (json!({"input": ""}), "input", "must not be empty"),
        (json!({"input": []}), "input", "must not be empty"),
        (json!({"input": [[]]}), "input[0]", "must not be empty"),
        (json!({"input": ["a", ""]}), "input[1]", "must not be empty"),
        (json!({"input": ["a", 1]}), "input[1]", "expected a string or a list of token ids"),
        (json!({"input": [1, "a"]}), "input[1]", "expected a token id"),
        (json!({"input": [[1], [2, 304]]}), "input[1]", "outside the vocabulary"),
        (json!({"input": [5_000_000_000u64]}), "input[0]", "expected a token id"),
        (json!({"input": ["a", vec![1; 129]]}), "input[1]", "129 tokens, more than the context of 128"),
        (json!({"input": vec![1; 129]}), "input", "129 tokens"),
        (json!({"input": vec!["a"; 2049]}), "input", "2049 texts, and at most 2048"),
        (json!({"input": {"text": "a"}}), "input", "found an object"),
        (json!({"input": "a", "encoding_format": "binary"}), "encoding_format", "base64"),
        (json!({"input": "a", "dimensions": 16}), "dimensions", "is_matryoshka"),
        (json!({"input": "a", "dimensions": 0}), "dimensions", "at least 1"),
        (json!({"input": "a", "truncate_prompt_tokens": 0}), "truncate_prompt_tokens", "at least 1"),
        (json!({"input": "a", "prompt": "b"}), "prompt", "unknown field of /v1/embeddings"),
        (json!({"input": "a", "temperature": 0}), "temperature", "unknown field"),
        (json!({"input": "a", "model": "dense"}), "model", "Dense"),
    ] {
        let answer = ask(&mut client, fields.clone()).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{fields}: {answer:?}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{param}: ")) && message.contains(words), "{fields}: {message}");
    }
    let answer = ask(&mut client, json!({"input": "a", "model": "other"})).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    // The whole context is no text too long.
    embed(&mut client, json!({"input": vec![1; 128]})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_cancelled() {
    let (_, state, port) = start().await;
    let status = state.models()[0].engine.handle().status();
    let get = sconce::EngineStatus::get;
    let mut client = Client::connect(port).await;
    let inputs: Vec<Vec<u32>> = (0..2048).map(|i| (0..128).map(|k| (i * 7 + k) % 300).collect()).collect();
    let body = json!({"model": "plain", "input": inputs}).to_string();
    let head = format!("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    client.send(head + &body).await;
    let wait = async |what: &str, is_there: &dyn Fn() -> bool| {
        let waiting = async {
            while !is_there() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.expect(what);
    };
    wait("it runs", &|| get(&status.num_steps) > 0).await;
    drop(client);
    wait("it is cancelled", &|| get(&status.num_cancelled_requests) == 1).await;
    wait("its blocks are free", &|| get(&status.num_used_blocks) == 0).await;
}
