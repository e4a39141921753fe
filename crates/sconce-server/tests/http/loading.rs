//! A server whose models are still loading, over real TCP: routes, limits, errors, drain.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{Client, LIMIT};
use sconce_server::{ApiKey, Drained, Settings, State, serve};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Server {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    drained: JoinHandle<Drained>,
}

impl Server {
    async fn start(settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let drained = tokio::spawn(serve(Arc::new(State::new(settings)), listener, shutdown));
        Self { port, stop: Some(stop), drained }
    }

    async fn client(&self) -> Client {
        Client::connect(self.port).await
    }

    fn stop(&mut self) {
        drop(self.stop.take());
    }

    async fn drained(self) -> Drained {
        tokio::time::timeout(LIMIT, self.drained).await.expect("the server ends").unwrap()
    }
}

#[tokio::test]
async fn requests_while_loading() {
    let server = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    let health = client.ask("GET", "/health", "", "").await;
    assert_eq!((health.status, health.body.as_str()), (503, r#"{"status":"loading"}"#));
    for (method, path) in [
        ("POST", "/generate"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/a%2Fb"),
        ("GET", "/server_info"),
        ("GET", "/get_server_info"),
        ("GET", "/model_info"),
        ("GET", "/get_model_info"),
        ("GET", "/get_load"),
    ] {
        let answer = client.ask(method, path, "", "{}").await;
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.json()["error"]["code"], "loading", "{path}");
        assert_eq!(answer.header("retry-after"), Some("5"), "{path}");
    }
    let version = client.ask("GET", "/version", "", "").await;
    assert_eq!((version.status, version.json()["version"].as_str()), (200, Some(env!("CARGO_PKG_VERSION"))));
    let metrics = client.ask("GET", "/metrics", "", "").await;
    assert!(metrics.body.contains("sconce_ready 0\n"), "{metrics:?}");
    assert!(metrics.body.contains("sconce_requests_total{path=\"/v1/models/{id}\",status=\"503\"} 1\n"), "{metrics:?}");
}

#[tokio::test]
async fn paths_and_methods() {
    let server = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    let unknown = client.ask("GET", "/nowhere", "", "").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["error"]["type"], "invalid_request_error");
    for (method, path, allowed) in [
        ("GET", "/generate", "POST, OPTIONS"),
        ("DELETE", "/v1/chat/completions", "POST, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ] {
        let answer = client.ask(method, path, "", "").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {path}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(path));
    }
    let options = client.ask("OPTIONS", "/generate", "", "").await;
    assert_eq!((options.status, options.header("allow")), (204, Some("POST, OPTIONS")));
    let head = client.ask("HEAD", "/version", "", "").await;
    assert_eq!(head.status, 200);
    // The same connection still answers.
    assert_eq!(client.ask("GET", "/version", "", "").await.status, 200);
}

/// They say nothing of the models, so that they are there before these are, and without a key.
#[tokio::test]
async fn the_page_and_the_document_are_open() {
    let server = Server::start(Settings { api_key: Some("secret".to_owned().into()), ..Settings::default() }).await;
    let mut client = server.client().await;
    let page = client.ask("GET", "/", "", "").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.body.starts_with("<!doctype html>"), "{page:?}");
    assert_eq!(page.header("cache-control"), Some("no-cache"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let head = client.ask("HEAD", "/", "", "").await;
    assert_eq!((head.status, head.header("content-length")), (200, page.header("content-length")));
    let script = client.ask("GET", "/playground/main.js", "", "").await;
    assert_eq!((script.status, script.header("content-type")), (200, Some("text/javascript; charset=utf-8")));
    assert_eq!(client.ask("GET", "/playground/other.js", "", "").await.status, 404);
    assert_eq!(client.ask("POST", "/", "", "").await.status, 405);
    let document = client.ask("GET", "/openapi.json", "", "").await;
    assert_eq!((document.status, document.header("content-type")), (200, Some("application/json")));
    assert_eq!(document.json()["openapi"], "3.1.0");
    // What they ask is not open.
    assert_eq!(client.ask("GET", "/v1/models", "", "").await.status, 401);
}

#[tokio::test]
async fn request_ids() {
    let server = Server::start(Settings::default()).await;
    let mut client = server.client().await;
    let given = client.ask("GET", "/version", "x-request-id: abc-1\r\n", "").await;
    assert_eq!(given.header("x-request-id"), Some("abc-1"));
    let mut made = Vec::new();
    for path in ["/v1/completions", "/v1/chat/completions", "/generate"] {
        let answer = client.ask("POST", path, "", "{}").await;
        made.push(answer.header("x-request-id").unwrap().to_owned());
    }
    assert!(
        made[0].starts_with("cmpl-") && made[1].starts_with("chatcmpl-") && made[2].starts_with("cmpl-"),
        "{made:?}"
    );
    assert_ne!(made[0], made[2]);
}

#[tokio::test]
async fn large_bodies_are_refused() {
    let server = Server::start(Settings { max_body_bytes: 1000, ..Settings::default() }).await;
    // One that is read to its end, and one that is not.
    for length in [1001, 1_000_000] {
        let answer = server.client().await.ask("POST", "/generate", "", &"x".repeat(length)).await;
        assert_eq!(answer.status, 413, "{length}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("1000 bytes"));
    }
    // One that asks before it is sent.
    let mut client = server.client().await;
    client.send("POST /generate HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5000\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 413);
    // One that does not say how long it is.
    let mut client = server.client().await;
    client.send("POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.send(format!("7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(0x7d0))).await;
    assert_eq!(client.answer().await.status, 413);
    assert_eq!(server.client().await.ask("POST", "/generate", "", &"x".repeat(1000)).await.status, 503);
}

/// A client that listens only after writing hears why it is refused, before its body is read.
#[tokio::test]
async fn refused_bodies_are_read_away() {
    let settings = Settings { api_key: Some(ApiKey::from("key".to_owned())), ..Settings::default() };
    let server = Server::start(settings).await;
    let body = "x".repeat(5 << 20);
    for (path, headers, status) in [
        ("/generate", "", 401),
        ("/nowhere", "", 404),
        ("/health", "", 405),
        ("/generate", "authorization: Bearer key\r\ncontent-encoding: gzip\r\n", 415),
    ] {
        let answer = server.client().await.ask("POST", path, headers, &body).await;
        assert_eq!(answer.status, status, "{path}");
    }
}

#[tokio::test]
async fn slow_bodies_time_out() {
    let server = Server::start(Settings { body_timeout: Duration::from_millis(100), ..Settings::default() }).await;
    let mut client = server.client().await;
    client.send("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 408);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn compressed_bodies_are_refused() {
    let server = Server::start(Settings::default()).await;
    let answer = server.client().await.ask("POST", "/generate", "content-encoding: gzip\r\n", "x").await;
    assert_eq!(answer.status, 415);
}

#[tokio::test]
async fn broken_heads_do_not_harm_others() {
    let server = Server::start(Settings::default()).await;
    let mut other = server.client().await;
    let mut http2 = server.client().await;
    http2.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    assert_eq!(http2.answer().await.status, 505);
    assert!(http2.is_closed().await);
    let mut garbage = server.client().await;
    garbage.send("\x16\x03\x01\x02 garbage\r\n\r\n").await;
    assert_eq!(garbage.answer().await.status, 400);
    let mut long = server.client().await;
    long.send(format!("GET /version HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(70 << 10))).await;
    assert_eq!(long.answer().await.status, 431);
    assert_eq!(other.ask("GET", "/version", "", "").await.status, 200);
}

#[tokio::test]
async fn keys_are_checked() {
    let server = Server::start(Settings { api_key: Some("secret".to_owned().into()), ..Settings::default() }).await;
    let mut client = server.client().await;
    for path in ["/version", "/health"] {
        assert_ne!(client.ask("GET", path, "", "").await.status, 401, "{path}");
    }
    for (header, expected) in [
        ("", 401),
        ("authorization: Bearer secre\r\n", 401),
        ("authorization: Bearer secret1\r\n", 401),
        ("authorization: Bearer sEcret\r\n", 401),
        ("authorization: Basic secret\r\n", 401),
        ("authorization: B\r\n", 401),
        ("authorization: Bearer secret\r\n", 503),
        ("authorization: bearer secret\r\n", 503),
    ] {
        assert_eq!(client.ask("POST", "/generate", header, "{}").await.status, expected, "{header}");
    }
    let answer = client.ask("GET", "/metrics", "", "").await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
}

#[tokio::test]
async fn pages_of_allowed_origins_may_ask() {
    let allow = "access-control-allow-origin";
    let origins = vec!["https://a.example".to_owned()];
    let server = Server::start(Settings { cors_allow_origins: origins, ..Settings::default() }).await;
    let mut client = server.client().await;
    let asked = "origin: https://a.example\r\naccess-control-request-headers: authorization, x-stainless-os\r\n";
    let preflight = client.ask("OPTIONS", "/generate", asked, "").await;
    assert_eq!((preflight.status, preflight.header(allow)), (204, Some("https://a.example")));
    assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization, x-stainless-os"));
    let other = client.ask("POST", "/generate", "origin: https://b.example\r\n", "{}").await;
    assert_eq!((other.header(allow), other.header("vary")), (None, Some("origin")));
    let every = Server::start(Settings { cors_allow_origins: vec!["*".into()], ..Settings::default() }).await;
    let answer = every.client().await.ask("GET", "/version", "origin: https://b.example\r\n", "").await;
    assert_eq!(answer.header(allow), Some("*"));
    let foreign = |origin: &str| format!("origin: {origin}\r\nsec-fetch-site: cross-site\r\n");
    let allowed = client.ask("POST", "/generate", &foreign("https://a.example"), "{}").await;
    let refused = client.ask("POST", "/generate", &foreign("https://b.example"), "{}").await;
    assert_eq!((allowed.status, refused.status), (503, 403));
    assert!(refused.body.contains("--cors-allow-origin"), "{}", refused.body);
    let none = Server::start(Settings::default()).await;
    let answer = none.client().await.ask("GET", "/version", "origin: https://b.example\r\n", "").await;
    assert_eq!(answer.header(allow), None);
}

/// Waits until one request is in flight besides the one that asks.
async fn wait_for_two_in_flight(client: &mut Client) {
    let reached =
        async { while !client.ask("GET", "/metrics", "", "").await.body.contains("sconce_requests_in_flight 2\n") {} };
    tokio::time::timeout(LIMIT, reached).await.expect("two requests are in flight in the end");
}

#[tokio::test]
async fn draining_answers_open_connections_and_ends() {
    let mut server = Server::start(Settings::default()).await;
    let mut idle = server.client().await;
    assert_eq!(idle.ask("GET", "/version", "", "").await.status, 200);
    let mut other = server.client().await;
    assert_eq!(other.ask("GET", "/version", "", "").await.status, 200);
    // In flight: its body is not there yet.
    let mut in_flight = server.client().await;
    in_flight.send("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n").await;
    wait_for_two_in_flight(&mut other).await;
    server.stop();
    // Whoever comes anew is told, too.
    let begun = async {
        while !server.client().await.ask("GET", "/health", "", "").await.body.contains("draining") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, begun).await.expect("draining begins");
    let refused = server.client().await.ask("POST", "/generate", "", "{}").await;
    assert_eq!(refused.status, 503);
    let health = idle.ask("GET", "/health", "", "").await;
    assert_eq!((health.status, health.body.as_str()), (503, r#"{"status":"draining"}"#));
    assert_eq!(health.header("connection"), Some("close"));
    let refused = other.ask("POST", "/generate", "", "{}").await;
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("draining")));
    in_flight.send("{}").await;
    assert_eq!(in_flight.answer().await.status, 503);
    assert!(in_flight.is_closed().await);
    let port = server.port;
    assert_eq!(server.drained().await, Drained::Clean);
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test]
async fn draining_gives_up_in_the_end() {
    let settings = Settings { drain_timeout: Duration::from_millis(50), ..Settings::default() };
    let mut server = Server::start(settings).await;
    let mut other = server.client().await;
    let mut in_flight = server.client().await;
    in_flight.send("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n").await;
    wait_for_two_in_flight(&mut other).await;
    server.stop();
    assert_eq!(server.drained().await, Drained::TimedOut { num_in_flight: 1 });
    assert!(in_flight.is_closed().await);
}
