"""Images that an export is tried on: phantom teeth, as weights for radiographs must be tried on what they are for.

On noise, which they never saw, the BatchNorm of true weights can magnify each layer's rounding until two right programs
differ, and right files would be refused.
"""

import torch
from torch import Tensor

from augment import fit, stacked
from data_shards.phantom.render import render_crop
from downstream.features.weights import Weights
from pretrain.models.normalization import normalised


def phantom_teeth(weights: Weights, count: int, size: tuple[int, int]) -> Tensor:
    """The same `count` phantom crops at every call, float32 [count, 1, H, W], normalised as `weights` say."""
    crops = [fit(render_crop(0, patient)[0], size) for patient in range(count)]
    return normalised(torch.from_numpy(stacked(crops)).unsqueeze(1), weights.mean, weights.std)
