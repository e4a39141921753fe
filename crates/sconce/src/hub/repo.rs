//! [`RepoId`]: `org/repo`, or `org/repo:file.gguf`.

use std::fmt;

use sconce_core::Result;

use super::unavailable;

/// What a repository is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    /// A LoRA adapter in PEFT's form.
    Adapter,
}

/// A model of the hub, or an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RepoId {
    /// `org/repo`.
    pub(super) repo: String,
    /// The one file that is wanted, if it was named.
    pub(super) file: Option<String>,
    /// What it is.
    pub(super) kind: Kind,
}

impl RepoId {
    /// Reads an id. The error says what an id looks like.
    pub(super) fn parse(id: &str) -> Result<Self> {
        let (repo, file) = match id.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (id, None),
        };
        let is_repo = repo.split('/').all(is_repo_part) && (1..=2).contains(&repo.split('/').count());
        let is_file = file.is_none_or(|file| is_safe_name(file) && file.ends_with(".gguf"));
        if is_repo && is_file && repo.len() <= 200 {
            return Ok(Self { repo: repo.to_owned(), file: file.map(str::to_owned), kind: Kind::Model });
        }
        Err(unavailable(format!(
            "{id:?} is neither a file or folder here nor a model of the Hugging Face hub: expected org/repo, or \
             org/repo:file.gguf"
        )))
    }

    /// Reads the id of an adapter, which is a whole repository.
    pub(super) fn parse_adapter(id: &str) -> Result<Self> {
        match Self::parse(id) {
            Ok(parsed) if parsed.file.is_none() => Ok(Self { kind: Kind::Adapter, ..parsed }),
            _ => Err(unavailable(format!(
                "{id:?} is neither a folder here nor an adapter of the Hugging Face hub: expected org/repo"
            ))),
        }
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

fn is_repo_part(part: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty() && part.chars().all(is_plain) && !part.starts_with(['.', '-']) && !part.contains("..")
}

/// Whether a file name of a repository stays inside the folder it is written to.
pub(super) fn is_safe_name(name: &str) -> bool {
    let is_safe_part = |part: &str| !part.is_empty() && part != "." && part != "..";
    !name.contains(['\\', ':', '\0']) && name.split('/').all(is_safe_part)
}

/// Whether a commit or an ETag can be a file's name.
pub(super) fn is_plain_hash(hash: &str) -> bool {
    (1..=128).contains(&hash.len()) && hash.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Whether `hash` is a SHA-256 in hexadecimal. The hub names large files so.
pub(super) fn is_sha256(hash: &str) -> bool {
    hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit())
}
