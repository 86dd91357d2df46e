"""Label efficiency: what a classifier reaches with few labels, from pretrained weights, from scratch, from pixels."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from downstream.config import CurveConfig, DownstreamError
from downstream.data.crops import Crops, find_crops
from downstream.data.folds import set_apart
from downstream.features.embedded_crops import feature_sets
from downstream.features.weights import Weights
from downstream.reports.curve_plot import SERIES, Series, draw_curve
from downstream.tasks.classifier import predict, train_classifier
from downstream.tasks.probe import choose_l2, fit_predict, unlearnt
from pretrain.evaluation.embed import unit
from pretrain.evaluation.knn import balanced_accuracy, knn_predict
from pretrain.models.backbones import Backbone, build_backbone

POINTS = "points.jsonl"
ENOUGH = 10
"""Patients from which on a share of them chooses the epoch, the rate and the L2 strength. Fewer are all needed to learn
from: the last epoch, the middle rate and the middle strength count."""
CHOSEN = {"finetune": "lr", "linear": "L2"}


class Point(NamedTuple):
    """A point of a line: balanced accuracy, and the rate or L2 strength that was chosen for it (k-NN has none)."""

    score: float
    chosen: float | None


class Subset(NamedTuple):
    """Crops whose labels are known: the share asked for, the number of the draw, and their numbers."""

    fraction: float
    draw: int
    crops: np.ndarray


def curve(config: CurveConfig, weights: Weights, accelerator: Accelerator) -> dict[str, Any]:
    """Balanced accuracy on the same tested patients for every share of the labels, draw and line of `SERIES`.

    Patients are drawn whole, as a reader of radiographs would label them. Writes points.jsonl as it goes, from which
    the same command continues, and curve.png. Raises DownstreamError where nothing can be learnt or tested.
    """
    if accelerator.num_processes > 1:
        raise DownstreamError("the curve is made by one process: start it by `python -m downstream curve`")
    crops = find_crops(config.shards, [config.label], config.query)
    classes, codes = np.unique(crops.labels[config.label], return_inverse=True)
    if len(classes) < 2:
        raise DownstreamError(f"every crop has {config.label} '{classes[0]}': there is nothing to learn")
    doubts = crops.doubts() + (unlearnt(crops, [config.label]) if config.query else [])
    for remark in doubts:
        print(f"warning: {remark}", file=sys.stderr)
    tested = crops.query if config.query else set_apart(codes, crops.patients, config.test, config.seed, "--test")
    features = feature_sets(crops, weights, config, config.seed)
    features = {kind: features[kind] for kind in ("trained", "random", "pixels")}
    points = _Points(Path(config.out) / POINTS, config, weights, crops)
    drawn = list(subsets(config, crops, codes, tested))
    sizes: dict[str, list[dict[str, int]]] = {}
    for subset in drawn:
        count = {"crops": len(subset.crops), "patients": len(np.unique(crops.patients[subset.crops]))}
        sizes.setdefault(f"{subset.fraction:g}", []).append(count)
    for number, (series, subset) in enumerate(in_order(drawn), start=1):
        learner = Learner(config, weights, crops, codes, classes, features, tested, subset.crops, accelerator)
        point = points.of(series, subset, learner)
        chosen = f"  ({CHOSEN[series.method]} {point.chosen:g})" if point.chosen is not None else ""
        share = f"{subset.fraction:>7.1%} of labels, draw {subset.draw + 1}"
        print(
            f"{number:>3}/{len(drawn) * len(SERIES)} {share}: {series.label:<32}{point.score:.3f}{chosen}", flush=True
        )
    scores = points.table("score", drawn)
    draw_curve(Path(config.out) / "curve.png", config, scores, sizes, 1 / len(np.unique(codes[tested])))
    return {
        "label": config.label,
        "warnings": doubts,
        "classes": classes.tolist(),
        "chance": round(1 / len(np.unique(codes[tested])), 4),
        "balanced_accuracy": scores,
        "rate_or_l2": points.table("chosen", drawn),
        "chosen_on_validation_patients_from": f"{ENOUGH} labelled patients on; below, it is the middle one",
        "learnt_from": sizes,
        "tested": {"crops": int(tested.sum()), "patients": len(np.unique(crops.patients[tested]))},
    }


def in_order(drawn: list[Subset]) -> list[tuple[Series, Subset]]:
    """Every line on every subset: those of seconds first, then fine-tuning, draw by draw over all the shares."""
    quick, slow = ([s for s in SERIES if (s.method == "finetune") == wanted] for wanted in (False, True))
    by_draw = sorted(drawn, key=lambda subset: subset.draw)
    return [(s, subset) for subset in drawn for s in quick] + [(s, subset) for subset in by_draw for s in slow]


def subsets(config: CurveConfig, crops: Crops, codes: np.ndarray, tested: np.ndarray) -> Iterator[Subset]:
    """For every share and draw, the crops of as many patients, in random order, as carry that share of the labels.

    Patients go on being drawn until there are two classes. Of the whole there is one draw.
    """
    known = np.flatnonzero(~tested)
    for fraction in sorted(config.fractions):
        for draw in range(config.draws if fraction < 1 else 1):
            order = np.random.default_rng([config.seed, draw]).permutation(np.unique(crops.patients[known]))
            rank = {patient: place for place, patient in enumerate(order)}
            place = np.array([rank[patient] for patient in crops.patients[known]])
            taken = np.bincount(place, minlength=len(order)).cumsum()
            last = int(np.searchsorted(taken, fraction * len(known) - 1e-9))
            while len(np.unique(codes[known[place <= last]])) < 2 and last < len(order):
                last += 1
            chosen = known[place <= last]
            if len(np.unique(codes[chosen])) < 2:
                raise DownstreamError("all patients that are not tested carry one class: there is nothing to learn")
            yield Subset(fraction, draw, chosen)


@dataclass(frozen=True)
class Learner:
    """Everything that a line needs to learn from one subset and to be tested."""

    config: CurveConfig
    weights: Weights
    crops: Crops
    codes: np.ndarray
    classes: np.ndarray
    features: dict[str, np.ndarray]
    tested: np.ndarray
    subset: np.ndarray
    accelerator: Accelerator

    def point(self, series: Series) -> Point:
        """Balanced accuracy on the tested patients, and what was chosen for it on others."""
        method: Callable[[str], tuple[np.ndarray, float | None]] = getattr(self, series.method)
        predicted, chosen = method(series.source)
        return Point(round(balanced_accuracy(self.codes[self.tested], predicted), 4), chosen)

    def knn(self, source: str) -> tuple[np.ndarray, None]:
        """Predicted codes [M], by cosine."""
        bank, queries = unit(self.features[source][self.subset]), unit(self.features[source][self.tested])
        return knn_predict(bank, self.codes[self.subset], queries, self.config.neighbours), None

    def linear(self, source: str) -> tuple[np.ndarray, float]:
        """Predicted codes [M] of logistic regression, its strength chosen on validation patients."""
        known, codes, patients = self.features[source][self.subset], self.codes[self.subset], self._patients
        strengths = self.config.l2 if self.enough else _middle(self.config.l2)
        strength = choose_l2(known, codes, patients, strengths, self.config.seed)
        return fit_predict(known, codes, self.features[source][self.tested], strength), strength

    def finetune(self, source: str) -> tuple[np.ndarray, float]:
        """Predicted codes [M] of backbone and classifier trained end to end; validation patients choose epoch and rate.

        Training from scratch chooses among the same rates, so that neither side has an advantage.
        """
        config, backbone = self.config, self._untrained() if source == "random" else self.weights.model
        held = np.zeros(len(self.subset), bool)
        if self.enough:
            held = set_apart(self.codes[self.subset], self._patients, config.validation, config.seed)
        else:
            config = replace(config, lr=_middle(config.lr))
        trained = train_classifier(
            backbone,
            self.weights,
            self.crops,
            self.codes,
            len(self.classes),
            self.subset[~held],
            self.subset[held],
            config,
            self.accelerator,
            f"{len(self.subset)} crops",
            pretrained=backbone is self.weights.model,
        )
        tested = np.flatnonzero(self.tested)
        found = predict(trained.model, self.weights, self.crops, tested, config, self.accelerator)
        return found.argmax(1), trained.lr

    @property
    def enough(self) -> bool:
        """Whether there are patients to spare for choosing."""
        return self.config.validation > 0 and len(np.unique(self._patients)) >= ENOUGH

    @property
    def _patients(self) -> np.ndarray:
        return self.crops.patients[self.subset]

    def _untrained(self) -> Backbone:
        torch.manual_seed(self.config.seed)
        return build_backbone(self.weights.backbone)


class _Points:
    """The scores so far, a line each; those of the same settings, weights and crops need not be measured again."""

    def __init__(self, path: Path, config: CurveConfig, weights: Weights, crops: Crops) -> None:
        settings = {k: v for k, v in asdict(config).items() if k not in ("out", "workers", "fractions", "draws")}
        digest = hashlib.sha256(json.dumps([settings, weights.stated()], sort_keys=True).encode())
        for tensor in weights.model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        for source in crops.sets:
            digest.update(source.checksum.encode())
        self.path, self.run = path, digest.hexdigest()[:16]
        self.known = {
            self._key(line): Point(line["score"], line["chosen"])
            for line in _lines(path)
            if line.get("run") == self.run
        }

    def of(self, series: Series, subset: Subset, learner: "Learner") -> Point:
        """The point of a line on a subset, measured if it is not known."""
        line = {"run": self.run, **asdict(series), "fraction": subset.fraction, "draw": subset.draw}
        key = self._key(line)
        if key not in self.known:
            self.known[key] = learner.point(series)
            with self.path.open("a") as file:  # the line break first: the last line may be torn
                file.write("\n" + json.dumps(line | self.known[key]._asdict()))
        return self.known[key]

    def table(self, field: Literal["score", "chosen"], drawn: list[Subset]) -> dict[str, dict[str, list[Any]]]:
        """Scores, or what was chosen for them, of the draws by line and share; lines without any are left out."""
        found: dict[str, dict[str, list[Any]]] = {}
        for series in SERIES:
            for fraction, draw, _ in drawn:
                value = getattr(self.known[series.method, series.source, fraction, draw], field)
                if value is not None:
                    found.setdefault(f"{series.method} {series.source}", {}).setdefault(f"{fraction:g}", []).append(
                        value
                    )
        return found

    @staticmethod
    def _key(line: dict[str, Any]) -> tuple[str, str, float, int]:
        return line["method"], line["source"], line["fraction"], line["draw"]


def _middle(choices: tuple[float, ...]) -> tuple[float]:
    return (sorted(choices)[len(choices) // 2],)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # the last one, of a run that was killed
                continue
