"""What a step's kernels take, from the lines that trace.c writes.

    benches/gpu/timeline.py TRACE                   a table of the kind of step that most time went to
    benches/gpu/timeline.py TRACE --steps decodes   the same of steps in which every sequence decodes
"""

import argparse
import collections
import pathlib
import statistics

# The kernel with which each step begins.
FIRST = "embed_"
# Attention of decodes; a step with prompts has another.
DECODE_ATTENTION = ("attention_decode", "attention_shared")


def is_kind(step, kind):
    attention = [name for *_, name in step if name.startswith("attention_")]
    is_decode = bool(attention) and all(name.startswith(DECODE_ATTENTION) for name in attention)
    return {"any": True, "decodes": is_decode, "prompts": bool(attention) and not is_decode}[kind]


def steps_of(lines):
    """Steps as lists of (begin, end, blocks, name), without what came before the first and with the last, which may be cut off."""
    kernels = sorted((int(begin), int(end), int(blocks), name)
                     for begin, end, blocks, name in (line.rstrip("\n").split(",", 3) for line in lines))
    steps = []
    for kernel in kernels:
        if kernel[3].startswith(FIRST):
            steps.append([])
        if steps:
            steps[-1].append(kernel)
    return steps[:-1]


def timeline(lines, kind="any"):
    """Of the steps of a kind (any, decodes, prompts), of those with the same kernels in which most time was spent, the one of median
    length. None where there is no such step."""
    alike = collections.defaultdict(list)
    for step in steps_of(lines):
        if is_kind(step, kind):
            alike[tuple(kernel[2:] for kernel in step)].append(step)
    if not alike:
        return None
    length = lambda step: step[-1][1] - step[0][0]
    most = max(alike.values(), key=lambda steps: sum(map(length, steps)))
    step = sorted(most, key=length)[len(most) // 2]
    by_kernel = collections.defaultdict(list)
    idle, busy_until = 0, step[0][0]
    for begin, end, blocks, name in step:
        by_kernel[name, blocks].append((end - begin) / 1e3)
        idle += max(begin - busy_until, 0)
        busy_until = max(busy_until, end)
    rows = [{"kernel": name, "blocks": blocks, "num": len(times), "mean_microseconds": round(statistics.mean(times), 2),
             "total_microseconds": round(sum(times), 1)} for (name, blocks), times in by_kernel.items()]
    rows.sort(key=lambda row: -row["total_microseconds"])
    return {"num_steps": len(most), "step_microseconds": length(step) / 1e3, "idle_microseconds": idle / 1e3, "kernels": rows}


def table(result):
    """Lines of a table in Markdown."""
    yield (f"A step of {result['step_microseconds']:,.0f} µs, of which {result['idle_microseconds']:,.0f} between kernels; "
           f"{result['num_steps']} like it")
    yield ""
    yield "| kernel | blocks | calls | µs each | µs | share |"
    yield "|---|---|---|---|---|---|"
    for row in result["kernels"]:
        total = row["total_microseconds"]
        yield (f"| {row['kernel']} | {row['blocks']} | {row['num']} | {row['mean_microseconds']:.2f} | {total:,.0f} | "
               f"{100 * total / result['step_microseconds']:.1f} % |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=pathlib.Path)
    parser.add_argument("--steps", choices=["any", "decodes", "prompts"], default="any", help="which steps (default: any)")
    args = parser.parse_args()
    with open(args.trace, encoding="utf-8") as lines:
        result = timeline(lines, args.steps)
    print("\n".join(table(result)) if result else "no step")


if __name__ == "__main__":
    main()
