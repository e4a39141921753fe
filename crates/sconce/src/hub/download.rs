//! [`download`]: one file of the hub into the cache, resumable, checked.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use sconce_core::engine::Progress;
use sconce_core::{Error, Result};
use sha2::{Digest, Sha256};

use super::cache::{RepoCache, make_parent};
use super::client::{Client, FileAnswer, RemoteFile};
use super::lock::{open_locked, unique_suffix};
use super::repo::{RepoId, is_sha256};
use super::unavailable;

const BUFFER_BYTES: usize = 256 << 10;
/// Attempts in a row that brought nothing new, once something has come.
const MAX_FRUITLESS: usize = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// Where files come from and go to.
pub(super) struct Transfer<'a> {
    /// Asks the hub.
    pub(super) client: &'a Client,
    /// The repository.
    pub(super) id: &'a RepoId,
    /// The commit that `main` has.
    pub(super) commit: &'a str,
    /// The repository's folder in the cache.
    pub(super) cache: &'a RepoCache,
    /// Who is told.
    pub(super) progress: &'a dyn Progress,
}

/// Brings `file` into the snapshot, unless it is there, and returns its path.
pub(super) fn download(transfer: &Transfer<'_>, file: &RemoteFile) -> Result<PathBuf> {
    let path = transfer.cache.snapshot(transfer.commit).join(&file.name);
    if path.is_file() {
        return Ok(path);
    }
    match file.blob_name.as_ref().filter(|name| transfer.cache.blob(name).is_file()) {
        Some(blob_name) => transfer.cache.link(transfer.commit, &file.name, blob_name)?,
        None => download_blob(transfer, file)?,
    }
    Ok(path)
}

/// Brings the content of `file` into the cache, and into the snapshot.
fn download_blob(transfer: &Transfer<'_>, file: &RemoteFile) -> Result<()> {
    let key = match &file.blob_name {
        Some(name) => name.clone(),
        None => format!("{}-{}", transfer.commit, file.name.replace('/', "--")),
    };
    let link = |blob_name: &str| transfer.cache.link(transfer.commit, &file.name, blob_name);
    let path = transfer.cache.blob(&format!("{key}.sconce-part"));
    let mut part = Part::open(&path, transfer.progress)?;
    // Another process may have finished it while this one waited.
    if transfer.cache.blob(&key).is_file() {
        return link(&key);
    }
    if transfer.cache.snapshot(transfer.commit).join(&file.name).is_file() {
        return Ok(());
    }
    part.hash_prefix()?;
    let mut expected = file.clone();
    transfer.progress.start(&format!("{} {}", transfer.id.repo, file.name), file.size);
    transfer.progress.advance(part.len);
    let received = receive(transfer, &mut part, &mut expected);
    transfer.progress.finish();
    received?;
    part.check(&format!("{}: {}", transfer.id.repo, file.name), &expected)?;
    let blob_name = expected.blob_name.unwrap_or(key);
    part.publish(&transfer.cache.blob(&blob_name))?;
    // The lock is held until then.
    link(&blob_name)
}

/// Fills `part`, taking up again what breaks off. What the answers say of size and hash is added to `expected`.
fn receive(transfer: &Transfer<'_>, part: &mut Part, expected: &mut RemoteFile) -> Result<()> {
    if expected.size.is_some_and(|size| part.len > size) {
        part.clear()?;
    }
    let (start, mut best, mut num_fruitless) = (part.len, part.len, 0);
    while expected.size != Some(part.len) {
        let error = match attempt(transfer, part, expected) {
            Ok(()) => return Ok(()),
            // The disk's error, not the network's.
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => error,
        };
        num_fruitless = if part.len > best { 0 } else { num_fruitless + 1 };
        best = best.max(part.len);
        if best == start || num_fruitless >= MAX_FRUITLESS {
            return Err(error);
        }
        sleep(RETRY_PAUSE);
    }
    Ok(())
}

