#!/usr/bin/env python3
"""Beam search beside transformers' on the same weights in the same run.

    cargo build --release && python3 benches/beams_peer.py --gguf PATH [--binary PATH] [--threads N] [--requests N]

Needs torch, transformers and gguf (pip install torch transformers gguf). The weights are the starter model's: sconce
reads the GGUF, transformers the same file dequantized, in bf16 (its fastest here) and in f32. Sconce answers N
concurrent HTTP requests of 4 beams; transformers' `generate(num_beams=4)` answers them one after the other, as a server
that calls it would, and once more as one padded batch, which a server can do only when all have come. The contenders
take turns; medians are compared.
"""

import argparse
import concurrent.futures
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

NUM_BEAMS = 4
NUM_TOKENS = 32
NUM_ROUNDS = 3
SUBJECTS = (
    "the sea", "a lighthouse", "the desert", "an old map", "the first snow", "a clockmaker", "the harbour", "a violin",
    "the orchard", "a long journey", "the night sky", "a quiet village", "the river", "an unfinished letter",
    "the mountain pass", "a market at dawn",
)
DEFAULT_BIN = pathlib.Path(__file__).resolve().parents[1] / "target" / "release" / "sconce"


def prompts(count):
    return [f"Here is what one should know about {SUBJECTS[i % len(SUBJECTS)]}:" for i in range(count)]


class Sconce:
    """A running `sconce serve`."""

    def __init__(self, binary, threads):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [str(binary), "serve", "--port", str(port), "--threads", str(threads), "--no-prefix-cache"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.is_ready():
            if self.process.poll() is not None:
                sys.exit(f"{' '.join(command)} ended with code {self.process.returncode}")
            time.sleep(0.2)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def generate(self, prompt):
        fields = {
            "prompt": prompt, "use_beam_search": True, "n": NUM_BEAMS, "temperature": 0,
            "max_tokens": NUM_TOKENS, "ignore_eos": True,
        }
        body = json.dumps(fields).encode()
        request = urllib.request.Request(f"{self.url}/generate", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)["outputs"][0]["text"]

    def answer(self, texts):
        with concurrent.futures.ThreadPoolExecutor(len(texts)) as pool:
            return list(pool.map(self.generate, texts))


class Transformers:
    """The same weights in transformers."""

    def __init__(self, path, dtype, threads):
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self.torch = torch
        load = {"gguf_file": path.name}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **load, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.eos_token
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **load, dtype=getattr(torch, dtype))
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        self.model = model.eval()

    def answer(self, texts):
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        with self.torch.inference_mode():
            ids = self.model.generate(**inputs, num_beams=NUM_BEAMS, max_new_tokens=NUM_TOKENS, do_sample=False)
        return self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)

    def answer_one_by_one(self, texts):
        return [self.answer([text])[0] for text in texts]


def timed(work):
    begun = time.monotonic()
    answers = work()
    return time.monotonic() - begun, answers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=DEFAULT_BIN, type=pathlib.Path)
    parser.add_argument("--gguf", required=True, type=pathlib.Path, help="the starter model's file")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--requests", default=16, type=int)
    args = parser.parse_args()
    texts = prompts(args.requests)
    sconce = Sconce(args.binary, args.threads)
    try:
        contenders = {"sconce, concurrent": lambda: sconce.answer(texts)}
        for dtype in ("bfloat16", "float32"):
            peer = Transformers(args.gguf, dtype, args.threads)
            contenders[f"transformers {dtype}, one by one"] = lambda peer=peer: peer.answer_one_by_one(texts)
            contenders[f"transformers {dtype}, one batch"] = lambda peer=peer: peer.answer(texts)
        seconds, answers = {name: [] for name in contenders}, {}
        for _ in range(NUM_ROUNDS):
            for name, work in contenders.items():
                elapsed, answers[name] = timed(work)
                seconds[name].append(elapsed)
    finally:
        sconce.process.terminate()
        sconce.process.wait()
    ours = statistics.median(seconds["sconce, concurrent"])
    print(f"{args.requests} requests, {NUM_BEAMS} beams, {NUM_TOKENS} tokens, {args.threads} threads, medians of {NUM_ROUNDS}\n")
    print("| | seconds | requests/s | times sconce's | same text |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        median = statistics.median(times)
        same = sum(a == b for a, b in zip(answers[name], answers["sconce, concurrent"]))
        print(f"| {name} | {median:.2f} | {args.requests / median:.2f} | {median / ours:.2f} | {same} of {len(texts)} |")


if __name__ == "__main__":
    main()
