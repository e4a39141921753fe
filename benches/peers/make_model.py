#!/usr/bin/env python3
"""Makes a Llama-shaped GGUF file of random weights, to measure speed on a model that no cache holds.

    python3 benches/peers/make_model.py OUT.gguf --type Q4_K [--tokenizer FILE.gguf]

1.19e9 parameters: 22 layers, hidden 2048, feed-forward 5632, 32 heads and 8 key heads of 64, the vocabulary and tokenizer
of the file given (default: the starter model's, 49152 tokens), input and output embeddings apart. Every matrix has the
type asked for: published files named Q4_K or Q6_K mix types. Norms are F32 and 1.

Blocks of quantized types are random codes under random scales, no weights that were quantized: codes are read and
multiplied the same way whatever they are. Values have mean 0 and a deviation near 0.02, so that logits stay finite.
Tensors are made and written one after the other. Needs numpy and gguf, which are installed into target/peers/gguf.
"""

import argparse
import os
import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from peers import machine, venvs  # noqa: E402
from peers.engine import PLACE, REPOSITORY, EngineError  # noqa: E402

try:
    import gguf
    import numpy
except ImportError:
    gguf = numpy = None

HIDDEN, FEED_FORWARD, LAYERS, HEADS, KEY_HEADS, HEAD_DIM = 2048, 5632, 22, 32, 8, 64
CONTEXT = 4096
DEVIATION = 0.02
SEED = 1
CHUNK_VALUES = 2**24


def scales(random, count, mean):
    """Random scales near `mean` as the two bytes of an f16 each."""
    return random.uniform(0.8 * mean, 1.2 * mean, (count, 1)).astype(numpy.float16).view(numpy.uint8)


def codes(random, count, num_bytes):
    return random.integers(0, 256, (count, num_bytes), dtype=numpy.uint8)


def q8_0(random, count):
    """Scale; 32 signed bytes."""
    return [scales(random, count, DEVIATION / 74), codes(random, count, 32)]


def q4_0(random, count):
    """Scale; 32 codes of 4 bits, less 8."""
    return [scales(random, count, DEVIATION / 4.6), codes(random, count, 16)]


def q4_k(random, count):
    """Scale and least value; 8 pairs of 6-bit factors of these; 256 codes of 4 bits."""
    scale = random.uniform(0.8, 1.2, (count, 1)) * DEVIATION / 257
    least = 7.5 * scale  # the mean code: values have mean 0
    both = numpy.concatenate([scale, least], axis=1).astype(numpy.float16).view(numpy.uint8)
    return [both, codes(random, count, 12), codes(random, count, 128)]


def q6_k(random, count):
    """Low 4 bits and high 2 bits of 256 codes, less 32; 16 signed factors of the scale; scale."""
    factors = random.integers(-16, 16, (count, 16), dtype=numpy.int8).view(numpy.uint8)
    return [codes(random, count, 128), codes(random, count, 64), factors, scales(random, count, DEVIATION / 171)]


def bf16(random, count):
    """The upper halves of f32 numbers."""
    values = (random.standard_normal((count, 1), dtype=numpy.float32) * numpy.float32(DEVIATION)).view(numpy.uint32)
    return [(values >> 16).astype(numpy.uint16).view(numpy.uint8)]


BLOCKS = {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_K": q4_k, "Q6_K": q6_k, "BF16": bf16}


def matrix(random, kind, rows, columns):
    """Random rows in this type, as bytes."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    row_bytes = columns // values * size
    out = numpy.empty((rows, row_bytes), dtype=numpy.uint8)
    step = max(1, CHUNK_VALUES // columns)
    for begin in range(0, rows, step):
        num_rows = min(step, rows - begin)
        parts = BLOCKS[kind](random, num_rows * columns // values)
        out[begin : begin + num_rows] = numpy.concatenate(parts, axis=1).reshape(num_rows, row_bytes)
    return out


def tensors(vocabulary):
    """(name, rows or None for a norm, columns) of all tensors, in the file's order."""
    yield "token_embd.weight", vocabulary, HIDDEN
    for i in range(LAYERS):
        yield f"blk.{i}.attn_norm.weight", None, HIDDEN
        yield f"blk.{i}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN
        yield f"blk.{i}.attn_k.weight", KEY_HEADS * HEAD_DIM, HIDDEN
        yield f"blk.{i}.attn_v.weight", KEY_HEADS * HEAD_DIM, HIDDEN
        yield f"blk.{i}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM
        yield f"blk.{i}.ffn_norm.weight", None, HIDDEN
        yield f"blk.{i}.ffn_gate.weight", FEED_FORWARD, HIDDEN
        yield f"blk.{i}.ffn_up.weight", FEED_FORWARD, HIDDEN
        yield f"blk.{i}.ffn_down.weight", HIDDEN, FEED_FORWARD
    yield "output_norm.weight", None, HIDDEN
    yield "output.weight", vocabulary, HIDDEN


def copy_tokenizer(reader, writer):
    """Copies the tokenizer's keys; returns the size of the vocabulary."""
    vocabulary = 0
    for name, field in reader.fields.items():
        if not name.startswith("tokenizer."):
            continue
        element = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], element)
        if name == "tokenizer.ggml.tokens":
            vocabulary = len(field.data)
    if not vocabulary:
        raise EngineError("the file given with --tokenizer has no tokenizer.ggml.tokens")
    return vocabulary


def write_model(path, kind, tokenizer):
    writer = gguf.GGUFWriter(path, "llama")
    vocabulary = copy_tokenizer(gguf.GGUFReader(tokenizer), writer)
    writer.add_name(f"random-1.2B-{kind}")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
    quantization = gguf.GGMLQuantizationType[kind]
    values, size = gguf.GGML_QUANT_SIZES[quantization]
    for name, rows, columns in tensors(vocabulary):
        if rows is None:
            writer.add_tensor_info(name, (columns,), numpy.dtype(numpy.float32), columns * 4)
        else:
            shape = (rows, columns // values * size)
            writer.add_tensor_info(name, shape, numpy.dtype(numpy.uint8), shape[0] * shape[1], quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = numpy.random.default_rng(SEED)
    for _, rows, columns in tensors(vocabulary):
        is_norm = rows is None
        writer.write_tensor_data(numpy.ones(columns, numpy.float32) if is_norm else matrix(random, kind, rows, columns))
    writer.close()


FILE_TYPES = {
    "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0", "Q4_K": "MOSTLY_Q4_K_S", "Q6_K": "MOSTLY_Q6_K", "BF16": "MOSTLY_BF16",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=pathlib.Path, help="the file to write")
    parser.add_argument("--type", choices=BLOCKS, default="Q8_0", help="of all matrices (default: Q8_0)")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="a GGUF file whose tokenizer is copied (default: the starter model)")
    args = parser.parse_args()
    try:
        if gguf is None:
            python = venvs.install(PLACE / "gguf", "gguf", "numpy")
            if pathlib.Path(sys.prefix) == python.parents[1]:
                raise EngineError(f"gguf and numpy are in {python.parents[1]} and cannot be imported: delete that folder")
            os.execv(python, [str(python), *sys.argv])
        tokenizer = args.tokenizer or machine.starter_model(REPOSITORY / "target" / "release" / "sconce")
        if not tokenizer.is_file():
            raise EngineError(f"{tokenizer} is not there")
        if not args.out.parent.is_dir():
            raise EngineError(f"{args.out.parent} is no folder")
        write_model(args.out, args.type, tokenizer)
    except EngineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
