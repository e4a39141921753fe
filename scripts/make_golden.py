#!/usr/bin/env python3
"""The golden fixtures of tests/golden: tiny random models, and what transformers computes with them in float32.

Run by hand, never by CI:

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.23.0
    venv/bin/python scripts/make_golden.py [NAME ...]

Each fixture is one model directory as a hub would hold it (config.json, generation_config.json, tokenizer.json,
tokenizer_config.json, model.safetensors or two shards with an index) and a folder `golden`:

prompts.json         three {kind, text, messages?, add_special_tokens, input_ids, n_tokens}
logits.safetensors   prompt{i}.logits [tokens, vocab] at every position; prompt0.hidden{k} [tokens, hidden]: 0 is the
                     embedding, 1.. after each layer, the last after the final norm
greedy.json          greedy continuations, some with penalties, end tokens or stop ids; output_ids hold the end token
beam.json            beam searches, best hypothesis first; score = sum of log-probabilities / tokens^length_penalty
tokenizer.json       texts, their ids, and the text of those ids as a whole and token by token
chat.json            conversations, their rendered text and ids, or the template's refusal

Weights are rounded to the type in which they are stored and computed with in float32. Seeds are tried in order until
no greedy step is nearly a tie, nor a prompt's choice of experts, a continuation meets an end token, and so does a beam;
a beam search is kept only if noise on every log-probability does not change it. What a fixture is meant to catch is in
`mutations`: config entries that are changed, whereupon the logits must change. Where an entry has `stored`, weights are packed once all
is computed, and config.json says so. manifest.json has versions, seeds and the files' sha256.
"""

import argparse
import hashlib
import json
import pathlib
import shutil

import safetensors.torch
import tokenizers
import torch
import transformers
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

from golden_text import TOKENIZERS, VOCAB_SIZE

VERSIONS = {"torch": "2.15.0", "transformers": "5.23.0"}
OUTPUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"

HELLO = {"role": "user", "content": "Hello!"}
ANSWER = {"role": "assistant", "content": "Hi."}
QUESTION = {"role": "user", "content": " And the sea? "}
SYSTEM = {"role": "system", "content": "Be brief."}

COMPLETIONS = ["The old man", "The boat sails to the naïve 🙂 island; 25 stars."]
CONVERSATIONS = {
    "three turns": [HELLO, ANSWER, QUESTION],
    "system": [SYSTEM, HELLO, ANSWER, QUESTION],
    "one turn": [HELLO],
    "two users": [HELLO, QUESTION],
    "assistant first": [ANSWER, QUESTION],
    "unknown role": [HELLO, {"role": "parrot", "content": "Hello!"}],
}
TEXTS = ["The boat sails", "  two  spaces", "naïve café 日本 🙂", "tab\tand\nline\n\n", "👩‍👧 zwj", "aaaaa", "", " \n ",
         "¿Ærø? ελ", "a <s> </s> <bos> <|done|> b"]

ROUTER_SCALE = 4.0  # of experts' logits, so that few are nearly ties
GREEDY_TOKENS, PENALTY_TOKENS, BEAM_TOKENS = 24, 16, 12
MIN_MARGIN = 0.01  # between the two best logits of a greedy step
NOISE = 3e-4  # on log-probabilities, which must not change a beam search
MIN_SHIFT = 0.05  # of some logit, by every mutation
MIN_ROUTER_MARGIN = 0.04  # between the logits of a prompt's last expert that is taken and the first that is not

COMMON = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
          "max_position_embeddings": 128, "vocab_size": VOCAB_SIZE, "attention_dropout": 0.0, "use_cache": True}
UNTIED = {**COMMON, "tie_word_embeddings": False, "hidden_act": "silu", "rms_norm_eps": 1e-5}

