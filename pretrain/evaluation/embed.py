"""Features of images: a backbone's, and those of the baselines that it must beat."""

import numpy as np
import torch
from torch import nn

from pretrain.evaluation.labelled_crops import LabelledCrops
from pretrain.models.normalization import normalised

BASELINES = ("before", "pixels", "size")
"""What a trained backbone must beat: itself before training, raw pixels, the crop's height and width."""


@torch.no_grad()
def embed(backbone: nn.Module, images: np.ndarray, mean: float, std: float, batch_size: int = 64) -> np.ndarray:
    """Features float32 [N, C] of images [N, H, W] as `stacked`, in `eval()`; the backbone's own mode is restored."""
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    features = [
        backbone(normalised(torch.from_numpy(images[i : i + batch_size]).unsqueeze(1).to(device), mean, std))
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
