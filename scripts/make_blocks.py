#!/usr/bin/env python3
"""tests/blocks.safetensors: blocks of every format of GGUF, and the numbers that llama.cpp's own Python package makes of them.

Run by hand, never by CI:

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 safetensors==0.8.0
    venv/bin/python scripts/make_blocks.py

`FORMAT.blocks` [bytes] U8 and `FORMAT.numbers` [elements] F32: first blocks of arbitrary bits, then, where the package has a
quantizer, those of `values` [elements] F32. `FORMAT.encoded` [bytes] U8 are the latter alone.
"""

import pathlib

import numpy as np
import safetensors.numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "blocks.safetensors"
# Where a block has halves, which have to be finite.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}
# Elements of arbitrary blocks.
NUM_ARBITRARY = 4096


def values():
    """Mostly small, with a block of zeros and one of equal numbers."""
    unit = np.random.default_rng(0).uniform(-1, 1, 2048).astype(np.float32)
    unit[:32], unit[32:64] = 0, -0.25
    return unit**3


def main():
    tensors = {"values": values()}
    for seed, (name, halves) in enumerate(HALVES.items(), 1):
        kind = GGMLQuantizationType[name]
        block_len, block_bytes = GGML_QUANT_SIZES[kind]
        blocks = np.random.default_rng(seed).integers(0, 256, (NUM_ARBITRARY // block_len, block_bytes), dtype=np.uint8)
        for at in halves:
            blocks[:, at + 1] &= 0xFB  # the exponent is not all ones
        blocks = blocks.reshape(-1)
        try:
            encoded = quants.quantize(tensors["values"], kind).reshape(-1)
            blocks = np.concatenate([blocks, encoded])
            tensors[f"{name}.encoded"] = encoded
        except NotImplementedError:
            pass
        numbers = quants.dequantize(blocks, kind)
        assert np.isfinite(numbers).all(), name
        tensors |= {f"{name}.blocks": blocks, f"{name}.numbers": numbers}
    safetensors.numpy.save_file(tensors, OUT)


if __name__ == "__main__":
    main()
