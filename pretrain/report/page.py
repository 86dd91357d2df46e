"""What a run shows: a summary in the terminal, and one self-contained page, at its end and whenever it is asked for."""

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from augment import MultiCrop
from augment.preview import draw_sheet
from data_shards.shards.stream import Address, ShardSet, Stream
from pretrain.config.schema import Config
from pretrain.evaluation.embed import embed, unit
from pretrain.models.backbones import Backbone
from pretrain.report import figures as pictures
from pretrain.report.curves import curves_on_page, draw_curves
from pretrain.report.sample_crops import Specimens, specimens
from pretrain.runs.run_folder import RunFolder
from tooth_foundations.core.files import replace_atomically
from tooth_foundations.core.html import document, listing, photo, text

WIDEST = 1400
"""Widest picture on the page, pixels: sharp on a screen, and some hundred KB."""
_STYLE = f"""
.verdict {{ font-size: 1.15rem; border-left: 6px solid var(--doubt); padding: .5rem .8rem; background: var(--panel) }}
.verdict.learning {{ border-color: var(--good) }}
.verdict.collapsed {{ border-color: var(--bad) }}
.summary th {{ text-align: left; white-space: nowrap; color: var(--pale); font-weight: normal }}
.summary td {{ text-align: left; white-space: normal }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1.2rem 1.6rem }}
.plots.two {{ grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)) }}
.plots figure {{ text-align: left }}
.plots b, .near b, .maps b {{ color: var(--ink); font-size: .85rem }}
.keys span {{ white-space: nowrap; margin-right: 1rem; display: inline-block }}
.keys i {{ display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; margin-right: .35rem }}
.near {{ display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, {pictures.NEIGHBOURS}fr); gap: .5rem .8rem }}
.nears {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 1rem 2rem }}
.query, .found {{ display: grid; gap: .3rem .4rem; align-content: start }}
.found {{ grid-template-columns: repeat(var(--n), minmax(0, 1fr)) }}
.found b {{ grid-column: 1 / -1 }}
.near img, .maps img {{ width: 100%; display: block }}
.near figure {{ border: 3px solid transparent; line-height: 1.3 }}
.near figcaption {{ font-size: min(.68rem, 2.3vw) }}
.near .same {{ border-color: var(--good) }}
.maps {{ display: grid; grid-template-columns: repeat(var(--n), minmax(6.5rem, 10rem)); gap: .4rem }}
.maps b {{ align-self: end; line-height: 1.2 }}
.sheet {{ min-width: 60rem }}
"""


