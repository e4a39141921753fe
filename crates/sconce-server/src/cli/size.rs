//! Sizes in bytes, as people write them.

/// Units by their names, in lower case.
const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Reads `512MiB`, `1.5 GiB`, `2GB` or a plain number of bytes.
pub(super) fn parse_bytes(text: &str) -> Result<usize, String> {
    let expected = || format!("expected a size such as 512MiB, 2GiB or a number of bytes, found {text:?}");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let &(_, unit) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(expected)?;
    if let Ok(number) = number.parse::<u64>() {
        let bytes = number.checked_mul(unit).and_then(|bytes| usize::try_from(bytes).ok());
        return bytes.ok_or_else(|| format!("{text} is more than this machine can count"));
    }
    let number: f64 = number.parse().map_err(|_| expected())?;
    let bytes = number * unit as f64;
    // A double counts exactly up to here, which is more than any memory.
    if unit == 1 || bytes > 9e15 { Err(expected()) } else { Ok(bytes as usize) }
}
