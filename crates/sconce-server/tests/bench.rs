//! `sconce bench` on a tiny model, on a server of it, and on a server that fails.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

/// A context of 128 tokens, weights in f32.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama");
const ENGINE: &[&str] = &["--model", MODEL, "--threads", "1", "--kv-cache-bytes", "4MiB"];

fn sconce(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
    command.args(args).env_remove("RUST_LOG").env_remove("SCONCE_API_KEY").stdin(Stdio::null());
    command
}

fn bench(args: &[&str]) -> Output {
    sconce(&[&["bench"], args].concat()).output().unwrap()
}

/// The JSON object of a benchmark that succeeds.
fn report(args: &[&str]) -> Value {
    let output = bench(&[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Checks that a benchmark exits with `code`, says `words`, and prints nothing else.
fn check_refused(args: &[&str], code: i32, words: &str) {
    let output = bench(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(words), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[track_caller]
fn number(report: &Value, path: &str) -> f64 {
    let value = report.pointer(path).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("{path} is no number: {report:#}"))
}

#[track_caller]
fn check_close(left: f64, right: f64) {
    assert!((left / right - 1.0).abs() < 1e-6, "{left} {right}");
}

#[track_caller]
fn check_peaks(report: &Value) {
    assert_eq!(report["peaks"]["num_threads"], 1);
    for path in ["/peaks/dram_read_gb_per_s", "/peaks/f32_gflop_per_s", "/weight_bytes_read_per_token"] {
        assert!(number(report, path) > 0.0, "{path}: {report:#}");
    }
    assert!(number(report, "/weight_bytes_read_per_token") < number(report, "/weight_bytes"), "{report:#}");
}

#[test]
fn every_product_is_timed() {
    // Many tokens: the sequences do not begin at once, and steps count in which all three decode.
    let args = ["ops", "--input-len", "20", "--output-len", "120", "--decode-after", "4", "--batch-size", "3"];
    let report = report(&[&args[..], ENGINE].concat());
    check_peaks(&report);
    let weights = [20.0 * number(&report, "/layer_weights"), 3.0 * number(&report, "/layer_weights")];
    let head = number(&report, "/head_weights");
    for (part, expected) in [weights[0] + head, weights[1] + 3.0 * head].into_iter().enumerate() {
        let ops = report["parts"][part]["ops"].as_array().unwrap();
        let ops_ms: f64 = ops.iter().map(|op| op["ms"].as_f64().unwrap()).sum();
        assert!(ops_ms > 0.0, "{report:#}");
        check_close(ops_ms, number(&report, &format!("/parts/{part}/ms")));
        let products = |op: &Value| op["gflop_per_s"].as_f64().unwrap_or(0.0) * op["ms"].as_f64().unwrap() * 1e6 / 2.0;
        let found: f64 = ops.iter().map(products).sum();
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}: {report:#}");
    }
}

#[test]
fn latency_of_several_prompts() {
    let lengths = ["latency", "--input-len", "8,100", "--output-len", "4", "--num-iters", "2"];
    let report = report(&[&lengths, ENGINE].concat());
    check_peaks(&report);
    assert_eq!((&report["command"], &report["model"]), (&json!("latency"), &json!("llama")));
    let (layers, head) = (number(&report, "/layer_weights"), number(&report, "/head_weights"));
    assert_eq!(head, 304.0 * 32.0);
    for (idx, len) in [8.0, 100.0].into_iter().enumerate() {
        let at = |key: &str| number(&report, &format!("/prompt/{idx}/{key}"));
        assert_eq!(at("input_len"), len);
        assert!(at("least_tok_per_s") <= at("tok_per_s") && at("tok_per_s") <= at("most_tok_per_s"));
        check_close(at("ms"), 1e3 * len / at("tok_per_s"));
        check_close(at("gflop_per_s"), 2e-9 * (layers * len + head) / (at("ms") / 1e3));
        check_close(at("share_of_f32"), at("gflop_per_s") / number(&report, "/peaks/f32_gflop_per_s"));
    }
    let decode = |key: &str| number(&report, &format!("/decode/{key}"));
    assert_eq!(decode("output_len"), 4.0);
    check_close(
        decode("weights_gb_per_s"),
        number(&report, "/weight_bytes_read_per_token") * decode("tok_per_s") / 1e9,
    );
    check_close(
        decode("share_of_dram_read"),
        decode("weights_gb_per_s") / number(&report, "/peaks/dram_read_gb_per_s"),
    );
}

/// The model itself: nearly all of its drafts are right.
#[test]
fn latency_with_a_draft_model() {
    let args = ["latency", "--input-len", "8", "--output-len", "60", "--num-iters", "2", "--draft-model", MODEL];
    let report = report(&[&args, ENGINE].concat());
    assert_eq!(report["draft_model"], "llama");
    let [num_drafts, num_accepted] = ["/draft_tokens", "/accepted_tokens"].map(|path| number(&report, path));
    assert!(num_drafts >= num_accepted && num_accepted > 30.0, "{num_accepted} of {num_drafts} drafts were right");
    let output = bench(&[&args, ENGINE].concat());
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains(", drafts by llama, without a prefix cache"), "{stdout}");
    assert!(stdout.contains(" drafts were right\n"), "{stdout}");
    check_refused(&[&["latency", "--draft-model", "./no/such"], ENGINE].concat(), 1, "draft-model: ./no/such: ");
}

#[test]
fn latency_for_people() {
    let output = bench(&[&["latency", "--input-len", "8", "--output-len", "4", "--num-iters", "1"], ENGINE].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for words in ["llama on cpu (1 thread", "prompt of 8 ", "decode of 4 ", "GB/s", "GFLOP/s", "% of DRAM read"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn throughput_of_more_than_run_at_once() {
    let lengths = ["throughput", "--num-prompts", "9", "--input-len", "20", "--output-len", "6"];
    let limits = ["--max-num-seqs", "2", "--max-waiting", "1"];
    let report = report(&[&lengths[..], &limits, ENGINE].concat());
    check_peaks(&report);
    assert_eq!((&report["prompt_tokens"], &report["generated_tokens"]), (&json!(180), &json!(54)));
    let elapsed = number(&report, "/elapsed_s");
    for (key, count) in [("requests_per_s", 9.0), ("generated_tok_per_s", 54.0), ("total_tok_per_s", 234.0)] {
        check_close(number(&report, &format!("/{key}")), count / elapsed);
    }
    // Two sequences at a time: the fifth pair's single one is alone.
    assert!(number(&report, "/num_steps") >= 5.0 * 6.0, "{report:#}");
    let (layers, head) = (number(&report, "/layer_weights"), number(&report, "/head_weights"));
    check_close(number(&report, "/gflop_per_s"), 2e-9 * 9.0 * (layers * 25.0 + head * 6.0) / elapsed);
}

#[test]
fn throughput_of_beams_samples_and_prompts_that_are_found() {
    let lengths = ["throughput", "--num-prompts", "3", "--input-len", "20", "--output-len", "6", "--check-alone"];
    for (flags, num_sequences, is_cached) in [
        (&["--beam-width", "2"][..], 2, false),
        (&["--n", "3"], 3, false),
        (&["--n", "2", "--cached-prompts"], 2, true),
    ] {
        let report = report(&[&lengths[..], flags, ENGINE].concat());
        let generated = 18 * num_sequences;
        assert_eq!((&report["prompt_tokens"], &report["generated_tokens"]), (&json!(60), &json!(generated)));
        assert_eq!(report["is_same_alone"], true, "{report:#}");
        let total = if is_cached { generated } else { generated + 60 };
        check_close(number(&report, "/total_tok_per_s"), f64::from(total) / number(&report, "/elapsed_s"));
    }
    let spread = report(&[&["throughput", "--num-prompts", "9", "--spread", "0.5"], &lengths[3..7], ENGINE].concat());
    let [prompts, generated] = ["/prompt_tokens", "/generated_tokens"].map(|path| number(&spread, path) / 9.0);
    assert!((10.0..40.0).contains(&prompts) && prompts != 20.0 && (3.0..12.0).contains(&generated), "{spread:#}");
}

#[test]
fn what_cannot_be_measured_is_named() {
    check_refused(&["latency", "--input-len", "0"], 2, "--input-len");
    check_refused(&["throughput", "--num-prompts", "0"], 2, "--num-prompts");
    let refused = |args: &[&str], words| check_refused(&[args, ENGINE].concat(), 1, words);
    refused(&["latency", "--input-len", "8,128"], "--input-len 128 and a token generated: 129 tokens are beyond");
    refused(&["latency", "--input-len", "8", "--output-len", "96"], "--output-len 96 after a prompt of 32");
    let args = ["throughput", "--input-len", "100", "--output-len", "29"];
    refused(&args, "--input-len 100 and --output-len 29: 129 tokens are beyond the context of 128 tokens");
    let args = ["ops", "--batch-size", "3", "--max-num-seqs", "2"];
    refused(&args, "--batch-size 3 is more than --max-num-seqs 2");
    check_refused(&["serve", "--base-url", "https://localhost"], 1, "https is not supported");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    check_refused(&["serve", "--base-url", &url], 1, &format!("cannot connect to {url}: Connection refused"));
    check_refused(&["serve", "--base-url", &url, "--model", "m"], 1, "Connection refused");
}

/// A `sconce serve` of the tiny model, which ends with this value.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let args = [&["serve", "--port", "0"], ENGINE, args].concat();
        let mut process = sconce(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let url = lines.find_map(|line| Some(line.strip_prefix("ready on ")?.split(';').next()?.to_owned()));
        Self { process, url: url.unwrap() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn a_server_under_load() {
    let server = Server::start(&["--api-key", "k"]);
    let load = ["--num-prompts", "6", "--input-len", "4", "--output-len", "5", "--ignore-eos", "--seed", "3"];
    let to_server = ["serve", "--base-url", &server.url, "--api-key", "k"];
    for times in [&["--max-concurrency", "2"][..], &["--request-rate", "500"]] {
        let report = report(&[&to_server[..], &load, times].concat());
        assert_eq!(
            (&report["answered"], &report["failed"], &report["first_error"]),
            (&json!(6), &json!(0), &json!(null))
        );
        assert_eq!((&report["model"], &report["seed"]), (&json!("llama"), &json!(3)));
        assert_eq!(report["output_tokens"], 6 * 5);
        // A token a word at least.
        assert!(number(&report, "/prompt_tokens") >= 24.0, "{report:#}");
        check_close(number(&report, "/output_tok_per_s"), 30.0 / number(&report, "/elapsed_s"));
        for key in ["ttft_ms", "e2e_ms", "tpot_ms"] {
            let at = |figure: &str| number(&report, &format!("/{key}/{figure}"));
            assert!(at("mean") > 0.0 && at("p50") <= at("p90") && at("p90") <= at("p99"), "{key}: {report:#}");
        }
        assert!(number(&report, "/ttft_ms/mean") <= number(&report, "/e2e_ms/mean"));
    }
    let too_long = ["--num-prompts", "1", "--input-len", "500"];
    check_refused(&[&to_server[..], &too_long].concat(), 1, "the first request failed: /v1/completions: 400");
    check_refused(&["serve", "--base-url", &server.url], 1, "401");
}

/// Answers one connection's request: what it asks for and the body it sends, to a whole response.
fn answer(mut stream: &TcpStream, answer: impl FnOnce(&str, Value) -> String) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut body_len) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let start = head.len();
        reader.read_line(&mut head).unwrap();
        let line = head[start..].to_ascii_lowercase();
        body_len = line.strip_prefix("content-length:").map_or(body_len, |len| len.trim().parse().unwrap());
    }
    let mut body = vec![0; body_len];
    reader.read_exact(&mut body).unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let response = answer(head.lines().next().unwrap(), body);
    stream.write_all(response.as_bytes()).unwrap();
}

fn stream_of(events: &[&str]) -> String {
    let events: String = events.iter().map(|data| format!("data: {data}\n\n")).collect();
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{events}")
}

#[test]
fn failures_are_counted() {
    let text = r#"{"choices": [{"index": 0, "text": "a", "finish_reason": null}], "usage": null}"#;
    let end = r#"{"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}"#;
    let usage = r#"{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}}"#;
    let error = r#"{"error": {"message": "out of luck"}}"#;
    let models = r#"{"data": [{"id": "m"}]}"#;
    let whole = stream_of(&[text, text, text, end, usage, "[DONE]"]);
    let responses = [
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{models}", models.len()),
        whole.clone(),
        format!("HTTP/1.1 503 Service Unavailable\r\nContent-Length: {}\r\n\r\n{error}", error.len()),
        stream_of(&[text, error]),
        whole,
        stream_of(&[text, end, usage]),
        stream_of(&[text, end, "[DONE]"]),
    ];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        for (number, response) in responses.into_iter().enumerate() {
            answer(&listener.accept().unwrap().0, |line, body| {
                let expected = if number == 0 { "GET /v1/models " } else { "POST /v1/completions " };
                assert!(line.starts_with(expected), "{line}");
                if number > 0 {
                    assert_eq!(
                        (&body["model"], &body["max_tokens"], &body["stream"]),
                        (&json!("m"), &json!(3), &json!(true))
                    );
                    assert!(body.get("ignore_eos").is_none());
                }
                response
            });
        }
    });
    let load = ["--num-prompts", "5", "--output-len", "3", "--max-concurrency", "1"];
    let report = report(&[&["serve", "--base-url", &url], &load[..]].concat());
    server.join().unwrap();
    assert_eq!((&report["answered"], &report["failed"]), (&json!(1), &json!(4)));
    assert_eq!(report["first_error"], "/v1/completions: 503 Service Unavailable: out of luck");
    let counts = ["prompt_tokens", "output_tokens", "cached_tokens"].map(|key| number(&report, &format!("/{key}")));
    assert_eq!(counts, [7.0, 3.0, 2.0]);
    assert!(report["itl_ms"].is_object());
}
