"""k-NN while training: what the teacher knows every so many steps, and the weights that knew most.

It stands between the steps, on the main process, and touches nothing that they compute from: a copy of the teacher is
given the statistics of an export and scored on labelled crops, each patient's by those of other patients.
"""

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from augment import stacked
from data_shards.shards.stream import ShardError, ShardSet
from pretrain.checkpoints.weights_io import CheckpointError
from pretrain.config.schema import Config
from pretrain.evaluation.embed import BASELINES, baseline_features, embed, unit
from pretrain.evaluation.final_knn import untrained_features
from pretrain.evaluation.knn import knn_scores
from pretrain.evaluation.labelled_crops import EvaluationError, LabelledCrops, load_labelled
from pretrain.method.trainer import Trainer
from pretrain.models.backbones import Backbone
from pretrain.models.batchnorm import exported
from pretrain.models.student_teacher import Network

Line = dict[str, Any]
PROBE = 20
"""Steps whose duration decides how often to score where `--eval.every` is left out; the first ones open files. A run
too short for two scores has one at half of it and one at its end."""
SHARE = 0.01
"""Share of the run that scores may cost then: 1 %. The score after the last step and the baselines, which cost as much
as one more, come on top: with few scores it is 2 % in all. A score that turns out dearer makes the later ones rarer."""
EXPORT = 3
"""How much longer a crop takes for the statistics of an export than to be scored. With it, at a SHARE of 0.015, a
score of test_resnet took 0.8 to 1.0 % of the time of the steps between two, on a busy machine, and the first, with the
baselines, 2.2 %."""


