#!/usr/bin/env python3
"""How far Sconce's logits of a quantized file are from those of the same file dequantized to f32.

    cargo build --release && python3 benches/perplexity.py --gguf PATH [--binary PATH] [--tokens N]

Needs torch, transformers, gguf and accelerate (pip install torch transformers gguf accelerate). transformers dequantizes
the file and computes in f32, which is what exact means here; beside Sconce's precisions stands transformers in bf16. The text is the
project's LICENSE-APACHE, which does not change, in windows of 512 tokens; the mean is over all tokens but the first of each
window. KL divergence is taken over the 20 likeliest tokens that Sconce reports and all others as one: the whole is
a little more.
"""

import argparse
import json
import math
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
WINDOW = 512
NUM_TOP = 20


class Sconce:
    """A running `sconce serve`."""

    def __init__(self, binary, model, precision):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [str(binary), "serve", "--port", str(port), "--model", str(model), "--matmul-precision", precision]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.is_ready():
            if self.process.poll() is not None:
                sys.exit(f"{' '.join(command)} ended with code {self.process.returncode}")
            time.sleep(0.1)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def logprobs(self, token_ids):
        """Of each token but the first: its logprob, and {token id: logprob} of the likeliest."""
        body = json.dumps({"prompt": token_ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": NUM_TOP}).encode()
        request = urllib.request.Request(f"{self.url}/generate", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            entries = json.load(response)["prompt_logprobs"][1:]
        return [(e["logprob"], {t["token_id"]: t["logprob"] for t in e["top_logprobs"]}) for e in entries]

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Transformers:
    """The dequantized weights in transformers."""

    def __init__(self, path, dtype):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        self.torch = torch
        load = {"gguf_file": path.name}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **load)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **load, dtype=getattr(torch, dtype))

    def log_softmax(self, token_ids):
        with self.torch.inference_mode():
            logits = self.model(self.torch.tensor([token_ids])).logits[0, :-1]
        return self.torch.log_softmax(logits.double(), dim=-1)

    def logprobs(self, token_ids):
        rows = self.log_softmax(token_ids)
        top = rows.topk(NUM_TOP)
        pairs = zip(top.indices.tolist(), top.values.tolist())
        own = rows[self.torch.arange(len(token_ids) - 1), token_ids[1:]].tolist()
        return [(logprob, dict(zip(ids, values))) for logprob, (ids, values) in zip(own, pairs)]

    def stop(self):
        pass


def kl_divergence(exact_row, top):
    """Of the exact distribution from the one whose likeliest tokens are `top`."""
    total, exact_rest, rest = 0.0, 1.0, 1.0
    for token_id, logprob in top.items():
        exact = float(exact_row[token_id])
        total += math.exp(exact) * (exact - logprob)
        exact_rest -= math.exp(exact)
        rest -= math.exp(logprob)
    if exact_rest > 1e-9 and rest > 1e-9:
        total += exact_rest * (math.log(exact_rest) - math.log(rest))
    return total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=ROOT / "target" / "release" / "sconce", type=pathlib.Path)
    parser.add_argument("--gguf", required=True, type=pathlib.Path)
    parser.add_argument("--tokens", default=2048, type=int, help="how much of the text")
    args = parser.parse_args()
    exact = Transformers(args.gguf, "float32")
    ids = exact.tokenizer((ROOT / "LICENSE-APACHE").read_text())["input_ids"][: args.tokens]
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
    windows = [window for window in windows if len(window) > 1]
    expected = [exact.log_softmax(window) for window in windows]
    own = [row[token].item() for w, rows in zip(windows, expected) for token, row in zip(w[1:], rows)]
    perplexity = math.exp(-sum(own) / len(own))
    print(f"{args.gguf.name}, {len(own)} tokens\n")
    print("| | perplexity | against f32 | mean KL | greatest KL | same top token | greatest logprob error |")
    print("|---|---|---|---|---|---|---|")
    print(f"| transformers float32 | {perplexity:.5f} | | | | | |")
    contenders = {
        "transformers bfloat16": lambda: Transformers(args.gguf, "bfloat16"),
        "sconce mixed": lambda: Sconce(args.binary, args.gguf, "mixed"),
        "sconce exact": lambda: Sconce(args.binary, args.gguf, "exact"),
        "sconce fast": lambda: Sconce(args.binary, args.gguf, "fast"),
    }
    for name, start in contenders.items():
        contender = start()
        try:
            found = [entry for window in windows for entry in contender.logprobs(window)]
        finally:
            contender.stop()
        rows = [row for rows in expected for row in rows]
        kl = [kl_divergence(row, top) for row, (_, top) in zip(rows, found)]
        same = sum(int(row.argmax()) == next(iter(top)) for row, (_, top) in zip(rows, found)) / len(rows)
        error = max(abs(a - b) for a, (b, _) in zip(own, found))
        theirs = math.exp(-sum(logprob for logprob, _ in found) / len(found))
        change = f"{100 * (theirs / perplexity - 1):+.4f} %"
        print(
            f"| {name} | {theirs:.5f} | {change} | {sum(kl) / len(kl):.1e} | {max(kl):.1e} | {100 * same:.2f} % | {error:.4f} |"
        )


if __name__ == "__main__":
    main()
