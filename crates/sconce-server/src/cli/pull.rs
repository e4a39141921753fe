//! `sconce pull`: a model from the hub into the cache.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, progress};

/// Flags of `sconce pull`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model's id on the hub, such as org/name, or org/name:file.gguf.
    #[arg(value_name = "ID")]
    id: String,
    /// Where downloaded models are kept [default: the user's cache].
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

/// Runs `sconce pull`.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let path = sconce::hub::fetch(&args.id, args.cache_dir.as_deref(), &*progress::progress())?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(ExitCode::SUCCESS)
}
