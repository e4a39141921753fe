#!/bin/sh
# On a machine with an NVIDIA GPU and no Rust: tests, then measures, what prepare.sh has built; of its target/gpu.tgz alone if need be.
# run.py says how.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=$here/../../target
if [ -f "$target/gpu.tgz" ] && { [ ! -d "$target/gpu" ] || [ "$target/gpu.tgz" -nt "$target/gpu" ]; }; then
    rm -rf "$target/gpu"
    tar -C "$target" -xzmf "$target/gpu.tgz"
    touch "$target/gpu"
fi
exec python3 "$here/run.py" "$@"
