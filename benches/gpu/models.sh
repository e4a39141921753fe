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
fi
if [ -f "$tokenizers/$llama/tokenizer.json" ] && [ -d "$out/$llama" ]; then
    copy "$out/$llama" llama-http $configs
    copy "$tokenizers/$llama" llama-http $texts
else
    echo "no $llama/tokenizer.json in TOKENIZERS: nothing will be measured over HTTP" >&2
fi
