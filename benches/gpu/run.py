"""Tests and measures Sconce on a GPU, by default in under eight minutes; leaves one JSON file and one readable table, which begins with
the goals.

Needs what `benches/gpu/prepare.sh` has built, and Python's own library. Each step has a time limit and a log; a step that
fails or runs out of time does not keep the others from running, but the whole fails.

    benches/gpu/run.sh --out results/                             everything
    benches/gpu/run.sh --out results/ --only "ops;=one user"      steps whose names contain "ops", and the one of that name
    benches/gpu/run.sh --out results/ --rest before/result.json   what is not ok there; the rest is taken over
    benches/gpu/run.sh --list                                     the steps and their limits in seconds
"""

import argparse
import datetime
import json
import pathlib
import resource
import subprocess
import sys
import time
import traceback

from figures import runs, table
from step import ROOT, Context, Counted, Step
from steps import steps

GPU_FIELDS = ["name", "driver_version", "memory.total", "pci.bus_id", "clocks.max.sm", "clocks.max.memory", "power.limit"]
# A connection each for a thousand requests, on both sides.
OPEN_FILES = 65536


def gpu():
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, text=True, capture_output=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        sys.exit(f"nvidia-smi: {error}")
    return dict(zip(GPU_FIELDS, (field.strip() for field in line.split(","))))


def raise_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def is_asked(name, only):
    return any(name == part[1:] if part.startswith("=") else part in name for part in only.split(";"))


def measured_peaks(step):
    """What the machine does at most, if a step has measured it."""
    peaks = next((run["peaks"] for run in runs(step.get("report", {})) if "peaks" in run), {})
    pair = [peaks.get("dram_read_gb_per_s"), peaks.get("bf16_gflop_per_s")]
    return pair if all(pair) else None


def write(out, result):
    """After each step: what is killed from outside leaves what it has."""
    # Of no machine's folders.
    text = json.dumps(result, indent=1).replace(f"{ROOT}/", "")
    (out / "result.json").write_text(text + "\n", encoding="utf-8")
    try:
        text = table(result)
    except Exception:
        text = f"no table: {traceback.format_exc()}"
    (out / "result.md").write_text(text, encoding="utf-8")
    return text


def measure(args):
    """Runs what is asked for."""
    before = json.loads(args.rest.read_text(encoding="utf-8")) if args.rest else {}
    is_ok = {step["name"]: step for step in before.get("steps", []) if step["outcome"] == "ok"}
    result = {"gpu": gpu(), "date": datetime.date.today().isoformat(), "peaks": before.get("peaks"),
              "fallbacks": before.get("fallbacks", {}), "steps": []}
    if before.get("gpu", result["gpu"])["name"] != result["gpu"]["name"]:
        sys.exit(f"--rest: {args.rest} is of {before['gpu']['name']}, and this is {result['gpu']['name']}")
    deadline = time.monotonic() + args.budget_s
    for step in steps():
        if not is_asked(step.name, args.only):
            continue
        if step.name in is_ok:
            result["steps"].append(is_ok[step.name])
            continue
        print(f"{step.name} ...", flush=True)
        result["fallbacks"].pop(step.name, None)
        env = {name: value for fallback in result["fallbacks"].values() for name, value in fallback.items()}
        done = step.run(Context(args.out, deadline, env, result["peaks"]))
        print(f"{step.name}: {done['outcome']}, {done['seconds']} s", flush=True)
        result["steps"].append(done)
        result["peaks"] = result["peaks"] or measured_peaks(done)
        # One that ran out of time says nothing of what comes after it.
        if step.fallback and done["outcome"].startswith("failed"):
            result["fallbacks"][step.name] = step.fallback
        write(args.out, result)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/gpu-results", help="where results go")
    parser.add_argument("--only", default="", help="only steps whose names contain this, or one of A;B, or are =NAME")
    parser.add_argument("--rest", type=pathlib.Path, metavar="RESULT.json", help="only steps that are not ok there, with its fallbacks")
    parser.add_argument("--budget-s", type=float, default=8 * 60, help="no step goes on for longer than until then")
    parser.add_argument("--list", action="store_true", help="print the steps and run none")
    args = parser.parse_args()
    if args.list:
        for step in steps():
            if is_asked(step.name, args.only):
                print(f"{step.limit_s:4}  {step.name}")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for log in [Step.LOG, Counted.LOG, "server.txt"]:
        (args.out / log).unlink(missing_ok=True)
    raise_open_files()
    result = measure(args)
    print(write(args.out, result))
    sys.exit(any(step["outcome"] != "ok" for step in result["steps"]))


if __name__ == "__main__":
    main()
