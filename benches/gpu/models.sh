#!/bin/sh
# models.sh MODELS TOKENIZERS OUT: models' configs and tokenizers, as prepare.sh has them. TOKENIZERS may be empty.
set -eu
models=$1 tokenizers=$2 out=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
llama=llama-3.1-8b-instruct
configs='config.json generation_config.json'
texts='tokenizer.json tokenizer_config.json chat_template.jinja special_tokens_map.json'

# copy FROM NAME FILE...
copy() {
    from=$1 name=$2
    shift 2
    mkdir -p "$out/$name"
    for file in "$@"; do
        [ ! -f "$from/$file" ] || cp "$from/$file" "$out/$name/"
    done
}

for model in "$models"/*/; do
    name=$(basename "$model")
    copy "$model" "$name" $configs $texts
    [ -f "$out/$name/tokenizer.json" ] || cp "$root/tests/golden/llama/tokenizer.json" "$out/$name/"
done
# edited CHANGES: the larger model's config.json with other values, a dict of Python's.
edited() {
    python3 -c "import json, sys
print(json.dumps(json.load(sys.stdin) | $1))" <"$out/$llama/config.json"
}

if [ -d "$out/$llama" ]; then
    # As Llama-3.2-1B is: it drafts.
    copy "$out/$llama" llama-1b generation_config.json $texts
    edited '{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64, "tie_word_embeddings": True}' \
        >"$out/llama-1b/config.json"
    copy "$out/$llama" llama-int4 generation_config.json $texts
    # As a 4-bit checkpoint has it.
    edited '{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}}' \
        >"$out/llama-int4/config.json"
    # As Qwen3-8B and Qwen3-30B-A3B are, but for the vocabulary, and gpt-oss-20b is.
    copy "$out/$llama" qwen3-8b generation_config.json $texts
    edited '{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "intermediate_size": 12288, "num_hidden_layers": 36,
        "head_dim": 128, "rope_scaling": None}' >"$out/qwen3-8b/config.json"
    copy "$out/$llama" qwen3-30b-a3b generation_config.json $texts
    edited '{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "norm_topk_prob": True, "rope_scaling": None}' >"$out/qwen3-30b-a3b/config.json"
    copy "$out/$llama" gpt-oss-20b generation_config.json $texts
    edited '{"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32,
        "num_experts_per_tok": 4, "sliding_window": 128, "vocab_size": 201088, "attention_bias": True, "rope_theta": 150000,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096},
        "quantization_config": {"quant_method": "mxfp4"}}' >"$out/gpt-oss-20b/config.json"
fi
if [ -f "$tokenizers/$llama/tokenizer.json" ] && [ -d "$out/$llama" ]; then
    copy "$out/$llama" llama-http $configs
    copy "$tokenizers/$llama" llama-http $texts
else
    echo "no $llama/tokenizer.json in TOKENIZERS: nothing will be measured over HTTP" >&2
fi
