//! Tools from end to end: a tiny model whose weights are random calls them as it must.

use std::path::Path;
use std::sync::Arc;

use sconce::{DeviceKind, Engine};
use sconce_server::{Served, Settings, State, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Answer, Client};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The golden fixture `llama` with room for more tokens, and with a template that knows tools.
fn model_with_tools(dir: &Path) {
    let golden = Path::new(REPOSITORY).join("tests/golden/llama");
    for entry in std::fs::read_dir(golden).unwrap().map(Result::unwrap).filter(|e| e.file_type().unwrap().is_file()) {
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["max_position_embeddings"] = 2048.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let template = Path::new(REPOSITORY).join("tests/tools/chat_template.jinja");
    std::fs::copy(template, dir.join("chat_template.jinja")).unwrap();
}

/// A client of a server of that model, and of the fixture as it is.
async fn client() -> Client {
    let dir = tempfile::tempdir().unwrap();
    model_with_tools(dir.path());
    let plain = format!("{REPOSITORY}/tests/golden/llama");
    let served = [("tools", dir.path().to_str().unwrap()), ("plain", &plain)].map(|(name, path)| {
        let builder = Engine::builder(path).device(DeviceKind::Cpu).num_threads(1).kv_cache_bytes(8 << 20);
        Served::new(builder.served_name(name).build().unwrap(), None)
    });
    let state = Arc::new(State::new(Settings::default()));
    state.set_models(served.into()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(serve(state, listener, std::future::pending()));
    Client::connect(port).await
}

async fn ask(client: &mut Client, path: &str, fields: Value) -> Answer {
    let mut body = json!({"model": "tools", "messages": [{"role": "user", "content": "Hi"}], "tools": tools()});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    client.ask("POST", path, "content-type: application/json\r\n", &body.to_string()).await
}

fn tools() -> Value {
    let unit = json!({"enum": ["c", "f"]});
    let days = json!({"type": "integer", "minimum": 1, "maximum": 9});
    let parameters = json!({"type": "object", "properties": {"unit": unit, "days": days}, "required": ["unit", "days"],
        "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "get_weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "get_time"}},
    ])
}

/// The name of a call whose arguments are checked.
fn name_of(call: &Value) -> &str {
    assert!(call["type"] == "function" && call["id"].as_str().unwrap().starts_with("call_"), "{call}");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    let name = call["function"]["name"].as_str().unwrap();
    match name {
        "get_weather" => {
            let is_valid = ["c", "f"].contains(&arguments["unit"].as_str().unwrap());
            assert!(is_valid && (1.0..=9.0).contains(&arguments["days"].as_f64().unwrap()), "{call}");
        }
        _ => assert_eq!(arguments, json!({}), "{call}"),
    }
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_have_to_come_come_and_are_answered() {
    const PATH: &str = "/v1/chat/completions";
    let mut client = client().await;
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    for (choice, parallel, finish) in
        [(json!("required"), false, "tool_calls"), (named, false, "stop"), (json!("required"), true, "")]
    {
        let fields =
            json!({"tool_choice": choice, "parallel_tool_calls": parallel, "seed": 3, "n": 3, "max_tokens": 1000});
        let answer = ask(&mut client, PATH, fields.clone()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        for one in answer.json()["choices"].as_array().unwrap() {
            let calls = one["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("{one}"));
            assert!(calls.iter().all(|call| choice.is_string() || name_of(call) == "get_weather"), "{one}");
            if !parallel {
                assert_eq!((calls.len(), &one["message"]["content"]), (1, &Value::Null), "{one}");
                assert_eq!(one["finish_reason"], finish, "{one}");
            }
        }
    }
    // Beams are told once they are certain, and what was called can be told to the model, and its result.
    let fields = json!({"tool_choice": "required", "parallel_tool_calls": false, "use_beam_search": true, "n": 2});
    let answer = ask(&mut client, PATH, fields).await.json();
    let message = answer["choices"][0]["message"].clone();
    let call = message["tool_calls"][0].clone();
    name_of(&call);
    let result = json!({"role": "tool", "tool_call_id": call["id"], "content": "<|stop|> 15"});
    let messages = json!([{"role": "user", "content": "Hi"}, message, result]);
    let answer = ask(&mut client, PATH, json!({"messages": messages, "max_tokens": 3, "tool_choice": "auto"})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["choices"][0]["message"]["content"].is_string(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_part_of_the_prompt_or_refused() {
    let mut client = client().await;
    let mut counts = Vec::new();
    for fields in [json!({}), json!({"tools": []})] {
        counts.push(ask(&mut client, "/tokenize", fields).await.json()["count"].as_u64().unwrap());
    }
    assert!(counts[0] > counts[1] + 50, "{counts:?}");
    let fields = json!({"tool_choice": "none", "max_tokens": 1});
    let usage = ask(&mut client, "/v1/chat/completions", fields).await.json()["usage"].clone();
    assert_eq!(usage["prompt_tokens"], counts[1]);
    let call = json!([{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": call}]);
    let unsupported = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties":
        {"x": {"type": "nothing"}}}}}]);
    for (fields, param) in [
        (json!({"model": "plain"}), "tools"),
        (json!({"model": "plain", "tools": [], "messages": messages}), "messages[1].tool_calls"),
        (json!({"tools": unsupported, "tool_choice": "required"}), "tools"),
        (json!({"tool_choice": "required", "ignore_eos": true}), "ignore_eos"),
    ] {
        let answer = ask(&mut client, "/v1/chat/completions", fields.clone()).await;
        assert_eq!(answer.status, 400, "{fields}: {answer:?}");
        assert_eq!(answer.json()["error"]["param"], param, "{fields}: {answer:?}");
    }
}
