"""Tokenizers and chat templates of the golden fixtures: small, trained here, in wording of their own.

`TOKENIZERS[name]()` gives a `Text` with the contents of tokenizer.json and tokenizer_config.json.
"""

from collections import Counter
from dataclasses import dataclass

VOCAB_SIZE = 304

CORPUS = """The boat sails on the sea and the sea sails under the boat. The stars stand in the sky over the island.
What do they see there? They see the small stars, the wide sea, and an old man who reads to his son in the evening.
Hello! Hi there. And the sea? What is the name of the island? He said that it has none; she said that it has three.
The user asks, the assistant answers. User: Hello! Assistant: Hi. system user assistant system user assistant
"""

TURNS = "{%- if m.role != ['user', 'assistant'][loop.index0 % 2] -%}{{ raise_exception('turn ' ~ loop.index ~ " \
        "' is of the role ' ~ m.role ~ ', but users and assistants take turns here') }}{%- endif -%}"

GEMMA2_TEMPLATE = """{%- if messages[0].role == 'system' -%}
{{ raise_exception('this model knows no system role') }}
{%- endif -%}
{{ bos_token }}
{%- for m in messages -%}
""" + TURNS + """
{{- '<turn>' ~ {'user': 'you', 'assistant': 'me'}[m.role] ~ '\\n' ~ m.content | trim ~ '</turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>me\\n' }}{%- endif -%}"""

MISTRAL_TEMPLATE = """{%- set system = messages[0].content if messages[0].role == 'system' else none -%}
{%- set turns = messages if system is none else messages[1:] -%}
{{- bos_token -}}
{%- for m in turns -%}
""" + TURNS + """
{%- if m.role == 'user' -%}
{{ '[Q] ' ~ (system ~ '\\n' if loop.first and system is not none else '') ~ m.content ~ ' [A]' }}
{%- else -%}
{{ ' ' ~ m.content ~ eos_token }}
{%- endif -%}
{%- endfor -%}"""

MISTRAL_SWA_TEMPLATE = """{{ bos_token }}{% for m in messages %}
{%- if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('nobody is a ' + m.role) }}{% endif %}
{{- m.role | capitalize }}: {{ m.content | trim }}{{ eos_token if m.role == 'assistant' else '\\n' }}
{%- endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""

PHI3_TEMPLATE = """{% for m in messages %}{% set mark = {'system': '<|rule|>', 'user': '<|ask|>',\
 'assistant': '<|reply|>'}.get(m['role']) %}{% if mark is none %}{{ raise_exception('no mark for ' + m['role']) }}\
{% endif %}{{ mark + '\\n' + m['content'] + '<|done|>\\n' }}{% endfor %}\
{{ '<|reply|>\\n' if add_generation_prompt else eos_token }}"""

LLAMA_TEMPLATE = """{%- macro part(role, content) -%}
{{ '<|head|>' ~ role ~ '<|body|>\\n\\n' ~ content | trim ~ '<|stop|>' }}
{%- endmacro -%}
{%- set ns = namespace(rules=[]) -%}
{%- for m in messages if m.role == 'system' -%}{%- set ns.rules = ns.rules + [m.content] -%}{%- endfor -%}
{{- bos_token -}}
{%- if ns.rules -%}{{ part('system', 'Rules: ' ~ ns.rules | join(' ')) }}{%- endif -%}
{%- for m in messages | rejectattr('role', 'equalto', 'system') -%}{{ part(m.role, m.content) }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|head|>assistant<|body|>\\n\\n' }}{%- endif -%}"""

LLAMA_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
               r"\s*[\r\n]+|\s+(?!\S)|\s+")


QWEN_TEMPLATE = """{%- for m in messages -%}
{%- if m.role not in ['system', 'user', 'assistant'] -%}{{ raise_exception(m.role ~ ' is no role') }}{%- endif -%}
{{ '<|from|>' ~ m.role ~ '\\n' ~ m.content ~ '<|over|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|from|>assistant\\n' }}{%- endif -%}"""

