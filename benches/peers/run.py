#!/usr/bin/env python3
"""Sconce beside other engines on the CPU, on the same file, with the same threads, in the same run.

    cargo build --release && python3 benches/peers/run.py

Installs the peers into target/peers the first time (llama.cpp is built from its sources), measures in turn, and prints
a Markdown table. README.md beside this file says what is compared and how. Standard library only.
"""

import argparse
import datetime
import json
import pathlib
import signal
import sys

# The folder above, so that adapters do not hide the packages of the same name.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from peers import machine, report  # noqa: E402
from peers.bandwidth import Bandwidth  # noqa: E402
from peers.engine import EngineError, Load  # noqa: E402
from peers.llama_cpp import LlamaBench, LlamaServer  # noqa: E402
from peers.measure import CONCURRENT_PROMPT, Row, in_turn, measure, tell, warm_up  # noqa: E402
from peers.mistralrs import MistralRs  # noqa: E402
from peers.openvino import OpenVino  # noqa: E402
from peers.ort_genai import OrtGenai  # noqa: E402
from peers.prompts import Prompts  # noqa: E402
from peers.sconce import Sconce  # noqa: E402

PEERS = {
    "llama.cpp": lambda args: LlamaServer(args.jobs),
    "llama-bench": lambda args: LlamaBench(args.jobs),
    "openvino": lambda args: OpenVino(),
    "mistralrs": lambda args: MistralRs(),
    "ort-genai": lambda args: OrtGenai(),
}
DEFAULT_PEERS = "llama.cpp,openvino,mistralrs"
CONTEXT_STEP = 64
AGREEMENT_PROMPT = "The capital of France is"
AGREEMENT_TOKENS = 16


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, help="a GGUF file (default: the starter model)")
    parser.add_argument("--peers", default=DEFAULT_PEERS, help=f"any of {','.join(PEERS)} (default: {DEFAULT_PEERS})")
    parser.add_argument("--threads", type=positive, help="threads of every engine (default: one a physical core)")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each engine (default: 5)")
    parser.add_argument("--lengths", default="512", help="prompt lengths in tokens, with commas between (default: 512)")
    parser.add_argument("--decode", type=positive, default=128, help="tokens to decode (default: 128)")
    parser.add_argument("--decode-after", type=positive, default=32, help="tokens of the prompt before them (default: 32)")
    parser.add_argument("--concurrent", type=positive, default=8, help="requests at once (default: 8)")
    parser.add_argument("--concurrent-tokens", type=positive, default=64, help="tokens of each of them (default: 64)")
    parser.add_argument("--json", type=pathlib.Path, help="a file for all figures")
    parser.add_argument("--binary", type=pathlib.Path, help="the sconce binary (default: target/release/sconce)")
    parser.add_argument("--sconce-args", default="", help="more arguments for `sconce serve`, in one string")
    parser.add_argument("--jobs", type=positive, help="compilers at once while llama.cpp is built (default: all cores)")
    parser.add_argument("--install-only", action="store_true", help="install the peers and measure nothing")
    args = parser.parse_args()
    args.peers = args.peers.split(",")
    for name in args.peers:
        if name not in PEERS:
            parser.error(f"--peers {name}: there are {', '.join(PEERS)}")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json {args.json}: {args.json.parent} is no folder")
    try:
        args.lengths = [positive(length) for length in args.lengths.split(",")]
    except (ValueError, argparse.ArgumentTypeError) as error:
        parser.error(f"--lengths: {error}")
    return args


def install(engines, out):
    """The engines that could be installed; the others go to `out` with the reason."""
    there = []
    for engine in engines:
        try:
            engine.install()
            there.append(engine)
        except EngineError as error:
            out[engine.name] = str(error)
            tell(f"{engine.name} is left out: {error}")
    return there


def start(peers, load, out):
    """The peers that could load the model, paused."""
    started = []
    for peer in peers:
        tell(f"starting {peer.name}")
        try:
            peer.start(load)
            peer.pause()
            started.append(peer)
        except EngineError as error:
            peer.stop()
            out[peer.name] = str(error)
            tell(f"{peer.name} cannot load the model: {error}")
    return started


