//! [`Settings`]: what the environment says of the hub and of caches, read once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sconce_core::{Error, Result};

/// How long the network may keep us waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// Resolving the host's name.
    pub(super) resolve: Duration,
    /// Connecting, TLS included.
    pub(super) connect: Duration,
    /// From the request to the answer's headers.
    pub(super) answer: Duration,
    /// Between two pieces of an answer.
    pub(super) stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self { resolve: secs(3), connect: secs(3), answer: secs(8), stall: secs(30) }
    }
}

/// What the environment says of the hub and of caches.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Sconce's own cache.
    pub(super) own_dir: PathBuf,
    /// Hub caches to look in; the first one is written to. Never empty.
    pub(super) hub_dirs: Vec<PathBuf>,
    /// The hub's address, without a slash at the end.
    pub(super) endpoint: String,
    /// The user's token.
    pub(super) token: Option<String>,
    /// Whether the hub must not be asked.
    pub(super) offline: bool,
    /// Root certificates in place of the built-in ones.
    pub(super) ca_file: Option<PathBuf>,
    /// How long the network may keep us waiting.
    pub(super) timeouts: Timeouts,
    /// Commands that may be pip, with their first arguments.
    pub(super) pip_commands: Vec<Vec<String>>,
}

impl Settings {
    /// From the process's environment. `cache_dir` stands above it.
    pub(super) fn from_env(cache_dir: Option<&Path>) -> Result<Self> {
        Self::from_vars(cache_dir, |name| std::env::var_os(name))
    }

    /// From variables that `var` looks up.
    pub(super) fn from_vars(cache_dir: Option<&Path>, var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let user_home = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
        // As `huggingface_hub` does, for where no shell does it.
        let path = |name: &str| {
            let path = PathBuf::from(var(name)?);
            match (path.strip_prefix("~"), &user_home) {
                (Ok(rest), Some(home)) => Some(home.join(rest)),
                _ => Some(path),
            }
        };
        let text = |name: &str| var(name).map(|value| value.to_string_lossy().trim().to_owned());

        let user_cache = path("XDG_CACHE_HOME").or_else(|| user_home.as_ref().map(|home| home.join(".cache")));
        let chosen_dir = cache_dir.map(Path::to_owned).or_else(|| path("SCONCE_CACHE"));
        let hf_home = path("HF_HOME").or_else(|| user_cache.as_ref().map(|cache| cache.join("huggingface")));

        let hf_cache = path("HF_HUB_CACHE").or_else(|| hf_home.as_ref().map(|home| home.join("hub")));
        let hub_dirs: Vec<PathBuf> =
            chosen_dir.as_ref().map(|dir| dir.join("hub")).into_iter().chain(hf_cache).collect();
        let own_dir = chosen_dir.or_else(|| user_cache.map(|cache| cache.join("sconce")));
        let (Some(own_dir), false) = (own_dir, hub_dirs.is_empty()) else {
            return Err(Error::config(
                "cache-dir",
                "must be given where SCONCE_CACHE, XDG_CACHE_HOME and HOME are unset",
            ));
        };

        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.map(|home| home.join("token")));
        let token = text("HF_TOKEN").or_else(|| Some(std::fs::read_to_string(token_file?).ok()?.trim().to_owned()));
        let token = token.filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
            return Err(Error::config("HF_TOKEN", "must be printable ASCII without spaces"));
        }
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::config(
                "HF_ENDPOINT",
                format!("must begin with https:// or http://, found {endpoint:?}"),
            ));
        }
        let is_true = |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Ok(Self {
            own_dir,
            hub_dirs,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            offline: text("HF_HUB_OFFLINE").is_some_and(is_true),
            ca_file: path("SSL_CERT_FILE"),
            timeouts: Timeouts::default(),
            pip_commands: ["python3 -m pip", "python -m pip", "pip3", "pip"]
                .map(|command| command.split(' ').map(str::to_owned).collect())
                .to_vec(),
        })
    }
}
