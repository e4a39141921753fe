//! Tests of the GGUF reader and writer.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::weights::gguf_writer::GgufWriter;
use crate::weights::{Dtype, quant};

fn parse(bytes: &[u8]) -> Result<Header> {
    parse::header(Path::new("m.gguf"), bytes)
}

/// The message of the refusal has each of `parts`, and names the file.
#[track_caller]
fn check_refused(bytes: &[u8], parts: &[&str]) {
    let message = parse(bytes).expect_err("the file was accepted").to_string();
    for part in ["m.gguf"].iter().chain(parts) {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}

fn sample() -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer
        .set("general.architecture", &GgufValue::String("llama".into()))
        .set("int", &GgufValue::Int(-3))
        .set("wide", &GgufValue::Int(1 << 40))
        .set("float", &GgufValue::Float(0.5))
        .set("bool", &GgufValue::Bool(true))
        .set("ints", &GgufValue::Ints(vec![1, -2]))
        .set("floats", &GgufValue::Floats(vec![1.5]))
        .set("bools", &GgufValue::Bools(vec![false, true]))
        .set("strings", &GgufValue::Strings(vec!["a".into(), String::new()]))
        .set("none", &GgufValue::Ints(Vec::new()))
        .tensor("v", Dtype::F32, &[3], bytemuck::cast_slice(&[1f32, 2.0, 3.0]))
        .tensor("m", Dtype::Q8_0, &[2, 64], &[7; 4 * 34]);
    writer
}

/// A file with one pair and nothing else, whose bytes after the key are `value`.
fn with_raw_pair(key: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend((key.len() as u64).to_le_bytes());
    bytes.extend(key.as_bytes());
    bytes.extend(value);
    bytes
}

