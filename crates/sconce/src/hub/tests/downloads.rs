//! Downloads that succeed.

use std::sync::Arc;
use std::thread;

use super::stand_in::{COMMIT, Repo, blob_name, sha256};
use super::*;

fn fetch_tiny(hub: &Hub, dir: &Path) -> Result<PathBuf> {
    fetch::fetch(&id("org/tiny"), &settings_for(hub, dir), &NoProgress)
}

#[test]
fn a_model_comes_in_the_layout_of_the_hub() {
    for has_blobs in [true, false] {
        let repo = Repo { has_blobs, ..Repo::tiny() };
        let hub = Hub::with_repo(repo.clone());
        let dir = tempfile::tempdir().unwrap();
        let told = Told::default();
        let path = fetch::fetch(&id("org/tiny"), &settings_for(&hub, dir.path()), &told).unwrap();

        let root = dir.path().join("hub/models--org--tiny");
        assert_eq!(path, root.join("snapshots").join(COMMIT));
        assert_eq!(files_in(&path), ["config.json", "model.safetensors", "tokenizer.json"]);
        assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), b"weights");
        assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            assert!(root.join("blobs").join(blob_name(name, &repo.files[name])).is_file(), "{name}");
        }
        #[cfg(unix)]
        assert_eq!(
            std::fs::read_link(path.join("model.safetensors")).unwrap(),
            Path::new("../../blobs").join(sha256(b"weights"))
        );
        assert_eq!(files_in(&root.join("blobs")).len(), 3, "nothing else is left");
        assert!(
            told.lines().iter().any(|line| line.starts_with("start org/tiny model.safetensors")),
            "{told:?}",
            told = told.lines()
        );
        assert_eq!(told.num_bytes(), 7);
    }
}

