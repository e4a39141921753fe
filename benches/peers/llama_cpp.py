"""llama.cpp, built for this machine from the sources that llama-cpp-python carries.

`LlamaServer` is its HTTP server, asked like Sconce. `LlamaBench` is its own benchmark, which has no server, no tokenizer
and no sampler in the way: the best that it can do.
"""

import json
import os
import shutil
import subprocess
import tarfile
import time

from . import venvs
from .engine import ANSWER_LIMIT_S, Answer, Engine, EngineError, ServerEngine

SOURCE = "llama-cpp-python==0.3.36"
PREFIX = "vendor/llama.cpp/"
PROGRAMS = ("llama-server", "llama-bench", "llama-batched-bench")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


def fetch_sources(folder, python):
    """Brings the source archive by pip and takes llama.cpp out of it, to `folder`/src."""
    archives = folder / "sdist"
    if not any(archives.glob("*.tar.gz")):
        # pip asks the archive for its metadata, for which it looks for cmake and ninja: those of the environment.
        command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
        venvs.run([*command, "--dest", archives, SOURCE], env=venvs.path_with(python))
    archive = next(archives.glob("*.tar.gz"), None)
    if archive is None:
        raise EngineError(f"pip brought no source archive of {SOURCE} to {archives}")
    unpacked = folder / "src.part"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/")[2]
            if not inside.startswith(PREFIX) or not member.isfile() or ".." in inside.split("/"):
                continue
            path = unpacked / inside.removeprefix(PREFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
    if not (unpacked / "CMakeLists.txt").is_file():
        raise EngineError(f"{archive} has no {PREFIX}CMakeLists.txt")
    unpacked.rename(folder / "src")


def build(folder, jobs):
    if not all(shutil.which(compiler) for compiler in ("cc", "c++")):
        raise EngineError("llama.cpp is built from its sources, and there is no C and C++ compiler (cc, c++)")
    python = venvs.make(folder, "cmake", "ninja")
    if not (folder / "src").is_dir():
        fetch_sources(folder, python)
    environment = venvs.path_with(python)
    cmake = python.parent / "cmake"
    venvs.run([cmake, "-S", folder / "src", "-B", folder / "build", "-G", "Ninja", *OPTIONS], env=environment)
    venvs.run([cmake, "--build", folder / "build", "-j", jobs, "--target", *PROGRAMS], env=environment)


class LlamaServer(ServerEngine):
    name = "llama.cpp"

    def __init__(self, jobs=None):
        super().__init__()
        self.jobs = jobs or os.cpu_count()

    def install(self):
        programs = self.folder / "build" / "bin"
        if venvs.is_installed(self.folder, SOURCE) and all((programs / name).is_file() for name in PROGRAMS):
            return
        build(self.folder, self.jobs)
        venvs.mark_installed(self.folder, SOURCE)

    def version(self):
        return f"llama.cpp of {SOURCE}, llama-server"

    def start(self, load):
        self.serve(
            lambda port: [
                self.folder / "build" / "bin" / "llama-server", "--model", load.model, "--port", port,
                "--threads", load.threads, "--parallel", load.num_requests, "--ctx-size", load.num_requests * load.context,
                "--no-cache-prompt", "--cache-ram", 0, "--no-slots", "--offline",
            ]
        )

    def request(self, prompt, num_tokens):
        fields = {
            "prompt": prompt.ids, "n_predict": num_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
        }
        said = self.post("/completion", fields)
        return Answer(said["tokens_evaluated"], said["tokens_predicted"], said["content"])


class LlamaBench(Engine):
    """Every figure is one run of llama-bench or llama-batched-bench, which loads the model anew and warms up."""

    name = "llama-bench"

    def __init__(self, jobs=None):
        super().__init__()
        self.server = LlamaServer(jobs)
        self.load = None

    def install(self):
        self.server.install()

    def version(self):
        return f"llama.cpp of {SOURCE}, llama-bench and llama-batched-bench"

    def start(self, load):
        self.load = load

    def run(self, program, *args):
        common = ["--model", self.load.model, "--threads", self.load.threads]
        command = [self.server.folder / "build" / "bin" / program, *common, *args]
        self.spawn(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            said, _ = self.process.communicate(timeout=ANSWER_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            self.stop()
            raise EngineError(f"{program} did not end in {ANSWER_LIMIT_S} s") from error
        if self.process.returncode != 0:
            self.require_alive()
        self.process = None
        return said.decode(errors="replace")

    def bench(self, *args):
        said = self.run("llama-bench", "--repetitions", 1, "--output", "json", *args)
        try:
            return json.loads(said)[0]
        except (ValueError, IndexError) as error:
            raise EngineError(f"llama-bench said {said[:200]!r}") from error

    def answer(self, prompt, num_tokens):
        """Its own random tokens, and no text; the time is the prompt's and that of the tokens after it."""
        begun = time.perf_counter()
        self.bench("--n-prompt", len(prompt.ids), "--n-gen", num_tokens)
        return time.perf_counter() - begun, Answer(len(prompt.ids), num_tokens)

    def prompt_seconds(self, prompt):
        return self.bench("--n-prompt", len(prompt.ids), "--n-gen", 0)["avg_ns"] / 1e9

    def decode_rate(self, prompts, num_tokens):
        return self.bench("--n-prompt", 0, "--n-gen", num_tokens, "--n-depth", len(prompts[0].ids))["avg_ts"]

    def concurrent_rate(self, prompts, num_tokens):
        length = sum(len(prompt.ids) for prompt in prompts) // len(prompts)
        said = self.run(
            "llama-batched-bench", "-npp", length, "-ntg", num_tokens, "-npl", len(prompts),
            "--ctx-size", len(prompts) * (length + num_tokens + 1), "--output-format", "jsonl",
        )
        rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        if not rows:
            raise EngineError(f"llama-batched-bench said {said[:200]!r}")
        return len(prompts) * num_tokens / rows[0]["t"]

    def answer_together(self, prompts, num_tokens):
        return len(prompts) * num_tokens / self.concurrent_rate(prompts, num_tokens), []
