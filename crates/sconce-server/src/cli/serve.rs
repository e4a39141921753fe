//! `sconce serve`: the HTTP server.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::engine::EngineArgs;
use super::size::parse_bytes;
use super::{Failure, progress};
use crate::state::{ApiKey, Served, Settings, State};
use crate::{Drained, serve};

/// What a process that a second signal ends answers its parent.
const INTERRUPTED: i32 = 130;
/// Threads for HTTP; computing has its own.
const NUM_HTTP_THREADS: usize = 2;
/// How long engines may take to stop once nothing is in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Flags of `sconce serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A GGUF file, a folder, or an id of the Hugging Face hub, under another name too if =ALIAS follows; can be
    /// given several times [default: the starter model].
    #[arg(long = "model", short, value_name = "PATH|ID[=ALIAS]")]
    pub(super) models: Vec<String>,
    /// The address to listen on; 0.0.0.0 is every network.
    #[arg(long, default_value = "127.0.0.1")]
    pub(super) host: String,
    /// The port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 8000)]
    pub(super) port: u16,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    pub(super) engine: EngineArgs,
}

/// How clients are treated.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "HTTP")]
struct HttpArgs {
    /// The key that clients must send as a bearer token.
    #[arg(long, value_name = "KEY", env = "SCONCE_API_KEY", hide_env_values = true)]
    api_key: Option<ApiKey>,
    /// An origin whose pages may use the server, or *; can be given several times.
    #[arg(long, value_name = "ORIGIN")]
    cors_allow_origin: Vec<String>,
    /// The largest body of a request: 32MiB, or a number of bytes.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "32MiB")]
    max_body_bytes: usize,
    /// How long a request's body may take to arrive, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    body_timeout: u64,
    /// How long answers in flight may take once the server is told to end, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_timeout: u64,
    /// How long an engine may make no progress before /health calls it stuck, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    stuck_timeout: u64,
}

impl Args {
    /// How clients are treated.
    pub(super) fn settings(&self) -> Settings {
        let http = &self.http;
        Settings {
            max_body_bytes: http.max_body_bytes,
            body_timeout: Duration::from_secs(http.body_timeout),
            drain_timeout: Duration::from_secs(http.drain_timeout),
            stuck_timeout: Duration::from_secs(http.stuck_timeout),
            api_key: http.api_key.clone().filter(|key| !key.is_empty()),
            cors_allow_origins: http.cors_allow_origin.clone(),
        }
    }

    /// Loads every model.
    fn load(&self) -> sconce::Result<Vec<Served>> {
        let progress = progress::progress();
        if self.models.is_empty() {
            return Ok(vec![Served::new(self.engine.load(None, progress)?, None)]);
        }
        if self.models.len() > 1 && self.engine.has_draft_model() {
            return Err(sconce::Error::config("draft-model", "drafts for one model: give one --model beside it"));
        }
        if self.models.len() > 1 && self.engine.has_adapters() {
            return Err(sconce::Error::config("lora", "is for one model: give one --model beside it"));
        }
        let served = |model: &String| {
            let (model, alias) = split_alias(model);
            let engine = self.engine.load(Some(model), progress.clone())?;
            Ok(Served::new(engine, alias.map(str::to_owned)))
        };
        self.models.iter().map(served).collect()
    }
}

/// `model=alias` in its parts. A file whose name holds `=` is found as it stands.
pub(super) fn split_alias(model: &str) -> (&str, Option<&str>) {
    if Path::new(model).exists() {
        return (model, None);
    }
    match model.rsplit_once('=') {
        Some((model, alias)) if !model.is_empty() && !alias.is_empty() => (model, Some(alias)),
        _ => (model, None),
    }
}

/// Runs `sconce serve`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(NUM_HTTP_THREADS).enable_all().build()?;
    let result = runtime.block_on(run_async(Arc::new(args)));
    // A model that is still loading is not waited for.
    runtime.shutdown_background();
    result
}

async fn run_async(args: Arc<Args>) -> Result<ExitCode, Failure> {
    // A connection takes one, and most systems begin with 1,024 of them.
    if let Err(e) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!("the limit of open files stays as it is: {e}");
    }
    let listener = bind(&args.host, args.port).await?;
    let address = listener.local_addr()?;
    let state = Arc::new(State::new(args.settings()));
    if args.http.api_key.as_ref().is_some_and(ApiKey::is_empty) {
        tracing::warn!("the API key is empty: clients need none");
    }
    let (stop, stopped) = oneshot::channel();
    spawn_signals(stop)?;
    tracing::info!("listening on http://{address}; loading");
    let shutdown = async { drop(stopped.await) };
    let mut server = tokio::spawn(serve(state.clone(), listener, shutdown));
    let loader = {
        let args = args.clone();
        tokio::task::spawn_blocking(move || args.load())
    };
    let drained = tokio::select! {
        drained = &mut server => drained?,
        models = loader => {
            state.set_models(models??)?;
            print_ready(&state, address);
            server.await?
        }
    };
    tokio::task::spawn_blocking(move || state.stop_engines(STOP_TIMEOUT)).await?;
    match drained {
        Drained::Clean => tracing::info!("drained; bye"),
        Drained::TimedOut { num_in_flight } => tracing::warn!("{num_in_flight} requests were cut short"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn bind(host: &str, port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind((host, port)).await.map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => {
            format!("port {port} of {host} is in use by another program: choose one with --port").into()
        }
        _ => format!("cannot listen on {host}, port {port}: {e}").into(),
    })
}

/// The first SIGTERM or Ctrl-C stops the server; the second ends the process at once.
fn spawn_signals(stop: oneshot::Sender<()>) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let mut stop = Some(stop);
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match stop.take() {
                Some(stop) => {
                    tracing::info!("draining; a second signal ends at once");
                    drop(stop);
                }
                None => std::process::exit(INTERRUPTED),
            }
        }
    });
    Ok(())
}

fn print_ready(state: &State, address: std::net::SocketAddr) {
    let mut text = String::new();
    for model in state.models() {
        let info = model.engine.handle().info();
        text += &format!(
            "{}: {} on {}; context {} tokens; weights {} MiB; KV pool {} MiB of {} ({} tokens{}){}\n",
            model.names.join(", "),
            info.config.architecture,
            info.device,
            info.max_model_len,
            info.weight_bytes >> 20,
            info.kv_cache_bytes >> 20,
            info.kv_dtype,
            info.num_kv_tokens,
            if info.layers.groups().len() > 1 { " of one sequence" } else { "" },
            info.draft_model.as_ref().map_or(String::new(), |draft| format!("; drafts by {draft}")),
        );
        for adapter in &info.adapters {
            text += &format!("{}: the same with the adapter {}\n", adapter.name, adapter.origin);
        }
    }
    text += &format!("ready on http://{address}; open it in a browser, or try:\n  {}\n", curl_line(state, address));
    // Whoever does not listen is served nevertheless.
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// A request that the first model can answer.
fn curl_line(state: &State, address: std::net::SocketAddr) -> String {
    let Some(first) = state.models().first() else { return String::new() };
    let prompt = match first.engine.handle().chat_template() {
        Some(_) => r#""messages": [{"role": "user", "content": "Why is the sky blue?"}]"#,
        None => r#""prompt": "The sky is blue because", "max_tokens": 64"#,
    };
    let model = if state.models().len() > 1 { format!(r#""model": "{}", "#, first.id()) } else { String::new() };
    let key = if state.settings.api_key.is_some() { "-H \"Authorization: Bearer $SCONCE_API_KEY\" " } else { "" };
    format!("curl http://{address}/generate {key}-d '{{{model}{prompt}}}'")
}