#[test]
fn what_is_cached_needs_no_network() {
    let hub = Hub::with_repo(Repo::tiny());
    let dir = tempfile::tempdir().unwrap();
    let path = fetch_tiny(&hub, dir.path()).unwrap();
    let before = hub.requests().len();
    assert_eq!(fetch_tiny(&hub, dir.path()).unwrap(), path);
    assert_eq!(hub.requests().len(), before);

    // Also from a second cache folder, as that of Python beside Sconce's own.
    let other = tempfile::tempdir().unwrap();
    let mut settings = settings_for(&hub, other.path());
    settings.hub_dirs.push(dir.path().join("hub"));
    settings.offline = true;
    assert_eq!(fetch::fetch(&id("org/tiny"), &settings, &NoProgress).unwrap(), path);
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn a_snapshot_with_a_gap_is_completed() {
    let hub = Hub::with_repo(Repo::tiny());
    let dir = tempfile::tempdir().unwrap();
    let path = fetch_tiny(&hub, dir.path()).unwrap();
    std::fs::remove_file(path.join("tokenizer.json")).unwrap();
    let before = hub.requests().len();
    fetch_tiny(&hub, dir.path()).unwrap();
    assert!(path.join("tokenizer.json").is_file());
    assert_eq!(hub.requests().len(), before + 1, "the listing alone: the blob was there");
}

#[test]
fn what_says_how_embeddings_are_made_comes_too() {
    let hub = Hub::with_repo(Repo::new(&[
        ("1_Pooling/config.json", b"{}"),
        ("config.json", b"{}"),
        ("model.safetensors", b"weights"),
        ("modules.json", b"[]"),
        ("onnx/config.json", b"{}"),
        ("tokenizer.json", b"{}"),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let path = fetch_tiny(&hub, dir.path()).unwrap();
    let expected = ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"];
    assert_eq!(files_in(&path), expected);
}

#[test]
fn shards_are_those_that_the_index_names() {
    let index =
        br#"{"weight_map": {"a": "model-1.safetensors", "b": "sub/model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let hub = Hub::with_repo(Repo::new(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("consolidated.safetensors", b"all again"),
        ("model-1.safetensors", b"one"),
        ("sub/model-2.safetensors", b"two"),
        ("model.safetensors.index.json", index),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let path = fetch_tiny(&hub, dir.path()).unwrap();
    let expected = [
        "config.json",
        "model-1.safetensors",
        "model.safetensors.index.json",
        "sub/model-2.safetensors",
        "tokenizer.json",
    ];
    assert_eq!(files_in(&path), expected);
    assert_eq!(std::fs::read(path.join("sub/model-2.safetensors")).unwrap(), b"two");
}

#[test]
fn ggufs_are_chosen_by_name_or_by_being_alone() {
    let hub = Hub::with_repo(Repo::new(&[("a.Q4.gguf", b"four"), ("b.Q8.gguf", b"eight"), ("config.json", b"{}")]));
    let dir = tempfile::tempdir().unwrap();
    let settings = settings_for(&hub, dir.path());
    let error = fetch::fetch(&id("org/tiny"), &settings, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("\n  org/tiny:a.Q4.gguf\n  org/tiny:b.Q8.gguf"), "{error}");
    let error = fetch::fetch(&id("org/tiny:c.gguf"), &settings, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("no such file") && error.contains("\n  org/tiny:b.Q8.gguf"), "{error}");
    let path = fetch::fetch(&id("org/tiny:b.Q8.gguf"), &settings, &NoProgress).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"eight");
    assert!(path.ends_with("b.Q8.gguf"));

    let hub = Hub::with_repo(Repo::new(&[("only.gguf", b"one"), ("README.md", b"")]));
    let dir = tempfile::tempdir().unwrap();
    assert!(fetch_tiny(&hub, dir.path()).unwrap().ends_with("only.gguf"));
    let before = hub.requests().len();
    assert!(fetch_tiny(&hub, dir.path()).unwrap().ends_with("only.gguf"));
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn a_gguf_in_a_folder_is_found_again_and_odd_names_are_passed_over() {
    let hub = Hub::with_repo(Repo::new(&[("sub/only.gguf", b"one"), ("samples/12:30.wav", b""), ("README.md", b"")]));
    let dir = tempfile::tempdir().unwrap();
    assert!(fetch_tiny(&hub, dir.path()).unwrap().ends_with("sub/only.gguf"));
    let before = hub.requests().len();
    assert!(fetch_tiny(&hub, dir.path()).unwrap().ends_with("sub/only.gguf"));
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn redirects_are_followed_and_keep_the_token_at_the_hub() {
    let body = b"large content".to_vec();
    let cdn = {
        let body = body.clone();
        Hub::start(move |request| Answer::range(request, &body).with("etag", "\"of-the-cdn\""))
    };
    let target = format!("{}/blob?signed=1", cdn.url());
    let repo = Repo { has_blobs: false, ..Repo::tiny() };
    let hash = sha256(&body);
    let (expected_hash, size) = (hash.clone(), body.len().to_string());
    let hub = Hub::start(move |request| match request.path.as_str() {
        "/org/tiny/resolve/0123456789abcdef0123456789abcdef01234567/model.safetensors" => {
            Answer::status(307).with("location", "/moved/model.safetensors")
        }
        "/moved/model.safetensors" => Answer::status(302)
            .with("location", &target)
            .with("x-linked-etag", format!("\"{hash}\""))
            .with("x-linked-size", &size),
        _ => repo.answer(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings_for(&hub, dir.path());
    settings.token = Some("hf_secret".to_owned());
    let path = fetch::fetch(&id("org/tiny"), &settings, &NoProgress).unwrap();
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), body);
    assert!(dir.path().join("hub/models--org--tiny/blobs").join(expected_hash).is_file());
    assert!(hub.requests().iter().all(|request| request.headers["authorization"] == "Bearer hf_secret"));
    assert!(cdn.requests().iter().all(|request| !request.headers.contains_key("authorization")));
    assert_eq!(cdn.requests().len(), 1);
}

#[test]
fn what_broke_off_is_continued() {
    let body: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let mut repo = Repo::tiny();
    repo.files.insert("model.safetensors".to_owned(), body.clone());
    // Each answer breaks off after 1.5 MB: three requests make the whole.
    let hub = Hub::start(move |request| repo.answer(request).cut(1_500_000));
    let dir = tempfile::tempdir().unwrap();
    let told = Told::default();
    let path = fetch::fetch(&id("org/tiny"), &settings_for(&hub, dir.path()), &told).unwrap();
    assert!(std::fs::read(path.join("model.safetensors")).unwrap() == body);
    assert_eq!(told.num_bytes(), 4_000_000);
    let offsets: Vec<usize> = hub
        .requests()
        .iter()
        .filter(|request| request.path.ends_with("/model.safetensors"))
        .map(|request| request.offset())
        .collect();
    assert_eq!(offsets, [0, 1_500_000, 3_000_000]);
}

#[test]
fn a_later_run_takes_up_what_an_earlier_one_left() {
    let repo = Repo::tiny();
    let hub = Hub::with_repo(repo);
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("hub/models--org--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.sconce-part", sha256(b"weights")));
    for (left, offset) in [(&b"weig"[..], 4), (b"much too long to be this file", 0)] {
        std::fs::write(&part, left).unwrap();
        let path = fetch_tiny(&hub, dir.path()).unwrap();
        assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), b"weights");
        let requests = hub.requests();
        let last = requests.iter().rfind(|request| request.path.ends_with("/model.safetensors")).unwrap();
        assert_eq!(last.offset(), offset);
        std::fs::remove_dir_all(path).unwrap();
        std::fs::remove_file(blobs.join(sha256(b"weights"))).unwrap();
    }
}

#[test]
fn many_at_once_bring_one_good_copy() {
    [true, false].into_iter().for_each(check_many_at_once);
}

/// `has_blobs`: the listing tells names of blobs, so that those who wait know what to look for.
fn check_many_at_once(has_blobs: bool) {
    let body: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    let mut repo = Repo { has_blobs, ..Repo::tiny() };
    repo.files.insert("model.safetensors".to_owned(), body.clone());
    let hub = Arc::new(Hub::with_repo(repo));
    let dir = tempfile::tempdir().unwrap();
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let (hub, dir) = (Arc::clone(&hub), dir.path().to_owned());
            thread::spawn(move || fetch_tiny(&hub, &dir))
        })
        .collect();
    for thread in threads {
        let path = thread.join().unwrap().unwrap();
        assert!(std::fs::read(path.join("model.safetensors")).unwrap() == body);
    }
    let num_asked = hub.requests().iter().filter(|request| request.path.ends_with("/model.safetensors")).count();
    assert_eq!(num_asked, 1, "the others wait for the first");
}

#[test]
fn an_adapter_is_its_two_files() {
    let hub = Hub::with_repo(Repo::new(&[
        ("README.md", b"# adapter"),
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", b"low rank"),
        ("tokenizer.json", b"{}"),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let adapter = RepoId::parse_adapter("org/tiny").unwrap();
    let fetch = || fetch::fetch(&adapter, &settings_for(&hub, dir.path()), &NoProgress);
    let path = fetch().unwrap();
    assert_eq!(files_in(&path), ["adapter_config.json", "adapter_model.safetensors"]);
    let before = hub.requests().len();
    assert_eq!((fetch().unwrap(), hub.requests().len()), (path, before));

    let (hub, dir) = (Hub::with_repo(Repo::tiny()), tempfile::tempdir().unwrap());
    let error = fetch::fetch(&adapter, &settings_for(&hub, dir.path()), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("org/tiny: the repository holds no adapter_config.json"), "{error}");
}
