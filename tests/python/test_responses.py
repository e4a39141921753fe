"""/v1/responses by the official OpenAI client: answers, streams, forms, and calls of tools."""

import json

import openai
import pydantic
import pytest
from test_openapi import check_post
from test_tools import PARAMETERS, check_call, client_of, tools_server

__all__ = ["tools_server"]  # a fixture

INPUT = "Name a colour."
GREEDY = {"input": INPUT, "max_output_tokens": 20, "temperature": 0}
TOOLS = [
    {"type": "function", "name": "get_weather", "description": "The weather.", "parameters": PARAMETERS, "strict": True},
    {"type": "function", "name": "get_time", "parameters": None, "strict": None},
]
CALLED = {"model": "tiny", "input": "How is the weather?", "tools": TOOLS, "max_output_tokens": 400,
          "parallel_tool_calls": False, "extra_body": {"seed": 5}}


class Colour(pydantic.BaseModel):
    red: int = pydantic.Field(ge=0, le=255)
    green: int = pydantic.Field(ge=0, le=255)


def test_an_answer_is_that_of_a_chat(client, model_id):
    answer = client.responses.create(model=model_id, **GREEDY, instructions="Be brief.", metadata={"a": "b"})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": INPUT}]
    chat = client.chat.completions.create(model=model_id, messages=messages, max_tokens=20, temperature=0)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    (message,) = answer.output
    is_whole = chat.choices[0].finish_reason == "stop"
    assert (answer.status, message.status) == (("completed",) * 2 if is_whole else ("incomplete",) * 2)
    assert answer.id.startswith("resp_") and message.id.startswith("msg_")
    assert answer.instructions == "Be brief." and answer.metadata == {"a": "b"} and answer.temperature == 0
    assert answer.error is None and answer.previous_response_id is None


def test_a_streamed_answer_is_the_same(client, model_id):
    whole = client.responses.create(model=model_id, **GREEDY)
    with client.responses.stream(model=model_id, **GREEDY) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert streamed.output_text == whole.output_text and streamed.status == whole.status
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == f"response.{whole.status}"


def test_a_conversation_goes_on(client, model_id):
    conversation = [{"role": "user", "content": INPUT}]
    answer = client.responses.create(model=model_id, input=conversation, max_output_tokens=8, temperature=0)
    conversation += answer.output
    conversation.append({"role": "user", "content": "Another."})
    second = client.responses.create(model=model_id, input=conversation, max_output_tokens=8, temperature=0)
    messages = [{"role": "user", "content": INPUT}, {"role": "assistant", "content": answer.output_text},
                {"role": "user", "content": "Another."}]
    chat = client.chat.completions.create(model=model_id, messages=messages, max_tokens=8, temperature=0)
    assert second.output_text == chat.choices[0].message.content
    assert second.usage.input_tokens == chat.usage.prompt_tokens > answer.usage.input_tokens


def test_log_probabilities(client, model_id):
    request = {"model": model_id, **GREEDY, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = client.responses.create(**request)
    (text,) = answer.output[0].content
    assert len(text.logprobs) == answer.usage.output_tokens
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in text.logprobs)
    with client.responses.stream(**request) as stream:
        assert stream.get_final_response().output[0].content[0].logprobs == text.logprobs


def test_a_form(client, model_id):
    answer = client.responses.parse(model=model_id, input="Red?", text_format=Colour, temperature=0, max_output_tokens=120)
    assert isinstance(answer.output_parsed, Colour)
    answer = client.responses.create(model=model_id, input="Red?", text={"format": {"type": "json_object"}}, temperature=0,
                                     max_output_tokens=200, extra_body={"repetition_penalty": 1.3})
    assert answer.status == "incomplete" or isinstance(json.loads(answer.output_text), dict)


NAMED = {"type": "function", "name": "get_weather"}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_and_its_result(tools_server, choice):
    client = client_of(tools_server)
    answer = client.responses.create(**CALLED, tool_choice=choice)
    (call,) = answer.output
    assert call.type == "function_call" and call.call_id.startswith("call_") and call.id.startswith("fc_")
    check_call(call.name, call.arguments)
    with client.responses.stream(**CALLED, tool_choice=choice) as stream:
        events = list(stream)
        (streamed,) = stream.get_final_response().output
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments]
    for sent in (call, streamed, call.model_dump()):
        conversation = [{"role": "user", "content": CALLED["input"]}, sent,
                        {"type": "function_call_output", "call_id": call.call_id, "output": "15 degrees"}]
        answer = client.responses.create(**{**CALLED, "input": conversation, "max_output_tokens": 8})
        assert answer.output[0].type == "message"


@pytest.mark.parametrize(("fields", "param"), [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"store": True}, "store"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tools": TOOLS}, "tools"),
    ({"max_output_tokens": 2, "extra_body": {"min_tokens": 3}}, "min_tokens"),
    ({"input": [{"role": "user", "content": "a " * 9000}]}, "input"),
])
def test_what_is_refused(client, model_id, fields, param):
    with pytest.raises(openai.BadRequestError) as bad_request:
        client.responses.create(**{"model": model_id, "input": INPUT, **fields})
    assert bad_request.value.param == param, bad_request.value


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_as_the_document_says(tools_server, stream):
    called = {key: value for key, value in CALLED.items() if key != "extra_body"}
    for fields in ({"tool_choice": "required"}, {"tools": [], "max_output_tokens": 9, "include": ["message.output_text.logprobs"]}):
        check_post(tools_server, "/v1/responses", {**called, **fields, "seed": 5, "stream": stream})
