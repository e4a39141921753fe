//! Arguments: their defaults, their forms, and what is refused.

use clap::{CommandFactory, Parser};
use sconce::{DeviceKind, EngineConfig, KvCacheDtype, LoadFormat, Quantization, SamplingParams, WeightDtype};

use super::chat::Input;
use super::serve::split_alias;
use super::size::parse_bytes;
use super::{Cli, Command, serve};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn parse_serve(line: &str) -> serve::Args {
    match parse(line) {
        Ok(Cli { command: Command::Serve(args) }) => args,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn serve_without_flags_is_the_default() {
    let args = parse_serve("sconce serve");
    assert!(args.models.is_empty());
    assert_eq!((args.host.as_str(), args.port), ("127.0.0.1", 8000));
    assert_eq!(format!("{:?}", args.engine.config()), format!("{:?}", EngineConfig::default()));
    let settings = args.settings();
    assert_eq!(settings.max_body_bytes, 32 << 20);
    assert_eq!(settings.drain_timeout.as_secs(), 30);
}

#[test]
fn serve_flags_reach_the_settings() {
    let args = parse_serve(
        "sconce serve --model a --model b=c --host 0.0.0.0 --port 1 --device cpu --dtype bf16 --kv-cache-dtype f32 --load-format dummy \
         --max-model-len 9 --kv-cache-bytes 512MiB --threads 3 --max-num-seqs 4 --max-num-batched-tokens 5 \
         --block-size 8 --max-waiting 6 --api-key k --cors-allow-origin * --max-body-bytes 1KiB --drain-timeout 2",
    );
    assert_eq!(args.models, ["a", "b=c"]);
    let config = args.engine.config();
    assert_eq!(
        (config.device, config.dtype, config.load_format),
        (DeviceKind::Cpu, WeightDtype::Bf16, LoadFormat::Dummy)
    );
    assert_eq!((config.max_model_len, config.kv_cache_bytes, config.num_threads), (Some(9), Some(512 << 20), Some(3)));
    assert_eq!(config.kv_cache_dtype, KvCacheDtype::F32);
    assert_eq!((config.max_num_seqs, config.max_num_batched_tokens), (Some(4), Some(5)));
    assert_eq!((config.block_size, config.max_waiting), (8, 6));
    let settings = args.settings();
    assert!(settings.api_key.as_ref().is_some_and(|key| key.matches(b"k")));
    assert!(!format!("{settings:?}").contains("\"k\""));
    assert_eq!(settings.cors_allow_origins, ["*"]);
    assert_eq!((settings.max_body_bytes, settings.drain_timeout.as_secs()), (1024, 2));
}

#[test]
fn adapters_have_a_name_and_a_source() {
    let args = parse_serve("sconce serve --lora a=org/x --lora b=dir/y=z");
    assert!(args.engine.has_adapters() && !parse_serve("sconce serve").engine.has_adapters());
    let error = args.engine.only_adapter().unwrap_err().to_string();
    assert!(error.starts_with("lora: ") && error.ends_with("give one"), "{error}");
    assert_eq!(parse_serve("sconce serve --lora a=b=c").engine.only_adapter().unwrap().as_deref(), Some("a"));
    assert_eq!(parse_serve("sconce serve").engine.only_adapter().unwrap(), None);
    for wrong in ["a", "=b", "a="] {
        let error = parse(&format!("sconce serve --lora {wrong}")).unwrap_err().to_string();
        assert!(error.contains("expected NAME=PATH|ID"), "{error}");
    }
}

/// What a setting is where nobody sets it, and what it does not reach.
#[test]
fn help_says_what_depends_on_the_device() {
    let help = parse("sconce serve --help").unwrap_err().to_string();
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in ["[default: 512 on the CPU, 2048 on a GPU,", "kernels are kept where SCONCE_CACHE says"] {
        assert!(words.contains(expected), "{help}");
    }
    let args = parse_serve("sconce serve --max-num-batched-tokens 0");
    let error = args.engine.config().validate().unwrap_err().to_string();
    assert!(error.contains("max-num-batched-tokens: must be at least 1"), "{error}");
}

#[test]
fn keys_and_values_of_8_bits_need_blocks_of_8_tokens() {
    let args = parse_serve("sconce serve --kv-cache-dtype int8");
    assert_eq!(args.engine.config().kv_cache_dtype, KvCacheDtype::Int8);
    let config = EngineConfig { block_size: 4, ..args.engine.config() };
    let error = config.validate().unwrap_err().to_string();
    assert_eq!(error, "block-size: must be at least 8 with keys and values of int8, found 4");
    let error = parse("sconce serve --kv-cache-dtype fp8").unwrap_err().to_string();
    assert!(error.contains("fp8 is not offered: int8, on a GPU, takes as much memory"), "{error}");
    let config = EngineConfig { check_ops: true, ..args.engine.config() };
    assert!(config.validate().unwrap_err().to_string().starts_with("check-ops: compares with the CPU"));
}

#[test]
fn a_draft_model_has_settings_of_its_own() {
    let args = parse_serve("sconce serve --draft-model a/b --draft-quantization q4_0");
    let config = args.engine.config();
    assert!(args.engine.has_draft_model() && config.draft_quantization == Some(Quantization::Q4_0));
    assert_eq!((config.num_speculative_tokens, config.quantization), (0, Quantization::None));
    assert!(!parse_serve("sconce serve").engine.has_draft_model());
}

#[test]
fn bad_flags_exit_with_2() {
    for line in [
        "sconce",
        "sconce fly",
        "sconce serve --port 99999",
        "sconce serve --kv-cache-bytes lots",
        "sconce serve --device tpu",
        "sconce serve --max-num-seqs -1",
        "sconce generate",
        "sconce pull",
    ] {
        assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
    }
}

#[test]
fn generate_takes_a_prompt_and_sampling() {
    let Command::Generate(args) =
        parse("sconce generate - --stream --temperature 0 --top-k 0 --max-tokens 5 --stop x --presence-penalty -1")
            .unwrap()
            .command
    else {
        panic!("not generate");
    };
    assert_eq!((args.prompt.as_str(), args.stream, args.chat), ("-", true, false));
    let expected = SamplingParams {
        max_tokens: Some(5),
        temperature: 0.0,
        presence_penalty: -1.0,
        stop: vec!["x".into()],
        ..SamplingParams::default()
    };
    assert_eq!(args.sampling.params(), expected);
}

#[test]
fn sizes_as_people_write_them() {
    for (text, expected) in [
        ("0", 0),
        ("512", 512),
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("2 gib", 2 << 30),
        ("1.5KiB", 1536),
        ("3GB", 3_000_000_000),
        ("7b", 7),
    ] {
        assert_eq!(parse_bytes(text), Ok(expected), "{text}");
    }
    for text in ["", "MiB", "1.5", "-1", "1XiB", "1..5GiB", "99999999999999999999", "99999999TiB", "1e9"] {
        assert!(parse_bytes(text).is_err(), "{text}");
    }
}

#[test]
fn aliases_are_split_off() {
    assert_eq!(split_alias("a/b"), ("a/b", None));
    assert_eq!(split_alias("a/b=c"), ("a/b", Some("c")));
    assert_eq!(split_alias("a="), ("a=", None));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x=y.gguf");
    std::fs::write(&path, "").unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(split_alias(path), (path, None));
    let with_alias = format!("{path}=z");
    assert_eq!(split_alias(&with_alias), (path, Some("z")));
}

#[test]
fn what_is_typed_into_a_chat() {
    for (line, expected) in [
        ("  hi there \n", Input::Message("hi there")),
        ("", Input::Nothing),
        ("/exit", Input::Exit),
        ("/reset ", Input::Reset),
        ("/help", Input::Help),
        ("/fly", Input::Unknown("/fly")),
    ] {
        assert_eq!(Input::parse(line), expected, "{line}");
    }
}
