#!/bin/sh
# Builds what run.sh takes to a machine with a GPU, into target/gpu: the program with kernels compiled for every device, the
# library's tests, what traces kernels, and models' configs and tokenizers.
#
# prepare.sh MODELS: MODELS has one folder a model, with config.json and, if at hand, tokenizer.json; weights are random, and so
# are prompts, for which any tokenizer does.
set -eu
models=${1:?usage: prepare.sh MODELS}
models=$(cd "$models" && pwd)
cd "$(dirname "$0")/../.."
NVCC=$(cargo run --quiet --package xtask -- nvcc)
export NVCC
out=target/gpu
rm -rf "$out"
mkdir -p "$out/models"
cargo build --release --locked
strip -o "$out/sconce" target/release/sconce
tests=$(cargo test --locked --package sconce-core --lib --no-run --message-format=json |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "sconce_core":
        print(message["executable"])')
strip -o "$out/tests" "$tests"
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$out/cupti" \
    'nvidia-cuda-cupti==13.0.*' 'nvidia-cuda-runtime==13.0.*'
cupti=$out/cupti/nvidia/cu13
cc -O2 -shared -fPIC -I"$cupti/include" -I"$(dirname "$NVCC")/../include" benches/gpu/trace.c -o "$out/trace.so" \
    -L"$cupti/lib" -l:libcupti.so.13 -Wl,-rpath,'$ORIGIN'
cp "$cupti/lib/libcupti.so.13" "$out/"
rm -r "$out/cupti"
for model in "$models"/*/; do
    name=$(basename "$model")
    mkdir "$out/models/$name"
    for file in config.json tokenizer.json tokenizer_config.json chat_template.jinja generation_config.json special_tokens_map.json; do
        [ ! -f "$model/$file" ] || cp "$model/$file" "$out/models/$name/"
    done
    [ -f "$out/models/$name/tokenizer.json" ] || cp tests/golden/llama/tokenizer.json "$out/models/$name/"
done
du -sh "$out"/* "$out"/models/*
