"""The official OpenAI client against /v1."""

import openai
import pytest

QUESTION = [{"role": "user", "content": "Name a colour."}]


def test_models(client, model_id):
    assert [model.id for model in client.models.list().data] == [model_id]
    assert client.models.retrieve(model_id).id == model_id


def test_a_chat(client, model_id):
    answer = client.chat.completions.create(model=model_id, messages=QUESTION, max_tokens=20, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_is_the_same_chat(client, model_id):
    request = {"model": model_id, "messages": QUESTION, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert reasons == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_chat_logprobs(client, model_id):
    request = {"model": model_id, "messages": QUESTION, "max_tokens": 5, "temperature": 0}
    answer = client.chat.completions.create(**request, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob), "greedy takes the most probable"


def test_completions_with_logprobs(client, model_id):
    answer = client.completions.create(
        model=model_id, prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert len(logprobs.token_logprobs) == len(logprobs.tokens) == answer.usage.completion_tokens
    assert all(len(top) >= 3 for top in logprobs.top_logprobs)


def test_streamed_completions(client, model_id):
    request = {"model": model_id, "prompt": "The sea is", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**request).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**request, stream=True)) == whole


def test_n_and_seed(client, model_id):
    request = {"model": model_id, "prompt": "A story:", "max_tokens": 10, "n": 3, "seed": 11, "temperature": 1.0}
    first, second = (client.completions.create(**request) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert len(texts) == 3 and len(set(texts)) > 1
    assert texts == [choice.text for choice in second.choices]


def test_errors_are_the_clients_own(client, model_id):
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert model_id in str(not_found.value)
    with pytest.raises(openai.BadRequestError) as bad_request:
        client.chat.completions.create(model=model_id, messages=QUESTION, temperature=-1)
    assert bad_request.value.param == "temperature"


def test_a_prediction_changes_no_answer(client, model_id, start_server):
    drafting = start_server("--num-speculative-tokens", "8")
    drafting_client = openai.OpenAI(base_url=f"{drafting.url}/v1", api_key="none", max_retries=0, timeout=300)
    request = {"model": model_id, "messages": QUESTION, "max_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**request)
    prediction = {"type": "content", "content": whole.choices[0].message.content}
    answer = drafting_client.chat.completions.create(**request, prediction=prediction)
    assert answer.choices[0].message.content == whole.choices[0].message.content
    details = answer.usage.completion_tokens_details
    assert 0 < details.accepted_prediction_tokens < answer.usage.completion_tokens
    assert details.rejected_prediction_tokens >= 0
    with pytest.raises(openai.BadRequestError) as bad_request:
        client.chat.completions.create(**request, prediction=prediction)
    assert bad_request.value.param == "prediction"
