"""Which steps there are, what is most wanted first: what is left when time runs out is run by --rest."""

import pathlib
import shutil
import sys

from step import BUILT, ROOT, Counted, Served, Step, Traced

SANITIZERS = ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"]
COUNTERS = ["ncu", "/usr/local/cuda/bin/ncu"]
WITHOUT_HOPPER = {"SCONCE_CUDA_HOPPER": "0"}
WITHOUT_TRIALS = {"SCONCE_CUDA_AUTOTUNE": "0"}
WITHOUT_FUSED_ROPE = {"SCONCE_CUDA_FUSE_ROPE": "0"}
WITHOUT_EARLY_KERNELS = {"SCONCE_CUDA_EARLY_ROWS": "0"}
# Says how long loading takes, and which algorithms are chosen by trial.
LOADING = {"RUST_LOG": "warn,sconce_core::engine::load=info"}
CHOICES = {"RUST_LOG": LOADING["RUST_LOG"] + ",sconce_core::ops::linear=debug"}
MODEL = "llama-3.1-8b-instruct"
# The same with a tokenizer of its vocabulary, which is what HTTP is measured with; as a 4-bit checkpoint has it.
HTTP_MODEL = "llama-http"
INT4_MODEL = "llama-int4"
# As Llama-3.2-1B is.
SMALL_MODEL = "llama-1b"
# Whose heads are normalised, and mixtures of experts.
QWEN_MODEL, EXPERTS_MODEL, GPT_OSS_MODEL = "qwen3-8b", "qwen3-30b-a3b", "gpt-oss-20b"
# Each with what it is called in tables.
OTHER_MODELS = {"mistral-7b-instruct-v0.2": "Mistral-7B", "gemma-2-9b-it": "Gemma-2-9B", "phi-3-mini-4k-instruct": "Phi-3-mini",
                "phi-2": "phi-2"}
MANY = [2, 4, 8, 16, 32, 64, 128, 256]
# Conversations: prompts and answers of at most 1,024 tokens, all under way at once.
CONVERSATIONS = ["--num-prompts", 1000, "--input-len", 220, "--output-len", 200, "--spread", 1, "--spread-max", 1024, "--seed", 0]
LONG = ["--max-model-len", 9216, "--max-num-batched-tokens", 8192]
CACHED = "--cached-prompts"
# Of products of inputs in e4m3, which `fast` alone has.
OF_FAST = ["inputs_in_e4m3", "there_are_codes"]


def slots(num, context, batched=8192):
    return ["--max-num-seqs", num, "--max-model-len", context, "--max-num-batched-tokens", batched]


def bench(name, limit_s, mode, *flags, model=MODEL, env=None, kind=Step, **kwargs):
    command = [BUILT / "sconce", "bench", mode, "--model", BUILT / "models" / model, "--load-format", "dummy", "--device", "cuda:0",
               "--json", *flags]
    return kind(name, command, limit_s, has_json=True, takes_peaks=True, env=LOADING | (env or {}), **kwargs)


def latency(name, prompts, *flags, limit_s=60, output_len=128, num_iters=3, limits=LONG, **kwargs):
    lengths = ["--input-len", prompts, "--output-len", output_len, "--num-iters", num_iters]
    return bench(name, limit_s, "latency", *lengths, *limits, *flags, **kwargs)


def together(name, prompts, input_len, output_len, *flags, limit_s=60, limits=slots(256, 4096), **kwargs):
    lengths = ["--num-prompts", prompts, "--input-len", input_len, "--output-len", output_len]
    return bench(name, limit_s, "throughput", *lengths, *limits, *flags, **kwargs)


def test(name, limit_s, *filters, before=(), fallback=None):
    env = {"REQUIRE_CUDA": "1", "CARGO_MANIFEST_DIR": str(ROOT / "crates/sconce-core")}
    return Step(name, [*before, BUILT / "tests", "--test-threads=1", *filters], limit_s, env=env, fallback=fallback)


def skipping(*names):
    return [part for name in names for part in ("--skip", name)]


