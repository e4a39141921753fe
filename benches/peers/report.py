"""The table for people, and the record for programs."""

import dataclasses

from .measure import median


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def spread(values, form=number):
    """median (least to greatest)"""
    if len(values) == 1:
        return form(values[0])
    return f"{form(median(values))} ({form(min(values))} to {form(max(values))})"


def ratio(value):
    return f"{value:.2f}"


def table(rows, peers, series):
    """Markdown: a row a measurement, and for each peer its own figure and Sconce's divided by it."""
    heads = ["", "sconce"]
    for peer in peers:
        heads += [peer.name, f"sconce / {peer.name}"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        ours = [pair.sconce for peer in peers for pair in series[row, peer.name].pairs]
        cells = [row.title, spread(ours) if ours else "-"]
        for peer in peers:
            one = series[row, peer.name]
            if one.pairs:
                cells += [spread([pair.peer for pair in one.pairs]), spread(one.ratios(), ratio)]
            else:
                cells += ["fails", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(rows, peers, series, out, agreement):
    """What the table does not say: failures, noise, whether the engines said the same."""
    lines = [f"{name} is left out: {why.removeprefix(f'{name}: ')}" for name, why in out.items()]
    for peer in peers:
        for row in rows:
            one = series[row, peer.name]
            if one.failure:
                lines.append(f"{row.title}: {one.failure}")
            noisy = sum(pair.is_noisy for pair in one.pairs)
            if noisy:
                lines.append(f"{row.title}: {noisy} of {len(one.pairs)} pairs with {peer.name} are noisy")
    lines += [f"{name}: {said}" for name, said in agreement.items()]
    return "\n".join(f"- {line}" for line in lines)


def record(rows, peers, series, facts):
    """The same as one JSON object, with every pair."""
    results = []
    for row in rows:
        for peer in peers:
            one = series[row, peer.name]
            results.append(
                {
                    "row": dataclasses.asdict(row),
                    "peer": peer.name,
                    "failure": one.failure or None,
                    "sconce_median": median([pair.sconce for pair in one.pairs]),
                    "peer_median": median([pair.peer for pair in one.pairs]),
                    "ratio_median": median(one.ratios()),
                    "pairs": [{**dataclasses.asdict(pair), "is_noisy": pair.is_noisy} for pair in one.pairs],
                }
            )
    return {**facts, "results": results}
