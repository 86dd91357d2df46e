"""What a fine-tuning shows: pictures, and one self-contained page that also a phone can read."""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from downstream.data.crops import Crops
from downstream.reports.metrics import SCORES
from tooth_foundations.core.files import replace_atomically
from tooth_foundations.core.html import document, listing, picture, text

WORST = 24  # mistakes in the picture: as many as one looks at
NUMBERED = 16  # classes up to which the confusion matrix has its numbers written in

_STYLE = """
body { max-width: 60rem }
th, td { white-space: nowrap }
.main td { font-size: 1.25rem; color: var(--accent) }
.main td + td { font-size: 1rem; color: inherit }
.wide img { max-width: none; width: max(100%, 44rem) }
"""


class Mistake(NamedTuple):
    """A crop [h, w] as stored, its id, true and predicted class, and the predicted one's probability."""

    image: np.ndarray
    key: str
    truth: str
    predicted: str
    probability: float


def worst(
    crops: Crops, tested: np.ndarray, classes: np.ndarray, truth: np.ndarray, probabilities: np.ndarray
) -> list[Mistake]:
    """The wrongly classified crops that the model was surest of, the surest first, at most `WORST`.

    tested [M]: numbers of the crops; truth int [M], probabilities [M, K] of these.
    """
    predicted, sure = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != truth)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")][:WORST]
    return [
        Mistake(
            crops.image(int(tested[i])),
            crops.keys[tested[i]],
            str(classes[truth[i]]),
            str(classes[predicted[i]]),
            float(sure[i]),
        )
        for i in chosen
    ]


