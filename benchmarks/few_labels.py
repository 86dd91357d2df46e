"""What weights are worth where few patients are labelled: frozen and fine-tuned, beside what they must beat.

    python benchmarks/few_labels.py --out few --weights imagenet=lite0.pth ours=runs/a/a.pth,runs/b/b.pth \\
        --task shards/ufba shards/ufba/holdout tooth_type position \\
        --task shards/phantom shards/phantom/holdout finding \\
        [--patients 3 10 30] [--draws 3] [--finetune imagenet ours scratch]

--task: shards whose patients are drawn to be labelled, shards that are tested on, labels. --weights: NAME=FILE of each
contender, the files of several pretraining seeds joined by commas; the first is what the others are compared with.
Frozen networks are read by logistic regression, from the averaged vector (`pooled`) and from the last two maps whole
(`maps`), alone and with the box's place and size. Beside them: raw pixels, gray statistics, place and size, random
weights. `--finetune` names those that are fine-tuned too; `scratch` is the backbone with random weights.

Choose settings on development patients, such as the holdout of a second pack of the training side, and open the test
patients once. Every prediction is kept in OUT, so the same command continues what was stopped. OUT/few_labels.md is the
table: mean balanced accuracies over draws and seeds, and paired differences to the first contender with 95 % intervals.
"""

import argparse
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from paired import Counts, accuracy, counts, difference

from augment import ViewError, fit, stacked
from data_shards.errors import ShardError
from downstream.config import DownstreamError, FinetuneConfig, LinearConfig, WeightsConfig
from downstream.data.crops import Crops, find_crops
from downstream.features.embedded_crops import random_backbone
from downstream.features.weights import load_weights
from downstream.tasks.classifier import plan, predict, train_classifier
from downstream.tasks.probe import choose_l2, fit_predict
from downstream.tasks.tuner import Tuner, class_weights
from pretrain.__main__ import MISTAKES
from pretrain.evaluation.embed import embed, embed_maps, pixel_features
from pretrain.evaluation.labelled_crops import PIXELS
from pretrain.models.backbones import Backbone, build_backbone
from tooth_foundations.core.cli import UserError, fail
from tooth_foundations.core.files import replace_atomically

BASELINES = ("pixels", "grays", "place")


@dataclass(frozen=True)
class Task:
    """Crops of one task: its label, the class codes [N] (-1 without one), and the box's place and size [N, 4]."""

    name: str
    crops: Crops
    codes: np.ndarray
    classes: int
    place: np.ndarray

    @property
    def tested(self) -> np.ndarray:
        """Numbers of the crops that are tested on."""
        return np.flatnonzero(self.crops.query & (self.codes >= 0))

    def labelled(self, patients: int, draw: int) -> np.ndarray:
        """Return the crops of `patients` patients of the other side; the same for every contender."""
        known = ~self.crops.query & (self.codes >= 0)
        people = np.unique(self.crops.patients[known])
        chosen = np.random.default_rng([draw, patients]).permutation(people)[:patients]
        return np.flatnonzero(known & np.isin(self.crops.patients, chosen))


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.error = fail  # type: ignore[method-assign,assignment]
    parser.add_argument("--task", nargs="+", action="append", required=True)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--patients", type=int, nargs="+", default=[3, 10, 30])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--finetune", nargs="*", default=[])
    parser.add_argument("--size", type=int, nargs=2, default=None)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        Evaluation(arguments).run()
    except (UserError, DownstreamError, ShardError, ViewError, *MISTAKES, OSError) as error:
        fail(error)


def read_tasks(entries: list[list[str]]) -> list[Task]:
    """Read the crops of each label of `--task SHARDS QUERY LABEL ...`."""
    tasks = []
    for entry in entries:
        if len(entry) < 3:
            raise UserError(f"--task {' '.join(entry)}: give shards, shards to test on, and a label or more")
        shards, query, *labels = entry
        crops = find_crops([shards], labels, [query])
        place = _places(crops)
        for label in labels:
            classes, codes = np.unique(crops.labels[label], return_inverse=True)
            codes = np.where(crops.labels[label] == "", -1, codes - (classes[0] == ""))
            tasks.append(Task(label, crops, codes, len(classes) - (classes[0] == ""), place))
    return tasks


def _places(crops: Crops) -> np.ndarray:
    """Return |x - middle|, y - middle, width and height of each box in px; the middle is its radiograph's median."""
    metas = [crops.sets[source].meta(i) for source, i in crops.places]
    boxes = np.array([meta.get("box") or [0, 0, 0, 0] for meta in metas], float)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    radiographs = np.unique([str(meta.get("radiograph", i)) for i, meta in enumerate(metas)], return_inverse=True)[1]
    for number in range(radiographs.max() + 1):
        middle[radiographs == number] -= np.median(middle[radiographs == number], axis=0)
    sizes = np.array([[meta.get("width", 0), meta.get("height", 0)] for meta in metas], float)
    return np.column_stack([np.abs(middle[:, 0]), middle[:, 1], sizes])


