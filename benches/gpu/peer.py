"""The same model in transformers, on the same GPU: what `bench latency` measures, printed as one line of JSON.

    python3 benches/gpu/peer.py CONFIG_FOLDER
"""

import json
import sys
import time

import torch
import transformers

PROMPTS, OUTPUT_LEN = [128, 2048, 8192], 32


def seconds(run):
    """The shorter of two runs, after one that warms up."""
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


@torch.inference_mode()
def main():
    config = transformers.AutoConfig.from_pretrained(sys.argv[1])
    config.max_position_embeddings = 16384
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    report = {"transformers": transformers.__version__, "torch": torch.__version__, "prompts": []}
    for input_len in PROMPTS:
        ids = torch.randint(10, config.vocab_size, (1, input_len), device="cuda")
        took = seconds(lambda ids=ids: model(ids, use_cache=True, logits_to_keep=1))
        report["prompts"].append({"input_len": input_len, "ms": 1e3 * took, "tok_per_s": input_len / took})
    ids = torch.randint(10, config.vocab_size, (1, PROMPTS[0]), device="cuda")

    def generate(num):
        return seconds(lambda: model.generate(ids, do_sample=False, min_new_tokens=num, max_new_tokens=num))

    report["decode_tok_per_s"] = OUTPUT_LEN / (generate(OUTPUT_LEN + 1) - generate(1))
    print(json.dumps(report))


main()