MODELS = {
    # 256 is the one query_pre_attn_scalar of small models that a GGUF can stand for.
    "gemma2": {
        "class": "Gemma2ForCausalLM", "dtype": torch.bfloat16, "seed": 1000,
        "config": {**COMMON, "num_hidden_layers": 4, "head_dim": 12, "query_pre_attn_scalar": 256, "sliding_window": 6,
                   "attn_logit_softcapping": 3.0, "final_logit_softcapping": 15.0, "hidden_act": "gelu_pytorch_tanh",
                   "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                   "attention_bias": False},
        "mutations": [{"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"sliding_window": 7},
                      {"query_pre_attn_scalar": 12}, {"rope_theta": 5000.0},
                      {"layer_types": ["full_attention", "sliding_attention"] * 2}],
    },
    "gemma3": {
        "class": "Gemma3ForCausalLM", "model_type": "gemma3_text", "dtype": torch.bfloat16, "seed": 7200,
        "config": {**COMMON, "num_hidden_layers": 6, "head_dim": 12, "query_pre_attn_scalar": 256, "sliding_window": 6,
                   "sliding_window_pattern": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None,
                   "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False,
                   "rope_theta": 500.0, "rope_local_base_freq": 10000.0,
                   "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "mutations": [{"sliding_window": 7}, {"sliding_window_pattern": 2}, {"query_pre_attn_scalar": 12},
                      {"rope_theta": 10000.0}, {"rope_local_base_freq": 500.0}, {"rope_scaling": None}],
    },
    "mistral": {
        "class": "MistralForCausalLM", "dtype": torch.float32, "seed": 2000,
        "config": {**UNTIED, "num_hidden_layers": 2, "sliding_window": None, "rope_theta": 1000000.0},
        "mutations": [{"sliding_window": 16}, {"rope_theta": 10000.0}],
    },
    "mistral-swa": {
        "class": "MistralForCausalLM", "dtype": torch.bfloat16, "seed": 3000,
        "config": {**UNTIED, "num_hidden_layers": 3, "num_attention_heads": 8, "sliding_window": 7,
                   "rope_theta": 10000.0},
        "mutations": [{"sliding_window": None}, {"sliding_window": 6}, {"sliding_window": 8}],
    },
    "phi3": {
        "class": "Phi3ForCausalLM", "dtype": torch.bfloat16, "seed": 4000,
        "config": {**UNTIED, "num_hidden_layers": 3, "sliding_window": 9, "rope_theta": 10000.0, "rope_scaling": None,
                   "original_max_position_embeddings": 128, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
                   "attention_bias": False, "pad_token_id": 0},
        "mutations": [{"sliding_window": None}, {"sliding_window": 8}, {"sliding_window": 10}],
    },
    # Shorter sequences than 29 tokens turn by other angles than longer ones: the first two prompts are continued beyond
    # that, the third begins there.
    "phi3-long": {
        "class": "Phi3ForCausalLM", "dtype": torch.bfloat16, "seed": 7000,
        "config": {**COMMON, "hidden_size": 64, "num_hidden_layers": 2, "tie_word_embeddings": True,
                   "hidden_act": "silu", "rms_norm_eps": 1e-5, "sliding_window": None, "rope_theta": 10000.0,
                   "partial_rotary_factor": 0.75, "original_max_position_embeddings": 28, "embd_pdrop": 0.0,
                   "resid_pdrop": 0.0, "attention_bias": False, "pad_token_id": 0,
                   "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.05, 1.2, 1.4, 1.7, 2.0],
                                    "long_factor": [1.1, 1.6, 2.5, 4.0, 6.5, 9.0]}},
        "mutations": [{"original_max_position_embeddings": 40}, {"max_position_embeddings": 28},
                      {"partial_rotary_factor": 1.0, "rope_scaling": None}],
    },
    "llama": {
        "class": "LlamaForCausalLM", "dtype": torch.float32, "seed": 5000, "shards": 2,
        "config": {**UNTIED, "num_hidden_layers": 2, "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False,
                   "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 24}},
        "mutations": [{"rope_scaling": None}, {"rope_theta": 10000.0}],
    },
    # A GGUF does not say which layers turn: three of four.
    "smollm3": {
        "class": "SmolLM3ForCausalLM", "dtype": torch.bfloat16, "seed": 12000,
        "config": {**UNTIED, "num_hidden_layers": 5, "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False,
                   "no_rope_layers": [1, 1, 1, 0, 1], "no_rope_layer_interval": 4, "use_sliding_window": False,
                   "sliding_window": None, "pad_token_id": 0},
        "mutations": [{"no_rope_layers": [1] * 5}, {"no_rope_layers": [1, 1, 0, 1, 1]}, {"rope_theta": 100.0}],
    },
    "granite": {
        "class": "GraniteForCausalLM", "dtype": torch.bfloat16, "seed": 13000,
        "config": {**UNTIED, "num_hidden_layers": 3, "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False,
                   "rms_norm_eps": 0.05, "embedding_multiplier": 2.5, "attention_multiplier": 0.2,
                   "residual_multiplier": 0.6, "logits_scaling": 1.6},
        "mutations": [{"embedding_multiplier": 1.0}, {"attention_multiplier": 0.3}, {"residual_multiplier": 1.0},
                      {"logits_scaling": 1.0}, {"rms_norm_eps": 1e-5}],
    },
    "olmo2": {
        "class": "Olmo2ForCausalLM", "dtype": torch.bfloat16, "seed": 14000,
        "config": {**UNTIED, "num_hidden_layers": 3, "rope_theta": 10000.0, "attention_bias": False},
        "mutations": [{"rope_theta": 100.0}, {"rms_norm_eps": 0.1}],
    },
    "olmo3": {
        "class": "Olmo3ForCausalLM", "dtype": torch.bfloat16, "seed": 15000,
        "config": {**UNTIED, "num_hidden_layers": 5, "sliding_window": 6, "rope_theta": 500000.0, "attention_bias": False,
                   "layer_types": ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"],
                   "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.5,
                                    "original_max_position_embeddings": 32}},
        "mutations": [{"sliding_window": 5}, {"sliding_window": 7}, {"rope_scaling": None},
                      {"layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]}],
    },
    "glm4": {
        "class": "Glm4ForCausalLM", "dtype": torch.bfloat16, "seed": 16000,
        "config": {**UNTIED, "num_hidden_layers": 3, "head_dim": 16, "rope_theta": 10000.0, "attention_bias": True,
                   "partial_rotary_factor": 0.75, "pad_token_id": 0},
        "mutations": [{"partial_rotary_factor": 0.5}, {"rope_theta": 100.0}],
    },
    "glm": {
        "class": "GlmForCausalLM", "dtype": torch.bfloat16, "seed": 17000,
        "config": {**UNTIED, "num_hidden_layers": 2, "head_dim": 12, "rope_theta": 10000.0, "attention_bias": True,
                   "partial_rotary_factor": 0.5, "pad_token_id": 0},
        "mutations": [{"partial_rotary_factor": 1.0}, {"rope_theta": 100.0}],
    },
    "cohere2": {
        "class": "Cohere2ForCausalLM", "dtype": torch.bfloat16, "seed": 18000,
        "config": {**COMMON, "num_hidden_layers": 5, "tie_word_embeddings": True, "hidden_act": "silu",
                   "layer_norm_eps": 1e-5, "logit_scale": 0.5, "rope_theta": 10000.0, "attention_bias": False,
                   "sliding_window": 6, "sliding_window_pattern": 4, "pad_token_id": 0},
        "mutations": [{"sliding_window": 5}, {"sliding_window": 7}, {"logit_scale": 1.0}, {"rope_theta": 100.0},
                      {"sliding_window_pattern": 2}, {"layer_norm_eps": 0.1}],
    },
    "cohere": {
        "class": "CohereForCausalLM", "dtype": torch.bfloat16, "seed": 19000,
        "config": {**COMMON, "num_hidden_layers": 3, "tie_word_embeddings": True, "hidden_act": "silu",
                   "layer_norm_eps": 1e-5, "logit_scale": 0.5, "rope_theta": 10000.0, "attention_bias": False,
                   "use_qk_norm": False, "pad_token_id": 0},
        "mutations": [{"logit_scale": 1.0}, {"rope_theta": 100.0}, {"layer_norm_eps": 0.1}],
    },
    "gemma": {
        "class": "GemmaForCausalLM", "dtype": torch.bfloat16, "seed": 20000,
        "config": {**COMMON, "num_hidden_layers": 3, "head_dim": 12, "tie_word_embeddings": False,
                   "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                   "attention_bias": False},
        "mutations": [{"rope_theta": 100.0}, {"hidden_act": "silu"}, {"rms_norm_eps": 0.5}],
    },
    "qwen2": {
        "class": "Qwen2ForCausalLM", "dtype": torch.bfloat16, "seed": 8000,
        "config": {**UNTIED, "num_hidden_layers": 3, "rope_theta": 100.0, "sliding_window": 6,
                   "use_sliding_window": False, "max_window_layers": 1,
                   "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
        "mutations": [{"use_sliding_window": True}, {"rope_theta": 10000.0}, {"rope_scaling": None}],
    },
    "qwen3": {
        "class": "Qwen3ForCausalLM", "dtype": torch.bfloat16, "seed": 9000,
        "config": {**UNTIED, "num_hidden_layers": 3, "head_dim": 12, "rope_theta": 10000.0, "attention_bias": False,
                   "use_sliding_window": False},
        "mutations": [{"rope_theta": 100.0}, {"rms_norm_eps": 0.1}],
    },
    # Experts are as wide as a block, so that they are in blocks too. What is generated goes on with more bytes that are no
    # text than a stream holds back.
    "mixtral": {
        "class": "MixtralForCausalLM", "dtype": torch.bfloat16, "seed": 7200, "num_streamed": 12,
        "config": {**UNTIED, "intermediate_size": 32, "num_hidden_layers": 2, "num_local_experts": 6,
                   "num_experts_per_tok": 2, "sliding_window": None, "rope_theta": 1000000.0,
                   "output_router_logits": False, "router_aux_loss_coef": 0.0, "router_jitter_noise": 0.0},
        "mutations": [{"num_experts_per_tok": 1}, {"num_experts_per_tok": 3}, {"rope_theta": 10000.0}],
    },
    "qwen3-moe": {
        "class": "Qwen3MoeForCausalLM", "model_type": "qwen3_moe", "dtype": torch.bfloat16, "seed": 10357,
        "config": {**UNTIED, "num_hidden_layers": 2, "head_dim": 12, "rope_theta": 10000.0, "attention_bias": False,
                   "use_sliding_window": False, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                   "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
                   "output_router_logits": False, "router_aux_loss_coef": 0.0},
        "mutations": [{"norm_topk_prob": False}, {"num_experts_per_tok": 1}, {"num_experts_per_tok": 3}],
    },
    # Gates and ups beyond the limit; experts' numbers are those of MXFP4, in which they are stored in the end.
    "gpt-oss": {
        "class": "GptOssForCausalLM", "model_type": "gpt_oss", "dtype": torch.bfloat16, "seed": 11000,
        "config": {**UNTIED, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 16, "num_local_experts": 4,
                   "num_experts_per_tok": 2, "sliding_window": 6, "attention_bias": True, "rope_theta": 1000.0,
                   "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.5,
                                    "truncate": False, "original_max_position_embeddings": 32},
                   "swiglu_limit": 7.0, "output_router_logits": False, "router_aux_loss_coef": 0.0},
        "stored": {"quantization_config": {
            "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                                "model.embed_tokens", "lm_head"]}},
        "mutations": [{"sliding_window": 5}, {"sliding_window": 7}, {"num_experts_per_tok": 1},
                      {"num_experts_per_tok": 3}, {"swiglu_limit": 100.0}, {"rope_theta": 10000.0},
                      {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
                      {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.5,
                                        "truncate": True, "original_max_position_embeddings": 32}}],
    },
    # More rows of logits than the tokenizer has tokens.
    "phi": {
        "class": "PhiForCausalLM", "dtype": torch.float16, "seed": 6000,
        "config": {**COMMON, "hidden_size": 40, "intermediate_size": 96, "num_hidden_layers": 2,
                   "num_key_value_heads": 4, "vocab_size": VOCAB_SIZE + 8, "tie_word_embeddings": False,
                   "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.4, "rope_theta": 10000.0,
                   "rope_scaling": None, "qk_layernorm": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
        "mutations": [{"partial_rotary_factor": 0.8}, {"hidden_act": "silu"}],
    },
}


def random_weights(model, seed, is_gemma):
    """Weights that make hidden states of about 1, sharp attention, and logits spread by about 3.

    A tied embedding would repeat the last token for ever, were its blocks not to add much more to it.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden, num_layers = model.config.hidden_size, model.config.num_hidden_layers
    weights = {}
    for name, old in model.state_dict().items():
        noise = torch.randn(old.shape, generator=generator)
        if name.endswith((".bias", "_bias")):
            weights[name] = 0.3 * noise
        elif name.endswith(".sinks"):
            weights[name] = 2.0 * noise + 1.0
        elif model.config.model_type == "gpt_oss" and ".experts." in name:
            # Columns first.
            scale = 4.0 if "gate_up" in name else 0.15
            weights[name] = mxfp4_numbers(*mxfp4(noise.transpose(1, 2) * scale / old.shape[1] ** 0.5)).transpose(1, 2)
        elif "q_norm" in name or "k_norm" in name:
            weights[name] = 0.2 * noise + 2.0
        elif is_gemma and "norm" in name:
            is_of_output = "post_" in name and model.config.model_type != "gemma"
            weights[name] = 0.2 * noise + (112.0 / num_layers**2 if is_of_output else 0.0)
        elif "norm" in name:
            weights[name] = 0.2 * noise + 1.0
        elif "embed" in name:
            weights[name] = noise * (3 / hidden**0.5 if model.config.tie_word_embeddings else 1.0)
        elif name == "lm_head.weight":
            weights[name] = noise * 3 / hidden**0.5
        else:
            is_query_or_key = any(part in name for part in ("q_proj", "k_proj", "qkv_proj"))
            scale = 2.5 if is_query_or_key else ROUTER_SCALE if name.endswith(("mlp.gate.weight", "mlp.router.weight")) else 1.0
            weights[name] = noise * scale / old.shape[-1] ** 0.5
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return as_hubs_have_them(weights, model.config.model_type)


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def mxfp4(matrices):
    """Codes [.., rows, cols / 32, 32] and exponents [.., rows, cols / 32] of matrices [.., rows, cols]."""
    blocks = matrices.unflatten(-1, (-1, 32))
    exponents = torch.frexp(blocks.abs().amax(-1)).exponent - 3 + 127
    scaled = blocks * torch.exp2(127.0 - exponents)[..., None]
    codes = (scaled.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (scaled < 0)
    return codes.to(torch.uint8), exponents.to(torch.uint8)


def mxfp4_numbers(codes, exponents):
    """What they stand for."""
    numbers = torch.cat([E2M1, -E2M1])[codes.int()] * torch.exp2(exponents.float() - 127.0)[..., None]
    return numbers.flatten(-2)


def as_stored(weights):
    """Experts' matrices in MXFP4, as the hub has them: of two neighbours in a byte the first has the low bits."""
    found = {}
    for name, weight in weights.items():
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            numbers = weight.float().transpose(1, 2)
            codes, exponents = mxfp4(numbers)
            assert (mxfp4_numbers(codes, exponents) == numbers).all(), name
            found[name + "_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
            found[name + "_scales"] = exponents
        else:
            found[name] = weight
    return {name: weight.contiguous() for name, weight in found.items()}


def as_hubs_have_them(weights, model_type):
    """transformers has the matrices of all experts in one tensor, checkpoints a tensor each; those of gpt-oss one too."""
    if model_type == "gpt_oss":
        return {name: weight.contiguous() for name, weight in weights.items()}
    is_mixtral = model_type == "mixtral"
    gate, up, down = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    found = {}
    for name, weight in weights.items():
        if is_mixtral:
            name = name.replace(".mlp.", ".block_sparse_moe.")
        prefix, part = name.rsplit(".", 1)
        if part == "gate_up_proj":
            for i, expert in enumerate(weight):
                for part, rows in zip((gate, up), expert.chunk(2)):
                    found[f"{prefix}.{i}.{part}.weight"] = rows.clone()
        elif part == "down_proj":
            found.update({f"{prefix}.{i}.{down}.weight": expert.clone() for i, expert in enumerate(weight)})
        else:
            found[name] = weight
    return found


@torch.no_grad()
def router_margin(model, prompts):
    """The least difference between logits of an expert that is taken and one that is not."""
    margins, per_token = [float("inf")], getattr(model.config, "num_experts_per_tok", None)
    def note(module, inputs, output):
        logits = output[0].sort(-1, descending=True).values
        margins.append((logits[:, per_token - 1] - logits[:, per_token]).min().item())
    routers = [module for name, module in model.named_modules() if per_token and name.endswith(("mlp.gate", "mlp.router"))]
    hooks = [router.register_forward_hook(note) for router in routers]
    for prompt in prompts:
        logits_of(model, prompt["input_ids"])
    for hook in hooks:
        hook.remove()
    return min(margins)


def save_weights(directory, weights, shards):
    """One file, or `shards` of them and an index."""
    if shards == 1:
        safetensors.torch.save_file(weights, directory / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = list(weights)[shard * len(weights) // shards : (shard + 1) * len(weights) // shards]
        safetensors.torch.save_file({name: weights[name] for name in names}, directory / file, {"format": "pt"})
        weight_map.update({name: file for name in names})
    total = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def load(directory, **changes):
    """The model as transformers loads it, computing in float32; `changes` replace config entries."""
    config = AutoConfig.from_pretrained(directory)
    if changes:
        entries = {**json.loads((directory / "config.json").read_text()), **changes}
        entries = {k: v for k, v in entries.items() if k not in ("architectures", "model_type", "torch_dtype")}
        config = type(config)(**entries)
    model = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def penalize(logits, prompt_ids, output_ids, penalties):
    """Repetition over prompt and output; presence and frequency over the output."""
    logits = logits.clone()
    repetition = penalties.get("repetition_penalty", 1.0)
    for token in set(prompt_ids + output_ids):
        logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
    for token in set(output_ids):
        count = output_ids.count(token)
        logits[token] -= penalties.get("presence_penalty", 0.0) + count * penalties.get("frequency_penalty", 0.0)
    return logits


def greedy(model, tokenizer, prompt, prompt_ids, case):
    """One entry of greedy.json; `case` has what is asked for."""
    ends = case.get("stop_token_ids", []) + ([] if case["ignore_eos"] else case["eos_token_ids"])
    output, logprobs, margin, reason = [], [], float("inf"), "length"
    while len(output) < case["max_new_tokens"] and reason == "length":
        raw = logits_of(model, prompt_ids + output)[-1]
        best = torch.topk(penalize(raw, prompt_ids, output, case), 2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        token = best.indices[0].item()
        logprobs.append(round(torch.log_softmax(raw, -1)[token].item(), 6))
        output.append(token)
        reason = "stop" if token in ends else reason
    return {"prompt": prompt, **case, "output_ids": output, "finish_reason": reason, "token_logprobs": logprobs,
            "min_top2_margin": round(margin, 5), "text_with_special": tokenizer.decode(output, False),
            "text_skip_special": tokenizer.decode(output, True)}


def greedy_cases(model, tokenizer, prompts, eos):
    cases = []
    for i, prompt in enumerate(prompts):
        run = lambda **case: cases.append(greedy(model, tokenizer, i, prompt["input_ids"], case))
        run(max_new_tokens=GREEDY_TOKENS, ignore_eos=True, eos_token_ids=eos)
        free = cases[-1]["output_ids"]
        run(max_new_tokens=GREEDY_TOKENS, ignore_eos=False, eos_token_ids=eos)
        run(max_new_tokens=GREEDY_TOKENS, ignore_eos=True, stop_token_ids=[free[len(free) // 3]])
        if i < 2:
            run(max_new_tokens=PENALTY_TOKENS, ignore_eos=True, repetition_penalty=1.3)
            run(max_new_tokens=PENALTY_TOKENS, ignore_eos=True, presence_penalty=0.7, frequency_penalty=0.4)
    return cases


def meets_end(model, tokenizer, prompts, eos):
    """Whether one of the first two prompts is continued to an end token, after some others, without a near tie."""
    case = {"max_new_tokens": GREEDY_TOKENS, "ignore_eos": False, "eos_token_ids": eos}
    found = [greedy(model, tokenizer, i, prompts[i]["input_ids"], case) for i in range(2)]
    is_clear = all(f["min_top2_margin"] >= MIN_MARGIN for f in found)
    return is_clear and any(f["finish_reason"] == "stop" and len(f["output_ids"]) > 1 for f in found)


class Noise(LogitsProcessor):
    """Disturbs log-probabilities by up to NOISE."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids, scores):
        return scores + NOISE * (2 * torch.rand(scores.shape, generator=self.generator) - 1)


@torch.no_grad()
def beam_search(model, ids, case, eos, processors=()):
    """Hypotheses, best first."""
    found = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        eos_token_id=eos, pad_token_id=eos[0], logits_processor=list(processors), return_dict_in_generate=True,
        output_scores=True, **case)
    results = []
    for sequence, score in zip(found.sequences.tolist(), found.sequences_scores.tolist()):
        output = sequence[len(ids):]
        end = next((i + 1 for i, token in enumerate(output) if token in eos), None)
        results.append({"output_ids": output[:end], "score": round(score, 6),
                        "finish_reason": "stop" if end else "length"})
    return results


def beam_cases(model, prompts, eos):
    """The searches that noise does not change."""
    grid = [(1.0, True), (1.0, False), (2.0, "never"), (-1.0, False)]
    cases = []
    for prompt in range(2):
        ids = prompts[prompt]["input_ids"]
        for num_beams in (2, 4):
            for length_penalty, early_stopping in grid:
                case = {"num_beams": num_beams, "length_penalty": length_penalty, "early_stopping": early_stopping,
                        "num_return_sequences": num_beams, "max_new_tokens": BEAM_TOKENS}
                results = beam_search(model, ids, case, eos)
                hypotheses = [r["output_ids"] for r in results]
                disturbed = (beam_search(model, ids, case, eos, [Noise(seed)]) for seed in range(2))
                if all([r["output_ids"] for r in other] == hypotheses for other in disturbed):
                    cases.append({"prompt": prompt, **case, "eos_token_ids": eos, "results": results})
    return cases


def stream(tokenizer, ids):
    """What each id adds to the text, special tokens left out; text that may change is held back."""
    prefix, read, chunks = 0, 0, []
    decode = lambda begin, end: tokenizer.decode(ids[begin:end], True)
    for end in range(1, len(ids) + 1):
        old, new = decode(prefix, read), decode(prefix, end)
        is_whole = len(new) > len(old) and not new.endswith("\ufffd")
        chunks.append(new[len(old):] if is_whole else "")
        prefix, read = (read, end) if is_whole else (prefix, read)
    return {"chunks": chunks, "flush": decode(prefix, len(ids))[len(decode(prefix, read)):]}


def tokenizer_cases(tokenizer, generated):
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids_with_special": tokenizer.encode(text).ids, "ids": ids})
    cases.append({"note": "generated ids, whose bytes need not be UTF-8", "ids": generated})
    for case in cases:
        case["decoded"] = tokenizer.decode(case["ids"], False)
        case["decoded_skip_special"] = tokenizer.decode(case["ids"], True)
        case["stream_skip_special"] = stream(tokenizer, case["ids"])
    return cases


def chat_cases(directory, tokenizer):
    renderer, cases = AutoTokenizer.from_pretrained(directory), []
    for name, messages in CONVERSATIONS.items():
        for add in (True, False):
            case = {"name": name, "messages": messages, "add_generation_prompt": add}
            try:
                case["text"] = renderer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
                case["ids"] = tokenizer.encode(case["text"], add_special_tokens=False).ids
            except TemplateError as refusal:
                case["error"] = str(refusal)
            cases.append(case)
    return cases


def make_prompts(tokenizer, chats):
    """A short completion, a conversation (where there is a template), a long completion."""
    prompts = [{"kind": "completion", "text": text, "add_special_tokens": True} for text in COMPLETIONS]
    if chats:
        chat = {key: chats[0][key] for key in ("messages", "text")}
        prompts.insert(1, {"kind": "chat", **chat, "add_special_tokens": False})
    else:
        prompts.insert(1, {**prompts[0], "text": "What do they read on the island?"})
    for prompt in prompts:
        prompt["input_ids"] = tokenizer.encode(prompt["text"], add_special_tokens=prompt["add_special_tokens"]).ids
        prompt["n_tokens"] = len(prompt["input_ids"])
    return prompts


@torch.no_grad()
def save_logits(path, model, prompts):
    tensors = {}
    for i, prompt in enumerate(prompts):
        ids = prompt["input_ids"]
        found = model(torch.tensor([ids]), use_cache=False, output_hidden_states=i == 0)
        tensors[f"prompt{i}.input_ids"] = torch.tensor(ids)
        tensors[f"prompt{i}.logits"] = found.logits[0].contiguous()
        if i == 0:
            tensors.update({f"prompt0.hidden{k}": h[0].clone() for k, h in enumerate(found.hidden_states)})
    safetensors.torch.save_file(tensors, path)


def check_mutations(directory, model, ids, mutations):
    """How far each mutation moves a logit; none may go unseen."""
    expected, shifts = logits_of(model, ids), {}
    for mutation in mutations:
        shift = (logits_of(load(directory, **mutation), ids) - expected).abs().max().item()
        assert shift >= MIN_SHIFT, f"{directory.name}: {mutation} moves logits by {shift} only"
        shifts[json.dumps(mutation)] = round(shift, 3)
    return shifts


def write_model(directory, spec, text):
    """All of a model directory but its weights."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "golden").mkdir(parents=True)
    dtype = str(spec["dtype"]).removeprefix("torch.")
    tokens = {"bos_token_id": text.bos_id, "eos_token_id": text.eos_ids[0]}
    model_type = spec.get("model_type", spec["class"].removesuffix("ForCausalLM").lower())
    head = {"architectures": [spec["class"]], "model_type": model_type, "torch_dtype": dtype}
    write_json(directory / "config.json", {**head, **spec["config"], **tokens})
    write_json(directory / "generation_config.json", {**tokens, "eos_token_id": text.eos_ids})
    write_json(directory / "tokenizer.json", text.file)
    write_json(directory / "tokenizer_config.json", text.config)


def make(name, spec):
    """Writes one fixture; its entry of the manifest."""
    directory, text = OUTPUT / name, TOKENIZERS[name]()
    write_model(directory, spec, text)
    golden = directory / "golden"
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    chats = chat_cases(directory, tokenizer) if "chat_template" in text.config else None
    prompts = make_prompts(tokenizer, chats)
    blank = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    for seed in range(spec["seed"], spec["seed"] + 1000):
        weights = random_weights(blank, seed, spec["class"].startswith("Gemma"))
        weights = {key: weight.to(spec["dtype"]) for key, weight in weights.items()}
        save_weights(directory, weights, spec.get("shards", 1))
        model = load(directory)
        if router_margin(model, prompts) < MIN_ROUTER_MARGIN or not meets_end(model, tokenizer, prompts, text.eos_ids):
            continue
        cases = greedy_cases(model, tokenizer, prompts, text.eos_ids)
        margin = min(case["min_top2_margin"] for case in cases)
        if margin < MIN_MARGIN:
            continue
        beams = beam_cases(model, prompts, text.eos_ids)
        num_ended = sum(r["finish_reason"] == "stop" for case in beams for r in case["results"])
        if len(beams) >= 12 and num_ended >= 4:
            break
    else:
        raise SystemExit(f"{name}: no seed will do")
    shifts = check_mutations(directory, model, prompts[2]["input_ids"], spec["mutations"])
    save_logits(golden / "logits.safetensors", model, prompts)
    if "stored" in spec:
        save_weights(directory, as_stored(weights), 1)
        config = json.loads((directory / "config.json").read_text())
        write_json(directory / "config.json", {**config, **spec["stored"]})
    write_json(golden / "prompts.json", prompts)
    write_json(golden / "greedy.json", cases)
    write_json(golden / "beam.json", beams)
    write_json(golden / "tokenizer.json", tokenizer_cases(tokenizer, cases[0]["output_ids"][: spec.get("num_streamed")]))
    if chats:
        write_json(golden / "chat.json", chats)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {"seed": seed, "min_greedy_margin": margin, "num_beam_cases": len(beams), "num_ended_beams": num_ended,
            "prompt_lens": [prompt["n_tokens"] for prompt in prompts], "mutations": shifts,
            "num_bytes": sum(path.stat().st_size for path in files),
            "sha256": {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}}


def write_json(path, value):
    """Objects and lists of them indented, lists of numbers or strings on one line."""
    path.write_text(dumps(value, "") + "\n", encoding="utf-8")


def dumps(value, indent):
    is_nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value))
    if not value or not is_nested or (isinstance(value, dict) and indent.count(" ") >= 3):
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {dumps(item, inner)}" for key, item in value.items()]
    else:
        lines = [dumps(item, inner) for item in value]
    left, right = "{}" if isinstance(value, dict) else "[]"
    return f"{left}\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}{right}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"fixtures to make: {', '.join(MODELS)}; all")
    names = parser.parse_args().names or list(MODELS)
    found = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    assert found == VERSIONS, f"expected {VERSIONS}, found {found}"
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    manifest_path = OUTPUT / "manifest.json"
    head = {"made_by": "scripts/make_golden.py", **VERSIONS, "tokenizers": tokenizers.__version__,
            "attention": "eager", "compute_dtype": "float32"}
    for name in names:
        entry = make(name, MODELS[name])
        print(name, {key: value for key, value in entry.items() if key != "sha256"}, flush=True)
        models = json.loads(manifest_path.read_text())["models"] if manifest_path.exists() else {}
        models[name] = entry
        write_json(manifest_path, {**head, "models": {name: models[name] for name in MODELS if name in models}})


if __name__ == "__main__":
    main()
