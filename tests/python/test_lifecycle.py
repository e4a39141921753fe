"""Start and end of a server."""

import signal
import socket
import subprocess

import requests

from conftest import records


def test_the_start_prints_a_command_that_works(server):
    log = server.log_path.read_text(encoding="utf-8")
    assert server.url in log and "curl" in log, log


def test_terminating_lets_running_requests_end(start_server):
    server = start_server()
    stream = records(server.stream(prompt="Count:", max_tokens=60, temperature=0, ignore_eos=True))
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    last = list(stream)[-1]
    assert last["outputs"][0]["finish_reason"] == "length", last
    assert len(last["outputs"][0]["token_ids"]) == 60
    assert server.process.wait(timeout=60) == 0, server.log_tail()
    assert "panicked" not in server.log_path.read_text(encoding="utf-8")


def test_what_takes_too_long_ends_with_a_last_record(start_server):
    server = start_server("--drain-timeout", "1")
    stream = records(server.stream(prompt="Count:", max_tokens=100000, temperature=0, ignore_eos=True))
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    last = list(stream)[-1]
    assert last["outputs"][0]["finish_reason"] == "abort" and last["usage"]["completion_tokens"] > 0, last
    assert server.process.wait(timeout=60) == 0, server.log_tail()


def test_an_idle_server_ends_at_once(start_server):
    assert start_server().terminate(limit_s=10) == 0


def test_a_port_in_use_is_named(sconce_bin):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        ended = subprocess.run([sconce_bin, "serve", "--port", str(port)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and str(port) in ended.stderr, ended


def test_a_wrong_model_is_named(sconce_bin):
    command = [sconce_bin, "serve", "--model", "./no/such/model.gguf", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "./no/such/model.gguf" in ended.stderr, ended


def test_routers_learn_what_a_worker_is(server):
    model = requests.get(f"{server.url}/v1/models", timeout=10).json()["data"][0]
    for path in ["model_info", "get_model_info", "server_info", "get_server_info"]:
        info = requests.get(f"{server.url}/{path}", timeout=10).json()
        assert info["model_path"] == model["id"] and info["is_generation"], info
        assert info["max_model_len"] == model["max_model_len"] <= info["max_total_num_tokens"], info
    [load] = requests.get(f"{server.url}/get_load", timeout=10).json()
    assert load["dp_rank"] == 0 and load["num_waiting_reqs"] == 0 and load["num_tokens"] >= 0, load


def test_health_and_version(server):
    assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
    assert requests.get(f"{server.url}/version", timeout=10).json()["version"]
