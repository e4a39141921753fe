"""Requests that are wrong: the answer names the field, and the server goes on."""

import http.client
import socket

import pytest
import requests

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def the_server_still_answers(server):
    yield
    assert server.generate(prompt="Hello", max_tokens=1)["usage"]["completion_tokens"] == 1


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    return response.json()["error"]


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("temprature", {"temprature": 0.5}),
        ("max_tokens", {"max_tokens": "ten"}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 2.5}),
        ("min_tokens", {"max_tokens": 2, "min_tokens": 3}),
        ("n", {"n": 10**9}),
        ("n", {"n": 0}),
        ("n", {"n": 10**30}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": "hot"}),
        ("temperature", {"temperature": 1e300}),
        ("top_p", {"top_p": 0}),
        ("top_p", {"top_p": 1.5}),
        ("top_k", {"top_k": -2}),
        ("min_p", {"min_p": 2}),
        ("presence_penalty", {"presence_penalty": 3}),
        ("repetition_penalty", {"repetition_penalty": 0}),
        ("stop", {"stop": [""]}),
        ("stop", {"stop": ["x"] * 17}),
        ("stop_token_ids", {"stop_token_ids": [10**9]}),
        ("logprobs", {"logprobs": 21}),
        ("logit_bias", {"logit_bias": {"1": 101}}),
        ("length_penalty", {"length_penalty": 2.0}),
        ("early_stopping", {"early_stopping": True}),
        ("stream", {"stream": "yes"}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [10**9]}),
        ("prompt", {"prompt": {"text": "x"}}),
        ("prompt", {"prompt": "word " * 20000}),
    ],
)
def test_a_wrong_field_is_named(server, param, fields):
    error = error_of(server.post("/generate", {"prompt": "Hello", **fields}), 400)
    assert error["param"] == param, error
    assert param in error["message"], error


@pytest.mark.parametrize("messages", [[], "Hello", [{"content": "Hello"}], [{"role": "user", "content": 1}], [1]])
def test_wrong_messages_are_named(server, messages):
    error = error_of(server.post("/generate", {"messages": messages}), 400)
    # The message at fault is named too: messages[0].content.
    assert error["param"].startswith("messages") and error["param"] in error["message"], error


def test_exactly_one_of_prompt_and_messages(server):
    for body in ({}, {"prompt": "Hello", "messages": HELLO}):
        message = error_of(server.post("/generate", body), 400)["message"]
        assert "prompt" in message and "messages" in message


def test_an_unknown_model(server, model_id):
    error = error_of(server.post("/generate", {"model": "no-such-model", "prompt": "Hello"}), 404)
    assert "no-such-model" in error["message"] and model_id in error["message"], error


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\"prompt\"", b'{"prompt": "a",}', b'{"prompt": "\xff\xfe"}', b"[" * 100_000])
def test_what_is_no_json_object(server, path, body):
    headers = {"content-type": "application/json"}
    response = requests.post(f"{server.url}{path}", data=body, headers=headers, timeout=30)
    assert error_of(response, 400)["message"]


def test_a_huge_body_is_refused_unread(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/generate")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(100 << 20))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_huge_body_is_refused_while_it_comes(server):
    # Without a length the server has to count. It may close before everything is sent: then the answer can be lost.
    def chunks():
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"a" * (1 << 20)
        yield b'"}'

    try:
        response = requests.post(f"{server.url}/generate", data=chunks(), timeout=60)
    except requests.ConnectionError:
        return
    assert response.status_code == 413


def test_paths_and_methods(server):
    assert error_of(requests.get(f"{server.url}/no/such/path", timeout=10), 404)["message"]
    response = requests.get(f"{server.url}/generate", timeout=10)
    assert error_of(response, 405)["message"]
    assert "POST" in response.headers["allow"]


@pytest.mark.parametrize("data", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\0" * 1000, b"GET\r\n\r\n"])
def test_what_is_no_http(server, data):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
