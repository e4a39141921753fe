//! The kernels that this program carries, which of them suits a device, and what they are called.

use std::io::{self, Read as _};
use std::path::Path;

use crate::error::{Error, Result};

/// A compiled source, deflated.
pub(super) struct Packed {
    /// The source's name without `.cu`.
    pub(super) source: &'static str,
    /// `sm_90a` and the like for machine code, `compute_80` and the like for PTX.
    pub(super) target: &'static str,
    /// Bytes of the image.
    pub(super) len: usize,
    /// The image, deflated.
    pub(super) bytes: &'static [u8],
}

/// What the build script has found and made.
pub(super) mod embedded {
    use super::Packed;

    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// A compiled source as the driver takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// The source's name without `.cu`.
    pub(super) source: String,
    /// Machine code (ELF), or PTX with a zero at its end.
    pub(super) bytes: Vec<u8>,
}

impl Packed {
    /// The image itself.
    pub(super) fn unpack(&self) -> Result<Image> {
        let mut bytes = Vec::with_capacity(self.len + 1);
        let broken = |what: String| Error::internal(format!("kernels of {} for {}: {what}", self.source, self.target));
        flate2::read::ZlibDecoder::new(self.bytes).read_to_end(&mut bytes).map_err(|e| broken(e.to_string()))?;
        if bytes.len() != self.len {
            return Err(broken(format!("{} bytes, expected {}", bytes.len(), self.len)));
        }
        if self.target.starts_with("compute") {
            bytes.push(0);
        }
        Ok(Image { source: self.source.into(), bytes })
    }
}

/// Targets of `targets` that run on a device, best first: its own machine code (with all its instructions, then without),
/// machine code of an earlier device of the same generation, PTX, newest first.
pub(super) fn suitable(capability: (u32, u32), targets: &[&'static str]) -> Vec<&'static str> {
    let parse = |target: &&'static str| {
        let digits: String = target.chars().filter(char::is_ascii_digit).collect();
        let (major, minor) = digits.split_at(digits.len().saturating_sub(1));
        let of = (major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
        // A letter means: this device alone.
        let is_exact = target.ends_with(|c: char| c.is_ascii_alphabetic());
        (of, is_exact, target.starts_with("compute"), *target)
    };
    let mut found: Vec<((u32, u32), bool, bool, &'static str)> = targets.iter().map(parse).collect();
    found.retain(|&(of, is_exact, is_ptx, _)| match (is_exact, is_ptx) {
        (true, _) => of == capability,
        (false, true) => of <= capability,
        (false, false) => of.0 == capability.0 && of.1 <= capability.1,
    });
    found.sort_by_key(|&(of, is_exact, is_ptx, _)| (is_ptx, std::cmp::Reverse((of, is_exact))));
    found.dedup();
    found.into_iter().map(|(.., target)| target).collect()
}

/// How a compiler names the device, with all its instructions.
pub(super) fn native_target(capability: (u32, u32)) -> String {
    let (major, minor) = capability;
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

/// What sources for Hopper alone end with, and what such are compiled for.
const HOPPER: (&str, &str) = ("_hopper", "sm_90a");

/// Whether a source (a file's name without `.cu`) is for a device that the compiler calls `target`.
pub(super) fn is_for(source: &str, target: &str) -> bool {
    !source.ends_with(HOPPER.0) || target == HOPPER.1
}

impl Image {
    /// Takes `dir/SOURCE.cubin` in its place, if there is one.
    pub(super) fn replace(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(&self.source).with_extension("cubin");
        match std::fs::read(&path) {
            Ok(bytes) => self.bytes = bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.is_dir() => {}
            Err(error) => return Err(Error::io(&path, error)),
        }
        Ok(())
    }

    /// The names of its kernels.
    pub(super) fn kernel_names(&self) -> Result<Vec<String>> {
        let names =
            if self.bytes.starts_with(b"\x7fELF") { elf_kernels(&self.bytes) } else { ptx_kernels(&self.bytes) };
        match names {
            Some(names) if !names.is_empty() => Ok(names),
            _ => Err(Error::internal(format!("kernels of {}: the image names none", self.source))),
        }
    }
}

/// `.entry NAME(` in PTX.
fn ptx_kernels(bytes: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_$".contains(c);
    let name = |rest: &str| rest.trim_start().split(|c| !is_part(c)).next().unwrap_or_default().to_owned();
    Some(text.split(".entry ").skip(1).map(name).filter(|name| !name.is_empty()).collect())
}

/// Sections `.text.NAME` of 64-bit ELF: a kernel each (functions that are not inlined have no parameters' section).
fn elf_kernels(bytes: &[u8]) -> Option<Vec<String>> {
    let number = |at: usize, len: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(len)?)?;
        field.iter().rev().try_fold(0usize, |sum, &byte| sum.checked_mul(256)?.checked_add(byte.into()))
    };
    let (table, entry_len, num_entries) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(entry_len)?);
    let names = number(header(number(0x3e, 2)?)?.checked_add(0x18)?, 8)?;
    let section = |index: usize| -> Option<&str> {
        let at = names.checked_add(number(header(index)?, 4)?)?;
        let rest = bytes.get(at..)?;
        std::str::from_utf8(&rest[..rest.iter().position(|&byte| byte == 0)?]).ok()
    };
    let sections: Vec<&str> = (0..num_entries).map(section).collect::<Option<_>>()?;
    let kernels = sections.iter().filter_map(|name| name.strip_prefix(".text."));
    // Every kernel has its parameters in constant memory.
    let is_kernel = |name: &&str| {
        sections.iter().any(|section| section.strip_prefix(".nv.constant0.").is_some_and(|kernel| kernel == *name))
    };
    Some(kernels.filter(is_kernel).map(str::to_owned).collect())
}
