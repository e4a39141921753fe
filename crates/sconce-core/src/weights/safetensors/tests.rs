//! Tests of the safetensors reader.

use std::time::{Duration, Instant};

use ::safetensors::tensor::{Dtype as StDtype, TensorView as StView};

use super::*;

type Case<'a> = (&'a str, StDtype, &'a [usize], &'a [u8]);

fn file_of(tensors: &[Case<'_>]) -> Vec<u8> {
    let views =
        tensors.iter().map(|(name, dtype, shape, data)| (*name, StView::new(*dtype, shape.to_vec(), data).unwrap()));
    ::safetensors::serialize(views, None).unwrap()
}

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn one(dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
}

#[track_caller]
fn check_message(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}

#[track_caller]
fn check_refused(bytes: &[u8], parts: &[&str]) {
    let error = entries(Path::new("m.safetensors"), bytes).expect_err("the file was accepted");
    check_message(&error.to_string(), &["m.safetensors"]);
    check_message(&error.to_string(), parts);
}

/// Opens a folder with these files; the text of the error if it is refused.
fn open(files: &[(&str, &[u8])]) -> Result<Safetensors, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    Safetensors::open(dir.path(), StoredForm::Plain).map_err(|e| e.to_string())
}

#[test]
fn a_single_file_is_read() {
    let bytes = file_of(&[
        ("a", StDtype::F32, &[2, 1], &[0, 0, 128, 63, 0, 0, 0, 64]),
        ("b", StDtype::BF16, &[1], &[128, 63]),
        ("c", StDtype::I64, &[1], &[0; 8]),
        ("d", StDtype::F16, &[1], &[0, 60]),
    ]);
    let model = open(&[(SINGLE, &bytes)]).unwrap();
    let a = model.tensor("a").unwrap().unwrap();
    assert_eq!((a.dtype, a.shape.as_slice(), a.to_f32()), (Dtype::F32, [2, 1].as_slice(), vec![1.0, 2.0]));
    for name in ["b", "d"] {
        assert_eq!(model.tensor(name).unwrap().unwrap().to_f32(), [1.0], "{name}");
    }
    check_message(&model.tensor("c").unwrap_err().to_string(), &["model.safetensors", "tensor c", "I64"]);
    assert!(model.tensor("e").unwrap().is_none());
    assert_eq!((model.names().count(), model.total_bytes()), (4, 20));
}

#[test]
fn shards_are_read() {
    let index = br#"{"metadata":{"total_size":6},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let first = file_of(&[("a", StDtype::F32, &[1], &[0; 4])]);
    let second = file_of(&[("b", StDtype::BF16, &[1], &[128, 63])]);
    let files: [(&str, &[u8]); 3] = [(INDEX, index), ("1.safetensors", &first), ("2.safetensors", &second)];
    let model = open(&files).unwrap();
    assert_eq!(model.tensor("b").unwrap().unwrap().to_f32(), [1.0]);

    check_message(&open(&files[..2]).unwrap_err(), &[INDEX, "shard 2.safetensors", "not there"]);
    let swapped = [files[0], ("1.safetensors", second.as_slice()), ("2.safetensors", &first)];
    check_message(&open(&swapped).unwrap_err(), &["tensor a", "expected in 1.safetensors", "2.safetensors"]);
    let lacking = [files[0], files[1], ("2.safetensors", &raw("{}", &[]))];
    check_message(&open(&lacking).unwrap_err(), &[INDEX, "tensor b", "2.safetensors, which lacks it"]);
    let twice = [files[0], files[1], ("2.safetensors", first.as_slice())];
    check_message(&open(&twice).unwrap_err(), &["tensor a", "1.safetensors", "2.safetensors", "too"]);
    let corrupt = [files[0], files[1], ("2.safetensors", &second[..20])];
    check_message(&open(&corrupt).unwrap_err(), &["2.safetensors", "header"]);
}