QWEN_SPLIT = LLAMA_SPLIT.replace("{1,3}", "")

# Words that begin with capitals, or have none, by themselves.
GPT_OSS_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


@dataclass
class Text:
    """Contents of tokenizer.json and tokenizer_config.json, and the ids that other files name."""

    file: dict
    config: dict
    bos_id: int
    eos_ids: list


def train(words, alphabet, num_pieces):
    """Pieces of a byte-pair encoding in the order of their merges: the commonest pair first, of equals the first."""
    words = Counter({tuple(word): count for word, count in Counter(words).items()})
    pieces = list(alphabet)
    while len(pieces) < num_pieces:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = max(sorted(pairs), key=pairs.__getitem__)
        pieces.append("".join(best))
        words = Counter({merge(word, best): count for word, count in words.items()})
    return pieces


def merge(word, pair):
    """`word` with every `pair` made one."""
    merged, i = [], 0
    while i < len(word):
        length = 2 if word[i : i + 2] == pair else 1
        merged.append("".join(word[i : i + length]))
        i += length
    return tuple(merged)


def merges_of(pieces):
    """Every way to make a piece of two others, in the order of the pieces; the longer left part first."""
    known, merges = set(pieces), []
    for piece in pieces:
        splits = ((piece[:i], piece[i:]) for i in range(len(piece) - 1, 0, -1))
        merges += [list(split) for split in splits if known.issuperset(split)]
    return merges


def byte_alphabet():
    """The printable stand-in of every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}


def token(content, token_id, **changes):
    """An added token."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **plain, **changes}


def assemble(added, vocab, merges, model, pipeline, config):
    """A `Text`; `config` is tokenizer_config.json without what follows from the rest."""
    model = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **model,
             "vocab": vocab, "merges": merges}
    steps = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, **pipeline}
    file = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **steps, "model": model}
    ids = {entry["content"]: entry["id"] for entry in added}
    eos = config.pop("ends")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "model_max_length": 128, **config, "eos_token": eos[0]}
    return Text(file, config, ids[config["bos_token"]], [ids[end] for end in eos])


def prefix(bos, bos_id):
    """The post-processor that puts a BOS before a text."""
    single = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = single + [{"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def sentence_piece(first, last, pipeline, config, strips=True):
    """Control tokens, 256 bytes, pieces with ▁ for a space, more control tokens."""
    words = [f"▁{word}" for word in CORPUS.split()]
    letters = [letter for letter, _ in sorted(Counter("".join(words)).items(), key=lambda item: (-item[1], item[0]))]
    pieces = train(words, letters[:24], VOCAB_SIZE - len(first) - 256 - len(last))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    names = [entry["content"] for entry in first] + bytes_ + pieces
    for entry in last:
        entry["id"] += len(names)
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}] + ([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if strips else [])
    pipeline = {**pipeline, "decoder": {"type": "Sequence", "decoders": decoders}}
    model = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    vocab = {name: i for i, name in enumerate(names)}
    return assemble(first + last, vocab, merges_of(pieces), model, pipeline, config)


def byte_level(words, special, more, model, pipeline, config):
    """The byte alphabet, pieces, control tokens, other added tokens."""
    alphabet = byte_alphabet()
    spelled = ["".join(alphabet[byte] for byte in word.encode()) for word in words]
    num_pieces = VOCAB_SIZE - len(special) - len(more)
    pieces = train(spelled, alphabet.values(), num_pieces)
    added = [token(name, num_pieces + i) for i, name in enumerate(special)]
    added += [token(name, VOCAB_SIZE - len(more) + i, special=False, normalized=True) for i, name in enumerate(more)]
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return assemble(added, vocab, merges_of(pieces), model, {**pipeline, "decoder": decoder}, config)


def gemma2():
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "</turn>"]
    space = {"String": " "}
    pipeline = {
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": prefix("<bos>", 2),
    }
    config = {"bos_token": "<bos>", "ends": ["<eos>", "</turn>"], "pad_token": "<pad>", "add_bos_token": True,
              "chat_template": GEMMA2_TEMPLATE}
    first = [token(name, i) for i, name in enumerate(names)]
    return sentence_piece(first, [], pipeline, config, strips=False)


