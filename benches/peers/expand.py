"""Expands a quantized GGUF file to f32 and writes it as a Hugging Face folder: weights, configuration, tokenizer.

    python -P -m peers.expand FILE.gguf FOLDER

transformers reads the file. Needs torch, transformers and gguf, so it runs in the environment of a peer that has them.
"""

import pathlib
import sys

import safetensors.torch
import torch
import transformers


def main():
    source, folder = map(pathlib.Path, sys.argv[1:])
    load = {"gguf_file": source.name}
    transformers.AutoTokenizer.from_pretrained(source.parent, **load).save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, **load, dtype=torch.float32)
    # transformers itself saves no model that came from a GGUF file: it counts as quantized although its weights no longer are.
    model.config.architectures = [type(model).__name__]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.save_pretrained(folder)
    safetensors.torch.save_model(model, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