class Evaluation:
    """All cells of one call, and their table."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out, self.patients, self.draws = arguments.out, arguments.patients, arguments.draws
        self.tasks = read_tasks(arguments.task)
        named = [entry.partition("=")[::2] for entry in arguments.weights]
        if not all(files for _, files in named):
            raise UserError("--weights takes NAME=FILE, the files of several seeds joined by commas")
        size = tuple(arguments.size) if arguments.size else None
        self.files = {name: files.split(",") for name, files in named}
        self.weights = {
            name: [load_weights(WeightsConfig(checkpoint=file, out=str(self.out), size=size)) for file in files]
            for name, files in self.files.items()
        }
        if strangers := set(arguments.finetune) - {*self.weights, "scratch"}:
            raise UserError(f"--finetune {' '.join(sorted(strangers))}: give names of --weights, or scratch")
        self.finetuned = arguments.finetune
        self.first = next(iter(self.weights.values()))[0]
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        for part in ("features", "predictions"):
            (self.out / part).mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Say the cost, measure what OUT lacks, and write the table."""
        cells = len(self.tasks) * len(self.patients) * self.draws
        networks = sum(len(self.weights[name]) if name in self.weights else 1 for name in self.finetuned)
        spent = cells * networks * self.seconds_of_finetuning() / 60 if networks else 0
        print(
            f"{cells} draws of labels, {cells * networks} fine-tunings of some {spent:.0f} minutes in all", flush=True
        )
        scores: dict[tuple[str, str, int], list[np.ndarray]] = {}
        for patients in self.patients:
            for arm, mode, seeds in self.arms():
                print(f"{patients} patients: {arm}, {mode}", flush=True)
                scores[arm, mode, patients] = [self.cells(task, arm, mode, seeds, patients) for task in self.tasks]
        text = self.table(scores)
        print("\n" + text)
        replace_atomically(self.out / "few_labels.md", lambda file: file.write(text.encode()))

    def arms(self) -> list[tuple[str, str, int]]:
        """Return every contender as name, how it is read, and number of seeds."""
        frozen = [(name, mode, len(seeds)) for name, seeds in self.weights.items() for mode in
                  ("pooled", "maps", "pooled + place", "maps + place")]  # fmt: skip
        random = [("random weights", mode, 1) for mode in ("pooled", "maps")]
        tuned = [(name, "fine-tuned", len(self.weights.get(name, [self.first]))) for name in self.finetuned]
        return frozen + random + [(name, "alone", 1) for name in BASELINES] + tuned

    def cells(self, task: Task, arm: str, mode: str, seeds: int, patients: int) -> np.ndarray:
        """Return Counts [seeds, draws] of a contender on a task."""
        found = np.empty((seeds, self.draws), dtype=object)
        for seed in range(seeds):
            for draw in range(self.draws):
                found[seed, draw] = self.cell(task, arm, mode, seed, patients, draw)
        return found

    def cell(self, task: Task, arm: str, mode: str, seed: int, patients: int, draw: int) -> Counts:
        """Predict the tested crops after learning from one draw of patients; kept in OUT."""
        labelled, tested = task.labelled(patients, draw), task.tested
        identity = [task.name, arm, mode, patients, draw, self.digest(arm, seed), task.place.tobytes().hex()[:64]]
        identity += [s.checksum for s in task.crops.sets] + list(self.first.size)
        kept = self.out / "predictions" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]}.npy"
        if kept.exists():
            predicted = np.load(kept, allow_pickle=False)
        else:
            method = self.finetune if mode == "fine-tuned" else self.probe
            predicted = method(task, arm, mode, seed, labelled)
            replace_atomically(kept, lambda file: np.save(file, predicted, allow_pickle=False))
        return counts(task.codes[tested], predicted, task.crops.patients[tested])

    def probe(self, task: Task, arm: str, mode: str, seed: int, labelled: np.ndarray) -> np.ndarray:
        """Logistic regression on frozen features; its strength is chosen on a quarter of the labelled patients."""
        features = self.features(task.crops, arm, seed)
        kind, _, placed = mode.partition(" + ")
        x = task.place if arm == "place" else features[arm if arm in BASELINES else kind]
        x = np.column_stack([x, task.place]) if placed else x
        y, people = task.codes[labelled], task.crops.patients[labelled]
        strength = choose_l2(x[labelled], y, people, LinearConfig.l2, 0)
        return fit_predict(x[labelled], y, x[task.tested], strength)

    def finetune(self, task: Task, arm: str, mode: str, seed: int, labelled: np.ndarray) -> np.ndarray:
        """Fine-tune with the command's defaults, all labelled patients learnt from; the last epoch counts."""
        weights = self.weights[arm][seed] if arm in self.weights else self.first
        backbone: Backbone = weights.model
        if arm not in self.weights:
            torch.manual_seed(seed)
            backbone = build_backbone(weights.backbone)
        config = self.config(task.name, arm)
        trained = train_classifier(
            backbone, weights, task.crops, task.codes, task.classes, labelled, np.array([], int), config,
            self.accelerator, f"{arm}, {task.name}", pretrained=arm in self.weights,
        )  # fmt: skip
        return predict(trained.model, weights, task.crops, task.tested, config, self.accelerator).argmax(1)

    def config(self, label: str, arm: str) -> FinetuneConfig:
        """Return the fine-tuning of a contender, that of `downstream finetune` but for the patients set apart."""
        return FinetuneConfig(checkpoint="", out=str(self.out), shards=[""], label=label, validation=0, workers=0)

    def seconds_of_finetuning(self) -> float:
        """Measure the steps of one fine-tuning by three of them."""
        task, weights, config = self.tasks[0], self.first, self.config("", "")
        labelled = task.labelled(self.patients[0], 0)
        steps = plan(len(labelled), config, 1)
        balance = class_weights(task.codes[labelled], task.classes)
        tuner = Tuner(weights.model, weights, balance, 3, config, 1e-4, self.accelerator)
        images = torch.zeros(steps.batch, *weights.size, dtype=torch.uint8)
        began = time.perf_counter()
        for _ in range(3):
            tuner.step(images, torch.zeros(steps.batch, dtype=torch.int64))
        return (time.perf_counter() - began) / 3 * steps.total

    def digest(self, arm: str, seed: int) -> str:
        """Return what tells the weights of a contender from others'."""
        if arm not in self.weights:
            return f"{self.first.backbone} {seed}"
        digest = hashlib.sha256()
        for tensor in self.weights[arm][seed].model.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:20]

    def features(self, crops: Crops, arm: str, seed: int) -> dict[str, np.ndarray]:
        """Features of every crop by kind, float32 [N, C]; kept in OUT."""
        network = arm not in BASELINES
        sets = [shards.checksum for shards in crops.sets]
        name = json.dumps([self.digest(arm, seed) if network else "grays", sets, len(crops), self.first.size])
        kept = self.out / "features" / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.npz"
        if kept.exists():
            with np.load(kept, allow_pickle=False) as found:
                return dict(found)
        if network:
            weights = self.weights[arm][seed] if arm in self.weights else self.first
            model = weights.model if arm in self.weights else random_backbone(crops, weights, seed)
            images = stacked([fit(crops.image(i), weights.size) for i in range(len(crops))])
            ways = {"pooled": embed, "maps": embed_maps}
            found = {kind: way(model, images, weights.mean, weights.std) for kind, way in ways.items()}
        else:
            grays = stacked([fit(crops.image(i), PIXELS) for i in range(len(crops))])
            found = {"pixels": pixel_features(grays.reshape(len(grays), -1)), "grays": gray_statistics(grays)}
        replace_atomically(kept, lambda file: np.savez(file, **found))
        return found

    def table(self, scores: dict[tuple[str, str, int], list[np.ndarray]]) -> str:
        """Write the scores and their differences to the first contender as Markdown."""
        names = [task.name for task in self.tasks]
        first = next(iter(self.weights))
        lines = [f"| patients | contender | read | {' | '.join(names)} | mean | difference to {first} | of each task |"]
        lines.append("|---" * (len(names) + 6) + "|")
        for (arm, mode, patients), cells in scores.items():
            values = [accuracy(task) for task in cells]
            line = [str(patients), arm, mode, *(f"{v:.3f}" for v in values), f"{np.mean(values):.3f}"]
            other = scores.get((first, mode, patients))
            if other is not None and arm != first:
                mean, low, high, _ = difference(cells, other)
                each = [difference([one], [two])[:3] for one, two in zip(cells, other, strict=True)]
                line += [f"{mean:+.3f} ({low:+.3f}, {high:+.3f})"]
                line += ["; ".join(f"{m:+.3f} ({lo:+.3f}, {hi:+.3f})" for m, lo, hi in each)]
            else:
                line += ["", ""]
            lines.append(f"| {' | '.join(line)} |")
        return "\n".join([*lines, ""])


def gray_statistics(grays: np.ndarray) -> np.ndarray:
    """Return mean, standard deviation, 5th and 95th percentile of images [N, h, w]: [N, 4]."""
    flat = grays.reshape(len(grays), -1).astype(float)
    return np.column_stack([flat.mean(1), flat.std(1), *np.percentile(flat, [5, 95], axis=1)])


if __name__ == "__main__":
    main()
