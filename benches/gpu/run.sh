#!/bin/sh
# On a machine with an NVIDIA GPU and no Rust: tests, then measures, what prepare.sh has built. run.py says how.
exec python3 "$(dirname "$0")/run.py" "$@"
