"""One running server for the whole session, and helpers to talk to it."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time

import openai
import pytest
import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEFAULT_BIN = ROOT / "target" / "release" / "sconce"
# The first start brings the starter model from the network.
READY_LIMIT_S = 600
REQUEST_LIMIT_S = 300


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A `sconce serve` process on the starter model."""

    def __init__(self, binary, log_path, *args):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = log_path
        self.command = [str(binary), "serve", "--port", str(self.port), *args]
        with open(log_path, "wb") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until_ready(self):
        deadline = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"{self.describe()} ended with code {self.process.returncode}; its log:\n{self.log_tail()}")
            try:
                if requests.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except requests.RequestException:
                pass
            time.sleep(0.1)
        self.stop()
        pytest.fail(f"{self.describe()} was not ready in {READY_LIMIT_S} s; its log:\n{self.log_tail()}")

    def describe(self):
        return " ".join(self.command)

    def log_tail(self, num_lines=40):
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def post(self, path, body, **kwargs):
        return requests.post(f"{self.url}{path}", json=body, timeout=REQUEST_LIMIT_S, **kwargs)

    def generate(self, **fields):
        """The answer to a /generate that must succeed."""
        response = self.post("/generate", fields)
        assert response.status_code == 200, f"{fields}: {response.status_code} {response.text}"
        return response.json()

    def stream(self, **fields):
        """The open response of a streamed /generate."""
        response = self.post("/generate", {**fields, "stream": True}, stream=True)
        assert response.status_code == 200, f"{fields}: {response.status_code} {response.text}"
        return response

    def metric(self, name):
        """The value of a metric without labels, or the sum over its labels."""
        text = requests.get(f"{self.url}/metrics", timeout=10).text
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        assert lines, f"/metrics has no {name}:\n{text}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def wait_for_metric(self, name, expected, limit_s=30):
        deadline = time.monotonic() + limit_s
        while (found := self.metric(name)) != expected:
            assert time.monotonic() < deadline, f"{name} is {found} after {limit_s} s, expected {expected}"
            time.sleep(0.05)

    def terminate(self, limit_s=60):
        """Asks the server to end and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=limit_s)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def records(response):
    """The records of a streamed answer, read as the reader in the request API's description reads them."""
    for chunk in response.iter_lines(chunk_size=8192, decode_unicode=False, delimiter=b"\0"):
        if chunk:
            yield json.loads(chunk.decode("utf-8"))


@pytest.fixture(scope="session")
def sconce_bin():
    binary = pathlib.Path(os.environ.get("SCONCE_BIN", DEFAULT_BIN))
    if not binary.is_file():
        pytest.exit(f"{binary} is not there: run `cargo build --release`, or set SCONCE_BIN to a sconce binary", 2)
    return binary


@pytest.fixture(scope="session")
def start_server(sconce_bin, tmp_path_factory):
    """Starts servers with given arguments; all of them end with the session."""
    servers = []

    def start(*args):
        log_path = tmp_path_factory.mktemp("server") / "log.txt"
        servers.append(Server(sconce_bin, log_path, *args))
        return servers[-1].wait_until_ready()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server):
    return start_server()


@pytest.fixture(scope="session")
def model_id(server):
    return requests.get(f"{server.url}/v1/models", timeout=10).json()["data"][0]["id"]


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)
