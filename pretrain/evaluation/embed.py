"""Features of images: a backbone's, and those of the baselines that it must beat."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.evaluation.labelled_crops import LabelledCrops
from pretrain.models.backbones import Backbone
from pretrain.models.normalization import normalised

BASELINES = ("before", "pixels", "size")
"""What a trained backbone must beat: itself before training, raw pixels, the crop's height and width."""


LAST, BEFORE = (2, 2), (4, 3)
"""Cells, rows and columns, that the last map and the one before it are averaged to at most: as many as the maps of a
crop of 64 x 48 px have at strides of 32 and 16."""


def embed(backbone: nn.Module, images: np.ndarray, mean: float, std: float, batch_size: int = 64) -> np.ndarray:
    """Features float32 [N, C] of images [N, H, W] as `stacked`, in `eval()`; the backbone's own mode is restored."""
    return _passed(backbone, backbone, images, mean, std, batch_size)


def embed_maps(backbone: Backbone, images: np.ndarray, mean: float, std: float, batch_size: int = 64) -> np.ndarray:
    """Return the last two feature maps of images [N, H, W] as `stacked`, float32 [N, C x cells + C' x cells'].

    Each map is averaged to at most LAST and BEFORE cells. What a tooth's shape says lies in them, and in their average
    over the image it is lost.
    """
    return _passed(lambda batch: pooled_maps(backbone, batch), backbone, images, mean, std, batch_size)


def pooled_maps(backbone: Backbone, batch: Tensor) -> Tensor:
    """Return the last two maps of a batch [B, 1, H, W], averaged to cells and side by side: [B, features]."""
    *_, before, last = (backbone.channels_first(one) for one in backbone.m(batch))
    parts = []
    for one, (rows, columns) in ((last, LAST), (before, BEFORE)):
        cells = min(rows, one.shape[2]), min(columns, one.shape[3])
        parts.append(F.adaptive_avg_pool2d(one, cells).flatten(1))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def _passed(
    forward: Callable[[Tensor], Tensor],
    backbone: nn.Module,
    images: np.ndarray,
    mean: float,
    std: float,
    batch_size: int,
) -> np.ndarray:
    """Return what `forward` gives for all images, in batches, with the backbone in `eval()`."""
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    features = [
        forward(normalised(torch.from_numpy(images[i : i + batch_size]).unsqueeze(1).to(device), mean, std))
        for i in range(0, len(images), batch_size)
    ]
    backbone.train(training)
    return torch.cat(features).float().cpu().numpy()


def unit(features: np.ndarray) -> np.ndarray:
    """Features [N, C] scaled to length 1, so that Euclidean neighbours are the neighbours by cosine."""
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)


def pixel_features(pixels: np.ndarray) -> np.ndarray:
    """Pixels [N, P] as features: centered and scaled for each image, so that exposure and contrast do not count."""
    return unit(pixels.astype(np.float32) - pixels.mean(1, keepdims=True, dtype=np.float32))


def size_features(sizes: np.ndarray) -> np.ndarray:
    """Heights and widths [N, 2] as standardised logarithms: what the crop's size and shape alone tell."""
    logs = np.log(sizes.astype(np.float64))
    return (logs - logs.mean(0)) / logs.std(0).clip(1e-6)


def baseline_features(crops: LabelledCrops, before: np.ndarray) -> dict[str, np.ndarray]:
    """The features of BASELINES, by name; `before` are those of the random weights, [N, C]."""
    return {"before": unit(before), "pixels": pixel_features(crops.pixels), "size": size_features(crops.sizes)}
