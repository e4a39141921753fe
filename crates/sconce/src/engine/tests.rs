//! What a builder decides before anything is loaded.

use super::*;

#[test]
fn a_path_is_served_under_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("tiny.Q8_0.gguf");
    std::fs::write(&gguf, b"").unwrap();
    let folder = dir.path().join("tiny-model");
    std::fs::create_dir(&folder).unwrap();

    assert_eq!(default_name(gguf.to_str().unwrap()), "tiny.Q8_0");
    assert_eq!(default_name(folder.to_str().unwrap()), "tiny-model");
    assert_eq!(default_name(folder.join(".").to_str().unwrap()), "tiny-model");
    assert_eq!(default_name("org/repo"), "org/repo");
    assert_eq!(default_name("org/repo:file.gguf"), "org/repo:file.gguf");
}

#[test]
fn setters_reach_the_config() {
    let builder = Engine::starter()
        .device(DeviceKind::Cpu)
        .dtype(WeightDtype::F32)
        .kv_cache_dtype(KvCacheDtype::Bf16)
        .load_format(LoadFormat::Dummy)
        .max_model_len(128)
        .kv_cache_bytes(1 << 20)
        .num_threads(3);
    assert_eq!(builder.config.device, DeviceKind::Cpu);
    assert_eq!(builder.config.dtype, WeightDtype::F32);
    assert_eq!(builder.config.kv_cache_dtype, KvCacheDtype::Bf16);
    assert_eq!(builder.config.load_format, LoadFormat::Dummy);
    assert_eq!(builder.config.max_model_len, Some(128));
    assert_eq!(builder.config.kv_cache_bytes, Some(1 << 20));
    assert_eq!(builder.config.num_threads, Some(3));
}

#[test]
fn a_wrong_setting_is_refused_before_anything_is_downloaded() {
    let error = Engine::builder("no/such-model").num_threads(0).build().map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "threads: must be at least 1, found 0");
}

#[test]
fn a_missing_path_is_named() {
    let error = Engine::builder("./no/such/model.gguf").build().map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("model: ./no/such/model.gguf: "), "{error}");
    let builder = Engine::builder("./no/such/model.gguf").draft_model("./no/such/draft.gguf");
    let error = builder.build().map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("draft-model: ./no/such/draft.gguf: "), "{error}");
    let builder = Engine::builder("./no/such/model.gguf").lora("one", "./no/such/adapter");
    let error = builder.build().map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("lora: ./no/such/adapter: "), "{error}");
}