def steps():
    yield from correctness()
    yield from goals()
    yield from timelines()
    yield from comparisons()
    yield from formats()
    yield from last()


def correctness():
    yield Step("devices", [BUILT / "sconce", "devices", "--test"], 60)
    # Their log says whether kernels for Hopper have the portable ones' bits.
    yield test("linear on Hopper", 60, "linear::hopper", "kernels_for_hopper", "--nocapture", *skipping(*OF_FAST), fallback=WITHOUT_HOPPER)
    yield test("attention on Hopper", 60, "attention::hopper", "--nocapture", fallback=WITHOUT_HOPPER)
    yield test("RoPE within decode attention", 60, "rope_tests", fallback=WITHOUT_FUSED_ROPE)
    # Two tests want the host shim.
    yield test("golden, chunks = whole, graphs = launches", 90, "cuda::tests", "a_query_alone", "parts_of_long",
               *skipping("the_kernel_goes_by", "kernels_for_hopper", "rope_within", "int8", *OF_FAST), fallback=WITHOUT_EARLY_KERNELS)


def goals():
    """A step at least for each row of figures.GOALS."""
    yield latency("one user", "128,2048,8192", "--decode-after", "128,4096", limit_s=90, env=CHOICES, fallback=WITHOUT_TRIALS)
    # In one process, which takes longer to start than to measure; what a run has computed of prompts serves the next.
    yield together("decodes", ",".join(map(str, MANY)), 1024, 64, CACHED, limit_s=90)
    yield latency("one user, fp8", "128,2048", "--decode-after", 128, "--quantization", "fp8")
    if (BUILT / "models" / HTTP_MODEL).is_dir():
        # A token that stands for the beginning comes before 127 words.
        first = ["--num-prompts", 30, "--input-len", 127, "--output-len", 2, "--ignore-eos", "--max-concurrency", 1]
        yield Served("over HTTP", BUILT / "models" / HTTP_MODEL, slots(1000, 2048), [first, [*CONVERSATIONS, "--ignore-eos"]], 100)
    yield bench("conversations", 90, "throughput", *CONVERSATIONS, *slots(1000, 2048))
    if (BUILT / "models" / HTTP_MODEL).is_dir():
        # Start to ready: 16 GB from the page cache.
        load = ["--num-prompts", 1, "--input-len", 32, "--output-len", 2, "--ignore-eos"]
        yield Served("start with a checkpoint", BUILT / "models" / HTTP_MODEL, slots(256, 4096), [load], 75, has_checkpoint=True)
    yield together("offline 128/128", 1000, 128, 128, limit_s=100, limits=slots(512, 4096))
    for input_len, output_len in [(1000, 1000), (2048, 128)]:
        yield together(f"offline {input_len}/{output_len}", 256, input_len, output_len, limit_s=100)
    yield together("beams of 4", 100, 256, 256, "--beam-width", 4, limit_s=90, limits=slots(400, 1024))
    # Were its prompt computed for each sequence it would take eight steps and not one, and were it stored for each, eight times the room.
    yield together("8 of one prompt", 1, 2048, 128, "--n", 8, limits=slots(256, 4096, 2048))
    yield together("8 prompts of 2048", 8, 2048, 128, "--temperature", 1, CACHED, limits=slots(256, 4096, 2048))
    yield together("one among 127 others", 128, 512, 128, "--check-alone")
    yield together("one among 127 others, fast", 128, 512, 128, "--check-alone", "--matmul-precision", "fast")
    # Whose models are not at hand is left out.
    for model in OTHER_MODELS:
        if (BUILT / "models" / model).is_dir():
            yield latency(f"one user, {model}", 128, "--decode-after", "128,1900", output_len=64, num_iters=2,
                          limits=["--max-model-len", 2048], model=model)


