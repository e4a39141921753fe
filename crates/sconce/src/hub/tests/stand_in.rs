//! A stand-in for the hub: a listener on a free port, and a function from request to answer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// What was asked for.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// Path and query.
    pub(super) path: String,
    /// Headers, their names in small letters.
    pub(super) headers: BTreeMap<String, String>,
}

impl Request {
    /// First byte of the range that is asked for.
    pub(super) fn offset(&self) -> usize {
        let range = self.headers.get("range").map_or("bytes=0-", String::as_str);
        range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    sent: usize,
    has_length: bool,
    silence: Duration,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, headers: Vec::new(), sent: body.len(), body, has_length: true, silence: Duration::ZERO }
    }

    pub(super) fn status(status: u16) -> Self {
        Self::new(status, "")
    }

    /// `body` from the asked offset on.
    pub(super) fn range(request: &Request, body: &[u8]) -> Self {
        match request.offset() {
            0 => Self::new(200, body),
            offset if offset >= body.len() => Self::status(416),
            offset => {
                let range = format!("bytes {offset}-{}/{}", body.len() - 1, body.len());
                Self::new(206, &body[offset..]).with("content-range", range)
            }
        }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Sends only so many bytes of what the length promises.
    pub(super) fn cut(mut self, sent: usize) -> Self {
        self.sent = sent.min(self.sent);
        self
    }

    /// Ends with the connection alone.
    pub(super) fn without_length(mut self) -> Self {
        self.has_length = false;
        self
    }

    /// Keeps the connection open for so long after the last byte.
    pub(super) fn then_silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    fn send(&self, stream: &mut TcpStream) {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = if self.has_length { format!("content-length: {}\r\n", self.body.len()) } else { String::new() };
        let head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n{length}{headers}\r\n", self.status);
        // A client that has seen enough may have gone.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&self.body[..self.sent]));
        thread::sleep(self.silence);
    }
}

/// A running stand-in. Its thread ends with the test's process.
pub(super) struct Hub {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Hub {
    pub(super) fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let request = read_request(&stream);
                    seen.lock().unwrap().push(request.clone());
                    answer(&request).send(&mut stream);
                });
            }
        });
        Self { address, requests }
    }

    /// A hub that holds one repository.
    pub(super) fn with_repo(repo: Repo) -> Self {
        Self::start(move |request| repo.answer(request))
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> Request {
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let first = lines.next().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())))
        .collect();
    Request { path, headers }
}

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// `org/tiny` and its files, answered as the hub does.
#[derive(Clone, Default)]
pub(super) struct Repo {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Whether the listing tells sizes and hashes.
    pub(super) has_blobs: bool,
}

impl Repo {
    pub(super) fn new(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, body)| ((*name).to_owned(), body.to_vec())).collect();
        Self { files, has_blobs: true }
    }

    /// The smallest model in safetensors.
    pub(super) fn tiny() -> Self {
        Self::new(&[
            ("README.md", b"# tiny"),
            ("config.json", b"{}"),
            ("model.safetensors", b"weights"),
            ("pytorch_model.bin", b"other weights"),
            ("tokenizer.json", b"{\"model\": 1}"),
        ])
    }

    pub(super) fn answer(&self, request: &Request) -> Answer {
        let path = request.path.split('?').next().unwrap();
        if path == "/api/models/org/tiny/revision/main" {
            return Answer::new(200, self.listing());
        }
        let name =
            path.strip_prefix("/org/tiny/resolve/").and_then(|path| path.strip_prefix(COMMIT)?.strip_prefix('/'));
        let name = name.and_then(|name| self.files.get_key_value(name));
        let Some((name, body)) = name else { return Answer::status(404).with("x-error-code", "RepoNotFound") };
        Answer::range(request, body)
            .with("etag", format!("\"{}\"", blob_name(name, body)))
            .with("x-repo-commit", COMMIT)
    }

    fn listing(&self) -> String {
        let siblings: Vec<serde_json::Value> = self
            .files
            .iter()
            .map(|(name, body)| match (self.has_blobs, is_large(name)) {
                (false, _) => serde_json::json!({"rfilename": name}),
                (true, false) => {
                    serde_json::json!({"rfilename": name, "size": body.len(), "blobId": blob_name(name, body)})
                }
                (true, true) => {
                    let lfs = serde_json::json!({"sha256": sha256(body), "size": body.len()});
                    serde_json::json!({"rfilename": name, "size": body.len(), "blobId": "aa", "lfs": lfs})
                }
            })
            .collect();
        serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string()
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

pub(super) fn sha256(body: &[u8]) -> String {
    format!("{:x}", Sha256::digest(body))
}

/// The hub names small files by a shorter hash.
pub(super) fn blob_name(name: &str, body: &[u8]) -> String {
    let hash = sha256(body);
    if is_large(name) { hash } else { hash[..40].to_owned() }
}
