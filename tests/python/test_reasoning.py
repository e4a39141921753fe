"""Reasoning by the official OpenAI client. The model is tiny and random: its template opens reasoning, which it does not end."""

import shutil

import openai
import pytest
from conftest import ROOT
from test_openapi import check_post

TEMPLATE = (
    "{% for m in messages %}<|head|>{{ m.role }}{{ m.reasoning_content }}<|body|>{{ m.content }}<|stop|>{% endfor %}"
    "<|head|>assistant<|body|>{% if enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
REQUEST = {"model": "tiny", "messages": [{"role": "user", "content": "Why?"}], "seed": 5, "max_tokens": 8}
NOT_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def thinking_server(start_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(ROOT / "tests" / "golden" / "llama", folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return start_server("--model", f"{folder}=tiny", "--kv-cache-bytes", "8MiB", "--device", "cpu")


@pytest.fixture(scope="module")
def client(thinking_server):
    return openai.OpenAI(base_url=f"{thinking_server.url}/v1", api_key="none", max_retries=0, timeout=300)


def test_what_is_thought_is_apart_and_can_be_sent_back(client):
    answer = client.chat.completions.create(**REQUEST)
    message = answer.choices[0].message
    assert message.content is None and message.reasoning_content and message.reasoning == message.reasoning_content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens_details.reasoning_tokens == 8
    again = {**REQUEST, "messages": [*REQUEST["messages"], message, {"role": "user", "content": "And?"}]}
    assert client.chat.completions.create(**again).usage.prompt_tokens > answer.usage.prompt_tokens + 8
    plain = client.chat.completions.create(**REQUEST, extra_body=NOT_THINKING)
    assert plain.choices[0].message.content and "reasoning" not in plain.choices[0].message.model_dump()
    assert plain.usage.completion_tokens_details.reasoning_tokens == 0
    hidden = client.chat.completions.create(**REQUEST, extra_body={"include_reasoning": False})
    assert "reasoning" not in hidden.choices[0].message.model_dump()


def test_a_stream_tells_the_same(client):
    whole = client.chat.completions.create(**REQUEST)
    chunks = list(client.chat.completions.create(**REQUEST, stream=True, stream_options={"include_usage": True}))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    texts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    assert "".join(texts) == whole.choices[0].message.reasoning_content
    assert not any(delta.content for delta in deltas)
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 8


def test_a_response_has_it_as_an_item(client):
    request = {"model": "tiny", "input": "Why?", "max_output_tokens": 8, "extra_body": {"seed": 5}}
    whole = client.responses.create(**request)
    (item,) = whole.output
    expected = client.chat.completions.create(**REQUEST).choices[0].message.reasoning
    assert item.type == "reasoning" and item.content[0].text == expected and not item.summary
    assert whole.status == item.status == "incomplete" and whole.usage.output_tokens_details.reasoning_tokens == 8
    with client.responses.stream(**request) as stream:
        events = list(stream)
    # Of one that is cut off the client itself has no final response.
    streamed = events[-1].response
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == expected
    assert streamed.output[0].content == item.content
    # It goes back as the client has read it.
    again = client.responses.create(**{**request, "input": [{"role": "user", "content": "Why?"}, item, *streamed.output]})
    assert again.usage.input_tokens > whole.usage.input_tokens + 16


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_as_the_document_says(thinking_server, stream):
    thought = {"role": "assistant", "reasoning_content": "a", "reasoning": "a"}
    body = {**REQUEST, "messages": [*REQUEST["messages"], thought], "logprobs": True, "stream": stream}
    check_post(thinking_server, "/v1/chat/completions", body)