class TrainingKnn:
    """The scores of one run while it trains, for its metrics lines; `keep` gets each network that is the best yet.

    `earlier` are the lines from before, and `kept` is the step of the weights that are kept, 0 for none: with them the
    best score, the baselines and the interval outlive the process. A best score whose weights are gone, as after
    `--resume` from an earlier checkpoint, counts for nothing. In a run from `--init` the best must know more than the
    backbone that it began with, which `start` gives (None for another run, or where its file is gone).
    """

    def __init__(
        self,
        config: Config,
        trainer: Trainer,
        labelled: Sequence[ShardSet],
        calibration: Callable[[], np.ndarray],
        keep: Callable[[Network, dict[str, Any]], None],
        start: Callable[[], Backbone | None],
        earlier: Iterable[Line],
        kept: int,
    ) -> None:
        self.config, self.trainer, self._labelled = config, trainer, labelled
        self._calibration, self._keep, self._start = calibration, keep, start
        self._of = _identity(config, labelled)
        self._baselines: dict[str, float] = {}
        self._seconds: deque[float] = deque(maxlen=PROBE)
        self.every = config.eval.every if labelled else 0
        if config.eval.every and not labelled:
            tqdm.write("warning: no k-NN while training: no labelled shards (see --eval.shards, --eval.label)")
        self.best = -math.inf
        for line in earlier:
            if labelled and config.eval.every is None:
                self.every = line.get("knn_every") or self.every  # 0, of older versions, is decided anew
            if line.get("knn_of") == self._of:
                if line["step"] + 1 == kept:
                    self.best = line["knn"]
                self._baselines = {name: line[f"knn_{name}"] for name in (*BASELINES, "start") if f"knn_{name}" in line}

    def take(self, line: Line) -> Line:
        """What is to be added to a step's line: its score if one is due, and the interval where it is decided."""
        done = line["step"] + 1
        added: Line = {}
        self._seconds.append(self.config.data.batch_size / line["images_per_s"])
        if self.every is None and done % PROBE == 0 and len(self._seconds) == PROBE:
            self.every = self._affordable()
            added = {"knn_every": self.every}
        if self.every and (done % self.every == 0 or done == self.trainer.total):
            try:
                added |= self._score()
            except EvaluationError as error:
                tqdm.write(f"no k-NN while training: {error}")
                self.every = 0
            except ShardError as error:  # a lost server may be back by the next score
                tqdm.write(f"warning: no k-NN after step {done}: {error}")
        return added

    def _score(self) -> Line:
        began, config = time.perf_counter(), self.config
        crops = self._crops
        features = self._baseline_features()
        calibration, ready = self._calibration(), time.perf_counter()
        network = exported(self.trainer.teacher, calibration, config)
        features["after"] = self._features(network.backbone)
        everything = np.ones(len(crops.labels), bool)
        scores = knn_scores(crops, everything, features, config.eval.neighbours, config.eval.folds)
        self._baselines |= {name: scores[name] for name in features if name != "after"}
        scores = {"label": config.eval.label} | self._baselines | scores
        if scores["after"] > max(self.best, self._baselines.get("start", -math.inf)):
            try:
                self._keep(network, {"knn": scores})
                self.best = scores["after"]
            except OSError as error:
                tqdm.write(f"warning: the best weights so far are not saved ({error.strerror or error})")
        named = {f"knn_{name}": score for name, score in self._baselines.items()}
        now = time.perf_counter()
        found = {"knn": scores["after"], **named, "knn_of": self._of, "knn_seconds": now - began}
        return found | self._seldomer(now - ready)

    def _baseline_features(self) -> dict[str, np.ndarray]:
        """What is known before training, [N, C] by name, as far as it is not scored yet."""
        crops, device, features = self._crops, self.trainer.accelerator.device, {}
        if not self._baselines:
            features = baseline_features(crops, untrained_features(self.config, crops.images, device))
        if "start" not in self._baselines and (start := self._starting_backbone()) is not None:
            features["start"] = self._features(start.to(device))
        return features

    def _starting_backbone(self) -> Backbone | None:
        try:
            return self._start()
        except (OSError, CheckpointError) as error:
            tqdm.write(f"warning: the weights of --init are not scored: {error}")
            return None

    def _features(self, backbone: Backbone) -> np.ndarray:
        config = self.config
        return unit(embed(backbone, self._crops.images, config.mean, config.std, config.eval.batch_size))

    def _seldomer(self, seconds: float) -> Line:
        """The larger interval that a score of so many `seconds` asks for, where it is not the user's."""
        every = math.ceil(seconds / (SHARE * median(self._seconds)))
        if self.config.eval.every is not None or every <= (self.every or 0):
            return {}
        self.every = every
        return {"knn_every": every}

    @cached_property
    def _crops(self) -> LabelledCrops:
        unreadable: list[str] = []
        label, size, limit = self.config.eval.label, self.config.views.global_size, self.config.eval.crops
        crops = load_labelled(self._labelled, label, size, limit, unreadable)
        if unreadable:
            tqdm.write(f"warning: k-NN leaves out {len(unreadable)} crops that cannot be read: {unreadable[0]} ...")
        return crops

    def _affordable(self) -> int:
        """Return the steps between two scores that cost SHARE of them, by one batch's time; half of a short run."""
        crops = min(self.config.eval.crops, sum(map(len, self._labelled))) + EXPORT * len(self._calibration())
        score = self._batch_seconds * crops / self.config.eval.batch_size
        every = math.ceil(score / (SHARE * median(self._seconds)))
        half = math.ceil(self.trainer.total / 2)
        if every > half:
            tqdm.write(f"k-NN at half of the run and at its end: a score takes some {score:.0f} s, too long for more")
        return min(every, half)

    @cached_property
    def _batch_seconds(self) -> float:
        """Seconds that a batch of crops takes to embed."""
        config, backbone = self.config, self.trainer.teacher.backbone
        batch = config.eval.batch_size
        images = stacked([np.zeros(config.views.global_size, np.uint8)] * batch)
        times = [time.perf_counter()]
        for _ in range(4):  # of which the first chooses kernels
            embed(backbone, images, config.mean, config.std, batch)
            times.append(time.perf_counter())
        return median(after - before for before, after in pairwise(times[1:]))


def _identity(config: Config, labelled: Sequence[ShardSet]) -> str:
    """What scores must have in common to be compared."""
    settings = config.eval.label, config.eval.neighbours, config.eval.folds, config.eval.crops
    text = json.dumps([*settings, *(shards.checksum for shards in labelled)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
