"""Tests and measures Sconce on a GPU, by default in under eight minutes; leaves one JSON file and one readable table.

Needs what `benches/gpu/prepare.sh` has built, and Python's own library. Each step has a time limit and a log; a step that
fails or runs out of time does not keep the others from running, but the whole fails.

    benches/gpu/run.sh --out results/             everything
    benches/gpu/run.sh --out results/ --only ops  steps whose names contain "ops"
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

import timeline

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILT = ROOT / "target/gpu"
SANITIZERS = ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"]
COUNTERS = ["ncu", "/usr/local/cuda/bin/ncu"]
WITHOUT_HOPPER = {"SCONCE_CUDA_HOPPER": "0"}
WITHOUT_TRIALS = {"SCONCE_CUDA_AUTOTUNE": "0"}
CHOICES = {"RUST_LOG": "warn,sconce_core::ops::linear=debug"}
MODEL = "llama-3.1-8b-instruct"
GPU_FIELDS = ["name", "driver_version", "memory.total", "pci.bus_id", "clocks.max.sm", "clocks.max.memory", "power.limit"]


class Step:
    LOG = "log.txt"

    def __init__(self, name, command, limit_s, has_json=False, env=None, fallback=None):
        """`fallback`: what steps after this one are run with if it fails."""
        self.name, self.command, self.limit_s, self.has_json = name, [str(part) for part in command], limit_s, has_json
        self.env, self.fallback = env or {}, fallback or {}

    def run(self, out, left_s):
        begun = time.monotonic()
        limit = min(self.limit_s, left_s)
        result = {"name": self.name, "command": " ".join(self.command)}
        if limit <= 0:
            return result | {"outcome": "not run: no time left", "seconds": 0.0}
        try:
            done = subprocess.run(
                self.command, cwd=ROOT, env=os.environ | self.env, timeout=limit, text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT if not self.has_json else subprocess.PIPE)
            outcome = "ok" if done.returncode == 0 else f"failed: exit code {done.returncode}"
            printed = done.stdout + (done.stderr or "")
            if done.returncode == 0 and self.has_json:
                result["report"] = json.loads(done.stdout)
        except subprocess.TimeoutExpired as error:
            outcome = f"stopped after {limit:.0f} s"
            printed = "".join(part.decode(errors="replace") if isinstance(part, bytes) else part or ""
                              for part in (error.stdout, error.stderr))
        except (OSError, ValueError) as error:
            outcome, printed = f"failed: {error}", ""
        with open(out / self.LOG, "a", encoding="utf-8") as log:
            log.write(f"==== {self.name}: {outcome}\n$ {' '.join(self.command)}\n{printed}\n")
        return result | {"outcome": outcome, "seconds": round(time.monotonic() - begun, 1),
                         "tail": "" if outcome == "ok" else "\n".join(printed.splitlines()[-12:])}


class Served(Step):
    """Measures a server that is started for it, with random weights, or with those of a checkpoint in the page cache."""

    PORT = 8123

    def __init__(self, name, flags, limit_s, checkpoint=None):
        url = f"http://127.0.0.1:{self.PORT}"
        super().__init__(name, [BUILT / "sconce", "bench", "serve", "--base-url", url, "--json", *flags], limit_s, has_json=True)
        self.health, self.checkpoint = url + "/health", checkpoint

    def run(self, out, left_s):
        if left_s <= 0:
            return super().run(out, left_s)
        model = ["--model", BUILT / "models" / MODEL, "--load-format", "dummy"]
        if self.checkpoint:
            write_checkpoint(self.checkpoint)
            model = ["--model", self.checkpoint]
        command = [BUILT / "sconce", "serve", *model, "--device", "cuda:0",
                   "--port", self.PORT, "--max-num-seqs", 256, "--max-num-batched-tokens", 8192, "--max-model-len", 4096]
        with open(out / "server.txt", "a", encoding="utf-8") as log:
            server = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            begun = time.monotonic()
            while not self.answers() and server.poll() is None and time.monotonic() - begun < min(left_s, 60):
                time.sleep(0.2)
            ready_s = time.monotonic() - begun
            return super().run(out, left_s - ready_s) | {"ready_s": round(ready_s, 1)}
        finally:
            server.kill()
            server.wait()

    def answers(self):
        try:
            with urllib.request.urlopen(self.health, timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False


class Traced(Step):
    """Says what a step's kernels take, one by one: the rates of its own report are not those of a run without the trace."""

    def run(self, out, left_s):
        with tempfile.TemporaryDirectory() as folder:
            trace = pathlib.Path(folder) / "trace.csv"
            self.env = self.env | {"CUDA_INJECTION64_PATH": str(BUILT / "trace.so"), "SCONCE_TRACE": str(trace), "SCONCE_CUDA_PDL": "0"}
            result = super().run(out, left_s)
            result.pop("report", None)
            if result["outcome"] == "ok":
                result["timeline"] = None
                if trace.exists():
                    with open(trace, encoding="utf-8") as lines:
                        result["timeline"] = timeline.timeline(lines)
                if result["timeline"] is None:
                    result |= {"outcome": "failed: no step in the trace", "tail": ""}
            return result


