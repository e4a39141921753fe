#!/usr/bin/env python3
"""Start-up time: from starting `sconce serve` on a cached starter model to the first /health that says ready.

    cargo build --release && python3 benches/startup.py [path of the sconce binary] [arguments for serve]

One start that is not counted brings the model and warms the page cache; then five are measured.
"""

import pathlib
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

NUM_RUNS = 5
LIMIT_S = 600
DEFAULT_BIN = pathlib.Path(__file__).resolve().parents[1] / "target" / "release" / "sconce"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_ready(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def start_up_seconds(binary, args):
    port = free_port()
    begun = time.monotonic()
    process = subprocess.Popen(
        [binary, "serve", "--port", str(port), *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not is_ready(f"http://127.0.0.1:{port}"):
            if process.poll() is not None:
                sys.exit(f"{binary} serve ended with code {process.returncode}: run it by hand to see why")
            if time.monotonic() - begun > LIMIT_S:
                sys.exit(f"{binary} serve was not ready in {LIMIT_S} s")
            time.sleep(0.005)
        return time.monotonic() - begun
    finally:
        process.terminate()
        process.wait()


def main():
    binary, *args = sys.argv[1:] or [str(DEFAULT_BIN)]
    if not pathlib.Path(binary).is_file():
        sys.exit(f"{binary} is not there: run `cargo build --release`, or name a sconce binary")
    first = start_up_seconds(binary, args)
    print(f"first start, not counted: {first:.2f} s")
    runs = [start_up_seconds(binary, args) for _ in range(NUM_RUNS)]
    print("runs: " + ", ".join(f"{run:.2f} s" for run in runs))
    print(f"ready to serve in {statistics.median(runs):.2f} s (median of {NUM_RUNS}, cached model)")


if __name__ == "__main__":
    main()
