#!/usr/bin/env python3
"""LoRA adapters of the golden fixtures, and what peft and transformers compute with them in float32: tests/golden/lora.

Run by hand, never by CI, when the fixtures are there (scripts/make_golden.py):

    venv/bin/pip install peft==0.21.2
    venv/bin/python scripts/make_adapters.py [NAME ...]

Each folder is an adapter as a hub would hold it (adapter_config.json, adapter_model.safetensors), with

prompts.json         those of the model's fixture
logits.safetensors   prompt{i}.logits [tokens, vocab] at every position of the first two
greedy.json          greedy continuations of the first two prompts, as in the fixtures
beam.json            beam searches, as in the fixtures

and manifest.json, of all, has versions, the models and how far each adapter moves a logit. Weights are random, rounded to the type in
which they are stored, and large enough to matter.
"""

import argparse
import json
import shutil

import peft
import safetensors.torch
import tokenizers
import torch
import transformers

from make_golden import (GREEDY_TOKENS, MIN_MARGIN, OUTPUT, VERSIONS, beam_cases, greedy, load, logits_of, write_json)

VERSIONS = {**VERSIONS, "peft": "0.21.2"}
MIN_SHIFT = 1.0  # of some logit of each prompt

ADAPTERS = {
    # Every layer that there is; ranks and scales that differ from one to another.
    "llama-all": {
        "model": "llama", "dtype": torch.float32, "seed": 100,
        "config": {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 6, "^model.layers.1.mlp.up_proj": 2},
                   "alpha_pattern": {r"layers\.[1-9]\..*down_proj": 3},
                   "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    },
    # Some of the parts that a matrix has, of one layer.
    "llama-some": {
        "model": "llama", "dtype": torch.bfloat16, "seed": 200,
        "config": {"r": 3, "lora_alpha": 5, "use_rslora": True, "layers_to_transform": [1],
                   "target_modules": ["q_proj", "v_proj", "up_proj"]},
    },
    "phi3-fused": {
        "model": "phi3", "dtype": torch.float16, "seed": 300,
        "config": {"r": 5, "lora_alpha": 5, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]},
    },
    "phi-all": {
        "model": "phi", "dtype": torch.float32, "seed": 400,
        "config": {"r": 17, "lora_alpha": 17, "target_modules": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]},
    },
    "gemma2-mlp": {
        "model": "gemma2", "dtype": torch.float32, "seed": 500,
        "config": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj", "gate_proj", "down_proj"]},
    },
    # Rows of q and k in another order than those of B in the file; outputs that are normalised.
    "glm4-all": {
        "model": "glm4", "dtype": torch.float32, "seed": 700,
        "config": {"r": 4, "lora_alpha": 4,
                   "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]},
    },
    "mixtral-attention": {
        "model": "mixtral", "dtype": torch.float32, "seed": 600,
        "config": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    },
}


def save_adapter(directory, base, spec, seed):
    """A random adapter, in PEFT's own files."""
    shutil.rmtree(directory, ignore_errors=True)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **spec["config"])
    model = peft.get_peft_model(base, config)
    model.save_pretrained(directory)
    (directory / "README.md").unlink()
    settings = json.loads((directory / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = spec["model"]
    write_json(directory / "adapter_config.json", {key: settings[key] for key in sorted(settings)})
    path, generator = directory / "adapter_model.safetensors", torch.Generator().manual_seed(seed)
    weights = {}
    for name, old in sorted(safetensors.torch.load_file(path).items()):
        # A . x of about 1, and what is added of about a third.
        scale = 1.0 if "lora_A" in name else 0.3
        weights[name] = (torch.randn(old.shape, generator=generator) * scale / old.shape[1] ** 0.5).to(spec["dtype"])
    safetensors.torch.save_file(weights, path, {"format": "pt"})


def make(name, spec):
    """Writes one adapter; its entry of the manifest."""
    directory, fixture = OUTPUT / "lora" / name, OUTPUT / spec["model"]
    prompts = json.loads((fixture / "golden" / "prompts.json").read_text())
    eos = json.loads((fixture / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = tokenizers.Tokenizer.from_file(str(fixture / "tokenizer.json"))
    plain = load(fixture)
    for seed in range(spec["seed"], spec["seed"] + 100):
        save_adapter(directory, load(fixture), spec, seed)
        model = peft.PeftModel.from_pretrained(load(fixture), directory).eval()
        cases = [{"max_new_tokens": GREEDY_TOKENS, "ignore_eos": ignores, "eos_token_ids": eos} for ignores in (True, False)]
        found = [greedy(model, tokenizer, i, prompts[i]["input_ids"], case) for i in range(2) for case in cases]
        shifts = [(logits_of(model, p["input_ids"]) - logits_of(plain, p["input_ids"])).abs().max().item() for p in prompts]
        beams = beam_cases(model, prompts, eos)
        if min(case["min_top2_margin"] for case in found) >= MIN_MARGIN and min(shifts) >= MIN_SHIFT and len(beams) >= 8:
            break
    else:
        raise SystemExit(f"{name}: no seed will do")
    logits = {f"prompt{i}.logits": logits_of(model, p["input_ids"]).contiguous() for i, p in enumerate(prompts[:2])}
    safetensors.torch.save_file(logits, directory / "logits.safetensors")
    write_json(directory / "prompts.json", prompts)
    write_json(directory / "greedy.json", found)
    write_json(directory / "beam.json", beams[:8])
    return {"model": spec["model"], "seed": seed, "logit_shifts": [round(shift, 3) for shift in shifts]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"adapters to make: {', '.join(ADAPTERS)}; all")
    names = parser.parse_args().names or list(ADAPTERS)
    found = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__}
    assert found == VERSIONS, f"expected {VERSIONS}, found {found}"
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    path = OUTPUT / "lora" / "manifest.json"
    for name in names:
        entry = make(name, ADAPTERS[name])
        print(name, entry, flush=True)
        adapters = json.loads(path.read_text())["adapters"] if path.exists() else {}
        adapters[name] = entry
        adapters = {name: adapters[name] for name in ADAPTERS if name in adapters}
        write_json(path, {"made_by": "scripts/make_adapters.py", **VERSIONS, "adapters": adapters})


if __name__ == "__main__":
    main()