#[test]
fn a_bad_index_is_refused() {
    check_message(&open(&[]).unwrap_err(), &[SINGLE, INDEX]);
    check_message(&open(&[(INDEX, b"{")]).unwrap_err(), &[INDEX, "not JSON"]);
    check_message(&open(&[(INDEX, b"{}")]).unwrap_err(), &[INDEX, "weight_map"]);
    for shard in [r#""../secret""#, r#""/etc/passwd""#, r#""..""#, r#""""#, "7"] {
        let index = format!(r#"{{"weight_map":{{"t":{shard}}}}}"#);
        check_message(&open(&[(INDEX, index.as_bytes())]).unwrap_err(), &[INDEX, "tensor t", "file name", shard]);
    }
}

#[test]
fn bad_headers_are_refused() {
    check_refused(b"", &["only 0 bytes"]);
    check_refused(&[0xff; 12], &["header of 18446744073709551615 bytes"]);
    check_refused(&raw("nonsense", &[]), &["corrupt header"]);
    check_refused(&raw("[]", &[]), &["corrupt header"]);
    check_refused(&raw(r#"{"t":1}"#, &[]), &["tensor t", "corrupt header"]);
    check_refused(&raw(&one("Q9", "[1]", 0, 4), &[0; 4]), &["tensor t", "Q9"]);
    check_refused(&raw(&one("F32", "[-1]", 0, 4), &[0; 4]), &["tensor t", "-1"]);
    check_refused(&raw(&one("F32", "[2]", 0, 4), &[0; 4]), &["tensor t", "shape [2]"]);
    check_refused(&raw(&one("F32", "[1]", 0, 4), &[0; 3]), &["tensor t", "bytes 0 to 4", "found 3"]);
    check_refused(&raw(&one("F32", "[1]", 4, 0), &[0; 4]), &["tensor t"]);
    check_refused(&raw(&one("F32", "[1]", 4, 8), &[0; 8]), &["tensor t", "expected at byte 0", "found at 4"]);
    check_refused(&raw(&one("F32", "[1]", 0, 4), &[0; 5]), &["1 bytes after the last tensor"]);
    let huge = "[4294967296,4294967296]";
    check_refused(&raw(&one("F32", huge, 0, 4), &[0; 4]), &["tensor t", "4294967296"]);
    // Sizes that add up to 2^64 and more.
    let giant = (1u64 << 61) - 1;
    let header: Vec<String> = (0..8)
        .map(|i| {
            let (start, end) = (i * giant, (i + 1) * giant);
            format!(r#""t{i}":{{"dtype":"U8","shape":[{giant}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    check_refused(&raw(&format!("{{{}}}", header.join(",")), &[]), &["tensor t0", "before the end of the file"]);
}

/// Whatever the bytes, there is an answer, and every tensor that it names lies in the file.
#[test]
fn corrupt_bytes_never_panic() {
    let whole = file_of(&[
        ("model.a", StDtype::F32, &[2, 3], &[1; 24]),
        ("model.b", StDtype::F16, &[5], &[2; 10]),
        ("model.c", StDtype::BF16, &[1, 1, 2], &[3; 4]),
    ]);
    let read = |bytes: &[u8]| match entries(Path::new("m"), bytes) {
        Ok(entries) => entries.iter().all(|(_, entry)| bytes.get(entry.data.clone()).is_some()),
        Err(_) => false,
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
    let (mut rounds, mut accepted, start) = (0u32, 0u32, Instant::now());
    while rounds < 20_000 && start.elapsed() < Duration::from_secs(2) {
        let mut bytes = whole.clone();
        for _ in 0..=next(3) {
            let at = next(bytes.len());
            match next(4) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes[at] = b"0123456789[]{},:\""[next(17)],
                2 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = b'9'),
                _ => bytes.truncate(at.max(1)),
            }
        }
        accepted += u32::from(read(&bytes));
        rounds += 1;
    }
    // Both ways must have been taken for the loop to mean anything.
    assert!((1..rounds).contains(&accepted), "seed {seed:#x}: {accepted} of {rounds} accepted");
}

#[test]
fn the_text_part_of_a_model_that_sees_images_has_the_names_of_a_text_model() {
    let bytes = file_of(&[
        ("language_model.model.norm.weight", StDtype::F32, &[1], &[0, 0, 128, 63]),
        ("model.language_model.layers.0.mlp.up_proj.weight", StDtype::F32, &[1], &[0, 0, 0, 64]),
        ("vision_tower.norm.weight", StDtype::F32, &[1], &[0; 4]),
    ]);
    let model = open(&[(SINGLE, &bytes)]).unwrap();
    for (name, value) in [("model.norm.weight", 1.0), ("model.layers.0.mlp.up_proj.weight", 2.0)] {
        assert_eq!(model.tensor(name).unwrap().unwrap().to_f32(), [value], "{name}");
    }
    let twice = file_of(&[
        ("language_model.lm_head.weight", StDtype::F32, &[1], &[0; 4]),
        ("lm_head.weight", StDtype::F32, &[1], &[0; 4]),
    ]);
    check_message(&open(&[(SINGLE, &twice)]).unwrap_err(), &["model.safetensors", "twice"]);
    assert!(model.contains("vision_tower.norm.weight") && !model.contains("language_model.model.norm.weight"));
}