def timelines():
    one = {"limit_s": 40, "output_len": 32, "num_iters": 2, "kind": Traced}

    def of_many(num):
        return together(f"timeline of a decode of {num}", num, 1024, 16, CACHED, limit_s=40, kind=Traced, steps="decodes")

    yield latency("timeline of one user", 128, **one, steps="decodes")
    yield of_many(64)
    yield latency("timeline of a prompt of 2048", 2048, **one, steps="prompts")
    yield Step("attention by itself", [BUILT / "sconce", "devices", "--attention"], 40)
    # Keys and values of 8 bits: half of what decodes of many users read beside the weights.
    yield test("keys and values in int8", 60, "int8", "expand_kv", "rope_append_kv")
    yield together("decodes, int8 keys", "64,256", 1024, 64, CACHED, "--kv-cache-dtype", "int8")
    # What trials are worth.
    yield latency("one user, estimates", "128,2048", "--decode-after", 128, env=WITHOUT_TRIALS)
    yield together("decodes, estimates", "16,64,256", 1024, 64, CACHED, env=WITHOUT_TRIALS)
    yield of_many(16)
    yield of_many(256)
    yield latency("timeline of a prompt of 8192", 8192, **one, steps="prompts")
    yield latency("timeline of one user after 4096", 128, "--decode-after", 4096, **one, steps="decodes")
    yield latency("timeline of one user, fp8", 128, "--quantization", "fp8", **one, steps="decodes")


def comparisons():
    # Each operation is waited for here: what it takes by itself, launch and all.
    yield bench("one user, operations one by one", 60, "ops", "--input-len", 2048, "--num-iters", 2, "--max-model-len", 4096,
                "--max-num-batched-tokens", 2048)
    for products, flags, env in [("portable", [], WITHOUT_HOPPER), ("library's", ["--matmul-precision", "fast"], {})]:
        yield latency(f"prompts, {products} products", "2048,8192", *flags, output_len=2, limit_s=40, env=env)
    # A copy of keys is a block of the cache, or 64 of one.
    yield latency("prompts, blocks of 64 tokens", "2048,8192", "--block-size", 64, output_len=2, limit_s=40)
    # As many at once as by default; what it is worth that the next step is launched before this one is read, and that kernels begin before
    # others end.
    yield together("offline 128/128, 256 at once", 1000, 128, 128)
    yield together("offline 128/128, 256 at once, read first", 1000, 128, 128, env={"SCONCE_CUDA_RUN_AHEAD": "0"})
    yield latency("one user, kernel after kernel", 128, env={"SCONCE_CUDA_PDL": "0"})
    yield together("decode of 16, kernel after kernel", 16, 1024, 64, CACHED, limit_s=40, env={"SCONCE_CUDA_PDL": "0"})
    # Of how many rows short kernels should let the next one in at once.
    yield latency("one user, no kernel early", 128, env=WITHOUT_EARLY_KERNELS)
    yield together("decodes, kernels early", "16,64,256", 1024, 64, CACHED, env={"SCONCE_CUDA_EARLY_ROWS": "256"})
    # What it is worth that decode attention does RoPE too.
    yield latency("one user, RoPE in a launch of its own", 128, env=WITHOUT_FUSED_ROPE)
    yield together("decode of 64, RoPE in a launch of its own", 64, 1024, 64, CACHED, limit_s=40, env=WITHOUT_FUSED_ROPE)
    yield latency("one user after 8k", 1024, "--decode-after", 8000)
    if (BUILT / "models" / SMALL_MODEL).is_dir():
        # Of random weights no draft is right, but those of the same weights: what a draft costs, and what right ones are worth.
        small = ["--draft-model", BUILT / "models" / SMALL_MODEL, "--num-speculative-tokens"]
        yield latency("one user, a 1B drafts in vain", 128, *small, 1)
        yield together("decode of 16, a 1B drafts in vain", 16, 1024, 64, CACHED, *small, 1, limit_s=40)
        yield latency("one user of a 1B", 128, model=SMALL_MODEL)
        yield latency("one user of a 1B that drafts for itself", 128, *small, 4, model=SMALL_MODEL)


    if (BUILT / "models" / EXPERTS_MODEL).is_dir():
        yield latency("one user, Qwen3-8B", "128,2048", model=QWEN_MODEL)
        yield test("experts", 60, "experts")
        yield latency("one user of experts", "128,2048", model=EXPERTS_MODEL)
        yield together("decodes of experts", "16,64,256", 1024, 64, CACHED, limit_s=90, model=EXPERTS_MODEL)
        yield latency("timeline of one user of experts", 128, output_len=32, num_iters=2, kind=Traced, steps="decodes", model=EXPERTS_MODEL)
        yield latency("one user of gpt-oss-20b", "128,2048", limit_s=90, model=GPT_OSS_MODEL)
        yield together("decodes of gpt-oss-20b", "16,64", 1024, 64, CACHED, limit_s=90, model=GPT_OSS_MODEL)


