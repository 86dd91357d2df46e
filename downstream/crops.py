"""Labelled crops from shards, their patients, and their features, in one pass over the images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from augment import fit, stacked
from data_shards.shard_set import ShardSet
from downstream.config import DownstreamError
from downstream.weights import Weights, to_device
from pretrain.backbones import Backbone, build_backbone
from pretrain.batchnorm import calibrate_batchnorm
from pretrain.evaluate import PIXELS, embed, pixel_features, size_features

CALIBRATION = 1024
"""Crops for the BatchNorm statistics of a random backbone: they are steady well before."""


@dataclass(frozen=True)
class Crops:
    """Crops by place, without their images.

    The set and number of each, keys [N], patients [N], which are queries (bool [N]), and labels by name [N] ("" where
    a crop does not carry it).
    """

    sets: Sequence[ShardSet]
    places: list[tuple[int, int]]
    keys: list[str]
    patients: np.ndarray
    query: np.ndarray
    labels: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.places)

    def image(self, i: int) -> np.ndarray:
        """Crop `i` as stored, uint8 or uint16 [h, w]."""
        source, index = self.places[i]
        return self.sets[source].image(index)


def find_crops(shards: Sequence[str], labels: Sequence[str], query: Sequence[str] | None = None) -> Crops:
    """The crops of `shards` and of `query` that carry at least one of `labels`; without labels, all.

    Raises ShardError for a bad folder, DownstreamError for a label that no crop of either side carries and for a
    patient on both sides: what is measured must be new to what has learnt.
    """
    sets = [ShardSet(folder) for folder in (*shards, *(query or ()))]
    metas = {(source, i): sets[source].meta(i) for source in range(len(sets)) for i in range(len(sets[source]))}
    places = [place for place, meta in metas.items() if not labels or any(meta.get(x) is not None for x in labels)]
    columns = {x: np.array([_text(metas[place].get(x)) for place in places]) for x in labels}
    patients = np.array([str(metas[place].get("patient", place)) for place in places])
    is_query = np.array([source >= len(shards) for source, _ in places], dtype=bool)
    for side, folders in ((~is_query, shards), (is_query, query or ())):
        for label, column in columns.items():
            if folders and not any(column[side]):
                fields = ", ".join(sorted({field for meta in metas.values() for field in meta}))
                raise DownstreamError(
                    f"no crop carries the label '{label}' in {', '.join(folders)}; they have {fields}"
                )
    if both := sorted(set(patients[is_query]) & set(patients[~is_query])):
        raise DownstreamError(
            f"--shards and --query share {len(both)} patients (the first is {both[0]}): "
            "use shards of other patients, such as the holdout folder of the same pack"
        )
    return Crops(sets, places, [sets[source].key(i) for source, i in places], patients, is_query, columns)


def _text(label: object) -> str:
    return "" if label is None else str(label)


def embed_crops(crops: Crops, weights: Weights, batch_size: int) -> np.ndarray:
    """The trained backbone's features of every crop, float32 [N, C]."""
    return _embedded(crops, {"trained": weights.model}, weights, batch_size)["trained"]


def feature_sets(crops: Crops, weights: Weights, seed: int, batch_size: int) -> dict[str, np.ndarray]:
    """Features [N, ...] by what they come from, after one pass over the images.

    `trained`, and what it must beat: `random`, the same backbone as it began (its BatchNorm calibrated on these crops,
    without which it would lose for no good reason), `pixels`, 24 x 24 grays, and `size`, the crop's height and width.
    """
    torch.manual_seed(seed)
    random = to_device(build_backbone(weights.backbone))
    sample = np.linspace(0, len(crops) - 1, min(CALIBRATION, len(crops))).astype(int)
    images = stacked([fit(crops.image(i), weights.size) for i in sample])
    calibrate_batchnorm(random, images, weights.mean, weights.std)
    found = _embedded(crops, {"trained": weights.model, "random": random}, weights, batch_size)
    return found | {"pixels": pixel_features(found["pixels"]), "size": size_features(found["size"])}


def _embedded(crops: Crops, models: dict[str, Backbone], weights: Weights, batch_size: int) -> dict[str, np.ndarray]:
    """Features by model, all given the images that `weights` wants; `pixels` uint8 [N, 576] and `size` [N, 2] in px."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*models, "pixels", "size")}
    with tqdm(total=len(crops), unit="crop", desc="embedding", dynamic_ncols=True) as bar:
        for start in range(0, len(crops), batch_size):
            originals = [crops.image(i) for i in range(start, min(start + batch_size, len(crops)))]
            found["pixels"].append(stacked([fit(image, PIXELS) for image in originals]).reshape(len(originals), -1))
            found["size"].append(np.array([image.shape for image in originals]))
            batch = stacked([fit(image, weights.size) for image in originals])
            for name, model in models.items():
                found[name].append(embed(model, batch, weights.mean, weights.std, batch_size))
            bar.update(len(originals))
    return {name: np.concatenate(parts) for name, parts in found.items()}