/// A file with one tensor and nothing else, whose entry is as given and whose data is 64 bytes.
fn with_raw_tensor(name: &[u8], dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((name.len() as u64).to_le_bytes());
    bytes.extend(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
    bytes
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.gguf");
    sample().write(&path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.string("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.get("int"), Some(&GgufValue::Int(-3)));
    assert_eq!(metadata.uint("wide").unwrap(), Some(1 << 40));
    assert_eq!(metadata.float("float").unwrap(), Some(0.5));
    assert_eq!(metadata.bool("bool").unwrap(), Some(true));
    assert_eq!(metadata.ints("ints").unwrap(), Some([1, -2].as_slice()));
    assert_eq!(metadata.floats("floats").unwrap(), Some([1.5].as_slice()));
    assert_eq!(metadata.get("bools"), Some(&GgufValue::Bools(vec![false, true])));
    assert_eq!(metadata.strings("strings").unwrap(), Some(["a".to_owned(), String::new()].as_slice()));
    assert_eq!(metadata.ints("none").unwrap(), Some([].as_slice()));
    assert_eq!(metadata.keys().count(), 10);

    let mut names: Vec<_> = file.tensor_names().collect();
    names.sort_unstable();
    assert_eq!(names, ["m", "v"]);
    assert_eq!(file.tensor("v").unwrap().to_f32(), [1.0, 2.0, 3.0]);
    let matrix = file.tensor("m").unwrap();
    assert_eq!((matrix.dtype, matrix.shape.as_slice(), matrix.data.len()), (Dtype::Q8_0, [2, 64].as_slice(), 136));
    assert_eq!(file.total_bytes(), 12 + 136);
    assert!(file.tensor("n").is_none() && !file.contains("n"));
}

#[test]
fn integers_of_every_width_are_widened() {
    let cases: [(u32, &[u8], i64); 8] = [
        (0, &[0xff], 255),
        (1, &[0xff], -1),
        (2, &[0xff; 2], 65535),
        (3, &[0xff; 2], -1),
        (4, &[0xff; 4], u32::MAX.into()),
        (5, &[0xff; 4], -1),
        (10, &[0xff, 0, 0, 0, 0, 0, 0, 0], 255),
        (11, &[0xff; 8], -1),
    ];
    for (kind, bytes, expected) in cases {
        let header = parse(&with_raw_pair("k", &[&kind.to_le_bytes(), bytes].concat())).unwrap();
        assert_eq!(header.metadata.get("k"), Some(&GgufValue::Int(expected)), "type {kind}");
    }
}

#[test]
fn other_versions_are_refused() {
    let with_version = |version: [u8; 4]| [b"GGUF", version.as_slice(), &[0; 16]].concat();
    assert!(parse(&with_version([2, 0, 0, 0])).is_ok());
    check_refused(&with_version([1, 0, 0, 0]), &["version 1 is not supported"]);
    check_refused(&with_version([4, 0, 0, 0]), &["expected 2 or 3, found 4"]);
    check_refused(&with_version([0, 0, 0, 3]), &["big-endian"]);
    check_refused(b"PK\x03\x04....", &["not a GGUF file"]);
    check_refused(b"", &["magic"]);
}

#[test]
fn bad_metadata_is_refused() {
    check_refused(&with_raw_pair("k", &[&10u32.to_le_bytes()[..], &[0xff; 8]].concat()), &["key k", "at most"]);
    check_refused(&with_raw_pair("k", &[7, 0, 0, 0, 2]), &["key k", "boolean", "found 2"]);
    check_refused(&with_raw_pair("k", &[13, 0, 0, 0, 2]), &["key k", "found 13"]);
    check_refused(&with_raw_pair("k", &[9, 0, 0, 0, 9, 0, 0, 0, 0]), &["key k", "list of lists"]);
    check_refused(&with_raw_pair("k", &[9, 0, 0, 0, 77, 0, 0, 0, 0]), &["key k", "found 77"]);
    check_refused(&with_raw_pair("k", &[4, 0, 0, 0, 2]), &["key k", "expected 4 bytes", "found 1"]);
    let huge_list = [&[9, 0, 0, 0, 8, 0, 0, 0][..], &[0xff; 8]].concat();
    check_refused(&with_raw_pair("k", &huge_list), &["key k", "do not fit"]);
    let not_utf8 = [&[8, 0, 0, 0][..], &1u64.to_le_bytes(), &[0xff]].concat();
    check_refused(&with_raw_pair("k", &not_utf8), &["key k", "UTF-8"]);
    let huge_count = [b"GGUF", &3u32.to_le_bytes()[..], &[0xff; 16]].concat();
    check_refused(&huge_count, &["number of tensors", "do not fit"]);
}

#[test]
fn a_key_and_a_tensor_occur_once() {
    let mut writer = sample();
    check_refused(&writer.set("int", &GgufValue::Int(1)).to_bytes(), &["key int", "twice"]);
    let mut writer = sample();
    check_refused(&writer.tensor("v", Dtype::F32, &[1], &[0; 4]).to_bytes(), &["tensor v", "twice"]);
}

#[test]
fn a_part_of_a_split_model_is_refused() {
    let bytes = GgufWriter::new().set("split.count", &GgufValue::Int(3)).to_bytes();
    check_refused(&bytes, &["one of 3 parts", "split.count"]);
    assert!(parse(&GgufWriter::new().set("split.count", &GgufValue::Int(1)).to_bytes()).is_ok());
}

#[test]
fn bad_tensors_are_refused() {
    assert!(parse(&with_raw_tensor(b"t", &[16], 0, 0)).is_ok());
    check_refused(&with_raw_tensor(b"t", &[17], 0, 0), &["tensor t", "expected 68 bytes"]);
    check_refused(&with_raw_tensor(b"t", &[1], 0, 96), &["tensor t", "expected 4 bytes at offset 96"]);
    check_refused(&with_raw_tensor(b"t", &[1], 0, 4), &["tensor t", "multiple of the alignment, 32"]);
    check_refused(&with_raw_tensor(b"t", &[1], 0, u64::MAX - 31), &["tensor t", "offset"]);
    check_refused(&with_raw_tensor(b"t", &[1 << 40, 1 << 40], 0, 0), &["tensor t", "too large"]);
    check_refused(&with_raw_tensor(b"t", &[u64::MAX], 0, 0), &["tensor t", "too large"]);
    check_refused(&with_raw_tensor(b"t", &[33], 8, 0), &["tensor t", "whole blocks of 32", "Q8_0"]);
    check_refused(&with_raw_tensor(b"t", &[32], 20, 0), &["tensor t", "IQ4_NL"]);
    check_refused(&with_raw_tensor(b"t", &[32], 999, 0), &["tensor t", "number 999"]);
    check_refused(&with_raw_tensor(b"t", &[], 0, 0), &["tensor t", "1 to 4 dimensions, found 0"]);
    check_refused(&with_raw_tensor(b"t", &[1; 5], 0, 0), &["tensor t", "found 5"]);
    check_refused(&with_raw_tensor(b"\xff", &[1], 0, 0), &["tensor name", "UTF-8"]);
}

#[test]
fn the_alignment_is_the_files_own() {
    let aligned = |alignment: i64| {
        let mut writer = GgufWriter::new();
        writer.set("general.alignment", &GgufValue::Int(alignment)).tensor("t", Dtype::F32, &[1], &[0; 4]).to_bytes()
    };
    let start = |alignment| parse(&aligned(alignment)).unwrap().tensors["t"].data.start;
    // The writer aligns to 32, which 8 divides.
    assert!(start(8) <= start(32) && start(8) % 8 == 0);
    check_refused(&aligned(12), &["general.alignment", "power of two", "12"]);
    check_refused(&aligned(0), &["general.alignment", "0"]);
    check_refused(&aligned(-8), &["general.alignment", "-8"]);
    check_refused(&aligned(1 << 62), &["tensor t"]);
}

#[test]
fn a_missing_or_empty_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.gguf");
    assert!(matches!(GgufFile::open(&path), Err(crate::Error::Io { .. })));
    std::fs::write(&path, []).unwrap();
    assert!(matches!(GgufFile::open(&path), Err(crate::Error::ModelFile { .. })));
}

/// Whatever the bytes, there is an answer, and every tensor that it names can be read.
#[test]
fn corrupt_bytes_never_panic() {
    let whole = sample().to_bytes();
    let read = |bytes: &[u8]| {
        let Ok(header) = parse(bytes) else { return false };
        for tensor in header.tensors.values() {
            let data = &bytes[tensor.data.clone()];
            let mut out = vec![0.0; tensor.shape.iter().product::<usize>()];
            quant::dequantize(tensor.dtype, data, &mut out);
        }
        true
    };
    assert!(read(&whole));
    for len in 0..whole.len() {
        assert!(!read(&whole[..len]), "cut to {len} of {} bytes", whole.len());
    }

    let seed = 0x5eed;
    let mut random = seed;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 16) as usize % below
    };
    let mut accepted = 0u32;
    let start = Instant::now();
    let mut rounds = 0u32;
    while rounds < 20_000 && start.elapsed() < Duration::from_secs(2) {
        let mut bytes = whole.clone();
        for _ in 0..=next(3) {
            let at = next(bytes.len());
            match next(4) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes[at] = next(256) as u8,
                2 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
                _ => bytes.truncate(at.max(1)),
            }
        }
        accepted += u32::from(read(&bytes));
        rounds += 1;
    }
    // Both ways must have been taken for the loop to mean anything.
    assert!((1..rounds).contains(&accepted), "seed {seed:#x}: {accepted} of {rounds} accepted");
}
