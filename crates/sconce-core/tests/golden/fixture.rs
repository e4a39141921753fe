//! [`Fixture`]: a model directory with golden outputs beside it.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sconce_core::backend::cpu::CpuBackend;
use sconce_core::config::AdapterSource;
use sconce_core::models::{self, RawConfig};
use serde_json::Value;

pub(crate) struct Fixture {
    /// Its family and its own name: `golden/llama`.
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    /// Where its golden outputs are.
    golden: PathBuf,
    logits: Vec<u8>,
    /// The adapter that they went through, if there was one.
    pub(crate) adapter: Option<String>,
}

pub(crate) struct Prompt {
    /// `completion` or `chat`.
    pub(crate) kind: String,
    pub(crate) text: String,
    pub(crate) input_ids: Vec<u32>,
}

pub(crate) struct GreedyCase {
    pub(crate) prompt: usize,
    pub(crate) max_new_tokens: usize,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) repetition_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) output_ids: Vec<u32>,
    pub(crate) is_stopped: bool,
    pub(crate) token_logprobs: Option<Vec<f32>>,
}

fn root() -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join("../..")
}

/// The fixtures whose architecture is in the registry; the others are named.
pub(crate) fn supported() -> Vec<Fixture> {
    let root = root();
    let mut dirs = Vec::new();
    for family in [root.join("tests/golden"), root.join("../shared/fixtures")] {
        let entries = std::fs::read_dir(family).into_iter().flatten().flatten().map(|e| e.path());
        dirs.extend(entries.filter(|d| d.join("golden/logits.safetensors").exists()));
    }
    dirs.sort();
    let open = |dir: PathBuf| {
        let part = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let name = format!("{}/{}", part(dir.parent().unwrap()), part(&dir));
        let raw = RawConfig::from_dir(&dir).unwrap();
        if models::find::<CpuBackend>(&raw).is_err() {
            println!("skipped: {name} ({} is not supported)", raw.architecture().unwrap());
            return None;
        }
        let golden = dir.join("golden");
        let logits = std::fs::read(golden.join("logits.safetensors")).unwrap();
        Some(Fixture { name, dir, golden, logits, adapter: None })
    };
    dirs.into_iter().filter_map(open).collect()
}

impl Fixture {
    pub(crate) fn prompts(&self) -> Vec<Prompt> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let prompt =
            |p: &Value| Prompt { kind: text(&p["kind"]), text: text(&p["text"]), input_ids: numbers(&p["input_ids"]) };
        self.json("prompts.json").as_array().unwrap().iter().map(prompt).collect()
    }

    /// The same with another model, in `dir`: what is golden is that of the fixture's own.
    pub(crate) fn with_model(&self, dir: PathBuf) -> Self {
        let (golden, logits) = (dir.join("golden"), self.logits.clone());
        Self { name: self.name.clone(), dir, golden, logits, adapter: None }
    }

    /// The same through each adapter that there is for it, as `scripts/make_adapters.py` describes them.
    pub(crate) fn adapters(&self) -> Vec<Self> {
        let folder = root().join("tests/golden/lora");
        let manifest: Value = serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
        let adapters = manifest["adapters"].as_object().unwrap().iter();
        let own = adapters.filter(|(_, entry)| self.name == format!("golden/{}", entry["model"].as_str().unwrap()));
        let of = |name: &str| {
            let golden = folder.join(name);
            let logits = std::fs::read(golden.join("logits.safetensors")).unwrap();
            let (name, adapter) = (format!("{} through {name}", self.name), Some(name.to_owned()));
            Self { name, dir: self.dir.clone(), golden, logits, adapter }
        };
        own.map(|(name, _)| of(name)).collect()
    }

    /// Where its adapter is.
    pub(crate) fn adapter_source(&self) -> AdapterSource {
        let name = self.adapter.clone().unwrap();
        AdapterSource { origin: name.clone(), name, path: self.golden.clone() }
    }

    /// Whether it is stored in a quantized form.
    pub(crate) fn is_quantized(&self) -> bool {
        let config: Value = serde_json::from_slice(&std::fs::read(self.dir.join("config.json")).unwrap()).unwrap();
        config["quantization_config"].is_object()
    }

    /// [tokens, vocab] of a prompt.
    pub(crate) fn logits(&self, prompt: usize) -> Vec<f32> {
        self.tensor(&format!("prompt{prompt}.logits"))
    }

    /// What the residual stream is multiplied with to be transformers' hidden states.
    #[allow(dead_code, reason = "of those who share this file one asks")]
    pub(crate) fn residual_multiplier(&self) -> f32 {
        let config: Value = serde_json::from_slice(&std::fs::read(self.dir.join("config.json")).unwrap()).unwrap();
        config["residual_multiplier"].as_f64().unwrap_or(1.0) as f32
    }

    /// [tokens, hidden] of prompt 0 before layer `k`.
    pub(crate) fn hidden(&self, k: usize) -> Vec<f32> {
        self.tensor(&format!("prompt0.hidden{k}"))
    }

    pub(crate) fn greedy(&self) -> Vec<GreedyCase> {
        let case = |case: &Value| {
            let number = |key: &str, default: f64| case[key].as_f64().unwrap_or(default) as f32;
            let ignores_eos = case["ignore_eos"].as_bool().unwrap_or(false);
            let mut stop_token_ids = numbers(&case["stop_token_ids"]);
            if !ignores_eos {
                stop_token_ids.extend(numbers(&case["eos_token_ids"]));
            }
            GreedyCase {
                prompt: case["prompt"].as_u64().unwrap() as usize,
                max_new_tokens: case["max_new_tokens"].as_u64().unwrap() as usize,
                stop_token_ids,
                repetition_penalty: number("repetition_penalty", 1.0),
                presence_penalty: number("presence_penalty", 0.0),
                frequency_penalty: number("frequency_penalty", 0.0),
                output_ids: numbers(&case["output_ids"]),
                is_stopped: case["finish_reason"] != "length",
                token_logprobs: case["token_logprobs"].as_array().map(|l| l.iter().map(float).collect()),
            }
        };
        self.json("greedy.json").as_array().unwrap().iter().map(case).collect()
    }

    /// The same, if it is there.
    #[allow(dead_code, reason = "of those who share this file one asks")]
    pub(crate) fn opt_json(&self, name: &str) -> Option<Value> {
        self.golden.join(name).exists().then(|| self.json(name))
    }

    /// A file of the `golden` folder.
    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.golden.join(name)).unwrap()).unwrap()
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.logits).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// A list of ids; none where it is absent.
pub(crate) fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn float(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}
