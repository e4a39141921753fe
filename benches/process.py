"""Servers as processes: start one, wait until it is ready, ask it for a few tokens, see what memory it took."""

import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

LIMIT_S = 600
REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
DEFAULT_BIN = REPOSITORY / "target" / "release" / "sconce"
LLAMA_SERVER = REPOSITORY / "target" / "peers" / "llama.cpp" / "build" / "bin" / "llama-server"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_ready(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


class Server:
    """A server, from its start to the end of the `with` block. `command` gets the port."""

    def __init__(self, command):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.command = [str(part) for part in command(port)]

    def __enter__(self):
        self.begun = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def seconds(self):
        """Since the start."""
        return time.monotonic() - self.begun

    def wait_until_ready(self):
        while not is_ready(self.url):
            if self.process.poll() is not None:
                sys.exit(f"{self.command[0]} ended with code {self.process.returncode}: run it by hand to see why")
            if self.seconds() > LIMIT_S:
                sys.exit(f"{self.command[0]} was not ready in {LIMIT_S} s")
            time.sleep(0.005)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            return json.load(response)

    def memory_kib(self, field):
        """VmHWM: the most that was resident at once; VmRSS: what is."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])
