"""/v1/embeddings with the official client, on the starter model: any model has embeddings."""

import base64
import concurrent.futures
import math
import struct

import openai
import pytest

TEXTS = ["The cat sleeps.", "Interest rates rose again.", "The cat sleeps.", "naïve café 日本"]


def test_vectors_are_normalised_and_the_same_alone_and_together(client, model_id):
    # The client asks for base64 by itself.
    together = client.embeddings.create(model=model_id, input=TEXTS)
    assert (together.object, together.model) == ("list", model_id)
    assert [entry.index for entry in together.data] == [0, 1, 2, 3]
    vectors = [entry.embedding for entry in together.data]
    assert all(len(vector) == 576 and math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-5) for vector in vectors)
    assert vectors[0] == vectors[2] != vectors[1]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda text: client.embeddings.create(model=model_id, input=text), TEXTS))
    assert [answer.data[0].embedding for answer in alone] == vectors
    usage = [answer.usage.prompt_tokens for answer in alone]
    assert together.usage.prompt_tokens == together.usage.total_tokens == sum(usage)


def test_both_formats_and_token_ids_say_the_same(server, client, model_id):
    floats = client.embeddings.create(model=model_id, input=TEXTS[1], encoding_format="float").data[0].embedding
    text = server.post("/v1/embeddings", {"input": TEXTS[1], "encoding_format": "base64"}).json()["data"][0]["embedding"]
    as_f32 = lambda numbers: struct.pack(f"<{len(numbers)}f", *numbers)
    assert base64.b64decode(text, validate=True) == as_f32(floats)
    tokens = server.post("/tokenize", {"prompt": TEXTS[1]}).json()["tokens"]
    for form in (tokens, [tokens]):
        answer = client.embeddings.create(model=model_id, input=form, user="me")
        assert as_f32(answer.data[0].embedding) == as_f32(floats)


def test_texts_and_answers_share_the_server(server, client, model_id):
    whole = server.generate(prompt="The sea is", max_tokens=24, temperature=0)["text"]
    expected = client.embeddings.create(model=model_id, input=TEXTS).data
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(server.generate, prompt="The sea is", max_tokens=24, temperature=0) for _ in range(3)]
        found = [pool.submit(client.embeddings.create, model=model_id, input=TEXTS) for _ in range(3)]
    assert all(answer.result()["text"] == whole for answer in answers)
    assert all(answer.result().data == expected for answer in found)


@pytest.mark.parametrize(("param", "fields"), [
    ("input", {"input": ""}),
    ("input", {"input": []}),
    ("input[1]", {"input": ["a", ""]}),
    ("input[1]", {"input": [[1], [10**9]]}),
    ("input", {"input": ["a"] * 2049}),
    ("input", {"input": "word " * 20000}),
    ("dimensions", {"input": "a", "dimensions": 64}),
    ("encoding_format", {"input": "a", "encoding_format": "int8"}),
    ("input_type", {"input": "a", "extra_body": {"input_type": "query"}}),
])
def test_what_is_wrong_is_named(client, model_id, param, fields):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=model_id, **fields)
    assert refused.value.param == param
    assert param in str(refused.value)


def test_too_long_a_text_is_cut_if_that_is_asked_for(client, model_id):
    fields = {"model": model_id, "input": "word " * 20000, "extra_body": {"truncate_prompt_tokens": 16}}
    assert client.embeddings.create(**fields).usage.prompt_tokens == 16
    fields["extra_body"] = {"truncate_prompt_tokens": 16, "add_special_tokens": False}
    assert client.embeddings.create(**fields).usage.prompt_tokens == 16
