"""The table that `step.py` prints of its rounds, and what became of the aims."""

from statistics import median
from typing import Any

OURS, COMPILED, BARE, PEER = "ours", "ours, compiled", "bare passes", "lightly-train"
AIM_BARE, AIM_PEER, AIM_PEER_FP32 = 1.10, 2.2, 1.6
"""Most seconds of ours as a share of the bare step's; least images/s as a multiple of lightly-train's, each at its best
precision and both in float32. Stated for two cores with AVX512-BF16."""

Rows = dict[tuple[str, str], list[dict[str, Any]]]
"""The rounds of each contender in each precision, as in step.json."""


def table(results: dict[str, Any]) -> str:
    """A row for each contender, and what became of the aims."""
    rows = {(c["name"], c["precision"]): c["rounds"] for c in results["contenders"]}
    batch, peak = results["batch"], results["peak TFLOP/s"]
    lines = [f"{results['what']}; {results['machine']['threads']} threads of {results['machine']['device']}, "
             f"torch {results['machine']['torch']}; {results['precision']}", ""]  # fmt: skip
    heads = ["", "precision", "images/s", "s a step", "ours' s / its (each round)", "data wait", "GB at the peak"]
    lines += ["| " + " | ".join([*heads, *["MFU"] * bool(peak)]) + " |", "|---" * (len(heads) + bool(peak)) + "|"]
    for (name, precision), rounds in rows.items():
        seconds = median(round_seconds(rounds))
        ratio = "" if name == OURS else with_rounds(ratios(rows[OURS, precision], rounds))
        waited = [one["waited"] for one in rounds if one["waited"] is not None]
        cells = [name, precision, f"{batch / seconds:.1f}", f"{seconds:.3g}", ratio]
        cells += [f"{median(waited):.1%}" if waited else "", f"{max(one['bytes'] for one in rounds) / 1e9:.2f}"]
        if peak:
            cells.append(f"{results['GFLOP a sample'] * batch / seconds / (peak * 1e3):.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *aims(rows)]) + "\n"


def aims(rows: Rows) -> list[str]:
    """A line for each aim: the figure, each round's, and whether it is met."""
    best = {name: min((k for k in rows if k[0] == name), key=lambda k: median(round_seconds(rows[k])), default=None)
            for name in (OURS, BARE, PEER)}  # fmt: skip
    ours = best[OURS]
    asked = [("seconds of a step, ours / bare passes", ours, (BARE, ours[1]), AIM_BARE, False)]
    if best[PEER]:
        asked.append(("images/s, ours / lightly-train, each at its best", ours, best[PEER], AIM_PEER, True))
        if (OURS, "fp32") in rows:
            asked.append(("the same, both in fp32", (OURS, "fp32"), (PEER, "fp32"), AIM_PEER_FP32, True))
    lines = []
    for what, own, other, aim, more in asked:
        values = ratios(rows[other], rows[own]) if more else ratios(rows[own], rows[other])
        met = median(values) >= aim if more else median(values) <= aim
        precisions = own[1] if own[1] == other[1] else f"{own[1]} and {other[1]}"
        bound = f"at {'least' if more else 'most'} {aim:g}: {'met' if met else 'missed'}"
        lines.append(f"- {what} ({precisions}): {with_rounds(values)}; {bound}")
    return lines


def round_seconds(rounds: list[dict[str, Any]]) -> list[float]:
    """Of a step, the median of each round."""
    return [median(one["seconds"]) for one in rounds]


def ratios(over: list[dict[str, Any]], under: list[dict[str, Any]]) -> list[float]:
    """Of the seconds in each round."""
    return [a / b for a, b in zip(round_seconds(over), round_seconds(under), strict=True)]


def with_rounds(values: list[float]) -> str:
    return f"{median(values):.2f} ({', '.join(f'{v:.2f}' for v in values)})"
