#!/bin/sh
# Packs what prepare.sh has built into target/gpu.tgz, which run.sh unpacks.
set -eu
cd "$(dirname "$0")/../.."
du -sh target/gpu/* target/gpu/models/*
tar -C target -czf target/gpu.tgz gpu
# So that it is not older than what was made of it.
touch target/gpu
bytes=$(wc -c <target/gpu.tgz)
echo "target/gpu.tgz: $bytes bytes"
if [ "$bytes" -gt $((55 << 20)) ]; then
    echo "target/gpu.tgz: more than 55 MiB" >&2
    exit 1
fi