class Counted(Step):
    """Some kernels' hardware counters, by Nsight Compute: what their warps wait for."""

    LOG = "counters.txt"
    SECTIONS = ["SpeedOfLight", "WarpStateStats", "SchedulerStats", "MemoryWorkloadAnalysis", "Occupancy"]

    def __init__(self, name, counter, kernels, skip, num, step):
        # The machine's clocks stay as they are.
        sections = [part for section in self.SECTIONS for part in ("--section", section)]
        what = ["--clock-control", "none", "--kernel-name", f"regex:{kernels}", "--launch-skip", skip, "--launch-count", num]
        super().__init__(name, [counter, *sections, *what, *step.command], 60, env=step.env)


def write_checkpoint(folder):
    """A Llama's whole safetensors file of zeros, which takes no room on the disk, read once into the page cache."""
    shutil.copytree(BUILT / "models" / MODEL, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    shapes = {"model.embed_tokens": [vocab, hidden], "model.norm": [hidden], "lm_head": [vocab, hidden]}
    for layer in range(config["num_hidden_layers"]):
        of_layer = {"self_attn.q_proj": [heads * head_dim, hidden], "self_attn.k_proj": [kv_heads * head_dim, hidden],
                    "self_attn.v_proj": [kv_heads * head_dim, hidden], "self_attn.o_proj": [hidden, heads * head_dim],
                    "mlp.gate_proj": [inter, hidden], "mlp.up_proj": [inter, hidden], "mlp.down_proj": [hidden, inter],
                    "input_layernorm": [hidden], "post_attention_layernorm": [hidden]}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name + ".weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    with open(path, "rb") as file:
        while file.read(64 << 20):
            pass


def write_int4_config(folder):
    """The model as a 4-bit checkpoint has it, whose weights are random too."""
    shutil.copytree(BUILT / "models" / MODEL, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def bench(name, limit_s, mode, *flags, model=MODEL, env=None, kind=Step, fallback=None):
    engine = ["--model", BUILT / "models" / model, "--load-format", "dummy", "--device", "cuda:0", "--json"]
    command = [BUILT / "sconce", "bench", mode, *engine, *flags]
    return kind(name, command, limit_s, has_json=True, env=env, fallback=fallback)


def steps():
    on_gpu = {"REQUIRE_CUDA": "1", "CARGO_MANIFEST_DIR": str(ROOT / "crates/sconce-core")}
    tests = [BUILT / "tests", "--test-threads=1"]

    def test(name, limit_s, *filters, before=(), fallback=None):
        return Step(name, [*before, *tests, *filters], limit_s, env=on_gpu, fallback=fallback)

    # What is most wanted comes first: what is left when time runs out is run by --only.
    yield Step("devices", [BUILT / "sconce", "devices", "--test"], 60)
    # Their log says whether kernels for Hopper have the portable ones' bits.
    of_fast = ["inputs_in_e4m3", "there_are_codes"]
    skipped = [part for name in of_fast for part in ("--skip", name)]
    yield test("linear on Hopper", 60, "linear::hopper", "kernels_for_hopper", "--nocapture", *skipped, fallback=WITHOUT_HOPPER)
    yield test("attention on Hopper", 60, "attention::hopper", "--nocapture", fallback=WITHOUT_HOPPER)
    yield test("golden, chunks = whole, graphs = launches", 90, "cuda::tests", "a_query_alone", "parts_of_long", "--skip", "kernels_for_hopper", "--skip", "int8", *skipped)
    long = ["--max-model-len", "9216", "--max-num-batched-tokens", "8192", "--num-iters", "3"]
    # The log says which algorithms are chosen by trial.
    yield bench("one user", 90, "latency", "--input-len", "128,2048,8192", "--output-len", "128", *long, env=CHOICES, fallback=WITHOUT_TRIALS)
    yield Step("attention by itself", [BUILT / "sconce", "devices", "--attention"], 40)
    many = ["--max-num-seqs", "256", "--max-num-batched-tokens", "8192", "--max-model-len", "4096"]

    def together(name, prompts, input_len, output_len, *flags, limit_s=60, env=None, kind=Step):
        lengths = ["--num-prompts", prompts, "--input-len", input_len, "--output-len", output_len]
        return bench(name, limit_s, "throughput", *lengths, *many, *flags, env=env, kind=kind)

    for prompts, input_len, output_len in [(1000, 128, 128), (256, 1000, 1000), (256, 2048, 128)]:
        yield together(f"offline {input_len}/{output_len}", prompts, input_len, output_len, limit_s=90)
    for batch_size in [2, 4, 8, 16, 32, 64, 128, 256]:
        yield together(f"decode of {batch_size}", batch_size, 1024, 64, "--cached-prompts", limit_s=40)
    yield together("conversations", 1000, 220, 200, "--spread", "1", limit_s=90)
    for requests, limit, concurrency in [(1000, 128, []), (30, 2, ["--max-concurrency", 1])]:
        flags = ["--num-prompts", requests, "--input-len", 128, "--output-len", limit, "--ignore-eos", *concurrency]
        yield Served(f"over HTTP, {requests} requests of 128/{limit}", flags, 60)
    yield together("beams of 4", 100, 256, 256, "--beam-width", "4", limit_s=90)
    # Beside "decode of 8": the same rows with a prompt each.
    yield together("8 of one prompt", 1, 2048, 128, "--n", "8", "--cached-prompts", limit_s=40)
    yield together("8 prompts of 2048", 8, 2048, 128, "--cached-prompts", limit_s=40)
    yield together("one among 127 others", 128, 512, 128, "--check-alone")
    yield together("one among 127 others, fast", 128, 512, 128, "--check-alone", "--matmul-precision", "fast")
    yield Step("each kernel's products", [BUILT / "sconce", "devices", "--products"], 90)
    short = ["--max-model-len", "9216", "--max-num-batched-tokens", "8192", "--num-iters", "2"]
    for what, flags in [("one user", ["--input-len", "128", "--output-len", "32"]),
                        ("one user after 4096", ["--input-len", "4096", "--output-len", "64"]),
                        ("one user, fp8", ["--input-len", "128", "--output-len", "32", "--quantization", "fp8"]),
                        ("one user, q4_0", ["--input-len", "128", "--output-len", "32", "--quantization", "q4_0"]),
                        ("a prompt of 2048", ["--input-len", "2048", "--output-len", "2"]),
                        ("a prompt of 8192", ["--input-len", "8192", "--output-len", "2"])]:
        yield bench(f"timeline of {what}", 40, "latency", *short, *flags, kind=Traced)
    for batch_size in [16, 64, 256]:
        yield together(f"timeline of a decode of {batch_size}", batch_size, 1024, 16, "--cached-prompts", limit_s=40, kind=Traced)
    # Each operation is waited for here: what it takes by itself, launch and all.
    yield bench("one user, operations one by one", 60, "ops", "--input-len", "2048", "--max-model-len", "4096",
                "--max-num-batched-tokens", "2048", "--num-iters", "2")
    yield Step("transformers", [sys.executable, ROOT / "benches/gpu/peer.py", BUILT / "models" / MODEL], 60, has_json=True)
    for products, flags, env in [("portable", [], WITHOUT_HOPPER), ("library's", ["--matmul-precision", "fast"], {})]:
        yield bench(f"prompts, {products} products", 40, "latency", "--input-len", "2048,8192", "--output-len", "2", *long, *flags, env=env)
    # A copy of keys is a block of the cache, or 64 of one.
    yield bench("prompts, blocks of 64 tokens", 40, "latency", "--input-len", "2048,8192", "--output-len", "2", *long, "--block-size", "64")
    # What it is worth that algorithms are tried, that the next step is launched before this one is read, and that kernels begin before
    # others end.
    for batch_size in [16, 64, 256]:
        lengths = [batch_size, 1024, 64]
        yield together(f"decode of {batch_size}, estimates", *lengths, "--cached-prompts", limit_s=40, env=WITHOUT_TRIALS)
    yield together("offline 128/128, read first", 1000, 128, 128, env={"SCONCE_CUDA_RUN_AHEAD": "0"})
    yield bench("one user, kernel after kernel", 60, "latency", "--input-len", "128", "--output-len", "128", *long, env={"SCONCE_CUDA_PDL": "0"})
    yield together("decode of 16, kernel after kernel", 16, 1024, 64, "--cached-prompts", limit_s=40, env={"SCONCE_CUDA_PDL": "0"})
    # Whose models are not at hand is left out.
    for model in ["mistral-7b-instruct-v0.2", "gemma-2-9b-it", "phi-3-mini-4k-instruct", "phi-2"]:
        if (BUILT / "models" / model).is_dir():
            lengths = ["--input-len", "128", "--output-len", "64", "--max-model-len", "2048", "--num-iters", "2"]
            yield bench(f"one user, {model}", 60, "latency", *lengths, model=model)
    yield bench("one user after 8k", 60, "latency", "--input-len", "1024", "--decode-after", "8000", *long)
    # Start to ready: 16 GB from the page cache.
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--num-prompts", 1, "--input-len", 32, "--output-len", 2, "--ignore-eos"]
        yield Served("start with a checkpoint", flags, 30, pathlib.Path(folder) / "model")
    fp8 = ["--quantization", "fp8", "--max-model-len", "4096"]
    yield bench("one user, fp8", 60, "latency", "--input-len", "128,2048", "--output-len", "128", "--num-iters", "3", *fp8)
    yield bench("one user, fp8, operations one by one", 40, "ops", "--input-len", "128", "--num-iters", "2", *fp8)
    for batch_size in [4, 8, 16, 64]:
        lengths = ["--num-prompts", batch_size, "--max-num-seqs", batch_size, "--input-len", 32, "--output-len", 256]
        yield bench(f"{batch_size} at once, fp8", 40, "throughput", *lengths, *fp8)
    # Keys and values of 8 bits: half of what decodes of many users read beside the weights.
    yield test("keys and values in int8", 60, "int8", "expand_kv", "rope_append_kv")
    int8 = ["--kv-cache-dtype", "int8"]
    for batch_size in [64, 256]:
        yield together(f"decode of {batch_size}, int8 keys", batch_size, 1024, 64, "--cached-prompts", *int8, limit_s=40)
    yield together("offline 1000/1000, int8 keys", 256, 1000, 1000, *int8, limit_s=90)
    yield bench("one user after 8k, int8 keys", 60, "latency", "--input-len", "1024", "--decode-after", "8000", *long, *int8)
    # Inputs in e4m3 too.
    yield test("inputs in e4m3", 60, *of_fast)
    fast = ["--quantization", "fp8", "--matmul-precision", "fast"]
    yield bench("prompts, fp8 fast", 40, "latency", "--input-len", "2048,8192", "--output-len", "2", *long, *fast)
    yield together("offline 128/128, fp8 fast", 1000, 128, 128, *fast, limit_s=90)
    for batch_size in [64, 256]:
        yield together(f"decode of {batch_size}, fp8 fast", batch_size, 1024, 64, "--cached-prompts", *fast, limit_s=40)
    # Prompts of 2048 are computed by expanded weights, 16 and 64 at once by kernels that expand for themselves.
    with tempfile.TemporaryDirectory() as folder:
        int4 = write_int4_config(pathlib.Path(folder) / "model")
        for kind, model, flags in [("q4_0", MODEL, ["--quantization", "q4_0"]), ("int4", int4, []),
                                   ("q8_0", MODEL, ["--quantization", "q8_0"])]:
            blocks = ["--max-model-len", "4096", *flags]
            lengths = ["--input-len", "128,2048", "--output-len", "128", "--num-iters", "3"]
            yield bench(f"one user, {kind}", 60, "latency", *lengths, *blocks, model=model)
            for batch_size in [16, 64]:
                lengths = ["--num-prompts", batch_size, "--max-num-seqs", batch_size, "--input-len", 32, "--output-len", 256]
                yield bench(f"{batch_size} at once, {kind}", 40, "throughput", *lengths, *blocks, model=model)
    yield test("ops", 120, "device_equals", "cuda_tests", "linear::cuda", "embed", "copy_blocks", "sample::tests::device", "cuda::weights")
    counter = next(filter(None, map(shutil.which, COUNTERS)), None)
    if counter:
        prompt = bench("", 0, "latency", "--input-len", "2048", "--output-len", "2", *short)
        decode = together("", 64, 1024, 16, "--cached-prompts")
        alone = bench("", 0, "latency", "--input-len", "128", "--output-len", "32", *short)
        yield Counted("counters of a prompt", counter, "attention_hopper", 4, 1, prompt)
        yield Counted("counters of a decode of 64", counter, "attention_decode|linear_hopper_split", 40, 5, decode)
        yield Counted("counters of one user", counter, "attention_decode|linear_.*rows", 200, 6, alone)
    sanitizer = next(filter(None, map(shutil.which, SANITIZERS)), None)
    if sanitizer:
        for tool in ["memcheck", "racecheck"]:
            before = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kernel_substring=_"]
            yield test(f"{tool} of the golden models", 60, "cuda::tests::models_keep", before=before)
            yield test(f"{tool} of keys and values in int8", 60, "int8_keys", before=before)
    else:
        yield Step("compute-sanitizer", ["compute-sanitizer"], 1)


def gpu():
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, text=True, capture_output=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        sys.exit(f"nvidia-smi: {error}")
    return dict(zip(GPU_FIELDS, (field.strip() for field in line.split(","))))


def table(result):
    device = result["gpu"]
    lines = [f"{device['name']}, driver {device['driver_version']}, {result['date']}", "",
             "| step | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {step['name']} | {step['outcome']} | {step['seconds']} |" for step in result["steps"]]
    rows = [row for step in result["steps"] for row in figures(step)]
    if rows:
        what = f"{MODEL} but for steps that name another model, random weights, bf16 but for steps of fp8 and of block formats"
        lines += ["", what, "", "| work | tok/s | of the roof |", "|---|---|---|", *rows]
    for part in (part for step in result["steps"] for part in step.get("report", {}).get("parts", [])):
        lines += ["", f"{part['work']}, {part['ms']:.2f} ms, operations one by one", "",
                  "| operation | ms | calls | GB/s of weights | TFLOP/s |", "|---|---|---|---|---|"]
        for op in part["ops"]:
            name = op["op"] + (" {} x {}".format(*op["weight"]) if op["weight"] else "")
            rates = [f"{op[key] / scale:,.0f}" if op[key] else "-"
                     for key, scale in (("weight_gb_per_s", 1), ("gflop_per_s", 1e3))]
            lines.append(f"| {name} | {op['ms']:.3f} | {op['num_calls']:.0f} | {' | '.join(rates)} |")
    for step in result["steps"]:
        if step.get("timeline"):
            lines += ["", f"{step['name']}, kernel after kernel", "", *timeline.table(step["timeline"])]
    for step in result["steps"]:
        if step.get("tail"):
            lines += ["", f"{step['name']}: {step['outcome']}", "", "```", step["tail"], "```"]
    return "\n".join(lines) + "\n"


def kv_bytes_per_token(step):
    config = json.loads((BUILT / "models" / MODEL / "config.json").read_text(encoding="utf-8"))
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    # Of 8 bits, and a scale of 16.
    head_bytes = head_dim + 2 if "--kv-cache-dtype int8" in step["command"] else 2 * head_dim
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_bytes


def figures(step):
    report = step.get("report", {})

    def row(name, rate, share, roof):
        return f"| {step['name']}: {name} | {rate:,.0f} | {100 * share:.0f} % of {roof} |"

    peaks = report.get("peaks", {})
    memory, products = (f"{peaks.get('dram_read_gb_per_s') or 0:,.0f} GB/s",
                        f"{(peaks.get('bf16_gflop_per_s') or 0) / 1e3:,.0f} TFLOP/s")
    for prompt in report.get("prompt", []):
        yield row(f"prompt of {prompt['input_len']}", prompt["tok_per_s"], prompt["share_of_bf16"] or 0, products)
    if "decode" in report:
        decode = report["decode"]
        yield row(f"decode after {decode['input_len']}", decode["tok_per_s"], decode["share_of_dram_read"], memory)
    if "transformers" in report:
        for prompt in report["prompts"]:
            yield f"| {step['name']}: prompt of {prompt['input_len']} | {prompt['tok_per_s']:,.0f} | |"
        yield f"| {step['name']}: decode | {report['decode_tok_per_s']:,.0f} | |"
    if "num_steps" in report:
        yield row("generated", report["generated_tok_per_s"], report["share_of_bf16"] or 0, products)
    if report.get("cached_prompts") and peaks.get("dram_read_gb_per_s"):
        steps_per_s = report["num_steps"] / report["elapsed_s"]
        num_rows = report["num_prompts"] * report["n"]
        context = report["input_len"] + report["output_len"] / 2
        gb = (report["weight_bytes_read_per_token"] + num_rows * context * kv_bytes_per_token(step)) / 1e9
        yield row(f"a step of {num_rows} rows in {1e3 / steps_per_s:.2f} ms", steps_per_s * num_rows,
                  gb * steps_per_s / peaks["dram_read_gb_per_s"], f"{memory}, weights and keys and values")
    if report.get("beam_width") or report.get("spread"):
        yield f"| {step['name']} | {report['requests_per_s']:,.2f} requests/s | |"
    if "ttft_ms" in report:
        first, rate = report["ttft_ms"]["p50"], report["output_tok_per_s"]
        yield f"| {step['name']}: ready after | {step['ready_s']:.1f} s | |"
        yield f"| {step['name']}: first token after {first:.1f} ms (median) | {rate:,.0f} | |"
    if report.get("is_same_alone") is not None:
        yield f"| {step['name']}: alone | {'the same' if report['is_same_alone'] else 'other'} tokens | |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/gpu/results", help="where results go")
    parser.add_argument("--only", default="", help="only steps whose names contain this, or one of A,B")
    parser.add_argument("--budget-s", type=float, default=8 * 60, help="no step goes on for longer than until then")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for log in [Step.LOG, Counted.LOG]:
        (args.out / log).unlink(missing_ok=True)
    begun = time.monotonic()
    result = {"gpu": gpu(), "date": datetime.date.today().isoformat(), "steps": []}
    for step in steps():
        if not any(part in step.name for part in args.only.split(",")):
            continue
        print(f"{step.name} ...", flush=True)
        done = step.run(args.out, args.budget_s - (time.monotonic() - begun))
        print(f"{step.name}: {done['outcome']}, {done['seconds']} s", flush=True)
        result["steps"].append(done)
        if done["outcome"] != "ok":
            os.environ.update(step.fallback)
        # After each: what is killed from outside leaves what it has.
        (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (args.out / "result.md").write_text(table(result), encoding="utf-8")
    print(table(result))
    sys.exit(any(step["outcome"] != "ok" for step in result["steps"]))


if __name__ == "__main__":
    main()
