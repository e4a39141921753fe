//! Downloads that fail: what is said, how soon, and what is left behind.

use std::net::TcpListener;
use std::time::Instant;

use super::stand_in::{Repo, sha256};
use super::*;

/// The error of fetching `org/tiny` from `hub`; no file may have appeared under its name.
fn failure(hub: &Hub, token: Option<&str>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings_for(hub, dir.path());
    settings.token = token.map(str::to_owned);
    let error = fetch::fetch(&id("org/tiny"), &settings, &NoProgress).unwrap_err();
    let weights: Vec<String> =
        files_in(dir.path()).into_iter().filter(|name| name.ends_with("model.safetensors")).collect();
    assert!(weights.is_empty(), "{weights:?}");
    assert!(!dir.path().join("hub/models--org--tiny/refs/main").exists());
    error.to_string()
}

fn check_status(status: u16, code: &str, token: Option<&str>, expected: &[&str]) {
    let code = code.to_owned();
    let hub = Hub::start(move |_| Answer::status(status).with("x-error-code", &code));
    let error = failure(&hub, token);
    for part in expected.iter().chain(&["model: org/tiny: "]) {
        assert!(error.contains(part), "HTTP {status}: {error}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    check_status(404, "RepoNotFound", None, &["there is no such repository at http://127.0.0.1:"]);
    check_status(401, "RepoNotFound", None, &["there is no such repository", "or it is private", "HF_TOKEN"]);
    check_status(401, "GatedRepo", None, &["gated", "Ask for access at http://127.0.0.1:", "set HF_TOKEN"]);
    check_status(401, "", None, &["gated or private", "set HF_TOKEN"]);
    check_status(401, "", Some("t"), &["check HF_TOKEN"]);
    check_status(403, "GatedRepo", Some("t"), &["refuses this token (HTTP 403)", "Ask for access"]);
    check_status(429, "", None, &["too many requests"]);
    check_status(503, "", None, &["answered HTTP 503"]);
}

#[test]
fn a_file_that_is_gated_or_gone_is_named() {
    let repo = Repo::tiny();
    let hub = Hub::start(move |request| match request.path.as_str() {
        "/org/tiny/resolve/0123456789abcdef0123456789abcdef01234567/config.json" => {
            Answer::status(404).with("x-error-code", "EntryNotFound")
        }
        _ => repo.answer(request),
    });
    let error = failure(&hub, None);
    assert!(error.contains("has no file config.json"), "{error}");
}

#[test]
fn a_truncated_file_does_not_appear() {
    let repo = Repo::tiny();
    let hub = Hub::start(move |request| match request.path.ends_with("/model.safetensors") {
        // A server that knows no ranges: each attempt begins anew and gets no further.
        true => Answer::new(200, "weights").cut(3),
        false => repo.answer(request),
    });
    let error = failure(&hub, None);
    assert!(error.contains("model.safetensors: the download broke off after 3 of 7 bytes"), "{error}");
}

#[test]
fn a_corrupt_file_does_not_appear_and_is_not_continued() {
    let repo = Repo::tiny();
    let hub = Hub::start(move |request| match request.path.ends_with("/model.safetensors") {
        true => Answer::new(200, "WEIGHTS"),
        false => repo.answer(request),
    });
    let error = failure(&hub, None);
    assert!(error.contains("org/tiny: model.safetensors: the download is corrupt"), "{error}");
    assert!(error.contains(&sha256(b"weights")), "{error}");
}

#[test]
fn a_file_longer_than_announced_is_refused() {
    let repo = Repo::tiny();
    let hub = Hub::start(move |request| match request.path.ends_with("/model.safetensors") {
        true => Answer::new(200, "weights and more"),
        false => repo.answer(request),
    });
    let error = failure(&hub, None);
    assert!(error.contains("model.safetensors: the hub sends more"), "{error}");
}

/// Half of one could not be told from the whole.
#[test]
fn a_file_whose_end_is_not_told_is_refused() {
    let repo = Repo { has_blobs: false, ..Repo::tiny() };
    let hub = Hub::start(move |request| match request.path.ends_with("/model.safetensors") {
        true => Answer::new(200, "weights").without_length(),
        false => repo.answer(request),
    });
    let error = failure(&hub, None);
    assert!(error.contains("model.safetensors: the hub does not say where the file ends"), "{error}");
}

#[test]
fn broken_listings_are_refused() {
    for (listing, expected) in [
        ("<html>", "is not JSON"),
        ("[]", "has no `sha`"),
        (r#"{"sha": "../x", "siblings": []}"#, "has no `sha`"),
        // Files whose names lead out of the cache are none.
        (r#"{"sha": "ab", "siblings": [{"rfilename": "../../evil.gguf"}]}"#, "holds neither config.json with"),
        (r#"{"sha": "ab", "siblings": [{"rfilename": "/etc/evil.gguf"}]}"#, "holds neither config.json with"),
        (r#"{"sha": "ab", "siblings": [{"rfilename": "pytorch_model.bin"}]}"#, "holds neither config.json with"),
    ] {
        let hub = Hub::start(move |_| Answer::new(200, listing));
        let error = failure(&hub, None);
        assert!(error.contains(expected), "{listing}: {error}");
    }
}

#[test]
fn an_index_cannot_lead_out_of_the_cache() {
    let index = br#"{"weight_map": {"a": "../../../evil.safetensors"}}"#;
    let hub = Hub::with_repo(Repo::new(&[("config.json", b"{}"), ("model.safetensors.index.json", index)]));
    let error = failure(&hub, None);
    assert!(error.contains("tensor a: its shard is no file name"), "{error}");
}

#[test]
fn endless_redirects_end() {
    let hub = Hub::start(|_| Answer::status(302).with("location", "/again"));
    assert!(failure(&hub, None).contains("more than 10 redirects"));
}

#[test]
fn offline_asks_nobody() {
    let hub = Hub::with_repo(Repo::tiny());
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings_for(&hub, dir.path());
    settings.offline = true;
    let error = fetch::fetch(&id("org/tiny"), &settings, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");
    assert!(hub.requests().is_empty());
}

/// The error of fetching from `endpoint` with the time limits of real use, and how long it took.
fn unreachable(endpoint: &str) -> (String, Duration) {
    let hub = Hub::start(|_| Answer::status(500));
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings_for(&hub, dir.path());
    settings.endpoint = endpoint.to_owned();
    settings.timeouts = Default::default();
    let begun = Instant::now();
    let error = fetch::fetch(&id("org/tiny"), &settings, &NoProgress).unwrap_err().to_string();
    (error, begun.elapsed())
}

#[test]
fn a_refused_connection_fails_at_once() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let endpoint = format!("http://127.0.0.1:{port}");
    let (error, elapsed) = unreachable(&endpoint);
    assert!(error.contains(&format!("{endpoint} cannot be reached")), "{error}");
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
}

#[test]
fn an_unknown_host_fails_soon() {
    let (error, elapsed) = unreachable("https://hub.invalid");
    assert!(error.contains("https://hub.invalid cannot be reached"), "{error}");
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
}

#[test]
fn a_silent_server_fails_soon() {
    // Connections are accepted by the system's backlog; nobody ever reads or answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for (scheme, limit_s) in [("http", 10), ("https", 5)] {
        let (error, elapsed) = unreachable(&format!("{scheme}://{address}"));
        assert!(error.contains("cannot be reached"), "{error}");
        assert!(elapsed < Duration::from_secs(limit_s), "{scheme}: {elapsed:?}");
    }
}

#[test]
fn a_server_that_stalls_in_the_middle_is_left() {
    let repo = Repo::tiny();
    let hub = Hub::start(move |request| match request.path.ends_with("/model.safetensors") {
        true => repo.answer(request).cut(3).then_silence(Duration::from_secs(60)),
        false => repo.answer(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    // Three bytes an attempt: the third brings the last one, for a stalled download is continued like any other.
    let path = fetch::fetch(&id("org/tiny"), &settings_for(&hub, dir.path()), &NoProgress).unwrap();
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), b"weights");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    let repo = Repo::tiny();
    let hub = Hub::start(move |request| match request.path.ends_with("/model.safetensors") {
        true => Answer::new(200, "weights").cut(3).then_silence(Duration::from_secs(60)),
        false => repo.answer(request),
    });
    let begun = Instant::now();
    let error = failure(&hub, None);
    assert!(error.contains("broke off after 3 of 7 bytes (timeout"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
