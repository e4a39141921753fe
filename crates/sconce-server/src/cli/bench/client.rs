//! [`Client`]: asks a server over HTTP/1.1, one connection a request.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Characters of a server's answer that an error shows.
const SHOWN_LEN: usize = 300;

/// Where a server is. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    target: Arc<Target>,
}

#[derive(Debug)]
struct Target {
    host: String,
    port: u16,
    /// Host and port as the server is told them.
    authority: String,
    /// What comes before `/v1`.
    path: String,
    /// The `Authorization` header.
    authorization: Option<String>,
}

impl Client {
    /// The server at `base_url`, `http://host:port` with a path or without. Errors say what is wrong with it.
    pub(super) fn new(base_url: &str, api_key: Option<&str>) -> Result<Self, String> {
        let wrong = |why: &str| format!("--base-url {base_url}: {why}");
        let uri: Uri = base_url.parse().map_err(|e| wrong(&format!("{e}")))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(wrong(
                    "https is not supported: measure the server itself by http, not what stands before it",
                ));
            }
            _ => return Err(wrong("expected http://HOST:PORT")),
        }
        let (Some(authority), Some(host)) = (uri.authority(), uri.host()) else {
            return Err(wrong("expected http://HOST:PORT"));
        };
        let path = uri.path().trim_end_matches('/');
        let target = Target {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(80),
            authority: authority.to_string(),
            // OpenAI's clients are given it with the /v1.
            path: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            authorization: api_key.map(|key| format!("Bearer {key}")),
        };
        Ok(Self { target: Arc::new(target) })
    }

    /// The JSON that `path` answers.
    pub(super) async fn get(&self, path: &str) -> Result<Value, String> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        let body = response.into_body().collect().await.map_err(|e| format!("{path}: {e}"))?.to_bytes();
        serde_json::from_slice(&body).map_err(|e| format!("{path}: {e} in {}", shown(&body)))
    }

    /// The events that `path` answers a JSON `body` with.
    pub(super) async fn post(&self, path: &str, body: Bytes) -> Result<Events, String> {
        Ok(Events::new(self.send(Method::POST, path, body).await?.into_body()))
    }

    /// Errors: no connection, or a status other than 2xx, with what the server says of it.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, String> {
        let target = &*self.target;
        let connect = TcpStream::connect((target.host.as_str(), target.port)).await;
        let stream = connect.map_err(|e| format!("cannot connect to http://{}: {e}", target.authority))?;
        let failed = |e: &dyn std::fmt::Display| format!("{path}: {e}");
        stream.set_nodelay(true).map_err(|e| failed(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        // Its errors reach the request that is on it.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", target.path))
            .header(header::HOST, &target.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        if let Some(authorization) = &target.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).map_err(|e| failed(&e))?;
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let message = serde_json::from_slice::<Value>(&body).ok().and_then(|body| error_message(&body));
        Err(format!("{path}: {status}: {}", message.unwrap_or_else(|| shown(&body))))
    }
}

/// What an error that OpenAI's API has says.
pub(super) fn error_message(body: &Value) -> Option<String> {
    let error = body.get("error").filter(|error| !error.is_null())?;
    Some(error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned))
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(SHOWN_LEN).collect()
}

/// The data of server-sent events, as they come.
pub(super) struct Events {
    body: Incoming,
    lines: Lines,
}

impl Events {
    fn new(body: Incoming) -> Self {
        Self { body, lines: Lines::default() }
    }

    /// The next event's data; `None` at the end of the body.
    pub(super) async fn next(&mut self) -> Result<Option<String>, String> {
        loop {
            while let Some(line) = self.lines.next() {
                if let Some(data) = line.strip_prefix("data:") {
                    return Ok(Some(data.trim().to_owned()));
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(e)) => return Err(format!("the stream broke off: {e}")),
                Some(Ok(frame)) => frame.data_ref().into_iter().for_each(|data| self.lines.push(data)),
            }
        }
    }
}

/// Whole lines of what comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
    /// Of `pending`, what has been given out.
    start: usize,
}

impl Lines {
    pub(super) fn push(&mut self, data: &[u8]) {
        self.pending.drain(..std::mem::take(&mut self.start));
        self.pending.extend_from_slice(data);
    }

    pub(super) fn next(&mut self) -> Option<String> {
        let rest = &self.pending[self.start..];
        let len = rest.iter().position(|&byte| byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..len]).trim_end_matches('\r').to_owned();
        self.start += len + 1;
        Some(line)
    }
}
