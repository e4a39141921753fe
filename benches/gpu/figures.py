"""The tables of a result: the goals first, row by row, then all figures."""

import timeline
from steps import MANY, MODEL, OTHER_MODELS


class Goal:
    """A row of the goals: what is compared of which steps. `read` takes reports by the names of their steps and gives the figure, its
    roof and the figure's share of it, or None for these, and whether each part of the goal is met."""

    def __init__(self, work, goal, read):
        self.work, self.goal, self.read = work, goal, read

    def row(self, reports):
        try:
            figure, roof, share, met = self.read(reports)
        except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
            return f"| {self.work} | {self.goal} | not measured | | | |"
        share = "" if share is None else f"{100 * share:.0f} %"
        met = ", ".join((f"{part}: " if part else "") + ("yes" if is_met else "no") for part, is_met in met.items())
        return f"| {self.work} | {self.goal} | {figure} | {roof or ''} | {share} | {met} |"


def runs(report):
    """The reports of single runs."""
    return report["runs"] if "runs" in report else [report]


def decodes(report):
    decode = report.get("decode", [])
    return decode if isinstance(decode, list) else [decode]


def after(report, input_len):
    return next(decode for decode in decodes(report) if decode["input_len"] == input_len)


def rate(tok_per_s):
    return f"{tok_per_s:,.0f} tok/s"


def one_user(step, input_len, goal_share, goal_rate=None):
    def read(reports):
        decode = after(reports[step], input_len)
        share = decode["roof"]["share"]
        met = {"rate": decode["tok_per_s"] >= goal_rate} if goal_rate else {}
        met |= {"share" if met else "": share >= goal_share} if goal_share else {}
        return rate(decode["tok_per_s"]), rate(decode["tok_per_s"] / share), share, met

    return read


def decode_of(num, goal_share):
    def read(reports):
        decoding = next(run for run in runs(reports["decodes"]) if run["num_prompts"] == num)["decoding"]
        share = decoding["roof"]["share"]
        figure = f"{rate(decoding['tok_per_s'])}, {decoding['ms_per_step']:.2f} ms a step"
        return figure, f"{rate(decoding['tok_per_s'] / share)}, by {decoding['roof']['bound_by']}", share, {"": share >= goal_share}

    return read


def prompt_of(report, input_len):
    return next(prompt for prompt in report["prompt"] if prompt["input_len"] == input_len)


def prefill(input_len, goal_share):
    def read(reports):
        report = reports["one user"]
        prompt, peak = prompt_of(report, input_len), report["peaks"]["bf16_gflop_per_s"]
        share = prompt["roof"]["share_of_products"]
        figure = f"{rate(prompt['tok_per_s'])}, {prompt['roof']['gflop_per_s'] / 1e3:,.0f} TFLOP/s"
        return figure, f"{peak / 1e3:,.0f} TFLOP/s", share, {"": share >= goal_share}

    return read


def first_token(reports):
    ms = runs(reports["over HTTP"])[0]["ttft_ms"]["p50"]
    prompt = prompt_of(reports["one user"], 128)
    roof = prompt["ms"] * prompt["roof"]["share"]
    return f"{ms:.1f} ms (median)", f"{roof:.1f} ms", roof / ms, {"": ms <= 10}


def ready(reports):
    seconds = reports["start with a checkpoint"]["ready_s"]
    return f"{seconds:.1f} s", None, None, {"": seconds <= 10}


def generated(step, goal_rate):
    def read(reports):
        report = reports[step]
        tok_per_s, share = report["generated_tok_per_s"], report["roof"]["share"]
        return rate(tok_per_s) + lengths(report), rate(tok_per_s / share), share, {"": tok_per_s >= goal_rate}

    return read


def lengths(report):
    """What log-normal lengths have come to."""
    if not report.get("spread"):
        return ""
    generated = report.get("generated_tokens", report.get("output_tokens"))
    means = [tokens / report["num_prompts"] for tokens in (report["prompt_tokens"], generated)]
    return f" ({means[0]:.0f} tokens and {means[1]:.0f} generated on average)"


def conversations_over_http(reports):
    served, offline = runs(reports["over HTTP"])[1], reports["conversations"]["generated_tok_per_s"]
    tok_per_s = served["output_tok_per_s"]
    return rate(tok_per_s) + lengths(served), rate(offline) + " offline", tok_per_s / offline, {"": tok_per_s >= 0.97 * offline}


