"""The lines of a label-efficiency curve, and their picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from downstream.config import CurveConfig
from tooth_foundations.core.files import replace_atomically


@dataclass(frozen=True)
class Series:
    """A line of the curve: how it is learnt, from what, and how it is drawn."""

    method: str  # finetune, linear or knn
    source: str  # trained, random or pixels
    label: str


SERIES = (
    Series("finetune", "trained", "fine-tuned from these weights"),
    Series("finetune", "random", "trained from scratch"),
    Series("linear", "trained", "linear probe on these weights"),
    Series("linear", "random", "linear probe on random weights"),
    Series("linear", "pixels", "linear probe on raw pixels"),
    Series("knn", "trained", "k-NN on these weights"),
    Series("knn", "pixels", "k-NN on raw pixels"),
)
COLOURS = {"trained": "#1f6fb4", "random": "#d9772b", "pixels": "#707070"}
STYLES = {"finetune": "-", "linear": "--", "knn": ":"}


def draw_curve(
    path: Path,
    config: CurveConfig,
    scores: dict[str, dict[str, list[float]]],
    sizes: dict[str, list[dict[str, int]]],
    chance: float,
) -> None:
    """Mean and range over the draws against the number of labelled crops, every line on the same axes."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    labels = {fraction: np.mean([count["crops"] for count in counts]) for fraction, counts in sizes.items()}
    for series in SERIES:
        by_share = scores[f"{series.method} {series.source}"]
        x = [labels[fraction] for fraction in by_share]
        mean = [np.mean(draws) for draws in by_share.values()]
        colour = COLOURS[series.source]
        axes.plot(x, mean, STYLES[series.method], marker="o", markersize=4, color=colour, label=series.label)
        lowest, highest = ([f(draws) for draws in by_share.values()] for f in (min, max))
        axes.fill_between(x, lowest, highest, color=colour, alpha=0.1, linewidth=0)
    axes.axhline(chance, color="black", linewidth=0.8, alpha=0.4)
    axes.text(1, chance, " chance", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_xscale("log")
    patients = {f: np.mean([count["patients"] for count in counts]) for f, counts in sizes.items()}
    ticks = [f"{labels[f]:.0f}\n{100 * float(f):g} %\n{patients[f]:.0f}" for f in sizes]
    axes.set_xticks(list(labels.values()), ticks)
    axes.minorticks_off()
    axes.set_xlabel("labelled crops; share of all; patients")
    axes.set_ylabel(f"balanced accuracy, {config.label}")
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8, frameon=False)
    replace_atomically(path, lambda file: figure.savefig(file, format="png"))
