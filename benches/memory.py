#!/usr/bin/env python3
"""Most memory that `sconce serve` takes, from its start over a prompt that fills the KV pool, against the file and the pool.

    cargo build --release && python3 benches/memory.py FILE.gguf [--kv-cache-bytes 90MiB] [--max-model-len 2048] [...]

Other arguments go to serve. What is measured is VmHWM: the most that was resident at once, pages of the file included.
"""

import argparse
import pathlib
import sys

from process import DEFAULT_BIN, Server

MIB = 1 << 20


def mebibytes(text):
    if not text.endswith("MiB"):
        raise argparse.ArgumentTypeError(f"expected a number with MiB behind it, found {text}")
    return int(text.removesuffix("MiB"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--binary", type=pathlib.Path, default=DEFAULT_BIN)
    parser.add_argument("--kv-cache-bytes", type=mebibytes, default=90, help="the pool, such as 90MiB, which is what 2048 tokens of the starter model take in f32")
    parser.add_argument("--max-model-len", type=int, default=2048, help="tokens of the prompt, and one")
    args, rest = parser.parse_known_args()
    if not args.binary.is_file():
        sys.exit(f"{args.binary} is not there: run `cargo build --release`, or name a sconce binary")
    serve = [
        "--model", args.gguf, "--kv-cache-bytes", args.kv_cache_bytes * MIB, "--max-model-len", args.max_model_len, *rest
    ]
    with Server(lambda port: [args.binary, "serve", "--port", port, *serve]) as server:
        server.wait_until_ready()
        loaded = server.memory_kib("VmHWM") / 1024
        resident = server.memory_kib("VmRSS") / 1024
        tokens = [100 + i % 1000 for i in range(args.max_model_len - 1)]
        server.post("/generate", {"prompt": tokens, "max_tokens": 1, "temperature": 0})
        most = server.memory_kib("VmHWM") / 1024
    size = args.gguf.stat().st_size / MIB
    print(f"file {size:.1f} MiB, KV pool {args.kv_cache_bytes} MiB; MiB in memory:")
    print(f"while loading at most {loaded:.1f}, then {resident:.1f}, after a prompt of {len(tokens)} tokens at most {most:.1f}")
    print(f"{most / (size + args.kv_cache_bytes):.2f} times the file and the pool")


if __name__ == "__main__":
    main()
