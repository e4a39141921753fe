//! [`Client`]: the two addresses of the hub that a download needs.
//!
//! A client of our own on ureq rather than the hf-hub crate: that one has no time limit on connecting or on a silent
//! server, so an unreachable hub would hold up the start for minutes, and it cannot say what a repository that answers
//! 401 is missing.

use std::io::Read;

use sconce_core::{Error, Result};
use serde_json::Value;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::repo::{RepoId, is_plain_hash, is_safe_name, is_sha256};
use super::settings::Settings;
use super::unavailable;

const MAX_REDIRECTS: usize = 10;
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// A file that a repository holds.
#[derive(Debug, Clone, Default)]
pub(super) struct RemoteFile {
    /// Its path in the repository.
    pub(super) name: String,
    /// Its length in bytes.
    pub(super) size: Option<u64>,
    /// Its SHA-256, where the hub keeps it as a large file.
    pub(super) sha256: Option<String>,
    /// The name that the cache gives to its content.
    pub(super) blob_name: Option<String>,
}

/// What a repository's `main` holds.
#[derive(Debug, Clone)]
pub(super) struct RepoInfo {
    /// The commit.
    pub(super) commit: String,
    /// Its files.
    pub(super) files: Vec<RemoteFile>,
}

/// The beginning of a file's content.
pub(super) struct FileAnswer {
    /// 200, 206 or 416.
    pub(super) status: u16,
    /// Where the content begins, for 206.
    pub(super) offset: u64,
    /// Length of the whole file, where the hub says so.
    pub(super) size: Option<u64>,
    /// The name that the cache gives to the content.
    pub(super) blob_name: Option<String>,
    /// The content.
    pub(super) body: Box<dyn Read + Send>,
}