def mistral(template=MISTRAL_TEMPLATE):
    pipeline = {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        "post_processor": prefix("<s>", 1),
    }
    config = {"bos_token": "<s>", "ends": ["</s>"], "unk_token": "<unk>", "add_bos_token": True,
              "chat_template": template}
    return sentence_piece([token(name, i) for i, name in enumerate(["<unk>", "<s>", "</s>"])], [], pipeline, config)


def phi3():
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    pipeline = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}}
    first = [token("<unk>", 0), token("<s>", 1), token("</s>", 2, rstrip=True, special=False)]
    # Marks that swallow white space after them.
    marks = ["<|endoftext|>", "<|reply|>", "<|rule|>", "<|done|>", "<|ask|>"]
    last = [token(mark, i, rstrip=i > 0) for i, mark in enumerate(marks)]
    config = {"bos_token": "<s>", "ends": ["<|endoftext|>", "<|reply|>", "<|done|>"], "unk_token": "<unk>",
              "pad_token": "<|endoftext|>", "add_bos_token": False, "chat_template": PHI3_TEMPLATE}
    return sentence_piece(first, last, pipeline, config)


def llama():
    special = ["<|begin|>", "<|end|>", "<|head|>", "<|body|>", "<|stop|>", "<|pause|>"]
    words = [f" {word}" for word in CORPUS.split()]
    split = {"type": "Split", "pattern": {"Regex": LLAMA_SPLIT}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pipeline = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": prefix("<|begin|>", VOCAB_SIZE - len(special)),
    }
    config = {"bos_token": "<|begin|>", "ends": ["<|stop|>", "<|end|>", "<|pause|>"], "chat_template": LLAMA_TEMPLATE}
    return byte_level(words, special, [], {"ignore_merges": True}, pipeline, config)


def qwen():
    words = [f" {word}" for word in CORPUS.split()]
    split = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    pipeline = {"normalizer": {"type": "NFC"},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]}}
    config = {"bos_token": "<|void|>", "ends": ["<|over|>", "<|void|>"], "chat_template": QWEN_TEMPLATE}
    return byte_level(words, ["<|void|>", "<|from|>", "<|over|>"], [], {}, pipeline, config)


def gpt_oss():
    special = ["<|begin|>", "<|over|>", "<|from|>", "<|return|>"]
    words = [f" {word}" for word in CORPUS.split()]
    split = {"type": "Split", "pattern": {"Regex": GPT_OSS_SPLIT}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pipeline = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]}}
    config = {"bos_token": "<|begin|>", "ends": ["<|return|>", "<|over|>"], "chat_template": QWEN_TEMPLATE}
    return byte_level(words, special, [], {"ignore_merges": True}, pipeline, config)


def phi():
    words = [f" {word}" for word in CORPUS.split()]
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    config = {"bos_token": "<|endoftext|>", "ends": ["<|endoftext|>"], "unk_token": "<|endoftext|>"}
    pipeline = {"pre_tokenizer": to_bytes, "post_processor": {**to_bytes, "trim_offsets": False}}
    return byte_level(words, ["<|endoftext|>"], ["    ", "  ", "\t\t"], {}, pipeline, config)


TOKENIZERS = {
    "gemma2": gemma2,
    "mistral": mistral,
    "mixtral": mistral,
    "mistral-swa": lambda: mistral(MISTRAL_SWA_TEMPLATE),
    "phi3": phi3,
    "gemma3": gemma2,
    "phi3-long": phi3,
    "llama": llama,
    "smollm3": llama,
    "granite": qwen,
    "olmo2": qwen,
    "olmo3": qwen,
    "glm4": qwen,
    "glm": qwen,
    "cohere2": qwen,
    "cohere": qwen,
    "gemma": gemma2,
    "qwen2": qwen,
    "qwen3": qwen,
    "qwen3-moe": qwen,
    "gpt-oss": gpt_oss,
    "phi": phi,
}