def beams(reports):
    report = reports["beams of 4"]
    per_s, share = report["requests_per_s"], report["roof"]["share"]
    return f"{per_s:.1f} requests/s", f"{per_s / share:.1f} requests/s", share, {"": per_s >= 11}


def one_prompt(reports):
    shared, apart = reports["8 of one prompt"], reports["8 prompts of 2048"]
    # The first token comes of the prompt's last step.
    prompt_steps = shared["num_steps"] - (shared["output_len"] - 1)
    kv_tokens, whole = shared["peak_kv_tokens"], shared["input_len"]
    ms, apart_ms = (report["decoding"]["ms_per_step"] for report in (shared, apart))
    share = shared["decoding"]["roof"]["share"]
    figure = (f"the prompt in {prompt_steps} step(s) of at most {whole:,}, {kv_tokens:,} tokens stored at most; "
              f"{ms:.2f} ms a step, {ms / apart_ms:.2f} of {apart_ms:.2f}")
    met = {"computed once": prompt_steps <= 2, "stored once": kv_tokens < 2 * whole, "step time": ms <= 1.1 * apart_ms}
    return figure, f"{ms * share:.2f} ms a step", share, met


def alone(reports):
    exact, fast = reports["one among 127 others"], reports["one among 127 others, fast"]
    cost = 1 - exact["generated_tok_per_s"] / fast["generated_tok_per_s"]
    is_same = exact["is_same_alone"]
    return f"{'the same' if is_same else 'other'} tokens; cost {100 * cost:.0f} %", None, None, {"tokens": is_same, "cost": cost <= 0.1}


GOALS = [
    *(Goal(f"one user, after {length:,}", ">= 180 tok/s, 90 % of the roof", one_user("one user", length, 0.9, 180))
      for length in (128, 4096)),
    *(Goal(f"{name}, one user, after {length:,}", "90 % of the roof", one_user(f"one user, {model}", length, 0.9))
      for model, name in OTHER_MODELS.items() for length in (128, 1900)),
    *(Goal(f"decode of {num} after 1,024", ">= 85 % of the roof", decode_of(num, 0.85)) for num in MANY if num <= 16),
    Goal("first token of a prompt of 128, over HTTP", "<= 10 ms", first_token),
    Goal("start to ready, 16 GB in the page cache", "<= 10 s", ready),
    Goal("one user, layers in e4m3, after 128", ">= 290 tok/s", one_user("one user, fp8", 128, None, 290)),
    *(Goal(f"prompt of {length:,}, attention included", ">= 70 % of the bf16 peak", prefill(length, 0.7)) for length in (2048, 8192)),
    *(Goal(f"decode of {num} after 1,024", ">= 80 % of the roof", decode_of(num, 0.8)) for num in MANY if num > 16),
    *(Goal(f"offline {step}", f">= {goal:,} tok/s", generated(f"offline {step}", goal))
      for step, goal in (("128/128", 16200), ("1000/1000", 7800), ("2048/128", 2000))),
    Goal("1,000 conversations, offline", ">= 16,300 tok/s", generated("conversations", 16300)),
    Goal("1,000 conversations, over HTTP", "within 3 % of offline", conversations_over_http),
    Goal("beam width 4, 256/256, 100 prompts", ">= 11 requests/s", beams),
    Goal("8 answers of one prompt of 2,048", "prompt computed and stored once; a step within 1.1 of 8 prompts'", one_prompt),
    Goal("one request alone and among 127 others", "the same tokens, at a cost of <= 10 %", alone),
]


def goal_table(result):
    device = result["gpu"]["name"]
    peaks = result.get("peaks")
    measured = f"{peaks[0]:,.0f} GB/s copied and {peaks[1] / 1e3:,.0f} TFLOP/s of bf16 products" if peaks else "not measured"
    yield f"Goals name an H100; this is one {device}, whose measured roof is {measured}."
    yield f"{MODEL} but where another model is named; random weights. A roof counts weights once a step, keys and values, and all products."
    yield ""
    yield "| work | goal | figure | roof | share | met |"
    yield "|---|---|---|---|---|---|"
    reports = {step["name"]: step.get("report", {}) | {key: step[key] for key in ["ready_s"] if key in step}
               for step in result["steps"] if step["outcome"] == "ok" or "report" in step}
    yield from (goal.row(reports) for goal in GOALS)


