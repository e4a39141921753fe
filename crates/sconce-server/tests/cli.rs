//! The binary: what it says and how it exits where it cannot start.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::process::{Command, Output};

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
fn flags_that_do_not_parse() {
    check(&["serve", "--port", "many"], 2, "--port");
    check(&["serve", "--kv-cache-bytes", "2Gigs"], 2, "expected a size such as 512MiB");
    check(&["serve", "--device", "tpu"], 2, "expected auto, cpu or cuda");
}

#[test]
fn settings_that_cannot_be() {
    check(&["serve", "--port", "0", "--model", "m", "--max-num-seqs", "0"], 1, "max-num-seqs: must be at least 1");
    check(&["generate", "--model", "m", "--block-size", "3", "hi"], 1, "block-size: must be a power of two");
}
