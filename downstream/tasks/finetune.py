"""Full fine-tuning as a study: trained and tested on disjoint patients, every crop tested once."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from downstream.config import DownstreamError, FinetuneConfig
from downstream.data.crops import Crops, find_crops
from downstream.data.folds import Fold, doubts, split
from downstream.features.weights import Weights
from downstream.reports import metrics, page
from downstream.tasks.classifier import predict, train_classifier
from pretrain.runtime.precision import resolve_precision, resolve_threads
from tooth_foundations.core.files import replace_atomically

PLACES = ("checkpoint", "out", "shards", "query", "patient")
"""Settings that tell the user's folders or how files in them are named: they are in no written file."""
IDLE = ("workers", "draws")
"""Settings that no fold's predictions depend on."""


@contextlib.contextmanager
def processes() -> Iterator[Accelerator]:
    """The processes that a launcher started, as one group, or this one alone.

    The group ends with the work; where that fails, its processes must be ended, for the others may wait in it.
    """
    # Accelerate starts several CPU processes as one group only if it is told that there is no accelerator.
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu)
    if accelerator.num_processes > 1:
        torch.set_num_threads(resolve_threads(None, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    yield accelerator
    accelerator.end_training()  # a gloo group left to the interpreter's end sometimes aborts


RESULTS = ("metrics.json", "report.html", "predictions.csv", "mistakes.png")
"""What is written of all folds together, at the end."""


def finetune(config: FinetuneConfig, weights: Weights, accelerator: Accelerator) -> dict[str, Any]:
    """Train and test every fold, and score the predictions of all together; called on every process alike.

    The main process writes `fold-N.pth` (the state of Sequential(backbone, Linear)), `predictions.csv`, `mistakes.png`
    and `report.html`. A fold that an earlier try of the same command finished is not trained again. Raises
    DownstreamError for crops that cannot be split so, or that training diverges on.
    """
    crops = find_crops(config.shards, [config.label], config.query)
    classes, codes = np.unique(crops.labels[config.label], return_inverse=True)
    if len(classes) < 2:
        raise DownstreamError(f"every crop has {config.label} '{classes[0]}': there is nothing to learn")
    folds = split(config, crops, codes, classes)
    remarks = crops.doubts() + doubts(config, crops, codes, classes, folds)
    for remark in remarks if accelerator.is_main_process else ():
        print(f"warning: {remark}", file=sys.stderr)

    if accelerator.is_main_process:
        numbers = range(len(folds) + 1, len(list(Path(config.out).glob("fold-*.pth"))) + 1)
        _clear(Path(config.out), [f"fold-{n}.{kind}" for n in numbers for kind in ("pth", "json")])
    probabilities = np.full((len(crops), len(classes)), np.nan)
    number = np.zeros(len(crops), int)
    results = []
    for n, fold in enumerate(folds, start=1):
        result = _result(n, fold, config, weights, crops, codes, len(classes), accelerator)
        found = np.array(result.pop("probabilities"))
        probabilities[fold.test], number[fold.test] = found, n
        result = {"fold": n, "scores": _rounded(metrics.scores(codes[fold.test], found)), **result}
        result |= {name: _counts(crops, indices) for name, indices in asdict(fold).items()}
        results.append(result)
        if accelerator.is_main_process:
            remaining = round(sum(r["seconds"] for r in results) / n * (len(folds) - n))
            print(
                f"fold {n}/{len(folds)}: balanced accuracy {result['scores']['balanced_accuracy']:.3f} on "
                f"{result['test']['patients']} patients, epoch {result['best_epoch']} of {len(result['curve'])} made, "
                f"lr {result['lr']:g}, "
                f"{result['seconds']} s" + (f"; about {remaining} s to go" if n < len(folds) else ""),
                flush=True,
            )

    tested = np.flatnonzero(number)
    truth, found, patients = codes[tested], probabilities[tested], crops.patients[tested]
    measured = _measured(config, classes, truth, found, patients)
    height, width = weights.size
    measured |= {
        "input": f"{weights.backbone}, crops at {height} x {width} px, mean {weights.mean:g}, std {weights.std:g}",
        "folds": results,
        "precision": resolve_precision("auto", accelerator.device).name,
        "processes": accelerator.num_processes,
        "warnings": remarks,
        "settings": {name: value for name, value in asdict(config).items() if name not in PLACES},
    }
    if accelerator.is_main_process:
        out = Path(config.out)
        table = _table(crops, tested, number, classes, codes, found)
        replace_atomically(out / "predictions.csv", lambda file: file.write(table.encode()))
        page.write(out, measured, page.worst(crops, tested, classes, truth, found))
    return measured


def _result(
    n: int,
    fold: Fold,
    config: FinetuneConfig,
    weights: Weights,
    crops: Crops,
    codes: np.ndarray,
    classes: int,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Fold `n`, from an earlier try of the same command or trained now: probabilities, curve, lr, seconds and more."""
    path = Path(config.out) / f"fold-{n}.pth"
    identity = _identity(fold, config, weights, crops, codes, accelerator.num_processes)
    held: list[Any] = [_earlier(path, identity) if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(held)
    if held[0]:
        if accelerator.is_main_process:
            print(f"fold {n} is done already")
        return dict(held[0])
    if accelerator.is_main_process:
        _clear(path.parent, RESULTS)
    began = time.monotonic()
    trained = train_classifier(
        weights.model,
        weights,
        crops,
        codes,
        classes,
        fold.train,
        fold.validation,
        config,
        accelerator,
        f"fold {n}",
    )
    found = predict(trained.model, weights, crops, fold.test, config, accelerator)
    result = {
        "file": path.name,
        "best_epoch": trained.best_epoch,
        "lr": trained.lr,
        "balanced_accuracy_by_lr_on_patients_set_apart": trained.tried,
        "curve": trained.curve,
        "probabilities": found.tolist(),
        "seconds": round(time.monotonic() - began, 1),
    }
    if accelerator.is_main_process:
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in trained.model.state_dict().items()}
        replace_atomically(path, lambda file: torch.save(state, file))
        kept = json.dumps({"identity": identity, **result})
        replace_atomically(path.with_suffix(".json"), lambda file: file.write(kept.encode()))
    return result


def _clear(out: Path, names: Sequence[str]) -> None:
    """Remove what an earlier command left: it would lie beside other folds."""
    for name in names:
        (out / name).unlink(missing_ok=True)


def _identity(fold: Fold, config: FinetuneConfig, weights: Weights, crops: Crops, codes: np.ndarray, ranks: int) -> str:
    """A digest of all that a fold's predictions depend on."""
    settings = {name: value for name, value in asdict(config).items() if name not in (*PLACES, *IDLE)}
    digest = hashlib.sha256(json.dumps([settings, weights.stated(), crops.keys, ranks]).encode())
    for indices in (codes, fold.train, fold.validation, fold.test):
        digest.update(indices.astype(np.int64).tobytes() + b"|")
    for shards in crops.sets:
        digest.update(shards.checksum.encode())
    for tensor in weights.model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _earlier(path: Path, identity: str) -> dict[str, Any] | None:
    """What an earlier try kept of this very fold beside its weights; None where it did not get so far."""
    try:
        kept = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not path.is_file() or not isinstance(kept, dict) or kept.pop("identity", "") != identity:
        return None
    return kept


def _measured(
    config: FinetuneConfig, classes: np.ndarray, truth: np.ndarray, found: np.ndarray, patients: np.ndarray
) -> dict[str, Any]:
    bounds = metrics.intervals(truth, found, patients, config.draws, config.seed)
    values = _rounded(metrics.scores(truth, found))
    scores = {
        name: {"value": value, **_rounded(dict(zip(("low", "high"), bounds[name], strict=True)))}
        for name, value in values.items()
    }
    names = [str(name) for name in classes]
    lacking = metrics.lacking(truth, patients, config.draws, config.seed)
    of_classes = f"each over the classes that it has (all, in {1 - lacking:.0%})" if lacking else "each of all classes"
    return {
        "label": config.label,
        "protocol": "query" if config.query else f"{config.folds} patient-disjoint, stratified folds",
        "crops": len(truth),
        "patients": len(np.unique(patients)),
        "classes": names,
        "scores": scores,
        "interval": f"95 %, percentiles of {config.draws} bootstrap draws of patients, {of_classes}",
        "chance": round(1 / len(np.unique(truth)), 4),
        "by_class": dict(zip(names, map(_rounded, metrics.by_class(truth, found, patients)), strict=True)),
        "confusion": metrics.confusion(truth, found.argmax(1), len(classes)).tolist(),
        "confusion_axes": "rows are the truth, columns what was predicted, both in the order of `classes`",
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (round(value, 4) if math.isfinite(value) else None) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _counts(crops: Crops, indices: np.ndarray) -> dict[str, int]:
    return {"crops": len(indices), "patients": len(np.unique(crops.patients[indices]))}


def _table(
    crops: Crops, tested: np.ndarray, number: np.ndarray, classes: np.ndarray, codes: np.ndarray, found: np.ndarray
) -> str:
    """One line a tested crop: its ids, fold, true and predicted class, and the probability of every class."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["key", "patient", "fold", "truth", "predicted", *(f"p({name})" for name in classes)])
    for i, row in zip(tested, found, strict=True):
        ids = [crops.keys[i], crops.patients[i], number[i]]
        lines.writerow([*ids, classes[codes[i]], classes[row.argmax()], *(f"{p:.6g}" for p in row)])
    return text.getvalue()