def write_views(stream: Stream, config: Config, path: Path) -> None:
    """Draw the first picture of a run: crops of its first set, the views that networks will see, every operation."""
    chosen = [Address(0, 0, i * len(stream.sets[0]) // 4) for i in range(4)]
    read = [stream.read(address, config.data.bad_samples > 0) for address in chosen]
    keys = [(config.seed, 0, 0, r.address.index) for r in read]
    sheet = draw_sheet([r.image for r in read], MultiCrop(config.views), keys)
    encoded = cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()
    replace_atomically(path, lambda file: file.write(encoded))


def summary_rows(
    metrics: Sequence[dict[str, Any]], scores: dict[str, Any], prototypes: int, kept: int | None = None
) -> list[tuple[str, str]]:
    """The run in a few lines: (what, figure with how to read it).

    `kept` is the step whose weights are kept as the best, 0 for none; left out: that of the best score.
    """
    last = metrics[-1]
    ranks = [line["rankme"] for line in metrics if "rankme" in line]
    began = "began at" if metrics[0]["step"] == 0 else "the first that is left:"
    rows = [
        ("steps", f"{last['step'] + 1} ({last['samples_seen']} crops seen)"),
        (
            "loss / ln K",
            f"{last['loss_over_ln_k']:.3f} (1 = uniform guess; {began} {metrics[0]['loss_over_ln_k']:.3f})",
        ),
        (
            "teacher entropy",
            f"{last['teacher_entropy']:.3f} nats of a view, {last['teacher_mean_entropy']:.3f} of the mean view "
            f"(both {math.log(prototypes):.3f}: uniform collapse; mean near 0: point collapse)",
        ),
        *([("feature rank", f"{ranks[-1]:.1f} (RankMe; {began} {ranks[0]:.1f})")] if ranks else []),
    ]
    if scored := [line for line in metrics if "knn" in line]:
        alike = [line for line in scored if line.get("knn_of") == scored[-1].get("knn_of")]  # others do not compare
        best = max(alike, key=lambda line: line["knn"])
        step = best["step"] + 1
        said = f"{best['knn']:.3f} at its best, after step {step}"
        start = best.get("knn_start", -math.inf)
        if best["knn"] <= start:
            said += f", no more than the {start:.3f} of the weights of --init"
        if best["knn"] <= start and not kept:
            said += ": none are kept as the best"
        elif kept is None or kept == step:
            said += ", whose weights are kept (-best.pth)"
        elif kept:
            said += f"; the weights that are kept (-best.pth) are of step {kept}"
        rows.append(("k-NN on the way", said))
    knn = scores.get("knn")
    if knn is None:
        return [
            *rows,
            ("k-NN", "not measured: no shards with that label, two classes and two patients (see --eval.shards)"),
        ]
    rows += [
        (f"k-NN {knn['label']}", f"{knn['after']:.3f} after training"),
        *([("", f"{knn['start']:.3f} at the start, with the weights of --init")] if "start" in knn else []),
        ("", f"{knn['before']:.3f} before, with the random weights"),
        (
            "",
            f"{knn['pixels']:.3f} from raw pixels, {knn['size']:.3f} from size, {1 / knn['classes']:.3f} by chance",
        ),
        *(
            [("", "so raw pixels tell no less: train longer, or on more crops")]
            if knn["after"] <= knn["pixels"]
            else []
        ),
        *(
            [("", "so the weights of --init tell no less: train longer, or at another --optim.init_lr")]
            if knn["after"] <= knn.get("start", -math.inf)
            else []
        ),
        ("", f"balanced accuracy, {knn['crops']} crops of {knn['patients']} patients, neighbours from other patients"),
    ]
    return rows


def format_summary(rows: list[tuple[str, str]]) -> str:
    """The summary as aligned lines for a terminal."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


class Report:
    """The page of one run, from its metrics `lines`, its summary's `rows` (the verdict first) and its `facts`.

    `backbone` gives the trained one and `sets` the crops to show, each when it is first needed: both may fail. Without
    `pictures` neither is: neighbours, feature maps and the map of the crops are left out.
    """

    def __init__(
        self,
        config: Config,
        lines: Sequence[dict[str, Any]],
        rows: list[tuple[str, str]],
        facts: dict[str, Any],
        backbone: Callable[[], Backbone],
        sets: Callable[[], Sequence[ShardSet]],
        pictures: bool = True,
    ) -> None:
        self.config, self.lines, self.rows, self.facts = config, lines, rows, facts
        self.folder = RunFolder(config.out)
        self._open_backbone, self._open_sets, self._pictures = backbone, sets, pictures
        self.missing: list[str] = []
        """What could not be drawn, and why."""

    def write(self) -> None:
        """Write `curves.png` and `report.html`; what cannot be drawn is said there, and in `missing`."""
        seen: dict[str, Callable[[], str]] = {
            "Nearest neighbours": lambda: pictures.neighbours(self.crops, self.features),
            "Feature maps": lambda: pictures.maps(self.crops, self.backbone, self.config),
            "Map of the crops": lambda: pictures.embedding(self.crops, self.features),
        }
        sections: dict[str, Callable[[], str]] = {
            "Curves": self._curves,
            **(seen if self._pictures else {}),
            "Views": self._views,
            "Environment": self._environment,
            "Settings": lambda: listing(json.dumps(self.facts["settings"], indent=2)),
        }
        body = "".join(f"<h2>{name}</h2>\n{self._drawn(name, draw)}\n" for name, draw in sections.items())
        page = document(self.folder.name, self._summary() + body, _STYLE).encode()
        replace_atomically(self.folder.report, lambda file: file.write(page))

    def _drawn(self, name: str, draw: Callable[[], str]) -> str:
        """A section; or that it could not be drawn: after days of training a picture must not be what fails."""
        try:
            return draw()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self.missing.append(f"{name}: {reason}")
            if isinstance(error, OSError):
                reason = error.strerror or type(error).__name__
            return f'<p class="warning">Not drawn: {text(self._without_places(reason))}.</p>'

    def _without_places(self, words: str) -> str:
        """Words for a page that travels: without the run's places, and without whatever else looks like one."""
        places = [*self.config.data.shards, *self.config.eval.shards, str(self.folder.path.resolve()), str(Path.cwd())]
        for place in places:
            words = words.replace(place, "…")
        return re.sub(r"\S*[/\\]\S+", "…", words)

    def _summary(self) -> str:
        (_, verdict), *rows = self.rows
        name = verdict.partition(":")[0]
        kind = "learning" if name == "learning" else "collapsed" if "collapse" in name or name == "diverging" else ""
        cells = "".join(f"<tr><th>{text(head)}</th><td>{text(value)}</td></tr>" for head, value in rows)
        return f'<p class="verdict {kind}">{text(verdict)}</p><table class="summary">{cells}</table>'

    def _curves(self) -> str:
        draw_curves(self.lines, self.folder.curves)
        return curves_on_page(self.lines)

    def _views(self) -> str:
        encoded = np.frombuffer(self.folder.views.read_bytes(), np.uint8)
        sheet = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        if sheet is None:
            raise ValueError(f"{self.folder.views.name} is damaged")
        scale = min(1.0, WIDEST / sheet.shape[1])
        sheet = cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        words = (
            "Crops with the regions of their views, the views that the networks see, and what varies in them. What is "
            "beyond a crop is its mirror image; m: a mirrored view; deg: a rotated one; grain: how coarse its noise is."
        )
        return f'<p>{words}</p><div class="wide"><div class="sheet">{photo(sheet[..., ::-1], words, 80)}</div></div>'

    def _environment(self) -> str:
        known = {name: value for name, value in self.facts.get("environment", {}).items() if value is not None}
        if not known:
            return "<p>Recorded with the first checkpoint.</p>"
        cells = "".join(f"<tr><th>{text(name)}</th><td>{text(str(value))}</td></tr>" for name, value in known.items())
        return f'<table class="summary">{cells}</table>'

    @cached_property
    def backbone(self) -> Backbone:
        """The trained one."""
        return self._open_backbone()

    @cached_property
    def crops(self) -> Specimens:
        """The crops that are shown."""
        return specimens(self._open_sets(), self.config.eval.label, self.config.views.global_size)

    @cached_property
    def features(self) -> np.ndarray:
        """Their unit features [N, C]."""
        config = self.config
        return unit(embed(self.backbone, self.crops.inputs, config.mean, config.std, config.eval.batch_size))