def agreement(sconce, peers):
    """How far each peer's greedy text goes with Sconce's: a check that the same model is computed."""
    prompt = in_turn(sconce, lambda: sconce.prompt(AGREEMENT_PROMPT))
    _, ours = in_turn(sconce, lambda: sconce.answer(prompt, AGREEMENT_TOKENS))
    said = {}
    for peer in peers:
        try:
            _, theirs = in_turn(peer, lambda: peer.answer(prompt, AGREEMENT_TOKENS))
        except EngineError as error:
            said[peer.name] = str(error)
            continue
        if not theirs.text:
            continue
        same = next((i for i, (a, b) in enumerate(zip(ours.text, theirs.text)) if a != b), None)
        if same is None:
            said[peer.name] = f"the same {AGREEMENT_TOKENS} greedy tokens as sconce"
        else:
            said[peer.name] = f"greedy text goes with sconce's for {same} of {len(ours.text)} characters"
    return said


def compare(args, sconce, bandwidth, peers, out):
    threads = args.threads or len(machine.physical_cores())
    machine.keep_to_cores(threads)
    model = (args.model or machine.starter_model(sconce.binary)).resolve()
    if not model.is_file():
        raise EngineError(f"{model} is not there")
    rows = [Row("prompt", length) for length in args.lengths]
    rows += [Row("decode", args.decode, after=args.decode_after), Row("concurrent", args.concurrent, args.concurrent_tokens)]
    longest = max(
        *args.lengths, args.decode_after + args.decode, CONCURRENT_PROMPT + args.concurrent + args.concurrent_tokens
    )
    load = Load(model, threads, args.concurrent, (longest // CONTEXT_STEP + 1) * CONTEXT_STEP)
    everyone = [sconce, bandwidth, *peers]
    try:
        bandwidth.start(load)
        sconce.start(load)
        prompts = Prompts(sconce)
        peers = start(peers, load, out)
        if not peers:
            raise EngineError("there is no peer to compare with")
        for engine in (sconce, *peers):
            tell(f"warming up {engine.name}")
            warm_up(rows, engine, sconce, prompts)
        agreed = agreement(sconce, peers)
        series = measure(rows, args.rounds, sconce, peers, prompts, bandwidth)
    finally:
        for engine in everyone:
            engine.stop()
    rates = [rate for one in series.values() for pair in one.pairs
             for rate in (pair.gigabytes_per_s_before, pair.gigabytes_per_s_after)]
    facts = {
        "date": datetime.date.today().isoformat(),
        "processor": machine.processor(),
        "threads": threads,
        "rounds": args.rounds,
        "model": model.name,
        "model_bytes": model.stat().st_size,
        "versions": {engine.name: engine.version() for engine in (sconce, *peers)},
        "gigabytes_per_s": [min(rates), max(rates)] if rates else None,
        "left_out": out,
        "agreement": agreed,
    }
    return rows, peers, series, facts


def show(rows, peers, series, facts):
    versions = ", ".join(facts["versions"].values())
    print(f"{facts['model']} ({facts['model_bytes'] / 1e6:.0f} MB), {facts['processor']}, {facts['threads']} threads;")
    print(f"{versions}; medians of {facts['rounds']} rounds in turn (least to greatest)", end="")
    if facts["gigabytes_per_s"]:
        print(f"; read bandwidth {' to '.join(f'{rate:.0f}' for rate in facts['gigabytes_per_s'])} GB/s", end="")
    print(".\n")
    print(report.table(rows, peers, series))
    said = report.notes(rows, peers, series, facts["left_out"], facts["agreement"])
    print(f"\n{said}" if said else "")


def main():
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    out = {}
    sconce, bandwidth = Sconce(args.binary, args.sconce_args), Bandwidth()
    try:
        peers = install([PEERS[name](args) for name in args.peers], out)
        if args.install_only:
            sys.exit(1 if out else 0)
        sconce.install()
        bandwidth.install()
        rows, peers, series, facts = compare(args, sconce, bandwidth, peers, out)
    except EngineError as error:
        sys.exit(str(error))
    show(rows, peers, series, facts)
    if args.json:
        args.json.write_text(json.dumps(report.record(rows, peers, series, facts), indent=1) + "\n")


if __name__ == "__main__":
    main()
