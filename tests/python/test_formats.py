"""Answers that match: response_format with the official client, and vLLM's names for more than JSON."""

import json
import re
import typing

import openai
import pydantic
import pytest

MESSAGES = [{"role": "user", "content": "Invent a person with a name, an age and hobbies."}]


Short = typing.Annotated[str, pydantic.Field(max_length=30)]


class Person(pydantic.BaseModel):
    name: Short
    age: int = pydantic.Field(ge=0, le=120)
    mood: typing.Literal["glad", "sad"]
    hobbies: list[Short] = pydantic.Field(max_length=3)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_the_client_parses_what_it_asked_for(client, model_id, temperature):
    answer = client.chat.completions.parse(
        model=model_id, messages=MESSAGES, response_format=Person, temperature=temperature, seed=3, n=2, max_tokens=400
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Person)
        assert list(json.loads(choice.message.content)) == ["name", "age", "mood", "hobbies"]


def test_a_streamed_answer_is_the_same(client, model_id):
    request = {"model": model_id, "messages": MESSAGES, "temperature": 0, "max_tokens": 300}
    whole = client.chat.completions.parse(response_format=Person, **request).choices[0].message.content
    with client.chat.completions.stream(response_format=Person, **request) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole
    assert isinstance(final.choices[0].message.parsed, Person)


def test_any_json_object(client, model_id):
    answer = client.chat.completions.create(
        model=model_id, messages=MESSAGES, response_format={"type": "json_object"}, temperature=1, seed=1, max_tokens=500
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize(("field", "pattern"), [
    ({"guided_regex": r" \d{3}-\d{4}"}, r" \d{3}-\d{4}"),
    ({"guided_choice": [" red", " green", " blue"]}, " red| green| blue"),
    ({"guided_grammar": 'start: " " NUMBER (" + " NUMBER)?\nNUMBER: /[1-9][0-9]?/'}, r" [1-9]\d?( \+ [1-9]\d?)?"),
    ({"structured_outputs": {"regex": " (a|b)+!"}, "max_tokens": 40, "logit_bias": {"17": 20}}, " [ab]+!"),
])
def test_what_vllm_calls_guided(server, field, pattern):
    for more in ({"temperature": 1.0, "seed": 1, "n": 2}, {"temperature": 0, "use_beam_search": True, "n": 2}):
        answer = server.generate(**{"prompt": "Mine is", "max_tokens": 30, **more, **field})
        for output in answer["outputs"]:
            assert output["finish_reason"] != "stop" or re.fullmatch(pattern, output["text"]), output


def test_completions_take_a_format(client, model_id):
    answer = client.completions.create(
        model=model_id, prompt=["A:", "B:"], max_tokens=20, temperature=0, extra_body={"guided_choice": ["yes", "no"]}
    )
    assert all(choice.text in ("yes", "no") for choice in answer.choices)


def test_what_is_wrong_is_said_of_its_field(client, model_id):
    def refused(**fields):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model=model_id, messages=MESSAGES, **fields)
        return error.value.param, error.value.message

    param, message = refused(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}})
    assert param == "response_format" and "response_format: " in message
    param, message = refused(extra_body={"guided_regex": "(a"})
    assert param == "guided_regex" and "unclosed" in message
    param, _ = refused(response_format={"type": "json_object"}, extra_body={"guided_regex": "a"})
    assert param in ("response_format", "guided_regex")
