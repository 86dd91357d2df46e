"""BatchNorm buffers that make `eval()` right.

A teacher in training normalises by its batch, so its running buffers lag behind weights that move and describe
augmented views. What is exported has the statistics of crops as a user gives them: whole, unaugmented, resized.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from augment import fit, stacked
from data_shards.shards.stream import Stream
from pretrain.config.schema import Config
from pretrain.models.normalization import normalised
from pretrain.models.student_teacher import Network, batchnorms

CROPS = 1024
"""Crops for the statistics of an export: with 256, 512 and 1024 of them, ghostnetv3's features after 60 steps had a
mean cosine of 0.964, 0.967 and 0.976 with those of a train-mode pass over all crops; 0.762 without."""
BATCH = 64
"""Crops in a batch at least."""
PIXELS = 2**20
"""Small crops pass in batches of this many pixels: at 64x48 the deepest maps have few positions to average over, and
efficientnetv2_s after 20 steps was at a cosine of 0.930 with batches of 64, 0.973 with 256."""


def calibration_crops(stream: Stream, size: tuple[int, int], substitutes: bool = False) -> np.ndarray:
    """The first crops of the stream, which keep the shares of weighted sets: [N, H, W] at `size`, whole, as `stacked`.

    Raises ShardError for one that cannot be read, unless others may be its `substitutes`.
    """
    count = max(BATCH, min(CROPS, len(stream)))
    return stacked([fit(stream.read(a, substitutes).image, size) for a in stream.addresses(0, count)])


def exported(teacher: Network, crops: np.ndarray, config: Config) -> Network:
    """Return a copy of the teacher with its BatchNorm buffers set to the statistics of `crops` [N, H, W].

    A backbone whose statistics are frozen keeps them, and only the head's are set.
    """
    network = copy.deepcopy(teacher)
    model = nn.Sequential(network.backbone, network.proj_head)
    measured = network.proj_head if config.freezes_batchnorm else model
    calibrate_batchnorm(model, crops, config.mean, config.std, norms=batchnorms(measured))
    return network


@torch.no_grad()
def calibrate_batchnorm(
    model: nn.Module,
    images: np.ndarray,
    mean: float,
    std: float,
    batch_size: int | None = None,
    norms: Sequence[nn.modules.batchnorm._BatchNorm] | None = None,
) -> None:
    """Set the buffers of `norms` to the statistics of `images` [N, H, W], averaged over whole batches.

    `norms` left out are all BatchNorm layers of `model`; others normalize by the buffers that they have.
    `batch_size` left out is that of an export: random weights and others' must be given them in the same way, for
    scores beside a run's own to be fair. The mode that the model is in is kept; one without BatchNorm is left alone.
    """
    norms = batchnorms(model) if norms is None else norms
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    device = next(model.parameters()).device
    batch_size = min(batch_size or max(BATCH, PIXELS // images[0].size), len(images))
    for i in range(0, len(images) - batch_size + 1, batch_size):  # whole batches, so that each weighs the same
        model(normalised(torch.from_numpy(images[i : i + batch_size]).unsqueeze(1).to(device), mean, std))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
