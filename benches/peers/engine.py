"""What every engine under comparison can do, and the two ways of talking to one: HTTP, or JSON lines to a worker.

The figures are defined here once, from two questions that an adapter answers: how long one request takes, and how
long several take that come at once.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PLACE = REPOSITORY / "target" / "peers"
START_LIMIT_S = 900
ANSWER_LIMIT_S = 1800
STOP_LIMIT_S = 10


class EngineError(Exception):
    """An engine could not be installed, could not load the model, or did not do what it was asked."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The same prompt as token ids and as text."""

    ids: list
    text: str


@dataclasses.dataclass(frozen=True)
class Load:
    """What an engine is started for."""

    model: pathlib.Path
    threads: int
    num_requests: int  # at once
    context: int  # tokens of one request


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an engine says it did; the runner checks the counts."""

    prompt_tokens: int
    generated: int
    text: str = ""


class Engine:
    """One engine: installed into a folder of its own, started in a process of its own, stopped in between."""

    name = ""

    def __init__(self):
        self.folder = PLACE / self.name
        self.process = None

    def install(self):
        """Puts the engine into `self.folder`; returns at once where it is there already."""
        raise NotImplementedError

    def version(self):
        """What was installed, in words."""
        raise NotImplementedError

    def start(self, load):
        """Loads the model, and returns when requests can be answered."""
        raise NotImplementedError

    def answer(self, prompt, num_tokens):
        """One request: (seconds, Answer)."""
        raise NotImplementedError

    def answer_together(self, prompts, num_tokens):
        """All requests at once: (seconds until the last is answered, Answers)."""
        raise NotImplementedError

    def prompt_seconds(self, prompt):
        """Seconds to compute a prompt and its first token."""
        seconds, answer = self.answer(prompt, 1)
        self.check(answer, prompt, 1)
        return seconds

    def decode_rate(self, prompts, num_tokens):
        """Tokens a second after the first, from requests of one length: two for 1 token, one for `num_tokens` more."""
        first, second, third = prompts
        beginning = self.prompt_seconds(first)
        whole, answer = self.answer(second, 1 + num_tokens)
        self.check(answer, second, 1 + num_tokens)
        beginning = min(beginning, self.prompt_seconds(third))
        if whole <= beginning:
            raise EngineError(f"{self.name} took {whole:.3f} s for {1 + num_tokens} tokens and {beginning:.3f} s for one")
        return num_tokens / (whole - beginning)

    def concurrent_rate(self, prompts, num_tokens):
        """Generated tokens a second of requests that come at once, their prompts' time included."""
        seconds, answers = self.answer_together(prompts, num_tokens)
        for answer, prompt in zip(answers, prompts, strict=True):
            self.check(answer, prompt, num_tokens)
        return len(prompts) * num_tokens / seconds

    def check(self, answer, prompt, num_tokens):
        if answer.prompt_tokens != len(prompt.ids):
            raise EngineError(f"{self.name} saw {answer.prompt_tokens} prompt tokens, not {len(prompt.ids)}")
        if answer.generated != num_tokens:
            raise EngineError(f"{self.name} generated {answer.generated} tokens, not {num_tokens}")

    def spawn(self, command, **options):
        """Starts the engine's process in a group of its own, so that all its threads can be paused."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log_path(), "wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stderr=log, start_new_session=True, **{"stdout": log, **options}
            )

    def log_path(self):
        return self.folder / "engine.log"

    def cpu_seconds(self):
        """Processor time that the engine's process has used; 0 where it runs only while it is measured."""
        if self.process is None:
            return 0.0
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def require_alive(self):
        if self.process is None:
            raise EngineError(f"{self.name} is not running")
        if self.process.poll() is not None:
            raise EngineError(f"{self.name} ended with code {self.process.returncode}: {self.last_words()}")

    def last_words(self):
        """The last lines of what the engine wrote, for messages."""
        lines = self.log_path().read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-4:]) or "it wrote nothing"

    def pause(self):
        """Takes the processor from an engine whose turn it is not, so that none spins beside another."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self):
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            os.killpg(self.process.pid, signal.SIGCONT)
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.process = None


class ServerEngine(Engine):
    """An engine that is an HTTP server of its own."""

    def __init__(self):
        super().__init__()
        self.url = ""

    def serve(self, command):
        """Starts the server that `command(port)` names, and waits until /health says that it is ready."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.spawn(command(port), stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_LIMIT_S
        while not self.is_ready():
            self.require_alive()
            if time.monotonic() > deadline:
                raise EngineError(f"{self.name} was not ready in {START_LIMIT_S} s")
            time.sleep(0.1)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def post(self, path, fields):
        self.require_alive()
        request = urllib.request.Request(
            self.url + path, json.dumps(fields).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise EngineError(f"{self.name} {path}: {error.code} {error.read()[:300].decode(errors='replace')}") from error
        except OSError as error:
            raise EngineError(f"{self.name} {path}: {error}") from error

    def request(self, prompt, num_tokens):
        """One request to the server: an Answer."""
        raise NotImplementedError

    def answer(self, prompt, num_tokens):
        begun = time.perf_counter()
        answer = self.request(prompt, num_tokens)
        return time.perf_counter() - begun, answer

    def answer_together(self, prompts, num_tokens):
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            begun = time.perf_counter()
            answers = list(pool.map(lambda prompt: self.request(prompt, num_tokens), prompts))
            return time.perf_counter() - begun, answers


class WorkerEngine(Engine):
    """An engine that is a Python package: it runs in a worker with its own environment's Python (worker.py)."""

    module = ""  # the adapter's module, which the worker runs

    def python(self):
        return self.folder / "venv" / "bin" / "python"

    def environment(self, load):
        """What the worker needs in its environment beside the runner's."""
        return {}

    def start(self, load):
        # -P keeps the current folder, and with it the adapters' names, out of the way of the packages.
        path = {"PYTHONPATH": str(REPOSITORY / "benches")}
        self.spawn(
            [self.python(), "-P", "-m", f"peers.{self.module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **path, **self.environment(load)},
        )
        self.ask({"do": "start", **dataclasses.asdict(load), "model": str(load.model)}, START_LIMIT_S)

    def ask(self, question, limit_s=ANSWER_LIMIT_S):
        self.require_alive()
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            answered, _, _ = select.select([self.process.stdout], [], [], limit_s)
            if not answered:
                self.stop()
                raise EngineError(f"{self.name} did not answer in {limit_s} s")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self.process.wait()
            self.require_alive()
        reply = json.loads(line)
        if "error" in reply:
            raise EngineError(f"{self.name}: {reply['error']}")
        return reply

    def answer(self, prompt, num_tokens):
        reply = self.ask({"do": "answer", "prompt": dataclasses.asdict(prompt), "num_tokens": num_tokens})
        return reply["seconds"], Answer(**reply["answers"][0])

    def answer_together(self, prompts, num_tokens):
        asked = [dataclasses.asdict(prompt) for prompt in prompts]
        reply = self.ask({"do": "answer_together", "prompts": asked, "num_tokens": num_tokens})
        return reply["seconds"], [Answer(**answer) for answer in reply["answers"]]
