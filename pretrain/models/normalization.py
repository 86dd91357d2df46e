"""Gray levels to what a network takes."""

import torch
from torch import Tensor


def normalised(views: Tensor, mean: float, std: float) -> Tensor:
    """Views [N, 1, H, W] -> float32, (x - mean) / std on the device they are on; x is uint8 / 255, or float32."""
    white = 255 if views.dtype == torch.uint8 else 1
    return views.float().mul(1 / (white * std)).sub_(mean / std)
