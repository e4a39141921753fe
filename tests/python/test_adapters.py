"""LoRA adapters of the starter model: each is a name of a model."""

import array
import concurrent.futures
import json
import random
import struct

import openai
import pytest
import requests

HIDDEN, INTERMEDIATE, NUM_LAYERS, RANK = 576, 1536, 30, 4  # of SmolLM2-135M
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
NAMES = ["upper", "lower"]


def write_adapter(folder, seed):
    """An adapter in PEFT's form, with random numbers for one matrix of each layer."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["down_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    draw, header, data = random.Random(seed), {}, bytearray()
    for layer in range(NUM_LAYERS):
        for side, shape, scale in (("A", [RANK, INTERMEDIATE], 0.05), ("B", [HIDDEN, RANK], 0.2)):
            values = array.array("f", (draw.gauss(0.0, scale) for _ in range(shape[0] * shape[1])))
            name = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_{side}.weight"
            start = len(data)
            data += values.tobytes()
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


@pytest.fixture(scope="module")
def adapted(start_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    paths = [write_adapter(folder / f"of-{name}", seed) for seed, name in enumerate(NAMES)]
    flags = [flag for name, path in zip(NAMES, paths) for flag in ("--lora", f"{name}={path}")]
    return start_server(*flags)


@pytest.fixture(scope="module")
def adapted_client(adapted):
    return openai.OpenAI(base_url=f"{adapted.url}/v1", api_key="none", max_retries=0, timeout=300)


def ask(client, model, **fields):
    fields = {"messages": QUESTION, "max_tokens": 16, "temperature": 0, "logprobs": True, **fields}
    return client.chat.completions.create(model=model, **fields)


def said(answer):
    """The text, and how probable each of its tokens was."""
    choice = answer.choices[0]
    return choice.message.content, [entry.logprob for entry in choice.logprobs.content]


def test_adapters_are_models_with_a_parent(adapted_client, model_id):
    models = adapted_client.models.list().data
    assert [model.id for model in models] == [model_id, *NAMES]
    assert [model.parent for model in models] == [None, model_id, model_id]
    assert [model.root for model in models] == [model_id, "of-upper", "of-lower"]
    assert adapted_client.models.retrieve("lower").parent == model_id


def test_each_name_has_its_own_answers_alone_and_together(adapted, adapted_client, client, model_id):
    names = [model_id, *NAMES]
    alone = [said(ask(adapted_client, name)) for name in names]
    assert all(a != b for a, b in ((alone[0], alone[1]), (alone[0], alone[2]), (alone[1], alone[2]))), alone
    assert alone[0] == said(ask(client, model_id)), "as on a server without adapters"
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda name: ask(adapted_client, name), names * 2))
    assert [said(answer) for answer in together] == alone * 2
    assert [answer.model for answer in together] == names * 2
    chunks = list(ask(adapted_client, "upper", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == alone[1][0]
    answers = [adapted.generate(model=name, messages=QUESTION, max_tokens=16, temperature=0)["text"] for name in NAMES]
    assert answers == [[text] for text, _ in alone[1:]]


def test_other_endpoints_take_the_names_too(adapted, model_id):
    tokens = [adapted.post("/tokenize", {"model": name, "prompt": "Hello"}).json()["tokens"] for name in (model_id, "lower")]
    assert tokens[0] == tokens[1]
    fields = {"model": "lower", "input": "Hello", "max_output_tokens": 4}
    assert adapted.post("/v1/responses", fields).json()["model"] == "lower"
    vectors = [adapted.post("/v1/embeddings", {"model": name, "input": "Hello"}).json() for name in (model_id, "lower")]
    assert [answer["model"] for answer in vectors] == [model_id, "lower"]
    assert vectors[0]["data"] != vectors[1]["data"]
    fields = {"model": "upper", "prompt": "Hello", "max_tokens": 4}
    assert adapted.post("/v1/completions", fields).json()["model"] == "upper"


def test_unknown_names_are_refused_with_those_that_there_are(adapted, model_id):
    response = adapted.post("/v1/completions", {"model": "middle", "prompt": "Hello"})
    assert response.status_code == 404
    assert f"served are: {model_id}, upper, lower" in response.json()["error"]["message"]
    assert requests.get(f"{adapted.url}/v1/models/middle", timeout=10).status_code == 404
