#!/bin/sh
# Builds what run.sh takes to a machine with a GPU, into target/gpu and, packed, target/gpu.tgz: the program with kernels compiled for
# every device, the library's tests, what traces kernels, and models' configs and tokenizers.
#
# prepare.sh MODELS [TOKENIZERS]: MODELS has one folder a model, with config.json and, if at hand, tokenizer.json; weights are random,
# and so are prompts, for which any tokenizer does. But for HTTP, where texts are sent: that is measured where TOKENIZERS has a folder
# llama-3.1-8b-instruct with tokenizer.json.
set -eu
usage='usage: prepare.sh MODELS [TOKENIZERS]'
models=$(cd "${1:?$usage}" && pwd)
tokenizers=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/../.."
NVCC=$(cargo run --quiet --package xtask -- nvcc)
export NVCC
out=target/gpu
rm -rf "$out" "$out.tgz"
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
sh benches/gpu/models.sh "$models" "$tokenizers" "$out/models"
sh benches/gpu/pack.sh