def formats():
    int8 = ["--kv-cache-dtype", "int8"]
    yield together("offline 1000/1000, int8 keys", 256, 1000, 1000, *int8, limit_s=90)
    yield latency("one user after 8k, int8 keys", 1024, "--decode-after", 8000, *int8)
    fp8 = ["--quantization", "fp8"]
    yield bench("one user, fp8, operations one by one", 40, "ops", "--input-len", 128, "--num-iters", 2, "--max-model-len", 4096, *fp8)
    yield together("decodes after 32, fp8", "4,8,16,64", 32, 256, *fp8)
    # Inputs in e4m3 too.
    fast = [*fp8, "--matmul-precision", "fast"]
    yield test("inputs in e4m3", 60, *OF_FAST)
    yield latency("prompts, fp8 fast", "2048,8192", *fast, output_len=2, limit_s=40)
    yield together("offline 128/128, fp8 fast", 1000, 128, 128, *fast, limit_s=90)
    yield together("decodes, fp8 fast", "64,256", 1024, 64, CACHED, *fast)
    # Prompts of 2048 are computed by expanded weights, 16 and 64 at once by kernels that expand for themselves. Their random weights are
    # made on the host, which takes a while.
    for kind, model, flags in [("q4_0", MODEL, ["--quantization", "q4_0"]), ("int4", INT4_MODEL, []),
                               ("q8_0", MODEL, ["--quantization", "q8_0"])]:
        if (BUILT / "models" / model).is_dir():
            yield latency(f"one user, {kind}", "128,2048", *flags, limits=["--max-model-len", 4096], model=model)
            yield together(f"decodes after 32, {kind}", "16,64", 32, 256, *flags, model=model)
    yield latency("timeline of one user, q4_0", 128, "--quantization", "q4_0", output_len=32, num_iters=2, kind=Traced, steps="decodes")


def last():
    yield test("drafts by a second model", 60, "a_second_model")
    yield test("ops", 120, "device_equals", "cuda_tests", "linear::cuda", "embed", "copy_blocks", "sample::tests::device", "cuda::weights",
               *skipping("the_kernel_goes_by"))
    counter = next(filter(None, map(shutil.which, COUNTERS)), None)
    if counter:
        # Launches are counted from the first: none may be a trial's.
        prompt = latency("", 2048, output_len=2, num_iters=2, env=WITHOUT_TRIALS)
        decode = together("", 64, 1024, 16, CACHED, env=WITHOUT_TRIALS)
        alone = latency("", 128, output_len=32, num_iters=2, env=WITHOUT_TRIALS)
        yield Counted("counters of a prompt", counter, "attention_hopper", 4, 1, prompt)
        yield Counted("counters of a decode of 64", counter, "attention_decode|linear_hopper_split", 40, 5, decode)
        yield Counted("counters of one user", counter, "attention_decode|linear_.*rows", 200, 6, alone)
    sanitizer = next(filter(None, map(shutil.which, SANITIZERS)), None)
    for tool in ["memcheck", "racecheck"]:
        before = [sanitizer or SANITIZERS[0], "--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kernel_substring=_"]
        yield test(f"{tool} of the golden models", 60, "cuda::tests::models_keep", before=before)
        yield test(f"{tool} of keys and values in int8", 60, "int8_keys", before=before)
    yield Step("transformers", [sys.executable, pathlib.Path(__file__).parent / "peer.py", BUILT / "models" / MODEL], 90, has_json=True)
    yield Step("each kernel's products", [BUILT / "sconce", "devices", "--products"], 180)
