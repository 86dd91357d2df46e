"""The curves of a run: each in a small plot, for a page as SVG, and all together as one PNG."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tooth_foundations.core.files import replace_atomically
from tooth_foundations.core.html import text

Line = dict[str, Any]


class Plot(NamedTuple):
    """A title with its unit, the metrics drawn as (name in metrics.jsonl, words), and how to read them."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    note: str = ""
    logarithmic: bool = False
    factor: float = 1


PLOTS = (
    Plot("loss / ln K", (("loss_over_ln_k", ""),), "1 is a uniform guess; a healthy run sinks below it"),
    Plot(
        "entropy (nats)",
        (
            ("target_mean_entropy", "mean of all targets"),
            ("target_entropy", "one target"),
            ("student_entropy", "student"),
        ),
        "targets tell images apart by the gap of the first two; a mean near 0 is point collapse: one for all",
    ),
    Plot("feature rank (RankMe)", (("rankme", ""),), "directions the features use; a fall towards 1 is rank collapse"),
    Plot("k-NN while training (balanced accuracy)", (("knn", "trained"),), "dashed: what it must beat"),
    Plot("learning rate (× 1/1000)", (("lr", ""),), factor=1000),
    Plot("gradient norm", (("gradient_norm", ""),), "spikes are clipped; steady growth is divergence", True),
    Plot("length of the weights", (("weight_norm", ""),), "growth by a quarter within 50 steps is divergence"),
    Plot("change of the weights in a step", (("update_ratio", ""),), "as a share of their length", True),
    Plot("feature spread (0 to 1)", (("feature_std", ""),), "0: all alike; 1: as far apart as random directions"),
    Plot("KoLeo", (("koleo", ""),), "log distance to the nearest other image, negated: falls as features spread"),
    Plot("length of the center", (("center_norm", ""),), "moving mean of the teacher's logits; growth: they drift"),
    Plot("EMA momentum", (("ema_momentum", ""),), "share of itself that the teacher keeps in a step"),
    Plot("speed (crops/s)", (("images_per_s", ""),)),
    Plot("waiting for data (% of the time)", (("data_wait", ""),), "the first steps start the workers", factor=100),
    Plot("memory (GB)", (("memory_gb", ""),), "the main process and, on CPUs, its data workers"),
)
COLOURS = ("var(--accent)", "#c8641e", "#4c9a52", "#a05fb4")
BASELINES = {
    "knn_before": "random weights",
    "knn_pixels": "raw pixels",
    "knn_size": "crop size",
    "knn_start": "weights of --init",
}
INK = ("#1f5f8b", "#c8641e", "#4c9a52", "#a05fb4")
"""The same on white."""
POINTS = 300
"""Points of a curve: more than there are pixels show nothing; steps between them become a band from least to most."""
WIDTH, HEIGHT, LEFT, BOTTOM = 360, 170, 46, 20


def measured(lines: Sequence[Line]) -> list[tuple[Plot, list[tuple[str, np.ndarray]], dict[str, float]]]:
    """The plots that these lines have points for, their curves as (words, float [2, n]: step and value), and levels.

    Levels, drawn dashed, are the figures that k-NN must beat.
    """
    found = []
    for plot in PLOTS:
        curves = []
        for name, words in plot.metrics:
            points = [(line["step"], line[name] * plot.factor) for line in lines if name in line]
            if points:
                curves.append((words, np.array(points, dtype=float).T))
        levels: dict[str, float] = {}
        if plot.metrics[0][0] == "knn":
            for line in lines:
                levels |= {words: line[name] for name, words in BASELINES.items() if name in line}
        if curves:
            found.append((plot, curves, levels))
    return found


def draw_curves(lines: Sequence[Line], path: Path) -> None:
    """Draw all curves over steps as one PNG."""
    plots = measured(lines)
    rows = -(-len(plots) // 4)
    from matplotlib.figure import Figure  # here, as it takes half a second of the start of every command
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(14, 2.7 * rows), layout="constrained")
    cells = figure.subplots(rows, 4, squeeze=False).flat
    for axes in cells:
        axes.set_visible(False)
    for axes, (plot, curves, levels) in zip(figure.axes, plots, strict=False):
        axes.set_visible(True)
        for (words, points), colour in zip(curves, INK, strict=False):
            axes.plot(*points, ".-" if points.shape[1] < 30 else "-", linewidth=1.2, color=colour, label=words)
        for (words, level), style in zip(levels.items(), ("--", "-.", ":", (0, (6, 2, 1, 2, 1, 2))), strict=False):
            axes.axhline(level, linestyle=style, linewidth=1, color="0.5", label=words)
        if plot.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # 3, where the default writes 3 × 10⁰
            axes.yaxis.set_minor_formatter(LogFormatter())
        if len(curves) > 1 or levels:
            axes.legend(fontsize=7)
        axes.set_title(plot.title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.25)
    replace_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def curves_on_page(lines: Sequence[Line]) -> str:
    """The same as figures of a page, which light and dark and a phone's width suit."""
    return f'<div class="plots">{"".join(_figure(*one) for one in measured(lines))}</div>'


