#!/usr/bin/env python3
"""The packed matrices of tests/packed: random ones, packed by the tools themselves, and what the tools make of them again.

Run by hand, never by CI:

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.24.0 compressed-tensors==0.20.1
    venv/bin/pip install --no-deps auto-gptq==0.7.1 autoawq==0.2.9
    venv/bin/python scripts/make_packed.py

Each folder has config.json with the `quantization_config` alone, and model.safetensors: `layers.0.proj.*` as the tool writes them,
and `expected` [rows, cols] F32, which is exact: scales are f32 while it is computed.
"""

import importlib
import json
import pathlib
import sys
import types

import safetensors.torch
import torch
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

ROWS, COLS, GROUP = 32, 128, 64
OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "packed"


def load(package, module):
    """A module of a package whose own __init__ wants versions of other packages that are long gone."""
    root = pathlib.Path(importlib.util.find_spec("torch").origin).parent.parent
    for name in [package, *[f"{package}.{part}" for part in ("modules", "modules.linear", "utils", "nn_modules", "nn_modules.qlinear")]]:
        stub = types.ModuleType(name)
        stub.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, stub)
    return importlib.import_module(f"{package}.{module}")


def random_matrix(bits, group_size, is_symmetric, dtype=torch.float16):
    """Numbers that are scale * (code - zero) exactly; scales and zero points are [rows, groups]."""
    groups = COLS // (COLS if group_size == -1 else group_size)
    scales = (torch.rand(ROWS, groups) * 0.02 + 0.001).to(dtype).float()
    codes = torch.randint(0, 2**bits, (ROWS, COLS))
    zeros = torch.full((ROWS, groups), 2 ** (bits - 1))
    if not is_symmetric:
        zeros = torch.randint(1, 2**bits, (ROWS, groups))
    each = COLS // groups
    weight = scales.repeat_interleave(each, 1) * (codes - zeros.repeat_interleave(each, 1))
    return weight, scales, zeros


def linear_of(weight):
    linear = torch.nn.Linear(COLS, ROWS, bias=False)
    linear.weight.data = weight.clone()
    return linear


def gptq(bits, group_size, is_symmetric, act_order=False, checkpoint_format="gptq"):
    weight, scales, zeros = random_matrix(bits, group_size, is_symmetric)
    module = load("auto_gptq", "nn_modules.qlinear.qlinear_cuda")
    layer = module.QuantLinear(bits, group_size, COLS, ROWS, bias=False, weight_dtype=torch.float32)
    g_idx = layer.g_idx.clone()
    if act_order:
        order = torch.randperm(COLS)
        g_idx, weight = g_idx[order], weight[:, order]
    layer.pack(linear_of(weight), scales, zeros.float(), g_idx=g_idx.to(torch.int32))
    expected = layer(torch.eye(COLS)).t().contiguous()
    tensors = {"qweight": layer.qweight, "qzeros": layer.qzeros, "g_idx": layer.g_idx, "scales": layer.scales.half()}
    if checkpoint_format == "gptq_v2":
        tensors["qzeros"] = layer.qzeros + sum(1 << at for at in range(0, 32, bits))
    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": is_symmetric, "desc_act": act_order}
    return {**config, "checkpoint_format": checkpoint_format}, tensors, weight, expected


def awq():
    weight, scales, zeros = random_matrix(4, GROUP, False)
    gemm = load("awq", "modules.linear.gemm")
    layer = gemm.WQLinear_GEMM.from_linear(linear_of(weight), 4, GROUP, scales=scales.t(), zeros=zeros.t())
    expected = gemm.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, GROUP).t().contiguous()
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
    return config, {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales}, weight, expected


def compressed(form, bits, group_size, is_symmetric):
    weight, scales, zeros = random_matrix(bits, group_size, is_symmetric, torch.bfloat16)
    grouped = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    args = {"num_bits": bits, "type": "int", "symmetric": is_symmetric, **grouped}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    compressor = {"pack-quantized": PackedQuantizationCompressor, "int-quantized": IntQuantizationCompressor}[form]
    state = {"weight": weight, "weight_scale": scales, "weight_zero_point": (zeros - 2 ** (bits - 1)).to(torch.int8)}
    tensors = compressor.compress(state, scheme)
    expected = compressor.decompress(tensors, scheme)["weight"]
    tensors["weight_scale"] = tensors["weight_scale"].bfloat16()
    groups = {"group_0": {"targets": ["Linear"], "weights": args, "input_activations": None, "output_activations": None}}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
    return config, tensors, weight, expected


CASES = {
    "gptq": lambda: gptq(4, GROUP, False),
    "gptq-symmetric": lambda: gptq(4, -1, True),
    "gptq-8-bits": lambda: gptq(8, GROUP, True),
    "gptq-act-order": lambda: gptq(4, GROUP, False, act_order=True),
    "gptq-v2": lambda: gptq(4, GROUP, False, checkpoint_format="gptq_v2"),
    "awq": awq,
    "pack-quantized": lambda: compressed("pack-quantized", 4, COLS, False),
    "pack-quantized-symmetric": lambda: compressed("pack-quantized", 4, GROUP, True),
    "pack-quantized-8-bits": lambda: compressed("pack-quantized", 8, GROUP, True),
    "int-quantized": lambda: compressed("int-quantized", 8, -1, True),
}

for seed, (name, make) in enumerate(CASES.items()):
    torch.manual_seed(seed)
    config, tensors, weight, expected = make()
    assert torch.equal(weight, expected), name
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("config.json").write_text(json.dumps({"quantization_config": config}, indent=2) + "\n")
    tensors = {f"layers.0.proj.{key}": tensor.detach().contiguous() for key, tensor in tensors.items()}
    safetensors.torch.save_file({**tensors, "expected": expected.float()}, folder / "model.safetensors")
    print(name, {key: (str(tensor.dtype), list(tensor.shape)) for key, tensor in tensors.items()})
