//! `sconce inspect`: what a model is, what it needs, and whether it can run.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use indicatif::{BinaryBytes, HumanCount};
use sconce::{
    Activation, DeviceKind, EngineConfig, KvCacheDtype, LoadFormat, ModelConfig, ModelReport, Quantization, RopeConfig,
    RopeScaling, TokenizerReport, WeightDtype, WeightGroup, hub,
};
use serde_json::{Map, Value, json};

use super::size::parse_bytes;
use super::{Failure, progress};

/// Flags of `sconce inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A GGUF file, a folder, or an id of the Hugging Face hub, which is brought as `sconce pull` does.
    #[arg(value_name = "PATH|ID")]
    model: String,
    /// What the model is to run on, which need not be here: auto (a GPU where there is one), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceKind,
    /// The type of weights in memory: auto (as stored; on a GPU bf16 or f16 where that is not GGUF's), f32, bf16 or f16.
    #[arg(long, default_value = "auto")]
    dtype: WeightDtype,
    /// What matrices are quantized to at load: none, fp8 (the layers', 8 bits with a scale a row; on the CPU they take the
    /// memory of bf16), q8_0 (all, 8 bits with a scale for every 32), or q4_0 (the layers', 4 bits; the embedding and the head q8_0).
    #[arg(long, default_value = "none")]
    quantization: Quantization,
    /// The type of keys and values in the cache: auto (f32; bf16 with `fast` where the machine has products of it; on a GPU as weights),
    /// f32, bf16, f16, or int8 (on a GPU; 8 bits with a scale for each token and head, half the memory of 16 bits).
    #[arg(long, default_value = "auto")]
    kv_cache_dtype: KvCacheDtype,
    /// Where weights come from: auto (files) or dummy (config.json alone is looked at).
    #[arg(long, default_value = "auto")]
    load_format: LoadFormat,
    /// The longest sequence in tokens [default: the model's own limit].
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<usize>,
    /// Say how many tokens' keys and values have room in so much memory: 512MiB, 2GiB, or a number of bytes.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    kv_cache_bytes: Option<usize>,
    /// Where downloaded models are kept [default: the user's cache].
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `sconce inspect`. It fails where the model cannot run.
pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let config = EngineConfig {
        device: args.device,
        dtype: args.dtype,
        quantization: args.quantization,
        kv_cache_dtype: args.kv_cache_dtype,
        load_format: args.load_format,
        max_model_len: args.max_model_len,
        kv_cache_bytes: args.kv_cache_bytes,
        ..EngineConfig::default()
    };
    config.validate()?;
    let path = hub::resolve(&args.model, args.cache_dir.as_deref(), &*progress::progress())?;
    let report = match sconce::inspect(&path, &config) {
        Err(error) if args.json => {
            let problems = [error.to_string()];
            writeln!(io::stdout(), "{:#}", json!({"is_supported": false, "problems": problems}))?;
            return Ok(ExitCode::FAILURE);
        }
        report => report?,
    };
    if args.json {
        writeln!(io::stdout(), "{:#}", to_json(&report))?;
    } else {
        io::stdout().write_all(to_text(&report).as_bytes())?;
    }
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The report for people.
pub(super) fn to_text(report: &ModelReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14} {value}");
    };
    let config = &report.config;
    line("model", report.path.display().to_string());
    line("architecture", config.architecture.clone());
    let cost = report.footprint.token_cost;
    let of_token = match config.experts {
        Some(_) => format!(", {} of them for a token", HumanCount(cost.layer_weights + cost.head_weights)),
        None => String::new(),
    };
    line("parameters", format!("{}{of_token}", HumanCount(report.footprint.num_parameters())));
    line("layers", config.num_hidden_layers.to_string());
    line(
        "attention",
        format!(
            "{} heads, {} key and value heads, {} wide",
            config.num_attention_heads, config.num_key_value_heads, config.head_dim
        ),
    );
    line("window", window(config));
    line("positions", positions(config));
    line("hidden size", config.hidden_size.to_string());
    match config.experts {
        None => line("MLP", format!("{} wide, {}", config.intermediate_size, activation(config))),
        Some(experts) => line(
            "experts",
            format!(
                "{}, {} of them a token, {} wide, {}",
                experts.num_experts,
                experts.per_token,
                experts.intermediate_size,
                activation(config)
            ),
        ),
    }
    line("vocabulary", vocabulary(config, report.tokenizer.as_ref()));
    line("context", format!("{} tokens", HumanCount(report.max_model_len as u64)));
    line("weights", weights(report));
    line("KV cache", kv_cache(report));
    line(
        "tokenizer",
        report.tokenizer.as_ref().map_or("none: there is no tokenizer.json, which the engine needs".into(), tokenizer),
    );
    line("end tokens", end_tokens(report));
    line(
        "chat template",
        report.chat_template.as_ref().map_or("none".into(), |template| {
            let verb = if template.takes_system_role { "takes" } else { "does not take" };
            format!("{verb} a system role; {}", template.first_line)
        }),
    );
    match report.problems.as_slice() {
        [] => line("supported", "yes".into()),
        problems => problems.iter().for_each(|problem| line("not supported", problem.to_string())),
    }
    text
}

fn kv_cache(report: &ModelReport) -> String {
    let mut text = format!(
        "{} a token in {}, {} for a sequence of the whole context",
        BinaryBytes(report.kv_bytes_per_token),
        report.kv_dtype,
        BinaryBytes(report.kv_bytes_per_sequence())
    );
    if report.layers.groups().iter().any(|group| group.window.is_some()) {
        text += ", as layers with a window keep no more than that";
    }
    if let Some(bytes) = report.kv_cache_bytes {
        let tokens = match report.kv_tokens(bytes) {
            usize::MAX => "any number of".into(),
            tokens => HumanCount(tokens as u64).to_string(),
        };
        let _ = write!(text, "; {} hold {tokens} tokens of one sequence", BinaryBytes(bytes as u64));
    }
    text
}

