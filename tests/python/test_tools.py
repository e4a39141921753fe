"""Calls of tools by the official OpenAI client. The model is tiny and random: what has to be a call is one."""

import json
import shutil

import openai
import pytest
from conftest import ROOT
from test_openapi import check_post

MESSAGES = [{"role": "user", "content": "How is the weather?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"unit": {"enum": ["c", "f"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["unit", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "get_time", "strict": True}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
REQUEST = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "seed": 5, "max_tokens": 400, "parallel_tool_calls": False}


def client_of(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def tools_server(start_server, tmp_path_factory):
    """A server of the golden fixture `llama` with a template that knows tools, and room for them."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(ROOT / "tests" / "golden" / "llama", folder, dirs_exist_ok=True)
    shutil.copy(ROOT / "tests" / "tools" / "chat_template.jinja", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}), encoding="utf-8")
    return start_server("--model", f"{folder}=tiny", "--kv-cache-bytes", "8MiB", "--device", "cpu")


@pytest.fixture(scope="module")
def client(tools_server):
    return client_of(tools_server)


def check_call(name, arguments):
    arguments = json.loads(arguments)
    if name == "get_weather":
        assert arguments["unit"] in ("c", "f") and 1 <= arguments["days"] <= 9 and len(arguments) == 2
    else:
        assert (name, arguments) == ("get_time", {})


@pytest.mark.parametrize(("choice", "finish_reason"), [("required", "tool_calls"), (NAMED, "stop")])
def test_a_call_that_has_to_come(client, choice, finish_reason):
    answer = client.chat.completions.create(**REQUEST, tool_choice=choice, n=3)
    for one in answer.choices:
        assert one.finish_reason == finish_reason and one.message.content is None
        (call,) = one.message.tool_calls
        assert call.type == "function" and call.id.startswith("call_")
        check_call(call.function.name, call.function.arguments)
        assert choice == "required" or call.function.name == "get_weather"


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_streamed_call_is_the_same_call(client, choice):
    whole = client.chat.completions.create(**REQUEST, tool_choice=choice).choices[0]
    with client.chat.completions.stream(**REQUEST, tool_choice=choice) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == whole.finish_reason and not streamed.message.content
    (call,), (expected,) = streamed.message.tool_calls, whole.message.tool_calls
    assert (call.function.name, call.function.arguments) == (expected.function.name, expected.function.arguments)


def test_several_calls(client):
    request = {**REQUEST, "parallel_tool_calls": True}
    choices = client.chat.completions.create(**request, tool_choice="required", n=4).choices
    assert all(choice.message.tool_calls for choice in choices)
    for choice in choices:
        assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)
        for call in choice.message.tool_calls:
            check_call(call.function.name, call.function.arguments)


def test_the_result_of_a_call_goes_back(client, tools_server):
    message = client.chat.completions.create(**REQUEST, tool_choice=NAMED).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "15 degrees"}
    messages = [*MESSAGES, message, result]
    answer = client.chat.completions.create(**{**REQUEST, "messages": messages, "max_tokens": 8})
    # The model is random: it says something, and no call comes in 8 tokens.
    assert answer.choices[0].message.tool_calls is None and answer.choices[0].message.content is not None
    body = {"messages": [*MESSAGES, message.model_dump(), result], "tools": TOOLS}
    assert tools_server.post("/tokenize", body).json()["count"] == answer.usage.prompt_tokens


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_what_a_stream_gave_goes_back(client, choice):
    with client.chat.completions.stream(**REQUEST, tool_choice=choice) as stream:
        message = stream.get_final_completion().choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "15 degrees"}
    for sent in (message, message.model_dump()):
        answer = client.chat.completions.create(**{**REQUEST, "messages": [*MESSAGES, sent, result], "max_tokens": 8})
        assert answer.choices[0].message.content is not None


def test_a_template_that_knows_no_tools(server, model_id):
    with pytest.raises(openai.BadRequestError) as bad_request:
        client_of(server).chat.completions.create(**{**REQUEST, "model": model_id})
    assert bad_request.value.param == "tools" and "chat template" in str(bad_request.value)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_as_the_document_says(tools_server, stream):
    body = {**REQUEST, "tool_choice": "required", "logprobs": True, "stream": stream}
    check_post(tools_server, "/v1/chat/completions", body)
