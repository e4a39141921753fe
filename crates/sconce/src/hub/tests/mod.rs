//! Downloads from a stand-in for the hub, and what is decided before any download.

mod downloads;
mod failures;
mod settings;
mod stand_in;
mod starter;

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use settings::settings_for;
use stand_in::{Answer, Hub};

/// Remembers what it was told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn add(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Bytes told of since the last start.
    fn num_bytes(&self) -> u64 {
        let lines = self.lines();
        let since_start = lines.rsplit(|line| line.starts_with("start")).next().unwrap_or_default();
        since_start.iter().filter_map(|line| line.strip_prefix("advance ")?.parse::<u64>().ok()).sum()
    }
}

impl Progress for Told {
    fn start(&self, what: &str, total_bytes: Option<u64>) {
        self.add(format!("start {what} {total_bytes:?}"));
    }
    fn advance(&self, bytes: u64) {
        self.add(format!("advance {bytes}"));
    }
    fn finish(&self) {
        self.add("finish".to_owned());
    }
    fn message(&self, line: &str) {
        self.add(format!("message {line}"));
    }
}

fn id(text: &str) -> RepoId {
    RepoId::parse(text).unwrap()
}

/// Every file below `dir`, by its path in it.
fn files_in(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, dir, &mut found);
    found.sort();
    found
}

#[test]
fn ids_are_parsed() {
    let org = RepoId { repo: "org/repo-1.5_x".into(), file: None, kind: Kind::Model };
    assert_eq!(id("org/repo-1.5_x"), org);
    assert_eq!(id("gpt2").repo, "gpt2");
    let named = id("org/repo:sub/a.Q8_0.gguf");
    assert_eq!((named.repo.as_str(), named.file.as_deref()), ("org/repo", Some("sub/a.Q8_0.gguf")));
    assert_eq!(named.to_string(), "org/repo:sub/a.Q8_0.gguf");
    for bad in [
        "",
        "/",
        "org/",
        "/repo",
        "a/b/c",
        "org/re po",
        "../x",
        "org/..",
        "org/a..b",
        "-x/y",
        "org/repo:",
        "org/repo:a.bin",
        "org/repo:../a.gguf",
        "org/repo:/a.gguf",
        "org/repo?x=1",
        "org/é",
    ] {
        let error = RepoId::parse(bad).unwrap_err().to_string();
        assert!(error.starts_with("model: ") && error.contains("org/repo:file.gguf"), "{bad}: {error}");
    }
}

#[test]
fn resolve_prefers_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let never = || panic!("no setting is needed for a path");
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve_with(path, Kind::Model, never, &NoProgress).unwrap(), dir.path());
    for missing in ["./x", "/no/such", "~/model", "a/b/c", "model.gguf", "org/model.gguf", "models/", "C:\\m"] {
        let error = resolve_with(missing, Kind::Model, never, &NoProgress).unwrap_err().to_string();
        assert!(error.contains(missing) && error.contains("no such file or folder"), "{error}");
    }
}

#[test]
fn an_adapter_is_a_whole_repository() {
    assert_eq!(RepoId::parse_adapter("org/style").unwrap(), RepoId { kind: Kind::Adapter, ..id("org/style") });
    for bad in ["org/style:a.gguf", "../x", ""] {
        let error = RepoId::parse_adapter(bad).unwrap_err().to_string();
        assert!(error.contains("nor an adapter of the Hugging Face hub: expected org/repo"), "{bad}: {error}");
    }
    let never = || panic!("no setting is needed for a path");
    let error = resolve_with("./x", Kind::Adapter, never, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("A path leads to a folder with adapter_config.json"), "{error}");
}

#[test]
fn resolve_says_that_there_is_no_path_either() {
    let hub = Hub::start(|_| Answer::status(404));
    let dir = tempfile::tempdir().unwrap();
    let error =
        resolve_with("models/tiny", Kind::Model, || Ok(settings_for(&hub, dir.path())), &NoProgress).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("models/tiny: there is no such repository at http://127.0.0.1:"), "{error}");
    assert!(error.contains("nor is there a file or folder models/tiny"), "{error}");
}

use sconce_core::engine::NoProgress;