def draw_mistakes(mistakes: list[Mistake]) -> bytes:
    """PNG: the crops in a grid, each with truth -> predicted, the probability, and the id to find it by."""
    columns = min(6, max(len(mistakes), 1))
    rows = max(1, -(-len(mistakes) // columns))
    figure = Figure(figsize=(2 * max(columns, 2), 2.75 * rows), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for axes in cells:
        axes.set_axis_off()
    for axes, mistake in zip(figure.axes, mistakes, strict=False):
        white = np.iinfo(mistake.image.dtype).max
        axes.imshow(mistake.image, cmap="gray", vmin=0, vmax=white)
        axes.set_title(f"{_short(mistake.truth)} → {_short(mistake.predicted)}\n{mistake.probability:.3f}", fontsize=9)
        axes.text(
            0.5, -0.03, mistake.key[:16], fontsize=6, color="#666", ha="center", va="top", transform=axes.transAxes
        )
    if not mistakes:
        figure.axes[0].text(0.5, 0.5, "no crop is classified wrongly", ha="center", transform=figure.axes[0].transAxes)
    return _png(figure)


def draw_confusion(table: np.ndarray, classes: list[str]) -> bytes:
    """PNG of crops by truth (rows) and prediction (columns), int [K, K]; gray is the share of the row."""
    side = float(np.clip(1.6 + 0.55 * len(classes), 4, 14))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = table / table.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if len(classes) <= NUMBERED else 6
    names = [_short(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    if len(classes) <= NUMBERED:
        for (row, column), count in np.ndenumerate(table):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    return _png(figure)


def draw_curves(folds: list[dict[str, Any]]) -> bytes:
    """PNG: loss and, where patients were set apart, balanced accuracy on them, by epoch; a line each fold."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for fold in folds:
        epochs = [line["epoch"] for line in fold["curve"]]
        left.plot(epochs, [line["loss"] for line in fold["curve"]], marker=".", label=f"fold {fold['fold']}")
        points = [(line["epoch"], line["balanced_accuracy"]) for line in fold["curve"] if "balanced_accuracy" in line]
        if points:
            (drawn,) = right.plot(*zip(*points, strict=True), marker=".")
            chosen = dict(points)[fold["best_epoch"]]
            right.plot(fold["best_epoch"], chosen, marker="o", markersize=9, fillstyle="none", color=drawn.get_color())
    for axes, title in ((left, "training loss"), (right, "balanced accuracy of the patients set apart")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    if len(folds) <= 10:
        left.legend(fontsize=7)
    if not right.lines:
        right.text(0.5, 0.5, "none were set apart", ha="center", transform=right.transAxes)
    return _png(figure)


def write(out: Path, metrics: dict[str, Any], mistakes: list[Mistake]) -> None:
    """Write `mistakes.png` and `report.html`, with every picture inside it, from what `finetune` measured."""
    wrong = draw_mistakes(mistakes)
    replace_atomically(out / "mistakes.png", lambda file: file.write(wrong))
    table = np.array(metrics["confusion"])
    warned = "".join(f'<p class="warning">{text(said)}</p>' for said in metrics["warnings"])
    body = f"""<p>{metrics["crops"]} crops of {metrics["patients"]} patients, {text(metrics["protocol"])}: every crop is
tested once, by a model that saw no crop of the same patient, as far as the shards tell them apart.</p>
{warned}
<div class="wide"><table class="main">{_headline(metrics)}</table></div>
<p>In brackets: {text(metrics["interval"])}. Chance is a balanced accuracy of {metrics["chance"]:.3f}. AUROC and
average precision are of each class against all others, then the mean.</p>
<h2>Classes</h2><div class="wide"><table>{_classes(metrics)}</table></div>
<h2>Confusion</h2>{picture(draw_confusion(table, metrics["classes"]), "Crops by true and predicted class")}
<h2>Folds</h2><div class="wide"><table>{_folds(metrics)}</table></div>
<div class="wide">{picture(draw_curves(metrics["folds"]), "Loss and balanced accuracy by epoch")}</div>
<p>A circle marks the epoch whose weights are kept and tested.</p>
<h2>Worst mistakes</h2><p>Truth → prediction with its probability, the surest first; below, the id that
predictions.csv has.</p>
<div class="wide">{picture(wrong, "The wrongly classified crops that the model was surest of")}</div>
<h2>Settings</h2><p>{text(metrics["input"])}</p>
{listing(json.dumps(metrics["settings"], indent=2))}
"""
    page = document(f"Fine-tuning: {metrics['label']}", body, _STYLE)
    replace_atomically(out / "report.html", lambda file: file.write(page.encode()))


def _headline(metrics: dict[str, Any]) -> str:
    rows = ""
    for name, words in SCORES.items():
        score = metrics["scores"][name]
        bounds = f"[{_figure(score['low'])}, {_figure(score['high'])}]"
        rows += f"<tr><th>{words}</th><td>{_figure(score['value'])}</td><td>{bounds}</td></tr>"
    return rows


def _classes(metrics: dict[str, Any]) -> str:
    columns = ("crops", "patients", "recall", "precision", "f1", "auroc", "average_precision")
    heads = ("crops", "patients", "recall", "precision", "F1", "AUROC", "AP")
    rows = [
        (text(name), *(_figure(values[column]) for column in columns)) for name, values in metrics["by_class"].items()
    ]
    return _table((text(metrics["label"]), *heads), rows)


def _folds(metrics: dict[str, Any]) -> str:
    heads = ("fold", "patients trained on", "set apart", "tested", "rate", "epoch", *SCORES.values())
    sides = ("train", "validation", "test")
    rows = [
        (
            str(fold["fold"]),
            *(str(fold[side]["patients"]) for side in sides),
            f"{fold['lr']:g}",
            f"{fold['best_epoch']} of {len(fold['curve'])}",
            *(_figure(fold["scores"][name]) for name in SCORES),
        )
        for fold in metrics["folds"]
    ]
    return _table(heads, rows)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = "".join(
        f"<tr><th>{first}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for first, *cells in rows
    )
    return "<tr>" + "".join(f"<th>{head}</th>" for head in heads) + f"</tr>{lines}"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _short(name: str) -> str:
    name = name.replace("$", r"\$")  # matplotlib would read mathematics
    return name if len(name) <= 16 else name[:15] + "…"


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    return file.getvalue()
