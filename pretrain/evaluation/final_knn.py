"""What a run is scored on, and its k-NN beside the baselines that it must beat."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from data_shards.shards.cache import ShardCache
from data_shards.shards.stream import ShardSet
from pretrain.config.schema import Config, EvalConfig
from pretrain.evaluation.embed import baseline_features, embed, unit
from pretrain.evaluation.knn import knn_scores
from pretrain.evaluation.labelled_crops import (
    EvaluationError,
    carries_label,
    check_label,
    joined,
    load_labelled,
    patients_unknown,
)
from pretrain.models.backbones import Backbone
from pretrain.models.batchnorm import calibrate_batchnorm
from pretrain.models.student_teacher import build_networks

MOST = 20_000
"""Held-out crops scored at the end: an error of 0.003 at most, and 3 GB of views of 320 x 240 with their neighbours."""


def labelled_sets(
    config: Config, training: Sequence[ShardSet], cache: ShardCache, say: Callable[[str], None]
) -> list[ShardSet]:
    """The shard sets k-NN is measured on: those named, else the labelled holdouts beside the training sets.

    Raises EvaluationError for named sets, a phantom, or a label that was asked for, that cannot be scored; of a user's
    own holdout without the usual label it only says so.
    """
    label = config.eval.label
    if config.eval.shards:
        sets = [ShardSet(path, cache) for path in config.eval.shards]
        check_label(sets, label)
        if {shards.checksum for shards in sets} & {shards.checksum for shards in training}:
            say("note: k-NN is scored on crops that are trained on too (--eval.shards is among --data.shards)")
        return _with_doubts(sets, label, say)
    sets = [holdout for shards in training if (holdout := shards.holdout())]
    try:
        if sets:
            check_label(sets, label)
    except EvaluationError as error:
        if not config.data.shards or label != EvalConfig.label:
            raise  # the phantom's labels are known, or the label was asked for: a misspelling
        say(f"no k-NN at the end: {error}")
        return []
    return _with_doubts(sets, label, say)


def _with_doubts(sets: list[ShardSet], label: str, say: Callable[[str], None]) -> list[ShardSet]:
    if patients_unknown(sets, label):
        say(
            "warning: crops that k-NN is scored on state no patient, so each counts as one, and neighbours may be of "
            "the same patient"
        )
    return sets


def knn_of_run(
    config: Config,
    trained: Backbone,
    labelled: Sequence[ShardSet],
    training: Sequence[ShardSet],
    say: Callable[[str], None],
    start: Backbone | None = None,
) -> dict[str, Any]:
    """k-NN of the trained backbone, of random weights, of raw pixels, of crop size, and of the `start` it was given.

    It comes after days of training, so crops that cannot be read are left out and said, not an error.
    """
    unreadable: list[str] = []
    size, label = config.views.global_size, config.eval.label
    crops = load_labelled(labelled, label, size, MOST, unreadable)
    if (held_out := len(crops.labels)) < (there := sum(map(len, labelled))) and there > MOST:
        say(f"scoring {held_out} of the {there} crops of the labelled shards, evenly spread")
    evaluated = {shards.checksum for shards in labelled}
    others = [shards for shards in training if shards.checksum not in evaluated]
    if config.eval.bank and others and carries_label(others, label):
        crops = joined(crops, load_labelled(others, label, size, config.eval.bank, unreadable))
    if unreadable:
        say(f"warning: k-NN leaves out {len(unreadable)} crops that cannot be read: {unreadable[0]} ...")
    scored = np.arange(len(crops.labels)) < held_out
    device, arguments = next(trained.parameters()).device, (crops.images, config.mean, config.std)
    features = baseline_features(crops, untrained_features(config, crops.images, device))
    features["after"] = unit(embed(trained, *arguments, config.eval.batch_size))
    if start is not None:
        features["start"] = unit(embed(start.to(device), *arguments, config.eval.batch_size))
    return {"label": label, **knn_scores(crops, scored, features, config.eval.neighbours, config.eval.folds)}


def untrained_features(config: Config, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Features [N, C] of images [N, H, W] from the run's random weights, BatchNorm set to these images' statistics."""
    untrained = build_networks(config)[1].backbone.to(device)
    calibrate_batchnorm(untrained, images, config.mean, config.std)
    return embed(untrained, images, config.mean, config.std, config.eval.batch_size)
