#!/usr/bin/env python3
"""Start-up time of `sconce serve`: to the first /health that says ready, and to the first token of a prompt of 32.

    cargo build --release && python3 benches/startup.py [path of the sconce binary] [arguments for serve]
    python3 benches/startup.py --gguf FILE     # beside llama.cpp's server, where benches/peers has installed it

One start that is not counted brings the model and warms the page cache; then five are measured, in turn with
llama-server's.
"""

import argparse
import pathlib
import statistics
import sys

from process import DEFAULT_BIN, LLAMA_SERVER, Server

NUM_RUNS = 5
# A token each in most vocabularies; only that both servers get the same matters.
PROMPT = " ".join(["one two three four five six seven eight"] * 4)


def start(command, path, fields):
    """Seconds to readiness, and to the answer of a request for one token."""
    with Server(command) as server:
        server.wait_until_ready()
        ready = server.seconds()
        server.post(path, fields)
        return ready, server.seconds()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", nargs="?", type=pathlib.Path, default=DEFAULT_BIN)
    parser.add_argument("--gguf", type=pathlib.Path, help="a file, for both servers (default: the starter model, Sconce alone)")
    args, rest = parser.parse_known_args()
    if not args.binary.is_file():
        sys.exit(f"{args.binary} is not there: run `cargo build --release`, or name a sconce binary")
    model = ["--model", args.gguf] if args.gguf else []
    kinds = {
        "sconce": (
            lambda port: [args.binary, "serve", "--port", port, *model, *rest],
            "/generate", {"prompt": PROMPT, "max_tokens": 1, "temperature": 0},
        )
    }
    if args.gguf and LLAMA_SERVER.is_file():
        kinds["llama-server"] = (
            lambda port: [LLAMA_SERVER, "--model", args.gguf, "--port", port, "--offline"],
            "/completion", {"prompt": PROMPT, "n_predict": 1, "temperature": 0},
        )
    for name, kind in kinds.items():
        print(f"{name}: first start, not counted: ready in {start(*kind)[0]:.2f} s")
    runs = {name: [] for name in kinds}
    for _ in range(NUM_RUNS):
        for name, kind in kinds.items():
            runs[name].append(start(*kind))
    for name, times in runs.items():
        ready, first = (statistics.median(column) for column in zip(*times))
        print(f"{name}: ready in {ready:.2f} s, first token after {first:.2f} s (medians of {NUM_RUNS}, model in the cache)")


if __name__ == "__main__":
    main()
