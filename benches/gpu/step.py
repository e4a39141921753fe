"""How a step is run: a program within a time limit, by itself, beside a server, under a trace or under hardware counters."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import urllib.request

import checkpoint
import timeline

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILT = ROOT / "target/gpu"


@dataclasses.dataclass
class Context:
    """What a step is run with: where logs go, until when, what earlier steps ask for, and the peaks once they are measured."""

    out: pathlib.Path
    deadline: float
    env: dict
    peaks: list | None


def run_until(until, command, env, keeps_stderr_apart):
    """Runs a program until a time of time.monotonic(), and ends all that it has started. Returns outcome, stdout and stderr."""
    stderr = subprocess.PIPE if keeps_stderr_apart else subprocess.STDOUT
    # A group and not a session, so that what ends this program's session ends that one's processes.
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | env, text=True, errors="replace", process_group=0,
                               stdout=subprocess.PIPE, stderr=stderr)
    left_s = max(until - time.monotonic(), 0.1)
    try:
        printed = process.communicate(timeout=left_s)
        outcome = "ok" if process.returncode == 0 else f"failed: exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        end(process)
        printed = process.communicate(timeout=20)
        outcome = f"stopped after {left_s:.0f} s"
    finally:
        end(process)
    return outcome, *(part or "" for part in printed)


def end(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


class Step:
    LOG = "log.txt"
    # With less time left a step is not begun.
    LEAST_S = 5

    def __init__(self, name, command, limit_s, has_json=False, takes_peaks=False, env=None, fallback=None):
        """`fallback`: the environment of steps after this one if it fails."""
        self.name, self.command, self.limit_s = name, [str(part) for part in command], limit_s
        self.has_json, self.takes_peaks = has_json, takes_peaks
        self.env, self.fallback = env or {}, fallback or {}

    def run(self, context):
        begun = time.monotonic()
        until = min(begun + self.limit_s, context.deadline)
        result = {"name": self.name, "command": " ".join(self.command)}
        if self.env or context.env:
            result["env"] = self.env | context.env
        if until - begun < min(self.LEAST_S, self.limit_s):
            result["outcome"] = "not run: no time left"
        else:
            try:
                result |= self.measure(context, until)
            except Exception as error:
                result["outcome"] = f"failed: {type(error).__name__}: {error}"
        return result | {"seconds": round(time.monotonic() - begun, 1)}

    def measure(self, context, until):
        return self.execute(context, self.command, until)

    def execute(self, context, command, until):
        if self.takes_peaks and context.peaks:
            command = [*command, "--peaks", ",".join(map(str, context.peaks))]
        outcome, stdout, stderr = run_until(until, command, self.env | context.env, self.has_json)
        result = {}
        if outcome == "ok" and self.has_json:
            try:
                result["report"] = json.loads(stdout)
            except ValueError as error:
                outcome = f"failed: {error}"
        num_failed = result.get("report", {}).get("failed")
        if num_failed:
            outcome = f"failed: {num_failed} requests, {result['report']['first_error']}"
        loaded = re.search(r"ready in ([\d.]+) s", stderr or stdout)
        if loaded:
            result["load_s"] = float(loaded[1])
        with open(context.out / self.LOG, "a", encoding="utf-8") as log:
            log.write(f"==== {self.name}: {outcome}\n$ {' '.join(command)}\n{stdout}{stderr}\n")
        if outcome != "ok":
            result["tail"] = "\n".join((stderr or stdout).splitlines()[-12:])
        return result | {"outcome": outcome}


class Served(Step):
    """Measures a server that is started for it, with random weights, or with those of a checkpoint in the page cache, by one load after
    another."""

    LEAST_S = 40
    PORT = 8123

    def __init__(self, name, model, server_flags, loads, limit_s, has_checkpoint=False):
        url = f"http://127.0.0.1:{self.PORT}"
        bench = [BUILT / "sconce", "bench", "serve", "--base-url", url, "--json"]
        self.loads = [[str(part) for part in (*bench, *flags)] for flags in loads]
        self.model, self.has_checkpoint, self.health = model, has_checkpoint, url + "/health"
        serve = [BUILT / "sconce", "serve", "--device", "cuda:0", "--port", self.PORT, *server_flags]
        super().__init__(name, serve, limit_s, has_json=True)

    def measure(self, context, until):
        if not self.has_checkpoint:
            return self.serve(context, until, ["--model", self.model, "--load-format", "dummy"])
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write(self.model, pathlib.Path(folder) / "model", until)
            return self.serve(context, until, ["--model", pathlib.Path(folder) / "model"])

    def serve(self, context, until, model):
        command = self.command + [str(part) for part in model]
        with open(context.out / "server.txt", "a", encoding="utf-8") as log:
            begun = time.monotonic()
            server = subprocess.Popen(command, cwd=ROOT, env=os.environ | self.env | context.env, process_group=0,
                                      stdout=log, stderr=subprocess.STDOUT)
        try:
            while not self.answers():
                if server.poll() is not None or time.monotonic() > until:
                    return {"outcome": "failed: the server did not become ready"}
                time.sleep(0.05)
            ready_s = round(time.monotonic() - begun, 2)
            runs = []
            for load in self.loads:
                result = self.execute(context, load, until)
                if result["outcome"] != "ok":
                    break
                runs.append(result["report"])
            return result | {"ready_s": ready_s, "report": {"runs": runs}}
        finally:
            end(server)

    def answers(self):
        try:
            with urllib.request.urlopen(self.health, timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False


class Traced(Step):
    """Says what a step's kernels take, one by one: the rates of its own report are not those of a run without the trace."""

    def __init__(self, *args, steps="any", **kwargs):
        """`steps`: which of the engine's are looked at, as timeline.py has it."""
        super().__init__(*args, **kwargs)
        self.steps = steps

    def measure(self, context, until):
        with tempfile.TemporaryDirectory() as folder:
            trace = pathlib.Path(folder) / "trace.csv"
            self.env = self.env | {"CUDA_INJECTION64_PATH": str(BUILT / "trace.so"), "SCONCE_TRACE": str(trace), "SCONCE_CUDA_PDL": "0"}
            result = super().measure(context, until)
            result.pop("report", None)
            if result["outcome"] == "ok":
                with open(trace, encoding="utf-8") as lines:
                    result["timeline"] = timeline.timeline(lines, self.steps)
                if result["timeline"] is None:
                    result["outcome"] = f"failed: of {self.steps} there is no step in the trace"
            return result


class Counted(Step):
    """Some kernels' hardware counters, by Nsight Compute: what their warps wait for."""

    LOG = "counters.txt"
    SECTIONS = ["SpeedOfLight", "WarpStateStats", "SchedulerStats", "MemoryWorkloadAnalysis", "Occupancy"]

    def __init__(self, name, counter, kernels, skip, num, step):
        # The machine's clocks stay as they are.
        sections = [part for section in self.SECTIONS for part in ("--section", section)]
        what = ["--clock-control", "none", "--kernel-name", f"regex:{kernels}", "--launch-skip", skip, "--launch-count", num]
        super().__init__(name, [counter, *sections, *what, *step.command], 60, takes_peaks=True, env=step.env)
