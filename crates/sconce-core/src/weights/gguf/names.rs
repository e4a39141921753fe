//! Hugging Face names to GGUF names, a table an architecture, and what the conversion did to the data.

/// Bytes in a GGUF that differ from those of the Hugging Face tensor, and how to get back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::weights) enum Stored {
    /// The same.
    Same,
    /// Rows of every query head are interleaved for a RoPE that turns neighbours: row 2i + j of a
    /// head is row j * half + i of the Hugging Face tensor, where a head is two halves.
    InterleavedQ,
    /// The same with key heads.
    InterleavedK,
    /// One was added to every element.
    PlusOne,
    /// The query rows of a fused q, k, v tensor.
    RowsQ,
    /// The key rows of a fused q, k, v tensor.
    RowsK,
    /// The value rows of a fused q, k, v tensor.
    RowsV,
    /// One of the matrices of a tensor of three dimensions, [experts, rows, cols].
    Expert,
}
use Stored::{Expert, InterleavedK, InterleavedQ, PlusOne, RowsK, RowsQ, RowsV, Same};

/// Where a tensor may be in a GGUF.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::weights) struct Place {
    pub(in crate::weights) name: String,
    pub(in crate::weights) stored: Stored,
    /// Of [`Stored::Expert`], which one.
    pub(in crate::weights) expert: usize,
}

/// (Hugging Face, GGUF, how it is stored), without layer prefix and without `.weight`, `.bias` or `.sinks`; `*` is an expert's number.
/// A name that occurs twice may be in either place.
type Row = (&'static str, &'static str, Stored);

/// The names of one architecture, as `general.architecture` spells it.
#[derive(Debug)]
pub(in crate::weights) struct Names {
    architecture: &'static str,
    /// After `model.layers.N.` and `blk.N.`.
    layer: &'static [&'static [Row]],
    /// Whole names.
    global: &'static [Row],
}

const GLOBAL: &[Row] =
    &[("model.embed_tokens", "token_embd", Same), ("model.norm", "output_norm", Same), ("lm_head", "output", Same)];
/// A layer's two norms.
const NORMS: &[Row] = &[("input_layernorm", "attn_norm", Same), ("post_attention_layernorm", "ffn_norm", Same)];
const ATTENTION: &[Row] = &[
    ("self_attn.q_proj", "attn_q", Same),
    ("self_attn.k_proj", "attn_k", Same),
    ("self_attn.v_proj", "attn_v", Same),
    ("self_attn.o_proj", "attn_output", Same),
];
const HEAD_NORMS: &[Row] = &[("self_attn.q_norm", "attn_q_norm", Same), ("self_attn.k_norm", "attn_k_norm", Same)];
const MLP: &[Row] =
    &[("mlp.gate_proj", "ffn_gate", Same), ("mlp.up_proj", "ffn_up", Same), ("mlp.down_proj", "ffn_down", Same)];
const EXPERTS: &[Row] = &[
    ("mlp.experts.*.gate_proj", "ffn_gate_exps", Expert),
    ("mlp.experts.*.up_proj", "ffn_up_exps", Expert),
    ("mlp.experts.*.down_proj", "ffn_down_exps", Expert),
];

const GEMMA_GLOBAL: &[Row] =
    &[("model.embed_tokens", "token_embd", Same), ("model.norm", "output_norm", PlusOne), ("lm_head", "output", Same)];
const GEMMA_NORMS: &[Row] = &[
    ("input_layernorm", "attn_norm", PlusOne),
    ("post_attention_layernorm", "post_attention_norm", PlusOne),
    ("pre_feedforward_layernorm", "ffn_norm", PlusOne),
    ("post_feedforward_layernorm", "post_ffw_norm", PlusOne),
];
const GEMMA_HEAD_NORMS: &[Row] =
    &[("self_attn.q_norm", "attn_q_norm", PlusOne), ("self_attn.k_norm", "attn_k_norm", PlusOne)];

/// Norms of what a layer's parts give.
const OLMO2_NORMS: &[Row] =
    &[("post_attention_layernorm", "post_attention_norm", Same), ("post_feedforward_layernorm", "post_ffw_norm", Same)];
const GLM4: &[Row] = &[
    ("post_self_attn_layernorm", "post_attention_norm", Same),
    ("post_mlp_layernorm", "post_ffw_norm", Same),
    ("mlp.gate_up_proj", "ffn_up", Same),
    ("mlp.down_proj", "ffn_down", Same),
];
const GEMMA1_NORMS: &[Row] =
    &[("input_layernorm", "attn_norm", PlusOne), ("post_attention_layernorm", "ffn_norm", PlusOne)];

const INTERLEAVED_ATTENTION: &[Row] = &[
    ("self_attn.q_proj", "attn_q", InterleavedQ),
    ("self_attn.k_proj", "attn_k", InterleavedK),
    ("self_attn.v_proj", "attn_v", Same),
    ("self_attn.o_proj", "attn_output", Same),
];
/// Mixtral's; older conversions have a tensor of each.
const SPARSE_MOE: &[Row] = &[
    ("block_sparse_moe.gate", "ffn_gate_inp", Same),
    ("block_sparse_moe.experts.*.w1", "ffn_gate_exps", Expert),
    ("block_sparse_moe.experts.*.w1", "ffn_gate.*", Same),
    ("block_sparse_moe.experts.*.w2", "ffn_down_exps", Expert),
    ("block_sparse_moe.experts.*.w2", "ffn_down.*", Same),
    ("block_sparse_moe.experts.*.w3", "ffn_up_exps", Expert),
    ("block_sparse_moe.experts.*.w3", "ffn_up.*", Same),
];

