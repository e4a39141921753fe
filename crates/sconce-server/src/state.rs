//! [`State`]: what a server serves and how.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sconce::{AdapterSource, Engine, Error};

use crate::http::{ApiError, Drain};
use crate::metrics::Metrics;

/// A key that clients must send. It shows itself to nobody.
#[derive(Clone)]
pub struct ApiKey(String);

impl From<String> for ApiKey {
    fn from(key: String) -> Self {
        Self(key)
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

impl ApiKey {
    /// Whether there is nothing to be sent.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `given` is the key. How long it takes does not tell how much was right; only the length can be told.
    pub fn matches(&self, given: &[u8]) -> bool {
        let key = self.0.as_bytes();
        let differences = key.iter().zip(given).fold(0, |acc, (a, b)| std::hint::black_box(acc | (a ^ b)));
        key.len() == given.len() && differences == 0
    }
}

/// How a server treats its clients.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long answers in flight may take once the server is to end.
    pub drain_timeout: Duration,
    /// How long an engine may make no progress before `/health` calls it stuck.
    pub stuck_timeout: Duration,
    /// The key that clients must send. `None`: anyone may ask.
    pub api_key: Option<ApiKey>,
    /// Origins whose pages may read the answers; `*` is every origin.
    pub cors_allow_origins: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            body_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            stuck_timeout: Duration::from_secs(120),
            api_key: None,
            cors_allow_origins: Vec::new(),
        }
    }
}

/// A loaded model under its names.
pub struct Served {
    /// The names under which clients ask for it; the first is its id.
    pub names: Vec<String>,
    /// The model.
    pub engine: Engine,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

/// What a server serves and how. Models are absent until they are loaded.
#[derive(Default)]
pub struct State {
    /// How clients are treated.
    pub settings: Settings,
    /// What is in flight.
    pub drain: Arc<Drain>,
    /// Counters of requests.
    pub metrics: Metrics,
    models: OnceLock<Vec<Arc<Served>>>,
}

impl Served {
    /// `engine` under its own id and, if there is one, under `alias`.
    pub fn new(engine: Engine, alias: Option<String>) -> Self {
        let mut names = vec![engine.handle().info().id.clone()];
        names.extend(alias.filter(|a| *a != names[0]));
        Self { names, engine, created: unix_seconds() }
    }

    /// The adapters that go by names beside the model's.
    pub fn adapters(&self) -> &[AdapterSource] {
        &self.engine.handle().info().adapters
    }

    /// All names that clients may ask for: the model's, then its adapters'.
    pub fn all_names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).chain(self.adapters().iter().map(|adapter| adapter.name.as_str()))
    }

    /// The name that does not depend on how a client spelled it.
    pub fn id(&self) -> &str {
        &self.names[0]
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let models: Vec<_> = self.models().iter().map(|m| &m.names).collect();
        f.debug_struct("State").field("settings", &self.settings).field("models", &models).finish_non_exhaustive()
    }
}

impl State {
    /// A server whose models are yet to come.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The models are loaded: from now on requests are served. Errors: no model, two of one name, or called before.
    pub fn set_models(&self, models: Vec<Served>) -> Result<(), Error> {
        let mut names: Vec<&str> = models.iter().flat_map(Served::all_names).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::config("model", format!("two models have the name {:?}", twice[0])));
        }
        if models.is_empty() {
            return Err(Error::config("model", "no model to serve"));
        }
        let models = models.into_iter().map(Arc::new).collect();
        self.models.set(models).map_err(|_| Error::config("model", "the models of this server are already loaded"))
    }

    /// The loaded models; none while they are loading.
    pub fn models(&self) -> &[Arc<Served>] {
        self.models.get().map_or(&[], Vec::as_slice)
    }

    /// Ends the engines. Each has `limit` to finish what it does; what is left then ends as it is.
    pub fn stop_engines(&self, limit: Duration) {
        self.models().iter().for_each(|model| model.engine.handle().shutdown(limit));
    }

    /// The model that a request names, itself or by one of its adapters, or the only one where it names none. Errors: still loading; no such
    /// model.
    pub fn model(&self, name: Option<&str>) -> Result<&Arc<Served>, ApiError> {
        let models = self.models();
        match (models, name) {
            ([], _) => Err(ApiError::loading()),
            ([only], None) => Ok(only),
            (_, None) => {
                let message = format!("model: is required where several are served: {}", self.names().join(", "));
                Err(ApiError::invalid("model", message))
            }
            (_, Some(name)) => models
                .iter()
                .find(|m| m.all_names().any(|n| n == name))
                .ok_or_else(|| ApiError::no_such_model(name, &self.names())),
        }
    }

    fn names(&self) -> Vec<&str> {
        self.models().iter().flat_map(|m| m.all_names()).collect()
    }
}

/// Now, in seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
