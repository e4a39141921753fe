#!/usr/bin/env python3
"""Golden log-probabilities of the starter model, computed by transformers in float32.

Run by hand, never by CI:

    python3 -m venv venv && venv/bin/pip install torch transformers accelerate gguf
    venv/bin/python scripts/starter_golden.py SmolLM2-135M-Instruct.Q4_1.gguf

It dequantizes the GGUF's weights (transformers' own GGUF reader does that, and undoes the q/k permutation), decodes
greedily for a few prompts, end tokens like any other, and writes tests/golden/starter/logprobs.json. A test of the
engine compares its own log-probabilities with these; the engine multiplies quantized blocks, so the tolerance is the
engine's to state.

The prompts hold no digit: transformers drops the `Digits` step of this GGUF's pre-tokenizer, so that its ids of a text
with digits can differ from those the model was trained on. Without digits the two agree.
"""

import argparse
import hashlib
import json
import pathlib

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_TOKENS = 24
NUM_TOP = 5
OUTPUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "starter" / "logprobs.json"

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat(*turns):
    """A conversation in the model's own format, ready for the assistant's answer."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return text + "<|im_start|>assistant\n"


PROMPTS = {
    "capital": "The capital of France is",
    "story": "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "code": "def add(a, b):\n    return",
    "sky": chat(("system", SYSTEM), ("user", "Why is the sky blue?")),
    "turns": chat(
        ("system", "Answer in one short sentence."),
        ("user", "What is the largest planet?"),
        ("assistant", "The largest planet is Jupiter."),
        ("user", "And the one nearest to the sun?"),
    ),
    "unicode": chat(("system", SYSTEM), ("user", "Translate to English: «Où est la bibliothèque ?»")),
}


def entry(logprobs, token_id):
    """The chosen token's log-probability and the most probable tokens with theirs."""
    top = torch.topk(logprobs, NUM_TOP)
    return {
        "token_id": token_id,
        "logprob": round(logprobs[token_id].item(), 5),
        "top": [[i, round(p, 5)] for i, p in zip(top.indices.tolist(), top.values.tolist())],
    }


@torch.no_grad()
def greedy(model, prompt_ids):
    """One entry for each of the tokens decoded after `prompt_ids`; the whole sequence is computed anew each time."""
    ids, steps = list(prompt_ids), []
    for _ in range(NUM_TOKENS):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        steps.append(entry(logprobs, int(logprobs.argmax())))
        ids.append(steps[-1]["token_id"])
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args()

    source = {"pretrained_model_name_or_path": str(args.gguf.parent), "gguf_file": args.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, attn_implementation="eager").eval()

    cases = []
    for name, text in PROMPTS.items():
        assert not any(c.isdigit() for c in text), name
        prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(prompt_ids) == text, name
        steps = greedy(model, prompt_ids)
        output = tokenizer.decode([step["token_id"] for step in steps])
        print(f"{name}: {output!r}")
        cases.append({"name": name, "prompt": text, "prompt_ids": prompt_ids, "output": output, "steps": steps})

    golden = {
        "model": args.gguf.name,
        "sha256": hashlib.sha256(args.gguf.read_bytes()).hexdigest(),
        "made_with": f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, float32, CPU",
        "cases": cases,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(dumps(golden), encoding="utf-8")


def dumps(golden):
    """JSON with one decoded token a line."""
    lines = json.dumps({k: v for k, v in golden.items() if k != "cases"}, indent=1)[:-2] + ',\n "cases": [\n'
    blocks = []
    for case in golden["cases"]:
        head = json.dumps({k: v for k, v in case.items() if k != "steps"}, ensure_ascii=False)[:-1]
        steps = ",\n   ".join(json.dumps(step) for step in case["steps"])
        blocks.append(f'  {head}, "steps": [\n   {steps}\n  ]}}')
    return lines + ",\n".join(blocks) + "\n ]\n}\n"


if __name__ == "__main__":
    main()
