"""/openapi.json is valid, and what the server really takes and answers is as it says."""

import json

import jsonschema
import openapi_spec_validator
import pytest
import requests

MESSAGES = [{"role": "user", "content": "Say hello."}]
FIELDS = {"max_tokens": 6, "seed": 1}


@pytest.fixture(scope="session")
def document(server):
    return requests.get(f"{server.url}/openapi.json", timeout=10).json()


def closed(schema):
    """The schema where objects have no members but those it names."""
    if isinstance(schema, list):
        return [closed(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return schema


def check(document, schema, value):
    """Checks that `value` is as `schema` says, and that it has no member that the document does not name."""
    components = document["components"]
    # Parts of a whole are open: what one does not name the other does.
    if "allOf" not in schema:
        components = closed(components)
    jsonschema.Draft202012Validator({**schema, "components": components}).validate(value)


def answer_schema(document, path, method, content_type="application/json"):
    return document["paths"][path][method]["responses"]["200"]["content"][content_type]["schema"]


def check_post(server, path, body):
    """Checks that `body`, and its answer, whole or streamed, are as the server's document says. Returns the answer, or its parts."""
    document = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    check(document, document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"], body)
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        check(document, answer_schema(document, path, "post"), response.json())
        return response.json()
    text = response.content.decode("utf-8")
    if path == "/generate":
        content_type, parts = "application/octet-stream", text.split("\0")[:-1]
    else:
        content_type = "text/event-stream"
        parts = [event.split("data: ", 1)[1] for event in text.split("\n\n") if event]
        assert path == "/v1/responses" or parts.pop() == "[DONE]"
    assert parts
    parts = [json.loads(part) for part in parts]
    for part in parts:
        check(document, answer_schema(document, path, "post", content_type)["contentSchema"], part)
    return parts


def test_it_is_valid(document):
    openapi_spec_validator.validate(document)


@pytest.mark.parametrize("path", [
    "/v1/models", "/health", "/version", "/server_info", "/get_server_info", "/model_info", "/get_model_info", "/get_load",
])
def test_what_is_got_is_as_it_says(document, server, path):
    answer = requests.get(f"{server.url}{path}", timeout=10).json()
    check(document, answer_schema(document, path, "get"), answer)


def test_one_model_is_as_it_says(document, server, model_id):
    answer = requests.get(f"{server.url}/v1/models/{model_id}", timeout=10).json()
    check(document, answer_schema(document, "/v1/models/{id}", "get"), answer)


POSTS = [
    ("/generate", {"prompt": "The sea", **FIELDS, "n": 2, "logprobs": 2, "prompt_logprobs": 1}),
    ("/generate", {"prompt": "The sea", **FIELDS, "n": 2, "use_beam_search": True, "temperature": 0, "seed": None}),
    ("/generate", {"messages": MESSAGES, **FIELDS, "stop": ["e"], "logit_bias": {"5": -1}}),
    ("/v1/completions", {"prompt": ["The sea", [1, 2]], **FIELDS, "logprobs": 1, "echo": True}),
    ("/v1/chat/completions", {"messages": MESSAGES, **FIELDS, "n": 2, "logprobs": True, "top_logprobs": 2}),
    ("/v1/embeddings", {"input": ["The sea", [1, 2]], "encoding_format": "float", "user": "me"}),
    ("/v1/embeddings", {"input": "The sea", "encoding_format": "base64"}),
    ("/tokenize", {"prompt": "The sea"}),
    ("/detokenize", {"tokens": [1, 2]}),
]


@pytest.mark.parametrize(("path", "body"), POSTS)
def test_bodies_and_answers_are_as_it_says(server, path, body):
    check_post(server, path, body)


@pytest.mark.parametrize(("path", "body"), POSTS[:5])
def test_streams_are_as_it_says(server, path, body):
    options = {} if path == "/generate" else {"stream_options": {"include_usage": True}}
    check_post(server, path, {**body, "stream": True, **options})


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"])
def test_errors_are_as_it_says(document, server, path):
    response = server.post(path, {"unknown": 1})
    assert response.status_code == 400
    check(document, {"$ref": "#/components/schemas/Error"}, response.json())
    operation = document["paths"][path]["post"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]
    with pytest.raises(jsonschema.ValidationError):
        check(document, request, {"unknown": 1})
    assert {"400", "401", "404", "413", "503"} <= operation["responses"].keys()
