"""Many requests at once: each gets what it would get alone, and gives back what it held."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import records

NUM_REQUESTS = 16
SUBJECTS = ["the sea", "an old clock", "bread", "the moon", "a fox", "winter", "a violin", "the desert"]


def request_of(i):
    """Requests of different lengths and parameters; each has one answer only."""
    fields = {"prompt": f"Write about {SUBJECTS[i % len(SUBJECTS)]}. " * (1 + i % 4), "max_tokens": 8 + 4 * i}
    if i % 2 == 0:
        fields |= {"temperature": 0}
    else:
        fields |= {"temperature": 0.5 + 0.1 * i, "seed": i, "top_p": 0.95, "top_k": 40 + i}
    if i % 3 == 0:
        fields |= {"repetition_penalty": 1.1, "frequency_penalty": 0.2}
    if i % 5 == 0:
        fields |= {"min_p": 0.02, "ignore_eos": True}
    return fields


def streamed_token_ids(server, fields):
    """Every token id of a streamed answer; its last record must be an ending."""
    last = None
    for last in records(server.stream(**fields)):
        assert "error" not in last, last
    assert last["outputs"][0]["finish_reason"] in ("stop", "length")
    return last["outputs"][0]["token_ids"]


def all_at_once(server):
    barrier = threading.Barrier(NUM_REQUESTS)

    def run(i):
        barrier.wait()
        return streamed_token_ids(server, request_of(i))

    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        return list(pool.map(run, range(NUM_REQUESTS)))


@pytest.fixture(scope="module")
def lone_token_ids(server):
    return [server.generate(**request_of(i))["outputs"][0]["token_ids"] for i in range(NUM_REQUESTS)]


def test_together_as_alone(server, lone_token_ids):
    for i, (found, expected) in enumerate(zip(all_at_once(server), lone_token_ids)):
        assert found == expected, f"request {i}: {request_of(i)}"


def test_a_tiny_pool_gives_the_same_answers(start_server, lone_token_ids):
    # Room for a few of the sixteen at a time: the others wait, or lose their blocks and are computed again.
    server = start_server("--max-model-len", "256", "--kv-cache-bytes", "16MiB")
    for i, (found, expected) in enumerate(zip(all_at_once(server), lone_token_ids)):
        assert found == expected, f"request {i}: {request_of(i)}"
    server.wait_for_metric("sconce_kv_blocks_used", 0)


def test_clients_that_go_away_give_back_their_blocks(server):
    server.wait_for_metric("sconce_kv_blocks_used", 0)
    has_begun = threading.Barrier(NUM_REQUESTS + 1)

    def run(i):
        response = server.stream(prompt=f"Write about {SUBJECTS[i % 8]}.", max_tokens=150, temperature=0, ignore_eos=True)
        stream = records(response)
        next(stream)
        has_begun.wait(timeout=120)
        if i % 2 == 0:
            response.close()
            return None
        return list(stream)[-1]

    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        runs = [pool.submit(run, i) for i in range(NUM_REQUESTS)]
        has_begun.wait(timeout=120)
        answers = [run.result() for run in runs]
    for answer in answers[1::2]:
        assert answer["outputs"][0]["finish_reason"] == "length"
        assert len(answer["outputs"][0]["token_ids"]) == 150
    server.wait_for_metric("sconce_kv_blocks_used", 0)
    assert server.generate(prompt="Hello", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_a_client_that_does_not_wait_for_its_answer(server):
    """Not streamed: the server notices by itself that nobody is there any more."""
    body = b'{"prompt": "Hello", "max_tokens": 4000, "ignore_eos": true, "temperature": 0}'
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head + body)
        wait_until_used(server)
    server.wait_for_metric("sconce_kv_blocks_used", 0, limit_s=10)


def wait_until_used(server, limit_s=10):
    deadline = time.monotonic() + limit_s
    while server.metric("sconce_kv_blocks_used") == 0:
        assert time.monotonic() < deadline, "the request never began"
        time.sleep(0.02)