def _figure(plot: Plot, curves: list[tuple[str, np.ndarray]], levels: dict[str, float]) -> str:
    values = np.concatenate([points[1] for _, points in curves] + [np.array(list(levels.values()))])
    values = values[np.isfinite(values)]
    logarithmic = plot.logarithmic and values.min() > 0
    scale = np.log10 if logarithmic else np.asarray
    low, high = float(scale(values.min())), float(scale(values.max()))
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    first, last = (float(end(points[0][[0, -1]])) for end in (np.min, np.max) for points in [curves[0][1]])
    across = (WIDTH - LEFT - 8) / max(last - first, 1)

    def x(steps: np.ndarray) -> np.ndarray:
        return LEFT + (steps - first) * across

    def y(value: np.ndarray) -> np.ndarray:
        return 6 + (HEIGHT - BOTTOM - 6) * (high - scale(value)) / (high - low)

    drawn = ""
    for tick in _ticks(low, high, logarithmic):
        at = float(y(np.array(tick)))
        drawn += f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>'
        drawn += f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    for step in _ticks(first, last, False):
        if step == round(step):
            drawn += f'<text x="{float(x(np.array(step))):.1f}" y="{HEIGHT - 4}" text-anchor="middle">{step:g}</text>'
    for i, level in enumerate(levels.values()):
        at, dashes = float(y(np.array(level))), ("6 4", "6 3 1 3", "2 3", "12 3")[i % 4]
        drawn += f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--pale)"'
        drawn += f' stroke-dasharray="{dashes}"/>'
    for (_, points), colour in zip(curves, COLOURS, strict=False):
        drawn += _curve(points, x, y, colour)
    names = [f'<span style="color:{c}">{text(words)}</span>' for (words, _), c in zip(curves, COLOURS, strict=False)]
    names = [*(names if len(curves) > 1 or levels else []), *(f"{text(k)} {v:.3f}" for k, v in levels.items())]
    last_values = ", ".join(f"{points[1, -1]:.4g}" for _, points in curves)
    said = "; ".join(part for part in (", ".join(names), text(plot.note)) if part)
    return (
        f"<figure><figcaption><b>{text(plot.title)}</b></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(plot.title)}, last {last_values}" '
        f'font-size="11" fill="var(--pale)">{drawn}</svg><figcaption>{said}</figcaption></figure>'
    )


def _curve(points: np.ndarray, x: Any, y: Any, colour: str) -> str:
    steps, values = points[:, np.isfinite(points[1])]
    drawn = ""
    if len(steps) > POINTS:
        parts = [(s, v) for s, v in zip(np.array_split(steps, POINTS), np.array_split(values, POINTS), strict=True)]
        steps = np.array([s.mean() for s, _ in parts])
        most, least = (np.array([end(v) for _, v in parts]) for end in (np.max, np.min))
        around = _path(np.concatenate([x(steps), x(steps)[::-1]]), np.concatenate([y(most), y(least)[::-1]]))
        drawn = f'<path d="{around}Z" fill="{colour}" opacity=".25"/>'
        values = np.array([v.mean() for _, v in parts])
    drawn += f'<path d="{_path(x(steps), y(values))}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
    if len(steps) < 30:
        drawn += "".join(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2" fill="{colour}"/>'
            for a, b in zip(x(steps), y(values), strict=True)
        )
    return drawn


def _path(across: np.ndarray, down: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(across, down, strict=True))


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Three to six round values between the ends; of a logarithmic axis `low` and `high` are powers of ten."""
    if logarithmic:
        powers = range(math.floor(low), math.ceil(high) + 1)
        found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= math.log10(m * 10.0**p) <= high]
        tens = [value for value in found if math.log10(value) == round(math.log10(value))]
        if len(tens) > 2 or len(found) > 6:
            return tens
        return found if len(found) > 1 else _ticks(10**low, 10**high, False)
    if high <= low:
        return [low]
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]
