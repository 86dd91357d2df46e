"""Labelled crops from shards, their patients, and their features, in one pass over the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from augment import fit
from data_shards.shard_set import ShardSet
from downstream.config import DownstreamError
from downstream.weights import Weights, to_device
from pretrain.backbones import Backbone, build_backbone
from pretrain.evaluate import PIXELS, calibrate_batchnorm, embed, pixel_features, size_features

CALIBRATION = 1024
"""Crops for the BatchNorm statistics of a random backbone: they are steady well before."""


@dataclass(frozen=True)
class Crops:
    """Crops by place, without their images: the set and number of each, patients [N], keys [N], labels by name [N].

    A label that a crop does not carry is "".
    """

    sets: Sequence[ShardSet]
    places: list[tuple[int, int]]
    keys: np.ndarray
    patients: np.ndarray
    labels: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.places)

    def image(self, i: int) -> np.ndarray:
        """Crop `i` as stored, uint8 or uint16 [h, w]."""
        source, index = self.places[i]
        return self.sets[source].image(index)

    def __add__(self, other: "Crops") -> "Crops":
        """The crops of both, these first."""
        return Crops(
            [*self.sets, *other.sets],
            self.places + [(source + len(self.sets), index) for source, index in other.places],
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.patients, other.patients]),
            {name: np.concatenate([column, other.labels[name]]) for name, column in self.labels.items()},
        )


def find_crops(folders: Sequence[str | Path], labels: Sequence[str]) -> Crops:
    """The crops of shard folders that carry at least one of `labels`; without labels, all.

    Raises ShardError for a bad folder and DownstreamError for a label that no crop carries.
    """
    sets = [ShardSet(folder) for folder in folders]
    places, keys, patients, fields = [], [], [], set()
    columns: dict[str, list[str]] = {label: [] for label in labels}
    for source, shards in enumerate(sets):
        for i in range(len(shards)):
            meta = shards.meta(i)
            fields |= set(meta)
            values = ["" if meta.get(label) is None else str(meta[label]) for label in labels]
            if labels and not any(values):
                continue
            places.append((source, i))
            keys.append(shards.key(i))
            patients.append(str(meta.get("patient", f"{shards.path}:{i}")))
            for label, value in zip(labels, values, strict=True):
                columns[label].append(value)
    for label in labels:
        if not any(columns[label]):
            raise DownstreamError(
                f"no crop carries the label '{label}' in {', '.join(map(str, folders))}; "
                f"they have {', '.join(sorted(fields))}"
            )
    return Crops(
        sets,
        places,
        np.array(keys),
        np.array(patients),
        {label: np.array(column) for label, column in columns.items()},
    )


def with_query(bank: Crops, folders: Sequence[str], labels: Sequence[str]) -> tuple[Crops, np.ndarray]:
    """Bank and query crops in one, and which of them are queries, bool [N].

    Raises DownstreamError where both hold the same patient: what is measured must be new to what has learnt.
    """
    query = find_crops(folders, labels)
    if shared := sorted(set(bank.patients) & set(query.patients)):
        raise DownstreamError(
            f"--shards and --query share {len(shared)} patients (the first is {shared[0]}): "
            "use shards of other patients, such as the holdout folder of one pack"
        )
    return bank + query, np.arange(len(bank) + len(query)) >= len(bank)


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
    images = np.stack([fit(crops.image(i), weights.size) for i in sample])
    calibrate_batchnorm(random, images, weights.mean, weights.std, min(batch_size, len(images)))
    found = _embedded(crops, {"trained": weights.model, "random": random}, weights, batch_size)
    return found | {"pixels": pixel_features(found["pixels"]), "size": size_features(found["size"])}


def _embedded(crops: Crops, models: dict[str, Backbone], weights: Weights, batch_size: int) -> dict[str, np.ndarray]:
    """Features by model, all given the images that `weights` wants; `pixels` uint8 [N, 576] and `size` [N, 2] in px."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*models, "pixels", "size")}
    with tqdm(total=len(crops), unit="crop", desc="embedding", dynamic_ncols=True) as bar:
        for start in range(0, len(crops), batch_size):
            originals = [crops.image(i) for i in range(start, min(start + batch_size, len(crops)))]
            found["pixels"].append(np.stack([fit(image, PIXELS).ravel() for image in originals]))
            found["size"].append(np.array([image.shape for image in originals]))
            batch = np.stack([fit(image, weights.size) for image in originals])
            for name, model in models.items():
                found[name].append(embed(model, batch, weights.mean, weights.std, batch_size))
            bar.update(len(originals))
    return {name: np.concatenate(parts) for name, parts in found.items()}
