//! The binary: what it says and how it exits where it cannot start.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn sconce(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sconce")).args(args).env_remove("RUST_LOG").output().unwrap()
}

/// Checks that the binary exits with `code` and says `words`.
fn check(args: &[&str], code: i32, words: &str) {
    let output = sconce(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(words), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: errors go to stderr");
}

#[test]
fn a_port_in_use() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    check(&["serve", "--port", &port], 1, &format!("port {port} of 127.0.0.1 is in use"));
}

#[test]
fn an_address_of_another_machine() {
    check(&["serve", "--host", "192.0.2.1"], 1, "cannot listen on 192.0.2.1");
}

#[test]
fn devices_are_listed() {
    let output = sconce(&["devices"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    // A line for the CPU; then GPUs, or why there is none.
    assert!(stdout.starts_with("cpu "), "{stdout}");
    assert!(stdout.contains("\ncuda"), "{stdout}");
}

#[test]
fn flags_that_do_not_parse() {
    check(&["serve", "--port", "many"], 2, "--port");
    check(&["serve", "--kv-cache-bytes", "2Gigs"], 2, "expected a size such as 512MiB");
    check(&["serve", "--device", "tpu"], 2, "expected auto, cpu, cuda or cuda:N");
    check(&["generate", "--regex", "a", "--choice", "b", "hi"], 2, "cannot be used with");
}

#[test]
fn settings_that_cannot_be() {
    check(&["serve", "--port", "0", "--model", "m", "--max-num-seqs", "0"], 1, "max-num-seqs: must be at least 1");
    check(&["generate", "--model", "m", "--block-size", "3", "hi"], 1, "block-size: must be a power of two");
    check(&["generate", "--json-schema", "no/schema.json", "hi"], 1, "no/schema.json: ");
    check(&["generate", "--grammar", "no/grammar.lark", "hi"], 1, "no/grammar.lark: ");
}

/// A folder with nothing but the config.json of a small Mistral, with `changes`.
fn config_folder(changes: Value) -> tempfile::TempDir {
    let mut config = json!({
        "architectures": ["MistralForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": 100,
        "sliding_window": 32, "eos_token_id": 2,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// `sconce inspect` of that folder: the exit code, stdout and stderr.
fn inspect(changes: Value, flags: &[&str]) -> (i32, String, String) {
    let dir = config_folder(changes);
    let output = sconce(&[&["inspect", dir.path().to_str().unwrap()], flags].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_config_alone_is_inspected() {
    let parameters = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 2 * 100 * 64 + 64;
    let (code, stdout, stderr) = inspect(json!({}), &["--load-format", "dummy", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    for (key, expected) in [
        ("architecture", json!("MistralForCausalLM")),
        ("parameters", json!(parameters)),
        ("head_dim", json!(16)),
        ("sliding_window", json!([32, 32])),
        ("kv_bytes_per_sequence", json!(256 * 2 * 2 * 2 * 16 * 4)),
        ("tokenizer", Value::Null),
        ("end_tokens", json!([{"id": 2, "token": null}])),
        ("is_supported", json!(true)),
        ("problems", json!([])),
    ] {
        assert_eq!(report[key], expected, "{key}");
    }
    let (code, stdout, _) = inspect(json!({}), &["--load-format", "dummy", "--dtype", "f32", "--max-model-len", "99"]);
    assert_eq!(code, 0, "{stdout}");
    for words in ["parameters     74,560", "32 tokens in every layer", "F32", "99 tokens", "there is no tokenizer.json"]
    {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    let long = json!({"architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": vec![1; 8], "long_factor": vec![2; 8], "attention_factor": 1.5}});
    let (code, stdout, stderr) = inspect(long, &["--load-format", "dummy"]);
    let scaling =
        "theta 10000, longrope: one set of factors up to 64 tokens, another in longer sequences, attention by 1.5";
    assert!(code == 0 && stdout.contains(scaling), "{stdout}{stderr}");
    let flags = ["--load-format", "dummy", "--device", "cuda", "--quantization", "fp8"];
    let (code, stdout, stderr) = inspect(json!({}), &flags);
    assert!(code == 0 && stdout.contains("F8_E4M3"), "{stdout}{stderr}");
    let quantized =
        |flags: &[&str]| inspect(json!({}), &[&["--load-format", "dummy", "--quantization"], flags].concat());
    for device in ["cpu", "cuda"] {
        let (code, stdout, stderr) = quantized(&["q8_0", "--device", device]);
        assert!(code == 0 && stdout.contains("Q8_0"), "{stdout}{stderr}");
    }
    let (code, _, stderr) = quantized(&["q8_0", "--dtype", "bf16"]);
    assert!(code != 0 && stderr.contains("dtype") && stderr.contains("q8_0"), "{stderr}");
    let (code, _, stderr) = quantized(&["int3"]);
    assert!(code != 0 && stderr.contains("expected none, fp8, q8_0 or q4_0, found \"int3\""), "{stderr}");
}

#[test]
fn what_cannot_run_fails_the_inspection() {
    let (code, stdout, _) = inspect(json!({}), &[]);
    assert_eq!(code, 1);
    assert!(stdout.contains("parameters") && stdout.contains("neither model.safetensors"), "{stdout}");
    let unknown = json!({"architectures": ["FlyForCausalLM"]});
    let (code, stdout, stderr) = inspect(unknown.clone(), &[]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("architecture FlyForCausalLM is not supported; supported: "), "{stderr}");
    let (code, stdout, stderr) = inspect(unknown, &["--json"]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["is_supported"], false);
    assert!(report["problems"][0].as_str().unwrap().contains("FlyForCausalLM"), "{report}");
    let scaled = json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}});
    let (code, _, stderr) = inspect(scaled, &["--load-format", "dummy"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("rope_scaling: rope_type \"dynamic\" is not supported"), "{stderr}");
}

#[test]
fn a_model_without_a_tokenizer_is_not_run() {
    let dir = config_folder(json!({}));
    let path = dir.path().to_str().unwrap();
    check(&["generate", "--model", path, "--load-format", "dummy", "hi"], 1, "tokenizer.json is not there");
}