/// Asks the hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    /// A client of the hub that `settings` name.
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        let timeouts = settings.timeouts;
        let config = Agent::config_builder()
            .timeout_resolve(Some(timeouts.resolve))
            .timeout_connect(Some(timeouts.connect))
            .timeout_recv_response(Some(timeouts.answer))
            .timeout_per_read(Some(timeouts.stall))
            .timeout_per_write(Some(timeouts.stall))
            // Redirects are followed here: the first answer has the file's hash, and the token must not leave the hub.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .tls_config(tls_config(settings)?)
            .user_agent(concat!("sconce/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.into(), endpoint: settings.endpoint.clone(), token: settings.token.clone() })
    }

    /// What the repository's `main` holds.
    pub(super) fn repo_info(&self, id: &RepoId) -> Result<RepoInfo> {
        let url = format!("{}/api/models/{}/revision/main?blobs=true", self.endpoint, id.repo);
        let (_, answer) = self.get(&url, 0)?;
        if answer.status() != 200 {
            return Err(self.refusal(id, None, answer));
        }
        let broken =
            |what: String| unavailable(format!("{}: the list of files from {} {what}", id.repo, self.endpoint));
        let bytes = answer
            .into_body()
            .into_with_config()
            .limit(MAX_LISTING_BYTES)
            .read_to_vec()
            .map_err(|e| broken(format!("broke off: {e}")))?;
        let listing: Value = serde_json::from_slice(&bytes).map_err(|e| broken(format!("is not JSON: {e}")))?;
        let commit = listing["sha"].as_str().filter(|sha| is_plain_hash(sha));
        let (Some(commit), Some(siblings)) = (commit, listing["siblings"].as_array()) else {
            return Err(broken("has no `sha` or no `siblings`".to_owned()));
        };
        // A file with a name that is not safe here is as if it were not there.
        let files = siblings.iter().filter_map(remote_file).collect();
        Ok(RepoInfo { commit: commit.to_owned(), files })
    }

    /// The content of a file of `commit`, from byte `offset` on if the hub can do that.
    pub(super) fn open(&self, id: &RepoId, commit: &str, name: &str, offset: u64) -> Result<FileAnswer> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, id.repo, percent_encode(name));
        let (hub_headers, answer) = self.get(&url, offset)?;
        let status = answer.status().as_u16();
        if !matches!(status, 200 | 206 | 416) {
            return Err(self.refusal(id, Some(name), answer));
        }
        if let Some(found) = header(&hub_headers, "x-repo-commit").filter(|found| *found != commit) {
            return Err(unavailable(format!(
                "{}: the repository changed during the download (from commit {commit} to {found}): start again",
                id.repo
            )));
        }
        let range = header(answer.headers(), "content-range").and_then(parse_content_range);
        let length = header(answer.headers(), "content-length").and_then(|length| length.parse().ok());
        let size = if status == 206 { range.and_then(|(_, size)| size) } else { length };
        let is_chunked = header(answer.headers(), "transfer-encoding").is_some_and(|coding| coding.contains("chunked"));
        if status == 200 && size.is_none() && !is_chunked {
            return Err(unavailable(format!("{name}: the hub does not say where the file ends")));
        }
        let linked = |name| header(&hub_headers, name);
        Ok(FileAnswer {
            status,
            offset: range.map_or(0, |(start, _)| start),
            size: linked("x-linked-size").and_then(|size| size.parse().ok()).or(size).filter(|_| status != 416),
            blob_name: linked("x-linked-etag").or_else(|| linked("etag")).and_then(blob_name),
            body: Box::new(answer.into_body().into_reader()),
        })
    }

    /// The answer to a GET, redirects followed, and the headers of the first answer from the hub itself.
    fn get(&self, url: &str, offset: u64) -> Result<(HeaderMap, Response<Body>)> {
        let mut url = url.to_owned();
        let mut hub_headers = HeaderMap::new();
        for _ in 0..MAX_REDIRECTS {
            let mut request = self.agent.get(&url).header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if offset > 0 {
                request = request.header("range", format!("bytes={offset}-"));
            }
            let answer = request.call().map_err(|e| unreachable_hub(&url, &e))?;
            for (name, value) in answer.headers() {
                if !hub_headers.contains_key(name) {
                    hub_headers.insert(name.clone(), value.clone());
                }
            }
            let location = header(answer.headers(), "location").filter(|_| answer.status().is_redirection());
            let Some(location) = location else { return Ok((hub_headers, answer)) };
            let next = join(&url, location);
            if url.starts_with("https://") && !next.starts_with("https://") {
                return Err(unavailable(format!("{} sends us to {next}, which is not https", origin(&url))));
            }
            url = next;
        }
        Err(unavailable(format!("{}: more than {MAX_REDIRECTS} redirects", origin(&url))))
    }

    /// What a status that is no success means to the user.
    fn refusal(&self, id: &RepoId, name: Option<&str>, answer: Response<Body>) -> Error {
        let status = answer.status().as_u16();
        let code = header(answer.headers(), "x-error-code").unwrap_or_default();
        let (repo, endpoint) = (&id.repo, &self.endpoint);
        let page = format!("{endpoint}/{repo}");
        let is_gated = code == "GatedRepo";
        unavailable(match (status, &self.token) {
            (404, _) if name.is_some() => format!("{repo}: {endpoint} has no file {}", name.unwrap_or_default()),
            (404, _) => format!("{repo}: there is no such repository at {endpoint}"),
            (401, None) if code == "RepoNotFound" => format!(
                "{repo}: there is no such repository at {endpoint}, or it is private: then set HF_TOKEN to a token that \
                 may read it"
            ),
            (401, None) => format!(
                "{repo}: {endpoint} asks for a login: the repository is gated or private. Ask for access at {page} and \
                 set HF_TOKEN to your token"
            ),
            (401 | 403, Some(_)) if is_gated || status == 403 => format!(
                "{repo}: {endpoint} refuses this token (HTTP {status}). Ask for access at {page}, and set HF_TOKEN to a \
                 token that may read it"
            ),
            (401, Some(_)) => format!(
                "{repo}: {endpoint} does not know this token, or there is no such repository (HTTP 401): check HF_TOKEN"
            ),
            (429, _) => format!("{repo}: {endpoint} has had too many requests from here (HTTP 429): try again later"),
            _ => format!(
                "{repo}: {endpoint} answered HTTP {status}{}",
                name.map(|n| format!(" for {n}")).unwrap_or_default()
            ),
        })
    }
}