/// One request for what is missing, read to its end.
fn attempt(transfer: &Transfer<'_>, part: &mut Part, expected: &mut RemoteFile) -> Result<()> {
    let open = |offset| transfer.client.open(transfer.id, transfer.commit, &expected.name, offset);
    let mut answer = open(part.len)?;
    if answer.status == 416 {
        part.clear()?;
        answer = open(0)?;
    }
    let continues = answer.status == 206 && answer.offset == part.len;
    if !continues && part.len > 0 {
        part.clear()?;
        transfer.progress.start(&format!("{} {}", transfer.id.repo, expected.name), expected.size);
    }
    if answer.status == 416 || answer.offset != part.len {
        return Err(unavailable(format!("{}: the hub sent another part than was asked for", expected.name)));
    }
    expected.size = expected.size.or(answer.size);
    if expected.blob_name.is_none() {
        expected.blob_name = answer.blob_name.take();
        expected.sha256 = expected.blob_name.clone().filter(|name| is_sha256(name));
    }
    part.append(answer, expected, transfer.progress)
}

/// A file that is being written, locked against other processes.
struct Part {
    file: File,
    path: PathBuf,
    len: u64,
    hasher: Sha256,
    /// Where the file system has no locks the name is this process's own, and of no use to a later one.
    is_unique: bool,
}

impl Part {
    /// Opens what an earlier download left at `path`, or begins anew.
    fn open(path: &Path, progress: &dyn Progress) -> Result<Self> {
        make_parent(path)?;
        let (file, path, is_unique) = match open_locked(path, progress)? {
            Some(file) => (file, path.to_owned(), false),
            None => {
                let path = path.with_extension(format!("part-{}", unique_suffix()));
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
                (file.map_err(|e| Error::io(&path, e))?, path, true)
            }
        };
        Ok(Self { file, path, len: 0, hasher: Sha256::new(), is_unique })
    }

    /// Takes in what is there already.
    fn hash_prefix(&mut self) -> Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = self.file.read(&mut buffer).map_err(|e| Error::io(&self.path, e))?;
            if count == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..count]);
            self.len += count as u64;
        }
    }

    /// Empties the file.
    fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(|e| Error::io(&self.path, e))?;
        self.len = 0;
        self.hasher = Sha256::new();
        Ok(())
    }

    /// Adds the content of an answer that begins where the file ends.
    fn append(&mut self, mut answer: FileAnswer, expected: &RemoteFile, progress: &dyn Progress) -> Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let name = &expected.name;
        let of_size = || expected.size.map(|size| format!(" of {size}")).unwrap_or_default();
        loop {
            let count = match answer.body.read(&mut buffer) {
                Ok(0) if expected.size.is_none_or(|size| size == self.len) => return Ok(()),
                Ok(0) => return Err(broken_off(name, self.len, &of_size(), "the connection was closed")),
                Ok(count) => count,
                Err(e) => return Err(broken_off(name, self.len, &of_size(), &e.to_string())),
            };
            if expected.size.is_some_and(|size| self.len + count as u64 > size) {
                return Err(unavailable(format!("{name}: the hub sends more than the file's{} bytes", of_size())));
            }
            self.file.write_all(&buffer[..count]).map_err(|e| Error::io(&self.path, e))?;
            self.hasher.update(&buffer[..count]);
            self.len += count as u64;
            progress.advance(count as u64);
        }
    }

    /// Compares the checksum. A file that is wrong is emptied: the next attempt begins anew.
    fn check(&mut self, what: &str, expected: &RemoteFile) -> Result<()> {
        let Some(sha256) = &expected.sha256 else { return Ok(()) };
        let found = format!("{:x}", self.hasher.finalize_reset());
        if found.eq_ignore_ascii_case(sha256) {
            return Ok(());
        }
        self.clear()?;
        Err(unavailable(format!("{what}: the download is corrupt: its SHA-256 is {found}, expected {sha256}")))
    }

    /// Gives the file its name. It is on the disk by then, so that not even a power cut leaves half of it there.
    fn publish(&mut self, blob: &Path) -> Result<()> {
        self.file.sync_all().and_then(|()| fs::rename(&self.path, blob)).map_err(|e| Error::io(blob, e))?;
        self.is_unique = false;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.is_unique {
            // Nothing to be done if it fails: the error that led here is the one to report.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn broken_off(name: &str, len: u64, of_size: &str, why: &str) -> Error {
    unavailable(format!(
        "{name}: the download broke off after {len}{of_size} bytes ({why}); start again to continue it"
    ))
}