const GPT_OSS: &[Row] = &[
    ("input_layernorm", "attn_norm", Same),
    ("self_attn", "attn_sinks", Same),
    ("post_attention_layernorm", "post_attention_norm", Same),
    ("mlp.router", "ffn_gate_inp", Same),
];
const PHI3: &[Row] = &[
    ("self_attn.qkv_proj", "attn_qkv", Same),
    ("self_attn.o_proj", "attn_output", Same),
    ("mlp.gate_up_proj", "ffn_up", Same),
    ("mlp.down_proj", "ffn_down", Same),
];
/// Older conversions have q, k and v fused, newer ones apart.
const PHI2: &[Row] = &[
    ("input_layernorm", "attn_norm", Same),
    ("self_attn.q_proj", "attn_q", Same),
    ("self_attn.q_proj", "attn_qkv", RowsQ),
    ("self_attn.k_proj", "attn_k", Same),
    ("self_attn.k_proj", "attn_qkv", RowsK),
    ("self_attn.v_proj", "attn_v", Same),
    ("self_attn.v_proj", "attn_qkv", RowsV),
    ("self_attn.dense", "attn_output", Same),
    ("mlp.fc1", "ffn_up", Same),
    ("mlp.fc2", "ffn_down", Same),
];
const PHI2_GLOBAL: &[Row] = &[
    ("model.embed_tokens", "token_embd", Same),
    ("model.final_layernorm", "output_norm", Same),
    ("lm_head", "output", Same),
];

const ARCHITECTURES: &[Names] = &[
    // Llama, Mistral and Mixtral.
    Names { architecture: "llama", layer: &[NORMS, INTERLEAVED_ATTENTION, MLP, SPARSE_MOE], global: GLOBAL },
    Names { architecture: "smollm3", layer: &[NORMS, INTERLEAVED_ATTENTION, MLP], global: GLOBAL },
    Names { architecture: "granite", layer: &[NORMS, INTERLEAVED_ATTENTION, MLP], global: GLOBAL },
    // OLMo 2 and 3.
    Names { architecture: "olmo2", layer: &[OLMO2_NORMS, ATTENTION, HEAD_NORMS, MLP], global: GLOBAL },
    Names { architecture: "glm4", layer: &[NORMS, GLM4, ATTENTION], global: GLOBAL },
    Names { architecture: "command-r", layer: &[NORMS, ATTENTION, MLP], global: GLOBAL },
    Names { architecture: "cohere2", layer: &[NORMS, ATTENTION, MLP], global: GLOBAL },
    Names { architecture: "gemma", layer: &[GEMMA1_NORMS, ATTENTION, MLP], global: GEMMA_GLOBAL },
    Names { architecture: "gemma2", layer: &[GEMMA_NORMS, ATTENTION, MLP], global: GEMMA_GLOBAL },
    Names { architecture: "gemma3", layer: &[GEMMA_NORMS, ATTENTION, GEMMA_HEAD_NORMS, MLP], global: GEMMA_GLOBAL },
    Names { architecture: "qwen2", layer: &[NORMS, ATTENTION, MLP], global: GLOBAL },
    Names { architecture: "qwen3", layer: &[NORMS, ATTENTION, HEAD_NORMS, MLP], global: GLOBAL },
    Names {
        architecture: "qwen3moe",
        layer: &[NORMS, ATTENTION, HEAD_NORMS, &[("mlp.gate", "ffn_gate_inp", Same)], EXPERTS],
        global: GLOBAL,
    },
    Names { architecture: "gpt-oss", layer: &[GPT_OSS, ATTENTION, EXPERTS], global: GLOBAL },
    Names { architecture: "phi3", layer: &[NORMS, PHI3], global: GLOBAL },
    Names { architecture: "phi2", layer: &[PHI2], global: PHI2_GLOBAL },
];

impl Names {
    /// The names of `architecture`.
    pub(in crate::weights) fn of(architecture: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|names| names.architecture == architecture)
    }

    /// Every architecture that has names here, for messages.
    pub(in crate::weights) fn architectures() -> String {
        ARCHITECTURES.iter().map(|names| names.architecture).collect::<Vec<_>>().join(", ")
    }

    /// The places where the Hugging Face tensor `name` may be, the likeliest first. A name that is
    /// not of the architecture stands for itself: `rope_freqs.weight`.
    pub(in crate::weights) fn places(&self, name: &str) -> Vec<Place> {
        let places = self.known_places(name).unwrap_or_default();
        if places.is_empty() { vec![Place { name: name.to_owned(), stored: Same, expert: 0 }] } else { places }
    }

    fn known_places(&self, name: &str) -> Option<Vec<Place>> {
        let (stem, kind) = name.rsplit_once('.')?;
        // What is no part of any other in a GGUF.
        let kind = if kind == "sinks" { "weight" } else { kind };
        let (tables, prefix, stem) = match stem.strip_prefix("model.layers.") {
            None => (std::slice::from_ref(&self.global), String::new(), stem),
            Some(rest) => {
                let (layer, stem) = rest.split_once('.')?;
                (self.layer, format!("blk.{layer}."), stem)
            }
        };
        let place = |&(hf, gguf, stored): &Row| {
            let number = number_in(stem, hf)?;
            let name = format!("{prefix}{}.{kind}", gguf.replace('*', number));
            Some(Place { name, stored, expert: number.parse().unwrap_or(0) })
        };
        Some(tables.iter().copied().flatten().filter_map(place).collect())
    }
}

/// What `*` of `pattern` stands for in `stem`, nothing where there is no `*`. `None`: they do not match.
fn number_in<'a>(stem: &'a str, pattern: &str) -> Option<&'a str> {
    let Some((head, tail)) = pattern.split_once('*') else { return (pattern == stem).then_some("") };
    let number = stem.strip_prefix(head)?.strip_suffix(tail)?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
}
