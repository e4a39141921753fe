//! Packed matrices of `tests/packed`, which the tools that checkpoints come from have made (`scripts/make_packed.py`): the very numbers
//! that those tools make of them.

use std::path::{Path, PathBuf};

use sconce_core::models::RawConfig;
use sconce_core::weights::{Dtype, WeightStore};

const SHAPE: [usize; 2] = [32, 128];
const NAME: &str = "layers.0.proj.weight";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/packed").join(name)
}

#[test]
fn matrices_are_what_the_tools_make_of_them() {
    let cases = [
        ("gptq", Dtype::Int4G32),
        ("gptq-symmetric", Dtype::Int4G128),
        ("gptq-8-bits", Dtype::Q8_0),
        ("gptq-act-order", Dtype::Int4G32),
        ("gptq-v2", Dtype::Int4G32),
        ("awq", Dtype::Int4G32),
        ("pack-quantized", Dtype::Int4G128),
        ("pack-quantized-symmetric", Dtype::Q4_0),
        ("pack-quantized-8-bits", Dtype::Q8_0),
        ("int-quantized", Dtype::Q8_0),
    ];
    let num_folders = std::fs::read_dir(folder("")).unwrap().count();
    assert_eq!(num_folders, cases.len());
    for (name, dtype) in cases {
        let dir = folder(name);
        let form = RawConfig::from_dir(&dir).unwrap().stored_form().unwrap();
        let store = WeightStore::open_safetensors(&dir, form).unwrap();
        let (found, described) = (store.get(NAME, &SHAPE).unwrap(), store.describe(NAME, &SHAPE).unwrap());
        assert_eq!((found.dtype, described.dtype, store.contains(NAME)), (dtype, dtype, true), "{name}");
        let expected = store.get("expected", &SHAPE).unwrap().to_f32();
        assert!(found.to_f32() == expected, "{name}");
        assert_eq!(found.column_order.is_some(), name == "gptq-act-order", "{name}");
    }
}