fn tls_config(settings: &Settings) -> Result<TlsConfig> {
    let Some(path) = &settings.ca_file else { return Ok(TlsConfig::default()) };
    let pem = std::fs::read(path).map_err(|e| Error::config("SSL_CERT_FILE", format!("{}: {e}", path.display())))?;
    let certs: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(cert)) => Some(cert),
            _ => None,
        })
        .collect();
    if certs.is_empty() {
        return Err(Error::config("SSL_CERT_FILE", format!("{}: holds no PEM certificate", path.display())));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::from(certs)).build())
}

fn unreachable_hub(url: &str, error: &ureq::Error) -> Error {
    unavailable(format!("{} cannot be reached: {error}", origin(url)))
}

fn remote_file(sibling: &Value) -> Option<RemoteFile> {
    let name = sibling["rfilename"].as_str().filter(|name| is_safe_name(name))?;
    let sha256 = sibling["lfs"]["sha256"].as_str().filter(|hash| is_sha256(hash));
    let blob_name = sha256.or_else(|| sibling["blobId"].as_str()).filter(|hash| is_plain_hash(hash));
    Some(RemoteFile {
        name: name.to_owned(),
        size: sibling["size"].as_u64(),
        sha256: sha256.map(str::to_owned),
        blob_name: blob_name.map(str::to_owned),
    })
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The hash inside an ETag, if it can be a file's name.
fn blob_name(etag: &str) -> Option<String> {
    let hash = etag.trim().trim_start_matches("W/").trim_matches('"');
    is_plain_hash(hash).then(|| hash.to_owned())
}

/// (first byte, whole length) of `bytes 5-9/10`.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = value.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, size.parse().ok()))
}

/// `scheme://host:port` of a URL.
fn origin(url: &str) -> &str {
    let host_at = url.find("://").map_or(0, |at| at + 3);
    let end = url[host_at..].find(['/', '?', '#']).map_or(url.len(), |at| host_at + at);
    &url[..end]
}

/// The URL that a `Location` header means.
fn join(base: &str, location: &str) -> String {
    let has_scheme = location.split(['/', '?', '#']).next().is_some_and(|first| first.ends_with(':'));
    if has_scheme {
        location.to_owned()
    } else if location.starts_with("//") {
        let scheme = base.split("//").next().unwrap_or_default();
        format!("{scheme}{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(base))
    } else {
        let path = base.split(['?', '#']).next().unwrap_or(base);
        let folder = path.rfind('/').map_or(path, |at| &path[..at]);
        format!("{folder}/{location}")
    }
}

fn percent_encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    //! The small parsers.

    use super::*;

    #[test]
    fn locations_are_joined() {
        let base = "https://hub.example/org/repo/resolve/main/a.bin?x=1";
        for (location, expected) in [
            ("https://cdn.example/a", "https://cdn.example/a"),
            ("//cdn.example/a", "https://cdn.example/a"),
            ("/b", "https://hub.example/b"),
            ("c", "https://hub.example/org/repo/resolve/main/c"),
            ("/d?of=https://x.example/", "https://hub.example/d?of=https://x.example/"),
        ] {
            assert_eq!(join(base, location), expected);
        }
        assert_eq!(origin("http://127.0.0.1:80?x"), "http://127.0.0.1:80");
    }

    #[test]
    fn headers_are_parsed() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(parse_content_range("bytes */10"), None);
        assert_eq!(blob_name("W/\"abc-12\""), Some("abc-12".to_owned()));
        assert_eq!(blob_name("\"../x\""), None);
        assert_eq!(percent_encode("a b/ü.gguf"), "a%20b/%C3%BC.gguf");
    }
}
