//! What the environment decides.

use std::ffi::OsString;

use super::super::settings::{Settings, Timeouts};
use super::*;

/// Settings for the stand-in `hub` and caches in `dir`, with time limits that suit a test.
pub(super) fn settings_for(hub: &Hub, dir: &Path) -> Settings {
    let mut settings = settings_of(Some(dir), &[("HF_ENDPOINT", &hub.url())]).unwrap();
    let millis = Duration::from_millis;
    settings.timeouts =
        Timeouts { resolve: millis(500), connect: millis(500), answer: millis(1500), stall: millis(500) };
    settings.pip_commands.clear();
    settings
}

fn settings_of(cache_dir: Option<&Path>, vars: &[(&str, &str)]) -> Result<Settings> {
    Settings::from_vars(cache_dir, |name| {
        vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    })
}

#[test]
fn caches_are_where_the_environment_says() {
    for (cache_dir, vars, own_dir, hub_dirs) in [
        (None, &[("HOME", "/h")][..], "/h/.cache/sconce", &["/h/.cache/huggingface/hub"][..]),
        (None, &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/sconce", &["/x/huggingface/hub"]),
        (None, &[("HOME", "/h"), ("HF_HOME", "/f")], "/h/.cache/sconce", &["/f/hub"]),
        (None, &[("HOME", "/h"), ("HF_HOME", "~/f"), ("SCONCE_CACHE", "~")], "/h", &["/h/hub", "/h/f/hub"]),
        (None, &[("HOME", "/h"), ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/h/.cache/sconce", &["/c"]),
        (None, &[("HOME", "/h"), ("SCONCE_CACHE", "/s")], "/s", &["/s/hub", "/h/.cache/huggingface/hub"]),
        (Some("/given"), &[("SCONCE_CACHE", "/s"), ("HF_HUB_CACHE", "/c")], "/given", &["/given/hub", "/c"]),
        (Some("/given"), &[], "/given", &["/given/hub"]),
        (None, &[("HOME", "/h"), ("SCONCE_CACHE", "")], "/h/.cache/sconce", &["/h/.cache/huggingface/hub"]),
    ] {
        let settings = settings_of(cache_dir.map(Path::new), vars).unwrap();
        assert_eq!(settings.own_dir, Path::new(own_dir), "{vars:?}");
        let expected: Vec<&Path> = hub_dirs.iter().map(Path::new).collect();
        assert_eq!(settings.hub_dirs, expected, "{vars:?}");
    }
    let error = settings_of(None, &[]).unwrap_err().to_string();
    assert!(error.starts_with("cache-dir: "), "{error}");
}

#[test]
fn the_hub_is_the_one_that_the_environment_names() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings_of(Some(dir.path()), &[]).unwrap();
    assert_eq!((settings.endpoint.as_str(), settings.offline), ("https://huggingface.co", false));
    assert_eq!(settings.token, None);

    let vars = [("HF_ENDPOINT", "https://mirror.example/"), ("HF_HUB_OFFLINE", "true"), ("HF_TOKEN", " hf_x\n")];
    let settings = settings_of(Some(dir.path()), &vars).unwrap();
    assert_eq!((settings.endpoint.as_str(), settings.offline), ("https://mirror.example", true));
    assert_eq!(settings.token.as_deref(), Some("hf_x"));

    std::fs::write(dir.path().join("token"), "hf_stored\n").unwrap();
    let settings = settings_of(Some(dir.path()), &[("HF_HOME", dir.path().to_str().unwrap())]).unwrap();
    assert_eq!(settings.token.as_deref(), Some("hf_stored"));

    for (name, value) in [("HF_ENDPOINT", "mirror.example"), ("HF_TOKEN", "two words")] {
        let error = settings_of(Some(dir.path()), &[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn a_certificate_file_without_certificates_is_named() {
    let hub = Hub::start(|_| Answer::status(500));
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings_for(&hub, dir.path());
    let path = dir.path().join("ca.pem");
    settings.ca_file = Some(path.clone());
    for content in [None, Some("no certificate")] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = fetch::fetch(&id("org/tiny"), &settings, &NoProgress).unwrap_err().to_string();
        assert!(error.starts_with("SSL_CERT_FILE: ") && error.contains("ca.pem"), "{error}");
    }
    assert!(hub.requests().is_empty());
}