fn window(config: &ModelConfig) -> String {
    let windows: Vec<usize> = config.sliding_window.iter().flatten().copied().collect();
    match windows.iter().max() {
        None => "none".into(),
        Some(tokens) if windows.len() == config.num_hidden_layers => format!("{tokens} tokens in every layer"),
        Some(tokens) => format!("{tokens} tokens in {} layers of {}", windows.len(), config.num_hidden_layers),
    }
}

fn positions(config: &ModelConfig) -> String {
    let RopeConfig { rope_theta, rotary_dim, scaling } = &config.rope;
    let scaling = match scaling {
        RopeScaling::Default => "not scaled".into(),
        RopeScaling::Linear { factor } => format!("scaled linearly by {factor}"),
        RopeScaling::Llama3 { factor, original_max_position_embeddings, .. } => {
            format!("scaled by {factor} as Llama 3, from {original_max_position_embeddings} tokens")
        }
        RopeScaling::Yarn(yarn) => {
            format!("scaled by {} by YaRN, from {} tokens", yarn.factor, yarn.original_max_position_embeddings)
        }
        RopeScaling::Factors(_) => "scaled by factors of the file".into(),
        RopeScaling::Long(long) => {
            let (short_len, factor) = (long.original_max_position_embeddings, long.attention_factor);
            format!(
                "longrope: one set of factors up to {short_len} tokens, another in longer sequences, attention by {factor}"
            )
        }
    };
    let local = config.local_rope.as_ref();
    let local = local.map_or(String::new(), |rope| format!("; theta {} in layers with a window", rope.rope_theta));
    let still = match config.rope_layers.iter().filter(|turns| !**turns).count() {
        0 => String::new(),
        layers => format!("; none in {layers} layers"),
    };
    format!("RoPE of {rotary_dim} dimensions, theta {rope_theta}, {scaling}{local}{still}")
}

fn activation(config: &ModelConfig) -> &'static str {
    match config.hidden_act {
        Activation::Silu => "SiLU",
        Activation::GeluTanh => "GELU (tanh)",
        Activation::ClampedSwiglu => "SwiGLU (clamped)",
    }
}

fn vocabulary(config: &ModelConfig, tokenizer: Option<&TokenizerReport>) -> String {
    match tokenizer {
        None => config.vocab_size.to_string(),
        Some(tokenizer) => format!("{}; the tokenizer has {}", config.vocab_size, tokenizer.vocab_size),
    }
}

fn weights(report: &ModelReport) -> String {
    let group = |g: &WeightGroup| format!("{} {} in {} tensors", BinaryBytes(g.bytes), g.dtype, g.num_tensors);
    let groups: Vec<String> = report.footprint.groups.iter().map(group).collect();
    format!("{} in memory: {}", BinaryBytes(report.footprint.memory_bytes()), groups.join(", "))
}

fn tokenizer(tokenizer: &TokenizerReport) -> String {
    let special = |(role, token, id): &(String, String, Option<u32>)| {
        format!("{role} {token}{}", id.map_or(String::new(), |id| format!(" ({id})")))
    };
    let special: Vec<String> = tokenizer.special_tokens.iter().map(special).collect();
    format!("{}; {}", tokenizer.kind, special.join(", "))
}

fn end_tokens(report: &ModelReport) -> String {
    let spelled = |(id, token): &(u32, Option<String>)| match token {
        Some(token) => format!("{token} ({id})"),
        None => id.to_string(),
    };
    let tokens: Vec<String> = report.end_tokens.iter().map(spelled).collect();
    if tokens.is_empty() { "none".into() } else { tokens.join(", ") }
}

/// The report for programs. Sizes are in bytes.
pub(super) fn to_json(report: &ModelReport) -> Value {
    let config = &report.config;
    let group = |g: &WeightGroup| json!({"dtype": g.dtype.to_string(), "tensors": g.num_tensors, "parameters": g.num_parameters, "bytes": g.bytes});
    let special_token =
        |(role, token, id): &(String, String, Option<u32>)| (role.clone(), json!({"token": token, "id": id}));
    json!({
        "path": report.path.display().to_string(),
        "architecture": config.architecture,
        "parameters": report.footprint.num_parameters(),
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "experts": config.experts.map(|experts| json!({
            "num_experts": experts.num_experts,
            "per_token": experts.per_token,
            "intermediate_size": experts.intermediate_size,
        })),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_model_len": report.max_model_len,
        "sliding_window": config.sliding_window,
        "weight_bytes": report.footprint.memory_bytes(),
        "weights": report.footprint.groups.iter().map(group).collect::<Vec<_>>(),
        "kv_cache_dtype": report.kv_dtype.name(),
        "kv_bytes_per_token": report.kv_bytes_per_token,
        "kv_bytes_per_sequence": report.kv_bytes_per_sequence(),
        "kv_cache_bytes": report.kv_cache_bytes,
        "kv_tokens": report.kv_cache_bytes.map(|bytes| report.kv_tokens(bytes)),
        "tokenizer": report.tokenizer.as_ref().map(|tokenizer| json!({
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "special_tokens": tokenizer.special_tokens.iter().map(special_token).collect::<Map<_, _>>(),
        })),
        "end_tokens": report.end_tokens.iter().map(|(id, token)| json!({"id": id, "token": token})).collect::<Vec<_>>(),
        "chat_template": report.chat_template.as_ref().map(|template| json!({
            "first_line": template.first_line,
            "takes_system_role": template.takes_system_role,
        })),
        "is_supported": report.problems.is_empty(),
        "problems": report.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
