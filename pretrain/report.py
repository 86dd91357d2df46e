"""What a run shows: curves, a summary in the terminal, and one self-contained page."""

import base64
import html
import json
import math
from pathlib import Path
from typing import Any

import cv2
from matplotlib.figure import Figure

from augment import MultiCrop
from augment.preview import draw_sheet
from data_shards.stream import Address, Stream
from pretrain.checkpoint import replace_atomically
from pretrain.config import Config
from pretrain.evaluate import BASELINES
from pretrain.journal import read_metrics
from pretrain.run_folder import RunFolder

CURVES = (
    ("loss_over_ln_k", "loss / ln K", "1 is a uniform guess; a healthy run sinks below it and keeps sinking"),
    ("teacher_entropy", "teacher entropy (nats)", "of a view: ln K is no opinion at all, lower is a decided teacher"),
    (
        "teacher_mean_entropy",
        "entropy of its mean (nats)",
        "ln K uses all prototypes, 0 is point collapse: one for all",
    ),
    ("rankme", "feature rank (RankMe)", "directions the features use; a fall towards 1 is rank collapse"),
    ("gradient_norm", "gradient norm", "spikes are clipped; steady growth is divergence"),
    ("koleo", "KoLeo (log distance)", "log distance to the nearest other image, negated: it falls as features spread"),
    ("knn", "k-NN while training", "dashed: random weights, raw pixels and crop size; the best one's weights are kept"),
    ("lr", "learning rate", ""),
    ("images_per_s", "crops / s", ""),
)


def write_views(stream: Stream, config: Config, path: Path) -> None:
    """Draw the first picture of a run: crops of its first set, the views that networks will see, every operation."""
    chosen = [Address(0, 0, i * len(stream.sets[0]) // 4) for i in range(4)]
    read = [stream.read(address, config.data.bad_samples > 0) for address in chosen]
    keys = [(config.seed, 0, 0, r.address.index) for r in read]
    sheet = draw_sheet([r.image for r in read], MultiCrop(config.views), keys)
    encoded = cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()
    replace_atomically(path, lambda file: file.write(encoded))


def draw_curves(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draw the run's curves over steps as one PNG."""
    figure = Figure(figsize=(14, 5.6), layout="constrained")
    measured = [curve for curve in CURVES if any(curve[0] in line for line in metrics)]
    panels = figure.subplots(2, -(-len(measured) // 2)).ravel()
    for spare in panels[len(measured) :]:
        spare.set_axis_off()
    for axes, (name, title, _) in zip(panels, measured, strict=False):
        points = [(line["step"], line[name]) for line in metrics if name in line]
        few = "o-" if name == "knn" else "-"
        axes.plot(*zip(*points, strict=True), few, linewidth=1.2, markersize=3, color="#1f5f8b")
        if name == "knn":
            last = next(line for line in reversed(metrics) if name in line)
            for baseline, shade in zip(BASELINES, ("0.2", "0.45", "0.7"), strict=True):
                axes.axhline(last[f"knn_{baseline}"], linestyle="--", linewidth=1, color=shade, label=baseline)
            axes.legend(fontsize=7)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        if name == "lr":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    replace_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def summary_rows(metrics: list[dict[str, Any]], scores: dict[str, Any], prototypes: int) -> list[tuple[str, str]]:
    """The run in a few lines: (what, figure with how to read it)."""
    last = metrics[-1]
    ranks = [line["rankme"] for line in metrics if "rankme" in line]
    rows = [
        ("steps", f"{last['step'] + 1} ({last['samples_seen']} crops seen)"),
        (
            "loss / ln K",
            f"{last['loss_over_ln_k']:.3f} (1 = uniform guess; began at {metrics[0]['loss_over_ln_k']:.3f})",
        ),
        (
            "teacher entropy",
            f"{last['teacher_entropy']:.3f} nats of a view, {last['teacher_mean_entropy']:.3f} of the mean view "
            f"(both {math.log(prototypes):.3f}: uniform collapse; mean near 0: point collapse)",
        ),
        ("feature rank", f"{ranks[-1]:.1f} (RankMe; began at {ranks[0]:.1f})"),
    ]
    if scored := [line for line in metrics if "knn" in line]:
        best = max(scored, key=lambda line: line["knn"])
        kept = f"after step {best['step'] + 1}, whose weights are kept (-best.pth)"
        rows.append(("k-NN on the way", f"{best['knn']:.3f} at its best, {kept}"))
    knn = scores.get("knn")
    if knn is None:
        return [
            *rows,
            ("k-NN", "not measured: no shards with that label and two patients (see --eval.shards, --eval.label)"),
        ]
    rows += [
        (f"k-NN {knn['label']}", f"{knn['after']:.3f} after training"),
        *([("", f"{knn['start']:.3f} at the start, with the weights of --init")] if "start" in knn else []),
        ("", f"{knn['before']:.3f} before, with the random weights"),
        (
            "",
            f"{knn['pixels']:.3f} from raw pixels, {knn['size']:.3f} from size, {1 / knn['classes']:.3f} by chance",
        ),
        ("", f"balanced accuracy, {knn['crops']} crops of {knn['patients']} patients, neighbours from other patients"),
    ]
    return rows


def format_summary(rows: list[tuple[str, str]]) -> str:
    """The summary as aligned lines for a terminal."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def write_report(run: RunFolder, rows: list[tuple[str, str]], settings: dict[str, Any]) -> None:
    """Draw the curves and write `report.html`, with every picture inside it."""
    draw_curves(list(read_metrics(run.metrics)), run.curves)
    table = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    notes = "".join(f"<li><b>{html.escape(title)}</b>: {html.escape(note)}.</li>" for _, title, note in CURVES if note)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(run.name)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }}
th {{ text-align: left; padding-right: 1.5rem; white-space: nowrap; vertical-align: top }}
img {{ max-width: 100%; height: auto; border: 1px solid #ddd }}
pre {{ background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px }}
</style>
<h1>{html.escape(run.name)}</h1>
<table>{table}</table>
<h2>Curves</h2>{_picture(run.curves, "Curves of the run over its steps")}<ul>{notes}</ul>
<h2>Views</h2>{_picture(run.views, "Crops with the regions of their views, and the views")}
<h2>Settings</h2><pre>{html.escape(json.dumps(settings, indent=2))}</pre>
</html>
"""
    replace_atomically(run.report, lambda file: file.write(page.encode()))


def _picture(path: Path, description: str) -> str:
    if not path.exists():
        return "<p>No picture.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'
