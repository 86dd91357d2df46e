"""What a backbone makes of an image, place by place: its last feature map as colours, as a map, and as attention."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.backbones import Backbone
from pretrain.models.batchnorm import calibrate_batchnorm
from pretrain.models.normalization import normalised

CELLS = 6
"""Cells that a larger map has on its short side, at least. Of a 64x48 view most backbones have 2; with 12 of them, from
teeth 8 times as large as those learnt from, the colours were noise."""


def larger(backbone: Backbone, size: tuple[int, int]) -> tuple[int, int]:
    """`size` (H, W) in px times the least whole number, from 2, that gives the map `CELLS` cells on its short side."""
    stride = backbone.m.feature_info.reduction()[-1]  # type: ignore[union-attr, operator]
    times = max(2, math.ceil(CELLS * stride / min(size)))
    return size[0] * times, size[1] * times


@torch.no_grad()
def feature_maps(backbone: Backbone, images: np.ndarray, mean: float, std: float, batch_size: int = 16) -> np.ndarray:
    """The last feature maps in `eval()`, float32 [N, h, w, C], of images [N, H, W] as `stacked`.

    Each cell is scaled to length 1: what it is like, not how strongly, as in k-NN by cosine.
    """
    maps = [backbone.feature_map(b).permute(0, 2, 3, 1) for b in _inputs(backbone, images, mean, std, batch_size)]
    return F.normalize(torch.cat(maps).float(), dim=-1).cpu().numpy()


def at_size(backbone: Backbone, images: np.ndarray, mean: float, std: float) -> Backbone:
    """A copy for images [N, H, W] of another size than the trained one, its BatchNorm set to their statistics.

    Those of small views do not hold: at 8 times the size starnet_s4's features grew without bound.
    """
    other = copy.deepcopy(backbone)
    calibrate_batchnorm(other, images, mean, std, batch_size=3)
    return other


@torch.no_grad()
def attention_maps(backbone: Backbone, images: np.ndarray, mean: float, std: float) -> np.ndarray | None:
    """What the last attention layer looks at: float32 [N, heads, h, w], each head's map a share that sums to 1.

    The mean over all queries of the softmax, since the features are the mean of all patches (DINO, Caron et al. 2021,
    figure 1 shows the class token's, which these features do not contain). Class and register tokens, which have no
    place, are left out. None for a backbone without attention over the whole map.
    """
    layers = [m for m in backbone.modules() if hasattr(m, "attn_drop") and hasattr(m, "fused_attn")]
    if not layers:
        return None
    found: list[Tensor] = []
    with _softmax_of(layers[-1], found):
        for batch in _inputs(backbone, images, mean, std, 4):
            height, width = backbone.feature_map(batch).shape[-2:]
    if any(softmax.shape[-1] < height * width for softmax in found):
        return None  # windows
    received = torch.cat([softmax[..., -height * width :].float().mean(2) for softmax in found])
    received = received / received.sum(-1, keepdim=True)
    return received.unflatten(-1, (height, width)).cpu().numpy()


@contextmanager
def _softmax_of(layer: nn.Module, found: list[Tensor]) -> Iterator[None]:
    """Collect the softmax [B, heads, queries, keys] of an attention layer, which a fused one never writes down."""
    fused = layer.fused_attn
    layer.fused_attn = False  # type: ignore[assignment]
    drop: nn.Module = layer.attn_drop  # type: ignore[assignment]
    hook = drop.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield
    finally:
        hook.remove()
        layer.fused_attn = fused


def pca_colours(maps: np.ndarray) -> tuple[np.ndarray, float]:
    """The first three principal components of all cells as red, green and blue, and the share of variance they hold.

    maps [N, h, w, C] -> colours float32 [N, h, w, 3] from 0 to 1, alike in all N images (DINOv2, Oquab et al. 2023,
    figure 1, without its cut at the first component). Each component is scaled from its 2nd to its 98th percentile.
    """
    cells = maps.reshape(-1, maps.shape[-1])
    components = min(3, *cells.shape)
    from sklearn.decomposition import PCA  # here, as it takes a second of the start of every command

    pca = PCA(components, svd_solver="randomized", random_state=0)
    projected = pca.fit_transform(cells)
    low, high = np.percentile(projected, (2, 98), axis=0)
    colours = ((projected - low) / (high - low).clip(1e-12)).clip(0, 1)
    colours = np.pad(colours, ((0, 0), (0, 3 - components)), constant_values=0.5)
    return colours.reshape(*maps.shape[:3], 3).astype(np.float32), float(pca.explained_variance_ratio_.sum())


def activation_maps(maps: np.ndarray) -> np.ndarray:
    """How much each cell makes an image differ from the mean image: maps [N, h, w, C] -> float32 [N, h, w].

    The features are the mean of the cells, so their squared distance from the mean features of all images is a sum
    over cells, of which these are the addends (Stylianou et al. 2019, eq. 3, centered). Negative where a cell pulls
    its image back to the mean.
    """
    centered = maps - maps.mean((0, 1, 2))
    return np.einsum("nhwc,nc->nhw", centered, centered.mean((1, 2)))


def _inputs(backbone: Backbone, images: np.ndarray, mean: float, std: float, batch_size: int) -> Iterator[Tensor]:
    """Batches [B, 1, H, W] on the backbone's device, which is in `eval()` meanwhile."""
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    for i in range(0, len(images), batch_size):
        yield normalised(torch.from_numpy(images[i : i + batch_size]).unsqueeze(1).to(device), mean, std)
    backbone.train(training)