def table(result):
    device = result["gpu"]
    lines = [f"{device['name']}, driver {device['driver_version']}, {result['date']}", "", *goal_table(result), ""]
    lines += [f"Steps after \"{name}\" were run with {env}, since it failed." for name, env in result.get("fallbacks", {}).items()]
    lines += ["", "| step | outcome | seconds | of loading |", "|---|---|---|---|"]
    lines += [f"| {step['name']} | {step['outcome']} | {step['seconds']} | {step.get('load_s', '')} |" for step in result["steps"]]
    rows = [f"| {step['name']}: {name} | {figure} | {'' if share is None else f'{100 * share:.0f} %'} |"
            for step in result["steps"] if "transformers" not in step.get("report", {}) for name, figure, share in figures(step)]
    lines += ["", "| work | figure | of the roof |", "|---|---|---|", *rows]
    lines += [row for step in result["steps"] if "transformers" in step.get("report", {}) for row in of_transformers(step)]
    for part in (part for step in result["steps"] for part in step.get("report", {}).get("parts", [])):
        lines += ["", *operations(part)]
    for step in result["steps"]:
        if step.get("timeline"):
            lines += ["", f"{step['name']}, kernel after kernel", "", *timeline.table(step["timeline"])]
    for step in result["steps"]:
        if step.get("tail"):
            lines += ["", f"{step['name']}: {step['outcome']}", "", "```", step["tail"], "```"]
    return "\n".join(lines) + "\n"


def figures(step):
    """Each a name, a figure and its share of the roof, or None."""
    if "ready_s" in step:
        yield "ready after", f"{step['ready_s']:.1f} s", None
    for run in runs(step.get("report", {})):
        for prompt in run.get("prompt", []):
            weights = f", {100 * prompt['share_of_bf16']:.0f} % by weights alone" if prompt["share_of_bf16"] else ""
            figure = f"{rate(prompt['tok_per_s'])}, {prompt['ms']:.2f} ms{weights}"
            yield f"prompt of {prompt['input_len']}", figure, prompt["roof"]["share"]
        for decode in decodes(run):
            yield f"decode after {decode['input_len']}", rate(decode["tok_per_s"]), decode["roof"]["share"]
        if run.get("command") == "throughput":
            what = f"{run['num_prompts']} requests"
            yield what, f"{rate(run['generated_tok_per_s'])}, {run['requests_per_s']:.2f} requests/s{lengths(run)}", run["roof"]["share"]
            decoding = run.get("decoding")
            if decoding:
                figure = f"{rate(decoding['tok_per_s'])}, {decoding['ms_per_step']:.2f} ms a step"
                yield f"{what}, while all {decoding['num_sequences']} sequences decode", figure, decoding["roof"]["share"]
            if run["is_same_alone"] is not None:
                yield "alone", f"{'the same' if run['is_same_alone'] else 'other'} tokens", None
        if run.get("command") == "serve":
            what = f"{run['num_prompts']} requests of {run['input_len']}/{run['output_len']}"
            yield f"{what}, first token", f"{run['ttft_ms']['p50']:.1f} ms (median)", None
            yield what, rate(run["output_tok_per_s"]) + lengths(run), None


def of_transformers(step):
    report = step["report"]
    for prompt in report["prompts"]:
        yield f"| {step['name']}: prompt of {prompt['input_len']} | {rate(prompt['tok_per_s'])} | |"
    yield f"| {step['name']}: decode | {rate(report['decode_tok_per_s'])} | |"


def operations(part):
    yield f"{part['work']}, {part['ms']:.2f} ms, operations one by one"
    yield ""
    yield "| operation | ms | calls | GB/s of weights | TFLOP/s |"
    yield "|---|---|---|---|---|"
    for op in part["ops"]:
        name = op["op"] + (" {} x {}".format(*op["weight"]) if op["weight"] else "")
        rates = [f"{op[key] / scale:,.0f}" if op[key] else "-" for key, scale in (("weight_gb_per_s", 1), ("gflop_per_s", 1e3))]
        yield f"| {name} | {op['ms']:.3f} | {op['num_calls']:.0f} | {' | '.join(rates)} |"
