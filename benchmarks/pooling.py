"""What averaging a feature map costs k-NN: the last map and the one before it, averaged and whole, beside raw pixels.

    python benchmarks/pooling.py --checkpoint runs/ufba/ufba.pth --shards shards/ufba [--label tooth_type position]

A released backbone gives the mean over the cells of its last map, which forgets where in the crop a cell lies; raw
pixels keep it, and so does a map taken whole, its cells in their order. All by cosine, k = 10, crops of the holdout
beside the shards with those of the other patients as neighbours; also for random weights, with BatchNorm statistics of
these crops.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from augment import fit, stacked
from data_shards.errors import ShardError
from downstream.config import CropsConfig, DownstreamError
from downstream.data.crops import Crops, find_crops
from downstream.features.embedded_crops import random_backbone
from downstream.features.weights import Weights, load_weights
from pretrain.checkpoints.weights_io import CheckpointError
from pretrain.evaluation.embed import embed, pixel_features, unit
from pretrain.evaluation.knn import balanced_accuracy, knn_predict
from pretrain.evaluation.labelled_crops import PIXELS
from pretrain.models.backbones import Backbone, BackboneError
from tooth_foundations.core.cli import fail

NEIGHBOURS = 10


class TwoMaps(nn.Module):
    """The last two maps of a backbone, each whole: [B, 1, H, W] -> [B, cells and channels of both]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.shapes: list[tuple[int, int]] = []
        """Of each map, the number of channels and of cells."""

    def forward(self, images: Tensor) -> Tensor:
        maps = [self.backbone.channels_first(one).flatten(2) for one in self.backbone.m(images)[-2:]]
        self.shapes = [(one.shape[1], one.shape[2]) for one in maps]
        return torch.cat([one.flatten(1) for one in maps], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--shards", required=True, help="shard folder with a holdout beside it")
    parser.add_argument("--label", nargs="+", default=["tooth_type", "position"])
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    given = parser.parse_args()
    try:
        weights = load_weights(CropsConfig(checkpoint=given.checkpoint, out="", shards=[given.shards]))
        crops = find_crops([given.shards], given.label, [str(Path(given.shards) / "holdout")])
    except (ShardError, DownstreamError, CheckpointError, BackboneError, OSError) as error:
        fail(error)
    print("| | " + " | ".join(given.label) + " |\n" + "|---" * (len(given.label) + 1) + "|")
    for name, features in kinds(crops, weights, given.seed):
        scores = [f"{knn(features, crops.labels[label], crops.query):.3f}" for label in given.label]
        print(f"| {name} | {' | '.join(scores)} |", flush=True)


def kinds(crops: Crops, weights: Weights, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every kind of features [N, C], with its name."""
    raw = [crops.image(i) for i in range(len(crops))]
    images = stacked([fit(image, weights.size) for image in raw])
    for source, backbone in (("trained", weights.model), ("random", random_backbone(crops, weights, seed))):
        maps = TwoMaps(backbone)
        both = embed(maps, images, weights.mean, weights.std)
        (channels, cells), last = maps.shapes
        before = both[:, : channels * cells].reshape(-1, channels, cells)
        last = both[:, channels * cells :].reshape(-1, *last)
        yield f"{source}, the last map averaged (what a backbone gives)", unit(last.mean(2))
        yield f"{source}, the last map whole ({last.shape[2]} cells)", unit(last.reshape(len(last), -1))
        yield f"{source}, the map before averaged", unit(before.mean(2))
        yield f"{source}, the map before whole ({cells} cells)", unit(before.reshape(len(before), -1))
    pixels = stacked([fit(image, PIXELS) for image in raw])
    yield "raw pixels", pixel_features(pixels.reshape(len(pixels), -1))


def knn(features: np.ndarray, labels: np.ndarray, query: np.ndarray) -> float:
    """Balanced accuracy on the crops of `query` [N]; those without a label ("") are left out."""
    bank, tested = ~query & (labels != ""), query & (labels != "")
    predicted = knn_predict(features[bank], labels[bank], features[tested], NEIGHBOURS)
    return balanced_accuracy(labels[tested], predicted)


if __name__ == "__main__":
    main()
