"""Beam search, best_of and the prefix cache, as clients meet them."""

import concurrent.futures

import openai
import pytest
from conftest import records

PROMPT = "The most important thing about the sea is"
BEAMS = {"prompt": PROMPT, "use_beam_search": True, "temperature": 0, "max_tokens": 24}


def test_beams_come_best_first_with_their_scores(server):
    answer = server.generate(**BEAMS, n=4, logprobs=0)
    outputs = answer["outputs"]
    assert len(outputs) == len({o["text"] for o in outputs}) == 4
    assert [o["index"] for o in outputs] == [0, 1, 2, 3]
    scores = [o["beam_score"] for o in outputs]
    assert scores == sorted(scores, reverse=True)
    for o in outputs:
        total = sum(l["logprob"] for l in o["logprobs"])
        assert o["cumulative_logprob"] == pytest.approx(total, abs=1e-4)
        assert o["beam_score"] == pytest.approx(total / len(o["token_ids"]), abs=1e-4)
    assert answer["usage"]["completion_tokens"] == sum(len(o["token_ids"]) for o in outputs)
    greedy = server.generate(prompt=PROMPT, temperature=0, max_tokens=24)["outputs"][0]
    assert outputs[0]["cumulative_logprob"] >= greedy["cumulative_logprob"] - 1e-3


def test_fewer_than_the_width_are_the_best_of_it(server):
    four = server.generate(**BEAMS, n=4)
    two = server.generate(**BEAMS, n=2, best_of=4)
    assert two["text"] == four["text"][:2]
    wider = server.generate(**BEAMS, n=1, best_of=8)
    assert wider["outputs"][0]["beam_score"] >= four["outputs"][0]["beam_score"] - 1e-6


def test_length_penalty_early_stopping_and_stop_strings_count(server):
    short = server.generate(**BEAMS, n=4, length_penalty=-2, stop=["."])["outputs"]
    long = server.generate(**BEAMS, n=4, length_penalty=4, stop=["."], early_stopping="never")["outputs"]
    length = lambda outputs: sum(len(o["token_ids"]) for o in outputs)
    assert length(short) <= length(long)
    for o in short + long:
        assert "." not in o["text"]
    early = server.generate(**BEAMS, n=4, stop=[","], early_stopping=True)["outputs"]
    assert any(o["stop_reason"] == "," for o in early)
    vllm = server.generate(**BEAMS, n=2, beam_length="vllm")["outputs"][0]
    num_tokens = len(vllm["token_ids"]) + len(server.post("/tokenize", {"prompt": PROMPT}).json()["tokens"])
    num_tokens -= vllm["finish_reason"] == "stop"  # an end token does not count
    assert vllm["beam_score"] == pytest.approx(vllm["cumulative_logprob"] / num_tokens, rel=1e-3)


@pytest.mark.parametrize("fields", [{**BEAMS, "n": 2, "best_of": 4}, {"prompt": PROMPT, "best_of": 5, "seed": 1}])
def test_a_stream_shows_the_best_so_far_and_ends_with_the_answer(server, fields):
    whole = server.generate(**fields)
    streamed = list(records(server.stream(**fields)))
    assert len(streamed) > 2
    for record in streamed:
        assert "error" not in record, record
        assert record["text"] and all(text.startswith(PROMPT) for text in record["text"])
    last = streamed[-1]
    assert last["text"] == whole["text"]
    assert [o["finish_reason"] for o in last["outputs"]] == [o["finish_reason"] for o in whole["outputs"]]
    assert "usage" in last and "usage" not in streamed[0]


def test_best_of_returns_the_best_of_the_same_sequences(server):
    fields = {"prompt": PROMPT, "seed": 11, "max_tokens": 16}
    five = server.generate(**fields, n=5)
    best = server.generate(**fields, n=2, best_of=5)
    assert best["text"] == five["text"][:2]


def test_openai_clients_get_beams_whole_and_streamed(server, model_id):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    beams = {"use_beam_search": True, "length_penalty": 0.5}
    asked = {"model": model_id, "prompt": PROMPT, "max_tokens": 16, "n": 2, "temperature": 0, "extra_body": beams}
    whole = client.completions.create(**asked)
    assert [c.index for c in whole.choices] == [0, 1]
    texts = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in whole.choices]
    chat = client.chat.completions.create(
        model=model_id, messages=[{"role": "user", "content": "Name a colour."}], max_tokens=12, extra_body={"n": 3, **beams}
    )
    assert len({c.message.content for c in chat.choices}) == 3


def test_requests_of_all_kinds_at_once_equal_their_lone_runs(server):
    kinds = (
        {**BEAMS, "n": 4},
        {**BEAMS, "n": 1, "best_of": 3, "early_stopping": True, "repetition_penalty": 1.2},
        {"prompt": PROMPT, "temperature": 0, "max_tokens": 20},
        {"prompt": PROMPT, "n": 3, "seed": 5, "max_tokens": 20},
        {"prompt": PROMPT, "best_of": 5, "seed": 6, "max_tokens": 20, "presence_penalty": 0.5},
    )
    lone = [server.generate(**kind)["outputs"] for kind in kinds]
    with concurrent.futures.ThreadPoolExecutor(15) as pool:
        together = list(pool.map(lambda kind: server.generate(**kind)["outputs"], kinds * 3))
    assert together == lone * 3
    server.wait_for_metric("sconce_kv_blocks_used", 0)


def test_a_prompt_that_was_seen_is_not_computed_again(server, start_server):
    prompt = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4
    request = {"prompt": prompt, "temperature": 0, "max_tokens": 8}
    cached = lambda answer: answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    hits = server.metric("sconce_cached_prompt_tokens_total")
    first, second = server.generate(**request), server.generate(**request)
    assert cached(first) == 0 and cached(second) >= 48
    assert second["text"] == first["text"]
    assert server.metric("sconce_cached_prompt_tokens_total") == hits + cached(second)
    without = start_server("--no-prefix-cache")
    assert [cached(without.generate(**request)) for _ in range(2)] == [0, 0]
    without.stop()
